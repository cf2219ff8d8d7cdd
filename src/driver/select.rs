//! Which driver: `--device auto|cuda|emu`.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::bindings::{self, CUdevice_attribute_enum as Attribute};
use super::{check, table};
use crate::failure::Failure;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU that can run the kernels if there is one, else the emulator.
    #[default]
    Auto,
    /// The GPU; an error when there is none.
    Cuda,
    /// The emulator.
    Emu,
}

impl FromStr for DeviceChoice {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cuda" => Ok(DeviceChoice::Cuda),
            "emu" => Ok(DeviceChoice::Emu),
            other => Err(Failure::user(
                "--device",
                format!("{other:?} is no device"),
                "use auto, cuda or emu",
            )),
        }
    }
}

/// Which driver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    Cuda,
    Emulator,
}

/// The driver in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    pub kind: DriverKind,
    /// `cuDriverGetVersion`, as in 13000.
    pub version: u32,
    /// Devices that the driver has.
    pub devices: usize,
    /// Name of device 0.
    pub device_name: String,
    /// Functions of the table that the driver has, of how many.
    pub functions: (usize, usize),
    /// Why this driver, in half a line.
    pub reason: String,
}

impl fmt::Display for DriverInfo {
    /// The one line that says which device is used, and why.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DriverKind::Cuda => "cuda",
            DriverKind::Emulator => "emu",
        };
        write!(f, "device: {kind} ({}", self.device_name)?;
        if self.devices > 1 {
            write!(f, ", {} devices", self.devices)?;
        }
        write!(
            f,
            ", driver {}.{}): {}",
            self.version / 1000,
            self.version % 1000 / 10,
            self.reason
        )
    }
}

static ACTIVE: Mutex<Option<DriverInfo>> = Mutex::new(None);

/// Chooses the driver and initialises it. The first call decides for the process; a later one returns the same driver, or
/// an error when it asks for the other.
pub fn init(choice: DeviceChoice) -> Result<DriverInfo> {
    let mut active = ACTIVE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(info) = active.as_ref() {
        let wanted = match choice {
            DeviceChoice::Auto => info.kind,
            DeviceChoice::Cuda => DriverKind::Cuda,
            DeviceChoice::Emu => DriverKind::Emulator,
        };
        if wanted != info.kind {
            return Err(Failure::user(
                "device",
                format!("the process already uses another ({info})"),
                "one process uses one driver",
            )
            .into());
        }
        return Ok(info.clone());
    }
    let info = match choice {
        DeviceChoice::Emu => start_emulator("asked for".to_owned())?,
        DeviceChoice::Cuda => start_cuda("asked for").map_err(|why| {
            Failure::user(
                "device cuda",
                why,
                "use --device emu, or --device auto to fall back by itself",
            )
        })?,
        DeviceChoice::Auto => match start_cuda("found") {
            Ok(info) => info,
            Err(why) => start_emulator(why)?,
        },
    };
    *active = Some(info.clone());
    Ok(info)
}

/// The driver that [`init`] chose, if it has been called.
pub fn active() -> Option<DriverInfo> {
    ACTIVE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

fn start_emulator(reason: String) -> Result<DriverInfo> {
    let found = table::fill(|name| birdie_emulator::driver::symbol(name.to_str().ok()?));
    Ok(describe(DriverKind::Emulator, found, reason)?)
}

/// Loads libcuda.so.1 and looks whether its device 0 can run the kernels. On failure nothing of it stays in use.
fn start_cuda(reason: &str) -> Result<DriverInfo, String> {
    // SAFETY: loading a library runs its initialisers; libcuda.so.1 is made to be loaded so.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }
        .map_err(|_| "no libcuda.so.1 on this machine".to_owned())?;
    let found = table::fill(|name| {
        // SAFETY: the symbol is only stored as an address here.
        let symbol = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) };
        symbol.ok().map(|symbol| *symbol)
    });
    // The table points into the library for the rest of the process, whatever comes of it.
    std::mem::forget(library);
    if found == 0 {
        return Err("libcuda.so.1 has no driver function".to_owned());
    }
    let info = describe(DriverKind::Cuda, found, reason.to_owned())
        .map_err(|error| format!("libcuda.so.1 is installed, but {error}"))?;
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    );
    if capability != (9, 0) {
        return Err(format!(
            "{} has compute capability {}.{}, the kernels need 9.0 (Hopper)",
            info.device_name, capability.0, capability.1
        ));
    }
    Ok(info)
}

fn describe(
    kind: DriverKind,
    found: usize,
    reason: String,
) -> Result<DriverInfo, super::DriverError> {
    // SAFETY: all arguments are places for the results, of the types that the functions declare.
    unsafe {
        check(bindings::cuInit(0), || "cuInit")?;
        let mut version = 0;
        check(
            bindings::cuDriverGetVersion(&mut version),
            || "driver version",
        )?;
        let mut devices = 0;
        check(bindings::cuDeviceGetCount(&mut devices), || "device count")?;
        if devices == 0 {
            return Err(super::DriverError {
                what: "device count".to_owned(),
                code: super::DriverError::NO_DEVICE,
            });
        }
        let mut name = [0 as c_char; 256];
        check(
            bindings::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, 0),
            || "device name",
        )?;
        Ok(DriverInfo {
            kind,
            version: version.max(0) as u32,
            devices: devices.max(0) as usize,
            device_name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
            functions: (found, table::FUNCTIONS),
            reason,
        })
    }
}

/// An attribute of device 0, or -1.
fn attribute(attribute: Attribute) -> i32 {
    let mut value = -1;
    // SAFETY: `value` is a place for the result; on failure it keeps -1.
    let _ = unsafe { bindings::cuDeviceGetAttribute(&mut value, attribute, 0) };
    value
}

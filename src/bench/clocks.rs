//! The clocks that a GPU runs at now.
//!
//! The driver API tells only the largest ones. NVML, the management library that comes with the driver, tells the current ones; it is
//! loaded where it is installed and knows the device, else every clock is "not told". Nothing is set: clocks are left as they are.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use cust::device::{Device, DeviceAttribute};
use libloading::Library;
use serde::{Deserialize, Serialize};

/// Megahertz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub sm_mhz: u32,
    pub memory_mhz: u32,
}

/// Clocks right before and right after something ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    pub before: Clocks,
    pub after: Clocks,
}

impl Around {
    /// The lowest of both.
    pub fn lowest(self, other: Around) -> Around {
        let lower = |a: Clocks, b: Clocks| Clocks {
            sm_mhz: a.sm_mhz.min(b.sm_mhz),
            memory_mhz: a.memory_mhz.min(b.memory_mhz),
        };
        Around {
            before: lower(self.before, other.before),
            after: lower(self.after, other.after),
        }
    }
}

type Handle = *mut c_void;

/// nvml.h: `nvmlClockType_t`, and the result of a call that succeeded.
const CLOCK_SM: c_int = 1;
const CLOCK_MEMORY: c_int = 2;
const SUCCESS: c_int = 0;

/// The functions of NVML that are needed, as nvml.h declares them.
#[derive(Clone, Copy)]
struct Functions {
    init: unsafe extern "C" fn() -> c_int,
    shutdown: unsafe extern "C" fn() -> c_int,
    device: unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int,
    clock: unsafe extern "C" fn(Handle, c_int, *mut c_uint) -> c_int,
}

/// Reads the clocks of one device.
pub struct ClockReader {
    functions: Functions,
    device: Handle,
    /// Keeps the functions loaded; absent in tests.
    _library: Option<Library>,
}

impl ClockReader {
    /// Of a device of CUDA. `None` where NVML is not installed or does not know the device.
    pub fn open(device: &Device) -> Option<Self> {
        use DeviceAttribute::{PciBusId, PciDeviceId, PciDomainId};
        let attribute = |which| device.get_attribute(which).ok();
        let (domain, bus, slot) = (
            attribute(PciDomainId)?,
            attribute(PciBusId)?,
            attribute(PciDeviceId)?,
        );
        let place = CString::new(format!("{domain:08x}:{bus:02x}:{slot:02x}.0")).ok()?;
        // SAFETY: the library's initialisers do nothing but initialise it; it is NVIDIA's, found where the loader looks.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }.ok()?;
        // SAFETY: the types are those that nvml.h declares for these names.
        let functions = unsafe {
            Functions {
                init: *library.get(b"nvmlInit_v2\0").ok()?,
                shutdown: *library.get(b"nvmlShutdown\0").ok()?,
                device: *library.get(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?,
                clock: *library.get(b"nvmlDeviceGetClockInfo\0").ok()?,
            }
        };
        Self::of(functions, &place, Some(library))
    }

    fn of(functions: Functions, place: &CStr, library: Option<Library>) -> Option<Self> {
        // SAFETY: may be called any number of times, each to be undone by one `shutdown`.
        if unsafe { (functions.init)() } != SUCCESS {
            return None;
        }
        // From here on dropping it shuts the library down.
        let mut reader = Self {
            functions,
            device: std::ptr::null_mut(),
            _library: library,
        };
        // SAFETY: the text ends in NUL, the handle is written where there is room for one.
        let found = unsafe { (functions.device)(place.as_ptr(), &mut reader.device) };
        (found == SUCCESS).then_some(reader)
    }

    /// The clocks at this moment. `None` where the device does not tell.
    pub fn now(&self) -> Option<Clocks> {
        let clock = |which| {
            let mut mhz = 0;
            // SAFETY: the handle is the library's own; the number is written where there is room for one.
            let told = unsafe { (self.functions.clock)(self.device, which, &mut mhz) };
            (told == SUCCESS).then_some(mhz)
        };
        Some(Clocks {
            sm_mhz: clock(CLOCK_SM)?,
            memory_mhz: clock(CLOCK_MEMORY)?,
        })
    }
}

impl Drop for ClockReader {
    fn drop(&mut self) {
        // SAFETY: undoes the `init` of this reader; no handle is used afterwards.
        unsafe { (self.functions.shutdown)() };
    }
}

#[cfg(test)]
pub(super) mod fake {
    //! A library that knows one device, whose SM clock falls by 15 MHz each time it is read.

    use super::*;
    use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

    /// How often it is initialised, less how often shut down.
    pub static OPEN: AtomicI32 = AtomicI32::new(0);
    static SM: AtomicU32 = AtomicU32::new(1_000_000);
    const DEVICE: usize = 77;
    pub const PLACE: &CStr = c"00000000:1b:00.0";
    pub const MEMORY_MHZ: u32 = 2619;

    extern "C" fn init() -> c_int {
        OPEN.fetch_add(1, Ordering::SeqCst);
        SUCCESS
    }

    extern "C" fn shutdown() -> c_int {
        OPEN.fetch_sub(1, Ordering::SeqCst);
        SUCCESS
    }

    unsafe extern "C" fn device(place: *const c_char, handle: *mut Handle) -> c_int {
        // SAFETY: the caller passes a text that ends in NUL.
        if unsafe { CStr::from_ptr(place) } != PLACE {
            return 6; // NVML_ERROR_NOT_FOUND
        }
        // SAFETY: the caller passes room for a handle.
        unsafe { *handle = std::ptr::without_provenance_mut(DEVICE) };
        SUCCESS
    }

    unsafe extern "C" fn clock(handle: Handle, which: c_int, mhz: *mut c_uint) -> c_int {
        if handle.addr() != DEVICE {
            return 2; // NVML_ERROR_INVALID_ARGUMENT
        }
        let value = match which {
            CLOCK_SM => SM.fetch_sub(15, Ordering::SeqCst),
            CLOCK_MEMORY => MEMORY_MHZ,
            _ => return 2,
        };
        // SAFETY: the caller passes room for a number.
        unsafe { *mhz = value };
        SUCCESS
    }

    pub fn reader(place: &CStr) -> Option<ClockReader> {
        let functions = Functions {
            init,
            shutdown,
            device,
            clock,
        };
        ClockReader::of(functions, place, None)
    }

    #[test]
    fn clocks_are_read_and_the_library_is_shut_down() {
        let reader = reader(PLACE).expect("known");
        let (first, second) = (reader.now().expect("told"), reader.now().expect("told"));
        assert!(second.sm_mhz < first.sm_mhz);
        assert_eq!(second.memory_mhz, MEMORY_MHZ);
        let around = |before, after| Around { before, after };
        let lowest = around(first, second).lowest(around(second, first));
        assert_eq!(lowest, around(second, second));
        drop(reader);
        assert!(
            super::fake::reader(c"00000000:2b:00.0").is_none(),
            "unknown"
        );
    }
}

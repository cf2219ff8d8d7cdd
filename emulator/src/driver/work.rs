//! What a stream can be asked to do, and how it is done.
//!
//! Addresses of device memory are host addresses (see `memory.rs` of the crate), so a copy is a copy, whatever the
//! direction. Ranges are checked when a call is made; freeing memory waits for the work that uses it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::error::{Code, Error};
use super::function::launch_error;
use super::module::Kernel;
use super::{files, observe};
use crate::check::Finding;
use crate::device::{Device, Fault, LaunchConfig, LaunchError, Observation};
use crate::memory::{Arena, defined};

/// Fills with zeros from this size on give whole pages back instead of writing them.
const LARGE_FILL: u64 = 1 << 20;

/// One operation of a stream. Cheap to clone: graphs launch the same operation many times.
#[derive(Clone)]
pub enum Work {
    /// Only orders others.
    Nothing,
    Kernel(Arc<KernelCall>),
    Copy(Arc<Copy>),
    Fill(Fill),
    /// `cuLaunchHostFunc`.
    Host(HostCall),
    /// `cuStreamAddCallback`.
    Callback(Callback),
    /// `cuEventRecord`: notes the time.
    Record(Arc<Stamp>),
    /// `cuStreamWriteValue`.
    WriteValue(Value),
    /// `cuStreamWaitValue`.
    WaitValue(Value, Condition),
    /// `cuMemFreeAsync`.
    Free(u64),
    /// The memory of an allocation node is there from now on, or is gone.
    Bring(u64),
    Withdraw(u64),
}

/// A kernel with its configuration and parameter block.
pub struct KernelCall {
    pub kernel: Arc<Kernel>,
    pub config: LaunchConfig,
    pub parameters: Vec<u8>,
    /// The whole grid is resident and has a workspace for its barrier.
    pub cooperative: bool,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
pub struct Copy {
    pub source: u64,
    pub destination: u64,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
    /// Bytes from row to row and from slice to slice.
    pub source_pitch: usize,
    pub source_slice: usize,
    pub destination_pitch: usize,
    pub destination_slice: usize,
    /// Pageable host memory is read when the call is made, into here; `source` points into it then.
    pub staged: Option<Vec<u8>>,
}

/// A memset of `height` rows of `width` elements.
#[derive(Clone, Copy)]
pub struct Fill {
    pub address: u64,
    /// Bytes from row to row.
    pub pitch: usize,
    pub value: u32,
    /// 1, 2 or 4.
    pub element: usize,
    pub width: usize,
    pub height: usize,
}

/// A C function of the host and its argument.
#[derive(Clone, Copy)]
pub struct HostCall {
    pub function: unsafe extern "C" fn(*mut core::ffi::c_void),
    pub data: u64,
}

/// A stream callback: gets the stream and the status too.
#[derive(Clone, Copy)]
pub struct Callback {
    pub function: unsafe extern "C" fn(u64, u32, *mut core::ffi::c_void),
    pub stream: u64,
    pub data: u64,
}

/// A 32- or 64-bit value in device-visible memory.
#[derive(Clone, Copy)]
pub struct Value {
    pub address: u64,
    pub value: u64,
    pub wide: bool,
}

/// What `cuStreamWaitValue` waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Cyclically greater or equal.
    Geq,
    Eq,
    And,
    Nor,
}

/// When an event was reached.
#[derive(Default)]
pub struct Stamp(Mutex<Option<Instant>>);

impl Stamp {
    /// Notes now.
    pub fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Whether it occupies the device, so that no other such operation of the device may run at the same time.
    pub fn occupies_device(&self) -> bool {
        matches!(self, Work::Kernel(_) | Work::Copy(_) | Work::Fill(_))
    }

    /// Whether it can run now: only `cuStreamWaitValue` can not.
    pub fn can_run(&self) -> bool {
        match self {
            Work::WaitValue(value, condition) => condition.holds(value),
            _ => true,
        }
    }
}

impl Condition {
    fn holds(self, value: &Value) -> bool {
        if value.wide {
            // SAFETY: the address was checked to be 8 aligned bytes of a live allocation when the wait was enqueued; memory is
            // not freed while work is pending.
            let now =
                unsafe { AtomicU64::from_ptr(value.address as *mut u64) }.load(Ordering::Acquire);
            match self {
                Condition::Geq => (now.wrapping_sub(value.value) as i64) >= 0,
                Condition::Eq => now == value.value,
                Condition::And => now & value.value != 0,
                Condition::Nor => !(now | value.value) != 0,
            }
        } else {
            let wanted = value.value as u32;
            // SAFETY: as above, with 4 bytes.
            let now =
                unsafe { AtomicU32::from_ptr(value.address as *mut u32) }.load(Ordering::Acquire);
            match self {
                Condition::Geq => (now.wrapping_sub(wanted) as i32) >= 0,
                Condition::Eq => now == wanted,
                Condition::And => now & wanted != 0,
                Condition::Nor => !(now | wanted) != 0,
            }
        }
    }
}

impl Copy {
    /// A plain copy of `bytes`.
    pub fn linear(source: u64, destination: u64, bytes: usize) -> Copy {
        Copy {
            source,
            destination,
            width: bytes,
            height: 1,
            depth: 1,
            source_pitch: bytes,
            source_slice: bytes,
            destination_pitch: bytes,
            destination_slice: bytes,
            staged: None,
        }
    }

    /// Does it.
    ///
    /// # Safety
    /// All rows of source and destination must be mapped.
    pub unsafe fn run(&self) {
        for slice in 0..self.depth {
            for row in 0..self.height {
                let from = slice * self.source_slice + row * self.source_pitch;
                let to = slice * self.destination_slice + row * self.destination_pitch;
                // SAFETY: by the contract of this function; overlapping ranges are moved as by memmove.
                unsafe {
                    std::ptr::copy(
                        (self.source as *const u8).add(from),
                        (self.destination as *mut u8).add(to),
                        self.width,
                    );
                }
                let [from, to] = [self.source + from as u64, self.destination + to as u64];
                defined::copied(from, to, self.width as u64);
            }
        }
    }

    /// Reads the source now, so that the caller may change it.
    ///
    /// # Safety
    /// All rows of the source must be mapped.
    pub unsafe fn stage(&mut self) {
        let slice = self.width * self.height;
        let mut buffer = vec![0u8; slice * self.depth];
        let into = Copy {
            source: self.source,
            destination: buffer.as_mut_ptr() as u64,
            destination_pitch: self.width,
            destination_slice: slice,
            staged: None,
            ..*self
        };
        // SAFETY: the buffer has room for all rows, densely; the source is the caller's promise.
        unsafe { into.run() };
        self.source = buffer.as_ptr() as u64;
        self.source_pitch = self.width;
        self.source_slice = slice;
        self.staged = Some(buffer);
    }
}

impl Fill {
    /// What is left of a fill with zeros after whole pages of device memory have been given back to the system: training
    /// starts with zeroed tensors of gigabytes, most of which a sampled or short run never touches.
    fn after_zeroed_pages(self, memory: &Arena) -> Fill {
        let bytes = (self.width * self.element) as u64;
        if self.value != 0 || self.height != 1 || self.element != 1 || bytes < LARGE_FILL {
            return self;
        }
        match memory.zero_pages(self.address, bytes) {
            Some((start, end)) => {
                defined::written(start, end - start);
                let head = Fill {
                    width: (start - self.address) as usize,
                    ..self
                };
                // SAFETY: the start of a range that was checked when the call was made.
                unsafe { head.run() };
                Fill {
                    address: end,
                    width: (self.address + bytes - end) as usize,
                    ..self
                }
            }
            None => self,
        }
    }

    /// Does it.
    ///
    /// # Safety
    /// All rows must be mapped and the address aligned to the element.
    unsafe fn run(&self) {
        for row in 0..self.height {
            let start = self.address + (row * self.pitch) as u64;
            // SAFETY: by the contract of this function.
            unsafe {
                match self.element {
                    1 => std::ptr::write_bytes(start as *mut u8, self.value as u8, self.width),
                    2 => std::slice::from_raw_parts_mut(start as *mut u16, self.width)
                        .fill(self.value as u16),
                    _ => std::slice::from_raw_parts_mut(start as *mut u32, self.width)
                        .fill(self.value),
                }
            }
            defined::written(start, (self.width * self.element) as u64);
        }
    }
}

/// How an operation ended.
pub enum Ended {
    /// With findings, where they are collected.
    Well(Vec<Finding>),
    /// The context is lost: later calls give this code.
    Fault(Code, Fault),
    /// The launch was refused although it was checked when it was made.
    Refused(Error),
}

/// Does the work. Host functions are called with no lock held.
pub fn execute(work: &Work, device: &Device) -> Ended {
    match work {
        // Tables are changed where the lock is held: see `run.rs`.
        Work::Nothing | Work::WaitValue(..) | Work::Bring(_) | Work::Withdraw(_) => {}
        Work::Kernel(call) => {
            let program = &call.kernel.program;
            // Every launch has a schedule of its own, the same ones in every run with the same seed.
            let seed = device.settings.seed
                ^ device
                    .launches
                    .load(Ordering::Relaxed)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut observed = Observation::default();
            let workspace = match call.cooperative.then(|| device.grid_workspace()) {
                None => 0,
                Some(Some(address)) => address,
                Some(None) => {
                    return Ended::Refused(Code::OUT_OF_MEMORY.because(format!(
                        "kernel {}: the device is full, and a cooperative grid needs a workspace",
                        call.kernel.name
                    )));
                }
            };
            let result = device.launch_observed(
                program,
                call.config,
                &call.parameters,
                seed,
                workspace,
                &mut observed,
            );
            files::write(device, program, &call.config, &observed, &result);
            print(&device.take_output());
            match result {
                Ok(report) => {
                    if let Some(counters) = &observed.counters {
                        observe::launched(program, call.config, &report, counters);
                    }
                    return Ended::Well(report.findings);
                }
                Err(LaunchError::Fault(fault)) => return Ended::Fault(code_of(&fault), fault),
                Err(error) => return Ended::Refused(launch_error(error)),
            }
        }
        // SAFETY: both ranges were checked when the call was made, and what is in use is not freed.
        Work::Copy(copy) => unsafe { copy.run() },
        // SAFETY: as for copies.
        Work::Fill(fill) => unsafe { fill.after_zeroed_pages(&device.memory).run() },
        Work::Host(call) => {
            // SAFETY: the caller of cuLaunchHostFunc promised a function that may be called so.
            unsafe { (call.function)(call.data as *mut core::ffi::c_void) };
        }
        Work::Callback(call) => {
            // SAFETY: as for host functions.
            unsafe { (call.function)(call.stream, 0, call.data as *mut core::ffi::c_void) };
        }
        Work::Record(stamp) => stamp.set(),
        Work::WriteValue(value) => {
            defined::written(value.address, if value.wide { 8 } else { 4 });
            if value.wide {
                // SAFETY: the address was checked to be 8 aligned bytes of a live allocation.
                unsafe { AtomicU64::from_ptr(value.address as *mut u64) }
                    .store(value.value, Ordering::Release);
            } else {
                // SAFETY: as above, with 4 bytes.
                unsafe { AtomicU32::from_ptr(value.address as *mut u32) }
                    .store(value.value as u32, Ordering::Release);
            }
        }
        Work::Free(address) => {
            device.memory.free(*address);
        }
    }
    Ended::Well(Vec::new())
}

/// What kernels print goes to the standard output of the process, as it does from a device.
fn print(text: &[u8]) {
    use std::io::Write;
    if !text.is_empty() {
        let mut out = std::io::stdout().lock();
        // A closed standard output is no failure of the kernel.
        let _ = out.write_all(text).and_then(|()| out.flush());
    }
}

/// The code that a real driver gives for a fault. A finding of the checkers is an unspecified launch failure.
fn code_of(fault: &Fault) -> Code {
    match fault {
        Fault::IllegalAddress(_) => Code::ILLEGAL_ADDRESS,
        Fault::MisalignedAddress(_) => Code::MISALIGNED_ADDRESS,
        Fault::IllegalInstruction(_) => Code::ILLEGAL_INSTRUCTION,
        Fault::HardwareStack(_) => Code::HARDWARE_STACK_ERROR,
        Fault::InvalidPc(_) => Code::INVALID_PC,
        Fault::Trap(_) | Fault::Finding(_) => Code::LAUNCH_FAILED,
        Fault::Assert(_) => Code::ASSERT,
        Fault::Timeout(_) => Code::LAUNCH_TIMEOUT,
    }
}

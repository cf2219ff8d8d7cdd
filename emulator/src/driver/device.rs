//! Initialisation, version, and the devices.

use std::ffi::{c_char, c_void};

use super::error::{Code, Outcome, describe};
use super::module::text;
use super::state;
use super::{attributes, put};

/// The driver's version: CUDA 13.0.
pub const VERSION: i32 = 13_000;

pub unsafe fn init(flags: u32) -> Outcome {
    if flags != 0 {
        return Code::INVALID_VALUE.fail(format!("cuInit({flags}): the flags must be 0"));
    }
    state::initialise()
}

pub unsafe fn version(out: *mut i32) -> Outcome {
    put(out, VERSION)
}

pub unsafe fn error_name(code: u32, out: *mut *const c_char) -> Outcome {
    match describe(code) {
        Some((name, _)) => put(out, name.as_ptr()),
        None => {
            put(out, std::ptr::null())?;
            Code::INVALID_VALUE.fail(format!("no result code {code}"))
        }
    }
}

pub unsafe fn error_string(code: u32, out: *mut *const c_char) -> Outcome {
    match describe(code) {
        Some((_, text)) => put(out, text.as_ptr()),
        None => {
            put(out, std::ptr::null())?;
            Code::INVALID_VALUE.fail(format!("no result code {code}"))
        }
    }
}

pub unsafe fn count(out: *mut i32) -> Outcome {
    let guard = state::lock()?;
    put(out, guard.gpus.len() as i32)
}

pub unsafe fn get(out: *mut i32, ordinal: i32) -> Outcome {
    let mut guard = state::lock()?;
    guard.gpu(ordinal)?;
    put(out, ordinal)
}

/// Copies a text with its NUL, cut to the room there is.
unsafe fn put_text(out: *mut c_char, room: i32, text: &str) -> Outcome {
    if out.is_null() || room <= 0 {
        return Code::INVALID_VALUE.fail("no place for the text");
    }
    let count = text.len().min(room as usize - 1);
    // SAFETY: the caller gave `room` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), out.cast(), count);
        *out.add(count) = 0;
    }
    Ok(())
}

pub unsafe fn name(out: *mut c_char, room: i32, device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    // SAFETY: the caller's promise.
    unsafe { put_text(out, room, "NVIDIA H100 80GB HBM3 (birdie emulator)") }
}

pub unsafe fn attribute(out: *mut i32, which: u32, device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let sms = guard.config.settings.sm_count;
    match attributes::value(which, gpu as u32, sms) {
        Some(value) => put(out, value),
        None => Code::INVALID_VALUE.fail(format!("no device attribute {which}")),
    }
}

pub unsafe fn total_memory(out: *mut usize, device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    put(out, guard.gpus[gpu].memory as usize)
}

pub unsafe fn capability(major: *mut i32, minor: *mut i32, device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    put(major, 9)?;
    put(minor, 0)
}

/// `CUdevprop`
pub unsafe fn properties(out: *mut [i32; 14], device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    put(
        out,
        [
            1024,
            1024,
            1024,
            64,
            i32::MAX,
            65_535,
            65_535,
            49_152,
            65_536,
            32,
            i32::MAX,
            65_536,
            1_980_000,
            512,
        ],
    )
}

pub unsafe fn uuid(out: *mut [u8; 16], device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    let mut uuid = *b"birdie-emu-H100\0";
    uuid[15] = device as u8;
    put(out, uuid)
}

pub unsafe fn luid(_out: *mut c_char, _mask: *mut u32, _device: i32) -> Outcome {
    Code::NOT_SUPPORTED.fail("LUIDs exist on Windows only")
}

fn bus_id(device: i32) -> String {
    format!("0000:{:02X}:00.0", 0x1b + device)
}

pub unsafe fn pci_bus_id(out: *mut c_char, room: i32, device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    // SAFETY: the caller's promise.
    unsafe { put_text(out, room, &bus_id(device)) }
}

pub unsafe fn by_pci_bus_id(out: *mut i32, name: *const c_char) -> Outcome {
    // SAFETY: the caller's promise.
    let name = unsafe { text(name, "bus id") }?;
    let guard = state::lock()?;
    let found = (0..guard.gpus.len() as i32).find(|&device| {
        let id = bus_id(device);
        id.eq_ignore_ascii_case(name) || id[5..].eq_ignore_ascii_case(name)
    });
    match found {
        Some(device) => put(out, device),
        None => Code::INVALID_DEVICE.fail(format!("no device at {name}")),
    }
}

pub unsafe fn texture_width(out: *mut usize, _format: u32, channels: u32, device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    put(out, 268_435_456 / channels.max(1) as usize)
}

/// Profilers attach to nothing here; the calls are accepted as they are without a profiler.
pub unsafe fn profiler() -> Outcome {
    Ok(())
}

pub unsafe fn affinity(out: *mut i32, _kind: u32, device: i32) -> Outcome {
    state::lock()?.gpu(device)?;
    put(out, 0)
}

/// Graph memory: none is ever reserved.
pub unsafe fn graph_memory_trim(device: i32) -> Outcome {
    state::lock()?.gpu(device).map(drop)
}

/// Private tables of functions, which NVIDIA's runtime asks for by UUID. There are none: the runtime lets a driver prove with a key that it is
/// NVIDIA's, and the emulator does not pretend to be. So programs that use libcudart do not start on it; those that use the driver API do.
pub unsafe fn export_table(out: *mut *const c_void, uuid: *const [u8; 16]) -> Outcome {
    if out.is_null() || uuid.is_null() {
        return Code::INVALID_VALUE.fail("a null pointer");
    }
    put(out, std::ptr::null())?;
    // SAFETY: checked not to be null.
    let uuid = unsafe { *uuid };
    Code::NOT_FOUND.fail(format!(
        "no export table {uuid:02x?}: programs with NVIDIA's runtime are not supported"
    ))
}

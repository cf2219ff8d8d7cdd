//! The linker of the driver: `cuLink*`.
//!
//! A real driver links PTX and machine code to a cubin. Here the result is PTX again: one text, which `cuModuleLoadData` takes.
//! `merge.rs` makes one text of several; machine code and LTO intermediates cannot be linked.

use std::ffi::{c_char, c_void};

use super::error::{Code, Outcome};
use super::module::{ptx_of_bytes, text};
use super::put;
use super::state;

/// A link in progress.
#[derive(Default)]
pub struct Link {
    inputs: Vec<String>,
    /// The result, kept for the caller until the link is destroyed; ends in NUL.
    result: Option<Box<[u8]>>,
}

pub unsafe fn create(
    _count: u32,
    _options: *const u32,
    _values: *mut u64,
    out: *mut u64,
) -> Outcome {
    let mut guard = state::lock()?;
    guard.healthy()?;
    let link = guard.handle();
    guard.links.insert(link, Link::default());
    put(out, link)
}

fn add(link: u64, image: &[u8]) -> Outcome {
    let ptx = ptx_of_bytes(image)?;
    let parsed =
        crate::ptx::parse(&ptx).map_err(|error| Code::INVALID_PTX.because(error.to_string()))?;
    let mut guard = state::lock()?;
    let Some(entry) = guard.links.get_mut(&link) else {
        return Code::INVALID_HANDLE.fail(format!("{link:#x} is no link"));
    };
    drop(parsed);
    entry.inputs.push(ptx);
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn add_data(
    link: u64,
    _kind: u32,
    data: *const c_void,
    bytes: usize,
    _name: *const c_char,
    _count: u32,
    _options: *const u32,
    _values: *mut u64,
) -> Outcome {
    if data.is_null() {
        return Code::INVALID_VALUE.fail("no data");
    }
    // SAFETY: the caller gives `bytes` bytes.
    add(link, unsafe {
        std::slice::from_raw_parts(data.cast(), bytes)
    })
}

pub unsafe fn add_file(
    link: u64,
    _kind: u32,
    path: *const c_char,
    _count: u32,
    _options: *const u32,
    _values: *mut u64,
) -> Outcome {
    // SAFETY: the caller's promise.
    let path = unsafe { text(path, "path") }?;
    let bytes = std::fs::read(path)
        .map_err(|error| Code::FILE_NOT_FOUND.because(format!("{path}: {error}")))?;
    add(link, &bytes)
}

pub unsafe fn complete(link: u64, image: *mut *const c_void, bytes: *mut usize) -> Outcome {
    let mut guard = state::lock()?;
    let Some(entry) = guard.links.get_mut(&link) else {
        return Code::INVALID_HANDLE.fail(format!("{link:#x} is no link"));
    };
    let linked = match entry.inputs.as_slice() {
        [] => return Code::INVALID_IMAGE.fail("nothing was added to the link"),
        [only] => only.clone(),
        several => super::merge::merge(several).map_err(|why| Code::INVALID_PTX.because(why))?,
    };
    let mut result = linked.into_bytes();
    result.push(0);
    let result = entry.result.insert(result.into_boxed_slice());
    let (pointer, size) = (result.as_ptr().cast(), result.len());
    put(image, pointer)?;
    if bytes.is_null() {
        return Ok(());
    }
    put(bytes, size)
}

pub unsafe fn destroy(link: u64) -> Outcome {
    match state::lock()?.links.remove(&link) {
        Some(_) => Ok(()),
        None => Code::INVALID_HANDLE.fail(format!("{link:#x} is no link")),
    }
}

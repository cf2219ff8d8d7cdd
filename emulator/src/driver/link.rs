//! The linker of the driver: `cuLink*`.
//!
//! A real driver links PTX and machine code to a cubin. Here the result is PTX again: one text, which `cuModuleLoadData` takes.
//! `merge.rs` makes one text of several. Inputs are PTX, fatbins, and objects and archives of nvcc whose fatbins hold PTX; machine code and LTO
//! intermediates cannot be linked. The one exception is NVIDIA's device runtime (`libcudadevrt.a`), which exists as
//! machine code only: `device_runtime.ptx` defines what kernels call of it for the barrier of a cooperative grid.

use std::ffi::{c_char, c_void};

use super::error::{Code, Outcome};
use super::merge::limit_registers;
use super::module::{JitOptions, jit_options, ptx_of_bytes, text};
use super::put;
use super::state;
use crate::ptx::fatbin;

/// The functions of the device runtime that are emulated.
const DEVICE_RUNTIME: &str = include_str!("device_runtime.ptx");
/// The object of `libcudadevrt.a`.
const DEVICE_RUNTIME_OBJECT: &str = "cuda_device_runtime.o";
const ARCHIVE: &[u8] = b"!<arch>\n";
const ELF: &[u8] = b"\x7fELF";

/// A link in progress.
pub struct Link {
    inputs: Vec<String>,
    /// Where the caller wants to read why an input is refused, and the limit on registers.
    options: JitOptions,
    /// The result, kept for the caller until the link is destroyed; ends in NUL.
    result: Option<Box<[u8]>>,
}

pub unsafe fn create(count: u32, options: *const u32, values: *mut u64, out: *mut u64) -> Outcome {
    // SAFETY: the caller's promise; the places that options name stay valid until the link is destroyed.
    let options = unsafe { jit_options(count, options, values) }?;
    let mut guard = state::lock()?;
    guard.healthy()?;
    let link = guard.handle();
    put(out, link)?;
    guard.links.insert(
        link,
        Link {
            inputs: Vec::new(),
            options,
            result: None,
        },
    );
    Ok(())
}

/// The members of an archive: names and contents. Symbol tables and lists of long names are left out.
fn members(archive: &[u8]) -> Outcome<Vec<(String, &[u8])>> {
    const HEADER: usize = 60;
    let damaged = || Code::INVALID_IMAGE.because("the archive is damaged");
    let (mut out, mut names): (_, &[u8]) = (Vec::new(), &[]);
    let mut rest = &archive[ARCHIVE.len()..];
    while rest.len() >= HEADER {
        let field = |from: usize, to: usize| std::str::from_utf8(&rest[from..to]).map(str::trim);
        let name = field(0, 16).map_err(|_| damaged())?;
        let size: usize = field(48, 58)
            .ok()
            .and_then(|size| size.parse().ok())
            .ok_or_else(damaged)?;
        let body = rest[HEADER..].get(..size).ok_or_else(damaged)?;
        match name {
            "/" | "/SYM64/" => {}
            "//" => names = body,
            _ => {
                // A long name is `/` and where it stands in the list.
                let long = name.strip_prefix('/').and_then(|at| at.parse().ok());
                let name = match long.and_then(|at: usize| names.get(at..)) {
                    Some(text) => {
                        let end = text.iter().position(|&b| b == b'\n');
                        String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]).into_owned()
                    }
                    None => name.to_owned(),
                };
                out.push((name.trim_end_matches('/').to_owned(), body));
            }
        }
        let next = HEADER + size + size % 2;
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(out)
}

/// The PTX of one input, by what its bytes are.
fn texts_of(image: &[u8]) -> Outcome<Vec<String>> {
    if image.starts_with(ARCHIVE) {
        let mut out = Vec::new();
        for (name, member) in members(image)? {
            if name == DEVICE_RUNTIME_OBJECT {
                out.push(DEVICE_RUNTIME.to_owned());
                continue;
            }
            let texts = fatbin::embedded(member);
            if texts.is_empty() {
                return Code::NO_BINARY_FOR_GPU.fail(format!(
                    "{name} of the archive has no PTX that an sm_90 device runs; machine code is not emulated"
                ));
            }
            out.extend(texts);
        }
        return Ok(out);
    }
    if image.starts_with(ELF) {
        let texts = fatbin::embedded(image);
        if !texts.is_empty() {
            return Ok(texts);
        }
    }
    Ok(vec![ptx_of_bytes(image)?])
}

fn add(link: u64, image: &[u8], options: &JitOptions) -> Outcome {
    let checked = texts_of(image).and_then(|texts| {
        for text in &texts {
            crate::ptx::parse(text)
                .map_err(|error| Code::INVALID_PTX.because(error.to_string()))?;
        }
        Ok(texts)
    });
    let mut guard = state::lock()?;
    let Some(entry) = guard.links.get_mut(&link) else {
        return Code::INVALID_HANDLE.fail(format!("{link:#x} is no link"));
    };
    let texts = checked.inspect_err(|error| {
        entry.options.write(&error.reason);
        options.write(&error.reason);
    })?;
    let limit = options.max_registers.or(entry.options.max_registers);
    entry
        .inputs
        .extend(texts.into_iter().map(|text| match limit {
            Some(limit) => limit_registers(&text, limit),
            None => text,
        }));
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn add_data(
    link: u64,
    _kind: u32,
    data: *const c_void,
    bytes: usize,
    _name: *const c_char,
    count: u32,
    options: *const u32,
    values: *mut u64,
) -> Outcome {
    if data.is_null() {
        return Code::INVALID_VALUE.fail("no data");
    }
    // SAFETY: the caller's promise, and `bytes` bytes of data.
    unsafe {
        let options = jit_options(count, options, values)?;
        let data = std::slice::from_raw_parts(data.cast(), bytes);
        add(link, data, &options)
    }
}

pub unsafe fn add_file(
    link: u64,
    _kind: u32,
    path: *const c_char,
    count: u32,
    options: *const u32,
    values: *mut u64,
) -> Outcome {
    // SAFETY: the caller's promise.
    let (path, options) = unsafe { (text(path, "path")?, jit_options(count, options, values)?) };
    let bytes = std::fs::read(path)
        .map_err(|error| Code::FILE_NOT_FOUND.because(format!("{path}: {error}")))?;
    add(link, &bytes, &options)
}

pub unsafe fn complete(link: u64, image: *mut *const c_void, bytes: *mut usize) -> Outcome {
    let mut guard = state::lock()?;
    let Some(entry) = guard.links.get_mut(&link) else {
        return Code::INVALID_HANDLE.fail(format!("{link:#x} is no link"));
    };
    let linked = match entry.inputs.as_slice() {
        [] => return Code::INVALID_IMAGE.fail("nothing was added to the link"),
        [only] => only.clone(),
        several => super::merge::merge(several).map_err(|why| {
            entry.options.write(&why);
            Code::INVALID_PTX.because(why)
        })?,
    };
    entry.options.write("");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let mut out = format!("{name:<48}{:<10}`\n", body.len()).into_bytes();
        out.extend(body);
        out.resize(out.len().next_multiple_of(2), b'\n');
        out
    }

    #[test]
    fn an_archive_gives_its_members() {
        let archive = [
            ARCHIVE.to_vec(),
            member("/", b"table"),
            member("//", b"a_name_that_is_long.o/\n"),
            member("short.o/", b"one"),
            member("/0", b"two"),
        ]
        .concat();
        let found = members(&archive).unwrap();
        let expected: [(String, &[u8]); 2] = [
            ("short.o".into(), b"one"),
            ("a_name_that_is_long.o".into(), b"two"),
        ];
        assert_eq!(found, expected);
        for end in ARCHIVE.len()..archive.len() {
            // A cut archive is an error or has fewer members; it never panics.
            assert!(members(&archive[..end]).map_or(0, |found| found.len()) <= 2);
        }
    }

    #[test]
    fn the_device_runtime_is_ptx() {
        let archive = [
            ARCHIVE.to_vec(),
            member("//", b"cuda_device_runtime.o/\n"),
            member("/0", b"\x7fELF"),
        ]
        .concat();
        assert_eq!(texts_of(&archive).unwrap(), [DEVICE_RUNTIME]);
        assert!(crate::ptx::parse(DEVICE_RUNTIME).is_ok());
        let other = [ARCHIVE.to_vec(), member("other.o/", b"\x7fELF")].concat();
        assert_eq!(texts_of(&other).unwrap_err().code, Code::NO_BINARY_FOR_GPU);
    }
}

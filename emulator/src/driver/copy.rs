//! Copies and memsets: arguments checked, then put into a stream.
//!
//! What is synchronous to the host and what is not follows the driver's documentation: the plain forms return when the copy is done;
//! the asynchronous forms read pageable host memory before they return, write pageable host memory before they return, and touch
//! pinned memory only when the stream gets there. Memsets are asynchronous in every form, but for pinned host memory.

use std::sync::Arc;

use super::blocks::{Kind, check_host_range};
use super::error::{Code, Outcome};
use super::run;
use super::state::{self, Handle, State};
use super::types::{Memcpy2D, Memcpy3D, memory_type};
use super::work::{Copy, Fill, Work};

/// A structure that a caller gives.
///
/// # Safety
/// `pointer` is null or valid.
pub unsafe fn read<T: std::marker::Copy>(pointer: *const T) -> Outcome<T> {
    if pointer.is_null() {
        return Code::INVALID_VALUE.fail("the parameters are a null pointer");
    }
    // SAFETY: by the contract of this function.
    Ok(unsafe { *pointer })
}

impl State {
    /// Checks one side of a copy: every byte from the first to the last must be there.
    fn check_side(&self, what: &str, address: u64, bytes: u64, device: bool) -> Outcome {
        if bytes == 0 {
            return Ok(());
        }
        match self.kind(address) {
            Kind::Device | Kind::Host => self.check_device_range(what, address, bytes),
            Kind::Pageable if device => self.check_device_range(what, address, bytes),
            Kind::Pageable => check_host_range(what, address, bytes),
        }
    }

    fn check_copy(
        &self,
        copy: &Copy,
        source_on_device: bool,
        destination_on_device: bool,
    ) -> Outcome {
        let span = |pitch: usize, slice: usize| -> Outcome<u64> {
            if copy.width == 0 || copy.height == 0 || copy.depth == 0 {
                return Ok(0);
            }
            let last = (copy.depth as u64 - 1)
                .checked_mul(slice as u64)
                .zip((copy.height as u64 - 1).checked_mul(pitch as u64))
                .and_then(|(slices, rows)| slices.checked_add(rows))
                .and_then(|start| start.checked_add(copy.width as u64));
            last.ok_or_else(|| Code::INVALID_VALUE.because("the extent of the copy overflows"))
        };
        self.check_side(
            "copy source",
            copy.source,
            span(copy.source_pitch, copy.source_slice)?,
            source_on_device,
        )?;
        self.check_side(
            "copy destination",
            copy.destination,
            span(copy.destination_pitch, copy.destination_slice)?,
            destination_on_device,
        )
    }

    fn pageable(&self, address: u64) -> bool {
        matches!(self.kind(address), Kind::Pageable)
    }
}

/// Which sides the caller says to be device memory; elsewhere the pointer tells.
#[derive(Clone, Copy)]
struct Sides {
    source: bool,
    destination: bool,
}

/// Puts a copy into a stream, and waits for it where that is due.
fn submit(mut copy: Copy, sides: Sides, stream: u64, synchronous: bool) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    if copy.width == 0 || copy.height == 0 || copy.depth == 0 {
        return Ok(());
    }
    guard.check_copy(&copy, sides.source, sides.destination)?;
    let capturing = guard.stream(stream)?.capture.is_some();
    if synchronous {
        guard.check_unsafe_call("a synchronous copy")?;
        guard.check_not_capturing(stream, "synchronous copy")?;
    }
    let wait = (synchronous || guard.pageable(copy.destination)) && !capturing;
    if !wait && !capturing && guard.pageable(copy.source) {
        // SAFETY: the source was checked to be mapped.
        unsafe { copy.stage() };
    }
    let id = guard.submit(stream, Work::Copy(Arc::new(copy)))?;
    match id {
        Some(id) if wait => run::finish(guard, context, &[id]).map(drop),
        _ => run::relieve(guard, context),
    }
}

const HOST_TO_DEVICE: Sides = Sides {
    source: false,
    destination: true,
};
const DEVICE_TO_HOST: Sides = Sides {
    source: true,
    destination: false,
};
const DEVICE_TO_DEVICE: Sides = Sides {
    source: true,
    destination: true,
};
const EITHER: Sides = Sides {
    source: false,
    destination: false,
};

pub unsafe fn htod(destination: u64, source: u64, bytes: usize) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        HOST_TO_DEVICE,
        0,
        true,
    )
}

pub unsafe fn dtoh(destination: u64, source: u64, bytes: usize) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        DEVICE_TO_HOST,
        0,
        true,
    )
}

/// A copy between device allocations is not waited for by the host.
pub unsafe fn dtod(destination: u64, source: u64, bytes: usize) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        DEVICE_TO_DEVICE,
        0,
        false,
    )
}

pub unsafe fn unified(destination: u64, source: u64, bytes: usize) -> Outcome {
    let device_only = {
        let guard = state::lock()?;
        let on_device = |address| matches!(guard.kind(address), Kind::Device);
        on_device(destination) && on_device(source)
    };
    submit(
        Copy::linear(source, destination, bytes),
        EITHER,
        0,
        !device_only,
    )
}

pub unsafe fn htod_async(destination: u64, source: u64, bytes: usize, stream: u64) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        HOST_TO_DEVICE,
        stream,
        false,
    )
}

pub unsafe fn dtoh_async(destination: u64, source: u64, bytes: usize, stream: u64) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        DEVICE_TO_HOST,
        stream,
        false,
    )
}

pub unsafe fn dtod_async(destination: u64, source: u64, bytes: usize, stream: u64) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        DEVICE_TO_DEVICE,
        stream,
        false,
    )
}

pub unsafe fn unified_async(destination: u64, source: u64, bytes: usize, stream: u64) -> Outcome {
    submit(
        Copy::linear(source, destination, bytes),
        EITHER,
        stream,
        false,
    )
}

/// Many copies at once: the batch has its place in the stream, its copies have no order among themselves. `CUmemcpyAttributes` begins with the order
/// in which the source is read; locations are hints.
#[allow(clippy::too_many_arguments)]
pub unsafe fn batch_v2(
    destinations: *const u64,
    sources: *const u64,
    sizes: *const usize,
    count: usize,
    attributes: *const [u32; 6],
    starts: *const usize,
    attribute_count: usize,
    stream: u64,
) -> Outcome {
    let untold = std::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe {
        batch(
            destinations,
            sources,
            sizes,
            count,
            attributes,
            starts,
            attribute_count,
            untold,
            stream,
        )
    }
}

/// The first form also tells which copy was refused, `usize::MAX` if it is none of them.
#[allow(clippy::too_many_arguments)]
pub unsafe fn batch(
    destinations: *const u64,
    sources: *const u64,
    sizes: *const usize,
    count: usize,
    attributes: *const [u32; 6],
    starts: *const usize,
    attribute_count: usize,
    failed: *mut usize,
    stream: u64,
) -> Outcome {
    const DURING_CALL: u32 = 2;
    const ANY_TIME: u32 = 3;
    let tell = |index: usize| match failed.is_null() {
        true => Ok(()),
        false => super::put(failed, index),
    };
    tell(usize::MAX)?;
    let lists = [destinations.is_null(), sources.is_null(), sizes.is_null()];
    if count == 0 || lists.contains(&true) || attributes.is_null() || starts.is_null() {
        return Code::INVALID_VALUE.fail(format!("{count} copies, or a list is null"));
    }
    if attribute_count == 0 || attribute_count > count {
        return Code::INVALID_VALUE
            .fail(format!("{attribute_count} attributes for {count} copies"));
    }
    // SAFETY: the caller's lists have so many elements.
    let (destinations, sources, sizes, attributes, starts) = unsafe {
        (
            std::slice::from_raw_parts(destinations, count),
            std::slice::from_raw_parts(sources, count),
            std::slice::from_raw_parts(sizes, count),
            std::slice::from_raw_parts(attributes, attribute_count),
            std::slice::from_raw_parts(starts, attribute_count),
        )
    };
    let ascending = starts.windows(2).all(|pair| pair[0] < pair[1]);
    if starts[0] != 0 || !ascending || starts[attribute_count - 1] >= count {
        return Code::INVALID_VALUE.fail("the attributes do not begin at 0, or not in order");
    }
    if let Some(order) = attributes
        .iter()
        .map(|a| a[0])
        .find(|o| !(1..=3).contains(o))
    {
        return Code::INVALID_VALUE.fail(format!("no source access order {order}"));
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let entry = guard.stream(stream)?;
    let context = entry.context;
    if entry.legacy {
        return Code::INVALID_VALUE.fail("a batch cannot go into the legacy default stream");
    }
    if let Some(capture) = entry.capture {
        guard.invalidate(capture);
        return Code::STREAM_CAPTURE_UNSUPPORTED.fail("a batch of copies cannot be captured");
    }
    let mut copies = Vec::new();
    let mut wait = false;
    for index in 0..count {
        let copy = Copy::linear(sources[index], destinations[index], sizes[index]);
        let checked = match sizes[index] {
            0 => Code::INVALID_VALUE.fail(format!("copy {index} of the batch has 0 bytes")),
            _ => guard.check_copy(&copy, false, false),
        };
        if checked.is_err() {
            tell(index)?;
        }
        checked?;
        wait |= guard.pageable(copy.destination);
        copies.push(copy);
    }
    for (index, copy) in copies.iter_mut().enumerate() {
        let order = attributes[starts.partition_point(|&start| start <= index) - 1][0];
        // The latest time is the one that shows what is missing; a source that is named as short-lived is read now.
        let pageable = order != ANY_TIME && !wait && guard.pageable(copy.source);
        if order == DURING_CALL || pageable {
            // SAFETY: the source was checked to be mapped.
            unsafe { copy.stage() };
        }
    }
    let after = guard.predecessors(stream)?;
    let start = guard.queue.add(context, Work::Nothing, after);
    let parts: Vec<_> = copies
        .into_iter()
        .map(|copy| {
            guard
                .queue
                .add(context, Work::Copy(Arc::new(copy)), [start])
        })
        .collect();
    let end = guard.queue.add(context, Work::Nothing, parts);
    guard.stream_mut(stream)?.last = Some(end);
    if wait {
        return run::finish(guard, context, &[end]).map(drop);
    }
    run::relieve(guard, context)
}

fn check_contexts(contexts: [u64; 2]) -> Outcome {
    let guard = state::lock()?;
    contexts
        .into_iter()
        .try_for_each(|context| guard.context(context).map(drop))
}

/// A copy that follows all that is pending in the contexts, and that what comes later in any of them follows: by waiting for the one and
/// the other.
fn between(contexts: &[u64], copy: impl FnOnce() -> Outcome) -> Outcome {
    finish_contexts(contexts)?;
    copy()?;
    let current = state::lock()?.healthy()?;
    finish_contexts(&[current])
}

/// Waits for all that is pending in the contexts.
fn finish_contexts(contexts: &[u64]) -> Outcome {
    for &context in contexts {
        let mut guard = state::lock()?;
        guard.check_unsafe_call("a copy between contexts")?;
        drop(run::finish_context(guard, context)?);
    }
    Ok(())
}

pub unsafe fn peer(destination: u64, to: u64, source: u64, from: u64, bytes: usize) -> Outcome {
    check_contexts([to, from])?;
    let copy = Copy::linear(source, destination, bytes);
    between(&[to, from], || submit(copy, DEVICE_TO_DEVICE, 0, false))
}

pub unsafe fn peer_async(
    destination: u64,
    to: u64,
    source: u64,
    from: u64,
    bytes: usize,
    stream: u64,
) -> Outcome {
    check_contexts([to, from])?;
    submit(
        Copy::linear(source, destination, bytes),
        DEVICE_TO_DEVICE,
        stream,
        false,
    )
}

/// One side of a 2-D or 3-D copy: the address of its first byte.
fn side(kind: u32, host: u64, device: u64, offset: Option<usize>) -> Outcome<u64> {
    let base = match kind {
        memory_type::HOST => host,
        memory_type::DEVICE | memory_type::UNIFIED => device,
        memory_type::ARRAY => {
            return Code::NOT_SUPPORTED.fail("CUDA arrays (textures) are not emulated");
        }
        other => return Code::INVALID_VALUE.fail(format!("no memory type {other}")),
    };
    offset
        .and_then(|offset| base.checked_add(offset as u64))
        .ok_or_else(|| Code::INVALID_VALUE.because("the origin of the copy overflows"))
}

fn offset(x: usize, y: usize, pitch: usize, z: usize, slice: usize) -> Option<usize> {
    y.checked_mul(pitch)?
        .checked_add(z.checked_mul(slice)?)?
        .checked_add(x)
}

fn sides(source: u32, destination: u32) -> Sides {
    Sides {
        source: source == memory_type::DEVICE,
        destination: destination == memory_type::DEVICE,
    }
}

/// Turns the description of a 3-D copy into a copy, and checks it.
pub fn from_3d(state: &State, raw: &Memcpy3D) -> Outcome<Copy> {
    let source_pitch = if raw.src_pitch == 0 {
        raw.width + raw.src_x
    } else {
        raw.src_pitch
    };
    let destination_pitch = if raw.dst_pitch == 0 {
        raw.width + raw.dst_x
    } else {
        raw.dst_pitch
    };
    let source_height = if raw.src_height == 0 {
        raw.height + raw.src_y
    } else {
        raw.src_height
    };
    let destination_height = if raw.dst_height == 0 {
        raw.height + raw.dst_y
    } else {
        raw.dst_height
    };
    for (what, pitch) in [("source", source_pitch), ("destination", destination_pitch)] {
        if pitch < raw.width && raw.height * raw.depth > 1 {
            return Code::INVALID_VALUE.fail(format!(
                "{what} pitch {pitch} is less than the width {}",
                raw.width
            ));
        }
    }
    let slices = source_pitch
        .checked_mul(source_height)
        .zip(destination_pitch.checked_mul(destination_height));
    let Some((source_slice, destination_slice)) = slices else {
        return Code::INVALID_VALUE.fail("the extent of the copy overflows");
    };
    let copy = Copy {
        source: side(
            raw.src_type,
            raw.src_host,
            raw.src_device,
            offset(raw.src_x, raw.src_y, source_pitch, raw.src_z, source_slice),
        )?,
        destination: side(
            raw.dst_type,
            raw.dst_host,
            raw.dst_device,
            offset(
                raw.dst_x,
                raw.dst_y,
                destination_pitch,
                raw.dst_z,
                destination_slice,
            ),
        )?,
        width: raw.width,
        height: raw.height,
        depth: raw.depth,
        source_pitch,
        source_slice,
        destination_pitch,
        destination_slice,
        staged: None,
    };
    let Sides {
        source,
        destination,
    } = sides(raw.src_type, raw.dst_type);
    state.check_copy(&copy, source, destination)?;
    Ok(copy)
}

/// The description of a captured copy.
pub fn to_3d(state: &State, copy: &Copy) -> Memcpy3D {
    let kind = |address| match state.kind(address) {
        Kind::Device => memory_type::DEVICE,
        _ => memory_type::HOST,
    };
    let height = |slice: usize, pitch: usize| slice.checked_div(pitch).unwrap_or(0);
    Memcpy3D {
        src_x: 0,
        src_y: 0,
        src_z: 0,
        src_lod: 0,
        src_type: kind(copy.source),
        src_host: copy.source,
        src_device: copy.source,
        src_array: 0,
        src_context: 0,
        src_pitch: copy.source_pitch,
        src_height: height(copy.source_slice, copy.source_pitch),
        dst_x: 0,
        dst_y: 0,
        dst_z: 0,
        dst_lod: 0,
        dst_type: kind(copy.destination),
        dst_host: copy.destination,
        dst_device: copy.destination,
        dst_array: 0,
        dst_context: 0,
        dst_pitch: copy.destination_pitch,
        dst_height: height(copy.destination_slice, copy.destination_pitch),
        width: copy.width,
        height: copy.height,
        depth: copy.depth,
    }
}

fn widen(raw: &Memcpy2D) -> Memcpy3D {
    Memcpy3D {
        src_x: raw.src_x,
        src_y: raw.src_y,
        src_z: 0,
        src_lod: 0,
        src_type: raw.src_type,
        src_host: raw.src_host,
        src_device: raw.src_device,
        src_array: raw.src_array,
        src_context: 0,
        src_pitch: raw.src_pitch,
        src_height: 0,
        dst_x: raw.dst_x,
        dst_y: raw.dst_y,
        dst_z: 0,
        dst_lod: 0,
        dst_type: raw.dst_type,
        dst_host: raw.dst_host,
        dst_device: raw.dst_device,
        dst_array: raw.dst_array,
        dst_context: 0,
        dst_pitch: raw.dst_pitch,
        dst_height: 0,
        width: raw.width,
        height: raw.height,
        depth: 1,
    }
}

fn strided(raw: &Memcpy3D, stream: u64, synchronous: bool) -> Outcome {
    let (copy, host) = {
        let guard = state::lock()?;
        if raw.width == 0 || raw.height == 0 || raw.depth == 0 {
            return Ok(());
        }
        let copy = from_3d(&guard, raw)?;
        let host = !matches!(guard.kind(copy.source), Kind::Device)
            || !matches!(guard.kind(copy.destination), Kind::Device);
        (copy, host)
    };
    submit(
        copy,
        sides(raw.src_type, raw.dst_type),
        stream,
        synchronous && host,
    )
}

pub unsafe fn copy_2d(raw: *const Memcpy2D) -> Outcome {
    // SAFETY: the caller's promise.
    strided(&widen(&unsafe { read(raw) }?), 0, true)
}

pub unsafe fn copy_2d_async(raw: *const Memcpy2D, stream: u64) -> Outcome {
    // SAFETY: the caller's promise.
    strided(&widen(&unsafe { read(raw) }?), stream, false)
}

pub unsafe fn copy_3d_peer(raw: *const Memcpy3D) -> Outcome {
    // SAFETY: the caller's promise.
    let copy = unsafe { read(raw) }?;
    let sides = [
        (copy.dst_type, copy.dst_context),
        (copy.src_type, copy.src_context),
    ];
    let devices = sides.iter().filter(|side| side.0 == memory_type::DEVICE);
    let contexts: Vec<u64> = devices.map(|side| side.1).collect();
    between(&contexts, || strided(&copy, 0, true))
}

pub unsafe fn copy_3d(raw: *const Memcpy3D) -> Outcome {
    // SAFETY: the caller's promise.
    strided(&unsafe { read(raw) }?, 0, true)
}

pub unsafe fn copy_3d_async(raw: *const Memcpy3D, stream: u64) -> Outcome {
    // SAFETY: the caller's promise.
    strided(&unsafe { read(raw) }?, stream, false)
}

/// Checks a memset.
pub fn checked_fill(
    state: &State,
    address: u64,
    pitch: usize,
    value: u32,
    element: usize,
    width: usize,
    height: usize,
) -> Outcome<Fill> {
    if ![1, 2, 4].contains(&element) {
        return Code::INVALID_VALUE.fail(format!("memset: elements of {element} bytes"));
    }
    if !address.is_multiple_of(element as u64) || (height > 1 && !pitch.is_multiple_of(element)) {
        return Code::INVALID_VALUE.fail(format!(
            "memset: {address:#x} with pitch {pitch} is not aligned to {element}"
        ));
    }
    let row = width.checked_mul(element);
    let span = row.and_then(|row| {
        height
            .saturating_sub(1)
            .checked_mul(pitch)?
            .checked_add(row)
    });
    let (Some(row), Some(span)) = (row, span) else {
        return Code::INVALID_VALUE.fail("memset: the extent overflows");
    };
    if height > 1 && pitch < row {
        return Code::INVALID_VALUE.fail(format!(
            "memset: pitch {pitch} is less than a row of {row} bytes"
        ));
    }
    if row > 0 && height > 0 {
        state.check_device_range("memset", address, span as u64)?;
    }
    Ok(Fill {
        address,
        pitch,
        value,
        element,
        width,
        height,
    })
}

fn fill(
    address: u64,
    pitch: usize,
    value: u32,
    element: usize,
    width: usize,
    height: usize,
    stream: u64,
    synchronous: bool,
) -> Outcome {
    let mut guard = state::lock()?;
    let stream: Handle = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    let fill = checked_fill(&guard, address, pitch, value, element, width, height)?;
    if width == 0 || height == 0 {
        return Ok(());
    }
    // Pinned host memory is set before the plain forms return; device memory is not waited for.
    let wait = synchronous && matches!(guard.kind(address), Kind::Host);
    match guard.submit(stream, Work::Fill(fill))? {
        Some(id) if wait => run::finish(guard, context, &[id]).map(drop),
        _ => run::relieve(guard, context),
    }
}

pub unsafe fn set_d8(address: u64, value: u8, count: usize) -> Outcome {
    fill(address, count, value.into(), 1, count, 1, 0, true)
}

pub unsafe fn set_d16(address: u64, value: u16, count: usize) -> Outcome {
    fill(address, 0, value.into(), 2, count, 1, 0, true)
}

pub unsafe fn set_d32(address: u64, value: u32, count: usize) -> Outcome {
    fill(address, 0, value, 4, count, 1, 0, true)
}

pub unsafe fn set_d8_async(address: u64, value: u8, count: usize, stream: u64) -> Outcome {
    fill(address, 0, value.into(), 1, count, 1, stream, false)
}

pub unsafe fn set_d16_async(address: u64, value: u16, count: usize, stream: u64) -> Outcome {
    fill(address, 0, value.into(), 2, count, 1, stream, false)
}

pub unsafe fn set_d32_async(address: u64, value: u32, count: usize, stream: u64) -> Outcome {
    fill(address, 0, value, 4, count, 1, stream, false)
}

pub unsafe fn set_2d_d8(
    address: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
) -> Outcome {
    fill(address, pitch, value.into(), 1, width, height, 0, true)
}

pub unsafe fn set_2d_d16(
    address: u64,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
) -> Outcome {
    fill(address, pitch, value.into(), 2, width, height, 0, true)
}

pub unsafe fn set_2d_d32(
    address: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
) -> Outcome {
    fill(address, pitch, value, 4, width, height, 0, true)
}

pub unsafe fn set_2d_d8_async(
    address: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    stream: u64,
) -> Outcome {
    fill(
        address,
        pitch,
        value.into(),
        1,
        width,
        height,
        stream,
        false,
    )
}

pub unsafe fn set_2d_d16_async(
    address: u64,
    pitch: usize,
    value: u16,
    width: usize,
    height: usize,
    stream: u64,
) -> Outcome {
    fill(
        address,
        pitch,
        value.into(),
        2,
        width,
        height,
        stream,
        false,
    )
}

pub unsafe fn set_2d_d32_async(
    address: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    stream: u64,
) -> Outcome {
    fill(address, pitch, value, 4, width, height, stream, false)
}

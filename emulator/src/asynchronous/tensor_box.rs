//! The box of a tensor map: which bytes of the tensor go to which bytes of shared memory.
//!
//! In shared memory a box is its rows (dimension 0) one after the other without gaps, outer dimensions slower. A swizzle
//! then permutes 16-byte chunks by *absolute shared address*: bits 4.. of the address are XORed with bits 7.., one bit
//! of them for 32 B, two for 64 B, three for 128 B. So the pattern repeats every 256, 512 or 1024 bytes of the address
//! space, not of the box.
//!
//! A box of an im2col map is a column of pixels: its rows are the channels of one pixel after the other (PTX ISA, "im2col mode"):
//!
//! * dimension 0 is C, the last is N, those between are W, H, D: W is dimension 1. Corners, offsets and steps stand in this order too;
//!   the ISA names the spaces DHW, and its examples write coordinates from N to C. CUTLASS, which runs on devices, hands the driver
//!   corners as W, H, D, the instruction coordinates as c, w, h, d, n and offsets as w, h, d.
//! * the coordinates are where the filter's corner stands: it walks from the lower corner to size - 1 + upper corner of each dimension,
//!   in steps of the traversal stride, W fastest, then H and D, and goes on in the next image, for as many pixels as the map says,
//!   whatever the steps are. The coordinates have to lie within this bounding box, which is checked.
//! * the element that is read is the position plus the offsets (which are below 2^16, 2^8 and 2^5 in one, two and three dimensions);
//!   what is outside of the tensor, which includes all pixels after the last image, is filled.
//!
//! A row is partly or wholly outside of the tensor where a coordinate is negative or beyond its dimension. A load fills
//! such elements (zero or NaN), a store leaves them out.

use crate::tensor_map::{
    ElementType, Im2col, Interleave, MAX_RANK, OOB_NAN, OobFill, Swizzle, TensorMap,
};

/// Coordinates of the first element, innermost first.
pub(super) type Coordinates = [i32; MAX_RANK];

/// Address of a byte of a box after the swizzle.
#[inline(always)]
pub(super) fn swizzle(address: u32, mode: Swizzle) -> u32 {
    address ^ (address >> 3 & mask_of(mode))
}

#[inline(always)]
fn mask_of(mode: Swizzle) -> u32 {
    match mode {
        Swizzle::None => 0,
        Swizzle::B32 => 0x10,
        Swizzle::B64 => 0x30,
        Swizzle::B128 => 0x70,
    }
}

/// One row of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BoxRow {
    /// Offset of the row in the unswizzled box.
    pub offset: u32,
    /// Device address of the first element that is inside of the tensor.
    pub address: u64,
    /// Bytes of the row in front of it, and bytes inside.
    pub skip: u32,
    pub bytes: u32,
}

/// Bytes of one row.
pub(super) fn row_bytes(map: &TensorMap) -> u32 {
    map.copied(0) * map.element_type.bytes() as u32
}

/// Why this map cannot be used with these operands.
pub(super) fn check(map: &TensorMap, rank: usize, im2col: bool) -> Result<(), String> {
    if map.im2col.is_some() != im2col {
        let name = |im2col| if im2col { "an im2col" } else { "a tiled" };
        return Err(format!(
            "{} copy with {} tensor map",
            name(im2col),
            name(map.im2col.is_some())
        ));
    }
    if map.rank != rank {
        return Err(format!(
            "{rank} coordinates for a tensor map of rank {}",
            map.rank
        ));
    }
    if map.interleave != Interleave::None {
        return Err("interleaved tensor maps are not executed".to_owned());
    }
    Ok(())
}

/// Calls `f` for every row of the box at `start`, in the order of shared memory; rows wholly outside have 0 bytes.
#[inline]
pub(super) fn rows(
    map: &TensorMap,
    start: &Coordinates,
    mut f: impl FnMut(BoxRow) -> Result<(), crate::device::Fault>,
) -> Result<(), crate::device::Fault> {
    let element = map.element_type.bytes();
    let row = row_bytes(map);
    let first = i64::from(start[0]);
    let from = first.clamp(0, map.dims[0] as i64);
    let to = (first + i64::from(map.copied(0))).clamp(0, map.dims[0] as i64);
    let (skip, bytes) = if to > from {
        (
            ((from - first) as u64 * element) as u32,
            ((to - from) as u64 * element) as u32,
        )
    } else {
        (0, 0)
    };
    let inner = map.global_address.wrapping_add(from as u64 * element);
    if let Some(im2col) = &map.im2col {
        return pixels(map, im2col, start, (inner, skip, bytes), f);
    }
    let mut offset = 0;
    let mut index = [0u32; MAX_RANK];
    loop {
        let mut address = inner;
        let mut inside = bytes > 0;
        for d in 1..map.rank {
            let c = i64::from(start[d]) + i64::from(index[d] * map.effective_element_stride(d));
            inside &= c >= 0 && (c as u64) < map.dims[d];
            address = address.wrapping_add((c as u64).wrapping_mul(map.strides[d]));
        }
        f(BoxRow {
            offset,
            address: if inside { address } else { 0 },
            skip: if inside { skip } else { 0 },
            bytes: if inside { bytes } else { 0 },
        })?;
        offset += row;
        let mut d = 1;
        loop {
            if d >= map.rank {
                return Ok(());
            }
            index[d] += 1;
            if index[d] < map.copied(d) {
                break;
            }
            index[d] = 0;
            d += 1;
        }
    }
}

/// The rows of an im2col box: `inner`, `skip` and `bytes` are those of a pixel that is inside of its image.
fn pixels(
    map: &TensorMap,
    im2col: &Im2col,
    start: &Coordinates,
    (inner, skip, bytes): (u64, u32, u32),
    mut f: impl FnMut(BoxRow) -> Result<(), crate::device::Fault>,
) -> Result<(), crate::device::Fault> {
    let images = map.rank - 2;
    let mut at = start.map(i64::from);
    for pixel in 0..im2col.pixels {
        let mut address = inner;
        let mut inside = bytes > 0;
        for d in 1..map.rank {
            let offset = im2col.offsets.get(d - 1).filter(|_| d <= images);
            let c = at[d] + offset.map_or(0, |o| i64::from(*o));
            inside &= c >= 0 && (c as u64) < map.dims[d];
            address = address.wrapping_add((c as u64).wrapping_mul(map.strides[d]));
        }
        f(BoxRow {
            offset: pixel * row_bytes(map),
            address: if inside { address } else { 0 },
            skip: if inside { skip } else { 0 },
            bytes: if inside { bytes } else { 0 },
        })?;
        // To the next pixel of the bounding box, or of the next image's.
        let mut d = 1;
        while d <= images {
            at[d] += i64::from(map.effective_element_stride(d));
            if at[d] < map.dims[d] as i64 + i64::from(im2col.upper[d - 1]) {
                break;
            }
            at[d] = i64::from(im2col.lower[d - 1]);
            d += 1;
        }
        if d > images {
            at[d] += 1;
        }
    }
    Ok(())
}

/// What the ISA forbids about the place of an im2col box: a corner of the filter outside of the bounding box, offsets that do not fit.
pub(super) fn misplaced(map: &TensorMap, start: &Coordinates) -> Option<String> {
    let im2col = map.im2col.as_ref()?;
    let images = map.rank - 2;
    let most = [u16::MAX, 0xff, 0x1f][images - 1];
    (1..=images).find_map(|d| {
        let (low, upper) = (im2col.lower[d - 1], im2col.upper[d - 1]);
        let high = map.dims[d] as i64 - 1 + i64::from(upper);
        let (at, offset) = (start[d], im2col.offsets[d - 1]);
        if !(i64::from(low)..=high).contains(&i64::from(at)) {
            Some(format!(
                "coordinate {d} of an im2col copy is {at}; the bounding box has {low}..={high} there"
            ))
        } else if offset > most {
            Some(format!(
                "offset {offset} of an im2col copy of rank {} is not 0..={most}",
                map.rank
            ))
        } else {
            None
        }
    })
}

/// Lowest address and end of the bytes of the box that are inside of the tensor; `None` if it is wholly outside.
pub(super) fn extent(map: &TensorMap, start: &Coordinates) -> Option<(u64, u64)> {
    let element = map.element_type.bytes();
    if map.im2col.is_some() {
        let mut whole: Option<(u64, u64)> = None;
        // Never fails: the closure does not.
        let _ = rows(map, start, |r| {
            if r.bytes > 0 {
                let (low, high) = whole.unwrap_or((u64::MAX, 0));
                let end = r.address + u64::from(r.bytes);
                whole = Some((low.min(r.address), high.max(end)));
            }
            Ok(())
        });
        return whole;
    }
    let (mut low, mut high) = (map.global_address, map.global_address);
    for (d, &first) in start.iter().enumerate().take(map.rank) {
        let step = i64::from(map.effective_element_stride(d));
        let first = i64::from(first);
        let count = i64::from(map.copied(d));
        // The first and last of first, first + step, … that are in 0..dim.
        let skipped = if first < 0 {
            (-first + step - 1) / step
        } else {
            0
        };
        let dim = map.dims[d] as i64;
        let fitting = if first >= dim {
            0
        } else {
            (dim - first + step - 1) / step
        };
        let last = fitting.min(count) - 1;
        if last < skipped {
            return None;
        }
        low = low.wrapping_add((first + skipped * step) as u64 * map.strides[d]);
        high = high.wrapping_add((first + last * step) as u64 * map.strides[d]);
    }
    Some((low, high.wrapping_add(element)))
}

/// Bits of the element that a load writes outside of the tensor, as a repeated pattern of 8 bytes. ISA: a special NaN, which `fma.oob`
/// knows.
pub(super) fn fill_pattern(map: &TensorMap) -> [u8; 8] {
    if map.oob_fill == OobFill::Zero {
        return [0; 8];
    }
    let [low, high] = OOB_NAN.to_le_bytes();
    std::array::from_fn(|i| if i % 2 == 0 { low } else { high })
}

/// Does a load change elements on their way (flush subnormals, round to tf32)?
pub(super) fn converts(element: ElementType) -> bool {
    matches!(
        element,
        ElementType::F32Ftz | ElementType::Tf32 | ElementType::Tf32Ftz
    )
}

/// Applies the conversion of a load to a row. NOTE: to tf32 it rounds to nearest even; the mode is not documented.
pub(super) fn convert(element: ElementType, row: &mut [u8]) {
    let flush = matches!(element, ElementType::F32Ftz | ElementType::Tf32Ftz);
    let round = matches!(element, ElementType::Tf32 | ElementType::Tf32Ftz);
    if !flush && !round {
        return;
    }
    for e in row.chunks_exact_mut(4) {
        let mut b = u32::from_le_bytes([e[0], e[1], e[2], e[3]]);
        if flush && b & 0x7f80_0000 == 0 {
            b &= 0x8000_0000;
        }
        if round && b & 0x7f80_0000 != 0x7f80_0000 {
            b = (b + 0xfff + (b >> 13 & 1)) & !0x1fff;
        }
        e.copy_from_slice(&b.to_le_bytes());
    }
}

/// Copies an unswizzled row to its place. `base` points to shared address `origin`; the row starts at `address`.
///
/// # Safety
/// `row.len()` is a multiple of 16, `address` of 16, and the swizzled span of the row lies in the memory at `base`.
#[inline(always)]
pub(super) unsafe fn put_row(
    base: *mut u8,
    origin: u32,
    address: u32,
    mode: Swizzle,
    row: *const u8,
    bytes: u32,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        if mode == Swizzle::None {
            std::ptr::copy_nonoverlapping(
                row,
                base.add((address - origin) as usize),
                bytes as usize,
            );
            return;
        }
        let mut at = 0;
        while at < bytes {
            let to = swizzle(address + at, mode) - origin;
            std::ptr::copy_nonoverlapping(row.add(at as usize), base.add(to as usize), 16);
            at += 16;
        }
    }
}

/// The reverse of [`put_row`].
///
/// # Safety
/// As for [`put_row`].
#[inline(always)]
pub(super) unsafe fn get_row(
    base: *const u8,
    origin: u32,
    address: u32,
    mode: Swizzle,
    row: *mut u8,
    bytes: u32,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        if mode == Swizzle::None {
            std::ptr::copy_nonoverlapping(
                base.add((address - origin) as usize),
                row,
                bytes as usize,
            );
            return;
        }
        let mut at = 0;
        while at < bytes {
            let from = swizzle(address + at, mode) - origin;
            std::ptr::copy_nonoverlapping(base.add(from as usize), row.add(at as usize), 16);
            at += 16;
        }
    }
}

/// Bytes of shared memory behind `address` that a box of `bytes` bytes may touch: a swizzle moves chunks within whole
/// spans of 32, 64 or 128 bytes.
pub(super) fn footprint(address: u32, bytes: u32, mode: Swizzle) -> u32 {
    match mode.span_bytes() {
        None => bytes,
        Some(span) => (address + bytes).next_multiple_of(span as u32) - address,
    }
}

/// Alignment of the shared address of a tensor copy. ISA: cp.async.bulk.tensor.
pub(super) const SHARED_ALIGN: u32 = 128;

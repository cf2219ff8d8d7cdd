//! Structured sparsity of A in `mma.sp` and `wgmma.mma_async.sp`: which elements of a row a compressed operand holds.
//!
//! The operand has half of the row's elements; the metadata say where along K each of them stands (PTX ISA, "Warp-level matrix
//! instructions: mma.sp", "Asynchronous wgmma.sp"):
//!
//! | elements | sparsity | metadata of a chunk (4 bits) |
//! |---|---|---|
//! | 16 and 8 bits | 2 of 4 | two indices of 2 bits, that of the first stored element in the low bits |
//! | 32 bits (tf32) | 1 of 2 | 0b0100: the first, 0b1110: the second |
//! | 4 bits | 2 pairs of 4 | two indices of pairs |
//!
//! Who of the four lanes that hold rows g and g + 8 contributes (g = lane / 4), by the bits that a row needs:
//!
//! | bits of a row | lanes | |
//! |---|---|---|
//! | 16 | the one that the selector (0 to 3) names | low half: row g, high half: row g + 8 |
//! | 32, 16- and 32-bit elements | the pair that the selector (0 or 1) names | the first half of K in the pair's first lane, each as above |
//! | 32, 8- and 4-bit elements | the pair that the selector names | row g in the pair's first lane, row g + 8 in the second |
//! | 64 | all; the selector is 0 | as above, the first half of K in lanes 0 and 1 |
//!
//! Elements of B that no element of A meets take no part: an infinity there leaves no trace. Two equal indices in a chunk, which
//! the ISA does not define, use the element of B twice.

use super::descriptor::Tile;
use super::format::Format;
use super::kernel::Accumulators;
use super::panel::RawA;
use super::wgmma::{Mma, Output};

/// Bits of metadata that a row of `k` elements (before compression) needs.
fn row_bits(format: Format, k: usize) -> usize {
    match format.bits() {
        32 => 2 * k,
        4 => k / 2,
        _ => k,
    }
}

/// Sparsity selectors that exist.
pub(super) fn selectors(format: Format, k: usize) -> i64 {
    match row_bits(format, k) {
        16 => 4,
        32 => 2,
        _ => 1,
    }
}

/// The metadata of rows 0 to 15 of a warp, out of the lanes' registers.
pub(super) fn rows(format: Format, k: usize, selector: usize, lanes: &[u32; 32]) -> [u64; 16] {
    let mut out = [0; 16];
    for g in 0..8 {
        let v = |i: usize| u64::from(lanes[4 * g + i]);
        let (low, high) = (|v: u64| v & 0xffff, |v: u64| v >> 16);
        (out[g], out[g + 8]) = match row_bits(format, k) {
            16 => (low(v(selector)), high(v(selector))),
            32 if format.bits() >= 16 => {
                let (a, b) = (v(2 * selector), v(2 * selector + 1));
                (low(a) | low(b) << 16, high(a) | high(b) << 16)
            }
            32 => (v(2 * selector), v(2 * selector + 1)),
            _ => (v(0) | v(2) << 32, v(1) | v(3) << 32),
        };
    }
    out
}

/// Which of the four lanes hold metadata of row g, or of row g + 8 (`upper`), one bit each.
pub(super) fn contributors(format: Format, k: usize, selector: usize, upper: bool) -> u32 {
    match row_bits(format, k) {
        16 => 1 << selector,
        32 if format.bits() >= 16 => 0b11 << (2 * selector),
        32 => 1 << (2 * selector + usize::from(upper)),
        _ => 0b101 << u32::from(upper),
    }
}

/// Places along K that the metadata of any row of a warpgroup name, one bit each.
pub(super) fn named(format: Format, k: usize, selector: usize, metadata: &[[u32; 32]; 4]) -> u64 {
    let of = |row: u64| (0..k / 2).fold(0, |v, i| v | 1 << position(format, row, i));
    let warps = metadata.iter();
    warps
        .flat_map(|lanes| rows(format, k, selector, lanes))
        .fold(0, |v, row| v | of(row))
}

/// Where along K element `i` of a compressed row stands.
#[inline(always)]
pub(super) fn position(format: Format, row: u64, i: usize) -> usize {
    match format.bits() {
        32 => 2 * i + (row >> (4 * i) & 3) as usize / 2,
        4 => 8 * (i / 4) + 2 * (row >> (2 * (i / 2)) & 3) as usize + i % 2,
        _ => 4 * (i / 2) + (row >> (2 * i) & 3) as usize,
    }
}

/// The 64 bytes along K of a column of B.
fn column_bytes(tile: &Tile, shared: &[u8], column: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut copy = |to: u32, n: usize, address: u32| {
        let from = (address - crate::exec::SHARED_BASE) as usize;
        bytes[to as usize..to as usize + n].copy_from_slice(&shared[from..from + n]);
    };
    if tile.mn_major {
        for k in 0..32 {
            copy(2 * k, 2, tile.mn_piece(column / 8, k) + column % 8 * 2);
        }
    } else {
        for piece in 0..4 {
            copy(16 * piece, 16, tile.k_piece(column, piece));
        }
    }
    bytes
}

/// D of a wgmma whose A is compressed.
///
/// # Safety
/// `d` names rows of the warps' register files, and `b` was found inside `shared`.
pub(super) unsafe fn multiply(
    mma: &Mma,
    a: &RawA,
    (b, shared): (&Tile, &[u8]),
    metadata: &[[u32; 32]; 4],
    d: Accumulators,
    keep: bool,
) {
    let selector = mma.sparse.unwrap_or(0);
    let columns: Vec<[u8; 64]> = (0..mma.n)
        .map(|c| column_bytes(b, shared, c as u32))
        .collect();
    // Row by row; B as k rows of n columns, so that the inner loops run over columns.
    let integer = mma.d == Output::S32;
    let sign = |negate: bool| if negate { -1.0f32 } else { 1.0 };
    let mut floats = vec![0f32; if integer { 0 } else { mma.depth * mma.n }];
    let mut integers = vec![0i32; if integer { mma.depth * mma.n } else { 0 }];
    for k in 0..mma.depth {
        for (c, bytes) in columns.iter().enumerate() {
            if integer {
                integers[k * mma.n + c] = mma.b.integer(bytes, k);
            } else {
                floats[k * mma.n + c] = sign(mma.negate_b) * mma.b.float(bytes, k);
            }
        }
    }
    let mut float_sums = vec![0f32; mma.n];
    let mut integer_sums = vec![0i64; mma.n];
    for row in 0..64 {
        let (warp, inside) = (row / 16, row % 16);
        let place = rows(mma.a, mma.depth, selector, &metadata[warp])[inside];
        // SAFETY: the caller's promise. Plane p of lane l: row l / 4 (+ 8), column 8 (p / 4) + 2 (l % 4) + p % 2.
        let element = |column: usize| unsafe {
            let plane = column / 8 * 4 + inside / 8 * 2 + column % 2;
            let lane = inside % 8 * 4 + column % 8 / 2;
            &mut (*d.regs[warp].add(d.rows[plane] as usize)).0[lane] as *mut u32
        };
        for c in 0..mma.n {
            // SAFETY: just found.
            let old = if keep { unsafe { *element(c) } } else { 0 };
            float_sums[c] = f32::from_bits(old);
            integer_sums[c] = i64::from(old as i32);
        }
        let bytes = a.k_row(row);
        for i in 0..mma.depth / 2 {
            let k = position(mma.a, place, i) * mma.n;
            if integer {
                let v = i64::from(mma.a.integer(&bytes, i));
                let b = &integers[k..k + mma.n];
                (integer_sums.iter_mut().zip(b)).for_each(|(s, b)| *s += v * i64::from(*b));
            } else {
                let v = sign(mma.negate_a) * mma.a.float(&bytes, i);
                let b = &floats[k..k + mma.n];
                (float_sums.iter_mut().zip(b)).for_each(|(s, b)| *s += v * b);
            }
        }
        for c in 0..mma.n {
            let v = match (integer, mma.saturate) {
                (false, _) => float_sums[c].to_bits(),
                (true, false) => integer_sums[c] as u32,
                (true, true) => integer_sums[c].clamp(i32::MIN.into(), i32::MAX.into()) as u32,
            };
            // SAFETY: just found.
            unsafe { *element(c) = v };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_a_row() {
        // Chunks of 4: elements 0 and 3, then 1 and 2.
        let row = 0b10_01_11_00;
        let at: Vec<_> = (0..4).map(|i| position(Format::Bf16, row, i)).collect();
        assert_eq!(at, [0, 3, 5, 6]);
        let at: Vec<_> = (0..3)
            .map(|i| position(Format::Tf32, 0b1110_0100_1110, i))
            .collect();
        assert_eq!(at, [1, 2, 5]);
        let at: Vec<_> = (0..8).map(|i| position(Format::S4, row, i)).collect();
        assert_eq!(at, [0, 1, 6, 7, 10, 11, 12, 13]);
    }

    #[test]
    fn lanes_that_contribute() {
        let lanes: [u32; 32] = std::array::from_fn(|l| 0x1000_0000 * (l as u32 % 4 + 1) + l as u32);
        let r = rows(Format::F16, 16, 2, &lanes);
        assert_eq!((r[3], r[11]), (14, 0x3000));
        let r = rows(Format::Tf32, 16, 1, &lanes);
        assert_eq!((r[0], r[8]), (2 | 3 << 16, 0x3000 | 0x4000 << 16));
        let r = rows(Format::U8, 32, 1, &lanes);
        assert_eq!((r[1], r[9]), (0x3000_0006, 0x4000_0007));
        let r = rows(Format::E4m3, 64, 0, &lanes);
        assert_eq!((r[0], r[8]), (0x3000_0002_1000_0000, 0x4000_0003_2000_0001));
    }
}

//! Twin of `cuda/clip_search.cu`: the clip percentile of a matrix, its codes, packed.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Work, flat_grid};

/// Operands of [`Kernels::clip_search`].
#[derive(Clone, Copy, Debug)]
pub struct ClipSearch {
    /// f32 `[rows, columns]`
    pub weight: DevPtr,
    pub rows: u64,
    pub columns: u64,
    /// 5 or 6.
    pub bits: u8,
    /// f16 `[candidates, rows]`
    pub scales: DevPtr,
    /// f64 `[candidates, rows]`: scratch.
    pub row_errors: DevPtr,
    /// f64 `[candidates]`: mean squared error of each percentile.
    pub errors: DevPtr,
    /// i32: index of the winner, or -1 for a weight that is not finite; then nothing is packed.
    pub chosen: DevPtr,
    /// u32 `[packed_words]`
    pub packed: DevPtr,
}

/// Percentiles that are tried.
pub fn candidates(bits: u8) -> u64 {
    if bits == 5 { 4 } else { 5 }
}

/// 32-bit words that `count` codes take.
pub fn packed_words(count: u64, bits: u8) -> u64 {
    (count * u64::from(bits)).div_ceil(32)
}

impl Kernels {
    /// Quantizes a matrix: the same bits as [`crate::quantize::clip_search::search`] and [`crate::quantize::packing::pack`].
    pub fn clip_search(&self, stream: &Stream, c: &ClipSearch) -> Result<Work> {
        let checks = Checks("clip_search");
        checks.limit(matches!(c.bits, 5 | 6), || format!("bits = {}", c.bits))?;
        checks.limit(
            c.rows > 0 && c.columns > 0 && c.rows * c.columns <= 1 << 31,
            || {
                format!(
                    "[{}, {}] is empty or has more than 2^31 weights",
                    c.rows, c.columns
                )
            },
        )?;
        let n = c.rows * c.columns;
        let of_rows = candidates(c.bits) * c.rows;
        let words = packed_words(n, c.bits);
        checks.list("weight", c.weight, 4, &[c.rows, c.columns])?;
        checks.list("scales", c.scales, 2, &[of_rows])?;
        checks.list("row_errors", c.row_errors, 8, &[of_rows])?;
        checks.list("errors", c.errors, 8, &[candidates(c.bits)])?;
        checks.list("chosen", c.chosen, 4, &[1])?;
        checks.list("packed", c.packed, 4, &[words])?;
        let (rows, columns) = (
            checks.int("rows", c.rows)?,
            checks.int("columns", c.columns)?,
        );
        let bits = c.bits;
        self.launch(
            stream,
            &format!("clip_search_rows_int{bits}"),
            [c.rows.div_ceil(8) as u32, 1, 1],
            256,
            0,
            &[&c.weight, &c.scales, &c.row_errors, &rows, &columns],
        )?;
        self.launch(
            stream,
            &format!("clip_search_choose_int{bits}"),
            [1, 1, 1],
            32 * candidates(bits) as u32,
            0,
            &[&c.row_errors, &c.errors, &c.chosen, &rows, &columns],
        )?;
        self.launch(
            stream,
            &format!("clip_search_pack_int{bits}"),
            [flat_grid(words * 4), 1, 1],
            256,
            0,
            &[&c.weight, &c.scales, &c.chosen, &c.packed, &rows, &columns],
        )?;
        self.done(Work {
            flops: 5 * candidates(bits) * n,
            bytes: 8 * n + 4 * words,
        })
    }
}

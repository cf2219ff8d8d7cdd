//! Twin of `cuda/row_scale.cuh`: RMSNorm as a factor of a product's rows.

use std::ffi::c_void;

use anyhow::Result;

use super::{Checks, DevPtr};
use crate::driver::launch::Parameter;

/// Columns of a product's result that one sum of squares covers.
const SQUARES_COLUMNS: u64 = 128;

/// Sums of squares that a product leaves per row of `columns` elements.
pub fn square_parts(columns: u64) -> u64 {
    columns.div_ceil(SQUARES_COLUMNS)
}

/// `factor / sqrt(mean(x²) + epsilon)` of every row of a matrix `x [N, d]`, from sums of the squares of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScale {
    /// f32 `[parts, N]`: the parts of a row add up to the sum of its squares.
    pub sums: DevPtr,
    /// [`square_parts`] of d where a product left them, 1 where a row kernel did.
    pub parts: u64,
    /// Width of x.
    pub d: u64,
    pub factor: f32,
}

/// As kernels take it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RowScaleParameter {
    sums: u64,
    parts: i32,
    inverse_d: f32,
    factor: f32,
    padding: u32,
}

// SAFETY: laid out like the kernels' `RowScale`: three words behind a pointer, padded to a multiple of eight bytes.
unsafe impl Parameter for RowScaleParameter {
    fn bytes(&self) -> (usize, *const c_void) {
        (size_of::<Self>(), std::ptr::from_ref(self).cast())
    }
}

impl RowScale {
    /// The kernels' parameter for `rows` rows; without a scale their factor is 1.
    pub(super) fn parameter(
        scale: Option<Self>,
        checks: Checks,
        rows: u64,
    ) -> Result<RowScaleParameter> {
        let Some(Self {
            sums,
            parts,
            d,
            factor,
        }) = scale
        else {
            return Ok(RowScaleParameter {
                sums: 0,
                parts: 0,
                inverse_d: 0.0,
                factor: 1.0,
                padding: 0,
            });
        };
        checks.limit(parts > 0 && d > 0, || {
            format!("row scale of {parts} parts, d = {d}")
        })?;
        checks.list("sums of squares", sums, 4, &[parts, rows])?;
        Ok(RowScaleParameter {
            sums: sums.address,
            parts: checks.int("parts", parts)?,
            inverse_d: 1.0 / d as f32,
            factor,
            padding: 0,
        })
    }
}

//! Twin of `cuda/quantize.cu`: weights on their way into the products, casts, the check for non-finite values.

use anyhow::Result;
use cust::stream::Stream;

use super::adam::Storage;
use super::{Checks, DevPtr, Kernels, Work, address, flat_grid, step_values};

/// When a weight is fake-quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeQuantize {
    Never,
    Always,
    /// When the step's values say so.
    ByStep,
}

/// Operands of [`Kernels::cast_weight`].
#[derive(Clone, Copy, Debug)]
pub struct CastWeight {
    /// f32 `[batches, rows, columns]`.
    pub weight: DevPtr,
    pub batches: u64,
    pub rows: u64,
    pub columns: u64,
    /// f32 per row of all batches, or one for all with `one_scale`.
    pub scale: Option<DevPtr>,
    pub one_scale: bool,
    /// bf16, dense rows.
    pub out: DevPtr,
    /// Elements from one batch to the next.
    pub out_batch_stride: u64,
    pub quantize: FakeQuantize,
    /// Bits of the fake codes: 5 or 6.
    pub bits: u32,
    pub step: DevPtr,
}

impl Kernels {
    /// `out = bf16(scale fake_quant(weight))`.
    pub fn cast_weight(&self, stream: &Stream, c: &CastWeight) -> Result<Work> {
        let checks = Checks("cast_weight");
        let rows = c.batches * c.rows;
        checks.limit(
            rows > 0
                && c.columns > 0
                && c.columns.is_multiple_of(8)
                && c.out_batch_stride.is_multiple_of(8)
                && (c.batches == 1 || c.out_batch_stride >= c.rows * c.columns),
            || {
                format!(
                    "[{}, {}, {}] with batches {} apart: multiples of 8 needed",
                    c.batches, c.rows, c.columns, c.out_batch_stride
                )
            },
        )?;
        checks.array("weight", c.weight, 4, &[rows, c.columns])?;
        checks.limit(matches!(c.bits, 5 | 6), || format!("bits = {}", c.bits))?;
        let largest_code = ((1u32 << (c.bits - 1)) - 1) as f32;
        if let Some(scale) = c.scale {
            checks.list("scale", scale, 4, &[if c.one_scale { 1 } else { rows }])?;
        }
        let out_elements = (c.batches - 1) * c.out_batch_stride + c.rows * c.columns;
        checks.array("out", c.out, 2, &[out_elements])?;
        checks.array("step", c.step, 1, &[step_values::BYTES])?;
        let (scale, stride) = (address(c.scale), i32::from(!c.one_scale));
        let batch_stride = c.out_batch_stride as i64;
        let (batches, rows_int) = (
            checks.int("batches", c.batches)?,
            checks.int("rows", c.rows)?,
        );
        let columns = checks.int("columns", c.columns)?;
        let quantize = match c.quantize {
            FakeQuantize::Never => 0i32,
            FakeQuantize::Always => 1,
            FakeQuantize::ByStep => 2,
        };
        self.launch(
            stream,
            checks.0,
            [rows.div_ceil(8) as u32, 1, 1],
            256,
            0,
            &[
                &c.weight,
                &scale,
                &stride,
                &c.out,
                &batch_stride,
                &batches,
                &rows_int,
                &columns,
                &quantize,
                &largest_code,
                &c.step,
            ],
        )?;
        self.done(Work {
            flops: rows * c.columns,
            bytes: 6 * rows * c.columns,
        })
    }

    /// Converts `n` elements between f32 and bf16; `from` is the source's type.
    pub fn cast(
        &self,
        stream: &Stream,
        from: Storage,
        source: DevPtr,
        destination: DevPtr,
        n: u64,
    ) -> Result<Work> {
        let (name, to) = match from {
            Storage::F32 => ("cast_f32_to_bf16", Storage::Bf16),
            Storage::Bf16 => ("cast_bf16_to_f32", Storage::F32),
        };
        let checks = Checks(name);
        checks.limit(n > 0 && n.is_multiple_of(8), || {
            format!("n = {n} is not a positive multiple of 8")
        })?;
        checks.array("source", source, from.bytes(), &[n])?;
        checks.array("destination", destination, to.bytes(), &[n])?;
        self.launch(
            stream,
            name,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[&source, &destination, &n],
        )?;
        self.done(Work {
            flops: 0,
            bytes: 6 * n,
        })
    }

    /// Sets `out` u32 `[2]` to (1, `tag`) if a value of `x` f32 `[n]` is not finite; leaves it alone otherwise.
    pub fn check_finite(
        &self,
        stream: &Stream,
        x: DevPtr,
        n: u64,
        tag: u32,
        out: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("check_finite");
        checks.limit(n > 0 && n.is_multiple_of(8), || {
            format!("n = {n} is not a positive multiple of 8")
        })?;
        checks.array("x", x, 4, &[n])?;
        checks.list("out", out, 4, &[2])?;
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[&x, &n, &tag, &out],
        )?;
        self.done(Work {
            flops: 0,
            bytes: 4 * n,
        })
    }
}

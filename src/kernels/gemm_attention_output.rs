//! Twin of `cuda/gemm_attention_output.cu`: the data gradient of the output projection with the backward of XSA and gate.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::AttentionShape;
use super::attention_output::{AttentionOutput, AttentionOutputGradients};
use super::gemm::{Orientation, Shape, Tile, operand_maps};
use super::{Checks, Kernels, Matrix, Work, with_alignment};

/// Three stages of a wide product; per consumer four boxes of out and one of v (`OutputShared`).
pub const SHARED: u32 = with_alignment(3 * (16384 + 32768) + 2 * 5 * 8192 + (2 * 3 + 2) * 8);

/// The only tile that there is a kernel for, and its heads.
const TILE: Tile = Tile::Wide;
const HEADS: u64 = 4;
/// Rows that a partial sum is of: those of a warp.
const PARTIAL_ROWS: u64 = 16;

/// Whether the kernel serves this shape: with XSA the heads of a tile must be whole groups, because those of a group add to one value's
/// gradient.
pub(super) fn whole_groups(shape: AttentionShape, xsa: bool) -> bool {
    !xsa || HEADS.is_multiple_of(shape.group)
}

/// Rows of the partial sums of [`Kernels::gemm_attention_output`].
pub fn gemm_attention_output_partials(shape: AttentionShape) -> u32 {
    (shape.sequences * shape.tokens).div_ceil(PARTIAL_ROWS) as u32
}

impl Kernels {
    /// [`Kernels::attention_output_gradient`] where the heads of a tile are whole groups.
    pub fn gemm_attention_output(
        &self,
        stream: &Stream,
        [dx, weight]: [Matrix; 2],
        operands: &AttentionOutput,
        g: &AttentionOutputGradients,
    ) -> Result<Work> {
        let checks = Checks("gemm_nn_attention_output");
        let shape = operands.shape;
        checks.limit(whole_groups(shape, operands.along.is_some()), || {
            format!("{} heads are not whole groups of {}", HEADS, shape.group)
        })?;
        let p = operands.parameters(checks, g, gemm_attention_output_partials(shape))?;
        let (rows, width) = (operands.rows(), operands.width());
        let product = Shape::of(checks, Orientation::Nn, dx, weight)?;
        checks.limit(
            (product.m, product.n, product.batches) == (rows, width, 1),
            || {
                format!(
                    "[{}, {}] = dx W, but {rows} tokens have {width} columns",
                    product.m, product.n
                )
            },
        )?;
        let (map_a, map_b) = operand_maps(checks, Orientation::Nn, TILE, dx, weight)?;
        let map = |argument, pointer| Matrix::new(pointer, rows, width).map(checks, argument, 64);
        let (out, dy) = (map("out", operands.out)?, map("dy", g.dy)?);
        let [m, n, k, batches] = product.ints(checks)?;
        self.gemm_launch(
            stream,
            checks.0,
            TILE,
            TILE.count(rows, width),
            &[
                &map_a,
                &map_b,
                &out,
                &dy,
                &m,
                &n,
                &k,
                &batches,
                &p.along,
                &p.value,
                &p.value_stride,
                &p.logits,
                &p.gate_stride,
                &p.bias,
                &g.delta,
                &p.dv_extra,
                &p.dgate,
                &p.dgate_stride,
                &p.scale,
                &p.partial,
                &p.tokens,
                &p.padded,
                &p.heads,
                &p.kv_heads,
            ],
        )?;
        let product = product.work(0);
        self.done(Work {
            flops: product.flops,
            bytes: product.bytes + operands.bytes(),
        })
    }
}

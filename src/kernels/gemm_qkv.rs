//! Twin of `cuda/gemm_qkv.cu`: the QKV product with what lies between it and attention.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{HEAD_DIM, gate_columns};
use super::gemm::{Orientation, Shape, Tile, operand_maps};
use super::qkv::QkvOperands;
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, Matrix, Work};

impl Kernels {
    /// From `x [N, d]` and `weight [S, d]` to attention's input and what [`Kernels::attention_backward`] and [`Kernels::value_backward`] need. The rows of x Wᵀ are multiplied
    /// by `scale`. The columns of the product behind q, k and v, where there are any, are the logits of the gates: they go to `gates` bf16
    /// `[N, gate_columns]`.
    pub fn gemm_qkv(
        &self,
        stream: &Stream,
        operands: &QkvOperands,
        x: Matrix,
        weight: Matrix,
        scale: Option<RowScale>,
        gates: Option<DevPtr>,
    ) -> Result<Work> {
        let checks = Checks("gemm_nt_qkv");
        let c = operands.common(checks)?;
        let (shape, rows) = (operands.shape, operands.rows());
        let columns = shape.columns() + gates.map_or(0, |_| gate_columns(shape));
        let product = Shape::of(checks, Orientation::Nt, x, weight)?;
        checks.limit(
            (product.m, product.n, product.batches) == (rows, columns, 1),
            || {
                format!(
                    "[{}, {}] = x W^T, but {rows} tokens have {columns} columns",
                    product.m, product.n
                )
            },
        )?;
        let published = operands.rope_dims == 16;
        let (entry, (tile, ctas)) = if published {
            (checks.0, self.tile(checks.0, product, 2))
        } else {
            let count = Tile::Square.count(rows, columns);
            ("gemm_nt_qkv_any_pairs", (Tile::Square, count))
        };
        let (map_a, map_b) = operand_maps(checks, Orientation::Nt, tile, x, weight)?;
        let map =
            |argument, pointer, width| Matrix::new(pointer, rows, width).map(checks, argument, 64);
        let out = map("ready", operands.ready, shape.columns())?;
        // Maps through which nothing is stored are there all the same.
        let v_raw = match operands.v_raw {
            Some(raw) => map("v_raw", raw, shape.kv_heads * HEAD_DIM)?,
            None => out,
        };
        let gate_map = match gates {
            Some(gates) => map("gates", gates, gate_columns(shape))?,
            None => out,
        };
        let scale = RowScale::parameter(scale, checks, rows)?;
        let store_raw = i32::from(operands.v_raw.is_some());
        let [m, n, k, batches] = product.ints(checks)?;
        self.gemm_launch(
            stream,
            entry,
            tile,
            ctas,
            &[
                &map_a,
                &map_b,
                &out,
                &v_raw,
                &gate_map,
                &m,
                &n,
                &k,
                &batches,
                &store_raw,
                &scale,
                &operands.inverse_rms,
                &operands.q_gain,
                &operands.rope,
                &c.pairs,
                &c.ids,
                &c.table,
                &c.scale,
                &c.first,
                &c.first_stride,
                &c.mix,
                &c.mode,
                &c.tokens,
                &c.heads,
                &c.kv_heads,
            ],
        )?;
        self.done(product.work(2))
    }
}

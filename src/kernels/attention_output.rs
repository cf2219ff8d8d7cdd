//! Twin of `cuda/attention_output.cu`: the backward of XSA and of the per-head gate.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, Gate, HEAD_DIM, gate_columns};
use super::qkv::check_heads;
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, Work, address, head_grid};

/// What the forward read and left.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOutput {
    pub shape: AttentionShape,
    /// What it made of attention's output, bf16 `[N, H 64]`.
    pub out: DevPtr,
    /// Attention's input, bf16 `[N, C]`, for its value columns.
    pub qkv_in: DevPtr,
    /// With XSA, f32 `[B, H, Tp]`.
    pub along: Option<DevPtr>,
    pub gate: Option<Gate>,
}

/// Where the gradients go.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOutputGradients {
    /// bf16 `[N, H 64]`.
    pub dout: DevPtr,
    /// Gradient of y, bf16 `[N, H 64]`; not needed with neither XSA nor gate, where it equals `dout`.
    pub dy: Option<DevPtr>,
    /// f32 `[B, H, Tp]`.
    pub delta: DevPtr,
    /// bf16 `[N, KV 64]`, with XSA.
    pub dv_extra: Option<DevPtr>,
    /// Gradient of the QKV product, bf16 `[N, dqkv_stride]`, its rows times `scale`, with a gate: the columns of its logits are written.
    pub dqkv: Option<DevPtr>,
    pub dqkv_stride: u64,
    /// What the rows of the projection were multiplied by.
    pub scale: Option<RowScale>,
    /// f32 `[attention_output_partials, H]`, with a gate: sums for its bias.
    pub partial: Option<DevPtr>,
}

/// Rows of the partial sums of [`Kernels::attention_output_backward`].
pub fn attention_output_partials(shape: AttentionShape) -> u32 {
    let units = shape.sequences * shape.padded_tokens() * shape.kv_heads;
    head_grid(units, shape.kv_heads)
}

impl Kernels {
    /// Gradient of what [`Kernels::attention_forward`] does to its output, and delta for [`Kernels::attention_backward`].
    pub fn attention_output_backward(
        &self,
        stream: &Stream,
        operands: &AttentionOutput,
        g: &AttentionOutputGradients,
    ) -> Result<Work> {
        let checks = Checks("attention_output_backward");
        let shape = operands.shape;
        check_heads(checks, shape)?;
        let rows = shape.sequences * shape.tokens;
        let width = shape.heads() * HEAD_DIM;
        let grid = attention_output_partials(shape);
        let (xsa, gated) = (operands.along.is_some(), operands.gate.is_some());
        checks.array("out", operands.out, 2, &[rows, width])?;
        checks.array("qkv_in", operands.qkv_in, 2, &[rows, shape.columns()])?;
        checks.optional("along", operands.along, 4, &[shape.statistics()])?;
        let (logits, gate_stride, bias) = Gate::parameters(operands.gate, checks, shape)?;
        checks.array("dout", g.dout, 2, &[rows, width])?;
        checks.optional("dy", g.dy, 2, &[rows, width])?;
        checks.array("delta", g.delta, 4, &[shape.statistics()])?;
        let kv_width = shape.kv_heads * HEAD_DIM;
        checks.optional("dv_extra", g.dv_extra, 2, &[rows, kv_width])?;
        checks.optional("partial", g.partial, 4, &[u64::from(grid), shape.heads()])?;
        checks.limit(
            (g.dy.is_some() || !(xsa || gated))
                && g.dv_extra.is_some() == xsa
                && g.dqkv.is_some() == gated
                && g.partial.is_some() == gated,
            || format!("dy, dv_extra, dqkv, partial do not go with xsa {xsa} and gate {gated}"),
        )?;
        let columns = shape.columns() + gate_columns(shape);
        checks.limit(!gated || g.dqkv_stride >= columns, || {
            format!(
                "rows of dqkv have {} columns, {columns} needed for q, k, v and the gate",
                g.dqkv_stride
            )
        })?;
        checks.optional("dqkv", g.dqkv, 2, &[rows, g.dqkv_stride])?;
        let stride = checks.int("dgate_stride", g.dqkv_stride)?;
        let value = operands.qkv_in.offset(2 * (shape.columns() - kv_width));
        let value_stride = shape.columns() as i32;
        let along = address(operands.along);
        let (dy, extra, partial) = (address(g.dy), address(g.dv_extra), address(g.partial));
        let dgate = address(g.dqkv.map(|p| p.offset(2 * shape.columns())));
        let scale = RowScale::parameter(g.scale, checks, rows)?;
        let (sequences, tokens) = (
            checks.int("B", shape.sequences)?,
            checks.int("T", shape.tokens)?,
        );
        let (padded, heads) = (shape.padded_tokens() as i32, shape.heads() as i32);
        let kv_heads = shape.kv_heads as i32;
        self.launch(
            stream,
            checks.0,
            [grid, 1, 1],
            256,
            0,
            &[
                &g.dout,
                &operands.out,
                &along,
                &value,
                &value_stride,
                &logits,
                &gate_stride,
                &bias,
                &dy,
                &g.delta,
                &extra,
                &dgate,
                &stride,
                &scale,
                &partial,
                &sequences,
                &tokens,
                &padded,
                &heads,
                &kv_heads,
            ],
        )?;
        let tensors = 2 + u64::from(g.dy.is_some());
        let values = 2 * u64::from(xsa) * kv_width;
        let statistics = 4 * (1 + u64::from(xsa)) * shape.statistics();
        self.done(Work {
            flops: 16 * rows * width,
            bytes: 2 * rows * (tensors * width + values) + statistics,
        })
    }
}

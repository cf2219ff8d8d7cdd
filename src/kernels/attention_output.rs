//! Twin of `cuda/attention_output.cu`: XSA and the per-head gate.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, HEAD_DIM};
use super::qkv::check_heads;
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, Work, address, head_grid};

/// Logits of the gate: the columns behind q, k and v of the raw projection, [`gate_columns`] of them reserved.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Raw projection bf16 `[N, stride]`.
    pub qkv: DevPtr,
    pub stride: u64,
    /// f32 `[H]`.
    pub bias: DevPtr,
}

/// Operands of both directions.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOutput {
    pub shape: AttentionShape,
    /// Attention's output, bf16 `[N, H 64]`.
    pub y: DevPtr,
    /// Attention's input, bf16 `[N, C]`, for its value columns.
    pub qkv_in: DevPtr,
    pub gate: Option<Gate>,
    pub xsa: bool,
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
    /// Gradient of the raw projection, bf16 `[N, stride]`, its rows times `scale`, with a gate: its gate columns are written.
    pub dqkv: Option<DevPtr>,
    /// What the rows of the projection were multiplied by.
    pub scale: Option<RowScale>,
    /// f32 `[attention_output_partials, H]`, with a gate: sums for its bias.
    pub partial: Option<DevPtr>,
}

/// Columns of the raw projection that are the gate's: one for each head, rounded up to 16.
pub fn gate_columns(shape: AttentionShape) -> u64 {
    shape.heads().next_multiple_of(16)
}

/// Rows of the partial sums of [`Kernels::attention_output_backward`].
pub fn attention_output_partials(shape: AttentionShape) -> u32 {
    let units = shape.sequences * shape.padded_tokens() * shape.kv_heads;
    head_grid(units, shape.kv_heads)
}

impl AttentionOutput {
    fn check(&self, checks: Checks) -> Result<u64> {
        let shape = self.shape;
        check_heads(checks, shape)?;
        let rows = shape.sequences * shape.tokens;
        checks.array("y", self.y, 2, &[rows, shape.heads() * HEAD_DIM])?;
        checks.array("qkv_in", self.qkv_in, 2, &[rows, shape.columns()])?;
        if let Some(gate) = self.gate {
            checks.limit(gate.stride >= shape.columns() + gate_columns(shape), || {
                format!(
                    "rows of {} columns have no room for the gate behind {}",
                    gate.stride,
                    shape.columns()
                )
            })?;
            checks.array("gate_logits", gate.qkv, 2, &[rows, gate.stride])?;
            checks.list("gate_bias", gate.bias, 4, &[shape.heads()])?;
        }
        Ok(rows)
    }

    fn value(&self) -> DevPtr {
        let shape = self.shape;
        self.qkv_in
            .offset(2 * (shape.columns() - shape.kv_heads * HEAD_DIM))
    }

    fn logits(&self) -> u64 {
        self.gate
            .map_or(0, |gate| gate.qkv.offset(2 * self.shape.columns()).address)
    }
}

impl Kernels {
    /// XSA, then gate: `out` bf16 `[N, H 64]`, may be `y`.
    pub fn attention_output_forward(
        &self,
        stream: &Stream,
        operands: &AttentionOutput,
        out: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("attention_output_forward");
        let rows = operands.check(checks)?;
        let shape = operands.shape;
        let width = shape.heads() * HEAD_DIM;
        checks.array("out", out, 2, &[rows, width])?;
        let (value, logits) = (operands.value(), operands.logits());
        let value_stride = shape.columns() as i32;
        let gate_stride = operands.gate.map_or(0, |gate| gate.stride as i32);
        let bias = address(operands.gate.map(|gate| gate.bias));
        let xsa = i32::from(operands.xsa);
        let (rows_int, heads) = (checks.int("N", rows)?, shape.heads() as i32);
        let kv_heads = shape.kv_heads as i32;
        self.launch(
            stream,
            checks.0,
            [attention_output_partials(shape), 1, 1],
            256,
            0,
            &[
                &operands.y,
                &value,
                &value_stride,
                &logits,
                &gate_stride,
                &bias,
                &xsa,
                &out,
                &rows_int,
                &heads,
                &kv_heads,
            ],
        )?;
        self.done(Work {
            flops: 8 * rows * width,
            bytes: 2 * rows * (2 * width + shape.kv_heads * HEAD_DIM),
        })
    }

    /// Gradient of [`Kernels::attention_output_forward`], and delta for [`Kernels::attention_backward`].
    pub fn attention_output_backward(
        &self,
        stream: &Stream,
        operands: &AttentionOutput,
        g: &AttentionOutputGradients,
    ) -> Result<Work> {
        let checks = Checks("attention_output_backward");
        let rows = operands.check(checks)?;
        let shape = operands.shape;
        let width = shape.heads() * HEAD_DIM;
        let grid = attention_output_partials(shape);
        let gated = operands.gate.is_some();
        checks.array("dout", g.dout, 2, &[rows, width])?;
        checks.optional("dy", g.dy, 2, &[rows, width])?;
        checks.array("delta", g.delta, 4, &[shape.statistics()])?;
        let kv_width = shape.kv_heads * HEAD_DIM;
        checks.optional("dv_extra", g.dv_extra, 2, &[rows, kv_width])?;
        checks.optional("partial", g.partial, 4, &[u64::from(grid), shape.heads()])?;
        checks.limit(
            (g.dy.is_some() || !(operands.xsa || gated))
                && g.dv_extra.is_some() == operands.xsa
                && g.dqkv.is_some() == gated
                && g.partial.is_some() == gated,
            || {
                format!(
                    "dy, dv_extra, dqkv, partial do not go with xsa {} and gate {gated}",
                    operands.xsa
                )
            },
        )?;
        let gate_stride = operands.gate.map_or(0, |gate| gate.stride);
        checks.optional("dqkv", g.dqkv, 2, &[rows, gate_stride])?;
        let (value, logits) = (operands.value(), operands.logits());
        let value_stride = shape.columns() as i32;
        let stride = gate_stride as i32;
        let bias = address(operands.gate.map(|gate| gate.bias));
        let xsa = i32::from(operands.xsa);
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
                &operands.y,
                &value,
                &value_stride,
                &logits,
                &stride,
                &bias,
                &xsa,
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
        let tensors = if g.dy.is_some() { 4 } else { 2 };
        self.done(Work {
            flops: 16 * rows * width,
            bytes: 2 * tensors * rows * width,
        })
    }
}

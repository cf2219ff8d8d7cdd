//! Twin of `cuda/attention_output.cu`, and the choice between it and `cuda/gemm_attention_output.cu`: the backward of XSA and of the
//! per-head gate, as a pass of its own or as the epilogue of the product that makes its input.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, Gate, HEAD_DIM, gate_columns};
use super::gemm::Orientation;
use super::gemm_attention_output::{gemm_attention_output_partials, whole_groups};
use super::qkv::check_heads;
use super::row_scale::{RowScale, RowScaleParameter};
use super::{Checks, DevPtr, Kernels, Matrix, Work, address, head_grid};

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
    /// Gradient of y, bf16 `[N, H 64]`.
    pub dy: DevPtr,
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

/// Rows of the partial sums of [`Kernels::attention_output_gradient`].
pub fn attention_output_partials(shape: AttentionShape, xsa: bool) -> u32 {
    if whole_groups(shape, xsa) {
        gemm_attention_output_partials(shape)
    } else {
        attention_output_pass_partials(shape)
    }
}

/// Rows of the partial sums of [`Kernels::attention_output_backward`].
pub fn attention_output_pass_partials(shape: AttentionShape) -> u32 {
    let units = shape.sequences * shape.padded_tokens() * shape.kv_heads;
    head_grid(units, shape.kv_heads)
}

/// Parameters that both kernels take, checked.
pub(super) struct Parameters {
    pub along: u64,
    pub value: DevPtr,
    pub value_stride: i32,
    pub logits: u64,
    pub gate_stride: i32,
    pub bias: u64,
    pub dv_extra: u64,
    pub dgate: u64,
    pub dgate_stride: i32,
    pub scale: RowScaleParameter,
    pub partial: u64,
    pub sequences: i32,
    pub tokens: i32,
    pub padded: i32,
    pub heads: i32,
    pub kv_heads: i32,
}

impl AttentionOutput {
    pub(super) fn rows(&self) -> u64 {
        self.shape.sequences * self.shape.tokens
    }

    pub(super) fn width(&self) -> u64 {
        self.shape.heads() * HEAD_DIM
    }

    pub(super) fn parameters(
        &self,
        checks: Checks,
        g: &AttentionOutputGradients,
        partials: u32,
    ) -> Result<Parameters> {
        let shape = self.shape;
        check_heads(checks, shape)?;
        let (rows, width) = (self.rows(), self.width());
        let (xsa, gated) = (self.along.is_some(), self.gate.is_some());
        checks.array("out", self.out, 2, &[rows, width])?;
        checks.array("qkv_in", self.qkv_in, 2, &[rows, shape.columns()])?;
        checks.optional("along", self.along, 4, &[shape.statistics()])?;
        let (logits, gate_stride, bias) = Gate::parameters(self.gate, checks, shape)?;
        checks.array("dy", g.dy, 2, &[rows, width])?;
        checks.array("delta", g.delta, 4, &[shape.statistics()])?;
        checks.int("statistics", shape.statistics())?;
        let kv_width = shape.kv_heads * HEAD_DIM;
        checks.optional("dv_extra", g.dv_extra, 2, &[rows, kv_width])?;
        let sums = [u64::from(partials), shape.heads()];
        checks.optional("partial", g.partial, 4, &sums)?;
        checks.limit(
            g.dv_extra.is_some() == xsa
                && g.dqkv.is_some() == gated
                && g.partial.is_some() == gated,
            || format!("dv_extra, dqkv, partial do not go with xsa {xsa} and gate {gated}"),
        )?;
        let columns = shape.columns() + gate_columns(shape);
        checks.limit(!gated || g.dqkv_stride >= columns, || {
            format!(
                "rows of dqkv have {} columns, {columns} needed for q, k, v and the gate",
                g.dqkv_stride
            )
        })?;
        checks.optional("dqkv", g.dqkv, 2, &[rows, g.dqkv_stride])?;
        Ok(Parameters {
            along: address(self.along),
            value: self.qkv_in.offset(2 * (shape.columns() - kv_width)),
            value_stride: shape.columns() as i32,
            logits,
            gate_stride,
            bias,
            dv_extra: address(g.dv_extra),
            dgate: address(g.dqkv.map(|p| p.offset(2 * shape.columns()))),
            dgate_stride: checks.int("dgate_stride", g.dqkv_stride)?,
            scale: RowScale::parameter(g.scale, checks, rows)?,
            partial: address(g.partial),
            sequences: checks.int("B", shape.sequences)?,
            tokens: checks.int("T", shape.tokens)?,
            padded: checks.int("Tp", shape.padded_tokens())?,
            heads: shape.heads() as i32,
            kv_heads: shape.kv_heads as i32,
        })
    }

    /// Bytes that are read and written beside dout and its like: `out` and dy, values and their gradients, along and delta.
    pub(super) fn bytes(&self) -> u64 {
        let xsa = u64::from(self.along.is_some());
        let gate = self.gate.map_or(0, |_| gate_columns(self.shape));
        let values = 2 * xsa * self.shape.kv_heads * HEAD_DIM;
        2 * self.rows() * (2 * self.width() + values + 2 * gate)
            + 4 * (1 + xsa) * self.shape.statistics()
    }
}

impl Kernels {
    /// Gradient of what [`Kernels::attention_forward`] does to its output, and delta for [`Kernels::attention_backward`], from the
    /// gradient `dx` `[N, d]` of what `weight` `[d, H 64]` made of it. In one kernel where the heads of a tile are whole groups; else
    /// through `dout`, bf16 `[N, H 64]`.
    pub fn attention_output_gradient(
        &self,
        stream: &Stream,
        [dx, weight]: [Matrix; 2],
        dout: DevPtr,
        operands: &AttentionOutput,
        g: &AttentionOutputGradients,
    ) -> Result<Work> {
        if whole_groups(operands.shape, operands.along.is_some()) {
            return self.gemm_attention_output(stream, [dx, weight], operands, g);
        }
        let product = Matrix::new(dout, operands.rows(), operands.width());
        let mut work = self.gemm(stream, Orientation::Nn, dx, weight, product)?;
        work += self.attention_output_backward(stream, dout, operands, g)?;
        Ok(work)
    }

    /// The same from `dout`, with XSA.
    pub fn attention_output_backward(
        &self,
        stream: &Stream,
        dout: DevPtr,
        operands: &AttentionOutput,
        g: &AttentionOutputGradients,
    ) -> Result<Work> {
        let checks = Checks("attention_output_backward");
        checks.limit(operands.along.is_some(), || "there is no XSA".to_owned())?;
        let grid = attention_output_pass_partials(operands.shape);
        let p = operands.parameters(checks, g, grid)?;
        let (rows, width) = (operands.rows(), operands.width());
        checks.array("dout", dout, 2, &[rows, width])?;
        self.launch(
            stream,
            checks.0,
            [grid, 1, 1],
            256,
            0,
            &[
                &dout,
                &operands.out,
                &p.along,
                &p.value,
                &p.value_stride,
                &p.logits,
                &p.gate_stride,
                &p.bias,
                &g.dy,
                &g.delta,
                &p.dv_extra,
                &p.dgate,
                &p.dgate_stride,
                &p.scale,
                &p.partial,
                &p.sequences,
                &p.tokens,
                &p.padded,
                &p.heads,
                &p.kv_heads,
            ],
        )?;
        self.done(Work {
            flops: 16 * rows * width,
            bytes: 2 * rows * width + operands.bytes(),
        })
    }

    /// The gate's bias gradient, f32 `[H]`, from `count` rows of partial sums.
    pub fn gate_bias_sum(
        &self,
        stream: &Stream,
        partial: DevPtr,
        count: u32,
        heads: u64,
        out: DevPtr,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("gate_bias_sum");
        let sums = u64::from(count) * heads;
        checks.limit(sums > 0, || format!("{count} rows of {heads} heads"))?;
        checks.list("partial", partial, 4, &[sums])?;
        checks.list("out", out, 4, &[heads])?;
        let (count_int, heads_int) = (checks.int("G", count.into())?, checks.int("H", heads)?);
        let accumulate = i32::from(accumulate);
        self.launch(
            stream,
            checks.0,
            [heads as u32, 1, 1],
            256,
            0,
            &[&partial, &count_int, &heads_int, &out, &accumulate],
        )?;
        self.done(Work {
            flops: sums,
            bytes: 4 * sums,
        })
    }
}

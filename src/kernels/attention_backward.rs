//! Twin of `cuda/attention_backward.cu`.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::HEAD_DIM;
use super::qkv::{QkvOperands, inverse_rms_pitch};
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, Work, with_alignment};

/// K, V and dV of 128 keys, four stages of Q, dO, lse and delta, three of dS, two of dQ (`BackwardShared`).
pub const SHARED: u32 =
    with_alignment(6 * 8192 + 4 * (2 * 8192 + 2 * 256) + (3 + 2) * 16384 + 18 * 8 + 8);

/// In which order the blocks of keys add their shares of dQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuerySum {
    /// The diagonal first, then downwards: the same inputs give the same bits. A block may wait for another one.
    #[default]
    Ordered,
    /// As they come: nobody waits, and the bits change from run to run.
    Unordered,
}

/// Scratch of [`Kernels::attention_backward`]. Zero before the first launch; a launch leaves it fit for the next one of any shape that
/// it is large enough for and of the same [`QuerySum`].
#[derive(Clone, Copy, Debug)]
pub struct QuerySums {
    /// f32 `[B, H, Tp, 64]`.
    pub sums: DevPtr,
    /// u32 `[B, H, Tp / 32]`, then `[B, KV]`.
    pub turns: DevPtr,
}

/// Where the gradient of v goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueGradient {
    /// To its columns of the projection's gradient.
    Projected,
    /// There, and as it is to `dv` bf16 `[N, KV 64]`: what a value embedding is summed from.
    ProjectedAndKept { dv: DevPtr },
    /// To `dv` alone, for [`Kernels::value_backward`].
    Kept { dv: DevPtr },
}

/// Operands of [`Kernels::attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradient {
    /// Attention's input, and what made it of the projection.
    pub qkv: QkvOperands,
    /// Gradient of attention's output, bf16 `[B, T, H 64]`.
    pub dout: DevPtr,
    /// The forward's, f32 `[B, H, Tp]`.
    pub lse: DevPtr,
    /// From [`Kernels::attention_output_backward`], f32 `[B, H, Tp]`.
    pub delta: DevPtr,
    /// Further gradient of v, bf16 `[N, KV 64]` (from XSA).
    pub dv_extra: Option<DevPtr>,
    /// Gradient of the raw projection, bf16 `[N, stride]`, its rows times `scale`; its gate columns are left alone.
    pub dqkv: DevPtr,
    pub stride: u64,
    /// What the rows of the projection were multiplied by.
    pub scale: Option<RowScale>,
    pub values: ValueGradient,
    /// Of [`Kernels::q_gain_gradient`], f32 `[B, H, Tp / 32]`.
    pub gain_sums: DevPtr,
    pub scratch: QuerySums,
    pub order: QuerySum,
}

impl Kernels {
    /// Gradient of [`Kernels::attention_forward`] and of what [`Kernels::gemm_qkv`] does to the raw projection, but for a value mix.
    pub fn attention_backward(&self, stream: &Stream, g: &AttentionGradient) -> Result<Work> {
        let checks = Checks(match g.order {
            QuerySum::Ordered => "attention_backward_causal_d64",
            QuerySum::Unordered => "attention_backward_unordered_causal_d64",
        });
        let c = g.qkv.common(checks)?;
        let shape = g.qkv.shape;
        let [tokens, padded] = shape.check(checks)?;
        let rows = shape.sequences * shape.tokens;
        let (columns, width) = (shape.columns(), shape.heads() * HEAD_DIM);
        let kv_width = shape.kv_heads * HEAD_DIM;
        let [q, k, v] = shape.qkv_maps(checks, ["q", "k", "v"], g.qkv.ready, 64)?;
        let dout = shape
            .part(g.dout, width, 0, width)
            .map(checks, "dout", 64)?;
        checks.limit(g.stride >= columns && g.stride.is_multiple_of(8), || {
            format!(
                "rows of dqkv have {} columns, {columns} needed, in multiples of 8",
                g.stride
            )
        })?;
        checks.array("dqkv", g.dqkv, 2, &[rows, g.stride])?;
        let dkv = |argument, start| {
            let part = shape.part(g.dqkv, g.stride, start, kv_width);
            part.map(checks, argument, 64)
        };
        let (dk, dv) = (dkv("dk", width)?, dkv("dv", width + kv_width)?);
        // Maps through which nothing is moved are there all the same.
        let value_map = |argument, pointer: Option<DevPtr>| match pointer {
            Some(pointer) => shape
                .part(pointer, kv_width, 0, kv_width)
                .map(checks, argument, 64),
            None => Ok(dv),
        };
        let (projected, kept) = match g.values {
            ValueGradient::Projected => (true, None),
            ValueGradient::ProjectedAndKept { dv } => (true, Some(dv)),
            ValueGradient::Kept { dv } => (false, Some(dv)),
        };
        let extra_map = value_map("dv_extra", g.dv_extra)?;
        let kept_map = value_map("dv", kept)?;
        // `ValueFlags`.
        let flags = i32::from(g.dv_extra.is_some())
            + 2 * i32::from(projected)
            + 4 * i32::from(kept.is_some());
        checks.array("lse", g.lse, 4, &[shape.statistics()])?;
        checks.array("delta", g.delta, 4, &[shape.statistics()])?;
        checks.array("gain_sums", g.gain_sums, 4, &[shape.gain_sums()])?;
        let QuerySums { sums, turns } = g.scratch;
        checks.array("dq_sum", sums, 4, &[shape.query_sums()])?;
        checks.array("turns", turns, 4, &[shape.query_turns()])?;
        let stride = checks.int("S", g.stride)?;
        let ready_stride = checks.int("C", columns)?;
        let scale = RowScale::parameter(g.scale, checks, rows)?;
        let group = shape.group as i32;
        self.launch(
            stream,
            checks.0,
            [
                shape.tokens.div_ceil(128) as u32,
                shape.kv_heads as u32,
                shape.sequences as u32,
            ],
            384,
            SHARED,
            &[
                &q,
                &k,
                &v,
                &dout,
                &dk,
                &dv,
                &extra_map,
                &kept_map,
                &flags,
                &g.lse,
                &g.delta,
                &g.qkv.ready,
                &ready_stride,
                &g.dqkv,
                &stride,
                &g.qkv.inverse_rms,
                &g.qkv.rope,
                &c.pairs,
                &g.qkv.q_gain,
                &g.gain_sums,
                &scale,
                &sums,
                &turns,
                &tokens,
                &padded,
                &group,
            ],
        )?;
        let written = columns - if projected { 0 } else { kv_width };
        let values = u64::from(g.dv_extra.is_some()) + u64::from(kept.is_some());
        let pitch = inverse_rms_pitch(shape.heads(), shape.kv_heads);
        self.done(Work {
            flops: 10 * HEAD_DIM * shape.scores(),
            bytes: 2 * rows * (columns + width + written + values * kv_width)
                + 4 * rows * pitch
                + 8 * shape.statistics()
                + 4 * shape.gain_sums(),
        })
    }
}

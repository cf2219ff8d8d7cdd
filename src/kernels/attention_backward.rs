//! Twin of `cuda/attention_backward.cu`.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, HEAD_DIM};
use super::{Checks, DevPtr, Kernels, Work, with_alignment};

/// K and V of 128 keys, four stages of Q, dO, lse and delta, three of dS, two of dQ (`BackwardShared`).
pub const SHARED: u32 =
    with_alignment(4 * 8192 + 4 * (2 * 8192 + 2 * 256) + (3 + 2) * 16384 + 18 * 8 + 8);

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

/// Operands of [`Kernels::attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionGradient {
    pub shape: AttentionShape,
    /// Attention's input, bf16 `[B, T, C]`.
    pub qkv: DevPtr,
    /// Gradient of its output, bf16 `[B, T, H 64]`.
    pub dout: DevPtr,
    /// The forward's, f32 `[B, H, Tp]`.
    pub lse: DevPtr,
    /// From [`Kernels::attention_output_backward`], f32 `[B, H, Tp]`.
    pub delta: DevPtr,
    /// Gradient of the input, bf16 `[B, T, C]`.
    pub dqkv: DevPtr,
    pub scratch: QuerySums,
    pub order: QuerySum,
}

impl Kernels {
    /// Gradient of [`Kernels::attention_forward`].
    pub fn attention_backward(&self, stream: &Stream, g: &AttentionGradient) -> Result<Work> {
        let checks = Checks(match g.order {
            QuerySum::Ordered => "attention_backward_causal_d64",
            QuerySum::Unordered => "attention_backward_unordered_causal_d64",
        });
        let shape = g.shape;
        let [tokens, padded] = shape.check(checks)?;
        let [q, k, v] = shape.qkv_maps(checks, ["q", "k", "v"], g.qkv, 64)?;
        let [_, dk, dv] = shape.qkv_maps(checks, ["dq", "dk", "dv"], g.dqkv, 64)?;
        let width = shape.heads() * HEAD_DIM;
        let dout = shape
            .part(g.dout, width, 0, width)
            .map(checks, "dout", 64)?;
        checks.array("lse", g.lse, 4, &[shape.statistics()])?;
        checks.array("delta", g.delta, 4, &[shape.statistics()])?;
        let QuerySums { sums, turns } = g.scratch;
        checks.array("dq_sum", sums, 4, &[shape.query_sums()])?;
        checks.array("turns", turns, 4, &[shape.query_turns()])?;
        let stride = checks.int("C", shape.columns())?;
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
                &q, &k, &v, &dout, &dk, &dv, &g.lse, &g.delta, &g.dqkv, &stride, &sums, &turns,
                &tokens, &padded, &group,
            ],
        )?;
        let rows = shape.sequences * shape.tokens;
        self.done(Work {
            flops: 10 * HEAD_DIM * shape.scores(),
            bytes: 2 * rows * (2 * shape.columns() + width) + 8 * shape.statistics(),
        })
    }
}

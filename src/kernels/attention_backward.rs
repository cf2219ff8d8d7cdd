//! Twin of `cuda/attention_backward.cu`.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, HEAD_DIM};
use super::{Checks, DevPtr, Kernels, Work, with_alignment};

/// K and V of 128 keys, three stages of Q, dO, lse and delta (`KeysShared`).
pub(super) const SHARED_DKDV: u32 = with_alignment(4 * 8192 + 3 * (2 * 8192 + 2 * 256) + 7 * 8);
/// Q and dO of two heads, three stages of K and V (`QueriesShared`).
pub(super) const SHARED_DQ: u32 = with_alignment(4 * 8192 + 3 * 2 * 8192 + 7 * 8);

impl Kernels {
    /// Gradient of [`Kernels::attention_forward`]: `dout [B, T, H 64]` to `dqkv [B, T, C]`, both bf16. `lse` is the forward's,
    /// `delta` comes from [`Kernels::attention_output_backward`]. Two launches.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn attention_backward(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        qkv: DevPtr,
        dout: DevPtr,
        lse: DevPtr,
        delta: DevPtr,
        dqkv: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("attention_backward_dkdv_causal_d64");
        let [tokens, padded] = shape.check(checks)?;
        let [q, k, v] = shape.qkv_maps(checks, ["q", "k", "v"], qkv, 64)?;
        let [dq, dk, dv] = shape.qkv_maps(checks, ["dq", "dk", "dv"], dqkv, 64)?;
        let width = shape.heads() * HEAD_DIM;
        let dout = shape.part(dout, width, 0, width).map(checks, "dout", 64)?;
        checks.array("lse", lse, 4, &[shape.statistics()])?;
        checks.array("delta", delta, 4, &[shape.statistics()])?;
        let (group, heads_per_cta) = (shape.group as i32, shape.heads_per_cta() as i32);
        let (kv, sequences) = (shape.kv_heads as u32, shape.sequences as u32);
        self.launch(
            stream,
            checks.0,
            [shape.tokens.div_ceil(128) as u32, kv, sequences],
            384,
            SHARED_DKDV,
            &[
                &q, &k, &v, &dout, &dk, &dv, &lse, &delta, &tokens, &padded, &group,
            ],
        )?;
        self.launch(
            stream,
            "attention_backward_dq_causal_d64",
            shape.query_grid(),
            384,
            SHARED_DQ,
            &[
                &q,
                &k,
                &v,
                &dout,
                &dq,
                &lse,
                &delta,
                &tokens,
                &padded,
                &group,
                &heads_per_cta,
            ],
        )?;
        let rows = shape.sequences * shape.tokens;
        self.done(Work {
            flops: 10 * HEAD_DIM * shape.scores(),
            bytes: 2 * rows * (2 * shape.columns() + width) + 8 * shape.statistics(),
        })
    }
}

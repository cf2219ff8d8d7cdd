//! Twin of `cuda/attention_forward.cu`.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Matrix, Work, with_alignment};
use crate::driver::tensor_map::TensorMap;

/// 128 rows of Q, then four stages of K and V (`ForwardShared`).
pub const SHARED: u32 = with_alignment(2 * 8192 + 4 * 2 * 16384 + 13 * 8);

pub const HEAD_DIM: u64 = 64;

/// Shape of an attention: `B` sequences of `T` tokens, `KV` key/value heads of 64 and `group` query heads for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub sequences: u64,
    pub tokens: u64,
    pub kv_heads: u64,
    pub group: u64,
}

impl AttentionShape {
    pub fn heads(self) -> u64 {
        self.group * self.kv_heads
    }

    /// Columns of q, k and v of a token.
    pub fn columns(self) -> u64 {
        (self.heads() + 2 * self.kv_heads) * HEAD_DIM
    }

    /// Rows of the per-token statistics of a head: the tokens, rounded up to whole tiles.
    pub fn padded_tokens(self) -> u64 {
        self.tokens.next_multiple_of(64)
    }

    /// Elements of lse or delta.
    pub fn statistics(self) -> u64 {
        self.sequences * self.heads() * self.padded_tokens()
    }

    /// Elements of [`QuerySums::sums`](super::attention_backward::QuerySums).
    pub fn query_sums(self) -> u64 {
        self.statistics() * HEAD_DIM
    }

    /// Elements of [`QuerySums::turns`](super::attention_backward::QuerySums).
    pub fn query_turns(self) -> u64 {
        self.statistics() / 32 + self.sequences * self.kv_heads
    }

    /// Score elements that the mask leaves, over all heads.
    pub(super) fn scores(self) -> u64 {
        self.sequences * self.heads() * (self.tokens * (self.tokens + 1) / 2)
    }

    pub(super) fn check(self, checks: Checks) -> Result<[i32; 2]> {
        checks.limit(
            self.tokens > 0
                && self.heads() > 0
                && self.sequences > 0
                && self.sequences < 65536
                && self.heads() < 65536,
            || format!("{self:?} is empty or too large"),
        )?;
        Ok([
            checks.int("T", self.tokens)?,
            checks.int("Tp", self.padded_tokens())?,
        ])
    }

    /// Query heads that share a CTA: two of a group where it is even, else one with twice the rows.
    pub(super) fn heads_per_cta(self) -> u64 {
        if self.group.is_multiple_of(2) { 2 } else { 1 }
    }

    /// `columns` columns of a `[B, T, pitch]` tensor from column `start` on.
    pub(super) fn part(self, tensor: DevPtr, pitch: u64, start: u64, columns: u64) -> Matrix {
        Matrix {
            pointer: tensor.offset(2 * start),
            rows: self.tokens,
            columns,
            pitch,
            batches: self.sequences,
            batch_stride: self.tokens * pitch,
        }
    }

    /// Maps of q, k and v of one `[B, T, C]` tensor; `kv_rows` rows per box of k and v.
    pub(super) fn qkv_maps(
        self,
        checks: Checks,
        names: [&str; 3],
        tensor: DevPtr,
        kv_rows: u32,
    ) -> Result<[TensorMap; 3]> {
        let (pitch, q, kv) = (
            self.columns(),
            self.heads() * HEAD_DIM,
            self.kv_heads * HEAD_DIM,
        );
        Ok([
            self.part(tensor, pitch, 0, q).map(checks, names[0], 64)?,
            self.part(tensor, pitch, q, kv)
                .map(checks, names[1], kv_rows)?,
            self.part(tensor, pitch, q + kv, kv)
                .map(checks, names[2], kv_rows)?,
        ])
    }
}

impl Kernels {
    /// Causal attention: `qkv [B, T, C]` bf16 to `out [B, T, H 64]` bf16 and `lse [B, H, Tp]` f32.
    pub fn attention_forward(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        qkv: DevPtr,
        out: DevPtr,
        lse: DevPtr,
    ) -> Result<Work> {
        self.attention_forward_from(stream, shape, 0, qkv, out, lse)
    }

    /// The same for the rows from `first` on, with all keys before them: the window of a long context that is scored. Rows of the tile
    /// that `first` lies in may be written too, the rows before it are not touched.
    pub fn attention_forward_from(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        first: u64,
        qkv: DevPtr,
        out: DevPtr,
        lse: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("attention_forward_causal_d64");
        let [tokens, padded] = shape.check(checks)?;
        checks.limit(first < shape.tokens, || {
            format!("rows from {first} on of {} tokens", shape.tokens)
        })?;
        let [q, k, v] = shape.qkv_maps(checks, ["q", "k", "v"], qkv, 128)?;
        let width = shape.heads() * HEAD_DIM;
        let out_map = shape.part(out, width, 0, width).map(checks, "out", 64)?;
        checks.array("lse", lse, 4, &[shape.statistics()])?;
        let (group, heads) = (shape.group as i32, shape.heads_per_cta());
        let (heads_per_cta, first_row) = (heads as i32, checks.int("first", first)?);
        let tile = 128 / heads;
        self.launch(
            stream,
            checks.0,
            [
                (shape.tokens.div_ceil(tile) - first / tile) as u32,
                (shape.heads() / heads) as u32,
                shape.sequences as u32,
            ],
            384,
            SHARED,
            &[
                &q,
                &k,
                &v,
                &out_map,
                &lse,
                &tokens,
                &padded,
                &group,
                &heads_per_cta,
                &first_row,
            ],
        )?;
        let skipped = AttentionShape {
            tokens: first,
            ..shape
        };
        let rows = shape.sequences * shape.tokens;
        let queries = shape.sequences * (shape.tokens - first);
        Ok(Work {
            flops: 4 * HEAD_DIM * (shape.scores() - skipped.scores()),
            bytes: 2 * (rows * 2 * shape.kv_heads * HEAD_DIM + 2 * queries * width)
                + 4 * queries * shape.heads(),
        })
    }
}

//! Twin of `cuda/attention_forward.cu`: attention, with XSA and the per-head gate on its output.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Matrix, Work, address, with_alignment};
use crate::driver::tensor_map::TensorMap;

/// 128 rows of Q, four stages of K and V, V of the diagonal (`ForwardShared`).
pub const SHARED: u32 = with_alignment(2 * 8192 + 4 * 2 * 16384 + 16384 + 13 * 8);

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

    /// Elements of [`AttentionGradient::gain_sums`](super::attention_backward::AttentionGradient).
    pub fn gain_sums(self) -> u64 {
        self.statistics() / 32
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

/// Logits of the per-head gate: what the QKV product has behind q, k and v, [`gate_columns`] of them.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// bf16, rows of `stride` elements.
    pub logits: DevPtr,
    pub stride: u64,
    /// f32 `[H]`.
    pub bias: DevPtr,
}

/// Columns of the QKV product that are the gate's: one for each head, rounded up to 16.
pub fn gate_columns(shape: AttentionShape) -> u64 {
    shape.heads().next_multiple_of(16)
}

impl Gate {
    /// Address of the first logit, stride and bias as a kernel takes them; zeros without a gate.
    pub(super) fn parameters(
        gate: Option<Self>,
        checks: Checks,
        shape: AttentionShape,
    ) -> Result<(u64, i32, u64)> {
        let Some(gate) = gate else {
            return Ok((0, 0, 0));
        };
        let columns = gate_columns(shape);
        checks.limit(gate.stride >= columns, || {
            format!(
                "rows of {} gate logits, {columns} needed for {} heads",
                gate.stride,
                shape.heads()
            )
        })?;
        let rows = shape.sequences * shape.tokens;
        let reach = (rows - 1) * gate.stride + columns;
        checks.array("gate_logits", gate.logits, 2, &[reach])?;
        checks.list("gate_bias", gate.bias, 4, &[shape.heads()])?;
        let stride = checks.int("gate_stride", gate.stride)?;
        Ok((gate.logits.address, stride, gate.bias.address))
    }
}

/// Operands of [`Kernels::attention_forward`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionForward {
    pub shape: AttentionShape,
    /// Rows from here on, with all keys before them: 0 for all, else the window of a long context that is scored. Rows of the tile that
    /// it lies in may be written too, the rows before that are not touched.
    pub first: u64,
    /// bf16 `[B, T, C]`.
    pub qkv: DevPtr,
    /// bf16 `[B, T, H 64]`.
    pub out: DevPtr,
    /// f32 `[B, H, Tp]`.
    pub lse: DevPtr,
    /// With XSA: the output's component along each token's own value, f32 `[B, H, Tp]`.
    pub along: Option<DevPtr>,
    pub gate: Option<Gate>,
}

impl Kernels {
    /// Causal attention, then XSA, then the gate.
    pub fn attention_forward(&self, stream: &Stream, f: &AttentionForward) -> Result<Work> {
        let checks = Checks("attention_forward_causal_d64");
        let AttentionForward { shape, first, .. } = *f;
        let [tokens, padded] = shape.check(checks)?;
        checks.limit(first < shape.tokens, || {
            format!("rows from {first} on of {} tokens", shape.tokens)
        })?;
        let [q, k, v] = shape.qkv_maps(checks, ["q", "k", "v"], f.qkv, 128)?;
        let width = shape.heads() * HEAD_DIM;
        let out_map = shape.part(f.out, width, 0, width).map(checks, "out", 64)?;
        checks.array("lse", f.lse, 4, &[shape.statistics()])?;
        checks.optional("along", f.along, 4, &[shape.statistics()])?;
        let along = address(f.along);
        let (logits, gate_stride, bias) = Gate::parameters(f.gate, checks, shape)?;
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
                &f.lse,
                &along,
                &logits,
                &gate_stride,
                &bias,
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
        let statistics = 1 + u64::from(f.along.is_some());
        self.done(Work {
            flops: 4 * HEAD_DIM * (shape.scores() - skipped.scores()),
            bytes: 2 * (rows * 2 * shape.kv_heads * HEAD_DIM + 2 * queries * width)
                + 4 * statistics * queries * shape.heads(),
        })
    }
}

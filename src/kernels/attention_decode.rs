//! Twin of `cuda/attention_decode.cu`: attention of one new token per sequence against a cache.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, Gate, HEAD_DIM};
use super::{Checks, DevPtr, Kernels, Work};

/// Operands of [`Kernels::attention_decode`]. `shape.tokens` is what the cache has room for.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDecode {
    pub shape: AttentionShape,
    /// bf16, one row of `q_stride` elements per sequence, from its first query column on.
    pub q: DevPtr,
    pub q_stride: u64,
    /// bf16, first key and first value column; rows of `kv_stride` elements, sequences `kv_sequence` elements apart.
    pub k: DevPtr,
    pub v: DevPtr,
    pub kv_stride: u64,
    pub kv_sequence: u64,
    /// i32 `[B]`: keys of each sequence, 1 to `shape.tokens`. In device memory, so that a captured launch serves every step.
    pub lengths: DevPtr,
    /// f32, [`decode_scratch`] elements.
    pub scratch: DevPtr,
    /// The new token's value is the last one of its sequence.
    pub xsa: bool,
    /// One row of logits per sequence.
    pub gate: Option<Gate>,
    /// bf16, one row of `out_stride` elements per sequence.
    pub out: DevPtr,
    pub out_stride: u64,
}

/// Operands of [`Kernels::attention_decode_append`].
#[derive(Clone, Copy, Debug)]
pub struct NewKeys {
    /// `tokens` is what the cache has room for.
    pub shape: AttentionShape,
    /// bf16, keys and values of the new tokens: one row of `stride` elements per sequence.
    pub keys_values: DevPtr,
    pub stride: u64,
    /// i32 `[B]`, the new token counted.
    pub lengths: DevPtr,
    /// bf16 `[B, T, 2 KV 64]`
    pub cache: DevPtr,
}

/// Parts of the context that are worked on at a time. Depends on the cache's length alone: the bits of a sequence are the same on every
/// device and whatever else is decoded with it.
fn splits(shape: AttentionShape) -> u64 {
    shape.tokens.div_ceil(256).max(1)
}

/// Elements of [`AttentionDecode::scratch`].
pub fn decode_scratch(shape: AttentionShape) -> u64 {
    shape.sequences * shape.heads() * splits(shape) * (HEAD_DIM + 2)
}

impl Kernels {
    /// The new token's attention; its key and value are already in the cache.
    pub fn attention_decode(&self, stream: &Stream, d: &AttentionDecode) -> Result<Work> {
        let checks = Checks("attention_decode_d64");
        let shape = d.shape;
        shape.check(checks)?;
        let (sequences, heads, splits) = (shape.sequences, shape.heads(), splits(shape));
        let (width, kv_width) = (heads * HEAD_DIM, shape.kv_heads * HEAD_DIM);
        checks.limit(
            [d.q_stride, d.kv_stride, d.kv_sequence]
                .iter()
                .all(|n| n.is_multiple_of(8))
                && d.q_stride >= width
                && d.out_stride >= width
                && d.out_stride.is_multiple_of(2)
                && d.kv_stride >= kv_width,
            || {
                format!(
                    "rows {}, {} and sequences {} apart: not multiples of 8, or less than {width} and {kv_width}",
                    d.q_stride, d.kv_stride, d.kv_sequence
                )
            },
        )?;
        checks.array("q", d.q, 2, &[(sequences - 1) * d.q_stride + width])?;
        let cached = (sequences - 1) * d.kv_sequence + (shape.tokens - 1) * d.kv_stride + kv_width;
        checks.array("k", d.k, 2, &[cached])?;
        checks.array("v", d.v, 2, &[cached])?;
        checks.list("lengths", d.lengths, 4, &[sequences])?;
        checks.array("scratch", d.scratch, 4, &[decode_scratch(shape)])?;
        checks.array("out", d.out, 2, &[(sequences - 1) * d.out_stride + width])?;
        let outputs = d.scratch;
        let maxima_sums = d.scratch.offset(4 * sequences * heads * splits * HEAD_DIM);
        let (q_stride, kv_stride) = (
            checks.int("q_stride", d.q_stride)?,
            checks.int("kv_stride", d.kv_stride)?,
        );
        let (group, parts) = (shape.group as i32, splits as i32);
        let one = AttentionShape { tokens: 1, ..shape };
        let (logits, gate_stride, bias) = Gate::parameters(d.gate, checks, one)?;
        let (xsa, out_stride) = (i32::from(d.xsa), checks.int("out_stride", d.out_stride)?);
        let grid = [splits as u32, heads as u32, sequences as u32];
        self.launch(
            stream,
            checks.0,
            grid,
            128,
            0,
            &[
                &d.q,
                &q_stride,
                &d.k,
                &d.v,
                &kv_stride,
                &d.kv_sequence,
                &d.lengths,
                &maxima_sums,
                &outputs,
                &group,
            ],
        )?;
        self.launch(
            stream,
            "attention_decode_combine_d64",
            [heads as u32, sequences as u32, 1],
            32,
            0,
            &[
                &maxima_sums,
                &outputs,
                &parts,
                &d.v,
                &kv_stride,
                &d.kv_sequence,
                &d.lengths,
                &xsa,
                &logits,
                &gate_stride,
                &bias,
                &d.out,
                &out_stride,
                &group,
            ],
        )?;
        self.done(Work {
            flops: 4 * HEAD_DIM * sequences * heads * shape.tokens,
            bytes: 4 * sequences * (shape.tokens * kv_width + width),
        })
    }

    /// Puts the new tokens' keys and values behind those of their sequences.
    pub fn attention_decode_append(&self, stream: &Stream, n: &NewKeys) -> Result<Work> {
        let checks = Checks("attention_decode_append_d64");
        let shape = n.shape;
        shape.check(checks)?;
        let columns = 2 * shape.kv_heads * HEAD_DIM;
        checks.limit(n.stride >= columns && n.stride.is_multiple_of(8), || {
            format!(
                "rows {} apart: not a multiple of 8, or less than {columns}",
                n.stride
            )
        })?;
        let rows = (shape.sequences - 1) * n.stride + columns;
        checks.array("new_kv", n.keys_values, 2, &[rows])?;
        checks.list("lengths", n.lengths, 4, &[shape.sequences])?;
        let sequence = shape.tokens * columns;
        checks.array("cache", n.cache, 2, &[shape.sequences * sequence])?;
        let (stride, kv_stride) = (
            checks.int("new_stride", n.stride)?,
            checks.int("columns", columns)?,
        );
        self.launch(
            stream,
            checks.0,
            [shape.sequences as u32, 1, 1],
            128,
            0,
            &[
                &n.keys_values,
                &stride,
                &n.lengths,
                &n.cache,
                &kv_stride,
                &sequence,
                &kv_stride,
            ],
        )?;
        self.done(Work {
            flops: 0,
            bytes: 4 * shape.sequences * columns,
        })
    }
}

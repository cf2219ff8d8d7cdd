//! Twin of `cuda/qkv.cu`: between the QKV product and attention, backwards. The way forward is in [`super::gemm_qkv`].

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, HEAD_DIM};
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, MOST_HEADS, Work, address, head_grid};

/// How a layer's value is mixed with layer 0's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueMix {
    None,
    /// `(1 - g) v + g v_first`, g the sigmoid of one parameter.
    Gate {
        parameter: DevPtr,
    },
    /// `l0 v_first + l1 v`, two parameters.
    Lambda {
        parameters: DevPtr,
    },
}

impl ValueMix {
    fn mode(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Gate { .. } => 1,
            Self::Lambda { .. } => 2,
        }
    }

    fn parameters(self, checks: Checks) -> Result<u64> {
        let (pointer, count) = match self {
            Self::None => return Ok(0),
            Self::Gate { parameter } => (parameter, 1),
            Self::Lambda { parameters } => (parameters, 2),
        };
        checks.list("mix", pointer, 4, &[count])?;
        Ok(pointer.address)
    }
}

/// The value embedding of a layer that has one.
#[derive(Clone, Copy, Debug)]
pub struct ValueEmbedding {
    /// u16 per row.
    pub ids: DevPtr,
    /// Projected table, bf16 `[V, KV 64]`.
    pub table: DevPtr,
    pub vocabulary: u64,
    /// The layer's scale, one f32.
    pub scale: DevPtr,
}

/// Layer 0's raw value: rows of `stride` elements, from the first value column on.
#[derive(Clone, Copy, Debug)]
pub struct FirstValue {
    pub pointer: DevPtr,
    pub stride: u64,
}

/// What the forward writes and the backward reads, and what both read.
#[derive(Clone, Copy, Debug)]
pub struct QkvOperands {
    pub shape: AttentionShape,
    /// Attention's input, bf16 `[N, C]`.
    pub ready: DevPtr,
    /// What normed the heads of q and k, f32 `[N, inverse_rms_pitch]`: row factor / rms.
    pub inverse_rms: DevPtr,
    /// The value before embedding and mix, bf16 `[N, KV 64]`; needed with a mix.
    pub v_raw: Option<DevPtr>,
    /// f32 `[H]`.
    pub q_gain: DevPtr,
    /// f32 `[T, rope_dims]`, see [`rope_table`].
    pub rope: DevPtr,
    /// Channels of a head that are rotated, even.
    pub rope_dims: u64,
    pub value_embedding: Option<ValueEmbedding>,
    pub mix: ValueMix,
    /// Needed with a mix.
    pub v_first: Option<FirstValue>,
}

/// Elements of a row of [`QkvOperands::inverse_rms`]: four heads are read and written at once.
pub fn inverse_rms_pitch(heads: u64, kv_heads: u64) -> u64 {
    (heads + kv_heads).next_multiple_of(4)
}

/// What a layer does with the gradient of layer 0's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRole {
    None,
    /// Writes its share: the first layer of the backward pass that mixes.
    Write,
    /// Adds its share.
    Add,
    /// Is layer 0: adds what the others left to its own gradient.
    Take,
}

/// Operands of the backward kernel beyond [`QkvOperands`].
#[derive(Clone, Copy, Debug)]
pub struct QkvGradients {
    /// Gradient of attention's input, bf16 `[N, C]`.
    pub dout: DevPtr,
    /// Further gradient of v, bf16 `[N, KV 64]` (from XSA).
    pub dv_extra: Option<DevPtr>,
    /// Gradient of the raw projection, bf16 `[N, stride]`, its rows times `scale`; its gate columns are left alone.
    pub dqkv: DevPtr,
    pub stride: u64,
    /// What the rows of the projection were multiplied by.
    pub scale: Option<RowScale>,
    /// bf16 `[N, KV 64]`; needed for every role but `None`.
    pub dv_first: Option<DevPtr>,
    pub role: FirstRole,
    /// Gets the gradient of the projection's v without `scale`, bf16 `[N, KV 64]`: what a value embedding is summed from.
    pub dv: Option<DevPtr>,
    /// f32 `[qkv_partials, H + 2]`.
    pub partial: DevPtr,
}

/// Rows of the partial sums of [`Kernels::qkv_backward`].
pub fn qkv_partials(shape: AttentionShape) -> u32 {
    let heads = shape.heads() + 2 * shape.kv_heads;
    head_grid(shape.sequences * shape.tokens * heads, heads)
}

/// Rotary table `[tokens, dims]`: the cosines, then the sines of `t base^(-2i/dims)`. As published, the angle is a product of f32s.
pub fn rope_table(tokens: u64, base: f64, dims: u64) -> Vec<f32> {
    let frequencies: Vec<f32> = (0..dims / 2)
        .map(|i| (1.0 / base.powf(2.0 * i as f64 / dims as f64)) as f32)
        .collect();
    let row = |t: u64| {
        let angles = frequencies.iter().map(move |f| f64::from(t as f32 * f));
        let cosines = angles.clone().map(|a| a.cos() as f32);
        cosines.chain(angles.map(|a| a.sin() as f32))
    };
    (0..tokens).flat_map(row).collect()
}

/// Addresses and sizes as both kernels take them.
pub(super) struct Common {
    pub pairs: i32,
    pub v_raw: u64,
    pub ids: u64,
    pub table: u64,
    pub scale: u64,
    pub first: u64,
    pub first_stride: i32,
    pub mix: u64,
    pub mode: i32,
    pub tokens: i32,
    pub heads: i32,
    pub kv_heads: i32,
}

impl QkvOperands {
    pub(super) fn rows(&self) -> u64 {
        self.shape.sequences * self.shape.tokens
    }

    pub(super) fn common(&self, checks: Checks) -> Result<Common> {
        let shape = self.shape;
        let (rows, kv_width) = (self.rows(), shape.kv_heads * HEAD_DIM);
        check_heads(checks, shape)?;
        checks.array("ready", self.ready, 2, &[rows, shape.columns()])?;
        let pitch = inverse_rms_pitch(shape.heads(), shape.kv_heads);
        checks.array("inverse_rms", self.inverse_rms, 4, &[rows, pitch])?;
        checks.optional("v_raw", self.v_raw, 2, &[rows, kv_width])?;
        checks.list("q_gain", self.q_gain, 4, &[shape.heads()])?;
        checks.limit(
            (2..=HEAD_DIM).contains(&self.rope_dims) && self.rope_dims.is_multiple_of(2),
            || {
                format!(
                    "{} channels of a head of {HEAD_DIM} are rotated",
                    self.rope_dims
                )
            },
        )?;
        // Rows of the published 16 are read 16 bytes at a time.
        if self.rope_dims == 16 {
            checks.array("rope", self.rope, 4, &[shape.tokens, 16])?;
        } else {
            checks.list("rope", self.rope, 4, &[shape.tokens, self.rope_dims])?;
        }
        if let Some(e) = self.value_embedding {
            checks.list("ids", e.ids, 2, &[rows])?;
            checks.array("ve_table", e.table, 2, &[e.vocabulary, kv_width])?;
            checks.list("ve_scale", e.scale, 4, &[1])?;
        }
        let mixes = self.mix != ValueMix::None;
        checks.limit(
            !mixes || (self.v_first.is_some() && self.v_raw.is_some()),
            || "a value mix without v_first or v_raw".into(),
        )?;
        let first = self.v_first.filter(|_| mixes);
        if let Some(first) = first {
            checks.limit(
                first.stride >= kv_width && first.stride.is_multiple_of(8),
                || format!("rows of v_first are {} elements apart", first.stride),
            )?;
            let elements = (rows - 1) * first.stride + kv_width;
            checks.array("v_first", first.pointer, 2, &[elements])?;
        }
        let embedding = self.value_embedding;
        Ok(Common {
            pairs: self.rope_dims as i32 / 2,
            v_raw: address(self.v_raw),
            ids: address(embedding.map(|e| e.ids)),
            table: address(embedding.map(|e| e.table)),
            scale: address(embedding.map(|e| e.scale)),
            first: address(first.map(|f| f.pointer)),
            first_stride: checks.int("v_first_stride", first.map_or(0, |f| f.stride))?,
            mix: self.mix.parameters(checks)?,
            mode: self.mix.mode(),
            tokens: checks.int("T", shape.tokens)?,
            heads: shape.heads() as i32,
            kv_heads: shape.kv_heads as i32,
        })
    }
}

/// The kernels that give eight lanes to each head.
pub(super) fn check_heads(checks: Checks, shape: AttentionShape) -> Result<()> {
    let heads = shape.heads();
    checks.limit(
        (1..=MOST_HEADS).contains(&heads) && shape.tokens > 0 && shape.sequences > 0,
        || format!("H = {heads} is not between 1 and {MOST_HEADS}, or the batch is empty"),
    )
}

impl Kernels {
    /// Gradient of [`Kernels::gemm_qkv`] down to the raw projection; the parameters' sums are finished by [`Kernels::qkv_backward_finish`].
    pub fn qkv_backward(
        &self,
        stream: &Stream,
        operands: &QkvOperands,
        g: &QkvGradients,
    ) -> Result<Work> {
        let checks = Checks("qkv_backward");
        let c = operands.common(checks)?;
        let (shape, rows) = (operands.shape, operands.rows());
        let (rows_int, stride) = (checks.int("N", rows)?, checks.int("S", g.stride)?);
        let (columns, kv_width) = (shape.columns(), shape.kv_heads * HEAD_DIM);
        let grid = qkv_partials(shape);
        checks.array("dout", g.dout, 2, &[rows, columns])?;
        checks.optional("dv_extra", g.dv_extra, 2, &[rows, kv_width])?;
        checks.limit(g.stride >= columns && g.stride.is_multiple_of(8), || {
            format!(
                "rows of dqkv have {} columns, {columns} needed, in multiples of 8",
                g.stride
            )
        })?;
        checks.array("dqkv", g.dqkv, 2, &[rows, g.stride])?;
        checks.optional("dv_first", g.dv_first, 2, &[rows, kv_width])?;
        checks.optional("dv", g.dv, 2, &[rows, kv_width])?;
        checks.array(
            "partial",
            g.partial,
            4,
            &[u64::from(grid), shape.heads() + 2],
        )?;
        let mixes = operands.mix != ValueMix::None;
        let fits = match g.role {
            FirstRole::None | FirstRole::Take => !mixes,
            FirstRole::Write | FirstRole::Add => mixes,
        };
        checks.limit(
            fits && (g.role == FirstRole::None || g.dv_first.is_some()),
            || {
                format!(
                    "role {:?} with {:?} and dv_first {:?}",
                    g.role, operands.mix, g.dv_first
                )
            },
        )?;
        let role = match g.role {
            FirstRole::None => 0i32,
            FirstRole::Write => 1,
            FirstRole::Add => 2,
            FirstRole::Take => 3,
        };
        let (extra, first) = (address(g.dv_extra), address(g.dv_first));
        let dv = address(g.dv);
        let scale = RowScale::parameter(g.scale, checks, rows)?;
        self.launch(
            stream,
            checks.0,
            [grid, 1, 1],
            256,
            0,
            &[
                &g.dout,
                &extra,
                &operands.ready,
                &operands.inverse_rms,
                &c.v_raw,
                &g.dqkv,
                &stride,
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
                &first,
                &role,
                &dv,
                &g.partial,
                &scale,
                &rows_int,
                &c.tokens,
                &c.heads,
                &c.kv_heads,
            ],
        )?;
        // dout and dqkv, and the result of the forward without its values.
        self.done(Work {
            flops: 14 * rows * columns,
            bytes: 2 * rows * (3 * columns - kv_width),
        })
    }

    /// Adds the partial sums up: gradients of q_gain (f32 `[H]`) and of the mix's parameters.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn qkv_backward_finish(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        partial: DevPtr,
        q_gain_grad: DevPtr,
        mix: ValueMix,
        mix_grad: Option<DevPtr>,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("qkv_backward_finish");
        check_heads(checks, shape)?;
        let (count, heads) = (qkv_partials(shape) as i32, shape.heads() as i32);
        checks.array("partial", partial, 4, &[count as u64, shape.heads() + 2])?;
        checks.list("q_gain_grad", q_gain_grad, 4, &[shape.heads()])?;
        if mix != ValueMix::None {
            let Some(grad) = mix_grad else {
                anyhow::bail!("kernel {}: {mix:?} without mix_grad", checks.0)
            };
            checks.list("mix_grad", grad, 4, &[mix.mode() as u64])?;
        }
        let (parameters, mode) = (mix.parameters(checks)?, mix.mode());
        let (grad, accumulate) = (address(mix_grad), i32::from(accumulate));
        self.launch(
            stream,
            checks.0,
            [1, 1, 1],
            128,
            0,
            &[
                &partial,
                &count,
                &heads,
                &q_gain_grad,
                &parameters,
                &mode,
                &grad,
                &accumulate,
            ],
        )?;
        self.done(Work {
            flops: count as u64 * (shape.heads() + 2),
            bytes: 4 * count as u64 * (shape.heads() + 2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_table_is_cosines_then_sines() {
        let table = rope_table(3, 10_000.0, 16);
        assert_eq!(table.len(), 48);
        assert_eq!((table[0], table[8]), (1.0, 0.0));
        assert!((table[32] - 2f32.cos()).abs() < 1e-6 && (table[40] - 2f32.sin()).abs() < 1e-6);
        assert_eq!(rope_table(5, 10_000.0, 2).len(), 10);
    }
}

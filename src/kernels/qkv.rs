//! Twin of `cuda/qkv.cu`: between the QKV product and attention, backwards, as far as [`super::attention_backward`] does not go that way.
//! The way forward is in [`super::gemm_qkv`].

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::{AttentionShape, HEAD_DIM};
use super::row_scale::RowScale;
use super::{Checks, DevPtr, Kernels, MOST_HEADS, Work, address, flat_grid};

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

/// Operands of [`Kernels::value_backward`] beyond [`QkvOperands`].
#[derive(Clone, Copy, Debug)]
pub struct ValueGradients {
    /// Gradient of attention's v, bf16 `[N, KV 64]`; becomes that of the projection's v without `scale`.
    pub dv: DevPtr,
    /// Gradient of the raw projection, bf16 `[N, stride]`, its rows times `scale`: the columns of v are written.
    pub dqkv: DevPtr,
    pub stride: u64,
    /// What the rows of the projection were multiplied by.
    pub scale: Option<RowScale>,
    /// bf16 `[N, KV 64]`; needed for every role but `None`.
    pub dv_first: Option<DevPtr>,
    pub role: FirstRole,
    /// f32 `[value_partials, 2]`.
    pub partial: DevPtr,
}

/// Rows of the partial sums of [`Kernels::value_backward`].
pub fn value_partials(shape: AttentionShape) -> u32 {
    flat_grid(shape.sequences * shape.tokens * shape.kv_heads * HEAD_DIM)
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
    /// Gradient of the value mix of [`Kernels::gemm_qkv`] down to the raw projection; the parameters' sums are finished by
    /// [`Kernels::value_backward_finish`].
    pub fn value_backward(
        &self,
        stream: &Stream,
        operands: &QkvOperands,
        g: &ValueGradients,
    ) -> Result<Work> {
        let checks = Checks("value_backward");
        let c = operands.common(checks)?;
        let (shape, rows) = (operands.shape, operands.rows());
        let (rows_int, stride) = (checks.int("N", rows)?, checks.int("S", g.stride)?);
        let (columns, kv_width) = (shape.columns(), shape.kv_heads * HEAD_DIM);
        let grid = value_partials(shape);
        checks.array("dv", g.dv, 2, &[rows, kv_width])?;
        checks.limit(g.stride >= columns && g.stride.is_multiple_of(8), || {
            format!(
                "rows of dqkv have {} columns, {columns} needed, in multiples of 8",
                g.stride
            )
        })?;
        checks.array("dqkv", g.dqkv, 2, &[rows, g.stride])?;
        checks.optional("dv_first", g.dv_first, 2, &[rows, kv_width])?;
        checks.array("partial", g.partial, 4, &[u64::from(grid), 2])?;
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
        let first = address(g.dv_first);
        let values = g.dqkv.offset(2 * (columns - kv_width));
        let scale = RowScale::parameter(g.scale, checks, rows)?;
        self.launch(
            stream,
            checks.0,
            [grid, 1, 1],
            256,
            0,
            &[
                &g.dv,
                &c.v_raw,
                &values,
                &stride,
                &c.ids,
                &c.table,
                &c.scale,
                &c.first,
                &c.first_stride,
                &c.mix,
                &c.mode,
                &first,
                &role,
                &g.partial,
                &scale,
                &rows_int,
                &c.kv_heads,
            ],
        )?;
        // dv twice and dqkv; v_raw and v_first with a mix; dv_first.
        let tensors = 3
            + 2 * u64::from(mixes)
            + match g.role {
                FirstRole::None => 0,
                FirstRole::Write | FirstRole::Take => 1,
                FirstRole::Add => 2,
            };
        self.done(Work {
            flops: 8 * rows * kv_width,
            bytes: 2 * rows * tensors * kv_width,
        })
    }

    /// Adds the partial sums of [`Kernels::value_backward`] up: the gradient of the mix's parameters.
    pub fn value_backward_finish(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        partial: DevPtr,
        mix: ValueMix,
        mix_grad: DevPtr,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("value_backward_finish");
        check_heads(checks, shape)?;
        let count = value_partials(shape) as i32;
        checks.array("partial", partial, 4, &[count as u64, 2])?;
        checks.limit(mix != ValueMix::None, || "no mix has no gradient".into())?;
        checks.list("mix_grad", mix_grad, 4, &[mix.mode() as u64])?;
        let (parameters, mode) = (mix.parameters(checks)?, mix.mode());
        let accumulate = i32::from(accumulate);
        self.launch(
            stream,
            checks.0,
            [1, 1, 1],
            32,
            0,
            &[&partial, &count, &parameters, &mode, &mix_grad, &accumulate],
        )?;
        self.done(Work {
            flops: 2 * count as u64,
            bytes: 8 * count as u64,
        })
    }

    /// The gradient of the queries' gains, f32 `[H]`, from what [`Kernels::attention_backward`] leaves, f32 `[B, H, Tp / 32]`.
    pub fn q_gain_gradient(
        &self,
        stream: &Stream,
        shape: AttentionShape,
        gain_sums: DevPtr,
        q_gain_grad: DevPtr,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("q_gain_gradient");
        check_heads(checks, shape)?;
        checks.array("gain_sums", gain_sums, 4, &[shape.gain_sums()])?;
        checks.list("q_gain_grad", q_gain_grad, 4, &[shape.heads()])?;
        let parts = checks.int("Tp / 32", shape.padded_tokens() / 32)?;
        let (sequences, accumulate) = (checks.int("B", shape.sequences)?, i32::from(accumulate));
        self.launch(
            stream,
            checks.0,
            [shape.heads() as u32, 1, 1],
            256,
            0,
            &[&gain_sums, &parts, &sequences, &q_gain_grad, &accumulate],
        )?;
        self.done(Work {
            flops: shape.gain_sums(),
            bytes: 4 * shape.gain_sums(),
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

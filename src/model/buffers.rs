//! Everything on the device that is not a parameter or its state: bf16 weights, activations, workspace, what the host exchanges.
//!
//! Letters as in `cuda/README.md`: `N` tokens of a micro-step, `d` model width, `C` columns of q | k | v, `S` columns of the raw
//! projection, `F` MLP width, `V` vocabulary.

use super::config::{Before, Config, FakeQuantize, HEAD_DIM};
use crate::arena::{Element, Plan, Region, Tensor};
use crate::kernels::head_loss;
use crate::kernels::qkv::inverse_rms_pitch;
use crate::kernels::row_scale::square_parts;

/// Sequences and their length: the shape of one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Batch {
    pub sequences: usize,
    pub seq_len: usize,
}

impl Batch {
    pub fn tokens(self) -> usize {
        self.sequences * self.seq_len
    }

    /// Rows of the per-token statistics of one attention head over all sequences.
    pub fn padded_tokens(self) -> usize {
        self.sequences * self.seq_len.next_multiple_of(64)
    }
}

/// Logits have rows of this many elements.
pub fn logit_pitch(vocab: usize) -> usize {
    head_loss::logit_pitch(vocab as u64) as usize
}

/// bf16 copies of the weights as the products read them, with fake quantization and per-channel scales applied.
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[L, S, d]`: rows of q, k, v and of the gate logits; padding rows stay zero.
    pub qkv: Tensor,
    /// `[L, d, d]`, times `attn_scale`.
    pub attn_out: Tensor,
    /// `[L, F, d]`
    pub up: Tensor,
    /// `[L, d, F]`, times `mlp_scale`.
    pub down: Tensor,
    /// f32 tables rounded to bf16, where tables are stored in f32.
    pub bf16_tables: Option<Tensor>,
    pub bigram: Option<Projected>,
    pub value_embedding: Option<Projected>,
    /// The output projections of all layers after fake quantization but without their scale, f32: what the gradients of the
    /// scales are made of. Where nothing is fake-quantized the masters serve.
    pub unscaled: Option<Unscaled>,
}

#[derive(Debug, Clone, Copy)]
pub struct Unscaled {
    /// `[L, d, d]`
    pub attn_out: Tensor,
    /// `[L, d, F]`
    pub down: Tensor,
}

/// A table and its projection: tokens gather rows of `table = embed (scale proj)^T`.
#[derive(Debug, Clone, Copy)]
pub struct Projected {
    /// `[width, dim]` times the scale; absent where the table needs no projection.
    pub proj: Option<Tensor>,
    /// The projection without its scale in f32, where it is fake-quantized.
    pub unscaled: Option<Tensor>,
    /// `[rows, width]`
    pub table: Tensor,
    pub rows: usize,
    /// Columns of the stored matrices, with the zeros at the end of their rows.
    pub dim: usize,
    pub width: usize,
}

impl Projected {
    /// The projection as a backward reads it: without fake quantization its master serves.
    pub fn for_backward(self, quantizing: bool) -> Self {
        Self {
            unscaled: self.unscaled.filter(|_| quantizing),
            ..self
        }
    }
}

/// What the backward of one layer pass reads.
#[derive(Debug, Clone, Copy)]
pub struct PassActivations {
    /// The residual stream that enters attention `[N, d]`, and the sums of squares of its rows f32 `[parts, N]`.
    pub x_in: Tensor,
    pub x_in_squares: Tensor,
    /// Of the first pass 1, from a kernel of its own; of later ones as many as the product of the pass before leaves.
    pub x_in_parts: usize,
    /// What attention reads `[N, C]`.
    pub qkv_ready: Tensor,
    /// What normed the heads of q and k f32 `[N, R]`, R a multiple of 4.
    pub inverse_rms: Tensor,
    /// V before embedding and mix `[N, KV 64]`, where it is needed.
    pub v_raw: Option<Tensor>,
    /// Logits of the attention gates `[N, S - C]`.
    pub gates: Option<Tensor>,
    /// `[B, H, Tp]` f32
    pub lse: Tensor,
    /// With XSA: the component of attention's output along the token's own value `[B, H, Tp]` f32.
    pub along: Option<Tensor>,
    /// Attention's output after XSA and gate, the input of the output projection `[N, d]`.
    pub z: Tensor,
    /// The residual stream between attention and MLP `[N, d]`, and the sums of squares of its rows f32 `[parts, N]`.
    pub x1: Tensor,
    pub x1_squares: Tensor,
    /// Before and after the activation `[N, F]`.
    pub pre: Tensor,
    pub activated: Tensor,
    /// The residual stream after the pass `[N, d]`.
    pub out: Tensor,
}

#[derive(Debug, Clone)]
pub struct Activations {
    /// Bucket of each token's pair `[N]` u16.
    pub bigram_index: Option<Tensor>,
    pub x0: Tensor,
    pub passes: Vec<PassActivations>,
    /// Sums of squares of the rows that the head reads, which are the last pass's, f32 `[parts, N]`.
    pub final_squares: Tensor,
    /// `[N, V]` with rows of [`logit_pitch`]; the loss replaces it by its gradient.
    pub logits: Tensor,
}

impl Activations {
    /// The residual stream behind the last pass `[N, d]`.
    pub fn last(&self) -> Tensor {
        self.passes.last().expect("a model has passes").out
    }
}

/// Rows of a key each: what sorts a micro-step's tokens for segmented sums.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    pub counts: Tensor,
    pub starts: Tensor,
    pub order: Tensor,
    pub buckets: usize,
}

/// Gradients of activations, and partial sums.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Gradient of the residual stream `[N, d]`, two to alternate between.
    pub dx: [Tensor; 2],
    pub dx1: Tensor,
    pub dx0: Tensor,
    /// The gradient of z; that of the normalised attention input, times its rows' factor, plus dx1; in turn `[N, d]`.
    pub d_inner: Tensor,
    /// `[N, d]`
    pub dy: Tensor,
    /// `[N, F]`, and sums of its product with the pre-activations by rows f32 `[parts, N]`.
    pub dpre: Tensor,
    pub dots: Tensor,
    /// Sums of the product of dx1 and x1 by rows f32 `[parts, N]`.
    pub residual_dots: Tensor,
    /// `[N, S]`
    pub dqkv: Tensor,
    /// `[B, H, Tp]` f32
    pub delta: Tensor,
    /// Sums of dQ `[B, H, Tp, 64]` f32, and how many have added `[B, H, Tp / 32]` u32. Zero between launches, so of nobody else.
    pub query_sums: Tensor,
    pub query_turns: Tensor,
    /// `[N, KV 64]`: what XSA adds to the gradient of V, V's gradient where more than a projection is made of it, and what passes leave of
    /// it for the first one.
    pub dv_extra: Tensor,
    pub dv: Option<Tensor>,
    pub dv_first: Option<Tensor>,
    /// Sums of the gradients of the queries' gains `[B, H, Tp / 32]` f32.
    pub gain_sums: Tensor,
    /// Gradients of encoder outputs through the skips of later passes than the next, by pass `[N, d]`.
    pub dskip: Vec<Option<Tensor>>,
    /// Partial sums of kernels that reduce over rows, f32.
    pub partial: Tensor,
    /// Splits of a weight gradient, f32.
    pub split: Tensor,
    /// Per-row gradients of the scales of the bigram and the value embedding, f32.
    pub row_sums: [Tensor; 2],
    pub token_segments: Segments,
    pub bigram_segments: Option<Segments>,
    /// f32 `[layers, V, KV 64]`: V's gradient summed by token, per value-embedding layer.
    pub ve_tables: Option<Tensor>,
    /// A bf16 table without projection, widened f32.
    pub wide_table: Option<Tensor>,
    /// Gradient of a projected table, bf16, the largest of them.
    pub dtable: Option<Tensor>,
    /// Partial sums of squares of the gradients, and (coefficient, norm).
    pub squares: Tensor,
    pub clip: Tensor,
}

/// What travels between host and device.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Ids of all micro-steps u16.
    pub tokens: Tensor,
    pub targets: Tensor,
    /// Two places where the next tokens and targets arrive while the present ones are in use.
    pub incoming: [[Tensor; 2]; 2],
    /// One [`crate::kernels::step_values::StepValues`] for each optimizer group: matrices, tables, scalars.
    pub step_values: [Tensor; 3],
    /// Mean loss of the step.
    pub loss: Tensor,
    /// Per-token losses of scoring f32.
    pub token_losses: Tensor,
    /// Cosines and sines for training sequences, and for those being scored `[T, 16]` f32.
    pub rope: Tensor,
    pub score_rope: Tensor,
}

/// Sizes that a plan depends on beyond the model's.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub train: Batch,
    pub micro_steps: usize,
    /// Tokens and statistics rows that one backward may have.
    pub backward_tokens: usize,
    pub backward_padded_tokens: usize,
    /// Tokens and statistics rows that one forward may have.
    pub max_tokens: usize,
    pub max_padded_tokens: usize,
    pub max_seq_len: usize,
    /// f32 of the largest partial sums, and of the largest split weight gradient.
    pub partial: usize,
    pub split: usize,
    pub squares: usize,
    pub segment_chunks: usize,
}

impl Weights {
    pub fn plan(config: &Config, f32_tables: Option<u64>, plan: &mut Plan) -> Self {
        let (layers, d, hidden) = (config.layers, config.dim, config.hidden);
        let quantized = config.fake_quantizes_projections();
        let mut reserve = |name: &str, element, shape: &[usize]| {
            plan.reserve(Region::Weights, name, element, shape)
        };
        let mut projected = |name: &str, rows: usize, [columns, dim]: [usize; 2], width: usize| {
            let has_projection = columns != width;
            let mut part = |kind: &str, element, shape: &[usize]| {
                reserve(&format!("{name} {kind}"), element, shape)
            };
            Projected {
                proj: has_projection.then(|| part("projection", Element::Bf16, &[width, dim])),
                unscaled: (has_projection && quantized)
                    .then(|| part("projection, unscaled", Element::F32, &[width, dim])),
                table: part("table", Element::Bf16, &[rows, width]),
                rows,
                dim,
                width,
            }
        };
        let bigram = config
            .bigram
            .map(|b| projected("bigram", b.buckets, [b.dim, b.pitch()], d));
        let value_embedding = config.value_embedding.as_ref().map(|v| {
            let columns = [v.dim, v.pitch()];
            projected("value embedding", config.vocab, columns, config.kv_dim())
        });
        let unscaled = (config.fake_quantize == FakeQuantize::Linear).then(|| Unscaled {
            attn_out: reserve("attention output, unscaled", Element::F32, &[layers, d, d]),
            down: reserve("mlp down, unscaled", Element::F32, &[layers, d, hidden]),
        });
        let mut reserve = |name: &str, shape: &[usize]| reserve(name, Element::Bf16, shape);
        Self {
            qkv: reserve("qkv", &[layers, config.projected_columns(), d]),
            attn_out: reserve("attention output", &[layers, d, d]),
            up: reserve("mlp up", &[layers, hidden, d]),
            down: reserve("mlp down", &[layers, d, hidden]),
            bf16_tables: f32_tables.map(|elements| reserve("tables", &[elements as usize])),
            bigram,
            value_embedding,
            unscaled,
        }
    }
}

impl Activations {
    pub fn plan(config: &Config, sizes: &Sizes, plan: &mut Plan) -> Self {
        let (n, d) = (sizes.max_tokens, config.dim);
        let mut reserve = |name: String, element, shape: &[usize]| {
            plan.reserve(Region::Activations, name, element, shape)
        };
        let pitch = inverse_rms_pitch(config.heads as u64, config.kv_heads as u64) as usize;
        let gates = config.projected_columns() - config.qkv_columns();
        let mut pass = |index: usize, layer: usize| {
            let mut statistics = |name: &str| {
                let shape = [config.heads, sizes.max_padded_tokens];
                reserve(format!("pass {index}: {name}"), Element::F32, &shape)
            };
            let lse = statistics("log-sum-exp");
            let along = config.xsa[layer].then(|| statistics("along the own value"));
            let mut bf16 = |name: &str, columns: usize| {
                reserve(
                    format!("pass {index}: {name}"),
                    Element::Bf16,
                    &[n, columns],
                )
            };
            let x_in_parts = match index {
                0 => 1,
                _ => square_parts(d as u64) as usize,
            };
            PassActivations {
                x_in_parts,
                x_in: bf16("x into attention", d),
                qkv_ready: bf16("qkv", config.qkv_columns()),
                v_raw: config
                    .keeps_raw_value(index)
                    .then(|| bf16("v before the mix", config.kv_dim())),
                gates: (gates > 0).then(|| bf16("gate logits", gates)),
                z: bf16("attention", d),
                x1: bf16("x after attention", d),
                pre: bf16("mlp before activation", config.hidden),
                activated: bf16("mlp activated", config.hidden),
                out: bf16("x after mlp", d),
                lse,
                along,
                inverse_rms: reserve(
                    format!("pass {index}: 1 / rms of q and k"),
                    Element::F32,
                    &[n, pitch],
                ),
                x_in_squares: reserve(
                    format!("pass {index}: squares into attention"),
                    Element::F32,
                    &[x_in_parts, n],
                ),
                x1_squares: reserve(
                    format!("pass {index}: squares after attention"),
                    Element::F32,
                    &[square_parts(d as u64) as usize, n],
                ),
            }
        };
        let passes = config
            .passes
            .iter()
            .enumerate()
            .map(|(index, p)| pass(index, p.layer))
            .collect();
        Self {
            passes,
            bigram_index: config
                .bigram
                .map(|_| reserve("bigram buckets".into(), Element::U16, &[n])),
            x0: reserve("x0".into(), Element::Bf16, &[n, d]),
            final_squares: reserve(
                "squares into the head".into(),
                Element::F32,
                &[square_parts(d as u64) as usize, n],
            ),
            logits: reserve(
                "logits".into(),
                Element::Bf16,
                &[n, logit_pitch(config.vocab)],
            ),
        }
    }
}

impl Workspace {
    pub fn plan(config: &Config, sizes: &Sizes, plan: &mut Plan) -> Self {
        let (n, d, kv) = (sizes.backward_tokens, config.dim, config.kv_dim());
        let mut reserve = |name: &str, element, shape: &[usize]| {
            plan.reserve(Region::Workspace, name, element, shape)
        };
        let segments = |reserve: &mut dyn FnMut(&str, Element, &[usize]) -> Tensor,
                        name: &str,
                        buckets| Segments {
            counts: reserve(
                &format!("{name} counts"),
                Element::I32,
                &[sizes.segment_chunks, buckets],
            ),
            starts: reserve(&format!("{name} starts"), Element::I32, &[buckets + 1]),
            order: reserve(&format!("{name} order"), Element::I32, &[n]),
            buckets,
        };
        let tables = [
            config.bigram.map(|b| b.buckets * d),
            config.value_embedding.as_ref().map(|_| config.vocab * kv),
        ];
        let row_sums = config
            .bigram
            .map_or(0, |b| b.buckets)
            .max(config.vocab)
            .max(d);
        let wide = config.bigram.is_some_and(|b| b.dim == d)
            || config.value_embedding.as_ref().is_some_and(|v| v.dim == kv);
        let largest_table = tables.into_iter().flatten().max();
        // Where a pass's input is its skip, too, the gradient of the two is one.
        let used_by_skip = |pass: usize| {
            let mut later = config.passes.iter().skip(pass + 2);
            later.any(|p| matches!(p.before, Before::Skip { from, .. } if from == pass))
        };
        Self {
            dx: ["dx, even", "dx, odd"].map(|name| reserve(name, Element::Bf16, &[n, d])),
            dx1: reserve("dx after attention", Element::Bf16, &[n, d]),
            dx0: reserve("dx0", Element::Bf16, &[n, d]),
            d_inner: reserve("d inner", Element::Bf16, &[n, d]),
            dy: reserve("d attention", Element::Bf16, &[n, d]),
            dpre: reserve(
                "d mlp before activation",
                Element::Bf16,
                &[n, config.hidden],
            ),
            dots: reserve(
                "dots of pre-activations and their gradients",
                Element::F32,
                &[square_parts(config.hidden as u64) as usize, n],
            ),
            residual_dots: reserve(
                "dots of the stream and its gradient",
                Element::F32,
                &[square_parts(d as u64) as usize, n],
            ),
            dqkv: reserve("d qkv", Element::Bf16, &[n, config.projected_columns()]),
            delta: reserve(
                "attention delta",
                Element::F32,
                &[config.heads, sizes.backward_padded_tokens],
            ),
            query_sums: reserve(
                "sums of d q",
                Element::F32,
                &[config.heads, sizes.backward_padded_tokens, HEAD_DIM],
            ),
            query_turns: reserve(
                "turns at d q",
                Element::I32,
                // A turn for half a tile of 64 queries; a ticket for each sequence, which has a tile at least.
                &[
                    2 * config.heads + config.kv_heads,
                    sizes.backward_padded_tokens / 64,
                ],
            ),
            dv_extra: reserve("dv of xsa", Element::Bf16, &[n, kv]),
            dv: (config.value_embedding.is_some() || config.passes_on_values())
                .then(|| reserve("dv", Element::Bf16, &[n, kv])),
            dv_first: config
                .passes_on_values()
                .then(|| reserve("dv of the first layer", Element::Bf16, &[n, kv])),
            gain_sums: reserve(
                "sums of d q gain",
                Element::F32,
                &[config.heads, sizes.backward_padded_tokens / 32],
            ),
            dskip: (0..config.passes.len())
                .map(|pass| {
                    used_by_skip(pass)
                        .then(|| reserve(&format!("d skip {pass}"), Element::Bf16, &[n, d]))
                })
                .collect(),
            partial: reserve("partial sums", Element::F32, &[sizes.partial]),
            split: reserve("split weight gradient", Element::F32, &[sizes.split]),
            row_sums: ["bigram scale by row", "value embedding scale by row"]
                .map(|name| reserve(name, Element::F32, &[row_sums])),
            wide_table: wide
                .then(|| reserve("table in f32", Element::F32, &[largest_table.unwrap_or(0)])),
            token_segments: segments(&mut reserve, "token", config.vocab),
            bigram_segments: config
                .bigram
                .map(|b| segments(&mut reserve, "bigram", b.buckets)),
            ve_tables: config.value_embedding.as_ref().map(|v| {
                reserve(
                    "dv by token",
                    Element::F32,
                    &[v.layers.len(), config.vocab, kv],
                )
            }),
            dtable: largest_table.map(|elements| reserve("d table", Element::Bf16, &[elements])),
            squares: reserve("sums of squares", Element::F32, &[sizes.squares]),
            clip: reserve("clip coefficient, norm", Element::F32, &[2]),
        }
    }
}

impl Exchange {
    pub fn plan(config: &Config, sizes: &Sizes, plan: &mut Plan) -> Self {
        let ids = (sizes.train.tokens() * sizes.micro_steps).max(sizes.max_tokens);
        let mut reserve = |name: &str, element, shape: &[usize]| {
            plan.reserve(Region::Exchange, name, element, shape)
        };
        Self {
            tokens: reserve("tokens", Element::U16, &[ids]),
            targets: reserve("targets", Element::U16, &[ids]),
            incoming: [1, 2].map(|slot| {
                ["tokens", "targets"]
                    .map(|what| reserve(&format!("incoming {what} {slot}"), Element::U16, &[ids]))
            }),
            step_values: ["matrices", "tables", "scalars"]
                .map(|group| reserve(&format!("step values, {group}"), Element::U8, &[64])),
            loss: reserve("loss", Element::F32, &[1]),
            token_losses: reserve("token losses", Element::F32, &[sizes.max_tokens]),
            rope: reserve(
                "rotary table",
                Element::F32,
                &[sizes.train.seq_len, config.rope_dims],
            ),
            score_rope: reserve(
                "rotary table, scoring",
                Element::F32,
                &[sizes.max_seq_len, config.rope_dims],
            ),
        }
    }
}

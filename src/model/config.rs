//! The model that a recipe describes: sizes, switches, and the layer passes in order.

use anyhow::Result;

use super::parameters::ROW_STEP;
use crate::failure::Failure;
use crate::kernels::head_loss::MOST_SOFTCAP;
use crate::kernels::{MOST_BUCKETS, MOST_CHANNELS, MOST_VALUE_EMBEDDINGS, MOST_VOCABULARY};
use crate::recipe::{LateQat, Recipe};

/// Sizes and switches, with everything derived from a recipe worked out.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab: usize,
    pub layers: usize,
    /// Width of the residual stream, `d`.
    pub dim: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of the MLP, `F`.
    pub hidden: usize,
    pub softcap: f32,
    pub rope_base: f64,
    pub rope_dims: usize,
    pub rope_train_seq_len: usize,
    pub ln_scale: bool,
    pub bigram: Option<Bigram>,
    /// Per layer: exclusive self-attention.
    pub xsa: Vec<bool>,
    pub value_embedding: Option<ValueEmbedding>,
    pub value_residual: ValueResidual,
    pub gated_attention: bool,
    /// Layer of each recycle modulation.
    pub recycled: Vec<usize>,
    pub passes: Vec<Pass>,
    /// Which weights the fake quantization reaches in steps that ask for it.
    pub fake_quantize: FakeQuantize,
    /// Training steps may ask for it, too, not only test-time training.
    pub fake_quantize_steps: bool,
    /// Bits of its codes.
    pub quant_bits: usize,
    pub initial: Initial,
}

/// Longest sequences: positions and rotary angles stay exact far beyond, memory does not.
const MOST_TOKENS: usize = 65_536;

/// Width of a head; the kernels serve this one.
pub const HEAD_DIM: usize = 64;

/// The hashed embedding of token pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bigram {
    pub buckets: usize,
    pub dim: usize,
}

/// The embedding added to V in some layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueEmbedding {
    pub dim: usize,
    pub layers: Vec<usize>,
}

impl Bigram {
    /// Columns as stored, zeros included.
    pub fn pitch(self) -> usize {
        self.dim.next_multiple_of(ROW_STEP)
    }
}

impl ValueEmbedding {
    /// Columns as stored, zeros included.
    pub fn pitch(&self) -> usize {
        self.dim.next_multiple_of(ROW_STEP)
    }
}

/// Reach of the fake quantization ("late QAT").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FakeQuantize {
    Never,
    /// Every linear layer.
    Linear,
    /// `bigram.proj` and `ve_shared.proj` alone: what the published flag would reach in the banked recipes.
    Projections,
}

/// How later layers mix in the first layer's V.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueResidual {
    Off,
    /// v ← (1 - g) v + g v_first with g = σ(`vrl_gate`); v_first is the raw projection.
    Gate,
    /// v ← λ0 v_first + λ1 v with `vr_lambda`; v_first includes the layer's value embedding.
    Lambda,
}

/// What initial weights depend on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Initial {
    pub seed: u64,
    pub embedding_std: f64,
    pub q_gain: f64,
    /// `bigram.proj` and `ve_shared.proj` times 1 / sqrt(2 L).
    pub scaled_projections: bool,
}

/// One application of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    pub layer: usize,
    pub before: Before,
    /// Index among the value embedding's layers.
    pub value_embedding: Option<usize>,
    /// The output of this pass is kept for a skip connection.
    pub keeps_skip: bool,
}

/// What happens to the residual stream before a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// x ← x + `skip_weights`\[row\] ⊙ (output of the encoder pass `from`).
    Skip {
        row: usize,
        from: usize,
    },
    /// x ← x ⊙ `recycle_mods.{index}.scale` + `.bias`.
    Recycle {
        index: usize,
    },
}

impl Config {
    /// The model of a recipe. What the kernels cannot serve is refused with the reason.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let r = recipe;
        let refuse = |why: String, hint: &str| -> Result<Self> {
            Err(Failure::user(format!("recipe {}", r.name), why, hint).into())
        };
        if r.head_dim != HEAD_DIM || r.num_heads * HEAD_DIM != r.model_dim {
            return refuse(
                format!(
                    "{} heads of {} do not make model_dim = {}",
                    r.num_heads, r.head_dim, r.model_dim
                ),
                "the kernels serve heads of 64: num_heads = model_dim / 64",
            );
        }
        let kernels_serve = [
            (
                r.model_dim as u64 <= MOST_CHANNELS,
                format!("model_dim = {}", r.model_dim),
                "the kernels serve rows of up to 2048 channels",
            ),
            (
                r.vocab_size as u64 <= MOST_VOCABULARY,
                format!("vocab_size = {}", r.vocab_size),
                "the kernels serve up to 4096 tokens",
            ),
            (
                r.train_seq_len <= MOST_TOKENS && r.eval_seq_len <= MOST_TOKENS,
                format!(
                    "train_seq_len = {}, eval_seq_len = {}",
                    r.train_seq_len, r.eval_seq_len
                ),
                "sequences have up to 65536 tokens",
            ),
            (
                r.logit_softcap <= f64::from(MOST_SOFTCAP),
                format!("logit_softcap = {}", r.logit_softcap),
                "the kernels add up exponentials of capped logits as they are: f32 holds those of up to 64",
            ),
            (
                r.muon_backend_steps == 5,
                format!("muon_backend_steps = {}", r.muon_backend_steps),
                "the coefficients are made for 5 steps",
            ),
            (
                r.bigram_vocab_size as u64 <= MOST_BUCKETS,
                format!("bigram_vocab_size = {}", r.bigram_vocab_size),
                "the kernels sort up to 12288 buckets",
            ),
            (
                !r.ve_enabled || r.ve_layers.len() as u64 <= MOST_VALUE_EMBEDDINGS,
                format!("{} ve_layers", r.ve_layers.len()),
                "the kernels sum up to 16 layers",
            ),
            (
                !(r.vrl_enabled && r.recycle_layers.contains(&0)),
                "layer 0 is replayed, but vrl_enabled gives it no gate".into(),
                "replay other layers, or use value_residual",
            ),
        ];
        for (served, why, hint) in kernels_serve {
            if !served {
                return refuse(why, hint);
            }
        }
        let value_embedding = r.ve_enabled.then(|| ValueEmbedding {
            dim: r.ve_dim,
            layers: r.ve_layers.clone(),
        });
        let value_residual = match (r.vrl_enabled, r.value_residual) {
            (true, _) => ValueResidual::Gate,
            (false, true) => ValueResidual::Lambda,
            (false, false) => ValueResidual::Off,
        };
        let mut config = Self {
            vocab: r.vocab_size,
            layers: r.num_layers,
            dim: r.model_dim,
            heads: r.num_heads,
            kv_heads: r.num_kv_heads,
            hidden: r.mlp_width(),
            softcap: r.logit_softcap as f32,
            rope_base: r.rope_base,
            rope_dims: r.rope_dims,
            rope_train_seq_len: r.rope_train_seq_len,
            ln_scale: r.ln_scale,
            bigram: (r.bigram_vocab_size > 0).then_some(Bigram {
                buckets: r.bigram_vocab_size,
                dim: r.bigram_dim,
            }),
            xsa: (0..r.num_layers)
                .map(|layer| layer + r.xsa_last_n >= r.num_layers)
                .collect(),
            value_embedding,
            value_residual,
            gated_attention: r.gated_attention,
            recycled: r.recycle_layers.clone(),
            passes: Vec::new(),
            fake_quantize: match (r.late_qat, r.ttt_enabled && r.ttt_fake_quantize) {
                (LateQat::Ste, _) => FakeQuantize::Linear,
                (LateQat::Inert, true) if r.banked => FakeQuantize::Projections,
                (LateQat::Inert, true) => FakeQuantize::Linear,
                (LateQat::Inert, false) => FakeQuantize::Never,
            },
            fake_quantize_steps: r.late_qat == LateQat::Ste,
            quant_bits: r.quant_bits,
            initial: Initial {
                seed: r.seed,
                embedding_std: r.tied_embed_init_std,
                q_gain: r.qk_gain_init,
                scaled_projections: r.scaled_proj_init,
            },
        };
        config.passes = config.order_of_passes();
        Ok(config)
    }

    /// Whether fake quantization reaches `bigram.proj` and `ve_shared.proj`. Published late QAT knows int6 alone and takes them along;
    /// with int5 it is made for what becomes int5, and these do not.
    pub fn fake_quantizes_projections(&self) -> bool {
        match self.fake_quantize {
            FakeQuantize::Never => false,
            FakeQuantize::Projections => true,
            FakeQuantize::Linear => self.quant_bits == 6,
        }
    }

    /// Layers of the first half, whose outputs feed the skips.
    pub fn encoder_layers(&self) -> usize {
        self.layers / 2
    }

    pub fn decoder_layers(&self) -> usize {
        self.layers - self.encoder_layers()
    }

    /// Rows of `skip_weights`.
    pub fn skips(&self) -> usize {
        self.encoder_layers().min(self.decoder_layers())
    }

    pub fn kv_dim(&self) -> usize {
        self.kv_heads * HEAD_DIM
    }

    /// `C`: columns of q | k | v.
    pub fn qkv_columns(&self) -> usize {
        self.dim + 2 * self.kv_dim()
    }

    /// `S`: columns of the raw projection, with the gate logits behind q | k | v where there are any.
    pub fn projected_columns(&self) -> usize {
        let gates = if self.gated_attention {
            16 * self.heads.div_ceil(16)
        } else {
            0
        };
        self.qkv_columns() + gates
    }

    /// Whether a pass mixes its V with that of the first one.
    pub fn mixes_values(&self, pass: usize) -> bool {
        pass > 0 && self.value_residual != ValueResidual::Off
    }

    /// Whether passes mix in the V of the first one.
    pub fn passes_on_values(&self) -> bool {
        self.passes.len() > 1 && self.value_residual != ValueResidual::Off
    }

    /// Whether the V of a pass is kept as it was before embedding and mix: for the gradient of the pass's own mix; or, of the first pass, for
    /// gates to mix in, where an embedding has changed it.
    pub fn keeps_raw_value(&self, pass: usize) -> bool {
        let gated_in = self.value_residual == ValueResidual::Gate && self.passes_on_values();
        let embedded = self.passes[pass].value_embedding.is_some();
        self.mixes_values(pass) || (pass == 0 && gated_in && embedded)
    }

    /// 1 / sqrt(layer + 1), the factor of a layer's normalised inputs.
    pub fn norm_scale(&self, layer: usize) -> f32 {
        if self.ln_scale {
            (1.0 / (layer as f64 + 1.0).sqrt()) as f32
        } else {
            1.0
        }
    }

    /// The rotary base for sequences of `seq_len`: it grows by the NTK rule beyond the built-in training length.
    pub fn rope_base_at(&self, seq_len: usize) -> f64 {
        if seq_len <= self.rope_train_seq_len {
            return self.rope_base;
        }
        let dims = self.rope_dims as f64;
        let stretch = seq_len as f64 / self.rope_train_seq_len as f64;
        self.rope_base * stretch.powf(dims / (dims - 2.0))
    }

    /// The scale and bias of replays sit before the pass; a skip is popped from the encoder's stack, latest first.
    fn order_of_passes(&self) -> Vec<Pass> {
        let ve_index = |layer: usize| {
            let embedding = self.value_embedding.as_ref()?;
            embedding.layers.iter().position(|&l| l == layer)
        };
        let encoder = self.encoder_layers();
        let mut passes: Vec<Pass> = (0..encoder)
            .map(|layer| Pass {
                layer,
                before: Before::Nothing,
                value_embedding: ve_index(layer),
                keeps_skip: encoder - 1 - layer < self.skips(),
            })
            .collect();
        // NOTE: replays have no value embedding, and their outputs are not skip sources.
        passes.extend(
            self.recycled
                .iter()
                .enumerate()
                .map(|(index, &layer)| Pass {
                    layer,
                    before: Before::Recycle { index },
                    value_embedding: None,
                    keeps_skip: false,
                }),
        );
        passes.extend((0..self.decoder_layers()).map(|i| Pass {
            layer: encoder + i,
            before: if i < self.skips() {
                Before::Skip {
                    row: i,
                    from: encoder - 1 - i,
                }
            } else {
                Before::Nothing
            },
            value_embedding: ve_index(encoder + i),
            keeps_skip: false,
        }));
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_layers_pair_five_skips() {
        let config = Config::new(&Recipe::default()).unwrap();
        let pairs: Vec<(usize, usize)> = config
            .passes
            .iter()
            .filter_map(|pass| match pass.before {
                Before::Skip { from, .. } => Some((pass.layer, from)),
                _ => None,
            })
            .collect();
        assert_eq!(pairs, [(5, 4), (6, 3), (7, 2), (8, 1), (9, 0)]);
        assert_eq!(config.passes.len(), 11);
        assert_eq!(config.xsa.iter().position(|&x| x), Some(7));
    }

    #[test]
    fn rope_bases_of_the_published_lengths() {
        let config = Config::new(&Recipe::default()).unwrap();
        assert_eq!(config.rope_base_at(1024), 10_000.0);
        assert!((config.rope_base_at(2047) - 22_069.468276).abs() < 1e-4);
        assert!((config.rope_base_at(2048) - 22_081.790273).abs() < 1e-4);
    }

    #[test]
    fn replays_come_between_encoder_and_decoder() {
        let recipe = Recipe {
            num_layers: 12,
            recycle_layers: vec![3, 4],
            ve_layers: vec![10, 11],
            ..Recipe::default()
        };
        let config = Config::new(&recipe).unwrap();
        let order: Vec<usize> = config.passes.iter().map(|pass| pass.layer).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 3, 4, 6, 7, 8, 9, 10, 11]);
        assert_eq!(config.passes[7].before, Before::Recycle { index: 1 });
    }

    #[test]
    fn what_no_kernel_serves_is_refused() {
        let recipe = Recipe {
            logit_softcap: 100.0,
            ..Recipe::default()
        };
        let failure: Failure = Config::new(&recipe)
            .expect_err("exponentials that f32 does not hold")
            .downcast()
            .unwrap();
        assert!(failure.why.contains("logit_softcap") && !failure.hint.is_empty());
    }
}

//! The file format of a parity case.
//!
//! Unknown keys are ignored, since files carry comments for people, with one exception: an unknown switch of `model` that is not
//! off would be a technique that birdie does not know, and is refused.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::rule;
use crate::failure::Failure;

/// Sizes beyond these are mistakes, not models: refused before anything is computed from them.
const MOST_SIZE: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 24;
const MOST_WEIGHTS: usize = 1 << 29;

/// Keys of `model` that follow from others, or that every recipe has alike.
const DERIVED: [&str; 7] = [
    "mlp_mult",
    "decoder_layers",
    "encoder_layers",
    "recycle_repeats",
    "xsa_last_n",
    "qat_targets",
    "tie_embeddings",
];

/// A model case: `A`, `B`, `F`, `N`, `QAT` (one forward and backward), or `E` (optimizer steps).
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    pub recipe: String,
    pub case: String,
    pub title: String,
    pub model: Model,
    pub batch: usize,
    pub seq_len: usize,
    pub seed: u64,
    pub weights: Vec<Weight>,
    pub loss: f64,
    #[serde(default)]
    pub loss_noise: f64,
    pub grad_norm: Option<f64>,
    #[serde(default)]
    pub token_loss: Vec<TokenLoss>,
    pub token_loss_summary: Option<Summary>,
    #[serde(default)]
    pub activations: Vec<Summary>,
    #[serde(default)]
    pub grads: Vec<Summary>,
    pub optimizer: Option<Optimizer>,
    #[serde(default)]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub ema: Vec<Summary>,
}

/// Sizes and switches of the model, as the published modules name them.
#[derive(Debug, Clone, Deserialize)]
pub struct Model {
    pub vocab_size: usize,
    pub num_layers: usize,
    pub model_dim: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub mlp_hidden: usize,
    pub logit_softcap: f64,
    pub rms_norm_eps: f64,
    pub rope_base: f64,
    pub rope_dims: usize,
    pub rope_train_seq_len: usize,
    pub ln_scale: bool,
    pub bigram_buckets: usize,
    pub bigram_dim: usize,
    pub xsa_layers: Vec<usize>,
    pub ve_dim: usize,
    pub ve_layers: Vec<usize>,
    pub value_residual_gates: bool,
    pub value_residual: bool,
    pub gated_attention: bool,
    #[serde(default)]
    pub recycle_layers: Vec<usize>,
    pub banked: bool,
    pub qat: bool,
    pub passes: Vec<Pass>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// One application of a layer.
#[derive(Debug, Clone, Deserialize)]
pub struct Pass {
    pub name: String,
    pub layer: usize,
    pub kind: PassKind,
    /// Row of `skip_weights` that scales the skip added before the pass.
    pub skip_weight: Option<usize>,
    /// Encoder layer whose output the skip is.
    pub skip_from: Option<usize>,
    /// Index of the `recycle_mods` scale and bias applied before a replayed pass.
    pub recycle_mod: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PassKind {
    Encoder,
    Replay,
    Decoder,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Weight {
    pub name: String,
    pub shape: Vec<usize>,
    pub mean: Mean,
    pub std: f64,
}

/// One mean for the tensor, or one per row.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Mean {
    One(f64),
    PerRow(Vec<f64>),
}

/// Elements of a shape; `None` where they are beyond counting.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size))
}

impl Weight {
    /// The rule can make it.
    pub(super) fn is_sound(&self) -> bool {
        let means_fit = match &self.mean {
            Mean::One(mean) => mean.is_finite(),
            Mean::PerRow(means) => {
                self.shape.first() == Some(&means.len()) && means.iter().all(|m| m.is_finite())
            }
        };
        means_fit && self.std.is_finite()
    }

    /// The values of the rule; every one is exact in bf16.
    pub fn values(&self, seed: u64) -> Vec<f32> {
        match &self.mean {
            Mean::One(mean) => rule::weight(seed, &self.name, &self.shape, &[*mean], self.std),
            Mean::PerRow(means) => rule::weight(seed, &self.name, &self.shape, means, self.std),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct TokenLoss {
    pub pos: usize,
    pub value: f64,
}

/// What is kept of a tensor: its l2 norm, four signed sums, sixteen samples, and the noise that bf16 arithmetic makes in it.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    pub name: String,
    pub shape: Vec<usize>,
    pub l2: f64,
    pub signs: Vec<f64>,
    pub samples: Vec<f64>,
    #[serde(default)]
    pub noise: f64,
    /// The parameter is not in the graph: no gradient, no update, no decay.
    #[serde(default)]
    pub unused: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Optimizer {
    pub muon: Muon,
    pub adamw_embeddings: AdamW,
    pub adamw_scalars: AdamW,
    pub grad_clip_norm: f64,
    pub lr_scale: f64,
    pub ema_decay: f64,
    pub grad_accum_steps: usize,
    pub world_size: usize,
    /// Starts with `float32` or `bfloat16`: storage of the embedding tables, their gradients and their moments.
    pub embedding_storage: String,
}

impl Optimizer {
    pub fn bf16_tables(&self) -> bool {
        self.embedding_storage.starts_with("bfloat16")
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Muon {
    pub params: Vec<String>,
    pub lr: f64,
    pub weight_decay: f64,
    pub newton_schulz_steps: usize,
    pub momentum_dtype: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct AdamW {
    pub params: Vec<String>,
    pub lr: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub eps: f64,
}

/// One optimizer step: what is seen before it, and (parameter - initial value) after it.
#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    pub step: usize,
    pub token_seed: u64,
    pub muon_momentum: f64,
    pub loss: f64,
    pub loss_noise: f64,
    pub grad_norm: f64,
    pub grad_norm_noise: f64,
    pub clip_coef: f64,
    pub deltas: Vec<Summary>,
}

impl Case {
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a model case", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let case: Self = serde_json::from_str(text)?;
        case.check()?;
        Ok(case)
    }

    /// Refuses what cannot be a model, in one line with a hint.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |why: String, hint: &str| -> Result<()> {
            Err(Failure::user(format!("{} {}", self.recipe, self.case), why, hint).into())
        };
        const MODEL: &str = "see `Model` in src/parity/case.rs";
        let m = &self.model;
        let is_off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) => s.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        for (key, value) in &m.other {
            if !DERIVED.contains(&key.as_str()) && !is_off(value) {
                return refuse(
                    format!("model.{key} = {value} is a switch that birdie does not know"),
                    "a comment belongs outside `model`",
                );
            }
        }
        if m.other.get("tie_embeddings") == Some(&Value::Bool(false)) {
            return refuse(
                "model.tie_embeddings = false".into(),
                "the head is the embedding",
            );
        }
        let sizes = [
            ("vocab_size", m.vocab_size),
            ("num_layers", m.num_layers),
            ("model_dim", m.model_dim),
            ("num_heads", m.num_heads),
            ("num_kv_heads", m.num_kv_heads),
            ("head_dim", m.head_dim),
            ("mlp_hidden", m.mlp_hidden),
            ("batch", self.batch),
            ("seq_len", self.seq_len),
            ("passes", m.passes.len()),
        ];
        for (key, size) in sizes {
            if !(1..=MOST_SIZE).contains(&size) {
                return refuse(
                    format!("{key} = {size} is not between 1 and {MOST_SIZE}"),
                    MODEL,
                );
            }
        }
        for (key, size) in [
            ("bigram_buckets", m.bigram_buckets),
            ("bigram_dim", m.bigram_dim),
            ("ve_dim", m.ve_dim),
            ("rope_dims", m.rope_dims),
        ] {
            if size > MOST_SIZE {
                return refuse(format!("{key} = {size} is above {MOST_SIZE}"), MODEL);
            }
        }
        if self.batch * self.seq_len > MOST_TOKENS {
            return refuse(
                format!(
                    "{} x {} tokens are above {MOST_TOKENS}",
                    self.batch, self.seq_len
                ),
                "cases are small",
            );
        }
        if !m.num_heads.is_multiple_of(m.num_kv_heads) {
            return refuse(
                format!(
                    "{} heads cannot share {} KV heads",
                    m.num_heads, m.num_kv_heads
                ),
                "num_kv_heads divides num_heads",
            );
        }
        for pass in &m.passes {
            if pass.layer >= m.num_layers || pass.skip_from.is_some_and(|l| l >= m.num_layers) {
                return refuse(
                    format!("pass {} names a layer beyond {}", pass.name, m.num_layers),
                    MODEL,
                );
            }
            if pass.skip_weight.is_some() != pass.skip_from.is_some() {
                return refuse(
                    format!("pass {} has half a skip", pass.name),
                    "skip_weight and skip_from belong together",
                );
            }
        }
        if self.optimizer.is_some() == self.steps.is_empty() {
            return refuse(
                "steps without optimizer, or the other way round".into(),
                "see `Case` in src/parity/case.rs",
            );
        }
        self.check_weights()
    }

    fn check_weights(&self) -> Result<()> {
        let mut names = HashSet::new();
        let mut total = 0usize;
        for weight in &self.weights {
            let refuse = |why: String| {
                let what = format!("weight {}", weight.name);
                Err(Failure::user(what, why, "see `Weight` in src/parity/case.rs").into())
            };
            let count = elements(&weight.shape).unwrap_or(usize::MAX);
            total = total.saturating_add(count);
            if total > MOST_WEIGHTS {
                return refuse(format!(
                    "shape {:?}: more than {MOST_WEIGHTS} weights in all",
                    weight.shape
                ));
            }
            if !names.insert(&weight.name) {
                return refuse("it is there twice".into());
            }
            if !weight.is_sound() {
                return refuse(format!(
                    "mean and std of shape {:?}: one finite mean, or one for each row",
                    weight.shape
                ));
            }
        }
        Ok(())
    }

    /// Inputs and targets of the tokens seeded with `seed` (the case's own, or a step's `token_seed`).
    pub fn tokens(&self, seed: u64) -> (Vec<u32>, Vec<u32>) {
        rule::tokens(seed, self.batch, self.seq_len, self.model.vocab_size)
    }
}

impl Model {
    /// The rotary base for sequences of `seq_len`: NTK scaling applies beyond the length that the module was built for.
    pub fn rope_base_at(&self, seq_len: usize) -> f64 {
        if seq_len <= self.rope_train_seq_len {
            return self.rope_base;
        }
        let dims = self.rope_dims as f64;
        let stretch = seq_len as f64 / self.rope_train_seq_len as f64;
        self.rope_base * stretch.powf(dims / (dims - 2.0))
    }

    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

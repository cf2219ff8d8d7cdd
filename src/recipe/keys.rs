//! The one table of recipe keys.
//!
//! [`recipe_keys!`] turns it into the [`Recipe`] struct, its defaults (recipe #657 as published), the
//! list [`KEYS`] from which `docs/recipe.md`, the error messages and the environment names are derived,
//! and the by-name access that files, environment and `--set` go through. A key that is not here does
//! not exist; a key that is here has a sentence of documentation.
//!
//! Names are the lower-case form of the environment variables of the published `train_gpt.py` where it
//! has one (`MATRIX_LR` → `matrix_lr`). Only those (`published`) are read from the environment, so that a
//! stray `LAYOUT` or `QUANTIZER` of another program cannot change a run.

use serde::{Deserialize, Serialize};

/// How a key is known: whether the published scripts read it from the environment under its upper-case name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The published scripts read it; so does birdie (`MATRIX_LR=0.02 birdie train …`).
    Published,
    /// birdie's own; set it in the file or with `--set`.
    Own,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub section: &'static str,
    pub kind: &'static str,
    pub origin: Origin,
    pub doc: &'static str,
}

macro_rules! choices {
    ($(#[doc = $doc:literal] $name:ident { $(#[doc = $vdoc:literal] $variant:ident = $text:literal),+ $(,)? })+) => {$(
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $(#[doc = $vdoc] #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// The names a recipe may use.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl Describe for $name {
            const KIND: &'static str = concat!("one of", $(" `", $text, "`"),+);
        }
    )+};
}

/// What a key accepts, in words, for messages and the reference.
pub trait Describe {
    const KIND: &'static str;
}

macro_rules! describe {
    ($($ty:ty => $text:literal),+ $(,)?) => {$(impl Describe for $ty { const KIND: &'static str = $text; })+};
}

describe! {
    usize => "integer >= 0",
    u64 => "integer >= 0",
    f64 => "number",
    bool => "true or false",
    String => "string",
    Vec<usize> => "list of integers",
}

choices! {
    /// Which optimizer updates `bigram.proj` and `ve_shared.proj`.
    ProjectionOptimizer {
        /// Muon on the whole matrix (#657, #518).
        Muon = "muon",
        /// Muon on each rank's block of rows, as #1072's bank optimizer does by accident.
        MuonRowSharded = "muon_row_sharded",
        /// The scalar AdamW group (#1473, #1573).
        Adamw = "adamw",
    }
    /// Where the gradient norm is clipped.
    ClipStage {
        /// On the mean gradient over the ranks (#657, #518).
        AfterAverage = "after_average",
        /// On each rank's own gradient, before any communication (#1072, #1473, #1573).
        PerRank = "per_rank",
    }
    /// Storage of a tensor in training.
    StorageType {
        /// IEEE single precision.
        F32 = "f32",
        /// bfloat16, rounded to nearest even.
        Bf16 = "bf16",
    }
    /// Which weights are final: quantized, packed and scored.
    FinalWeights {
        /// The exponential moving average (all but #1573).
        Ema = "ema",
        /// The mean of the snapshots (#1573); the EMA where there are fewer than two.
        Swa = "swa",
        /// The mean of the EMA and of the snapshots' mean.
        EmaSwa = "ema_swa",
        /// The weights as the last step left them.
        Live = "live",
    }
    /// What "late QAT" does.
    LateQat {
        /// Nothing: the published graphs were compiled with the flag off and never see it turn on.
        Inert = "inert",
        /// Fake quantization with straight-through gradients once the learning rate has decayed below `late_qat_threshold`.
        Ste = "ste",
    }
    /// How attention and MLP matrices become integers.
    Quantizer {
        /// Percentile clip search, one percentile per matrix ("GPTQ-lite").
        ClipSearch = "clip_search",
        /// GPTQ with the full Hessian of the layer's inputs.
        Gptq = "gptq",
    }
    /// Where GPTQ's Hessians come from.
    HessianSource {
        /// Sequences that the trained model generates (#1473).
        SelfGenerated = "self_generated",
        /// Training batches during the warmdown (#1072).
        Online = "online",
    }
    /// When test-time training sees the tokens that it is scored on.
    TttOrder {
        /// Chunk by chunk, each after it has been scored (#549): a legal score.
        ScoreFirst = "score_first",
        /// All of them, before any is scored (#518): not a legal score.
        TrainFirst = "train_first",
    }
    /// Optimizer of test-time training.
    TttOptimizer {
        /// Gradient descent with momentum, state kept over all chunks (#549).
        Sgd = "sgd",
        /// AdamW with betas 0.9 and 0.999, no decay (#518).
        Adamw = "adamw",
    }
    /// Entropy coder of the artifact.
    Compressor {
        /// xz (LZMA2).
        Lzma = "lzma",
        /// Zstandard.
        Zstd = "zstd",
    }
    /// How integer codes lie in the artifact before compression.
    CodeLayout {
        /// One byte per code, as the published int6 containers.
        Bytes = "bytes",
        /// 5 or 6 bits per code, as #1573's container.
        Packed = "packed",
        /// Whichever of the two compresses to fewer bytes.
        Smallest = "smallest",
    }
    /// The tail of a sliding-window evaluation.
    SlidingTail {
        /// The last `eval_stride` tokens are counted again by every shrinking window, as published.
        CountedAgain = "counted_again",
        /// Every token counts once.
        Once = "once",
    }
}

macro_rules! recipe_keys {
    ($($section:literal {
        $($name:ident : $ty:ty = $default:expr, $origin:ident, $doc:literal;)+
    })+) => {
        /// Everything that defines a run. Build it with [`super::load`]; fields are documented in [`KEYS`].
        #[derive(Clone, Debug, PartialEq, Serialize)]
        pub struct Recipe {
            $($(#[doc = $doc] pub $name: $ty,)+)+
        }

        impl Default for Recipe {
            fn default() -> Self {
                Self { $($($name: $default,)+)+ }
            }
        }

        /// Every key in the order of the reference.
        pub const KEYS: &[Key] = &[
            $($(Key {
                name: stringify!($name),
                section: $section,
                kind: <$ty as Describe>::KIND,
                origin: Origin::$origin,
                doc: $doc,
            },)+)+
        ];

        impl Recipe {
            /// Sets a key by name. `None`: no such key; `Some(false)`: the value is not of the key's kind.
            pub fn set(&mut self, name: &str, value: &toml::Value) -> Option<bool> {
                match name {
                    $($(stringify!($name) => Some(match read::<$ty>(value) {
                        Some(read) => { self.$name = read; true }
                        None => false,
                    }),)+)+
                    _ => None,
                }
            }

            /// The value of a key as TOML; `None` if there is no such key.
            pub fn get(&self, name: &str) -> Option<toml::Value> {
                match name {
                    $($(stringify!($name) => Some(toml::Value::try_from(&self.$name).expect("a recipe value is plain data")),)+)+
                    _ => None,
                }
            }
        }
    };
}

/// Reads a value, letting an integer stand where a number is wanted.
fn read<T: for<'de> Deserialize<'de>>(value: &toml::Value) -> Option<T> {
    if let Ok(read) = value.clone().try_into() {
        return Some(read);
    }
    match value {
        toml::Value::Integer(i) => toml::Value::Float(*i as f64).try_into().ok(),
        _ => None,
    }
}

recipe_keys! {
    "run" {
        name: String = "657".into(), Own, "Name of the recipe; it is written into artifacts and checkpoints.";
        seed: u64 = 1337, Published, "Seed of the initial weights and of every other random choice.";
        iterations: usize = 20_000, Published, "Upper limit on optimizer steps.";
        max_wallclock_seconds: f64 = 600.0, Published, "Training budget in seconds that also drives the warmdown; 0 = none, then the warmdown is counted in steps from `iterations`. Warm-up and validation do not count.";
        reference_step_ms: f64 = 0.0, Own, "Replaces the measured clock by `step * reference_step_ms`, so that schedule and step count are the same on every machine; 0 = measured.";
        warmup_steps: usize = 20, Published, "Optimizer steps taken and then undone before the clock starts.";
        warmup_keeps_momentum: bool = false, Own, "Undoing the warm-up leaves Muon's momentum as the warm-up made it, so that training starts with it: what happens in #1072 by accident.";
        checkpoint_every: usize = 500, Own, "Steps between checkpoints; 0 = only at the end and on Ctrl-C.";
        train_log_every: usize = 500, Published, "Steps between lines of the log (the first ten steps are always shown).";
        val_loss_every: usize = 4000, Published, "Steps between validations; 0 = only at the end. The published runs also validate at step 0.";
    }
    "data" {
        data_path: String = "fineweb10B_sp1024".into(), Published, "`demo` for the built-in English text, a folder of FineWeb shards, or a text file.";
        tokenizer_path: String = "fineweb_1024_bpe.model".into(), Published, "`bytes`, or the path of a SentencePiece BPE `.model` file. Shards need the model they were made with.";
        vocab_size: usize = 1024, Published, "Number of token ids the model knows; must be the tokenizer's.";
        train_seq_len: usize = 2048, Published, "Tokens per training sequence.";
        train_batch_tokens: usize = 786_432, Published, "Tokens per optimizer step over all ranks and micro-steps.";
        grad_accum_steps: usize = 0, Own, "Micro-steps per step; 0 = 8 / ranks, as published.";
        val_fraction: f64 = 0.05, Own, "Share of a text (the end of it) kept for validation; shards bring their own split.";
        val_tokens_limit: usize = 0, Own, "Validation uses at most this many tokens, from the start of the split; 0 = all.";
    }
    "model" {
        num_layers: usize = 11, Published, "Transformer blocks with their own weights. The first half are encoder layers whose outputs feed the U-Net skips of the second.";
        model_dim: usize = 512, Published, "Width of the residual stream; a multiple of 64.";
        num_heads: usize = 8, Published, "Query heads; `num_heads * head_dim` = `model_dim`.";
        num_kv_heads: usize = 4, Published, "Key and value heads; divides `num_heads`.";
        head_dim: usize = 64, Own, "Width of a head. The kernels serve 64.";
        mlp_mult: usize = 3, Published, "MLP hidden width as a multiple of `model_dim`; the activation is LeakyReLU(0.5) squared.";
        mlp_hidden: usize = 0, Own, "MLP hidden width itself, a multiple of 8; 0 = `mlp_mult * model_dim`.";
        tied_embed_init_std: f64 = 0.005, Published, "Standard deviation of the initial token embedding, which is also the head.";
        bigram_vocab_size: usize = 2048, Published, "Buckets of the BigramHash embedding; 0 = none.";
        bigram_dim: usize = 128, Published, "Width of the BigramHash embedding before its projection; equal to `model_dim` = no projection.";
        xsa_last_n: usize = 4, Published, "Number of last layers with exclusive self-attention.";
        ve_enabled: bool = true, Published, "Adds a shared value embedding to V in `ve_layers`.";
        ve_dim: usize = 128, Published, "Width of the value embedding before its projection; equal to the KV width = no projection.";
        ve_layers: Vec<usize> = vec![9, 10], Published, "Layers that receive the value embedding.";
        vrl_enabled: bool = true, Published, "Value residual of #657: V of later layers is mixed with layer 0's through a sigmoid gate (init -1.5).";
        value_residual: bool = false, Published, "Value residual of #1573: two free factors per layer (init 0.5, 0.5).";
        gated_attention: bool = false, Published, "Sigmoid gate per head on the attention output (bias init 4).";
        recycle_layers: Vec<usize> = vec![], Own, "Layers applied once more between encoder and decoder, each after its own scale and bias (#1573: 3 and 4).";
        rope_base: f64 = 10_000.0, Published, "Base of the rotary frequencies.";
        rope_dims: usize = 16, Published, "Head dimensions that are rotated.";
        rope_train_seq_len: usize = 1024, Own, "Above this length the rotary base grows by the NTK rule. The published modules have 1024 built in (#1072: 2048).";
        ln_scale: bool = true, Published, "Multiplies the normalised input of layer l by 1/sqrt(l + 1).";
        qk_gain_init: f64 = 1.5, Published, "Initial gain of each query head.";
        logit_softcap: f64 = 30.0, Published, "Logits are c * tanh(z / c).";
        scaled_proj_init: bool = true, Own, "Scales the initial `bigram.proj` and `ve_shared.proj` by 1/sqrt(2 * layers) (#657, #518; not in the banked recipes).";
    }
    "optimizer" {
        banked: bool = false, Own, "Keeps the matrices of all layers in four banks (#1072, #1473, #1573): bf16 gradients and the update scale applied in f32.";
        matrix_lr: f64 = 0.025, Published, "Learning rate of Muon.";
        tied_embed_lr: f64 = 0.035, Published, "AdamW learning rate of the three embedding tables.";
        scalar_lr: f64 = 0.025, Published, "AdamW learning rate of scales, gains and gates.";
        muon_wd: f64 = 0.04, Published, "Decoupled weight decay of Muon.";
        adam_wd: f64 = 0.04, Published, "Decoupled weight decay of both AdamW groups.";
        beta1: f64 = 0.9, Published, "AdamW beta 1.";
        beta2: f64 = 0.95, Published, "AdamW beta 2 (#1072: 0.99).";
        adam_eps: f64 = 1e-8, Published, "AdamW epsilon.";
        muon_momentum: f64 = 0.99, Published, "Muon's momentum after its warm-up.";
        muon_momentum_warmup_start: f64 = 0.92, Published, "Muon's momentum at step 0.";
        muon_momentum_warmup_steps: usize = 1500, Published, "Steps over which Muon's momentum rises linearly.";
        muon_backend_steps: usize = 5, Published, "Newton-Schulz steps.";
        muon_momentum_dtype: StorageType = StorageType::F32, Own, "Storage of Muon's momentum (banked recipes: bf16).";
        embedding_dtype: StorageType = StorageType::Bf16, Own, "Storage of the embedding tables, their gradients and their AdamW state.";
        projection_optimizer: ProjectionOptimizer = ProjectionOptimizer::Muon, Own, "Optimizer of `bigram.proj` and `ve_shared.proj`.";
        grad_clip_norm: f64 = 0.3, Published, "Largest global gradient norm; 0 = no clipping.";
        grad_clip_stage: ClipStage = ClipStage::AfterAverage, Own, "Where the gradient is clipped.";
        warmdown_iters: usize = 3500, Published, "Length of the linear decay to zero, in steps at the current average speed.";
    }
    "averaging" {
        ema_decay: f64 = 0.997, Own, "Decay of the moving average, which starts at the initial weights; 0 = no average.";
        swa_enabled: bool = true, Published, "Collects snapshots of the weights once the learning rate is below 20 %.";
        swa_every: usize = 50, Published, "Steps between snapshots.";
        final_weights: FinalWeights = FinalWeights::Ema, Own, "Which weights are quantized and scored.";
        late_qat: LateQat = LateQat::Inert, Own, "What late QAT does; `inert` is what the published runs did.";
        late_qat_threshold: f64 = 0.15, Published, "Learning-rate multiplier below which late QAT acts.";
    }
    "artifact" {
        quantizer: Quantizer = Quantizer::ClipSearch, Own, "How attention and MLP matrices become integers.";
        quant_bits: usize = 6, Own, "Bits per code of attention and MLP matrices: 5 or 6.";
        hessian_source: HessianSource = HessianSource::SelfGenerated, Own, "Where GPTQ's Hessians come from.";
        calibration_sequences: usize = 64, Own, "Sequences of `train_seq_len` tokens that the model writes for its own calibration.";
        calibration_temperature: f64 = 0.8, Own, "Sampling temperature of the calibration text.";
        hessian_dtype: StorageType = StorageType::Bf16, Own, "Rounding of each batch's Hessian before it is added to the others: bf16 is what the published code does, f32 is the better Hessian.";
        hessian_every: usize = 25, Own, "Steps between online Hessian batches.";
        hessian_below: f64 = 0.8, Own, "Learning-rate multiplier below which online Hessians are accumulated.";
        hessian_fill_batches: usize = 16, Own, "Batches of training data that are read after training where an online Hessian is not usable (not finite, or zero); what #1072 does, although its Hessians were all usable.";
        hessian_fallback_batches: usize = 256, Own, "The same where no online Hessian is usable.";
        passthrough_numel: usize = 65_536, Own, "Tensors of at most this many elements stay f16.";
        prune: bool = false, Own, "Zeroes codes of magnitude 1, cheapest first, until code and artifact meet `max_artifact_bytes`. The published forms of this never prune anything.";
        compressor: Compressor = Compressor::Lzma, Own, "Entropy coder of the artifact.";
        compressor_level: usize = 6, Own, "Level of the coder: lzma 0-9, zstd 1-22.";
        code_layout: CodeLayout = CodeLayout::Smallest, Own, "How integer codes lie before compression.";
        code_bytes: usize = 0, Own, "Bytes of code that count against the budget beside the artifact; 0 = none.";
        max_artifact_bytes: usize = 16_000_000, Own, "Budget for code and artifact together, decimal bytes.";
    }
    "evaluation" {
        eval_seq_len: usize = 2048, Published, "Tokens per window.";
        eval_stride: usize = 64, Published, "Stride of the sliding windows; 0 = only the chunked evaluation.";
        eval_batch_seqs: usize = 32, Own, "Windows scored at once.";
        sliding_tail: SlidingTail = SlidingTail::CountedAgain, Own, "How the last tokens of a sliding evaluation are counted.";
        score_logits: StorageType = StorageType::Bf16, Own, "Rounding of the capped logits in the sliding evaluation; bf16 is what the published code does.";
        ttt_enabled: bool = false, Published, "Test-time training: the artifact's weights are trained on validation tokens while they are scored by sliding windows. The artifact stays as it is.";
        ttt_order: TttOrder = TttOrder::ScoreFirst, Own, "Whether a token is scored before it is trained on. `train_first` scores are labelled as not legal.";
        ttt_optimizer: TttOptimizer = TttOptimizer::Sgd, Own, "Optimizer of test-time training.";
        ttt_lr: f64 = 0.002, Published, "Its learning rate, which falls by a cosine: step by step over all epochs (`train_first`), or chunk by chunk (`score_first`).";
        ttt_mlp_proj_lr_mult: f64 = 1.0, Own, "Factor of the learning rate of every `mlp.proj` (#518: 3).";
        ttt_mlp_fc_lr_mult: f64 = 1.0, Own, "Factor of the learning rate of every `mlp.fc` (#518: 0.5).";
        ttt_epochs: usize = 3, Published, "Epochs over the validation tokens (`train_first`) or over each chunk (`score_first`).";
        ttt_momentum: f64 = 0.9, Published, "Momentum of `sgd`.";
        ttt_grad_clip: f64 = 1.0, Published, "Largest gradient norm of a step; 0 = no clipping.";
        ttt_batch_seqs: usize = 32, Published, "Sequences of `eval_seq_len` tokens per step.";
        ttt_chunk_tokens: usize = 32_768, Published, "Tokens scored, then trained on, at a time with `score_first`.";
        ttt_fake_quantize: bool = false, Own, "Fake-quantizes the weights in the training forward, as the published scripts do by accident because their late-QAT flag is still on: every linear layer, or with banks `bigram.proj` and `ve_shared.proj` alone.";
    }
}

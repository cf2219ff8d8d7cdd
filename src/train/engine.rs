//! What the training loop needs from the model on its device.
//!
//! The loop (schedule, data, logging, checkpoints, averaging decisions, evaluation) knows nothing of kernels; the model
//! knows nothing of schedules. Between them lies [`Engine`]. There is one implementation for the device
//! (real or emulated); tests of the loop use a small one on the host.
//!
//! Names and shapes of parameters are the published, unbanked ones (`blocks.3.attn.c_q.weight`), whatever
//! the layout on the device. Linear weights are `[out, in]`, row-major.

use crate::failure::Failure;
use crate::quantize::Hessians;
use crate::quantize::clip_search::{Found, search};
use anyhow::Result;

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
    F16,
    I8,
    U8,
    I32,
    U64,
}

impl Element {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::U64 => 8,
        }
    }
}

/// A parameter by value. `stored` is its type in training: values of a bf16 table are exact in bf16.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub stored: Element,
    /// Row-major; `shape.iter().product()` elements (one for a scalar, whose shape is empty).
    pub values: Vec<f32>,
}

/// A piece of the training state as it lies on the device, for checkpoints: restoring it restores every bit.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// For example `param/tok_emb.weight`, `muon/qo_bank`, `ema/skip_weights`.
    pub name: String,
    pub element: Element,
    pub shape: Vec<usize>,
    /// Little-endian; `shape` product times `element.size()`.
    pub bytes: Vec<u8>,
}

/// Everything that changes from step to step.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// `micro_steps * sequences * train_seq_len` ids, micro-step by micro-step.
    pub tokens: &'a [u16],
    /// The id that follows each of `tokens`.
    pub targets: &'a [u16],
    /// Tokens and targets of the step that is likely to come next: they may travel while this one runs. A step that is given others
    /// is as right, only slower.
    pub ahead: Option<[&'a [u16]; 2]>,
    pub micro_steps: usize,
    pub rates: Rates,
    /// Fake quantization with straight-through gradients in this step.
    pub fake_quantize: bool,
    /// Update the moving average after the optimizer.
    pub update_ema: bool,
}

/// Per-step optimizer values, schedule already applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub matrix_lr: f32,
    pub embedding_lr: f32,
    pub scalar_lr: f32,
    pub muon_momentum: f32,
    /// Largest gradient norm; infinite = no clipping.
    pub grad_clip_norm: f32,
}

/// One step of test-time training: all parameters are trained, by an optimizer whose state is its own.
#[derive(Clone, Copy, Debug)]
pub struct AdaptInputs<'a> {
    /// Whole sequences of `seq_len`; at most as many as the recipe's `ttt_batch_seqs`.
    pub tokens: &'a [u16],
    pub targets: &'a [u16],
    pub seq_len: usize,
    /// Counted from 1. The first clears the optimizer's state.
    pub update: u32,
    pub rule: AdaptRule,
    /// Schedule already applied.
    pub learning_rate: f32,
    /// Factors of the learning rate of every `mlp.proj` and every `mlp.fc`.
    pub mlp_proj_factor: f32,
    pub mlp_fc_factor: f32,
    /// Largest gradient norm; infinite = no clipping.
    pub grad_clip_norm: f32,
    pub fake_quantize: bool,
}

/// How a step of test-time training turns gradients into updates. There is no weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdaptRule {
    Sgd {
        momentum: f32,
    },
    Adamw {
        beta1: f64,
        beta2: f64,
        epsilon: f32,
    },
}

/// What a step reports. `loss` and `grad_norm` may be non-finite; the loop then asks [`Engine::find_non_finite`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutput {
    /// Mean cross-entropy over the step's tokens of this rank, in nats.
    pub loss: f32,
    /// Before clipping, over all parameters.
    pub grad_norm: f32,
}

/// Rounding of the capped logits in [`Engine::score`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// As the published sliding evaluation: bf16 after the softcap.
    Bf16,
    /// Softcap and cross-entropy in f32 from the GEMM's bf16 output, as in training and chunked evaluation.
    F32,
}

/// Which weights [`Engine::export`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Live,
    Ema,
    /// The sum of the snapshots, each sum in its parameter's type.
    SnapshotSum,
}

/// A model on a device with its optimizer.
pub trait Engine {
    /// One optimizer step, synchronously: forward and backward of all micro-steps, clipping, optimizer, EMA.
    fn step(&mut self, inputs: &StepInputs<'_>) -> Result<StepOutput>;

    /// Negative log-likelihood in nats of every target: `tokens` and `targets` are `sequences * seq_len` ids,
    /// row by row; the result has the same layout. Live weights; nothing of the training state changes.
    /// Any `sequences` and any `seq_len` up to the longest that the engine was built for.
    fn score(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
        logits: Logits,
    ) -> Result<Vec<f32>>;

    /// What [`Engine::score`] returns with logits in f32, and with logits in bf16.
    fn score_both(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
    ) -> Result<[Vec<f32>; 2]> {
        Ok([
            self.score(tokens, targets, seq_len, Logits::F32)?,
            self.score(tokens, targets, seq_len, Logits::Bf16)?,
        ])
    }

    /// All parameters under their published names, in state-dict order.
    fn export(&mut self, which: Weights) -> Result<Vec<NamedTensor>>;

    /// Replaces live parameters by name, rounding to their stored type. Names must exist and shapes must fit;
    /// parameters that are not named keep their values.
    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()>;

    /// Adds the live weights to the sum of snapshots, which starts anew with the `first`.
    fn collect_snapshot(&mut self, first: bool) -> Result<()>;

    /// The complete training state: parameters, optimizer, averages, counters.
    fn save_state(&mut self) -> Result<Vec<StateTensor>>;

    /// Restores what [`Engine::save_state`] returned; anything missing, unknown or of another shape is an error.
    fn load_state(&mut self, state: &[StateTensor]) -> Result<()>;

    /// Name of a tensor (parameter, gradient, optimizer state) that holds a non-finite value, if any.
    fn find_non_finite(&mut self) -> Result<Option<String>>;

    /// Whether [`Engine::hessians`] and [`Engine::generate`] are served; GPTQ recipes are refused otherwise.
    fn calibrates(&self) -> bool {
        false
    }

    /// For every attention and MLP matrix the sum of x xᵀ over its inputs x on these tokens (`cols * cols`, row-major, summed in f32), by
    /// parameter name; live weights, evaluation mode.
    fn hessians(&mut self, tokens: &[u16], seq_len: usize) -> Result<Hessians> {
        let _ = (tokens, seq_len);
        Err(no_calibration())
    }

    /// Text written by the live weights: `sequences` rows of `seq_len` ids. The first is uniform, each other one is sampled from
    /// softmax(logits / temperature) given all before it.
    fn generate(
        &mut self,
        sequences: usize,
        seq_len: usize,
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<u16>> {
        let _ = (sequences, seq_len, temperature, seed);
        Err(no_calibration())
    }

    /// The clip search of a matrix with rows of `cols` for codes of 5 or 6 bits, where the engine computes: the same bits as
    /// [`search`], which serves engines without a device.
    fn clip_search(&mut self, weights: &[f32], cols: usize, bits: u8) -> Result<Found> {
        Ok(search(weights, cols, bits))
    }

    /// One step of test-time training on the live weights. Optimizer and averages of the training stay as they are; the caller
    /// puts the weights back.
    fn adapt(&mut self, inputs: &AdaptInputs<'_>) -> Result<StepOutput> {
        let _ = inputs;
        anyhow::bail!("this engine has no test-time training")
    }
}

pub(crate) fn no_calibration() -> anyhow::Error {
    Failure::user(
        "quantizer gptq",
        "it needs Hessians of the layers' inputs, which this engine does not collect",
        "use --set quantizer=clip_search",
    )
    .into()
}

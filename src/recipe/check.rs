//! Contradictions inside a recipe, each refused with the keys and values that disagree.

use super::{Compressor, FinalWeights, Recipe};
use crate::failure::Failure;
use anyhow::Result;

/// Refuses a recipe whose values cannot hold together. What a device or a kernel cannot serve is their own
/// business and refused there.
pub fn check(r: &Recipe) -> Result<()> {
    let refuse = |why: String, hint: &str| {
        Err(Failure::user(format!("recipe {}", r.name), why, hint).into())
    };
    macro_rules! require {
        ($ok:expr, $hint:expr, $($why:tt)+) => {
            if $ok {} else { return refuse(format!($($why)+), $hint); }
        };
    }

    require!(
        r.num_layers >= 1,
        "set num_layers to at least 1",
        "num_layers = 0 leaves no model"
    );
    require!(
        r.head_dim == 64,
        "set head_dim = 64 and choose num_heads = model_dim / 64",
        "head_dim = {}, but the kernels serve 64",
        r.head_dim
    );
    require!(
        r.model_dim > 0 && r.model_dim.is_multiple_of(64),
        "use a multiple of 64",
        "model_dim = {} is not a multiple of 64",
        r.model_dim
    );
    require!(
        r.num_heads * r.head_dim == r.model_dim,
        "num_heads = model_dim / 64",
        "num_heads = {} times head_dim = {} is {}, but model_dim = {}",
        r.num_heads,
        r.head_dim,
        r.num_heads * r.head_dim,
        r.model_dim
    );
    require!(
        r.num_kv_heads >= 1 && r.num_heads.is_multiple_of(r.num_kv_heads),
        "choose a divisor of num_heads",
        "num_kv_heads = {} does not divide num_heads = {}",
        r.num_kv_heads,
        r.num_heads
    );
    require!(
        r.mlp_mult >= 1 || r.mlp_hidden > 0,
        "the published recipes use 3",
        "mlp_mult = 0 leaves no MLP"
    );
    require!(
        r.mlp_hidden.is_multiple_of(8),
        "rows of a matrix start at multiples of 16 bytes",
        "mlp_hidden = {} is not a multiple of 8",
        r.mlp_hidden
    );
    require!(
        (2..=65_536).contains(&r.vocab_size),
        "token ids are stored in 16 bits",
        "vocab_size = {} is not between 2 and 65,536",
        r.vocab_size
    );
    require!(
        r.bigram_vocab_size != 1,
        "the hash is taken modulo bigram_vocab_size - 1; use 0 for no bigram embedding",
        "bigram_vocab_size = 1 leaves no bucket for a pair"
    );
    require!(
        r.bigram_vocab_size == 0 || r.bigram_dim >= 1,
        "set bigram_vocab_size = 0 for no bigram embedding",
        "bigram_dim = 0"
    );
    require!(
        r.xsa_last_n <= r.num_layers,
        "at most num_layers",
        "xsa_last_n = {} of {} layers",
        r.xsa_last_n,
        r.num_layers
    );
    require!(
        !r.ve_enabled || r.ve_dim >= 1,
        "set ve_enabled = false for no value embedding",
        "ve_dim = 0"
    );
    require!(
        !r.ve_enabled || !r.ve_layers.is_empty(),
        "set ve_enabled = false, or name layers",
        "ve_enabled = true, but ve_layers is empty"
    );
    if r.ve_enabled {
        if let Some(layer) = r.ve_layers.iter().find(|l| **l >= r.num_layers) {
            return refuse(
                format!(
                    "ve_layers names layer {layer}, but there are {} layers (0 to {})",
                    r.num_layers,
                    r.num_layers - 1
                ),
                "name existing layers",
            );
        }
        require!(
            no_repeats(&r.ve_layers),
            "name each layer once",
            "ve_layers = {:?} names a layer twice",
            r.ve_layers
        );
    }
    require!(
        !(r.vrl_enabled && r.value_residual),
        "vrl_enabled is #657's form, value_residual #1573's; choose one",
        "vrl_enabled and value_residual are both true"
    );
    if let Some(layer) = r.recycle_layers.iter().find(|l| **l >= r.num_layers) {
        return refuse(
            format!(
                "recycle_layers names layer {layer}, but there are {} layers (0 to {})",
                r.num_layers,
                r.num_layers - 1
            ),
            "name existing layers; they run again between encoder and decoder",
        );
    }
    require!(
        r.rope_dims >= 2 && r.rope_dims.is_multiple_of(2) && r.rope_dims <= r.head_dim,
        "the published recipes use 16",
        "rope_dims = {} is not an even number from 2 to head_dim = {}",
        r.rope_dims,
        r.head_dim
    );
    require!(
        r.rope_dims != 2 || r.rope_train_seq_len >= r.train_seq_len.max(r.eval_seq_len),
        "use 4 or more",
        "rope_dims = 2 has no NTK rule"
    );
    require!(
        r.logit_softcap > 0.0,
        "the published recipes use 30",
        "logit_softcap = {} is not positive",
        r.logit_softcap
    );

    require!(r.train_seq_len >= 1, "use at least 64", "train_seq_len = 0");
    require!(
        r.train_batch_tokens > 0 && r.train_batch_tokens.is_multiple_of(r.train_seq_len),
        "use a multiple of train_seq_len",
        "train_batch_tokens = {} is not a multiple of train_seq_len = {}",
        r.train_batch_tokens,
        r.train_seq_len
    );
    let sequences = r.train_batch_tokens / r.train_seq_len;
    require!(
        r.grad_accum_steps == 0 || sequences.is_multiple_of(r.grad_accum_steps),
        "micro-steps take whole sequences",
        "{sequences} sequences per step do not split into grad_accum_steps = {}",
        r.grad_accum_steps
    );
    require!(
        r.val_fraction > 0.0 && r.val_fraction < 1.0,
        "for example 0.05",
        "val_fraction = {} is not between 0 and 1",
        r.val_fraction
    );
    require!(
        r.tokenizer_path != "bytes" || r.vocab_size == 256,
        "set vocab_size = 256: the bytes 0 to 254 and the document mark",
        "tokenizer_path = \"bytes\" has 256 ids, but vocab_size = {}",
        r.vocab_size
    );

    for (key, value) in [
        ("matrix_lr", r.matrix_lr),
        ("tied_embed_lr", r.tied_embed_lr),
        ("scalar_lr", r.scalar_lr),
        ("muon_wd", r.muon_wd),
        ("adam_wd", r.adam_wd),
        ("grad_clip_norm", r.grad_clip_norm),
        ("max_wallclock_seconds", r.max_wallclock_seconds),
        ("reference_step_ms", r.reference_step_ms),
        ("late_qat_threshold", r.late_qat_threshold),
        ("ttt_lr", r.ttt_lr),
        ("ttt_mlp_proj_lr_mult", r.ttt_mlp_proj_lr_mult),
        ("ttt_mlp_fc_lr_mult", r.ttt_mlp_fc_lr_mult),
        ("ttt_grad_clip", r.ttt_grad_clip),
        ("tied_embed_init_std", r.tied_embed_init_std),
        ("adam_eps", r.adam_eps),
    ] {
        require!(
            value.is_finite() && value >= 0.0,
            "use a finite number, 0 or more",
            "{key} = {value}"
        );
    }
    for (key, value) in [
        ("beta1", r.beta1),
        ("beta2", r.beta2),
        ("muon_momentum", r.muon_momentum),
        ("muon_momentum_warmup_start", r.muon_momentum_warmup_start),
        ("ema_decay", r.ema_decay),
        ("ttt_momentum", r.ttt_momentum),
    ] {
        require!(
            (0.0..1.0).contains(&value),
            "decays lie in [0, 1)",
            "{key} = {value}"
        );
    }
    require!(
        r.reference_step_ms == 0.0 || r.max_wallclock_seconds > 0.0,
        "set max_wallclock_seconds, or leave reference_step_ms at 0",
        "reference_step_ms = {} replaces a clock that max_wallclock_seconds = 0 turns off",
        r.reference_step_ms
    );
    require!(
        !r.swa_enabled || r.swa_every >= 1,
        "set swa_enabled = false for no snapshots",
        "swa_every = 0"
    );
    require!(
        r.swa_enabled || !matches!(r.final_weights, FinalWeights::Swa | FinalWeights::EmaSwa),
        "set swa_enabled = true",
        "final_weights = \"{}\" needs snapshots, but swa_enabled = false",
        r.final_weights.name()
    );
    require!(
        r.ema_decay > 0.0 || !matches!(r.final_weights, FinalWeights::Ema | FinalWeights::EmaSwa),
        "set ema_decay = 0.997",
        "final_weights = \"{}\" needs a moving average, but ema_decay = 0",
        r.final_weights.name()
    );

    require!(
        matches!(r.quant_bits, 5 | 6),
        "5 and 6 are the published ones",
        "quant_bits = {}",
        r.quant_bits
    );
    require!(
        r.calibration_sequences >= 1,
        "the published recipe uses 64",
        "calibration_sequences = 0 leaves GPTQ nothing to read"
    );
    require!(
        r.calibration_temperature > 0.0 && r.calibration_temperature.is_finite(),
        "the published recipe uses 0.8",
        "calibration_temperature = {} is not positive",
        r.calibration_temperature
    );
    require!(
        r.hessian_every >= 1,
        "the published recipe uses 25",
        "hessian_every = 0"
    );
    let levels = match r.compressor {
        Compressor::Lzma => 0..=9,
        Compressor::Zstd => 1..=22,
    };
    require!(
        levels.contains(&r.compressor_level),
        "lzma has levels 0 to 9, zstd 1 to 22",
        "compressor_level = {} does not exist for compressor = \"{}\"",
        r.compressor_level,
        r.compressor.name()
    );
    require!(
        r.code_bytes < r.max_artifact_bytes,
        "the code counts against the budget",
        "code_bytes = {} leaves nothing of max_artifact_bytes = {}",
        r.code_bytes,
        r.max_artifact_bytes
    );

    require!(r.eval_seq_len >= 1, "use train_seq_len", "eval_seq_len = 0");
    require!(
        r.eval_stride <= r.eval_seq_len,
        "use at most eval_seq_len",
        "eval_stride = {} skips tokens between windows of eval_seq_len = {}",
        r.eval_stride,
        r.eval_seq_len
    );
    require!(
        r.eval_batch_seqs >= 1,
        "the published scripts use 32",
        "eval_batch_seqs = 0"
    );
    require!(
        !r.ttt_enabled || r.eval_stride > 0,
        "set eval_stride, or ttt_enabled = false",
        "ttt_enabled = true trains for sliding windows, but eval_stride = 0"
    );
    require!(
        !r.ttt_enabled || (r.ttt_epochs >= 1 && r.ttt_batch_seqs >= 1),
        "set ttt_enabled = false for no test-time training",
        "ttt_epochs = {} and ttt_batch_seqs = {} leave nothing to train on",
        r.ttt_epochs,
        r.ttt_batch_seqs
    );
    require!(
        !r.ttt_enabled || r.ttt_chunk_tokens >= r.eval_seq_len,
        "the published chunks are 16 sequences long",
        "ttt_chunk_tokens = {} is shorter than a sequence of eval_seq_len = {}",
        r.ttt_chunk_tokens,
        r.eval_seq_len
    );
    Ok(())
}

fn no_repeats(layers: &[usize]) -> bool {
    let mut sorted = layers.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_defaults_hold_together() {
        check(&Recipe::default()).unwrap();
    }

    /// Each setting alone breaks the published recipe, and the message names the key.
    #[test]
    fn contradictions_are_refused_by_name() {
        for (key, value) in [
            ("num_layers", "0"),
            ("head_dim", "32"),
            ("model_dim", "500"),
            ("num_heads", "7"),
            ("num_kv_heads", "3"),
            ("mlp_mult", "0"),
            ("mlp_hidden", "100"),
            ("bigram_vocab_size", "1"),
            ("bigram_dim", "0"),
            ("xsa_last_n", "12"),
            ("ve_layers", "[11]"),
            ("ve_layers", "[]"),
            ("ve_layers", "[9, 9]"),
            ("value_residual", "true"),
            ("recycle_layers", "[11]"),
            ("rope_dims", "15"),
            ("train_batch_tokens", "1000"),
            ("grad_accum_steps", "7"),
            ("tokenizer_path", "\"bytes\""),
            ("beta2", "1.5"),
            ("matrix_lr", "-1.0"),
            ("matrix_lr", "nan"),
            ("ema_decay", "0"),
            ("quant_bits", "4"),
            ("compressor_level", "22"),
            ("eval_stride", "4096"),
            ("reference_step_ms", "-2.0"),
            ("ttt_lr", "-1.0"),
            ("ttt_momentum", "1.0"),
        ] {
            let mut recipe = Recipe::default();
            let value: toml::Table = toml::from_str(&format!("v = {value}")).unwrap();
            assert_eq!(recipe.set(key, &value["v"]), Some(true), "{key}");
            let failure: Failure = check(&recipe).expect_err(key).downcast().unwrap();
            assert!(failure.why.contains(key), "{key}: {}", failure.why);
            assert!(!failure.hint.is_empty());
        }
    }
}

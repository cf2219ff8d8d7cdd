//! Scores of an engine, and the way from trained weights to a scored artifact.

use super::adapt::{order, score_adapting};
use super::averaging::{Snapshots, final_weights};
use super::calibrate::{Online, self_generated};
use super::engine::{Engine, Logits};
use super::log::Reporter;
use crate::artifact::{Artifact, Budget};
use crate::data::ByteTable;
use crate::evaluate::{Known, Scorer, Sliding, Tally, chunked, chunked_keeping, sliding};
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::quantize::prune::{Pruned, to_budget};
use crate::quantize::{Hessians, QuantizedTensor, quantize};
use crate::recipe::{HessianSource, Quantizer, Recipe, SlidingTail, StorageType};
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// An engine as the bookkeeping of evaluations sees it.
pub(super) struct EngineScorer<'a> {
    pub engine: &'a mut dyn Engine,
    pub logits: Logits,
}

impl Scorer for EngineScorer<'_> {
    fn score(&mut self, tokens: &[u16], targets: &[u16], seq_len: usize) -> Result<Vec<f32>> {
        self.engine.score(tokens, targets, seq_len, self.logits)
    }

    fn score_both(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
    ) -> Result<[Vec<f32>; 2]> {
        if self.logits == Logits::Bf16 {
            return self.engine.score_both(tokens, targets, seq_len);
        }
        let losses = self.score(tokens, targets, seq_len)?;
        Ok([losses.clone(), losses])
    }
}

/// Chunked evaluation of the live weights.
pub fn score_chunked(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &[u16],
    table: &ByteTable,
    reporter: &mut Reporter,
) -> Result<Tally> {
    let mut scorer = EngineScorer {
        engine,
        logits: Logits::F32,
    };
    reporter.live(stream.len() / recipe.eval_seq_len, "validation");
    let result = chunked(
        &mut scorer,
        stream,
        table,
        recipe.eval_seq_len,
        recipe.eval_batch_seqs,
        &mut |done, _| reporter.live_at(done, String::new),
    );
    reporter.end_live();
    result
}

/// Chunked evaluation of the live weights, and what the sliding evaluation that follows has in common with it: where windows start at
/// multiples of the stride, every chunk is one of them. So one window in `eval_seq_len / eval_stride` is not computed again.
pub fn score_keeping(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    (stream, table): (&[u16], &ByteTable),
    reporter: &mut Reporter,
) -> Result<(Tally, Known)> {
    if recipe.eval_stride == 0 || recipe.ttt_enabled {
        let tally = score_chunked(recipe, engine, stream, table, reporter)?;
        return Ok((tally, Known::default()));
    }
    let mut scorer = EngineScorer {
        engine,
        logits: sliding_logits(recipe),
    };
    reporter.live(stream.len() / recipe.eval_seq_len, "validation");
    let how = sliding_of(recipe);
    let result = chunked_keeping(&mut scorer, stream, table, how, &mut |done, _| {
        reporter.live_at(done, String::new)
    });
    reporter.end_live();
    result
}

/// Rounding of the logits in a recipe's sliding evaluation.
pub(super) fn sliding_logits(recipe: &Recipe) -> Logits {
    match recipe.score_logits {
        StorageType::Bf16 => Logits::Bf16,
        StorageType::F32 => Logits::F32,
    }
}

/// How a recipe's sliding evaluation runs.
pub(super) fn sliding_of(recipe: &Recipe) -> Sliding {
    Sliding {
        seq_len: recipe.eval_seq_len,
        stride: recipe.eval_stride,
        batch: recipe.eval_batch_seqs,
        tail_once: recipe.sliding_tail == SlidingTail::Once,
    }
}

/// Sliding-window evaluation of the live weights.
pub fn score_sliding(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &[u16],
    table: &ByteTable,
    known: &Known,
    reporter: &mut Reporter,
) -> Result<Tally> {
    let how = sliding_of(recipe);
    let mut scorer = EngineScorer {
        engine,
        logits: sliding_logits(recipe),
    };
    reporter.live(stream.len() / recipe.eval_stride, "sliding windows");
    let result = sliding(&mut scorer, stream, table, how, known, &mut |done, _| {
        reporter.live_at(done, String::new)
    });
    reporter.end_live();
    result
}

/// Result of [`finish`].
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub averaged: Tally,
    pub roundtrip: Tally,
    pub sliding: Option<Tally>,
    pub budget: Budget,
}

impl Finished {
    /// The number a run is known by: sliding windows where they are scored, else chunks.
    pub fn bpb(&self) -> f64 {
        self.sliding.as_ref().unwrap_or(&self.roundtrip).bpb()
    }
}

/// Where and on what a run is finished.
pub struct Finish<'a> {
    pub recipe: &'a Recipe,
    pub recipe_text: &'a str,
    pub validation: &'a [u16],
    pub table: &'a ByteTable,
    /// The artifact's path.
    pub path: &'a Path,
}

/// Averages, quantizes, writes the artifact, reads it back, and scores what was read.
pub fn finish(
    how: &Finish<'_>,
    engine: &mut dyn Engine,
    (snapshots, online): (&Snapshots, &Online),
    reporter: &mut Reporter,
) -> Result<Finished> {
    let Finish {
        recipe,
        validation,
        table,
        ..
    } = *how;
    let label = label(recipe);
    let averaged = reporter.phase("averaged weights", |reporter| {
        let (weights, which) = final_weights(recipe, engine, snapshots)?;
        engine.import(&weights)?;
        let start = Instant::now();
        let tally = score_chunked(recipe, engine, validation, table, reporter)?;
        reporter.line(format!(
            "DIAGNOSTIC post_{which} val_loss:{:.4} val_bpb:{:.4} eval_time:{:.0}ms",
            tally.loss(),
            tally.bpb(),
            start.elapsed().as_secs_f64() * 1e3
        ))?;
        Ok((tally, weights))
    })?;
    let (averaged, weights) = averaged;
    let budget = reporter.phase("quantize and pack", |reporter| {
        let hessians = calibrate(recipe, engine, online, reporter)?;
        let quantized = quantize(recipe, &weights, &hessians, &mut |weights, cols, bits| {
            engine.clip_search(weights, cols, bits)
        })?;
        pack(how, quantized, &label, reporter)
    })?;
    let (roundtrip, known) = reporter.phase("roundtrip score", |reporter| {
        let (artifact, _) = Artifact::load(how.path)?;
        let restored: Vec<_> = artifact
            .tensors
            .iter()
            .map(QuantizedTensor::restore)
            .collect();
        engine.import(&restored)?;
        let start = Instant::now();
        let data = (validation, table);
        let (tally, known) = score_keeping(recipe, engine, data, reporter)?;
        let name = format!("final_{label}_roundtrip");
        report(reporter, &name, &tally, "", start)?;
        Ok((tally, known))
    })?;
    let sliding = match recipe.eval_stride {
        0 => None,
        _ => Some(score_final(
            recipe,
            engine,
            (validation, table),
            &known,
            &format!("final_{label}_"),
            reporter,
        )?),
    };
    Ok(Finished {
        averaged,
        roundtrip,
        sliding,
        budget,
    })
}

/// The score that a run or an artifact is known by: sliding windows, with test-time training if the recipe has it, reported under
/// `prefix` and what it is.
pub fn score_final(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    (stream, table): (&[u16], &ByteTable),
    known: &Known,
    prefix: &str,
    reporter: &mut Reporter,
) -> Result<Tally> {
    let phase = if recipe.ttt_enabled {
        "test-time training and score"
    } else {
        "sliding-window score"
    };
    reporter.phase(phase, |reporter| {
        let start = Instant::now();
        let stride = recipe.eval_stride;
        if !known.is_empty() {
            reporter.line(format!(
                "sliding windows: {} of {} are the chunks just scored and are not computed again",
                known.len(),
                stream.len().saturating_sub(1).div_ceil(stride)
            ))?;
        }
        let (tally, name, extra) = if recipe.ttt_enabled {
            let tally = score_adapting(recipe, engine, stream, table, reporter)?;
            let extra = format!(" stride:{stride} ({})", order(recipe));
            (tally, "ttt_sliding_window", extra)
        } else {
            let tally = score_sliding(recipe, engine, stream, table, known, reporter)?;
            (tally, "sliding_window", format!(" stride:{stride}"))
        };
        report(reporter, &format!("{prefix}{name}"), &tally, &extra, start)?;
        Ok(tally)
    })
}

/// `int6`, or `int5`, as the log lines call it.
fn label(recipe: &Recipe) -> String {
    format!("int{}", recipe.quant_bits)
}

/// The two lines of a score, four digits and exact, and its metric.
pub fn report(
    reporter: &mut Reporter,
    name: &str,
    tally: &Tally,
    extra: &str,
    start: Instant,
) -> Result<()> {
    let (loss, bpb) = (tally.loss(), tally.bpb());
    let ms = start.elapsed().as_secs_f64() * 1e3;
    reporter.line(format!(
        "{name} val_loss:{loss:.4} val_bpb:{bpb:.4}{extra} eval_time:{ms:.0}ms"
    ))?;
    reporter.line(format!("{name}_exact val_loss:{loss:.8} val_bpb:{bpb:.8}"))?;
    reporter.metric(&json!({
        "event": "final", "name": name, "val_loss": loss, "val_bpb": bpb, "tokens": tally.tokens, "bytes": tally.bytes, "eval_ms": ms,
    }))
}

/// Encodes a model, pruned to the budget where the recipe asks for it. Returns the file and what was pruned.
pub fn encode(
    recipe: &Recipe,
    recipe_text: &str,
    mut tensors: Vec<QuantizedTensor>,
) -> Result<(Vec<u8>, Option<Pruned>)> {
    let file = |tensors: &[QuantizedTensor]| {
        Artifact {
            recipe: recipe_text.to_owned(),
            tensors: tensors.to_vec(),
        }
        .encode(recipe)
    };
    let mut pruned = None;
    if recipe.prune {
        let budget = recipe.max_artifact_bytes - recipe.code_bytes;
        pruned = to_budget(
            &mut tensors,
            budget,
            &mut |tensors| Ok(file(tensors)?.len()),
        )?;
        if pruned.is_none() {
            return Err(Failure::user(
                "prune",
                format!(
                    "even with every code of magnitude 1 zeroed the model exceeds {budget} bytes"
                ),
                "use a smaller model, quant_bits = 5, or a larger max_artifact_bytes",
            )
            .into());
        }
    }
    Ok((file(&tensors)?, pruned))
}

/// Writes the artifact and reports its size.
fn pack(
    how: &Finish<'_>,
    tensors: Vec<QuantizedTensor>,
    label: &str,
    reporter: &mut Reporter,
) -> Result<Budget> {
    let recipe = how.recipe;
    let (file, pruned) = encode(recipe, how.recipe_text, tensors)?;
    write_atomically(how.path, &file)?;
    if let Some(pruned) = pruned {
        reporter.line(format!(
            "prune: {} of {} codes of magnitude 1 zeroed",
            pruned.zeroed, pruned.candidates
        ))?;
    }
    let budget = Artifact::budget(recipe, file.len());
    let coder = recipe.compressor.name();
    reporter.line(format!(
        "Serialized model {label}+{coder}: {} bytes",
        file.len()
    ))?;
    reporter.line(format!(
        "Total submission size {label}+{coder}: {} bytes",
        budget.total()
    ))?;
    if !budget.fits() {
        reporter.line(format!("warning: {budget}"))?;
    }
    reporter.metric(&json!({
        "event": "final", "name": "artifact", "bytes": file.len(), "code_bytes": budget.code, "limit": budget.limit,
        "pruned": pruned.map_or(0, |p| p.zeroed),
    }))?;
    Ok(budget)
}

/// Refuses a recipe that asks the engine for what it cannot do, before any time is spent.
pub fn check_support(recipe: &Recipe, engine: &dyn Engine) -> Result<()> {
    if recipe.quantizer == Quantizer::Gptq && !engine.calibrates() {
        return Err(Failure::user(
            format!("recipe {}", recipe.name),
            "quantizer = \"gptq\" needs Hessians of the layers' inputs, which the engine does not collect",
            "use --set quantizer=clip_search",
        )
        .into());
    }
    Ok(())
}

/// The Hessians that the recipe's quantizer needs, with the final weights live in the engine.
pub fn calibrate(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    online: &Online,
    reporter: &mut Reporter,
) -> Result<Hessians> {
    if recipe.quantizer != Quantizer::Gptq {
        return Ok(Hessians::new());
    }
    match recipe.hessian_source {
        HessianSource::Online => {
            let hessians = online.mean();
            if hessians.is_empty() {
                return Err(Failure::user(
                    "quantizer gptq",
                    "no Hessian was accumulated: the learning rate never fell below hessian_below on a multiple of hessian_every",
                    "use a longer warmdown, a smaller hessian_every, or `birdie pack` with --set quantizer=clip_search",
                )
                .into());
            }
            Ok(hessians)
        }
        HessianSource::SelfGenerated => {
            reporter.live(recipe.calibration_sequences, "calibration");
            let result = self_generated(recipe, engine, &mut |done| {
                reporter.live_at(done, String::new)
            });
            reporter.end_live();
            result
        }
    }
}

//! The training loop.
//!
//! In the order of the published script: validate if it is time (off the clock), stop if it was the last step, else take
//! the multiplier from the clock, run one step, take a snapshot if one is due, log, and look whether the budget is used up.
//! Between steps the loop may write a checkpoint; Ctrl-C makes it write one and return.

use super::averaging::Snapshots;
use super::calibrate::Online;
use super::engine::{Engine, StepInputs, StepOutput};
use super::log::Reporter;
use super::schedule::{Clock, multiplier, rates, warmup_rates};
use super::score::score_chunked;
use crate::checkpoint::{Checkpoint, Progress};
use crate::data::prefetch::Prefetch;
use crate::data::{Batch, BatchShape, ByteTable, TokenStream};
use crate::failure::{Exit, Failure};
use crate::recipe::{LateQat, Recipe};
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the loop reads besides the recipe.
pub struct Run<'a> {
    pub recipe: &'a Recipe,
    /// Stored in checkpoints.
    pub recipe_text: &'a str,
    pub validation: &'a [u16],
    pub table: &'a ByteTable,
    /// Where checkpoints go; `None` = nowhere.
    pub checkpoint: Option<&'a Path>,
    /// Set by Ctrl-C.
    pub stop: &'a AtomicBool,
}

/// Where the loop ended.
#[derive(Debug)]
pub struct Outcome {
    pub progress: Progress,
    pub snapshots: Snapshots,
    pub online: Online,
    /// Ctrl-C; the checkpoint is written.
    pub interrupted: bool,
    pub last_loss: f32,
}

/// The micro-steps and shape of a step on one rank.
pub fn batch_shape(recipe: &Recipe, ranks: usize, rank: usize) -> Result<BatchShape> {
    let micro_steps = match recipe.grad_accum_steps {
        0 if ranks > 0 && 8 % ranks == 0 => 8 / ranks,
        0 => {
            return Err(Failure::user(
                "ranks",
                format!("{ranks} does not divide the 8 of the published runs"),
                "set grad_accum_steps",
            )
            .into());
        }
        given => given,
    };
    let shape = BatchShape {
        step_tokens: recipe.train_batch_tokens,
        micro_steps,
        ranks,
        rank,
        seq_len: recipe.train_seq_len,
    };
    shape.check()?;
    Ok(shape)
}

fn inputs<'a>(
    recipe: &Recipe,
    batch: &'a Batch,
    ahead: Option<&'a Batch>,
    shape: &BatchShape,
    step: usize,
    scale: f64,
) -> StepInputs<'a> {
    StepInputs {
        tokens: &batch.tokens,
        targets: &batch.targets,
        ahead: ahead.map(|next| [&next.tokens[..], &next.targets[..]]),
        micro_steps: shape.micro_steps,
        rates: rates(recipe, step, scale),
        fake_quantize: recipe.late_qat == LateQat::Ste && scale < recipe.late_qat_threshold,
        update_ema: recipe.ema_decay > 0.0,
    }
}

/// Trains to the end of the budget. With `from`, continues a checkpoint whose tensors the engine has not yet loaded.
pub fn train(
    run: &Run<'_>,
    engine: &mut dyn Engine,
    mut stream: TokenStream,
    shape: BatchShape,
    from: Option<Checkpoint>,
    reporter: &mut Reporter,
) -> Result<Outcome> {
    let recipe = run.recipe;
    let resumed = from.is_some();
    let (mut progress, mut snapshots, mut online) = match from {
        Some(checkpoint) => {
            let progress = checkpoint.progress;
            let snapshots = Snapshots {
                count: progress.snapshots,
            };
            let (online, state) = Online::split_state(progress.hessian_batches, checkpoint.tensors);
            engine.load_state(&state)?;
            (progress, snapshots, online)
        }
        None => (Progress::default(), Snapshots::default(), Online::default()),
    };
    if !resumed && recipe.warmup_steps > 0 {
        reporter.phase("warm-up", |reporter| {
            warm_up(recipe, engine, &mut stream, &shape, reporter)
        })?;
    }
    stream.seek(progress.cursor);
    reporter.phase("training", |reporter| {
        let mut data = Prefetch::start(stream, shape);
        // The batch after the one in use: it travels to the device while a step runs.
        let mut ahead: Option<Batch> = None;
        let mut clock = Clock::new(recipe, progress.train_ms);
        let mut last_loss = f32::NAN;
        reporter.live(recipe.iterations, "training");
        clock.start();
        loop {
            let step = progress.step;
            let last = step >= recipe.iterations || progress.stop_after == Some(step);
            if last || (recipe.val_loss_every > 0 && step.is_multiple_of(recipe.val_loss_every)) {
                clock.pause();
                validate(run, engine, step, clock.ms(step), reporter)?;
                if !last {
                    reporter.live(recipe.iterations, "training");
                }
                clock.start();
            }
            if last {
                clock.pause();
                progress.train_ms = clock.ms(step);
                if progress.stop_after.is_some() && step < recipe.iterations {
                    reporter.line(format!(
                        "stopping_early: wallclock_cap train_time:{:.0}ms step:{step}/{}",
                        progress.train_ms, recipe.iterations
                    ))?;
                }
                let batches = online.batches_to_fill(recipe);
                if batches > 0 {
                    reporter.line(format!("hessians: filled from {batches} more batches"))?;
                    let mut more = Online::default();
                    for _ in 0..batches {
                        let extra = ahead.take().map_or_else(|| data.take(), Ok)?;
                        let first = extra.tokens.len() / shape.micro_steps;
                        more.read(recipe, engine, &extra.tokens[..first], shape.seq_len)?;
                        data.recycle(extra);
                    }
                    online.fill(more);
                    progress.hessian_batches = online.count;
                }
                save(run, engine, &progress, &online)?;
                return Ok(Outcome {
                    progress,
                    snapshots,
                    online,
                    interrupted: false,
                    last_loss,
                });
            }
            if run.stop.load(Ordering::Relaxed) {
                clock.pause();
                progress.train_ms = clock.ms(step);
                save(run, engine, &progress, &online)?;
                return Ok(Outcome {
                    progress,
                    snapshots,
                    online,
                    interrupted: true,
                    last_loss,
                });
            }

            let before = clock.ms(step);
            let scale = multiplier(recipe, step, before);
            if Online::due(recipe, step, scale) {
                let extra = ahead.take().map_or_else(|| data.take(), Ok)?;
                let first = extra.tokens.len() / shape.micro_steps;
                online.read(recipe, engine, &extra.tokens[..first], shape.seq_len)?;
                progress.hessian_batches = online.count;
                data.recycle(extra);
            }
            let batch = ahead.take().map_or_else(|| data.take(), Ok)?;
            if step + 1 < recipe.iterations && progress.stop_after.is_none() {
                ahead = Some(data.take()?);
            }
            let output =
                engine.step(&inputs(recipe, &batch, ahead.as_ref(), &shape, step, scale))?;
            if !output.loss.is_finite() || !output.grad_norm.is_finite() {
                return Err(non_finite(run, engine, step, output));
            }
            progress.step += 1;
            progress.cursor = batch.cursor;
            data.recycle(batch);
            last_loss = output.loss;
            if Snapshots::due(recipe, progress.step, scale) {
                if snapshots.count == 0 {
                    reporter.line(format!("swa:start step:{}", progress.step))?;
                }
                snapshots.take(engine)?;
                progress.snapshots = snapshots.count;
            }
            let now = clock.ms(progress.step);
            log_step(
                recipe,
                reporter,
                &progress,
                output,
                scale,
                (before, now),
                shape.step_tokens,
            )?;
            let cap = recipe.max_wallclock_seconds * 1e3;
            if cap > 0.0 && now >= cap && progress.stop_after.is_none() {
                progress.stop_after = Some(progress.step);
            }
            if recipe.checkpoint_every > 0 && progress.step.is_multiple_of(recipe.checkpoint_every)
            {
                clock.pause();
                progress.train_ms = clock.ms(progress.step);
                save(run, engine, &progress, &online)?;
                clock.start();
            }
        }
    })
}

fn log_step(
    recipe: &Recipe,
    reporter: &mut Reporter,
    progress: &Progress,
    output: StepOutput,
    scale: f64,
    (before, now): (f64, f64),
    tokens: usize,
) -> Result<()> {
    let (step, average) = (progress.step, now / progress.step as f64);
    if recipe.train_log_every > 0 && (step <= 10 || step.is_multiple_of(recipe.train_log_every)) {
        reporter.line(format!(
            "step:{step}/{} train_loss:{:.4} train_time:{now:.0}ms step_avg:{average:.2}ms",
            recipe.iterations, output.loss
        ))?;
    }
    reporter.live_at(step, || {
        format!(
            "loss {:.4}, {average:.1} ms/step, {:.0} tokens/s,",
            output.loss,
            tokens as f64 * 1e3 / average.max(1e-9)
        )
    });
    reporter.metric(&json!({
        "event": "step", "step": step, "train_loss": output.loss, "grad_norm": output.grad_norm, "lr_scale": scale,
        "muon_momentum": super::schedule::momentum(recipe, step - 1), "train_time_ms": now, "step_ms": now - before,
        "tokens_seen": progress.cursor,
    }))
}

fn warm_up(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &mut TokenStream,
    shape: &BatchShape,
    reporter: &mut Reporter,
) -> Result<()> {
    let mut state = engine.save_state()?;
    let mut batch = Batch::default();
    for step in 1..=recipe.warmup_steps {
        stream.next_into(shape, &mut batch)?;
        let inputs = StepInputs {
            rates: warmup_rates(recipe),
            update_ema: false,
            ..inputs(recipe, &batch, None, shape, 0, 1.0)
        };
        engine.step(&inputs)?;
        if step == recipe.warmup_steps || step.is_multiple_of(10) {
            reporter.line(format!("warmup_step:{step}/{}", recipe.warmup_steps))?;
        }
    }
    if recipe.warmup_keeps_momentum {
        let after = engine.save_state()?;
        for (tensor, warmed) in state.iter_mut().zip(after) {
            if tensor.name.ends_with("momentum") {
                *tensor = warmed;
            }
        }
    }
    engine.load_state(&state)
}

fn validate(
    run: &Run<'_>,
    engine: &mut dyn Engine,
    step: usize,
    ms: f64,
    reporter: &mut Reporter,
) -> Result<()> {
    let recipe = run.recipe;
    let tally = score_chunked(recipe, engine, run.validation, run.table, reporter)?;
    let (loss, bpb) = (tally.loss(), tally.bpb());
    reporter.line(format!(
        "step:{step}/{} val_loss:{loss:.4} val_bpb:{bpb:.4} train_time:{ms:.0}ms step_avg:{:.2}ms",
        recipe.iterations,
        ms / step.max(1) as f64
    ))?;
    reporter.metric(&json!({"event": "validation", "step": step, "val_loss": loss, "val_bpb": bpb, "train_time_ms": ms}))
}

fn save(
    run: &Run<'_>,
    engine: &mut dyn Engine,
    progress: &Progress,
    online: &Online,
) -> Result<()> {
    let Some(path) = run.checkpoint else {
        return Ok(());
    };
    let mut tensors = engine.save_state()?;
    tensors.extend(online.state());
    Checkpoint {
        progress: progress.clone(),
        recipe: run.recipe_text.to_owned(),
        tensors,
    }
    .save(path)
}

fn non_finite(
    run: &Run<'_>,
    engine: &mut dyn Engine,
    step: usize,
    output: StepOutput,
) -> anyhow::Error {
    let tensor = match engine.find_non_finite() {
        Ok(Some(name)) => format!("first non-finite tensor: {name}"),
        Ok(None) => "parameters and optimizer state are still finite".into(),
        Err(error) => format!("the tensor could not be found ({error})"),
    };
    let hint = match run.checkpoint.filter(|path| path.exists()) {
        Some(path) => format!(
            "{} holds the run before that; resume it, or train with lower learning rates",
            path.display()
        ),
        None => "train with lower learning rates".into(),
    };
    let why = format!(
        "train_loss {}, gradient norm {}; {tensor}",
        output.loss, output.grad_norm
    );
    Failure::new(Exit::NonFinite, format!("step {}", step + 1), why, hint).into()
}

#[cfg(test)]
mod tests;

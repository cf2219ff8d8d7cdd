//! `birdie bench`: what the kernels cost.
//!
//! **What is measured is a training step.** [`kernels`] builds the model of a recipe, runs its step with every kernel launched by
//! itself, and watches the launches ([`watch`]): so each entry point is seen with the operands and as often as the recipe needs
//! it, and the sum of the rows is the step. A scoring pass is watched too, its rows are not part of the sum.
//!
//! * On a **GPU** each launch is timed by a pair of events: as it comes in the step, with a flushed L2, and with its operands just
//!   used. Medians and the 20 % and 80 % quantiles over the repetitions. One more pass reads the clocks around each launch ([`clocks`]).
//! * On the **emulator** each distinct launch is executed once and counted, whole or as a sample of its clusters, at the recipe's full
//!   sizes; [`predict`] turns counts into the time that each resource of an H100 is busy at least. Such numbers are called
//!   predicted, and the record names the model. They are counts of this program, not of hardware.
//!
//! Beside each row stands the floor of the operation: its FLOPs at the sustained rate of the tensor cores, or each tensor read and
//! written once, whichever takes longer ([`machine`]).
//!
//! [`counts`] makes the same predictions from the counts of any program that ran on the emulator.
//!
//! [`micro`] runs the hand-written microbenchmarks of `ptx/micro/`.
//!
//! `record` is the file format, `table` and `compare` print.

pub mod clocks;
pub mod compare;
pub mod counts;
pub mod machine;
pub mod micro;
pub mod predict;
pub mod record;
pub mod table;
pub mod watch;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cust::context::CurrentContext;
use cust::device::DeviceAttribute;

use crate::driver::{self, DriverError, DriverKind, modules};
use crate::kernels::Work;
use crate::kernels::observe::observed;
use crate::model::engine::{DeviceEngine, plan};
use crate::recipe::Recipe;
use crate::train::engine::{Engine, Logits, Rates, StepInputs};
use clocks::{Around, ClockReader};
use predict::Counts;
use record::{DeviceFacts, Kind, Measured, Quantiles, Record, Row, Total};
use watch::{Cache, Clocking, Counting, Operation, Shape, Timing};

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Entry points whose name contains this.
    pub filter: Option<String>,
    /// Emulator: execute about one cluster in so many of large grids.
    pub sample: u64,
    /// GPU: repetitions of the step for each state of the cache.
    pub repetitions: u32,
}

/// A recipe cut down to a size that an emulator executes whole: one sequence of at most 256 tokens, at the recipe's widths.
pub fn small(recipe: &Recipe) -> Recipe {
    let mut small = recipe.clone();
    small.train_seq_len = recipe.train_seq_len.min(256);
    small.rope_train_seq_len = small.train_seq_len.min(small.rope_train_seq_len);
    small.eval_seq_len = small.train_seq_len;
    small.eval_stride = small.eval_stride.min(small.train_seq_len);
    small.train_batch_tokens = ranks(recipe) * small.train_seq_len * small.grad_accum_steps.max(1);
    small
}

/// Devices that the recipe's step is divided among: the published runs had 8, unless the recipe says how often it accumulates.
fn ranks(recipe: &Recipe) -> usize {
    if recipe.grad_accum_steps == 0 { 8 } else { 1 }
}

/// Runs a recipe's step under observation, on the driver that is open. `sms`: what the predictions are for has so many
/// multiprocessors that persistent grids must have been planned for them.
pub fn kernels(recipe: &Recipe, options: &Options) -> Result<Record> {
    let info = driver::active().context("no driver is open")?;
    let ranks = ranks(recipe);
    let planned = plan(recipe, ranks)?;
    let mut bench = Bench {
        batch: planned.network.sizes.train,
        micro_steps: planned.network.sizes.micro_steps,
        engine: DeviceEngine::new(planned, &recipe.name)?.eager(),
        recipe,
    };
    let (kind, step, score) = match info.kind {
        DriverKind::Emulator => {
            let (step, score) = bench.counted(options)?;
            (Kind::Predicted, step, score)
        }
        DriverKind::Cuda => {
            let device = CurrentContext::get_device().map_err(DriverError::from)?;
            let (step, score) = bench.measured(options, ClockReader::open(&device))?;
            (Kind::Measured, step, score)
        }
    };
    let launched: BTreeSet<String> = step
        .iter()
        .chain(&score)
        .flat_map(|row| row.name.split(" + ").map(str::to_owned))
        .collect();
    let keep = |row: &Row| {
        let filter = options.filter.as_deref().unwrap_or_default();
        row.name.contains(filter)
    };
    let total = total(&step);
    let mut rows: Vec<Row> = step.into_iter().filter(|row| keep(row)).collect();
    // Scoring repeats the forward pass; only what is new in it is shown.
    let new = |row: &Row| !rows.iter().any(|known| known.key() == row.key());
    let extra: Vec<Row> = score
        .into_iter()
        .filter(|row| keep(row) && new(row))
        .map(|row| Row { count: 0, ..row })
        .collect();
    rows.extend(extra);
    Ok(Record {
        program: concat!("birdie ", env!("CARGO_PKG_VERSION")).to_owned(),
        date: utc_now(),
        device: Some(device_facts(&info)?),
        kind,
        model: Some(machine::MODEL.to_owned()),
        recipe: Some(recipe.name.clone()),
        step: format!(
            "{} x {} x {} tokens on 1 of {ranks} devices, {} layers of width {}",
            bench.micro_steps,
            bench.batch.sequences,
            bench.batch.seq_len,
            recipe.num_layers,
            recipe.model_dim
        ),
        rows,
        total,
        not_launched: modules::KERNEL_FILES
            .iter()
            .flat_map(|file| file.entries)
            .filter(|entry| !launched.contains(**entry))
            .map(|entry| (*entry).to_owned())
            .collect(),
    })
}

fn total(step: &[Row]) -> Total {
    let sum = |of: fn(&Row) -> f64| -> f64 {
        step.iter()
            .map(|row| of(row) * f64::from(row.count))
            .sum::<f64>()
            / 1e3
    };
    Total {
        ms: sum(Row::us),
        floor_ms: Some(sum(|row| row.floor_us.unwrap_or(0.0))),
        goal_ms: Some(machine::STEP_GOAL_MS),
        plan_floor_ms: Some(machine::STEP_FLOOR_MS),
        launches: step
            .iter()
            .map(|row| row.count * row.grid.len() as u32)
            .sum(),
    }
}

struct Bench<'a> {
    engine: DeviceEngine,
    recipe: &'a Recipe,
    batch: crate::model::buffers::Batch,
    micro_steps: usize,
}

impl Bench<'_> {
    fn counted(&mut self, options: &Options) -> Result<(Vec<Row>, Vec<Row>)> {
        let counting = Rc::new(RefCell::new(Counting::new(
            options.sample,
            options.filter.clone(),
        )));
        observed(counting.clone(), || self.step())?;
        let step = std::mem::take(&mut counting.borrow_mut().sequence);
        observed(counting.clone(), || self.score())?;
        let score = std::mem::take(&mut counting.borrow_mut().sequence);
        let rows = |operations: &[Operation<Counts>]| {
            merge(operations, |operations| {
                let operation = operations[0];
                let mut counts = operation.launches[0].1.clone();
                for (_, more) in &operation.launches[1..] {
                    counts.add(more);
                }
                let counts = counts.with_least_work(operation.work);
                let mut row = plain_row(operation);
                row.predicted = Some(counts.predict());
                row.counts = Some(counts);
                row
            })
        };
        Ok((rows(&step.operations), rows(&score.operations)))
    }

    /// Times the step and a scoring pass in every state of the cache; rows hold medians over everything that is the same work.
    pub(crate) fn measured(
        &mut self,
        options: &Options,
        clocks: Option<ClockReader>,
    ) -> Result<(Vec<Row>, Vec<Row>)> {
        // Loads, first touches and clocks settle.
        for _ in 0..2 {
            self.step()?;
            self.score()?;
        }
        let mut runs = Vec::new();
        for cache in [Cache::InStep, Cache::Cold, Cache::Warm] {
            let (mut steps, mut scores) = (Vec::new(), Vec::new());
            for _ in 0..options.repetitions.max(1) {
                steps.extend(self.timed(cache, Self::step)?);
                scores.extend(self.timed(cache, Self::score)?);
            }
            runs.push([steps, scores]);
        }
        let clocks = match clocks {
            Some(reader) => self.clocked(reader)?,
            None => Vec::new(),
        };
        let repetitions = options.repetitions.max(1);
        let rows = |which: usize| {
            let [in_step, cold, warm] = [0, 1, 2].map(|cache: usize| &runs[cache][which]);
            merge(in_step, |same| {
                let key = key_of(same[0]);
                let of = |operations: &[Operation<f64>]| {
                    let times = operations
                        .iter()
                        .filter(|operation| key_of(operation) == key)
                        .map(|operation| operation.launches.iter().map(|launch| launch.1).sum())
                        .collect();
                    Quantiles::of(times)
                };
                let mut row = plain_row(same[0]);
                let quantiles = of(in_step);
                row.measured = Some(Measured {
                    in_step: quantiles,
                    cold_l2: of(cold),
                    warm_l2: of(warm),
                    repetitions,
                    tflops: row.flops / quantiles.p50 / 1e6,
                    gbytes_per_second: row.bytes / quantiles.p50 / 1e3,
                    share_of_floor: row.floor_us.unwrap_or(0.0) / quantiles.p50,
                    clocks: lowest(&clocks, &key),
                });
                row
            })
            .into_iter()
            .map(|row| Row {
                count: row.count / repetitions,
                ..row
            })
            .collect()
        };
        Ok((rows(0), rows(1)))
    }

    fn timed(
        &mut self,
        cache: Cache,
        body: fn(&mut Self) -> Result<()>,
    ) -> Result<Vec<Operation<f64>>> {
        let timing = Rc::new(RefCell::new(Timing::new(cache)?));
        observed(timing.clone(), || body(self))?;
        CurrentContext::synchronize().map_err(DriverError::from)?;
        let timing = timing.borrow();
        timing.microseconds()
    }

    /// The clocks around every launch of a step and a scoring pass.
    fn clocked(&mut self, reader: ClockReader) -> Result<Vec<Operation<Option<Around>>>> {
        let clocking = Rc::new(RefCell::new(Clocking::new(reader)));
        observed(clocking.clone(), || {
            self.step()?;
            self.score()
        })?;
        let operations = std::mem::take(&mut clocking.borrow_mut().sequence.operations);
        Ok(operations)
    }

    fn tokens(&self, count: usize) -> (Vec<u16>, Vec<u16>) {
        // Any ids will do as long as they differ: a linear congruential generator.
        let vocabulary = self.recipe.vocab_size as u64;
        let mut state = 1u64;
        let ids: Vec<u16> = (0..=count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % vocabulary) as u16
            })
            .collect();
        (ids[..count].to_vec(), ids[1..].to_vec())
    }

    fn step(&mut self) -> Result<()> {
        let (tokens, targets) = self.tokens(self.micro_steps * self.batch.tokens());
        self.engine.step(&StepInputs {
            tokens: &tokens,
            targets: &targets,
            micro_steps: self.micro_steps,
            rates: Rates {
                matrix_lr: 1e-3,
                embedding_lr: 1e-3,
                scalar_lr: 1e-3,
                muon_momentum: 0.95,
                grad_clip_norm: self.recipe.grad_clip_norm as f32,
            },
            fake_quantize: false,
            update_ema: true,
            ahead: None,
        })?;
        Ok(())
    }

    fn score(&mut self) -> Result<()> {
        let (tokens, targets) = self.tokens(self.batch.tokens());
        let _ = self
            .engine
            .score(&tokens, &targets, self.batch.seq_len, Logits::F32)?;
        // What comes after training: the largest matrix on its way into the artifact.
        let (d, hidden) = (self.recipe.model_dim, self.recipe.mlp_width());
        let weights: Vec<f32> = (0..d * hidden)
            .map(|i| ((i * 7919) % 997) as f32 / 400.0 - 1.2)
            .collect();
        let bits = self.recipe.quant_bits as u8;
        let _ = self.engine.clip_search(&weights, d, bits)?;
        Ok(())
    }
}

/// The lowest clocks around the launches of the operations that are this row.
fn lowest(operations: &[Operation<Option<Around>>], key: &[&Shape]) -> Option<Around> {
    operations
        .iter()
        .filter(|operation| key_of(operation) == key)
        .flat_map(|operation| &operation.launches)
        .filter_map(|(_, around)| *around)
        .reduce(Around::lowest)
}

/// What makes two operations one row.
fn key_of<T>(operation: &Operation<T>) -> Vec<&Shape> {
    operation.launches.iter().map(|launch| &launch.0).collect()
}

/// One row for all operations that are the same work, in order of first appearance.
fn merge<T>(operations: &[Operation<T>], row: impl Fn(&[&Operation<T>]) -> Row) -> Vec<Row> {
    let mut groups: Vec<Vec<&Operation<T>>> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for operation in operations.iter().filter(|o| !o.launches.is_empty()) {
        let at = *index.entry(key_of(operation)).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => group.push(operation),
            None => groups.push(vec![operation]),
        }
    }
    groups
        .iter()
        .map(|group| Row {
            count: group.len() as u32,
            ..row(group)
        })
        .collect()
}

fn plain_row<T>(operation: &Operation<T>) -> Row {
    let names: Vec<&str> = operation
        .launches
        .iter()
        .map(|(shape, _)| shape.entry.as_str())
        .collect();
    let Work { flops, bytes } = operation.work;
    let name = names.join(" + ");
    let matrix = name.starts_with("gemm_")
        || name.starts_with("head_")
        || name.starts_with("attention_forward")
        || name.starts_with("attention_backward");
    Row {
        floor_us: Some(machine::floor_us(flops as f64, bytes as f64, matrix)),
        entry: None,
        name,
        sizes: operation.launches[0].0.sizes(),
        grid: operation
            .launches
            .iter()
            .map(|(shape, _)| shape.grid)
            .collect(),
        count: 1,
        flops: flops as f64,
        bytes: bytes as f64,
        counts: None,
        predicted: None,
        measured: None,
    }
}

fn device_facts(info: &driver::DriverInfo) -> Result<DeviceFacts> {
    let device = CurrentContext::get_device().map_err(DriverError::from)?;
    let attribute = |which| -> Result<u32> {
        let value = device.get_attribute(which).map_err(DriverError::from)?;
        Ok(value.max(0) as u32)
    };
    Ok(DeviceFacts {
        name: info.device_name.clone(),
        driver_kind: match info.kind {
            DriverKind::Cuda => "cuda",
            DriverKind::Emulator => "emu",
        }
        .to_owned(),
        driver: format!("{}.{}", info.version / 1000, info.version % 1000 / 10),
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        max_clock_khz: attribute(DeviceAttribute::ClockRate)?,
        max_memory_clock_khz: attribute(DeviceAttribute::MemoryClockRate)?,
        l2_bytes: attribute(DeviceAttribute::L2CacheSize)?,
        compiled_by: modules::KERNEL_COMPILER.to_owned(),
    })
}

/// Now, as `2026-11-22T01:40:07Z`.
fn utc_now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    utc(seconds)
}

fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86400, seconds % 86400);
    // Days to a date of the proleptic Gregorian calendar whose years start in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod dates {
    use super::utc;

    #[test]
    fn of_seconds_since_1970() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_311_607), "2026-11-22T01:40:07Z");
    }
}

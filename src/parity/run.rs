//! Runs parity cases on the device.

use std::collections::BTreeMap;

use anyhow::Result;

use super::case::Case;
use super::compare::{Tally, Tolerance};
use super::judge::{self, Outcome, Tensors};
use super::recipe::recipe;
use crate::arena::size;
use crate::driver::{self, DriverKind};
use crate::failure::Failure;
use crate::model::engine::{DeviceEngine, plan_model};
use crate::recipe::Recipe;
use crate::train::engine::{Element, Engine, NamedTensor, Rates, StepInputs, Weights};

/// Everything that a model case compares, in the order in which it comes up: one tally, or one per optimizer step and one for
/// the moving average. A driver must have been chosen.
pub fn run_case(case: &Case) -> Result<Vec<Tally>> {
    let (recipe, config) = recipe(case)?;
    let planned = plan_model(config, &recipe, 1)?;
    check_host_memory(case, planned.plan.total())?;
    let mut engine = DeviceEngine::with_weights(planned, &recipe.name, &case_weights(case))?;
    if case.optimizer.is_some() {
        steps(case, &recipe, &mut engine)
    } else {
        let (tokens, targets) = tokens(case, case.seed);
        let seen = engine.inspect(&tokens, &targets, case.model.qat)?;
        let outcome = Outcome {
            loss: f64::from(seen.loss),
            token_loss: seen.token_loss.into_iter().map(f64::from).collect(),
            activations: widen(seen.activations),
            grads: widen(seen.grads),
        };
        Ok(vec![judge::outcome(case, &outcome, Tolerance::BF16)])
    }
}

/// The emulator's device memory is the host's: what is not there would end the process, not the allocation.
fn check_host_memory(case: &Case, bytes: u64) -> Result<()> {
    let emulated = driver::active().is_some_and(|info| info.kind == DriverKind::Emulator);
    let available = available_memory().unwrap_or(u64::MAX);
    if emulated && bytes > available {
        return Err(Failure::user(
            format!("{} {}", case.recipe, case.case),
            format!(
                "the model needs {} and this machine has {} free for an emulated device",
                size(bytes),
                size(available)
            ),
            "use a smaller case, or a GPU",
        )
        .into());
    }
    Ok(())
}

/// What Linux believes it could still hand out.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The case's weights under their published names.
pub fn case_weights(case: &Case) -> Vec<NamedTensor> {
    case.weights
        .iter()
        .map(|weight| NamedTensor {
            name: weight.name.clone(),
            shape: weight.shape.clone(),
            stored: Element::F32,
            values: weight.values(case.seed),
        })
        .collect()
}

/// Token ids of a case as the engine takes them.
pub fn tokens(case: &Case, seed: u64) -> (Vec<u16>, Vec<u16>) {
    let (inputs, targets) = case.tokens(seed);
    let narrow = |ids: Vec<u32>| ids.into_iter().map(|id| id as u16).collect();
    (narrow(inputs), narrow(targets))
}

fn steps(case: &Case, recipe: &Recipe, engine: &mut DeviceEngine) -> Result<Vec<Tally>> {
    let initial = by_name(engine.export(Weights::Live)?);
    let mut tallies = Vec::new();
    for expected in &case.steps {
        let (tokens, targets) = tokens(case, expected.token_seed);
        let output = engine.step(&StepInputs {
            tokens: &tokens,
            targets: &targets,
            ahead: None,
            micro_steps: 1,
            rates: Rates {
                matrix_lr: recipe.matrix_lr as f32,
                embedding_lr: recipe.tied_embed_lr as f32,
                scalar_lr: recipe.scalar_lr as f32,
                muon_momentum: expected.muon_momentum as f32,
                grad_clip_norm: recipe.grad_clip_norm as f32,
            },
            fake_quantize: case.model.qat,
            update_ema: true,
        })?;
        let moved = deltas(by_name(engine.export(Weights::Live)?), &initial);
        let scalars = (f64::from(output.loss), f64::from(output.grad_norm));
        tallies.push(judge::step(
            case,
            expected,
            scalars,
            &moved,
            Tolerance::BF16,
        ));
    }
    let average = deltas(by_name(engine.export(Weights::Ema)?), &initial);
    tallies.push(judge::ema(case, &average, Tolerance::BF16));
    Ok(tallies)
}

fn by_name(tensors: Vec<NamedTensor>) -> BTreeMap<String, Vec<f32>> {
    tensors.into_iter().map(|t| (t.name, t.values)).collect()
}

fn widen(tensors: BTreeMap<String, Vec<f32>>) -> Tensors {
    tensors
        .into_iter()
        .map(|(name, values)| (name, values.into_iter().map(f64::from).collect()))
        .collect()
}

fn deltas(now: BTreeMap<String, Vec<f32>>, initial: &BTreeMap<String, Vec<f32>>) -> Tensors {
    now.into_iter()
        .map(|(name, values)| {
            let pairs = values.iter().zip(&initial[&name]);
            let moved = pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            (name, moved)
        })
        .collect()
}

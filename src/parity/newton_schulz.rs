//! `all_M`: the five Newton-Schulz steps of Muon on the device, against float64 and against what the published code makes of them in bf16.
//!
//! The bf16 iteration is not a small perturbation: five steps with factors up to 3.4 carry each rounding along, so the published
//! results lie `noise` (an l2 distance, 3 to 4 %) from the float64 one, and the two published ways as far from each other. The
//! device has to be as near to float64 as they are, and to each of them as two such results are to each other.

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::case::{Summary, Weight, elements};
use super::compare::{Tally, Tolerance};
use crate::arena::{Element, Plan, Region};
use crate::failure::Failure;
use crate::kernels::muon::{Bank, NewtonSchulz};
use crate::kernels::step_values::{self, StepValues};
use crate::model::device::Device;

const MOST_ELEMENTS: usize = 1 << 24;

#[derive(Debug, Deserialize)]
pub struct NewtonSchulzCase {
    seed: u64,
    weights: Vec<Weight>,
    results: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    name: String,
    float64: Summary,
    bf16_657_518: Option<Summary>,
    bf16_banked: Option<Summary>,
    noise_657_518: f64,
    noise_banked: f64,
}

impl NewtonSchulzCase {
    /// Refuses what cannot be run.
    pub(super) fn check(&self) -> Result<()> {
        let refuse =
            |why: String| Failure::user("matrices", why, "see src/parity/newton_schulz.rs");
        ensure!(
            !self.results.is_empty(),
            refuse("the case has no results".into())
        );
        for result in &self.results {
            let Some(weight) = self.weights.iter().find(|w| w.name == result.name) else {
                return Err(refuse(format!("{} is not among the weights", result.name)).into());
            };
            let shape = &weight.shape;
            ensure!(
                weight.is_sound()
                    && shape.len() == 2
                    && elements(shape).is_some_and(|n| n <= MOST_ELEMENTS)
                    && shape.iter().all(|s| *s > 0),
                refuse(format!(
                    "{} has shape {shape:?}: two sizes and at most {MOST_ELEMENTS} elements",
                    weight.name
                ))
            );
        }
        Ok(())
    }

    pub(super) fn run(&self) -> Result<Vec<Tally>> {
        let mut tallies = Vec::new();
        for result in &self.results {
            let weights = self.weights.iter().filter(|w| w.name == result.name);
            for weight in weights.take(1) {
                let got = on_device(&weight.values(self.seed), &weight.shape)?;
                tallies.push(result.compare(self.seed, &got));
            }
        }
        Ok(tallies)
    }
}

impl Expected {
    fn compare(&self, seed: u64, got: &[f64]) -> Tally {
        let mut tally = Tally::model(format!("all M {}", self.name));
        let noise = self.noise_657_518.max(self.noise_banked);
        let labelled = |kind: &str, summary: &Summary, noise: f64| {
            let mut summary = summary.clone();
            summary.noise = noise;
            (kind.to_owned(), summary)
        };
        let mut all = vec![labelled("float64", &self.float64, noise)];
        let apart = std::f64::consts::SQRT_2 * noise;
        all.extend(
            self.bf16_657_518
                .iter()
                .map(|s| labelled("bf16 657/518", s, apart)),
        );
        all.extend(
            self.bf16_banked
                .iter()
                .map(|s| labelled("bf16 banked", s, apart)),
        );
        for (kind, summary) in all {
            tally.tensor_as(&kind, seed, &summary, got, Tolerance::BF16);
        }
        tally
    }
}

/// What Muon makes of a gradient in its first step, without momentum: `[rows, columns]` from the device. The device takes multiples
/// of 8: rows and columns of zeros around the matrix stay zeros in every step and change nothing else.
fn on_device(values: &[f32], shape: &[usize]) -> Result<Vec<f64>> {
    let (rows, columns) = (shape[0], shape[1]);
    let padded = [rows, columns].map(|n| n.next_multiple_of(8));
    let mut around = vec![0.0; padded[0] * padded[1]];
    for (to, from) in around.chunks_mut(padded[1]).zip(values.chunks(columns)) {
        to[..columns].copy_from_slice(from);
    }
    let result = padded_on_device(&around, &padded)?;
    let inner = result.chunks(padded[1]).take(rows);
    Ok(inner.flat_map(|row| &row[..columns]).copied().collect())
}

fn padded_on_device(values: &[f32], shape: &[usize]) -> Result<Vec<f64>> {
    let bank = Bank {
        matrices: 1,
        rows: shape[0] as u64,
        columns: shape[1] as u64,
    };
    let side = bank.side() as usize;
    let mut plan = Plan::default();
    let mut reserve = |name: &str, element, shape: &[usize]| {
        plan.reserve(Region::Workspace, name, element, shape)
    };
    let gradient = reserve("gradient", Element::F32, shape);
    let momentum = reserve("momentum", Element::F32, shape);
    let (x, y) = (
        reserve("x", Element::Bf16, shape),
        reserve("y", Element::Bf16, shape),
    );
    let gram = reserve("gram", Element::Bf16, &[side, side]);
    let polynomial = reserve("polynomial", Element::Bf16, &[side, side]);
    let partial = reserve("partial sums", Element::F32, &[bank.partials() as usize]);
    let step = reserve("step values", Element::U8, &[step_values::BYTES as usize]);
    let device = Device::new(&plan, "parity")?;
    device.memory.write_floats(gradient, values)?;
    let zero: StepValues = bytemuck::Zeroable::zeroed();
    device.memory.write_bytes(step, bytemuck::bytes_of(&zero))?;
    let (kernels, stream) = (&device.kernels, &device.stream);
    kernels.muon_momentum(
        stream,
        bank,
        device.at(gradient),
        device.at(momentum),
        false,
        device.at(x),
        device.at(partial),
        device.at(step),
        None,
    )?;
    kernels.muon_normalize(stream, bank, device.at(x), device.at(partial))?;
    let buffers = NewtonSchulz {
        x: device.at(x),
        y: device.at(y),
        gram: device.at(gram),
        polynomial: device.at(polynomial),
    };
    let (result, _) = kernels.newton_schulz(stream, bank, buffers)?;
    device.finish()?;
    let place = if result == device.at(x) { x } else { y };
    let values = device.memory.read_floats(place)?;
    Ok(values.into_iter().map(f64::from).collect())
}

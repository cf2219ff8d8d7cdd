//! Every comparison of a case, given what an engine computed.

use std::collections::BTreeMap;

use super::case::{Case, Step, Summary};
use super::compare::{Tally, Tolerance};

/// Tensors by published name, flat and row-major.
pub type Tensors = BTreeMap<String, Vec<f64>>;

/// What one forward and backward of a case computes.
pub struct Outcome {
    pub loss: f64,
    /// `batch * seq_len` losses in nats; empty if the engine did not keep them.
    pub token_loss: Vec<f64>,
    /// By the case's names. What is missing here counts as missed.
    pub activations: Tensors,
    /// A parameter that is not in the graph has no entry.
    pub grads: Tensors,
}

impl Outcome {
    /// The l2 norm over all gradients.
    pub fn grad_norm(&self) -> f64 {
        self.grads
            .values()
            .flatten()
            .map(|g| g * g)
            .sum::<f64>()
            .sqrt()
    }
}

/// Judges a forward and backward.
pub fn outcome(case: &Case, got: &Outcome, tolerance: Tolerance) -> Tally {
    let mut tally = Tally::model(format!("{} {}", case.recipe, case.case));
    let loss_bound = 5e-4 / tolerance.divisor * case.loss.abs();
    tally.require("loss", case.loss, got.loss, loss_bound);
    if let Some(norm) = case.grad_norm {
        let bound = 5e-3 / tolerance.divisor * norm;
        tally.require("grad_norm", norm, got.grad_norm(), bound);
    }
    if let Some(expected) = &case.token_loss_summary {
        tally.tensor(
            case.seed,
            expected,
            &got.token_loss,
            tolerance.for_token_loss(),
        );
    }
    tensors(
        &mut tally,
        case.seed,
        &case.activations,
        &got.activations,
        tolerance,
    );
    tensors(&mut tally, case.seed, &case.grads, &got.grads, tolerance);
    tally
}

/// Judges one optimizer step: the loss and gradient norm before it, and the parameters' distances from their initial values.
pub fn step(
    case: &Case,
    expected: &Step,
    (loss, grad_norm): (f64, f64),
    deltas: &Tensors,
    tolerance: Tolerance,
) -> Tally {
    let mut tally = Tally::step(format!(
        "{} {} step {}",
        case.recipe, case.case, expected.step
    ));
    tally.step_scalars(expected, loss, grad_norm);
    tensors(&mut tally, case.seed, &expected.deltas, deltas, tolerance);
    tally
}

/// Judges the moving average after the last step (its distance from the initial values).
pub fn ema(case: &Case, deltas: &Tensors, tolerance: Tolerance) -> Tally {
    let mut tally = Tally::step(format!("{} {} ema", case.recipe, case.case));
    tensors(&mut tally, case.seed, &case.ema, deltas, tolerance);
    tally
}

fn tensors(
    tally: &mut Tally,
    seed: u64,
    expected: &[Summary],
    got: &Tensors,
    tolerance: Tolerance,
) {
    for expected in expected {
        match got.get(&expected.name) {
            Some(values) => tally.tensor(seed, expected, values, tolerance),
            None => {
                // Absent is right for what the case marks as unused, and for the skips of a model without any: nothing is nothing.
                let nothing = expected.unused || expected.shape.contains(&0);
                let present = f64::from(!nothing);
                tally.require(format!("{} present", expected.name), present, 0.0, 0.0);
            }
        }
    }
}

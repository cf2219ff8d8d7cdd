//! Comparison with expected summaries, and the verdict over a case.
//!
//! With z = max(noise, 1e-3 * l2) for a tensor of n elements, a bf16 engine must have its l2 norm within z (5 z below 64 elements),
//! each signed sum within 5 z, each sample within max(12 z / sqrt(n), a relative bound). The noise is measured, not guessed: some
//! scalar gradients are sums that nearly cancel, where no relative tolerance fits. Single errors have long tails, so a small
//! share of a case's comparisons may miss: 1 in 500, and 1 in 100 of an optimizer step.
//!
//! More exact arithmetic is held to a smaller [`Tolerance`]: the same rule with z divided.

use super::case::{Step, Summary, elements};
use super::rule;

/// How closely a computation must agree.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// z is divided by this.
    pub divisor: f64,
    /// A sample within this relative error passes whatever z is.
    pub sample_relative: f64,
}

impl Tolerance {
    /// For bf16 arithmetic with f32 accumulation.
    pub const BF16: Self = Self::divided_by(1.0);

    /// For more exact arithmetic, which errs `divisor` times less than bf16.
    pub const fn divided_by(divisor: f64) -> Self {
        Self {
            divisor,
            sample_relative: 3e-2 / divisor,
        }
    }

    /// The same, with the relative bound that per-token losses have.
    pub const fn for_token_loss(self) -> Self {
        Self {
            divisor: self.divisor,
            sample_relative: 1e-2 / self.divisor,
        }
    }

    fn z(self, expected: &Summary) -> f64 {
        expected.noise.max(1e-3 * expected.l2) / self.divisor
    }
}

/// One comparison.
#[derive(Debug, Clone)]
pub struct Row {
    pub quantity: String,
    pub expected: f64,
    pub got: f64,
    pub tolerance: f64,
    /// Expected and got, where they are no numbers. The numbers are then 0 and 0, or 0 and 1 if the texts differ.
    pub texts: Option<[String; 2]>,
}

impl Row {
    pub fn error(&self) -> f64 {
        (self.got - self.expected).abs()
    }

    /// A comparison with a NaN fails.
    pub fn passes(&self) -> bool {
        self.error() <= self.tolerance
    }

    /// Error over tolerance; infinite where an exact value was missed.
    pub fn severity(&self) -> f64 {
        if self.passes() && self.error() == 0.0 {
            return 0.0;
        }
        let severity = self.error() / self.tolerance;
        if severity.is_nan() {
            f64::INFINITY
        } else {
            severity
        }
    }
}

/// Comparisons under one allowance of misses.
#[derive(Debug, Clone)]
pub struct Tally {
    pub title: String,
    pub rows: Vec<Row>,
    /// Share of `rows` that may miss.
    pub allowance: f64,
    /// What must not miss at all: the loss, the gradient norm, shapes, what must be absent.
    pub strict: Vec<Row>,
}

impl Tally {
    /// For a forward and backward: 1 in 500 may miss.
    pub fn model(title: impl Into<String>) -> Self {
        Self::new(title, 1.0 / 500.0)
    }

    /// For what has to agree to the last comparison: integers, codes, texts, and floats within their own tolerance.
    pub fn exact(title: impl Into<String>) -> Self {
        Self::new(title, 0.0)
    }

    /// For an optimizer step: AdamW turns a gradient near zero into a full step of either sign, so 1 in 100 may miss.
    pub fn step(title: impl Into<String>) -> Self {
        Self::new(title, 1.0 / 100.0)
    }

    fn new(title: impl Into<String>, allowance: f64) -> Self {
        Self {
            title: title.into(),
            rows: Vec::new(),
            allowance,
            strict: Vec::new(),
        }
    }

    /// A scalar that has to agree.
    pub fn require(
        &mut self,
        quantity: impl Into<String>,
        expected: f64,
        got: f64,
        tolerance: f64,
    ) {
        self.strict.push(Row {
            quantity: quantity.into(),
            expected,
            got,
            tolerance,
            texts: None,
        });
    }

    /// A text that has to agree.
    pub fn require_text(
        &mut self,
        quantity: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) {
        let texts = [expected.into(), got.into()];
        self.strict.push(Row {
            quantity: quantity.into(),
            expected: 0.0,
            got: f64::from(u8::from(texts[0] != texts[1])),
            tolerance: 0.0,
            texts: Some(texts),
        });
    }

    /// An integer that has to agree.
    pub fn require_count(&mut self, quantity: impl Into<String>, expected: i64, got: i64) {
        self.require(quantity, expected as f64, got as f64, 0.0);
    }

    /// A float that has to agree within a share of itself.
    pub fn require_close(
        &mut self,
        quantity: impl Into<String>,
        expected: f64,
        got: f64,
        relative: f64,
    ) {
        self.require(quantity, expected, got, relative * expected.abs());
    }

    fn push(&mut self, quantity: String, expected: f64, got: f64, tolerance: f64) {
        self.rows.push(Row {
            quantity,
            expected,
            got,
            tolerance,
            texts: None,
        });
    }

    /// Compares the tensor `got` with `expected`; `seed` is the case's.
    pub fn tensor(&mut self, seed: u64, expected: &Summary, got: &[f64], tolerance: Tolerance) {
        self.tensor_as(&expected.name, seed, expected, got, tolerance);
    }

    /// The same under another name in the table; signs and positions are still those of the summary's name.
    pub fn tensor_as(
        &mut self,
        title: &str,
        seed: u64,
        expected: &Summary,
        got: &[f64],
        tolerance: Tolerance,
    ) {
        let name = &expected.name;
        let count = elements(&expected.shape).unwrap_or(usize::MAX);
        if got.len() != count {
            self.require(
                format!("{title} elements"),
                count as f64,
                got.len() as f64,
                0.0,
            );
            return;
        }
        let z = tolerance.z(expected);
        let l2 = got.iter().map(|x| x * x).sum::<f64>().sqrt();
        let l2_bound = if count < 64 { 5.0 * z } else { z };
        self.push(format!("{title} l2"), expected.l2, l2, l2_bound);
        for (j, &sum) in expected.signs.iter().enumerate() {
            let computed = rule::signed_sum(seed, name, j, got);
            self.push(format!("{title} signs[{j}]"), sum, computed, 5.0 * z);
        }
        // A model of one layer has no skip: its skip_weights are empty, and have no place to sample.
        let samples = if count == 0 {
            0
        } else {
            expected.samples.len()
        };
        let positions = rule::positions(seed, name, count, samples);
        for (&position, &sample) in positions.iter().zip(&expected.samples) {
            let bound =
                (12.0 * z / (count as f64).sqrt()).max(tolerance.sample_relative * sample.abs());
            self.push(format!("{title}[{position}]"), sample, got[position], bound);
        }
    }

    /// The scalars of an optimizer step.
    pub fn step_scalars(&mut self, expected: &Step, loss: f64, grad_norm: f64) {
        let bound =
            |value: f64, relative: f64, noise: f64| (relative * value.abs()).max(5.0 * noise);
        let tolerance = bound(expected.loss, 1e-3, expected.loss_noise);
        self.require("loss", expected.loss, loss, tolerance);
        let tolerance = bound(expected.grad_norm, 5e-3, expected.grad_norm_noise);
        self.require("grad_norm", expected.grad_norm, grad_norm, tolerance);
    }

    pub fn misses(&self) -> usize {
        self.rows.iter().filter(|row| !row.passes()).count()
    }

    pub fn allowed_misses(&self) -> usize {
        (self.rows.len() as f64 * self.allowance) as usize
    }

    pub fn passes(&self) -> bool {
        self.misses() <= self.allowed_misses() && self.strict.iter().all(Row::passes)
    }

    /// All comparisons, the worst first.
    pub fn worst(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.strict.iter().chain(&self.rows).collect();
        rows.sort_by(|a, b| b.severity().total_cmp(&a.severity()));
        rows
    }

    /// A verdict line, then the table of the `limit` worst comparisons.
    pub fn report(&self, limit: usize) -> String {
        let strict = self.strict.iter().filter(|row| !row.passes()).count();
        let mut text = format!(
            "{}: {} ({} comparisons, {} missed, {} allowed; {} of {} required values missed)\n",
            self.title,
            if self.passes() { "ok" } else { "OFF" },
            self.rows.len(),
            self.misses(),
            self.allowed_misses(),
            strict,
            self.strict.len(),
        );
        text += &format!(
            "  {:<44} {:>15} {:>15} {:>11} {:>11}  verdict\n",
            "quantity", "expected", "got", "error", "tolerance"
        );
        for row in self.worst().into_iter().take(limit) {
            let [expected, got] = row
                .texts
                .clone()
                .unwrap_or_else(|| [row.expected, row.got].map(|x| format!("{x:.8e}")));
            text += &format!(
                "  {:<44} {expected:>15} {got:>15} {:>11.3e} {:>11.3e}  {}\n",
                row.quantity,
                row.error(),
                row.tolerance,
                if row.passes() { "ok" } else { "off" },
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: &[f64]) -> Summary {
        Summary {
            name: "x".into(),
            shape: vec![values.len()],
            l2: values.iter().map(|x| x * x).sum::<f64>().sqrt(),
            signs: (0..4)
                .map(|j| rule::signed_sum(1, "x", j, values))
                .collect(),
            samples: rule::positions(1, "x", values.len(), 16)
                .iter()
                .map(|&p| values[p])
                .collect(),
            noise: 0.0,
            unused: false,
        }
    }

    #[test]
    fn equal_tensors_pass_and_scaled_ones_do_not() {
        let values: Vec<f64> = (0..256).map(|i| f64::from(i).sin()).collect();
        let mut tally = Tally::model("same");
        tally.tensor(1, &summary(&values), &values, Tolerance::divided_by(100.0));
        assert!(tally.passes(), "{}", tally.report(5));
        let scaled: Vec<f64> = values.iter().map(|x| x * 1.01).collect();
        let mut tally = Tally::model("scaled");
        tally.tensor(1, &summary(&values), &scaled, Tolerance::BF16);
        assert!(!tally.passes());
    }

    #[test]
    fn a_nan_or_a_wrong_length_fails() {
        let values = vec![1.0; 64];
        let mut broken = values.clone();
        broken[3] = f64::NAN;
        let mut tally = Tally::model("nan");
        tally.tensor(1, &summary(&values), &broken, Tolerance::BF16);
        assert!(!tally.passes());
        let mut tally = Tally::model("short");
        tally.tensor(1, &summary(&values), &values[..63], Tolerance::BF16);
        assert!(!tally.passes());
    }
}

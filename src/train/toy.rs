//! A tiny engine on the host for tests of the loop: a table of bigram logits trained by gradient descent with momentum.

use super::engine::*;
use anyhow::{Result, ensure};

pub struct Toy {
    pub vocab: usize,
    pub weights: Vec<f32>,
    momentum: Vec<f32>,
    ema: Vec<f32>,
    /// Makes the given call of `step` (from 1) put a NaN into the weights.
    pub poison: Option<usize>,
    pub calibrates: bool,
    pub calls: usize,
    pub seen: Vec<Rates>,
    /// Tokens announced by the last step, and how many steps were given what had been announced.
    ahead: Option<Vec<u16>>,
    pub foreseen: usize,
    adapt_momentum: Vec<f32>,
    snapshot_sum: Vec<f32>,
}

impl Toy {
    pub fn new(vocab: usize) -> Self {
        let weights: Vec<f32> = (0..vocab * vocab)
            .map(|i| ((i * 31 % 17) as f32 - 8.0) / 100.0)
            .collect();
        Self {
            vocab,
            momentum: vec![0.0; weights.len()],
            ema: weights.clone(),
            weights,
            poison: None,
            calibrates: true,
            calls: 0,
            seen: Vec::new(),
            ahead: None,
            foreseen: 0,
            adapt_momentum: Vec::new(),
            snapshot_sum: vec![0.0; vocab * vocab],
        }
    }

    /// Mean loss and its gradient.
    fn gradient(&self, tokens: &[u16], targets: &[u16]) -> (f32, Vec<f32>) {
        let count = tokens.len() as f32;
        let mut gradient = vec![0.0f32; self.weights.len()];
        let mut loss = 0.0;
        for (token, target) in tokens.iter().zip(targets) {
            let row = self.log_probabilities(*token);
            loss -= row[usize::from(*target)];
            for (v, l) in row.iter().enumerate() {
                gradient[usize::from(*token) * self.vocab + v] +=
                    (l.exp() - f32::from(v == usize::from(*target))) / count;
            }
        }
        (loss / count, gradient)
    }

    /// Log-probabilities after `token`.
    fn log_probabilities(&self, token: u16) -> Vec<f32> {
        let row = &self.weights[usize::from(token) * self.vocab..][..self.vocab];
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = row.iter().map(|x| (x - largest).exp()).sum();
        row.iter().map(|x| x - largest - sum.ln()).collect()
    }
}

impl Engine for Toy {
    fn step(&mut self, inputs: &StepInputs<'_>) -> Result<StepOutput> {
        self.calls += 1;
        self.seen.push(inputs.rates);
        self.foreseen += usize::from(self.ahead.as_deref() == Some(inputs.tokens));
        self.ahead = inputs.ahead.map(|[tokens, _]| tokens.to_vec());
        let (loss, gradient) = self.gradient(inputs.tokens, inputs.targets);
        for ((w, m), g) in self
            .weights
            .iter_mut()
            .zip(&mut self.momentum)
            .zip(&gradient)
        {
            *m = inputs.rates.muon_momentum * *m + g;
            *w -= inputs.rates.matrix_lr * *m;
        }
        if inputs.update_ema {
            for (e, w) in self.ema.iter_mut().zip(&self.weights) {
                *e = 0.9 * *e + 0.1 * w;
            }
        }
        if self.poison == Some(self.calls) {
            self.weights[0] = f32::NAN;
            return Ok(StepOutput {
                loss: f32::NAN,
                grad_norm: 1.0,
            });
        }
        Ok(StepOutput {
            loss,
            grad_norm: gradient.iter().map(|g| g * g).sum::<f32>().sqrt(),
        })
    }

    fn score(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
        _: Logits,
    ) -> Result<Vec<f32>> {
        ensure!(tokens.len().is_multiple_of(seq_len));
        Ok(tokens
            .iter()
            .zip(targets)
            .map(|(token, target)| -self.log_probabilities(*token)[usize::from(*target)])
            .collect())
    }

    fn export(&mut self, which: Weights) -> Result<Vec<NamedTensor>> {
        let values = match which {
            Weights::Live => self.weights.clone(),
            Weights::Ema => self.ema.clone(),
            Weights::SnapshotSum => self.snapshot_sum.clone(),
        };
        Ok(vec![NamedTensor {
            name: "blocks.0.mlp.fc.weight".into(),
            shape: vec![self.vocab, self.vocab],
            stored: Element::F32,
            values,
        }])
    }

    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        for tensor in tensors {
            ensure!(
                tensor.name == "blocks.0.mlp.fc.weight"
                    && tensor.values.len() == self.weights.len()
            );
            self.weights.clone_from(&tensor.values);
        }
        Ok(())
    }

    fn save_state(&mut self) -> Result<Vec<StateTensor>> {
        let tensor = |name: &str, values: &[f32]| StateTensor {
            name: name.into(),
            element: Element::F32,
            shape: vec![values.len()],
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Ok(vec![
            tensor("param", &self.weights),
            tensor("momentum", &self.momentum),
            tensor("ema", &self.ema),
            tensor("swa", &self.snapshot_sum),
        ])
    }

    fn load_state(&mut self, state: &[StateTensor]) -> Result<()> {
        ensure!(state.len() == 4, "{} tensors", state.len());
        let places = [
            &mut self.weights,
            &mut self.momentum,
            &mut self.ema,
            &mut self.snapshot_sum,
        ];
        for (tensor, values) in state.iter().zip(places) {
            *values = tensor
                .bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
        }
        Ok(())
    }

    fn collect_snapshot(&mut self, first: bool) -> Result<()> {
        for (sum, weight) in self.snapshot_sum.iter_mut().zip(&self.weights) {
            *sum = if first { *weight } else { *sum + weight };
        }
        Ok(())
    }

    fn find_non_finite(&mut self) -> Result<Option<String>> {
        Ok(self
            .weights
            .iter()
            .any(|w| !w.is_finite())
            .then(|| "blocks.0.mlp.fc.weight".to_owned()))
    }

    /// Descent with momentum, whatever the rule.
    fn adapt(&mut self, inputs: &AdaptInputs<'_>) -> Result<StepOutput> {
        let (loss, gradient) = self.gradient(inputs.tokens, inputs.targets);
        if inputs.update == 1 {
            self.adapt_momentum = vec![0.0; self.weights.len()];
        }
        let AdaptRule::Sgd { momentum } = inputs.rule else {
            anyhow::bail!("the toy has no AdamW")
        };
        let state = self.weights.iter_mut().zip(&mut self.adapt_momentum);
        for ((w, m), g) in state.zip(&gradient) {
            *m = momentum * *m + g;
            *w -= inputs.learning_rate * *m;
        }
        Ok(StepOutput {
            loss,
            grad_norm: gradient.iter().map(|g| g * g).sum::<f32>().sqrt(),
        })
    }

    fn calibrates(&self) -> bool {
        self.calibrates
    }

    /// Inputs are one-hot tokens.
    fn hessians(&mut self, tokens: &[u16], _: usize) -> Result<crate::quantize::Hessians> {
        let mut values = vec![0.0; self.vocab * self.vocab];
        for token in tokens {
            values[usize::from(*token) * (self.vocab + 1)] += 1.0;
        }
        Ok([("blocks.0.mlp.fc.weight".to_owned(), values)].into())
    }

    fn generate(
        &mut self,
        sequences: usize,
        seq_len: usize,
        _: f32,
        seed: u64,
    ) -> Result<Vec<u16>> {
        Ok((0..sequences * seq_len)
            .map(|i| ((i as u64 * 7 + seed) % self.vocab as u64) as u16)
            .collect())
    }
}

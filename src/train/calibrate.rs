//! Hessians for GPTQ: sums of x xᵀ over the inputs x of each attention and MLP matrix.
//!
//! Two published sources. *Self-generated*: after training, the model writes `calibration_sequences` sequences and
//! reads each but for its last token; the mean over the sequences is damped by 1 % of its mean diagonal (GPTQ then adds its
//! own). *Online*: every `hessian_every` steps, once the learning rate has fallen below `hessian_below`, one extra
//! batch is taken from the training data (which shifts the data of all later steps) and its first micro-step is read
//! with the live weights; the mean over these is used as it is. Where one cannot be used, batches after the training fill it in.
//!
//! The products themselves are the engine's ([`Engine::hessians`]), in f32; published products come out of the tensor cores
//! rounded to bf16, which `hessian_dtype = "bf16"` repeats before a batch is added to the others.

use super::engine::{Element, Engine, StateTensor};
use crate::quantize::Hessians;
use crate::recipe::{HessianSource, Quantizer, Recipe, StorageType};
use anyhow::{Result, ensure};
use half::bf16;
use std::collections::BTreeMap;

const PREFIX: &str = "hessian/";
const DAMPING: f64 = 0.01;

/// Hessians accumulated during training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Online {
    pub count: usize,
    sums: BTreeMap<String, Vec<f32>>,
}

impl Online {
    /// Whether the step about to run (counted from 0) is preceded by an accumulation.
    pub fn due(recipe: &Recipe, step: usize, multiplier: f64) -> bool {
        recipe.quantizer == Quantizer::Gptq
            && recipe.hessian_source == HessianSource::Online
            && multiplier < recipe.hessian_below
            && step.is_multiple_of(recipe.hessian_every)
    }

    /// Adds the Hessians of some tokens.
    pub fn add(&mut self, new: Hessians) -> Result<()> {
        for (name, values) in new {
            match self.sums.entry(name) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(values);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    ensure!(
                        entry.get().len() == values.len(),
                        "the Hessian of {} changed its size",
                        entry.key()
                    );
                    entry
                        .get_mut()
                        .iter_mut()
                        .zip(values)
                        .for_each(|(sum, value)| *sum += value);
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Lets the engine read some tokens and adds their Hessians, rounded as the recipe says.
    pub fn read(
        &mut self,
        recipe: &Recipe,
        engine: &mut dyn Engine,
        tokens: &[u16],
        seq_len: usize,
    ) -> Result<()> {
        let mut new = engine.hessians(tokens, seq_len)?;
        if recipe.hessian_dtype == StorageType::Bf16 {
            for value in new.values_mut().flatten() {
                *value = bf16::from_f32(*value).to_f32();
            }
        }
        self.add(new)
    }

    /// The means. A Hessian that is not finite, has a negative diagonal or is zero is left out.
    pub fn mean(&self) -> Hessians {
        let count = self.count.max(1) as f32;
        let mean = self.sums.iter().map(|(name, sum)| {
            (
                name.clone(),
                sum.iter().map(|v| v / count).collect::<Vec<f32>>(),
            )
        });
        mean.filter(|(_, values)| valid(values)).collect()
    }

    /// Whether batches have to be read after training, and how many: some for Hessians that cannot be used, more if none can.
    pub fn batches_to_fill(&self, recipe: &Recipe) -> usize {
        let online =
            recipe.quantizer == Quantizer::Gptq && recipe.hessian_source == HessianSource::Online;
        match self.mean().len() {
            _ if !online => 0,
            0 => recipe.hessian_fallback_batches,
            usable if usable < self.sums.len() => recipe.hessian_fill_batches,
            _ => 0,
        }
    }

    /// Takes the Hessians that cannot be used from `other`.
    pub fn fill(&mut self, other: Self) {
        let usable = self.mean();
        if usable.is_empty() {
            *self = other;
            return;
        }
        let factor = self.count as f32 / other.count.max(1) as f32;
        for (name, sum) in other.sums {
            if !usable.contains_key(&name) {
                let same_mean = sum.into_iter().map(|v| v * factor).collect();
                self.sums.insert(name, same_mean);
            }
        }
    }

    /// For a checkpoint.
    pub fn state(&self) -> Vec<StateTensor> {
        self.sums
            .iter()
            .map(|(name, sum)| StateTensor {
                name: format!("{PREFIX}{name}"),
                element: Element::F32,
                shape: vec![sum.len()],
                bytes: sum.iter().flat_map(|v| v.to_le_bytes()).collect(),
            })
            .collect()
    }

    /// Takes the sums out of a checkpoint's tensors and leaves the rest.
    pub fn split_state(count: usize, tensors: Vec<StateTensor>) -> (Self, Vec<StateTensor>) {
        let (mine, rest): (Vec<_>, Vec<_>) = tensors
            .into_iter()
            .partition(|tensor| tensor.name.starts_with(PREFIX));
        let sums = mine
            .into_iter()
            .map(|tensor| {
                let values = tensor
                    .bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                (tensor.name[PREFIX.len()..].to_owned(), values)
            })
            .collect();
        (Self { count, sums }, rest)
    }
}

fn diagonal(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    let side = values.len().isqrt();
    (0..side).map(move |i| f64::from(values[i * side + i]))
}

fn valid(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_finite())
        && diagonal(values).all(|d| d >= 0.0)
        && diagonal(values).sum::<f64>() > 1e-6
}

/// Lets the engine, which holds the final weights, write and read its calibration text.
pub fn self_generated(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    progress: &mut dyn FnMut(usize),
) -> Result<Hessians> {
    let (sequences, length) = (recipe.calibration_sequences, recipe.train_seq_len);
    let tokens = engine.generate(
        sequences,
        length,
        recipe.calibration_temperature as f32,
        recipe.seed,
    )?;
    ensure!(
        tokens.len() == sequences * length,
        "{} generated tokens for {sequences} sequences of {length}",
        tokens.len()
    );
    let mut sum = Online::default();
    for (done, sequence) in tokens.chunks_exact(length).enumerate() {
        sum.read(recipe, engine, &sequence[..length - 1], length - 1)?;
        progress(done + 1);
    }
    let mut mean = sum.mean();
    for values in mean.values_mut() {
        let side = values.len().isqrt();
        let damp = DAMPING * (diagonal(values).sum::<f64>() / side as f64).max(1e-6);
        for i in 0..side {
            values[i * side + i] += damp as f32;
        }
    }
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::toy::Toy;

    fn hessians(values: [f32; 4]) -> Hessians {
        [("m".to_owned(), values.to_vec())].into()
    }

    #[test]
    fn means_and_state() {
        let mut online = Online::default();
        online.add(hessians([1.0, 0.5, 0.5, 3.0])).unwrap();
        online.add(hessians([3.0, 0.5, 0.5, 1.0])).unwrap();
        assert_eq!(online.mean()["m"], [2.0, 0.5, 0.5, 2.0]);
        let (again, rest) = Online::split_state(2, online.state());
        assert_eq!((again, rest.len()), (online.clone(), 0));
        online.add(hessians([f32::NAN, 0.0, 0.0, 0.0])).unwrap();
        assert!(online.mean().is_empty());
    }

    #[test]
    fn batches_after_the_training_fill_what_cannot_be_used() {
        let recipe = Recipe {
            quantizer: Quantizer::Gptq,
            hessian_source: HessianSource::Online,
            ..Recipe::default()
        };
        let both = |a: [f32; 4], b: [f32; 4]| -> Hessians {
            [("a".to_owned(), a.to_vec()), ("b".to_owned(), b.to_vec())].into()
        };
        let mut online = Online::default();
        assert_eq!(online.batches_to_fill(&recipe), 256);
        let good = [2.0, 0.5, 0.5, 3.0];
        for _ in 0..4 {
            online.add(both(good, [0.0; 4])).unwrap();
        }
        assert_eq!(online.batches_to_fill(&recipe), 16);
        let mut more = Online::default();
        more.add(both([9.0; 4], [5.0, 1.0, 1.0, 7.0])).unwrap();
        more.add(both([9.0; 4], [7.0, 1.0, 1.0, 9.0])).unwrap();
        online.fill(more.clone());
        let mean = online.mean();
        assert_eq!(mean["a"], good, "what could be used stays");
        assert_eq!(mean["b"], [6.0, 1.0, 1.0, 8.0]);
        assert_eq!(online.batches_to_fill(&recipe), 0);
        let mut empty = Online::default();
        empty.fill(more.clone());
        assert_eq!(empty, more);
        let searched = Recipe {
            quantizer: Quantizer::ClipSearch,
            ..recipe
        };
        assert_eq!(Online::default().batches_to_fill(&searched), 0);
    }

    #[test]
    fn published_products_are_bf16() {
        let mut engine = Toy::new(16);
        // 300 of the same token: its count is not a bf16.
        for (hessian_dtype, expected) in [(StorageType::Bf16, 300.0), (StorageType::F32, 301.0)] {
            let recipe = Recipe {
                hessian_dtype,
                ..Recipe::default()
            };
            let mut online = Online::default();
            online.read(&recipe, &mut engine, &[0; 301], 7).unwrap();
            assert_eq!(online.mean()["blocks.0.mlp.fc.weight"][0], expected);
        }
    }

    #[test]
    fn due_only_for_online_gptq_late_and_on_the_grid() {
        let recipe = Recipe {
            quantizer: Quantizer::Gptq,
            hessian_source: HessianSource::Online,
            ..Recipe::default()
        };
        assert!(Online::due(&recipe, 50, 0.79));
        assert!(!Online::due(&recipe, 50, 0.8));
        assert!(!Online::due(&recipe, 51, 0.1));
        assert!(!Online::due(
            &Recipe {
                quantizer: Quantizer::ClipSearch,
                ..recipe
            },
            50,
            0.1
        ));
    }

    #[test]
    fn generated_text_is_read_without_its_last_token_and_damped() {
        let recipe = Recipe {
            calibration_sequences: 3,
            train_seq_len: 9,
            ..Recipe::default()
        };
        let mut engine = Toy::new(16);
        let h = self_generated(&recipe, &mut engine, &mut |_| {}).unwrap();
        let values = &h["blocks.0.mlp.fc.weight"];
        let sum: f64 = diagonal(values).sum();
        // Eight one-hot inputs per sequence, plus 1 % of the mean on each of 16.
        assert!((sum - 8.0 * 1.01).abs() < 1e-5, "{sum}");
    }
}

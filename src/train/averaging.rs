//! Snapshots of the weights ("tight SWA") and the choice of the final weights.
//!
//! Snapshots are summed on the host in each parameter's own type: bf16 tables are summed in bf16, as published. The moving
//! average lives in the engine.

use super::engine::{Element, Engine, NamedTensor, StateTensor, Weights};
use crate::recipe::{FinalWeights, Recipe};
use anyhow::{Result, ensure};
use half::bf16;

/// Learning-rate multiplier below which snapshots are taken.
pub const SNAPSHOT_BELOW: f64 = 0.2;
const PREFIX: &str = "swa/";

/// Sum of snapshots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshots {
    pub count: usize,
    sum: Vec<NamedTensor>,
}

fn round(value: f32, stored: Element) -> f32 {
    if stored == Element::Bf16 {
        bf16::from_f32(value).to_f32()
    } else {
        value
    }
}

impl Snapshots {
    /// Whether a snapshot is due after a step; `step` counts it, `multiplier` was its learning-rate multiplier.
    pub fn due(recipe: &Recipe, step: usize, multiplier: f64) -> bool {
        recipe.swa_enabled && multiplier < SNAPSHOT_BELOW && step.is_multiple_of(recipe.swa_every)
    }

    pub fn add(&mut self, weights: Vec<NamedTensor>) -> Result<()> {
        if self.count == 0 {
            self.sum = weights;
        } else {
            ensure!(
                self.sum.len() == weights.len(),
                "a snapshot has {} parameters, the sum {}",
                weights.len(),
                self.sum.len()
            );
            for (sum, new) in self.sum.iter_mut().zip(weights) {
                ensure!(
                    sum.name == new.name && sum.shape == new.shape,
                    "a snapshot's {} meets the sum's {}",
                    new.name,
                    sum.name
                );
                for (sum_value, value) in sum.values.iter_mut().zip(&new.values) {
                    *sum_value = round(*sum_value + value, sum.stored);
                }
            }
        }
        self.count += 1;
        Ok(())
    }

    /// The mean in each parameter's type.
    pub fn mean(&self) -> Vec<NamedTensor> {
        let count = self.count.max(1) as f32;
        let mut mean = self.sum.clone();
        for tensor in &mut mean {
            for value in &mut tensor.values {
                *value = round(*value / count, tensor.stored);
            }
        }
        mean
    }

    /// For a checkpoint.
    pub fn state(&self) -> Vec<StateTensor> {
        self.sum
            .iter()
            .map(|tensor| {
                let bytes = match tensor.stored {
                    Element::Bf16 => tensor
                        .values
                        .iter()
                        .flat_map(|v| bf16::from_f32(*v).to_bits().to_le_bytes())
                        .collect(),
                    _ => tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                StateTensor {
                    name: format!("{PREFIX}{}", tensor.name),
                    element: tensor.stored,
                    shape: tensor.shape.clone(),
                    bytes,
                }
            })
            .collect()
    }

    /// Takes the snapshots out of a checkpoint's tensors and leaves the rest.
    pub fn split_state(count: usize, tensors: Vec<StateTensor>) -> (Self, Vec<StateTensor>) {
        let (mine, rest): (Vec<_>, Vec<_>) = tensors
            .into_iter()
            .partition(|tensor| tensor.name.starts_with(PREFIX));
        let sum = mine
            .into_iter()
            .map(|tensor| {
                let values = match tensor.element {
                    Element::Bf16 => tensor
                        .bytes
                        .chunks_exact(2)
                        .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                        .collect(),
                    _ => tensor
                        .bytes
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                        .collect(),
                };
                NamedTensor {
                    name: tensor.name[PREFIX.len()..].to_owned(),
                    shape: tensor.shape,
                    stored: tensor.element,
                    values,
                }
            })
            .collect();
        (Self { count, sum }, rest)
    }
}

/// The weights to quantize and score, and which they are.
pub fn final_weights(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    snapshots: &Snapshots,
) -> Result<(Vec<NamedTensor>, &'static str)> {
    // As published: the snapshots' mean needs at least two, else the moving average serves.
    let enough = snapshots.count >= 2;
    let choice = match recipe.final_weights {
        FinalWeights::Swa if !enough && recipe.ema_decay > 0.0 => FinalWeights::Ema,
        FinalWeights::EmaSwa if !enough => FinalWeights::Ema,
        FinalWeights::Swa if snapshots.count == 0 => FinalWeights::Live,
        choice => choice,
    };
    let weights = match choice {
        FinalWeights::Live => engine.export(Weights::Live)?,
        FinalWeights::Ema => rounded(engine.export(Weights::Ema)?),
        FinalWeights::Swa => snapshots.mean(),
        FinalWeights::EmaSwa => {
            let mut weights = engine.export(Weights::Ema)?;
            for (tensor, mean) in weights.iter_mut().zip(snapshots.mean()) {
                ensure!(
                    tensor.name == mean.name,
                    "the averages list different parameters"
                );
                for (value, mean) in tensor.values.iter_mut().zip(mean.values) {
                    *value = (*value + mean) / 2.0;
                }
            }
            rounded(weights)
        }
    };
    Ok((weights, choice.name()))
}

fn rounded(mut weights: Vec<NamedTensor>) -> Vec<NamedTensor> {
    for tensor in &mut weights {
        for value in &mut tensor.values {
            *value = round(*value, tensor.stored);
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(value: f32) -> Vec<NamedTensor> {
        let tensor = |name: &str, stored| NamedTensor {
            name: name.into(),
            shape: vec![1],
            stored,
            values: vec![value],
        };
        vec![
            tensor("table", Element::Bf16),
            tensor("matrix", Element::F32),
        ]
    }

    #[test]
    fn sums_in_the_parameters_type() {
        let mut snapshots = Snapshots::default();
        snapshots.add(weights(256.0)).unwrap();
        snapshots.add(weights(1.0)).unwrap();
        let mean = snapshots.mean();
        assert_eq!(mean[0].values, [128.0], "257 is not a bf16");
        assert_eq!(mean[1].values, [128.5]);
        let (restored, rest) = Snapshots::split_state(2, snapshots.state());
        assert_eq!(restored, snapshots);
        assert!(rest.is_empty());
        assert!(snapshots.add(weights(1.0)[..1].to_vec()).is_err());
    }

    #[test]
    fn due_only_late_and_on_the_grid() {
        let recipe = Recipe::default();
        assert!(Snapshots::due(&recipe, 6150, 0.19));
        assert!(!Snapshots::due(&recipe, 6150, 0.2));
        assert!(!Snapshots::due(&recipe, 6151, 0.1));
        assert!(!Snapshots::due(
            &Recipe {
                swa_enabled: false,
                ..recipe
            },
            6150,
            0.1
        ));
    }
}

//! Snapshots of the weights ("tight SWA") and the choice of the final weights.
//!
//! Snapshots are summed by the engine where the weights are, in each parameter's own type: bf16 tables are summed in bf16, as
//! published. The moving average lives in the engine, too.

use super::engine::{Element, Engine, NamedTensor, Weights};
use crate::failure::Failure;
use crate::recipe::{FinalWeights, Recipe};
use anyhow::{Result, ensure};
use half::bf16;

/// Learning-rate multiplier below which snapshots are taken.
pub const SNAPSHOT_BELOW: f64 = 0.2;

/// How many snapshots the engine's sum holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshots {
    pub count: usize,
}

fn round(value: f32, stored: Element) -> f32 {
    if stored == Element::Bf16 {
        bf16::from_f32(value).to_f32()
    } else {
        value
    }
}

/// Refuses settings that ask a checkpoint for an average that its run did not keep, or for no room for one that it did.
pub fn check_kept(stored: &Recipe, wanted: &Recipe) -> Result<()> {
    for (key, differs, had) in [
        (
            "swa_enabled",
            stored.swa_enabled != wanted.swa_enabled,
            stored.swa_enabled.to_string(),
        ),
        (
            "ema_decay",
            (stored.ema_decay > 0.0) != (wanted.ema_decay > 0.0),
            stored.ema_decay.to_string(),
        ),
    ] {
        if differs {
            return Err(Failure::user(
                "--set",
                format!("{key} cannot change any more: the checkpoint's run had {key} = {had}"),
                "final_weights chooses among the weights that the run has kept",
            )
            .into());
        }
    }
    Ok(())
}

impl Snapshots {
    /// Whether a snapshot is due after a step; `step` counts it, `multiplier` was its learning-rate multiplier.
    pub fn due(recipe: &Recipe, step: usize, multiplier: f64) -> bool {
        recipe.swa_enabled && multiplier < SNAPSHOT_BELOW && step.is_multiple_of(recipe.swa_every)
    }

    /// Adds the live weights to the sum.
    pub fn take(&mut self, engine: &mut dyn Engine) -> Result<()> {
        engine.collect_snapshot(self.count == 0)?;
        self.count += 1;
        Ok(())
    }

    /// The mean in each parameter's type.
    pub fn mean(&self, engine: &mut dyn Engine) -> Result<Vec<NamedTensor>> {
        let count = self.count.max(1) as f32;
        let mut mean = engine.export(Weights::SnapshotSum)?;
        for tensor in &mut mean {
            for value in &mut tensor.values {
                *value = round(*value / count, tensor.stored);
            }
        }
        Ok(mean)
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
        FinalWeights::Swa => snapshots.mean(engine)?,
        FinalWeights::EmaSwa => {
            let mut weights = engine.export(Weights::Ema)?;
            let mean = snapshots.mean(engine)?;
            for (tensor, mean) in weights.iter_mut().zip(mean) {
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
    use crate::train::toy::Toy;

    /// Each choice of final weights, over two snapshots of a toy.
    #[test]
    fn final_weights_are_the_chosen_ones() {
        let mut engine = Toy::new(2);
        let mut snapshots = Snapshots::default();
        for value in [1.0, 4.0] {
            engine.weights = vec![value; 4];
            snapshots.take(&mut engine).unwrap();
        }
        engine.weights = vec![10.0; 4];
        let ema = engine.export(Weights::Ema).unwrap()[0].values[0];
        for (final_weights, count, expected, which) in [
            (FinalWeights::Swa, 2, 2.5, "swa"),
            (FinalWeights::EmaSwa, 2, (ema + 2.5) / 2.0, "ema_swa"),
            (FinalWeights::Ema, 2, ema, "ema"),
            (FinalWeights::Live, 2, 10.0, "live"),
            (FinalWeights::Swa, 1, ema, "ema"),
            (FinalWeights::EmaSwa, 1, ema, "ema"),
        ] {
            let recipe = Recipe {
                final_weights,
                ..Recipe::default()
            };
            let (weights, name) =
                super::final_weights(&recipe, &mut engine, &Snapshots { count }).unwrap();
            assert_eq!((weights[0].values[0], name), (expected, which));
        }
        // The first snapshot of another run starts a sum of its own.
        Snapshots::default().take(&mut engine).unwrap();
        assert_eq!(
            engine.export(Weights::SnapshotSum).unwrap()[0].values,
            [10.0; 4]
        );
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

//! Clock, learning-rate multiplier and momentum of a step, as published.
//!
//! With a wall-clock budget M the multiplier is 1 until the time that is left equals `warmdown_iters` steps at the average
//! speed so far, then falls linearly to 0 at M. Without a budget it falls linearly over the last
//! `warmdown_iters` of `iterations`. There is no learning-rate warm-up; Muon's momentum has one.

use super::engine::Rates;
use crate::recipe::Recipe;
use std::time::Instant;

/// Milliseconds of training: pauses (validation, checkpoints, warm-up) do not count.
#[derive(Debug)]
pub struct Clock {
    before: f64,
    running: Option<Instant>,
    /// Replaces measured time by steps times this, if positive.
    reference_step_ms: f64,
}

impl Clock {
    /// A stopped clock that shows `before` milliseconds.
    pub fn new(recipe: &Recipe, before: f64) -> Self {
        Self {
            before,
            running: None,
            reference_step_ms: recipe.reference_step_ms,
        }
    }

    pub fn start(&mut self) {
        self.running.get_or_insert_with(Instant::now);
    }

    pub fn pause(&mut self) {
        if let Some(since) = self.running.take() {
            self.before += since.elapsed().as_secs_f64() * 1e3;
        }
    }

    /// Milliseconds after `step` steps.
    pub fn ms(&self, step: usize) -> f64 {
        if self.reference_step_ms > 0.0 {
            return step as f64 * self.reference_step_ms;
        }
        self.before
            + self
                .running
                .map_or(0.0, |since| since.elapsed().as_secs_f64() * 1e3)
    }
}

/// Learning-rate multiplier of step `step` (from 0), `ms` after the start of training.
pub fn multiplier(recipe: &Recipe, step: usize, ms: f64) -> f64 {
    if recipe.warmdown_iters == 0 {
        return 1.0;
    }
    let warmdown = recipe.warmdown_iters as f64;
    let cap = recipe.max_wallclock_seconds * 1e3;
    if cap > 0.0 {
        let warmdown_ms = warmdown * (ms / step.max(1) as f64);
        let left = (cap - ms).max(0.0);
        return if left <= warmdown_ms {
            left / warmdown_ms.max(1e-9)
        } else {
            1.0
        };
    }
    let start = recipe.iterations.saturating_sub(recipe.warmdown_iters);
    if (start..recipe.iterations).contains(&step) {
        (recipe.iterations - step) as f64 / warmdown
    } else {
        1.0
    }
}

/// Muon's momentum at step `step`.
pub fn momentum(recipe: &Recipe, step: usize) -> f64 {
    if recipe.muon_momentum_warmup_steps == 0 {
        return recipe.muon_momentum;
    }
    let done = (step as f64 / recipe.muon_momentum_warmup_steps as f64).min(1.0);
    (1.0 - done) * recipe.muon_momentum_warmup_start + done * recipe.muon_momentum
}

/// Everything of a step that the schedule decides.
pub fn rates(recipe: &Recipe, step: usize, multiplier: f64) -> Rates {
    Rates {
        matrix_lr: (recipe.matrix_lr * multiplier) as f32,
        embedding_lr: (recipe.tied_embed_lr * multiplier) as f32,
        scalar_lr: (recipe.scalar_lr * multiplier) as f32,
        muon_momentum: momentum(recipe, step) as f32,
        grad_clip_norm: if recipe.grad_clip_norm > 0.0 {
            recipe.grad_clip_norm as f32
        } else {
            f32::INFINITY
        },
    }
}

/// Warm-up steps use base rates, full momentum and no clipping.
pub fn warmup_rates(recipe: &Recipe) -> Rates {
    Rates {
        muon_momentum: recipe.muon_momentum as f32,
        grad_clip_norm: f32::INFINITY,
        ..rates(recipe, 0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// #657's log: 6,812 steps at 88.09 ms; snapshots start at step 6150 (multiplier below 0.2), QAT at 6290 (below 0.15).
    #[test]
    fn wall_clock_warmdown_reproduces_the_published_trace() {
        let recipe = Recipe {
            reference_step_ms: 88.09,
            ..Recipe::default()
        };
        let clock = Clock::new(&recipe, 0.0);
        let at = |step: usize| multiplier(&recipe, step, clock.ms(step));
        assert_eq!(at(0), 1.0);
        assert_eq!(at(3000), 1.0);
        let first = |threshold: f64| (0..).find(|s| at(*s) < threshold).unwrap();
        let snapshot = (first(0.2) + 1).next_multiple_of(50);
        assert_eq!(snapshot, 6150);
        assert!((6285..6295).contains(&first(0.15)), "{}", first(0.15));
        let last = (0..).find(|s| clock.ms(*s) >= 600_000.0).unwrap();
        assert_eq!(last, 6812);
    }

    #[test]
    fn fixed_schedule_counts_steps() {
        let recipe = Recipe {
            max_wallclock_seconds: 0.0,
            iterations: 100,
            warmdown_iters: 40,
            ..Recipe::default()
        };
        assert_eq!(multiplier(&recipe, 59, 1e9), 1.0);
        assert_eq!(multiplier(&recipe, 60, 0.0), 1.0);
        assert_eq!(multiplier(&recipe, 80, 0.0), 0.5);
        assert_eq!(multiplier(&recipe, 99, 0.0), 0.025);
        let none = Recipe {
            warmdown_iters: 0,
            ..recipe
        };
        assert_eq!(multiplier(&none, 99, 0.0), 1.0);
    }

    #[test]
    fn momentum_warms_up() {
        let recipe = Recipe::default();
        assert_eq!(momentum(&recipe, 0), 0.92);
        assert!((momentum(&recipe, 750) - 0.955).abs() < 1e-12);
        assert_eq!(momentum(&recipe, 9999), 0.99);
    }

    #[test]
    fn clock_counts_only_while_running() {
        let mut clock = Clock::new(&Recipe::default(), 50.0);
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert_eq!(clock.ms(1), 50.0);
        clock.start();
        std::thread::sleep(std::time::Duration::from_millis(3));
        clock.pause();
        let stopped = clock.ms(1);
        assert!(stopped >= 53.0);
        assert_eq!(clock.ms(2), stopped);
    }
}

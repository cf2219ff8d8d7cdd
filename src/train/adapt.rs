//! Test-time training: the artifact's weights learn from validation tokens while these are scored.
//!
//! *Score first* (#549): the stream is cut into chunks. The windows whose first counted target lies in a chunk are scored, then
//! the chunk's tokens are trained on, then the next chunk is scored. A target that is trained on lies in a chunk that
//! has been scored, so no token is scored by weights that have seen it. The last chunk is not trained on.
//!
//! *Train first* (#518): all tokens are trained on for many epochs, and scored after that. The challenge does not count such
//! a score; the log says so beside it.
//!
//! Either way the artifact stays as it is, and the engine has its weights back afterwards.

use super::engine::{AdaptInputs, AdaptRule, Engine, StepOutput, Weights};
use super::log::Reporter;
use super::score::{EngineScorer, score_sliding, sliding_logits, sliding_of};
use crate::data::ByteTable;
use crate::evaluate::windows::{Window, windows};
use crate::evaluate::{Known, Tally, score_windows};
use crate::failure::{Exit, Failure};
use crate::recipe::{Recipe, TttOptimizer, TttOrder};
use anyhow::{Result, ensure};
use serde_json::json;
use std::f64::consts::PI;
use std::ops::Range;
use std::time::Instant;

/// How the log calls the order of a recipe's test-time training.
pub fn order(recipe: &Recipe) -> &'static str {
    match recipe.ttt_order {
        TttOrder::ScoreFirst => "score first",
        TttOrder::TrainFirst => "train first: not a legal score",
    }
}

/// Sliding windows of the live weights with test-time training; the weights are the same afterwards.
pub fn score_adapting(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &[u16],
    table: &ByteTable,
    reporter: &mut Reporter,
) -> Result<Tally> {
    let weights = engine.export(Weights::Live)?;
    let result = match recipe.ttt_order {
        TttOrder::ScoreFirst => score_first(recipe, engine, stream, table, reporter),
        TttOrder::TrainFirst => train_first(recipe, engine, stream, reporter).and_then(|()| {
            score_sliding(recipe, engine, stream, table, &Known::default(), reporter)
        }),
    };
    engine.import(&weights)?;
    result
}

/// The optimizer of a whole test-time training.
struct Adaptation<'a> {
    recipe: &'a Recipe,
    stream: &'a [u16],
    updates: u32,
}

impl Adaptation<'_> {
    /// Trains on the targets of whole sequences whose inputs start at a token.
    fn step(
        &mut self,
        engine: &mut dyn Engine,
        inputs: Range<usize>,
        multiplier: f64,
    ) -> Result<StepOutput> {
        let recipe = self.recipe;
        self.updates += 1;
        let output = engine.adapt(&AdaptInputs {
            tokens: &self.stream[inputs.clone()],
            targets: &self.stream[inputs.start + 1..=inputs.end],
            seq_len: recipe.eval_seq_len,
            update: self.updates,
            rule: match recipe.ttt_optimizer {
                TttOptimizer::Sgd => AdaptRule::Sgd {
                    momentum: recipe.ttt_momentum as f32,
                },
                TttOptimizer::Adamw => AdaptRule::Adamw {
                    beta1: 0.9,
                    beta2: 0.999,
                    epsilon: 1e-8,
                },
            },
            learning_rate: (recipe.ttt_lr * multiplier) as f32,
            mlp_proj_factor: recipe.ttt_mlp_proj_lr_mult as f32,
            mlp_fc_factor: recipe.ttt_mlp_fc_lr_mult as f32,
            grad_clip_norm: if recipe.ttt_grad_clip > 0.0 {
                recipe.ttt_grad_clip as f32
            } else {
                f32::INFINITY
            },
            fake_quantize: recipe.ttt_fake_quantize,
        })?;
        if output.loss.is_finite() && output.grad_norm.is_finite() {
            return Ok(output);
        }
        Err(Failure::new(
            Exit::NonFinite,
            format!("test-time training, step {}", self.updates),
            format!("loss {}, gradient norm {}", output.loss, output.grad_norm),
            "lower ttt_lr",
        )
        .into())
    }
}

fn cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

/// Inputs of one epoch's steps over all tokens, in order. NOTE: as published, an epoch ends before a last single sequence.
fn epoch(tokens: usize, seq_len: usize, batch_seqs: usize) -> Vec<Range<usize>> {
    (0..tokens.saturating_sub(seq_len))
        .step_by(seq_len * batch_seqs)
        .map(|start| {
            let sequences = batch_seqs.min((tokens - start) / seq_len);
            start..start + sequences * seq_len
        })
        .collect()
}

fn train_first(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &[u16],
    reporter: &mut Reporter,
) -> Result<()> {
    let (seq_len, batch_seqs) = (recipe.eval_seq_len, recipe.ttt_batch_seqs);
    let tokens = stream.len().saturating_sub(1) / seq_len * seq_len;
    let steps = epoch(tokens, seq_len, batch_seqs);
    ensure!(
        !steps.is_empty(),
        "the validation stream has no two sequences of {seq_len} to train on"
    );
    // NOTE: as published, the cosine counts whole batches only, so the last steps lie beyond its end.
    let planned = (recipe.ttt_epochs * (tokens / (seq_len * batch_seqs))).max(1) as f64;
    reporter.line(
        "ttt: train first: every validation token is trained on before it is scored; the challenge does not count this score",
    )?;
    let start = Instant::now();
    let mut adaptation = Adaptation {
        recipe,
        stream,
        updates: 0,
    };
    reporter.live(recipe.ttt_epochs * steps.len(), "test-time training");
    let every = recipe.ttt_epochs.div_ceil(10);
    for number in 1..=recipe.ttt_epochs {
        let (mut sum, mut count) = (0.0, 0);
        for inputs in &steps {
            let multiplier = cosine(f64::from(adaptation.updates) / planned);
            let output = adaptation.step(engine, inputs.clone(), multiplier)?;
            sum += f64::from(output.loss) * inputs.len() as f64;
            count += inputs.len();
            reporter.live_at(adaptation.updates as usize, String::new);
        }
        let (loss, ms) = (sum / count as f64, start.elapsed().as_secs_f64() * 1e3);
        if number % every == 0 || number == recipe.ttt_epochs {
            reporter.line(format!(
                "ttt_epoch:{number}/{} loss:{loss:.4} time:{ms:.0}ms",
                recipe.ttt_epochs
            ))?;
        }
        reporter.metric(&json!({"event": "ttt_epoch", "epoch": number, "loss": loss, "ms": ms}))?;
    }
    reporter.end_live();
    Ok(())
}

/// Runs of windows whose first counted targets lie in the same chunk, with the chunk's number.
fn by_chunk(windows: &[Window], chunk_tokens: usize) -> Vec<(usize, &[Window])> {
    let chunk = |window: &Window| (window.start + window.first_scored) / chunk_tokens;
    windows
        .chunk_by(|a, b| chunk(a) == chunk(b))
        .map(|group| (chunk(&group[0]), group))
        .collect()
}

fn score_first(
    recipe: &Recipe,
    engine: &mut dyn Engine,
    stream: &[u16],
    table: &ByteTable,
    reporter: &mut Reporter,
) -> Result<Tally> {
    let how = sliding_of(recipe);
    let total = stream.len().saturating_sub(1);
    ensure!(total > 0, "the validation stream has no target");
    let all = windows(total, how.seq_len, how.stride, how.tail_once);
    let chunks = by_chunk(&all, recipe.ttt_chunk_tokens);
    let last = chunks.last().map_or(0, |(number, _)| *number);
    reporter.line(format!(
        "ttt: score first: {} chunks of {} tokens, each scored before it is trained on",
        chunks.len(),
        recipe.ttt_chunk_tokens
    ))?;
    let logits = sliding_logits(recipe);
    let none = Known::default();
    let mut adaptation = Adaptation {
        recipe,
        stream,
        updates: 0,
    };
    let mut tally = Tally::default();
    let mut done = 0;
    reporter.live(all.len(), "test-time training, score first");
    for (number, group) in chunks {
        let mut scorer = EngineScorer { engine, logits };
        score_windows(
            &mut scorer,
            stream,
            table,
            how,
            &none,
            group,
            &mut tally,
            &mut |_| {},
        )?;
        done += group.len();
        reporter.live_at(done, String::new);
        if number == last {
            break;
        }
        let start = number * recipe.ttt_chunk_tokens;
        let tokens = recipe.ttt_chunk_tokens.min(total - start);
        let sequences = tokens / how.seq_len;
        let multiplier = cosine(number as f64 / last as f64);
        let mut loss = 0.0;
        for _ in 0..recipe.ttt_epochs {
            for first in (0..sequences).step_by(recipe.ttt_batch_seqs) {
                let count = recipe.ttt_batch_seqs.min(sequences - first);
                let from = start + first * how.seq_len;
                let inputs = from..from + count * how.seq_len;
                loss = adaptation.step(engine, inputs, multiplier)?.loss;
            }
        }
        reporter.metric(&json!({
            "event": "ttt_chunk", "chunk": number, "val_loss_so_far": tally.loss(), "train_loss": loss, "updates": adaptation.updates,
        }))?;
    }
    reporter.end_live();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;
    use crate::train::engine::{Logits, NamedTensor, Rates, StateTensor, StepInputs};
    use crate::train::toy::Toy;

    fn recipe(order: TttOrder) -> Recipe {
        Recipe {
            vocab_size: 256,
            eval_seq_len: 16,
            eval_stride: 4,
            ttt_enabled: true,
            ttt_order: order,
            ttt_chunk_tokens: 37,
            ttt_batch_seqs: 2,
            ttt_epochs: 2,
            ttt_lr: 0.5,
            ..Recipe::default()
        }
    }

    /// Ids are positions: what was scored and trained on can be read off them.
    #[derive(Default)]
    struct Recorder {
        /// Targets that were trained on.
        trained: Vec<u16>,
        /// First token, tokens and learning rate of each step.
        steps: Vec<(usize, usize, f32)>,
    }

    impl Engine for Recorder {
        fn step(&mut self, _: &StepInputs<'_>) -> Result<StepOutput> {
            unreachable!("test-time training has steps of its own")
        }

        fn score(
            &mut self,
            tokens: &[u16],
            targets: &[u16],
            _: usize,
            _: Logits,
        ) -> Result<Vec<f32>> {
            // The loss of a target tells whether the weights had seen it.
            let seen = |target: &u16| f32::from(self.trained.contains(target));
            assert_eq!(tokens.len(), targets.len());
            Ok(targets.iter().map(seen).collect())
        }

        fn export(&mut self, _: Weights) -> Result<Vec<NamedTensor>> {
            Ok(Vec::new())
        }

        fn import(&mut self, _: &[NamedTensor]) -> Result<()> {
            Ok(())
        }

        fn save_state(&mut self) -> Result<Vec<StateTensor>> {
            Ok(Vec::new())
        }

        fn load_state(&mut self, _: &[StateTensor]) -> Result<()> {
            Ok(())
        }

        fn collect_snapshot(&mut self, _: bool) -> Result<()> {
            unreachable!("test-time training takes no snapshots")
        }

        fn find_non_finite(&mut self) -> Result<Option<String>> {
            Ok(None)
        }

        fn adapt(&mut self, inputs: &AdaptInputs<'_>) -> Result<StepOutput> {
            assert_eq!(inputs.update as usize, self.steps.len() + 1);
            assert_eq!(
                inputs.tokens[1..],
                inputs.targets[..inputs.targets.len() - 1]
            );
            self.trained.extend(inputs.targets);
            let first = usize::from(inputs.tokens[0]);
            self.steps
                .push((first, inputs.tokens.len(), inputs.learning_rate));
            Ok(StepOutput {
                loss: 1.0,
                grad_norm: 1.0,
            })
        }
    }

    /// A stream whose ids are positions; a scored target that had been trained on costs 1, all others 0.
    fn record(recipe: &Recipe, length: u16) -> (Recorder, Tally) {
        let stream: Vec<u16> = (0..length).collect();
        let mut table = Tokenizer::Bytes.byte_table();
        table.bytes = vec![1; usize::from(length)];
        table.leading_space = vec![false; usize::from(length)];
        table.boundary = vec![false; usize::from(length)];
        let mut engine = Recorder::default();
        let mut reporter = Reporter::silent();
        let tally = score_adapting(recipe, &mut engine, &stream, &table, &mut reporter).unwrap();
        (engine, tally)
    }

    #[test]
    fn score_first_never_scores_a_token_after_training_on_it() {
        for (stride, length, chunk) in [(4, 203, 37), (16, 203, 64), (1, 120, 16), (5, 333, 48)] {
            let recipe = Recipe {
                eval_stride: stride,
                ttt_chunk_tokens: chunk,
                sliding_tail: crate::recipe::SlidingTail::Once,
                ..recipe(TttOrder::ScoreFirst)
            };
            let (engine, tally) = record(&recipe, length);
            assert_eq!(tally.nll, 0.0, "stride {stride}, chunks of {chunk}");
            assert_eq!(tally.tokens, u64::from(length) - 1);
            assert!(engine.steps.len() > 2);
            // Rates fall from chunk to chunk, and are the same within one.
            let rates: Vec<f32> = engine.steps.iter().map(|s| s.2).collect();
            assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]));
            assert_eq!((rates[0], rates[1]), (0.5, 0.5));
        }
    }

    #[test]
    fn train_first_does_score_what_it_has_seen() {
        let (engine, tally) = record(&recipe(TttOrder::TrainFirst), 16 * 9 + 1);
        // Two epochs of four batches of two sequences; the ninth sequence, alone, is left out, as published.
        let firsts: Vec<usize> = engine.steps.iter().map(|s| s.0).collect();
        assert_eq!(firsts, [0, 32, 64, 96, 0, 32, 64, 96]);
        assert!(engine.steps.iter().all(|s| s.1 == 32));
        assert!(tally.nll > 100.0);
    }

    /// 7,752,704 tokens of one of eight ranks: 118 full batches of 32 and one of 9; 50 epochs end just beyond the cosine.
    #[test]
    fn published_epoch() {
        let steps = epoch(7_752_704, 2048, 32);
        assert_eq!((steps.len(), steps[118].len()), (119, 9 * 2048));
        let last = cosine(5949.0 / 5900.0);
        assert!((last - 1.7e-4).abs() < 5e-6, "{last}");
    }

    #[test]
    fn both_orders_lower_the_loss_of_a_toy_and_put_its_weights_back() {
        let text = b"so it goes, and so it goes again; ".repeat(12);
        let stream: Vec<u16> = text.iter().map(|b| u16::from(*b)).collect();
        let table = Tokenizer::Bytes.byte_table();
        let mut engine = Toy::new(256);
        let before = engine.weights.clone();
        let plain = score_sliding(
            &recipe(TttOrder::ScoreFirst),
            &mut engine,
            &stream,
            &table,
            &Known::default(),
            &mut Reporter::silent(),
        )
        .unwrap();
        let mut losses = Vec::new();
        for order in [TttOrder::ScoreFirst, TttOrder::TrainFirst] {
            let recipe = Recipe {
                ttt_lr: 20.0,
                ttt_momentum: 0.0,
                ..recipe(order)
            };
            let tally = score_adapting(
                &recipe,
                &mut engine,
                &stream,
                &table,
                &mut Reporter::silent(),
            )
            .unwrap();
            assert_eq!(tally.tokens, plain.tokens);
            assert_eq!(engine.weights, before);
            losses.push(tally.loss());
        }
        assert!(
            losses[0] < plain.loss() - 0.5,
            "{losses:?} {}",
            plain.loss()
        );
        assert!(losses[1] < losses[0], "{losses:?}");
    }

    #[test]
    fn rates_of_the_training_are_not_used() {
        let mut engine = Toy::new(256);
        let stream: Vec<u16> = (0..100).collect();
        let table = Tokenizer::Bytes.byte_table();
        let recipe = recipe(TttOrder::TrainFirst);
        score_adapting(
            &recipe,
            &mut engine,
            &stream,
            &table,
            &mut Reporter::silent(),
        )
        .unwrap();
        assert_eq!(engine.seen, Vec::<Rates>::new());
    }
}

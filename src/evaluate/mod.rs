//! Scoring: bits per byte, by chunks and by sliding windows, and what simple models reach on the same text.
//!
//! The bookkeeping is independent of the model: it asks a [`Scorer`] for the loss of every target of some windows
//! and decides which of them count ([`windows`]), what they cost and what they are worth ([`Tally`]).

pub mod audit;
pub mod baselines;
pub mod windows;

pub use windows::{Window, sliding_windows};

use crate::data::ByteTable;
use anyhow::{Result, ensure};
use std::collections::HashMap;

/// Computes the negative log-likelihood in nats of each target. Rows are `seq_len` long.
pub trait Scorer {
    fn score(&mut self, tokens: &[u16], targets: &[u16], seq_len: usize) -> Result<Vec<f32>>;

    /// The losses of a chunked evaluation, and those that [`Scorer::score`] would return, of one forward. The two differ where a sliding
    /// evaluation rounds its logits.
    fn score_both(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
    ) -> Result<[Vec<f32>; 2]> {
        let losses = self.score(tokens, targets, seq_len)?;
        Ok([losses.clone(), losses])
    }
}

/// Losses of windows that a sliding evaluation need not compute again: the chunks of a chunked evaluation are windows of it, and
/// what a window's losses are does not depend on what is scored beside it. By first input token, the targets that count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known(HashMap<usize, Vec<f32>>);

impl Known {
    /// Windows that are known.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The counted losses of a window of a sliding evaluation.
    fn of(&self, window: &Window, how: Sliding) -> Option<&[f32]> {
        let losses = self
            .0
            .get(&window.start)
            .filter(|_| window.len == how.seq_len)?;
        let counted = window.len - window.first_scored;
        losses
            .len()
            .checked_sub(counted)
            .map(|from| &losses[from..])
    }
}

impl<F: FnMut(&[u16], &[u16], usize) -> Result<Vec<f32>>> Scorer for F {
    fn score(&mut self, tokens: &[u16], targets: &[u16], seq_len: usize) -> Result<Vec<f32>> {
        self(tokens, targets, seq_len)
    }
}

/// Sums over scored targets. Addition order is the order of the stream, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Nats.
    pub nll: f64,
    pub tokens: u64,
    pub bytes: u64,
}

impl Tally {
    /// Counts one target.
    pub fn add(&mut self, nll: f32, bytes: u64) {
        self.nll += f64::from(nll);
        self.tokens += 1;
        self.bytes += bytes;
    }

    /// Mean loss per token in nats.
    pub fn loss(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// Bits per byte.
    pub fn bpb(&self) -> f64 {
        self.nll / std::f64::consts::LN_2 / self.bytes as f64
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
        self.bytes += other.bytes;
    }
}

/// Scores non-overlapping chunks of `seq_len`; a remainder shorter than one chunk is left out, as published.
/// `progress` hears how many of how many chunks are done.
pub fn chunked(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    seq_len: usize,
    batch: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Tally> {
    let shape = Sliding {
        seq_len,
        stride: 0,
        batch,
        tail_once: false,
    };
    Ok(walk_chunks(scorer, stream, table, shape, progress)?.0)
}

/// The same, keeping what the sliding evaluation that follows shares with it.
pub fn chunked_keeping(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Tally, Known)> {
    walk_chunks(scorer, stream, table, how, progress)
}

/// With a stride, both kinds of losses are asked for, and each chunk's last `stride` (the first one's all) are kept.
fn walk_chunks(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Tally, Known)> {
    let seq_len = how.seq_len;
    let chunks = stream.len().saturating_sub(1) / seq_len;
    ensure!(
        chunks > 0,
        "the stream is shorter than one chunk of {seq_len}"
    );
    // Chunks are windows where windows start at multiples of the length.
    let shares = how.stride > 0 && seq_len.is_multiple_of(how.stride);
    let (mut tally, mut known) = (Tally::default(), Known::default());
    let mut first = 0;
    while first < chunks {
        let count = how.batch.clamp(1, chunks - first);
        let from = first * seq_len;
        let to = from + count * seq_len;
        let (tokens, targets) = (&stream[from..to], &stream[from + 1..=to]);
        let nll = if shares {
            let [nll, other] = scorer.score_both(tokens, targets, seq_len)?;
            let other = checked(other, targets.len())?;
            for (row, losses) in other.chunks_exact(seq_len).enumerate() {
                let start = from + row * seq_len;
                let kept = if start == 0 { 0 } else { seq_len - how.stride };
                known.0.insert(start, losses[kept..].to_vec());
            }
            checked(nll, targets.len())?
        } else {
            checked(scorer.score(tokens, targets, seq_len)?, targets.len())?
        };
        for ((token, target), nll) in tokens.iter().zip(targets).zip(&nll) {
            tally.add(*nll, table.of(*token, *target));
        }
        first += count;
        progress(first, chunks);
    }
    Ok((tally, known))
}

/// How a sliding evaluation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sliding {
    pub seq_len: usize,
    pub stride: usize,
    /// Windows per call of the scorer.
    pub batch: usize,
    /// Count the last `stride` targets once instead of once per shrinking window.
    pub tail_once: bool,
}

/// Scores every target with as much context as `seq_len` allows: the first window counts whole, each later one
/// its last `stride` targets. Short windows are padded with token 0, which is causal and never counts. Windows that are known are
/// not computed again; no others have anything in common: each has a context of its own.
pub fn sliding(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    known: &Known,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Tally> {
    let total = stream.len().saturating_sub(1);
    ensure!(total > 0, "the stream has no target");
    let windows = windows::windows(total, how.seq_len, how.stride, how.tail_once);
    let mut tally = Tally::default();
    let mut heard = |done| progress(done, windows.len());
    score_windows(
        scorer, stream, table, how, known, &windows, &mut tally, &mut heard,
    )?;
    Ok(tally)
}

/// Scores some of the windows of a sliding evaluation into `tally`. `progress` hears how many of them are done.
#[allow(clippy::too_many_arguments)] // what, how and whereto of one pass
pub fn score_windows(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    known: &Known,
    windows: &[Window],
    tally: &mut Tally,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    let mut done = 0;
    for group in windows.chunks(how.batch.max(1)) {
        tokens.clear();
        targets.clear();
        for window in group.iter().filter(|w| known.of(w, how).is_none()) {
            tokens.extend_from_slice(&stream[window.start..window.start + window.len]);
            targets.extend_from_slice(&stream[window.start + 1..=window.start + window.len]);
            let padded = tokens.len() + how.seq_len - window.len;
            tokens.resize(padded, 0);
            targets.resize(padded, 0);
        }
        let nll = match tokens.len() {
            0 => Vec::new(),
            _ => checked(scorer.score(&tokens, &targets, how.seq_len)?, targets.len())?,
        };
        let mut rows = nll.chunks_exact(how.seq_len);
        for window in group {
            let losses = match known.of(window, how) {
                Some(losses) => losses,
                None => {
                    let row = rows.next().expect("a row for each window that was scored");
                    &row[window.first_scored..window.len]
                }
            };
            let targets = window.start + window.first_scored + 1;
            for (i, loss) in losses.iter().enumerate() {
                let (previous, target) = (stream[targets + i - 1], stream[targets + i]);
                tally.add(*loss, table.of(previous, target));
            }
        }
        done += group.len();
        progress(done);
    }
    Ok(())
}

fn checked(nll: Vec<f32>, expected: usize) -> Result<Vec<f32>> {
    ensure!(
        nll.len() == expected,
        "the scorer returned {} losses for {expected} targets",
        nll.len()
    );
    Ok(nll)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;

    fn table() -> ByteTable {
        Tokenizer::Bytes.byte_table()
    }

    #[test]
    fn chunked_leaves_out_the_remainder() {
        let stream: Vec<u16> = (0..24).collect();
        let mut calls = Vec::new();
        let mut scorer = |tokens: &[u16], targets: &[u16], seq_len: usize| {
            calls.push(tokens.len() / seq_len);
            Ok(targets.iter().map(|t| f32::from(*t)).collect())
        };
        let tally = chunked(&mut scorer, &stream, &table(), 5, 3, &mut |_, _| {}).unwrap();
        assert_eq!((tally.tokens, tally.bytes, tally.nll), (20, 20, 210.0));
        assert_eq!(calls, [3, 1]);
    }

    #[test]
    fn uniform_model_costs_eight_bits_per_byte() {
        let stream: Vec<u16> = (0..200).map(|i| i % 255).collect();
        let mut scorer =
            |_: &[u16], targets: &[u16], _: usize| Ok(vec![256f32.ln(); targets.len()]);
        let how = Sliding {
            seq_len: 32,
            stride: 8,
            batch: 4,
            tail_once: false,
        };
        let none = Known::default();
        let tally = sliding(&mut scorer, &stream, &table(), how, &none, &mut |_, _| {}).unwrap();
        assert!((tally.bpb() - 8.0).abs() < 1e-6);
        let once = sliding(
            &mut scorer,
            &stream,
            &table(),
            Sliding {
                tail_once: true,
                ..how
            },
            &none,
            &mut |_, _| {},
        )
        .unwrap();
        assert_eq!(once.tokens, 199);
        assert!(tally.tokens > once.tokens);
    }

    /// A scorer whose losses depend on the whole context; sharing changes no bit of the sum and saves a window per chunk.
    #[test]
    fn chunks_are_not_computed_again() {
        struct Contextual(usize);
        impl Scorer for Contextual {
            fn score(&mut self, tokens: &[u16], _: &[u16], seq_len: usize) -> Result<Vec<f32>> {
                self.0 += tokens.len() / seq_len;
                let rows = tokens.chunks(seq_len);
                Ok(rows
                    .flat_map(|row| {
                        row.iter().scan(1f32, |state, &token| {
                            *state = (*state * 1.37 + f32::from(token)).rem_euclid(7.1);
                            Some(*state)
                        })
                    })
                    .collect())
            }
        }
        let stream: Vec<u16> = (0..203u32).map(|i| (i * i % 251) as u16).collect();
        for (stride, tail_once, saved) in [
            (8, false, 12),
            (8, true, 12),
            (16, false, 12),
            (5, false, 0),
        ] {
            let how = Sliding {
                seq_len: 16,
                stride,
                batch: 4,
                tail_once,
            };
            let count = |known: &Known| {
                let mut scorer = Contextual(0);
                let tally = sliding(&mut scorer, &stream, &table(), how, known, &mut |_, _| {});
                (tally.unwrap(), scorer.0)
            };
            let (_, known) =
                chunked_keeping(&mut Contextual(0), &stream, &table(), how, &mut |_, _| {})
                    .unwrap();
            let (plain, all) = count(&Known::default());
            let (shared, fewer) = count(&known);
            assert_eq!(shared, plain);
            assert_eq!(all - fewer, saved, "stride {stride}");
            assert_eq!(known.len(), saved);
        }
    }

    #[test]
    fn a_scorer_that_returns_too_little_is_an_error() {
        let stream: Vec<u16> = (0..20).collect();
        let mut scorer = |_: &[u16], _: &[u16], _: usize| Ok(vec![1.0]);
        assert!(chunked(&mut scorer, &stream, &table(), 4, 2, &mut |_, _| {}).is_err());
    }
}

//! Scoring: bits per byte, by chunks and by sliding windows, and what simple models reach on the same text.
//!
//! The bookkeeping is independent of the model: it asks a [`Scorer`] for the loss of every target of some windows
//! and decides which of them count ([`windows`]), what they cost and what they are worth ([`Tally`]).

pub mod baselines;
pub mod windows;

pub use windows::{Window, sliding_windows};

use crate::data::ByteTable;
use anyhow::{Result, ensure};

/// Computes the negative log-likelihood in nats of each target. Rows are `seq_len` long.
pub trait Scorer {
    fn score(&mut self, tokens: &[u16], targets: &[u16], seq_len: usize) -> Result<Vec<f32>>;
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
    let chunks = stream.len().saturating_sub(1) / seq_len;
    ensure!(
        chunks > 0,
        "the stream is shorter than one chunk of {seq_len}"
    );
    let mut tally = Tally::default();
    let mut first = 0;
    while first < chunks {
        let count = batch.min(chunks - first);
        let from = first * seq_len;
        let to = from + count * seq_len;
        let (tokens, targets) = (&stream[from..to], &stream[from + 1..=to]);
        let nll = checked(scorer.score(tokens, targets, seq_len)?, targets.len())?;
        for ((token, target), nll) in tokens.iter().zip(targets).zip(&nll) {
            tally.add(*nll, table.of(*token, *target));
        }
        first += count;
        progress(first, chunks);
    }
    Ok(tally)
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
/// its last `stride` targets. Short windows are padded with token 0, which is causal and never counts.
pub fn sliding(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Tally> {
    let total = stream.len().saturating_sub(1);
    ensure!(total > 0, "the stream has no target");
    let windows = windows::windows(total, how.seq_len, how.stride, how.tail_once);
    let mut tally = Tally::default();
    let mut heard = |done| progress(done, windows.len());
    score_windows(scorer, stream, table, how, &windows, &mut tally, &mut heard)?;
    Ok(tally)
}

/// Scores some of the windows of a sliding evaluation into `tally`. `progress` hears how many of them are done.
pub fn score_windows(
    scorer: &mut dyn Scorer,
    stream: &[u16],
    table: &ByteTable,
    how: Sliding,
    windows: &[Window],
    tally: &mut Tally,
    progress: &mut dyn FnMut(usize),
) -> Result<()> {
    let (mut tokens, mut targets) = (Vec::new(), Vec::new());
    let mut done = 0;
    for group in windows.chunks(how.batch.max(1)) {
        tokens.clear();
        targets.clear();
        for window in group {
            tokens.extend_from_slice(&stream[window.start..window.start + window.len]);
            targets.extend_from_slice(&stream[window.start + 1..=window.start + window.len]);
            let padded = tokens.len() + how.seq_len - window.len;
            tokens.resize(padded, 0);
            targets.resize(padded, 0);
        }
        let nll = checked(scorer.score(&tokens, &targets, how.seq_len)?, targets.len())?;
        for (row, window) in group.iter().enumerate() {
            for i in window.first_scored..window.len {
                let at = row * how.seq_len + i;
                tally.add(nll[at], table.of(tokens[at], targets[at]));
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
        let tally = sliding(&mut scorer, &stream, &table(), how, &mut |_, _| {}).unwrap();
        assert!((tally.bpb() - 8.0).abs() < 1e-6);
        let once = sliding(
            &mut scorer,
            &stream,
            &table(),
            Sliding {
                tail_once: true,
                ..how
            },
            &mut |_, _| {},
        )
        .unwrap();
        assert_eq!(once.tokens, 199);
        assert!(tally.tokens > once.tokens);
    }

    #[test]
    fn a_scorer_that_returns_too_little_is_an_error() {
        let stream: Vec<u16> = (0..20).collect();
        let mut scorer = |_: &[u16], _: &[u16], _: usize| Ok(vec![1.0]);
        assert!(chunked(&mut scorer, &stream, &table(), 4, 2, &mut |_, _| {}).is_err());
    }
}

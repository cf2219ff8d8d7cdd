//! The training stream: the published sequential loader.
//!
//! All training tokens form one stream over the sorted shards that wraps to the start after the last. Each
//! micro-step advances it by `ranks * span` tokens, span = local + 1, and rank r keeps the r-th span: its inputs
//! are the first `local` tokens and its targets the last `local`. So one token per rank and micro-step is only
//! ever a target, spans are disjoint, and sequences cut documents anywhere. The order of the stream does not
//! depend on how many ranks share it as long as ranks times micro-steps is the same.
//!
//! The cursor is one number, so a run resumes exactly.

use super::shard::{Shard, check_range};
use crate::failure::Failure;
use anyhow::Result;

/// How a step's tokens are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Tokens per step over all ranks and micro-steps.
    pub step_tokens: usize,
    pub micro_steps: usize,
    pub ranks: usize,
    pub rank: usize,
    pub seq_len: usize,
}

impl BatchShape {
    /// Tokens of one rank in one micro-step.
    pub fn local(&self) -> usize {
        self.step_tokens / (self.micro_steps * self.ranks)
    }

    /// Sequences of one rank in one micro-step.
    pub fn sequences(&self) -> usize {
        self.local() / self.seq_len
    }

    /// Stream tokens that one step takes.
    pub fn advance(&self) -> u64 {
        (self.micro_steps * self.ranks * (self.local() + 1)) as u64
    }

    /// Refuses shapes in which a rank's share is not a whole number of sequences.
    pub fn check(&self) -> Result<()> {
        let share = self.micro_steps * self.ranks * self.seq_len;
        if share == 0 || self.rank >= self.ranks || !self.step_tokens.is_multiple_of(share) {
            return Err(Failure::user(
                "train_batch_tokens",
                format!(
                    "{} tokens do not split into {} micro-steps of {} ranks with sequences of {}",
                    self.step_tokens, self.micro_steps, self.ranks, self.seq_len
                ),
                format!("use a multiple of {share}, or other grad_accum_steps"),
            )
            .into());
        }
        Ok(())
    }
}

/// One rank's tokens of one step, micro-step by micro-step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub tokens: Vec<u16>,
    pub targets: Vec<u16>,
    /// Cursor after this batch: what a checkpoint stores once the step is done.
    pub cursor: u64,
}

enum Part {
    Shard(Shard),
    Memory(Vec<u16>, String),
}

impl Part {
    fn tokens(&self) -> &[u16] {
        match self {
            Self::Shard(shard) => shard.tokens(),
            Self::Memory(tokens, _) => tokens,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Shard(shard) => format!("shard {}", shard.path().display()),
            Self::Memory(_, name) => name.clone(),
        }
    }
}

/// All training tokens and a position among them.
pub struct TokenStream {
    parts: Vec<Part>,
    /// Stream position of each part's first token, and the total at the end.
    starts: Vec<u64>,
    vocab_size: usize,
    cursor: u64,
}

impl TokenStream {
    pub fn from_shards(shards: Vec<Shard>, vocab_size: usize) -> Result<Self> {
        Self::new(shards.into_iter().map(Part::Shard).collect(), vocab_size)
    }

    /// A stream over tokens in memory; `name` is what messages call it.
    pub fn from_tokens(tokens: Vec<u16>, vocab_size: usize, name: &str) -> Result<Self> {
        Self::new(vec![Part::Memory(tokens, name.to_owned())], vocab_size)
    }

    fn new(parts: Vec<Part>, vocab_size: usize) -> Result<Self> {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().expect("not empty") + part.tokens().len() as u64);
        }
        if *starts.last().expect("not empty") == 0 {
            return Err(Failure::user("training data", "no tokens", "check data_path").into());
        }
        Ok(Self {
            parts,
            starts,
            vocab_size,
            cursor: 0,
        })
    }

    /// Tokens before the stream repeats.
    pub fn len(&self) -> u64 {
        *self.starts.last().expect("not empty")
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// Tokens taken so far, over all epochs.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Continues at a stored cursor.
    pub fn seek(&mut self, cursor: u64) {
        self.cursor = cursor;
    }

    /// The next step's tokens of one rank; advances the stream by the tokens of all ranks.
    pub fn next(&mut self, shape: &BatchShape) -> Result<Batch> {
        let mut batch = Batch::default();
        self.next_into(shape, &mut batch)?;
        Ok(batch)
    }

    /// Like [`Self::next`], into buffers that are reused.
    pub fn next_into(&mut self, shape: &BatchShape, batch: &mut Batch) -> Result<()> {
        shape.check()?;
        let (local, span) = (shape.local(), shape.local() + 1);
        batch.tokens.clear();
        batch.targets.clear();
        let mut cursor = self.cursor;
        let mut buffer = Vec::with_capacity(span);
        for _ in 0..shape.micro_steps {
            buffer.clear();
            self.copy(cursor + (shape.rank * span) as u64, span, &mut buffer)?;
            batch.tokens.extend_from_slice(&buffer[..local]);
            batch.targets.extend_from_slice(&buffer[1..]);
            cursor += (shape.ranks * span) as u64;
        }
        self.cursor = cursor;
        batch.cursor = cursor;
        Ok(())
    }

    /// Appends `count` tokens from stream position `at` (which wraps), checked against the vocabulary.
    fn copy(&self, at: u64, mut count: usize, out: &mut Vec<u16>) -> Result<()> {
        let mut at = at % self.len();
        while count > 0 {
            let index = self.starts.partition_point(|start| *start <= at) - 1;
            let part = &self.parts[index];
            let from = (at - self.starts[index]) as usize;
            let taken = count.min(part.tokens().len() - from);
            let tokens = &part.tokens()[from..from + taken];
            check_range(tokens, from, self.vocab_size, &part.name())?;
            out.extend_from_slice(tokens);
            count -= taken;
            at = (at + taken as u64) % self.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(n: u16) -> TokenStream {
        TokenStream::from_tokens((0..n).collect(), usize::from(n), "test").unwrap()
    }

    fn shape(ranks: usize, rank: usize, micro_steps: usize) -> BatchShape {
        BatchShape {
            step_tokens: 64,
            micro_steps,
            ranks,
            rank,
            seq_len: 4,
        }
    }

    #[test]
    fn spans_are_local_plus_one_and_wrap() {
        let mut one = stream(100);
        let first = one.next(&shape(1, 0, 1)).unwrap();
        assert_eq!(first.tokens, (0..64).collect::<Vec<_>>());
        assert_eq!(first.targets, (1..65).collect::<Vec<_>>());
        assert_eq!(first.cursor, 65);
        let second = one.next(&shape(1, 0, 1)).unwrap();
        assert_eq!(second.tokens[..3], [65, 66, 67]);
        assert_eq!(second.tokens[35], 0, "wraps after 100 tokens");
        assert_eq!(second.targets[63], 29);
    }

    /// The same eight spans, whether eight ranks take one each or one rank takes eight micro-steps.
    #[test]
    fn order_does_not_depend_on_the_number_of_ranks() {
        let alone = stream(200).next(&shape(1, 0, 8)).unwrap();
        let mut together = (Vec::new(), Vec::new());
        for rank in 0..8 {
            let part = stream(200).next(&shape(8, rank, 1)).unwrap();
            together.0.extend(part.tokens);
            together.1.extend(part.targets);
            assert_eq!(part.cursor, alone.cursor);
        }
        assert_eq!((alone.tokens, alone.targets), together);
        assert_eq!(alone.cursor, 72);
    }

    #[test]
    fn published_step_takes_786440_tokens() {
        let shape = BatchShape {
            step_tokens: 786_432,
            micro_steps: 1,
            ranks: 8,
            rank: 3,
            seq_len: 2048,
        };
        assert_eq!(shape.advance(), 786_440);
        assert_eq!(shape.sequences(), 48);
    }

    #[test]
    fn seek_resumes_exactly_and_shards_join() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<u16> = (0..150).map(|i| i * 7 % 100).collect();
        for (i, part) in all.chunks(37).enumerate() {
            super::super::shard::write(
                &folder.path().join(format!("fineweb_train_{i:06}.bin")),
                part,
            )
            .unwrap();
        }
        let open = || {
            TokenStream::from_shards(
                super::super::shard::open_split(folder.path(), "train").unwrap(),
                100,
            )
            .unwrap()
        };
        let mut shards = open();
        let mut memory = TokenStream::from_tokens(all, 100, "all").unwrap();
        for _ in 0..5 {
            assert_eq!(
                shards.next(&shape(2, 1, 2)).unwrap(),
                memory.next(&shape(2, 1, 2)).unwrap()
            );
        }
        let mut resumed = open();
        resumed.seek(shards.cursor());
        assert_eq!(
            resumed.next(&shape(2, 1, 2)).unwrap(),
            shards.next(&shape(2, 1, 2)).unwrap()
        );
    }

    #[test]
    fn bad_tokens_and_shapes_are_refused() {
        let mut bad =
            TokenStream::from_tokens(vec![1, 2, 900, 3, 4, 5, 6, 7, 8], 10, "text").unwrap();
        let shape = BatchShape {
            step_tokens: 4,
            micro_steps: 1,
            ranks: 1,
            rank: 0,
            seq_len: 4,
        };
        assert!(
            bad.next(&shape)
                .unwrap_err()
                .to_string()
                .contains("token 900 at position 2")
        );
        assert!(
            BatchShape {
                seq_len: 3,
                ..shape
            }
            .check()
            .is_err()
        );
        assert!(BatchShape { rank: 1, ..shape }.check().is_err());
    }
}

//! `all_V`: the tokenizer, what each token costs in bytes, and the bookkeeping of sliding windows.
//!
//! The model of the sliding scores is a table: the logits of class v for input token a are `8 u(seed, "logits", a V + v)` in f32. The
//! tokenizer is found by its hash: in `--tokenizer`, beside the case, in `../data` from there, or in `data`, `tests/data` below the
//! current folder or the one that birdie was built in.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::compare::Tally;
use super::quantizers::{sha, short};
use super::rule::Uniform;
use crate::data::Tokenizer;
use crate::evaluate::{Known, Sliding, sliding, sliding_windows};
use crate::failure::Failure;

const MOST_TARGETS: usize = 1 << 28;

#[derive(Debug, Deserialize)]
pub struct Scoring {
    seed: u64,
    tokenizer_sha256: String,
    vocab_size: usize,
    base_bytes_sha256_i16le: Option<String>,
    has_leading_space_sha256_u8: Option<String>,
    is_boundary_sha256_u8: Option<String>,
    #[serde(default)]
    base_bytes: Vec<u16>,
    #[serde(default)]
    has_leading_space: Vec<usize>,
    #[serde(default)]
    is_boundary: Vec<usize>,
    text: String,
    text_ids: Vec<u16>,
    text_utf8_bytes: Option<i64>,
    decoded_utf8_bytes: Option<i64>,
    second_text: String,
    second_ids: Vec<u16>,
    second_utf8_bytes: Option<i64>,
    stream_tokens: Option<i64>,
    scored_tokens: Option<i64>,
    byte_total: i64,
    byte_total_of_text_only: Option<i64>,
    nll_sum: Option<f64>,
    val_loss_all: Option<f64>,
    val_bpb_all: Option<f64>,
    #[serde(default)]
    sliding_eval: Vec<SlidingCase>,
    #[serde(default)]
    sliding_windows: Vec<WindowsCase>,
    /// Where the tokenizer was found.
    #[serde(skip)]
    tokenizer: PathBuf,
}

#[derive(Debug, Deserialize)]
struct SlidingCase {
    seq_len: usize,
    stride: usize,
    windows: i64,
    scored: i64,
    bytes: i64,
    val_loss: f64,
    val_bpb: f64,
}

#[derive(Debug, Deserialize)]
struct WindowsCase {
    total_tokens: usize,
    seq_len: usize,
    stride: usize,
    windows: i64,
    scored: Option<i64>,
    distinct: Option<i64>,
    max_times_scored: Option<i64>,
    sha256_u32le_triples: String,
    #[serde(default)]
    first: Vec<[u32; 3]>,
    #[serde(default)]
    last: Vec<[u32; 3]>,
}

impl Scoring {
    /// Finds the tokenizer, and refuses what cannot be run.
    pub(super) fn find_tokenizer(&mut self, case: &Path, given: Option<&Path>) -> Result<()> {
        self.check()?;
        const NAME: &str = "fineweb_1024_bpe.model";
        let beside = case.parent().unwrap_or(Path::new("."));
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        let candidates: Vec<PathBuf> = match given {
            Some(path) => vec![path.to_owned()],
            None => [
                beside.to_owned(),
                beside.join("../data"),
                PathBuf::from("data"),
                PathBuf::from("tests/data"),
                built_in.join("tests/data"),
            ]
            .iter()
            .flat_map(|folder| models(folder, NAME))
            .collect(),
        };
        let found = candidates.iter().find(|path| {
            std::fs::read(path).is_ok_and(|bytes| sha(&bytes) == self.tokenizer_sha256)
        });
        let Some(found) = found else {
            let why = match given {
                Some(path) => format!("{} has another sha256, or none", path.display()),
                None => format!(
                    "no tokenizer with sha256 {} is near the case",
                    short(&self.tokenizer_sha256)
                ),
            };
            return Err(
                Failure::user("tokenizer", why, "name the file: --tokenizer FILE.model").into(),
            );
        };
        found.clone_into(&mut self.tokenizer);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let refuse = |why: String| Failure::user("sizes", why, "see src/parity/scoring.rs");
        ensure!(
            (2..=65_536).contains(&self.vocab_size),
            refuse(format!("vocab_size = {}", self.vocab_size))
        );
        let ids = self.text_ids.iter().chain(&self.second_ids);
        ensure!(
            ids.clone().all(|id| usize::from(*id) < self.vocab_size),
            refuse(format!(
                "an id is not below vocab_size = {}",
                self.vocab_size
            ))
        );
        let sliding = self
            .sliding_eval
            .iter()
            .map(|c| (self.text_ids.len(), c.seq_len, c.stride));
        let windows = self
            .sliding_windows
            .iter()
            .map(|c| (c.total_tokens, c.seq_len, c.stride));
        for (total, seq_len, stride) in sliding.chain(windows) {
            ensure!(
                total <= MOST_TARGETS && (1..=1 << 20).contains(&seq_len) && stride >= 1,
                refuse(format!(
                    "{total} targets in windows of {seq_len} with stride {stride}"
                ))
            );
        }
        Ok(())
    }

    pub(super) fn run(&self) -> Result<Vec<Tally>> {
        let folder = self.tokenizer.parent().unwrap_or(Path::new("."));
        let name = self.tokenizer.file_name().unwrap_or_default();
        let tokenizer = Tokenizer::open(&name.to_string_lossy(), folder)?;
        let mut tallies = vec![self.tables(&tokenizer), self.texts(&tokenizer)?];
        tallies.push(self.scores(&tokenizer)?);
        tallies.extend(self.sliding_windows.iter().map(WindowsCase::compare));
        Ok(tallies)
    }

    fn tables(&self, tokenizer: &Tokenizer) -> Tally {
        let mut tally = Tally::exact("all V byte tables");
        let table = tokenizer.byte_table();
        tally.require_count("ids", self.vocab_size as i64, table.bytes.len() as i64);
        let wide: Vec<u8> = table.bytes.iter().flat_map(|b| b.to_le_bytes()).collect();
        let flags = |flags: &[bool]| flags.iter().map(|f| u8::from(*f)).collect::<Vec<u8>>();
        for (name, expected, got) in [
            ("base_bytes", &self.base_bytes_sha256_i16le, wide),
            (
                "has_leading_space",
                &self.has_leading_space_sha256_u8,
                flags(&table.leading_space),
            ),
            (
                "is_boundary",
                &self.is_boundary_sha256_u8,
                flags(&table.boundary),
            ),
        ] {
            if let Some(expected) = expected {
                tally.require_text(format!("{name} sha256"), short(expected), short(&sha(&got)));
            }
        }
        if !self.base_bytes.is_empty() {
            let off = differing(&self.base_bytes, &table.bytes);
            tally.require_count("base_bytes that differ", 0, off);
        }
        let ids =
            |flags: &[bool]| -> Vec<usize> { (0..flags.len()).filter(|i| flags[*i]).collect() };
        for (name, expected, got) in [
            (
                "has_leading_space",
                &self.has_leading_space,
                &table.leading_space,
            ),
            ("is_boundary", &self.is_boundary, &table.boundary),
        ] {
            if !expected.is_empty() {
                let off = differing(expected, &ids(got));
                tally.require_count(format!("{name} that differ"), 0, off);
            }
        }
        tally
    }

    fn texts(&self, tokenizer: &Tokenizer) -> Result<Tally> {
        let mut tally = Tally::exact("all V tokens");
        for (name, text, ids, bytes) in [
            ("text", &self.text, &self.text_ids, self.text_utf8_bytes),
            (
                "second text",
                &self.second_text,
                &self.second_ids,
                self.second_utf8_bytes,
            ),
        ] {
            if let Some(bytes) = bytes {
                tally.require_count(format!("{name}: bytes"), bytes, text.len() as i64);
            }
            let got = tokenizer.encode(text)?;
            tally.require_count(
                format!("{name}: tokens"),
                ids.len() as i64,
                got.len() as i64,
            );
            tally.require_count(
                format!("{name}: tokens that differ"),
                0,
                differing(ids, &got),
            );
        }
        if let Some(bytes) = self.decoded_utf8_bytes {
            let decoded = tokenizer.decode(&self.text_ids).len() as i64;
            tally.require_count("text: bytes of the decoded tokens", bytes, decoded);
        }
        Ok(tally)
    }

    fn scores(&self, tokenizer: &Tokenizer) -> Result<Tally> {
        let mut tally = Tally::exact("all V scores");
        let table = tokenizer.byte_table();
        let text: Vec<u16> = [&[1], self.text_ids.as_slice()].concat();
        let stream: Vec<u16> = [text.as_slice(), &[1], self.second_ids.as_slice()].concat();
        let count = |n: usize| n as i64;
        if let Some(expected) = self.stream_tokens {
            tally.require_count("tokens of the stream", expected, count(stream.len()));
        }
        if let Some(expected) = self.scored_tokens {
            tally.require_count("scored tokens", expected, count(stream.len() - 1));
        }
        tally.require_count("bytes", self.byte_total, table.total(&stream) as i64);
        if let Some(expected) = self.byte_total_of_text_only {
            tally.require_count(
                "bytes of the text alone",
                expected,
                table.total(&text) as i64,
            );
        }
        let losses = self.losses(&stream);
        let nll: f64 = losses.iter().map(|x| f64::from(*x)).sum();
        let mean = nll / losses.len() as f64;
        let bpb = nll / std::f64::consts::LN_2 / table.total(&stream) as f64;
        for (name, expected, got) in [
            ("sum of the losses", self.nll_sum, nll),
            ("val_loss, each target once", self.val_loss_all, mean),
            ("val_bpb, each target once", self.val_bpb_all, bpb),
        ] {
            if let Some(expected) = expected {
                tally.require_close(name, expected, got, 1e-6);
            }
        }
        for case in &self.sliding_eval {
            let name = |what: &str| format!("sliding {}/{}: {what}", case.seq_len, case.stride);
            let how = Sliding {
                seq_len: case.seq_len,
                stride: case.stride,
                batch: 7,
                tail_once: false,
            };
            let mut windows = 0;
            let mut scorer = |tokens: &[u16], targets: &[u16], _: usize| {
                let pairs = tokens.iter().zip(targets);
                Ok(pairs
                    .map(|(token, target)| self.loss(*token, *target))
                    .collect())
            };
            let none = Known::default();
            let mut heard = |_, all| windows = all;
            let scored = sliding(&mut scorer, &stream, &table, how, &none, &mut heard)?;
            tally.require_count(name("windows"), case.windows, count(windows));
            tally.require_count(name("scored"), case.scored, scored.tokens as i64);
            tally.require_count(name("bytes"), case.bytes, scored.bytes as i64);
            tally.require_close(name("val_loss"), case.val_loss, scored.loss(), 1e-6);
            tally.require_close(name("val_bpb"), case.val_bpb, scored.bpb(), 1e-6);
        }
        Ok(tally)
    }

    fn losses(&self, stream: &[u16]) -> Vec<f32> {
        let pairs = stream.windows(2);
        pairs.map(|pair| self.loss(pair[0], pair[1])).collect()
    }

    /// Cross-entropy of `target` under the table's logits for `token`.
    fn loss(&self, token: u16, target: u16) -> f32 {
        let uniform = Uniform::new(self.seed, "logits");
        let logit = |v: usize| {
            let place = usize::from(token) * self.vocab_size + v;
            f64::from((8.0 * uniform.at(place as u64)) as f32)
        };
        // Logits lie in [0, 8): no maximum has to be taken out.
        let sum: f64 = (0..self.vocab_size).map(|v| logit(v).exp()).sum();
        (sum.ln() - logit(usize::from(target))) as f32
    }
}

impl WindowsCase {
    fn compare(&self) -> Tally {
        let Self {
            total_tokens,
            seq_len,
            stride,
            ..
        } = *self;
        let title = format!("all V windows of {total_tokens} targets, {seq_len}/{stride}");
        let mut tally = Tally::exact(title);
        let triples: Vec<[u32; 3]> = sliding_windows(total_tokens, seq_len, stride)
            .map(|w| [w.start, w.start + w.first_scored, w.start + w.len - 1].map(|x| x as u32))
            .collect();
        tally.require_count("windows", self.windows, triples.len() as i64);
        // The targets that windows score are ranges with ascending ends.
        let (mut scored, mut distinct, mut reached) = (0i64, 0i64, -1i64);
        // Ranges with ascending ends overlap most where one of them begins: with those before it that have not ended.
        let (mut ended, mut most_times) = (0, 0);
        for (index, [_, first, last]) in triples.iter().map(|t| t.map(i64::from)).enumerate() {
            scored += last - first + 1;
            distinct += (last - first.max(reached + 1) + 1).max(0);
            reached = reached.max(last);
            while i64::from(triples[ended][2]) < first {
                ended += 1;
            }
            most_times = most_times.max((index - ended + 1) as i64);
        }
        for (name, expected, got) in [
            ("scored targets", self.scored, scored),
            ("distinct targets", self.distinct, distinct),
            (
                "most times that a target is scored",
                self.max_times_scored,
                most_times,
            ),
        ] {
            if let Some(expected) = expected {
                tally.require_count(name, expected, got);
            }
        }
        let bytes: Vec<u8> = triples
            .iter()
            .flatten()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        tally.require_text(
            "triples sha256",
            short(&self.sha256_u32le_triples),
            short(&sha(&bytes)),
        );
        let tail = triples.len().saturating_sub(self.last.len());
        for (name, expected, got) in [
            ("first windows", &self.first, triples.as_slice()),
            ("last windows", &self.last, &triples[tail..]),
        ] {
            let got = &got[..expected.len().min(got.len())];
            tally.require_text(name, format!("{expected:?}"), format!("{got:?}"));
        }
        tally
    }
}

/// SentencePiece models of a folder, the usual name first.
fn models(folder: &Path, usual: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "model"))
        .collect();
    found.sort_by_key(|path| {
        (
            path.file_name().is_none_or(|name| name != usual),
            path.clone(),
        )
    });
    found
}

/// Places where two lists differ, and elements that only one of them has.
fn differing<T: PartialEq>(a: &[T], b: &[T]) -> i64 {
    let inside = a.iter().zip(b).filter(|(a, b)| a != b).count();
    (inside + a.len().abs_diff(b.len())) as i64
}

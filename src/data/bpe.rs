//! Training of a small BPE, written as a SentencePiece `.model` file.
//!
//! The merges come from the `tokenizers` crate. What is written is read back by [`super::sentencepiece`] and by SentencePiece itself:
//! ids 0 to 2 are `<unk>`, `<s>` and `</s>`, then the 256 bytes, then the merged pieces in the order in which they were
//! found, then the characters. Nothing is normalized: no spaces are added or removed, so the text of the ids is the text, byte
//! for byte. A word carries the space before it (`▁word`), and no piece crosses a space or the end of a line. Rare characters, beyond
//! [`COVERAGE`] of the text, are spelled in bytes.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, anyhow};
use tokenizers::Trainer;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use super::normalizer::SPACE;
use crate::failure::Failure;

/// Share of the characters of the text that get a piece of their own, SentencePiece's default.
const COVERAGE: f64 = 0.9995;
/// `<unk>`, `<s>`, `</s>` and the bytes.
const FIXED: usize = 3 + 256;

/// A trained vocabulary.
#[derive(Debug, PartialEq)]
pub struct Trained {
    /// Merged pieces, the first merge first.
    pub merged: Vec<String>,
    /// Characters with a piece of their own.
    pub characters: Vec<char>,
}

/// Finds the `vocab_size - 259` best pieces of a text.
///
/// # Errors
/// A size that leaves no room for a merge, or that the text cannot fill.
pub fn train(text: &str, vocab_size: usize) -> Result<Trained> {
    let refuse = |why: String, hint: String| Failure::user("tokenizer", why, hint);
    if vocab_size > 1 << 16 {
        return Err(refuse(
            format!("{vocab_size} ids do not fit 16 bits"),
            "choose a vocab size of at most 65536".into(),
        )
        .into());
    }
    let characters = common_characters(text);
    let least = FIXED + characters.len() + 1;
    if vocab_size < least {
        return Err(refuse(
            format!(
                "{vocab_size} ids leave no room for merges: {FIXED} are marks and bytes, {} are characters of the text",
                characters.len()
            ),
            format!("choose a vocab size of at least {least}"),
        )
        .into());
    }
    let known: HashSet<char> = characters.iter().copied().collect();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .min_frequency(2)
        .vocab_size(vocab_size - FIXED)
        .build();
    let failed = |error| anyhow!("training the tokenizer: {error}");
    trainer
        .feed(text.split_inclusive('\n'), |line| Ok(words(line, &known)))
        .map_err(failed)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let by_id: BTreeMap<u32, String> = tokenizers::Model::get_vocab(&model)
        .into_iter()
        .map(|(piece, id)| (id, piece))
        .collect();
    let merged: Vec<String> = by_id
        .into_values()
        .filter(|piece| piece.chars().nth(1).is_some())
        .collect();
    let made = FIXED + characters.len() + merged.len();
    if made != vocab_size {
        return Err(refuse(
            format!("the text has pieces that occur twice for {made} ids, not for {vocab_size}"),
            format!("use more text, or a vocab size of {made}"),
        )
        .into());
    }
    Ok(Trained { merged, characters })
}

fn escaped(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

/// The most frequent characters that together make up the coverage, in the order of their code points.
fn common_characters(text: &str) -> Vec<char> {
    let mut counts = BTreeMap::<char, usize>::new();
    for c in text.chars() {
        *counts.entry(escaped(c)).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let mut by_count: Vec<(char, usize)> = counts.into_iter().collect();
    by_count.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
    let mut covered = 0;
    let mut common = Vec::new();
    for (c, count) in by_count {
        if covered as f64 >= COVERAGE * total as f64 {
            break;
        }
        covered += count;
        common.push(c);
    }
    common.sort_unstable();
    common
}

/// The parts of a line within which pieces are sought: words with the space before them, cut at characters that have no piece.
fn words(line: &str, known: &HashSet<char>) -> Vec<String> {
    let mut words = vec![String::new()];
    let start = |word: &mut Vec<String>| word.push(String::new());
    for c in line.chars().map(escaped) {
        if c == SPACE || c == '\n' {
            start(&mut words);
        }
        if known.contains(&c) {
            words.last_mut().expect("never empty").push(c);
        }
        if c == '\n' || !known.contains(&c) {
            start(&mut words);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl Trained {
    pub fn vocab_size(&self) -> usize {
        FIXED + self.merged.len() + self.characters.len()
    }

    /// The `.model` file: a `ModelProto` of SentencePiece with pieces, trainer and normalizer.
    pub fn to_model_file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let mut piece = |text: &str, score: f32, kind: u64| {
            let mut message = Vec::new();
            put_bytes(&mut message, 1, text.as_bytes());
            message.push(2 << 3 | 5);
            message.extend(score.to_le_bytes());
            put_number(&mut message, 3, kind);
            put_bytes(&mut file, 1, &message);
        };
        piece("<unk>", 0.0, 2);
        piece("<s>", 0.0, 3);
        piece("</s>", 0.0, 3);
        for byte in 0..=255u8 {
            piece(&format!("<0x{byte:02X}>"), 0.0, 6);
        }
        let characters = self.characters.iter().map(char::to_string);
        for (rank, text) in self.merged.iter().cloned().chain(characters).enumerate() {
            piece(&text, -(rank as f32), 1);
        }
        let mut trainer = Vec::new();
        put_number(&mut trainer, 3, 2); // model_type = BPE
        put_number(&mut trainer, 4, self.vocab_size() as u64);
        put_number(&mut trainer, 35, 1); // byte_fallback
        put_number(&mut trainer, 40, 0); // unk_id
        put_number(&mut trainer, 41, 1); // bos_id
        put_number(&mut trainer, 42, 2); // eos_id
        put_number(&mut trainer, 43, u64::MAX); // pad_id = -1
        put_bytes(&mut file, 2, &trainer);
        let mut normalizer = Vec::new();
        put_bytes(&mut normalizer, 1, b"identity");
        put_number(&mut normalizer, 3, 0); // add_dummy_prefix
        put_number(&mut normalizer, 4, 0); // remove_extra_whitespaces
        put_number(&mut normalizer, 5, 1); // escape_whitespaces
        put_bytes(&mut file, 3, &normalizer);
        file
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sentencepiece::{Kind, Model};

    fn model(text: &str, vocab_size: usize) -> Model {
        let trained = train(text, vocab_size).unwrap();
        Model::parse(&trained.to_model_file()).unwrap()
    }

    #[test]
    fn the_first_merges_are_the_most_frequent_pairs() {
        // ▁a occurs 4 times, ab twice in words of their own.
        let trained = train("ab ac ad ac ab ac", FIXED + 5 + 2).unwrap();
        assert_eq!(trained.characters, ['a', 'b', 'c', 'd', SPACE]);
        assert_eq!(trained.merged, ["\u{2581}a", "\u{2581}ac"]);
    }

    #[test]
    fn every_text_comes_back_byte_for_byte() {
        let text = &crate::data::demo::text()[..200_000];
        let model = model(text, 512);
        assert_eq!(model.len(), 512);
        assert_eq!(model.pieces()[2 + 1 + 0x41].kind, Kind::Byte(0x41));
        for text in [
            &text[1000..9000],
            "  two  spaces, a\ttab\r\n\nand lines \n",
            "naïve \u{1f426} 鳥",
            " leading",
            "",
        ] {
            let ids = model.encode(text);
            assert_eq!(model.decode(&ids), text);
        }
        let ids = model.encode(&text[..50_000]);
        assert!(ids.len() < 25_000, "{} ids for 50,000 bytes", ids.len());
        let pieces = model.pieces();
        assert!(
            pieces
                .iter()
                .all(|piece| !piece.text.chars().skip(1).any(|c| c == SPACE || c == '\n'))
        );
    }

    #[test]
    fn training_is_deterministic() {
        let text = &crate::data::demo::text()[..100_000];
        assert_eq!(train(text, 400).unwrap(), train(text, 400).unwrap());
    }

    #[test]
    fn sizes_that_cannot_be_met_are_refused_with_one_that_can() {
        for (text, size, hint) in [
            ("abab abab", 260, "at least 263"),
            ("abab abab", 300, "a vocab size of 26"),
            ("", 300, "a vocab size of 259"),
            ("abab", 70_000, "at most 65536"),
        ] {
            let failure: Failure = train(text, size).unwrap_err().downcast().unwrap();
            assert!(failure.hint.contains(hint), "{failure:?}");
        }
    }
}

//! Byte accounting, tokenizer and window bookkeeping against the published code (`tests/data/all_V.json`).

use birdie::data::{Tokenizer, shard};
use birdie::evaluate::{Sliding, sliding, sliding_windows};
use birdie::parity::rule::Uniform;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn fixture() -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join("all_V.json")).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open("fineweb_1024_bpe.model", &folder()).unwrap()
}

fn ids(value: &Value) -> Vec<u16> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u16)
        .collect()
}

fn sha(bytes: impl IntoIterator<Item = u8>) -> String {
    Sha256::digest(bytes.into_iter().collect::<Vec<u8>>())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[test]
fn byte_tables_equal_the_published_ones() {
    let expected = fixture();
    let table = tokenizer().byte_table();
    assert_eq!(table.bytes, ids(&expected["base_bytes"]));
    let true_ids = |flags: &[bool]| {
        flags
            .iter()
            .enumerate()
            .filter(|(_, f)| **f)
            .map(|(i, _)| i as u16)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        true_ids(&table.leading_space),
        ids(&expected["has_leading_space"])
    );
    assert_eq!(true_ids(&table.boundary), ids(&expected["is_boundary"]));
    assert_eq!(
        sha(table.bytes.iter().flat_map(|b| b.to_le_bytes())),
        expected["base_bytes_sha256_i16le"]
    );
}

#[test]
fn encodes_and_decodes_as_sentencepiece() {
    let expected = fixture();
    let tokenizer = tokenizer();
    for (text, tokens) in [("text", "text_ids"), ("second_text", "second_ids")] {
        let text = expected[text].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids(&expected[tokens]));
    }
    let decoded = tokenizer.decode(&ids(&expected["text_ids"]));
    assert_eq!(decoded.len() as u64, expected["decoded_utf8_bytes"]);
}

fn stream(expected: &Value) -> Vec<u16> {
    let mut stream = vec![1];
    stream.extend(ids(&expected["text_ids"]));
    stream.push(1);
    stream.extend(ids(&expected["second_ids"]));
    stream
}

#[test]
fn stream_bytes_and_sliding_scores_equal_the_published_ones() {
    let expected = fixture();
    let table = tokenizer().byte_table();
    let stream = stream(&expected);
    assert_eq!(table.total(&stream), expected["byte_total"]);
    let seed = expected["seed"].as_u64().unwrap();
    let uniform = Uniform::new(seed, "logits");
    let mut scorer = |tokens: &[u16], targets: &[u16], _: usize| {
        Ok(tokens
            .iter()
            .zip(targets)
            .map(|(token, target)| {
                let row: Vec<f64> = (0..1024)
                    .map(|v| f64::from((8.0 * uniform.at(u64::from(*token) * 1024 + v)) as f32))
                    .collect();
                let largest = row.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
                (largest + sum.ln() - row[usize::from(*target)]) as f32
            })
            .collect())
    };
    for case in expected["sliding_eval"].as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let how = Sliding {
            seq_len: number("seq_len"),
            stride: number("stride"),
            batch: 7,
            tail_once: false,
        };
        let mut windows = 0;
        let tally = sliding(&mut scorer, &stream, &table, how, &mut |_, all| {
            windows = all
        })
        .unwrap();
        assert_eq!(windows, number("windows"));
        assert_eq!(tally.tokens, number("scored") as u64);
        assert_eq!(tally.bytes, number("bytes") as u64);
        assert!(
            (tally.loss() - case["val_loss"].as_f64().unwrap()).abs() < 2e-6,
            "{case}"
        );
        assert!(
            (tally.bpb() - case["val_bpb"].as_f64().unwrap()).abs() < 2e-6,
            "{case}"
        );
    }
}

#[test]
fn windows_equal_the_published_ones() {
    for case in fixture()["sliding_windows"].as_array().unwrap() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let windows: Vec<_> =
            sliding_windows(number("total_tokens"), number("seq_len"), number("stride")).collect();
        assert_eq!(windows.len(), number("windows"));
        let triples = windows.iter().flat_map(|w| {
            [w.start, w.start + w.first_scored, w.start + w.len - 1]
                .into_iter()
                .flat_map(|v| (v as u32).to_le_bytes())
        });
        assert_eq!(sha(triples), case["sha256_u32le_triples"], "{case}");
    }
}

#[test]
fn text_of_another_tokenizer_is_out_of_range() {
    let folder = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        shard::write(
            &folder.path().join(format!("fineweb_{split}_000000.bin")),
            &[1, 5, 4000].repeat(100),
        )
        .unwrap();
    }
    std::fs::copy(
        self::folder().join("fineweb_1024_bpe.model"),
        folder.path().join("m.model"),
    )
    .unwrap();
    let settings = ["vocab_size=1024", "tokenizer_path=m.model", "data_path=."].map(str::to_owned);
    let recipe = birdie::recipe::load("demo", [], &settings).unwrap().recipe;
    let error = birdie::data::open(&recipe, folder.path())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("token 4000 at position 2"), "{error}");
}

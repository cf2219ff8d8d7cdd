//! A few steps of every recipe at nano scale through the program itself, to a scored artifact that is then audited and scored again.
//! `scripts/run-nano-recipes` runs them whole.

use std::path::Path;
use std::process::Command;

/// Enough steps for the warmdown, an online Hessian and two snapshots.
const SHORT: &[&str] = &[
    "iterations=6",
    "warmup_steps=1",
    "warmdown_iters=12",
    "swa_every=1",
    "hessian_every=2",
    "calibration_sequences=1",
    "val_tokens_limit=384",
    "ttt_epochs=1",
    "eval_stride=64",
];

fn birdie(folder: &Path, arguments: &[String]) -> String {
    let device = std::env::var("BIRDIE_TEST_DEVICE").unwrap_or_else(|_| "emu".into());
    let output = Command::new(env!("CARGO_BIN_EXE_birdie"))
        .current_dir(folder)
        .args(arguments)
        .args(["--device", &device])
        .output()
        .expect("birdie runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{arguments:?}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The program without a device.
fn birdie_alone(folder: &Path, arguments: &str) -> std::process::Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_birdie"));
    let output = program
        .current_dir(folder)
        .args(arguments.split_whitespace());
    output.output().expect("birdie runs")
}

/// The value behind `key` on the last line that starts with `line`.
fn value(text: &str, line: &str, key: &str) -> f64 {
    let found = text.lines().rfind(|l| l.starts_with(line));
    let words = found
        .unwrap_or_else(|| panic!("no {line} in\n{text}"))
        .split(' ');
    let word = words.filter_map(|word| word.strip_prefix(key)).next_back();
    word.unwrap_or_else(|| panic!("no {key}"))
        .parse()
        .expect("a number")
}

fn runs(recipe: &str, score: &str, says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let set = |settings: &[&str]| -> Vec<String> {
        let pairs = settings
            .iter()
            .flat_map(|s| ["--set".to_owned(), (*s).to_owned()]);
        pairs.collect()
    };
    let mut arguments = vec![
        "train".to_owned(),
        recipe.into(),
        "--out".into(),
        "run".into(),
    ];
    arguments.extend(set(SHORT));
    let log = birdie(folder.path(), &arguments);
    for line in says {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    let bpb = value(&log, score, "val_bpb:");
    assert!((2.0..9.0).contains(&bpb), "{bpb}");
    let mut arguments = vec!["eval".to_owned(), "run".into(), "--audit".into()];
    arguments.extend(set(&["ttt_enabled=false"]));
    let again = birdie(folder.path(), &arguments);
    assert!(
        again.contains("0 unexplained") && again.contains("byte for byte"),
        "{again}"
    );
    // The artifact that was written is the one that was scored, whatever was trained on it after that.
    let roundtrip = log
        .lines()
        .find(|l| l.contains("_roundtrip_exact"))
        .unwrap();
    let bits = roundtrip.rsplit_once("val_bpb:").unwrap().1;
    assert!(
        again.contains(&format!("val_bpb:{bits}")),
        "{roundtrip}\n{again}"
    );
}

#[test]
fn recipe_657() {
    runs(
        "657-nano",
        "final_int6_sliding_window_exact",
        &["int6+lzma", "are the chunks just scored"],
    );
}

#[test]
fn recipe_1573() {
    runs(
        "1573-nano",
        "final_int5_sliding_window_exact",
        &["int5+lzma", "post_swa"],
    );
}

/// From a text to shards of the published tokenizer's tokens to a score whose bytes are those of the text; shards that the tokenizer did
/// not make are refused before anything is scored.
#[test]
fn shards_of_the_published_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fineweb_1024_bpe.model");
    std::fs::copy(model, at("sp1024.model")).unwrap();
    // In the validation part: a ligature that is normalised, a character that this tokenizer does not know (it has no pieces for single
    // bytes) and so counts for nothing, runs of spaces.
    let demo = birdie::data::demo::text();
    let special = "the \u{fb01}rst  \u{1f426} bird  sang";
    let text = [&demo[..58_000], special, &demo[58_000..60_000]].concat();
    std::fs::write(at("text.txt"), &text).unwrap();
    let say = |line: &str| -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        birdie(folder.path(), &words)
    };
    let made = birdie_alone(
        folder.path(),
        "tokenizer shards text.txt --tokenizer sp1024.model --out shards",
    );
    assert!(made.status.success());
    let data = "--set data_path=shards --set tokenizer_path=sp1024.model --set vocab_size=1024";
    let log = say(&format!(
        "train 657-nano --out run {data} --set iterations=3 --set warmup_steps=0 --set val_tokens_limit=0 --set eval_stride=64"
    ));
    let bits = value(&log, "final_int6_roundtrip_exact", "val_bpb:");
    let audit = say("eval run --audit");
    assert!(audit.contains("0 unexplained"), "{audit}");
    assert_eq!(value(&audit, "chunked_exact", "val_bpb:"), bits);

    // Bits per byte once more, from the log's loss and the bytes that the tokens decode to, without the byte table.
    let shard = std::fs::read(at("shards/fineweb_val_000000.bin")).unwrap();
    let tokens: Vec<u16> = shard[1024..]
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
        .collect();
    let scored = (tokens.len() - 1) / 128 * 128;
    let tokenizer = birdie::data::Tokenizer::open("sp1024.model", folder.path()).unwrap();
    let decoded = tokenizer.decoded_bytes(&tokens[1..=scored]);
    let bird = "the first  \u{2047}  bird sang".as_bytes();
    assert!(decoded.windows(bird.len()).any(|bytes| bytes == bird));
    let loss = value(&log, "final_int6_roundtrip_exact", "val_loss:");
    let expected = loss / std::f64::consts::LN_2 * scored as f64 / decoded.len() as f64;
    assert!((bits / expected - 1.0).abs() < 2e-3, "{bits} {expected}");

    // Tokens of a larger vocabulary.
    std::fs::create_dir(at("foreign")).unwrap();
    let mut foreign = tokens.clone();
    foreign[700] = 1030;
    for split in ["train", "val"] {
        let path = at(&format!("foreign/fineweb_{split}_000000.bin"));
        birdie::data::shard::write(&path, &foreign).unwrap();
    }
    for command in [
        "eval run --audit --set data_path=foreign",
        "train 657-nano --out other --set data_path=foreign \
         --set tokenizer_path=sp1024.model --set vocab_size=1024",
    ] {
        let output = birdie_alone(folder.path(), command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("token 1030 at position 700"), "{error}");
        assert_eq!(error.lines().count(), 2, "{error}");
    }
    assert!(!at("other").exists());
}

/// Train first, then score: the log says that this is no legal score.
#[test]
fn recipe_518() {
    let says = [
        "int6+zstd",
        "ttt: train first",
        "ttt_epoch:1/1",
        "train first: not a legal score",
    ];
    runs("518-nano", "final_int6_ttt_sliding_window_exact", &says);
}

/// GPTQ on Hessians collected during training.
#[test]
fn recipe_1072() {
    runs(
        "1072-nano",
        "final_int6_sliding_window_exact",
        &["int6+lzma"],
    );
}

/// GPTQ on text that the model wrote.
#[test]
fn recipe_1473() {
    runs(
        "1473-nano",
        "final_int6_sliding_window_exact",
        &["int6+lzma"],
    );
}

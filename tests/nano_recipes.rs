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

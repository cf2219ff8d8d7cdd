//! Parity files of every kind: they agree, a changed number is noticed, and what cannot be a case is refused in one line.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use birdie::driver::{self, DeviceChoice};
use birdie::parity::compare::Tally;
use birdie::parity::file::File;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open() {
    let choice = match std::env::var("BIRDIE_TEST_DEVICE").as_deref() {
        Ok("cuda") => DeviceChoice::Cuda,
        _ => DeviceChoice::Emu,
    };
    driver::init(choice).expect("a driver");
}

fn run(path: &Path) -> Vec<Tally> {
    open();
    let file = File::open(path, None).unwrap_or_else(|error| panic!("{error:#}"));
    file.run().unwrap_or_else(|error| panic!("{error:#}"))
}

fn agrees(name: &str, least_comparisons: usize) {
    let tallies = run(&fixture(name));
    for tally in &tallies {
        assert!(tally.passes(), "{}", tally.report(20));
    }
    let count: usize = tallies.iter().map(|t| t.rows.len() + t.strict.len()).sum();
    assert!(count >= least_comparisons, "{name}: {count} comparisons");
}

#[test]
fn every_published_quantizer_gives_the_published_codes() {
    agrees("all_Q.json", 18 * 70);
}

#[test]
fn tokens_bytes_and_windows_are_the_published_ones() {
    agrees("all_V.json", 90);
}

#[test]
fn newton_schulz_on_the_device_is_the_published_one() {
    agrees("all_M.json", 4 * 3 * 21);
}

#[test]
fn storage_of_every_full_size_tensor_is_the_published_one() {
    agrees("all_P.json", 600);
}

/// A copy of a fixture with one value replaced.
fn changed(name: &str, folder: &Path, place: &str, value: Value) -> PathBuf {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    let mut case: Value = serde_json::from_str(&text).unwrap();
    let old = case.pointer_mut(place).unwrap_or_else(|| panic!("{place}"));
    assert_ne!(*old, value, "{place}");
    *old = value;
    let path = folder.join(name);
    std::fs::write(&path, case.to_string()).unwrap();
    path
}

#[test]
fn a_wrong_number_is_noticed_in_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = "0".repeat(64);
    for (name, place, value) in [
        ("all_Q.json", "/results/0/samples/3", json!(30)),
        ("all_Q.json", "/results/1/codes_i8_sha256", json!(nobody)),
        ("all_Q.json", "/results/2/scales_f16_bits/7", json!(1)),
        ("all_Q.json", "/results/3/sum", json!(0)),
        ("all_Q.json", "/results/4/hessian_error", json!(0.5)),
        ("all_Q.json", "/matrices/0/first8/2", json!(0.5)),
        ("all_V.json", "/byte_total", json!(2727)),
        ("all_V.json", "/text_ids/5", json!(7)),
        ("all_V.json", "/sliding_eval/1/val_bpb", json!(5.3144)),
        (
            "all_V.json",
            "/sliding_windows/0/sha256_u32le_triples",
            json!(nobody),
        ),
        ("all_V.json", "/base_bytes/300", json!(99)),
        ("all_M.json", "/results/2/float64/l2", json!(9.0)),
        ("all_P.json", "/policies/1/tensors/3/stored", json!("int6")),
        (
            "all_P.json",
            "/policies/4/tensors/9/shape",
            json!([512, 511]),
        ),
    ] {
        let tallies = run(&changed(name, folder.path(), place, value));
        assert!(tallies.iter().any(|t| !t.passes()), "{name} {place}");
    }
}

fn birdie(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_birdie"));
    command
        .arg("parity")
        .args(["--device", "emu"])
        .args(arguments);
    command.output().expect("birdie runs")
}

/// Runs and expects a user's error: two lines, nothing on standard output.
fn mistake(arguments: &[&str]) -> String {
    let output = birdie(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("birdie: ") && lines[1].starts_with("hint: "),
        "{text}"
    );
    assert!(output.stdout.is_empty(), "{arguments:?}");
    text
}

#[test]
fn the_command_prints_a_table_and_its_verdict() {
    let folder = tempfile::tempdir().unwrap();
    let good = fixture("all_P.json");
    let output = birdie(&[good.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "quantity",
        "expected",
        "got",
        "error",
        "tolerance",
        "verdict",
        "all agree",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let bad = changed(
        "all_P.json",
        folder.path(),
        "/policies/0/parameters",
        json!(5),
    );
    let output = birdie(&[good.to_str().unwrap(), bad.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("OFF") && text.contains("1 off"), "{text}");
}

#[test]
fn what_cannot_be_a_case_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("case.json");
    let name = path.to_str().unwrap();
    let deep = format!("{{\"recipe\": \"657\", \"x\": {}", "[".repeat(100_000));
    for (bytes, part) in [
        (&b""[..], "EOF while parsing"),
        (b"this is no JSON", "expected"),
        (b"\xff\xfe\x00garbage", "not text in UTF-8"),
        (b"[1, 2, 3]", "invalid type"),
        (b"{\"recipe\": \"657\"}", "missing field `case`"),
        (b"{\"recipe\": \"all\", \"case\": \"Z\"}", "no case `Z`"),
        (b"{\"recipe\": \"all\", \"case\": \"Q\"}", "missing field"),
        (b"{\"recipe\": \"657\", \"case\": \"A\"}", "missing field"),
        (deep.as_bytes(), "EOF while parsing a list"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let text = mistake(&[name]);
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(mistake(&["missing.json"]).contains("No such file"));
    assert!(mistake(&[folder.path().to_str().unwrap()]).contains("directory"));
    // A good file does not run when a later one is bad.
    assert!(
        mistake(&[fixture("all_P.json").to_str().unwrap(), "missing.json"]).contains("missing")
    );
}

#[test]
fn values_that_no_model_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let huge = json!(1_000_000_000_000u64);
    for (name, place, value, part) in [
        (
            "657_A.json",
            "/model/model_dim",
            huge.clone(),
            "model_dim = 1000000000000",
        ),
        (
            "657_A.json",
            "/model/vocab_size",
            huge.clone(),
            "vocab_size",
        ),
        (
            "657_A.json",
            "/model/num_layers",
            huge.clone(),
            "num_layers",
        ),
        (
            "657_A.json",
            "/model/mlp_hidden",
            json!(385),
            "mlp_hidden = 385",
        ),
        (
            "657_A.json",
            "/model/num_kv_heads",
            json!(0),
            "num_kv_heads = 0",
        ),
        ("657_A.json", "/model/head_dim", json!(32), "head_dim = 32"),
        (
            "657_A.json",
            "/model/bigram_buckets",
            huge.clone(),
            "bigram_buckets",
        ),
        (
            "657_A.json",
            "/model/ve_layers",
            json!([77]),
            "ve_layers names layer 77",
        ),
        (
            "657_A.json",
            "/model/passes/1/layer",
            json!(77),
            "names a layer beyond",
        ),
        (
            "657_A.json",
            "/model/passes/1/layer",
            json!(2),
            "the recipe has layer 1",
        ),
        (
            "657_A.json",
            "/model/value_residual_gates",
            json!("yes"),
            "invalid type",
        ),
        (
            "657_A.json",
            "/model/tie_embeddings",
            json!(false),
            "tie_embeddings",
        ),
        (
            "657_A.json",
            "/model/rms_norm_eps",
            json!(1e-5),
            "rms_norm_eps",
        ),
        ("657_A.json", "/seq_len", huge.clone(), "seq_len"),
        ("657_A.json", "/seq_len", json!(0), "seq_len = 0"),
        ("657_A.json", "/batch", json!(-1), "invalid value"),
        (
            "657_A.json",
            "/weights/3/shape",
            json!([1_000_000, 1_000_000]),
            "weights in all",
        ),
        (
            "657_A.json",
            "/weights/3/shape",
            json!([u64::MAX, 2]),
            "weights in all",
        ),
        ("657_A.json", "/weights/3/shape", json!([7]), "shape [7]"),
        (
            "657_A.json",
            "/weights/3/name",
            json!("blocks.9.mlp.fc.weight"),
            "no such parameter",
        ),
        (
            "657_A.json",
            "/weights/3/mean",
            json!([0.0, 1.0, 2.0]),
            "one for each row",
        ),
        (
            "657_E.json",
            "/optimizer/muon/newton_schulz_steps",
            json!(7),
            "muon_backend_steps = 7",
        ),
        ("657_E.json", "/optimizer/world_size", json!(8), "8 ranks"),
        ("657_E.json", "/steps", json!([]), "steps without optimizer"),
        (
            "all_Q.json",
            "/matrices/0/shape",
            json!([1_000_000, 1_000_000]),
            "at most",
        ),
        ("all_Q.json", "/matrices/0/shape", json!([0, 4]), "at most"),
        ("all_Q.json", "/results/0/key", json!("m0.int3"), "m0.int3"),
        ("all_Q.json", "/results/0/matrix", json!("m9"), "not listed"),
        (
            "all_V.json",
            "/tokenizer_sha256",
            json!("00"),
            "no tokenizer with sha256 00",
        ),
        (
            "all_V.json",
            "/sliding_windows/0/stride",
            json!(0),
            "stride 0",
        ),
        (
            "all_V.json",
            "/sliding_windows/0/total_tokens",
            huge.clone(),
            "targets in windows",
        ),
        ("all_V.json", "/vocab_size", json!(8), "vocab_size = 8"),
        (
            "all_M.json",
            "/weights/0/shape",
            json!([0, 128]),
            "two sizes",
        ),
        (
            "all_M.json",
            "/weights/0/shape",
            json!([1 << 20, 1 << 20]),
            "two sizes",
        ),
        ("all_P.json", "/policies/0/recipe", json!("9999"), "9999"),
    ] {
        let path = changed(name, folder.path(), place, value);
        let text = mistake(&[path.to_str().unwrap()]);
        assert!(text.contains(part), "{place}: {text}");
    }
}

#[test]
fn an_unknown_switch_is_refused_and_a_comment_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("657_A.json")).unwrap();
    let mut case: Value = serde_json::from_str(&text).unwrap();
    case["comment"] = json!("for people");
    case["model"]["mixture_of_experts"] = json!(false);
    let path = folder.path().join("case.json");
    std::fs::write(&path, case.to_string()).unwrap();
    File::open(&path, None).unwrap_or_else(|error| panic!("{error:#}"));
    case["model"]["mixture_of_experts"] = json!(true);
    std::fs::write(&path, case.to_string()).unwrap();
    let text = mistake(&[path.to_str().unwrap()]);
    assert!(text.contains("mixture_of_experts"), "{text}");
}

#[test]
fn the_tokenizer_may_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fineweb_1024_bpe.model");
    let other = folder.path().join("other.model");
    std::fs::copy(&model, &other).unwrap();
    File::open(&fixture("all_V.json"), Some(&other)).unwrap_or_else(|error| panic!("{error:#}"));
    std::fs::write(&other, "not it").unwrap();
    let case = fixture("all_V.json");
    let arguments = [
        "--tokenizer",
        other.to_str().unwrap(),
        case.to_str().unwrap(),
    ];
    assert!(mistake(&arguments).contains("another sha256"));
}

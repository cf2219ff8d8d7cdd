//! Transcripts of common mistakes: one line `birdie: what: why`, one line `hint: …`, exit code 2, nothing written.

use std::path::Path;
use std::process::{Command, Output};

fn birdie(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_birdie"));
    command
        .current_dir(folder)
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied());
    command.output().expect("birdie runs")
}

/// Runs and expects a user's error; returns the text.
fn mistake(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = birdie(folder, arguments, environment);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("birdie: ") && lines[1].starts_with("hint: "),
        "{text}"
    );
    text
}

#[test]
fn wrong_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for (arguments, part) in [
        (&["frobnicate"][..], "frobnicate"),
        (&[][..], "subcommand"),
        (&["train", "--bogus"], "--bogus"),
        (&["train", "--device", "tpu"], "use auto, cuda or emu"),
        (&["train", "--resume", "--overwrite"], "cannot be used with"),
        (&["train", "--set", "iterations"], "key=value"),
        (
            &["train", "--set", "iteration=3"],
            "did you mean `iterations`?",
        ),
        (&["train", "--set", "iterations=-3"], "is not integer >= 0"),
        (
            &["train", "--set", "compressor=gzip"],
            "is not one of `lzma` `zstd`",
        ),
        (&["train", "--set", "xsa_last_n=99"], "xsa_last_n = 99 of"),
        (
            &["train", "missing.toml"],
            "recipe missing.toml: No such file",
        ),
        (
            &["train", "--set", "data_path=missing.txt"],
            "data missing.txt: No such file",
        ),
        (&["train", "--resume", "--out", "nowhere"], "No such file"),
        (
            &["inspect", "missing.birdie"],
            "artifact missing.birdie: No such file",
        ),
        (
            &["eval", "missing.birdie"],
            "artifact missing.birdie: No such file",
        ),
        (
            &["pack", "missing"],
            "checkpoint missing/checkpoint.birdie: No such file",
        ),
    ] {
        let text = mistake(here, arguments, &[]);
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
    assert_eq!(
        std::fs::read_dir(here).unwrap().count(),
        0,
        "nothing was written"
    );
}

#[test]
fn wrong_recipe_files() {
    let folder = tempfile::tempdir().unwrap();
    for (text, part) in [
        ("nun_layers = 3\n", "did you mean `num_layers`?"),
        ("[modell]\n", "unknown section [modell]"),
        ("[model]\nnum_layers = = 3\n", "line 2"),
        ("[model]\nnum_layers = \"three\"\n", "is not integer"),
        ("[model]\nve_layers = [44]\n", "ve_layers names layer 44"),
    ] {
        std::fs::write(folder.path().join("r.toml"), text).unwrap();
        let text = mistake(folder.path(), &["train", "r.toml"], &[]);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn wrong_environment() {
    let folder = tempfile::tempdir().unwrap();
    let text = mistake(folder.path(), &["train"], &[("ITERATIONS", "many")]);
    assert!(
        text.starts_with("birdie: environment variable ITERATIONS: "),
        "{text}"
    );
}

#[test]
fn wrong_shards() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fineweb_1024_bpe.model");
    std::fs::copy(model, folder.path().join("m.model")).unwrap();
    let shards = folder.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let arguments = [
        "train",
        "--set",
        "data_path=shards",
        "--set",
        "tokenizer_path=m.model",
        "--set",
        "vocab_size=1024",
    ];
    assert!(mistake(folder.path(), &arguments, &[]).contains("no file named fineweb_train_"));
    let tokens: Vec<u16> = (0..5000).map(|i| i % 1024).collect();
    for split in ["train", "val"] {
        birdie::data::shard::write(&shards.join(format!("fineweb_{split}_000000.bin")), &tokens)
            .unwrap();
    }
    let path = shards.join("fineweb_train_000000.bin");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, &good[..good.len() - 100]).unwrap();
    let text = mistake(folder.path(), &arguments, &[]);
    assert!(
        text.contains("shard shards/fineweb_train_000000.bin: truncated"),
        "{text}"
    );
    std::fs::write(&path, &good).unwrap();
    // A window is longer than these 30 tokens; and ids beyond the vocabulary are named with their place.
    let validation = shards.join("fineweb_val_000000.bin");
    let whole = std::fs::read(&validation).unwrap();
    birdie::data::shard::write(&validation, &tokens[..30]).unwrap();
    let text = mistake(folder.path(), &arguments, &[]);
    assert!(
        text.contains("30 validation tokens, but one window"),
        "{text}"
    );
    let mut beyond = tokens.clone();
    beyond[4321] = 1024;
    birdie::data::shard::write(&validation, &beyond).unwrap();
    let text = mistake(folder.path(), &arguments, &[]);
    assert!(text.contains("token 1024 at position 4321"), "{text}");
    std::fs::write(&validation, &whole).unwrap();
    assert!(!folder.path().join("runs").exists(), "nothing was written");
    let text = mistake(folder.path(), &["train", "--set", "data_path=shards"], &[]);
    assert!(
        text.contains("shards hold tokens of a SentencePiece model"),
        "{text}"
    );
    let text = mistake(folder.path(), &arguments[..5], &[]);
    assert!(
        text.contains("it has 1024 ids, but the recipe's vocab_size is 256"),
        "{text}"
    );
}

#[test]
fn damaged_artifacts_and_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, part) in [
        (
            "text.birdie",
            &b"this is a text, not an artifact at all"[..],
            "not a birdie artifact",
        ),
        ("short.birdie", b"birdie", "shorter than a header"),
        (
            "check.birdie",
            b"birdckpt but then nothing of use",
            "format version",
        ),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let text = mistake(folder.path(), &["inspect", name], &[]);
        assert!(text.contains(part), "{text}");
    }
}

/// A run at nano scale, and what does not fit it: each a user's error that leaves every file as it was.
#[test]
fn what_does_not_fit_a_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let run = |arguments: &[&str]| {
        let output = birdie(here, &[arguments, &["--device", "emu"]].concat(), &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    };
    let short = [
        "--set",
        "iterations=1",
        "--set",
        "warmup_steps=0",
        "--set",
        "val_tokens_limit=256",
        "--set",
        "eval_stride=0",
    ];
    run(&[&["train", "657-nano", "--out", "run"][..], &short].concat());
    run(&["export", "run", "--out", "w.safetensors"]);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fineweb_1024_bpe.model");
    std::fs::copy(model, here.join("m.model")).unwrap();
    // The tensors of one recipe with the text of another.
    let artifact = here.join("run/model.birdie");
    let (mut foreign, _) = birdie::artifact::Artifact::load(&artifact).unwrap();
    let other = birdie::recipe::load("1473-nano", [], &[]).unwrap();
    foreign.recipe = other.print_config();
    std::fs::write(
        here.join("foreign.birdie"),
        foreign.encode(&other.recipe).unwrap(),
    )
    .unwrap();
    let files = || -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = [here.to_owned(), here.join("run")]
            .iter()
            .flat_map(|folder| folder.read_dir().unwrap().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    for (arguments, part) in [
        (
            &["eval", "foreign.birdie"][..],
            "its tensors are not those of its recipe",
        ),
        (
            &["eval", "run", "--set", "tokenizer_path=m.model"],
            "it has 1024 ids, but the recipe's vocab_size is 256",
        ),
        (
            &["eval", "run", "--set", "val_tokens_limit=100"],
            "validation tokens, but one window scores 128",
        ),
        (
            &["eval", "run", "--set", "num_layers=3"],
            "num_layers belongs to the weights",
        ),
        (
            &[
                "pack",
                "run",
                "--overwrite",
                "--set",
                "prune=true",
                "--set",
                "max_artifact_bytes=1000",
            ],
            "even with every code",
        ),
        (&["pack", "run"], "it exists"),
        (
            &["pack", "run", "--overwrite", "--set", "swa_enabled=false"],
            "swa_enabled cannot change any more: the checkpoint's run had swa_enabled = true",
        ),
        (
            &[
                "pack",
                "run",
                "--overwrite",
                "--set",
                "final_weights=live",
                "--set",
                "ema_decay=0",
            ],
            "ema_decay cannot change any more: the checkpoint's run had ema_decay = 0.9",
        ),
        (
            &[
                "export",
                "run",
                "--checkpoint",
                "--out",
                "x.safetensors",
                "--set",
                "swa_enabled=false",
            ],
            "swa_enabled cannot change any more",
        ),
        (
            &["train", "1473-nano", "--out", "run", "--resume"],
            "checkpoint",
        ),
        (
            &["train", "657-nano", "--out", "run"],
            "it already holds a run",
        ),
        (
            &[
                "import",
                "w.safetensors",
                "--recipe",
                "1573-nano",
                "--out",
                "imported",
            ],
            "weights w.safetensors",
        ),
        (
            &[
                "import", "m.model", "--recipe", "657-nano", "--out", "imported",
            ],
            "not a safetensors file",
        ),
    ] {
        let text = mistake(here, &[arguments, &["--device", "emu"]].concat(), &[]);
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
    let after = files();
    let names = |files: &[(std::path::PathBuf, Vec<u8>)]| -> Vec<String> {
        files
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect()
    };
    assert_eq!(names(&before), names(&after));
    assert!(before == after, "a file was changed");
    assert!(!here.join("imported").exists());
}

#[test]
fn an_output_folder_that_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "in the way").unwrap();
    let text = mistake(folder.path(), &["train", "--out", "file/run"], &[]);
    assert!(text.contains("folder file/run: Not a directory"), "{text}");
}

/// Starts a run and presses Ctrl-C when a line of its log begins with `at`; returns exit code and standard error.
#[cfg(unix)]
fn interrupted(folder: &Path, arguments: &[&str], at: &str) -> (Option<i32>, String) {
    use std::io::{BufRead, BufReader, Read};
    let mut child = Command::new(env!("CARGO_BIN_EXE_birdie"))
        .current_dir(folder)
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines.any(|line| line.unwrap().starts_with(at));
    assert!(seen, "no line starts with {at}");
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    // The rest is read so that the program never waits for us.
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let status = child.wait().unwrap();
    text += &rest.join().unwrap().join("\n");
    (status.code(), text)
}

/// Ctrl-C while training, again while scoring, and each time the run goes on from where it was.
#[cfg(unix)]
#[test]
fn ctrl_c_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let small = [
        "--device",
        "emu",
        "--out",
        "run",
        "--set",
        "val_tokens_limit=8192",
        "--set",
        "val_loss_every=0",
    ];
    let train = |more: &[&'static str]| [&["train", "demo"][..], more, &small].concat();
    let (code, text) = interrupted(here, &train(&["--set", "iterations=200"]), "step:2/");
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("stopping after this step"), "{text}");
    assert!(
        text.contains("continue with: birdie train demo --resume --out run"),
        "{text}"
    );
    let resume = train(&["--resume", "--set", "iterations=5"]);
    let (code, text) = interrupted(here, &resume, "DIAGNOSTIC post_ema");
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("continue with: birdie train demo"), "{text}");
    let output = birdie(here, &resume, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("the model is"), "{text}");
    let left: Vec<_> = here.join("run").read_dir().unwrap().flatten().collect();
    assert!(
        left.iter()
            .all(|file| !file.file_name().to_string_lossy().ends_with(".part")),
        "{left:?}"
    );
}

/// Runs with a limit on the size of files, which a write meets as it meets a full disk: part of it is written, then none.
#[cfg(unix)]
fn with_little_room(folder: &Path, blocks: u32, arguments: &str) -> (Option<i32>, String) {
    let limited = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec {} {arguments}",
        env!("CARGO_BIN_EXE_birdie")
    );
    let mut shell = Command::new("bash");
    let output = shell.current_dir(folder).args(["-c", &limited]).output();
    let output = output.expect("a shell");
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

/// Without room for it, no file is begun, none is replaced, and the reason is one line.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_nothing_but_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let train = "train 657-nano --device emu --out run --set iterations=1 --set warmup_steps=0 \
                 --set val_tokens_limit=256 --set eval_stride=0";
    let refused = |blocks, arguments: &str, part: &str| {
        let (code, text) = with_little_room(here, blocks, arguments);
        assert_eq!(code, Some(2), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("birdie: ") && lines[0].contains(part),
            "{text}"
        );
        assert!(
            lines[1].starts_with("hint: ") && !text.contains(".part"),
            "{text}"
        );
    };
    let names = |folder: &Path| -> Vec<String> {
        let entries = folder.read_dir().unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    refused(
        64,
        train,
        "checkpoint run/checkpoint.birdie: File too large",
    );
    assert_eq!(
        names(&here.join("run")),
        ["log.txt", "metrics.jsonl", "recipe.toml"]
    );
    // The checkpoint is whole, the artifact has no room.
    let (code, text) = with_little_room(here, 100_000, &format!("{train} --overwrite"));
    assert_eq!(code, Some(0), "{text}");
    let artifact = std::fs::read(here.join("run/model.birdie")).unwrap();
    refused(
        16,
        "pack run --overwrite --device emu",
        "file run/model.birdie: File too large",
    );
    assert_eq!(
        std::fs::read(here.join("run/model.birdie")).unwrap(),
        artifact
    );
    refused(
        16,
        "export run --out w.safetensors",
        "file w.safetensors: File too large",
    );
    assert_eq!(names(here), ["run"]);
}

/// A reader that goes away ends the output, not the program.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/all_P.json");
    for arguments in [
        format!("parity --device emu --rows 0 {}", case.display()),
        "recipe --reference".to_owned(),
    ] {
        let piped = format!(
            "{} {arguments} | head -c 10 > /dev/null; exit ${{PIPESTATUS[0]}}",
            env!("CARGO_BIN_EXE_birdie")
        );
        let output = Command::new("bash").args(["-c", &piped]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), text.as_str()),
            (Some(0), ""),
            "{arguments}"
        );
    }
}

#[test]
fn a_plan_that_does_not_fit_is_refused_after_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let dry_run = |more: &[&str], environment: &[(&str, &str)]| {
        let arguments = ["train", "657", "--dry-run", "--device", "emu"];
        let output = birdie(folder.path(), &[&arguments, more].concat(), environment);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // 19 GiB: too much for the host of this emulated device, not for the device it stands for.
    let (code, text, _) = dry_run(&[], &[("BIRDIE_EMU_MEMORY", "8000000000")]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("fits into an H100 80GB"), "{text}");
    assert!(
        text.contains("DOES NOT FIT into the emulated device: 7.4"),
        "{text}"
    );
    let (code, text, error) = dry_run(&["--set", "grad_accum_steps=1"], &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("activations") && text.contains("DOES NOT FIT into an H100 80GB"),
        "{text}"
    );
    assert!(
        error.contains("of device memory") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn help_and_version_are_no_errors() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["train", "--help"]] {
        let output = birdie(folder.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn the_reference_of_keys_is_current() {
    let committed =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipe.md"))
            .unwrap();
    assert_eq!(
        committed,
        birdie::recipe::reference_markdown(),
        "run: birdie recipe --reference > docs/recipe.md"
    );
}

/// The counts that a program leaves predict what it predicts of itself.
#[test]
fn counts_of_a_program_become_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = birdie(folder.path(), arguments, environment);
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text, error)
    };
    let micro = ["bench", "micro", "--device", "emu", "--filter", "exp2"];
    let (code, _, error) = run(&micro, &[("BIRDIE_EMU_COUNT", "counts.json")]);
    assert_eq!(code, Some(0), "{error}");
    let counts = ["bench", "counts", "counts.json", "--out", "record.json"];
    let (code, text, error) = run(&counts, &[]);
    assert_eq!(code, Some(0), "{error}");
    let line = |name: &str| {
        let found = text.lines().find(|line| line.starts_with(name));
        let found = found.unwrap_or_else(|| panic!("no {name} in {text}"));
        found
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // name [grid by threads] launches floor bound by ...
    let mufu = line("exp2_mufu");
    assert_eq!(mufu[..5], ["exp2_mufu", "[1x1x1", "by", "128]", "1"]);
    assert_eq!(mufu[5], "n/a");
    assert_eq!(mufu[7], "mufu");
    assert_ne!(line("exp2_fma")[7], "mufu");
    assert!(text.contains("PREDICTED") && text.contains("2 launches of counts.json"));

    let compare = ["bench", "compare", "record.json", "record.json"];
    let (code, text, error) = run(&compare, &[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(
        text.contains("ratio 1.000") && !text.contains("only in"),
        "{text}"
    );

    let none = ["bench", "counts", "counts.json", "--filter", "gemm"];
    let (code, _, error) = run(&none, &[]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("none of 2 launches") && error.contains("hint: "),
        "{error}"
    );
    std::fs::write(folder.path().join("wrong.json"), "{}x").unwrap();
    let (code, _, error) = run(&["bench", "counts", "wrong.json"], &[]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("wrong.json") && error.contains("BIRDIE_EMU_COUNT"),
        "{error}"
    );
    let failed = std::fs::read_to_string(folder.path().join("counts.json")).unwrap();
    let failed = failed.replacen("\"outcome\":\"ok\"", "\"outcome\":\"a race\"", 1);
    std::fs::write(folder.path().join("failed.json"), failed).unwrap();
    let (code, _, error) = run(&["bench", "counts", "failed.json"], &[]);
    assert_eq!(code, Some(2));
    assert!(error.contains("a race"), "{error}");
}

//! Whole commands over a tiny model on the host.

use super::*;
use crate::artifact::{Artifact, safetensors};
use crate::train::toy::Toy;
use std::path::Path;

fn toy() -> Backend {
    Backend {
        device: |_, _| Ok("device: toy".into()),
        build: |recipe| Ok(Box::new(Toy::new(recipe.vocab_size))),
        plan: |recipe, tensors| {
            Ok(MemoryPlan {
                report: format!("plan of {} {tensors}", recipe.name),
                fits: match recipe.num_layers {
                    99 => Err(Failure::user("plan", "too large", "make it smaller").into()),
                    _ => Ok(()),
                },
            })
        },
    }
}

/// Runs a command; the error as the user reads it.
fn birdie(arguments: &[&str]) -> Result<u8, String> {
    let cli = Cli::try_parse_from(std::iter::once("birdie").chain(arguments.iter().copied()))
        .map_err(|e| wrong_arguments(&e).to_string())?;
    execute(cli, toy()).map_err(|error| describe(&error).0)
}

const SMALL: &[&str] = &[
    "--set",
    "iterations=6",
    "--set",
    "val_tokens_limit=512",
    "--set",
    "matrix_lr=5",
    "--set",
    "warmdown_iters=3",
    "--set",
    "checkpoint_every=4",
    "--set",
    "passthrough_numel=16",
];

fn train(out: &Path, more: &[&str]) -> Result<u8, String> {
    let out = out.to_str().unwrap();
    birdie(&[&["train", "--out", out], SMALL, more].concat())
}

fn log(run: &Path) -> String {
    std::fs::read_to_string(run.join("log.txt")).unwrap()
}

#[test]
fn train_writes_a_run_that_can_be_inspected_packed_and_scored() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert_eq!(train(&run, &[]), Ok(0));
    let text = log(&run);
    for part in [
        "recipe: demo",
        "step:6/6 train_loss:",
        "step:6/6 val_loss:",
        "final_int6_roundtrip_exact val_loss:",
        "final_int6_sliding_window_exact val_loss:",
        "order 1",
        "xz -9",
        "phases",
        "Total submission size int6+lzma:",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    for file in [
        "checkpoint.birdie",
        "model.birdie",
        "metrics.jsonl",
        "loss.svg",
        "recipe.toml",
    ] {
        assert!(run.join(file).exists(), "{file}");
    }
    let run_text = run.to_str().unwrap();
    assert_eq!(birdie(&["inspect", run_text]), Ok(0));
    assert_eq!(
        birdie(&["inspect", run.join("checkpoint.birdie").to_str().unwrap()]),
        Ok(0)
    );
    assert_eq!(birdie(&["eval", run_text]), Ok(0));
    assert!(
        birdie(&["eval", run_text, "--set", "num_layers=2"])
            .unwrap_err()
            .contains("belongs to the weights")
    );

    let error = birdie(&["pack", run_text]).unwrap_err();
    assert!(
        error.contains("it exists") && error.contains("--overwrite"),
        "{error}"
    );
    let other = folder.path().join("int5.birdie");
    assert_eq!(
        birdie(&[
            "pack",
            run_text,
            "--out",
            other.to_str().unwrap(),
            "--set",
            "quant_bits=5"
        ]),
        Ok(0)
    );
    let (artifact, _) = Artifact::load(&other).unwrap();
    assert_eq!(artifact.parse_recipe().unwrap().quant_bits, 5);

    // Packing the finished run again gives the same file.
    let first = std::fs::read(run.join("model.birdie")).unwrap();
    let again = folder.path().join("again.birdie");
    assert_eq!(
        birdie(&["pack", run_text, "--out", again.to_str().unwrap()]),
        Ok(0)
    );
    let again = Artifact::load(&again).unwrap().0;
    assert_eq!(again.tensors, Artifact::decode(&first).unwrap().0.tensors);
}

#[test]
fn a_second_run_into_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(train(folder.path(), &[]), Ok(0));
    let before = std::fs::read(folder.path().join("model.birdie")).unwrap();
    let error = train(folder.path(), &[]).unwrap_err();
    assert!(
        error.contains("already holds a run") && error.contains("hint: --resume"),
        "{error}"
    );
    assert_eq!(
        std::fs::read(folder.path().join("model.birdie")).unwrap(),
        before,
        "nothing was overwritten"
    );
    assert_eq!(train(folder.path(), &["--overwrite"]), Ok(0));
    assert_eq!(log(folder.path()).matches("step:6/6 train_loss").count(), 1);
}

#[test]
fn resume_continues_and_refuses_what_is_foreign() {
    let folder = tempfile::tempdir().unwrap();
    let (part, whole) = (folder.path().join("part"), folder.path().join("whole"));
    assert_eq!(train(&part, &["--set", "warmdown_iters=0"]), Ok(0));
    let error = train(
        &part,
        &["--resume", "--set", "warmdown_iters=0", "--set", "seed=5"],
    )
    .unwrap_err();
    assert!(
        error.contains("seed = 1337") && error.contains("--set seed=1337"),
        "{error}"
    );
    assert_eq!(
        train(
            &part,
            &[
                "--resume",
                "--set",
                "warmdown_iters=0",
                "--set",
                "iterations=9"
            ]
        ),
        Ok(0)
    );
    assert_eq!(
        train(
            &whole,
            &["--set", "warmdown_iters=0", "--set", "iterations=9"]
        ),
        Ok(0)
    );
    let weights = |run: &Path| Artifact::load(&run.join("model.birdie")).unwrap().0.tensors;
    assert_eq!(weights(&part), weights(&whole));
    let metrics = std::fs::read_to_string(part.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"event\":\"step\"").count(), 9);

    std::fs::write(part.join("checkpoint.birdie"), "not a checkpoint of ours").unwrap();
    let error = train(&part, &["--resume", "--set", "warmdown_iters=0"]).unwrap_err();
    assert!(error.contains("not a birdie checkpoint"), "{error}");
    let error = train(&folder.path().join("none"), &["--resume"]).unwrap_err();
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_model_that_diverges_ends_with_code_four() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend {
        build: |recipe| {
            let mut toy = Toy::new(recipe.vocab_size);
            toy.poison = Some(3);
            Ok(Box::new(toy))
        },
        ..toy()
    };
    let out = folder.path().to_str().unwrap();
    let cli = Cli::try_parse_from([&["birdie", "train", "--out", out], SMALL].concat()).unwrap();
    let (text, code) = describe(&execute(cli, backend).unwrap_err());
    assert_eq!(code, 4);
    assert!(
        text.starts_with("birdie: step 3: ") && text.contains("\nhint: "),
        "{text}"
    );
}

#[test]
fn printing_trains_nothing() {
    assert_eq!(birdie(&["train", "--print-config"]), Ok(0));
    assert_eq!(birdie(&["train", "--dry-run", "--tensors"]), Ok(0));
    let error = birdie(&["train", "--dry-run", "--set", "num_layers=99"]).unwrap_err();
    assert!(error.contains("too large"), "{error}");
    assert_eq!(birdie(&["recipe"]), Ok(0));
    assert_eq!(birdie(&["recipe", "--reference"]), Ok(0));
}

#[test]
fn recipes_the_engine_cannot_serve_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let backend = Backend {
        build: |recipe| {
            let mut toy = Toy::new(recipe.vocab_size);
            toy.calibrates = false;
            Ok(Box::new(toy))
        },
        ..toy()
    };
    let arguments = [
        "birdie",
        "train",
        "--out",
        out.to_str().unwrap(),
        "--set",
        "quantizer=gptq",
    ];
    let error = execute(Cli::try_parse_from(arguments).unwrap(), backend).unwrap_err();
    assert!(error.to_string().contains("Hessians"), "{error}");
    assert!(!out.exists());
}

#[test]
fn gptq_runs_with_both_sources_of_hessians() {
    let folder = tempfile::tempdir().unwrap();
    for source in ["self_generated", "online"] {
        let out = folder.path().join(source);
        let source = format!("hessian_source={source}");
        let settings = [
            "--set",
            "quantizer=gptq",
            "--set",
            &source,
            "--set",
            "hessian_every=1",
            "--set",
            "calibration_sequences=2",
        ];
        assert_eq!(train(&out, &settings), Ok(0));
        let again = folder.path().join("again.birdie");
        assert_eq!(
            birdie(&[
                "pack",
                out.to_str().unwrap(),
                "--out",
                again.to_str().unwrap(),
                "--overwrite"
            ]),
            Ok(0)
        );
        let tensors = |path: &Path| Artifact::load(path).unwrap().0.tensors;
        assert_eq!(tensors(&out.join("model.birdie")), tensors(&again));
    }
    // A learning rate that never falls leaves nothing to accumulate: batches after the training serve, or nothing does.
    let never = |name: &str, batches: &str| {
        let out = folder.path().join(name);
        let settings = [
            "--set",
            "quantizer=gptq",
            "--set",
            "hessian_source=online",
            "--set",
            "hessian_every=100",
            "--set",
            batches,
        ];
        (train(&out, &settings), out)
    };
    let (error, _) = never("never", "hessian_fallback_batches=0");
    assert!(error.unwrap_err().contains("no Hessian was accumulated"));
    let (done, out) = never("filled", "hessian_fallback_batches=2");
    assert_eq!(done, Ok(0));
    assert!(log(&out).contains("hessians: filled from 2 more batches"));
}

#[test]
fn pruning_meets_its_budget_or_says_that_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert_eq!(train(&run, &["--set", "ema_decay=0.1"]), Ok(0));
    let size = std::fs::metadata(run.join("model.birdie")).unwrap().len();
    let budget = format!("max_artifact_bytes={}", size - 4);
    let out = folder.path().join("pruned.birdie");
    let arguments = [
        "pack",
        run.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--set",
        "prune=true",
    ];
    assert_eq!(
        birdie(&[&arguments[..], &["--set", &budget]].concat()),
        Ok(0)
    );
    assert!(std::fs::metadata(&out).unwrap().len() <= size - 4);
    let error = birdie(
        &[
            &arguments[..],
            &["--overwrite", "--set", "max_artifact_bytes=100"],
        ]
        .concat(),
    )
    .unwrap_err();
    assert!(error.contains("even with every code"), "{error}");
    assert!(
        std::fs::metadata(&out).unwrap().len() > 100,
        "nothing was overwritten"
    );
}

#[test]
fn weights_travel_through_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert_eq!(train(&run, &[]), Ok(0));
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run_text = run.to_str().unwrap();
    assert_eq!(
        birdie(&["export", run_text, "--out", &path("a.safetensors")]),
        Ok(0)
    );
    assert!(
        birdie(&["export", run_text, "--out", &path("a.safetensors")])
            .unwrap_err()
            .contains("it exists")
    );
    assert_eq!(
        birdie(&[
            "export",
            run_text,
            "--checkpoint",
            "--out",
            &path("b.safetensors")
        ]),
        Ok(0)
    );
    assert_eq!(
        birdie(&[
            "import",
            &path("b.safetensors"),
            "--recipe",
            "demo",
            "--set",
            "passthrough_numel=16",
            "--out",
            &path("imported")
        ]),
        Ok(0)
    );
    let banks = ["export", run_text, "--checkpoint", "--banks", "--out"];
    assert_eq!(
        birdie(&[&banks[..], &[&path("c.safetensors")]].concat()),
        Ok(0)
    );
    let load = |name: &str| safetensors::load(&folder.path().join(name)).unwrap();
    assert!(
        load("c.safetensors")
            .iter()
            .any(|t| t.name == "mlp_up_bank")
    );
    let mut split = safetensors::from_banks(load("c.safetensors")).unwrap();
    split.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(split, load("b.safetensors"));
    assert_eq!(
        birdie(&["pack", &path("imported"), "--set", "final_weights=live"]),
        Ok(0)
    );
    let tensors = |path: &Path| Artifact::load(path).unwrap().0.tensors;
    assert_eq!(
        tensors(&folder.path().join("imported/model.birdie")),
        tensors(&run.join("model.birdie"))
    );
    let error = birdie(&[
        "import",
        &path("b.safetensors"),
        "--recipe",
        "657",
        "--out",
        &path("other"),
    ])
    .unwrap_err();
    assert!(error.contains("has the shape"), "{error}");
}

/// A text becomes a tokenizer, the tokenizer makes shards, and a recipe trains on them with exact bytes.
#[test]
fn from_a_text_to_shards_to_a_score() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text: String = crate::data::demo::text().chars().take(150_000).collect();
    std::fs::write(at("text.txt"), &text).unwrap();
    let train_tokenizer = ["tokenizer", "train", &at("text.txt"), "--vocab-size", "400"];
    let out = ["--out", &at("t.model")];
    assert_eq!(birdie(&[&train_tokenizer[..], &out].concat()), Ok(0));
    let error = birdie(&[&train_tokenizer[..], &out].concat()).unwrap_err();
    assert!(error.contains("it exists"), "{error}");
    let shards = ["tokenizer", "shards", &at("text.txt"), "--tokenizer"];
    let to = ["--out", &at("shards")];
    assert_eq!(
        birdie(&[&shards[..], &[&at("t.model")], &to].concat()),
        Ok(0)
    );
    for (tokenizer, why) in [("bytes", "not bytes"), ("no.model", "No such file")] {
        let to = ["--out", &at("others")];
        let error = birdie(&[&shards[..], &[tokenizer], &to].concat()).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert!(!folder.path().join("others").exists());
    let settings = [
        format!("tokenizer_path={}", at("t.model")),
        format!("data_path={}", at("shards")),
        "vocab_size=400".into(),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
    assert_eq!(train(&folder.path().join("run"), &settings), Ok(0));
}

#[test]
fn an_artifact_of_another_recipe_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert_eq!(train(&run, &[]), Ok(0));
    let (artifact, _) = Artifact::load(&run.join("model.birdie")).unwrap();
    let recipe = artifact.parse_recipe().unwrap();
    let write = |name: &str, change: &dyn Fn(&mut Artifact)| {
        let mut artifact = artifact.clone();
        change(&mut artifact);
        let path = folder.path().join(name);
        std::fs::write(&path, artifact.encode(&recipe).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let same = write("same.birdie", &|_| {});
    assert_eq!(birdie(&["eval", &same]), Ok(0));
    let short = write("short.birdie", &|a| drop(a.tensors.pop()));
    let renamed = write("renamed.birdie", &|a| a.tensors[0].name = "other".into());
    for (path, part) in [(short, "is missing"), (renamed, "is missing")] {
        let error = birdie(&["eval", &path]).unwrap_err();
        assert!(
            error.contains(part) && error.contains("birdie pack"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}

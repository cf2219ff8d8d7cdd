//! The f64 reference against the parity cases: it must be a hundred times closer than bf16 has to be.

mod reference;

use std::path::{Path, PathBuf};

use birdie::parity::case::Case;
use birdie::parity::compare::{Tally, Tolerance};
use birdie::parity::judge::{self, Outcome, Tensors};
use reference::model::{Reference, case_weights};
use reference::optimizer::Trainer;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn run(case: &Case) -> Outcome {
    let (inputs, targets) = case.tokens(case.seed);
    Reference::new(&case.model, &case_weights(case), case.batch, case.seq_len)
        .run(&inputs, &targets)
}

fn check(path: &Path) {
    let case = Case::read(path).unwrap_or_else(|error| panic!("{error:#}"));
    let tally = judge::outcome(&case, &run(&case), Tolerance::divided_by(100.0));
    assert!(
        tally.rows.len() > 1000 && tally.passes(),
        "{}",
        tally.report(20)
    );
}

/// Distances of the parameters from their initial values.
fn deltas(now: &Tensors, initial: &Tensors) -> Tensors {
    let delta = |(name, values): (&String, &Vec<f64>)| {
        let pairs = values.iter().zip(&initial[name]);
        (name.clone(), pairs.map(|(a, b)| a - b).collect())
    };
    now.iter().map(delta).collect()
}

/// All steps of a case under the reference optimizer, then the moving average.
fn train(case: &Case) -> Vec<Tally> {
    let settings = case.optimizer.as_ref().expect("the case has an optimizer");
    let initial = case_weights(case);
    let mut trainer = Trainer::new(case, settings, initial.clone());
    let mut tallies = Vec::new();
    for expected in &case.steps {
        let (inputs, targets) = case.tokens(expected.token_seed);
        let outcome = Reference::new(&case.model, &trainer.params, case.batch, case.seq_len)
            .with_bf16_tables(settings.bf16_tables())
            .run(&inputs, &targets);
        let norm = trainer.step(outcome.grads);
        let moved = deltas(&trainer.params, &initial);
        tallies.push(judge::step(
            case,
            expected,
            (outcome.loss, norm),
            &moved,
            Tolerance::BF16,
        ));
    }
    tallies.push(judge::ema(
        case,
        &deltas(&trainer.ema, &initial),
        Tolerance::BF16,
    ));
    tallies
}

fn check_steps(path: &Path) {
    let case = Case::read(path).unwrap_or_else(|error| panic!("{error:#}"));
    let tallies = train(&case);
    assert!(tallies.len() > 1);
    for tally in tallies {
        assert!(
            tally.rows.len() > 500 && tally.passes(),
            "{}",
            tally.report(20)
        );
    }
}

macro_rules! cases {
    ($check:ident; $($name:ident: $file:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                $check(&fixtures().join($file));
            }
        )*
    };
}

cases! {
    check;
    case_a_657: "657_A.json",
    case_a_1573: "1573_A.json",
    case_a_518: "518_A.json",
    case_a_1072: "1072_A.json",
    case_a_1473: "1473_A.json",
    long_sequence_with_scaled_rotary_1573: "1573_B.json",
    fake_quantized_everywhere_657: "657_QAT.json",
    fake_quantized_projections_1072: "1072_QAT.json",
    no_bigram_projection_657: "657_N.json",
    wide_mlp_and_first_layer_replayed_1573: "1573_F.json",
}

cases! {
    check_steps;
    optimizer_steps_657: "657_E.json",
    optimizer_steps_with_bf16_tables_657: "657_Ebf16.json",
    optimizer_steps_1573: "1573_E.json",
    optimizer_steps_518: "518_E.json",
    optimizer_steps_1072: "1072_E.json",
    optimizer_steps_with_bf16_tables_1072: "1072_Ebf16.json",
    optimizer_steps_1473: "1473_E.json",
}

/// All model cases of the folder named by `BIRDIE_PARITY_CASES`, for cases that are not in the repository.
#[test]
#[ignore = "needs a folder of cases in BIRDIE_PARITY_CASES"]
fn cases_of_a_folder() {
    let folder = std::env::var("BIRDIE_PARITY_CASES").expect("BIRDIE_PARITY_CASES names a folder");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("all_"))
        })
        .collect();
    files.sort();
    let mut count = 0;
    for path in files {
        let case = Case::read(&path).unwrap_or_else(|error| panic!("{error:#}"));
        let tallies = if case.grads.is_empty() {
            train(&case)
        } else {
            vec![judge::outcome(
                &case,
                &run(&case),
                Tolerance::divided_by(100.0),
            )]
        };
        for tally in tallies {
            print!("{}", tally.report(2));
            assert!(tally.passes(), "{}", tally.report(20));
            count += 1;
        }
    }
    assert!(count > 0, "the folder holds no model case");
}

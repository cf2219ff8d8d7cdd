//! The model on the device (the emulator, or a GPU with `BIRDIE_TEST_DEVICE=cuda`).

#[path = "common/tiny.rs"]
mod common;

use std::path::Path;

use birdie::failure::{Exit, Failure};
use birdie::model::engine::DeviceEngine;
use birdie::parity::case::Case;
use birdie::parity::run;
use birdie::quantize::clip_search::search;
use birdie::quantize::{Hessians, quantize};
use birdie::recipe::{Quantizer, Recipe, StorageType};
use birdie::train::engine::{
    Engine, Logits, NamedTensor, Rates, StateTensor, StepInputs, StepOutput, Weights,
};

use common::{engine, open};

fn fixture(name: &str) -> Case {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    Case::read(&path).unwrap_or_else(|error| panic!("{error:#}"))
}

fn agrees(name: &str) {
    open();
    let tallies = run::run_case(&fixture(name)).unwrap_or_else(|error| panic!("{error:#}"));
    for tally in tallies {
        assert!(
            tally.rows.len() > 500 && tally.passes(),
            "{}",
            tally.report(20)
        );
    }
}

/// Every activation and every gradient, in two models that have every technique between them.
#[test]
fn gated_value_residual_with_fake_quantization_is_the_published_one() {
    agrees("657_QAT.json");
}

#[test]
fn recycled_layers_and_attention_gates_are_the_published_ones() {
    agrees("1573_F.json");
}

/// Clip, Muon, AdamW and the moving average over four steps.
#[test]
fn optimizer_steps_are_the_published_ones() {
    agrees("657_Ebf16.json");
}

/// The search runs where the engine computes; the artifact must not depend on where that is.
#[test]
fn the_device_quantizes_to_the_bits_of_the_host() {
    let recipe = Recipe {
        quantizer: Quantizer::ClipSearch,
        passthrough_numel: 1000,
        ..tiny()
    };
    let mut engine = engine(&recipe);
    let mut weights = engine.export(Weights::Live).unwrap();
    for tensor in &mut weights {
        tensor.values.iter_mut().for_each(|w| *w *= 30.0);
    }
    let none = Hessians::new();
    let mut searched = 0;
    let device = quantize(&recipe, &weights, &none, &mut |weights, cols, bits| {
        searched += 1;
        engine.clip_search(weights, cols, bits)
    });
    let host = quantize(&recipe, &weights, &none, &mut |weights, cols, bits| {
        Ok(search(weights, cols, bits))
    });
    assert_eq!(device.unwrap(), host.unwrap());
    assert!(searched >= 12, "{searched} matrices");

    let mut bad = vec![0.25; 256];
    bad[200] = f32::NAN;
    let error = engine.clip_search(&bad, 16, 6).unwrap_err();
    let failure = error.downcast_ref::<Failure>().expect("a message");
    assert_eq!(failure.exit, Exit::NonFinite);
    assert!(engine.clip_search(&vec![0.0; 1 << 20], 16, 6).is_err());
}

fn tiny() -> Recipe {
    Recipe {
        train_batch_tokens: 96,
        grad_accum_steps: 2,
        muon_momentum_dtype: StorageType::Bf16,
        ..common::tiny()
    }
}

/// Ids that follow a simple law, so that a few steps learn something.
fn ids(count: usize, start: usize) -> (Vec<u16>, Vec<u16>) {
    let id = |i: usize| ((i * i + 3 * i) % 23) as u16;
    (
        (start..start + count).map(id).collect(),
        (start + 1..start + count + 1).map(id).collect(),
    )
}

fn step(engine: &mut DeviceEngine, index: usize) -> StepOutput {
    step_ahead(engine, index, None)
}

fn step_ahead(engine: &mut DeviceEngine, index: usize, ahead: Option<[&[u16]; 2]>) -> StepOutput {
    let (tokens, targets) = ids(96, 96 * index);
    engine
        .step(&StepInputs {
            tokens: &tokens,
            targets: &targets,
            ahead,
            micro_steps: 2,
            rates: Rates {
                matrix_lr: 0.02,
                embedding_lr: 0.03,
                scalar_lr: 0.02,
                muon_momentum: 0.9 + 0.01 * index as f32,
                grad_clip_norm: 0.3,
            },
            fake_quantize: false,
            update_ema: true,
        })
        .unwrap()
}

fn state_after(engine: &mut DeviceEngine, steps: std::ops::Range<usize>) -> Vec<StateTensor> {
    for index in steps {
        step(engine, index);
    }
    engine.save_state().unwrap()
}

/// Two engines, the same steps: one replays a captured graph, the other launches kernel by kernel.
#[test]
fn a_replayed_graph_and_eager_launches_leave_the_same_bits() {
    let recipe = tiny();
    let mut replayed = engine(&recipe);
    let mut eager = engine(&recipe).eager();
    assert_eq!(
        state_after(&mut replayed, 0..2),
        state_after(&mut eager, 0..2)
    );
    assert_eq!((replayed.captured(), eager.captured()), (Some(1), None));
}

/// Tokens that travelled during the step before, tokens that did not, and an announcement that was not kept.
#[test]
fn what_is_announced_changes_no_bit() {
    let recipe = tiny();
    let mut plain = engine(&recipe);
    let expected = state_after(&mut plain, 0..3);
    let mut announced = engine(&recipe);
    // Step 1 is what step 0 announces; step 2 is not what step 1 announces.
    for (index, next) in [(0, 1), (1, 5), (2, 3)] {
        let (tokens, targets) = ids(96, 96 * next);
        step_ahead(&mut announced, index, Some([&tokens, &targets]));
    }
    assert_eq!(announced.save_state().unwrap(), expected);
    // Scoring in between takes the slots over.
    let (tokens, targets) = ids(480, 0);
    let scores = announced.score(&tokens, &targets, 24, Logits::F32).unwrap();
    assert_eq!(
        scores,
        plain.score(&tokens, &targets, 24, Logits::F32).unwrap()
    );
    assert_eq!(step(&mut announced, 3), step(&mut plain, 3));
    let (mut wrong, targets) = ids(96, 0);
    wrong[7] = 64;
    let error = announced.score(&wrong, &targets, 24, Logits::F32);
    assert!(error.unwrap_err().to_string().contains("token 64"));
}

#[test]
fn a_resumed_run_leaves_the_same_bits() {
    let recipe = tiny();
    let mut whole = engine(&recipe);
    let middle = state_after(&mut whole, 0..1);
    let end = state_after(&mut whole, 1..2);
    assert_ne!(middle, end);
    let mut resumed = engine(&recipe);
    step(&mut resumed, 7);
    resumed.load_state(&middle).unwrap();
    assert_eq!(state_after(&mut resumed, 1..2), end);

    let mut foreign = middle.clone();
    foreign[1].bytes.pop();
    assert!(resumed.load_state(&foreign).is_err());
    assert!(resumed.load_state(&middle[1..]).is_err());
    // A refused state changes nothing.
    assert_eq!(resumed.save_state().unwrap(), end);
}

#[test]
fn training_lowers_the_loss_and_scoring_changes_nothing() {
    let recipe = tiny();
    let mut engine = engine(&recipe);
    let (tokens, targets) = ids(48, 0);
    let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
    let before = engine.score(&tokens, &targets, 24, Logits::F32).unwrap();
    assert!(
        (mean(&before) - 64f32.ln()).abs() < 0.1,
        "{}",
        mean(&before)
    );
    for index in 0..8 {
        let output = step(&mut engine, index);
        assert!(output.loss.is_finite() && output.grad_norm > 0.0);
    }
    let state = engine.save_state().unwrap();
    let after = engine.score(&tokens, &targets, 24, Logits::F32).unwrap();
    assert!(mean(&after) < mean(&before) - 0.2, "{}", mean(&after));
    // A sequence is scored by itself, whatever is scored with it; shorter ones see the same past.
    let second = engine
        .score(&tokens[24..], &targets[24..], 24, Logits::F32)
        .unwrap();
    assert_eq!(second, after[24..]);
    let short = engine
        .score(&tokens[..17], &targets[..17], 17, Logits::F32)
        .unwrap();
    for (a, b) in short.iter().zip(&after) {
        assert!((a - b).abs() < 0.02, "{a} {b}");
    }
    assert_eq!(engine.save_state().unwrap(), state);
    assert_eq!(engine.find_non_finite().unwrap(), None);
}

#[test]
fn parameters_travel_by_name() {
    let recipe = tiny();
    let mut engine = engine(&recipe);
    let initial = engine.export(Weights::Live).unwrap();
    assert_eq!(engine.export(Weights::Ema).unwrap(), initial);
    let changed = NamedTensor {
        values: vec![0.25; 128],
        ..find(&initial, "smear.gate").clone()
    };
    engine.import(std::slice::from_ref(&changed)).unwrap();
    let now = engine.export(Weights::Live).unwrap();
    assert_eq!(*find(&now, "smear.gate"), changed);
    assert_eq!(
        find(&now, "tok_emb.weight"),
        find(&initial, "tok_emb.weight")
    );

    let unknown = NamedTensor {
        name: "blocks.9.attn_scale".into(),
        ..changed.clone()
    };
    assert!(engine.import(&[unknown]).is_err());
    let misshapen = NamedTensor {
        shape: vec![2, 64],
        ..changed.clone()
    };
    assert!(engine.import(&[misshapen]).is_err());

    let broken = NamedTensor {
        values: vec![f32::NAN; 128],
        ..changed
    };
    engine.import(&[broken]).unwrap();
    let found = engine.find_non_finite().unwrap();
    assert_eq!(found.as_deref(), Some("parameter smear.gate"));
}

fn find<'a>(tensors: &'a [NamedTensor], name: &str) -> &'a NamedTensor {
    tensors
        .iter()
        .find(|tensor| tensor.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

//! The reference checked against itself and against vectors that other programs computed.

mod reference;

use std::path::Path;

use birdie::parity::case::{Case, Summary, Weight};
use birdie::parity::compare::{Tally, Tolerance};
use birdie::parity::judge::Tensors;
use birdie::parity::rule::{Uniform, positions};
use reference::layers::bigram_buckets;
use reference::model::{Reference, case_weights};
use reference::optimizer::{Schulz, muon_momentum, newton_schulz};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    std::fs::read_to_string(path).expect("the fixture is part of the repository")
}

/// Every parameter's gradient, along a random sign vector, against the central difference of the loss.
fn gradients_are_differences(name: &str) {
    let case = Case::parse(&fixture(name)).expect("a model case");
    let weights = case_weights(&case);
    // Few tokens keep it quick; two sequences, so that their borders matter.
    let (batch, seq_len) = (2, 9);
    let (inputs, targets) =
        birdie::parity::rule::tokens(case.seed, batch, seq_len, case.model.vocab_size);
    let run = |weights: &Tensors| {
        Reference::new(&case.model, weights, batch, seq_len).run(&inputs, &targets)
    };
    let grads = run(&weights).grads;
    let step = 1e-5;
    for (name, values) in &weights {
        let signs = Uniform::new(case.seed, &format!("sign0:{name}"));
        let sign = |i: usize| if signs.at(i as u64) < 0.5 { 1.0 } else { -1.0 };
        let loss_at = |distance: f64| {
            let mut moved = weights.clone();
            let tensor = moved.get_mut(name).expect("a copy has the same names");
            tensor
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x += distance * sign(i));
            run(&moved).loss
        };
        let difference = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        let Some(grad) = grads.get(name) else {
            assert_eq!(difference, 0.0, "{name} has no gradient but moves the loss");
            continue;
        };
        assert_eq!(grad.len(), values.len(), "{name}");
        let along: f64 = grad.iter().enumerate().map(|(i, g)| g * sign(i)).sum();
        let size = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        let bound = 1e-5 * size + 1e-8;
        assert!(
            (along - difference).abs() <= bound,
            "{name}: gradient {along:.9e}, difference {difference:.9e}, bound {bound:.1e}"
        );
    }
}

#[test]
fn gradients_are_differences_with_gated_value_residual() {
    gradients_are_differences("657_A.json");
}

#[test]
fn gradients_are_differences_with_recycled_layers_and_attention_gates() {
    gradients_are_differences("1573_F.json");
}

#[derive(serde::Deserialize)]
struct SchulzCases {
    seed: u64,
    weights: Vec<Weight>,
    results: Vec<SchulzResult>,
}

#[derive(serde::Deserialize)]
struct SchulzResult {
    float64: Summary,
    bf16_657_518: Summary,
    bf16_banked: Summary,
    noise_657_518: f64,
    noise_banked: f64,
}

#[test]
fn newton_schulz_is_the_published_one() {
    let cases: SchulzCases =
        serde_json::from_str(&fixture("all_M.json")).expect("the Newton-Schulz cases");
    assert_eq!(cases.weights.len(), cases.results.len());
    for (weight, result) in cases.weights.iter().zip(cases.results) {
        let g: Vec<f64> = weight
            .values(cases.seed)
            .into_iter()
            .map(f64::from)
            .collect();
        let (rows, cols) = (weight.shape[0], weight.shape[1]);
        let mut tally = Tally::model(format!("{} exact", weight.name));
        let exact = newton_schulz(&g, rows, cols, Schulz::Exact);
        tally.tensor(
            cases.seed,
            &result.float64,
            &exact,
            Tolerance::divided_by(1000.0),
        );
        assert!(tally.misses() == 0, "{}", tally.report(10));
        let forms = [
            (Schulz::Matrix, result.bf16_657_518, result.noise_657_518),
            (Schulz::Bank, result.bf16_banked, result.noise_banked),
        ];
        for (form, mut expected, noise) in forms {
            expected.noise = noise;
            let mut tally = Tally::model(format!("{} {form:?}", weight.name));
            let rounded = newton_schulz(&g, rows, cols, form);
            tally.tensor(cases.seed, &expected, &rounded, Tolerance::BF16);
            assert!(tally.misses() == 0, "{}", tally.report(10));
        }
    }
}

#[test]
fn momentum_warms_up_over_1500_steps() {
    assert_eq!(muon_momentum(0), 0.92);
    assert!((muon_momentum(1) - 0.920046667).abs() < 1e-9);
    assert!(
        (muon_momentum(1500) - 0.99).abs() < 1e-12 && (muon_momentum(9000) - 0.99).abs() < 1e-12
    );
}

/// (current, previous) → bucket, for three table sizes, as the published modules compute them.
#[test]
fn bigram_buckets_are_the_published_ones() {
    let pairs = [
        (0, 0),
        (1, 0),
        (0, 1),
        (5, 7),
        (1023, 1023),
        (17, 1000),
        (512, 3),
    ];
    let expected = [
        (2048, [0, 1514, 580, 704, 977, 169, 2042]),
        (3072, [0, 2532, 2623, 2750, 301, 938, 2098]),
        (4096, [0, 3553, 2621, 702, 476, 1835, 3662]),
    ];
    for (buckets, expected) in expected {
        for ((current, previous), bucket) in pairs.into_iter().zip(expected) {
            assert_eq!(
                bigram_buckets(&[previous, current], 2, buckets),
                [buckets - 1, bucket]
            );
        }
    }
}

#[test]
fn the_rotary_base_scales_beyond_the_built_in_length() {
    let model = Case::parse(&fixture("657_A.json"))
        .expect("a model case")
        .model;
    assert_eq!(model.rope_base_at(1024), 10000.0);
    assert!((model.rope_base_at(2047) - 22069.468276).abs() < 1e-6);
    assert!((model.rope_base_at(2048) - 22081.790273).abs() < 1e-6);
    let fixed = Case::parse(&fixture("1072_A.json"))
        .expect("a model case")
        .model;
    assert_eq!(fixed.rope_base_at(2048), 10000.0);
}

/// A comparison that cannot see a mistake is worth nothing: one layer's rotation left out must be noticed.
#[test]
fn a_wrong_model_is_noticed() {
    let mut case = Case::parse(&fixture("657_A.json")).expect("a model case");
    case.model.rope_dims = 8;
    let (inputs, targets) = case.tokens(case.seed);
    let outcome = Reference::new(&case.model, &case_weights(&case), case.batch, case.seq_len)
        .run(&inputs, &targets);
    let tally = birdie::parity::judge::outcome(&case, &outcome, Tolerance::BF16);
    assert!(!tally.passes(), "{}", tally.report(3));
    assert_eq!(positions(case.seed, "x", 1, 2), [0, 0]);
}

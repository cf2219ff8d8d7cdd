//! Calibration, self-written text, test-time training and int5 fake quantization on the device (the emulator, or a GPU with
//! `BIRDIE_TEST_DEVICE=cuda`).

#[path = "common/tiny.rs"]
mod common;
#[path = "common/philox.rs"]
mod philox;

use std::collections::BTreeMap;

use birdie::model::engine::DeviceEngine;
use birdie::recipe::{LateQat, ProjectionOptimizer, Quantizer, Recipe, StorageType, TttOrder};
use birdie::train::engine::{
    AdaptInputs, AdaptRule, Element, Engine, Logits, NamedTensor, Rates, StateTensor, StepInputs,
    Weights,
};
use common::engine;
use philox::philox;

fn tiny() -> Recipe {
    Recipe {
        rope_train_seq_len: 16,
        quantizer: Quantizer::Gptq,
        calibration_sequences: 3,
        ttt_enabled: true,
        ttt_order: TttOrder::TrainFirst,
        ttt_batch_seqs: 3,
        ..common::tiny()
    }
}

/// A number in -0.5 .. 0.5 by name and index.
fn noise(name: &str, i: usize) -> f32 {
    let mut h = name.bytes().fold(i as u64 + 1, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    h ^= h >> 29;
    h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (h >> 40) as f32 / (1 << 24) as f32 - 0.5
}

/// The matrices of the blocks and the token embedding, random: a fresh model's output projections are zero.
fn randomize(engine: &mut DeviceEngine) {
    let mut tensors = engine.export(Weights::Live).unwrap();
    tensors.retain(|t| {
        t.shape.len() == 2 && (t.name.contains("blocks.") || t.name == "tok_emb.weight")
    });
    tensors.retain(|t| !t.name.contains("resid_mix"));
    for tensor in &mut tensors {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = 0.3 * noise(&tensor.name, i);
        }
    }
    engine.import(&tensors).unwrap();
}

fn ids(count: usize, start: usize) -> (Vec<u16>, Vec<u16>) {
    let id = |i: usize| ((i * i + 3 * i) % 61) as u16;
    (
        (start..start + count).map(id).collect(),
        (start + 1..start + count + 1).map(id).collect(),
    )
}

fn weights(engine: &mut DeviceEngine) -> BTreeMap<String, NamedTensor> {
    let all = engine.export(Weights::Live).unwrap();
    all.into_iter().map(|t| (t.name.clone(), t)).collect()
}

/// What an output projection makes of its inputs x is known: the sum of squares of output r over the tokens is w_r H w_rᵀ.
#[test]
fn hessians_explain_the_squares_of_the_outputs() {
    let mut engine = self::engine(&tiny());
    randomize(&mut engine);
    let (tokens, targets) = ids(48, 5);
    let seen = engine
        .inspect(&tokens, &targets, false)
        .unwrap()
        .activations;
    let hessians = engine.hessians(&tokens, 24).unwrap();
    assert_eq!(hessians.len(), 12);
    let weights = weights(&mut engine);
    for (parameter, passes) in [
        (
            "blocks.0.attn.proj.weight",
            vec!["act.layer.0.attn", "act.replay.0.layer.0.attn"],
        ),
        (
            "blocks.0.mlp.proj.weight",
            vec!["act.layer.0.mlp", "act.replay.0.layer.0.mlp"],
        ),
        ("blocks.1.attn.proj.weight", vec!["act.layer.1.attn"]),
        ("blocks.1.mlp.proj.weight", vec!["act.layer.1.mlp"]),
    ] {
        let (h, w) = (&hessians[parameter], &weights[parameter]);
        let side = w.shape[1];
        assert_eq!(h.len(), side * side);
        let mut compared = 0;
        for (r, row) in w.values.chunks_exact(side).enumerate() {
            let row: Vec<f64> = row
                .iter()
                .map(|&w| f64::from(half::bf16::from_f32(w)))
                .collect();
            let predicted: f64 = (0..side * side)
                .map(|i| row[i / side] * f64::from(h[i]) * row[i % side])
                .sum();
            let outputs = passes.iter().flat_map(|pass| seen[*pass].chunks_exact(128));
            let squares: f64 = outputs.map(|token| f64::from(token[r]).powi(2)).sum();
            assert!(
                (predicted - squares).abs() <= 0.01 * squares + 1e-6,
                "{parameter} row {r}: {predicted} {squares}"
            );
            compared += usize::from(squares > 1e-4);
        }
        assert!(compared > 100, "{parameter}: {compared} rows say something");
    }
    // Normalised inputs: the mean square of each of 128 columns is 1, times the layer's factor squared.
    for (layer, passes, factor) in [(0, 2.0, 1.0), (1, 1.0, 0.5)] {
        for name in ["attn.c_q.weight", "mlp.fc.weight"] {
            let h = &hessians[&format!("blocks.{layer}.{name}")];
            let trace: f64 = (0..128).map(|i| f64::from(h[129 * i])).sum();
            let expected = 48.0 * 128.0 * passes * factor;
            assert!(
                (trace / expected - 1.0).abs() < 0.01,
                "{name}: {trace} {expected}"
            );
        }
        let [q, k, v] = ["c_q", "c_k", "c_v"]
            .map(|name| &hessians[&format!("blocks.{layer}.attn.{name}.weight")]);
        assert!(q == k && k == v);
    }
}

/// More sequences than one forward takes are read in turn: the sums are the same but for the order of additions.
#[test]
fn hessians_of_parts_add_up() {
    let mut engine = self::engine(&tiny());
    randomize(&mut engine);
    let (tokens, _) = ids(24 * 7, 0);
    let whole = engine.hessians(&tokens, 24).unwrap();
    let mut sum: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for part in tokens.chunks(24 * 2) {
        for (name, values) in engine.hessians(part, 24).unwrap() {
            let entry = sum.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            entry.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
        }
    }
    for (name, values) in whole {
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in values.iter().zip(&sum[&name]) {
            assert!((a - b).abs() <= 1e-5 * largest, "{name}: {a} {b}");
        }
    }
    let plain = Recipe {
        quantizer: Quantizer::ClipSearch,
        ..tiny()
    };
    let mut plain = self::engine(&plain);
    assert!(!plain.calibrates());
    assert!(plain.hessians(&tokens, 24).is_err());
    assert!(plain.generate(1, 4, 1.0, 1).is_err());
}

/// Every written token is the argmax of the scored log-probability, over the temperature, plus the generator's noise; the text crosses the
/// length at which the rotary base starts to move, and does not depend on how sequences are batched.
#[test]
fn written_text_is_sampled_from_the_scored_distribution() {
    let recipe = tiny();
    let mut engine = self::engine(&recipe);
    randomize(&mut engine);
    let (length, temperature, seed) = (20, 0.8f32, 99);
    let state = engine.save_state().unwrap();
    let text = engine.generate(4, length, temperature, seed).unwrap();
    assert_eq!(text.len(), 4 * length);
    assert!(text.iter().all(|&id| id < 64));
    assert_eq!(engine.save_state().unwrap(), state);
    let one = engine.generate(1, length, temperature, seed).unwrap();
    assert_eq!(one, text[..length], "three at a time, or one");
    assert_ne!(text[..length], text[length..2 * length]);

    let row = &text[3 * length..];
    for position in [0, 1, 7, 15, 16, 19] {
        let log_probabilities: Vec<f64> = match position {
            0 => vec![0.0; 64],
            _ => {
                let prefix = &row[..position];
                let (mut tokens, mut targets) = (Vec::new(), Vec::new());
                for candidate in 0..64 {
                    tokens.extend_from_slice(prefix);
                    targets.extend_from_slice(&prefix[1..]);
                    targets.push(candidate);
                }
                let losses = engine
                    .score(&tokens, &targets, position, Logits::F32)
                    .unwrap();
                let last = losses.chunks_exact(position).map(|row| row[position - 1]);
                last.map(|loss| f64::from(-loss / temperature)).collect()
            }
        };
        let noisy: Vec<f64> = (0..64usize)
            .map(|j| {
                let counter = [j as u32 / 4, 3, position as u32, 0];
                let bits = philox(counter, [seed as u32, 0])[j % 4];
                let u = (f64::from(bits >> 9) + 0.5) / 8_388_608.0;
                log_probabilities[j] - (-u.ln()).ln()
            })
            .collect();
        let best = noisy.iter().copied().fold(f64::MIN, f64::max);
        let token = usize::from(row[position]);
        // Logits are rounded to bf16 twice on the way: at this size, to 2^-6.
        assert!(
            noisy[token] > best - 0.06,
            "position {position}: {} {best}",
            noisy[token]
        );
    }
}

fn adapt(
    engine: &mut DeviceEngine,
    update: u32,
    sequences: usize,
    rule: AdaptRule,
    lr: f32,
) -> f32 {
    let (tokens, targets) = ids(24 * sequences, 0);
    let output = engine
        .adapt(&AdaptInputs {
            tokens: &tokens,
            targets: &targets,
            seq_len: 24,
            update,
            rule,
            learning_rate: lr,
            mlp_proj_factor: 3.0,
            mlp_fc_factor: 0.0,
            grad_clip_norm: 1.0,
            fake_quantize: false,
        })
        .unwrap();
    assert!(output.grad_norm > 0.0);
    output.loss
}

const ADAMW: AdaptRule = AdaptRule::Adamw {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

#[test]
fn test_time_training_lowers_the_loss_and_leaves_the_training_state() {
    for embedding_dtype in [StorageType::Bf16, StorageType::F32] {
        let recipe = Recipe {
            embedding_dtype,
            ..tiny()
        };
        let mut engine = self::engine(&recipe);
        randomize(&mut engine);
        let initial = engine.export(Weights::Live).unwrap();
        let kept = |state: Vec<StateTensor>| -> Vec<StateTensor> {
            state
                .into_iter()
                .filter(|t| !t.name.starts_with("param/"))
                .collect()
        };
        let state = engine.save_state().unwrap();
        let before = weights(&mut engine);
        let first = adapt(&mut engine, 1, 3, ADAMW, 0.002);
        let after = weights(&mut engine);
        // The first step of AdamW moves every element with a gradient by its learning rate.
        let moved = |name: &str| {
            let pairs = before[name].values.iter().zip(&after[name].values);
            pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()))
        };
        assert!((moved("blocks.1.mlp.proj.weight") / 0.006 - 1.0).abs() < 0.01);
        assert!((moved("blocks.0.attn.c_q.weight") / 0.002 - 1.0).abs() < 0.01);
        assert!((moved("skip_weights") / 0.002 - 1.0).abs() < 0.01);
        assert_eq!(moved("blocks.0.mlp.fc.weight"), 0.0);
        assert!(moved("tok_emb.weight") > 0.001);
        let mut last = first;
        // A smaller batch in between, as at the end of an epoch.
        for (update, sequences) in [(2, 3), (3, 1), (4, 3), (5, 3)] {
            last = adapt(&mut engine, update, sequences, ADAMW, 0.002);
        }
        assert!(last < first - 0.1, "{first} {last}");
        assert_eq!(kept(engine.save_state().unwrap()), kept(state.clone()));
        engine.import(&initial).unwrap();
        assert_eq!(engine.save_state().unwrap(), state, "the weights are back");

        // The optimizer's state starts anew, with either rule.
        assert_eq!(adapt(&mut engine, 1, 3, ADAMW, 0.002), first);
        assert_eq!(weights(&mut engine), after);
        engine.import(&initial).unwrap();
        let sgd = AdaptRule::Sgd { momentum: 0.9 };
        let start = adapt(&mut engine, 1, 3, sgd, 0.1);
        adapt(&mut engine, 2, 3, sgd, 0.1);
        assert!(adapt(&mut engine, 3, 3, sgd, 0.1) < start);
        assert_eq!(start, first);
    }
}

#[test]
fn what_was_not_planned_is_refused() {
    let mut small = engine(&tiny());
    let (tokens, targets) = ids(24 * 4, 0);
    let inputs = AdaptInputs {
        tokens: &tokens,
        targets: &targets,
        seq_len: 24,
        update: 1,
        rule: ADAMW,
        learning_rate: 0.1,
        mlp_proj_factor: 1.0,
        mlp_fc_factor: 1.0,
        grad_clip_norm: 1.0,
        fake_quantize: false,
    };
    assert!(
        small.adapt(&inputs).is_err(),
        "four sequences, planned for three"
    );
    let recipe = Recipe {
        ttt_enabled: false,
        ..tiny()
    };
    assert!(engine(&recipe).adapt(&inputs).is_err());
}

/// Sums of snapshots are made on the device, tables in bf16, and are part of the saved state.
#[test]
fn snapshots_are_summed_in_the_parameters_type() {
    let mut engine = self::engine(&tiny());
    let mut expected: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for round in 0..3 {
        let mut tensors = engine.export(Weights::Live).unwrap();
        for tensor in &mut tensors {
            let stored = tensor.stored;
            for (i, value) in tensor.values.iter_mut().enumerate() {
                *value = 3.0 * noise(&tensor.name, 7 * i + round);
                if stored == Element::Bf16 {
                    *value = half::bf16::from_f32(*value).to_f32();
                }
            }
            let sum = expected
                .entry(tensor.name.clone())
                .or_insert_with(|| vec![0.0; tensor.values.len()]);
            for (sum, value) in sum.iter_mut().zip(&tensor.values) {
                *sum += value;
                if stored == Element::Bf16 {
                    *sum = half::bf16::from_f32(*sum).to_f32();
                }
            }
        }
        engine.import(&tensors).unwrap();
        engine.collect_snapshot(round == 0).unwrap();
    }
    for tensor in engine.export(Weights::SnapshotSum).unwrap() {
        assert_eq!(tensor.values, expected[&tensor.name], "{}", tensor.name);
    }
    let state = engine.save_state().unwrap();
    let mut other = self::engine(&tiny());
    other.load_state(&state).unwrap();
    assert_eq!(other.save_state().unwrap(), state);
    engine.collect_snapshot(true).unwrap();
    assert_eq!(
        engine.export(Weights::SnapshotSum).unwrap(),
        engine.export(Weights::Live).unwrap()
    );
    let recipe = Recipe {
        swa_enabled: false,
        ..tiny()
    };
    assert!(self::engine(&recipe).collect_snapshot(true).is_err());
}

/// The engine of a tiny model with tables of these widths. Columns beyond `columns` are zero, the others do not depend on the widths.
fn of_widths(widths: [usize; 2], columns: [usize; 2], by: ProjectionOptimizer) -> DeviceEngine {
    let recipe = Recipe {
        bigram_dim: widths[0],
        ve_dim: widths[1],
        mlp_hidden: 104,
        projection_optimizer: by,
        ttt_enabled: false,
        ..tiny()
    };
    let mut engine = engine(&recipe);
    randomize(&mut engine);
    let mut tensors = engine.export(Weights::Live).unwrap();
    tensors.retain(|t| t.name.ends_with("embed.weight") || t.name.ends_with("proj.weight"));
    tensors.retain(|t| !t.name.starts_with("blocks."));
    assert_eq!(tensors.len(), 4);
    for tensor in &mut tensors {
        let of_bigram = tensor.name.starts_with("bigram");
        let [width, kept] = [widths, columns].map(|list| list[usize::from(!of_bigram)]);
        assert_eq!(tensor.shape[1], width);
        for (i, value) in tensor.values.iter_mut().enumerate() {
            let (row, column) = (i / width, i % width);
            *value = match column < kept {
                true => 0.5 * noise(&tensor.name, 1000 * row + column),
                false => 0.0,
            };
        }
    }
    engine.import(&tensors).unwrap();
    engine
}

fn step(engine: &mut DeviceEngine, fake_quantize: bool) -> f32 {
    let (tokens, targets) = ids(48, 11);
    let output = engine.step(&StepInputs {
        tokens: &tokens,
        targets: &targets,
        ahead: None,
        micro_steps: 1,
        rates: Rates {
            matrix_lr: 0.02,
            embedding_lr: 0.03,
            scalar_lr: 0.02,
            muon_momentum: 0.9,
            grad_clip_norm: 0.3,
        },
        fake_quantize,
        update_ema: true,
    });
    output.unwrap().loss
}

/// Tables of any width: rows are stored with zeros at their end, which nothing that leaves the device has. A model whose rows end in
/// columns of zeros anyway is the same model, to the bit, through optimizer, average, snapshots and export.
#[test]
fn zeros_at_the_end_of_rows_leave_no_trace() {
    let columns = [13, 27];
    let adamw = ProjectionOptimizer::Adamw;
    let mut odd = of_widths(columns, columns, adamw);
    let mut even = of_widths([16, 32], columns, adamw);
    for _ in 0..3 {
        assert_eq!(step(&mut odd, false), step(&mut even, false));
    }
    odd.collect_snapshot(true).unwrap();
    even.collect_snapshot(true).unwrap();
    let cut = |tensor: &NamedTensor, width: usize| -> Vec<f32> {
        let rows = tensor.values.chunks_exact(tensor.shape[1]);
        rows.flat_map(|row| row[..width].to_vec()).collect()
    };
    for which in [Weights::Live, Weights::Ema, Weights::SnapshotSum] {
        let mut narrower = 0;
        for (odd, even) in odd
            .export(which)
            .unwrap()
            .iter()
            .zip(even.export(which).unwrap())
        {
            assert_eq!(odd.name, even.name);
            assert_eq!(odd.values.len(), odd.shape.iter().product::<usize>());
            if odd.shape == even.shape {
                assert_eq!(odd.values, even.values, "{}", odd.name);
            } else {
                narrower += 1;
                assert_eq!(odd.values, cut(&even, odd.shape[1]), "{}", odd.name);
            }
        }
        assert_eq!(narrower, 4);
    }
    // What was exported is the model: another one that takes it over scores the same.
    let (tokens, targets) = ids(48, 2);
    let live = odd.export(Weights::Live).unwrap();
    let mut other = of_widths(columns, columns, adamw);
    other.import(&live).unwrap();
    assert_eq!(
        other.score(&tokens, &targets, 24, Logits::F32).unwrap(),
        odd.score(&tokens, &targets, 24, Logits::F32).unwrap()
    );
    let state = odd.save_state().unwrap();
    other.load_state(&state).unwrap();
    assert_eq!(other.save_state().unwrap(), state);
}

/// Muon's step grows with sqrt(rows / columns) of the matrix itself, not of the rows as stored.
#[test]
fn muon_knows_the_width_without_zeros() {
    let columns = [13, 27];
    let moved = |widths| {
        let mut engine = of_widths(widths, columns, ProjectionOptimizer::Muon);
        let before = weights(&mut engine);
        step(&mut engine, false);
        let after = weights(&mut engine);
        ["bigram.proj.weight", "ve_shared.proj.weight"].map(|name| {
            let pairs = before[name].values.iter().zip(&after[name].values);
            // The decay, 0.02 times 0.04, is the same in both.
            let square = |(a, b): (&f32, &f32)| f64::from(b - a * (1.0 - 0.0008)).powi(2);
            pairs.map(square).sum::<f64>().sqrt()
        })
    };
    let (odd, even) = (moved(columns), moved([16, 32]));
    // 128 x 13 of [128, 16]; [64, 27] of [64, 32].
    for ((odd, even), ratio) in odd.iter().zip(even).zip([16.0 / 13.0, 32.0 / 27.0f64]) {
        let error = odd / even / ratio.sqrt() - 1.0;
        assert!(error.abs() < 1e-4, "{odd} {even}: {error}");
    }
}

/// Both kinds of logits of one forward are what each kind's own forward gives.
#[test]
fn scores_of_both_kinds_are_the_scores_of_each() {
    let mut engine = self::engine(&tiny());
    randomize(&mut engine);
    let (tokens, targets) = ids(24 * 7, 3);
    let [exact, rounded] = engine.score_both(&tokens, &targets, 24).unwrap();
    assert_ne!(exact, rounded);
    assert_eq!(
        exact,
        engine.score(&tokens, &targets, 24, Logits::F32).unwrap()
    );
    assert_eq!(
        rounded,
        engine.score(&tokens, &targets, 24, Logits::Bf16).unwrap()
    );
}

/// Fake quantization in the forward is the forward of weights that were fake-quantized on the host, for exactly the tensors that
/// become int5; int6, as published, takes the small projections along.
#[test]
fn fake_quantization_reaches_what_the_recipe_says() {
    for bits in [5, 6] {
        let recipe = Recipe {
            late_qat: LateQat::Ste,
            quant_bits: bits,
            ttt_enabled: false,
            quantizer: Quantizer::ClipSearch,
            ..tiny()
        };
        let mut quantizing = engine(&recipe);
        randomize(&mut quantizing);
        let (tokens, targets) = ids(48, 9);
        let faked = quantizing.inspect(&tokens, &targets, true).unwrap();
        let plain = quantizing.inspect(&tokens, &targets, false).unwrap();
        assert_ne!(faked.token_loss, plain.token_loss);

        let mut tensors = quantizing.export(Weights::Live).unwrap();
        for tensor in tensors.iter_mut().filter(|t| t.stored == Element::F32) {
            let block = tensor.name.contains(".mlp.")
                || tensor.name.contains(".attn.c_")
                || tensor.name.contains(".attn.proj");
            let small = tensor.name.ends_with("bigram.proj.weight")
                || tensor.name.ends_with("ve_shared.proj.weight");
            if block || (small && bits == 6) {
                let most = ((1 << (bits - 1)) - 1) as f32;
                for row in tensor.values.chunks_exact_mut(tensor.shape[1]) {
                    let largest = row.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let s = (largest / most).max(1.0 / most);
                    row.iter_mut()
                        .for_each(|x| *x = (*x / s).round_ties_even().clamp(-most - 1.0, most) * s);
                }
            }
        }
        quantizing.import(&tensors).unwrap();
        let host = quantizing.inspect(&tokens, &targets, false).unwrap();
        assert_eq!(host.token_loss, faked.token_loss, "int{bits}");
    }
}

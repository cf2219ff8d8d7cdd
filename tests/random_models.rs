//! Random models over the whole space that birdie serves, on the device against the f64 reference: loss, activations, every gradient.
//!
//! Each seed gives a parity case of the published format: sizes, switches and shapes at random, weights and tokens by the rule,
//! expected values from the reference. The noise that a tensor's comparison allows is estimated as the published cases do it, by
//! running the reference with random errors of bf16 size: here in the weights, that is in one operand of every product.
//!
//! `BIRDIE_RANDOM_MODELS=n` runs n seeds instead of a handful (up to 32 heads from the 20th on), `BIRDIE_RANDOM_MODELS_FROM=s` starts
//! at seed s, and `BIRDIE_RANDOM_MODELS_OUT=folder` also writes the cases, as files for `birdie parity`.

mod reference;

use birdie::driver::{self, DeviceChoice};
use birdie::model::config::{Before, Config};
use birdie::model::parameters::inventory;
use birdie::parity::case::{Case, elements};
use birdie::parity::judge::{Outcome, Tensors};
use birdie::parity::rule::{self, Uniform};
use birdie::parity::run::run_case;
use birdie::recipe::{LateQat, Recipe};
use reference::model::{Reference, case_weights};
use serde_json::{Value, json};

/// Random choices of one seed.
struct Choice {
    uniform: Uniform,
    drawn: u64,
}

impl Choice {
    fn new(seed: u64) -> Self {
        Self {
            uniform: Uniform::new(seed, "random model"),
            drawn: 0,
        }
    }

    /// 0 … n - 1
    fn below(&mut self, n: usize) -> usize {
        self.drawn += 1;
        (self.uniform.at(self.drawn) * n as f64) as usize
    }

    fn of<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 1
    }
}

/// A recipe at random. `most_heads` bounds the width.
fn random_recipe(seed: u64, most_heads: usize) -> (Recipe, usize) {
    let mut c = Choice::new(seed);
    let heads = 1 + c.below(most_heads);
    let divisors: Vec<usize> = (1..=heads).filter(|k| heads.is_multiple_of(*k)).collect();
    let kv_heads = c.of(&divisors);
    let layers = 1 + c.below(5);
    let dim = 64 * heads;
    let seq_len = match c.below(4) {
        0 => 1 + c.below(4),
        1 => 63 + c.below(4),
        _ => 1 + c.below(200),
    };
    let batch = 1 + c.below((300 / seq_len).clamp(1, 7));
    let (vrl_enabled, value_residual) = c.of(&[(false, false), (true, false), (false, true)]);
    let mut ve_layers: Vec<usize> = (0..layers).filter(|_| c.coin()).collect();
    if ve_layers.is_empty() {
        ve_layers.push(layers - 1);
    }
    let recycle_first = usize::from(vrl_enabled);
    let mut recycle_layers = Vec::new();
    if layers > recycle_first && c.below(3) == 0 {
        recycle_layers = (0..1 + c.below(2))
            .map(|_| recycle_first + c.below(layers - recycle_first))
            .collect();
    }
    let buckets = c.of(&[2, 3, 17, 100, 2048, 3072, 4096]);
    let bigram_dim = c.of(&[1, 8, 13, 40, 63, 64, 112, 128, dim]);
    let kv_dim = 64 * kv_heads;
    let ve_dim = c.of(&[3, 8, 27, 72, 112, 127, 128, kv_dim]);
    let qat = c.below(4) == 0;
    let rope_dims = c.of(&[16, 16, 4, 6, 32, 50, 64]);
    let logit_softcap = c.of(&[30.0, 30.0, 12.5, 60.0]);
    let recipe = Recipe {
        name: format!("random {seed}"),
        seed,
        vocab_size: c.of(&[2, 10, 50, 97, 256, 500, 1023, 1024, 1500]),
        train_seq_len: seq_len,
        train_batch_tokens: batch * seq_len,
        grad_accum_steps: 1,
        num_layers: layers,
        model_dim: dim,
        num_heads: heads,
        num_kv_heads: kv_heads,
        mlp_hidden: if c.coin() {
            dim * (1 + c.below(4))
        } else {
            8 * (1 + c.below(dim / 2))
        },
        bigram_vocab_size: buckets,
        bigram_dim,
        // A lone token's attention is its own value, of which XSA leaves nothing: all that is left of it is rounding.
        xsa_last_n: c.below(layers + 1) * usize::from(seq_len > 1),
        ve_dim,
        ve_enabled: true,
        ve_layers,
        vrl_enabled,
        value_residual,
        gated_attention: c.coin(),
        recycle_layers,
        // Half of the longer sequences have scaled angles.
        rope_train_seq_len: c.of(&[32, 1024]),
        rope_dims,
        logit_softcap,
        ln_scale: c.below(4) > 0,
        banked: c.coin(),
        late_qat: if qat { LateQat::Ste } else { LateQat::Inert },
        eval_seq_len: seq_len,
        eval_stride: seq_len,
        ..Recipe::default()
    };
    (recipe, batch)
}

/// Mean and standard deviation of a parameter, as in the published cases.
fn distribution(name: &str, shape: &[usize]) -> (Value, f64) {
    let columns = shape.last().copied().unwrap_or(1) as f64;
    let last = name.rsplit('.').next().unwrap_or(name);
    let inner = name.strip_suffix(".weight").unwrap_or(name);
    if name == "tok_emb.weight" {
        (json!(0.0), 1.5 / columns.sqrt())
    } else if inner.ends_with(".embed") {
        (json!(0.0), 0.5)
    } else if inner.ends_with("attn_gate") {
        (json!(0.0), 2.0 / columns.sqrt())
    } else if inner != name {
        (json!(0.0), 1.0 / columns.sqrt())
    } else {
        match last {
            "resid_mix" => (json!([1.0, 0.0]), 0.2),
            "q_gain" => (json!(1.5), 0.2),
            "vrl_gate" => (json!(-1.5), 0.5),
            "vr_lambda" => (json!(0.5), 0.3),
            "bias" if name.contains("attn_gate") => (json!(1.0), 0.5),
            "bias" => (json!(0.0), 0.2),
            "gate" => (json!(0.0), 0.5),
            "scale" if name == "bigram.scale" || name == "ve_shared.scale" => (json!(0.3), 0.05),
            _ => (json!(1.0), 0.2),
        }
    }
}

/// The case of a recipe with nothing expected yet.
fn empty_case(recipe: &Recipe, batch: usize) -> Value {
    let config = Config::new(recipe).unwrap_or_else(|error| panic!("{}: {error:#}", recipe.name));
    let passes: Vec<Value> = config
        .passes
        .iter()
        .enumerate()
        .map(|(index, pass)| {
            let layer = pass.layer;
            match pass.before {
                Before::Recycle { index } => json!({
                    "name": format!("act.replay.{index}.layer.{layer}"),
                    "layer": layer, "kind": "replay", "recycle_mod": index,
                }),
                Before::Skip { row, from } => json!({
                    "name": format!("act.layer.{layer}"),
                    "layer": layer, "kind": "decoder", "skip_weight": row, "skip_from": from,
                }),
                Before::Nothing => json!({
                    "name": format!("act.layer.{layer}"),
                    "layer": layer,
                    "kind": if index < config.encoder_layers() { "encoder" } else { "decoder" },
                }),
            }
        })
        .collect();
    let weights: Vec<Value> = inventory(&config, recipe)
        .iter()
        .map(|p| {
            let (mean, std) = distribution(&p.name, &p.shape);
            json!({"name": p.name, "shape": p.shape, "mean": mean, "std": std})
        })
        .collect();
    let xsa: Vec<usize> = (0..recipe.num_layers)
        .filter(|layer| config.xsa[*layer])
        .collect();
    json!({
        "recipe": "random", "case": recipe.seed.to_string(), "title": recipe.name,
        "batch": batch, "seq_len": recipe.train_seq_len, "seed": recipe.seed, "loss": 0.0,
        "weights": weights,
        "model": {
            "vocab_size": recipe.vocab_size, "num_layers": recipe.num_layers,
            "model_dim": recipe.model_dim, "num_heads": recipe.num_heads,
            "num_kv_heads": recipe.num_kv_heads, "head_dim": recipe.head_dim,
            "mlp_hidden": config.hidden, "logit_softcap": recipe.logit_softcap,
            "rms_norm_eps": 1.1920929e-7, "rope_base": recipe.rope_base,
            "rope_dims": recipe.rope_dims, "rope_train_seq_len": recipe.rope_train_seq_len,
            "ln_scale": recipe.ln_scale, "bigram_buckets": recipe.bigram_vocab_size,
            "bigram_dim": recipe.bigram_dim, "xsa_layers": xsa, "ve_dim": recipe.ve_dim,
            "ve_layers": recipe.ve_layers, "value_residual_gates": recipe.vrl_enabled,
            "value_residual": recipe.value_residual, "gated_attention": recipe.gated_attention,
            "recycle_layers": recipe.recycle_layers, "banked": recipe.banked,
            "qat": recipe.late_qat == LateQat::Ste, "passes": passes,
        },
    })
}

fn summary(seed: u64, name: &str, shape: &[usize], values: &[f64], noise: f64) -> Value {
    assert_eq!(elements(shape), Some(values.len()), "{name}");
    let l2 = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let signs: Vec<f64> = (0..4)
        .map(|j| rule::signed_sum(seed, name, j, values))
        .collect();
    let count = if values.is_empty() { 0 } else { 16 };
    let samples: Vec<f64> = rule::positions(seed, name, values.len(), count)
        .into_iter()
        .map(|p| values[p])
        .collect();
    json!({"name": name, "shape": shape, "l2": l2, "signs": signs, "samples": samples, "noise": noise})
}

/// Runs of the reference with random errors in the weights: three would estimate the noise of a single scalar to within a factor of four
/// in 98 of 100 cases only.
const NOISE_RUNS: u64 = 12;
/// RMS error of rounding to bf16, 2^-9 / sqrt(3), times two: a product has two operands, and backward as many roundings again.
const NOISE: f64 = 2.0 / (512.0 * 1.732_050_8);

fn with_errors(weights: &Tensors, run: u64) -> Tensors {
    let disturbed = |(name, values): (&String, &Vec<f64>)| {
        let uniform = Uniform::new(run, &format!("noise:{name}"));
        let spread = NOISE * 12f64.sqrt();
        let error = |i: usize| 1.0 + spread * (uniform.at(i as u64) - 0.5);
        let values = values
            .iter()
            .enumerate()
            .map(|(i, w)| w * error(i))
            .collect();
        (name.clone(), values)
    };
    weights.iter().map(disturbed).collect()
}

/// RMS over the runs of the l2 distance from `exact`.
fn distance(exact: &[f64], runs: &[&Vec<f64>]) -> f64 {
    let squares: f64 = runs
        .iter()
        .map(|run| {
            run.iter()
                .zip(exact)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f64>()
        })
        .sum();
    (squares / runs.len() as f64).sqrt()
}

/// The complete case of a recipe, as a file would hold it.
fn complete_case(recipe: &Recipe, batch: usize) -> Value {
    let mut file = empty_case(recipe, batch);
    let case: Case = serde_json::from_value(file.clone()).expect("the format of a case");
    let (inputs, targets) = case.tokens(case.seed);
    let weights = case_weights(&case);
    let run = |weights: &Tensors| -> Outcome {
        Reference::new(&case.model, weights, case.batch, case.seq_len).run(&inputs, &targets)
    };
    // Fake-quantized weights do not move under small errors, or jump by a whole step: the errors go behind the quantizer then.
    let mut smooth = case.model.clone();
    smooth.qat = false;
    let exact = run(&weights);
    let base = Reference::new(&case.model, &weights, case.batch, case.seq_len).used_weights();
    let runs: Vec<Outcome> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..NOISE_RUNS)
            .map(|k| {
                let (smooth, base) = (&smooth, &base);
                let (inputs, targets, case) = (&inputs, &targets, &case);
                scope.spawn(move || {
                    let weights = with_errors(base, case.seed * NOISE_RUNS + k);
                    Reference::new(smooth, &weights, case.batch, case.seq_len).run(inputs, targets)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("the reference runs"))
            .collect()
    });
    let seed = case.seed;
    let of = |name: &str, shape: &[usize], exact: &[f64], pick: &dyn Fn(&Outcome) -> Vec<f64>| {
        let all: Vec<Vec<f64>> = runs.iter().map(pick).collect();
        let noise = distance(exact, &all.iter().collect::<Vec<_>>());
        summary(seed, name, shape, exact, noise)
    };
    let tokens = [case.batch, case.seq_len];
    file["loss"] = json!(exact.loss);
    let losses: Vec<Vec<f64>> = runs.iter().map(|o| vec![o.loss]).collect();
    let loss_noise = distance(&[exact.loss], &losses.iter().collect::<Vec<_>>());
    file["loss_noise"] = json!(loss_noise);
    file["token_loss_summary"] = of("token_loss", &tokens, &exact.token_loss, &|o| {
        o.token_loss.clone()
    });
    let activations: Vec<Value> = exact
        .activations
        .iter()
        .map(|(name, values)| {
            let width = values.len() / (tokens[0] * tokens[1]);
            let shape = [tokens[0], tokens[1], width];
            of(name, &shape, values, &|o| o.activations[name].clone())
        })
        .collect();
    file["activations"] = json!(activations);
    let mut grads = Vec::new();
    for weight in &case.weights {
        let (name, shape) = (&weight.name, &weight.shape);
        grads.push(match exact.grads.get(name) {
            Some(values) => of(name, shape, values, &|o| o.grads[name].clone()),
            None => json!({"name": name, "shape": shape, "l2": 0.0, "signs": [], "samples": [],
                           "unused": true}),
        });
    }
    if case.seq_len == 1 {
        allow_rounding_of_lone_tokens(&mut grads);
    }
    file["grads"] = json!(grads);
    file
}

/// A token that sees only itself has no gradient for its query and key. The reference's is an exact zero, and stays one under errors
/// in the weights; an engine's is the difference of two equal sums that were rounded. Its size is that of the values' gradient.
fn allow_rounding_of_lone_tokens(grads: &mut [Value]) {
    let scale = |prefix: &str| {
        let name = format!("{prefix}.c_v.weight");
        let values = grads.iter().find(|g| g["name"] == name);
        values.and_then(|g| g["l2"].as_f64()).unwrap_or(0.0)
    };
    let scales: Vec<f64> = grads
        .iter()
        .map(|g| {
            let name = g["name"].as_str().unwrap_or_default();
            [".c_q.weight", ".c_k.weight", ".q_gain"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .map_or(0.0, scale)
        })
        .collect();
    for (grad, scale) in grads.iter_mut().zip(scales) {
        if scale > 0.0 {
            grad["noise"] = json!(0.02 * scale);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} = {text} is no number")),
    )
}

/// The emulator, or a GPU with `BIRDIE_TEST_DEVICE=cuda`.
fn open_device() {
    let choice = match std::env::var("BIRDIE_TEST_DEVICE").as_deref() {
        Ok("cuda") => DeviceChoice::Cuda,
        _ => DeviceChoice::Emu,
    };
    driver::init(choice).expect("a driver");
}

#[test]
fn random_models_compute_what_the_reference_computes() {
    open_device();
    let count = number("BIRDIE_RANDOM_MODELS").unwrap_or(5);
    let from = number("BIRDIE_RANDOM_MODELS_FROM").unwrap_or(0);
    let out = std::env::var("BIRDIE_RANDOM_MODELS_OUT").ok();
    let mut failures = Vec::new();
    for seed in from..from + count {
        let most_heads = if seed % 20 == 19 { 32 } else { 6 };
        let (recipe, batch) = random_recipe(seed, most_heads);
        failures.extend(compare(&recipe, batch, out.as_deref()));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Compares the device with the reference; what does not agree, in words. `out` is a folder for the case.
fn compare(recipe: &Recipe, batch: usize, out: Option<&str>) -> Vec<String> {
    let seed = recipe.seed;
    let mut failures = Vec::new();
    let file = complete_case(recipe, batch);
    if let Some(folder) = out {
        let path = std::path::Path::new(folder).join(format!("random_{seed}.json"));
        std::fs::write(path, file.to_string()).expect("the folder can be written");
    }
    let case: Case = serde_json::from_value(file).expect("the format of a case");
    let m = &case.model;
    let what = format!(
        "seed {seed}: {} x {} tokens of {}, {} layers of {}, {}/{} heads, mlp {}, replays {:?}",
        case.batch,
        case.seq_len,
        m.vocab_size,
        m.num_layers,
        m.model_dim,
        m.num_heads,
        m.num_kv_heads,
        m.mlp_hidden,
        m.recycle_layers
    );
    let tallies = run_case(&case).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    for tally in tallies {
        let worst = tally.worst()[0].severity();
        println!(
            "{what}: {} of {} missed, worst {worst:.2}",
            tally.misses(),
            tally.rows.len()
        );
        assert!(tally.rows.len() > 100, "{what}");
        // A mean over a few tokens of a small vocabulary is not within 5e-4 of itself in bf16: the logits, about as large as
        // the loss, are stored with 8 bits, which the noise of the weights does not know.
        let tokens = (case.batch * case.seq_len) as f64;
        let slack = 4.0 * case.loss_noise + case.loss / (256.0 * tokens.sqrt());
        let required = tally
            .strict
            .iter()
            .all(|row| row.passes() || (row.quantity == "loss" && row.error() < slack));
        if !required || tally.misses() > tally.allowed_misses() {
            failures.push(format!("{what}\n{}", tally.report(12)));
        }
    }
    failures
}

/// Head groupings, layer counts and lengths at the edges of what is served, with every technique.
#[test]
fn sizes_at_the_edges() {
    open_device();
    let mut failures = Vec::new();
    // heads, key/value heads, layers, sequences, tokens, MLP width, widths of bigram and value embedding
    for (k, (heads, kv_heads, layers, batch, tokens, hidden, widths)) in [
        (8, 8, 1, 1, 65, 1032, [13, 510]),
        (8, 1, 2, 2, 7, 512, [511, 63]),
        (6, 3, 3, 3, 1, 24, [384, 192]),
        (4, 2, 4, 1, 129, 1024, [2, 1]),
        (2, 1, 13, 1, 20, 200, [130, 66]),
        (1, 1, 1, 1, 1000, 64, [65, 64]),
        (4, 1, 1, 2, 70, 64, [64, 64]),
    ]
    .into_iter()
    .enumerate()
    {
        let recipe = Recipe {
            num_heads: heads,
            num_kv_heads: kv_heads,
            model_dim: 64 * heads,
            num_layers: layers,
            mlp_hidden: hidden,
            bigram_dim: widths[0],
            ve_dim: widths[1],
            ve_layers: vec![layers - 1],
            vrl_enabled: false,
            value_residual: true,
            gated_attention: true,
            recycle_layers: vec![layers / 2],
            xsa_last_n: usize::from(tokens > 1),
            vocab_size: 300,
            train_seq_len: tokens,
            train_batch_tokens: batch * tokens,
            eval_seq_len: tokens,
            eval_stride: tokens,
            ..random_recipe(9000 + k as u64, 1).0
        };
        failures.extend(compare(&recipe, batch, None));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The comparison is worth something: values that are a tenth larger in one layer are noticed.
#[test]
fn another_model_is_noticed() {
    open_device();
    let recipe = Recipe {
        num_heads: 4,
        num_kv_heads: 2,
        model_dim: 256,
        num_layers: 2,
        ve_layers: vec![1],
        recycle_layers: Vec::new(),
        xsa_last_n: 1,
        train_seq_len: 40,
        train_batch_tokens: 40,
        ..random_recipe(1, 2).0
    };
    let file = complete_case(&recipe, 1);
    let mut case: Case = serde_json::from_value(file).expect("the format of a case");
    let agrees = |case: &Case| {
        let tallies = run_case(case).unwrap_or_else(|error| panic!("{error:#}"));
        let misses = tallies.iter().filter(|tally| !tally.passes());
        misses.map(|tally| eprintln!("{}", tally.report(8))).count() == 0
    };
    assert!(agrees(&case));
    let values = case
        .weights
        .iter_mut()
        .find(|w| w.name == "blocks.0.attn.c_v.weight");
    values.expect("it is there").std *= 1.1;
    assert!(!agrees(&case));
}

//! Clipping, Muon, AdamW and the moving average in float64, with the roundings that the published code makes where they matter:
//! Newton-Schulz in bf16, bank gradients and momenta in bf16, embedding tables and their moments in bf16 where they are stored so.

use std::collections::BTreeMap;

use birdie::parity::case::{AdamW, Case, Optimizer};
use birdie::parity::judge::Tensors;

use super::layers::{add_scaled, dot, matmul_nn, matmul_nt, scaled};
use super::model::bf16;

/// Which published form of Newton-Schulz, that is, where it rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schulz {
    /// No rounding at all.
    Exact,
    /// 657 and 518: b A + (c A) A.
    Matrix,
    /// The banked recipes: b A + c (A A).
    Bank,
}

impl Schulz {
    fn round(self, x: Vec<f64>) -> Vec<f64> {
        match self {
            Self::Exact => x,
            Self::Matrix | Self::Bank => x.into_iter().map(bf16).collect(),
        }
    }
}

fn transpose(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..x.len())
        .map(|i| x[(i % rows) * cols + i / rows])
        .collect()
}

/// Five steps of X ← a X + (b A + c A A) X with A = X Xᵀ, from X = G / ‖G‖, on the short side of G [rows, cols].
pub fn newton_schulz(g: &[f64], rows: usize, cols: usize, form: Schulz) -> Vec<f64> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    if rows > cols {
        let result = newton_schulz(&transpose(g, rows, cols), cols, rows, form);
        return transpose(&result, cols, rows);
    }
    let mut x = form.round(g.to_vec());
    let norm = form.round(vec![dot(&x, &x).sqrt()]);
    let divisor = form.round(vec![norm[0] + 1e-7])[0];
    x = form.round(x.iter().map(|v| v / divisor).collect());
    for _ in 0..5 {
        let gram = form.round(matmul_nt(&x, &x, cols));
        let square = match form {
            Schulz::Exact => scaled(&matmul_nn(&gram, &gram, rows), C),
            Schulz::Matrix => {
                let scaled_gram = form.round(scaled(&gram, C));
                form.round(matmul_nn(&scaled_gram, &gram, rows))
            }
            Schulz::Bank => {
                let square = form.round(matmul_nn(&gram, &gram, rows));
                form.round(scaled(&square, C))
            }
        };
        let mut poly = form.round(scaled(&gram, B));
        add_scaled(&mut poly, &square, 1.0);
        let poly = form.round(poly);
        let mut next = form.round(scaled(&x, A));
        let product = form.round(matmul_nn(&poly, &x, cols));
        add_scaled(&mut next, &product, 1.0);
        x = form.round(next);
    }
    x
}

/// μ(step) = 0.92 + (0.99 - 0.92) * min(step / 1500, 1)
pub fn muon_momentum(step: usize) -> f64 {
    0.92 + (0.99 - 0.92) * (step as f64 / 1500.0).min(1.0)
}

/// The parameters of a case under its optimizer.
pub struct Trainer<'a> {
    settings: &'a Optimizer,
    banked: bool,
    bf16_tables: bool,
    shapes: BTreeMap<String, Vec<usize>>,
    /// Per-layer names; banks are unpacked.
    muon: Vec<String>,
    pub params: Tensors,
    pub ema: Tensors,
    momentum: Tensors,
    moments: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    step: usize,
}

impl<'a> Trainer<'a> {
    pub fn new(case: &'a Case, settings: &'a Optimizer, params: Tensors) -> Self {
        let names: Vec<&str> = case.weights.iter().map(|w| w.name.as_str()).collect();
        Self {
            settings,
            banked: case.model.banked,
            bf16_tables: settings.bf16_tables(),
            shapes: case
                .weights
                .iter()
                .map(|w| (w.name.clone(), w.shape.clone()))
                .collect(),
            muon: settings
                .muon
                .params
                .iter()
                .flat_map(|name| unpack(name, &names))
                .collect(),
            ema: params.clone(),
            params,
            momentum: Tensors::new(),
            moments: BTreeMap::new(),
            step: 0,
        }
    }

    /// One step at the base learning rates. Returns the gradient norm before clipping.
    pub fn step(&mut self, mut grads: Tensors) -> f64 {
        let norm = grads.values().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let coefficient = (self.settings.grad_clip_norm / (norm + 1e-6)).min(1.0);
        for (name, grad) in &mut grads {
            let store = |g: f64| if self.is_bf16(name) { bf16(g) } else { g };
            grad.iter_mut().for_each(|g| *g = store(*g * coefficient));
        }
        let mu = muon_momentum(self.step);
        for name in self.muon.clone() {
            if let Some(grad) = grads.get(&name) {
                self.muon_step(&name, grad, mu);
            }
        }
        for group in [
            &self.settings.adamw_embeddings,
            &self.settings.adamw_scalars,
        ] {
            for name in &group.params {
                if let Some(grad) = grads.get(name) {
                    self.adamw_step(name, grad, group);
                }
            }
        }
        let decay = self.settings.ema_decay;
        for (name, average) in &mut self.ema {
            let live = &self.params[name];
            for (e, w) in average.iter_mut().zip(live) {
                *e = decay * *e + (1.0 - decay) * w;
            }
        }
        self.step += 1;
        norm
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.bf16_tables
            && self
                .settings
                .adamw_embeddings
                .params
                .iter()
                .any(|p| p == name)
    }

    /// M ← μ M + G, U = G + μ M, W ← W (1 - lr wd) - lr s O with O = NewtonSchulz(U), s = max(1, rows / cols)^½.
    fn muon_step(&mut self, name: &str, grad: &[f64], mu: f64) {
        // NOTE: in the banked recipes gradient, momentum and update direction are bf16.
        let round = |x: Vec<f64>| {
            if self.banked {
                x.into_iter().map(bf16).collect()
            } else {
                x
            }
        };
        let grad = round(grad.to_vec());
        let old = self
            .momentum
            .get(name)
            .cloned()
            .unwrap_or_else(|| vec![0.0; grad.len()]);
        let mut momentum = round(scaled(&old, mu));
        add_scaled(&mut momentum, &grad, 1.0);
        let momentum = round(momentum);
        let mut direction = grad;
        add_scaled(&mut direction, &momentum, mu);
        let direction = round(direction);
        let (rows, cols) = (self.shapes[name][0], self.shapes[name][1]);
        let form = if self.banked {
            Schulz::Bank
        } else {
            Schulz::Matrix
        };
        let mut update = newton_schulz(&direction, rows, cols, form);
        let stretch = (rows as f64 / cols as f64).max(1.0).sqrt();
        update = scaled(&update, stretch);
        if !self.banked {
            update.iter_mut().for_each(|x| *x = bf16(*x));
        }
        let (lr, wd) = (self.settings.muon.lr, self.settings.muon.weight_decay);
        let param = self
            .params
            .get_mut(name)
            .expect("every optimized tensor is a parameter");
        param.iter_mut().for_each(|w| *w *= 1.0 - lr * wd);
        add_scaled(param, &update, -lr);
        self.momentum.insert(name.into(), momentum);
    }

    fn adamw_step(&mut self, name: &str, grad: &[f64], group: &AdamW) {
        let bf16_storage = self.is_bf16(name);
        let store = |x: f64| if bf16_storage { bf16(x) } else { x };
        let zeros = || (vec![0.0; grad.len()], vec![0.0; grad.len()]);
        let (m, v) = self.moments.entry(name.into()).or_insert_with(zeros);
        let param = self
            .params
            .get_mut(name)
            .expect("every optimized tensor is a parameter");
        let t = self.step as i32 + 1;
        let [b1, b2] = group.betas;
        for (i, &g) in grad.iter().enumerate() {
            let first = m[i] + (1.0 - b1) * (g - m[i]);
            let second = b2 * v[i] + (1.0 - b2) * g * g;
            let denominator = second.sqrt() / (1.0 - b2.powi(t)).sqrt() + group.eps;
            let decayed = param[i] * (1.0 - group.lr * group.weight_decay);
            param[i] = store(decayed - group.lr / (1.0 - b1.powi(t)) * first / denominator);
            m[i] = store(first);
            v[i] = store(second);
        }
    }
}

/// A bank stands for its slices; any other name for itself.
fn unpack(name: &str, weights: &[&str]) -> Vec<String> {
    let slices: &[&str] = match name {
        "qo_bank" => &["attn.c_q.weight", "attn.proj.weight"],
        "kv_bank" => &["attn.c_k.weight", "attn.c_v.weight"],
        "mlp_up_bank" => &["mlp.fc.weight"],
        "mlp_down_bank" => &["mlp.proj.weight"],
        _ => return vec![name.into()],
    };
    let belongs = |weight: &&&str| {
        weight.starts_with("blocks.")
            && slices
                .iter()
                .any(|slice| weight.ends_with(&format!(".{slice}")))
    };
    weights
        .iter()
        .filter(belongs)
        .map(|weight| weight.to_string())
        .collect()
}

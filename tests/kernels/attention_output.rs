//! `attention_output` and `gemm_attention_output`: the backward of XSA and gate from what `attention_forward` leaves, as a pass and as
//! the epilogue of a product. Both directions together are in `attention.rs`.

use birdie::kernels::attention_forward::{AttentionShape, Gate, gate_columns};
use birdie::kernels::attention_output::{
    AttentionOutput, AttentionOutputGradients, attention_output_pass_partials,
};
use birdie::kernels::gemm::Tile;
use birdie::kernels::gemm_attention_output::gemm_attention_output_partials;
use birdie::kernels::{Kernels, Matrix};

use crate::attention::shape;
use crate::device::{Buffer, Gpu};
use crate::numbers::{Random, assert_bf16, assert_close, assert_f32, bf16, sigmoid};
use crate::row_scale::Sums;

const D: usize = 64;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(v: &[f64]) -> (f64, Vec<f64>) {
    let norm = dot(v, v).sqrt().max(1e-12);
    (norm, v.iter().map(|v| v / norm).collect())
}

/// XSA and gate of one head of one token: the output, and the component of `y` along its value.
pub fn output(y: &[f64], v: &[f64], xsa: bool, gate: Option<f64>) -> (Vec<f64>, f64) {
    let (_, unit) = unit(v);
    let along = if xsa { dot(y, &unit) } else { 0.0 };
    let s = gate.map_or(1.0, sigmoid);
    let out = y.iter().zip(&unit).map(|(y, u)| (y - along * u) * s);
    (out.collect(), along)
}

/// Gradients of [`output`]: of y, of the value and of the gate's logit.
pub fn gradient(
    y: &[f64],
    along: f64,
    v: &[f64],
    dout: &[f64],
    xsa: bool,
    gate: Option<f64>,
) -> (Vec<f64>, Vec<f64>, f64) {
    let (norm, unit) = unit(v);
    let cleared: Vec<f64> = y.iter().zip(&unit).map(|(y, u)| y - along * u).collect();
    let s = gate.map_or(1.0, sigmoid);
    let dlogit = dot(dout, &cleared) * s * (1.0 - s);
    let g: Vec<f64> = dout.iter().map(|g| g * s).collect();
    if !xsa {
        return (g, vec![0.0; D], dlogit);
    }
    let e = dot(&g, &unit);
    let dy = g.iter().zip(&unit).map(|(g, u)| g - e * u).collect();
    let dunit: Vec<f64> = g.iter().zip(y).map(|(g, y)| -(along * g + e * y)).collect();
    let radial = dot(&dunit, &unit);
    let dv = dunit.iter().zip(&unit);
    let dv = dv.map(|(d, u)| (d - radial * u) / norm).collect();
    (dy, dv, dlogit)
}

/// Random operands, and what the forward leaves of them.
struct Case {
    what: String,
    shape: AttentionShape,
    xsa: bool,
    gated: bool,
    qkv_in: Vec<f64>,
    logits: Vec<f64>,
    bias: Vec<f64>,
    along: Vec<f64>,
    out: Vec<f64>,
    /// What `out` and `along` stand for.
    y: Vec<f64>,
}

impl Case {
    fn new(random: &mut Random, shape: AttentionShape, xsa: bool, gated: bool) -> Self {
        Self::changed(random, shape, xsa, gated, |_| {})
    }

    /// With values or logits that `change` has made something else of.
    fn changed(
        random: &mut Random,
        shape: AttentionShape,
        xsa: bool,
        gated: bool,
        change: impl FnOnce(&mut Self),
    ) -> Self {
        let (heads, kv) = (shape.heads() as usize, shape.kv_heads as usize);
        let rows = (shape.sequences * shape.tokens) as usize;
        let mut case = Self {
            what: format!("{shape:?}, xsa {xsa}, gate {gated}"),
            shape,
            xsa,
            gated,
            qkv_in: random.bf16(rows as u64 * shape.columns(), 1.0),
            logits: random.bf16(rows as u64 * gate_columns(shape), 1.0),
            bias: random.f32(shape.heads(), 1.0),
            along: vec![0.0; shape.statistics() as usize],
            out: vec![],
            y: vec![],
        };
        let raw_y = random.bf16((rows * heads * D) as u64, 1.0);
        // A value of zero, which XSA leaves as it is.
        if rows > 20 {
            case.qkv_in[20 * shape.columns() as usize..][..(heads + 2 * kv) * D].fill(0.0);
        }
        change(&mut case);
        for (row, head) in case.places() {
            let (v, logit, statistic) = case.of(row, head);
            let (out, along) = output(&raw_y[(row * heads + head) * D..][..D], v, xsa, logit);
            let along = f64::from(along as f32);
            let (_, unit) = unit(v);
            let s = logit.map_or(1.0, sigmoid);
            let y = out
                .iter()
                .zip(&unit)
                .map(|(&out, u)| bf16(out) / s + along * u);
            case.y.extend(y);
            case.out.extend(out);
            case.along[statistic] = along;
        }
        case
    }

    fn rows(&self) -> usize {
        (self.shape.sequences * self.shape.tokens) as usize
    }

    fn width(&self) -> usize {
        self.shape.heads() as usize * D
    }

    /// Every row with every head.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.shape.heads() as usize;
        (0..self.rows()).flat_map(move |row| (0..heads).map(move |head| (row, head)))
    }

    /// Value, logit, and place in the statistics.
    fn of(&self, row: usize, head: usize) -> (&[f64], Option<f64>, usize) {
        let shape = self.shape;
        let (heads, columns) = (shape.heads() as usize, shape.columns() as usize);
        let kv = head / shape.group as usize;
        let v = &self.qkv_in[row * columns + (heads + shape.kv_heads as usize + kv) * D..][..D];
        let gates = gate_columns(shape) as usize;
        let logit = self
            .gated
            .then(|| self.logits[row * gates + head] + self.bias[head]);
        let (tokens, padded) = (shape.tokens as usize, shape.padded_tokens() as usize);
        let statistic = ((row / tokens) * heads + head) * padded + row % tokens;
        (v, logit, statistic)
    }

    /// Launches a kernel that leaves `partials` rows of sums, and compares with the reference for the gradient `dout` of `out`.
    fn check(
        &self,
        gpu: &Gpu,
        partials: u32,
        scale: Option<&Sums>,
        dout: &[f64],
        launch: impl Fn(&Kernels, &AttentionOutput, &AttentionOutputGradients),
    ) {
        let (shape, what, rows) = (self.shape, &self.what, self.rows());
        let (heads, kv) = (shape.heads() as usize, shape.kv_heads as usize);
        let (columns, gates) = (shape.columns() as usize, gate_columns(shape) as usize);
        let stride = columns + gates;
        let (out, qkv_in) = (gpu.bf16(&self.out), gpu.bf16(&self.qkv_in));
        let (along, logits) = (gpu.f32(&self.along), gpu.bf16(&self.logits));
        let bias = gpu.f32(&self.bias);
        let operands = AttentionOutput {
            shape,
            out: out.ptr(),
            qkv_in: qkv_in.ptr(),
            along: self.xsa.then(|| along.ptr()),
            gate: self.gated.then(|| Gate {
                logits: logits.ptr(),
                stride: gates as u64,
                bias: bias.ptr(),
            }),
        };
        let dy = gpu.poison(2 * self.y.len() as u64);
        let delta = gpu.poison(4 * shape.statistics());
        let dv = gpu.poison((2 * rows * kv * D) as u64);
        let dqkv = gpu.poison((2 * rows * stride) as u64);
        let partial = gpu.poison(4 * u64::from(partials) * heads as u64);
        let gradients = AttentionOutputGradients {
            dy: dy.ptr(),
            delta: delta.ptr(),
            dv_extra: self.xsa.then(|| dv.ptr()),
            dqkv: self.gated.then(|| dqkv.ptr()),
            scale: scale.map(Sums::scale),
            dqkv_stride: stride as u64,
            partial: self.gated.then(|| partial.ptr()),
        };
        launch(gpu.kernels, &operands, &gradients);
        let dbias = gpu.f32(&vec![0.5; heads]);
        if self.gated {
            gpu.kernels
                .gate_bias_sum(
                    &gpu.stream,
                    partial.ptr(),
                    partials,
                    heads as u64,
                    dbias.ptr(),
                    true,
                )
                .unwrap();
        }
        gpu.wait();

        let stored = dy.read_bf16();
        let mut want_dy = vec![];
        let mut want_dv = vec![0.0; rows * kv * D];
        let mut want_delta = vec![0.0; shape.statistics() as usize];
        let (mut want_logits, mut want_bias) = (vec![0.0; rows * gates], vec![0.5; heads]);
        for (row, head) in self.places() {
            let place = (row * heads + head) * D;
            let (v, logit, statistic) = self.of(row, head);
            let (y, dout) = (&self.y[place..][..D], &dout[place..][..D]);
            let (d, dv, dlogit) = gradient(y, self.along[statistic], v, dout, self.xsa, logit);
            want_dy.extend(d);
            // Delta belongs to dy as it is stored (which is compared below): what it did not share with dy would not cancel in
            // attention.
            want_delta[statistic] = dot(&stored[place..][..D], y);
            let sums = &mut want_dv[(row * kv + head / shape.group as usize) * D..][..D];
            sums.iter_mut().zip(dv).for_each(|(sum, dv)| *sum += dv);
            let factor = scale.map_or(1.0, |sums| sums.factors[row]);
            want_logits[row * gates + head] = factor * dlogit;
            want_bias[head] += dlogit;
        }
        let delta = delta.read_f32();
        assert_f32(&format!("delta, {what}"), &delta, &want_delta, 8.0);
        assert_bf16(&format!("dy, {what}"), &stored, &want_dy, 1.0);
        if self.xsa {
            assert_bf16(&format!("dv, {what}"), &dv.read_bf16(), &want_dv, 2.0);
        }
        if self.gated {
            let got: Vec<f64> = dqkv
                .read_bf16()
                .chunks_exact(stride)
                .flat_map(|row| row[columns..].to_vec())
                .collect();
            let what = format!("dlogits, {what}");
            assert_close(&what, &got, &want_logits, 0.006, 0.004);
            let got = dbias.read_f32();
            assert_f32(&format!("dbias, {}", self.what), &got, &want_bias, 10.0);
        }
    }

    /// As a pass of its own.
    fn check_pass(&self, gpu: &Gpu, seed: u64, scale: Option<&Sums>) {
        let elements = (self.rows() * self.width()) as u64;
        let dout = Random::new(seed).bf16(elements, 1.0);
        let dout_d = gpu.bf16(&dout);
        let partials = attention_output_pass_partials(self.shape);
        self.check(gpu, partials, scale, &dout, |kernels, operands, g| {
            kernels
                .attention_output_backward(&gpu.stream, dout_d.ptr(), operands, g)
                .unwrap();
        });
    }

    /// As the epilogue of a product over `d`, on a device of `multiprocessors`.
    fn check_product(
        &self,
        gpu: &Gpu,
        seed: u64,
        scale: Option<&Sums>,
        d: u64,
        multiprocessors: u32,
    ) {
        let (rows, width) = (self.rows() as u64, self.width() as u64);
        let mut random = Random::new(seed);
        let dx = random.bf16(rows * d, 1.0);
        let weight = random.bf16(d * width, 1.0 / (d as f64).sqrt());
        let mut dout = vec![0.0; (rows * width) as usize];
        for (dout, dx) in dout
            .chunks_exact_mut(width as usize)
            .zip(dx.chunks_exact(d as usize))
        {
            for (dx, weight) in dx.iter().zip(weight.chunks_exact(width as usize)) {
                dout.iter_mut().zip(weight).for_each(|(o, w)| *o += dx * w);
            }
        }
        let operands: [(Buffer, u64); 2] = [(gpu.bf16(&dx), rows), (gpu.bf16(&weight), d)];
        let columns = [d, width];
        let matrices = [0, 1].map(|i| Matrix::new(operands[i].0.ptr(), operands[i].1, columns[i]));
        let partials = gemm_attention_output_partials(self.shape);
        self.check(gpu, partials, scale, &dout, |kernels, operands, g| {
            kernels
                .with_tile(Tile::Wide, multiprocessors)
                .gemm_attention_output(&gpu.stream, matrices, operands, g)
                .unwrap();
        });
    }
}

#[test]
fn gradient_of_xsa_and_gate_in_a_pass() {
    let gpu = Gpu::new();
    for (i, (shape, gated)) in [
        (shape(1, 1, 1, 2), true),
        (shape(2, 65, 1, 2), false),
        (shape(1, 40, 4, 2), true),
        (shape(1, 33, 8, 2), true),
        (shape(2, 37, 1, 1), true),
        (shape(1, 66, 3, 1), true),
        (shape(2, 41, 5, 3), true),
        (shape(1, 23, 3, 4), false),
        (shape(1, 19, 1, 32), true),
        (shape(1, 35, 32, 1), true),
        (shape(1, 5, 2, 32), true),
    ]
    .into_iter()
    .enumerate()
    {
        let seed = 200 + i as u64;
        let case = Case::new(&mut Random::new(seed), shape, true, gated);
        let sums = Sums::new(&gpu, seed + 20, case.rows() as u64, 512, 4);
        case.check_pass(&gpu, seed + 40, (i % 3 != 0).then_some(&sums));
    }
}

/// Sequences that end within a tile, within a warp's rows and with a tile; several tiles for a cluster; tiles with fewer than four heads;
/// every group that a tile is whole groups of, and any group without XSA.
#[test]
fn gradient_of_xsa_and_gate_in_a_product() {
    let gpu = Gpu::new();
    for (i, (shape, d, xsa, gated)) in [
        (shape(1, 1, 1, 1), 64, true, true),
        (shape(1, 1, 1, 2), 8, true, false),
        (shape(1, 1, 1, 4), 64, false, false),
        (shape(2, 65, 1, 2), 128, true, true),
        (shape(2, 65, 1, 3), 200, false, true),
        (shape(5, 37, 2, 1), 136, true, true),
        (shape(3, 64, 3, 1), 64, true, false),
        (shape(2, 130, 2, 4), 72, true, true),
        (shape(1, 257, 4, 2), 320, true, false),
        (shape(2, 300, 4, 2), 512, true, true),
        (shape(3, 23, 1, 8), 64, false, true),
        (shape(7, 3, 5, 1), 64, true, true),
        (shape(1, 20, 16, 4), 64, true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let seed = 300 + i as u64;
        let case = Case::new(&mut Random::new(seed), shape, xsa, gated);
        let sums = Sums::new(&gpu, seed + 20, case.rows() as u64, 512, 5);
        let scale = (i % 3 != 0).then_some(&sums);
        let multiprocessors = [132, 2][i % 2];
        case.check_product(&gpu, seed + 40, scale, d, multiprocessors);
    }
}

/// Values of tiny and of large norm, closed and open gates.
#[test]
fn extreme_values_and_gates() {
    let gpu = Gpu::new();
    let shape = shape(1, 80, 2, 2);
    for seed in [400, 401] {
        let case = Case::changed(&mut Random::new(seed), shape, true, true, |case| {
            let (columns, gates) = (shape.columns() as usize, gate_columns(shape) as usize);
            for row in 0..case.rows() {
                let size = 2f64.powi([-36, -20, 0, 50][row % 4]);
                let row_of = |width: usize| row * width..(row + 1) * width;
                case.qkv_in[row_of(columns)]
                    .iter_mut()
                    .for_each(|v| *v *= size);
                if let Some(logit) = [Some(-100.0), Some(-80.0), None, Some(100.0), None]
                    .get(row % 5)
                    .copied()
                    .flatten()
                {
                    case.logits[row_of(gates)].fill(logit);
                }
            }
        });
        case.check_pass(&gpu, seed + 10, None);
        case.check_product(&gpu, seed + 20, None, 128, 2);
    }
}

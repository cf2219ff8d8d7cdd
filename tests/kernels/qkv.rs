//! The QKV product with its epilogue (`gemm_qkv.cu`), and its backward (`qkv.cu` and the end of `attention_backward.cu`).

use birdie::kernels::attention_backward::{AttentionGradient, QuerySum, QuerySums, ValueGradient};
use birdie::kernels::attention_forward::{AttentionForward, AttentionShape, gate_columns};
use birdie::kernels::gemm::Tile;
use birdie::kernels::qkv::{
    FirstRole, FirstValue, QkvOperands, ValueEmbedding, ValueGradients, ValueMix,
    inverse_rms_pitch, rope_table, value_partials,
};
use birdie::kernels::row_scale::RowScale;
use birdie::kernels::{Kernels, Matrix};

use crate::attention::reference;
use crate::device::{Buffer, Gpu};
use crate::numbers::{
    Random, assert_bf16, assert_f32, distance, inverse_rms, norm_gradient, sigmoid,
};
use crate::row_scale::Sums;

const D: usize = 64;
const VOCABULARY: usize = 50;

/// Rotates the channels of a head for which there are angles; `sign` -1 is the transpose.
pub fn rotate(x: &mut [f64], rope: &[f64], sign: f64) {
    let pairs = rope.len() / 2;
    for i in 0..pairs {
        let (cosine, sine) = (rope[i], sign * rope[pairs + i]);
        let (a, b) = (x[i], x[i + pairs]);
        x[i] = a * cosine + b * sine;
        x[i + pairs] = b * cosine - a * sine;
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    sequences: u64,
    tokens: u64,
    kv_heads: u64,
    group: u64,
    /// Width of the model, and whether there are gates.
    width: usize,
    gated: bool,
    embedded: bool,
    /// 0 none, 1 gate, 2 lambda.
    mode: i32,
    /// Of the gradient of the first value.
    role: FirstRole,
}

const fn case(
    [sequences, tokens]: [u64; 2],
    [kv_heads, group]: [u64; 2],
    width: usize,
    [gated, embedded]: [bool; 2],
    mode: i32,
    role: FirstRole,
) -> Case {
    Case {
        sequences,
        tokens,
        kv_heads,
        group,
        width,
        gated,
        embedded,
        mode,
        role,
    }
}

const Y: bool = true;
const N: bool = false;

/// One row and one head; one key head and as many as queries; lengths that are no multiple of a tile, and sequences that start inside
/// one; more rows than a tile, more columns than a wide one, more k-blocks than stages; q, k and v in one tile and apart.
const CASES: [Case; 17] = [
    case([1, 1], [1, 2], 64, [N, N], 0, FirstRole::None),
    case([2, 33], [1, 2], 64, [N, Y], 1, FirstRole::Write),
    case([1, 70], [2, 2], 128, [Y, N], 2, FirstRole::Add),
    case([1, 40], [4, 2], 128, [Y, Y], 2, FirstRole::Add),
    case([2, 19], [1, 2], 72, [N, N], 0, FirstRole::Take),
    case([1, 9], [8, 2], 8, [N, Y], 1, FirstRole::Add),
    case([2, 45], [1, 1], 64, [Y, Y], 2, FirstRole::Add),
    case([1, 71], [3, 1], 200, [N, Y], 1, FirstRole::Write),
    case([1, 39], [3, 4], 64, [Y, N], 2, FirstRole::Add),
    case([2, 21], [5, 3], 64, [N, Y], 1, FirstRole::Add),
    case([1, 13], [1, 32], 64, [Y, N], 0, FirstRole::Take),
    case([1, 11], [32, 1], 64, [Y, Y], 2, FirstRole::Write),
    case([1, 5], [2, 32], 64, [N, Y], 1, FirstRole::Add),
    case([3, 150], [1, 2], 512, [N, N], 0, FirstRole::None),
    case([1, 300], [4, 2], 512, [Y, Y], 0, FirstRole::None),
    case([2, 130], [4, 2], 256, [N, N], 2, FirstRole::Write),
    case([130, 2], [2, 2], 64, [Y, Y], 1, FirstRole::Add),
];

/// Inputs of a case, and what they give in f64.
struct Problem {
    case: Case,
    shape: AttentionShape,
    rows: usize,
    heads: usize,
    kv: usize,
    /// Of q, k and v; of the product.
    columns: usize,
    all_columns: usize,
    x: Vec<f64>,
    weight: Vec<f64>,
    first: Vec<f64>,
    table: Vec<f64>,
    gain: Vec<f64>,
    mix: Vec<f64>,
    ve_scale: Vec<f64>,
    ids: Vec<u16>,
    /// Published are 16; every second seed has another number.
    rope_dims: u64,
    rope: Vec<f64>,
    /// Of the product's rows; in most cases.
    sums: Option<Sums>,
    /// x W^T, its rows times their factors.
    product: Vec<f64>,
}

impl Problem {
    fn new(gpu: &Gpu, case: Case, seed: u64) -> Self {
        let shape = AttentionShape {
            sequences: case.sequences,
            tokens: case.tokens,
            kv_heads: case.kv_heads,
            group: case.group,
        };
        let (heads, kv) = (shape.heads() as usize, case.kv_heads as usize);
        let columns = shape.columns() as usize;
        let gates = if case.gated { gate_columns(shape) } else { 0 };
        let all_columns = columns + gates as usize;
        let rows = (case.sequences * case.tokens) as usize;
        let mut random = Random::new(seed);
        let scale = (case.width as f64).powf(-0.25); // the product has standard deviation 1
        let x = random.bf16((rows * case.width) as u64, scale);
        let weight = random.bf16((all_columns * case.width) as u64, scale);
        let rope_dims = [16, 64, 16, 2, 16, 32, 16, 6, 16, 62, 16, 24][seed as usize % 12];
        let parts = 1 + seed % 5;
        let sums = (!seed.is_multiple_of(4)).then(|| Sums::new(gpu, seed, rows as u64, 512, parts));
        let mut product = Vec::with_capacity(rows * all_columns);
        for (row, x) in x.chunks_exact(case.width).enumerate() {
            let factor = sums.as_ref().map_or(1.0, |sums| sums.factors[row]);
            product.extend(
                weight
                    .chunks_exact(case.width)
                    .map(|w| factor * w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()),
            );
        }
        Self {
            case,
            shape,
            rows,
            heads,
            kv,
            columns,
            all_columns,
            x,
            weight,
            first: random.bf16((rows * columns) as u64, 1.0),
            table: random.bf16((VOCABULARY * kv * D) as u64, 1.0),
            gain: random.f32(heads as u64, 1.0),
            mix: random.f32(2, 1.0),
            ve_scale: random.f32(1, 1.0),
            ids: random.ids(rows as u64, VOCABULARY as u64),
            rope_dims,
            rope: rope_table(case.tokens, 10_000.0, rope_dims)
                .into_iter()
                .map(f64::from)
                .collect(),
            sums,
            product,
        }
    }

    fn scale(&self) -> Option<RowScale> {
        self.sums.as_ref().map(Sums::scale)
    }

    /// Of a row.
    fn factor(&self, row: usize) -> f64 {
        self.sums.as_ref().map_or(1.0, |sums| sums.factors[row])
    }

    fn head(&self, row: usize, head: usize) -> &[f64] {
        &self.product[row * self.all_columns + head * D..][..D]
    }

    fn angles(&self, row: usize) -> &[f64] {
        let dims = self.rope_dims as usize;
        &self.rope[row % self.case.tokens as usize * dims..][..dims]
    }

    fn gain(&self, head: usize) -> f64 {
        self.gain.get(head).copied().unwrap_or(1.0)
    }

    /// out = c0 v_first + c1 w
    fn coefficients(&self) -> (f64, f64) {
        let g = sigmoid(self.mix[0]);
        match self.case.mode {
            0 => (0.0, 1.0),
            1 => (g, 1.0 - g),
            _ => (self.mix[0], self.mix[1]),
        }
    }

    /// The first layer's value, and this one's with its embedding.
    fn values(&self, row: usize, c: usize) -> (f64, f64) {
        let column = (self.heads + self.kv) * D + c;
        let mut w = self.product[row * self.all_columns + column];
        if self.case.embedded {
            w += self.ve_scale[0] * self.table[usize::from(self.ids[row]) * self.kv * D + c];
        }
        (self.first[row * self.columns + column], w)
    }

    fn ready(&self) -> Vec<f64> {
        let (c0, c1) = self.coefficients();
        let mut out = Vec::with_capacity(self.rows * self.columns);
        for row in 0..self.rows {
            for h in 0..self.heads + self.kv {
                let x = self.head(row, h);
                let factor = inverse_rms(x) * self.gain(h);
                let mut z: Vec<f64> = x.iter().map(|x| x * factor).collect();
                rotate(&mut z, self.angles(row), 1.0);
                out.extend(z);
            }
            out.extend((0..self.kv * D).map(|c| {
                let (f, w) = self.values(row, c);
                c0 * f + c1 * w
            }));
        }
        out
    }
}

/// A problem on the device, and the results of its forward.
struct OnDevice {
    x: Buffer,
    weight: Buffer,
    first: Buffer,
    table: Buffer,
    gain: Buffer,
    mix: Buffer,
    ve_scale: Buffer,
    ids: Buffer,
    rope: Buffer,
    ready: Buffer,
    inverse_rms: Buffer,
    v_raw: Buffer,
    gates: Buffer,
}

impl OnDevice {
    fn new(gpu: &Gpu, p: &Problem) -> Self {
        let rows = p.rows as u64;
        let pitch = inverse_rms_pitch(p.heads as u64, p.kv as u64);
        Self {
            x: gpu.bf16(&p.x),
            weight: gpu.bf16(&p.weight),
            first: gpu.bf16(&p.first),
            table: gpu.bf16(&p.table),
            gain: gpu.f32(&p.gain),
            mix: gpu.f32(&p.mix),
            ve_scale: gpu.f32(&p.ve_scale),
            ids: gpu.u16(&p.ids),
            rope: gpu.f32(&p.rope),
            ready: gpu.poison(2 * rows * p.columns as u64),
            inverse_rms: gpu.poison(4 * rows * pitch),
            v_raw: gpu.poison(2 * rows * (p.kv * D) as u64),
            gates: gpu.poison(2 * rows * gate_columns(p.shape)),
        }
    }

    fn mix(&self, case: Case) -> ValueMix {
        match case.mode {
            0 => ValueMix::None,
            1 => ValueMix::Gate {
                parameter: self.mix.ptr(),
            },
            _ => ValueMix::Lambda {
                parameters: self.mix.ptr(),
            },
        }
    }

    fn operands(&self, p: &Problem, keeps_raw: bool) -> QkvOperands {
        let first_column = (p.heads + p.kv) * D;
        QkvOperands {
            shape: p.shape,
            ready: self.ready.ptr(),
            inverse_rms: self.inverse_rms.ptr(),
            v_raw: keeps_raw.then(|| self.v_raw.ptr()),
            q_gain: self.gain.ptr(),
            rope: self.rope.ptr(),
            rope_dims: p.rope_dims,
            value_embedding: p.case.embedded.then(|| ValueEmbedding {
                ids: self.ids.ptr(),
                table: self.table.ptr(),
                vocabulary: VOCABULARY as u64,
                scale: self.ve_scale.ptr(),
            }),
            mix: self.mix(p.case),
            v_first: (p.case.mode != 0).then(|| FirstValue {
                pointer: self.first.ptr().offset(2 * first_column as u64),
                stride: p.columns as u64,
            }),
        }
    }

    fn forward(&self, gpu: &Gpu, kernels: &Kernels, p: &Problem, operands: &QkvOperands) {
        let matrix = |buffer: &Buffer, rows: usize| {
            Matrix::new(buffer.ptr(), rows as u64, p.case.width as u64)
        };
        let work = kernels
            .gemm_qkv(
                &gpu.stream,
                operands,
                matrix(&self.x, p.rows),
                matrix(&self.weight, p.all_columns),
                p.scale(),
                p.case.gated.then(|| self.gates.ptr()),
            )
            .unwrap();
        assert_eq!(
            work.flops,
            2 * (p.rows * p.all_columns * p.case.width) as u64
        );
        gpu.wait();
    }
}

fn check_forward(what: &str, p: &Problem, device: &OnDevice, keeps_raw: bool) {
    let (heads, kv, rows) = (p.heads, p.kv, p.rows);
    let ready = device.ready.read_bf16();
    assert_bf16(&format!("ready, {what}"), &ready, &p.ready(), 1.0);
    let pitch = inverse_rms_pitch(heads as u64, kv as u64) as usize;
    let kept = device.inverse_rms.read_f32();
    let got: Vec<f64> = kept
        .chunks_exact(pitch)
        .flat_map(|row| &row[..heads + kv])
        .copied()
        .collect();
    let want: Vec<f64> = (0..rows)
        .flat_map(|row| (0..heads + kv).map(move |h| p.factor(row) * inverse_rms(p.head(row, h))))
        .collect();
    assert_f32(&format!("inverse rms, {what}"), &got, &want, 1.0);
    let part = |start: usize, width: usize| -> Vec<f64> {
        p.product
            .chunks_exact(p.all_columns)
            .flat_map(|row| row[start..start + width].to_vec())
            .collect()
    };
    let raw = device.v_raw.read_bf16();
    if keeps_raw {
        let want = part((heads + kv) * D, kv * D);
        assert_bf16(&format!("v before the mix, {what}"), &raw, &want, 1.0);
    } else {
        assert!(raw.iter().all(|x| x.is_nan()), "{what}: v_raw was written");
    }
    let gates = device.gates.read_bf16();
    if p.case.gated {
        let want = part(p.columns, p.all_columns - p.columns);
        assert_bf16(&format!("gate logits, {what}"), &gates, &want, 1.0);
    } else {
        assert!(
            gates.iter().all(|x| x.is_nan()),
            "{what}: gates were written"
        );
    }
}

#[test]
fn both_ways_in_every_mode() {
    let gpu = Gpu::new();
    for (i, case) in CASES.into_iter().enumerate() {
        let p = Problem::new(&gpu, case, 500 + i as u64);
        let keeps_raw = case.mode != 0 || i % 2 == 0;
        for (tile, multiprocessors) in [(Tile::Square, 3), (Tile::Wide, 4), (Tile::Quad, 8)] {
            let kernels = gpu.kernels.with_tile(tile, multiprocessors);
            let device = OnDevice::new(&gpu, &p);
            let operands = device.operands(&p, keeps_raw);
            device.forward(&gpu, &kernels, &p, &operands);
            check_forward(&format!("{case:?} {tile:?}"), &p, &device, keeps_raw);
            if tile == Tile::Square {
                check_values_backward(&gpu, &p, &device, &operands);
            }
        }
    }
}

/// The backward of the values on the results of the forward.
fn check_values_backward(gpu: &Gpu, p: &Problem, device: &OnDevice, operands: &QkvOperands) {
    let (case, rows, kv_width) = (p.case, p.rows, p.kv * D);
    let what = format!("{case:?}");
    let (columns, stride) = (p.columns, p.all_columns);
    let mut random = Random::new(600 + columns as u64);
    let dout = random.bf16((rows * kv_width) as u64, 1.0);
    let old_first = random.bf16((rows * kv_width) as u64, 1.0);
    let dv = gpu.bf16(&dout);
    let dqkv = gpu.bf16(&vec![7.0; rows * stride]);
    let dv_first = if case.role == FirstRole::Write {
        gpu.poison((2 * rows * kv_width) as u64)
    } else {
        gpu.bf16(&old_first)
    };
    let partial = gpu.poison(8 * u64::from(value_partials(p.shape)));
    gpu.kernels
        .value_backward(
            &gpu.stream,
            operands,
            &ValueGradients {
                dv: dv.ptr(),
                dqkv: dqkv.ptr(),
                stride: stride as u64,
                scale: p.scale(),
                dv_first: (case.role != FirstRole::None).then(|| dv_first.ptr()),
                role: case.role,
                partial: partial.ptr(),
            },
        )
        .unwrap();
    let mix_grad = gpu.f32(&[1.0, 1.0]);
    if case.mode != 0 {
        gpu.kernels
            .value_backward_finish(
                &gpu.stream,
                p.shape,
                partial.ptr(),
                operands.mix,
                mix_grad.ptr(),
                true,
            )
            .unwrap();
    }
    gpu.wait();

    let (c0, c1) = p.coefficients();
    // Its operands are what the forward stored, rounded: that is what its result is for.
    let raw = device.v_raw.read_bf16();
    let mut want_dqkv = vec![7.0; rows * stride];
    let mut want_dv = vec![0.0; rows * kv_width];
    let mut want_first = old_first.clone();
    let (mut dc0, mut dc1) = (0.0, 0.0);
    for (row, c) in (0..rows).flat_map(|row| (0..kv_width).map(move |c| (row, c))) {
        let (f, mut w) = p.values(row, c);
        let column = columns - kv_width + c;
        let place = row * kv_width + c;
        if case.mode != 0 {
            w += raw[place] - p.product[row * stride + column];
        }
        let mut g = dout[place];
        if case.role == FirstRole::Take {
            g += old_first[place];
        }
        want_dv[place] = c1 * g;
        want_dqkv[row * stride + column] = p.factor(row) * c1 * g;
        dc0 += g * f;
        dc1 += g * w;
        match case.role {
            FirstRole::Write => want_first[place] = c0 * g,
            FirstRole::Add => want_first[place] += c0 * g,
            FirstRole::None | FirstRole::Take => {}
        }
    }
    assert_bf16(&format!("dqkv, {what}"), &dqkv.read_bf16(), &want_dqkv, 1.0);
    assert_bf16(&format!("dv, {what}"), &dv.read_bf16(), &want_dv, 1.0);
    if case.role != FirstRole::None {
        assert_bf16(
            &format!("dv_first, {what}"),
            &dv_first.read_bf16(),
            &want_first,
            1.0,
        );
    }
    let g = sigmoid(p.mix[0]);
    let want_mix = match case.mode {
        0 => [1.0, 1.0],
        1 => [1.0 + (dc0 - dc1) * g * (1.0 - g), 1.0],
        _ => [1.0 + dc0, 1.0 + dc1],
    };
    assert_f32(
        &format!("dmix, {what}"),
        &mix_grad.read_f32(),
        &want_mix,
        100.0,
    );
}

/// Attention on the results of the forward, and back to the projection.
struct Chain {
    /// Attention's input as it was stored.
    ready: Vec<f64>,
    /// The gradient of attention's input, in f64.
    dready: Vec<f64>,
    dqkv: Vec<f64>,
    gain: Vec<f64>,
    out: Vec<f64>,
    lse: Vec<f64>,
}

impl Chain {
    fn new(gpu: &Gpu, p: &Problem, device: &OnDevice, operands: &QkvOperands) -> Self {
        let (shape, rows, width) = (p.shape, p.rows as u64, p.heads * D);
        let ready = device.ready.read_bf16();
        let dout = Random::new(1).bf16(rows * width as u64, 1.0);
        let want = reference(shape, &ready, &dout);
        let out = gpu.poison(2 * rows * width as u64);
        let lse = gpu.poison(4 * shape.statistics());
        let forward = AttentionForward {
            shape,
            first: 0,
            qkv: device.ready.ptr(),
            out: out.ptr(),
            lse: lse.ptr(),
            along: None,
            gate: None,
        };
        gpu.kernels
            .attention_forward(&gpu.stream, &forward)
            .unwrap();
        let (dout, delta) = (gpu.bf16(&dout), gpu.f32(&want.delta));
        let dqkv = gpu.poison(2 * rows * p.all_columns as u64);
        let sums = gpu.poison(4 * shape.query_sums());
        let turns = gpu.f32(&vec![0.0; shape.query_turns() as usize]);
        let gain_sums = gpu.poison(4 * shape.gain_sums());
        let gain = gpu.poison(4 * shape.heads());
        let gradient = AttentionGradient {
            qkv: *operands,
            dout: dout.ptr(),
            lse: lse.ptr(),
            delta: delta.ptr(),
            dv_extra: None,
            dqkv: dqkv.ptr(),
            stride: p.all_columns as u64,
            scale: p.scale(),
            values: ValueGradient::Projected,
            gain_sums: gain_sums.ptr(),
            scratch: QuerySums {
                sums: sums.ptr(),
                turns: turns.ptr(),
            },
            order: QuerySum::Ordered,
        };
        let (kernels, stream) = (gpu.kernels, &gpu.stream);
        kernels.attention_backward(stream, &gradient).unwrap();
        kernels
            .q_gain_gradient(stream, shape, gain_sums.ptr(), gain.ptr(), false)
            .unwrap();
        gpu.wait();
        Self {
            ready,
            dready: want.dqkv,
            dqkv: dqkv.read_bf16(),
            gain: gain.read_f32(),
            out: out.read_bf16(),
            lse: lse.read_f32(),
        }
    }
}

/// The gradient of the projection against that of the unrounded one.
#[test]
fn through_attention_and_back() {
    let gpu = Gpu::new();
    for (i, case) in CASES.into_iter().enumerate() {
        if case.mode != 0 || case.tokens == 1 {
            continue;
        }
        // Odd seeds rotate another number of channels than the published one.
        let p = Problem::new(&gpu, case, 800 + i as u64);
        let device = OnDevice::new(&gpu, &p);
        let operands = device.operands(&p, false);
        device.forward(&gpu, gpu.kernels, &p, &operands);
        let chain = Chain::new(&gpu, &p, &device, &operands);
        let (mut got, mut want) = (vec![], vec![]);
        for row in 0..p.rows {
            for h in 0..p.heads + p.kv {
                let mut e = chain.dready[row * p.columns + h * D..][..D].to_vec();
                rotate(&mut e, p.angles(row), -1.0);
                e.iter_mut().for_each(|e| *e *= p.gain(h));
                let dx = norm_gradient(p.head(row, h), &e);
                want.extend(dx.iter().map(|x| p.factor(row) * x));
                got.extend(&chain.dqkv[row * p.all_columns + h * D..][..D]);
            }
        }
        let error = distance(&got, &want);
        assert!(error < 0.01, "{case:?}: distance {error}");
    }
}

/// No gain is so small that the backward could not divide by it: 0 has the gradient that the formula says, and attention sees a 0.
#[test]
fn gains_of_nothing() {
    let gpu = Gpu::new();
    for (seed, gains) in [
        (700, [0.0, 1.5]),
        (701, [-1e-30, 1e-42]),
        (702, [-0.0, 0.0]),
    ] {
        let mut p = Problem::new(
            &gpu,
            case([1, 70], [1, 2], 64, [N, N], 0, FirstRole::None),
            seed,
        );
        p.gain = gains.to_vec();
        let device = OnDevice::new(&gpu, &p);
        let operands = device.operands(&p, false);
        device.forward(&gpu, gpu.kernels, &p, &operands);
        let chain = Chain::new(&gpu, &p, &device, &operands);
        // Attention of what was stored, and of zeros in its place.
        let mut ready = chain.ready.clone();
        for (i, x) in ready.iter_mut().enumerate() {
            let head = i % p.columns / D;
            if head < 2 && gains[head].abs() < 1.0 {
                assert!(*x != 0.0 && x.abs() < 1e-17, "element {i} is {x}");
                *x = 0.0;
            }
        }
        let zeroed = OnDevice {
            ready: gpu.bf16(&ready),
            ..device
        };
        let zero = Chain::new(&gpu, &p, &zeroed, &zeroed.operands(&p, false));
        assert!(
            chain.out == zero.out,
            "{gains:?}: attention sees more than zeros"
        );
        for (a, b) in chain.lse.iter().zip(&zero.lse) {
            assert!(a == b || (a - b).abs() < 1e-15, "{gains:?}: {a}, {b}");
        }

        for h in 0..2 {
            let (mut want, mut spread) = (0.0, 0.0);
            for row in 0..p.rows {
                let x = p.head(row, h);
                let r = inverse_rms(x);
                let mut z: Vec<f64> = x.iter().map(|x| r * x).collect();
                rotate(&mut z, p.angles(row), 1.0);
                let g = &chain.dready[row * p.columns + h * D..][..D];
                want += z.iter().zip(g).map(|(z, g)| z * g).sum::<f64>();
                spread += g.iter().map(|g| g * g).sum::<f64>();
            }
            let got = chain.gain[h];
            // Each of the products with a normal number is off by less than a hundredth: a few standard deviations.
            let bound = 4.0 * 0.01 * spread.sqrt();
            assert!(
                (got - want).abs() < bound,
                "{gains:?}: the gradient of gain {h} is {got}, not {want}, within {bound}"
            );
            if gains[h].abs() < 1.0 {
                for row in chain.dqkv.chunks_exact(p.columns) {
                    assert!(row[h * D..][..D].iter().all(|x| x.abs() < 1e-15));
                }
            }
        }
    }
}

/// Sums that were left by head, over sequences and parts.
#[test]
fn gradients_of_gains() {
    let gpu = Gpu::new();
    for (seed, (sequences, tokens, kv_heads, group)) in [
        (1, 1, 1, 1),
        (3, 70, 2, 3),
        (5, 2048, 1, 8),
        (48, 300, 4, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = AttentionShape {
            sequences,
            tokens,
            kv_heads,
            group,
        };
        let sums = Random::new(seed as u64).f32(shape.gain_sums(), 1.0);
        let parts = shape.padded_tokens() as usize / 32;
        let heads = shape.heads() as usize;
        let mut want = vec![0.0; heads];
        for (i, of_head) in sums.chunks_exact(parts).enumerate() {
            want[i % heads] += of_head.iter().sum::<f64>();
        }
        for accumulate in [false, true] {
            let out = gpu.f32(&vec![3.0; heads]);
            let sums = gpu.f32(&sums);
            gpu.kernels
                .q_gain_gradient(&gpu.stream, shape, sums.ptr(), out.ptr(), accumulate)
                .unwrap();
            gpu.wait();
            let want: Vec<f64> = want
                .iter()
                .map(|x| x + if accumulate { 3.0 } else { 0.0 })
                .collect();
            assert_f32(&format!("{shape:?}"), &out.read_f32(), &want, 10.0);
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let gpu = Gpu::new();
    let p = Problem::new(
        &gpu,
        case([1, 20], [1, 2], 64, [N, N], 1, FirstRole::None),
        701,
    );
    let device = OnDevice::new(&gpu, &p);
    let run = |operands: &QkvOperands, columns: usize| {
        let x = Matrix::new(device.x.ptr(), p.rows as u64, 64);
        let weight = Matrix::new(device.weight.ptr(), columns as u64, 64);
        gpu.kernels
            .gemm_qkv(&gpu.stream, operands, x, weight, None, None)
            .unwrap_err()
            .to_string()
    };
    let narrow = run(&device.operands(&p, true), 192);
    assert!(
        narrow.contains("[20, 192]") && narrow.contains("256 columns"),
        "{narrow}"
    );
    let raw = run(&device.operands(&p, false), 256);
    assert!(raw.contains("v_raw"), "{raw}");
    let mut pitch = device.operands(&p, true);
    pitch.v_first = pitch.v_first.map(|f| FirstValue { stride: 60, ..f });
    let pitch = run(&pitch, 256);
    assert!(pitch.contains("60 elements apart"), "{pitch}");
}

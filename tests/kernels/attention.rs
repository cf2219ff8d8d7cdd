//! `attention_forward` with and without XSA and gate, and `attention_backward` behind it; `attention_decode`.

use birdie::kernels::Matrix;
use birdie::kernels::attention_backward::QuerySum;
use birdie::kernels::attention_decode::{AttentionDecode, NewKeys, decode_scratch};
use birdie::kernels::attention_forward::{AttentionForward, AttentionShape, Gate, gate_columns};
use birdie::kernels::attention_output::{
    AttentionOutput, AttentionOutputGradients, attention_output_partials,
};

use crate::attention_backward::Projection;
use crate::attention_output::{gradient, output};
use crate::device::{Buffer, Gpu};
use crate::numbers::{Random, assert_close, bf16, distance};

const D: usize = 64;

pub struct Reference {
    out: Vec<f64>,
    /// log2-sum-exp2, `[B, H, Tp]`.
    lse: Vec<f64>,
    pub delta: Vec<f64>,
    /// Gradient of attention's input.
    pub dqkv: Vec<f64>,
}

/// Attention and its gradient in f64, one query at a time.
pub fn reference(shape: AttentionShape, qkv: &[f64], dout: &[f64]) -> Reference {
    let (tokens, heads, kv_heads) = (
        shape.tokens as usize,
        shape.heads() as usize,
        shape.kv_heads as usize,
    );
    let (columns, padded) = (shape.columns() as usize, shape.padded_tokens() as usize);
    let rows = shape.sequences as usize * tokens;
    let mut r = Reference {
        out: vec![0.0; rows * heads * D],
        lse: vec![f64::INFINITY; shape.statistics() as usize],
        delta: vec![0.0; shape.statistics() as usize],
        dqkv: vec![0.0; rows * columns],
    };
    for b in 0..shape.sequences as usize {
        for h in 0..heads {
            let kv = h / shape.group as usize;
            let (key_column, value_column) = ((heads + kv) * D, (heads + kv_heads + kv) * D);
            for t in 0..tokens {
                let row = b * tokens + t;
                let query: Vec<f64> = qkv[row * columns + h * D..][..D].to_vec();
                let scores: Vec<f64> = (0..=t)
                    .map(|s| {
                        let key = &qkv[(b * tokens + s) * columns + key_column..][..D];
                        query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / 8.0
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                let statistics = (b * heads + h) * padded + t;
                r.lse[statistics] = (largest + sum.ln()) / std::f64::consts::LN_2;
                let p: Vec<f64> = scores.iter().map(|s| (s - largest).exp() / sum).collect();
                let g = &dout[(row * heads + h) * D..][..D];
                for (s, p) in p.iter().enumerate() {
                    for i in 0..D {
                        r.out[(row * heads + h) * D + i] +=
                            p * qkv[(b * tokens + s) * columns + value_column + i];
                    }
                }
                let delta: f64 = (0..D)
                    .map(|i| g[i] * r.out[(row * heads + h) * D + i])
                    .sum();
                r.delta[statistics] = delta;
                for (s, p) in p.iter().enumerate() {
                    let other = (b * tokens + s) * columns;
                    let dp: f64 = (0..D).map(|i| g[i] * qkv[other + value_column + i]).sum();
                    let ds = p * (dp - delta) / 8.0;
                    for i in 0..D {
                        r.dqkv[other + value_column + i] += p * g[i];
                        r.dqkv[other + key_column + i] += ds * query[i];
                        r.dqkv[row * columns + h * D + i] += ds * qkv[other + key_column + i];
                    }
                }
            }
        }
    }
    r
}

pub fn shape(sequences: u64, tokens: u64, kv_heads: u64, group: u64) -> AttentionShape {
    AttentionShape {
        sequences,
        tokens,
        kv_heads,
        group,
    }
}

/// Sequences, tokens, key/value heads, group: the smallest, one below and one above a tile, odd, several blocks of keys, several heads
/// and sequences; groups of 1, 2, 3, 4 and 8, the odd ones also with one half of a CTA behind the end.
const SHAPES: [(u64, u64, u64, u64); 14] = [
    (1, 1, 1, 2),
    (1, 63, 1, 2),
    (1, 65, 1, 2),
    (2, 128, 1, 2),
    (1, 200, 2, 2),
    (3, 131, 1, 2),
    (1, 384, 1, 2),
    (1, 1, 1, 1),
    (2, 64, 2, 1),
    (1, 193, 1, 1),
    (1, 129, 2, 3),
    (1, 320, 1, 3),
    (2, 67, 2, 4),
    (1, 130, 1, 8),
];

/// What a launch leaves.
struct Forward {
    out: Buffer,
    lse: Buffer,
    along: Option<Buffer>,
}

/// Rows from `first` on, outputs poisoned before.
fn forward(
    gpu: &Gpu,
    shape: AttentionShape,
    first: u64,
    qkv: &Buffer,
    xsa: bool,
    gate: Option<Gate>,
) -> Forward {
    let rows = shape.sequences * shape.tokens;
    let forward = Forward {
        out: gpu.poison(2 * rows * shape.heads() * D as u64),
        lse: gpu.poison(4 * shape.statistics()),
        along: xsa.then(|| gpu.poison(4 * shape.statistics())),
    };
    let launch = AttentionForward {
        shape,
        first,
        qkv: qkv.ptr(),
        out: forward.out.ptr(),
        lse: forward.lse.ptr(),
        along: forward.along.as_ref().map(Buffer::ptr),
        gate,
    };
    gpu.kernels.attention_forward(&gpu.stream, &launch).unwrap();
    gpu.wait();
    forward
}

#[test]
fn forward_and_backward() {
    let gpu = Gpu::new();
    for (i, (sequences, tokens, kv_heads, group)) in SHAPES.into_iter().enumerate() {
        let shape = shape(sequences, tokens, kv_heads, group);
        let rows = sequences * tokens;
        let width = shape.heads() * D as u64;
        let mut random = Random::new(100 + i as u64);
        let qkv = random.bf16(rows * shape.columns(), 1.5);
        let dout = random.bf16(rows * width, 1.0);
        let want = reference(shape, &qkv, &dout);

        let (qkv_d, dout_d) = (gpu.bf16(&qkv), gpu.bf16(&dout));
        let Forward { out, lse, .. } = forward(&gpu, shape, 0, &qkv_d, false, None);
        assert_close(
            &format!("out {shape:?}"),
            &out.read_bf16(),
            &want.out,
            0.01,
            0.02,
        );
        assert_close(
            &format!("lse {shape:?}"),
            &lse.read_f32(),
            &want.lse,
            1e-4,
            1e-4,
        );

        for (j, order) in [QuerySum::Ordered, QuerySum::Unordered]
            .into_iter()
            .enumerate()
        {
            let projection = Projection::new(&gpu, shape, (2 * i + j) as u64);
            let got = projection.backward(&gpu, &qkv_d, &dout_d, &lse, &want.delta, order);
            projection.check(&format!("{shape:?} {order:?}"), &qkv, &want.dqkv, &got);
        }
    }
}

#[test]
fn rows_do_not_depend_on_later_tokens() {
    let gpu = Gpu::new();
    let (long, short) = (shape(1, 150, 1, 2), shape(1, 90, 1, 2));
    let qkv = Random::new(7).bf16(150 * long.columns(), 1.0);
    let run = |shape: AttentionShape| {
        let qkv = gpu.bf16(&qkv[..(shape.tokens * shape.columns()) as usize]);
        forward(&gpu, shape, 0, &qkv, false, None).out.read_bf16()
    };
    let (long, short) = (run(long), run(short));
    // Different tiles may round differently; the values are the same.
    assert_close("shared rows", &long[..short.len()], &short, 0.01, 0.01);
}

#[test]
fn large_scores_do_not_overflow() {
    let gpu = Gpu::new();
    let shape = shape(1, 70, 1, 2);
    let qkv: Vec<f64> = Random::new(8).bf16(70 * shape.columns(), 30.0);
    let dout = vec![1.0; 70 * 128];
    let want = reference(shape, &qkv, &dout);
    let got = forward(&gpu, shape, 0, &gpu.bf16(&qkv), false, None);
    let rounded: Vec<f64> = want.out.iter().map(|&x| bf16(x)).collect();
    assert!(distance(&got.out.read_bf16(), &rounded) < 0.01);
}

/// Gate logits behind q, k and v, and their bias.
struct Gates {
    raw: Vec<f64>,
    bias: Vec<f64>,
    stride: usize,
    on_device: (Buffer, Buffer),
}

impl Gates {
    fn new(gpu: &Gpu, shape: AttentionShape, random: &mut Random) -> Self {
        let stride = shape.columns() + gate_columns(shape);
        let raw = random.bf16(shape.sequences * shape.tokens * stride, 1.5);
        let bias = random.f32(shape.heads(), 1.0);
        Self {
            on_device: (gpu.bf16(&raw), gpu.f32(&bias)),
            stride: stride as usize,
            raw,
            bias,
        }
    }

    /// The logits lie behind other columns.
    fn operand(&self, shape: AttentionShape) -> Gate {
        Gate {
            logits: self.on_device.0.ptr().offset(2 * shape.columns()),
            stride: self.stride as u64,
            bias: self.on_device.1.ptr(),
        }
    }

    fn logit(&self, shape: AttentionShape, row: usize, head: usize) -> f64 {
        self.raw[row * self.stride + shape.columns() as usize + head] + self.bias[head]
    }
}

/// Every row and head with its token's own value, its logit and its place in the statistics.
fn each_row<'a>(
    shape: AttentionShape,
    qkv: &'a [f64],
    gates: Option<&'a Gates>,
) -> impl Iterator<Item = (usize, usize, &'a [f64], Option<f64>, usize)> + use<'a> {
    let (heads, tokens) = (shape.heads() as usize, shape.tokens as usize);
    let (columns, padded) = (shape.columns() as usize, shape.padded_tokens() as usize);
    let first_value = heads + shape.kv_heads as usize;
    let rows = shape.sequences as usize * tokens;
    (0..rows)
        .flat_map(move |row| (0..heads).map(move |head| (row, head)))
        .map(move |(row, head)| {
            let v = &qkv[row * columns + (first_value + head / shape.group as usize) * D..][..D];
            let statistic = ((row / tokens) * heads + head) * padded + row % tokens;
            let logit = gates.map(|g| g.logit(shape, row, head));
            (row, head, v, logit, statistic)
        })
}

/// XSA and gate: the output, and the gradients through preprocess and backward.
#[test]
fn xsa_and_gate_both_ways() {
    let gpu = Gpu::new();
    for (i, ((sequences, tokens, kv_heads, group), xsa, gated)) in [
        ((1, 1, 1, 2), true, true),
        ((1, 65, 1, 2), true, false),
        ((2, 64, 2, 1), true, true),
        ((2, 130, 1, 1), true, false),
        ((1, 131, 1, 3), false, true),
        ((1, 200, 2, 3), true, true),
        ((2, 67, 2, 4), true, true),
        ((1, 129, 1, 8), false, true),
        // More key blocks than stages: the diagonal's V is of the first trip, and read after all others.
        ((1, 650, 1, 2), true, true),
        ((1, 700, 1, 1), true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = shape(sequences, tokens, kv_heads, group);
        let what = format!("{shape:?}, xsa {xsa}, gate {gated}");
        let rows = (sequences * tokens) as usize;
        let (heads, kv) = (shape.heads() as usize, kv_heads as usize);
        let width = heads * D;
        let mut random = Random::new(300 + i as u64);
        let qkv = random.bf16(rows as u64 * shape.columns(), 1.5);
        let dout = random.bf16((rows * width) as u64, 1.0);
        let gates = gated.then(|| Gates::new(&gpu, shape, &mut random));
        let y = reference(shape, &qkv, &vec![0.0; rows * width]).out;

        let (mut want_out, mut want_dy) = (vec![], vec![]);
        let mut want_along = vec![0.0; shape.statistics() as usize];
        let mut want_dv = vec![0.0; rows * kv * D];
        let mut want_dlogits = vec![];
        for (row, head, v, logit, statistic) in each_row(shape, &qkv, gates.as_ref()) {
            let place = (row * heads + head) * D;
            let (y, dout) = (&y[place..][..D], &dout[place..][..D]);
            let (out, along) = output(y, v, xsa, logit);
            let (dy, dv, dlogit) = gradient(y, along, v, dout, xsa, logit);
            want_out.extend(out);
            want_dy.extend(dy);
            want_along[statistic] = along;
            want_dlogits.push(dlogit);
            let sums = &mut want_dv[(row * kv + head / group as usize) * D..][..D];
            sums.iter_mut().zip(dv).for_each(|(sum, dv)| *sum += dv);
        }

        let qkv_d = gpu.bf16(&qkv);
        let gate = gates.as_ref().map(|g| g.operand(shape));
        let left = forward(&gpu, shape, 0, &qkv_d, xsa, gate);
        let got = left.out.read_bf16();
        assert_close(&format!("out, {what}"), &got, &want_out, 0.01, 0.02);
        if let Some(along) = &left.along {
            let got = along.read_f32();
            assert_close(&format!("along, {what}"), &got, &want_along, 0.01, 0.02);
        }

        // The output projection is 1, so that the gradient of its result is that of its input.
        let one: Vec<f64> = (0..width * width)
            .map(|i| f64::from(u8::from(i % (width + 1) == 0)))
            .collect();
        let (dx_d, one_d) = (gpu.bf16(&dout), gpu.bf16(&one));
        let dout_d = gpu.poison((2 * rows * width) as u64);
        let (dy, delta) = (
            gpu.poison((2 * rows * width) as u64),
            gpu.poison(4 * shape.statistics()),
        );
        let dv = gpu.poison((2 * rows * kv * D) as u64);
        let stride = gates.as_ref().map_or(0, |g| g.stride);
        let dqkv = gpu.poison((2 * rows * stride).max(2) as u64);
        let partials = u64::from(attention_output_partials(shape, xsa));
        let partial = gpu.poison(4 * partials * shape.heads());
        let operands = AttentionOutput {
            shape,
            out: left.out.ptr(),
            qkv_in: qkv_d.ptr(),
            along: left.along.as_ref().map(Buffer::ptr),
            gate,
        };
        let gradients = AttentionOutputGradients {
            dy: dy.ptr(),
            delta: delta.ptr(),
            dv_extra: xsa.then(|| dv.ptr()),
            dqkv: gated.then(|| dqkv.ptr()),
            dqkv_stride: stride as u64,
            scale: None,
            partial: gated.then(|| partial.ptr()),
        };
        gpu.kernels
            .attention_output_gradient(
                &gpu.stream,
                [
                    Matrix::new(dx_d.ptr(), rows as u64, width as u64),
                    Matrix::new(one_d.ptr(), width as u64, width as u64),
                ],
                dout_d.ptr(),
                &operands,
                &gradients,
            )
            .unwrap();
        gpu.wait();
        if xsa {
            let got = dv.read_bf16();
            assert_close(&format!("dv of xsa, {what}"), &got, &want_dv, 0.02, 0.02);
        }
        if gated {
            let got = dqkv.read_bf16();
            let rows = got.chunks_exact(stride);
            let got: Vec<f64> = rows
                .flat_map(|row| row[shape.columns() as usize..][..heads].to_vec())
                .collect();
            assert_close(&format!("dlogits, {what}"), &got, &want_dlogits, 0.02, 0.03);
        }
        let want = reference(shape, &qkv, &want_dy).dqkv;
        let delta = delta.read_f32();
        let order = QuerySum::Ordered;
        let projection = Projection::new(&gpu, shape, 40 + i as u64);
        let got = projection.backward(&gpu, &qkv_d, &dy, &left.lse, &delta, order);
        projection.check(&what, &qkv, &want, &got);
    }
}

#[test]
fn rows_of_a_window() {
    let gpu = Gpu::new();
    for (shape, first, xsa, gated) in [
        (shape(2, 300, 1, 2), 200, false, false),
        (shape(1, 400, 1, 3), 300, false, false),
        (shape(2, 300, 1, 2), 200, true, true),
        (shape(1, 700, 1, 3), 640, true, true),
        (shape(1, 650, 1, 4), 649, true, false),
    ] {
        let rows = (shape.sequences * shape.tokens) as usize;
        let width = shape.heads() as usize * D;
        let mut random = Random::new(9);
        let qkv = random.bf16(rows as u64 * shape.columns(), 1.5);
        let gates = gated.then(|| Gates::new(&gpu, shape, &mut random));
        let y = reference(shape, &qkv, &vec![0.0; rows * width]).out;
        let want: Vec<f64> = each_row(shape, &qkv, gates.as_ref())
            .zip(y.chunks_exact(D))
            .flat_map(|((_, _, v, logit, _), y)| output(y, v, xsa, logit).0)
            .collect();
        let gate = gates.as_ref().map(|g| g.operand(shape));
        let got = forward(&gpu, shape, first, &gpu.bf16(&qkv), xsa, gate);
        let got = got.out.read_bf16();
        for b in 0..shape.sequences as usize {
            let start = b * shape.tokens as usize;
            let scored = (start + first as usize) * width..(start + shape.tokens as usize) * width;
            let what = format!("{shape:?} from {first}, xsa {xsa}, gate {gated}");
            assert_close(&what, &got[scored.clone()], &want[scored], 0.01, 0.02);
            // Whole tiles before the window are left alone.
            assert!(
                got[start * width..(start + 128) * width]
                    .iter()
                    .all(|x| x.is_nan())
            );
        }
    }
}

/// The new tokens' keys and values join the cache, then they attend to it.
#[test]
fn decoding_one_token() {
    let gpu = Gpu::new();
    // A cache longer than any context; contexts of one key, of less than a part, odd ones, the whole cache.
    for (shape, lengths, xsa, gated) in [
        (shape(1, 1, 1, 1), vec![1], false, false),
        (shape(1, 1, 1, 2), vec![1], true, true),
        (shape(3, 200, 2, 2), vec![1, 63, 200], true, true),
        (shape(2, 700, 1, 3), vec![129, 501], true, false),
        (shape(2, 300, 3, 1), vec![257, 2], false, true),
        (shape(1, 1024, 1, 8), vec![1024], false, false),
    ] {
        let what = format!("{shape:?}, xsa {xsa}, gate {gated}");
        let (sequences, tokens) = (shape.sequences as usize, shape.tokens as usize);
        let (columns, width) = (shape.columns() as usize, shape.heads() as usize * D);
        let both = columns - width; // k | v
        let mut random = Random::new(10);
        let qkv = random.bf16((sequences * tokens * columns) as u64, 1.5);
        let one = AttentionShape { tokens: 1, ..shape };
        let gates = gated.then(|| Gates::new(&gpu, one, &mut random));
        let y = reference(shape, &qkv, &vec![0.0; sequences * tokens * width]).out;
        let row = |b: usize| b * tokens + lengths[b] as usize - 1;
        let mut want = vec![];
        for (b, head) in (0..sequences).flat_map(|b| (0..width / D).map(move |h| (b, h))) {
            let column = width + both / 2 + head / shape.group as usize * D;
            let v = &qkv[row(b) * columns + column..][..D];
            let logit = gates.as_ref().map(|g| g.logit(one, b, head));
            let y = &y[row(b) * width + head * D..][..D];
            want.extend(output(y, v, xsa, logit).0);
        }
        // What lies behind a context is not looked at, and the new token is not there yet.
        let mut cache: Vec<f64> = qkv
            .chunks_exact(columns)
            .flat_map(|row| row[width..].to_vec())
            .collect();
        for b in 0..sequences {
            cache[row(b) * both..(b + 1) * tokens * both].fill(f64::NAN);
        }
        let new: Vec<f64> = (0..sequences)
            .flat_map(|b| qkv[row(b) * columns..][..columns].to_vec())
            .collect();
        let (new, cache) = (gpu.bf16(&new), gpu.bf16(&cache));
        let bits: Vec<u16> = lengths
            .iter()
            .flat_map(|&n: &i32| [n as u16, (n >> 16) as u16])
            .collect();
        let (lengths_d, scratch) = (gpu.u16(&bits), gpu.poison(4 * decode_scratch(shape)));
        let out = gpu.poison((2 * sequences * (width + 2)) as u64);
        let append = NewKeys {
            shape,
            keys_values: new.ptr().offset(2 * width as u64),
            stride: columns as u64,
            lengths: lengths_d.ptr(),
            cache: cache.ptr(),
        };
        gpu.kernels
            .attention_decode_append(&gpu.stream, &append)
            .unwrap();
        let decode = AttentionDecode {
            shape,
            q: new.ptr(),
            q_stride: columns as u64,
            k: cache.ptr(),
            v: cache.ptr().offset(both as u64),
            kv_stride: both as u64,
            kv_sequence: (tokens * both) as u64,
            lengths: lengths_d.ptr(),
            scratch: scratch.ptr(),
            xsa,
            gate: gates.as_ref().map(|g| g.operand(shape)),
            out: out.ptr(),
            out_stride: width as u64 + 2,
        };
        gpu.kernels.attention_decode(&gpu.stream, &decode).unwrap();
        gpu.wait();
        let got: Vec<f64> = out
            .read_bf16()
            .chunks_exact(width + 2)
            .flat_map(|row| row[..width].to_vec())
            .collect();
        assert_close(&what, &got, &want, 0.006, 0.006);
    }
}

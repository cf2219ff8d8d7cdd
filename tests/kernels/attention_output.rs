//! `attention_output`: the backward of XSA and gate from what `attention_forward` leaves. Both together are in `attention.rs`.

use birdie::kernels::attention_forward::{AttentionShape, Gate, gate_columns};
use birdie::kernels::attention_output::{
    AttentionOutput, AttentionOutputGradients, attention_output_partials,
};

use crate::device::Gpu;
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

#[test]
fn gradient_of_xsa_and_gate() {
    let gpu = Gpu::new();
    for (i, (sequences, tokens, kv_heads, group, xsa, gated)) in [
        (1, 1, 1, 2, true, true),
        (2, 65, 1, 2, false, false),
        (2, 65, 1, 2, true, false),
        (1, 70, 2, 2, false, true),
        (1, 40, 4, 2, true, true),
        (1, 33, 8, 2, true, true),
        (2, 37, 1, 1, true, true),
        (1, 66, 3, 1, true, true),
        (2, 41, 5, 3, true, true),
        (1, 23, 3, 4, false, false),
        (1, 19, 1, 32, true, true),
        (1, 35, 32, 1, true, true),
        (1, 5, 2, 32, true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let what =
            format!("{sequences} x {tokens}, KV {kv_heads} x {group}, xsa {xsa}, gate {gated}");
        let shape = AttentionShape {
            sequences,
            tokens,
            kv_heads,
            group,
        };
        let (heads, kv, columns) = (
            shape.heads() as usize,
            kv_heads as usize,
            shape.columns() as usize,
        );
        let rows = (sequences * tokens) as usize;
        let gates = gate_columns(shape) as usize;
        let stride = columns + gates;
        let mut random = Random::new(200 + i as u64);
        let raw_y = random.bf16((rows * heads * D) as u64, 1.0);
        let qkv_in = random.bf16((rows * columns) as u64, 1.0);
        let logits = random.bf16((rows * gates) as u64, 1.0);
        let bias = random.f32(heads as u64, 1.0);
        let dout = random.bf16((rows * heads * D) as u64, 1.0);

        let padded = shape.padded_tokens() as usize;
        // What the forward leaves, and the y that this stands for.
        let (mut out, mut y) = (vec![], vec![]);
        let mut along = vec![0.0; shape.statistics() as usize];
        for (row, h) in (0..rows).flat_map(|row| (0..heads).map(move |h| (row, h))) {
            let v = &qkv_in[row * columns + (heads + kv + h / group as usize) * D..][..D];
            let logit = gated.then(|| logits[row * gates + h] + bias[h]);
            let (o, a) = output(&raw_y[(row * heads + h) * D..][..D], v, xsa, logit);
            let a = f64::from(a as f32);
            along[((row / tokens as usize) * heads + h) * padded + row % tokens as usize] = a;
            let (_, unit) = unit(v);
            let s = logit.map_or(1.0, sigmoid);
            y.extend(o.iter().zip(&unit).map(|(&o, u)| bf16(o) / s + a * u));
            out.extend(o);
        }
        let (out_d, in_d, logits_d) = (gpu.bf16(&out), gpu.bf16(&qkv_in), gpu.bf16(&logits));
        let along_d = gpu.f32(&along);
        let (bias_d, dout_d) = (gpu.f32(&bias), gpu.bf16(&dout));
        let operands = AttentionOutput {
            shape,
            out: out_d.ptr(),
            qkv_in: in_d.ptr(),
            along: xsa.then(|| along_d.ptr()),
            gate: gated.then(|| Gate {
                logits: logits_d.ptr(),
                stride: gates as u64,
                bias: bias_d.ptr(),
            }),
        };
        let dy = gpu.poison(2 * y.len() as u64);
        let delta = gpu.poison(4 * shape.statistics());
        let dv = gpu.poison((2 * rows * kv * D) as u64);
        let dqkv = gpu.poison((2 * rows * stride) as u64);
        let grid = u64::from(attention_output_partials(shape));
        let partial = gpu.poison(4 * grid * heads as u64);
        let plain = !xsa && !gated;
        let sums = Sums::new(&gpu, 220 + i as u64, rows as u64, 512, 4);
        let scale = (i % 3 != 0).then(|| sums.scale());
        gpu.kernels
            .attention_output_backward(
                &gpu.stream,
                &operands,
                &AttentionOutputGradients {
                    dout: dout_d.ptr(),
                    dy: (!plain).then(|| dy.ptr()),
                    delta: delta.ptr(),
                    dv_extra: xsa.then(|| dv.ptr()),
                    dqkv: gated.then(|| dqkv.ptr()),
                    scale,
                    dqkv_stride: stride as u64,
                    partial: gated.then(|| partial.ptr()),
                },
            )
            .unwrap();
        gpu.wait();

        let mut want_dy = vec![];
        let mut want_dv = vec![0.0; rows * kv * D];
        let mut want_delta = vec![0.0; shape.statistics() as usize];
        let (mut want_logits, mut want_bias) = (vec![0.0; rows * gates], vec![0.0; heads]);
        for row in 0..rows {
            for h in 0..heads {
                let place = (row * heads + h) * D;
                let v = &qkv_in[row * columns + (heads + kv + h / group as usize) * D..][..D];
                let logit = gated.then(|| logits[row * gates + h] + bias[h]);
                let (b, t) = (row / tokens as usize, row % tokens as usize);
                let statistic = (b * heads + h) * padded + t;
                let (y, dout) = (&y[place..][..D], &dout[place..][..D]);
                let (d, dv, dlogit) = gradient(y, along[statistic], v, dout, xsa, logit);
                want_delta[statistic] = dot(&d, y);
                want_dy.extend(d);
                for i in 0..D {
                    want_dv[(row * kv + h / group as usize) * D + i] += dv[i];
                }
                let factor = scale.map_or(1.0, |_| sums.factors[row]);
                want_logits[row * gates + h] = factor * dlogit;
                want_bias[h] += dlogit;
            }
        }
        // Delta belongs to dy as it is stored (which is compared below): what it did not share with dy would not cancel in attention.
        if !plain {
            let stored = dy.read_bf16();
            for (row, h) in (0..rows).flat_map(|row| (0..heads).map(move |h| (row, h))) {
                let place = (row * heads + h) * D;
                let (b, t) = (row / tokens as usize, row % tokens as usize);
                want_delta[(b * heads + h) * padded + t] = stored[place..][..D]
                    .iter()
                    .zip(&y[place..])
                    .map(|(d, y)| d * y)
                    .sum();
            }
        }
        assert_f32(
            &format!("delta, {what}"),
            &delta.read_f32(),
            &want_delta,
            8.0,
        );
        if !plain {
            assert_bf16(&format!("dy, {what}"), &dy.read_bf16(), &want_dy, 1.0);
        }
        if xsa {
            assert_bf16(&format!("dv, {what}"), &dv.read_bf16(), &want_dv, 2.0);
        }
        if gated {
            let got: Vec<f64> = dqkv
                .read_bf16()
                .chunks_exact(stride)
                .flat_map(|row| row[columns..].to_vec())
                .collect();
            assert_close(
                &format!("dlogits, {what}"),
                &got,
                &want_logits,
                0.006,
                0.004,
            );
            let sums = partial.read_f32();
            let got: Vec<f64> = (0..heads)
                .map(|h| sums.iter().skip(h).step_by(heads).sum())
                .collect();
            assert_f32(&format!("dbias, {what}"), &got, &want_bias, 10.0);
        }
    }
}

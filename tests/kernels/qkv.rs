use birdie::kernels::attention_forward::AttentionShape;
use birdie::kernels::qkv::{
    FirstRole, QkvGradients, QkvOperands, ValueEmbedding, ValueMix, qkv_partials, rope_table,
};

use crate::device::Gpu;
use crate::numbers::{Random, assert_bf16, assert_f32, inverse_rms, norm_gradient, sigmoid};
use crate::row_scale::Sums;

const D: usize = 64;

/// Rotates the channels of a head for which there are angles; `sign` -1 is the transpose.
fn rotate(x: &mut [f64], rope: &[f64], sign: f64) {
    let pairs = rope.len() / 2;
    for i in 0..pairs {
        let (cosine, sine) = (rope[i], sign * rope[pairs + i]);
        let (a, b) = (x[i], x[i + pairs]);
        x[i] = a * cosine + b * sine;
        x[i + pairs] = b * cosine - a * sine;
    }
}

#[test]
fn both_ways_in_every_mode() {
    let gpu = Gpu::new();
    // sequences, tokens, KV and heads for each, value embedding, mix, gate columns, role of dv_first
    let cases = [
        (1u64, 1u64, (1u64, 2u64), false, 0, 0u64, FirstRole::None),
        (2, 33, (1, 2), true, 1, 0, FirstRole::Write),
        (1, 70, (2, 2), false, 2, 16, FirstRole::Add),
        (1, 40, (4, 2), true, 2, 16, FirstRole::Add),
        (2, 19, (1, 2), false, 0, 0, FirstRole::Take),
        (1, 9, (8, 2), true, 1, 0, FirstRole::Add),
        (2, 45, (1, 1), true, 2, 16, FirstRole::Add),
        (1, 71, (3, 1), true, 1, 0, FirstRole::Write),
        (1, 39, (3, 4), false, 2, 16, FirstRole::Add),
        (2, 21, (5, 3), true, 1, 0, FirstRole::Add),
        (1, 13, (1, 32), false, 0, 32, FirstRole::Take),
        (1, 11, (32, 1), true, 2, 32, FirstRole::Write),
        (1, 5, (2, 32), true, 1, 0, FirstRole::Add),
    ];
    for (i, (sequences, tokens, (kv_heads, group), embedded, mode, extra_columns, role)) in
        cases.into_iter().enumerate()
    {
        let what = format!("case {i}");
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
        let stride = columns + extra_columns as usize;
        let kv_width = kv * D;
        let vocabulary = 50;
        let mut random = Random::new(500 + i as u64);
        let mut tensor = |n: usize| random.bf16(n as u64, 1.0);
        let (qkv, first, dout) = (
            tensor(rows * stride),
            tensor(rows * stride),
            tensor(rows * columns),
        );
        let (extra, old_first, table) = (
            tensor(rows * kv_width),
            tensor(rows * kv_width),
            tensor(vocabulary * kv_width),
        );
        let (gain, mix, ve_scale) = (
            random.f32(heads as u64, 1.0),
            random.f32(2, 1.0),
            random.f32(1, 1.0),
        );
        let ids = random.ids(rows as u64, vocabulary as u64);
        // Every second case rotates the published 16 channels.
        let rope_dims = [16, 64, 16, 2, 16, 32, 16, 6, 16, 62, 16, 24, 16][i];
        let rope: Vec<f64> = rope_table(tokens, 10_000.0, rope_dims)
            .into_iter()
            .map(f64::from)
            .collect();

        let (qkv_d, first_d, dout_d) = (gpu.bf16(&qkv), gpu.bf16(&first), gpu.bf16(&dout));
        let (extra_d, table_d, ids_d) = (gpu.bf16(&extra), gpu.bf16(&table), gpu.u16(&ids));
        let (gain_d, mix_d, scale_d, rope_d) = (
            gpu.f32(&gain),
            gpu.f32(&mix),
            gpu.f32(&ve_scale),
            gpu.f32(&rope),
        );
        let value_mix = match mode {
            0 => ValueMix::None,
            1 => ValueMix::Gate {
                parameter: mix_d.ptr(),
            },
            _ => ValueMix::Lambda {
                parameters: mix_d.ptr(),
            },
        };
        let operands = QkvOperands {
            shape,
            qkv: qkv_d.ptr(),
            stride: stride as u64,
            q_gain: gain_d.ptr(),
            rope: rope_d.ptr(),
            rope_dims,
            value_embedding: embedded.then(|| ValueEmbedding {
                ids: ids_d.ptr(),
                table: table_d.ptr(),
                vocabulary: vocabulary as u64,
                scale: scale_d.ptr(),
            }),
            mix: value_mix,
            first_qkv: (mode != 0).then(|| first_d.ptr()),
            first_stride: stride as u64,
        };
        let out = gpu.poison((2 * rows * columns) as u64);
        gpu.kernels
            .qkv_forward(&gpu.stream, &operands, out.ptr())
            .unwrap();

        let dqkv = gpu.bf16(&vec![7.0; rows * stride]);
        let dv_first = if role == FirstRole::Write {
            gpu.poison((2 * rows * kv_width) as u64)
        } else {
            gpu.bf16(&old_first)
        };
        let grid = u64::from(qkv_partials(shape));
        let partial = gpu.poison(4 * grid * (heads as u64 + 2));
        let with_extra = i % 2 == 0;
        let sums = Sums::new(&gpu, 320 + i as u64, rows as u64, 512, 1);
        let scale = (i % 3 != 0).then(|| sums.scale());
        let dv = gpu.poison((2 * rows * kv_width) as u64);
        gpu.kernels
            .qkv_backward(
                &gpu.stream,
                &operands,
                &QkvGradients {
                    dout: dout_d.ptr(),
                    dv_extra: with_extra.then(|| extra_d.ptr()),
                    dqkv: dqkv.ptr(),
                    scale,
                    dv_first: (role != FirstRole::None).then(|| dv_first.ptr()),
                    role,
                    dv: embedded.then(|| dv.ptr()),
                    partial: partial.ptr(),
                },
            )
            .unwrap();
        let (gain_grad, mix_grad) = (gpu.f32(&vec![1.0; heads]), gpu.f32(&[1.0, 1.0]));
        gpu.kernels
            .qkv_backward_finish(
                &gpu.stream,
                shape,
                partial.ptr(),
                gain_grad.ptr(),
                value_mix,
                Some(mix_grad.ptr()),
                true,
            )
            .unwrap();
        gpu.wait();

        let g = sigmoid(mix[0]);
        let (c0, c1) = match mode {
            0 => (0.0, 1.0),
            1 => (g, 1.0 - g),
            _ => (mix[0], mix[1]),
        };
        let mut want_out = vec![0.0; rows * columns];
        let mut want_dqkv = vec![7.0; rows * stride];
        let mut want_first = old_first.clone();
        let (mut want_gain, mut dc0, mut dc1) = (vec![1.0; heads], 0.0, 0.0);
        for row in 0..rows {
            let angles = &rope[row % tokens as usize * rope_dims as usize..][..rope_dims as usize];
            for h in 0..heads + kv {
                let x = &qkv[row * stride + h * D..][..D];
                let r = inverse_rms(x);
                let y: Vec<f64> = x.iter().map(|x| x * r).collect();
                let factor = if h < heads { gain[h] } else { 1.0 };
                let mut z = y.clone();
                rotate(&mut z, angles, 1.0);
                for c in 0..D {
                    want_out[row * columns + h * D + c] = factor * z[c];
                }
                let mut e = dout[row * columns + h * D..][..D].to_vec();
                if h < heads {
                    want_gain[h] += e.iter().zip(&z).map(|(e, z)| e * z).sum::<f64>();
                }
                rotate(&mut e, angles, -1.0);
                let e: Vec<f64> = e.iter().map(|e| factor * e).collect();
                want_dqkv[row * stride + h * D..][..D].copy_from_slice(&norm_gradient(x, &e));
            }
            for c in 0..kv_width {
                let column = (heads + kv) * D + c;
                let mut w = qkv[row * stride + column];
                if embedded {
                    w += ve_scale[0] * table[ids[row] as usize * kv_width + c];
                }
                let f = first[row * stride + column];
                want_out[row * columns + column] = c0 * f + c1 * w;
                let place = row * kv_width + c;
                let mut dv = dout[row * columns + column];
                if with_extra {
                    dv += extra[place];
                }
                if role == FirstRole::Take {
                    dv += old_first[place];
                }
                want_dqkv[row * stride + column] = c1 * dv;
                dc0 += dv * f;
                dc1 += dv * w;
                match role {
                    FirstRole::Write => want_first[place] = c0 * dv,
                    FirstRole::Add => want_first[place] += c0 * dv,
                    FirstRole::None | FirstRole::Take => {}
                }
            }
        }
        let want_dv: Vec<f64> = want_dqkv
            .chunks_exact(stride)
            .flat_map(|row| row[(heads + kv) * D..][..kv_width].to_vec())
            .collect();
        if embedded {
            assert_bf16(&format!("dv, {what}"), &dv.read_bf16(), &want_dv, 1.0);
        }
        if scale.is_some() {
            for (row, factor) in want_dqkv.chunks_exact_mut(stride).zip(&sums.factors) {
                row[..columns].iter_mut().for_each(|x| *x *= factor);
            }
        }
        assert_bf16(&format!("out, {what}"), &out.read_bf16(), &want_out, 1.0);
        assert_bf16(&format!("dqkv, {what}"), &dqkv.read_bf16(), &want_dqkv, 1.0);
        if role != FirstRole::None {
            assert_bf16(
                &format!("dv_first, {what}"),
                &dv_first.read_bf16(),
                &want_first,
                1.0,
            );
        }
        assert_f32(
            &format!("dq_gain, {what}"),
            &gain_grad.read_f32(),
            &want_gain,
            30.0,
        );
        let want_mix = match mode {
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
}

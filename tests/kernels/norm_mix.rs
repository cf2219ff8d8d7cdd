use birdie::kernels::attention_forward::AttentionShape;
use birdie::kernels::norm_mix::{Entry, Mix, MixGradients, ResidualDot, row_partials};
use birdie::kernels::row_scale::square_parts;

use crate::device::Gpu;
use crate::numbers::{Random, assert_bf16, assert_close, assert_f32, inverse_rms, norm_gradient};

/// Rows and width: the smallest, odd row counts, widths of all kernels.
const SHAPES: [(u64, u64); 9] = [
    (1, 64),
    (37, 128),
    (70, 192),
    (5, 512),
    (300, 128),
    (19, 576),
    (6, 1024),
    (7, 1088),
    (3, 2048),
];

fn normed(x: &[f64], s: f64, d: usize) -> Vec<f64> {
    x.chunks_exact(d)
        .flat_map(|row| {
            let r = inverse_rms(row);
            row.iter().map(move |x| s * x * r).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn norm_both_ways() {
    let gpu = Gpu::new();
    for (i, (rows, d)) in SHAPES.into_iter().enumerate() {
        let mut random = Random::new(300 + i as u64);
        let s = 0.577f32;
        let (x, dy, g) = (
            random.bf16(rows * d, 2.0),
            random.bf16(rows * d, 1.0),
            random.bf16(rows * d, 1.0),
        );
        let (xd, dyd, gd) = (gpu.bf16(&x), gpu.bf16(&dy), gpu.bf16(&g));
        let (y, dx, alone) = (
            gpu.poison(2 * rows * d),
            gpu.poison(2 * rows * d),
            gpu.poison(2 * rows * d),
        );
        let k = gpu.kernels;
        k.norm_forward(&gpu.stream, xd.ptr(), y.ptr(), s, rows, d)
            .unwrap();
        k.norm_backward(
            &gpu.stream,
            Some(gd.ptr()),
            xd.ptr(),
            dyd.ptr(),
            dx.ptr(),
            true,
            rows,
            d,
        )
        .unwrap();
        k.norm_backward(
            &gpu.stream,
            None,
            xd.ptr(),
            dyd.ptr(),
            alone.ptr(),
            false,
            rows,
            d,
        )
        .unwrap();
        gpu.wait();
        let d = d as usize;
        assert_bf16("y", &y.read_bf16(), &normed(&x, f64::from(s), d), 0.5);
        let gradient = |scaled: bool| -> Vec<f64> {
            x.chunks_exact(d)
                .zip(dy.chunks_exact(d))
                .flat_map(|(x, dy)| {
                    let factor = if scaled { 1.0 / inverse_rms(x) } else { 1.0 };
                    norm_gradient(x, &dy.iter().map(|e| factor * e).collect::<Vec<_>>())
                })
                .collect()
        };
        assert_bf16("dx alone", &alone.read_bf16(), &gradient(false), 0.5);
        let sum: Vec<f64> = gradient(true).iter().zip(&g).map(|(a, b)| a + b).collect();
        assert_bf16("dx", &dx.read_bf16(), &sum, 1.0);
    }
}

#[test]
fn tiny_rows_use_the_published_epsilon() {
    let gpu = Gpu::new();
    let x: Vec<f64> = Random::new(1).bf16(128, 3e-4);
    let (xd, y) = (gpu.bf16(&x), gpu.poison(256));
    gpu.kernels
        .norm_forward(&gpu.stream, xd.ptr(), y.ptr(), 1.0, 1, 128)
        .unwrap();
    gpu.wait();
    assert_bf16("y", &y.read_bf16(), &normed(&x, 1.0, 128), 0.5);
}

const ENTRIES: [&str; 4] = ["plain", "skip", "skip of x", "recycle"];

#[test]
fn mix_both_ways() {
    let gpu = Gpu::new();
    for (i, (rows, d)) in SHAPES.into_iter().enumerate() {
        for kind in 0..4 {
            let what = format!("[{rows}, {d}], {}", ENTRIES[kind as usize]);
            let mut random = Random::new(400 + 10 * i as u64 + kind);
            let n = rows * d;
            let mut row = || random.bf16(n, 1.0);
            let (x, x0, skip, sum, extra, old) = (row(), row(), row(), row(), row(), row());
            let mut vector = || random.f32(d, 1.0);
            let (m0, m1, a, b) = (vector(), vector(), vector(), vector());
            // dx1 . x_in, as the dots of dx1 and x1 less delta of all heads. Heads do not have to fill the row here.
            let shape = AttentionShape {
                sequences: if rows % 2 == 0 { 2 } else { 1 },
                tokens: if rows % 2 == 0 { rows / 2 } else { rows },
                kv_heads: 1 + i as u64,
                group: 1 + kind,
            };
            let dots = random.f32(square_parts(d) * rows, d as f64);
            let delta = random.f32(shape.statistics(), 30.0);
            let mix_vector: Vec<f64> = m0.iter().chain(&m1).copied().collect();

            let (xd, x0d, skipd, ad, bd) = (
                gpu.bf16(&x),
                gpu.bf16(&x0),
                gpu.bf16(&skip),
                gpu.f32(&a),
                gpu.f32(&b),
            );
            let mixd = gpu.f32(&mix_vector);
            let entry = match kind {
                0 => Entry::Plain,
                1 => Entry::Skip {
                    skip: skipd.ptr(),
                    weight: ad.ptr(),
                },
                2 => Entry::Skip {
                    skip: xd.ptr(),
                    weight: ad.ptr(),
                },
                _ => Entry::Recycle {
                    scale: ad.ptr(),
                    bias: bd.ptr(),
                },
            };
            let mix = Mix {
                rows,
                d,
                x: xd.ptr(),
                x0: x0d.ptr(),
                entry,
                resid_mix: mixd.ptr(),
            };
            let (x_in, squares) = (gpu.poison(2 * n), gpu.poison(4 * rows));
            gpu.kernels
                .mix_norm_forward(&gpu.stream, &mix, x_in.ptr(), squares.ptr())
                .unwrap();

            let (sumd, extrad) = (gpu.bf16(&sum), gpu.bf16(&extra));
            let (dotsd, deltad) = (gpu.f32(&dots), gpu.f32(&delta));
            let accumulate = kind != 0;
            let dx0 = if accumulate {
                gpu.bf16(&old)
            } else {
                gpu.poison(2 * n)
            };
            let (dx, dskip) = (gpu.poison(2 * n), gpu.poison(2 * n));
            let grid = u64::from(row_partials(rows, d));
            let columns = entry.sums() * d;
            let partial = gpu.poison(4 * grid * columns);
            gpu.kernels
                .mix_norm_backward(
                    &gpu.stream,
                    &mix,
                    &MixGradients {
                        sum: sumd.ptr(),
                        residual: ResidualDot {
                            dots: dotsd.ptr(),
                            delta: deltad.ptr(),
                            shape,
                        },
                        extra: (kind != 1).then(|| extrad.ptr()),
                        dx: dx.ptr(),
                        dx0: dx0.ptr(),
                        dx0_accumulate: accumulate,
                        dskip: (kind == 1).then(|| dskip.ptr()),
                        partial: partial.ptr(),
                    },
                )
                .unwrap();
            let sums = gpu.f32(&vec![1.0; columns as usize]);
            gpu.kernels
                .column_sum(
                    &gpu.stream,
                    partial.ptr(),
                    grid,
                    columns,
                    0,
                    columns,
                    sums.ptr(),
                    2.0,
                    true,
                )
                .unwrap();
            gpu.wait();

            let width = d as usize;
            let got_in = x_in.read_bf16();
            let (mut want_in, mut want_dx, mut want_dx0, mut want_skip) =
                (vec![], vec![], vec![], vec![]);
            let mut want_sums = vec![0.0; columns as usize];
            for r in 0..rows as usize {
                let at = |v: &[f64], c: usize| v[r * width + c];
                let u: Vec<f64> = (0..width)
                    .map(|c| match kind {
                        0 => at(&x, c),
                        1 => at(&x, c) + a[c] * at(&skip, c),
                        2 => at(&x, c) + a[c] * at(&x, c),
                        _ => a[c] * at(&x, c) + b[c],
                    })
                    .collect();
                want_in.extend((0..width).map(|c| m0[c] * u[c] + m1[c] * at(&x0, c)));
                // What follows starts from the rounded x_in: a tie of its rounding may fall either way.
                let row_in = &got_in[r * width..][..width];
                let (sequence, token) = (r / shape.tokens as usize, r % shape.tokens as usize);
                let statistic = |head: usize| {
                    let line = sequence * shape.heads() as usize + head;
                    delta[line * shape.padded_tokens() as usize + token]
                };
                let parts = dots.iter().skip(r).step_by(rows as usize);
                let heads = (0..shape.heads() as usize).map(statistic);
                let residual = parts.sum::<f64>() - heads.sum::<f64>();
                let all: f64 = (0..width).map(|c| at(&sum, c) * row_in[c]).sum();
                let mean = (all - residual) * inverse_rms(row_in).powi(2) / width as f64;
                for c in 0..width {
                    let dx_in = at(&sum, c) - row_in[c] * mean;
                    let du = m0[c] * dx_in;
                    want_sums[c] += dx_in * u[c];
                    want_sums[width + c] += dx_in * at(&x0, c);
                    let before = if accumulate { at(&old, c) } else { 0.0 };
                    want_dx0.push(before + m1[c] * dx_in);
                    match kind {
                        0 => want_dx.push(du + at(&extra, c)),
                        1 => {
                            want_sums[2 * width + c] += du * at(&skip, c);
                            want_skip.push(a[c] * du);
                            want_dx.push(du);
                        }
                        2 => {
                            want_sums[2 * width + c] += du * at(&x, c);
                            want_dx.push(du + a[c] * du + at(&extra, c));
                        }
                        _ => {
                            want_sums[2 * width + c] += du * at(&x, c);
                            want_sums[3 * width + c] += du;
                            want_dx.push(a[c] * du + at(&extra, c));
                        }
                    }
                }
            }
            assert_bf16(&format!("x_in {what}"), &got_in, &want_in, 0.1);
            let want_squares: Vec<f64> = got_in
                .chunks_exact(width)
                .map(|row| row.iter().map(|x| x * x).sum())
                .collect();
            assert_f32(
                &format!("squares {what}"),
                &squares.read_f32(),
                &want_squares,
                1.0,
            );
            assert_bf16(&format!("dx {what}"), &dx.read_bf16(), &want_dx, 1.0);
            assert_bf16(&format!("dx0 {what}"), &dx0.read_bf16(), &want_dx0, 1.0);
            if kind == 1 {
                assert_bf16(
                    &format!("dskip {what}"),
                    &dskip.read_bf16(),
                    &want_skip,
                    1.0,
                );
            }
            let want: Vec<f64> = want_sums.iter().map(|x| 1.0 + 2.0 * x).collect();
            assert_close(&format!("sums {what}"), &sums.read_f32(), &want, 2e-5, 1e-3);
        }
    }
}

#[test]
fn column_sums_of_a_range() {
    let gpu = Gpu::new();
    let x = Random::new(9).f32(13 * 300, 1.0);
    let (xd, out) = (gpu.f32(&x), gpu.poison(4 * 150));
    gpu.kernels
        .column_sum(
            &gpu.stream,
            xd.ptr(),
            13,
            300,
            140,
            150,
            out.ptr(),
            0.5,
            false,
        )
        .unwrap();
    gpu.wait();
    let want: Vec<f64> = (140..290)
        .map(|c| 0.5 * (0..13).map(|r| x[r * 300 + c]).sum::<f64>())
        .collect();
    assert_f32("sums", &out.read_f32(), &want, 1.0);
}

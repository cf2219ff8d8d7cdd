use birdie::kernels::muon::{Bank, NewtonSchulz};

use crate::device::Gpu;
use crate::numbers::{Random, assert_bf16, assert_f32, bf16, distance};

/// Five steps in f64 on an r x c matrix.
fn newton_schulz(x: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let multiply = |a: &[f64], b: &[f64], m: usize, k: usize, n: usize| -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    out[i * n + j] += a[i * k + l] * b[l * n + j];
                }
            }
        }
        out
    };
    let transpose = |a: &[f64], m: usize, n: usize| -> Vec<f64> {
        (0..m * n).map(|e| a[(e % m) * n + e / m]).collect()
    };
    if rows > columns {
        let flipped = newton_schulz(&transpose(x, rows, columns), columns, rows);
        return transpose(&flipped, columns, rows);
    }
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
    let mut x: Vec<f64> = x.iter().map(|x| x / norm).collect();
    for _ in 0..5 {
        let a = multiply(&x, &transpose(&x, rows, columns), rows, columns, rows);
        let squared = multiply(&a, &a, rows, rows, rows);
        let polynomial: Vec<f64> = a
            .iter()
            .zip(&squared)
            .map(|(a, s)| -4.7750 * a + 2.0315 * s)
            .collect();
        let product = multiply(&polynomial, &x, rows, rows, columns);
        x = x
            .iter()
            .zip(&product)
            .map(|(x, p)| 3.4445 * x + p)
            .collect();
    }
    x
}

#[test]
fn momentum_normalisation_and_update() {
    let gpu = Gpu::new();
    for (i, bank) in [
        Bank {
            matrices: 1,
            rows: 8,
            columns: 8,
        },
        Bank {
            matrices: 3,
            rows: 64,
            columns: 136,
        },
        Bank {
            matrices: 2,
            rows: 256,
            columns: 128,
        },
    ]
    .into_iter()
    .enumerate()
    {
        for bf16_state in [false, true] {
            let what = format!("{bank:?}, bf16 state {bf16_state}");
            let n = bank.elements();
            let total = bank.matrices * n;
            let mut random = Random::new(1000 + i as u64);
            let grad = random.f32(total, 1.0);
            let old = if bf16_state {
                random.bf16(total, 1.0)
            } else {
                random.f32(total, 1.0)
            };
            let param = random.f32(total, 1.0);
            let step = gpu.step_values(|s| {
                s.muon_momentum = 0.95;
                s.learning_rate_scale = 0.5;
            });
            let clip = gpu.f32(&[0.5]);
            let grad_d = gpu.f32(&grad);
            let state = if bf16_state {
                gpu.bf16(&old)
            } else {
                gpu.f32(&old)
            };
            let x = gpu.poison(2 * total);
            let partial = gpu.poison(4 * bank.matrices * u64::from(bank.partials()));
            let param_d = gpu.f32(&param);
            gpu.kernels
                .muon_momentum(
                    &gpu.stream,
                    bank,
                    grad_d.ptr(),
                    state.ptr(),
                    bf16_state,
                    x.ptr(),
                    partial.ptr(),
                    step.ptr(),
                    Some(clip.ptr()),
                )
                .unwrap();
            gpu.wait();
            let mu = f64::from(0.95f32);
            let round = |v: f64| if bf16_state { bf16(v) } else { v };
            let g: Vec<f64> = grad.iter().map(|g| round(0.5 * g)).collect();
            let m: Vec<f64> = old.iter().zip(&g).map(|(m, g)| round(mu * m + g)).collect();
            // From the momentum that was stored: a tie of its rounding may fall either way.
            let stored = if bf16_state {
                state.read_bf16()
            } else {
                state.read_f32()
            };
            let u: Vec<f64> = stored.iter().zip(&g).map(|(m, g)| g + mu * m).collect();
            let unrounded = x.read_bf16();
            assert_bf16(&format!("x, {what}"), &unrounded, &u, 1.0);
            if bf16_state {
                assert_bf16(&format!("momentum, {what}"), &state.read_bf16(), &m, 1.0);
            } else {
                assert_f32(&format!("momentum, {what}"), &state.read_f32(), &m, 1.0);
            }

            gpu.kernels
                .muon_normalize(&gpu.stream, bank, x.ptr(), partial.ptr())
                .unwrap();
            gpu.kernels
                .muon_update(
                    &gpu.stream,
                    bank,
                    param_d.ptr(),
                    x.ptr(),
                    step.ptr(),
                    0.1,
                    0.04,
                    bank.shape_factor(),
                )
                .unwrap();
            gpu.wait();
            let normalised: Vec<f64> = unrounded
                .chunks_exact(n as usize)
                .flat_map(|matrix| {
                    let norm = matrix.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
                    matrix.iter().map(move |x| x / norm).collect::<Vec<_>>()
                })
                .collect();
            let got = x.read_bf16();
            assert_bf16(&format!("normalised, {what}"), &got, &normalised, 0.01);
            let (lr, factor) = (
                0.05,
                (bank.rows as f64 / bank.columns as f64).max(1.0).sqrt(),
            );
            let want: Vec<f64> = param
                .iter()
                .zip(&got)
                .map(|(p, x)| p * (1.0 - lr * 0.04) - lr * factor * x)
                .collect();
            assert_f32(&format!("param, {what}"), &param_d.read_f32(), &want, 1.0);
        }
    }
}

#[test]
fn newton_schulz_of_wide_square_and_tall_banks() {
    let gpu = Gpu::new();
    for (i, bank) in [
        Bank {
            matrices: 1,
            rows: 64,
            columns: 64,
        },
        Bank {
            matrices: 2,
            rows: 64,
            columns: 128,
        },
        Bank {
            matrices: 2,
            rows: 192,
            columns: 72,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let n = bank.elements();
        let total = bank.matrices * n;
        let x = Random::new(1100 + i as u64).bf16(total, 1.0);
        let normalised: Vec<f64> = x
            .chunks_exact(n as usize)
            .flat_map(|m| {
                let norm = m.iter().map(|x| x * x).sum::<f64>().sqrt();
                m.iter().map(move |x| bf16(x / norm)).collect::<Vec<_>>()
            })
            .collect();
        let side = 2 * bank.matrices * bank.side() * bank.side();
        let (a, b) = (gpu.bf16(&normalised), gpu.poison(2 * total));
        let (gram, polynomial) = (gpu.poison(side), gpu.poison(side));
        let (result, _) = gpu
            .kernels
            .newton_schulz(
                &gpu.stream,
                bank,
                NewtonSchulz {
                    x: a.ptr(),
                    y: b.ptr(),
                    gram: gram.ptr(),
                    polynomial: polynomial.ptr(),
                },
            )
            .unwrap();
        gpu.wait();
        assert_eq!(result, b.ptr());
        let want: Vec<f64> = normalised
            .chunks_exact(n as usize)
            .flat_map(|m| newton_schulz(m, bank.rows as usize, bank.columns as usize))
            .collect();
        // bf16 products five times over: the published code is about as far from f64.
        let error = distance(&b.read_bf16(), &want);
        assert!(error < 0.03, "{bank:?}: distance {error}");
    }
}

/// The test values of the published parity vectors, -0.5 to 0.5.
fn unit_value(name: &str, i: u32) -> f64 {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    let mut h = i.wrapping_mul(2_654_435_761).wrapping_add(hash);
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    (f64::from(h ^ (h >> 16)) + 0.5) / 4_294_967_296.0 - 0.5
}

/// A 4 x 6 matrix, computed with the published code in f64. On the device it lies in the corner of an 8 x 8 one: rows and columns of
/// zeros stay zeros, and add nothing.
#[test]
fn newton_schulz_of_the_published_vector() {
    let want = [
        [
            -0.05279303,
            0.20809498,
            0.56134982,
            0.17193487,
            -0.59840298,
            -0.46073727,
        ],
        [
            -0.35389733,
            0.60829056,
            -0.16082545,
            0.48667605,
            0.45843135,
            -0.18259329,
        ],
        [
            -0.39675578,
            -0.60632441,
            0.02576757,
            0.19541379,
            -0.38447969,
            0.22809001,
        ],
        [
            -0.16114087,
            -0.36636532,
            -0.46419175,
            -0.41081213,
            0.27059925,
            -0.42064899,
        ],
    ];
    let g: Vec<f64> = (0..24)
        .map(|i| f64::from(unit_value("ns_test", i) as f32))
        .collect();
    let exact = newton_schulz(&g, 4, 6);
    for (got, want) in exact.iter().zip(want.iter().flatten()) {
        assert!((got - want).abs() < 2e-8, "{got} {want}");
    }
    let gpu = Gpu::new();
    let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
    let place = |e: usize| (e / 6) * 8 + e % 6;
    let mut padded = vec![0.0; 64];
    (0..24).for_each(|e| padded[place(e)] = bf16(bf16(g[e]) / norm));
    let bank = Bank {
        matrices: 1,
        rows: 8,
        columns: 8,
    };
    let (x, y) = (gpu.bf16(&padded), gpu.poison(128));
    let (gram, polynomial) = (gpu.poison(128), gpu.poison(128));
    let buffers = NewtonSchulz {
        x: x.ptr(),
        y: y.ptr(),
        gram: gram.ptr(),
        polynomial: polynomial.ptr(),
    };
    gpu.kernels
        .newton_schulz(&gpu.stream, bank, buffers)
        .unwrap();
    gpu.wait();
    let got = y.read_bf16();
    for e in 0..24 {
        // The published bf16 path is up to 0.035 away.
        assert!(
            (got[place(e)] - exact[e]).abs() < 0.05,
            "{e}: {} {}",
            got[place(e)],
            exact[e]
        );
    }
    let outside = (0..64).filter(|e| e / 8 >= 4 || e % 8 >= 6);
    assert!(outside.into_iter().all(|e| got[e] == 0.0));
}

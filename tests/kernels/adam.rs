use birdie::kernels::adam::{Adam, Storage};
use birdie::kernels::flat_grid;

use crate::device::Gpu;
use crate::numbers::{Random, assert_bf16, assert_close, assert_f32, bf16};

const SIZES: [u64; 3] = [8, 2056, 20_000];
const ADAM: Adam = Adam {
    learning_rate: 0.05,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.04,
};

#[test]
fn adamw_of_both_types() {
    let gpu = Gpu::new();
    for storage in [Storage::F32, Storage::Bf16] {
        for n in SIZES {
            let mut random = Random::new(n);
            let value = |random: &mut Random, scale| match storage {
                Storage::F32 => random.f32(n, scale),
                Storage::Bf16 => random.bf16(n, scale),
            };
            let (p, m) = (value(&mut random, 1.0), value(&mut random, 0.1));
            let v: Vec<f64> = value(&mut random, 0.1).iter().map(|x| x.abs()).collect();
            let g = random.f32(n, 0.5);
            let upload = |x: &[f64]| match storage {
                Storage::F32 => gpu.f32(x),
                Storage::Bf16 => gpu.bf16(x),
            };
            let (pd, md, vd, gd) = (upload(&p), upload(&m), upload(&v), gpu.f32(&g));
            let step = gpu.step_values(|s| {
                s.learning_rate_scale = 0.5;
                s.set_adam_corrections(0.9, 0.95, 3);
            });
            let clip = gpu.f32(&[0.25]);
            gpu.kernels
                .adamw(
                    &gpu.stream,
                    storage,
                    n,
                    pd.ptr(),
                    gd.ptr(),
                    md.ptr(),
                    vd.ptr(),
                    step.ptr(),
                    Some(clip.ptr()),
                    ADAM,
                )
                .unwrap();
            gpu.wait();

            let lr = 0.5 * 0.05;
            let (mut wp, mut wm, mut wv) = (vec![], vec![], vec![]);
            for i in 0..n as usize {
                let g = 0.25 * g[i];
                let m = m[i] + 0.1 * (g - m[i]);
                let v = 0.95 * v[i] + 0.05 * g * g;
                let denominator = v.sqrt() / (1.0 - 0.95f64.powi(3)).sqrt() + 1e-8;
                wp.push(p[i] * (1.0 - lr * 0.04) - lr / (1.0 - 0.9f64.powi(3)) * m / denominator);
                wm.push(m);
                wv.push(v);
            }
            match storage {
                Storage::F32 => {
                    assert_f32("param", &pd.read_f32(), &wp, 1.0);
                    assert_f32("m", &md.read_f32(), &wm, 1.0);
                    assert_f32("v", &vd.read_f32(), &wv, 1.0);
                }
                Storage::Bf16 => {
                    assert_bf16("param", &pd.read_bf16(), &wp, 0.1);
                    assert_bf16("m", &md.read_bf16(), &wm, 0.1);
                    assert_bf16("v", &vd.read_bf16(), &wv, 0.1);
                }
            }
        }
    }
}

#[test]
fn clip_follows_the_global_norm() {
    let gpu = Gpu::new();
    for n in SIZES {
        let (x, y) = (Random::new(n).f32(n, 1.0), Random::new(n + 1).f32(8, 1.0));
        let grid = u64::from(flat_grid(n));
        let partial = gpu.poison(4 * (grid + 1));
        let (xd, yd, out) = (gpu.f32(&x), gpu.f32(&y), gpu.poison(8));
        gpu.kernels
            .sum_squares(&gpu.stream, xd.ptr(), n, partial.ptr())
            .unwrap();
        gpu.kernels
            .sum_squares(&gpu.stream, yd.ptr(), 8, partial.ptr().offset(4 * grid))
            .unwrap();
        let norm = x.iter().chain(&y).map(|v| v * v).sum::<f64>().sqrt();
        for max_norm in [0.3, 1e6] {
            gpu.kernels
                .clip_coefficient(&gpu.stream, partial.ptr(), grid + 1, max_norm, out.ptr())
                .unwrap();
            gpu.wait();
            let want = [(f64::from(max_norm) / (norm + 1e-6)).min(1.0), norm];
            assert_close("coefficient, norm", &out.read_f32(), &want, 1e-5, 0.0);
        }
    }
}

#[test]
fn a_nan_gradient_gives_a_nan_coefficient() {
    let gpu = Gpu::new();
    let (partial, out) = (gpu.f32(&[1.0, f64::NAN]), gpu.poison(8));
    gpu.kernels
        .clip_coefficient(&gpu.stream, partial.ptr(), 2, 0.3, out.ptr())
        .unwrap();
    gpu.wait();
    assert!(out.read_f32().iter().all(|x| x.is_nan()));
}

#[test]
fn averages() {
    let gpu = Gpu::new();
    for n in SIZES {
        let mut random = Random::new(n);
        let (avg, p, table) = (random.f32(n, 1.0), random.f32(n, 1.0), random.bf16(n, 1.0));
        let step = |collect| {
            gpu.step_values(|s| {
                (s.average_decay, s.average_share) = (0.75, 0.25);
                s.collect_average = collect;
            })
        };
        let (on, off) = (step(1), step(0));
        let want = |p: &[f64]| -> Vec<f64> {
            avg.iter()
                .zip(p)
                .map(|(a, p)| 0.75 * a + 0.25 * p)
                .collect()
        };
        let (pd, td) = (gpu.f32(&p), gpu.bf16(&table));
        for (storage, source, values) in [(Storage::F32, &pd, &p), (Storage::Bf16, &td, &table)] {
            let ad = gpu.f32(&avg);
            gpu.kernels
                .average(&gpu.stream, storage, ad.ptr(), source.ptr(), n, on.ptr())
                .unwrap();
            gpu.wait();
            assert_f32("average", &ad.read_f32(), &want(values), 1.0);
        }

        let (sum, sums) = (gpu.f32(&avg), gpu.bf16(&table));
        for step in [&off, &on] {
            gpu.kernels
                .collect(
                    &gpu.stream,
                    Storage::F32,
                    sum.ptr(),
                    pd.ptr(),
                    n,
                    step.ptr(),
                )
                .unwrap();
            gpu.kernels
                .collect(
                    &gpu.stream,
                    Storage::Bf16,
                    sums.ptr(),
                    td.ptr(),
                    n,
                    step.ptr(),
                )
                .unwrap();
        }
        gpu.wait();
        let once: Vec<f64> = avg.iter().zip(&p).map(|(a, p)| a + p).collect();
        assert_f32("sum", &sum.read_f32(), &once, 1.0);
        let doubled: Vec<f64> = table.iter().map(|x| bf16(2.0 * x)).collect();
        assert_eq!(sums.read_bf16(), doubled);
    }
}

#[test]
fn descent_with_momentum_of_both_types() {
    let gpu = Gpu::new();
    for storage in [Storage::F32, Storage::Bf16] {
        for n in SIZES {
            let mut random = Random::new(40 + n);
            let value = |random: &mut Random, scale| match storage {
                Storage::F32 => random.f32(n, scale),
                Storage::Bf16 => random.bf16(n, scale),
            };
            let (p, m) = (value(&mut random, 1.0), value(&mut random, 0.1));
            let g = random.f32(n, 0.5);
            let upload = |x: &[f64]| match storage {
                Storage::F32 => gpu.f32(x),
                Storage::Bf16 => gpu.bf16(x),
            };
            let (pd, md, gd) = (upload(&p), upload(&m), gpu.f32(&g));
            let step = gpu.step_values(|s| s.learning_rate_scale = 0.5);
            let clip = gpu.f32(&[0.25]);
            gpu.kernels
                .sgd(
                    &gpu.stream,
                    storage,
                    n,
                    pd.ptr(),
                    gd.ptr(),
                    md.ptr(),
                    step.ptr(),
                    Some(clip.ptr()),
                    0.04,
                    0.9,
                )
                .unwrap();
            gpu.wait();
            let moved: Vec<f64> = m.iter().zip(&g).map(|(m, g)| 0.9 * m + 0.25 * g).collect();
            let updated: Vec<f64> = p.iter().zip(&moved).map(|(p, m)| p - 0.02 * m).collect();
            match storage {
                Storage::F32 => {
                    assert_f32("param", &pd.read_f32(), &updated, 1.0);
                    assert_f32("m", &md.read_f32(), &moved, 1.0);
                }
                Storage::Bf16 => {
                    assert_bf16("param", &pd.read_bf16(), &updated, 0.1);
                    assert_bf16("m", &md.read_bf16(), &moved, 0.1);
                }
            }
        }
    }
}

/// Three steps on two parameters, computed with the published optimizer in f32.
#[test]
fn adamw_of_the_published_vector() {
    let gpu = Gpu::new();
    let eight = |a: f64, b: f64| [a, b, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (p, m, v) = (
        gpu.f32(&eight(1.0, -0.5)),
        gpu.f32(&[0.0; 8]),
        gpu.f32(&[0.0; 8]),
    );
    let adam = Adam {
        learning_rate: 0.025,
        ..ADAM
    };
    for (t, grad, want) in [
        (1, 0.1, [0.974_000_04, -0.474_500_03]),
        (2, 0.2, [0.949_076_41, -0.449_025_57]),
        (3, 0.3, [0.924_514_59, -0.423_576_56]),
    ] {
        let g = gpu.f32(&eight(grad, -0.02));
        let step = gpu.step_values(|s| {
            s.learning_rate_scale = 1.0;
            s.set_adam_corrections(0.9, 0.95, t);
        });
        gpu.kernels
            .adamw(
                &gpu.stream,
                Storage::F32,
                8,
                p.ptr(),
                g.ptr(),
                m.ptr(),
                v.ptr(),
                step.ptr(),
                None,
                adam,
            )
            .unwrap();
        gpu.wait();
        let got = p.read_f32();
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 3e-7, "step {t}: {got} {want}");
        }
    }
}

use birdie::kernels::adam::Storage;
use birdie::kernels::quantize::{CastWeight, FakeQuantize};

use crate::device::Gpu;
use crate::numbers::{Random, bf16};

#[test]
fn weights_are_scaled_and_cast_into_their_place() {
    let gpu = Gpu::new();
    for (i, (batches, rows, columns, gap, scaled, quantize, flag, bits)) in [
        (
            1u64,
            1u64,
            8u64,
            0u64,
            false,
            FakeQuantize::Never,
            0u32,
            6u32,
        ),
        (3, 10, 128, 16, true, FakeQuantize::Never, 0, 5),
        (2, 9, 264, 0, true, FakeQuantize::Always, 0, 6),
        (2, 9, 264, 0, true, FakeQuantize::Always, 0, 5),
        (1, 24, 40, 0, false, FakeQuantize::ByStep, 1, 5),
        (1, 64, 64, 0, false, FakeQuantize::ByStep, 1, 6),
        (1, 64, 64, 0, false, FakeQuantize::ByStep, 0, 6),
    ]
    .into_iter()
    .enumerate()
    {
        let mut random = Random::new(1200 + i as u64);
        let weight = random.f32(batches * rows * columns, 2.0);
        let scale = random.f32(batches * rows, 1.0);
        let (weight_d, scale_d) = (gpu.f32(&weight), gpu.f32(&scale));
        let stride = rows * columns + gap;
        let out = gpu.bf16(&vec![9.0; (batches * stride) as usize]);
        let step = gpu.step_values(|s| s.fake_quantize = flag);
        gpu.kernels
            .cast_weight(
                &gpu.stream,
                &CastWeight {
                    weight: weight_d.ptr(),
                    batches,
                    rows,
                    columns,
                    scale: scaled.then(|| scale_d.ptr()),
                    one_scale: false,
                    out: out.ptr(),
                    out_batch_stride: stride,
                    quantize,
                    bits,
                    step: step.ptr(),
                },
            )
            .unwrap();
        gpu.wait();
        let fake = quantize == FakeQuantize::Always || flag == 1;
        let mut want = vec![9.0; (batches * stride) as usize];
        for (r, row) in weight.chunks_exact(columns as usize).enumerate() {
            let (batch, inner) = (r / rows as usize, r % rows as usize);
            let largest = row.iter().fold(0f32, |m, &x| m.max((x as f32).abs()));
            let most = ((1 << (bits - 1)) - 1) as f32;
            let s = (largest / most).max(1.0 / most);
            for (c, &w) in row.iter().enumerate() {
                let w = w as f32;
                let used = if fake {
                    (w / s).round_ties_even().clamp(-most - 1.0, most) * s
                } else {
                    w
                };
                let factor = if scaled { scale[r] as f32 } else { 1.0 };
                want[batch * stride as usize + inner * columns as usize + c] =
                    bf16(f64::from(used * factor));
            }
        }
        assert_eq!(
            out.read_bf16(),
            want,
            "case {i}: the same f32 operations, so the same bits"
        );
    }
}

#[test]
fn casts() {
    let gpu = Gpu::new();
    for n in [8u64, 10_000] {
        let x = Random::new(n).f32(n, 1.0);
        let (source, rounded, back) = (gpu.f32(&x), gpu.poison(2 * n), gpu.poison(4 * n));
        gpu.kernels
            .cast(&gpu.stream, Storage::F32, source.ptr(), rounded.ptr(), n)
            .unwrap();
        gpu.kernels
            .cast(&gpu.stream, Storage::Bf16, rounded.ptr(), back.ptr(), n)
            .unwrap();
        gpu.wait();
        let want: Vec<f64> = x.iter().map(|&x| bf16(x)).collect();
        assert_eq!(rounded.read_bf16(), want);
        assert_eq!(back.read_f32(), want);
    }
}

#[test]
fn non_finite_values_are_found() {
    let gpu = Gpu::new();
    let n = 5000;
    for (place, bad) in [
        (None, 0.0),
        (Some(0), f64::NAN),
        (Some(4999), f64::INFINITY),
        (Some(2048), f64::NEG_INFINITY),
    ] {
        let mut x = Random::new(3).f32(n, 1.0);
        if let Some(place) = place {
            x[place] = bad;
        }
        let (x, out) = (gpu.f32(&x), gpu.u16(&[0; 4]));
        gpu.kernels
            .check_finite(&gpu.stream, x.ptr(), n, 42, out.ptr())
            .unwrap();
        gpu.wait();
        let want = if place.is_some() {
            vec![1, 42]
        } else {
            vec![0, 0]
        };
        assert_eq!(out.read_i32(), want);
    }
}

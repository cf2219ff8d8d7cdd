use birdie::kernels::sampling::Sampling;

use crate::device::Gpu;
use crate::numbers::{Random, bf16};
use crate::philox::philox;

/// What the argmax is taken of.
fn scores(logits: Option<&[f64]>, v: u64, s: Sampling, row: u64) -> Vec<f64> {
    (0..v)
        .map(|j| {
            let counter = [
                (j / 4) as u32,
                (s.first_sequence + row) as u32,
                s.position as u32,
                0,
            ];
            let bits = philox(counter, [s.seed as u32, (s.seed >> 32) as u32])[(j % 4) as usize];
            let u = (f64::from(bits >> 9) + 0.5) / 8_388_608.0;
            let l = logits.map_or(0.0, |row| {
                let cap = f64::from(s.softcap);
                let capped = bf16(cap * (row[j as usize] / cap).tanh());
                bf16(capped / f64::from(s.temperature))
            });
            l - (-u.ln()).ln()
        })
        .collect()
}

/// The generator's published known answers (Random123, philox4x32 10).
#[test]
fn reference_generator_gives_the_known_answers() {
    assert_eq!(
        philox([0; 4], [0; 2]),
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
    );
    assert_eq!(
        philox([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
}

#[test]
fn tokens_are_the_argmax_of_the_reference() {
    let gpu = Gpu::new();
    for (rows, v, gap, temperature, softcap) in [
        (1u64, 8u64, 0u64, 1.0f32, 30.0f32),
        (17, 256, 512, 0.8, 30.0),
        (9, 1024, 8, 0.5, 2.0),
        (3, 4096, 0, 1.5, 60.0),
        (5, 13, 3, 0.7, 30.0),
        (2, 1021, 11, 1.0, 30.0),
        (1, 1, 7, 1.0, 30.0),
    ] {
        let mut random = Random::new(77 + v);
        let stride = v + gap;
        let logits = random.bf16(rows * stride, 4.0);
        let sampling = Sampling {
            softcap,
            temperature,
            seed: random.bits(),
            first_sequence: 5,
            position: 31,
        };
        let (logits_d, out, uniform) = (
            gpu.bf16(&logits),
            gpu.poison(2 * rows),
            gpu.poison(2 * rows),
        );
        let k = gpu.kernels;
        let row = Some((logits_d.ptr(), stride));
        k.sample_tokens(&gpu.stream, row, out.ptr(), rows, v, sampling)
            .unwrap();
        k.sample_tokens(&gpu.stream, None, uniform.ptr(), rows, v, sampling)
            .unwrap();
        gpu.wait();
        for (kind, tokens) in [("logits", out.read_u16()), ("uniform", uniform.read_u16())] {
            for (r, &token) in tokens.iter().enumerate() {
                let row = &logits[r * stride as usize..][..v as usize];
                let given = (kind == "logits").then_some(row);
                let all = scores(given, v, sampling, r as u64);
                let largest = all.iter().copied().fold(f64::MIN, f64::max);
                assert!(u64::from(token) < v, "{kind} row {r}: {token}");
                // A capped logit on a tie of bf16 may be rounded either way: one step of bf16 is at most 2^-3 here.
                let slack = if given.is_some() { 0.13 } else { 1e-4 };
                assert!(
                    all[usize::from(token)] >= largest - slack,
                    "{kind} [{rows}, {v}] row {r}: token {token} has {}, the largest is {largest}",
                    all[usize::from(token)]
                );
            }
        }
    }
}

/// 4096 samples of eight probabilities: Pearson's statistic with 7 degrees of freedom exceeds 24.3 once in a thousand times.
#[test]
fn frequencies_follow_the_softmax() {
    let gpu = Gpu::new();
    let row: Vec<f64> = (0..8).map(|j| f64::from(j) * 0.25).collect();
    let rows = 4096u64;
    let logits: Vec<f64> = row.iter().copied().cycle().take(8 * 4096).collect();
    let (logits_d, out) = (gpu.bf16(&logits), gpu.poison(2 * rows));
    let sampling = Sampling {
        softcap: 30.0,
        temperature: 0.5,
        seed: 1337,
        first_sequence: 0,
        position: 3,
    };
    gpu.kernels
        .sample_tokens(
            &gpu.stream,
            Some((logits_d.ptr(), 8)),
            out.ptr(),
            rows,
            8,
            sampling,
        )
        .unwrap();
    gpu.wait();
    let mut counts = [0f64; 8];
    for token in out.read_u16() {
        counts[usize::from(token)] += 1.0;
    }
    let weights: Vec<f64> = row
        .iter()
        .map(|z| bf16(bf16(30.0 * (z / 30.0).tanh()) / 0.5).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let statistic: f64 = weights
        .iter()
        .zip(counts)
        .map(|(w, count)| {
            let expected = rows as f64 * w / total;
            (count - expected).powi(2) / expected
        })
        .sum();
    assert!(statistic < 24.3, "{statistic}: {counts:?}");
}

#[test]
fn wrong_operands_are_refused() {
    let gpu = Gpu::new();
    let out = gpu.poison(8);
    let sampling = Sampling {
        softcap: 30.0,
        temperature: 0.0,
        seed: 1,
        first_sequence: 0,
        position: 0,
    };
    let refused = |v, sampling| {
        gpu.kernels
            .sample_tokens(&gpu.stream, None, out.ptr(), 4, v, sampling)
            .is_err()
    };
    assert!(refused(8, sampling), "no temperature");
    let good = Sampling {
        temperature: 1.0,
        ..sampling
    };
    assert!(!refused(8, good));
    assert!(refused(0, good), "V");
    for softcap in [0.0, -30.0, 65.0, f32::NAN] {
        assert!(refused(8, Sampling { softcap, ..good }), "{softcap}");
    }
}

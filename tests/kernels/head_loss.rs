use birdie::kernels::head_loss::{logit_pitch, loss_partials};

use crate::device::Gpu;
use crate::numbers::{Random, assert_close, bf16};

/// Loss of a row and its gradient.
fn reference(row: &[f64], target: usize, cap: f64, round: bool) -> (f64, Vec<f64>) {
    let capped: Vec<f64> = row.iter().map(|z| cap * (z / cap).tanh()).collect();
    let used: Vec<f64> = capped
        .iter()
        .map(|&c| if round { bf16(c) } else { c })
        .collect();
    let sum: f64 = used.iter().map(|c| c.exp()).sum();
    let gradient = used
        .iter()
        .enumerate()
        .map(|(j, c)| {
            let p = c.exp() / sum - f64::from(u8::from(j == target));
            p * (1.0 - (capped[j] / cap).powi(2))
        })
        .collect();
    (sum.ln() - used[target], gradient)
}

#[test]
fn loss_gradient_and_scores() {
    let gpu = Gpu::new();
    for (rows, vocabulary, scale, cap) in [
        (1u64, 8u64, 1.0, 30.0f32),
        (300, 256, 5.0, 30.0),
        (37, 1024, 20.0, 30.0),
        (9, 2048, 3.0, 30.0),
        (20, 264, 60.0, 30.0),
        (5, 1, 2.0, 30.0),
        (9, 97, 4.0, 15.0),
        (6, 1023, 8.0, 2.5),
        (3, 4095, 3.0, 30.0),
        (7, 513, 90.0, 64.0),
    ] {
        let what = format!("[{rows}, {vocabulary}] x {scale}, cap {cap}");
        let mut random = Random::new(900 + vocabulary);
        let (width, pitch) = (vocabulary as usize, logit_pitch(vocabulary) as usize);
        let logits = random.bf16(rows * pitch as u64, scale);
        let targets = random.ids(rows, vocabulary);
        let (logits_d, targets_d) = (gpu.bf16(&logits), gpu.u16(&targets));
        let (plain, rounded) = (gpu.poison(4 * rows), gpu.poison(4 * rows));
        let k = gpu.kernels;
        k.softcap_score(
            &gpu.stream,
            logits_d.ptr(),
            targets_d.ptr(),
            plain.ptr(),
            false,
            cap,
            rows,
            vocabulary,
        )
        .unwrap();
        k.softcap_score(
            &gpu.stream,
            logits_d.ptr(),
            targets_d.ptr(),
            rounded.ptr(),
            true,
            cap,
            rows,
            vocabulary,
        )
        .unwrap();
        let partial = gpu.poison(4 * u64::from(loss_partials(rows)));
        k.softcap_loss(
            &gpu.stream,
            logits_d.ptr(),
            targets_d.ptr(),
            partial.ptr(),
            64.0,
            cap,
            rows,
            vocabulary,
        )
        .unwrap();
        gpu.wait();

        let want = |round: bool| -> Vec<(f64, Vec<f64>)> {
            logits
                .chunks_exact(pitch)
                .zip(&targets)
                .map(|(row, &t)| reference(&row[..width], t as usize, f64::from(cap), round))
                .collect()
        };
        let exact = want(false);
        let losses: Vec<f64> = exact.iter().map(|x| x.0).collect();
        assert_close(
            &format!("losses {what}"),
            &plain.read_f32(),
            &losses,
            1e-4,
            1e-4,
        );
        let of_rounded: Vec<f64> = want(true).iter().map(|x| x.0).collect();
        // A capped logit that lies on a tie of bf16 may be rounded either way.
        assert_close(
            &format!("rounded losses {what}"),
            &rounded.read_f32(),
            &of_rounded,
            1e-3,
            0.13,
        );
        let sum: f64 = partial.read_f32().iter().sum();
        assert_close(
            &format!("loss {what}"),
            &[sum],
            &[losses.iter().sum()],
            1e-4,
            1e-3,
        );
        let gradient: Vec<f64> = exact
            .iter()
            .flat_map(|x| {
                let mut row: Vec<f64> = x.1.iter().map(|g| 64.0 * g).collect();
                row.resize(pitch, 0.0);
                row
            })
            .collect();
        assert_close(
            &format!("dlogits {what}"),
            &logits_d.read_bf16(),
            &gradient,
            0.006,
            1e-3,
        );
    }
}

use birdie::kernels::Matrix;
use birdie::kernels::gemm::Tile;
use birdie::kernels::head_loss::{Head, head_partials, logit_pitch};
use birdie::kernels::row_scale::{RowScale, square_parts};

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

/// Multiples of 1/8 up to 1/2: their products and sums are exact in f32, so that both sides round the same logits to bf16.
fn eighths(random: &mut Random, n: u64) -> Vec<f64> {
    (0..n)
        .map(|_| (random.below(9) as f64 - 4.0) / 8.0)
        .collect()
}

#[test]
fn product_loss_and_gradient_in_one() {
    let gpu = Gpu::new();
    // rows, V, d: each cluster size, the smallest, edges, several row blocks per cluster, several sweeps over the columns.
    for (rows, vocabulary, d, cap) in [
        (1u64, 1u64, 64u64, 30.0f32),
        (2, 8, 8, 30.0),
        (300, 256, 64, 30.0),
        (200, 77, 72, 15.0),
        (700, 264, 320, 30.0),
        (390, 520, 72, 2.5),
        (257, 1024, 400, 30.0),
        (130, 1032, 64, 30.0),
        (70, 2048, 64, 30.0),
        (40, 2051, 64, 30.0),
        (140, 4095, 72, 30.0),
        (9, 4096, 320, 64.0),
        (3, 8200, 16, 30.0),
    ] {
        let what = format!("[{rows}, {vocabulary}, {d}], cap {cap}");
        let mut random = Random::new(950 + vocabulary);
        let (hidden, table) = (
            eighths(&mut random, rows * d),
            eighths(&mut random, vocabulary * d),
        );
        let targets = random.ids(rows, vocabulary);
        let (hidden_d, table_d, targets_d) =
            (gpu.bf16(&hidden), gpu.bf16(&table), gpu.u16(&targets));
        let pitch = logit_pitch(vocabulary);
        // Factors that are powers of two, 2 / sqrt(4^k): products with them are exact. The sum is all in one part or another.
        let (normed, parts) = (rows % 2 == 0, square_parts(d));
        let exponent = |row: u64| 1 + row % 3;
        let sums: Vec<f64> = (0..parts)
            .flat_map(|part| (0..rows).map(move |row| (part, row)))
            .map(|(part, row)| {
                let here = part == row % parts;
                if here {
                    (d << (2 * exponent(row))) as f64
                } else {
                    0.0
                }
            })
            .collect();
        let sums_d = gpu.f32(&sums);
        let factors: Vec<f64> = (0..rows)
            .map(|row| {
                if normed {
                    2.0 / f64::from(1u32 << exponent(row))
                } else {
                    1.0
                }
            })
            .collect();
        let dlogits = gpu.poison(2 * rows * pitch);
        let head = Head {
            hidden: Matrix::new(hidden_d.ptr(), rows, d),
            table: Matrix::new(table_d.ptr(), vocabulary, d),
            dlogits: Matrix {
                pitch,
                batch_stride: rows * pitch,
                ..Matrix::new(dlogits.ptr(), rows, vocabulary)
            },
            targets: targets_d.ptr(),
            norm: normed.then(|| RowScale {
                sums: sums_d.ptr(),
                parts,
                d,
                factor: 2.0,
            }),
            softcap: cap,
        };
        let count = head_partials(rows, vocabulary);
        let losses = || gpu.poison(4 * rows);
        let (with_gradient, plain, rounded) = (losses(), losses(), losses());
        let (partial, total) = (gpu.poison(4 * count), gpu.f32(&[1.0]));
        // Fewer multiprocessors than a vocabulary has CTAs, and more than there are rows for.
        let k = gpu.kernels.with_tile(Tile::Square, 4);
        k.head_score(&gpu.stream, head, plain.ptr(), false).unwrap();
        k.head_score(&gpu.stream, head, rounded.ptr(), true)
            .unwrap();
        k.head_loss(
            &gpu.stream,
            head,
            Some(with_gradient.ptr()),
            partial.ptr(),
            64.0,
        )
        .unwrap();
        k.head_loss_sum(&gpu.stream, partial.ptr(), count, total.ptr(), 0.5, true)
            .unwrap();
        gpu.wait();

        let (v, d) = (vocabulary as usize, d as usize);
        let logits: Vec<f64> = hidden
            .chunks_exact(d)
            .zip(&factors)
            .flat_map(|(x, factor)| {
                table
                    .chunks_exact(d)
                    .map(|w| bf16(factor * x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let want = |round: bool| -> Vec<(f64, Vec<f64>)> {
            logits
                .chunks_exact(v)
                .zip(&targets)
                .map(|(row, &t)| reference(row, t as usize, f64::from(cap), round))
                .collect()
        };
        let exact = want(false);
        let wanted: Vec<f64> = exact.iter().map(|x| x.0).collect();
        assert_close(
            &format!("scores {what}"),
            &plain.read_f32(),
            &wanted,
            1e-5,
            1e-4,
        );
        assert_eq!(plain.bytes(), with_gradient.bytes(), "losses {what}");
        let of_rounded: Vec<f64> = want(true).iter().map(|x| x.0).collect();
        // A capped logit that lies on a tie of bf16 may be rounded either way.
        assert_close(
            &format!("rounded scores {what}"),
            &rounded.read_f32(),
            &of_rounded,
            1e-3,
            0.07,
        );
        assert_close(
            &format!("loss {what}"),
            &total.read_f32(),
            &[1.0 + 0.5 * wanted.iter().sum::<f64>()],
            1e-5,
            1e-3,
        );
        let got: Vec<f64> = dlogits
            .read_bf16()
            .chunks_exact(pitch as usize)
            .flat_map(|row| row[..v].to_vec())
            .collect();
        let gradient: Vec<f64> = exact
            .iter()
            .zip(&factors)
            .flat_map(|(x, factor)| x.1.iter().map(move |g| 64.0 * factor * g))
            .collect();
        assert_close(&format!("dlogits {what}"), &got, &gradient, 0.006, 1e-3);
        let padding = dlogits.bytes();
        let untouched = padding
            .chunks_exact(2 * pitch as usize)
            .all(|row| row[2 * v..].iter().all(|&b| b == 0xff));
        assert!(untouched, "{what}: padding was written");
    }
}

#[test]
fn the_loss_has_the_same_bits_on_any_device() {
    let gpu = Gpu::new();
    let (rows, vocabulary, d) = (700, 512, 64);
    let mut random = Random::new(970);
    let (hidden, table) = (
        gpu.bf16(&random.bf16(rows * d, 1.0)),
        gpu.bf16(&random.bf16(vocabulary * d, 1.0)),
    );
    let targets = gpu.u16(&random.ids(rows, vocabulary));
    let count = head_partials(rows, vocabulary);
    let runs: Vec<(Vec<u8>, Vec<u8>)> = [1, 2, 5, 132]
        .into_iter()
        .map(|multiprocessors| {
            let kernels = gpu.kernels.with_tile(Tile::Square, multiprocessors);
            let (dlogits, partial) = (gpu.poison(2 * rows * vocabulary), gpu.poison(4 * count));
            let head = Head {
                hidden: Matrix::new(hidden.ptr(), rows, d),
                table: Matrix::new(table.ptr(), vocabulary, d),
                dlogits: Matrix::new(dlogits.ptr(), rows, vocabulary),
                targets: targets.ptr(),
                norm: None,
                softcap: 30.0,
            };
            kernels
                .head_loss(&gpu.stream, head, None, partial.ptr(), 1.0)
                .unwrap();
            gpu.wait();
            (dlogits.bytes(), partial.bytes())
        })
        .collect();
    assert!(runs.iter().all(|r| *r == runs[0]));
}

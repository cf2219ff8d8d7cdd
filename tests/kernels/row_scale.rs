//! RMSNorm as a factor of a product's rows: who leaves the sums of squares, and who reads them.

use birdie::kernels::Matrix;
use birdie::kernels::gemm::Orientation;
use birdie::kernels::row_scale::{RowScale, square_parts};

use crate::device::{Buffer, Gpu};
use crate::gemm::{Case, SHAPES, tiles};
use crate::numbers::{
    NORM_EPSILON, Random, assert_bf16, assert_close, assert_f32, bf16, inverse_rms, norm_gradient,
};

/// The products' shapes of one batch, and widths that row kernels have: 64 to 2048, with a last part of less than 128 columns.
fn shapes() -> Vec<[u64; 4]> {
    let wide = [
        [1, 72, 64, 2048],
        [1, 131, 192, 64],
        [1, 40, 1088, 64],
        [1, 72, 2048, 64],
    ];
    let one_batch = SHAPES.into_iter().filter(|shape| shape[0] == 1);
    one_batch.chain(wide).collect()
}

/// Sums of squares as a product of width `d` or a row kernel leaves them.
pub struct Sums {
    parts: u64,
    d: u64,
    pub factors: Vec<f64>,
    buffer: Buffer,
}

const FACTOR: f32 = 0.577;

impl Sums {
    /// Of rows of about the same size, so that factors are at most 1.
    pub fn new(gpu: &Gpu, seed: u64, rows: u64, d: u64, parts: u64) -> Self {
        Self::with_tiny(gpu, seed, [rows, rows], d, parts)
    }

    /// The row `tiny` is so small that epsilon counts.
    fn with_tiny(gpu: &Gpu, seed: u64, [rows, tiny]: [u64; 2], d: u64, parts: u64) -> Self {
        let mut random = Random::new(seed);
        let mean = (d / parts).max(1) as f64;
        let values: Vec<f64> = (0..parts * rows)
            .map(|i| {
                let size = if i % rows == tiny { 1e-7 } else { 2.0 };
                f64::from((mean * size * (0.5 + random.normal().abs())) as f32)
            })
            .collect();
        let factors = (0..rows as usize)
            .map(|row| {
                let sum: f64 = values.iter().skip(row).step_by(rows as usize).sum();
                f64::from(FACTOR) / (sum / d as f64 + NORM_EPSILON).sqrt()
            })
            .collect();
        Self {
            parts,
            d,
            buffer: gpu.f32(&values),
            factors,
        }
    }

    pub fn scale(&self) -> RowScale {
        RowScale {
            sums: self.buffer.ptr(),
            parts: self.parts,
            d: self.d,
            factor: FACTOR,
        }
    }

    fn times(&self, matrix: &[f64], columns: u64) -> Vec<f64> {
        let rows = matrix.chunks_exact(columns as usize);
        rows.zip(&self.factors)
            .flat_map(|(row, f)| row.iter().map(move |x| f * x))
            .collect()
    }
}

/// A tiny row's factor is 1000 and more: bounds relative to the size of its row.
fn assert_rows(what: &str, got: &[f64], want: &[f64], columns: u64) {
    for (row, (got, want)) in got
        .chunks_exact(columns as usize)
        .zip(want.chunks_exact(columns as usize))
        .enumerate()
    {
        let size = (want.iter().map(|x| x * x).sum::<f64>() / columns as f64).sqrt();
        assert_close(&format!("{what}, row {row}"), got, want, 0.012, 0.01 * size);
    }
}

#[test]
fn sums_of_squares_of_what_a_product_stores() {
    let gpu = Gpu::new();
    for (i, shape) in shapes().into_iter().enumerate() {
        let case = Case::new(700 + i as u64, Orientation::Nt, shape);
        let [_, m, n, _] = shape;
        let aux = Random::new(720 + i as u64).bf16(m * n, 1.0);
        let want: Vec<f64> = case.want().iter().zip(&aux).map(|(d, x)| d + x).collect();
        let mut results = Vec::new();
        for (tile, kernels) in &tiles(&gpu, "gemm_nt_add_squares_bf16") {
            let what = format!("{tile:?} {shape:?}");
            let (a, b, aux) = (gpu.bf16(&case.a), gpu.bf16(&case.b), gpu.bf16(&aux));
            let separate = gpu.poison(2 * m * n);
            // In place for every other shape.
            let out = if i % 2 == 0 { &separate } else { &aux };
            let parts = square_parts(n);
            let squares = gpu.poison(4 * parts * m);
            let matrix = |p| Matrix::new(p, m, n);
            let (left, right) = case.matrices(&a, &b);
            kernels
                .gemm_add_squares(
                    &gpu.stream,
                    left,
                    right,
                    matrix(out.ptr()),
                    matrix(aux.ptr()),
                    squares.ptr(),
                )
                .unwrap();
            gpu.wait();
            let stored = out.read_bf16();
            assert_bf16(&what, &stored, &want, 1.0);
            let sums: Vec<f64> = (0..parts as usize)
                .flat_map(|part| {
                    let rows = stored.chunks_exact(n as usize);
                    rows.map(move |row| row.iter().skip(128 * part).take(128).map(|x| x * x).sum())
                })
                .collect();
            assert_f32(&what, &squares.read_f32(), &sums, 1.0);
            results.push((out.bytes(), squares.bytes()));
        }
        assert!(
            results.iter().all(|r| *r == results[0]),
            "{shape:?}: the tile shows"
        );
    }
}

#[test]
fn rows_of_products_are_scaled() {
    let gpu = Gpu::new();
    for (tile, kernels) in &tiles(&gpu, "gemm_nt_leaky2") {
        for (i, shape) in shapes().into_iter().enumerate() {
            let [_, m, n, k] = shape;
            let what = format!("{tile:?} {shape:?}");
            let parts = if i % 3 == 0 { 1 } else { square_parts(k) };
            let sums = Sums::with_tiny(&gpu, 740 + i as u64, [m, m / 2], k, parts);
            let case = Case::new(760 + i as u64, Orientation::Nt, shape);
            let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
            let (left, right) = case.matrices(&a, &b);
            let buffer = || gpu.poison(2 * m * n);
            let matrix = |b: &Buffer| Matrix::new(b.ptr(), m, n);
            let (plain, pre, activated) = (buffer(), buffer(), buffer());
            let (stream, scale) = (&gpu.stream, Some(sums.scale()));
            kernels
                .gemm_scaled(stream, left, right, matrix(&plain), scale)
                .unwrap();
            let outputs = [matrix(&pre), matrix(&activated)];
            kernels
                .gemm_leaky2(stream, left, right, outputs[0], outputs[1], scale)
                .unwrap();
            gpu.wait();
            let p = pre.read_bf16();
            assert!(plain.read_bf16() == p, "{what}: two epilogues, one product");
            assert_rows(&what, &p, &sums.times(&case.want(), n), n);
            let want: Vec<f64> = p
                .iter()
                .map(|&p| bf16(if p > 0.0 { p * p } else { 0.25 * p * p }))
                .collect();
            assert_eq!(activated.read_bf16(), want, "{what}");

            let back = Case::new(780 + i as u64, Orientation::Nn, shape);
            let (a, b) = (gpu.bf16(&back.a), gpu.bf16(&back.b));
            let (left, right) = back.matrices(&a, &b);
            let out = buffer();
            let parts = square_parts(n);
            let dots = gpu.poison(4 * parts * m);
            let (into, of, left_dots) = (matrix(&out), matrix(&pre), Some(dots.ptr()));
            kernels
                .gemm_dleaky2(stream, left, right, into, of, scale, left_dots)
                .unwrap();
            gpu.wait();
            let gradient = out.read_bf16();
            for (part, got) in dots.read_f32().chunks_exact(m as usize).enumerate() {
                for (row, got) in got.iter().enumerate() {
                    let columns = row * n as usize + 128 * part..(row + 1) * n as usize;
                    let (mut want, mut size) = (0.0, 0.0);
                    for c in columns.take(128) {
                        let product = gradient[c] * p[c];
                        want += product;
                        size += product.abs();
                    }
                    assert!(
                        (got - want).abs() <= 1e-5 * size,
                        "dots {what}: {got}, {want}"
                    );
                }
            }
            let want: Vec<f64> = back
                .want()
                .iter()
                .zip(&p)
                .map(|(d, &p)| d * if p > 0.0 { 2.0 * p } else { 0.5 * p })
                .collect();
            let want = sums.times(&want, n);
            assert_rows(&format!("gradient {what}"), &gradient, &want, n);
        }
    }
}

/// The gradient of x through `p = s rmsnorm(x) W^T` in f64, from the gradient of p alone.
#[test]
fn gradient_through_the_norm_of_a_product() {
    let gpu = Gpu::new();
    for (i, shape) in shapes().into_iter().enumerate() {
        let [_, m, n, k] = shape;
        // dp' [m, k], W [k, n], x [m, n]; p is what the forward stores.
        let case = Case::new(800 + i as u64, Orientation::Nn, shape);
        let mut random = Random::new(820 + i as u64);
        let (x, aux) = (random.bf16(m * n, 1.5), random.bf16(m * n, 1.0));
        let columns = |row: usize, width: u64| row * width as usize..(row + 1) * width as usize;
        let factor = |row: usize| f64::from(FACTOR) * inverse_rms(&x[columns(row, n)]);
        let mut want = Vec::new();
        let parts = square_parts(k);
        let mut dots = vec![0.0; (parts * m) as usize];
        for row in 0..m as usize {
            let (x, dp) = (&x[columns(row, n)], &case.a[columns(row, k)]);
            let e: Vec<f64> = (0..n as usize)
                .map(|c| {
                    (0..k as usize)
                        .map(|j| dp[j] * case.b[j * n as usize + c])
                        .sum()
                })
                .collect();
            // norm_gradient wants the gradient before its factor 1 / rms.
            let r = inverse_rms(x);
            let before: Vec<f64> = e.iter().map(|e| e / r).collect();
            let gradient = norm_gradient(x, &before);
            want.extend(
                gradient
                    .iter()
                    .zip(&aux[columns(row, n)])
                    .map(|(a, b)| a + b),
            );
            for (j, dp) in dp.iter().enumerate() {
                let weight = &case.b[j * n as usize..][..n as usize];
                let p: f64 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
                dots[j / 128 * m as usize + row] += dp * bf16(factor(row) * p);
            }
        }
        let squares: Vec<f64> = x
            .chunks_exact(n as usize)
            .map(|row| row.iter().map(|x| x * x).sum())
            .collect();
        let (xd, aux_d, dots_d, squares_d) = (
            gpu.bf16(&x),
            gpu.bf16(&aux),
            gpu.f32(&dots),
            gpu.f32(&squares),
        );
        let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
        let mut results = Vec::new();
        for (tile, kernels) in &tiles(&gpu, "gemm_nn_add_norm_bf16") {
            let out = gpu.poison(2 * m * n);
            let sums = gpu.poison(4 * square_parts(n) * m);
            let matrix = |b: &Buffer| Matrix::new(b.ptr(), m, n);
            let (left, right) = case.matrices(&a, &b);
            let scale = RowScale {
                sums: squares_d.ptr(),
                parts: 1,
                d: n,
                factor: FACTOR,
            };
            kernels
                .gemm_add_norm(
                    &gpu.stream,
                    left,
                    right,
                    matrix(&out),
                    matrix(&aux_d),
                    xd.ptr(),
                    scale,
                    dots_d.ptr(),
                    Some(sums.ptr()),
                )
                .unwrap();
            gpu.wait();
            let what = format!("{tile:?} {shape:?}");
            let gradient = out.read_bf16();
            assert_bf16(&what, &gradient, &want, 1.5);
            for (part, got) in sums.read_f32().chunks_exact(m as usize).enumerate() {
                for (row, got) in got.iter().enumerate() {
                    let place = columns(row, n).skip(128 * part).take(128);
                    let products: Vec<f64> = place.map(|at| gradient[at] * x[at]).collect();
                    let size: f64 = products.iter().map(|p| p.abs()).sum();
                    let want: f64 = products.iter().sum();
                    assert!(
                        (got - want).abs() <= 1e-5 * size,
                        "sums {what}: {got}, {want}"
                    );
                }
            }
            results.push([out.bytes(), sums.bytes()].concat());
        }
        assert!(
            results.iter().all(|r| *r == results[0]),
            "{shape:?}: the tile shows"
        );
    }
}

#[test]
fn a_scale_that_does_not_fit_is_named() {
    let gpu = Gpu::new();
    let sums = Sums::new(&gpu, 1, 64, 64, 1);
    let small = gpu.poison(128 * 64 * 2);
    let run = |rows, scale| {
        let matrix = Matrix::new(small.ptr(), rows, 64);
        let weight = Matrix::new(small.ptr(), 64, 64);
        let kernels = gpu.kernels;
        kernels
            .gemm_scaled(&gpu.stream, matrix, weight, matrix, Some(scale))
            .unwrap_err()
            .to_string()
    };
    let short = run(128, sums.scale());
    assert!(
        short.contains("sums of squares") && short.contains("gemm_nt_scaled_bf16"),
        "{short}"
    );
    let empty = run(
        64,
        RowScale {
            parts: 0,
            ..sums.scale()
        },
    );
    assert!(empty.contains("0 parts"), "{empty}");
}

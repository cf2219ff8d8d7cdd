//! The MLP-down product and the mix behind it (`gemm_mix.cu`).

use birdie::kernels::Matrix;
use birdie::kernels::gemm::Orientation;
use birdie::kernels::norm_mix::{Entry, Mix};
use birdie::kernels::row_scale::square_parts;

use crate::device::{Buffer, Gpu};
use crate::gemm::{Case, tiles};
use crate::numbers::{Random, assert_bf16, assert_f32};

/// Rows, width and columns of `a`: the smallest; odd rows, and one more than a consumer's; widths that end in a box, a part or a tile, up
/// to the widest; rows of several tiles per CTA; tiles with a lead and without.
const SHAPES: [[u64; 3]; 11] = [
    [1, 64, 8],
    [1, 8, 64],
    [65, 64, 192],
    [200, 144, 80],
    [131, 192, 64],
    [37, 320, 136],
    [640, 384, 64],
    [257, 512, 1536],
    [300, 576, 400],
    [70, 1088, 264],
    [9, 2048, 520],
];

/// Everything that one shape needs on the device.
struct Operands {
    rows: u64,
    d: u64,
    case: Case,
    a: Buffer,
    b: Buffer,
    aux: Buffer,
    x0: Buffer,
    skip: Buffer,
    /// scale and bias; the skip's weight is the scale.
    scale: Buffer,
    bias: Buffer,
    resid_mix: Buffer,
}

/// What a launch leaves.
struct Results {
    x: Buffer,
    x_in: Buffer,
    squares: Buffer,
}

const ENTRIES: [&str; 4] = ["plain", "skip", "skip of x", "recycle"];

impl Operands {
    fn mix(&self, kind: usize, x: &Buffer) -> Mix {
        let skip = |skip: &Buffer| Entry::Skip {
            skip: skip.ptr(),
            weight: self.scale.ptr(),
        };
        Mix {
            rows: self.rows,
            d: self.d,
            x: x.ptr(),
            x0: self.x0.ptr(),
            entry: match kind {
                0 => Entry::Plain,
                1 => skip(&self.skip),
                2 => skip(x),
                _ => Entry::Recycle {
                    scale: self.scale.ptr(),
                    bias: self.bias.ptr(),
                },
            },
            resid_mix: self.resid_mix.ptr(),
        }
    }

    fn results(&self, gpu: &Gpu, parts: u64) -> Results {
        let n = self.rows * self.d;
        Results {
            x: gpu.poison(2 * n),
            x_in: gpu.poison(2 * n),
            squares: gpu.poison(4 * parts * self.rows),
        }
    }
}

#[test]
fn product_and_mix_in_one() {
    let gpu = Gpu::new();
    for (i, [rows, d, k]) in SHAPES.into_iter().enumerate() {
        let case = Case::new(900 + i as u64, Orientation::Nt, [1, rows, d, k]);
        let mut random = Random::new(920 + i as u64);
        let n = rows * d;
        let [aux, x0, skip] = [0; 3].map(|_| random.bf16(n, 1.0));
        let [m0, m1, scale, bias] = [0; 4].map(|_| random.f32(d, 1.0));
        let resid_mix: Vec<f64> = m0.iter().chain(&m1).copied().collect();
        let operands = Operands {
            rows,
            d,
            a: gpu.bf16(&case.a),
            b: gpu.bf16(&case.b),
            aux: gpu.bf16(&aux),
            x0: gpu.bf16(&x0),
            skip: gpu.bf16(&skip),
            scale: gpu.f32(&scale),
            bias: gpu.f32(&bias),
            resid_mix: gpu.f32(&resid_mix),
            case,
        };
        let product = operands.case.want();
        let want_x: Vec<f64> = product.iter().zip(&aux).map(|(d, x)| d + x).collect();
        for (kind, entry) in ENTRIES.into_iter().enumerate() {
            let (a, b) = operands.case.matrices(&operands.a, &operands.b);
            let parts = square_parts(d);
            let separate = operands.results(&gpu, 1);
            let matrix = |buffer: &Buffer| Matrix::new(buffer.ptr(), rows, d);
            let (out, added) = (matrix(&separate.x), matrix(&operands.aux));
            let (stream, nt) = (&gpu.stream, Orientation::Nt);
            gpu.kernels
                .gemm_add(stream, nt, a, b, out, added, 1.0, 1.0)
                .unwrap();
            let mix = operands.mix(kind, &separate.x);
            let (x_in, squares) = (separate.x_in.ptr(), separate.squares.ptr());
            gpu.kernels
                .mix_norm_forward(stream, &mix, x_in, squares)
                .unwrap();
            let mut first: Option<Vec<u8>> = None;
            for (tile, kernels) in &tiles(&gpu, "gemm_nt_mix") {
                let what = format!("{tile:?} [{rows}, {d}, {k}] {entry}");
                let results = operands.results(&gpu, parts);
                // In place for every other shape.
                let place = gpu.bf16(&aux);
                let (x, aux) = match i % 2 {
                    0 => (&results.x, operands.aux.ptr()),
                    _ => (&place, place.ptr()),
                };
                let mix = operands.mix(kind, x);
                let (x_in, squares) = (results.x_in.ptr(), results.squares.ptr());
                kernels
                    .gemm_mix(stream, a, b, aux, &mix, x_in, squares)
                    .unwrap();
                gpu.wait();
                let (x, x_in) = (x.read_bf16(), results.x_in.read_bf16());
                assert_bf16(&format!("x {what}"), &x, &want_x, 1.0);
                let want_in: Vec<f64> = (0..n as usize)
                    .map(|at| {
                        let c = at % d as usize;
                        let u = match kind {
                            0 => x[at],
                            1 => x[at] + scale[c] * skip[at],
                            2 => x[at] + scale[c] * x[at],
                            _ => scale[c] * x[at] + bias[c],
                        };
                        m0[c] * u + m1[c] * x0[at]
                    })
                    .collect();
                // Products that cancel leave the roundings of f32, of things of size 10.
                assert_bf16(&format!("x_in {what}"), &x_in, &want_in, 0.001);
                let want_squares: Vec<f64> = (0..parts as usize)
                    .flat_map(|part| {
                        let columns = |row: &[f64]| {
                            let part = row.iter().skip(128 * part).take(128);
                            part.map(|x| x * x).sum::<f64>()
                        };
                        x_in.chunks_exact(d as usize)
                            .map(columns)
                            .collect::<Vec<_>>()
                    })
                    .collect();
                let got = results.squares.read_f32();
                assert_f32(&format!("squares {what}"), &got, &want_squares, 1.0);
                // What is not bit for bit what the two kernels leave is not what the backward takes for x_in.
                assert!(x == separate.x.read_bf16(), "x {what}: not as two kernels");
                assert!(
                    x_in == separate.x_in.read_bf16(),
                    "x_in {what}: not as two kernels"
                );
                let bytes = results.squares.bytes();
                let first = first.get_or_insert_with(|| bytes.clone());
                assert!(*first == bytes, "{what}: the tile shows");
            }
            gpu.wait();
        }
    }
}

#[test]
fn a_mix_that_does_not_fit_is_named() {
    let gpu = Gpu::new();
    let (rows, d, k) = (64, 64, 64);
    let [big, x, x_in, x0, vector] = [0; 5].map(|_| gpu.poison(2 * rows * d));
    let squares = gpu.poison(4 * rows);
    let mix = Mix {
        rows,
        d,
        x: x.ptr(),
        x0: x0.ptr(),
        entry: Entry::Plain,
        resid_mix: vector.ptr(),
    };
    let run = |mix: &Mix, k_b: u64, x_in: &Buffer, squares: &Buffer| {
        let (a, b) = (
            Matrix::new(big.ptr(), rows, k),
            Matrix::new(big.ptr(), d, k_b),
        );
        let kernels = gpu.kernels;
        let stream = &gpu.stream;
        let (x_in, squares) = (x_in.ptr(), squares.ptr());
        kernels
            .gemm_mix(stream, a, b, big.ptr(), mix, x_in, squares)
            .map_err(|error| error.to_string())
    };
    let work = run(&mix, k, &x_in, &squares).expect("it fits");
    gpu.wait();
    assert_eq!(work.flops, 2 * rows * d * k);
    assert_eq!(work.bytes, 2 * (rows * k + d * k + 4 * rows * d) + 4 * rows);
    let named = |result: Result<_, String>, what: &str| {
        let error = result.expect_err(what);
        assert!(
            error.contains("gemm_nt_mix") && error.contains(what),
            "{error}"
        );
    };
    named(run(&mix, 32, &x_in, &squares), "do not fit together");
    named(
        run(&Mix { rows: 32, ..mix }, k, &x_in, &squares),
        "but x is [32, 64]",
    );
    named(run(&mix, k, &x0, &squares), "x_in is x0");
    named(run(&mix, k, &big, &squares), "x_in is aux");
    named(run(&mix, k, &x, &squares), "x is x0 or x_in");
    let small = gpu.poison(4 * rows - 4);
    named(run(&mix, k, &x_in, &small), "squares");
}

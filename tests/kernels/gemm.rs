use birdie::driver::modules::KERNEL_FILES;
use birdie::kernels::gemm::{Cut, Orientation, Shape, SplitReduce, Tile};
use birdie::kernels::{Kernels, Matrix};

use crate::device::Gpu;
use crate::numbers::{Random, assert_bf16, assert_close, assert_f32, bf16};

/// D of one batch after the other, in f64.
pub fn product(
    orientation: Orientation,
    a: &[f64],
    b: &[f64],
    [batches, m, n, k]: [u64; 4],
) -> Vec<f64> {
    let [m, n, k] = [m as usize, n as usize, k as usize];
    let mut d = Vec::with_capacity(batches as usize * m * n);
    for batch in 0..batches as usize {
        let (a, b) = (&a[batch * m * k..][..m * k], &b[batch * n * k..][..n * k]);
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for l in 0..k {
                let x = match orientation {
                    Orientation::Nt | Orientation::Nn => a[i * k + l],
                    Orientation::Tn => a[l * m + i],
                };
                for j in 0..n {
                    let y = match orientation {
                        Orientation::Nt => b[j * k + l],
                        Orientation::Nn | Orientation::Tn => b[l * n + j],
                    };
                    out[i * n + j] += x * y;
                }
            }
        }
        d.extend(out);
    }
    d
}

/// Random operands and their device matrices for a shape.
pub struct Case {
    pub orientation: Orientation,
    pub shape: [u64; 4],
    pub a: Vec<f64>,
    pub b: Vec<f64>,
}

impl Case {
    pub fn new(seed: u64, orientation: Orientation, shape: [u64; 4]) -> Self {
        let [batches, m, n, k] = shape;
        let mut random = Random::new(seed);
        let scale = (k as f64).powf(-0.25); // D has standard deviation 1
        Self {
            orientation,
            shape,
            a: random.bf16(batches * m * k, scale),
            b: random.bf16(batches * n * k, scale),
        }
    }

    pub fn want(&self) -> Vec<f64> {
        product(self.orientation, &self.a, &self.b, self.shape)
    }

    pub fn matrices(
        &self,
        a: &crate::device::Buffer,
        b: &crate::device::Buffer,
    ) -> (Matrix, Matrix) {
        let [batches, m, n, k] = self.shape;
        let (a, b) = (a.ptr(), b.ptr());
        match self.orientation {
            Orientation::Nt => (
                Matrix::batch(a, batches, m, k),
                Matrix::batch(b, batches, n, k),
            ),
            Orientation::Nn => (
                Matrix::batch(a, batches, m, k),
                Matrix::batch(b, batches, k, n),
            ),
            Orientation::Tn => (
                Matrix::batch(a, batches, k, m),
                Matrix::batch(b, batches, k, n),
            ),
        }
    }
}

/// The kernels with each tile that `entry` has, for a device with more and with fewer multiprocessors than tiles.
pub fn tiles(gpu: &Gpu, entry: &str) -> Vec<(Tile, Kernels)> {
    let all = [(Tile::Square, 4), (Tile::Wide, 6), (Tile::Quad, 8)];
    all.into_iter()
        .filter(|(tile, _)| has(*tile, entry))
        .map(|(tile, sms)| (tile, gpu.kernels.with_tile(tile, sms)))
        .collect()
}

fn has(tile: Tile, entry: &str) -> bool {
    let name = format!("{entry}{}", tile.suffix());
    let mut entries = KERNEL_FILES.iter().flat_map(|file| file.entries);
    entries.any(|entry| *entry == name)
}

/// batches, m, n, k: the smallest, edges in every direction, more k-blocks than stages, several tiles per CTA, batches.
/// With 256 rows and more the leading warpgroup has its lead, with 3 x 256 columns wide tiles are clipped to a part of one box.
pub const SHAPES: [[u64; 4]; 8] = [
    [1, 64, 64, 64],
    [1, 128, 128, 128],
    [1, 200, 144, 80],
    [1, 72, 16, 400],
    [1, 640, 384, 64],
    [3, 136, 136, 72],
    [1, 520, 528, 464],
    [1, 256, 264, 1024],
];

#[test]
fn bf16_products() {
    let gpu = Gpu::new();
    for (orientation, entry) in [
        (Orientation::Nt, "gemm_nt_bf16"),
        (Orientation::Nn, "gemm_nn_bf16"),
        (Orientation::Tn, "gemm_tn_bf16"),
    ] {
        for (tile, kernels) in &tiles(&gpu, entry) {
            for (i, shape) in SHAPES.into_iter().enumerate() {
                let case = Case::new(i as u64, orientation, shape);
                let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
                let [batches, m, n, _] = shape;
                let out = gpu.poison(2 * batches * m * n);
                let (left, right) = case.matrices(&a, &b);
                let work = kernels
                    .gemm(
                        &gpu.stream,
                        orientation,
                        left,
                        right,
                        Matrix::batch(out.ptr(), batches, m, n),
                    )
                    .unwrap();
                assert_eq!(work.flops, 2 * shape.iter().product::<u64>());
                gpu.wait();
                assert_bf16(
                    &format!("{tile:?} {orientation:?} {shape:?}"),
                    &out.read_bf16(),
                    &case.want(),
                    1.0,
                );
            }
        }
    }
}

#[test]
fn add_epilogue() {
    let gpu = Gpu::new();
    for (orientation, entry) in [
        (Orientation::Nt, "gemm_nt_add_bf16"),
        (Orientation::Nn, "gemm_nn_add_bf16"),
    ] {
        for (tile, kernels) in &tiles(&gpu, entry) {
            for (i, shape) in SHAPES.into_iter().enumerate() {
                let case = Case::new(10 + i as u64, orientation, shape);
                let [batches, m, n, _] = shape;
                let aux = Random::new(20 + i as u64).bf16(batches * m * n, 1.0);
                let (a, b, aux_buffer) = (gpu.bf16(&case.a), gpu.bf16(&case.b), gpu.bf16(&aux));
                // In place for every other shape.
                let separate = gpu.poison(2 * batches * m * n);
                let out = if i % 2 == 0 { &separate } else { &aux_buffer };
                let matrix = |p| Matrix::batch(p, batches, m, n);
                let (left, right) = case.matrices(&a, &b);
                kernels
                    .gemm_add(
                        &gpu.stream,
                        orientation,
                        left,
                        right,
                        matrix(out.ptr()),
                        matrix(aux_buffer.ptr()),
                        2.0,
                        -0.5,
                    )
                    .unwrap();
                gpu.wait();
                let want: Vec<f64> = case
                    .want()
                    .iter()
                    .zip(&aux)
                    .map(|(d, x)| 2.0 * d - 0.5 * x)
                    .collect();
                assert_bf16(
                    &format!("{tile:?} {orientation:?} {shape:?}"),
                    &out.read_bf16(),
                    &want,
                    1.0,
                );
            }
        }
    }
}

#[test]
fn activation_and_its_derivative() {
    let gpu = Gpu::new();
    for (tile, kernels) in &tiles(&gpu, "gemm_nt_leaky2") {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let [batches, m, n, _] = shape;
            let matrix = |p| Matrix::batch(p, batches, m, n);
            let case = Case::new(30 + i as u64, Orientation::Nt, shape);
            let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
            let (pre, activated) = (
                gpu.poison(2 * batches * m * n),
                gpu.poison(2 * batches * m * n),
            );
            let (left, right) = case.matrices(&a, &b);
            kernels
                .gemm_leaky2(
                    &gpu.stream,
                    left,
                    right,
                    matrix(pre.ptr()),
                    matrix(activated.ptr()),
                    None,
                )
                .unwrap();
            gpu.wait();
            let p = pre.read_bf16();
            assert_bf16(
                &format!("{tile:?} pre-activation {shape:?}"),
                &p,
                &case.want(),
                1.0,
            );
            let want: Vec<f64> = p
                .iter()
                .map(|&p| bf16(if p > 0.0 { p * p } else { 0.25 * p * p }))
                .collect();
            assert_eq!(activated.read_bf16(), want, "activation {shape:?}");

            let back = Case::new(40 + i as u64, Orientation::Nn, shape);
            let (a, b) = (gpu.bf16(&back.a), gpu.bf16(&back.b));
            let out = gpu.poison(2 * batches * m * n);
            let (left, right) = back.matrices(&a, &b);
            kernels
                .gemm_dleaky2(
                    &gpu.stream,
                    left,
                    right,
                    matrix(out.ptr()),
                    matrix(pre.ptr()),
                    None,
                    None,
                )
                .unwrap();
            gpu.wait();
            let want: Vec<f64> = back
                .want()
                .iter()
                .zip(&p)
                .map(|(d, &p)| d * if p > 0.0 { 2.0 * p } else { 0.5 * p })
                .collect();
            assert_close(
                &format!("{tile:?} derivative {shape:?}"),
                &out.read_bf16(),
                &want,
                0.012,
                0.01,
            );
        }
    }
}

#[test]
fn split_sums_and_their_reduction() {
    let gpu = Gpu::new();
    for (tile, kernels) in &tiles(&gpu, "gemm_tn_f32") {
        for orientation in [Orientation::Nn, Orientation::Tn] {
            // Parts, k-blocks of one, and last ones that are computed together: by as many clusters as are left, by fewer, by one.
            for (i, (shape, [splits, blocks, together])) in [
                ([1, 64, 64, 64], [1, 1, 1]),
                ([1, 144, 136, 1000], [4, 4, 1]),
                ([1, 128, 64, 640], [5, 2, 1]),
                ([2, 72, 80, 304], [2, 3, 2]),
                ([1, 264, 272, 2048], [3, 11, 1]),
                ([1, 520, 272, 1496], [3, 10, 2]),
                ([1, 264, 528, 704], [2, 8, 4]),
                ([1, 264, 272, 1104], [4, 5, 100]),
                ([2, 136, 264, 400], [2, 5, 3]),
                ([1, 264, 272, 640], [1, 10, 3]),
            ]
            .into_iter()
            .enumerate()
            {
                let case = Case::new(50 + i as u64, orientation, shape);
                let cut = Cut {
                    parts: splits,
                    blocks,
                    together,
                };
                let [batches, m, n, _] = shape;
                let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
                let partial = gpu.poison(4 * batches * splits * m * n);
                let (left, right) = case.matrices(&a, &b);
                kernels
                    .gemm_f32(&gpu.stream, orientation, left, right, partial.ptr(), cut)
                    .unwrap();
                gpu.wait();
                let parts = partial.read_f32();
                let size = (m * n) as usize;
                let sums: Vec<f64> = parts
                    .chunks_exact(size * splits as usize)
                    .flat_map(|batch| {
                        (0..size)
                            .map(|e| batch.iter().skip(e).step_by(size).sum::<f64>())
                            .collect::<Vec<_>>()
                    })
                    .collect();
                let want = case.want();
                assert_f32(
                    &format!("{tile:?} sum of splits {orientation:?} {shape:?}"),
                    &sums,
                    &want,
                    1.0,
                );
                if batches > 1 {
                    continue;
                }

                // The lower half of the rows, scaled and added to an old gradient.
                let (begin, rows) = (m / 2, m - m / 2);
                let mut random = Random::new(60 + i as u64);
                let (scale, weight) = (random.f32(rows, 1.0), random.f32(rows * n, 1.0));
                let (old, old_scale) = (random.f32(rows * n, 1.0), random.f32(rows, 1.0));
                let (scale_d, weight_d) = (gpu.f32(&scale), gpu.f32(&weight));
                let (grad, scale_grad) = (gpu.f32(&old), gpu.f32(&old_scale));
                kernels
                    .split_reduce(
                        &gpu.stream,
                        SplitReduce {
                            partial: partial.ptr(),
                            splits,
                            partial_rows: m,
                            row_begin: begin,
                            rows,
                            columns: n,
                            scale: Some(scale_d.ptr()),
                            one_scale: false,
                            weight: Some(weight_d.ptr()),
                            grad: grad.ptr(),
                            scale_grad: Some(scale_grad.ptr()),
                            accumulate: true,
                        },
                    )
                    .unwrap();
                gpu.wait();
                let n = n as usize;
                let lower = &want[begin as usize * n..];
                let want_grad: Vec<f64> = (0..lower.len())
                    .map(|e| old[e] + scale[e / n] * lower[e])
                    .collect();
                let want_scale: Vec<f64> = (0..rows as usize)
                    .map(|r| {
                        old_scale[r]
                            + (0..n)
                                .map(|c| weight[r * n + c] * lower[r * n + c])
                                .sum::<f64>()
                    })
                    .collect();
                assert_f32("weight gradient", &grad.read_f32(), &want_grad, 1.0);
                assert_f32("scale gradient", &scale_grad.read_f32(), &want_scale, 10.0);
            }
        }
    }
}

#[test]
fn same_inputs_give_the_same_bits() {
    let gpu = Gpu::new();
    let case = Case::new(70, Orientation::Tn, [1, 256, 128, 1024]);
    let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
    let (left, right) = case.matrices(&a, &b);
    let cut = Cut::even(1024, 4);
    let runs: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let partial = gpu.poison(4 * 4 * 256 * 128);
            gpu.kernels
                .gemm_f32(
                    &gpu.stream,
                    Orientation::Tn,
                    left,
                    right,
                    partial.ptr(),
                    cut,
                )
                .unwrap();
            gpu.wait();
            partial.bytes()
        })
        .collect();
    assert!(runs[0] == runs[1]);
}

#[test]
fn a_tile_and_its_mirror_image() {
    let gpu = Gpu::new();
    for (i, (batches, side, k)) in [
        (1u64, 64u64, 64u64),
        (2, 136, 72),
        (1, 384, 400),
        (2, 264, 128),
    ]
    .into_iter()
    .enumerate()
    {
        for orientation in [Orientation::Nt, Orientation::Tn] {
            let what = format!("{orientation:?} {batches} x {side} x {k}");
            let mut case = Case::new(80 + i as u64, orientation, [batches, side, side, k]);
            case.b = case.a.clone();
            let a = gpu.bf16(&case.a);
            let out = gpu.poison(2 * batches * side * side);
            let square = |p| Matrix::batch(p, batches, side, side);
            let (left, _) = case.matrices(&a, &a);
            gpu.kernels
                .gemm_symmetric(&gpu.stream, orientation, left, square(out.ptr()))
                .unwrap();
            gpu.wait();
            let gram = out.read_bf16();
            assert_bf16(&what, &gram, &case.want(), 1.0);

            let sum = gpu.poison(2 * batches * side * side);
            gpu.kernels
                .gemm_symmetric_add(
                    &gpu.stream,
                    square(out.ptr()),
                    square(sum.ptr()),
                    square(out.ptr()),
                    0.25,
                    -2.0,
                )
                .unwrap();
            gpu.wait();
            let sums = sum.read_bf16();
            let shape = [batches, side, side, side];
            let want: Vec<f64> = product(Orientation::Nt, &gram, &gram, shape)
                .iter()
                .zip(&gram)
                .map(|(d, a)| 0.25 * d - 2.0 * a)
                .collect();
            assert_close(&format!("sum of {what}"), &sums, &want, 0.006, 0.02);
            let n = side as usize;
            for matrix in gram.chunks_exact(n * n).chain(sums.chunks_exact(n * n)) {
                let mirrored = (0..n * n).all(|e| matrix[e] == matrix[e % n * n + e / n]);
                assert!(mirrored, "{what} is not symmetric");
            }
        }
    }
}

#[test]
fn bits_depend_on_shapes_alone() {
    let gpu = Gpu::new();
    let case = Case::new(71, Orientation::Tn, [1, 264, 272, 2500]);
    let (a, b) = (gpu.bf16(&case.a), gpu.bf16(&case.b));
    let (left, right) = case.matrices(&a, &b);
    let even = Cut::of(264, 272, 2500, 1);
    assert_eq!((even.parts, even.together), (3, 1));
    let dealt = Cut {
        together: 3,
        ..even
    };
    let mut results = Vec::new();
    for multiprocessors in [2, 4, 5, 132] {
        for tile in [Tile::Square, Tile::Wide] {
            for cut in [even, dealt] {
                let kernels = gpu.kernels.with_tile(tile, multiprocessors);
                let partial = gpu.poison(4 * cut.parts * 264 * 272);
                kernels
                    .gemm_f32(
                        &gpu.stream,
                        Orientation::Tn,
                        left,
                        right,
                        partial.ptr(),
                        cut,
                    )
                    .unwrap();
                gpu.wait();
                results.push(partial.bytes());
            }
        }
    }
    assert!(results.iter().all(|r| *r == results[0]));
}

/// What the table says about the products of the recipes' full-size models.
#[test]
fn tiles_of_the_recipes() {
    let tokens = 98_304;
    let shape = |m, n, k, batches| Shape { m, n, k, batches };
    for (n, k, bytes, tile, why) in [
        (
            1024,
            512,
            2,
            Tile::Quad,
            "q, k, v: L2 is the bound of wide tiles",
        ),
        (1536, 512, 4, Tile::Quad, "MLP up, two results: L2"),
        (
            512,
            1536,
            6,
            Tile::Quad,
            "MLP up's data gradient, two tensors read: L2",
        ),
        (512, 1536, 4, Tile::Quad, "MLP down: L2 by a little"),
        (
            512,
            512,
            2,
            Tile::Quad,
            "data gradient of the output projection: L2",
        ),
        (512, 512, 4, Tile::Wide, "output projection: memory"),
        (
            512,
            1024,
            2,
            Tile::Wide,
            "data gradient of q, k, v alone: tensor cores",
        ),
        (
            512,
            1024,
            4,
            Tile::Quad,
            "data gradient of q, k, v, something added: L2",
        ),
    ] {
        let shape = shape(tokens, n, k, 1);
        assert_eq!(Tile::of(shape, bytes, true), tile, "{n} x {k}: {why}");
        assert_eq!(Tile::of(shape, bytes, false), Tile::Wide, "{n} x {k}");
        let [wide, quad, square] =
            [Tile::Wide, Tile::Quad, Tile::Square].map(|t| t.l2_bytes(shape));
        assert_eq!((square, 4 * quad), (2 * wide, 3 * wide));
    }
    for (shape, tile, why) in [
        (
            shape(tokens, 64, 512, 1),
            Tile::Square,
            "wide tiles would multiply zeros",
        ),
        (shape(2048, 128, 512, 1), Tile::Square, "likewise"),
        (
            shape(512, 512, 512, 6),
            Tile::Square,
            "96 tiles in one wave of short ones",
        ),
        (shape(4096, 512, 512, 1), Tile::Wide, "one wave of either"),
        (
            shape(1536, 512, 512, 11),
            Tile::Wide,
            "two waves; quad tiles would take three",
        ),
    ] {
        assert_eq!(Tile::of(shape, 4, true), tile, "{shape:?}: {why}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let gpu = Gpu::new();
    let small = gpu.poison(64 * 64 * 2);
    let matrix = |rows, columns| Matrix::new(small.ptr(), rows, columns);
    let run = |a, b, out| {
        gpu.kernels
            .gemm(&gpu.stream, Orientation::Nt, a, b, out)
            .unwrap_err()
            .to_string()
    };
    let mismatch = run(matrix(64, 64), matrix(64, 32), matrix(64, 64));
    assert!(
        mismatch.contains("gemm_nt_bf16") && mismatch.contains("[1, 64, 32]"),
        "{mismatch}"
    );
    let output = run(matrix(64, 64), matrix(64, 64), matrix(64, 32));
    assert!(output.contains("out"), "{output}");
    let size = run(matrix(128, 64), matrix(64, 64), matrix(128, 64));
    assert!(
        size.contains("needs 16384 bytes") && size.contains("8192"),
        "{size}"
    );
    let pitch = run(matrix(64, 12), matrix(64, 12), matrix(64, 64));
    assert!(pitch.contains("multiples of 16 bytes"), "{pitch}");
    let unaligned = run(
        Matrix::new(small.ptr().offset(2), 8, 8),
        matrix(64, 8),
        matrix(8, 64),
    );
    assert!(unaligned.contains("not aligned"), "{unaligned}");
}

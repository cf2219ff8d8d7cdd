//! The ladder of `cuda/lab/`: every step computes what the f64 reference computes, and gains by the counters what it says.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use birdie::bench::predict::Counts;
use birdie::driver::launch::{Launch, Parameter};
use birdie::driver::modules::Module;
use birdie::driver::tensor_map::{Element, Swizzle, TensorMap, Tiled};
use birdie::driver::{self, DeviceChoice};
use birdie::kernels::attention_forward::{AttentionForward, AttentionShape};
use birdie::kernels::gemm::{Orientation, Tile};
use birdie::kernels::{DevPtr, Kernels, Matrix};
use birdie::model::device::open_context;
use birdie_emulator::driver as emulator;
use cust::context::Context;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

/// A device for one launch at a time: counts belong to the process.
struct Device {
    stream: Stream,
    _context: Context,
    _one: MutexGuard<'static, ()>,
}

impl Device {
    fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the lock is held, and nothing else in this test binary touches the environment.
        unsafe { std::env::set_var("BIRDIE_EMU_COUNT", "1") };
        driver::init(DeviceChoice::Emu).expect("a driver");
        let context = open_context().expect("a context");
        emulator::keep_counts(true);
        Self {
            stream: Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream"),
            _context: context,
            _one: one,
        }
    }

    /// The counts of what `launch` launches, once it has ended without a finding.
    fn counted(&self, launch: impl FnOnce(&Stream)) -> Counts {
        emulator::take_counts();
        launch(&self.stream);
        self.stream
            .synchronize()
            .expect("it ends without a finding");
        Counts::of(emulator::take_counts().last().expect("counted"))
    }
}

/// How a kernel of the ladder is launched.
#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    /// Of the result, made by a cluster: rows, columns.
    tile: [usize; 2],
    threads: u32,
    cluster: u32,
    /// Dynamic shared memory, 1024 bytes for alignment included.
    shared: u32,
    /// Operands are tensor maps with boxes of 64 columns and so many rows.
    box_rows: Option<u32>,
    /// The result is bf16, and a tensor map.
    bf16: bool,
}

impl Step {
    /// A kernel that takes pointers.
    const fn plain(name: &'static str, tile: [usize; 2], threads: u32) -> Self {
        Self {
            name,
            tile,
            threads,
            cluster: 1,
            shared: 0,
            box_rows: None,
            bf16: false,
        }
    }
}

/// `[batches, rows, columns]` of an operand.
type Shape = [usize; 3];

/// A map of a bf16 tensor with boxes of 64 columns under the 128-byte swizzle.
fn map(name: &str, address: u64, [batches, rows, columns]: Shape, box_rows: u32) -> TensorMap {
    let dims = [columns as u64, rows as u64, batches as u64];
    let tensor = Tiled {
        element: Element::Bf16,
        address,
        dims: &dims,
        strides: &[2 * dims[0], 2 * dims[0] * dims[1]],
        box_dims: &[64, box_rows, 1],
        swizzle: Swizzle::B128,
    };
    TensorMap::tiled(name, &tensor).expect("a map")
}

/// Runs `lab_NAME` of `ptx/lab/NAME.ptx` on bf16 operands and integers; the result and the counts.
fn run(
    step: Step,
    grid: [u32; 3],
    operands: &[(&[u16], Shape)],
    out: Shape,
    sizes: &[i32],
) -> (Vec<f32>, Counts) {
    let device = Device::new();
    let name = step.name;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("ptx/lab/{name}.ptx"));
    let ptx = std::fs::read_to_string(path).expect("compiled by scripts/refresh-ptx");
    let module = Module::from_ptx(name, &ptx).expect("a module");
    let function = module.function(&format!("lab_{name}")).expect("the kernel");
    if step.shared > 0 {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("cuda/lab/{name}.cu"));
        let source = std::fs::read_to_string(path).expect("its source");
        let (thousands, rest) = (step.shared / 1000, step.shared % 1000);
        let said = format!("dynamic: {thousands},{rest:03} bytes");
        assert!(source.contains(&said), "{name}: its header has no {said:?}");
        function.allow_dynamic_shared(step.shared).expect("it fits");
    }
    let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
    let buffers: Vec<DeviceBuffer<u16>> = operands
        .iter()
        .map(|(values, _)| DeviceBuffer::from_slice(values).expect("memory"))
        .collect();
    for (buffer, (_, shape)) in buffers.iter().zip(operands) {
        let pointer = buffer.as_device_ptr();
        parameters.push(match step.box_rows {
            Some(rows) => Box::new(map(name, pointer.as_raw(), *shape, rows)),
            None => Box::new(pointer),
        });
    }
    // An element that is not written shows: all ones is a NaN in both types.
    let elements: usize = out.iter().product();
    let mut result = vec![0xffu8; elements * if step.bf16 { 2 } else { 4 }];
    let output = DeviceBuffer::from_slice(&result).expect("memory");
    let pointer = output.as_device_ptr();
    parameters.push(if step.bf16 {
        Box::new(map(name, pointer.as_raw(), out, 64))
    } else {
        Box::new(pointer)
    });
    for &size in sizes {
        parameters.push(Box::new(size));
    }
    let parameters: Vec<&dyn Parameter> = parameters.iter().map(AsRef::as_ref).collect();
    let counts = device.counted(|stream| {
        Launch::new(grid, [step.threads, 1, 1])
            .shared(step.shared)
            .on(stream)
            .run(&function, &parameters)
            .expect("a launch");
    });
    output.copy_to(&mut result).expect("a copy");
    let values = if step.bf16 {
        let bits = result
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]));
        bits.map(|bits| half::bf16::from_bits(bits).to_f32())
            .collect()
    } else {
        let words = result.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        words.map(f32::from_le_bytes).collect()
    };
    (values, counts)
}

/// Numbers between -1 and 1 with few bits, as bf16 and exactly.
fn operand(count: usize, seed: u64) -> (Vec<u16>, Vec<f64>) {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let value = half::bf16::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0);
            (value.to_bits(), value.to_f64())
        })
        .unzip()
}

const GEMM: [Step; 7] = [
    Step::plain("gemm_0_naive", [16, 16], 256),
    Step::plain("gemm_1_shared_tiles", [64, 64], 256),
    Step::plain("gemm_2_mma_sync", [64, 64], 128),
    Step::plain("gemm_3_wgmma", [64, 64], 128),
    Step {
        box_rows: Some(64),
        ..Step::plain("gemm_4_tma", [64, 64], 128)
    },
    Step {
        box_rows: Some(128),
        bf16: true,
        shared: 1024 + 4 * (16384 + 16384) + 4 * 8192 + 64,
        ..Step::plain("gemm_5_warp_specialised", [128, 128], 384)
    },
    Step {
        box_rows: Some(128),
        bf16: true,
        cluster: 2,
        shared: 1024 + 3 * (16384 + 32768) + 8 * 8192 + 64,
        ..Step::plain("gemm_6_cluster", [256, 256], 384)
    },
];

fn product(step: Step, [m, n, k]: [usize; 3]) -> Counts {
    let ((a, exact_a), (b, exact_b)) = (operand(m * k, 1), operand(n * k, 2));
    let [rows, columns] = step.tile.map(|side| side as u32);
    let (down, across) = ((m as u32).div_ceil(rows), (n as u32).div_ceil(columns));
    let grid = if step.cluster == 1 {
        [across, down, 1]
    } else {
        [step.cluster, 1, 1] // One cluster stays for all tiles.
    };
    let sizes = [m as i32, n as i32, k as i32];
    let operands = [(&a[..], [1, m, k]), (&b[..], [1, n, k])];
    let (c, counts) = run(step, grid, &operands, [1, m, n], &sizes);
    for (i, &value) in c.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let exact: f64 = (0..k)
            .map(|j| exact_a[row * k + j] * exact_b[column * k + j])
            .sum();
        // f32 sums of k terms below 1, then perhaps rounded to bf16.
        let rounding = if step.bf16 { exact.abs() / 256.0 } else { 0.0 };
        let error = (f64::from(value) - exact).abs();
        assert!(
            error < 1e-5 * k as f64 + rounding,
            "{} [{row}, {column}]: {value}, {exact}",
            step.name
        );
    }
    counts
}

/// The shipped kernel on the shape of the ladder.
fn final_product(m: usize, n: usize, k: usize) -> Counts {
    let device = Device::new();
    let kernels = Kernels::load_files(&["gemm"]).expect("the kernels");
    let kernels = kernels.with_tile(Tile::Wide, 132);
    let [a, b, c] = [m * k, n * k, m * n].map(|n| {
        let zeros = DeviceBuffer::from_slice(&vec![0u16; n]).expect("memory");
        (
            DevPtr::new(zeros.as_device_ptr().as_raw(), 2 * n as u64),
            zeros,
        )
    });
    let [m, n, k] = [m, n, k].map(|side| side as u64);
    let matrix = |ptr, rows, columns| Matrix::batch(ptr, 1, rows, columns);
    device.counted(|stream| {
        let (a, b, c) = (matrix(a.0, m, k), matrix(b.0, n, k), matrix(c.0, m, n));
        kernels
            .gemm(stream, Orientation::Nt, a, b, c)
            .expect("a launch");
    })
}

fn print(name: &str, c: &Counts) {
    println!(
        "{name}: issued {} fp32 {} mufu {} L2 bytes {} shared passes {} conflicts {} tensor flops {} wgmma cycles {}",
        c.issued,
        c.fp32,
        c.mufu,
        c.l2_bytes,
        c.shared_passes,
        c.shared_conflicts,
        c.tensor_flops,
        c.wgmma_cycles
    );
}

#[test]
fn products_of_odd_shapes() {
    product(GEMM[0], [17, 3, 5]);
    // More k-blocks than stages, the last one cut.
    product(GEMM[4], [64, 128, 232]);
    product(GEMM[5], [200, 136, 360]);
    // Several tiles of one cluster; the second CTA has no row of the last one.
    product(GEMM[6], [296, 520, 232]);
}

#[test]
fn each_step_of_the_product_gains_what_it_says() {
    let [m, n, k] = [256, 256, 256];
    let steps = GEMM.map(|step| {
        let counts = product(step, [m, n, k]);
        print(step.name, &counts);
        counts
    });
    let last = final_product(m, n, k);
    print("final", &last);
    let [naive, shared, mma, wgmma, tma, roles, cluster] = &steps;
    assert!(
        shared.l2_bytes * 4.0 < naive.l2_bytes,
        "tiles are read once"
    );
    assert!(mma.issued * 8.0 < shared.issued && mma.fp32 < shared.fp32);
    let flops = 2.0 * (m * n * k) as f64;
    assert_eq!([naive, shared].map(|c| c.tensor_flops), [0.0; 2]);
    for c in [mma, wgmma, tma, roles, cluster, &last] {
        assert_eq!(c.tensor_flops, flops);
        assert_eq!(c.shared_conflicts, 0.0);
    }
    // Only filling the padded tiles of step 1 meets a bank twice.
    assert!(shared.shared_conflicts < 0.06 * shared.shared_passes);
    assert!(wgmma.issued < mma.issued, "no fragment loads");
    assert!(wgmma.shared_passes < mma.shared_passes);

    assert!(tma.issued * 2.0 < wgmma.issued, "no thread carries a tile");
    assert_eq!(tma.l2_bytes, wgmma.l2_bytes, "of the same tiles");
    assert_eq!(
        tma.fences,
        wgmma.fences - (m / 64 * n / 64 * k / 64 * 4) as f64 + (m / 64 * n / 64) as f64
    );
    let stored = (m * n) as f64;
    assert_eq!(
        roles.l2_bytes - 2.0 * stored,
        (tma.l2_bytes - 8.0 * stored) / 2.0,
        "tiles of twice the side; step 4 stores every sector in two halves"
    );
    assert!(roles.issued * 1.3 < tma.issued && roles.shared_passes < tma.shared_passes);
    assert_eq!(
        cluster.l2_bytes - 2.0 * stored,
        (roles.l2_bytes - 2.0 * stored) / 2.0,
        "a cluster loads 256 x 256 of the operands once"
    );
    assert!(cluster.issued < roles.issued && cluster.shared_passes < roles.shared_passes);
    // What the last one gains is overlap, which counts do not show; its tiles by shape cost a few instructions each.
    assert_eq!(last.l2_bytes, cluster.l2_bytes);
    assert_eq!(last.shared_passes, cluster.shared_passes);
    assert!(last.issued < 1.2 * cluster.issued);
}

const ATTENTION: [Step; 4] = [
    Step::plain("attention_0_plain", [1, 64], 32),
    Step::plain("attention_1_online_softmax", [64, 64], 64),
    Step::plain("attention_2_wgmma", [64, 64], 128),
    Step {
        box_rows: Some(64),
        shared: 1024 + 8 * 8192 + 64,
        ..Step::plain("attention_3_warp_specialised", [128, 64], 384)
    },
];

fn attention(step: Step, heads: usize, t: usize) -> Counts {
    let n = heads * t * 64;
    let [q, k, v] = [3, 4, 5].map(|seed| operand(n, seed));
    let grid = [(t / step.tile[0]) as u32, heads as u32, 1];
    let shape = [heads, t, 64];
    let operands = [&q, &k, &v].map(|x| (&x.0[..], shape));
    let (o, counts) = run(step, grid, &operands, shape, &[t as i32]);
    // The tensor core takes probabilities in bf16: half a unit of its last place each, and |v| <= 1.
    let tolerance = if counts.tensor_flops > 0.0 {
        2e-3
    } else {
        1e-5
    };
    for head in 0..heads {
        for row in 0..t {
            let at = |x: &[f64], row: usize, i: usize| x[(head * t + row) * 64 + i];
            let scores: Vec<f64> = (0..=row)
                .map(|key| {
                    (0..64)
                        .map(|i| at(&q.1, row, i) * at(&k.1, key, i))
                        .sum::<f64>()
                        / 8.0
                })
                .map(f64::exp)
                .collect();
            let total: f64 = scores.iter().sum();
            for i in 0..64 {
                let exact: f64 = scores
                    .iter()
                    .enumerate()
                    .map(|(key, score)| score * at(&v.1, key, i))
                    .sum::<f64>()
                    / total;
                let value = o[(head * t + row) * 64 + i];
                let error = (f64::from(value) - exact).abs();
                assert!(
                    error < tolerance,
                    "{} head {head} row {row}: {value}, {exact}",
                    step.name
                );
            }
        }
    }
    counts
}

/// The shipped kernel on the shape of the ladder: as many key/value heads as heads.
fn final_attention(heads: usize, t: usize) -> Counts {
    let device = Device::new();
    let kernels = Kernels::load_files(&["attention_forward"]).expect("the kernels");
    let shape = AttentionShape {
        sequences: 1,
        tokens: t as u64,
        kv_heads: heads as u64,
        group: 1,
    };
    let bytes = [
        2 * shape.tokens * shape.columns(),
        2 * shape.tokens * shape.heads() * 64,
        4 * shape.statistics(),
    ];
    let [qkv, out, lse] = bytes.map(|bytes| {
        let zeros = DeviceBuffer::from_slice(&vec![0u8; bytes as usize]).expect("memory");
        (DevPtr::new(zeros.as_device_ptr().as_raw(), bytes), zeros)
    });
    let forward = AttentionForward {
        shape,
        first: 0,
        qkv: qkv.0,
        out: out.0,
        lse: lse.0,
        along: None,
        gate: None,
    };
    device.counted(|stream| {
        kernels
            .attention_forward(stream, &forward)
            .expect("a launch");
    })
}

#[test]
fn each_step_of_attention_gains_what_it_says() {
    let (heads, t) = (2, 256);
    let steps = ATTENTION.map(|step| {
        let counts = attention(step, heads, t);
        print(step.name, &counts);
        counts
    });
    let last = final_attention(heads, t);
    print("final", &last);
    let [plain, online, wgmma, roles] = &steps;
    assert!(
        online.l2_bytes * 8.0 < plain.l2_bytes,
        "keys and values are read once per 64 rows"
    );
    for c in [online, wgmma, roles, &last] {
        assert_eq!(c.shared_conflicts, 0.0);
    }
    // Of 64 x 64 scores, the whole tiles on and below the diagonal: two products.
    let tiles = (heads * t / 64 * (t / 64 + 1) / 2) as f64;
    let flops = tiles * 2.0 * 2.0 * 64.0 * 64.0 * 64.0;
    assert_eq!([plain, online].map(|c| c.tensor_flops), [0.0; 2]);
    assert_eq!([wgmma, roles].map(|c| c.tensor_flops), [flops; 2]);
    assert!(wgmma.issued * 8.0 < online.issued && wgmma.fp32 * 8.0 < online.fp32);
    assert!(wgmma.shared_passes * 4.0 < online.shared_passes);
    assert!(
        wgmma.l2_bytes * 3.0 < online.l2_bytes,
        "whole lines, where a thread of step 1 goes along its own row"
    );
    assert!(roles.issued < wgmma.issued, "no thread carries a tile");
    let once = (heads * t * 64) as f64 * (2.0 + 8.0); // q, and the result: every sector in two halves
    assert!(
        (roles.l2_bytes - once) * 1.5 < wgmma.l2_bytes - once,
        "a tile of keys and values serves 128 rows"
    );
    assert!(roles.shared_passes < wgmma.shared_passes);
    assert!(last.l2_bytes < roles.l2_bytes, "the result is bf16");

    // Its tiles of 128 keys compute more above the diagonal: by what they compute, it takes less. Counted at the length of recipes, where the ends of tiles, at which
    // it can apply XSA and the gate, are few against the steps along the keys.
    let (roles, last) = (
        attention(ATTENTION[3], heads, 2048),
        final_attention(heads, 2048),
    );
    print("step 3, 2048 tokens", &roles);
    print("final, 2048 tokens", &last);
    let more = last.tensor_flops / roles.tensor_flops;
    assert!(last.issued < more * roles.issued && last.mufu < more * roles.mufu);
}

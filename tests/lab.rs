//! The ladder of `cuda/lab/`: every step computes what the f64 reference computes, and gains by the counters what it says.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use birdie::bench::predict::Counts;
use birdie::driver::launch::{Launch, Parameter};
use birdie::driver::modules::Module;
use birdie::driver::{self, DeviceChoice};
use birdie::model::device::open_context;
use birdie_emulator::driver as emulator;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

/// One launch at a time: counts belong to the process.
static ONE: Mutex<()> = Mutex::new(());

/// Runs `lab_NAME` of `ptx/lab/NAME.ptx` on bf16 operands and integers; the f32 result and the counts.
fn run(
    name: &str,
    grid: [u32; 3],
    threads: u32,
    operands: &[Vec<u16>],
    out: usize,
    sizes: &[i32],
) -> (Vec<f32>, Counts) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the lock is held, and nothing else in this test binary touches the environment.
    unsafe { std::env::set_var("BIRDIE_EMU_COUNT", "1") };
    driver::init(DeviceChoice::Emu).expect("a driver");
    let _context = open_context().expect("a context");
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).expect("a stream");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("ptx/lab/{name}.ptx"));
    let ptx = std::fs::read_to_string(path).expect("compiled by scripts/refresh-ptx");
    let module = Module::from_ptx(name, &ptx).expect("a module");
    let function = module.function(&format!("lab_{name}")).expect("the kernel");
    let buffers: Vec<DeviceBuffer<u16>> = operands
        .iter()
        .map(|values| DeviceBuffer::from_slice(values).expect("memory"))
        .collect();
    // An element that is not written shows.
    let mut result = vec![f32::NAN; out];
    let output = DeviceBuffer::from_slice(&result).expect("memory");
    let mut pointers: Vec<_> = buffers
        .iter()
        .map(|b| b.as_device_ptr())
        .collect::<Vec<_>>();
    let output_pointer = output.as_device_ptr();
    let mut parameters: Vec<&dyn Parameter> = Vec::new();
    for pointer in &mut pointers {
        parameters.push(pointer);
    }
    parameters.push(&output_pointer);
    for size in sizes {
        parameters.push(size);
    }
    emulator::keep_counts(true);
    emulator::take_counts();
    Launch::new(grid, [threads, 1, 1])
        .on(&stream)
        .run(&function, &parameters)
        .expect("a launch");
    stream.synchronize().expect("it ends without a finding");
    let counted = emulator::take_counts();
    output.copy_to(&mut result).expect("a copy");
    (result, Counts::of(counted.last().expect("counted")))
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

fn product(name: &str, tile: [u32; 2], threads: u32, [m, n, k]: [usize; 3]) -> Counts {
    let ((a, exact_a), (b, exact_b)) = (operand(m * k, 1), operand(n * k, 2));
    let grid = [
        (n as u32).div_ceil(tile[1]),
        (m as u32).div_ceil(tile[0]),
        1,
    ];
    let sizes = [m as i32, n as i32, k as i32];
    let (c, counts) = run(name, grid, threads, &[a, b], m * n, &sizes);
    for (i, &value) in c.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let exact: f64 = (0..k)
            .map(|j| exact_a[row * k + j] * exact_b[column * k + j])
            .sum();
        // f32 sums of k terms below 1.
        let error = (f64::from(value) - exact).abs();
        assert!(
            error < 1e-5 * k as f64,
            "{name} [{row}, {column}]: {value}, {exact}"
        );
    }
    counts
}

#[test]
fn each_step_of_the_product_gains_what_it_says() {
    product("gemm_0_naive", [16, 16], 256, [17, 3, 5]);
    let shape = [128, 64, 128];
    let steps = [
        product("gemm_0_naive", [16, 16], 256, shape),
        product("gemm_1_shared_tiles", [64, 64], 256, shape),
        product("gemm_2_mma_sync", [64, 64], 128, shape),
        product("gemm_3_wgmma", [64, 64], 128, shape),
    ];
    for (step, c) in steps.iter().enumerate() {
        println!(
            "gemm_{step}: issued {} fp32 {} L2 bytes {} shared passes {} conflicts {} tensor flops {}",
            c.issued, c.fp32, c.l2_bytes, c.shared_passes, c.shared_conflicts, c.tensor_flops
        );
    }
    let [naive, shared, mma, wgmma] = &steps;
    assert!(
        shared.l2_bytes * 4.0 < naive.l2_bytes,
        "tiles are read once"
    );
    assert!(mma.issued * 8.0 < shared.issued && mma.fp32 < shared.fp32);
    let flops = 2.0 * 128.0 * 64.0 * 128.0;
    assert_eq!(
        [shared.tensor_flops, mma.tensor_flops, wgmma.tensor_flops],
        [0.0, flops, flops]
    );
    assert!(wgmma.issued < mma.issued, "no fragment loads");
    assert!(wgmma.shared_passes < mma.shared_passes);
    // Only filling the padded tiles of step 1 meets a bank twice.
    assert!(shared.shared_conflicts < 0.06 * shared.shared_passes);
    assert_eq!([mma.shared_conflicts, wgmma.shared_conflicts], [0.0, 0.0]);
}

fn attention(name: &str, grid_rows: usize, threads: u32, heads: usize, t: usize) -> Counts {
    let n = heads * t * 64;
    let [q, k, v] = [3, 4, 5].map(|seed| operand(n, seed));
    let grid = [(t / grid_rows) as u32, heads as u32, 1];
    let operands = [q.0, k.0, v.0];
    let (o, counts) = run(name, grid, threads, &operands, n, &[t as i32]);
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
                    error < 1e-5,
                    "{name} head {head} row {row}: {value}, {exact}"
                );
            }
        }
    }
    counts
}

#[test]
fn each_step_of_attention_gains_what_it_says() {
    let plain = attention("attention_0_plain", 1, 32, 2, 128);
    let online = attention("attention_1_online_softmax", 64, 64, 2, 128);
    for (step, c) in [&plain, &online].into_iter().enumerate() {
        println!(
            "attention_{step}: issued {} fp32 {} mufu {} L2 bytes {} shared passes {} conflicts {}",
            c.issued, c.fp32, c.mufu, c.l2_bytes, c.shared_passes, c.shared_conflicts
        );
    }
    assert!(
        online.l2_bytes * 8.0 < plain.l2_bytes,
        "keys and values are read once per 64 rows"
    );
    assert_eq!(online.shared_conflicts, 0.0);
}

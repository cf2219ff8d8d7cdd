//! Speed of one wgmma of a whole warpgroup: operands unpacked from shared memory, accumulators updated in the register
//! files. Throughput is in FLOP (criterion prints it as elements/s: Gelem/s is GFLOP/s), on one core.
//!
//! `cargo bench -p birdie-emulator --bench wgmma`

use birdie_emulator::device::{Device, LaunchConfig, Settings};
use birdie_emulator::exec::Row;
use birdie_emulator::tensor::descriptor::Tile;
use birdie_emulator::tensor::execute::{Operands, run};
use birdie_emulator::tensor::format::Format;
use birdie_emulator::tensor::kernel::{Level, level};
use birdie_emulator::tensor::panel::{RawA, SourceA};
use birdie_emulator::tensor::wgmma::{Mma, Output};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn mma(n: usize, d: Output, format: Format) -> Mma {
    Mma {
        n,
        depth: 256 / format.bits() as usize,
        a: format,
        b: format,
        d,
        a_in_registers: false,
        a_mn_major: false,
        b_mn_major: false,
        negate_a: false,
        negate_b: false,
        saturate: false,
        overwrites: false,
        sparse: None,
    }
}

/// 128-byte swizzle; K-major rows of 128 bytes, or MN-major boxes of 64 elements by 16 k.
fn descriptor(start: u64, mn_major: bool) -> Tile {
    let leading = if mn_major { 2048 } else { 16 };
    let d = start >> 4 | (leading >> 4) << 16 | (1024 >> 4) << 32 | 1 << 62;
    Tile::decode(d, mn_major)
}

fn wgmma(c: &mut Criterion) {
    let mut group = c.benchmark_group("wgmma");
    let cases = [
        ("bf16 SS", Output::F32, Format::Bf16, false, false),
        ("bf16 RS", Output::F32, Format::Bf16, true, false),
        (
            "bf16 SS, B transposed",
            Output::F32,
            Format::Bf16,
            false,
            true,
        ),
        ("f16 SS", Output::F32, Format::F16, false, false),
        ("f16 SS to f16", Output::F16, Format::F16, false, false),
        ("tf32 SS", Output::F32, Format::Tf32, false, false),
        ("e4m3 SS", Output::F32, Format::E4m3, false, false),
        ("s8 SS", Output::S32, Format::S8, false, false),
    ];
    let shared = vec![0x3cu8; 64 * 1024];
    for (name, d, format, registers, transposed) in cases {
        for n in [16, 64, 128, 256] {
            let mut mma = mma(n, d, format);
            mma.a_in_registers = registers;
            mma.b_mn_major = transposed;
            let a = if registers {
                SourceA::Registers(RawA::boxed())
            } else {
                SourceA::Descriptor(descriptor(0x400, false))
            };
            let operands = Operands {
                a: &a,
                b: descriptor(0x4400, transposed),
                keep: true,
                metadata: None,
                shared: &shared,
                exact: false,
            };
            let rows: Vec<u32> = (0..mma.planes() as u32).collect();
            let mut files = vec![vec![Row([0; 32]); 128]; 4];
            let regs = std::array::from_fn(|w| files[w].as_mut_ptr());
            let flops = 2 * 64 * n * mma.depth;
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(BenchmarkId::new(name, n), |b| {
                b.iter(|| {
                    // SAFETY: rows < 128 in files of 128; the operands lie inside the 64 KiB.
                    unsafe { run(&mma, &operands, regs, &rows) }
                });
            });
        }
    }
    group.finish();
    println!(
        "level {:?} of {:?}",
        level(),
        [Level::Portable, Level::Avx2, Level::Avx512]
    );
}

/// A kernel that issues `4 * iterations` operations m64nNk16 on the same operands, four to a group, one group left in
/// flight.
fn loop_kernel(n: usize, iterations: usize) -> String {
    let d: Vec<_> = (0..n / 2).map(|i| format!("%f{i}")).collect();
    let d = d.join(",");
    let zero: String = (0..n / 2)
        .map(|i| format!("mov.f32 %f{i}, 0f00000000;\n"))
        .collect();
    let mma: String = (0..4)
        .map(|k| {
            format!(
                "add.s64 %l2, %l0, {o};\nadd.s64 %l3, %l1, {o};\n\
                 wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{d}}}, %l2, %l3, 1, 1, 1, 0, 0;\n",
                o = 2 * k
            )
        })
        .collect();
    format!(
        ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k()\n{{\n\
         .reg .b32 %r<8>; .reg .b64 %l<8>; .reg .f32 %f<{n}>; .reg .pred %p<2>;\n.shared .align 1024 .b8 s[40960];\n\
         mov.u32 %r0, s;\nmov.u32 %r4, %tid.x;\nshl.b32 %r4, %r4, 4;\nadd.u32 %r4, %r4, %r0;\nmov.b32 %r5, 0;\n\
         fill: st.shared.v4.b32 [%r4], {{%r5,%r5,%r5,%r5}};\nadd.u32 %r4, %r4, 2048;\n\
         setp.lt.u32 %p0, %r4, 0xa400;\n@%p0 bra fill;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n\
         shr.u32 %r1, %r0, 4;\ncvt.u64.u32 %l0, %r1;\nadd.s64 %l0, %l0, 0x4000004000010000;\n\
         add.s64 %l1, %l0, 512;\nmov.b32 %r2, 0;\n{zero}\
         loop: wgmma.fence.sync.aligned;\n{mma}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n\
         add.u32 %r2, %r2, 1;\nsetp.lt.u32 %p0, %r2, {iterations};\n@%p0 bra loop;\n\
         wgmma.wait_group.sync.aligned 0;\nret;\n}}\n"
    )
}

/// The same work through a launched kernel: interpreter, scheduler and queue included, on one core.
fn launched(c: &mut Criterion) {
    let mut group = c.benchmark_group("wgmma kernel");
    for checks in [false, true] {
        for n in [64, 256] {
            let iterations = if checks { 32 } else { 256 };
            let device = Device::new(
                0,
                Settings {
                    checks,
                    threads: 1,
                    memory_bytes: 1 << 28,
                    ..Settings::default()
                },
            )
            .expect("address space");
            let module = device
                .load_module(&loop_kernel(n, iterations))
                .expect("the module loads");
            let config = LaunchConfig {
                grid: [1, 1, 1],
                block: [128, 1, 1],
                cluster: [1, 1, 1],
                dynamic_shared: 0,
            };
            let flops = iterations * 4 * 2 * 64 * n * 16;
            group.throughput(Throughput::Elements(flops as u64));
            let name = if checks { "all checks" } else { "no checks" };
            group.bench_function(BenchmarkId::new(name, n), |b| {
                b.iter(|| {
                    device
                        .launch(&module.entries["k"], config, &[], 0)
                        .expect("it runs")
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = wgmma, launched
}
criterion_main!(benches);

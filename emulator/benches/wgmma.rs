//! Speed of one wgmma of a whole warpgroup: operands unpacked from shared memory, accumulators updated in the register
//! files. Throughput is in FLOP (criterion prints it as elements/s: Gelem/s is GFLOP/s), on one core.
//!
//! `cargo bench -p birdie-emulator --bench wgmma`

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

criterion_group!(benches, wgmma);
criterion_main!(benches);

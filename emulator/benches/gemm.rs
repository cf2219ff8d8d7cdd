//! Speed of a whole GEMM: C = A Bᵀ in bf16 with f32 accumulation, 512 x 512 x 512. A producer warp streams tiles of A and B
//! by TMA through four stages of 128-byte swizzled shared memory, a warpgroup multiplies them by wgmma m64n128k16, and the
//! result goes out by plain stores. Throughput is in FLOP (criterion prints it as elements/s: Gelem/s is GFLOP/s).
//!
//! `cargo bench -p birdie-emulator --bench gemm`

use birdie_emulator::device::{Device, LaunchConfig, Policy, Settings};
use birdie_emulator::tensor_map::EncodeParams;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZE: u64 = 512;
const STAGES: u32 = 4;
/// Bytes of a tile of A (64 x 64) and of B (128 x 64).
const A: u32 = 64 * 64 * 2;
const B: u32 = 128 * 64 * 2;

/// Threads 0..128 consume, thread 128 produces. %r1 is the tile along K, %r2 its stage, %r3 its parity.
fn kernel() -> String {
    let tiles = SIZE / 64;
    let accumulators: Vec<String> = (0..64).map(|i| format!("%f{i}")).collect();
    let accumulators = accumulators.join(",");
    let zero: String = (0..64)
        .map(|i| format!("mov.f32 %f{i}, 0f00000000;\n"))
        .collect();
    let products: String = (0..4)
        .map(|k| {
            format!(
                "add.s64 %rd6, %rd4, {o};\nadd.s64 %rd7, %rd5, {o};\n\
                 wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{accumulators}}}, %rd6, %rd7, 1, 1, 1, 0, 0;\n",
                o = 2 * k
            )
        })
        .collect();
    // Element i of thread t: row 16 w + l/4 + 8 (i/2 % 2), columns 8 (i/4) + 2 (l % 4).
    let stores: String = (0..32u32)
        .map(|pair| {
            let i = 2 * pair;
            let at = 4 * (u64::from(i >> 1 & 1) * 8 * SIZE + 8 * u64::from(i >> 2));
            format!("st.global.v2.f32 [%rd8+{at}], {{%f{i}, %f{}}};\n", i + 1)
        })
        .collect();
    let next = format!(
        "add.u32 %r1, %r1, 1;\nadd.u32 %r2, %r2, 1;\nsetp.eq.u32 %p2, %r2, {STAGES};\n@%p2 mov.u32 %r2, 0;\n\
         @%p2 xor.b32 %r3, %r3, 1;\nsetp.lt.u32 %p2, %r1, {tiles};\n"
    );
    // Addresses of the stage: full barrier %r10, empty barrier %r11, tiles %r12 and %r13.
    let stage = format!(
        "shl.b32 %r9, %r2, 3;\nadd.u32 %r10, %r9, %r5;\nadd.u32 %r11, %r10, {};\n\
         mad.lo.u32 %r12, %r2, {A}, %r6;\nmad.lo.u32 %r13, %r2, {B}, %r7;\n",
        8 * STAGES
    );
    let initialise: String = (0..STAGES)
        .map(|s| {
            format!(
                "mbarrier.init.shared::cta.b64 [bar+{}], 1;\nmbarrier.init.shared::cta.b64 [bar+{}], 128;\n",
                8 * s,
                8 * (s + STAGES)
            )
        })
        .collect();
    format!(
        ".version 8.5\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .u64 c)\n{{\n\
         .reg .b32 %r<24>; .reg .b64 %rd<12>; .reg .f32 %f<64>; .reg .pred %p<4>;\n\
         .shared .align 1024 .b8 ta[{}];\n.shared .align 1024 .b8 tb[{}];\n.shared .align 8 .b64 bar[{}];\n\
         mov.u32 %r0, %tid.x;\nmov.u32 %r1, 0;\nmov.u32 %r2, 0;\nmov.u32 %r5, bar;\nmov.u32 %r6, ta;\nmov.u32 %r7, tb;\n\
         mov.u32 %r14, %ctaid.x;\nmov.u32 %r15, %ctaid.y;\nshl.b32 %r14, %r14, 6;\nshl.b32 %r15, %r15, 7;\n\
         setp.ne.u32 %p1, %r0, 0;\n@%p1 bra READY;\n{initialise}fence.mbarrier_init.release.cluster;\nREADY:\nbar.sync 0;\n\
         setp.lt.u32 %p1, %r0, 128;\n@%p1 bra CONSUME;\nsetp.ne.u32 %p1, %r0, 128;\n@%p1 exit;\n\
         mov.u32 %r3, 1;\nmov.b64 %rd1, a;\ncvta.param.u64 %rd1, %rd1;\nmov.b64 %rd2, b;\ncvta.param.u64 %rd2, %rd2;\n\
         PRODUCE:\n{stage}EMPTY:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r11], %r3;\n@!%p3 bra EMPTY;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r10], {};\nshl.b32 %r16, %r1, 6;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r12], [%rd1, {{%r16, %r14}}], [%r10];\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r13], [%rd2, {{%r16, %r15}}], [%r10];\n\
         {next}@%p2 bra PRODUCE;\nexit;\n\
         CONSUME:\nmov.u32 %r3, 0;\n{zero}LOOP:\n{stage}FULL:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r10], %r3;\n@!%p3 bra FULL;\n\
         shr.u32 %r17, %r12, 4;\ncvt.u64.u32 %rd4, %r17;\nadd.s64 %rd4, %rd4, 0x4000004000010000;\n\
         shr.u32 %r17, %r13, 4;\ncvt.u64.u32 %rd5, %r17;\nadd.s64 %rd5, %rd5, 0x4000004000010000;\n\
         wgmma.fence.sync.aligned;\n{products}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         mbarrier.arrive.shared::cta.b64 _, [%r11];\n{next}@%p2 bra LOOP;\n\
         shr.u32 %r17, %r0, 5;\nshl.b32 %r17, %r17, 4;\nand.b32 %r18, %r0, 31;\nshr.u32 %r19, %r18, 2;\nadd.u32 %r17, %r17, %r19;\n\
         add.u32 %r17, %r17, %r14;\nand.b32 %r18, %r18, 3;\nshl.b32 %r18, %r18, 1;\nadd.u32 %r18, %r18, %r15;\n\
         mad.lo.u32 %r17, %r17, {SIZE}, %r18;\nld.param.u64 %rd8, [c];\nmul.wide.u32 %rd9, %r17, 4;\nadd.u64 %rd8, %rd8, %rd9;\n\
         {stores}ret;\n}}\n",
        STAGES * A,
        STAGES * B,
        2 * STAGES,
        A + B,
    )
}

fn map(address: u64, rows: u32) -> [u8; 128] {
    EncodeParams {
        element_type: 9,
        rank: 2,
        global_address: address,
        dims: &[SIZE, SIZE],
        strides: &[2 * SIZE],
        box_dims: &[64, rows],
        element_strides: &[1, 1],
        interleave: 0,
        swizzle: 3,
        l2_promotion: 0,
        oob_fill: 0,
    }
    .validate()
    .expect("a legal map")
    .encode()
}

fn gemm(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    group.throughput(Throughput::Elements(2 * SIZE * SIZE * SIZE));
    for (name, checks, threads) in [
        ("one thread", false, 1),
        ("one thread, all checks", true, 1),
        ("all threads", false, 0),
    ] {
        let settings = Settings {
            policy: Policy::Random,
            checks,
            threads,
            memory_bytes: 1 << 28,
            ..Settings::default()
        };
        let device = Device::new(0, settings).expect("address space");
        let module = device.load_module(&kernel()).expect("the kernel loads");
        let allocate = |bytes: u64, name: &str| {
            device
                .memory
                .allocate(bytes, 512, u64::MAX, name)
                .expect("memory")
        };
        let (a, b) = (
            allocate(2 * SIZE * SIZE, "A"),
            allocate(2 * SIZE * SIZE, "B"),
        );
        let out = allocate(4 * SIZE * SIZE, "C");
        for (pointer, salt) in [(a, 1u64), (b, 5)] {
            for e in 0..SIZE * SIZE {
                // Small integers: every sum is exact.
                let v = ((e * 7 + e / SIZE * salt) % 7) as f32 - 3.0;
                // SAFETY: inside the allocation.
                unsafe { *((pointer + 2 * e) as *mut u16) = (v.to_bits() >> 16) as u16 };
            }
        }
        let mut params = map(a, 64).to_vec();
        params.extend(map(b, 128));
        params.extend(out.to_le_bytes());
        let config = LaunchConfig {
            grid: [SIZE as u32 / 64, SIZE as u32 / 128, 1],
            block: [160, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared: 0,
        };
        let program = &module.entries["k"];
        device.launch(program, config, &params, 1).expect("it runs");
        // What is fast has to be right.
        for (row, column) in [(0, 0), (63, 127), (500, 300), (17, 511)] {
            let value = |p: u64, e: u64| {
                // SAFETY: inside the allocation.
                f32::from_bits(u32::from(unsafe { *((p + 2 * e) as *const u16) }) << 16)
            };
            let want: f32 = (0..SIZE)
                .map(|k| value(a, row * SIZE + k) * value(b, column * SIZE + k))
                .sum();
            // SAFETY: inside the allocation.
            let got = unsafe { *((out + 4 * (row * SIZE + column)) as *const f32) };
            assert_eq!(got, want, "element {row}, {column}");
        }
        group.bench_function(BenchmarkId::from_parameter(name), |bench| {
            bench.iter(|| device.launch(program, config, &params, 1).expect("it runs"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = gemm
}
criterion_main!(benches);

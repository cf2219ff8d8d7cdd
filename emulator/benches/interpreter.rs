//! Thread-instructions per second of the interpreter on one host thread, checks off: scalar code, shared-memory code,
//! global streaming, divergent code, and the same with the checkers on.
//!
//! `cargo bench -p birdie-emulator --bench interpreter`

use birdie_emulator::device::{Device, LaunchConfig, Module, Policy, Settings};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const HEAD: &str = ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in) {
.reg .u32 %t,%n,%x<16>,%s; .reg .f32 %f<8>; .reg .u64 %o,%i,%a,%b; .reg .pred %p,%q;
.shared .align 16 .b32 mem[2048];
ld.param.u64 %o,[out]; ld.param.u64 %i,[in]; mov.u32 %t,%tid.x; mul.wide.u32 %a,%t,4; add.u64 %b,%i,%a; add.u64 %a,%a,%o;
mov.u32 %x0,%t; mov.u32 %x1,7; mov.u32 %x2,3; mov.u32 %x3,%t; mov.u32 %x4,5; mov.f32 %f0,0f3F800000; mov.f32 %f1,0f3F000000;
mov.f32 %f2,0f3E800000; shl.b32 %s,%t,2; mov.u32 %x5,mem; add.u32 %s,%s,%x5; st.shared.u32 [%s],%t; st.shared.u32 [%s+4096],%t; mov.u32 %n,0;\nL:\n";
const TAIL: &str = "add.u32 %n,%n,1; setp.lt.u32 %p,%n,2000; @%p bra L;
cvt.rn.f32.u32 %f3,%x0; add.f32 %f3,%f3,%f2; st.global.f32 [%a],%f3; ret; }";

const SCALAR: &str = "add.u32 %x0,%x0,%x1; mad.lo.u32 %x1,%x0,%x2,%x3; and.b32 %x3,%x1,4095; shl.b32 %x4,%x3,2;
fma.rn.f32 %f2,%f0,%f1,%f2; mul.f32 %f0,%f0,%f1; xor.b32 %x2,%x2,%x4; sub.u32 %x3,%x3,%x0; setp.gt.u32 %q,%x3,%x1;
selp.b32 %x0,%x0,%x3,%q; add.f32 %f1,%f1,%f0; mov.b32 %x5,%x0; or.b32 %x4,%x4,%x5; shr.u32 %x1,%x1,1; max.u32 %x2,%x2,%x4;\n";
const SHARED: &str = "ld.shared.u32 %x6,[%s]; add.u32 %x0,%x0,%x6; xor.b32 %x7,%x0,%t; st.shared.u32 [%s],%x7;
and.b32 %x8,%x7,2044; mov.u32 %x9,mem; add.u32 %x9,%x9,%x8; ld.shared.u32 %x10,[%s+4096]; add.u32 %x0,%x0,%x10; mad.lo.u32 %x0,%x0,3,%x1;\n";
const GATHER: &str = "and.b32 %x8,%x0,2044; mov.u32 %x9,mem; add.u32 %x9,%x9,%x8; ld.shared.u32 %x10,[%x9]; add.u32 %x0,%x0,%x10; mad.lo.u32 %x0,%x0,3,%x1;\n";
const GLOBAL: &str = "ld.global.u32 %x6,[%b]; add.u32 %x0,%x0,%x6; st.global.u32 [%a],%x0; ld.global.v4.u32 {%x7,%x8,%x9,%x10},[%i];
add.u32 %x0,%x0,%x9;\n";
const DIVERGENT: &str = "and.b32 %x6,%x0,1; setp.eq.u32 %q,%x6,0; @%q bra A; add.u32 %x0,%x0,5; mul.lo.u32 %x0,%x0,%x1; xor.b32 %x0,%x0,%t; bra B;
A: sub.u32 %x0,%x0,3; shr.u32 %x0,%x0,1; or.b32 %x0,%x0,%t; B: add.u32 %x0,%x0,1;\n";

fn device(checks: bool) -> Device {
    let settings = Settings {
        checks,
        threads: 1,
        policy: Policy::Random,
        memory_bytes: 1 << 28,
        ..Settings::default()
    };
    Device::new(0, settings).expect("address space")
}

fn run(d: &Device, m: &Module, buffers: (u64, u64), warps: u32) -> u64 {
    let config = LaunchConfig {
        grid: [1, 1, 1],
        block: [32 * warps, 1, 1],
        cluster: [1, 1, 1],
        dynamic_shared: 0,
    };
    let params: Vec<u8> = [buffers.0, buffers.1]
        .iter()
        .flat_map(|p| p.to_le_bytes())
        .collect();
    let report = d
        .launch(&m.entries["k"], config, &params, 1)
        .expect("the kernel runs");
    report.operations * 32
}

fn benchmarks(c: &mut Criterion) {
    for (name, body, checks) in [
        ("scalar", SCALAR, false),
        ("shared", SHARED, false),
        ("shared-gather", GATHER, false),
        ("global", GLOBAL, false),
        ("divergent", DIVERGENT, false),
        ("scalar-checked", SCALAR, true),
        ("shared-checked", SHARED, true),
        ("global-checked", GLOBAL, true),
    ] {
        let d = device(checks);
        let m = d
            .load_module(&format!("{HEAD}{body}{TAIL}"))
            .expect("the kernel loads");
        let buffers = [0, 1].map(|_| {
            d.memory
                .allocate(1 << 16, 512, u64::MAX, "buffer")
                .expect("memory")
        });
        let instructions = run(&d, &m, buffers.into(), 4);
        let mut group = c.benchmark_group("interpreter");
        group.throughput(Throughput::Elements(instructions));
        group.bench_function(name, |b| {
            b.iter(|| black_box(run(&d, &m, buffers.into(), 4)))
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = benchmarks
}
criterion_main!(benches);

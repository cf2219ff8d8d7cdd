//! Speed of asynchronous copies: one thread issues a copy, waits for it, and goes on to the next. Throughput is in bytes,
//! on one core; what the issuing instructions cost is part of it.
//!
//! `cargo bench -p birdie-emulator --bench tma`

use birdie_emulator::device::{Device, LaunchConfig, Module, Policy, Settings};
use birdie_emulator::tensor_map::EncodeParams;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const ROWS: u32 = 64;
const ROW_BYTES: u32 = 128;
const BOX: u32 = ROWS * ROW_BYTES;
const COPIES: u32 = 512;

/// A loop of `COPIES` turns around `body`; %r1 counts, %r2 is the tile, %r3 the mbarrier, %r4 the parity, %r5 the box size,
/// %r7 the row of the box.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .align 64 .b8 map[128], .param .u64 memory)\n{{\n\
         .reg .b32 %r<10>; .reg .b64 %rd<10>; .reg .pred %p<4>;\n\
         .shared .align 8 .b64 bar;\n.shared .align 1024 .b8 tile[{BOX}];\n\
         mov.b64 %rd1, map;\ncvta.param.u64 %rd1, %rd1;\nld.param.u64 %rd2, [memory];\n\
         mov.u32 %r2, tile;\nmov.u32 %r3, bar;\nmov.u32 %r1, 0;\nmov.u32 %r4, 0;\nmov.u32 %r5, {BOX};\nmov.u32 %r7, 0;\n\
         mbarrier.init.shared::cta.b64 [%r3], 1;\nfence.mbarrier_init.release.cluster;\n\
         TURN:\n{body}\n\
         add.u32 %r7, %r7, {ROWS};\nand.b32 %r7, %r7, 1023;\n\
         add.u32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, {COPIES};\n@%p1 bra TURN;\nret;\n}}\n"
    )
}

const EXPECT: &str = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], %r5;\n";
const WAIT: &str = "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], %r4;\n@!%p2 bra WAIT;\nxor.b32 %r4, %r4, 1;\n";

struct Run {
    device: Device,
    module: Module,
    params: Vec<u8>,
}

impl Run {
    fn new(body: &str, swizzle: u32, checks: bool) -> Self {
        let settings = Settings {
            policy: Policy::Eager,
            checks,
            threads: 1,
            memory_bytes: 1 << 30,
            ..Settings::default()
        };
        let device = Device::new(0, settings).expect("address space");
        let module = device.load_module(&kernel(body)).expect("the kernel loads");
        let bytes = 1024 * u64::from(ROW_BYTES);
        let memory = device
            .memory
            .allocate(bytes, 512, u64::MAX, "tensor")
            .expect("memory");
        let map = EncodeParams {
            element_type: 1,
            rank: 2,
            global_address: memory,
            dims: &[64, 1024],
            strides: &[u64::from(ROW_BYTES)],
            box_dims: &[64, ROWS],
            element_strides: &[1, 1],
            interleave: 0,
            swizzle,
            l2_promotion: 0,
            oob_fill: 0,
        };
        let mut params = map.validate().expect("a legal map").encode().to_vec();
        params.extend_from_slice(&memory.to_le_bytes());
        Run {
            device,
            module,
            params,
        }
    }

    fn launch(&self) {
        let config = LaunchConfig {
            grid: [1, 1, 1],
            block: [1, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared: 0,
        };
        self.device
            .launch(&self.module.entries["k"], config, &self.params, 1)
            .expect("the kernel runs");
    }
}

fn tma(c: &mut Criterion) {
    let load = format!(
        "{EXPECT}cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {{0, %r7}}], [%r3];\n{WAIT}"
    );
    // Half of every row is outside of the tensor.
    let clipped = load.replace("{0, ", "{-32, ");
    let bulk = format!(
        "{EXPECT}cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd2], %r5, [%r3];\n{WAIT}"
    );
    let store = "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {0, %r7}], [%r2];\n\
                 cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n";
    let cases = [
        ("tensor load", load.as_str(), 0),
        ("tensor load, 128-byte swizzle", load.as_str(), 3),
        ("tensor load, half outside", clipped.as_str(), 3),
        ("bulk load", bulk.as_str(), 0),
        ("tensor store, 128-byte swizzle", store, 3),
    ];
    let mut group = c.benchmark_group("tma");
    group.throughput(Throughput::Bytes(u64::from(BOX) * u64::from(COPIES)));
    for (name, body, swizzle) in cases {
        for checks in [false, true] {
            // An unwritten tile may not be stored under checks.
            if checks && body == store {
                continue;
            }
            let run = Run::new(body, swizzle, checks);
            let with = if checks { "checks" } else { "no checks" };
            group.bench_function(BenchmarkId::new(name, with), |b| b.iter(|| run.launch()));
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
    targets = tma
}
criterion_main!(benches);

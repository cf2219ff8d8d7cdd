//! What the emulator costs on this machine: `cargo bench --bench emulated`, and `BIRDIE_EMU_CHECKS=1 cargo bench --bench emulated -- step`
//! for the step under all checkers (a process has one emulated device, so one setting). None of it is the speed of a GPU.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use birdie::data;
use birdie::driver::modules::{KERNEL_FILES, Module};
use birdie::driver::{self, DeviceChoice};
use birdie::model::device::open_context;
use birdie::model::engine::{DeviceEngine, plan};
use birdie::recipe;
use birdie::train::engine::{Engine, Rates, StepInputs};
use birdie::train::run::batch_shape;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CHECKS: &str = "BIRDIE_EMU_CHECKS";

/// Opens the emulated device, without checkers unless the environment says otherwise.
fn device() -> bool {
    if std::env::var_os(CHECKS).is_none() {
        // SAFETY: called before any other thread is started.
        unsafe { std::env::set_var(CHECKS, "0") };
    }
    driver::init(DeviceChoice::Emu).expect("the emulator is linked in");
    std::env::var_os(CHECKS).is_some_and(|value| value != "0")
}

/// Text to a parsed module, and to kernels that can be launched: all that is shipped.
fn ptx(c: &mut Criterion) {
    device();
    let _context = open_context().expect("a device");
    let bytes: usize = KERNEL_FILES.iter().map(|file| file.ptx.len()).sum();
    let mut group = c.benchmark_group("ptx of all kernels");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(10);
    group.bench_function("parse", |b| {
        b.iter(|| {
            for file in KERNEL_FILES {
                black_box(birdie_emulator::ptx::parse(file.ptx).expect("it parses"));
            }
        })
    });
    group.bench_function("load", |b| {
        b.iter(|| {
            for file in KERNEL_FILES {
                black_box(Module::from_ptx(file.name, file.ptx).expect("it loads"));
            }
        })
    });
    group.finish();
}

/// One optimizer step of the demo recipe, replayed from its captured graph.
fn step(c: &mut Criterion) {
    let checked = device();
    let recipe = recipe::load("demo", [], &[])
        .expect("it is built in")
        .recipe;
    let shape = batch_shape(&recipe, 1, 0).expect("the recipe is consistent");
    let mut stream = data::open(&recipe, Path::new(""))
        .expect("its text is built in")
        .train;
    let batch = stream.next(&shape).expect("there are tokens");
    let planned = plan(&recipe, 1).expect("the model is served");
    let mut engine = DeviceEngine::new(planned, &recipe.name).expect("it fits");
    let inputs = StepInputs {
        tokens: &batch.tokens,
        targets: &batch.targets,
        ahead: Some([&batch.tokens, &batch.targets]),
        micro_steps: shape.micro_steps,
        rates: Rates {
            matrix_lr: 0.0,
            embedding_lr: 0.0,
            scalar_lr: 0.0,
            muon_momentum: 0.9,
            grad_clip_norm: 1.0,
        },
        fake_quantize: false,
        update_ema: true,
    };
    let mut group = c.benchmark_group("demo step");
    group.throughput(Throughput::Elements(shape.local() as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    let mode = if checked {
        "checkers on"
    } else {
        "checkers off"
    };
    group.bench_function(mode, |b| {
        b.iter(|| engine.step(black_box(&inputs)).expect("a step"))
    });
    group.finish();
}

criterion_group!(benches, ptx, step);
criterion_main!(benches);

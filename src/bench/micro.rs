//! `birdie bench micro`: the machine itself, one instruction at a time.
//!
//! The kernels are hand-written PTX in `ptx/micro/`; each reads `clock64` around its loop. Every one also computes a value that is known
//! beforehand, so that a run proves that it did what it says; on the emulator that, and the counts, are all there is: its clock
//! counts its own operations and is not shown. On a GPU the cycles stand beside the constant that the predictions use.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use birdie_emulator::driver as emulator;
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::stream::{Stream, StreamFlags};

use super::predict::Counts;
use crate::driver::launch::Launch;
use crate::driver::modules::Module;
use crate::driver::{self, DriverError, DriverKind};
use crate::model::device::open_context;

const FILES: [(&str, &str); 6] = [
    ("wgmma", include_str!("../../ptx/micro/wgmma.ptx")),
    ("exp2", include_str!("../../ptx/micro/exp2.ptx")),
    ("shared", include_str!("../../ptx/micro/shared.ptx")),
    ("tma", include_str!("../../ptx/micro/tma.ptx")),
    ("copy", include_str!("../../ptx/micro/copy.ptx")),
    ("barrier", include_str!("../../ptx/micro/barrier.ptx")),
];

/// What a kernel's `value` must be.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// So many times the iterations.
    PerIteration(u32),
    /// The same as f32.
    Float(f32),
    Constant(u32),
    /// The fixed point of 2^-x, as f32.
    FixedPoint,
}

/// One kernel of `ptx/micro/`.
#[derive(Debug, Clone, Copy)]
struct Micro {
    file: &'static str,
    entry: &'static str,
    threads: u32,
    /// CTAs; 0 = four per multiprocessor.
    ctas: u32,
    /// Units per iteration, and their name: the result is cycles per unit.
    units: f64,
    unit: &'static str,
    /// Cycles per unit that the predictions assume.
    expected: Option<f64>,
    value: Value,
}

const fn wgmma(entry: &'static str, expected: f64) -> Micro {
    Micro {
        file: "wgmma",
        entry,
        threads: 128,
        ctas: 1,
        units: 4.0,
        unit: "product",
        expected: Some(expected),
        value: Value::Float(64.0),
    }
}

const fn shared(entry: &'static str, passes: f64, words: u32) -> Micro {
    Micro {
        file: "shared",
        entry,
        threads: 128,
        ctas: 1,
        units: passes,
        unit: "pass",
        expected: Some(1.0),
        value: Value::PerIteration(words),
    }
}

const fn barrier(entry: &'static str, ctas: u32) -> Micro {
    Micro {
        file: "barrier",
        entry,
        threads: 384,
        ctas,
        units: 1.0,
        unit: "passage",
        expected: None,
        value: Value::PerIteration(1),
    }
}

const fn exp2(entry: &'static str, expected: Option<f64>) -> Micro {
    Micro {
        file: "exp2",
        entry,
        threads: 128,
        ctas: 1,
        units: 8.0,
        unit: "warp op",
        expected,
        value: Value::FixedPoint,
    }
}

const fn tma(entry: &'static str, units: f64, unit: &'static str) -> Micro {
    Micro {
        file: "tma",
        entry,
        threads: 32,
        ctas: 1,
        units,
        unit,
        expected: None,
        value: Value::Constant(1),
    }
}

const MICROS: [Micro; 21] = [
    // Cycles per product: N/2, or the passes of the operands through shared memory (16 for A, N/4 for B) where these are more.
    wgmma("wgmma_ss_n8", 18.0),
    wgmma("wgmma_ss_n16", 20.0),
    wgmma("wgmma_ss_n32", 24.0),
    wgmma("wgmma_ss_n64", 32.0),
    wgmma("wgmma_ss_n128", 64.0),
    wgmma("wgmma_ss_n256", 128.0),
    wgmma("wgmma_rs_n64", 32.0),
    wgmma("wgmma_rs_n128", 64.0),
    exp2("exp2_mufu", Some(8.0)),
    exp2("exp2_fma", None),
    shared("shared_read_16", 64.0, 16),
    shared("shared_read_stride_1", 32.0, 8),
    shared("shared_read_stride_2", 64.0, 8),
    shared("shared_read_stride_8", 256.0, 8),
    shared("shared_read_stride_32", 1024.0, 8),
    tma("tma_latency", 1.0, "copy"),
    tma("tma_bandwidth", 8192.0, "byte"),
    Micro {
        file: "copy",
        entry: "copy_16",
        threads: 256,
        ctas: 0,
        units: 4096.0,
        unit: "byte per CTA",
        expected: None,
        value: Value::Constant(1),
    },
    barrier("barrier_cta", 1),
    barrier("barrier_mbarrier", 1),
    barrier("barrier_cluster", 2),
];

/// Result of one microbenchmark.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Line {
    pub entry: &'static str,
    pub iterations: u32,
    pub unit: &'static str,
    /// Of one unit, at the slowest CTA; absent on the emulator.
    pub cycles: Option<f64>,
    /// What the predictions assume.
    pub expected: Option<f64>,
    /// On the emulator, with counting switched on.
    pub counts: Option<Counts>,
}

/// Runs all microbenchmarks whose name contains `filter`. A wrong value is an error.
pub fn run(filter: Option<&str>) -> Result<Vec<Line>> {
    let info = driver::active().context("no driver is open")?;
    let emulated = info.kind == DriverKind::Emulator;
    let _context = open_context()?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None).map_err(DriverError::from)?;
    let mut modules: Vec<(&str, Module)> = Vec::new();
    let mut lines = Vec::new();
    emulator::keep_counts(emulated);
    for micro in MICROS
        .iter()
        .filter(|m| filter.is_none_or(|part| m.entry.contains(part)))
    {
        if !modules.iter().any(|(name, _)| *name == micro.file) {
            let file = FILES.iter().find(|(name, _)| *name == micro.file);
            let (name, ptx) =
                file.with_context(|| format!("no file ptx/micro/{}.ptx", micro.file))?;
            modules.push((name, Module::from_ptx(name, ptx)?));
        }
        let module = modules.iter().find(|(name, _)| *name == micro.file);
        let (_, module) = module.context("just loaded")?;
        lines.push(one(micro, module, &stream, emulated)?);
    }
    emulator::keep_counts(false);
    Ok(lines)
}

fn one(micro: &Micro, module: &Module, stream: &Stream, emulated: bool) -> Result<Line> {
    let iterations = if emulated { 64u32 } else { 4096 };
    let ctas = match (micro.ctas, emulated) {
        (0, true) => 4,
        (0, false) => 528,
        (n, _) => n,
    };
    // Everything that is read is ones; a copy writes the first half with the second.
    let source = vec![1u32; (2 * ctas * iterations * 1024).max(1 << 14) as usize];
    let source = DeviceBuffer::from_slice(&source).map_err(DriverError::from)?;
    // Of each CTA: cycles, value.
    let blank = vec![0u64; 2 * ctas as usize];
    let out = DeviceBuffer::from_slice(&blank).map_err(DriverError::from)?;
    let function = module.function(micro.entry)?;
    emulator::take_counts();
    // Twice on a GPU: the first run loads code and settles clocks.
    for _ in 0..if emulated { 1 } else { 2 } {
        Launch::new([ctas, 1, 1], [micro.threads, 1, 1])
            .on(stream)
            .run(
                &function,
                &[&out.as_device_ptr(), &source.as_device_ptr(), &iterations],
            )?;
    }
    stream.synchronize().map_err(DriverError::from)?;
    let mut results = blank;
    out.copy_to(&mut results).map_err(DriverError::from)?;
    for result in results.chunks_exact(2) {
        let value = result[1] as u32;
        let float = f32::from_bits(value);
        let right = match micro.value {
            Value::PerIteration(n) => value == n * iterations,
            Value::Float(x) => float == x * iterations as f32,
            Value::Constant(n) => value == n,
            Value::FixedPoint => (float - 0.641_186).abs() < 1e-4,
        };
        ensure!(
            right,
            "{}: value {value} ({float}) after {iterations} iterations, expected {:?}",
            micro.entry,
            micro.value
        );
    }
    let slowest = results.iter().step_by(2).copied().max().unwrap_or(0);
    let counted = emulator::take_counts();
    Ok(Line {
        entry: micro.entry,
        iterations,
        unit: micro.unit,
        cycles: (!emulated).then(|| slowest as f64 / f64::from(iterations) / micro.units),
        expected: micro.expected,
        counts: counted.last().map(Counts::of),
    })
}

/// The results as a table.
pub fn report(lines: &[Line]) -> String {
    let mut out = format!(
        "{:<24} {:>6} {:>14} {:>12} {:>12} {:>10} {:>10} {:>10} {:>10}\n",
        "microbenchmark",
        "trips",
        "cycles/unit",
        "predicted",
        "wgmma cycles",
        "mufu",
        "fp32",
        "passes",
        "conflicts"
    );
    for line in lines {
        let cycles = line
            .cycles
            .map_or("not measured".into(), |c| format!("{c:.3}"));
        let expected = line.expected.map_or("-".into(), |c| format!("{c:.1}"));
        let _ = write!(
            out,
            "{:<24} {:>6} {:>14} {:>12}",
            line.entry, line.iterations, cycles, expected
        );
        if let Some(c) = &line.counts {
            let _ = write!(
                out,
                " {:>12} {:>10} {:>10} {:>10} {:>10}",
                c.wgmma_cycles, c.mufu, c.fp32, c.shared_passes, c.shared_conflicts
            );
        }
        let _ = writeln!(out, "  per {}", line.unit);
    }
    out += "every value was as expected; cycles are measured on a GPU only, predicted ones are the model's, counts are the emulator's (warp instructions, whole grid)\n";
    out
}

//! birdie: trains, packs and scores parameter-golf language models.

use birdie::arena::memory;
use birdie::cli::{self, Backend, MemoryPlan};
use birdie::driver::{self, DriverKind};
use birdie::model::device::open_context;
use birdie::model::engine::{self, DeviceEngine};
use birdie::recipe::Recipe;
use birdie::train::engine::Engine;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(Backend {
        device: cli::open_device,
        build,
        plan,
    })
}

fn build(recipe: &Recipe) -> anyhow::Result<Box<dyn Engine>> {
    let planned = engine::plan(recipe, 1)?;
    Ok(Box::new(DeviceEngine::new(planned, &recipe.name)?))
}

/// Memory of an H100 80GB HBM3 as its driver reports it, which is what a plan made without one is held against.
const H100_BYTES: u64 = 79 << 30;

fn plan(recipe: &Recipe, tensors: bool) -> anyhow::Result<MemoryPlan> {
    let planned = engine::plan(recipe, 1)?;
    let _context = open_context()?;
    let (free, _) = memory::free_and_total()?;
    let emulated = driver::active().is_some_and(|info| info.kind == DriverKind::Emulator);
    let (places, most) = if emulated {
        (
            vec![("an H100 80GB", H100_BYTES), ("the emulated device", free)],
            H100_BYTES.max(free),
        )
    } else {
        (vec![("this device", free)], free)
    };
    Ok(MemoryPlan {
        report: planned.plan.report(&places, tensors),
        fits: planned.plan.check_fits(&recipe.name, most),
    })
}

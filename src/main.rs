//! birdie: trains, packs and scores parameter-golf language models.

use birdie::arena::memory;
use birdie::cli::{self, Backend};
use birdie::driver;
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

fn plan(recipe: &Recipe, tensors: bool) -> anyhow::Result<String> {
    let planned = engine::plan(recipe, 1)?;
    // The device is asked where it has been opened; without one the plan stands alone.
    let free = match driver::active() {
        Some(_) => {
            let _context = open_context()?;
            Some(memory::free_and_total()?.0)
        }
        None => None,
    };
    Ok(planned.plan.report(free, tensors))
}

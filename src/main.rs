//! birdie: trains, packs and scores parameter-golf language models.

use birdie::cli::{self, Backend};
use birdie::failure::Failure;
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

fn build(_: &Recipe) -> anyhow::Result<Box<dyn Engine>> {
    Err(Failure::user(
        "model",
        "this build has no device model",
        "use a later build",
    )
    .into())
}

fn plan(_: &Recipe, _: bool) -> anyhow::Result<String> {
    Err(Failure::user(
        "model",
        "this build has no device model",
        "use a later build",
    )
    .into())
}

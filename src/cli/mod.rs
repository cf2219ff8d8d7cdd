//! The command line: one file per subcommand, one place where errors are shown.
//!
//! Exit codes: 0 fine, 2 the user can change it, 3 the emulator's checkers found something, 4 training diverged, 130
//! interrupted by Ctrl-C (the checkpoint is written); 1 is a defect of birdie or of the machine. An error is
//! one line, `birdie: what: why`, and a line `hint: …`, both on standard error.

mod bench;
mod doctor;
mod eval;
mod inspect;
mod pack;
mod parity;
mod recipe;
mod tokenizer;
mod train;
mod weights;

use crate::driver::{self, DeviceChoice, DriverKind};
use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::train::engine::Engine;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Exit code of a run that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// What the commands need from the model: tests put a small one in its place.
#[derive(Clone, Copy)]
pub struct Backend {
    /// Opens the device, with `true` under the emulator's checkers, and returns the line that names it.
    pub device: fn(DeviceChoice, bool) -> Result<String>,
    /// Builds the model and its optimizer on the device.
    pub build: fn(&Recipe) -> Result<Box<dyn Engine>>,
    /// The memory plan of a recipe on the open device; with `true` tensor by tensor.
    pub plan: fn(&Recipe, bool) -> Result<MemoryPlan>,
}

/// What a model would need of a device's memory.
pub struct MemoryPlan {
    /// A table, with the verdict in its last line.
    pub report: String,
    /// The error that building the model on a GPU would end in. The emulated device may be smaller: its memory is the host's.
    pub fits: Result<()>,
}

#[derive(Parser)]
#[command(
    name = "birdie",
    version,
    about = "Trains, packs and scores parameter-golf language models.",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a recipe, pack the artifact and score it. Without a recipe: the demo.
    Train(train::TrainArgs),
    /// Make an artifact from a run's checkpoint.
    Pack(pack::PackArgs),
    /// Show what an artifact or a checkpoint holds.
    Inspect(inspect::InspectArgs),
    /// Score an artifact.
    Eval(eval::EvalArgs),
    /// Compare the device model with cases computed by the published code.
    Parity(parity::ParityArgs),
    /// Measure the kernels on a GPU, or count them on the emulator.
    Bench(bench::BenchArgs),
    /// Say what of this machine birdie can use.
    Doctor(doctor::DoctorArgs),
    /// Write weights as safetensors under the published names.
    Export(weights::ExportArgs),
    /// Make a run whose checkpoint holds weights from safetensors.
    Import(weights::ImportArgs),
    /// Train a tokenizer on a text, or turn a text into shards of tokens.
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
    /// List the recipes, or print the reference of all keys.
    Recipe(recipe::RecipeArgs),
}

/// Options of every command that uses the device.
#[derive(Args, Clone)]
struct DeviceArgs {
    /// auto (a GPU if it can run the kernels, else the emulator), cuda or emu.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: DeviceChoice,
    /// On the emulator, check every access for races, hazards and bounds: many times slower.
    #[arg(long)]
    check: bool,
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse()
        .map_err(|failure: Failure| format!("{}; {}", failure.why, failure.hint))
}

/// Opens the CUDA driver or the emulator, the latter with checkers if asked for here or by `BIRDIE_EMU_CHECKS`.
pub fn open_device(choice: DeviceChoice, check: bool) -> Result<String> {
    const CHECKS: &str = "BIRDIE_EMU_CHECKS";
    if check || std::env::var_os(CHECKS).is_none() {
        // SAFETY: no other thread of the program exists yet: devices are opened before data, Ctrl-C and model start theirs.
        unsafe { std::env::set_var(CHECKS, if check { "1" } else { "0" }) };
    }
    let info = driver::init(choice)?;
    let checked = std::env::var_os(CHECKS).is_some_and(|value| value != "0");
    Ok(match (info.kind, checked) {
        (DriverKind::Cuda, _) => info.to_string(),
        (DriverKind::Emulator, true) => format!("{info}; checkers on"),
        (DriverKind::Emulator, false) => format!("{info}; checkers off (--check turns them on)"),
    })
}

/// The program: parses, runs, reports.
pub fn main(backend: Backend) -> ExitCode {
    run(std::env::args_os(), backend)
}

fn run(arguments: impl IntoIterator<Item = OsString>, backend: Backend) -> ExitCode {
    let result = match Cli::try_parse_from(arguments) {
        Ok(cli) => execute(cli, backend),
        Err(error) if !error.use_stderr() => {
            // Help and version: a reader that went away is no error.
            let _ = error.print();
            Ok(0)
        }
        Err(error) => Err(wrong_arguments(&error).into()),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (text, code) = describe(&error);
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

fn execute(cli: Cli, backend: Backend) -> Result<u8> {
    match cli.command {
        Command::Train(args) => train::run(&args, backend),
        Command::Pack(args) => pack::run(&args, backend),
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(&args, backend),
        Command::Parity(args) => parity::run(&args, backend),
        Command::Bench(args) => bench::run(&args, backend),
        Command::Doctor(args) => doctor::run(&args, backend),
        Command::Export(args) => weights::export(&args, backend),
        Command::Import(args) => weights::import(&args, backend),
        Command::Tokenizer(command) => tokenizer::run(&command),
        Command::Recipe(args) => recipe::run(&args),
    }
}

/// The text of an error and its exit code.
fn describe(error: &anyhow::Error) -> (String, u8) {
    match error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
    {
        Some(failure) => (format!("birdie: {failure}"), failure.exit as u8),
        None => (
            format!(
                "birdie: internal: {error:#}\nhint: this is a defect, or the machine's; RUST_BACKTRACE=1 shows where"
            ),
            1,
        ),
    }
}

fn wrong_arguments(error: &clap::Error) -> Failure {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::user(
            "arguments",
            "no subcommand",
            "birdie train runs the demo; birdie --help lists commands",
        );
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let why = lines
        .next()
        .unwrap_or("wrong arguments")
        .trim_start_matches("error: ")
        .to_owned();
    let details: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:"))
        .map(|line| line.trim_start_matches("tip: "))
        .collect();
    let hint = if details.is_empty() || why.contains("subcommand") {
        "birdie --help lists commands, birdie COMMAND --help their options".to_owned()
    } else {
        details.join(" ")
    };
    Failure::user("arguments", why, hint)
}

#[cfg(test)]
mod tests;

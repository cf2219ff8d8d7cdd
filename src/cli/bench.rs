//! `birdie bench`: what the kernels cost, on a GPU measured, on the emulator counted and predicted.

use super::{Backend, DeviceArgs};
use crate::bench::record::Record;
use crate::bench::{self, Options, compare, table};
use crate::failure::Failure;
use crate::recipe;
use crate::train::log::say;
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Every kernel of a recipe's training step.
    Kernels(KernelArgs),
    /// Hand-written microbenchmarks of the machine: wgmma, exp2, shared memory, copies, barriers.
    Micro(MicroArgs),
    /// The same predictions for any program that ran on the emulator with BIRDIE_EMU_COUNT=FILE.
    Counts(CountsArgs),
    /// Two records of `bench kernels --out` or `bench counts --out`, row by row.
    Compare { old: PathBuf, new: PathBuf },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// One sequence of 256 tokens at the recipe's widths; the emulator executes it whole.
    Small,
    /// The step of one of the recipe's devices; the emulator executes a sample of each grid.
    Full,
}

#[derive(Args)]
struct KernelArgs {
    /// A built-in recipe or a TOML file.
    #[arg(long, default_value = "1072")]
    recipe: String,
    #[command(flatten)]
    device: DeviceArgs,
    #[arg(long, value_enum, default_value = "full")]
    shape: Size,
    /// Only entry points whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Write the record as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// On the emulator: execute one cluster in so many of large grids; default 96 with --shape full, 1 (all) with small.
    #[arg(long)]
    sample: Option<u64>,
    /// On a GPU: repetitions of the step for each state of the cache.
    #[arg(long, default_value_t = 10)]
    repetitions: u32,
    /// Change a key of the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
struct CountsArgs {
    /// Files or folders that BIRDIE_EMU_COUNT named.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only kernels whose (mangled) name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Write the record as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct MicroArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Only those whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Write the results as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &BenchArgs, backend: Backend) -> Result<u8> {
    match &args.what {
        What::Kernels(args) => kernels(args, backend),
        What::Micro(args) => micro(args, backend),
        What::Counts(args) => {
            let record = bench::counts::read(&args.files, args.filter.as_deref())?;
            say(table::report(&record).trim_end());
            if let Some(path) = &args.out {
                record.write(path)?;
            }
            Ok(0)
        }
        What::Compare { old, new } => {
            let (old, new) = (Record::read(old)?, Record::read(new)?);
            say(compare::compare(&old, &new)?.trim_end());
            Ok(0)
        }
    }
}

/// The emulator counts, and looks as large as the device that the predictions are for. Its memory is given by the host page by page, and
/// samples touch a part of it only.
const EMULATOR: [(&str, &str); 3] = [
    ("BIRDIE_EMU_COUNT", "1"),
    ("BIRDIE_EMU_SMS", "132"),
    ("BIRDIE_EMU_MEMORY", "85899345920"),
];

/// Opens the device; an emulator that counts.
fn open(device: &DeviceArgs, backend: Backend, set: &[(&str, &str)]) -> Result<String> {
    for (name, value) in set {
        // SAFETY: no other thread of the program exists yet: devices are opened first.
        unsafe { std::env::set_var(name, value) };
    }
    (backend.device)(device.device, device.check)
}

fn micro(args: &MicroArgs, backend: Backend) -> Result<u8> {
    // Every launch is executed whole: its counts may go to a file as well.
    let named =
        std::env::var_os(EMULATOR[0].0).is_some_and(|value| !value.is_empty() && value != "0");
    say(&open(
        &args.device,
        backend,
        &EMULATOR[usize::from(named)..],
    )?);
    let lines = bench::micro::run(args.filter.as_deref())?;
    say(bench::micro::report(&lines).trim_end());
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&lines)? + "\n";
        std::fs::write(path, text).map_err(|error| {
            Failure::user(path.display(), error, "name a file that can be written")
        })?;
    }
    Ok(0)
}

fn kernels(args: &KernelArgs, backend: Backend) -> Result<u8> {
    say(&open(&args.device, backend, &EMULATOR)?);
    let mut recipe = recipe::load(&args.recipe, std::iter::empty(), &args.set)?.recipe;
    if args.shape == Size::Small {
        recipe = bench::small(&recipe);
    }
    let options = Options {
        filter: args.filter.clone(),
        sample: args.sample.unwrap_or(match args.shape {
            Size::Small => 1,
            Size::Full => 96,
        }),
        repetitions: args.repetitions,
    };
    let record = bench::kernels(&recipe, &options)?;
    say(table::report(&record).trim_end());
    if let Some(path) = &args.out {
        record.write(path)?;
    }
    Ok(0)
}

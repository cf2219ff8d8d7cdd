//! `birdie parity`: compares the device model with what the published code computes.

use super::{Backend, DeviceArgs};
use crate::failure::Failure;
use crate::parity::run as case;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Exit code when a case does not agree: it is not the user's to change.
const OFF: u8 = 1;

#[derive(Args)]
pub(super) struct ParityArgs {
    /// Case files.
    #[arg(required = true, value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// Lines of the table per case, the worst comparisons first; 0 = all.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &ParityArgs, backend: Backend) -> Result<u8> {
    println!(
        "{}",
        (backend.device)(args.device.device, args.device.check)?
    );
    let rows = if args.rows == 0 {
        usize::MAX
    } else {
        args.rows
    };
    let mut off = 0;
    for file in &args.files {
        let tallies = case::run(file).map_err(|error| {
            Failure::user(
                "parity",
                format!("{error:#}"),
                "cases are described in src/parity/case.rs",
            )
        })?;
        for tally in tallies {
            print!("{}", tally.report(rows));
            off += usize::from(!tally.passes());
        }
    }
    if off > 0 {
        println!("{off} off");
        return Ok(OFF);
    }
    println!("all agree");
    Ok(0)
}

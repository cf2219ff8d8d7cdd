//! `birdie parity`: compares the device model, the quantizers and the scoring with what the published code computes.

use super::{Backend, DeviceArgs};
use crate::parity::file::File;
use crate::train::log::say;
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
    /// SentencePiece model of a scoring case; without it the one with the case's hash is looked for near the case.
    #[arg(long, value_name = "FILE.model")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: &ParityArgs, backend: Backend) -> Result<u8> {
    // Every file is read before the first one runs: a mistake in the last one costs nothing.
    let open = |path: &PathBuf| File::open(path, args.tokenizer.as_deref());
    let files: Vec<File> = args.files.iter().map(open).collect::<Result<_>>()?;
    say(&(backend.device)(args.device.device, args.device.check)?);
    let rows = if args.rows == 0 {
        usize::MAX
    } else {
        args.rows
    };
    let mut off = 0;
    for file in &files {
        let tallies = file.run()?;
        for tally in tallies {
            say(tally.report(rows).trim_end());
            off += usize::from(!tally.passes());
        }
    }
    if off > 0 {
        say(&format!("{off} off"));
        return Ok(OFF);
    }
    say("all agree");
    Ok(0)
}

//! `birdie pack`: an artifact from a checkpoint, perhaps quantized in another way than the run did.

use super::train::{ARTIFACT, CHECKPOINT};
use super::{Backend, DeviceArgs};
use crate::artifact::Artifact;
use crate::checkpoint::Checkpoint;
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::quantize::quantize;
use crate::recipe;
use crate::train::averaging::{Snapshots, check_kept, final_weights};
use crate::train::calibrate::Online;
use crate::train::log::{Reporter, say};
use crate::train::score::{calibrate, check_support, encode};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct PackArgs {
    /// Folder of a run.
    run: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// The artifact to write; default model.birdie in the run's folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Change a key of the sections [artifact] and [averaging]; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Replace an existing artifact.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(args: &PackArgs, backend: Backend) -> Result<u8> {
    let out = args.out.clone().unwrap_or_else(|| args.run.join(ARTIFACT));
    if out.exists() && !args.overwrite {
        return Err(Failure::user(
            format!("artifact {}", out.display()),
            "it exists",
            "--overwrite replaces it, --out names another file",
        )
        .into());
    }
    let checkpoint = Checkpoint::load(&args.run.join(CHECKPOINT))?;
    let loaded = recipe::reload(
        &checkpoint.recipe,
        "stored in the checkpoint",
        &args.set,
        &["artifact", "averaging"],
    )?;
    let stored = recipe::reload(&checkpoint.recipe, "stored in the checkpoint", &[], &[])?;
    check_kept(&stored.recipe, &loaded.recipe)?;
    say(&(backend.device)(args.device.device, args.device.check)?);
    let mut engine = (backend.build)(&loaded.recipe)?;
    check_support(&loaded.recipe, engine.as_ref())?;
    let progress = checkpoint.progress;
    let snapshots = Snapshots {
        count: progress.snapshots,
    };
    let (online, state) = Online::split_state(progress.hessian_batches, checkpoint.tensors);
    engine.load_state(&state)?;
    let (weights, which) = final_weights(&loaded.recipe, engine.as_mut(), &snapshots)?;
    engine.import(&weights)?;
    let hessians = calibrate(
        &loaded.recipe,
        engine.as_mut(),
        &online,
        &mut Reporter::console(),
    )?;
    let tensors = quantize(
        &loaded.recipe,
        &weights,
        &hessians,
        &mut |weights, cols, bits| engine.clip_search(weights, cols, bits),
    )?;
    let (file, _) = encode(&loaded.recipe, &loaded.print_config(), tensors)?;
    write_atomically(&out, &file)?;
    say(&format!("{} weights after step {}", which, progress.step));
    say(&format!(
        "artifact {}: {}",
        out.display(),
        Artifact::budget(&loaded.recipe, file.len())
    ));
    Ok(0)
}

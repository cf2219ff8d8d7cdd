//! `birdie export` and `birdie import`: weights to and from safetensors under the published names.

use super::train::{ARTIFACT, CHECKPOINT};
use super::{Backend, DeviceArgs};
use crate::artifact::{Artifact, safetensors};
use crate::checkpoint::{Checkpoint, Progress};
use crate::failure::Failure;
use crate::files::write_atomically;
use crate::quantize::QuantizedTensor;
use crate::recipe;
use crate::train::averaging::{Snapshots, check_kept, final_weights};
use crate::train::calibrate::Online;
use crate::train::engine::Weights;
use crate::train::log::say;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct ExportArgs {
    /// An artifact or the folder of a run (its artifact), whose weights are exported as they are scored.
    source: PathBuf,
    /// The safetensors file to write.
    #[arg(long)]
    out: PathBuf,
    /// Export the final weights of the run's checkpoint instead, before quantization.
    #[arg(long)]
    checkpoint: bool,
    /// Write the matrices of all layers as the four banks that the published modules of #1072, #1473 and #1573 load.
    #[arg(long)]
    banks: bool,
    /// With --checkpoint: change a key of [averaging], for example final_weights=live.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "checkpoint")]
    set: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Replace an existing file.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The safetensors file.
    weights: PathBuf,
    /// The recipe that the weights belong to.
    #[arg(long)]
    recipe: String,
    /// Folder of the run to make; its checkpoint holds the weights before the first step.
    #[arg(long)]
    out: PathBuf,
    /// Change a key of the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn refuse_existing(path: &Path, overwrite: bool) -> Result<()> {
    if path.exists() && !overwrite {
        return Err(Failure::user(
            format!("file {}", path.display()),
            "it exists",
            "--overwrite replaces it, --out names another file",
        )
        .into());
    }
    Ok(())
}

pub fn export(args: &ExportArgs, backend: Backend) -> Result<u8> {
    refuse_existing(&args.out, args.overwrite)?;
    let (mut tensors, note) = if args.checkpoint {
        let checkpoint = Checkpoint::load(&args.source.join(CHECKPOINT))?;
        let loaded = recipe::reload(
            &checkpoint.recipe,
            "stored in the checkpoint",
            &args.set,
            &["averaging"],
        )?;
        let stored = recipe::reload(&checkpoint.recipe, "stored in the checkpoint", &[], &[])?;
        check_kept(&stored.recipe, &loaded.recipe)?;
        say(&(backend.device)(args.device.device, args.device.check)?);
        let mut engine = (backend.build)(&loaded.recipe)?;
        let progress = checkpoint.progress;
        let snapshots = Snapshots {
            count: progress.snapshots,
        };
        let (_, state) = Online::split_state(progress.hessian_batches, checkpoint.tensors);
        engine.load_state(&state)?;
        let (weights, which) = final_weights(&loaded.recipe, engine.as_mut(), &snapshots)?;
        (
            weights,
            format!(
                "birdie, recipe {}, {which} weights after step {}",
                loaded.recipe.name, progress.step
            ),
        )
    } else {
        let path = if args.source.is_dir() {
            args.source.join(ARTIFACT)
        } else {
            args.source.clone()
        };
        let (artifact, _) = Artifact::load(&path)?;
        let recipe = artifact.parse_recipe()?;
        (
            artifact
                .tensors
                .iter()
                .map(QuantizedTensor::restore)
                .collect(),
            format!("birdie, recipe {}, dequantized artifact", recipe.name),
        )
    };
    if args.banks {
        tensors = safetensors::into_banks(tensors);
    }
    write_atomically(&args.out, &safetensors::encode(&tensors, &note)?)?;
    say(&format!(
        "{}: {} tensors ({note})",
        args.out.display(),
        tensors.len()
    ));
    Ok(0)
}

pub fn import(args: &ImportArgs, backend: Backend) -> Result<u8> {
    let loaded = recipe::load(&args.recipe, [], &args.set)?;
    let checkpoint = args.out.join(CHECKPOINT);
    refuse_existing(&checkpoint, false)?;
    let weights = safetensors::load(&args.weights)?;
    let weights = safetensors::from_banks(weights).map_err(|why| {
        Failure::user(
            format!("weights {}", args.weights.display()),
            why,
            "a bank has one matrix for each layer, two for each layer in qo_bank and kv_bank",
        )
    })?;
    say(&(backend.device)(args.device.device, args.device.check)?);
    let mut engine = (backend.build)(&loaded.recipe)?;
    let parameters = engine.export(Weights::Live)?;
    let fitted = safetensors::fit(weights, &parameters).map_err(|why| {
        Failure::user(
            format!("weights {}", args.weights.display()),
            why,
            format!(
                "are they of recipe {}? --set changes its keys",
                loaded.recipe.name
            ),
        )
    })?;
    engine.import(&fitted)?;
    std::fs::create_dir_all(&args.out).map_err(|error| {
        Failure::user(
            format!("folder {}", args.out.display()),
            error,
            "choose another --out",
        )
    })?;
    let state = engine.save_state()?;
    Checkpoint {
        progress: Progress::default(),
        recipe: loaded.print_config(),
        tensors: state,
    }
    .save(&checkpoint)?;
    say(&format!(
        "{}: {} tensors; pack them with: birdie pack {} --set final_weights=live",
        checkpoint.display(),
        fitted.len(),
        args.out.display()
    ));
    Ok(0)
}

//! `birdie inspect`: what an artifact or a checkpoint holds. Needs no device.

use crate::artifact::Artifact;
use crate::checkpoint::Checkpoint;
use crate::quantize::Stored;
use crate::train::log::say;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct InspectArgs {
    /// An artifact, a checkpoint, or the folder of a run (its artifact).
    file: PathBuf,
    /// Print the stored recipe only.
    #[arg(long)]
    recipe: bool,
}

pub fn run(args: &InspectArgs) -> Result<u8> {
    let path = if args.file.is_dir() {
        args.file.join(super::train::ARTIFACT)
    } else {
        args.file.clone()
    };
    if is_checkpoint(&path) {
        checkpoint(&path, args.recipe)
    } else {
        artifact(&path, args.recipe)
    }
}

fn is_checkpoint(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 8];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && &magic == b"birdckpt"
}

fn artifact(path: &Path, recipe_only: bool) -> Result<u8> {
    let (artifact, info) = Artifact::load(path)?;
    if recipe_only {
        say(artifact.recipe.trim_end());
        return Ok(0);
    }
    let recipe = artifact.parse_recipe()?;
    say(artifact.table().trim_end());
    let parameters: usize = artifact.tensors.iter().map(|t| t.numel()).sum();
    let by_storage = |bits: u8| -> usize {
        artifact
            .tensors
            .iter()
            .filter(|t| match &t.stored {
                Stored::F16(_) => bits == 16,
                Stored::Rows(rows) => rows.bits == bits,
            })
            .map(|t| t.numel())
            .sum()
    };
    let kinds: Vec<String> = [5, 6, 8, 16]
        .into_iter()
        .filter(|b| by_storage(*b) > 0)
        .map(|b| format!("{} at {b} bits", by_storage(b)))
        .collect();
    say(&format!(
        "recipe {} (seed {}): {parameters} parameters in {} tensors ({})",
        recipe.name,
        recipe.seed,
        artifact.tensors.len(),
        kinds.join(", ")
    ));
    say(&format!(
        "{} bytes before {}, {} after ({:.2} bits per parameter), codes {}",
        info.body_bytes,
        info.coder.compressor.name(),
        info.file_bytes,
        8.0 * info.file_bytes as f64 / parameters as f64,
        if info.packed {
            "packed"
        } else {
            "one byte each"
        }
    ));
    say(&format!(
        "size: {}",
        Artifact::budget(&recipe, info.file_bytes)
    ));
    Ok(0)
}

fn checkpoint(path: &Path, recipe_only: bool) -> Result<u8> {
    let checkpoint = Checkpoint::load(path)?;
    if recipe_only {
        say(checkpoint.recipe.trim_end());
        return Ok(0);
    }
    for tensor in &checkpoint.tensors {
        let shape = tensor
            .shape
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join("x");
        say(&format!(
            "{:<48} {:>6} {shape:>14} {:>12} bytes",
            tensor.name,
            format!("{:?}", tensor.element).to_lowercase(),
            tensor.bytes.len()
        ));
    }
    let p = &checkpoint.progress;
    say(&format!(
        "after step {}, {:.1} s of training, data position {}, {} snapshots",
        p.step,
        p.train_ms / 1e3,
        p.cursor,
        p.snapshots
    ));
    Ok(0)
}

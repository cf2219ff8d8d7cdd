//! `birdie eval`: the score of an artifact.

use super::{Backend, DeviceArgs};
use crate::artifact::{Artifact, safetensors};
use crate::data;
use crate::evaluate::audit::audit;
use crate::failure::Failure;
use crate::quantize::QuantizedTensor;
use crate::recipe;
use crate::train::engine::Weights;
use crate::train::log::{Reporter, say};
use crate::train::score::{report, score_final, score_keeping};
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Args)]
pub struct EvalArgs {
    /// An artifact, or the folder of a run.
    artifact: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// Change a key of the sections [data] and [evaluation]; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Decode the validation tokens first and compare the bytes of their text with those that the score divides by.
    #[arg(long)]
    audit: bool,
}

pub fn run(args: &EvalArgs, backend: Backend) -> Result<u8> {
    let path = if args.artifact.is_dir() {
        args.artifact.join(super::train::ARTIFACT)
    } else {
        args.artifact.clone()
    };
    let (artifact, _) = Artifact::load(&path)?;
    let loaded = recipe::reload(
        &artifact.recipe,
        "stored in the artifact",
        &args.set,
        &["data", "evaluation"],
    )?;
    let recipe = &loaded.recipe;
    let (description, validation) = data::open_validation(recipe, Path::new(""))?;
    say(&format!("data: {description}"));
    if args.audit {
        let (tokens, text) = (&validation.tokens, validation.text.as_deref());
        let found = audit(&validation.tokenizer, &validation.bytes, tokens, text)?;
        found.report().iter().for_each(|line| say(line));
    }
    say(&(backend.device)(args.device.device, args.device.check)?);
    let mut engine = (backend.build)(recipe)?;
    let restored: Vec<_> = artifact
        .tensors
        .iter()
        .map(QuantizedTensor::restore)
        .collect();
    // Every parameter from the artifact, none left at its initial value.
    let fitted = safetensors::fit(restored, &engine.export(Weights::Live)?).map_err(|why| {
        Failure::user(
            format!("artifact {}", path.display()),
            format!("its tensors are not those of its recipe: {why}"),
            "pack it again from the run's checkpoint: birdie pack RUN",
        )
    })?;
    engine.import(&fitted)?;
    let mut reporter = Reporter::console();
    let start = Instant::now();
    let data = (&validation.tokens[..], &validation.bytes);
    let (tally, chunks) = score_keeping(recipe, engine.as_mut(), data, &mut reporter)?;
    report(&mut reporter, "chunked", &tally, "", start)?;
    if recipe.eval_stride > 0 {
        score_final(recipe, engine.as_mut(), data, &chunks, "", &mut reporter)?;
    }
    Ok(0)
}

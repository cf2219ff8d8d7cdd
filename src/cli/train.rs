//! `birdie train`: recipe, data, device, loop, artifact, score, summary.

use super::{Backend, DeviceArgs, INTERRUPTED};
use crate::checkpoint::Checkpoint;
use crate::data::{self, Dataset};
use crate::evaluate::baselines::Baselines;
use crate::failure::Failure;
use crate::recipe::{self, KEYS, Loaded, Recipe};
use crate::train::adapt::order;
use crate::train::curve::Curve;
use crate::train::log::Reporter;
use crate::train::run::{Run, batch_shape, train};
use crate::train::score::{Finish, Finished, check_support, finish};
use anyhow::{Context, Result};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Files of a run's folder.
pub const CHECKPOINT: &str = "checkpoint.birdie";
pub const ARTIFACT: &str = "model.birdie";
const RECIPE: &str = "recipe.toml";

/// Keys that may change between a run and its resumption.
const FREE: &[&str] = &[
    "iterations",
    "max_wallclock_seconds",
    "reference_step_ms",
    "checkpoint_every",
    "train_log_every",
    "val_loss_every",
    "data_path",
    "tokenizer_path",
    "val_fraction",
    "val_tokens_limit",
];
/// Sections that do not touch training.
const FREE_SECTIONS: &[&str] = &["artifact", "evaluation"];

#[derive(Args)]
pub struct TrainArgs {
    /// A built-in recipe or a TOML file.
    #[arg(default_value = "demo")]
    recipe: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// Folder of the run; default runs/NAME, or runs/NAME-2, … if that holds a run.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Change a key of the recipe; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue the run in --out (default: the latest in runs/) from its checkpoint.
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Replace the run in --out.
    #[arg(long)]
    overwrite: bool,
    /// Print every key, its value and where the value came from, and stop.
    #[arg(long)]
    print_config: bool,
    /// Print the memory plan and whether it fits the device, and stop; nothing is allocated.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: tensor by tensor.
    #[arg(long, requires = "dry_run")]
    tensors: bool,
}

pub fn run(args: &TrainArgs, backend: Backend) -> Result<u8> {
    let loaded = recipe::load(
        &args.recipe,
        std::env::vars_os().filter_map(text_pair),
        &args.set,
    )?;
    if args.print_config {
        crate::train::log::say(loaded.print_config().trim_end());
        return Ok(0);
    }
    let recipe = &loaded.recipe;
    if args.dry_run {
        crate::train::log::say(&(backend.device)(args.device.device, args.device.check)?);
        let plan = (backend.plan)(recipe, args.tensors)?;
        crate::train::log::say(plan.report.trim_end());
        return plan.fits.map(|()| 0);
    }
    let shape = batch_shape(recipe, 1, 0)?;
    let folder = choose_folder(args, recipe)?;
    let from = if args.resume {
        Some(checkpoint_of(&folder, recipe)?)
    } else {
        None
    };
    let data = data::open(recipe, Path::new(""))?;
    let start = Instant::now();
    let device = (backend.device)(args.device.device, args.device.check)?;
    let mut engine = (backend.build)(recipe)?;
    let built = start.elapsed();
    check_support(recipe, engine.as_ref())?;

    // Nothing is written before this line.
    prepare(&folder, args.overwrite)?;
    let recipe_text = loaded.print_config();
    crate::files::write_atomically(&folder.join(RECIPE), recipe_text.as_bytes())?;
    let mut reporter = Reporter::open(&folder, from.as_ref().map(|c| c.progress.step))?;
    reporter.add_phase("device and model", built);
    reporter.line(device)?;
    reporter.line(format!(
        "recipe: {} (seed {}), run folder {}",
        recipe.name,
        recipe.seed,
        folder.display()
    ))?;
    reporter.line(format!("data: {}", data.description))?;
    if let Some(checkpoint) = &from {
        reporter.line(format!("resuming after step {}", checkpoint.progress.step))?;
    }
    let Dataset {
        train: stream,
        validation,
        ..
    } = data;
    let interrupt = Interrupt::install()?;
    let checkpoint = folder.join(CHECKPOINT);
    let run = Run {
        recipe,
        recipe_text: &recipe_text,
        validation: &validation.tokens,
        table: &validation.bytes,
        checkpoint: Some(&checkpoint),
        stop: &interrupt.asked,
    };
    let outcome = train(&run, engine.as_mut(), stream, shape, from, &mut reporter)?;
    draw_curve(&folder, recipe)?;
    let farewell = format!(
        "interrupted after step {}; continue with: birdie train {} --resume --out {}",
        outcome.progress.step,
        args.recipe,
        folder.display()
    );
    if outcome.interrupted {
        reporter.line(farewell)?;
        return Ok(INTERRUPTED);
    }
    // What follows changes nothing of the run: it may end anywhere.
    interrupt.end_at_once(farewell);
    let path = folder.join(ARTIFACT);
    let how = Finish {
        recipe,
        recipe_text: &recipe_text,
        validation: &validation.tokens,
        table: &validation.bytes,
        path: &path,
    };
    let finished = finish(
        &how,
        engine.as_mut(),
        (&outcome.snapshots, &outcome.online),
        &mut reporter,
    )?;
    let baselines = match &validation.text {
        Some(text) => Some(reporter.phase("entropies and xz", |_| Baselines::of(text))?),
        None => None,
    };
    summary(&mut reporter, &loaded, &finished, baselines, &folder)?;
    Ok(0)
}

fn text_pair((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// What Ctrl-C does. In training the first one asks the loop to stop after its step and the second ends the program; once the trained
/// model is in its checkpoint, the first ends it.
struct Interrupt {
    asked: AtomicBool,
    /// The last words, set when there is nothing left to save.
    farewell: OnceLock<String>,
}

impl Interrupt {
    fn install() -> Result<Arc<Self>> {
        let interrupt = Arc::new(Self {
            asked: AtomicBool::new(false),
            farewell: OnceLock::new(),
        });
        let in_handler = interrupt.clone();
        match ctrlc::set_handler(move || in_handler.happened()) {
            // In tests several runs share a process; the first one's handler serves.
            Err(ctrlc::Error::MultipleHandlers) | Ok(()) => Ok(interrupt),
            Err(error) => Err(error).context("installing the Ctrl-C handler"),
        }
    }

    fn happened(&self) {
        let again = self.asked.swap(true, Ordering::Relaxed);
        match self.farewell.get() {
            Some(words) => eprintln!("\n{words}"),
            None if again => {}
            None => {
                eprintln!("\nstopping after this step; Ctrl-C again ends at once");
                return;
            }
        }
        std::process::exit(i32::from(INTERRUPTED));
    }

    fn end_at_once(&self, farewell: String) {
        // Set once per run; a Ctrl-C that came between the loop's last look and now is obeyed here.
        let words = self.farewell.get_or_init(|| farewell);
        if self.asked.load(Ordering::Relaxed) {
            eprintln!("{words}");
            std::process::exit(i32::from(INTERRUPTED));
        }
    }
}

fn holds_run(folder: &Path) -> bool {
    [CHECKPOINT, ARTIFACT, RECIPE]
        .iter()
        .any(|file| folder.join(file).exists())
}

fn choose_folder(args: &TrainArgs, recipe: &Recipe) -> Result<PathBuf> {
    let default = |n: usize| {
        Path::new("runs").join(if n == 1 {
            recipe.name.clone()
        } else {
            format!("{}-{n}", recipe.name)
        })
    };
    let folder = match &args.out {
        Some(out) => out.clone(),
        None if args.resume => {
            let latest = (1..)
                .take_while(|n| *n == 1 || holds_run(&default(*n)))
                .last()
                .unwrap_or(1);
            default(latest)
        }
        None => (1..)
            .map(default)
            .find(|folder| args.overwrite || !holds_run(folder))
            .expect("there is no end of numbers"),
    };
    if !args.resume && !args.overwrite && holds_run(&folder) {
        return Err(Failure::user(
            format!("folder {}", folder.display()),
            "it already holds a run",
            "--resume continues it, --overwrite replaces it, --out names another folder",
        )
        .into());
    }
    check_place(&folder)?;
    Ok(folder)
}

/// Refuses a folder that could not be made or written, before any time is spent on the run.
fn check_place(folder: &Path) -> Result<()> {
    let place = |path: &Path| {
        if path.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            path.to_owned()
        }
    };
    let existing = folder
        .ancestors()
        .map(place)
        .find(|path| path.exists())
        .unwrap_or(".".into());
    tempfile::tempfile_in(&existing).map_err(|error| {
        Failure::user(
            format!("folder {}", folder.display()),
            error,
            "choose another --out",
        )
    })?;
    Ok(())
}

/// The checkpoint of a run, refused if it was made by another recipe.
fn checkpoint_of(folder: &Path, recipe: &Recipe) -> Result<Checkpoint> {
    let path = folder.join(CHECKPOINT);
    let checkpoint = Checkpoint::load(&path)?;
    let made_by = recipe::parse("stored in the checkpoint", &checkpoint.recipe)?.recipe;
    for key in KEYS
        .iter()
        .filter(|key| !FREE.contains(&key.name) && !FREE_SECTIONS.contains(&key.section))
    {
        let (old, new) = (made_by.get(key.name), recipe.get(key.name));
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            return Err(Failure::user(
                format!("checkpoint {}", path.display()),
                format!(
                    "it was made with {} = {old}, this recipe has {new}",
                    key.name
                ),
                format!("resume with --set {}={old}, or start another run", key.name),
            )
            .into());
        }
    }
    Ok(checkpoint)
}

fn prepare(folder: &Path, overwrite: bool) -> Result<()> {
    let refuse = |error: std::io::Error| {
        Failure::user(
            format!("folder {}", folder.display()),
            error,
            "choose another --out",
        )
    };
    std::fs::create_dir_all(folder).map_err(refuse)?;
    if overwrite {
        for file in [
            CHECKPOINT,
            ARTIFACT,
            RECIPE,
            "log.txt",
            "metrics.jsonl",
            "loss.svg",
        ] {
            match std::fs::remove_file(folder.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(refuse(error).into());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn draw_curve(folder: &Path, recipe: &Recipe) -> Result<()> {
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl"))
        .context("reading the metrics back")?;
    let svg = Curve::from_metrics(&metrics).svg(&recipe.name)?;
    crate::files::write_atomically(&folder.join("loss.svg"), svg.as_bytes())
}

fn summary(
    reporter: &mut Reporter,
    loaded: &Loaded,
    finished: &Finished,
    baselines: Option<Baselines>,
    folder: &Path,
) -> Result<()> {
    let recipe = &loaded.recipe;
    reporter.line("")?;
    let scored = finished.sliding.as_ref().unwrap_or(&finished.roundtrip);
    let way = match (&finished.sliding, recipe.ttt_enabled) {
        (None, _) => "chunks".into(),
        (Some(_), false) => format!("sliding windows, stride {}", recipe.eval_stride),
        (Some(_), true) => format!(
            "sliding windows, stride {}, test-time training ({})",
            recipe.eval_stride,
            order(recipe)
        ),
    };
    reporter.line("bits per byte")?;
    reporter.line(format!(
        "  {:<24} {:>9.4}   {way}, {} tokens, {} bytes",
        "this model",
        finished.bpb(),
        scored.tokens,
        scored.bytes
    ))?;
    if let Some(b) = baselines {
        let of = format!("of the validation text, {} bytes", b.text_bytes);
        reporter.line(format!(
            "  {:<24} {:>9.4}   entropy of byte pairs {of}",
            "order 1", b.order1
        ))?;
        reporter.line(format!(
            "  {:<24} {:>9.4}   entropy of bytes {of}",
            "order 0", b.order0
        ))?;
        reporter.line(format!(
            "  {:<24} {:>9.4}   {of}: {} bytes",
            "xz -9",
            b.xz_bpb(),
            b.xz_bytes
        ))?;
        let verdict = if finished.bpb() < b.order1 {
            "below"
        } else {
            "above"
        };
        reporter.line(format!("  the model is {verdict} the order-1 entropy"))?;
    }
    reporter.line(format!("size: {}", finished.budget))?;
    reporter.line("phases")?;
    reporter.line(reporter.phase_table())?;
    reporter.line(format!(
        "artifact {}, loss curve {}",
        folder.join(ARTIFACT).display(),
        folder.join("loss.svg").display()
    ))
}

//! What a run says: lines in the grammar of the challenge's logs, metrics as JSON lines, a live line on a terminal.
//!
//! Lines go to standard output and `log.txt`, metrics to `metrics.jsonl`, the live line to standard error if that is a
//! terminal. A reader that goes away (`birdie train | head`) does not stop a run; a full disk does, with a message.

use crate::failure::Failure;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

/// The outputs of one run.
pub struct Reporter {
    folder: PathBuf,
    text: Option<File>,
    metrics: Option<File>,
    live: Option<ProgressBar>,
    echo: bool,
    phases: Vec<(String, Duration)>,
}

impl Reporter {
    /// Opens the files of a run. Metrics of steps after `resume_from` are dropped: they are about to be made again.
    pub fn open(folder: &Path, resume_from: Option<usize>) -> Result<Self> {
        let metrics = folder.join("metrics.jsonl");
        if let Some(step) = resume_from {
            keep_until(&metrics, step)?;
        }
        let open = |path: &Path| -> Result<File> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| {
                    Failure::user(
                        format!("file {}", path.display()),
                        error,
                        "choose another --out",
                    )
                    .into()
                })
        };
        Ok(Self {
            text: Some(open(&folder.join("log.txt"))?),
            metrics: Some(open(&metrics)?),
            folder: folder.to_owned(),
            live: None,
            echo: true,
            phases: Vec::new(),
        })
    }

    /// Says nothing and writes nothing: for tests of the loop.
    pub fn silent() -> Self {
        Self {
            folder: PathBuf::new(),
            text: None,
            metrics: None,
            live: None,
            echo: false,
            phases: Vec::new(),
        }
    }

    /// Prints to standard output only.
    pub fn console() -> Self {
        Self {
            echo: true,
            ..Self::silent()
        }
    }

    /// One line of the log.
    pub fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        let line = line.as_ref();
        if self.echo {
            match &self.live {
                Some(bar) => bar.suspend(|| say(line)),
                None => say(line),
            }
        }
        self.write(line, false)
    }

    /// One JSON line of metrics.
    pub fn metric(&mut self, value: &Value) -> Result<()> {
        self.write(&value.to_string(), true)
    }

    fn write(&mut self, line: &str, metric: bool) -> Result<()> {
        let file = if metric {
            &mut self.metrics
        } else {
            &mut self.text
        };
        let Some(file) = file else { return Ok(()) };
        writeln!(file, "{line}").map_err(|error| {
            let name = if metric { "metrics.jsonl" } else { "log.txt" };
            Failure::user(
                format!("file {}", self.folder.join(name).display()),
                error,
                "free some disk space; `--resume` continues from the last checkpoint",
            )
            .into()
        })
    }

    /// Starts a live line that counts to `total`; shown on a terminal only.
    pub fn live(&mut self, total: usize, what: &str) {
        self.end_live();
        if !self.echo || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(
            Some(total as u64),
            ProgressDrawTarget::stderr_with_hz(10),
        );
        let style =
            ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} {msg} {eta_precise} left");
        bar.set_style(style.expect("the template is well-formed"));
        bar.set_prefix(what.to_owned());
        self.live = Some(bar);
    }

    /// Moves the live line.
    pub fn live_at(&mut self, done: usize, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.live {
            bar.set_position(done as u64);
            bar.set_message(message());
        }
    }

    pub fn end_live(&mut self) {
        if let Some(bar) = self.live.take() {
            bar.finish_and_clear();
        }
    }

    /// Runs a phase and remembers how long it took.
    pub fn phase<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work(self);
        self.end_live();
        self.phases.push((name.to_owned(), start.elapsed()));
        result
    }

    /// Adds a phase that was over before there was a reporter.
    pub fn add_phase(&mut self, name: &str, time: Duration) {
        self.phases.push((name.to_owned(), time));
    }

    /// The phases as a table.
    pub fn phase_table(&self) -> String {
        let total: Duration = self.phases.iter().map(|(_, time)| *time).sum();
        let mut text = String::new();
        for (name, time) in self
            .phases
            .iter()
            .chain(std::iter::once(&("total".to_owned(), total)))
        {
            text += &format!("  {name:<24} {:>9.2} s\n", time.as_secs_f64());
        }
        text.pop();
        text
    }
}

/// A line on standard output. A closed pipe is not an error; anything else that keeps it from being read is said once, and nothing
/// ends for it: what a run needs is in its files.
pub fn say(line: &str) {
    if cfg!(test) {
        // The test harness captures this macro's output only.
        println!("{line}");
        return;
    }
    static LOST: Once = Once::new();
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            LOST.call_once(|| eprintln!("birdie: standard output is lost: {error}"));
        }
        _ => {}
    }
}

fn keep_until(path: &Path, step: usize) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(());
    };
    let keep = |line: &&str| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        value.is_some_and(|v| {
            v["step"].as_u64().is_none_or(|s| s <= step as u64) && v["event"] != "final"
        })
    };
    let kept: String = text
        .lines()
        .filter(keep)
        .flat_map(|line| [line, "\n"])
        .collect();
    crate::files::write_atomically(path, kept.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resuming_drops_metrics_that_will_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut reporter = Reporter::open(folder.path(), None).unwrap();
        reporter.echo = false;
        for step in 1..=5 {
            reporter
                .metric(&json!({"event": "step", "step": step}))
                .unwrap();
        }
        reporter.line("a line").unwrap();
        drop(reporter);
        Reporter::open(folder.path(), Some(3)).unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("log.txt")).unwrap(),
            "a line\n"
        );
    }

    #[test]
    fn a_full_disk_is_a_users_error() {
        let mut reporter = Reporter::silent();
        reporter.text = Some(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let failure: Failure = reporter.line("x").unwrap_err().downcast().unwrap();
        assert!(failure.hint.contains("disk space"));
    }
}

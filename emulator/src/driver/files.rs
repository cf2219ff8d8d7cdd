//! Counts and traces of launches, written to the files that `BIRDIE_EMU_COUNT` and `BIRDIE_EMU_TRACE` name.
//!
//! A file is a JSON list that is complete after every launch, so that a program that is killed leaves what it had. The
//! files are opened by `cuInit`, which fails if it cannot: a run should not end without the counts it was made for.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::counters::record::Record;
use crate::device::{Device, Fault, LaunchConfig, LaunchError, LaunchReport, Observation};
use crate::program::Program;
use crate::trace::chrome::{self, Place};

/// Events after which a trace takes no more launches.
const FULL: usize = 4 << 20;

/// A JSON list that grows.
struct List {
    file: File,
    empty: bool,
}

impl List {
    fn create(path: &Path) -> io::Result<List> {
        let mut file = File::create(path)?;
        file.write_all(b"[\n]\n")?;
        Ok(List { file, empty: true })
    }

    fn append(&mut self, items: impl Iterator<Item = String>) -> io::Result<()> {
        let mut text = String::new();
        for item in items {
            text += if self.empty { "[\n" } else { ",\n" };
            text += &item;
            self.empty = false;
        }
        if text.is_empty() {
            return Ok(());
        }
        text += "\n]\n";
        let first = text.starts_with('[');
        self.file.seek(if first {
            SeekFrom::Start(0)
        } else {
            SeekFrom::End(-3)
        })?;
        self.file.write_all(text.as_bytes())
    }
}

enum Counts {
    List(List),
    /// One file per launch.
    Folder(PathBuf),
}

struct Traces {
    list: List,
    /// Where the next launch is put.
    origin: u64,
    process: u64,
    events: usize,
}

#[derive(Default)]
struct Files {
    counts: Option<Counts>,
    traces: Option<Traces>,
    launches: u64,
}

static FILES: Mutex<Files> = Mutex::new(Files {
    counts: None,
    traces: None,
    launches: 0,
});

/// The value of a variable that names a file; empty and 0 mean that it is not wanted.
fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty() && value != "0")
        .map(PathBuf::from)
}

/// Opens the files; whether counts and traces are wanted. The error names the variable.
pub fn open() -> Result<(bool, bool), String> {
    let mut files = Files::default();
    let count = named("BIRDIE_EMU_COUNT");
    // Counts for a program that takes them itself.
    let taken = count.as_deref() == Some(Path::new("1"));
    if let Some(path) = count.filter(|_| !taken) {
        let told = |e| format!("BIRDIE_EMU_COUNT={}: {e}", path.display());
        let folder = path.is_dir() || path.to_string_lossy().ends_with('/');
        files.counts = Some(if folder {
            std::fs::create_dir_all(&path).map_err(told)?;
            Counts::Folder(path)
        } else {
            Counts::List(List::create(&path).map_err(told)?)
        });
    }
    if let Some(path) = named("BIRDIE_EMU_TRACE") {
        let told = |e| format!("BIRDIE_EMU_TRACE={}: {e}", path.display());
        files.traces = Some(Traces {
            list: List::create(&path).map_err(told)?,
            origin: 0,
            process: 1,
            events: 0,
        });
    }
    let wanted = (taken || files.counts.is_some(), files.traces.is_some());
    *FILES.lock().unwrap_or_else(PoisonError::into_inner) = files;
    Ok(wanted)
}

fn outcome(result: &Result<LaunchReport, LaunchError>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(LaunchError::Fault(Fault::Finding(f))) => f.message.clone(),
        Err(error) => format!("{error:?}"),
    }
}

/// Writes what was observed of a launch. A file that cannot be written is told on stderr and given up; the launch
/// itself is not affected.
pub fn write(
    device: &Device,
    program: &Program,
    config: &LaunchConfig,
    observed: &Observation,
    result: &Result<LaunchReport, LaunchError>,
) {
    if observed.counters.is_none() && observed.trace.is_none() {
        return;
    }
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let files = &mut *files;
    files.launches += 1;
    let launch = files.launches;
    if let (Some(counters), Some(to)) = (&observed.counters, &mut files.counts) {
        let mut record = Record::new(program, config, counters);
        record.launch = launch;
        record.device = device.ordinal;
        record.outcome = outcome(result);
        if let Err(error) = put(to, &record) {
            eprintln!(
                "birdie-emulator: BIRDIE_EMU_COUNT: launch {launch} of {}: {error}; no further counts are written",
                program.name
            );
            files.counts = None;
        }
    }
    if let (Some(trace), Some(to)) = (&observed.trace, &mut files.traces) {
        if trace.dropped() > 0 {
            eprintln!(
                "birdie-emulator: BIRDIE_EMU_TRACE: launch {launch} of {}: {} events too many were left out",
                program.name,
                trace.dropped()
            );
        }
        let place = Place {
            launch,
            origin: to.origin,
            process: to.process,
        };
        let (events, processes) = chrome::events(trace, program, &place);
        to.events += events.len();
        to.process += processes;
        to.origin += trace.length() + 1;
        let written = to.list.append(events.iter().map(|e| e.to_string()));
        if let Err(error) = written {
            eprintln!("birdie-emulator: BIRDIE_EMU_TRACE: {error}; no further events are written");
            files.traces = None;
        } else if to.events > FULL {
            eprintln!(
                "birdie-emulator: BIRDIE_EMU_TRACE: {} events after launch {launch}; later launches are not traced",
                to.events
            );
            files.traces = None;
        }
    }
}

fn put(to: &mut Counts, record: &Record) -> io::Result<()> {
    let text = serde_json::to_string(record)?;
    match to {
        Counts::List(list) => list.append(std::iter::once(text)),
        Counts::Folder(folder) => {
            let kernel: String = record
                .kernel
                .chars()
                .take(80)
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
                .collect();
            let name = format!("{}-{:06}-{kernel}.json", std::process::id(), record.launch);
            std::fs::write(folder.join(name), text + "\n")
        }
    }
}

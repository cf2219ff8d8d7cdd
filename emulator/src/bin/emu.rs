//! `emu`: looks at PTX files the way the emulator's loader does, and prints what launches have counted.
//!
//! `emu inspect FILE.ptx…` prints every kernel with its parameters, launch bounds, registers and memory, and every
//! instruction that cannot be run. `emu check FILE.ptx…` prints only what cannot be run. `emu report COUNTS.json…` prints
//! what `BIRDIE_EMU_COUNT` has written: per kernel a summary and the hottest source lines. Exit code 0 if all files load,
//! 1 if one does not, 2 for a mistake on the command line or a file that cannot be read.

use birdie_emulator::counters::report::{self, Lines};
use birdie_emulator::device::{Device, LoadError, Settings};
use birdie_emulator::program::Program;
use std::process::ExitCode;

const USAGE: &str = "usage: emu inspect|check FILE.ptx…\n       emu report COUNTS.json… [--kernel NAME] [--top N] [--source FILE.cu…] [--ptx]";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let files: Vec<String> = arguments.collect();
    if command == "report" {
        return match counts(files) {
            Ok(text) => print(&text),
            Err(what) => {
                eprintln!("emu: {what}");
                ExitCode::from(2)
            }
        };
    }
    if !matches!(command.as_str(), "inspect" | "check") || files.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let settings = Settings {
        memory_bytes: 16 << 30,
        ..Settings::default()
    };
    let device = match Device::new(0, settings) {
        Ok(d) => d,
        Err(e) => {
            eprintln!("emu: no address space for a device: {e}");
            return ExitCode::from(2);
        }
    };
    let mut fine = true;
    for file in &files {
        match std::fs::read_to_string(file) {
            Ok(text) => fine &= look(&device, file, &text, command == "inspect"),
            Err(e) => {
                eprintln!("emu: {file}: {e}");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::from(u8::from(!fine))
}

fn look(device: &Device, file: &str, text: &str, verbose: bool) -> bool {
    let found = match device.inspect_module(text) {
        Ok(found) => found,
        Err(LoadError::Parse { line, what }) => {
            println!("{file}:{line}: {what}");
            return false;
        }
        Err(LoadError::Lower(e)) => {
            println!("{file}:{}: {}", e.line, e.what);
            return false;
        }
        Err(LoadError::OutOfMemory) => {
            println!("{file}: the variables of the module need more memory than the device has");
            return false;
        }
    };
    if verbose {
        println!("{file}: {} kernels", found.kernels.len());
        found.kernels.iter().for_each(describe);
    }
    for e in &found.errors {
        println!("{file}:{}: {}", e.line, e.what);
    }
    found.errors.is_empty()
}

fn describe(p: &Program) {
    println!("  {}", p.name);
    let params: Vec<String> = p
        .params
        .iter()
        .map(|p| format!("{}@{}", p.bytes, p.offset))
        .collect();
    println!(
        "    parameters: {} bytes ({})",
        p.param_bytes,
        params.join(" ")
    );
    let b = &p.bounds;
    let mut bounds = Vec::new();
    for (name, value) in [
        ("maxntid", b.maxntid),
        ("reqntid", b.reqntid),
        ("reqnctapercluster", b.reqnctapercluster),
    ] {
        if let Some([x, y, z]) = value {
            bounds.push(format!("{name} {x}x{y}x{z}"));
        }
    }
    if let Some(n) = b.minnctapersm {
        bounds.push(format!("minnctapersm {n}"));
    }
    if let Some(n) = b.maxnreg {
        bounds.push(format!("maxnreg {n}"));
    }
    if !bounds.is_empty() {
        println!("    bounds: {}", bounds.join(", "));
    }
    println!(
        "    {} operations, {} rows and {} predicates after compaction, {} registers per thread (estimated)",
        p.ops.len(),
        p.rows,
        p.preds,
        p.registers_per_thread()
    );
    println!(
        "    {} bytes of static shared memory, {} bytes of local memory per thread{}",
        p.shared_bytes,
        p.local_bytes,
        if p.communicates {
            ", communicates between CTAs through global memory"
        } else {
            ""
        }
    );
}

/// Prints a text; a reader that has had enough is no failure.
fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("emu: {e}");
            ExitCode::from(2)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The report of files of counts.
fn counts(arguments: Vec<String>) -> Result<String, String> {
    let mut files = Vec::new();
    let mut sources: Vec<(String, String)> = Vec::new();
    let (mut lines, mut top, mut kernel) = (Lines::Source, 25, None);
    let mut arguments = arguments.into_iter();
    while let Some(a) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or(format!("{a} needs a value\n{USAGE}"))
        };
        match a.as_str() {
            "--ptx" => lines = Lines::Ptx,
            "--source" => {
                let path = value()?;
                let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
                let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
                sources.push((name, text));
            }
            "--kernel" => kernel = Some(value()?),
            "--top" => {
                let n = value()?;
                top = n.parse().map_err(|_| format!("--top {n} is no number"))?;
            }
            _ if a.starts_with("--") => return Err(format!("unknown option {a}\n{USAGE}")),
            _ => files.push(a),
        }
    }
    if files.is_empty() {
        return Err(format!("no file of counts\n{USAGE}"));
    }
    let mut records = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        records.extend(report::parse(&text).map_err(|e| format!("{file}: {e}"))?);
    }
    if let Some(kernel) = &kernel {
        records.retain(|r| r.kernel == *kernel);
        if records.is_empty() {
            return Err(format!("no launch of a kernel named {kernel}"));
        }
    }
    for (name, _) in &sources {
        let mut files = records.iter().flat_map(|r| &r.lines).map(|l| &l.file);
        if !files.any(|f| f.rsplit('/').next() == Some(name)) {
            return Err(format!(
                "no line of these launches is from a file named {name}"
            ));
        }
    }
    // A given file stands for that of the same name in the debug information, wherever that was.
    let source = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        match sources.iter().find(|(n, _)| n == name) {
            Some((_, text)) => Some(text.clone()),
            None => std::fs::read_to_string(path).ok(),
        }
    };
    let reports: Vec<String> = report::by_kernel(records)
        .iter()
        .map(|(r, launches)| report::render(r, *launches, lines, top, source))
        .collect();
    if reports.is_empty() {
        return Ok("no launches\n".into());
    }
    Ok(reports.join("\n"))
}

//! `emu`: looks at PTX files the way the emulator's loader does.
//!
//! `emu inspect FILE.ptx…` prints every kernel with its parameters, launch bounds, registers and memory, and every
//! instruction that cannot be run. `emu check FILE.ptx…` prints only what cannot be run. Exit code 0 if all files load,
//! 1 if one does not, 2 for a mistake on the command line.

use birdie_emulator::device::{Device, LoadError, Settings};
use birdie_emulator::program::Program;
use std::process::ExitCode;

const USAGE: &str = "usage: emu inspect|check FILE.ptx…";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let files: Vec<String> = arguments.collect();
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

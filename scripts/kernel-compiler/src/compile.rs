//! One `.cu` file through nvcc and ptxas, and many of them in parallel with a cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::diagnostics::{self, EntryFacts};
use crate::ptx_text;
use crate::sources::{self, Source};
use crate::toolchain::{Assembler, Toolchain};

/// Flags of nvcc. They are part of every source's hash.
pub const NVCC_FLAGS: &[&str] = &[
    "-ptx",
    "-O3",
    "-std=c++17",
    "-lineinfo",
    "-gencode",
    "arch=compute_90a,code=compute_90a",
    "-I",
    "cuda",
];

/// Flags of ptxas.
pub const PTXAS_FLAGS: &[&str] = &["-arch=sm_90a", "-v", "-lineinfo"];

/// A compiled kernel file.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub source: Source,
    pub ptx: String,
    /// Where the cubin was written.
    pub cubin: PathBuf,
    pub entries: Vec<EntryFacts>,
}

/// What ptxas made of a PTX file.
pub struct Assembled {
    pub entries: Vec<EntryFacts>,
    /// Spills and serialised wgmma, one line each; empty for a sound file.
    pub defects: Vec<String>,
}

/// Compiles all kernels of the repository, `threads` at a time. Results lie in `out` as `NAME.ptx` and
/// `NAME.cubin`; a file whose hash and compiler are those of the last time is not compiled again.
///
/// The error has one paragraph for each file that failed.
pub fn compile_all(
    root: &Path,
    toolchain: &Toolchain,
    out: &Path,
    threads: usize,
) -> Result<Vec<Compiled>, String> {
    let sources = sources::list(root, NVCC_FLAGS)?;
    let lab = out.join(sources::LAB);
    std::fs::create_dir_all(&lab).map_err(|error| format!("{}: {error}", lab.display()))?;
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<Compiled, String>>>> =
        Mutex::new(sources.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(index) else {
                        break;
                    };
                    let result = compile_cached(root, toolchain, source, out);
                    if let Ok(mut results) = results.lock() {
                        results[index] = Some(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_default();
    let mut compiled = Vec::new();
    let mut errors = Vec::new();
    for result in results.into_iter().flatten() {
        match result {
            Ok(kernel) => compiled.push(kernel),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Ok(compiled)
    } else {
        Err(errors.join("\n"))
    }
}

fn compile_cached(
    root: &Path,
    toolchain: &Toolchain,
    source: &Source,
    out: &Path,
) -> Result<Compiled, String> {
    let ptx_path = out.join(format!("{}.ptx", source.name));
    let cubin = out.join(format!("{}.cubin", source.name));
    let key_path = out.join(format!("{}.key", source.name));
    // The report is part of the key file, so that the facts of a cached kernel are known too.
    // How the text is made portable is part of the result: a change there makes old results stale.
    let key = format!(
        "{} {} {} {}",
        toolchain.version,
        source.hash,
        PTXAS_FLAGS.join(" "),
        crate::sources::hash_text(include_str!("ptx_text.rs"))
    );
    if let (Ok(cached), Ok(ptx), true) = (
        std::fs::read_to_string(&key_path),
        std::fs::read_to_string(&ptx_path),
        cubin.is_file(),
    ) && let Some(report) = cached.strip_prefix(&format!("{key}\n"))
    {
        return Ok(Compiled {
            source: source.clone(),
            ptx,
            cubin,
            entries: diagnostics::entry_facts(report),
        });
    }
    let name = source.path.display().to_string();
    let raw = out.join(format!("{}.raw.ptx", source.name));
    let mut nvcc = Command::new(&toolchain.nvcc);
    nvcc.current_dir(root)
        .args(NVCC_FLAGS)
        .arg(&source.path)
        .arg("-o")
        .arg(&raw);
    let output = nvcc
        .output()
        .map_err(|error| format!("{name}: nvcc cannot be run: {error}"))?;
    if !output.status.success() {
        let text = both_streams(&output);
        return Err(diagnostics::failure(&name, "nvcc", &text));
    }
    let raw_text = std::fs::read_to_string(&raw).map_err(|error| format!("{name}: {error}"))?;
    let ptx = ptx_text::portable(&raw_text, root);
    write(&ptx_path, &ptx)?;
    let (report, assembled) = assemble(&toolchain.assembler(), &ptx_path, &cubin, &name)?;
    if !assembled.defects.is_empty() {
        return Err(format!("{name}: {}", assembled.defects.join("\n")));
    }
    write(&key_path, &format!("{key}\n{report}"))?;
    Ok(Compiled {
        source: source.clone(),
        ptx,
        cubin,
        entries: assembled.entries,
    })
}

/// Runs ptxas on a PTX file. `Err` when it refuses the file; defects are in the result.
pub fn assemble(
    assembler: &Assembler,
    ptx: &Path,
    cubin: &Path,
    name: &str,
) -> Result<(String, Assembled), String> {
    let output = Command::new(&assembler.path)
        .args(PTXAS_FLAGS)
        .arg(ptx)
        .arg("-o")
        .arg(cubin)
        .output()
        .map_err(|error| format!("{name}: ptxas cannot be run: {error}"))?;
    let report = both_streams(&output);
    if !output.status.success() {
        let tool = format!("ptxas {}", assembler.version);
        return Err(diagnostics::failure(name, &tool, &report));
    }
    let assembled = Assembled {
        entries: diagnostics::entry_facts(&report),
        defects: diagnostics::defects(&report),
    };
    Ok((report, assembled))
}

/// Counts the tensor-core instructions in the machine code of compiled kernels, with the cuobjdump that lies beside nvcc.
pub fn count_tensor_instructions(
    toolchain: &Toolchain,
    compiled: &mut [Compiled],
) -> Result<(), String> {
    let tool = toolchain.nvcc.with_file_name("cuobjdump");
    for kernel in compiled {
        let output = Command::new(&tool)
            .arg("-sass")
            .arg(&kernel.cubin)
            .output()
            .map_err(|error| {
                format!(
                    "{}: {error}\nhint: scripts/install-toolchain installs cuobjdump beside nvcc",
                    tool.display()
                )
            })?;
        if !output.status.success() {
            let text = both_streams(&output);
            return Err(diagnostics::failure(
                &kernel.source.name,
                "cuobjdump",
                &text,
            ));
        }
        let listing = String::from_utf8_lossy(&output.stdout);
        let counts = diagnostics::count_instructions(&listing, "HGMMA");
        for entry in &mut kernel.entries {
            entry.hgmma =
                Some(*counts.get(&entry.name).ok_or_else(|| {
                    format!("{}: no machine code in the disassembly", entry.name)
                })?);
        }
    }
    Ok(())
}

fn both_streams(output: &std::process::Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

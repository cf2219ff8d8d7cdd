//! `kernel-compiler refresh` and `kernel-compiler check`: called by `scripts/refresh-ptx` and `scripts/check-ptx`
//! from the root of the repository.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use birdie_kernel_compiler::compile::{assemble, compile_all, count_tensor_instructions};
use birdie_kernel_compiler::manifest::{Manifest, PTX_DIR};
use birdie_kernel_compiler::toolchain::Toolchain;

fn main() -> ExitCode {
    let root = match std::env::current_dir() {
        Ok(dir) => dir,
        Err(error) => return fail(&format!("no current directory: {error}")),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["refresh"] => refresh(&root),
        ["check"] => check(&root, false),
        ["check", "--require-nvcc"] => check(&root, true),
        _ => Err("usage: kernel-compiler refresh | check [--require-nvcc]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("kernel-compiler: {error}");
    ExitCode::FAILURE
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where compiled files are kept between runs.
fn cache(root: &Path) -> PathBuf {
    root.join("target/kernel-compiler")
}

fn refresh(root: &Path) -> Result<(), String> {
    let toolchain = Toolchain::find(root)?
        .ok_or("no nvcc found\nhint: scripts/install-toolchain puts one into .venv")?;
    let mut compiled = compile_all(root, &toolchain, &cache(root), threads())?;
    count_tensor_instructions(&toolchain, &mut compiled)?;
    let manifest = Manifest::describe(&toolchain.version, &compiled);
    manifest.write(root, &compiled)?;
    for file in &manifest.files {
        for entry in &file.entries {
            println!(
                "{:<28} {:<44} {:>3} registers {:>6} B static shared {:>3} HGMMA",
                file.source,
                entry.name,
                entry.registers,
                entry.shared,
                entry.hgmma.unwrap_or(0)
            );
        }
    }
    println!(
        "{} files compiled with nvcc {}",
        manifest.files.len(),
        toolchain.version
    );
    Ok(())
}

fn check(root: &Path, require_nvcc: bool) -> Result<(), String> {
    let manifest = Manifest::read(root)?;
    let stale = manifest.stale(root)?;
    if !stale.is_empty() {
        return Err(format!(
            "{PTX_DIR}/ is not current:\n  {}\nhint: scripts/refresh-ptx",
            stale.join("\n  ")
        ));
    }
    println!(
        "{} files: hashes of sources and PTX agree with the manifest",
        manifest.files.len()
    );
    let Some(toolchain) = Toolchain::find(root)? else {
        return if require_nvcc {
            Err("no nvcc found\nhint: scripts/install-toolchain puts one into .venv".to_owned())
        } else {
            println!("no nvcc found: compiled nothing");
            Ok(())
        };
    };
    if toolchain.version == manifest.nvcc {
        let mut compiled = compile_all(root, &toolchain, &cache(root), threads())?;
        count_tensor_instructions(&toolchain, &mut compiled)?;
        let fresh = Manifest::describe(&toolchain.version, &compiled);
        let differing: Vec<&str> = fresh
            .files
            .iter()
            .filter(|file| !manifest.files.contains(file))
            .map(|file| file.source.as_str())
            .collect();
        if !differing.is_empty() {
            return Err(format!(
                "these compile to something else than {PTX_DIR}/ or the manifest holds: {}\nhint: scripts/refresh-ptx",
                differing.join(", ")
            ));
        }
        println!("nvcc {}: recompiled, equal", toolchain.version);
    } else if require_nvcc {
        return Err(format!(
            "nvcc {} was found ({}), but {PTX_DIR}/ was made with {}\nhint: scripts/install-toolchain",
            toolchain.version, toolchain.found_by, manifest.nvcc
        ));
    } else {
        println!(
            "nvcc {} is not the {} of the manifest: not recompiled",
            toolchain.version, manifest.nvcc
        );
    }
    let assemblers = toolchain.assemblers(root);
    if require_nvcc && assemblers.len() < 2 {
        return Err(
            "the older ptxas is missing\nhint: scripts/install-toolchain, or PTXAS_OLD=path"
                .to_owned(),
        );
    }
    for assembler in assemblers {
        let mut problems = Vec::new();
        let files = ptx_files(&root.join(PTX_DIR));
        for ptx in &files {
            let name = ptx.strip_prefix(root).unwrap_or(ptx).display().to_string();
            let cubin = cache(root).join("check.cubin");
            std::fs::create_dir_all(cache(root)).map_err(|error| error.to_string())?;
            match assemble(&assembler, ptx, &cubin, &name) {
                Ok((_, assembled)) => {
                    problems.extend(assembled.defects.iter().map(|why| format!("{name}: {why}")));
                }
                Err(error) => problems.push(error),
            }
        }
        if !problems.is_empty() {
            return Err(format!(
                "ptxas {}:\n{}",
                assembler.version,
                problems.join("\n")
            ));
        }
        println!(
            "ptxas {}: {} files assembled, no spill, no serialised wgmma",
            assembler.version,
            files.len()
        );
    }
    Ok(())
}

/// All `.ptx` files below `dir`, sorted.
fn ptx_files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return out;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            out.extend(ptx_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "ptx") {
            out.push(path);
        }
    }
    out.sort();
    out
}

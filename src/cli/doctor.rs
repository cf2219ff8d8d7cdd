//! `birdie doctor`: what of the machine birdie can use, one line per thing.
//!
//! Nothing here fails because something is missing: a missing thing is what the command is asked about. It fails when a
//! device was asked for by name and cannot be used.

use std::ffi::c_int;
use std::path::Path;

use anyhow::Result;
use birdie_kernel_compiler::manifest::Manifest;
use birdie_kernel_compiler::toolchain::Toolchain;
use clap::Args;

use super::{Backend, DeviceArgs};
use crate::driver::{self, DriverKind, modules};
use crate::recipe;
use crate::train::log::say;

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// The recipe whose memory plan is shown: a built-in one or a TOML file.
    #[arg(default_value = "demo")]
    recipe: String,
}

pub fn run(args: &DoctorArgs, backend: Backend) -> Result<u8> {
    let device = (backend.device)(args.device.device, args.device.check)?;
    say(&device);
    if let Some(driver) = driver::active() {
        let (found, all) = driver.functions;
        say(&format!("driver: {found} of {all} functions"));
        if driver.kind == DriverKind::Emulator {
            say(&format!("SIMD: {:?}", birdie_emulator::simd::detected()));
        }
    }
    for (what, answer) in [
        ("kernels", kernels()),
        ("nvcc", nvcc(Path::new("."))),
        ("ptx", ptx(Path::new("."))),
        ("NCCL", nccl()),
    ] {
        say(&format!("{what}: {answer}"));
    }
    let loaded = recipe::load(&args.recipe, std::iter::empty(), &[])?;
    say(&format!("memory plan of {}:", loaded.recipe.name));
    say((backend.plan)(&loaded.recipe, false)?.report.trim_end());
    Ok(0)
}

/// What this program was built with.
fn kernels() -> String {
    let entries: usize = modules::KERNEL_FILES
        .iter()
        .map(|file| file.entries.len())
        .sum();
    format!(
        "{entries} in {} files, from {}",
        modules::KERNEL_FILES.len(),
        modules::KERNEL_COMPILER
    )
}

fn nvcc(root: &Path) -> String {
    match Toolchain::find(root) {
        Ok(Some(toolchain)) => format!("{} ({})", toolchain.version, toolchain.found_by),
        Ok(None) => "not found; the committed PTX is used (scripts/install-toolchain installs one)"
            .to_owned(),
        Err(why) => why,
    }
}

/// Whether the committed PTX is what the sources ask for, where the program runs in a checkout.
fn ptx(root: &Path) -> String {
    if !root.join("cuda").is_dir() {
        return "not in a checkout of birdie".to_owned();
    }
    match Manifest::read(root).and_then(|manifest| Ok((manifest.stale(root)?, manifest))) {
        Ok((stale, manifest)) if stale.is_empty() => {
            format!(
                "current ({} files, nvcc {})",
                manifest.files.len(),
                manifest.nvcc
            )
        }
        Ok((stale, _)) => format!("not current: {} (scripts/refresh-ptx)", stale.join("; ")),
        Err(why) => why,
    }
}

fn nccl() -> String {
    // SAFETY: loading a library runs its initialisers; libnccl.so.2 is made to be loaded so.
    let Ok(library) = (unsafe { libloading::Library::new("libnccl.so.2") }) else {
        return "no libnccl.so.2; several GPUs need it".to_owned();
    };
    // SAFETY: the function has this signature in every version of NCCL.
    let version =
        unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion\0") };
    let mut number = 0;
    // SAFETY: the result has a place.
    match version.map(|version| unsafe { version(&mut number) }) {
        // From 2.9 on the number is 10000 * major + 100 * minor + patch.
        Ok(0) if number >= 10_000 => {
            format!(
                "{}.{}.{}",
                number / 10_000,
                number / 100 % 100,
                number % 100
            )
        }
        Ok(0) => format!("{}.{}.{}", number / 1000, number / 100 % 10, number % 100),
        _ => "libnccl.so.2 does not tell its version".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_one_line_each() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for answer in [kernels(), nvcc(root), ptx(root), nccl()] {
            assert!(!answer.is_empty() && !answer.contains('\n'), "{answer:?}");
        }
        assert_eq!(ptx(Path::new("/")), "not in a checkout of birdie");
        assert!(kernels().contains("files, from "));
    }
}

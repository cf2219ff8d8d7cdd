//! Which files are kernels, and a hash that changes whenever their PTX could.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The folder of device code, relative to the repository.
pub const CUDA_DIR: &str = "cuda";

/// One `.cu` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Base name without extension: the name under which the module is loaded.
    pub name: String,
    /// Relative to the repository, as in `cuda/gemm.cu`.
    pub path: PathBuf,
    /// SHA-256 over the flags, the file and all it includes from `cuda/`.
    pub hash: String,
    /// The included files, relative to the repository, sorted.
    pub includes: Vec<PathBuf>,
}

/// The folder of kernels that are tested and not shipped, in `cuda/` and in `ptx/`.
pub const LAB: &str = "lab/";

/// All kernels: `cuda/*.cu`, which are shipped, then `cuda/lab/*.cu`, whose names start with [`LAB`]. Other folders hold headers.
pub fn list(root: &Path, flags: &[&str]) -> Result<Vec<Source>, String> {
    let mut names = Vec::new();
    for folder in ["", LAB] {
        let dir = root.join(CUDA_DIR).join(folder);
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        let mut here: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|file| Some(format!("{folder}{}", file.strip_suffix(".cu")?)))
            .collect();
        here.sort();
        names.extend(here);
    }
    names
        .into_iter()
        .map(|name| describe(root, &name, flags))
        .collect()
}

fn describe(root: &Path, name: &str, flags: &[&str]) -> Result<Source, String> {
    let path = Path::new(CUDA_DIR).join(format!("{name}.cu"));
    let mut includes = BTreeSet::new();
    gather_includes(root, &path, &mut includes)?;
    let mut hasher = Sha256::new();
    for flag in flags {
        hasher.update(flag.as_bytes());
        hasher.update([0]);
    }
    for file in std::iter::once(&path).chain(&includes) {
        hasher.update(file.to_string_lossy().as_bytes());
        hasher.update([0]);
        hasher.update(read(root, file)?.as_bytes());
        hasher.update([0]);
    }
    Ok(Source {
        name: name.to_owned(),
        path,
        hash: hex(&hasher.finalize()),
        includes: includes.into_iter().collect(),
    })
}

/// Follows `#include "..."` relative to the including file, then to `cuda/`. Files outside `cuda/` belong to the
/// toolkit, whose version the manifest records.
fn gather_includes(root: &Path, file: &Path, seen: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    for line in read(root, file)?.lines() {
        let Some(rest) = line.trim_start().strip_prefix('#') else {
            continue;
        };
        let Some(rest) = rest.trim_start().strip_prefix("include") else {
            continue;
        };
        let Some(quoted) = rest.trim_start().strip_prefix('"') else {
            continue;
        };
        let Some(end) = quoted.find('"') else {
            continue;
        };
        let beside = file.parent().unwrap_or(Path::new("")).join(&quoted[..end]);
        let candidates = [beside, Path::new(CUDA_DIR).join(&quoted[..end])];
        let Some(found) = candidates
            .iter()
            .map(|path| normalise(path))
            .find(|path| root.join(path).is_file())
        else {
            continue;
        };
        if seen.insert(found.clone()) {
            gather_includes(root, &found, seen)?;
        }
    }
    Ok(())
}

/// Resolves `..` without touching the file system, so that paths compare and hash alike everywhere.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                out.pop();
            }
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

fn read(root: &Path, file: &Path) -> Result<String, String> {
    std::fs::read_to_string(root.join(file))
        .map_err(|error| format!("{}: cannot be read: {error}", file.display()))
}

/// SHA-256 of a text, in hex.
pub fn hash_text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

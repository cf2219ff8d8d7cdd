//! `ptx/manifest.json`: what the committed PTX was compiled from, and what ptxas says of it.
//!
//! Paths in it are relative to the repository, so that it is the same wherever it was made.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::compile::{Compiled, NVCC_FLAGS};
use crate::diagnostics::EntryFacts;
use crate::ptx_text;
use crate::sources;

/// The folder of committed PTX, relative to the repository.
pub const PTX_DIR: &str = "ptx";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of nvcc and ptxas, as in `13.0.88`.
    pub nvcc: String,
    pub flags: Vec<String>,
    pub files: Vec<File>,
}

/// One kernel file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub source: String,
    /// Hash of the flags, the source and its includes.
    pub source_hash: String,
    /// Hash of `ptx/NAME.ptx`.
    pub ptx_hash: String,
    /// The `.version` line.
    pub ptx_version: String,
    pub includes: Vec<String>,
    pub entries: Vec<EntryFacts>,
}

impl Manifest {
    /// Describes what a compiler made.
    pub fn describe(nvcc: &str, compiled: &[Compiled]) -> Manifest {
        Manifest {
            nvcc: nvcc.to_owned(),
            flags: NVCC_FLAGS.iter().map(|&flag| flag.to_owned()).collect(),
            files: compiled.iter().map(describe_file).collect(),
        }
    }

    /// Reads the committed manifest.
    pub fn read(root: &Path) -> Result<Manifest, String> {
        let path = root.join(PTX_DIR).join("manifest.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{PTX_DIR}/manifest.json: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("{PTX_DIR}/manifest.json: {error}"))
    }

    /// Writes `ptx/manifest.json` and `ptx/NAME.ptx`, and removes PTX of kernels that are gone.
    pub fn write(&self, root: &Path, compiled: &[Compiled]) -> Result<(), String> {
        let dir = root.join(PTX_DIR);
        let failed = |error: std::io::Error| format!("{PTX_DIR}: {error}");
        std::fs::create_dir_all(dir.join(sources::LAB)).map_err(failed)?;
        for name in stray_files(root, self) {
            std::fs::remove_file(dir.join(name)).map_err(failed)?;
        }
        for kernel in compiled {
            std::fs::write(dir.join(format!("{}.ptx", kernel.source.name)), &kernel.ptx)
                .map_err(failed)?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(dir.join("manifest.json"), text + "\n").map_err(failed)
    }

    /// Every way in which the committed PTX is not what the committed sources ask for, judged by
    /// hashes alone: no compiler is needed. Empty when current.
    pub fn stale(&self, root: &Path) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        if flags != NVCC_FLAGS {
            out.push("the flags of nvcc have changed".to_owned());
        }
        let sources = sources::list(root, NVCC_FLAGS)?;
        for source in &sources {
            match self.files.iter().find(|file| file.name == source.name) {
                None => out.push(format!("{} has no PTX", source.path.display())),
                Some(file) if file.source_hash != source.hash => out.push(format!(
                    "{} or a header of it has changed",
                    source.path.display()
                )),
                Some(_) => {}
            }
        }
        for file in &self.files {
            if !sources.iter().any(|source| source.name == file.name) {
                out.push(format!("{} is gone but its PTX is not", file.source));
            }
            match std::fs::read_to_string(root.join(PTX_DIR).join(format!("{}.ptx", file.name))) {
                Ok(text) if sources::hash_text(&text) == file.ptx_hash => {}
                Ok(_) => out.push(format!("{PTX_DIR}/{}.ptx was edited by hand", file.name)),
                Err(error) => out.push(format!("{PTX_DIR}/{}.ptx: {error}", file.name)),
            }
        }
        for name in stray_files(root, self) {
            out.push(format!("{PTX_DIR}/{name} belongs to no kernel"));
        }
        Ok(out)
    }
}

fn describe_file(kernel: &Compiled) -> File {
    let (major, minor) = ptx_text::oldest_version(&kernel.ptx);
    File {
        name: kernel.source.name.clone(),
        source: kernel.source.path.display().to_string(),
        source_hash: kernel.source.hash.clone(),
        ptx_hash: sources::hash_text(&kernel.ptx),
        ptx_version: format!("{major}.{minor}"),
        includes: kernel
            .source
            .includes
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        entries: kernel.entries.clone(),
    }
}

/// PTX files in `ptx/` and `ptx/lab/` that the manifest does not name. Other folders hold hand-written PTX.
fn stray_files(root: &Path, manifest: &Manifest) -> Vec<String> {
    let mut out = Vec::new();
    for folder in ["", sources::LAB] {
        let Ok(entries) = std::fs::read_dir(root.join(PTX_DIR).join(folder)) else {
            continue;
        };
        out.extend(
            entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .map(|file| format!("{folder}{file}"))
                .filter(|file| {
                    file.strip_suffix(".ptx")
                        .is_some_and(|name| !manifest.files.iter().any(|known| known.name == name))
                }),
        );
    }
    out.sort();
    out
}

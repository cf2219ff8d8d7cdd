//! Where the CUDA compiler is.
//!
//! Looked for in this order, the first hit wins: `NVCC` (the program itself), `CUDA_HOME`/bin, the `.venv`
//! that `scripts/install-toolchain` fills with NVIDIA's PyPI wheels, `PATH`. The `.venv` comes before `PATH` because
//! its version is pinned: the committed PTX is reproducible with it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An nvcc that answered `--version`, and the assembler beside it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub nvcc: PathBuf,
    pub ptxas: PathBuf,
    /// As in `13.0.88`.
    pub version: String,
    /// How it was found, for messages.
    pub found_by: String,
}

/// The variables that decide where nvcc is taken from; a build script reruns when they change.
pub const ENVIRONMENT: [&str; 2] = ["NVCC", "CUDA_HOME"];

impl Toolchain {
    /// `None` where no nvcc is installed. An nvcc that was named explicitly but does not run is an error.
    pub fn find(root: &Path) -> Result<Option<Toolchain>, String> {
        if let Some(path) = std::env::var_os("NVCC") {
            return probe(Path::new(&path), "NVCC").map(Some);
        }
        if let Some(home) = std::env::var_os("CUDA_HOME") {
            return probe(&Path::new(&home).join("bin/nvcc"), "CUDA_HOME").map(Some);
        }
        if let Some(path) = in_venv(&root.join(".venv"), "nvcc") {
            return probe(&path, ".venv").map(Some);
        }
        let on_path = std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join("nvcc"))
                .find(|nvcc| nvcc.is_file())
        });
        on_path.map(|nvcc| probe(&nvcc, "PATH")).transpose()
    }

    /// Assemblers that every kernel must pass: the toolkit's own, and the older one that
    /// `scripts/install-toolchain` puts beside it, or that `PTXAS_OLD` names.
    pub fn assemblers(&self, root: &Path) -> Vec<Assembler> {
        let mut out = vec![self.assembler()];
        let old = std::env::var_os("PTXAS_OLD")
            .map(PathBuf::from)
            .or_else(|| in_venv(&root.join(".venv/ptxas-12.3"), "ptxas"));
        if let Some(path) = old
            && let Ok(version) = version_of(&path)
        {
            out.push(Assembler { path, version });
        }
        out
    }

    /// The toolkit's own assembler.
    pub fn assembler(&self) -> Assembler {
        Assembler {
            path: self.ptxas.clone(),
            version: self.version.clone(),
        }
    }
}

/// A ptxas.
#[derive(Clone, Debug)]
pub struct Assembler {
    pub path: PathBuf,
    pub version: String,
}

fn probe(nvcc: &Path, found_by: &str) -> Result<Toolchain, String> {
    let version =
        version_of(nvcc).map_err(|why| format!("{found_by}: {}: {why}", nvcc.display()))?;
    let ptxas = nvcc.with_file_name("ptxas");
    if !ptxas.is_file() {
        return Err(format!(
            "{found_by}: no ptxas beside {}: the toolkit is incomplete",
            nvcc.display()
        ));
    }
    Ok(Toolchain {
        nvcc: nvcc.to_owned(),
        ptxas,
        version,
        found_by: found_by.to_owned(),
    })
}

/// The `V13.0.88` of nvcc's and ptxas' `--version`, without the V.
fn version_of(tool: &Path) -> Result<String, String> {
    let output = Command::new(tool)
        .arg("--version")
        .output()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .find_map(|word| word.strip_prefix('V'))
        .filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
        .map(|version| version.trim_end_matches(',').to_owned())
        .ok_or_else(|| "does not answer --version as a CUDA tool does".to_owned())
}

/// Finds `bin/<tool>` of a PyPI wheel: `lib/python3.*/site-packages/nvidia/*/bin/<tool>`, or the same under a
/// `pip install --target` folder.
fn in_venv(base: &Path, tool: &str) -> Option<PathBuf> {
    let mut packages = vec![base.join("nvidia")];
    if let Ok(pythons) = std::fs::read_dir(base.join("lib")) {
        packages.extend(
            pythons
                .flatten()
                .map(|entry| entry.path().join("site-packages/nvidia")),
        );
    }
    let mut hits: Vec<PathBuf> = packages
        .iter()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.path().join("bin").join(tool))
        .filter(|path| path.is_file())
        .collect();
    hits.sort();
    hits.pop()
}

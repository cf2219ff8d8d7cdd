//! What ptxas made of every kernel, as `ptx/manifest.json` records it: no spill, no local memory, tensor cores where matrices are
//! multiplied, registers that fit the launch bounds. `scripts/check-ptx` proves that the manifest is true.

use std::path::Path;

use birdie_kernel_compiler::diagnostics::EntryFacts;
use birdie_kernel_compiler::manifest::Manifest;

/// Every kernel with the part of its file's PTX that is its own.
fn kernels() -> Vec<(String, EntryFacts, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = Manifest::read(root).expect("ptx/manifest.json");
    let mut out = Vec::new();
    for file in manifest.files {
        let path = root.join("ptx").join(format!("{}.ptx", file.name));
        let ptx = std::fs::read_to_string(path).expect("the PTX that the manifest names");
        for entry in file.entries {
            let mark = format!(".entry {}(", entry.name);
            let (_, from) = ptx.split_once(&mark).expect("an entry of its PTX");
            let own = from.split(".entry ").next().unwrap_or(from).to_owned();
            out.push((file.name.clone(), entry, own));
        }
    }
    assert!(out.len() > 60, "{} kernels", out.len());
    out
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    for (file, entry, _) in kernels() {
        let bytes = [entry.stack, entry.spill_stores, entry.spill_loads];
        assert_eq!(
            bytes,
            [0, 0, 0],
            "{file}: {}: stack, spill stores, spill loads",
            entry.name
        );
    }
}

#[test]
fn products_of_matrices_are_on_the_tensor_cores() {
    for (file, entry, ptx) in kernels() {
        let hgmma = entry.hgmma.unwrap_or_else(|| {
            panic!(
                "{}: not counted: scripts/refresh-ptx of this version",
                entry.name
            )
        });
        let written = ptx.matches("wgmma.mma_async").count() as u32;
        assert_eq!(
            hgmma > 0,
            written > 0,
            "{file}: {}: {written} wgmma in the PTX, {hgmma} HGMMA",
            entry.name
        );
        let multiplies = entry.name.starts_with("gemm_")
            || entry.name.starts_with("attention_forward")
            || entry.name.starts_with("attention_backward");
        assert!(
            !multiplies || hgmma > 0,
            "{file}: {} has no HGMMA",
            entry.name
        );
        // The ladder has one step on mma.sync on purpose.
        assert!(
            file.starts_with("lab/") || !ptx.contains("mma.sync"),
            "{file}: {}: mma.sync reaches two thirds of wgmma's rate",
            entry.name
        );
    }
}

/// 65536 registers per SM, given out by warp in units of 256; 48 KiB of static shared memory.
#[test]
fn registers_and_shared_memory_fit_one_cta_of_the_launch_bounds() {
    for (file, entry, ptx) in kernels() {
        let bound = ptx
            .lines()
            .find_map(|line| line.trim().strip_prefix(".maxntid"))
            .unwrap_or_else(|| panic!("{file}: {}: no __launch_bounds__", entry.name));
        let threads: u32 = bound
            .split(',')
            .map(|n| n.trim().parse::<u32>().expect("a size"))
            .product();
        let per_warp = (entry.registers * 32).next_multiple_of(256);
        assert!(
            per_warp * threads.div_ceil(32) <= 65536,
            "{file}: {}: {} registers, {threads} threads",
            entry.name,
            entry.registers
        );
        assert!(
            entry.registers <= 255 && entry.shared <= 48 * 1024,
            "{file}: {}",
            entry.name
        );
    }
}

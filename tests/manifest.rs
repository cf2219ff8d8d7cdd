//! What ptxas made of every kernel, as `ptx/manifest.json` records it: no spill, no local memory, tensor cores where matrices are
//! multiplied, registers that fit the launch bounds. `scripts/check-ptx` proves that the manifest is true.

use std::collections::BTreeSet;
use std::path::Path;

use birdie::kernels::dynamic_shared;
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
        // By name, or because the header claims it (below).
        let multiplies = ["gemm_", "attention_forward", "attention_backward"]
            .iter()
            .any(|start| entry.name.starts_with(start))
            || entry.name.starts_with("lab_") && entry.name.contains("wgmma");
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

/// Numbers as a header writes them: `168`, `8..168`, `0..16,384`.
fn range(numbers: impl Iterator<Item = u32>) -> String {
    let numbers: BTreeSet<u32> = numbers.collect();
    let grouped = |n: u32| {
        let digits = n.to_string();
        let mut out = String::new();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    };
    match (numbers.first(), numbers.last()) {
        (Some(least), Some(most)) if least != most => {
            format!("{}..{}", grouped(*least), grouped(*most))
        }
        (Some(only), _) => grouped(*only),
        _ => String::new(),
    }
}

/// The comment that a kernel file starts with.
fn header(source: &str) -> impl Iterator<Item = &str> {
    source.lines().take_while(|line| line.starts_with("//"))
}

/// The line `registers: R, shared: S bytes, HGMMA: H, dynamic: D bytes` of every header: per thread, static, in the machine code, and asked
/// for at the launch; ranges over the file's kernels, the last two where there are any. The ladder's dynamic memory is asked for by `lab.rs`.
#[test]
fn headers_say_what_ptxas_made() {
    assert_eq!(range([168, 16, 1_234_567].into_iter()), "16..1,234,567");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = Manifest::read(root).expect("ptx/manifest.json");
    let mut wrong = Vec::new();
    for file in &manifest.files {
        let lab = file.name.starts_with("lab/");
        let of = |number: fn(&EntryFacts) -> u32| range(file.entries.iter().map(number));
        let mut expected = format!(
            "registers: {}, shared: {} bytes",
            of(|entry| entry.registers),
            of(|entry| entry.shared)
        );
        if file.entries.iter().any(|entry| entry.hgmma > Some(0)) {
            expected += &format!(", HGMMA: {}", of(|entry| entry.hgmma.unwrap_or_default()));
        }
        let dynamic = of(|entry| dynamic_shared(&entry.name));
        if dynamic != "0" {
            expected += &format!(", dynamic: {dynamic} bytes");
        }
        let source = std::fs::read_to_string(root.join(&file.source)).expect("a kernel file");
        let said = header(&source).find_map(|line| line.find("registers: ").map(|at| &line[at..]));
        let right = said.is_some_and(|said| {
            let rest = said.strip_prefix(expected.as_str());
            rest == Some("") || lab && rest.is_some_and(|rest| rest.starts_with(", dynamic: "))
        });
        if !right {
            wrong.push(format!(
                "{}: its header says {said:?}, ptxas {expected:?}",
                file.source
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Warpgroups that change their register count say in the header to what.
#[test]
fn headers_name_the_registers_of_each_role() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (file, entry, ptx) in kernels() {
        let path = root.join("cuda").join(format!("{file}.cu"));
        let source = std::fs::read_to_string(path).expect("a kernel file");
        let text: String = header(&source).collect::<Vec<_>>().join(" ");
        for count in ptx.split("setmaxnreg.").skip(1) {
            let line = count.lines().next().unwrap_or_default();
            let count = line
                .trim_end_matches(';')
                .rsplit(' ')
                .next()
                .unwrap_or_default();
            assert!(
                text.contains(&format!("{count} registers")),
                "{file}: {}: the header does not name {count} registers",
                entry.name
            );
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} of setmaxnreg");
}

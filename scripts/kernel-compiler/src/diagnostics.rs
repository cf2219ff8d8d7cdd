//! What nvcc and ptxas say, judged.
//!
//! ptxas reports registers, spills and serialised wgmma as information or as warnings and exits with 0. A
//! birdie kernel that spills or whose tensor-core instructions are serialised is broken, so both are errors
//! here, with the lever that usually repairs them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What ptxas says of one kernel (`ptxas -v`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFacts {
    pub name: String,
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// Local memory of one thread in bytes.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// Named barriers.
    pub barriers: u32,
    /// `HGMMA` instructions of the machine code: products on the tensor cores by whole warpgroups. Not told by ptxas; counted in the
    /// disassembly when the manifest is made or checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hgmma: Option<u32>,
}

/// Reads the report of `ptxas -v`, one record per kernel, in the report's order.
pub fn entry_facts(report: &str) -> Vec<EntryFacts> {
    let mut out: Vec<EntryFacts> = Vec::new();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            out.push(EntryFacts {
                name: rest.split('\'').next().unwrap_or_default().to_owned(),
                ..EntryFacts::default()
            });
            continue;
        }
        let Some(entry) = out.last_mut() else {
            continue;
        };
        if line.contains("bytes stack frame") {
            entry.stack = number_before(line, "bytes stack frame");
            entry.spill_stores = number_before(line, "bytes spill stores");
            entry.spill_loads = number_before(line, "bytes spill loads");
        } else if line.contains("Used ") && line.contains("registers") {
            entry.registers = number_before(line, "registers");
            entry.shared = number_before(line, "bytes smem");
            entry.barriers = number_before(line, "barriers");
        }
    }
    out
}

fn number_before(line: &str, words: &str) -> u32 {
    line.find(words)
        .and_then(|at| line[..at].split_whitespace().last())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Instructions of one opcode per kernel in the output of `cuobjdump -sass`.
pub fn count_instructions(listing: &str, opcode: &str) -> BTreeMap<String, u32> {
    let mut out: BTreeMap<String, u32> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            current = Some(name.trim().to_owned());
            out.entry(name.trim().to_owned()).or_default();
        } else if let Some(name) = &current
            && line.split_whitespace().any(|word| word.starts_with(opcode))
            && let Some(count) = out.get_mut(name)
        {
            *count += 1;
        }
    }
    out
}

/// The defects in a report of ptxas, each as one line with a hint. Empty for a sound kernel.
pub fn defects(report: &str) -> Vec<String> {
    let mut out = Vec::new();
    for entry in entry_facts(report) {
        if entry.spill_stores + entry.spill_loads > 0 {
            out.push(format!(
                "{}: spills {} bytes of registers to local memory and reads {} back\n  hint: raise the register budget \
                 (__launch_bounds__, setmaxnreg) or make the tile smaller",
                entry.name, entry.spill_stores, entry.spill_loads
            ));
        }
    }
    for line in report.lines() {
        let lower = line.to_ascii_lowercase();
        if lower.contains("wgmma") && lower.contains("serializ") {
            out.push(format!(
                "{}\n  hint: an accumulator of a wgmma in flight is touched or moved, or crosses a call: keep accumulators in \
                 registers of one function, unroll, and wait before reading",
                line.trim()
            ));
        } else if lower.contains("setmaxnreg") && lower.contains("ignored") {
            out.push(format!(
                "{}\n  hint: setmaxnreg needs a register cap at launch: __launch_bounds__(threads, 1)",
                line.trim()
            ));
        }
    }
    out
}

/// The message for an nvcc or ptxas that failed: the tool's own errors, without its noise, and a hint where
/// the cause is a known one.
pub fn failure(source: &str, tool: &str, output: &str) -> String {
    let mut errors: Vec<&str> = output
        .lines()
        .filter(|line| {
            let lower = line.to_ascii_lowercase();
            lower.contains("error") || lower.contains("fatal")
        })
        .take(12)
        .collect();
    if errors.is_empty() {
        errors = output.lines().rev().take(12).collect();
        errors.reverse();
    }
    let mut message = format!("{source}: {tool} failed\n");
    for line in errors {
        message.push_str("  ");
        message.push_str(line.trim_end());
        message.push('\n');
    }
    if let Some(hint) = hint(output) {
        message.push_str("  hint: ");
        message.push_str(hint);
        message.push('\n');
    }
    message
}

fn hint(output: &str) -> Option<&'static str> {
    if output.contains("unsupported GNU version") || output.contains("unsupported clang version") {
        Some(
            "the host compiler is newer than this nvcc knows: name an older one with NVCC_CCBIN, e.g. NVCC_CCBIN=g++-12",
        )
    } else if output.contains("gcc: not found") || output.contains("cannot execute 'gcc'") {
        Some("nvcc preprocesses with a host compiler: install gcc, or name one with NVCC_CCBIN")
    } else if output.contains("Unsupported gpu architecture") {
        Some(
            "this nvcc is older than CUDA 12.0 and does not know sm_90a: run scripts/install-toolchain",
        )
    } else if output.contains("crt/host_config.h") {
        Some("the toolkit lacks its crt headers: run scripts/install-toolchain")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'good' for 'sm_90a'
ptxas info    : Function properties for good
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 2 barriers, 4096 bytes smem
ptxas info    : Compiling entry function 'bad' for 'sm_90a'
ptxas info    : Function properties for bad
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
";

    #[test]
    fn facts_are_read_per_entry() {
        let facts = entry_facts(REPORT);
        assert_eq!(facts.len(), 2);
        assert_eq!(
            (facts[0].registers, facts[0].shared, facts[0].barriers),
            (90, 4096, 2)
        );
        assert_eq!(
            (facts[1].spill_stores, facts[1].spill_loads, facts[1].stack),
            (12, 8, 16)
        );
    }

    #[test]
    fn instructions_are_counted_per_kernel() {
        let listing = "\t\tFunction : a\n  /*0010*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;\n  /*0020*/ FADD R1, R2, R3 ;\n\
                       \t\tFunction : b\n  /*0010*/ @P0 HGMMA.64x8x16.F32.BF16 R24 ;\n  /*0020*/ HGMMA.64x8x16.F32.BF16 R24 ;\n\t\tFunction : c\n";
        let counts = count_instructions(listing, "HGMMA");
        assert_eq!((counts["a"], counts["b"], counts["c"]), (1, 2, 0));
    }

    #[test]
    fn spills_and_serialised_wgmma_are_defects() {
        let defects_found = defects(REPORT);
        assert_eq!(defects_found.len(), 1);
        assert!(defects_found[0].starts_with("bad: spills 12 bytes"));
        let warning = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources";
        assert_eq!(defects(warning).len(), 1);
    }

    #[test]
    fn a_host_compiler_that_is_too_new_is_named() {
        let output = "host_config.h:132:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!\n";
        let message = failure("cuda/gemm.cu", "nvcc", output);
        assert!(message.starts_with("cuda/gemm.cu: nvcc failed\n"));
        assert!(message.contains("hint: the host compiler is newer"));
    }
}

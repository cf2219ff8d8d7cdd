//! Two things that cargo cannot do by itself:
//!
//! 1. **Kernels.** `cuda/*.cu` becomes PTX and sm_90a cubins where nvcc is found, else the committed `ptx/*.ptx` is taken. Either way
//!    the result is an index, `OUT_DIR/kernels.rs`, which `src/driver/modules.rs` includes.
//! 2. **Trampolines.** Every `cu*` function that cust or our bindings declare becomes `jmp *slot[i]` in a static `libcuda.a`; at start
//!    `src/driver/table.rs` points the slots at libcuda.so.1 or at the emulator.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use birdie_kernel_compiler::compile::compile_all;
use birdie_kernel_compiler::manifest::{Manifest, PTX_DIR};
use birdie_kernel_compiler::ptx_text;
use birdie_kernel_compiler::sources::LAB;
use birdie_kernel_compiler::toolchain::{self, Toolchain};

/// The names of the trampolines, in the order of the slots.
const SYMBOLS: &str = "src/driver/symbols.txt";

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    for input in ["build.rs", "cuda", "ptx", SYMBOLS] {
        println!("cargo::rerun-if-changed={input}");
    }
    for name in toolchain::ENVIRONMENT {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(error) = kernels(&root, &out).and_then(|()| trampolines(&root, &out)) {
        for line in error.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// One row of the index.
struct Row {
    name: String,
    ptx: PathBuf,
    cubin: Option<PathBuf>,
}

fn kernels(root: &Path, out: &Path) -> Result<(), String> {
    let threads = variable("NUM_JOBS").parse().unwrap_or(1);
    let (rows, compiler) = match Toolchain::find(root)? {
        Some(toolchain) => {
            let dir = out.join("kernels");
            let compiled = compile_all(root, &toolchain, &dir, threads)?;
            let rows = compiled
                .into_iter()
                .filter(|kernel| !kernel.source.name.starts_with(LAB))
                .map(|kernel| Row {
                    ptx: dir.join(format!("{}.ptx", kernel.source.name)),
                    name: kernel.source.name,
                    cubin: Some(kernel.cubin),
                })
                .collect();
            let compiler = format!("nvcc {} ({})", toolchain.version, toolchain.found_by);
            (rows, compiler)
        }
        None => (committed(root)?, "committed PTX".to_owned()),
    };
    let mut index = String::new();
    let _ = writeln!(index, "/// Where the PTX of this build comes from.");
    let _ = writeln!(index, "pub const KERNEL_COMPILER: &str = {compiler:?};");
    let _ = writeln!(index, "/// Every kernel file, by base name.");
    let _ = writeln!(index, "pub static KERNEL_FILES: &[KernelFile] = &[");
    for row in rows {
        let ptx = std::fs::read_to_string(&row.ptx)
            .map_err(|error| format!("{}: {error}", row.ptx.display()))?;
        let cubin = match row.cubin {
            Some(path) => format!("Some(include_bytes!({path:?}))"),
            None => "None".to_owned(),
        };
        let _ = writeln!(
            index,
            "    KernelFile {{ name: {:?}, ptx: include_str!({:?}), cubin: {cubin}, entries: &{:?} }},",
            row.name,
            row.ptx,
            ptx_text::entries(&ptx)
        );
    }
    let _ = writeln!(index, "];");
    write(&out.join("kernels.rs"), &index)
}

/// The rows of `ptx/`. Warns when they are not what `cuda/` asks for, because nothing here can compile it.
fn committed(root: &Path) -> Result<Vec<Row>, String> {
    let manifest = Manifest::read(root)?;
    for why in manifest.stale(root)? {
        println!(
            "cargo::warning={PTX_DIR}/ is not current: {why} (scripts/install-toolchain gets a compiler, scripts/refresh-ptx uses it)"
        );
    }
    Ok(manifest
        .files
        .iter()
        .filter(|file| !file.name.starts_with(LAB))
        .map(|file| Row {
            name: file.name.clone(),
            ptx: root.join(PTX_DIR).join(format!("{}.ptx", file.name)),
            cubin: None,
        })
        .collect())
}

fn trampolines(root: &Path, out: &Path) -> Result<(), String> {
    let symbols = std::fs::read_to_string(root.join(SYMBOLS))
        .map_err(|error| format!("{SYMBOLS}: {error}"))?;
    let symbols: Vec<&str> = symbols.lines().collect();
    let architecture = variable("CARGO_CFG_TARGET_ARCH");
    let mut assembly = String::from(
        "// Made by build.rs. A slot holds the address that its trampoline jumps to.\n\
         .text\n.type birdie_driver_absent, %function\nbirdie_driver_absent:\n",
    );
    // Until the table is filled every function answers CUDA_ERROR_NO_DEVICE (100).
    assembly.push_str(match architecture.as_str() {
        "x86_64" => "    endbr64\n    movl $100, %eax\n    ret\n",
        "aarch64" => "    mov w0, #100\n    ret\n",
        other => {
            return Err(format!(
                "no driver trampolines for {other}: CUDA exists for x86_64 and aarch64"
            ));
        }
    });
    for (index, symbol) in symbols.iter().enumerate() {
        let offset = 8 * index;
        let _ = writeln!(
            assembly,
            ".globl {symbol}\n.type {symbol}, %function\n{symbol}:"
        );
        let jump = match architecture.as_str() {
            "x86_64" => format!("    endbr64\n    jmp *birdie_driver_slots+{offset}(%rip)\n"),
            _ => format!(
                "    bti c\n    adrp x16, birdie_driver_slots+{offset}\n    ldr x16, [x16, :lo12:birdie_driver_slots+{offset}]\n    br x16\n"
            ),
        };
        assembly.push_str(&jump);
        let _ = writeln!(assembly, ".size {symbol}, .-{symbol}");
    }
    let _ = writeln!(
        assembly,
        ".data\n.balign 8\n.globl birdie_driver_slots\n.hidden birdie_driver_slots\nbirdie_driver_slots:"
    );
    for _ in &symbols {
        assembly.push_str("    .quad birdie_driver_absent\n");
    }
    assembly.push_str(".section .note.GNU-stack,\"\",%progbits\n");
    let file = out.join("trampolines.S");
    write(&file, &assembly)?;
    // First in the search order, before any libcuda of the machine.
    println!("cargo::rustc-link-search=native={}", out.display());
    cc::Build::new()
        .file(&file)
        .try_compile("cuda")
        .map_err(|error| format!("the driver trampolines: {error}"))?;
    let mut names = String::from("&[\n");
    for symbol in &symbols {
        let _ = writeln!(names, "    c{symbol:?},");
    }
    names.push_str("]\n");
    write(&out.join("driver_symbols.rs"), &names)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

//! The CUDA driver API.
//!
//! Programs reach it in two ways. birdie asks for functions by name ([`symbol`]) and puts their addresses into the slots of its
//! trampolines; other programs load the drop-in `libcuda.so.1` (the package in `emulator/libcuda`), which exports the same functions. Both
//! are made from one table, `table.rs`.
//!
//! | file | what |
//! |---|---|
//! | `table.rs` | every function: exported names, arguments, implementation; names that are known but not supported |
//! | `error.rs` | result codes and reasons |
//! | `state.rs` | all tables of handles, behind one lock |
//! | `queue.rs`, `work.rs`, `run.rs` | streams: what waits, what it does, getting it done |
//! | `capture.rs`, `graph*.rs`, `user_objects.rs` | graphs |
//! | `blocks.rs`, `memory.rs`, `virtual_memory.rs`, `copy.rs` | memory |
//! | `module.rs`, `function.rs`, `launch.rs`, `link.rs`, `merge.rs` | programs |
//! | `files.rs`, `observe.rs` | counts and traces of launches: as files, and for a program that asks |
//! | `context.rs`, `device.rs`, `attributes.rs`, `stream.rs`, `tensor.rs` | the rest, by object |
//!
//! # Promises
//! * A call that a real driver refuses is refused with the same code; the reason is one line on stderr with `BIRDIE_EMU_LOG=1`.
//! * Nothing crashes the host: handles are looked up, device ranges checked, host ranges asked of the operating system, and a
//!   panic of the emulator ends at the boundary as CUDA_ERROR_UNKNOWN.
//! * What is not there returns CUDA_ERROR_NOT_SUPPORTED and says its name once on stderr.
//! * After a fault or a finding every later call of the context returns the error, as on a device.
//!
//! # Streams
//! Operations happen when the host waits, polls or has piled up too many, in an order drawn from `BIRDIE_EMU_SEED` among all that the
//! program's own ordering allows (see `queue.rs`). So a program that reads pinned memory without waiting reads old bytes
//! here, every time, and one that forgot an event between two streams fails for some seed.

// Every implementation is an `unsafe fn` with the C signature of its function: what the pointers must be is in
// NVIDIA's documentation of the function of the same name.
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]
// The bodies take apart what callers give; each `unsafe` block says what it relies on.
#![allow(unsafe_op_in_unsafe_fn)]

mod attributes;
mod blocks;
mod capture;
mod config;
mod context;
mod copy;
mod device;
pub mod error;
mod files;
mod function;
mod graph;
mod graph_api;
pub mod graph_memory;
mod graph_nodes;
mod launch;
mod link;
mod memory;
mod merge;
mod module;
mod observe;
mod process;
mod queue;
mod run;
mod state;
mod stream;
mod table;
mod tensor;
pub mod types;
mod user_objects;
pub mod virtual_memory;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use observe::{Counted, keep_counts, sample_clusters, take_counts};
pub use run::take_findings;
pub use table::{ffi, symbol, unsupported};

use error::{Code, Outcome};
use state::{IN_HOST_FUNCTION, PER_THREAD_DEFAULT};

/// Writes a result where the caller wants it.
fn put<T>(out: *mut T, value: T) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for a result: a null pointer");
    }
    // SAFETY: checked not to be null; that it points at a `T` is the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

/// Functions that a host function of a stream may call.
const ALLOWED_IN_HOST_FUNCTIONS: [&str; 4] = [
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDriverGetVersion",
    "cuCtxGetCurrent",
];

/// The edge between C and the implementation: no panic passes, errors become codes, reasons are told.
fn boundary(name: &str, per_thread: bool, call: impl FnOnce() -> Outcome) -> u32 {
    if IN_HOST_FUNCTION.get() && !ALLOWED_IN_HOST_FUNCTIONS.contains(&name) {
        tell(
            name,
            Code::NOT_PERMITTED,
            "called by a host function of a stream",
        );
        return Code::NOT_PERMITTED.0;
    }
    let before = PER_THREAD_DEFAULT.replace(per_thread);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    PER_THREAD_DEFAULT.set(before);
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            tell(name, error.code, &error.reason);
            error.code.0
        }
        Err(_) => {
            tell(
                name,
                Code::UNKNOWN,
                "the emulator itself failed; please report this",
            );
            Code::UNKNOWN.0
        }
    }
}

fn tell(name: &str, code: Code, reason: &str) {
    if !reason.is_empty() && state::logging() {
        let code = error::describe(code.0).map_or("?".into(), |(name, _)| name.to_string_lossy());
        eprintln!("birdie-emulator: {name}: {code}: {reason}");
    }
}

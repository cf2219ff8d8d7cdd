//! The driver API, called as a C program calls it: what each function does, and what it refuses with which code.
//!
//! All tests share one process and so one driver with two devices; each makes a context of its own, because a context that
//! is lost stays lost.

// Every call of the tests is a call of C: the macros say so once instead of each test at every line.
#![allow(clippy::macro_metavars_in_unsafe)]

mod batches;
mod capture;
mod device;
mod graph;
mod graph_memory;
mod kernels;
mod linking;
mod memory;
mod modules;
mod setup;
mod streams;
mod tensor;
mod virtual_memory;

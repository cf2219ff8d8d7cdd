//! The driver API, called as a C program calls it: what each function does, and what it refuses with which code.
//!
//! All tests share one process and so one driver with two devices; each makes a context of its own, because a context that
//! is lost stays lost.

mod capture;
mod device;
mod graph;
mod kernels;
mod memory;
mod modules;
mod setup;
mod streams;
mod tensor;

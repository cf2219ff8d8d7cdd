//! The CUDA driver: which one, and what cust does not offer of it.
//!
//! birdie links no libcuda. Every driver function is a trampoline (made by `build.rs`) through a table of slots ([`table`]), and
//! [`init`] points the slots at one of two drivers: NVIDIA's `libcuda.so.1`, or the emulator crate, which executes the
//! same PTX on the CPU. Nothing above this module knows which of the two it is, except to say so to the user.
//!
//! The rest are thin safe wrappers over functions that cust 0.3 lacks: [`modules`] (kernels by name), [`launch`] (clusters,
//! programmatic dependent launch, checked parameters), [`tensor_map`], [`graph`].
//!
//! TRAP: `Display` of cust's error type calls the driver. [`DriverError`] does not; convert with `?` or `.into()` before
//! anything is printed.

pub mod bindings;
mod error;
pub mod graph;
pub mod launch;
pub mod modules;
mod select;
mod table;
pub mod tensor_map;

pub use error::{DriverError, check};
pub use select::{DeviceChoice, DriverInfo, DriverKind, active, init};

//! An H100 on the CPU: executes the PTX that nvcc emits for sm_90a and checks it.
#![allow(clippy::needless_range_loop)] // a lane or dimension indexes several arrays at once

pub mod alu;
pub mod asynchronous;
pub mod check;
pub mod counters;
pub mod device;
pub mod driver;
pub mod exec;
mod hash;
pub mod memory;
pub mod program;
pub mod ptx;
pub mod simd;
pub mod tensor;
pub mod tensor_map;
pub mod trace;

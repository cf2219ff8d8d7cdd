//! From `cuda/*.cu` to PTX and sm_90a machine code.
//!
//! One implementation for its two users: `build.rs`, which compiles the kernels into the binary where a
//! toolkit is found, and `scripts/refresh-ptx` and `scripts/check-ptx`, which keep the committed PTX of
//! `ptx/` equal to what `cuda/` compiles to.
//!
//! * [`toolchain`] finds nvcc and ptxas.
//! * [`compile`] runs them on one file: nvcc makes PTX, [`ptx_text`] makes it portable, ptxas assembles
//!   *that* PTX, so that the cubin and the shipped PTX are the same program.
//! * [`diagnostics`] turns what the tools say into one readable error: spills and serialised wgmma are
//!   errors here, not warnings.
//! * [`sources`] lists kernels and hashes each with everything it includes.
//! * [`manifest`] is `ptx/manifest.json`.

pub mod compile;
pub mod diagnostics;
pub mod manifest;
pub mod ptx_text;
pub mod sources;
pub mod toolchain;

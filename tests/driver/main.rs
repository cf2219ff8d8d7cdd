//! The driver table, and the thin wrappers over what cust lacks. Everything runs on the emulator, or on the GPU with
//! `BIRDIE_TEST_DEVICE=cuda`.

mod linkage;
mod wrappers;

//! Execution as a whole: text to result, through the loader, the scheduler and every family that the core owns.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod control;
mod first;
mod launch;
mod memory;
mod shipped;
mod warp;

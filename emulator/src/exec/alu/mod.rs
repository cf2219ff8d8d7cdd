//! Arithmetic, logic, conversions and moves.

mod interim;

pub use interim::lower;

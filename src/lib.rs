//! birdie: trains, compresses and scores the language models of the parameter-golf challenge.
//!
//! The rooms, top down: `cli` → `bench`, `train`, `evaluate`, `quantize`, `artifact`, `checkpoint` → `model` →
//! `kernels` → `driver`; `recipe`, `data` and `failure` are used by all. Nothing below knows what is above.

pub mod arena;
pub mod artifact;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod driver;
pub mod evaluate;
pub mod failure;
pub mod files;
pub mod kernels;
pub mod model;
pub mod optimizer;
pub mod parity;
pub mod quantize;
pub mod recipe;
pub mod train;

//! Parity cases: what the published code of a recipe computes for a small model, as data.
//!
//! A case is a JSON file that names a model, gives its weights and tokens by a rule (so that no weight is stored), and lists
//! summaries of what comes out: the loss, activations, the gradient of every parameter, optimizer steps. An engine that computes
//! the same function agrees with all of it within its arithmetic's error.
//!
//! - [`rule`] makes the weights, tokens, signs and sample positions (`hash-v1`).
//! - [`case`] is the file format.
//! - [`compare`] compares a computed tensor with an expected summary, and keeps the tally.
//! - [`judge`] makes all comparisons of a case.
//!
//! - [`recipe`] finds the recipe that a case describes, [`run`] runs a case on the device.
//!
//! Nothing here computes a model: the device model and the f64 reference of the tests are both judged through this module.
//!
//! What the recipes have in common has files of its own, each with a format of its own: [`quantizers`] (`all_Q`), [`scoring`]
//! (`all_V`: tokenizer, bytes, windows), [`newton_schulz`] (`all_M`, on the device), [`storage`] (`all_P`: every tensor of the
//! full-size models). [`file`] reads any of them, finds out which it is, and runs it.

pub mod case;
pub mod compare;
pub mod file;
pub mod judge;
pub mod newton_schulz;
pub mod quantizers;
pub mod recipe;
pub mod rule;
pub mod run;
pub mod scoring;
pub mod storage;

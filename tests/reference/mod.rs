//! What birdie must compute, in float64 and as plainly as possible: the yardstick of the tests.
//!
//! Nothing here is fast or clever. Every op has its formula beside it; backward passes are written by hand and are themselves
//! checked, against finite differences and against the parity cases.

// Each test binary includes the whole tree and uses a part of it.
#![allow(dead_code)]

pub mod layers;
pub mod model;
pub mod optimizer;

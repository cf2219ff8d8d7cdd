//! Handlers as types: the form in which generic handlers of this module's families are compiled for every SIMD level.
//!
//! A handler's body is a type that implements [`Body`]; [`handler`] returns the function for the level in force
//! ([`crate::simd`]). Everything a body calls must be `#[inline(always)]`, or it is compiled for the baseline only.

use super::{Cx, Flow};
use crate::program::Op;

/// The work of a handler.
pub trait Body {
    /// # Safety
    /// As for every [`Handler`](super::Handler): `cx` belongs to a running warp and `op` to its program. Must be
    /// `#[inline(always)]`.
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow;
}

#[inline(always)]
unsafe fn body<B: Body>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: passed on to the caller.
    unsafe { B::run(cx, op) }
}

crate::simd_handler! {
    /// The function that runs `B` at the level in force.
    pub handler => body<B: Body>
}

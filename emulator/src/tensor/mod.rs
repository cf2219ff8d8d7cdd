//! The tensor core: wgmma, mma.sync (dense and sparse), ldmatrix, stmatrix.
//!
//! * [`wgmma`] lowers the asynchronous warpgroup instructions; their handlers feed the warpgroup's [`queue`], which
//!   decides when an operation takes effect. [`execute`] then carries it out: operands are found through the matrix
//!   [`descriptor`], unpacked to [`panel`]s and multiplied by a [`kernel`].
//! * [`lifetime`] keeps the registers of operations in flight from being given away by register compaction,
//!   [`registers`] and [`operands`] hold the checks.
//! * All of these are collective: every live lane of the warp executes them together ([`converged`]).

pub mod descriptor;
pub mod exact;
pub mod execute;
pub mod format;
pub mod kernel;
pub mod lifetime;
mod matrix;
mod mma;
pub mod operands;
pub mod panel;
mod quad;
pub(crate) mod queue;
pub mod registers;
mod sparse;
#[cfg(test)]
mod tests;
pub mod wgmma;
mod wmma;

use crate::check::FindingKind;
use crate::device::Fault;
use crate::exec::{Cx, Flow, Wait};
use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::Instr;
pub use queue::WarpgroupState;

/// Lowers the instructions of this family; `Ok(false)` for all others.
pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    Ok(wgmma::lower(cx, i)?
        || matrix::lower(cx, i)?
        || quad::lower(cx, i)?
        || mma::lower(cx, i)?
        || wmma::lower(cx, i)?)
}

/// For `.sync.aligned` instructions: `Ok(true)` if all live lanes of the warp execute, `Ok(false)` if the guard excludes
/// all of them. Otherwise the flow to return: wait for the other fragments, or a fault if the guard divides the warp.
///
pub(crate) fn converged(cx: &mut Cx) -> std::result::Result<bool, Flow> {
    let live = cx.warp().live;
    let fragment = cx.fragment();
    if fragment.mask & live != live {
        fragment.wait = Wait::Converge { mask: live };
        return Err(Flow::Block);
    }
    if matches!(fragment.wait, Wait::Converge { .. }) {
        fragment.wait = Wait::None;
    }
    let mask = cx.mask & live;
    if mask == 0 {
        return Ok(false);
    }
    if mask != live {
        let name = cx.launch.program.sites[cx.pc as usize].opcode.clone();
        let message = format!(
            "{name} is executed by lanes {mask:#010x} of a warp whose live lanes are {live:#010x}; .aligned instructions need all of them"
        );
        let at = cx.at();
        if let Some(check) = cx.cluster().check.as_deref_mut() {
            check.report(FindingKind::DivergentAligned, at, message, vec![]);
            return Ok(true);
        }
        return Err(cx.fail(Fault::IllegalInstruction(message)));
    }
    Ok(true)
}

//! mbarriers, bulk and tensor copies, cp.async, remote stores and reductions: everything that completes later.
//!
//! | module | instructions |
//! |---|---|
//! | `mbarrier`, `mbarrier_ops` | mbarrier.* |
//! | `copy` | cp.async, its commit_group, wait_group, wait_all and mbarrier.arrive |
//! | `bulk` | cp.async.bulk, cp.reduce.async.bulk, their groups |
//! | `tensor_copy`, `tensor_box` | cp.async.bulk.tensor, cp.reduce.async.bulk.tensor |
//! | `remote` | st.async, red.async |
//! | `tensor_map_ops` | tensormap.replace, tensormap.cp_fenceproxy, prefetch.tensormap |
//! | `queue`, `retire` | what is in flight, and when and how it takes effect |
//! | `reduce` | the element operations of the reductions |
//!
//! **Issue and retire.** Issuing validates operands and puts an entry into the queue of the cluster; nothing has
//! happened to memory yet. Retiring moves the bytes and signals completion. A copy out of shared memory retires in
//! two steps, reading its source and writing its destination, because `wait_group.read` waits for the first only.
//! Between issue and retire any time may pass: [`Policy`](crate::device::Policy) `Eager` retires at issue, `Latest`
//! when nothing else in the cluster can run, `Random` after turns drawn from the seed. Each of these orders is one that
//! the ISA allows, so a result that depends on the policy is a bug of the program.
//!
//! **What the run loop calls.** [`tick`] after every turn of a warp; [`retire_one`] when every warp of a cluster is
//! blocked; [`cta_exits`] when the last warp of a CTA has exited; [`finish`] when all CTAs of the cluster have;
//! [`describe_wait`] for the wait-for table of a deadlock.
//!
//! **Checks.** Every asynchronous operation is an agent of its own, forked from its issuer. Its accesses are told to the
//! checker when it retires. Copies out of shared memory are two agents: waiting with `.read` joins the one that reads.
//!
//! Not modelled: interleaved layouts (a tensor copy through an interleaved map is a fault), the sm_100 forms (.cta_group, .cp_mask, gather4, scatter4), multimem.

mod address;
mod bulk;
mod copy;
pub mod mbarrier;
mod mbarrier_ops;
mod modifiers;
mod queue;
mod reduce;
mod remote;
mod retire;
mod tensor_box;
mod tensor_copy;
mod tensor_map_ops;

pub use address::Shared;
pub use queue::{AsyncState, cta_exits, describe_wait, finish, idle, retire_one, tick};

use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::Instr;

/// Lowers an instruction of this family; false: not one of them.
pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let part = |n: usize| i.op.get(n).map_or("", |m| &**m);
    let has = |name: &str| i.op.iter().any(|m| &**m == name);
    match (part(0), part(1)) {
        ("mbarrier", _) => mbarrier_ops::lower(cx, i),
        ("cp", "async") if part(2) == "bulk" => {
            if has("tensor") {
                tensor_copy::lower(cx, i)
            } else {
                bulk::lower(cx, i)
            }
        }
        ("cp", "async") => copy::lower(cx, i),
        ("cp", "reduce") => {
            if has("tensor") {
                tensor_copy::lower(cx, i)
            } else {
                bulk::lower(cx, i)
            }
        }
        ("st" | "red", "async") => remote::lower(cx, i),
        ("tensormap", _) => tensor_map_ops::lower(cx, i),
        ("prefetch", _) if has("tensormap") => tensor_map_ops::lower_prefetch(cx, i),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod box_tests;

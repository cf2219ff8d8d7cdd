//! Execution: warps of 32 lanes over rows of registers.
//!
//! * A **warp** is a set of fragments `(pc, mask)`; usually one. The fragment with the smallest pc runs until it
//!   blocks or has spent its quantum; fragments that meet at a pc merge. `.aligned`/`.sync` operations wait for the
//!   other fragments of the warp before they complain about divergence.
//! * A **CTA** lives on one host thread, a **cluster** too: its warps are interleaved by the scheduler in an order
//!   drawn from the seed. Kernels that order CTAs through global memory run with all resident CTAs on one thread.
//! * **Blocking is polling**: a handler that cannot proceed stores why in `fragment.wait` and returns
//!   [`Flow::Block`]; the scheduler calls the same operation again later. A handler that has side effects before it
//!   blocks (an arrival) finds its own `Wait` in `fragment.wait` at the next call and must not repeat them. It clears
//!   `fragment.wait` when it completes. A blocked warp is polled again only after `cluster.progress` has changed, so
//!   whatever can unblock another must count there.
//! * **Asynchronous operations** (bulk and tensor copies, cp.async, wgmma) are entries of a queue of their cluster, with
//!   an issue and a retire event; when they retire is drawn from the seed (`asynchronous`, `tensor`).
//!
//! Addresses: a device pointer is the host address of the byte in the device arena. Shared memory has 32-bit
//! addresses: `offset` for the executing CTA, `(rank + 1) << 24 | offset` for the CTA `rank` of the cluster (what
//! `mapa` makes). Generic addresses of shared memory are [`SHARED_WINDOW`] + that, of local memory
//! [`LOCAL_WINDOW`] + offset (each lane its own). `cvta` to global, const and param is the identity.

pub mod barrier;
pub mod call;
pub mod cluster;
pub mod control;
pub mod launch;
pub mod memory;
mod printf;
pub mod run;
pub mod schedule;
pub mod simd;
mod stack;
pub mod state;
pub mod warp;

pub use stack::{STACK, lower as lower_stack};
pub use state::*;

/// Generic address of shared::cta address 0. Its low 32 bits are zero, so truncation gives the shared address.
pub const SHARED_WINDOW: u64 = 0x8000_0000_0000;
/// Generic address of local address 0.
pub const LOCAL_WINDOW: u64 = 0x8001_0000_0000;
/// Where a CTA's shared memory starts: like on the device not at 0, and only 1024-aligned minus what `.align` asks for
/// (the loader places static shared memory from here, each symbol at its declared alignment and no more).
pub const SHARED_BASE: u32 = 0x400;

//! What a running cluster consists of.

use crate::asynchronous::AsyncState;
use crate::check::Checker;
use crate::device::Launch;
use crate::program::{Op, Pred, RowId};
use crate::tensor::WarpgroupState;

pub const LANES: usize = 32;
pub const FULL: u32 = u32::MAX;

/// 32 lanes of 32 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(128))]
pub struct Row(pub [u32; LANES]);

/// What the run loop does after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Flow {
    /// Go on with the next operation.
    Next,
    /// The whole fragment goes on at `cx.pc` (a branch that does not diverge).
    Branch,
    /// The handler has changed the fragments (a branch that diverges, exit, call, return), their `pc`s included: look at
    /// them again.
    Jump,
    /// Could not proceed; `fragment.wait` says why. The same operation is tried again later.
    Block,
    /// Done, but let others run (nanosleep, a failed test_wait).
    Yield,
    /// `cx.cluster().fault` is set.
    Fault,
}

pub type Handler = unsafe fn(&mut Cx, &Op) -> Flow;

/// Why a fragment is blocked. Shown in the wait-for table of a deadlock.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    None,
    /// Waits for the other fragments of its warp at a `.sync`/`.aligned` operation with this member mask.
    Converge {
        mask: u32,
    },
    /// `bar.sync id` (arrived); `phase` is the barrier's generation at arrival.
    Named {
        id: u32,
        generation: u64,
    },
    /// `mbarrier.try_wait` on shared offset `address` of its own CTA for the completion of `phase`.
    Mbarrier {
        address: u32,
        phase: u64,
        polls: u32,
    },
    /// `barrier.cluster.wait`.
    Cluster {
        generation: u64,
    },
    /// `wgmma.wait_group n`.
    Wgmma {
        pending: u32,
    },
    /// `cp.async.wait_group`, `cp.async.bulk.wait_group[.read]`.
    CopyGroup {
        pending: u32,
        read: bool,
        bulk: bool,
    },
    /// `setmaxnreg.inc` waits for registers of the pool.
    Registers {
        want: u32,
    },
    /// Anything else; the text says what.
    Other(&'static str),
}

#[derive(Debug, Clone)]
pub struct Fragment {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
    /// Found blocked in this turn.
    pub polled: bool,
    /// Return addresses of active calls.
    pub calls: Vec<Frame>,
}

/// An active call.
#[derive(Debug, Clone)]
pub struct Frame {
    pub return_pc: u32,
    /// Index in [`Program::ext`](crate::program::Program) of the call's record.
    pub call: u32,
    /// Index of the function that runs in this frame.
    pub callee: u32,
    /// Top of the local stack during the call.
    pub top: u32,
    /// Rows of a recursive callee as they were before the call.
    pub saved: Vec<Row>,
    pub saved_preds: Vec<u32>,
    /// Stack pointers of alloca as they were before the call.
    pub stack: [u32; LANES],
}

pub struct Warp {
    /// Index in the CTA.
    pub index: u32,
    /// Agent number for the checker: unique in the cluster.
    pub agent: u32,
    pub regs: Vec<Row>,
    pub preds: Vec<u32>,
    pub fragments: Vec<Fragment>,
    /// The fragment being run.
    pub current: usize,
    /// Lanes that exist (blockDim not a multiple of 32) and have not exited.
    pub live: u32,
    /// Local memory: `local_bytes` per lane, lane after lane.
    pub local: Vec<u8>,
    /// Stack pointer of alloca, lane by lane.
    pub stack: [u32; LANES],
    /// Registers per thread this warp holds of the CTA's pool (setmaxnreg).
    pub register_cap: u32,
    pub ops_executed: u64,
    /// Generation of the cluster barrier in which this warp arrived last.
    pub cluster_arrival: u64,
    /// `cluster.progress` when all fragments were last found blocked; `None` while one can run.
    pub blocked_at: Option<u64>,
    /// The last turn ended by its quantum: the next starts with a fragment drawn by lot.
    pub preempted: bool,
    /// The cluster's count of turns when this warp ran last.
    pub last_turn: u64,
    /// Polling loads and atomics without effect since the cluster last moved on.
    pub polls: u32,
}

#[derive(Debug, Clone, Default)]
pub struct NamedBarrier {
    /// Threads expected (0: nobody has arrived in this generation, or all threads of the CTA that have not exited).
    pub expected: u32,
    pub arrived: u32,
    pub generation: u64,
    /// Reduction accumulators of barrier.red.
    pub popc: u32,
    pub and: bool,
    pub or: bool,
    /// Results of the previous generation.
    pub last_popc: u32,
    pub last_and: bool,
    pub last_or: bool,
}

impl NamedBarrier {
    pub const EMPTY: NamedBarrier = NamedBarrier {
        expected: 0,
        arrived: 0,
        generation: 0,
        popc: 0,
        and: true,
        or: false,
        last_popc: 0,
        last_and: true,
        last_or: false,
    };
}

pub struct Cta {
    /// Rank in the cluster.
    pub rank: u32,
    pub ctaid: [u32; 3],
    /// Shared memory: byte 0 is shared address [`SHARED_BASE`](super::SHARED_BASE). 1024-aligned allocation.
    pub shared: AlignedBytes,
    pub named: [NamedBarrier; 16],
    pub warps: Vec<Warp>,
    /// One per warpgroup.
    pub warpgroups: Vec<WarpgroupState>,
    /// Free registers of the pool (setmaxnreg).
    pub register_pool: u32,
    pub exited: bool,
    /// Dynamic shared memory of this launch.
    pub dynamic_shared: u32,
}

pub struct Cluster {
    /// Index of the cluster in the grid.
    pub id: u32,
    pub clusterid: [u32; 3],
    pub ctas: Vec<Cta>,
    pub asynchronous: AsyncState,
    pub check: Option<Box<Checker>>,
    pub counters: Option<Box<crate::counters::Counters>>,
    pub trace: Option<Box<crate::trace::Trace>>,
    pub rng: Rng,
    pub fault: Option<crate::device::Fault>,
    /// `barrier.cluster`: arrived warps-lanes and generation.
    pub cluster_arrived: u32,
    pub cluster_generation: u64,
    /// Counts events that can unblock a waiting fragment: arrivals, completions, retirements, exits, freed registers.
    /// **Every handler that causes one must add 1**: a blocked warp is polled again only when this has changed.
    pub progress: u64,
    /// Counts stores that others can see (shared and global). With `progress` it tells a livelock from work.
    pub stores: u64,
    /// Operations executed by all warps: the clock of the cluster.
    pub steps: u64,
    /// Turns that warps have had.
    pub turns: u64,
    /// Text printed by `vprintf`.
    pub output: Vec<u8>,
    /// Allocations that this cluster touched last: first and one-past-last address.
    pub bounds: [(u64, u64); 4],
    pub bounds_next: usize,
    /// SM of its first CTA.
    pub sm: u32,
}

/// Zeroed bytes whose address is a multiple of 1024.
pub struct AlignedBytes {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBytes {
    pub fn new(len: usize) -> Self {
        let storage = vec![0u8; len + 1024];
        let start = storage.as_ptr().align_offset(1024);
        Self {
            storage,
            start,
            len,
        }
    }
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn fill(&mut self, byte: u8) {
        self.as_mut_slice().fill(byte);
    }
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_slice().as_mut_ptr()
    }
    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

/// SplitMix64: the only source of chance in the emulator.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    #[allow(clippy::should_implement_trait)] // a generator, not an iterator: it has no end
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in `0..n` (`n` > 0).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// What a handler works on: the executing warp's registers and everything around it.
///
/// Raw pointers, because a handler may touch its warp, other warps of its CTA (wgmma) and other CTAs of its cluster
/// (distributed shared memory); the cluster runs on one host thread, so there is never more than one handler active on
/// it. A handler must not hold two overlapping `&mut` at once.
pub struct Cx<'a> {
    pub regs: *mut Row,
    pub preds: *mut u32,
    /// Lanes that execute this operation: the fragment's mask and the guard.
    pub mask: u32,
    /// Lanes of the fragment.
    pub active: u32,
    pub pc: u32,
    /// Operations left in this turn.
    pub budget: u32,
    /// A checker or a counter wants to see memory accesses.
    pub observed: bool,
    pub warp: *mut Warp,
    pub cta: *mut Cta,
    pub cluster: *mut Cluster,
    pub launch: &'a Launch<'a>,
}

#[allow(clippy::missing_safety_doc)] // SAFETY of all: see `Cx`; rows come from the program, which was sized with them
impl<'a> Cx<'a> {
    #[inline(always)]
    pub unsafe fn row(&self, r: RowId) -> &'a [u32; LANES] {
        unsafe { &(*self.regs.add(r as usize)).0 }
    }
    #[inline(always)]
    pub unsafe fn row_mut(&mut self, r: RowId) -> &'a mut [u32; LANES] {
        unsafe { &mut (*self.regs.add(r as usize)).0 }
    }
    #[inline(always)]
    pub unsafe fn row64(&self, r: RowId) -> &'a [u64; LANES] {
        unsafe { &*self.regs.add(r as usize).cast() }
    }
    #[inline(always)]
    pub unsafe fn row64_mut(&mut self, r: RowId) -> &'a mut [u64; LANES] {
        unsafe { &mut *self.regs.add(r as usize).cast() }
    }
    #[inline(always)]
    pub unsafe fn pred(&self, p: Pred) -> u32 {
        let v = unsafe { *self.preds.add(p.index as usize) };
        if p.negate { !v } else { v }
    }
    /// Writes the executing lanes of a predicate.
    #[inline(always)]
    pub unsafe fn set_pred(&mut self, index: u16, value: u32) {
        let p = unsafe { &mut *self.preds.add(index as usize) };
        *p = (*p & !self.mask) | (value & self.mask);
    }
    #[inline(always)]
    pub fn warp(&mut self) -> &mut Warp {
        unsafe { &mut *self.warp }
    }
    #[inline(always)]
    pub fn cta(&mut self) -> &mut Cta {
        unsafe { &mut *self.cta }
    }
    #[inline(always)]
    pub fn cluster(&mut self) -> &mut Cluster {
        unsafe { &mut *self.cluster }
    }
    /// The fragment being run.
    #[inline(always)]
    pub fn fragment(&mut self) -> &mut Fragment {
        let w = self.warp();
        let i = w.current;
        &mut w.fragments[i]
    }
    /// The extension record of an operation.
    #[inline(always)]
    pub fn ext<T: 'static>(&self, op: &Op) -> &'a T {
        self.launch.program.ext[op.ext as usize]
            .downcast_ref()
            .expect("extension record of another handler")
    }
    /// For `.aligned` operations: true when all lanes of the warp that have not exited execute this one together.
    /// Otherwise the fragment is set to wait for the others, and the handler returns [`Flow::Block`].
    #[inline(always)]
    pub fn aligned(&mut self) -> bool {
        self.rendezvous(FULL)
    }
    /// For `.sync` operations with a member mask that only the same pc can satisfy.
    #[inline(always)]
    pub fn rendezvous(&mut self, members: u32) -> bool {
        let wanted = self.warp().live & members;
        if wanted & !self.mask == 0 {
            true
        } else {
            self.fragment().wait = Wait::Converge { mask: members };
            false
        }
    }
    /// Executing warp and pc, for the checker.
    #[inline(always)]
    pub fn at(&mut self) -> crate::check::At {
        crate::check::At {
            agent: crate::check::Agent(self.warp().agent),
            pc: self.pc,
        }
    }
    /// Operations executed by the cluster so far: its clock.
    pub fn clock(&mut self) -> u64 {
        let left = u64::from(self.budget);
        self.cluster().steps.wrapping_sub(left)
    }
    /// The executing warp and operation in words: `warp 2 of CTA 0,0,0 at line 17 (gemm.cu:40)`.
    pub fn place(&mut self) -> String {
        let program = self.launch.program;
        let site = program.site(self.pc);
        let (warp, ctaid) = (self.warp().index, self.cta().ctaid);
        format!(
            "{site}, warp {warp} of CTA {},{},{}",
            ctaid[0], ctaid[1], ctaid[2]
        )
    }
    /// Ends the launch with a finding at the executing operation, for mistakes after which nothing can go on.
    #[cold]
    pub fn finding(
        &mut self,
        kind: crate::check::FindingKind,
        at: crate::check::At,
        message: impl Into<String>,
    ) -> Flow {
        let who = self.place();
        let kernel = self.launch.program.name.clone();
        self.fail(crate::device::Fault::Finding(Box::new(
            crate::check::Finding {
                kind,
                kernel,
                message: message.into(),
                sites: vec![crate::check::SiteRef {
                    pc: at.pc,
                    who,
                    role: "here".into(),
                }],
            },
        )))
    }
    /// Ends the launch with a fault.
    #[cold]
    pub fn fail(&mut self, fault: crate::device::Fault) -> Flow {
        let c = self.cluster();
        if c.fault.is_none() {
            c.fault = Some(fault);
        }
        Flow::Fault
    }
}

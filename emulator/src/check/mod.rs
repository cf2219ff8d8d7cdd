//! The checkers: what is reported, and the hooks by which the executor tells what happens.
//!
//! The executor calls these hooks only when `cluster.check` is present. Handlers must call them for every memory
//! access (after bounds were tested), every synchronisation edge and every asynchronous operation.

mod arrivals;
pub mod between;
pub mod clock;
pub mod global;
mod granules;
pub mod hooks;
mod lanes;
pub mod layout;
pub mod lifetime;
pub mod order;
pub mod report;
pub mod shadow;
pub mod strict;
pub mod valid;

use crate::program::{Program, Site};
pub use global::GlobalLog;
use std::sync::Arc;

/// What kind of mistake was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    SharedRace,
    GlobalRace,
    MissingProxyFence,
    MbarrierMisuse,
    Deadlock,
    Livelock,
    StageReuse,
    WgmmaRegisters,
    WgmmaOperand,
    LayoutMismatch,
    TensorMap,
    Uninitialized,
    OutOfBounds,
    Setmaxnreg,
    NamedBarrier,
    ClusterLifetime,
    OrderDependentSum,
    DivergentAligned,
}

impl FindingKind {
    /// Worth knowing, but no mistake: does not fail a launch.
    pub fn is_note(self) -> bool {
        self == FindingKind::OrderDependentSum
    }

    /// The name used in reports and golden files.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::SharedRace => "shared-race",
            FindingKind::GlobalRace => "global-race",
            FindingKind::MissingProxyFence => "missing-proxy-fence",
            FindingKind::MbarrierMisuse => "mbarrier-misuse",
            FindingKind::Deadlock => "deadlock",
            FindingKind::Livelock => "livelock",
            FindingKind::StageReuse => "stage-reuse",
            FindingKind::WgmmaRegisters => "wgmma-registers",
            FindingKind::WgmmaOperand => "wgmma-operand",
            FindingKind::LayoutMismatch => "layout-mismatch",
            FindingKind::TensorMap => "tensor-map",
            FindingKind::Uninitialized => "uninitialized",
            FindingKind::OutOfBounds => "out-of-bounds",
            FindingKind::Setmaxnreg => "setmaxnreg",
            FindingKind::NamedBarrier => "named-barrier",
            FindingKind::ClusterLifetime => "cluster-lifetime",
            FindingKind::OrderDependentSum => "order-dependent-sum",
            FindingKind::DivergentAligned => "divergent-aligned",
        }
    }
}

/// One finding: what, where, and the other site it conflicts with.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub kind: FindingKind,
    pub kernel: String,
    pub message: String,
    /// The site that was executing, then the earlier site(s) involved.
    pub sites: Vec<SiteRef>,
}

impl Finding {
    /// The same kind at the same sites, whoever was there: reported once.
    pub fn is_like(&self, other: &Finding) -> bool {
        let places = |f: &Finding| f.sites.iter().map(|s| s.pc).collect::<Vec<_>>();
        self.kind == other.kind && places(self) == places(other)
    }
}

/// A site by PTX line and source position, with who was there.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteRef {
    /// pc in the program (u32::MAX if none).
    pub pc: u32,
    pub who: String,
    pub role: String,
}

/// Executes accesses and synchronises: a warp, or an asynchronous operation in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Agent(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proxy {
    Generic,
    /// TMA, bulk copies and wgmma operands.
    Async,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
    /// An atomic whose result depends on what was there.
    Atomic,
    /// An atomic that adds floats: the order of the additions shows in the result.
    Sum,
    /// A strong read (volatile, relaxed, acquire): does not conflict with atomics.
    StrongRead,
    /// A strong write, or an exchange.
    StrongWrite,
}

impl Kind {
    #[inline(always)]
    pub fn writes(self) -> bool {
        self.updates() || matches!(self, Kind::Write | Kind::StrongWrite)
    }

    /// Does it compute with what was there?
    #[inline(always)]
    pub fn updates(self) -> bool {
        matches!(self, Kind::Atomic | Kind::Sum)
    }

    #[inline(always)]
    pub fn is_strong(self) -> bool {
        self.updates() || matches!(self, Kind::StrongRead | Kind::StrongWrite)
    }
}

/// What lanes of a warp read or write with one instruction through the generic proxy.
pub struct WarpAccess<'a, A> {
    pub addresses: &'a [A; 32],
    pub mask: u32,
    /// Of each lane.
    pub bytes: u32,
    pub kind: Kind,
    /// Strong, and its scope ends at the CTA or the cluster.
    pub inside: bool,
    /// All lanes have a part in every address (ldmatrix, stmatrix).
    pub together: bool,
}

/// Objects through which one agent's work becomes visible to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sync {
    /// Named barrier `id` of CTA rank.
    Named {
        cta: u32,
        id: u32,
    },
    /// mbarrier at shared offset of CTA rank.
    Mbarrier {
        cta: u32,
        address: u32,
    },
    ClusterBarrier,
    /// Group `group` of a warp's copies (cp.async or bulk): their sources have been read, or all is done.
    CopyGroup {
        warp: u32,
        group: u32,
        bulk: bool,
        read: bool,
    },
    /// `bar.warp.sync` and other `.sync` warp operations.
    Warp {
        agent: u32,
    },
    /// A global or shared address used for acquire/release or atomics.
    Address {
        address: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fence {
    /// membar/fence at CTA, cluster, gpu, sys scope.
    Cta,
    Cluster,
    Gpu,
    ProxyAsync {
        global: bool,
        shared: bool,
    },
    ProxyTensormap {
        acquire: bool,
    },
    ProxyAlias,
    MbarrierInit,
}

/// Where something happens: pc and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    pub agent: Agent,
    pub pc: u32,
}

/// State of all checkers of one cluster.
pub struct Checker {
    pub kernel: String,
    pub sites: Arc<Vec<Site>>,
    pub files: Arc<Vec<(u32, String)>>,
    pub findings: Vec<Finding>,
    /// Findings are collected; the launch goes on.
    pub collect: bool,
    /// Global accesses, for the comparison with other clusters after the launch.
    pub log: GlobalLog,
    /// Where the shared memory of each CTA of the cluster lies.
    pub memory: Vec<*const u8>,
    /// Writes that are being done, and the bytes they overwrite.
    unsettled: Vec<hooks::Unsettled>,
    overwritten: Vec<u8>,
    hits: Vec<shadow::Hit>,
    agents: clock::Agents,
    /// Shadow of each CTA's shared memory.
    shared: Vec<shadow::Shadow>,
    /// Swizzle tags of each CTA's shared memory.
    layout: Vec<Vec<u8>>,
    /// Shadow of the global memory that this cluster has touched, unless it shares one with others.
    global: shadow::Shadow,
    /// What it shares with the launch's other clusters: there while the cluster runs, if the kernel communicates.
    pub between: Option<Box<between::Between>>,
    /// The numbers of its agents in that.
    pub numbering: between::Numbering,
    /// Which bytes of the device's memory hold a value.
    pub defined: Option<Arc<crate::memory::defined::Defined>>,
    objects: crate::hash::FastMap<Sync, order::Object>,
    registers: valid::Registers,
    lanes: lanes::Lanes,
    arrivals: arrivals::Arrivals,
    pub strict: strict::Strict,
    visits: Vec<lifetime::Visit>,
    /// Registers of wgmma.
    pub tensor: crate::tensor::registers::Tracking,
    /// Shared memory that operands of wgmma cover.
    pub operands: crate::tensor::operands::Operands,
}

// SAFETY: the raw pointer in `Shadow` points into its own boxed pages, the others into memory of the cluster and the device; a checker
// belongs to one cluster, which runs on one thread at a time.
unsafe impl Send for Checker {}

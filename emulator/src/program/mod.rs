//! The executable form of a kernel: a flat list of fixed-size micro-operations.
//!
//! Lowering (`lower`) turns one [`ast::Function`](crate::ptx::ast::Function) and what it calls into a [`Program`]:
//!
//! * **Registers are rows.** A row is 32 lanes of 32 bits (128 bytes, [`Row`](crate::exec::Row)). A register of up to
//!   32 bits is one row (value zero-extended from its declared width), a 64-bit register two consecutive rows seen as
//!   `[u64; 32]`, a 128-bit register four rows seen as `[u128; 32]`. Predicates are lane masks (`u32`) in a file of
//!   their own.
//! * **Immediates and special registers are rows too**, filled once when a warp starts ([`Init`]), so that a handler
//!   only ever sees rows. (`%clock`, `%globaltimer` and the like are instructions, not rows.)
//! * **An [`Op`] is one cache line** with a function pointer: the run loop calls `op.run` and acts on the returned
//!   [`Flow`](crate::exec::Flow). A family of instructions (ALU, memory, tensor, asynchronous, control) lives in one
//!   module that has `pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool, LowerError>`: `Ok(false)` means "not
//!   mine". An opcode that nobody takes is an error at module load.
//! * While lowering, row numbers are *virtual*. After all instructions are lowered, liveness compacts them. Therefore
//!   **row numbers may only be stored in `Op::dst`, `Op::dst2`, `Op::src` or in a list made by
//!   [`LowerCx::list`]**; anything else an operation needs goes to [`LowerCx::ext`]. Reads and writes are recorded by
//!   the accessor that resolves the operand (`src*`, `dst*`, `list_src`, `list_dst`), which is what liveness and the
//!   uninitialised-read check work from.

pub mod compact;
pub mod dispatch;
pub mod kernel;
pub mod load;
pub mod lower;
pub mod placement;
mod special;

use crate::exec::{Handler, LANES, Row};
use crate::ptx::ast::{LaunchBounds, Loc};
use std::any::Any;
use std::sync::{Arc, OnceLock};

/// A row (or the first of 2 or 4 rows) of the register file.
pub type RowId = u32;
/// "No row".
pub const NO_ROW: RowId = u32::MAX;

/// A predicate operand: index in the predicate file and whether it is negated. Index [`PRED_TRUE`] is constant true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pred {
    pub index: u16,
    pub negate: bool,
}

/// Slot 0 of the predicate file always holds all ones.
pub const PRED_TRUE: u16 = 0;
/// Slot 1 is a scratch slot: writes to `_` go there.
pub const PRED_SINK: u16 = 1;

/// Slot 2 is the carry of extended-precision arithmetic (`.cc`).
pub const PRED_CARRY: u16 = 2;

impl Pred {
    pub const TRUE: Pred = Pred {
        index: PRED_TRUE,
        negate: false,
    };
    pub const FALSE: Pred = Pred {
        index: PRED_TRUE,
        negate: true,
    };
}

/// What an operation does, for counters and the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    Integer,
    Float,
    Half,
    Double,
    Mufu,
    Convert,
    Move,
    Predicate,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    LoadLocal,
    StoreLocal,
    LoadParam,
    Atomic,
    WarpExchange,
    Branch,
    Barrier,
    Mbarrier,
    AsyncCopy,
    Tensor,
    Fence,
    Other,
}

/// One micro-operation.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Op {
    pub run: Handler,
    /// Immediate: address offset, branch target pc, shift amount, …
    pub imm: i64,
    pub dst: RowId,
    pub dst2: RowId,
    pub src: [RowId; 4],
    /// Index in [`Program::ext`] or [`Program::lists`], as the handler defines it.
    pub ext: u32,
    pub pdst: u16,
    pub pdst2: u16,
    pub psrc: Pred,
    /// The lanes of the fragment that execute: `@p` / `@!p`.
    pub guard: Pred,
    pub class: Class,
    /// Small per-handler flags (access size, vector length, …).
    pub flags: u8,
}

/// Rows that an operation reads and writes: (first row, rows), and predicates.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    pub reads: Vec<(RowId, u8)>,
    pub writes: Vec<(RowId, u8)>,
    pub pred_reads: Vec<u16>,
    pub pred_writes: Vec<u16>,
    /// The write does not define every lane/bit of the row (guarded, partial): the old value stays live.
    pub partial: bool,
    /// Rows that liveness must treat as read here although the operation itself reads nothing of them now, so that
    /// they do not count for the uninitialised-read check: operands that wgmma uses later, or only if scale-d is true.
    pub keeps: Vec<(RowId, u8)>,
    pub in_flight: InFlight,
}

/// What an operation does to registers that asynchronous tensor operations still use.
///
/// `wgmma.mma_async` reads and writes its registers until a `wait_group` says that its group is done, so they must
/// keep their rows until there: [`keep_in_flight`](crate::tensor::lifetime::keep_in_flight) adds them to the
/// `keeps` of the waits and runs before liveness.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InFlight {
    #[default]
    None,
    /// The rows of `reads`, `writes` and `keeps` stay in use.
    Start,
    /// What was started so far belongs to a group.
    Commit,
    /// All but the newest n groups are done.
    Wait(u32),
}

/// How a row is filled when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Init {
    Const32(u32),
    Const64(u64),
    Special(Special),
    /// Address of byte `n` of the kernel's parameters (64 bits).
    ParamAddress(u32),
}

/// Special registers that are constant during a warp's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NwarpId,
    SmId,
    NsmId,
    GridId,
    /// `%envreg1` and `%envreg2`: where drivers put the workspace of a cooperative grid.
    GridWorkspaceHigh,
    GridWorkspaceLow,
    ClusterIdX,
    ClusterIdY,
    ClusterIdZ,
    NclusterIdX,
    NclusterIdY,
    NclusterIdZ,
    ClusterCtaidX,
    ClusterCtaidY,
    ClusterCtaidZ,
    ClusterNctaidX,
    ClusterNctaidY,
    ClusterNctaidZ,
    ClusterCtaRank,
    ClusterNctaRank,
    IsExplicitCluster,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicSmemSize,
    TotalSmemSize,
    AggrSmemSize,
}

/// A lowered kernel: everything that is needed to run it.
pub struct Program {
    pub name: String,
    pub ops: Vec<Op>,
    /// Parallel to `ops`.
    pub effects: Vec<Effects>,
    /// Parallel to `ops`: where each came from.
    pub sites: Arc<Vec<Site>>,
    pub ext: Vec<Box<dyn Any + Send + Sync>>,
    pub lists: Vec<Vec<RowId>>,
    pub init: Vec<(RowId, Init)>,
    /// Rows and predicate slots a warp needs.
    pub rows: u32,
    pub preds: u16,
    /// 32-bit registers per thread as they would be without spills: most rows live at once, initial values excepted.
    pub registers: u32,
    /// Kernel parameters: name, offset, size, alignment.
    pub params: Vec<ParamInfo>,
    pub param_bytes: u32,
    /// Static shared memory: bytes, and where dynamic shared memory starts (aligned).
    pub shared_bytes: u32,
    pub shared_align: u32,
    /// Bytes of local memory per thread.
    pub local_bytes: u32,
    pub bounds: LaunchBounds,
    /// The kernel orders CTAs through global memory (atomics, volatile or acquire/release accesses, bulk reductions):
    /// its CTAs run interleaved on one host thread so that results do not depend on the number of host threads.
    pub communicates: bool,
    /// Of a kernel with `setmaxnreg`: the most that its `.inc` ask for, 0 if it has none.
    pub most_registers: Option<u32>,
    /// First op of the entry.
    pub entry: u32,
    /// The functions of this program, the entry first.
    pub functions: Vec<FunctionInfo>,
    /// Bytes of `local_bytes` that are static; the rest is the stack of recursive calls and that of alloca.
    pub local_static: u32,
    /// The last [`STACK`](crate::exec::STACK) bytes of `local_bytes` are the stack of alloca.
    pub has_stack: bool,
    /// `.file` table of the module: index to path, for reports.
    pub files: Arc<Vec<(u32, String)>>,
    /// Static shared symbols for reports: name, offset, bytes.
    pub shared_symbols: Vec<(String, u32, u64)>,
    /// How undefined values pass through each operation, once a checker has asked.
    pub passages: OnceLock<Arc<[crate::check::valid::Passage]>>,
}

impl Program {
    /// Where an operation stands, in words: `line 17 of the PTX (gemm.cu:40)`.
    pub fn site(&self, pc: u32) -> String {
        let Some(site) = self.sites.get(pc as usize) else {
            return "an unknown place".into();
        };
        match &site.loc {
            Some(loc) => format!(
                "line {} of the PTX ({}:{})",
                site.line,
                self.file(loc.file),
                loc.line
            ),
            None => format!("line {} of the PTX", site.line),
        }
    }

    /// Name of a source file of the module, without its folders.
    pub fn file(&self, index: u32) -> &str {
        let path = self.files.iter().find(|f| f.0 == index);
        path.map_or("?", |f| f.1.rsplit('/').next().unwrap_or(&f.1))
    }
}

/// A function lowered into a program.
#[derive(Debug, Clone)]
pub struct FunctionInfo {
    pub name: String,
    /// Its operations.
    pub start: u32,
    pub end: u32,
    /// Its rows and predicate slots after compaction: first those of 32 bits, from `wide` on those of 64, from `quad` on
    /// those of 128.
    pub rows: std::ops::Range<u32>,
    pub wide: u32,
    pub quad: u32,
    pub preds: std::ops::Range<u16>,
    /// It can call itself, directly or not: its rows and its local memory are saved at each call.
    pub recursive: bool,
    /// Row (64 bits) that holds the local address of its frame, if it is recursive.
    pub frame_row: RowId,
    /// Its part of local memory: offset (not recursive) and bytes.
    pub local_offset: u32,
    pub local_bytes: u32,
    /// Formal parameters and results.
    pub params: Vec<Formal>,
    pub returns: Vec<Formal>,
}

impl FunctionInfo {
    /// Copies the lanes of `mask` from one image of the function's rows to another.
    pub fn copy_lanes(&self, to: &mut [Row], from: &[Row], mask: u32) {
        let [wide, quad, end] =
            [self.wide, self.quad, self.rows.end].map(|r| (r - self.rows.start) as usize);
        for (range, rows) in [(0..wide, 1), (wide..quad, 2), (quad..end, 4)] {
            for first in range.step_by(rows) {
                for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
                    for word in lane * rows..(lane + 1) * rows {
                        let (row, word) = (first + word / LANES, word % LANES);
                        to[row].0[word] = from[row].0[word];
                    }
                }
            }
        }
    }
}

/// Where a formal parameter or result of a device function lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formal {
    pub bytes: u32,
    pub home: Home,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// Offset in the function's part of local memory.
    Local(u32),
    Row(RowId),
    Pred(u16),
}

#[derive(Debug, Clone)]
pub struct ParamInfo {
    pub name: String,
    pub offset: u32,
    pub bytes: u32,
    pub align: u32,
}

/// Where an operation stands: line of the PTX text and source position with its inline stack.
#[derive(Debug, Clone)]
pub struct Site {
    pub line: u32,
    pub loc: Option<Arc<Loc>>,
    /// The opcode as written, for reports and counters.
    pub opcode: Arc<str>,
}

/// Why a module cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerError {
    pub line: u32,
    pub what: String,
}

impl std::fmt::Display for LowerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for LowerError {}

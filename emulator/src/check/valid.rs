//! Uninitialised values: a validity mask per register row, per byte of shared memory and of each thread's local memory; bytes of device
//! memory: [`defined`](crate::memory::defined).
//!
//! Copying an undefined value is no mistake; acting on it is. So validity travels with the value and a finding is made
//! where it decides something: a guard or branch, an address, a store to global memory, an operand of the tensor core
//! in shared memory. Validity is kept per lane and register (not per bit): operations that combine bit fields
//! (`and`, `or`, `prmt`, `selp`, packing moves, shuffles …) give a valid result when any source is valid, and a loaded register is
//! valid when any byte of it is. This may miss an undefined half of a register, and never reports a defined one.
//!
//! An undefined value of global memory may be copied, through registers and shared memory: programs transpose and gather what is only in part
//! filled in. What was only moved counts as defined where it is stored; what was computed from it does not.
//!
//! Matrix instructions move values between lanes; their handlers work out the validity of each result
//! ([`Checker::define`]): ldmatrix, stmatrix and movmatrix element by element, mma.sync and wgmma (whose A may be in registers) by
//! rows of A and columns of B.

use super::{At, Checker, FindingKind, Kind, SiteRef, WarpAccess};
use crate::program::{Class, Effects, Init, NO_ROW, Op, Program};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Result valid where all sources are.
    All,
    /// Result valid where any source is.
    Any,
    /// Result always valid (asynchronous results, shuffles, atomics, calls).
    Valid,
    /// Result as valid as what was loaded.
    Loaded,
    /// The handler says so for each register.
    Each,
}

/// How validity passes through an operation.
#[derive(Debug, Clone, Copy)]
pub struct Passage {
    rule: Rule,
    /// The result is the source, or a part of it.
    moves: bool,
    /// The first register read is an address, in these lanes.
    address: bool,
    lanes: u32,
    /// A store of so many registers, the last that it reads.
    stored: usize,
}

/// Validity of the registers of all warps of a cluster.
pub struct Registers {
    /// Per warp: lane mask per row.
    rows: Vec<Vec<u32>>,
    preds: Vec<Vec<u32>>,
    passages: Arc<[Passage]>,
    /// Validity of the sources of the operation under way (stores: of the data).
    sources: u32,
    /// Of a store whose data are not all valid: the validity of each register.
    stored: Vec<u32>,
    /// Bytes per lane of what the operation under way has loaded, and those of each lane that are undefined.
    loaded: u32,
    undefined: [u32; 32],
    /// What the handler said of each register it wrote.
    each: Vec<u32>,
    /// Of each warp: the lanes in which a byte of local memory is defined. Empty until it is used.
    local: Vec<Vec<u32>>,
    /// Of each warp: the lanes in which a register is an undefined value of global memory, moved at the most. Empty until there is one.
    copied: Vec<Vec<u32>>,
    /// The same of the sources of the operation under way, if it moves; and whether it is a load of such values.
    moved: u32,
    loads_copied: bool,
    /// Of each warp: where it has read an undefined value last, and from where.
    last: Vec<Option<(u32, String)>>,
}

impl Registers {
    pub fn new(program: &Program, warps: usize) -> Self {
        let mut rows = vec![0u32; program.rows as usize + 8];
        for (row, init) in &program.init {
            let n = if matches!(init, Init::Const64(_)) {
                2
            } else {
                1
            };
            for r in *row..*row + n {
                if let Some(v) = rows.get_mut(r as usize) {
                    *v = u32::MAX;
                }
            }
        }
        let mut preds = vec![0u32; usize::from(program.preds).max(2)];
        preds[0] = u32::MAX;
        preds[1] = u32::MAX;
        let passages = program.passages.get_or_init(|| {
            let ops = program.sites.iter().zip(&program.ops);
            ops.map(|(s, op)| passage(&s.opcode, op)).collect()
        });
        Self {
            rows: vec![rows; warps],
            preds: vec![preds; warps],
            passages: passages.clone(),
            sources: u32::MAX,
            stored: vec![],
            loaded: 0,
            undefined: [0; 32],
            each: vec![],
            local: vec![vec![]; warps],
            copied: vec![vec![]; warps],
            moved: 0,
            loads_copied: false,
            last: vec![None; warps],
        }
    }
}

fn passage(opcode: &str, op: &Op) -> Passage {
    // Lanes hold addresses of other lanes' rows; without .x4 only the first lanes'.
    let matrix = opcode.starts_with("ldmatrix") || opcode.starts_with("stmatrix");
    let has = |name: &str| opcode.split('.').any(|p| p == name);
    let lanes = match () {
        () if matrix && has("x1") => 0xff,
        () if matrix && has("x2") => 0xffff,
        () => u32::MAX,
    };
    let plain_store = opcode.starts_with("st.");
    let (rule, moves) = rule(opcode, op.class);
    Passage {
        rule,
        moves,
        address: op.src[0] != NO_ROW,
        lanes,
        stored: if plain_store {
            crate::exec::memory::access::elements(op)
        } else {
            0
        },
    }
}

/// The rule of an operation, and whether its result is its source or a part of it.
fn rule(opcode: &str, class: Class) -> (Rule, bool) {
    let has = |name: &str| opcode.split('.').any(|p| p == name);
    let name = opcode.split('.').next().unwrap_or("");
    let by_class = match class {
        _ if ["ldmatrix", "stmatrix", "movmatrix"].contains(&name) => Some(Rule::Each),
        Class::LoadShared => Some(Rule::Loaded),
        Class::LoadGlobal | Class::LoadLocal if name == "ld" => Some(Rule::Loaded),
        Class::Tensor if opcode.starts_with("wgmma.mma_async") => Some(Rule::Each),
        // m8n8k4 of f16 has fragments of its own.
        Class::Tensor if name == "mma" && (has("f64") || !has("m8n8k4")) => Some(Rule::Each),
        Class::LoadGlobal
        | Class::LoadLocal
        | Class::LoadParam
        | Class::Atomic
        | Class::WarpExchange
        | Class::Tensor
        | Class::AsyncCopy
        | Class::Mbarrier
        | Class::Barrier
        | Class::Branch
        | Class::Other => Some(Rule::Valid),
        _ => None,
    };
    if let Some(rule) = by_class {
        return (rule, false);
    }
    match name {
        "mov" | "selp" | "slct" | "prmt" | "and" | "or" | "lop3" | "bfi" | "shl" | "shr"
        | "shf" | "cvt" => (Rule::Any, true),
        "bfe" => (Rule::All, true),
        // A product with zero or a shift by the width defines the result whatever the other operand is.
        "xor" | "bmsk" | "szext" | "min" | "max" | "mul" | "mad" => (Rule::Any, false),
        "call" | "ret" | "ld" | "ldu" => (Rule::Valid, false),
        _ => (Rule::All, false),
    }
}

impl Checker {
    /// Before an operation: guards, addresses and stored values must be defined.
    #[inline]
    pub fn before(
        &mut self,
        at: At,
        effects: &Effects,
        class: Class,
        fragment_mask: u32,
        mask: u32,
    ) {
        if mask != 0
            && let Some(v) = self.tensor.touch(at.agent.0, effects)
        {
            crate::tensor::queue::report_violation(self, at, v);
        }
        let w = at.agent.0 as usize;
        if w >= self.registers.rows.len() {
            return;
        }
        // The guard is among the predicates read; a guarded or branching operation acts on it.
        if effects.partial && !effects.pred_reads.is_empty() {
            let guard = effects.pred_reads[effects.pred_reads.len() - 1];
            let bad = !self.registers.preds[w][guard as usize] & fragment_mask;
            if bad != 0 {
                self.uninitialised(at, bad, "the guard predicate");
                self.registers.preds[w][guard as usize] = u32::MAX;
            }
        }
        let passage = self.registers.passages[at.pc as usize];
        let rows = &self.registers.rows[w];
        let of = |(row, n): (u32, u8)| {
            (row..row + u32::from(n)).fold(u32::MAX, |v, r| v & rows[r as usize])
        };
        match class {
            Class::LoadGlobal
            | Class::LoadShared
            | Class::LoadLocal
            | Class::StoreGlobal
            | Class::StoreShared
            | Class::StoreLocal
            | Class::Atomic => {
                let first = effects.reads.first().filter(|_| passage.address);
                let address = first.map_or(u32::MAX, |r| of(*r));
                let skipped = usize::from(passage.address);
                let data = &effects.reads[skipped.min(effects.reads.len())..];
                let valid = data.iter().fold(u32::MAX, |v, r| v & of(*r));
                let r = &mut self.registers;
                r.stored.clear();
                r.sources = match passage.rule {
                    Rule::Valid | Rule::Each | Rule::Loaded => u32::MAX,
                    _ => valid,
                };
                if passage.stored > 0 && valid & mask != mask {
                    let rows = &r.rows[w];
                    let from = data.len().saturating_sub(passage.stored);
                    let copied = &r.copied[w];
                    let fine = |row: u32| {
                        rows[row as usize] | copied.get(row as usize).copied().unwrap_or(0)
                    };
                    r.stored.extend(data[from..].iter().map(|&(row, n)| {
                        (row..row + u32::from(n)).fold(u32::MAX, |v, r| v & fine(r))
                    }));
                }
                let wanted = mask & passage.lanes;
                if address & wanted != wanted {
                    self.uninitialised(at, wanted & !address, "the address");
                }
            }
            _ => {
                let preds = effects
                    .pred_reads
                    .iter()
                    .fold(u32::MAX, |v, p| v & self.registers.preds[w][*p as usize]);
                let fold = || effects.reads.iter().map(|r| of(*r));
                self.registers.sources = match passage.rule {
                    Rule::All => fold().fold(u32::MAX, |v, r| v & r) & preds,
                    Rule::Any if !effects.reads.is_empty() => fold().fold(0, |v, r| v | r),
                    _ => u32::MAX,
                };
                self.registers.stored.clear();
                let r = &mut self.registers;
                if !r.copied[w].is_empty() {
                    let rows = effects.reads.iter();
                    let rows = rows.flat_map(|&(row, n)| row..row + u32::from(n));
                    r.moved = match passage.moves {
                        true => rows.fold(0, |m, row| m | r.copied[w][row as usize]),
                        false => 0,
                    };
                }
            }
        }
        if self.registers.loaded != 0 {
            self.registers.loads_copied = false;
            self.registers.loaded = 0;
            self.registers.undefined = [0; 32];
        }
        self.registers.each.clear();
    }

    /// A store goes to global memory: its values must be defined.
    pub fn stored_to_global(&mut self, at: At, lanes: u32) {
        let valid = self.registers.stored.iter().fold(u32::MAX, |v, s| v & s);
        if lanes & !valid != 0 {
            let what = "the value stored to global memory";
            self.uninitialised(at, lanes & !valid, what);
        }
    }

    /// Lanes in which a register (or several rows of one) of a warp is defined.
    pub fn defined(&self, agent: super::Agent, row: u32, rows: u32) -> u32 {
        let Some(all) = self.registers.rows.get(agent.0 as usize) else {
            return u32::MAX;
        };
        (row..row + rows).fold(u32::MAX, |v, r| v & all[r as usize])
    }

    /// The handler says which lanes of the next register in the order of its results are defined.
    pub fn define(&mut self, lanes: u32) {
        self.registers.each.push(lanes);
    }

    /// Bytes that lane `lane` of the operation under way has loaded from shared memory and that are undefined.
    pub fn undefined_bytes(&self, lane: usize) -> u32 {
        self.registers.undefined[lane]
    }

    /// Undefined values have been stored to shared memory.
    pub fn poison(&mut self, cta: u32, address: u32, bytes: u32) {
        self.shared[cta as usize].poison(u64::from(address), u64::from(bytes));
    }

    /// After an operation that went through: its results are as valid as its sources.
    #[inline]
    pub fn after(&mut self, at: At, effects: &Effects, mask: u32) {
        let w = at.agent.0 as usize;
        if w >= self.registers.rows.len() {
            return;
        }
        let r = &mut self.registers;
        let rule = r.passages[at.pc as usize].rule;
        let valid = match rule {
            Rule::All | Rule::Any => r.sources,
            _ => u32::MAX,
        };
        let registers = effects.writes.len() as u32;
        for (i, (row, n)) in effects.writes.iter().enumerate() {
            let valid = match rule {
                Rule::Each => r.each.get(i).copied().unwrap_or(u32::MAX),
                Rule::Loaded if r.loaded != 0 => {
                    let bytes = (r.loaded / registers).clamp(1, 32);
                    let all = u32::MAX >> (32 - bytes);
                    let part = |lane: usize| r.undefined[lane] >> (i as u32 * bytes) & all;
                    (0..32).fold(0, |v, lane| v | u32::from(part(lane) != all) << lane)
                }
                _ => valid,
            };
            let copied = match rule {
                Rule::Loaded if r.loads_copied => !valid,
                Rule::All | Rule::Any => r.moved & !valid,
                _ => 0,
            };
            for i in *row..*row + u32::from(*n) {
                let v = &mut r.rows[w][i as usize];
                *v = (*v & !mask) | (valid & mask);
                if let Some(c) = r.copied[w].get_mut(i as usize) {
                    *c = (*c & !mask) | (copied & mask);
                }
            }
        }
        for p in &effects.pred_writes {
            let v = &mut r.preds[w][*p as usize];
            *v = (*v & !mask) | (valid & mask);
        }
    }

    fn uninitialised(&mut self, at: At, lanes: u32, what: &str) {
        let lane = lanes.trailing_zeros();
        let message = format!(
            "{what} was never initialised (lane {lane}, {} lanes in all)",
            lanes.count_ones()
        );
        let last = self.registers.last.get(at.agent.0 as usize);
        let read = last.and_then(Option::as_ref).map(|(pc, from)| SiteRef {
            pc: *pc,
            who: self.name(at.agent),
            role: format!("last read of what nothing has written, {from}"),
        });
        self.report(
            FindingKind::Uninitialized,
            at,
            message,
            read.into_iter().collect(),
        );
    }

    /// A warp has read shared memory, not all of it defined, or writes it.
    pub(super) fn shared_validity(&mut self, at: At, cta: u32, access: &WarpAccess<u32>) {
        let (addresses, bytes) = (access.addresses, access.bytes);
        if at.agent.0 as usize >= self.registers.rows.len() {
            return;
        }
        let shadow = &mut self.shared[cta as usize];
        let r = &mut self.registers;
        let lanes = (0..32).filter(|l| access.mask >> l & 1 == 1);
        if !access.kind.writes() {
            r.loaded = bytes;
            for lane in lanes {
                let (a, n) = (u64::from(addresses[lane]), u64::from(bytes));
                r.undefined[lane] = shadow.undefined_bytes(a, n);
            }
            self.undefined_read(at, &format!("shared memory of CTA {cta}"));
        } else if !r.stored.is_empty() {
            let size = bytes / r.stored.len() as u32;
            for lane in lanes {
                for (i, valid) in (0..).zip(&r.stored) {
                    if valid >> lane & 1 == 0 {
                        let a = u64::from(addresses[lane] + i * size);
                        shadow.poison(a, u64::from(size));
                    }
                }
            }
        } else {
            for lane in lanes.filter(|l| r.sources >> l & 1 == 0) {
                shadow.poison(u64::from(addresses[lane]), u64::from(bytes));
            }
        }
    }

    /// Global memory is written, or updated: then something has to be there.
    pub(super) fn defines(&mut self, at: At, address: u64, bytes: u64, kind: Kind) {
        let Some(defined) = &self.defined else {
            return;
        };
        let lacks = kind.updates() && defined.lacks(address, bytes);
        defined.define_anywhere(address, bytes);
        if lacks {
            let message = format!(
                "{} updates global address {address:#x}, which nothing has written",
                self.name(at.agent)
            );
            self.report(FindingKind::Uninitialized, at, message, vec![]);
        }
    }

    /// A warp has read global memory, not all of it defined.
    pub(super) fn global_validity(&mut self, at: At, access: &WarpAccess<u64>) {
        let r = &mut self.registers;
        let w = at.agent.0 as usize;
        let (Some(defined), Some(rows)) = (&self.defined, r.rows.get(w)) else {
            return;
        };
        r.loaded = access.bytes;
        r.loads_copied = true;
        if r.copied[w].is_empty() {
            r.copied[w] = vec![0; rows.len()];
        }
        for lane in (0..32).filter(|l| access.mask >> l & 1 == 1) {
            r.undefined[lane] = defined.undefined(access.addresses[lane], access.bytes.into());
        }
        self.undefined_read(at, "global memory");
    }

    /// Remembers an operation that reads undefined bytes, for reports.
    fn undefined_read(&mut self, at: At, from: &str) {
        let r = &mut self.registers;
        let lane = (0..32).find(|&l| r.undefined[l] != 0);
        if let (Some(lane), Some(last)) = (lane, r.last.get_mut(at.agent.0 as usize)) {
            *last = Some((at.pc, format!("{from}, lane {lane}")));
        }
    }

    /// A warp reads or writes local memory; addresses are offsets in each thread's own.
    pub fn local_access(
        &mut self,
        at: At,
        addresses: &[u64; 32],
        lanes: u32,
        bytes: u32,
        writes: bool,
    ) {
        let w = at.agent.0 as usize;
        let r = &mut self.registers;
        let Some(local) = r.local.get_mut(w) else {
            return;
        };
        let lanes = (0..32usize).filter(|l| lanes >> l & 1 == 1);
        let place = |lane: usize, byte: u32| (addresses[lane] as u32 + byte) as usize;
        let size = bytes / (r.stored.len() as u32).max(1);
        let mut undefined = false;
        for lane in lanes {
            let end = place(lane, bytes);
            if local.len() < end {
                local.resize(end, 0);
            }
            let mut lacks = 0;
            for byte in 0..bytes {
                let defined = &mut local[place(lane, byte)];
                if writes {
                    let stored = r.stored.get((byte / size.max(1)) as usize);
                    let valid = stored.copied().unwrap_or(r.sources);
                    *defined = *defined & !(1 << lane) | valid & 1 << lane;
                } else {
                    lacks |= (!*defined >> lane & 1) << byte;
                }
            }
            if lacks != 0 {
                undefined = true;
                r.loaded = bytes;
                r.undefined[lane] = lacks;
            }
        }
        if undefined {
            self.undefined_read(at, "local memory");
        }
    }

    /// A call has put a value into a lane's local memory.
    pub fn local_defined(&mut self, at: At, lane: usize, from: usize, bytes: usize) {
        if let Some(local) = self.registers.local.get_mut(at.agent.0 as usize) {
            local.resize(local.len().max(from + bytes), 0);
            local[from..from + bytes]
                .iter_mut()
                .for_each(|d| *d |= 1 << lane);
        }
    }

    /// The tensor core and bulk stores act on what they read, which has to be defined.
    pub fn must_be_defined(&mut self, at: At, cta: u32, address: u32, bytes: u32) {
        let shadow = &mut self.shared[cta as usize];
        if let Some(a) = shadow.first_uninitialised(u64::from(address), u64::from(bytes)) {
            self.undefined_operand(at, cta, a);
        }
    }

    /// The tensor core or a bulk store reads an address that nobody has written.
    pub(super) fn undefined_operand(&mut self, at: At, cta: u32, address: u64) {
        let message = format!(
            "{} reads shared address {address:#x} of CTA {cta}, which was never written",
            self.name(at.agent)
        );
        self.report(FindingKind::Uninitialized, at, message, vec![]);
    }
}

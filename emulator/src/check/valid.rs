//! Uninitialised values: a validity mask per register row and per byte of shared memory.
//!
//! Copying an undefined value is no mistake; acting on it is. So validity travels with the value and a finding is made
//! where it decides something: a guard or branch, an address, a store to global memory, an operand of the tensor core
//! in shared memory. Validity is kept per lane and register (not per bit): operations that combine bit fields
//! (`and`, `or`, `prmt`, `selp`, packing moves, shuffles …) give a valid result when any source is valid. This may miss
//! an undefined half of a register, and never reports a defined one.

use super::{At, Checker, FindingKind, Kind};
use crate::program::{Class, Effects, Init, Program};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Result valid where all sources are.
    All,
    /// Result valid where any source is.
    Any,
    /// Result always valid (asynchronous results, tensor core, shuffles, atomics, calls).
    Valid,
    /// Result as valid as what was loaded.
    Loaded,
}

/// Validity of the registers of all warps of a cluster.
pub struct Registers {
    /// Per warp: lane mask per row.
    rows: Vec<Vec<u32>>,
    preds: Vec<Vec<u32>>,
    rules: Vec<Rule>,
    /// Validity of the sources of the operation under way (stores: of the data).
    sources: u32,
    /// Validity of what the operation under way has loaded, lane by lane.
    loaded: u32,
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
        let rules = program
            .sites
            .iter()
            .zip(&program.ops)
            .map(|(s, op)| rule(&s.opcode, op.class))
            .collect();
        Self {
            rows: vec![rows; warps],
            preds: vec![preds; warps],
            rules,
            sources: u32::MAX,
            loaded: u32::MAX,
        }
    }
}

fn rule(opcode: &str, class: Class) -> Rule {
    // Lanes hold addresses of other lanes' rows: per-lane validity does not carry over.
    if opcode.starts_with("ldmatrix") || opcode.starts_with("stmatrix") {
        return Rule::Valid;
    }
    match class {
        Class::LoadShared => return Rule::Loaded,
        Class::LoadGlobal
        | Class::LoadLocal
        | Class::LoadParam
        | Class::Atomic
        | Class::WarpExchange => return Rule::Valid,
        Class::Tensor
        | Class::AsyncCopy
        | Class::Mbarrier
        | Class::Barrier
        | Class::Branch
        | Class::Other => return Rule::Valid,
        _ => {}
    }
    let mut parts = opcode.split('.');
    match parts.next().unwrap_or("") {
        "and" | "or" | "xor" | "lop3" | "prmt" | "bfi" | "selp" | "slct" | "shf" | "bmsk"
        | "szext" | "mov" | "cvt" | "shl" | "shr" | "min" | "max" | "mul" | "mad" => {
            // A product with zero or a shift by the width defines the result whatever the other operand is.
            Rule::Any
        }
        "call" | "ret" | "ld" | "ldu" => Rule::Valid,
        _ => Rule::All,
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
        let mut preds = u32::MAX;
        for p in &effects.pred_reads {
            preds &= self.registers.preds[w][*p as usize];
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
        let rows = &self.registers.rows[w];
        let of = |(row, n): (u32, u8)| {
            (row..row + u32::from(n)).fold(u32::MAX, |v, r| v & rows[r as usize])
        };
        let all = effects.reads.iter().fold(u32::MAX, |v, r| v & of(*r));
        let any = if effects.reads.is_empty() {
            u32::MAX
        } else {
            effects.reads.iter().fold(0, |v, r| v | of(*r))
        };
        let address = effects.reads.first().map_or(u32::MAX, |r| of(*r));
        let data = effects
            .reads
            .iter()
            .skip(1)
            .fold(u32::MAX, |v, r| v & of(*r));
        match class {
            Class::LoadGlobal
            | Class::LoadShared
            | Class::LoadLocal
            | Class::StoreShared
            | Class::StoreLocal
            | Class::Atomic => {
                if address & mask != mask {
                    self.uninitialised(at, mask & !address, "the address");
                }
                let valid = self.registers.rules.get(at.pc as usize) == Some(&Rule::Valid);
                self.registers.sources = if valid { u32::MAX } else { data };
            }
            Class::StoreGlobal => {
                if all & mask != mask {
                    let what = if address & mask != mask {
                        "the address"
                    } else {
                        "the value stored to global memory"
                    };
                    self.uninitialised(at, mask & !all, what);
                }
                self.registers.sources = u32::MAX;
            }
            _ => {
                self.registers.sources = match self.registers.rules.get(at.pc as usize) {
                    Some(Rule::All) => all & preds,
                    Some(Rule::Any) => any,
                    _ => u32::MAX,
                };
            }
        }
        self.registers.loaded = u32::MAX;
    }

    /// After an operation that went through: its results are as valid as its sources.
    #[inline]
    pub fn after(&mut self, at: At, effects: &Effects, mask: u32) {
        let w = at.agent.0 as usize;
        if w >= self.registers.rows.len() {
            return;
        }
        let r = &mut self.registers;
        let valid = match r.rules.get(at.pc as usize) {
            Some(Rule::Loaded) => r.loaded,
            Some(Rule::Valid) | None => u32::MAX,
            _ => r.sources,
        };
        for (row, n) in &effects.writes {
            for i in *row..*row + u32::from(*n) {
                let v = &mut r.rows[w][i as usize];
                *v = (*v & !mask) | (valid & mask);
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
        self.report(FindingKind::Uninitialized, at, message, vec![]);
    }

    /// A warp has read shared memory, not all of it defined, or writes it.
    pub(super) fn shared_validity(
        &mut self,
        at: At,
        cta: u32,
        addresses: &[u32; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        if at.agent.0 as usize >= self.registers.rows.len() {
            return;
        }
        let shadow = &mut self.shared[cta as usize];
        let bytes = u64::from(bytes);
        if kind == Kind::Write {
            let bad = mask & !self.registers.sources;
            for lane in (0..32).filter(|l| bad >> l & 1 == 1) {
                shadow.poison(u64::from(addresses[lane]), bytes);
            }
            return;
        }
        for lane in (0..32).filter(|l| mask >> l & 1 == 1) {
            let a = u64::from(addresses[lane]);
            if shadow.first_uninitialised(a, bytes).is_some() {
                self.registers.loaded &= !(1 << lane);
            }
        }
    }

    /// The tensor core and bulk stores act on what they read, and nobody has written this address.
    pub(super) fn must_be_valid(&mut self, at: At, cta: u32, address: u64) {
        let message = format!(
            "{} reads shared address {address:#x} of CTA {cta}, which was never written",
            self.name(at.agent)
        );
        self.report(FindingKind::Uninitialized, at, message, vec![]);
    }
}

//! Checks on the registers of wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", register rules).
//!
//! What is modelled, per warp and register row:
//!
//! * **pending**: the row is an accumulator or A fragment of an operation that no `wait_group` of this warp has covered yet. Any
//!   other instruction that reads or writes it is reported.
//! * **dirty**: the row was accessed by an ordinary instruction since the last `wgmma.fence` of this warp (or there was
//!   no fence yet). A wgmma that uses it is reported; of an A fragment only writes count. An accumulator that is
//!   overwritten (scale-d is the literal 0) is exempt, because its row may have belonged to another register before; from then on
//!   the row is clean.
//! * consecutive operations on the same accumulators need no fence between them if they have the same shape; a
//!   different shape is reported.
//!
//! Not modelled: single lanes (a guarded access counts for the row). It reports nothing that the ISA allows.

use super::wgmma::Mma;
use crate::program::{Effects, InFlight};

/// How a row takes part in an operation in flight.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// Index + 1 of the newest operation that uses the row; 0: none.
    operation: u64,
    pc: u32,
    /// N of the operation if the row is an accumulator, 0 for an A fragment.
    n: u16,
    /// Number of fences executed before it.
    fences: u32,
}

#[derive(Debug, Default)]
struct Warp {
    uses: Vec<Use>,
    /// Rows accessed since the last fence: bit 0 read, bit 1 written.
    dirty: Vec<u8>,
    dirty_rows: Vec<u32>,
    fences: u32,
    /// Operations below this index are done and were waited for.
    waited: u64,
    issued: u64,
}

/// The state of all warps of a cluster, by agent number.
#[derive(Debug, Default)]
pub struct Tracking {
    warps: Vec<Warp>,
}

/// A violation: text, and the pc of the operation it concerns besides the one being executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub message: String,
    pub other: Option<u32>,
}

const READ: u8 = 1;
const WRITTEN: u8 = 2;

fn at<T: Clone + Default>(v: &mut Vec<T>, i: u32) -> &mut T {
    let i = i as usize;
    if i >= v.len() {
        v.resize(i + 1, T::default());
    }
    &mut v[i]
}

impl Tracking {
    fn warp(&mut self, agent: u32) -> &mut Warp {
        let i = agent as usize;
        if i >= self.warps.len() {
            self.warps.resize_with(i + 1, Warp::default);
        }
        &mut self.warps[i]
    }

    /// Before any operation of a warp.
    #[inline]
    pub fn touch(&mut self, agent: u32, effects: &Effects) -> Option<Violation> {
        let warp = self.warps.get_mut(agent as usize)?;
        if warp.fences == 0 || effects.in_flight != InFlight::None {
            return None;
        }
        warp.touch(effects)
    }

    /// wgmma.fence.
    pub fn fence(&mut self, agent: u32) {
        let w = self.warp(agent);
        w.fences += 1;
        while let Some(r) = w.dirty_rows.pop() {
            w.dirty[r as usize] = 0;
        }
    }

    /// A wait_group has covered all operations below `index`.
    pub fn waited(&mut self, agent: u32, index: u64) {
        let w = self.warp(agent);
        w.waited = w.waited.max(index);
    }

    /// The warp issues operation `index` of its warpgroup at `pc`.
    pub fn issue(
        &mut self,
        agent: u32,
        index: u64,
        pc: u32,
        mma: &Mma,
        rows: &[u32],
    ) -> Option<Violation> {
        let w = self.warp(agent);
        w.issued = index + 1;
        let mut violation = None;
        if w.fences == 0 {
            violation = Some(Violation {
                message: "no wgmma.fence before the first wgmma.mma_async".into(),
                other: None,
            });
        }
        let planes = mma.planes();
        for (i, &row) in rows.iter().enumerate() {
            let accumulator = i < planes;
            let used = *at(&mut w.uses, row);
            let dirty = *at(&mut w.dirty, row);
            if violation.is_none() {
                violation = w.conflict(mma, used, dirty, i, planes);
            }
            if accumulator && mma.overwrites {
                w.dirty[row as usize] = 0;
            }
            w.uses[row as usize] = Use {
                operation: index + 1,
                pc,
                n: if accumulator { mma.n as u16 } else { 0 },
                fences: w.fences,
            };
        }
        violation
    }
}

impl Warp {
    fn touch(&mut self, effects: &Effects) -> Option<Violation> {
        let mut violation = None;
        let pending = self.waited < self.issued;
        for (list, how) in [(&effects.reads, READ), (&effects.writes, WRITTEN)] {
            for &(first, n) in list {
                for row in first..first + u32::from(n) {
                    if pending {
                        let used = *at(&mut self.uses, row);
                        if used.operation > self.waited && violation.is_none() {
                            violation = Some(early(used, how));
                        }
                    }
                    let d = at(&mut self.dirty, row);
                    if *d == 0 {
                        self.dirty_rows.push(row);
                    }
                    *d |= how;
                }
            }
        }
        violation
    }

    fn conflict(
        &self,
        mma: &Mma,
        used: Use,
        dirty: u8,
        i: usize,
        planes: usize,
    ) -> Option<Violation> {
        let accumulator = i < planes;
        // Made only for a report: this runs for every register of every operation.
        let name = || {
            if accumulator {
                format!("accumulator register {i}")
            } else {
                format!("register {} of A", i - planes)
            }
        };
        let counts = if accumulator { READ | WRITTEN } else { WRITTEN };
        if dirty & counts != 0 && !(accumulator && mma.overwrites) {
            let how = if dirty & WRITTEN != 0 {
                "written"
            } else {
                "read"
            };
            return Some(Violation {
                message: format!(
                    "{} was {how} by an ordinary instruction and no wgmma.fence lies between",
                    name()
                ),
                other: None,
            });
        }
        if used.operation <= self.waited {
            return None;
        }
        let message = match (accumulator, used.n) {
            (true, 0) => format!("{} is still an A fragment of a wgmma in flight", name()),
            (true, n) if usize::from(n) != mma.n && used.fences == self.fences => format!(
                "{} belongs to a wgmma of another shape (n {n}) in flight and no wgmma.fence lies between",
                name()
            ),
            (false, n) if n != 0 => {
                format!("{} is an accumulator of a wgmma in flight", name())
            }
            _ => return None,
        };
        Some(Violation {
            message,
            other: Some(used.pc),
        })
    }
}

fn early(used: Use, how: u8) -> Violation {
    let what = if used.n == 0 {
        "register of an A fragment"
    } else {
        "accumulator register"
    };
    let did = if how == READ { "reads" } else { "modifies" };
    Violation {
        message: format!("{did} an {what} of a wgmma that no wgmma.wait_group has waited for")
            .replace("an register", "a register"),
        other: Some(used.pc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::format::Format;
    use crate::tensor::wgmma::Output;

    fn mma(n: usize, a_in_registers: bool) -> Mma {
        Mma {
            n,
            depth: 16,
            a: Format::Bf16,
            b: Format::Bf16,
            d: Output::F32,
            a_in_registers,
            a_mn_major: false,
            b_mn_major: false,
            negate_a: false,
            negate_b: false,
            saturate: false,
            overwrites: false,
            sparse: None,
        }
    }

    fn access(reads: &[u32], writes: &[u32]) -> Effects {
        Effects {
            reads: reads.iter().map(|r| (*r, 1)).collect(),
            writes: writes.iter().map(|r| (*r, 1)).collect(),
            ..Effects::default()
        }
    }

    #[test]
    fn a_fence_is_needed_first_and_after_accesses() {
        let mut t = Tracking::default();
        let m = mma(8, false);
        let rows = [4, 5, 6, 7];
        assert!(
            t.issue(0, 0, 9, &m, &rows)
                .unwrap()
                .message
                .contains("first")
        );
        t.fence(0);
        t.waited(0, 1);
        assert_eq!(t.touch(0, &access(&[1], &[2])), None);
        assert_eq!(t.issue(0, 1, 9, &m, &rows), None);
        t.waited(0, 2);
        assert_eq!(t.touch(0, &access(&[], &[5])), None);
        let v = t.issue(0, 2, 9, &m, &rows).unwrap();
        assert!(v.message.contains("register 1 was written"), "{v:?}");
        t.waited(0, 3);
        t.fence(0);
        assert_eq!(t.issue(0, 3, 9, &m, &rows), None);
    }

    #[test]
    fn an_overwritten_accumulator_is_clean_for_what_accumulates_on_it() {
        let mut t = Tracking::default();
        let first = Mma {
            overwrites: true,
            ..mma(8, false)
        };
        let rows = [4, 5, 6, 7];
        t.fence(0);
        assert_eq!(t.touch(0, &access(&[], &rows)), None);
        assert_eq!(t.issue(0, 0, 9, &first, &rows), None);
        assert_eq!(t.issue(0, 1, 10, &mma(8, false), &rows), None);
    }

    #[test]
    fn touching_pending_rows() {
        let mut t = Tracking::default();
        let m = mma(8, true);
        let rows = [4, 5, 6, 7, 10, 11, 12, 13];
        t.fence(0);
        assert_eq!(t.issue(0, 0, 9, &m, &rows), None);
        let v = t.touch(0, &access(&[7], &[])).unwrap();
        assert_eq!(v.other, Some(9));
        assert!(v.message.starts_with("reads an accumulator"));
        let v = t.touch(0, &access(&[], &[10])).unwrap();
        assert!(
            v.message
                .starts_with("modifies a register of an A fragment")
        );
        assert_eq!(t.touch(0, &access(&[8], &[9])), None);
        // Another warp's rows are its own.
        assert_eq!(t.touch(1, &access(&[7], &[])), None);
        t.waited(0, 1);
        assert_eq!(t.touch(0, &access(&[7], &[10])), None);
    }

    #[test]
    fn accumulators_in_flight_may_be_used_again_by_the_same_shape_only() {
        let mut t = Tracking::default();
        t.fence(0);
        assert_eq!(
            t.issue(0, 0, 9, &mma(16, false), &[0, 1, 2, 3, 4, 5, 6, 7]),
            None
        );
        assert_eq!(
            t.issue(0, 1, 10, &mma(16, false), &[0, 1, 2, 3, 4, 5, 6, 7]),
            None
        );
        let v = t.issue(0, 2, 11, &mma(8, false), &[0, 1, 2, 3]).unwrap();
        assert_eq!(v.other, Some(10));
        t.fence(0);
        assert_eq!(
            t.issue(0, 3, 12, &mma(16, false), &[0, 1, 2, 3, 4, 5, 6, 7]),
            None
        );
        // An accumulator in flight cannot feed another operation.
        let v = t.issue(0, 4, 13, &mma(8, true), &[20, 21, 22, 23, 4, 5, 6, 7]);
        assert!(
            v.unwrap()
                .message
                .contains("accumulator of a wgmma in flight")
        );
    }
}

//! cp.async: copies of 4, 8 or 16 bytes per lane from global to shared memory, their groups, and their arrivals at
//! mbarriers.

use super::address::{Place, Rows, Slots, Value, Window, global, lanes, located, resolve};
use super::mbarrier;
use super::modifiers::Modifiers;
use super::queue::{Family, issue, wait_groups};
use super::retire::{CopyLanes, Work};
use crate::device::Fault;
use crate::exec::{Cx, Flow, LANES, Wait};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

struct Copy {
    list: u32,
    to: Place,
    from: Place,
    size: u8,
    source: Source,
}

enum Source {
    Whole,
    /// src-size: bytes that are read.
    Bytes(Value),
    /// `Op::psrc`: lanes that read nothing.
    Ignored,
}

struct Arrive {
    list: u32,
    address: Place,
    window: Window,
    /// `.noinc`: the arrival is one of the expected ones.
    counted: bool,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.need(cx, "async")?;
    match m.one_of(&[
        "ca",
        "cg",
        "commit_group",
        "wait_group",
        "wait_all",
        "mbarrier",
    ]) {
        Some(level @ (0 | 1)) => lower_copy(cx, i, m, level == 1)?,
        Some(2) => {
            m.finish(cx)?;
            cx.emit(i, LowerCx::new_op(commit, Class::AsyncCopy))?;
        }
        Some(3) => {
            m.finish(cx)?;
            let pending = match i.operands.as_slice() {
                [o] => cx
                    .constant(o)
                    .filter(|n| (0..=i64::from(u32::MAX)).contains(n)),
                _ => None,
            };
            let Some(pending) = pending else {
                return cx.unsupported(i, "a constant number of groups is expected");
            };
            let mut op = LowerCx::new_op(wait_group, Class::AsyncCopy);
            op.imm = pending;
            cx.emit(i, op)?;
        }
        Some(4) => {
            m.finish(cx)?;
            cx.emit(i, LowerCx::new_op(wait_all, Class::AsyncCopy))?;
        }
        Some(_) => lower_arrive(cx, i, m)?,
        None => return cx.unsupported(i, "unknown cp.async operation"),
    }
    Ok(true)
}

/// Consumes the hints of the cache; true if a policy operand follows.
pub(super) fn cache_hints(m: &mut Modifiers) -> bool {
    m.one_of(&["L2::64B", "L2::128B", "L2::256B"]);
    m.take("L2::cache_hint")
}

fn lower_copy(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, global_level: bool) -> Result<()> {
    if m.one_of(&["shared", "shared::cta"]).is_none() {
        return cx.unsupported(i, "the destination is .shared or .shared::cta");
    }
    m.need(cx, "global")?;
    let hint = cache_hints(&mut m);
    m.finish(cx)?;
    let mut operands = i.operands.as_slice();
    let mut slots = Slots::default();
    if hint {
        let Some((policy, rest)) = operands.split_last() else {
            return cx.unsupported(i, "a cache policy is expected");
        };
        slots.value(cx, policy, Ty::B64)?;
        operands = rest;
    }
    let (to, from, size, extra) = match operands {
        [t, f, s] => (t, f, s, None),
        [t, f, s, e] => (t, f, s, Some(e)),
        _ => return cx.unsupported(i, "[dst], [src], size are expected"),
    };
    let size = match cx.constant(size) {
        Some(16) => 16,
        Some(n @ (4 | 8)) if !global_level => n as u8,
        _ => return cx.unsupported(i, "the size is 4, 8 or 16 with .ca and 16 with .cg"),
    };
    let to = slots.place(cx, to)?;
    let from = slots.place(cx, from)?;
    let mut op = LowerCx::new_op(copy, Class::AsyncCopy);
    let source = match extra {
        None => Source::Whole,
        Some(e) if cx.declared_type(e) == Some(Ty::Pred) || matches!(e, Operand::NotReg(_)) => {
            op.psrc = cx.pred_src(e)?;
            Source::Ignored
        }
        Some(e) => Source::Bytes(slots.value(cx, e, Ty::U32)?),
    };
    let record = Copy {
        list: slots.finish(cx),
        to,
        from,
        size,
        source,
    };
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

fn lower_arrive(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<()> {
    m.need(cx, "arrive")?;
    let counted = m.take("noinc");
    let window = Window::of(m.one_of(&Window::SPELLINGS[..2]));
    m.need(cx, "b64")?;
    m.finish(cx)?;
    let [address] = i.operands.as_slice() else {
        return cx.unsupported(i, "[address] is expected");
    };
    let mut slots = Slots::default();
    let address = slots.place(cx, address)?;
    let record = Arrive {
        list: slots.finish(cx),
        address,
        window,
        counted,
    };
    let mut op = LowerCx::new_op(arrive, Class::AsyncCopy);
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

unsafe fn copy(cx: &mut Cx, op: &Op) -> Flow {
    let c: &Copy = cx.ext(op);
    let rows = Rows::new(cx, c.list);
    let mut work = Box::new(CopyLanes {
        from: [0; LANES],
        to: [0; LANES],
        read: [0; LANES],
        size: c.size,
    });
    // SAFETY: rows and predicate of this operation.
    let ignored = unsafe { cx.pred(op.psrc) };
    let own = cx.cta().rank;
    for lane in lanes(cx.mask) {
        // SAFETY: as above.
        let (to, from, read) = unsafe {
            (
                rows.place(cx, c.to, lane),
                rows.place(cx, c.from, lane),
                match c.source {
                    Source::Whole => u64::from(c.size),
                    Source::Bytes(v) => rows.value(cx, v, lane),
                    Source::Ignored if ignored >> lane & 1 != 0 => 0,
                    Source::Ignored => u64::from(c.size),
                },
            )
        };
        if let Err(fault) = copy_lane(cx, &mut work, lane, own, to, from, read) {
            let fault = located(cx.launch, cx.pc, fault);
            return cx.fail(fault);
        }
    }
    let (warp, mask) = (cx.warp().agent, cx.mask);
    let parts = cx.cluster().asynchronous.by_group(warp, Family::Copy, mask);
    for (group, mask) in parts {
        let work = Work::Copy(Box::new(CopyLanes { ..*work }));
        if let Err(fault) = issue(cx, Family::Copy, group, mask, "cp.async", work) {
            return cx.fail(fault);
        }
    }
    Flow::Next
}

fn copy_lane(
    cx: &mut Cx,
    work: &mut CopyLanes,
    lane: usize,
    own: u32,
    to: u64,
    from: u64,
    read: u64,
) -> std::result::Result<(), Fault> {
    let size = u32::from(work.size);
    if read > u64::from(size) {
        return Err(Fault::IllegalInstruction(format!(
            "src-size {read} is more than the {size} bytes of the copy"
        )));
    }
    let s = resolve(cx.cluster(), own, to, size, size, Window::Cta)?;
    if s.cta != own {
        return Err(Fault::IllegalAddress(format!(
            "destination is shared memory of CTA {}: cp.async writes the own CTA's only",
            s.cta
        )));
    }
    if read > 0 {
        global(cx.launch, from, 0, u64::from(size))?;
    }
    work.to[lane] = s.address;
    work.from[lane] = from;
    work.read[lane] = read as u8;
    Ok(())
}

unsafe fn commit(cx: &mut Cx, _: &Op) -> Flow {
    let (warp, mask) = (cx.warp().agent, cx.mask);
    cx.cluster().asynchronous.commit(warp, Family::Copy, mask);
    Flow::Next
}

unsafe fn wait_group(cx: &mut Cx, op: &Op) -> Flow {
    if cx.mask == 0 {
        return Flow::Next;
    }
    wait_groups(cx, Family::Copy, op.imm as u32, false)
}

unsafe fn wait_all(cx: &mut Cx, _: &Op) -> Flow {
    if cx.mask == 0 {
        return Flow::Next;
    }
    // ISA: equivalent to commit_group and wait_group 0. The commit happens once, before the first wait.
    if matches!(cx.fragment().wait, Wait::None) {
        let (warp, mask) = (cx.warp().agent, cx.mask);
        cx.cluster().asynchronous.commit(warp, Family::Copy, mask);
    }
    wait_groups(cx, Family::Copy, 0, false)
}

unsafe fn arrive(cx: &mut Cx, op: &Op) -> Flow {
    let a: &Arrive = cx.ext(op);
    let rows = Rows::new(cx, a.list);
    let own = cx.cta().rank;
    let at = super::address::here(cx);
    let mut barriers = Box::new([0u32; LANES]);
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let address = unsafe { rows.place(cx, a.address, lane) };
        match resolve(cx.cluster(), own, address, 8, 8, a.window) {
            Ok(s) => {
                barriers[lane] = s.address;
                if !a.counted {
                    mbarrier::apply(cx.cluster(), s, at, mbarrier::Mbarrier::increment);
                }
            }
            Err(fault) => {
                let fault = located(cx.launch, cx.pc, fault);
                return cx.fail(fault);
            }
        }
    }
    if cx.mask == 0 {
        return Flow::Next;
    }
    let mask = cx.mask;
    let work = Work::CopyArrive { barriers };
    let what = "cp.async.mbarrier.arrive";
    match issue(cx, Family::Ungrouped, 0, mask, what, work) {
        Ok(()) => Flow::Next,
        Err(fault) => cx.fail(fault),
    }
}

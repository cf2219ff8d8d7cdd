//! cp.async.bulk and cp.reduce.async.bulk: bytes between global and shared memory, and the bulk groups.
//!
//! ISA: sizes and addresses are multiples of 16 bytes. Prefetches change nothing; only their operands are looked at.

use super::address::{Place, Rows, Shared, Slots, Value, Window, lanes, located, resolve};
use super::modifiers::Modifiers;
use super::queue::{Family, issue, wait_groups};
use super::reduce::{Operation, Reduction, parse_element};
use super::retire::{BulkLoad, BulkStore, Destination, Work};
use crate::device::Fault;
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

const ALIGN: u32 = 16;

enum Form {
    /// Global to shared memory, of one CTA or of those in the mask.
    Load { barrier: Place, mask: Option<Value> },
    /// Shared memory of the own CTA to global memory.
    Store,
    /// Shared memory of the own CTA to that of a CTA of the cluster.
    Peer { barrier: Place },
}

struct Bulk {
    list: u32,
    to: Place,
    from: Place,
    size: Value,
    form: Form,
    to_window: Window,
    reduction: Option<Reduction>,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let reduces = m.take("reduce");
    m.need(cx, "async")?;
    m.need(cx, "bulk")?;
    match m.one_of(&["commit_group", "wait_group", "prefetch"]) {
        Some(0) => {
            m.finish(cx)?;
            cx.emit(i, LowerCx::new_op(commit, Class::AsyncCopy))?;
        }
        Some(1) => lower_wait(cx, i, m)?,
        Some(_) => lower_prefetch(cx, i, m)?,
        None => lower_copy(cx, i, m, reduces)?,
    }
    Ok(true)
}

fn lower_wait(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<()> {
    let read = m.take("read");
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
    op.flags = u8::from(read);
    cx.emit(i, op)
}

fn lower_prefetch(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<()> {
    m.need(cx, "L2")?;
    m.need(cx, "global")?;
    let hint = m.take("L2::cache_hint");
    m.finish(cx)?;
    let mut slots = Slots::default();
    match (i.operands.as_slice(), hint) {
        ([from, size], false) => {
            slots.place(cx, from)?;
            slots.value(cx, size, Ty::U32)?;
        }
        ([from, size, policy], true) => {
            slots.place(cx, from)?;
            slots.value(cx, size, Ty::U32)?;
            slots.value(cx, policy, Ty::B64)?;
        }
        _ => return cx.unsupported(i, "[src], size are expected"),
    }
    slots.finish(cx);
    cx.emit(i, LowerCx::new_op(prefetch, Class::AsyncCopy))
}

/// The two sides of a copy, in the order in which they are written.
fn sides(m: &mut Modifiers, i: &Instr) -> Option<(bool, bool)> {
    // (destination is global, source is global)
    let order: Vec<&str> = i.op[1..]
        .iter()
        .map(|s| &**s)
        .filter(|s| matches!(*s, "global" | "shared::cta" | "shared::cluster"))
        .collect();
    let [to, from] = order.as_slice() else {
        return None;
    };
    m.take(to);
    m.take(from);
    match (*to, *from) {
        ("shared::cta" | "shared::cluster", "global") => Some((false, true)),
        ("global", "shared::cta") => Some((true, false)),
        ("shared::cluster", "shared::cta") => Some((false, false)),
        _ => None,
    }
}

fn lower_copy(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, reduces: bool) -> Result<()> {
    let own_only = i.op.iter().any(|s| &**s == "shared::cta")
        && !i.op.iter().any(|s| &**s == "shared::cluster");
    let Some((to_global, from_global)) = sides(&mut m, i) else {
        return cx.unsupported(i, "these state spaces do not go together");
    };
    let completion = if to_global {
        "bulk_group"
    } else {
        "mbarrier::complete_tx::bytes"
    };
    m.need(cx, completion)?;
    let hint = (to_global || from_global) && m.take("L2::cache_hint");
    let multicast = from_global && !own_only && m.take("multicast::cluster");
    let reduction = if reduces {
        Some(reduction(cx, i, &mut m, to_global, from_global)?)
    } else {
        None
    };
    m.finish(cx)?;
    let mut operands = i.operands.iter();
    let mut slots = Slots::default();
    let mut next = |what: &str, cx: &LowerCx| -> Result<&Operand> {
        match operands.next() {
            Some(o) => Ok(o),
            None => cx.unsupported(i, &format!("{what} is missing")),
        }
    };
    let to = slots.place(cx, next("[dst]", cx)?)?;
    let from = slots.place(cx, next("[src]", cx)?)?;
    let size = slots.value(cx, next("the size", cx)?, Ty::U32)?;
    let form = if to_global {
        Form::Store
    } else {
        let barrier = slots.place(cx, next("[mbar]", cx)?)?;
        if from_global {
            let mask = if multicast {
                Some(slots.value(cx, next("the CTA mask", cx)?, Ty::B16)?)
            } else {
                None
            };
            Form::Load { barrier, mask }
        } else {
            Form::Peer { barrier }
        }
    };
    if hint {
        slots.value(cx, next("the cache policy", cx)?, Ty::B64)?;
    }
    if operands.next().is_some() {
        return cx.unsupported(i, "too many operands");
    }
    if reduction.is_some() && to_global {
        cx.communicates = true;
    }
    let record = Bulk {
        list: slots.finish(cx),
        to,
        from,
        size,
        form,
        to_window: if own_only {
            Window::Cta
        } else {
            Window::Cluster
        },
        reduction,
    };
    let mut op = LowerCx::new_op(copy, Class::AsyncCopy);
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

fn reduction(
    cx: &LowerCx,
    i: &Instr,
    m: &mut Modifiers,
    to_global: bool,
    from_global: bool,
) -> Result<Reduction> {
    let operation = m.find(Operation::parse);
    let ty = m.find(parse_element);
    let noftz = m.take("noftz");
    let (Some(operation), Some(ty)) = (operation, ty) else {
        return cx.unsupported(i, "operation and type of the reduction are expected");
    };
    let half = matches!(ty, Ty::F16 | Ty::BF16);
    let peer = matches!(
        (operation, ty),
        (Operation::Add, Ty::U32 | Ty::S32 | Ty::U64)
            | (Operation::Min | Operation::Max, Ty::U32 | Ty::S32)
            | (Operation::Inc | Operation::Dec, Ty::U32)
            | (Operation::And | Operation::Or | Operation::Xor, Ty::B32)
    );
    let bitwise = matches!(operation, Operation::And | Operation::Or | Operation::Xor);
    let known = if to_global {
        operation.takes(ty)
            && bitwise == matches!(ty, Ty::B32 | Ty::B64)
            && noftz == (half && operation == Operation::Add)
    } else {
        !from_global && peer && !noftz
    };
    if !known {
        return cx.unsupported(i, "this reduction does not exist for the type");
    }
    Ok(Reduction { operation, ty })
}

unsafe fn prefetch(_: &mut Cx, _: &Op) -> Flow {
    Flow::Next
}

unsafe fn commit(cx: &mut Cx, _: &Op) -> Flow {
    let (warp, mask) = (cx.warp().agent, cx.mask);
    cx.cluster().asynchronous.commit(warp, Family::Bulk, mask);
    Flow::Next
}

unsafe fn wait_group(cx: &mut Cx, op: &Op) -> Flow {
    if cx.mask == 0 {
        return Flow::Next;
    }
    wait_groups(cx, Family::Bulk, op.imm as u32, op.flags != 0)
}

unsafe fn copy(cx: &mut Cx, op: &Op) -> Flow {
    let b: &Bulk = cx.ext(op);
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let result = unsafe { copy_lane(cx, b, lane) };
        if let Err(fault) = result {
            let fault = located(cx.launch, cx.pc, fault);
            return cx.fail(fault);
        }
    }
    Flow::Next
}

/// A global address of a bulk copy. Whether there is memory is tested when the copy takes place.
fn global_aligned(address: u64) -> std::result::Result<u64, Fault> {
    super::address::aligned(address, u64::from(ALIGN))?;
    Ok(address)
}

/// The ranks of a multicast; at least one, all of them in the cluster.
pub(super) fn multicast(cx: &mut Cx, mask: u64) -> std::result::Result<u16, Fault> {
    let mask = mask as u16;
    let ctas = cx.cluster().ctas.len() as u32;
    if mask == 0 || u32::from(mask) >> ctas != 0 {
        return Err(Fault::IllegalInstruction(format!(
            "multicast mask {mask:#x} in a cluster of {ctas} CTAs"
        )));
    }
    super::queue::check_alive(cx, mask);
    Ok(mask)
}

/// Tests that destination and mbarrier of a multicast exist in every CTA of the mask.
pub(super) fn resolve_multicast(
    cx: &mut Cx,
    mask: u16,
    at: Shared,
    bytes: u32,
    align: u32,
) -> std::result::Result<(), Fault> {
    for cta in 0..16 {
        if mask >> cta & 1 != 0 {
            let address = u64::from((cta + 1) << 24 | at.address);
            resolve(cx.cluster(), cta, address, bytes, align, Window::Cluster)?;
        }
    }
    Ok(())
}

unsafe fn copy_lane(cx: &mut Cx, b: &Bulk, lane: usize) -> std::result::Result<(), Fault> {
    let rows = Rows::new(cx, b.list);
    // SAFETY: rows of this operation.
    let (to, from, bytes) = unsafe {
        (
            rows.place(cx, b.to, lane),
            rows.place(cx, b.from, lane),
            rows.value(cx, b.size, lane) as u32,
        )
    };
    if !bytes.is_multiple_of(ALIGN) {
        return Err(Fault::MisalignedAddress(format!(
            "size {bytes} is not a multiple of {ALIGN}"
        )));
    }
    let own = cx.cta().rank;
    let (family, work) = match b.form {
        Form::Load { barrier, mask } => {
            // SAFETY: rows of this operation.
            let (barrier, mask) = unsafe {
                (
                    rows.place(cx, barrier, lane),
                    mask.map(|v| rows.value(cx, v, lane)),
                )
            };
            let to = resolve(cx.cluster(), own, to, bytes, ALIGN, b.to_window)?;
            let barrier = resolve(cx.cluster(), own, barrier, 8, 8, b.to_window)?;
            let mut ctas = 0;
            if let Some(mask) = mask {
                ctas = multicast(cx, mask)?;
                resolve_multicast(cx, ctas, to, bytes, ALIGN)?;
                resolve_multicast(cx, ctas, barrier, 8, 8)?;
            }
            let work = Work::BulkLoad(BulkLoad {
                from: global_aligned(from)?,
                to,
                bytes,
                barrier,
                ctas,
            });
            (Family::Ungrouped, work)
        }
        Form::Store => {
            let from = resolve(cx.cluster(), own, from, bytes, ALIGN, Window::Cta)?;
            let to = Destination::Global(global_aligned(to)?);
            (Family::Bulk, store(b, from, to, bytes))
        }
        Form::Peer { barrier } => {
            // SAFETY: rows of this operation.
            let barrier = unsafe { rows.place(cx, barrier, lane) };
            let from = resolve(cx.cluster(), own, from, bytes, ALIGN, Window::Cta)?;
            let to = resolve(cx.cluster(), own, to, bytes, ALIGN, Window::Cluster)?;
            let barrier = resolve(cx.cluster(), own, barrier, 8, 8, Window::Cluster)?;
            if to.cta != barrier.cta {
                return Err(Fault::IllegalInstruction(format!(
                    "the destination is in CTA {} and the mbarrier in CTA {}",
                    to.cta, barrier.cta
                )));
            }
            let to = Destination::Shared { to, barrier };
            (Family::Ungrouped, store(b, from, to, bytes))
        }
    };
    let warp = cx.warp().agent;
    let groups = cx.cluster().asynchronous.by_group(warp, family, 1 << lane);
    let what = if b.reduction.is_some() {
        "bulk reduction"
    } else {
        "bulk copy"
    };
    issue(cx, family, groups[0].0, 1 << lane, what, work)
}

fn store(b: &Bulk, from: Shared, to: Destination, bytes: u32) -> Work {
    Work::BulkStore(Box::new(BulkStore {
        from,
        to,
        bytes,
        reduction: b.reduction,
        staged: Vec::new(),
    }))
}

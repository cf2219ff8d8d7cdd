//! st.async and red.async: stores and reductions in the shared memory of a CTA of the cluster that signal their bytes to
//! an mbarrier there.

use super::address::{Place, Rows, Slots, Value, Window, lanes, located, resolve};
use super::modifiers::Modifiers;
use super::queue::{Family, issue};
use super::reduce::{Operation, Reduction, parse_element};
use super::retire::{Remote, Work};
use crate::device::Fault;
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result, bits, parse_type};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

struct Store {
    list: u32,
    to: Place,
    barrier: Place,
    window: Window,
    values: Vec<Value>,
    element: u8,
    reduction: Option<Reduction>,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.need(cx, "async")?;
    let reduces = &*i.op[0] == "red";
    if reduces {
        m.take("relaxed");
    } else {
        m.take("weak");
    }
    m.take("cluster");
    let window = if m.take("shared::cluster") {
        Window::Cluster
    } else {
        Window::Generic
    };
    m.need(cx, "mbarrier::complete_tx::bytes")?;
    let vector = m.one_of(&["v2", "v4"]).map_or(1, |v| 2 << v);
    let (ty, reduction) = if reduces {
        let operation = m.find(Operation::parse);
        let ty = m.find(parse_element);
        match (operation, ty) {
            (Some(operation), Some(ty)) if red_takes(operation, ty) && vector == 1 => {
                (ty, Some(Reduction { operation, ty }))
            }
            _ => return cx.unsupported(i, "this operation does not exist for the type"),
        }
    } else {
        let ty = m.find(parse_type).filter(|t| {
            matches!(
                t,
                Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64
            )
        });
        match ty {
            Some(ty) if bits(ty) * vector <= 128 => (ty, None),
            _ => return cx.unsupported(i, "the type is of 32 or 64 bits, 16 bytes at most"),
        }
    };
    m.finish(cx)?;
    let [to, value, barrier] = i.operands.as_slice() else {
        return cx.unsupported(i, "[address], value, [mbarrier] are expected");
    };
    let mut slots = Slots::default();
    let to = slots.place(cx, to)?;
    let barrier = slots.place(cx, barrier)?;
    let parts: &[Operand] = match value {
        Operand::Vector(v) => v,
        other => std::slice::from_ref(other),
    };
    if parts.len() != vector as usize {
        return cx.unsupported(i, &format!("{vector} values are expected"));
    }
    let mut values = Vec::with_capacity(parts.len());
    for p in parts {
        values.push(slots.value(cx, p, ty)?);
    }
    let record = Store {
        list: slots.finish(cx),
        to,
        barrier,
        window,
        values,
        element: (bits(ty) / 8) as u8,
        reduction,
    };
    let mut op = LowerCx::new_op(store, Class::AsyncCopy);
    op.ext = cx.ext(record);
    cx.emit(i, op)?;
    Ok(true)
}

/// ISA: red.async, the table of operations and types.
fn red_takes(operation: Operation, ty: Ty) -> bool {
    use Operation::*;
    match operation {
        Inc | Dec => ty == Ty::U32,
        Min | Max => matches!(ty, Ty::U32 | Ty::S32),
        And | Or | Xor => ty == Ty::B32,
        Add => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64),
    }
}

unsafe fn store(cx: &mut Cx, op: &Op) -> Flow {
    let s: &Store = cx.ext(op);
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let result = unsafe { store_lane(cx, s, lane) };
        if let Err(fault) = result {
            let fault = located(cx.launch, cx.pc, fault);
            return cx.fail(fault);
        }
    }
    Flow::Next
}

unsafe fn store_lane(cx: &mut Cx, s: &Store, lane: usize) -> std::result::Result<(), Fault> {
    let rows = Rows::new(cx, s.list);
    let bytes = s.element * s.values.len() as u8;
    let mut value = [0u8; 16];
    // SAFETY: rows of this operation.
    let (to, barrier) = unsafe {
        for (k, v) in s.values.iter().enumerate() {
            let word = rows.value(cx, *v, lane).to_le_bytes();
            let n = usize::from(s.element);
            value[k * n..(k + 1) * n].copy_from_slice(&word[..n]);
        }
        (rows.place(cx, s.to, lane), rows.place(cx, s.barrier, lane))
    };
    let own = cx.cta().rank;
    let to = resolve(
        cx.cluster(),
        own,
        to,
        u32::from(bytes),
        u32::from(bytes),
        s.window,
    )?;
    let barrier = resolve(cx.cluster(), own, barrier, 8, 8, s.window)?;
    if to.cta != barrier.cta {
        return Err(Fault::IllegalInstruction(format!(
            "the destination is in CTA {} and the mbarrier in CTA {}",
            to.cta, barrier.cta
        )));
    }
    let work = Work::Remote(Box::new(Remote {
        to,
        barrier,
        value,
        bytes,
        reduction: s.reduction,
    }));
    let what = if s.reduction.is_some() {
        "red.async"
    } else {
        "st.async"
    };
    issue(cx, Family::Ungrouped, 0, 1 << lane, what, work)
}

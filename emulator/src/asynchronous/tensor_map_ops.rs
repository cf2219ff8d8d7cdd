//! Editing tensor maps on the device: tensormap.replace, tensormap.cp_fenceproxy, prefetch.tensormap.

use super::address::{
    Place, Rows, Slots, Value, Window, global, here, lanes, located, pointer, resolve,
};
use super::modifiers::Modifiers;
use crate::check::{Fence, Kind, Proxy};
use crate::device::Fault;
use crate::exec::{Cx, Flow, SHARED_WINDOW, Wait};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Ty};
use crate::tensor_map::{FieldEdit, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES, TensorMap};

#[derive(Clone, Copy, PartialEq)]
enum Field {
    GlobalAddress,
    Rank,
    BoxDim,
    GlobalDim,
    GlobalStride,
    ElementStride,
    ElementType,
    Interleave,
    SwizzleMode,
    SwizzleAtomicity,
    FillMode,
}

const FIELDS: [(&str, Field); 11] = [
    ("global_address", Field::GlobalAddress),
    ("rank", Field::Rank),
    ("box_dim", Field::BoxDim),
    ("global_dim", Field::GlobalDim),
    ("global_stride", Field::GlobalStride),
    ("element_stride", Field::ElementStride),
    ("elemtype", Field::ElementType),
    ("interleave_layout", Field::Interleave),
    ("swizzle_mode", Field::SwizzleMode),
    ("swizzle_atomicity", Field::SwizzleAtomicity),
    ("fill_mode", Field::FillMode),
];

struct Replace {
    list: u32,
    address: Place,
    /// `None`: global memory.
    window: Option<Window>,
    field: Field,
    ordinal: u32,
    value: Value,
    /// Left shift that makes a stride of the instruction a stride in bytes.
    stride_shift: u32,
}

struct CopyFence {
    list: u32,
    to: Place,
    from: Place,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    match m.one_of(&["replace", "cp_fenceproxy"]) {
        Some(0) => lower_replace(cx, i, m)?,
        Some(_) => lower_copy(cx, i, m)?,
        None => return cx.unsupported(i, "unknown tensormap operation"),
    }
    Ok(true)
}

fn lower_replace(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<()> {
    m.need(cx, "tile")?;
    m.need(cx, "b1024")?;
    let Some(field) = m.find(|name| FIELDS.iter().find(|f| f.0 == name).map(|f| f.1)) else {
        return cx.unsupported(i, "unknown field");
    };
    let window = if m.take("global") {
        None
    } else {
        Some(Window::of(m.one_of(&["shared", "shared::cta"])))
    };
    let wide = matches!(field, Field::GlobalAddress | Field::GlobalStride);
    m.need(cx, if wide { "b64" } else { "b32" })?;
    m.finish(cx)?;
    let ordered = matches!(
        field,
        Field::BoxDim | Field::GlobalDim | Field::GlobalStride | Field::ElementStride
    );
    let (address, ordinal, value) = match (i.operands.as_slice(), ordered) {
        ([a, v], false) => (a, 0, v),
        ([a, o, v], true) => match cx.constant(o).and_then(|n| u32::try_from(n).ok()) {
            Some(n) => (a, n, v),
            None => return cx.unsupported(i, "the ordinal is a constant"),
        },
        _ => return cx.unsupported(i, "wrong number of operands"),
    };
    let mut slots = Slots::default();
    let address = slots.place(cx, address)?;
    let value = slots.value(cx, value, if wide { Ty::B64 } else { Ty::B32 })?;
    let record = Replace {
        list: slots.finish(cx),
        address,
        window,
        field,
        ordinal,
        value,
        // ISA: until PTX 8.4 the new stride is given in units of 16 bytes.
        stride_shift: if cx.module.version < (8, 5) { 4 } else { 0 },
    };
    let mut op = LowerCx::new_op(replace, Class::Other);
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

fn lower_copy(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<()> {
    for name in [
        "global",
        "shared::cta",
        "tensormap::generic",
        "release",
        "sync",
        "aligned",
    ] {
        m.need(cx, name)?;
    }
    if m.one_of(&["cta", "cluster", "gpu", "sys"]).is_none() {
        return cx.unsupported(i, "a scope is expected");
    }
    m.finish(cx)?;
    let [to, from, size] = i.operands.as_slice() else {
        return cx.unsupported(i, "[dst], [src], size are expected");
    };
    if cx.constant(size) != Some(TENSOR_MAP_BYTES as i64) {
        return cx.unsupported(i, "the size is 128");
    }
    let mut slots = Slots::default();
    let to = slots.place(cx, to)?;
    let from = slots.place(cx, from)?;
    let record = CopyFence {
        list: slots.finish(cx),
        to,
        from,
    };
    let mut op = LowerCx::new_op(copy_fence, Class::Fence);
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

pub(super) fn lower_prefetch(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.need(cx, "tensormap")?;
    m.one_of(&["const", "param"]);
    m.finish(cx)?;
    let [address] = i.operands.as_slice() else {
        return cx.unsupported(i, "[address] is expected");
    };
    let mut slots = Slots::default();
    slots.place(cx, address)?;
    slots.finish(cx);
    cx.emit(i, LowerCx::new_op(prefetch, Class::Other))?;
    Ok(true)
}

unsafe fn prefetch(_: &mut Cx, _: &Op) -> Flow {
    Flow::Next
}

fn edit(r: &Replace, value: u64) -> FieldEdit {
    let (ordinal, word) = (r.ordinal, value as u32);
    match r.field {
        Field::GlobalAddress => FieldEdit::GlobalAddress(value),
        Field::Rank => FieldEdit::RankMinusOne(word),
        Field::BoxDim => FieldEdit::BoxDim {
            ordinal,
            value: word,
        },
        Field::GlobalDim => FieldEdit::GlobalDim {
            ordinal,
            value: word,
        },
        Field::GlobalStride => FieldEdit::GlobalStride {
            ordinal,
            bytes: value << r.stride_shift,
        },
        Field::ElementStride => FieldEdit::ElementStride {
            ordinal,
            value: word,
        },
        Field::ElementType => FieldEdit::ElementType(word),
        Field::Interleave => FieldEdit::Interleave(word),
        Field::SwizzleMode => FieldEdit::SwizzleMode(word),
        Field::SwizzleAtomicity => FieldEdit::SwizzleAtomicity(word),
        Field::FillMode => FieldEdit::FillMode(word),
    }
}

unsafe fn replace(cx: &mut Cx, op: &Op) -> Flow {
    let r: &Replace = cx.ext(op);
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let result = unsafe { replace_lane(cx, r, lane) };
        if let Err(fault) = result {
            let fault = located(cx.launch, cx.pc, fault);
            return cx.fail(fault);
        }
    }
    Flow::Next
}

unsafe fn replace_lane(cx: &mut Cx, r: &Replace, lane: usize) -> std::result::Result<(), Fault> {
    let rows = Rows::new(cx, r.list);
    // SAFETY: rows of this operation.
    let (address, value) = unsafe {
        (
            rows.place(cx, r.address, lane),
            rows.value(cx, r.value, lane),
        )
    };
    let at = here(cx);
    let size = TENSOR_MAP_BYTES as u32;
    let in_shared = match r.window {
        None => None,
        Some(Window::Generic) if address < SHARED_WINDOW => None,
        Some(window) => Some(window),
    };
    let map = match in_shared {
        Some(window) => {
            let own = cx.cta().rank;
            let align = TENSOR_MAP_ALIGN as u32;
            let s = resolve(cx.cluster(), own, address, size, align, window)?;
            if let Some(check) = &mut cx.cluster().check {
                check.shared_range(at, s.cta, s.address, size, Kind::Write, Proxy::Generic);
            }
            pointer(cx.cluster(), s)
        }
        None => {
            global(cx.launch, address, u64::from(size), TENSOR_MAP_ALIGN)?;
            if let Some(check) = &mut cx.cluster().check {
                check.global_range(at, address, u64::from(size), Kind::Write, Proxy::Generic);
                cx.cluster().asynchronous.map_edited(address, at);
            }
            address as *mut u8
        }
    };
    // SAFETY: 128 bytes, tested above, touched by nobody else during this operation.
    let bytes = unsafe { &mut *map.cast::<[u8; TENSOR_MAP_BYTES]>() };
    TensorMap::replace_field(bytes, edit(r, value)).map_err(Fault::IllegalInstruction)
}

unsafe fn copy_fence(cx: &mut Cx, op: &Op) -> Flow {
    if !cx.aligned() {
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    let c: &CopyFence = cx.ext(op);
    // All lanes have the same operands: the warp makes one copy.
    let Some(lane) = lanes(cx.mask).next() else {
        return Flow::Next;
    };
    // SAFETY: rows of this operation.
    let result = unsafe { copy_map(cx, c, lane) };
    match result {
        Ok(()) => Flow::Next,
        Err(fault) => {
            let fault = located(cx.launch, cx.pc, fault);
            cx.fail(fault)
        }
    }
}

unsafe fn copy_map(cx: &mut Cx, c: &CopyFence, lane: usize) -> std::result::Result<(), Fault> {
    let rows = Rows::new(cx, c.list);
    // SAFETY: rows of this operation.
    let (to, from) = unsafe { (rows.place(cx, c.to, lane), rows.place(cx, c.from, lane)) };
    let (own, at) = (cx.cta().rank, here(cx));
    let size = TENSOR_MAP_BYTES as u32;
    // ISA: tensormap.cp_fenceproxy: both addresses are aligned to 128 bytes.
    let s = resolve(cx.cluster(), own, from, size, size, Window::Cta)?;
    global(cx.launch, to, u64::from(size), u64::from(size))?;
    let source = pointer(cx.cluster(), s);
    // SAFETY: both tested above; shared and global memory do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(source, to as *mut u8, TENSOR_MAP_BYTES);
    }
    let cluster = cx.cluster();
    if let Some(check) = &mut cluster.check {
        check.shared_range(at, s.cta, s.address, size, Kind::Read, Proxy::Generic);
        check.global_range(at, to, u64::from(size), Kind::Write, Proxy::Generic);
        check.fence(at, Fence::ProxyTensormap { acquire: false }, u32::MAX);
        cluster.asynchronous.map_edited(to, at);
    }
    cluster.progress += 1;
    Ok(())
}

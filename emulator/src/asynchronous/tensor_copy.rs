//! cp.async.bulk.tensor, cp.reduce.async.bulk.tensor and cp.async.bulk.prefetch.tensor in tiled and im2col mode.
//!
//! The map is read when the operation is issued (on a device the descriptor is fetched through a cache of its own; a
//! program that edits maps needs `fence.proxy.tensormap` either way). Which bytes move is `tensor_box`'s business.

use super::address::{Place, Rows, Slots, Value, Window, global, here, lanes, located, resolve};
use super::bulk::{multicast, resolve_multicast};
use super::modifiers::Modifiers;
use super::queue::{Family, issue};
use super::reduce::{Operation, Reduction, type_of};
use super::retire::{TensorLoad, TensorStore, Work};
use super::tensor_box::{self, Coordinates, SHARED_ALIGN, footprint};
use crate::check::{FindingKind, SiteRef};
use crate::device::Fault;
use crate::exec::{Cx, Flow, SHARED_WINDOW};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};
use crate::tensor_map::{MAX_RANK, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES, TensorMap};

enum Form {
    Load {
        to: Place,
        barrier: Place,
        mask: Option<Value>,
        window: Window,
    },
    Store {
        from: Place,
        operation: Option<Operation>,
    },
    Prefetch,
}

struct Tensor {
    list: u32,
    map: Place,
    coordinates: Vec<Value>,
    im2col: bool,
    /// The filter's position, innermost first.
    offsets: Vec<Value>,
    form: Form,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let reduces = m.take("reduce");
    m.need(cx, "async")?;
    m.need(cx, "bulk")?;
    let prefetch = m.take("prefetch");
    m.need(cx, "tensor")?;
    let Some(rank) = m.one_of(&["1d", "2d", "3d", "4d", "5d"]) else {
        return cx.unsupported(i, "a dimension .1d to .5d is expected");
    };
    let loads = !i.op.iter().any(|p| &**p == "bulk_group");
    let im2col = m.one_of(&["tile", "im2col", "im2col_no_offs"]).unwrap_or(0);
    // ISA: stores know .im2col_no_offs, loads and prefetches .im2col.
    if im2col == 1 && !loads || im2col == 2 && loads || im2col > 0 && rank < 2 {
        return cx.unsupported(i, "no such im2col copy");
    }
    let mut offsets = Vec::new();
    let mut displaced = |cx: &mut LowerCx, slots: &mut Slots, operand: &Operand| -> Result<()> {
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        if list.len() != rank - 1 {
            return cx.unsupported(i, &format!("{} im2col offsets are expected", rank - 1));
        }
        for o in list {
            offsets.push(slots.value(cx, o, Ty::B16)?);
        }
        Ok(())
    };
    let mut slots = Slots::default();
    let hint;
    let mut operands = i.operands.iter();
    let mut next = |what: &str, cx: &LowerCx| -> Result<&Operand> {
        match operands.next() {
            Some(o) => Ok(o),
            None => cx.unsupported(i, &format!("{what} is missing")),
        }
    };
    m.need(cx, "global")?;
    let (form, tensor);
    if prefetch {
        m.need(cx, "L2")?;
        hint = m.take("L2::cache_hint");
        tensor = next("[map, {…}]", cx)?;
        if im2col > 0 {
            let operand = next("{offsets}", cx)?;
            displaced(cx, &mut slots, operand)?;
        }
        form = Form::Prefetch;
    } else if m.take("bulk_group") {
        m.need(cx, "shared::cta")?;
        hint = m.take("L2::cache_hint");
        let operation = if reduces {
            m.find(Operation::parse)
        } else {
            None
        };
        if reduces && operation.is_none() {
            return cx.unsupported(i, "the operation of the reduction is expected");
        }
        tensor = next("[map, {…}]", cx)?;
        let from = slots.place(cx, next("[src]", cx)?)?;
        form = Form::Store { from, operation };
    } else {
        m.need(cx, "mbarrier::complete_tx::bytes")?;
        if reduces {
            return cx.unsupported(i, "a tensor reduction goes to global memory");
        }
        let window = match m.one_of(&["shared::cta", "shared::cluster"]) {
            Some(0) => Window::Cta,
            Some(_) => Window::Cluster,
            None => return cx.unsupported(i, "the destination is shared memory"),
        };
        hint = m.take("L2::cache_hint");
        let multicast = window == Window::Cluster && m.take("multicast::cluster");
        let to = slots.place(cx, next("[dst]", cx)?)?;
        tensor = next("[map, {…}]", cx)?;
        let barrier = slots.place(cx, next("[mbar]", cx)?)?;
        if im2col > 0 {
            let operand = next("{offsets}", cx)?;
            displaced(cx, &mut slots, operand)?;
        }
        let mask = if multicast {
            Some(slots.value(cx, next("the CTA mask", cx)?, Ty::B16)?)
        } else {
            None
        };
        form = Form::Load {
            to,
            barrier,
            mask,
            window,
        };
    }
    if hint {
        slots.value(cx, next("the cache policy", cx)?, Ty::B64)?;
    }
    if operands.next().is_some() {
        return cx.unsupported(i, "too many operands");
    }
    m.finish(cx)?;
    let (map, coordinates) = lower_tensor(cx, i, &mut slots, tensor, rank + 1)?;
    if reduces {
        cx.communicates = true;
    }
    let record = Tensor {
        list: slots.finish(cx),
        map,
        coordinates,
        im2col: im2col > 0,
        offsets,
        form,
    };
    let mut op = LowerCx::new_op(tensor_copy, Class::AsyncCopy);
    op.ext = cx.ext(record);
    cx.emit(i, op)?;
    Ok(true)
}

/// `[map, {c0, c1, …}]`.
fn lower_tensor(
    cx: &mut LowerCx,
    i: &Instr,
    slots: &mut Slots,
    operand: &Operand,
    rank: usize,
) -> Result<(Place, Vec<Value>)> {
    let parts = match operand {
        Operand::AddressList(parts) => parts.as_slice(),
        _ => &[],
    };
    let (map, list): (&Operand, &[Operand]) = match parts {
        [map, Operand::Vector(list)] => (map, list),
        [map, one] => (map, std::slice::from_ref(one)),
        _ => return cx.unsupported(i, "[map, {coordinates}] is expected"),
    };
    if list.len() != rank {
        return cx.unsupported(i, &format!("{rank} coordinates are expected"));
    }
    let map = slots.place(cx, map)?;
    let mut coordinates = Vec::with_capacity(rank);
    for c in list {
        coordinates.push(slots.value(cx, c, Ty::S32)?);
    }
    Ok((map, coordinates))
}

unsafe fn tensor_copy(cx: &mut Cx, op: &Op) -> Flow {
    let t: &Tensor = cx.ext(op);
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let result = unsafe { copy_lane(cx, t, lane) };
        if let Err(fault) = result {
            let fault = located(cx.launch, cx.pc, fault);
            return cx.fail(fault);
        }
    }
    Flow::Next
}

/// Reads and decodes the map at a generic address.
fn read_map(cx: &mut Cx, address: u64) -> std::result::Result<TensorMap, Fault> {
    if address >= SHARED_WINDOW {
        return Err(Fault::IllegalAddress(format!(
            "tensor map at {address:#x}: it must be in parameter, constant or global memory"
        )));
    }
    global(
        cx.launch,
        address,
        TENSOR_MAP_BYTES as u64,
        TENSOR_MAP_ALIGN,
    )?;
    // SAFETY: tested above; kernels that edit maps do so on this thread or in front of this launch.
    let bytes = unsafe { (address as *const [u8; TENSOR_MAP_BYTES]).read() };
    let at = here(cx);
    let cluster = cx.cluster();
    let map = cluster
        .asynchronous
        .cached_map(address, &bytes)
        .map_err(Fault::IllegalInstruction)?;
    if let Some(check) = &mut cluster.check
        && let Some(editor) = cluster.asynchronous.take_stale_map(address)
    {
        let sites = editor.map(|e| SiteRef {
            pc: e.pc,
            who: check.name(e.agent),
            role: "changes the map".into(),
        });
        check.report(
            FindingKind::TensorMap,
            at,
            format!(
                "the tensor map at {address:#x} has changed, and no fence.proxy.tensormap::generic.acquire lies between"
            ),
            sites.into_iter().collect(),
        );
    }
    Ok(map)
}

unsafe fn copy_lane(cx: &mut Cx, t: &Tensor, lane: usize) -> std::result::Result<(), Fault> {
    let rows = Rows::new(cx, t.list);
    let mut start: Coordinates = [0; MAX_RANK];
    // SAFETY: rows of this operation.
    let address = unsafe {
        for (d, c) in t.coordinates.iter().enumerate() {
            start[d] = rows.value(cx, *c, lane) as i32;
        }
        rows.place(cx, t.map, lane)
    };
    let mut map = read_map(cx, address)?;
    tensor_box::check(&map, t.coordinates.len(), t.im2col).map_err(Fault::IllegalInstruction)?;
    if let Some(im2col) = &mut map.im2col {
        for (offset, v) in im2col.offsets.iter_mut().zip(&t.offsets) {
            // SAFETY: rows of this operation.
            *offset = unsafe { rows.value(cx, *v, lane) } as u16;
        }
        if let Some(problem) = tensor_box::misplaced(&map, &start) {
            let at = here(cx);
            if let Some(check) = &mut cx.cluster().check {
                check.report(FindingKind::TensorMap, at, problem, Vec::new());
            }
        }
    }
    let bytes = map.box_bytes() as u32;
    let own = cx.cta().rank;
    let (family, what, work) = match t.form {
        Form::Prefetch => return Ok(()),
        Form::Load {
            to,
            barrier,
            mask,
            window,
        } => {
            // SAFETY: rows of this operation.
            let (to, barrier, mask) = unsafe {
                (
                    rows.place(cx, to, lane),
                    rows.place(cx, barrier, lane),
                    mask.map(|v| rows.value(cx, v, lane)),
                )
            };
            let span = footprint(to as u32 & 0xff_ffff, bytes, map.swizzle);
            let to = resolve(cx.cluster(), own, to, span, SHARED_ALIGN, window)?;
            let barrier = resolve(cx.cluster(), own, barrier, 8, 8, window)?;
            let mut ctas = 0;
            if let Some(mask) = mask {
                ctas = multicast(cx, mask)?;
                resolve_multicast(cx, ctas, to, span, SHARED_ALIGN)?;
                resolve_multicast(cx, ctas, barrier, 8, 8)?;
            }
            let work = Work::TensorLoad(Box::new(TensorLoad {
                map,
                start,
                to,
                barrier,
                ctas,
            }));
            (Family::Ungrouped, "tensor load", work)
        }
        Form::Store { from, operation } => {
            // SAFETY: rows of this operation.
            let from = unsafe { rows.place(cx, from, lane) };
            let span = footprint(from as u32 & 0xff_ffff, bytes, map.swizzle);
            let from = resolve(cx.cluster(), own, from, span, SHARED_ALIGN, Window::Cta)?;
            let reduction = operation
                .map(|operation| reduction(&map, operation))
                .transpose()?;
            let work = Work::TensorStore(Box::new(TensorStore {
                map,
                start,
                from,
                reduction,
                staged: Vec::new(),
            }));
            (Family::Bulk, "tensor store", work)
        }
    };
    let warp = cx.warp().agent;
    let groups = cx.cluster().asynchronous.by_group(warp, family, 1 << lane);
    issue(cx, family, groups[0].0, 1 << lane, what, work)
}

fn reduction(map: &TensorMap, operation: Operation) -> std::result::Result<Reduction, Fault> {
    let ty = type_of(map.element_type);
    if operation.takes(ty) {
        return Ok(Reduction { operation, ty });
    }
    Err(Fault::IllegalInstruction(format!(
        "the reduction {operation:?} does not exist for elements of type {:?}",
        map.element_type
    )))
}

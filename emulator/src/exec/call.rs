//! Calls of device functions, direct and through pointers, and the functions that the system provides.
//!
//! A call copies the arguments from the caller's rows or local memory to the homes of the callee's formal parameters
//! and pushes a [`Frame`] on the fragment; the return copies the results back. A recursive callee first saves its rows
//! and gets a new part of local memory. Fragments merge only when their frames agree.

use super::control::drop_if_empty;
use super::{Cx, Flow, Fragment, Frame, LANES, Row, STACK, Wait};
use crate::device::Fault;
use crate::program::lower::{LowerCx, Result, bits};
use crate::program::placement::FUNCTION_BASE;
use crate::program::{Class, FunctionInfo, Home, Op, RowId};
use crate::ptx::ast::{Instr, Operand, Space, Ty};
use std::collections::HashMap;

/// An argument or result at the caller.
#[derive(Debug, Clone, Copy)]
enum Actual {
    /// Offset in the caller's frame, and bytes.
    Local(u32, u32),
    /// Slot in the call's list of rows, and rows.
    Row(u32, u32),
}

/// What a call does beyond the jump.
struct Call {
    /// The function that calls.
    caller: u32,
    args: Vec<Actual>,
    results: Vec<Actual>,
    list: u32,
    target: Target,
}

enum Target {
    Direct(u32),
    /// By address of the function.
    Indirect(HashMap<u64, u32>),
    System(System),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum System {
    Printf,
    AssertFail,
    Malloc,
    Free,
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    let mut operands = i.operands.iter().peekable();
    let mut take_list = || match operands.peek() {
        Some(Operand::List(v)) => {
            operands.next();
            Some(v.as_slice())
        }
        _ => None,
    };
    let results = take_list().unwrap_or_default();
    let Some(callee) = i.operands.iter().find(|o| !matches!(o, Operand::List(_))) else {
        return cx.unsupported(i, "no function is named");
    };
    let position = i.operands.iter().position(|o| std::ptr::eq(o, callee));
    let args = match position.and_then(|p| i.operands.get(p + 1)) {
        Some(Operand::List(v)) => v.as_slice(),
        _ => &[],
    };
    let mut rows = Vec::new();
    let args: Vec<Actual> = args
        .iter()
        .map(|o| actual(cx, o, false, &mut rows))
        .collect::<Result<_>>()?;
    let results: Vec<Actual> = results
        .iter()
        .map(|o| actual(cx, o, true, &mut rows))
        .collect::<Result<_>>()?;
    let mut op = LowerCx::new_op(call, Class::Branch);
    let target = match callee {
        Operand::Symbol(name) => direct(cx, name, args.len())?,
        Operand::Reg(_) => {
            op.src[0] = cx.src(callee, Ty::B64)?;
            Target::Indirect(
                cx.functions
                    .iter()
                    .enumerate()
                    .skip(1)
                    .filter_map(|(n, f)| Some((cx.globals.get(&f.name)?.value, n as u32)))
                    .collect(),
            )
        }
        _ => return cx.unsupported(i, "the callee has to be a function or a register"),
    };
    if let Target::Direct(n) = target {
        check_signature(cx, i, &cx.functions[n as usize], &args, &results)?;
    }
    let list = cx.list(rows);
    op.ext = cx.ext(Call {
        caller: cx.function_index,
        args,
        results,
        list,
        target,
    });
    cx.emit(i, op)
}

/// A device function starts with an operation that does nothing, but tells the checkers what its callers have written.
pub fn emit_entry(cx: &mut LowerCx) {
    let info = &cx.functions[cx.function_index as usize];
    if cx.function.is_entry {
        return;
    }
    let mut effects = crate::program::Effects::default();
    for p in &info.params {
        match p.home {
            Home::Row(r) => effects.writes.push((r, LowerCx::rows_of(p.bytes * 8))),
            Home::Pred(p) => effects.pred_writes.push(p),
            Home::Local(_) => {}
        }
    }
    if info.recursive {
        effects.writes.push((info.frame_row, 2));
    }
    cx.current = effects;
    cx.push_plain(
        LowerCx::new_op(super::control::nothing, Class::Other),
        "ld.param",
    );
}

fn actual(cx: &mut LowerCx, o: &Operand, result: bool, rows: &mut Vec<RowId>) -> Result<Actual> {
    match o {
        Operand::Symbol(_) => {
            let (value, symbol) = cx.symbol_address(o)?;
            if symbol.space != Space::Local {
                return cx.error(format!(
                    "{o:?} is not a parameter variable of this function"
                ));
            }
            Ok(Actual::Local(value as u32, symbol.bytes as u32))
        }
        Operand::Sink => Ok(Actual::Local(0, 0)),
        _ => {
            let ty = match cx.declared_type(o) {
                Some(Ty::Pred) => return cx.error("a predicate cannot be passed to a function"),
                Some(ty) => ty,
                None => Ty::B32,
            };
            let row = if result {
                cx.dst(o, ty)?
            } else {
                cx.src(o, ty)?
            };
            rows.push(row);
            let n = u32::from(LowerCx::rows_of(bits(ty)));
            Ok(Actual::Row(rows.len() as u32 - 1, n))
        }
    }
}

fn direct(cx: &LowerCx, name: &str, args: usize) -> Result<Target> {
    if let Some(&n) = cx.function_numbers.get(name)
        && n > 0
    {
        return Ok(Target::Direct(n));
    }
    let (system, wants) = match name {
        "vprintf" => (System::Printf, 2),
        "__assertfail" => (System::AssertFail, 5),
        "malloc" => (System::Malloc, 1),
        "free" => (System::Free, 1),
        _ => return cx.error(format!("nothing defines the function {name}")),
    };
    if args != wants {
        return cx.error(format!("{name} takes {wants} arguments, {args} are given"));
    }
    Ok(Target::System(system))
}

fn check_signature(
    cx: &LowerCx,
    i: &Instr,
    f: &FunctionInfo,
    args: &[Actual],
    results: &[Actual],
) -> Result<()> {
    let fits = |formal: &crate::program::Formal, actual: &Actual| match *actual {
        Actual::Local(_, 0) => true,
        Actual::Local(_, bytes) => bytes == formal.bytes || matches!(formal.home, Home::Row(_)),
        Actual::Row(_, rows) => u32::from(LowerCx::rows_of(formal.bytes * 8)) == rows,
    };
    if args.len() != f.params.len() || results.len() != f.returns.len() {
        return cx.unsupported(i, &format!("{} has another number of parameters", f.name));
    }
    if !f.params.iter().zip(args).all(|(f, a)| fits(f, a))
        || !f.returns.iter().zip(results).all(|(f, a)| fits(f, a))
    {
        return cx.unsupported(i, &format!("parameters of other sizes than {} has", f.name));
    }
    Ok(())
}

/// One lane's bytes of a place.
unsafe fn read(cx: &Cx, place: Place, lane: usize, out: &mut [u8]) {
    // SAFETY: places come from the program, whose local memory and rows the warp has.
    unsafe {
        let warp = &*cx.warp;
        match place {
            Place::Local(at) => {
                let start = lane * cx.launch.program.local_bytes as usize + at as usize;
                out.copy_from_slice(&warp.local[start..start + out.len()]);
            }
            Place::Row(r) if out.len() <= 4 => {
                let n = out.len();
                out.copy_from_slice(&cx.row(r)[lane].to_le_bytes()[..n]);
            }
            Place::Row(r) if out.len() <= 8 => {
                let n = out.len();
                out.copy_from_slice(&cx.row64(r)[lane].to_le_bytes()[..n]);
            }
            Place::Row(r) => {
                let wide = &*cx.regs.add(r as usize).cast::<[u128; LANES]>();
                let n = out.len();
                out.copy_from_slice(&wide[lane].to_le_bytes()[..n]);
            }
        }
    }
}

unsafe fn write(cx: &mut Cx, place: Place, lane: usize, bytes: &[u8]) {
    let mut wide = [0u8; 16];
    if bytes.len() <= 16 {
        wide[..bytes.len()].copy_from_slice(bytes);
    }
    let value = u128::from_le_bytes(wide);
    // SAFETY: as for `read`.
    unsafe {
        match place {
            Place::Local(at) => {
                let start = lane * cx.launch.program.local_bytes as usize + at as usize;
                cx.warp().local[start..start + bytes.len()].copy_from_slice(bytes);
                let here = cx.at();
                if let Some(check) = &mut cx.cluster().check {
                    check.local_defined(here, lane, at as usize, bytes.len());
                }
            }
            Place::Row(r) if bytes.len() <= 4 => cx.row_mut(r)[lane] = value as u32,
            Place::Row(r) if bytes.len() <= 8 => cx.row64_mut(r)[lane] = value as u64,
            Place::Row(r) => {
                (*cx.regs.add(r as usize).cast::<[u128; LANES]>())[lane] = value;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Place {
    /// Address in local memory.
    Local(u32),
    Row(RowId),
}

/// Local address of a function's frame in the running fragment.
unsafe fn frame_base(cx: &Cx, function: u32, lane: usize) -> u32 {
    let info = &cx.launch.program.functions[function as usize];
    if info.recursive {
        // SAFETY: a row of the program.
        unsafe { cx.row64(info.frame_row)[lane] as u32 }
    } else {
        info.local_offset
    }
}

fn actual_place(cx: &Cx, call: &Call, a: Actual, base: u32) -> Place {
    match a {
        Actual::Local(at, _) => Place::Local(base + at),
        Actual::Row(slot, _) => {
            Place::Row(cx.launch.program.lists[call.list as usize][slot as usize])
        }
    }
}

fn home_place(home: Home, base: u32) -> Place {
    match home {
        Home::Local(at) => Place::Local(base + at),
        Home::Row(r) => Place::Row(r),
        Home::Pred(_) => Place::Local(base),
    }
}

/// The arguments' bytes of the executing lanes, lane after lane.
unsafe fn gather(cx: &Cx, call: &Call, sizes: &[u32], mask: u32) -> Vec<u8> {
    let total: u32 = sizes.iter().sum();
    let mut out = vec![0u8; total as usize * LANES];
    for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
        let mut at = lane * total as usize;
        for (&a, &n) in call.args.iter().zip(sizes) {
            // SAFETY: as for `read`.
            unsafe {
                let base = frame_base(cx, call.caller, lane);
                read(
                    cx,
                    actual_place(cx, call, a, base),
                    lane,
                    &mut out[at..at + n as usize],
                );
            }
            at += n as usize;
        }
    }
    out
}

unsafe fn call(cx: &mut Cx, op: &Op) -> Flow {
    let call: &Call = cx.ext(op);
    match &call.target {
        // SAFETY: as for this handler.
        Target::System(s) => unsafe { system(cx, call, *s) },
        Target::Direct(n) => {
            if cx.mask != cx.active {
                let (mask, next) = (cx.mask, cx.pc + 1);
                let rest = cx.active & !mask;
                detach(cx, rest, next);
            }
            // SAFETY: as for this handler.
            unsafe { enter(cx, op, call, *n) }
        }
        Target::Indirect(table) => {
            // SAFETY: a row of the program.
            let targets = *unsafe { cx.row64(op.src[0]) };
            let lane = cx.mask.trailing_zeros() as usize;
            let Some(&n) = table.get(&targets[lane]) else {
                return cx.fail(Fault::InvalidPc(format!(
                    "call of {:#x}, which is not a function of this kernel{}",
                    targets[lane],
                    if targets[lane] >= FUNCTION_BASE {
                        " (its address is not known here)"
                    } else {
                        ""
                    }
                )));
            };
            let same = (0..LANES)
                .filter(|&l| cx.mask >> l & 1 == 1 && targets[l] == targets[lane])
                .fold(0u32, |m, l| m | 1 << l);
            let others = cx.mask & !same;
            let skipping = cx.active & !cx.mask;
            let pc = cx.pc;
            if others != 0 {
                detach(cx, others, pc);
            }
            if skipping != 0 {
                detach(cx, skipping, pc + 1);
            }
            cx.mask = same;
            // SAFETY: as for this handler.
            unsafe { enter(cx, op, call, n) }
        }
    }
}

/// Puts `lanes` of the running fragment into one of their own at `pc`.
fn detach(cx: &mut Cx, lanes: u32, pc: u32) {
    let f = cx.fragment();
    f.mask &= !lanes;
    let new = Fragment {
        pc,
        mask: lanes,
        wait: Wait::None,
        polled: false,
        calls: f.calls.clone(),
    };
    cx.warp().fragments.push(new);
}

unsafe fn enter(cx: &mut Cx, op: &Op, call: &Call, n: u32) -> Flow {
    let program = cx.launch.program;
    let info = &program.functions[n as usize];
    if info.params.len() != call.args.len() || info.returns.len() != call.results.len() {
        return cx.fail(Fault::InvalidPc(format!(
            "indirect call of {} with another signature",
            info.name
        )));
    }
    let sizes: Vec<u32> = info.params.iter().map(|p| p.bytes).collect();
    let mask = cx.mask;
    // SAFETY: places and rows of the program.
    unsafe {
        let args = gather(cx, call, &sizes, mask);
        let (mut saved, mut saved_preds) = (Vec::new(), Vec::new());
        let mut base = info.local_offset;
        let mut top = stack_top(cx, program.local_static);
        if info.recursive {
            base = top;
            top += info.local_bytes.next_multiple_of(16).max(16);
            let end = program.local_bytes - if program.has_stack { STACK } else { 0 };
            if top > end {
                let (name, depth) = (info.name.clone(), cx.fragment().calls.len());
                return cx.fail(Fault::HardwareStack(format!(
                    "call of {name} at depth {depth} exceeds the stack of {} bytes",
                    end - program.local_static
                )));
            }
            saved = info
                .rows
                .clone()
                .map(|r| *cx.regs.add(r as usize))
                .collect::<Vec<Row>>();
            saved_preds = info
                .preds
                .clone()
                .map(|p| *cx.preds.add(p as usize))
                .collect();
            for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
                cx.row64_mut(info.frame_row)[lane] = u64::from(base);
            }
        }
        let total: u32 = sizes.iter().sum();
        for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
            let mut at = lane * total as usize;
            for formal in &info.params {
                let n = formal.bytes as usize;
                write(cx, home_place(formal.home, base), lane, &args[at..at + n]);
                at += n;
            }
        }
        let frame = Frame {
            return_pc: cx.pc + 1,
            call: op.ext,
            callee: n,
            top,
            saved,
            saved_preds,
            stack: cx.warp().stack,
        };
        let start = info.start;
        let f = cx.fragment();
        f.calls.push(frame);
        f.pc = start;
    }
    Flow::Jump
}

/// Top of the stack of the running fragment.
fn stack_top(cx: &mut Cx, bottom: u32) -> u32 {
    cx.fragment().calls.last().map_or(bottom, |f| f.top)
}

/// `ret` of a device function for the executing lanes.
pub fn return_(cx: &mut Cx) -> Flow {
    let program = cx.launch.program;
    let (mask, pc) = (cx.mask, cx.pc);
    if mask != cx.active {
        let rest = cx.active & !mask;
        detach(cx, rest, pc + 1);
    }
    let Some(frame) = cx.fragment().calls.pop() else {
        return cx.fail(Fault::InvalidPc("return without a call".into()));
    };
    let call: &Call = program.ext[frame.call as usize]
        .downcast_ref()
        .expect("the frame's call");
    for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
        cx.warp().stack[lane] = frame.stack[lane];
    }
    let info = &program.functions[frame.callee as usize];
    let lanes = || (0..LANES).filter(move |l| mask >> l & 1 == 1);
    // SAFETY: places and rows of the program.
    unsafe {
        let mut results = Vec::new();
        for lane in lanes() {
            let base = frame_base(cx, frame.callee, lane);
            for formal in &info.returns {
                let mut bytes = vec![0; formal.bytes as usize];
                read(cx, home_place(formal.home, base), lane, &mut bytes);
                results.push(bytes);
            }
        }
        if info.recursive {
            let rows = std::slice::from_raw_parts_mut(
                cx.regs.add(info.rows.start as usize),
                info.rows.len(),
            );
            info.copy_lanes(rows, &frame.saved, mask);
            for (p, old) in info.preds.clone().zip(&frame.saved_preds) {
                cx.set_pred(p, *old);
            }
        }
        let mut results = results.into_iter();
        for lane in lanes() {
            let base = frame_base(cx, call.caller, lane);
            for &actual in &call.results {
                let bytes = results.next().unwrap_or_default();
                if !matches!(actual, Actual::Local(_, 0)) {
                    let place = actual_place(cx, call, actual, base);
                    write(cx, place, lane, &bytes);
                }
            }
        }
    }
    cx.fragment().pc = frame.return_pc;
    drop_if_empty(cx);
    Flow::Jump
}

unsafe fn system(cx: &mut Cx, call: &Call, s: System) -> Flow {
    let sizes: Vec<u32> = match s {
        System::Printf => vec![8, 8],
        System::AssertFail => vec![8, 8, 4, 8, 8],
        System::Malloc | System::Free => vec![8],
    };
    let mask = cx.mask;
    // SAFETY: places of the program.
    let args = unsafe { gather(cx, call, &sizes, mask) };
    let total: usize = sizes.iter().sum::<u32>() as usize;
    for lane in (0..LANES).filter(|l| mask >> l & 1 == 1) {
        let lane_args = &args[lane * total..][..total];
        let word =
            |at: usize| u64::from_le_bytes(lane_args[at..at + 8].try_into().expect("8 bytes"));
        let result = match s {
            System::Printf => {
                let text = super::printf::format(cx, lane, word(0), word(8));
                cx.cluster().output.extend_from_slice(&text);
                text.len() as u64
            }
            System::AssertFail => {
                let line = u32::from_le_bytes(lane_args[16..20].try_into().expect("4 bytes"));
                let message = super::printf::string(cx, lane, word(0));
                let file = super::printf::string(cx, lane, word(8));
                let function = super::printf::string(cx, lane, word(20));
                let at = cx.place();
                return cx.fail(Fault::Assert(format!(
                    "{file}:{line}: {function}: {at}, lane {lane}: assertion `{message}` failed"
                )));
            }
            System::Malloc => cx
                .launch
                .device
                .memory
                .allocate(
                    word(0),
                    16,
                    cx.launch.device.settings.memory_bytes,
                    "malloc in a kernel",
                )
                .unwrap_or(0),
            System::Free => {
                if word(0) != 0 && !cx.launch.device.memory.free(word(0)) {
                    return cx.fail(Fault::IllegalAddress(format!(
                        "free of {:#x}, where no allocation starts",
                        word(0)
                    )));
                }
                0
            }
        };
        if let Some(&actual) = call.results.first() {
            let bytes = match actual {
                Actual::Local(_, n) => n as usize,
                Actual::Row(_, rows) => 4 * rows as usize,
            };
            // SAFETY: places of the program.
            unsafe {
                let base = frame_base(cx, call.caller, lane);
                let place = actual_place(cx, call, actual, base);
                write(cx, place, lane, &result.to_le_bytes()[..bytes.min(8)]);
            }
        }
    }
    Flow::Next
}

//! Control flow: branches, calls, ends, and the registers that change while a warp runs.

use super::simd::{Body, handler};
use super::{Cx, Flow, Fragment, Handler, Wait};
use crate::device::Fault;
use crate::program::kernel::BranchTable;
use crate::program::lower::{Fixup, LowerCx, Result, Successors};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    match &*i.op[0] {
        "bra" => branch(cx, i)?,
        "brx" => table(cx, i)?,
        "call" => super::call::lower(cx, i)?,
        "ret" => emit_end(cx, i, return_)?,
        "exit" => emit_end(cx, i, exit)?,
        "trap" => emit_end(cx, i, trap)?,
        "brkpt" => emit_end(cx, i, breakpoint)?,
        "nanosleep" => {
            let op = LowerCx::new_op(sleep, Class::Other);
            cx.src(&i.operands[0], Ty::U32)?;
            cx.emit(i, op)?;
        }
        // Hints without effect on data.
        "pmevent" | "prefetch" | "prefetchu" | "applypriority" | "discard" => {
            let op = LowerCx::new_op(nothing, Class::Other);
            if &*i.op[0] == "prefetch" && i.op.iter().any(|m| &**m == "tensormap") {
                return Ok(false);
            }
            cx.emit(i, op)?;
        }
        "mov" => return clock_read(cx, i),
        _ => return Ok(false),
    }
    Ok(true)
}

fn branch(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    let Some(Operand::Label(label)) = i.operands.first() else {
        return cx.unsupported(i, "the target has to be a label");
    };
    let pc = cx.pc();
    let label = *label;
    cx.fixups.push(Fixup::Label(pc, label));
    cx.successors.insert(
        pc,
        Successors {
            labels: vec![label.0],
            ends: true,
        },
    );
    cx.emit(i, LowerCx::new_op(bra, Class::Branch))
}

fn table(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    let (index, name) = match &i.operands[..] {
        [index, Operand::Symbol(name)] => (index, name),
        _ => return cx.unsupported(i, "operands are an index and a branch table"),
    };
    let Some((_, labels)) = cx.function.branch_tables.iter().find(|t| *t.0 == **name) else {
        return cx.error(format!("no branch table {name}"));
    };
    let labels = labels.clone();
    let mut op = LowerCx::new_op(brx, Class::Branch);
    op.src[0] = cx.src(index, Ty::U32)?;
    op.ext = cx.ext(BranchTable::new());
    cx.fixups.push(Fixup::Table(op.ext, labels.clone()));
    let pc = cx.pc();
    cx.successors.insert(
        pc,
        Successors {
            labels: labels.iter().map(|l| l.0).collect(),
            ends: true,
        },
    );
    cx.emit(i, op)
}

fn emit_end(cx: &mut LowerCx, i: &Instr, run: Handler) -> Result<()> {
    let pc = cx.pc();
    cx.successors.insert(
        pc,
        Successors {
            labels: vec![],
            ends: true,
        },
    );
    cx.emit(i, LowerCx::new_op(run, Class::Branch))
}

/// The return at the end of every function.
pub fn emit_return(cx: &mut LowerCx) {
    let pc = cx.pc();
    cx.successors.insert(
        pc,
        Successors {
            labels: vec![],
            ends: true,
        },
    );
    cx.push_plain(LowerCx::new_op(return_, Class::Branch), "ret");
}

/// `mov` from `%clock` and the like; other moves are arithmetic.
fn clock_read(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let [dst, Operand::Special(name)] = &i.operands[..] else {
        return Ok(false);
    };
    let (run, width): (Handler, u32) = match &**name {
        "%clock" | "%globaltimer_lo" => (handler::<Clock<0, false>>(), 32),
        "%clock_hi" | "%globaltimer_hi" => (handler::<Clock<32, false>>(), 32),
        "%clock64" | "%globaltimer" => (handler::<Clock<0, true>>(), 64),
        "%is_explicit_cluster" => {
            let mut op = LowerCx::new_op(explicit_cluster, Class::Predicate);
            op.pdst = cx.pred_dst(dst)?;
            cx.emit(i, op)?;
            return Ok(true);
        }
        _ => return Ok(false),
    };
    let mut op = LowerCx::new_op(run, Class::Other);
    op.imm = i64::from(name.starts_with("%globaltimer"));
    op.dst = cx.dst(dst, if width == 64 { Ty::B64 } else { Ty::B32 })?;
    cx.emit(i, op)?;
    Ok(true)
}

/// Nanoseconds of `%globaltimer` when a launch starts.
const EPOCH: u64 = 1_700_000_000_000_000_000;

/// The clock counts four cycles for each operation that the cluster has executed; the timer runs at 2 GHz of these.
struct Clock<const SHIFT: u32, const WIDE: bool>;
impl<const SHIFT: u32, const WIDE: bool> Body for Clock<SHIFT, WIDE> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        let ticks = cx.clock();
        let v = if op.imm == 1 {
            EPOCH + ticks * 2
        } else {
            ticks * 4
        } >> SHIFT;
        // SAFETY: rows of the program.
        unsafe {
            if WIDE {
                let d = cx.row64_mut(op.dst);
                for (l, d) in d.iter_mut().enumerate() {
                    *d = if cx.mask >> l & 1 == 1 { v } else { *d };
                }
            } else {
                let d = cx.row_mut(op.dst);
                for (l, d) in d.iter_mut().enumerate() {
                    *d = if cx.mask >> l & 1 == 1 { v as u32 } else { *d };
                }
            }
        }
        Flow::Next
    }
}

unsafe fn explicit_cluster(cx: &mut Cx, op: &Op) -> Flow {
    let v = if cx.launch.explicit_cluster() {
        super::FULL
    } else {
        0
    };
    // SAFETY: a slot of the program.
    unsafe { cx.set_pred(op.pdst, v) };
    Flow::Next
}

struct FrameAddress<const WIDE: bool>;
impl<const WIDE: bool> Body for FrameAddress<WIDE> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program; source and destination are different values.
        unsafe {
            let base = cx.row64(op.src[0]);
            for l in 0..32 {
                if cx.mask >> l & 1 == 1 {
                    let v = base[l].wrapping_add(op.imm as u64);
                    if WIDE {
                        cx.row64_mut(op.dst)[l] = v;
                    } else {
                        cx.row_mut(op.dst)[l] = v as u32;
                    }
                }
            }
        }
        Flow::Next
    }
}

/// Handler of "address of a variable in the frame of a recursive function": `src[0]` (64 bits) + `imm`.
pub fn frame_address(width: u32) -> Handler {
    if width == 64 {
        handler::<FrameAddress<true>>()
    } else {
        handler::<FrameAddress<false>>()
    }
}

/// The handler of what has no effect here.
///
/// # Safety
/// None is needed; it has the signature of a handler.
pub unsafe fn nothing(_: &mut Cx, _: &Op) -> Flow {
    Flow::Next
}

unsafe fn sleep(_: &mut Cx, _: &Op) -> Flow {
    Flow::Yield
}

unsafe fn bra(cx: &mut Cx, op: &Op) -> Flow {
    if cx.mask == cx.active {
        cx.pc = op.imm as u32;
        return Flow::Branch;
    }
    split(cx, cx.mask, op.imm as u32);
    let pc = cx.pc + 1;
    cx.fragment().pc = pc;
    Flow::Jump
}

/// Moves `lanes` of the running fragment to a fragment of their own at `pc`.
fn split(cx: &mut Cx, lanes: u32, pc: u32) {
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

unsafe fn brx(cx: &mut Cx, op: &Op) -> Flow {
    let table: &BranchTable = cx.ext(op);
    // SAFETY: a row of the program.
    let index = unsafe { cx.row(op.src[0]) };
    let mut left = cx.mask;
    let first = left.trailing_zeros() as usize;
    let beyond = |lane: usize| {
        format!(
            "brx.idx: lane {lane} has index {}, the table has {} targets",
            index[lane],
            table.len()
        )
    };
    if (0..32).all(|l| left >> l & 1 == 0 || index[l] == index[first]) && left == cx.active {
        return match table.get(index[first] as usize) {
            Some(&pc) => {
                cx.pc = pc;
                Flow::Branch
            }
            None => cx.fail(Fault::InvalidPc(beyond(first))),
        };
    }
    while left != 0 {
        let lane = left.trailing_zeros() as usize;
        let same = (0..32)
            .filter(|&l| left >> l & 1 == 1 && index[l] == index[lane])
            .fold(0, |m, l| m | 1 << l);
        let Some(&pc) = table.get(index[lane] as usize) else {
            return cx.fail(Fault::InvalidPc(beyond(lane)));
        };
        split(cx, same, pc);
        left &= !same;
    }
    let pc = cx.pc + 1;
    let f = cx.fragment();
    f.pc = pc;
    drop_if_empty(cx);
    Flow::Jump
}

/// Removes the running fragment when it has no lanes left.
pub fn drop_if_empty(cx: &mut Cx) {
    let current = cx.warp().current;
    if cx.warp().fragments[current].mask == 0 {
        cx.warp().fragments.remove(current);
    }
}

unsafe fn exit(cx: &mut Cx, _: &Op) -> Flow {
    end_lanes(cx);
    Flow::Jump
}

/// The executing lanes are done.
fn end_lanes(cx: &mut Cx) {
    let (mask, pc) = (cx.mask, cx.pc);
    cx.warp().live &= !mask;
    let f = cx.fragment();
    f.mask &= !mask;
    f.pc = pc + 1;
    drop_if_empty(cx);
    cx.cluster().progress += 1;
    if cx.warp().live == 0 {
        super::barrier::warp_exited(cx);
    }
}

unsafe fn return_(cx: &mut Cx, op: &Op) -> Flow {
    if cx.fragment().calls.is_empty() {
        // SAFETY: as for this handler.
        return unsafe { exit(cx, op) };
    }
    super::call::return_(cx)
}

unsafe fn trap(cx: &mut Cx, _: &Op) -> Flow {
    let at = cx.place();
    cx.fail(Fault::Trap(format!("trap at {at}")))
}

unsafe fn breakpoint(cx: &mut Cx, _: &Op) -> Flow {
    let at = cx.place();
    cx.fail(Fault::Trap(format!(
        "brkpt at {at}, no debugger is attached"
    )))
}

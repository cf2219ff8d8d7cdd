//! One turn of a warp: its fragments run until all are blocked, the quantum is spent, or the warp ends.

use super::{Cx, Flow, Fragment, LANES, Wait};
use crate::program::{Class, FunctionInfo, Op};

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Every fragment waits for something.
    Blocked,
    /// Something ran and could run on.
    Spent,
    /// No lane is left.
    Exited,
    Fault,
}

/// A turn of at least this length that does not end by itself lets the fragments change places.
pub const LONG: u32 = 512;

enum Stop {
    Blocked,
    Spent,
    Yielded,
    /// Fragments changed or met.
    Changed,
    Fault,
}

/// Gives the warp of `cx` at most `quantum` operations.
///
/// # Safety
/// `cx` points to a running warp, its CTA and its cluster, and nobody else uses the cluster meanwhile.
pub unsafe fn turn(cx: &mut Cx, quantum: u32) -> Turn {
    let progress = cx.cluster().progress;
    cx.budget = quantum;
    cx.cluster().steps += u64::from(quantum);
    for f in &mut cx.warp().fragments {
        f.polled = false;
    }
    // After a turn that ended by its quantum another fragment may be the one that matters.
    let by_lot = std::mem::take(&mut cx.warp().preempted);
    // SAFETY: as for this function.
    let end = unsafe { fragments(cx, by_lot) };
    let left = u64::from(cx.budget);
    cx.cluster().steps -= left;
    cx.warp().ops_executed += u64::from(quantum) - left;
    let warp = cx.warp();
    warp.blocked_at = (end == Turn::Blocked).then_some(progress);
    // Short turns are for other warps' sake; lanes that only loop for a while should stay together.
    warp.preempted = end == Turn::Spent && warp.fragments.len() > 1 && quantum >= LONG;
    end
}

unsafe fn fragments(cx: &mut Cx, mut by_lot: bool) -> Turn {
    loop {
        if cx.warp().fragments.is_empty() {
            return Turn::Exited;
        }
        let Some(current) = choose(cx, by_lot) else {
            return Turn::Blocked;
        };
        cx.warp().current = current;
        // SAFETY: as for `turn`.
        let stop = unsafe {
            match (cx.warp().fragments.len(), by_lot, cx.observed) {
                (1, _, false) => run::<false, false, false>(cx),
                (_, false, false) => run::<true, false, false>(cx),
                (_, true, false) => run::<true, true, false>(cx),
                (1, _, true) => run::<false, false, true>(cx),
                (_, false, true) => run::<true, false, true>(cx),
                (_, true, true) => run::<true, true, true>(cx),
            }
        };
        match stop {
            Stop::Blocked => {
                cx.fragment().polled = true;
                by_lot = false;
            }
            Stop::Changed => {}
            Stop::Spent | Stop::Yielded => return Turn::Spent,
            Stop::Fault => return Turn::Fault,
        }
        if cx.budget == 0 {
            return Turn::Spent;
        }
    }
}

/// The fragment to run: of those not found blocked in this turn the one with the smallest pc, or any, by lot.
fn choose(cx: &mut Cx, by_lot: bool) -> Option<usize> {
    if cx.warp().fragments.len() == 1 {
        return (!cx.warp().fragments[0].polled).then_some(0);
    }
    let functions = &cx.launch.program.functions;
    merge(&mut cx.warp().fragments, functions);
    let draw = if by_lot { cx.cluster().rng.next() } else { 0 };
    let fragments = &cx.warp().fragments;
    let ready = || (0..fragments.len()).filter(|&i| !fragments[i].polled);
    if by_lot {
        let n = ready().count();
        return (n > 0).then(|| ready().nth(draw as usize % n)).flatten();
    }
    ready().min_by_key(|&i| fragments[i].pc)
}

/// May the fragment join another at the same operation? Not when it has already done a part of it.
fn can_merge(f: &Fragment) -> bool {
    matches!(f.wait, Wait::None | Wait::Converge { .. })
}

fn same_calls(a: &Fragment, b: &Fragment) -> bool {
    a.calls.len() == b.calls.len()
        && a.calls.iter().zip(&b.calls).all(|(a, b)| {
            (a.return_pc, a.call, a.callee, a.top) == (b.return_pc, b.call, b.callee, b.top)
        })
}

/// Joins the fragments that stand at the same operation.
fn merge(fragments: &mut Vec<Fragment>, functions: &[FunctionInfo]) {
    let mut i = 0;
    while i < fragments.len() {
        let mut j = i + 1;
        while j < fragments.len() {
            let (a, b) = (&fragments[i], &fragments[j]);
            if a.pc == b.pc && can_merge(a) && can_merge(b) && same_calls(a, b) {
                let b = fragments.swap_remove(j);
                let a = &mut fragments[i];
                for (to, from) in a.calls.iter_mut().zip(&b.calls) {
                    for lane in (0..LANES).filter(|l| b.mask >> l & 1 == 1) {
                        to.stack[lane] = from.stack[lane];
                    }
                    if !to.saved.is_empty() {
                        functions[to.callee as usize].copy_lanes(
                            &mut to.saved,
                            &from.saved,
                            b.mask,
                        );
                    }
                    for (p, other) in to.saved_preds.iter_mut().zip(&from.saved_preds) {
                        *p = *p & !b.mask | other & b.mask;
                    }
                }
                a.mask |= b.mask;
                a.wait = Wait::None;
                a.polled = false;
            } else {
                j += 1;
            }
        }
        i += 1;
    }
}

/// Has the running fragment met another, or (unless drawn by lot) passed one that could run?
fn meets(cx: &mut Cx, pc: u32, by_lot: bool) -> bool {
    let warp = cx.warp();
    warp.fragments.iter().enumerate().any(|(i, f)| {
        i != warp.current && (f.pc == pc && can_merge(f) || !by_lot && !f.polled && f.pc < pc)
    })
}

/// Runs the current fragment.
unsafe fn run<const MANY: bool, const BY_LOT: bool, const OBSERVED: bool>(cx: &mut Cx) -> Stop {
    let ops = cx.launch.program.ops.as_ptr();
    let preds = cx.preds;
    let (mut pc, active) = {
        let f = cx.fragment();
        (f.pc, f.mask)
    };
    cx.active = active;
    let mut budget = cx.budget;
    let stop = loop {
        // SAFETY: a pc never leaves the program (every function ends with a return), predicate slots are those that
        // the program was sized with, and the handler gets what `turn` was given.
        let flow = unsafe {
            let op = &*ops.add(pc as usize);
            let guard = *preds.add(op.guard.index as usize);
            let mask = (guard ^ 0u32.wrapping_sub(u32::from(op.guard.negate))) & active;
            if mask == 0 {
                Flow::Next
            } else {
                cx.mask = mask;
                cx.pc = pc;
                cx.budget = budget;
                if OBSERVED {
                    observed(cx, op)
                } else {
                    (op.run)(cx, op)
                }
            }
        };
        budget -= 1;
        match flow {
            Flow::Next => pc += 1,
            Flow::Branch => pc = cx.pc,
            Flow::Jump => {
                cx.budget = budget;
                return Stop::Changed;
            }
            Flow::Block => break Stop::Blocked,
            Flow::Yield => {
                pc += 1;
                break Stop::Yielded;
            }
            Flow::Fault => {
                // The fragment may be gone: a fault can come from the exit of its last lane.
                cx.budget = budget;
                return Stop::Fault;
            }
        }
        if budget == 0 {
            break Stop::Spent;
        }
        if MANY && meets(cx, pc, BY_LOT) {
            break Stop::Changed;
        }
    };
    cx.budget = budget;
    cx.fragment().pc = pc;
    stop
}

/// Runs an operation between the checkers' hooks.
#[inline(never)]
unsafe fn observed(cx: &mut Cx, op: &Op) -> Flow {
    let (at, mask, active) = (cx.at(), cx.mask, cx.active);
    let first = cx.fragment().wait == Wait::None;
    let (live, warp) = (cx.warp().live, cx.warp().index);
    let effects = &cx.launch.program.effects[at.pc as usize];
    if first {
        if let Some(check) = &mut cx.cluster().check {
            check.before(at, effects, op.class, active, mask);
        }
        if let Some(counters) = &mut cx.cluster().counters {
            counters.executed(warp, at.pc, mask, active, live);
        }
    }
    if cx.cluster().trace.is_some() {
        let now = cx.clock();
        if let Some(trace) = &mut cx.cluster().trace {
            trace.now = trace.now.max(now);
        }
    }
    // SAFETY: passed on from the run loop.
    let flow = unsafe { (op.run)(cx, op) };
    if cx.cluster().trace.is_some() {
        traced(cx, op, at.pc, flow);
    }
    if flow == Flow::Fault {
        return flow;
    }
    if flow == Flow::Block {
        if first && let Some(counters) = &mut cx.cluster().counters {
            counters.wait(warp, at.pc);
        }
    } else if let Some(check) = &mut cx.cluster().check {
        check.after(at, effects, mask);
    }
    let fatal = cx.cluster().check.as_mut().and_then(|c| {
        c.settle();
        c.fatal().cloned()
    });
    match fatal {
        Some(finding) => cx.fail(crate::device::Fault::Finding(Box::new(finding))),
        None => flow,
    }
}

/// Tells the trace whether the operation could proceed.
#[cold]
fn traced(cx: &mut Cx, op: &Op, pc: u32, flow: Flow) {
    // A warp whose last lane exits has no fragment any more.
    if cx.warp().fragments.is_empty() {
        return;
    }
    let (cta, warp) = (cx.cta().rank, cx.warp().index);
    if flow == Flow::Block {
        // SAFETY: the cluster runs on this thread; the description only reads it.
        let (cluster, cta_state, w) = unsafe { (&*cx.cluster, &*cx.cta, &*cx.warp) };
        let why = super::schedule::waiting(cluster, cta_state, w, &w.fragments[w.current]);
        if let Some(trace) = &mut cx.cluster().trace {
            trace.blocked(cta, warp, pc, why);
        }
    } else if let Some(trace) = &mut cx.cluster().trace {
        trace.proceeded(cta, warp, pc);
        if op.class == Class::Mufu {
            trace.mufu(cta, warp, pc);
        }
    }
}

//! Barriers of a CTA and of a cluster, fences, `setmaxnreg`, and the hints of dependent launches.
//!
//! Named barriers count threads. `.aligned` forms are executed by whole warps: such an arrival counts 32 threads, lanes
//! that have exited or never existed included, as on the device. Without a count a barrier expects every warp that has
//! not exited.

use super::{Cluster, Cta, Cx, FULL, Flow, NamedBarrier, Wait};
use crate::check::{Fence, FindingKind, Sync};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Reduce {
    Popc,
    And,
    Or,
}

/// A named barrier operation.
#[derive(Debug, Clone, Copy)]
struct Bar {
    aligned: bool,
    arrive: bool,
    reduce: Option<Reduce>,
    /// A thread count is given (`src[1]`).
    counted: bool,
}

/// A barrier.cluster operation.
#[derive(Debug, Clone, Copy)]
struct ClusterOp {
    aligned: bool,
    /// Without `.relaxed`.
    releases: bool,
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let modifiers: Vec<&str> = i.op.iter().map(|m| &**m).collect();
    match modifiers[0] {
        "bar" if modifiers.get(1) == Some(&"warp") => Ok(false),
        "barrier" if modifiers.get(1) == Some(&"cluster") => cluster_barrier(cx, i, &modifiers),
        "bar" | "barrier" => named(cx, i, &modifiers),
        "membar" | "fence" => fence(cx, i, &modifiers),
        "setmaxnreg" => set_registers(cx, i, &modifiers),
        "griddepcontrol" => {
            // Kernels of one stream run one after the other, so all that a predecessor wrote is there.
            match modifiers.get(1) {
                Some(&"wait" | &"launch_dependents") => {
                    cx.emit(i, LowerCx::new_op(nothing, Class::Other))?;
                }
                _ => return cx.unsupported(i, "is .wait or .launch_dependents"),
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

unsafe fn nothing(_: &mut Cx, _: &Op) -> Flow {
    Flow::Next
}

fn named(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<bool> {
    let mut bar = Bar {
        aligned: m[0] == "bar" || m.contains(&"aligned"),
        arrive: false,
        reduce: None,
        counted: false,
    };
    for part in &m[1..] {
        match *part {
            "cta" | "sync" | "red" | "aligned" | "u32" | "pred" => {}
            "arrive" => bar.arrive = true,
            "popc" => bar.reduce = Some(Reduce::Popc),
            "and" => bar.reduce = Some(Reduce::And),
            "or" => bar.reduce = Some(Reduce::Or),
            _ => return cx.unsupported(i, "unknown modifier"),
        }
    }
    let mut op = LowerCx::new_op(
        if bar.arrive { bar_arrive } else { bar_sync },
        Class::Barrier,
    );
    let mut operands = &i.operands[..];
    if let Some(reduce) = bar.reduce {
        let [dst, rest @ .., p] = operands else {
            return cx.unsupported(i, "operands are missing");
        };
        op.psrc = cx.pred_src(p)?;
        if reduce == Reduce::Popc {
            op.dst = cx.dst(dst, Ty::B32)?;
        } else {
            op.pdst = cx.pred_dst(dst)?;
        }
        operands = rest;
    }
    if operands.is_empty() {
        return cx.unsupported(i, "the barrier is missing");
    }
    if let Operand::Int(id) = operands[0]
        && !(0..16).contains(&id)
    {
        return cx.unsupported(i, "barriers are 0 to 15");
    }
    op.src[0] = cx.src(&operands[0], Ty::U32)?;
    if let Some(count) = operands.get(1) {
        if let Operand::Int(n) = count
            && (*n <= 0 || n % 32 != 0)
        {
            return cx.unsupported(i, "the count of threads has to be a multiple of 32");
        }
        bar.counted = true;
        op.src[1] = cx.src(count, Ty::U32)?;
    } else if bar.arrive {
        return cx.unsupported(i, "bar.arrive needs a count of threads");
    }
    op.ext = cx.ext(bar);
    cx.emit(i, op)?;
    Ok(true)
}

/// Threads that a barrier waits for.
pub fn expected(cta: &Cta, b: &NamedBarrier) -> u32 {
    if b.expected != 0 {
        b.expected
    } else {
        32 * cta.warps.iter().filter(|w| w.live != 0).count() as u32
    }
}

/// Threads for which the arrival of the executing lanes counts.
fn weight(cx: &mut Cx) -> u32 {
    let (mask, live) = (cx.mask, cx.warp().live);
    // Lanes that do not run any more come with the lowest lane that does.
    let dead = if mask & (live & live.wrapping_neg()) != 0 {
        !live
    } else {
        0
    };
    (mask | dead).count_ones()
}

fn misuse(cx: &mut Cx, message: String) {
    let at = cx.at();
    cx.finding(FindingKind::NamedBarrier, at, message);
}

/// Arrives; `None` when that was a mistake and the launch has failed.
unsafe fn arrive(cx: &mut Cx, op: &Op, bar: Bar) -> Option<u32> {
    let lane = cx.mask.trailing_zeros() as usize;
    // SAFETY: rows of the program.
    let (id, count) = unsafe {
        let count = if bar.counted {
            cx.row(op.src[1])[lane]
        } else {
            0
        };
        (cx.row(op.src[0])[lane], count)
    };
    if id >= 16 {
        misuse(cx, format!("there is no barrier {id}"));
        return None;
    }
    if bar.counted && (count == 0 || count % 32 != 0) {
        misuse(
            cx,
            format!("barrier {id} with {count} threads, which is no multiple of 32"),
        );
        return None;
    }
    let weight = weight(cx);
    let cta = cx.cta();
    let b = &mut cta.named[id as usize];
    if b.arrived == 0 {
        b.expected = count;
        (b.popc, b.and, b.or) = (0, true, false);
    } else if b.expected != count {
        let first = b.expected;
        let all = 32 * cta.warps.len() as u32;
        let of = |n: u32| if n == 0 { all } else { n };
        if of(first) != of(count) {
            misuse(
                cx,
                format!(
                    "barrier {id} with {} threads, earlier arrivals said {}",
                    of(count),
                    of(first)
                ),
            );
            return None;
        }
    }
    let b = &mut cx.cta().named[id as usize];
    b.arrived += weight;
    if bar.reduce.is_some() {
        // SAFETY: a slot of the program.
        let votes = unsafe { cx.pred(op.psrc) } & cx.mask;
        let mask = cx.mask;
        let b = &mut cx.cta().named[id as usize];
        b.popc += votes.count_ones();
        b.and &= votes == mask;
        b.or |= votes != 0;
    }
    cx.cluster().progress += 1;
    if cx.observed {
        let at = cx.at();
        let cta = cx.cta().rank;
        if let Some(c) = &mut cx.cluster().check {
            c.release(at, Sync::Named { cta, id });
        }
    }
    let cta = cx.cta();
    let (arrived, wanted) = (
        cta.named[id as usize].arrived,
        expected(cta, &cta.named[id as usize]),
    );
    if arrived > wanted {
        misuse(
            cx,
            format!("{arrived} threads at barrier {id}, which expects {wanted}"),
        );
        return None;
    }
    if arrived == wanted {
        complete(cx, id);
    }
    Some(id)
}

fn complete(cx: &mut Cx, id: u32) {
    let b = &mut cx.cta().named[id as usize];
    (b.last_popc, b.last_and, b.last_or) = (b.popc, b.and, b.or);
    b.generation += 1;
    b.arrived = 0;
    b.expected = 0;
    let cta = cx.cta().rank;
    if let Some(c) = &mut cx.cluster().check {
        c.advance(Sync::Named { cta, id });
    }
}

unsafe fn bar_arrive(cx: &mut Cx, op: &Op) -> Flow {
    if !cx.aligned() {
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    let bar: Bar = *cx.ext(op);
    // SAFETY: as for this handler.
    match unsafe { arrive(cx, op, bar) } {
        Some(_) => Flow::Next,
        None => Flow::Fault,
    }
}

unsafe fn bar_sync(cx: &mut Cx, op: &Op) -> Flow {
    let bar: Bar = *cx.ext(op);
    let (id, generation) = match cx.fragment().wait {
        Wait::Named { id, generation } => (id, generation),
        _ => {
            if bar.aligned && !cx.aligned() {
                return Flow::Block;
            }
            // SAFETY: a row of the program.
            let id = unsafe { cx.row(op.src[0])[cx.mask.trailing_zeros() as usize] };
            let generation = cx.cta().named[id as usize & 15].generation;
            // SAFETY: as for this handler.
            match unsafe { arrive(cx, op, bar) } {
                Some(id) => (id, generation),
                None => return Flow::Fault,
            }
        }
    };
    let b = &cx.cta().named[id as usize];
    if b.generation == generation {
        cx.fragment().wait = Wait::Named { id, generation };
        return Flow::Block;
    }
    let (popc, and, or) = (b.last_popc, b.last_and, b.last_or);
    cx.fragment().wait = Wait::None;
    if cx.observed {
        let at = cx.at();
        let cta = cx.cta().rank;
        if let Some(c) = &mut cx.cluster().check {
            c.acquire(at, Sync::Named { cta, id });
        }
    }
    // SAFETY: rows and slots of the program.
    unsafe {
        match bar.reduce {
            None => {}
            Some(Reduce::Popc) => {
                let row = cx.row_mut(op.dst);
                for (l, r) in row.iter_mut().enumerate() {
                    *r = if cx.mask >> l & 1 == 1 { popc } else { *r };
                }
            }
            Some(Reduce::And) => cx.set_pred(op.pdst, if and { FULL } else { 0 }),
            Some(Reduce::Or) => cx.set_pred(op.pdst, if or { FULL } else { 0 }),
        }
    }
    Flow::Next
}

/// The last lane of a warp has exited: barriers that expect all warps may be complete now.
pub fn warp_exited(cx: &mut Cx) {
    for id in 0..16 {
        let cta = cx.cta();
        let b = &cta.named[id];
        if b.arrived != 0 && b.expected == 0 && b.arrived >= expected(cta, b) {
            complete(cx, id as u32);
        }
    }
    let all = cx.cta().warps.iter().all(|w| w.live == 0);
    if all && !cx.cta().exited {
        cx.cta().exited = true;
        let (rank, at) = (cx.cta().rank, cx.at());
        crate::asynchronous::cta_exits(cx.cluster(), rank, at);
    }
    cluster_complete(cx);
}

fn cluster_barrier(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<bool> {
    let mut arrive = false;
    let mut ext = ClusterOp {
        aligned: false,
        releases: true,
    };
    for part in &m[2..] {
        match *part {
            "arrive" => arrive = true,
            "wait" | "release" | "acquire" => {}
            "relaxed" => ext.releases = false,
            "aligned" => ext.aligned = true,
            _ => return cx.unsupported(i, "unknown modifier"),
        }
    }
    let mut op = LowerCx::new_op(
        if arrive { cluster_arrive } else { cluster_wait },
        Class::Barrier,
    );
    op.ext = cx.ext(ext);
    cx.emit(i, op)?;
    Ok(true)
}

/// Threads of the cluster that have not exited.
pub fn cluster_expected(cluster: &Cluster) -> u32 {
    cluster
        .ctas
        .iter()
        .flat_map(|c| &c.warps)
        .map(|w| w.live.count_ones())
        .sum()
}

fn cluster_complete(cx: &mut Cx) {
    let c = cx.cluster();
    if c.cluster_arrived != 0 && c.cluster_arrived >= cluster_expected(c) {
        c.cluster_arrived = 0;
        c.cluster_generation += 1;
        c.progress += 1;
        if let Some(check) = &mut c.check {
            check.advance(Sync::ClusterBarrier);
        }
    }
}

unsafe fn cluster_arrive(cx: &mut Cx, op: &Op) -> Flow {
    let ext: ClusterOp = *cx.ext(op);
    if ext.aligned && !cx.aligned() {
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    if cx.observed {
        let at = cx.at();
        if let Some(c) = &mut cx.cluster().check {
            if ext.releases {
                c.release(at, Sync::ClusterBarrier);
            } else {
                c.release_fenced(at, Sync::ClusterBarrier);
            }
        }
    }
    let lanes = cx.mask.count_ones();
    let generation = cx.cluster().cluster_generation;
    cx.warp().cluster_arrival = generation + 1;
    cx.cluster().cluster_arrived += lanes;
    cx.cluster().progress += 1;
    cluster_complete(cx);
    Flow::Next
}

unsafe fn cluster_wait(cx: &mut Cx, op: &Op) -> Flow {
    let ext: ClusterOp = *cx.ext(op);
    if ext.aligned && !matches!(cx.fragment().wait, Wait::Cluster { .. }) && !cx.aligned() {
        return Flow::Block;
    }
    let generation = cx.warp().cluster_arrival;
    if cx.cluster().cluster_generation < generation {
        cx.fragment().wait = Wait::Cluster { generation };
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    if cx.observed {
        let at = cx.at();
        if let Some(c) = &mut cx.cluster().check {
            c.acquire(at, Sync::ClusterBarrier);
        }
    }
    Flow::Next
}

fn fence(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<bool> {
    let has = |s: &str| m.contains(&s);
    let kind = if has("mbarrier_init") {
        Fence::MbarrierInit
    } else if m.iter().any(|p| p.starts_with("proxy")) || has("proxy") {
        let names: Vec<&str> = m[1..].iter().filter(|p| **p != "proxy").copied().collect();
        match names.first().copied().unwrap_or("") {
            "alias" => Fence::ProxyAlias,
            "async" => {
                let space = names.get(1).copied().unwrap_or("");
                Fence::ProxyAsync {
                    global: space.is_empty() || space == "global",
                    shared: space.is_empty() || space.starts_with("shared"),
                }
            }
            "async::generic" => Fence::ProxyAsync {
                global: has("global") || !m.iter().any(|p| p.starts_with("sync_restrict")),
                shared: true,
            },
            "tensormap::generic" => Fence::ProxyTensormap {
                acquire: has("acquire"),
            },
            _ => return cx.unsupported(i, "unknown proxy"),
        }
    } else {
        let scope = m[1..].iter().rev().find_map(|p| match *p {
            "cta" => Some(Fence::Cta),
            "cluster" => Some(Fence::Cluster),
            "gpu" | "sys" | "gl" => Some(Fence::Gpu),
            _ => None,
        });
        match scope {
            Some(s) => s,
            None => return cx.unsupported(i, "the scope is missing"),
        }
    };
    for o in &i.operands {
        match o {
            Operand::Address { .. } => _ = cx.address(o)?,
            Operand::Int(_) => {}
            _ => return cx.unsupported(i, "unexpected operand"),
        }
    }
    let mut op = LowerCx::new_op(run_fence, Class::Fence);
    op.ext = cx.ext(kind);
    cx.emit(i, op)?;
    Ok(true)
}

/// The interpreter executes a cluster on one host thread, so memory is always in order; fences matter to the checkers.
unsafe fn run_fence(cx: &mut Cx, op: &Op) -> Flow {
    if cx.observed {
        let (at, lanes) = (cx.at(), cx.mask);
        let fence: Fence = *cx.ext(op);
        if let Some(c) = &mut cx.cluster().check {
            c.fence(at, fence, lanes);
        }
        if fence == (Fence::ProxyTensormap { acquire: true }) {
            cx.cluster().asynchronous.maps_acquired();
        }
    }
    Flow::Next
}

fn set_registers(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<bool> {
    let inc = match m.get(1) {
        Some(&"inc") => true,
        Some(&"dec") => false,
        _ => return cx.unsupported(i, "is .inc or .dec"),
    };
    let Some(&Operand::Int(count)) = i.operands.first() else {
        return cx.unsupported(i, "the count has to be a constant");
    };
    if !(24..=256).contains(&count) || count % 8 != 0 {
        return cx.unsupported(i, "the count is a multiple of 8 from 24 to 256");
    }
    let asked = if inc { count as u32 } else { 0 };
    cx.most_registers = Some(cx.most_registers.unwrap_or(0).max(asked));
    let mut op = LowerCx::new_op(
        if inc { registers_inc } else { registers_dec },
        Class::Other,
    );
    op.imm = count;
    cx.emit(i, op)?;
    Ok(true)
}

unsafe fn registers_dec(cx: &mut Cx, op: &Op) -> Flow {
    if !cx.aligned() {
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    let (cap, want) = (cx.warp().register_cap, op.imm as u32);
    if want > cap {
        let at = cx.at();
        return cx.finding(
            FindingKind::Setmaxnreg,
            at,
            format!("setmaxnreg.dec to {want} registers; the warp has {cap}"),
        );
    }
    cx.warp().register_cap = want;
    cx.cta().register_pool += (cap - want) * 32;
    cx.cluster().progress += 1;
    Flow::Next
}

unsafe fn registers_inc(cx: &mut Cx, op: &Op) -> Flow {
    if !matches!(cx.fragment().wait, Wait::Registers { .. }) && !cx.aligned() {
        return Flow::Block;
    }
    let (cap, want) = (cx.warp().register_cap, op.imm as u32);
    if want < cap {
        let at = cx.at();
        return cx.finding(
            FindingKind::Setmaxnreg,
            at,
            format!("setmaxnreg.inc to {want} registers; the warp has {cap}"),
        );
    }
    let more = (want - cap) * 32;
    if cx.cta().register_pool < more {
        cx.fragment().wait = Wait::Registers { want: more };
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    cx.cta().register_pool -= more;
    cx.warp().register_cap = want;
    Flow::Next
}

//! The warpgroup's queue of wgmma operations.
//!
//! Every warp of a warpgroup executes the same sequence of operations; the first to reach the k-th creates entry k, the others join it.
//! An entry can be executed once all four warps have issued it; entries are executed in order. When one is *retired*
//! (executed: operands read from shared memory, accumulators of all four warps updated) follows the policy:
//!
//! * eager: at once, when the fourth warp issues it;
//! * latest: only when a `wait_group` needs it;
//! * random: at any wgmma instruction in between, drawn from the seed.
//!
//! Reading the operands as late as is legal is what makes a stage that was released too early give wrong results.
//!
//! `wait_group n` waits for all but the n newest groups of its own warp. It executes what it needs and is blocked only
//! by warps that have not issued their part. A group belongs to the warpgroup and is complete as a whole: a warp that has waited for
//! it follows the operation's reads of all four warps, so that one thread may release a stage for the warpgroup (as CUTLASS does).

use super::descriptor::Tile;
use super::execute;
use super::panel::{RawA, SourceA, out_of_bounds};
use super::sparse;
use super::wgmma::{Mma, Output};
use crate::check::{Agent, At, Checker, FindingKind, SiteRef};
use crate::device::{Fault, Policy};
use crate::exec::{Cta, Cx, Flow, Wait};
use crate::program::Op;
use std::collections::VecDeque;

/// One operation of the warpgroup.
pub(super) struct Entry {
    pub pc: u32,
    /// Extension record: [`Mma`].
    pub ext: u32,
    /// List of rows: D, then A.
    pub list: u32,
    pub a: SourceA,
    pub b: Tile,
    descriptors: [u64; 2],
    /// Metadata registers of the warps, if A is compressed.
    pub metadata: Option<Box<[[u32; 32]; 4]>>,
    /// scale-d: D is added to.
    pub keep: bool,
    /// Warps that have issued it.
    issued: u8,
    /// An operand was reported: it is not executed.
    broken: bool,
    /// The operation as an agent of the checker, one per warp.
    pub agents: [Agent; 4],
}

#[derive(Default)]
struct Warp {
    /// Index of the next operation this warp issues.
    next: u64,
    /// First index after each outstanding group.
    groups: VecDeque<u64>,
    /// Operations below this index were waited for.
    waited: u64,
}

/// wgmma operations of one warpgroup.
#[derive(Default)]
pub struct WarpgroupState {
    queue: VecDeque<Entry>,
    /// Index of the queue's front: operations below it are retired.
    retired: u64,
    warps: [Warp; 4],
    /// Agents of retired operations that not all warps have waited for yet, by index.
    done: VecDeque<(u64, [Agent; 4])>,
    /// Buffers for A fragments, to be used again.
    #[allow(clippy::vec_box)] // 2 KB each; the boxes move into queue entries and back
    spare: Vec<Box<RawA>>,
}

impl WarpgroupState {
    fn executable(&self) -> bool {
        self.queue.front().is_some_and(|e| e.issued == 0b1111)
    }
    /// Are operations outstanding?
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A misuse: a finding if there is a checker (and execution goes on), a fault if not.
fn misuse(cx: &mut Cx, kind: FindingKind, message: String, other: Option<u32>) -> Option<Flow> {
    let at = cx.at();
    match cx.cluster().check.as_deref_mut() {
        Some(check) => {
            let others = other
                .map(|pc| SiteRef {
                    pc,
                    who: check.name(at.agent),
                    role: "wgmma in flight".into(),
                })
                .into_iter()
                .collect();
            check.report(kind, at, message, others);
            None
        }
        None => Some(cx.fail(Fault::IllegalInstruction(message))),
    }
}

/// The executing warp's place: (warpgroup, warp in it), if it belongs to a whole warpgroup.
fn place(cx: &mut Cx) -> Result<(usize, usize), Flow> {
    let w = cx.warp().index as usize;
    let cta = cx.cta();
    if cta.warps.len() < (w / 4 + 1) * 4 || cta.warpgroups.len() <= w / 4 {
        let n = cta.warps.len();
        return Err(cx.fail(Fault::IllegalInstruction(format!(
            "wgmma by warp {w} of a block of {n} warps: its warpgroup is not complete"
        ))));
    }
    Ok((w / 4, w % 4))
}

/// The value of a 64-bit operand, the same in all lanes.
unsafe fn uniform(cx: &mut Cx, row: u32, what: &str) -> Result<u64, Flow> {
    // SAFETY: a row of the executing program.
    let lanes = unsafe { cx.row64(row) };
    let first = lanes[cx.mask.trailing_zeros() as usize & 31];
    let mut differ = 0u32;
    for (l, v) in lanes.iter().enumerate() {
        differ |= u32::from(*v != first) << l;
    }
    if differ & cx.mask != 0 {
        let message = format!("the descriptor of {what} differs between the lanes of a warp");
        if let Some(flow) = misuse(cx, FindingKind::WgmmaOperand, message, None) {
            return Err(flow);
        }
    }
    Ok(first)
}

/// wgmma.mma_async.
///
/// # Safety
/// Called by a handler with its own operation; all live lanes execute.
pub(super) unsafe fn issue(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: see above.
    match unsafe { try_issue(cx, op) } {
        Ok(flow) | Err(flow) => flow,
    }
}

unsafe fn try_issue(cx: &mut Cx, op: &Op) -> Result<Flow, Flow> {
    let (group, w) = place(cx)?;
    let mma: &Mma = cx.ext(op);
    let mut descriptors = [0; 2];
    let keep_mask;
    // SAFETY: operands of the executing operation.
    unsafe {
        if !mma.a_in_registers {
            descriptors[0] = uniform(cx, op.src[0], "A")?;
        }
        descriptors[1] = uniform(cx, op.src[1], "B")?;
        keep_mask = cx.pred(op.psrc) & cx.mask;
    }
    if keep_mask != 0 && keep_mask != cx.mask {
        let message = "scale-d differs between the lanes of a warp".to_string();
        if let Some(flow) = misuse(cx, FindingKind::WgmmaOperand, message, None) {
            return Err(flow);
        }
    }
    let keep = keep_mask != 0;
    let pc = cx.pc;
    let list = op.imm as u32;
    let rows = &cx.launch.program.lists[list as usize];
    let state = &mut cx.cta().warpgroups[group];
    let index = state.warps[w].next;
    state.warps[w].next += 1;
    let position = (index - state.retired) as usize;
    if position == state.queue.len() {
        let a = if mma.a_in_registers {
            let mut raw = state.spare.pop().unwrap_or_else(RawA::boxed);
            raw.mn_major = false;
            SourceA::Registers(raw)
        } else {
            SourceA::Descriptor(Tile::decode(descriptors[0], mma.a_mn_major))
        };
        state.queue.push_back(Entry {
            pc,
            ext: op.ext,
            list,
            a,
            b: Tile {
                deep: if mma.sparse.is_some() { 4 } else { 2 },
                ..Tile::decode(descriptors[1], mma.b_mn_major)
            },
            descriptors,
            metadata: mma.sparse.map(|_| Box::new([[0; 32]; 4])),
            keep,
            issued: 0,
            broken: false,
            agents: [Agent(0); 4],
        });
        let broken = check_descriptors(cx, mma, group, position)?;
        cx.cta().warpgroups[group].queue[position].broken = broken;
    } else {
        let e = &state.queue[position];
        let problem = if e.pc != pc {
            Some("the warps of a warpgroup execute different wgmma instructions")
        } else if e.descriptors != descriptors {
            Some("a descriptor differs between the warps of a warpgroup")
        } else if e.keep != keep {
            Some("scale-d differs between the warps of a warpgroup")
        } else {
            None
        };
        if let Some(problem) = problem {
            let other = Some(e.pc);
            if let Some(flow) = misuse(cx, FindingKind::WgmmaOperand, problem.into(), other) {
                return Err(flow);
            }
        }
    }
    let at = cx.at();
    let agent = match cx.cluster().check.as_deref_mut() {
        Some(check) => {
            if let Some(v) = check.tensor.issue(at.agent.0, index, pc, mma, rows) {
                report_violation(check, at, v);
            }
            let metadata = mma.sparse.map(|selector| (op.src[2], selector));
            define(check, at.agent, mma, rows, keep, metadata);
            check.fork(at, "wgmma")
        }
        None => at.agent,
    };
    // SAFETY: the cluster runs on this thread; the registers and the warpgroup's state are different objects.
    let (regs, cta) = unsafe { (cx.regs, &mut *cx.cta) };
    let state = &mut cta.warpgroups[group];
    let entry = &mut state.queue[position];
    if let SourceA::Registers(raw) = &mut entry.a {
        for (r, row) in rows[mma.planes()..].iter().enumerate() {
            // SAFETY: rows of the executing program.
            let lanes = unsafe { &(*regs.add(*row as usize)).0 };
            raw.set_fragment(w, r, lanes);
        }
    }
    if let Some(metadata) = &mut entry.metadata {
        // SAFETY: a row of the executing program.
        metadata[w] = unsafe { (*regs.add(op.src[2] as usize)).0 };
    }
    let from_shared = matches!(entry.a, SourceA::Descriptor(_));
    entry.agents[w] = agent;
    entry.issued |= 1 << w;
    let complete = entry.issued == 0b1111;
    if complete {
        // A warp that waits for this operation can go on.
        cx.cluster().progress += 1;
        let cta = cx.cta().rank;
        if let Some(trace) = &mut cx.cluster().trace {
            trace.wgmma_issued(cta, group as u32, pc, index);
        }
    }
    let warp = cx.warp().index;
    if let Some(counters) = &mut cx.cluster().counters {
        // A quarter of the operation for each warp: 16 rows of A, of 32 bytes each. B is read once, for all four.
        let a = if from_shared { 4 } else { 0 };
        let b = if w == 0 { mma.n.div_ceil(4) } else { 0 };
        let flops = (2 * 16 * mma.n * mma.depth) as u64;
        counters.tensor(warp, pc, flops, (a + b) as u64);
    }
    advance(cx, group);
    Ok(Flow::Next)
}

/// Which elements of D are defined: those whose row of A is, if A is in registers, and which are not added to something undefined.
/// (What is read from shared memory has to be defined.) `metadata`: their row and selector, if A is compressed.
fn define(
    check: &mut Checker,
    agent: Agent,
    mma: &Mma,
    rows: &[u32],
    keep: bool,
    metadata: Option<(u32, usize)>,
) {
    let (d, a) = rows.split_at(mma.planes());
    // Every second register holds row g + 8 of lanes 4g..4g+4.
    let mut of_rows = [u32::MAX; 2];
    for (r, row) in a.iter().enumerate() {
        let defined = check.defined(agent, *row, 1);
        for g in (0..8).filter(|g| defined >> (4 * g) & 0xf != 0xf) {
            of_rows[r % 2] &= !(0xf << (4 * g));
        }
    }
    if let Some((row, selector)) = metadata {
        let defined = check.defined(agent, row, 1);
        for (upper, of_rows) in of_rows.iter_mut().enumerate() {
            let lanes = sparse::contributors(mma.a, mma.depth, selector, upper == 1);
            for g in (0..8).filter(|g| defined >> (4 * g) & lanes != lanes) {
                *of_rows &= !(0xf << (4 * g));
            }
        }
    }
    for (i, row) in d.iter().enumerate() {
        let half = match mma.d {
            Output::F16 => i % 2,
            _ => i / 2 % 2,
        };
        let old = if keep {
            check.defined(agent, *row, 1)
        } else {
            u32::MAX
        };
        check.define(old & of_rows[half]);
    }
}

/// What can be wrong with descriptors by themselves. `Ok(true)`: reported, cannot be executed.
fn check_descriptors(cx: &mut Cx, mma: &Mma, group: usize, position: usize) -> Result<bool, Flow> {
    let e = &cx.cta().warpgroups[group].queue[position];
    let b = e.b;
    let a = match &e.a {
        SourceA::Descriptor(t) => Some(*t),
        SourceA::Registers(_) => None,
    };
    let bytes = cx.cta().shared.len();
    let mut broken = false;
    for (tile, rows, name) in a
        .iter()
        .map(|t| (t, 64, "A"))
        .chain([(&b, mma.n as u32, "B")])
    {
        if tile.base_offset != 0 {
            let message = format!(
                "the descriptor of {name} has base offset {}; only 0 is supported",
                tile.base_offset
            );
            if let Some(flow) = misuse(cx, FindingKind::WgmmaOperand, message, None) {
                return Err(flow);
            }
            broken = true;
        }
        if tile.deep > 2 && tile.swizzle == 1 && !tile.mn_major {
            let message = format!("{name} has 64 bytes along K and its swizzle 32");
            if let Some(flow) = misuse(cx, FindingKind::WgmmaOperand, message, None) {
                return Err(flow);
            }
            broken = true;
        }
        if let Some(address) = out_of_bounds(tile, rows, bytes) {
            let message = format!(
                "operand {name} of wgmma (start {:#x}, leading {}, stride {} bytes) leaves shared memory at {address:#x}",
                tile.start, tile.leading, tile.stride
            );
            if cx.cluster().check.is_none() {
                return Err(cx.fail(Fault::IllegalAddress(message)));
            }
            misuse(cx, FindingKind::WgmmaOperand, message, None);
            broken = true;
        }
    }
    Ok(broken)
}

pub(crate) fn report_violation(check: &mut Checker, at: At, v: super::registers::Violation) {
    let others = v
        .other
        .map(|pc| SiteRef {
            pc,
            who: check.name(at.agent),
            role: "wgmma in flight".into(),
        })
        .into_iter()
        .collect();
    check.report(FindingKind::WgmmaRegisters, at, v.message, others);
}

/// Retires what the policy wants retired now.
fn advance(cx: &mut Cx, group: usize) {
    match cx.launch.policy {
        Policy::Eager => while retire(cx, group) {},
        Policy::Latest => {}
        Policy::Random => {
            if cx.cta().warpgroups[group].executable() {
                let n = cx.cluster().rng.below(4);
                for _ in 0..n {
                    if !retire(cx, group) {
                        break;
                    }
                }
            }
        }
    }
}

/// Executes the oldest operation if all warps have issued it.
fn retire(cx: &mut Cx, group: usize) -> bool {
    let program = cx.launch.program;
    // SAFETY: the cluster runs on this thread and no other reference into it is held here.
    let (cluster, cta): (_, &mut Cta) = unsafe { (&mut *cx.cluster, &mut *cx.cta) };
    let state = &mut cta.warpgroups[group];
    if !state.executable() {
        return false;
    }
    let Some(entry) = state.queue.pop_front() else {
        return false;
    };
    let index = state.retired;
    state.retired += 1;
    if cluster.check.is_some() {
        state.done.push_back((index, entry.agents));
    }
    if let Some(trace) = &mut cluster.trace {
        trace.wgmma_executed(cta.rank, group as u32, index);
    }
    if !entry.broken {
        if let Some(check) = cluster.check.as_deref_mut() {
            super::operands::check(check, &entry, index, program, cta.rank);
        }
        let rows = &program.lists[entry.list as usize];
        let mma: &Mma = program.ext[entry.ext as usize]
            .downcast_ref()
            .expect("extension record of wgmma");
        let regs = std::array::from_fn(|w| cta.warps[4 * group + w].regs.as_mut_ptr());
        // SAFETY: rows were sized with the program; operands were found in bounds at issue; nothing else runs on this
        // cluster.
        unsafe {
            let operands = execute::Operands {
                a: &entry.a,
                b: entry.b,
                keep: entry.keep,
                metadata: entry.metadata.as_deref(),
                shared: cta.shared.as_slice(),
                exact: cx.launch.device.settings.exact_mma,
            };
            execute::run(mma, &operands, regs, rows);
        }
    }
    if let SourceA::Registers(raw) = entry.a {
        cta.warpgroups[group].spare.push(raw);
    }
    cluster.progress += 1;
    true
}

/// wgmma.fence.
pub(super) fn fence(cx: &mut Cx) -> Flow {
    let (group, _) = match place(cx) {
        Ok(p) => p,
        Err(flow) => return flow,
    };
    let at = cx.at();
    if let Some(check) = cx.cluster().check.as_deref_mut() {
        check.tensor.fence(at.agent.0);
    }
    advance(cx, group);
    Flow::Next
}

/// wgmma.commit_group.
pub(super) fn commit(cx: &mut Cx) -> Flow {
    let (group, w) = match place(cx) {
        Ok(p) => p,
        Err(flow) => return flow,
    };
    let warp = &mut cx.cta().warpgroups[group].warps[w];
    let end = warp.next;
    warp.groups.push_back(end);
    advance(cx, group);
    Flow::Next
}

/// wgmma.wait_group n.
pub(super) fn wait(cx: &mut Cx, n: u32) -> Flow {
    let (group, w) = match place(cx) {
        Ok(p) => p,
        Err(flow) => return flow,
    };
    let state = &mut cx.cta().warpgroups[group];
    let done = state.warps[w].groups.len().saturating_sub(n as usize);
    if done > 0 {
        let end = state.warps[w].groups[done - 1];
        while cx.cta().warpgroups[group].retired < end {
            if !retire(cx, group) {
                cx.fragment().wait = Wait::Wgmma { pending: n };
                return Flow::Block;
            }
        }
        let at = cx.at();
        // SAFETY: the cluster runs on this thread; the checker and the warpgroup's state are different objects.
        let (cluster, cta): (_, &mut Cta) = unsafe { (&mut *cx.cluster, &mut *cx.cta) };
        let state = &mut cta.warpgroups[group];
        state.warps[w].groups.drain(..done);
        let from = std::mem::replace(&mut state.warps[w].waited, end);
        if let Some(trace) = &mut cluster.trace {
            trace.wgmma_waited(cta.rank, group as u32, end);
        }
        if let Some(check) = cluster.check.as_deref_mut() {
            check.tensor.waited(at.agent.0, end);
            for (_, agents) in state.done.iter().filter(|d| (from..end).contains(&d.0)) {
                agents.iter().for_each(|a| check.follow(at, *a));
            }
            let all = state.warps.iter().map(|w| w.waited).min().unwrap_or(0);
            while let Some((_, agents)) = state.done.pop_front_if(|d| d.0 < all) {
                agents.iter().for_each(|a| check.finish(*a));
            }
        }
    }
    cx.fragment().wait = Wait::None;
    advance(cx, group);
    Flow::Next
}

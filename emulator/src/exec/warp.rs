//! Exchange between the lanes of a warp: shfl, vote, match, redux, activemask, elect, bar.warp.sync.
//!
//! A `.sync` operation waits until all lanes of its member mask that have not exited execute the same kind of operation
//! with the same mask; they need not stand at the same pc. The fragment that comes last executes it for all.

use super::simd::{Body, handler};
use super::{Cx, Flow, LANES, Wait};
use crate::check::Sync;
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m: Vec<&str> = i.op.iter().map(|m| &**m).collect();
    // ptxas takes .sync anywhere, and programs are written so (`vote.ballot.sync.b32`).
    let usual = match m[0] {
        "shfl" | "vote" | "redux" => 1,
        "match" => 2,
        _ => usize::MAX,
    };
    if let Some(place) = m.iter().position(|p| *p == "sync")
        && place != usual
        && usual < m.len()
    {
        let sync = m.remove(place);
        m.insert(usual, sync);
    }
    match (m[0], m.get(1).copied()) {
        ("shfl", Some("sync")) => shuffle(cx, i, &m)?,
        ("vote", Some("sync")) => vote(cx, i, &m)?,
        ("match", _) => match_lower(cx, i, &m)?,
        ("redux", Some("sync")) => redux(cx, i, &m)?,
        ("activemask", _) => {
            let mut op = LowerCx::new_op(active_mask, Class::WarpExchange);
            op.dst = cx.dst(one(cx, i, 0)?, Ty::B32)?;
            cx.emit(i, op)?;
        }
        ("elect", Some("sync")) => {
            let [dst, mask] = &i.operands[..] else {
                return cx.unsupported(i, "operands are missing");
            };
            let (d, p) = pair(dst);
            let mut op = LowerCx::new_op(elect, Class::WarpExchange);
            op.src[0] = cx.src(mask, Ty::B32)?;
            op.dst = cx.dst(d, Ty::B32)?;
            op.pdst = match p {
                Some(p) => cx.pred_dst(p)?,
                None => return cx.unsupported(i, "the predicate is missing"),
            };
            cx.emit(i, op)?;
        }
        ("bar", Some("warp")) => {
            let mut op = LowerCx::new_op(warp_barrier, Class::Barrier);
            op.src[0] = cx.src(one(cx, i, 0)?, Ty::B32)?;
            cx.emit(i, op)?;
        }
        ("shfl" | "vote", _) => return cx.unsupported(i, "exists only with .sync"),
        _ => return Ok(false),
    }
    Ok(true)
}

fn one<'i>(cx: &LowerCx, i: &'i Instr, n: usize) -> Result<&'i Operand> {
    match i.operands.get(n) {
        Some(o) => Ok(o),
        None => cx.unsupported(i, "operands are missing"),
    }
}

/// `d|p`
fn pair(o: &Operand) -> (&Operand, Option<&Operand>) {
    match o {
        Operand::RegPair(d, p) => (d, Some(p)),
        d => (d, None),
    }
}

/// A fragment that takes part: its lanes and its operation.
struct Part<'a> {
    index: usize,
    mask: u32,
    op: &'a Op,
}

/// Collects the fragments that take part in the operation, the executing one first; or blocks.
///
/// Fragments that wait at an operation with the same handler, class data and member mask take part. Their lanes'
/// results are written through their own operands.
unsafe fn gather<'a>(
    cx: &mut Cx<'a>,
    op: &'a Op,
    members: u32,
) -> std::result::Result<Vec<Part<'a>>, Flow> {
    let wanted = cx.warp().live & members;
    let (mask, current) = (cx.mask, cx.warp().current);
    let mut parts = vec![Part {
        index: current,
        mask,
        op,
    }];
    let mut have = mask;
    if wanted & !have != 0 {
        let program = cx.launch.program;
        for (index, f) in cx.warp().fragments.iter().enumerate() {
            let other = &program.ops[f.pc as usize];
            if index != current
                && f.wait == (Wait::Converge { mask: members })
                && std::ptr::fn_addr_eq(other.run, op.run)
                && other.flags == op.flags
            {
                parts.push(Part {
                    index,
                    mask: f.mask,
                    op: other,
                });
                have |= f.mask;
            }
        }
    }
    if wanted & !have != 0 {
        cx.fragment().wait = Wait::Converge { mask: members };
        return Err(Flow::Block);
    }
    Ok(parts)
}

/// The other fragments go on behind their operations.
fn release(cx: &mut Cx, parts: &[Part]) -> Flow {
    cx.fragment().wait = Wait::None;
    if parts.len() == 1 {
        return Flow::Next;
    }
    for p in &parts[1..] {
        let f = &mut cx.warp().fragments[p.index];
        f.wait = Wait::None;
        f.polled = false;
        f.pc += 1;
    }
    cx.fragment().pc = cx.pc + 1;
    Flow::Jump
}

/// The member mask: the operand in the first executing lane.
unsafe fn members(cx: &Cx, op: &Op) -> u32 {
    // SAFETY: a row of the program.
    unsafe { cx.row(op.src[0])[cx.mask.trailing_zeros() as usize & 31] }
}

const UP: u8 = 0;
const DOWN: u8 = 1;
const BFLY: u8 = 2;
const IDX: u8 = 3;

fn shuffle(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<()> {
    let mode = match m.get(2).copied() {
        Some("up") => UP,
        Some("down") => DOWN,
        Some("bfly") => BFLY,
        Some("idx") => IDX,
        _ => return cx.unsupported(i, "unknown mode"),
    };
    let [dst, a, b, c, mask] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let (d, p) = pair(dst);
    let mut op = LowerCx::new_op(handler::<Shuffle>(), Class::WarpExchange);
    op.flags = mode;
    op.src[0] = cx.src(mask, Ty::B32)?;
    op.src[1] = cx.src(a, Ty::B32)?;
    op.src[2] = cx.src(b, Ty::B32)?;
    op.src[3] = cx.src(c, Ty::B32)?;
    op.dst = cx.dst(d, Ty::B32)?;
    if let Some(p) = p {
        op.pdst = cx.pred_dst(p)?;
    }
    cx.emit(i, op)
}

struct Shuffle;
impl Body for Shuffle {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program.
        unsafe {
            if cx.mask == u32::MAX {
                return whole(cx, op);
            }
            let members = members(cx, op);
            // SAFETY: operations live as long as the launch.
            let op: &Op = &*std::ptr::from_ref(op);
            let parts = match gather(cx, op, members) {
                Ok(p) => p,
                Err(flow) => return flow,
            };
            let all = parts.iter().fold(0, |m, p| m | p.mask);
            let mut value = [0u32; LANES];
            for p in &parts {
                let row = cx.row(p.op.src[1]);
                for l in (0..LANES).filter(|l| p.mask >> l & 1 == 1) {
                    value[l] = row[l];
                }
            }
            for p in &parts {
                let (b, c) = (*cx.row(p.op.src[2]), *cx.row(p.op.src[3]));
                let mut inside = 0;
                for l in (0..LANES).filter(|l| p.mask >> l & 1 == 1) {
                    let (from, ok) = source(op.flags, l as u32, b[l], c[l]);
                    // The value of a lane that does not take part is not defined: its register as it is.
                    let v = if all >> from & 1 == 1 {
                        value[from]
                    } else {
                        cx.row(p.op.src[1])[from]
                    };
                    cx.row_mut(p.op.dst)[l] = v;
                    inside |= u32::from(ok) << l;
                }
                let slot = &mut *cx.preds.add(usize::from(p.op.pdst));
                *slot = *slot & !p.mask | inside & p.mask;
            }
            release(cx, &parts)
        }
    }
}

/// All 32 lanes shuffle together.
#[inline(always)]
unsafe fn whole(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows of the program.
    unsafe {
        let a = *cx.row(op.src[1]);
        let (b, c) = (cx.row(op.src[2]), cx.row(op.src[3]));
        let mut out = [0u32; LANES];
        let mut inside = 0;
        let (mut same, b0, c0) = (0, b[0], c[0]);
        for l in 0..LANES {
            same |= (b[l] ^ b0) | (c[l] ^ c0);
        }
        if same == 0 && op.flags == BFLY && b0 < 32 && c0 == 0x1f {
            let b = b0 as usize;
            for (l, o) in out.iter_mut().enumerate() {
                *o = a[(l ^ b) & 31];
            }
            inside = u32::MAX;
        } else {
            for l in 0..LANES {
                let (from, ok) = source(op.flags, l as u32, b[l], c[l]);
                out[l] = a[from];
                inside |= u32::from(ok) << l;
            }
        }
        cx.fragment().wait = Wait::None;
        *cx.row_mut(op.dst) = out;
        cx.set_pred(op.pdst, inside);
    }
    Flow::Next
}

/// The lane that lane `l` reads, and whether it lies within its segment.
#[inline(always)]
fn source(mode: u8, l: u32, b: u32, c: u32) -> (usize, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let max = (l & segment) | (clamp & !segment);
    let min = l & segment;
    let (from, ok) = match mode {
        UP => {
            let j = l as i32 - b as i32;
            (j as u32, j >= max as i32)
        }
        DOWN => (l + b, l + b <= max),
        BFLY => (l ^ b, l ^ b <= max),
        _ => {
            let j = min | (b & !segment);
            (j, j <= max)
        }
    };
    (if ok { from & 31 } else { l } as usize, ok)
}

const ALL: u8 = 0;
const ANY: u8 = 1;
const UNI: u8 = 2;
const BALLOT: u8 = 3;

fn vote(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<()> {
    let mode = match m.get(2).copied() {
        Some("all") => ALL,
        Some("any") => ANY,
        Some("uni") => UNI,
        Some("ballot") => BALLOT,
        _ => return cx.unsupported(i, "unknown mode"),
    };
    let [dst, a, mask] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let mut op = LowerCx::new_op(run_vote, Class::WarpExchange);
    op.flags = mode;
    op.src[0] = cx.src(mask, Ty::B32)?;
    op.psrc = cx.pred_src(a)?;
    if mode == BALLOT {
        op.dst = cx.dst(dst, Ty::B32)?;
    } else {
        op.pdst = cx.pred_dst(dst)?;
    }
    cx.emit(i, op)
}

unsafe fn run_vote(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows and slots of the program; operations live as long as the launch.
    unsafe {
        let members = members(cx, op);
        let op: &Op = &*std::ptr::from_ref(op);
        let parts = match gather(cx, op, members) {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        let all = parts.iter().fold(0, |m, p| m | p.mask) & members;
        let votes = parts.iter().fold(0, |v, p| v | cx.pred(p.op.psrc) & p.mask) & members;
        let result = match op.flags {
            ALL => votes == all,
            ANY => votes != 0,
            _ => votes == 0 || votes == all,
        };
        for p in &parts {
            if op.flags == BALLOT {
                let d = cx.row_mut(p.op.dst);
                super::memory::access::each(p.mask, |l| d[l] = votes);
            } else {
                let slot = &mut *cx.preds.add(usize::from(p.op.pdst));
                *slot = *slot & !p.mask | if result { p.mask } else { 0 };
            }
        }
        release(cx, &parts)
    }
}

/// Per-lane values of 32 or 64 bits of all that take part.
unsafe fn values(cx: &Cx, parts: &[Part], wide: bool) -> [u64; LANES] {
    let mut out = [0; LANES];
    for p in parts {
        for l in (0..LANES).filter(|l| p.mask >> l & 1 == 1) {
            // SAFETY: rows of the program.
            out[l] = unsafe {
                if wide {
                    cx.row64(p.op.src[1])[l]
                } else {
                    u64::from(cx.row(p.op.src[1])[l])
                }
            };
        }
    }
    out
}

fn match_lower(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<()> {
    let all = match m.get(1).copied() {
        Some("any") => false,
        Some("all") => true,
        _ => return cx.unsupported(i, "is .any or .all"),
    };
    let wide = m.last() == Some(&"b64");
    let [dst, a, mask] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let (d, p) = pair(dst);
    let mut op = LowerCx::new_op(run_match, Class::WarpExchange);
    op.flags = u8::from(all) | u8::from(wide) << 1;
    op.src[0] = cx.src(mask, Ty::B32)?;
    op.src[1] = cx.src(a, if wide { Ty::B64 } else { Ty::B32 })?;
    op.dst = cx.dst(d, Ty::B32)?;
    if let Some(p) = p {
        op.pdst = cx.pred_dst(p)?;
    }
    cx.emit(i, op)
}

unsafe fn run_match(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows and slots of the program; operations live as long as the launch.
    unsafe {
        let members = members(cx, op);
        let op: &Op = &*std::ptr::from_ref(op);
        let parts = match gather(cx, op, members) {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        let (all, wide) = (op.flags & 1 == 1, op.flags & 2 == 2);
        let v = values(cx, &parts, wide);
        let here = parts.iter().fold(0, |m, p| m | p.mask) & members;
        let equal = |l: usize| {
            (0..LANES)
                .filter(|&k| here >> k & 1 == 1 && v[k] == v[l])
                .fold(0u32, |m, k| m | 1 << k)
        };
        for p in &parts {
            let mut agree = 0;
            for l in (0..LANES).filter(|l| p.mask >> l & 1 == 1) {
                let same = equal(l);
                let whole = same == here;
                cx.row_mut(p.op.dst)[l] = if all && !whole { 0 } else { same };
                agree |= u32::from(whole) << l;
            }
            let slot = &mut *cx.preds.add(usize::from(p.op.pdst));
            *slot = *slot & !p.mask | agree & p.mask;
        }
        release(cx, &parts)
    }
}

#[derive(Clone, Copy)]
enum Redux {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

fn redux(cx: &mut LowerCx, i: &Instr, m: &[&str]) -> Result<()> {
    let signed = m.last() == Some(&"s32");
    let operation = match m.get(2).copied() {
        Some("add") => Redux::Add,
        Some("min") => Redux::Min,
        Some("max") => Redux::Max,
        Some("and") => Redux::And,
        Some("or") => Redux::Or,
        Some("xor") => Redux::Xor,
        _ => return cx.unsupported(i, "unknown operation"),
    };
    if !matches!(m.last(), Some(&"s32" | &"u32" | &"b32")) {
        return cx.unsupported(i, "exists for 32-bit integers on sm_90");
    }
    let [dst, a, mask] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let mut op = LowerCx::new_op(run_redux, Class::WarpExchange);
    op.flags = operation as u8 | u8::from(signed) << 4;
    op.src[0] = cx.src(mask, Ty::B32)?;
    op.src[1] = cx.src(a, Ty::B32)?;
    op.dst = cx.dst(dst, Ty::B32)?;
    cx.emit(i, op)
}

unsafe fn run_redux(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows of the program; operations live as long as the launch.
    unsafe {
        let members = members(cx, op);
        let op: &Op = &*std::ptr::from_ref(op);
        let parts = match gather(cx, op, members) {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        let v = values(cx, &parts, false);
        let here = parts.iter().fold(0, |m, p| m | p.mask) & members;
        let signed = op.flags >> 4 == 1;
        // Order of signed integers as that of unsigned ones.
        let bias = if signed { 1 << 31 } else { 0 };
        let lanes = || {
            (0..LANES)
                .filter(|l| here >> l & 1 == 1)
                .map(|l| v[l] as u32)
        };
        let operation = op.flags & 15;
        let result = match operation {
            x if x == Redux::Add as u8 => lanes().fold(0, u32::wrapping_add),
            x if x == Redux::Min as u8 => lanes().map(|x| x ^ bias).min().unwrap_or(0) ^ bias,
            x if x == Redux::Max as u8 => lanes().map(|x| x ^ bias).max().unwrap_or(0) ^ bias,
            x if x == Redux::And as u8 => lanes().fold(u32::MAX, |a, b| a & b),
            x if x == Redux::Or as u8 => lanes().fold(0, |a, b| a | b),
            _ => lanes().fold(0, |a, b| a ^ b),
        };
        for p in &parts {
            let d = cx.row_mut(p.op.dst);
            super::memory::access::each(p.mask, |l| d[l] = result);
        }
        release(cx, &parts)
    }
}

unsafe fn active_mask(cx: &mut Cx, op: &Op) -> Flow {
    let v = cx.mask;
    // SAFETY: a row of the program.
    unsafe {
        let d = cx.row_mut(op.dst);
        super::memory::access::each(cx.mask, |l| d[l] = v);
    }
    Flow::Next
}

/// Any member may be the leader as long as it is always the same one for the same mask. Devices take the lowest, and programs rely on it
/// (CUTLASS elects the lane that copies and lets lane 0 announce the bytes), so that is the rule here;
/// `BIRDIE_EMU_ELECT_ANY` draws the leader from the seed instead.
unsafe fn elect(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows and slots of the program; operations live as long as the launch.
    unsafe {
        let members = members(cx, op);
        let op: &Op = &*std::ptr::from_ref(op);
        let parts = match gather(cx, op, members) {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        let here = parts.iter().fold(0, |m, p| m | p.mask) & members;
        let draw = if cx.launch.device.settings.elect_any {
            let n = here.count_ones().max(1);
            super::Rng(cx.launch.seed ^ u64::from(members)).below(u64::from(n))
        } else {
            0
        };
        let leader = super::memory::lanes(here).nth(draw as usize).unwrap_or(0) as u32;
        for p in &parts {
            let d = cx.row_mut(p.op.dst);
            super::memory::access::each(p.mask, |l| d[l] = leader);
            let slot = &mut *cx.preds.add(usize::from(p.op.pdst));
            *slot = *slot & !p.mask | p.mask & 1 << leader;
        }
        release(cx, &parts)
    }
}

unsafe fn warp_barrier(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows of the program; operations live as long as the launch.
    unsafe {
        let members = members(cx, op);
        let op: &Op = &*std::ptr::from_ref(op);
        let parts = match gather(cx, op, members) {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        if cx.observed {
            let at = cx.at();
            let object = Sync::Warp { agent: at.agent.0 };
            if let Some(c) = &mut cx.cluster().check {
                c.release(at, object);
                c.acquire(at, object);
            }
        }
        release(cx, &parts)
    }
}

//! Liveness, and from it few rows instead of many.
//!
//! nvcc declares hundreds of registers for a kernel that needs forty; as rows of 128 bytes they would not fit in the
//! first-level cache. For every function: which values are live where (backward over the blocks), then one interval
//! of operations per value (holes are not used), then linear scan.
//!
//! * Values filled at warp start, formal parameters held in registers and frame addresses keep a row of their own.
//! * The result of an operation never shares rows with its sources unless it is the same register: handlers may write
//!   a wide result while they still read.
//! * Operands of wgmma stay live until a wait has covered them ([`keep_in_flight`]).
//! * Liveness of a thread is enough although lanes diverge: an operation writes the lanes it executes and no others. For
//!   that a lane's bytes must be its own whatever value lies there, so values of different widths never share rows: lane
//!   5 of a 64-bit value lies where lanes 10 and 11 of a 32-bit value would.

use super::kernel::BodyInfo;
use super::lower::{LowerCx, Result, Successors};
use super::*;
use crate::hash::FastMap;
use crate::tensor::lifetime::keep_in_flight;

pub struct Compacted {
    pub init: Vec<(RowId, Init)>,
    pub rows: u32,
    pub preds: u16,
    pub registers: u32,
}

/// A set of small integers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(n: usize) -> Self {
        Set(vec![0; n.div_ceil(64)])
    }
    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }
    fn union(&mut self, other: &Set) -> bool {
        let mut changed = false;
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            changed |= *b & !*a != 0;
            *a |= b;
        }
        changed
    }
    fn each(&self, mut f: impl FnMut(usize)) {
        for (w, &bits) in self.0.iter().enumerate() {
            let mut bits = bits;
            while bits != 0 {
                f(w * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }
}

struct Block {
    start: u32,
    end: u32,
    next: Vec<usize>,
    /// Values read before they are written here; values written before they are read.
    uses: Set,
    defs: Set,
    live_in: Set,
    live_out: Set,
}

/// Numbers of the values of one function: rows first, predicates after them.
struct Values {
    /// Row to its unit, for the whole program.
    unit_of_row: Vec<u32>,
    rows: usize,
}

impl Values {
    fn row(&self, r: RowId) -> Option<usize> {
        self.unit_of_row.get(r as usize).map(|&u| u as usize)
    }
    fn pred(&self, p: u16) -> Option<usize> {
        (p > PRED_CARRY).then(|| self.rows + usize::from(p))
    }
    fn reads<'a>(&'a self, e: &'a Effects) -> impl Iterator<Item = usize> + 'a {
        let rows = e.reads.iter().chain(&e.keeps).filter_map(|r| self.row(r.0));
        rows.chain(e.pred_reads.iter().filter_map(|&p| self.pred(p)))
    }
    fn writes<'a>(&'a self, e: &'a Effects) -> impl Iterator<Item = usize> + 'a {
        let rows = e.writes.iter().filter_map(|r| self.row(r.0));
        rows.chain(e.pred_writes.iter().filter_map(|&p| self.pred(p)))
    }
    /// Whatever the operation's own fields name, recorded or not.
    fn fields<'a>(&'a self, op: &'a Op) -> impl Iterator<Item = usize> + 'a {
        let rows = [op.dst, op.dst2].into_iter().chain(op.src);
        let preds = [op.pdst, op.pdst2, op.psrc.index, op.guard.index];
        rows.filter_map(|r| self.row(r))
            .chain(preds.into_iter().filter_map(|p| self.pred(p)))
    }
}

/// Calls `next` with the pc of every operation that may follow the one at `pc`.
fn follow(ops: &[Op], successors: &FastMap<u32, Successors>, pc: u32, mut next: impl FnMut(u32)) {
    let s = successors.get(&pc);
    if s.is_none_or(|s| !s.ends || ops[pc as usize].guard != Pred::TRUE) {
        next(pc + 1);
    }
    s.into_iter().flat_map(|s| &s.labels).for_each(|&l| next(l));
}

fn blocks(cx: &LowerCx, info: &FunctionInfo, labels: &[u32], n: usize) -> Vec<Block> {
    let mut leaders: Vec<u32> = labels.to_vec();
    leaders.push(info.start);
    for pc in info.start..info.end {
        if cx.successors.contains_key(&pc) {
            leaders.push(pc + 1);
        }
    }
    leaders.retain(|&l| l < info.end);
    leaders.sort_unstable();
    leaders.dedup();
    let block_at = |pc: u32| leaders.binary_search(&pc).ok();
    (0..leaders.len())
        .map(|i| {
            let end = leaders.get(i + 1).copied().unwrap_or(info.end);
            let mut next = Vec::new();
            follow(&cx.ops, &cx.successors, end - 1, |pc| {
                next.extend(block_at(pc))
            });
            Block {
                start: leaders[i],
                end,
                next,
                uses: Set::new(n),
                defs: Set::new(n),
                live_in: Set::new(n),
                live_out: Set::new(n),
            }
        })
        .collect()
}

fn liveness(cx: &LowerCx, values: &Values, blocks: &mut [Block]) {
    for b in blocks.iter_mut() {
        for pc in b.start..b.end {
            let e = &cx.effects[pc as usize];
            for v in values.reads(e) {
                if !b.defs.contains(v) {
                    b.uses.insert(v);
                }
            }
            for v in values.writes(e) {
                if e.partial || cx.ops[pc as usize].guard != Pred::TRUE {
                    if !b.defs.contains(v) {
                        b.uses.insert(v);
                    }
                } else if !b.uses.contains(v) {
                    b.defs.insert(v);
                }
            }
        }
        b.live_in = b.uses.clone();
    }
    let mut changed = true;
    while changed {
        changed = false;
        for i in (0..blocks.len()).rev() {
            let mut out = std::mem::replace(&mut blocks[i].live_out, Set(Vec::new()));
            let mut grew = false;
            for n in blocks[i].next.clone() {
                grew |= out.union(&blocks[n].live_in);
            }
            if grew {
                let mut into = out.clone();
                for (a, d) in into.0.iter_mut().zip(&blocks[i].defs.0) {
                    *a &= !d;
                }
                changed |= blocks[i].live_in.union(&into);
            }
            blocks[i].live_out = out;
        }
    }
}

/// First and last operation at which each value is live.
fn intervals(cx: &LowerCx, values: &Values, blocks: &[Block], n: usize) -> Vec<Option<(u32, u32)>> {
    let mut out: Vec<Option<(u32, u32)>> = vec![None; n];
    let mut touch = |v: usize, pc: u32| {
        let i = out[v].get_or_insert((pc, pc));
        *i = (i.0.min(pc), i.1.max(pc));
    };
    for b in blocks {
        b.live_in.each(|v| touch(v, b.start));
        b.live_out.each(|v| touch(v, b.end - 1));
        for pc in b.start..b.end {
            let e = &cx.effects[pc as usize];
            values.reads(e).for_each(|v| touch(v, pc));
            values.writes(e).for_each(|v| touch(v, pc));
            values
                .fields(&cx.ops[pc as usize])
                .for_each(|v| touch(v, pc));
        }
    }
    out
}

/// Places handed out by linear scan.
#[derive(Default)]
struct Pool {
    /// Last operation at which each place is occupied.
    until: Vec<u32>,
}

impl Pool {
    /// A place that is free from `start` on, occupied to `end`.
    fn take(&mut self, start: u32, end: u32) -> u32 {
        let i = match self.until.iter().position(|&last| last < start) {
            Some(i) => i,
            None => {
                self.until.push(0);
                self.until.len() - 1
            }
        };
        self.until[i] = end;
        i as u32
    }
    fn len(&self) -> u32 {
        self.until.len() as u32
    }
}

/// Gives every value its final row or slot and rewrites the operations.
pub fn compact(cx: &mut LowerCx, bodies: &[BodyInfo]) -> Result<Compacted> {
    let mut values = Values {
        unit_of_row: vec![u32::MAX; cx.next_row as usize],
        rows: cx.units.len(),
    };
    for (u, &(first, rows)) in cx.units.iter().enumerate() {
        values.unit_of_row[first as usize..][..usize::from(rows)].fill(u as u32);
    }
    let n = values.rows + usize::from(cx.next_pred);
    // New place of each value; initial values first.
    let mut place: Vec<Option<u32>> = vec![None; n];
    let mut next_row = 0u32;
    let mut init: Vec<(Init, RowId)> = cx.init.iter().map(|(i, r)| (*i, *r)).collect();
    init.sort_unstable_by_key(|i| i.1);
    let mut compacted = Vec::new();
    for (value, row) in init {
        let Some(u) = values.row(row) else { continue };
        place[u] = Some(next_row);
        compacted.push((next_row, value));
        next_row += u32::from(cx.units[u].1);
    }
    let initial_rows = next_row;
    let mut next_pred = u32::from(PRED_CARRY) + 1;
    let mut most = 0;
    for (f, body) in bodies.iter().enumerate() {
        let info = cx.functions[f].clone();
        let range = info.start as usize..info.end as usize;
        let (ops, successors) = (&cx.ops, &cx.successors);
        keep_in_flight(&mut cx.effects[range], |i, next| {
            follow(ops, successors, info.start + i as u32, |pc| {
                next((pc - info.start) as usize);
            });
        });
        let mut blocks = blocks(cx, &info, &body.labels, n);
        liveness(cx, &values, &mut blocks);
        let mut spans = intervals(cx, &values, &blocks, n);
        for home in info.params.iter().chain(&info.returns).map(|f| f.home) {
            let value = match home {
                Home::Row(r) => values.row(r),
                Home::Pred(p) => values.pred(p),
                Home::Local(_) => None,
            };
            if let Some(v) = value {
                spans[v] = Some((info.start, info.end));
            }
        }
        if let Some(v) = values.row(info.frame_row) {
            spans[v] = Some((info.start, info.end));
        }
        let mut order: Vec<(u32, u32, usize)> = spans
            .iter()
            .enumerate()
            .filter(|(v, _)| place[*v].is_none())
            .filter_map(|(v, s)| s.map(|(from, to)| (from, to, v)))
            .collect();
        order.sort_unstable();
        // Values of 1, 2 and 4 rows have pools of their own, see the head of this file.
        let mut rows: [Pool; 3] = Default::default();
        let mut preds = Pool::default();
        let class = |v: usize| cx.units[v].1.trailing_zeros() as usize;
        let taken: Vec<(usize, u32)> = order
            .into_iter()
            .map(|(from, to, v)| {
                let pool = if v < values.rows {
                    &mut rows[class(v)]
                } else {
                    &mut preds
                };
                (v, pool.take(from, to))
            })
            .collect();
        let wide = next_row + rows[0].len();
        let quad = wide + 2 * rows[1].len();
        let end = quad + 4 * rows[2].len();
        for (v, slot) in taken {
            place[v] = Some(if v < values.rows {
                [next_row, wide, quad][class(v)] + (slot << class(v))
            } else {
                next_pred + slot
            });
        }
        let info = &mut cx.functions[f];
        (info.rows, info.wide, info.quad) = (next_row..end, wide, quad);
        info.preds = next_pred as u16..(next_pred + preds.len()) as u16;
        most = most.max(end - next_row);
        next_row = end;
        next_pred = u32::from(info.preds.end);
    }
    rename(cx, &values, &place, &mut next_row);
    Ok(Compacted {
        init: compacted,
        rows: next_row.max(1),
        preds: next_pred as u16,
        registers: (next_row - initial_rows).min(most + 16),
    })
}

fn rename(cx: &mut LowerCx, values: &Values, place: &[Option<u32>], next_row: &mut u32) {
    let units = &cx.units;
    let row = |r: RowId| match values.row(r) {
        Some(u) => place[u].map_or(NO_ROW, |p| p + (r - units[u].0)),
        None => NO_ROW,
    };
    let pred = |p: u16| match values.pred(p) {
        Some(v) => place[v].map_or(PRED_SINK, |p| p as u16),
        None => p,
    };
    for op in &mut cx.ops {
        op.dst = row(op.dst);
        op.dst2 = row(op.dst2);
        op.src = op.src.map(row);
        op.pdst = pred(op.pdst);
        op.pdst2 = pred(op.pdst2);
        op.psrc.index = pred(op.psrc.index);
        op.guard.index = pred(op.guard.index);
    }
    for list in &mut cx.lists {
        for r in list {
            let known = *r == NO_ROW || row(*r) != NO_ROW;
            let new = row(*r);
            *r = new;
            if !known {
                // Named by a list and by no effect: nobody else may have it.
                *r = *next_row;
                *next_row += 4;
            }
        }
    }
    for e in &mut cx.effects {
        for (r, _) in e.reads.iter_mut().chain(&mut e.writes).chain(&mut e.keeps) {
            *r = row(*r);
        }
        for p in e.pred_reads.iter_mut().chain(&mut e.pred_writes) {
            *p = pred(*p);
        }
    }
    for info in &mut cx.functions {
        info.frame_row = row(info.frame_row);
        for f in info.params.iter_mut().chain(&mut info.returns) {
            f.home = match f.home {
                Home::Row(r) => Home::Row(row(r)),
                Home::Pred(p) => Home::Pred(pred(p)),
                local => local,
            };
        }
    }
}

//! mma.sync.m8n8k4 of f16: four products of 8x8 by 8 threads each, the form that Volta's tensor core had.
//!
//! Product q belongs to lanes 4q..4q+4 (the low group) and 16+4q..16+4q+4 (the high group). With g = lane % 4 and
//! h = 4 for the high group (PTX ISA, "Matrix Fragments for mma.m8n8k4 with .f16"):
//!
//! | operand | element i of a lane |
//! |---|---|
//! | A, .row | row g + h, k = i |
//! | A, .col | row i + h, k = g |
//! | B, .row | k = g, column i + h |
//! | B, .col | k = i, column g + h |
//! | C, D f16 | row g + h, column i |
//! | C, D f32 | row (lane & 1) + (i & 2) + h, column (i & 4) + (lane & 2) + (i & 1) |

use super::converged;
use super::format::{f16_to_f32, f32_to_f16};
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Ty};

/// Extension record. The list of rows is D, A, B, C.
struct Quad {
    a_rows: bool,
    b_rows: bool,
    /// f32 accumulators (else f16).
    d: bool,
    c: bool,
    list: u32,
}

fn registers(wide: bool) -> usize {
    if wide { 8 } else { 4 }
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let parts: Vec<&str> = i.op.iter().map(|s| &**s).collect();
    let [
        "mma",
        "sync",
        "aligned",
        "m8n8k4",
        a @ ("row" | "col"),
        b @ ("row" | "col"),
        d @ ("f16" | "f32"),
        "f16",
        "f16",
        c @ ("f16" | "f32"),
    ] = parts[..]
    else {
        return Ok(false);
    };
    let mut q = Quad {
        a_rows: a == "row",
        b_rows: b == "row",
        d: d == "f32",
        c: c == "f32",
        list: 0,
    };
    let [od, oa, ob, oc] = &i.operands[..] else {
        return cx.unsupported(i, "operands d, a, b, c expected");
    };
    let ty = |wide| if wide { Ty::F32 } else { Ty::B32 };
    let mut rows = cx.dst_vector(od, ty(q.d))?;
    let mut complete = rows.len() == registers(q.d);
    for (o, ty, want) in [
        (oa, Ty::B32, 2),
        (ob, Ty::B32, 2),
        (oc, ty(q.c), registers(q.c)),
    ] {
        let list = cx.src_vector(o, ty)?;
        complete &= list.len() == want;
        rows.extend(list);
    }
    if !complete {
        return cx.unsupported(
            i,
            "2 registers for A and B, 4 (f16) or 8 (f32) for C and D expected",
        );
    }
    q.list = cx.list(rows);
    let mut op = LowerCx::new_op(run, Class::Tensor);
    op.ext = cx.ext(q);
    cx.emit(i, op)?;
    Ok(true)
}

/// (row, column) of accumulator element `i` of a lane.
fn place(lane: usize, i: usize, wide: bool) -> (usize, usize) {
    let high = lane / 16 * 4;
    if wide {
        ((lane & 1) + (i & 2) + high, (i & 4) + (lane & 2) + (i & 1))
    } else {
        (lane % 4 + high, i)
    }
}

/// SAFETY: called by the run loop with an operation of its own program.
unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let q: &Quad = cx.ext(op);
    let rows = &cx.launch.program.lists[q.list as usize];
    let (d, rest) = rows.split_at(registers(q.d));
    let (a, rest) = rest.split_at(2);
    let (b, c) = rest.split_at(2);
    let (warp, pc) = (cx.warp().index, cx.pc);
    if let Some(counters) = &mut cx.cluster().counters {
        counters.tensor(warp, pc, 4 * 2 * 8 * 8 * 4, 0);
    }
    // SAFETY: rows of the operation.
    let half = |cx: &Cx, row: u32, lane: usize, i: usize| unsafe {
        f16_to_f32((cx.row(row)[lane] >> (16 * (i % 2))) as u16)
    };
    let mut left = [[[0f32; 4]; 8]; 4];
    let mut right = [[[0f32; 4]; 8]; 4];
    let mut sums = [[[0f32; 8]; 8]; 4];
    for lane in 0..32 {
        let (product, group, high) = (lane % 16 / 4, lane % 4, lane / 16 * 4);
        for i in 0..4 {
            let v = half(cx, a[i / 2], lane, i);
            let (row, k) = if q.a_rows { (group, i) } else { (i, group) };
            left[product][row + high][k] = v;
            let v = half(cx, b[i / 2], lane, i);
            let (k, column) = if q.b_rows { (group, i) } else { (i, group) };
            right[product][column + high][k] = v;
        }
        for i in 0..8 {
            let (row, column) = place(lane, i, q.c);
            sums[product][row][column] = if q.c {
                // SAFETY: a row of the operation.
                f32::from_bits(unsafe { cx.row(c[i])[lane] })
            } else {
                half(cx, c[i / 2], lane, i)
            };
        }
    }
    for product in 0..4 {
        for (row, sums) in sums[product].iter_mut().enumerate() {
            for (column, s) in sums.iter_mut().enumerate() {
                for k in 0..4 {
                    *s += left[product][row][k] * right[product][column][k];
                }
            }
        }
    }
    for lane in 0..32 {
        let value = |i: usize| {
            let (row, column) = place(lane, i, q.d);
            sums[lane % 16 / 4][row][column]
        };
        for (r, row) in d.iter().enumerate() {
            let word = if q.d {
                value(r).to_bits()
            } else {
                let [low, high] = [0, 1].map(|j| u32::from(f32_to_f16(value(2 * r + j))));
                low | high << 16
            };
            // SAFETY: a row of the operation.
            unsafe { cx.row_mut(*row)[lane] = word };
        }
    }
    Flow::Next
}

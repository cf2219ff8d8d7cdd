//! ldmatrix, stmatrix, movmatrix: 8 x 8 matrices of 16-bit elements between shared memory and the lanes of a warp.
//!
//! Matrix m of an x1, x2 or x4 operation has its row addresses in lanes 8m..8m+8; every row is 16 bytes, 16-byte
//! aligned. In registers, lane l holds elements 2(l%4) and 2(l%4)+1 of row l/4 (low half first); with `.trans` it holds
//! those of column l/4. Both orders of the modifiers occur: `.m8n8.x4` and `.x4.m8n8`.
//!
//! Not implemented: the 8-bit and smaller element types (sm_100).

use super::converged;
use crate::check::{Kind, WarpAccess};
use crate::device::Fault;
use crate::exec::{Cx, Flow, SHARED_BASE, SHARED_WINDOW};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, NO_ROW, Op};
use crate::ptx::ast::{Instr, Operand, Space, Ty};

/// Extension record.
struct Matrices {
    count: usize,
    transposed: bool,
    /// No state space was written: addresses are generic.
    generic: bool,
    /// The address register is 64 bits wide.
    wide: bool,
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let parts: Vec<&str> = i.op.iter().map(|s| &**s).collect();
    match parts[0] {
        "ldmatrix" => transfer(cx, i, &parts, true)?,
        "stmatrix" => transfer(cx, i, &parts, false)?,
        "movmatrix" => {
            if parts[1..] != ["sync", "aligned", "m8n8", "trans", "b16"] {
                return cx.unsupported(i, "only movmatrix.sync.aligned.m8n8.trans.b16 exists");
            }
            let [d, a] = &i.operands[..] else {
                return cx.unsupported(i, "2 operands expected");
            };
            let mut op = LowerCx::new_op(movmatrix, Class::WarpExchange);
            op.src[0] = cx.src(a, Ty::B32)?;
            op.dst = cx.dst(d, Ty::B32)?;
            cx.emit(i, op)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn transfer(cx: &mut LowerCx, i: &Instr, parts: &[&str], load: bool) -> Result<()> {
    if !parts[1..].starts_with(&["sync", "aligned"]) || parts.last() != Some(&"b16") {
        return cx.unsupported(i, ".sync.aligned and .b16 expected");
    }
    let mut m = Matrices {
        count: 0,
        transposed: false,
        generic: true,
        wide: false,
    };
    let mut shape = false;
    for p in &parts[3..parts.len() - 1] {
        match *p {
            "m8n8" if !shape => shape = true,
            "x1" | "x2" | "x4" if m.count == 0 => {
                m.count = usize::from(p.as_bytes()[1] - b'0');
            }
            "trans" if !m.transposed => m.transposed = true,
            "shared" | "shared::cta" if m.generic => m.generic = false,
            _ => return cx.unsupported(i, &format!("modifier .{p} is not supported here")),
        }
    }
    if !shape || m.count == 0 {
        return cx.unsupported(i, ".m8n8 and .x1, .x2 or .x4 expected");
    }
    let (registers, address) = match &i.operands[..] {
        [a, b] if load => (a, b),
        [a, b] => (b, a),
        _ => return cx.unsupported(i, "2 operands expected"),
    };
    let given = match registers {
        Operand::Vector(v) => v.len(),
        _ => 1,
    };
    if given != m.count {
        let want = m.count;
        return cx.unsupported(i, &format!("{want} registers expected, {given} found"));
    }
    let (class, run): (_, crate::exec::Handler) = if load {
        (Class::LoadShared, ldmatrix)
    } else {
        (Class::StoreShared, stmatrix)
    };
    let mut op = LowerCx::new_op(run, class);
    // The address comes first in the effects.
    let a = cx.address(address)?;
    if !m.generic
        && !matches!(
            a.symbol_space,
            None | Some(Space::Shared | Space::SharedCta)
        )
    {
        return cx.unsupported(i, "the address is not in shared memory");
    }
    op.src[0] = a.row.unwrap_or(NO_ROW);
    op.imm = a.offset;
    m.wide = a.wide;
    let rows = if load {
        cx.dst_vector(registers, Ty::B32)?
    } else {
        cx.src_vector(registers, Ty::B32)?
    };
    let list = cx.list(rows);
    op.ext = cx.ext((m, list));
    cx.emit(i, op)
}

/// Offsets in the CTA's shared memory of the rows of `m.count` matrices, tested.
unsafe fn row_offsets(cx: &mut Cx, op: &Op, m: &Matrices) -> std::result::Result<[u32; 32], Flow> {
    let lanes = 8 * m.count;
    let mut addresses = [0u64; 32];
    // SAFETY: a row (pair) of the executing program.
    unsafe {
        for (l, a) in addresses[..lanes].iter_mut().enumerate() {
            let base = if op.src[0] == NO_ROW {
                0
            } else if m.wide {
                cx.row64(op.src[0])[l]
            } else {
                u64::from(cx.row(op.src[0])[l])
            };
            *a = base.wrapping_add(op.imm as u64);
        }
    }
    let name = &cx.launch.program.sites[cx.pc as usize].opcode;
    let bytes = cx.cta().shared.len() as u64;
    let own = u64::from(cx.cta().rank + 1) << 24;
    let base = u64::from(SHARED_BASE);
    let mut offsets = [0u32; 32];
    for (l, &address) in addresses[..lanes].iter().enumerate() {
        let mut a = if m.generic {
            address.wrapping_sub(SHARED_WINDOW)
        } else {
            address & 0xffff_ffff
        };
        if a & !0xff_ffff == own {
            a &= 0xff_ffff;
        }
        if a < base || a + 16 > base + bytes {
            let text = format!(
                "{name}: row address {address:#x} of lane {l} is outside the CTA's shared memory ({base:#x}..{:#x})",
                base + bytes
            );
            return Err(cx.fail(Fault::IllegalAddress(text)));
        }
        if a % 16 != 0 {
            let text =
                format!("{name}: row address {address:#x} of lane {l} is not 16-byte aligned");
            return Err(cx.fail(Fault::MisalignedAddress(text)));
        }
        offsets[l] = a as u32;
    }
    Ok(offsets)
}

fn report_access(cx: &mut Cx, m: &Matrices, offsets: &[u32; 32], kind: Kind) {
    if !cx.observed {
        return;
    }
    let (at, warp, pc) = (cx.at(), cx.warp().index, cx.pc);
    let rank = cx.cta().rank;
    let mask = u32::MAX >> (32 - 8 * m.count);
    if let Some(check) = cx.cluster().check.as_deref_mut() {
        let access = WarpAccess {
            addresses: offsets,
            mask,
            bytes: 16,
            kind,
            inside: false,
            together: true,
        };
        check.shared_access(at, rank, &access);
    }
    if let Some(counters) = &mut cx.cluster().counters {
        let offsets = offsets.map(|o| o.wrapping_sub(SHARED_BASE));
        counters.shared(warp, pc, &offsets, mask, 16);
    }
}

/// Where element `e` (0 or 1) of lane `l` stands in its matrix: byte of the row, row, column.
fn element_of(l: usize, e: usize, transposed: bool) -> (usize, usize, usize) {
    let (g, t) = (l / 4, 2 * (l % 4));
    let (row, column) = if transposed { (t + e, g) } else { (g, t + e) };
    (2 * column, row, column)
}

fn lanes_of(f: impl Fn(usize) -> bool) -> u32 {
    (0..32).fold(0, |v, l| v | u32::from(f(l)) << l)
}

/// Which of the loaded registers are defined: those with a defined byte.
fn define_loaded(cx: &mut Cx, m: &Matrices) {
    let Some(check) = cx.cluster().check.as_deref_mut() else {
        return;
    };
    for matrix in 0..m.count {
        let lanes = lanes_of(|l| {
            [0, 1].into_iter().any(|e| {
                let (byte, row, _) = element_of(l, e, m.transposed);
                check.undefined_bytes(8 * matrix + row) >> byte & 3 != 3
            })
        });
        check.define(lanes);
    }
}

/// Undefined elements make the bytes that they go to undefined.
fn poison_stored(cx: &mut Cx, m: &Matrices, rows: &[u32], offsets: &[u32; 32]) {
    let (at, cta) = (cx.at(), cx.cta().rank);
    let Some(check) = cx.cluster().check.as_deref_mut() else {
        return;
    };
    for (matrix, row) in rows.iter().enumerate() {
        let defined = check.defined(at.agent, *row, 1);
        for l in (0..32).filter(|l| defined >> l & 1 == 0) {
            for e in 0..2 {
                let (byte, row, _) = element_of(l, e, m.transposed);
                check.poison(cta, offsets[8 * matrix + row] + byte as u32, 2);
            }
        }
    }
}

/// SAFETY of the handlers: called by the run loop with an operation of its own program.
unsafe fn ldmatrix(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let (m, list): &(Matrices, u32) = cx.ext(op);
    // SAFETY: as above.
    unsafe {
        let offsets = match row_offsets(cx, op, m) {
            Ok(o) => o,
            Err(flow) => return flow,
        };
        report_access(cx, m, &offsets, Kind::Read);
        define_loaded(cx, m);
        let rows = &cx.launch.program.lists[*list as usize];
        let shared = (*cx.cta).shared.as_slice();
        let mut values = [[0u32; 32]; 4];
        for (matrix, out) in values[..m.count].iter_mut().enumerate() {
            let at = |row: usize| (offsets[8 * matrix + row] - SHARED_BASE) as usize;
            let element = |row: usize, column: usize| {
                let a = at(row) + 2 * column;
                u32::from(u16::from_le_bytes([shared[a], shared[a + 1]]))
            };
            for (l, v) in out.iter_mut().enumerate() {
                let (g, t) = (l / 4, 2 * (l % 4));
                *v = if m.transposed {
                    element(t, g) | element(t + 1, g) << 16
                } else {
                    element(g, t) | element(g, t + 1) << 16
                };
            }
        }
        // Written after all is read: an address register may be among the destinations.
        for (row, v) in rows.iter().zip(&values) {
            *cx.row_mut(*row) = *v;
        }
    }
    Flow::Next
}

unsafe fn stmatrix(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let (m, list): &(Matrices, u32) = cx.ext(op);
    // SAFETY: as above.
    unsafe {
        let offsets = match row_offsets(cx, op, m) {
            Ok(o) => o,
            Err(flow) => return flow,
        };
        report_access(cx, m, &offsets, Kind::Write);
        cx.cluster().stores += 1;
        let rows = &cx.launch.program.lists[*list as usize];
        poison_stored(cx, m, rows, &offsets);
        let shared = (*cx.cta).shared.as_mut_slice();
        for (matrix, row) in rows.iter().enumerate() {
            let values = cx.row(*row);
            for (l, v) in values.iter().enumerate() {
                let (g, t) = (l / 4, 2 * (l % 4));
                for (e, half) in [*v as u16, (*v >> 16) as u16].into_iter().enumerate() {
                    let (r, c) = if m.transposed { (t + e, g) } else { (g, t + e) };
                    let a = (offsets[8 * matrix + r] - SHARED_BASE) as usize + 2 * c;
                    shared[a..a + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
        }
    }
    Flow::Next
}

unsafe fn movmatrix(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let at = cx.at();
    if let Some(check) = cx.cluster().check.as_deref_mut() {
        let from = check.defined(at.agent, op.src[0], 1);
        check.define(lanes_of(|l| {
            [0, 1].into_iter().any(|e| {
                let (_, row, column) = element_of(l, e, true);
                from >> (4 * row + column / 2) & 1 == 1
            })
        }));
    }
    // SAFETY: as above.
    unsafe {
        let a = *cx.row(op.src[0]);
        let element =
            |row: usize, column: usize| (a[4 * row + column / 2] >> (16 * (column % 2))) & 0xffff;
        let d = cx.row_mut(op.dst);
        for (l, v) in d.iter_mut().enumerate() {
            let (g, t) = (l / 4, 2 * (l % 4));
            *v = element(t, g) | element(t + 1, g) << 16;
        }
    }
    Flow::Next
}

//! mma.sync: products of small matrices by one warp, all operands in registers.
//!
//! ```text
//! mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c;
//! mma.sync.aligned.shape.row.col{.satfinite}.s32.atype.btype.s32 d, a, b, c;
//! mma.sp{::ordered_metadata}.sync.aligned.shape.row.col… d, a, b, c, metadata, selector;
//! mma.sync.aligned.shape.row.col.s32.b1.b1.s32.{xor,and}.popc d, a, b, c;
//! ```
//!
//! Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, figures of the "Matrix Fragments" sections). For all types up
//! to 32 bits they are the same in bytes:
//!
//! | operand | register r holds |
//! |---|---|
//! | A (m16) | 4 bytes of row g + 8 (r % 2), from byte 16 (r / 2) + 4 t along K |
//! | A (m8)  | 4 bytes of row g, from byte 4 t |
//! | B | 4 bytes of column g, from byte 16 r + 4 t along K |
//! | C, D | row g + 8 (i / 2), column 2 t + i % 2 for element i (f16: two elements in a register) |
//!
//! f64 fragments hold A element i at row g + 8 (i % 2), k = t + 4 (i / 2) (m8: row g, k = t) and B element i at k = t + 4 i,
//! column g.
//!
//! Arithmetic: f32 accumulation in order of k (products of the narrow types are exact); f16 results are rounded once at
//! the end; f64 uses fused multiply-adds in order of k.
//!
//! A of mma.sp is compressed ([`super::sparse`]): its fragment is that of half of K.
//!
//! f64 knows all roundings, for every fused multiply-add. m8n8k4 of f16 is in [`super::quad`].

use super::converged;
use super::exact::{self, Rule, Term};
use super::format::{Format, f16_to_f32, f32_to_f16};
use super::sparse;
use crate::alu::rounding::{Mode, fma_f64};
use crate::check::{Agent, Checker};
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op, RowId};
use crate::ptx::ast::{Instr, Operand, Ty};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    F32,
    F16,
    S32,
    F64,
}

/// What b1 operands are combined with before their bits are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    None,
    Xor,
    And,
}

/// Extension record. The list of rows is D, A, B, C, and the metadata of a compressed A.
#[derive(Debug, Clone, Copy)]
struct Mma {
    /// 8 or 16; N is always 8.
    m: usize,
    k: usize,
    a: Format,
    b: Format,
    d: Output,
    c: Output,
    saturate: bool,
    bits: Bits,
    /// A is compressed: the sparsity selector.
    sparse: Option<usize>,
    /// Of f64.
    rounding: Mode,
    list: u32,
}

impl Mma {
    /// Elements along K of A as it is stored.
    fn a_depth(&self) -> usize {
        if self.sparse.is_some() {
            self.k / 2
        } else {
            self.k
        }
    }
    fn a_registers(&self) -> usize {
        match self.a {
            Format::F64 => self.m * self.k / 32,
            f => self.m * self.a_depth() * f.bits() as usize / 1024,
        }
    }
    fn b_registers(&self) -> usize {
        match self.b {
            Format::F64 => self.k * 8 / 32,
            f => 8 * self.k * f.bits() as usize / 1024,
        }
    }
    fn c_registers(&self, output: Output) -> usize {
        match output {
            Output::F16 => self.m * 8 / 64,
            _ => self.m * 8 / 32,
        }
    }
}

fn output(s: &str) -> Option<Output> {
    Some(match s {
        "f32" => Output::F32,
        "f16" => Output::F16,
        "s32" => Output::S32,
        "f64" => Output::F64,
        _ => return None,
    })
}

fn exists(m: &Mma) -> bool {
    use Format::*;
    let (d, c) = (m.d, m.c);
    if d != c {
        return false;
    }
    let floats = matches!(d, Output::F32 | Output::F16);
    let integers = d == Output::S32;
    if m.sparse.is_some() {
        return m.m == 16
            && match (m.a, m.b) {
                (F16, F16) => matches!(m.k, 16 | 32) && floats,
                (Bf16, Bf16) => matches!(m.k, 16 | 32) && d == Output::F32,
                (Tf32, Tf32) => matches!(m.k, 8 | 16) && d == Output::F32,
                (E4m3 | E5m2, E4m3 | E5m2) => m.k == 64 && floats,
                (S8 | U8, S8 | U8) => matches!(m.k, 32 | 64) && integers,
                (S4 | U4, S4 | U4) => matches!(m.k, 64 | 128) && integers,
                _ => false,
            };
    }
    match (m.a, m.b) {
        (F16, F16) => m.m == 16 && matches!(m.k, 8 | 16) && floats,
        (Bf16, Bf16) => m.m == 16 && matches!(m.k, 8 | 16) && d == Output::F32,
        (Tf32, Tf32) => m.m == 16 && matches!(m.k, 4 | 8) && d == Output::F32,
        (E4m3 | E5m2, E4m3 | E5m2) => m.m == 16 && matches!(m.k, 16 | 32) && floats,
        (S8 | U8, S8 | U8) => integers && matches!((m.m, m.k), (8, 16) | (16, 16 | 32)),
        (S4 | U4, S4 | U4) => integers && matches!((m.m, m.k), (8, 32) | (16, 32 | 64)),
        (B1, B1) => integers && matches!((m.m, m.k), (8, 128) | (16, 128 | 256)),
        (F64, F64) => {
            d == Output::F64 && c == Output::F64 && matches!((m.m, m.k), (8, 4) | (16, 4 | 8 | 16))
        }
        _ => false,
    }
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let parts: Vec<&str> = i.op.iter().map(|s| &**s).collect();
    if parts[0] != "mma" {
        return Ok(false);
    }
    let compressed = matches!(parts[1], "sp" | "sp::ordered_metadata");
    let ["sync", "aligned", shape, "row", "col", ref types @ ..] =
        parts[1 + usize::from(compressed)..]
    else {
        return cx.unsupported(i, "only mma{.sp}.sync.aligned.shape.row.col is implemented");
    };
    let Some((m, k)) = shape
        .strip_prefix('m')
        .and_then(|s| s.split_once("n8k"))
        .and_then(|(m, k)| Some((m.parse().ok()?, k.parse().ok()?)))
    else {
        return cx.unsupported(i, "shape mMn8kK expected");
    };
    let mut types = types.to_vec();
    let mut saturate = false;
    let mut rounding = None;
    types.retain(|t| {
        saturate |= *t == "satfinite";
        let mode = Mode::parse(t).filter(|m| *m != Mode::Away);
        rounding = rounding.or(mode);
        *t != "satfinite" && mode.is_none()
    });
    let bits = match types[..] {
        [.., "xor", "popc"] => Bits::Xor,
        [.., "and", "popc"] => Bits::And,
        _ => Bits::None,
    };
    if bits != Bits::None {
        types.truncate(types.len() - 2);
    }
    let parsed = match types[..] {
        [d, a, b, c] => (output(d), Format::parse(a), Format::parse(b), output(c)),
        _ => (None, None, None, None),
    };
    let (Some(d), Some(a), Some(b), Some(c)) = parsed else {
        return cx.unsupported(i, "types of D, A, B and C expected");
    };
    let mut mma = Mma {
        m,
        k,
        a,
        b,
        d,
        c,
        saturate,
        bits,
        sparse: compressed.then_some(0),
        rounding: rounding.unwrap_or(Mode::Nearest),
        list: 0,
    };
    if !exists(&mma)
        || (a == Format::B1) != (bits != Bits::None)
        || rounding.is_some() && a != Format::F64
        || saturate && !matches!(a, Format::S8 | Format::U8 | Format::S4 | Format::U4)
    {
        return cx.unsupported(i, "this combination of shape and types is not implemented");
    }
    let [od, oa, ob, oc, metadata @ ..] = &i.operands[..] else {
        return cx.unsupported(i, "operands d, a, b, c expected");
    };
    if metadata.len() != if compressed { 2 } else { 0 } {
        return cx.unsupported(i, "metadata and selector belong to mma.sp, and only there");
    }
    if let [_, selector] = metadata {
        match cx.constant(selector) {
            Some(s) if (0..sparse::selectors(a, k)).contains(&s) => mma.sparse = Some(s as usize),
            _ => return cx.unsupported(i, "no sparsity selector of this shape"),
        }
    }
    let operand_type = if a == Format::F64 { Ty::F64 } else { Ty::B32 };
    let result_type = |o: Output| match o {
        Output::F32 => Ty::F32,
        Output::F64 => Ty::F64,
        _ => Ty::B32,
    };
    let mut rows = cx.dst_vector(od, result_type(d))?;
    for (o, ty, name, want) in [
        (oa, operand_type, "A", mma.a_registers()),
        (ob, operand_type, "B", mma.b_registers()),
        (oc, result_type(c), "C", mma.c_registers(c)),
    ] {
        let list = cx.src_vector(o, ty)?;
        if list.len() != want {
            return cx.unsupported(i, &format!("{name} needs {want} registers"));
        }
        rows.extend(list);
    }
    let want = mma.c_registers(d);
    if !matches!(od, Operand::Vector(v) if v.len() == want) && want != 1 {
        return cx.unsupported(i, &format!("D needs {want} registers"));
    }
    if let [metadata, _] = metadata {
        rows.push(cx.src(metadata, Ty::B32)?);
    }
    mma.list = cx.list(rows);
    let mut op = LowerCx::new_op(mma_sync, Class::Tensor);
    op.ext = cx.ext(mma);
    cx.emit(i, op)?;
    Ok(true)
}

/// SAFETY of the functions below: called by the run loop with an operation of its own program; rows come from its list.
unsafe fn mma_sync(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let m: &Mma = cx.ext(op);
    let rows = &cx.launch.program.lists[m.list as usize];
    let (d, rest) = rows.split_at(m.c_registers(m.d));
    let (a, rest) = rest.split_at(m.a_registers());
    let (b, rest) = rest.split_at(m.b_registers());
    let (c, metadata) = rest.split_at(m.c_registers(m.c));
    // SAFETY: see above.
    let order = unsafe { order(cx, m, metadata.first().copied()) };
    let (warp, pc) = (cx.warp().index, cx.pc);
    if let Some(counters) = &mut cx.cluster().counters {
        counters.tensor(warp, pc, (2 * 8 * m.m * m.k) as u64, 0);
    }
    let at = cx.at();
    if let Some(check) = cx.cluster().check.as_deref_mut() {
        let compressed = metadata.first().map(|row| (*row, &order));
        define(check, at.agent, m, [a, b, c], compressed);
    }
    // SAFETY: see above.
    unsafe {
        match m.d {
            Output::F64 => doubles(cx, m, d, a, b, c),
            Output::S32 => integers(cx, m, &order, d, a, b, c),
            _ => floats(cx, m, &order, d, a, b, c),
        }
    }
    Flow::Next
}

/// Which elements of D are defined: those whose row of A, column of B and element of C are. Of a column of B beside a compressed A only
/// what the metadata of the row name counts, and the metadata themselves.
fn define(
    check: &mut Checker,
    agent: Agent,
    m: &Mma,
    [a, b, c]: [&[RowId]; 3],
    compressed: Option<(RowId, &Order)>,
) {
    let of = |check: &Checker, rows: &[RowId], n| {
        let each = |row: &RowId| check.defined(agent, *row, n);
        rows.iter().map(each).collect::<Vec<u32>>()
    };
    let rows = if m.d == Output::F64 { 2 } else { 1 };
    let (a, b, c) = (of(check, a, rows), of(check, b, rows), of(check, c, rows));
    let metadata = compressed.map_or(u32::MAX, |(row, _)| check.defined(agent, row, 1));
    if a.iter().chain(&b).chain(&c).all(|v| *v == u32::MAX) && metadata == u32::MAX {
        return;
    }
    let per_register = 32 / m.b.bits() as usize;
    let right = b.clone();
    // Is all of B defined that element (row, column) meets?
    let met = |row: usize, column: usize| {
        let Some((_, order)) = compressed else {
            return true;
        };
        let lanes = sparse::contributors(m.a, m.k, m.sparse.unwrap_or(0), row >= 8);
        metadata >> (4 * (row % 8)) & lanes == lanes
            && order[row][..m.a_depth()].iter().all(|k| {
                let word = usize::from(*k) / per_register;
                right[word / 4] >> (4 * column + word % 4) & 1 == 1
            })
    };
    // Lanes 4g..4g+4 hold row g (or g + 8, in every second register) of A and column g of B.
    let halves = if m.m == 16 { 2 } else { 1 };
    let all = |v: &[u32], first: usize, step: usize| {
        v.iter()
            .skip(first)
            .step_by(step)
            .fold(u32::MAX, |v, r| v & r)
    };
    let a = [all(&a, 0, halves), all(&a, halves - 1, halves)];
    let b = if compressed.is_some() {
        u32::MAX
    } else {
        all(&b, 0, 1)
    };
    let quad = |lanes: u32, g: usize| lanes >> (4 * g) & 0xf == 0xf;
    for (i, c) in c.iter().enumerate() {
        let elements = if m.d == Output::F16 {
            2 * i..2 * i + 2
        } else {
            i..i + 1
        };
        let lanes = (0..32).fold(0, |v, l| {
            // Of two packed elements one is enough (see `check::valid`).
            let defined = elements.clone().any(|i| {
                let (row, column) = place(l, i);
                quad(a[row / 8], row % 8) && quad(b, column) && met(row, column)
            });
            v | u32::from(defined && c >> l & 1 == 1) << l
        });
        check.define(lanes);
    }
}

/// Where along K the elements of each row of A stand.
type Order = [[u8; 128]; 16];

/// # Safety
/// The metadata's row belongs to the program of `cx`.
unsafe fn order(cx: &Cx, m: &Mma, metadata: Option<RowId>) -> Order {
    let (Some(row), Some(selector)) = (metadata, m.sparse) else {
        return [std::array::from_fn(|k| k as u8); 16];
    };
    // SAFETY: the caller's.
    let rows = sparse::rows(m.a, m.k, selector, unsafe { cx.row(row) });
    rows.map(|row| {
        let mut order = [0; 128];
        for (i, k) in order[..m.a_depth()].iter_mut().enumerate() {
            *k = sparse::position(m.a, row, i) as u8;
        }
        order
    })
}

/// Rows along K: 16 of A, 8 columns of B.
struct Bytes {
    a: [[u8; 32]; 16],
    b: [[u8; 64]; 8],
}

unsafe fn gather(cx: &Cx, m: &Mma, a: &[RowId], b: &[RowId]) -> Bytes {
    let mut out = Bytes {
        a: [[0; 32]; 16],
        b: [[0; 64]; 8],
    };
    for (r, row) in a.iter().enumerate() {
        // SAFETY: the caller's.
        let lanes = unsafe { cx.row(*row) };
        let (below, right) = if m.m == 16 { (r % 2, r / 2) } else { (0, r) };
        for (l, v) in lanes.iter().enumerate() {
            let at = 16 * right + 4 * (l % 4);
            out.a[l / 4 + 8 * below][at..at + 4].copy_from_slice(&v.to_le_bytes());
        }
    }
    for (r, row) in b.iter().enumerate() {
        // SAFETY: the caller's.
        let lanes = unsafe { cx.row(*row) };
        for (l, v) in lanes.iter().enumerate() {
            let at = 16 * r + 4 * (l % 4);
            out.b[l / 4][at..at + 4].copy_from_slice(&v.to_le_bytes());
        }
    }
    out
}

/// (row, column) of element `i` of lane `l` of C and D.
fn place(l: usize, i: usize) -> (usize, usize) {
    (l / 4 + 8 * (i / 2), 2 * (l % 4) + i % 2)
}

unsafe fn floats(
    cx: &mut Cx,
    m: &Mma,
    order: &Order,
    d: &[RowId],
    a: &[RowId],
    b: &[RowId],
    c: &[RowId],
) {
    // SAFETY: the caller's.
    unsafe {
        let bytes = gather(cx, m, a, b);
        let mut sum = [[0f32; 8]; 16];
        for i in 0..m.m / 4 {
            for l in 0..32 {
                let (row, column) = place(l, i);
                sum[row][column] = match m.c {
                    Output::F16 => f16_to_f32((cx.row(c[i / 2])[l] >> (16 * (i % 2))) as u16),
                    _ => f32::from_bits(cx.row(c[i])[l]),
                };
            }
        }
        // B with k outermost, so that the inner loop runs over the 8 columns.
        let mut panel = [[0f32; 8]; 64];
        for (column, row) in bytes.b.iter().enumerate() {
            for k in 0..m.k {
                panel[k][column] = m.b.float(row, k);
            }
        }
        if cx.launch.device.settings.exact_mma {
            exactly(m, &bytes, order, &mut sum);
        } else {
            for ((row, order), sum) in bytes.a.iter().zip(order).zip(&mut sum[..m.m]) {
                for (i, k) in order[..m.a_depth()].iter().enumerate() {
                    let v = m.a.float(row, i);
                    for (s, b) in sum.iter_mut().zip(&panel[usize::from(*k)]) {
                        *s += v * b;
                    }
                }
            }
        }
        match m.d {
            Output::F16 => {
                for (r, row) in d.iter().enumerate() {
                    let out = cx.row_mut(*row);
                    for (l, v) in out.iter_mut().enumerate() {
                        let (row, column) = place(l, 2 * r);
                        let low = f32_to_f16(sum[row][column]);
                        let high = f32_to_f16(sum[row][column + 1]);
                        *v = u32::from(low) | u32::from(high) << 16;
                    }
                }
            }
            _ => {
                for (i, row) in d.iter().enumerate() {
                    let out = cx.row_mut(*row);
                    for (l, v) in out.iter_mut().enumerate() {
                        let (row, column) = place(l, i);
                        *v = sum[row][column].to_bits();
                    }
                }
            }
        }
    }
}

/// The sums in the arithmetic of the hardware.
fn exactly(m: &Mma, bytes: &Bytes, order: &Order, sum: &mut [[f32; 8]; 16]) {
    let rule = Rule::mma(m.d == Output::F16);
    let vector = |values: Vec<f32>, format: Format| {
        let terms: Vec<Term> = values.iter().map(|v| Term::new(*v, format)).collect();
        (values, terms)
    };
    let depth = m.a_depth();
    for ((row, order), sum) in bytes.a.iter().zip(order).zip(&mut sum[..m.m]) {
        let (av, at) = vector((0..depth).map(|i| m.a.float(row, i)).collect(), m.a);
        for (column, s) in bytes.b.iter().zip(sum) {
            let values = order[..depth]
                .iter()
                .map(|k| m.b.float(column, usize::from(*k)));
            let (bv, bt) = vector(values.collect(), m.b);
            *s = exact::element((&av, &at), (&bv, &bt), *s, rule);
        }
    }
}

unsafe fn integers(
    cx: &mut Cx,
    m: &Mma,
    order: &Order,
    d: &[RowId],
    a: &[RowId],
    b: &[RowId],
    c: &[RowId],
) {
    // SAFETY: the caller's.
    unsafe {
        let bytes = gather(cx, m, a, b);
        let mut results = [[0i32; 8]; 16];
        for ((a, order), out) in bytes.a.iter().zip(order).zip(&mut results[..m.m]) {
            for (b, out) in bytes.b.iter().zip(out) {
                *out = if m.bits == Bits::None {
                    order[..m.a_depth()]
                        .iter()
                        .enumerate()
                        .map(|(i, k)| m.a.integer(a, i) * m.b.integer(b, usize::from(*k)))
                        .sum()
                } else {
                    let combine = |x: u8, y: u8| if m.bits == Bits::Xor { x ^ y } else { x & y };
                    a.iter()
                        .zip(b)
                        .map(|(x, y)| combine(*x, *y).count_ones() as i32)
                        .sum()
                };
            }
        }
        let old: [[u32; 32]; 4] =
            std::array::from_fn(|i| c.get(i).map_or([0; 32], |row| *cx.row(*row)));
        for (i, row) in d.iter().enumerate() {
            let out = cx.row_mut(*row);
            for (l, v) in out.iter_mut().enumerate() {
                let (row, column) = place(l, i);
                let (x, y) = (results[row][column], old[i][l] as i32);
                *v = if m.saturate {
                    x.saturating_add(y)
                } else {
                    x.wrapping_add(y)
                } as u32;
            }
        }
    }
}

unsafe fn doubles(cx: &mut Cx, m: &Mma, d: &[RowId], a: &[RowId], b: &[RowId], c: &[RowId]) {
    // SAFETY: the caller's.
    unsafe {
        let mut left = [[0f64; 16]; 16];
        let mut right = [[0f64; 16]; 8];
        for (i, row) in a.iter().enumerate() {
            let (below, k) = if m.m == 16 { (i % 2, i / 2) } else { (0, i) };
            for (l, v) in cx.row64(*row).iter().enumerate() {
                left[l / 4 + 8 * below][l % 4 + 4 * k] = f64::from_bits(*v);
            }
        }
        for (i, row) in b.iter().enumerate() {
            for (l, v) in cx.row64(*row).iter().enumerate() {
                right[l / 4][l % 4 + 4 * i] = f64::from_bits(*v);
            }
        }
        let mut results = [[0u64; 32]; 4];
        for (i, row) in c.iter().enumerate() {
            for (l, v) in cx.row64(*row).iter().enumerate() {
                let (row, column) = place(l, i);
                let mut sum = f64::from_bits(*v);
                for k in 0..m.k {
                    sum = fma_f64(left[row][k], right[column][k], sum, m.rounding);
                }
                results[i][l] = sum.to_bits();
            }
        }
        for (row, v) in d.iter().zip(&results) {
            *cx.row64_mut(*row) = *v;
        }
    }
}

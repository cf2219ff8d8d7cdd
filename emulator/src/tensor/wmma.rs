//! wmma: products of small matrices by one warp, with loads and stores that know the layout of the fragments.
//!
//! ```text
//! wmma.load.{a,b,c}.sync.aligned.layout.shape{.space}.type r, [p]{, stride};
//! wmma.store.d.sync.aligned.layout.shape{.space}.type [p], r{, stride};
//! wmma.mma.sync.aligned.alayout.blayout.shape{.types} d, a, b, c;
//! ```
//!
//! ISA: which element of a matrix a thread holds is unspecified; a fragment may only be handed on, or changed element by
//! element. Here register r of lane l holds elements of the matrix in storage order from (32 r + l) elements-per-register
//! on; A is stored by rows, B by columns, C and D by rows. f16 operands of A and B have eight registers whatever the
//! shape, and what is left over repeats the matrix, as it does on devices.
//!
//! Arithmetic as for mma.sync: f32 in order of k, f16 results rounded once, f64 with fused multiply-adds in all roundings. The hardware's
//! own arithmetic (`BIRDIE_EMU_EXACT_MMA`) is modelled for wgmma and mma.sync only.

use super::converged;
use super::format::{Format, f16_to_f32, f32_to_f16};
use crate::alu::rounding::{Mode, fma_f64};
use crate::exec::memory::{GENERIC, GLOBAL, SHARED, reach};
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, NO_ROW, Op, RowId};
use crate::ptx::ast::{Instr, Space, Ty};

/// Type of the elements of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    /// Of A or B.
    Operand(Format),
    F16,
    F32,
    F64,
    S32,
}

impl Element {
    fn bits(self) -> usize {
        match self {
            Element::Operand(f) => f.bits() as usize,
            Element::F16 => 16,
            Element::F32 | Element::S32 => 32,
            Element::F64 => 64,
        }
    }
    /// Bits of a register.
    fn register(self) -> usize {
        self.bits().max(32)
    }
    fn register_type(self) -> Ty {
        match self {
            Element::F32 => Ty::F32,
            _ if self.bits() == 64 => Ty::F64,
            _ => Ty::B32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
}

impl Shape {
    fn parse(s: &str) -> Option<Shape> {
        let (m, rest) = s.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some(Shape {
            m: m.parse().ok()?,
            n: n.parse().ok()?,
            k: k.parse().ok()?,
        })
    }

    /// Does wmma have this shape for operands of the format?
    fn takes(self, f: Format) -> bool {
        let shape = (self.m, self.n, self.k);
        match f {
            Format::F16 | Format::Bf16 | Format::S8 | Format::U8 => {
                matches!(shape, (16, 16, 16) | (8, 32, 16) | (32, 8, 16))
            }
            Format::Tf32 => shape == (16, 16, 8),
            Format::S4 | Format::U4 => shape == (8, 8, 32),
            Format::B1 => shape == (8, 8, 128),
            Format::F64 => shape == (8, 8, 4),
            Format::E4m3 | Format::E5m2 => false,
        }
    }
}

/// A matrix as a fragment.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    element: Element,
    /// In the order in which elements are stored in the fragment.
    outer: usize,
    inner: usize,
    registers: usize,
}

impl Fragment {
    fn new(matrix: &str, shape: Shape, element: Element) -> Fragment {
        let (outer, inner) = match matrix {
            "a" => (shape.m, shape.k),
            "b" => (shape.n, shape.k),
            _ => (shape.m, shape.n),
        };
        let exact = outer * inner * element.bits() / (32 * element.register());
        let registers = match element {
            Element::Operand(Format::F16) => 8,
            _ => exact,
        };
        Fragment {
            element,
            outer,
            inner,
            registers,
        }
    }

    fn per_register(&self) -> usize {
        self.element.register() / self.element.bits()
    }

    /// First element of register `r` of a lane.
    fn first(&self, r: usize, lane: usize) -> usize {
        (32 * r + lane) * self.per_register() % (self.outer * self.inner)
    }
}

/// Extension record of loads and stores.
struct Transfer {
    fragment: Fragment,
    /// The order in memory is that of the fragment.
    straight: bool,
    space: u8,
    wide: bool,
    list: u32,
}

/// Extension record of the product; the list of rows is D, A, B, C.
struct Product {
    shape: Shape,
    a: Fragment,
    b: Fragment,
    c: Fragment,
    d: Fragment,
    saturate: bool,
    /// Of f64.
    rounding: Mode,
    /// b1: and instead of xor.
    and: bool,
    list: u32,
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let parts: Vec<&str> = i.op.iter().map(|s| &**s).collect();
    match parts[..] {
        [
            "wmma",
            "load",
            matrix @ ("a" | "b" | "c"),
            "sync",
            "aligned",
            ref rest @ ..,
        ] => {
            transfer(cx, i, matrix, rest, true)?;
        }
        ["wmma", "store", "d", "sync", "aligned", ref rest @ ..] => {
            transfer(cx, i, "d", rest, false)?;
        }
        ["wmma", "mma", ref rest @ ..] => product(cx, i, rest)?,
        ["wmma", ..] => return cx.unsupported(i, "is .load, .store.d or .mma"),
        _ => return Ok(false),
    }
    Ok(true)
}

fn element(matrix: &str, ty: &str) -> Option<Element> {
    if matches!(matrix, "a" | "b") {
        return Format::parse(ty).map(Element::Operand);
    }
    Some(match ty {
        "f16" => Element::F16,
        "f32" => Element::F32,
        "f64" => Element::F64,
        "s32" => Element::S32,
        _ => return None,
    })
}

/// Does an accumulator of this type go with the shape?
fn accumulates(shape: Shape, e: Element) -> bool {
    use Format::*;
    let of: &[Format] = match e {
        Element::Operand(f) => return shape.takes(f),
        Element::F16 => &[F16],
        Element::F32 => &[F16, Bf16, Tf32],
        Element::S32 => &[S8, S4, B1],
        Element::F64 => &[F64],
    };
    of.iter().any(|f| shape.takes(*f))
}

fn transfer(cx: &mut LowerCx, i: &Instr, matrix: &str, parts: &[&str], load: bool) -> Result<()> {
    let (mut shape, mut rows, mut space, mut ty) = (None, None, GENERIC, None);
    for p in parts {
        match *p {
            "row" => rows = Some(true),
            "col" => rows = Some(false),
            "global" => space = GLOBAL,
            "shared" | "shared::cta" => space = SHARED,
            p if p.starts_with('m') => shape = Shape::parse(p),
            p => ty = element(matrix, p),
        }
    }
    let (Some(shape), Some(rows), Some(ty)) = (shape, rows, ty) else {
        return cx.unsupported(i, "layout, shape and type are expected");
    };
    if !accumulates(shape, ty) {
        return cx.unsupported(i, "this combination of shape and type does not exist");
    }
    let fragment = Fragment::new(matrix, shape, ty);
    // B is stored by columns.
    let straight = rows != (matrix == "b");
    if ty.bits() < 8 && !straight {
        return cx.unsupported(i, "elements below a byte are .row in A and .col in B");
    }
    let (registers, place, stride) = match (&i.operands[..], load) {
        ([r, p], true) | ([p, r], false) => (r, p, None),
        ([r, p, s], true) | ([p, r, s], false) => (r, p, Some(s)),
        _ => return cx.unsupported(i, "registers, address and stride are expected"),
    };
    let (run, class): (crate::exec::Handler, _) = match (load, space == SHARED) {
        (true, true) => (load_fragment, Class::LoadShared),
        (true, false) => (load_fragment, Class::LoadGlobal),
        (false, true) => (store_fragment, Class::StoreShared),
        (false, false) => (store_fragment, Class::StoreGlobal),
    };
    let mut op = LowerCx::new_op(run, class);
    let a = cx.address(place)?;
    match a.symbol_space {
        None => {}
        Some(Space::Shared | Space::SharedCta) if space != GLOBAL => space = SHARED,
        Some(Space::Global | Space::Const) if space != SHARED => space = GLOBAL,
        Some(_) => return cx.unsupported(i, "the address is in another state space"),
    }
    op.src[0] = a.row.unwrap_or(NO_ROW);
    op.imm = a.offset;
    if let Some(stride) = stride {
        op.src[1] = cx.src(stride, Ty::U32)?;
    }
    let list = if load {
        cx.dst_vector(registers, ty.register_type())?
    } else {
        cx.src_vector(registers, ty.register_type())?
    };
    if list.len() != fragment.registers {
        let want = fragment.registers;
        return cx.unsupported(i, &format!("{want} registers are expected"));
    }
    let list = cx.list(list);
    op.ext = cx.ext(Transfer {
        fragment,
        straight,
        space,
        wide: a.wide,
        list,
    });
    cx.emit(i, op)
}

fn product(cx: &mut LowerCx, i: &Instr, parts: &[&str]) -> Result<()> {
    let mut layouts = Vec::new();
    let mut types = Vec::new();
    let (mut shape, mut saturate, mut rounding) = (None, false, None);
    let (mut and, mut xor) = (false, false);
    for p in parts {
        match *p {
            "sync" | "aligned" | "popc" => {}
            "row" | "col" => layouts.push(*p),
            "satfinite" => saturate = true,
            "rn" | "rz" | "rm" | "rp" => rounding = Mode::parse(p),
            "xor" => xor = true,
            "and" => and = true,
            p if p.starts_with('m') => shape = Shape::parse(p),
            p => types.push(p),
        }
    }
    let (d, a, b, c) = match types[..] {
        [d, c] => (d, "f16", "f16", c),
        [d, a, b, c] => (d, a, b, c),
        _ => return cx.unsupported(i, "the types of the matrices are expected"),
    };
    let found = (
        element("d", d),
        Format::parse(a),
        Format::parse(b),
        element("c", c),
        shape,
    );
    let (Some(d), Some(a), Some(b), Some(c), Some(shape)) = found else {
        return cx.unsupported(i, "shape and types of the matrices are expected");
    };
    use Format::*;
    let narrow = matches!(a, S4 | U4 | B1);
    let known = match (a, b) {
        (F16, F16) => [d, c]
            .iter()
            .all(|e| matches!(e, Element::F16 | Element::F32)),
        (Bf16, Bf16) | (Tf32, Tf32) => (d, c) == (Element::F32, Element::F32),
        (S8, S8) | (U8, U8) | (S4, S4) | (U4, U4) | (B1, B1) => {
            (d, c) == (Element::S32, Element::S32)
        }
        (F64, F64) => (d, c) == (Element::F64, Element::F64),
        _ => false,
    };
    if !known
        || !shape.takes(a)
        || layouts.len() != 2
        || narrow && layouts != ["row", "col"]
        || (a == B1) != (and || xor)
        || rounding.is_some() && a != F64
        || saturate && !a.is_integer() | (a == B1)
    {
        return cx.unsupported(
            i,
            "this combination of shape, layouts and types does not exist",
        );
    }
    let [od, oa, ob, oc] = &i.operands[..] else {
        return cx.unsupported(i, "operands d, a, b, c are expected");
    };
    let fragments = [
        Fragment::new("d", shape, d),
        Fragment::new("a", shape, Element::Operand(a)),
        Fragment::new("b", shape, Element::Operand(b)),
        Fragment::new("c", shape, c),
    ];
    let mut rows = cx.dst_vector(od, d.register_type())?;
    if rows.len() != fragments[0].registers {
        return cx.unsupported(i, &format!("D has {} registers", fragments[0].registers));
    }
    for ((o, f), name) in [oa, ob, oc]
        .iter()
        .zip(&fragments[1..])
        .zip(["A", "B", "C"])
    {
        let list = cx.src_vector(o, f.element.register_type())?;
        if list.len() != f.registers {
            return cx.unsupported(i, &format!("{name} has {} registers", f.registers));
        }
        rows.extend(list);
    }
    let [d, a, b, c] = fragments;
    let list = cx.list(rows);
    let mut op = LowerCx::new_op(multiply, Class::Tensor);
    op.ext = cx.ext(Product {
        shape,
        a,
        b,
        c,
        d,
        saturate,
        rounding: rounding.unwrap_or(Mode::Nearest),
        and,
        list,
    });
    cx.emit(i, op)
}

/// Pointers to an element (or a register's worth of them) of each lane.
unsafe fn pointers(
    cx: &mut Cx,
    op: &Op,
    t: &Transfer,
    first: impl Fn(usize) -> usize,
    bytes: usize,
    store: bool,
) -> std::result::Result<[*mut u8; 32], Flow> {
    let f = &t.fragment;
    let lane = cx.mask.trailing_zeros() as usize & 31;
    // SAFETY: rows of the operation.
    let (base, stride) = unsafe {
        let base = match op.src[0] {
            NO_ROW => 0,
            row if t.wide => cx.row64(row)[lane],
            row => u64::from(cx.row(row)[lane]),
        };
        let stride = match op.src[1] {
            NO_ROW if t.straight => f.inner,
            NO_ROW => f.outer,
            row => cx.row(row)[lane] as usize,
        };
        (base.wrapping_add(op.imm as u64), stride)
    };
    let addresses = std::array::from_fn(|l| {
        let e = first(l);
        let (outer, inner) = (e / f.inner, e % f.inner);
        let at = if t.straight {
            outer * stride + inner
        } else {
            inner * stride + outer
        };
        base.wrapping_add((at * f.element.bits() / 8) as u64)
    });
    // SAFETY: passed on.
    unsafe { reach(cx, op, t.space, &addresses, bytes, store) }
}

/// SAFETY of the handlers: called by the run loop with an operation of its own program.
unsafe fn load_fragment(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let t: &Transfer = cx.ext(op);
    let rows = &cx.launch.program.lists[t.list as usize];
    let f = t.fragment;
    let (bits, wide) = (f.element.bits(), f.element.register() == 64);
    let mut values = vec![[0u64; 32]; rows.len()];
    for (r, out) in values.iter_mut().enumerate() {
        // Elements below a byte come as whole registers.
        let (steps, bytes) = if bits < 8 {
            (1, 4)
        } else {
            (f.per_register(), bits / 8)
        };
        for j in 0..steps {
            // SAFETY: as above.
            let at = match unsafe { pointers(cx, op, t, |l| f.first(r, l) + j, bytes, false) } {
                Ok(at) => at,
                Err(flow) => return flow,
            };
            for (v, p) in out.iter_mut().zip(at) {
                let mut word = [0u8; 8];
                // SAFETY: `reach` has tested as many bytes.
                unsafe { std::ptr::copy_nonoverlapping(p, word.as_mut_ptr(), bytes) };
                *v |= u64::from_le_bytes(word) << (8 * bytes * j);
            }
        }
    }
    for (row, v) in rows.iter().zip(&values) {
        // SAFETY: rows of the operation.
        unsafe {
            if wide {
                *cx.row64_mut(*row) = *v;
            } else {
                *cx.row_mut(*row) = v.map(|v| v as u32);
            }
        }
    }
    Flow::Next
}

unsafe fn store_fragment(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let t: &Transfer = cx.ext(op);
    let rows = &cx.launch.program.lists[t.list as usize];
    let f = t.fragment;
    let (bytes, wide) = (f.element.bits() / 8, f.element.register() == 64);
    for (r, row) in rows.iter().enumerate() {
        // SAFETY: a row of the operation.
        let values: [u64; 32] = unsafe {
            if wide {
                *cx.row64(*row)
            } else {
                cx.row(*row).map(u64::from)
            }
        };
        for j in 0..f.per_register() {
            // SAFETY: as above.
            let at = match unsafe { pointers(cx, op, t, |l| f.first(r, l) + j, bytes, true) } {
                Ok(at) => at,
                Err(flow) => return flow,
            };
            for (v, p) in values.iter().zip(at) {
                let word = (v >> (8 * bytes * j)).to_le_bytes();
                // SAFETY: `reach` has tested as many bytes.
                unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), p, bytes) };
            }
        }
    }
    Flow::Next
}

/// The bits of the elements of a fragment in storage order, in bytes.
unsafe fn gather(cx: &Cx, f: &Fragment, rows: &[RowId]) -> Vec<u8> {
    let size = f.element.register() / 8;
    let mut out = vec![0u8; f.outer * f.inner * f.element.bits() / 8];
    for (r, row) in rows.iter().enumerate() {
        for lane in 0..32 {
            let at = f.first(r, lane) * f.element.bits() / 8;
            // SAFETY: a row of the operation.
            let word = unsafe {
                if size == 8 {
                    cx.row64(*row)[lane]
                } else {
                    u64::from(cx.row(*row)[lane])
                }
            };
            out[at..at + size].copy_from_slice(&word.to_le_bytes()[..size]);
        }
    }
    out
}

unsafe fn multiply(cx: &mut Cx, op: &Op) -> Flow {
    match converged(cx) {
        Ok(true) => {}
        Ok(false) => return Flow::Next,
        Err(flow) => return flow,
    }
    let p: &Product = cx.ext(op);
    let rows = &cx.launch.program.lists[p.list as usize];
    let (d, rest) = rows.split_at(p.d.registers);
    let (a, rest) = rest.split_at(p.a.registers);
    let (b, c) = rest.split_at(p.b.registers);
    let Shape { m, n, k } = p.shape;
    let (warp, pc) = (cx.warp().index, cx.pc);
    if let Some(counters) = &mut cx.cluster().counters {
        counters.tensor(warp, pc, (2 * m * n * k) as u64, 0);
    }
    // SAFETY: rows of the operation.
    let (a, b, c) = unsafe {
        (
            gather(cx, &p.a, a),
            gather(cx, &p.b, b),
            gather(cx, &p.c, c),
        )
    };
    let Element::Operand(format) = p.a.element else {
        return Flow::Next;
    };
    let bytes = k * format.bits() as usize / 8;
    let results: Vec<u64> = (0..m * n)
        .map(|e| {
            let (a, b) = (&a[e / n * bytes..][..bytes], &b[e % n * bytes..][..bytes]);
            one(p, format, a, b, &c, e)
        })
        .collect();
    let per = p.d.per_register();
    for (r, row) in d.iter().enumerate() {
        for lane in 0..32 {
            let first = p.d.first(r, lane);
            let word = (0..per).fold(0, |w, j| w | results[first + j] << (j * p.d.element.bits()));
            // SAFETY: a row of the operation.
            unsafe {
                if p.d.element.register() == 64 {
                    cx.row64_mut(*row)[lane] = word;
                } else {
                    cx.row_mut(*row)[lane] = word as u32;
                }
            }
        }
    }
    Flow::Next
}

/// Bits of element `e` of D.
fn one(p: &Product, format: Format, a: &[u8], b: &[u8], c: &[u8], e: usize) -> u64 {
    let k = p.shape.k;
    let size = p.c.element.bits() / 8;
    let mut old = [0u8; 8];
    old[..size].copy_from_slice(&c[e * size..][..size]);
    let old = u64::from_le_bytes(old);
    let double = |row: &[u8], i: usize| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&row[8 * i..8 * i + 8]);
        f64::from_le_bytes(word)
    };
    match p.d.element {
        Element::F64 => {
            let sum = (0..k).fold(f64::from_bits(old), |s, i| {
                fma_f64(double(a, i), double(b, i), s, p.rounding)
            });
            sum.to_bits()
        }
        Element::S32 => {
            let sum: i32 = if format == Format::B1 {
                let bits = |(x, y): (&u8, &u8)| if p.and { x & y } else { x ^ y }.count_ones();
                a.iter().zip(b).map(bits).sum::<u32>() as i32
            } else {
                (0..k)
                    .map(|i| format.integer(a, i) * format.integer(b, i))
                    .sum()
            };
            let old = old as u32 as i32;
            let sum = if p.saturate {
                old.saturating_add(sum)
            } else {
                old.wrapping_add(sum)
            };
            u64::from(sum as u32)
        }
        _ => {
            let start = match p.c.element {
                Element::F16 => f16_to_f32(old as u16),
                _ => f32::from_bits(old as u32),
            };
            let sum = (0..k).fold(start, |s, i| s + format.float(a, i) * format.float(b, i));
            match p.d.element {
                Element::F16 => u64::from(f32_to_f16(sum)),
                _ => u64::from(sum.to_bits()),
            }
        }
    }
}

//! Bits: and, or, xor, not, cnot, lop3, shifts, funnel shifts, permutations, bit fields, counts.
//!
//! Shift counts are clamped, not masked: `shl.b32` by 32 or more gives 0, `shr.s32` the sign. 16-bit registers are
//! zero-extended in their rows, so 16- and 32-bit `and`, `or` and `xor` are one handler.

use super::compare::BoolOp;
use super::lane::{Elem, emit, emit_with, lane, load, store};
use super::modifiers::Modifiers;
use crate::exec::{Cx, Flow, LANES};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

/// Untyped bits of 16, 32 or 64.
pub(super) trait Bits:
    Elem
    + std::ops::BitAnd<Output = Self>
    + std::ops::BitOr<Output = Self>
    + std::ops::BitXor<Output = Self>
    + std::ops::Not<Output = Self>
{
    fn shl(self, n: u32) -> Self;
    fn shr(self, n: u32) -> Self;
    fn is_zero(self) -> bool;
    fn one_if(condition: bool) -> Self;
    /// All ones or zero.
    fn all_if(condition: bool) -> Self;
    fn ones(self) -> u32;
    fn leading(self) -> u32;
    fn reverse(self) -> Self;
}

macro_rules! bits {
    ($($t:ty, $width:literal;)*) => { $(
        impl Bits for $t {
            #[inline(always)]
            fn shl(self, n: u32) -> Self { if n < $width { self << n } else { 0 } }
            #[inline(always)]
            fn shr(self, n: u32) -> Self { if n < $width { self >> n } else { 0 } }
            #[inline(always)]
            fn is_zero(self) -> bool { self == 0 }
            #[inline(always)]
            fn one_if(condition: bool) -> Self { condition as $t }
            #[inline(always)]
            fn all_if(condition: bool) -> Self { (condition as $t).wrapping_neg() }
            #[inline(always)]
            fn ones(self) -> u32 { self.count_ones() }
            #[inline(always)]
            fn leading(self) -> u32 { self.leading_zeros() }
            #[inline(always)]
            fn reverse(self) -> Self { self.reverse_bits() }
        }
    )* };
}

bits! {
    u16, 16;
    u32, 32;
    u64, 64;
}

/// Arithmetic shift to the right.
pub(super) trait SignedBits: Elem {
    fn shr(self, n: u32) -> Self;
}
impl SignedBits for i16 {
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        self >> n.min(15)
    }
}
impl SignedBits for i32 {
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        self >> n.min(31)
    }
}
impl SignedBits for i64 {
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        self >> n.min(63)
    }
}

lane!(And<T: Bits>(a: T, b: T) -> T { a & b });
lane!(Or<T: Bits>(a: T, b: T) -> T { a | b });
lane!(Xor<T: Bits>(a: T, b: T) -> T { a ^ b });
lane!(Not<T: Bits>(a: T) -> T { !a });
lane!(Cnot<T: Bits>(a: T) -> T { T::one_if(a.is_zero()) });
lane!(Shl<T: Bits>(a: T, n: u32) -> T { a.shl(n) });
lane!(Shr<T: Bits>(a: T, n: u32) -> T { a.shr(n) });
lane!(ShrSigned<T: SignedBits>(a: T, n: u32) -> T { a.shr(n) });
lane!(Popc<T: Bits>(a: T) -> u32 { a.ones() });
lane!(Clz<T: Bits>(a: T) -> u32 { a.leading() });
lane!(Brev<T: Bits>(a: T) -> T { a.reverse() });

/// The function that a table of 8 results describes: a tree of selections by `c`, `b`, `a`.
#[inline(always)]
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let bit = |n: u32| (table >> n & 1).wrapping_neg();
    let select = |s: u32, yes: u32, no: u32| no ^ ((no ^ yes) & s);
    let pair = |n: u32| select(c, bit(n + 1), bit(n));
    select(a, select(b, pair(6), pair(4)), select(b, pair(2), pair(0)))
}

lane!(Lop3(a: u32, b: u32, c: u32; table) -> u32 { lookup(a, b, c, table) });
// The tables that compilers use most, without the tree.
lane!(Lop3Xor(a: u32, b: u32, c: u32) -> u32 { a ^ b ^ c });
lane!(Lop3AndOr(a: u32, b: u32, c: u32) -> u32 { (a & b) | c });
lane!(Lop3AndXor(a: u32, b: u32, c: u32) -> u32 { (a & b) ^ c });
lane!(Lop3Or(a: u32, b: u32, c: u32) -> u32 { a | b | c });
lane!(Lop3And(a: u32, b: u32, c: u32) -> u32 { a & b & c });

#[inline(always)]
fn funnel(a: u32, b: u32) -> u64 {
    u64::from(b) << 32 | u64::from(a)
}

lane!(ShfLeftWrap(a: u32, b: u32, n: u32) -> u32 { ((funnel(a, b) << (n & 31)) >> 32) as u32 });
lane!(ShfLeftClamp(a: u32, b: u32, n: u32) -> u32 { ((funnel(a, b) << n.min(32)) >> 32) as u32 });
lane!(ShfRightWrap(a: u32, b: u32, n: u32) -> u32 { (funnel(a, b) >> (n & 31)) as u32 });
lane!(ShfRightClamp(a: u32, b: u32, n: u32) -> u32 { (funnel(a, b) >> n.min(32)) as u32 });

#[inline(always)]
fn pick(source: u64, selector: u32) -> u32 {
    (source >> (8 * (selector & 7))) as u32 & 0xff
}

lane!(Prmt(a: u32, b: u32, c: u32) -> u32 {
    let source = funnel(a, b);
    let mut d = 0;
    for n in 0..4 {
        let selector = c >> (4 * n);
        let byte = pick(source, selector);
        let sign = (byte >> 7).wrapping_neg() & 0xff;
        d |= (if selector & 8 != 0 { sign } else { byte }) << (8 * n);
    }
    d
});

lane!(
    /// `imm` is the number of the mode.
    PrmtMode(a: u32, b: u32, c: u32; mode) -> u32 {
        let k = c & 3;
        let byte = |n: u32| -> u32 {
            match mode {
                0 => k + n,
                1 => k.wrapping_sub(n) & 7,
                2 => k,
                3 => n.max(k),
                4 => n.min(k),
                _ => (k & 1) * 2 + (n & 1),
            }
        };
        let source = funnel(a, b);
        (0..4).fold(0, |d, n| d | pick(source, byte(n)) << (8 * n))
    }
);

lane!(Bfe<T: Field>(a: T, position: u32, length: u32) -> T { a.extract(position & 255, length & 255) });
lane!(Bfi<T: Field>(a: T, b: T, s: Shifts) -> T { b.insert(a, s.position(), s.length()) });

/// Position and length of `bfi`, packed in one row: the handler has room for three sources.
#[derive(Clone, Copy)]
pub(super) struct Shifts(u32);

impl Shifts {
    #[inline(always)]
    fn position(self) -> u32 {
        self.0 & 255
    }
    #[inline(always)]
    fn length(self) -> u32 {
        self.0 >> 8 & 255
    }
}

impl Elem for Shifts {
    type Mem = u32;
    const TY: Ty = Ty::U32;
    #[inline(always)]
    fn get(mem: u32) -> Self {
        Shifts(mem)
    }
    #[inline(always)]
    fn put(self) -> u32 {
        self.0
    }
}

lane!(PackShifts(position: u32, length: u32) -> u32 { (position & 255) | (length & 255) << 8 });

pub(super) trait Field: Elem {
    fn extract(self, position: u32, length: u32) -> Self;
    fn insert(self, field: Self, position: u32, length: u32) -> Self;
}

macro_rules! field {
    ($($signed:ty, $unsigned:ty, $width:literal;)*) => { $(
        impl Field for $unsigned {
            #[inline(always)]
            fn extract(self, position: u32, length: u32) -> Self {
                Bits::shr(self, position) & low_ones(length) as $unsigned
            }
            #[inline(always)]
            fn insert(self, field: Self, position: u32, length: u32) -> Self {
                let mask = Bits::shl(low_ones(length) as $unsigned, position);
                (self & !mask) | (Bits::shl(field, position) & mask)
            }
        }
        impl Field for $signed {
            #[inline(always)]
            fn extract(self, position: u32, length: u32) -> Self {
                if length == 0 {
                    return 0;
                }
                // What lies beyond the register is its sign.
                let top = (position + length - 1).min($width - 1);
                let shifted = self >> position.min($width - 1);
                let sign = ((self >> top) & 1).wrapping_neg();
                let mask = low_ones(length.min($width)) as $signed;
                (shifted & mask) | (sign & !mask)
            }
            #[inline(always)]
            fn insert(self, field: Self, position: u32, length: u32) -> Self {
                (self as $unsigned).insert(field as $unsigned, position, length) as $signed
            }
        }
    )* };
}

#[inline(always)]
fn low_ones(n: u32) -> u64 {
    if n < 64 { (1 << n) - 1 } else { !0 }
}

field! {
    i32, u32, 32;
    i64, u64, 64;
}

lane!(Bmsk(a: u32, b: u32; clamp) -> u32 {
    let (a, b) = if clamp != 0 { (a, b) } else { (a & 31, b & 31) };
    if a > 31 { 0 } else { (low_ones(b.min(32)) as u32) << a }
});
lane!(SzextUnsigned(a: u32, n: u32; clamp) -> u32 {
    if clamp != 0 && n > 31 { a } else { a & low_ones(n & 31) as u32 }
});
lane!(SzextSigned(a: i32, n: u32; clamp) -> i32 {
    if clamp != 0 && n > 31 { a } else { a.extract(0, n & 31) }
});
lane!(FindUnsigned<T: Bits>(a: T; shift) -> u32 { find(a, shift) });
lane!(FindSigned32(a: i32; shift) -> u32 { find((a ^ a >> 31) as u32, shift) });
lane!(FindSigned64(a: i64; shift) -> u32 { find((a ^ a >> 63) as u64, shift) });

/// Position of the highest one, or its distance from the top.
#[inline(always)]
fn find<T: Bits>(a: T, shift: u32) -> u32 {
    let top = size_of::<T>() as u32 * 8 - 1;
    let leading = a.leading();
    if a.is_zero() {
        !0
    } else if shift != 0 {
        leading
    } else {
        top - leading
    }
}

lane!(Fns(mask: u32, base: u32, offset: i32) -> u32 {
    let step = if offset < 0 { -1 } else { 1 };
    let mut left = if offset == 0 { 0 } else { offset.unsigned_abs() - 1 };
    let mut position = (base & 31) as i32;
    while (0..32).contains(&position) {
        if mask >> position & 1 != 0 {
            if left == 0 {
                return position as u32;
            }
            left -= 1;
        }
        if offset == 0 {
            break;
        }
        position += step;
    }
    !0
});

/// `lop3.BoolOp`: `d`, and `p = (d != 0) BoolOp q`. The table is in `imm`, the operator in `flags`.
#[inline(always)]
unsafe fn run_lop3_predicate<B: BoolOp>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: three 32-bit sources, one 32-bit destination, two predicates.
    unsafe {
        let [a, b, c]: [[u32; LANES]; 3] = [
            load(cx, op.src[0]),
            load(cx, op.src[1]),
            load(cx, op.src[2]),
        ];
        let table = op.imm as u32;
        let mut nonzero = 0;
        for i in 0..LANES {
            nonzero |= u32::from(lookup(a[i], b[i], c[i], table) != 0) << i;
        }
        store(cx, op.dst, |i| lookup(a[i], b[i], c[i], table));
        let q = cx.pred(op.psrc);
        cx.set_pred(op.pdst, B::combine(nonzero, q));
    }
    Flow::Next
}

crate::simd_handler!(lop3_predicate => run_lop3_predicate<B: BoolOp>);

fn lop3(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let with_and = m.take("and");
    let with_or = m.take("or");
    if m.ty(cx)? != Ty::B32 {
        return cx.unsupported(i, "its type is .b32");
    }
    m.done(cx)?;
    let table = match i.operands.get(4) {
        Some(Operand::Int(table @ 0..=255)) => *table as u32,
        _ => return cx.unsupported(i, "the fourth source has to be a table of 8 bits"),
    };
    if !with_and && !with_or {
        let operands = &i.operands[..4];
        if i.operands.len() != 5 {
            return cx.unsupported(i, "5 operands are expected");
        }
        return match table {
            0x96 => emit_with::<Lop3Xor>(cx, i, Class::Integer, 0, operands),
            0xea => emit_with::<Lop3AndOr>(cx, i, Class::Integer, 0, operands),
            0x6a => emit_with::<Lop3AndXor>(cx, i, Class::Integer, 0, operands),
            0xfe => emit_with::<Lop3Or>(cx, i, Class::Integer, 0, operands),
            0x80 => emit_with::<Lop3And>(cx, i, Class::Integer, 0, operands),
            _ => emit_with::<Lop3>(cx, i, Class::Integer, table, operands),
        };
    }
    let (Some(Operand::RegPair(d, p)), 6) = (i.operands.first(), i.operands.len()) else {
        return cx.unsupported(i, "operands d|p, a, b, c, table, q are expected");
    };
    let handler = if with_and {
        lop3_predicate::<super::compare::And>()
    } else {
        lop3_predicate::<super::compare::Or>()
    };
    let mut op = LowerCx::new_op(handler, Class::Integer);
    op.imm = i64::from(table);
    for n in 0..3 {
        op.src[n] = cx.src(&i.operands[n + 1], Ty::B32)?;
    }
    op.psrc = cx.pred_src(&i.operands[5])?;
    op.dst = cx.dst(d, Ty::B32)?;
    op.pdst = cx.pred_dst(p)?;
    cx.emit(i, op)?;
    Ok(true)
}

/// `bfi` has four sources: position and length are packed first.
fn bfi<T: Field>(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let [d, a, b, position, length] = &i.operands[..] else {
        return cx.unsupported(i, "5 operands are expected");
    };
    let mut pack = LowerCx::new_op(super::lane::lane_handler::<PackShifts>(), Class::Integer);
    pack.src[0] = cx.src(position, Ty::U32)?;
    pack.src[1] = cx.src(length, Ty::U32)?;
    pack.dst = cx.dst(&Operand::Sink, Ty::U32)?;
    let packed = pack.dst;
    cx.emit(i, pack)?;
    let mut op = LowerCx::new_op(super::lane::lane_handler::<Bfi<T>>(), Class::Integer);
    op.src[0] = cx.src(a, T::TY)?;
    op.src[1] = cx.src(b, T::TY)?;
    op.src[2] = packed;
    cx.current.reads.push((packed, 1));
    op.dst = cx.dst(d, T::TY)?;
    cx.emit(i, op)?;
    Ok(true)
}

/// Opcodes on bits, `and` and its kin on predicates excepted.
pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let class = Class::Integer;
    let opcode = &*i.op[0];
    let mut m = Modifiers::new(i);
    match opcode {
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "popc" | "clz" | "brev" => {
            let ty = m.ty(cx)?;
            m.done(cx)?;
            fn of<T: Bits>(cx: &mut LowerCx, i: &Instr, opcode: &str) -> Result<bool> {
                let class = Class::Integer;
                match opcode {
                    "and" => emit::<And<T>>(cx, i, class, 0),
                    "or" => emit::<Or<T>>(cx, i, class, 0),
                    "xor" => emit::<Xor<T>>(cx, i, class, 0),
                    "not" => emit::<Not<T>>(cx, i, class, 0),
                    "cnot" => emit::<Cnot<T>>(cx, i, class, 0),
                    "shl" => emit::<Shl<T>>(cx, i, class, 0),
                    "popc" => emit::<Popc<T>>(cx, i, class, 0),
                    "clz" => emit::<Clz<T>>(cx, i, class, 0),
                    _ => emit::<Brev<T>>(cx, i, class, 0),
                }
            }
            match (opcode, ty) {
                ("popc" | "clz" | "brev", Ty::B16) => {
                    cx.unsupported(i, "not a type of this instruction")
                }
                (_, Ty::B16) => of::<u16>(cx, i, opcode),
                (_, Ty::B32) => of::<u32>(cx, i, opcode),
                (_, Ty::B64) => of::<u64>(cx, i, opcode),
                _ => cx.unsupported(i, "not a type of this instruction"),
            }
        }
        "shr" => {
            let ty = m.ty(cx)?;
            m.done(cx)?;
            match ty {
                Ty::B16 | Ty::U16 => emit::<Shr<u16>>(cx, i, class, 0),
                Ty::B32 | Ty::U32 => emit::<Shr<u32>>(cx, i, class, 0),
                Ty::B64 | Ty::U64 => emit::<Shr<u64>>(cx, i, class, 0),
                Ty::S16 => emit::<ShrSigned<i16>>(cx, i, class, 0),
                Ty::S32 => emit::<ShrSigned<i32>>(cx, i, class, 0),
                Ty::S64 => emit::<ShrSigned<i64>>(cx, i, class, 0),
                _ => cx.unsupported(i, "not a type of this instruction"),
            }
        }
        "shf" => {
            let (left, right) = (m.take("l"), m.take("r"));
            let (wrap, clamp) = (m.take("wrap"), m.take("clamp"));
            let ty = m.ty(cx)?;
            m.done(cx)?;
            match (left, right, wrap, clamp, ty) {
                (true, false, true, false, Ty::B32) => emit::<ShfLeftWrap>(cx, i, class, 0),
                (true, false, false, true, Ty::B32) => emit::<ShfLeftClamp>(cx, i, class, 0),
                (false, true, true, false, Ty::B32) => emit::<ShfRightWrap>(cx, i, class, 0),
                (false, true, false, true, Ty::B32) => emit::<ShfRightClamp>(cx, i, class, 0),
                _ => cx.unsupported(i, "not a form of this instruction"),
            }
        }
        "prmt" => {
            if m.ty(cx)? != Ty::B32 {
                return cx.unsupported(i, "its type is .b32");
            }
            const MODES: [&str; 6] = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"];
            let mode = m.first(|s| MODES.iter().position(|mode| *mode == s));
            m.done(cx)?;
            match mode {
                Some(mode) => emit::<PrmtMode>(cx, i, class, mode as u32),
                None => emit::<Prmt>(cx, i, class, 0),
            }
        }
        "bfe" | "bfi" => {
            let ty = m.ty(cx)?;
            m.done(cx)?;
            match (opcode, ty) {
                ("bfe", Ty::U32) => emit::<Bfe<u32>>(cx, i, class, 0),
                ("bfe", Ty::S32) => emit::<Bfe<i32>>(cx, i, class, 0),
                ("bfe", Ty::U64) => emit::<Bfe<u64>>(cx, i, class, 0),
                ("bfe", Ty::S64) => emit::<Bfe<i64>>(cx, i, class, 0),
                ("bfi", Ty::B32) => bfi::<u32>(cx, i),
                ("bfi", Ty::B64) => bfi::<u64>(cx, i),
                _ => cx.unsupported(i, "not a type of this instruction"),
            }
        }
        "bmsk" | "szext" => {
            let (wrap, clamp) = (m.take("wrap"), m.take("clamp"));
            let ty = m.ty(cx)?;
            m.done(cx)?;
            if wrap == clamp {
                return cx.unsupported(i, "it needs .wrap or .clamp");
            }
            match (opcode, ty) {
                ("bmsk", Ty::B32) => emit::<Bmsk>(cx, i, class, u32::from(clamp)),
                ("szext", Ty::U32) => emit::<SzextUnsigned>(cx, i, class, u32::from(clamp)),
                ("szext", Ty::S32) => emit::<SzextSigned>(cx, i, class, u32::from(clamp)),
                _ => cx.unsupported(i, "not a type of this instruction"),
            }
        }
        "bfind" => {
            let shift = u32::from(m.take("shiftamt"));
            let ty = m.ty(cx)?;
            m.done(cx)?;
            match ty {
                Ty::U32 => emit::<FindUnsigned<u32>>(cx, i, class, shift),
                Ty::U64 => emit::<FindUnsigned<u64>>(cx, i, class, shift),
                Ty::S32 => emit::<FindSigned32>(cx, i, class, shift),
                Ty::S64 => emit::<FindSigned64>(cx, i, class, shift),
                _ => cx.unsupported(i, "not a type of this instruction"),
            }
        }
        "fns" => {
            let ty = m.ty(cx)?;
            m.done(cx)?;
            if ty != Ty::B32 {
                return cx.unsupported(i, "its type is .b32");
            }
            emit::<Fns>(cx, i, class, 0)
        }
        "lop3" => lop3(cx, i),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu::lane::Lane;

    /// The selectors of the special modes of `prmt`, for each value of the two low bits of `c`.
    fn prmt_selectors(mode: &str) -> Option<[u32; 4]> {
        Some(match mode {
            "f4e" => [0x3210, 0x4321, 0x5432, 0x6543],
            "b4e" => [0x5670, 0x6701, 0x7012, 0x0123],
            "rc8" => [0x0000, 0x1111, 0x2222, 0x3333],
            "ecl" => [0x3210, 0x3211, 0x3222, 0x3333],
            "ecr" => [0x0000, 0x1110, 0x2210, 0x3210],
            "rc16" => [0x1010, 0x3232, 0x1010, 0x3232],
            _ => return None,
        })
    }

    #[test]
    fn special_modes_of_prmt_are_their_selectors() {
        let (a, b) = (0x8312_b1a0, 0x7766_5544);
        for (mode, name) in ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
            .iter()
            .enumerate()
        {
            for (c, selectors) in prmt_selectors(name).unwrap().into_iter().enumerate() {
                let d = PrmtMode::lane(a, b, c as u32 | 0xfff0, mode as u32);
                assert_eq!(d, Prmt::lane(a, b, selectors, 0), "{name} {c}");
            }
        }
    }
}

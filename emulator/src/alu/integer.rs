//! Integer arithmetic: add, sub, mul, mad, div, rem, abs, neg, min, max, sad, 24-bit products, packed 16-bit pairs, dot
//! products.
//!
//! Everything wraps. A division by zero has no defined result in PTX; here it is what the hardware's code sequence
//! gives: all ones for the quotient, the dividend for the remainder.

use super::lane::{Elem, Of, emit, lane};
use super::modifiers::Modifiers;
use crate::program::Class;
use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::{Instr, Ty};

/// The integer types of the ISA.
pub(super) trait Int: Elem + Ord {
    /// Twice as wide: what `.wide` gives.
    type Wide: Elem;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn mul_high(self, b: Self) -> Self;
    fn mul_wide(self, b: Self) -> Self::Wide;
    fn wide_add(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn div(self, b: Self) -> Self;
    fn rem(self, b: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    fn is_negative(self) -> bool;
}

macro_rules! int {
    ($($t:ty, $wide:ty, $bits:literal, $negative:expr;)*) => { $(
        impl Int for $t {
            type Wide = $wide;
            #[inline(always)]
            fn add(self, b: Self) -> Self { self.wrapping_add(b) }
            #[inline(always)]
            fn sub(self, b: Self) -> Self { self.wrapping_sub(b) }
            #[inline(always)]
            fn mul(self, b: Self) -> Self { self.wrapping_mul(b) }
            #[inline(always)]
            fn mul_high(self, b: Self) -> Self { ((self as $wide).wrapping_mul(b as $wide) >> $bits) as $t }
            #[inline(always)]
            fn mul_wide(self, b: Self) -> $wide { (self as $wide).wrapping_mul(b as $wide) }
            #[inline(always)]
            fn wide_add(a: $wide, b: $wide) -> $wide { a.wrapping_add(b) }
            #[inline(always)]
            fn div(self, b: Self) -> Self { if b == 0 { !0 } else { self.wrapping_div(b) } }
            #[inline(always)]
            fn rem(self, b: Self) -> Self { if b == 0 { self } else { self.wrapping_rem(b) } }
            #[inline(always)]
            fn neg(self) -> Self { (0 as $t).wrapping_sub(self) }
            #[inline(always)]
            fn abs(self) -> Self { if self.is_negative() { Int::neg(self) } else { self } }
            #[inline(always)]
            fn is_negative(self) -> bool { let f: fn($t) -> bool = $negative; f(self) }
        }
    )* };
}

int! {
    u16, u32, 16, |_| false;
    i16, i32, 16, |v| v < 0;
    u32, u64, 32, |_| false;
    i32, i64, 32, |v| v < 0;
    u64, u128, 64, |_| false;
    i64, Wide128, 64, |v| v < 0;
}

/// `i128` lanes: only the wide type of `i64`, which no instruction asks for.
type Wide128 = i128;

impl Elem for i128 {
    type Mem = u128;
    const TY: Ty = Ty::B128;
    #[inline(always)]
    fn get(mem: u128) -> Self {
        mem as i128
    }
    #[inline(always)]
    fn put(self) -> u128 {
        self as u128
    }
}

lane!(Add<T: Int>(a: T, b: T) -> T { a.add(b) });
lane!(Sub<T: Int>(a: T, b: T) -> T { a.sub(b) });
lane!(AddSat(a: i32, b: i32) -> i32 { a.saturating_add(b) });
lane!(SubSat(a: i32, b: i32) -> i32 { a.saturating_sub(b) });
lane!(MulLow<T: Int>(a: T, b: T) -> T { a.mul(b) });
lane!(MulHigh<T: Int>(a: T, b: T) -> T { a.mul_high(b) });
lane!(MulWide<T: Int>(a: T, b: T) -> T::Wide { a.mul_wide(b) });
lane!(MadLow<T: Int>(a: T, b: T, c: T) -> T { a.mul(b).add(c) });
lane!(MadHigh<T: Int>(a: T, b: T, c: T) -> T { a.mul_high(b).add(c) });
lane!(MadHighSat(a: i32, b: i32, c: i32) -> i32 { a.mul_high(b).saturating_add(c) });
lane!(MadWide<T: Int>(a: T, b: T, c: T::Wide) -> T::Wide { T::wide_add(a.mul_wide(b), c) });
lane!(Div<T: Int>(a: T, b: T) -> T { a.div(b) });
lane!(Rem<T: Int>(a: T, b: T) -> T { a.rem(b) });
lane!(Neg<T: Int>(a: T) -> T { a.neg() });
lane!(Abs<T: Int>(a: T) -> T { a.abs() });
lane!(Min<T: Int>(a: T, b: T) -> T { if b < a { b } else { a } });
lane!(Max<T: Int>(a: T, b: T) -> T { if b > a { b } else { a } });
lane!(MinRelu(a: i32, b: i32) -> i32 { a.min(b).max(0) });
lane!(MaxRelu(a: i32, b: i32) -> i32 { a.max(b).max(0) });
lane!(Sad<T: Int>(a: T, b: T, c: T) -> T { c.add(if a < b { b.sub(a) } else { a.sub(b) }) });

/// The low 24 bits, sign-extended or not.
#[inline(always)]
fn low24(v: u32, signed: bool) -> i64 {
    if signed {
        i64::from((v << 8) as i32 >> 8)
    } else {
        i64::from(v & 0xff_ffff)
    }
}

lane!(Mul24<T: Signedness>(a: u32, b: u32) -> u32 { (low24(a, T::SIGNED) * low24(b, T::SIGNED)) as u32 });
lane!(Mul24High<T: Signedness>(a: u32, b: u32) -> u32 { ((low24(a, T::SIGNED) * low24(b, T::SIGNED)) >> 16) as u32 });
lane!(Mad24<T: Signedness>(a: u32, b: u32, c: u32) -> u32 {
    ((low24(a, T::SIGNED) * low24(b, T::SIGNED)) as u32).wrapping_add(c)
});
lane!(Mad24High<T: Signedness>(a: u32, b: u32, c: u32) -> u32 {
    (((low24(a, T::SIGNED) * low24(b, T::SIGNED)) >> 16) as u32).wrapping_add(c)
});
lane!(Mad24HighSat(a: u32, b: u32, c: i32) -> i32 {
    (((low24(a, true) * low24(b, true)) >> 16) as i32).saturating_add(c)
});

/// Type-level signedness of instructions whose lanes are plain `u32`.
pub(super) trait Signedness {
    const SIGNED: bool;
}
impl Signedness for u32 {
    const SIGNED: bool = false;
}
impl Signedness for i32 {
    const SIGNED: bool = true;
}

/// Applies `f` to both halves of a packed pair.
#[inline(always)]
fn pairs(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    let high = f((a >> 16) as u16, (b >> 16) as u16);
    u32::from(f(a as u16, b as u16)) | u32::from(high) << 16
}

lane!(AddPair(a: u32, b: u32) -> u32 { pairs(a, b, u16::wrapping_add) });
lane!(MinPairU(a: u32, b: u32) -> u32 { pairs(a, b, u16::min) });
lane!(MaxPairU(a: u32, b: u32) -> u32 { pairs(a, b, u16::max) });
lane!(MinPairS(a: u32, b: u32) -> u32 { pairs(a, b, |a, b| (a as i16).min(b as i16) as u16) });
lane!(MaxPairS(a: u32, b: u32) -> u32 { pairs(a, b, |a, b| (a as i16).max(b as i16) as u16) });
lane!(MinPairRelu(a: u32, b: u32) -> u32 { pairs(a, b, |a, b| (a as i16).min(b as i16).max(0) as u16) });
lane!(MaxPairRelu(a: u32, b: u32) -> u32 { pairs(a, b, |a, b| (a as i16).max(b as i16).max(0) as u16) });

#[inline(always)]
fn byte(v: u32, n: u32, signed: bool) -> u32 {
    let b = (v >> (8 * n)) as u8;
    if signed { b as i8 as u32 } else { u32::from(b) }
}

#[inline(always)]
fn half(v: u32, n: u32, signed: bool) -> u32 {
    let h = (v >> (16 * n)) as u16;
    if signed {
        h as i16 as u32
    } else {
        u32::from(h)
    }
}

lane!(Dp4a<A: Signedness, B: Signedness>(a: u32, b: u32, c: u32) -> u32 {
    let mut sum = c;
    for n in 0..4 {
        sum = sum.wrapping_add(byte(a, n, A::SIGNED).wrapping_mul(byte(b, n, B::SIGNED)));
    }
    sum
});
lane!(
    /// `imm` is the first byte of `b`: 0 or 2.
    Dp2a<A: Signedness, B: Signedness>(a: u32, b: u32, c: u32; imm) -> u32 {
        let mut sum = c;
        for n in 0..2 {
            sum = sum.wrapping_add(half(a, n, A::SIGNED).wrapping_mul(byte(b, imm + n, B::SIGNED)));
        }
        sum
    }
);

/// Calls a generic function with the integer type that `$ty` names.
macro_rules! by_int {
    ($cx:expr, $i:expr, $ty:expr, $t:ident => $call:expr) => {
        match $ty {
            Ty::U16 => {
                type $t = u16;
                $call
            }
            Ty::S16 => {
                type $t = i16;
                $call
            }
            Ty::U32 => {
                type $t = u32;
                $call
            }
            Ty::S32 => {
                type $t = i32;
                $call
            }
            Ty::U64 => {
                type $t = u64;
                $call
            }
            Ty::S64 => {
                type $t = i64;
                $call
            }
            _ => $cx.unsupported($i, "not an integer type of this instruction"),
        }
    };
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

fn part(name: &str) -> Option<Part> {
    match name {
        "lo" => Some(Part::Low),
        "hi" => Some(Part::High),
        "wide" => Some(Part::Wide),
        _ => None,
    }
}

const INT: Class = Class::Integer;

/// Integer forms of the opcodes that exist for floats as well; the caller has seen that the type is an integer.
pub(super) fn lower_shared(cx: &mut LowerCx, i: &Instr, ty: Ty) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.ty(cx)?;
    let sat = m.take("sat");
    let relu = m.take("relu");
    let opcode = &*i.op[0];
    let part = if matches!(opcode, "mul" | "mad") {
        m.first(part)
    } else {
        None
    };
    m.done(cx)?;
    match (opcode, ty, sat, relu) {
        ("add", Ty::S32, true, false) => return emit::<AddSat>(cx, i, INT, 0),
        ("sub", Ty::S32, true, false) => return emit::<SubSat>(cx, i, INT, 0),
        ("mad", Ty::S32, true, false) if part == Some(Part::High) => {
            return emit::<MadHighSat>(cx, i, INT, 0);
        }
        ("min", Ty::S32, false, true) => return emit::<MinRelu>(cx, i, INT, 0),
        ("max", Ty::S32, false, true) => return emit::<MaxRelu>(cx, i, INT, 0),
        ("min", Ty::S16x2, false, true) => return emit::<MinPairRelu>(cx, i, INT, 0),
        ("max", Ty::S16x2, false, true) => return emit::<MaxPairRelu>(cx, i, INT, 0),
        (_, _, false, false) => {}
        _ => return cx.unsupported(i, "`.sat` or `.relu` does not exist for this type"),
    }
    match (opcode, ty) {
        ("add", Ty::U16x2 | Ty::S16x2) => return emit::<AddPair>(cx, i, INT, 0),
        ("min", Ty::U16x2) => return emit::<MinPairU>(cx, i, INT, 0),
        ("max", Ty::U16x2) => return emit::<MaxPairU>(cx, i, INT, 0),
        ("min", Ty::S16x2) => return emit::<MinPairS>(cx, i, INT, 0),
        ("max", Ty::S16x2) => return emit::<MaxPairS>(cx, i, INT, 0),
        _ => {}
    }
    if matches!(opcode, "neg" | "abs") && !matches!(ty, Ty::S16 | Ty::S32 | Ty::S64) {
        return cx.unsupported(i, "its type is signed");
    }
    if part == Some(Part::Wide) && matches!(ty, Ty::U64 | Ty::S64) {
        return cx.unsupported(i, "`.wide` does not exist for 64-bit types");
    }
    by_int!(cx, i, ty, T => match (opcode, part) {
        ("add", _) => emit::<Add<T>>(cx, i, INT, 0),
        ("sub", _) => emit::<Sub<T>>(cx, i, INT, 0),
        ("mul", Some(Part::Low)) => emit::<MulLow<T>>(cx, i, INT, 0),
        ("mul", Some(Part::High)) => emit::<MulHigh<T>>(cx, i, INT, 0),
        ("mul", Some(Part::Wide)) => emit::<MulWide<T>>(cx, i, INT, 0),
        ("mad", Some(Part::Low)) => emit::<MadLow<T>>(cx, i, INT, 0),
        ("mad", Some(Part::High)) => emit::<MadHigh<T>>(cx, i, INT, 0),
        ("mad", Some(Part::Wide)) => emit::<MadWide<T>>(cx, i, INT, 0),
        ("mul" | "mad", None) => cx.unsupported(i, "it needs .lo, .hi or .wide"),
        ("div", _) => emit::<Div<T>>(cx, i, INT, 0),
        ("rem", _) => emit::<Rem<T>>(cx, i, INT, 0),
        ("min", _) => emit::<Min<T>>(cx, i, INT, 0),
        ("max", _) => emit::<Max<T>>(cx, i, INT, 0),
        ("neg", _) => emit::<Neg<T>>(cx, i, INT, 0),
        ("abs", _) => emit::<Abs<T>>(cx, i, INT, 0),
        ("sad", _) => emit::<Sad<T>>(cx, i, INT, 0),
        _ => Ok(false),
    })
}

/// Opcodes that exist for integers only.
pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let opcode = &*i.op[0];
    match opcode {
        "rem" | "sad" => {
            let ty = Modifiers::new(i).ty(cx)?;
            lower_shared(cx, i, ty)
        }
        "mul24" | "mad24" => lower_24(cx, i, opcode),
        "dp4a" | "dp2a" => lower_dot(cx, i, opcode),
        _ => Ok(false),
    }
}

fn lower_24(cx: &mut LowerCx, i: &Instr, opcode: &str) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let part = m.first(part);
    let sat = m.take("sat");
    let ty = m.ty(cx)?;
    m.done(cx)?;
    if sat {
        return match (opcode, part, ty) {
            ("mad24", Some(Part::High), Ty::S32) => emit::<Mad24HighSat>(cx, i, INT, 0),
            _ => cx.unsupported(i, "`.sat` exists for mad24.hi.s32 only"),
        };
    }
    fn of<T: Signedness>(
        cx: &mut LowerCx,
        i: &Instr,
        opcode: &str,
        part: Option<Part>,
        _: Of<T>,
    ) -> Result<bool> {
        match (opcode, part) {
            ("mul24", Some(Part::Low)) => emit::<Mul24<T>>(cx, i, INT, 0),
            ("mul24", Some(Part::High)) => emit::<Mul24High<T>>(cx, i, INT, 0),
            ("mad24", Some(Part::Low)) => emit::<Mad24<T>>(cx, i, INT, 0),
            ("mad24", Some(Part::High)) => emit::<Mad24High<T>>(cx, i, INT, 0),
            _ => cx.unsupported(i, "it needs .lo or .hi"),
        }
    }
    match ty {
        Ty::U32 => of(cx, i, opcode, part, Of::<u32>::default()),
        Ty::S32 => of(cx, i, opcode, part, Of::<i32>::default()),
        _ => cx.unsupported(i, "its type is .u32 or .s32"),
    }
}

fn lower_dot(cx: &mut LowerCx, i: &Instr, opcode: &str) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let half = if opcode == "dp2a" {
        m.first(part)
    } else {
        Some(Part::Low)
    };
    let (a, b) = (m.ty(cx)?, m.ty(cx)?);
    m.done(cx)?;
    let first = match half {
        Some(Part::Low) => 0,
        Some(Part::High) => 2,
        _ => return cx.unsupported(i, "it needs .lo or .hi"),
    };
    fn of<A: Signedness, B: Signedness>(
        cx: &mut LowerCx,
        i: &Instr,
        opcode: &str,
        first: u32,
    ) -> Result<bool> {
        if opcode == "dp4a" {
            emit::<Dp4a<A, B>>(cx, i, INT, 0)
        } else {
            emit::<Dp2a<A, B>>(cx, i, INT, first)
        }
    }
    match (a, b) {
        (Ty::U32, Ty::U32) => of::<u32, u32>(cx, i, opcode, first),
        (Ty::U32, Ty::S32) => of::<u32, i32>(cx, i, opcode, first),
        (Ty::S32, Ty::U32) => of::<i32, u32>(cx, i, opcode, first),
        (Ty::S32, Ty::S32) => of::<i32, i32>(cx, i, opcode, first),
        _ => cx.unsupported(i, "its types are .u32 or .s32"),
    }
}

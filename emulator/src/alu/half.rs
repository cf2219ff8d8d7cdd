//! f16 and bf16 arithmetic, single and in packed pairs.
//!
//! An operation computes in a wider format and rounds once: sums and differences in f32 (24 bits are two more than twice
//! the 11 of f16, so rounding twice is harmless), products exactly in f64, fused products in f64 rounded to odd. Both
//! halves of a packed pair go through the same function. NaN results are 0x7fff. The result of `fma.oob` is +0 where a factor is the NaN
//! that tensor copies write outside of a tensor.

use super::float::{self, Signed, minmax_flags};
use super::lane::{Elem, Lane, Of, emit};
use super::modifiers::{Modifiers, flag};
use super::mufu;
use super::rounding::{self, Mode, Narrow};
use crate::program::Class;
use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::{Instr, Ty};
use crate::tensor::format::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::tensor_map::OOB_NAN;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct F16(pub u16);
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BF16(pub u16);

impl F16 {
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f16_to_f32(self.0)
    }
}

impl BF16 {
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        bf16_to_f32(self.0)
    }
}

/// To the nearest bf16, ties to even.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded as u16 }
}

/// A 16-bit float.
pub(super) trait Half: Signed + Elem<Mem = u32> {
    const NARROW: Narrow;
    const PACKED: Ty;
    fn from_bits16(bits: u16) -> Self;
    fn bits16(self) -> u16;
    fn value(self) -> f32;
    /// To nearest.
    fn nearest(x: f32) -> Self;
    /// To nearest, from an exact or odd f64.
    #[inline(always)]
    fn nearest64(x: f64) -> Self {
        Self::nearest(rounding::round(x, Self::NARROW, Mode::Nearest) as f32)
    }
}

macro_rules! half {
    ($t:ident, $packed:ident, $ty:ident, $infinity:literal, |$x:ident| $from:expr) => {
        impl Elem for $t {
            type Mem = u32;
            const TY: Ty = Ty::$ty;
            #[inline(always)]
            fn get(mem: u32) -> Self {
                $t(mem as u16)
            }
            #[inline(always)]
            fn put(self) -> u32 {
                u32::from(self.0)
            }
        }
        impl Signed for $t {
            const SIGN: u64 = 0x8000;
            const NAN: Self = $t(0x7fff);
            #[inline(always)]
            fn bits(self) -> u64 {
                u64::from(self.0)
            }
            #[inline(always)]
            fn from_bits64(bits: u64) -> Self {
                $t(bits as u16)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                self.0 & 0x7fff > $infinity
            }
            #[inline(always)]
            fn less(self, b: Self) -> bool {
                self.to_f32() < b.to_f32()
            }
            #[inline(always)]
            fn flush(self) -> Self {
                $t(if self.0 & $infinity == 0 {
                    self.0 & 0x8000
                } else {
                    self.0
                })
            }
        }
        impl Half for $t {
            const NARROW: Narrow = rounding::$t;
            const PACKED: Ty = Ty::$packed;
            #[inline(always)]
            fn from_bits16(bits: u16) -> Self {
                $t(bits)
            }
            #[inline(always)]
            fn bits16(self) -> u16 {
                self.0
            }
            #[inline(always)]
            fn value(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn nearest($x: f32) -> Self {
                $t($from)
            }
        }
    };
}

half!(F16, F16x2, F16, 0x7c00, |x| f32_to_f16(x));
half!(BF16, BF16x2, BF16, 0x7f80, |x| f32_to_bf16(x));

/// Two halves in a 32-bit register.
#[derive(Clone, Copy)]
pub(super) struct Pair<H>(u32, Of<H>);

impl<H: Half> Elem for Pair<H> {
    type Mem = u32;
    const TY: Ty = H::PACKED;
    #[inline(always)]
    fn get(mem: u32) -> Self {
        Pair(mem, Of::default())
    }
    #[inline(always)]
    fn put(self) -> u32 {
        self.0
    }
}

/// An operation on one half.
pub(super) trait HalfOp {
    const SOURCES: usize;
    fn apply<H: Half>(a: H, b: H, c: H, imm: u32) -> H;
}

/// A [`HalfOp`] on single values.
pub(super) struct Single<O, H>(Of<(O, H)>);
/// A [`HalfOp`] on both halves of pairs.
pub(super) struct Double<O, H>(Of<(O, H)>);

impl<O: HalfOp, H: Half> Lane for Single<O, H> {
    type A = H;
    type B = H;
    type C = H;
    type D = H;
    const SOURCES: usize = O::SOURCES;
    #[inline(always)]
    fn lane(a: H, b: H, c: H, imm: u32) -> H {
        O::apply(a, b, c, imm)
    }
}

impl<O: HalfOp, H: Half> Lane for Double<O, H> {
    type A = Pair<H>;
    type B = Pair<H>;
    type C = Pair<H>;
    type D = Pair<H>;
    const SOURCES: usize = O::SOURCES;
    #[inline(always)]
    fn lane(a: Pair<H>, b: Pair<H>, c: Pair<H>, imm: u32) -> Pair<H> {
        let of = |v: Pair<H>, shift: u32| H::from_bits16((v.0 >> shift) as u16);
        let low = O::apply(of(a, 0), of(b, 0), of(c, 0), imm).bits16();
        let high = O::apply(of(a, 16), of(b, 16), of(c, 16), imm).bits16();
        Pair(u32::from(low) | u32::from(high) << 16, Of::default())
    }
}

/// Flags of arithmetic in `imm`.
const FTZ: u32 = 1;
const SAT: u32 = 2;
const RELU: u32 = 4;

#[inline(always)]
fn read<H: Half>(v: H, imm: u32) -> f32 {
    (if imm & FTZ != 0 { v.flush() } else { v }).value()
}

#[inline(always)]
fn write<H: Half>(v: H, imm: u32) -> H {
    let v = if imm & FTZ != 0 { v.flush() } else { v };
    let v = if v.is_nan() { H::NAN } else { v };
    if imm & SAT != 0 {
        H::nearest(float::saturate(v.value()))
    } else if imm & RELU != 0 && !v.is_nan() && v.bits16() & 0x8000 != 0 {
        H::from_bits16(0)
    } else {
        v
    }
}

macro_rules! half_ops {
    ($($name:ident $n:literal <$h:ident>($a:ident, $b:ident, $c:ident, $imm:ident) $body:block)*) => { $(
        pub(super) struct $name;
        impl HalfOp for $name {
            const SOURCES: usize = $n;
            #[inline(always)]
            fn apply<$h: Half>($a: $h, $b: $h, $c: $h, $imm: u32) -> $h $body
        }
    )* };
}

half_ops! {
    Add 2 <H>(a, b, _c, imm) { write(H::nearest(read(a, imm) + read(b, imm)), imm) }
    Sub 2 <H>(a, b, _c, imm) { write(H::nearest(read(a, imm) - read(b, imm)), imm) }
    Mul 2 <H>(a, b, _c, imm) { write(H::nearest64(f64::from(read(a, imm)) * f64::from(read(b, imm))), imm) }
    Fma 3 <H>(a, b, c, imm) {
        let product = f64::from(read(a, imm)) * f64::from(read(b, imm));
        write(H::nearest64(rounding::add_odd(product, f64::from(read(c, imm)))), imm)
    }
    FmaOob 3 <H>(a, b, c, imm) {
        let outside = |v: H| v.bits16() & 0x7fff == OOB_NAN;
        if outside(a) || outside(b) {
            H::from_bits16(0)
        } else {
            Fma::apply(a, b, c, imm)
        }
    }
    Min 2 <H>(a, b, _c, imm) { float::minmax(a, b, imm, float::minimum) }
    Max 2 <H>(a, b, _c, imm) { float::minmax(a, b, imm, float::maximum) }
    Abs 1 <H>(a, _b, _c, imm) { H::from_bits16((if imm & FTZ != 0 { a.flush() } else { a }).bits16() & 0x7fff) }
    Neg 1 <H>(a, _b, _c, imm) { H::from_bits16((if imm & FTZ != 0 { a.flush() } else { a }).bits16() ^ 0x8000) }
    Ex2 1 <H>(a, _b, _c, imm) { write(H::nearest(mufu::ex2(read(a, imm))), imm) }
    Tanh 1 <H>(a, _b, _c, imm) { write(H::nearest(mufu::tanh(read(a, imm))), imm) }
}

/// Emits an operation for the type: single or packed, f16 or bf16.
fn emit_half<O: HalfOp>(
    cx: &mut LowerCx,
    i: &Instr,
    ty: Ty,
    class: Class,
    imm: u32,
) -> Result<bool> {
    match ty {
        Ty::F16 => emit::<Single<O, F16>>(cx, i, class, imm),
        Ty::BF16 => emit::<Single<O, BF16>>(cx, i, class, imm),
        Ty::F16x2 => emit::<Double<O, F16>>(cx, i, class, imm),
        Ty::BF16x2 => emit::<Double<O, BF16>>(cx, i, class, imm),
        _ => Ok(false),
    }
}

/// Half forms of the arithmetic opcodes, of `ex2` and of `tanh`.
pub(super) fn lower_shared(cx: &mut LowerCx, i: &Instr, ty: Ty) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.ty(cx)?;
    let brain = matches!(ty, Ty::BF16 | Ty::BF16x2);
    let opcode = &*i.op[0];
    if matches!(opcode, "min" | "max") {
        let imm = minmax_flags(cx, i, &mut m)?;
        m.done(cx)?;
        if brain && imm & float::MINMAX_FTZ != 0 {
            return cx.unsupported(i, "`.ftz` does not exist for bf16");
        }
        return match opcode {
            "min" => emit_half::<Min>(cx, i, ty, Class::Half, imm),
            _ => emit_half::<Max>(cx, i, ty, Class::Half, imm),
        };
    }
    let rounded = m.take("rn");
    let approx = m.take("approx");
    let oob = m.take("oob");
    let imm = flag(m.take("ftz"), FTZ) | flag(m.take("sat"), SAT) | flag(m.take("relu"), RELU);
    m.done(cx)?;
    let transcendental = matches!(opcode, "ex2" | "tanh");
    let unary = matches!(opcode, "abs" | "neg");
    if rounded && (transcendental || unary)
        || approx != transcendental
        || opcode == "fma" && !rounded
    {
        return cx.unsupported(i, "wrong rounding modifier");
    }
    // ex2 of bf16 always flushes; other bf16 instructions never do.
    let ftz_wrong = match (opcode, brain) {
        ("ex2", true) => imm & FTZ == 0,
        ("tanh", _) | (_, true) => imm & FTZ != 0,
        _ => false,
    };
    if oob && (opcode != "fma" || imm & (FTZ | SAT) != 0) {
        return cx.unsupported(i, "`.oob` belongs to fma.rn.oob{.relu}");
    }
    let sat_wrong = imm & SAT != 0 && (brain || !matches!(opcode, "add" | "sub" | "mul" | "fma"));
    if ftz_wrong || sat_wrong || imm & RELU != 0 && (opcode != "fma" || imm & SAT != 0) {
        return cx.unsupported(i, "`.ftz`, `.sat` or `.relu` does not fit this form");
    }
    match opcode {
        "add" => emit_half::<Add>(cx, i, ty, Class::Half, imm),
        "sub" => emit_half::<Sub>(cx, i, ty, Class::Half, imm),
        "mul" => emit_half::<Mul>(cx, i, ty, Class::Half, imm),
        "fma" if oob => emit_half::<FmaOob>(cx, i, ty, Class::Half, imm),
        "fma" => emit_half::<Fma>(cx, i, ty, Class::Half, imm),
        "abs" => emit_half::<Abs>(cx, i, ty, Class::Half, imm),
        "neg" => emit_half::<Neg>(cx, i, ty, Class::Half, imm),
        "ex2" => emit_half::<Ex2>(cx, i, ty, Class::Mufu, imm),
        "tanh" => emit_half::<Tanh>(cx, i, ty, Class::Mufu, imm),
        _ => Ok(false),
    }
}

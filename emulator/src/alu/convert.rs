//! `cvt`: every pair of types.
//!
//! | from → to | rule |
//! |---|---|
//! | integer → integer | low bits, extended by the type's sign to the register's width; `.sat` clamps |
//! | float → integer | rounded as `.rni/.rzi/.rmi/.rpi` says, clamped; NaN is 0, or only the top bit where a side has 64 bits |
//! | integer → float | rounded once, in the mode asked for |
//! | float → float | through exact f64, rounded once; `.sat` into [0, 1], `.relu` negative to 0, `.satfinite` to the largest finite value; NaN canonical |
//! | f32 → packed | `a` into the upper half, `b` into the lower |

use super::float::{canonical, flush, saturate};
use super::half::{BF16, F16, Half, f32_to_bf16};
use super::lane::{Elem, emit, lane, lane_handler};
use super::modifiers::{Modifiers, flag};
use super::rounding::{self, Mode, Narrow};
use crate::program::Class;
use crate::program::lower::{LowerCx, Result, bits};
use crate::ptx::ast::{Instr, Operand, Ty};
use crate::tensor::format::{e4m3_to_f32, f32_to_f16};

const CVT: Class = Class::Convert;

// ---- integer to integer

lane!(Widen(a: u32) -> u64 { u64::from(a) });
lane!(WidenSigned(a: i32) -> i64 { i64::from(a) });
lane!(Truncate(a: u64) -> u32 { a as u32 });

/// The low `width` bits, extended.
#[inline(always)]
fn extend(x: u64, width: u32, signed: bool) -> u64 {
    let n = 64 - width;
    if signed {
        ((x << n) as i64 >> n) as u64
    } else {
        x << n >> n
    }
}

/// Source type, destination type and register width, packed in `imm`.
#[derive(Clone, Copy)]
struct IntForm {
    from: u32,
    from_signed: bool,
    to: u32,
    to_signed: bool,
    register: u32,
}

impl IntForm {
    fn imm(self) -> u32 {
        self.from
            | self.to << 8
            | self.register << 16
            | u32::from(self.from_signed) << 24
            | u32::from(self.to_signed) << 25
    }

    #[inline(always)]
    fn of(imm: u32) -> IntForm {
        IntForm {
            from: imm & 255,
            to: imm >> 8 & 255,
            register: imm >> 16 & 255,
            from_signed: imm >> 24 & 1 != 0,
            to_signed: imm >> 25 & 1 != 0,
        }
    }

    #[inline(always)]
    fn finish(self, x: u64) -> u64 {
        extend(extend(x, self.to, self.to_signed), self.register, false)
    }

    #[inline(always)]
    fn wrap(self, x: u64) -> u64 {
        self.finish(extend(x, self.from, self.from_signed))
    }

    #[inline(always)]
    fn saturate(self, x: u64) -> u64 {
        let x = extend(x, self.from, self.from_signed);
        let value = if self.from_signed {
            i128::from(x as i64)
        } else {
            i128::from(x)
        };
        let (low, high) = if self.to_signed {
            (-(1i128 << (self.to - 1)), (1i128 << (self.to - 1)) - 1)
        } else {
            (0, (1i128 << self.to) - 1)
        };
        self.finish(value.clamp(low, high) as u64)
    }
}

lane!(Wrap32(a: u32; imm) -> u32 { IntForm::of(imm).wrap(u64::from(a)) as u32 });
lane!(Wrap32To64(a: u32; imm) -> u64 { IntForm::of(imm).wrap(u64::from(a)) });
lane!(Wrap64To32(a: u64; imm) -> u32 { IntForm::of(imm).wrap(a) as u32 });
lane!(Wrap64(a: u64; imm) -> u64 { IntForm::of(imm).wrap(a) });
lane!(Saturate32(a: u32; imm) -> u32 { IntForm::of(imm).saturate(u64::from(a)) as u32 });
lane!(Saturate32To64(a: u32; imm) -> u64 { IntForm::of(imm).saturate(u64::from(a)) });
lane!(Saturate64To32(a: u64; imm) -> u32 { IntForm::of(imm).saturate(a) as u32 });
lane!(Saturate64(a: u64; imm) -> u64 { IntForm::of(imm).saturate(a) });

fn is_integer(ty: Ty) -> bool {
    use Ty::*;
    matches!(ty, U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64)
}

fn is_signed(ty: Ty) -> bool {
    matches!(ty, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
}

fn is_float(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64)
}

/// Bits of the register an operand is in; a constant has those of its type.
fn register_bits(cx: &LowerCx, o: &Operand, ty: Ty) -> u32 {
    cx.declared_type(o).map_or(bits(ty), bits).max(bits(ty))
}

fn integer_to_integer(cx: &mut LowerCx, i: &Instr, to: Ty, from: Ty, sat: bool) -> Result<bool> {
    let [d, a] = &i.operands[..] else {
        return cx.unsupported(i, "2 operands are expected");
    };
    let (source, register) = (register_bits(cx, a, from), register_bits(cx, d, to));
    let form = IntForm {
        from: bits(from),
        from_signed: is_signed(from),
        to: bits(to),
        to_signed: is_signed(to),
        register,
    };
    let plain = (source, register, form.from, form.to);
    let handler = match (sat, plain) {
        (false, (32, 64, 32, 64)) if !form.from_signed => lane_handler::<Widen>(),
        (false, (32, 64, 32, 64)) => lane_handler::<WidenSigned>(),
        (false, (64, 32, 64, 32)) => lane_handler::<Truncate>(),
        (false, (64, 64, ..)) => lane_handler::<Wrap64>(),
        (false, (64, ..)) => lane_handler::<Wrap64To32>(),
        (false, (_, 64, ..)) => lane_handler::<Wrap32To64>(),
        (false, _) => lane_handler::<Wrap32>(),
        (true, (64, 64, ..)) => lane_handler::<Saturate64>(),
        (true, (64, ..)) => lane_handler::<Saturate64To32>(),
        (true, (_, 64, ..)) => lane_handler::<Saturate32To64>(),
        (true, _) => lane_handler::<Saturate32>(),
    };
    let wide = |bits: u32, ty: Ty| {
        if bits == 64 && crate::program::lower::bits(ty) < 64 {
            Ty::U64
        } else {
            ty
        }
    };
    let mut op = LowerCx::new_op(handler, CVT);
    op.imm = i64::from(form.imm());
    op.src[0] = cx.src(a, wide(source, from))?;
    op.dst = cx.dst(d, wide(register, to))?;
    cx.emit(i, op)?;
    Ok(true)
}

// ---- floats

/// A float as a source or destination of a conversion.
trait Float: Elem {
    /// Its exact value.
    fn value(self) -> f64;
    /// From a value that is exact in the format, an infinity or NaN.
    fn exact(value: f64) -> Self;
    /// `.ftz` has a meaning for f32 only.
    fn flush(self) -> Self;
    /// The format that a value is rounded to; `None` for f64.
    const NARROW: Option<Narrow>;
    const IS_F64: bool = Self::NARROW.is_none();
}

impl Float for f32 {
    #[inline(always)]
    fn value(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exact(value: f64) -> Self {
        canonical(value as f32)
    }
    #[inline(always)]
    fn flush(self) -> Self {
        flush(self)
    }
    const NARROW: Option<Narrow> = Some(rounding::F32);
}

impl Float for f64 {
    #[inline(always)]
    fn value(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exact(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn flush(self) -> Self {
        self
    }
    const NARROW: Option<Narrow> = None;
}

macro_rules! half_float {
    ($($t:ident)*) => { $(
        impl Float for $t {
            #[inline(always)]
            fn value(self) -> f64 {
                f64::from(self.to_f32())
            }
            #[inline(always)]
            fn exact(value: f64) -> Self {
                <$t as Half>::nearest(value as f32)
            }
            #[inline(always)]
            fn flush(self) -> Self {
                self
            }
            const NARROW: Option<Narrow> = Some(<$t as Half>::NARROW);
        }
    )* };
}
half_float!(F16 BF16);

/// Modifiers of a conversion of floats, in `imm`: mode, then flags.
const FTZ: u32 = 1 << 3;
const SAT: u32 = 1 << 4;
const RELU: u32 = 1 << 5;
const SATFINITE: u32 = 1 << 6;
/// Round to an integer, in the same format.
const INTEGRAL: u32 = 1 << 7;

#[inline(always)]
fn integral(x: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Nearest => x.round_ties_even(),
        Mode::Zero => x.trunc(),
        Mode::Down => x.floor(),
        Mode::Up => x.ceil(),
        Mode::Away => x.round(),
    }
}

/// Rounds a value to a format with the modifiers in `imm`.
#[inline(always)]
fn narrow(x: f64, to: Narrow, imm: u32) -> f64 {
    let mut y = rounding::round(x, to, Mode::from_number(imm));
    if imm & SATFINITE != 0 && y.abs() > to.max {
        y = to.max.copysign(y);
    }
    if imm & RELU != 0 && y.is_sign_negative() && !y.is_nan() {
        y = 0.0;
    }
    y
}

lane!(Convert<F: Float, D: Float>(a: F; imm) -> D {
    let a = if imm & FTZ != 0 { a.flush() } else { a };
    let mut x = a.value();
    if imm & INTEGRAL != 0 {
        x = integral(x, Mode::from_number(imm));
    } else if let Some(format) = D::NARROW {
        x = narrow(x, format, imm);
    }
    if imm & SAT != 0 {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    let d = D::exact(x);
    if imm & FTZ != 0 { d.flush() } else { d }
});
// What compilers emit all the time.
lane!(ToBf16(a: f32) -> BF16 { BF16(f32_to_bf16(a)) });
lane!(ToF16(a: f32) -> F16 { F16(f32_to_f16(a)) });
lane!(FromBf16(a: BF16) -> f32 { a.to_f32() });
lane!(FromF16(a: F16) -> f32 { canonical(a.to_f32()) });
lane!(ToF64(a: f32) -> f64 { f64::from(a) });
lane!(Saturate(a: f32) -> f32 { saturate(a) });
lane!(PackBf16(a: f32, b: f32) -> u32 { u32::from(f32_to_bf16(a)) << 16 | u32::from(f32_to_bf16(b)) });
lane!(PackF16(a: f32, b: f32) -> u32 { u32::from(f32_to_f16(a)) << 16 | u32::from(f32_to_f16(b)) });
lane!(Pack<H: Half>(a: f32, b: f32; imm) -> u32 {
    let half = |x: f32| u32::from(H::nearest(narrow(f64::from(x), H::NARROW, imm) as f32).bits16());
    half(a) << 16 | half(b)
});
lane!(ToTf32(a: f32; imm) -> f32 {
    canonical(narrow(f64::from(a), rounding::TF32, imm) as f32)
});

/// The 8-bit floats.
pub(super) trait Eight {
    const NARROW: Narrow;
    /// From a value of the format; NaN is 0x7f.
    fn encode(value: f32) -> u32;
    fn decode(bits: u32) -> f32;
}
pub(super) struct E4m3;
pub(super) struct E5m2;

impl Eight for E4m3 {
    const NARROW: Narrow = rounding::E4M3;
    #[inline(always)]
    fn encode(value: f32) -> u32 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let rest = if value.abs() < 0.015_625 {
            (value.abs() * 512.0) as u32
        } else {
            (magnitude - (120 << 23)) >> 20
        };
        if value.is_nan() {
            0x7f
        } else {
            bits >> 24 & 0x80 | rest
        }
    }
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        e4m3_to_f32(bits as u8)
    }
}

impl Eight for E5m2 {
    const NARROW: Narrow = rounding::E5M2;
    #[inline(always)]
    fn encode(value: f32) -> u32 {
        // The upper half of an f16.
        u32::from(f32_to_f16(value) >> 8)
    }
    #[inline(always)]
    fn decode(bits: u32) -> f32 {
        F16((bits << 8) as u16).to_f32()
    }
}

#[inline(always)]
fn eight<E: Eight>(x: f32, imm: u32) -> u32 {
    E::encode(narrow(f64::from(x), E::NARROW, imm) as f32)
}

lane!(PackEight<E: Eight>(a: f32, b: f32; imm) -> u16 { (eight::<E>(a, imm) << 8 | eight::<E>(b, imm)) as u16 });
lane!(PairToEight<E: Eight>(a: u32; imm) -> u16 {
    let half = |bits: u32| F16(bits as u16).to_f32();
    (eight::<E>(half(a >> 16), imm) << 8 | eight::<E>(half(a), imm)) as u16
});
lane!(EightToPair<E: Eight>(a: u16; imm) -> u32 {
    let half = |bits: u32| {
        let x = E::decode(bits & 0xff);
        let x = if imm & RELU != 0 && x.is_sign_negative() && !x.is_nan() { 0.0 } else { x };
        u32::from(f32_to_f16(x))
    };
    half(u32::from(a) >> 8) << 16 | half(u32::from(a))
});

// ---- between floats and integers

/// An integer type of `cvt`.
trait Integer: Elem {
    /// `f64 as Self` clamps; NaN is 0.
    fn clamp(x: f64) -> Self;
    fn top_bit() -> Self;
    fn magnitude(self) -> (bool, u64);
    fn nearest32(self) -> f32;
    fn nearest64(self) -> f64;
    /// Sign-extended to 32 bits, or all 64.
    fn widened(self) -> u64;
    const WIDE: bool;
}

macro_rules! integer {
    ($($t:ty, $wide:literal, |$v:ident| $magnitude:expr;)*) => { $(
        impl Integer for $t {
            #[inline(always)]
            fn clamp(x: f64) -> Self { x as $t }
            #[inline(always)]
            fn top_bit() -> Self { (1 as $t) << (<$t>::BITS - 1) }
            #[inline(always)]
            fn magnitude(self) -> (bool, u64) { let $v = self; $magnitude }
            #[inline(always)]
            fn nearest32(self) -> f32 { self as f32 }
            #[inline(always)]
            fn nearest64(self) -> f64 { self as f64 }
            #[inline(always)]
            fn widened(self) -> u64 { self as u64 }
            const WIDE: bool = $wide;
        }
    )* };
}

integer! {
    u8, false, |v| (false, u64::from(v));
    u16, false, |v| (false, u64::from(v));
    u32, false, |v| (false, u64::from(v));
    u64, true, |v| (false, v);
    i8, false, |v| (v < 0, u64::from(v.unsigned_abs()));
    i16, false, |v| (v < 0, u64::from(v.unsigned_abs()));
    i32, false, |v| (v < 0, u64::from(v.unsigned_abs()));
    i64, true, |v| (v < 0, v.unsigned_abs());
}

#[inline(always)]
fn to_integer<F: Float, I: Integer>(a: F, imm: u32) -> I {
    let a = if imm & FTZ != 0 { a.flush() } else { a };
    let x = a.value();
    if x.is_nan() && (F::IS_F64 || I::WIDE) {
        return I::top_bit();
    }
    I::clamp(integral(x, Mode::from_number(imm)))
}

/// Bits of `imm` that hold the width of a destination register of up to 32 bits.
const REGISTER_SHIFT: u32 = 16;

lane!(ToInteger<F: Float, I: Integer>(a: F; imm) -> u32 {
    extend(to_integer::<F, I>(a, imm).widened(), imm >> REGISTER_SHIFT, false) as u32
});
lane!(ToWideInteger<F: Float, I: Integer>(a: F; imm) -> u64 { to_integer::<F, I>(a, imm).widened() });

/// An integer as an f64, rounded to odd.
#[inline(always)]
fn odd(negative: bool, magnitude: u64) -> f64 {
    let x = if magnitude < 1 << 53 {
        magnitude as f64
    } else {
        (magnitude >> 11 | u64::from(magnitude & 0x7ff != 0)) as f64 * 2048.0
    };
    if negative { -x } else { x }
}

lane!(FromInteger<I: Integer, D: Float>(a: I; imm) -> D {
    let (negative, magnitude) = a.magnitude();
    let mode = Mode::from_number(imm);
    let x = match D::NARROW {
        Some(format) => rounding::round(odd(negative, magnitude), format, mode),
        None => {
            // f64 in another mode than nearest: towards zero is cutting bits off; away from it is one step more.
            let towards = cut_low(magnitude);
            let nearest = if negative { -(magnitude as f64) } else { magnitude as f64 };
            let away = towards != magnitude && mode == if negative { Mode::Down } else { Mode::Up };
            let x = if away { (towards as f64).next_up() } else { towards as f64 };
            if mode == Mode::Nearest {
                return D::exact(if imm & SAT != 0 { nearest.clamp(0.0, 1.0) } else { nearest });
            }
            if negative { -x } else { x }
        }
    };
    let x = if imm & SAT != 0 { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    D::exact(x)
});
lane!(FromInteger32<I: Integer>(a: I) -> f32 { a.nearest32() });
lane!(FromInteger64<I: Integer>(a: I) -> f64 { a.nearest64() });

/// The 53 highest bits of a number.
#[inline(always)]
fn cut_low(magnitude: u64) -> u64 {
    let extra = 11u32.saturating_sub(magnitude.leading_zeros());
    magnitude >> extra << extra
}

// ---- lowering

macro_rules! by_integer {
    ($cx:expr, $i:expr, $ty:expr, $t:ident => $call:expr) => {
        match $ty {
            Ty::U8 => {
                type $t = u8;
                $call
            }
            Ty::U16 => {
                type $t = u16;
                $call
            }
            Ty::U32 => {
                type $t = u32;
                $call
            }
            Ty::U64 => {
                type $t = u64;
                $call
            }
            Ty::S8 => {
                type $t = i8;
                $call
            }
            Ty::S16 => {
                type $t = i16;
                $call
            }
            Ty::S32 => {
                type $t = i32;
                $call
            }
            Ty::S64 => {
                type $t = i64;
                $call
            }
            _ => $cx.unsupported($i, "not a pair of types of this instruction"),
        }
    };
}

macro_rules! by_float {
    ($cx:expr, $i:expr, $ty:expr, $t:ident => $call:expr) => {
        match $ty {
            Ty::F16 => {
                type $t = F16;
                $call
            }
            Ty::BF16 => {
                type $t = BF16;
                $call
            }
            Ty::F32 => {
                type $t = f32;
                $call
            }
            Ty::F64 => {
                type $t = f64;
                $call
            }
            _ => $cx.unsupported($i, "not a pair of types of this instruction"),
        }
    };
}

/// Everything that stands between `cvt` and the types.
struct Form {
    /// `.rn` and its kin.
    mode: Option<Mode>,
    /// `.rni` and its kin.
    integral: Option<Mode>,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
}

impl Form {
    fn imm(&self) -> u32 {
        let mode = self.mode.or(self.integral).unwrap_or(Mode::Nearest);
        mode.number()
            | flag(self.ftz, FTZ)
            | flag(self.sat, SAT)
            | flag(self.relu, RELU)
            | flag(self.satfinite, SATFINITE)
            | flag(self.integral.is_some(), INTEGRAL)
    }

    /// Only a rounding mode.
    fn plain(&self) -> bool {
        !(self.ftz || self.sat || self.relu || self.satfinite)
    }
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    if &*i.op[0] != "cvt" {
        return Ok(false);
    }
    let mut m = Modifiers::new(i);
    if m.take("pack") {
        return pack(cx, i, m);
    }
    let form = Form {
        mode: m.first(Mode::parse),
        integral: m.first(|s| match s {
            "rni" => Some(Mode::Nearest),
            "rzi" => Some(Mode::Zero),
            "rmi" => Some(Mode::Down),
            "rpi" => Some(Mode::Up),
            _ => None,
        }),
        ftz: m.take("ftz"),
        sat: m.take("sat"),
        relu: m.take("relu"),
        satfinite: m.take("satfinite"),
    };
    let (to, from) = (m.ty(cx)?, m.ty(cx)?);
    m.done(cx)?;
    if form.mode.is_some() && form.integral.is_some() {
        return cx.unsupported(i, "two rounding modes");
    }
    if form.ftz && to != Ty::F32 && from != Ty::F32 {
        return cx.unsupported(i, "`.ftz` needs .f32 on one side");
    }
    if form.mode == Some(Mode::Away) && to != Ty::TF32 {
        return cx.unsupported(i, "`.rna` exists for .tf32 only");
    }
    match (is_integer(to), is_integer(from)) {
        (true, true) => {
            if form.mode.is_some() || form.integral.is_some() || form.relu || form.satfinite {
                return cx.unsupported(i, "integers are not rounded");
            }
            integer_to_integer(cx, i, to, from, form.sat)
        }
        (true, false) if is_float(from) => float_to_integer(cx, i, to, from, &form),
        (false, true) if is_float(to) => integer_to_float(cx, i, to, from, &form),
        (false, false) if is_float(to) && is_float(from) => float_to_float(cx, i, to, from, &form),
        _ => special(cx, i, to, from, &form),
    }
}

fn float_to_integer(cx: &mut LowerCx, i: &Instr, to: Ty, from: Ty, form: &Form) -> Result<bool> {
    if form.integral.is_none() || form.relu || form.satfinite {
        return cx.unsupported(
            i,
            "it needs .rni, .rzi, .rmi or .rpi, and no .relu or .satfinite",
        );
    }
    let Some(d) = i.operands.first() else {
        return cx.unsupported(i, "2 operands are expected");
    };
    let register = register_bits(cx, d, to);
    if register == 64 && bits(to) < 64 {
        return cx.unsupported(i, "the destination register is wider than 32 bits");
    }
    // `.sat` changes nothing: the result is clamped anyway.
    let imm = form.imm() | register << REGISTER_SHIFT;
    by_float!(cx, i, from, F => by_integer!(cx, i, to, I => {
        if <I as Integer>::WIDE { emit::<ToWideInteger<F, I>>(cx, i, CVT, imm) } else { emit::<ToInteger<F, I>>(cx, i, CVT, imm) }
    }))
}

fn integer_to_float(cx: &mut LowerCx, i: &Instr, to: Ty, from: Ty, form: &Form) -> Result<bool> {
    let Some(mode) = form.mode else {
        return cx.unsupported(i, "it needs a rounding mode");
    };
    if form.relu || form.satfinite {
        return cx.unsupported(i, "`.relu` and `.satfinite` need a float source");
    }
    if mode == Mode::Nearest && !form.sat {
        if to == Ty::F32 {
            return by_integer!(cx, i, from, I => emit::<FromInteger32<I>>(cx, i, CVT, 0));
        }
        if to == Ty::F64 {
            return by_integer!(cx, i, from, I => emit::<FromInteger64<I>>(cx, i, CVT, 0));
        }
    }
    by_integer!(cx, i, from, I => by_float!(cx, i, to, D => emit::<FromInteger<I, D>>(cx, i, CVT, form.imm())))
}

fn float_to_float(cx: &mut LowerCx, i: &Instr, to: Ty, from: Ty, form: &Form) -> Result<bool> {
    let narrowing = bits(to) < bits(from) || (to != from && bits(to) == 16);
    // ptxas takes conversions between the two halves without a mode (they round to nearest), and those from bf16 with one.
    let either = from == Ty::BF16 && bits(to) > 16 || bits(from) == 16 && narrowing;
    if form.mode.is_some() != narrowing
        && !either
        && !(form.mode == Some(Mode::Nearest) && to == from)
    {
        return cx.unsupported(
            i,
            "a rounding mode is needed where precision is lost, and nowhere else",
        );
    }
    if form.integral.is_some() && to != from {
        return cx.unsupported(i, "rounding to an integer keeps the type");
    }
    if (form.relu || form.satfinite) && !(from == Ty::F32 && bits(to) == 16) {
        return cx.unsupported(i, "`.relu` and `.satfinite` exist from .f32 to 16 bits");
    }
    if form.integral.is_none() {
        match (to, from, form.mode, form.plain()) {
            (Ty::BF16, Ty::F32, Some(Mode::Nearest), true) => return emit::<ToBf16>(cx, i, CVT, 0),
            (Ty::F16, Ty::F32, Some(Mode::Nearest), true) => return emit::<ToF16>(cx, i, CVT, 0),
            (Ty::F32, Ty::BF16, _, true) => return emit::<FromBf16>(cx, i, CVT, 0),
            (Ty::F32, Ty::F16, _, true) => return emit::<FromF16>(cx, i, CVT, 0),
            (Ty::F64, Ty::F32, _, true) => return emit::<ToF64>(cx, i, CVT, 0),
            (Ty::F32, Ty::F32, _, false) if form.sat && !form.ftz => {
                return emit::<Saturate>(cx, i, CVT, 0);
            }
            _ => {}
        }
    }
    by_float!(cx, i, from, F => by_float!(cx, i, to, D => emit::<Convert<F, D>>(cx, i, CVT, form.imm())))
}

/// Packed pairs, tf32 and 8-bit floats.
fn special(cx: &mut LowerCx, i: &Instr, to: Ty, from: Ty, form: &Form) -> Result<bool> {
    if form.integral.is_some() || form.sat || form.ftz {
        return cx.unsupported(i, "not a form of this instruction");
    }
    let nearest = form.mode == Some(Mode::Nearest);
    let two = nearest || form.mode == Some(Mode::Zero);
    let imm = form.imm();
    match (to, from) {
        (Ty::BF16x2, Ty::F32) if nearest && form.plain() => emit::<PackBf16>(cx, i, CVT, 0),
        (Ty::F16x2, Ty::F32) if nearest && form.plain() => emit::<PackF16>(cx, i, CVT, 0),
        (Ty::BF16x2, Ty::F32) if two => emit::<Pack<BF16>>(cx, i, CVT, imm),
        (Ty::F16x2, Ty::F32) if two => emit::<Pack<F16>>(cx, i, CVT, imm),
        (Ty::TF32, Ty::F32) if two || form.mode == Some(Mode::Away) && !form.relu => {
            emit::<ToTf32>(cx, i, CVT, imm)
        }
        (Ty::E4M3x2, Ty::F32) if nearest && form.satfinite => {
            emit::<PackEight<E4m3>>(cx, i, CVT, imm)
        }
        (Ty::E5M2x2, Ty::F32) if nearest && form.satfinite => {
            emit::<PackEight<E5m2>>(cx, i, CVT, imm)
        }
        (Ty::E4M3x2, Ty::F16x2) if nearest && form.satfinite => {
            emit::<PairToEight<E4m3>>(cx, i, CVT, imm)
        }
        (Ty::E5M2x2, Ty::F16x2) if nearest && form.satfinite => {
            emit::<PairToEight<E5m2>>(cx, i, CVT, imm)
        }
        (Ty::F16x2, Ty::E4M3x2) if nearest && !form.satfinite => {
            emit::<EightToPair<E4m3>>(cx, i, CVT, imm)
        }
        (Ty::F16x2, Ty::E5M2x2) if nearest && !form.satfinite => {
            emit::<EightToPair<E5m2>>(cx, i, CVT, imm)
        }
        _ => cx.unsupported(i, "not a pair of types and modifiers of this instruction"),
    }
}

/// `cvt.pack.sat`: two signed words into the low halves or bytes, `c` (shifted) above them.
fn clamp_to(x: i32, width: u32, signed: bool) -> u32 {
    let (low, high) = if signed {
        (-(1i64 << (width - 1)), (1i64 << (width - 1)) - 1)
    } else {
        (0, (1i64 << width) - 1)
    };
    (i64::from(x).clamp(low, high) as u32) & ((1 << width) - 1)
}

lane!(PackHalves(a: i32, b: i32; signed) -> u32 { clamp_to(a, 16, signed != 0) << 16 | clamp_to(b, 16, signed != 0) });
lane!(PackBelow(a: i32, b: i32, c: u32; imm) -> u32 {
    let (width, signed) = (imm & 255, imm >> 8 != 0);
    c << (2 * width) | clamp_to(a, width, signed) << width | clamp_to(b, width, signed)
});

fn pack(cx: &mut LowerCx, i: &Instr, mut m: Modifiers) -> Result<bool> {
    let sat = m.take("sat");
    let to = m.first(|s| match s {
        "u16" => Some((16, false)),
        "s16" => Some((16, true)),
        "u8" => Some((8, false)),
        "s8" => Some((8, true)),
        "u4" => Some((4, false)),
        "s4" => Some((4, true)),
        "u2" => Some((2, false)),
        "s2" => Some((2, true)),
        _ => None,
    });
    let from = m.ty(cx)?;
    let below = m.take("b32");
    m.done(cx)?;
    match (to, from, sat, below) {
        (Some((16, signed)), Ty::S32, true, false) => {
            emit::<PackHalves>(cx, i, CVT, u32::from(signed))
        }
        (Some((width, signed)), Ty::S32, true, true) if width < 16 => {
            emit::<PackBelow>(cx, i, CVT, width | u32::from(signed) << 8)
        }
        _ => cx.unsupported(i, "not a form of this instruction"),
    }
}

#[cfg(test)]
mod tests;

//! f32 and f64 arithmetic: add, sub, mul, fma, mad, div, rcp, sqrt, rsqrt, min, max, abs, neg, copysign.
//!
//! * A NaN result of f32 is the canonical 0x7fffffff; f64 follows the host.
//! * `.ftz` reads subnormals as zero and writes them as zero, keeping the sign; without it they are kept.
//! * `fma` rounds once, always.
//! * `.approx` and `.full` have an error bound in the ISA and no defined bits; here they are correctly rounded.
//!
//! Round-to-nearest without saturation, which is nearly all that occurs, has handlers of its own. The other modes share
//! one handler per operation that decides by [`Form`] in `imm`.

use super::lane::{Elem, Of, emit, lane};
use super::modifiers::{Modifiers, flag};
use super::rounding::{self, Mode};
use crate::program::Class;
use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::{Instr, Ty};

/// Subnormals become zeros of their sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 {
        bits & 0x8000_0000
    } else {
        bits
    })
}

/// The NaN that f32 instructions give.
pub(super) const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// A NaN becomes the canonical one. The test is on bits: the compiler takes the payload of a NaN that an operation
/// makes for undetermined, and may drop a selection between two NaNs.
#[inline(always)]
pub(super) fn canonical(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 {
        0x7fff_ffff
    } else {
        bits
    })
}

/// What happens to subnormals, as a type.
pub(super) trait Subnormals {
    fn read(x: f32) -> f32;
    fn write(x: f32) -> f32;
}
pub(super) struct Keep;
pub(super) struct Flush;
impl Subnormals for Keep {
    #[inline(always)]
    fn read(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn write(x: f32) -> f32 {
        canonical(x)
    }
}
impl Subnormals for Flush {
    #[inline(always)]
    fn read(x: f32) -> f32 {
        flush(x)
    }
    #[inline(always)]
    fn write(x: f32) -> f32 {
        canonical(flush(x))
    }
}

/// Rounding, `.ftz` and `.sat` in `imm`.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub mode: Mode,
    pub ftz: bool,
    pub sat: bool,
}

impl Form {
    pub fn imm(self) -> u32 {
        self.mode.number() | u32::from(self.ftz) << 3 | u32::from(self.sat) << 4
    }

    #[inline(always)]
    pub fn of(imm: u32) -> Form {
        Form {
            mode: Mode::from_number(imm),
            ftz: imm & 8 != 0,
            sat: imm & 16 != 0,
        }
    }

    #[inline(always)]
    fn read(self, x: f32) -> f64 {
        f64::from(if self.ftz { flush(x) } else { x })
    }

    /// Rounds an exact or odd result.
    #[inline(always)]
    fn write(self, x: f64) -> f32 {
        let y = rounding::round(x, rounding::F32, self.mode) as f32;
        self.finish(y)
    }

    #[inline(always)]
    pub fn finish(self, y: f32) -> f32 {
        let y = if self.ftz { flush(y) } else { y };
        if self.sat { saturate(y) } else { canonical(y) }
    }
}

/// Into [0, 1]; NaN is 0, and so is -0.
#[inline(always)]
pub(super) fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// A sum that is an exact zero of terms with different signs is -0 when rounding down.
#[inline(always)]
fn sum(form: Form, a: f64, b: f64) -> f32 {
    let s = rounding::add_odd(a, b);
    let s = if s == 0.0 && form.mode == Mode::Down && a.is_sign_negative() != b.is_sign_negative() {
        -0.0
    } else {
        s
    };
    // Infinities make the error term NaN, but not the sum.
    form.write(s)
}

lane!(Add<S: Subnormals>(a: f32, b: f32) -> f32 { S::write(S::read(a) + S::read(b)) });
lane!(Sub<S: Subnormals>(a: f32, b: f32) -> f32 { S::write(S::read(a) - S::read(b)) });
lane!(Mul<S: Subnormals>(a: f32, b: f32) -> f32 { S::write(S::read(a) * S::read(b)) });
lane!(Fma<S: Subnormals>(a: f32, b: f32, c: f32) -> f32 { S::write(S::read(a).mul_add(S::read(b), S::read(c))) });
lane!(Div<S: Subnormals>(a: f32, b: f32) -> f32 { S::write(S::read(a) / S::read(b)) });
lane!(Rcp<S: Subnormals>(a: f32) -> f32 { S::write(1.0 / S::read(a)) });
lane!(Sqrt<S: Subnormals>(a: f32) -> f32 { S::write(S::read(a).sqrt()) });
lane!(Rsqrt<S: Subnormals>(a: f32) -> f32 {
    let a = S::read(a);
    // Through f64 the zero keeps its sign: 1 / sqrt(-0) is -inf.
    S::write((1.0 / f64::from(a).sqrt()) as f32)
});
lane!(
    /// `div.approx`: a divisor above 2^126 gives zero, or NaN for an infinite dividend.
    DivApprox<S: Subnormals>(a: f32, b: f32) -> f32 {
        let (a, b) = (S::read(a), S::read(b));
        let large = b.abs() > f32::from_bits(0x7e80_0000) && b.abs() < f32::INFINITY;
        let zero = (a * 0.0) * b.signum();
        S::write(if large { zero } else { a / b })
    }
);

lane!(AddForm(a: f32, b: f32; imm) -> f32 { let f = Form::of(imm); sum(f, f.read(a), f.read(b)) });
lane!(SubForm(a: f32, b: f32; imm) -> f32 { let f = Form::of(imm); sum(f, f.read(a), -f.read(b)) });
lane!(MulForm(a: f32, b: f32; imm) -> f32 { let f = Form::of(imm); f.write(f.read(a) * f.read(b)) });
lane!(FmaForm(a: f32, b: f32, c: f32; imm) -> f32 { let f = Form::of(imm); sum(f, f.read(a) * f.read(b), f.read(c)) });
lane!(DivForm(a: f32, b: f32; imm) -> f32 { let f = Form::of(imm); f.write(rounding::div_odd(f.read(a), f.read(b))) });
lane!(RcpForm(a: f32; imm) -> f32 { let f = Form::of(imm); f.write(rounding::div_odd(1.0, f.read(a))) });
lane!(SqrtForm(a: f32; imm) -> f32 { let f = Form::of(imm); f.write(rounding::sqrt_odd(f.read(a))) });

lane!(AddF64(a: f64, b: f64) -> f64 { a + b });
lane!(SubF64(a: f64, b: f64) -> f64 { a - b });
lane!(MulF64(a: f64, b: f64) -> f64 { a * b });
lane!(FmaF64(a: f64, b: f64, c: f64) -> f64 { a.mul_add(b, c) });
lane!(DivF64(a: f64, b: f64) -> f64 { a / b });
lane!(RcpF64(a: f64) -> f64 { 1.0 / a });
lane!(SqrtF64(a: f64) -> f64 { a.sqrt() });
lane!(AddF64Form(a: f64, b: f64; imm) -> f64 { rounding::add_f64(a, b, Mode::from_number(imm)) });
lane!(SubF64Form(a: f64, b: f64; imm) -> f64 { rounding::add_f64(a, -b, Mode::from_number(imm)) });
lane!(MulF64Form(a: f64, b: f64; imm) -> f64 { rounding::mul_f64(a, b, Mode::from_number(imm)) });
lane!(FmaF64Form(a: f64, b: f64, c: f64; imm) -> f64 { rounding::fma_f64(a, b, c, Mode::from_number(imm)) });
lane!(DivF64Form(a: f64, b: f64; imm) -> f64 { rounding::div_f64(a, b, Mode::from_number(imm)) });
lane!(RcpF64Form(a: f64; imm) -> f64 { rounding::div_f64(1.0, a, Mode::from_number(imm)) });
lane!(SqrtF64Form(a: f64; imm) -> f64 { rounding::sqrt_f64(a, Mode::from_number(imm)) });

/// The `.approx.ftz` forms of f64 work on the high words: the low word of the result is zero.
#[inline(always)]
fn high_word(x: f64) -> f64 {
    let x = f64::from_bits(x.to_bits() & !0xffff_ffff);
    if x.is_subnormal() {
        0f64.copysign(x)
    } else {
        x
    }
}

lane!(RcpHigh(a: f64) -> f64 { high_word(1.0 / high_word(a)) });
lane!(RsqrtHigh(a: f64) -> f64 { high_word(1.0 / high_word(a).sqrt()) });
lane!(
    /// Without `.ftz` the hardware has a sequence of full precision.
    RsqrtF64(a: f64) -> f64 { 1.0 / a.sqrt() }
);

/// Floats with a sign bit and an order, for min, max, abs, neg and copysign.
pub(super) trait Signed: Elem {
    const SIGN: u64;
    const NAN: Self;
    fn bits(self) -> u64;
    fn from_bits64(bits: u64) -> Self;
    fn is_nan(self) -> bool;
    fn less(self, b: Self) -> bool;
    fn flush(self) -> Self;
}

impl Signed for f32 {
    const SIGN: u64 = 1 << 31;
    const NAN: Self = NAN;
    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
    #[inline(always)]
    fn from_bits64(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        self.to_bits() & 0x7fff_ffff > 0x7f80_0000
    }
    #[inline(always)]
    fn less(self, b: Self) -> bool {
        self < b
    }
    #[inline(always)]
    fn flush(self) -> Self {
        flush(self)
    }
}

impl Signed for f64 {
    const SIGN: u64 = 1 << 63;
    const NAN: Self = f64::from_bits(0xfff8_0000_0000_0000);
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits()
    }
    #[inline(always)]
    fn from_bits64(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        self.is_nan()
    }
    #[inline(always)]
    fn less(self, b: Self) -> bool {
        self < b
    }
    #[inline(always)]
    fn flush(self) -> Self {
        self
    }
}

/// The smaller of two numbers; -0 is smaller than +0, and a NaN loses against a number.
#[inline(always)]
pub(super) fn minimum<T: Signed>(a: T, b: T) -> T {
    let equal = T::from_bits64(a.bits() | b.bits());
    choose(a, b, a.less(b), b.less(a), equal)
}

#[inline(always)]
pub(super) fn maximum<T: Signed>(a: T, b: T) -> T {
    let equal = T::from_bits64(a.bits() & b.bits());
    choose(a, b, b.less(a), a.less(b), equal)
}

#[inline(always)]
fn choose<T: Signed>(a: T, b: T, take_a: bool, take_b: bool, equal: T) -> T {
    let number = if take_a {
        a
    } else if take_b {
        b
    } else {
        equal
    };
    match (a.is_nan(), b.is_nan()) {
        (false, false) => number,
        (false, true) => a,
        (true, false) => b,
        (true, true) => T::NAN,
    }
}

/// Flags of min and max in `imm`.
pub(super) const MINMAX_FTZ: u32 = 1;
pub(super) const MINMAX_NAN: u32 = 2;
pub(super) const MINMAX_XORSIGN: u32 = 4;

#[inline(always)]
pub(super) fn minmax<T: Signed>(a: T, b: T, imm: u32, f: impl Fn(T, T) -> T) -> T {
    let (mut a, mut b) = if imm & MINMAX_FTZ != 0 {
        (a.flush(), b.flush())
    } else {
        (a, b)
    };
    if imm & MINMAX_NAN != 0 && (a.is_nan() || b.is_nan()) {
        return T::NAN;
    }
    let sign = (a.bits() ^ b.bits()) & T::SIGN;
    if imm & MINMAX_XORSIGN == 0 {
        return f(a, b);
    }
    a = T::from_bits64(a.bits() & !T::SIGN);
    b = T::from_bits64(b.bits() & !T::SIGN);
    let r = f(a, b);
    T::from_bits64(if r.is_nan() {
        r.bits()
    } else {
        r.bits() | sign
    })
}

lane!(Min<T: Signed>(a: T, b: T) -> T { minimum(a, b) });
lane!(Max<T: Signed>(a: T, b: T) -> T { maximum(a, b) });
lane!(MinFlush(a: f32, b: f32) -> f32 { minimum(flush(a), flush(b)) });
lane!(MaxFlush(a: f32, b: f32) -> f32 { maximum(flush(a), flush(b)) });
lane!(MinForm<T: Signed>(a: T, b: T; imm) -> T { minmax(a, b, imm, minimum) });
lane!(MaxForm<T: Signed>(a: T, b: T; imm) -> T { minmax(a, b, imm, maximum) });
lane!(Abs<T: Signed>(a: T; ftz) -> T {
    let a = if ftz != 0 { a.flush() } else { a };
    T::from_bits64(a.bits() & !T::SIGN)
});
lane!(Neg<T: Signed>(a: T; ftz) -> T {
    let a = if ftz != 0 { a.flush() } else { a };
    T::from_bits64(a.bits() ^ T::SIGN)
});
lane!(Copysign<T: Signed>(a: T, b: T) -> T { T::from_bits64(b.bits() & !T::SIGN | a.bits() & T::SIGN) });

/// f32 and f64 forms of an arithmetic opcode; the caller has seen the type.
pub(super) fn lower_shared(cx: &mut LowerCx, i: &Instr, ty: Ty) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.ty(cx)?;
    let opcode = &*i.op[0];
    match opcode {
        "min" | "max" => minmax_form(cx, i, m, ty),
        "abs" | "neg" => {
            let ftz = m.take("ftz");
            m.done(cx)?;
            match (opcode, ty) {
                ("abs", Ty::F32) => emit::<Abs<f32>>(cx, i, Class::Float, u32::from(ftz)),
                ("neg", Ty::F32) => emit::<Neg<f32>>(cx, i, Class::Float, u32::from(ftz)),
                (_, _) if ftz => cx.unsupported(i, "`.ftz` does not exist for .f64"),
                ("abs", _) => emit::<Abs<f64>>(cx, i, Class::Double, 0),
                _ => emit::<Neg<f64>>(cx, i, Class::Double, 0),
            }
        }
        "div" => div(cx, i, m, ty),
        _ => arithmetic(cx, i, m, ty),
    }
}

fn minmax_form(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, ty: Ty) -> Result<bool> {
    let imm = minmax_flags(cx, i, &mut m)?;
    m.done(cx)?;
    let is_min = &*i.op[0] == "min";
    match (ty, imm, is_min) {
        (Ty::F32, 0, true) => emit::<Min<f32>>(cx, i, Class::Float, 0),
        (Ty::F32, 0, false) => emit::<Max<f32>>(cx, i, Class::Float, 0),
        (Ty::F32, MINMAX_FTZ, true) => emit::<MinFlush>(cx, i, Class::Float, 0),
        (Ty::F32, MINMAX_FTZ, false) => emit::<MaxFlush>(cx, i, Class::Float, 0),
        (Ty::F32, _, true) => emit::<MinForm<f32>>(cx, i, Class::Float, imm),
        (Ty::F32, _, false) => emit::<MaxForm<f32>>(cx, i, Class::Float, imm),
        (_, 0, true) => emit::<Min<f64>>(cx, i, Class::Double, 0),
        (_, 0, false) => emit::<Max<f64>>(cx, i, Class::Double, 0),
        _ => cx.unsupported(i, "these modifiers do not exist for .f64"),
    }
}

/// `.ftz`, `.NaN`, `.xorsign.abs`.
pub(super) fn minmax_flags(cx: &LowerCx, i: &Instr, m: &mut Modifiers) -> Result<u32> {
    let ftz = m.take("ftz");
    let nan = m.take("NaN");
    let (xorsign, abs) = (m.take("xorsign"), m.take("abs"));
    if xorsign != abs {
        return cx.unsupported(i, "`.xorsign.abs` is one modifier");
    }
    Ok(flag(ftz, MINMAX_FTZ) | flag(nan, MINMAX_NAN) | flag(xorsign, MINMAX_XORSIGN))
}

fn form(m: &mut Modifiers) -> (Option<Mode>, Form) {
    let mode = m.first(|s| Mode::parse(s).filter(|&mode| mode != Mode::Away));
    let (ftz, sat) = (m.take("ftz"), m.take("sat"));
    (
        mode,
        Form {
            mode: mode.unwrap_or(Mode::Nearest),
            ftz,
            sat,
        },
    )
}

fn arithmetic(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, ty: Ty) -> Result<bool> {
    let (mode, form) = form(&mut m);
    m.done(cx)?;
    let opcode = &*i.op[0];
    if mode.is_none() && matches!(opcode, "fma" | "mad") {
        return cx.unsupported(i, "it needs a rounding mode");
    }
    if ty == Ty::F64 {
        if form.ftz || form.sat {
            return cx.unsupported(i, "`.ftz` and `.sat` do not exist for .f64");
        }
        let (class, imm) = (Class::Double, form.mode.number());
        return match (opcode, form.mode == Mode::Nearest) {
            ("add", true) => emit::<AddF64>(cx, i, class, 0),
            ("sub", true) => emit::<SubF64>(cx, i, class, 0),
            ("mul", true) => emit::<MulF64>(cx, i, class, 0),
            ("fma" | "mad", true) => emit::<FmaF64>(cx, i, class, 0),
            ("add", false) => emit::<AddF64Form>(cx, i, class, imm),
            ("sub", false) => emit::<SubF64Form>(cx, i, class, imm),
            ("mul", false) => emit::<MulF64Form>(cx, i, class, imm),
            ("fma" | "mad", false) => emit::<FmaF64Form>(cx, i, class, imm),
            _ => Ok(false),
        };
    }
    if form.mode == Mode::Nearest && !form.sat {
        fn nearest<S: Subnormals>(cx: &mut LowerCx, i: &Instr, _: Of<S>) -> Result<bool> {
            match &*i.op[0] {
                "add" => emit::<Add<S>>(cx, i, Class::Float, 0),
                "sub" => emit::<Sub<S>>(cx, i, Class::Float, 0),
                "mul" => emit::<Mul<S>>(cx, i, Class::Float, 0),
                "fma" | "mad" => emit::<Fma<S>>(cx, i, Class::Float, 0),
                _ => Ok(false),
            }
        }
        return if form.ftz {
            nearest(cx, i, Of::<Flush>::default())
        } else {
            nearest(cx, i, Of::<Keep>::default())
        };
    }
    let (class, imm) = (Class::Float, form.imm());
    match opcode {
        "add" => emit::<AddForm>(cx, i, class, imm),
        "sub" => emit::<SubForm>(cx, i, class, imm),
        "mul" => emit::<MulForm>(cx, i, class, imm),
        "fma" | "mad" => emit::<FmaForm>(cx, i, class, imm),
        _ => Ok(false),
    }
}

fn div(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, ty: Ty) -> Result<bool> {
    let (approx, full) = (m.take("approx"), m.take("full"));
    let (mode, form) = form(&mut m);
    m.done(cx)?;
    if usize::from(approx) + usize::from(full) + usize::from(mode.is_some()) != 1 || form.sat {
        return cx.unsupported(i, "it needs one of .approx, .full or a rounding mode");
    }
    match (ty, form.mode, form.ftz, approx) {
        (Ty::F64, Mode::Nearest, false, false) if !full => emit::<DivF64>(cx, i, Class::Double, 0),
        (Ty::F64, mode, false, false) if !full => {
            emit::<DivF64Form>(cx, i, Class::Double, mode.number())
        }
        (Ty::F64, ..) => cx.unsupported(i, "not a form of this instruction"),
        (_, _, false, true) => emit::<DivApprox<Keep>>(cx, i, Class::Float, 0),
        (_, _, true, true) => emit::<DivApprox<Flush>>(cx, i, Class::Float, 0),
        (_, Mode::Nearest, false, _) => emit::<Div<Keep>>(cx, i, Class::Float, 0),
        (_, Mode::Nearest, true, _) => emit::<Div<Flush>>(cx, i, Class::Float, 0),
        _ => emit::<DivForm>(cx, i, Class::Float, form.imm()),
    }
}

/// rcp, sqrt, rsqrt, copysign.
pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let opcode = &*i.op[0];
    if !matches!(opcode, "rcp" | "sqrt" | "rsqrt" | "copysign") {
        return Ok(false);
    }
    let mut m = Modifiers::new(i);
    let ty = m.ty(cx)?;
    let approx = m.take("approx");
    let (mode, form) = form(&mut m);
    m.done(cx)?;
    if opcode == "copysign" {
        return match (ty, approx || mode.is_some() || form.ftz || form.sat) {
            (Ty::F32, false) => emit::<Copysign<f32>>(cx, i, Class::Float, 0),
            (Ty::F64, false) => emit::<Copysign<f64>>(cx, i, Class::Double, 0),
            _ => cx.unsupported(i, "not a form of this instruction"),
        };
    }
    if approx == mode.is_some() || form.sat {
        return cx.unsupported(i, "it needs .approx or a rounding mode");
    }
    let (mufu, double) = (Class::Mufu, Class::Double);
    match (opcode, ty, form.mode, approx, form.ftz) {
        ("rcp", Ty::F32, Mode::Nearest, _, false) => emit::<Rcp<Keep>>(cx, i, mufu, 0),
        ("rcp", Ty::F32, Mode::Nearest, _, true) => emit::<Rcp<Flush>>(cx, i, mufu, 0),
        ("rcp", Ty::F32, ..) => emit::<RcpForm>(cx, i, mufu, form.imm()),
        ("rcp", Ty::F64, _, true, true) => emit::<RcpHigh>(cx, i, double, 0),
        ("rcp", Ty::F64, Mode::Nearest, false, false) => emit::<RcpF64>(cx, i, double, 0),
        ("rcp", Ty::F64, mode, false, false) => emit::<RcpF64Form>(cx, i, double, mode.number()),
        ("sqrt", Ty::F32, Mode::Nearest, _, false) => emit::<Sqrt<Keep>>(cx, i, mufu, 0),
        ("sqrt", Ty::F32, Mode::Nearest, _, true) => emit::<Sqrt<Flush>>(cx, i, mufu, 0),
        ("sqrt", Ty::F32, ..) => emit::<SqrtForm>(cx, i, mufu, form.imm()),
        ("sqrt", Ty::F64, Mode::Nearest, false, false) => emit::<SqrtF64>(cx, i, double, 0),
        ("sqrt", Ty::F64, mode, false, false) => emit::<SqrtF64Form>(cx, i, double, mode.number()),
        ("rsqrt", Ty::F32, _, true, false) => emit::<Rsqrt<Keep>>(cx, i, mufu, 0),
        ("rsqrt", Ty::F32, _, true, true) => emit::<Rsqrt<Flush>>(cx, i, mufu, 0),
        ("rsqrt", Ty::F64, _, true, true) => emit::<RsqrtHigh>(cx, i, double, 0),
        ("rsqrt", Ty::F64, _, true, false) => emit::<RsqrtF64>(cx, i, double, 0),
        _ => cx.unsupported(i, "not a form of this instruction"),
    }
}

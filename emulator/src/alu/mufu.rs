//! The special-function unit: ex2, lg2, sin, cos, tanh of f32.
//!
//! The ISA bounds their errors and leaves the bits open. Here each is computed in f64 to about 1e-13 and rounded to f32
//! once, so that the result is the correctly rounded one but for arguments whose exact result lies within 1e-6 ulp of a
//! tie. ex2, lg2 and tanh are polynomials without tables or branches, because attention and cross entropy live on them;
//! sin and cos call the host's library.

use super::float::{Flush, Keep, Subnormals};
use super::lane::{emit, lane};
use super::modifiers::Modifiers;
use crate::program::Class;
use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::{Instr, Ty};

/// 2^x for |x| up to 1000, relative error below 1e-14.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    let whole = x.round_ties_even();
    // 2^f = e^(f ln 2), |f| <= 1/2: Taylor terms up to (0.35)^12 / 12! = 6e-15.
    let t = (x - whole) * std::f64::consts::LN_2;
    let mut p = 1.0 / 479_001_600.0;
    for factor in [
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * t + factor;
    }
    // The exponent of 2^whole, made in the low bits of a large number.
    let exponent = (whole + (1u64 << 52) as f64 + 1023.0).to_bits() << 52;
    p * f64::from_bits(exponent)
}

/// 2^x: infinity above 128, zero below -150.
#[inline(always)]
pub(super) fn ex2(x: f32) -> f32 {
    // Beyond these bounds the rounding to f32 gives infinity and zero. NaN passes through the selections.
    let x = f64::from(x);
    let x = if x > 200.0 { 200.0 } else { x };
    let x = if x < -200.0 { -200.0 } else { x };
    let y = exp2(if x.is_nan() { 0.0 } else { x }) as f32;
    if x.is_nan() { super::float::NAN } else { y }
}

#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let a = x.abs();
    let clamped = if a < 20.0 { a } else { 20.0 };
    let e = exp2(clamped * (2.0 * std::f64::consts::LOG2_E));
    let large = (e - 1.0) / (e + 1.0);
    let square = a * a;
    // Near zero the difference above cancels: the series to a^7, whose next term is below 1e-14 of the first there.
    let small = a * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))));
    let y = (if a < 0.02 { small } else { large }).copysign(x) as f32;
    if x.is_nan() { super::float::NAN } else { y }
}

/// log2, for all of f32.
#[inline(always)]
fn lg2(x: f32) -> f32 {
    let d = f64::from(x);
    // Significand in [sqrt(1/2), sqrt(2)): the bits above those of sqrt(1/2) count in the exponent.
    let bits = d.to_bits();
    let offset = bits.wrapping_sub(0x3fe6_a09e_667f_3bcd);
    let exponent = (offset as i64 >> 52) as i32;
    let m = f64::from_bits(bits.wrapping_sub(offset & 0xfff0_0000_0000_0000));
    // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172: terms up to s^21.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 21.0;
    for n in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * z + 1.0 / n;
    }
    let y = (f64::from(exponent) + 2.0 * s * p * std::f64::consts::LOG2_E) as f32;
    if x > 0.0 && x < f32::INFINITY {
        y
    } else if x == 0.0 {
        f32::NEG_INFINITY
    } else if x > 0.0 {
        f32::INFINITY
    } else {
        super::float::NAN
    }
}

lane!(Ex2<S: Subnormals>(a: f32) -> f32 { S::write(ex2(S::read(a))) });
lane!(Lg2<S: Subnormals>(a: f32) -> f32 { S::write(lg2(S::read(a))) });
lane!(Sin<S: Subnormals>(a: f32) -> f32 { S::write(f64::from(S::read(a)).sin() as f32) });
lane!(Cos<S: Subnormals>(a: f32) -> f32 { S::write(f64::from(S::read(a)).cos() as f32) });
lane!(Tanh(a: f32) -> f32 { tanh(a) });

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let opcode = &*i.op[0];
    if !matches!(opcode, "ex2" | "lg2" | "sin" | "cos" | "tanh") {
        return Ok(false);
    }
    let mut m = Modifiers::new(i);
    let ty = m.ty(cx)?;
    if matches!(ty, Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2) && matches!(opcode, "ex2" | "tanh")
    {
        return super::half::lower_shared(cx, i, ty);
    }
    let (approx, ftz) = (m.take("approx"), m.take("ftz"));
    m.done(cx)?;
    if !approx || ty != Ty::F32 {
        return cx.unsupported(i, "only .approx forms of .f32 exist");
    }
    match (opcode, ftz) {
        ("ex2", false) => emit::<Ex2<Keep>>(cx, i, Class::Mufu, 0),
        ("ex2", true) => emit::<Ex2<Flush>>(cx, i, Class::Mufu, 0),
        ("lg2", false) => emit::<Lg2<Keep>>(cx, i, Class::Mufu, 0),
        ("lg2", true) => emit::<Lg2<Flush>>(cx, i, Class::Mufu, 0),
        ("sin", false) => emit::<Sin<Keep>>(cx, i, Class::Mufu, 0),
        ("sin", true) => emit::<Sin<Flush>>(cx, i, Class::Mufu, 0),
        ("cos", false) => emit::<Cos<Keep>>(cx, i, Class::Mufu, 0),
        ("cos", true) => emit::<Cos<Flush>>(cx, i, Class::Mufu, 0),
        ("tanh", false) => emit::<Tanh>(cx, i, Class::Mufu, 0),
        _ => cx.unsupported(i, "`.ftz` does not exist for tanh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 997th f32, and its neighbourhood of interest, against the host's f64 functions.
    fn sweep(from: u32, to: u32, ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) {
        let mut wrong = 0;
        let mut count = 0;
        for bits in (from..to).step_by(997) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let (got, want) = (ours(x), exact(f64::from(x)) as f32);
                count += 1;
                if got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()) {
                    wrong += 1;
                    let near = got.next_up() == want || got.next_down() == want;
                    assert!(near, "{x:e}: {got:e}, not {want:e}");
                }
            }
        }
        assert!(
            wrong * 100_000 <= count,
            "{wrong} of {count} are not correctly rounded"
        );
    }

    #[test]
    fn correctly_rounded() {
        sweep(0, 0x7f80_0000, ex2, f64::exp2);
        sweep(0, 0x7f80_0000, tanh, f64::tanh);
        sweep(0, 0x7f80_0000, lg2, f64::log2);
    }

    #[test]
    fn ends() {
        assert_eq!(ex2(f32::INFINITY), f32::INFINITY);
        assert_eq!(ex2(f32::NEG_INFINITY), 0.0);
        assert_eq!(ex2(-149.0), f32::from_bits(1));
        assert_eq!(ex2(128.0), f32::INFINITY);
        assert_eq!(ex2(f32::NAN).to_bits(), 0x7fff_ffff);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(tanh(-0.0).to_bits(), 0x8000_0000);
        assert_eq!(lg2(0.0), f32::NEG_INFINITY);
        assert_eq!(lg2(-0.0), f32::NEG_INFINITY);
        assert_eq!(lg2(f32::INFINITY), f32::INFINITY);
        assert!(lg2(-1.0).is_nan() && lg2(f32::NEG_INFINITY).is_nan());
        assert_eq!(lg2(f32::from_bits(1)), -149.0);
        for e in -126..128 {
            assert_eq!(lg2(2f32.powi(e)), e as f32);
            assert_eq!(ex2(e as f32), 2f32.powi(e));
        }
    }
}

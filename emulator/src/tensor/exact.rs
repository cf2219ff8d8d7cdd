//! The arithmetic of Hopper's tensor core, bit by bit (opt-in; about 50 times slower than the f32 kernels).
//!
//! What is known of it comes from measurements on silicon (MMA-Sim, arXiv 2511.10909), not from NVIDIA:
//!
//! 1. every product is exact, with significand in (0, 4) and exponent the sum of the operands' exponents (a subnormal
//!    keeps its format's least exponent);
//! 2. all products of one instruction **and the accumulator** are aligned to the largest of their exponents and
//!    *truncated* (toward zero) to F fractional bits;
//! 3. they are added exactly;
//! 4. the sum is truncated to f32, or rounded to nearest even for f16.
//!
//! F is 25, but 13 for wgmma on 8-bit floats, whose f32 result then also has only 13 fractional bits. A NaN result is
//! 0x7fffffff (f16: 0x7fff). The truncation biases sums slightly toward zero, which f32 multiply-adds do not.

use super::format::{Format, f16_to_f32, f32_to_f16};

/// An operand as an integer multiple of 2^-10 and a power of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Term {
    significand: i32,
    exponent: i32,
}

/// Type and precision of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Fractional bits kept in the alignment.
    pub fraction: u32,
    /// D (and C) are f16.
    pub f16: bool,
    /// Fractional bits of an f32 result.
    pub result: u32,
}

impl Rule {
    pub fn wgmma(a: Format, f16: bool) -> Self {
        if a.bits() == 8 {
            Self {
                fraction: 13,
                f16,
                result: 13,
            }
        } else {
            Self::mma(f16)
        }
    }
    pub fn mma(f16: bool) -> Self {
        Self {
            fraction: 25,
            f16,
            result: 23,
        }
    }
}

fn least_exponent(format: Format) -> i32 {
    match format {
        Format::F16 | Format::E5m2 => -14,
        Format::E4m3 => -6,
        _ => -126,
    }
}

/// Exponent of a finite f32's leading bit; `None` for zero.
fn leading(v: f32) -> Option<i32> {
    let bits = v.to_bits() & 0x7fff_ffff;
    match bits {
        0 => None,
        1..0x0080_0000 => Some(-118 - bits.leading_zeros() as i32),
        _ => Some((bits >> 23) as i32 - 127),
    }
}

impl Term {
    pub fn new(v: f32, format: Format) -> Self {
        match leading(v) {
            None => Self {
                significand: 0,
                exponent: -126,
            },
            Some(e) => {
                let exponent = e.max(least_exponent(format));
                Self {
                    // Exact: no operand format has more than 10 fractional bits.
                    significand: (f64::from(v) * 2f64.powi(10 - exponent)) as i32,
                    exponent,
                }
            }
        }
    }
}

/// `x * 2^shift`, toward zero.
fn scale(x: i64, shift: i32) -> i64 {
    if shift >= 0 {
        x << shift
    } else if shift <= -63 {
        0
    } else {
        x / (1 << -shift)
    }
}

/// sum of a[k] * b[k] + c. All operands are finite.
pub fn dot(a: &[Term], b: &[Term], c: f32, rule: Rule) -> f32 {
    let c_least = if rule.f16 { -14 } else { -126 };
    let (c_significand, c_exponent) = match leading(c) {
        None => (0, -126),
        Some(e) => {
            let e = e.max(c_least);
            ((f64::from(c) * 2f64.powi(23 - e)) as i64, e)
        }
    };
    let largest = a
        .iter()
        .zip(b)
        .map(|(a, b)| a.exponent + b.exponent)
        .fold(c_exponent, i32::max);
    let f = rule.fraction as i32;
    let mut sum = scale(c_significand, f - 23 + c_exponent - largest);
    for (a, b) in a.iter().zip(b) {
        let product = i64::from(a.significand) * i64::from(b.significand);
        sum += scale(product, f - 20 + a.exponent + b.exponent - largest);
    }
    // The sum is sum * 2^(largest - f).
    if sum == 0 {
        return 0.0;
    }
    let unit = largest - f;
    let top = unit + 63 - sum.unsigned_abs().leading_zeros() as i32;
    if rule.f16 {
        let quantum = top.max(-14) - 10;
        let v = (sum as f64 * 2f64.powi(unit - quantum)).round_ties_even() * 2f64.powi(quantum);
        return v as f32;
    }
    let quantum = top.max(-126) - rule.result as i32;
    // In two steps, because 2^quantum may lie below the normal f64s' comfortable range only after multiplication.
    (scale(sum, unit - quantum) as f64 * 2f64.powi(quantum)) as f32
}

/// The result for operands of which some are infinite or NaN; `None` if all are finite.
pub fn special(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>, c: f32) -> Option<f32> {
    let sum = a
        .zip(b)
        .fold(f64::from(c), |s, (a, b)| s + f64::from(a) * f64::from(b));
    if sum.is_nan() {
        Some(f32::from_bits(0x7fff_ffff))
    } else if sum.is_infinite() {
        Some(sum as f32)
    } else {
        None
    }
}

/// One element of D.
pub fn element(a: (&[f32], &[Term]), b: (&[f32], &[Term]), c: f32, rule: Rule) -> f32 {
    let v = match special(a.0.iter().copied(), b.0.iter().copied(), c) {
        Some(v) => v,
        None => dot(a.1, b.1, c, rule),
    };
    if rule.f16 {
        f16_to_f32(f32_to_f16(v))
    } else {
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(format: Format, rule: Rule, a: &[f32], b: &[f32], c: f32) -> f32 {
        let ta: Vec<_> = a.iter().map(|v| Term::new(*v, format)).collect();
        let tb: Vec<_> = b.iter().map(|v| Term::new(*v, format)).collect();
        element((a, &ta), (b, &tb), c, rule)
    }
    const F32: Rule = Rule {
        fraction: 25,
        f16: false,
        result: 23,
    };

    #[test]
    fn exact_where_nothing_is_cut_off() {
        let a = [1.5, -2.25, 0.5, 3.0];
        let b = [2.0, 4.0, -0.125, 1.75];
        let want: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum::<f32>() + 10.0;
        assert_eq!(sum(Format::Bf16, F32, &a, &b, 10.0), want);
        assert_eq!(sum(Format::F16, Rule::mma(true), &a, &b, 10.0), want);
        assert_eq!(sum(Format::Bf16, F32, &[0.0], &[5.0], 0.0), 0.0);
    }

    #[test]
    fn small_terms_are_truncated_one_by_one() {
        // Next to 1, 25 fractional bits remain: 2^-26 is lost however often it comes, 2^-25 is not.
        let tiny = 2f32.powi(-13);
        let ones = [tiny; 16];
        assert_eq!(sum(Format::Bf16, F32, &ones, &ones, 1.0), 1.0);
        let larger = [2f32.powi(-12); 16];
        let got = sum(Format::Bf16, F32, &larger, &ones, 1.0);
        assert_eq!(got, 1.0 + 2f32.powi(-21));
        // Truncation is toward zero on both sides.
        assert_eq!(sum(Format::Bf16, F32, &[-tiny], &[tiny], 1.0), 1.0);
        assert_eq!(sum(Format::Bf16, F32, &[tiny], &[tiny], -1.0), -1.0);
        // The result is truncated as well: 1 + 2^-24 + 2^-25.
        let got = sum(
            Format::Bf16,
            F32,
            &[2f32.powi(-12), larger[0]],
            &[2f32.powi(-12), tiny],
            1.0,
        );
        assert_eq!(got, 1.0);
    }

    #[test]
    fn eight_bit_floats_keep_13_bits() {
        let rule = Rule::wgmma(Format::E4m3, false);
        let v = [2f32.powi(-7)];
        assert_eq!(sum(Format::E4m3, rule, &v, &v, 1.0), 1.0);
        let v = [2f32.powi(-6)];
        let w = [2f32.powi(-7)];
        assert_eq!(sum(Format::E4m3, rule, &v, &w, 1.0), 1.0 + 2f32.powi(-13));
        // The accumulator is cut to 13 bits too.
        assert_eq!(
            sum(Format::E4m3, rule, &[0.0], &[0.0], 1.0 + 2f32.powi(-14)),
            1.0
        );
    }

    #[test]
    fn f16_rounds_to_nearest_even() {
        let rule = Rule::mma(true);
        let half_ulp = 2f32.powi(-11);
        assert_eq!(sum(Format::F16, rule, &[half_ulp], &[1.0], 1.0), 1.0);
        let got = sum(Format::F16, rule, &[3.0], &[half_ulp], 1.0);
        assert_eq!(got, 1.0 + 2f32.powi(-9));
        assert_eq!(
            sum(Format::F16, rule, &[256.0], &[256.0], 0.0),
            f32::INFINITY
        );
    }

    #[test]
    fn subnormals_and_specials() {
        // 2^-24 is a subnormal f16: significand 2^-10 at exponent -14.
        let s = 2f32.powi(-24);
        assert_eq!(
            Term::new(s, Format::F16),
            Term {
                significand: 1,
                exponent: -14
            }
        );
        assert_eq!(sum(Format::F16, F32, &[s], &[s], 0.0), 2f32.powi(-48));
        let tiny = f32::from_bits(0x0001_0000);
        assert_eq!(sum(Format::Bf16, F32, &[tiny], &[1.0], 0.0), tiny);
        assert_eq!(
            sum(Format::Bf16, F32, &[f32::INFINITY], &[1.0], 1.0),
            f32::INFINITY
        );
        let nan = sum(Format::Bf16, F32, &[f32::INFINITY], &[0.0], 1.0);
        assert_eq!(nan.to_bits(), 0x7fff_ffff);
        let least = f32::from_bits(1);
        assert_eq!(sum(Format::Bf16, F32, &[0.0], &[1.0], least), least);
        assert_eq!(sum(Format::Bf16, F32, &[3e38], &[3e38], 0.0), f32::INFINITY);
    }
}

//! Rounding that the host has no instruction for.
//!
//! Two ways lead to an exact result in every mode:
//!
//! * **Into f32 and narrower formats**, through f64. Sums and products of narrow values are exact in f64, or, where they
//!   are not, rounded *to odd*: the last bit of the f64 is set when anything was lost. With 53 bits, which is more than
//!   two over 24, the second rounding then sees all it needs. [`round`] does the second rounding by scaling the
//!   value so that the target's last place is 1, and rounding to an integer.
//! * **Into f64**, by the sign of the error: round to nearest with the host, find out on which side of the exact result
//!   that is (error-free transformations; operands are scaled so that nothing under- or overflows on the way), and
//!   take one step where the mode asks for it.

/// Directions of rounding; `Away` is nearest with ties away from zero (`.rna`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
    Away,
}

impl Mode {
    pub fn parse(name: &str) -> Option<Mode> {
        Some(match name {
            "rn" => Mode::Nearest,
            "rz" => Mode::Zero,
            "rm" => Mode::Down,
            "rp" => Mode::Up,
            "rna" => Mode::Away,
            _ => return None,
        })
    }

    pub fn number(self) -> u32 {
        self as u32
    }

    #[inline(always)]
    pub fn from_number(n: u32) -> Mode {
        match n & 7 {
            0 => Mode::Nearest,
            1 => Mode::Zero,
            2 => Mode::Down,
            3 => Mode::Up,
            _ => Mode::Away,
        }
    }
}

/// A binary format narrower than f64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Narrow {
    /// Bits of the significand, the hidden one included.
    precision: i32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    /// Largest finite value.
    pub max: f64,
}

pub(super) const F32: Narrow = Narrow {
    precision: 24,
    min_exponent: -126,
    max: f32::MAX as f64,
};
pub(super) const F16: Narrow = Narrow {
    precision: 11,
    min_exponent: -14,
    max: 65504.0,
};
pub(super) const BF16: Narrow = Narrow {
    precision: 8,
    min_exponent: -126,
    max: power(127) * (2.0 - power(-7)),
};
pub(super) const TF32: Narrow = Narrow {
    precision: 11,
    min_exponent: -126,
    max: power(127) * (2.0 - power(-10)),
};
pub(super) const E4M3: Narrow = Narrow {
    precision: 4,
    min_exponent: -6,
    max: 448.0,
};
pub(super) const E5M2: Narrow = Narrow {
    precision: 3,
    min_exponent: -14,
    max: 57344.0,
};

/// 2 to the power `e`, for exponents of normal numbers.
#[inline(always)]
const fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// The value of the format next to `x` in the direction of `mode`. NaN stays NaN; too large a value becomes infinity or
/// the largest finite number, as the mode says.
#[inline(always)]
pub(super) fn round(x: f64, to: Narrow, mode: Mode) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let quantum = exponent.max(to.min_exponent) - (to.precision - 1);
    let scaled = x * power(-quantum);
    let rounded = match mode {
        Mode::Nearest => scaled.round_ties_even(),
        Mode::Zero => scaled.trunc(),
        Mode::Down => scaled.floor(),
        Mode::Up => scaled.ceil(),
        Mode::Away => scaled.round(),
    };
    let y = rounded * power(quantum);
    let to_infinity = match mode {
        Mode::Nearest | Mode::Away => true,
        Mode::Zero => false,
        Mode::Down => x < 0.0,
        Mode::Up => x > 0.0,
    };
    if x.abs() == f64::INFINITY || x.is_nan() {
        x
    } else if y.abs() > to.max {
        (if to_infinity { f64::INFINITY } else { to.max }).copysign(x)
    } else {
        y
    }
}

/// `a + b` as an exact pair: the rounded sum and its error.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// `a + b` rounded to odd, for operands whose sum cannot overflow.
#[inline(always)]
pub(super) fn add_odd(a: f64, b: f64) -> f64 {
    let (s, error) = two_sum(a, b);
    to_odd(s, error)
}

/// Moves `s`, which is nearest to `s + error`, to the neighbour of it that is odd.
#[inline(always)]
fn to_odd(s: f64, error: f64) -> f64 {
    let bits = s.to_bits();
    // An exact result stays; one that is odd already has seen its error. An infinite sum has a NaN for its error.
    let lost = error.abs() > 0.0;
    let outward = (error > 0.0) == (s > 0.0);
    let moved = if outward {
        bits.wrapping_add(1)
    } else {
        bits.wrapping_sub(1)
    };
    f64::from_bits(if lost && bits & 1 == 0 { moved } else { bits })
}

/// `a / b` of f32 values, rounded to odd.
#[inline(always)]
pub(super) fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    let r = (-q).mul_add(b, a);
    to_odd(q, if b < 0.0 { -r } else { r })
}

/// The square root of an f32 value, rounded to odd.
#[inline(always)]
pub(super) fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    to_odd(s, (-s).mul_add(s, a))
}

/// The neighbour of `s` that the mode asks for, where the exact result is `s` plus something of the sign of `error`.
fn step(s: f64, error: f64, mode: Mode) -> f64 {
    match mode {
        Mode::Zero if s > 0.0 && error < 0.0 => s.next_down(),
        Mode::Zero if s < 0.0 && error > 0.0 => s.next_up(),
        Mode::Down if error < 0.0 => s.next_down(),
        Mode::Up if error > 0.0 => s.next_up(),
        _ => s,
    }
}

/// Significand in [1, 2) and exponent of a finite number other than zero.
fn split(x: f64) -> (f64, i32) {
    let (x, less) = if x.abs() < f64::MIN_POSITIVE {
        (x * power(54), 54)
    } else {
        (x, 0)
    };
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    (
        x * power(-exponent.clamp(-1022, 1022)) * power(exponent.clamp(-1022, 1022) - exponent),
        exponent - less,
    )
}

/// `x * 2^e`, exact unless it leaves the range of f64.
fn scale(mut x: f64, mut e: i32) -> f64 {
    while e > 1000 {
        x *= power(1000);
        e -= 1000;
    }
    while e < -1000 {
        x *= power(-1000);
        e += 1000;
    }
    x * power(e)
}

pub(super) fn add_f64(a: f64, b: f64, mode: Mode) -> f64 {
    fma_f64(a, 1.0, b, mode)
}

pub(super) fn mul_f64(a: f64, b: f64, mode: Mode) -> f64 {
    let p = a * b;
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return p;
    }
    let error = if p.is_infinite() {
        -p
    } else {
        let ((x, i), (y, j)) = (split(a), split(b));
        x.mul_add(y, -scale(p, -i - j))
    };
    step(p, error, mode)
}

pub(super) fn div_f64(a: f64, b: f64, mode: Mode) -> f64 {
    let q = a / b;
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return q;
    }
    let error = if q.is_infinite() {
        -q
    } else {
        let ((x, i), (y, j)) = (split(a), split(b));
        let r = (-scale(q, j - i)).mul_add(y, x);
        if y < 0.0 { -r } else { r }
    };
    step(q, error, mode)
}

pub(super) fn sqrt_f64(a: f64, mode: Mode) -> f64 {
    let s = a.sqrt();
    if !(a > 0.0 && a.is_finite()) {
        return s;
    }
    let (_, e) = split(a);
    let half = e.div_euclid(2);
    let (x, y) = (scale(a, -2 * half), scale(s, -half));
    step(s, (-y).mul_add(y, x), mode)
}

pub(crate) fn fma_f64(a: f64, b: f64, c: f64, mode: Mode) -> f64 {
    let s = a.mul_add(b, c);
    if mode == Mode::Nearest || !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return s;
    }
    let product_negative = a.is_sign_negative() != b.is_sign_negative();
    let product_zero = a == 0.0 || b == 0.0;
    if s == 0.0
        && (product_zero && c == 0.0
            || !product_zero && c != 0.0 && exact_sign(a, b, c, 0.0) == 0.0)
    {
        // An exact zero of terms with different signs is negative only when rounding down.
        let differ = product_negative != c.is_sign_negative();
        return if !differ {
            s
        } else if mode == Mode::Down {
            -0.0
        } else {
            0.0
        };
    }
    let error = if s.is_infinite() {
        -s
    } else {
        exact_sign(a, b, c, s)
    };
    step(s, error, mode)
}

/// A number with the sign of `a * b + c - s`, exactly; `s` is near `a * b + c`.
fn exact_sign(a: f64, b: f64, c: f64, s: f64) -> f64 {
    // A term that is this much smaller than the other only matters by its sign.
    const FAR: i32 = 300;
    let mut terms = [0.0; 4];
    let (x, i) = if a == 0.0 || b == 0.0 {
        (0.0, i32::MIN / 4)
    } else {
        split(a)
    };
    let (y, j) = if x == 0.0 { (0.0, 0) } else { split(b) };
    let (z, k) = if c == 0.0 {
        (0.0, i32::MIN / 4)
    } else {
        split(c)
    };
    let top = (i + j).max(k);
    let near = |e: i32| (e - top).max(-FAR);
    let x = scale(x, near(i + j));
    terms[0] = x * y;
    terms[1] = x.mul_add(y, -terms[0]);
    terms[2] = scale(z, near(k));
    terms[3] = -scale(s, -top);
    // Each pass of error-free sums concentrates the value in the last term.
    for _ in 0..8 {
        for n in 1..terms.len() {
            let (sum, error) = two_sum(terms[n], terms[n - 1]);
            terms[n] = sum;
            terms[n - 1] = error;
        }
    }
    terms
        .iter()
        .rev()
        .copied()
        .find(|&t| t != 0.0)
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [Mode; 4] = [Mode::Nearest, Mode::Zero, Mode::Down, Mode::Up];

    /// An exact rational check: is `s` the right rounding of the value whose sign relative to any f64 is given?
    fn is_rounded(s: f64, mode: Mode, side: impl Fn(f64) -> f64) -> bool {
        // side(v) has the sign of exact - v.
        match mode {
            Mode::Nearest => true,
            Mode::Down => side(s) >= 0.0 && side(s.next_up()) < 0.0,
            Mode::Up => side(s) <= 0.0 && side(s.next_down()) > 0.0,
            _ if s > 0.0 || s == 0.0 && s.is_sign_positive() => {
                side(s) >= 0.0 && side(s.next_up()) < 0.0
            }
            _ => side(s) <= 0.0 && side(s.next_down()) > 0.0,
        }
    }

    /// Sign of `a * b - c * d` by integers.
    fn compare_products(a: f64, b: f64, c: f64, d: f64) -> f64 {
        let part = |x: f64, y: f64| -> (i32, u128, i32) {
            let decode = |v: f64| {
                let e = (v.to_bits() >> 52 & 0x7ff) as i32;
                let m = v.to_bits() & ((1 << 52) - 1);
                if e == 0 {
                    (m, -1074)
                } else {
                    (m | 1 << 52, e - 1075)
                }
            };
            let ((m, i), (n, j)) = (decode(x), decode(y));
            let p = u128::from(m) * u128::from(n);
            let sign = if p == 0 {
                0
            } else if x.is_sign_negative() != y.is_sign_negative() {
                -1
            } else {
                1
            };
            (sign, p, i + j)
        };
        let ((s, m, e), (t, n, f)) = (part(a, b), part(c, d));
        if s != t {
            return f64::from((s - t).signum());
        }
        // Compare m * 2^e with n * 2^f by normalising.
        if m == 0 {
            return 0.0;
        }
        let (lm, ln) = (m.leading_zeros() as i32, n.leading_zeros() as i32);
        let order = (e - lm).cmp(&(f - ln)).then((m << lm).cmp(&(n << ln)));
        f64::from(s * order as i32)
    }

    fn wide() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_filter("finite", |v| v.is_finite()),
            (-4i32..4).prop_map(f64::from),
            (any::<u32>(), -60i32..60).prop_map(|(m, e)| f64::from(m) * power(e)),
            Just(f64::MAX),
            Just(f64::MIN_POSITIVE),
            Just(5e-324),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn products_and_quotients(a in wide(), b in wide()) {
            for mode in MODES {
                let p = mul_f64(a, b, mode);
                if p.is_finite() && a != 0.0 && b != 0.0 {
                    let side = |v: f64| if v.is_infinite() { -v } else { compare_products(a, b, v, 1.0) };
                    prop_assert!(is_rounded(p, mode, side), "{a:e} * {b:e} {mode:?} = {p:e}");
                }
                let q = div_f64(a, b, mode);
                if q.is_finite() && a != 0.0 && b != 0.0 {
                    // a / b - v has the sign of (a - v * b) / b.
                    let side = |v: f64| if v.is_infinite() { -v } else { compare_products(a, 1.0, v, b) * b.signum() };
                    prop_assert!(is_rounded(q, mode, side), "{a:e} / {b:e} {mode:?} = {q:e}");
                }
                let s = sqrt_f64(a.abs(), mode);
                if a != 0.0 {
                    let side = |v: f64| if v < 0.0 { 1.0 } else { compare_products(a.abs(), 1.0, v, v) };
                    prop_assert!(is_rounded(s, mode, side), "sqrt {a:e} {mode:?} = {s:e}");
                }
            }
        }

        #[test]
        fn fused(a in wide(), b in wide(), c in wide()) {
            let (down, up) = (fma_f64(a, b, c, Mode::Down), fma_f64(a, b, c, Mode::Up));
            let (zero, near) = (fma_f64(a, b, c, Mode::Zero), fma_f64(a, b, c, Mode::Nearest));
            prop_assert!(down <= near && near <= up, "{a:e} {b:e} {c:e}");
            prop_assert!(down == up || down.next_up() == up, "{down:e} {up:e}");
            prop_assert_eq!(zero, if near > 0.0 || near == 0.0 && up > 0.0 { down } else { up });
            // With c = 0 the product decides.
            prop_assert_eq!(fma_f64(a, b, 0.0, Mode::Down), mul_f64(a, b, Mode::Down));
        }

        #[test]
        fn narrow(x in wide()) {
            let nearest = round(x, F32, Mode::Nearest);
            prop_assert_eq!(nearest, f64::from(x as f32));
            let (down, up) = (round(x, F32, Mode::Down), round(x, F32, Mode::Up));
            prop_assert!(down <= x && x <= up);
            prop_assert!(down == up || f64::from((down as f32).next_up()) == up);
            prop_assert_eq!(round(x, F32, Mode::Zero), if x > 0.0 { down } else { up });
        }

        #[test]
        fn odd_sums(a: f32, b: f32, c: f32) {
            // f32 products plus f32, through odd, are the fused result.
            let s = add_odd(f64::from(a) * f64::from(b), f64::from(c));
            let want = a.mul_add(b, c);
            let got = round(s, F32, Mode::Nearest) as f32;
            prop_assert!(got == want || got.is_nan() && want.is_nan(), "{a:e} {b:e} {c:e}: {got:e} {want:e}");
        }
    }

    #[test]
    fn small_cases() {
        assert_eq!(add_f64(1.0, 1e-300, Mode::Up), 1f64.next_up());
        assert_eq!(add_f64(1.0, -1e-300, Mode::Zero), 1f64.next_down());
        assert_eq!(add_f64(1.0, 1e-300, Mode::Zero), 1.0);
        assert!(add_f64(1.0, -1.0, Mode::Down).is_sign_negative());
        assert!(add_f64(1.0, -1.0, Mode::Zero).is_sign_positive());
        assert!(add_f64(-0.0, -0.0, Mode::Up).is_sign_negative());
        assert_eq!(add_f64(f64::MAX, f64::MAX, Mode::Zero), f64::MAX);
        assert_eq!(mul_f64(5e-324, 0.25, Mode::Up), 5e-324);
        assert_eq!(mul_f64(-5e-324, 0.25, Mode::Down), -5e-324);
        assert_eq!(round(449.0, E4M3, Mode::Nearest), 448.0);
        assert_eq!(round(-70000.0, F16, Mode::Zero), -65504.0);
        assert_eq!(round(-70000.0, F16, Mode::Up), -65504.0);
        assert_eq!(round(65520.0, F16, Mode::Nearest), f64::INFINITY);
        assert_eq!(round(3e-8, F16, Mode::Nearest), power(-24));
    }
}

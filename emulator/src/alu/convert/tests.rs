//! Conversions one lane at a time: exhaustive over 16- and 8-bit formats.

use super::*;
use crate::alu::lane::Lane;
use proptest::prelude::*;

fn convert<L: Lane>(a: L::A, b: L::B, imm: u32) -> L::D {
    L::lane(a, b, L::C::get(Default::default()), imm)
}

const RN: u32 = 0;
const MODES: [Mode; 4] = [Mode::Nearest, Mode::Zero, Mode::Down, Mode::Up];

#[test]
fn every_half_survives_f32() {
    for bits in 0..=u16::MAX {
        let same = |x: u16, nan: bool| if nan { 0x7fff } else { x };
        let (h, b) = (F16(bits), BF16(bits));
        assert_eq!(f32_to_f16(h.to_f32()), same(bits, h.to_f32().is_nan()));
        assert_eq!(f32_to_bf16(b.to_f32()), same(bits, b.to_f32().is_nan()));
        for mode in MODES {
            let imm = mode.number();
            let f: F16 = convert::<Convert<f32, F16>>(h.to_f32(), 0, imm);
            assert_eq!(f.0, same(bits, h.to_f32().is_nan()), "{bits:x} {mode:?}");
            let f: BF16 = convert::<Convert<f32, BF16>>(b.to_f32(), 0, imm);
            assert_eq!(f.0, same(bits, b.to_f32().is_nan()), "{bits:x} {mode:?}");
        }
    }
}

/// Between every two neighbours: just above, the middle, just below.
#[test]
fn every_bf16_interval() {
    for bits in 0..0x7f80u16 {
        let (low, middle, high) = (
            u32::from(bits) << 16,
            u32::from(bits) << 16 | 0x8000,
            u32::from(bits + 1) << 16,
        );
        for (x, want) in [
            (low + 1, bits),
            (middle - 1, bits),
            (middle, bits + (bits & 1)),
            (middle + 1, bits + 1),
            (high - 1, bits + 1),
        ] {
            let x = f32::from_bits(x);
            assert_eq!(f32_to_bf16(x), want);
            assert_eq!(f32_to_bf16(-x), want | 0x8000);
            let cvt = |x: f32, mode: Mode| convert::<Convert<f32, BF16>>(x, 0, mode.number()).0;
            assert_eq!(cvt(x, Mode::Nearest), want);
            assert_eq!(cvt(x, Mode::Zero), bits);
            assert_eq!(cvt(-x, Mode::Zero), bits | 0x8000);
            if bits < 0x7f7f {
                assert_eq!(cvt(x, Mode::Up), bits + 1);
                assert_eq!(cvt(-x, Mode::Down), (bits + 1) | 0x8000);
            }
        }
    }
}

#[test]
fn packing_puts_a_high() {
    assert_eq!(convert::<PackBf16>(1.0, -2.0, 0), 0x3f80_c000);
    assert_eq!(convert::<PackF16>(1.0, -2.0, 0), 0x3c00_c000);
    assert_eq!(convert::<Pack<BF16>>(-1.0, 2.0, RELU), 0x0000_4000);
    assert_eq!(convert::<Pack<F16>>(1e9, f32::NAN, SATFINITE), 0x7bff_7fff);
    assert_eq!(convert::<PackEight<E4m3>>(1.0, -1e9, SATFINITE), 0x38fe);
    assert_eq!(
        convert::<PackEight<E5m2>>(f32::INFINITY, f32::NAN, SATFINITE),
        0x7b7f
    );
    assert_eq!(
        convert::<PackEight<E4m3>>(-3.0, 0.25, SATFINITE | RELU),
        0x0028
    );
    assert_eq!(convert::<EightToPair<E4m3>>(0x38fe, 0, RN), 0x3c00_df00);
}

#[test]
fn every_eight_bit_float_comes_back() {
    for bits in 0..=255u32 {
        let pair = convert::<EightToPair<E4m3>>(bits as u16, 0, RN);
        let back = convert::<PairToEight<E4m3>>(pair, 0, SATFINITE);
        assert_eq!(
            u32::from(back) & 0xff,
            if bits & 0x7f == 0x7f { 0x7f } else { bits }
        );
        let x = E5m2::decode(bits);
        let back = u32::from(convert::<PackEight<E5m2>>(0.0, x, SATFINITE));
        let want = match bits & 0x7f {
            0x7c => bits & 0x80 | 0x7b,
            0x7d.. => 0x7f,
            _ => bits,
        };
        assert_eq!(back & 0xff, want, "{bits:x}");
    }
    // Subnormals of e4m3 in steps of 2^-9, ties to even.
    assert_eq!(eight::<E4m3>(1.5 / 512.0, SATFINITE), 2);
    assert_eq!(eight::<E4m3>(2.5 / 512.0, SATFINITE), 2);
    assert_eq!(eight::<E4m3>(0.4 / 512.0, SATFINITE), 0);
    assert_eq!(eight::<E4m3>(0.0155, SATFINITE), 8);
}

#[test]
fn tf32() {
    let cvt =
        |bits: u32, mode: Mode| convert::<ToTf32>(f32::from_bits(bits), 0, mode.number()).to_bits();
    assert_eq!(cvt(0x3f80_1000, Mode::Away), 0x3f80_2000);
    assert_eq!(cvt(0x3f80_1000, Mode::Nearest), 0x3f80_0000);
    assert_eq!(cvt(0x3f80_0fff, Mode::Away), 0x3f80_0000);
    assert_eq!(cvt(0xbf80_1fff, Mode::Zero), 0xbf80_0000);
    assert_eq!(cvt(0x7fc0_0000, Mode::Away), 0x7fff_ffff);
    assert_eq!(cvt(0x7f7f_ffff, Mode::Away), 0x7f80_0000);
}

#[test]
fn floats_to_integers() {
    fn cvt<F: Float, I: Integer>(x: F, mode: Mode) -> I {
        to_integer::<F, I>(x, mode.number())
    }
    assert_eq!(cvt::<f32, i32>(2.5, Mode::Nearest), 2);
    assert_eq!(cvt::<f32, i32>(-2.5, Mode::Down), -3);
    assert_eq!(cvt::<f32, i32>(-2.5, Mode::Zero), -2);
    assert_eq!(cvt::<f32, i32>(2.1, Mode::Up), 3);
    assert_eq!(cvt::<f32, i32>(3e9, Mode::Zero), i32::MAX);
    assert_eq!(cvt::<f32, u32>(-1.0, Mode::Zero), 0);
    assert_eq!(cvt::<f32, i8>(-200.0, Mode::Zero), -128);
    assert_eq!(cvt::<f32, i32>(f32::NAN, Mode::Zero), 0);
    assert_eq!(cvt::<f32, i64>(f32::NAN, Mode::Zero), i64::MIN);
    assert_eq!(cvt::<f64, u32>(f64::NAN, Mode::Zero), 1 << 31);
    assert_eq!(cvt::<f64, u64>(1e30, Mode::Zero), u64::MAX);
    // An s8 result in a 16-bit register is sign-extended to 16 bits, and no further.
    let imm = Mode::Zero.number() | 16 << REGISTER_SHIFT;
    assert_eq!(convert::<ToInteger<f32, i8>>(-3.0, 0, imm), 0xfffd);
}

fn float_of(v: i128, mode: Mode) -> f64 {
    let nearest = v as f64;
    let difference = v - nearest as i128;
    match mode {
        Mode::Down if difference < 0 => nearest.next_down(),
        Mode::Up if difference > 0 => nearest.next_up(),
        Mode::Zero if v > 0 && difference < 0 => nearest.next_down(),
        Mode::Zero if v < 0 && difference > 0 => nearest.next_up(),
        _ => nearest,
    }
}

proptest! {
    #[test]
    fn integers_to_integers(x: u64, from in 0usize..8, to in 0usize..8, wider: bool, sat: bool) {
        const TYPES: [(u32, bool); 8] =
            [(8, false), (16, false), (32, false), (64, false), (8, true), (16, true), (32, true), (64, true)];
        let ((from, from_signed), (to, to_signed)) = (TYPES[from], TYPES[to]);
        let register = if wider { (2 * to).min(64) } else { to };
        let form = IntForm { from, from_signed, to, to_signed, register };
        prop_assert_eq!(IntForm::of(form.imm()).imm(), form.imm());
        // The value, by wide arithmetic.
        let modulus = |bits: u32| 1i128 << bits;
        let mut v = i128::from(x) % modulus(from);
        if from_signed && v >= modulus(from - 1) {
            v -= modulus(from);
        }
        if sat {
            let (low, high) = if to_signed { (-modulus(to - 1), modulus(to - 1) - 1) } else { (0, modulus(to) - 1) };
            v = v.clamp(low, high);
        }
        v = v.rem_euclid(modulus(to));
        if to_signed && v >= modulus(to - 1) {
            v -= modulus(to);
        }
        let want = v.rem_euclid(modulus(register)) as u64;
        prop_assert_eq!(if sat { form.saturate(x) } else { form.wrap(x) }, want);
    }

    #[test]
    fn integers_to_floats(x: i64, shift in 0u32..64) {
        let (x, u) = (x >> shift, x as u64 >> shift);
        for mode in MODES {
            let imm = mode.number();
            prop_assert_eq!(convert::<FromInteger<i64, f64>>(x, 0, imm), float_of(x.into(), mode));
            prop_assert_eq!(convert::<FromInteger<u64, f64>>(u, 0, imm), float_of(u.into(), mode));
            let single = f64::from(convert::<FromInteger<i64, f32>>(x, 0, imm));
            let (down, up) = (x as f32, x as f32);
            let down = if f64::from(down) as i128 > x.into() { down.next_down() } else { down };
            let up = if (f64::from(up) as i128) < x.into() { up.next_up() } else { up };
            let want = match mode {
                Mode::Nearest => x as f32,
                Mode::Down => down,
                Mode::Up => up,
                _ => if x > 0 { down } else { up },
            };
            prop_assert_eq!(single, f64::from(want), "{} {:?}", x, mode);
        }
    }
}

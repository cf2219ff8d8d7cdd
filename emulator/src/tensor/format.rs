//! Element formats of the matrix operands and their values.
//!
//! Every floating format has an exact f32 value, so the kernels work on f32 panels; integers work on i32 panels.

/// Element type of an A or B operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    F64,
    S8,
    U8,
    S4,
    U4,
    B1,
}

impl Format {
    /// From a modifier of the opcode.
    pub fn parse(s: &str) -> Option<Self> {
        Some(match s {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "tf32" => Self::Tf32,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "f64" => Self::F64,
            "s8" => Self::S8,
            "u8" => Self::U8,
            "s4" => Self::S4,
            "u4" => Self::U4,
            "b1" => Self::B1,
            _ => return None,
        })
    }

    pub fn bits(self) -> u32 {
        match self {
            Self::F64 => 64,
            Self::Tf32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 8,
            Self::S4 | Self::U4 => 4,
            Self::B1 => 1,
        }
    }

    pub fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8 | Self::S4 | Self::U4 | Self::B1)
    }

    /// Value of element `i` of a row of packed elements (floating formats up to 32 bits).
    #[inline(always)]
    pub fn float(self, row: &[u8], i: usize) -> f32 {
        match self {
            Self::F16 => f16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
            Self::Bf16 => bf16_to_f32(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
            Self::Tf32 => tf32_to_f32(u32::from_le_bytes([
                row[4 * i],
                row[4 * i + 1],
                row[4 * i + 2],
                row[4 * i + 3],
            ])),
            Self::E4m3 => e4m3_to_f32(row[i]),
            Self::E5m2 => e5m2_to_f32(row[i]),
            _ => unreachable!("not a floating format of the f32 panels"),
        }
    }

    /// Value of element `i` of a row of packed elements (integer formats; a bit is 0 or 1).
    #[inline(always)]
    pub fn integer(self, row: &[u8], i: usize) -> i32 {
        match self {
            Self::S8 => i32::from(row[i] as i8),
            Self::U8 => i32::from(row[i]),
            Self::S4 => i32::from(((row[i / 2] >> (4 * (i % 2))) << 4) as i8 >> 4),
            Self::U4 => i32::from((row[i / 2] >> (4 * (i % 2))) & 15),
            Self::B1 => i32::from((row[i / 8] >> (i % 8)) & 1),
            _ => unreachable!("not an integer format"),
        }
    }
}

#[inline(always)]
pub fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// The tensor core ignores the low 13 bits of a tf32 operand.
#[inline(always)]
pub fn tf32_to_f32(x: u32) -> f32 {
    f32::from_bits(x & 0xffff_e000)
}

#[inline(always)]
pub fn f16_to_f32(x: u16) -> f32 {
    let sign = u32::from(x & 0x8000) << 16;
    let rest = u32::from(x & 0x7fff);
    let bits = if rest >= 0x7c00 {
        // Infinity and NaN: exponent all ones, payload kept.
        0x7f80_0000 | (rest & 0x3ff) << 13
    } else if rest >= 0x400 {
        (rest << 13) + ((127 - 15) << 23)
    } else {
        // Zero and subnormals: exact in f32.
        (rest as f32 * 2f32.powi(-24)).to_bits()
    };
    f32::from_bits(sign | bits)
}

/// Round to nearest even; overflow gives infinity, NaN the canonical 0x7fff.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Below the smallest normal: one ulp of f32 at 0.5 is 2^-24, the unit of an f16 subnormal.
        let sum = f32::from_bits(magnitude) + 0.5;
        return sign | (sum.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = (magnitude >> 13) & 1;
    let rounded = magnitude + 0xfff + odd - ((127 - 15) << 23);
    sign | (rounded >> 13) as u16
}

#[inline(always)]
pub fn e4m3_to_f32(x: u8) -> f32 {
    E4M3[x as usize]
}

#[inline(always)]
pub fn e5m2_to_f32(x: u8) -> f32 {
    f16_to_f32(u16::from(x) << 8)
}

static E4M3: [f32; 256] = {
    let mut t = [0f32; 256];
    let mut i = 0;
    while i < 256 {
        let sign = (i as u32 & 0x80) << 24;
        let exponent = (i as u32 >> 3) & 15;
        let mantissa = i as u32 & 7;
        t[i] = if exponent == 15 && mantissa == 7 {
            f32::from_bits(0x7fff_ffff)
        } else if exponent == 0 {
            let m = mantissa as f32 / 512.0;
            if sign != 0 { -m } else { m }
        } else {
            f32::from_bits(sign | (exponent + 120) << 23 | mantissa << 20)
        };
        i += 1;
    }
    t
};

#[cfg(test)]
mod tests {
    use super::*;

    fn f16_reference(x: u16) -> f64 {
        let s = if x & 0x8000 != 0 { -1.0 } else { 1.0 };
        let e = i32::from((x >> 10) & 31);
        let m = f64::from(x & 0x3ff);
        match e {
            0 => s * m * 2f64.powi(-24),
            31 if m == 0.0 => s * f64::INFINITY,
            31 => f64::NAN,
            _ => s * (1024.0 + m) * 2f64.powi(e - 25),
        }
    }

    #[test]
    fn every_f16_has_its_value_and_comes_back() {
        for x in 0..=u16::MAX {
            let want = f16_reference(x);
            let got = f64::from(f16_to_f32(x));
            assert!(want == got || want.is_nan() && got.is_nan(), "{x:#x}");
            if want.is_nan() {
                assert_eq!(f32_to_f16(f16_to_f32(x)), 0x7fff);
            } else {
                assert_eq!(f32_to_f16(f16_to_f32(x)), x);
            }
        }
    }

    #[test]
    fn f16_rounds_to_nearest_even() {
        for x in 0..0x7bffu16 {
            let (a, b) = (f16_reference(x), f16_reference(x + 1));
            let middle = ((a + b) / 2.0) as f32;
            assert_eq!(f32_to_f16(middle), x + (x & 1), "{x:#x}");
            assert_eq!(f32_to_f16(middle.next_up()), x + 1);
            assert_eq!(f32_to_f16(middle.next_down()), x);
            assert_eq!(f32_to_f16(-middle), 0x8000 | (x + (x & 1)));
        }
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(65519.99), 0x7bff);
    }

    #[test]
    fn fp8_values() {
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0x01), 2f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x38), 1.0);
        assert_eq!(e4m3_to_f32(0xb9), -1.125);
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
        assert_eq!(e5m2_to_f32(0x7b), 57344.0);
        assert_eq!(e5m2_to_f32(0x01), 2f32.powi(-16));
        assert_eq!(e5m2_to_f32(0xfc), f32::NEG_INFINITY);
    }

    #[test]
    fn small_integers() {
        assert_eq!(Format::S4.integer(&[0x8f], 0), -1);
        assert_eq!(Format::S4.integer(&[0x8f], 1), -8);
        assert_eq!(Format::U4.integer(&[0x8f], 1), 8);
        assert_eq!(Format::S8.integer(&[0x80], 0), -128);
        assert_eq!(Format::B1.integer(&[0x02], 1), 1);
    }
}

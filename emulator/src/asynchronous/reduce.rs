//! Element operations of cp.reduce.async.bulk, its tensor form, and red.async.
//!
//! `inc` and `dec` wrap at the source operand as in `atom`. Half-precision sums are rounded once, to nearest even, and
//! keep subnormals (`.noftz`). Minimum and maximum prefer a number to a NaN. f32 sums keep subnormals.

use crate::program::lower::{bits, parse_type};
use crate::ptx::ast::Ty;
use crate::tensor_map::ElementType;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
}

impl Operation {
    pub(super) fn parse(s: &str) -> Option<Self> {
        use Operation::*;
        Some(match s {
            "add" => Add,
            "min" => Min,
            "max" => Max,
            "inc" => Inc,
            "dec" => Dec,
            "and" => And,
            "or" => Or,
            "xor" => Xor,
            _ => return None,
        })
    }

    /// Does the operation exist for the type? (The union over the bulk instructions.)
    pub(super) fn takes(self, ty: Ty) -> bool {
        use Operation::*;
        use Ty::*;
        match self {
            Add => matches!(ty, U32 | S32 | U64 | S64 | F16 | BF16 | F32 | F64),
            Min | Max => matches!(ty, U32 | S32 | U64 | S64 | F16 | BF16),
            Inc | Dec => ty == U32,
            And | Or | Xor => matches!(ty, B32 | B64 | U32 | S32 | U64 | S64),
        }
    }
}

/// An operation on elements of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reduction {
    pub operation: Operation,
    pub ty: Ty,
}

/// The type that a tensor map gives to a reduction.
pub(super) fn type_of(e: ElementType) -> Ty {
    match e {
        ElementType::U8 => Ty::U8,
        ElementType::U16 => Ty::U16,
        ElementType::U32 => Ty::U32,
        ElementType::S32 => Ty::S32,
        ElementType::U64 => Ty::U64,
        ElementType::S64 => Ty::S64,
        ElementType::F16 => Ty::F16,
        ElementType::Bf16 => Ty::BF16,
        ElementType::F64 => Ty::F64,
        ElementType::F32 | ElementType::F32Ftz | ElementType::Tf32 | ElementType::Tf32Ftz => {
            Ty::F32
        }
    }
}

/// A type modifier that a reduction may have.
pub(super) fn parse_element(s: &str) -> Option<Ty> {
    use Ty::*;
    parse_type(s).filter(|t| {
        matches!(
            t,
            B32 | B64 | U32 | U64 | S32 | S64 | F16 | BF16 | F32 | F64
        )
    })
}

fn f16_to_f32(h: u16) -> f32 {
    let (sign, exponent, mantissa) = (u32::from(h >> 15) << 31, h >> 10 & 31, u32::from(h & 1023));
    match exponent {
        0 => {
            let v = mantissa as f32 * f32::from_bits(0x3380_0000); // 2^-24
            f32::from_bits(v.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        e => f32::from_bits(sign | (u32::from(e) + 112) << 23 | mantissa << 13),
    }
}

fn f32_to_f16(x: f32) -> u16 {
    let b = x.to_bits();
    let sign = (b >> 16 & 0x8000) as u16;
    let magnitude = b & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal: adding 1/2 puts the rounding at the right bit.
        let v = f32::from_bits(magnitude) + 0.5;
        return sign | (v.to_bits() - 0x3f00_0000) as u16;
    }
    let odd = magnitude >> 13 & 1;
    sign | ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
}

fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

fn f32_to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7fff;
    }
    let b = x.to_bits();
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

/// The smaller (`less`) or larger of two halves, −0 below +0, a number before a NaN.
fn pick(a: u16, b: u16, less: bool, value: fn(u16) -> f32) -> u16 {
    let (x, y) = (value(a), value(b));
    if x.is_nan() && y.is_nan() {
        return 0x7fff;
    }
    if x.is_nan() {
        return b;
    }
    if y.is_nan() {
        return a;
    }
    let a_first = x < y || (x == y && a > b);
    if a_first == less { a } else { b }
}

macro_rules! integer {
    ($op:expr, $memory:expr, $value:expr, $t:ty) => {{
        let (m, v) = (
            <$t>::from_le_bytes($memory.try_into().expect("element size")),
            <$t>::from_le_bytes($value.try_into().expect("element size")),
        );
        let r = match $op {
            Operation::Add => m.wrapping_add(v),
            Operation::Min => m.min(v),
            Operation::Max => m.max(v),
            Operation::Inc => {
                if m >= v {
                    0
                } else {
                    m + 1
                }
            }
            Operation::Dec => {
                if m == 0 || m > v {
                    v
                } else {
                    m - 1
                }
            }
            Operation::And => m & v,
            Operation::Or => m | v,
            Operation::Xor => m ^ v,
        };
        $memory.copy_from_slice(&r.to_le_bytes());
    }};
}

macro_rules! float {
    ($memory:expr, $value:expr, $t:ty) => {{
        let (m, v) = (
            <$t>::from_le_bytes($memory.try_into().expect("element size")),
            <$t>::from_le_bytes($value.try_into().expect("element size")),
        );
        $memory.copy_from_slice(&(m + v).to_le_bytes());
    }};
}

fn half(op: Operation, memory: &mut [u8], value: &[u8], to: fn(u16) -> f32, from: fn(f32) -> u16) {
    let m = u16::from_le_bytes([memory[0], memory[1]]);
    let v = u16::from_le_bytes([value[0], value[1]]);
    let r = match op {
        Operation::Min => pick(m, v, true, to),
        Operation::Max => pick(m, v, false, to),
        _ => from(to(m) + to(v)),
    };
    memory.copy_from_slice(&r.to_le_bytes());
}

impl Reduction {
    pub(super) fn bytes(self) -> usize {
        bits(self.ty) as usize / 8
    }

    /// Applies `values` to `memory`, element by element. Both have the same length, a multiple of the element size.
    pub(super) fn apply(self, memory: &mut [u8], values: &[u8]) {
        let n = self.bytes();
        let op = self.operation;
        if op == Operation::Add && self.ty == Ty::F32 {
            for (m, v) in memory.chunks_exact_mut(4).zip(values.chunks_exact(4)) {
                float!(m, v, f32);
            }
            return;
        }
        for (m, v) in memory.chunks_exact_mut(n).zip(values.chunks_exact(n)) {
            match self.ty {
                Ty::S32 => integer!(op, m, v, i32),
                Ty::S64 => integer!(op, m, v, i64),
                Ty::F16 => half(op, m, v, f16_to_f32, f32_to_f16),
                Ty::BF16 => half(op, m, v, bf16_to_f32, f32_to_bf16),
                Ty::F64 => float!(m, v, f64),
                _ if n == 4 => integer!(op, m, v, u32),
                _ => integer!(op, m, v, u64),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(operation: Operation, ty: Ty, m: u64, v: u64) -> u64 {
        let r = Reduction { operation, ty };
        let n = r.bytes();
        let mut memory = m.to_le_bytes();
        r.apply(&mut memory[..n], &v.to_le_bytes()[..n]);
        u64::from_le_bytes(memory)
    }

    #[test]
    fn integers() {
        use Operation::*;
        assert_eq!(run(Add, Ty::U32, 0xffff_ffff, 2), 1);
        assert_eq!(run(Min, Ty::S32, 0xffff_ffff, 2), 0xffff_ffff);
        assert_eq!(run(Min, Ty::U32, 0xffff_ffff, 2), 2);
        assert_eq!(run(Max, Ty::S64, u64::MAX, 2), 2);
        assert_eq!(run(Inc, Ty::U32, 7, 7), 0);
        assert_eq!(run(Inc, Ty::U32, 6, 7), 7);
        assert_eq!(run(Dec, Ty::U32, 0, 7), 7);
        assert_eq!(run(Dec, Ty::U32, 9, 7), 7);
        assert_eq!(run(Dec, Ty::U32, 5, 7), 4);
        assert_eq!(run(Xor, Ty::B64, 0xff00, 0x0ff0), 0xf0f0);
        assert_eq!(run(And, Ty::B32, 0xff00, 0x0ff0), 0x0f00);
    }

    #[test]
    fn halves_round_once_and_keep_subnormals() {
        use Operation::*;
        // 1 + 2^-11 is a tie and goes to even; 1 + 3*2^-11 rounds up.
        assert_eq!(run(Add, Ty::F16, 0x3c00, 0x1000), 0x3c00);
        assert_eq!(run(Add, Ty::F16, 0x3c01, 0x1000), 0x3c02);
        assert_eq!(run(Add, Ty::F16, 0x0001, 0x0001), 0x0002);
        assert_eq!(run(Add, Ty::F16, 0x7bff, 0x7bff), 0x7c00);
        assert_eq!(run(Add, Ty::BF16, 0x3f80, 0x3b80), 0x3f80);
        assert_eq!(run(Add, Ty::BF16, 0x3f81, 0x3b80), 0x3f82);
        assert_eq!(run(Max, Ty::BF16, 0x7fff, 0x3f80), 0x3f80);
        assert_eq!(run(Min, Ty::F16, 0x0000, 0x8000), 0x8000);
        assert_eq!(run(Max, Ty::F16, 0x8000, 0x0000), 0x0000);
    }

    #[test]
    fn every_f16_survives_the_conversions() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            if x.is_nan() {
                assert!(f16_to_f32(f32_to_f16(x)).is_nan());
            } else {
                assert_eq!(f32_to_f16(x), h, "{h:#x}");
            }
        }
    }
}

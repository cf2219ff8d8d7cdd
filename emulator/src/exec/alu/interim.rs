//! The few instructions that the first kernels need.

use crate::exec::memory::access::each;
use crate::exec::simd::{Body, handler};
use crate::exec::{Cx, Flow, Handler};
use crate::program::lower::{LowerCx, Result, bits, parse_type};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

macro_rules! lanes32 {
    ($($name:ident: |$a:ident, $b:ident, $c:ident| $e:expr;)*) => {$(
        struct $name;
        impl Body for $name {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
                // SAFETY: rows of the program.
                unsafe {
                    let row = |r: u32| if r == crate::program::NO_ROW { [0; 32] } else { *cx.row(r) };
                    let (a, b, c) = (row(op.src[0]), row(op.src[1]), row(op.src[2]));
                    let d = cx.row_mut(op.dst);
                    each(cx.mask, |l| {
                        let ($a, $b, $c) = (a[l], b[l], c[l]);
                        let _ = ($b, $c);
                        d[l] = $e;
                    });
                }
                Flow::Next
            }
        }
    )*};
}
lanes32! {
    Move: |a, b, c| a;
    Add: |a, b, c| a.wrapping_add(b);
    Sub: |a, b, c| a.wrapping_sub(b);
    Mul: |a, b, c| a.wrapping_mul(b);
    Mad: |a, b, c| a.wrapping_mul(b).wrapping_add(c);
    And: |a, b, c| a & b;
    Or: |a, b, c| a | b;
    Xor: |a, b, c| a ^ b;
    Shl: |a, b, c| if b > 31 { 0 } else { a << b };
    ShrU: |a, b, c| if b > 31 { 0 } else { a >> b };
    ShrS: |a, b, c| (a as i32 >> b.min(31)) as u32;
    AddF: |a, b, c| (f32::from_bits(a) + f32::from_bits(b)).to_bits();
    MulF: |a, b, c| (f32::from_bits(a) * f32::from_bits(b)).to_bits();
    FmaF: |a, b, c| f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c)).to_bits();
}

/// 64-bit results; sources of 32 bits are widened.
macro_rules! lanes64 {
    ($($name:ident: $t:ty, |$a:ident, $b:ident, $c:ident| $e:expr;)*) => {$(
        struct $name;
        impl Body for $name {
            #[inline(always)]
            unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
                // SAFETY: rows of the program.
                unsafe {
                    let row = |r: u32| -> [$t; 32] {
                        if r == crate::program::NO_ROW { [0; 32] } else { *cx.regs.add(r as usize).cast() }
                    };
                    let (a, b) = (row(op.src[0]), row(op.src[1]));
                    let c = if op.src[2] == crate::program::NO_ROW { [0u64; 32] } else { *cx.row64(op.src[2]) };
                    let d = cx.row64_mut(op.dst);
                    each(cx.mask, |l| {
                        let ($a, $b, $c) = (a[l], b[l], c[l]);
                        let _ = ($b, $c);
                        d[l] = $e;
                    });
                }
                Flow::Next
            }
        }
    )*};
}
lanes64! {
    Move64: u64, |a, b, c| a;
    Add64: u64, |a, b, c| a.wrapping_add(b);
    WideU: u32, |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c);
    WideS: u32, |a, b, c| ((a as i32 as i64 * b as i32 as i64) as u64).wrapping_add(c);
    ToS64: u32, |a, b, c| a as i32 as i64 as u64;
    ToU64: u32, |a, b, c| u64::from(a);
}

struct ToU32;
impl Body for ToU32 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program.
        unsafe {
            let a = *cx.row64(op.src[0]);
            let d = cx.row_mut(op.dst);
            each(cx.mask, |l| d[l] = a[l] as u32);
        }
        Flow::Next
    }
}

struct Compare;
impl Body for Compare {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows and slots of the program.
        unsafe {
            let (a, b) = (cx.row(op.src[0]), cx.row(op.src[1]));
            let bias = if op.flags & 8 != 0 { 1 << 31 } else { 0 };
            let mut m = 0;
            for l in 0..32 {
                let (a, b) = (a[l] ^ bias, b[l] ^ bias);
                let r = match op.flags & 7 {
                    0 => a == b,
                    1 => a != b,
                    2 => a < b,
                    3 => a <= b,
                    4 => a > b,
                    _ => a >= b,
                };
                m |= u32::from(r) << l;
            }
            cx.set_pred(op.pdst, m);
        }
        Flow::Next
    }
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let m: Vec<&str> = i.op.iter().map(|m| &**m).collect();
    let Some(ty) = m.last().and_then(|t| parse_type(t)) else {
        return Ok(false);
    };
    let has = |s| m.contains(&s);
    let wide = bits(ty) == 64;
    let signed = matches!(ty, Ty::S32 | Ty::S64 | Ty::S16);
    let float = ty == Ty::F32;
    if m[0] == "setp" && bits(ty) == 32 && !float {
        let code = ["eq", "ne", "lt", "le", "gt", "ge"]
            .iter()
            .position(|c| *c == m[1]);
        let (Some(code), [d, a, b]) = (code, &i.operands[..]) else {
            return Ok(false);
        };
        let mut op = LowerCx::new_op(handler::<Compare>(), Class::Predicate);
        op.flags = code as u8 | u8::from(signed) << 3;
        op.src[0] = cx.src(a, ty)?;
        op.src[1] = cx.src(b, ty)?;
        op.pdst = cx.pred_dst(d)?;
        cx.emit(i, op)?;
        return Ok(true);
    }
    if bits(ty) < 32 || matches!(i.operands.first(), Some(Operand::Vector(_))) {
        return Ok(false);
    }
    let widening = has("wide");
    let run: Handler = match (m[0], wide, float) {
        ("mov", false, _) => handler::<Move>(),
        ("mov", true, _) => handler::<Move64>(),
        ("add", false, false) => handler::<Add>(),
        ("add", false, true) => handler::<AddF>(),
        ("add", true, false) if ty != Ty::F64 => handler::<Add64>(),
        ("sub", false, false) => handler::<Sub>(),
        ("mul", false, true) => handler::<MulF>(),
        ("fma", false, true) => handler::<FmaF>(),
        ("mul", false, false) if has("lo") => handler::<Mul>(),
        ("mad", false, false) if has("lo") => handler::<Mad>(),
        ("mul" | "mad", false, false) if widening && signed => handler::<WideS>(),
        ("mul" | "mad", false, false) if widening => handler::<WideU>(),
        ("and", false, false) => handler::<And>(),
        ("or", false, false) => handler::<Or>(),
        ("xor", false, false) => handler::<Xor>(),
        ("shl", false, false) => handler::<Shl>(),
        ("shr", false, false) if signed => handler::<ShrS>(),
        ("shr", false, false) => handler::<ShrU>(),
        ("cvt", false, false) if m[1] == "s64" => handler::<ToS64>(),
        ("cvt", false, false) if m[1] == "u64" => handler::<ToU64>(),
        ("cvt", true, false) if m[1] == "u32" => handler::<ToU32>(),
        _ => return Ok(false),
    };
    let mut op = LowerCx::new_op(run, if float { Class::Float } else { Class::Integer });
    for (n, o) in i.operands[1..].iter().take(3).enumerate() {
        let t = match () {
            () if widening && n == 2 => Ty::B64,
            () if m[0] == "shl" || m[0] == "shr" => Ty::U32,
            () => ty,
        };
        op.src[n] = cx.src(o, t)?;
    }
    let to = match m[0] {
        "cvt" => parse_type(m[1]).unwrap_or(ty),
        _ if widening => Ty::B64,
        _ => ty,
    };
    op.dst = cx.dst(&i.operands[0], to)?;
    cx.emit(i, op)?;
    Ok(true)
}

//! `mov`: between registers, from constants, special registers and addresses, and the packing and unpacking of vectors
//! (`mov.b64 {lo, hi}, x`).
//!
//! The first element of a vector is the least significant.

use super::lane::{Elem, emit, emit_with, lane, lane_handler, load, store};
use super::modifiers::Modifiers;
use crate::exec::{Cx, Flow, LANES};
use crate::program::lower::{LowerCx, Result, bits};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

lane!(Copy<T: Elem>(a: T) -> T { a });
lane!(Low32(a: u64) -> u32 { a as u32 });
lane!(Join16(low: u16, high: u16) -> u32 { u32::from(low) | u32::from(high) << 16 });
lane!(Join8(low: u8, high: u8) -> u16 { u16::from(low) | u16::from(high) << 8 });
lane!(Join32(low: u32, high: u32) -> u64 { u64::from(low) | u64::from(high) << 32 });
lane!(Join64(low: u64, high: u64) -> u128 { u128::from(low) | u128::from(high) << 64 });
lane!(Piece8(a: u32; shift) -> u8 { (a >> shift) as u8 });
lane!(Piece16(a: u32; shift) -> u16 { (a >> shift) as u16 });
lane!(Piece16Of64(a: u64; shift) -> u16 { (a >> shift) as u16 });
lane!(Piece32(a: u64; shift) -> u32 { (a >> shift) as u32 });
lane!(Piece32Of128(a: u128; shift) -> u32 { (a >> shift) as u32 });
lane!(Piece64(a: u128; shift) -> u64 { (a >> shift) as u64 });

/// The two halves of a wide value at once, the commonest unpacking.
#[inline(always)]
unsafe fn run_split<W: Whole>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the source was resolved as `W`, the destinations as its halves.
    unsafe {
        let a = load::<W>(cx, op.src[0]);
        store(cx, op.dst, |i| a[i].low());
        // Rows of different widths never overlap; loading again keeps the copy out of memory.
        let a = if W::WIDE { load::<W>(cx, op.src[0]) } else { a };
        store(cx, op.dst2, |i| a[i].high());
    }
    Flow::Next
}

pub(super) trait Whole: std::marker::Copy {
    fn low(self) -> u32;
    fn high(self) -> u32;
    /// It takes more rows than its halves.
    const WIDE: bool;
}
impl Whole for u32 {
    const WIDE: bool = false;
    #[inline(always)]
    fn low(self) -> u32 {
        self & 0xffff
    }
    #[inline(always)]
    fn high(self) -> u32 {
        self >> 16
    }
}
impl Whole for u64 {
    const WIDE: bool = true;
    #[inline(always)]
    fn low(self) -> u32 {
        self as u32
    }
    #[inline(always)]
    fn high(self) -> u32 {
        (self >> 32) as u32
    }
}

crate::simd_handler!(split_handler => run_split<W: Whole>);

/// Four elements into one value.
#[inline(always)]
unsafe fn run_join4<J: Join4>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the sources are rows of up to 32 bits, the destination is a row of `J`.
    unsafe {
        let s: [[u32; LANES]; 4] = [
            load(cx, op.src[0]),
            load(cx, op.src[1]),
            load(cx, op.src[2]),
            load(cx, op.src[3]),
        ];
        store(cx, op.dst, |i| {
            J::join([s[0][i], s[1][i], s[2][i], s[3][i]])
        });
    }
    Flow::Next
}

pub(super) trait Join4: std::marker::Copy {
    fn join(parts: [u32; 4]) -> Self;
}
impl Join4 for u32 {
    #[inline(always)]
    fn join(p: [u32; 4]) -> u32 {
        p[0] & 255 | (p[1] & 255) << 8 | (p[2] & 255) << 16 | p[3] << 24
    }
}
impl Join4 for u64 {
    #[inline(always)]
    fn join(p: [u32; 4]) -> u64 {
        let p = p.map(|v| u64::from(v & 0xffff));
        p[0] | p[1] << 16 | p[2] << 32 | p[3] << 48
    }
}
impl Join4 for u128 {
    #[inline(always)]
    fn join(p: [u32; 4]) -> u128 {
        let p = p.map(u128::from);
        p[0] | p[1] << 32 | p[2] << 64 | p[3] << 96
    }
}

crate::simd_handler!(join4_handler => run_join4<J: Join4>);

/// The type of one element of a vector that fills `width` bits.
fn element(cx: &LowerCx, i: &Instr, width: u32, count: usize) -> Result<Ty> {
    match (width, count) {
        (16, 2) | (32, 4) => Ok(Ty::B8),
        (32, 2) | (64, 4) => Ok(Ty::B16),
        (64, 2) | (128, 4) => Ok(Ty::B32),
        (128, 2) => Ok(Ty::B64),
        _ => cx.unsupported(i, &format!("{count} elements do not make {width} bits")),
    }
}

fn pack(cx: &mut LowerCx, i: &Instr, width: u32, d: &Operand, parts: &[Operand]) -> Result<bool> {
    let ty = element(cx, i, width, parts.len())?;
    if let [low, high] = parts {
        let operands = [d.clone(), low.clone(), high.clone()];
        return match ty {
            Ty::B8 => emit_with::<Join8>(cx, i, Class::Move, 0, &operands),
            Ty::B16 => emit_with::<Join16>(cx, i, Class::Move, 0, &operands),
            Ty::B32 => emit_with::<Join32>(cx, i, Class::Move, 0, &operands),
            _ => emit_with::<Join64>(cx, i, Class::Move, 0, &operands),
        };
    }
    let (handler, whole) = match width {
        32 => (join4_handler::<u32>(), Ty::B32),
        64 => (join4_handler::<u64>(), Ty::B64),
        _ => (join4_handler::<u128>(), Ty::B128),
    };
    let mut op = LowerCx::new_op(handler, Class::Move);
    for (n, part) in parts.iter().enumerate() {
        op.src[n] = cx.src(part, ty)?;
    }
    op.dst = cx.dst(d, whole)?;
    cx.emit(i, op)?;
    Ok(true)
}

fn unpack(cx: &mut LowerCx, i: &Instr, width: u32, parts: &[Operand], a: &Operand) -> Result<bool> {
    let ty = element(cx, i, width, parts.len())?;
    if let ([low, high], 32 | 64) = (parts, width) {
        let (handler, whole) = if width == 32 {
            (split_handler::<u32>(), Ty::B32)
        } else {
            (split_handler::<u64>(), Ty::B64)
        };
        let mut op = LowerCx::new_op(handler, Class::Move);
        op.src[0] = cx.src(a, whole)?;
        op.dst = cx.dst(low, ty)?;
        op.dst2 = cx.dst(high, ty)?;
        cx.emit(i, op)?;
        return Ok(true);
    }
    let step = bits(ty);
    for (n, part) in parts.iter().enumerate() {
        if *part == Operand::Sink {
            continue;
        }
        let (operands, shift) = ([part.clone(), a.clone()], n as u32 * step);
        match (width, step) {
            (_, 8) => emit_with::<Piece8>(cx, i, Class::Move, shift, &operands)?,
            (32, 16) => emit_with::<Piece16>(cx, i, Class::Move, shift, &operands)?,
            (_, 16) => emit_with::<Piece16Of64>(cx, i, Class::Move, shift, &operands)?,
            (64, _) => emit_with::<Piece32>(cx, i, Class::Move, shift, &operands)?,
            (_, 32) => emit_with::<Piece32Of128>(cx, i, Class::Move, shift, &operands)?,
            _ => emit_with::<Piece64>(cx, i, Class::Move, shift, &operands)?,
        };
    }
    Ok(true)
}

/// Special registers whose value changes while a warp runs: reading one is an operation of its own.
fn is_volatile(name: &str) -> bool {
    ["%clock", "%globaltimer"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    if &*i.op[0] != "mov" {
        return Ok(false);
    }
    let mut m = Modifiers::new(i);
    let vector = m.take("v4");
    let ty = m.ty(cx)?;
    m.done(cx)?;
    match &i.operands[..] {
        [Operand::Vector(parts), Operand::Special(name)] if vector && parts.len() == 4 => {
            // Coordinates; the fourth is 0.
            for (part, letter) in parts.iter().zip(["x", "y", "z", "w"]) {
                if *part != Operand::Sink {
                    let component = Operand::Special(format!("{name}.{letter}").into());
                    let operands = [part.clone(), component];
                    emit_with::<Copy<u32>>(cx, i, Class::Move, 0, &operands)?;
                }
            }
            Ok(true)
        }
        _ if vector => cx.unsupported(i, "`.v4` belongs to special registers"),
        // %gridid had 32 bits once and may still be read so.
        [d, Operand::Special(name)] if &**name == "%gridid" && bits(ty) == 32 => {
            let operands = [d.clone(), Operand::Special(name.clone())];
            emit_with::<Low32>(cx, i, Class::Move, 0, &operands)
        }
        [_, Operand::Special(name)] if is_volatile(name) => Ok(false),
        [Operand::Vector(parts), a] => unpack(cx, i, bits(ty), parts, a),
        [d, Operand::Vector(parts)] => pack(cx, i, bits(ty), d, parts),
        [d, a] => {
            let handler = match bits(ty) {
                16 | 32 => lane_handler::<Copy<u32>>(),
                64 => lane_handler::<Copy<u64>>(),
                128 => return emit::<Copy<u128>>(cx, i, Class::Move, 0),
                _ => return cx.unsupported(i, "not a type of this instruction"),
            };
            let mut op = LowerCx::new_op(handler, Class::Move);
            op.src[0] = cx.src(a, ty)?;
            op.dst = cx.dst(d, ty)?;
            cx.emit(i, op)?;
            Ok(true)
        }
        _ => cx.unsupported(i, "2 operands are expected"),
    }
}

//! alloca, stacksave and stackrestore: the stack of variable size in a thread's local memory.
//!
//! It takes the last [`STACK`] bytes of the local memory of a program that uses it and grows downwards; each lane has a pointer of its
//! own ([`Warp::stack`](super::Warp)). A return gives back what the function has taken. (The stack of recursive calls is another one, `call`.)

use super::memory::lanes;
use super::{Cx, Flow};
use crate::device::Fault;
use crate::program::lower::{LowerCx, Result, bits, parse_type};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Ty};

/// Bytes per thread.
pub const STACK: u32 = 16 << 10;

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let name = i.op[0].as_ref();
    if !matches!(name, "alloca" | "stacksave" | "stackrestore") {
        return Ok(false);
    }
    let ty = match i.op.get(1).and_then(|t| parse_type(t)) {
        Some(ty @ (Ty::U32 | Ty::U64)) if i.op.len() == 2 => ty,
        _ => return cx.unsupported(i, "the type is .u32 or .u64"),
    };
    cx.has_stack = true;
    let mut op = LowerCx::new_op(save, Class::Other);
    op.flags = u8::from(bits(ty) == 64);
    match (name, &i.operands[..]) {
        ("alloca", [pointer, size, align @ ..]) => {
            op.run = allocate;
            op.imm = match align {
                [] => 8,
                [a] => match cx.constant(a) {
                    Some(a) if (1..=1 << 23).contains(&a) && a.count_ones() == 1 => a.max(8),
                    _ => return cx.unsupported(i, "the alignment is a power of 2 up to 2^23"),
                },
                _ => return cx.unsupported(i, "too many operands"),
            };
            op.src[0] = cx.src(size, ty)?;
            op.dst = cx.dst(pointer, ty)?;
        }
        ("stacksave", [to]) => op.dst = cx.dst(to, ty)?,
        ("stackrestore", [from]) => {
            op.run = restore;
            op.src[0] = cx.src(from, ty)?;
        }
        _ => return cx.unsupported(i, "wrong number of operands"),
    }
    cx.emit(i, op)?;
    Ok(true)
}

/// The value of a lane of a row of 32 bits, or of two of 64.
unsafe fn value(cx: &Cx, op: &Op, lane: usize) -> u64 {
    // SAFETY: a row of the executing operation.
    unsafe {
        match op.flags {
            0 => u64::from(cx.row(op.src[0])[lane]),
            _ => cx.row64(op.src[0])[lane],
        }
    }
}

/// Writes the stack pointers of the executing lanes.
unsafe fn save(cx: &mut Cx, op: &Op) -> Flow {
    let stack = cx.warp().stack;
    for lane in lanes(cx.mask) {
        // SAFETY: a row of the executing operation.
        unsafe {
            match op.flags {
                0 => cx.row_mut(op.dst)[lane] = stack[lane],
                _ => cx.row64_mut(op.dst)[lane] = u64::from(stack[lane]),
            }
        }
    }
    Flow::Next
}

unsafe fn allocate(cx: &mut Cx, op: &Op) -> Flow {
    let bottom = u64::from(cx.launch.program.local_bytes - STACK);
    for lane in lanes(cx.mask) {
        // SAFETY: a row of the executing operation.
        let bytes = unsafe { value(cx, op, lane) };
        let top = u64::from(cx.warp().stack[lane]);
        let start = top.saturating_sub(bytes) & !(op.imm as u64 - 1);
        if bytes > top || start < bottom {
            let at = cx.place();
            return cx.fail(Fault::HardwareStack(format!(
                "alloca of {bytes} bytes by lane {lane} exceeds the stack of {STACK} bytes; {at}"
            )));
        }
        cx.warp().stack[lane] = start as u32;
    }
    // SAFETY: as above.
    unsafe { save(cx, op) }
}

unsafe fn restore(cx: &mut Cx, op: &Op) -> Flow {
    let bottom = u64::from(cx.launch.program.local_bytes - STACK);
    for lane in lanes(cx.mask) {
        // SAFETY: a row of the executing operation.
        let to = unsafe { value(cx, op, lane) };
        if !(bottom..=bottom + u64::from(STACK)).contains(&to) {
            let at = cx.place();
            return cx.fail(Fault::HardwareStack(format!(
                "stackrestore of {to:#x} by lane {lane}: no pointer into its stack; {at}"
            )));
        }
        cx.warp().stack[lane] = to as u32;
    }
    Flow::Next
}

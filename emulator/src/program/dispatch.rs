//! Which family of instructions takes an opcode.

use super::lower::{LowerCx, Result};
use crate::ptx::ast::Instr;

/// Asks each family in turn. Control comes first: it takes `mov` from a clock.
pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    cx.line = i.line;
    cx.current = Default::default();
    let taken = crate::exec::control::lower(cx, i)?
        || crate::exec::memory::lower(cx, i)?
        || crate::exec::warp::lower(cx, i)?
        || crate::exec::barrier::lower(cx, i)?
        || crate::exec::lower_stack(cx, i)?
        || crate::tensor::lower(cx, i)?
        || crate::asynchronous::lower(cx, i)?
        || crate::alu::lower(cx, i)?;
    if taken {
        Ok(())
    } else {
        cx.error(format!("unknown instruction {}", i.op.join(".")))
    }
}

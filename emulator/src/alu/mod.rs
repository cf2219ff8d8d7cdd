//! Scalar arithmetic: everything that computes a register from registers, lane by lane.
//!
//! [`lower`] takes an instruction, or says that it belongs to another family. Its modifiers are all accounted for
//! ([`modifiers`]): a form that is not implemented is an error when the module is loaded, never an approximation. What is
//! emitted is one operation (a few instructions take two), whose handler is a loop over 32 lanes, compiled for the host's
//! vector instructions ([`crate::simd`]).
//!
//! | file | instructions |
//! |---|---|
//! | `integer.rs` | add, sub, mul, mad, div, rem, abs, neg, min, max, sad, 24-bit, dot products |
//! | `carry.rs` | .cc, addc, subc, madc |
//! | `logic.rs` | and, or, xor, not, lop3, shifts, prmt, bit fields, counts |
//! | `float.rs` | f32 and f64 arithmetic, rcp, sqrt, rsqrt, copysign |
//! | `half.rs` | f16 and bf16 arithmetic |
//! | `mufu.rs` | ex2, lg2, sin, cos, tanh |
//! | `compare.rs` | setp, set, selp, slct, testp, logic on predicates |
//! | `convert.rs` | cvt |
//! | `mov.rs` | mov |
//! | `video.rs` | vadd, vmad, vset, …, and their SIMD forms |
//!
//! **To add an instruction**, write its function of one lane with `lane!`, name the forms it has in the file's `lower`, and
//! give it a row in `tests.rs`, which runs PTX text through parser, lowering and every vector level.

mod carry;
mod compare;
mod convert;
mod float;
mod half;
mod integer;
mod lane;
mod logic;
mod modifiers;
mod mov;
mod mufu;
pub(crate) mod rounding;
#[cfg(test)]
mod tests;
mod video;

use crate::program::lower::{LowerCx, Result, parse_type};
use crate::ptx::ast::{Instr, Ty};

/// Lowers a scalar instruction; `Ok(false)` where it is none.
pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    if carry::is_mine(i) {
        return carry::lower(cx, i);
    }
    match &*i.op[0] {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "neg" | "abs" | "min" | "max" => {
            by_type(cx, i)
        }
        _ => Ok(compare::lower(cx, i)?
            || mov::lower(cx, i)?
            || logic::lower(cx, i)?
            || integer::lower(cx, i)?
            || float::lower(cx, i)?
            || mufu::lower(cx, i)?
            || convert::lower(cx, i)?
            || video::lower(cx, i)?),
    }
}

/// Opcodes that exist for integers and floats.
fn by_type(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let types: Vec<Ty> = i.op.iter().filter_map(|s| parse_type(s)).collect();
    let [ty] = types[..] else {
        return cx.unsupported(i, "exactly one type is expected");
    };
    let taken = match ty {
        Ty::F32 | Ty::F64 => float::lower_shared(cx, i, ty)?,
        Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2 => half::lower_shared(cx, i, ty)?,
        _ => integer::lower_shared(cx, i, ty)?,
    };
    if taken {
        Ok(true)
    } else {
        cx.unsupported(i, "not a type of this instruction")
    }
}

//! wgmma: what an instruction says (lowering), and the handlers of its five forms.
//!
//! ```text
//! wgmma.mma_async.sync.aligned.m64nNkK.dtype.atype.btype d, a|a-desc, b-desc, scale-d, imm-scale-a, imm-scale-b[, imm-trans-a][, imm-trans-b];
//! wgmma.mma_async.sync.aligned.m64nNk32[.satfinite].s32.atype.btype d, a|a-desc, b-desc, scale-d;
//! wgmma.mma_async.sync.aligned.m64nNk256.s32.b1.b1.and.popc d, a|a-desc, b-desc, scale-d;
//! wgmma.mma_async.sp.sync.aligned.m64nNkK.types d, a|a-desc, b-desc, metadata, selector, scale-d, …as above;
//! wgmma.fence.sync.aligned; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned N;
//! ```
//!
//! The handlers only put entries into the warpgroup's queue ([`super::queue`]) and read what must be read at issue:
//! descriptors, scale-d and the A fragment. (Modifying the fragment before the wait is undefined; the checker reports
//! it, so that reading it early loses nothing.)
//!
//! The A of `.sp` is compressed ([`super::sparse`]): K is twice that of the dense instruction.

use super::format::Format;
use super::{converged, queue, sparse};
use crate::exec::{Cx, Flow};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, InFlight, Op, Pred};
use crate::ptx::ast::{Instr, Operand, Ty};

/// Type of D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    F32,
    F16,
    S32,
}

/// An instruction's constant part: the extension record of its operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mma {
    pub n: usize,
    /// Elements along K.
    pub depth: usize,
    pub a: Format,
    pub b: Format,
    pub d: Output,
    pub a_in_registers: bool,
    pub a_mn_major: bool,
    pub b_mn_major: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    pub saturate: bool,
    /// scale-d is the literal 0: D is only written.
    pub overwrites: bool,
    /// A is compressed: the sparsity selector.
    pub sparse: Option<usize>,
}

impl Mma {
    /// Rows of D per warp.
    pub fn planes(&self) -> usize {
        match self.d {
            Output::F16 => self.n / 4,
            _ => self.n / 2,
        }
    }
}

/// `m64n128k16` -> (128, 16).
fn shape(s: &str) -> Option<(usize, usize)> {
    let (n, k) = s.strip_prefix("m64n")?.split_once('k')?;
    Some((n.parse().ok()?, k.parse().ok()?))
}

/// The N that exist for an output/operand kind.
fn valid_n(n: usize, a: Format) -> bool {
    let any = n.is_multiple_of(8) && (8..=256).contains(&n);
    if a.is_integer() {
        // 8, 16, 24, 32, then steps of 16.
        any && (n <= 24 || n.is_multiple_of(16))
    } else {
        any
    }
}

fn valid_types(d: Output, a: Format, b: Format) -> bool {
    use Format::*;
    match (a, b) {
        (F16, F16) => d != Output::S32,
        (Bf16, Bf16) | (Tf32, Tf32) => d == Output::F32,
        (E4m3 | E5m2, E4m3 | E5m2) => d != Output::S32,
        (S8 | U8, S8 | U8) | (B1, B1) => d == Output::S32,
        _ => false,
    }
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let parts: Vec<&str> = i.op.iter().map(|s| &**s).collect();
    if parts.first() != Some(&"wgmma") {
        return Ok(false);
    }
    match parts[1..] {
        ["fence", "sync", "aligned"] => {
            expect_operands(cx, i, 0)?;
            cx.emit(i, LowerCx::new_op(fence, Class::Fence))?;
        }
        ["commit_group", "sync", "aligned"] => {
            expect_operands(cx, i, 0)?;
            cx.current.in_flight = InFlight::Commit;
            cx.emit(i, LowerCx::new_op(commit, Class::Tensor))?;
        }
        ["wait_group", "sync", "aligned"] => {
            expect_operands(cx, i, 1)?;
            let n = cx.constant(&i.operands[0]).map(u32::try_from);
            let Some(Ok(n)) = n else {
                return cx.unsupported(i, "N must be an integer constant that is not negative");
            };
            cx.current.in_flight = InFlight::Wait(n);
            let mut op = LowerCx::new_op(wait, Class::Tensor);
            op.imm = i64::from(n);
            cx.emit(i, op)?;
        }
        ["mma_async", "sync", "aligned", ref rest @ ..] => mma(cx, i, rest, false)?,
        ["mma_async", "sp", "sync", "aligned", ref rest @ ..] => mma(cx, i, rest, true)?,
        _ => return cx.unsupported(i, "unknown form of wgmma"),
    }
    Ok(true)
}

fn expect_operands(cx: &LowerCx, i: &Instr, n: usize) -> Result<()> {
    if i.operands.len() == n {
        Ok(())
    } else {
        cx.unsupported(
            i,
            &format!("{n} operands expected, {} found", i.operands.len()),
        )
    }
}

/// Takes the next operand as a constant out of `allowed`.
fn constant<'o>(
    cx: &LowerCx,
    i: &Instr,
    rest: &mut std::slice::Iter<'o, Operand>,
    what: &str,
    allowed: [i64; 2],
) -> Result<i64> {
    match rest.next().and_then(|o| cx.constant(o)) {
        Some(v) if allowed.contains(&v) => Ok(v),
        Some(v) => cx.unsupported(
            i,
            &format!("{what} must be {} or {}, not {v}", allowed[0], allowed[1]),
        ),
        None => cx.unsupported(i, &format!("{what} must be an integer constant")),
    }
}

fn mma(cx: &mut LowerCx, i: &Instr, rest: &[&str], compressed: bool) -> Result<()> {
    let Some((n, k)) = rest.first().and_then(|s| shape(s)) else {
        return cx.unsupported(i, "shape m64nNkK expected");
    };
    let mut types = rest[1..].to_vec();
    let mut saturate = false;
    types.retain(|t| {
        saturate |= *t == "satfinite";
        *t != "satfinite"
    });
    let (d, a, b) = match types[..] {
        ["s32", "b1", "b1", "and", "popc"] => (Output::S32, Format::B1, Format::B1),
        [d, a, b] => {
            let d = match d {
                "f32" => Output::F32,
                "f16" => Output::F16,
                "s32" => Output::S32,
                _ => return cx.unsupported(i, "type of D must be f32, f16 or s32"),
            };
            match (Format::parse(a), Format::parse(b)) {
                (Some(a), Some(b)) if b != Format::B1 => (d, a, b),
                _ => return cx.unsupported(i, "unknown operand type"),
            }
        }
        _ => return cx.unsupported(i, "types of D, A and B expected"),
    };
    if !valid_types(d, a, b) || compressed && a == Format::B1 {
        return cx.unsupported(i, "this combination of types does not exist");
    }
    if saturate && (d != Output::S32 || a == Format::B1) {
        return cx.unsupported(i, "satfinite is for 8-bit integers");
    }
    let depth = if compressed { 512 } else { 256 } / a.bits() as usize;
    if k != depth {
        return cx.unsupported(i, &format!("K must be {depth} for these types"));
    }
    if !valid_n(n, a) {
        return cx.unsupported(i, &format!("N = {n} does not exist for these types"));
    }

    let mut operands = i.operands.iter();
    let (Some(d_operand), Some(a_operand), Some(b_operand)) =
        (operands.next(), operands.next(), operands.next())
    else {
        return cx.unsupported(i, "operands d, a, b expected");
    };
    let a_in_registers = matches!(a_operand, Operand::Vector(_));
    let metadata = if compressed { operands.next() } else { None };
    let selector = match operands.clone().next().and_then(|o| cx.constant(o)) {
        _ if !compressed => None,
        Some(s) if (0..sparse::selectors(a, k)).contains(&s) => {
            operands.next();
            Some(s as usize)
        }
        _ => return cx.unsupported(i, "no sparsity selector of this shape"),
    };
    let Some(scale_d) = operands.next() else {
        return cx.unsupported(i, "scale-d expected");
    };
    let mut info = Mma {
        n,
        depth,
        a,
        b,
        d,
        a_in_registers,
        a_mn_major: false,
        b_mn_major: false,
        negate_a: false,
        negate_b: false,
        saturate,
        overwrites: cx.constant(scale_d) == Some(0),
        sparse: selector,
    };
    if !a.is_integer() {
        info.negate_a = constant(cx, i, &mut operands, "imm-scale-a", [1, -1])? == -1;
        info.negate_b = constant(cx, i, &mut operands, "imm-scale-b", [1, -1])? == -1;
        if a.bits() == 16 {
            if !a_in_registers {
                info.a_mn_major = constant(cx, i, &mut operands, "imm-trans-a", [0, 1])? == 1;
            }
            info.b_mn_major = constant(cx, i, &mut operands, "imm-trans-b", [0, 1])? == 1;
        }
    }
    if operands.next().is_some() {
        return cx.unsupported(i, "too many operands");
    }

    let psrc = match cx.constant(scale_d) {
        Some(0) => Pred::FALSE,
        Some(1) => Pred::TRUE,
        Some(_) => return cx.unsupported(i, "scale-d must be 0, 1 or a predicate"),
        None => cx.pred_src(scale_d)?,
    };
    let Operand::Vector(d_registers) = d_operand else {
        return cx.unsupported(i, "D must be a list of registers");
    };
    if d_registers.len() != info.planes() {
        let want = info.planes();
        return cx.unsupported(
            i,
            &format!("D needs {want} registers, has {}", d_registers.len()),
        );
    }
    let d_type = if d == Output::F32 { Ty::F32 } else { Ty::B32 };
    let mut rows = Vec::with_capacity(d_registers.len() + 4);
    for r in d_registers {
        if !matches!(r, Operand::Reg(_)) {
            return cx.unsupported(i, "D must be registers");
        }
        let row = cx.dst(r, d_type)?;
        if !info.overwrites {
            cx.current.keeps.push((row, 1));
        }
        rows.push(row);
    }
    let mut op = LowerCx::new_op(mma_async, Class::Tensor);
    if let Operand::Vector(regs) = a_operand {
        if regs.len() != 4 {
            return cx.unsupported(i, "A needs 4 registers");
        }
        for r in regs {
            let row = cx.src(r, Ty::B32)?;
            rows.push(row);
        }
    } else {
        op.src[0] = cx.src(a_operand, Ty::B64)?;
    }
    op.src[1] = cx.src(b_operand, Ty::B64)?;
    if let Some(metadata) = metadata {
        op.src[2] = cx.src(metadata, Ty::B32)?;
    }
    op.psrc = psrc;
    op.imm = i64::from(cx.list(rows));
    op.ext = cx.ext(info);
    cx.current.in_flight = InFlight::Start;
    cx.emit(i, op)
}

/// Runs `f` when the whole warp executes.
fn collective(cx: &mut Cx, f: impl FnOnce(&mut Cx) -> Flow) -> Flow {
    match converged(cx) {
        Ok(true) => f(cx),
        Ok(false) => Flow::Next,
        Err(flow) => flow,
    }
}

unsafe fn fence(cx: &mut Cx, _: &Op) -> Flow {
    collective(cx, queue::fence)
}

unsafe fn commit(cx: &mut Cx, _: &Op) -> Flow {
    collective(cx, queue::commit)
}

unsafe fn wait(cx: &mut Cx, op: &Op) -> Flow {
    collective(cx, |cx| queue::wait(cx, op.imm as u32))
}

unsafe fn mma_async(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the run loop calls a handler with the operation of its own program.
    collective(cx, |cx| unsafe { queue::issue(cx, op) })
}

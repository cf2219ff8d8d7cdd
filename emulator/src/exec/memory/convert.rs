//! Instructions on addresses: cvta, isspacep, mapa, getctarank, createpolicy.

use super::super::simd::{Body, handler};
use super::super::{Cx, Flow, Handler, LANES, LOCAL_WINDOW, SHARED_WINDOW};
use super::access::each;
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Init, Op};
use crate::ptx::ast::{Instr, Operand, Space, Ty};

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    let parts: Vec<&str> = i.op[1..].iter().map(|m| &**m).collect();
    match &*i.op[0] {
        "cvta" => convert(cx, i, &parts),
        "isspacep" => is_space(cx, i, &parts),
        "mapa" => map(cx, i, &parts),
        "getctarank" => rank(cx, i, &parts),
        _ => {
            // A policy is an opaque value that changes nothing here.
            let mut op = LowerCx::new_op(handler::<Constant>(), Class::Other);
            let Some(dst) = i.operands.first() else {
                return cx.unsupported(i, "operands are missing");
            };
            op.dst = cx.dst(dst, Ty::B64)?;
            cx.emit(i, op)
        }
    }
}

struct Constant;
impl Body for Constant {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program.
        unsafe {
            let d = cx.row64_mut(op.dst);
            each(cx.mask, |l| d[l] = op.imm as u64);
        }
        Flow::Next
    }
}

/// `src[0]` + `imm`.
struct Add64;
impl Body for Add64 {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program.
        unsafe {
            let s = *cx.row64(op.src[0]);
            let d = cx.row64_mut(op.dst);
            each(cx.mask, |l| d[l] = s[l].wrapping_add(op.imm as u64));
        }
        Flow::Next
    }
}

/// A generic address of an address in the space of parameters, which is a place in the parameter block (32-bit code has
/// those) or a generic address already. `src[1]` is the address of the block.
struct OfParameters;
impl Body for OfParameters {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: rows of the program.
        unsafe {
            let (s, base) = (*cx.row64(op.src[0]), *cx.row64(op.src[1]));
            let d = cx.row64_mut(op.dst);
            each(cx.mask, |l| {
                d[l] = if s[l] < PARAMETER_BLOCK {
                    base[l] + s[l]
                } else {
                    s[l]
                };
            });
        }
        Flow::Next
    }
}

/// No parameter block is larger, and no device memory lies below.
const PARAMETER_BLOCK: u64 = 1 << 15;

fn window(space: &str) -> Option<u64> {
    Some(match space {
        "shared" | "shared::cta" | "shared::cluster" => SHARED_WINDOW,
        "local" => LOCAL_WINDOW,
        "global" | "const" | "param" | "param::entry" => 0,
        _ => return None,
    })
}

fn convert(cx: &mut LowerCx, i: &Instr, parts: &[&str]) -> Result<()> {
    let to = parts.contains(&"to");
    let window = parts.iter().find_map(|p| window(p));
    let (Some(window), true, [dst, src]) = (window, parts.last() == Some(&"u64"), &i.operands[..])
    else {
        return cx.unsupported(i, "a form that is not known");
    };
    let mut op = LowerCx::new_op(handler::<Add64>(), Class::Integer);
    op.imm = if to {
        0u64.wrapping_sub(window)
    } else {
        window
    } as i64;
    if let Operand::Symbol(_) | Operand::SymbolOffset(..) = src
        && cx.symbol_address(src)?.1.space == Space::Local
        && window != LOCAL_WINDOW
    {
        // The address of a formal parameter is one of local memory.
        op.imm = LOCAL_WINDOW as i64;
    }
    op.src[0] = cx.src(src, Ty::U64)?;
    if !to && parts.iter().any(|p| p.starts_with("param")) && op.imm == 0 {
        let value = op.src[0];
        op = LowerCx::new_op(handler::<OfParameters>(), Class::Integer);
        op.src[0] = value;
        op.src[1] = cx.init_row(Init::ParamAddress(0));
    }
    op.dst = cx.dst(dst, Ty::U64)?;
    cx.emit(i, op)
}

/// Which space; `shared::cta` is the executing CTA's part of `shared::cluster`.
#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Shared,
    SharedOwn,
    Local,
    Const,
    Param,
    Global,
}

fn is_space(cx: &mut LowerCx, i: &Instr, parts: &[&str]) -> Result<()> {
    let wanted = match parts.first().copied() {
        Some("shared::cluster") => Wanted::Shared,
        Some("shared" | "shared::cta") => Wanted::SharedOwn,
        Some("local") => Wanted::Local,
        Some("const") => Wanted::Const,
        Some("param" | "param::entry") => Wanted::Param,
        Some("global") => Wanted::Global,
        _ => return cx.unsupported(i, "unknown space"),
    };
    let [dst, src] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let constants: Vec<(u64, u64)> = cx
        .globals
        .values()
        .filter(|s| s.space == Space::Const)
        .map(|s| (s.value, s.value + s.bytes))
        .collect();
    let mut op = LowerCx::new_op(test_space, Class::Predicate);
    op.src[0] = cx.src(src, Ty::U64)?;
    op.pdst = cx.pred_dst(dst)?;
    op.ext = cx.ext((wanted, constants));
    cx.emit(i, op)
}

unsafe fn test_space(cx: &mut Cx, op: &Op) -> Flow {
    let (wanted, constants): &(Wanted, Vec<(u64, u64)>) = cx.ext(op);
    let own = u64::from(cx.cta().rank) + 1;
    let params = cx.launch.params..cx.launch.params + u64::from(cx.launch.program.param_bytes);
    // SAFETY: rows and slots of the program.
    unsafe {
        let a = cx.row64(op.src[0]);
        let mut result = 0;
        for (l, &a) in a.iter().enumerate() {
            let high = a >> 32;
            let rank = a >> 24 & 0xff;
            let yes = match wanted {
                Wanted::Shared => high == SHARED_WINDOW >> 32,
                Wanted::SharedOwn => high == SHARED_WINDOW >> 32 && (rank == 0 || rank == own),
                Wanted::Local => high == LOCAL_WINDOW >> 32,
                Wanted::Const => constants.iter().any(|c| a >= c.0 && a < c.1),
                Wanted::Param => params.contains(&a),
                Wanted::Global => high & !1 != SHARED_WINDOW >> 32,
            };
            result |= u32::from(yes) << l;
        }
        cx.set_pred(op.pdst, result);
    }
    Flow::Next
}

fn generic(parts: &[&str]) -> bool {
    !parts.iter().any(|p| p.starts_with("shared"))
}

/// `mapa d, a, rank`: the same place in another CTA of the cluster.
struct Map<const WIDE: bool>;
impl<const WIDE: bool> Body for Map<WIDE> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        let size = cx.cluster().ctas.len() as u32;
        // SAFETY: rows of the program.
        unsafe {
            let ranks = *cx.row(op.src[1]);
            for l in super::lanes(cx.mask) {
                if ranks[l] >= size {
                    let at = cx.at();
                    return cx.finding(
                        crate::check::FindingKind::ClusterLifetime,
                        at,
                        format!("mapa to CTA {} of a cluster of {size}", ranks[l]),
                    );
                }
            }
            let to = |a: u32, l: usize| (a & 0xff_ffff) | (ranks[l] + 1) << 24;
            if WIDE {
                let s = *cx.row64(op.src[0]);
                let d = cx.row64_mut(op.dst);
                each(cx.mask, |l| {
                    d[l] = (s[l] & !0xffff_ffff) | u64::from(to(s[l] as u32, l));
                });
            } else {
                let s = *cx.row(op.src[0]);
                let d = cx.row_mut(op.dst);
                each(cx.mask, |l| d[l] = to(s[l], l));
            }
        }
        Flow::Next
    }
}

fn map(cx: &mut LowerCx, i: &Instr, parts: &[&str]) -> Result<()> {
    let [dst, a, rank] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let wide = parts.last() == Some(&"u64");
    let ty = if wide { Ty::U64 } else { Ty::U32 };
    let run: Handler = if wide {
        handler::<Map<true>>()
    } else {
        handler::<Map<false>>()
    };
    let mut op = LowerCx::new_op(run, Class::Integer);
    if generic(parts) && !wide {
        return cx.unsupported(i, "a generic address has 64 bits");
    }
    op.src[0] = cx.src(a, ty)?;
    op.src[1] = cx.src(rank, Ty::U32)?;
    op.dst = cx.dst(dst, ty)?;
    cx.emit(i, op)
}

fn rank(cx: &mut LowerCx, i: &Instr, parts: &[&str]) -> Result<()> {
    let [dst, a] = &i.operands[..] else {
        return cx.unsupported(i, "operands are missing");
    };
    let wide = parts.last() == Some(&"u64");
    let mut op = LowerCx::new_op(cta_rank, Class::Integer);
    op.flags = u8::from(wide);
    op.src[0] = cx.src(a, if wide { Ty::U64 } else { Ty::U32 })?;
    op.dst = cx.dst(dst, Ty::U32)?;
    cx.emit(i, op)
}

unsafe fn cta_rank(cx: &mut Cx, op: &Op) -> Flow {
    let own = cx.cta().rank;
    // SAFETY: rows of the program.
    unsafe {
        let a: [u32; LANES] = if op.flags == 1 {
            let wide = cx.row64(op.src[0]);
            std::array::from_fn(|l| wide[l] as u32)
        } else {
            *cx.row(op.src[0])
        };
        let d = cx.row_mut(op.dst);
        each(cx.mask, |l| {
            d[l] = match a[l] >> 24 {
                0 => own,
                r => r - 1,
            };
        });
    }
    Flow::Next
}

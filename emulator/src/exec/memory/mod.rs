//! Memory: loads, stores, atomics, and the instructions that work on addresses.
//!
//! | file | what |
//! |---|---|
//! | `address.rs` | addresses of the lanes to host pointers, bounds and alignment |
//! | `access.rs` | ld, st, ldu |
//! | `atomic.rs` | atom, red |
//! | `convert.rs` | cvta, isspacep, mapa, getctarank, createpolicy |
//! | `observe.rs` | what checkers and counters are told |
//!
//! Cache operators, eviction priorities, level and prefetch hints change no result and are accepted and dropped.
//! `.volatile`, `.relaxed`, `.acquire`, `.release` and `.mmio` make an access *strong*: it synchronises, and it may be
//! a poll. A strong access or an atomic whose result depends on order, in global memory, makes the kernel one that
//! communicates between CTAs.

pub mod access;
pub mod address;
mod atomic;
mod convert;
mod observe;

use super::{Cx, LANES};
use crate::program::lower::{Address, LowerCx, Result, bits, parse_type};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Space, Ty};
use access::{INSIDE, ORDERED, STRONG, VECTOR_SHIFT};
use address::{ABSOLUTE, LOCAL, NARROW, PARAM, WIDE};
pub use address::{GENERIC, GLOBAL, SHARED};

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    match &*i.op[0] {
        "ld" | "ldu" => access_lower(cx, i, false)?,
        "st" if i
            .op
            .get(1)
            .is_some_and(|m| &**m == "async" || &**m == "bulk") =>
        {
            return Ok(false);
        }
        "st" => access_lower(cx, i, true)?,
        "red" if i.op.get(1).is_some_and(|m| &**m == "async") => return Ok(false),
        "atom" | "red" => atomic::lower(cx, i)?,
        "cvta" | "isspacep" | "mapa" | "getctarank" | "createpolicy" => convert::lower(cx, i)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads device memory at a generic address for one lane; false if any byte is outside.
pub fn peek(cx: &mut Cx, lane: usize, address: u64, out: &mut [u8]) -> bool {
    match address::place(cx, lane, address, out.len() as u64) {
        Ok(p) => {
            // SAFETY: `place` has tested the range.
            unsafe { std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), out.len()) };
            true
        }
        Err(_) => false,
    }
}

/// Host pointers to `bytes` at each lane's address, for an operation that is not a load or a store but touches memory as
/// if each lane loaded or stored: tested like theirs, and told to checkers and counters.
///
/// # Safety
/// As for every handler; `op` has no flags of accesses.
pub unsafe fn reach(
    cx: &mut Cx,
    op: &Op,
    space: u8,
    addresses: &[u64; LANES],
    bytes: usize,
    store: bool,
) -> std::result::Result<[*mut u8; LANES], super::Flow> {
    // SAFETY: passed on.
    let plan = unsafe { address::resolve_at(cx, space, addresses, bytes as u64)? };
    if cx.observed {
        let kind = if store {
            crate::check::Kind::Write
        } else {
            crate::check::Kind::Read
        };
        let access = observe::Access::new(space, kind, bytes);
        if let Some(flow) = observe::observe(cx, op, addresses, access) {
            return Err(flow);
        }
    }
    if store {
        cx.cluster().stores += 1;
    }
    Ok(plan.pointers(bytes))
}

/// What the modifiers of an access say.
struct Modifiers {
    space: Space,
    strong: bool,
    ordered: bool,
    /// Scope `.cta` or `.cluster`.
    inside: bool,
    vector: u8,
    ty: Ty,
}

fn modifiers(cx: &LowerCx, i: &Instr) -> Result<Modifiers> {
    let mut m = Modifiers {
        space: Space::Generic,
        strong: false,
        ordered: false,
        inside: false,
        vector: 1,
        ty: Ty::B32,
    };
    let mut typed = false;
    for part in &i.op[1..] {
        match &**part {
            "global" => m.space = Space::Global,
            "shared" | "shared::cta" | "shared::cluster" => m.space = Space::Shared,
            "local" => m.space = Space::Local,
            "const" => m.space = Space::Const,
            "param" | "param::entry" | "param::func" => m.space = Space::Param,
            "volatile" | "relaxed" | "mmio" => m.strong = true,
            "acquire" | "release" => {
                m.strong = true;
                m.ordered = true;
            }
            "v2" => m.vector = 2,
            "v4" => m.vector = 4,
            "v8" => m.vector = 8,
            "cta" | "cluster" => m.inside = true,
            "weak" | "gpu" | "sys" | "nc" | "unified" => {}
            "ca" | "cg" | "cs" | "cv" | "lu" | "wb" | "wt" => {}
            p if p.starts_with("L1::") || p.starts_with("L2::") => {}
            p => match parse_type(p) {
                Some(ty) if !typed => {
                    m.ty = ty;
                    typed = true;
                }
                _ => return cx.unsupported(i, &format!("unknown modifier .{p}")),
            },
        }
    }
    if !typed {
        return cx.unsupported(i, "the type is missing");
    }
    Ok(m)
}

/// The handler's space for a declared space, and the address with the mode in which it is formed.
fn place(cx: &mut LowerCx, i: &Instr, declared: Space, a: Address, op: &mut Op) -> Result<u8> {
    let space = match (declared, a.symbol_space) {
        (Space::Param, Some(Space::Param)) => {
            op.flags |= PARAM;
            op.imm = a.offset;
            return Ok(GLOBAL);
        }
        // Formal parameters and the variables of call sequences.
        (Space::Param, Some(Space::Local)) | (Space::Local, _) => LOCAL,
        (Space::Param, None) => GENERIC,
        (Space::Param, Some(_)) => return cx.unsupported(i, "the address is no parameter"),
        (Space::Shared | Space::SharedCta | Space::SharedCluster, _) => SHARED,
        (Space::Generic, Some(Space::Shared)) => SHARED,
        (Space::Generic, Some(Space::Local)) => LOCAL,
        (Space::Generic, Some(Space::Param)) => {
            op.flags |= PARAM;
            op.imm = a.offset;
            return Ok(GLOBAL);
        }
        (Space::Generic, None) => GENERIC,
        _ => GLOBAL,
    };
    op.imm = a.offset;
    op.flags |= match a.row {
        None => ABSOLUTE,
        Some(row) => {
            op.src[0] = row;
            if a.wide { WIDE } else { NARROW }
        }
    };
    if !a.wide && matches!(space, GLOBAL | GENERIC) && a.row.is_some() {
        return cx.unsupported(i, "a 32-bit register cannot hold this address");
    }
    Ok(space)
}

fn class(space: u8, param: bool, store: bool) -> Class {
    match (space, store) {
        _ if param => Class::LoadParam,
        (GLOBAL | GENERIC, false) => Class::LoadGlobal,
        (GLOBAL | GENERIC, true) => Class::StoreGlobal,
        (SHARED, false) => Class::LoadShared,
        (SHARED, true) => Class::StoreShared,
        (_, false) => Class::LoadLocal,
        (_, true) => Class::StoreLocal,
    }
}

fn access_lower(cx: &mut LowerCx, i: &Instr, store: bool) -> Result<()> {
    let m = modifiers(cx, i)?;
    // A cache policy may follow.
    let (address, value) = match &i.operands[..] {
        [a, v, ..] if store => (a, v),
        [v, a, ..] => (a, v),
        _ => return cx.unsupported(i, "operands are missing"),
    };
    if let Some(policy) = i.operands.get(2) {
        cx.src(policy, Ty::B64)?;
    }
    let mut op = LowerCx::new_op(super::control::nothing, Class::Other);
    let resolved = cx.address(address)?;
    let space = place(cx, i, m.space, resolved, &mut op)?;
    let elements: Vec<&Operand> = match value {
        Operand::Vector(v) => v.iter().collect(),
        one => vec![one],
    };
    if elements.len() != usize::from(m.vector) {
        return cx.unsupported(i, "the number of registers is not that of the vector");
    }
    let width = bits(m.ty);
    if width * u32::from(m.vector) > 256 || m.ty == Ty::Pred {
        return cx.unsupported(i, "more than 32 bytes at once, or a predicate");
    }
    // All registers of a vector are of one width: the widest declared.
    let register = elements
        .iter()
        .filter_map(|o| cx.declared_type(o))
        .map(bits)
        .max()
        .unwrap_or(width)
        .max(width);
    let declared = match register {
        8 => Ty::B8,
        16 => Ty::B16,
        32 => Ty::B32,
        64 => Ty::B64,
        _ => Ty::B128,
    };
    let mut rows = Vec::new();
    for o in elements {
        rows.push(match (store, o) {
            (true, Operand::Reg(_)) => cx.src(o, declared)?,
            (true, _) => {
                // An immediate takes the access's type.
                let row = cx.src(o, m.ty)?;
                if LowerCx::rows_of(width) != LowerCx::rows_of(register) {
                    return cx.unsupported(i, "immediates beside wider registers");
                }
                row
            }
            (false, _) => cx.dst(o, declared)?,
        });
    }
    let run = if store {
        access::store(space, width, register)
    } else {
        let signed = matches!(m.ty, Ty::S8 | Ty::S16 | Ty::S32);
        access::load(space, width, signed, register)
    };
    let Some(run) = run else {
        return cx.unsupported(
            i,
            &format!("{width}-bit access with a register of {register} bits"),
        );
    };
    op.run = run;
    op.class = class(space, m.space == Space::Param && space == GLOBAL, store);
    op.flags |= (m.vector.trailing_zeros() as u8) << VECTOR_SHIFT;
    if m.inside {
        op.flags |= INSIDE;
    }
    if m.strong {
        op.flags |= STRONG;
        cx.communicates |= matches!(space, GLOBAL | GENERIC);
    }
    if m.ordered {
        op.flags |= ORDERED;
    }
    match (rows.len(), store) {
        (1, true) => op.src[1] = rows[0],
        (1, false) => op.dst = rows[0],
        _ => op.ext = cx.list(rows),
    }
    cx.emit(i, op)
}

/// Lanes of a mask, in order.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |l| mask >> l & 1 == 1)
}

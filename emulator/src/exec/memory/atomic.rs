//! Atomics and reductions.
//!
//! Lanes act one after the other, starting at a lane drawn from the seed. On global memory the host's atomics are used,
//! because kernels of other streams and the host may run at the same time. Integer reductions without a result do not
//! depend on their order, so they do not make a kernel one that communicates.

use super::super::{Cx, Flow, LANES};
use super::access::{ORDERED, STRONG};
use super::address::{GENERIC, GLOBAL, SHARED, resolve};
use super::observe::{Access, observe};
use crate::check::Kind;
use crate::program::lower::{LowerCx, Result, bits, parse_type};
use crate::program::{Class, Op, RowId};
use crate::ptx::ast::{Instr, Operand, Space, Ty};
use crate::tensor::format::{bf16_to_f32, f16_to_f32, f32_to_f16};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// Everything that the handler needs beside the address.
struct Atomic {
    space: u8,
    operation: Operation,
    ty: Ty,
    /// Lists of rows: sources (elements after elements; for cas: expected, then new), results.
    sources: u32,
    results: Option<u32>,
    /// Elements per lane.
    vector: u8,
    acquires: bool,
    releases: bool,
    /// Scope `.cta` or `.cluster`.
    inside: bool,
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<()> {
    let reduction = &*i.op[0] == "red";
    let (mut space, mut operation, mut ty, mut vector) = (Space::Generic, None, None, 1u8);
    let (mut acquires, mut releases, mut inside) = (false, false, false);
    for part in &i.op[1..] {
        match &**part {
            "global" => space = Space::Global,
            "shared" | "shared::cta" | "shared::cluster" => space = Space::Shared,
            "cta" | "cluster" => inside = true,
            "relaxed" | "gpu" | "sys" | "noftz" => {}
            "acquire" => acquires = true,
            "release" => releases = true,
            "acq_rel" => (acquires, releases) = (true, true),
            "L2::cache_hint" => {}
            "v2" => vector = 2,
            "v4" => vector = 4,
            "v8" => vector = 8,
            "add" => operation = Some(Operation::Add),
            "min" => operation = Some(Operation::Min),
            "max" => operation = Some(Operation::Max),
            "inc" => operation = Some(Operation::Inc),
            "dec" => operation = Some(Operation::Dec),
            "and" => operation = Some(Operation::And),
            "or" => operation = Some(Operation::Or),
            "xor" => operation = Some(Operation::Xor),
            "exch" => operation = Some(Operation::Exch),
            "cas" => operation = Some(Operation::Cas),
            p => match parse_type(p) {
                Some(t) => ty = Some(t),
                None => return cx.unsupported(i, &format!("unknown modifier .{p}")),
            },
        }
    }
    let (Some(operation), Some(ty)) = (operation, ty) else {
        return cx.unsupported(i, "operation or type is missing");
    };
    if !possible(operation, ty, vector, reduction) {
        return cx.unsupported(i, "this operation does not exist for the type");
    }
    let mut operands = i.operands.iter();
    let result = if reduction { None } else { operands.next() };
    let Some(address) = operands.next() else {
        return cx.unsupported(i, "operands are missing");
    };
    let values: Vec<&Operand> = operands.collect();
    let wanted = if operation == Operation::Cas { 2 } else { 1 };
    if values.len() < wanted {
        return cx.unsupported(i, "operands are missing");
    }
    let mut op = LowerCx::new_op(run, Class::Atomic);
    let resolved = cx.address(address)?;
    let space = super::place(cx, i, space, resolved, &mut op)?;
    if !matches!(space, GLOBAL | SHARED | GENERIC) {
        return cx.unsupported(i, "atomics work on global and shared memory");
    }
    let mut rows: Vec<RowId> = Vec::new();
    for v in &values[..wanted] {
        rows.extend(cx.src_vector(v, ty)?);
    }
    if rows.len() != usize::from(vector) * wanted {
        return cx.unsupported(i, "the number of registers is not that of the vector");
    }
    // A cache policy may follow.
    if let Some(policy) = values.get(wanted) {
        cx.src(policy, Ty::B64)?;
    }
    let results = match result {
        Some(Operand::Sink) | None => None,
        Some(r) => {
            let rows = cx.dst_vector(r, ty)?;
            Some(cx.list(rows))
        }
    };
    let free_order = results.is_none()
        && !matches!(
            operation,
            Operation::Exch | Operation::Cas | Operation::Inc | Operation::Dec
        )
        && is_integer(ty)
        && !acquires
        && !releases;
    cx.communicates |= space != SHARED && !free_order;
    let sources = cx.list(rows);
    op.ext = cx.ext(Atomic {
        space,
        operation,
        ty,
        sources,
        results,
        vector,
        acquires,
        releases,
        inside,
    });
    op.flags |= STRONG;
    if acquires || releases {
        op.flags |= ORDERED;
    }
    cx.emit(i, op)
}

fn is_integer(ty: Ty) -> bool {
    use Ty::*;
    matches!(ty, B32 | U32 | S32 | B64 | U64 | S64)
}

fn possible(o: Operation, ty: Ty, vector: u8, reduction: bool) -> bool {
    use Operation::*;
    if vector > 1 {
        return match ty {
            Ty::F32 => o == Add && vector <= 4,
            Ty::F16 | Ty::BF16 => matches!(o, Add | Min | Max),
            Ty::F16x2 | Ty::BF16x2 => matches!(o, Add | Min | Max) && vector <= 4,
            _ => false,
        };
    }
    match o {
        Add => matches!(
            ty,
            Ty::U32
                | Ty::S32
                | Ty::U64
                | Ty::S64
                | Ty::F32
                | Ty::F64
                | Ty::F16
                | Ty::F16x2
                | Ty::BF16
                | Ty::BF16x2
        ),
        Min | Max => matches!(
            ty,
            Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2
        ),
        Inc | Dec => ty == Ty::U32,
        And | Or | Xor => matches!(ty, Ty::B32 | Ty::B64),
        Exch => !reduction && matches!(ty, Ty::B32 | Ty::B64 | Ty::B128),
        Cas => !reduction && matches!(ty, Ty::B16 | Ty::B32 | Ty::B64 | Ty::B128),
    }
}

fn f32_to_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16
}

/// The sum or extremum of two 16-bit floats. Rounding the sum to f32 first cannot change it: f32 has more than twice
/// the bits.
fn half_op(o: Operation, a: u16, b: u16, brain: bool) -> u16 {
    let to = |h| if brain { bf16_to_f32(h) } else { f16_to_f32(h) };
    let (x, y) = (to(a), to(b));
    let pick = |first: bool| if first { a } else { b };
    match o {
        Operation::Add if brain => f32_to_bf16(x + y),
        Operation::Add => f32_to_f16(x + y),
        Operation::Min | Operation::Max => match (x.is_nan(), y.is_nan()) {
            (true, true) => 0x7fff,
            (true, false) => b,
            (false, true) => a,
            _ if x == y => pick((a >> 15 == 1) == (o == Operation::Min)),
            _ => pick((x < y) == (o == Operation::Min)),
        },
        _ => a,
    }
}

/// The new value for an element of up to 64 bits.
fn apply(o: Operation, ty: Ty, old: u64, v: u64, new: u64) -> u64 {
    use Operation::*;
    let wide = bits(ty) == 64;
    let signed = |x: u64| {
        if wide {
            x as i64
        } else {
            i64::from(x as u32 as i32)
        }
    };
    match (o, ty) {
        (Exch, _) => v,
        (Cas, _) => {
            if old == v {
                new
            } else {
                old
            }
        }
        (Add, Ty::F32) => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(v as u32)).to_bits())
        }
        (Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(v)).to_bits(),
        (_, Ty::F16 | Ty::BF16) => u64::from(half_op(o, old as u16, v as u16, ty == Ty::BF16)),
        (_, Ty::F16x2 | Ty::BF16x2) => {
            let brain = ty == Ty::BF16x2;
            let low = half_op(o, old as u16, v as u16, brain);
            let high = half_op(o, (old >> 16) as u16, (v >> 16) as u16, brain);
            u64::from(low) | u64::from(high) << 16
        }
        (Add, _) => old.wrapping_add(v),
        (Min, Ty::S32 | Ty::S64) => signed(old).min(signed(v)) as u64,
        (Max, Ty::S32 | Ty::S64) => signed(old).max(signed(v)) as u64,
        (Min, _) => old.min(v),
        (Max, _) => old.max(v),
        (Inc, _) => {
            if old >= v {
                0
            } else {
                old + 1
            }
        }
        (Dec, _) => {
            if old == 0 || old > v {
                v
            } else {
                old - 1
            }
        }
        (And, _) => old & v,
        (Or, _) => old | v,
        (Xor, _) => old ^ v,
    }
}

/// Serialises 128-bit atomics, for which the host has no portable instruction.
static WIDE: Mutex<()> = Mutex::new(());

/// Applies the operation at one element; returns the old value.
unsafe fn element(p: *mut u8, a: &Atomic, v: u128, new: u128) -> u128 {
    let f = |old: u64| apply(a.operation, a.ty, old, v as u64, new as u64);
    // SAFETY: the pointer was tested for size and alignment.
    unsafe {
        match bits(a.ty) {
            16 => {
                let atom = AtomicU16::from_ptr(p.cast());
                let update = |old| Some(f(u64::from(old)) as u16);
                u128::from(
                    atom.fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
                        .unwrap_or_else(|e| e),
                )
            }
            32 => {
                let atom = AtomicU32::from_ptr(p.cast());
                let update = |old| Some(f(u64::from(old)) as u32);
                u128::from(
                    atom.fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
                        .unwrap_or_else(|e| e),
                )
            }
            64 => {
                let atom = AtomicU64::from_ptr(p.cast());
                let update = |old| Some(f(old));
                u128::from(
                    atom.fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
                        .unwrap_or_else(|e| e),
                )
            }
            _ => {
                let guard = WIDE
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let q = p.cast::<u128>();
                let old = q.read_unaligned();
                match a.operation {
                    Operation::Cas if old == v => q.write_unaligned(new),
                    Operation::Cas => {}
                    _ => q.write_unaligned(v),
                }
                drop(guard);
                old
            }
        }
    }
}

unsafe fn get(cx: &Cx, row: RowId, lane: usize, width: u32) -> u128 {
    // SAFETY: rows of the program.
    unsafe {
        match width {
            64 => u128::from(cx.row64(row)[lane]),
            128 => (*cx.regs.add(row as usize).cast::<[u128; LANES]>())[lane],
            16 => u128::from(cx.row(row)[lane] & 0xffff),
            _ => u128::from(cx.row(row)[lane]),
        }
    }
}

unsafe fn put(cx: &mut Cx, row: RowId, lane: usize, width: u32, v: u128) {
    // SAFETY: rows of the program.
    unsafe {
        match width {
            64 => cx.row64_mut(row)[lane] = v as u64,
            128 => (*cx.regs.add(row as usize).cast::<[u128; LANES]>())[lane] = v,
            _ => cx.row_mut(row)[lane] = v as u32,
        }
    }
}

unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
    let a: &Atomic = cx.ext(op);
    let width = bits(a.ty);
    let size = width as usize / 8;
    let n = usize::from(a.vector);
    let bytes = (size * n) as u64;
    let program = cx.launch.program;
    let sources = &program.lists[a.sources as usize];
    // SAFETY: pointers are tested by `resolve`; rows of the program.
    unsafe {
        let resolved = match a.space {
            GLOBAL => resolve::<GLOBAL>(cx, op, bytes, bytes),
            SHARED => resolve::<SHARED>(cx, op, bytes, bytes),
            _ => resolve::<GENERIC>(cx, op, bytes, bytes),
        };
        let (plan, addresses) = match resolved {
            Ok(p) => p,
            Err(flow) => return flow,
        };
        let floats = a.ty.is_float() || matches!(a.ty, Ty::F16x2 | Ty::BF16x2);
        let kind = match a.operation {
            Operation::Add if floats => Kind::Sum,
            Operation::Exch => Kind::StrongWrite,
            _ => Kind::Atomic,
        };
        let mut access = Access::new(a.space, kind, bytes as usize);
        access.acquires = a.acquires;
        access.releases = a.releases;
        access.inside = a.inside;
        if let Some(flow) = observe(cx, op, &addresses, access) {
            return flow;
        }
        let pointers = plan.pointers(bytes as usize);
        let start = cx.cluster().rng.below(LANES as u64) as usize;
        let mut changed = false;
        for l in (start..LANES).chain(0..start) {
            if cx.mask >> l & 1 == 0 {
                continue;
            }
            for i in 0..n {
                let v = get(cx, sources[i], l, width);
                let new = if a.operation == Operation::Cas {
                    get(cx, sources[i + n], l, width)
                } else {
                    0
                };
                let old = element(pointers[l].add(i * size), a, v, new);
                changed |= match a.operation {
                    Operation::Cas => old == v && old != new,
                    Operation::Exch => old != v,
                    _ => {
                        width > 64
                            || apply(a.operation, a.ty, old as u64, v as u64, 0) as u128 != old
                    }
                };
                if let Some(results) = a.results {
                    put(cx, program.lists[results as usize][i], l, width, old);
                }
            }
        }
        if changed {
            cx.cluster().stores += 1;
        } else {
            cx.warp().polls = cx.warp().polls.saturating_add(1);
        }
    }
    Flow::Next
}

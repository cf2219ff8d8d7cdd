//! Carries out one wgmma: panels from the operands, then the kernel for the types.

use super::descriptor::Tile;
use super::exact::{self, Rule, Term};
use super::format::{Format, f16_to_f32, f32_to_f16};
use super::kernel::{self, Accumulators};
use super::panel::{self, MAX_K, Panels, RawA, SourceA};
use super::sparse;
use super::wgmma::{Mma, Output};
use crate::exec::Row;
use crate::program::RowId;
use std::cell::RefCell;

/// Buffers of a host thread.
struct Scratch {
    panels: Box<Panels>,
    raw: Box<RawA>,
    /// f32 accumulators of an instruction whose D is f16.
    wide: Vec<Row>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

impl Scratch {
    fn new() -> Self {
        Scratch {
            panels: Panels::boxed(),
            raw: RawA::boxed(),
            wide: Vec::new(),
        }
    }
}

/// Rows 0, 1, 2, … of the f32 scratch.
static IDENTITY: [RowId; 128] = {
    let mut rows = [0; 128];
    let mut i = 0;
    while i < 128 {
        rows[i] = i as RowId;
        i += 1;
    }
    rows
};

/// The operands of one operation.
pub struct Operands<'a> {
    pub a: &'a SourceA,
    pub b: Tile,
    /// D is added to.
    pub keep: bool,
    /// Metadata registers of the warps, if A is compressed.
    pub metadata: Option<&'a [[u32; 32]; 4]>,
    pub shared: &'a [u8],
    /// Use the hardware's arithmetic ([`super::exact`]) for floating types (dense ones: nobody has measured the others).
    pub exact: bool,
}

/// Carries out `mma`: D (and A, if it is in registers) are `rows` of the four warps' register files.
///
/// # Safety
/// The operands were found inside `shared`; `rows` lie in each of the register files `regs`, which nothing else uses.
pub unsafe fn run(mma: &Mma, operands: &Operands, regs: [*mut Row; 4], rows: &[RowId]) {
    let shared = operands.shared;
    let execute = |s: &mut Scratch| {
        let Scratch { panels, raw, wide } = s;
        let raw = match operands.a {
            SourceA::Registers(r) => r,
            SourceA::Descriptor(tile) => {
                raw.gather(tile, shared);
                raw
            }
        };
        let d = Accumulators {
            regs,
            rows: &rows[..mma.planes()],
        };
        let mut keep = operands.keep;
        if mma.d == Output::F16 {
            wide.resize(4 * mma.n / 2, Row([0; 32]));
            // SAFETY: the caller's promise; the scratch has n/2 rows for each warp.
            unsafe { from_f16(d, wide) };
        }
        if let Some(metadata) = operands.metadata {
            let d = match mma.d {
                Output::F16 => in_scratch(wide, mma.n),
                _ => Accumulators {
                    regs,
                    rows: &rows[..mma.planes()],
                },
            };
            // SAFETY: the caller's promise; the scratch has the rows that IDENTITY names.
            unsafe { sparse::multiply(mma, raw, (&operands.b, shared), metadata, d, keep) };
        }
        let dense = if operands.metadata.is_some() {
            0
        } else {
            mma.depth
        };
        for first in (0..dense).step_by(MAX_K) {
            let along_k = first..mma.depth.min(first + MAX_K);
            let depth = along_k.len();
            panel::unpack_a(&mut panels.a, raw, mma.a, along_k.clone(), mma.negate_a);
            panel::unpack_b(
                &mut panels.b,
                &operands.b,
                shared,
                mma.n,
                mma.b,
                along_k,
                mma.negate_b,
            );
            // SAFETY: the caller's promise; the scratch has the rows that IDENTITY names.
            unsafe {
                match mma.d {
                    Output::F32 if operands.exact => multiply_exactly(panels, mma, d, keep),
                    Output::F16 if operands.exact => {
                        multiply_exactly(panels, mma, in_scratch(wide, mma.n), keep);
                    }
                    Output::S32 => {
                        kernel::multiply_i32(panels, mma.n, depth, d, keep, mma.saturate);
                    }
                    Output::F32 => {
                        kernel::multiply_f32(kernel::level(), panels, mma.n, depth, d, keep);
                    }
                    Output::F16 => {
                        let d = in_scratch(wide, mma.n);
                        kernel::multiply_f32(kernel::level(), panels, mma.n, depth, d, keep);
                    }
                }
            }
            keep = true;
        }
        if mma.d == Output::F16 {
            // SAFETY: as above.
            unsafe { to_f16(d, wide) };
        }
    };
    // Destructors of a program's static objects may launch after those of the thread have run.
    if SCRATCH.try_with(|s| execute(&mut s.borrow_mut())).is_err() {
        execute(&mut Scratch::new());
    }
}

/// The scratch of `n` columns as accumulators.
fn in_scratch(wide: &mut [Row], n: usize) -> Accumulators<'static> {
    let planes = n / 2;
    let mut parts = wide.chunks_exact_mut(planes);
    Accumulators {
        regs: std::array::from_fn(|_| parts.next().expect("four parts").as_mut_ptr()),
        rows: &IDENTITY[..planes],
    }
}

/// D from the panels, in the arithmetic of the hardware.
///
/// # Safety
/// As [`kernel::multiply_f32`].
unsafe fn multiply_exactly(panels: &Panels, mma: &Mma, d: Accumulators, keep: bool) {
    let rule = Rule::wgmma(mma.a, mma.d == Output::F16);
    let vectors = |count: usize, format: Format, at: &dyn Fn(usize, usize) -> u32| {
        (0..count)
            .map(|i| {
                let values: Vec<f32> = (0..mma.depth).map(|k| f32::from_bits(at(i, k))).collect();
                let terms: Vec<Term> = values.iter().map(|v| Term::new(*v, format)).collect();
                (values, terms)
            })
            .collect::<Vec<_>>()
    };
    let a = vectors(64, mma.a, &|row, k| panels.a[panel::a_index(row, k)]);
    let b = vectors(mma.n, mma.b, &|column, k| {
        panels.b[panel::b_index(mma.n, k, column)]
    });
    for warp in 0..4 {
        for (plane, row) in d.rows.iter().enumerate() {
            // SAFETY: the caller's promise.
            let lanes = unsafe { &mut (*d.regs[warp].add(*row as usize)).0 };
            for (l, v) in lanes.iter_mut().enumerate() {
                let (av, at) = &a[16 * warp + 8 * ((plane >> 1) & 1) + l / 4];
                let (bv, bt) = &b[8 * (plane >> 2) + 2 * (l % 4) + (plane & 1)];
                let c = if keep { f32::from_bits(*v) } else { 0.0 };
                *v = exact::element((av, at), (bv, bt), c, rule).to_bits();
            }
        }
    }
}

/// Plane pairs (2r, 2r+1) are the halves of register r.
unsafe fn from_f16(d: Accumulators, wide: &mut [Row]) {
    let planes = 2 * d.rows.len();
    for w in 0..4 {
        for (r, row) in d.rows.iter().enumerate() {
            // SAFETY: rows of the warp's register file.
            let packed = unsafe { &(*d.regs[w].add(*row as usize)).0 };
            for (l, v) in packed.iter().enumerate() {
                wide[w * planes + 2 * r].0[l] = f16_to_f32(*v as u16).to_bits();
                wide[w * planes + 2 * r + 1].0[l] = f16_to_f32((*v >> 16) as u16).to_bits();
            }
        }
    }
}

unsafe fn to_f16(d: Accumulators, wide: &[Row]) {
    let planes = 2 * d.rows.len();
    for w in 0..4 {
        for (r, row) in d.rows.iter().enumerate() {
            // SAFETY: rows of the warp's register file.
            let packed = unsafe { &mut (*d.regs[w].add(*row as usize)).0 };
            for (l, v) in packed.iter_mut().enumerate() {
                let low = f32_to_f16(f32::from_bits(wide[w * planes + 2 * r].0[l]));
                let high = f32_to_f16(f32::from_bits(wide[w * planes + 2 * r + 1].0[l]));
                *v = u32::from(low) | u32::from(high) << 16;
            }
        }
    }
}

//! Carries out one wgmma: panels from the operands, then the kernel for the types.

use super::descriptor::Tile;
use super::format::{f16_to_f32, f32_to_f16};
use super::kernel::{self, Accumulators};
use super::panel::{self, MAX_K, Panels, RawA, SourceA};
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
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        panels: Panels::boxed(),
        raw: RawA::boxed(),
        wide: Vec::new(),
    });
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
    pub shared: &'a [u8],
}

/// Carries out `mma`: D (and A, if it is in registers) are `rows` of the four warps' register files.
///
/// # Safety
/// The operands were found inside `shared`; `rows` lie in each of the register files `regs`, which nothing else uses.
pub unsafe fn run(mma: &Mma, operands: &Operands, regs: [*mut Row; 4], rows: &[RowId]) {
    let shared = operands.shared;
    SCRATCH.with_borrow_mut(|s| {
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
        for first in (0..mma.depth).step_by(MAX_K) {
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
                    Output::S32 => {
                        kernel::multiply_i32(panels, mma.n, depth, d, keep, mma.saturate);
                    }
                    Output::F32 => {
                        kernel::multiply_f32(kernel::level(), panels, mma.n, depth, d, keep);
                    }
                    Output::F16 => {
                        let planes = mma.n / 2;
                        let base = wide.as_mut_ptr();
                        let d = Accumulators {
                            regs: std::array::from_fn(|w| base.add(w * planes)),
                            rows: &IDENTITY[..planes],
                        };
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
    });
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

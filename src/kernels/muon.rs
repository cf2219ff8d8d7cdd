//! Twin of `cuda/muon.cu`, and the Newton-Schulz iteration made of it and `gemm`.

use anyhow::Result;
use cust::stream::Stream;

use super::gemm::Orientation;
use super::{Checks, DevPtr, Kernels, Matrix, Work, address, step_values};

/// Coefficients of the quintic iteration.
const A: f32 = 3.4445;
const B: f32 = -4.7750;
const C: f32 = 2.0315;
const STEPS: usize = 5;

/// Equal matrices, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bank {
    pub matrices: u64,
    pub rows: u64,
    pub columns: u64,
}

impl Bank {
    pub fn elements(self) -> u64 {
        self.rows * self.columns
    }

    /// Side of the square products.
    pub fn side(self) -> u64 {
        self.rows.min(self.columns)
    }

    /// Partial sums of squares per matrix.
    pub fn partials(self) -> u32 {
        self.elements().div_ceil(256 * 8 * 4).clamp(1, 64) as u32
    }

    /// `sqrt(max(1, rows / columns))`.
    pub fn shape_factor(self) -> f32 {
        (self.rows as f64 / self.columns as f64).max(1.0).sqrt() as f32
    }

    fn check(self, checks: Checks) -> Result<()> {
        checks.limit(
            self.matrices > 0
                && self.matrices < 65536
                && self.rows.is_multiple_of(8)
                && self.columns.is_multiple_of(8)
                && self.elements() > 0,
            || format!("{self:?}: sides must be multiples of 8"),
        )
    }
}

/// Buffers of the iteration, all bf16.
#[derive(Clone, Copy, Debug)]
pub struct NewtonSchulz {
    /// `[matrices, rows, columns]`; in: the normalised matrices, out: the result.
    pub x: DevPtr,
    /// The same size, scratch.
    pub y: DevPtr,
    /// `[matrices, side, side]`, scratch.
    pub gram: DevPtr,
    /// The same size, scratch.
    pub polynomial: DevPtr,
}

impl Kernels {
    /// Momentum and Nesterov: `x` bf16 and the partial sums of its squares, f32 `[matrices, partials]`. `momentum` is f32, or bf16
    /// with `bf16_state` (then the gradient is rounded too).
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn muon_momentum(
        &self,
        stream: &Stream,
        bank: Bank,
        grad: DevPtr,
        momentum: DevPtr,
        bf16_state: bool,
        x: DevPtr,
        partial: DevPtr,
        step: DevPtr,
        clip: Option<DevPtr>,
    ) -> Result<Work> {
        let checks = Checks(if bf16_state {
            "muon_momentum_bf16"
        } else {
            "muon_momentum_f32"
        });
        bank.check(checks)?;
        let (n, state) = (bank.elements(), if bf16_state { 2 } else { 4 });
        let total = bank.matrices * n;
        checks.array("grad", grad, 4, &[total])?;
        checks.array("momentum", momentum, state, &[total])?;
        checks.array("x", x, 2, &[total])?;
        checks.array(
            "partial",
            partial,
            4,
            &[bank.matrices, u64::from(bank.partials())],
        )?;
        checks.array("step", step, 1, &[step_values::BYTES])?;
        let coefficient = address(clip);
        self.launch(
            stream,
            checks.0,
            [bank.partials(), bank.matrices as u32, 1],
            256,
            0,
            &[&grad, &momentum, &x, &partial, &n, &step, &coefficient],
        )?;
        self.done(Work {
            flops: 6 * total,
            bytes: total * (6 + 2 * state),
        })
    }

    /// Divides each matrix by its Frobenius norm, in place.
    pub fn muon_normalize(
        &self,
        stream: &Stream,
        bank: Bank,
        x: DevPtr,
        partial: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("muon_normalize");
        bank.check(checks)?;
        let (n, count) = (bank.elements(), bank.partials() as i32);
        checks.array("x", x, 2, &[bank.matrices, n])?;
        checks.array("partial", partial, 4, &[bank.matrices, count as u64])?;
        let grid = [bank.partials(), bank.matrices as u32, 1];
        self.launch(stream, checks.0, grid, 256, 0, &[&x, &partial, &count, &n])?;
        self.done(Work {
            flops: bank.matrices * n,
            bytes: 4 * bank.matrices * n,
        })
    }

    /// Five steps of the Newton-Schulz iteration on normalised matrices. Returns the buffer that holds the result: `y`, since the
    /// number of steps is odd and each step reads one and writes the other.
    pub fn newton_schulz(
        &self,
        stream: &Stream,
        bank: Bank,
        buffers: NewtonSchulz,
    ) -> Result<(DevPtr, Work)> {
        bank.check(Checks("newton_schulz"))?;
        let Bank {
            matrices,
            rows,
            columns,
        } = bank;
        let side = bank.side();
        let square = |pointer| Matrix::batch(pointer, matrices, side, side);
        let (gram, polynomial) = (square(buffers.gram), square(buffers.polynomial));
        let mut work = Work::default();
        let (mut from, mut to) = (buffers.x, buffers.y);
        for _ in 0..STEPS {
            let x = Matrix::batch(from, matrices, rows, columns);
            let next = Matrix::batch(to, matrices, rows, columns);
            let tall = rows > columns;
            let orientation = if tall {
                Orientation::Tn
            } else {
                Orientation::Nt
            };
            // Both products are symmetric: a tile serves for its mirror image.
            work += self.gemm_symmetric(stream, orientation, x, gram)?;
            work += self.gemm_symmetric_add(stream, gram, polynomial, gram, C, B)?;
            work += if tall {
                // The polynomial is symmetric, so X P is X P^T.
                self.gemm_add(stream, Orientation::Nt, x, polynomial, next, x, 1.0, A)?
            } else {
                self.gemm_add(stream, Orientation::Nn, polynomial, x, next, x, 1.0, A)?
            };
            std::mem::swap(&mut from, &mut to);
        }
        Ok((from, work))
    }

    /// `param` f32 `[n]` decays and moves against `x` bf16 `[n]`.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn muon_update(
        &self,
        stream: &Stream,
        bank: Bank,
        param: DevPtr,
        x: DevPtr,
        step: DevPtr,
        learning_rate: f32,
        weight_decay: f32,
        shape_factor: f32,
    ) -> Result<Work> {
        let checks = Checks("muon_update");
        bank.check(checks)?;
        let n = bank.matrices * bank.elements();
        checks.array("param", param, 4, &[n])?;
        checks.array("x", x, 2, &[n])?;
        checks.array("step", step, 1, &[step_values::BYTES])?;
        let grid = [super::flat_grid(n), 1, 1];
        let parameters: &[&dyn crate::driver::launch::Parameter] = &[
            &param,
            &x,
            &n,
            &step,
            &learning_rate,
            &weight_decay,
            &shape_factor,
        ];
        self.launch(stream, checks.0, grid, 256, 0, parameters)?;
        self.done(Work {
            flops: 3 * n,
            bytes: 10 * n,
        })
    }
}

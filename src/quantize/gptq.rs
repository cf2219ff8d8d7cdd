//! GPTQ with the full Hessian of a layer's inputs.
//!
//! Columns are quantized in the order of falling Hessian diagonal; the error of each is spread over the
//! columns that are still to come, in proportion to the inverse Hessian's Cholesky factor U (Uᵀ U = H⁻¹). Rows do not
//! depend on each other. Scales are those of the clip search on the original rows; the clip percentile is
//! chosen by plain mean squared error, as published.
//!
//! The published code works in f32 and in blocks of 128 columns, which only changes the order of additions; here it
//! is f64 throughout. Blocks are used here, too: what a block's errors do to the columns behind it is one matrix product, and
//! so is nearly all of the factor.

use super::RowCodes;
use super::clip_search::{Found, percentiles, scales};
use half::f16;
use nalgebra::DMatrix;

/// Relative damping of the Hessian's diagonal.
const DAMPING: f64 = 0.01;
/// Columns whose errors reach the columns behind them together.
const BLOCK: usize = 64;
/// Rows that go through the columns together.
const ROWS: usize = 64;
/// Matrices of up to this side are factored column by column.
const SMALL: usize = 64;

/// Why no factor exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositiveDefinite;

/// The order of columns and the factor for it.
struct Factor {
    order: Vec<usize>,
    /// Uᵀ in that order: column c is row c of U, zero before its diagonal.
    transposed: DMatrix<f64>,
    dead: Vec<bool>,
}

/// L⁻¹ of a positive definite matrix L Lᵀ, by halves:
///
/// ```text
/// A = | A₁  ·  |   M₁ = L₁⁻¹   L₂₁ = A₂₁ M₁ᵀ   M₂ from A₂ - L₂₁ L₂₁ᵀ   L⁻¹ = |      M₁           0 |
///     | A₂₁ A₂ |                                                               | -M₂ (L₂₁ M₁)    M₂ |
/// ```
fn inverse_of_factor(matrix: &DMatrix<f64>) -> Option<DMatrix<f64>> {
    let n = matrix.nrows();
    if n <= SMALL {
        let lower = nalgebra::Cholesky::new(matrix.clone())?.unpack();
        let inverse = lower.solve_lower_triangular(&DMatrix::identity(n, n))?;
        return inverse.iter().all(|v| v.is_finite()).then_some(inverse);
    }
    let (half, rest) = (n / 2, n - n / 2);
    let first = inverse_of_factor(&matrix.view((0, 0), (half, half)).into_owned())?;
    let below = matrix.view((half, 0), (rest, half)) * first.transpose();
    let mut second = matrix.view((half, half), (rest, rest)).into_owned();
    let product = std::thread::scope(|scope| {
        let product = scope.spawn(|| &below * &first);
        second.gemm(-1.0, &below, &below.transpose(), 1.0);
        product
            .join()
            .expect("a product of matrices does not panic")
    });
    let second = inverse_of_factor(&second)?;
    let mut inverse = DMatrix::zeros(n, n);
    inverse.view_mut((0, 0), (half, half)).copy_from(&first);
    inverse
        .view_mut((half, 0), (rest, half))
        .gemm(-1.0, &second, &product, 0.0);
    inverse
        .view_mut((half, half), (rest, rest))
        .copy_from(&second);
    Some(inverse)
}

fn factor(hessian: &[f32], cols: usize) -> Result<Factor, NotPositiveDefinite> {
    let mut diagonal: Vec<f64> = (0..cols)
        .map(|c| f64::from(hessian[c * cols + c]))
        .collect();
    let dead: Vec<bool> = diagonal.iter().map(|d| *d == 0.0).collect();
    for (d, dead) in diagonal.iter_mut().zip(&dead) {
        if *dead {
            *d = 1.0;
        }
    }
    let damp = DAMPING * diagonal.iter().sum::<f64>() / cols as f64;
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    // With the columns reversed, H = K Kᵀ gives H = R Rᵀ with R upper triangular, and U = R⁻¹ has Uᵀ U = H⁻¹: the
    // inverse of H itself is never formed.
    let reversed = |i: usize| order[cols - 1 - i];
    let matrix = DMatrix::from_fn(cols, cols, |i, j| {
        let (a, b) = (reversed(i), reversed(j));
        if a == b {
            diagonal[a] + damp
        } else {
            f64::from(hessian[a * cols + b])
        }
    });
    let inverse = inverse_of_factor(&matrix).ok_or(NotPositiveDefinite)?;
    let transposed = DMatrix::from_fn(cols, cols, |j, i| inverse[(cols - 1 - i, cols - 1 - j)]);
    Ok(Factor {
        order,
        transposed,
        dead,
    })
}

/// Quantizes a matrix with rows of `cols` under `hessian` (`cols * cols`, symmetric).
pub fn quantize(
    weights: &[f32],
    cols: usize,
    hessian: &[f32],
    bits: u8,
) -> Result<Found, NotPositiveDefinite> {
    assert_eq!(
        hessian.len(),
        cols * cols,
        "one Hessian entry per pair of columns"
    );
    let factor = factor(hessian, cols)?;
    let row_count = weights.len() / cols;
    let limit = f64::from(RowCodes::limit(bits));
    // Dead columns carry no input and are set to zero; the others in the factor's order.
    let permuted: Vec<f64> = weights
        .chunks_exact(cols)
        .flat_map(|row| {
            factor.order.iter().map(|c| {
                if factor.dead[*c] {
                    0.0
                } else {
                    f64::from(row[*c])
                }
            })
        })
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = row_count.div_ceil(threads).next_multiple_of(ROWS);
    let mut errors = Vec::new();
    let mut best: Option<(f64, usize, Vec<i8>, Vec<f16>)> = None;
    for (index, scales) in scales(weights, cols, bits)
        .into_iter()
        .enumerate()
        .take(percentiles(bits).len())
    {
        let mut codes = vec![0i8; weights.len()];
        let mut row_errors = vec![0.0; row_count];
        std::thread::scope(|scope| {
            let parts = codes
                .chunks_mut(share * cols)
                .zip(row_errors.chunks_mut(share));
            for (part, (codes, errors)) in parts.enumerate() {
                let (factor, permuted, scales) = (&factor, &permuted, &scales);
                scope.spawn(move || {
                    let groups = codes.chunks_mut(ROWS * cols).zip(errors.chunks_mut(ROWS));
                    for (group, (codes, errors)) in groups.enumerate() {
                        let first = part * share + group * ROWS;
                        let rows = &permuted[first * cols..first * cols + codes.len()];
                        quantize_rows(factor, rows, &scales[first..], limit, codes, errors);
                    }
                });
            }
        });
        let error = row_errors.iter().sum::<f64>() / weights.len() as f64;
        errors.push(error);
        if best.as_ref().is_none_or(|(smallest, ..)| error < *smallest) {
            best = Some((error, index, codes, scales));
        }
    }
    let (_, chosen, permuted_codes, scales) = best.expect("there are candidates");
    let mut codes = vec![0i8; weights.len()];
    for (from, to) in permuted_codes
        .chunks_exact(cols)
        .zip(codes.chunks_exact_mut(cols))
    {
        for (code, column) in from.iter().zip(&factor.order) {
            to[*column] = *code;
        }
    }
    Ok(Found {
        codes: RowCodes {
            rows: row_count,
            cols,
            bits,
            codes,
            scales,
        },
        chosen,
        errors,
    })
}

/// A few rows in the factor's column order: codes, and the squared error of each row against its original.
fn quantize_rows(
    factor: &Factor,
    original: &[f64],
    scales: &[f16],
    limit: f64,
    codes: &mut [i8],
    errors: &mut [f64],
) {
    let cols = factor.order.len();
    let row_count = original.len() / cols;
    // Rows of the matrix are columns here: contiguous.
    let mut work = DMatrix::from_column_slice(cols, row_count, original);
    let mut block_errors = DMatrix::zeros(BLOCK, row_count);
    for begin in (0..cols).step_by(BLOCK) {
        let end = (begin + BLOCK).min(cols);
        for (r, row) in work.as_mut_slice().chunks_exact_mut(cols).enumerate() {
            let scale = f64::from(scales[r].to_f32());
            for c in begin..end {
                let u = &factor.transposed.as_slice()[c * cols..][..end];
                let q = (row[c] / scale).round_ties_even().clamp(-limit, limit);
                codes[r * cols + c] = q as i8;
                errors[r] += (original[r * cols + c] - q * scale).powi(2);
                let error = (row[c] - q * scale) / u[c];
                block_errors[(c - begin, r)] = error;
                for (w, u) in row[c..end].iter_mut().zip(&u[c..]) {
                    *w -= error * u;
                }
            }
        }
        if end < cols {
            let reach = factor
                .transposed
                .view((end, begin), (cols - end, end - begin));
            let errors = block_errors.view((0, 0), (end - begin, row_count));
            work.view_mut((end, 0), (cols - end, row_count))
                .gemm(-1.0, &reach, &errors, 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_hessian_is_plain_rounding() {
        let weights: Vec<f32> = (0..64)
            .map(|i| ((i * 37 % 64) as f32 - 32.0) / 20.0)
            .collect();
        let mut hessian = vec![0.0; 256];
        for c in 0..16 {
            hessian[c * 17] = 1.0;
        }
        let found = quantize(&weights, 16, &hessian, 6).unwrap();
        assert_eq!(
            found.codes,
            super::super::clip_search::search(&weights, 16, 6).codes
        );
    }

    #[test]
    fn indefinite_hessians_are_reported() {
        let hessian = [1.0, 5.0, 5.0, 1.0];
        assert_eq!(
            quantize(&[1.0, 2.0], 2, &hessian, 6).unwrap_err(),
            NotPositiveDefinite
        );
        let nan = [f32::NAN; 4];
        assert_eq!(
            quantize(&[1.0, 2.0], 2, &nan, 6).unwrap_err(),
            NotPositiveDefinite
        );
    }
}

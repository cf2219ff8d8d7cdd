//! Initial weights: the published distributions from birdie's own counter-based random numbers.
//!
//! The published runs draw from PyTorch's CPU generator in module order; here every tensor has a stream of its own, seeded by the
//! recipe's seed and the tensor's name. So a tensor's initial values do not depend on which other tensors exist. As in the
//! published code, all initial values are rounded to bf16, whatever the storage.

use super::parameters::{Init, Parameter};
use crate::parity::rule::{Uniform, round_bf16};

/// Row-major initial values, exact in bf16.
pub fn initial_values(parameter: &Parameter, seed: u64) -> Vec<f32> {
    let count = parameter.elements();
    let values: Vec<f64> = match parameter.init {
        Init::Constant(value) => vec![value; count],
        Init::Rows(rows) => (0..count).map(|i| rows[i * rows.len() / count]).collect(),
        Init::Normal { std } => {
            let mut values = normal(seed, &parameter.name, count);
            values.iter_mut().for_each(|x| *x *= std);
            values
        }
        Init::Orthogonal { gain } => {
            let (rows, cols) = (parameter.shape[0], parameter.shape[1]);
            let gaussian = normal(seed, &parameter.name, count);
            let mut values = orthogonal(gaussian, rows, cols);
            values.iter_mut().for_each(|x| *x *= gain);
            values
        }
    };
    values.into_iter().map(|x| round_bf16(x as f32)).collect()
}

/// Standard normal numbers by the Box-Muller transform.
fn normal(seed: u64, name: &str, count: usize) -> Vec<f64> {
    let uniform = Uniform::new(seed, &format!("init:{name}"));
    (0..count as u64)
        .map(|i| {
            // 1 - u lies in (0, 1], so the logarithm is finite.
            let radius = (-2.0 * (1.0 - uniform.at(2 * i)).ln()).sqrt();
            radius * (std::f64::consts::TAU * uniform.at(2 * i + 1)).cos()
        })
        .collect()
}

/// Orthonormal columns (rows, if there are fewer rows than columns) spanning those of the Gaussian matrix `a` [rows, cols].
///
/// Gram-Schmidt, applied twice against rounding, is the QR decomposition with a positive diagonal of R.
fn orthogonal(a: Vec<f64>, rows: usize, cols: usize) -> Vec<f64> {
    // Vectors to orthonormalise, contiguous: rows of a, or of its transpose.
    let wide = rows <= cols;
    let (count, len) = if wide { (rows, cols) } else { (cols, rows) };
    let mut vectors: Vec<Vec<f64>> = (0..count)
        .map(|v| {
            (0..len)
                .map(|i| {
                    if wide {
                        a[v * cols + i]
                    } else {
                        a[i * cols + v]
                    }
                })
                .collect()
        })
        .collect();
    for v in 0..count {
        let (done, rest) = vectors.split_at_mut(v);
        let current = &mut rest[0];
        for _ in 0..2 {
            for earlier in done.iter() {
                let along: f64 = current.iter().zip(earlier).map(|(x, y)| x * y).sum();
                current
                    .iter_mut()
                    .zip(earlier)
                    .for_each(|(x, y)| *x -= along * y);
            }
        }
        let norm = current.iter().map(|x| x * x).sum::<f64>().sqrt();
        current.iter_mut().for_each(|x| *x /= norm);
    }
    (0..rows * cols)
        .map(|i| {
            let (row, col) = (i / cols, i % cols);
            if wide {
                vectors[row][col]
            } else {
                vectors[col][row]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_matrices_have_orthonormal_short_sides() {
        for (rows, cols) in [(8, 24), (24, 8), (16, 16)] {
            let q = orthogonal(normal(1, "q", rows * cols), rows, cols);
            let short = rows.min(cols);
            for i in 0..short {
                for j in 0..short {
                    let dot: f64 = (0..rows.max(cols))
                        .map(|k| {
                            if rows <= cols {
                                q[i * cols + k] * q[j * cols + k]
                            } else {
                                q[k * cols + i] * q[k * cols + j]
                            }
                        })
                        .sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!(
                        (dot - expected).abs() < 1e-12,
                        "{rows}x{cols} {i},{j}: {dot}"
                    );
                }
            }
        }
    }

    #[test]
    fn normal_numbers_have_the_moments() {
        let x = normal(7, "x", 20_000);
        let mean = x.iter().sum::<f64>() / 2e4;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / 2e4;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04,
            "{mean} {variance}"
        );
    }
}

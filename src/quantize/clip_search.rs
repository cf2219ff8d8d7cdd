//! Percentile clip search (the recipes call it "GPTQ-lite") and int8 rows.
//!
//! For each candidate percentile p, the clip of a row is the p-quantile of its magnitudes, the scale is
//! f16(max(clip / limit, 1 / limit)) and the codes are round(w / scale), clamped. The percentile with the smallest mean
//! squared error over the whole matrix wins, the earlier one at a tie. The floor 1 / limit means that rows with
//! magnitudes below 1 use only some of the codes; that is part of the published behaviour.
//!
//! `cuda/clip_search.cu` does the same on the device, bit by bit: so the order of every sum is part of the definition ([`sum`]).

use super::RowCodes;
use half::f16;

/// Candidates for int6. int5 goes without 0.99999.
pub const PERCENTILES_6: &[f64] = &[0.999, 0.9995, 0.9999, 0.99999, 1.0];
pub const PERCENTILES_5: &[f64] = &[0.999, 0.9995, 0.9999, 1.0];
const PERCENTILE_8: f64 = 0.999_998_4;

/// Result of a search over percentiles.
#[derive(Clone, Debug)]
pub struct Found {
    pub codes: RowCodes,
    /// Index of the winner.
    pub chosen: usize,
    /// Mean squared error of every candidate.
    pub errors: Vec<f64>,
}

/// The candidates for a width.
pub fn percentiles(bits: u8) -> &'static [f64] {
    if bits == 5 {
        PERCENTILES_5
    } else {
        PERCENTILES_6
    }
}

/// `quantile(row, p)` of PyTorch 2.9.1 on ascending values: the rank is computed in f32, the interpolation in
/// f64 and rounded once.
pub fn quantile(sorted: &[f32], p: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let rank = p as f32 * last as f32;
    let low = (rank.floor() as usize).min(last);
    let high = (low + 1).min(last);
    let t = f64::from(rank - low as f32);
    let (a, b) = (f64::from(sorted[low]), f64::from(sorted[high]));
    (a + t * (b - a)) as f32
}

/// Row magnitudes in ascending order.
fn sorted_magnitudes(row: &[f32]) -> Vec<f32> {
    let mut sorted: Vec<f32> = row.iter().map(|w| w.abs()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted
}

/// The f16 scale of every row for every candidate percentile: `[percentile][row]`.
pub fn scales(weights: &[f32], cols: usize, bits: u8) -> Vec<Vec<f16>> {
    let limit = f32::from(RowCodes::limit(bits));
    let candidates = percentiles(bits);
    let mut all = vec![Vec::with_capacity(weights.len() / cols); candidates.len()];
    for row in weights.chunks_exact(cols) {
        let sorted = sorted_magnitudes(row);
        for (scales, p) in all.iter_mut().zip(candidates) {
            let clip = if *p < 1.0 {
                quantile(&sorted, *p)
            } else {
                sorted[cols - 1]
            };
            scales.push(f16::from_f32((clip / limit).max(1.0 / limit)));
        }
    }
    all
}

/// round(w / scale) in f32, ties to even, clamped to ±limit.
pub fn code(weight: f32, scale: f32, limit: f32) -> i8 {
    (weight / scale).round_ties_even().clamp(-limit, limit) as i8
}

/// A sum as a warp adds: 32 lanes, each every 32nd term, then the lanes as a butterfly.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; 32];
    for (index, term) in terms.enumerate() {
        lanes[index % 32] += term;
    }
    for step in [16, 8, 4, 2, 1] {
        for lane in 0..step {
            lanes[lane] += lanes[lane + step];
        }
    }
    lanes[0]
}

/// Searches the percentile of a matrix with rows of `cols`.
pub fn search(weights: &[f32], cols: usize, bits: u8) -> Found {
    let limit = f32::from(RowCodes::limit(bits));
    let mut best: Option<(f64, usize, RowCodes)> = None;
    let mut errors = Vec::new();
    for (index, scales) in scales(weights, cols, bits).into_iter().enumerate() {
        let mut codes = Vec::with_capacity(weights.len());
        let of_rows = weights.chunks_exact(cols).zip(&scales);
        let of_rows = of_rows.map(|(row, scale)| {
            let scale = scale.to_f32();
            sum(row.iter().map(|weight| {
                let q = code(*weight, scale, limit);
                codes.push(q);
                let difference = f64::from(weight - f32::from(q) * scale);
                difference * difference
            }))
        });
        let error = sum(of_rows) / weights.len() as f64;
        errors.push(error);
        if best.as_ref().is_none_or(|(smallest, ..)| error < *smallest) {
            best = Some((
                error,
                index,
                RowCodes {
                    rows: scales.len(),
                    cols,
                    bits,
                    codes,
                    scales,
                },
            ));
        }
    }
    let (_, chosen, codes) = best.expect("there are candidates");
    Found {
        codes,
        chosen,
        errors,
    }
}

/// int8 rows of an embedding table: codes with the f32 scale, which is then stored as f16.
pub fn int8_rows(weights: &[f32], cols: usize) -> RowCodes {
    let mut codes = Vec::with_capacity(weights.len());
    let mut scales = Vec::with_capacity(weights.len() / cols);
    for row in weights.chunks_exact(cols) {
        let clip = quantile(&sorted_magnitudes(row), PERCENTILE_8);
        let scale = (clip / 127.0).max(1.0 / 127.0);
        codes.extend(row.iter().map(|w| code(w.clamp(-clip, clip), scale, 127.0)));
        scales.push(f16::from_f32(scale));
    }
    RowCodes {
        rows: scales.len(),
        cols,
        bits: 8,
        codes,
        scales,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_interpolates() {
        let ramp: Vec<f32> = (0..512).map(|i| i as f32).collect();
        assert!((quantile(&ramp, 0.999) - 510.489).abs() < 1e-3);
        assert_eq!(quantile(&ramp, 1.0), 511.0);
        assert_eq!(quantile(&[3.0], 0.5), 3.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn small_rows_hit_the_scale_floor() {
        let found = search(&[0.1, -0.02, 0.3, 0.04], 4, 6);
        assert_eq!(found.codes.scales[0], f16::from_f32(1.0 / 31.0));
        assert_eq!(found.codes.codes, [3, -1, 9, 1]);
    }
}

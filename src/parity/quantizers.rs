//! `all_Q`: clip search, int8 rows, GPTQ and bit packing against the published codes.
//!
//! Matrices are rule values with mean 0, and nine times as large where `u(seed, "tail:" + name, i) > 0.995`. A result's key is
//! `matrix.method`: `int5`, `int6` and `int8` are the searches over rows; every `gptq` method has a Hessian from 512 rule inputs, the
//! ones with `1473` averaged and damped as that recipe does it, the ones that end in `.dead` with columns of zeros.
//!
//! Codes and scales have to agree exactly. GPTQ alone may differ in a handful of codes, where its long sums round differently.

use anyhow::{Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::case::elements;
use super::compare::Tally;
use super::rule::{self, Uniform};
use crate::failure::Failure;
use crate::quantize::{RowCodes, clip_search, gptq, packing};

/// Rows of the inputs that a Hessian is made from.
const INPUT_ROWS: usize = 512;
/// Codes of a GPTQ result that rounding may change.
const GPTQ_CODES: f64 = 8.0;
const MOST_ELEMENTS: usize = 1 << 26;
const MOST_HESSIAN_COLUMNS: usize = 8192;

#[derive(Debug, Deserialize)]
pub struct Quantizers {
    seed: u64,
    matrices: Vec<Matrix>,
    results: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
struct Matrix {
    name: String,
    shape: [usize; 2],
    std: f64,
    sum: Option<f64>,
    max_abs: Option<f64>,
    #[serde(default)]
    first8: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct Expected {
    key: String,
    matrix: String,
    scales_f16_bits: Vec<u16>,
    code_min: i64,
    code_max: i64,
    sum: i64,
    sum_abs: i64,
    signs: Vec<i64>,
    samples: Vec<i64>,
    codes_i8_sha256: String,
    mse: f64,
    #[serde(default)]
    percentiles: Vec<f64>,
    #[serde(default)]
    percentile_mse: Vec<f64>,
    chosen: Option<usize>,
    hessian_error: Option<f64>,
    hessian_error_of_clip_search: Option<f64>,
    h_diag_mean: Option<f64>,
    pack_int5_sha256: Option<String>,
    pack_int5_bytes: Option<i64>,
    pack_int6_sha256: Option<String>,
    pack_int6_bytes: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Search(u8),
    Int8,
    Gptq,
}

impl Expected {
    fn method(&self) -> Result<Method> {
        let name = self.key.strip_prefix(&self.matrix).unwrap_or("");
        match name.strip_prefix('.') {
            Some("int5") => Ok(Method::Search(5)),
            Some("int6") => Ok(Method::Search(6)),
            Some("int8") => Ok(Method::Int8),
            Some(gptq) if gptq.split('.').next() == Some("gptq") => Ok(Method::Gptq),
            _ => Err(Failure::user(
                format!("result {}", self.key),
                format!("no quantizer of matrix `{}` has this key", self.matrix),
                "int5, int6, int8 and gptq.* exist",
            )
            .into()),
        }
    }
}

impl Quantizers {
    /// Refuses what cannot be run.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |why: String| Failure::user("matrices", why, "see src/parity/quantizers.rs");
        for matrix in &self.matrices {
            let count = elements(&matrix.shape);
            ensure!(
                count.is_some_and(|n| (1..=MOST_ELEMENTS).contains(&n)) && matrix.std.is_finite(),
                refuse(format!(
                    "{} has shape {:?} and std {}; at most {MOST_ELEMENTS} elements",
                    matrix.name, matrix.shape, matrix.std
                ))
            );
        }
        ensure!(
            !self.results.is_empty(),
            refuse("the case has no results".into())
        );
        for result in &self.results {
            let Some(matrix) = self.matrices.iter().find(|m| m.name == result.matrix) else {
                return Err(refuse(format!(
                    "{} is of matrix `{}`, which is not listed",
                    result.key, result.matrix
                ))
                .into());
            };
            ensure!(
                result.method()? != Method::Gptq || matrix.shape[1] <= MOST_HESSIAN_COLUMNS,
                refuse(format!(
                    "a Hessian of {0} x {0} is too large",
                    matrix.shape[1]
                ))
            );
        }
        Ok(())
    }

    pub(super) fn run(&self) -> Vec<Tally> {
        let mut tallies = Vec::new();
        for matrix in &self.matrices {
            let weights = matrix.values(self.seed);
            tallies.push(matrix.compare(&weights));
            for result in self.results.iter().filter(|r| r.matrix == matrix.name) {
                tallies.push(self.compare(matrix, &weights, result));
            }
        }
        tallies
    }

    fn compare(&self, matrix: &Matrix, weights: &[f32], expected: &Expected) -> Tally {
        let mut tally = Tally::exact(format!("all Q {}", expected.key));
        let cols = matrix.shape[1];
        let codes = match expected.method() {
            Ok(Method::Int8) => clip_search::int8_rows(weights, cols),
            Ok(Method::Search(bits)) => {
                let found = clip_search::search(weights, cols, bits);
                expected.compare_search(&mut tally, bits, &found);
                found.codes
            }
            // `check` has refused the others.
            Ok(Method::Gptq) | Err(_) => {
                let hessian = hessian(self.seed, matrix, &expected.key);
                if let Some(mean) = expected.h_diag_mean {
                    let diagonal: f64 = (0..cols).map(|c| f64::from(hessian[c * cols + c])).sum();
                    tally.require_close(
                        "Hessian's mean diagonal",
                        mean,
                        diagonal / cols as f64,
                        1e-6,
                    );
                }
                let Ok(found) = gptq::quantize(weights, cols, &hessian, 6) else {
                    tally.require_text("Hessian", "positive definite", "not");
                    return tally;
                };
                for (name, expected, codes) in [
                    ("hessian error", expected.hessian_error, &found.codes),
                    (
                        "hessian error of clip search",
                        expected.hessian_error_of_clip_search,
                        &clip_search::search(weights, cols, 6).codes,
                    ),
                ] {
                    if let Some(expected) = expected {
                        let got = hessian_error(weights, codes, &hessian);
                        tally.require_close(name, expected, got, 1e-4);
                    }
                }
                found.codes
            }
        };
        expected.compare_codes(&mut tally, self.seed, weights, &codes);
        tally
    }
}

impl Matrix {
    fn values(&self, seed: u64) -> Vec<f32> {
        let mut values = rule::weight(seed, &self.name, &self.shape, &[0.0], self.std);
        let tail = Uniform::new(seed, &format!("tail:{}", self.name));
        for (i, value) in values.iter_mut().enumerate() {
            if tail.at(i as u64) > 0.995 {
                *value *= 9.0;
            }
        }
        values
    }

    /// The rule's matrix itself, before any quantizer is blamed.
    fn compare(&self, values: &[f32]) -> Tally {
        let mut tally = Tally::exact(format!("all Q {}", self.name));
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        if let Some(expected) = self.sum {
            tally.require("sum", expected, sum, 1e-8 * values.len() as f64);
        }
        if let Some(expected) = self.max_abs {
            tally.require_close("max_abs", expected, f64::from(largest), 1e-7);
        }
        for (i, (expected, got)) in self.first8.iter().zip(values).enumerate() {
            tally.require_close(format!("[{i}]"), *expected, f64::from(*got), 1e-7);
        }
        tally
    }
}

impl Expected {
    fn compare_search(&self, tally: &mut Tally, bits: u8, found: &clip_search::Found) {
        let candidates = clip_search::percentiles(bits);
        if !self.percentiles.is_empty() {
            tally.require_text(
                "percentiles",
                format!("{:?}", self.percentiles),
                format!("{candidates:?}"),
            );
        }
        if let Some(chosen) = self.chosen {
            tally.require_count("chosen percentile", chosen as i64, found.chosen as i64);
        }
        for (i, expected) in self.percentile_mse.iter().enumerate() {
            let got = found.errors.get(i).copied().unwrap_or(f64::NAN);
            tally.require_close(format!("mse of percentile {i}"), *expected, got, 1e-5);
        }
    }

    fn compare_codes(&self, tally: &mut Tally, seed: u64, weights: &[f32], got: &RowCodes) {
        let scales: Vec<u16> = got.scales.iter().map(|s| s.to_bits()).collect();
        let same = scales
            .iter()
            .zip(&self.scales_f16_bits)
            .filter(|(a, b)| a == b);
        let (rows, same) = (self.scales_f16_bits.len() as i64, same.count() as i64);
        tally.require_count("row scales", rows, scales.len() as i64);
        tally.require_count("row scales that agree", rows, same);
        tally.require_close("mse", self.mse, got.mse(weights), 1e-5);

        let codes: Vec<f64> = got.codes.iter().map(|c| f64::from(*c)).collect();
        let bytes: Vec<u8> = got.codes.iter().map(|c| *c as u8).collect();
        let hash = sha(&bytes);
        let exact = hash == self.codes_i8_sha256;
        // One code changed by one changes a sum by one.
        let slack = match self.method() {
            Ok(Method::Gptq) if !exact => GPTQ_CODES,
            _ => 0.0,
        };
        if slack == 0.0 {
            tally.require_text("codes sha256", short(&self.codes_i8_sha256), short(&hash));
        }
        let mut close = |name: String, expected: i64, got: f64, tolerance: f64| {
            tally.require(name, expected as f64, got, tolerance);
        };
        let (least, most) = codes
            .iter()
            .fold((f64::MAX, f64::MIN), |(a, b), &c| (a.min(c), b.max(c)));
        close("smallest code".into(), self.code_min, least, slack.min(1.0));
        close("largest code".into(), self.code_max, most, slack.min(1.0));
        close("sum of codes".into(), self.sum, codes.iter().sum(), slack);
        let magnitudes = codes.iter().map(|c| c.abs()).sum();
        close("sum of magnitudes".into(), self.sum_abs, magnitudes, slack);
        for (j, expected) in self.signs.iter().enumerate() {
            let got = rule::signed_sum(seed, &self.key, j, &codes);
            close(format!("signs[{j}]"), *expected, got, slack);
        }
        let places = rule::positions(seed, &self.key, codes.len(), self.samples.len());
        for (place, expected) in places.into_iter().zip(&self.samples) {
            close(
                format!("code[{place}]"),
                *expected,
                codes[place],
                slack.min(1.0),
            );
        }
        for (bits, hash, size) in [
            (5, &self.pack_int5_sha256, self.pack_int5_bytes),
            (6, &self.pack_int6_sha256, self.pack_int6_bytes),
        ] {
            let packed = packing::pack(&got.codes, bits);
            if let Some(size) = size {
                tally.require_count(format!("packed int{bits} bytes"), size, packed.len() as i64);
            }
            if let Some(hash) = hash {
                let name = format!("packed int{bits} sha256");
                tally.require_text(name, short(hash), short(&sha(&packed)));
                let back = packing::unpack(&packed, got.codes.len(), bits);
                let same = back.is_some_and(|codes| codes == got.codes);
                tally.require_count(
                    format!("unpacked int{bits} is the same"),
                    1,
                    i64::from(same),
                );
            }
        }
    }
}

/// X^T X of the rule's inputs, rounded to f32.
fn hessian(seed: u64, matrix: &Matrix, key: &str) -> Vec<f32> {
    let (cols, name) = (matrix.shape[1], &matrix.name);
    let mut x = rule::weight(seed, &format!("x:{name}"), &[INPUT_ROWS, cols], &[0.0], 1.0);
    let scale = Uniform::new(seed, &format!("xscale:{name}"));
    let scales: Vec<f32> = (0..cols)
        .map(|c| match c {
            c if key.ends_with(".dead") && c >= 5 && (c - 5).is_multiple_of(97) => 0.0,
            c => ((4.0 * scale.at(c as u64)).floor() - 2.0).exp2() as f32,
        })
        .collect();
    for row in x.chunks_exact_mut(cols) {
        for (value, scale) in row.iter_mut().zip(&scales) {
            *value *= scale;
        }
    }
    let mut h = vec![0f64; cols * cols];
    for row in x.chunks_exact(cols) {
        for (a, h) in row.iter().zip(h.chunks_exact_mut(cols)) {
            let a = f64::from(*a);
            for (h, b) in h.iter_mut().zip(row) {
                *h += a * f64::from(*b);
            }
        }
    }
    if key.contains("1473") {
        // The mean over 4 batches of 128 rows, then damping.
        h.iter_mut().for_each(|v| *v /= 4.0);
        let damp = 0.01 * (0..cols).map(|c| h[c * cols + c]).sum::<f64>() / cols as f64;
        (0..cols).for_each(|c| h[c * cols + c] += damp);
    }
    h.into_iter().map(|v| v as f32).collect()
}

/// sum over rows of e H e^T, per element of the matrix; e = weights - codes * scales.
fn hessian_error(weights: &[f32], codes: &RowCodes, hessian: &[f32]) -> f64 {
    let cols = codes.cols;
    let mut total = 0.0;
    for (r, row) in weights.chunks_exact(cols).enumerate() {
        let scale = f64::from(codes.scales[r].to_f32());
        let e: Vec<f64> = row
            .iter()
            .zip(&codes.codes[r * cols..])
            .map(|(w, q)| f64::from(*w) - f64::from(*q) * scale)
            .collect();
        for (a, h) in e.iter().zip(hessian.chunks_exact(cols)) {
            let product: f64 = h.iter().zip(&e).map(|(h, b)| f64::from(*h) * b).sum();
            total += a * product;
        }
    }
    total / weights.len() as f64
}

/// Lower-case hexadecimal.
pub(super) fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// As much of a hash as a table shows.
pub(super) fn short(hash: &str) -> String {
    hash.chars().take(15).collect()
}

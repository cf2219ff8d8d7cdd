//! Random inputs and comparisons.

/// SplitMix64; every test names its seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }

    /// Roughly normal, standard deviation 1: the sum of twelve uniforms.
    pub fn normal(&mut self) -> f64 {
        (0..12)
            .map(|_| (self.bits() >> 11) as f64 * 2f64.powi(-53))
            .sum::<f64>()
            - 6.0
    }

    /// `n` values of standard deviation `scale`, exact in bf16.
    pub fn bf16(&mut self, n: u64, scale: f64) -> Vec<f64> {
        (0..n).map(|_| bf16(self.normal() * scale)).collect()
    }

    /// `n` values of standard deviation `scale`, exact in f32.
    pub fn f32(&mut self, n: u64, scale: f64) -> Vec<f64> {
        (0..n)
            .map(|_| f64::from((self.normal() * scale) as f32))
            .collect()
    }

    pub fn ids(&mut self, n: u64, below: u64) -> Vec<u16> {
        (0..n).map(|_| self.below(below) as u16).collect()
    }
}

/// Rounds to the nearest bf16, ties to even.
pub fn bf16(x: f64) -> f64 {
    half::bf16::from_f64(x).to_f64()
}

/// Compares with a bound on each element: `absolute + relative |want|`. Reports the worst element and how many are out of bounds.
pub fn assert_close(what: &str, got: &[f64], want: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let mut worst = (0.0, 0);
    let mut outside = 0;
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let excess = if g == w {
            0.0
        } else {
            (g - w).abs() / (absolute + relative * w.abs())
        };
        if excess.is_nan() || excess > 1.0 {
            outside += 1;
        }
        if excess.is_nan() || excess > worst.0 {
            worst = (
                if excess.is_nan() {
                    f64::INFINITY
                } else {
                    excess
                },
                i,
            );
        }
    }
    let (excess, i) = worst;
    assert!(
        outside == 0,
        "{what}: {outside} of {} elements out of bounds; the worst is [{i}]: got {}, want {}, {excess:.2} times the bound",
        want.len(),
        got[i],
        want[i]
    );
}

/// Relative distance of two vectors in the l2 norm.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// Bounds for results that are rounded once to bf16, of a typical size `scale`.
pub fn assert_bf16(what: &str, got: &[f64], want: &[f64], scale: f64) {
    assert_close(what, got, want, 0.006, 0.004 * scale);
}

/// Bounds for sums that are kept in f32, of a typical size `scale`.
pub fn assert_f32(what: &str, got: &[f64], want: &[f64], scale: f64) {
    assert_close(what, got, want, 2e-5, 2e-5 * scale);
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub const NORM_EPSILON: f64 = 1.1920929e-7;

/// 1 / rms of a row.
pub fn inverse_rms(row: &[f64]) -> f64 {
    let squares: f64 = row.iter().map(|x| x * x).sum();
    1.0 / (squares / row.len() as f64 + NORM_EPSILON).sqrt()
}

/// Gradient of `x / rms(x)` for the gradient `e` of the result.
pub fn norm_gradient(x: &[f64], e: &[f64]) -> Vec<f64> {
    let r = inverse_rms(x);
    let mean = x.iter().zip(e).map(|(x, e)| x * r * e).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(e)
        .map(|(x, e)| r * (e - x * r * mean))
        .collect()
}

//! The rule `hash-v1`: values as a function of seed, name and index.
//!
//! All integers are unsigned 64-bit with wrap-around; reals are float64 unless a rounding is named. The rule needs no state, so
//! every element of every tensor can be computed alone.

/// FNV-1a over the UTF-8 bytes of `name`.
pub fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(14_695_981_039_346_656_037, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    })
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z ^= z >> 30;
    z = z.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^= z >> 27;
    z = z.wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of uniform numbers in [0, 1) for one seed and name; element `i` is independent of the others.
#[derive(Clone, Copy)]
pub struct Uniform(u64);

impl Uniform {
    pub fn new(seed: u64, name: &str) -> Self {
        Self(fnv1a(name).wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    pub fn at(self, i: u64) -> f64 {
        let z = self
            .0
            .wrapping_add(i.wrapping_add(1).wrapping_mul(0xd1b5_4a32_d192_ed03));
        (mix(z) >> 11) as f64 * (-53f64).exp2()
    }
}

/// Rounds to the nearest bfloat16, ties to even, and widens again. NaN stays NaN.
pub fn round_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}

/// The weight tensor `name`: element `i` is `bf16(f32(mean + std * sqrt(12) * (u - 0.5)))`, row-major.
///
/// `mean` has one value, or one per row (the first dimension of `shape`). An empty shape is one element.
pub fn weight(seed: u64, name: &str, shape: &[usize], mean: &[f64], std: f64) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let per_mean = (count / mean.len()).max(1);
    let uniform = Uniform::new(seed, name);
    let spread = std * 12f64.sqrt();
    (0..count)
        .map(|i| {
            let value = mean[i / per_mean] + spread * (uniform.at(i as u64) - 0.5);
            round_bf16(value as f32)
        })
        .collect()
}

/// Inputs and targets, each `batch * seq_len` ids, row-major. Row b uses `seq_len + 1` tokens of the rule.
pub fn tokens(seed: u64, batch: usize, seq_len: usize, vocab: usize) -> (Vec<u32>, Vec<u32>) {
    let uniform = Uniform::new(seed, "tokens");
    let token = |b: usize, t: usize| {
        let u = uniform.at((b * (seq_len + 1) + t) as u64);
        // Squared, so that some tokens repeat.
        (u * u * vocab as f64).floor() as u32
    };
    let mut inputs = Vec::with_capacity(batch * seq_len);
    let mut targets = Vec::with_capacity(batch * seq_len);
    for b in 0..batch {
        for t in 0..seq_len {
            inputs.push(token(b, t));
            targets.push(token(b, t + 1));
        }
    }
    (inputs, targets)
}

/// Sum of sign(j, i) * x\[i\]: one number that sees every element.
pub fn signed_sum(seed: u64, name: &str, j: usize, x: &[f64]) -> f64 {
    let uniform = Uniform::new(seed, &format!("sign{j}:{name}"));
    x.iter()
        .enumerate()
        .map(|(i, &v)| if uniform.at(i as u64) < 0.5 { v } else { -v })
        .sum()
}

/// `count` sample positions of a tensor of `len` elements; repeats are possible.
pub fn positions(seed: u64, name: &str, len: usize, count: usize) -> Vec<usize> {
    let uniform = Uniform::new(seed, &format!("pos:{name}"));
    (0..count)
        .map(|k| (uniform.at(k as u64) * len as f64).floor() as usize)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_values() {
        assert_eq!(fnv1a("tokens"), 0x93fa_b8f0_2171_2b13);
        let u = Uniform::new(6571, "tokens");
        assert_eq!(u.at(0), 0.7156966192016858);
        assert_eq!(u.at(1), 0.10196927031547087);
        assert_eq!(u.at(2), 0.273727060110063);
        let (inputs, targets) = tokens(6571, 2, 256, 1024);
        assert_eq!(inputs[..4], [524, 10, 76, 132]);
        assert_eq!(inputs[256..260], [524, 568, 1, 33]);
        assert_eq!(targets[..3], [10, 76, 132]);
        let name = "blocks.0.attn.c_q.weight";
        let w = weight(6571, name, &[128, 128], &[0.0], 0.0883883476);
        // -0.1083984375, -0.1484375, 0.0869140625, 0.1044921875
        let fractions = [-111.0, -152.0, 89.0, 107.0].map(|n| n / 1024.0);
        assert_eq!(w[..4], fractions);
        assert_eq!(positions(6571, name, 128 * 128, 4), [141, 7055, 10265, 16]);
        let signs: Vec<f64> = (0..8)
            .map(|i| {
                let mut x = vec![0.0; 8];
                x[i] = 1.0;
                signed_sum(6571, name, 0, &x)
            })
            .collect();
        assert_eq!(signs, [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn bf16_rounding_is_to_nearest_even() {
        assert_eq!(round_bf16(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round_bf16(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(round_bf16(-1.0 - 1.0 / 256.0 - 1e-6), -1.0 - 2.0 / 256.0);
        assert!(round_bf16(f32::NAN).is_nan());
        assert_eq!(round_bf16(f32::INFINITY), f32::INFINITY);
    }
}

//! What a text costs without a neural network: for the demo's summary.
//!
//! The entropies are those of the text under its own statistics, in bits per byte: a model that knows every
//! single-byte (order 0) or byte-pair (order 1) frequency of this very text could not do better with that
//! knowledge alone. `xz -9` is a general compressor on the same bytes.

use anyhow::Result;
use std::io::Write;

/// Bits per byte, and sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Baselines {
    pub order0: f64,
    pub order1: f64,
    pub xz_bytes: usize,
    pub text_bytes: usize,
}

impl Baselines {
    pub fn of(text: &str) -> Result<Self> {
        Ok(Self {
            order0: order0(text.as_bytes()),
            order1: order1(text.as_bytes()),
            xz_bytes: xz_size(text.as_bytes())?,
            text_bytes: text.len(),
        })
    }

    /// `xz -9` in bits per byte of text.
    pub fn xz_bpb(&self) -> f64 {
        8.0 * self.xz_bytes as f64 / self.text_bytes as f64
    }
}

/// Entropy of single bytes, in bits.
pub fn order0(text: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    entropy(&counts)
}

/// Entropy of a byte given the one before it, in bits.
pub fn order1(text: &[u8]) -> f64 {
    let mut counts = vec![[0u64; 256]; 256];
    for pair in text.windows(2) {
        counts[usize::from(pair[0])][usize::from(pair[1])] += 1;
    }
    let pairs = text.len().saturating_sub(1).max(1) as f64;
    counts
        .iter()
        .map(|row| row.iter().sum::<u64>() as f64 / pairs * entropy(row))
        .sum()
}

fn entropy(counts: &[u64; 256]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    counts
        .iter()
        .filter(|c| **c > 0)
        .map(|c| *c as f64 / total)
        .map(|p| -p * p.log2())
        .sum()
}

/// Bytes of the text after `xz -9`.
pub fn xz_size(text: &[u8]) -> Result<usize> {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 9);
    encoder.write_all(text)?;
    Ok(encoder.finish()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_of_known_texts() {
        assert_eq!(order0(b"abababab"), 1.0);
        assert_eq!(order1(b"abababab"), 0.0);
        let uniform: Vec<u8> = (0..=255).collect();
        assert!((order0(&uniform) - 8.0).abs() < 1e-12);
        assert_eq!(order0(b""), 0.0);
        assert_eq!(order1(b""), 0.0);
    }

    #[test]
    fn english_is_ordered_as_expected() {
        let text = crate::data::demo::text();
        let baselines = Baselines::of(&text[..300_000]).unwrap();
        assert!(baselines.order1 < baselines.order0 - 0.7);
        assert!(baselines.xz_bpb() < baselines.order1);
    }
}

//! Selective ±1 pruning: zeroes codes of magnitude 1 until an artifact meets its budget.
//!
//! Candidates are all ±1 codes of the low-bit matrices, cheapest first: by the square of their row's scale,
//! ties in tensor order, then row by row. The smallest number that meets the budget is found by bisection.
//! The published forms of this never pruned anything (their target was in MiB, or their candidate list empty);
//! this one takes the real budget.

use super::{QuantizedTensor, Stored};
use anyhow::Result;

/// One code that may be zeroed.
struct Candidate {
    cost: f32,
    tensor: u32,
    at: u32,
}

fn candidates(tensors: &[QuantizedTensor]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (tensor, quantized) in tensors.iter().enumerate() {
        let Stored::Rows(rows) = &quantized.stored else {
            continue;
        };
        if rows.bits == 8 {
            continue;
        }
        for (at, code) in rows.codes.iter().enumerate() {
            if code.abs() == 1 {
                let cost = rows.scales[at / rows.cols].to_f32().powi(2);
                found.push(Candidate {
                    cost,
                    tensor: tensor as u32,
                    at: at as u32,
                });
            }
        }
    }
    found.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    found
}

/// Outcome of a pruning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    pub zeroed: usize,
    pub candidates: usize,
    /// Size after pruning, as `size` reported it.
    pub bytes: usize,
}

/// Prunes until `size` of the tensors is at most `budget`. `None`: not even zeroing every candidate meets it (the
/// tensors are then unchanged).
pub fn to_budget(
    tensors: &mut Vec<QuantizedTensor>,
    budget: usize,
    size: &mut dyn FnMut(&[QuantizedTensor]) -> Result<usize>,
) -> Result<Option<Pruned>> {
    let bytes = size(tensors)?;
    let candidates = candidates(tensors);
    if bytes <= budget {
        return Ok(Some(Pruned {
            zeroed: 0,
            candidates: candidates.len(),
            bytes,
        }));
    }
    let original = tensors.clone();
    let pruned = |count: usize| {
        let mut tensors = original.clone();
        for candidate in &candidates[..count] {
            if let Stored::Rows(rows) = &mut tensors[candidate.tensor as usize].stored {
                rows.codes[candidate.at as usize] = 0;
            }
        }
        tensors
    };
    let (mut too_few, mut enough) = (0, candidates.len());
    let mut best = pruned(enough);
    let mut bytes = size(&best)?;
    if bytes > budget {
        return Ok(None);
    }
    // Compressed size is not exactly monotonic in the count; a thousandth of the candidates is close enough.
    let tolerance = (candidates.len() / 1000).max(1);
    while enough - too_few > tolerance {
        let middle = too_few + (enough - too_few) / 2;
        let attempt = pruned(middle);
        let attempt_bytes = size(&attempt)?;
        if attempt_bytes <= budget {
            (enough, best, bytes) = (middle, attempt, attempt_bytes);
        } else {
            too_few = middle;
        }
    }
    *tensors = best;
    Ok(Some(Pruned {
        zeroed: enough,
        candidates: candidates.len(),
        bytes,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::RowCodes;
    use crate::train::engine::Element;
    use half::f16;

    fn tensors() -> Vec<QuantizedTensor> {
        let rows = RowCodes {
            rows: 2,
            cols: 4,
            bits: 6,
            codes: vec![1, -1, 5, 0, 1, 7, -1, 1],
            scales: vec![f16::from_f32(0.5), f16::from_f32(0.25)],
        };
        vec![QuantizedTensor {
            name: "m".into(),
            shape: vec![2, 4],
            restored: Element::F32,
            stored: Stored::Rows(rows),
        }]
    }

    fn nonzero(tensors: &[QuantizedTensor]) -> Result<usize> {
        let Stored::Rows(rows) = &tensors[0].stored else {
            unreachable!()
        };
        Ok(rows.codes.iter().filter(|c| **c != 0).count())
    }

    #[test]
    fn zeroes_the_cheapest_first_and_no_more_than_needed() {
        let mut model = tensors();
        let outcome = to_budget(&mut model, 4, &mut nonzero).unwrap().unwrap();
        assert_eq!(
            outcome,
            Pruned {
                zeroed: 3,
                candidates: 5,
                bytes: 4
            }
        );
        let Stored::Rows(rows) = &model[0].stored else {
            unreachable!()
        };
        assert_eq!(rows.codes, [1, -1, 5, 0, 0, 7, 0, 0]);
    }

    #[test]
    fn says_when_the_budget_cannot_be_met_and_changes_nothing() {
        let mut model = tensors();
        assert_eq!(to_budget(&mut model, 1, &mut nonzero).unwrap(), None);
        assert_eq!(model, tensors());
        assert_eq!(
            to_budget(&mut model, 7, &mut nonzero)
                .unwrap()
                .unwrap()
                .zeroed,
            0
        );
    }
}

//! Which windows a sliding evaluation runs, and which of their targets count.
//!
//! Windows start at 0, stride, 2·stride, … below the number of targets, and end after `seq_len` targets or at the end.
//! The first counts all its targets, every other one its last `stride`. Near the end the windows shrink,
//! and all of them end at the last target: the final `stride` targets are counted up to `seq_len / stride`
//! times. That is part of the published scores; `tail_once` leaves the repeats out.

/// One window of a sliding evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Index of its first input token.
    pub start: usize,
    pub len: usize,
    /// Targets from here to the end of the window count.
    pub first_scored: usize,
}

/// Windows as published, lazily: a full-size evaluation has a million.
pub fn sliding_windows(
    total: usize,
    seq_len: usize,
    stride: usize,
) -> impl Iterator<Item = Window> {
    assert!(stride > 0, "a stride of 0 never ends");
    (0..total).step_by(stride).map(move |start| {
        let len = seq_len.min(total - start);
        let first_scored = if start == 0 {
            0
        } else {
            len.saturating_sub(stride)
        };
        Window {
            start,
            len,
            first_scored,
        }
    })
}

/// All windows of an evaluation. With `tail_once`, a window counts only targets that no window before it
/// has counted, and windows that count nothing are left out.
pub fn windows(total: usize, seq_len: usize, stride: usize, tail_once: bool) -> Vec<Window> {
    let mut counted = 0;
    sliding_windows(total, seq_len, stride)
        .filter_map(|mut window| {
            if tail_once {
                let end = window.start + window.len;
                if end <= counted {
                    return None;
                }
                window.first_scored = window
                    .first_scored
                    .max(counted.saturating_sub(window.start));
                counted = end;
            }
            Some(window)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn published_totals() {
        let (mut windows, mut scored) = (0u64, 0u64);
        for window in sliding_windows(62_021_632, 2048, 64) {
            windows += 1;
            scored += (window.len - window.first_scored) as u64;
        }
        assert_eq!((windows, scored), (969_088, 62_023_616));
        let scored: u64 = sliding_windows(62_021_632, 2048, 16)
            .map(|w| (w.len - w.first_scored) as u64)
            .sum();
        assert_eq!(scored, 62_023_664);
    }

    proptest! {
        #[test]
        fn once_covers_every_target_exactly_once(total in 1usize..600, seq_len in 1usize..80, part in 1usize..80) {
            let stride = part.min(seq_len);
            let mut times = vec![0; total];
            for window in windows(total, seq_len, stride, true) {
                for i in window.first_scored..window.len {
                    times[window.start + i] += 1;
                }
            }
            prop_assert!(times.iter().all(|t| *t == 1), "{times:?}");
        }
    }
}

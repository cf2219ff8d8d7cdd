//! Two records side by side.

use std::fmt::Write as _;

use super::record::{Kind, Record, Row};
use super::table::label;
use crate::failure::Failure;
use anyhow::Result;

/// A change below this share is noise for measured rows whose quantiles overlap anyway; predicted rows are exact, but sampled.
const NOISE: f64 = 0.02;

/// Verdict on one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Faster,
    Slower,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Faster => "faster",
            Self::Slower => "SLOWER",
        }
    }
}

/// Rows with the same name and sizes, paired; the ratio is new to old. Refuses to compare measured with predicted numbers, or
/// predictions of different models.
pub fn compare(old: &Record, new: &Record) -> Result<String> {
    if old.kind != new.kind || (old.kind == Kind::Predicted && old.model != new.model) {
        return Err(Failure::user(
            "bench compare",
            format!(
                "one record is {:?} by {:?}, the other {:?} by {:?}",
                old.kind, old.model, new.kind, new.model
            ),
            "compare measurements of one device, or predictions of one model",
        )
        .into());
    }
    let mut out = String::new();
    let what = match old.kind {
        Kind::Predicted => "predicted bound",
        Kind::Measured => "p50 in the step",
    };
    let _ = writeln!(out, "old: {}", old.origin());
    let _ = writeln!(out, "new: {}", new.origin());
    let _ = writeln!(
        out,
        "{:<58} {:>10} {:>10} {:>7}  verdict ({what}, microseconds)",
        "operation [sizes]", "old", "new", "new/old"
    );
    let mut paired = vec![false; old.rows.len()];
    for row in &new.rows {
        // The same operation with other optional operands can have the same key: rows are paired in their order.
        let at = (0..paired.len()).find(|&at| !paired[at] && old.rows[at].key() == row.key());
        match at {
            Some(at) => {
                paired[at] = true;
                let other = &old.rows[at];
                let _ = writeln!(
                    out,
                    "{:<58} {:>10.1} {:>10.1} {:>7.3}  {}",
                    label(row),
                    other.us(),
                    row.us(),
                    row.us() / other.us(),
                    verdict(other, row).name()
                );
            }
            None => {
                let _ = writeln!(
                    out,
                    "{:<58} {:>10} {:>10.1}          only in new",
                    label(row),
                    "-",
                    row.us()
                );
            }
        }
    }
    for (row, paired) in old.rows.iter().zip(&paired) {
        if !paired {
            let _ = writeln!(
                out,
                "{:<58} {:>10.1} {:>10}          only in old",
                label(row),
                row.us(),
                "-"
            );
        }
    }
    let _ = writeln!(
        out,
        "step: {:.2} ms, {:.2} ms, ratio {:.3}",
        old.total.ms,
        new.total.ms,
        new.total.ms / old.total.ms
    );
    Ok(out)
}

/// Measured rows differ where the ranges between the quantiles are apart and the medians by more than the noise.
pub fn verdict(old: &Row, new: &Row) -> Verdict {
    let ratio = new.us() / old.us();
    let apart = match (&old.measured, &new.measured) {
        (Some(a), Some(b)) => a.in_step.p80 < b.in_step.p20 || b.in_step.p80 < a.in_step.p20,
        _ => true,
    };
    match ratio {
        r if !apart || !r.is_finite() || (r - 1.0).abs() <= NOISE => Verdict::Same,
        r if r < 1.0 => Verdict::Faster,
        _ => Verdict::Slower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Measured, Quantiles};

    fn row(p20: f64, p50: f64, p80: f64) -> Row {
        let quantiles = Quantiles { p20, p50, p80 };
        Row {
            name: "k".into(),
            entry: None,
            sizes: "1 2".into(),
            grid: vec![[1, 1, 1]],
            count: 1,
            flops: 1.0,
            bytes: 1.0,
            floor_us: Some(1.0),
            counts: None,
            predicted: None,
            measured: Some(Measured {
                in_step: quantiles,
                cold_l2: quantiles,
                warm_l2: quantiles,
                repetitions: 5,
                tflops: 1.0,
                gbytes_per_second: 1.0,
                share_of_floor: 1.0,
                clocks: None,
            }),
        }
    }

    #[test]
    fn only_what_is_apart_differs() {
        let old = row(9.9, 10.0, 10.2);
        assert_eq!(verdict(&old, &row(8.9, 9.0, 9.1)), Verdict::Faster);
        assert_eq!(verdict(&old, &row(10.9, 11.0, 11.1)), Verdict::Slower);
        assert_eq!(
            verdict(&old, &row(9.0, 11.0, 13.0)),
            Verdict::Same,
            "they overlap"
        );
        assert_eq!(verdict(&old, &row(10.11, 10.1, 10.1)), Verdict::Same);
    }
}

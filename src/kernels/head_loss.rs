//! Twin of `cuda/head_loss.cu`: softcap and cross-entropy.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, MOST_VOCABULARY, Work, partial_grid};

/// Partial sums of the loss over `rows` rows.
pub fn loss_partials(rows: u64) -> u32 {
    partial_grid(rows, 8)
}

/// Elements from one row of logits to the next: the vocabulary, rounded up to 16 bytes.
pub fn logit_pitch(vocabulary: u64) -> u64 {
    vocabulary.next_multiple_of(8)
}

fn suffix(checks: Checks, vocabulary: u64) -> Result<&'static str> {
    checks.limit((1..=MOST_VOCABULARY).contains(&vocabulary), || {
        format!("V = {vocabulary} is not between 1 and {MOST_VOCABULARY}")
    })?;
    Ok(match vocabulary {
        0..=256 => "v256",
        257..=1024 => "v1024",
        _ => "v4096",
    })
}

/// Softcaps that the kernels serve: no maximum is subtracted from the capped logits.
pub const MOST_SOFTCAP: f32 = 64.0;

pub(super) fn check_softcap(checks: Checks, softcap: f32) -> Result<()> {
    checks.limit(softcap > 0.0 && softcap <= MOST_SOFTCAP, || {
        format!("softcap = {softcap} is not above 0 and at most {MOST_SOFTCAP}")
    })
}

impl Kernels {
    /// Loss of each row summed into `partial` f32 `[loss_partials]`; `logits` bf16 `[rows, V]` in rows of [`logit_pitch`] become their gradient times
    /// `gradient_scale`. `targets` u16 `[rows]`.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn softcap_loss(
        &self,
        stream: &Stream,
        logits: DevPtr,
        targets: DevPtr,
        partial: DevPtr,
        gradient_scale: f32,
        softcap: f32,
        rows: u64,
        vocabulary: u64,
    ) -> Result<Work> {
        let checks = Checks("softcap_loss");
        let suffix = suffix(checks, vocabulary)?;
        check_softcap(checks, softcap)?;
        let grid = loss_partials(rows);
        let pitch = logit_pitch(vocabulary);
        checks.array("logits", logits, 2, &[rows, pitch])?;
        checks.list("targets", targets, 2, &[rows])?;
        checks.list("partial", partial, 4, &[u64::from(grid)])?;
        let (n, v, pitch) = (checks.int("N", rows)?, vocabulary as i32, pitch as i32);
        self.launch(
            stream,
            &format!("softcap_loss_{suffix}"),
            [grid, 1, 1],
            256,
            0,
            &[
                &logits,
                &targets,
                &partial,
                &gradient_scale,
                &softcap,
                &n,
                &v,
                &pitch,
            ],
        )?;
        self.done(Work {
            flops: 12 * rows * vocabulary,
            bytes: 4 * rows * vocabulary,
        })
    }

    /// Loss of each row, f32 `[rows]`. With `round_bf16` the capped logits are rounded first.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn softcap_score(
        &self,
        stream: &Stream,
        logits: DevPtr,
        targets: DevPtr,
        losses: DevPtr,
        round_bf16: bool,
        softcap: f32,
        rows: u64,
        vocabulary: u64,
    ) -> Result<Work> {
        let checks = Checks("softcap_score");
        let suffix = suffix(checks, vocabulary)?;
        check_softcap(checks, softcap)?;
        let pitch = logit_pitch(vocabulary);
        checks.array("logits", logits, 2, &[rows, pitch])?;
        checks.list("targets", targets, 2, &[rows])?;
        checks.list("losses", losses, 4, &[rows])?;
        let (n, v, pitch) = (checks.int("N", rows)?, vocabulary as i32, pitch as i32);
        let round = i32::from(round_bf16);
        self.launch(
            stream,
            &format!("softcap_score_{suffix}"),
            [loss_partials(rows), 1, 1],
            256,
            0,
            &[&logits, &targets, &losses, &round, &softcap, &n, &v, &pitch],
        )?;
        self.done(Work {
            flops: 6 * rows * vocabulary,
            bytes: 2 * rows * vocabulary,
        })
    }
}

//! Twin of `cuda/head_loss.cu`: the head's product, softcap and cross-entropy.

use anyhow::Result;
use cust::stream::Stream;

use crate::driver::launch::Parameter;
use crate::driver::tensor_map::TensorMap;

use super::row_scale::{RowScale, RowScaleParameter};
use super::{Checks, DevPtr, Kernels, Matrix, Work, with_alignment};

/// Columns of a CTA, most CTAs that share a row and most of a cluster, and rows that they have at a time.
const COLUMNS: u64 = 256;
const MOST_CTAS: u64 = 8;
const ROWS: u64 = 128;

/// Partial sums of the loss that [`Kernels::head_loss`] leaves.
pub fn head_partials(rows: u64, vocabulary: u64) -> u64 {
    rows.div_ceil(ROWS) * ctas(vocabulary) * 2
}

/// Elements from one row of logits to the next: the vocabulary, rounded up to 16 bytes.
pub fn logit_pitch(vocabulary: u64) -> u64 {
    vocabulary.next_multiple_of(8)
}

/// Softcaps that the kernels serve: no maximum is subtracted from the capped logits.
pub const MOST_SOFTCAP: f32 = 64.0;

pub(super) fn check_softcap(checks: Checks, softcap: f32) -> Result<()> {
    checks.limit(softcap > 0.0 && softcap <= MOST_SOFTCAP, || {
        format!("softcap = {softcap} is not above 0 and at most {MOST_SOFTCAP}")
    })
}

/// CTAs that share a row.
fn ctas(vocabulary: u64) -> u64 {
    vocabulary
        .div_ceil(COLUMNS)
        .next_power_of_two()
        .min(MOST_CTAS)
}

/// CTAs that share a row, of a kernel.
fn ctas_of(entry: &str) -> Option<u64> {
    match entry {
        "head_loss_1" | "head_score_1" => Some(1),
        "head_loss_2" | "head_score_2" => Some(2),
        "head_loss_4" | "head_score_4" => Some(4),
        "head_loss_8" | "head_score_8" => Some(8),
        _ => None,
    }
}

/// Row blocks of a cluster: two where it stays portable.
fn row_blocks(ctas: u64) -> u64 {
    if 2 * ctas <= MOST_CTAS { 2 } else { 1 }
}

/// CTAs of a cluster of a kernel with clusters.
pub(super) fn cluster(entry: &str) -> Option<u32> {
    ctas_of(entry).map(|ctas| (ctas * row_blocks(ctas)) as u32)
}

/// Dynamic shared memory of the kernels: `HeadShared` in the kernel file.
pub fn shared_bytes(entry: &str) -> u32 {
    let Some(ctas) = ctas_of(entry).map(|ctas| ctas as u32) else {
        return 0;
    };
    with_alignment(4 * (16384 + 32768) + 2 * 8192 + 2 * 2 * ctas * 64 * 4 + 2 * 4 * 4 + 12 * 8)
}

/// Operands of the head.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// `[rows, d]`
    pub hidden: Matrix,
    /// `[V, d]`
    pub table: Matrix,
    /// `[rows, V]`: receives the gradient of the logits. Scores leave it alone.
    pub dlogits: Matrix,
    /// u16 `[rows]`
    pub targets: DevPtr,
    /// The norm of the hidden rows, as a factor; the gradient of the logits is multiplied by it, too.
    pub norm: Option<RowScale>,
    /// C of `C tanh(z / C)`.
    pub softcap: f32,
}

impl Head {
    /// Maps of the hidden rows and of the table.
    fn check(self, checks: Checks) -> Result<(TensorMap, TensorMap)> {
        let (hidden, table) = (self.hidden, self.table);
        checks.limit(
            hidden.columns == table.columns && hidden.batches == 1 && table.batches == 1,
            || {
                format!(
                    "hidden [{}, {}] and table [{}, {}] do not fit together",
                    hidden.rows, hidden.columns, table.rows, table.columns
                )
            },
        )?;
        checks.limit(table.rows <= 1 << 16, || {
            format!("V = {} is beyond u16 targets", table.rows)
        })?;
        check_softcap(checks, self.softcap)?;
        checks.list("targets", self.targets, 2, &[hidden.rows])?;
        let part = ROWS / ctas(table.rows);
        Ok((
            hidden.map(checks, "hidden", part as u32)?,
            table.map(checks, "table", 128)?,
        ))
    }

    fn scale(self, checks: Checks) -> Result<RowScaleParameter> {
        RowScale::parameter(self.norm, checks, self.hidden.rows)
    }

    /// N, V, d.
    fn ints(self, checks: Checks) -> Result<(i32, i32, i32)> {
        Ok((
            checks.int("N", self.hidden.rows)?,
            checks.int("V", self.table.rows)?,
            checks.int("d", self.hidden.columns)?,
        ))
    }

    /// What the operation needs at least. NOTE: wide vocabularies take up to twice the products.
    fn work(self, output_bytes: u64) -> Work {
        let (n, v, d) = (self.hidden.rows, self.table.rows, self.hidden.columns);
        Work {
            flops: n * v * (2 * d + 12),
            bytes: 2 * d * (n + v) + output_bytes * n * v,
        }
    }
}

impl Kernels {
    /// Loss of each row, summed into `partial` f32 `[head_partials]` and, if asked, one by one into `losses` f32 `[rows]`; gradient of
    /// the logits times `gradient_scale`.
    pub fn head_loss(
        &self,
        stream: &Stream,
        head: Head,
        losses: Option<DevPtr>,
        partial: DevPtr,
        gradient_scale: f32,
    ) -> Result<Work> {
        let (rows, vocabulary) = (head.hidden.rows, head.table.rows);
        let checks = Checks("head_loss");
        let (map_x, map_table) = head.check(checks)?;
        checks.limit(
            (head.dlogits.rows, head.dlogits.columns) == (rows, vocabulary),
            || format!("dlogits are not [{rows}, {vocabulary}]"),
        )?;
        let map_dlogits = head.dlogits.map(checks, "dlogits", 64)?;
        checks.list("partial", partial, 4, &[head_partials(rows, vocabulary)])?;
        if let Some(losses) = losses {
            checks.list("losses", losses, 4, &[rows])?;
        }
        let (losses, norm) = (super::address(losses), head.scale(checks)?);
        let (n, v, d) = head.ints(checks)?;
        self.head_launch(
            stream,
            "head_loss",
            head,
            &[
                &map_x,
                &map_table,
                &map_dlogits,
                &head.targets,
                &losses,
                &partial,
                &norm,
                &gradient_scale,
                &head.softcap,
                &n,
                &v,
                &d,
            ],
        )?;
        self.done(head.work(2))
    }

    /// Loss of each row, f32 `[rows]`. With `round_bf16` the capped logits are rounded first.
    pub fn head_score(
        &self,
        stream: &Stream,
        head: Head,
        losses: DevPtr,
        round_bf16: bool,
    ) -> Result<Work> {
        let rows = head.hidden.rows;
        let checks = Checks("head_score");
        let (map_x, map_table) = head.check(checks)?;
        checks.list("losses", losses, 4, &[rows])?;
        let (n, v, d) = head.ints(checks)?;
        let (round, norm) = (i32::from(round_bf16), head.scale(checks)?);
        self.head_launch(
            stream,
            "head_score",
            head,
            &[
                &map_x,
                &map_table,
                &head.targets,
                &losses,
                &norm,
                &round,
                &head.softcap,
                &n,
                &v,
                &d,
            ],
        )?;
        self.done(head.work(0))
    }

    /// `out (+)= factor sum(partial[..count])`.
    pub fn head_loss_sum(
        &self,
        stream: &Stream,
        partial: DevPtr,
        count: u64,
        out: DevPtr,
        factor: f32,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("head_loss_sum");
        checks.list("partial", partial, 4, &[count])?;
        checks.list("out", out, 4, &[1])?;
        let (n, accumulate) = (checks.int("count", count)?, i32::from(accumulate));
        self.launch(
            stream,
            checks.0,
            [1, 1, 1],
            256,
            0,
            &[&partial, &n, &out, &factor, &accumulate],
        )?;
        self.done(Work {
            flops: count,
            bytes: 4 * count,
        })
    }

    fn head_launch(
        &self,
        stream: &Stream,
        kind: &str,
        head: Head,
        parameters: &[&dyn Parameter],
    ) -> Result<()> {
        let ctas = ctas(head.table.rows);
        let entry = format!("{kind}_{ctas}");
        let cluster = ctas * row_blocks(ctas);
        let most = head.hidden.rows.div_ceil(ROWS * row_blocks(ctas)) * cluster;
        let grid = [self.resident(&entry, cluster).min(most) as u32, 1, 1];
        self.launch(stream, &entry, grid, 384, shared_bytes(&entry), parameters)
    }
}

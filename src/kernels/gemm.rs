//! Twin of `cuda/gemm.cu`: matrix products in three orientations, and the second stage of weight gradients.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Matrix, Work, address, with_alignment};
use crate::driver::launch::Parameter;
use crate::driver::tensor_map::TensorMap;

const TILE: u64 = 128;
const BLOCK_K: u64 = 64;
const THREADS: u32 = 384;

/// Which operand is transposed. `D` is `[m, n]` and the sum runs over `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `a [m, k]`, `b [n, k]`: forward, `y = x W^T`.
    Nt,
    /// `a [m, k]`, `b [k, n]`: data gradient, `dx = dy W`.
    Nn,
    /// `a [k, m]`, `b [k, n]`: weight gradient, `dW = dy^T x`.
    Tn,
}

/// Dynamic shared memory of an entry point (`GemmShared` in the kernel file).
pub(super) fn shared_bytes(entry: &str) -> u32 {
    let staging = if entry.ends_with("_f32") {
        2 * 1024
    } else if entry.ends_with("_leaky2") {
        2 * 2 * 16384
    } else {
        2 * 16384
    };
    with_alignment(4 * 2 * 16384 + staging + 10 * 8)
}

#[derive(Clone, Copy)]
struct Shape {
    m: u64,
    n: u64,
    k: u64,
    batches: u64,
}

impl Shape {
    fn of(checks: Checks, orientation: Orientation, a: Matrix, b: Matrix) -> Result<Self> {
        let ((m, k), (n, other)) = match orientation {
            Orientation::Nt => ((a.rows, a.columns), (b.rows, b.columns)),
            Orientation::Nn => ((a.rows, a.columns), (b.columns, b.rows)),
            Orientation::Tn => ((a.columns, a.rows), (b.columns, b.rows)),
        };
        checks.limit(k == other && a.batches == b.batches, || {
            format!(
                "a [{}, {}, {}] and b [{}, {}, {}] do not fit together as {orientation:?}",
                a.batches, a.rows, a.columns, b.batches, b.rows, b.columns
            )
        })?;
        Ok(Self {
            m,
            n,
            k,
            batches: a.batches,
        })
    }

    fn tiles(self) -> u64 {
        self.m.div_ceil(TILE) * self.n.div_ceil(TILE) * self.batches
    }

    fn ints(self, checks: Checks) -> Result<[i32; 4]> {
        Ok([
            checks.int("m", self.m)?,
            checks.int("n", self.n)?,
            checks.int("k", self.k)?,
            checks.int("batches", self.batches)?,
        ])
    }

    /// FLOPs of the products and bytes of the operands and of `outputs` bytes per element of D.
    fn work(self, output_bytes: u64) -> Work {
        let Self { m, n, k, batches } = self;
        Work {
            flops: 2 * m * n * k * batches,
            bytes: batches * (2 * (m * k + n * k) + output_bytes * m * n),
        }
    }
}

/// Maps of the two operands: boxes of 128 rows where k is contiguous, of 64 k otherwise.
fn operand_maps(
    checks: Checks,
    orientation: Orientation,
    a: Matrix,
    b: Matrix,
) -> Result<(TensorMap, TensorMap)> {
    let (rows_a, rows_b) = match orientation {
        Orientation::Nt => (128, 128),
        Orientation::Nn => (128, 64),
        Orientation::Tn => (64, 64),
    };
    Ok((a.map(checks, "a", rows_a)?, b.map(checks, "b", rows_b)?))
}

fn output_map(checks: Checks, argument: &str, shape: Shape, out: Matrix) -> Result<TensorMap> {
    checks.limit(
        (out.rows, out.columns, out.batches) == (shape.m, shape.n, shape.batches),
        || {
            format!(
                "{argument} [{}, {}, {}] is not [{}, {}, {}]",
                out.batches, out.rows, out.columns, shape.batches, shape.m, shape.n
            )
        },
    )?;
    out.map(checks, argument, 64)
}

/// Operands of [`Kernels::split_reduce`]; see `cuda/README.md`.
#[derive(Clone, Copy, Debug)]
pub struct SplitReduce {
    pub partial: DevPtr,
    pub splits: u64,
    /// Rows of one split.
    pub partial_rows: u64,
    /// First of them to reduce.
    pub row_begin: u64,
    pub rows: u64,
    pub columns: u64,
    /// f32 per row, or one for all rows with `one_scale`.
    pub scale: Option<DevPtr>,
    pub one_scale: bool,
    /// The f32 master of the weight, `[rows, columns]`; needed for `scale_grad`.
    pub weight: Option<DevPtr>,
    pub grad: DevPtr,
    /// f32 per row.
    pub scale_grad: Option<DevPtr>,
    pub accumulate: bool,
}

impl Kernels {
    fn gemm_launch(
        &self,
        stream: &Stream,
        entry: &'static str,
        tiles: u64,
        parameters: &[&dyn Parameter],
    ) -> Result<()> {
        let grid = tiles.min(u64::from(self.multiprocessors)) as u32;
        self.launch(
            stream,
            entry,
            [grid, 1, 1],
            THREADS,
            shared_bytes(entry),
            parameters,
        )
    }

    /// `out = D` in bf16.
    pub fn gemm(
        &self,
        stream: &Stream,
        orientation: Orientation,
        a: Matrix,
        b: Matrix,
        out: Matrix,
    ) -> Result<Work> {
        let entry = match orientation {
            Orientation::Nt => "gemm_nt_bf16",
            Orientation::Nn => "gemm_nn_bf16",
            Orientation::Tn => "gemm_tn_bf16",
        };
        let checks = Checks(entry);
        let shape = Shape::of(checks, orientation, a, b)?;
        let (map_a, map_b) = operand_maps(checks, orientation, a, b)?;
        let map_out = output_map(checks, "out", shape, out)?;
        let [m, n, k, batches] = shape.ints(checks)?;
        self.gemm_launch(
            stream,
            entry,
            shape.tiles(),
            &[&map_a, &map_b, &map_out, &m, &n, &k, &batches],
        )?;
        self.done(shape.work(2))
    }

    /// `out = alpha D + beta aux` in bf16; NT or NN. `aux` may be `out`.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    pub fn gemm_add(
        &self,
        stream: &Stream,
        orientation: Orientation,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        aux: Matrix,
        alpha: f32,
        beta: f32,
    ) -> Result<Work> {
        let entry = match orientation {
            Orientation::Nt => "gemm_nt_add_bf16",
            Orientation::Nn => "gemm_nn_add_bf16",
            Orientation::Tn => anyhow::bail!("kernel gemm_tn_add_bf16 does not exist"),
        };
        let checks = Checks(entry);
        let shape = Shape::of(checks, orientation, a, b)?;
        let (map_a, map_b) = operand_maps(checks, orientation, a, b)?;
        let map_out = output_map(checks, "out", shape, out)?;
        let map_aux = output_map(checks, "aux", shape, aux)?;
        let [m, n, k, batches] = shape.ints(checks)?;
        self.gemm_launch(
            stream,
            entry,
            shape.tiles(),
            &[
                &map_a, &map_b, &map_out, &map_aux, &m, &n, &k, &batches, &alpha, &beta,
            ],
        )?;
        self.done(shape.work(4))
    }

    /// The MLP's up product: `pre = a b^T`, `activated = leaky(pre)^2` with slope 1/2, both bf16.
    pub fn gemm_leaky2(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        pre: Matrix,
        activated: Matrix,
    ) -> Result<Work> {
        let entry = "gemm_nt_leaky2";
        let checks = Checks(entry);
        let shape = Shape::of(checks, Orientation::Nt, a, b)?;
        let (map_a, map_b) = operand_maps(checks, Orientation::Nt, a, b)?;
        let map_out = output_map(checks, "pre", shape, pre)?;
        let map_out2 = output_map(checks, "activated", shape, activated)?;
        let [m, n, k, batches] = shape.ints(checks)?;
        self.gemm_launch(
            stream,
            entry,
            shape.tiles(),
            &[&map_a, &map_b, &map_out, &map_out2, &m, &n, &k, &batches],
        )?;
        self.done(shape.work(4))
    }

    /// The gradient through the activation: `out = (a b) * d leaky(pre)^2 / d pre`.
    pub fn gemm_dleaky2(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        pre: Matrix,
    ) -> Result<Work> {
        let entry = "gemm_nn_dleaky2";
        let checks = Checks(entry);
        let shape = Shape::of(checks, Orientation::Nn, a, b)?;
        let (map_a, map_b) = operand_maps(checks, Orientation::Nn, a, b)?;
        let map_out = output_map(checks, "out", shape, out)?;
        let map_pre = output_map(checks, "pre", shape, pre)?;
        let [m, n, k, batches] = shape.ints(checks)?;
        self.gemm_launch(
            stream,
            entry,
            shape.tiles(),
            &[&map_a, &map_b, &map_out, &map_pre, &m, &n, &k, &batches],
        )?;
        self.done(shape.work(4))
    }

    /// Into how many parts to cut k so that an `[m, n]` product fills the device: as many as there are multiprocessors per tile,
    /// but at least 16 k-blocks each and at most 32 parts. Never leaves a part empty.
    pub fn gemm_splits(&self, m: u64, n: u64, k: u64, batches: u64) -> u64 {
        let tiles = m.div_ceil(TILE) * n.div_ceil(TILE) * batches;
        let blocks = k.div_ceil(BLOCK_K);
        let wanted = (u64::from(self.multiprocessors) / tiles).clamp(1, 32);
        let each = blocks.div_ceil(wanted).max(16);
        blocks.div_ceil(each)
    }

    /// `partial[split] =` the part of D that comes from the split's range of k, f32 `[batches, splits, m, n]`. One split is D
    /// itself. NN or TN.
    pub fn gemm_f32(
        &self,
        stream: &Stream,
        orientation: Orientation,
        a: Matrix,
        b: Matrix,
        partial: DevPtr,
        splits: u64,
    ) -> Result<Work> {
        let entry = match orientation {
            Orientation::Nn => "gemm_nn_f32",
            Orientation::Tn => "gemm_tn_f32",
            Orientation::Nt => anyhow::bail!("kernel gemm_nt_f32 does not exist"),
        };
        let checks = Checks(entry);
        let shape = Shape::of(checks, orientation, a, b)?;
        let blocks = shape.k.div_ceil(BLOCK_K);
        checks.limit((1..=blocks).contains(&splits), || {
            format!("{splits} splits of {blocks} k-blocks")
        })?;
        let each = blocks.div_ceil(splits);
        checks.limit(each * (splits - 1) < blocks, || {
            format!(
                "{splits} splits of {each} k-blocks leave one empty, k = {}",
                shape.k
            )
        })?;
        checks.limit(shape.n.is_multiple_of(2), || {
            format!("n = {} is odd", shape.n)
        })?;
        let (map_a, map_b) = operand_maps(checks, orientation, a, b)?;
        checks.array(
            "partial",
            partial,
            4,
            &[shape.batches, splits, shape.m, shape.n],
        )?;
        let [m, n, k, batches] = shape.ints(checks)?;
        let (splits_int, each_int) = (splits as i32, each as i32);
        self.gemm_launch(
            stream,
            entry,
            shape.tiles() * splits,
            &[
                &map_a,
                &map_b,
                &partial,
                &m,
                &n,
                &k,
                &batches,
                &splits_int,
                &each_int,
            ],
        )?;
        self.done(shape.work(4 * splits))
    }

    /// Second stage of a weight gradient.
    pub fn split_reduce(&self, stream: &Stream, r: SplitReduce) -> Result<Work> {
        let checks = Checks("split_reduce");
        let shape = [r.rows, r.columns];
        checks.limit(
            r.columns.is_multiple_of(4) && r.row_begin + r.rows <= r.partial_rows,
            || {
                format!(
                    "rows {}+{} of {}, columns {}",
                    r.row_begin, r.rows, r.partial_rows, r.columns
                )
            },
        )?;
        checks.limit(r.scale_grad.is_none() || r.weight.is_some(), || {
            "scale_grad without weight".into()
        })?;
        checks.array(
            "partial",
            r.partial,
            4,
            &[r.splits, r.partial_rows, r.columns],
        )?;
        checks.array("grad", r.grad, 4, &shape)?;
        checks.optional("weight", r.weight, 4, &shape)?;
        let scales = if r.one_scale { 1 } else { r.rows };
        if let Some(scale) = r.scale {
            checks.list("scale", scale, 4, &[scales])?;
        }
        if let Some(grad) = r.scale_grad {
            checks.list("scale_grad", grad, 4, &[r.rows])?;
        }
        let splits = checks.int("splits", r.splits)?;
        let partial_rows = checks.int("partial_rows", r.partial_rows)?;
        let (row_begin, rows) = (r.row_begin as i32, r.rows as i32);
        let columns = checks.int("columns", r.columns)?;
        let (scale, stride) = (address(r.scale), i32::from(!r.one_scale));
        let (weight, scale_grad) = (address(r.weight), address(r.scale_grad));
        let accumulate = i32::from(r.accumulate);
        self.launch(
            stream,
            checks.0,
            [r.rows.div_ceil(8) as u32, 1, 1],
            256,
            0,
            &[
                &r.partial,
                &splits,
                &partial_rows,
                &row_begin,
                &rows,
                &columns,
                &scale,
                &stride,
                &weight,
                &r.grad,
                &scale_grad,
                &accumulate,
            ],
        )?;
        let elements = r.rows * r.columns;
        self.done(Work {
            flops: elements * (r.splits + 1),
            bytes: 4
                * elements
                * (r.splits + 1 + u64::from(r.accumulate) + u64::from(r.scale_grad.is_some())),
        })
    }
}

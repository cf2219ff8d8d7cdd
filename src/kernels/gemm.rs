//! Twin of `cuda/gemm.cu`: matrix products in three orientations, and the second stage of weight gradients.

use anyhow::Result;
use cust::stream::Stream;

use super::row_scale::{RowScale, square_parts};
pub use super::tile::{Cut, Tile};
use super::{Checks, DevPtr, Kernels, Matrix, Work, address, with_alignment};
use crate::driver::launch::Parameter;
use crate::driver::tensor_map::TensorMap;

pub(super) const BLOCK_K: u64 = 64;
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

/// Dynamic shared memory of an entry point: `Variant` and `GemmShared` in the kernel file.
pub fn shared_bytes(entry: &str) -> u32 {
    let wide = Tile::of_entry(entry).columns() == 256;
    if entry.contains("_mix") {
        return super::gemm_mix::shared_bytes(wide);
    }
    if entry.contains("_attention_output") {
        return super::gemm_attention_output::SHARED;
    }
    let symmetric = entry.contains("_symmetric");
    let aux = entry.contains("_add_") || entry.contains("_dleaky2");
    let (stages, stage) = match (wide, aux) {
        (true, false) => (4, 16384 + 32768),
        (true, true) => (3, 16384 + 32768),
        (false, true) if symmetric => (5, 2 * 16384),
        (false, _) => (6, 2 * 16384),
    };
    let boxes = match (aux, wide) {
        (false, _) => 2,
        (true, true) => 4,
        (true, false) if symmetric => 4,
        (true, false) => 2,
    };
    let staging = if entry.contains("_f32") {
        2 * 16
    } else {
        2 * boxes * 8192
    };
    with_alignment(stages * stage + staging + (2 * stages + 2) * 8)
}

/// CTAs of a cluster of an entry point.
pub(super) fn cluster(entry: &str) -> Option<u32> {
    Some(Tile::of_entry(entry).cluster() as u32)
}

/// Sizes of a product: D is `[m, n]`, the sum runs over k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub batches: u64,
}

impl Shape {
    pub(super) fn of(
        checks: Checks,
        orientation: Orientation,
        a: Matrix,
        b: Matrix,
    ) -> Result<Self> {
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

    pub(super) fn ints(self, checks: Checks) -> Result<[i32; 4]> {
        Ok([
            checks.int("m", self.m)?,
            checks.int("n", self.n)?,
            checks.int("k", self.k)?,
            checks.int("batches", self.batches)?,
        ])
    }

    /// FLOPs of the products and bytes of the operands and of `outputs` bytes per element of D.
    pub(super) fn work(self, output_bytes: u64) -> Work {
        let Self { m, n, k, batches } = self;
        Work {
            flops: 2 * m * n * k * batches,
            bytes: batches * (2 * (m * k + n * k) + output_bytes * m * n),
        }
    }
}

/// Maps of the two operands: where k is contiguous boxes of the rows that a CTA loads at a time, of 64 k otherwise.
pub(super) fn operand_maps(
    checks: Checks,
    orientation: Orientation,
    tile: Tile,
    a: Matrix,
    b: Matrix,
) -> Result<(TensorMap, TensorMap)> {
    let [part_a, part_b] = tile.parts().map(|rows| rows.min(128) as u32);
    let (rows_a, rows_b) = match orientation {
        Orientation::Nt => (part_a, part_b),
        Orientation::Nn => (part_a, 64),
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

/// Square tiles on and below the diagonal.
fn triangle(side: u64) -> u64 {
    let tiles = side.div_ceil(128);
    tiles * (tiles + 1) / 2
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
    /// `ctas` tiles of this kind.
    pub(super) fn gemm_launch(
        &self,
        stream: &Stream,
        entry: &'static str,
        tile: Tile,
        ctas: u64,
        parameters: &[&dyn Parameter],
    ) -> Result<()> {
        let entry = format!("{entry}{}", tile.suffix());
        let most = self.resident(&entry, tile.cluster());
        self.launch(
            stream,
            &entry,
            [ctas.min(most) as u32, 1, 1],
            THREADS,
            shared_bytes(&entry),
            parameters,
        )
    }

    /// The tile for a product whose epilogue reads and writes so many bytes for each element of D, and the CTAs that are its tiles.
    pub(super) fn tile(&self, entry: &str, shape: Shape, element_bytes: u64) -> (Tile, u64) {
        let has = |tile: &Tile| {
            let name = format!("{entry}{}", tile.suffix());
            self.functions.contains_key(name.as_str())
        };
        let wanted = self.tile.filter(has);
        let tile = wanted.unwrap_or_else(|| Tile::of(shape, element_bytes, has(&Tile::Quad)));
        (tile, tile.count(shape.m, shape.n) * shape.batches)
    }

    /// Launches a product with bf16 results: every entry point but the partial sums takes the maps of its operands, those of `tensors` (all
    /// of D's shape), the sizes, and `rest`, in this order. `more_bytes` are what `rest` stands for, for each element of D.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    fn launch_product(
        &self,
        stream: &Stream,
        entry: &'static str,
        orientation: Orientation,
        [a, b]: [Matrix; 2],
        tensors: &[(&str, Matrix)],
        rest: &[&dyn Parameter],
        more_bytes: u64,
    ) -> Result<Work> {
        let checks = Checks(entry);
        let shape = Shape::of(checks, orientation, a, b)?;
        let element_bytes = 2 * tensors.len() as u64 + more_bytes;
        let (tile, ctas) = if entry.contains("_symmetric") {
            (Tile::Square, triangle(shape.n) * shape.batches)
        } else {
            self.tile(entry, shape, element_bytes)
        };
        let (map_a, map_b) = operand_maps(checks, orientation, tile, a, b)?;
        let maps = tensors
            .iter()
            .map(|(argument, matrix)| output_map(checks, argument, shape, *matrix))
            .collect::<Result<Vec<_>>>()?;
        let ints = shape.ints(checks)?;
        let mut parameters: Vec<&dyn Parameter> = vec![&map_a, &map_b];
        parameters.extend(maps.iter().map(|map| map as &dyn Parameter));
        parameters.extend(ints.iter().map(|size| size as &dyn Parameter));
        parameters.extend(rest);
        self.gemm_launch(stream, entry, tile, ctas, &parameters)?;
        Ok(shape.work(element_bytes))
    }

    /// The same for products that read and write nothing else of their size.
    fn product(
        &self,
        stream: &Stream,
        entry: &'static str,
        orientation: Orientation,
        operands: [Matrix; 2],
        tensors: &[(&str, Matrix)],
        rest: &[&dyn Parameter],
    ) -> Result<Work> {
        let work = self.launch_product(stream, entry, orientation, operands, tensors, rest, 0)?;
        self.done(work)
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
        self.product(stream, entry, orientation, [a, b], &[("out", out)], &[])
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
        let tensors = [("out", out), ("aux", aux)];
        self.product(
            stream,
            entry,
            orientation,
            [a, b],
            &tensors,
            &[&alpha, &beta],
        )
    }

    /// `out = a b` where that is known to be symmetric (`b = a` transposed, or a power of a symmetric matrix), in bf16: NT or TN. Tiles
    /// below the diagonal are computed and stored twice.
    pub fn gemm_symmetric(
        &self,
        stream: &Stream,
        orientation: Orientation,
        a: Matrix,
        out: Matrix,
    ) -> Result<Work> {
        let entry = match orientation {
            Orientation::Nt => "gemm_nt_symmetric_bf16",
            Orientation::Tn => "gemm_tn_symmetric_bf16",
            Orientation::Nn => anyhow::bail!("kernel gemm_nn_symmetric_bf16 does not exist"),
        };
        self.product(stream, entry, orientation, [a, a], &[("out", out)], &[])
    }

    /// `out = alpha a a + beta aux` in bf16 for symmetric `a` and `aux`. `aux` must not be `out`: a tile's mirror image is written
    /// while other tiles read theirs.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    pub fn gemm_symmetric_add(
        &self,
        stream: &Stream,
        a: Matrix,
        out: Matrix,
        aux: Matrix,
        alpha: f32,
        beta: f32,
    ) -> Result<Work> {
        let entry = "gemm_nt_symmetric_add_bf16";
        Checks(entry).limit(out.pointer.address != aux.pointer.address, || {
            "aux is out".into()
        })?;
        let tensors = [("out", out), ("aux", aux)];
        self.product(
            stream,
            entry,
            Orientation::Nt,
            [a, a],
            &tensors,
            &[&alpha, &beta],
        )
    }

    /// `out = D` in bf16 with its rows times `scale`; NT.
    pub fn gemm_scaled(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        scale: Option<RowScale>,
    ) -> Result<Work> {
        let entry = "gemm_nt_scaled_bf16";
        self.scaled_product(
            stream,
            entry,
            Orientation::Nt,
            [a, b],
            &[("out", out)],
            scale,
            &[],
        )
    }

    /// `out = D + aux` in bf16, and the sums of squares of its rows: f32 `[square_parts(n), m]`; NT, one batch. `aux` may be `out`.
    pub fn gemm_add_squares(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        aux: Matrix,
        squares: DevPtr,
    ) -> Result<Work> {
        let entry = "gemm_nt_add_squares_bf16";
        let checks = Checks(entry);
        checks.limit(out.batches == 1, || format!("{} batches", out.batches))?;
        let parts = square_parts(out.columns);
        checks.list("squares", squares, 4, &[parts, out.rows])?;
        let tensors = [("out", out), ("aux", aux)];
        self.product(
            stream,
            entry,
            Orientation::Nt,
            [a, b],
            &tensors,
            &[&squares],
        )
    }

    /// The MLP's up product: `pre = scale a b^T` by rows, `activated = leaky(pre)^2` with slope 1/2, both bf16.
    pub fn gemm_leaky2(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        pre: Matrix,
        activated: Matrix,
        scale: Option<RowScale>,
    ) -> Result<Work> {
        let tensors = [("pre", pre), ("activated", activated)];
        let entry = "gemm_nt_leaky2";
        self.scaled_product(stream, entry, Orientation::Nt, [a, b], &tensors, scale, &[])
    }

    /// The gradient through the activation: `out = scale (a b) * d leaky(pre)^2 / d pre` by rows. `dots`, of one batch: sums of `out pre` by
    /// rows, f32 `[square_parts(n), m]`.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    pub fn gemm_dleaky2(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        out: Matrix,
        pre: Matrix,
        scale: Option<RowScale>,
        dots: Option<DevPtr>,
    ) -> Result<Work> {
        let tensors = [("out", out), ("pre", pre)];
        let entry = "gemm_nn_dleaky2";
        let checks = Checks(entry);
        if let Some(dots) = dots {
            checks.limit(out.batches == 1, || format!("{} batches", out.batches))?;
            checks.list("dots", dots, 4, &[square_parts(out.columns), out.rows])?;
        }
        let dots = address(dots);
        self.scaled_product(
            stream,
            entry,
            Orientation::Nn,
            [a, b],
            &tensors,
            scale,
            &[&dots],
        )
    }

    /// The gradient of `x [m, n]` through a product `p = scale x W^T` by rows, its RMSNorm included, for the gradient `a [m, k]` of p, whose rows
    /// have been multiplied by `scale`: `out = aux + a W - x (a . p) / (n scale / rms)` in bf16; NN, one batch. `dots`: sums of `a p` by rows,
    /// f32 `[square_parts(k), m]`, as [`Kernels::gemm_dleaky2`] leaves them. `aux` may be `out`.
    /// `sums`: those of `out x` by rows, f32 `[square_parts(n), m]`.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    pub fn gemm_add_norm(
        &self,
        stream: &Stream,
        a: Matrix,
        weight: Matrix,
        out: Matrix,
        aux: Matrix,
        x: DevPtr,
        scale: RowScale,
        dots: DevPtr,
        sums: Option<DevPtr>,
    ) -> Result<Work> {
        let entry = "gemm_nn_add_norm_bf16";
        let checks = Checks(entry);
        if let Some(sums) = sums {
            checks.list("sums", sums, 4, &[square_parts(out.columns), out.rows])?;
        }
        let sums = address(sums);
        checks.array("x", x, 2, &[out.rows, out.columns])?;
        checks.limit(scale.d == out.columns, || {
            format!("a norm over {} of {} columns", scale.d, out.columns)
        })?;
        checks.limit(x.address != out.pointer.address, || "x is out".into())?;
        let parts = square_parts(a.columns);
        checks.list("dots", dots, 4, &[parts, out.rows])?;
        let parts = checks.int("parts of dots", parts)?;
        checks.limit(a.batches == 1, || format!("{} batches", a.batches))?;
        let scale = RowScale::parameter(Some(scale), checks, out.rows)?;
        let work = self.launch_product(
            stream,
            entry,
            Orientation::Nn,
            [a, weight],
            &[("out", out), ("aux", aux)],
            &[&x, &scale, &dots, &parts, &sums],
            2, // x
        )?;
        self.done(work)
    }

    /// A product that takes a factor for each of its rows, and what is in `rest`. Those of several batches have none.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    fn scaled_product(
        &self,
        stream: &Stream,
        entry: &'static str,
        orientation: Orientation,
        operands: [Matrix; 2],
        tensors: &[(&str, Matrix)],
        scale: Option<RowScale>,
        rest: &[&dyn Parameter],
    ) -> Result<Work> {
        let (checks, [a, _]) = (Checks(entry), operands);
        checks.limit(scale.is_none() || a.batches == 1, || {
            format!("a row scale and {} batches", a.batches)
        })?;
        let scale = RowScale::parameter(scale, checks, a.rows)?;
        let mut parameters: Vec<&dyn Parameter> = vec![&scale];
        parameters.extend(rest);
        self.product(stream, entry, orientation, operands, tensors, &parameters)
    }

    /// `partial[part] =` what comes of the part's range of k, f32 `[batches, parts, m, n]`. A single part is D itself. NN or TN.
    pub fn gemm_f32(
        &self,
        stream: &Stream,
        orientation: Orientation,
        a: Matrix,
        b: Matrix,
        partial: DevPtr,
        cut: Cut,
    ) -> Result<Work> {
        let entry = match orientation {
            Orientation::Nn => "gemm_nn_f32",
            Orientation::Tn => "gemm_tn_f32",
            Orientation::Nt => anyhow::bail!("kernel gemm_nt_f32 does not exist"),
        };
        let checks = Checks(entry);
        let shape = Shape::of(checks, orientation, a, b)?;
        let blocks = shape.k.div_ceil(BLOCK_K);
        let fits = cut.parts >= 1
            && cut.together >= 1
            && cut.blocks * (cut.parts - 1) < blocks
            && cut.blocks * cut.parts >= blocks;
        checks.limit(fits, || {
            format!("{cut:?} does not fit k = {}, {blocks} k-blocks", shape.k)
        })?;
        checks.limit(shape.n.is_multiple_of(2), || {
            format!("n = {} is odd", shape.n)
        })?;
        let tile = self
            .tile
            .filter(|tile| *tile != Tile::Quad)
            .unwrap_or_else(|| Tile::of_split(shape.m, shape.n));
        let (map_a, map_b) = operand_maps(checks, orientation, tile, a, b)?;
        checks.array(
            "partial",
            partial,
            4,
            &[shape.batches, cut.parts, shape.m, shape.n],
        )?;
        let [m, n, k, batches] = shape.ints(checks)?;
        let [parts, each, together] = [cut.parts, cut.blocks, cut.together].map(|n| n as i32);
        self.gemm_launch(
            stream,
            entry,
            tile,
            tile.count(shape.m, shape.n) * shape.batches * cut.parts,
            &[
                &map_a, &map_b, &partial, &m, &n, &k, &batches, &parts, &each, &together,
            ],
        )?;
        self.done(shape.work(4 * cut.parts))
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
        // A warp has a row. Few rows are for all multiprocessors, too.
        let warps = (r.rows / u64::from(self.multiprocessors)).clamp(1, 8);
        self.launch(
            stream,
            checks.0,
            [r.rows.div_ceil(warps) as u32, 1, 1],
            32 * warps as u32,
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

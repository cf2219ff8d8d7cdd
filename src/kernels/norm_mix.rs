//! Twin of `cuda/norm_mix.cu`: the mix at a block's entrance, what is left of RMSNorm beside the products, sums for per-channel parameters.

use anyhow::Result;
use cust::stream::Stream;

use super::attention_forward::AttentionShape;
use super::row_scale::square_parts;
use super::{Checks, DevPtr, Kernels, Work, address, partial_grid, row_shape, row_slots};

/// What enters the mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// x.
    Plain,
    /// `x + weight skip`: bf16 `[N, d]`, f32 `[d]`.
    Skip { skip: DevPtr, weight: DevPtr },
    /// `scale x + bias`, f32 `[d]` each.
    Recycle { scale: DevPtr, bias: DevPtr },
}

impl Entry {
    /// Vectors of d sums that the backward kernel leaves per CTA.
    pub fn sums(self) -> u64 {
        match self {
            Self::Plain => 2,
            Self::Skip { .. } => 3,
            Self::Recycle { .. } => 4,
        }
    }

    /// skip, skip_weight, scale, bias.
    pub(super) fn pointers(self) -> [u64; 4] {
        match self {
            Self::Plain => [0; 4],
            Self::Skip { skip, weight } => [skip.address, weight.address, 0, 0],
            Self::Recycle { scale, bias } => [0, 0, scale.address, bias.address],
        }
    }

    fn check(self, checks: Checks, rows: u64, d: u64) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::Skip { skip, weight } => {
                checks.array("skip", skip, 2, &[rows, d])?;
                checks.array("skip_weight", weight, 4, &[d])
            }
            Self::Recycle { scale, bias } => {
                checks.array("scale", scale, 4, &[d])?;
                checks.array("bias", bias, 4, &[d])
            }
        }
    }
}

/// Operands of both directions of the mix.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub rows: u64,
    pub d: u64,
    pub x: DevPtr,
    pub x0: DevPtr,
    pub entry: Entry,
    /// f32 `[2, d]`.
    pub resid_mix: DevPtr,
}

impl Mix {
    /// The skip is x itself, as behind the last of the encoder's passes.
    pub fn skips_itself(&self) -> bool {
        matches!(self.entry, Entry::Skip { skip, .. } if skip.address == self.x.address)
    }

    /// Tensors that the mix reads: x0, x, and the skip, each of them once.
    fn inputs(&self) -> u64 {
        let skip = matches!(self.entry, Entry::Skip { .. }) && !self.skips_itself();
        1 + u64::from(self.x.address != self.x0.address) + u64::from(skip)
    }

    pub(super) fn check(&self, checks: Checks) -> Result<(u64, &'static str)> {
        let shape = row_shape(checks, self.d)?;
        checks.limit(self.rows > 0, || "no rows".into())?;
        checks.array("x", self.x, 2, &[self.rows, self.d])?;
        checks.array("x0", self.x0, 2, &[self.rows, self.d])?;
        checks.array("resid_mix", self.resid_mix, 4, &[2, self.d])?;
        self.entry.check(checks, self.rows, self.d)?;
        Ok(shape)
    }
}

/// What makes `dx1 . x_in` of each row, for the gradient dx1 of the stream x1 between attention and MLP: see `cuda/norm_mix.cu`.
#[derive(Clone, Copy, Debug)]
pub struct ResidualDot {
    /// Sums of dx1 x1, f32 `[square_parts(d), N]`, as [`Kernels::gemm_add_norm`] leaves them.
    pub dots: DevPtr,
    /// Attention's delta, f32 `[B, H, Tp]`.
    pub delta: DevPtr,
    pub shape: AttentionShape,
}

/// Gradients of the mix.
#[derive(Clone, Copy, Debug)]
pub struct MixGradients {
    /// bf16 `[N, d]`: the gradient of x_in that comes past attention, dx1, and e, that of the normalised x_in, its rows times the factor of
    /// the norm.
    pub sum: DevPtr,
    pub residual: ResidualDot,
    /// Added to dx: the skip gradient of the block before.
    pub extra: Option<DevPtr>,
    pub dx: DevPtr,
    pub dx0: DevPtr,
    pub dx0_accumulate: bool,
    /// With a skip: its gradient, without the other uses of that tensor. Absent where x itself is the skip: then `dx` has it.
    pub dskip: Option<DevPtr>,
    /// f32 `[row_partials, sums d]`.
    pub partial: DevPtr,
}

/// Rows of the partial sums of row kernels of width `d` over `rows` rows.
pub fn row_partials(rows: u64, d: u64) -> u32 {
    partial_grid(rows, row_slots(d).0)
}

impl Kernels {
    /// `y = s rmsnorm(x)`, bf16 `[rows, d]`; `y` may be `x`.
    pub fn norm_forward(
        &self,
        stream: &Stream,
        x: DevPtr,
        y: DevPtr,
        s: f32,
        rows: u64,
        d: u64,
    ) -> Result<Work> {
        let checks = Checks("norm_forward");
        let (_, suffix) = row_shape(checks, d)?;
        checks.array("x", x, 2, &[rows, d])?;
        checks.array("y", y, 2, &[rows, d])?;
        let (rows_int, d_int) = (checks.int("N", rows)?, d as i32);
        let entry = format!("norm_forward_{suffix}");
        let grid = [row_partials(rows, d), 1, 1];
        self.launch(
            stream,
            &entry,
            grid,
            256,
            0,
            &[&x, &y, &s, &rows_int, &d_int],
        )?;
        self.done(Work {
            flops: 4 * rows * d,
            bytes: 4 * rows * d,
        })
    }

    /// `dx = g + ` the gradient of [`Kernels::norm_forward`] with s = 1 for the gradient `dy` of its result; with `scaled` the rows of `dy`
    /// have been multiplied by the norm's factor, whatever its s (see [`super::row_scale`]). `dx` may be `g` or `dy`.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn norm_backward(
        &self,
        stream: &Stream,
        g: Option<DevPtr>,
        x: DevPtr,
        dy: DevPtr,
        dx: DevPtr,
        scaled: bool,
        rows: u64,
        d: u64,
    ) -> Result<Work> {
        let checks = Checks("norm_backward");
        let (_, suffix) = row_shape(checks, d)?;
        checks.optional("g", g, 2, &[rows, d])?;
        for (name, pointer) in [("x", x), ("dy", dy), ("dx", dx)] {
            checks.array(name, pointer, 2, &[rows, d])?;
        }
        let scaled = i32::from(scaled);
        let (residual, rows_int, d_int) = (address(g), checks.int("N", rows)?, d as i32);
        let entry = format!("norm_backward_{suffix}");
        let grid = [row_partials(rows, d), 1, 1];
        self.launch(
            stream,
            &entry,
            grid,
            256,
            0,
            &[&residual, &x, &dy, &dx, &scaled, &rows_int, &d_int],
        )?;
        self.done(Work {
            flops: 10 * rows * d,
            bytes: (6 + 2 * u64::from(g.is_some())) * rows * d,
        })
    }

    /// The mix `x_in`, bf16 `[rows, d]`, and the sums of squares of its rows, f32 `[rows]`.
    pub fn mix_norm_forward(
        &self,
        stream: &Stream,
        mix: &Mix,
        x_in: DevPtr,
        squares: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("mix_norm_forward");
        let (_, suffix) = mix.check(checks)?;
        let (rows, d) = (mix.rows, mix.d);
        checks.array("x_in", x_in, 2, &[rows, d])?;
        checks.list("squares", squares, 4, &[rows])?;
        let [skip, weight, scale, bias] = mix.entry.pointers();
        let (rows_int, d_int) = (checks.int("N", rows)?, d as i32);
        self.launch(
            stream,
            &format!("mix_norm_forward_{suffix}"),
            [row_partials(rows, d), 1, 1],
            256,
            0,
            &[
                &mix.x,
                &mix.x0,
                &skip,
                &weight,
                &scale,
                &bias,
                &mix.resid_mix,
                &x_in,
                &squares,
                &rows_int,
                &d_int,
            ],
        )?;
        self.done(Work {
            flops: 7 * rows * d,
            bytes: 2 * (mix.inputs() + 1) * rows * d + 4 * rows,
        })
    }

    /// Gradient of [`Kernels::mix_norm_forward`]. The sums per channel are finished by [`Kernels::column_sum`]: vector 0 and 1
    /// are resid_mix, then the skip weight, or scale and bias.
    pub fn mix_norm_backward(&self, stream: &Stream, mix: &Mix, g: &MixGradients) -> Result<Work> {
        let checks = Checks("mix_norm_backward");
        let (_, suffix) = mix.check(checks)?;
        let (rows, d) = (mix.rows, mix.d);
        let grid = row_partials(rows, d);
        for (name, pointer) in [("sum", g.sum), ("dx", g.dx), ("dx0", g.dx0)] {
            checks.array(name, pointer, 2, &[rows, d])?;
        }
        checks.optional("extra", g.extra, 2, &[rows, d])?;
        checks.optional("dskip", g.dskip, 2, &[rows, d])?;
        checks.array(
            "partial",
            g.partial,
            4,
            &[u64::from(grid), mix.entry.sums(), d],
        )?;
        checks.limit(
            g.dskip.is_some() == (matches!(mix.entry, Entry::Skip { .. }) && !mix.skips_itself()),
            || format!("dskip {:?} with {:?}", g.dskip, mix.entry),
        )?;
        let (residual, parts) = (g.residual, square_parts(d));
        let shape = residual.shape;
        checks.limit(shape.sequences * shape.tokens == rows, || {
            format!("{rows} rows of {shape:?}")
        })?;
        checks.list("dots", residual.dots, 4, &[parts, rows])?;
        checks.list("delta", residual.delta, 4, &[shape.statistics()])?;
        let parts_int = checks.int("parts of dots", parts)?;
        let heads = checks.int("H", shape.heads())?;
        let tokens = checks.int("T", shape.tokens)?;
        let padded = checks.int("Tp", shape.padded_tokens())?;
        let [skip, weight, scale, bias] = mix.entry.pointers();
        let (extra, dskip, accumulate) = (
            address(g.extra),
            address(g.dskip),
            i32::from(g.dx0_accumulate),
        );
        let (rows_int, d_int) = (checks.int("N", rows)?, d as i32);
        self.launch(
            stream,
            &format!("mix_norm_backward_{suffix}"),
            [grid, 1, 1],
            256,
            0,
            &[
                &g.sum,
                &residual.dots,
                &parts_int,
                &residual.delta,
                &heads,
                &tokens,
                &padded,
                &mix.x,
                &mix.x0,
                &skip,
                &weight,
                &scale,
                &bias,
                &mix.resid_mix,
                &extra,
                &g.dx,
                &g.dx0,
                &accumulate,
                &dskip,
                &g.partial,
                &rows_int,
                &d_int,
            ],
        )?;
        // Beside the inputs: the sum, dx, dx0, its old value, dskip, extra.
        let tensors = mix.inputs()
            + 3
            + u64::from(g.dx0_accumulate)
            + u64::from(g.dskip.is_some())
            + u64::from(g.extra.is_some());
        self.done(Work {
            flops: 24 * rows * d,
            bytes: 2 * tensors * rows * d + 4 * rows * (parts + shape.heads()),
        })
    }

    /// `out[c] (+)= factor * sum_g partial[g][offset + c]` for `columns` columns of `partial` f32 `[count, stride]`.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn column_sum(
        &self,
        stream: &Stream,
        partial: DevPtr,
        count: u64,
        stride: u64,
        offset: u64,
        columns: u64,
        out: DevPtr,
        factor: f32,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("column_sum");
        checks.limit(
            count > 0 && columns > 0 && offset + columns <= stride,
            || format!("columns {offset}+{columns} of [{count}, {stride}]"),
        )?;
        checks.list("partial", partial, 4, &[count, stride])?;
        checks.list("out", out, 4, &[columns])?;
        let (count_int, stride_int) = (checks.int("G", count)?, checks.int("stride", stride)?);
        let (offset_int, columns_int) = (offset as i32, columns as i32);
        let accumulate = i32::from(accumulate);
        self.launch(
            stream,
            checks.0,
            [columns.div_ceil(128) as u32, 1, 1],
            128,
            0,
            &[
                &partial,
                &count_int,
                &stride_int,
                &offset_int,
                &columns_int,
                &out,
                &factor,
                &accumulate,
            ],
        )?;
        self.done(Work {
            flops: count * columns,
            bytes: 4 * count * columns,
        })
    }
}

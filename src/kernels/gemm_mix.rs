//! Twin of `cuda/gemm_mix.cu`: the MLP-down product with its residual and the mix at the entrance of the next block.

use anyhow::Result;
use cust::stream::Stream;

use super::gemm::{Orientation, Shape, operand_maps};
use super::norm_mix::Mix;
use super::row_scale::square_parts;
use super::{Checks, DevPtr, Kernels, Matrix, Work, with_alignment};

/// Dynamic shared memory of an entry point: `Variant` and `MixShared` in the kernel file.
pub(super) fn shared_bytes(wide: bool) -> u32 {
    let (stages, columns) = if wide { (3, 256) } else { (4, 128) };
    let stage = 128 * (128 + columns);
    let (boxes, parameters) = (2 * 4 * 8192, 2 * columns / 2 * 32);
    with_alignment(stages * stage + boxes + parameters + 2 * stages * 8)
}

impl Kernels {
    /// The product `D = a b^T` of `a [N, k]` and `b [d, k]` with `x = D + aux` in bf16, and the mix of what it stores: `mix.x` is written here, not
    /// read. Then as [`Kernels::mix_norm_forward`]: `x_in` bf16 `[N, d]`, but `squares` in parts, f32 `[square_parts(d), N]`. The skip may be
    /// `mix.x`, and `aux` too. `aux` is bf16 `[N, d]`.
    #[allow(clippy::too_many_arguments)] // the operands of one product
    pub fn gemm_mix(
        &self,
        stream: &Stream,
        a: Matrix,
        b: Matrix,
        aux: DevPtr,
        mix: &Mix,
        x_in: DevPtr,
        squares: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("gemm_nt_mix");
        mix.check(checks)?;
        let (rows, d) = (mix.rows, mix.d);
        let product = Shape::of(checks, Orientation::Nt, a, b)?;
        checks.limit(
            (product.m, product.n, product.batches) == (rows, d, 1),
            || {
                format!(
                    "[{}, {}] = a b^T, but x is [{rows}, {d}]",
                    product.m, product.n
                )
            },
        )?;
        checks.limit(rows * d <= u64::from(u32::MAX), || {
            format!("{rows} x {d} elements are too many")
        })?;
        checks.array("aux", aux, 2, &[rows, d])?;
        checks.list("squares", squares, 4, &[square_parts(d), rows])?;
        let [skip, weight, scale, bias] = mix.entry.pointers();
        // Without its tensor a skip is of x itself.
        let skip = if mix.skips_itself() { 0 } else { skip };
        for (name, read) in [
            ("aux", aux.address),
            ("x0", mix.x0.address),
            ("the skip", skip),
        ] {
            checks.limit(read != x_in.address, || format!("x_in is {name}"))?;
        }
        checks.limit(
            ![mix.x0.address, x_in.address].contains(&mix.x.address),
            || "x is x0 or x_in".into(),
        )?;
        // aux, x0, x and x_in, perhaps the skip.
        let element_bytes = 2 * (4 + u64::from(skip != 0));
        let (tile, ctas) = self.tile(checks.0, product, element_bytes);
        let (map_a, map_b) = operand_maps(checks, Orientation::Nt, tile, a, b)?;
        let map = |argument, pointer| Matrix::new(pointer, rows, d).map(checks, argument, 64);
        let (out, x_in) = (map("x", mix.x)?, map("x_in", x_in)?);
        let [m, n, k, batches] = product.ints(checks)?;
        self.gemm_launch(
            stream,
            checks.0,
            tile,
            ctas,
            &[
                &map_a,
                &map_b,
                &out,
                &x_in,
                &m,
                &n,
                &k,
                &batches,
                &aux,
                &mix.x0,
                &skip,
                &weight,
                &scale,
                &bias,
                &mix.resid_mix,
                &squares,
            ],
        )?;
        let mut work = product.work(element_bytes);
        work.bytes += 4 * square_parts(d) * rows;
        self.done(work)
    }
}

//! Twin of `cuda/embedding.cu`: the embedding block, sums of rows by key, the value embedding's gradient.

use anyhow::Result;
use cust::stream::Stream;

use super::{
    Checks, DevPtr, Kernels, MOST_BUCKETS, MOST_VALUE_EMBEDDINGS, Work, address, flat_grid,
    row_shape, row_slots,
};

/// Rows that one slot of the embedding kernels walks.
const RUN: u64 = 8;
/// Keys of one chunk of the sort.
const CHUNK: u64 = 1024;

/// Operands of both directions of the embedding block.
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    pub sequences: u64,
    pub tokens: u64,
    pub d: u64,
    /// u16 `[N]`.
    pub ids: DevPtr,
    /// bf16 `[V, d]`.
    pub tok_emb: DevPtr,
    pub vocabulary: u64,
    /// u16 `[N]` and the projected table bf16 `[buckets, d]`.
    pub bigram: Option<Bigram>,
    /// f32 `[d]`.
    pub smear_gate: DevPtr,
}

/// The bigram part of the embedding block.
#[derive(Clone, Copy, Debug)]
pub struct Bigram {
    pub index: DevPtr,
    pub table: DevPtr,
    pub buckets: u64,
}

/// CTAs of the embedding kernels, and rows of the backward's partial sums.
pub fn embedding_partials(rows: u64, d: u64) -> u32 {
    rows.div_ceil(RUN * row_slots(d).0) as u32
}

/// Chunks of the sort of `rows` keys: rows of its counts `[chunks, buckets]`.
pub fn segment_chunks(rows: u64) -> u64 {
    rows.div_ceil(CHUNK)
}

/// Rows sorted by key; made by [`Kernels::segment_sort`].
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    pub rows: u64,
    pub buckets: u64,
    /// i32 `[segment_chunks, buckets]`, scratch.
    pub counts: DevPtr,
    /// i32 `[buckets + 1]`.
    pub starts: DevPtr,
    /// i32 `[rows]`.
    pub order: DevPtr,
}

impl Embedding {
    fn rows(&self) -> u64 {
        self.sequences * self.tokens
    }

    /// Suffix of the kernel, N and T as it takes them, addresses of the bigram's index and table.
    fn check(&self, checks: Checks) -> Result<(&'static str, [i32; 2], [u64; 2])> {
        let (_, suffix) = row_shape(checks, self.d)?;
        let rows = self.rows();
        checks.limit(rows > 0 && self.vocabulary <= 65536, || {
            format!("{self:?} is empty or has too many tokens")
        })?;
        checks.list("ids", self.ids, 2, &[rows])?;
        checks.array("tok_emb", self.tok_emb, 2, &[self.vocabulary, self.d])?;
        checks.array("smear_gate", self.smear_gate, 4, &[self.d])?;
        let mut bigram = [0; 2];
        if let Some(b) = self.bigram {
            checks.list("index", b.index, 2, &[rows])?;
            checks.array("bigram_table", b.table, 2, &[b.buckets, self.d])?;
            bigram = [b.index.address, b.table.address];
        }
        let sizes = [checks.int("N", rows)?, checks.int("T", self.tokens)?];
        Ok((suffix, sizes, bigram))
    }
}

impl Kernels {
    /// Bucket of each (previous, current) pair: `index` u16 `[N]`.
    pub fn bigram_index(
        &self,
        stream: &Stream,
        ids: DevPtr,
        index: DevPtr,
        rows: u64,
        tokens: u64,
        buckets: u64,
    ) -> Result<Work> {
        let checks = Checks("bigram_index");
        checks.limit(
            rows > 0 && tokens > 0 && (2..=65536).contains(&buckets),
            || format!("{rows} rows, {tokens} tokens, {buckets} buckets"),
        )?;
        checks.list("ids", ids, 2, &[rows])?;
        checks.list("index", index, 2, &[rows])?;
        let (n, t, b) = (
            checks.int("N", rows)?,
            checks.int("T", tokens)?,
            buckets as i32,
        );
        let grid = [rows.div_ceil(256) as u32, 1, 1];
        self.launch(stream, checks.0, grid, 256, 0, &[&ids, &index, &n, &t, &b])?;
        self.done(Work {
            flops: 0,
            bytes: 4 * rows,
        })
    }

    /// The embedding block: `x0` bf16 `[N, d]`.
    pub fn embedding_forward(&self, stream: &Stream, e: &Embedding, x0: DevPtr) -> Result<Work> {
        let checks = Checks("embedding_forward");
        let (suffix, [rows, tokens], [index, table]) = e.check(checks)?;
        checks.array("x0", x0, 2, &[e.rows(), e.d])?;
        let d = e.d as i32;
        self.launch(
            stream,
            &format!("embedding_forward_{suffix}"),
            [embedding_partials(e.rows(), e.d), 1, 1],
            256,
            0,
            &[
                &e.ids,
                &index,
                &e.tok_emb,
                &table,
                &e.smear_gate,
                &x0,
                &rows,
                &tokens,
                &d,
            ],
        )?;
        self.done(Work {
            flops: 8 * e.rows() * e.d,
            bytes: 2 * e.rows() * e.d * (2 + u64::from(e.bigram.is_some())),
        })
    }

    /// Gradient of the gathered sum, `de` bf16 `[N, d]`, from `dx` (+ `dx0`); sums for smear_gate in `partial` f32
    /// `[embedding_partials, d]`, finished by [`Kernels::column_sum`].
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn embedding_backward(
        &self,
        stream: &Stream,
        e: &Embedding,
        dx: DevPtr,
        dx0: Option<DevPtr>,
        de: DevPtr,
        partial: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("embedding_backward");
        let (suffix, [rows, tokens], [index, table]) = e.check(checks)?;
        let grid = embedding_partials(e.rows(), e.d);
        checks.array("dx", dx, 2, &[e.rows(), e.d])?;
        checks.optional("dx0", dx0, 2, &[e.rows(), e.d])?;
        checks.array("de", de, 2, &[e.rows(), e.d])?;
        checks.limit(de != dx && Some(de) != dx0, || {
            "de must not be dx or dx0: neighbouring rows are read".into()
        })?;
        checks.array("partial", partial, 4, &[u64::from(grid), e.d])?;
        let (second, d) = (address(dx0), e.d as i32);
        self.launch(
            stream,
            &format!("embedding_backward_{suffix}"),
            [grid, 1, 1],
            256,
            0,
            &[
                &dx,
                &second,
                &e.ids,
                &index,
                &e.tok_emb,
                &table,
                &e.smear_gate,
                &de,
                &partial,
                &rows,
                &tokens,
                &d,
            ],
        )?;
        let tensors = 3 + u64::from(dx0.is_some()) + u64::from(e.bigram.is_some());
        self.done(Work {
            flops: 16 * e.rows() * e.d,
            bytes: 2 * tensors * e.rows() * e.d,
        })
    }

    /// Sorts the rows by their key (u16 `[rows]`), stably. Three launches.
    pub fn segment_sort(&self, stream: &Stream, keys: DevPtr, s: &Segments) -> Result<Work> {
        let checks = Checks("segment_sort");
        checks.limit(
            s.rows > 0 && (1..=MOST_BUCKETS).contains(&s.buckets),
            || {
                format!(
                    "{} rows, {} buckets (at most {MOST_BUCKETS})",
                    s.rows, s.buckets
                )
            },
        )?;
        let chunks = segment_chunks(s.rows);
        checks.list("keys", keys, 2, &[s.rows])?;
        checks.list("counts", s.counts, 4, &[chunks, s.buckets])?;
        checks.list("starts", s.starts, 4, &[s.buckets + 1])?;
        checks.list("order", s.order, 4, &[s.rows])?;
        let (rows, buckets) = (checks.int("N", s.rows)?, s.buckets as i32);
        let (chunk, chunks_int) = (CHUNK as i32, chunks as i32);
        let shared = 4 * s.buckets as u32;
        let grid = [chunks as u32, 1, 1];
        self.launch(
            stream,
            "segment_count",
            grid,
            256,
            shared,
            &[&keys, &rows, &buckets, &chunk, &s.counts],
        )?;
        self.launch(
            stream,
            "segment_scan",
            [1, 1, 1],
            256,
            0,
            &[&s.counts, &chunks_int, &buckets, &s.starts],
        )?;
        self.launch(
            stream,
            "segment_place",
            grid,
            32,
            shared,
            &[&keys, &rows, &buckets, &chunk, &s.counts, &s.order],
        )?;
        self.done(Work {
            flops: 0,
            bytes: 8 * s.rows + 16 * chunks * s.buckets,
        })
    }

    fn segment_check(
        checks: Checks,
        s: &Segments,
        rows: DevPtr,
        stride: u64,
        columns: u64,
    ) -> Result<[i32; 3]> {
        checks.limit(
            columns > 0
                && columns.is_multiple_of(8)
                && columns <= 2048
                && columns <= stride
                && stride.is_multiple_of(8),
            || format!("{columns} columns of rows of {stride}: multiples of 8, at most 2048"),
        )?;
        checks.array("rows", rows, 2, &[(s.rows - 1) * stride + columns])?;
        checks.list("starts", s.starts, 4, &[s.buckets + 1])?;
        checks.list("order", s.order, 4, &[s.rows])?;
        Ok([
            checks.int("row_stride", stride)?,
            s.buckets as i32,
            columns as i32,
        ])
    }

    /// Sum of the rows of each bucket, f32 `[buckets, columns]`. `rows` bf16 with `stride` elements from one to the next.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn segment_sum_f32(
        &self,
        stream: &Stream,
        s: &Segments,
        rows: DevPtr,
        stride: u64,
        columns: u64,
        out: DevPtr,
        accumulate: bool,
    ) -> Result<Work> {
        let checks = Checks("segment_sum_f32");
        let [stride_int, buckets, columns_int] =
            Self::segment_check(checks, s, rows, stride, columns)?;
        checks.array("out", out, 4, &[s.buckets, columns])?;
        let accumulate = i32::from(accumulate);
        let grid = [s.buckets as u32, 1, 1];
        self.launch(
            stream,
            checks.0,
            grid,
            256,
            0,
            &[
                &rows,
                &stride_int,
                &s.order,
                &s.starts,
                &buckets,
                &columns_int,
                &out,
                &accumulate,
            ],
        )?;
        self.done(Work {
            flops: s.rows * columns,
            bytes: 2 * s.rows * columns + 4 * s.buckets * columns,
        })
    }

    /// The same in bf16.
    pub fn segment_sum_bf16(
        &self,
        stream: &Stream,
        s: &Segments,
        rows: DevPtr,
        stride: u64,
        columns: u64,
        out: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("segment_sum_bf16");
        let [stride_int, buckets, columns_int] =
            Self::segment_check(checks, s, rows, stride, columns)?;
        checks.array("out", out, 2, &[s.buckets, columns])?;
        let grid = [s.buckets as u32, 1, 1];
        let parameters: &[&dyn crate::driver::launch::Parameter] = &[
            &rows,
            &stride_int,
            &s.order,
            &s.starts,
            &buckets,
            &columns_int,
            &out,
        ];
        self.launch(stream, checks.0, grid, 256, 0, parameters)?;
        self.done(Work {
            flops: s.rows * columns,
            bytes: 2 * s.rows * columns + 2 * s.buckets * columns,
        })
    }

    /// `out = sum_j scales[j] tables[j]`, bf16 `[n]`, and the partial sums of `tables[j] . projected` in `partial` f32
    /// `[flat_grid(n), 16]`. `tables` is f32 `[layers, n]`; the scales lie equally far apart.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn value_embedding_combine(
        &self,
        stream: &Stream,
        tables: DevPtr,
        scales: &[DevPtr],
        projected: DevPtr,
        out: DevPtr,
        partial: DevPtr,
        n: u64,
    ) -> Result<Work> {
        let checks = Checks("value_embedding_combine");
        let layers = scales.len() as u64;
        checks.limit(
            (1..=MOST_VALUE_EMBEDDINGS).contains(&layers) && n.is_multiple_of(8) && n > 0,
            || format!("{layers} layers of {n} elements"),
        )?;
        checks.array("tables", tables, 4, &[layers, n])?;
        checks.array("projected", projected, 2, &[n])?;
        checks.array("out", out, 2, &[n])?;
        checks.array(
            "partial",
            partial,
            4,
            &[u64::from(flat_grid(n)), MOST_VALUE_EMBEDDINGS],
        )?;
        for scale in scales {
            checks.list("scale", *scale, 4, &[1])?;
        }
        let stride = match scales {
            [first, second, ..] => second.address.wrapping_sub(first.address),
            _ => 4,
        };
        let evenly = scales
            .windows(2)
            .all(|pair| pair[1].address.wrapping_sub(pair[0].address) == stride);
        checks.limit(evenly && stride.is_multiple_of(4), || {
            "the layers' scales are not equally far apart".into()
        })?;
        let scale_stride = checks.int("scale_stride", stride / 4)?;
        let layers_int = layers as i32;
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[
                &tables,
                &layers_int,
                &scales[0],
                &scale_stride,
                &projected,
                &out,
                &partial,
                &n,
            ],
        )?;
        self.done(Work {
            flops: 4 * layers * n,
            bytes: n * (4 * layers + 4),
        })
    }
}

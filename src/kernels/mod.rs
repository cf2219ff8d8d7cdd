//! Host twins of the kernel files: `src/kernels/X.rs` launches what `cuda/X.cu` defines.
//!
//! A twin knows what its kernel assumes and checks it before every launch: shapes, limits, alignment, the size of each
//! buffer. What is wrong is named by kernel, argument and shape. It builds the tensor maps, picks the grid and the shared
//! memory, and returns the [`Work`] of the launch: how much arithmetic and how much memory traffic the operation needs at least.
//!
//! Everything goes through [`Kernels`], which has all kernels loaded. The operands are [`DevPtr`]s: an address and the number of
//! bytes from there to the end of what it points into. The table of entry points in `cuda/README.md` says what each operand is.
//!
//! A twin does not allocate, does not synchronise and does not know what the tensors mean to a model.

pub mod adam;
pub mod attention_backward;
pub mod attention_decode;
pub mod attention_forward;
pub mod attention_output;
pub mod clip_search;
pub mod embedding;
pub mod gemm;
pub mod gemm_attention_output;
pub mod gemm_mix;
pub mod gemm_qkv;
pub mod head_loss;
pub mod muon;
pub mod norm_mix;
pub mod observe;
pub mod qkv;
pub mod quantize;
pub mod row_scale;
pub mod sampling;
pub mod step_values;
pub mod tile;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::AddAssign;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cust::context::CurrentContext;
use cust::device::DeviceAttribute;
use cust::stream::Stream;

use self::observe::Seen;
use crate::driver::DriverError;
use crate::driver::launch::{Launch, Parameter};
use crate::driver::modules::{Function, Module, kernel_file};
use crate::driver::tensor_map::{Element, Swizzle, TensorMap, Tiled};

/// A device address and the bytes that may be used from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevPtr {
    pub address: u64,
    pub bytes: u64,
}

impl DevPtr {
    pub fn new(address: u64, bytes: u64) -> Self {
        Self { address, bytes }
    }

    /// The same buffer from `bytes` on.
    ///
    /// # Panics
    /// If that lies beyond its end: a defect of the caller.
    pub fn offset(self, bytes: u64) -> Self {
        assert!(
            bytes <= self.bytes,
            "offset {bytes} into {} bytes of device memory",
            self.bytes
        );
        Self::new(self.address + bytes, self.bytes - bytes)
    }
}

// SAFETY: passed as its address: a pointer is a 64-bit address on both sides.
unsafe impl Parameter for DevPtr {
    fn bytes(&self) -> (usize, *const c_void) {
        (8, std::ptr::from_ref(&self.address).cast())
    }
}

/// What an operation needs at least: floating-point operations, and bytes with every tensor read and written once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub flops: u64,
    pub bytes: u64,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// Widest rows that the row kernels serve, most heads, and most layers with a value embedding.
pub const MOST_CHANNELS: u64 = 2048;
pub const MOST_HEADS: u64 = 64;
pub const MOST_VALUE_EMBEDDINGS: u64 = 16;
/// Largest vocabulary of the head's loss, and most keys that the sort of rows by key can hold in shared memory.
pub const MOST_VOCABULARY: u64 = 4096;
pub const MOST_BUCKETS: u64 = 12_288;

/// The kernel files, in the order in which they are loaded.
pub const FILES: [&str; 17] = [
    "adam",
    "attention_backward",
    "attention_decode",
    "attention_forward",
    "attention_output",
    "clip_search",
    "embedding",
    "gemm",
    "gemm_attention_output",
    "gemm_mix",
    "gemm_qkv",
    "head_loss",
    "muon",
    "norm_mix",
    "qkv",
    "quantize",
    "sampling",
];

/// All kernels, loaded into the current context.
#[derive(Clone, Debug)]
pub struct Kernels {
    functions: Arc<HashMap<&'static str, Function>>,
    /// Clusters that the device runs at once, of the kernels that are persistent and have clusters.
    clusters: Arc<HashMap<&'static str, u32>>,
    /// Keep the functions valid.
    _modules: Arc<Vec<Module>>,
    multiprocessors: u32,
    /// The tile of all matrix products, whatever their shape.
    tile: Option<gemm::Tile>,
}

impl Kernels {
    /// Loads every kernel file.
    pub fn load() -> Result<Self> {
        Self::load_files(&FILES)
    }

    /// Loads some of the files; launching a kernel of another one is an error.
    pub fn load_files(files: &[&str]) -> Result<Self> {
        let (mut functions, mut clusters) = (HashMap::new(), HashMap::new());
        let mut modules = Vec::new();
        for name in files {
            let module = Module::load(name)?;
            for entry in kernel_file(name)?.entries {
                let function = module.function(entry)?;
                let shared = dynamic_shared(entry);
                if shared > 48 * 1024 {
                    function.allow_dynamic_shared(shared)?;
                }
                if let Some(size) = cluster(entry) {
                    let launch = Launch::new([size, 1, 1], [CLUSTER_THREADS, 1, 1]).shared(shared);
                    clusters.insert(*entry, launch.clusters_at_once(&function)?);
                }
                functions.insert(*entry, function);
            }
            modules.push(module);
        }
        Ok(Self {
            functions: Arc::new(functions),
            clusters: Arc::new(clusters),
            _modules: Arc::new(modules),
            multiprocessors: multiprocessors()?,
            tile: None,
        })
    }

    /// Multiprocessors of the device: the size of a persistent grid.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The same kernels with every matrix product on this tile, and persistent grids for this many multiprocessors: to test and to
    /// compare them.
    pub fn with_tile(&self, tile: gemm::Tile, multiprocessors: u32) -> Self {
        Self {
            tile: Some(tile),
            multiprocessors,
            ..self.clone()
        }
    }

    /// CTAs of the persistent grid of a kernel with clusters of this size: what runs at once, as the driver says. One cluster more would run
    /// when all others have ended, and the launch take twice as long.
    fn resident(&self, entry: &str, cluster: u64) -> u64 {
        let clusters = match self.clusters.get(entry) {
            Some(clusters) if self.tile.is_none() => u64::from(*clusters),
            _ => u64::from(self.multiprocessors) / cluster,
        };
        clusters.max(1) * cluster
    }

    fn launch(
        &self,
        stream: &Stream,
        entry: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        parameters: &[&dyn Parameter],
    ) -> Result<()> {
        let function = self
            .functions
            .get(entry)
            .with_context(|| format!("kernel {entry}: its file is not loaded"))?;
        let launch = Launch::new(grid, [threads, 1, 1]).shared(shared).on(stream);
        let seen = Seen {
            entry,
            grid,
            threads,
            shared,
            stream,
            parameters,
        };
        observe::launch(&seen, &mut || launch.run(function, parameters))
    }

    /// The end of an operation that needed this work at least: what every twin returns.
    fn done(&self, work: Work) -> Result<Work> {
        observe::done(work);
        Ok(work)
    }
}

/// Dynamic shared memory in bytes of the kernels that have a fixed amount of it, else 0.
pub fn dynamic_shared(entry: &str) -> u32 {
    if entry.starts_with("gemm_") {
        gemm::shared_bytes(entry)
    } else if entry.starts_with("attention_forward") {
        attention_forward::SHARED
    } else if entry.starts_with("attention_backward") {
        attention_backward::SHARED
    } else {
        head_loss::shared_bytes(entry)
    }
}

/// Threads of the kernels that [`cluster`] names.
const CLUSTER_THREADS: u32 = 384;

/// CTAs of a cluster of a persistent kernel that has clusters.
fn cluster(entry: &str) -> Option<u32> {
    if entry.starts_with("gemm_") {
        gemm::cluster(entry)
    } else {
        head_loss::cluster(entry)
    }
    .filter(|size| *size > 1)
}

/// Shared memory to ask for so that `bytes`, rounded up to their alignment of 1024, fit behind a base that is aligned to less.
const fn with_alignment(bytes: u32) -> u32 {
    bytes.next_multiple_of(1024) + 1024
}

fn multiprocessors() -> Result<u32> {
    let count = CurrentContext::get_device()
        .and_then(|device| device.get_attribute(DeviceAttribute::MultiprocessorCount))
        .map_err(DriverError::from)?;
    Ok(count.max(1) as u32)
}

/// Checks of one kernel's arguments, with messages that name the kernel.
#[derive(Clone, Copy)]
struct Checks(&'static str);

impl Checks {
    /// `pointer` holds an array of this shape and is aligned to 16 bytes.
    fn array(self, argument: &str, pointer: DevPtr, element: u64, shape: &[u64]) -> Result<()> {
        self.aligned(argument, pointer, element, shape, 16)
    }

    /// The same with an alignment of the element only, for arrays that are read element by element.
    fn list(self, argument: &str, pointer: DevPtr, element: u64, shape: &[u64]) -> Result<()> {
        self.aligned(argument, pointer, element, shape, element)
    }

    fn aligned(
        self,
        argument: &str,
        pointer: DevPtr,
        element: u64,
        shape: &[u64],
        alignment: u64,
    ) -> Result<()> {
        let kernel = self.0;
        let needed = element * shape.iter().product::<u64>();
        ensure!(
            pointer.address != 0 && pointer.address.is_multiple_of(alignment),
            "kernel {kernel}: {argument} {shape:?} at {:#x} is not aligned to {alignment} bytes",
            pointer.address
        );
        ensure!(
            pointer.bytes >= needed,
            "kernel {kernel}: {argument} {shape:?} needs {needed} bytes, its buffer has {}",
            pointer.bytes
        );
        Ok(())
    }

    fn optional(
        self,
        argument: &str,
        pointer: Option<DevPtr>,
        element: u64,
        shape: &[u64],
    ) -> Result<()> {
        pointer.map_or(Ok(()), |p| self.array(argument, p, element, shape))
    }

    fn limit(self, holds: bool, what: impl Fn() -> String) -> Result<()> {
        ensure!(holds, "kernel {}: {}", self.0, what());
        Ok(())
    }

    /// A size that the kernel takes as a 32-bit integer.
    fn int(self, name: &str, value: u64) -> Result<i32> {
        i32::try_from(value)
            .map_err(|_| anyhow::anyhow!("kernel {}: {name} = {value} is too large", self.0))
    }
}

/// The address of an optional operand; null where it is absent.
fn address(pointer: Option<DevPtr>) -> u64 {
    pointer.map_or(0, |p| p.address)
}

/// A matrix in device memory, bf16, for the kernels that read through tensor maps.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub pointer: DevPtr,
    pub rows: u64,
    pub columns: u64,
    /// Elements from one row to the next.
    pub pitch: u64,
    /// Matrices of this kind, one after the other.
    pub batches: u64,
    /// Elements from one to the next.
    pub batch_stride: u64,
}

impl Matrix {
    /// A dense matrix.
    pub fn new(pointer: DevPtr, rows: u64, columns: u64) -> Self {
        Self::batch(pointer, 1, rows, columns)
    }

    /// Dense matrices one after the other.
    pub fn batch(pointer: DevPtr, batches: u64, rows: u64, columns: u64) -> Self {
        Self {
            pointer,
            rows,
            columns,
            pitch: columns,
            batches,
            batch_stride: rows * columns,
        }
    }

    /// Some of the columns.
    pub fn column_range(self, start: u64, columns: u64) -> Self {
        Self {
            pointer: self.pointer.offset(2 * start),
            columns,
            ..self
        }
    }

    /// A map with boxes of 64 columns and `box_rows` rows, 128-byte swizzle.
    fn map(self, checks: Checks, argument: &str, box_rows: u32) -> Result<TensorMap> {
        let Self {
            rows,
            columns,
            pitch,
            batches,
            batch_stride,
            ..
        } = self;
        checks.limit(
            rows > 0 && columns > 0 && batches > 0 && columns <= pitch && pitch.is_multiple_of(8) && batch_stride.is_multiple_of(8),
            || format!("{argument} [{batches}, {rows}, {columns}] with rows {pitch} apart: empty, or rows not multiples of 16 bytes"),
        )?;
        let elements = (batches - 1) * batch_stride + (rows - 1) * pitch + columns;
        checks.array(argument, self.pointer, 2, &[elements])?;
        TensorMap::tiled(
            argument,
            &Tiled {
                element: Element::Bf16,
                address: self.pointer.address,
                dims: &[columns, rows, batches],
                strides: &[2 * pitch, 2 * batch_stride.max(8)],
                box_dims: &[64, box_rows, 1],
                swizzle: Swizzle::B128,
            },
        )
        .with_context(|| format!("kernel {}", checks.0))
    }
}

/// CTAs of 256 threads for a flat array of `n` elements, 8 per thread and trip. Depends on `n` alone, so that sums over CTAs have
/// the same bits on every device.
pub fn flat_grid(n: u64) -> u32 {
    n.div_ceil(256 * 8 * 2).clamp(1, 528) as u32
}

/// CTAs for kernels that walk rows and leave a partial sum per CTA: `per_cta` rows at a time, four trips each, at most two
/// CTAs per multiprocessor of an H100.
fn partial_grid(rows: u64, per_cta: u64) -> u32 {
    rows.div_ceil(per_cta * 4).clamp(1, 264) as u32
}

/// The same for kernels whose units (heads of a token, `units` in all, `per_token` for each) keep their head from trip to trip: a
/// multiple of what makes the 32 units of a CTA, times the grid, whole tokens.
fn head_grid(units: u64, per_token: u64) -> u32 {
    let whole = per_token / gcd(per_token, 32);
    partial_grid(units, 32).next_multiple_of(whole as u32)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Row slots of a CTA for rows of width `d`, and the suffix of the kernels that serve it (`cuda/row.cuh`).
fn row_slots(d: u64) -> (u64, &'static str) {
    match d {
        0..=128 => (16, "d128"),
        129..=512 => (8, "d512"),
        513..=1024 => (2, "d1024"),
        _ => (1, "d2048"),
    }
}

/// [`row_slots`] of a width that the kernels serve.
fn row_shape(checks: Checks, d: u64) -> Result<(u64, &'static str)> {
    checks.limit(d > 0 && d.is_multiple_of(8) && d <= MOST_CHANNELS, || {
        format!("d = {d} is not a multiple of 8 up to {MOST_CHANNELS}")
    })?;
    Ok(row_slots(d))
}

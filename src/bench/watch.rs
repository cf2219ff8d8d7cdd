//! The observers of a step: one counts on the emulator, one measures on a GPU, one reads the clocks of a GPU.

use std::collections::HashMap;

use anyhow::{Context, Result};
use birdie_emulator::driver as emulator;
use cust::event::{Event, EventFlags};
use cust::memory::DeviceBuffer;

use super::clocks::{Around, ClockReader};
use super::predict::Counts;
use crate::driver::DriverError;
use crate::kernels::Work;
use crate::kernels::observe::{Observer, Seen};

/// Values in this range are factors, as bits of an f32: sizes and flags are smaller or (in 64 bits) larger.
const FACTORS: std::ops::Range<u64> = 1 << 28..1 << 32;

/// What makes two launches the same work: entry point, grid, sizes, and which optional operands there are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    pub entry: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub scalars: Vec<u64>,
    pub present: Vec<bool>,
}

impl Shape {
    fn of(seen: &Seen<'_>) -> Shape {
        Shape {
            entry: seen.entry.to_owned(),
            grid: seen.grid,
            threads: seen.threads,
            shared: seen.shared,
            scalars: seen
                .scalars()
                .into_iter()
                .filter(|value| !FACTORS.contains(value))
                .collect(),
            present: seen.present(),
        }
    }

    /// Its sizes in a few characters.
    pub fn sizes(&self) -> String {
        let sizes: Vec<String> = self.scalars.iter().map(u64::to_string).collect();
        sizes.join(" ")
    }
}

/// An operation: the launches of one twin, and the work it needed at least.
#[derive(Debug, Clone)]
pub struct Operation<T> {
    pub launches: Vec<(Shape, T)>,
    pub work: Work,
}

/// Operations in their order.
#[derive(Debug)]
pub struct Sequence<T> {
    pub operations: Vec<Operation<T>>,
    open: Vec<(Shape, T)>,
}

impl<T> Default for Sequence<T> {
    fn default() -> Self {
        Self {
            operations: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl<T> Sequence<T> {
    fn launched(&mut self, shape: Shape, result: T) {
        self.open.push((shape, result));
    }

    fn done(&mut self, work: Work) {
        self.operations.push(Operation {
            launches: std::mem::take(&mut self.open),
            work,
        });
    }
}

/// Counts each distinct launch once on the emulator; further launches of the same shape are not executed, since only their number
/// matters. Results on the device are therefore worthless afterwards.
pub struct Counting {
    pub sequence: Sequence<Counts>,
    known: HashMap<Shape, Counts>,
    /// Share of a grid's clusters to execute, and the least number of them.
    share: f64,
    least: u64,
    /// Operations whose name does not contain this are not executed.
    filter: Option<String>,
}

/// Kernels whose work depends on what earlier ones computed: executed whole in every sample.
const DEPENDS_ON_DATA: [&str; 5] = [
    "bigram_index",
    "segment_count",
    "segment_scan",
    "segment_place",
    "clip_coefficient",
];

impl Counting {
    /// `sample`: execute about one cluster in so many of large grids; 1 = all.
    pub fn new(sample: u64, filter: Option<String>) -> Self {
        emulator::keep_counts(true);
        Self {
            sequence: Sequence::default(),
            known: HashMap::new(),
            share: 1.0 / sample.max(1) as f64,
            least: 4,
            filter,
        }
    }

    fn clusters(&self, shape: &Shape) -> u64 {
        let total: u64 = shape.grid.iter().map(|&n| u64::from(n)).product();
        if self.share >= 1.0 || DEPENDS_ON_DATA.contains(&shape.entry.as_str()) {
            return 0;
        }
        ((total as f64 * self.share).ceil() as u64).max(self.least)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        emulator::keep_counts(false);
        emulator::sample_clusters(0);
    }
}

impl Observer for Counting {
    fn launch(&mut self, seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let shape = Shape::of(seen);
        let data = DEPENDS_ON_DATA.contains(&shape.entry.as_str());
        let wanted = self
            .filter
            .as_ref()
            .is_none_or(|part| shape.entry.contains(part.as_str()));
        if !wanted && !data {
            self.sequence.launched(shape, Counts::default());
            return Ok(());
        }
        if let Some(counts) = self.known.get(&shape) {
            let counts = counts.clone();
            self.sequence.launched(shape, counts);
            return Ok(());
        }
        emulator::sample_clusters(self.clusters(&shape));
        emulator::take_counts();
        go()?;
        seen.stream.synchronize().map_err(DriverError::from)?;
        let counted = emulator::take_counts();
        let counted = counted
            .iter()
            .rev()
            .find(|launch| launch.kernel == shape.entry)
            .with_context(|| format!("the emulator has no counts of {}", shape.entry))?;
        let counts = Counts::of(counted);
        self.known.insert(shape.clone(), counts.clone());
        self.sequence.launched(shape, counts);
        Ok(())
    }

    fn done(&mut self, work: Work) {
        self.sequence.done(work);
    }
}

/// Reads the clocks around every launch, of which none is timed: the stream is waited for before and after each.
pub struct Clocking {
    pub sequence: Sequence<Option<Around>>,
    reader: ClockReader,
}

impl Clocking {
    pub fn new(reader: ClockReader) -> Self {
        Self {
            sequence: Sequence::default(),
            reader,
        }
    }
}

impl Observer for Clocking {
    fn launch(&mut self, seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        seen.stream.synchronize().map_err(DriverError::from)?;
        let before = self.reader.now();
        go()?;
        seen.stream.synchronize().map_err(DriverError::from)?;
        let after = self.reader.now();
        let around = before.zip(after);
        let around = around.map(|(before, after)| Around { before, after });
        self.sequence.launched(Shape::of(seen), around);
        Ok(())
    }

    fn done(&mut self, work: Work) {
        self.sequence.done(work);
    }
}

/// State of the L2 cache before a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// As the step leaves it.
    InStep,
    /// Flushed: a buffer larger than L2 is written before every kernel.
    Cold,
    /// The kernel has just run with the same operands.
    Warm,
}

/// Kernels that must not run twice on the same operands: they replace their input by something of another kind.
const ONCE: [&str; 2] = ["segment_scan", "segment_place"];

/// Measures every launch of a step with a pair of events.
pub struct Timing {
    pub sequence: Sequence<(Event, Event)>,
    cache: Cache,
    flush: Option<DeviceBuffer<u8>>,
}

/// Written before each kernel to flush L2 (50 MiB on an H100).
const FLUSH_BYTES: usize = 192 << 20;

impl Timing {
    pub fn new(cache: Cache) -> Result<Self> {
        let flush = match cache {
            Cache::Cold => Some(DeviceBuffer::zeroed(FLUSH_BYTES).map_err(DriverError::from)?),
            Cache::InStep | Cache::Warm => None,
        };
        Ok(Self {
            sequence: Sequence::default(),
            cache,
            flush,
        })
    }

    /// Microseconds of each launch of each operation, once the stream is idle.
    pub fn microseconds(&self) -> Result<Vec<Operation<f64>>> {
        let of = |(start, end): &(Event, Event)| -> Result<f64> {
            let ms = end.elapsed_time_f32(start).map_err(DriverError::from)?;
            Ok(1e3 * f64::from(ms))
        };
        self.sequence
            .operations
            .iter()
            .map(|operation| {
                let launches = operation
                    .launches
                    .iter()
                    .map(|(shape, events)| Ok((shape.clone(), of(events)?)))
                    .collect::<Result<_>>()?;
                Ok(Operation {
                    launches,
                    work: operation.work,
                })
            })
            .collect()
    }
}

impl Observer for Timing {
    fn launch(&mut self, seen: &Seen<'_>, go: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let shape = Shape::of(seen);
        if let Some(flush) = &mut self.flush {
            // SAFETY: nothing else uses the buffer, and it lives until the stream has been waited for.
            unsafe { flush.set_8_async(1, seen.stream) }.map_err(DriverError::from)?;
        }
        if self.cache == Cache::Warm && !ONCE.contains(&shape.entry.as_str()) {
            go()?;
        }
        let event = || Event::new(EventFlags::DEFAULT).map_err(DriverError::from);
        let (start, end) = (event()?, event()?);
        start.record(seen.stream).map_err(DriverError::from)?;
        go()?;
        end.record(seen.stream).map_err(DriverError::from)?;
        self.sequence.launched(shape, (start, end));
        Ok(())
    }

    fn done(&mut self, work: Work) {
        self.sequence.done(work);
    }
}

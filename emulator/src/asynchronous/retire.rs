//! How operations in flight take effect.
//!
//! [`step`] performs one step of an entry of the queue: everything, or for copies out of shared memory first the
//! reading of the source and then the writing of the destination. Shared addresses were resolved and tested at issue;
//! global addresses are tested here, where a device would fault.
//!
//! The order within a step is the one that completion promises: first all bytes, then the signal to the mbarrier.

use super::address::{self, Shared, pointer};
use super::mbarrier;
use super::queue::{check_written, read_shared};
use super::reduce::{Operation, Reduction};
use super::tensor_box::{self, BoxRow, Coordinates};
use crate::check::{At, Checker, Kind, Proxy};
use crate::device::{Fault, Launch};
use crate::exec::{Cluster, LANES, SHARED_BASE};
use crate::tensor_map::TensorMap;

/// A tensor copy into shared memory.
pub(super) struct TensorLoad {
    pub map: TensorMap,
    pub start: Coordinates,
    /// Destination; with a multicast the CTA is replaced by each of `ctas`.
    pub to: Shared,
    pub barrier: Shared,
    /// Ranks that receive, or 0 for `to` alone.
    pub ctas: u16,
}

/// A tensor copy or reduction out of shared memory.
pub(super) struct TensorStore {
    pub map: TensorMap,
    pub start: Coordinates,
    pub from: Shared,
    pub reduction: Option<Reduction>,
    /// The box in rows, once it has been read.
    pub staged: Vec<u8>,
}

/// Bytes from global to shared memory.
pub(super) struct BulkLoad {
    pub from: u64,
    pub to: Shared,
    pub bytes: u32,
    pub barrier: Shared,
    pub ctas: u16,
}

/// Bytes out of shared memory, to global or to the shared memory of a CTA of the cluster.
pub(super) struct BulkStore {
    pub from: Shared,
    pub to: Destination,
    pub bytes: u32,
    pub reduction: Option<Reduction>,
    pub staged: Vec<u8>,
}

#[derive(Clone, Copy)]
pub(super) enum Destination {
    Global(u64),
    Shared { to: Shared, barrier: Shared },
}

/// cp.async of the lanes of a warp.
pub(super) struct CopyLanes {
    pub from: [u64; LANES],
    pub to: [u32; LANES],
    /// Bytes read; the rest of `size` is filled with zeros.
    pub read: [u8; LANES],
    pub size: u8,
}

/// st.async or red.async of one lane.
pub(super) struct Remote {
    pub to: Shared,
    pub barrier: Shared,
    pub value: [u8; 16],
    pub bytes: u8,
    pub reduction: Option<Reduction>,
}

pub(super) enum Work {
    TensorLoad(Box<TensorLoad>),
    TensorStore(Box<TensorStore>),
    BulkLoad(BulkLoad),
    BulkStore(Box<BulkStore>),
    Copy(Box<CopyLanes>),
    /// cp.async.mbarrier.arrive: arrives when the older copies of the lanes are complete.
    CopyArrive {
        barriers: Box<[u32; LANES]>,
    },
    Remote(Box<Remote>),
    /// Stands in an entry while [`step`] works on it.
    Taken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Has to wait for other entries.
    Blocked,
    /// The source has been read.
    Read,
    Done,
}

fn ranks(to: Shared, ctas: u16) -> impl Iterator<Item = u32> + Clone {
    (0..16).filter(move |r| {
        if ctas == 0 {
            *r == to.cta
        } else {
            ctas >> r & 1 != 0
        }
    })
}

impl Work {
    /// Does it (still) write shared memory of this CTA?
    pub(super) fn writes_shared_of(&self, cta: u32) -> bool {
        match self {
            Work::TensorLoad(t) => ranks(t.to, t.ctas).any(|r| r == cta),
            Work::BulkLoad(b) => ranks(b.to, b.ctas).any(|r| r == cta),
            Work::BulkStore(b) => {
                matches!(b.to, Destination::Shared { to, .. } if to.cta == cta)
            }
            Work::Remote(r) => r.to.cta == cta,
            Work::TensorStore(_) | Work::Copy(_) | Work::CopyArrive { .. } | Work::Taken => false,
        }
    }

    /// Does its completion signal the mbarrier?
    pub(super) fn signals(&self, s: Shared) -> bool {
        let multicast = |barrier: Shared, ctas: u16| {
            barrier.address == s.address && ranks(barrier, ctas).any(|r| r == s.cta)
        };
        match self {
            Work::TensorLoad(t) => multicast(t.barrier, t.ctas),
            Work::BulkLoad(b) => multicast(b.barrier, b.ctas),
            Work::BulkStore(b) => {
                matches!(b.to, Destination::Shared { barrier, .. } if barrier == s)
            }
            Work::Remote(r) => r.barrier == s,
            Work::CopyArrive { barriers } => barriers.contains(&s.address),
            Work::TensorStore(_) | Work::Copy(_) | Work::Taken => false,
        }
    }
}

impl Work {
    /// The bytes of shared memory that it reads or writes as one piece in one CTA, if it does.
    pub(super) fn shared_side(&self) -> Option<(Shared, u32, Kind)> {
        let bytes = self.bytes() as u32;
        match self {
            Work::TensorStore(t) => Some((t.from, bytes, Kind::Read)),
            Work::BulkStore(b) => Some((b.from, bytes, Kind::Read)),
            Work::TensorLoad(t) if t.ctas == 0 => Some((t.to, bytes, Kind::Write)),
            Work::BulkLoad(b) if b.ctas == 0 => Some((b.to, bytes, Kind::Write)),
            _ => None,
        }
    }

    /// Bytes that it moves.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Work::TensorLoad(t) => t.map.box_bytes(),
            Work::TensorStore(t) => t.map.box_bytes(),
            Work::BulkLoad(b) => u64::from(b.bytes),
            Work::BulkStore(b) => u64::from(b.bytes),
            Work::Remote(r) => u64::from(r.bytes),
            Work::Copy(c) => c.read.iter().map(|&n| u64::from(n)).sum(),
            Work::CopyArrive { .. } | Work::Taken => 0,
        }
    }
}

/// Performs one step of entry `index`.
pub(super) fn step(cluster: &mut Cluster, launch: &Launch, index: usize) -> Result<Step, Fault> {
    let entry = cluster.asynchronous.entry(index);
    let (at, read) = (entry.at, entry.read);
    if let Work::CopyArrive { .. } = entry.work {
        return copy_arrive(cluster, index);
    }
    // The work leaves the entry while it acts on the cluster, and comes back for its second step.
    let mut work = std::mem::replace(&mut cluster.asynchronous.entry(index).work, Work::Taken);
    let result = match &mut work {
        Work::TensorLoad(t) => tensor_load(cluster, launch, t, at).map(|()| Step::Done),
        Work::TensorStore(t) if !read => {
            tensor_read(cluster, t, at);
            Ok(Step::Read)
        }
        Work::TensorStore(t) => tensor_write(cluster, launch, t, at).map(|()| Step::Done),
        Work::BulkLoad(b) => bulk_load(cluster, launch, b, at).map(|()| Step::Done),
        Work::BulkStore(b) if !read => {
            bulk_read(cluster, b, at);
            Ok(Step::Read)
        }
        Work::BulkStore(b) => bulk_write(cluster, launch, b, at).map(|()| Step::Done),
        Work::Copy(c) => {
            let (cta, lanes) = {
                let e = cluster.asynchronous.entry(index);
                (e.cta, e.lanes)
            };
            copy_lanes(cluster, launch, c, cta, lanes, at).map(|()| Step::Done)
        }
        Work::Remote(r) => {
            remote(cluster, r, at);
            Ok(Step::Done)
        }
        Work::CopyArrive { .. } | Work::Taken => Ok(Step::Blocked),
    };
    if cluster.counters.is_some() && matches!(result, Ok(Step::Read | Step::Done)) {
        let entry = cluster.asynchronous.entry(index);
        let (warp, lanes) = (entry.warp, entry.lanes);
        count(cluster, &work, warp, lanes, at.pc, read);
    }
    cluster.asynchronous.entry(index).work = work;
    if let Some(check) = &mut cluster.check {
        check.settle();
    }
    result
}

/// Counts what a step has moved: global memory once, shared memory once for each CTA that receives. `read`: the source had been
/// read before this step.
fn count(cluster: &mut Cluster, work: &Work, agent: u32, lanes: u32, pc: u32, read: bool) {
    let warps = cluster.ctas[0].warps.len() as u32;
    let Some(counters) = &mut cluster.counters else {
        return;
    };
    let warp = agent % warps;
    let mut rows = |map: &TensorMap, start: &Coordinates, write: bool| {
        // Never fails: the box has just been moved.
        let _ = tensor_box::rows(map, start, |row: BoxRow| {
            if row.bytes > 0 {
                counters.copy(warp, pc, row.address, u64::from(row.bytes), write);
            }
            Ok(())
        });
    };
    match work {
        Work::TensorLoad(t) => {
            rows(&t.map, &t.start, false);
            let times = ranks(t.to, t.ctas).count() as u64;
            counters.shared_block(warp, pc, t.map.box_bytes() * times);
        }
        Work::TensorStore(t) if !read => counters.shared_block(warp, pc, t.map.box_bytes()),
        Work::TensorStore(t) => rows(&t.map, &t.start, true),
        Work::BulkLoad(b) => {
            counters.copy(warp, pc, b.from, u64::from(b.bytes), false);
            let times = ranks(b.to, b.ctas).count() as u64;
            counters.shared_block(warp, pc, u64::from(b.bytes) * times);
        }
        Work::BulkStore(b) if !read => counters.shared_block(warp, pc, u64::from(b.bytes)),
        Work::BulkStore(b) => match b.to {
            Destination::Global(address) => {
                counters.copy(warp, pc, address, u64::from(b.bytes), true);
            }
            Destination::Shared { .. } => counters.shared_block(warp, pc, u64::from(b.bytes)),
        },
        Work::Copy(c) => {
            let size = u32::from(c.size);
            counters.global(warp, pc, &c.from, lanes, size, false);
            counters.shared(warp, pc, &c.to, lanes, size);
        }
        Work::Remote(r) => counters.shared_block(warp, pc, u64::from(r.bytes)),
        Work::CopyArrive { .. } | Work::Taken => {}
    }
}

/// Signals `bytes` to mbarriers, when all bytes have been written, through a proxy.
fn signal(
    cluster: &mut Cluster,
    barriers: impl Iterator<Item = Shared> + Clone,
    bytes: u32,
    at: At,
    proxy: Proxy,
) {
    let log = cluster.check.is_some();
    if let Some(check) = &mut cluster.check {
        for b in barriers.clone() {
            check.shared_range(at, b.cta, b.address, 8, Kind::Atomic, Proxy::Generic);
            if proxy == Proxy::Async {
                check.barrier_signalled(b.cta, b.address, at);
            }
        }
        for b in barriers.clone() {
            check.complete(at, mbarrier::sync_of(b));
        }
    }
    for b in barriers {
        mbarrier::apply(cluster, b, at, |b| b.deliver(bytes, at, log));
    }
}

/// The layout of the bytes is not known any more.
const UNKNOWN_LAYOUT: u8 = 0xff;

fn forget_layout(cluster: &mut Cluster, s: Shared, bytes: u32) {
    if let Some(check) = &mut cluster.check {
        check.tag_layout(s.cta, s.address, bytes, UNKNOWN_LAYOUT);
    }
}

/// Calls `f(check, address, bytes)` for the bytes of shared memory that a box at `s` covers.
fn box_hook(
    cluster: &mut Cluster,
    map: &TensorMap,
    s: Shared,
    mut f: impl FnMut(&mut Checker, u32, u32),
) {
    let Some(check) = &mut cluster.check else {
        return;
    };
    let bytes = map.box_bytes() as u32;
    if tensor_box::footprint(s.address, bytes, map.swizzle) == bytes {
        f(check, s.address, bytes);
        return;
    }
    // The last span is not full: its chunks are where the swizzle has put them.
    for at in (0..bytes).step_by(16) {
        f(check, tensor_box::swizzle(s.address + at, map.swizzle), 16);
    }
}

fn shared_hook(cluster: &mut Cluster, s: Shared, bytes: u32, kind: Kind, at: At, proxy: Proxy) {
    if kind != Kind::Read {
        check_written(cluster, s, at);
    }
    if let Some(check) = &mut cluster.check {
        check.shared_range(at, s.cta, s.address, bytes, kind, proxy);
    }
}

fn tensor_load(
    cluster: &mut Cluster,
    launch: &Launch,
    t: &TensorLoad,
    at: At,
) -> Result<(), Fault> {
    let bytes = t.map.box_bytes() as u32;
    global_box(cluster, launch, &t.map, &t.start, Kind::Read, at)?;
    for cta in ranks(t.to, t.ctas) {
        let to = Shared { cta, ..t.to };
        let base = pointer(
            cluster,
            Shared {
                address: SHARED_BASE,
                ..to
            },
        );
        load_box(&t.map, &t.start, base, to.address)?;
        check_written(cluster, to, at);
        box_hook(cluster, &t.map, to, |check, address, bytes| {
            check.shared_range(at, cta, address, bytes, Kind::Write, Proxy::Async);
            check.tag_layout(cta, address, bytes, t.map.swizzle as u8);
        });
    }
    let barriers = ranks(t.to, t.ctas).map(|cta| match t.ctas {
        0 => t.barrier,
        _ => Shared { cta, ..t.barrier },
    });
    signal(cluster, barriers, bytes, at, Proxy::Async);
    Ok(())
}

/// Tests that the part of the box inside of the tensor is memory, and tells the checker of the access.
fn global_box(
    cluster: &mut Cluster,
    launch: &Launch,
    map: &TensorMap,
    start: &Coordinates,
    kind: Kind,
    at: At,
) -> Result<(), Fault> {
    let Some((low, high)) = tensor_box::extent(map, start) else {
        return Ok(());
    };
    let whole = high > low && launch.device.memory.covers(low, high - low);
    if whole && cluster.check.is_none() {
        return Ok(());
    }
    // Rows that follow each other in the tensor are one access for the checker.
    let mut run = (0, 0);
    tensor_box::rows(map, start, |row: BoxRow| {
        if row.bytes > 0 {
            let bytes = u64::from(row.bytes);
            if !whole {
                address::global(launch, row.address, bytes, 1)?;
            }
            if row.address == run.1 {
                run.1 += bytes;
            } else {
                global_hook(cluster, run, kind, at);
                run = (row.address, row.address + bytes);
            }
        }
        Ok(())
    })?;
    global_hook(cluster, run, kind, at);
    Ok(())
}

/// Tells the checker that global memory from `start` to `end` is accessed through the async proxy.
fn global_hook(cluster: &mut Cluster, (start, end): (u64, u64), kind: Kind, at: At) {
    if let Some(check) = &mut cluster.check
        && end > start
    {
        check.global_range(at, start, end - start, kind, Proxy::Async);
    }
}

/// Builds rows that are not plain copies of memory.
#[derive(Default)]
struct Partial {
    fill: Vec<u8>,
    row: Vec<u8>,
}

impl Partial {
    /// The row with fill outside of the tensor and its elements converted.
    ///
    /// # Safety
    /// The bytes of the tensor that `r` names are memory.
    unsafe fn row(&mut self, map: &TensorMap, r: &BoxRow, length: usize) -> *const u8 {
        if self.fill.is_empty() {
            let pattern = tensor_box::fill_pattern(map);
            self.fill = pattern.iter().copied().cycle().take(length).collect();
        }
        if r.bytes == 0 {
            return self.fill.as_ptr();
        }
        self.row.clear();
        self.row.extend_from_slice(&self.fill);
        let inside = &mut self.row[r.skip as usize..(r.skip + r.bytes) as usize];
        // SAFETY: as promised by the caller.
        inside.copy_from_slice(unsafe {
            std::slice::from_raw_parts(r.address as *const u8, r.bytes as usize)
        });
        tensor_box::convert(map.element_type, inside);
        self.row.as_ptr()
    }
}

/// Copies a box from the tensor to shared address `to`; `base` points to [`SHARED_BASE`] of its CTA.
pub(super) fn load_box(
    map: &TensorMap,
    start: &Coordinates,
    base: *mut u8,
    to: u32,
) -> Result<(), Fault> {
    let length = tensor_box::row_bytes(map);
    let converts = tensor_box::converts(map.element_type);
    let mut partial = Partial::default();
    tensor_box::rows(map, start, |r| {
        let source = if r.bytes == length && !converts {
            r.address as *const u8
        } else {
            // SAFETY: `global_box` has tested the bytes of the tensor that the box reads.
            unsafe { partial.row(map, &r, length as usize) }
        };
        // SAFETY: the footprint of the box was resolved at issue; rows are multiples of 16 bytes (`TensorMap::decode`)
        // and `to` is 128-aligned.
        unsafe {
            tensor_box::put_row(
                base,
                SHARED_BASE,
                to + r.offset,
                map.swizzle,
                source,
                length,
            );
        }
        Ok(())
    })
}

fn tensor_read(cluster: &mut Cluster, t: &mut TensorStore, at: At) {
    let bytes = t.map.box_bytes() as u32;
    let length = tensor_box::row_bytes(&t.map);
    let base = pointer(
        cluster,
        Shared {
            address: SHARED_BASE,
            ..t.from
        },
    );
    t.staged = std::mem::take(&mut cluster.asynchronous.buffer);
    t.staged.clear();
    t.staged.resize(bytes as usize, 0);
    let mut offset = 0;
    while offset < bytes {
        // SAFETY: as in `load_box`; the staged box has `bytes` bytes.
        unsafe {
            tensor_box::get_row(
                base,
                SHARED_BASE,
                t.from.address + offset,
                t.map.swizzle,
                t.staged.as_mut_ptr().add(offset as usize),
                length,
            );
        }
        offset += length;
    }
    let cta = t.from.cta;
    let mut undefined = false;
    box_hook(cluster, &t.map, t.from, |check, address, bytes| {
        undefined |= check.shared_read_async(at, cta, address, bytes);
        check.expect_layout(at, cta, address, bytes, t.map.swizzle as u8);
    });
    if undefined {
        stored_must_be_defined(cluster, t, at);
    }
}

/// What a store writes to the tensor has to be defined; the rest of its box, outside of the tensor, need not be.
#[cold]
fn stored_must_be_defined(cluster: &mut Cluster, t: &TensorStore, at: At) {
    let Some(check) = &mut cluster.check else {
        return;
    };
    // Never fails: the closure does not.
    let _ = tensor_box::rows(&t.map, &t.start, |r: BoxRow| {
        let (mut first, end) = (r.skip, r.skip + r.bytes);
        while first < end {
            let next = end.min((first / 16 + 1) * 16);
            let address = tensor_box::swizzle(t.from.address + r.offset + first, t.map.swizzle);
            check.must_be_defined(at, t.from.cta, address, next - first);
            first = next;
        }
        Ok(())
    });
}

fn tensor_write(
    cluster: &mut Cluster,
    launch: &Launch,
    t: &mut TensorStore,
    at: At,
) -> Result<(), Fault> {
    let kind = kind_of(t.reduction);
    global_box(cluster, launch, &t.map, &t.start, kind, at)?;
    tensor_box::rows(&t.map, &t.start, |r| {
        let from = (r.offset + r.skip) as usize;
        let values = &t.staged[from..from + r.bytes as usize];
        // SAFETY: `global_box` has tested these bytes.
        unsafe { write_global(r.address, values, t.reduction) };
        Ok(())
    })?;
    cluster.asynchronous.buffer = std::mem::take(&mut t.staged);
    Ok(())
}

/// What the checker sees of a write or a reduction.
fn kind_of(reduction: Option<Reduction>) -> Kind {
    match reduction {
        None => Kind::Write,
        Some(r) if r.operation == Operation::Add && r.ty.is_float() => Kind::Sum,
        Some(_) => Kind::Atomic,
    }
}

/// # Safety
/// `values.len()` bytes at `address` are device memory.
unsafe fn write_global(address: u64, values: &[u8], reduction: Option<Reduction>) {
    if values.is_empty() {
        return;
    }
    // SAFETY: as promised by the caller. Kernels that reduce run on one host thread (`Program::communicates`).
    unsafe {
        match reduction {
            None => {
                std::ptr::copy_nonoverlapping(values.as_ptr(), address as *mut u8, values.len())
            }
            Some(r) => r.apply(
                std::slice::from_raw_parts_mut(address as *mut u8, values.len()),
                values,
            ),
        }
    }
}

fn bulk_load(cluster: &mut Cluster, launch: &Launch, b: &BulkLoad, at: At) -> Result<(), Fault> {
    address::global(launch, b.from, u64::from(b.bytes), 1)?;
    if let Some(check) = &mut cluster.check {
        check.global_range(at, b.from, u64::from(b.bytes), Kind::Read, Proxy::Async);
    }
    for cta in ranks(b.to, b.ctas) {
        let to = Shared { cta, ..b.to };
        let into = pointer(cluster, to);
        // SAFETY: source tested above, destination at issue.
        unsafe {
            std::ptr::copy_nonoverlapping(b.from as *const u8, into, b.bytes as usize);
        }
        shared_hook(cluster, to, b.bytes, Kind::Write, at, Proxy::Async);
        forget_layout(cluster, to, b.bytes);
    }
    let barriers = ranks(b.to, b.ctas).map(|cta| match b.ctas {
        0 => b.barrier,
        _ => Shared { cta, ..b.barrier },
    });
    signal(cluster, barriers, b.bytes, at, Proxy::Async);
    Ok(())
}

fn bulk_read(cluster: &mut Cluster, b: &mut BulkStore, at: At) {
    let mut staged = std::mem::take(&mut cluster.asynchronous.buffer);
    read_shared(cluster, b.from, b.bytes as usize, &mut staged);
    b.staged = staged;
    shared_hook(cluster, b.from, b.bytes, Kind::Read, at, Proxy::Async);
}

fn bulk_write(
    cluster: &mut Cluster,
    launch: &Launch,
    b: &mut BulkStore,
    at: At,
) -> Result<(), Fault> {
    let kind = kind_of(b.reduction);
    match b.to {
        Destination::Global(address) => {
            address::global(launch, address, u64::from(b.bytes), 1)?;
            if let Some(check) = &mut cluster.check {
                check.global_range(at, address, u64::from(b.bytes), kind, Proxy::Async);
            }
            // SAFETY: tested above.
            unsafe { write_global(address, &b.staged, b.reduction) };
        }
        Destination::Shared { to, barrier } => {
            write_shared(cluster, to, &b.staged, b.reduction);
            shared_hook(cluster, to, b.bytes, kind, at, Proxy::Async);
            forget_layout(cluster, to, b.bytes);
            let barrier = std::iter::once(barrier);
            signal(cluster, barrier, b.bytes, at, Proxy::Async);
        }
    }
    cluster.asynchronous.buffer = std::mem::take(&mut b.staged);
    Ok(())
}

fn write_shared(cluster: &mut Cluster, to: Shared, values: &[u8], reduction: Option<Reduction>) {
    let from = (to.address - SHARED_BASE) as usize;
    let memory =
        &mut cluster.ctas[to.cta as usize].shared.as_mut_slice()[from..from + values.len()];
    match reduction {
        None => memory.copy_from_slice(values),
        Some(r) => r.apply(memory, values),
    }
}

fn remote(cluster: &mut Cluster, r: &Remote, at: At) {
    let values = &r.value[..usize::from(r.bytes)];
    write_shared(cluster, r.to, values, r.reduction);
    let kind = kind_of(r.reduction);
    // ISA: st.async and red.async are operations of the generic proxy.
    shared_hook(cluster, r.to, u32::from(r.bytes), kind, at, Proxy::Generic);
    forget_layout(cluster, r.to, u32::from(r.bytes));
    let barrier = std::iter::once(r.barrier);
    signal(cluster, barrier, u32::from(r.bytes), at, Proxy::Generic);
}

fn copy_lanes(
    cluster: &mut Cluster,
    launch: &Launch,
    c: &CopyLanes,
    cta: u32,
    mask: u32,
    at: At,
) -> Result<(), Fault> {
    let size = usize::from(c.size);
    let reading = || address::lanes(mask).filter(|&l| c.read[l] > 0);
    let low = reading().map(|l| c.from[l]).min().unwrap_or(0);
    let high = reading().map(|l| c.from[l] + u64::from(c.read[l])).max();
    let whole = high.is_none_or(|high| launch.device.memory.covers(low, high - low));
    for lane in address::lanes(mask) {
        let (from, read) = (c.from[lane], usize::from(c.read[lane]));
        let to = Shared {
            cta,
            address: c.to[lane],
        };
        let into = pointer(cluster, to);
        if read > 0 {
            if !whole {
                address::global(launch, from, read as u64, 1)?;
            }
            if let Some(check) = &mut cluster.check {
                check.global_range(at, from, read as u64, Kind::Read, Proxy::Generic);
            }
        }
        // SAFETY: source tested above, destination at issue.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, into, read);
            std::ptr::write_bytes(into.add(read), 0, size - read);
        }
        // ISA: cp.async (not bulk) is a weak operation of the generic proxy. A thread may exit before it has landed.
        if let Some(check) = &mut cluster.check {
            check.shared_range(
                at,
                cta,
                to.address,
                size as u32,
                Kind::Write,
                Proxy::Generic,
            );
        }
        forget_layout(cluster, to, size as u32);
    }
    Ok(())
}

fn copy_arrive(cluster: &mut Cluster, index: usize) -> Result<Step, Fault> {
    let e = cluster.asynchronous.entry(index);
    let (warp, lanes, sequence, cta, at) = (e.warp, e.lanes, e.sequence, e.cta, e.at);
    let Work::CopyArrive { barriers } = &e.work else {
        return Ok(Step::Done);
    };
    let barriers = **barriers;
    if cluster.asynchronous.copies_before(warp, lanes, sequence) {
        return Ok(Step::Blocked);
    }
    for lane in address::lanes(lanes) {
        let s = Shared {
            cta,
            address: barriers[lane],
        };
        if let Some(check) = &mut cluster.check {
            cluster.asynchronous.acquire_copies(warp, at, check);
            check.complete(at, mbarrier::sync_of(s));
        }
        mbarrier::apply(cluster, s, at, |b| b.arrive(1, false));
    }
    Ok(Step::Done)
}

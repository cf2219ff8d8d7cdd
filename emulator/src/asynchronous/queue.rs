//! What is in flight in a cluster, and when it retires.
//!
//! Groups: cp.async and bulk operations are waited for by groups that each *thread* commits. An entry therefore knows
//! the lanes that issued it and the number of the group that was open in them; a wait for "all but the last n groups"
//! is a search for entries of the lane with a smaller group number. Lanes of one instruction whose open groups differ
//! get entries of their own.

use super::address::{Shared, lanes, pointer};
use super::mbarrier::{self, Barriers};
use super::retire::{self, Step};
use crate::check::{At, Checker, FindingKind, Sync};
use crate::device::{Fault, Launch, Policy};
use crate::exec::{Cluster, Cta, Cx, Flow, LANES, Wait};
use crate::tensor_map::{TENSOR_MAP_BYTES, TensorMap};

/// Turns without progress after which an operation retires although somebody still runs: a warp that polls with
/// test_wait or a flag in memory is never blocked.
const PATIENCE: u32 = 64;

/// Blocked try_waits are timed out this often in a row before the cluster is left to the deadlock report.
const MAX_EXPIRIES: u32 = 8;

/// One of this many in-flight operations retires after each turn of a warp under `Policy::Random`.
const RANDOM_ODDS: u64 = 4;

/// Which groups an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// cp.async.
    Copy,
    /// cp.async.bulk with .bulk_group.
    Bulk,
    /// Completes on an mbarrier.
    Ungrouped,
}

/// An operation in flight.
pub(super) struct InFlight {
    pub work: retire::Work,
    pub family: Family,
    /// Group number (see module).
    pub group: u32,
    /// Rank of the issuing CTA and agent number of the issuing warp.
    pub cta: u32,
    pub warp: u32,
    pub lanes: u32,
    /// pc, and the agent under which the operation acts.
    pub at: At,
    /// The source has been read (copies out of shared memory).
    pub read: bool,
    pub sequence: u64,
}

/// Groups of the lanes of one warp.
#[derive(Clone, Copy, Default)]
struct WarpGroups {
    copy: Lanes,
    bulk: Lanes,
    /// Groups below these numbers have been acquired: cp.async, bulk, bulk by their sources.
    acquired: [u32; 3],
}

/// Groups that each lane has committed; the open one has this number.
#[derive(Clone, Copy)]
struct Lanes([u32; LANES]);

impl Default for Lanes {
    fn default() -> Self {
        Lanes([0; LANES])
    }
}

/// Queue and barrier tables of one cluster.
#[derive(Default)]
pub struct AsyncState {
    barriers: Vec<Barriers>,
    queue: Vec<InFlight>,
    groups: Vec<WarpGroups>,
    issued: u64,
    maps: Vec<CachedMap>,
    /// Acquiring fences of the tensormap proxy so far, and maps changed since the last one.
    map_fences: u64,
    edited_maps: Vec<(u64, At)>,
    /// Bumped when all blocked try_waits are to time out.
    pub(super) expiries: u32,
    expired_in_a_row: u32,
    progress_seen: u64,
    turns_without_progress: u32,
    progress_expired: u64,
    /// Scratch of tensor copies.
    pub(super) buffer: Vec<u8>,
}

struct CachedMap {
    address: u64,
    bytes: [u8; TENSOR_MAP_BYTES],
    map: TensorMap,
    /// `map_fences` when these bytes were read.
    fences: u64,
    /// They had changed since the last use without a fence.
    stale: bool,
}

impl AsyncState {
    pub(super) fn barriers(&mut self, cta: u32) -> &mut Barriers {
        let cta = cta as usize;
        if self.barriers.len() <= cta {
            self.barriers.resize_with(cta + 1, Barriers::default);
        }
        &mut self.barriers[cta]
    }

    /// The mbarriers of a CTA.
    pub fn barriers_of(&self, cta: u32) -> impl Iterator<Item = &mbarrier::Mbarrier> {
        self.barriers
            .get(cta as usize)
            .into_iter()
            .flat_map(Barriers::iter)
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn groups(&mut self, warp: u32) -> &mut WarpGroups {
        let warp = warp as usize;
        if self.groups.len() <= warp {
            self.groups.resize_with(warp + 1, WarpGroups::default);
        }
        &mut self.groups[warp]
    }

    fn open_groups(&mut self, warp: u32, family: Family) -> &mut [u32; LANES] {
        let g = self.groups(warp);
        match family {
            Family::Bulk => &mut g.bulk.0,
            Family::Copy | Family::Ungrouped => &mut g.copy.0,
        }
    }

    /// Closes the open group of `lanes`.
    pub(super) fn commit(&mut self, warp: u32, family: Family, mask: u32) {
        let open = self.open_groups(warp, family);
        for lane in lanes(mask) {
            open[lane] += 1;
        }
    }

    /// Splits `mask` into lanes with the same open group.
    pub(super) fn by_group(&mut self, warp: u32, family: Family, mask: u32) -> Vec<(u32, u32)> {
        let mut parts: Vec<(u32, u32)> = Vec::with_capacity(1);
        if family == Family::Ungrouped {
            return vec![(0, mask)];
        }
        let open = self.open_groups(warp, family);
        for lane in lanes(mask) {
            match parts.iter_mut().find(|(group, _)| *group == open[lane]) {
                Some((_, m)) => *m |= 1 << lane,
                None => parts.push((open[lane], 1 << lane)),
            }
        }
        parts
    }

    /// Is an older cp.async of these lanes still in flight?
    pub(super) fn copies_before(&self, warp: u32, mask: u32, sequence: u64) -> bool {
        self.queue.iter().any(|f| {
            f.family == Family::Copy
                && f.warp == warp
                && f.lanes & mask != 0
                && f.sequence < sequence
        })
    }

    /// `at` observes the completed cp.async operations of a warp that nobody has waited for.
    pub(super) fn acquire_copies(&mut self, warp: u32, at: At, check: &mut Checker) {
        let g = *self.groups(warp);
        let newest = g.copy.0.iter().max().copied().unwrap_or(0);
        for group in g.acquired[0]..=newest {
            check.acquire(at, object(warp, group, Family::Copy, false));
        }
    }

    pub(super) fn entry(&mut self, index: usize) -> &mut InFlight {
        &mut self.queue[index]
    }

    /// The decoded map at an address. Decoding is cached: most kernels use a few maps many times.
    pub(super) fn cached_map(
        &mut self,
        address: u64,
        bytes: &[u8; TENSOR_MAP_BYTES],
    ) -> Result<TensorMap, String> {
        let fences = self.map_fences;
        if let Some(c) = self.maps.iter_mut().find(|c| c.address == address) {
            if c.bytes != *bytes {
                c.map = TensorMap::decode(bytes)?;
                c.bytes = *bytes;
                c.stale = c.fences == fences;
                c.fences = fences;
            }
            return Ok(c.map);
        }
        let map = TensorMap::decode(bytes)?;
        if self.maps.len() >= 64 {
            self.maps.clear();
        }
        self.maps.push(CachedMap {
            address,
            bytes: *bytes,
            map,
            fences,
            stale: false,
        });
        Ok(map)
    }

    /// A `fence.proxy.tensormap` with acquire semantics was executed.
    pub fn maps_acquired(&mut self) {
        self.map_fences += 1;
        self.edited_maps.clear();
    }

    /// The map at a global address was changed by an instruction of this cluster.
    pub(super) fn map_edited(&mut self, address: u64, at: At) {
        self.edited_maps.retain(|e| e.0 != address);
        self.edited_maps.push((address, at));
    }

    /// Was the map changed since the last acquiring fence? Answers once per change: who changed it, if that is known.
    pub(super) fn take_stale_map(&mut self, address: u64) -> Option<Option<At>> {
        if let Some(i) = self.edited_maps.iter().position(|e| e.0 == address) {
            return Some(Some(self.edited_maps.swap_remove(i).1));
        }
        let cached = self.maps.iter_mut().find(|c| c.address == address)?;
        std::mem::take(&mut cached.stale).then_some(None)
    }
}

/// Issues an operation of the executing warp for `mask`, in a group of `family`.
pub(super) fn issue(
    cx: &mut Cx,
    family: Family,
    group: u32,
    mask: u32,
    what: &'static str,
    work: retire::Work,
) -> Result<(), Fault> {
    let launch = cx.launch;
    let at = super::address::here(cx);
    let (cta, warp) = (cx.cta().rank, cx.warp().agent);
    let cluster = cx.cluster();
    let agent = match &mut cluster.check {
        Some(check) => {
            if family == Family::Bulk {
                check.bulk_store_issued(cta, at, mask, group);
            }
            if let Some((place, bytes, kind)) = work.shared_side() {
                check.copy_issued(
                    at,
                    mask.trailing_zeros(),
                    place.cta,
                    place.address,
                    bytes,
                    kind,
                );
            }
            check.fork(at, what)
        }
        None => at.agent,
    };
    let state = &mut cluster.asynchronous;
    state.issued += 1;
    let sequence = state.issued;
    if let Some(trace) = &mut cluster.trace {
        let warps = cluster.ctas[cta as usize].warps.len() as u32;
        trace.copy_issued(cta, warp % warps, at.pc, work.bytes(), sequence);
    }
    let state = &mut cluster.asynchronous;
    state.queue.push(InFlight {
        work,
        family,
        group,
        cta,
        warp,
        lanes: mask,
        at: At { agent, pc: at.pc },
        read: false,
        sequence,
    });
    cluster.progress += 1;
    if launch.policy == Policy::Eager {
        let last = cluster.asynchronous.queue.len() - 1;
        drain(cluster, launch, last)?;
        // An arrival that waited for the copy just made is due now as well.
        eager_arrivals(cluster, launch)?;
    }
    Ok(())
}

fn eager_arrivals(cluster: &mut Cluster, launch: &Launch) -> Result<(), Fault> {
    let mut index = 0;
    while index < cluster.asynchronous.queue.len() {
        if !drain(cluster, launch, index)? {
            index += 1;
        }
    }
    Ok(())
}

/// Retires the entry completely; false: it has to wait for others.
fn drain(cluster: &mut Cluster, launch: &Launch, index: usize) -> Result<bool, Fault> {
    loop {
        match step(cluster, launch, index)? {
            Step::Blocked => return Ok(false),
            Step::Read => {}
            Step::Done => return Ok(true),
        }
    }
}

/// One step of the entry; removes it when done.
fn step(cluster: &mut Cluster, launch: &Launch, index: usize) -> Result<Step, Fault> {
    let pc = cluster.asynchronous.queue[index].at.pc;
    let sequence = cluster.asynchronous.queue[index].sequence;
    let result = retire::step(cluster, launch, index)
        .map_err(|fault| super::address::located(launch, pc, fault))?;
    match result {
        Step::Blocked => {}
        Step::Read => {
            cluster.progress += 1;
            if let Some(trace) = &mut cluster.trace {
                trace.copy_read(sequence);
            }
            let entry = &mut cluster.asynchronous.queue[index];
            entry.read = true;
            if let Some(check) = &mut cluster.check {
                // What follows is done by an agent that `.read` waiters have not acquired.
                let reader = entry.at;
                entry.at.agent = check.fork(reader, "write of a copy out of shared memory");
                check.complete(reader, object(entry.warp, entry.group, entry.family, true));
            }
        }
        Step::Done => {
            cluster.progress += 1;
            if let Some(trace) = &mut cluster.trace {
                trace.copy_done(sequence);
            }
            let entry = cluster.asynchronous.queue.swap_remove(index);
            if let Some(check) = &mut cluster.check
                && entry.family != Family::Ungrouped
            {
                check.complete(
                    entry.at,
                    object(entry.warp, entry.group, entry.family, false),
                );
            }
        }
    }
    Ok(result)
}

/// The synchronisation object of a group.
fn object(warp: u32, group: u32, family: Family, read: bool) -> Sync {
    Sync::CopyGroup {
        warp,
        group,
        bulk: family == Family::Bulk,
        read,
    }
}

/// Waits until at most `pending` groups of the executing lanes are incomplete.
pub(super) fn wait_groups(cx: &mut Cx, family: Family, pending: u32, read: bool) -> Flow {
    let warp = cx.warp().agent;
    let mask = cx.mask;
    let state = &mut cx.cluster().asynchronous;
    let open = *state.open_groups(warp, family);
    let owed = |f: &InFlight| {
        f.family == family
            && f.warp == warp
            && f.lanes & mask != 0
            && !(read && f.read)
            && lanes(f.lanes & mask).any(|l| f.group < open[l].saturating_sub(pending))
    };
    if state.queue.iter().any(owed) {
        cx.fragment().wait = Wait::CopyGroup {
            pending,
            read,
            bulk: family == Family::Bulk,
        };
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    let at = super::address::here(cx);
    let cluster = cx.cluster();
    if let Some(check) = &mut cluster.check {
        if family == Family::Bulk {
            check.bulk_stores_waited(warp, mask, |l| open[l].saturating_sub(pending));
        }
        let done = lanes(mask).map(|l| open[l].saturating_sub(pending)).max();
        let kind = match (family, read) {
            (Family::Bulk, true) => 2,
            (Family::Bulk, false) => 1,
            _ => 0,
        };
        let floor = &mut cluster.asynchronous.groups(warp).acquired[kind];
        for group in *floor..done.unwrap_or(0) {
            let object = object(warp, group, family, read);
            check.acquire(at, object);
            check.forget(object);
        }
        *floor = done.unwrap_or(0).max(*floor);
    }
    Flow::Next
}

/// Nothing is in flight.
pub fn idle(cluster: &Cluster) -> bool {
    cluster.asynchronous.queue.is_empty()
}

/// Called by the scheduler after every turn of a warp while operations are in flight.
pub fn tick(cluster: &mut Cluster, launch: &Launch) {
    if let Err(fault) = tick_or_fault(cluster, launch) {
        cluster.fault.get_or_insert(fault);
    }
}

fn tick_or_fault(cluster: &mut Cluster, launch: &Launch) -> Result<(), Fault> {
    crate::trace::synchronise(cluster);
    let state = &mut cluster.asynchronous;
    if cluster.progress == state.progress_seen {
        state.turns_without_progress += 1;
    } else {
        state.progress_seen = cluster.progress;
        state.turns_without_progress = 0;
    }
    if launch.policy == Policy::Random {
        let mut index = 0;
        while index < cluster.asynchronous.queue.len() {
            let done =
                cluster.rng.below(RANDOM_ODDS) == 0 && step(cluster, launch, index)? == Step::Done;
            index += usize::from(!done);
        }
    }
    if cluster.asynchronous.turns_without_progress >= PATIENCE {
        cluster.asynchronous.turns_without_progress = 0;
        retire_any(cluster, launch)?;
    }
    Ok(())
}

/// Called by the scheduler when every warp of the cluster is blocked: retires one step of an operation, or times out the
/// blocked try_waits. True: blocked warps should be tried again. False: what blocks them will not come from here.
pub fn retire_one(cluster: &mut Cluster, launch: &Launch) -> bool {
    crate::trace::synchronise(cluster);
    match retire_any(cluster, launch) {
        Ok(true) => true,
        Ok(false) => expire(cluster),
        Err(fault) => {
            cluster.fault.get_or_insert(fault);
            true
        }
    }
}

/// Lets the blocked try_waits come back false, a few times as long as nothing else happens.
fn expire(cluster: &mut Cluster) -> bool {
    if !waits_on_barrier(cluster) {
        return false;
    }
    let state = &mut cluster.asynchronous;
    if state.progress_expired != cluster.progress {
        state.expired_in_a_row = 0;
    }
    if state.expired_in_a_row >= MAX_EXPIRIES {
        return false;
    }
    state.expired_in_a_row += 1;
    state.expiries = state.expiries.wrapping_add(1);
    cluster.progress += 1;
    state.progress_expired = cluster.progress;
    true
}

fn waits_on_barrier(cluster: &Cluster) -> bool {
    cluster.ctas.iter().any(|cta| {
        cta.warps.iter().any(|w| {
            w.fragments
                .iter()
                .any(|f| matches!(f.wait, Wait::Mbarrier { .. }))
        })
    })
}

/// Retires one step of an operation drawn from the seed.
fn retire_any(cluster: &mut Cluster, launch: &Launch) -> Result<bool, Fault> {
    let count = cluster.asynchronous.queue.len();
    if count == 0 {
        return Ok(false);
    }
    let start = cluster.rng.below(count as u64) as usize;
    for k in 0..count {
        if step(cluster, launch, (start + k) % count)? != Step::Blocked {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reports destinations of a multicast that have exited.
pub(super) fn check_alive(cx: &mut Cx, mask: u16) {
    let at = super::address::here(cx);
    let cluster = cx.cluster();
    let Some(check) = &mut cluster.check else {
        return;
    };
    for cta in &cluster.ctas {
        if cta.exited && mask >> cta.rank & 1 != 0 {
            check.report(
                FindingKind::ClusterLifetime,
                at,
                format!("multicast to CTA {}, which has exited", cta.rank),
                Vec::new(),
            );
        }
    }
}

/// Reports a write to shared memory of a CTA that has exited.
pub(super) fn check_written(cluster: &mut Cluster, s: Shared, at: At) {
    if cluster.ctas[s.cta as usize].exited
        && let Some(check) = &mut cluster.check
    {
        check.report(
            FindingKind::ClusterLifetime,
            at,
            format!(
                "writes shared address {:#x} of CTA {}, which has exited",
                s.address, s.cta
            ),
            Vec::new(),
        );
    }
}

/// The last warp of CTA `rank` has exited.
pub fn cta_exits(cluster: &mut Cluster, rank: u32, at: At) {
    mbarrier::check_exit(cluster, rank, at);
    match &mut cluster.check {
        Some(check) => check.cta_exits(rank, at),
        None => return,
    }
    let into: Vec<At> = cluster
        .asynchronous
        .queue
        .iter()
        .filter(|f| f.work.writes_shared_of(rank))
        .map(|f| f.at)
        .collect();
    for op in into {
        if let Some(check) = &mut cluster.check {
            check.report(
                FindingKind::ClusterLifetime,
                op,
                format!(
                    "still writes shared memory of CTA {rank}, which exits without waiting for it"
                ),
                Vec::new(),
            );
        }
    }
}

/// All CTAs have exited: what is in flight takes effect.
pub fn finish(cluster: &mut Cluster, launch: &Launch) {
    while cluster.fault.is_none() {
        match retire_any(cluster, launch) {
            Ok(true) => {}
            Ok(false) => break,
            Err(fault) => cluster.fault = Some(fault),
        }
    }
}

/// What a wait on an mbarrier or a group waits for, in words.
pub fn describe_wait(cluster: &Cluster, cta: &Cta, wait: &Wait) -> Option<String> {
    let rank = cta.rank;
    let state = &cluster.asynchronous;
    let copies = |f: &dyn Fn(&InFlight) -> bool| state.queue.iter().filter(|e| f(e)).count();
    match *wait {
        Wait::Mbarrier { address, phase, .. } => {
            let object = state
                .barriers
                .get(rank as usize)
                .and_then(|b| b.get(address))
                .map_or_else(|| "no object there".to_owned(), |b| b.describe());
            let s = Shared { cta: rank, address };
            let missed = missed_phase(state, cta, address).unwrap_or_default();
            let flying = copies(&|f| f.work.signals(s));
            Some(format!(
                "mbarrier at shared address {address:#x} of CTA {rank}, completion of phase {phase}; it is in {object}; \
                 {flying} copies for it in flight{missed}"
            ))
        }
        Wait::CopyGroup {
            pending,
            read,
            bulk,
        } => Some(format!(
            "at most {pending} {} groups{}; {} in flight in the cluster",
            if bulk { "bulk" } else { "cp.async" },
            if read { " with unread sources" } else { "" },
            copies(&|f| (f.family == Family::Bulk) == bulk && f.family != Family::Ungrouped)
        )),
        _ => None,
    }
}

/// A waiter whose next phase has come and gone: only the parity is left, and that is the one of the current phase.
fn missed_phase(state: &AsyncState, cta: &Cta, address: u32) -> Option<String> {
    let object = state.barriers.get(cta.rank as usize)?.get(address)?;
    let waits = |f: &crate::exec::Fragment| matches!(f.wait, Wait::Mbarrier { address: a, .. } if a == address);
    cta.warps
        .iter()
        .filter(|w| w.fragments.iter().any(waits))
        .find_map(|w| {
            let next = object.last_seen(w.agent)? + 1;
            (next + 2 <= object.phase).then(|| {
                format!(
                    "; warp {} saw phase {} complete last: phase {next} has completed since, and so has the one after \
                     it, so that its parity looks incomplete again",
                    w.index,
                    next - 1
                )
            })
        })
}

/// Copies bytes of shared memory out.
pub(super) fn read_shared(cluster: &mut Cluster, s: Shared, bytes: usize, into: &mut Vec<u8>) {
    let from = pointer(cluster, s);
    into.clear();
    // SAFETY: the range was tested by `resolve` at issue, and shared memory does not move.
    into.extend_from_slice(unsafe { std::slice::from_raw_parts(from, bytes) });
}

//! Races between the lanes of one warp.
//!
//! A warp executes in lockstep here and mostly on devices, but nothing promises it: "these intrinsics do not imply a memory barrier" is
//! said of shfl, vote and match, and what one lane writes another one may read only after `bar.warp.sync` (`__syncwarp`) or a stronger
//! barrier. The clocks of [`super::clock`] are clocks of warps, so a warp remembers here what its lanes accessed since anything last
//! ordered them, whichever way the schedule went:
//!
//! * a lane reads what another lane wrote, or writes what another lane read;
//! * a lane issues a bulk copy that reads what other lanes wrote, or overwrites what they read.
//!
//! In strict mode also what other warps do: an arrival at an mbarrier by some lanes releases what these lanes did. What the others did before is
//! released only if a `bar.warp.sync` came before the arrival. Devices forgive that where the lanes execute together (DeepGEMM's products
//! rely on it).
//!
//! The last [`KEEP`] reads and writes are kept; what is older is forgotten, so a race may be missed. Every wait that succeeds, every
//! acquire and every fence counts as ordering all lanes of the warp, which is more than it does. Lanes that write one address are not
//! reported (values that agree are common and harmless), nor are atomics and volatile accesses. ldmatrix and stmatrix, in which all lanes have
//! to take part, are orderly among themselves, and conflict with a lane's own loads and stores in strict mode.

use super::clock::Identity;
use super::{Agent, At, Checker, FindingKind, Kind, SiteRef, Sync};

/// Reads, and writes, that a warp remembers.
const KEEP: usize = 24;

/// Addresses of shared memory, told from global ones.
const SHARED: u64 = 1 << 63;

/// What the lanes of `mask` accessed with one instruction.
#[derive(Debug, Clone)]
struct Access {
    pc: u32,
    mask: u32,
    bytes: u32,
    /// All lanes have a part in every address (ldmatrix, stmatrix).
    collective: bool,
    /// All addresses lie in `low..high`.
    low: u64,
    high: u64,
    addresses: [u64; 32],
}

impl Access {
    /// `mask` is not empty.
    fn new(pc: u32, addresses: [u64; 32], mask: u32, bytes: u32) -> Access {
        let of_lanes = || each(mask).map(|l| addresses[l as usize]);
        Access {
            pc,
            mask,
            bytes,
            collective: false,
            low: of_lanes().min().unwrap_or(0),
            high: of_lanes().max().unwrap_or(0) + u64::from(bytes),
            addresses,
        }
    }

    /// A lane of this access, a lane of `other` and an address that both touch, where the lanes differ. `own_hides`: a lane that did the
    /// same itself conflicts with nobody there.
    fn conflict(&self, other: &Access, own_hides: bool) -> Option<(u32, u32, u64)> {
        if self.low >= other.high || other.low >= self.high {
            return None;
        }
        if self.collective && other.collective {
            return None;
        }
        let alone = !self.collective && !other.collective;
        if alone
            && self.bytes == other.bytes
            && self.mask == other.mask
            && self.addresses == other.addresses
            && self.distinct()
        {
            return None;
        }
        for l in each(self.mask) {
            let a = self.addresses[l as usize];
            let end = a + u64::from(self.bytes);
            if a >= other.high || other.low >= end {
                continue;
            }
            let touches = |m: u32| {
                let b = other.addresses[m as usize];
                b < end && a < b + u64::from(other.bytes)
            };
            if alone && own_hides && other.mask >> l & 1 == 1 && touches(l) {
                continue;
            }
            if let Some(m) = each(other.mask).find(|&m| (!alone || m != l) && touches(m)) {
                return Some((l, m, a.max(other.addresses[m as usize])));
            }
        }
        None
    }

    /// Every lane has addresses of its own.
    fn distinct(&self) -> bool {
        let bytes = u64::from(self.bytes);
        self.mask == u32::MAX && self.addresses.windows(2).all(|a| a[0] + bytes <= a[1])
    }
}

/// What a warp remembers, the oldest overwritten first.
#[derive(Debug, Default)]
struct Recent {
    accesses: Vec<Access>,
    next: usize,
    low: u64,
    high: u64,
}

impl Recent {
    fn clear(&mut self) {
        self.accesses.clear();
        self.next = 0;
        (self.low, self.high) = (0, 0);
    }

    fn push(&mut self, access: Access) {
        if self.accesses.is_empty() {
            (self.low, self.high) = (access.low, access.high);
        }
        self.low = self.low.min(access.low);
        self.high = self.high.max(access.high);
        if self.accesses.len() < KEEP {
            self.accesses.push(access);
        } else {
            self.accesses[self.next] = access;
            self.next = (self.next + 1) % KEEP;
        }
    }

    fn conflict(&self, access: &Access, own_hides: bool) -> Option<(u32, (u32, u32, u64))> {
        if access.low >= self.high || self.low >= access.high {
            return None;
        }
        let find = |earlier: &Access| Some((earlier.pc, access.conflict(earlier, own_hides)?));
        self.accesses.iter().find_map(find)
    }
}

/// What lanes accessed before another lane of their warp arrived at an mbarrier, without a `bar.warp.sync` between: the arrival does not
/// release it.
#[derive(Debug)]
struct Unreleased {
    access: Access,
    writes: bool,
    /// pc and lanes of the arrival.
    arrival: (u32, u32),
    /// The lanes have met since: the next release covers it.
    met: bool,
    /// Who knows the warp up to here has acquired a release that covers it.
    covered: Option<u32>,
}

/// Accesses of a warp's lanes that nothing orders.
#[derive(Debug, Default)]
struct Unordered {
    reads: Recent,
    writes: Recent,
    /// Strict mode: all accesses to shared memory since the lanes met, and whether they wrote.
    apart: Vec<(Access, bool)>,
    unreleased: Vec<Unreleased>,
}

/// Of each warp of the cluster, by agent.
#[derive(Debug, Default)]
pub(super) struct Lanes(Vec<Unordered>);

impl Lanes {
    pub fn new(warps: usize) -> Self {
        let mut all = Vec::new();
        all.resize_with(warps, Unordered::default);
        Lanes(all)
    }

    /// All lanes of the warp have met, or one of them has learned what others did.
    #[inline]
    pub fn ordered(&mut self, agent: Agent) {
        if let Some(warp) = self.0.get_mut(agent.0 as usize) {
            warp.reads.clear();
            warp.writes.clear();
        }
    }

    /// All lanes of the warp have met at a barrier.
    pub fn met(&mut self, agent: Agent) {
        if let Some(warp) = self.0.get_mut(agent.0 as usize) {
            warp.apart.clear();
            warp.unreleased.iter_mut().for_each(|u| u.met = true);
        }
    }
}

fn each(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

/// Where an access to the shared memory of CTA `cta` lies among all addresses.
pub(super) fn of_shared(cta: u32, address: u32) -> u64 {
    SHARED | u64::from(cta) << 32 | u64::from(address)
}

impl Checker {
    /// Lanes of a warp read or write through the generic proxy.
    pub(super) fn lanes_access(
        &mut self,
        at: At,
        addresses: &[u64; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        if kind != Kind::Atomic && mask != 0 {
            let access = Access::new(at.pc, *addresses, mask, bytes);
            self.lanes_meet(at, access, kind, false);
        }
    }

    /// The same in the shared memory of CTA `cta`.
    pub fn lanes_shared_access(
        &mut self,
        at: At,
        cta: u32,
        addresses: &[u32; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let places = addresses.map(|a| of_shared(cta, a));
        self.lanes_access(at, &places, mask, bytes, kind);
    }

    /// Strict mode: lanes read or write rows of shared memory of CTA `cta` together.
    pub fn lanes_together(
        &mut self,
        at: At,
        cta: u32,
        addresses: &[u32; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let mut access = Access::new(at.pc, addresses.map(|a| of_shared(cta, a)), mask, bytes);
        access.collective = true;
        self.lanes_meet(at, access, kind, false);
    }

    /// Lane `issuer` issues a copy that reads or writes `bytes` of shared memory.
    pub fn copy_issued(
        &mut self,
        at: At,
        issuer: u32,
        cta: u32,
        address: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let access = Access::new(at.pc, [of_shared(cta, address); 32], 1 << issuer, bytes);
        self.lanes_meet(at, access, kind, true);
    }

    /// Strict mode: lanes read or write shared memory, each its own address or all together.
    pub(super) fn lanes_apart(
        &mut self,
        at: At,
        cta: u32,
        addresses: &[u32; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let Some(warp) = self.lanes.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        if kind == Kind::Atomic || mask == 0 || warp.apart.len() >= KEEP {
            return;
        }
        let access = Access::new(at.pc, addresses.map(|a| of_shared(cta, a)), mask, bytes);
        warp.apart.push((access, kind == Kind::Write));
    }

    /// Strict mode: who learns from now on what the warp knows sees what lanes of `mask` did, and all lanes before they last met.
    pub(super) fn lanes_cover(&mut self, at: At, mask: u32) {
        let now = self.agents.all[at.agent.0 as usize]
            .knowledge
            .seen
            .get(at.agent.0);
        let Some(warp) = self.lanes.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        for u in warp.unreleased.iter_mut().filter(|u| u.covered.is_none()) {
            if u.met || u.access.mask & !mask == 0 {
                u.covered = Some(now);
            } else {
                u.access.mask &= !mask;
            }
        }
    }

    /// Strict mode: lanes of a warp release what they did.
    pub fn lanes_release(&mut self, at: At, mask: u32) {
        self.lanes_cover(at, mask);
        let Some(warp) = self.lanes.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        for (mut access, writes) in warp.apart.drain(..) {
            access.mask &= !mask;
            if access.mask != 0 {
                warp.unreleased.push(Unreleased {
                    access,
                    writes,
                    arrival: (at.pc, mask),
                    met: false,
                    covered: None,
                });
            }
        }
        let old = warp.unreleased.len().saturating_sub(4 * KEEP);
        warp.unreleased.drain(..old);
    }

    /// Strict mode: is an access to shared memory ordered after another warp's by the arrival of a lane that does not release it?
    pub(super) fn lanes_released(
        &mut self,
        at: At,
        cta: u32,
        address: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let low = of_shared(cta, address);
        let high = low + u64::from(bytes);
        let state = &self.agents.all[at.agent.0 as usize];
        let own = match state.identity {
            Identity::Warp { .. } => at.agent.0,
            Identity::Operation { issuer, .. } => issuer,
        };
        let found = self.lanes.0.iter().zip(0..).find_map(|(warp, w)| {
            let known = state.knowledge.seen.get(w);
            let found = warp.unreleased.iter().find(|u| {
                let touches = |l: u32| {
                    let a = u.access.addresses[l as usize];
                    a < high && low < a + u64::from(u.access.bytes)
                };
                (u.writes || kind != Kind::Read)
                    && u.covered.is_none_or(|c| known < c)
                    && u.access.low < high
                    && low < u.access.high
                    && each(u.access.mask).any(touches)
            });
            found.filter(|_| w != own).map(|u| (w, u))
        });
        let Some((w, u)) = found else {
            return;
        };
        let (warp, who) = (self.name(Agent(w)), self.name(at.agent));
        let verb = if kind == Kind::Read {
            "reads"
        } else {
            "writes"
        };
        let did = if u.writes { "written" } else { "read" };
        let lane = u.access.mask.trailing_zeros();
        let message = format!(
            "{who} {verb} shared memory of CTA {cta}, address {address:#x}, {did} by lane {lane} of {warp}; the arrival of lane {} does not \
             release that: no bar.warp.sync (__syncwarp) lies before it",
            u.arrival.1.trailing_zeros()
        );
        let site = |pc, role: &str| SiteRef {
            pc,
            who: warp.clone(),
            role: role.into(),
        };
        let role = format!("earlier {}", if u.writes { "write" } else { "read" });
        let sites = vec![site(u.access.pc, &role), site(u.arrival.0, "arrival")];
        self.report(FindingKind::SharedRace, at, message, sites);
    }

    /// What an acquired object says of the lanes of the warp that acquired it.
    #[inline]
    pub(super) fn lanes_acquire(&mut self, at: At, object: Sync) {
        self.lanes.ordered(at.agent);
        if self.strict.enabled
            && matches!(
                object,
                Sync::Warp { .. } | Sync::Named { .. } | Sync::ClusterBarrier
            )
        {
            self.lanes.met(at.agent);
        }
    }

    fn lanes_meet(&mut self, at: At, access: Access, kind: Kind, copy: bool) {
        let Some(warp) = self.lanes.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        let writes = kind == Kind::Write;
        let earlier = if writes { &warp.reads } else { &warp.writes };
        let hit = earlier.conflict(&access, !writes && !copy);
        if !copy {
            let recent = if writes {
                &mut warp.writes
            } else {
                &mut warp.reads
            };
            recent.push(access);
        }
        if let Some((pc, (lane, other, address))) = hit {
            self.lanes_conflict(at, writes, copy, lane, pc, other, address);
        }
    }

    #[allow(clippy::too_many_arguments)] // both sides of the conflict
    fn lanes_conflict(
        &mut self,
        at: At,
        writes: bool,
        copies: bool,
        lane: u32,
        earlier: u32,
        other: u32,
        address: u64,
    ) {
        let warp = self.name(at.agent);
        let place = if address & SHARED != 0 {
            let (cta, address) = ((address & !SHARED) >> 32, address & 0xffff_ffff);
            format!("shared memory of CTA {cta}, address {address:#x}")
        } else {
            format!("global address {address:#x}")
        };
        let verb = match (copies, writes) {
            (false, false) => "reads",
            (false, true) => "writes",
            (true, false) => "issues a copy that reads",
            (true, true) => "issues a copy that writes",
        };
        let did = if writes { "read" } else { "written" };
        let message = format!(
            "lane {lane} of {warp} {verb} {place}, {did} by lane {other} of the same warp, and no bar.warp.sync (__syncwarp) lies between"
        );
        let site = SiteRef {
            pc: earlier,
            who: format!("lane {other} of {warp}"),
            role: format!("earlier {}", if writes { "read" } else { "write" }),
        };
        let kind = if address & SHARED != 0 {
            FindingKind::SharedRace
        } else {
            FindingKind::GlobalRace
        };
        self.report(kind, at, message, vec![site]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(mask: u32, bytes: u32, place: impl Fn(u64) -> u64) -> Access {
        let addresses = std::array::from_fn(|l| place(l as u64));
        Access::new(0, addresses, mask, bytes)
    }

    #[test]
    fn only_other_lanes_conflict() {
        let own = access(u32::MAX, 4, |l| 4 * l);
        assert_eq!(own.conflict(&own.clone(), false), None);
        let next = access(u32::MAX, 4, |l| 4 * (l + 1));
        assert_eq!(next.conflict(&own, false), Some((0, 1, 4)));
        // Halves of one word, and a wide access over its own narrow ones.
        let halves = access(u32::MAX, 2, |l| 2 * l);
        assert_eq!(halves.conflict(&halves.clone(), false), None);
        let wide = access(1, 16, |_| 0);
        assert_eq!(wide.conflict(&own, false), Some((0, 1, 4)));
        assert_eq!(access(1, 4, |_| 0).conflict(&own, false), None);
        assert_eq!(access(1 << 31, 4, |_| 128).conflict(&own, false), None);
    }

    #[test]
    fn a_lane_reads_what_it_wrote_as_others_did() {
        let all = access(u32::MAX, 4, |_| 64);
        assert_eq!(all.conflict(&all.clone(), true), None);
        // But a lane overwrites what others have read as well as itself.
        let one = access(1 << 7, 4, |_| 64);
        assert_eq!(one.conflict(&all, false), Some((7, 0, 64)));
        let first = access(1, 4, |_| 64);
        assert_eq!(all.conflict(&first, true), Some((1, 0, 64)));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        for i in 0..=KEEP as u64 {
            recent.push(access(1, 4, |_| 4 * i));
        }
        let read = |i: u64| access(2, 4, move |_| 4 * i);
        assert!(recent.conflict(&read(0), true).is_none());
        assert!((1..=KEEP as u64).all(|i| recent.conflict(&read(i), true).is_some()));
        recent.clear();
        assert!((0..=KEEP as u64).all(|i| recent.conflict(&read(i), true).is_none()));
    }
}

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
//! The last [`KEEP`] reads and writes are kept; what is older is forgotten, so a race may be missed. Every wait that succeeds, every
//! acquire and every fence counts as ordering all lanes of the warp, which is more than it does. Lanes that write one address are not
//! reported (values that agree are common and harmless), nor are atomics and volatile accesses, nor ldmatrix and stmatrix, in which all lanes
//! have to take part.

use super::{Agent, At, Checker, FindingKind, Kind, SiteRef};

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
    /// All addresses lie in `low..high`.
    low: u64,
    high: u64,
    addresses: [u64; 32],
}

impl Access {
    /// A lane of this access, a lane of `other` and an address that both touch, where the lanes differ. `own_hides`: a lane that did the
    /// same itself conflicts with nobody there.
    fn conflict(&self, other: &Access, own_hides: bool) -> Option<(u32, u32, u64)> {
        if self.low >= other.high || other.low >= self.high {
            return None;
        }
        if self.bytes == other.bytes
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
            if own_hides && other.mask >> l & 1 == 1 && touches(l) {
                continue;
            }
            if let Some(m) = each(other.mask).find(|&m| m != l && touches(m)) {
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

/// Accesses of a warp's lanes that nothing orders.
#[derive(Debug, Default)]
struct Unordered {
    reads: Recent,
    writes: Recent,
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
        if kind == Kind::Atomic || mask == 0 {
            return;
        }
        let (mut low, mut high) = (u64::MAX, 0);
        for l in each(mask) {
            low = low.min(addresses[l as usize]);
            high = high.max(addresses[l as usize]);
        }
        let access = Access {
            pc: at.pc,
            mask,
            bytes,
            low,
            high: high + u64::from(bytes),
            addresses: *addresses,
        };
        self.lanes_meet(at, access, kind, false);
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
        let low = of_shared(cta, address);
        let access = Access {
            pc: at.pc,
            mask: 1 << issuer,
            bytes,
            low,
            high: low + u64::from(bytes),
            addresses: [low; 32],
        };
        self.lanes_meet(at, access, kind, true);
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
        let addresses: [u64; 32] = std::array::from_fn(|l| place(l as u64));
        let of_lanes = || each(mask).map(|l| addresses[l as usize]);
        Access {
            pc: 0,
            mask,
            bytes,
            low: of_lanes().min().expect("a lane"),
            high: of_lanes().max().expect("a lane") + u64::from(bytes),
            addresses,
        }
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

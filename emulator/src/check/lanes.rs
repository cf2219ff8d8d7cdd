//! Races between the lanes of one warp.
//!
//! A warp executes in lockstep here and mostly on devices, but nothing promises it, and shfl, vote and match order no memory: what one lane
//! writes another one may read only after `bar.warp.sync` (`__syncwarp`) or a stronger barrier. The clocks of [`super::clock`] are
//! clocks of warps, so a warp remembers here what its lanes accessed since anything last ordered them, whichever way the schedule went:
//!
//! * a lane reads what another lane wrote, or writes what another lane read;
//! * a lane issues a bulk copy that reads what other lanes wrote, or overwrites what they read.
//!
//! The last [`KEEP`] reads and writes of different places are kept; what is older is forgotten, so a race may be missed. Every wait that
//! succeeds, every acquire and every fence counts as ordering all lanes of the warp, which is more than it does. Lanes that write one address
//! are not reported (values that agree are common and harmless), nor are atomics and volatile accesses. ldmatrix and stmatrix, in which
//! all lanes have to take part, are orderly among themselves, and conflict with a lane's own loads and stores in strict mode.

use super::{Agent, At, Checker, FindingKind, Kind, SiteRef, WarpAccess};

/// Reads, and writes, that a warp remembers.
pub(super) const KEEP: usize = 24;

/// Addresses of shared memory, told from global ones.
const SHARED: u64 = 1 << 63;

/// Where the shared memory of CTA `cta` begins among all addresses.
pub(super) fn shared_of(cta: u32) -> u64 {
    SHARED | u64::from(cta) << 32
}

pub(super) fn each(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

/// What the lanes of `mask` accessed with one instruction.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub pc: u32,
    pub mask: u32,
    bytes: u32,
    together: bool,
    /// All addresses lie in `low..high`.
    low: u64,
    high: u64,
    addresses: [u64; 32],
}

impl Places {
    /// Of an access to memory that begins at `base` among all addresses.
    pub fn new<A: Copy + Into<u64>>(pc: u32, access: &WarpAccess<A>, base: u64) -> Places {
        let addresses = access.addresses.map(|a| base | a.into());
        let limits = |(low, high): (u64, u64), a: u64| (low.min(a), high.max(a));
        let (low, high) = if access.mask == u32::MAX {
            addresses.iter().copied().fold((u64::MAX, 0), limits)
        } else {
            let of_lanes = each(access.mask).map(|l| addresses[l as usize]);
            of_lanes.fold((u64::MAX, 0), limits)
        };
        Places {
            pc,
            mask: access.mask,
            bytes: access.bytes,
            together: access.together,
            low,
            high: high + u64::from(access.bytes),
            addresses,
        }
    }

    /// Does a lane touch `low..high`?
    pub fn touch(&self, low: u64, high: u64) -> bool {
        let bytes = u64::from(self.bytes);
        self.low < high
            && low < self.high
            && each(self.mask).any(|l| {
                let a = self.addresses[l as usize];
                a < high && low < a + bytes
            })
    }

    /// Who of this access and who of `other` touch an address, where the lanes differ. `own_hides`: a lane that did the same itself
    /// conflicts with nobody there.
    fn conflict(&self, other: &Places, own_hides: bool) -> Option<Meeting> {
        if self.low >= other.high || other.low >= self.high || self.together && other.together {
            return None;
        }
        let alone = !self.together && !other.together;
        if alone && self.same(other) && self.distinct() {
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
                return Some(Meeting {
                    lane: (!self.together).then_some(l),
                    other: (!other.together).then_some(m),
                    earlier: other.pc,
                    address: a.max(other.addresses[m as usize]),
                });
            }
        }
        None
    }

    /// The same lanes at the same places.
    fn same(&self, other: &Places) -> bool {
        (self.low, self.high, self.mask, self.bytes, self.together)
            == (
                other.low,
                other.high,
                other.mask,
                other.bytes,
                other.together,
            )
            && self.addresses == other.addresses
    }

    /// Every lane has addresses of its own.
    fn distinct(&self) -> bool {
        let bytes = u64::from(self.bytes);
        self.mask == u32::MAX && self.addresses.windows(2).all(|a| a[0] + bytes <= a[1])
    }
}

/// Two sides of a conflict: lanes, or none of its own where all work together.
#[derive(Debug, PartialEq, Eq)]
struct Meeting {
    lane: Option<u32>,
    other: Option<u32>,
    /// pc of the other side, which came first.
    earlier: u32,
    address: u64,
}

/// What a warp remembers, the oldest overwritten first.
#[derive(Debug, Default)]
struct Recent {
    places: Vec<Places>,
    next: usize,
    low: u64,
    high: u64,
}

impl Recent {
    fn clear(&mut self) {
        self.places.clear();
        self.next = 0;
        (self.low, self.high) = (0, 0);
    }

    fn push(&mut self, places: Places) {
        if self.places.is_empty() {
            (self.low, self.high) = (places.low, places.high);
        }
        if let Some(same) = self.places.iter_mut().find(|p| p.same(&places)) {
            same.pc = places.pc;
            return;
        }
        self.low = self.low.min(places.low);
        self.high = self.high.max(places.high);
        if self.places.len() < KEEP {
            self.places.push(places);
        } else {
            self.places[self.next] = places;
            self.next = (self.next + 1) % KEEP;
        }
    }

    fn conflict(&self, places: &Places, own_hides: bool) -> Option<Meeting> {
        if places.low >= self.high || self.low >= places.high {
            return None;
        }
        let mut earlier = self.places.iter();
        earlier.find_map(|earlier| places.conflict(earlier, own_hides))
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
        Lanes((0..warps).map(|_| Unordered::default()).collect())
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

impl Checker {
    /// Lanes of a warp read or write memory that begins at `base` among all addresses.
    pub(super) fn lanes_access<A: Copy + Into<u64>>(
        &mut self,
        at: At,
        access: &WarpAccess<A>,
        base: u64,
    ) {
        let left_out = access.together && !self.strict.enabled;
        if !access.kind.is_strong() && access.mask != 0 && !left_out {
            self.lanes_meet(at, Places::new(at.pc, access, base), access.kind, false);
        }
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
        let access = WarpAccess {
            addresses: &[address; 32],
            mask: 1 << issuer,
            bytes,
            kind,
            inside: false,
            together: false,
        };
        self.lanes_meet(at, Places::new(at.pc, &access, shared_of(cta)), kind, true);
    }

    fn lanes_meet(&mut self, at: At, places: Places, kind: Kind, copy: bool) {
        let Some(warp) = self.lanes.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        let writes = kind == Kind::Write;
        let earlier = if writes { &warp.reads } else { &warp.writes };
        let hit = earlier.conflict(&places, !writes && !copy);
        if !copy {
            let recent = if writes {
                &mut warp.writes
            } else {
                &mut warp.reads
            };
            recent.push(places);
        }
        if let Some(meeting) = hit {
            self.lanes_conflict(at, writes, copy, &meeting);
        }
    }

    fn lanes_conflict(&mut self, at: At, writes: bool, copies: bool, meeting: &Meeting) {
        let (warp, address) = (self.name(at.agent), meeting.address);
        let name = |lane: Option<u32>| {
            lane.map_or("a matrix instruction".into(), |lane| format!("lane {lane}"))
        };
        let (lane, other) = (name(meeting.lane), name(meeting.other));
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
            "{lane} of {warp} {verb} {place}, {did} by {other} of the same warp, and no bar.warp.sync (__syncwarp) lies between"
        );
        let site = SiteRef {
            pc: meeting.earlier,
            who: format!("{other} of {warp}"),
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

    fn access(mask: u32, bytes: u32, place: impl Fn(u64) -> u64) -> Places {
        let access = WarpAccess {
            addresses: &std::array::from_fn::<u64, 32, _>(|l| place(l as u64)),
            mask,
            bytes,
            kind: Kind::Read,
            inside: false,
            together: false,
        };
        Places::new(0, &access, 0)
    }

    fn meeting(lane: u32, other: u32, address: u64) -> Option<Meeting> {
        Some(Meeting {
            lane: Some(lane),
            other: Some(other),
            earlier: 0,
            address,
        })
    }

    #[test]
    fn only_other_lanes_conflict() {
        let own = access(u32::MAX, 4, |l| 4 * l);
        assert_eq!(own.conflict(&own.clone(), false), None);
        let next = access(u32::MAX, 4, |l| 4 * (l + 1));
        assert_eq!(next.conflict(&own, false), meeting(0, 1, 4));
        // Halves of one word, and a wide access over its own narrow ones.
        let halves = access(u32::MAX, 2, |l| 2 * l);
        assert_eq!(halves.conflict(&halves.clone(), false), None);
        let wide = access(1, 16, |_| 0);
        assert_eq!(wide.conflict(&own, false), meeting(0, 1, 4));
        assert_eq!(access(1, 4, |_| 0).conflict(&own, false), None);
        assert_eq!(access(1 << 31, 4, |_| 128).conflict(&own, false), None);
    }

    #[test]
    fn a_lane_reads_what_it_wrote_as_others_did() {
        let all = access(u32::MAX, 4, |_| 64);
        assert_eq!(all.conflict(&all.clone(), true), None);
        // But a lane overwrites what others have read as well as itself.
        let one = access(1 << 7, 4, |_| 64);
        assert_eq!(one.conflict(&all, false), meeting(7, 0, 64));
        let first = access(1, 4, |_| 64);
        assert_eq!(all.conflict(&first, true), meeting(1, 0, 64));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        for i in 0..=KEEP as u64 {
            // What is done again at the same places takes no other's room.
            for _ in 0..3 {
                recent.push(access(1, 4, |_| 4 * i));
            }
        }
        let read = |i: u64| access(2, 4, move |_| 4 * i);
        assert!(recent.conflict(&read(0), true).is_none());
        assert!((1..=KEEP as u64).all(|i| recent.conflict(&read(i), true).is_some()));
        recent.clear();
        assert!((0..=KEEP as u64).all(|i| recent.conflict(&read(i), true).is_none()));
    }

    #[test]
    fn matrices_are_orderly_among_themselves() {
        let own = access(u32::MAX, 4, |l| 4 * l);
        let rows = Places {
            together: true,
            ..access(0xff, 16, |l| 16 * l)
        };
        assert_eq!(rows.conflict(&rows.clone(), false), None);
        // Whoever named the address: every lane has a part in it.
        let hit = rows.conflict(&own, true).expect("all lanes read all");
        assert_eq!((hit.lane, hit.other, hit.address), (None, Some(0), 0));
        let hit = own.conflict(&rows, false).expect("one overwrites all");
        assert_eq!((hit.lane, hit.other, hit.address), (Some(0), None, 0));
    }
}

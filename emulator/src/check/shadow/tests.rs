//! Shadow memory: what conflicts, and what does not.

use super::*;

/// What is seen, and whether it is visible to the async proxy.
enum View {
    All(bool, bool),
    Only(u32),
    AllBut(u32),
}
use View::*;

impl Order for View {
    fn seen(&self, agent: u32, _: u32) -> bool {
        match *self {
            All(seen, _) => seen,
            Only(one) => agent == one,
            AllBut(one) => agent != one,
        }
    }
    fn proxied(&self, _: u32, _: u32) -> bool {
        matches!(self, All(_, true) | AllBut(_))
    }
    /// Agents from 100 on are of other clusters.
    fn apart(&self, agent: u32) -> bool {
        agent >= 100
    }
}

fn new(agent: u32, kind: Kind, proxy: Proxy) -> New {
    New {
        agent,
        clock: 1,
        pc: agent,
        kind,
        proxy,
        inside: false,
    }
}

/// Through the generic proxy.
fn of(agent: u32, kind: Kind) -> New {
    new(agent, kind, Proxy::Generic)
}

impl Shadow {
    /// The first conflict of an access.
    fn access(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
    ) -> Option<(u64, Conflict)> {
        let mut hits = vec![];
        if !new.kind.writes() {
            self.read(address, bytes, new, order, &mut hits);
        } else {
            self.write(address, bytes, new, order, &mut hits);
        }
        hits.first().map(|h| (h.address, h.conflict))
    }
}

#[test]
fn masks() {
    assert_eq!(byte_mask(0, 4), 0b1111);
    assert_eq!(byte_mask(128, 128), 0b1111);
    assert_eq!(byte_mask(1, 2), 0b0110);
    assert_eq!(byte_mask(7, 1), 0b1000);
    assert_eq!(byte_mask(8, 1), 0b0001);
}

#[test]
fn a_cell_is_a_cache_line() {
    assert_eq!(size_of::<Cell>(), 64);
    let new = new(3, Kind::Atomic, Proxy::Async).packed();
    let past = Packed {
        tag: new.tag | 5,
        ..new
    }
    .unpack();
    assert_eq!(
        (past.pc, past.bytes, past.atomic, past.proxy),
        (3, 5, true, Proxy::Async)
    );
    assert_eq!(NOBODY.unpack().pc, u32::MAX);
}

#[test]
fn unordered_write_and_read_conflict_ordered_ones_do_not() {
    let mut s = Shadow::default();
    assert_eq!(
        s.access(16, 4, of(0, Kind::Write), &All(false, false)),
        None
    );
    assert!(matches!(
        s.access(16, 4, of(1, Kind::Read), &All(false, false)),
        Some((
            16,
            Conflict::Race {
                earlier_writes: true,
                ..
            }
        ))
    ));
    let mut s = Shadow::default();
    s.access(16, 4, of(0, Kind::Write), &All(true, true));
    assert_eq!(s.access(16, 4, of(1, Kind::Read), &All(true, true)), None);
    assert!(
        s.access(16, 4, of(2, Kind::Write), &All(false, true))
            .is_some()
    );
}

#[test]
fn all_of_several_readers_are_remembered() {
    for forgotten in 1..=READERS as u32 {
        let mut s = Shadow::default();
        for reader in 1..=READERS as u32 {
            s.access(0, 4, of(reader, Kind::Read), &All(false, false));
        }
        let c = s.access(0, 4, of(9, Kind::Write), &AllBut(forgotten));
        assert!(
            matches!(c, Some((0, Conflict::Race { earlier, .. })) if earlier.agent == forgotten),
            "{forgotten}: {c:?}"
        );
    }
}

#[test]
fn different_bytes_of_a_word_do_not_conflict() {
    let mut s = Shadow::default();
    s.access(0, 2, of(0, Kind::Write), &All(false, false));
    assert_eq!(s.access(2, 2, of(1, Kind::Write), &All(false, false)), None);
}

#[test]
fn async_reads_of_unfenced_generic_writes_are_found() {
    let mut s = Shadow::default();
    s.access(0, 16, of(0, Kind::Write), &All(true, true));
    assert!(matches!(
        s.access(0, 16, new(1, Kind::Read, Proxy::Async), &All(true, false)),
        Some((0, Conflict::Proxy { .. }))
    ));
    assert_eq!(s.access(0, 16, of(2, Kind::Read), &All(true, false)), None);
}

#[test]
fn atomics_do_not_race_with_each_other() {
    let mut s = Shadow::default();
    s.access(0, 4, of(0, Kind::Atomic), &All(false, false));
    assert_eq!(
        s.access(0, 4, of(1, Kind::Atomic), &All(false, false)),
        None
    );
    assert!(
        s.access(0, 4, of(2, Kind::Read), &All(false, false))
            .is_some()
    );
}

#[test]
fn a_strong_read_conflicts_with_plain_writes_alone() {
    let nothing = All(false, false);
    for (kind, races) in [
        (Kind::Read, false),
        (Kind::StrongRead, false),
        (Kind::Atomic, false),
        (Kind::Write, true),
    ] {
        let mut s = Shadow::default();
        assert_eq!(s.access(0, 4, of(0, Kind::StrongRead), &nothing), None);
        let found = s.access(0, 4, of(1, kind), &nothing);
        assert_eq!(found.is_some(), races, "{kind:?} after a strong read");
        let mut s = Shadow::default();
        s.access(0, 4, of(1, kind), &nothing);
        let found = s.access(0, 4, of(0, Kind::StrongRead), &nothing);
        assert_eq!(found.is_some(), races, "a strong read after {kind:?}");
    }
}

#[test]
fn who_has_read_an_atomic_s_value_follows_it() {
    let nothing = All(false, false);
    let observed = || {
        let mut s = Shadow::default();
        s.access(0, 4, of(0, Kind::Atomic), &nothing);
        assert_eq!(s.access(0, 4, of(1, Kind::StrongRead), &nothing), None);
        s
    };
    // Itself, also after plain reads of its own; somebody who follows it; nobody else.
    let mut s = observed();
    for kind in [Kind::Read, Kind::Read, Kind::Write] {
        assert_eq!(s.access(0, 4, of(1, kind), &nothing), None, "{kind:?}");
    }
    assert_eq!(observed().access(0, 4, of(2, Kind::Write), &Only(1)), None);
    assert!(
        observed()
            .access(0, 4, of(2, Kind::Write), &Only(3))
            .is_some()
    );
    // With more readers than a cell remembers a race may be missed; none is invented.
    let mut s = observed();
    for reader in 2..2 + READERS as u32 {
        s.access(0, 4, of(reader, Kind::StrongRead), &nothing);
    }
    assert_eq!(s.access(0, 4, of(1, Kind::Read), &nothing), None);
}

#[test]
fn a_plain_write_below_atomics_conflicts_with_plain_reads() {
    let mut s = Shadow::default();
    s.access(0, 4, of(0, Kind::Write), &All(true, true));
    s.access(0, 4, of(1, Kind::Atomic), &All(true, true));
    assert_eq!(s.access(0, 4, of(2, Kind::Read), &All(true, true)), None);
    let found = s.access(0, 4, of(3, Kind::Read), &Only(1));
    assert!(matches!(found, Some((_, Conflict::Race { earlier, .. })) if earlier.agent == 0));
}

/// Atomics of narrow scope are atomic to their own cluster alone.
#[test]
fn a_scope_that_ends_at_the_cluster_is_none_for_another() {
    for (inside, other, races) in [(false, 100, false), (true, 100, true), (true, 1, false)] {
        for first in [true, false] {
            let of = |agent, inside| New {
                inside,
                ..of(agent, Kind::Atomic)
            };
            let mut s = Shadow::default();
            s.access(0, 4, of(other, inside && first), &Only(9));
            let found = s.access(0, 4, of(0, inside && !first), &Only(9));
            assert_eq!(found.is_some(), races, "{inside} {other} {first}");
        }
    }
}

/// An atomic covers parts that were written by different agents: each part keeps its own.
#[test]
fn what_lies_below_an_atomic_is_kept_for_every_part() {
    let mut s = Shadow::default();
    s.access(0, 16, of(0, Kind::Write), &All(true, true));
    s.access(16, 16, of(1, Kind::Write), &All(true, true));
    s.access(0, 32, of(2, Kind::Atomic), &All(true, true));
    assert_eq!(s.access(16, 16, of(3, Kind::Atomic), &Only(1)), None);
    assert!(s.access(0, 16, of(3, Kind::Atomic), &Only(1)).is_some());
}

#[test]
fn between_clusters_the_async_proxy_needs_a_fence_after_the_async_proxy() {
    for (writer, fence) in [(1, false), (100, true)] {
        let mut s = Shadow::default();
        s.access(
            0,
            16,
            new(writer, Kind::Write, Proxy::Async),
            &All(true, true),
        );
        let found = s.access(0, 16, new(2, Kind::Read, Proxy::Async), &Only(writer));
        let missing = matches!(found, Some((0, Conflict::Proxy { .. })));
        assert_eq!(missing, fence, "agent {writer}: {found:?}");
    }
}

#[test]
fn unordered_sums_are_told_from_ordered_ones() {
    let sum = |agent| new(agent, Kind::Sum, Proxy::Async);
    let mut s = Shadow::default();
    s.access(0, 64, of(0, Kind::Write), &All(true, true));
    assert_eq!(s.unordered_atomic(0, 64, sum(1), &All(false, false)), None);
    s.access(32, 32, sum(1), &All(true, true));
    let found = s.unordered_atomic(0, 64, sum(2), &Only(0));
    assert!(
        matches!(found, Some((32, Past { agent: 1, .. }))),
        "{found:?}"
    );
    assert_eq!(s.unordered_atomic(0, 64, sum(2), &Only(1)), None);
    assert_eq!(s.unordered_atomic(0, 64, sum(1), &Only(0)), None);
}

#[test]
fn uninitialised_bytes_are_found_exactly() {
    let mut s = Shadow::default();
    let w = of(0, Kind::Write);
    s.access(3, 6, w, &All(true, true));
    assert_eq!(s.first_uninitialised(3, 6), None);
    assert_eq!(s.first_uninitialised(2, 4), Some(2));
    assert_eq!(s.first_uninitialised(4, 8), Some(9));
    assert_eq!(s.undefined_bytes(2, 8), 0b1000_0001);
    assert_eq!(s.undefined_bytes(3, 6), 0);
    assert_eq!(s.undefined_bytes(128, 16), 0xffff);
}

#[test]
fn a_part_of_a_granule_is_told_apart_and_a_whole_write_joins_it_again() {
    let mut s = Shadow::default();
    s.access(64, 32, of(0, Kind::Write), &All(true, true));
    // Word 3 is written by somebody else; only who meets that word conflicts with it.
    s.access(76, 4, of(1, Kind::Write), &All(true, true));
    let read = of(2, Kind::Read);
    assert_eq!(s.access(64, 12, read, &AllBut(1)), None);
    let c = s.access(64, 32, read, &AllBut(1));
    assert!(matches!(c, Some((76, Conflict::Race { earlier, .. })) if earlier.agent == 1));
    s.access(64, 32, of(3, Kind::Write), &All(true, true));
    assert_eq!(s.access(64, 32, read, &AllBut(1)), None);
}

/// Agent 0 writes, then updates; agent 1 has seen nothing: the plain write is still there for it, though agents' atomics do not
/// conflict with each other.
#[test]
fn atomics_do_not_hide_the_plain_write_below() {
    let mut shadow = Shadow::default();
    let (blind, all) = (All(false, false), All(true, true));
    assert_eq!(shadow.access(64, 8, of(0, Kind::Write), &all), None);
    for agent in [0, 2, 0] {
        let update = of(agent, Kind::Atomic);
        assert_eq!(shadow.access(64, 8, update, &all), None);
    }
    for reader in 3..9 {
        shadow.access(64, 8, of(reader, Kind::Read), &all);
    }
    let found = shadow.access(64, 8, of(1, Kind::Atomic), &blind);
    let Some((
        64,
        Conflict::Race {
            earlier,
            earlier_writes: true,
        },
    )) = found
    else {
        panic!("{found:?}");
    };
    assert_eq!((earlier.agent, earlier.atomic), (0, false));
    // A new plain write takes its place.
    shadow.access(64, 8, of(5, Kind::Write), &all);
    shadow.access(64, 8, of(5, Kind::Atomic), &all);
    let found = shadow.access(64, 8, of(1, Kind::Atomic), &blind);
    let Some((64, Conflict::Race { earlier, .. })) = found else {
        panic!("{found:?}");
    };
    assert_eq!(earlier.agent, 5);
}

//! Shadow memory: for every 4-byte word who wrote it last and who has read it since.
//!
//! A cell keeps one writer and one reader inline; further concurrent readers go to a side table. Bytes within the word
//! are told apart by a 4-bit mask, so that neighbouring 8- and 16-bit values of two warps are not mistaken for one.

use super::{Kind, Proxy};
use std::collections::HashMap;

/// One remembered access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    pub agent: u32,
    pub clock: u32,
    pub pc: u32,
    /// Bytes of the word, one bit each.
    pub bytes: u8,
    pub atomic: bool,
    pub proxy: Proxy,
}

pub const NOBODY: Past = Past {
    agent: u32::MAX,
    clock: 0,
    pc: u32::MAX,
    bytes: 0,
    atomic: false,
    proxy: Proxy::Generic,
};

#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub write: Past,
    pub read: Past,
    /// More readers stand in the side table.
    pub many: bool,
    /// Bytes that hold a value (initialised by any write).
    pub valid: u8,
}

pub const EMPTY: Cell = Cell {
    write: NOBODY,
    read: NOBODY,
    many: false,
    valid: 0,
};

/// A conflict of a new access with a remembered one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Not ordered with this earlier write or read.
    Race { earlier: Past, earlier_writes: bool },
    /// Ordered, but the generic write was not made visible to the async proxy.
    Proxy { earlier: Past },
}

/// The new access.
#[derive(Debug, Clone, Copy)]
pub struct New {
    pub agent: u32,
    pub clock: u32,
    pub pc: u32,
    pub kind: Kind,
    pub proxy: Proxy,
}

/// What orders the new access: `seen(agent, clock)` and `proxied(agent, clock)`.
pub trait Order {
    fn seen(&self, agent: u32, clock: u32) -> bool;
    fn proxied(&self, agent: u32, clock: u32) -> bool;
}

const PAGE: usize = 1024;

/// Shadow of one address space: pages made on first touch.
#[derive(Default)]
pub struct Shadow {
    pages: HashMap<u64, Box<[Cell; PAGE]>>,
    last: Option<(u64, *mut [Cell; PAGE])>,
    readers: HashMap<u64, Vec<Past>>,
}

impl Shadow {
    #[inline(always)]
    fn cell(&mut self, word: u64) -> &mut Cell {
        let page = word / PAGE as u64;
        let p = match self.last {
            Some((n, p)) if n == page => p,
            _ => {
                let p: *mut [Cell; PAGE] = &mut **self
                    .pages
                    .entry(page)
                    .or_insert_with(|| Box::new([EMPTY; PAGE]));
                self.last = Some((page, p));
                p
            }
        };
        // SAFETY: the page is boxed, owned by `pages` and never removed while `last` points to it.
        unsafe { &mut (*p)[(word % PAGE as u64) as usize] }
    }

    /// Marks bytes as initialised without an access (memory copies by the host).
    pub fn initialise(&mut self, address: u64, bytes: u64) {
        let end = address + bytes;
        let mut at = address;
        while at < end {
            let mask = byte_mask(at, end);
            self.cell(at / 4).valid |= mask;
            at = (at / 4 + 1) * 4;
        }
    }

    /// Marks bytes as undefined: an undefined value was stored there.
    pub fn poison(&mut self, address: u64, bytes: u64) {
        let end = address + bytes;
        let mut at = address;
        while at < end {
            let mask = byte_mask(at, end);
            self.cell(at / 4).valid &= !mask;
            at = (at / 4 + 1) * 4;
        }
    }

    /// Bytes of `[address, address + bytes)` that nobody has written: the first such address.
    pub fn first_uninitialised(&mut self, address: u64, bytes: u64) -> Option<u64> {
        let end = address + bytes;
        let mut at = address;
        while at < end {
            let missing = byte_mask(at, end) & !self.cell(at / 4).valid;
            if missing != 0 {
                return Some(at / 4 * 4 + u64::from(missing.trailing_zeros()));
            }
            at = (at / 4 + 1) * 4;
        }
        None
    }

    /// Records an access; the first conflict with what is remembered, with the address it is at.
    pub fn access(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
    ) -> Option<(u64, Conflict)> {
        let end = address + bytes;
        let mut at = address;
        let mut found = None;
        while at < end {
            let mask = byte_mask(at, end);
            if let Some(c) = self.word(at / 4, mask, new, order)
                && found.is_none()
            {
                found = Some((at, c));
            }
            at = (at / 4 + 1) * 4;
        }
        found
    }

    #[inline(always)]
    fn word(&mut self, word: u64, mask: u8, new: New, order: &impl Order) -> Option<Conflict> {
        let cell = self.cell(word);
        let past = Past {
            agent: new.agent,
            clock: new.clock,
            pc: new.pc,
            bytes: mask,
            atomic: new.kind == Kind::Atomic,
            proxy: new.proxy,
        };
        let mut found = None;
        let w = cell.write;
        if w.bytes & mask != 0 && w.agent != new.agent && !(w.atomic && past.atomic) {
            if !order.seen(w.agent, w.clock) {
                found = Some(Conflict::Race {
                    earlier: w,
                    earlier_writes: true,
                });
            } else if new.proxy == Proxy::Async
                && w.proxy == Proxy::Generic
                && !order.proxied(w.agent, w.clock)
            {
                found = Some(Conflict::Proxy { earlier: w });
            }
        }
        if new.kind == Kind::Read {
            let r = cell.read;
            if r.agent == new.agent || r.bytes == 0 || (order.seen(r.agent, r.clock) && !cell.many)
            {
                let bytes = if r.agent == new.agent && r.clock == new.clock {
                    r.bytes | mask
                } else {
                    mask
                };
                // A covering reader replaces the one it is ordered after.
                if r.agent == new.agent || r.bytes & !mask == 0 || r.bytes == 0 {
                    cell.read = Past { bytes, ..past };
                    return found;
                }
            }
            cell.many = true;
            let list = self.readers.entry(word).or_default();
            list.retain(|p| {
                p.agent != new.agent && !(order.seen(p.agent, p.clock) && p.bytes & !mask == 0)
            });
            list.push(past);
            return found;
        }
        // A write or atomic: every reader since must be ordered before it.
        let r = cell.read;
        let mut conflicting =
            (r.bytes & mask != 0 && r.agent != new.agent && !order.seen(r.agent, r.clock))
                .then_some(r);
        let many = cell.many;
        cell.write = if w.agent == new.agent && w.clock == new.clock {
            Past {
                bytes: w.bytes | mask,
                ..past
            }
        } else {
            past
        };
        cell.valid |= mask;
        if mask == 0xf {
            cell.read = NOBODY;
            cell.many = false;
        }
        if many {
            if let Some(list) = self.readers.get(&word) {
                conflicting = conflicting.or_else(|| {
                    list.iter().copied().find(|p| {
                        p.bytes & mask != 0 && p.agent != new.agent && !order.seen(p.agent, p.clock)
                    })
                });
            }
            if mask == 0xf {
                self.readers.remove(&word);
            }
        }
        found.or(conflicting.map(|earlier| Conflict::Race {
            earlier,
            earlier_writes: false,
        }))
    }
}

/// Bytes of the word at `at` that lie in `[at, end)`.
#[inline(always)]
fn byte_mask(at: u64, end: u64) -> u8 {
    let first = at % 4;
    let last = (end - at + first).min(4);
    (((1u32 << last) - 1) & !((1u32 << first) - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    struct All(bool, bool);
    impl Order for All {
        fn seen(&self, _: u32, _: u32) -> bool {
            self.0
        }
        fn proxied(&self, _: u32, _: u32) -> bool {
            self.1
        }
    }
    fn new(agent: u32, kind: Kind, proxy: Proxy) -> New {
        New {
            agent,
            clock: 1,
            pc: agent,
            kind,
            proxy,
        }
    }

    #[test]
    fn masks() {
        assert_eq!(byte_mask(0, 4), 0b1111);
        assert_eq!(byte_mask(1, 3), 0b0110);
        assert_eq!(byte_mask(7, 9), 0b1000);
        assert_eq!(byte_mask(8, 9), 0b0001);
    }

    #[test]
    fn unordered_write_and_read_conflict_ordered_ones_do_not() {
        let mut s = Shadow::default();
        assert_eq!(
            s.access(
                16,
                4,
                new(0, Kind::Write, Proxy::Generic),
                &All(false, false)
            ),
            None
        );
        assert!(matches!(
            s.access(
                16,
                4,
                new(1, Kind::Read, Proxy::Generic),
                &All(false, false)
            ),
            Some((
                16,
                Conflict::Race {
                    earlier_writes: true,
                    ..
                }
            ))
        ));
        let mut s = Shadow::default();
        s.access(16, 4, new(0, Kind::Write, Proxy::Generic), &All(true, true));
        assert_eq!(
            s.access(16, 4, new(1, Kind::Read, Proxy::Generic), &All(true, true)),
            None
        );
        assert!(
            s.access(
                16,
                4,
                new(2, Kind::Write, Proxy::Generic),
                &All(false, true)
            )
            .is_some()
        );
    }

    #[test]
    fn all_of_several_readers_are_remembered() {
        struct SeenBut(u32);
        impl Order for SeenBut {
            fn seen(&self, a: u32, _: u32) -> bool {
                a != self.0
            }
            fn proxied(&self, _: u32, _: u32) -> bool {
                true
            }
        }
        for forgotten in 1..4 {
            let mut s = Shadow::default();
            for reader in 1..4 {
                s.access(
                    0,
                    4,
                    new(reader, Kind::Read, Proxy::Generic),
                    &All(false, false),
                );
            }
            let c = s.access(
                0,
                4,
                new(9, Kind::Write, Proxy::Generic),
                &SeenBut(forgotten),
            );
            assert!(
                matches!(c, Some((0, Conflict::Race { earlier, .. })) if earlier.agent == forgotten),
                "{forgotten}: {c:?}"
            );
        }
    }

    #[test]
    fn different_bytes_of_a_word_do_not_conflict() {
        let mut s = Shadow::default();
        s.access(
            0,
            2,
            new(0, Kind::Write, Proxy::Generic),
            &All(false, false),
        );
        assert_eq!(
            s.access(
                2,
                2,
                new(1, Kind::Write, Proxy::Generic),
                &All(false, false)
            ),
            None
        );
    }

    #[test]
    fn async_reads_of_unfenced_generic_writes_are_found() {
        let mut s = Shadow::default();
        s.access(0, 16, new(0, Kind::Write, Proxy::Generic), &All(true, true));
        assert!(matches!(
            s.access(0, 16, new(1, Kind::Read, Proxy::Async), &All(true, false)),
            Some((0, Conflict::Proxy { .. }))
        ));
        assert_eq!(
            s.access(0, 16, new(2, Kind::Read, Proxy::Generic), &All(true, false)),
            None
        );
    }

    #[test]
    fn atomics_do_not_race_with_each_other() {
        let mut s = Shadow::default();
        s.access(
            0,
            4,
            new(0, Kind::Atomic, Proxy::Generic),
            &All(false, false),
        );
        assert_eq!(
            s.access(
                0,
                4,
                new(1, Kind::Atomic, Proxy::Generic),
                &All(false, false)
            ),
            None
        );
        assert!(
            s.access(0, 4, new(2, Kind::Read, Proxy::Generic), &All(false, false))
                .is_some()
        );
    }

    #[test]
    fn uninitialised_bytes_are_found_exactly() {
        let mut s = Shadow::default();
        s.initialise(3, 6);
        assert_eq!(s.first_uninitialised(3, 6), None);
        assert_eq!(s.first_uninitialised(2, 4), Some(2));
        assert_eq!(s.first_uninitialised(4, 8), Some(9));
    }
}

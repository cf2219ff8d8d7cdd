//! Shadow memory: for every 4-byte word who wrote it last and who has read it since.
//!
//! Bytes within a word are told apart by a 4-bit mask, so that neighbouring 8- and 16-bit values of two warps are not
//! mistaken for one. Most accesses cover whole, aligned 32-byte blocks (vector accesses of a warp, tensor copies, rows
//! of matrix operands), so the eight words of a block share one cell until an access covers only a part of it; a
//! write of the whole block joins them again.
//!
//! A cell remembers the last [`READERS`] readers since the last write. With more readers than that the oldest is forgotten:
//! a race with it may be missed, none is invented.

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

const NOBODY: Past = Past {
    agent: u32::MAX,
    clock: 0,
    pc: u32::MAX,
    bytes: 0,
    atomic: false,
    proxy: Proxy::Generic,
};

/// Readers that a cell remembers.
pub const READERS: usize = 3;

#[derive(Debug, Clone, Copy)]
struct Cell {
    write: Past,
    reads: [Past; READERS],
    readers: u8,
    /// Bytes that hold a value (initialised by any write).
    valid: u8,
}

const EMPTY: Cell = Cell {
    write: NOBODY,
    reads: [NOBODY; READERS],
    readers: 0,
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

impl Cell {
    /// Records an access to the bytes of `mask`; the conflict with what is remembered, if any.
    #[inline(always)]
    fn access(&mut self, mask: u8, new: New, order: &impl Order) -> Option<Conflict> {
        let past = Past {
            agent: new.agent,
            clock: new.clock,
            pc: new.pc,
            bytes: mask,
            atomic: new.kind == Kind::Atomic,
            proxy: new.proxy,
        };
        let w = self.write;
        let mut found = None;
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
        let readers = usize::from(self.readers);
        if new.kind == Kind::Read {
            // The same reader again, or one that the new reader follows and covers, gives up its place.
            let place = self.reads[..readers].iter().position(|p| {
                p.agent == new.agent || p.bytes & !mask == 0 && order.seen(p.agent, p.clock)
            });
            match place {
                Some(i) => {
                    let p = &mut self.reads[i];
                    let bytes = if p.agent == new.agent && p.clock == new.clock {
                        p.bytes | mask
                    } else {
                        mask
                    };
                    *p = Past { bytes, ..past };
                }
                None if readers < READERS => {
                    self.reads[readers] = past;
                    self.readers += 1;
                }
                None => {
                    self.reads.rotate_left(1);
                    self.reads[READERS - 1] = past;
                }
            }
            return found;
        }
        // A write or atomic: every reader since must be ordered before it.
        let unordered = self.reads[..readers]
            .iter()
            .copied()
            .find(|p| p.bytes & mask != 0 && p.agent != new.agent && !order.seen(p.agent, p.clock));
        let bytes = if w.agent == new.agent && w.clock == new.clock {
            w.bytes | mask
        } else {
            mask
        };
        self.write = Past { bytes, ..past };
        self.valid |= mask;
        if mask == 0xf {
            self.readers = 0;
        }
        found.or(unordered.map(|earlier| Conflict::Race {
            earlier,
            earlier_writes: false,
        }))
    }
}

const WORDS: usize = 8;
const BLOCK: u64 = 4 * WORDS as u64;

/// Eight words: one cell for all, or one each.
#[derive(Debug, Clone)]
struct Block {
    all: Cell,
    each: Option<Box<[Cell; WORDS]>>,
}

impl Block {
    fn word(&mut self, i: usize) -> &mut Cell {
        let all = self.all;
        &mut self.each.get_or_insert_with(|| Box::new([all; WORDS]))[i]
    }
}

/// Blocks of a page (4 KiB).
const PAGE: usize = 128;
type Page = [Block; PAGE];

/// Shadow of one address space: pages made on first touch.
#[derive(Default)]
pub struct Shadow {
    pages: HashMap<u64, Box<Page>>,
    last: Option<(u64, *mut Page)>,
}

impl Shadow {
    #[inline(always)]
    fn block(&mut self, block: u64) -> &mut Block {
        let page = block / PAGE as u64;
        let p = match self.last {
            Some((n, p)) if n == page => p,
            _ => {
                let p: *mut Page = &mut **self.pages.entry(page).or_insert_with(|| {
                    let empty = Block {
                        all: EMPTY,
                        each: None,
                    };
                    Box::new(std::array::from_fn(|_| empty.clone()))
                });
                self.last = Some((page, p));
                p
            }
        };
        // SAFETY: the page is boxed, owned by `pages` and never removed while `last` points to it.
        unsafe { &mut (&mut *p)[(block % PAGE as u64) as usize] }
    }

    /// Calls `f` with every cell that stands for bytes of the range, the mask of those bytes and the address of the
    /// first; whole blocks come as one.
    #[inline(always)]
    fn cells(&mut self, address: u64, bytes: u64, mut f: impl FnMut(&mut Cell, u8, u64)) {
        let end = address + bytes;
        let mut at = address;
        while at < end {
            let block = self.block(at / BLOCK);
            if at.is_multiple_of(BLOCK) && end - at >= BLOCK {
                match &mut block.each {
                    None => f(&mut block.all, 0xf, at),
                    Some(words) => {
                        for (i, w) in words.iter_mut().enumerate() {
                            f(w, 0xf, at + 4 * i as u64);
                        }
                    }
                }
                at += BLOCK;
            } else {
                let mask = byte_mask(at, end);
                f(block.word((at / 4) as usize % WORDS), mask, at);
                at = (at / 4 + 1) * 4;
            }
        }
    }

    /// Marks bytes as initialised without an access (memory copies by the host).
    pub fn initialise(&mut self, address: u64, bytes: u64) {
        self.cells(address, bytes, |c, mask, _| c.valid |= mask);
    }

    /// Marks bytes as undefined: an undefined value was stored there.
    pub fn poison(&mut self, address: u64, bytes: u64) {
        self.cells(address, bytes, |c, mask, _| c.valid &= !mask);
    }

    /// Bytes of `[address, address + bytes)` that nobody has written: the first such address.
    pub fn first_uninitialised(&mut self, address: u64, bytes: u64) -> Option<u64> {
        let mut found = None;
        self.cells(address, bytes, |c, mask, at| {
            let missing = mask & !c.valid;
            if missing != 0 && found.is_none() {
                found = Some(at / 4 * 4 + u64::from(missing.trailing_zeros()));
            }
        });
        found
    }

    /// Records an access; the first conflict with what is remembered, with the address it is at.
    pub fn access(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
    ) -> Option<(u64, Conflict)> {
        let mut found = None;
        self.cells(address, bytes, |c, mask, at| {
            if let Some(conflict) = c.access(mask, new, order)
                && found.is_none()
            {
                found = Some((at, conflict));
            }
        });
        if new.kind != Kind::Read {
            self.join_blocks(address, bytes);
        }
        found
    }

    /// Blocks that one write has covered are one again.
    fn join_blocks(&mut self, address: u64, bytes: u64) {
        let end = address + bytes;
        let mut at = address.next_multiple_of(BLOCK);
        while at < end && end - at >= BLOCK {
            let block = self.block(at / BLOCK);
            if let Some(words) = block.each.take() {
                block.all = words[0];
            }
            at += BLOCK;
        }
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

    #[test]
    fn a_part_of_a_block_is_told_apart_and_a_whole_write_joins_it_again() {
        let mut s = Shadow::default();
        s.access(
            64,
            32,
            new(0, Kind::Write, Proxy::Generic),
            &All(true, true),
        );
        // Word 3 is written by somebody else; only who meets that word conflicts with it.
        s.access(76, 4, new(1, Kind::Write, Proxy::Generic), &All(true, true));
        struct AllBut(u32);
        impl Order for AllBut {
            fn seen(&self, a: u32, _: u32) -> bool {
                a != self.0
            }
            fn proxied(&self, _: u32, _: u32) -> bool {
                true
            }
        }
        let read = new(2, Kind::Read, Proxy::Generic);
        assert_eq!(s.access(64, 12, read, &AllBut(1)), None);
        let c = s.access(64, 32, read, &AllBut(1));
        assert!(matches!(c, Some((76, Conflict::Race { earlier, .. })) if earlier.agent == 1));
        s.access(
            64,
            32,
            new(3, Kind::Write, Proxy::Generic),
            &All(true, true),
        );
        assert!(s.block(2).each.is_none());
        assert_eq!(s.access(64, 32, read, &AllBut(1)), None);
    }
}

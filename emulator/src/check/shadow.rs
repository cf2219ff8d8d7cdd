//! Shadow memory: for every 4-byte word who wrote it last and who has read it since.
//!
//! Bytes within a word are told apart by a 4-bit mask, so that neighbouring 8- and 16-bit values of two warps are not
//! mistaken for one. Words that were always accessed together share a cell ([`granules`](super::granules)).
//!
//! A cell remembers the last [`READERS`] readers since the last write. With more readers than that the oldest is forgotten:
//! a race with it may be missed, none is invented.

use super::granules::{Page, Part};
use super::{Kind, Proxy};
use crate::hash::FastMap;
use std::sync::{Mutex, PoisonError};

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

/// The same in 12 bytes, so that a cell is a cache line. `tag`: bytes in bits 0-3, strong (an atomic, or a strong read), async proxy, a
/// plain write below atomics, a reader that follows a strong read of the last write, a scope that ends at the cluster, pc from
/// bit 9 on.
#[derive(Debug, Clone, Copy)]
struct Packed {
    agent: u32,
    clock: u32,
    tag: u32,
}

const BYTES: u32 = 0xf;
const ATOMIC: u32 = 1 << 4;
const ASYNC: u32 = 1 << 5;
const BELOW: u32 = 1 << 6;
const OBSERVED: u32 = 1 << 7;
const INSIDE: u32 = 1 << 8;
const PC_SHIFT: u32 = 9;
const NO_PC: u32 = u32::MAX >> PC_SHIFT;

const NOBODY: Packed = Packed {
    agent: u32::MAX,
    clock: 0,
    tag: NO_PC << PC_SHIFT,
};

impl Packed {
    fn unpack(self) -> Past {
        let pc = self.tag >> PC_SHIFT;
        Past {
            agent: self.agent,
            clock: self.clock,
            pc: if pc == NO_PC { u32::MAX } else { pc },
            bytes: (self.tag & BYTES) as u8,
            atomic: self.tag & ATOMIC != 0,
            proxy: if self.tag & ASYNC != 0 {
                Proxy::Async
            } else {
                Proxy::Generic
            },
        }
    }
}

/// Readers that a cell remembers.
pub const READERS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Cell {
    write: Packed,
    /// Readers since the last write. The first place may be the last plain write's instead, when atomics came after it: they conflict with
    /// it and not with each other, whichever of them came last. (Atomics observe each other: what follows the last one follows all.)
    reads: [Packed; READERS],
    readers: u8,
    /// Bytes that hold a value (initialised by any write).
    valid: u8,
    /// A strong reader has lost its place to another.
    forgotten: bool,
}

const EMPTY: Cell = Cell {
    write: NOBODY,
    reads: [NOBODY; READERS],
    readers: 0,
    valid: 0,
    forgotten: false,
};

/// A conflict of a new access with a remembered one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Not ordered with this earlier write or read.
    Race { earlier: Past, earlier_writes: bool },
    /// Ordered, but the generic write was not made visible to the async proxy.
    Proxy { earlier: Past },
}

/// A conflict, and the bytes for which it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    pub address: u64,
    pub bytes: u64,
    pub conflict: Conflict,
}

/// The new access.
#[derive(Debug, Clone, Copy)]
pub struct New {
    pub agent: u32,
    pub clock: u32,
    pub pc: u32,
    pub kind: Kind,
    pub proxy: Proxy,
    /// Of a scope that ends at its cluster.
    pub inside: bool,
}

impl New {
    fn packed(self) -> Packed {
        let mut tag = self.pc << PC_SHIFT;
        if self.kind.is_strong() {
            tag |= ATOMIC;
        }
        if self.kind == Kind::StrongRead {
            tag |= OBSERVED;
        }
        if self.inside {
            tag |= INSIDE;
        }
        if self.proxy == Proxy::Async {
            tag |= ASYNC;
        }
        Packed {
            agent: self.agent,
            clock: self.clock,
            tag,
        }
    }
}

/// What orders the new access: `seen(agent, clock)` and `proxied(agent, clock)`.
pub trait Order {
    fn seen(&self, agent: u32, clock: u32) -> bool;
    fn proxied(&self, agent: u32, clock: u32) -> bool;
    /// Is the agent of another cluster, so that even two accesses through the async proxy need a proxy fence between them?
    fn apart(&self, agent: u32) -> bool;
}

impl Packed {
    /// Are both strong, and does the scope of each take in the other?
    #[inline(always)]
    fn morally_strong(self, new: Packed, order: &impl Order) -> bool {
        self.tag & new.tag & ATOMIC != 0
            && ((self.tag | new.tag) & INSIDE == 0 || !order.apart(self.agent))
    }

    /// Overlaps, by another agent, not both strong and not ordered.
    #[inline(always)]
    fn races(self, mask: u32, new: Packed, order: &impl Order) -> bool {
        self.tag & mask != 0
            && self.agent != new.agent
            && !self.morally_strong(new, order)
            && !order.seen(self.agent, self.clock)
    }
}

impl Cell {
    /// Does the access conflict with the last write?
    #[inline(always)]
    fn against_write(&self, mask: u32, new: Packed, order: &impl Order) -> Option<Conflict> {
        let w = self.write;
        if w.agent == new.agent || w.tag & mask == 0 || w.morally_strong(new, order) {
            return None;
        }
        if !order.seen(w.agent, w.clock) {
            if self.observed(mask, new, order) {
                return None;
            }
            return Some(Conflict::Race {
                earlier: w.unpack(),
                earlier_writes: true,
            });
        }
        let crosses = new.tag & ASYNC != 0 && (w.tag & ASYNC == 0 || order.apart(w.agent));
        (crosses && !order.proxied(w.agent, w.clock)).then(|| Conflict::Proxy {
            earlier: w.unpack(),
        })
    }

    /// Records a read of the bytes of `mask`; its conflict with what is remembered, if any.
    #[inline(always)]
    fn read(&mut self, mask: u32, new: Packed, order: &impl Order) -> Option<Conflict> {
        let mut found = self.against_write(mask, new, order);
        let readers = usize::from(self.readers);
        let below = self.reads[0];
        if readers > 0 && below.tag & BELOW != 0 && new.tag & ATOMIC == 0 && found.is_none() {
            found = below.races(mask, new, order).then(|| Conflict::Race {
                earlier: below.unpack(),
                earlier_writes: true,
            });
        }
        // The same reader again, or one that the new reader follows and covers, gives up its place; a weak one not to a strong one.
        let place = self.reads[..readers].iter().position(|p| {
            p.tag & BELOW == 0
                && new.tag & !p.tag & ATOMIC == 0
                && (p.agent == new.agent
                    || p.tag & BYTES & !mask == 0 && order.seen(p.agent, p.clock))
        });
        let entry = Packed {
            tag: new.tag | mask,
            ..new
        };
        match place {
            Some(i) => {
                let p = &mut self.reads[i];
                // Who follows a reader follows what that one has observed.
                let mut tag = entry.tag | p.tag & OBSERVED;
                if (p.agent, p.clock) == (new.agent, new.clock) {
                    tag |= p.tag & BYTES;
                }
                *p = Packed { tag, ..entry };
            }
            None if readers < READERS => {
                self.reads[readers] = entry;
                self.readers += 1;
            }
            None => {
                let first = usize::from(self.reads[0].tag & BELOW != 0);
                self.forgotten |= self.reads[first].tag & OBSERVED != 0;
                self.reads[first..].rotate_left(1);
                self.reads[READERS - 1] = entry;
            }
        }
        found
    }

    /// The same for a write or atomic: every reader since the last write must be ordered before it.
    #[inline(always)]
    fn write(&mut self, mask: u32, new: Packed, order: &impl Order) -> Option<Conflict> {
        let found = self.against_write(mask, new, order);
        let unordered = self.reads[..usize::from(self.readers)]
            .iter()
            .find(|p| p.races(mask, new, order));
        let found = found.or(unordered.map(|p| Conflict::Race {
            earlier: p.unpack(),
            earlier_writes: p.tag & BELOW != 0,
        }));
        let w = self.write;
        let below = self.below(new);
        let mut tag = new.tag | mask;
        if (w.agent, w.clock) == (new.agent, new.clock) {
            tag |= w.tag & BYTES;
        }
        self.write = Packed { tag, ..new };
        self.valid |= mask as u8;
        if mask == BYTES {
            self.readers = 0;
            self.forgotten = false;
        }
        if let Some(p) = below {
            self.set_below(p);
        }
        found
    }

    /// The plain write that has to be remembered when `new` takes the last write's place: none unless `new` is an atomic.
    #[inline(always)]
    fn below(&self, new: Packed) -> Option<Packed> {
        if new.tag & ATOMIC == 0 {
            return None;
        }
        let w = self.write;
        if w.tag & BYTES != 0 && w.tag & ATOMIC == 0 {
            return Some(Packed {
                tag: w.tag | BELOW,
                ..w
            });
        }
        (self.readers > 0 && self.reads[0].tag & BELOW != 0).then_some(self.reads[0])
    }

    #[inline(always)]
    fn set_below(&mut self, p: Packed) {
        if self.readers == 0 || self.reads[0].tag & BELOW == 0 {
            self.reads.rotate_right(1);
            self.readers = (self.readers + 1).min(READERS as u8);
        }
        self.reads[0] = p;
    }

    /// Has the new access, or something that it follows, read the last write's value by a strong read? Then it follows that write
    /// (ISA, "Causality Order"), if not what the writer did before.
    #[cold]
    fn observed(&self, mask: u32, new: Packed, order: &impl Order) -> bool {
        let reads = &self.reads[..usize::from(self.readers)];
        let after = |p: &Packed| p.agent == new.agent || order.seen(p.agent, p.clock);
        self.write.tag & ATOMIC != 0
            && (self.forgotten
                || reads
                    .iter()
                    .any(|p| p.tag & OBSERVED != 0 && p.tag & mask == mask && after(p)))
    }
}

/// Bytes of a word, by its mask, that `bytes` bytes at `at` cover; all of them for larger granules.
#[inline(always)]
fn byte_mask(at: u64, bytes: u64) -> u32 {
    if bytes >= 4 {
        return BYTES;
    }
    ((1 << bytes) - 1) << (at % 4)
}

/// Pages found last, by the low bits of their numbers: all of a CTA's shared memory, and the streams of a kernel.
const RECENT: usize = 32;

/// Shadow of one address space: pages made on first touch.
pub struct Shadow {
    pages: FastMap<u64, Box<Page<Cell>>>,
    recent: [(u64, *mut Page<Cell>); RECENT],
}

impl Default for Shadow {
    fn default() -> Self {
        Shadow {
            pages: FastMap::default(),
            recent: [(u64::MAX, std::ptr::null_mut()); RECENT],
        }
    }
}

/// Pages of clusters that are done, divided as they were: most are divided in the same way again soon. At most [`SPARE`] of them, which
/// may be 150 KB each.
#[allow(clippy::vec_box)] // the boxes move between the list and the shadows
static PAGES: Mutex<Vec<Box<Page<Cell>>>> = Mutex::new(Vec::new());
const SPARE: usize = 256;

fn empty_page() -> Box<Page<Cell>> {
    let spare = PAGES.lock().unwrap_or_else(PoisonError::into_inner).pop();
    match spare {
        Some(mut page) => {
            page.unite(EMPTY);
            page
        }
        None => Box::new(Page::new(EMPTY)),
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        let mut spare = PAGES.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SPARE.saturating_sub(spare.len());
        spare.extend(self.pages.drain().map(|(_, page)| page).take(room));
    }
}

impl Shadow {
    #[inline(always)]
    fn page(&mut self, number: u64) -> &mut Page<Cell> {
        let slot = &mut self.recent[number as usize % RECENT];
        if slot.0 != number {
            let page = self.pages.entry(number).or_insert_with(empty_page);
            *slot = (number, &mut **page);
        }
        // SAFETY: the page is boxed, owned by `pages` and never removed while `recent` points to it.
        unsafe { &mut *slot.1 }
    }

    /// Calls `f(cell, address, bytes)` for the cells of the range. `UNITE`: cells that `f` is given for a whole granule are alike
    /// afterwards.
    #[inline(always)]
    fn cells<const UNITE: bool>(
        &mut self,
        address: u64,
        bytes: u64,
        mut f: impl FnMut(&mut Cell, u64, u64),
    ) {
        let end = address + bytes;
        let mut at = address;
        while at < end {
            let number = at / Page::<Cell>::BYTES;
            let start = number * Page::<Cell>::BYTES;
            let stop = end.min(start + Page::<Cell>::BYTES);
            self.page(number).some::<UNITE>(start, at, stop, &mut f);
            at = stop;
        }
    }

    /// Marks bytes as undefined: an undefined value was stored there.
    pub fn poison(&mut self, address: u64, bytes: u64) {
        self.cells::<false>(address, bytes, |c, at, n| {
            c.valid &= !byte_mask(at, n) as u8;
        });
    }

    /// Bytes of at most 32 from `address` on that nobody has written.
    pub fn undefined_bytes(&mut self, address: u64, bytes: u64) -> u32 {
        let mut found = 0;
        self.cells::<false>(address, bytes, |c, at, n| {
            let missing = byte_mask(at, n) & !u32::from(c.valid);
            for byte in 0..n {
                let bit = if n >= 4 { byte % 4 } else { (at + byte) % 4 };
                found |= (missing >> bit & 1) << (at + byte - address);
            }
        });
        found
    }

    /// Bytes of `[address, address + bytes)` that nobody has written: the first such address.
    pub fn first_uninitialised(&mut self, address: u64, bytes: u64) -> Option<u64> {
        let mut found = None;
        self.cells::<false>(address, bytes, |c, at, n| c.undefined(&mut found, at, n));
        found
    }

    /// Records a read: its first conflict with what is remembered is added to `hits`. The first byte that nobody has written.
    pub fn read(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
        hits: &mut Vec<Hit>,
    ) -> Option<u64> {
        let packed = new.packed();
        let before = hits.len();
        let mut undefined = None;
        self.cells::<false>(address, bytes, |c, address, bytes| {
            if let Some(conflict) = c.read(byte_mask(address, bytes), packed, order)
                && hits.len() == before
            {
                hits.push(Hit {
                    address,
                    bytes,
                    conflict,
                });
            }
            c.undefined(&mut undefined, address, bytes);
        });
        undefined
    }

    /// The last write in the range that is an atomic of another agent and not ordered before the new access.
    pub fn unordered_atomic(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
    ) -> Option<(u64, Past)> {
        let packed = Packed {
            tag: 0,
            ..new.packed()
        };
        let mut found = None;
        self.cells::<false>(address, bytes, |c, address, bytes| {
            let w = c.write;
            if w.tag & ATOMIC != 0 && w.races(byte_mask(address, bytes), packed, order) {
                found = found.or(Some((address, w.unpack())));
            }
        });
        found
    }

    /// Records a write or atomic; its conflicts with what is remembered are added to `hits`.
    pub fn write(
        &mut self,
        address: u64,
        bytes: u64,
        new: New,
        order: &impl Order,
        hits: &mut Vec<Hit>,
    ) {
        let packed = new.packed();
        let record = |c: &mut Cell, address, bytes| {
            if let Some(conflict) = c.write(byte_mask(address, bytes), packed, order) {
                hits.push(Hit {
                    address,
                    bytes,
                    conflict,
                });
            }
        };
        // What lies below an atomic may be another write in every part.
        if new.kind.is_strong() {
            self.cells::<false>(address, bytes, record);
        } else {
            self.cells::<true>(address, bytes, record);
        }
    }
}

impl Cell {
    #[inline(always)]
    fn undefined(&self, found: &mut Option<u64>, at: u64, bytes: u64) {
        let missing = byte_mask(at, bytes) & !u32::from(self.valid);
        if missing != 0 && found.is_none() {
            *found = Some(at / 4 * 4 + u64::from(missing.trailing_zeros()));
        }
    }
}

#[cfg(test)]
mod tests;

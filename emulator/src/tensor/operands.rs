//! What the checker is told about the shared memory a wgmma reads.
//!
//! The operation reads through the async proxy, as an agent per warp (forked when that warp issued it): each warp reads
//! its 16 rows of A, and *one* of them reads B, in turn from operation to operation. All four read B on the device, but
//! four unordered readers of every word are expensive to remember; and since a stage of a pipeline is read by several
//! operations, a warp that has not waited for it, or has not let go of it, is still found at a part of its bytes.

use super::descriptor::Tile;
use super::panel::SourceA;
use super::queue::Entry;
use super::sparse;
use super::wgmma::Mma;
use crate::check::{At, Checker};
use crate::hash::FastMap;
use crate::program::Program;
use std::sync::Arc;

/// Granules of 16 bytes: descriptor addresses have 18 bits.
const GRANULES: usize = (1 << 18) / 16;

/// Calls `f` with the contiguous ranges (address, bytes) that the pieces of rows `rows` make up.
fn ranges(tile: &Tile, rows: std::ops::Range<u32>, mut f: impl FnMut(u32, u32)) {
    let mut set = [0u64; GRANULES / 64];
    let (mut low, mut high) = (GRANULES, 0);
    tile.pieces(rows, |a| {
        let g = (a / 16) as usize;
        set[g / 64] |= 1 << (g % 64);
        low = low.min(g);
        high = high.max(g);
    });
    let mut run = 0;
    for g in low..=high + 1 {
        if g < GRANULES && set[g / 64] >> (g % 64) & 1 == 1 {
            run += 1;
        } else if run > 0 {
            f((g - run) as u32 * 16, run as u32 * 16);
            run = 0;
        }
    }
}

/// Where an operand lies in shared memory: starts and ends.
type Ranges = Arc<[(u32, u32)]>;

/// The ranges of the operands met so far: a pipeline has a few per stage and step along K.
#[derive(Default)]
pub struct Operands {
    known: FastMap<(Tile, u32, u32), Ranges>,
}

impl Operands {
    /// Operands remembered at the most.
    const MOST: usize = 1024;

    fn ranges(&mut self, tile: &Tile, rows: std::ops::Range<u32>) -> Arc<[(u32, u32)]> {
        let key = (*tile, rows.start, rows.end);
        if let Some(found) = self.known.get(&key) {
            return found.clone();
        }
        if self.known.len() >= Self::MOST {
            self.known.clear();
        }
        let mut all = Vec::new();
        ranges(tile, rows, |address, bytes| all.push((address, bytes)));
        self.known.entry(key).or_insert(all.into()).clone()
    }
}

/// Reports the reads of operation `index` of its warpgroup.
pub(super) fn check(check: &mut Checker, entry: &Entry, index: u64, program: &Program, cta: u32) {
    let mma: &Mma = program.ext[entry.ext as usize]
        .downcast_ref()
        .expect("extension record of wgmma");
    let mut read = |warp: usize, tile: &Tile, rows: std::ops::Range<u32>| {
        let at = At {
            agent: entry.agents[warp],
            pc: entry.pc,
        };
        let ranges = check.operands.ranges(tile, rows);
        check.shared_reads_async(at, cta, &ranges);
        for &(address, bytes) in ranges.iter() {
            check.expect_layout(at, cta, address, bytes, tile.swizzle);
        }
    };
    if let SourceA::Descriptor(tile) = &entry.a {
        for w in 0..4 {
            read(w as usize, tile, 16 * w..16 * w + 16);
        }
    }
    // Every fourth operation would meet the same part of every stage, hence the shift.
    let reader = (index + index / 4) % 4;
    match (&entry.metadata, mma.sparse) {
        (Some(metadata), Some(selector)) => {
            let at = At {
                agent: entry.agents[reader as usize],
                pc: entry.pc,
            };
            let places = sparse::named(mma.a, mma.depth, selector, metadata);
            read_places(check, at, cta, mma, &entry.b, places);
        }
        _ => read(reader as usize, &entry.b, 0..mma.n as u32),
    }
}

/// B beside a compressed A: all of it is read, and what stands at the places along K that the metadata name has to be defined.
fn read_places(check: &mut Checker, at: At, cta: u32, mma: &Mma, b: &Tile, places: u64) {
    let mut undefined = false;
    for &(address, bytes) in check.operands.ranges(b, 0..mma.n as u32).iter() {
        undefined |= check.shared_read_async(at, cta, address, bytes);
        check.expect_layout(at, cta, address, bytes, b.swizzle);
    }
    if !undefined {
        return;
    }
    let bytes = mma.b.bits() / 8;
    for k in (0..mma.depth as u32).filter(|k| places >> k & 1 == 1) {
        for column in 0..mma.n as u32 {
            let address = if b.mn_major {
                b.mn_piece(column / 8, k) + column % 8 * bytes
            } else {
                b.k_piece(column, k * bytes / 16) + k * bytes % 16
            };
            check.must_be_defined(at, cta, address, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_maximal_and_complete() {
        // 32 of 128 bytes of every row: one range per row, but those of rows 7 and 8, 15 and 16, … touch.
        let d = |start: u64, stride: u64, mode: u64| {
            start >> 4 | 8 << 16 | (stride >> 4) << 32 | mode << 62
        };
        let tile = Tile::decode(d(0x400, 1024, 1), false);
        let mut all = Vec::new();
        ranges(&tile, 0..64, |a, b| all.push((a, b)));
        assert_eq!(all.len(), 57);
        assert!(all.iter().all(|r| r.1 == 32 || r.1 == 64));
        assert_eq!(all.iter().map(|r| r.1).sum::<u32>(), 64 * 32);
        // 32-byte swizzle: dense.
        let tile = Tile::decode(d(0x400, 256, 3), false);
        all.clear();
        ranges(&tile, 8..64, |a, b| all.push((a, b)));
        assert_eq!(all, [(0x500, 56 * 32)]);
        // MN-major, 64 elements of 16 k: dense.
        let tile = Tile::decode(d(0x400, 1024, 1), true);
        all.clear();
        ranges(&tile, 0..64, |a, b| all.push((a, b)));
        assert_eq!(all, [(0x400, 2048)]);
    }
}

//! What the checker is told about the shared memory a wgmma reads.
//!
//! The operation reads through the async proxy, as an agent per warp (forked when that warp issued it): each warp reads
//! its 16 rows of A and all of B. So an operand that one of the warps has not waited for is found too.

use super::descriptor::Tile;
use super::panel::SourceA;
use super::queue::Entry;
use super::wgmma::Mma;
use crate::check::{At, Checker, Kind, Proxy};
use crate::program::Program;

/// Contiguous ranges (address, bytes) of the pieces of rows `rows`.
fn ranges(tile: &Tile, rows: std::ops::Range<u32>) -> Vec<(u32, u32)> {
    let mut pieces = Vec::with_capacity(2 * rows.len());
    tile.pieces(rows, |a| pieces.push(a));
    pieces.sort_unstable();
    pieces.dedup();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for a in pieces {
        match out.last_mut() {
            Some((start, bytes)) if *start + *bytes == a => *bytes += 16,
            _ => out.push((a, 16)),
        }
    }
    out
}

pub(super) fn check(check: &mut Checker, entry: &Entry, program: &Program, cta: u32) {
    let mma: &Mma = program.ext[entry.ext as usize]
        .downcast_ref()
        .expect("extension record of wgmma");
    let b = ranges(&entry.b, 0..mma.n as u32);
    for (w, agent) in entry.agents.iter().enumerate() {
        let at = At {
            agent: *agent,
            pc: entry.pc,
        };
        let mut read = |list: &[(u32, u32)], swizzle: u8| {
            for &(address, bytes) in list {
                check.shared_range(at, cta, address, bytes, Kind::Read, Proxy::Async);
                check.expect_layout(at, cta, address, bytes, swizzle);
            }
        };
        if let SourceA::Descriptor(tile) = &entry.a {
            let first = 16 * w as u32;
            read(&ranges(tile, first..first + 16), tile.swizzle);
        }
        read(&b, entry.b.swizzle);
    }
}

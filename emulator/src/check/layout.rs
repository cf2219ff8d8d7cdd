//! Layout tags: with which swizzle the bytes of shared memory were written.
//!
//! A tensor copy tags what it writes; a generic store makes the tag unknown (hand-written swizzles cannot be told
//! apart from plain layouts by looking at addresses). An operand of wgmma whose descriptor names another swizzle than
//! the tag is a finding. Unknown tags never are.

use super::Checker;
use crate::exec::SHARED_BASE;

/// Written in some way that is not known, or never.
pub const UNKNOWN: u8 = 0xff;
const GRANULE: u32 = 16;

pub fn name(swizzle: u8) -> &'static str {
    match swizzle {
        0 => "no swizzle",
        1 => "the 32-byte swizzle",
        2 => "the 64-byte swizzle",
        3 => "the 128-byte swizzle",
        _ => "an unknown swizzle",
    }
}

impl Checker {
    pub(super) fn set_layout(&mut self, cta: u32, address: u32, bytes: u32, swizzle: u8) {
        let tags = &mut self.layout[cta as usize];
        let from = (address.saturating_sub(SHARED_BASE) / GRANULE) as usize;
        let to = ((address + bytes).saturating_sub(SHARED_BASE)).div_ceil(GRANULE) as usize;
        if tags.len() < to {
            if swizzle == UNKNOWN {
                let end = tags.len().min(to);
                if from < end {
                    tags[from..end].fill(UNKNOWN);
                }
                return;
            }
            tags.resize(to, UNKNOWN);
        }
        tags[from..to].fill(swizzle);
    }

    /// The first granule whose known tag is another one: its address and tag.
    pub(super) fn other_layout(
        &self,
        cta: u32,
        address: u32,
        bytes: u32,
        swizzle: u8,
    ) -> Option<(u32, u8)> {
        let tags = &self.layout[cta as usize];
        let from = (address.saturating_sub(SHARED_BASE) / GRANULE) as usize;
        let to = (((address + bytes).saturating_sub(SHARED_BASE)).div_ceil(GRANULE) as usize)
            .min(tags.len());
        (from..to)
            .find(|&i| tags[i] != UNKNOWN && tags[i] != swizzle)
            .map(|i| (i as u32 * GRANULE + SHARED_BASE, tags[i]))
    }
}

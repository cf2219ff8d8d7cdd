//! The shared-memory matrix descriptor of wgmma (PTX ISA, "Matrix Descriptor Format") and where it puts every element.
//!
//! | bits | field |
//! |---|---|
//! | 0-13 | start address / 16 |
//! | 16-29 | leading dimension byte offset / 16 (LBO) |
//! | 32-45 | stride dimension byte offset / 16 (SBO) |
//! | 49-51 | base offset |
//! | 62-63 | swizzle: 0 none, 1 128 B, 2 64 B, 3 32 B (the reverse of a tensor map's code) |
//!
//! An operand of one instruction is 32 bytes deep along K (B of a sparse instruction 64). It is made of 16-byte *pieces*; which element a
//! piece starts with and where it lies depends on the majorness:
//!
//! * **K-major**: a piece is 16 bytes of one row (an index along M or N), piece 0 or 1 along K.
//!   Without swizzle 8 rows of one piece are contiguous (a core matrix), LBO leads to the other piece along K, SBO to
//!   the next 8 rows. With a swizzle of W bytes the row pitch is W, the pieces of a row are adjacent, SBO leads to the
//!   next 8 rows, and LBO is not used.
//! * **MN-major** (16-bit types): a piece is 8 elements along M or N of one k. Without swizzle 8 k are contiguous, SBO
//!   leads to the next piece along MN and LBO to the next 8 k. With a swizzle of W bytes the row of one k is W bytes
//!   long, 8 k are an atom, LBO leads to the next W bytes along MN and SBO to the next 8 k.
//!
//! The swizzle XORs bits 4.. of the *final shared-memory address* with bits 7.., 1, 2 or 3 of them for 32, 64 or 128
//! bytes. That the address is absolute is what makes "start address + 32 bytes" the next k step inside a swizzled row, and an operand in a
//! buffer that is aligned to 128 bytes only right with base offset 0: a tensor copy swizzles by the absolute address too.

/// Addresses in a descriptor have 18 bits.
const ADDRESS_MASK: u32 = 0x3_ffff;

/// A decoded descriptor together with the operand's majorness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Shared address of the first piece before swizzling.
    pub start: u32,
    pub leading: u32,
    pub stride: u32,
    /// Number of XORed address bits: 0 none, 1 32 B, 2 64 B, 3 128 B (equals a tensor map's code).
    pub swizzle: u8,
    pub base_offset: u8,
    /// Pieces of 16 bytes along K (for 16-bit types groups of 8 k): 2, for B beside a compressed A 4.
    pub deep: u32,
    pub mn_major: bool,
}

impl Tile {
    pub fn decode(descriptor: u64, mn_major: bool) -> Self {
        let field = |shift: u32| (((descriptor >> shift) & 0x3fff) << 4) as u32;
        Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle: match descriptor >> 62 {
                0 => 0,
                1 => 3,
                2 => 2,
                _ => 1,
            },
            base_offset: ((descriptor >> 49) & 7) as u8,
            deep: 2,
            mn_major,
        }
    }

    /// Bytes of a row of the swizzle atom: 16 (no swizzle), 32, 64, 128.
    pub fn width(&self) -> u32 {
        16 << self.swizzle
    }

    #[inline(always)]
    fn place(&self, linear: u32) -> u32 {
        let a = linear & ADDRESS_MASK;
        let bits = (1 << self.swizzle) - 1;
        a ^ ((a >> 7) & bits) << 4
    }

    /// Shared address of piece `piece` (0, 1, …) of row `row` of a K-major operand.
    #[inline(always)]
    pub fn k_piece(&self, row: u32, piece: u32) -> u32 {
        let along_k = if self.swizzle == 0 { self.leading } else { 16 };
        self.place(
            self.start
                .wrapping_add((row / 8).wrapping_mul(self.stride))
                .wrapping_add((row % 8) * self.width())
                .wrapping_add(piece * along_k),
        )
    }

    /// Shared address of the 8 elements `8 * piece ..` along M or N of row `k` of an MN-major operand.
    #[inline(always)]
    pub fn mn_piece(&self, piece: u32, k: u32) -> u32 {
        let per_row = 1 << self.swizzle;
        let (mn, k8) = if self.swizzle == 0 {
            (self.stride, self.leading)
        } else {
            (self.leading, self.stride)
        };
        self.place(
            self.start
                .wrapping_add((piece / per_row).wrapping_mul(mn))
                .wrapping_add((piece % per_row) * 16)
                .wrapping_add((k / 8).wrapping_mul(k8))
                .wrapping_add((k % 8) * self.width()),
        )
    }

    /// Calls `f` with the shared address of every 16-byte piece of the operand's rows `rows`.
    pub fn pieces(&self, rows: std::ops::Range<u32>, mut f: impl FnMut(u32)) {
        if self.mn_major {
            for piece in rows.start / 8..rows.end.div_ceil(8) {
                (0..8 * self.deep).for_each(|k| f(self.mn_piece(piece, k)));
            }
        } else {
            for row in rows {
                (0..self.deep).for_each(|piece| f(self.k_piece(row, piece)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn descriptor(start: u32, leading: u32, stride: u32, mode: u64) -> u64 {
        u64::from(start >> 4)
            | u64::from(leading >> 4) << 16
            | u64::from(stride >> 4) << 32
            | mode << 62
    }

    #[test]
    fn fields_are_where_the_isa_says() {
        let t = Tile::decode(0x4000_0040_0001_0180 | 5 << 49, false);
        assert_eq!(t.start, 0x1800);
        assert_eq!(t.leading, 16);
        assert_eq!(t.stride, 1024);
        assert_eq!(t.base_offset, 5);
        assert_eq!(t.swizzle, 3);
        assert_eq!(Tile::decode(3 << 62, false).swizzle, 1);
        assert_eq!(Tile::decode(2 << 62, false).swizzle, 2);
        assert_eq!(Tile::decode(0, false).swizzle, 0);
    }

    /// Where a tensor copy with the same swizzle puts 16-byte piece `c` of row `r` of a box whose rows are `width`
    /// bytes: linear position, then the XOR of the absolute address.
    fn by_box(base: u32, width: u32, bits: u32, r: u32, c: u32) -> u32 {
        let a = base + r * width + 16 * c;
        a ^ ((a >> 7) & ((1 << bits) - 1)) << 4
    }

    #[test]
    fn k_major_agrees_with_the_box_a_tensor_copy_writes() {
        for (mode, bits) in [(3, 1u32), (2, 2), (1, 3)] {
            let width = 16 << bits;
            for base in [0x400u32, 0x480, 0x2c00] {
                for step in 0..width / 32 {
                    let t = Tile::decode(descriptor(base + 32 * step, 16, 8 * width, mode), false);
                    for row in 0..256 {
                        for piece in 0..2 {
                            assert_eq!(
                                t.k_piece(row, piece),
                                by_box(base, width, bits, row, 2 * step + piece)
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn mn_major_agrees_with_the_box_a_tensor_copy_writes() {
        // The operand is K rows of N elements; boxes are W bytes wide and 64 k high, box after box along N.
        for (mode, bits) in [(3, 1u32), (2, 2), (1, 3)] {
            let width = 16 << bits;
            let box_bytes = 64 * width;
            for step in 0..4 {
                let start = 0x800 + step * 16 * width;
                let t = Tile::decode(descriptor(start, box_bytes, 8 * width, mode), true);
                for piece in 0..32 {
                    for k in 0..16 {
                        let (b, c) = (piece / (width / 16), piece % (width / 16));
                        assert_eq!(
                            t.mn_piece(piece, k),
                            by_box(0x800 + b * box_bytes, width, bits, 16 * step + k, c)
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn without_swizzle_core_matrices_are_128_contiguous_bytes() {
        let t = Tile::decode(descriptor(0x1000, 128, 256, 0), false);
        assert_eq!(t.k_piece(0, 1), 0x1000 + 128);
        assert_eq!(t.k_piece(7, 0), 0x1000 + 112);
        assert_eq!(t.k_piece(8, 1), 0x1000 + 256 + 128);
        let t = Tile::decode(descriptor(0x1000, 2048, 128, 0), true);
        assert_eq!(t.mn_piece(0, 7), 0x1000 + 112);
        assert_eq!(t.mn_piece(1, 0), 0x1000 + 128);
        assert_eq!(t.mn_piece(3, 9), 0x1000 + 3 * 128 + 2048 + 16);
    }

    #[test]
    fn no_two_pieces_of_a_dense_operand_coincide() {
        for mode in 0..4u64 {
            let width = [16, 128, 64, 32][mode as usize];
            for mn_major in [false, true] {
                for n in (8..=256).step_by(8) {
                    let (leading, stride) = match (mode, mn_major) {
                        (0, false) => (128, 256),
                        (0, true) => (16 * n, 128),
                        (_, false) => (16, 8 * width),
                        (_, true) => (16 * width, 8 * width),
                    };
                    let t = Tile::decode(descriptor(0x400, leading, stride, mode), mn_major);
                    let mut seen = HashSet::new();
                    let mut count = 0;
                    t.pieces(0..n, |a| {
                        assert_eq!(a % 16, 0);
                        seen.insert(a);
                        count += 1;
                    });
                    assert_eq!(count, 2 * n);
                    assert_eq!(seen.len(), count as usize, "mode {mode} n {n}");
                }
            }
        }
    }
}

//! Operands unpacked for the multiply kernels.
//!
//! The kernels accumulate directly in the registers' fragment layout. A plane (one accumulator register of a warp)
//! holds in lane l the element of row l/4 and column 2(l%4)+p of an 8 x 8 block, so its update for one k is
//!
//! ```text
//! plane[l] += A[row l/4][k] * B[k][column 2(l%4)+p]
//! ```
//!
//! a vector in which A changes every 4 lanes and B repeats every 4 lanes. Hence:
//!
//! * the **A panel** holds for every k and group of 4 rows 16 values, each element four times: `[k][16 groups][4 x 4]`;
//! * the **B panel** holds for every k and block of 8 columns the even columns, then the odd ones:
//!   `[k][n/8][0 2 4 6 1 3 5 7]`; four of them are broadcast at a time.
//!
//! Values are f32 (exact for every floating format) or i32.

use super::descriptor::Tile;
use super::format::Format;
use crate::exec::SHARED_BASE;

/// Largest depth of one pass (b1 instructions are deeper and take several).
pub const MAX_K: usize = 32;

/// Position of A element (`row`, `k`) in its panel (the first of its four copies).
#[inline(always)]
pub fn a_index(row: usize, k: usize) -> usize {
    k * 256 + (row / 4) * 16 + (row % 4) * 4
}

/// Position of B element (`k`, `column`) in its panel of `n` columns.
#[inline(always)]
pub fn b_index(n: usize, k: usize, column: usize) -> usize {
    k * n + (column / 8) * 8 + (column % 2) * 4 + (column % 8) / 2
}

/// Both panels. One per host thread, reused by every instruction.
#[repr(C, align(64))]
pub struct Panels {
    /// f32 or i32 bits.
    pub a: [u32; MAX_K * 256],
    pub b: [u32; MAX_K * 256],
}

impl Panels {
    pub fn boxed() -> Box<Self> {
        // SAFETY: all-zero bits are valid u32s; the layout is that of Panels.
        unsafe {
            let layout = std::alloc::Layout::new::<Self>();
            let p = std::alloc::alloc_zeroed(layout).cast::<Self>();
            if p.is_null() {
                std::alloc::handle_alloc_error(layout);
            }
            Box::from_raw(p)
        }
    }
}

/// The A operand as bytes: 64 rows of 32 bytes along K (from registers or K-major shared memory), or 16 k of 64
/// 16-bit elements (MN-major).
#[repr(C, align(64))]
#[derive(Clone)]
pub struct RawA {
    pub bytes: [u8; 2048],
    pub mn_major: bool,
}

/// Where A comes from.
pub enum SourceA {
    Descriptor(Tile),
    /// Bytes of the fragments; each warp adds its rows.
    Registers(Box<RawA>),
}

impl RawA {
    /// No fragment stored yet.
    pub fn boxed() -> Box<Self> {
        Box::new(Self {
            bytes: [0; 2048],
            mn_major: false,
        })
    }

    /// Copies an operand out of shared memory. `tile` was found in bounds.
    pub fn gather(&mut self, tile: &Tile, shared: &[u8]) {
        self.mn_major = tile.mn_major;
        let mut copy = |to: usize, address: u32| {
            let from = (address - SHARED_BASE) as usize;
            self.bytes[to..to + 16].copy_from_slice(&shared[from..from + 16]);
        };
        if tile.mn_major {
            for k in 0..16 {
                for piece in 0..8 {
                    copy((k * 8 + piece) as usize * 16, tile.mn_piece(piece, k));
                }
            }
        } else {
            for row in 0..64 {
                copy(row as usize * 32, tile.k_piece(row, 0));
                copy(row as usize * 32 + 16, tile.k_piece(row, 1));
            }
        }
    }

    /// Stores register `r` (0..4) of a warp's A fragment: lane l holds 4 bytes of row l/4, which are 8 rows of 16 bytes.
    pub fn set_fragment(&mut self, warp: usize, r: usize, lanes: &[u32; 32]) {
        for (row, quad) in lanes.chunks_exact(4).enumerate() {
            let to = (16 * warp + 8 * (r & 1) + row) * 32 + 16 * (r >> 1);
            for (i, v) in quad.iter().enumerate() {
                self.bytes[to + 4 * i..][..4].copy_from_slice(&v.to_le_bytes());
            }
        }
    }

    /// The 32 bytes of a row along K.
    pub(super) fn k_row(&self, row: usize) -> [u8; 32] {
        let mut out = [0; 32];
        if self.mn_major {
            for k in 0..16 {
                out[2 * k..2 * k + 2].copy_from_slice(&self.bytes[k * 128 + row * 2..][..2]);
            }
        } else {
            out.copy_from_slice(&self.bytes[row * 32..][..32]);
        }
        out
    }
}

/// The first piece of rows `0..rows` that is not inside shared memory.
pub fn out_of_bounds(tile: &Tile, rows: u32, shared_bytes: usize) -> Option<u32> {
    let end = u64::from(SHARED_BASE) + shared_bytes as u64;
    // Quick test on the largest linear address, swizzled or not.
    let (groups, far) = if tile.mn_major {
        let per_row = 1 << tile.swizzle;
        let last = u64::from((rows / 8).div_ceil(per_row) - 1);
        if tile.swizzle == 0 {
            (last * u64::from(tile.stride), u64::from(tile.leading))
        } else {
            (last * u64::from(tile.leading), u64::from(tile.stride))
        }
    } else {
        let groups = u64::from(rows / 8 - 1) * u64::from(tile.stride);
        (
            groups,
            if tile.swizzle == 0 {
                u64::from(tile.leading)
            } else {
                16
            },
        )
    };
    let far = far * u64::from(tile.deep - 1);
    let last = u64::from(tile.start) + groups + far + 8 * u64::from(tile.width());
    if tile.start >= SHARED_BASE && (last | 127) < end {
        return None;
    }
    let mut bad = None;
    tile.pieces(0..rows, |a| {
        if bad.is_none() && (a < SHARED_BASE || u64::from(a) + 16 > end) {
            bad = Some(a);
        }
    });
    bad
}

/// One element as panel bits, negated on request.
#[inline(always)]
fn element(format: Format, row: &[u8], i: usize, negate: bool) -> u32 {
    if format.is_integer() {
        format.integer(row, i) as u32
    } else {
        format.float(row, i).to_bits() ^ u32::from(negate) << 31
    }
}

/// Fills the A panel with the elements `along_k` of every row of 32 bytes.
pub fn unpack_a(
    panel: &mut [u32],
    raw: &RawA,
    format: Format,
    along_k: std::ops::Range<usize>,
    negate: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if format.bits() == 16 && !raw.mn_major && is_x86_feature_detected!("avx2") {
        assert!(panel.len() >= 16 * 256);
        // SAFETY: AVX2 was detected; 16 k of 256 values fit.
        unsafe { simd::a_16bit(panel, raw, format == Format::F16, negate) };
        return;
    }
    scalar_a(panel, raw, format, along_k, negate);
}

fn scalar_a(
    panel: &mut [u32],
    raw: &RawA,
    format: Format,
    along_k: std::ops::Range<usize>,
    negate: bool,
) {
    for row in 0..64 {
        let bytes = raw.k_row(row);
        for (k, i) in along_k.clone().enumerate() {
            let v = element(format, &bytes, i, negate);
            panel[a_index(row, k)..][..4].fill(v);
        }
    }
}

/// Fills the B panel of `n` columns from shared memory. `tile` was found in bounds.
pub fn unpack_b(
    panel: &mut [u32],
    tile: &Tile,
    shared: &[u8],
    n: usize,
    format: Format,
    along_k: std::ops::Range<usize>,
    negate: bool,
) {
    assert!(panel.len() >= n * along_k.len());
    #[cfg(target_arch = "x86_64")]
    if format.bits() == 16 && is_x86_feature_detected!("avx2") {
        assert_eq!(out_of_bounds(tile, n as u32, shared.len()), None);
        // SAFETY: AVX2 was detected, every piece was just found inside `shared`, and the panel holds 16 * n values.
        unsafe { simd::b_16bit(panel, tile, shared, n, format == Format::F16, negate) };
        return;
    }
    scalar_b(panel, tile, shared, n, format, along_k, negate);
}

fn scalar_b(
    panel: &mut [u32],
    tile: &Tile,
    shared: &[u8],
    n: usize,
    format: Format,
    along_k: std::ops::Range<usize>,
    negate: bool,
) {
    for column in 0..n {
        let mut bytes = [0; 32];
        let mut copy = |to: usize, len: usize, address: u32, offset: usize| {
            let from = (address - SHARED_BASE) as usize + offset;
            bytes[to..to + len].copy_from_slice(&shared[from..from + len]);
        };
        if tile.mn_major {
            for k in 0..16 {
                let a = tile.mn_piece(column as u32 / 8, k);
                copy(2 * k as usize, 2, a, column % 8 * 2);
            }
        } else {
            copy(0, 16, tile.k_piece(column as u32, 0), 0);
            copy(16, 16, tile.k_piece(column as u32, 1), 0);
        }
        for (k, i) in along_k.clone().enumerate() {
            panel[b_index(n, k, column)] = element(format, &bytes, i, negate);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod simd {
    //! 16-bit operands with AVX2: pairs of k are moved as 32-bit units and split when they are widened.
    use super::*;
    use std::arch::x86_64::*;

    /// The f32 values of the 16-bit floats in the upper halves of 32-bit units whose lower halves are zero.
    #[inline(always)]
    unsafe fn widen(top: __m256i, f16: bool, sign: __m256i) -> __m256i {
        // SAFETY: callers have AVX2.
        unsafe {
            let v = if f16 {
                // The magnitude placed as if it were f32, times 2^112, is exact also for subnormals; infinities and
                // NaNs get the full exponent.
                let magnitude =
                    _mm256_srli_epi32(_mm256_and_si256(top, _mm256_set1_epi32(0x7fff_0000)), 3);
                let scaled = _mm256_castps_si256(_mm256_mul_ps(
                    _mm256_castsi256_ps(magnitude),
                    _mm256_set1_ps(f32::from_bits((127 + 112) << 23)),
                ));
                let special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x0f7f_ffff));
                let v = _mm256_or_si256(
                    scaled,
                    _mm256_and_si256(special, _mm256_set1_epi32(0x7f80_0000)),
                );
                _mm256_or_si256(v, _mm256_and_si256(top, _mm256_set1_epi32(i32::MIN)))
            } else {
                top
            };
            _mm256_xor_si256(v, sign)
        }
    }

    /// Transposes 4 x 4 units of 32 bits in each half.
    #[inline(always)]
    unsafe fn transpose(r: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: callers have AVX2.
        unsafe {
            let a = _mm256_unpacklo_epi32(r[0], r[1]);
            let b = _mm256_unpackhi_epi32(r[0], r[1]);
            let c = _mm256_unpacklo_epi32(r[2], r[3]);
            let d = _mm256_unpackhi_epi32(r[2], r[3]);
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load(low: *const u8, high: *const u8) -> __m256i {
        // SAFETY: callers pass readable 16-byte pieces and have AVX2.
        unsafe {
            _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128(low.cast())),
                _mm_loadu_si128(high.cast()),
                1,
            )
        }
    }

    #[target_feature(enable = "avx2")]
    pub unsafe fn a_16bit(panel: &mut [u32], raw: &RawA, f16: bool, negate: bool) {
        // SAFETY: rows and pieces stay inside the 2048 bytes, stores inside 16 * 256 values (asserted by the caller).
        unsafe {
            let sign = _mm256_set1_epi32(if negate { i32::MIN } else { 0 });
            let first = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
            let spread: [__m256i; 4] =
                std::array::from_fn(|i| _mm256_add_epi32(first, _mm256_set1_epi32(2 * i as i32)));
            let out = panel.as_mut_ptr();
            for rows in 0..8 {
                for piece in 0..2 {
                    let p = |r: usize| raw.bytes.as_ptr().add((8 * rows + r) * 32 + 16 * piece);
                    // Low half: rows 0-3, high half: rows 4-7.
                    let t = transpose(std::array::from_fn(|i| load(p(i), p(i + 4))));
                    for (pair, unit) in t.into_iter().enumerate() {
                        let even = widen(_mm256_slli_epi32(unit, 16), f16, sign);
                        let odd = widen(
                            _mm256_and_si256(unit, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
                            f16,
                            sign,
                        );
                        for (k, v) in [(2 * pair, even), (2 * pair + 1, odd)] {
                            let to = out.add((8 * piece + k) * 256 + rows * 32);
                            for (i, s) in spread.iter().enumerate() {
                                _mm256_storeu_si256(
                                    to.add(8 * i).cast(),
                                    _mm256_permutevar8x32_epi32(v, *s),
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub unsafe fn b_16bit(
        panel: &mut [u32],
        tile: &Tile,
        shared: &[u8],
        n: usize,
        f16: bool,
        negate: bool,
    ) {
        // SAFETY: the caller has tested every piece; stores stay inside 16 * n values.
        unsafe {
            let sign = _mm256_set1_epi32(if negate { i32::MIN } else { 0 });
            let base = shared.as_ptr();
            let at = |address: u32| base.add((address - SHARED_BASE) as usize);
            let out = panel.as_mut_ptr();
            for block in 0..n / 8 {
                let to = out.add(block * 8);
                if tile.mn_major {
                    // Even columns to the low half, odd ones to the high half, each in the upper 16 bits.
                    for k in 0..16 {
                        let v = _mm_loadu_si128(at(tile.mn_piece(block as u32, k)).cast());
                        let v = _mm256_set_m128i(
                            _mm_and_si128(v, _mm_set1_epi32(0xffff_0000_u32 as i32)),
                            _mm_slli_epi32(v, 16),
                        );
                        _mm256_storeu_si256(to.add(k as usize * n).cast(), widen(v, f16, sign));
                    }
                    continue;
                }
                for piece in 0..2 {
                    let p = |c: u32| at(tile.k_piece(8 * block as u32 + c, piece));
                    let t = transpose(std::array::from_fn(|i| {
                        load(p(2 * i as u32), p(2 * i as u32 + 1))
                    }));
                    for (pair, unit) in t.into_iter().enumerate() {
                        let even = widen(_mm256_slli_epi32(unit, 16), f16, sign);
                        let odd = widen(
                            _mm256_and_si256(unit, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
                            f16,
                            sign,
                        );
                        let k = 8 * piece as usize + 2 * pair;
                        _mm256_storeu_si256(to.add(k * n).cast(), even);
                        _mm256_storeu_si256(to.add((k + 1) * n).cast(), odd);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Rng;

    /// Every bit pattern of the 16-bit formats occurs: 64 rows of 16 elements, 64 times.
    #[test]
    fn vector_and_scalar_unpacking_agree() {
        let mut shared = vec![0u8; 16 * 1024];
        let mut panels = [vec![0u32; 16 * 256], vec![0u32; 16 * 256]];
        let mut rng = Rng(9);
        for round in 0..64u32 {
            let mut raw = RawA::boxed();
            for (i, v) in raw.bytes.chunks_exact_mut(2).enumerate() {
                v.copy_from_slice(&((round * 1024 + i as u32) as u16).to_le_bytes());
            }
            shared.iter_mut().for_each(|v| *v = rng.next() as u8);
            for format in [Format::F16, Format::Bf16] {
                for negate in [false, true] {
                    for p in &mut panels {
                        p.fill(1);
                    }
                    unpack_a(&mut panels[0], &raw, format, 0..16, negate);
                    scalar_a(&mut panels[1], &raw, format, 0..16, negate);
                    assert!(panels[0] == panels[1], "A {format:?}");
                    for (mode, mn_major) in (0..4u64).flat_map(|m| [(m, false), (m, true)]) {
                        let d = 0x40 | 8 << 16 | 64 << 32 | mode << 62;
                        let tile = Tile::decode(d, mn_major);
                        let n = 8 * (1 + round as usize % 8);
                        unpack_b(&mut panels[0], &tile, &shared, n, format, 0..16, negate);
                        scalar_b(&mut panels[1], &tile, &shared, n, format, 0..16, negate);
                        assert!(panels[0] == panels[1], "B {format:?} {tile:?} n {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn operands_that_leave_shared_memory_are_found() {
        let d = |start: u64, stride: u64| start >> 4 | (stride >> 4) << 32 | 1 << 62;
        let bytes = 8192;
        let last = u64::from(SHARED_BASE) + 8192;
        assert_eq!(
            out_of_bounds(&Tile::decode(d(0x400, 1024), false), 64, bytes),
            None
        );
        assert_eq!(
            out_of_bounds(&Tile::decode(d(0x400, 1024), false), 72, bytes),
            Some(last as u32)
        );
        assert_eq!(
            out_of_bounds(&Tile::decode(d(0, 1024), false), 8, bytes),
            Some(0)
        );
        // In the last row, pieces 6 and 7 are swizzled to places 1 and 0: the operand ends 96 bytes before the tile.
        let t = Tile::decode(d(0x400 + 96, 1024), false);
        assert_eq!(out_of_bounds(&t, 64, bytes - 96), None);
        assert!(out_of_bounds(&t, 64, bytes - 97).is_some());
    }
}

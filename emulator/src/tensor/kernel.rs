//! The multiply kernels: panels times panels into accumulator registers, in fragment layout.
//!
//! One call is one wgmma of a whole warpgroup: 64 x n x depth. The variant (AVX-512, AVX2 with FMA, portable) is chosen
//! once. All three give the same bits: per element a sequence of fused multiply-adds in order of k; where the portable
//! one multiplies and adds, the product of two operands is exact in f32, so nothing is rounded twice (products below
//! 2^-126 of bf16 operands excepted).

use super::panel::Panels;
use crate::exec::Row;
use crate::program::RowId;
use std::sync::OnceLock;

/// Which kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Portable,
    Avx2,
    Avx512,
}

/// The best level of this machine.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Level::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Portable
    })
}

/// Where the accumulators are: the register files of the four warps and the rows of planes 0..n/2, the same in each.
#[derive(Clone, Copy)]
pub struct Accumulators<'a> {
    pub regs: [*mut Row; 4],
    pub rows: &'a [RowId],
}

impl Accumulators<'_> {
    #[inline(always)]
    unsafe fn plane(&self, warp: usize, plane: usize) -> *mut u32 {
        // SAFETY: callers promise that the rows lie in the register files.
        unsafe { self.regs[warp].add(self.rows[plane] as usize).cast() }
    }
}

/// D = A * B + D (`keep`) or D = A * B, in f32.
///
/// # Safety
/// Every row of `d.rows` lies in each of the four register files and nothing else uses them; the level is available.
pub unsafe fn multiply_f32(
    level: Level,
    panels: &Panels,
    n: usize,
    depth: usize,
    d: Accumulators,
    keep: bool,
) {
    assert!(n * depth <= panels.b.len() && depth * 256 <= panels.a.len());
    assert!(n.is_multiple_of(8) && d.rows.len() >= n / 2);
    // SAFETY: the panels were just tested, the rest is the caller's promise.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(panels, n, depth, d, keep),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(panels, n, depth, d, keep),
            _ => portable(panels, n, depth, d, keep, |a, b, c| {
                (f32::from_bits(a) * f32::from_bits(b) + f32::from_bits(c)).to_bits()
            }),
        }
    }
}

/// The same in wrapping 32-bit integers; with `saturate` every element is clamped to 32 bits once, at the end.
///
/// # Safety
/// As [`multiply_f32`].
pub unsafe fn multiply_i32(
    panels: &Panels,
    n: usize,
    depth: usize,
    d: Accumulators,
    keep: bool,
    saturate: bool,
) {
    assert!(n * depth <= panels.b.len() && depth * 256 <= panels.a.len());
    assert!(n.is_multiple_of(8) && d.rows.len() >= n / 2);
    // SAFETY: the caller's promise.
    unsafe {
        if saturate {
            saturating(panels, n, depth, d, keep);
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if level() != Level::Portable {
            integers_avx2(panels, n, depth, d, keep);
            return;
        }
        portable(panels, n, depth, d, keep, |a, b, c| {
            a.wrapping_mul(b).wrapping_add(c)
        });
    }
}

#[inline(always)]
unsafe fn portable(
    panels: &Panels,
    n: usize,
    depth: usize,
    d: Accumulators,
    keep: bool,
    step: impl Fn(u32, u32, u32) -> u32,
) {
    for warp in 0..4 {
        for plane in 0..n / 2 {
            let half = (plane >> 1) & 1;
            let column = (plane >> 2) * 8 + (plane & 1) * 4;
            // SAFETY: the caller's promise about rows.
            let out = unsafe { &mut *d.plane(warp, plane).cast::<[u32; 32]>() };
            let mut acc = if keep { *out } else { [0; 32] };
            for k in 0..depth {
                let a: &[u32; 32] = panels.a[k * 256 + warp * 64 + half * 32..][..32]
                    .try_into()
                    .expect("32 values");
                let b: &[u32; 4] = panels.b[k * n + column..][..4]
                    .try_into()
                    .expect("4 values");
                for l in 0..32 {
                    acc[l] = step(a[l], b[l % 4], acc[l]);
                }
            }
            *out = acc;
        }
    }
}

unsafe fn saturating(panels: &Panels, n: usize, depth: usize, d: Accumulators, keep: bool) {
    for warp in 0..4 {
        for plane in 0..n / 2 {
            let half = (plane >> 1) & 1;
            let column = (plane >> 2) * 8 + (plane & 1) * 4;
            // SAFETY: the caller's promise about rows.
            let out = unsafe { &mut *d.plane(warp, plane).cast::<[i32; 32]>() };
            for (l, v) in out.iter_mut().enumerate() {
                let mut sum = if keep { i64::from(*v) } else { 0 };
                for k in 0..depth {
                    let a = panels.a[k * 256 + warp * 64 + half * 32 + l] as i32;
                    let b = panels.b[k * n + column + l % 4] as i32;
                    sum += i64::from(a) * i64::from(b);
                }
                *v = sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn integers_avx2(panels: &Panels, n: usize, depth: usize, d: Accumulators, keep: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        portable(panels, n, depth, d, keep, |a, b, c| {
            a.wrapping_mul(b).wrapping_add(c)
        });
    }
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Per step of k: 4 vectors of A (the warp's 16 rows), `COLUMNS` broadcasts of B, 4 * `COLUMNS` accumulators.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(panels: &Panels, n: usize, depth: usize, d: Accumulators, keep: bool) {
    // SAFETY: bounds of the panels were tested by the caller, rows promised.
    unsafe {
        for warp in 0..4 {
            let mut block = 0;
            while block + 2 <= n / 8 {
                avx512_tile::<4>(panels, n, depth, &d, keep, warp, block);
                block += 2;
            }
            if block < n / 8 {
                avx512_tile::<2>(panels, n, depth, &d, keep, warp, block);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_tile<const COLUMNS: usize>(
    panels: &Panels,
    n: usize,
    depth: usize,
    d: &Accumulators,
    keep: bool,
    warp: usize,
    block: usize,
) {
    // SAFETY: as in `avx512`.
    unsafe {
        // acc[c][g]: column set c = 2 * block + parity, row group g = 2 * half + (lanes 0-15 | 16-31).
        let mut acc = [[_mm512_setzero_ps(); 4]; COLUMNS];
        let plane = |c: usize, g: usize| {
            let p = 4 * (block + c / 2) + (g & 2) + (c & 1);
            d.plane(warp, p).add(16 * (g & 1)).cast::<f32>()
        };
        if keep {
            for c in 0..COLUMNS {
                for g in 0..4 {
                    acc[c][g] = _mm512_load_ps(plane(c, g));
                }
            }
        }
        let mut a = panels.a.as_ptr().add(warp * 64).cast::<f32>();
        let mut b = panels.b.as_ptr().add(block * 8).cast::<f32>();
        for _ in 0..depth {
            let rows: [__m512; 4] = std::array::from_fn(|g| _mm512_load_ps(a.add(16 * g)));
            for (c, acc) in acc.iter_mut().enumerate() {
                let columns = _mm512_broadcast_f32x4(_mm_loadu_ps(b.add(4 * c)));
                for g in 0..4 {
                    acc[g] = _mm512_fmadd_ps(rows[g], columns, acc[g]);
                }
            }
            a = a.add(256);
            b = b.add(n);
        }
        for c in 0..COLUMNS {
            for g in 0..4 {
                _mm512_store_ps(plane(c, g), acc[c][g]);
            }
        }
    }
}

/// As [`avx512`] with half the width: 8 rows and 2 sets of columns at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(panels: &Panels, n: usize, depth: usize, d: Accumulators, keep: bool) {
    // SAFETY: bounds of the panels were tested by the caller, rows promised.
    unsafe {
        for warp in 0..4 {
            for half in 0..2 {
                for block in 0..n / 8 {
                    let mut acc = [[_mm256_setzero_ps(); 4]; 2];
                    let plane = |c: usize, g: usize| {
                        d.plane(warp, 4 * block + 2 * half + c)
                            .add(8 * g)
                            .cast::<f32>()
                    };
                    if keep {
                        for c in 0..2 {
                            for g in 0..4 {
                                acc[c][g] = _mm256_load_ps(plane(c, g));
                            }
                        }
                    }
                    let mut a = panels.a.as_ptr().add(warp * 64 + half * 32).cast::<f32>();
                    let mut b = panels.b.as_ptr().add(block * 8).cast::<f32>();
                    for _ in 0..depth {
                        let rows: [__m256; 4] =
                            std::array::from_fn(|g| _mm256_load_ps(a.add(8 * g)));
                        for (c, acc) in acc.iter_mut().enumerate() {
                            let v = _mm_loadu_ps(b.add(4 * c));
                            let columns = _mm256_set_m128(v, v);
                            for g in 0..4 {
                                acc[g] = _mm256_fmadd_ps(rows[g], columns, acc[g]);
                            }
                        }
                        a = a.add(256);
                        b = b.add(n);
                    }
                    for c in 0..2 {
                        for g in 0..4 {
                            _mm256_store_ps(plane(c, g), acc[c][g]);
                        }
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
    use crate::tensor::format::bf16_to_f32;

    #[test]
    fn all_levels_give_the_same_bits() {
        let mut rng = Rng(5);
        let mut panels = Panels::boxed();
        let mut value =
            || bf16_to_f32((0x3f00 + rng.below(0x180) as u16) ^ ((rng.below(2) as u16) << 15));
        for v in panels.a.iter_mut() {
            *v = value().to_bits();
        }
        for v in panels.b.iter_mut() {
            *v = value().to_bits();
        }
        let start: Vec<Row> = (0..128)
            .map(|_| Row(std::array::from_fn(|_| value().to_bits())))
            .collect();
        let rows: Vec<RowId> = (0..128).rev().collect();
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                levels.push(Level::Avx512);
            }
        }
        for n in (8..=256).step_by(8) {
            for (depth, keep) in [(16, true), (8, false), (32, true)] {
                let mut results = levels.iter().map(|level| {
                    let mut files = vec![start.clone(); 4];
                    let regs = std::array::from_fn(|w| files[w].as_mut_ptr());
                    let d = Accumulators { regs, rows: &rows };
                    // SAFETY: 128 rows in files of 128; the levels were detected.
                    unsafe { multiply_f32(*level, &panels, n, depth, d, keep) };
                    files.into_iter().flatten().map(|r| r.0).collect::<Vec<_>>()
                });
                let first = results.next().expect("a level");
                assert!(results.all(|r| r == first), "n {n} depth {depth}");
            }
        }
    }
}

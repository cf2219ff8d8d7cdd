//! Which bytes of device memory hold a value.
//!
//! Fresh memory of `cuMemAlloc` and its kin is *tracked*: what reads a byte of it that nothing has written reads nothing. Copies, fills and kernels'
//! writes define bytes. Two bitmaps, mapped over the whole of a device's addresses and touched where they are needed: a bit per granule of 512
//! bytes (tracked, and not all written at once since), and in tracked granules a bit per byte (written). All else, such as memory that a
//! test of the emulator takes from the arena itself, is defined.
//!
//! A copy passes on what is undefined in its source only to bytes that were never written. What a copy engine loads into shared memory counts as
//! defined. Both may miss, neither reports falsely.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

/// Allocations begin at multiples of it.
const GRANULE: u64 = super::ALLOCATION_ALIGN;

/// A bitmap over an anonymous mapping: pages that are not touched cost nothing and read as zeros.
struct Bits {
    words: *mut AtomicU64,
    count: usize,
}

// SAFETY: the words are atomics.
unsafe impl Send for Bits {}
// SAFETY: as above.
unsafe impl Sync for Bits {}

impl Bits {
    fn new(bits: u64) -> std::io::Result<Self> {
        let count = (bits / 64 + 1) as usize;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let words = p.cast();
        Ok(Bits { words, count })
    }

    #[inline(always)]
    fn word(&self, i: u64) -> &AtomicU64 {
        debug_assert!((i as usize) < self.count);
        // SAFETY: callers stay inside the range that the bitmap was made for.
        unsafe { &*self.words.add(i as usize) }
    }

    /// The words of the bits `from..to`, each with the mask of those bits.
    #[inline(always)]
    fn each(&self, from: u64, to: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        (from / 64..to.div_ceil(64)).map(move |i| {
            let low = from.saturating_sub(64 * i).min(64);
            let high = (to - 64 * i).min(64);
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            (self.word(i), mask)
        })
    }

    #[inline(always)]
    fn any(&self, from: u64, to: u64) -> bool {
        self.each(from, to)
            .any(|(w, mask)| w.load(Ordering::Relaxed) & mask != 0)
    }

    #[inline(always)]
    fn all(&self, from: u64, to: u64) -> bool {
        self.each(from, to)
            .all(|(w, mask)| w.load(Ordering::Relaxed) & mask == mask)
    }

    #[inline(always)]
    fn set(&self, from: u64, to: u64) {
        for (w, mask) in self.each(from, to) {
            if w.load(Ordering::Relaxed) & mask != mask {
                w.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    fn clear(&self, from: u64, to: u64) {
        for (w, mask) in self.each(from, to) {
            if w.load(Ordering::Relaxed) & mask != 0 {
                w.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    /// The same; whole pages go back to the system.
    fn clear_pages(&self, from: u64, to: u64) {
        const PAGE: u64 = 4096 * 8;
        let (first, last) = (from.next_multiple_of(PAGE), to / PAGE * PAGE);
        if first >= last {
            return self.clear(from, to);
        }
        // SAFETY: whole pages of our own anonymous private mapping.
        let given = unsafe {
            libc::madvise(
                self.words.add((first / 64) as usize).cast(),
                ((last - first) / 8) as usize,
                libc::MADV_DONTNEED,
            )
        };
        if given == 0 {
            self.clear(from, first);
            self.clear(last, to);
        } else {
            self.clear(from, to);
        }
    }
}

impl Drop for Bits {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.words.cast(), self.count * 8) };
    }
}

/// Of one device.
pub struct Defined {
    base: u64,
    bytes: u64,
    /// Something is tracked.
    active: AtomicBool,
    /// Nothing is tracked any more.
    stopped: AtomicBool,
    tracked: Bits,
    written: Bits,
}

/// Of all devices: peers write each other's memory.
static ALL: RwLock<Vec<Weak<Defined>>> = RwLock::new(Vec::new());

impl Defined {
    /// For the addresses from `base` on.
    pub fn new(base: u64, bytes: u64) -> std::io::Result<Arc<Self>> {
        let defined = Arc::new(Defined {
            base,
            bytes,
            active: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            tracked: Bits::new(bytes / GRANULE)?,
            written: Bits::new(bytes)?,
        });
        let mut all = ALL.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|d| d.strong_count() > 0);
        all.push(Arc::downgrade(&defined));
        Ok(defined)
    }

    #[inline(always)]
    fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.bytes
    }

    /// Calls `f(granule, from, to)` for the tracked granules of a range, with the bytes of the range in each, all as offsets.
    #[inline(always)]
    fn granules(&self, address: u64, bytes: u64, mut f: impl FnMut(u64, u64, u64)) {
        if !self.active.load(Ordering::Relaxed) || !self.holds(address) || bytes == 0 {
            return;
        }
        let start = address - self.base;
        let end = (start + bytes).min(self.bytes);
        for g in start / GRANULE..end.div_ceil(GRANULE) {
            if self.tracked.any(g, g + 1) {
                f(g, start.max(g * GRANULE), end.min((g + 1) * GRANULE));
            }
        }
    }

    /// A fresh allocation: nothing in it is defined.
    pub fn track(&self, address: u64, bytes: u64) {
        let stopped = self.stopped.load(Ordering::Relaxed);
        if self.holds(address) && bytes > 0 && !stopped {
            self.active.store(true, Ordering::Relaxed);
            let start = address - self.base;
            let end = (start + bytes).min(self.bytes);
            self.written.clear_pages(start, end);
            self.tracked.set(start / GRANULE, end.div_ceil(GRANULE));
        }
    }

    /// The allocation is gone, or all of it is defined.
    pub fn forget(&self, address: u64, bytes: u64) {
        if self.active.load(Ordering::Relaxed) && self.holds(address) && bytes > 0 {
            let start = address - self.base;
            let end = (start + bytes).min(self.bytes);
            self.tracked.clear(start / GRANULE, end.div_ceil(GRANULE));
        }
    }

    /// Not everything that is written will be known: from now on all memory counts as defined.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.active.store(false, Ordering::Relaxed);
    }

    /// Bytes have been written.
    #[inline]
    pub fn define(&self, address: u64, bytes: u64) {
        self.granules(address, bytes, |g, from, to| {
            if to - from == GRANULE {
                self.tracked.clear(g, g + 1);
            } else {
                self.written.set(from, to);
            }
        });
    }

    /// Bytes have been written that may be a peer's.
    #[inline]
    pub fn define_anywhere(&self, address: u64, bytes: u64) {
        if self.holds(address) {
            self.define(address, bytes);
        } else {
            written(address, bytes);
        }
    }

    /// Is a byte of the range undefined?
    #[inline]
    pub fn lacks(&self, address: u64, bytes: u64) -> bool {
        let mut lacks = false;
        self.granules(address, bytes, |_, from, to| {
            lacks |= !self.written.all(from, to);
        });
        lacks
    }

    /// The undefined ones of at most 32 bytes.
    pub fn undefined(&self, address: u64, bytes: u64) -> u32 {
        (0..bytes.min(32))
            .filter(|i| self.lacks(address + i, 1))
            .fold(0, |mask, i| mask | 1 << i)
    }
}

/// The memory of the device that an address is of.
fn of(address: u64) -> Option<Arc<Defined>> {
    let all = ALL.read().unwrap_or_else(PoisonError::into_inner);
    let all = all.iter().filter_map(Weak::upgrade);
    all.into_iter().find(|d| d.holds(address))
}

/// Something outside the kernels of its device has written bytes at an address of any device, or of none.
pub fn written(address: u64, bytes: u64) {
    if let Some(defined) = of(address) {
        defined.define(address, bytes);
    }
}

/// Bytes have been copied between addresses of any devices, or of none.
pub fn copied(from: u64, to: u64, bytes: u64) {
    let Some(target) = of(to) else {
        return;
    };
    let Some(source) = of(from).filter(|s| s.lacks(from, bytes)) else {
        return target.define(to, bytes);
    };
    let mut at = 0;
    while at < bytes {
        let n = (GRANULE - (from + at) % GRANULE).min(bytes - at);
        if source.lacks(from + at, n) {
            for i in (at..at + n).filter(|i| !source.lacks(from + i, 1)) {
                target.define(to + i, 1);
            }
        } else {
            target.define(to + at, n);
        }
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 1 << 40;

    fn defined() -> Arc<Defined> {
        Defined::new(BASE, 1 << 24).expect("address space")
    }

    #[test]
    fn what_is_not_tracked_is_defined_and_what_is_tracked_is_not() {
        let d = defined();
        assert!(!d.lacks(BASE, 4096) && !d.lacks(64, 8) && !d.lacks(u64::MAX, 1));
        d.track(BASE + 1024, 1000);
        assert!(!d.lacks(BASE, 1024) && d.lacks(BASE, 1025) && d.lacks(BASE + 2000, 4));
        assert_eq!(d.undefined(BASE + 1020, 8), 0xf0);
        d.forget(BASE + 1024, 1000);
        assert!(!d.lacks(BASE, 4096));
    }

    #[test]
    fn bytes_are_defined_one_by_one_and_by_the_granule() {
        let d = defined();
        d.track(BASE, 8192);
        for i in (0..512).filter(|i| *i != 77) {
            d.define(BASE + i, 1);
        }
        assert!(d.lacks(BASE, 512) && !d.lacks(BASE, 77) && !d.lacks(BASE + 78, 434));
        assert_eq!(d.undefined(BASE + 64, 32), 1 << 13);
        d.define(BASE + 70, 1000);
        assert!(!d.lacks(BASE, 1070) && d.lacks(BASE, 1071));
        // Used again, it is as fresh as at first.
        d.forget(BASE, 8192);
        d.track(BASE, 8192);
        assert!((0..8192).all(|i| d.lacks(BASE + i, 1)));
        d.stop();
        assert!(!d.lacks(BASE, 8192));
    }

    #[test]
    fn large_allocations_are_cleared_by_pages() {
        let d = defined();
        let (start, bytes) = (BASE + 512, (1 << 20) + 512);
        for _ in 0..2 {
            d.track(start, bytes);
            assert!((start..start + bytes).step_by(511).all(|a| d.lacks(a, 1)));
            for at in (start..start + bytes).step_by(8) {
                d.define(at, 8);
            }
            assert!(!d.lacks(start, bytes));
        }
    }

    #[test]
    fn a_copy_defines_what_its_source_has() {
        let d = Defined::new(3 << 40, 1 << 20).expect("address space");
        let (from, to) = (3 << 40, (3 << 40) + 8192);
        d.track(from, 2048);
        d.track(to, 2048);
        d.define(from, 600);
        d.define(from + 1000, 1048);
        copied(from, to + 3, 2000);
        assert!(d.lacks(to, 4) && !d.lacks(to + 3, 600) && !d.lacks(to + 1003, 1000));
        assert!((600..1000).all(|i| d.lacks(to + 3 + i, 1)));
        // From the host all is defined.
        copied(64, to, 2048);
        assert!(!d.lacks(to, 2048));
        written(from, 2048);
        assert!(!d.lacks(from, 2048));
    }
}

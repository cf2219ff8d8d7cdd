//! Device memory: one reserved range of host addresses per device.
//!
//! A device pointer *is* the host address of its byte, so that loads and stores of the interpreter are plain memory
//! accesses after one bounds test. The whole range is mapped (without swap reservation), so even a wild address inside
//! it cannot crash the host; whether it belongs to an allocation is decided by the table of allocations.

pub mod defined;

use defined::Defined;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

/// Guard bytes between allocations.
const RED_ZONE: u64 = 512;
/// Alignment of every allocation, as cuMemAlloc gives.
pub const ALLOCATION_ALIGN: u64 = 512;

#[derive(Debug, Clone)]
pub struct Allocation {
    pub address: u64,
    pub bytes: u64,
    /// Name for reports (`cuMemAlloc #7`, a module's variable, kernel parameters).
    pub name: String,
    /// Host memory made visible to the device (pinned or registered).
    pub host: bool,
}

pub struct Arena {
    base: u64,
    bytes: u64,
    /// Which bytes hold a value.
    pub defined: Arc<Defined>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<u64, Allocation>,
    /// Free ranges by address: length.
    free: BTreeMap<u64, u64>,
    used: u64,
    count: u64,
    /// Bumped at every change, so that cached lookups can be dropped.
    version: u64,
}

impl State {
    /// Takes a range off the free list.
    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let align = align.max(ALLOCATION_ALIGN);
        let need = bytes
            .checked_add(RED_ZONE)?
            .checked_next_multiple_of(ALLOCATION_ALIGN)?;
        let (start, len, at) = self.free.iter().find_map(|(&start, &len)| {
            let at = start.next_multiple_of(align);
            (at - start <= len && need <= len - (at - start)).then_some((start, len, at))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if at + need < start + len {
            self.free.insert(at + need, start + len - at - need);
        }
        Some(at)
    }

    /// Puts a range back on the free list, and its pages back to the system.
    fn give_back(&mut self, address: u64, bytes: u64) {
        let mut start = address;
        let mut len = (bytes + RED_ZONE).next_multiple_of(ALLOCATION_ALIGN);
        if let Some((&p, &l)) = self.free.range(..start).next_back()
            && p + l == start
        {
            self.free.remove(&p);
            start = p;
            len += l;
        }
        if let Some(l) = self.free.remove(&(start + len)) {
            len += l;
        }
        self.free.insert(start, len);
        if bytes >= 1 << 16 {
            let from = (address + 4095) & !4095;
            let to = (address + bytes) & !4095;
            if to > from {
                // SAFETY: whole pages inside our own anonymous mapping.
                unsafe { libc::madvise(from as *mut _, (to - from) as usize, libc::MADV_DONTNEED) };
            }
        }
    }

    fn enter(&mut self, address: u64, bytes: u64, name: String) {
        self.used += bytes;
        self.count += 1;
        self.version += 1;
        let allocation = Allocation {
            address,
            bytes,
            name,
            host: false,
        };
        self.live.insert(address, allocation);
    }

    fn leave(&mut self, address: u64) -> Option<Allocation> {
        let gone = self.live.remove(&address)?;
        self.version += 1;
        if !gone.host {
            self.used -= gone.bytes;
        }
        Some(gone)
    }
}

impl Arena {
    /// Reserves `bytes` of address space.
    pub fn new(bytes: u64) -> std::io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = p as u64;
        let mut state = State::default();
        state
            .free
            .insert(base.next_multiple_of(1 << 21), bytes - (1 << 21));
        Ok(Self {
            base,
            bytes,
            defined: Defined::new(base, bytes)?,
            state: RwLock::new(state),
        })
    }

    pub fn base(&self) -> u64 {
        self.base
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Is the address inside the mapped range (safe to touch), whatever it belongs to?
    #[inline(always)]
    pub fn mapped(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && address - self.base <= self.bytes - bytes.min(self.bytes)
    }
    /// Makes the whole pages of a range of this memory zero without touching them; returns their start and end. `None` where there
    /// is none, or the system refuses.
    pub fn zero_pages(&self, address: u64, bytes: u64) -> Option<(u64, u64)> {
        const PAGE: u64 = 1 << 16;
        let start = address.next_multiple_of(PAGE);
        let end = (address + bytes) / PAGE * PAGE;
        if end <= start || !self.mapped(address, bytes) {
            return None;
        }
        // SAFETY: pages of our own anonymous private mapping: the system gives zero pages at the next access.
        let given = unsafe {
            libc::madvise(
                start as *mut libc::c_void,
                (end - start) as usize,
                libc::MADV_DONTNEED,
            )
        };
        (given == 0).then_some((start, end))
    }

    pub fn used(&self) -> u64 {
        self.read().used
    }
    pub fn version(&self) -> u64 {
        self.read().version
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// First fit; `None` when the device is full (`limit` bytes are the device's memory).
    pub fn allocate(
        &self,
        bytes: u64,
        align: u64,
        limit: u64,
        name: impl Into<String>,
    ) -> Option<u64> {
        let mut s = self.write();
        if bytes == 0 || s.used.checked_add(bytes)? > limit {
            return None;
        }
        let at = s.take(bytes, align)?;
        s.enter(at, bytes, name.into());
        Some(at)
    }

    /// Frees the allocation that starts at `address`.
    pub fn free(&self, address: u64) -> bool {
        let mut s = self.write();
        let Some(a) = s.leave(address) else {
            return false;
        };
        if !a.host {
            self.defined.forget(address, a.bytes);
            s.give_back(address, a.bytes);
        }
        true
    }

    /// Takes a range that is no allocation: accesses to it are out of bounds.
    pub fn hold(&self, bytes: u64) -> Option<u64> {
        self.write().take(bytes, ALLOCATION_ALIGN)
    }

    /// Makes a held range an allocation.
    pub fn bring(&self, address: u64, bytes: u64, name: impl Into<String>) {
        self.write().enter(address, bytes, name.into());
    }

    /// Makes an allocation a held range again; whether it was one.
    pub fn withdraw(&self, address: u64) -> bool {
        let gone = self.write().leave(address);
        if let Some(a) = &gone {
            self.defined.forget(address, a.bytes);
        }
        gone.is_some()
    }

    /// Ends the hold of a range that is no allocation.
    pub fn release_hold(&self, address: u64, bytes: u64) {
        self.write().give_back(address, bytes);
    }

    /// Accounts for memory that lies elsewhere but is the device's (`cuMemCreate`); not when the device is full.
    pub fn charge(&self, bytes: u64, limit: u64) -> bool {
        let mut s = self.write();
        match s.used.checked_add(bytes) {
            Some(used) if used <= limit => {
                s.used = used;
                true
            }
            _ => false,
        }
    }

    /// Ends that.
    pub fn discharge(&self, bytes: u64) {
        let mut s = self.write();
        s.used = s.used.saturating_sub(bytes);
    }

    /// Makes host memory visible to the device.
    pub fn register_host(&self, address: u64, bytes: u64, name: impl Into<String>) {
        let mut s = self.write();
        s.version += 1;
        s.live.insert(
            address,
            Allocation {
                address,
                bytes,
                name: name.into(),
                host: true,
            },
        );
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<Allocation> {
        let s = self.read();
        let (_, a) = s.live.range(..=address).next_back()?;
        (address - a.address < a.bytes).then(|| a.clone())
    }

    /// The allocation that holds the whole range.
    pub fn covers(&self, address: u64, bytes: u64) -> bool {
        self.find(address)
            .is_some_and(|a| bytes <= a.bytes - (address - a.address))
    }

    /// The allocation next to a bad address, for the report: (allocation, distance; negative = below it).
    pub fn nearest(&self, address: u64) -> Option<(Allocation, i64)> {
        let s = self.read();
        let below = s.live.range(..=address).next_back().map(|(_, a)| a.clone());
        let above = s.live.range(address..).next().map(|(_, a)| a.clone());
        let d = |a: &Allocation| {
            if address < a.address {
                -((a.address - address) as i64)
            } else {
                (address - a.address - a.bytes) as i64
            }
        };
        match (below, above) {
            (Some(b), Some(a)) => Some(if d(&b).unsigned_abs() <= d(&a).unsigned_abs() {
                (b.clone(), d(&b))
            } else {
                (a.clone(), d(&a))
            }),
            (Some(a), None) | (None, Some(a)) => {
                let x = d(&a);
                Some((a, x))
            }
            (None, None) => None,
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody holds device pointers past the device.
        unsafe { libc::munmap(self.base as *mut _, self.bytes as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_are_merged_and_used_again() {
        let a = Arena::new(1 << 30).unwrap();
        let x = a.allocate(1000, 1, u64::MAX, "x").unwrap();
        let y = a.allocate(5000, 1, u64::MAX, "y").unwrap();
        assert_eq!(x % 512, 0);
        assert!(a.covers(x, 1000) && !a.covers(x, 1001) && !a.covers(x + 1000, 1));
        assert!(y >= x + 1000 + RED_ZONE);
        assert!(a.free(x) && a.free(y) && !a.free(y));
        assert_eq!(a.allocate(6000, 1, u64::MAX, "z").unwrap(), x);
        assert_eq!(a.used(), 6000);
    }

    #[test]
    fn a_held_range_is_memory_only_while_it_is_brought() {
        let a = Arena::new(1 << 30).unwrap();
        let x = a.hold(1000).unwrap();
        let y = a.allocate(1000, 1, u64::MAX, "y").unwrap();
        assert!(!a.covers(x, 1) && a.used() == 1000);
        a.bring(x, 1000, "x");
        assert!(a.covers(x, 1000) && a.used() == 2000);
        assert!(a.withdraw(x) && !a.withdraw(x));
        assert!(!a.covers(x, 1) && a.used() == 1000);
        // Nobody else gets the range before the hold ends.
        assert_ne!(a.hold(1000).unwrap(), x);
        a.release_hold(x, 1000);
        assert_eq!(a.hold(1000).unwrap(), x);
        assert!(a.free(y));
    }

    #[test]
    fn the_device_is_full_at_its_limit() {
        let a = Arena::new(1 << 30).unwrap();
        assert!(a.allocate(1001, 1, 1000, "x").is_none());
        assert!(a.allocate(0, 1, 1000, "x").is_none());
        assert!(a.allocate(u64::MAX, 1, u64::MAX, "x").is_none());
    }
}

//! Who owns which memory, and whether a range may be touched.
//!
//! The arenas of the devices know what is allocated and are the truth on bounds; the tables here add the owner, so that contexts can be
//! destroyed and pointers asked about. Host memory that the driver knows, and the memory of peers, is entered in the arenas of
//! the devices whose kernels may use it.

use super::error::{Code, Outcome};
use super::state::{Block, Handle, HostBlock, HostKind, State};
use crate::memory::ALLOCATION_ALIGN;

/// What a pointer is.
pub enum Kind {
    /// Memory of a device.
    Device,
    /// Host memory that the driver knows: it is read and written when an operation happens.
    Host,
    /// Host memory that it does not know.
    Pageable,
}

impl State {
    /// Allocates device memory for a context.
    pub fn allocate(
        &mut self,
        gpu: usize,
        context: Handle,
        bytes: u64,
        pool: Option<Handle>,
    ) -> Outcome<u64> {
        let id = self.handle();
        let place = &self.gpus[gpu];
        let name = format!("cuMemAlloc #{}", self.allocations + 1);
        let address = place
            .device
            .memory
            .allocate(bytes, ALLOCATION_ALIGN, place.memory, name.clone())
            .ok_or_else(|| {
                Code::OUT_OF_MEMORY.because(format!(
                    "{bytes} bytes do not fit: {} of {} bytes of device {gpu} are in use",
                    place.device.memory.used(),
                    place.memory
                ))
            })?;
        place.device.memory.defined.track(address, bytes);
        self.allocations += 1;
        self.blocks.insert(
            address,
            Block {
                bytes,
                context,
                gpu,
                pool,
                id,
            },
        );
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.used += bytes;
            pool.used_high = pool.used_high.max(pool.used);
        }
        for other in self.gpus_with_access(gpu) {
            self.gpus[other].device.memory.register_host(
                address,
                bytes,
                format!("{name} of device {gpu}"),
            );
        }
        Ok(address)
    }

    /// Frees device memory at once. The caller has made sure that nothing uses it.
    pub fn release_block(&mut self, address: u64) {
        let Some(block) = self.blocks.remove(&address) else {
            return;
        };
        if let Some(pool) = block.pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.used = pool.used.saturating_sub(block.bytes);
        }
        for gpu in &self.gpus {
            // On other devices than its own this removes the entry that peer access made, if any.
            gpu.device.memory.free(address);
        }
    }

    /// Makes host memory known: kernels of all devices may use it.
    pub fn enter_host_block(
        &mut self,
        address: u64,
        bytes: u64,
        kind: HostKind,
        flags: u32,
    ) -> Outcome {
        let context = self.healthy()?;
        let gpu = self.context(context)?.gpu;
        let id = self.handle();
        let name = match kind {
            HostKind::Pinned => "cuMemHostAlloc",
            HostKind::Registered => "cuMemHostRegister",
            HostKind::Managed => "cuMemAllocManaged",
        };
        for gpu in &self.gpus {
            gpu.device.memory.register_host(address, bytes, name);
        }
        self.host_blocks.insert(
            address,
            HostBlock {
                bytes,
                context,
                gpu,
                kind,
                flags,
                id,
            },
        );
        Ok(())
    }

    /// Forgets host memory, and gives it back when it was ours.
    pub fn release_host_block(&mut self, address: u64) {
        let Some(block) = self.host_blocks.remove(&address) else {
            return;
        };
        for gpu in &self.gpus {
            gpu.device.memory.free(address);
        }
        if block.kind != HostKind::Registered {
            unmap(address, block.bytes);
        }
    }

    /// The host block that holds an address: where it starts, and what it is.
    pub fn host_block(&self, address: u64) -> Option<(u64, &HostBlock)> {
        let (&start, block) = self.host_blocks.range(..=address).next_back()?;
        (address - start < block.bytes).then_some((start, block))
    }

    /// The device allocation that holds an address.
    pub fn block(&self, address: u64) -> Option<(u64, &Block)> {
        let (&start, block) = self.blocks.range(..=address).next_back()?;
        (address - start < block.bytes).then_some((start, block))
    }

    /// Devices, besides `owner` itself, whose kernels may use the memory of `owner`.
    fn gpus_with_access(&self, owner: usize) -> Vec<usize> {
        let mut out: Vec<usize> = self
            .contexts
            .values()
            .filter(|context| context.gpu != owner && context.peers.contains(&owner))
            .map(|context| context.gpu)
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// Lets kernels of `user` use what is allocated on `owner`.
    pub fn open_to_peer(&mut self, owner: usize, user: usize) {
        for (&address, block) in &self.blocks {
            if block.gpu == owner {
                self.gpus[user].device.memory.register_host(
                    address,
                    block.bytes,
                    format!("memory of device {owner}"),
                );
            }
        }
    }

    /// Ends that, unless another context of `user` still has access.
    pub fn close_to_peer(&mut self, owner: usize, user: usize) {
        if self.gpus_with_access(owner).contains(&user) {
            return;
        }
        for (&address, block) in &self.blocks {
            if block.gpu == owner {
                self.gpus[user].device.memory.free(address);
            }
        }
    }

    /// What a pointer is.
    pub fn kind(&self, address: u64) -> Kind {
        if self.host_block(address).is_some() {
            return Kind::Host;
        }
        if self.mapping(address).is_some() || self.graph_block(address).is_some() {
            return Kind::Device;
        }
        // The arenas also hold the variables of modules, which have no owner in the tables.
        let on_device = self
            .gpus
            .iter()
            .any(|gpu| gpu.device.memory.find(address).is_some_and(|a| !a.host));
        if on_device {
            Kind::Device
        } else {
            Kind::Pageable
        }
    }

    /// Checks that a range lies in one device allocation, or in host memory that the driver knows.
    pub fn check_device_range(&self, what: &str, address: u64, bytes: u64) -> Outcome {
        // Memory of a graph may be named before it is there: in a node, or behind a launch.
        let of_a_graph = self
            .graph_block(address)
            .is_some_and(|(start, block)| bytes <= block.bytes - (address - start));
        if bytes == 0
            || of_a_graph
            || self
                .gpus
                .iter()
                .any(|gpu| gpu.device.memory.covers(address, bytes))
        {
            return Ok(());
        }
        let found = self
            .gpus
            .iter()
            .find_map(|gpu| gpu.device.memory.find(address));
        match found {
            Some(a) => Code::INVALID_VALUE.fail(format!(
                "{what}: {bytes} bytes at {address:#x} leave {}, which has {} bytes at {:#x}",
                a.name, a.bytes, a.address
            )),
            None => Code::INVALID_VALUE.fail(format!(
                "{what}: {address:#x} is not allocated (never was, or is freed)"
            )),
        }
    }
}

/// Whole pages of fresh, zeroed host memory.
pub fn map(bytes: u64) -> Outcome<u64> {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Code::OUT_OF_MEMORY.fail(format!("the host has no {bytes} bytes"));
    }
    Ok(address as u64)
}

fn unmap(address: u64, bytes: u64) {
    // SAFETY: made by `map` with this size, and removed from the tables.
    unsafe { libc::munmap(address as *mut libc::c_void, bytes as usize) };
}

/// Checks that host memory exists, so that a wild pointer is an error of the call and not the end of the process.
pub fn check_host_range(what: &str, address: u64, bytes: u64) -> Outcome {
    if bytes == 0 {
        return Ok(());
    }
    let end = address.checked_add(bytes);
    let (Some(end), true) = (end, address >= 4096) else {
        return Code::INVALID_VALUE.fail(format!("{what}: {address:#x} is no host pointer"));
    };
    // Pages are asked for in pieces, because the answer takes a byte for each.
    const PIECE: u64 = 4096 * 4096;
    let mut residency = [0u8; 4096];
    let mut at = address & !4095;
    while at < end {
        let length = (end - at).min(PIECE);
        // SAFETY: mincore only looks pages up; the buffer has a byte for each page of the piece.
        let result = unsafe {
            libc::mincore(
                at as *mut libc::c_void,
                length as usize,
                residency.as_mut_ptr(),
            )
        };
        if result != 0 {
            return Code::INVALID_VALUE.fail(format!(
                "{what}: {bytes} bytes at {address:#x} are not mapped in the host"
            ));
        }
        at += length;
    }
    Ok(())
}

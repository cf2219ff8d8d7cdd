//! Memory: device, pinned, registered, managed, pooled; and what a pointer is.

use super::blocks::{self, Kind};
use super::error::{Code, Outcome};
use super::graph::NodeKind;
use super::put;
use super::run;
use super::state::{self, Guard, Handle, HostKind, Pool};
use super::types::memory_type;
use super::work::Work;

/// Allocates, and when the device is full once more after everything that is pending has happened: it may free.
fn allocate(
    mut guard: Guard,
    gpu: usize,
    context: Handle,
    bytes: u64,
    pool: Option<Handle>,
) -> Outcome<u64> {
    if bytes == 0 {
        return Code::INVALID_VALUE.fail("0 bytes");
    }
    match guard.allocate(gpu, context, bytes, pool) {
        Err(error) if error.code == Code::OUT_OF_MEMORY => {
            let mut guard = run::finish_context(guard, context)?;
            guard.allocate(gpu, context, bytes, pool)
        }
        other => other,
    }
}

pub unsafe fn alloc(out: *mut u64, bytes: usize) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the pointer");
    }
    let mut guard = state::lock()?;
    guard.check_unsafe_call("cuMemAlloc")?;
    let context = guard.healthy()?;
    let gpu = guard.context(context)?.gpu;
    let address = allocate(guard, gpu, context, bytes as u64, None)?;
    put(out, address)
}

/// Rows are padded to 512 bytes.
pub unsafe fn alloc_pitch(
    out: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> Outcome {
    const PITCH: usize = 512;
    if out.is_null() || pitch.is_null() {
        return Code::INVALID_VALUE.fail("no place for a result");
    }
    if ![4, 8, 16].contains(&element) {
        return Code::INVALID_VALUE.fail(format!("element size {element} is not 4, 8 or 16"));
    }
    let row = width.checked_next_multiple_of(PITCH);
    let Some((row, bytes)) = row.and_then(|row| Some((row, row.checked_mul(height)?))) else {
        return Code::INVALID_VALUE.fail("the extent overflows");
    };
    // SAFETY: checked not to be null.
    unsafe { alloc(out, bytes) }?;
    put(pitch, row)
}

pub unsafe fn free(address: u64) -> Outcome {
    let mut guard = state::lock()?;
    if address == 0 {
        return Ok(());
    }
    guard.check_unsafe_call("cuMemFree")?;
    guard.healthy()?;
    if let Some(block) = guard.host_blocks.get(&address)
        && block.kind == HostKind::Managed
    {
        let context = block.context;
        let mut guard = run::finish_context(guard, context)?;
        guard.release_host_block(address);
        return Ok(());
    }
    if guard.free_graph_block(address) {
        let context = guard.healthy()?;
        let mut guard = run::finish_context(guard, context)?;
        guard.withdraw(address);
        return Ok(());
    }
    let Some(block) = guard.blocks.get(&address) else {
        let inside = match guard.block(address) {
            Some((start, _)) => format!("; it lies inside the allocation at {start:#x}"),
            None => String::new(),
        };
        return Code::INVALID_VALUE.fail(format!(
            "{address:#x} is not allocated (never was, or is freed already){inside}"
        ));
    };
    // What is pending may use the memory: freeing waits, as it does on a device.
    let context = block.context;
    let mut guard = run::finish_context(guard, context)?;
    guard.release_block(address);
    Ok(())
}

pub unsafe fn info(free: *mut usize, total: *mut usize) -> Outcome {
    let guard = state::lock()?;
    let gpu = guard.current_gpu()?;
    let gpu = &guard.gpus[gpu];
    let left = gpu.memory.saturating_sub(gpu.device.memory.used());
    put(free, left as usize)?;
    put(total, gpu.memory as usize)
}

pub unsafe fn address_range(base: *mut u64, bytes: *mut usize, address: u64) -> Outcome {
    let guard = state::lock()?;
    guard.healthy()?;
    let mapping = guard.mapping(address);
    let found = match (guard.block(address), guard.host_block(address)) {
        (Some((start, block)), _) => Some((start, block.bytes)),
        (_, Some((start, block))) => Some((start, block.bytes)),
        _ if mapping.is_some() => mapping.map(|(start, mapping)| (start, mapping.bytes)),
        _ => guard
            .gpus
            .iter()
            .find_map(|gpu| gpu.device.memory.find(address))
            .map(|a| (a.address, a.bytes)),
    };
    let Some((start, size)) = found else {
        return Code::NOT_FOUND.fail(format!("{address:#x} belongs to no allocation"));
    };
    if !base.is_null() {
        put(base, start)?;
    }
    if !bytes.is_null() {
        put(bytes, size as usize)?;
    }
    Ok(())
}

/// Whole pages, so that the memory can be unmapped again.
fn pages(bytes: usize) -> Outcome<u64> {
    if bytes == 0 {
        return Code::INVALID_VALUE.fail("0 bytes");
    }
    (bytes as u64)
        .checked_next_multiple_of(4096)
        .ok_or_else(|| Code::OUT_OF_MEMORY.because(format!("{bytes} bytes")))
}

fn host_alloc(out: *mut u64, bytes: usize, flags: u32, kind: HostKind) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the pointer");
    }
    let size = pages(bytes)?;
    let mut guard = state::lock()?;
    guard.check_unsafe_call("allocating host memory")?;
    guard.healthy()?;
    let address = blocks::map(size)?;
    guard.enter_host_block(address, size, kind, flags)?;
    put(out, address)
}

pub unsafe fn alloc_host(out: *mut u64, bytes: usize) -> Outcome {
    host_alloc(out, bytes, 0, HostKind::Pinned)
}

pub unsafe fn host_alloc_flags(out: *mut u64, bytes: usize, flags: u32) -> Outcome {
    if flags & !7 != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    host_alloc(out, bytes, flags, HostKind::Pinned)
}

pub unsafe fn alloc_managed(out: *mut u64, bytes: usize, flags: u32) -> Outcome {
    const GLOBAL: u32 = 1;
    const HOST: u32 = 2;
    if flags != GLOBAL && flags != HOST {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    host_alloc(out, bytes, flags, HostKind::Managed)
}

pub unsafe fn free_host(address: u64) -> Outcome {
    let mut guard = state::lock()?;
    if address == 0 {
        return Ok(());
    }
    guard.check_unsafe_call("cuMemFreeHost")?;
    let Some(block) = guard
        .host_blocks
        .get(&address)
        .filter(|block| block.kind == HostKind::Pinned)
    else {
        return Code::INVALID_VALUE
            .fail(format!("{address:#x} was not allocated by cuMemHostAlloc"));
    };
    let context = block.context;
    let mut guard = run::finish_context(guard, context)?;
    guard.release_host_block(address);
    Ok(())
}

pub unsafe fn register(address: u64, bytes: usize, flags: u32) -> Outcome {
    if address == 0 || bytes == 0 {
        return Code::INVALID_VALUE.fail(format!("{bytes} bytes at {address:#x}"));
    }
    if flags & !15 != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    blocks::check_host_range("cuMemHostRegister", address, bytes as u64)?;
    let mut guard = state::lock()?;
    guard.healthy()?;
    let overlaps = guard
        .host_blocks
        .range(..address + bytes as u64)
        .next_back()
        .is_some_and(|(&start, block)| start + block.bytes > address);
    if overlaps {
        return Code::HOST_MEMORY_ALREADY_REGISTERED.fail(format!(
            "{bytes} bytes at {address:#x} are registered, in part or as a whole"
        ));
    }
    if matches!(guard.kind(address), Kind::Device) {
        return Code::INVALID_VALUE.fail(format!("{address:#x} is device memory"));
    }
    guard.enter_host_block(address, bytes as u64, HostKind::Registered, flags)
}

pub unsafe fn unregister(address: u64) -> Outcome {
    let guard = state::lock()?;
    let Some(block) = guard
        .host_blocks
        .get(&address)
        .filter(|block| block.kind == HostKind::Registered)
    else {
        return Code::HOST_MEMORY_NOT_REGISTERED.fail(format!("{address:#x} is not registered"));
    };
    let context = block.context;
    let mut guard = run::finish_context(guard, context)?;
    guard.release_host_block(address);
    Ok(())
}

pub unsafe fn host_device_pointer(out: *mut u64, address: u64, flags: u32) -> Outcome {
    if flags != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let guard = state::lock()?;
    guard.healthy()?;
    if guard.host_block(address).is_none() {
        return Code::INVALID_VALUE.fail(format!("{address:#x} is not pinned host memory"));
    }
    put(out, address)
}

pub unsafe fn host_flags(out: *mut u32, address: u64) -> Outcome {
    /// Unified addressing maps everything: CU_MEMHOSTALLOC_DEVICEMAP.
    const MAPPED: u32 = 2;
    let guard = state::lock()?;
    match guard.host_block(address) {
        Some((_, block)) => put(out, block.flags | MAPPED),
        None => Code::INVALID_VALUE.fail(format!("{address:#x} is not pinned host memory")),
    }
}

/// Advice and prefetching of managed memory move nothing here; arguments are checked.
pub unsafe fn advise(address: u64, bytes: usize, advice: u32, _device: i32) -> Outcome {
    if !(1..=6).contains(&advice) {
        return Code::INVALID_VALUE.fail(format!("no advice {advice}"));
    }
    check_managed(address, bytes)
}

/// `CUmemLocation` is passed in one register: type and id.
pub unsafe fn advise_v2(address: u64, bytes: usize, advice: u32, _location: u64) -> Outcome {
    // SAFETY: no pointers.
    unsafe { advise(address, bytes, advice, 0) }
}

pub unsafe fn prefetch(address: u64, bytes: usize, _device: i32, stream: u64) -> Outcome {
    check_managed(address, bytes)?;
    state::lock()?.stream_of(stream).map(drop)
}

pub unsafe fn prefetch_v2(
    address: u64,
    bytes: usize,
    _location: u64,
    _flags: u32,
    stream: u64,
) -> Outcome {
    // SAFETY: no pointers.
    unsafe { prefetch(address, bytes, 0, stream) }
}

fn check_managed(address: u64, bytes: usize) -> Outcome {
    let guard = state::lock()?;
    guard.healthy()?;
    match guard.host_block(address) {
        Some((start, block))
            if block.kind == HostKind::Managed
                && bytes as u64 <= block.bytes - (address - start) =>
        {
            Ok(())
        }
        _ => Code::INVALID_VALUE.fail(format!(
            "{bytes} bytes at {address:#x} are not managed memory"
        )),
    }
}

/// `CUpointer_attribute`
mod attribute {
    pub const CONTEXT: u32 = 1;
    pub const MEMORY_TYPE: u32 = 2;
    pub const DEVICE_POINTER: u32 = 3;
    pub const HOST_POINTER: u32 = 4;
    pub const SYNC_MEMOPS: u32 = 6;
    pub const BUFFER_ID: u32 = 7;
    pub const IS_MANAGED: u32 = 8;
    pub const DEVICE_ORDINAL: u32 = 9;
    pub const IS_LEGACY_IPC_CAPABLE: u32 = 10;
    pub const RANGE_START: u32 = 11;
    pub const RANGE_SIZE: u32 = 12;
    pub const MAPPED: u32 = 13;
    pub const ALLOWED_HANDLE_TYPES: u32 = 14;
    pub const IS_GPU_DIRECT_CAPABLE: u32 = 15;
    pub const ACCESS_FLAGS: u32 = 16;
    pub const MEMPOOL: u32 = 17;
}

/// The answer to one question about a pointer, and its size in bytes.
fn pointer_attribute(guard: &Guard, which: u32, address: u64) -> Outcome<Option<(u64, usize)>> {
    struct Known {
        context: Handle,
        gpu: usize,
        start: u64,
        bytes: u64,
        id: u64,
        host: Option<HostKind>,
        pool: Handle,
        handle_types: u32,
    }
    if guard.mapping(address).is_none()
        && let Some((start, bytes)) = guard.reservation(address)
    {
        // Addresses without memory.
        return match which {
            attribute::MAPPED => Ok(Some((0, 4))),
            attribute::RANGE_START => Ok(Some((start, 8))),
            attribute::RANGE_SIZE => Ok(Some((bytes, 8))),
            _ => Ok(None),
        };
    }
    let known = if let Some((start, block)) = guard.host_block(address) {
        Known {
            context: block.context,
            gpu: block.gpu,
            start,
            bytes: block.bytes,
            id: block.id,
            host: Some(block.kind),
            pool: 0,
            handle_types: 0,
        }
    } else if let Some((start, block)) = guard.block(address) {
        Known {
            context: block.context,
            gpu: block.gpu,
            start,
            bytes: block.bytes,
            id: block.id,
            host: None,
            pool: block.pool.unwrap_or(0),
            handle_types: 0,
        }
    } else if let Some((start, mapping)) = guard.mapping(address)
        && let Some(memory) = guard.memories.get(&mapping.memory)
    {
        Known {
            context: guard.gpus[memory.gpu].primary.unwrap_or(0),
            gpu: memory.gpu,
            start,
            bytes: mapping.bytes,
            id: mapping.id,
            host: None,
            pool: 0,
            handle_types: memory.properties.handle_types,
        }
    } else {
        // A variable of a module has no owner in the tables, but it is device memory.
        let found = guard.gpus.iter().enumerate().find_map(|(gpu, entry)| {
            let a = entry.device.memory.find(address)?;
            Some((gpu, a.address, a.bytes))
        });
        let Some((gpu, start, bytes)) = found else {
            return Ok(None);
        };
        Known {
            context: guard.gpus[gpu].primary.unwrap_or(0),
            gpu,
            start,
            bytes,
            id: start,
            host: None,
            pool: 0,
            handle_types: 0,
        }
    };
    let managed = known.host == Some(HostKind::Managed);
    Ok(Some(match which {
        attribute::CONTEXT => (known.context, 8),
        attribute::MEMORY_TYPE if known.host.is_some() && !managed => (memory_type::HOST.into(), 4),
        attribute::MEMORY_TYPE => (memory_type::DEVICE.into(), 4),
        attribute::DEVICE_POINTER => (address, 8),
        attribute::HOST_POINTER if known.host.is_some() => (address, 8),
        attribute::HOST_POINTER => {
            return Code::INVALID_VALUE.fail("device memory has no host pointer");
        }
        attribute::SYNC_MEMOPS => (0, 4),
        attribute::BUFFER_ID => (known.id, 8),
        attribute::IS_MANAGED => (managed.into(), 4),
        attribute::DEVICE_ORDINAL => (known.gpu as u64, 4),
        attribute::IS_LEGACY_IPC_CAPABLE | attribute::IS_GPU_DIRECT_CAPABLE => (0, 4),
        attribute::RANGE_START => (known.start, 8),
        attribute::RANGE_SIZE => (known.bytes, 8),
        attribute::MAPPED => (1, 4),
        attribute::ALLOWED_HANDLE_TYPES => (known.handle_types.into(), 8),
        attribute::ACCESS_FLAGS => (3, 4),
        attribute::MEMPOOL => (known.pool, 8),
        _ => return Code::INVALID_VALUE.fail(format!("no pointer attribute {which}")),
    }))
}

unsafe fn write_attribute(out: *mut u8, value: u64, bytes: usize) {
    // SAFETY: the caller gives room for the attribute's type; the value is little-endian.
    unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), out, bytes) };
}

pub unsafe fn get_attribute(out: *mut u8, which: u32, address: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the value");
    }
    let guard = state::lock()?;
    match pointer_attribute(&guard, which, address)? {
        Some((value, bytes)) => {
            // SAFETY: the caller's promise.
            unsafe { write_attribute(out, value, bytes) };
            Ok(())
        }
        None => Code::INVALID_VALUE.fail(format!("{address:#x} is not known to the driver")),
    }
}

/// For several questions at once an unknown pointer is no error: the answers are zeros.
pub unsafe fn get_attributes(
    count: u32,
    which: *const u32,
    out: *const *mut u8,
    address: u64,
) -> Outcome {
    if which.is_null() || out.is_null() {
        return Code::INVALID_VALUE.fail("a null list");
    }
    let guard = state::lock()?;
    for index in 0..count as usize {
        // SAFETY: the caller's lists have `count` elements.
        let (which, place) = unsafe { (*which.add(index), *out.add(index)) };
        if place.is_null() {
            return Code::INVALID_VALUE.fail("no place for a value");
        }
        let (value, bytes) = match pointer_attribute(&guard, which, address) {
            Ok(Some(answer)) => answer,
            Ok(None) if which == attribute::DEVICE_ORDINAL => (-2i32 as u32 as u64, 4),
            Ok(None) | Err(_) => match which {
                attribute::MEMORY_TYPE
                | attribute::IS_MANAGED
                | attribute::MAPPED
                | attribute::SYNC_MEMOPS => (0, 4),
                _ => (0, 8),
            },
        };
        // SAFETY: the caller's promise.
        unsafe { write_attribute(place, value, bytes) };
    }
    Ok(())
}

pub unsafe fn set_attribute(value: *const u8, which: u32, address: u64) -> Outcome {
    let guard = state::lock()?;
    if value.is_null() || which != attribute::SYNC_MEMOPS {
        return Code::INVALID_VALUE.fail(format!("pointer attribute {which} cannot be set"));
    }
    guard.check_device_range("cuPointerSetAttribute", address, 1)
}

fn alloc_async_in(out: *mut u64, bytes: usize, pool: Option<Handle>, stream: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the pointer");
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let entry = guard.stream(stream)?;
    let (context, capture) = (entry.context, entry.capture);
    let gpu = guard.context(context)?.gpu;
    let pool = pool.unwrap_or(guard.gpus[gpu].current_pool);
    let home = guard
        .pools
        .get(&pool)
        .ok_or_else(|| Code::INVALID_VALUE.because(format!("{pool:#x} is no memory pool")))?
        .gpu;
    if let Some(capture) = capture {
        let graph = guard.valid_capture(capture)?.graph;
        let address = guard.hold_for_graph(graph, home, bytes as u64)?;
        guard.capture_node(capture, stream, NodeKind::Allocate(address))?;
        return put(out, address);
    }
    let address = allocate(guard, home, context, bytes as u64, Some(pool))?;
    put(out, address)
}

pub unsafe fn alloc_async(out: *mut u64, bytes: usize, stream: u64) -> Outcome {
    alloc_async_in(out, bytes, None, stream)
}

pub unsafe fn alloc_from_pool_async(
    out: *mut u64,
    bytes: usize,
    pool: u64,
    stream: u64,
) -> Outcome {
    alloc_async_in(out, bytes, Some(pool), stream)
}

/// The memory is given back when the stream gets there. A use that is not ordered before that is an illegal address.
pub unsafe fn free_async(address: u64, stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    if let Some(capture) = guard.stream(stream)?.capture {
        let graph = guard.valid_capture(capture)?.graph;
        guard
            .free_in_graph(graph, address)
            .inspect_err(|_| guard.invalidate(capture))?;
        return guard
            .capture_node(capture, stream, NodeKind::Free(address))
            .map(drop);
    }
    if guard.free_graph_block(address) {
        guard.submit(stream, Work::Withdraw(address))?;
        return run::relieve(guard, context);
    }
    if !guard.blocks.contains_key(&address) {
        return Code::INVALID_VALUE.fail(format!("{address:#x} is not allocated"));
    }
    guard.submit(stream, Work::Free(address))?;
    run::relieve(guard, context)
}

pub unsafe fn default_pool(out: *mut u64, device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    put(out, guard.gpus[gpu].default_pool)
}

pub unsafe fn current_pool(out: *mut u64, device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    put(out, guard.gpus[gpu].current_pool)
}

pub unsafe fn set_current_pool(device: i32, pool: u64) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    match guard.pools.get(&pool) {
        Some(entry) if entry.gpu == gpu => {
            guard.gpus[gpu].current_pool = pool;
            Ok(())
        }
        _ => Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool of device {device}")),
    }
}

/// `CUmemPoolProps` begins with allocation type, handle types, location type and location id.
pub unsafe fn pool_create(out: *mut u64, properties: *const [i32; 4]) -> Outcome {
    const PINNED: i32 = 1;
    const ON_DEVICE: i32 = 1;
    // SAFETY: the caller's promise.
    let [kind, handles, location, device] = unsafe { super::copy::read(properties) }?;
    let mut guard = state::lock()?;
    if kind != PINNED || location != ON_DEVICE {
        return Code::NOT_SUPPORTED.fail("memory pools outside devices");
    }
    if handles != 0 {
        return Code::NOT_SUPPORTED.fail("memory pools that can be shared with other processes");
    }
    let gpu = guard.gpu(device)?;
    let pool = guard.handle();
    guard.pools.insert(
        pool,
        Pool {
            gpu,
            default: false,
            attributes: Default::default(),
            used: 0,
            used_high: 0,
        },
    );
    put(out, pool)
}

pub unsafe fn pool_destroy(pool: u64) -> Outcome {
    let mut guard = state::lock()?;
    let Some(entry) = guard.pools.get(&pool) else {
        return Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool"));
    };
    if entry.default {
        return Code::INVALID_VALUE.fail("a default pool cannot be destroyed");
    }
    guard.pools.remove(&pool);
    for gpu in &mut guard.gpus {
        if gpu.current_pool == pool {
            gpu.current_pool = gpu.default_pool;
        }
    }
    Ok(())
}

/// `CUmemPool_attribute`: 1-3 reuse switches (32 bits), 4 release threshold, 5-8 reserved and used now and at most (64 bits).
pub unsafe fn pool_get(pool: u64, which: u32, out: *mut u8) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the value");
    }
    let guard = state::lock()?;
    let Some(entry) = guard.pools.get(&pool) else {
        return Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool"));
    };
    let set = entry.attributes.get(&which).copied();
    let (value, bytes) = match which {
        1..=3 => (set.unwrap_or(1), 4),
        4 => (set.unwrap_or(0), 8),
        5 | 7 => (entry.used, 8),
        6 | 8 => (entry.used_high, 8),
        _ => return Code::INVALID_VALUE.fail(format!("no pool attribute {which}")),
    };
    // SAFETY: the caller gives room for the attribute's type.
    unsafe { write_attribute(out, value, bytes) };
    Ok(())
}

pub unsafe fn pool_set(pool: u64, which: u32, value: *const u8) -> Outcome {
    if value.is_null() {
        return Code::INVALID_VALUE.fail("no value");
    }
    let mut guard = state::lock()?;
    let Some(entry) = guard.pools.get_mut(&pool) else {
        return Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool"));
    };
    match which {
        1..=3 => {
            // SAFETY: the attribute's type is int.
            let value = unsafe { value.cast::<u32>().read_unaligned() };
            entry.attributes.insert(which, value.into());
        }
        4 => {
            // SAFETY: the attribute's type is a 64-bit integer.
            let value = unsafe { value.cast::<u64>().read_unaligned() };
            entry.attributes.insert(which, value);
        }
        6 | 8 => entry.used_high = entry.used,
        _ => return Code::INVALID_VALUE.fail(format!("pool attribute {which} cannot be set")),
    }
    Ok(())
}

/// Nothing is held back, so there is nothing to trim.
pub unsafe fn pool_trim(pool: u64, _keep: usize) -> Outcome {
    match state::lock()?.pools.contains_key(&pool) {
        true => Ok(()),
        false => Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool")),
    }
}

/// `CUmemAccessDesc`: location type, location id, flags. Access for other devices opens the owner's memory to them.
pub unsafe fn pool_set_access(pool: u64, descriptions: *const [i32; 3], count: usize) -> Outcome {
    if descriptions.is_null() && count > 0 {
        return Code::INVALID_VALUE.fail("a null list");
    }
    let mut guard = state::lock()?;
    let Some(owner) = guard.pools.get(&pool).map(|pool| pool.gpu) else {
        return Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool"));
    };
    for index in 0..count {
        // SAFETY: the caller's list has `count` elements.
        let [_, device, flags] = unsafe { *descriptions.add(index) };
        let user = guard.gpu(device)?;
        if user != owner && flags != 0 {
            for context in guard.contexts.values_mut() {
                if context.gpu == user {
                    context.peers.insert(owner);
                }
            }
            guard.open_to_peer(owner, user);
        }
    }
    Ok(())
}

/// The flags that a location has: read and write for the owner.
pub unsafe fn pool_get_access(out: *mut u32, pool: u64, location: *const [i32; 2]) -> Outcome {
    // SAFETY: the caller's promise.
    let [_, device] = unsafe { super::copy::read(location) }?;
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let Some(owner) = guard.pools.get(&pool).map(|pool| pool.gpu) else {
        return Code::INVALID_VALUE.fail(format!("{pool:#x} is no memory pool"));
    };
    let open = gpu == owner
        || guard
            .contexts
            .values()
            .any(|context| context.gpu == gpu && context.peers.contains(&owner));
    put(out, if open { 3 } else { 0 })
}

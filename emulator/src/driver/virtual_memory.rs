//! Virtual memory management: ranges of addresses, memory without addresses, and mappings of the one into the other.
//!
//! A reservation (`cuMemAddressReserve`) is address space of the host that cannot be touched. Memory (`cuMemCreate`) is an anonymous file of
//! the host; mapping it (`cuMemMap`) maps the file there, so that one piece of memory may have several addresses. What the devices may use is
//! decided by their arenas: `cuMemSetAccess` enters the accessible parts of a reservation there, neighbours as one
//! range, because a tensor may lie across mappings that were added one by one. Everything else of the reservation is out of bounds, and a report
//! names the reservation.
//!
//! Memory can go to another process as a file descriptor. The checkers tell accesses apart by address: a race between two addresses of
//! the same memory is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::MetadataExt;

use super::error::{Code, Outcome};
use super::put;
use super::run;
use super::state::{self, Guard, Handle, State};

/// Sizes and addresses of mappings are multiples of this.
const GRANULARITY: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`
const PINNED: u32 = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`
const ON_DEVICE: u32 = 1;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`
const DESCRIPTOR: u32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`
const READ_WRITE: u32 = 3;
/// Begins the names of the files, which end in the number of the device.
const FILE_NAME: &str = "birdie-emulated-memory-";

/// `CUmemAllocationProp`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    pub kind: u32,
    pub handle_types: u32,
    pub location: u32,
    pub device: i32,
    pub windows: u64,
    pub compression: u8,
    pub direct: u8,
    pub usage: u16,
    pub reserved: [u8; 4],
}

/// `CUmemAccessDesc`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub location: u32,
    pub device: i32,
    pub flags: u32,
}

/// Memory without an address: `CUmemGenericAllocationHandle`.
pub struct Memory {
    file: File,
    pub gpu: usize,
    pub bytes: u64,
    pub properties: Properties,
    /// It is accounted on its device: not where another process made it.
    accounted: bool,
    /// References of the program to the handle. The memory lives on while it is mapped.
    references: u32,
    mappings: u32,
}

/// A range of addresses.
pub struct Reservation {
    bytes: u64,
    number: u64,
    mappings: BTreeMap<u64, Mapping>,
    /// What stands in the arenas: device and address.
    entered: Vec<(usize, u64)>,
}

/// Memory in a reservation.
pub struct Mapping {
    pub bytes: u64,
    pub memory: Handle,
    pub id: u64,
    access: BTreeSet<usize>,
}

impl State {
    /// The reservation that holds an address, and where it starts.
    pub fn reservation(&self, address: u64) -> Option<(u64, u64)> {
        let (&start, found) = self.reservations.range(..=address).next_back()?;
        (address - start < found.bytes).then_some((start, found.bytes))
    }

    /// The mapping that holds an address, and where it starts.
    pub fn mapping(&self, address: u64) -> Option<(u64, &Mapping)> {
        let (start, _) = self.reservation(address)?;
        let mappings = &self.reservations.get(&start)?.mappings;
        let (&at, found) = mappings.range(..=address).next_back()?;
        (address - at < found.bytes).then_some((at, found))
    }

    /// The memory of a handle that the program holds.
    fn held(&mut self, handle: Handle) -> Outcome<&mut Memory> {
        self.memories
            .get_mut(&handle)
            .filter(|memory| memory.references > 0)
            .ok_or_else(|| Code::INVALID_VALUE.because(format!("{handle:#x} is no memory handle")))
    }

    /// The reservation that holds a whole range.
    fn around(&mut self, what: &str, address: u64, bytes: u64) -> Outcome<&mut Reservation> {
        let found = self
            .reservations
            .range_mut(..=address)
            .next_back()
            .filter(|(start, found)| {
                let offset = address - **start;
                offset < found.bytes && bytes <= found.bytes - offset
            });
        match found {
            Some((_, found)) => Ok(found),
            None => Code::INVALID_VALUE.fail(format!(
                "{what}: {bytes} bytes at {address:#x} are not reserved by cuMemAddressReserve"
            )),
        }
    }

    /// Tells the arenas what of a reservation their devices may use.
    fn enter(&mut self, start: u64) {
        let State {
            reservations, gpus, ..
        } = self;
        let Some(found) = reservations.get_mut(&start) else {
            return;
        };
        for (gpu, address) in found.entered.drain(..) {
            gpus[gpu].device.memory.free(address);
        }
        for (gpu, entry) in gpus.iter().enumerate() {
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for (&at, mapping) in &found.mappings {
                if !mapping.access.contains(&gpu) {
                    continue;
                }
                match runs.last_mut() {
                    Some((first, bytes)) if *first + *bytes == at => *bytes += mapping.bytes,
                    _ => runs.push((at, mapping.bytes)),
                }
            }
            for (at, bytes) in runs {
                let name = format!(
                    "the memory mapped into cuMemAddressReserve #{}",
                    found.number
                );
                entry.device.memory.register_host(at, bytes, name);
                found.entered.push((gpu, at));
            }
        }
    }

    /// Memory that nobody holds and nothing maps is gone.
    fn drop_unused(&mut self, handle: Handle) {
        let unused = |memory: &Memory| memory.references == 0 && memory.mappings == 0;
        if self.memories.get(&handle).is_some_and(unused)
            && let Some(gone) = self.memories.remove(&handle)
            && gone.accounted
        {
            self.gpus[gone.gpu].device.memory.discharge(gone.bytes);
        }
    }
}

/// Waits for everything: what is pending may use the memory. A context that fails meanwhile tells so itself.
fn settle(mut guard: Guard) -> Outcome<Guard> {
    let contexts: Vec<Handle> = guard.contexts.keys().copied().collect();
    for context in contexts {
        guard = match run::finish_context(guard, context) {
            Ok(guard) => guard,
            Err(_) => state::lock()?,
        };
    }
    Ok(guard)
}

/// Makes a range untouchable: fresh address space at 0, or a range that was mapped.
fn untouchable(address: u64, bytes: u64) -> Outcome<u64> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: at an address of the kernel's choice, or over a mapping of ours.
    let made = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            bytes as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed,
            -1,
            0,
        )
    };
    if made == libc::MAP_FAILED {
        return Code::OUT_OF_MEMORY.fail(format!("no {bytes} bytes of address space"));
    }
    Ok(made as u64)
}

fn unmap(address: u64, bytes: u64) {
    // SAFETY: a range of ours that nothing uses.
    unsafe { libc::munmap(address as *mut libc::c_void, bytes as usize) };
}

pub unsafe fn reserve(out: *mut u64, bytes: usize, align: usize, hint: u64, flags: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the address");
    }
    let bytes = bytes as u64;
    if bytes == 0 || !bytes.is_multiple_of(PAGE) || !hint.is_multiple_of(PAGE) || flags != 0 {
        return Code::INVALID_VALUE.fail(format!(
            "{bytes} bytes at {hint:#x}: multiples of {PAGE} are wanted; flags {flags:#x}"
        ));
    }
    if align != 0 && !align.is_power_of_two() {
        return Code::INVALID_VALUE.fail(format!("alignment {align} is no power of two"));
    }
    let mut guard = state::lock()?;
    let align = (align as u64).max(GRANULARITY);
    let Some(room) = bytes.checked_add(align) else {
        return Code::OUT_OF_MEMORY.fail(format!("{bytes} bytes"));
    };
    // The hint may be ignored, and is.
    let whole = untouchable(0, room)?;
    let start = whole.next_multiple_of(align);
    for (from, to) in [(whole, start), (start + bytes, whole + room)] {
        if to > from {
            unmap(from, to - from);
        }
    }
    guard.reservations_made += 1;
    let number = guard.reservations_made;
    guard.reservations.insert(
        start,
        Reservation {
            bytes,
            number,
            mappings: BTreeMap::new(),
            entered: Vec::new(),
        },
    );
    put(out, start)
}

pub unsafe fn release_range(address: u64, bytes: usize) -> Outcome {
    let mut guard = state::lock()?;
    match guard.reservations.get(&address) {
        Some(found) if found.bytes != bytes as u64 => {
            Code::INVALID_VALUE.fail(format!("{bytes} bytes of a reservation of {}", found.bytes))
        }
        Some(found) if !found.mappings.is_empty() => {
            Code::INVALID_VALUE.fail("memory is mapped into the reservation")
        }
        Some(_) => {
            guard.reservations.remove(&address);
            unmap(address, bytes as u64);
            Ok(())
        }
        None => Code::INVALID_VALUE.fail(format!("{address:#x} is no reservation")),
    }
}

/// Reads and checks the properties of memory; the device.
unsafe fn read(guard: &mut Guard, properties: *const Properties) -> Outcome<(Properties, usize)> {
    // SAFETY: the caller's promise.
    let properties = unsafe { super::copy::read(properties) }?;
    if properties.kind != PINNED {
        return Code::INVALID_VALUE.fail(format!("memory of type {}", properties.kind));
    }
    match properties.location {
        ON_DEVICE => {}
        2 | 3 => return Code::NOT_SUPPORTED.fail("memory of the host cannot be mapped"),
        other => return Code::INVALID_VALUE.fail(format!("memory at a location of type {other}")),
    }
    if properties.handle_types & !DESCRIPTOR != 0 {
        return Code::NOT_SUPPORTED.fail(format!(
            "handles of types {:#x}: only file descriptors",
            properties.handle_types
        ));
    }
    let gpu = guard.gpu(properties.device)?;
    Ok((properties, gpu))
}

pub unsafe fn granularity(out: *mut usize, properties: *const Properties, option: u32) -> Outcome {
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    unsafe { read(&mut guard, properties) }?;
    if option > 1 {
        return Code::INVALID_VALUE.fail(format!("no granularity {option}"));
    }
    put(out, GRANULARITY as usize)
}

pub unsafe fn create(
    out: *mut u64,
    bytes: usize,
    properties: *const Properties,
    flags: u64,
) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the handle");
    }
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let (properties, gpu) = unsafe { read(&mut guard, properties) }?;
    let bytes = bytes as u64;
    if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) || flags != 0 {
        return Code::INVALID_VALUE.fail(format!(
            "{bytes} bytes, flags {flags:#x}: a multiple of {GRANULARITY} is wanted"
        ));
    }
    let place = &guard.gpus[gpu];
    if !place.device.memory.charge(bytes, place.memory) {
        return Code::OUT_OF_MEMORY.fail(format!(
            "{bytes} bytes do not fit: {} of {} bytes of device {gpu} are in use",
            place.device.memory.used(),
            place.memory
        ));
    }
    let Some(file) = anonymous_file(gpu, bytes) else {
        place.device.memory.discharge(bytes);
        return Code::OUT_OF_MEMORY.fail("the host gives no anonymous file");
    };
    let handle = guard.handle();
    guard.memories.insert(
        handle,
        Memory {
            file,
            gpu,
            bytes,
            properties,
            accounted: true,
            references: 1,
            mappings: 0,
        },
    );
    put(out, handle)
}

fn anonymous_file(gpu: usize, bytes: u64) -> Option<File> {
    let name = std::ffi::CString::new(format!("{FILE_NAME}{gpu}")).ok()?;
    // SAFETY: a name that ends in NUL.
    let descriptor = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return None;
    }
    // SAFETY: a descriptor that is open and ours.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes).ok()?;
    Some(file)
}

pub unsafe fn release(handle: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.held(handle)?.references -= 1;
    guard.drop_unused(handle);
    Ok(())
}

pub unsafe fn properties(out: *mut Properties, handle: u64) -> Outcome {
    let mut guard = state::lock()?;
    let properties = guard.held(handle)?.properties;
    put(out, properties)
}

pub unsafe fn retain(out: *mut u64, address: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the handle");
    }
    let mut guard = state::lock()?;
    let Some(handle) = guard.mapping(address).map(|(_, mapping)| mapping.memory) else {
        return Code::INVALID_VALUE.fail(format!("nothing is mapped at {address:#x}"));
    };
    if let Some(memory) = guard.memories.get_mut(&handle) {
        memory.references += 1;
    }
    put(out, handle)
}

pub unsafe fn map(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) -> Outcome {
    let bytes = bytes as u64;
    let mut guard = state::lock()?;
    let memory = guard.held(handle)?;
    if flags != 0 || offset != 0 {
        return Code::INVALID_VALUE.fail(format!("offset {offset} and flags {flags:#x} must be 0"));
    }
    if bytes == 0 || bytes > memory.bytes {
        let size = memory.bytes;
        return Code::INVALID_VALUE.fail(format!("{bytes} bytes of memory of {size}"));
    }
    if !address.is_multiple_of(GRANULARITY) || !bytes.is_multiple_of(GRANULARITY) {
        return Code::INVALID_VALUE.fail(format!(
            "{bytes} bytes at {address:#x}: multiples of {GRANULARITY} are wanted"
        ));
    }
    let descriptor = memory.file.as_raw_fd();
    let found = guard.around("cuMemMap", address, bytes)?;
    let before = found.mappings.range(..address + bytes).next_back();
    if before.is_some_and(|(&at, mapping)| at + mapping.bytes > address) {
        return Code::INVALID_VALUE.fail(format!(
            "{bytes} bytes at {address:#x} are mapped already, in part or as a whole"
        ));
    }
    // SAFETY: over a part of a reservation that is not mapped, so nothing uses it.
    let made = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            bytes as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            descriptor,
            0,
        )
    };
    if made == libc::MAP_FAILED {
        return Code::OUT_OF_MEMORY.fail("the host does not map the memory");
    }
    let id = guard.handle();
    guard.around("cuMemMap", address, bytes)?.mappings.insert(
        address,
        Mapping {
            bytes,
            memory: handle,
            id,
            access: BTreeSet::new(),
        },
    );
    guard.held(handle)?.mappings += 1;
    Ok(())
}

/// The addresses of the mappings that make up a range; an error where they do not.
fn whole_mappings(found: &Reservation, what: &str, address: u64, bytes: u64) -> Outcome<Vec<u64>> {
    let mut at = address;
    let mut out = Vec::new();
    while at < address + bytes {
        match found.mappings.get(&at) {
            Some(mapping) if mapping.bytes <= address + bytes - at => {
                out.push(at);
                at += mapping.bytes;
            }
            Some(mapping) => {
                return Code::INVALID_VALUE.fail(format!(
                    "{what}: the range ends inside of the {} bytes that are mapped at {at:#x}",
                    mapping.bytes
                ));
            }
            None => {
                return Code::INVALID_VALUE.fail(format!("{what}: no mapping starts at {at:#x}"));
            }
        }
    }
    Ok(out)
}

pub unsafe fn unmap_range(address: u64, bytes: usize) -> Outcome {
    let bytes = bytes as u64;
    let mut guard = state::lock()?;
    let found = guard.around("cuMemUnmap", address, bytes)?;
    if bytes == 0 {
        return Code::INVALID_VALUE.fail("0 bytes");
    }
    whole_mappings(found, "cuMemUnmap", address, bytes)?;
    let mut guard = settle(guard)?;
    let Some((start, _)) = guard.reservation(address) else {
        return Code::INVALID_VALUE.fail("the reservation was freed meanwhile");
    };
    let found = guard.around("cuMemUnmap", address, bytes)?;
    let gone = whole_mappings(found, "cuMemUnmap", address, bytes)?;
    let gone: Vec<Mapping> = gone
        .iter()
        .filter_map(|at| found.mappings.remove(at))
        .collect();
    guard.enter(start);
    untouchable(address, bytes)?;
    for mapping in gone {
        if let Some(memory) = guard.memories.get_mut(&mapping.memory) {
            memory.mappings -= 1;
        }
        guard.drop_unused(mapping.memory);
    }
    Ok(())
}

pub unsafe fn set_access(
    address: u64,
    bytes: usize,
    wanted: *const Access,
    count: usize,
) -> Outcome {
    let bytes = bytes as u64;
    if wanted.is_null() || count == 0 || bytes == 0 {
        return Code::INVALID_VALUE.fail(format!("{count} descriptions, {bytes} bytes"));
    }
    // SAFETY: the caller's list has `count` elements.
    let wanted = unsafe { std::slice::from_raw_parts(wanted, count) };
    let mut guard = state::lock()?;
    let mut changes = Vec::new();
    for access in wanted {
        if access.location != ON_DEVICE {
            return Code::NOT_SUPPORTED.fail("access of the host to mapped memory");
        }
        let gpu = guard.gpu(access.device)?;
        match access.flags {
            0 => changes.push((gpu, false)),
            READ_WRITE => changes.push((gpu, true)),
            1 => return Code::NOT_SUPPORTED.fail("access for reading only"),
            flags => return Code::INVALID_VALUE.fail(format!("access {flags:#x}")),
        }
    }
    let found = guard.around("cuMemSetAccess", address, bytes)?;
    whole_mappings(found, "cuMemSetAccess", address, bytes)?;
    if changes.iter().any(|&(_, open)| !open) {
        guard = settle(guard)?;
    }
    let Some((start, _)) = guard.reservation(address) else {
        return Code::INVALID_VALUE.fail("the reservation was freed meanwhile");
    };
    let found = guard.around("cuMemSetAccess", address, bytes)?;
    for at in whole_mappings(found, "cuMemSetAccess", address, bytes)? {
        let Some(mapping) = found.mappings.get_mut(&at) else {
            continue;
        };
        for &(gpu, open) in &changes {
            if open {
                mapping.access.insert(gpu);
            } else {
                mapping.access.remove(&gpu);
            }
        }
    }
    guard.enter(start);
    Ok(())
}

pub unsafe fn get_access(out: *mut u64, location: *const [i32; 2], address: u64) -> Outcome {
    // SAFETY: the caller's promise.
    let [kind, device] = unsafe { super::copy::read(location) }?;
    let mut guard = state::lock()?;
    if kind != ON_DEVICE as i32 {
        return Code::INVALID_VALUE.fail(format!("a location of type {kind}"));
    }
    let gpu = guard.gpu(device)?;
    match guard.mapping(address) {
        Some((_, mapping)) if mapping.access.contains(&gpu) => put(out, u64::from(READ_WRITE)),
        Some(_) => put(out, 0),
        None => Code::INVALID_VALUE.fail(format!("nothing is mapped at {address:#x}")),
    }
}

pub unsafe fn export(out: *mut i32, handle: u64, kind: u32, flags: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the descriptor");
    }
    let mut guard = state::lock()?;
    let memory = guard.held(handle)?;
    if flags != 0 || kind != DESCRIPTOR || memory.properties.handle_types & DESCRIPTOR == 0 {
        return Code::INVALID_VALUE.fail(format!(
            "a handle of type {kind}, flags {flags:#x}: memory that was created for types {:#x}",
            memory.properties.handle_types
        ));
    }
    match memory.file.try_clone() {
        Ok(file) => put(out, file.into_raw_fd()),
        Err(error) => Code::OUT_OF_MEMORY.fail(error.to_string()),
    }
}

/// The descriptor is the value of the pointer. It stays the caller's.
pub unsafe fn import(out: *mut u64, descriptor: u64, kind: u32) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the handle");
    }
    if kind != DESCRIPTOR {
        return Code::NOT_SUPPORTED.fail(format!("a handle of type {kind}"));
    }
    let foreign = || Code::INVALID_VALUE.because("the descriptor is no memory of a device");
    let descriptor = i32::try_from(descriptor as u32).map_err(|_| foreign())?;
    let name = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).map_err(|_| foreign())?;
    let device: i32 = name
        .to_str()
        .and_then(|name| {
            name.split_once(FILE_NAME)?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .ok_or_else(foreign)?;
    // SAFETY: dup only looks the descriptor up.
    let copy = unsafe { libc::dup(descriptor) };
    if copy < 0 {
        return Err(foreign());
    }
    // SAFETY: a descriptor that was made just now.
    let file = unsafe { File::from_raw_fd(copy) };
    let found = file.metadata().map_err(|_| foreign())?;
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let own = guard.memories.iter_mut().find(|(_, memory)| {
        let known = memory.file.metadata();
        known.is_ok_and(|known| (known.dev(), known.ino()) == (found.dev(), found.ino()))
    });
    if let Some((&handle, memory)) = own {
        memory.references += 1;
        return put(out, handle);
    }
    let handle = guard.handle();
    guard.memories.insert(
        handle,
        Memory {
            file,
            gpu,
            bytes: found.len(),
            properties: Properties {
                kind: PINNED,
                handle_types: DESCRIPTOR,
                location: ON_DEVICE,
                device,
                windows: 0,
                compression: 0,
                direct: 0,
                usage: 0,
                reserved: [0; 4],
            },
            accounted: false,
            references: 1,
            mappings: 0,
        },
    );
    put(out, handle)
}

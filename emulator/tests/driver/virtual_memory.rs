//! Reservations, memory without an address, mappings and access.

use birdie_emulator::driver::virtual_memory::{Access, Properties};

use crate::setup::{
    Context, INVALID_VALUE, OUT_OF_MEMORY, download, ffi, function, launch_add, module, upload,
};
use crate::{ok, refused};

const BLOCK: usize = 2 << 20;

fn on(device: i32) -> Properties {
    Properties {
        kind: 1,
        handle_types: 0,
        location: 1,
        device,
        windows: 0,
        compression: 0,
        direct: 0,
        usage: 0,
        reserved: [0; 4],
    }
}

fn reserve(blocks: usize) -> u64 {
    let mut address = 0;
    ok!(cuMemAddressReserve(&mut address, blocks * BLOCK, 0, 0, 0));
    address
}

fn create(blocks: usize) -> u64 {
    let mut handle = 0;
    ok!(cuMemCreate(&mut handle, blocks * BLOCK, &on(0), 0));
    handle
}

fn open(address: u64, blocks: usize, device: i32, flags: u32) -> u32 {
    let access = Access {
        location: 1,
        device,
        flags,
    };
    // SAFETY: one description.
    unsafe { ffi::cuMemSetAccess(address, blocks * BLOCK, &access, 1) }
}

fn used() -> usize {
    let (mut free, mut total) = (0, 0);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    total - free
}

#[test]
fn a_reservation_grows_by_mappings() {
    let _context = Context::on(1);
    let add = function(module(), c"add");
    let mut handles = [0; 2];
    let address = reserve(4);
    assert_eq!(address % BLOCK as u64, 0);
    for (index, handle) in handles.iter_mut().enumerate() {
        ok!(cuMemCreate(handle, BLOCK, &on(1), 0));
        let at = address + (index * BLOCK) as u64;
        ok!(cuMemMap(at, BLOCK, 0, *handle, 0));
        // Nothing is accessible before access is given.
        refused!(INVALID_VALUE, cuMemsetD8_v2(at, 1, 1));
        assert_eq!(open(at, 1, 1, 3), 0);
    }
    // Copies and kernels go across mappings.
    let middle = address + BLOCK as u64 - 64;
    let values: Vec<u32> = (0..32).collect();
    upload(middle, &values);
    assert_eq!(launch_add(add, 0, middle, 32, 5), 0);
    let expected: Vec<u32> = (5..37).collect();
    assert_eq!(download::<u32>(middle, 32), expected);
    refused!(INVALID_VALUE, cuMemsetD8_v2(address, 0, 2 * BLOCK + 1));
    // One piece of memory at two addresses.
    let alias = address + 3 * BLOCK as u64;
    ok!(cuMemMap(alias, BLOCK, 0, handles[0], 0));
    assert_eq!(open(alias, 1, 1, 3), 0);
    assert_eq!(
        download::<u32>(alias + BLOCK as u64 - 64, 16),
        expected[..16]
    );
    // What is unmapped is gone for kernels; the memory keeps its bytes.
    ok!(cuMemUnmap(address, BLOCK));
    refused!(INVALID_VALUE, cuMemsetD8_v2(address, 1, 1));
    ok!(cuMemMap(
        address + 2 * BLOCK as u64,
        BLOCK,
        0,
        handles[0],
        0
    ));
    assert_eq!(open(address + BLOCK as u64, 3, 1, 3), 0);
    assert_eq!(
        download::<u32>(address + 3 * BLOCK as u64 - 64, 16),
        expected[..16]
    );
    ok!(cuMemUnmap(address + BLOCK as u64, 3 * BLOCK));
    for handle in handles {
        ok!(cuMemRelease(handle));
    }
    ok!(cuMemAddressFree(address, 4 * BLOCK));
}

#[test]
fn a_kernel_outside_of_the_mappings_fails_with_the_name_of_the_reservation() {
    let _context = Context::new();
    let wild = function(module(), c"out_of_bounds");
    let address = reserve(2);
    let handle = create(1);
    ok!(cuMemMap(address, BLOCK, 0, handle, 0));
    assert_eq!(open(address, 1, 0, 3), 0);
    let launch = |at: u64| {
        let parameters: [*const u8; 1] = [(&raw const at).cast()];
        let none = std::ptr::null();
        // SAFETY: one parameter. The kernel writes a million bytes behind it.
        unsafe {
            assert_eq!(
                ffi::cuLaunchKernel(wild, 1, 1, 1, 1, 1, 1, 0, 0, parameters.as_ptr(), none),
                0
            );
            ffi::cuCtxSynchronize()
        }
    };
    assert_eq!(launch(address), 0);
    assert_eq!(launch(address + BLOCK as u64 - 1000), 700);
}

#[test]
fn memory_lives_while_it_is_held_or_mapped() {
    let _context = Context::on(1);
    let mut handle = 0;
    let address = reserve(1);
    let before = used();
    ok!(cuMemCreate(&mut handle, BLOCK, &on(1), 0));
    assert!(used() >= BLOCK);
    ok!(cuMemMap(address, BLOCK, 0, handle, 0));
    let mut same = 0;
    ok!(cuMemRetainAllocationHandle(&mut same, address + 5));
    assert_eq!(same, handle);
    ok!(cuMemRelease(handle));
    ok!(cuMemRelease(handle));
    refused!(INVALID_VALUE, cuMemRelease(handle));
    refused!(INVALID_VALUE, cuMemMap(address, BLOCK, 0, handle, 0));
    assert_eq!(open(address, 1, 1, 3), 0);
    upload(address, &[7u32]);
    assert_eq!(download::<u32>(address, 1), [7]);
    ok!(cuMemUnmap(address, BLOCK));
    refused!(
        INVALID_VALUE,
        cuMemRetainAllocationHandle(&mut same, address)
    );
    // Other tests allocate on the device too, but not as much at a time.
    assert!(used() < before + BLOCK);
    ok!(cuMemAddressFree(address, BLOCK));
}

#[test]
fn pointers_into_mappings_are_known() {
    let _context = Context::new();
    let address = reserve(3);
    let handle = create(1);
    ok!(cuMemMap(address + BLOCK as u64, BLOCK, 0, handle, 0));
    let ask = |which: u32, at: u64| {
        let mut value = 0u64;
        // SAFETY: room for any attribute.
        let code = unsafe { ffi::cuPointerGetAttribute((&raw mut value).cast(), which, at) };
        (code, value)
    };
    let inside = address + BLOCK as u64 + 100;
    assert_eq!(ask(2, inside), (0, 2), "memory of a device");
    assert_eq!(ask(11, inside), (0, address + BLOCK as u64));
    assert_eq!(ask(12, inside), (0, BLOCK as u64));
    assert_eq!(ask(13, inside), (0, 1));
    assert_eq!(ask(13, address), (0, 0), "reserved, and nothing is mapped");
    assert_eq!(ask(12, address), (0, 3 * BLOCK as u64));
    assert_eq!(ask(2, address).0, INVALID_VALUE);
    let (mut base, mut bytes) = (0, 0);
    ok!(cuMemGetAddressRange_v2(&mut base, &mut bytes, inside));
    assert_eq!((base, bytes), (address + BLOCK as u64, BLOCK));
    refused!(INVALID_VALUE, cuMemFree_v2(address + BLOCK as u64));
    ok!(cuMemUnmap(address + BLOCK as u64, BLOCK));
    ok!(cuMemRelease(handle));
    ok!(cuMemAddressFree(address, 3 * BLOCK));
}

#[test]
fn access_is_per_device() {
    let _context = Context::new();
    let address = reserve(1);
    let handle = create(1);
    ok!(cuMemMap(address, BLOCK, 0, handle, 0));
    let access = |device: i32| {
        let mut flags = 9;
        ok!(cuMemGetAccess(&mut flags, &[1, device], address));
        flags
    };
    assert_eq!((access(0), access(1)), (0, 0));
    assert_eq!(open(address, 1, 1, 3), 0);
    assert_eq!((access(0), access(1)), (0, 3));
    assert_eq!(open(address, 1, 0, 3), 0);
    assert_eq!(open(address, 1, 1, 0), 0);
    assert_eq!((access(0), access(1)), (3, 0));
    assert_eq!(open(address, 1, 0, 1), 801, "read-only memory");
    assert_eq!(open(address, 1, 0, 2), INVALID_VALUE);
    assert_eq!(open(address, 1, 7, 3), 101);
    let mut flags = 0;
    refused!(
        INVALID_VALUE,
        cuMemGetAccess(&mut flags, &[1, 0], address + BLOCK as u64)
    );
    ok!(cuMemUnmap(address, BLOCK));
    ok!(cuMemRelease(handle));
    ok!(cuMemAddressFree(address, BLOCK));
}

#[test]
fn wrong_arguments_are_refused() {
    let _context = Context::new();
    let (mut size, mut handle, mut address) = (0, 0, 0);
    ok!(cuMemGetAllocationGranularity(&mut size, &on(0), 0));
    assert_eq!(size, BLOCK);
    refused!(
        INVALID_VALUE,
        cuMemGetAllocationGranularity(&mut size, &on(0), 2)
    );
    refused!(101, cuMemGetAllocationGranularity(&mut size, &on(5), 0));
    refused!(
        INVALID_VALUE,
        cuMemGetAllocationGranularity(&mut size, std::ptr::null(), 0)
    );
    let pageable = Properties { kind: 0, ..on(0) };
    refused!(INVALID_VALUE, cuMemCreate(&mut handle, BLOCK, &pageable, 0));
    let of_the_host = Properties {
        location: 2,
        ..on(0)
    };
    refused!(801, cuMemCreate(&mut handle, BLOCK, &of_the_host, 0));
    let fabric = Properties {
        handle_types: 8,
        ..on(0)
    };
    refused!(801, cuMemCreate(&mut handle, BLOCK, &fabric, 0));
    refused!(
        INVALID_VALUE,
        cuMemCreate(&mut handle, BLOCK / 2, &on(0), 0)
    );
    refused!(INVALID_VALUE, cuMemCreate(&mut handle, 0, &on(0), 0));
    refused!(INVALID_VALUE, cuMemCreate(&mut handle, BLOCK, &on(0), 1));
    refused!(OUT_OF_MEMORY, cuMemCreate(&mut handle, 2 << 30, &on(0), 0));
    refused!(INVALID_VALUE, cuMemRelease(4711));
    refused!(INVALID_VALUE, cuMemAddressReserve(&mut address, 0, 0, 0, 0));
    refused!(
        INVALID_VALUE,
        cuMemAddressReserve(&mut address, 100, 0, 0, 0)
    );
    refused!(
        INVALID_VALUE,
        cuMemAddressReserve(&mut address, BLOCK, 3, 0, 0)
    );
    refused!(
        INVALID_VALUE,
        cuMemAddressReserve(&mut address, BLOCK, 0, 0, 1)
    );
    refused!(
        OUT_OF_MEMORY,
        cuMemAddressReserve(&mut address, !4095, 0, 0, 0)
    );
    let address = reserve(2);
    let handle = create(1);
    let next = address + BLOCK as u64;
    refused!(INVALID_VALUE, cuMemMap(address, BLOCK, 0, 4711, 0));
    refused!(INVALID_VALUE, cuMemMap(address, 2 * BLOCK, 0, handle, 0));
    refused!(INVALID_VALUE, cuMemMap(address, BLOCK, BLOCK, handle, 0));
    refused!(INVALID_VALUE, cuMemMap(address, BLOCK, 0, handle, 1));
    refused!(INVALID_VALUE, cuMemMap(address + 4096, BLOCK, 0, handle, 0));
    refused!(
        INVALID_VALUE,
        cuMemMap(next + BLOCK as u64, BLOCK, 0, handle, 0)
    );
    ok!(cuMemMap(address, BLOCK, 0, handle, 0));
    refused!(INVALID_VALUE, cuMemMap(address, BLOCK, 0, handle, 0));
    assert_eq!(
        open(next, 1, 0, 3),
        INVALID_VALUE,
        "nothing is mapped there"
    );
    assert_eq!(open(address, 2, 0, 3), INVALID_VALUE, "half is mapped");
    refused!(
        INVALID_VALUE,
        cuMemSetAccess(address, BLOCK, std::ptr::null(), 1)
    );
    refused!(INVALID_VALUE, cuMemUnmap(address, BLOCK / 2));
    refused!(INVALID_VALUE, cuMemUnmap(address, 2 * BLOCK));
    refused!(INVALID_VALUE, cuMemAddressFree(address, 2 * BLOCK));
    ok!(cuMemUnmap(address, BLOCK));
    refused!(INVALID_VALUE, cuMemAddressFree(address, BLOCK));
    refused!(INVALID_VALUE, cuMemAddressFree(next, BLOCK));
    ok!(cuMemAddressFree(address, 2 * BLOCK));
    refused!(INVALID_VALUE, cuMemAddressFree(address, 2 * BLOCK));
    ok!(cuMemRelease(handle));
}

#[test]
fn memory_goes_elsewhere_as_a_descriptor() {
    let _context = Context::new();
    let shared = Properties {
        handle_types: 1,
        ..on(0)
    };
    let (mut handle, mut descriptor, mut again) = (0, -1, 0);
    ok!(cuMemCreate(&mut handle, BLOCK, &shared, 0));
    ok!(cuMemExportToShareableHandle(&mut descriptor, handle, 1, 0));
    ok!(cuMemImportFromShareableHandle(
        &mut again,
        descriptor as u64,
        1
    ));
    assert_eq!(again, handle);
    let address = reserve(1);
    ok!(cuMemMap(address, BLOCK, 0, again, 0));
    let mut found = on(7);
    ok!(cuMemGetAllocationPropertiesFromHandle(&mut found, again));
    assert_eq!(found, shared);
    refused!(
        801,
        cuMemImportFromShareableHandle(&mut again, descriptor as u64, 8)
    );
    refused!(
        INVALID_VALUE,
        cuMemImportFromShareableHandle(&mut again, 0, 1)
    );
    refused!(
        INVALID_VALUE,
        cuMemExportToShareableHandle(&mut descriptor, handle, 8, 0)
    );
    let private = create(1);
    refused!(
        INVALID_VALUE,
        cuMemExportToShareableHandle(&mut descriptor, private, 1, 0)
    );
    ok!(cuMemRelease(private));
    ok!(cuMemUnmap(address, BLOCK));
    ok!(cuMemRelease(handle));
    ok!(cuMemRelease(handle));
    ok!(cuMemAddressFree(address, BLOCK));
}

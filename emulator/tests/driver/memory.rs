//! Allocations, pointers, copies, memsets.

use birdie_emulator::driver::types::{Memcpy2D, Memcpy3D};

use crate::setup::{
    Context, INVALID_VALUE, OUT_OF_MEMORY, alloc, apart, download, ffi, function, launch_add,
    module, stream, upload,
};
use crate::{ok, refused};

#[test]
fn allocations_are_accounted_and_freed_once() {
    let _context = Context::new();
    let (mut free, mut total) = (0, 0);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert!(free <= total);
    let address = apart(|| alloc(1000));
    assert_eq!(address % 512, 0);
    let (mut base, mut bytes) = (0, 0);
    ok!(cuMemGetAddressRange_v2(
        &mut base,
        &mut bytes,
        address + 999
    ));
    assert_eq!((base, bytes), (address, 1000));
    refused!(
        500,
        cuMemGetAddressRange_v2(&mut base, &mut bytes, address + 1000)
    );
    refused!(INVALID_VALUE, cuMemFree_v2(address + 4));
    ok!(cuMemFree_v2(address));
    refused!(INVALID_VALUE, cuMemFree_v2(address));
    ok!(cuMemFree_v2(0));
    let mut address = 0;
    refused!(INVALID_VALUE, cuMemAlloc_v2(&mut address, 0));
    refused!(OUT_OF_MEMORY, cuMemAlloc_v2(&mut address, 2 << 30));
    refused!(OUT_OF_MEMORY, cuMemAlloc_v2(&mut address, usize::MAX));
    refused!(INVALID_VALUE, cuMemAlloc_v2(std::ptr::null_mut(), 4));
}

#[test]
fn pitched_rows_are_aligned() {
    let _context = Context::new();
    let (mut address, mut pitch) = (0, 0);
    ok!(cuMemAllocPitch_v2(&mut address, &mut pitch, 100, 10, 4));
    assert_eq!(pitch, 512);
    refused!(
        INVALID_VALUE,
        cuMemAllocPitch_v2(&mut address, &mut pitch, 100, 10, 3)
    );
    refused!(
        INVALID_VALUE,
        cuMemAllocPitch_v2(&mut address, &mut pitch, usize::MAX, 10, 4)
    );
}

#[test]
fn bad_ranges_of_copies_are_refused() {
    let _context = Context::new();
    let address = apart(|| alloc(64));
    let mut host = [0u8; 128];
    let pointer = host.as_mut_ptr() as u64;
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(address, pointer, 65));
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(address + 60, pointer, 8));
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(0, pointer, 8));
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(pointer, pointer, 8));
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(address, 0, 8));
    refused!(INVALID_VALUE, cuMemcpyHtoD_v2(address, 0x1000, 8));
    refused!(INVALID_VALUE, cuMemcpyDtoH_v2(0x7fff_ffff_f000, address, 8));
    refused!(INVALID_VALUE, cuMemcpyDtoD_v2(address, address + 8, 64));
    ok!(cuMemcpyHtoD_v2(address, pointer, 0));
    ok!(cuMemFree_v2(address));
    refused!(INVALID_VALUE, cuMemcpyDtoH_v2(pointer, address, 8));
    refused!(INVALID_VALUE, cuMemsetD8_v2(address, 1, 8));
}

#[test]
fn memsets_of_all_widths() {
    let _context = Context::new();
    let address = alloc(64);
    ok!(cuMemsetD8_v2(address, 0x11, 64));
    ok!(cuMemsetD16_v2(address + 16, 0x2222, 8));
    ok!(cuMemsetD32_v2(address + 32, 0x3333_3333, 4));
    ok!(cuMemsetD2D8_v2(address + 48, 8, 0x44, 4, 2));
    let bytes: Vec<u8> = download(address, 64);
    let expected: Vec<u8> = (0..64)
        .map(|i| match i {
            16..32 => 0x22,
            32..48 => 0x33,
            48..52 | 56..60 => 0x44,
            _ => 0x11,
        })
        .collect();
    assert_eq!(bytes, expected);
    refused!(INVALID_VALUE, cuMemsetD32_v2(address + 2, 0, 1));
    refused!(INVALID_VALUE, cuMemsetD32_v2(address, 0, 17));
    refused!(INVALID_VALUE, cuMemsetD2D8_v2(address, 4, 0, 8, 2));
}

#[test]
fn a_memset_of_pinned_memory_is_waited_for() {
    let _context = Context::new();
    let mut pinned = 0;
    ok!(cuMemHostAlloc(&mut pinned, 4, 0));
    ok!(cuMemsetD32_v2(pinned, 7, 1));
    // SAFETY: just allocated.
    assert_eq!(unsafe { (pinned as *const u32).read_volatile() }, 7);
}

#[test]
fn boxes_are_copied_in_two_and_three_dimensions() {
    let _context = Context::new();
    let address = alloc(4 * 4 * 4);
    upload(address, &[0u8; 64]);
    let source: Vec<u8> = (0..64).collect();
    let mut box_2d = Memcpy2D {
        src_x: 1,
        src_y: 1,
        src_type: 1,
        src_host: source.as_ptr() as u64,
        src_device: 0,
        src_array: 0,
        src_pitch: 8,
        dst_x: 0,
        dst_y: 2,
        dst_type: 2,
        dst_host: 0,
        dst_device: address,
        dst_array: 0,
        dst_pitch: 4,
        width: 2,
        height: 3,
    };
    ok!(cuMemcpy2D_v2(&box_2d));
    let bytes: Vec<u8> = download(address, 64);
    assert_eq!(bytes[8..20], [9, 10, 0, 0, 17, 18, 0, 0, 25, 26, 0, 0]);
    box_2d.src_type = 3;
    refused!(801, cuMemcpy2D_v2(&box_2d));
    box_2d.src_type = 1;
    box_2d.dst_pitch = 1;
    refused!(INVALID_VALUE, cuMemcpy2D_v2(&box_2d));
    refused!(INVALID_VALUE, cuMemcpy2D_v2(std::ptr::null()));
    let mut out = vec![0u8; 8];
    let box_3d = Memcpy3D {
        src_x: 0,
        src_y: 0,
        src_z: 1,
        src_lod: 0,
        src_type: 4,
        src_host: 0,
        src_device: address,
        src_array: 0,
        src_context: 0,
        src_pitch: 4,
        src_height: 2,
        dst_x: 0,
        dst_y: 0,
        dst_z: 0,
        dst_lod: 0,
        dst_type: 1,
        dst_host: out.as_mut_ptr() as u64,
        dst_device: 0,
        dst_array: 0,
        dst_context: 0,
        dst_pitch: 2,
        dst_height: 2,
        width: 2,
        height: 2,
        depth: 2,
    };
    ok!(cuMemcpy3D_v2(&box_3d));
    assert_eq!(out, [9, 10, 17, 18, 25, 26, 0, 0]);
}

#[test]
fn pointers_are_described() {
    let context = Context::new();
    let device = alloc(256);
    let mut pinned = 0;
    ok!(cuMemHostAlloc(&mut pinned, 100, 0));
    let mut managed = 0;
    ok!(cuMemAllocManaged(&mut managed, 100, 1));
    let ask = |which: u32, address: u64| {
        let mut value = 0u64;
        ok!(cuPointerGetAttribute(
            (&raw mut value).cast(),
            which,
            address
        ));
        value
    };
    assert_eq!(ask(1, device), context.0);
    assert_eq!((ask(2, device), ask(2, pinned), ask(2, managed)), (2, 1, 2));
    assert_eq!((ask(8, device), ask(8, managed)), (0, 1));
    assert_eq!(ask(11, device + 9), device);
    assert_eq!(ask(12, device + 9), 256);
    let mut value = 0u64;
    let local = 0u32;
    let unknown = (&raw const local) as u64;
    refused!(
        INVALID_VALUE,
        cuPointerGetAttribute((&raw mut value).cast(), 2, unknown)
    );
    let (which, place) = ([2u32], [(&raw mut value).cast::<u8>()]);
    value = 77;
    ok!(cuPointerGetAttributes(
        1,
        which.as_ptr(),
        place.as_ptr(),
        unknown
    ));
    assert_eq!(value as u32, 0);
    ok!(cuMemFreeHost(pinned));
    refused!(INVALID_VALUE, cuMemFreeHost(pinned));
    ok!(cuMemFree_v2(managed));
}

#[test]
fn host_memory_is_registered_once() {
    let _context = Context::new();
    let mut buffer = vec![0u8; 8192];
    let address = buffer.as_mut_ptr() as u64;
    ok!(cuMemHostRegister_v2(address, 8192, 0));
    refused!(712, cuMemHostRegister_v2(address + 100, 10, 0));
    let mut device = 0;
    ok!(cuMemHostGetDevicePointer_v2(&mut device, address, 0));
    assert_eq!(device, address);
    ok!(cuMemHostUnregister(address));
    refused!(713, cuMemHostUnregister(address));
    refused!(INVALID_VALUE, cuMemHostRegister_v2(0, 10, 0));
    refused!(
        INVALID_VALUE,
        cuMemHostGetDevicePointer_v2(&mut device, address, 0)
    );
}

#[test]
fn pools_count_what_they_give() {
    let _context = Context::new();
    let stream = stream();
    let properties = [1, 0, 1, 0];
    let mut pool = 0;
    ok!(cuMemPoolCreate(&mut pool, &properties));
    let used = || {
        let mut used = 0u64;
        ok!(cuMemPoolGetAttribute(pool, 7, (&raw mut used).cast()));
        used
    };
    let address = apart(|| {
        let mut address = 0;
        ok!(cuMemAllocFromPoolAsync(&mut address, 4096, pool, stream));
        address
    });
    assert_eq!(used(), 4096);
    ok!(cuMemsetD8Async(address, 1, 4096, stream));
    ok!(cuMemFreeAsync(address, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(used(), 0);
    refused!(INVALID_VALUE, cuMemFreeAsync(address, stream));
    ok!(cuMemPoolDestroy(pool));
    refused!(INVALID_VALUE, cuMemPoolDestroy(pool));
    let mut default = 0;
    ok!(cuDeviceGetDefaultMemPool(&mut default, 0));
    refused!(INVALID_VALUE, cuMemPoolDestroy(default));
}

#[test]
fn memory_moves_between_devices() {
    let first = Context::on(0);
    let source = alloc(16);
    upload(source, &[1u32, 2, 3, 4]);
    let second = Context::on(1);
    let target = alloc(16);
    ok!(cuMemcpyPeer(target, second.0, source, first.0, 16));
    assert_eq!(download::<u32>(target, 4), [1, 2, 3, 4]);
    refused!(201, cuMemcpyPeer(target, 5, source, first.0, 16));
}

/// What `add` of 1 to 100 words at the address ends with, in a context of its own.
fn reads_defined(prepare: impl FnOnce() -> u64) -> bool {
    let _context = Context::new();
    let address = prepare();
    let add = function(module(), c"add");
    assert_eq!(launch_add(add, 0, address, 100, 1), 0);
    // SAFETY: no arguments.
    match unsafe { ffi::cuCtxSynchronize() } {
        0 => true,
        719 => false,
        other => panic!("code {other}"),
    }
}

#[test]
fn fresh_memory_is_undefined_until_something_is_written() {
    assert!(!reads_defined(|| alloc(400)), "never written");
    assert!(reads_defined(|| {
        let a = alloc(400);
        upload(a, &[1u32; 100]);
        a
    }));
    assert!(!reads_defined(|| {
        let a = alloc(400);
        upload(a, &[1u32; 99]);
        a
    }));
    for bytes in [400, 1 << 20] {
        assert!(reads_defined(|| {
            let a = alloc(bytes);
            ok!(cuMemsetD8_v2(a, 0, bytes));
            a
        }));
    }
    // A copy has what its source has.
    for defined in [true, false] {
        let copied = reads_defined(|| {
            let [a, b] = [alloc(400), alloc(400)];
            if defined {
                upload(a, &[1u32; 100]);
            }
            ok!(cuMemcpyDtoD_v2(b, a, 400));
            b
        });
        assert_eq!(copied, defined);
    }
    // Memory that is given out again is fresh.
    assert!(!reads_defined(|| {
        let a = alloc(4096);
        upload(a, &[1u32; 1024]);
        ok!(cuMemFree_v2(a));
        alloc(4096)
    }));
    assert!(!reads_defined(|| {
        let mut a = 0;
        ok!(cuMemAllocAsync(&mut a, 400, 0));
        a
    }));
    // The host may write managed memory at any time.
    assert!(reads_defined(|| {
        let mut a = 0;
        ok!(cuMemAllocManaged(&mut a, 400, 1));
        a
    }));
}

#[test]
fn what_kernels_write_is_defined_also_for_peers() {
    let second = Context::on(1);
    let there = alloc(400);
    let first = Context::new();
    let here = alloc(400);
    upload(here, &[5u32; 100]);
    let add = function(module(), c"add");
    assert_eq!(launch_add(add, 0, here, 100, 1), 0);
    ok!(cuCtxSynchronize());
    ok!(cuMemcpyPeer(there, second.0, here, first.0, 400));
    ok!(cuCtxSetCurrent(second.0));
    let add = function(module(), c"add");
    assert_eq!(launch_add(add, 0, there, 100, 1), 0);
    ok!(cuCtxSynchronize());
    assert_eq!(download::<u32>(there, 100), [7; 100]);
    ok!(cuCtxSetCurrent(first.0));
}

/// A copy between contexts follows what is pending in that of its destination, in which nothing waits for it otherwise.
#[test]
fn copies_between_devices_wait_for_both() {
    for three_dimensional in [false, true] {
        let second = Context::on(1);
        let there = alloc(400);
        upload(there, &[100u32; 100]);
        let first = Context::new();
        let here = alloc(400);
        upload(here, &[5u32; 100]);
        ok!(cuCtxSetCurrent(second.0));
        let (pending, add) = (stream(), function(module(), c"add"));
        for _ in 0..4 {
            assert_eq!(launch_add(add, pending, there, 100, 1), 0);
        }
        ok!(cuCtxSetCurrent(first.0));
        if three_dimensional {
            let copy = Memcpy3D {
                src_type: 2,
                src_device: here,
                src_context: first.0,
                dst_type: 2,
                dst_device: there,
                dst_context: second.0,
                width: 400,
                height: 1,
                depth: 1,
                ..Memcpy3D::default()
            };
            ok!(cuMemcpy3DPeer(&copy));
        } else {
            ok!(cuMemcpyPeer(there, second.0, here, first.0, 400));
        }
        ok!(cuCtxSetCurrent(second.0));
        ok!(cuCtxSynchronize());
        assert_eq!(download::<u32>(there, 100), [5; 100], "{three_dimensional}");
    }
}

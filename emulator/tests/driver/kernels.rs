//! Launches: parameters, limits, faults.

use birdie_emulator::driver::types::{LaunchAttribute, LaunchConfigEx};

use crate::setup::{
    Context, INVALID_HANDLE, INVALID_VALUE, alloc, download, ffi, function, launch_add, module,
    stream, upload,
};
use crate::{ok, refused};

#[test]
fn a_kernel_takes_its_parameters_either_way() {
    let _context = Context::new();
    let add = function(module(), c"add");
    let device = alloc(400);
    upload(device, &[1u32; 100]);
    assert_eq!(launch_add(add, 0, device, 100, 2), 0);
    let mut packed = device.to_le_bytes().to_vec();
    packed.extend(100u32.to_le_bytes());
    packed.extend(3u32.to_le_bytes());
    let size = packed.len();
    let extra: [*const u8; 5] = [
        std::ptr::without_provenance(1),
        packed.as_ptr(),
        std::ptr::without_provenance(2),
        (&raw const size).cast(),
        std::ptr::null(),
    ];
    let none = std::ptr::null();
    ok!(cuLaunchKernel(
        add,
        2,
        1,
        1,
        64,
        1,
        1,
        0,
        0,
        none,
        extra.as_ptr()
    ));
    assert_eq!(download::<u32>(device, 100), [6; 100]);
    let short = 8usize;
    let extra = [
        extra[0],
        extra[1],
        extra[2],
        (&raw const short).cast(),
        extra[4],
    ];
    refused!(
        INVALID_VALUE,
        cuLaunchKernel(add, 2, 1, 1, 64, 1, 1, 0, 0, none, extra.as_ptr())
    );
    refused!(
        INVALID_VALUE,
        cuLaunchKernel(add, 2, 1, 1, 64, 1, 1, 0, 0, none, none)
    );
    let missing: [*const u8; 3] = [std::ptr::null(); 3];
    refused!(
        INVALID_VALUE,
        cuLaunchKernel(add, 2, 1, 1, 64, 1, 1, 0, 0, missing.as_ptr(), none)
    );
}

#[test]
fn limits_of_a_launch_are_kept() {
    let _context = Context::new();
    let fail = function(module(), c"fail");
    let launch = |grid: [u32; 3], block: [u32; 3], shared: u32| {
        let none = std::ptr::null();
        // SAFETY: the kernel has no parameters.
        unsafe {
            ffi::cuLaunchKernel(
                fail, grid[0], grid[1], grid[2], block[0], block[1], block[2], shared, 0, none,
                none,
            )
        }
    };
    assert_eq!(launch([0, 1, 1], [1, 1, 1], 0), INVALID_VALUE);
    assert_eq!(launch([1, 1, 1], [0, 1, 1], 0), INVALID_VALUE);
    assert_eq!(launch([1, 65_536, 1], [1, 1, 1], 0), INVALID_VALUE);
    assert_eq!(launch([1, 1, 1], [1025, 1, 1], 0), INVALID_VALUE);
    assert_eq!(launch([1, 1, 1], [1, 1, 65], 0), INVALID_VALUE);
    assert_eq!(launch([1, 1, 1], [512, 3, 1], 0), INVALID_VALUE);
    assert_eq!(launch([1, 1, 1], [1, 1, 1], 49_153), INVALID_VALUE);
    refused!(INVALID_VALUE, cuFuncSetAttribute(fail, 8, 232_449));
    refused!(INVALID_VALUE, cuFuncSetAttribute(fail, 8, -1));
    ok!(cuFuncSetAttribute(fail, 8, 232_448));
    assert_eq!(launch([1, 1, 1], [1, 1, 1], 232_449), INVALID_VALUE);
    refused!(INVALID_HANDLE, cuFuncSetAttribute(12_345, 8, 0));
    let mut blocks = 0;
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
        &mut blocks,
        fail,
        1024,
        0
    ));
    assert_eq!(blocks, 2);
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
        &mut blocks,
        fail,
        128,
        200 << 10
    ));
    assert_eq!(blocks, 1);
    refused!(
        720,
        cuLaunchCooperativeKernel(fail, 100_000, 1, 1, 1024, 1, 1, 0, 0, std::ptr::null())
    );
}

#[test]
fn clusters_come_as_an_attribute() {
    let _context = Context::new();
    let add = function(module(), c"add");
    let device = alloc(4 * 512);
    upload(device, &[0u32; 512]);
    let launch = |blocks: u32, cluster: u32| {
        let mut value = [0u32; 16];
        value[..3].copy_from_slice(&[cluster, 1, 1]);
        let attributes = [
            LaunchAttribute {
                id: 4,
                pad: 0,
                value,
            },
            LaunchAttribute {
                id: 6,
                pad: 0,
                value: [1; 16],
            },
        ];
        let config = LaunchConfigEx {
            grid: [blocks, 1, 1],
            block: [64, 1, 1],
            shared: 0,
            stream: 0,
            attributes: attributes.as_ptr(),
            count: 2,
        };
        let (count, value) = (512u32, 1u32);
        let parameters: [*const u8; 3] = [
            (&raw const device).cast(),
            (&raw const count).cast(),
            (&raw const value).cast(),
        ];
        // SAFETY: three parameters of the sizes that the kernel has.
        unsafe { ffi::cuLaunchKernelEx(&config, add, parameters.as_ptr(), std::ptr::null()) }
    };
    assert_eq!(launch(8, 4), 0);
    assert_eq!(download::<u32>(device, 512), [1; 512]);
    assert_ne!(launch(8, 3), 0, "8 blocks are no multiple of 3");
    assert_eq!(launch(16, 16), 912, "beyond the portable size");
    ok!(cuFuncSetAttribute(add, 14, 1));
    assert_eq!(launch(16, 16), 0);
    assert_eq!(launch(32, 32), 912);
    refused!(
        INVALID_VALUE,
        cuLaunchKernelEx(std::ptr::null(), add, std::ptr::null(), std::ptr::null())
    );
}

/// Of four SMs, which are one GPC, each holds two blocks of 1024 threads, one with so much shared memory, and none with more than there is.
#[test]
fn clusters_that_run_at_once_are_told() {
    let _context = Context::new();
    let fail = function(module(), c"fail");
    let large =
        [(1, 4), (2, 2), (4, 1), (8, 1)].map(|(cluster, at_once)| (cluster, 120 << 10, at_once));
    let small =
        [(1, 8), (2, 4), (3, 2), (4, 2), (8, 1)].map(|(cluster, at_once)| (cluster, 0, at_once));
    for (cluster, shared, at_once) in small.into_iter().chain(large).chain([(1, 300 << 10, 0)]) {
        let mut value = [0u32; 16];
        value[..3].copy_from_slice(&[cluster, 1, 1]);
        let attribute = LaunchAttribute {
            id: 4,
            pad: 0,
            value,
        };
        let config = LaunchConfigEx {
            grid: [cluster, 1, 1],
            block: [1024, 1, 1],
            shared,
            stream: 0,
            attributes: &raw const attribute,
            count: 1,
        };
        let mut clusters = -1;
        ok!(cuOccupancyMaxActiveClusters(&mut clusters, fail, &config));
        assert_eq!(clusters, at_once, "clusters of {cluster}, {shared} bytes");
    }
}

#[test]
fn a_fault_is_found_later_and_stays() {
    let context = Context::new();
    let wild = function(module(), c"out_of_bounds");
    let (stream, device) = (stream(), alloc(16));
    let parameters: [*const u8; 1] = [(&raw const device).cast()];
    ok!(cuLaunchKernel(
        wild,
        1,
        1,
        1,
        1,
        1,
        1,
        0,
        stream,
        parameters.as_ptr(),
        std::ptr::null()
    ));
    refused!(700, cuStreamSynchronize(stream));
    let mut address = 0;
    refused!(700, cuMemAlloc_v2(&mut address, 4));
    refused!(700, cuCtxSynchronize());
    refused!(700, cuMemFree_v2(device));
    let mut current = 0;
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, context.0);
    // Another context is unharmed.
    let _other = Context::new();
    alloc(4);
}

#[test]
fn a_trap_is_a_launch_failure() {
    let _context = Context::new();
    let fail = function(module(), c"fail");
    let none = std::ptr::null();
    ok!(cuLaunchKernel(fail, 1, 1, 1, 1, 1, 1, 0, 0, none, none));
    refused!(719, cuCtxSynchronize());
}

#[test]
fn function_stream_and_context_belong_together() {
    let _first = Context::new();
    let add = function(module(), c"add");
    let _second = Context::new();
    let device = alloc(4);
    assert_eq!(launch_add(add, 0, device, 1, 1), INVALID_HANDLE);
    assert_eq!(launch_add(4711, 0, device, 1, 1), INVALID_HANDLE);
}

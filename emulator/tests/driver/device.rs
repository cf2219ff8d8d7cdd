//! Devices, contexts, errors, functions by name.

use std::ffi::{CStr, c_char, c_void};

use birdie_emulator::driver::{symbol, unsupported};

use crate::setup::{Context, INVALID_VALUE, ffi};
use crate::{ok, refused};

#[test]
fn the_device_is_an_h100() {
    let _context = Context::new();
    let (mut count, mut value, mut bytes) = (0, 0, 0);
    ok!(cuDeviceGetCount(&mut count));
    assert_eq!(count, 2);
    for (attribute, expected) in [
        (75, 9),
        (76, 0),
        (10, 32),
        (97, 232_448),
        (120, 1),
        (38, 52_428_800),
    ] {
        ok!(cuDeviceGetAttribute(&mut value, attribute, 0));
        assert_eq!(value, expected, "attribute {attribute}");
    }
    for attribute in 1..=147 {
        ok!(cuDeviceGetAttribute(&mut value, attribute, 1));
    }
    refused!(INVALID_VALUE, cuDeviceGetAttribute(&mut value, 0, 0));
    refused!(INVALID_VALUE, cuDeviceGetAttribute(&mut value, 148, 0));
    refused!(
        INVALID_VALUE,
        cuDeviceGetAttribute(std::ptr::null_mut(), 1, 0)
    );
    refused!(101, cuDeviceGetAttribute(&mut value, 1, 2));
    refused!(101, cuDeviceGet(&mut value, -1));
    ok!(cuDeviceTotalMem_v2(&mut bytes, 0));
    assert_eq!(bytes, 1 << 30);
    let mut name = [0 as c_char; 8];
    ok!(cuDeviceGetName(name.as_mut_ptr(), 8, 0));
    // SAFETY: the driver ends the text with NUL within the 8 bytes.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"NVIDIA ");
    let mut id = [0 as c_char; 16];
    ok!(cuDeviceGetPCIBusId(id.as_mut_ptr(), 16, 1));
    ok!(cuDeviceGetByPCIBusId(&mut value, id.as_ptr()));
    assert_eq!(value, 1);
}

#[test]
fn codes_have_names_and_sentences() {
    let mut text = std::ptr::null();
    ok!(cuGetErrorName(700, &mut text));
    // SAFETY: a static string.
    assert_eq!(
        unsafe { CStr::from_ptr(text) },
        c"CUDA_ERROR_ILLEGAL_ADDRESS"
    );
    ok!(cuGetErrorString(2, &mut text));
    // SAFETY: a static string.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"out of memory");
    refused!(INVALID_VALUE, cuGetErrorName(12_345, &mut text));
    assert!(text.is_null());
}

#[test]
fn contexts_stack_per_thread() {
    let first = Context::new();
    let second = Context::on(1);
    let (mut current, mut device) = (0, -1);
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, second.0);
    ok!(cuCtxGetDevice(&mut device));
    assert_eq!(device, 1);
    ok!(cuCtxPopCurrent_v2(&mut current));
    assert_eq!(current, second.0);
    ok!(cuCtxGetCurrent(&mut current));
    assert_eq!(current, first.0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut current, mut device) = (1, 0);
            ok!(cuCtxGetCurrent(&mut current));
            assert_eq!(current, 0, "contexts are current per thread");
            refused!(201, cuCtxGetDevice(&mut device));
            refused!(201, cuCtxPopCurrent_v2(&mut current));
            refused!(201, cuCtxPushCurrent_v2(0xdead_0000));
        });
    });
    let third = Context::new();
    ok!(cuCtxPushCurrent_v2(first.0));
    ok!(cuCtxDestroy_v2(third.0));
    ok!(cuCtxPopCurrent_v2(&mut current));
    refused!(709, cuCtxGetDevice(&mut device));
    ok!(cuCtxPopCurrent_v2(&mut current));
    std::mem::forget(third);
}

#[test]
fn the_primary_context_is_counted() {
    let _context = Context::new();
    let (mut first, mut second, mut flags, mut active) = (0, 0, 0, 0);
    ok!(cuDevicePrimaryCtxRetain(&mut first, 1));
    ok!(cuDevicePrimaryCtxRetain(&mut second, 1));
    assert_eq!(first, second);
    refused!(201, cuCtxDestroy_v2(first));
    ok!(cuDevicePrimaryCtxRelease_v2(1));
    ok!(cuDevicePrimaryCtxGetState(1, &mut flags, &mut active));
    assert_eq!(active, 1);
    ok!(cuDevicePrimaryCtxRelease_v2(1));
    ok!(cuDevicePrimaryCtxGetState(1, &mut flags, &mut active));
    assert_eq!(active, 0);
    refused!(201, cuDevicePrimaryCtxRelease_v2(1));
    refused!(201, cuCtxPushCurrent_v2(first));
}

#[test]
fn limits_are_kept_and_unknown_ones_refused() {
    let _context = Context::new();
    let mut value = 0;
    ok!(cuCtxSetLimit(0, 4096));
    ok!(cuCtxGetLimit(&mut value, 0));
    assert_eq!(value, 4096);
    refused!(215, cuCtxGetLimit(&mut value, 99));
    refused!(INVALID_VALUE, cuCtxGetLimit(std::ptr::null_mut(), 0));
}

#[test]
fn functions_are_found_by_name_and_version() {
    let find = |name: &CStr, version: i32, flags: u64| {
        let (mut address, mut status) = (std::ptr::null(), 9);
        ok!(cuGetProcAddress_v2(
            name.as_ptr(),
            &mut address,
            version,
            flags,
            &mut status
        ));
        (address, status)
    };
    let named = |name: &str| symbol(name).unwrap();
    assert_eq!(find(c"cuMemAlloc", 12_000, 0), (named("cuMemAlloc_v2"), 0));
    assert_eq!(
        find(c"cuGraphInstantiate", 12_000, 0).0,
        named("cuGraphInstantiateWithFlags")
    );
    assert_eq!(
        find(c"cuGraphInstantiate", 11_000, 0).0,
        named("cuGraphInstantiate_v2")
    );
    assert_eq!(
        find(c"cuLaunchKernel", 12_000, 2).0,
        named("cuLaunchKernel_ptsz")
    );
    assert_eq!(
        find(c"cuMemcpyHtoD", 12_000, 2).0,
        named("cuMemcpyHtoD_v2_ptds")
    );
    assert_eq!(find(c"cuNoSuchFunction", 12_000, 0), (std::ptr::null(), 1));
    let mut address: *const c_void = std::ptr::null();
    refused!(
        500,
        cuGetProcAddress(c"cuNoSuchFunction".as_ptr(), &mut address, 12_000, 0)
    );
    refused!(
        INVALID_VALUE,
        cuGetProcAddress(std::ptr::null(), &mut address, 12_000, 0)
    );
}

#[test]
fn what_is_not_supported_says_so_and_does_nothing() {
    assert_eq!(
        symbol("cuTexObjectCreate"),
        unsupported("cuTexObjectCreate")
    );
    assert!(symbol("cuTexObjectCreate").is_some());
    refused!(801, cuTexObjectCreate());
    assert!(symbol("cuInvented").is_none());
    assert!(unsupported("cuInit").is_none());
}

#[test]
fn peers_open_and_close() {
    let first = Context::on(0);
    let second = Context::on(1);
    let mut value = 0;
    ok!(cuDeviceCanAccessPeer(&mut value, 0, 1));
    assert_eq!(value, 1);
    ok!(cuDeviceCanAccessPeer(&mut value, 0, 0));
    assert_eq!(value, 0);
    ok!(cuCtxEnablePeerAccess(first.0, 0));
    refused!(704, cuCtxEnablePeerAccess(first.0, 0));
    ok!(cuCtxDisablePeerAccess(first.0));
    refused!(705, cuCtxDisablePeerAccess(first.0));
    refused!(201, cuCtxEnablePeerAccess(second.0, 0));
}

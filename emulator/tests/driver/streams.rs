//! Streams and events: what is ordered is in order, what is not may happen either way, nothing happens before it is waited for.

use std::collections::HashSet;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::setup::{
    Context, INVALID_HANDLE, INVALID_VALUE, NOT_READY, alloc, download, event, ffi, stream, upload,
};
use crate::{ok, refused};

fn pinned(bytes: usize) -> u64 {
    let mut address = 0;
    ok!(cuMemHostAlloc(&mut address, bytes, 0));
    address
}

/// Reads pinned memory.
fn look(address: u64) -> u32 {
    // SAFETY: the tests keep the memory allocated while they look.
    unsafe { (address as *const u32).read_volatile() }
}

#[test]
fn pinned_memory_is_written_when_the_stream_gets_there_and_not_before() {
    let _context = Context::new();
    let (stream, host, device) = (stream(), pinned(4), alloc(4));
    upload(device, &[5u32]);
    ok!(cuMemcpyDtoHAsync_v2(host, device, 4, stream));
    assert_eq!(look(host), 0, "nobody has waited");
    ok!(cuStreamSynchronize(stream));
    assert_eq!(look(host), 5);
}

#[test]
fn pageable_memory_is_read_at_once_and_pinned_memory_late() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(8));
    let mut pageable = 1u32;
    let pinned = pinned(4);
    // SAFETY: just allocated.
    unsafe { (pinned as *mut u32).write(1) };
    ok!(cuMemcpyHtoDAsync_v2(
        device,
        (&raw const pageable) as u64,
        4,
        stream
    ));
    ok!(cuMemcpyHtoDAsync_v2(device + 4, pinned, 4, stream));
    // SAFETY: the plain write of a program that forgot to wait.
    unsafe {
        (&raw mut pageable).write_volatile(2);
        (pinned as *mut u32).write(2);
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(device, 2), [1, 2]);
}

#[test]
fn unordered_streams_happen_in_either_order() {
    let _context = Context::new();
    let device = alloc(4);
    let mut seen = HashSet::new();
    for _ in 0..64 {
        let (first, second) = (stream(), stream());
        ok!(cuMemsetD32Async(device, 1, 1, first));
        ok!(cuMemsetD32Async(device, 2, 1, second));
        ok!(cuCtxSynchronize());
        seen.insert(download::<u32>(device, 1)[0]);
        ok!(cuStreamDestroy_v2(first));
        ok!(cuStreamDestroy_v2(second));
    }
    assert_eq!(seen, HashSet::from([1, 2]));
}

#[test]
fn an_event_orders_two_streams() {
    let _context = Context::new();
    let device = alloc(4);
    for _ in 0..64 {
        let (first, second, event) = (stream(), stream(), event());
        ok!(cuMemsetD32Async(device, 1, 1, first));
        ok!(cuEventRecord(event, first));
        ok!(cuStreamWaitEvent(second, event, 0));
        ok!(cuMemsetD32Async(device, 2, 1, second));
        ok!(cuStreamSynchronize(second));
        assert_eq!(download::<u32>(device, 1), [2]);
    }
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let _context = Context::new();
    let device = alloc(4);
    for _ in 0..32 {
        let mut blocking = 0;
        ok!(cuStreamCreate(&mut blocking, 0));
        ok!(cuMemsetD32Async(device, 1, 1, blocking));
        ok!(cuMemsetD32_v2(device, 2, 1));
        ok!(cuMemsetD32Async(device, 3, 1, blocking));
        ok!(cuStreamDestroy_v2(blocking));
        assert_eq!(download::<u32>(device, 1), [3]);
    }
}

#[test]
fn polling_gets_there() {
    let _context = Context::new();
    let (stream, event, device) = (stream(), event(), alloc(4));
    ok!(cuEventQuery(event));
    for _ in 0..8 {
        ok!(cuMemsetD32Async(device, 1, 1, stream));
    }
    ok!(cuEventRecord(event, stream));
    refused!(NOT_READY, cuEventQuery(event));
    let mut polls = 0;
    // SAFETY: a handle of ours.
    while unsafe { ffi::cuStreamQuery(stream) } == NOT_READY {
        polls += 1;
        assert!(polls < 100);
    }
    ok!(cuEventQuery(event));
}

#[test]
fn events_measure_time() {
    let _context = Context::new();
    let (stream, start, end, device) = (stream(), event(), event(), alloc(1 << 20));
    let mut ms = -1.0;
    refused!(INVALID_HANDLE, cuEventElapsedTime(&mut ms, start, end));
    ok!(cuEventRecord(start, stream));
    ok!(cuMemsetD8Async(device, 1, 1 << 20, stream));
    ok!(cuEventRecord(end, stream));
    refused!(NOT_READY, cuEventElapsedTime(&mut ms, start, end));
    ok!(cuEventSynchronize(end));
    ok!(cuEventElapsedTime(&mut ms, start, end));
    assert!(ms > 0.0);
    let mut untimed = 0;
    ok!(cuEventCreate(&mut untimed, 2));
    ok!(cuEventRecord(untimed, stream));
    refused!(INVALID_HANDLE, cuEventElapsedTime(&mut ms, start, untimed));
}

#[test]
fn host_functions_run_in_order_and_may_not_call_the_driver() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn count(data: *mut c_void) {
        let mut address = 0;
        refused!(800, cuMemAlloc_v2(&mut address, 4));
        CALLS.fetch_add(data as u32, Ordering::Relaxed);
    }
    let _context = Context::new();
    let stream = stream();
    ok!(cuLaunchHostFunc(stream, Some(count), 5));
    assert_eq!(CALLS.load(Ordering::Relaxed), 0, "nobody has waited");
    ok!(cuStreamSynchronize(stream));
    assert_eq!(CALLS.load(Ordering::Relaxed), 5);
    refused!(INVALID_VALUE, cuLaunchHostFunc(stream, None, 0));
}

#[test]
fn a_host_function_may_wait_for_the_thread_that_polls() {
    static RELEASED: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn wait(_: *mut c_void) {
        while RELEASED.load(Ordering::Acquire) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let _context = Context::new();
    let (stream, event) = (stream(), event());
    ok!(cuLaunchHostFunc(stream, Some(wait), 0));
    ok!(cuEventRecord(event, stream));
    refused!(NOT_READY, cuEventQuery(event));
    refused!(NOT_READY, cuStreamQuery(stream));
    RELEASED.store(1, Ordering::Release);
    ok!(cuEventSynchronize(event));
    ok!(cuEventQuery(event));
}

#[test]
fn values_in_memory_hold_a_stream_back() {
    let _context = Context::new();
    let (first, second, flag, device) = (stream(), stream(), alloc(4), alloc(4));
    upload(flag, &[0u32]);
    ok!(cuStreamWaitValue32_v2(second, flag, 1, 1));
    ok!(cuMemsetD32Async(device, 9, 1, second));
    for _ in 0..8 {
        refused!(NOT_READY, cuStreamQuery(second));
    }
    ok!(cuStreamWriteValue32_v2(first, flag, 1, 0));
    ok!(cuStreamSynchronize(second));
    assert_eq!(download::<u32>(device, 1), [9]);
    refused!(
        INVALID_VALUE,
        cuStreamWaitValue32_v2(second, flag + 2, 1, 1)
    );
}

#[test]
fn stale_and_invented_handles_are_refused() {
    let _context = Context::new();
    let (stream, event) = (stream(), event());
    ok!(cuStreamDestroy_v2(stream));
    ok!(cuEventDestroy_v2(event));
    refused!(INVALID_HANDLE, cuStreamSynchronize(stream));
    refused!(INVALID_HANDLE, cuStreamDestroy_v2(stream));
    refused!(INVALID_HANDLE, cuEventRecord(event, 0));
    refused!(INVALID_HANDLE, cuStreamSynchronize(0xdead_beef));
    refused!(INVALID_HANDLE, cuStreamDestroy_v2(1));
}

#[test]
fn a_great_backlog_is_worked_off_by_itself() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(4));
    let event = event();
    ok!(cuEventRecord(event, stream));
    for value in 0..3000 {
        ok!(cuMemsetD32Async(device, value, 1, stream));
    }
    ok!(cuEventQuery(event));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(device, 1), [2999]);
}

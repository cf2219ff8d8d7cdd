//! Several copies, or several values in memory, in one call.

use crate::setup::{
    Context, INVALID_HANDLE, INVALID_VALUE, NOT_READY, alloc, download, ffi, stream, upload,
};
use crate::{ok, refused};

/// A `CUstreamBatchMemOpParams` with an address.
fn operation(kind: u64, address: u64, value: u64, flags: u64) -> [u64; 6] {
    [kind, address, value, flags, 0, 0]
}

fn batch(stream: u64, operations: &[[u64; 6]], flags: u32) -> u32 {
    // SAFETY: the operations are unions of 48 bytes.
    unsafe {
        ffi::cuStreamBatchMemOp_v2(
            stream,
            operations.len() as u32,
            operations.as_ptr().cast(),
            flags,
        )
    }
}

#[test]
fn values_are_written_and_waited_for_in_order() {
    let _context = Context::new();
    let (first, second, device) = (stream(), stream(), alloc(32));
    upload(device, &[0u64; 4]);
    // The second stream waits for what the first writes, then writes itself.
    assert_eq!(
        batch(
            second,
            &[
                operation(1, device, 7, 1),
                operation(4, device + 8, 1 << 40, 0),
                operation(6, 0, 0, 0),
                operation(2, device + 16, 5 | 9 << 32, 0),
            ],
            0
        ),
        0
    );
    refused!(NOT_READY, cuStreamQuery(second));
    assert_eq!(
        batch(
            first,
            &[
                operation(5, device + 8, 1 << 41, 0),
                operation(2, device, 7, 0),
            ],
            0
        ),
        0
    );
    ok!(cuStreamSynchronize(second));
    assert_eq!(download::<u64>(device, 4), [7, 1 << 41, 5, 0]);
}

#[test]
fn a_batch_with_a_wrong_operation_does_nothing() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(8));
    upload(device, &[0u32; 2]);
    let good = operation(2, device, 1, 0);
    for wrong in [
        operation(0, device, 1, 0),
        operation(99, device, 1, 0),
        operation(2, device + 2, 1, 0),
        operation(5, device + 4, 1, 0),
        operation(2, 4096, 1, 0),
        operation(1, device, 1, 4),
    ] {
        assert_eq!(batch(stream, &[good, wrong], 0), INVALID_VALUE, "{wrong:?}");
    }
    assert_eq!(batch(stream, &[operation(3, 0, 0, 0)], 0), 801);
    assert_eq!(batch(stream, &[good], 1), INVALID_VALUE);
    assert_eq!(batch(4711, &[good], 0), INVALID_HANDLE);
    refused!(
        INVALID_VALUE,
        cuStreamBatchMemOp(stream, 1, std::ptr::null(), 0)
    );
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(device, 2), [0, 0]);
}

/// `CUmemcpyAttributes` with an order of access to the source.
fn order(order: u32) -> [u32; 6] {
    [order, 0, 0, 0, 0, 0]
}

#[test]
fn a_batch_of_copies_has_its_place_in_the_stream() {
    let _context = Context::new();
    let (stream, device, mut host) = (stream(), alloc(64), [1u32, 2, 3, 4]);
    ok!(cuMemsetD32Async(device, 9, 16, stream));
    let source = host.as_ptr() as u64;
    // Device to device, from the stack, and from the stack with a source that the call has to read.
    let (to, from) = (
        [device + 32, device + 16, device + 24],
        [device, source, source + 8],
    );
    let attributes = [order(1), order(2)];
    ok!(cuMemcpyBatchAsync_v2(
        to.as_ptr(),
        from.as_ptr(),
        [16, 8, 8].as_ptr(),
        3,
        attributes.as_ptr(),
        [0, 1].as_ptr(),
        2,
        stream
    ));
    host.fill(0);
    let mut failed = 0;
    let back = host.as_mut_ptr() as u64;
    ok!(cuMemcpyBatchAsync(
        &back,
        &(device + 16),
        &16,
        1,
        attributes.as_ptr(),
        &0,
        1,
        &mut failed,
        stream
    ));
    // A pageable destination is written before the call returns.
    assert_eq!(host, [1, 2, 3, 4]);
    assert_eq!(download::<u32>(device + 32, 4), [9; 4]);
}

#[test]
fn wrong_batches_of_copies_are_refused() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(64));
    let (to, from, sizes) = ([device, device + 8], [device + 16, device + 24], [8, 8]);
    let copy = |sizes: &[usize; 2], orders: [u32; 2], starts: &[usize], stream: u64| {
        // SAFETY: lists of the lengths that are given.
        unsafe {
            ffi::cuMemcpyBatchAsync_v2(
                to.as_ptr(),
                from.as_ptr(),
                sizes.as_ptr(),
                2,
                orders.map(order).as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stream,
            )
        }
    };
    assert_eq!(copy(&sizes, [1, 1], &[0], stream), 0);
    assert_eq!(copy(&sizes, [1, 1], &[0, 1], stream), 0);
    assert_eq!(copy(&sizes, [0, 1], &[0], stream), INVALID_VALUE);
    assert_eq!(copy(&sizes, [1, 4], &[0, 1], stream), INVALID_VALUE);
    assert_eq!(copy(&sizes, [1, 1], &[1], stream), INVALID_VALUE);
    assert_eq!(copy(&sizes, [1, 1], &[0, 0], stream), INVALID_VALUE);
    assert_eq!(copy(&sizes, [1, 1], &[0, 2], stream), INVALID_VALUE);
    assert_eq!(copy(&[8, 0], [1, 1], &[0], stream), INVALID_VALUE);
    assert_eq!(copy(&[8, 800], [1, 1], &[0], stream), INVALID_VALUE);
    assert_eq!(copy(&sizes, [1, 1], &[], stream), INVALID_VALUE);
    assert_eq!(
        copy(&sizes, [1, 1], &[0], 0),
        INVALID_VALUE,
        "the legacy stream"
    );
    // The first form tells which copy it is.
    let which = |sizes: [usize; 2], orders: u32| {
        let mut failed = 4711;
        refused!(
            INVALID_VALUE,
            cuMemcpyBatchAsync(
                to.as_ptr(),
                from.as_ptr(),
                sizes.as_ptr(),
                2,
                &order(orders),
                &0,
                1,
                &mut failed,
                stream
            )
        );
        failed
    };
    assert_eq!(which([8, 0], 1), 1);
    assert_eq!(which([800, 8], 1), 0);
    assert_eq!(which([8, 8], 0), usize::MAX);
    let none = std::ptr::null();
    refused!(
        INVALID_VALUE,
        cuMemcpyBatchAsync_v2(
            none,
            from.as_ptr(),
            sizes.as_ptr(),
            2,
            &order(1),
            &0,
            1,
            stream
        )
    );
    let mut graph = 0;
    ok!(cuStreamBeginCapture_v2(stream, 2));
    assert_eq!(copy(&sizes, [1, 1], &[0], stream), 900);
    refused!(901, cuStreamEndCapture(stream, &mut graph));
}

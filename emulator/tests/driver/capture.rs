//! Stream capture.

use crate::setup::{
    Context, INVALID_VALUE, alloc, download, event, ffi, function, launch_add, module, stream,
    upload,
};
use crate::{ok, refused};

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

#[test]
fn a_captured_fork_is_replayed_as_often_as_asked() {
    let _context = Context::new();
    let add = function(module(), c"add");
    let (main, side, fork, join) = (stream(), stream(), event(), event());
    let device = alloc(8);
    upload(device, &[0u32, 0]);
    ok!(cuStreamBeginCapture_v2(main, THREAD_LOCAL));
    let mut status = 0;
    assert_eq!(launch_add(add, main, device, 1, 1), 0);
    ok!(cuEventRecord(fork, main));
    ok!(cuStreamWaitEvent(side, fork, 0));
    ok!(cuStreamIsCapturing(side, &mut status));
    assert_eq!(status, 1);
    assert_eq!(launch_add(add, side, device + 4, 1, 10), 0);
    assert_eq!(launch_add(add, main, device, 1, 2), 0);
    ok!(cuEventRecord(join, side));
    ok!(cuStreamWaitEvent(main, join, 0));
    ok!(cuMemcpyDtoDAsync_v2(device, device + 4, 4, main));
    let mut graph = 0;
    ok!(cuStreamEndCapture(main, &mut graph));
    ok!(cuStreamIsCapturing(side, &mut status));
    assert_eq!(status, 0);
    assert_eq!(
        download::<u32>(device, 2),
        [0, 0],
        "a capture executes nothing"
    );
    let mut count = 0;
    ok!(cuGraphGetNodes(graph, std::ptr::null_mut(), &mut count));
    assert_eq!(count, 4);
    ok!(cuGraphGetEdges(
        graph,
        std::ptr::null_mut(),
        std::ptr::null_mut(),
        &mut count
    ));
    assert_eq!(count, 4);
    let mut executable = 0;
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    ok!(cuGraphDestroy(graph));
    for replay in 1..=3 {
        ok!(cuGraphLaunch(executable, main));
        ok!(cuStreamSynchronize(main));
        assert_eq!(download::<u32>(device, 2), [10 * replay; 2]);
    }
    ok!(cuGraphExecDestroy(executable));
    refused!(INVALID_VALUE, cuGraphLaunch(executable, main));
}

#[test]
fn a_stream_that_was_not_joined_spoils_the_capture() {
    let _context = Context::new();
    let (main, side, fork, device) = (stream(), stream(), event(), alloc(4));
    ok!(cuStreamBeginCapture_v2(main, RELAXED));
    ok!(cuEventRecord(fork, main));
    ok!(cuStreamWaitEvent(side, fork, 0));
    ok!(cuMemsetD32Async(device, 1, 1, side));
    let mut graph = 1;
    refused!(904, cuStreamEndCapture(main, &mut graph));
    assert_eq!(graph, 0);
    ok!(cuStreamSynchronize(side));
}

#[test]
fn synchronising_breaks_a_capture() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(4));
    let mut graph = 0;
    ok!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    refused!(900, cuStreamSynchronize(stream));
    refused!(901, cuMemsetD32Async(device, 1, 1, stream));
    refused!(901, cuStreamEndCapture(stream, &mut graph));
    ok!(cuStreamBeginCapture_v2(stream, THREAD_LOCAL));
    let mut address = 0;
    refused!(900, cuMemAlloc_v2(&mut address, 4));
    refused!(901, cuStreamEndCapture(stream, &mut graph));
    ok!(cuStreamBeginCapture_v2(stream, RELAXED));
    ok!(cuMemAlloc_v2(&mut address, 4));
    ok!(cuStreamEndCapture(stream, &mut graph));
    ok!(cuGraphDestroy(graph));
}

#[test]
fn captures_do_not_mix_with_other_work() {
    let _context = Context::new();
    let (first, second, outside) = (stream(), stream(), stream());
    let (a, b, device) = (event(), event(), alloc(4));
    let mut graph = 0;
    refused!(900, cuStreamBeginCapture_v2(0, GLOBAL));
    ok!(cuStreamBeginCapture_v2(first, RELAXED));
    refused!(401, cuStreamBeginCapture_v2(first, RELAXED));
    ok!(cuEventRecord(a, outside));
    refused!(905, cuStreamWaitEvent(first, a, 0));
    refused!(901, cuStreamEndCapture(first, &mut graph));

    ok!(cuStreamBeginCapture_v2(first, RELAXED));
    ok!(cuStreamBeginCapture_v2(second, RELAXED));
    ok!(cuEventRecord(b, first));
    refused!(907, cuEventQuery(b));
    refused!(901, cuStreamEndCapture(first, &mut graph));
    ok!(cuStreamBeginCapture_v2(first, RELAXED));
    ok!(cuEventRecord(b, first));
    refused!(902, cuStreamWaitEvent(second, b, 0));
    refused!(901, cuStreamEndCapture(first, &mut graph));
    refused!(901, cuStreamEndCapture(second, &mut graph));
    refused!(401, cuStreamEndCapture(second, &mut graph));

    let mut blocking = 0;
    ok!(cuStreamCreate(&mut blocking, 0));
    ok!(cuStreamBeginCapture_v2(blocking, RELAXED));
    refused!(906, cuMemsetD32_v2(device, 1, 1));
    refused!(901, cuStreamEndCapture(blocking, &mut graph));
}

#[test]
fn the_state_of_a_capture_can_be_asked() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(4));
    let (mut status, mut id, mut graph, mut count) = (9, 0, 0, 0);
    let mut nodes = std::ptr::null();
    ok!(cuStreamGetCaptureInfo_v2(
        stream,
        &mut status,
        &mut id,
        &mut graph,
        &mut nodes,
        &mut count
    ));
    assert_eq!(status, 0);
    ok!(cuStreamBeginCapture_v2(stream, RELAXED));
    ok!(cuMemsetD32Async(device, 1, 1, stream));
    ok!(cuStreamGetCaptureInfo_v2(
        stream,
        &mut status,
        &mut id,
        &mut graph,
        &mut nodes,
        &mut count
    ));
    assert_eq!((status, count), (1, 1));
    assert_ne!(id, 0);
    let mut kind = 0;
    // SAFETY: the driver said that there is one node.
    let node = unsafe { *nodes };
    ok!(cuGraphNodeGetType(node, &mut kind));
    assert_eq!(kind, 2);
    let mut ended = 0;
    ok!(cuStreamEndCapture(stream, &mut ended));
    assert_eq!(ended, graph);
}

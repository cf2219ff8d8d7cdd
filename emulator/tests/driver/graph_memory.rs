//! Allocation and free nodes: captured, added one by one, across launches.

use birdie_emulator::driver::graph_memory::AllocationNode;

use crate::setup::{
    Context, INVALID_VALUE, OUT_OF_MEMORY, alloc, download, ffi, function, launch_add, module,
    stream, upload,
};
use crate::{ok, refused};

const NOT_SUPPORTED: u32 = 801;
const AUTO_FREE: u64 = 1;

fn allocation(bytes: usize) -> AllocationNode {
    AllocationNode {
        kind: 1,
        handle_types: 0,
        location: 1,
        device: 0,
        windows: 0,
        most: 0,
        usage: 0,
        reserved: [0; 54],
        access: std::ptr::null(),
        access_count: 0,
        bytes,
        address: 0,
    }
}

fn graph() -> u64 {
    let mut graph = 0;
    ok!(cuGraphCreate(&mut graph, 0));
    graph
}

/// A graph with one allocation node, which fills its memory with `value`; the graph and the address.
fn filling(value: u32) -> (u64, u64) {
    let stream = stream();
    let (mut graph, mut address) = (0, 0);
    ok!(cuStreamBeginCapture_v2(stream, 2));
    ok!(cuMemAllocAsync(&mut address, 256, stream));
    ok!(cuMemsetD32Async(address, value, 64, stream));
    ok!(cuStreamEndCapture(stream, &mut graph));
    (graph, address)
}

fn instantiate(graph: u64, flags: u64) -> u64 {
    let mut executable = 0;
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, flags));
    executable
}

#[test]
fn a_captured_allocation_lives_inside_of_the_graph() {
    let _context = Context::new();
    let add = function(module(), c"add");
    let (stream, out) = (stream(), alloc(256));
    upload(out, &[0u32; 64]);
    let (mut graph, mut scratch) = (0, 0);
    // Of this thread: a global capture is invalidated by what other tests do.
    ok!(cuStreamBeginCapture_v2(stream, 1));
    ok!(cuMemAllocAsync(&mut scratch, 256, stream));
    ok!(cuMemsetD32Async(scratch, 5, 64, stream));
    assert_eq!(launch_add(add, stream, scratch, 64, 2), 0);
    ok!(cuMemcpyDtoDAsync_v2(out, scratch, 256, stream));
    ok!(cuMemFreeAsync(scratch, stream));
    ok!(cuStreamEndCapture(stream, &mut graph));
    let (mut count, mut nodes, mut kind) = (5, [0; 5], 0);
    ok!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
    assert_eq!(count, 5);
    ok!(cuGraphNodeGetType(nodes[0], &mut kind));
    assert_eq!(kind, 10);
    ok!(cuGraphNodeGetType(nodes[4], &mut kind));
    assert_eq!(kind, 11);
    let (mut given, mut freed) = (allocation(0), 0);
    ok!(cuGraphMemAllocNodeGetParams(nodes[0], &mut given));
    assert_eq!((given.address, given.bytes), (scratch, 256));
    ok!(cuGraphMemFreeNodeGetParams(nodes[4], &mut freed));
    assert_eq!(freed, scratch);
    refused!(
        INVALID_VALUE,
        cuGraphMemFreeNodeGetParams(nodes[0], &mut freed)
    );
    let executable = instantiate(graph, 0);
    for _ in 0..3 {
        ok!(cuMemsetD32_v2(out, 0, 64));
        // The stream does not wait for the legacy one.
        ok!(cuCtxSynchronize());
        ok!(cuGraphLaunch(executable, stream));
        ok!(cuStreamSynchronize(stream));
        assert_eq!(download::<u32>(out, 64), [7; 64]);
    }
    // It is freed by the graph, and by nobody else.
    refused!(INVALID_VALUE, cuMemFreeAsync(scratch, stream));
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(graph));
}

#[test]
fn what_a_graph_leaves_allocated_is_freed_once() {
    let _context = Context::new();
    let stream = stream();
    let (graph, address) = filling(9);
    let executable = instantiate(graph, 0);
    // Nothing is there before the launch.
    refused!(INVALID_VALUE, cuMemFree_v2(address));
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(address, 64), [9; 64]);
    refused!(INVALID_VALUE, cuGraphLaunch(executable, stream));
    ok!(cuMemFreeAsync(address, stream));
    refused!(INVALID_VALUE, cuMemFreeAsync(address, stream));
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuMemFree_v2(address));
    // The allocation outlives its graph.
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuGraphExecDestroy(executable));
    ok!(cuGraphDestroy(graph));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(address, 64), [9; 64]);
    ok!(cuMemFree_v2(address));
    refused!(INVALID_VALUE, cuMemFree_v2(address));
}

#[test]
fn an_executable_graph_may_free_at_its_next_launch() {
    let _context = Context::new();
    let stream = stream();
    let (graph, address) = filling(3);
    let executable = instantiate(graph, AUTO_FREE);
    for _ in 0..3 {
        ok!(cuGraphLaunch(executable, stream));
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!(download::<u32>(address, 64), [3; 64]);
    ok!(cuMemFree_v2(address));
}

#[test]
fn another_graph_may_free() {
    let _context = Context::new();
    let stream = stream();
    let (first, address) = filling(4);
    let (mut node, second) = (0, graph());
    ok!(cuGraphAddMemFreeNode(
        &mut node,
        second,
        std::ptr::null(),
        0,
        address
    ));
    let third = graph();
    refused!(
        INVALID_VALUE,
        cuGraphAddMemFreeNode(&mut node, third, std::ptr::null(), 0, address)
    );
    let (fill, free) = (instantiate(first, 0), instantiate(second, 0));
    refused!(INVALID_VALUE, cuGraphLaunch(free, stream));
    for _ in 0..2 {
        ok!(cuGraphLaunch(fill, stream));
        ok!(cuGraphLaunch(free, stream));
    }
    ok!(cuStreamSynchronize(stream));
    refused!(INVALID_VALUE, cuMemFree_v2(address));
}

#[test]
fn memory_of_a_graph_that_is_not_there_is_an_illegal_address() {
    let _context = Context::new();
    let stream = stream();
    let (graph, address) = filling(1);
    let add = function(module(), c"add");
    let executable = instantiate(graph, 0);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuMemFreeAsync(address, stream));
    assert_eq!(launch_add(add, stream, address, 1, 1), 0);
    refused!(700, cuStreamSynchronize(stream));
}

#[test]
fn a_memset_before_the_allocation_is_an_illegal_address() {
    let _context = Context::new();
    let stream = stream();
    let (_graph, address) = filling(1);
    ok!(cuMemsetD8Async(address, 1, 1, stream));
    refused!(700, cuStreamSynchronize(stream));
}

#[test]
fn graphs_with_memory_nodes_have_limits() {
    let _context = Context::new();
    let (first, address) = filling(1);
    let (mut other, mut node) = (0, 0);
    let none = std::ptr::null();
    refused!(NOT_SUPPORTED, cuGraphClone(&mut other, first));
    let parent = graph();
    refused!(
        NOT_SUPPORTED,
        cuGraphAddChildGraphNode(&mut node, parent, none, 0, first)
    );
    let (mut nodes, mut count) = ([0; 2], 2);
    ok!(cuGraphGetNodes(first, nodes.as_mut_ptr(), &mut count));
    refused!(NOT_SUPPORTED, cuGraphDestroyNode(nodes[1]));
    refused!(
        NOT_SUPPORTED,
        cuGraphRemoveDependencies(first, &nodes[0], &nodes[1], 1)
    );
    let executable = instantiate(first, 0);
    let mut second = 0;
    refused!(
        NOT_SUPPORTED,
        cuGraphInstantiateWithFlags(&mut second, first, 0)
    );
    ok!(cuGraphExecDestroy(executable));
    instantiate(first, 0);
    // Wrong arguments of the nodes.
    let own = graph();
    let mut wrong = |change: fn(&mut AllocationNode), code: u32| {
        let mut given = allocation(64);
        change(&mut given);
        refused!(
            code,
            cuGraphAddMemAllocNode(&mut node, own, none, 0, &mut given)
        );
    };
    wrong(|given| given.bytes = 0, INVALID_VALUE);
    wrong(|given| given.bytes = 2 << 30, OUT_OF_MEMORY);
    wrong(|given| given.kind = 0, INVALID_VALUE);
    wrong(|given| given.handle_types = 1, INVALID_VALUE);
    wrong(|given| given.device = 9, 101);
    let mut given = allocation(64);
    refused!(
        INVALID_VALUE,
        cuGraphAddMemAllocNode(&mut node, own, &nodes[0], 1, &mut given)
    );
    ok!(cuGraphAddMemAllocNode(&mut node, own, none, 0, &mut given));
    assert_ne!(given.address, 0);
    let mut free = 0;
    refused!(
        INVALID_VALUE,
        cuGraphAddMemFreeNode(&mut free, own, &node, 1, 4711)
    );
    refused!(
        INVALID_VALUE,
        cuGraphAddMemFreeNode(&mut free, own, &node, 1, alloc(64))
    );
    ok!(cuGraphAddMemFreeNode(
        &mut free,
        own,
        &node,
        1,
        given.address
    ));
    refused!(
        INVALID_VALUE,
        cuGraphAddMemFreeNode(&mut free, own, &node, 1, given.address)
    );
    assert_ne!(given.address, address);
}

#[test]
fn ordinary_memory_is_not_freed_by_a_graph() {
    let _context = Context::new();
    let (stream, device) = (stream(), alloc(4));
    let mut graph = 0;
    ok!(cuStreamBeginCapture_v2(stream, 2));
    refused!(INVALID_VALUE, cuMemFreeAsync(device, stream));
    refused!(901, cuStreamEndCapture(stream, &mut graph));
    ok!(cuMemFree_v2(device));
}

#[test]
fn graph_memory_is_counted() {
    let _context = Context::on(1);
    let stream = stream();
    let (graph, address) = filling(1);
    let ask = |which: u32| {
        let mut value = 0u64;
        ok!(cuDeviceGetGraphMemAttribute(1, which, &mut value));
        value
    };
    let before = ask(0);
    ok!(cuGraphLaunch(instantiate(graph, 0), stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(ask(0), before + 256);
    assert!(ask(1) >= before + 256);
    ok!(cuMemFree_v2(address));
    assert_eq!(ask(2), before);
    ok!(cuDeviceSetGraphMemAttribute(1, 1, &0));
    assert_eq!(ask(1), before);
    refused!(INVALID_VALUE, cuDeviceSetGraphMemAttribute(1, 0, &0));
    refused!(INVALID_VALUE, cuDeviceSetGraphMemAttribute(1, 1, &7));
    refused!(INVALID_VALUE, cuDeviceGetGraphMemAttribute(1, 4, &mut 0));
}

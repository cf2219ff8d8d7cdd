//! Graphs that are built node by node.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use birdie_emulator::driver::types::{HostNode, KernelNode, MemsetNode, UpdateResult};

use crate::setup::{
    Context, INVALID_VALUE, alloc, download, ffi, function, module, stream, upload,
};
use crate::{ok, refused};

/// Parameters of an `add` kernel node.
struct Add {
    address: u64,
    count: u32,
    value: u32,
}

impl Add {
    fn node<R>(&self, function: u64, give: impl FnOnce(&KernelNode) -> R) -> R {
        let parameters: [*const u8; 3] = [
            (&raw const self.address).cast(),
            (&raw const self.count).cast(),
            (&raw const self.value).cast(),
        ];
        give(&KernelNode {
            function,
            grid: [1, 1, 1],
            block: [64, 1, 1],
            shared: 0,
            parameters: parameters.as_ptr(),
            extra: std::ptr::null(),
            kernel: 0,
            context: 0,
        })
    }
}

fn graph() -> u64 {
    let mut graph = 0;
    ok!(cuGraphCreate(&mut graph, 0));
    graph
}

fn instantiate(graph: u64) -> u64 {
    let mut executable = 0;
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    executable
}

fn run(executable: u64) {
    let stream = stream();
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
}

fn memset(address: u64, value: u32) -> MemsetNode {
    MemsetNode {
        destination: address,
        pitch: 0,
        value,
        element: 4,
        width: 1,
        height: 1,
    }
}

#[test]
fn nodes_of_all_kinds_follow_their_edges() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn count(data: *mut c_void) {
        CALLS.fetch_add(data as u32, Ordering::Relaxed);
    }
    let context = Context::new();
    let add = function(module(), c"add");
    let device = alloc(4);
    let (graph, inner) = (graph(), graph());
    let (mut set, mut kernel, mut host, mut empty, mut child, mut last) = (0, 0, 0, 0, 0, 0);
    let none = std::ptr::null();
    ok!(cuGraphAddMemsetNode(
        &mut set,
        graph,
        none,
        0,
        &memset(device, 100),
        context.0
    ));
    Add {
        address: device,
        count: 1,
        value: 5,
    }
    .node(add, |node| {
        ok!(cuGraphAddKernelNode_v2(&mut kernel, graph, &set, 1, node));
        ok!(cuGraphAddKernelNode_v2(&mut last, inner, none, 0, node));
    });
    let call = HostNode {
        function: Some(count),
        data: 3,
    };
    ok!(cuGraphAddHostNode(&mut host, graph, &kernel, 1, &call));
    ok!(cuGraphAddEmptyNode(&mut empty, graph, &host, 1));
    ok!(cuGraphAddChildGraphNode(
        &mut child, graph, &empty, 1, inner
    ));
    refused!(
        INVALID_VALUE,
        cuGraphAddEmptyNode(&mut empty, graph, &last, 1)
    );
    refused!(INVALID_VALUE, cuGraphAddEmptyNode(&mut empty, 99, none, 0));
    let executable = instantiate(graph);
    run(executable);
    assert_eq!(download::<u32>(device, 1), [110]);
    assert_eq!(CALLS.load(Ordering::Relaxed), 3);
    let (mut kind, mut list, mut count) = (9, [0; 8], 8);
    ok!(cuGraphNodeGetType(child, &mut kind));
    assert_eq!(kind, 4);
    ok!(cuGraphGetRootNodes(graph, list.as_mut_ptr(), &mut count));
    assert_eq!((count, list[0], list[1]), (1, set, 0));
    ok!(cuGraphNodeGetDependencies(
        kernel,
        std::ptr::null_mut(),
        &mut count
    ));
    assert_eq!(count, 1);

    // The same graph with other values, first in one node of the executable, then as a whole.
    ok!(cuGraphExecMemsetNodeSetParams(
        executable,
        set,
        &memset(device, 200),
        context.0
    ));
    Add {
        address: device,
        count: 1,
        value: 7,
    }
    .node(add, |node| {
        ok!(cuGraphExecKernelNodeSetParams_v2(executable, kernel, node))
    });
    run(executable);
    assert_eq!(download::<u32>(device, 1), [212]);
    let mut result = UpdateResult {
        result: 9,
        error_node: 0,
        error_from: 0,
    };
    ok!(cuGraphExecUpdate_v2(executable, graph, &mut result));
    assert_eq!(result.result, 0);
    run(executable);
    assert_eq!(download::<u32>(device, 1), [110]);
    refused!(910, cuGraphExecUpdate_v2(executable, inner, &mut result));
    assert_eq!(result.result, 2);
    refused!(
        INVALID_VALUE,
        cuGraphExecMemsetNodeSetParams(executable, kernel, &memset(device, 1), 0)
    );

    ok!(cuGraphNodeSetEnabled(executable, kernel, 0));
    run(executable);
    assert_eq!(download::<u32>(device, 1), [105]);
}

#[test]
fn cycles_and_foreign_nodes_are_refused() {
    let _context = Context::new();
    let (one, two) = (graph(), graph());
    let (mut a, mut b, mut c, mut executable) = (0, 0, 0, 0);
    let none = std::ptr::null();
    ok!(cuGraphAddEmptyNode(&mut a, one, none, 0));
    ok!(cuGraphAddEmptyNode(&mut b, one, &a, 1));
    ok!(cuGraphAddEmptyNode(&mut c, two, none, 0));
    refused!(INVALID_VALUE, cuGraphAddDependencies(one, &a, &b, 1));
    refused!(INVALID_VALUE, cuGraphAddDependencies(one, &a, &c, 1));
    ok!(cuGraphAddDependencies(one, &b, &a, 1));
    refused!(
        INVALID_VALUE,
        cuGraphInstantiateWithFlags(&mut executable, one, 0)
    );
    ok!(cuGraphRemoveDependencies(one, &b, &a, 1));
    ok!(cuGraphInstantiateWithFlags(&mut executable, one, 0));
    ok!(cuGraphDestroyNode(a));
    refused!(INVALID_VALUE, cuGraphDestroyNode(a));
    ok!(cuGraphDestroy(one));
    refused!(INVALID_VALUE, cuGraphDestroy(one));
}

#[test]
fn a_clone_stands_alone() {
    let context = Context::new();
    let device = alloc(4);
    upload(device, &[0u32]);
    let original = graph();
    let (mut node, mut copy) = (0, 0);
    ok!(cuGraphAddMemsetNode(
        &mut node,
        original,
        std::ptr::null(),
        0,
        &memset(device, 1),
        context.0
    ));
    ok!(cuGraphClone(&mut copy, original));
    ok!(cuGraphMemsetNodeSetParams(node, &memset(device, 2)));
    let executable = instantiate(copy);
    ok!(cuGraphDestroy(copy));
    run(executable);
    assert_eq!(download::<u32>(device, 1), [1]);
    run(instantiate(original));
    assert_eq!(download::<u32>(device, 1), [2]);
}

static DESTROYED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn destroyed(by: *mut c_void) {
    DESTROYED.fetch_add(by as u32, Ordering::SeqCst);
}

#[test]
fn user_objects_live_as_long_as_what_refers_to_them() {
    let _context = Context::new();
    let count = || DESTROYED.load(Ordering::SeqCst);
    let object = |by: u64, references| {
        let mut object = 0;
        ok!(cuUserObjectCreate(
            &mut object,
            by,
            Some(destroyed),
            references,
            1
        ));
        object
    };
    let mut out = 0;
    refused!(
        INVALID_VALUE,
        cuUserObjectCreate(&mut out, 1, Some(destroyed), 1, 0)
    );
    refused!(
        INVALID_VALUE,
        cuUserObjectCreate(&mut out, 1, Some(destroyed), 0, 1)
    );
    refused!(INVALID_VALUE, cuUserObjectCreate(&mut out, 1, None, 1, 1));

    let plain = object(1, 2);
    ok!(cuUserObjectRetain(plain, 1));
    ok!(cuUserObjectRelease(plain, 2));
    refused!(INVALID_VALUE, cuUserObjectRelease(plain, 2));
    assert_eq!(count(), 0);
    ok!(cuUserObjectRelease(plain, 1));
    assert_eq!(count(), 1);
    refused!(INVALID_VALUE, cuUserObjectRelease(plain, 1));

    // The graph takes the program's reference over; its clone and the executable graph have their own.
    let (moved, graph) = (object(10, 1), graph());
    ok!(cuGraphRetainUserObject(graph, moved, 1, 1));
    refused!(INVALID_VALUE, cuGraphReleaseUserObject(graph, moved, 2));
    let (mut copy, mut executable) = (0, 0);
    ok!(cuGraphClone(&mut copy, graph));
    ok!(cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    ok!(cuGraphDestroy(graph));
    ok!(cuGraphReleaseUserObject(copy, moved, 1));
    assert_eq!(count(), 1);
    let stream = stream();
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuGraphExecDestroy(executable));
    ok!(cuStreamSynchronize(stream));
    ok!(cuCtxSynchronize());
    assert_eq!(count(), 11);
    ok!(cuGraphDestroy(copy));
    assert_eq!(count(), 11);
}

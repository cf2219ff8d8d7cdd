//! The functions of graphs, besides capture and the parameters of nodes.

use super::error::{Code, Outcome};
use super::graph::{Executable, Graph, NodeKind};
use super::state::{self, Handle};
use super::types::UpdateResult;
use super::user_objects;
use super::{put, run};

/// A list of nodes that a caller gives.
///
/// # Safety
/// `nodes` has `count` elements, or `count` is 0.
pub unsafe fn read_nodes(nodes: *const u64, count: usize) -> Outcome<Vec<Handle>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if nodes.is_null() {
        return Code::INVALID_VALUE.fail(format!("a list of {count} nodes at null"));
    }
    // SAFETY: by the contract of this function.
    Ok(unsafe { std::slice::from_raw_parts(nodes, count) }.to_vec())
}

/// A list for a caller: with a null list only the count is told; the rest of a longer list is set to null.
///
/// # Safety
/// `out` is null or has room for `*count` elements.
unsafe fn write_nodes(out: *mut u64, count: *mut usize, nodes: &[Handle]) -> Outcome {
    if count.is_null() {
        return Code::INVALID_VALUE.fail("no place for the count");
    }
    if out.is_null() {
        return put(count, nodes.len());
    }
    // SAFETY: checked not to be null.
    let room = unsafe { *count };
    for index in 0..room {
        // SAFETY: by the contract of this function.
        unsafe { *out.add(index) = nodes.get(index).copied().unwrap_or(0) };
    }
    put(count, nodes.len().min(room))
}

pub unsafe fn create(out: *mut u64, flags: u32) -> Outcome {
    if flags != 0 {
        return Code::INVALID_VALUE.fail(format!("graph flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let graph = guard.new_graph(Graph::default());
    put(out, graph)
}

pub unsafe fn destroy(graph: u64) -> Outcome {
    let mut guard = state::lock()?;
    if guard.graph(graph)?.owned {
        return Code::INVALID_VALUE.fail("the graph belongs to a child node");
    }
    guard.destroy_graph(graph);
    user_objects::run_finalisers(guard);
    Ok(())
}

pub unsafe fn clone(out: *mut u64, graph: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.check_no_memory_nodes(graph, "cuGraphClone")?;
    let (copy, _) = guard.clone_graph(graph, false)?;
    put(out, copy)
}

pub unsafe fn destroy_node(node: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.node(node)?;
    if let Some(&graph) = guard.nodes.get(&node) {
        guard.check_no_memory_nodes(graph, "cuGraphDestroyNode")?;
    }
    let Some(graph) = guard.nodes.remove(&node) else {
        return Code::INVALID_VALUE.fail(format!("{node:#x} is no graph node"));
    };
    let mut inner = None;
    if let Some(graph) = guard.graphs.get_mut(&graph) {
        if let Some(entry) = graph.nodes.remove(&node)
            && let NodeKind::Child(child) = entry.kind
        {
            inner = Some(child);
        }
        for other in graph.nodes.values_mut() {
            other.after.retain(|&before| before != node);
        }
    }
    if let Some(inner) = inner {
        guard.destroy_graph(inner);
    }
    user_objects::run_finalisers(guard);
    Ok(())
}

pub unsafe fn nodes(graph: u64, out: *mut u64, count: *mut usize) -> Outcome {
    let guard = state::lock()?;
    let nodes: Vec<Handle> = guard.graph(graph)?.nodes.keys().copied().collect();
    // SAFETY: the caller's promise.
    unsafe { write_nodes(out, count, &nodes) }
}

pub unsafe fn roots(graph: u64, out: *mut u64, count: *mut usize) -> Outcome {
    let guard = state::lock()?;
    let nodes: Vec<Handle> = guard
        .graph(graph)?
        .nodes
        .iter()
        .filter(|(_, node)| node.after.is_empty())
        .map(|(&node, _)| node)
        .collect();
    // SAFETY: the caller's promise.
    unsafe { write_nodes(out, count, &nodes) }
}

pub unsafe fn edges(graph: u64, from: *mut u64, to: *mut u64, count: *mut usize) -> Outcome {
    let guard = state::lock()?;
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for (&node, entry) in &guard.graph(graph)?.nodes {
        for &before in &entry.after {
            sources.push(before);
            targets.push(node);
        }
    }
    if from.is_null() != to.is_null() {
        return Code::INVALID_VALUE.fail("one of the two lists is null");
    }
    if count.is_null() {
        return Code::INVALID_VALUE.fail("no place for the count");
    }
    // SAFETY: checked not to be null; each list is written with the room that the caller states.
    unsafe {
        let mut room = *count;
        write_nodes(from, &mut room, &sources)?;
        write_nodes(to, count, &targets)
    }
}

pub unsafe fn edges_v2(
    graph: u64,
    from: *mut u64,
    to: *mut u64,
    _data: *mut core::ffi::c_void,
    count: *mut usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { edges(graph, from, to, count) }
}

pub unsafe fn dependencies(node: u64, out: *mut u64, count: *mut usize) -> Outcome {
    let guard = state::lock()?;
    let nodes = guard.node(node)?.after.clone();
    // SAFETY: the caller's promise.
    unsafe { write_nodes(out, count, &nodes) }
}

pub unsafe fn dependencies_v2(
    node: u64,
    out: *mut u64,
    _data: *mut core::ffi::c_void,
    count: *mut usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { dependencies(node, out, count) }
}

pub unsafe fn dependents(node: u64, out: *mut u64, count: *mut usize) -> Outcome {
    let guard = state::lock()?;
    guard.node(node)?;
    let nodes: Vec<Handle> = guard
        .nodes
        .get(&node)
        .and_then(|graph| guard.graphs.get(graph))
        .map(|graph| {
            graph
                .nodes
                .iter()
                .filter(|(_, entry)| entry.after.contains(&node))
                .map(|(&other, _)| other)
                .collect()
        })
        .unwrap_or_default();
    // SAFETY: the caller's promise.
    unsafe { write_nodes(out, count, &nodes) }
}

pub unsafe fn dependents_v2(
    node: u64,
    out: *mut u64,
    _data: *mut core::ffi::c_void,
    count: *mut usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { dependents(node, out, count) }
}

pub unsafe fn add_dependencies(
    graph: u64,
    from: *const u64,
    to: *const u64,
    count: usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    let (from, to) = unsafe { (read_nodes(from, count)?, read_nodes(to, count)?) };
    let mut guard = state::lock()?;
    guard.graph(graph)?;
    for (&before, &node) in from.iter().zip(&to) {
        if guard.nodes.get(&before) != Some(&graph) || guard.nodes.get(&node) != Some(&graph) {
            return Code::INVALID_VALUE.fail("an edge between nodes that are not of the graph");
        }
        let entry = guard.node_mut(node)?;
        if before == node || entry.after.contains(&before) {
            return Code::INVALID_VALUE.fail("the edge is there already, or leads to itself");
        }
        entry.after.push(before);
    }
    Ok(())
}

pub unsafe fn add_dependencies_v2(
    graph: u64,
    from: *const u64,
    to: *const u64,
    _data: *const core::ffi::c_void,
    count: usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { add_dependencies(graph, from, to, count) }
}

pub unsafe fn remove_dependencies(
    graph: u64,
    from: *const u64,
    to: *const u64,
    count: usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    let (from, to) = unsafe { (read_nodes(from, count)?, read_nodes(to, count)?) };
    let mut guard = state::lock()?;
    guard.check_no_memory_nodes(graph, "cuGraphRemoveDependencies")?;
    for (&before, &node) in from.iter().zip(&to) {
        let entry = guard.node_mut(node)?;
        if !entry.after.contains(&before) {
            return Code::INVALID_VALUE.fail("there is no such edge");
        }
        entry.after.retain(|&other| other != before);
    }
    Ok(())
}

pub unsafe fn remove_dependencies_v2(
    graph: u64,
    from: *const u64,
    to: *const u64,
    _data: *const core::ffi::c_void,
    count: usize,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { remove_dependencies(graph, from, to, count) }
}

pub unsafe fn node_type(node: u64, out: *mut u32) -> Outcome {
    let guard = state::lock()?;
    put(out, guard.node(node)?.kind.code())
}

pub unsafe fn child_graph(node: u64, out: *mut u64) -> Outcome {
    let guard = state::lock()?;
    match guard.node(node)?.kind {
        NodeKind::Child(inner) => put(out, inner),
        _ => Code::INVALID_VALUE.fail("not a child-graph node"),
    }
}

/// `CUDA_GRAPH_INSTANTIATE_FLAG_*`: 1 auto-free, 2 upload, 4 device launch, 8 node priorities.
pub const AUTO_FREE: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;

pub unsafe fn instantiate(out: *mut u64, graph: u64, flags: u64) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the executable graph");
    }
    if flags & (AUTO_FREE | DEVICE_LAUNCH) == AUTO_FREE | DEVICE_LAUNCH {
        return Code::INVALID_VALUE
            .fail("a graph for launches by the device cannot free by itself");
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Code::NOT_SUPPORTED.fail("graphs that the device launches");
    }
    if flags > 15 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let nodes = guard.flatten(graph)?;
    if guard
        .executables
        .values()
        .any(|other| other.origin == graph)
    {
        guard.check_no_memory_nodes(graph, "a second executable graph")?;
    }
    guard.own_graph_memory(nodes.iter().map(|node| &node.kind), true);
    let objects = guard.objects_of(graph);
    guard.retain_objects(&objects);
    let handle = guard.handle();
    guard.executables.insert(
        handle,
        Executable {
            nodes,
            flags,
            origin: graph,
            last: None,
            objects,
        },
    );
    put(out, handle)
}

/// The older form with an error node and a log.
pub unsafe fn instantiate_v1(
    out: *mut u64,
    graph: u64,
    error_node: *mut u64,
    log: *mut u8,
    log_size: usize,
) -> Outcome {
    if !error_node.is_null() {
        put(error_node, 0)?;
    }
    if !log.is_null() && log_size > 0 {
        put(log, 0)?;
    }
    // SAFETY: the caller's promise.
    unsafe { instantiate(out, graph, 0) }
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`: flags, upload stream, and two results.
pub unsafe fn instantiate_params(out: *mut u64, graph: u64, parameters: *mut [u64; 4]) -> Outcome {
    if parameters.is_null() {
        return Code::INVALID_VALUE.fail("no parameters");
    }
    // SAFETY: checked not to be null.
    let flags = unsafe { (*parameters)[0] };
    // SAFETY: as above. Error node and result: none, success.
    unsafe {
        (*parameters)[2] = 0;
        (*parameters)[3] = 0;
        instantiate(out, graph, flags)
    }
}

pub unsafe fn executable_flags(executable: u64, out: *mut u64) -> Outcome {
    let mut guard = state::lock()?;
    let flags = guard.executable(executable)?.flags;
    put(out, flags)
}

pub unsafe fn executable_destroy(executable: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.executable(executable)?;
    if let Some(gone) = guard.executables.remove(&executable) {
        guard.release_objects(&gone.objects, gone.last);
        guard.own_graph_memory(gone.nodes.iter().map(|node| &node.kind), false);
    }
    user_objects::run_finalisers(guard);
    Ok(())
}

/// There is nothing to upload.
pub unsafe fn upload(executable: u64, stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.stream_of(stream)?;
    guard.executable(executable).map(drop)
}

pub unsafe fn launch(executable: u64, stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    if let Some(capture) = guard.stream(stream)?.capture {
        // A launch inside a capture becomes a child node with the content of the executable graph.
        guard.executable(executable)?;
        guard.invalidate(capture);
        return Code::NOT_SUPPORTED.fail("launching a graph inside a capture");
    }
    guard.launch_graph(executable, stream)?;
    run::relieve(guard, context)
}

/// `CUgraphExecUpdateResult`
mod update_result {
    pub const SUCCESS: u32 = 0;
    pub const TOPOLOGY_CHANGED: u32 = 2;
    pub const NODE_TYPE_CHANGED: u32 = 3;
    pub const NOT_SUPPORTED: u32 = 6;
}

unsafe fn update_inner(executable: u64, graph: u64) -> Outcome<(u32, Handle)> {
    let mut guard = state::lock()?;
    let fresh = guard.flatten(graph)?;
    let entry = guard.executable(executable)?;
    if fresh.len() != entry.nodes.len() {
        return Ok((update_result::TOPOLOGY_CHANGED, 0));
    }
    for (old, new) in entry.nodes.iter().zip(&fresh) {
        if old.after != new.after {
            return Ok((update_result::TOPOLOGY_CHANGED, new.origin));
        }
        if old.kind.code() != new.kind.code() {
            return Ok((update_result::NODE_TYPE_CHANGED, new.origin));
        }
        if matches!(new.kind, NodeKind::Allocate(_) | NodeKind::Free(_)) {
            return Ok((update_result::NOT_SUPPORTED, new.origin));
        }
        let inner = |node: &super::graph::ExecutableNode| node.inner.as_ref().map(Vec::len);
        if inner(old) != inner(new) {
            return Ok((update_result::TOPOLOGY_CHANGED, new.origin));
        }
    }
    for (old, new) in entry.nodes.iter_mut().zip(fresh) {
        old.kind = new.kind;
        old.inner = new.inner;
    }
    Ok((update_result::SUCCESS, 0))
}

pub unsafe fn update(executable: u64, graph: u64, out: *mut UpdateResult) -> Outcome {
    // SAFETY: no pointers.
    let (result, node) = unsafe { update_inner(executable, graph) }?;
    put(
        out,
        UpdateResult {
            result,
            error_node: node,
            error_from: 0,
        },
    )?;
    updated(result)
}

pub unsafe fn update_v1(
    executable: u64,
    graph: u64,
    error_node: *mut u64,
    out: *mut u32,
) -> Outcome {
    // SAFETY: no pointers.
    let (result, node) = unsafe { update_inner(executable, graph) }?;
    if !error_node.is_null() {
        put(error_node, node)?;
    }
    put(out, result)?;
    updated(result)
}

fn updated(result: u32) -> Outcome {
    match result {
        update_result::SUCCESS => Ok(()),
        update_result::NODE_TYPE_CHANGED => {
            Code::GRAPH_EXEC_UPDATE_FAILURE.fail("a node has another type now")
        }
        update_result::NOT_SUPPORTED => {
            Code::GRAPH_EXEC_UPDATE_FAILURE.fail("allocation and free nodes keep their addresses")
        }
        _ => Code::GRAPH_EXEC_UPDATE_FAILURE.fail("the graphs have different shapes"),
    }
}

pub unsafe fn node_enabled(executable: u64, node: u64, out: *mut u32) -> Outcome {
    let mut guard = state::lock()?;
    let entry = guard.executable(executable)?;
    match entry.nodes.iter().find(|entry| entry.origin == node) {
        Some(entry) => put(out, u32::from(entry.enabled)),
        None => Code::INVALID_VALUE.fail("the executable graph has no such node"),
    }
}

pub unsafe fn set_node_enabled(executable: u64, node: u64, enabled: u32) -> Outcome {
    let mut guard = state::lock()?;
    let entry = guard.executable(executable)?;
    match entry.nodes.iter_mut().find(|entry| entry.origin == node) {
        Some(entry) if entry.kind.code() <= 2 => {
            entry.enabled = enabled != 0;
            Ok(())
        }
        Some(_) => Code::INVALID_VALUE.fail("only kernel, copy and memset nodes can be switched"),
        None => Code::INVALID_VALUE.fail("the executable graph has no such node"),
    }
}

//! Nodes that are added to a graph one by one, and their parameters: in the graph, and in an executable graph made from it.

use std::sync::Arc;

use super::copy;
use super::error::{Code, Outcome};
use super::graph::{KernelExtra, NodeKind};
use super::graph_api::read_nodes;
use super::launch::{Configuration, read_parameters, resolve};
use super::put;
use super::state::{self, Guard, Handle, State};
use super::types::{HostNode, KernelNode, Memcpy3D, MemsetNode};
use super::work::{HostCall, KernelCall};

/// Adds a node of a kind.
unsafe fn add(
    mut guard: Guard,
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    kind: NodeKind,
) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the node");
    }
    // SAFETY: the caller's promise.
    let after = unsafe { read_nodes(after, count) }?;
    let node = guard.add_node(graph, kind, &after)?;
    put(out, node)
}

impl State {
    /// # Safety
    /// The parameters of the node are what `cuLaunchKernel` documents.
    unsafe fn kernel_kind(&mut self, node: *const KernelNode, wide: bool) -> Outcome<NodeKind> {
        if node.is_null() {
            return Code::INVALID_VALUE.fail("no parameters of the node");
        }
        // SAFETY: checked not to be null. Fields behind `extra` are only read in the wide form.
        let (function, grid, block, shared, parameters, extra) = unsafe {
            let node = &raw const *node;
            let mut function = (*node).function;
            if function == 0 && wide {
                function = (*node).kernel;
            }
            (
                function,
                (*node).grid,
                (*node).block,
                (*node).shared,
                (*node).parameters,
                (*node).extra,
            )
        };
        let kernel = self.kernel_of(function)?;
        let configuration = Configuration {
            grid,
            block,
            cluster: None,
            dynamic_shared: shared,
            cooperative: false,
        };
        // SAFETY: by the contract of this function.
        let parameters = unsafe { read_parameters(&kernel, parameters, extra) }?;
        let config = resolve(&kernel, &configuration, &parameters)?;
        Ok(NodeKind::Kernel(
            Arc::new(KernelCall {
                kernel,
                config,
                parameters,
                cooperative: false,
            }),
            KernelExtra { function },
        ))
    }

    fn memset_kind(&self, node: MemsetNode) -> Outcome<NodeKind> {
        let fill = copy::checked_fill(
            self,
            node.destination,
            node.pitch,
            node.value,
            node.element as usize,
            node.width,
            node.height,
        )?;
        Ok(NodeKind::Memset(fill, Some(node)))
    }

    /// Puts parameters into a node, which must have the same type.
    fn set_kind(&mut self, node: Handle, kind: NodeKind) -> Outcome {
        let entry = self.node_mut(node)?;
        if entry.kind.code() != kind.code() {
            return Code::INVALID_VALUE.fail("the node is of another type");
        }
        entry.kind = kind;
        Ok(())
    }

    /// The same in an executable graph.
    fn set_executable_kind(&mut self, executable: Handle, node: Handle, kind: NodeKind) -> Outcome {
        let entry = self.executable(executable)?;
        let Some(entry) = entry.nodes.iter_mut().find(|entry| entry.origin == node) else {
            return Code::INVALID_VALUE.fail("the executable graph has no such node");
        };
        if entry.kind.code() != kind.code() {
            return Code::INVALID_VALUE.fail("the node is of another type");
        }
        entry.kind = kind;
        Ok(())
    }
}

macro_rules! kernel_functions {
    ($add:ident, $set:ident, $set_executable:ident, $wide:literal) => {
        pub unsafe fn $add(
            out: *mut u64,
            graph: u64,
            after: *const u64,
            count: usize,
            node: *const KernelNode,
        ) -> Outcome {
            let mut guard = state::lock()?;
            guard.graph(graph)?;
            // SAFETY: the caller's promise.
            unsafe {
                let kind = guard.kernel_kind(node, $wide)?;
                add(guard, out, graph, after, count, kind)
            }
        }

        pub unsafe fn $set(node: u64, parameters: *const KernelNode) -> Outcome {
            let mut guard = state::lock()?;
            // SAFETY: the caller's promise.
            let kind = unsafe { guard.kernel_kind(parameters, $wide) }?;
            guard.set_kind(node, kind)
        }

        pub unsafe fn $set_executable(
            executable: u64,
            node: u64,
            parameters: *const KernelNode,
        ) -> Outcome {
            let mut guard = state::lock()?;
            // SAFETY: the caller's promise.
            let kind = unsafe { guard.kernel_kind(parameters, $wide) }?;
            guard.set_executable_kind(executable, node, kind)
        }
    };
}

kernel_functions!(
    add_kernel_v1,
    set_kernel_v1,
    set_executable_kernel_v1,
    false
);
kernel_functions!(add_kernel, set_kernel, set_executable_kernel, true);

/// The values are handed out as pointers into a copy that lives as long as the thread asks for no other node.
pub unsafe fn get_kernel(node: u64, out: *mut KernelNode) -> Outcome {
    thread_local! {
        static VALUES: std::cell::RefCell<(Vec<u8>, Vec<*const u8>)> =
            const { std::cell::RefCell::new((Vec::new(), Vec::new())) };
    }
    let mut guard = state::lock()?;
    let NodeKind::Kernel(call, extra) = guard.node(node)?.kind.clone() else {
        return Code::INVALID_VALUE.fail("not a kernel node");
    };
    let function = if extra.function != 0 {
        extra.function
    } else {
        guard.function_named(call.kernel.module, &call.kernel.name)?
    };
    let parameters = VALUES.with_borrow_mut(|(bytes, pointers)| {
        bytes.clone_from(&call.parameters);
        *pointers = call
            .kernel
            .program
            .params
            .iter()
            .map(|parameter| bytes[parameter.offset as usize..].as_ptr())
            .collect();
        pointers.as_ptr()
    });
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the parameters");
    }
    // SAFETY: checked not to be null. The first version of the structure ends before `kernel`, so fields are written singly.
    unsafe {
        (*out).function = function;
        (*out).grid = call.config.grid;
        (*out).block = call.config.block;
        (*out).shared = call.config.dynamic_shared;
        (*out).parameters = parameters;
        (*out).extra = std::ptr::null();
    }
    Ok(())
}

pub unsafe fn get_kernel_v2(node: u64, out: *mut KernelNode) -> Outcome {
    // SAFETY: the caller's promise; the second version has all fields.
    unsafe {
        get_kernel(node, out)?;
        (*out).kernel = 0;
        (*out).context = 0;
    }
    Ok(())
}

pub unsafe fn add_memcpy(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    parameters: *const Memcpy3D,
    _context: u64,
) -> Outcome {
    let guard = state::lock()?;
    guard.graph(graph)?;
    // SAFETY: the caller's promise.
    unsafe {
        let raw = copy::read(parameters)?;
        let copy = copy::from_3d(&guard, &raw)?;
        add(
            guard,
            out,
            graph,
            after,
            count,
            NodeKind::Memcpy(Arc::new(copy), Some(raw)),
        )
    }
}

pub unsafe fn set_memcpy(node: u64, parameters: *const Memcpy3D) -> Outcome {
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let raw = unsafe { copy::read(parameters) }?;
    let copy = copy::from_3d(&guard, &raw)?;
    guard.set_kind(node, NodeKind::Memcpy(Arc::new(copy), Some(raw)))
}

pub unsafe fn set_executable_memcpy(
    executable: u64,
    node: u64,
    parameters: *const Memcpy3D,
    _context: u64,
) -> Outcome {
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let raw = unsafe { copy::read(parameters) }?;
    let copy = copy::from_3d(&guard, &raw)?;
    guard.set_executable_kind(
        executable,
        node,
        NodeKind::Memcpy(Arc::new(copy), Some(raw)),
    )
}

pub unsafe fn get_memcpy(node: u64, out: *mut Memcpy3D) -> Outcome {
    let guard = state::lock()?;
    match &guard.node(node)?.kind {
        NodeKind::Memcpy(_, Some(raw)) => put(out, *raw),
        NodeKind::Memcpy(copy, None) => put(out, copy::to_3d(&guard, copy)),
        _ => Code::INVALID_VALUE.fail("not a copy node"),
    }
}

pub unsafe fn add_memset(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    parameters: *const MemsetNode,
    _context: u64,
) -> Outcome {
    let guard = state::lock()?;
    guard.graph(graph)?;
    // SAFETY: the caller's promise.
    unsafe {
        let kind = guard.memset_kind(copy::read(parameters)?)?;
        add(guard, out, graph, after, count, kind)
    }
}

pub unsafe fn set_memset(node: u64, parameters: *const MemsetNode) -> Outcome {
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let kind = guard.memset_kind(unsafe { copy::read(parameters) }?)?;
    guard.set_kind(node, kind)
}

pub unsafe fn set_executable_memset(
    executable: u64,
    node: u64,
    parameters: *const MemsetNode,
    _context: u64,
) -> Outcome {
    let mut guard = state::lock()?;
    // SAFETY: the caller's promise.
    let kind = guard.memset_kind(unsafe { copy::read(parameters) }?)?;
    guard.set_executable_kind(executable, node, kind)
}

pub unsafe fn get_memset(node: u64, out: *mut MemsetNode) -> Outcome {
    let guard = state::lock()?;
    match &guard.node(node)?.kind {
        NodeKind::Memset(_, Some(raw)) => put(out, *raw),
        NodeKind::Memset(fill, None) => put(
            out,
            MemsetNode {
                destination: fill.address,
                pitch: fill.pitch,
                value: fill.value,
                element: fill.element as u32,
                width: fill.width,
                height: fill.height,
            },
        ),
        _ => Code::INVALID_VALUE.fail("not a memset node"),
    }
}

fn host_kind(node: HostNode) -> Outcome<NodeKind> {
    match node.function {
        Some(function) => Ok(NodeKind::Host(HostCall {
            function,
            data: node.data,
        })),
        None => Code::INVALID_VALUE.fail("the host function is null"),
    }
}

pub unsafe fn add_host(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    parameters: *const HostNode,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe {
        let kind = host_kind(copy::read(parameters)?)?;
        add(state::lock()?, out, graph, after, count, kind)
    }
}

pub unsafe fn set_host(node: u64, parameters: *const HostNode) -> Outcome {
    // SAFETY: the caller's promise.
    let kind = host_kind(unsafe { copy::read(parameters) }?)?;
    state::lock()?.set_kind(node, kind)
}

pub unsafe fn set_executable_host(
    executable: u64,
    node: u64,
    parameters: *const HostNode,
) -> Outcome {
    // SAFETY: the caller's promise.
    let kind = host_kind(unsafe { copy::read(parameters) }?)?;
    state::lock()?.set_executable_kind(executable, node, kind)
}

pub unsafe fn get_host(node: u64, out: *mut HostNode) -> Outcome {
    let guard = state::lock()?;
    match guard.node(node)?.kind {
        NodeKind::Host(call) => put(
            out,
            HostNode {
                function: Some(call.function),
                data: call.data,
            },
        ),
        _ => Code::INVALID_VALUE.fail("not a host node"),
    }
}

pub unsafe fn add_empty(out: *mut u64, graph: u64, after: *const u64, count: usize) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { add(state::lock()?, out, graph, after, count, NodeKind::Empty) }
}

pub unsafe fn add_child(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    child: u64,
) -> Outcome {
    let mut guard = state::lock()?;
    guard.graph(graph)?;
    guard.check_no_memory_nodes(child, "cuGraphAddChildGraphNode")?;
    let (inner, _) = guard.clone_graph(child, true)?;
    // SAFETY: the caller's promise.
    unsafe { add(guard, out, graph, after, count, NodeKind::Child(inner)) }
}

pub unsafe fn add_record(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    event: u64,
) -> Outcome {
    let guard = state::lock()?;
    guard.event(event)?;
    // SAFETY: the caller's promise.
    unsafe { add(guard, out, graph, after, count, NodeKind::Record(event)) }
}

pub unsafe fn add_wait(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    event: u64,
) -> Outcome {
    let guard = state::lock()?;
    guard.event(event)?;
    // SAFETY: the caller's promise.
    unsafe { add(guard, out, graph, after, count, NodeKind::Wait(event)) }
}

/// Both kinds of event nodes answer alike.
pub unsafe fn get_event(node: u64, out: *mut u64) -> Outcome {
    let guard = state::lock()?;
    match guard.node(node)?.kind {
        NodeKind::Record(event) | NodeKind::Wait(event) => put(out, event),
        _ => Code::INVALID_VALUE.fail("not an event node"),
    }
}

pub unsafe fn set_record(node: u64, event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.event(event)?;
    guard.set_kind(node, NodeKind::Record(event))
}

pub unsafe fn set_wait(node: u64, event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.event(event)?;
    guard.set_kind(node, NodeKind::Wait(event))
}

pub unsafe fn set_executable_record(executable: u64, node: u64, event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.event(event)?;
    guard.set_executable_kind(executable, node, NodeKind::Record(event))
}

pub unsafe fn set_executable_wait(executable: u64, node: u64, event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.event(event)?;
    guard.set_executable_kind(executable, node, NodeKind::Wait(event))
}

//! Memory of graphs: allocation nodes and free nodes.
//!
//! An allocation node has its address from the moment it is made, for as long as the graph or an executable graph of it exists: the range
//! is held in the arena of the device. It is memory only from the time at which the node is executed until it is freed, by a free node,
//! by `cuMemFreeAsync`, by `cuMemFree`, or by the next launch where the graph was instantiated so. A kernel that uses it at any other time
//! reaches for an illegal address, as with memory that was freed.
//!
//! Two orders matter. `live` is the order of calls: after a launch the allocations that the graph does not free itself may be freed by the program.
//! Whether the bytes are there is decided when the operations happen.

use std::collections::HashSet;

use super::error::{Code, Error, Outcome};
use super::graph::NodeKind;
use super::put;
use super::state::{self, Handle, State};
use super::virtual_memory::Access;
use super::work::Work;

/// The address range of an allocation node.
pub struct GraphBlock {
    pub bytes: u64,
    pub gpu: usize,
    number: u64,
    /// The graph of the allocation node.
    graph: Handle,
    /// The graph with a free node for it.
    freed_in: Option<Handle>,
    /// Graphs and executable graphs that have the allocation node.
    owners: u32,
    /// A launch has allocated it and it is not freed, in the order of calls.
    pub live: bool,
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`, with its pool properties taken apart.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AllocationNode {
    pub kind: u32,
    pub handle_types: u32,
    pub location: u32,
    pub device: i32,
    pub windows: u64,
    pub most: usize,
    pub usage: u16,
    pub reserved: [u8; 54],
    pub access: *const Access,
    pub access_count: usize,
    pub bytes: usize,
    pub address: u64,
}

impl State {
    /// The range of an allocation node that holds an address, and where it starts.
    pub fn graph_block(&self, address: u64) -> Option<(u64, &GraphBlock)> {
        let (&start, block) = self.graph_blocks.range(..=address).next_back()?;
        (address - start < block.bytes).then_some((start, block))
    }

    /// Whether a graph has allocation or free nodes: it cannot be cloned, put into another one, or have nodes and edges removed.
    pub fn check_no_memory_nodes(&self, graph: Handle, what: &str) -> Outcome {
        let has = self
            .graph(graph)?
            .nodes
            .values()
            .any(|node| matches!(node.kind, NodeKind::Allocate(_) | NodeKind::Free(_)));
        if has {
            return Code::NOT_SUPPORTED
                .fail(format!("{what}: the graph has allocation or free nodes"));
        }
        Ok(())
    }

    /// Holds a range for an allocation node of a graph.
    pub fn hold_for_graph(&mut self, graph: Handle, gpu: usize, bytes: u64) -> Outcome<u64> {
        if bytes == 0 {
            return Code::INVALID_VALUE.fail("0 bytes");
        }
        let place = &self.gpus[gpu];
        let held = match bytes <= place.memory {
            true => place.device.memory.hold(bytes),
            false => None,
        };
        let Some(address) = held else {
            return Code::OUT_OF_MEMORY.fail(format!("{bytes} bytes on device {gpu}"));
        };
        self.allocations += 1;
        self.graph_blocks.insert(
            address,
            GraphBlock {
                bytes,
                gpu,
                number: self.allocations,
                graph,
                freed_in: None,
                owners: 1,
                live: false,
            },
        );
        Ok(address)
    }

    /// Notes that a graph gets a free node for an address.
    pub fn free_in_graph(&mut self, graph: Handle, address: u64) -> Outcome {
        let Some(block) = self.graph_blocks.get_mut(&address) else {
            return Code::INVALID_VALUE.fail(format!(
                "{address:#x} is not the address of an allocation node"
            ));
        };
        if block.freed_in.is_some() {
            return Code::INVALID_VALUE.fail(format!("{address:#x} has a free node already"));
        }
        block.freed_in = Some(graph);
        Ok(())
    }

    /// One more, or one less, has the allocation nodes. What nobody has any more is given back.
    pub fn own_graph_memory<'a>(&mut self, kinds: impl Iterator<Item = &'a NodeKind>, more: bool) {
        let addresses: Vec<u64> = kinds
            .filter_map(|kind| match kind {
                NodeKind::Allocate(address) => Some(*address),
                _ => None,
            })
            .collect();
        for address in addresses {
            let Some(block) = self.graph_blocks.get_mut(&address) else {
                continue;
            };
            if more {
                block.owners += 1;
            } else {
                block.owners -= 1;
                self.forget_graph_block(address);
            }
        }
    }

    /// A graph with a free node is gone: another one may free the allocation.
    pub fn forget_free_nodes(&mut self, graph: Handle) {
        for block in self.graph_blocks.values_mut() {
            if block.freed_in == Some(graph) {
                block.freed_in = None;
            }
        }
    }

    /// Gives an address back that nothing can use any more. While an operation that frees it is pending that is not so; it
    /// comes here when it has happened.
    fn forget_graph_block(&mut self, address: u64) {
        let pending = self.queue.any(
            |work| matches!(work, Work::Bring(other) | Work::Withdraw(other) if *other == address),
        );
        let unused = |block: &GraphBlock| block.owners == 0 && !block.live && !pending;
        if self.graph_blocks.get(&address).is_some_and(unused)
            && let Some(block) = self.graph_blocks.remove(&address)
        {
            let memory = &self.gpus[block.gpu].device.memory;
            memory.withdraw(address);
            memory.release_hold(address, block.bytes);
        }
    }

    /// The memory of an allocation node is there from now on.
    pub fn bring(&mut self, address: u64) {
        let Some(block) = self.graph_blocks.get(&address) else {
            return;
        };
        let name = format!("the memory of graph allocation #{}", block.number);
        let gpu = &mut self.gpus[block.gpu];
        gpu.device.memory.bring(address, block.bytes, name);
        gpu.device.memory.defined.track(address, block.bytes);
        gpu.graph_used += block.bytes;
        gpu.graph_used_high = gpu.graph_used_high.max(gpu.graph_used);
    }

    /// It is gone from now on.
    pub fn withdraw(&mut self, address: u64) {
        let Some(block) = self.graph_blocks.get(&address) else {
            return;
        };
        let gpu = &mut self.gpus[block.gpu];
        if gpu.device.memory.withdraw(address) {
            gpu.graph_used -= block.bytes;
        }
        self.forget_graph_block(address);
    }

    /// The error of a copy or a memset whose memory belongs to an allocation node and is not there when the operation happens.
    pub fn missing_graph_memory(&self, work: &Work) -> Option<Error> {
        let ends = match work {
            Work::Copy(copy) => [copy.source, copy.destination],
            Work::Fill(fill) => [fill.address; 2],
            _ => return None,
        };
        ends.into_iter().find_map(|address| {
            let (start, block) = self.graph_block(address)?;
            let there = self.gpus[block.gpu].device.memory.find(address).is_some();
            (!there).then(|| {
                Code::ILLEGAL_ADDRESS.because(format!(
                    "an operation uses {address:#x} of graph allocation #{} ({} bytes at {start:#x}) before it is allocated or after it is freed",
                    block.number, block.bytes
                ))
            })
        })
    }

    /// Notes that the program frees what a launch has allocated; whether it was allocated.
    pub fn free_graph_block(&mut self, address: u64) -> bool {
        match self.graph_blocks.get_mut(&address) {
            Some(block) if block.live && block.freed_in != Some(block.graph) => {
                block.live = false;
                true
            }
            _ => false,
        }
    }

    /// Checks what a launch allocates and frees, and notes it. Returns what it frees first.
    pub fn launch_memory(&mut self, kinds: &[NodeKind], free_first: bool) -> Outcome<Vec<u64>> {
        let addresses = |wanted: fn(&NodeKind) -> Option<u64>| -> HashSet<u64> {
            kinds.iter().filter_map(wanted).collect()
        };
        let allocated = addresses(|kind| match kind {
            NodeKind::Allocate(address) => Some(*address),
            _ => None,
        });
        let freed = addresses(|kind| match kind {
            NodeKind::Free(address) => Some(*address),
            _ => None,
        });
        let live = |address: &u64| self.graph_blocks.get(address).is_some_and(|b| b.live);
        let mut first: Vec<u64> = allocated.iter().copied().filter(live).collect();
        first.sort_unstable();
        if let Some(address) = first.first()
            && !free_first
        {
            return Code::INVALID_VALUE.fail(format!(
                "the allocation at {address:#x} of an earlier launch is not freed"
            ));
        }
        if let Some(address) = freed.difference(&allocated).find(|address| !live(address)) {
            return Code::INVALID_VALUE.fail(format!(
                "{address:#x}, which the graph frees, is not allocated"
            ));
        }
        for (&address, block) in &mut self.graph_blocks {
            if freed.contains(&address) {
                block.live = false;
            } else if allocated.contains(&address) {
                block.live = true;
            }
        }
        Ok(first)
    }
}

pub unsafe fn add_allocation(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    node: *mut AllocationNode,
) -> Outcome {
    const PINNED: u32 = 1;
    const ON_DEVICE: u32 = 1;
    // SAFETY: the caller's promise.
    let (after, given) = unsafe {
        (
            super::graph_api::read_nodes(after, count)?,
            super::copy::read(node.cast_const())?,
        )
    };
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the node");
    }
    if given.kind != PINNED || given.location != ON_DEVICE || given.handle_types != 0 {
        return Code::INVALID_VALUE.fail(format!(
            "memory of type {} at a location of type {} with handles of types {:#x}",
            given.kind, given.location, given.handle_types
        ));
    }
    let mut guard = state::lock()?;
    let gpu = guard.gpu(given.device)?;
    for index in 0..given.access_count {
        if given.access.is_null() {
            return Code::INVALID_VALUE.fail("a null list of access descriptions");
        }
        // SAFETY: the caller's list has so many elements.
        let access = unsafe { *given.access.add(index) };
        if guard.gpu(access.device)? != gpu {
            return Code::NOT_SUPPORTED.fail("memory of graphs that other devices use");
        }
    }
    guard.graph(graph)?;
    let address = guard.hold_for_graph(graph, gpu, given.bytes as u64)?;
    match guard.add_node(graph, NodeKind::Allocate(address), &after) {
        Ok(handle) => {
            // SAFETY: checked not to be null by reading it.
            unsafe { (*node).address = address };
            put(out, handle)
        }
        Err(error) => {
            guard.own_graph_memory([NodeKind::Allocate(address)].iter(), false);
            Err(error)
        }
    }
}

pub unsafe fn add_free(
    out: *mut u64,
    graph: u64,
    after: *const u64,
    count: usize,
    address: u64,
) -> Outcome {
    // SAFETY: the caller's promise.
    let after = unsafe { super::graph_api::read_nodes(after, count) }?;
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the node");
    }
    let mut guard = state::lock()?;
    guard.graph(graph)?;
    guard.free_in_graph(graph, address)?;
    match guard.add_node(graph, NodeKind::Free(address), &after) {
        Ok(handle) => put(out, handle),
        Err(error) => {
            if let Some(block) = guard.graph_blocks.get_mut(&address) {
                block.freed_in = None;
            }
            Err(error)
        }
    }
}

pub unsafe fn get_allocation(node: u64, out: *mut AllocationNode) -> Outcome {
    let guard = state::lock()?;
    let NodeKind::Allocate(address) = guard.node(node)?.kind else {
        return Code::INVALID_VALUE.fail("not an allocation node");
    };
    let Some(block) = guard.graph_blocks.get(&address) else {
        return Code::INVALID_VALUE.fail("the allocation is gone");
    };
    put(
        out,
        AllocationNode {
            kind: 1,
            handle_types: 0,
            location: 1,
            device: block.gpu as i32,
            windows: 0,
            most: 0,
            usage: 0,
            reserved: [0; 54],
            access: std::ptr::null(),
            access_count: 0,
            bytes: block.bytes as usize,
            address,
        },
    )
}

pub unsafe fn get_free(node: u64, out: *mut u64) -> Outcome {
    let guard = state::lock()?;
    match guard.node(node)?.kind {
        NodeKind::Free(address) => put(out, address),
        _ => Code::INVALID_VALUE.fail("not a free node"),
    }
}

/// `CUgraphMem_attribute`: used now and at most, reserved now and at most. Nothing is held back, so both pairs are the same.
pub unsafe fn attribute(device: i32, which: u32, out: *mut u64) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let gpu = &guard.gpus[gpu];
    match which {
        0 | 2 => put(out, gpu.graph_used),
        1 | 3 => put(out, gpu.graph_used_high),
        _ => Code::INVALID_VALUE.fail(format!("no attribute {which}")),
    }
}

/// Only the two marks can be set, and only back to 0.
pub unsafe fn set_attribute(device: i32, which: u32, value: *const u64) -> Outcome {
    // SAFETY: the caller's promise.
    let value = unsafe { super::copy::read(value) }?;
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    if !matches!(which, 1 | 3) || value != 0 {
        return Code::INVALID_VALUE.fail(format!("attribute {which} cannot be set to {value}"));
    }
    let gpu = &mut guard.gpus[gpu];
    gpu.graph_used_high = gpu.graph_used;
    Ok(())
}

//! Graphs: nodes with an order, made executable, launched as operations of the queue.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::error::{Code, Outcome};
use super::queue::OpId;
use super::state::{Handle, State};
use super::types::{Memcpy3D, MemsetNode};
use super::user_objects::Objects;
use super::work::{Copy, Fill, HostCall, KernelCall, Stamp, Value, Work};

/// `CUgraph`. Nodes are ordered by handle, which is the order in which they were added.
#[derive(Clone, Default)]
pub struct Graph {
    pub nodes: BTreeMap<Handle, Node>,
    /// It is the content of a child node of another graph: destroyed with it.
    pub owned: bool,
    /// User objects that live as long as the graph, with the references it holds.
    pub objects: Objects,
}

/// A node.
#[derive(Clone)]
pub struct Node {
    pub kind: NodeKind,
    /// Nodes that it comes after.
    pub after: Vec<Handle>,
    pub enabled: bool,
}

/// What a node does.
#[derive(Clone)]
pub enum NodeKind {
    Empty,
    Kernel(Arc<KernelCall>, KernelExtra),
    Memcpy(Arc<Copy>, Option<Memcpy3D>),
    Memset(Fill, Option<MemsetNode>),
    Host(HostCall),
    /// The handle of the graph inside.
    Child(Handle),
    Record(Handle),
    Wait(Handle),
    WriteValue(Value),
    WaitValue(Value, super::work::Condition),
    /// The address that the node allocates, and one that it frees.
    Allocate(u64),
    Free(u64),
}

/// What was given for a kernel node and has to be given back.
#[derive(Clone, Copy, Default)]
pub struct KernelExtra {
    pub function: Handle,
}

impl NodeKind {
    /// The node that a captured operation becomes; `None` where a graph cannot hold it.
    pub fn of_work(work: Work) -> Option<NodeKind> {
        Some(match work {
            Work::Nothing => NodeKind::Empty,
            Work::Kernel(call) => NodeKind::Kernel(call, KernelExtra::default()),
            Work::Copy(copy) => NodeKind::Memcpy(copy, None),
            Work::Fill(fill) => NodeKind::Memset(fill, None),
            Work::Host(call) => NodeKind::Host(call),
            Work::WriteValue(value) => NodeKind::WriteValue(value),
            Work::WaitValue(value, condition) => NodeKind::WaitValue(value, condition),
            Work::Callback(_)
            | Work::Record(_)
            | Work::Free(_)
            | Work::Bring(_)
            | Work::Withdraw(_) => return None,
        })
    }

    /// `CUgraphNodeType`
    pub fn code(&self) -> u32 {
        match self {
            NodeKind::Kernel(..) => 0,
            NodeKind::Memcpy(..) => 1,
            NodeKind::Memset(..) => 2,
            NodeKind::Host(_) => 3,
            NodeKind::Child(_) => 4,
            NodeKind::Empty => 5,
            NodeKind::Wait(_) => 6,
            NodeKind::Record(_) => 7,
            NodeKind::Allocate(_) => 10,
            NodeKind::Free(_) => 11,
            NodeKind::WriteValue(_) | NodeKind::WaitValue(..) => 12,
        }
    }
}

/// `CUgraphExec`: the nodes in an order in which each comes after what it depends on.
pub struct Executable {
    pub nodes: Vec<ExecutableNode>,
    pub flags: u64,
    /// The graph it was made from.
    pub origin: Handle,
    /// The last operation of the latest launch: an executable graph does not overlap itself.
    pub last: Option<OpId>,
    pub objects: Objects,
}

#[derive(Clone)]
pub struct ExecutableNode {
    /// The node it was made from.
    pub origin: Handle,
    pub kind: NodeKind,
    /// Indices of nodes that it comes after.
    pub after: Vec<usize>,
    pub enabled: bool,
    /// The content of a child node.
    pub inner: Option<Vec<ExecutableNode>>,
}

impl State {
    pub fn new_graph(&mut self, graph: Graph) -> Handle {
        let handle = self.handle();
        self.graphs.insert(handle, graph);
        handle
    }

    pub fn graph(&self, handle: Handle) -> Outcome<&Graph> {
        self.graphs
            .get(&handle)
            .ok_or_else(|| Code::INVALID_VALUE.because(format!("{handle:#x} is no graph")))
    }

    pub fn executable(&mut self, handle: Handle) -> Outcome<&mut Executable> {
        self.executables.get_mut(&handle).ok_or_else(|| {
            Code::INVALID_VALUE.because(format!("{handle:#x} is no executable graph"))
        })
    }

    pub fn node(&self, handle: Handle) -> Outcome<&Node> {
        self.nodes
            .get(&handle)
            .and_then(|graph| self.graphs.get(graph))
            .and_then(|graph| graph.nodes.get(&handle))
            .ok_or_else(|| Code::INVALID_VALUE.because(format!("{handle:#x} is no graph node")))
    }

    pub fn node_mut(&mut self, handle: Handle) -> Outcome<&mut Node> {
        self.nodes
            .get(&handle)
            .and_then(|graph| self.graphs.get_mut(graph))
            .and_then(|graph| graph.nodes.get_mut(&handle))
            .ok_or_else(|| Code::INVALID_VALUE.because(format!("{handle:#x} is no graph node")))
    }

    /// Adds a node after others of the same graph.
    pub fn add_node(&mut self, graph: Handle, kind: NodeKind, after: &[Handle]) -> Outcome<Handle> {
        let known = self.graph(graph)?;
        let mut seen = HashSet::new();
        for node in after {
            if !known.nodes.contains_key(node) {
                return Code::INVALID_VALUE.fail(format!("{node:#x} is no node of the graph"));
            }
            if !seen.insert(node) {
                return Code::INVALID_VALUE.fail("a node is named twice as a dependency");
            }
        }
        let handle = self.handle();
        self.nodes.insert(handle, graph);
        if let Some(graph) = self.graphs.get_mut(&graph) {
            graph.nodes.insert(
                handle,
                Node {
                    kind,
                    after: after.to_vec(),
                    enabled: true,
                },
            );
        }
        Ok(handle)
    }

    /// A copy of a graph with nodes of its own; also which node became which.
    pub fn clone_graph(
        &mut self,
        graph: Handle,
        owned: bool,
    ) -> Outcome<(Handle, HashMap<Handle, Handle>)> {
        let source = self.graph(graph)?.clone();
        let copy = self.new_graph(Graph {
            nodes: BTreeMap::new(),
            owned,
            objects: source.objects.clone(),
        });
        self.retain_objects(&source.objects);
        let mut names = HashMap::new();
        for &node in source.nodes.keys() {
            let handle = self.handle();
            names.insert(node, handle);
            self.nodes.insert(handle, copy);
        }
        for (node, entry) in source.nodes {
            let mut entry = entry;
            entry
                .after
                .iter_mut()
                .for_each(|before| *before = names[before]);
            if let NodeKind::Child(inner) = entry.kind {
                entry.kind = NodeKind::Child(self.clone_graph(inner, true)?.0);
            }
            if let Some(graph) = self.graphs.get_mut(&copy) {
                graph.nodes.insert(names[&node], entry);
            }
        }
        Ok((copy, names))
    }

    /// Removes a graph, its nodes and the graphs inside.
    pub fn destroy_graph(&mut self, handle: Handle) {
        let Some(graph) = self.graphs.remove(&handle) else {
            return;
        };
        self.release_objects(&graph.objects, None);
        self.own_graph_memory(graph.nodes.values().map(|node| &node.kind), false);
        self.forget_free_nodes(handle);
        for (node, entry) in graph.nodes {
            self.nodes.remove(&node);
            if let NodeKind::Child(inner) = entry.kind {
                self.destroy_graph(inner);
            }
        }
    }

    /// Puts the nodes into an order of execution. An error when they form a cycle.
    pub fn flatten(&self, graph: Handle) -> Outcome<Vec<ExecutableNode>> {
        let graph = self.graph(graph)?;
        let mut index: HashMap<Handle, usize> = HashMap::new();
        let mut out: Vec<ExecutableNode> = Vec::new();
        let mut open: Vec<Handle> = graph.nodes.keys().copied().collect();
        while !open.is_empty() {
            let before = open.len();
            let mut waiting = Vec::new();
            for node in open {
                let entry = &graph.nodes[&node];
                if !entry.after.iter().all(|before| index.contains_key(before)) {
                    waiting.push(node);
                    continue;
                }
                let inner = match entry.kind {
                    NodeKind::Child(inner) => Some(self.flatten(inner)?),
                    _ => None,
                };
                index.insert(node, out.len());
                out.push(ExecutableNode {
                    origin: node,
                    kind: entry.kind.clone(),
                    after: entry.after.iter().map(|before| index[before]).collect(),
                    enabled: entry.enabled,
                    inner,
                });
            }
            if waiting.len() == before {
                return Code::INVALID_VALUE.fail("the nodes of the graph form a cycle");
            }
            open = waiting;
        }
        Ok(out)
    }

    /// Launches an executable graph into a stream that does not capture.
    pub fn launch_graph(&mut self, executable: Handle, stream: Handle) -> Outcome {
        let entry = self.executable(executable)?;
        let (nodes, last) = (entry.nodes.clone(), entry.last);
        let free_first = entry.flags & super::graph_api::AUTO_FREE != 0;
        let context = self.stream(stream)?.context;
        // Memory nodes are only in the graph itself, never in a child.
        let kinds: Vec<NodeKind> = nodes.iter().map(|node| node.kind.clone()).collect();
        let unfreed = self.launch_memory(&kinds, free_first)?;
        let mut after = self.predecessors(stream)?;
        after.extend(last);
        for address in unfreed {
            let freed = self.queue.add(context, Work::Withdraw(address), after);
            after = vec![freed];
        }
        let start = self.queue.add(context, Work::Nothing, after);
        let ends = self.launch_nodes(context, start, &nodes)?;
        let end = self.queue.add(context, Work::Nothing, ends);
        self.stream_mut(stream)?.last = Some(end);
        self.executable(executable)?.last = Some(end);
        Ok(())
    }

    /// Adds the nodes to the queue, after `start`. Returns what the end has to wait for.
    fn launch_nodes(
        &mut self,
        context: Handle,
        start: OpId,
        nodes: &[ExecutableNode],
    ) -> Outcome<Vec<OpId>> {
        let mut ids: Vec<OpId> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let mut after: Vec<OpId> = node.after.iter().map(|&index| ids[index]).collect();
            if after.is_empty() {
                after.push(start);
            }
            let id = if !node.enabled {
                self.queue.add(context, Work::Nothing, after)
            } else {
                self.launch_node(context, node, after)?
            };
            ids.push(id);
        }
        ids.push(start);
        Ok(ids)
    }

    fn launch_node(
        &mut self,
        context: Handle,
        node: &ExecutableNode,
        mut after: Vec<OpId>,
    ) -> Outcome<OpId> {
        let work = match &node.kind {
            NodeKind::Empty => Work::Nothing,
            NodeKind::Kernel(call, _) => Work::Kernel(call.clone()),
            NodeKind::Memcpy(copy, _) => Work::Copy(copy.clone()),
            NodeKind::Memset(fill, _) => Work::Fill(*fill),
            NodeKind::Host(call) => Work::Host(*call),
            NodeKind::WriteValue(value) => Work::WriteValue(*value),
            NodeKind::WaitValue(value, condition) => Work::WaitValue(*value, *condition),
            NodeKind::Allocate(address) => Work::Bring(*address),
            NodeKind::Free(address) => Work::Withdraw(*address),
            NodeKind::Record(event) => {
                let stamp = Arc::new(Stamp::default());
                let id = self.queue.add(context, Work::Record(stamp.clone()), after);
                if let Ok(event) = self.event_mut(*event) {
                    event.recorded = Some((id, stamp));
                    event.captured = None;
                }
                return Ok(id);
            }
            NodeKind::Wait(event) => {
                after.extend(self.event(*event)?.recorded.as_ref().map(|(id, _)| *id));
                Work::Nothing
            }
            NodeKind::Child(_) => {
                let start = self.queue.add(context, Work::Nothing, after);
                let inner = node.inner.as_deref().unwrap_or_default();
                let ends = self.launch_nodes(context, start, inner)?;
                return Ok(self.queue.add(context, Work::Nothing, ends));
            }
        };
        Ok(self.queue.add(context, work, after))
    }
}

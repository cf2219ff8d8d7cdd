//! Stream capture: what is put into a capturing stream becomes a node of a graph.
//!
//! A capture starts in one stream and spreads: a stream that waits for an event recorded in a capturing stream captures too.
//! Calls that a capture cannot hold (synchronising, or touching the legacy default stream meanwhile) are errors and
//! invalidate it, depending on the mode of the capture and of the calling thread.

use std::collections::HashMap;
use std::thread::ThreadId;

use super::error::{Code, Outcome};
use super::graph::{Graph, NodeKind};
use super::put;
use super::queue::OpId;
use super::state::{self, CAPTURE_MODE, Handle, State};
use super::work::{Stamp, Work};

/// `CUstreamCaptureMode`
pub mod mode {
    pub const GLOBAL: u32 = 0;
    pub const THREAD_LOCAL: u32 = 1;
    pub const RELAXED: u32 = 2;
}

/// A capture in progress.
pub struct Capture {
    pub graph: Handle,
    pub origin: Handle,
    pub thread: ThreadId,
    pub mode: u32,
    pub valid: bool,
    /// The graph was the caller's.
    pub into_existing: bool,
    /// For each stream that takes part, the nodes that its next one comes after.
    pub frontier: HashMap<Handle, Vec<Handle>>,
}

impl State {
    /// Puts work into a stream: an operation, or a node when the stream captures.
    pub fn submit(&mut self, stream: Handle, work: Work) -> Outcome<Option<OpId>> {
        match self.stream(stream)?.capture {
            Some(capture) => {
                let kind = NodeKind::of_work(work).ok_or_else(|| {
                    self.invalidate(capture);
                    Code::STREAM_CAPTURE_UNSUPPORTED.because("the operation cannot be captured")
                })?;
                self.capture_node(capture, stream, kind)?;
                Ok(None)
            }
            None => {
                self.check_implicit(stream)?;
                self.enqueue(stream, work).map(Some)
            }
        }
    }

    /// Adds a node at the frontier of a stream.
    pub fn capture_node(
        &mut self,
        capture: Handle,
        stream: Handle,
        kind: NodeKind,
    ) -> Outcome<Handle> {
        let entry = self.valid_capture(capture)?;
        let graph = entry.graph;
        let after = entry.frontier.get(&stream).cloned().unwrap_or_default();
        let node = self.add_node(graph, kind, &after)?;
        if let Some(entry) = self.captures.get_mut(&capture) {
            entry.frontier.insert(stream, vec![node]);
        }
        Ok(node)
    }

    pub fn valid_capture(&self, capture: Handle) -> Outcome<&Capture> {
        let entry = self
            .captures
            .get(&capture)
            .ok_or_else(|| Code::ILLEGAL_STATE.because("the capture has ended"))?;
        if !entry.valid {
            return Code::STREAM_CAPTURE_INVALIDATED.fail("an earlier call broke the capture");
        }
        Ok(entry)
    }

    pub fn invalidate(&mut self, capture: Handle) {
        if let Some(entry) = self.captures.get_mut(&capture) {
            entry.valid = false;
        }
    }

    /// The legacy default stream waits for all blocking streams; one of them that captures cannot be waited for.
    fn check_implicit(&mut self, stream: Handle) -> Outcome {
        let entry = self.stream(stream)?;
        if !entry.legacy || self.captures.is_empty() {
            return Ok(());
        }
        let context = entry.context;
        let capturing = self.streams.values().find(|other| {
            other.context == context && !other.non_blocking && other.capture.is_some()
        });
        if let Some(capture) = capturing.and_then(|other| other.capture) {
            self.invalidate(capture);
            return Code::STREAM_CAPTURE_IMPLICIT
                .fail("the legacy default stream would wait for a stream that captures");
        }
        Ok(())
    }

    /// Called by functions that are unsafe during a capture (they may synchronise): an error when a capture of this thread, or a
    /// global one, forbids it.
    pub fn check_unsafe_call(&mut self, what: &str) -> Outcome {
        if self.captures.is_empty() || CAPTURE_MODE.get() == mode::RELAXED {
            return Ok(());
        }
        let thread = std::thread::current().id();
        let local = CAPTURE_MODE.get() == mode::THREAD_LOCAL;
        let hit = self
            .captures
            .iter()
            .find(|(_, capture)| match capture.mode {
                mode::GLOBAL => !local || capture.thread == thread,
                mode::THREAD_LOCAL => capture.thread == thread,
                _ => false,
            });
        if let Some((&capture, _)) = hit {
            self.invalidate(capture);
            return Code::STREAM_CAPTURE_UNSUPPORTED
                .fail(format!("{what} is not allowed while a stream captures"));
        }
        Ok(())
    }

    /// Called by functions that wait for a stream: a capturing stream cannot be waited for.
    pub fn check_not_capturing(&mut self, stream: Handle, what: &str) -> Outcome {
        if let Some(capture) = self.stream(stream)?.capture {
            self.invalidate(capture);
            return Code::STREAM_CAPTURE_UNSUPPORTED.fail(format!("{what}: the stream captures"));
        }
        self.check_implicit(stream)
    }

    /// `cuEventRecord`.
    pub fn record(&mut self, event: Handle, stream: Handle) -> Outcome {
        self.event(event)?;
        if let Some(capture) = self.stream(stream)?.capture {
            let nodes = self
                .valid_capture(capture)?
                .frontier
                .get(&stream)
                .cloned()
                .unwrap_or_default();
            self.event_mut(event)?.captured = Some((capture, nodes));
            return Ok(());
        }
        let stamp = std::sync::Arc::new(Stamp::default());
        self.check_implicit(stream)?;
        let id = self.enqueue(stream, Work::Record(stamp.clone()))?;
        let entry = self.event_mut(event)?;
        entry.recorded = Some((id, stamp));
        entry.captured = None;
        Ok(())
    }

    /// `cuStreamWaitEvent`.
    pub fn wait_event(&mut self, stream: Handle, event: Handle) -> Outcome {
        let entry = self.event(event)?;
        let own = self.stream(stream)?.capture;
        if let Some((capture, nodes)) = entry.captured.clone() {
            if !self.captures.contains_key(&capture) {
                return Code::ILLEGAL_STATE
                    .fail("the event was recorded in a capture that has ended");
            }
            self.valid_capture(capture)?;
            match own {
                None => {
                    if self.stream(stream)?.legacy {
                        self.invalidate(capture);
                        return Code::STREAM_CAPTURE_IMPLICIT
                            .fail("the legacy default stream cannot join a capture");
                    }
                    self.stream_mut(stream)?.capture = Some(capture);
                }
                Some(other) if other != capture => {
                    self.invalidate(capture);
                    self.invalidate(other);
                    return Code::STREAM_CAPTURE_MERGE
                        .fail("the stream and the event belong to different captures");
                }
                Some(_) => {}
            }
            if let Some(entry) = self.captures.get_mut(&capture) {
                let frontier = entry.frontier.entry(stream).or_default();
                for node in nodes {
                    if !frontier.contains(&node) {
                        frontier.push(node);
                    }
                }
            }
            return Ok(());
        }
        if let Some(capture) = own {
            self.invalidate(capture);
            return Code::STREAM_CAPTURE_ISOLATION.fail(
                "a capturing stream cannot wait for an event of a stream that does not capture",
            );
        }
        let before = self.event(event)?.recorded.as_ref().map(|(id, _)| *id);
        if let Some(before) = before.filter(|&id| self.queue.pending(id)) {
            self.stream_mut(stream)?.waits.push(before);
        }
        Ok(())
    }
}

pub unsafe fn begin(stream: u64, mode: u32) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    guard.begin_capture(stream, mode, None, Vec::new())
}

pub unsafe fn begin_v1(stream: u64) -> Outcome {
    // SAFETY: no pointers.
    unsafe { begin(stream, mode::GLOBAL) }
}

pub unsafe fn begin_to_graph(
    stream: u64,
    graph: u64,
    dependencies: *const u64,
    _edges: *const core::ffi::c_void,
    count: usize,
    mode: u32,
) -> Outcome {
    // SAFETY: the caller's promise.
    let dependencies = unsafe { super::graph_api::read_nodes(dependencies, count) }?;
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    guard.graph(graph)?;
    guard.begin_capture(stream, mode, Some(graph), dependencies)
}

impl State {
    fn begin_capture(
        &mut self,
        stream: Handle,
        mode: u32,
        graph: Option<Handle>,
        frontier: Vec<Handle>,
    ) -> Outcome {
        if mode > mode::RELAXED {
            return Code::INVALID_VALUE.fail(format!("no capture mode {mode}"));
        }
        let entry = self.stream(stream)?;
        if entry.legacy {
            return Code::STREAM_CAPTURE_UNSUPPORTED
                .fail("the legacy default stream cannot capture");
        }
        if entry.capture.is_some() {
            return Code::ILLEGAL_STATE.fail("the stream captures already");
        }
        let into_existing = graph.is_some();
        let graph = match graph {
            Some(graph) => graph,
            None => self.new_graph(Graph::default()),
        };
        let capture = self.handle();
        self.captures.insert(
            capture,
            Capture {
                graph,
                origin: stream,
                thread: std::thread::current().id(),
                mode,
                valid: true,
                into_existing,
                frontier: HashMap::from([(stream, frontier)]),
            },
        );
        self.stream_mut(stream)?.capture = Some(capture);
        Ok(())
    }
}

pub unsafe fn end(stream: u64, out: *mut u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let Some(handle) = guard.stream(stream)?.capture else {
        return Code::ILLEGAL_STATE.fail("the stream does not capture");
    };
    let Some(capture) = guard.captures.get(&handle) else {
        return Code::ILLEGAL_STATE.fail("the capture has ended");
    };
    if capture.origin != stream {
        guard.invalidate(handle);
        return Code::STREAM_CAPTURE_UNMATCHED.fail("the capture began in another stream");
    }
    if capture.mode != mode::RELAXED && capture.thread != std::thread::current().id() {
        return Code::STREAM_CAPTURE_WRONG_THREAD.fail("the capture began in another thread");
    }
    let Some(capture) = guard.captures.remove(&handle) else {
        return Code::ILLEGAL_STATE.fail("the capture has ended");
    };
    for entry in guard.streams.values_mut() {
        if entry.capture == Some(handle) {
            entry.capture = None;
        }
    }
    let unjoined = capture.valid && guard.has_unjoined(&capture);
    if !capture.valid || unjoined {
        if !capture.into_existing {
            guard.destroy_graph(capture.graph);
        }
        if !out.is_null() {
            put(out, 0)?;
        }
        return if unjoined {
            Code::STREAM_CAPTURE_UNJOINED
                .fail("a stream that joined the capture was not waited for by its origin")
        } else {
            Code::STREAM_CAPTURE_INVALIDATED.fail("an earlier call broke the capture")
        };
    }
    put(out, capture.graph)
}

impl State {
    /// Whether some captured node is neither before the origin's frontier nor on it.
    fn has_unjoined(&self, capture: &Capture) -> bool {
        let Ok(graph) = self.graph(capture.graph) else {
            return false;
        };
        let mut reached: Vec<Handle> = Vec::new();
        let mut open = capture
            .frontier
            .get(&capture.origin)
            .cloned()
            .unwrap_or_default();
        while let Some(node) = open.pop() {
            if !reached.contains(&node) {
                reached.push(node);
                if let Some(entry) = graph.nodes.get(&node) {
                    open.extend(&entry.after);
                }
            }
        }
        capture
            .frontier
            .values()
            .flatten()
            .any(|node| !reached.contains(node))
    }
}

/// `CUstreamCaptureStatus`
fn status(state: &State, stream: Handle) -> Outcome<(u32, Handle)> {
    Ok(match state.stream(stream)?.capture {
        None => (0, 0),
        Some(handle) => match state.captures.get(&handle) {
            Some(capture) if capture.valid => (1, handle),
            _ => (2, handle),
        },
    })
}

pub unsafe fn is_capturing(stream: u64, out: *mut u32) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    if guard.stream(stream)?.legacy {
        guard.check_implicit(stream)?;
    }
    put(out, status(&guard, stream)?.0)
}

pub unsafe fn info_v1(stream: u64, out: *mut u32, id: *mut u64) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe {
        info(
            stream,
            out,
            id,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    }
}

/// The list of dependencies is handed out as a pointer that stays good until the next call on this thread.
pub unsafe fn info(
    stream: u64,
    out: *mut u32,
    id: *mut u64,
    graph: *mut u64,
    dependencies: *mut *const u64,
    count: *mut usize,
) -> Outcome {
    thread_local! {
        static LIST: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let (status, handle) = status(&guard, stream)?;
    put(out, status)?;
    if status != 1 {
        return Ok(());
    }
    let capture = guard.valid_capture(handle)?;
    if !id.is_null() {
        put(id, handle)?;
    }
    if !graph.is_null() {
        put(graph, capture.graph)?;
    }
    let frontier = capture.frontier.get(&stream).cloned().unwrap_or_default();
    if !count.is_null() {
        put(count, frontier.len())?;
    }
    if !dependencies.is_null() {
        let pointer = LIST.with_borrow_mut(|list| {
            *list = frontier;
            list.as_ptr()
        });
        put(dependencies, pointer)?;
    }
    Ok(())
}

pub unsafe fn info_v3(
    stream: u64,
    out: *mut u32,
    id: *mut u64,
    graph: *mut u64,
    dependencies: *mut *const u64,
    edges: *mut u64,
    count: *mut usize,
) -> Outcome {
    if !edges.is_null() {
        put(edges, 0)?;
    }
    // SAFETY: the caller's promise.
    unsafe { info(stream, out, id, graph, dependencies, count) }
}

/// `CU_STREAM_ADD_CAPTURE_DEPENDENCIES` is 0, `CU_STREAM_SET_CAPTURE_DEPENDENCIES` is 1.
pub unsafe fn update(stream: u64, nodes: *const u64, count: usize, flags: u32) -> Outcome {
    // SAFETY: the caller's promise.
    let nodes = unsafe { super::graph_api::read_nodes(nodes, count) }?;
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let Some(handle) = guard.stream(stream)?.capture else {
        return Code::ILLEGAL_STATE.fail("the stream does not capture");
    };
    let graph = guard.valid_capture(handle)?.graph;
    for node in &nodes {
        if guard.nodes.get(node) != Some(&graph) {
            return Code::INVALID_VALUE.fail(format!("{node:#x} is no node of the captured graph"));
        }
    }
    if flags > 1 {
        return Code::INVALID_VALUE.fail(format!("flags {flags}"));
    }
    if let Some(capture) = guard.captures.get_mut(&handle) {
        let frontier = capture.frontier.entry(stream).or_default();
        if flags == 1 {
            frontier.clear();
        }
        for node in nodes {
            if !frontier.contains(&node) {
                frontier.push(node);
            }
        }
    }
    Ok(())
}

pub unsafe fn update_v2(
    stream: u64,
    nodes: *const u64,
    _edges: *const core::ffi::c_void,
    count: usize,
    flags: u32,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { update(stream, nodes, count, flags) }
}

pub unsafe fn exchange_mode(mode: *mut u32) -> Outcome {
    if mode.is_null() {
        return Code::INVALID_VALUE.fail("no place for the mode");
    }
    // SAFETY: checked not to be null.
    let wanted = unsafe { *mode };
    if wanted > mode::RELAXED {
        return Code::INVALID_VALUE.fail(format!("no capture mode {wanted}"));
    }
    put(mode, CAPTURE_MODE.replace(wanted))
}

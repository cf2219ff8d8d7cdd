//! CUDA graphs: a step is captured once from a stream and replayed.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use cust::context::CurrentContext;
use cust::error::CudaResult;
use cust::stream::Stream;

use super::bindings::{
    self, CUgraph, CUgraphExec, CUgraphExecUpdateResultInfo, CUstream,
    CUstreamCaptureMode_enum as CaptureMode,
};
use super::{DriverError, check};

/// Held by a capture and by what waits for the whole context: the driver refuses a wait while any stream of the context captures, and
/// ends that capture, whichever thread it belongs to. So it does with a copy in the default stream, which waits for the other streams;
/// they do so, too, as cust makes no others.
static CAPTURE_OR_WAIT: Mutex<()> = Mutex::new(());

thread_local! {
    /// This thread captures.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

fn exclusive() -> MutexGuard<'static, ()> {
    CAPTURE_OR_WAIT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Waits for everything that the current context was given, after captures of other threads have ended.
///
/// # Errors
/// Those of the work that is waited for; and the driver's when this thread captures, as nothing captured is ever executed.
pub fn wait_for_context() -> Result<(), DriverError> {
    after_all(|| Ok(()))
}

/// Waits for everything that the current context was given, and copies before another thread captures.
///
/// # Errors
/// Those of [`wait_for_context`], and of the copy.
pub fn after_all(copy: impl FnOnce() -> CudaResult<()>) -> Result<(), DriverError> {
    let _alone = (!CAPTURING.get()).then(exclusive);
    CurrentContext::synchronize()
        .and_then(|()| copy())
        .map_err(DriverError::from)
}

/// A captured graph.
#[derive(Debug)]
pub struct Graph {
    raw: CUgraph,
}

// SAFETY: a graph is a handle; it is used by one thread at a time, which `&mut` and ownership ensure.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts into `stream`, and into streams that it makes wait for events of `stream`; nothing is executed.
    /// When `work` fails, the recording is ended and thrown away.
    pub fn capture(stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let raw_stream: CUstream = stream.as_inner().cast();
        let _alone = exclusive();
        // SAFETY: the stream is alive.
        let result = unsafe {
            bindings::cuStreamBeginCapture_v2(
                raw_stream,
                CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        };
        check(result, || "begin capture")?;
        CAPTURING.set(true);
        let worked = work();
        CAPTURING.set(false);
        let mut raw: CUgraph = std::ptr::null_mut();
        // SAFETY: the stream is alive and in capture.
        let result = unsafe { bindings::cuStreamEndCapture(raw_stream, &mut raw) };
        let graph = (!raw.is_null()).then_some(Graph { raw });
        worked?;
        check(result, || "end capture")?;
        graph.ok_or_else(|| anyhow::anyhow!("end capture: the driver gave no graph"))
    }

    /// Number of nodes.
    pub fn nodes(&self) -> Result<usize, DriverError> {
        let mut count = 0;
        // SAFETY: a null list asks for the count alone.
        let result =
            unsafe { bindings::cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count) };
        check(result, || "count the nodes of a graph")?;
        Ok(count)
    }

    /// Makes it executable.
    pub fn instantiate(&self) -> Result<GraphExec, DriverError> {
        let mut raw: CUgraphExec = std::ptr::null_mut();
        // SAFETY: the graph is alive.
        let result = unsafe { bindings::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) };
        check(result, || "instantiate a graph")?;
        Ok(GraphExec { raw })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by us and not destroyed before.
        let _ = unsafe { bindings::cuGraphDestroy(self.raw) };
    }
}

/// An executable graph.
#[derive(Debug)]
pub struct GraphExec {
    raw: CUgraphExec,
}

// SAFETY: as for `Graph`.
unsafe impl Send for GraphExec {}

impl GraphExec {
    /// Replays the graph in a stream.
    pub fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: both are alive.
        let result = unsafe { bindings::cuGraphLaunch(self.raw, stream.as_inner().cast()) };
        check(result, || "launch a graph")
    }

    /// Takes over the parameters of a graph of the same shape. `false` when the shapes differ: instantiate anew then.
    pub fn update(&mut self, graph: &Graph) -> Result<bool, DriverError> {
        /// `CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE`
        const UPDATE_FAILURE: u32 = 910;
        // SAFETY: all zeros are a valid value of this plain structure.
        let mut info: CUgraphExecUpdateResultInfo = unsafe { std::mem::zeroed() };
        // SAFETY: both graphs are alive; the result has a place.
        let result = unsafe { bindings::cuGraphExecUpdate_v2(self.raw, graph.raw, &mut info) };
        if result.0 == UPDATE_FAILURE {
            return Ok(false);
        }
        check(result, || "update a graph")?;
        Ok(true)
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // SAFETY: made by us and not destroyed before.
        let _ = unsafe { bindings::cuGraphExecDestroy(self.raw) };
    }
}

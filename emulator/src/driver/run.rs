//! Putting work into streams, and getting it done.
//!
//! A host function runs with no lock held and occupies no device, so that it may wait for other host threads. One that a poll
//! comes to has a thread of its own, so that it may also wait for the thread that polls. Kernels, copies and
//! memsets of one device run one at a time; those of different devices may run at once, from different host threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Code, Outcome};
use super::queue::OpId;
use super::state::{self, Guard, Handle, IN_HOST_FUNCTION, State, signal_an_end, wait_for_an_end};
use super::work::{self, Ended, Work};
use crate::check::Finding;
use crate::device::{Device, Fault};

/// When more operations than this wait in a context, a call that adds one does some.
const BACKLOG: usize = 1024;
/// How long a poll waits for a host function before it says "not ready". Nearly all end sooner, so that what polls see does
/// not depend on the host's speed.
const POLL_PATIENCE: Duration = Duration::from_millis(50);

static FINDINGS: Mutex<Vec<Finding>> = Mutex::new(Vec::new());

/// The findings of the checkers since the last call, for a program that runs on the emulator knowingly.
pub fn take_findings() -> Vec<Finding> {
    std::mem::take(&mut FINDINGS.lock().unwrap_or_else(PoisonError::into_inner))
}

impl State {
    /// What an operation put into the stream now has to wait for.
    pub fn predecessors(&mut self, stream: Handle) -> Outcome<Vec<OpId>> {
        let entry = self.stream_mut(stream)?;
        let mut after = std::mem::take(&mut entry.waits);
        after.extend(entry.last);
        let (context, legacy, non_blocking) = (entry.context, entry.legacy, entry.non_blocking);
        if legacy {
            // The legacy default stream waits for all blocking streams of its context …
            after.extend(
                self.streams
                    .values()
                    .filter(|other| other.context == context && !other.non_blocking)
                    .filter_map(|other| other.last),
            );
        } else if !non_blocking {
            // … and they wait for it.
            let default = self.context(context)?.legacy;
            after.extend(self.stream(default)?.last);
        }
        Ok(after)
    }

    /// Puts an operation into a stream that does not capture.
    pub fn enqueue(&mut self, stream: Handle, work: Work) -> Outcome<OpId> {
        let after = self.predecessors(stream)?;
        let context = self.stream(stream)?.context;
        let id = self.queue.add(context, work, after);
        self.stream_mut(stream)?.last = Some(id);
        Ok(id)
    }

    /// Operations of a stream that have not happened yet.
    pub fn outstanding(&self, stream: Handle) -> Outcome<Vec<OpId>> {
        let entry = self.stream(stream)?;
        let mut out: Vec<OpId> = entry
            .waits
            .iter()
            .copied()
            .chain(entry.last)
            .filter(|&id| self.queue.pending(id))
            .collect();
        out.dedup();
        Ok(out)
    }
}

/// What one step came to.
enum Step {
    Did,
    /// Something runs on another thread, or a value in memory is waited for.
    Wait,
    Nothing,
}

/// An operation that has been taken from the queue.
struct Taken {
    id: OpId,
    owner: Handle,
    work: Work,
    device: Arc<Device>,
    gpu: usize,
}

/// Does one operation that serves the targets.
fn step(
    mut guard: Guard,
    context: Handle,
    targets: &[OpId],
    polling: bool,
) -> Outcome<(Guard, Step)> {
    let State {
        queue,
        contexts,
        gpus,
        ..
    } = &mut *guard;
    let gpu_of = |context: Handle| contexts.get(&context).map(|context| context.gpu);
    let taken = queue.take(context, targets, |op| {
        let busy = gpu_of(op.context).is_some_and(|gpu| gpus[gpu].busy);
        op.work.can_run() && !(busy && op.work.occupies_device())
    });
    let Some(id) = taken else {
        // What is pending but cannot run waits for another thread, or for a value in memory.
        let waiting = targets.iter().any(|&target| queue.pending(target));
        let step = if waiting { Step::Wait } else { Step::Nothing };
        return Ok((guard, step));
    };
    let Some((owner, work)) = queue.work(id) else {
        return Ok((guard, Step::Did));
    };
    let Some(entry) = contexts.get(&owner) else {
        queue.complete(id);
        return Ok((guard, Step::Did));
    };
    let gpu = entry.gpu;
    if entry.lost.is_some() {
        // A lost context does nothing any more; those who wait for it are let go.
        queue.complete(id);
        signal_an_end();
        return Ok((guard, Step::Did));
    }
    if let Work::Free(address) | Work::Bring(address) | Work::Withdraw(address) = work {
        queue.complete(id);
        match work {
            Work::Bring(_) => guard.bring(address),
            Work::Withdraw(_) => guard.withdraw(address),
            _ => guard.release_block(address),
        }
        signal_an_end();
        return Ok((guard, Step::Did));
    }
    if let Some(error) = guard.missing_graph_memory(&work) {
        guard.queue.complete(id);
        eprintln!("birdie-emulator: {}", error.reason);
        if let Ok(context) = guard.context_mut(owner) {
            context.lost = Some(error);
        }
        signal_an_end();
        return Ok((guard, Step::Did));
    }
    let occupies = work.occupies_device();
    guard.gpus[gpu].busy |= occupies;
    let device = guard.gpus[gpu].device.clone();
    drop(guard);
    let host = matches!(work, Work::Host(_) | Work::Callback(_));
    let taken = Taken {
        id,
        owner,
        work,
        device,
        gpu,
    };
    if !(polling && host) {
        return Ok((perform(taken)?, Step::Did));
    }
    let thread = std::thread::spawn(move || drop(perform(taken)));
    let start = Instant::now();
    let mut guard = state::lock()?;
    while guard.queue.pending(id) && start.elapsed() < POLL_PATIENCE {
        guard = wait_for_an_end(guard);
    }
    // It ends by itself, whenever that is.
    drop(thread);
    Ok((guard, Step::Did))
}

/// Executes the operation with no lock held, and takes it out of the queue.
fn perform(taken: Taken) -> Outcome<Guard> {
    let Taken {
        id,
        owner,
        work,
        device,
        gpu,
    } = taken;
    let occupies = work.occupies_device();
    let host = matches!(work, Work::Host(_) | Work::Callback(_));
    let before = IN_HOST_FUNCTION.replace(host);
    let ended = catch_unwind(AssertUnwindSafe(|| work::execute(&work, &device)));
    IN_HOST_FUNCTION.set(before);

    let mut guard = state::lock()?;
    if occupies {
        guard.gpus[gpu].busy = false;
    }
    guard.queue.complete(id);
    let lost = match ended {
        Ok(Ended::Well(findings)) => {
            for finding in findings {
                eprintln!("birdie-emulator: {}", keep(&work, finding));
            }
            None
        }
        Ok(Ended::Fault(code, fault)) => Some(code.because(report(&work, fault))),
        Ok(Ended::Refused(error)) => Some(error),
        Err(_) => Some(Code::UNKNOWN.because(format!(
            "{}: the emulator itself failed; please report this",
            name(&work)
        ))),
    };
    if let Some(error) = lost {
        eprintln!("birdie-emulator: {}", error.reason);
        if let Ok(context) = guard.context_mut(owner) {
            context.lost = Some(error);
        }
    }
    signal_an_end();
    Ok(guard)
}

fn name(work: &Work) -> String {
    match work {
        Work::Kernel(call) => format!("kernel {}", call.kernel.name),
        Work::Copy(_) => "copy".to_owned(),
        Work::Fill(_) => "memset".to_owned(),
        _ => "stream operation".to_owned(),
    }
}

/// The text of a fault; findings are kept for [`take_findings`].
fn report(work: &Work, fault: Fault) -> String {
    let (what, text) = match fault {
        Fault::IllegalAddress(text) => ("illegal address", text),
        Fault::MisalignedAddress(text) => ("misaligned address", text),
        Fault::IllegalInstruction(text) => ("illegal instruction", text),
        Fault::HardwareStack(text) => ("stack error", text),
        Fault::InvalidPc(text) => ("invalid program counter", text),
        Fault::Trap(text) => ("trap", text),
        Fault::Assert(text) => ("assertion failed", text),
        Fault::Timeout(text) => ("time-out", text),
        Fault::Finding(finding) => return keep(work, *finding),
    };
    format!("{}: {what}: {text}", name(work))
}

/// The report of a finding, which is kept for [`take_findings`].
fn keep(work: &Work, finding: Finding) -> String {
    let text = match work {
        Work::Kernel(call) => {
            finding.render(&call.kernel.program.sites, &call.kernel.program.files)
        }
        _ => finding.message.clone(),
    };
    FINDINGS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(finding);
    text
}

/// Does work until none of the targets is outstanding. The error of `context` if it is lost.
pub fn finish(mut guard: Guard, context: Handle, targets: &[OpId]) -> Outcome<Guard> {
    loop {
        let open: Vec<OpId> = targets
            .iter()
            .copied()
            .filter(|&id| guard.queue.pending(id))
            .collect();
        if open.is_empty() {
            break;
        }
        let (next, step) = step(guard, context, &open, false)?;
        guard = match step {
            Step::Did | Step::Nothing => next,
            Step::Wait => wait_for_an_end(next),
        };
    }
    if guard.contexts.contains_key(&context) {
        guard.check_lost(context)?;
    }
    Ok(guard)
}

/// Does at most one operation; whether the targets are all done then.
pub fn poll(guard: Guard, context: Handle, targets: &[OpId]) -> Outcome<(Guard, bool)> {
    let (guard, _) = step(guard, context, targets, true)?;
    let done = !targets.iter().any(|&id| guard.queue.pending(id));
    guard.check_lost(context)?;
    Ok((guard, done))
}

/// Waits for everything in a context.
pub fn finish_context(guard: Guard, context: Handle) -> Outcome<Guard> {
    let all = guard.queue.of_context(context);
    finish(guard, context, &all)
}

/// Keeps the backlog of a context bounded. Called after work was added, with the lock.
pub fn relieve(mut guard: Guard, context: Handle) -> Outcome {
    if IN_HOST_FUNCTION.get() || guard.queue.backlog(context) <= BACKLOG {
        return Ok(());
    }
    let targets = guard.queue.of_context(context);
    while guard.queue.backlog(context) > BACKLOG / 2 {
        let (next, step) = step(guard, context, &targets, false)?;
        match step {
            Step::Did => guard = next,
            Step::Wait | Step::Nothing => return Ok(()),
        }
    }
    Ok(())
}

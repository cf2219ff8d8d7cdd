//! Streams and events.

use super::error::{Code, Outcome};
use super::put;
use super::run;
use super::state::{self, Event, Handle, State};
use super::work::{Callback, Condition, Value, Work};

/// Priorities as an H100 has them: 0 is the lowest, -5 the highest.
pub const LOWEST_PRIORITY: i32 = 0;
pub const HIGHEST_PRIORITY: i32 = -5;

pub unsafe fn create(out: *mut u64, flags: u32) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { create_with_priority(out, flags, 0) }
}

pub unsafe fn create_with_priority(out: *mut u64, flags: u32, priority: i32) -> Outcome {
    const NON_BLOCKING: u32 = 1;
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the stream");
    }
    if flags > NON_BLOCKING {
        return Code::INVALID_VALUE.fail(format!("stream flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    let priority = priority.clamp(HIGHEST_PRIORITY, LOWEST_PRIORITY);
    let stream = guard.new_stream(context, false, flags == NON_BLOCKING, priority);
    put(out, stream)
}

/// A stream may be destroyed while it has work: the work still happens.
pub unsafe fn destroy(stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    if stream <= 2 {
        return Code::INVALID_HANDLE.fail("a default stream cannot be destroyed");
    }
    let entry = guard.stream(stream)?;
    if let Some(capture) = entry.capture {
        guard.invalidate(capture);
        if guard
            .captures
            .get(&capture)
            .is_some_and(|capture| capture.origin == stream)
            && let Some(capture) = guard.captures.remove(&capture)
        {
            guard.destroy_graph(capture.graph);
        }
    }
    // The legacy default stream still waits for what a destroyed blocking stream has to do.
    let entry = guard.stream(stream)?;
    let (context, last, blocking) = (entry.context, entry.last, !entry.non_blocking);
    if let (Some(last), true) = (last.filter(|&id| guard.queue.pending(id)), blocking) {
        let legacy = guard.context(context)?.legacy;
        guard.stream_mut(legacy)?.waits.push(last);
    }
    guard.streams.remove(&stream);
    Ok(())
}

pub unsafe fn synchronize(stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    guard.check_not_capturing(stream, "cuStreamSynchronize")?;
    let targets = guard.stream_targets(stream)?;
    let context = guard.stream(stream)?.context;
    run::finish(guard, context, &targets).map(drop)
}

impl State {
    /// What has to be done for a stream to be idle. The legacy default stream is idle when all blocking streams are.
    fn stream_targets(&self, stream: Handle) -> Outcome<Vec<u64>> {
        let entry = self.stream(stream)?;
        let mut targets = self.outstanding(stream)?;
        if entry.legacy {
            for (&other, candidate) in &self.streams {
                if candidate.context == entry.context && !candidate.non_blocking {
                    targets.extend(self.outstanding(other)?);
                }
            }
        }
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }
}

pub unsafe fn query(stream: u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    guard.check_not_capturing(stream, "cuStreamQuery")?;
    let targets = guard.stream_targets(stream)?;
    let context = guard.stream(stream)?.context;
    if targets.is_empty() {
        return Ok(());
    }
    match run::poll(guard, context, &targets)? {
        (_, true) => Ok(()),
        _ => Code::NOT_READY.fail(""),
    }
}

pub unsafe fn wait_event(stream: u64, event: u64, flags: u32) -> Outcome {
    if flags > 1 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    if flags == 1 {
        // External to a capture: it becomes a node.
        if let Some(capture) = guard.stream(stream)?.capture {
            guard.event(event)?;
            return guard
                .capture_node(capture, stream, super::graph::NodeKind::Wait(event))
                .map(drop);
        }
    }
    guard.wait_event(stream, event)
}

pub unsafe fn add_callback(
    stream: u64,
    function: Option<unsafe extern "C" fn(u64, u32, *mut core::ffi::c_void)>,
    data: u64,
    flags: u32,
) -> Outcome {
    let Some(function) = function else {
        return Code::INVALID_VALUE.fail("the callback is null");
    };
    if flags != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let resolved = guard.stream_of(stream)?;
    let context = guard.stream(resolved)?.context;
    guard.submit(
        resolved,
        Work::Callback(Callback {
            function,
            stream,
            data,
        }),
    )?;
    run::relieve(guard, context)
}

pub unsafe fn priority(stream: u64, out: *mut i32) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    put(out, guard.stream(stream)?.priority)
}

pub unsafe fn flags(stream: u64, out: *mut u32) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    put(out, u32::from(guard.stream(stream)?.non_blocking))
}

pub unsafe fn id(stream: u64, out: *mut u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    put(out, stream)
}

pub unsafe fn context(stream: u64, out: *mut u64) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    put(out, guard.stream(stream)?.context)
}

/// The second result is a green context, of which there are none.
pub unsafe fn context_v2(stream: u64, out: *mut u64, green: *mut u64) -> Outcome {
    if !green.is_null() {
        put(green, 0)?;
    }
    // SAFETY: the caller's promise.
    unsafe { context(stream, out) }
}

pub unsafe fn device(stream: u64, out: *mut i32) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    put(out, guard.context(context)?.gpu as i32)
}

/// Bytes of `CUstreamAttrValue`.
const ATTRIBUTE_BYTES: usize = 64;

pub unsafe fn set_attribute(stream: u64, which: u32, value: *const u8) -> Outcome {
    if value.is_null() {
        return Code::INVALID_VALUE.fail("no value");
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    // SAFETY: the caller gives a CUstreamAttrValue.
    let bytes = unsafe { std::slice::from_raw_parts(value, ATTRIBUTE_BYTES) }.to_vec();
    guard.stream_mut(stream)?.attributes.insert(which, bytes);
    Ok(())
}

pub unsafe fn get_attribute(stream: u64, which: u32, out: *mut u8) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the value");
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let zero = vec![0; ATTRIBUTE_BYTES];
    let bytes = guard
        .stream(stream)?
        .attributes
        .get(&which)
        .unwrap_or(&zero);
    // SAFETY: the caller gives room for a CUstreamAttrValue.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, ATTRIBUTE_BYTES) };
    Ok(())
}

pub unsafe fn copy_attributes(destination: u64, source: u64) -> Outcome {
    let mut guard = state::lock()?;
    let (destination, source) = (guard.stream_of(destination)?, guard.stream_of(source)?);
    let attributes = guard.stream(source)?.attributes.clone();
    guard.stream_mut(destination)?.attributes = attributes;
    Ok(())
}

pub unsafe fn attach_memory(stream: u64, _address: u64, _bytes: usize, _flags: u32) -> Outcome {
    state::lock()?.stream_of(stream).map(drop)
}

fn check_value(state: &State, value: &Value) -> Outcome {
    let bytes = if value.wide { 8 } else { 4 };
    if !value.address.is_multiple_of(bytes) {
        return Code::INVALID_VALUE.fail(format!("{:#x} is not aligned to {bytes}", value.address));
    }
    state.check_device_range("stream value", value.address, bytes)
}

fn value_work(stream: u64, value: Value, condition: Option<Condition>) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    check_value(&guard, &value)?;
    let work = match condition {
        None => Work::WriteValue(value),
        Some(condition) => Work::WaitValue(value, condition),
    };
    guard.submit(stream, work)?;
    run::relieve(guard, context)
}

fn condition(flags: u32) -> Outcome<Condition> {
    Ok(match flags & !(1 << 30) {
        0 => Condition::Geq,
        1 => Condition::Eq,
        2 => Condition::And,
        3 => Condition::Nor,
        _ => return Code::INVALID_VALUE.fail(format!("wait flags {flags:#x}")),
    })
}

pub unsafe fn write_value32(stream: u64, address: u64, value: u32, _flags: u32) -> Outcome {
    let value = Value {
        address,
        value: value.into(),
        wide: false,
    };
    value_work(stream, value, None)
}

pub unsafe fn write_value64(stream: u64, address: u64, value: u64, _flags: u32) -> Outcome {
    value_work(
        stream,
        Value {
            address,
            value,
            wide: true,
        },
        None,
    )
}

pub unsafe fn wait_value32(stream: u64, address: u64, value: u32, flags: u32) -> Outcome {
    let condition = condition(flags)?;
    let value = Value {
        address,
        value: value.into(),
        wide: false,
    };
    value_work(stream, value, Some(condition))
}

pub unsafe fn wait_value64(stream: u64, address: u64, value: u64, flags: u32) -> Outcome {
    let condition = condition(flags)?;
    value_work(
        stream,
        Value {
            address,
            value,
            wide: true,
        },
        Some(condition),
    )
}

/// `CUstreamBatchMemOpParams`: a union of 48 bytes, whose members begin alike.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct MemoryOperation {
    pub operation: u32,
    /// Flags of barriers and flushes, which have no address.
    pub bare_flags: u32,
    pub address: u64,
    pub value: u64,
    pub flags: u32,
    pub pad: u32,
    pub alias: u64,
    pub unused: u64,
}

/// Several values in order. All are checked before the first is put into the stream.
pub unsafe fn batch(
    stream: u64,
    count: u32,
    operations: *const MemoryOperation,
    flags: u32,
) -> Outcome {
    const MOST: u32 = 256;
    const WAIT_32: u32 = 1;
    const WRITE_32: u32 = 2;
    const FLUSH: u32 = 3;
    const WAIT_64: u32 = 4;
    const WRITE_64: u32 = 5;
    const BARRIER: u32 = 6;
    if flags != 0 || count > MOST || (operations.is_null() && count > 0) {
        return Code::INVALID_VALUE.fail(format!("{count} operations, flags {flags:#x}"));
    }
    let mut works = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the caller's list has `count` elements.
        let op = unsafe { *operations.add(index) };
        let wide = matches!(op.operation, WAIT_64 | WRITE_64);
        let value = Value {
            address: op.address,
            value: if wide {
                op.value
            } else {
                op.value & u64::from(u32::MAX)
            },
            wide,
        };
        match op.operation {
            WAIT_32 | WAIT_64 => works.push((value, Some(condition(op.flags)?))),
            WRITE_32 | WRITE_64 => works.push((value, None)),
            // Operations of a stream are in order and whole here.
            BARRIER if op.bare_flags <= 1 => {}
            FLUSH => return Code::NOT_SUPPORTED.fail("flushing writes of other devices"),
            other => return Code::INVALID_VALUE.fail(format!("no memory operation {other}")),
        }
    }
    {
        let mut guard = state::lock()?;
        guard.stream_of(stream)?;
        for (value, _) in &works {
            check_value(&guard, value)?;
        }
    }
    for (value, condition) in works {
        value_work(stream, value, condition)?;
    }
    Ok(())
}

pub unsafe fn event_create(out: *mut u64, flags: u32) -> Outcome {
    const BLOCKING: u32 = 1;
    const DISABLE_TIMING: u32 = 2;
    const INTERPROCESS: u32 = 4;
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the event");
    }
    if flags & INTERPROCESS != 0 {
        return Code::NOT_SUPPORTED.fail("events between processes");
    }
    if flags & !(BLOCKING | DISABLE_TIMING) != 0 {
        return Code::INVALID_VALUE.fail(format!("event flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    let event = guard.handle();
    guard.events.insert(
        event,
        Event {
            context,
            timing: flags & DISABLE_TIMING == 0,
            recorded: None,
            captured: None,
        },
    );
    put(out, event)
}

pub unsafe fn event_destroy(event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.event(event)?;
    guard.events.remove(&event);
    Ok(())
}

pub unsafe fn event_record(event: u64, stream: u64) -> Outcome {
    // SAFETY: no pointers.
    unsafe { event_record_flags(event, stream, 0) }
}

pub unsafe fn event_record_flags(event: u64, stream: u64, flags: u32) -> Outcome {
    if flags > 1 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    if guard.event(event)?.context != context {
        return Code::INVALID_HANDLE.fail("event and stream belong to different contexts");
    }
    if flags == 1
        && let Some(capture) = guard.stream(stream)?.capture
    {
        return guard
            .capture_node(capture, stream, super::graph::NodeKind::Record(event))
            .map(drop);
    }
    guard.record(event, stream)?;
    run::relieve(guard, context)
}

fn check_captured(state: &mut State, event: Handle) -> Outcome {
    let captured = state.event(event)?.captured.clone();
    if let Some((capture, _)) = captured
        && state.captures.contains_key(&capture)
    {
        state.invalidate(capture);
        return Code::CAPTURED_EVENT.fail("the event was recorded in a stream that captures");
    }
    Ok(())
}

pub unsafe fn event_query(event: u64) -> Outcome {
    let mut guard = state::lock()?;
    check_captured(&mut guard, event)?;
    let entry = guard.event(event)?;
    let context = entry.context;
    let Some((id, _)) = entry.recorded.clone() else {
        return Ok(());
    };
    guard.check_lost(context)?;
    if !guard.queue.pending(id) {
        return Ok(());
    }
    match run::poll(guard, context, &[id])? {
        (_, true) => Ok(()),
        _ => Code::NOT_READY.fail(""),
    }
}

pub unsafe fn event_synchronize(event: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.check_unsafe_call("cuEventSynchronize")?;
    check_captured(&mut guard, event)?;
    let entry = guard.event(event)?;
    let context = entry.context;
    match entry.recorded.clone() {
        Some((id, _)) => run::finish(guard, context, &[id]).map(drop),
        None => guard.check_lost(context),
    }
}

pub unsafe fn event_elapsed(out: *mut f32, start: u64, end: u64) -> Outcome {
    let guard = state::lock()?;
    let mut times = [None, None];
    for (time, event) in times.iter_mut().zip([start, end]) {
        let entry = guard.event(event)?;
        if !entry.timing {
            return Code::INVALID_HANDLE.fail("an event that was created without timing");
        }
        let Some((id, stamp)) = &entry.recorded else {
            return Code::INVALID_HANDLE.fail("an event that was not recorded");
        };
        guard.check_lost(entry.context)?;
        if guard.queue.pending(*id) {
            return Code::NOT_READY.fail("");
        }
        *time = stamp.get();
    }
    let [Some(start), Some(end)] = times else {
        return Code::NOT_READY.fail("");
    };
    let seconds = if end >= start {
        (end - start).as_secs_f64()
    } else {
        -(start - end).as_secs_f64()
    };
    put(out, (seconds * 1e3) as f32)
}

//! Contexts: primary and created ones, the stack of each thread, limits, peers.

use super::error::{Code, Outcome};
use super::put;
use super::run;
use super::state::{self, CURRENT, Guard, Handle};
use super::stream::{HIGHEST_PRIORITY, LOWEST_PRIORITY};

/// Flags that a context may have: scheduling, map host, keep local memory, coredump, sync memops.
const FLAGS: u32 = 0x0ff;

fn check_flags(flags: u32) -> Outcome {
    if flags & !FLAGS != 0 {
        return Code::INVALID_VALUE.fail(format!("context flags {flags:#x}"));
    }
    Ok(())
}

pub unsafe fn primary_retain(out: *mut u64, device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let context = primary(&mut guard, gpu);
    put(out, context)?;
    guard.gpus[gpu].primary_users += 1;
    Ok(())
}

/// The primary context of a device, made when it is not there yet.
pub fn primary(guard: &mut Guard, gpu: usize) -> Handle {
    if let Some(context) = guard.gpus[gpu].primary {
        return context;
    }
    let flags = guard.gpus[gpu].primary_flags;
    let context = guard.new_context(gpu, flags, true);
    guard.gpus[gpu].primary = Some(context);
    context
}

/// Ends the primary context of a device.
fn end_primary(guard: Guard, gpu: usize) -> Outcome {
    let Some(context) = guard.gpus[gpu].primary else {
        return Ok(());
    };
    // Work that is under way still happens; whether it fails does not matter any more.
    let mut guard = match run::finish_context(guard, context) {
        Ok(guard) => guard,
        Err(_) => state::lock()?,
    };
    guard.gpus[gpu].primary = None;
    guard.destroy_context(context);
    Ok(())
}

pub unsafe fn primary_release(device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let entry = &mut guard.gpus[gpu];
    if entry.primary_users == 0 {
        return Code::INVALID_CONTEXT.fail(format!(
            "the primary context of device {device} is not retained"
        ));
    }
    entry.primary_users -= 1;
    if entry.primary_users == 0 {
        return end_primary(guard, gpu);
    }
    Ok(())
}

pub unsafe fn primary_reset(device: i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    end_primary(guard, gpu)
}

pub unsafe fn primary_state(device: i32, flags: *mut u32, active: *mut i32) -> Outcome {
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    put(flags, guard.gpus[gpu].primary_flags)?;
    put(active, i32::from(guard.gpus[gpu].primary.is_some()))
}

pub unsafe fn primary_set_flags(device: i32, flags: u32) -> Outcome {
    check_flags(flags)?;
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    guard.gpus[gpu].primary_flags = flags;
    if let Some(context) = guard.gpus[gpu].primary {
        guard.context_mut(context)?.flags = flags;
    }
    Ok(())
}

pub unsafe fn create(out: *mut u64, flags: u32, device: i32) -> Outcome {
    check_flags(flags)?;
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the context");
    }
    let mut guard = state::lock()?;
    let gpu = guard.gpu(device)?;
    let context = guard.new_context(gpu, flags, false);
    CURRENT.with_borrow_mut(|stack| stack.push(context));
    put(out, context)
}

/// Execution affinity and the parameters of the fourth version: none may be asked for.
pub unsafe fn create_v3(
    out: *mut u64,
    affinity: *const core::ffi::c_void,
    count: i32,
    flags: u32,
    device: i32,
) -> Outcome {
    if !affinity.is_null() && count > 0 {
        return Code::NOT_SUPPORTED.fail("execution affinity");
    }
    // SAFETY: the caller's promise.
    unsafe { create(out, flags, device) }
}

pub unsafe fn create_v4(
    out: *mut u64,
    parameters: *const core::ffi::c_void,
    flags: u32,
    device: i32,
) -> Outcome {
    if !parameters.is_null() {
        // CUctxCreateParams: affinity list, its length, and CIG parameters.
        // SAFETY: checked not to be null; three words by the caller's promise.
        let words = unsafe { *parameters.cast::<[u64; 3]>() };
        if words[0] != 0 || words[2] != 0 {
            return Code::NOT_SUPPORTED.fail("execution affinity and graphics interoperation");
        }
    }
    // SAFETY: the caller's promise.
    unsafe { create(out, flags, device) }
}

pub unsafe fn destroy(context: u64) -> Outcome {
    let guard = state::lock()?;
    if guard.context(context)?.primary {
        return Code::INVALID_CONTEXT.fail("a primary context is released, not destroyed");
    }
    let mut guard = match run::finish_context(guard, context) {
        Ok(guard) => guard,
        Err(_) => state::lock()?,
    };
    guard.destroy_context(context);
    CURRENT.with_borrow_mut(|stack| {
        if stack.last() == Some(&context) {
            stack.pop();
        }
    });
    Ok(())
}

pub unsafe fn attach(out: *mut u64, _flags: u32) -> Outcome {
    let guard = state::lock()?;
    put(out, guard.current()?)
}

pub unsafe fn detach(context: u64) -> Outcome {
    // SAFETY: no pointers.
    unsafe { destroy(context) }
}

pub unsafe fn push(context: u64) -> Outcome {
    let guard = state::lock()?;
    guard.context(context)?;
    CURRENT.with_borrow_mut(|stack| stack.push(context));
    Ok(())
}

pub unsafe fn pop(out: *mut u64) -> Outcome {
    let _guard = state::lock()?;
    match CURRENT.with_borrow_mut(|stack| stack.pop()) {
        Some(context) if !out.is_null() => put(out, context),
        Some(_) => Ok(()),
        None => Code::INVALID_CONTEXT.fail("the thread has no context to pop"),
    }
}

pub unsafe fn set_current(context: u64) -> Outcome {
    let guard = state::lock()?;
    if context != 0 {
        guard.context(context)?;
    }
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
    Ok(())
}

/// No context is no error here: the answer is null.
pub unsafe fn get_current(out: *mut u64) -> Outcome {
    let _guard = state::lock()?;
    put(
        out,
        CURRENT
            .with_borrow(|stack| stack.last().copied())
            .unwrap_or(0),
    )
}

pub unsafe fn get_device(out: *mut i32) -> Outcome {
    let guard = state::lock()?;
    let context = guard.current()?;
    put(out, guard.context(context)?.gpu as i32)
}

/// A context that is named, or the current one for null.
fn named(guard: &Guard, context: u64) -> Outcome<Handle> {
    if context == 0 {
        guard.current()
    } else {
        guard.context(context).map(|_| context)
    }
}

pub unsafe fn get_device_v2(out: *mut i32, context: u64) -> Outcome {
    let guard = state::lock()?;
    let context = named(&guard, context)?;
    put(out, guard.context(context)?.gpu as i32)
}

pub unsafe fn synchronize() -> Outcome {
    // SAFETY: no pointers.
    unsafe { synchronize_v2(0) }
}

pub unsafe fn synchronize_v2(context: u64) -> Outcome {
    let mut guard = state::lock()?;
    let context = named(&guard, context)?;
    guard.check_unsafe_call("cuCtxSynchronize")?;
    guard.check_lost(context)?;
    run::finish_context(guard, context).map(drop)
}

pub unsafe fn flags(out: *mut u32) -> Outcome {
    let guard = state::lock()?;
    let context = guard.current()?;
    put(out, guard.context(context)?.flags)
}

pub unsafe fn set_flags(flags: u32) -> Outcome {
    check_flags(flags)?;
    let mut guard = state::lock()?;
    let context = guard.current()?;
    guard.context_mut(context)?.flags = flags;
    Ok(())
}

pub unsafe fn id(context: u64, out: *mut u64) -> Outcome {
    let guard = state::lock()?;
    put(out, named(&guard, context)?)
}

pub unsafe fn api_version(context: u64, out: *mut u32) -> Outcome {
    let guard = state::lock()?;
    let context = named(&guard, context)?;
    put(out, guard.context(context)?.api_version)
}

/// `CUlimit`: stack 0, printf 1, malloc heap 2, runtime sync depth 3, pending launches 4, L2 fetch 5, persisting L2 6.
fn default_limit(limit: u32) -> Option<usize> {
    Some(match limit {
        0 => 1024,
        1 => 1 << 20,
        2 => 8 << 20,
        3 => 2,
        4 => 2048,
        5 => 128,
        6 => 0,
        _ => return None,
    })
}

pub unsafe fn get_limit(out: *mut usize, limit: u32) -> Outcome {
    let guard = state::lock()?;
    let context = guard.healthy()?;
    let Some(default) = default_limit(limit) else {
        return Code::UNSUPPORTED_LIMIT.fail(format!("no limit {limit}"));
    };
    put(
        out,
        guard
            .context(context)?
            .limits
            .get(&limit)
            .copied()
            .unwrap_or(default),
    )
}

pub unsafe fn set_limit(limit: u32, value: usize) -> Outcome {
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    if default_limit(limit).is_none() {
        return Code::UNSUPPORTED_LIMIT.fail(format!("no limit {limit}"));
    }
    guard.context_mut(context)?.limits.insert(limit, value);
    Ok(())
}

pub unsafe fn get_cache_config(out: *mut u32) -> Outcome {
    let guard = state::lock()?;
    let context = guard.healthy()?;
    put(out, guard.context(context)?.cache_config)
}

pub unsafe fn set_cache_config(config: u32) -> Outcome {
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    if config > 3 {
        return Code::INVALID_VALUE.fail(format!("no cache configuration {config}"));
    }
    guard.context_mut(context)?.cache_config = config;
    Ok(())
}

pub unsafe fn get_shared_config(out: *mut u32) -> Outcome {
    let guard = state::lock()?;
    let context = guard.healthy()?;
    put(out, guard.context(context)?.shared_config)
}

pub unsafe fn set_shared_config(config: u32) -> Outcome {
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    guard.context_mut(context)?.shared_config = config;
    Ok(())
}

pub unsafe fn priority_range(lowest: *mut i32, highest: *mut i32) -> Outcome {
    state::lock()?.healthy()?;
    if !lowest.is_null() {
        put(lowest, LOWEST_PRIORITY)?;
    }
    if !highest.is_null() {
        put(highest, HIGHEST_PRIORITY)?;
    }
    Ok(())
}

pub unsafe fn reset_persisting() -> Outcome {
    state::lock()?.healthy().map(drop)
}

pub unsafe fn can_access_peer(out: *mut i32, device: i32, peer: i32) -> Outcome {
    let mut guard = state::lock()?;
    let (device, peer) = (guard.gpu(device)?, guard.gpu(peer)?);
    put(out, i32::from(device != peer))
}

/// `CUdevice_P2PAttribute`: rank 1, access 2, native atomics 3, array access 4.
pub unsafe fn peer_attribute(out: *mut i32, which: u32, device: i32, peer: i32) -> Outcome {
    let mut guard = state::lock()?;
    let (device, peer) = (guard.gpu(device)?, guard.gpu(peer)?);
    if device == peer {
        return Code::INVALID_DEVICE.fail("a device is no peer of itself");
    }
    match which {
        1..=3 => put(out, i32::from(which != 1)),
        4 => put(out, 0),
        _ => Code::INVALID_VALUE.fail(format!("no attribute {which}")),
    }
}

pub unsafe fn enable_peer(peer: u64, flags: u32) -> Outcome {
    if flags != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    let owner = guard.context(peer)?.gpu;
    let user = guard.context(context)?.gpu;
    if owner == user {
        return Code::INVALID_CONTEXT.fail("the context is of the same device");
    }
    if !guard.context_mut(context)?.peers.insert(owner) {
        return Code::PEER_ACCESS_ALREADY_ENABLED.fail(format!("device {owner} is open already"));
    }
    guard.open_to_peer(owner, user);
    Ok(())
}

pub unsafe fn disable_peer(peer: u64) -> Outcome {
    let mut guard = state::lock()?;
    let context = guard.healthy()?;
    let owner = guard.context(peer)?.gpu;
    let user = guard.context(context)?.gpu;
    if !guard.context_mut(context)?.peers.remove(&owner) {
        return Code::PEER_ACCESS_NOT_ENABLED.fail(format!("device {owner} is not open"));
    }
    guard.close_to_peer(owner, user);
    Ok(())
}

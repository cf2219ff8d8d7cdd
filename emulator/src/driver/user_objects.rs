//! User objects: something of the program that lives as long as the graphs that use it.
//!
//! An object is a pointer and a destructor with a count of references. The program holds references, graphs and executable graphs
//! hold some; when the last goes the destructor is called, with no lock held, as a host function: it must not call the driver. If a
//! launch of the executable graph that held the last reference has not happened yet, the destructor comes after it.

use std::collections::BTreeMap;
use std::ffi::c_void;

use super::error::{Code, Outcome};
use super::graph::NodeKind;
use super::put;
use super::queue::OpId;
use super::state::{self, Guard, Handle, IN_HOST_FUNCTION, State};
use super::work::{HostCall, Work};

/// References by object.
pub type Objects = BTreeMap<Handle, u64>;

/// `CUuserObject`.
pub struct UserObject {
    destructor: HostCall,
    references: u64,
}

/// `CU_USER_OBJECT_NO_DESTRUCTOR_SYNC`: the only flag, and it has to be given.
const NO_SYNC: u32 = 1;
/// `CU_GRAPH_USER_OBJECT_MOVE`: the graph takes the caller's references over.
const MOVE: u32 = 1;
/// References are counted in an `int`.
const MOST: u32 = i32::MAX as u32;

impl State {
    fn object(&mut self, handle: Handle) -> Outcome<&mut UserObject> {
        self.user_objects
            .get_mut(&handle)
            .ok_or_else(|| Code::INVALID_VALUE.because(format!("{handle:#x} is no user object")))
    }

    /// All objects of a graph and of the graphs inside.
    pub fn objects_of(&self, graph: Handle) -> Objects {
        let mut all = Objects::new();
        let mut open = vec![graph];
        while let Some(graph) = open.pop().and_then(|handle| self.graphs.get(&handle)) {
            for &object in graph.objects.keys() {
                all.insert(object, 1);
            }
            open.extend(graph.nodes.values().filter_map(|node| match node.kind {
                NodeKind::Child(inner) => Some(inner),
                _ => None,
            }));
        }
        all
    }

    pub fn retain_objects(&mut self, objects: &Objects) {
        for (handle, count) in objects {
            if let Some(object) = self.user_objects.get_mut(handle) {
                object.references += count;
            }
        }
    }

    /// Gives references back. Destructors that come due are for [`run_finalisers`], or follow the operation `after`.
    pub fn release_objects(&mut self, objects: &Objects, after: Option<OpId>) {
        for (handle, &count) in objects {
            let Some(object) = self.user_objects.get_mut(handle) else {
                continue;
            };
            object.references = object.references.saturating_sub(count);
            if object.references > 0 {
                continue;
            }
            let destructor = object.destructor;
            self.user_objects.remove(handle);
            let pending = after.and_then(|id| Some((id, self.queue.work(id)?.0)));
            match pending {
                Some((id, context)) => {
                    self.queue.add(context, Work::Host(destructor), [id]);
                }
                None => self.finalisers.push(destructor),
            }
        }
    }
}

/// Calls the destructors that have come due, after letting go of the lock.
pub fn run_finalisers(mut guard: Guard) {
    let due = std::mem::take(&mut guard.finalisers);
    drop(guard);
    for call in due {
        let before = IN_HOST_FUNCTION.replace(true);
        // SAFETY: the caller of cuUserObjectCreate promised a function that may be called so, once.
        unsafe { (call.function)(call.data as *mut c_void) };
        IN_HOST_FUNCTION.set(before);
    }
}

fn check_count(count: u32) -> Outcome {
    if count == 0 || count > MOST {
        return Code::INVALID_VALUE.fail(format!("{count} references"));
    }
    Ok(())
}

pub unsafe fn create(
    out: *mut u64,
    data: u64,
    destructor: Option<unsafe extern "C" fn(*mut c_void)>,
    references: u32,
    flags: u32,
) -> Outcome {
    check_count(references)?;
    if flags != NO_SYNC {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x} of a user object"));
    }
    let Some(function) = destructor else {
        return Code::INVALID_VALUE.fail("no destructor");
    };
    let mut guard = state::lock()?;
    let handle = guard.handle();
    put(out, handle)?;
    guard.user_objects.insert(
        handle,
        UserObject {
            destructor: HostCall { function, data },
            references: u64::from(references),
        },
    );
    Ok(())
}

pub unsafe fn retain(object: u64, count: u32) -> Outcome {
    check_count(count)?;
    state::lock()?.object(object)?.references += u64::from(count);
    Ok(())
}

pub unsafe fn release(object: u64, count: u32) -> Outcome {
    check_count(count)?;
    let mut guard = state::lock()?;
    let held = guard.object(object)?.references;
    if held < u64::from(count) {
        return Code::INVALID_VALUE.fail(format!("{count} references of {held}"));
    }
    guard.release_objects(&Objects::from([(object, u64::from(count))]), None);
    run_finalisers(guard);
    Ok(())
}

pub unsafe fn graph_retain(graph: u64, object: u64, count: u32, flags: u32) -> Outcome {
    check_count(count)?;
    if flags & !MOVE != 0 {
        return Code::INVALID_VALUE.fail(format!("flags {flags:#x}"));
    }
    let mut guard = state::lock()?;
    guard.graph(graph)?;
    let entry = guard.object(object)?;
    if flags & MOVE == 0 {
        entry.references += u64::from(count);
    } else if entry.references < u64::from(count) {
        let held = entry.references;
        return Code::INVALID_VALUE.fail(format!("{count} references of {held} cannot move"));
    }
    if let Some(graph) = guard.graphs.get_mut(&graph) {
        *graph.objects.entry(object).or_default() += u64::from(count);
    }
    Ok(())
}

pub unsafe fn graph_release(graph: u64, object: u64, count: u32) -> Outcome {
    check_count(count)?;
    let mut guard = state::lock()?;
    let held = guard
        .graph(graph)?
        .objects
        .get(&object)
        .copied()
        .unwrap_or(0);
    if held < u64::from(count) {
        return Code::INVALID_VALUE.fail(format!("{count} references of the graph's {held}"));
    }
    if let Some(graph) = guard.graphs.get_mut(&graph) {
        graph.objects.insert(object, held - u64::from(count));
        graph.objects.retain(|_, count| *count > 0);
    }
    guard.release_objects(&Objects::from([(object, u64::from(count))]), None);
    run_finalisers(guard);
    Ok(())
}

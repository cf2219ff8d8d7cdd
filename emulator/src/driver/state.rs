//! Everything the driver knows, behind one lock.
//!
//! Handles that clients hold are numbers that name rows of the tables here, never addresses of ours: a stale, freed or invented handle is
//! looked up and not found. Numbers are not used twice.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use super::capture::Capture;
use super::config::Config;
use super::error::{Code, Error, Outcome};
use super::graph::{Executable, Graph};
use super::module::{Kernel, Library, LoadedModule};
use super::queue::{OpId, Queue};
use super::work::Stamp;
use crate::device::Device;

/// A handle as clients see it: 0 is none.
pub type Handle = u64;

/// Everything.
pub struct State {
    pub config: Config,
    pub gpus: Vec<Gpu>,
    pub contexts: HashMap<Handle, Context>,
    pub streams: HashMap<Handle, Stream>,
    pub events: HashMap<Handle, Event>,
    pub modules: HashMap<Handle, LoadedModule>,
    pub functions: HashMap<Handle, Arc<Kernel>>,
    pub libraries: HashMap<Handle, Library>,
    /// `CUkernel`: (library, name).
    pub kernels: HashMap<Handle, (Handle, String)>,
    pub links: HashMap<Handle, super::link::Link>,
    pub graphs: HashMap<Handle, Graph>,
    pub executables: HashMap<Handle, Executable>,
    pub user_objects: HashMap<Handle, super::user_objects::UserObject>,
    /// Destructors of user objects that nobody refers to any more: called when the lock is free.
    pub finalisers: Vec<super::work::HostCall>,
    /// Which graph a node belongs to.
    pub nodes: HashMap<Handle, Handle>,
    pub captures: HashMap<Handle, Capture>,
    pub pools: HashMap<Handle, Pool>,
    /// Device allocations by address.
    pub blocks: BTreeMap<u64, Block>,
    /// Pinned, registered and managed host memory by address.
    pub host_blocks: BTreeMap<u64, HostBlock>,
    /// Ranges of allocation nodes, by address.
    pub graph_blocks: BTreeMap<u64, super::graph_memory::GraphBlock>,
    /// Memory without an address (`cuMemCreate`), and ranges of addresses by their start.
    pub memories: HashMap<Handle, super::virtual_memory::Memory>,
    pub reservations: BTreeMap<u64, super::virtual_memory::Reservation>,
    /// Reservations so far, for their names.
    pub reservations_made: u64,
    pub queue: Queue,
    /// Allocations so far, for their names.
    pub allocations: u64,
    next: Handle,
}

/// A device and its primary context.
pub struct Gpu {
    pub device: Arc<Device>,
    pub memory: u64,
    pub primary: Option<Handle>,
    pub primary_users: u32,
    pub primary_flags: u32,
    /// An operation that occupies the device runs.
    pub busy: bool,
    pub default_pool: Handle,
    pub current_pool: Handle,
    /// Bytes of allocation nodes now, and at most so far.
    pub graph_used: u64,
    pub graph_used_high: u64,
}

/// A context.
pub struct Context {
    pub gpu: usize,
    pub flags: u32,
    pub primary: bool,
    pub api_version: u32,
    /// The error that ended it.
    pub lost: Option<Error>,
    pub legacy: Handle,
    pub per_thread: HashMap<ThreadId, Handle>,
    pub limits: HashMap<u32, usize>,
    pub cache_config: u32,
    pub shared_config: u32,
    /// Devices whose memory its kernels may use.
    pub peers: HashSet<usize>,
}

/// A stream.
pub struct Stream {
    pub context: Handle,
    /// It does not synchronise with the legacy default stream.
    pub non_blocking: bool,
    pub legacy: bool,
    pub priority: i32,
    /// Its latest operation.
    pub last: Option<OpId>,
    /// What its next operation waits for besides.
    pub waits: Vec<OpId>,
    pub capture: Option<Handle>,
    pub attributes: HashMap<u32, Vec<u8>>,
}

/// An event.
pub struct Event {
    pub context: Handle,
    pub timing: bool,
    /// The latest record of it, and when it happened.
    pub recorded: Option<(OpId, Arc<Stamp>)>,
    /// The latest record was captured: the capture and its nodes so far.
    pub captured: Option<(Handle, Vec<Handle>)>,
}

/// A memory pool: bookkeeping only, since freed memory goes back to the device at once.
pub struct Pool {
    pub gpu: usize,
    pub default: bool,
    pub attributes: HashMap<u32, u64>,
    pub used: u64,
    pub used_high: u64,
}

/// A device allocation.
#[derive(Clone, Debug)]
pub struct Block {
    pub bytes: u64,
    pub context: Handle,
    pub gpu: usize,
    pub pool: Option<Handle>,
    pub id: u64,
}

/// Host memory that the driver knows.
#[derive(Clone, Debug)]
pub struct HostBlock {
    pub bytes: u64,
    pub context: Handle,
    pub gpu: usize,
    pub kind: HostKind,
    pub flags: u32,
    pub id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// Allocated by us: cuMemHostAlloc.
    Pinned,
    /// The caller's memory: cuMemHostRegister.
    Registered,
    /// cuMemAllocManaged.
    Managed,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();
/// The process that made the state. A child of fork has neither the threads nor, on a device, the context.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Signalled whenever an operation has ended.
static ENDED: Condvar = Condvar::new();

thread_local! {
    /// The thread's stack of current contexts. Nothing of it is dropped when the thread ends: destructors of a program's static objects
    /// run after those of the thread, and they free device memory.
    pub static CURRENT: RefCell<ManuallyDrop<Vec<Handle>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    /// Stream 0 means the per-thread default stream in this call (`_ptsz`, `_ptds`).
    pub static PER_THREAD_DEFAULT: Cell<bool> = const { Cell::new(false) };
    /// The thread executes a host function of a stream.
    pub static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
    /// How this thread's captures treat unsafe calls (`cuThreadExchangeStreamCaptureMode`).
    pub static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

/// The lock, held.
pub type Guard = MutexGuard<'static, State>;

/// Creates the state (`cuInit`). Later calls find it made.
pub fn initialise() -> Outcome {
    if STATE.get().is_some() {
        return not_forked();
    }
    let config = Config::from_env().map_err(|why| {
        // Few programs print more than the code, and who sets a variable wants to know.
        eprintln!("birdie-emulator: {why}");
        Code::INVALID_VALUE.because(why)
    })?;
    let state = State::new(config)?;
    // Another thread may have been faster; then its state is the one.
    let _ = STATE.set(Mutex::new(state));
    OWNER.store(std::process::id(), Ordering::Relaxed);
    Ok(())
}

/// A driver does not survive a fork: all calls of the child are refused, as on a device.
fn not_forked() -> Outcome {
    match OWNER.load(Ordering::Relaxed) {
        owner if owner == 0 || owner == std::process::id() => Ok(()),
        owner => Code::NOT_INITIALIZED.fail(format!(
            "process {owner} called cuInit and then forked this one"
        )),
    }
}

/// Locks the state.
pub fn lock() -> Outcome<Guard> {
    let state = STATE
        .get()
        .ok_or_else(|| Code::NOT_INITIALIZED.because("cuInit was not called"))?;
    // Before the lock is taken: a thread that does not exist here may have held it.
    not_forked()?;
    Ok(state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether reasons are printed.
pub fn logging() -> bool {
    match STATE.get() {
        Some(state) if not_forked().is_ok() => {
            state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .config
                .log
        }
        _ => std::env::var_os("BIRDIE_EMU_LOG").is_some_and(|value| value != "0"),
    }
}

/// Waits until some operation ends, or a millisecond (values in memory change without a signal).
pub fn wait_for_an_end(guard: Guard) -> Guard {
    ENDED
        .wait_timeout(guard, std::time::Duration::from_millis(1))
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

/// Wakes those who wait for an operation.
pub fn signal_an_end() {
    ENDED.notify_all();
}

impl State {
    fn new(config: Config) -> Outcome<State> {
        let mut state = State {
            queue: Queue::new(config.settings.seed),
            gpus: Vec::new(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            libraries: HashMap::new(),
            kernels: HashMap::new(),
            links: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            user_objects: HashMap::new(),
            finalisers: Vec::new(),
            nodes: HashMap::new(),
            captures: HashMap::new(),
            pools: HashMap::new(),
            blocks: BTreeMap::new(),
            host_blocks: BTreeMap::new(),
            graph_blocks: BTreeMap::new(),
            memories: HashMap::new(),
            reservations: BTreeMap::new(),
            reservations_made: 0,
            allocations: 0,
            next: 0x00b1_0000,
            config,
        };
        for gpu in 0..state.config.devices as usize {
            let device = Device::new(gpu as u32, state.config.settings.clone())
                .map_err(|error| Code::OUT_OF_MEMORY.because(format!("device {gpu}: {error}")))?;
            let pool = state.handle();
            state.pools.insert(
                pool,
                Pool {
                    gpu,
                    default: true,
                    attributes: HashMap::new(),
                    used: 0,
                    used_high: 0,
                },
            );
            state.gpus.push(Gpu {
                device: Arc::new(device),
                memory: state.config.settings.memory_bytes,
                primary: None,
                primary_users: 0,
                primary_flags: 0,
                busy: false,
                default_pool: pool,
                current_pool: pool,
                graph_used: 0,
                graph_used_high: 0,
            });
        }
        Ok(state)
    }

    /// A new handle.
    pub fn handle(&mut self) -> Handle {
        self.next += 16;
        self.next
    }

    /// The device with this ordinal.
    pub fn gpu(&mut self, ordinal: i32) -> Outcome<usize> {
        let index = usize::try_from(ordinal).unwrap_or(usize::MAX);
        if index < self.gpus.len() {
            Ok(index)
        } else {
            Code::INVALID_DEVICE.fail(format!(
                "no device {ordinal}: there are {}",
                self.gpus.len()
            ))
        }
    }

    /// The thread's current context, also when it is lost.
    pub fn current(&self) -> Outcome<Handle> {
        let top = CURRENT
            .with_borrow(|stack| stack.last().copied())
            .unwrap_or(0);
        if top == 0 {
            return Code::INVALID_CONTEXT.fail("no context is current to this thread");
        }
        if !self.contexts.contains_key(&top) {
            return Code::CONTEXT_IS_DESTROYED.fail("the current context was destroyed");
        }
        Ok(top)
    }

    /// The thread's current context; its error when it is lost.
    pub fn healthy(&self) -> Outcome<Handle> {
        let context = self.current()?;
        self.check_lost(context)?;
        Ok(context)
    }

    /// The error of a context that is lost.
    pub fn check_lost(&self, context: Handle) -> Outcome {
        match self.context(context)?.lost.clone() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub fn context(&self, handle: Handle) -> Outcome<&Context> {
        self.contexts
            .get(&handle)
            .ok_or_else(|| Code::INVALID_CONTEXT.because(format!("{handle:#x} is no context")))
    }

    pub fn context_mut(&mut self, handle: Handle) -> Outcome<&mut Context> {
        self.contexts
            .get_mut(&handle)
            .ok_or_else(|| Code::INVALID_CONTEXT.because(format!("{handle:#x} is no context")))
    }

    /// The device of the current context.
    pub fn current_gpu(&self) -> Outcome<usize> {
        Ok(self.context(self.healthy()?)?.gpu)
    }

    /// The stream that a client's handle means: 0, 1 and 2 are the default streams.
    pub fn stream_of(&mut self, handle: Handle) -> Outcome<Handle> {
        let per_thread = handle == 2 || handle == 0 && PER_THREAD_DEFAULT.get();
        if handle > 2 {
            let stream = self
                .streams
                .get(&handle)
                .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no stream")))?;
            self.check_lost(stream.context)?;
            return Ok(handle);
        }
        let context = self.healthy()?;
        if !per_thread {
            return Ok(self.context(context)?.legacy);
        }
        let thread = std::thread::current().id();
        if let Some(&stream) = self.context(context)?.per_thread.get(&thread) {
            return Ok(stream);
        }
        let stream = self.new_stream(context, false, false, 0);
        self.context_mut(context)?.per_thread.insert(thread, stream);
        Ok(stream)
    }

    pub fn new_stream(
        &mut self,
        context: Handle,
        legacy: bool,
        non_blocking: bool,
        priority: i32,
    ) -> Handle {
        let handle = self.handle();
        self.streams.insert(
            handle,
            Stream {
                context,
                non_blocking,
                legacy,
                priority,
                last: None,
                waits: Vec::new(),
                capture: None,
                attributes: HashMap::new(),
            },
        );
        handle
    }

    pub fn stream(&self, handle: Handle) -> Outcome<&Stream> {
        self.streams
            .get(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no stream")))
    }

    pub fn stream_mut(&mut self, handle: Handle) -> Outcome<&mut Stream> {
        self.streams
            .get_mut(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no stream")))
    }

    pub fn event(&self, handle: Handle) -> Outcome<&Event> {
        self.events
            .get(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no event")))
    }

    pub fn event_mut(&mut self, handle: Handle) -> Outcome<&mut Event> {
        self.events
            .get_mut(&handle)
            .ok_or_else(|| Code::INVALID_HANDLE.because(format!("{handle:#x} is no event")))
    }

    /// Makes a context on a device.
    pub fn new_context(&mut self, gpu: usize, flags: u32, primary: bool) -> Handle {
        let handle = self.handle();
        let legacy = self.new_stream(handle, true, false, 0);
        self.contexts.insert(
            handle,
            Context {
                gpu,
                flags,
                primary,
                api_version: 3020,
                lost: None,
                legacy,
                per_thread: HashMap::new(),
                limits: HashMap::new(),
                cache_config: 0,
                shared_config: 0,
                peers: HashSet::new(),
            },
        );
        handle
    }

    /// What is live in a context is freed. Pending work is dropped.
    pub fn destroy_context(&mut self, handle: Handle) {
        for id in self.queue.of_context(handle) {
            self.queue.complete(id);
        }
        self.streams.retain(|_, stream| stream.context != handle);
        self.events.retain(|_, event| event.context != handle);
        let modules: Vec<Handle> = self
            .modules
            .iter()
            .filter(|(_, module)| module.context == handle)
            .map(|(&module, _)| module)
            .collect();
        for module in modules {
            self.remove_module(module);
        }
        let blocks: Vec<u64> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.context == handle)
            .map(|(&address, _)| address)
            .collect();
        for address in blocks {
            self.release_block(address);
        }
        let host: Vec<u64> = self
            .host_blocks
            .iter()
            .filter(|(_, block)| block.context == handle)
            .map(|(&address, _)| address)
            .collect();
        for address in host {
            self.release_host_block(address);
        }
        for library in self.libraries.values_mut() {
            library.modules.remove(&handle);
        }
        self.contexts.remove(&handle);
    }
}

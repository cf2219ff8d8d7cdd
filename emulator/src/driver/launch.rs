//! Launching kernels.

use std::sync::Arc;

use super::error::{Code, Outcome};
use super::function::check_launch;
use super::module::Kernel;
use super::run;
use super::state::{self, Handle, State};
use super::types::LaunchConfigEx;
use super::work::{HostCall, KernelCall, Work};
use crate::device::LaunchConfig;

/// What `CUlaunchConfig` says.
pub struct Configuration {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: Option<[u32; 3]>,
    pub dynamic_shared: u32,
    pub cooperative: bool,
}

/// `CUlaunchAttributeID`
mod attribute {
    pub const IGNORE: u32 = 0;
    pub const ACCESS_POLICY_WINDOW: u32 = 1;
    pub const COOPERATIVE: u32 = 2;
    pub const SYNCHRONIZATION_POLICY: u32 = 3;
    pub const CLUSTER_DIMENSION: u32 = 4;
    pub const CLUSTER_SCHEDULING: u32 = 5;
    /// Programmatic dependent launch. A kernel may start before its predecessor has ended and then waits with
    /// `griddepcontrol.wait`. Here kernels of a stream run one after another, which is one of the orders it allows.
    pub const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;
    pub const PROGRAMMATIC_EVENT: u32 = 7;
    pub const PRIORITY: u32 = 8;
    pub const MEM_SYNC_DOMAIN_MAP: u32 = 9;
    pub const MEM_SYNC_DOMAIN: u32 = 10;
    pub const PREFERRED_CLUSTER: u32 = 11;
    pub const LAUNCH_COMPLETION_EVENT: u32 = 12;
    pub const DEVICE_UPDATABLE_NODE: u32 = 13;
    pub const PREFERRED_CARVEOUT: u32 = 14;
}

/// Events that attributes ask to record.
pub struct Events(Vec<Handle>);

/// Reads a launch configuration.
///
/// # Safety
/// `config` is null or a valid configuration.
pub unsafe fn read_config(config: *const LaunchConfigEx) -> Outcome<(Configuration, Events)> {
    if config.is_null() {
        return Code::INVALID_VALUE.fail("no launch configuration");
    }
    // SAFETY: by the contract of this function.
    let config = unsafe { *config };
    let mut out = Configuration {
        grid: config.grid,
        block: config.block,
        cluster: None,
        dynamic_shared: config.shared,
        cooperative: false,
    };
    let mut events = Vec::new();
    if config.count > 0 && config.attributes.is_null() {
        return Code::INVALID_VALUE.fail(format!("{} launch attributes at null", config.count));
    }
    for index in 0..config.count as usize {
        // SAFETY: by the contract of this function there are `count` attributes.
        let attribute = unsafe { *config.attributes.add(index) };
        let value = attribute.value;
        match attribute.id {
            attribute::COOPERATIVE => out.cooperative = value[0] != 0,
            attribute::CLUSTER_DIMENSION => out.cluster = Some([value[0], value[1], value[2]]),
            attribute::PROGRAMMATIC_EVENT | attribute::LAUNCH_COMPLETION_EVENT => {
                events.push(u64::from(value[0]) | u64::from(value[1]) << 32);
            }
            attribute::DEVICE_UPDATABLE_NODE if value[0] != 0 => {
                return Code::NOT_SUPPORTED.fail("kernel nodes that the device updates");
            }
            attribute::IGNORE
            | attribute::ACCESS_POLICY_WINDOW
            | attribute::SYNCHRONIZATION_POLICY
            | attribute::CLUSTER_SCHEDULING
            | attribute::PROGRAMMATIC_STREAM_SERIALIZATION
            | attribute::PRIORITY
            | attribute::MEM_SYNC_DOMAIN_MAP
            | attribute::MEM_SYNC_DOMAIN
            | attribute::PREFERRED_CLUSTER
            | attribute::PREFERRED_CARVEOUT
            | attribute::DEVICE_UPDATABLE_NODE => {}
            other => return Code::INVALID_VALUE.fail(format!("no launch attribute {other}")),
        }
    }
    Ok((out, Events(events)))
}

/// The parameters of a launch: separate values, or a packed buffer in `extra`.
///
/// # Safety
/// The pointers are what `cuLaunchKernel` documents.
pub unsafe fn read_parameters(
    kernel: &Kernel,
    parameters: *const *const u8,
    extra: *const *const u8,
) -> Outcome<Vec<u8>> {
    const END: usize = 0;
    const BUFFER_POINTER: usize = 1;
    const BUFFER_SIZE: usize = 2;
    if extra.is_null() {
        // SAFETY: by the contract of this function.
        return unsafe { kernel.gather(parameters) };
    }
    if !parameters.is_null() {
        return Code::INVALID_VALUE.fail(format!(
            "kernel {}: both kernelParams and extra are given",
            kernel.name
        ));
    }
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), 0);
    let mut at = 0;
    loop {
        // SAFETY: the list ends with CU_LAUNCH_PARAM_END, which is looked for.
        let key = unsafe { *extra.add(at) } as usize;
        match key {
            END => break,
            // SAFETY: a key is followed by its value.
            BUFFER_POINTER => buffer = unsafe { *extra.add(at + 1) },
            BUFFER_SIZE => {
                // SAFETY: as above; the value points at a size.
                let pointer = unsafe { *extra.add(at + 1) }.cast::<usize>();
                if pointer.is_null() {
                    return Code::INVALID_VALUE.fail("extra: the size is a null pointer");
                }
                // SAFETY: checked not to be null.
                size = unsafe { pointer.read_unaligned() };
            }
            other => return Code::INVALID_VALUE.fail(format!("extra: unknown key {other:#x}")),
        }
        at += 2;
    }
    let wanted = kernel
        .program
        .params
        .last()
        .map_or(0, |last| (last.offset + last.bytes) as usize);
    if size < wanted || (buffer.is_null() && wanted > 0) {
        return Code::INVALID_VALUE.fail(format!(
            "kernel {}: a buffer of {size} bytes for {wanted} bytes of parameters",
            kernel.name
        ));
    }
    let mut block = vec![0u8; kernel.program.param_bytes as usize];
    let count = size.min(block.len());
    if count > 0 {
        // SAFETY: the caller gave a buffer of `size` bytes.
        block[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(buffer, count) });
    }
    Ok(block)
}

/// Completes and checks a configuration.
pub fn resolve(
    kernel: &Kernel,
    configuration: &Configuration,
    parameters: &[u8],
) -> Outcome<LaunchConfig> {
    let config = LaunchConfig {
        grid: configuration.grid,
        block: configuration.block,
        cluster: configuration
            .cluster
            .or(kernel.cluster())
            .unwrap_or([1, 1, 1]),
        dynamic_shared: configuration.dynamic_shared,
    };
    check_launch(kernel, &config, parameters)?;
    Ok(config)
}

impl State {
    /// A cooperative grid has to be resident as a whole.
    fn check_cooperative(&self, kernel: &Kernel, config: &LaunchConfig) -> Outcome {
        let threads = config.block.iter().product();
        let room = u64::from(kernel.blocks_per_sm(threads, config.dynamic_shared))
            * u64::from(self.config.settings.sm_count);
        let blocks: u64 = config.grid.iter().map(|&n| u64::from(n)).product();
        if blocks > room {
            return Code::COOPERATIVE_LAUNCH_TOO_LARGE.fail(format!(
                "{}: {blocks} blocks, {room} can be resident on {} SMs",
                kernel.name, self.config.settings.sm_count
            ));
        }
        Ok(())
    }
}

unsafe fn launch(
    function: u64,
    configuration: &Configuration,
    stream: u64,
    parameters: *const *const u8,
    extra: *const *const u8,
    events: &[Handle],
) -> Outcome {
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.healthy()?;
    let kernel = guard.kernel_of(function)?;
    if kernel.context != context || guard.stream(stream)?.context != context {
        return Code::INVALID_HANDLE.fail(format!(
            "kernel {}: function, stream and current context do not belong together",
            kernel.name
        ));
    }
    // SAFETY: the caller's promise.
    let block = unsafe { read_parameters(&kernel, parameters, extra) }?;
    let config = resolve(&kernel, configuration, &block)?;
    if configuration.cooperative {
        guard.check_cooperative(&kernel, &config)?;
    }
    let call = KernelCall {
        kernel,
        config,
        parameters: block,
        cooperative: configuration.cooperative,
    };
    guard.submit(stream, Work::Kernel(Arc::new(call)))?;
    for &event in events {
        guard.record(event, stream)?;
    }
    run::relieve(guard, context)
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn kernel(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: u64,
    parameters: *const *const u8,
    extra: *const *const u8,
) -> Outcome {
    let configuration = Configuration {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        cluster: None,
        dynamic_shared: shared,
        cooperative: false,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(function, &configuration, stream, parameters, extra, &[]) }
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn cooperative(
    function: u64,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: u64,
    parameters: *const *const u8,
) -> Outcome {
    let configuration = Configuration {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        cluster: None,
        dynamic_shared: shared,
        cooperative: true,
    };
    // SAFETY: the caller's promise.
    unsafe {
        launch(
            function,
            &configuration,
            stream,
            parameters,
            std::ptr::null(),
            &[],
        )
    }
}

pub unsafe fn kernel_ex(
    config: *const LaunchConfigEx,
    function: u64,
    parameters: *const *const u8,
    extra: *const *const u8,
) -> Outcome {
    // SAFETY: the caller's promise.
    let (configuration, events) = unsafe { read_config(config) }?;
    // SAFETY: checked not to be null by `read_config`.
    let stream = unsafe { (*config).stream };
    // SAFETY: the caller's promise.
    unsafe {
        launch(
            function,
            &configuration,
            stream,
            parameters,
            extra,
            &events.0,
        )
    }
}

pub unsafe fn host_function(
    stream: u64,
    function: Option<unsafe extern "C" fn(*mut core::ffi::c_void)>,
    data: u64,
) -> Outcome {
    let Some(function) = function else {
        return Code::INVALID_VALUE.fail("the host function is null");
    };
    let mut guard = state::lock()?;
    let stream = guard.stream_of(stream)?;
    let context = guard.stream(stream)?.context;
    guard.submit(stream, Work::Host(HostCall { function, data }))?;
    run::relieve(guard, context)
}

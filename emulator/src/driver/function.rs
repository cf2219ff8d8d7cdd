//! Questions about a kernel: attributes, parameters, occupancy; and what a launch of it may ask for.

use std::ffi::c_char;
use std::sync::atomic::Ordering;

use super::error::{Code, Outcome};
use super::module::Kernel;
use super::state;
use super::{put, types};
use crate::device::{LaunchConfig, LaunchError};
use crate::exec::launch::{
    MAX_CLUSTER, MAX_SHARED, PORTABLE_CLUSTER, SHARED_PER_SM, SHARED_RESERVED,
};

impl Kernel {
    /// Threads per block at most.
    pub fn max_threads(&self) -> u32 {
        let bounds = &self.program.bounds;
        let declared = bounds.reqntid.or(bounds.maxntid);
        declared
            .map_or(1024, |[x, y, z]| x.saturating_mul(y).saturating_mul(z))
            .clamp(1, 1024)
    }

    /// The cluster that is compiled in, or was set as an attribute.
    pub fn cluster(&self) -> Option<[u32; 3]> {
        let set = [0, 1, 2].map(|d| self.required_cluster[d].load(Ordering::Relaxed));
        if set[0] != 0 {
            return Some(set.map(|size| size.max(1)));
        }
        self.program.bounds.reqnctapercluster
    }

    /// Blocks of one SM, by the scarcest resource; 0 where a launch would be refused.
    pub fn blocks_per_sm(&self, threads: u32, dynamic_shared: u32) -> u32 {
        if threads == 0 || threads > self.max_threads() {
            return 0;
        }
        self.program.ctas_per_sm(threads, dynamic_shared)
    }

    /// The parameter block from separate values.
    ///
    /// # Safety
    /// `values` has a pointer for each parameter, to a value of its size.
    pub unsafe fn gather(&self, values: *const *const u8) -> Outcome<Vec<u8>> {
        let parameters = &self.program.params;
        let mut block = vec![0u8; self.program.param_bytes as usize];
        if parameters.is_empty() {
            return Ok(block);
        }
        if values.is_null() {
            return Code::INVALID_VALUE.fail(format!(
                "kernel {} has {} parameters, none were given",
                self.name,
                parameters.len()
            ));
        }
        for (index, parameter) in parameters.iter().enumerate() {
            // SAFETY: by the contract of this function.
            let value = unsafe { *values.add(index) };
            if value.is_null() {
                return Code::INVALID_VALUE.fail(format!(
                    "kernel {}: the pointer to parameter {index} ({}) is null",
                    self.name, parameter.name
                ));
            }
            let (at, bytes) = (parameter.offset as usize, parameter.bytes as usize);
            // SAFETY: by the contract of this function the value has the size of the parameter.
            let value = unsafe { std::slice::from_raw_parts(value, bytes) };
            block[at..at + bytes].copy_from_slice(value);
        }
        Ok(block)
    }
}

/// `CUfunction_attribute`
mod attribute {
    pub const MAX_THREADS: u32 = 0;
    pub const SHARED: u32 = 1;
    pub const CONST: u32 = 2;
    pub const LOCAL: u32 = 3;
    pub const REGISTERS: u32 = 4;
    pub const PTX_VERSION: u32 = 5;
    pub const BINARY_VERSION: u32 = 6;
    pub const CACHE_MODE_CA: u32 = 7;
    pub const MAX_DYNAMIC_SHARED: u32 = 8;
    pub const CARVEOUT: u32 = 9;
    pub const CLUSTER_MUST_BE_SET: u32 = 10;
    pub const CLUSTER_WIDTH: u32 = 11;
    pub const CLUSTER_DEPTH: u32 = 13;
    pub const NON_PORTABLE_CLUSTER: u32 = 14;
    pub const CLUSTER_SCHEDULING: u32 = 15;
}

pub unsafe fn get_attribute(out: *mut i32, which: u32, function: u64) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    let program = &kernel.program;
    let value = match which {
        attribute::MAX_THREADS => kernel.max_threads(),
        attribute::SHARED => program.shared_bytes,
        attribute::CONST => kernel.constant_bytes,
        attribute::CACHE_MODE_CA | attribute::CLUSTER_SCHEDULING => 0,
        attribute::LOCAL => program.local_bytes,
        attribute::REGISTERS => kernel.program.registers_per_thread(),
        attribute::PTX_VERSION | attribute::BINARY_VERSION => 90,
        attribute::MAX_DYNAMIC_SHARED => super::module::dynamic_shared_limit(&kernel),
        attribute::CARVEOUT => kernel.preferred_carveout.load(Ordering::Relaxed),
        attribute::CLUSTER_MUST_BE_SET => {
            u32::from(program.bounds.explicit_cluster && program.bounds.reqnctapercluster.is_none())
        }
        attribute::CLUSTER_WIDTH..=attribute::CLUSTER_DEPTH => kernel
            .cluster()
            .map_or(0, |size| size[(which - attribute::CLUSTER_WIDTH) as usize]),
        attribute::NON_PORTABLE_CLUSTER => kernel.non_portable_cluster.load(Ordering::Relaxed),
        _ => return Code::INVALID_VALUE.fail(format!("no function attribute {which}")),
    };
    put(out, value as i32)
}

pub unsafe fn set_attribute(function: u64, which: u32, value: i32) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    match which {
        attribute::MAX_DYNAMIC_SHARED => {
            let limit = MAX_SHARED.saturating_sub(kernel.program.shared_bytes);
            match u32::try_from(value) {
                Ok(bytes) if bytes <= limit => {
                    kernel.max_dynamic_shared.store(bytes, Ordering::Relaxed);
                    Ok(())
                }
                _ => Code::INVALID_VALUE.fail(format!(
                    "kernel {}: {value} bytes of dynamic shared memory; with {} static ones at most {limit} fit",
                    kernel.name, kernel.program.shared_bytes
                )),
            }
        }
        attribute::CARVEOUT if (-1..=100).contains(&value) => {
            kernel
                .preferred_carveout
                .store(value as u32, Ordering::Relaxed);
            Ok(())
        }
        attribute::CLUSTER_WIDTH..=attribute::CLUSTER_DEPTH if (0..=16).contains(&value) => {
            kernel.required_cluster[(which - attribute::CLUSTER_WIDTH) as usize]
                .store(value as u32, Ordering::Relaxed);
            Ok(())
        }
        attribute::NON_PORTABLE_CLUSTER if (0..=1).contains(&value) => {
            kernel
                .non_portable_cluster
                .store(value as u32, Ordering::Relaxed);
            Ok(())
        }
        attribute::CLUSTER_SCHEDULING if (0..=2).contains(&value) => Ok(()),
        _ => Code::INVALID_VALUE.fail(format!(
            "function attribute {which} cannot be set to {value}"
        )),
    }
}

/// The `CUkernel` forms take the device last.
pub unsafe fn kernel_get_attribute(
    out: *mut i32,
    which: u32,
    kernel: u64,
    _device: i32,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { get_attribute(out, which, kernel) }
}

pub unsafe fn kernel_set_attribute(which: u32, value: i32, kernel: u64, _device: i32) -> Outcome {
    // SAFETY: no pointers.
    unsafe { set_attribute(kernel, which, value) }
}

/// There is one cache configuration: any preference is met.
pub unsafe fn set_cache_config(function: u64, _config: u32) -> Outcome {
    state::lock()?.kernel_of(function).map(drop)
}

pub unsafe fn kernel_set_cache_config(kernel: u64, _config: u32, _device: i32) -> Outcome {
    state::lock()?.kernel_of(kernel).map(drop)
}

pub unsafe fn get_module(out: *mut u64, function: u64) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    put(out, kernel.module)
}

/// The name lives as long as the process: clients keep the pointer.
pub unsafe fn get_name(out: *mut *const c_char, function: u64) -> Outcome {
    let mut guard = state::lock()?;
    let name = if let Some((_, name)) = guard.kernels.get(&function) {
        name.clone()
    } else {
        guard.kernel_of(function)?.name.clone()
    };
    put(out, types::forever(&name).as_ptr())
}

pub unsafe fn get_parameter(
    function: u64,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    let parameter = kernel.program.params.get(index).ok_or_else(|| {
        Code::INVALID_VALUE.because(format!("kernel {} has no parameter {index}", kernel.name))
    })?;
    put(offset, parameter.offset as usize)?;
    if size.is_null() {
        return Ok(());
    }
    put(size, parameter.bytes as usize)
}

/// `CU_FUNCTION_LOADING_STATE_LOADED`
pub unsafe fn is_loaded(out: *mut u32, function: u64) -> Outcome {
    let mut guard = state::lock()?;
    guard.kernel_of(function)?;
    put(out, 1)
}

pub unsafe fn load(function: u64) -> Outcome {
    state::lock()?.kernel_of(function).map(drop)
}

pub unsafe fn max_active_blocks(
    out: *mut i32,
    function: u64,
    threads: i32,
    shared: usize,
) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    let threads = u32::try_from(threads)
        .ok()
        .filter(|&threads| threads > 0)
        .ok_or_else(|| Code::INVALID_VALUE.because(format!("{threads} threads per block")))?;
    let shared = u32::try_from(shared).unwrap_or(u32::MAX / 2);
    put(
        out,
        kernel.blocks_per_sm(threads, shared.min(1 << 24)) as i32,
    )
}

pub unsafe fn max_active_blocks_flags(
    out: *mut i32,
    function: u64,
    threads: i32,
    shared: usize,
    flags: u32,
) -> Outcome {
    if flags > 1 {
        return Code::INVALID_VALUE.fail(format!("occupancy flags {flags:#x}"));
    }
    // SAFETY: the caller's promise.
    unsafe { max_active_blocks(out, function, threads, shared) }
}

/// The block size with the most resident threads, the larger one where two are alike.
pub unsafe fn max_potential_block(
    grid: *mut i32,
    block: *mut i32,
    function: u64,
    shared_of: Option<unsafe extern "C" fn(i32) -> usize>,
    shared: usize,
    limit: i32,
) -> Outcome {
    let (kernel, sms) = {
        let mut guard = state::lock()?;
        let kernel = guard.kernel_of(function)?;
        (kernel, guard.config.settings.sm_count)
    };
    let most = if limit > 0 {
        kernel.max_threads().min(limit as u32)
    } else {
        kernel.max_threads()
    };
    let mut best = (0, 0, 0);
    for threads in (1..=most.div_ceil(32))
        .rev()
        .map(|warps| (warps * 32).min(most))
    {
        // SAFETY: the caller's function, which maps a block size to bytes. The lock is not held.
        let bytes = shared_of.map_or(shared, |shared_of| unsafe { shared_of(threads as i32) });
        let blocks = kernel.blocks_per_sm(threads, u32::try_from(bytes).unwrap_or(1 << 24));
        if blocks * threads > best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    put(grid, (best.2 * sms) as i32)?;
    put(block, best.1 as i32)
}

pub unsafe fn max_potential_block_flags(
    grid: *mut i32,
    block: *mut i32,
    function: u64,
    shared_of: Option<unsafe extern "C" fn(i32) -> usize>,
    shared: usize,
    limit: i32,
    _flags: u32,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { max_potential_block(grid, block, function, shared_of, shared, limit) }
}

pub unsafe fn available_shared(
    out: *mut usize,
    function: u64,
    blocks: i32,
    threads: i32,
) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    if blocks <= 0 || threads <= 0 {
        return Code::INVALID_VALUE.fail(format!("{blocks} blocks of {threads} threads"));
    }
    let share = (SHARED_PER_SM / blocks as u32).saturating_sub(SHARED_RESERVED) & !127;
    let free = share
        .min(MAX_SHARED)
        .saturating_sub(kernel.program.shared_bytes);
    put(out, free as usize)
}

/// `cuOccupancyMaxPotentialClusterSize` and `cuOccupancyMaxActiveClusters` take a launch configuration.
pub unsafe fn max_cluster_size(
    out: *mut i32,
    function: u64,
    config: *const types::LaunchConfigEx,
) -> Outcome {
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    if config.is_null() {
        return Code::INVALID_VALUE.fail("no launch configuration");
    }
    let largest = if kernel.non_portable_cluster.load(Ordering::Relaxed) != 0 {
        MAX_CLUSTER
    } else {
        PORTABLE_CLUSTER
    };
    put(out, largest as i32)
}

pub unsafe fn max_active_clusters(
    out: *mut i32,
    function: u64,
    config: *const types::LaunchConfigEx,
) -> Outcome {
    // SAFETY: the caller's promise.
    let (launch, _) = unsafe { super::launch::read_config(config) }?;
    let mut guard = state::lock()?;
    let kernel = guard.kernel_of(function)?;
    let threads = launch.block.iter().product();
    let cluster: u32 = launch
        .cluster
        .or(kernel.cluster())
        .unwrap_or([1, 1, 1])
        .iter()
        .product();
    let per_sm = kernel.blocks_per_sm(threads, launch.dynamic_shared);
    let clusters = guard.config.settings.clusters_at_once(per_sm, cluster);
    // A device with fewer SMs than a real one runs a cluster that is too large for them all the same.
    put(out, clusters.max(per_sm.min(1)) as i32)
}

/// The limits on a launch: those of the program, and those that attributes of the function set.
pub fn check_launch(kernel: &Kernel, config: &LaunchConfig, parameters: &[u8]) -> Outcome {
    kernel
        .program
        .check(config, parameters)
        .map_err(launch_error)?;
    let name = &kernel.name;
    let limit = super::module::dynamic_shared_limit(kernel);
    if config.dynamic_shared > limit {
        return Code::INVALID_VALUE.fail(format!(
            "{name}: {} bytes of dynamic shared memory, {limit} are allowed \
             (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES raises that to at most {})",
            config.dynamic_shared,
            MAX_SHARED.saturating_sub(kernel.program.shared_bytes)
        ));
    }
    let blocks: u32 = config.cluster.iter().product();
    if blocks > PORTABLE_CLUSTER && kernel.non_portable_cluster.load(Ordering::Relaxed) == 0 {
        return Code::INVALID_CLUSTER_SIZE.fail(format!(
            "{name}: cluster {:?} has {blocks} blocks, {PORTABLE_CLUSTER} is the limit \
             (CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED raises it to {MAX_CLUSTER})",
            config.cluster
        ));
    }
    Ok(())
}

/// The code for a launch that is refused, or that failed.
pub fn launch_error(error: LaunchError) -> super::error::Error {
    match error {
        LaunchError::InvalidValue(why) => Code::INVALID_VALUE.because(why),
        LaunchError::OutOfResources(why) => Code::LAUNCH_OUT_OF_RESOURCES.because(why),
        LaunchError::InvalidClusterSize(why) => Code::INVALID_CLUSTER_SIZE.because(why),
        LaunchError::Fault(_) => Code::LAUNCH_FAILED.because("the kernel failed"),
    }
}

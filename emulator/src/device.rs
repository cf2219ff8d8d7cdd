//! The device as the driver sees it: memory, modules, launches. No CUDA types here.

use crate::memory::Arena;
use crate::program::{LowerError, Program};
use std::collections::HashMap;
use std::sync::Arc;

/// One emulated GPU.
pub struct Device {
    pub ordinal: u32,
    pub memory: Arena,
    pub settings: Settings,
}

/// How launches are executed; read from the environment once (`Settings::from_env`), changeable by tests.
#[derive(Debug, Clone)]
pub struct Settings {
    pub sm_count: u32,
    pub seed: u64,
    pub policy: Policy,
    pub checks: bool,
    /// Collect findings instead of failing the launch at the first.
    pub collect: bool,
    /// Host threads; 0 = all cores.
    pub threads: usize,
}

/// When asynchronous operations take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Eager,
    /// Only when somebody waits for them and nothing else can run.
    Latest,
    Random,
}

/// A loaded module.
pub struct Module {
    pub entries: HashMap<String, Arc<Program>>,
    /// Module-scope `.global`/`.const` variables: device address and bytes.
    pub globals: HashMap<String, (u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    Parse { line: u32, what: String },
    Lower(LowerError),
    OutOfMemory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
}

/// A launch in progress, shared by all its CTAs.
pub struct Launch<'a> {
    pub program: &'a Program,
    pub device: &'a Device,
    pub config: LaunchConfig,
    /// Device address of the kernel's parameter block.
    pub params: u64,
    pub seed: u64,
    pub policy: Policy,
    pub checks: bool,
    pub grid_id: u64,
}

/// Why a launch ended early.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    IllegalAddress(String),
    MisalignedAddress(String),
    IllegalInstruction(String),
    HardwareStack(String),
    InvalidPc(String),
    /// `trap` or a failed `assert`.
    Trap(String),
    Assert(String),
    Timeout(String),
    /// A checker's finding (deadlocks too).
    Finding(Box<crate::check::Finding>),
}

/// What `Device::launch` can refuse before anything runs.
#[derive(Debug, Clone, PartialEq)]
pub enum LaunchError {
    InvalidValue(String),
    /// Too many threads, registers or shared memory.
    OutOfResources(String),
    InvalidClusterSize(String),
    /// It ran and failed.
    Fault(Fault),
}

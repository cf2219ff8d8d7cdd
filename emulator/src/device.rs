//! The device as the driver sees it: memory, modules, launches. No CUDA types here.

use crate::memory::Arena;
use crate::program::{LowerError, Program};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

/// One emulated GPU.
pub struct Device {
    pub ordinal: u32,
    pub memory: Arena,
    pub settings: Settings,
    /// Text printed by kernels, not yet taken.
    pub output: Mutex<Vec<u8>>,
    /// Launches so far: `%gridid`.
    pub launches: AtomicU64,
    /// A launch executes about this many of its clusters, spread over the grid, and its results are worthless; 0 = all. For counting
    /// the work of grids that are too large to be emulated. Launches whose clusters communicate are always whole.
    pub sample: AtomicU64,
    /// Address of the workspace of cooperative grids, once there was one.
    grid_workspace: Mutex<Option<u64>>,
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
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Align shared memory as declared and no better, also where the device happens to align it better.
    pub exact_alignment: bool,
    /// `elect.sync` takes any lane, by seed, instead of the lowest.
    pub elect_any: bool,
    /// CTAs that communicate start in any order, by seed, instead of that of their indices.
    pub start_any: bool,
    /// Report also what devices are known to forgive although CUDA's guide asks for it (see `check::strict`).
    pub strict: bool,
    /// Operations (of warps) after which a launch ends with a time-out; 0 = no limit.
    pub step_limit: u64,
    /// Count instructions, bytes and conflicts.
    pub count: bool,
    /// Record waits, copies, wgmma and phases of mbarriers.
    pub trace: bool,
    /// The tensor core computes in the arithmetic measured on silicon instead of f32 multiply-adds; much slower.
    pub exact_mma: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            sm_count: 4,
            seed: 0,
            policy: Policy::Random,
            checks: true,
            collect: false,
            threads: 0,
            memory_bytes: 80 << 30,
            exact_alignment: false,
            elect_any: false,
            start_any: false,
            strict: false,
            step_limit: 0,
            count: false,
            trace: false,
            exact_mma: false,
        }
    }
}

impl Settings {
    /// The defaults, changed by `BIRDIE_EMU_SMS`, `_SEED`, `_POLICY` (eager, latest, random), `_CHECKS` (0 or 1),
    /// `_COLLECT`, `_EXACT_MMA`, `_THREADS`, `_MEMORY` (bytes), `_EXACT_ALIGNMENT`, `_ELECT_ANY`,
    /// `_START_ANY`, `_STRICT` and `_STEP_LIMIT`. The error names the variable.
    pub fn from_env() -> Result<Self, String> {
        let mut s = Settings::default();
        fn read<T: std::str::FromStr>(name: &str, to: &mut T) -> Result<(), String> {
            let name = format!("BIRDIE_EMU_{name}");
            if let Ok(text) = std::env::var(&name) {
                *to = text
                    .parse()
                    .map_err(|_| format!("{name}={text} is not a number in range"))?;
            }
            Ok(())
        }
        fn flag(name: &str, to: &mut bool) -> Result<(), String> {
            let mut n = u8::from(*to);
            read(name, &mut n)?;
            *to = n != 0;
            Ok(())
        }
        read("SMS", &mut s.sm_count)?;
        read("SEED", &mut s.seed)?;
        read("THREADS", &mut s.threads)?;
        read("MEMORY", &mut s.memory_bytes)?;
        read("STEP_LIMIT", &mut s.step_limit)?;
        flag("CHECKS", &mut s.checks)?;
        flag("COLLECT", &mut s.collect)?;
        flag("EXACT_MMA", &mut s.exact_mma)?;
        flag("EXACT_ALIGNMENT", &mut s.exact_alignment)?;
        flag("ELECT_ANY", &mut s.elect_any)?;
        flag("START_ANY", &mut s.start_any)?;
        flag("STRICT", &mut s.strict)?;
        s.policy = match std::env::var("BIRDIE_EMU_POLICY").as_deref() {
            Ok("eager") => Policy::Eager,
            Ok("latest") => Policy::Latest,
            Ok("random") | Err(_) => Policy::Random,
            Ok(other) => {
                return Err(format!(
                    "BIRDIE_EMU_POLICY={other} is none of eager, latest, random"
                ));
            }
        };
        s.sm_count = s.sm_count.clamp(1, 1024);
        Ok(s)
    }

    /// SMs of each graphics processing cluster (GPC). A cluster of CTAs runs within one, so a device that holds so many CTAs may
    /// hold fewer of them as clusters.
    ///
    /// A whole GPC of GH100 has 9 pairs of SMs; an H100 SXM has 8 GPCs and 66 pairs (NVIDIA, "Hopper Architecture In-Depth"), and which
    /// pairs are missing differs from chip to chip. Here they are dealt evenly, to as few GPCs as can take them: 132 SMs are six of 16 and
    /// two of 18, and 32 clusters of 4 or 16 of 8 run at once. Chips are known that hold less: 15 clusters of 8
    /// (github.com/accel-sim/gpu-app-collection, pull request 87).
    pub fn gpcs(&self) -> impl Iterator<Item = u32> {
        const PAIRS: u32 = 9;
        let pairs = self.sm_count.div_ceil(2);
        let gpcs = pairs.div_ceil(PAIRS);
        let odd = self.sm_count % 2;
        (0..gpcs).map(move |i| {
            let more = u32::from(i < pairs % gpcs);
            2 * (pairs / gpcs + more) - if i + 1 == gpcs { odd } else { 0 }
        })
    }

    /// Clusters of so many CTAs that run at once, if an SM holds `per_sm` of their CTAs.
    pub fn clusters_at_once(&self, per_sm: u32, ctas: u32) -> u32 {
        self.gpcs().map(|sms| per_sm * sms / ctas.max(1)).sum()
    }
}

impl Device {
    /// A device with nothing allocated.
    pub fn new(ordinal: u32, settings: Settings) -> std::io::Result<Self> {
        let reserve = settings.memory_bytes.saturating_add(1 << 30);
        let memory = Arena::new(reserve)?;
        if !settings.checks {
            memory.defined.stop();
        }
        Ok(Device {
            ordinal,
            memory,
            settings,
            output: Mutex::default(),
            launches: AtomicU64::new(0),
            sample: AtomicU64::new(0),
            grid_workspace: Mutex::new(None),
        })
    }

    /// The workspace that a cooperative grid finds in `%envreg1` and `%envreg2`: its size and the word of its barrier, which must be 0 when
    /// the grid starts. One for all grids, since kernels of a device do not overlap. `None` when the device is full.
    pub fn grid_workspace(&self) -> Option<u64> {
        const BYTES: u32 = 8;
        let mut known = self
            .grid_workspace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let limit = self.settings.memory_bytes;
            *known = self.memory.allocate(
                u64::from(BYTES),
                512,
                limit,
                "workspace of cooperative grids",
            );
        }
        if let Some(address) = *known {
            // SAFETY: our own allocation of two words, which is never freed.
            unsafe { (address as *mut [u32; 2]).write([BYTES, 0]) };
        }
        *known
    }

    /// What kernels have printed since the last call.
    pub fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
    /// Bytes of its `.const` variables.
    pub constant_bytes: u64,
    /// What [`Device::unload_module`] frees.
    pub allocations: Vec<u64>,
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
    /// Address that `%envreg1` and `%envreg2` hold: see [`Device::grid_workspace`]. 0 where the grid is not cooperative.
    pub grid_workspace: u64,
}

impl Launch<'_> {
    /// `%is_explicit_cluster`: the launch or the kernel names cluster dimensions.
    pub fn explicit_cluster(&self) -> bool {
        self.config.cluster != [1, 1, 1]
            || self.program.bounds.explicit_cluster
            || self.program.bounds.reqnctapercluster.is_some()
    }
}

/// What a launch that ended well has to say.
#[derive(Debug, Clone, Default)]
pub struct LaunchReport {
    /// Findings, where they are collected.
    pub findings: Vec<crate::check::Finding>,
    /// Operations of warps that were executed.
    pub operations: u64,
    /// With [`Settings::count`].
    pub counters: Option<crate::counters::Counters>,
    /// Clusters of the grid, and how many of them were executed (see [`Device::sample`]).
    pub clusters: u64,
    pub executed: u64,
}

/// What was observed of a launch, however it ended.
#[derive(Debug, Default)]
pub struct Observation {
    /// With [`Settings::count`].
    pub counters: Option<crate::counters::Counters>,
    /// With [`Settings::trace`].
    pub trace: Option<crate::trace::LaunchTrace>,
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

#[cfg(test)]
mod tests {
    use super::Settings;

    fn settings(sm_count: u32) -> Settings {
        Settings {
            sm_count,
            ..Settings::default()
        }
    }

    #[test]
    fn every_sm_is_in_a_gpc_of_at_most_18() {
        for sms in 1..=200 {
            let gpcs: Vec<u32> = settings(sms).gpcs().collect();
            assert_eq!(gpcs.iter().sum::<u32>(), sms, "{gpcs:?}");
            assert!(gpcs.iter().all(|&n| (1..=18).contains(&n)), "{gpcs:?}");
        }
        let h100: Vec<u32> = settings(132).gpcs().collect();
        assert_eq!(h100, [18, 18, 16, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn clusters_do_not_cross_gpcs() {
        let at_once = |sms, ctas| settings(sms).clusters_at_once(1, ctas);
        let h100 = [1, 2, 4, 8, 16].map(|ctas| at_once(132, ctas));
        assert_eq!(h100, [132, 66, 32, 16, 8]);
        assert_eq!(settings(132).clusters_at_once(2, 4), 66);
        assert_eq!((at_once(4, 2), at_once(4, 4), at_once(4, 8)), (2, 1, 0));
    }
}

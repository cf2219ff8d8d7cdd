//! Launching a kernel: the driver's rules, the clusters of the grid over host threads, and what comes out.
//!
//! A kernel that does not communicate between CTAs has its clusters simulated independently, each with a generator
//! seeded from the launch's seed and its own index, by as many threads as are wanted. A kernel that does communicate
//! is one [`Group`] on one thread: as many clusters as the device can hold at once, others as these end. So a result
//! depends on the seed alone. The fault reported is that of the first cluster in the grid's order.

use super::schedule::Group;
use super::{Cluster, FULL, Rng};
use crate::check::Finding;
use crate::check::between::Between;
use crate::check::global::{GlobalLog, races};
use crate::counters::Counters;
use crate::device::{Device, Fault, Launch, LaunchConfig, LaunchError, LaunchReport, Observation};
use crate::program::Program;
use crate::trace::{LaunchTrace, Trace};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Limits of an H100.
pub const MAX_THREADS: u32 = 1024;
pub const MAX_SHARED: u32 = 227 << 10;
pub const SHARED_PER_SM: u32 = 228 << 10;
/// Shared memory that the system keeps for itself, per CTA.
pub const SHARED_RESERVED: u32 = 1 << 10;
pub const REGISTERS_PER_SM: u32 = 65536;
pub const THREADS_PER_SM: u32 = 2048;
pub const CTAS_PER_SM: u32 = 32;
pub const MAX_CLUSTER: u32 = 16;
pub const PORTABLE_CLUSTER: u32 = 8;

impl Program {
    /// Registers per thread that the machine code would have: what launch bounds leave, at most what the PTX needs.
    pub fn registers_per_thread(&self) -> u32 {
        let b = &self.bounds;
        if let Some(n) = b.maxnreg {
            return n.clamp(16, 255);
        }
        let cap = b.maxntid.or(b.reqntid).map_or(255, |n| {
            let threads = n.iter().product::<u32>().max(1).next_multiple_of(128);
            let all = threads.saturating_mul(b.minnctapersm.unwrap_or(1).max(1));
            (REGISTERS_PER_SM / all) & !7
        });
        let cap = cap.min(b.register_limit.unwrap_or(255));
        let mut needs = (self.registers + 8).next_multiple_of(8);
        if b.maxntid.or(b.reqntid).is_none() {
            // What the PTX names is more than the machine code keeps; an estimate must not forbid a block of 1024 threads.
            needs = needs.min(REGISTERS_PER_SM / 1024);
        }
        // Where setmaxnreg is used ptxas gives what the bounds allow, whatever the code needs, but no more than is ever
        // asked for: 256 threads whose `.inc` names 248 start with 248 each, not 255.
        let count = match self.most_registers {
            None => cap.min(needs),
            Some(0) => cap,
            Some(most) => cap.min(most),
        };
        count.clamp(16, 255)
    }

    /// CTAs that fit on one SM.
    pub fn ctas_per_sm(&self, threads: u32, dynamic_shared: u32) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let registers = self.registers_per_thread().next_multiple_of(8) * 32 * warps;
        let shared = self.shared_bytes + dynamic_shared + SHARED_RESERVED;
        (SHARED_PER_SM / shared)
            .min(THREADS_PER_SM / (warps * 32))
            .min(REGISTERS_PER_SM / registers)
            .min(CTAS_PER_SM)
    }

    /// Whether a launch is possible at all.
    pub fn check(&self, config: &LaunchConfig, params: &[u8]) -> Result<(), LaunchError> {
        use LaunchError::*;
        let name = &self.name;
        let [x, y, z] = config.block;
        let threads = u64::from(x) * u64::from(y) * u64::from(z);
        let [gx, gy, gz] = config.grid;
        if threads == 0 || gx == 0 || gy == 0 || gz == 0 {
            return Err(InvalidValue(format!(
                "{name}: a dimension of grid or block is 0"
            )));
        }
        if x > 1024 || y > 1024 || z > 64 || threads > u64::from(MAX_THREADS) {
            return Err(InvalidValue(format!(
                "{name}: a block of {x}x{y}x{z} threads is too large"
            )));
        }
        if gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
            return Err(InvalidValue(format!(
                "{name}: a grid of {gx}x{gy}x{gz} is too large"
            )));
        }
        if params.len() != self.param_bytes as usize {
            return Err(InvalidValue(format!(
                "{name}: {} bytes of parameters, the kernel takes {}",
                params.len(),
                self.param_bytes
            )));
        }
        if let Some(n) = self.bounds.reqntid
            && n.map(|n| n.max(1)) != config.block
        {
            return Err(InvalidValue(format!(
                "{name}: the kernel requires blocks of {n:?} threads"
            )));
        }
        if let Some(n) = self.bounds.maxntid
            && threads > u64::from(n.iter().map(|n| (*n).max(1)).product::<u32>())
        {
            return Err(OutOfResources(format!(
                "{name}: {threads} threads per block, the kernel is bounded to {}",
                n.iter().map(|n| (*n).max(1)).product::<u32>()
            )));
        }
        let shared = u64::from(self.shared_bytes) + u64::from(config.dynamic_shared);
        if shared > u64::from(MAX_SHARED) {
            return Err(InvalidValue(format!(
                "{name}: {shared} bytes of shared memory, {MAX_SHARED} are possible"
            )));
        }
        if self.ctas_per_sm(threads as u32, config.dynamic_shared) == 0 {
            return Err(OutOfResources(format!(
                "{name}: {threads} threads with {} registers each",
                self.registers_per_thread()
            )));
        }
        let size = config
            .cluster
            .iter()
            .map(|&c| u64::from(c))
            .product::<u64>();
        let divides = config
            .cluster
            .iter()
            .zip(&config.grid)
            .all(|(&c, &g)| c > 0 && g % c == 0);
        if !divides || size > u64::from(MAX_CLUSTER) {
            return Err(InvalidClusterSize(format!(
                "{name}: clusters of {:?} CTAs in a grid of {:?}",
                config.cluster, config.grid
            )));
        }
        if let Some(n) = self.bounds.reqnctapercluster
            && n.map(|n| n.max(1)) != config.cluster
        {
            return Err(InvalidClusterSize(format!(
                "{name}: the kernel requires clusters of {n:?} CTAs"
            )));
        }
        if let Some(n) = self.bounds.max_cluster_rank
            && size > u64::from(n)
        {
            return Err(InvalidClusterSize(format!(
                "{name}: the kernel is bounded to clusters of {n} CTAs"
            )));
        }
        Ok(())
    }
}

/// What all threads of a launch share.
struct Shared {
    next: AtomicU64,
    /// How many clusters to execute; less than all in a sample.
    wanted: u64,
    /// Index of the first cluster that has failed; later ones need not start.
    failed: AtomicU64,
    results: Mutex<Results>,
}

#[derive(Default)]
struct Results {
    fault: Option<(u64, Fault)>,
    findings: Vec<(u64, Vec<Finding>)>,
    output: Vec<(u64, Vec<u8>)>,
    operations: u64,
    counters: Option<Counters>,
    logs: Vec<(u32, GlobalLog)>,
    traces: Vec<(u32, Vec<[u32; 3]>, Trace)>,
}

impl Shared {
    fn results(&self) -> std::sync::MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes counts and trace of a cluster.
    fn observed(&self, c: &mut Cluster) {
        if c.counters.is_none() && c.trace.is_none() {
            return;
        }
        let mut r = self.results();
        if let Some(counters) = c.counters.take() {
            match &mut r.counters {
                Some(all) => all.merge(*counters),
                none => *none = Some(*counters),
            }
        }
        if let Some(mut trace) = c.trace.take() {
            trace.now = trace.now.max(c.steps);
            let ctas = c.ctas.iter().map(|cta| cta.ctaid).collect();
            r.traces.push((c.id, ctas, *trace));
        }
    }

    /// Takes what a cluster leaves behind.
    fn collect(&self, c: &mut Cluster, fault: Option<Fault>) {
        self.observed(c);
        let id = u64::from(c.id);
        let mut r = self.results();
        r.operations += c.steps;
        if !c.output.is_empty() {
            r.output.push((id, std::mem::take(&mut c.output)));
        }
        if let Some(check) = &mut c.check
            && !check.findings.is_empty()
        {
            r.findings.push((id, std::mem::take(&mut check.findings)));
        }
        if let Some(check) = &mut c.check {
            r.logs.push((c.id, std::mem::take(&mut check.log)));
        }
        if let Some(fault) = fault {
            self.failed.fetch_min(id, Ordering::Relaxed);
            if r.fault.as_ref().is_none_or(|f| id < f.0) {
                r.fault = Some((id, fault));
            }
        }
    }
}

impl Device {
    /// Runs a kernel to its end. `params` are the bytes of its parameters as `Program::params` lays them out.
    pub fn launch(
        &self,
        program: &Program,
        config: LaunchConfig,
        params: &[u8],
        seed: u64,
    ) -> Result<LaunchReport, LaunchError> {
        let mut observed = Observation::default();
        let mut report = self.launch_observed(program, config, params, seed, 0, &mut observed)?;
        report.counters = observed.counters;
        Ok(report)
    }

    /// The same; what is counted and traced goes to `observed`, also when the launch fails. A cooperative grid has a
    /// workspace ([`Device::grid_workspace`]), any other has 0.
    pub fn launch_observed(
        &self,
        program: &Program,
        config: LaunchConfig,
        params: &[u8],
        seed: u64,
        grid_workspace: u64,
        observed: &mut Observation,
    ) -> Result<LaunchReport, LaunchError> {
        let mut config = config;
        if config.cluster == [1, 1, 1]
            && let Some(n) = program.bounds.reqnctapercluster
        {
            config.cluster = n.map(|n| n.max(1));
        }
        program.check(&config, params)?;
        let bytes = u64::from(program.param_bytes).max(1);
        let name = format!("parameters of {}", program.name);
        let Some(block) = self.memory.allocate(bytes, 512, u64::MAX, name) else {
            return Err(LaunchError::OutOfResources(
                "no memory for the parameters".into(),
            ));
        };
        // SAFETY: our own allocation of at least as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(params.as_ptr(), block as *mut u8, params.len()) };
        let launch = Launch {
            program,
            device: self,
            config,
            params: block,
            seed,
            policy: self.settings.policy,
            checks: self.settings.checks,
            grid_id: self.launches.fetch_add(1, Ordering::Relaxed) + 1,
            grid_workspace,
        };
        let result = launch.run(observed);
        self.memory.free(block);
        result
    }
}

impl Launch<'_> {
    fn clusters(&self) -> u64 {
        let of = |i: usize| u64::from(self.config.grid[i] / self.config.cluster[i]);
        of(0) * of(1) * of(2)
    }

    fn seed_of(&self, cluster: u64) -> u64 {
        Rng(self.seed ^ cluster.wrapping_mul(0xd6e8_feb8_6659_fd93)).next()
    }

    fn steps(&self) -> u64 {
        match self.device.settings.step_limit {
            0 => u64::MAX,
            n => n,
        }
    }

    fn run(&self, observed: &mut Observation) -> Result<LaunchReport, LaunchError> {
        let total = self.clusters();
        let sample = match self.device.sample.load(Ordering::Relaxed) {
            0 => total,
            _ if self.program.communicates => total,
            n => n.min(total),
        };
        if sample < total {
            // What the others would have written is not known.
            self.device.memory.defined.stop();
        }
        let shared = Shared {
            next: AtomicU64::new(0),
            wanted: sample,
            failed: AtomicU64::new(u64::MAX),
            results: Mutex::default(),
        };
        if self.program.communicates {
            self.run_resident(&shared, total);
        } else {
            let wanted = match self.device.settings.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from),
                n => n,
            };
            let threads = wanted
                .min(usize::try_from(sample).unwrap_or(usize::MAX))
                .max(1);
            std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|| self.run_clusters(&shared, total));
                }
                self.run_clusters(&shared, total);
            });
        }
        let mut results = shared
            .results
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        observed.counters = results.counters.take();
        if self.device.settings.trace {
            results.traces.sort_by_key(|t| t.0);
            let clusters = std::mem::take(&mut results.traces);
            observed.trace = Some(LaunchTrace { clusters });
        }
        results.output.sort_by_key(|o| o.0);
        results.findings.sort_by_key(|f| f.0);
        {
            let mut output = self
                .device
                .output
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            results
                .output
                .iter()
                .for_each(|o| output.extend_from_slice(&o.1));
        }
        let mut findings: Vec<Finding> = Vec::new();
        for finding in results.findings.into_iter().flat_map(|f| f.1) {
            if !findings.iter().any(|f| f.is_like(&finding)) {
                findings.push(finding);
            }
        }
        match results.fault {
            Some((_, fault)) => Err(LaunchError::Fault(fault)),
            None => {
                if !self.program.communicates {
                    findings.extend(races(&self.program.name, &mut results.logs));
                }
                let serious = findings.iter().position(|f| !f.kind.is_note());
                match serious {
                    Some(i) if !self.device.settings.collect => Err(LaunchError::Fault(
                        Fault::Finding(Box::new(findings.swap_remove(i))),
                    )),
                    _ => Ok(LaunchReport {
                        findings,
                        operations: results.operations,
                        counters: None,
                        clusters: total,
                        executed: sample,
                    }),
                }
            }
        }
    }

    /// One thread's share of independent clusters.
    fn run_clusters(&self, shared: &Shared, total: u64) {
        let mut spare = None;
        loop {
            let i = shared.next.fetch_add(1, Ordering::Relaxed);
            if i >= shared.wanted {
                return;
            }
            let i = sampled(i, shared.wanted, total);
            if i > shared.failed.load(Ordering::Relaxed) {
                return;
            }
            let seed = self.seed_of(i);
            let mut cluster = Cluster::prepare(spare.take(), self, i, i, seed);
            let mut group = Group::new(self, !seed, self.steps());
            group.clusters.push(cluster);
            let fault = group.run().err().map(|f| f.1);
            cluster = group.clusters.remove(0);
            shared.collect(&mut cluster, fault);
            spare = Some(cluster);
        }
    }

    /// The order in which clusters that communicate start: that of their numbers, as devices have it, or any, which is all that CUDA
    /// promises.
    fn start_order(&self, total: u64) -> Vec<u64> {
        let mut order: Vec<u64> = (0..total).collect();
        if self.device.settings.start_any {
            let mut rng = Rng(self.seed.rotate_left(17) ^ total);
            for end in (1..order.len()).rev() {
                order.swap(end, rng.below(end as u64 + 1) as usize);
            }
        }
        order
    }

    /// All clusters interleaved, as many at a time as the device holds.
    fn run_resident(&self, shared: &Shared, total: u64) {
        let threads: u32 = self.config.block.iter().product();
        let per_sm = self
            .program
            .ctas_per_sm(threads, self.config.dynamic_shared);
        let per_cluster = self.config.cluster.iter().product::<u32>();
        let settings = &self.device.settings;
        let resident = settings.clusters_at_once(per_sm, per_cluster).max(1);
        let resident = u64::from(resident).min(total);
        let mut group = Group::new(self, !self.seed, self.steps());
        if self.checks && total > 1 {
            group.between = Some(Box::<Between>::default());
        }
        let order = self.start_order(total);
        for (slot, i) in (0..resident).zip(order.iter().copied()) {
            group
                .clusters
                .push(Cluster::prepare(None, self, i, slot, self.seed_of(i)));
        }
        let mut next = resident;
        while !group.clusters.is_empty() {
            match group.run() {
                Ok(done) => {
                    let mut cluster = group.clusters.swap_remove(done);
                    shared.collect(&mut cluster, None);
                    if next < total {
                        let slot = u64::from(cluster.sm);
                        let i = order[next as usize];
                        let seed = self.seed_of(i);
                        let cluster = Cluster::prepare(Some(cluster), self, i, slot, seed);
                        group.clusters.push(cluster);
                        next += 1;
                    }
                }
                Err((i, fault)) => {
                    shared.collect(&mut group.clusters[i], Some(fault));
                    for (other, cluster) in group.clusters.iter_mut().enumerate() {
                        if other != i {
                            shared.observed(cluster);
                        }
                    }
                    return;
                }
            }
        }
    }
}

/// The cluster that is number `i` of a sample of `wanted` from `total`: one from each of `wanted` equal strata, at a place that the
/// golden ratio spreads evenly, so that a sample shares no period with the grid.
fn sampled(i: u64, wanted: u64, total: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let place = |i: u64| (u128::from(i) * u128::from(total) / u128::from(wanted)) as u64;
    let (low, high) = (place(i), place(i + 1));
    let fraction = i.wrapping_mul(GOLDEN);
    low + ((u128::from(high - low) * u128::from(fraction)) >> 64) as u64
}

/// Lanes of warp `index` that exist in a block of `threads`.
pub fn lanes_of(index: u32, threads: u32) -> u32 {
    match threads.saturating_sub(index * 32) {
        n if n >= 32 => FULL,
        n => (1 << n) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::sampled;

    #[test]
    fn a_sample_is_ascending_without_repetition_and_whole_where_everything_is_wanted() {
        for (wanted, total) in [(1, 1), (7, 7), (4, 132), (64, 6144), (61, 62), (5, 1 << 40)] {
            let chosen: Vec<u64> = (0..wanted).map(|i| sampled(i, wanted, total)).collect();
            assert!(chosen.is_sorted_by(|a, b| a < b), "{wanted} of {total}");
            assert!(chosen.iter().all(|&c| c < total));
        }
        let columns: std::collections::HashSet<u64> =
            (0..64).map(|i| sampled(i, 64, 6144) % 32).collect();
        assert!(
            columns.len() > 24,
            "columns of a grid of 32 x 192: {columns:?}"
        );
    }
}

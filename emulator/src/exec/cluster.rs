//! Making a cluster ready to run: its CTAs and warps with their first registers.

use super::launch::lanes_of;
use super::{
    AlignedBytes, Cluster, Cta, Fragment, LANES, NamedBarrier, Rng, Row, SHARED_BASE, Wait, Warp,
};
use crate::check::Checker;
use crate::check::between::Numbering;
use crate::counters::Counters;
use crate::device::Launch;
use crate::program::{Init, PRED_TRUE, Special};
use crate::tensor::WarpgroupState;

/// What memory and registers hold before anything is written. As floats these are NaNs, so a missing initialisation
/// shows in the result even without the checkers.
const POISON: u8 = 0xff;

impl Cluster {
    /// A cluster at the start of its work; `spare` is one of the same launch that is done and gives its memory.
    pub fn prepare(
        spare: Option<Box<Cluster>>,
        launch: &Launch,
        id: u64,
        slot: u64,
        seed: u64,
    ) -> Box<Cluster> {
        let config = &launch.config;
        let counts = [0, 1, 2].map(|i| u64::from(config.grid[i] / config.cluster[i]));
        let clusterid = [
            id % counts[0],
            id / counts[0] % counts[1],
            id / counts[0] / counts[1],
        ]
        .map(|v| v as u32);
        let size: u32 = config.cluster.iter().product();
        let mut old = spare.map(|c| c.ctas).unwrap_or_default().into_iter();
        let sms = launch.device.settings.sm_count;
        let sm = (slot % u64::from(sms)) as u32;
        let ctas: Vec<Cta> = (0..size)
            .map(|rank| {
                let [x, y, _] = config.cluster;
                let inside = [rank % x, rank / x % y, rank / x / y];
                let ctaid = [0, 1, 2].map(|i| clusterid[i] * config.cluster[i] + inside[i]);
                let place = Place {
                    ctaid,
                    inside,
                    clusterid,
                    rank,
                    sm: (sm + rank) % sms,
                };
                cta(old.next(), launch, &place)
            })
            .collect();
        let warps = config.block.iter().product::<u32>().div_ceil(32);
        let check = launch.checks.then(|| {
            let collect = launch.device.settings.collect;
            let mut check = Checker::new(launch.program, size, warps, collect);
            if launch.program.communicates {
                check.numbering = Numbering::new(id as u32, counts.iter().product());
            }
            check.defined = Some(launch.device.memory.defined.clone());
            check.strict.enabled = launch.device.settings.strict;
            check.memory = ctas.iter().map(|c| c.shared.as_slice().as_ptr()).collect();
            Box::new(check)
        });
        let counters = launch
            .device
            .settings
            .count
            .then(|| Box::new(Counters::new(launch.program)));
        let trace = launch.device.settings.trace.then(Box::default);
        Box::new(Cluster {
            id: id as u32,
            clusterid,
            ctas,
            asynchronous: Default::default(),
            check,
            counters,
            trace,
            rng: Rng(seed),
            fault: None,
            cluster_arrived: 0,
            cluster_generation: 0,
            progress: 0,
            stores: 0,
            steps: 0,
            turns: 0,
            output: Vec::new(),
            bounds: [(1, 0); 4],
            bounds_next: 0,
            sm,
        })
    }
}

struct Place {
    ctaid: [u32; 3],
    inside: [u32; 3],
    clusterid: [u32; 3],
    rank: u32,
    sm: u32,
}

fn cta(old: Option<Cta>, launch: &Launch, place: &Place) -> Cta {
    let program = launch.program;
    let threads: u32 = launch.config.block.iter().product();
    let warps = threads.div_ceil(32);
    let bytes = (program.shared_bytes + launch.config.dynamic_shared) as usize;
    let (mut shared, old_warps) = match old {
        Some(old) => (old.shared, old.warps),
        None => (AlignedBytes::new(bytes), Vec::new()),
    };
    shared.fill(POISON);
    let mut old_warps = old_warps.into_iter();
    Cta {
        rank: place.rank,
        ctaid: place.ctaid,
        shared,
        named: [const { NamedBarrier::EMPTY }; 16],
        warps: (0..warps)
            .map(|w| warp(old_warps.next(), launch, place, w, warps))
            .collect(),
        warpgroups: (0..warps.div_ceil(4))
            .map(|_| WarpgroupState::default())
            .collect(),
        register_pool: 0,
        exited: false,
        dynamic_shared: launch.config.dynamic_shared,
    }
}

fn warp(old: Option<Warp>, launch: &Launch, place: &Place, index: u32, warps: u32) -> Warp {
    let program = launch.program;
    let threads: u32 = launch.config.block.iter().product();
    let live = lanes_of(index, threads);
    let (mut regs, mut preds, mut local) = match old {
        Some(old) => (old.regs, old.preds, old.local),
        None => (Vec::new(), Vec::new(), Vec::new()),
    };
    let poison = u32::from_ne_bytes([POISON; 4]);
    regs.clear();
    regs.resize(program.rows as usize, Row([poison; LANES]));
    preds.clear();
    preds.resize(usize::from(program.preds), 0);
    preds[usize::from(PRED_TRUE)] = u32::MAX;
    local.clear();
    local.resize(program.local_bytes as usize * LANES, POISON);
    for &(row, init) in &program.init {
        fill(&mut regs, row as usize, init, launch, place, index);
    }
    Warp {
        index,
        agent: place.rank * warps + index,
        regs,
        preds,
        fragments: vec![Fragment {
            pc: program.entry,
            mask: live,
            wait: Wait::None,
            polled: false,
            calls: Vec::new(),
        }],
        current: 0,
        live,
        local,
        stack: [program.local_bytes; LANES],
        register_cap: program.registers_per_thread(),
        ops_executed: 0,
        cluster_arrival: 0,
        blocked_at: None,
        last_turn: 0,
        preempted: false,
        polls: 0,
    }
}

fn fill(regs: &mut [Row], row: usize, init: Init, launch: &Launch, place: &Place, warp: u32) {
    let wide = |v: u64, regs: &mut [Row]| {
        for lane in 0..LANES {
            // A 64-bit value of lane l lies in words 2l and 2l+1 of the two rows.
            for (half, word) in [(2 * lane, v as u32), (2 * lane + 1, (v >> 32) as u32)] {
                regs[row + half / LANES].0[half % LANES] = word;
            }
        }
    };
    match init {
        Init::Const32(v) => regs[row].0 = [v; LANES],
        Init::Const64(v) => wide(v, regs),
        Init::ParamAddress(n) => wide(launch.params + u64::from(n), regs),
        Init::Special(Special::GridId) => wide(launch.grid_id, regs),
        Init::Special(s) => {
            for lane in 0..LANES as u32 {
                regs[row].0[lane as usize] = special(s, launch, place, warp, lane);
            }
        }
    }
}

fn special(s: Special, launch: &Launch, place: &Place, warp: u32, lane: u32) -> u32 {
    use Special::*;
    let c = &launch.config;
    let [x, y, _] = c.block;
    let t = warp * 32 + lane;
    let bit = 1u32 << lane;
    let clusters = [0, 1, 2].map(|i| c.grid[i] / c.cluster[i]);
    let shared = launch.program.shared_bytes + c.dynamic_shared;
    match s {
        TidX => t % x,
        TidY => t / x % y,
        TidZ => t / x / y,
        NtidX => c.block[0],
        NtidY => c.block[1],
        NtidZ => c.block[2],
        CtaidX => place.ctaid[0],
        CtaidY => place.ctaid[1],
        CtaidZ => place.ctaid[2],
        NctaidX => c.grid[0],
        NctaidY => c.grid[1],
        NctaidZ => c.grid[2],
        LaneId => lane,
        WarpId => warp,
        NwarpId => 64,
        SmId => place.sm,
        NsmId => launch.device.settings.sm_count,
        GridId => launch.grid_id as u32,
        GridWorkspaceHigh => (launch.grid_workspace >> 32) as u32,
        GridWorkspaceLow => launch.grid_workspace as u32,
        ClusterIdX => place.clusterid[0],
        ClusterIdY => place.clusterid[1],
        ClusterIdZ => place.clusterid[2],
        NclusterIdX => clusters[0],
        NclusterIdY => clusters[1],
        NclusterIdZ => clusters[2],
        ClusterCtaidX => place.inside[0],
        ClusterCtaidY => place.inside[1],
        ClusterCtaidZ => place.inside[2],
        ClusterNctaidX => c.cluster[0],
        ClusterNctaidY => c.cluster[1],
        ClusterNctaidZ => c.cluster[2],
        ClusterCtaRank => place.rank,
        ClusterNctaRank => c.cluster.iter().product(),
        IsExplicitCluster => u32::from(launch.explicit_cluster()),
        LanemaskEq => bit,
        LanemaskLe => bit | (bit - 1),
        LanemaskLt => bit - 1,
        LanemaskGe => !(bit - 1),
        LanemaskGt => !(bit | (bit - 1)),
        DynamicSmemSize => c.dynamic_shared,
        TotalSmemSize => shared.next_multiple_of(128),
        AggrSmemSize => (shared + SHARED_BASE).next_multiple_of(128),
    }
}

//! The scheduler: which warp runs next, and what is done when none can.
//!
//! A [`Group`] is a set of clusters whose CTAs are interleaved on one host thread: one cluster, or all resident
//! clusters of a kernel that communicates through global memory. Every choice is drawn from the seed.
//!
//! * **Deadlock**: all warps of a cluster are blocked and no asynchronous operation is in flight. Certain.
//! * **Livelock**: every warp is blocked or polls memory (volatile, atomic or acquire accesses) in a loop, and nothing
//!   has changed for many polls: no store, no barrier, no completion. A loop that only computes is never reported.

use super::run::{LONG, Turn, turn};
use super::{Cluster, Cx, Rng, Wait};
use crate::check::between::Between;
use crate::check::{Finding, FindingKind, SiteRef};
use crate::device::{Fault, Launch};

/// Polls without effect of every warp that is not blocked before a livelock is reported.
const LIVELOCK_POLLS: u32 = 50_000;

/// What a cluster did in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Ran,
    Done,
    Deadlock,
    Fault,
}

/// Clusters that run interleaved.
pub struct Group<'a> {
    pub launch: &'a Launch<'a>,
    pub clusters: Vec<Box<Cluster>>,
    /// What the checkers of the clusters share; with the one that runs, while it runs.
    pub between: Option<Box<Between>>,
    rng: Rng,
    /// `progress + stores` of all clusters when polls were last reset.
    moved: u64,
    /// Operations that the group may still execute (a watchdog).
    pub steps_left: u64,
}

impl<'a> Group<'a> {
    pub fn new(launch: &'a Launch<'a>, seed: u64, steps: u64) -> Self {
        Group {
            launch,
            clusters: Vec::new(),
            between: None,
            rng: Rng(seed),
            moved: 0,
            steps_left: steps,
        }
    }

    /// Runs until a cluster is done (its index) or one has failed.
    pub fn run(&mut self) -> Result<usize, (usize, Fault)> {
        let mut turns = 0u32;
        loop {
            let i = match self.clusters.len() {
                1 => 0,
                n => self.rng.below(n as u64) as usize,
            };
            let before = self.clusters[i].steps;
            match self.turns(i) {
                Step::Ran => {}
                Step::Done => return Ok(i),
                Step::Fault => {
                    let fault = self.clusters[i].fault.take();
                    return Err((i, fault.unwrap_or(Fault::Trap("no reason given".into()))));
                }
                Step::Deadlock => return Err((i, deadlock(&self.clusters[i], self.launch))),
            }
            let spent = self.clusters[i].steps.wrapping_sub(before);
            self.steps_left = self.steps_left.saturating_sub(spent);
            if self.steps_left == 0 {
                let at = summary(&self.clusters[i], self.launch);
                return Err((
                    i,
                    Fault::Timeout(format!("the limit of operations is reached\n{at}")),
                ));
            }
            turns += 1;
            if turns.is_multiple_of(64) && self.livelock() {
                let fault = livelock_finding(&self.clusters, self.launch);
                return Err((i, fault));
            }
        }
    }

    /// Several turns of a cluster, so that caches stay warm.
    fn turns(&mut self, i: usize) -> Step {
        let cluster = &mut self.clusters[i];
        if let Some(check) = &mut cluster.check {
            check.between = self.between.take();
        }
        let mut end = Step::Ran;
        for _ in 0..8 {
            // SAFETY: the group owns its clusters and runs one at a time.
            end = unsafe { step(cluster, self.launch) };
            if end != Step::Ran {
                break;
            }
        }
        if let Some(check) = &mut cluster.check {
            self.between = check.between.take();
        }
        end
    }

    fn livelock(&mut self) -> bool {
        let moved = self.clusters.iter().fold(0u64, |s, c| {
            s.wrapping_add(c.progress).wrapping_add(c.stores)
        });
        let warps = |c: &mut Box<Cluster>, f: &mut dyn FnMut(&mut super::Warp)| {
            c.ctas.iter_mut().flat_map(|c| &mut c.warps).for_each(f);
        };
        if moved != self.moved {
            self.moved = moved;
            for c in &mut self.clusters {
                warps(c, &mut |w| w.polls = 0);
            }
            return false;
        }
        let mut all = true;
        for c in &mut self.clusters {
            if !crate::asynchronous::idle(c) {
                return false;
            }
            warps(c, &mut |w| {
                all &= w.live == 0 || w.blocked_at.is_some() || w.polls >= LIVELOCK_POLLS;
            });
        }
        all
    }
}

/// Runs one warp of the cluster for one quantum.
///
/// # Safety
/// Nobody else uses the cluster meanwhile.
unsafe fn step(cluster: &mut Cluster, launch: &Launch) -> Step {
    let draw = cluster.rng.next();
    let Some((cta, warp)) = ready(cluster, draw) else {
        if !alive(cluster) {
            crate::asynchronous::finish(cluster, launch);
            return if cluster.fault.is_some() {
                Step::Fault
            } else {
                Step::Done
            };
        }
        if crate::asynchronous::retire_one(cluster, launch) {
            return if cluster.fault.is_some() {
                Step::Fault
            } else {
                Step::Ran
            };
        }
        // SAFETY: as for this function.
        return unsafe { poll_all(cluster, launch) };
    };
    cluster.turns += 1;
    cluster.ctas[cta].warps[warp].last_turn = cluster.turns;
    // SAFETY: as for this function.
    let end = unsafe { run_warp(cluster, launch, cta, warp, quantum(draw)) };
    if end == Turn::Fault {
        return Step::Fault;
    }
    if !crate::asynchronous::idle(cluster) {
        crate::asynchronous::tick(cluster, launch);
        if cluster.fault.is_some() {
            return Step::Fault;
        }
    }
    Step::Ran
}

/// Mostly long turns; sometimes very short ones, which find more.
fn quantum(draw: u64) -> u32 {
    let bits = (draw >> 32) as u32;
    if bits & 7 == 0 {
        1 + (bits >> 8) % 61
    } else {
        LONG + (bits >> 8) % 4096
    }
}

fn alive(cluster: &Cluster) -> bool {
    cluster
        .ctas
        .iter()
        .flat_map(|c| &c.warps)
        .any(|w| w.live != 0)
}

/// Turns per warp of the cluster that a warp may be passed over.
///
/// A device issues from every warp that can run. Kernels rely on that: a warp that only follows a pipeline, and is left
/// standing while a barrier completes two phases, misses one and waits for ever.
const PATIENCE: u64 = 2;

/// A warp that may be able to run: the first from a place drawn by lot, unless another has been passed over too often.
fn ready(cluster: &Cluster, draw: u64) -> Option<(usize, usize)> {
    let per_cta = cluster.ctas[0].warps.len();
    let n = cluster.ctas.len() * per_cta;
    let start = (draw & 0xffff_ffff) as usize % n;
    let find = |late: u64| {
        (start..n)
            .chain(0..start)
            .map(|i| (i / per_cta, i % per_cta))
            .find(|&(c, w)| {
                let w = &cluster.ctas[c].warps[w];
                w.live != 0 && w.blocked_at != Some(cluster.progress) && w.last_turn < late
            })
    };
    // Looking for late ones takes a look at all: not in every turn.
    if cluster.turns.is_multiple_of(1 + n as u64 / 4)
        && let Some(late) = find(cluster.turns.saturating_sub(PATIENCE * n as u64))
    {
        return Some(late);
    }
    find(u64::MAX)
}

unsafe fn run_warp(
    cluster: &mut Cluster,
    launch: &Launch,
    cta: usize,
    warp: usize,
    quantum: u32,
) -> Turn {
    let observed = cluster.check.is_some() || cluster.counters.is_some() || cluster.trace.is_some();
    let cluster: *mut Cluster = cluster;
    // SAFETY: indices come from the cluster itself; the pointers are derived from one exclusive reference.
    unsafe {
        let cta: *mut super::Cta = (*cluster).ctas.as_mut_ptr().add(cta);
        let warp: *mut super::Warp = (*cta).warps.as_mut_ptr().add(warp);
        let mut cx = Cx {
            regs: (*warp).regs.as_mut_ptr(),
            preds: (*warp).preds.as_mut_ptr(),
            mask: 0,
            active: 0,
            pc: 0,
            budget: 0,
            observed,
            warp,
            cta,
            cluster,
            launch,
        };
        turn(&mut cx, quantum)
    }
}

/// All warps look blocked: tries each of them once, whatever the count of events says.
unsafe fn poll_all(cluster: &mut Cluster, launch: &Launch) -> Step {
    let mut ran = false;
    for c in 0..cluster.ctas.len() {
        for w in 0..cluster.ctas[c].warps.len() {
            if cluster.ctas[c].warps[w].live == 0 {
                continue;
            }
            // SAFETY: as for `step`.
            match unsafe { run_warp(cluster, launch, c, w, LONG) } {
                Turn::Fault => return Step::Fault,
                Turn::Blocked => {}
                Turn::Spent | Turn::Exited => ran = true,
            }
        }
    }
    let ready =
        ready(cluster, 0).is_some() || !alive(cluster) || !crate::asynchronous::idle(cluster);
    if ran || ready {
        Step::Ran
    } else {
        Step::Deadlock
    }
}

/// What each fragment of each warp is at: the wait-for table.
fn table(cluster: &Cluster, launch: &Launch, sites: &mut Vec<SiteRef>) -> String {
    let mut out = String::new();
    for cta in &cluster.ctas {
        for warp in &cta.warps {
            for f in &warp.fragments {
                let who = format!(
                    "warp {} of CTA {},{},{}",
                    warp.index, cta.ctaid[0], cta.ctaid[1], cta.ctaid[2]
                );
                let lanes = if f.mask == warp.live {
                    String::new()
                } else {
                    format!(" (lanes {:#010x})", f.mask)
                };
                let wait = waiting(cluster, cta, warp, f);
                let place = launch.program.site(f.pc);
                let op = launch
                    .program
                    .sites
                    .get(f.pc as usize)
                    .map_or("", |s| &s.opcode);
                out.push_str(&format!(
                    "  {who}{lanes}, pc {}, {place}, {op}: {wait}\n",
                    f.pc
                ));
                if sites.len() < 64 {
                    sites.push(SiteRef {
                        pc: f.pc,
                        who,
                        role: wait,
                    });
                }
            }
            if warp.fragments.is_empty() {
                out.push_str(&format!(
                    "  warp {} of CTA {},{},{}: has exited\n",
                    warp.index, cta.ctaid[0], cta.ctaid[1], cta.ctaid[2]
                ));
            }
        }
    }
    out
}

/// What a fragment waits for, in words.
pub(super) fn waiting(
    cluster: &Cluster,
    cta: &super::Cta,
    warp: &super::Warp,
    f: &super::Fragment,
) -> String {
    if let Some(text) = crate::asynchronous::describe_wait(cluster, cta, &f.wait) {
        return text;
    }
    match &f.wait {
        Wait::None => "could run".into(),
        Wait::Converge { mask } => format!(
            "waits for lanes {:#010x} of its warp to come to the same operation",
            mask & warp.live & !f.mask
        ),
        Wait::Named { id, .. } => {
            let b = &cta.named[*id as usize & 15];
            let expected = super::barrier::expected(cta, b);
            format!(
                "waits at named barrier {id}: {} of {expected} threads have arrived",
                b.arrived
            )
        }
        Wait::Cluster { generation } => format!(
            "waits for the cluster barrier, phase {generation}: {} of {} threads have arrived",
            cluster.cluster_arrived,
            super::barrier::cluster_expected(cluster)
        ),
        Wait::Registers { want } => format!(
            "setmaxnreg.inc waits for {want} registers; {} are free in the CTA's pool",
            cta.register_pool
        ),
        Wait::Mbarrier { address, phase, .. } => {
            format!("waits for phase {phase} of the mbarrier at shared address {address:#x}")
        }
        Wait::Wgmma { pending } => format!("wgmma.wait_group {pending}"),
        Wait::CopyGroup { pending, .. } => format!("waits for all but {pending} groups of copies"),
        Wait::Other(what) => (*what).into(),
    }
}

fn summary(cluster: &Cluster, launch: &Launch) -> String {
    table(cluster, launch, &mut Vec::new())
}

fn finding(kind: FindingKind, message: String, launch: &Launch, sites: Vec<SiteRef>) -> Fault {
    Fault::Finding(Box::new(Finding {
        kind,
        kernel: launch.program.name.clone(),
        message,
        sites,
    }))
}

fn deadlock(cluster: &Cluster, launch: &Launch) -> Fault {
    let mut sites = Vec::new();
    let table = table(cluster, launch, &mut sites);
    let diverged = cluster
        .ctas
        .iter()
        .flat_map(|c| &c.warps)
        .flat_map(|w| &w.fragments)
        .any(|f| matches!(f.wait, Wait::Converge { .. }));
    if diverged {
        finding(
            FindingKind::DivergentAligned,
            format!(
                "lanes of a warp wait for others that never come to the same operation\n{table}"
            ),
            launch,
            sites,
        )
    } else {
        finding(
            FindingKind::Deadlock,
            format!("all warps wait and nothing is in flight\n{table}"),
            launch,
            sites,
        )
    }
}

fn livelock_finding(clusters: &[Box<Cluster>], launch: &Launch) -> Fault {
    let mut sites = Vec::new();
    let tables: Vec<String> = clusters
        .iter()
        .take(8)
        .map(|c| table(c, launch, &mut sites))
        .collect();
    let mut message = format!(
        "every running warp polls memory that nobody changes, or waits\n{}",
        tables.concat()
    );
    let ctas: usize = clusters.iter().map(|c| c.ctas.len()).sum();
    let grid = launch
        .config
        .grid
        .iter()
        .map(|&g| u64::from(g))
        .product::<u64>();
    if (ctas as u64) < grid {
        message.push_str(&format!(
            "  {ctas} of {grid} CTAs are resident: one may wait for a CTA that cannot start\n"
        ));
    }
    finding(FindingKind::Livelock, message, launch, sites)
}

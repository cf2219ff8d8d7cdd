//! What devices forgive although CUDA's programming guide asks for it: reported when `Settings::strict` is set.
//!
//! * **A CTA exits while its bulk copies still read its shared memory.** The guide waits for the reading
//!   (`cp.async.bulk.wait_group.read`) before the threads that issued the copies exit, and the ISA says nothing of shared memory beyond
//!   the CTA's end. Known kernels leave the last wait out (DeepGEMM's products) and are right on every device so far.
//! * **An mbarrier is signalled through the async proxy without a fence after its initialisation.** The guide puts
//!   `fence.proxy.async` after `mbarrier.init`, CUTLASS `fence.mbarrier_init`; a barrier of the CTA between the initialisation and the
//!   copy orders the two but does not cross proxies. Triton's and ThunderKittens' kernels have the barrier alone.
//!
//! * **A lane arrives at an mbarrier for its whole warp without `__syncwarp` before it**: [`super::arrivals`]. **Lanes load and store what
//!   ldmatrix and stmatrix have of theirs without one**: [`super::lanes`].
//!
//! None depends on the schedule. A fence by any thread of the CTA that the initialisation is ordered before is taken for enough.

use super::{Agent, At, Checker, FindingKind, SiteRef};

/// A copy out of shared memory that its issuer has not waited for.
#[derive(Debug, Clone, Copy)]
struct Unread {
    cta: u32,
    warp: u32,
    lanes: u32,
    group: u32,
    issue: At,
}

/// An mbarrier without a fence since its initialisation.
#[derive(Debug, Clone, Copy)]
struct Fresh {
    cta: u32,
    address: u32,
    init: At,
    clock: u32,
}

#[derive(Debug, Default)]
pub struct Strict {
    pub enabled: bool,
    unread: Vec<Unread>,
    fresh: Vec<Fresh>,
}

impl Checker {
    /// Lanes of a warp issue a copy out of shared memory, in a bulk group.
    pub fn bulk_store_issued(&mut self, cta: u32, issue: At, lanes: u32, group: u32) {
        if self.strict.enabled {
            self.strict.unread.push(Unread {
                cta,
                warp: issue.agent.0,
                lanes,
                group,
                issue,
            });
        }
    }

    /// Lanes of a warp have waited for the bulk groups below `done` of each.
    pub fn bulk_stores_waited(&mut self, warp: u32, mask: u32, done: impl Fn(usize) -> u32) {
        for u in self.strict.unread.iter_mut().filter(|u| u.warp == warp) {
            let waited = |l: usize| mask >> l & 1 == 1 && u.group < done(l);
            u.lanes = (0..32)
                .filter(|&l| u.lanes >> l & 1 == 1 && !waited(l))
                .fold(0, |m, l| m | 1 << l);
        }
        self.strict.unread.retain(|u| u.lanes != 0);
    }

    /// The last warp of a CTA exits.
    pub fn cta_exits(&mut self, cta: u32, at: At) {
        self.visits_end(cta, at);
        let unread = self.strict.unread.iter().filter(|u| u.cta == cta);
        let Some(u) = unread.min_by_key(|u| u.issue.pc).copied() else {
            return;
        };
        let exit = SiteRef {
            pc: at.pc,
            who: self.name(at.agent),
            role: "exit".into(),
        };
        let message = format!(
            "CTA {cta} exits and {} has not waited until this copy has read its shared memory (cp.async.bulk.wait_group.read)",
            self.name(Agent(u.warp))
        );
        self.report(FindingKind::ClusterLifetime, u.issue, message, vec![exit]);
        self.strict.unread.retain(|u| u.cta != cta);
    }

    /// mbarrier.init.
    pub fn barrier_initialised(&mut self, cta: u32, address: u32, init: At) {
        if self.strict.enabled {
            let knowledge = &self.agents.all[init.agent.0 as usize].knowledge;
            let clock = knowledge.seen.get(init.agent.0);
            self.strict
                .fresh
                .retain(|f| (f.cta, f.address) != (cta, address));
            self.strict.fresh.push(Fresh {
                cta,
                address,
                init,
                clock,
            });
        }
    }

    /// A fence after which the async proxy finds what was initialised before it.
    pub(super) fn barriers_fenced(&mut self, at: At) {
        if !self.strict.fresh.is_empty() {
            let seen = &self.agents.all[at.agent.0 as usize].knowledge.seen;
            let fenced = |f: &Fresh| seen.get(f.init.agent.0) >= f.clock;
            self.strict.fresh.retain(|f| !fenced(f));
        }
    }

    /// A copy signals an mbarrier through the async proxy.
    pub fn barrier_signalled(&mut self, cta: u32, address: u32, at: At) {
        let mut fresh = self.strict.fresh.iter();
        let Some(i) = fresh.position(|f| (f.cta, f.address) == (cta, address)) else {
            return;
        };
        let f = self.strict.fresh.swap_remove(i);
        let init = SiteRef {
            pc: f.init.pc,
            who: self.name(f.init.agent),
            role: "initialisation".into(),
        };
        let message = format!(
            "{} signals the mbarrier at shared address {address:#x} of CTA {cta} through the async proxy; neither fence.mbarrier_init nor \
             fence.proxy.async lies between its initialisation and this",
            self.name(at.agent)
        );
        self.report(FindingKind::MissingProxyFence, at, message, vec![init]);
    }
}

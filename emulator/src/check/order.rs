//! Who learns what from whom: releases, acquires, fences, and asynchronous operations from issue to completion.
//!
//! Knowledge travels between the agents of a cluster through objects (barriers, mbarriers, groups of copies, addresses), and between clusters
//! that communicate through addresses of global memory alone ([`between`](super::between)).

use super::between::Far;
use super::clock::{self, Agents, Knowledge};
use super::{Agent, At, Checker, Fence, Sync};

/// Clocks of a synchronisation object.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// Released in the phase that is under way.
    pending: Knowledge,
    /// Released up to the last completed phase.
    published: Knowledge,
    has_phases: bool,
}

/// Where a strong access is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub address: u64,
    /// Global memory, and a scope that takes in other clusters.
    pub device: bool,
}

impl Place {
    fn object(self) -> Sync {
        Sync::Address {
            address: self.address,
        }
    }
}

impl Checker {
    /// `at` makes everything it did (and has observed) visible to whoever acquires `object` later.
    pub fn release(&mut self, at: At, object: Sync) {
        self.release_of(at, object, u32::MAX);
    }

    /// The same by some lanes of a warp: in strict mode it is what these lanes did.
    pub fn release_of(&mut self, at: At, object: Sync, lanes: u32) {
        self.release_so_far(at, object, lanes);
        self.released(at);
    }

    fn release_so_far(&mut self, at: At, object: Sync, lanes: u32) {
        self.arrivals_release(at, lanes);
        let k = &self.agents.all[at.agent.0 as usize].knowledge;
        self.objects.entry(object).or_default().pending.join(k);
    }

    /// What `at` does from here on is not released.
    pub fn released(&mut self, at: At) {
        self.agents.tick(at.agent.0);
    }

    /// The object's phase has completed (the last arrival came): what was released to it so far is what those who wait
    /// for that phase acquire. Called for named barriers, the cluster barrier and mbarriers at every phase change.
    pub fn advance(&mut self, object: Sync) {
        let o = self.objects.entry(object).or_default();
        o.has_phases = true;
        o.published.join(&o.pending);
    }

    /// `at` sees everything released to `object` up to its last completed phase (objects without phases: all).
    pub fn acquire(&mut self, at: At, object: Sync) {
        self.lanes.ordered(at.agent);
        self.arrivals_acquire(at, object);
        if let Some(o) = self.objects.get(&object) {
            let k = if o.has_phases {
                &o.published
            } else {
                &o.pending
            };
            self.agents.all[at.agent.0 as usize].knowledge.join(k);
        }
    }

    /// A relaxed arrive at a barrier: releases what the agent had done before its last fence.
    pub fn release_fenced(&mut self, at: At, object: Sync) {
        let a = &self.agents.all[at.agent.0 as usize];
        if let Some(k) = &a.fenced {
            self.objects.entry(object).or_default().pending.join(k);
        }
        if self.agents.follows_what_happened() {
            let pending = &mut self.objects.entry(object).or_default().pending;
            pending.happened.join(&a.knowledge.happened);
            self.agents.tick(at.agent.0);
        }
    }

    /// What was published at an address, if the kernel communicates and the access there is of device scope.
    fn published(&mut self, place: Place) -> Option<(&mut Far, &mut Agents)> {
        match &mut self.between {
            Some(between) if place.device => {
                let far = between.released.entry(place.address).or_default();
                Some((far, &mut self.agents))
            }
            _ => None,
        }
    }

    /// A releasing write or atomic: releases also itself, up to [`Checker::released`].
    pub fn release_at(&mut self, at: At, place: Place) {
        let cluster = self.numbering.cluster;
        if let Some((far, agents)) = self.published(place) {
            far.join(&agents.knows(at.agent.0).published(cluster));
        }
        self.release_so_far(at, place.object(), u32::MAX);
    }

    /// An acquiring read or atomic.
    pub fn acquire_at(&mut self, at: At, place: Place) {
        let cluster = self.numbering.cluster;
        if let Some((far, agents)) = self.published(place) {
            agents.knows(at.agent.0).take_over(far, cluster);
        }
        self.acquire(at, place.object());
    }

    /// A relaxed or volatile write, or an atomic: releases what the agent had done before its last fence.
    pub fn release_relaxed(&mut self, at: At, place: Place) {
        if let Some((far, agents)) = self.published(place)
            && let Some(fenced) = &agents.all[at.agent.0 as usize].fenced_far
        {
            far.join(fenced);
        }
        self.release_fenced(at, place.object());
    }

    /// A relaxed or volatile read, or an atomic: what was released there is acquired at the agent's next fence.
    pub fn acquire_relaxed(&mut self, at: At, place: Place) {
        if let Some((far, agents)) = self.published(place) {
            let agent = &mut agents.all[at.agent.0 as usize];
            agent.observed_far.get_or_insert_default().join(far);
        }
        let address = place.address;
        if let Some(o) = self.objects.get(&Sync::Address { address }) {
            let a = &mut self.agents.all[at.agent.0 as usize];
            a.knowledge.happened.join(&o.pending.happened);
            a.observed.get_or_insert_default().join(&o.pending);
        }
    }

    /// A relaxed wait: what was released to `object` has happened, but need not be seen.
    pub fn acquire_order(&mut self, at: At, object: Sync) {
        if let Some(o) = self.objects.get(&object) {
            let k = &mut self.agents.all[at.agent.0 as usize].knowledge;
            k.happened.join(&o.published.happened);
        }
    }

    /// An object is gone (mbarrier.inval): nobody acquires its old phases any more.
    pub fn forget(&mut self, object: Sync) {
        self.objects.remove(&object);
    }

    /// An asynchronous operation is issued; it starts with what its issuer has observed.
    pub fn fork(&mut self, at: At, what: &'static str) -> Agent {
        self.arrivals_cover(at, 0);
        Agent(self.agents.fork(at.agent.0, at.pc, what))
    }

    /// The operation has signalled its completion to `object`; it accesses nothing any more.
    pub fn complete(&mut self, operation: At, object: Sync) {
        self.release(operation, object);
        self.agents.finish(operation.agent.0);
    }

    /// `at` has waited for the operation itself (cp.async.wait_group, bulk wait_group), which nobody else waits for.
    pub fn join(&mut self, at: At, operation: Agent) {
        self.follow(at, operation);
        self.finish(operation);
    }

    /// The operation accesses nothing any more and nobody will wait for it.
    pub fn finish(&mut self, operation: Agent) {
        self.agents.finish(operation.0);
    }

    /// `at` has waited for the operation, and so may others (wgmma.wait_group).
    pub fn follow(&mut self, at: At, operation: Agent) {
        if at.agent != operation {
            let (a, b) = clock::two(
                &mut self.agents.all,
                at.agent.0 as usize,
                operation.0 as usize,
            );
            a.knowledge.join(&b.knowledge);
        }
    }

    /// A fence by some lanes of a warp.
    pub fn fence(&mut self, at: At, fence: Fence, lanes: u32) {
        if matches!(
            fence,
            Fence::MbarrierInit | Fence::ProxyAsync { shared: true, .. }
        ) {
            self.barriers_fenced(at);
        }
        let a = &mut self.agents.all[at.agent.0 as usize];
        match fence {
            Fence::ProxyAsync { global, shared } => {
                let k = &mut a.knowledge;
                if shared {
                    k.proxied_shared.copy_from(&k.seen);
                }
                if global {
                    k.proxied_global.copy_from(&k.seen);
                    k.far.proxied.clone_from(&k.far.seen);
                }
                self.agents.tick(at.agent.0);
            }
            Fence::Cta | Fence::Cluster | Fence::Gpu => {
                self.lanes.ordered(at.agent);
                if let Some(o) = a.observed.take() {
                    a.knowledge.join(&o);
                }
                if fence == Fence::Gpu && self.between.is_some() {
                    let cluster = self.numbering.cluster;
                    if let Some(far) = a.observed_far.take() {
                        a.knowledge.take_over(&far, cluster);
                    }
                    a.fenced_far = Some(a.knowledge.published(cluster));
                }
                a.fenced = Some(a.knowledge.clone());
                // A relaxed arrival or store later releases what these lanes did before.
                self.arrivals_cover(at, lanes);
                self.agents.tick(at.agent.0);
            }
            // Releases the initialisation of mbarriers, for the relaxed arrive at the cluster barrier that follows it. That it
            // would release nothing else is not modelled: such a race is missed.
            Fence::MbarrierInit => {
                a.fenced = Some(a.knowledge.clone());
                self.agents.tick(at.agent.0);
            }
            Fence::ProxyTensormap { .. } | Fence::ProxyAlias => {}
        }
    }
}

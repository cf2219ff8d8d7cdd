//! Vector clocks and the agents that own their components.
//!
//! Every warp is an agent. Every asynchronous operation (a tensor copy, a wgmma, a cp.async group) is an agent of its own
//! from issue to completion: what it reads and writes is ordered after its issue and before whatever waits for it, and
//! is concurrent with everything else. Agents of finished operations are used again, oldest first; their component of
//! the clock goes on counting, so that a stale entry of another agent's clock never orders a new operation. (An agent that
//! observed the *new* operation then also counts as having observed the old one of the same slot: a race with an
//! operation that ended at least [`KEEP`] operations ago may be missed, never invented.)

use super::between::Far;
use std::collections::VecDeque;

/// Finished slots kept aside before the oldest is used again.
const KEEP: usize = 96;

/// A vector clock. Missing components are zero.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clock(Vec<u32>);

impl Clock {
    #[inline(always)]
    pub fn get(&self, agent: u32) -> u32 {
        self.0.get(agent as usize).copied().unwrap_or(0)
    }

    pub fn set(&mut self, agent: u32, value: u32) {
        let i = agent as usize;
        if self.0.len() <= i {
            self.0.resize(i + 1, 0);
        }
        self.0[i] = value;
    }

    /// Componentwise maximum.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a = (*a).max(*b);
        }
    }

    /// Is every component at least that of the other?
    pub fn covers(&self, other: &Clock) -> bool {
        other.0.iter().zip(0..).all(|(v, i)| *v <= self.get(i))
    }

    pub fn copy_from(&mut self, other: &Clock) {
        self.0.clear();
        self.0.extend_from_slice(&other.0);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// What an agent knows: everything whose effects it sees, which of the generic-proxy writes among that are visible
/// to the async proxy (a `fence.proxy.async` lies on the path), and in clusters everything that has happened before at all: a relaxed
/// arrival that was waited for has happened, though nothing else need be seen for it. If clusters communicate, also what of the others is seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knowledge {
    pub seen: Clock,
    pub happened: Clock,
    pub proxied_shared: Clock,
    pub proxied_global: Clock,
    pub far: Far,
}

impl Knowledge {
    pub fn join(&mut self, other: &Knowledge) {
        self.seen.join(&other.seen);
        self.happened.join(&other.happened);
        self.proxied_shared.join(&other.proxied_shared);
        self.proxied_global.join(&other.proxied_global);
        self.far.join(&other.far);
    }

    pub fn copy_from(&mut self, other: &Knowledge) {
        self.seen.copy_from(&other.seen);
        self.happened.copy_from(&other.happened);
        self.proxied_shared.copy_from(&other.proxied_shared);
        self.proxied_global.copy_from(&other.proxied_global);
        self.far.clone_from(&other.far);
    }
}

/// Exchange with other clusters, in which this one is number `cluster`.
impl Knowledge {
    /// What others take over from who publishes it.
    pub fn published(&self, cluster: u32) -> Far {
        let mut far = self.far.clone();
        far.seen.set(cluster, self.seen.clone());
        far.proxied.set(cluster, self.proxied_global.clone());
        far
    }

    /// Takes over what was published; part of it may be of this cluster.
    pub fn take_over(&mut self, far: &Far, cluster: u32) {
        if let Some(own) = far.seen.of(cluster) {
            self.seen.join(own);
        }
        if let Some(own) = far.proxied.of(cluster) {
            self.proxied_global.join(own);
        }
        self.far.join(far);
    }
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq)]
pub enum Identity {
    Warp {
        cta: u32,
        warp: u32,
    },
    /// An asynchronous operation.
    Operation {
        what: &'static str,
        issuer: u32,
        pc: u32,
    },
}

#[derive(Debug)]
pub struct AgentState {
    pub identity: Identity,
    /// The CTA of the warp, or of the operation's issuer.
    pub cta: u32,
    pub knowledge: Knowledge,
    /// Snapshot at the last fence of at least CTA scope: what a relaxed write or atomic releases.
    pub fenced: Option<Knowledge>,
    /// What relaxed reads and atomics have seen: acquired at the next fence.
    pub observed: Option<Knowledge>,
    /// The same for other clusters: what the last fence of device scope lets a relaxed write publish, and what relaxed reads have found
    /// published.
    pub fenced_far: Option<Far>,
    pub observed_far: Option<Far>,
}

/// All agents of a cluster.
#[derive(Debug, Default)]
pub struct Agents {
    pub all: Vec<AgentState>,
    /// More than one CTA: what has happened is followed.
    in_cluster: bool,
    finished: VecDeque<u32>,
}

impl Agents {
    pub fn new(in_cluster: bool) -> Self {
        Self {
            in_cluster,
            ..Self::default()
        }
    }

    pub fn follows_what_happened(&self) -> bool {
        self.in_cluster
    }

    pub fn add(&mut self, identity: Identity) -> u32 {
        let id = self.all.len() as u32;
        let mut knowledge = Knowledge::default();
        knowledge.seen.set(id, 1);
        if self.in_cluster {
            knowledge.happened.set(id, 1);
        }
        let cta = match identity {
            Identity::Warp { cta, .. } => cta,
            Identity::Operation { issuer, .. } => self.all[issuer as usize].cta,
        };
        self.all.push(AgentState {
            identity,
            cta,
            knowledge,
            fenced: None,
            observed: None,
            fenced_far: None,
            observed_far: None,
        });
        id
    }

    /// A new operation that knows what its issuer knows.
    pub fn fork(&mut self, issuer: u32, pc: u32, what: &'static str) -> u32 {
        let identity = Identity::Operation { what, issuer, pc };
        let id = if self.finished.len() > KEEP {
            let id = self.finished.pop_front().unwrap_or(0);
            self.all[id as usize].identity = identity;
            self.all[id as usize].cta = self.all[issuer as usize].cta;
            id
        } else {
            self.add(identity)
        };
        let own = self.all[id as usize].knowledge.seen.get(id) + 1;
        let (a, b) = two(&mut self.all, id as usize, issuer as usize);
        a.knowledge.copy_from(&b.knowledge);
        a.knowledge.seen.set(id, own);
        if self.in_cluster {
            a.knowledge.happened.set(id, own);
        }
        a.fenced = None;
        a.observed = None;
        a.fenced_far = None;
        a.observed_far = None;
        self.tick(issuer);
        id
    }

    /// The operation will not access anything any more.
    pub fn finish(&mut self, id: u32) {
        if matches!(self.all[id as usize].identity, Identity::Operation { .. })
            && !self.finished.contains(&id)
        {
            self.finished.push_back(id);
        }
    }

    /// What follows is not covered by what was released so far.
    pub fn tick(&mut self, id: u32) {
        let k = &mut self.all[id as usize].knowledge;
        let v = k.seen.get(id) + 1;
        k.seen.set(id, v);
        if self.in_cluster {
            k.happened.set(id, v);
        }
    }

    /// Both are operations, and `later` was issued by someone who knew of the issue of `earlier`.
    pub fn follows_issue(&self, later: u32, earlier: u32) -> bool {
        let [later, earlier] = [later, earlier].map(|id| &self.all[id as usize]);
        let (Identity::Operation { .. }, Identity::Operation { issuer, .. }) =
            (&later.identity, &earlier.identity)
        else {
            return false;
        };
        later.knowledge.seen.get(*issuer) > earlier.knowledge.seen.get(*issuer)
    }

    pub fn is_warp(&self, id: u32) -> bool {
        let agent = self.all.get(id as usize);
        agent.is_some_and(|a| matches!(a.identity, Identity::Warp { .. }))
    }

    pub fn warps_of(&self, cta: u32) -> impl Iterator<Item = &AgentState> {
        let warps =
            move |a: &&AgentState| matches!(a.identity, Identity::Warp { .. }) && a.cta == cta;
        self.all.iter().filter(warps)
    }

    pub fn knows(&mut self, id: u32) -> &mut Knowledge {
        &mut self.all[id as usize].knowledge
    }

    pub fn name(&self, id: u32) -> String {
        match self.all.get(id as usize).map(|a| &a.identity) {
            Some(Identity::Warp { cta, warp }) => format!("warp {warp} of CTA {cta}"),
            Some(Identity::Operation { what, issuer, .. }) => {
                format!("{what} issued by {}", self.name(*issuer))
            }
            None => format!("agent {id}"),
        }
    }
}

/// Two different elements at once.
pub fn two<T>(v: &mut [T], a: usize, b: usize) -> (&mut T, &mut T) {
    assert_ne!(a, b);
    if a < b {
        let (x, y) = v.split_at_mut(b);
        (&mut x[a], &mut y[0])
    } else {
        let (x, y) = v.split_at_mut(a);
        (&mut y[0], &mut x[b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_again_slot_is_not_ordered_by_what_was_seen_of_its_predecessor() {
        let mut a = Agents::default();
        let w = a.add(Identity::Warp { cta: 0, warp: 0 });
        let v = a.add(Identity::Warp { cta: 0, warp: 1 });
        let first = a.fork(w, 0, "copy");
        let known = a.all[first as usize].knowledge.clone();
        a.knows(v).join(&known);
        a.finish(first);
        let mut again = first;
        for _ in 0..2 * KEEP {
            again = a.fork(w, 0, "copy");
            if again == first {
                break;
            }
            a.finish(again);
        }
        assert_eq!(again, first, "the slot comes round");
        let epoch = a.all[again as usize].knowledge.seen.get(again);
        assert!(epoch > a.all[v as usize].knowledge.seen.get(again));
    }

    #[test]
    fn join_is_the_componentwise_maximum() {
        let mut a = Clock::default();
        a.set(2, 5);
        let mut b = Clock::default();
        b.set(0, 3);
        b.set(2, 4);
        a.join(&b);
        assert_eq!((a.get(0), a.get(1), a.get(2), a.get(9)), (3, 0, 5, 0));
    }
}

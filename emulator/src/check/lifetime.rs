//! Accesses to another CTA's shared memory have to end before that CTA exits, and something has to see to it.
//!
//! An access after the exit is found where it happens. Whether it comes after is a matter of the schedule, though, so the order itself is
//! checked too: when a CTA exits, each access of others to its shared memory must have happened before, as known to some warp of the CTA
//! (it has waited for an arrival that came after, at an mbarrier or at the cluster's barrier). What happened counts here, not what is
//! visible: a relaxed arrival that was waited for is enough.

use super::clock::Clock;
use super::{Agent, At, Checker, FindingKind, SiteRef};

/// The last access of an agent to shared memory of a CTA that is not its own.
#[derive(Debug, Clone, Copy)]
pub struct Visit {
    cta: u32,
    clock: u32,
    access: At,
}

impl Checker {
    /// An agent accesses shared memory of `cta`, which is not its own.
    pub(super) fn visited(&mut self, access: At, cta: u32) {
        let agent = access.agent.0;
        let clock = self.agents.all[agent as usize]
            .knowledge
            .happened
            .get(agent);
        let visit = Visit { cta, clock, access };
        let same = |v: &&mut Visit| v.cta == cta && v.access.agent == access.agent;
        match self.visits.iter_mut().find(same) {
            Some(v) => *v = visit,
            None => self.visits.push(visit),
        }
    }

    /// The last warp of a CTA exits.
    pub(super) fn visits_end(&mut self, cta: u32, exit: At) {
        if self.visits.iter().all(|v| v.cta != cta) {
            return;
        }
        let mut happened = Clock::default();
        for a in self.agents.warps_of(cta) {
            happened.join(&a.knowledge.happened);
        }
        let unordered: Vec<Visit> = self
            .visits
            .iter()
            .filter(|v| v.cta == cta && happened.get(v.access.agent.0) < v.clock)
            .copied()
            .collect();
        for v in unordered {
            let site = SiteRef {
                pc: exit.pc,
                who: self.name(Agent(exit.agent.0)),
                role: "exit".into(),
            };
            let message = format!(
                "{} accesses shared memory of CTA {cta}, and nothing keeps that CTA from exiting before",
                self.name(v.access.agent)
            );
            self.report(FindingKind::ClusterLifetime, v.access, message, vec![site]);
        }
        self.visits.retain(|v| v.cta != cta);
    }
}

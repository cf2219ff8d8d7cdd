//! Strict mode: what an arrival at an mbarrier releases.
//!
//! An arrival by some lanes of a warp releases what these lanes did. What the others did before is released only if the lanes met in between, at
//! a `bar.warp.sync` or a stronger barrier. Devices forgive that where the lanes execute together (DeepGEMM's products rely on it), so it is
//! reported in strict mode alone, and for shared memory. As the clocks are clocks of warps, an access of another warp or of a copy is
//! taken to be ordered behind all lanes' accesses; here it is held against those of the lanes that did not arrive, until who accesses
//! has learned of a release that covers them. What one lane acquires counts for its warp.

use super::clock::Identity;
use super::lanes::{KEEP, Places, each, shared_of};
use super::{Agent, At, Checker, FindingKind, Kind, SiteRef, Sync, WarpAccess};

/// Accesses of lanes that had not arrived when others of their warp did.
#[derive(Debug)]
struct Unreleased {
    places: Places,
    writes: bool,
    /// pc and lanes of the arrival.
    arrival: (u32, u32),
    /// The lanes have met since: the next release covers it.
    met: bool,
    /// Who knows the warp up to here has acquired a release that covers it.
    covered: Option<u32>,
}

#[derive(Debug, Default)]
struct Warp {
    /// The first accesses to shared memory since the lanes met or some arrived, and whether they wrote.
    apart: Vec<(Places, bool)>,
    unreleased: Vec<Unreleased>,
}

/// Of each warp of the cluster, by agent.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Vec<Warp>);

impl Arrivals {
    pub fn new(warps: usize) -> Self {
        Arrivals((0..warps).map(|_| Warp::default()).collect())
    }
}

impl Checker {
    /// Lanes access shared memory of CTA `cta`.
    pub(super) fn arrivals_access(&mut self, at: At, cta: u32, access: &WarpAccess<u32>) {
        if !self.strict.enabled || access.kind.is_strong() || access.mask == 0 {
            return;
        }
        if let Some(warp) = self.arrivals.0.get_mut(at.agent.0 as usize)
            && warp.apart.len() < KEEP
        {
            let places = Places::new(at.pc, access, shared_of(cta));
            warp.apart.push((places, access.kind == Kind::Write));
        }
    }

    /// Who learns from now on what the warp knows sees what lanes of `mask` did, and all lanes before they last met.
    pub(super) fn arrivals_cover(&mut self, at: At, mask: u32) {
        let Some(warp) = self.arrivals.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        let knowledge = &self.agents.all[at.agent.0 as usize].knowledge;
        let now = knowledge.seen.get(at.agent.0);
        for u in warp.unreleased.iter_mut().filter(|u| u.covered.is_none()) {
            if u.met || u.places.mask & !mask == 0 {
                u.covered = Some(now);
            } else {
                u.places.mask &= !mask;
            }
        }
    }

    /// Lanes of a warp release what they did.
    pub(super) fn arrivals_release(&mut self, at: At, mask: u32) {
        self.arrivals_cover(at, mask);
        let Some(warp) = self.arrivals.0.get_mut(at.agent.0 as usize) else {
            return;
        };
        for (mut places, writes) in warp.apart.drain(..) {
            places.mask &= !mask;
            if places.mask != 0 {
                warp.unreleased.push(Unreleased {
                    places,
                    writes,
                    arrival: (at.pc, mask),
                    met: false,
                    covered: None,
                });
            }
        }
        let old = warp.unreleased.len().saturating_sub(4 * KEEP);
        warp.unreleased.drain(..old);
    }

    /// A warp has acquired `object`: have its lanes met there?
    pub(super) fn arrivals_acquire(&mut self, at: At, object: Sync) {
        if let Sync::Warp { .. } | Sync::Named { .. } | Sync::ClusterBarrier = object
            && let Some(warp) = self.arrivals.0.get_mut(at.agent.0 as usize)
        {
            warp.apart.clear();
            warp.unreleased.iter_mut().for_each(|u| u.met = true);
        }
    }

    /// Is an access to shared memory ordered behind another warp's by the arrival of a lane that does not release it?
    pub(super) fn arrivals_check(
        &mut self,
        at: At,
        cta: u32,
        address: u32,
        bytes: u32,
        kind: Kind,
    ) {
        if !self.strict.enabled {
            return;
        }
        let low = shared_of(cta) | u64::from(address);
        let high = low + u64::from(bytes);
        let state = &self.agents.all[at.agent.0 as usize];
        let own = match state.identity {
            Identity::Warp { .. } => at.agent.0,
            Identity::Operation { issuer, .. } => issuer,
        };
        let others = (0..).zip(&self.arrivals.0).filter(|(w, _)| *w != own);
        let all = others.flat_map(|(w, warp)| warp.unreleased.iter().map(move |u| (w, u)));
        let mut bad = all.filter(|(w, u)| {
            (u.writes || kind.writes())
                && u.covered.is_none_or(|c| state.knowledge.seen.get(*w) < c)
                && u.places.touch(low, high)
        });
        let Some((w, u)) = bad.next() else {
            return;
        };
        let (warp, who) = (self.name(Agent(w)), self.name(at.agent));
        let verb = if kind.writes() { "writes" } else { "reads" };
        let [did, role] = if u.writes {
            ["written", "earlier write"]
        } else {
            ["read", "earlier read"]
        };
        let first = |mask| each(mask).next().unwrap_or(0);
        let message = format!(
            "{who} {verb} shared memory of CTA {cta}, address {address:#x}, {did} by lane {} of {warp}; the arrival of lane {} does not \
             release that: no bar.warp.sync (__syncwarp) lies before it",
            first(u.places.mask),
            first(u.arrival.1)
        );
        let site = |pc, role: &str| SiteRef {
            pc,
            who: warp.clone(),
            role: role.into(),
        };
        let sites = vec![site(u.places.pc, role), site(u.arrival.0, "arrival")];
        self.report(FindingKind::SharedRace, at, message, sites);
    }
}

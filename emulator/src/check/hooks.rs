//! The hooks that the executor calls.
//!
//! Contract: `at` names the executing agent and pc. Addresses were bounds-tested before. An asynchronous operation is
//! an agent of its own: [`Checker::fork`] at issue, its accesses under its own agent when it retires,
//! [`Checker::complete`] when its completion is signalled to a synchronisation object (mbarrier, bulk group, wgmma
//! group), and whoever observes that object [`Checker::acquire`]s it.
//!
//! The run loop calls [`Checker::before`] and [`Checker::after`] around every operation and ends the launch when
//! [`Checker::fatal`] says so.

use super::clock::{Agents, Identity, Knowledge};
use super::shadow::{Conflict, New, Order, Past, Shadow};
use super::*;
use crate::exec::SHARED_BASE;

/// Findings kept at the most when they are collected.
const MOST_FINDINGS: usize = 200;

/// Clocks of a synchronisation object.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// Released in the phase that is under way.
    pending: Knowledge,
    /// Released up to the last completed phase.
    published: Knowledge,
    has_phases: bool,
}

/// A write that has been announced and not yet been done.
#[derive(Debug)]
pub(super) struct Unsettled {
    at: At,
    memory: *const u8,
    /// What lay there, in `Checker::overwritten`.
    kept: std::ops::Range<usize>,
    /// Address in global memory.
    global: Option<u64>,
    proxy: Proxy,
    /// Space, address, and what it conflicts with.
    conflict: Option<(String, u64, Conflict)>,
}

/// The order of one agent, as shadow memory asks for it.
struct Seen<'a> {
    knowledge: &'a Knowledge,
    shared: bool,
}

impl Order for Seen<'_> {
    #[inline(always)]
    fn seen(&self, agent: u32, clock: u32) -> bool {
        self.knowledge.seen.get(agent) >= clock
    }
    fn proxied(&self, agent: u32, clock: u32) -> bool {
        let p = if self.shared {
            &self.knowledge.proxied_shared
        } else {
            &self.knowledge.proxied_global
        };
        p.get(agent) >= clock
    }
}

impl Checker {
    /// `warps_per_cta` of each CTA of the cluster; warps become agents 0, 1, … in order of CTA rank and warp.
    pub fn new(program: &Program, ctas: u32, warps_per_cta: u32, collect: bool) -> Self {
        let mut agents = Agents::default();
        for cta in 0..ctas {
            for warp in 0..warps_per_cta {
                agents.add(Identity::Warp { cta, warp });
            }
        }
        let warps = (ctas * warps_per_cta) as usize;
        Self {
            kernel: program.name.clone(),
            sites: program.sites.clone(),
            files: program.files.clone(),
            findings: Vec::new(),
            collect,
            agents,
            shared: (0..ctas).map(|_| Shadow::default()).collect(),
            layout: vec![Vec::new(); ctas as usize],
            global: Shadow::default(),
            objects: HashMap::new(),
            log: GlobalLog::default(),
            memory: Vec::new(),
            unsettled: Vec::new(),
            overwritten: Vec::new(),
            registers: valid::Registers::new(program, warps),
            tensor: Default::default(),
        }
    }

    /// Adds a finding, unless the same one (kind and sites) is there already.
    pub fn report(
        &mut self,
        kind: FindingKind,
        at: At,
        message: impl Into<String>,
        others: Vec<SiteRef>,
    ) {
        let mut sites = vec![SiteRef {
            pc: at.pc,
            who: self.name(at.agent),
            role: "here".into(),
        }];
        sites.extend(others);
        let finding = Finding {
            kind,
            kernel: self.kernel.clone(),
            message: message.into(),
            sites,
        };
        let same = |f: &Finding| {
            f.kind == kind
                && f.sites.len() == finding.sites.len()
                && f.sites
                    .iter()
                    .zip(&finding.sites)
                    .all(|(a, b)| a.pc == b.pc)
        };
        if self.findings.len() < MOST_FINDINGS && !self.findings.iter().any(same) {
            self.findings.push(finding);
        }
    }

    /// The finding that ends the launch, if there is one and findings are not merely collected.
    #[inline(always)]
    pub fn fatal(&self) -> Option<&Finding> {
        if self.collect || self.findings.is_empty() {
            return None;
        }
        self.findings.iter().find(|f| !f.kind.is_note())
    }

    /// Name of an agent for reports: `warp 3 of CTA 0`, `tensor load issued by warp 0 of CTA 0`.
    pub fn name(&self, agent: Agent) -> String {
        self.agents.name(agent.0)
    }

    fn past_site(&self, p: &Past, role: &str) -> SiteRef {
        SiteRef {
            pc: p.pc,
            who: self.agents.name(p.agent),
            role: role.into(),
        }
    }

    fn conflict(
        &mut self,
        at: At,
        space: &str,
        address: u64,
        kind: Kind,
        proxy: Proxy,
        conflict: Conflict,
    ) {
        let verb = match kind {
            Kind::Read => "reads",
            Kind::Write => "writes",
            Kind::Atomic => "updates",
        };
        let who = self.name(at.agent);
        match conflict {
            Conflict::Race {
                earlier,
                earlier_writes,
            } => {
                let earlier_who = self.agents.name(earlier.agent);
                let did = if earlier_writes { "written" } else { "read" };
                let refill = space != "global" && proxy == Proxy::Async && kind != Kind::Read;
                let (kind, message) = if refill {
                    (
                        FindingKind::StageReuse,
                        format!(
                            "{who} refills {space} address {address:#x} before {earlier_who}, by whom it was {did}, has released it"
                        ),
                    )
                } else {
                    let kind = if space == "global" {
                        FindingKind::GlobalRace
                    } else {
                        FindingKind::SharedRace
                    };
                    (
                        kind,
                        format!(
                            "{who} {verb} {space} address {address:#x}, {did} by {earlier_who}, and nothing orders the two"
                        ),
                    )
                };
                let role = if earlier_writes {
                    "earlier write"
                } else {
                    "earlier read"
                };
                let other = self.past_site(&earlier, role);
                self.report(kind, at, message, vec![other]);
            }
            Conflict::Proxy { earlier } => {
                let earlier_who = self.agents.name(earlier.agent);
                let message = format!(
                    "{who} {verb} {space} address {address:#x} through the async proxy; {earlier_who} wrote it through the generic \
                     proxy and no fence.proxy.async lies between"
                );
                let other = self.past_site(&earlier, "generic write");
                self.report(FindingKind::MissingProxyFence, at, message, vec![other]);
            }
        }
    }

    fn shared_one(&mut self, at: At, cta: u32, address: u32, bytes: u32, kind: Kind, proxy: Proxy) {
        let agent = at.agent.0;
        let knowledge = &self.agents.all[agent as usize].knowledge;
        let new = New {
            agent,
            clock: knowledge.seen.get(agent),
            pc: at.pc,
            kind,
            proxy,
        };
        let order = Seen {
            knowledge,
            shared: true,
        };
        let found =
            self.shared[cta as usize].access(u64::from(address), u64::from(bytes), new, &order);
        if let Some((a, c)) = found {
            let space = format!("shared memory of CTA {cta},");
            let from = (address - SHARED_BASE) as usize;
            match self.memory.get(cta as usize) {
                Some(memory) if kind == Kind::Write && proxy == Proxy::Generic => {
                    // SAFETY: the range was tested before; the CTA's memory lives as long as its cluster.
                    let before =
                        unsafe { std::slice::from_raw_parts(memory.add(from), bytes as usize) };
                    self.keep_write(at, before, None, proxy, Some((space, a, c)));
                }
                _ => self.conflict(at, &space, a, kind, proxy, c),
            }
        }
    }

    /// A warp's access to shared memory of CTA `cta` through the generic proxy: lane addresses (offsets in that CTA),
    /// `bytes` per lane.
    pub fn shared_access(
        &mut self,
        at: At,
        cta: u32,
        addresses: &[u32; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let mut lane = 0;
        while lane < 32 {
            if mask >> lane & 1 == 0 {
                lane += 1;
                continue;
            }
            // Neighbouring lanes with neighbouring addresses are one range.
            let start = addresses[lane];
            let mut end = start + bytes;
            let first = lane;
            lane += 1;
            while lane < 32 && mask >> lane & 1 == 1 && addresses[lane] == end {
                end += bytes;
                lane += 1;
            }
            self.shared_one(at, cta, start, end - start, kind, Proxy::Generic);
            if kind != Kind::Read {
                self.set_layout(cta, start, end - start, layout::UNKNOWN);
            }
            self.shared_validity(at, cta, start, bytes, first, lane, kind);
        }
    }

    /// A contiguous access to shared memory (asynchronous copies, wgmma operands, mbarrier words).
    pub fn shared_range(
        &mut self,
        at: At,
        cta: u32,
        address: u32,
        bytes: u32,
        kind: Kind,
        proxy: Proxy,
    ) {
        self.shared_one(at, cta, address, bytes, kind, proxy);
        if kind == Kind::Read && proxy == Proxy::Async {
            self.range_must_be_valid(at, cta, address, bytes);
        }
    }

    /// A warp's access to global memory, lane by lane.
    pub fn global_access(
        &mut self,
        at: At,
        addresses: &[u64; 32],
        mask: u32,
        bytes: u32,
        kind: Kind,
    ) {
        let mut lane = 0;
        while lane < 32 {
            if mask >> lane & 1 == 0 {
                lane += 1;
                continue;
            }
            let start = addresses[lane];
            let mut end = start + u64::from(bytes);
            lane += 1;
            while lane < 32 && mask >> lane & 1 == 1 && addresses[lane] == end {
                end += u64::from(bytes);
                lane += 1;
            }
            self.global_range(at, start, end - start, kind, Proxy::Generic);
        }
    }

    /// A contiguous access to global memory.
    pub fn global_range(&mut self, at: At, address: u64, bytes: u64, kind: Kind, proxy: Proxy) {
        let agent = at.agent.0;
        let knowledge = &self.agents.all[agent as usize].knowledge;
        let new = New {
            agent,
            clock: knowledge.seen.get(agent),
            pc: at.pc,
            kind,
            proxy,
        };
        let order = Seen {
            knowledge,
            shared: false,
        };
        let found = self.global.access(address, bytes, new, &order);
        if kind == Kind::Write {
            // SAFETY: the range was tested before.
            let before =
                unsafe { std::slice::from_raw_parts(address as *const u8, bytes as usize) };
            let conflict = found.map(|(a, c)| ("global".to_string(), a, c));
            self.keep_write(at, before, Some(address), proxy, conflict);
            return;
        }
        self.log.add(address, bytes, kind, at.pc);
        if let Some((a, c)) = found {
            self.conflict(at, "global", a, kind, proxy, c);
        }
    }

    /// Remembers what lies where a write is about to go, until [`Checker::settle`].
    fn keep_write(
        &mut self,
        at: At,
        before: &[u8],
        global: Option<u64>,
        proxy: Proxy,
        conflict: Option<(String, u64, Conflict)>,
    ) {
        let start = self.overwritten.len();
        self.overwritten.extend_from_slice(before);
        self.unsettled.push(Unsettled {
            at,
            memory: before.as_ptr(),
            kept: start..start + before.len(),
            global,
            proxy,
            conflict,
        });
    }

    /// The writes announced so far have been done: logs those to global memory, and reports those that conflict with an earlier write,
    /// unless they left every byte as it was. (Unordered writes of one value do not show in any result; programs rely on it, and
    /// compute-sanitizer does not report them either.)
    pub fn settle(&mut self) {
        if self.unsettled.is_empty() {
            return;
        }
        let kept = std::mem::take(&mut self.overwritten);
        let mut list = std::mem::take(&mut self.unsettled);
        for u in list.drain(..) {
            let before = &kept[u.kept];
            // SAFETY: memory that the write was tested to lie in; this cluster runs on this thread.
            let after = unsafe { std::slice::from_raw_parts(u.memory, before.len()) };
            if let Some(address) = u.global {
                self.log.add_write(address, before, after, u.at.pc);
            }
            let Some((space, address, conflict)) = u.conflict else {
                continue;
            };
            let over_write = matches!(
                conflict,
                Conflict::Race {
                    earlier_writes: true,
                    ..
                }
            );
            if !over_write || before != after {
                self.conflict(u.at, &space, address, Kind::Write, u.proxy, conflict);
            }
        }
        self.overwritten = kept;
        self.overwritten.clear();
        self.unsettled = list;
    }

    /// `at` makes everything it did (and has observed) visible to whoever acquires `object` later.
    pub fn release(&mut self, at: At, object: Sync) {
        let k = &self.agents.all[at.agent.0 as usize].knowledge;
        self.objects.entry(object).or_default().pending.join(k);
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
        if let Some(k) = &self.agents.all[at.agent.0 as usize].fenced {
            self.objects.entry(object).or_default().pending.join(k);
        }
    }

    /// A relaxed or volatile write, or an atomic, at an address: releases what the agent had done before its last fence.
    pub fn release_relaxed(&mut self, at: At, address: u64) {
        self.release_fenced(at, Sync::Address { address });
    }

    /// A relaxed or volatile read, or an atomic: what was released there is acquired at the agent's next fence.
    pub fn acquire_relaxed(&mut self, at: At, address: u64) {
        if let Some(o) = self.objects.get(&Sync::Address { address }) {
            self.agents.all[at.agent.0 as usize]
                .observed
                .get_or_insert_default()
                .join(&o.pending);
        }
    }

    /// An object is gone (mbarrier.inval): nobody acquires its old phases any more.
    pub fn forget(&mut self, object: Sync) {
        self.objects.remove(&object);
    }

    /// An asynchronous operation is issued; it starts with what its issuer has observed.
    pub fn fork(&mut self, at: At, what: &'static str) -> Agent {
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

    pub fn fence(&mut self, at: At, fence: Fence) {
        let a = &mut self.agents.all[at.agent.0 as usize];
        match fence {
            Fence::ProxyAsync { global, shared } => {
                let k = &mut a.knowledge;
                if shared {
                    k.proxied_shared.copy_from(&k.seen);
                }
                if global {
                    k.proxied_global.copy_from(&k.seen);
                }
                self.agents.tick(at.agent.0);
            }
            Fence::Cta | Fence::Cluster | Fence::Gpu => {
                if let Some(o) = a.observed.take() {
                    a.knowledge.join(&o);
                }
                a.fenced = Some(a.knowledge.clone());
                self.agents.tick(at.agent.0);
            }
            // Releases the initialisation of mbarriers, for the relaxed arrive at the cluster barrier that follows it. That it
            // would release nothing else is not modelled: such a race is missed.
            Fence::MbarrierInit => {
                a.fenced = Some(a.knowledge.clone());
                self.agents.tick(at.agent.0);
            }
            Fence::ProxyTensormap { .. } | Fence::ProxyAlias | Fence::Wgmma => {}
        }
    }

    /// Bytes of shared memory were laid out with a swizzle (0 none, 1 32B, 2 64B, 3 128B as in CUtensorMapSwizzle).
    pub fn tag_layout(&mut self, cta: u32, address: u32, bytes: u32, swizzle: u8) {
        self.set_layout(cta, address, bytes, swizzle);
    }

    /// An operand of the tensor core expects bytes to be laid out with `swizzle` (same codes as `tag_layout`).
    pub fn expect_layout(&mut self, at: At, cta: u32, address: u32, bytes: u32, swizzle: u8) {
        if let Some((a, found)) = self.other_layout(cta, address, bytes, swizzle) {
            let message = format!(
                "the operand at shared address {a:#x} of CTA {cta} is read with {} but its bytes were written with {}",
                layout::name(swizzle),
                layout::name(found)
            );
            self.report(FindingKind::LayoutMismatch, at, message, vec![]);
        }
    }
}

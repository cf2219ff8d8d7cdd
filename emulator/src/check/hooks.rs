//! The hooks that the executor calls.
//!
//! Contract: `at` names the executing agent and pc. Addresses were bounds-tested before. An asynchronous operation is
//! an agent of its own: [`Checker::fork`] at issue, its accesses under its own agent when it retires,
//! [`Checker::complete`] when its completion is signalled to a synchronisation object (mbarrier, bulk group, wgmma
//! group), and whoever observes that object [`Checker::acquire`]s it.
//!
//! The run loop calls [`Checker::before`] and [`Checker::after`] around every operation and ends the launch when
//! [`Checker::fatal`] says so.

use super::between::Numbering;
use super::clock::{Agents, Identity, Knowledge};
use super::shadow::{Conflict, New, Order, Past, Shadow};
use super::*;
use crate::exec::SHARED_BASE;

/// Findings kept at the most when they are collected.
const MOST_FINDINGS: usize = 200;

/// A write that has been announced and not yet been done.
#[derive(Debug)]
pub(super) struct Unsettled {
    at: At,
    space: Space,
    proxy: Proxy,
    address: u64,
    memory: *const u8,
    /// What lay there, in `Checker::overwritten`.
    kept: std::ops::Range<usize>,
    /// What it conflicts with, in `Checker::hits`.
    hits: std::ops::Range<usize>,
}

/// How memory is accessed.
#[derive(Debug, Clone, Copy)]
struct How {
    kind: Kind,
    proxy: Proxy,
    /// Strong, and its scope ends at the CTA or the cluster.
    inside: bool,
}

impl How {
    fn new(kind: Kind, proxy: Proxy) -> Self {
        How {
            kind,
            proxy,
            inside: false,
        }
    }
}

/// Whose addresses they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Space {
    /// Shared memory of a CTA.
    Shared(u32),
    Global,
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Space::Shared(cta) => write!(f, "shared memory of CTA {cta},"),
            Space::Global => f.write_str("global"),
        }
    }
}

/// Calls `f(address, bytes)` with the ranges that the lanes of `mask` access, `bytes` each: what lies together in a line of 128 bytes is
/// one range, whatever the order of the lanes, and so are all 32 if they follow each other.
#[inline(always)]
fn ranges<A: Copy + Into<u64>>(
    addresses: &[A; 32],
    mask: u32,
    bytes: u32,
    mut f: impl FnMut(u64, u64),
) {
    let (first, bytes) = (addresses[0].into(), u64::from(bytes));
    if mask == u32::MAX {
        let (mut run, mut same) = (0, 0);
        for (l, a) in addresses.iter().enumerate() {
            let a: u64 = (*a).into();
            run |= a ^ first.wrapping_add(l as u64 * bytes);
            same |= a ^ first;
        }
        if run == 0 {
            return f(first, 32 * bytes);
        }
        if same == 0 {
            return f(first, bytes);
        }
    }
    let mut flush = |line: u64, mut set: u128| {
        while set != 0 {
            let start = set.trailing_zeros();
            let n = (set >> start).trailing_ones();
            f(line * 128 + u64::from(start), u64::from(n));
            set &= u128::MAX.checked_shl(start + n).unwrap_or(0);
        }
    };
    let (mut line, mut set) = (u64::MAX, 0u128);
    let mut left = mask;
    while left != 0 {
        let a: u64 = addresses[left.trailing_zeros() as usize].into();
        left &= left - 1;
        let inside = a % 128;
        if a / 128 != line {
            flush(line, set);
            (line, set) = (a / 128, 0);
        }
        // Accesses are aligned, so that none crosses a line.
        set |= (u128::MAX >> (128 - bytes.min(128))) << inside;
    }
    flush(line, set);
}

/// The order of one agent, as shadow memory asks for it.
struct Seen<'a> {
    knowledge: &'a Knowledge,
    shared: bool,
    numbering: Numbering,
}

impl Seen<'_> {
    #[cold]
    fn of_another(&self, agent: u32, clock: u32, proxied: bool) -> bool {
        let far = &self.knowledge.far;
        let clocks = if proxied { &far.proxied } else { &far.seen };
        let (cluster, agent) = self.numbering.split(agent);
        clocks.of(cluster).is_some_and(|c| c.get(agent) >= clock)
    }
}

impl Order for Seen<'_> {
    #[inline(always)]
    fn seen(&self, agent: u32, clock: u32) -> bool {
        match self.numbering.own(agent) {
            Some(own) => self.knowledge.seen.get(own) >= clock,
            None => self.of_another(agent, clock, false),
        }
    }
    #[inline(always)]
    fn proxied(&self, agent: u32, clock: u32) -> bool {
        let p = if self.shared {
            &self.knowledge.proxied_shared
        } else {
            &self.knowledge.proxied_global
        };
        match self.numbering.own(agent) {
            Some(own) => p.get(own) >= clock,
            None => self.of_another(agent, clock, true),
        }
    }
    #[inline(always)]
    fn apart(&self, agent: u32) -> bool {
        self.numbering.own(agent).is_none()
    }
}

impl Checker {
    /// `warps_per_cta` of each CTA of the cluster; warps become agents 0, 1, … in order of CTA rank and warp.
    pub fn new(program: &Program, ctas: u32, warps_per_cta: u32, collect: bool) -> Self {
        let mut agents = Agents::new(ctas > 1);
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
            between: None,
            defined: None,
            numbering: Numbering::default(),
            objects: Default::default(),
            log: GlobalLog::default(),
            memory: Vec::new(),
            unsettled: Vec::new(),
            overwritten: Vec::new(),
            hits: Vec::new(),
            registers: valid::Registers::new(program, warps),
            lanes: lanes::Lanes::new(warps),
            arrivals: arrivals::Arrivals::new(warps),
            tensor: Default::default(),
            operands: Default::default(),
            strict: Default::default(),
            visits: Vec::new(),
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
        let known = self.findings.iter().any(|f| f.is_like(&finding));
        if self.findings.len() < MOST_FINDINGS && !known {
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

    /// Name of an agent by its number in a shadow: also its cluster, if it is another one.
    fn past_name(&self, space: Space, number: u32) -> String {
        if space != Space::Global {
            return self.agents.name(number);
        }
        match self.numbering.split(number) {
            (cluster, agent) if cluster == self.numbering.cluster => self.agents.name(agent),
            (cluster, agent) if self.agents.is_warp(agent) => {
                format!("{} of cluster {cluster}", self.agents.name(agent))
            }
            (cluster, _) => format!("an asynchronous operation of cluster {cluster}"),
        }
    }

    /// Name of who is here, with its cluster if the other one, by its number in a shadow, is of another.
    fn name_beside(&self, agent: Agent, space: Space, other: u32) -> String {
        let name = self.name(agent);
        if space == Space::Global && self.numbering.own(other).is_none() {
            return format!("{name} of cluster {}", self.numbering.cluster);
        }
        name
    }

    fn past_site(&self, p: &Past, space: Space, role: &str) -> SiteRef {
        SiteRef {
            pc: p.pc,
            who: self.past_name(space, p.agent),
            role: role.into(),
        }
    }

    fn conflict(
        &mut self,
        at: At,
        space: Space,
        address: u64,
        kind: Kind,
        proxy: Proxy,
        conflict: Conflict,
    ) {
        let verb = match kind {
            Kind::Read | Kind::StrongRead => "reads",
            Kind::Write | Kind::StrongWrite => "writes",
            Kind::Atomic | Kind::Sum => "updates",
        };
        let (Conflict::Race { earlier, .. } | Conflict::Proxy { earlier }) = conflict;
        let earlier_who = self.past_name(space, earlier.agent);
        let who = self.name_beside(at.agent, space, earlier.agent);
        match conflict {
            Conflict::Race {
                earlier,
                earlier_writes,
            } => {
                let did = if earlier_writes { "written" } else { "read" };
                let why = if earlier.atomic && kind.is_strong() {
                    "the scope of one ends at its cluster"
                } else {
                    "nothing orders the two"
                };
                let refill = space != Space::Global && proxy == Proxy::Async && kind.writes();
                let (kind, message) = if space != Space::Global
                    && earlier_writes
                    && self.agents.follows_issue(earlier.agent, at.agent.0)
                {
                    (
                        FindingKind::StageReuse,
                        format!(
                            "{earlier_who} refilled {space} address {address:#x} before {who}, which was issued before, had released it"
                        ),
                    )
                } else if refill {
                    (
                        FindingKind::StageReuse,
                        format!(
                            "{who} refills {space} address {address:#x} before {earlier_who}, by whom it was {did}, has released it"
                        ),
                    )
                } else {
                    let kind = if space == Space::Global {
                        FindingKind::GlobalRace
                    } else {
                        FindingKind::SharedRace
                    };
                    (
                        kind,
                        format!(
                            "{who} {verb} {space} address {address:#x}, {did} by {earlier_who}, and {why}"
                        ),
                    )
                };
                let role = if earlier_writes {
                    "earlier write"
                } else {
                    "earlier read"
                };
                let other = self.past_site(&earlier, space, role);
                self.report(kind, at, message, vec![other]);
            }
            Conflict::Proxy { earlier } => {
                let (through, role) = match earlier.proxy {
                    Proxy::Generic => ("generic", "generic write"),
                    Proxy::Async => ("async", "async write"),
                };
                let message = format!(
                    "{who} {verb} {space} address {address:#x} through the async proxy; {earlier_who} wrote it through the {through} \
                     proxy and no fence.proxy.async lies between"
                );
                let other = self.past_site(&earlier, space, role);
                self.report(FindingKind::MissingProxyFence, at, message, vec![other]);
            }
        }
    }

    /// Records a read in the shadow and reports what it conflicts with; the first byte that nobody has written.
    #[inline]
    fn read(&mut self, at: At, space: Space, address: u64, bytes: u64, how: How) -> Option<u64> {
        let mut hits = std::mem::take(&mut self.hits);
        let before = hits.len();
        let (shadow, new, order) = self.access(at, space, how);
        let undefined = shadow.read(address, bytes, new, &order, &mut hits);
        self.hits = hits;
        if self.hits.len() > before {
            self.reads_conflict(at, space, how, before);
        }
        undefined
    }

    /// Reports the hits of reads, which are those from `from` on.
    #[cold]
    fn reads_conflict(&mut self, at: At, space: Space, how: How, from: usize) {
        for hit in self.hits.split_off(from) {
            self.conflict(at, space, hit.address, how.kind, how.proxy, hit.conflict);
        }
    }

    /// Records a write or atomic in the shadow. What it conflicts with is reported at once, or given back as a range of `hits` if it
    /// may turn out not to matter.
    #[inline]
    fn write(
        &mut self,
        at: At,
        space: Space,
        address: u64,
        bytes: u64,
        how: How,
    ) -> std::ops::Range<usize> {
        let How { kind, proxy, .. } = how;
        let mut hits = std::mem::take(&mut self.hits);
        let before = hits.len();
        let (shadow, new, order) = self.access(at, space, how);
        shadow.write(address, bytes, new, &order, &mut hits);
        self.hits = hits;
        let wait = kind == Kind::Write && (space == Space::Global || proxy == Proxy::Generic);
        if !wait && let Some(hit) = self.hits.get(before).copied() {
            self.hits.truncate(before);
            self.conflict(at, space, hit.address, kind, proxy, hit.conflict);
        }
        before..self.hits.len()
    }

    /// Shadow, access and order for an access of `at`.
    #[inline(always)]
    fn access(&mut self, at: At, space: Space, how: How) -> (&mut Shadow, New, Seen<'_>) {
        let agent = at.agent.0;
        let knowledge = &self.agents.all[agent as usize].knowledge;
        let alone = Numbering::default();
        let (shadow, numbering) = match (space, &mut self.between) {
            (Space::Shared(cta), _) => (&mut self.shared[cta as usize], alone),
            (Space::Global, Some(between)) => (&mut between.global, self.numbering),
            (Space::Global, None) => (&mut self.global, alone),
        };
        let new = New {
            agent: numbering.number(agent).unwrap_or(agent),
            clock: knowledge.seen.get(agent),
            pc: at.pc,
            kind: how.kind,
            proxy: how.proxy,
            inside: how.inside,
        };
        let order = Seen {
            knowledge,
            shared: space != Space::Global,
            numbering,
        };
        (shadow, new, order)
    }

    /// An access to shared memory of `cta`; the first byte that it reads and nobody has written.
    fn shared_one(
        &mut self,
        at: At,
        cta: u32,
        address: u32,
        bytes: u32,
        kind: Kind,
        proxy: Proxy,
    ) -> Option<u64> {
        if self.agents.all[at.agent.0 as usize].cta != cta {
            self.visited(at, cta);
        }
        self.arrivals_check(at, cta, address, bytes, kind);
        let space = Space::Shared(cta);
        let (start, length) = (u64::from(address), u64::from(bytes));
        let how = How::new(kind, proxy);
        if !kind.writes() {
            return self.read(at, space, start, length, how);
        }
        let hits = self.write(at, space, start, length, how);
        if hits.is_empty() {
            return None;
        }
        match self.memory.get(cta as usize) {
            Some(memory) => {
                let from = memory.wrapping_add((address - SHARED_BASE) as usize);
                // SAFETY: the range was tested before; the CTA's memory lives as long as its cluster.
                let before = unsafe { std::slice::from_raw_parts(from, bytes as usize) };
                self.keep_write(at, space, start, before, proxy, hits);
            }
            None => {
                let hit = self.hits[hits.start];
                self.hits.truncate(hits.start);
                self.conflict(at, space, hit.address, kind, proxy, hit.conflict);
            }
        }
        None
    }

    /// A warp's access to shared memory of CTA `cta`; addresses are offsets in that CTA.
    pub fn shared_access(&mut self, at: At, cta: u32, access: &WarpAccess<u32>) {
        self.lanes_access(at, access, lanes::shared_of(cta));
        self.arrivals_access(at, cta, access);
        let mut undefined = false;
        ranges(access.addresses, access.mask, access.bytes, |start, n| {
            let (start, n) = (start as u32, n as u32);
            undefined |= self
                .shared_one(at, cta, start, n, access.kind, Proxy::Generic)
                .is_some();
            if access.kind.writes() {
                self.set_layout(cta, start, n, layout::UNKNOWN);
            }
        });
        if undefined || access.kind == Kind::Write {
            self.shared_validity(at, cta, access);
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
        let undefined = self.shared_one(at, cta, address, bytes, kind, proxy);
        if let Some(a) = undefined
            && proxy == Proxy::Async
        {
            self.undefined_operand(at, cta, a);
        }
    }

    /// Reads of shared memory through the async proxy, all of which have to be defined: (address, bytes) each.
    pub fn shared_reads_async(&mut self, at: At, cta: u32, ranges: &[(u32, u32)]) {
        if self.agents.all[at.agent.0 as usize].cta != cta {
            self.visited(at, cta);
        }
        for &(address, bytes) in ranges {
            self.arrivals_check(at, cta, address, bytes, Kind::Read);
        }
        let (space, proxy) = (Space::Shared(cta), Proxy::Async);
        let mut hits = std::mem::take(&mut self.hits);
        let before = hits.len();
        let mut undefined = None;
        let (shadow, new, order) = self.access(at, space, How::new(Kind::Read, proxy));
        for &(address, bytes) in ranges {
            let (address, bytes) = (u64::from(address), u64::from(bytes));
            let found = shadow.read(address, bytes, new, &order, &mut hits);
            undefined = undefined.or(found);
        }
        self.hits = hits;
        if self.hits.len() > before {
            self.reads_conflict(at, space, How::new(Kind::Read, proxy), before);
        }
        if let Some(a) = undefined {
            self.undefined_operand(at, cta, a);
        }
    }

    /// A read of shared memory through the async proxy whose undefined bytes may not matter: are there any?
    pub fn shared_read_async(&mut self, at: At, cta: u32, address: u32, bytes: u32) -> bool {
        self.shared_one(at, cta, address, bytes, Kind::Read, Proxy::Async)
            .is_some()
    }

    /// A warp's access to global memory.
    pub fn global_access(&mut self, at: At, access: &WarpAccess<u64>) {
        self.lanes_access(at, access, 0);
        let reads = !access.kind.writes();
        let mut undefined = false;
        ranges(access.addresses, access.mask, access.bytes, |start, n| {
            let how = How {
                inside: access.inside,
                ..How::new(access.kind, Proxy::Generic)
            };
            self.global_one(at, start, n, how);
            undefined |= reads && self.defined.as_ref().is_some_and(|d| d.lacks(start, n));
        });
        if undefined {
            self.global_validity(at, access);
        }
    }

    /// A contiguous access to global memory.
    pub fn global_range(&mut self, at: At, address: u64, bytes: u64, kind: Kind, proxy: Proxy) {
        self.global_one(at, address, bytes, How::new(kind, proxy));
    }

    fn global_one(&mut self, at: At, address: u64, bytes: u64, how: How) {
        let How { kind, proxy, .. } = how;
        let space = Space::Global;
        if kind.writes() {
            self.defines(at, address, bytes, kind);
        }
        if self.between.is_some() && self.numbering.number(at.agent.0).is_none() {
            return;
        }
        if kind == Kind::Sum {
            self.order_of_sums(at, address, bytes, proxy);
        }
        if !kind.writes() {
            self.read(at, space, address, bytes, how);
        } else {
            let hits = self.write(at, space, address, bytes, how);
            if kind == Kind::Write {
                // SAFETY: the range was tested before.
                let before =
                    unsafe { std::slice::from_raw_parts(address as *const u8, bytes as usize) };
                self.keep_write(at, space, address, before, proxy, hits);
                return;
            }
        }
        if self.between.is_none() {
            self.log.add(address, bytes, kind, at.pc, how.inside);
        }
    }

    /// Notes that floats are added at an address where another agent's atomic is not ordered before.
    fn order_of_sums(&mut self, at: At, address: u64, bytes: u64, proxy: Proxy) {
        let space = Space::Global;
        let (shadow, new, order) = self.access(at, space, How::new(Kind::Sum, proxy));
        let Some((address, earlier)) = shadow.unordered_atomic(address, bytes, new, &order) else {
            return;
        };
        let earlier_who = self.past_name(space, earlier.agent);
        let message = format!(
            "{} adds floats at global address {address:#x}, as {earlier_who} does: the sum depends on their order",
            self.name_beside(at.agent, space, earlier.agent)
        );
        let other = self.past_site(&earlier, space, "adds");
        self.report(FindingKind::OrderDependentSum, at, message, vec![other]);
    }

    /// Remembers what lies where a write is about to go, until [`Checker::settle`].
    fn keep_write(
        &mut self,
        at: At,
        space: Space,
        address: u64,
        before: &[u8],
        proxy: Proxy,
        hits: std::ops::Range<usize>,
    ) {
        let start = self.overwritten.len();
        self.overwritten.extend_from_slice(before);
        self.unsettled.push(Unsettled {
            at,
            space,
            proxy,
            address,
            memory: before.as_ptr(),
            kept: start..start + before.len(),
            hits,
        });
    }

    /// The writes announced so far have been done: logs those to global memory, and reports those that conflict with an earlier write,
    /// unless they left every byte as it was. (Unordered writes of one value do not show in any result; programs rely on it, and
    /// compute-sanitizer does not report them either.)
    #[inline]
    pub fn settle(&mut self) {
        if !self.unsettled.is_empty() {
            self.settle_all();
        }
    }

    fn settle_all(&mut self) {
        let kept = std::mem::take(&mut self.overwritten);
        let hits = std::mem::take(&mut self.hits);
        let mut list = std::mem::take(&mut self.unsettled);
        for u in list.drain(..) {
            let before = &kept[u.kept];
            // SAFETY: memory that the write was tested to lie in; this cluster runs on this thread.
            let after = unsafe { std::slice::from_raw_parts(u.memory, before.len()) };
            if u.space == Space::Global && self.between.is_none() {
                self.log.add_write(u.address, before, after, u.at.pc);
            }
            let seen = hits[u.hits].iter().find_map(|h| {
                if !matches!(
                    h.conflict,
                    Conflict::Race {
                        earlier_writes: true,
                        ..
                    }
                ) {
                    return Some((h.address, h.conflict));
                }
                let first = (h.address - u.address) as usize;
                let changed = (first..first + h.bytes as usize).find(|&i| before[i] != after[i])?;
                let word = (u.address + changed as u64) & !3;
                Some((word.max(h.address), h.conflict))
            });
            if let Some((address, conflict)) = seen {
                self.conflict(u.at, u.space, address, Kind::Write, u.proxy, conflict);
            }
        }
        (self.overwritten, self.hits, self.unsettled) = (kept, hits, list);
        self.overwritten.clear();
        self.hits.clear();
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

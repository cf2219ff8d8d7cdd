//! The mbarrier object: counts, phases, and what can go wrong with them.
//!
//! An mbarrier is 8 opaque bytes of shared memory with an expected arrival count, the arrivals still pending in the
//! current phase, a transaction count in bytes, and the phase. The phase completes when no arrival is pending and the
//! transaction count is zero; then pending := expected and the next phase begins.
//!
//! Hardware keeps one bit of the phase, so a waiter that is two phases late cannot be told from one that is on time.
//! Here the phase is a 64-bit counter in a table beside the shared memory; the 8 bytes hold the other fields and the
//! low bits of the phase, so that a program that overwrites, zeroes or copies them gets what it would get on a device:
//! when the bytes are no longer what the table expects, the object is read back from them (and reported).
//!
//! Misuse is collected in [`Mbarrier::misuse`] by the operations themselves and turned into findings by [`apply`],
//! the only way by which the rest of the emulator touches an object. When checks are off, misuse has the effect of
//! plain modular arithmetic on the fields: usually a barrier that never completes, as on the device.

use super::address::Shared;
use crate::check::{At, FindingKind, SiteRef, Sync};
use crate::exec::{Cluster, SHARED_BASE};

/// ISA: "Contents of the mbarrier object": counts are below 2^20, the transaction count within +-(2^20 - 1).
pub(super) const MAX_COUNT: u32 = (1 << 20) - 1;
const FIELD: u64 = MAX_COUNT as u64;
const TX_MASK: u64 = (1 << 21) - 1;
const VALID: u64 = 1 << 63;

/// Expectations and deliveries of the current phase, kept for reports when checks are on.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Transfer {
    at: At,
    bytes: i64,
}

#[derive(Debug, Clone)]
pub struct Mbarrier {
    /// Offset in its CTA.
    pub address: u32,
    /// Completed phases since init.
    pub phase: u64,
    pub expected: u32,
    pub pending: u32,
    /// Bytes announced and not delivered yet; negative when delivered before they were announced.
    pub tx: i64,
    transfers: Vec<Transfer>,
    /// Agents that have waited (with checks), and the latest phase that each saw complete.
    waiters: Vec<(u32, u64)>,
    /// The bytes last written to shared memory.
    bytes: u64,
    misuse: Option<String>,
}

impl Mbarrier {
    pub fn new(address: u32, count: u32) -> Self {
        Self {
            address,
            phase: 0,
            expected: count & MAX_COUNT,
            pending: count & MAX_COUNT,
            tx: 0,
            transfers: Vec::new(),
            waiters: Vec::new(),
            bytes: 0,
            misuse: (count == 0 || count > MAX_COUNT)
                .then(|| format!("initialised with the count {count}, not 1..={MAX_COUNT}")),
        }
    }

    /// The 8 bytes: pending 0..20, expected 20..40, transaction count 40..61 (two's complement), phase modulo 4 61..63,
    /// bit 63 set.
    fn encode(&self) -> u64 {
        u64::from(self.pending)
            | u64::from(self.expected) << 20
            | (self.tx as u64 & TX_MASK) << 40
            | (self.phase & 3) << 61
            | VALID
    }

    fn decode(address: u32, bytes: u64) -> Self {
        let tx = (bytes >> 40 & TX_MASK) as i64;
        Self {
            address,
            phase: bytes >> 61 & 3,
            expected: (bytes >> 20 & FIELD) as u32,
            pending: (bytes & FIELD) as u32,
            tx: if tx >> 20 == 0 { tx } else { tx - (1 << 21) },
            transfers: Vec::new(),
            waiters: Vec::new(),
            bytes,
            misuse: None,
        }
    }

    /// The state an arrival returns: pending count 0..20, phase from bit 20 on.
    pub fn token(&self) -> u64 {
        u64::from(self.pending) | self.phase << 20
    }

    /// Pending count in a token.
    pub fn token_pending(token: u64) -> u32 {
        (token & FIELD) as u32
    }

    /// Has the phase completed in which `token` was made? Like a device this looks at one bit only; see
    /// [`Mbarrier::token_age`] for tokens of long ago.
    pub fn token_complete(&self, token: u64) -> bool {
        self.parity_complete((token >> 20 & 1) as u32)
    }

    /// Completed phases between the token's and the current one.
    pub fn token_age(&self, token: u64) -> u64 {
        (self.phase.wrapping_sub(token >> 20)) & ((1 << 44) - 1)
    }

    /// True iff the current phase has the other parity, that is the latest phase of this parity has completed.
    pub fn parity_complete(&self, parity: u32) -> bool {
        self.phase & 1 != u64::from(parity & 1)
    }

    /// `agent` has seen the phase before the current one complete.
    pub fn saw(&mut self, agent: u32) {
        let Some(phase) = self.phase.checked_sub(1) else {
            return;
        };
        match self.waiters.iter_mut().find(|w| w.0 == agent) {
            Some(w) => w.1 = phase,
            None => self.waiters.push((agent, phase)),
        }
    }

    /// The latest phase that `agent` has seen complete.
    pub fn last_seen(&self, agent: u32) -> Option<u64> {
        self.waiters.iter().find(|w| w.0 == agent).map(|w| w.1)
    }

    fn note(&mut self, what: String) {
        self.misuse.get_or_insert(what);
    }

    pub fn arrive(&mut self, count: u32, drop: bool) {
        if count == 0 || count > MAX_COUNT {
            self.note(format!(
                "arrival with the count {count}, not 1..={MAX_COUNT}"
            ));
        }
        if drop {
            if count > self.expected {
                self.note(format!(
                    "arrive_drop of {count} where {} are expected",
                    self.expected
                ));
            }
            self.expected = self.expected.wrapping_sub(count) & MAX_COUNT;
        }
        if count > self.pending {
            self.note(format!(
                "more arrivals than its count: {count} arrive in phase {}, {} of {} pending",
                self.phase, self.pending, self.expected
            ));
        }
        self.pending = self.pending.wrapping_sub(count) & MAX_COUNT;
        if self.pending == 0 && self.tx < 0 {
            self.note(format!(
                "the last arrival of phase {} leaves {} bytes that were delivered but never expected",
                self.phase, -self.tx
            ));
        }
    }

    /// cp.async.mbarrier.arrive without .noinc counts its later arrival in at once.
    pub fn increment(&mut self) {
        if self.pending == MAX_COUNT {
            self.note(format!("pending count beyond {MAX_COUNT}"));
        }
        self.pending = self.pending.wrapping_add(1) & MAX_COUNT;
    }

    pub fn expect(&mut self, bytes: u32, at: At, log: bool) {
        if self.pending == 0 && self.expected != 0 {
            self.note(format!(
                "expect_tx of {bytes} bytes when phase {} could already complete: no arrival is pending",
                self.phase
            ));
        }
        self.transfer(i64::from(bytes), at, log);
    }

    pub fn deliver(&mut self, bytes: u32, at: At, log: bool) {
        self.transfer(-i64::from(bytes), at, log);
        if self.pending == 0 && self.tx < 0 {
            self.note(format!(
                "{} bytes more delivered than expected in phase {}",
                -self.tx, self.phase
            ));
        }
    }

    fn transfer(&mut self, bytes: i64, at: At, log: bool) {
        self.tx += bytes;
        if log {
            self.transfers.push(Transfer { at, bytes });
        }
        if self.tx.abs() > i64::from(MAX_COUNT) {
            self.note(format!(
                "transaction count {} is outside of +-{MAX_COUNT} bytes",
                self.tx
            ));
        }
    }

    /// Completes the phase if nothing is missing any more.
    fn complete(&mut self) -> bool {
        if self.pending != 0 || self.tx != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.expected;
        self.transfers.clear();
        true
    }

    /// State in words, for reports and the wait-for table.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "phase {} (parity {}), {} of {} arrivals missing, {} bytes outstanding",
            self.phase,
            self.phase & 1,
            self.pending,
            self.expected,
            self.tx
        );
        let sum = |sign: i64| -> (usize, i64) {
            let of = self.transfers.iter().filter(|t| t.bytes.signum() == sign);
            (of.clone().count(), of.map(|t| t.bytes.abs()).sum())
        };
        if !self.transfers.is_empty() {
            let ((expects, expected), (copies, delivered)) = (sum(1), sum(-1));
            text += &format!(
                " ({expected} expected by {expects} operations, {delivered} delivered by {copies})"
            );
        }
        text
    }

    /// The operations that expected or delivered bytes in the current phase.
    pub(super) fn transfer_sites(&self, name: impl Fn(At) -> String) -> Vec<SiteRef> {
        self.transfers
            .iter()
            .map(|t| SiteRef {
                pc: t.at.pc,
                who: name(t.at),
                role: if t.bytes > 0 {
                    format!("expects {} bytes", t.bytes)
                } else {
                    format!("delivers {} bytes", -t.bytes)
                },
            })
            .collect()
    }
}

/// The objects of one CTA, by address.
#[derive(Debug, Default)]
pub struct Barriers {
    objects: Vec<Mbarrier>,
}

impl Barriers {
    fn search(&self, address: u32) -> Result<usize, usize> {
        self.objects.binary_search_by_key(&address, |b| b.address)
    }

    pub fn get(&self, address: u32) -> Option<&Mbarrier> {
        self.search(address).ok().map(|i| &self.objects[i])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mbarrier> {
        self.objects.iter()
    }
}

fn read_bytes(cluster: &Cluster, s: Shared) -> u64 {
    let from = (s.address - SHARED_BASE) as usize;
    let mut word = [0u8; 8];
    word.copy_from_slice(&cluster.ctas[s.cta as usize].shared.as_slice()[from..from + 8]);
    u64::from_le_bytes(word)
}

fn write_bytes(cluster: &mut Cluster, s: Shared, bytes: u64) {
    let from = (s.address - SHARED_BASE) as usize;
    cluster.ctas[s.cta as usize].shared.as_mut_slice()[from..from + 8]
        .copy_from_slice(&bytes.to_le_bytes());
}

fn report(cluster: &mut Cluster, s: Shared, at: At, what: &str, sites: Vec<SiteRef>) {
    if let Some(check) = &mut cluster.check {
        check.report(
            FindingKind::MbarrierMisuse,
            at,
            format!(
                "mbarrier at shared address {:#x} of CTA {}: {what}",
                s.address, s.cta
            ),
            sites,
        );
    }
}

pub(super) fn sync_of(s: Shared) -> Sync {
    Sync::Mbarrier {
        cta: s.cta,
        address: s.address,
    }
}

/// mbarrier.init.
pub(super) fn init(cluster: &mut Cluster, s: Shared, count: u32, at: At) {
    let bytes = read_bytes(cluster, s);
    let barriers = cluster.asynchronous.barriers(s.cta);
    let found = barriers.search(s.address);
    let mut misuse = None;
    if let Ok(i) = found {
        let old = barriers.objects.remove(i);
        misuse = Some(if old.bytes == bytes {
            format!(
                "initialised while a live object is there ({}): mbarrier.inval is missing",
                old.describe()
            )
        } else {
            "its memory was used for something else without mbarrier.inval".to_owned()
        });
    }
    let mut b = Mbarrier::new(s.address, count);
    misuse = b.misuse.take().or(misuse);
    b.bytes = b.encode();
    write_bytes(cluster, s, b.bytes);
    let barriers = cluster.asynchronous.barriers(s.cta);
    let at_index = barriers.search(s.address).unwrap_or_else(|i| i);
    barriers.objects.insert(at_index, b);
    cluster.progress += 1;
    if let Some(trace) = &mut cluster.trace {
        trace.barrier_made(s.cta, s.address);
    }
    if let Some(check) = &mut cluster.check {
        check.forget(sync_of(s));
        check.barrier_initialised(s.cta, s.address, at);
    }
    if let Some(what) = misuse {
        report(cluster, s, at, &what, Vec::new());
    }
}

/// mbarrier.inval.
pub(super) fn invalidate(cluster: &mut Cluster, s: Shared, at: At) {
    let barriers = cluster.asynchronous.barriers(s.cta);
    match barriers.search(s.address) {
        Ok(i) => {
            let old = barriers.objects.remove(i);
            // The bytes stop being an object; what they hold afterwards is undefined.
            write_bytes(cluster, s, old.bytes & !VALID);
            if old.tx != 0 {
                let sites = names(cluster, &old);
                report(
                    cluster,
                    s,
                    at,
                    &format!("invalidated in the middle of a phase: {}", old.describe()),
                    sites,
                );
            }
        }
        Err(_) => report(
            cluster,
            s,
            at,
            "mbarrier.inval where no object is",
            Vec::new(),
        ),
    }
    cluster.progress += 1;
}

fn names(cluster: &Cluster, b: &Mbarrier) -> Vec<SiteRef> {
    match &cluster.check {
        Some(check) => b.transfer_sites(|at| check.name(at.agent)),
        None => Vec::new(),
    }
}

/// Finds the object at `s`, as the bytes have it.
fn locate(cluster: &mut Cluster, s: Shared, at: At) -> &mut Mbarrier {
    let bytes = read_bytes(cluster, s);
    let found = cluster.asynchronous.barriers(s.cta).search(s.address);
    let index = match found {
        Ok(i) if cluster.asynchronous.barriers(s.cta).objects[i].bytes == bytes => i,
        Ok(i) => {
            report(
                cluster,
                s,
                at,
                "its 8 bytes were overwritten by something that is not an mbarrier operation",
                Vec::new(),
            );
            cluster.asynchronous.barriers(s.cta).objects[i] = Mbarrier::decode(s.address, bytes);
            i
        }
        Err(i) => {
            report(
                cluster,
                s,
                at,
                "used before mbarrier.init (or after mbarrier.inval)",
                Vec::new(),
            );
            cluster
                .asynchronous
                .barriers(s.cta)
                .objects
                .insert(i, Mbarrier::decode(s.address, bytes));
            i
        }
    };
    &mut cluster.asynchronous.barriers(s.cta).objects[index]
}

/// Looks at the object at `s` without changing its state.
pub(super) fn observe<T>(
    cluster: &mut Cluster,
    s: Shared,
    at: At,
    f: impl FnOnce(&mut Mbarrier) -> T,
) -> T {
    f(locate(cluster, s, at))
}

/// Changes the object at `s`, completes its phase if that is due, and reports misuse. True: the phase completed.
pub(super) fn apply<T>(
    cluster: &mut Cluster,
    s: Shared,
    at: At,
    f: impl FnOnce(&mut Mbarrier) -> T,
) -> (T, bool) {
    if cluster.ctas[s.cta as usize].exited
        && let Some(check) = &mut cluster.check
    {
        check.report(
            FindingKind::ClusterLifetime,
            at,
            format!(
                "operation on the mbarrier at shared address {:#x} of CTA {}, which has exited",
                s.address, s.cta
            ),
            Vec::new(),
        );
    }
    let b = locate(cluster, s, at);
    let value = f(b);
    let misuse = b.misuse.take().map(|what| (what, b.clone()));
    let phase = b.phase;
    let completed = b.complete();
    let bytes = b.encode();
    b.bytes = bytes;
    write_bytes(cluster, s, bytes);
    if let Some((what, object)) = misuse {
        let sites = names(cluster, &object);
        report(cluster, s, at, &what, sites);
    }
    if completed {
        if let Some(check) = &mut cluster.check {
            check.advance(sync_of(s));
        }
        if let Some(trace) = &mut cluster.trace {
            trace.phase_completed(s.cta, s.address, phase, at.pc);
        }
    }
    cluster.progress += 1;
    (value, completed)
}

/// Reports objects of an exiting CTA that still have bytes outstanding.
pub(super) fn check_exit(cluster: &mut Cluster, cta: u32, at: At) {
    if cluster.check.is_none() {
        return;
    }
    let open: Vec<Mbarrier> = cluster
        .asynchronous
        .barriers(cta)
        .objects
        .iter()
        .filter(|b| b.tx != 0)
        .cloned()
        .collect();
    for b in open {
        let s = Shared {
            cta,
            address: b.address,
        };
        let sites = names(cluster, &b);
        report(
            cluster,
            s,
            at,
            &format!(
                "its CTA exits with transactions outstanding: {}",
                b.describe()
            ),
            sites,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Agent;

    const AT: At = At {
        agent: Agent(0),
        pc: 0,
    };

    #[test]
    fn a_phase_needs_all_arrivals_and_all_bytes() {
        let mut b = Mbarrier::new(0x400, 2);
        assert!(b.parity_complete(1) && !b.parity_complete(0));
        b.expect(64, AT, true);
        b.arrive(1, false);
        assert!(!b.complete());
        b.deliver(64, AT, true);
        assert!(!b.complete());
        b.arrive(1, false);
        assert!(b.complete());
        assert_eq!((b.phase, b.pending, b.tx), (1, 2, 0));
        assert!(b.parity_complete(0) && !b.parity_complete(1));
        assert!(b.misuse.is_none());
    }

    #[test]
    fn bytes_may_arrive_before_they_are_expected() {
        let mut b = Mbarrier::new(0x400, 1);
        b.deliver(128, AT, true);
        assert!(!b.complete());
        assert_eq!(b.tx, -128);
        b.expect(128, AT, true);
        b.arrive(1, false);
        assert!(b.complete() && b.misuse.is_none());
    }

    #[test]
    fn misuse_is_noted() {
        let text = |f: fn(&mut Mbarrier)| {
            let mut b = Mbarrier::new(0x400, 1);
            f(&mut b);
            b.misuse.unwrap_or_default()
        };
        assert!(text(|b| b.arrive(2, false)).contains("more arrivals"));
        assert!(text(|b| b.arrive(0, false)).contains("count 0"));
        assert!(
            text(|b| {
                b.expect(16, AT, true);
                b.arrive(1, false);
                b.expect(16, AT, true);
            })
            .contains("could already complete")
        );
        assert!(text(|b| b.expect(1 << 20, AT, true)).contains("outside"));
        assert!(
            text(|b| {
                b.expect(16, AT, true);
                b.arrive(1, false);
                b.deliver(32, AT, true);
            })
            .contains("16 bytes more delivered")
        );
        assert!(Mbarrier::new(0, 0).misuse.is_some() && Mbarrier::new(0, 1 << 20).misuse.is_some());
    }

    #[test]
    fn the_bytes_hold_the_object() {
        for tx in [0, 1, -1, i64::from(MAX_COUNT), -i64::from(MAX_COUNT)] {
            let mut b = Mbarrier::new(0x408, 77);
            b.pending = 5;
            b.tx = tx;
            b.phase = 6;
            let d = Mbarrier::decode(0x408, b.encode());
            assert_eq!(
                (d.pending, d.expected, d.tx, d.phase),
                (5, 77, tx, 2),
                "tx {tx}"
            );
        }
    }

    #[test]
    fn a_dropped_participant_is_not_expected_again() {
        let mut b = Mbarrier::new(0x400, 3);
        b.arrive(1, true);
        b.arrive(2, false);
        assert!(b.complete());
        assert_eq!((b.expected, b.pending), (2, 2));
    }

    #[test]
    fn a_token_names_its_phase() {
        let mut b = Mbarrier::new(0x400, 1);
        let t = b.token();
        assert_eq!(Mbarrier::token_pending(t), 1);
        assert!(!b.token_complete(t));
        b.arrive(1, false);
        b.complete();
        assert!(b.token_complete(t));
        assert_eq!(b.token_age(t), 1);
    }
}

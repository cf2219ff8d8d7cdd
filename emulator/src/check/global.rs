//! Races between clusters in global memory.
//!
//! Nothing orders two clusters of one launch except atomics and acquire/release accesses. The clusters of a kernel that uses those run
//! interleaved and share a shadow of global memory ([`between`](super::between)). For every other kernel the clusters run independently;
//! each keeps a log of the ranges it read and wrote, and after the launch overlapping ranges of different clusters, at least one
//! of them written, are races. The log merges neighbouring accesses of one instruction, so it stays short for streaming kernels.
//!
//! Writes of equal values are no race to report: whoever comes last, the result is the same, and programs do it on purpose (`*changed = true`
//! from everywhere). For single small writes the log holds the value; of larger ones it knows whether they changed any byte, so that of two
//! clusters that write the same array the later is recognised. (A write that finds its own value there by chance hides a race from this
//! schedule, as the order of clusters may.)

use super::{Finding, FindingKind, Kind, SiteRef};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub pc: u32,
    pub write: bool,
    /// Of atomics, which do not conflict with each other.
    pub atomic: bool,
    /// The write left every byte as it was.
    pub idle: bool,
    /// The value written, if the range is of a single write.
    pub value: Option<u128>,
}

impl Range {
    /// Do they conflict, where they overlap?
    fn conflicts(&self, other: &Range) -> bool {
        (self.write || other.write)
            && !(self.atomic && other.atomic)
            && !self.writes_the_same(other)
    }

    fn verb(&self) -> &'static str {
        match (self.write, self.atomic) {
            (false, _) => "reads",
            (true, false) => "writes",
            (true, true) => "updates",
        }
    }

    /// Do both write, and the same? Then nobody can tell who came last.
    fn writes_the_same(&self, other: &Range) -> bool {
        let same_value = self.value.is_some()
            && self.value == other.value
            && (self.start, self.end) == (other.start, other.end);
        self.write && other.write && (self.idle || other.idle || same_value)
    }
}

/// Global accesses of one cluster.
#[derive(Debug, Default, Clone)]
pub struct GlobalLog {
    pub accesses: Ranges,
}

impl GlobalLog {
    /// `inside`: strong, and of a scope that ends at the cluster: to another cluster it is no atomic.
    pub fn add(&mut self, address: u64, bytes: u64, kind: Kind, pc: u32, inside: bool) {
        self.accesses.add(Range {
            start: address,
            end: address + bytes,
            pc,
            write: kind.writes(),
            atomic: kind.is_strong() && !inside,
            idle: false,
            value: None,
        });
    }

    /// A write of `after` over `before`.
    pub fn add_write(&mut self, address: u64, before: &[u8], after: &[u8], pc: u32) {
        let mut value = [0; 16];
        let small = after.len() <= 16;
        if small {
            value[..after.len()].copy_from_slice(after);
        }
        self.accesses.add(Range {
            start: address,
            end: address + after.len() as u64,
            pc,
            write: true,
            atomic: false,
            idle: before == after,
            value: small.then(|| u128::from_le_bytes(value)),
        });
    }
}

/// A list of ranges in which neighbouring accesses of one instruction are one.
#[derive(Debug, Default, Clone)]
pub struct Ranges {
    pub list: Vec<Range>,
    /// Length at which the list is compacted next.
    limit: usize,
    /// Where the last range of an instruction was put, by the low bits of its pc.
    recent: [u32; 16],
}

impl Range {
    /// Takes in another access of the same instruction that overlaps or follows.
    #[inline(always)]
    fn extend(&mut self, new: &Range) -> bool {
        let fits = self.pc == new.pc
            && (self.write, self.atomic, self.idle) == (new.write, new.atomic, new.idle)
            && new.start <= self.end
            && new.end >= self.start;
        if fits {
            if (self.start, self.end, self.value) != (new.start, new.end, new.value) {
                self.value = None;
            }
            self.start = self.start.min(new.start);
            self.end = self.end.max(new.end);
        }
        fits
    }
}

impl Ranges {
    fn add(&mut self, new: Range) {
        let slot = new.pc as usize % self.recent.len();
        if let Some(r) = self.list.get_mut(self.recent[slot] as usize)
            && r.extend(&new)
        {
            return;
        }
        let near = self.list.len().saturating_sub(8);
        if let Some(i) = (near..self.list.len())
            .rev()
            .find(|&i| self.list[i].extend(&new))
        {
            self.recent[slot] = i as u32;
            return;
        }
        self.recent[slot] = self.list.len() as u32;
        self.list.push(new);
        if self.list.len() > self.limit.max(4096) {
            self.compact();
            self.limit = self.list.len() * 2;
        }
    }

    /// Sorts by instruction and merges touching ranges. The sort is one that knows sorted runs, of which the list is made.
    fn compact(&mut self) {
        self.list
            .sort_by_key(|r| (r.pc, r.write, r.atomic, r.idle, r.start, r.end, r.value));
        let mut out: Vec<Range> = Vec::with_capacity(self.list.len());
        for r in &self.list {
            if !out.last_mut().is_some_and(|l| l.extend(r)) {
                out.push(*r);
            }
        }
        self.list = out;
    }
}

/// Races between clusters: overlaps of their accesses, at least one of them a write and not both atomics. `logs` holds (cluster, log). One
/// finding per pair of instructions.
pub fn races(kernel: &str, logs: &mut [(u32, GlobalLog)]) -> Vec<Finding> {
    let mut all: Vec<(Range, u32)> = Vec::new();
    for (cluster, log) in logs.iter_mut() {
        log.accesses.compact();
        all.extend(log.accesses.list.iter().map(|r| (*r, *cluster)));
    }
    all.sort_by_key(|(r, c)| (r.start, r.end, r.pc, *c));
    let mut findings: Vec<Finding> = Vec::new();
    // Written ranges that may still overlap what follows, and for reads the same.
    let mut written: Vec<(Range, u32)> = Vec::new();
    let mut read: Vec<(Range, u32)> = Vec::new();
    for (r, cluster) in all {
        written.retain(|(o, _)| o.end > r.start);
        read.retain(|(o, _)| o.end > r.start);
        let earlier = written
            .iter()
            .chain(if r.write { read.as_slice() } else { &[] });
        for (o, other) in earlier {
            let known = |f: &Finding| f.sites[0].pc == r.pc && f.sites[1].pc == o.pc;
            if *other != cluster
                && r.conflicts(o)
                && findings.len() < 50
                && !findings.iter().any(known)
            {
                findings.push(race(kernel, (&r, cluster), (o, *other)));
            }
        }
        if r.write {
            written.push((r, cluster))
        } else {
            read.push((r, cluster))
        }
    }
    findings
}

fn race(kernel: &str, (r, cluster): (&Range, u32), (o, other): (&Range, u32)) -> Finding {
    let site = |r: &Range, cluster: u32| SiteRef {
        pc: r.pc,
        who: format!("cluster {cluster}"),
        role: r.verb().into(),
    };
    Finding {
        kind: FindingKind::GlobalRace,
        kernel: kernel.to_string(),
        message: format!(
            "cluster {cluster} {} global address {:#x}, which cluster {other} {}, and nothing orders clusters of one launch",
            r.verb(),
            r.start,
            o.verb()
        ),
        sites: vec![site(r, cluster), site(o, other)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(ranges: &[(u64, u64, Kind, u32)]) -> GlobalLog {
        let mut l = GlobalLog::default();
        for &(a, n, k, pc) in ranges {
            l.add(a, n, k, pc, false);
        }
        l
    }

    #[test]
    fn neighbouring_accesses_of_one_instruction_are_one_range() {
        let l = log(&[
            (0, 16, Kind::Write, 1),
            (16, 16, Kind::Write, 1),
            (32, 16, Kind::Read, 2),
            (48, 16, Kind::Write, 1),
        ]);
        assert_eq!(l.accesses.list.len(), 3);
    }

    #[test]
    fn clusters_that_write_the_same_are_not_reported() {
        let one = |before: &[u8], after: &[u8]| {
            let mut l = GlobalLog::default();
            l.add_write(8, before, after, 1);
            l.add_write(8, after, after, 1);
            l
        };
        // A flag that both set: both found it unset, or the second found it set.
        let (unset, set) = ([0u8; 4], [1u8; 4]);
        for before in [unset, set] {
            let mut logs = vec![(0, one(&unset, &set)), (1, one(&before, &set))];
            assert!(races("k", &mut logs).is_empty());
        }
        let mut logs = vec![(0, one(&unset, &set)), (1, one(&set, &[2; 4]))];
        assert_eq!(races("k", &mut logs).len(), 1);
        // An array that both write; one element of it differs.
        let (zero, mut other) = ([0u8; 64], [1u8; 64]);
        let mut logs = vec![(0, one(&zero, &other)), (1, one(&other, &other))];
        assert!(races("k", &mut logs).is_empty());
        let was = other;
        other[3] = 9;
        let mut logs = vec![(0, one(&zero, &was)), (1, one(&was, &other))];
        assert_eq!(races("k", &mut logs).len(), 1);
    }

    #[test]
    fn overlapping_writes_of_two_clusters_are_found_and_reads_are_not() {
        let mut logs = vec![
            (0, log(&[(0, 64, Kind::Write, 1)])),
            (1, log(&[(60, 64, Kind::Write, 1)])),
        ];
        let f = races("k", &mut logs);
        assert_eq!(f.len(), 1);
        assert!(f[0].message.contains("0x3c"), "{}", f[0].message);
        let mut logs = vec![
            (0, log(&[(0, 64, Kind::Read, 1)])),
            (1, log(&[(0, 64, Kind::Read, 1), (64, 4, Kind::Write, 2)])),
        ];
        assert!(races("k", &mut logs).is_empty());
        let mut logs = vec![
            (0, log(&[(0, 64, Kind::Read, 1)])),
            (1, log(&[(0, 4, Kind::Write, 2)])),
        ];
        assert_eq!(races("k", &mut logs).len(), 1);
        let mut logs = vec![(0, log(&[(0, 64, Kind::Write, 1), (0, 64, Kind::Read, 2)]))];
        assert!(races("k", &mut logs).is_empty());
        // Atomics conflict with plain accesses, and not with each other.
        for (kind, found) in [(Kind::Atomic, 0), (Kind::Read, 1), (Kind::Write, 1)] {
            let mut logs = vec![
                (0, log(&[(0, 64, Kind::Atomic, 1)])),
                (1, log(&[(32, 4, kind, 2)])),
            ];
            assert_eq!(races("k", &mut logs).len(), found, "{kind:?}");
        }
        // Those whose scope ends at the cluster do with those of another.
        let mut narrow = GlobalLog::default();
        narrow.add(0, 4, Kind::Atomic, 2, true);
        let mut logs = vec![(0, log(&[(0, 64, Kind::Atomic, 1)])), (1, narrow)];
        assert_eq!(races("k", &mut logs).len(), 1);
    }
}

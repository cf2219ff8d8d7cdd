//! The counts of one launch as they are written to JSON and read back by `emu report`.
//!
//! Every number is a count at the level of PTX; `what` says so in the file itself.

use super::{Count, Counters, LINE, class_name};
use crate::device::LaunchConfig;
use crate::program::{Program, Site};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the numbers are.
pub const WHAT: &str = "counts of the emulator at PTX level; not times";

/// One launch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub kernel: String,
    pub what: String,
    /// Number of the launch on its device, from 1.
    pub launch: u64,
    pub device: u32,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
    /// `ok`, or why the launch failed: its counts go as far as it came.
    pub outcome: String,
    /// Operations of warps, and of threads.
    pub operations: u64,
    pub thread_instructions: u64,
    pub total: Count,
    /// Operations executed while the warp had diverged.
    pub divergent: u64,
    /// Global memory touched at least once, in lines of 128 bytes.
    pub distinct_bytes_read: u64,
    pub distinct_bytes_written: u64,
    /// Bytes of bulk and tensor copies.
    pub tma_bytes: u64,
    /// Thread-operations of the special-function unit.
    pub mufu: u64,
    /// Operations of warps on barriers, and how many of them had to wait.
    pub barriers: u64,
    pub barrier_waits: u64,
    pub wgmma: Vec<Wgmma>,
    pub by_class: BTreeMap<String, Count>,
    pub by_opcode: BTreeMap<String, Count>,
    /// By warpgroup: with warp specialisation these are producer and consumers.
    pub roles: Vec<Role>,
    /// Per source line, in order of file and line; empty without debug information.
    pub lines: Vec<Line>,
    /// Per line of the PTX text.
    pub ptx: Vec<PtxLine>,
}

/// wgmma of one spelling.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wgmma {
    pub opcode: String,
    /// Operations of whole warpgroups.
    pub operations: u64,
    pub flops: u64,
    /// Cycles of one SM's tensor cores at their peak rate: N/2 for each m64nN.
    pub cycles_at_peak: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Role {
    pub total: Count,
    pub by_class: BTreeMap<String, Count>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub file: String,
    pub line: u32,
    #[serde(flatten)]
    pub count: Count,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PtxLine {
    pub line: u32,
    pub opcode: String,
    #[serde(flatten)]
    pub count: Count,
}

/// Was this operation made by lowering and is not in the text?
fn is_instruction(site: &Site) -> bool {
    !site.opcode.contains(' ')
}

/// Columns of `wgmma.….m64nNk…`.
fn columns(opcode: &str) -> Option<u64> {
    let shape = opcode.split('.').find_map(|m| m.strip_prefix("m64n"))?;
    shape.split('k').next()?.parse().ok()
}

impl Record {
    /// The counts of a launch.
    pub fn new(program: &Program, config: &LaunchConfig, counters: &Counters) -> Self {
        let mut r = Record {
            kernel: program.name.clone(),
            what: WHAT.into(),
            outcome: "ok".into(),
            grid: config.grid,
            block: config.block,
            cluster: config.cluster,
            dynamic_shared: config.dynamic_shared,
            divergent: counters.divergent,
            distinct_bytes_read: counters.read_lines.len() as u64 * LINE,
            distinct_bytes_written: counters.written_lines.len() as u64 * LINE,
            ..Record::default()
        };
        let mut lines: BTreeMap<(u32, u32), Count> = BTreeMap::new();
        let mut ptx: BTreeMap<u32, (String, Count)> = BTreeMap::new();
        for counts in &counters.roles {
            let mut role = Role::default();
            for (pc, c) in counts.iter().enumerate() {
                if *c == Count::default() {
                    continue;
                }
                let (site, class) = (&program.sites[pc], class_name(program.ops[pc].class));
                role.total.add(c);
                role.by_class.entry(class.into()).or_default().add(c);
                r.by_class.entry(class.into()).or_default().add(c);
                if !is_instruction(site) {
                    continue;
                }
                let opcode = site.opcode.to_string();
                r.by_opcode.entry(opcode.clone()).or_default().add(c);
                if let Some(loc) = &site.loc {
                    lines.entry((loc.file, loc.line)).or_default().add(c);
                }
                ptx.entry(site.line)
                    .or_insert_with(|| (opcode, Count::default()))
                    .1
                    .add(c);
            }
            r.total.add(&role.total);
            r.roles.push(role);
        }
        r.operations = r.total.warps;
        r.thread_instructions = r.total.lanes;
        let class = |name: &str| r.by_class.get(name).copied().unwrap_or_default();
        (r.mufu, r.barriers, r.barrier_waits) = (
            class("mufu").lanes,
            class("barrier").warps + class("mbarrier").warps,
            class("barrier").waits + class("mbarrier").waits,
        );
        for (opcode, c) in &r.by_opcode {
            if opcode.starts_with("cp.async.bulk") || opcode.starts_with("cp.reduce.async.bulk") {
                r.tma_bytes += c.bytes;
            }
            if let Some(n) = columns(opcode).filter(|_| opcode.starts_with("wgmma.mma_async")) {
                r.wgmma.push(Wgmma {
                    opcode: opcode.clone(),
                    operations: c.warps / 4,
                    flops: c.tensor_flops,
                    cycles_at_peak: c.warps / 4 * n / 2,
                });
            }
        }
        let file = |n: u32| {
            let path = program.files.iter().find(|f| f.0 == n);
            path.map_or_else(|| "?".to_owned(), |f| f.1.clone())
        };
        r.lines = lines
            .into_iter()
            .map(|((n, line), count)| Line {
                file: file(n),
                line,
                count,
            })
            .collect();
        r.ptx = ptx
            .into_iter()
            .map(|(line, (opcode, count))| PtxLine {
                line,
                opcode,
                count,
            })
            .collect();
        r
    }

    /// Adds the counts of another launch of the same kernel.
    pub fn add(&mut self, o: &Record) {
        for (to, from) in [
            (&mut self.operations, o.operations),
            (&mut self.thread_instructions, o.thread_instructions),
            (&mut self.divergent, o.divergent),
            (&mut self.distinct_bytes_read, o.distinct_bytes_read),
            (&mut self.distinct_bytes_written, o.distinct_bytes_written),
            (&mut self.tma_bytes, o.tma_bytes),
            (&mut self.mufu, o.mufu),
            (&mut self.barriers, o.barriers),
            (&mut self.barrier_waits, o.barrier_waits),
        ] {
            *to += from;
        }
        self.total.add(&o.total);
        merge(&mut self.by_class, &o.by_class);
        merge(&mut self.by_opcode, &o.by_opcode);
        for w in &o.wgmma {
            match self.wgmma.iter_mut().find(|m| m.opcode == w.opcode) {
                Some(m) => {
                    m.operations += w.operations;
                    m.flops += w.flops;
                    m.cycles_at_peak += w.cycles_at_peak;
                }
                None => self.wgmma.push(w.clone()),
            }
        }
        for (i, role) in o.roles.iter().enumerate() {
            if self.roles.len() <= i {
                self.roles.push(Role::default());
            }
            self.roles[i].total.add(&role.total);
            merge(&mut self.roles[i].by_class, &role.by_class);
        }
        let same = |a: &Line, b: &Line| a.line == b.line && a.file == b.file;
        add_all(&mut self.lines, &o.lines, same, |l| &mut l.count);
        add_all(
            &mut self.ptx,
            &o.ptx,
            |a, b| a.line == b.line,
            |l| &mut l.count,
        );
        if o.outcome != "ok" {
            self.outcome.clone_from(&o.outcome);
        }
    }
}

/// Adds entries to those they are the same as; most stand at the same index.
fn add_all<T: Clone>(
    to: &mut Vec<T>,
    from: &[T],
    same: impl Fn(&T, &T) -> bool,
    count: impl Fn(&mut T) -> &mut Count,
) {
    for (i, entry) in from.iter().enumerate() {
        let found = match to.get(i) {
            Some(there) if same(there, entry) => Some(i),
            _ => to.iter().position(|there| same(there, entry)),
        };
        match found {
            Some(at) => {
                let more = *count(&mut entry.clone());
                count(&mut to[at]).add(&more);
            }
            None => to.push(entry.clone()),
        }
    }
}

fn merge(to: &mut BTreeMap<String, Count>, from: &BTreeMap<String, Count>) {
    for (name, count) in from {
        to.entry(name.clone()).or_default().add(count);
    }
}

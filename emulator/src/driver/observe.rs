//! What a program that runs on the emulator knowingly can ask of it beyond CUDA: the counts of each launch, and launches of which only
//! a sample of the clusters is executed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::state;
use crate::counters::{Count, class_name};
use crate::counters::{Counters, LINE};
use crate::device::{LaunchConfig, LaunchReport};
use crate::program::Program;
use std::collections::BTreeMap;

/// The counts of one launch, at PTX level.
#[derive(Debug, Clone)]
pub struct Counted {
    pub kernel: String,
    pub config: LaunchConfig,
    /// Clusters of the grid, and how many of them were executed and counted.
    pub clusters: u64,
    pub executed: u64,
    /// By class of instruction, and by opcode as written.
    pub by_class: BTreeMap<&'static str, Count>,
    pub by_opcode: BTreeMap<String, Count>,
    /// 128-byte lines of global memory touched at least once, in bytes.
    pub distinct_bytes_read: u64,
    pub distinct_bytes_written: u64,
}

static KEEP: AtomicBool = AtomicBool::new(false);
static COUNTS: Mutex<Vec<Counted>> = Mutex::new(Vec::new());

/// Keeps the counts of launches from now on (with `BIRDIE_EMU_COUNT=1`), until [`take_counts`] takes them; or stops keeping them.
pub fn keep_counts(keep: bool) {
    KEEP.store(keep, Ordering::Relaxed);
}

/// The counts kept since the last call, in the order in which launches ended.
pub fn take_counts() -> Vec<Counted> {
    std::mem::take(&mut COUNTS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Launches that start from now on execute only about this many clusters; 0 = all. See [`Device::sample`](crate::device::Device::sample).
/// False where the driver has not been initialised.
pub fn sample_clusters(clusters: u64) -> bool {
    let Ok(state) = state::lock() else {
        return false;
    };
    for gpu in &state.gpus {
        gpu.device.sample.store(clusters, Ordering::Relaxed);
    }
    true
}

pub(super) fn launched(
    program: &Program,
    config: LaunchConfig,
    report: &LaunchReport,
    counters: &Counters,
) {
    if !KEEP.load(Ordering::Relaxed) {
        return;
    }
    let mut by_class: BTreeMap<&'static str, Count> = BTreeMap::new();
    let mut by_opcode: BTreeMap<String, Count> = BTreeMap::new();
    for (pc, count) in counters
        .roles
        .iter()
        .flat_map(|role| role.iter().enumerate())
    {
        if count.warps > 0 {
            by_class
                .entry(class_name(program.ops[pc].class))
                .or_default()
                .add(count);
            let opcode = &program.sites[pc].opcode;
            match by_opcode.get_mut(&**opcode) {
                Some(sum) => sum.add(count),
                None => {
                    by_opcode.insert(opcode.to_string(), *count);
                }
            }
        }
    }
    let counted = Counted {
        kernel: program.name.clone(),
        config,
        clusters: report.clusters,
        executed: report.executed,
        by_class,
        by_opcode,
        distinct_bytes_read: counters.read_lines.len() as u64 * LINE,
        distinct_bytes_written: counters.written_lines.len() as u64 * LINE,
    };
    COUNTS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(counted);
}

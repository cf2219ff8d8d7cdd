//! Counters: what a launch did, per instruction and per warp role.
//!
//! These are counts at the level of PTX: ptxas fuses, drops and schedules instructions, so machine code differs. What
//! carries over is the work itself: tensor FLOPs, bytes, sectors, wavefronts, waits. None of it is a time.
//!
//! * A **role** is a warpgroup of the CTA (warps 4r..4r+3): with warp specialisation that is producer, consumer 0, …
//! * A **sector** is 32 bytes of global memory; a request of a warp counts the distinct sectors it touches.
//! * A **wavefront** is one pass through the 32 banks of shared memory (4 bytes each). Accesses of 8 and 16 bytes per
//!   lane are served in two and four groups of lanes. The excess over the least number that could serve the bytes is
//!   counted as conflicts. The copy engine moves 128 bytes per pass; `wgmma` reads B, and A where it comes from shared memory, once
//!   per instruction and warpgroup.
//! * Tensor-core **cycles** are the N/2 that one wgmma m64nN takes at the peak rate of an H100: a floor, not a time.
//! * **Distinct bytes** of global memory (what L2 has to fetch at least once) come from a set of 128-byte lines.

pub mod record;
pub mod report;

use crate::program::{Class, Program};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Counts of one instruction. Zeros are left out of JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// Times a warp executed it.
    #[serde(skip_serializing_if = "is_zero")]
    pub warps: u64,
    /// Lanes that took part: thread-instructions.
    #[serde(skip_serializing_if = "is_zero")]
    pub lanes: u64,
    /// Bytes moved (memory, copies).
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// 32-byte sectors of global memory.
    #[serde(skip_serializing_if = "is_zero")]
    pub sectors: u64,
    /// Passes through the banks of shared memory, those of the copy engine and of the tensor core included, and how many
    /// of them a conflict-free layout would save.
    #[serde(skip_serializing_if = "is_zero")]
    pub wavefronts: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub conflicts: u64,
    /// Multiply-adds on the tensor core count two.
    #[serde(skip_serializing_if = "is_zero")]
    pub tensor_flops: u64,
    /// Times it had to wait.
    #[serde(skip_serializing_if = "is_zero")]
    pub waits: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Count {
    /// Adds another count to this one.
    pub fn add(&mut self, o: &Count) {
        self.warps += o.warps;
        self.lanes += o.lanes;
        self.bytes += o.bytes;
        self.sectors += o.sectors;
        self.wavefronts += o.wavefronts;
        self.conflicts += o.conflicts;
        self.tensor_flops += o.tensor_flops;
        self.waits += o.waits;
    }
}

pub(crate) const LINE: u64 = 128;

/// Counters of one cluster while it runs; merged into those of the launch when it ends.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Per role, per pc.
    pub roles: Vec<Vec<Count>>,
    pub(crate) read_lines: HashSet<u64>,
    pub(crate) written_lines: HashSet<u64>,
    /// Executions with part of the warp's live lanes missing (divergence, not guards).
    pub divergent: u64,
    ops: usize,
}

impl Counters {
    pub fn new(program: &Program) -> Self {
        Self {
            ops: program.ops.len(),
            ..Self::default()
        }
    }

    /// The count of an instruction in the role of warp `warp`.
    #[inline]
    pub fn at(&mut self, warp: u32, pc: u32) -> &mut Count {
        let role = (warp / 4) as usize;
        if self.roles.len() <= role {
            self.roles
                .resize(role + 1, vec![Count::default(); self.ops]);
        }
        &mut self.roles[role][pc as usize]
    }

    /// A warp executes the instruction with these lanes; `fragment` of its `live` lanes are together.
    #[inline]
    pub fn executed(&mut self, warp: u32, pc: u32, lanes: u32, fragment: u32, live: u32) {
        self.divergent += u64::from(fragment != live);
        let c = self.at(warp, pc);
        c.warps += 1;
        c.lanes += u64::from(lanes.count_ones());
    }

    /// A global access, `bytes` per lane.
    pub fn global(
        &mut self,
        warp: u32,
        pc: u32,
        addresses: &[u64; 32],
        mask: u32,
        bytes: u32,
        write: bool,
    ) {
        let mut sectors = [0u64; 64];
        let mut n = 0;
        for (lane, &a) in addresses.iter().enumerate() {
            if mask >> lane & 1 == 1 {
                for s in a / 32..=(a + u64::from(bytes) - 1) / 32 {
                    if n < sectors.len() && (n == 0 || sectors[n - 1] != s) {
                        sectors[n] = s;
                        n += 1;
                    }
                }
                self.touch(a, u64::from(bytes), write);
            }
        }
        let sectors = &mut sectors[..n];
        sectors.sort_unstable();
        let distinct = sectors
            .iter()
            .enumerate()
            .filter(|(i, s)| *i == 0 || sectors[i - 1] != **s)
            .count();
        let c = self.at(warp, pc);
        c.bytes += u64::from(mask.count_ones() * bytes);
        c.sectors += distinct as u64;
    }

    fn touch(&mut self, address: u64, bytes: u64, write: bool) {
        let lines = if write {
            &mut self.written_lines
        } else {
            &mut self.read_lines
        };
        for l in address / LINE..=(address + bytes.max(1) - 1) / LINE {
            lines.insert(l);
        }
    }

    /// A shared-memory access, `bytes` per lane.
    pub fn shared(&mut self, warp: u32, pc: u32, addresses: &[u32; 32], mask: u32, bytes: u32) {
        let (wavefronts, least) = wavefronts(addresses, mask, bytes);
        let c = self.at(warp, pc);
        c.bytes += u64::from(mask.count_ones() * bytes);
        c.wavefronts += u64::from(wavefronts);
        c.conflicts += u64::from(wavefronts - least);
    }

    /// A piece of an asynchronous copy that lies in global memory.
    pub fn copy(&mut self, warp: u32, pc: u32, global_address: u64, bytes: u64, write: bool) {
        if bytes > 0 {
            self.touch(global_address, bytes, write);
            let c = self.at(warp, pc);
            c.bytes += bytes;
            c.sectors += (global_address + bytes - 1) / 32 - global_address / 32 + 1;
        }
    }

    /// The shared-memory side of a copy by the copy engine: 128 bytes per pass.
    pub fn shared_block(&mut self, warp: u32, pc: u32, bytes: u64) {
        self.at(warp, pc).wavefronts += bytes.div_ceil(128);
    }

    /// One warp's part of a matrix product, and the passes in which the tensor core reads operands from shared memory.
    pub fn tensor(&mut self, warp: u32, pc: u32, flops: u64, wavefronts: u64) {
        let c = self.at(warp, pc);
        c.tensor_flops += flops;
        c.wavefronts += wavefronts;
    }

    pub fn wait(&mut self, warp: u32, pc: u32) {
        self.at(warp, pc).waits += 1;
    }

    pub fn merge(&mut self, o: Counters) {
        if self.roles.len() < o.roles.len() {
            self.roles
                .resize(o.roles.len(), vec![Count::default(); o.ops]);
        }
        for (a, b) in self.roles.iter_mut().zip(&o.roles) {
            for (x, y) in a.iter_mut().zip(b) {
                x.add(y);
            }
        }
        self.read_lines.extend(o.read_lines);
        self.written_lines.extend(o.written_lines);
        self.divergent += o.divergent;
        self.ops = self.ops.max(o.ops);
    }
}

pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Integer => "integer",
        Class::Float => "float",
        Class::Half => "half",
        Class::Double => "double",
        Class::Mufu => "mufu",
        Class::Convert => "convert",
        Class::Move => "move",
        Class::Predicate => "predicate",
        Class::LoadGlobal => "load_global",
        Class::StoreGlobal => "store_global",
        Class::LoadShared => "load_shared",
        Class::StoreShared => "store_shared",
        Class::LoadLocal => "load_local",
        Class::StoreLocal => "store_local",
        Class::LoadParam => "load_param",
        Class::Atomic => "atomic",
        Class::WarpExchange => "warp_exchange",
        Class::Branch => "branch",
        Class::Barrier => "barrier",
        Class::Mbarrier => "mbarrier",
        Class::AsyncCopy => "async_copy",
        Class::Tensor => "tensor",
        Class::Fence => "fence",
        Class::Other => "other",
    }
}

/// Passes through the banks that an access takes, and the least that its bytes need.
///
/// Source: CUDA programming guide, shared memory of compute capability 5.x and later: 32 banks of 4 bytes; lanes that
/// read the same word share it; 64-bit accesses are served per half warp, 128-bit ones per quarter warp.
pub fn wavefronts(addresses: &[u32; 32], mask: u32, bytes: u32) -> (u32, u32) {
    let groups = (bytes / 4).clamp(1, 4);
    let lanes = 32 / groups;
    let mut total = 0;
    let mut least = 0;
    for g in 0..groups {
        let mut words: Vec<u32> = Vec::with_capacity(32);
        for lane in g * lanes..(g + 1) * lanes {
            if mask >> lane & 1 == 1 {
                let a = addresses[lane as usize];
                words.extend(a / 4..=(a + bytes - 1) / 4);
            }
        }
        if words.is_empty() {
            continue;
        }
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u32; 32];
        for w in &words {
            banks[(w % 32) as usize] += 1;
        }
        total += banks.iter().max().copied().unwrap_or(0);
        least += (words.len() as u32).div_ceil(32);
    }
    (total, least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(f: impl Fn(u32) -> u32) -> [u32; 32] {
        std::array::from_fn(|l| f(l as u32))
    }

    #[test]
    fn bank_conflicts_of_the_usual_patterns() {
        assert_eq!(wavefronts(&lanes(|l| 4 * l), u32::MAX, 4), (1, 1));
        assert_eq!(
            wavefronts(&lanes(|_| 64), u32::MAX, 4),
            (1, 1),
            "a broadcast"
        );
        assert_eq!(
            wavefronts(&lanes(|l| 8 * l), u32::MAX, 4),
            (2, 1),
            "stride two"
        );
        assert_eq!(
            wavefronts(&lanes(|l| 128 * l), u32::MAX, 4),
            (32, 1),
            "one bank"
        );
        assert_eq!(
            wavefronts(&lanes(|l| 132 * l), u32::MAX, 4),
            (1, 1),
            "padded column"
        );
        assert_eq!(
            wavefronts(&lanes(|l| 16 * l), u32::MAX, 16),
            (4, 4),
            "16 bytes per lane"
        );
        assert_eq!(wavefronts(&lanes(|l| 8 * l), u32::MAX, 8), (2, 2));
        assert_eq!(
            wavefronts(&lanes(|l| 128 * l), u32::MAX, 16),
            (32, 4),
            "rows of 128 bytes, not swizzled"
        );
        assert_eq!(
            wavefronts(&lanes(|l| 128 * l + 16 * (l % 8)), u32::MAX, 16),
            (4, 4),
            "swizzled rows"
        );
        assert_eq!(wavefronts(&lanes(|l| 2 * l), u32::MAX, 2), (1, 1));
        assert_eq!(wavefronts(&lanes(|l| 4 * l), 0, 4), (0, 0));
    }
}

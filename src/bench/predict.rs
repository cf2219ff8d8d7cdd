//! From counts of the emulator to a predicted bound on an H100.
//!
//! Each resource of the machine gets the time that the counted work keeps it busy if everything else were free and the work were
//! spread evenly over the SMs that the grid can fill; the largest is the *predicted bound*. A real kernel is slower: latencies,
//! barriers, tails and instructions that wait for each other are not in it. It is a lower bound of this algorithm as written, as the
//! floor is one of the operation.
//!
//! What is counted at the level of PTX is not what the machine executes: ptxas drops moves, folds address arithmetic and turns some
//! instructions into several. So `mov` and parameter loads do not count as issued, and the columns *int* and *issue* are
//! estimates, whereas tensor FLOPs, special functions, shared-memory passes and bytes carry over. Global accesses are taken to miss L1.
//! HBM traffic is the number of distinct lines where the whole grid was executed, else what the operation must move at least; nor does a sample
//! multiply less than the operation has to.
//!
//! Between SMs and L2 a copy or reduction of the copy engine moves its bytes once: the addition is made in L2, whose own reading and
//! writing is no traffic of the crossbar. A load that acquires waits for another CTA, and how often it is repeated is the emulator's
//! schedule (millions of times where a CTA waits for a turn), not work of the kernel: on a device a warp repeats it at most once per
//! round trip to L2, 263 cycles or more (H800, arXiv 2402.13499 table IV), which is not even 1 % of the crossbar if two warps of every
//! SM do nothing else. So of such loads no more are counted than there are releases in the launch, each of which ends one wait. The
//! comparison and the jump of such a loop are not told from others: *int* and *issue* hold all of them.

use std::collections::BTreeMap;

use birdie_emulator::counters::Count;
use birdie_emulator::counters::record::Record;
use birdie_emulator::driver::Counted;
use serde::{Deserialize, Serialize};

use super::machine::{self, Resource};
use crate::kernels::Work;

/// Counted work of one operation, scaled to its whole grid.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub tensor_flops: f64,
    /// Cycles of the tensor cores of one SM, all of this work on it: N/2 per m64nNk16.
    pub wgmma_cycles: f64,
    /// Warp instructions by class.
    pub mufu: f64,
    pub fp32: f64,
    pub half: f64,
    pub double: f64,
    pub integer: f64,
    pub convert: f64,
    pub exchange: f64,
    pub barriers: f64,
    pub mbarriers: f64,
    pub fences: f64,
    /// All that is issued.
    pub issued: f64,
    /// Passes through shared memory, and those of them that a conflict-free layout would save.
    pub shared_passes: f64,
    pub shared_conflicts: f64,
    /// Bytes between SMs and L2, in sectors of 32.
    pub l2_bytes: f64,
    /// Bytes between L2 and memory; see the module.
    pub hbm_bytes: f64,
    /// CTAs.
    pub ctas: f64,
    /// Share of the grid that was executed.
    pub executed: f64,
}

impl Counts {
    /// Counts of one launch. `hbm_bytes` is only set where the whole grid was executed.
    pub fn of(launch: &Counted) -> Counts {
        let factor = launch.clusters as f64 / launch.executed.max(1) as f64;
        let cluster: u32 = launch.config.cluster.iter().product();
        let mut c = Counts {
            ctas: launch.clusters as f64 * f64::from(cluster),
            executed: 1.0 / factor,
            ..Counts::default()
        };
        c.classes(
            launch.by_class.iter().map(|(class, count)| (*class, count)),
            factor,
        );
        c.products(&launch.by_opcode, factor);
        c.polls(&launch.by_opcode, factor);
        if launch.executed == launch.clusters {
            c.hbm_bytes = (launch.distinct_bytes_read + launch.distinct_bytes_written) as f64;
        }
        c
    }

    /// Counts of one launch from the emulator's file: of a whole grid.
    pub fn of_record(launch: &Record) -> Counts {
        let mut c = Counts {
            ctas: launch.grid.iter().map(|&n| f64::from(n)).product(),
            executed: 1.0,
            hbm_bytes: (launch.distinct_bytes_read + launch.distinct_bytes_written) as f64,
            ..Counts::default()
        };
        let classes = launch.by_class.iter();
        c.classes(classes.map(|(class, count)| (class.as_str(), count)), 1.0);
        c.products(&launch.by_opcode, 1.0);
        c.polls(&launch.by_opcode, 1.0);
        c
    }

    /// Adds what was counted by class of instruction, `factor` times.
    fn classes<'a>(&mut self, by_class: impl Iterator<Item = (&'a str, &'a Count)>, factor: f64) {
        let c = self;
        for (class, count) in by_class {
            let warps = count.warps as f64 * factor;
            match class {
                "mufu" => c.mufu += warps,
                "float" => c.fp32 += warps,
                "half" => c.half += warps,
                "double" => c.double += warps,
                "integer" => c.integer += warps,
                "convert" => c.convert += warps,
                "warp_exchange" => c.exchange += warps,
                "barrier" => c.barriers += warps,
                "mbarrier" => c.mbarriers += warps,
                "fence" => c.fences += warps,
                _ => {}
            }
            if !matches!(class, "move" | "load_param") {
                c.issued += warps;
            }
            c.tensor_flops += count.tensor_flops as f64 * factor;
            c.shared_passes += count.wavefronts as f64 * factor;
            c.shared_conflicts += count.conflicts as f64 * factor;
            // Parameters lie in the constant bank of a device.
            if class != "load_param" {
                c.l2_bytes += 32.0 * count.sectors as f64 * factor;
            }
        }
    }

    /// Takes the loads off again that found nothing new; see the module.
    fn polls(&mut self, by_opcode: &BTreeMap<String, Count>, factor: f64) {
        let sum = |is: fn(&str) -> bool| {
            let mut sum = Count::default();
            by_opcode
                .iter()
                .filter(|(opcode, _)| is(opcode))
                .for_each(|(_, count)| sum.add(count));
            sum
        };
        let loads = sum(|opcode| opcode.starts_with("ld.acquire"));
        let releases = sum(|opcode| {
            [".release", ".acq_rel"].iter().any(|r| opcode.contains(r))
                && ["st.", "red.", "atom."]
                    .iter()
                    .any(|o| opcode.starts_with(o))
        });
        if loads.warps > releases.warps {
            let polls = (loads.warps - releases.warps) as f64;
            self.issued -= factor * polls;
            self.l2_bytes -= factor * 32.0 * loads.sectors as f64 * polls / loads.warps as f64;
        }
    }

    /// Adds the cycles of the tensor cores.
    fn products(&mut self, by_opcode: &BTreeMap<String, Count>, factor: f64) {
        for (opcode, count) in by_opcode {
            if opcode.starts_with("wgmma.mma_async") {
                self.wgmma_cycles += count.tensor_flops as f64 * factor / rate_per_cycle(opcode);
            }
        }
    }

    /// Work and bytes divided by a number of launches: their mean.
    pub fn divide(&mut self, by: f64) {
        for amount in self.amounts() {
            *amount /= by;
        }
    }

    /// All that adds up over launches.
    fn amounts(&mut self) -> [&mut f64; 17] {
        [
            &mut self.tensor_flops,
            &mut self.wgmma_cycles,
            &mut self.mufu,
            &mut self.fp32,
            &mut self.half,
            &mut self.double,
            &mut self.integer,
            &mut self.convert,
            &mut self.exchange,
            &mut self.barriers,
            &mut self.mbarriers,
            &mut self.fences,
            &mut self.issued,
            &mut self.shared_passes,
            &mut self.shared_conflicts,
            &mut self.l2_bytes,
            &mut self.hbm_bytes,
        ]
    }

    /// Adds another launch of the same operation.
    pub fn add(&mut self, o: &Counts) {
        for (sum, more) in self.amounts().into_iter().zip(o.clone().amounts()) {
            *sum += *more;
        }
        self.ctas = self.ctas.max(o.ctas);
        self.executed = self.executed.min(o.executed);
    }

    /// The time of each resource and the bound.
    pub fn predict(&self) -> Predicted {
        let sms = self.ctas.clamp(1.0, machine::SMS);
        let cycles = |warps: f64, rate: f64| 1e6 * warps * 32.0 / rate / sms / machine::CLOCK;
        let per_sm = |amount: f64, rate: f64| 1e6 * amount / rate / sms / machine::CLOCK;
        let share = sms / machine::SMS;
        let us: BTreeMap<Resource, f64> = Resource::ALL
            .into_iter()
            .map(|resource| {
                let us = match resource {
                    Resource::Tensor => 1e6 * self.tensor_flops / machine::TENSOR_FLOPS / share,
                    Resource::Mufu => cycles(self.mufu, machine::MUFU),
                    Resource::Fp32 => {
                        cycles(self.fp32, machine::FP32)
                            + cycles(self.half, machine::HALF2)
                            + cycles(self.double, machine::FP64)
                    }
                    Resource::Integer => cycles(self.integer, machine::INT32),
                    Resource::Convert => cycles(self.convert, machine::CONVERT),
                    Resource::Exchange => cycles(self.exchange, machine::EXCHANGE),
                    Resource::Issue => per_sm(self.issued, machine::ISSUE),
                    Resource::Shared => per_sm(self.shared_passes, machine::SHARED_PASSES),
                    Resource::L2 => 1e6 * self.l2_bytes / machine::L2 / share,
                    Resource::Hbm => 1e6 * self.hbm_bytes / machine::HBM,
                };
                (resource, us)
            })
            .collect();
        let (bound, bound_us) =
            us.iter().fold(
                (Resource::Hbm, 0.0),
                |best, (&r, &t)| if t > best.1 { (r, t) } else { best },
            );
        Predicted {
            us,
            bound,
            bound_us,
        }
    }

    /// Where the grid was not executed whole: what an operation moves at least is its memory traffic, and it multiplies no less than it has
    /// to, whatever share of it the sample had.
    pub fn with_least_work(mut self, work: Work) -> Counts {
        if self.executed < 1.0 || self.hbm_bytes == 0.0 {
            self.hbm_bytes = work.bytes as f64;
        }
        if self.executed < 1.0 && self.tensor_flops > 0.0 {
            self.tensor_flops = self.tensor_flops.max(work.flops as f64);
        }
        self
    }
}

/// FLOPs per SM and cycle of a wgmma: one-byte types run at twice the rate of bf16, tf32 at half of it.
fn rate_per_cycle(opcode: &str) -> f64 {
    let factor = if [".e4m3", ".e5m2", ".s8", ".u8"]
        .iter()
        .any(|t| opcode.contains(t))
    {
        2.0
    } else if opcode.contains(".tf32") {
        0.5
    } else {
        1.0
    };
    factor * machine::TENSOR_FLOPS_PER_CYCLE
}

/// Predicted microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    pub us: BTreeMap<Resource, f64>,
    pub bound: Resource,
    pub bound_us: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use birdie_emulator::counters::Count;
    use birdie_emulator::device::LaunchConfig;

    fn launch(executed: u64, class: &'static str, count: Count) -> Counted {
        Counted {
            kernel: "k".into(),
            config: LaunchConfig {
                grid: [132, 1, 1],
                block: [128, 1, 1],
                cluster: [1, 1, 1],
                dynamic_shared: 0,
            },
            clusters: 132,
            executed,
            by_class: BTreeMap::from([(class, count)]),
            by_opcode: BTreeMap::from([(
                "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16".to_owned(),
                count,
            )]),
            distinct_bytes_read: 1024,
            distinct_bytes_written: 0,
        }
    }

    #[test]
    fn a_sample_stands_for_its_grid() {
        let count = Count {
            warps: 12,
            ..Count::default()
        };
        let whole = Counts::of(&launch(132, "mufu", count));
        let sample = Counts::of(&launch(4, "mufu", count));
        assert_eq!((whole.mufu, sample.mufu), (12.0, 396.0));
        assert_eq!((whole.hbm_bytes, sample.hbm_bytes), (1024.0, 0.0));
        let work = Work {
            flops: 1,
            bytes: 77,
        };
        assert_eq!(whole.with_least_work(work).hbm_bytes, 1024.0);
        assert_eq!(sample.with_least_work(work).hbm_bytes, 77.0);
    }

    #[test]
    fn a_sample_with_less_than_its_share_of_products_does_not_shrink_the_grid() {
        let count = Count {
            warps: 4,
            tensor_flops: 1000,
            ..Count::default()
        };
        let work = |flops| Work { flops, bytes: 77 };
        let flops = |executed, work| {
            let counts = Counts::of(&launch(executed, "tensor", count));
            counts.with_least_work(work).tensor_flops
        };
        assert_eq!(flops(66, work(1900)), 2000.0);
        assert_eq!(flops(66, work(2100)), 2100.0);
        assert_eq!(flops(132, work(2100)), 1000.0);
    }

    #[test]
    fn one_wgmma_of_n_256_on_each_sm_takes_128_cycles() {
        let count = Count {
            warps: 4 * 132,
            tensor_flops: 132 * 2 * 64 * 256 * 16,
            ..Count::default()
        };
        let counts = Counts::of(&launch(132, "tensor", count));
        assert_eq!(counts.wgmma_cycles, 132.0 * 128.0);
    }

    #[test]
    fn a_wait_for_another_cta_is_one_load_however_often_it_is_repeated() {
        let load = |warps| Count {
            warps,
            sectors: warps,
            ..Count::default()
        };
        let mut waits = launch(132, "load_global", load(1000));
        waits
            .by_opcode
            .insert("ld.acquire.gpu.global.u32".into(), load(900));
        waits
            .by_opcode
            .insert("red.release.gpu.global.add.u32".into(), load(30));
        let counts = Counts::of(&waits);
        assert_eq!((counts.issued, counts.l2_bytes), (130.0, 130.0 * 32.0));
        waits
            .by_opcode
            .insert("atom.acq_rel.gpu.global.add.u32".into(), load(870));
        assert_eq!(Counts::of(&waits).l2_bytes, 32_000.0);
    }

    #[test]
    fn sixteen_exponentials_per_cycle_and_sm() {
        let count = Count {
            warps: 132 * 1000,
            ..Count::default()
        };
        let predicted = Counts::of(&launch(132, "mufu", count)).predict();
        let expected = 1e6 * 1000.0 * 32.0 / 16.0 / machine::CLOCK;
        assert_eq!(predicted.bound, Resource::Mufu);
        assert!((predicted.bound_us - expected).abs() < 1e-9);
    }
}

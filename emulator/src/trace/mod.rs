//! The event trace: who waited for what, and when asynchronous work was issued and took effect.
//!
//! **Time is the count of operations** that all warps of the cluster have executed, one after the other: the emulator's
//! own order, drawn from the seed. It shows dependences and overlap, never the duration that anything has on a GPU.
//!
//! A cluster gathers [`Span`]s while it runs; [`chrome`] writes those of a launch as Chrome's trace-event JSON, which
//! Perfetto opens. Whatever is still open when the cluster ends stays open ("never completed"): in a deadlock these are
//! the waits.

pub mod chrome;

use crate::exec::Cluster;

/// Spans that a cluster may gather; what comes later is counted, not kept.
const LIMIT: usize = 1 << 18;

/// Operations of the special-function unit this close together are one span.
const BURST: u64 = 128;

/// The row on which a span is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    Warp(u32),
    /// Asynchronous copies issued by a warp.
    Copies(u32),
    /// wgmma of a warpgroup, by its first warp.
    Tensor(u32),
    /// mbarrier at a shared address.
    Mbarrier(u32),
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A blocked operation; the text says what for.
    Wait(String),
    /// Issue to completion, and when its source had been read.
    Copy {
        bytes: u64,
        sequence: u64,
        read: Option<u64>,
    },
    /// Issue to the wait that covers it, and when it was executed.
    Wgmma { index: u64, executed: Option<u64> },
    /// A phase of an mbarrier.
    Phase(u64),
    /// A burst of special-function operations.
    Mufu(u64),
}

/// Something that took from `start` to `end`.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Rank of the CTA in the cluster.
    pub cta: u32,
    pub track: Track,
    pub pc: u32,
    pub what: What,
    pub start: u64,
    pub end: Option<u64>,
}

/// The spans of one cluster.
#[derive(Debug, Default)]
pub struct Trace {
    /// The clock of the cluster at the operation being executed.
    pub now: u64,
    pub spans: Vec<Span>,
    pub dropped: u64,
    /// Indices of spans that have not ended.
    open: Vec<usize>,
    /// When the current phase of an mbarrier began.
    phases: Vec<(u32, u32, u64)>,
}

impl Trace {
    fn begin(&mut self, cta: u32, track: Track, pc: u32, what: What) {
        if self.spans.len() >= LIMIT {
            self.dropped += 1;
            return;
        }
        self.open.push(self.spans.len());
        self.spans.push(Span {
            cta,
            track,
            pc,
            what,
            start: self.now,
            end: None,
        });
    }

    /// Ends the open spans that `which` selects.
    fn end(&mut self, which: impl Fn(&Span) -> bool) {
        let (spans, now) = (&mut self.spans, self.now);
        self.open.retain(|&i| {
            let ends = which(&spans[i]);
            if ends {
                spans[i].end = Some(now);
            }
            !ends
        });
    }

    fn whole(&mut self, cta: u32, track: Track, pc: u32, what: What, start: u64) {
        if self.spans.len() >= LIMIT {
            self.dropped += 1;
            return;
        }
        self.spans.push(Span {
            cta,
            track,
            pc,
            what,
            start,
            end: Some(self.now),
        });
    }

    /// The operation at `pc` of a warp could not proceed.
    pub fn blocked(&mut self, cta: u32, warp: u32, pc: u32, why: String) {
        let track = Track::Warp(warp);
        let known = |s: &Span| s.cta == cta && s.track == track && s.pc == pc;
        if !self.open.iter().any(|&i| known(&self.spans[i])) {
            self.begin(cta, track, pc, What::Wait(why));
        }
    }

    /// The operation at `pc` of a warp was executed.
    pub fn proceeded(&mut self, cta: u32, warp: u32, pc: u32) {
        self.end(|s| s.cta == cta && s.track == Track::Warp(warp) && s.pc == pc);
    }

    pub fn copy_issued(&mut self, cta: u32, warp: u32, pc: u32, bytes: u64, sequence: u64) {
        let read = None;
        let what = What::Copy {
            bytes,
            sequence,
            read,
        };
        self.begin(cta, Track::Copies(warp), pc, what);
    }

    pub fn copy_read(&mut self, number: u64) {
        let now = self.now;
        for &i in &self.open {
            if let What::Copy { sequence, read, .. } = &mut self.spans[i].what
                && *sequence == number
            {
                *read = Some(now);
            }
        }
    }

    pub fn copy_done(&mut self, number: u64) {
        self.end(|s| matches!(s.what, What::Copy { sequence, .. } if sequence == number));
    }

    pub fn wgmma_issued(&mut self, cta: u32, warpgroup: u32, pc: u32, index: u64) {
        let executed = None;
        let track = Track::Tensor(4 * warpgroup);
        self.begin(cta, track, pc, What::Wgmma { index, executed });
    }

    pub fn wgmma_executed(&mut self, cta: u32, warpgroup: u32, number: u64) {
        let now = self.now;
        for &i in &self.open {
            let s = &mut self.spans[i];
            if s.cta == cta
                && s.track == Track::Tensor(4 * warpgroup)
                && let What::Wgmma { index, executed } = &mut s.what
                && *index == number
            {
                *executed = Some(now);
            }
        }
    }

    /// A `wait_group` covers the operations below `end`.
    pub fn wgmma_waited(&mut self, cta: u32, warpgroup: u32, end: u64) {
        let track = Track::Tensor(4 * warpgroup);
        self.end(|s| {
            s.cta == cta
                && s.track == track
                && matches!(s.what, What::Wgmma { index, .. } if index < end)
        });
    }

    /// An mbarrier was initialised.
    pub fn barrier_made(&mut self, cta: u32, address: u32) {
        self.phases.retain(|p| (p.0, p.1) != (cta, address));
        self.phases.push((cta, address, self.now));
    }

    /// Phase `phase` of an mbarrier is complete.
    pub fn phase_completed(&mut self, cta: u32, address: u32, phase: u64, pc: u32) {
        let now = self.now;
        let start = match self
            .phases
            .iter_mut()
            .find(|p| (p.0, p.1) == (cta, address))
        {
            Some(p) => std::mem::replace(&mut p.2, now),
            None => {
                self.phases.push((cta, address, now));
                now
            }
        };
        self.whole(cta, Track::Mbarrier(address), pc, What::Phase(phase), start);
    }

    /// A warp executed an operation of the special-function unit.
    pub fn mufu(&mut self, cta: u32, warp: u32, pc: u32) {
        let (track, now) = (Track::Warp(warp), self.now);
        let last = self
            .spans
            .iter_mut()
            .rev()
            .take(8)
            .find(|s| s.cta == cta && s.track == track);
        if let Some(s) = last
            && let What::Mufu(n) = &mut s.what
            && s.end.is_some_and(|end| now.saturating_sub(end) <= BURST)
        {
            *n += 1;
            s.end = Some(now + 1);
            return;
        }
        self.whole(cta, track, pc, What::Mufu(1), now);
    }
}

/// Brings the clock of the trace up to that of the cluster, for events between the turns of warps.
pub fn synchronise(cluster: &mut Cluster) {
    let steps = cluster.steps;
    if let Some(trace) = &mut cluster.trace {
        trace.now = trace.now.max(steps);
    }
}

/// The trace of a launch: of each cluster its index in the grid, the grid position of each of its CTAs, and its spans.
#[derive(Debug, Default)]
pub struct LaunchTrace {
    pub clusters: Vec<(u32, Vec<[u32; 3]>, Trace)>,
}

impl LaunchTrace {
    /// Steps of the cluster that took longest.
    pub fn length(&self) -> u64 {
        self.clusters.iter().map(|c| c.2.now).max().unwrap_or(0)
    }
    pub fn spans(&self) -> usize {
        self.clusters.iter().map(|c| c.2.spans.len()).sum()
    }
    /// Spans that were not kept.
    pub fn dropped(&self) -> u64 {
        self.clusters.iter().map(|c| c.2.dropped).sum()
    }
}

//! What the clusters of a kernel that communicates through global memory know of each other.
//!
//! Such clusters run interleaved on one host thread. They share one shadow of global memory, lent to whichever runs, and the clocks that were
//! released at global addresses. An agent's number in that shadow says its cluster and which agent it is there. A release
//! (or a fence, and a relaxed write after it) of device scope publishes the releasing agent's clock; an acquire
//! of device scope (or a relaxed read, and a fence after it) takes in what was published at the address, of whatever clusters. Order of starts
//! orders nothing, nor does a scope that ends at the CTA or the cluster.
//!
//! Between CTAs the async proxy follows the async proxy only through a proxy fence (ISA, "Proxy-preserved Base Causality Order": the same proxy
//! orders within one thread block). It is asked for between clusters; not between CTAs of one.

use super::clock::Clock;
use super::shadow::Shadow;
use crate::hash::FastMap;
use std::sync::Arc;

type Table<T> = Vec<Option<Arc<T>>>;

/// Clusters whose clocks are kept together: what of a table is copied when one of them changes.
const BLOCK: usize = 64;

/// A clock of each cluster, of its own agents. What did not change is shared between copies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clocks(Option<Arc<Table<Table<Clock>>>>);

/// Elementwise union of two tables; one of them itself, if it covers the other.
fn union<T>(
    a: &Arc<Table<T>>,
    b: &Arc<Table<T>>,
    inner: impl Fn(&Arc<T>, &Arc<T>) -> Arc<T>,
) -> Arc<Table<T>> {
    if Arc::ptr_eq(a, b) {
        return a.clone();
    }
    let (mut is_a, mut is_b) = (true, true);
    let all = (0..a.len().max(b.len()))
        .map(|i| {
            let of = |t: &Arc<Table<T>>| t.get(i).cloned().flatten();
            let (x, y) = (of(a), of(b));
            let joined = match (&x, &y) {
                (Some(x), Some(y)) => Some(inner(x, y)),
                (one, None) | (None, one) => one.clone(),
            };
            let is = |one: &Option<Arc<T>>| {
                one.as_ref().map(Arc::as_ptr) == joined.as_ref().map(Arc::as_ptr)
            };
            is_a &= is(&x);
            is_b &= is(&y);
            joined
        })
        .collect();
    match (is_a, is_b) {
        (true, _) => a.clone(),
        (_, true) => b.clone(),
        _ => Arc::new(all),
    }
}

fn later(a: &Arc<Clock>, b: &Arc<Clock>) -> Arc<Clock> {
    if Arc::ptr_eq(a, b) || a.covers(b) {
        return a.clone();
    }
    if b.covers(a) {
        return b.clone();
    }
    let mut joined = Clock::clone(a);
    joined.join(b);
    Arc::new(joined)
}

impl Clocks {
    pub fn of(&self, cluster: u32) -> Option<&Clock> {
        let (block, place) = (cluster as usize / BLOCK, cluster as usize % BLOCK);
        self.0
            .as_ref()?
            .get(block)?
            .as_ref()?
            .get(place)?
            .as_deref()
    }

    pub fn set(&mut self, cluster: u32, clock: Clock) {
        fn place<T>(table: &mut Table<T>, i: usize) -> &mut Option<Arc<T>> {
            if table.len() <= i {
                table.resize_with(i + 1, || None);
            }
            &mut table[i]
        }
        let cluster = cluster as usize;
        let table = Arc::make_mut(self.0.get_or_insert_default());
        let block = Arc::make_mut(place(table, cluster / BLOCK).get_or_insert_default());
        *place(block, cluster % BLOCK) = Some(Arc::new(clock));
    }

    #[inline(always)]
    pub fn join(&mut self, other: &Clocks) {
        match (&self.0, &other.0) {
            (_, None) => {}
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {}
            (None, Some(b)) => self.0 = Some(b.clone()),
            (Some(a), Some(b)) => self.0 = Some(union(a, b, |x, y| union(x, y, later))),
        }
    }
}

/// What is known of other clusters: what of theirs is seen, and which of it is visible to the async proxy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Far {
    pub seen: Clocks,
    pub proxied: Clocks,
}

impl Far {
    #[inline(always)]
    pub fn join(&mut self, other: &Far) {
        self.seen.join(&other.seen);
        self.proxied.join(&other.proxied);
    }
}

/// What all clusters of a launch share.
#[derive(Default)]
pub struct Between {
    pub(super) global: Shadow,
    /// What was released at global addresses.
    pub(super) released: FastMap<u64, Far>,
}

/// Numbers of agents in a shadow: the cluster in the upper bits, the agent in the others.
#[derive(Debug, Clone, Copy)]
pub struct Numbering {
    pub cluster: u32,
    /// Bits of the agent.
    bits: u32,
}

impl Default for Numbering {
    /// Of a shadow that a cluster has for itself.
    fn default() -> Self {
        Numbering {
            cluster: 0,
            bits: 31,
        }
    }
}

impl Numbering {
    /// Of cluster `cluster` out of `clusters`.
    pub fn new(cluster: u32, clusters: u64) -> Self {
        let bits = u64::BITS - (clusters.max(2) - 1).leading_zeros();
        Numbering {
            cluster,
            bits: 32u32.saturating_sub(bits),
        }
    }

    /// The agent of this cluster in the shadow; none if there are more agents than numbers. (Then what it does is not compared.)
    #[inline(always)]
    pub fn number(self, agent: u32) -> Option<u32> {
        (agent >> self.bits == 0).then_some(self.cluster << self.bits | agent)
    }

    /// The agent, if it is of this cluster.
    #[inline(always)]
    pub fn own(self, number: u32) -> Option<u32> {
        let (cluster, agent) = self.split(number);
        (cluster == self.cluster).then_some(agent)
    }

    /// Cluster and agent.
    #[inline(always)]
    pub fn split(self, number: u32) -> (u32, u32) {
        (number >> self.bits, number & ((1 << self.bits) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(entries: &[(u32, u32)]) -> Clock {
        let mut c = Clock::default();
        entries
            .iter()
            .for_each(|&(agent, value)| c.set(agent, value));
        c
    }

    #[test]
    fn a_union_knows_what_both_know_and_is_one_of_them_if_that_knows_all() {
        let mut a = Clocks::default();
        a.set(3, clock(&[(0, 4), (1, 1)]));
        let mut b = a.clone();
        b.set(200, clock(&[(5, 9)]));
        let mut joined = a.clone();
        joined.join(&b);
        assert!(Arc::ptr_eq(
            joined.0.as_ref().unwrap(),
            b.0.as_ref().unwrap()
        ));
        a.set(3, clock(&[(0, 2), (1, 7)]));
        joined.join(&a);
        assert_eq!(joined.of(3), Some(&clock(&[(0, 4), (1, 7)])));
        assert_eq!(joined.of(200), Some(&clock(&[(5, 9)])));
        assert_eq!((joined.of(4), joined.of(2000)), (None, None));
        // What was copied before is as it was.
        assert_eq!(b.of(3), Some(&clock(&[(0, 4), (1, 1)])));
        let before = joined.0.clone().unwrap();
        joined.join(&b);
        assert!(Arc::ptr_eq(&before, joined.0.as_ref().unwrap()));
    }

    #[test]
    fn numbers_tell_clusters_and_agents_apart() {
        for clusters in [1u64, 2, 3, 132, 1 << 20, 1 << 31] {
            let first = Numbering::new(0, clusters);
            let last = Numbering::new((clusters - 1) as u32, clusters);
            let number = last.number(1).expect("two agents");
            assert_eq!(last.own(number), Some(1));
            assert_eq!(last.split(number), (last.cluster, 1));
            assert_eq!(first.own(number), (clusters == 1).then_some(1));
            assert_eq!(last.number(u32::MAX), None);
        }
        assert!(Numbering::new(0, 1 << 20).number(4095).is_some());
    }
}

//! The work that was given to streams and has not happened yet.
//!
//! Every operation is a node of one dependency graph: streams, events, the legacy default stream and graphs all
//! come down to "after these operations". An operation whose predecessors are done is *ready*; which of the ready ones happens
//! next is drawn from the seed, because nothing orders them on a real device either. With one host thread, the same seed and the
//! same calls give the same order.
//!
//! Nothing happens by itself: operations are executed when the host synchronises, when it polls (one operation per
//! poll), and when too much has piled up. That is a legal schedule of a real device, and the one that shows most
//! clearly that a wait is missing: what nobody waits for is late.

use std::collections::{HashMap, HashSet};

use super::work::Work;

/// Names an operation, for ever.
pub type OpId = u64;

/// An operation that waits or runs.
pub struct Op {
    /// Context it belongs to.
    pub context: u64,
    pub work: Work,
    /// Predecessors that are not done.
    unmet: HashSet<OpId>,
    /// Operations that wait for this one.
    dependents: Vec<OpId>,
    running: bool,
}

/// All operations of the process.
pub struct Queue {
    ops: HashMap<OpId, Op>,
    /// Operations without unmet predecessors that do not run, in the order in which they became ready.
    ready: Vec<OpId>,
    next: OpId,
    random: u64,
}

impl Queue {
    pub fn new(seed: u64) -> Queue {
        Queue {
            ops: HashMap::new(),
            ready: Vec::new(),
            next: 1,
            random: seed ^ 0x5851_f42d_4c95_7f2d,
        }
    }

    /// Adds an operation that happens after all of `after` (those that are already done do not count).
    pub fn add(&mut self, context: u64, work: Work, after: impl IntoIterator<Item = OpId>) -> OpId {
        let id = self.next;
        self.next += 1;
        let mut unmet = HashSet::new();
        for before in after {
            if let Some(op) = self.ops.get_mut(&before)
                && unmet.insert(before)
            {
                op.dependents.push(id);
            }
        }
        if unmet.is_empty() {
            self.ready.push(id);
        }
        self.ops.insert(
            id,
            Op {
                context,
                work,
                unmet,
                dependents: Vec::new(),
                running: false,
            },
        );
        id
    }

    /// Whether the operation has not happened yet.
    pub fn pending(&self, id: OpId) -> bool {
        self.ops.contains_key(&id)
    }

    /// Whether some operation has work of a kind.
    pub fn any(&self, wanted: impl Fn(&Work) -> bool) -> bool {
        self.ops.values().any(|op| wanted(&op.work))
    }

    /// Operations of a context that have not happened yet.
    pub fn of_context(&self, context: u64) -> Vec<OpId> {
        let mut out: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, op)| op.context == context)
            .map(|(&id, _)| id)
            .collect();
        out.sort_unstable();
        out
    }

    /// Number of operations of a context that have not happened yet.
    pub fn backlog(&self, context: u64) -> usize {
        self.ops.values().filter(|op| op.context == context).count()
    }

    /// Draws a ready operation that serves the `targets`: one of `context`, or else one that a target waits for in
    /// another context. `eligible` may refuse operations that cannot run just now. The operation is marked as running.
    pub fn take(
        &mut self,
        context: u64,
        targets: &[OpId],
        eligible: impl Fn(&Op) -> bool,
    ) -> Option<OpId> {
        let own: Vec<OpId> = self.ready_where(|_, op| op.context == context && eligible(op));
        let choice = if own.is_empty() {
            let needed = self.predecessors(targets);
            self.ready_where(|id, op| needed.contains(&id) && eligible(op))
        } else {
            own
        };
        if choice.is_empty() {
            return None;
        }
        let id = choice[(self.draw() % choice.len() as u64) as usize];
        self.ready.retain(|&ready| ready != id);
        if let Some(op) = self.ops.get_mut(&id) {
            op.running = true;
        }
        Some(id)
    }

    /// The work of an operation.
    pub fn work(&self, id: OpId) -> Option<(u64, Work)> {
        self.ops.get(&id).map(|op| (op.context, op.work.clone()))
    }

    /// The operation has happened: its dependents may become ready.
    pub fn complete(&mut self, id: OpId) {
        let Some(op) = self.ops.remove(&id) else {
            return;
        };
        self.ready.retain(|&ready| ready != id);
        for dependent in op.dependents {
            if let Some(next) = self.ops.get_mut(&dependent) {
                next.unmet.remove(&id);
                if next.unmet.is_empty() && !next.running {
                    self.ready.push(dependent);
                }
            }
        }
    }

    fn ready_where(&self, wanted: impl Fn(OpId, &Op) -> bool) -> Vec<OpId> {
        self.ready
            .iter()
            .copied()
            .filter(|&id| self.ops.get(&id).is_some_and(|op| wanted(id, op)))
            .collect()
    }

    /// The targets and everything that they wait for.
    fn predecessors(&self, targets: &[OpId]) -> HashSet<OpId> {
        let mut seen = HashSet::new();
        let mut open: Vec<OpId> = targets.to_vec();
        while let Some(id) = open.pop() {
            if let Some(op) = self.ops.get(&id)
                && seen.insert(id)
            {
                open.extend(&op.unmet);
            }
        }
        seen
    }

    /// splitmix64
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Vec<OpId> {
        let mut queue = Queue::new(seed);
        let a = queue.add(1, Work::Nothing, []);
        let b = queue.add(1, Work::Nothing, [a]);
        let x = queue.add(1, Work::Nothing, []);
        let last = queue.add(1, Work::Nothing, [b, x]);
        let mut out = Vec::new();
        while let Some(id) = queue.take(1, &[last], |_| true) {
            out.push(id);
            queue.complete(id);
        }
        assert_eq!(out.last(), Some(&last));
        assert!(out.iter().position(|&id| id == a) < out.iter().position(|&id| id == b));
        out
    }

    #[test]
    fn unordered_operations_happen_in_either_order_by_seed() {
        let orders: HashSet<Vec<OpId>> = (0..64).map(order).collect();
        assert_eq!(orders.len(), 3, "a b x, a x b, x a b");
        assert_eq!(order(7), order(7));
    }

    #[test]
    fn other_contexts_run_only_where_a_target_needs_them() {
        let mut queue = Queue::new(0);
        let needed = queue.add(2, Work::Nothing, []);
        let other = queue.add(2, Work::Nothing, []);
        let target = queue.add(1, Work::Nothing, [needed]);
        assert_eq!(queue.take(1, &[target], |_| true), Some(needed));
        queue.complete(needed);
        assert_eq!(queue.take(1, &[target], |_| true), Some(target));
        queue.complete(target);
        assert_eq!(queue.take(1, &[target], |_| true), None);
        assert!(queue.pending(other));
    }
}

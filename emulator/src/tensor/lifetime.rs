//! How long registers of a wgmma stay in use.
//!
//! The operation is issued at one place and reads its A fragment and updates its accumulators at a later time, up to the
//! `wait_group` that covers its group. Liveness sees only the place of issue and would give the rows of a dead A
//! fragment to another register while the tensor core still needs them. A forward analysis finds which operations may be
//! in flight at every wait and marks their rows as kept there.

use crate::program::{Effects, InFlight};

/// Not in flight.
const DONE: u8 = u8::MAX;

/// Adds to the `keeps` of every [`InFlight::Wait`] the rows of the operations that may be in flight there.
///
/// `successors` calls its second argument with every operation that may follow. Must run before liveness.
pub fn keep_in_flight(effects: &mut [Effects], successors: impl Fn(usize, &mut dyn FnMut(usize))) {
    let starts: Vec<usize> = (0..effects.len())
        .filter(|&i| effects[i].in_flight == InFlight::Start)
        .collect();
    if starts.is_empty() {
        return;
    }
    // Per operation and start: the least number of commits since it was issued, on any path.
    let mut states: Vec<Option<Box<[u8]>>> = vec![None; effects.len()];
    let mut work = vec![0usize];
    states[0] = Some(vec![DONE; starts.len()].into());
    let mut queued = vec![false; effects.len()];
    while let Some(i) = work.pop() {
        queued[i] = false;
        let mut out = states[i].clone().expect("queued operations have a state");
        match effects[i].in_flight {
            InFlight::None => {}
            InFlight::Start => {
                let own = starts.binary_search(&i).expect("is a start");
                out[own] = 0;
            }
            InFlight::Commit => out
                .iter_mut()
                .filter(|a| **a < DONE - 1)
                .for_each(|a| *a += 1),
            InFlight::Wait(n) => out
                .iter_mut()
                .filter(|a| u32::from(**a) > n)
                .for_each(|a| *a = DONE),
        }
        successors(i, &mut |s| {
            if s >= effects.len() {
                return;
            }
            let changed = match &mut states[s] {
                None => {
                    states[s] = Some(out.clone());
                    true
                }
                Some(old) => {
                    let mut changed = false;
                    for (o, n) in old.iter_mut().zip(&out) {
                        if n < o {
                            *o = *n;
                            changed = true;
                        }
                    }
                    changed
                }
            };
            if changed && !queued[s] {
                queued[s] = true;
                work.push(s);
            }
        });
    }
    let rows: Vec<Vec<(u32, u8)>> = starts
        .iter()
        .map(|&s| {
            let e = &effects[s];
            let mut rows: Vec<_> = [&e.reads, &e.writes, &e.keeps]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            rows.sort_unstable();
            rows.dedup();
            rows
        })
        .collect();
    for (i, effects) in effects.iter_mut().enumerate() {
        let (InFlight::Wait(_), Some(state)) = (effects.in_flight, &states[i]) else {
            continue;
        };
        let mut keeps: Vec<_> = state
            .iter()
            .zip(&rows)
            .filter(|(age, _)| **age != DONE)
            .flat_map(|(_, r)| r.iter().copied())
            .collect();
        keeps.sort_unstable();
        keeps.dedup();
        effects.keeps = keeps;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(in_flight: InFlight, row: u32) -> Effects {
        Effects {
            writes: if row > 0 { vec![(row, 1)] } else { vec![] },
            in_flight,
            ..Effects::default()
        }
    }

    fn straight(len: usize) -> impl Fn(usize, &mut dyn FnMut(usize)) {
        move |i, f| {
            if i + 1 < len {
                f(i + 1);
            }
        }
    }

    #[test]
    fn a_wait_keeps_what_may_be_in_flight_before_it() {
        use InFlight::*;
        let mut e = [
            op(Start, 7),
            op(Commit, 0),
            op(Start, 8),
            op(Commit, 0),
            op(Wait(1), 0),
            op(Wait(0), 0),
            op(Wait(0), 0),
        ];
        keep_in_flight(&mut e, straight(7));
        assert_eq!(e[4].keeps, [(7, 1), (8, 1)]);
        assert_eq!(e[5].keeps, [(8, 1)]);
        assert_eq!(e[6].keeps, []);
    }

    #[test]
    fn across_a_back_edge() {
        use InFlight::*;
        // loop: wait 0; start; commit; branch loop; after: wait 0
        let mut e = [
            op(None, 0),
            op(Wait(0), 0),
            op(Start, 5),
            op(Commit, 0),
            op(None, 0),
            op(Wait(0), 0),
        ];
        keep_in_flight(&mut e, |i, f| {
            if i == 4 {
                f(1);
            }
            if i < 5 {
                f(i + 1);
            }
        });
        assert_eq!(e[1].keeps, [(5, 1)]);
        assert_eq!(e[5].keeps, [(5, 1)]);
    }

    #[test]
    fn an_uncommitted_operation_is_not_covered_by_a_wait() {
        use InFlight::*;
        let mut e = [op(Start, 3), op(Wait(0), 0), op(Commit, 0), op(Wait(0), 0)];
        keep_in_flight(&mut e, straight(4));
        assert_eq!(e[1].keeps, [(3, 1)]);
        assert_eq!(e[3].keeps, [(3, 1)]);
    }
}

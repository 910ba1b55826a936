//! Weighted round robin: a real server of weight 3 is chosen three times as often as one of weight 1, interleaved.
//!
//! A pass over the list chooses every server whose weight reaches the current level. The level starts at the greatest weight and sinks by the
//! greatest common divisor with each pass; at the bottom it starts over (`ip_vs_wrr_schedule`).
//!
//! An edit puts the place back to the head of the list and keeps the level as well as it can (`ip_vs_wrr_dest_changed`). Adding servers one after
//! the other therefore leaves the level where the first one put it, and the sequence enters the cycle in the middle. It looks odd and is what
//! operators have seen for twenty years.

use std::sync::Arc;

use super::turn::Turn;
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `wrr`.
#[derive(Clone, Debug, Default)]
pub struct WeightedRoundRobin {
    /// Within this pass.
    turn: Turn,
    /// The level a weight must reach in this pass.
    level: i64,
    /// The greatest level: the greatest weight less (divisor - 1).
    top: i64,
    /// The greatest common divisor of the weights.
    step: i64,
}

impl Scheduler for WeightedRoundRobin {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        let dests = &service.dests;
        if self.top <= 0 {
            return None;
        }
        // From here to the end of this pass, at this level.
        let reaches =
            |at: usize, level| i64::from(dests[at].weight) >= level && is_eligible(&dests[at], counters);
        let mut chosen = (self.turn.next(dests)..dests.len()).find(|at| reaches(*at, self.level));
        if chosen.is_none() {
            // Then whole passes, each a level lower and at the bottom from the top again. Those that would find nobody are
            // skipped: between a weight of 1 and one of 2³¹ that does not count now lie as many.
            let heaviest = dests.iter().filter(|dest| is_eligible(dest, counters)).map(|d| d.weight).max();
            let Some(heaviest) = heaviest else {
                // Where the kernel's search ends.
                self.level = if self.turn.last().is_some() { 1 } else { self.top };
                return None;
            };
            self.level -= self.step;
            if self.level <= 0 {
                self.level = self.top;
            }
            let above = self.level - i64::from(heaviest);
            if above > 0 {
                self.level -= (above + self.step - 1) / self.step * self.step;
            }
            chosen = (0..dests.len()).find(|at| reaches(*at, self.level));
        }
        let at = chosen?;
        self.turn.take(dests, at);
        Some(&dests[at])
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        let weights = || new.iter().map(|d| i64::from(d.weight)).filter(|w| *w > 0);
        self.turn = Turn::default();
        self.step = weights().reduce(gcd).unwrap_or(1);
        self.top = weights().max().unwrap_or(0) - (self.step - 1);
        if self.level > self.top || self.level == 0 {
            self.level = self.top.max(0);
        } else if self.step > 1 {
            self.level = self.level / self.step * self.step + 1;
        }
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::gcd;
    use crate::sched::bench::Bench;
    use crate::service::DestId;

    fn sequence(added: &[(char, u32)], n: usize) -> String {
        let mut bench = Bench::new("wrr");
        added.iter().for_each(|(name, weight)| bench.weight(*name, *weight));
        bench.choices(n)
    }

    #[test]
    fn the_kernels_sequences() {
        assert_eq!(sequence(&[('A', 4), ('B', 3), ('C', 2)], 18), "CBAABACBACBAABACBA");
        assert_eq!(sequence(&[('C', 2), ('B', 3), ('A', 4)], 18), "ABCAABABCABCAABABC");
        assert_eq!(sequence(&[('A', 1), ('B', 2)], 6), "BABBAB");
        assert_eq!(sequence(&[('A', 5), ('B', 0), ('C', 10)], 6), "CACCAC");
        assert_eq!(sequence(&[('A', 0)], 2), "--");
    }

    #[test]
    fn levels_that_only_an_overloaded_server_reaches_are_skipped() {
        let mut bench = Bench::new("wrr");
        bench.weight('A', 1);
        bench.weight('B', i32::MAX as u32);
        assert_eq!(bench.choices(3), "BAB");
        bench.counters.set_overloaded(DestId('B' as u32), true);
        // A pass for each of the levels between took a worker three seconds, for this one choice.
        assert_eq!(bench.choices(1000), "A".repeat(1000));
    }

    /// The search as the kernel does it, a pass for each level: the list's head is place 0, servers follow.
    fn by_the_book(
        last: &mut usize,
        level: &mut i64,
        (top, step): (i64, i64),
        weights: &[i64],
    ) -> Option<usize> {
        if top == 0 {
            return None;
        }
        let start = *last;
        let (mut at, mut stop, mut last_pass, mut restarted) = (start, None, false, false);
        loop {
            while at < weights.len() {
                at += 1;
                if weights[at - 1] >= *level {
                    *last = at;
                    return Some(at - 1);
                }
                if stop == Some(at) {
                    *last = at;
                    return None;
                }
            }
            at = 0;
            *level -= step;
            if *level <= 0 {
                *level = top;
                if last_pass || start == 0 {
                    *last = 0;
                    return None;
                }
                restarted = true;
            }
            if restarted && *level <= step {
                (stop, last_pass) = (Some(start), true);
            }
        }
    }

    proptest! {
        #[test]
        fn chooses_as_a_search_through_every_level(
            weights in prop::collection::vec(prop_oneof![0i64..8, (1i64..8).prop_map(|w| w * 12)], 1..5),
            turns in prop::collection::vec((prop::collection::vec(prop::bool::weighted(0.4), 5), 1usize..6), 1..20),
        ) {
            let mut bench = Bench::new("wrr");
            let names = ['A', 'B', 'C', 'D', 'E'];
            // Newest first.
            for (name, weight) in names.iter().zip(&weights).rev() {
                bench.weight(*name, *weight as u32);
            }
            let mut live = Mark::of(&weights);
            for (overloaded, count) in turns {
                let mut left = weights.clone();
                for (at, weight) in left.iter_mut().enumerate() {
                    bench.counters.set_overloaded(DestId(names[at] as u32), overloaded[at]);
                    // Weight 0 is below every level, as is whoever may not have any.
                    *weight = if overloaded[at] { 0 } else { *weight };
                }
                for _ in 0..count {
                    let chosen = by_the_book(&mut live.last, &mut live.level, (live.top, live.step), &left);
                    let expected = chosen.map_or("-".to_owned(), |at| names[at].to_string());
                    prop_assert_eq!(bench.choices(1), expected);
                }
            }
        }
    }

    /// The kernel's mark.
    struct Mark {
        last: usize,
        level: i64,
        top: i64,
        step: i64,
    }

    impl Mark {
        /// After these weights were added, the last one first.
        fn of(weights: &[i64]) -> Self {
            let mut state = Self { last: 0, level: 0, top: 0, step: 1 };
            for first in (0..weights.len()).rev() {
                let positive = || weights[first..].iter().copied().filter(|w| *w > 0);
                state.step = positive().reduce(gcd).unwrap_or(1);
                state.top = positive().max().map_or(0, |max| max - (state.step - 1));
                if state.level > state.top || state.level == 0 {
                    state.level = state.top;
                } else if state.step > 1 {
                    state.level = state.level / state.step * state.step + 1;
                }
            }
            state
        }
    }

    #[test]
    fn an_edit_starts_the_pass_over_and_keeps_the_level() {
        let mut bench = Bench::new("wrr");
        "CBA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.choices(2), "AB");
        bench.weight('C', 3);
        assert_eq!(bench.choices(5), "ABCCC");
        bench.remove('A');
        assert_eq!(bench.choices(4), "CBCC");
    }
}

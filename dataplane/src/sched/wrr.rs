//! Weighted round robin: a real server of weight 3 is chosen three times as often as one of weight 1, interleaved.
//!
//! A pass over the list chooses every server whose weight reaches the current level. The level starts at the greatest weight and sinks by the
//! greatest common divisor with each pass; at the bottom it starts over (`ip_vs_wrr_schedule`).
//!
//! An edit puts the place back to the head of the list and keeps the level as well as it can (`ip_vs_wrr_dest_changed`). Adding servers one after
//! the other therefore leaves the level where the first one put it, and the sequence enters the cycle in the middle. It looks odd and is what
//! operators have seen for twenty years.

use std::sync::Arc;

use super::{Request, Scheduler, is_eligible};
use crate::service::{Dest, DestId, Service};
use crate::stats::Counters;

/// The scheduler `wrr`.
#[derive(Clone, Debug, Default)]
pub struct WeightedRoundRobin {
    /// The last choice of this pass; `None` is before the head of the list.
    last: Option<DestId>,
    /// The level a weight must reach in this pass.
    level: i64,
    /// The greatest level: the greatest weight less (divisor - 1).
    top: i64,
    /// The greatest common divisor of the weights.
    step: i64,
}

impl Scheduler for WeightedRoundRobin {
    fn choose(&mut self, service: &Service, _request: &Request, counters: &Counters) -> Option<Arc<Dest>> {
        let dests = &service.dests;
        if self.top <= 0 {
            return None;
        }
        let mut at =
            self.last.and_then(|last| dests.iter().position(|d| d.id == last)).map_or(0, |at| at + 1);
        // From here to the end of this pass, then whole passes down through every level and back to this one, and no further.
        let mut passes = self.top / self.step.max(1) + 2;
        while passes > 0 {
            let level = self.level;
            let chosen = dests[at.min(dests.len())..]
                .iter()
                .find(|dest| i64::from(dest.weight) >= level && is_eligible(dest, counters));
            if let Some(chosen) = chosen {
                self.last = Some(chosen.id);
                return Some(Arc::clone(chosen));
            }
            at = 0;
            self.last = None;
            self.level -= self.step;
            if self.level <= 0 {
                self.level = self.top;
            }
            passes -= 1;
        }
        None
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        let weights = || new.iter().map(|d| i64::from(d.weight)).filter(|w| *w > 0);
        self.last = None;
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
    use crate::sched::bench::Bench;

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

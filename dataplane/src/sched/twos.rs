//! Weighted power of two choices: of two real servers drawn at random, the greater the weight the likelier, the one with fewer
//! connections for its weight (`ip_vs_twos_schedule`; Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
//!
//! Both draws may hit the same server. A draw is a number from 0 to the sum of the weights inclusive, as in the kernel, so the
//! first server in the list is drawn a little too often: the first of two equals in two cases of three.

use super::{Choice, Request, Scheduler, is_eligible, overhead};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `twos`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TwoChoices;

impl Scheduler for TwoChoices {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let eligible = || service.dests.iter().filter(|dest| is_eligible(dest, counters));
        let total: u64 = eligible().map(|dest| u64::from(dest.weight)).sum();

        // Each half of the random number is one draw: a fraction of the total, in 2³²nds.
        let number = |half: u64| ((u128::from(half) * u128::from(total + 1)) >> 32) as u64;
        let drawn = |half: u64| {
            let mut sum = 0;
            let number = number(half);
            let reached = eligible().find(|dest| {
                sum += u64::from(dest.weight);
                number <= sum
            });
            // Another worker may have found one overloaded since the weights were summed.
            reached.or_else(|| eligible().next())
        };
        let (one, two) = (drawn(request.random >> 32)?, drawn(request.random & 0xffff_ffff)?);

        let load = |dest: &Dest| u128::from(overhead(dest, counters));
        let is_better = u128::from(two.weight) * load(one) > u128::from(one.weight) * load(two);
        Some(if is_better { two } else { one })
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(*self)
    }

    fn has_history(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::sched::bench::Bench;

    const LEAST: u64 = 0;
    const MOST: u64 = 0xffff_ffff;

    #[test]
    fn the_less_loaded_of_the_two_drawn() {
        let mut bench = Bench::new("twos");
        assert_eq!(bench.random(0), "-");
        bench.weight('B', 1);
        bench.weight('A', 1);
        // Draws are of 0, 1 and 2; 0 and 1 are A.
        assert_eq!(bench.random(LEAST << 32 | LEAST), "A");
        assert_eq!(bench.random(MOST << 32 | MOST), "B");
        assert_eq!(bench.random(0x5555_5555 << 32 | 0xaaaa_aaaa), "A");
        // Of equals, the first drawn.
        assert_eq!(bench.random(MOST << 32 | LEAST), "B");
        bench.active('B', 1);
        assert_eq!(bench.random(MOST << 32 | LEAST), "A");
        assert_eq!(bench.random(MOST << 32 | MOST), "B");
        bench.overload('A', true);
        assert_eq!(bench.random(LEAST), "B");
        bench.weight('B', 0);
        assert_eq!(bench.random(LEAST), "-");
    }

    #[test]
    fn connections_follow_the_weights() {
        let mut bench = Bench::new("twos");
        bench.weight('C', 1);
        bench.weight('B', 2);
        bench.weight('A', 5);
        let chosen = bench.connections(800);
        let share = |name| chosen.chars().filter(|c| *c == name).count();
        for (name, fair) in [('A', 500), ('B', 200), ('C', 100)] {
            assert!(share(name).abs_diff(fair) < 60, "{name} got {} of 800", share(name));
        }
    }
}

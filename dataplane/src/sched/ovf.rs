//! Weighted overflow: the real server of the greatest weight until it has more active connections than its weight, then the
//! next heaviest; of equals, the first (`ip_vs_ovf_schedule`).
//!
//! As many as the weight are not yet too many, so each server gets one more than its weight. UDP flows are never active: with them
//! nothing overflows.

use super::{Choice, Request, Scheduler, heaviest, is_eligible};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `ovf`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overflow;

impl Scheduler for Overflow {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        let has_room = |dest: &Dest| counters.load(dest.id).active <= u64::from(dest.weight);
        heaviest(service, |dest| is_eligible(dest, counters) && has_room(dest))
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

    #[test]
    fn one_more_than_the_weight_and_then_the_next() {
        let mut bench = Bench::new("ovf");
        bench.weight('B', 1);
        bench.weight('A', 2);
        assert_eq!(bench.connections(6), "AAABB-");
    }
}

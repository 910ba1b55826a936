//! Shortest expected delay: the real server that a connection would wait least for, were all of its connections served one after the
//! other at the speed of its weight. Only active ones count, and the new one with them (`ip_vs_sed_schedule`).

use super::{Choice, Request, Scheduler, least};
use crate::service::Service;
use crate::stats::Counters;

/// The scheduler `sed`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShortestExpectedDelay;

impl Scheduler for ShortestExpectedDelay {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        least(&service.dests, counters, |dest| counters.load(dest.id).active + 1, |dest| dest.weight.into())
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
    fn the_kernels_sequence() {
        let mut bench = Bench::new("sed");
        bench.weight('C', 3);
        bench.weight('B', 2);
        bench.weight('A', 1);
        assert_eq!(bench.connections(12), "CBCABCCBCABC");
    }
}

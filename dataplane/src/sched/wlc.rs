//! Weighted least connection, ipvsadm's default: the real server with the fewest connections for its weight
//! (`ip_vs_wlc_schedule`).

use super::{Choice, Request, Scheduler, least, overhead};
use crate::service::Service;
use crate::stats::Counters;

/// The scheduler `wlc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedLeastConnection;

impl Scheduler for WeightedLeastConnection {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        least(&service.dests, counters, |dest| overhead(dest, counters), |dest| dest.weight.into())
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
        let mut bench = Bench::new("wlc");
        bench.weight('C', 3);
        bench.weight('B', 2);
        bench.weight('A', 1);
        assert_eq!(bench.connections(12), "ABCCBCABCCBC");
    }
}

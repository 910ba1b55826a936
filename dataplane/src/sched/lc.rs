//! Least connection: the real server with the fewest connections, an active one counting as 256 others. Weights do not matter,
//! except 0 (`ip_vs_lc_schedule`).

use super::{Choice, Request, Scheduler, least, overhead};
use crate::service::Service;
use crate::stats::Counters;

/// The scheduler `lc`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastConnection;

impl Scheduler for LeastConnection {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        least(&service.dests, counters, |dest| overhead(dest, counters), |_| 1)
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
        let mut bench = Bench::new("lc");
        bench.weight('C', 1);
        bench.weight('B', 1);
        bench.weight('A', 1);
        assert_eq!(bench.connections(6), "ABCABC");
    }
}

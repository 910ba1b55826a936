//! Weighted failover: the eligible real server of the greatest weight takes everything; of equals, the first (`ip_vs_fo_schedule`).

use super::{Choice, Request, Scheduler, heaviest, is_eligible};
use crate::service::Service;
use crate::stats::Counters;

/// The scheduler `fo`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failover;

impl Scheduler for Failover {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        heaviest(service, |dest| is_eligible(dest, counters))
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
    fn the_heaviest_takes_everything_until_it_cannot() {
        let mut bench = Bench::new("fo");
        assert_eq!(bench.choices(1), "-");
        bench.weight('A', 10);
        bench.weight('B', 5);
        bench.weight('C', 5);
        assert_eq!(bench.connections(3), "AAA");
        bench.overload('A', true);
        assert_eq!(bench.connections(3), "CCC");
        bench.remove('C');
        assert_eq!(bench.connections(1), "B");
        bench.weight('B', 0);
        assert_eq!(bench.connections(1), "-");
        bench.overload('A', false);
        assert_eq!(bench.connections(1), "A");
    }
}

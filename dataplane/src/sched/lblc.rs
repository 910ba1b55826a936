//! Locality-based least connection: requests for one destination go to one real server, so that its cache stays warm, until that
//! is overworked while another idles; then the least loaded one takes the destination over (`ip_vs_lblc_schedule`).
//!
//! Made for caches in front of many destinations, that is for services by firewall mark. A remembered server is used also when it has reached
//! its upper threshold, as in the kernel. Each worker remembers for itself: a destination may have one server for each worker.

use std::sync::Arc;

use super::locality::{Locality, Server, is_overworked, milliseconds, server};
use super::{Choice, Request, Scheduler, least, overhead};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `lblc`.
#[derive(Clone, Debug, Default)]
pub struct LocalityLeastConnection {
    known: Locality<Server>,
}

impl Scheduler for LocalityLeastConnection {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let (destination, _) = request.destination;
        let expiration = milliseconds(request.sysctls.lblc_expiration);
        let known = self.known.find(destination, expiration, request.now);
        let known = known.and_then(|(known, places)| places.dest(service, known));
        if let Some(dest) = known.filter(|dest| dest.weight > 0 && !is_overworked(dest, service, counters)) {
            return Some(dest);
        }
        let dest =
            least(&service.dests, counters, |dest| overhead(dest, counters), |dest| dest.weight.into())?;
        self.known.remember(destination, server(dest), request.now);
        Some(dest)
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        self.known.edited(new);
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use crate::sched::bench::Bench;

    const ONE: &str = "10.10.0.1";
    const TWO: &str = "10.10.0.2";

    #[test]
    fn a_destination_keeps_its_server_until_that_is_overworked() {
        let mut bench = Bench::new("lblc");
        assert_eq!(bench.destination(ONE), "-");
        bench.weight('B', 1);
        bench.weight('A', 1);
        assert_eq!(bench.destination(ONE), "A");
        bench.active('A', 1);
        assert_eq!(bench.destination(ONE), "A");
        assert_eq!(bench.destination(TWO), "B");
        // Two are more than its weight, and B idles.
        bench.active('A', 1);
        assert_eq!(bench.destination(ONE), "B");
        bench.active('A', -2);
        assert_eq!(bench.destination(ONE), "B");
    }

    #[test]
    fn a_threshold_does_not_move_a_destination_but_weight_zero_and_removal_do() {
        let mut bench = Bench::new("lblc");
        bench.weight('B', 1);
        bench.weight('A', 1);
        assert_eq!(bench.destination(ONE), "A");
        bench.overload('A', true);
        assert_eq!((bench.destination(ONE), bench.destination(TWO)), ("A".into(), "B".into()));
        bench.weight('A', 0);
        assert_eq!(bench.destination(ONE), "B");
        bench.overload('A', false);
        bench.weight('A', 1);
        bench.remove('B');
        assert_eq!(bench.destination(ONE), "A");
        assert_eq!(bench.destination(TWO), "A");
    }

    #[test]
    fn a_destination_is_forgotten_when_it_was_unused_for_as_long_as_set() {
        // The table is gone through each half hour, and by requests.
        let after_an_hour = |expiration| {
            let mut bench = Bench::new("lblc");
            bench.sysctls.lblc_expiration = expiration;
            bench.weight('B', 1);
            bench.weight('A', 1);
            assert_eq!(bench.destination(ONE), "A");
            bench.active('A', 1);
            for _ in 0..60 {
                bench.now = bench.now.plus(60_000);
                bench.destination(TWO);
            }
            bench.destination(ONE)
        };
        assert_eq!((after_an_hour(86_400), after_an_hour(600)), ("A".into(), "B".into()));
    }

    #[test]
    fn a_server_that_comes_back_has_its_destinations_again() {
        let mut bench = Bench::new("lblc");
        bench.weight('A', 1);
        assert_eq!(bench.destination(ONE), "A");
        bench.remove('A');
        assert_eq!(bench.destination(ONE), "-");
        bench.weight('A', 1);
        bench.weight('B', 1);
        assert_eq!((bench.destination(ONE), bench.destination(TWO)), ("A".into(), "B".into()));
    }
}

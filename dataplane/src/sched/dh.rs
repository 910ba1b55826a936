//! Destination hash: the address that the client wants decides, through a table of 256 buckets (`ip_vs_dh_schedule`).
//!
//! The real servers take buckets in turn, whatever their weights (`ip_vs_dh_reassign`), so the table changes only when one comes or goes.
//! Who wants an address whose server takes no connection gets none; there is no fallback. Made for caches in front of
//! many destinations, that is for services by firewall mark: an ordinary service has one destination and so uses one real server.

use std::sync::Arc;

use super::hash::{BUCKETS, Slots, bucket, word};
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `dh`.
#[derive(Clone, Debug, Default)]
pub struct DestinationHash {
    buckets: Slots,
}

impl Scheduler for DestinationHash {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let dest = self.buckets.dest(service, bucket(word(request.destination.0)));
        dest.filter(|dest| is_eligible(dest, counters))
    }

    fn edited(&mut self, old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        if old.len() != new.len() {
            let places = 0..u32::try_from(new.len()).unwrap_or(u32::MAX);
            self.buckets = places.cycle().take(BUCKETS).collect();
        }
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn has_history(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use crate::sched::bench::Bench;

    #[test]
    fn servers_take_buckets_in_turn_whatever_their_weights() {
        let mut bench = Bench::new("dh");
        assert_eq!(bench.destination("10.0.0.1"), "-");
        bench.weight('A', 1);
        bench.weight('B', 7);
        bench.weight('C', 2);
        // Buckets 39, 137 and 89 of C, B, A, C, B, A, …
        let chosen = |bench: &mut Bench| {
            ["10.0.0.1", "10.0.0.2", "192.168.1.100"].map(|a| bench.destination(a)).concat()
        };
        assert_eq!(chosen(&mut bench), "CAA");
        bench.weight('C', 0);
        assert_eq!(chosen(&mut bench), "-AA");
        bench.remove('C');
        assert_eq!(chosen(&mut bench), "AAA");
        bench.overload('A', true);
        assert_eq!(chosen(&mut bench), "---");
    }
}

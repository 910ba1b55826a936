//! Never queue: the first real server without an active connection, whatever its weight; when all are busy, as [`sed`](super::sed)
//! (`ip_vs_nq_schedule`).

use std::sync::Arc;

use super::sed::ShortestExpectedDelay;
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `nq`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NeverQueue;

impl Scheduler for NeverQueue {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let is_idle = |dest: &&Arc<Dest>| is_eligible(dest, counters) && counters.load(dest.id).active == 0;
        match service.dests.iter().find(is_idle) {
            Some(idle) => Some(idle),
            None => ShortestExpectedDelay.choose(service, request, counters),
        }
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
        let mut bench = Bench::new("nq");
        bench.weight('C', 3);
        bench.weight('B', 2);
        bench.weight('A', 1);
        assert_eq!(bench.connections(12), "ABCCBCCBCABC");
    }
}

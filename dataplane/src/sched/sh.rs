//! Source hash: a client's address decides, through a table of 256 buckets (`ip_vs_sh_schedule`).
//!
//! Going around the list, each real server takes as many buckets in a row as its weight says, one at least, until the table is full
//! (`ip_vs_sh_reassign`). An edit of any kind makes the table anew, so that many clients change servers; `mh` and `conhash` do
//! that better.
//!
//! A client whose server takes no connection gets none (ICMP port unreachable), unless the flag `sh-fallback` is set:
//! then the table is searched for it, from twice its bucket on (`ip_vs_sh_get_fallback`). With `sh-port` the client's port is hashed too.

use std::sync::Arc;

use super::hash::{BUCKETS, Slots, bucket, word};
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, FALLBACK, HASH_PORT, Service};
use crate::stats::Counters;

/// The scheduler `sh`.
#[derive(Clone, Debug, Default)]
pub struct SourceHash {
    buckets: Slots,
}

impl Scheduler for SourceHash {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let (address, port) = request.client;
        let port = if service.flags & HASH_PORT != 0 { port } else { 0 };
        let home = bucket(word(address).wrapping_add(port.into()));
        let probes = if service.flags & FALLBACK != 0 { BUCKETS } else { 0 };
        let elsewhere = (0..probes).map(|offset| (2 * home + offset) % BUCKETS);
        let mut dests =
            std::iter::once(home).chain(elsewhere).filter_map(|bucket| self.buckets.dest(service, bucket));
        dests.find(|dest| is_eligible(dest, counters))
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        let places = || (0..).zip(new).flat_map(|(place, dest)| (0..dest.weight.max(1)).map(move |_| place));
        self.buckets = std::iter::repeat_with(places).take(BUCKETS).flatten().take(BUCKETS).collect();
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
    use super::*;
    use crate::sched::bench::Bench;

    #[test]
    fn weights_are_buckets_in_a_row() {
        let mut bench = Bench::new("sh");
        assert_eq!(bench.choices(1), "-");
        bench.weight('A', 1);
        bench.weight('B', 0);
        bench.weight('C', 2);
        // Buckets repeat C C B A; these clients' are 39, 137, 89 and 124.
        let clients = ["10.0.0.1", "10.0.0.2", "192.168.1.100", "203.0.113.7"];
        let chosen = |bench: &mut Bench| clients.map(|client| bench.client(client, 40_000)).concat();
        assert_eq!(chosen(&mut bench), "ACCC");
        bench.flags(HASH_PORT);
        // 203, 45, 253, 32.
        assert_eq!(chosen(&mut bench), "ACCC");
        bench.weight('B', 1);
        bench.weight('A', 0);
        assert_eq!(chosen(&mut bench), "-CCC");
        let mut table = SourceHash::default();
        table.edited(&[], bench.dests());
        assert_eq!(table.buckets.shares(3), [128, 64, 64]);
    }

    #[test]
    fn the_fallback_starts_at_twice_the_bucket() {
        let mut bench = Bench::new("sh");
        "ABCDE".chars().for_each(|name| bench.weight(name, 1));
        // Buckets repeat E D C B A; the client's is 39, of A.
        assert_eq!(bench.client("10.0.0.1", 1), "A");
        bench.flags(FALLBACK);
        // The search begins at 78, of B; 79 is A's again and 80 is E's.
        bench.overload('A', true);
        assert_eq!(bench.client("10.0.0.1", 1), "B");
        bench.overload('B', true);
        assert_eq!(bench.client("10.0.0.1", 1), "E");
        "CDE".chars().for_each(|name| bench.overload(name, true));
        assert_eq!(bench.client("10.0.0.1", 1), "-");
    }
}

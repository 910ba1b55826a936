//! Locality-based least connection with replication: as [`lblc`](super::lblc), but a destination has a set of real servers. The least loaded of the set is
//! used; when that is overworked while another server idles, the least loaded of all joins the set
//! (`ip_vs_lblcr_schedule`).
//!
//! A set that has not changed for a day (`lblcr_expiration`) loses its most loaded member with the next request, so that sets shrink when the load does.
//! Each worker remembers for itself, as with `lblc`.

use std::sync::Arc;

use super::locality::{Locality, Server, is_overworked, milliseconds, most, server};
use super::{Choice, Request, Scheduler, least, overhead};
use crate::service::{Dest, Service, Tick};
use crate::stats::Counters;

/// The scheduler `lblcr`.
#[derive(Clone, Debug, Default)]
pub struct ReplicatedLocality {
    known: Locality<Replicas>,
}

/// Members that are gone of which all are forgotten when there are so many of them.
const GONE: usize = 64;

/// The real servers of a destination.
#[derive(Clone, Debug)]
struct Replicas {
    /// Newest first. Allocated when a destination is new or its set grows, not for each request.
    servers: Vec<Server>,
    changed: Tick,
}

impl Scheduler for ReplicatedLocality {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let (destination, now) = (request.destination.0, request.now);
        let load = |dest: &Dest| overhead(dest, counters);
        let weight = |dest: &Dest| u64::from(dest.weight);
        let least_of_all = || least(&service.dests, counters, load, weight);

        let expiration = milliseconds(request.sysctls.lblcr_expiration);
        let Some((replicas, places)) = self.known.find(destination, expiration, now) else {
            let dest = least_of_all()?;
            self.known.remember(destination, Replicas { servers: vec![server(dest)], changed: now }, now);
            return Some(dest);
        };
        let members = |servers| places.dests(service, servers);
        let dest = least(members(&replicas.servers), counters, load, weight);

        if replicas.servers.len() > 1
            && now.since(replicas.changed) > expiration
            && let Some(most) = most(members(&replicas.servers), load)
        {
            replicas.servers.retain(|member| *member != server(most));
            replicas.changed = now;
        }

        if let Some(dest) = dest.filter(|dest| !is_overworked(dest, service, counters)) {
            return Some(dest);
        }
        let dest = least_of_all()?;
        if !replicas.servers.contains(&server(dest)) {
            // Servers that are gone stay members, as they may come back: in the kernel the set keeps them in the trash. Not all that there ever were, here.
            if replicas.servers.len() >= service.dests.len() + GONE {
                replicas.servers.retain(|member| places.dest(service, member).is_some());
            }
            replicas.servers.insert(0, server(dest));
            replicas.changed = now;
        }
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

    #[test]
    fn a_set_grows_when_its_best_is_overworked_and_the_least_loaded_is_used() {
        let mut bench = Bench::new("lblcr");
        assert_eq!(bench.destination(ONE), "-");
        "CBA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.destination(ONE), "A");
        bench.active('A', 2);
        assert_eq!(bench.destination(ONE), "B");
        bench.active('B', 1);
        assert_eq!(bench.destination(ONE), "B");
        bench.active('A', -2);
        assert_eq!(bench.destination(ONE), "A");
        // Of equal members, the one that joined last.
        bench.active('A', 1);
        assert_eq!(bench.destination(ONE), "B");
    }

    #[test]
    fn members_that_cannot_are_passed_over() {
        let mut bench = Bench::new("lblcr");
        "BA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.destination(ONE), "A");
        bench.overload('A', true);
        assert_eq!(bench.destination(ONE), "B");
        bench.remove('B');
        assert_eq!(bench.destination(ONE), "-");
        bench.overload('A', false);
        assert_eq!(bench.destination(ONE), "A");
        bench.weight('A', 0);
        assert_eq!(bench.destination(ONE), "-");
    }

    #[test]
    fn who_was_a_member_is_one_again_when_it_comes_back() {
        let mut bench = Bench::new("lblcr");
        "BA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.destination(ONE), "A");
        bench.active('A', 2);
        assert_eq!(bench.destination(ONE), "B");
        "AB".chars().for_each(|name| bench.remove(name));
        bench.weight('C', 1);
        assert_eq!(bench.destination(ONE), "C");
        // As C is not overworked, only a member is used instead.
        bench.active('C', 1);
        assert_eq!(bench.destination(ONE), "C");
        bench.weight('B', 1);
        assert_eq!(bench.destination(ONE), "B");
    }

    #[test]
    fn a_set_loses_its_most_loaded_member_after_a_day() {
        let mut bench = Bench::new("lblcr");
        "CBA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.destination(ONE), "A");
        bench.active('A', 2);
        assert_eq!(bench.destination(ONE), "B");
        for _ in 0..25 {
            bench.now = bench.now.plus(3_600_000);
            assert_eq!(bench.destination(ONE), "B");
        }
        // A is no member any more: C, as idle as A now, may join instead.
        bench.active('A', -2);
        bench.active('B', 2);
        bench.overload('A', true);
        assert_eq!(bench.destination(ONE), "C");
        bench.overload('A', false);
        bench.active('C', 1);
        assert_eq!(bench.destination(ONE), "C");
    }
}

//! Round robin: each eligible real server in turn. Weights do not matter, except 0.
//!
//! The scheduler remembers the real server it chose last and goes on behind it. A new server at the head of the list does not move
//! the memory; when the remembered server is removed, its predecessor is remembered instead (`ip_vs_rr_del_dest`), so
//! that its successor is still the next.

use std::sync::Arc;

use super::turn::Turn;
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, DestId, Service};
use crate::stats::Counters;

/// The scheduler `rr`.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    turn: Turn,
}

impl Scheduler for RoundRobin {
    fn choose<'a>(&mut self, service: &'a Service, _request: &Request, counters: &Counters) -> Choice<'a> {
        let dests = &service.dests;
        let behind = self.turn.next(dests);
        let at = (behind..dests.len()).chain(0..behind).find(|at| is_eligible(&dests[*at], counters))?;
        self.turn.take(dests, at);
        Some(&dests[at])
    }

    fn edited(&mut self, old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        let is_there = |id: DestId| new.iter().any(|d| d.id == id);
        let Some(last) = self.turn.last().filter(|last| !is_there(*last)) else { return };
        let at = old.iter().position(|d| d.id == last).unwrap_or(0);
        self.turn = Turn::behind(old[..at].iter().rev().map(|d| d.id).find(|id| is_there(*id)));
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use crate::sched::bench::Bench;

    #[test]
    fn newest_first_and_around() {
        let mut bench = Bench::new("rr");
        assert_eq!(bench.choices(1), "-");
        bench.weight('C', 1);
        bench.weight('B', 0);
        bench.weight('A', 7);
        assert_eq!(bench.choices(4), "ACAC");
        bench.weight('B', 1);
        assert_eq!(bench.choices(4), "ABCA");
    }

    #[test]
    fn removing_the_last_choice_goes_on_with_its_successor() {
        let mut bench = Bench::new("rr");
        "CBA".chars().for_each(|name| bench.weight(name, 1));
        assert_eq!(bench.choices(2), "AB");
        bench.remove('B');
        assert_eq!(bench.choices(2), "CA");
        bench.remove('A');
        bench.weight('D', 1);
        assert_eq!(bench.choices(2), "DC");
    }
}

//! The schedulers: which real server gets a new connection. A file each, behind one small trait, and a table of their names.
//!
//! A scheduler knows no packet. It walks the service's real servers in the kernel's order, newest first, and must choose what kernel
//! IPVS would choose after the same history of choices and edits. Each worker has its own copy of each service's
//! scheduler; a copy learns of an edit by [`Scheduler::edited`], one edit at a time.

mod lc;
mod nq;
mod rr;
mod sed;
mod wlc;
mod wrr;

use std::sync::Arc;

use crate::service::{Dest, Service};
use crate::stats::Counters;

/// A way to choose a real server.
pub trait Scheduler: Send + Sync {
    /// Chooses among the service's real servers; `None` when none may take a connection.
    fn choose(&mut self, service: &Service, counters: &Counters) -> Option<Arc<Dest>>;

    /// Learns that the service's real servers were `old` and are now those of `new`.
    fn edited(&mut self, old: &[Arc<Dest>], new: &[Arc<Dest>]);

    /// A copy, for another worker.
    fn boxed(&self) -> Box<dyn Scheduler>;
}

type Make = fn() -> Box<dyn Scheduler>;

/// The schedulers by the name that operators type.
const SCHEDULERS: &[(&str, Make)] = &[
    ("rr", || Box::new(rr::RoundRobin::default())),
    ("wrr", || Box::new(wrr::WeightedRoundRobin::default())),
    ("lc", || Box::new(lc::LeastConnection)),
    ("wlc", || Box::new(wlc::WeightedLeastConnection)),
    ("sed", || Box::new(sed::ShortestExpectedDelay)),
    ("nq", || Box::new(nq::NeverQueue)),
];

/// The names of all schedulers.
pub const NAMES: &[&str] = {
    const ALL: [&str; SCHEDULERS.len()] = {
        let mut names = [""; SCHEDULERS.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = SCHEDULERS[at].0;
            at += 1;
        }
        names
    };
    &ALL
};

/// A scheduler for a service without real servers, and its name.
pub fn by_name(name: &str) -> Option<(&'static str, Box<dyn Scheduler>)> {
    SCHEDULERS.iter().find(|(n, _)| *n == name).map(|(name, make)| (*name, make()))
}

/// Whether a real server may get new connections at all.
fn is_eligible(dest: &Dest, counters: &Counters) -> bool {
    dest.weight > 0 && !counters.is_overloaded(dest.id)
}

/// What a real server's connections weigh to `lc` and `wlc`: an active one as much as 256 others (`ip_vs_dest_conn_overhead`).
fn overhead(dest: &Dest, counters: &Counters) -> u64 {
    let load = counters.load(dest.id);
    (load.active << 8) + load.inactive
}

/// The eligible real server with the least `load` for its weight; of equals, the first.
///
/// Loads are compared without division, by multiplying crosswise, as the kernel does.
fn least<'a>(
    service: &'a Service,
    counters: &Counters,
    load: impl Fn(&Dest) -> u64,
    weigh: impl Fn(&Dest) -> u64,
) -> Option<&'a Arc<Dest>> {
    let eligible = service.dests.iter().filter(|dest| is_eligible(dest, counters));
    let weighed = eligible.map(|dest| (dest, u128::from(load(dest)), u128::from(weigh(dest))));
    let least = weighed.reduce(|best, next| if best.1 * next.2 > next.1 * best.2 { next } else { best });
    least.map(|(dest, ..)| dest)
}

/// Plays a service's history through a scheduler, for tests.
#[cfg(test)]
mod bench {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::service::{DestId, Forwarding, Protocol, ServiceId, WorkerId};
    use crate::stats::add;

    pub struct Bench {
        service: Service,
        scheduler: Box<dyn Scheduler>,
        pub counters: Counters,
    }

    impl Bench {
        pub fn new(name: &str) -> Self {
            let (scheduler_name, scheduler) = by_name(name).unwrap();
            Self {
                service: Service {
                    id: ServiceId(0),
                    protocol: Protocol::Tcp,
                    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    port: 80,
                    dests: Vec::new(),
                    scheduler_name,
                    scheduler: Arc::from(scheduler.boxed()),
                },
                scheduler,
                counters: Counters::new(1).unwrap(),
            }
        }

        fn edit(&mut self, change: impl FnOnce(&mut Vec<Arc<Dest>>)) {
            let old = self.service.dests.clone();
            change(&mut self.service.dests);
            self.scheduler.edited(&old, &self.service.dests);
        }

        /// Adds a server named by a letter, or changes its weight.
        pub fn weight(&mut self, name: char, weight: u32) {
            let dest = Arc::new(Dest {
                id: DestId(name as u32),
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 80,
                forwarding: Forwarding::Route,
                tunnel: Default::default(),
                weight,
                upper_threshold: 0,
                lower_threshold: 0,
            });
            self.edit(|dests| match dests.iter_mut().find(|d| d.id == dest.id) {
                Some(old) => *old = dest,
                None => dests.insert(0, dest),
            });
        }

        pub fn remove(&mut self, name: char) {
            self.edit(|dests| dests.retain(|d| d.id.0 != name as u32));
        }

        /// The next `n` choices, each of which opens a connection that stays active.
        pub fn connections(&mut self, n: usize) -> String {
            (0..n)
                .map(|_| {
                    let chosen = self.choices(1);
                    let id = DestId(chosen.chars().next().map_or(0, u32::from));
                    add(&self.counters.worker(WorkerId(0)).dest(id).active, 1);
                    chosen
                })
                .collect()
        }

        /// The next `n` choices; `-` is nobody.
        pub fn choices(&mut self, n: usize) -> String {
            (0..n)
                .map(|_| {
                    let chosen = self.scheduler.choose(&self.service, &self.counters);
                    chosen.and_then(|d| char::from_u32(d.id.0)).unwrap_or('-')
                })
                .collect()
        }
    }
}

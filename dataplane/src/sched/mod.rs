//! The schedulers: which real server gets a new connection. A file each, behind one small trait, and a table of their names.
//!
//! A scheduler knows no packet, only the [`Request`] that one makes. It walks the service's real servers in the kernel's order, newest
//! first, and must choose what kernel IPVS would choose after the same history of choices and edits.
//!
//! Control keeps a scheduler of each service at rest and tells it of each edit by [`Scheduler::edited`]; this is where tables are made.
//! Each worker has a copy. Where a scheduler is what its real servers are and nothing else (`sh`, `dh`, `mh`, `conhash`), a worker takes a new
//! copy after an edit, which shares the table: all workers agree. Where it has a history (`rr`, `wrr`, `lblc`, `lblcr`), the worker's
//! own copy learns of the edit and goes on.

mod conhash;
mod dh;
mod fo;
mod hash;
mod lblc;
mod lblcr;
mod lc;
mod locality;
mod mh;
mod none;
mod nq;
mod ovf;
mod rr;
mod sed;
mod sh;
mod turn;
mod twos;
mod wlc;
mod wrr;

use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{Dest, Service, Sysctls, Tick};
use crate::stats::Counters;

/// What a scheduler may know of a new connection.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The client's address and port.
    pub client: (IpAddr, u16),
    /// The address and port it wants: the service's, or any of those that share the service's mark.
    pub destination: (IpAddr, u16),
    /// The time.
    pub now: Tick,
    /// A random number for this request alone. Schedulers have no other source, so a test can repeat them.
    pub random: u64,
    /// The settings in force.
    pub sysctls: &'a Sysctls,
}

/// The real server that was chosen; `None` when none may take the connection. It is borrowed: the count of its holders would be one word that all workers write.
pub type Choice<'a> = Option<&'a Arc<Dest>>;

/// A way to choose a real server.
pub trait Scheduler: Send + Sync {
    /// Chooses among the service's real servers.
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a>;

    /// Learns that the service's real servers were `old` and are now those of `new`. One that remembers nothing need not know.
    fn edited(&mut self, _old: &[Arc<Dest>], _new: &[Arc<Dest>]) {}

    /// A copy, for another worker.
    fn boxed(&self) -> Box<dyn Scheduler>;

    /// Whether past choices, or the order of past edits, matter to future choices. If not, one edit from nothing to all real
    /// servers makes the same scheduler as any number of small ones, and a copy from elsewhere can take its place.
    fn has_history(&self) -> bool {
        true
    }
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
    ("sh", || Box::new(sh::SourceHash::default())),
    ("dh", || Box::new(dh::DestinationHash::default())),
    ("lblc", || Box::new(lblc::LocalityLeastConnection::default())),
    ("lblcr", || Box::new(lblcr::ReplicatedLocality::default())),
    ("mh", || Box::new(mh::Maglev::default())),
    ("fo", || Box::new(fo::Failover)),
    ("ovf", || Box::new(ovf::Overflow)),
    ("twos", || Box::new(twos::TwoChoices)),
    ("none", || Box::new(none::Nobody)),
    ("conhash", || Box::new(conhash::ConsistentHash::default())),
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

/// The real server of the greatest weight among those that `may`; of equals, the first.
fn heaviest(service: &Service, may: impl Fn(&Dest) -> bool) -> Option<&Arc<Dest>> {
    let candidates = service.dests.iter().filter(|dest| may(dest));
    candidates.reduce(|best, next| if next.weight > best.weight { next } else { best })
}

/// The eligible real server with the least `load` for its weight; of equals, the first.
///
/// Loads are compared without division, by multiplying crosswise, as the kernel does.
fn least<'a>(
    dests: impl IntoIterator<Item = &'a Arc<Dest>>,
    counters: &Counters,
    load: impl Fn(&Dest) -> u64,
    weigh: impl Fn(&Dest) -> u64,
) -> Option<&'a Arc<Dest>> {
    let eligible = dests.into_iter().filter(|dest| is_eligible(dest, counters));
    let weighed = eligible.map(|dest| (dest, u128::from(load(dest)), u128::from(weigh(dest))));
    let least = weighed.reduce(|best, next| if best.1 * next.2 > next.1 * best.2 { next } else { best });
    least.map(|(dest, ..)| dest)
}

/// Plays a service's history through a scheduler, for tests.
#[cfg(test)]
mod bench {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::service::{DestId, Forwarding, Protocol, ServiceId, WorkerId};
    use crate::stats::add;

    pub struct Bench {
        service: Service,
        scheduler: Box<dyn Scheduler>,
        pub counters: Counters,
        pub now: Tick,
        random: u64,
        pub sysctls: Sysctls,
    }

    /// The real server of a letter is 10.1.0.n, n being the letter's place in the alphabet, port 80.
    pub fn dest(name: char, weight: u32, last_weight: u32) -> Dest {
        Dest {
            id: DestId(name as u32),
            address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, name as u8 - b'A' + 1)),
            port: 80,
            forwarding: Forwarding::Route,
            tunnel: Default::default(),
            tell: Default::default(),
            weight,
            last_weight,
            upper_threshold: 0,
            lower_threshold: 0,
            mss: None,
            every_port: false,
        }
    }

    impl Bench {
        pub fn new(name: &str) -> Self {
            let (scheduler_name, scheduler) = by_name(name).unwrap();
            Self {
                service: Service {
                    mark: None,
                    id: ServiceId(0),
                    protocol: Protocol::Tcp,
                    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    port: 80,
                    dests: Vec::new(),
                    locals: Vec::new(),
                    edits: 0,
                    persistence: None,
                    one_packet: false,
                    flags: 0,
                    scheduler_name,
                    scheduler: Arc::from(scheduler.boxed()),
                },
                scheduler,
                counters: Counters::new(1).unwrap(),
                now: Tick(0),
                random: 1,
                sysctls: Sysctls::default(),
            }
        }

        fn edit(&mut self, change: impl FnOnce(&mut Vec<Arc<Dest>>)) {
            let old = self.service.dests.clone();
            change(&mut self.service.dests);
            self.scheduler.edited(&old, &self.service.dests);
        }

        /// Adds a server named by a letter, or changes its weight.
        pub fn weight(&mut self, name: char, weight: u32) {
            self.edit(|dests| match dests.iter_mut().find(|d| d.id.0 == name as u32) {
                Some(old) => {
                    let last_weight = if weight > 0 { weight } else { old.last_weight };
                    *old = Arc::new(dest(name, weight, last_weight));
                }
                None => dests.insert(0, Arc::new(dest(name, weight, weight))),
            });
        }

        pub fn remove(&mut self, name: char) {
            self.edit(|dests| dests.retain(|d| d.id.0 != name as u32));
        }

        /// Replaces all servers by others, at once.
        pub fn replace(&mut self, dests: Vec<Arc<Dest>>) {
            self.edit(|old| *old = dests);
        }

        pub fn dests(&self) -> &[Arc<Dest>] {
            &self.service.dests
        }

        pub fn flags(&mut self, flags: u8) {
            self.service.flags = flags;
        }

        pub fn overload(&mut self, name: char, overloaded: bool) {
            self.counters.set_overloaded(DestId(name as u32), overloaded);
        }

        /// Opens as many connections to a server, or with a negative number closes some.
        pub fn active(&mut self, name: char, n: i64) {
            add(&self.counters.worker(WorkerId(0)).dest(DestId(name as u32)).active, n as u64);
        }

        /// The next `n` choices, each of which opens a connection that stays active.
        pub fn connections(&mut self, n: usize) -> String {
            (0..n)
                .map(|_| {
                    let chosen = self.choices(1);
                    chosen.chars().filter(|name| *name != '-').for_each(|name| self.active(name, 1));
                    chosen
                })
                .collect()
        }

        /// The next `n` choices; `-` is nobody.
        pub fn choices(&mut self, n: usize) -> String {
            (0..n).map(|_| self.choice("192.0.2.1".parse().unwrap(), 1024, [10, 9, 0, 1].into())).collect()
        }

        /// The choice for a client.
        pub fn client(&mut self, address: &str, port: u16) -> String {
            self.choice(address.parse().unwrap(), port, [10, 9, 0, 1].into()).into()
        }

        /// The choice for a destination.
        pub fn destination(&mut self, address: &str) -> String {
            self.choice([192, 0, 2, 1].into(), 1024, address.parse().unwrap()).into()
        }

        /// The choice with this random number.
        pub fn random(&mut self, random: u64) -> String {
            let sysctls = self.sysctls;
            let request = self.request([192, 0, 2, 1].into(), 1024, [10, 9, 0, 1].into(), &sysctls);
            let request = Request { random, ..request };
            name(self.scheduler.choose(&self.service, &request, &self.counters)).into()
        }

        fn choice(&mut self, client: IpAddr, port: u16, destination: IpAddr) -> char {
            let sysctls = self.sysctls;
            let request = self.request(client, port, destination, &sysctls);
            name(self.scheduler.choose(&self.service, &request, &self.counters))
        }

        fn request<'a>(
            &mut self,
            client: IpAddr,
            port: u16,
            destination: IpAddr,
            sysctls: &'a Sysctls,
        ) -> Request<'a> {
            // A full period of 64 bits; the low ones are poor, so they are folded (PCG's multiplier).
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let random = self.random ^ self.random >> 32;
            Request { client: (client, port), destination: (destination, 80), now: self.now, random, sysctls }
        }
    }

    fn name(chosen: Choice) -> char {
        chosen.and_then(|d| char::from_u32(d.id.0)).unwrap_or('-')
    }
}

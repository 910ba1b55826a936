//! A worker's own schedulers: one for each service, fed with each edit; and the random numbers they may need.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

use crate::conn::table::Secret;
use crate::sched::{Choice, Request, Scheduler};
use crate::service::{Service, ServiceId, Services, Sysctls, Tick, WorkerId};
use crate::stats::Counters;

/// The schedulers of one worker.
pub struct Schedulers {
    worker: WorkerId,
    random: Random,
    by_service: HashMap<ServiceId, Own>,
}

struct Own {
    service: Arc<Service>,
    scheduler: Box<dyn Scheduler>,
    /// Whether it has been moved on by the worker's number.
    staggered: bool,
}

impl Schedulers {
    /// No schedulers yet. The secret seeds the random numbers, and cannot be told from them.
    pub fn new(worker: WorkerId, secret: &Secret) -> Self {
        let [a, b, c] = secret.0;
        let mut seed = SipHasher13::new_with_keys(a, b);
        seed.write_u64(c);
        seed.write_u8(worker.0);
        Self { worker, random: Random(seed.finish()), by_service: HashMap::new() }
    }

    /// Chooses a real server for a new connection of a service.
    pub fn choose<'a>(
        &mut self,
        service: &'a Service,
        client: (IpAddr, u16),
        destination: (IpAddr, u16),
        now: Tick,
        (sysctls, counters): (&Sysctls, &Counters),
    ) -> Choice<'a> {
        let own = self.by_service.get_mut(&service.id)?;
        let request = Request { client, destination, now, random: self.random.next(), sysctls };
        // All workers start with copies of one state. Each begins as many choices further on as its number says, or their first
        // connections would all go to the same real server.
        if !own.staggered {
            own.staggered = true;
            for _ in 0..self.worker.0 {
                own.scheduler.choose(service, &request, counters);
            }
        }
        own.scheduler.choose(service, &request, counters)
    }

    /// Learns what has changed between two tables of services.
    pub fn adopt(&mut self, old: Option<&Arc<Services>>, new: &Arc<Services>) {
        if old.is_some_and(|old| Arc::ptr_eq(old, new)) {
            return;
        }
        for service in new.iter() {
            match self.by_service.get_mut(&service.id) {
                Some(own) if Arc::ptr_eq(&own.service, service) => {}
                Some(own) if own.service.scheduler_name == service.scheduler_name => {
                    if !own.scheduler.has_history() {
                        own.scheduler = service.scheduler.boxed();
                    } else if (own.service.edits, &own.service.dests) != (service.edits, &service.dests) {
                        own.scheduler.edited(&own.service.dests, &service.dests);
                    }
                    own.service = Arc::clone(service);
                }
                _ => {
                    let scheduler = service.scheduler.boxed();
                    let staggered = !scheduler.has_history();
                    let own = Own { service: Arc::clone(service), scheduler, staggered };
                    self.by_service.insert(service.id, own);
                }
            }
        }
        if self.by_service.len() > new.iter().count() {
            self.by_service.retain(|id, _| new.iter().any(|service| service.id == *id));
        }
    }
}

/// A generator of random numbers: SplitMix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014). For spreading load,
/// not for secrets.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sched;
    use crate::service::{Dest, DestId, Forwarding, Protocol};

    const SECRET: Secret = Secret::new([1, 2, 3]);

    /// A service as control publishes it after edits: real servers of these weights, the newest first.
    fn service(name: &str, weights: &[u32]) -> Arc<Service> {
        let dest = |(n, weight): (u32, &u32)| {
            Arc::new(Dest {
                id: DestId(n),
                address: IpAddr::from([10, 1, 0, n as u8]),
                port: 80,
                forwarding: Forwarding::Route,
                tunnel: Default::default(),
                tell: Default::default(),
                weight: *weight,
                last_weight: (*weight).max(1),
                upper_threshold: 0,
                lower_threshold: 0,
                mss: None,
                every_port: false,
            })
        };
        let dests: Vec<_> = (1..).zip(weights).map(dest).collect();
        let (scheduler_name, mut scheduler) = sched::by_name(name).unwrap();
        scheduler.edited(&[], &dests);
        Arc::new(Service {
            id: ServiceId(1),
            mark: None,
            protocol: Protocol::Tcp,
            address: [10, 9, 0, 1].into(),
            port: 80,
            dests,
            locals: Vec::new(),
            edits: 0,
            persistence: None,
            one_packet: false,
            flags: 0,
            scheduler_name,
            scheduler: Arc::from(scheduler),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever each worker was asked before, and whenever it met the service.
        #[test]
        fn all_workers_agree_where_a_hash_decides(
            name in prop::sample::select(vec!["sh", "dh", "mh", "conhash"]),
            first in prop::collection::vec(0u32..4, 0..8),
            second in prop::collection::vec(0u32..4, 0..8),
            clients in prop::collection::vec(any::<u32>(), 20),
        ) {
            let services = [first, second].map(|weights| service(name, &weights));
            let tables = services.clone().map(|service| Arc::new(Services::new([service])));
            let (sysctls, counters) = (Sysctls::default(), Counters::new(4).unwrap());
            let mut workers: Vec<_> = (0..4).map(|n| Schedulers::new(WorkerId(n), &SECRET)).collect();
            let choose = |worker: &mut Schedulers, service, client: u32| {
                let client = (std::net::Ipv4Addr::from_bits(client).into(), client as u16);
                let chosen = worker.choose(service, client, (client.0, 80), Tick(0), (&sysctls, &counters));
                chosen.map(|dest| dest.address)
            };
            for (n, worker) in workers.iter_mut().enumerate().skip(1) {
                worker.adopt(None, &tables[0]);
                for client in &clients[..n] {
                    choose(worker, &services[0], *client);
                }
                worker.adopt(Some(&tables[0]), &tables[1]);
            }
            workers[0].adopt(None, &tables[1]);
            for client in &clients {
                let chosen: Vec<_> =
                    workers.iter_mut().map(|worker| choose(worker, &services[1], *client)).collect();
                prop_assert!(chosen.windows(2).all(|two| two[0] == two[1]), "{chosen:?}");
            }
        }
    }

    #[test]
    fn workers_draw_different_numbers_and_each_the_same_again() {
        let draw = |n| Schedulers::new(WorkerId(n), &SECRET).random.next();
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }

    #[test]
    fn the_published_sequence() {
        let mut random = Random(1_234_567);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}

//! A worker's own schedulers: one for each service, fed with each edit; and the random numbers they may need.

use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

use crate::conn::table::Secret;
use crate::sched::{Request, Scheduler};
use crate::service::{Dest, Service, ServiceId, Services, Tick, WorkerId};
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
    pub fn choose(
        &mut self,
        service: &Arc<Service>,
        client: (IpAddr, u16),
        destination: (IpAddr, u16),
        now: Tick,
        counters: &Counters,
    ) -> Option<Arc<Dest>> {
        let own = self.by_service.get_mut(&service.id)?;
        let request = Request { client, destination, now, random: self.random.next() };
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
                    } else if own.service.dests != service.dests {
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
    use super::*;

    #[test]
    fn the_published_sequence() {
        let mut random = Random(1_234_567);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}

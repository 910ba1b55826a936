//! A worker's own schedulers: one for each service, fed with each edit.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::sched::Scheduler;
use crate::service::{Dest, Service, ServiceId, Services, WorkerId};
use crate::stats::Counters;

/// The schedulers of one worker.
pub struct Schedulers {
    worker: WorkerId,
    by_service: HashMap<ServiceId, Own>,
}

struct Own {
    service: Arc<Service>,
    scheduler: Box<dyn Scheduler>,
    /// Whether it has been moved on by the worker's number.
    staggered: bool,
}

impl Schedulers {
    /// No schedulers yet.
    pub fn new(worker: WorkerId) -> Self {
        Self { worker, by_service: HashMap::new() }
    }

    /// Chooses a real server for a new connection of a service.
    pub fn choose(&mut self, service: &Arc<Service>, counters: &Counters) -> Option<Arc<Dest>> {
        let own = self.by_service.get_mut(&service.id)?;
        // All workers start with copies of one state. Each begins as many choices further on as its number says, or their first
        // connections would all go to the same real server.
        if !own.staggered {
            own.staggered = true;
            for _ in 0..self.worker.0 {
                own.scheduler.choose(service, counters);
            }
        }
        own.scheduler.choose(service, counters)
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
                    if own.service.dests != service.dests {
                        own.scheduler.edited(&own.service.dests, &service.dests);
                    }
                    own.service = Arc::clone(service);
                }
                _ => {
                    let scheduler = service.scheduler.boxed();
                    let own = Own { service: Arc::clone(service), scheduler, staggered: false };
                    self.by_service.insert(service.id, own);
                }
            }
        }
        if self.by_service.len() > new.iter().count() {
            self.by_service.retain(|id, _| new.iter().any(|service| service.id == *id));
        }
    }
}

//! The local addresses of FullNAT, with their counters, which outlive edits.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use shunt_dataplane::service::Local;

use crate::api::{LocalEntry, ServiceKey};
use crate::rules::{Rules, Service};

/// Every local address that is in use, by the service it serves.
#[derive(Default)]
pub struct Locals(HashMap<(ServiceKey, IpAddr), Arc<Local>>);

impl Locals {
    /// Those of a service, for `workers` workers.
    pub fn of(&mut self, service: &Service, workers: usize) -> Vec<Arc<Local>> {
        let key = service.config.key;
        let known = service.locals.iter().map(|address| {
            let known = self.0.entry((key, *address));
            Arc::clone(known.or_insert_with(|| Arc::new(Local::new(*address, workers))))
        });
        known.collect()
    }

    /// Forgets those that the rules no longer have, once their connections are gone.
    pub fn forget(&mut self, rules: &Rules) {
        self.0.retain(|(key, address), local| {
            local.conns() > 0 || rules.service(key).is_some_and(|service| service.locals.contains(address))
        });
    }

    /// Whether [`forget`](Self::forget) would forget any.
    pub fn is_outdated(&self, rules: &Rules) -> bool {
        self.0.iter().any(|((key, address), local)| {
            local.conns() == 0 && !rules.service(key).is_some_and(|s| s.locals.contains(address))
        })
    }

    /// Each address, once.
    pub fn addresses(&self) -> HashSet<IpAddr> {
        self.0.keys().map(|(_, address)| *address).collect()
    }

    /// Fills the counters of listed addresses in.
    pub fn count(&self, entries: &mut [LocalEntry]) {
        for entry in entries {
            for listed in &mut entry.addresses {
                if let Some(local) = self.0.get(&(entry.service, listed.address)) {
                    (listed.conns, listed.exhausted) = (local.conns(), local.exhausted());
                }
            }
        }
    }

    /// How often connections of each service found a local address without a free port.
    pub fn exhausted(&self) -> impl Iterator<Item = (&ServiceKey, &IpAddr, u64)> {
        self.0.iter().map(|((key, address), local)| (key, address, local.exhausted()))
    }
}

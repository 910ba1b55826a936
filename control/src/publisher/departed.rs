//! Removed services whose connections go on.
//!
//! IPVS says nothing to a packet of a connection whose real server was removed, and if that is added again the connection goes on. For that the packets must
//! come here, and not to the kernel, which answers with RSTs. So the service stays until its last connection is gone, without real servers: whoever is
//! new is told that nobody is there.

use std::collections::HashMap;
use std::sync::Arc;

use shunt_dataplane::sched;
use shunt_dataplane::service::{self, Service};
use shunt_dataplane::steer::Target;

use crate::api::{Protocol, ServiceKey};
use crate::rules::Rules;

/// These services. Those of a mark are not among them: what is marked for a service that is not there is the kernel's.
#[derive(Default)]
pub struct Departed(HashMap<ServiceKey, Arc<Service>>);

impl Departed {
    /// Notes that a service was removed.
    pub fn add(&mut self, key: &ServiceKey, service: &Service) {
        let ServiceKey::Address { .. } = key else { return };
        let (scheduler_name, scheduler) = sched::by_name("rr").expect("every kernel has round robin");
        let nobody = Service {
            id: service.id,
            mark: None,
            protocol: service.protocol,
            address: service.address,
            port: service.port,
            dests: Vec::new(),
            edits: service.edits,
            locals: Vec::new(),
            persistence: None,
            one_packet: false,
            flags: 0,
            scheduler_name,
            scheduler: Arc::from(scheduler),
        };
        self.0.insert(*key, Arc::new(nobody));
    }

    /// Forgets all but these.
    pub fn keep(&mut self, stays: impl Fn(&ServiceKey) -> bool) {
        self.0.retain(|key, _| stays(key));
    }

    /// Whose they were.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.0.keys()
    }

    /// What workers know of them.
    pub fn services(&self) -> impl Iterator<Item = Arc<Service>> {
        self.0.values().map(Arc::clone)
    }

    /// Their frames.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.0.values().map(|service| Target::Service {
            protocol: service.protocol,
            address: service.address,
            port: service.port,
        })
    }
}

/// Whether another service takes what comes to a removed one's port: that of all ports, or persistent FTP, to whose data any high port may belong.
pub fn is_taken_over(rules: &Rules, removed: &ServiceKey) -> bool {
    let ServiceKey::Address { protocol, address, port } = *removed else { return false };
    let at = |port| rules.service(&ServiceKey::Address { protocol, address, port });
    let is_ftp_data = protocol == Protocol::Tcp && service::is_ftp_data(port);
    at(0).is_some() || is_ftp_data && at(service::FTP).is_some_and(|ftp| ftp.config.persistent.is_some())
}

//! The rules: which services there are, which servers each has, the timeouts and the settings. The authority on all four.
//!
//! [`Rules`] is plain data. It does no I/O, reads no clock and can be cloned, so that a change can be tried on a copy,
//! published, and only then kept. [`Rules::apply`] holds every change against what kernel IPVS would say, errno for
//! errno, and answers with a [`Change`] from which a new snapshot for the data plane is made. Counters live with the
//! workers and are joined in by whoever answers a listing.
//!
//! Order is part of the answer. Services stand in the order of the kernel's hash buckets, newest first in each, which
//! is what `ipvsadm --nosort` shows; servers newest first, which is also where schedulers start.

mod capabilities;
mod check;
mod restore;
mod sysctl;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use capabilities::Capabilities;
pub use check::{MIN_MSS, Refusal};
pub use restore::RestoreError;
use shunt_dataplane::service::Sysctls;

use crate::api::{
    LocalAddress, LocalEntry, Request, ServerConfig, ServerEntry, ServerKey, ServiceConfig, ServiceEntry,
    ServiceKey, Stats, Timeouts,
};
use crate::marks::MarkRule;

/// The timeouts a fresh IPVS has, in seconds.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };

/// All rules.
#[derive(Clone, Debug)]
pub struct Rules {
    capabilities: Capabilities,
    /// Shared with listings under way: what an edit changes is copied first.
    services: BTreeMap<Bucket, Vec<Arc<Service>>>,
    /// Rules that mark packets, in the order in which they were added.
    marks: Vec<MarkRule>,
    timeouts: Timeouts,
    sysctls: Sysctls,
}

/// A service with its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its settings.
    pub config: ServiceConfig,
    /// Its servers, newest first.
    pub servers: Vec<ServerConfig>,
    /// Edits of its servers so far. Schedulers hear of each, also of one that changes nothing.
    pub edits: u64,
    /// Its local addresses, oldest first: what FullNAT servers see as clients.
    pub locals: Vec<IpAddr>,
}

/// What a request changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A service was removed, with these servers.
    ServiceRemoved(Service),
    /// A service was added, without servers.
    ServiceAdded(ServiceKey),
    /// A service has other settings; its servers are as before.
    ServiceEdited(ServiceKey),
    /// A server was added.
    ServerAdded(ServiceKey, ServerKey),
    /// A server has other settings.
    ServerEdited(ServiceKey, ServerKey),
    /// A server was removed.
    ServerRemoved(ServiceKey, ServerConfig),
    /// A service has one more local address.
    LocalAdded(ServiceKey, IpAddr),
    /// A service has lost a local address.
    LocalRemoved(ServiceKey, IpAddr),
    /// These services, all there were, were removed.
    Flushed(Vec<Service>),
    /// Packets are marked by other rules now.
    Marks,
    /// The timeouts are these now.
    Timeouts(Timeouts),
    /// The settings are these now.
    Sysctls(Sysctls),
    /// The counters of one service, or of all, are to be set to zero. The rules are as before.
    Zeroed(Option<ServiceKey>),
    /// Nothing; the request only asks.
    Nothing,
}

/// Where a service stands in the kernel's two tables: those with an address come first, then those with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket {
    by_mark: bool,
    hash: u8,
}

impl Rules {
    /// No rules, for a director that can do this much.
    pub fn new(capabilities: Capabilities) -> Rules {
        Rules {
            capabilities,
            services: BTreeMap::new(),
            marks: Vec::new(),
            timeouts: DEFAULT_TIMEOUTS,
            sysctls: Sysctls::default(),
        }
    }

    /// Reads rules in the format of `ipvsadm -S` and `shunt mark list`; lines that begin with `#` are comments. All or nothing.
    pub fn restore(capabilities: Capabilities, text: &str) -> Result<Rules, RestoreError> {
        restore::restore(capabilities, text)
    }

    /// Carries out a request, or says why not; then nothing has changed.
    pub fn apply(&mut self, request: &Request) -> Result<Change, Refusal> {
        match request {
            Request::AddService(config) => self.add_service(config),
            Request::EditService(config) => self.edit_service(config),
            Request::DeleteService(key) => self.delete_service(key),
            Request::AddServer(key, server) => self.add_server(key, server),
            Request::EditServer(key, server) => self.edit_server(key, server),
            Request::DeleteServer(key, server) => self.delete_server(key, server),
            Request::AddLocal(key, address) => self.add_local(key, *address),
            Request::DeleteLocal(key, address) => self.delete_local(key, *address),
            Request::AddMark(rule) => self.add_mark(rule),
            Request::DeleteMark(rule) => self.delete_mark(rule),
            Request::Flush => {
                let services = std::mem::take(&mut self.services);
                Ok(Change::Flushed(services.into_values().flatten().map(Arc::unwrap_or_clone).collect()))
            }
            Request::SetTimeouts(timeouts) => self.set_timeouts(timeouts),
            Request::SetSysctl { name, value } => {
                sysctl::set(&mut self.sysctls, name, value)?;
                Ok(Change::Sysctls(self.sysctls))
            }
            Request::Sysctls(name) => {
                sysctl::list(&self.sysctls, name.as_deref())?;
                Ok(Change::Nothing)
            }
            Request::Zero(key) => {
                key.as_ref().map(|key| self.find(key)).transpose()?;
                Ok(Change::Zeroed(*key))
            }
            Request::Services(key) | Request::Locals(key) => {
                key.as_ref().map(|key| self.find(key)).transpose()?;
                Ok(Change::Nothing)
            }
            Request::StartDaemon(_) => Err(Refusal::not_supported("The synchronisation daemon is")),
            Request::StopDaemon(_) => Err(Refusal::no_daemon()),
            Request::Connections
            | Request::Timeouts
            | Request::Daemons
            | Request::Status
            | Request::Profile(_)
            | Request::Marks => Ok(Change::Nothing),
        }
    }

    fn add_service(&mut self, config: &ServiceConfig) -> Result<Change, Refusal> {
        if self.service(&config.key).is_some() {
            return Err(Refusal::service_exists());
        }
        check::service(config, &self.capabilities)?;
        let service = Service { config: config.clone(), servers: Vec::new(), edits: 0, locals: Vec::new() };
        self.services.entry(Bucket::of(&config.key)).or_default().insert(0, Arc::new(service));
        Ok(Change::ServiceAdded(config.key))
    }

    fn edit_service(&mut self, config: &ServiceConfig) -> Result<Change, Refusal> {
        let service = self.find(&config.key)?;
        check::service(config, &self.capabilities)?;
        service.servers.iter().try_for_each(|server| check::together(config, server))?;
        self.find_mut(&config.key)?.config = config.clone();
        Ok(Change::ServiceEdited(config.key))
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<Change, Refusal> {
        let bucket = Bucket::of(key);
        let services = self.services.get_mut(&bucket).ok_or_else(Refusal::no_service)?;
        let place = services.iter().position(|s| s.config.key == *key).ok_or_else(Refusal::no_service)?;
        let removed = services.remove(place);
        if services.is_empty() {
            self.services.remove(&bucket);
        }
        Ok(Change::ServiceRemoved(Arc::unwrap_or_clone(removed)))
    }

    fn add_server(&mut self, key: &ServiceKey, server: &ServerConfig) -> Result<Change, Refusal> {
        let service = self.find(key)?;
        check::server(&service.config, server, &self.capabilities)?;
        if service.servers.iter().any(|s| s.key == server.key) {
            return Err(Refusal::server_exists());
        }
        check::server_address(server.key.address)?;
        let service = self.find_mut(key)?;
        service.servers.insert(0, *server);
        service.edits += 1;
        Ok(Change::ServerAdded(*key, server.key))
    }

    fn edit_server(&mut self, key: &ServiceKey, server: &ServerConfig) -> Result<Change, Refusal> {
        check::server(&self.find(key)?.config, server, &self.capabilities)?;
        let service = self.find_mut(key)?;
        let mut servers = service.servers.iter_mut();
        *servers.find(|s| s.key == server.key).ok_or_else(Refusal::no_server)? = *server;
        service.edits += 1;
        Ok(Change::ServerEdited(*key, server.key))
    }

    fn delete_server(&mut self, key: &ServiceKey, server: &ServerKey) -> Result<Change, Refusal> {
        let service = self.find_mut(key)?;
        let place = service.servers.iter().position(|s| s.key == *server).ok_or_else(Refusal::no_server)?;
        service.edits += 1;
        Ok(Change::ServerRemoved(*key, service.servers.remove(place)))
    }

    fn add_local(&mut self, key: &ServiceKey, address: IpAddr) -> Result<Change, Refusal> {
        let service = self.find(key)?;
        check::local_address(key, address, &self.capabilities)?;
        if service.locals.contains(&address) {
            return Err(Refusal::local_exists());
        }
        self.find_mut(key)?.locals.push(address);
        Ok(Change::LocalAdded(*key, address))
    }

    fn delete_local(&mut self, key: &ServiceKey, address: IpAddr) -> Result<Change, Refusal> {
        let locals = &mut self.find_mut(key)?.locals;
        let place = locals.iter().position(|l| *l == address).ok_or_else(Refusal::no_local)?;
        locals.remove(place);
        Ok(Change::LocalRemoved(*key, address))
    }

    fn add_mark(&mut self, rule: &MarkRule) -> Result<Change, Refusal> {
        check::mark(rule, &self.marks, &self.capabilities)?;
        self.marks.push(rule.clone());
        Ok(Change::Marks)
    }

    fn delete_mark(&mut self, rule: &MarkRule) -> Result<Change, Refusal> {
        let place = self.marks.iter().position(|known| known == rule).ok_or_else(Refusal::no_mark)?;
        self.marks.remove(place);
        Ok(Change::Marks)
    }

    fn set_timeouts(&mut self, new: &Timeouts) -> Result<Change, Refusal> {
        check::timeouts(new)?;
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        self.timeouts = Timeouts {
            tcp: keep(new.tcp, self.timeouts.tcp),
            tcp_fin: keep(new.tcp_fin, self.timeouts.tcp_fin),
            udp: keep(new.udp, self.timeouts.udp),
        };
        Ok(Change::Timeouts(self.timeouts))
    }

    fn find_mut(&mut self, key: &ServiceKey) -> Result<&mut Service, Refusal> {
        let services = self.services.get_mut(&Bucket::of(key)).ok_or_else(Refusal::no_service)?;
        let service = services.iter_mut().find(|s| s.config.key == *key);
        service.map(Arc::make_mut).ok_or_else(Refusal::no_service)
    }

    fn find(&self, key: &ServiceKey) -> Result<&Service, Refusal> {
        self.service(key).ok_or_else(Refusal::no_service)
    }

    fn shared(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(&Bucket::of(key))?.iter().find(|s| s.config.key == *key)
    }

    /// One service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.shared(key).map(Arc::as_ref)
    }

    /// One service or all as they are now, whatever becomes of the rules, in the kernel's order.
    pub fn at_once(&self, key: Option<&ServiceKey>) -> Result<Vec<Arc<Service>>, Refusal> {
        Ok(match key {
            Some(key) => vec![Arc::clone(self.shared(key).ok_or_else(Refusal::no_service)?)],
            None => self.services.values().flatten().map(Arc::clone).collect(),
        })
    }

    /// All services, in the kernel's order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().flatten().map(Arc::as_ref)
    }

    /// Says if a rule that marks packets names an interface that is none of these, the director's.
    ///
    /// # Errors
    /// Names the first one.
    pub fn check_interfaces(&self, known: &[String]) -> Result<(), Refusal> {
        let mut named = self.marks.iter().filter_map(|rule| rule.interface.as_ref());
        named
            .find(|name| !known.contains(name))
            .map_or(Ok(()), |name| Err(Refusal::no_interface(name, known)))
    }

    /// The rules that mark packets, in the order in which they were added.
    pub fn marks(&self) -> &[MarkRule] {
        &self.marks
    }

    /// The timeouts in force.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The settings in force.
    pub fn sysctls(&self) -> &Sysctls {
        &self.sysctls
    }

    /// One setting or all as they are listed.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn listed_sysctls(&self, name: Option<&str>) -> Result<Vec<(String, String)>, Refusal> {
        sysctl::list(&self.sysctls, name)
    }

    /// What the director behind these rules can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// One service or all as they are listed, in the kernel's order, with all counters zero.
    pub fn entries(&self, key: Option<&ServiceKey>) -> Result<Vec<ServiceEntry>, Refusal> {
        Ok(match key {
            Some(key) => vec![self.find(key)?.entry()],
            None => self.services().map(Service::entry).collect(),
        })
    }

    /// The local addresses of one service or of all as they are listed, in the kernel's order, with all counters zero.
    pub fn locals(&self, key: Option<&ServiceKey>) -> Result<Vec<LocalEntry>, Refusal> {
        Ok(match key {
            Some(key) => vec![self.find(key)?.local_entry()],
            None => self.services().map(Service::local_entry).collect(),
        })
    }
}

impl Service {
    /// This service as it is listed, with all counters zero.
    pub fn entry(&self) -> ServiceEntry {
        let server = |config: &ServerConfig| ServerEntry {
            config: *config,
            active: 0,
            inactive: 0,
            persistent: 0,
            stats: Stats::default(),
        };
        ServiceEntry {
            config: self.config.clone(),
            stats: Stats::default(),
            servers: self.servers.iter().map(server).collect(),
        }
    }

    /// This service's local addresses as they are listed, with all counters zero.
    pub fn local_entry(&self) -> LocalEntry {
        let local = |address: &IpAddr| LocalAddress { address: *address, exhausted: 0, conns: 0 };
        LocalEntry { service: self.config.key, addresses: self.locals.iter().map(local).collect() }
    }
}

impl Bucket {
    /// The kernel's `ip_vs_svc_hashkey`, less the address of the network namespace, which it mixes in so that no two
    /// machines have the same order.
    fn of(key: &ServiceKey) -> Bucket {
        match *key {
            ServiceKey::Mark { mark, .. } => Bucket { by_mark: true, hash: mark as u8 },
            ServiceKey::Address { protocol, address, port } => {
                let folded = match address {
                    IpAddr::V4(v4) => v4.to_bits(),
                    IpAddr::V6(v6) => {
                        let bits = v6.to_bits();
                        (0..4).fold(0, |fold, word| fold ^ (bits >> (32 * word)) as u32)
                    }
                };
                let hash = u32::from(protocol.number()) ^ folded ^ u32::from(port >> 8) ^ u32::from(port);
                Bucket { by_mark: false, hash: hash as u8 }
            }
        }
    }
}

#[cfg(test)]
mod tests;

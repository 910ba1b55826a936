//! From rules to what workers know.
//!
//! The publisher turns [`Rules`] into the data plane's [`Services`] and keeps what must outlive an edit: the identity of each service and
//! real server, the schedulers' state at rest, and the points from which counters are shown.
//!
//! A removed real server keeps its identity while connections remain and for two minutes after, as the kernel keeps it in its trash: added
//! again, it is the same server, its connections go on and its counters too. Until then the replies of its NAT connections are still
//! the director's: a client that saw one from the server's own address would reset the connection. So are the requests of a service that
//! was removed whole ([`departed`]).

mod account;
mod departed;
mod locals;
mod marks;
mod names;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shunt_dataplane::forward::tunnel;
use shunt_dataplane::sched;
use shunt_dataplane::service::{self as data, DestId, ServiceId, Services, TunnelKind};
use shunt_dataplane::stats::{Counters, MAX_DESTS};
use shunt_dataplane::steer::{Marked, Target};

use crate::api::{
    ClientAddress, Family, Forwarding, LocalEntry, Persistence, Protocol, ServerConfig, ServerEntry,
    ServerKey, ServiceConfig, ServiceEntry, ServiceKey, Tunnel, TunnelChecksum,
};
use crate::rules::{Rules, Service};
pub use account::PERIOD;
use account::{Account, Totals, minus, plus};
use departed::Departed;
use locals::Locals;

/// How long a removed real server without connections is remembered (`IP_VS_DEST_TRASH_PERIOD`).
const TRASH_PERIOD: Duration = Duration::from_secs(120);

/// A real server as its replies show it.
type Endpoint = (data::Protocol, IpAddr, u16);

/// The publisher.
#[derive(Default)]
pub struct Publisher {
    /// The director's interfaces, by their ports.
    interfaces: Vec<String>,
    /// What becomes of marked frames by what was last published.
    marked: Vec<Marked>,
    services: HashMap<ServiceKey, Published>,
    servers: HashMap<ServiceKey, HashMap<ServerKey, Server>>,
    locals: Locals,
    /// Real servers whose replies are still taken though the rules no longer say so, as last published.
    lingering: HashSet<Endpoint>,
    /// Services that the rules no longer have, but connections do, as last published.
    departed: Departed,
    free: Vec<DestId>,
    /// Identities below these were given out at least once.
    next_dest: u32,
    next_service: u32,
}

/// A service as it was last published.
struct Published {
    rules: Service,
    data: Arc<data::Service>,
    /// What real servers that are forgotten by now did for it.
    gone: Totals,
    account: Account,
}

/// A real server, live or removed.
struct Server {
    id: DestId,
    /// The service it counts for; another one of the same key may have taken its place since.
    service: ServiceId,
    /// Its counters when it began to count for that service.
    joined: Totals,
    account: Account,
    /// When it was removed, or last seen with connections after that.
    removed: Option<Instant>,
    /// Whether it is reached by NAT now.
    by_nat: bool,
    /// Whether connections may remain from when it was: a connection keeps its forwarding method.
    was_by_nat: bool,
    /// Whether what comes from any of its ports may be a reply now.
    every_port: bool,
    /// Whether it may still be.
    had_every_port: bool,
}

impl Server {
    fn remove(&mut self, now: Instant) {
        self.removed.get_or_insert(now);
        (self.by_nat, self.every_port) = (false, false);
    }
}

/// There is no identity left for one more real server.
#[derive(Debug, thiserror::Error)]
#[error(
    "{MAX_DESTS} real servers are in use, counting removed ones that still have connections; remove some first"
)]
pub struct TooMany;

impl Publisher {
    /// A publisher for a director with these interfaces.
    pub fn new(interfaces: Vec<String>) -> Publisher {
        Publisher { interfaces, ..Publisher::default() }
    }

    /// The director's interfaces.
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// Makes the data plane's tables of the rules.
    ///
    /// # Errors
    /// When there are too many real servers; nothing has changed then.
    pub fn publish(&mut self, rules: &Rules, counters: &Counters, now: Instant) -> Result<Services, TooMany> {
        let wanted: usize = rules.services().map(|service| service.servers.len()).sum();
        if wanted + self.removed() > MAX_DESTS {
            self.forget(counters, now);
            if wanted + self.removed() > MAX_DESTS {
                return Err(TooMany);
            }
        }
        self.services.retain(|key, published| {
            let stays = rules.service(key).is_some();
            if !stays {
                self.departed.add(key, &published.data);
                for server in self.servers.get_mut(key).into_iter().flat_map(HashMap::values_mut) {
                    server.remove(now);
                }
            }
            stays
        });
        for service in rules.services() {
            if self.services.get(&service.config.key).is_none_or(|published| published.rules != *service) {
                self.update(service, counters, now);
            }
        }
        self.locals.forget(rules);
        self.lingering = self.find_lingering(counters);
        let (is_last_gone, servers) = (self.services.is_empty(), &self.servers);
        self.departed.keep(|key| {
            let is_served = rules.service(key).is_some() || departed::is_taken_over(rules, key);
            !is_last_gone && !is_served && has_connections(servers.get(key), counters)
        });
        let services = self.services.values().map(|published| Arc::clone(&published.data));
        let services = Services::new(services.chain(self.departed.services()))
            .remembering(self.lingering.iter().copied())
            .marking(&marks::markings(rules.marks(), &self.interfaces));
        let marked =
            |(pattern, is_taken): (&data::Pattern, bool)| Marked { pattern: pattern.clone(), is_taken };
        self.marked = services.patterns().map(marked).chain(marks::ftp_data(&services)).collect();
        Ok(services)
    }

    /// The frames that the director must take for these rules, which are the last published ones.
    pub fn targets(&self, rules: &Rules) -> impl Iterator<Item = Target> {
        let lingering = self.lingering.iter();
        let replies =
            lingering.map(|&(protocol, address, port)| Target::RealServer { protocol, address, port });
        let live = rules.services().flat_map(|service| {
            let key = service.config.key;
            let requests = match key {
                ServiceKey::Address { protocol, address, port } => {
                    Some(Target::Service { protocol: wire(protocol), address, port })
                }
                // By the rules for marks.
                ServiceKey::Mark { .. } => None,
            };
            // What comes back from real servers: replies, or errors about the tunnels to them.
            let returns = service.servers.iter().flat_map(move |server| {
                let ServerKey { address, port } = server.key;
                let every_port = takes_every_port(&service.config, server).then_some(0);
                let replies = translates_replies(server.forwarding).then(|| protocols(&key));
                let replies = replies.into_iter().flatten().flat_map(move |&protocol| {
                    let ports = [port].into_iter().chain(every_port);
                    ports.map(move |port| Target::RealServer { protocol, address, port })
                });
                let errors = match server.forwarding {
                    Forwarding::Tunnel(tunnel) => {
                        let data::Tunnel { kind, port, .. } = wrapping(tunnel);
                        let protocol = tunnel::protocol(kind, key.family() == Family::Ipv4);
                        Some(Target::Tunnel { protocol, address, port })
                    }
                    _ => None,
                };
                replies.chain(errors)
            });
            requests.into_iter().chain(returns)
        });
        // The ports of FTP's data in active mode stand in no rule.
        let ftp = self.services.values().flat_map(|published| published.data.ftp_data());
        let ftp = ftp.flat_map(|((service, service_port), (server, server_port))| {
            let protocol = data::Protocol::Tcp;
            [
                Target::Service { protocol, address: service, port: service_port },
                Target::RealServer { protocol, address: server, port: server_port },
            ]
        });
        live.chain(replies).chain(ftp).chain(self.departed.targets())
    }

    /// What becomes of marked frames, and of those to the ports of FTP's data, besides those of targets, in the order in which patterns are tried.
    pub fn marked(&self) -> &[Marked] {
        &self.marked
    }

    /// The machine's addresses that FullNAT uses: what real servers send there is not the kernel's.
    pub fn local_addresses(&self) -> HashSet<IpAddr> {
        self.locals.addresses()
    }

    /// Fills the counters of listed local addresses in.
    pub fn count_locals(&self, mut entries: Vec<LocalEntry>) -> Vec<LocalEntry> {
        self.locals.count(&mut entries);
        entries
    }

    /// How often connections of each service found a local address without a free port.
    pub fn exhausted(&self) -> impl Iterator<Item = (&ServiceKey, &IpAddr, u64)> {
        self.locals.exhausted()
    }

    /// Whether a removed service, real server or local address has lost its last connection, so that publishing again would leave its frames to the kernel.
    pub fn is_outdated(&self, rules: &Rules, counters: &Counters) -> bool {
        self.locals.is_outdated(rules)
            || !self.lingering.is_empty() && self.find_lingering(counters) != self.lingering
            || self.departed.keys().any(|key| !has_connections(self.servers.get(key), counters))
    }

    /// Real servers with connections by NAT that are removed, or reached in another way by now. With its last service the director, like IPVS, lets go of everything.
    fn find_lingering(&self, counters: &Counters) -> HashSet<Endpoint> {
        if self.services.is_empty() {
            return HashSet::new();
        }
        let mut lingering = HashSet::new();
        for (service, servers) in &self.servers {
            for (key, server) in servers {
                let load = counters.load(server.id);
                if load.active + load.inactive == 0 {
                    continue;
                }
                let replies =
                    |port| protocols(service).iter().map(move |&protocol| (protocol, key.address, port));
                if server.had_every_port && !server.every_port {
                    lingering.extend(replies(0));
                }
                if server.was_by_nat && !server.by_nat {
                    lingering.extend(replies(key.port));
                    let ServiceKey::Address { protocol, port, .. } = *service else { continue };
                    let data_port =
                        data::ftp_data_port(wire(protocol), port, data::Forwarding::Masq, key.port);
                    lingering.extend(data_port.map(|port| (wire(protocol), key.address, port)));
                }
            }
        }
        lingering
    }

    /// Fills the counters of listed services in.
    pub fn counted(&self, mut entries: Vec<ServiceEntry>, counters: &Counters) -> Vec<ServiceEntry> {
        for entry in &mut entries {
            let key = entry.config.key;
            for server in &mut entry.servers {
                self.fill(key, server, counters);
            }
            if let Some(published) = self.services.get(&key) {
                entry.stats = published.account.stats(self.totals(&key, published, counters));
            }
        }
        entries
    }

    /// Sets the counters of one service, or of all, to zero. Removed real servers keep theirs, as in the kernel.
    pub fn zero(&mut self, key: Option<&ServiceKey>, counters: &Counters) {
        let is_meant = |candidate: &ServiceKey| key.is_none_or(|key| key == candidate);
        for (_, servers) in self.servers.iter_mut().filter(|(service, _)| is_meant(service)) {
            for server in servers.values_mut().filter(|server| server.removed.is_none()) {
                server.account.zero(totals(counters, server.id));
            }
        }
        let now: Vec<_> = self
            .services
            .iter()
            .filter(|(candidate, _)| is_meant(candidate))
            .map(|(candidate, published)| (*candidate, self.totals(candidate, published, counters)))
            .collect();
        for (key, now) in now {
            if let Some(published) = self.services.get_mut(&key) {
                published.account.zero(now);
            }
        }
    }

    /// Estimates the rates of all services and real servers, unless `run_estimation` forbids it. Call it every [`PERIOD`].
    pub fn estimate(&mut self, rules: &Rules, counters: &Counters) {
        if rules.sysctls().run_estimation == 0 {
            return;
        }
        for (key, published) in &mut self.services {
            let mut done = published.gone;
            for server in self.servers.get_mut(key).into_iter().flat_map(HashMap::values_mut) {
                let now = totals(counters, server.id);
                if server.service == published.data.id {
                    done = plus(done, minus(now, server.joined));
                }
                if server.removed.is_none() {
                    server.account.estimate(now);
                }
            }
            published.account.estimate(done);
        }
    }

    /// Forgets removed real servers that have had no connections for a while. Call it now and then.
    pub fn forget(&mut self, counters: &Counters, now: Instant) {
        let (services, free) = (&mut self.services, &mut self.free);
        self.servers.retain(|key, servers| {
            servers.retain(|_, server| {
                let Some(removed) = &mut server.removed else { return true };
                let load = counters.load(server.id);
                if load.active + load.inactive + load.templates > 0 {
                    *removed = now;
                }
                let stays = now.duration_since(*removed) < TRASH_PERIOD;
                if !stays {
                    if let Some(published) = services.get_mut(key).filter(|p| p.data.id == server.service) {
                        published.gone =
                            plus(published.gone, minus(totals(counters, server.id), server.joined));
                    }
                    free.push(server.id);
                }
                stays
            });
            !servers.is_empty()
        });
    }

    /// Removed real servers that are remembered.
    fn removed(&self) -> usize {
        self.servers.values().flat_map(HashMap::values).filter(|server| server.removed.is_some()).count()
    }

    /// Publishes one service anew.
    fn update(&mut self, service: &Service, counters: &Counters, now: Instant) {
        let key = service.config.key;
        let (mark, protocol, address, port) = match key {
            ServiceKey::Address { protocol, address, port } => (None, wire(protocol), address, port),
            ServiceKey::Mark { mark, family: Family::Ipv4 } => {
                (Some(mark), data::Protocol::Tcp, [0; 4].into(), 0)
            }
            ServiceKey::Mark { mark, family: Family::Ipv6 } => {
                (Some(mark), data::Protocol::Tcp, [0; 16].into(), 0)
            }
        };
        let old = self.services.remove(&key);
        let id = old.as_ref().map_or_else(
            || {
                self.next_service += 1;
                ServiceId(self.next_service)
            },
            |old| old.data.id,
        );
        if let Some(old) = &old {
            for gone in old.rules.servers.iter().filter(|o| service.servers.iter().all(|s| s.key != o.key)) {
                if let Some(server) =
                    self.servers.get_mut(&key).and_then(|servers| servers.get_mut(&gone.key))
                {
                    server.remove(now);
                }
            }
        }
        let dests: Vec<_> = service
            .servers
            .iter()
            .map(|server| {
                let before = old.as_ref().and_then(|o| o.rules.servers.iter().find(|s| s.key == server.key));
                let mut dest = self.dest(key, id, server, &service.config, counters);
                if server.weight == 0 {
                    let before = old.as_ref().and_then(|o| o.data.dests.iter().find(|d| d.id == dest.id));
                    dest.last_weight = before.map_or(0, |before| before.last_weight);
                }
                if before != Some(server) {
                    limit(&dest, counters);
                }
                Arc::new(dest)
            })
            .collect();
        let (scheduler_name, scheduler) = scheduler(service, old.as_ref(), &dests);
        let data = Arc::new(data::Service {
            id,
            mark,
            protocol,
            address,
            port,
            dests,
            edits: service.edits,
            locals: self.locals.of(service, counters.workers()),
            persistence: persistence(&service.config),
            one_packet: service.config.one_packet,
            flags: service.config.flags,
            scheduler_name,
            scheduler,
        });
        let (gone, account) = old.map_or_else(Default::default, |old| (old.gone, old.account));
        self.services.insert(key, Published { rules: service.clone(), data, gone, account });
    }

    /// The data plane's view of a real server, known or new.
    fn dest(
        &mut self,
        key: ServiceKey,
        service: ServiceId,
        config: &ServerConfig,
        of: &ServiceConfig,
        counters: &Counters,
    ) -> data::Dest {
        let known = match self.servers.entry(key).or_default().entry(config.key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let id = self.free.pop().unwrap_or_else(|| {
                    self.next_dest += 1;
                    DestId(self.next_dest - 1)
                });
                let now = totals(counters, id);
                place.insert(Server {
                    id,
                    service,
                    joined: now,
                    account: Account::open(now),
                    removed: None,
                    by_nat: false,
                    was_by_nat: false,
                    every_port: false,
                    had_every_port: false,
                })
            }
        };
        known.removed = None;
        let load = counters.load(known.id);
        known.by_nat = translates_replies(config.forwarding);
        let is_used = load.active + load.inactive > 0;
        known.was_by_nat = known.by_nat || known.was_by_nat && is_used;
        known.every_port = takes_every_port(of, config);
        known.had_every_port = known.every_port || known.had_every_port && is_used;
        if known.service != service {
            // The service was deleted and added again.
            let now = totals(counters, known.id);
            (known.service, known.joined) = (service, now);
            known.account.zero(now);
        }
        data::Dest {
            id: known.id,
            address: config.key.address,
            port: config.key.port,
            forwarding: match config.forwarding {
                Forwarding::Masq => data::Forwarding::Masq,
                Forwarding::FullNat => data::Forwarding::FullNat,
                Forwarding::Tunnel(_) => data::Forwarding::Tunnel,
                Forwarding::Route | Forwarding::Local => data::Forwarding::Route,
            },
            tunnel: match config.forwarding {
                Forwarding::Tunnel(tunnel) => wrapping(tunnel),
                _ => data::Tunnel::default(),
            },
            tell: match of.client_address {
                ClientAddress::Toa => data::Tell::Toa,
                ClientAddress::ProxyV1 => data::Tell::ProxyOne,
                ClientAddress::ProxyV2 => data::Tell::ProxyTwo,
                ClientAddress::None => data::Tell::Nothing,
            },
            weight: config.weight,
            last_weight: config.weight,
            upper_threshold: config.upper_threshold,
            lower_threshold: config.lower_threshold,
            mss: of.mss,
            every_port: known.every_port,
        }
    }

    fn fill(&self, key: ServiceKey, entry: &mut ServerEntry, counters: &Counters) {
        let Some(server) = self.servers.get(&key).and_then(|s| s.get(&entry.config.key)) else { return };
        let load = counters.load(server.id);
        // A sum over workers may dip below zero for a moment when one is read before and one after a change.
        let count = |n: u64| if n > u64::from(u32::MAX) { 0 } else { n as u32 };
        (entry.active, entry.inactive) = (count(load.active), count(load.inactive));
        entry.persistent = count(load.templates);
        entry.stats = server.account.stats(totals(counters, server.id));
    }

    /// What a service did since it was added.
    fn totals(&self, key: &ServiceKey, published: &Published, counters: &Counters) -> Totals {
        let servers = self.servers.get(key).into_iter().flat_map(HashMap::values);
        servers
            .filter(|server| server.service == published.data.id)
            .fold(published.gone, |sum, server| plus(sum, minus(totals(counters, server.id), server.joined)))
    }
}

/// How a service keeps its clients.
fn persistence(config: &ServiceConfig) -> Option<data::Persistence> {
    let Persistence { timeout, prefix, mask } = config.persistent?;
    let mask = match config.key.family() {
        Family::Ipv4 => IpAddr::V4(mask.into()),
        Family::Ipv6 => {
            let bits = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(bits.into())
        }
    };
    // 31 days at most, as ipvsadm has it: a clock of 32 bits tells no longer times apart.
    let seconds = timeout.min(31 * 86_400);
    let by_call = config.engine.as_deref() == Some("sip");
    Some(data::Persistence { timeout: seconds * 1000, mask, by_call })
}

/// The scheduler of a service at rest: as it was, told of the edit, or a new one.
fn scheduler(
    service: &Service,
    old: Option<&Published>,
    dests: &[Arc<data::Dest>],
) -> (&'static str, Arc<dyn sched::Scheduler>) {
    let name = &service.config.scheduler;
    if let Some(old) = old.filter(|old| old.data.scheduler_name == name) {
        if old.data.dests == dests && old.data.edits == service.edits {
            return (old.data.scheduler_name, Arc::clone(&old.data.scheduler));
        }
        let mut scheduler = old.data.scheduler.boxed();
        scheduler.edited(&old.data.dests, dests);
        return (old.data.scheduler_name, Arc::from(scheduler));
    }
    // Rules are made for a data plane that has these schedulers and no others.
    let (name, mut scheduler) =
        sched::by_name(name).expect("the rules' capabilities name the data plane's schedulers");
    if old.is_none() && scheduler.has_history() {
        // Rules that are loaded stand for one addition after the other, and some schedulers remember that.
        (0..dests.len()).rev().for_each(|at| scheduler.edited(&dests[at + 1..], &dests[at..]));
    } else {
        // A scheduler that takes over meets all real servers at once.
        scheduler.edited(&[], dests);
    }
    (name, Arc::from(scheduler))
}

/// Holds a real server against thresholds that may be new: from the upper one on it takes no more connections, below the lower one it
/// does, and between them all stays as it is (`ip_vs_dest_update_overload`; Linux 6.1 does so with each edit).
fn limit(dest: &data::Dest, counters: &Counters) {
    let load = counters.load(dest.id);
    let connections = load.active + load.inactive;
    if dest.upper_threshold != 0 && connections >= u64::from(dest.upper_threshold) {
        counters.set_overloaded(dest.id, true);
    } else if dest.is_relieved(connections) {
        counters.set_overloaded(dest.id, false);
    }
}

/// Whether any of a service's servers, live or removed, has connections.
fn has_connections(servers: Option<&HashMap<ServerKey, Server>>, counters: &Counters) -> bool {
    let loads = servers.into_iter().flat_map(HashMap::values).map(|server| counters.load(server.id));
    loads.into_iter().any(|load| load.active + load.inactive > 0)
}

/// The protocols of a service's packets.
fn protocols(key: &ServiceKey) -> &'static [data::Protocol] {
    match key {
        ServiceKey::Address { protocol: Protocol::Tcp, .. } => &[data::Protocol::Tcp],
        ServiceKey::Address { protocol: Protocol::Udp, .. } => &[data::Protocol::Udp],
        ServiceKey::Address { protocol: Protocol::Sctp, .. } => &[data::Protocol::Sctp],
        ServiceKey::Mark { .. } => &data::Protocol::ALL,
    }
}

/// Whether what comes from any port of a real server may be a reply, and is taken: of a service of all ports, of a persistent mark, whose connections keep their port, or of persistent FTP,
/// to which the server names a port. The latter's by NAT are not taken for it: the director is those servers' router, and what they send by themselves would go past the machine's own
/// firewall and NAT.
fn takes_every_port(service: &ServiceConfig, server: &ServerConfig) -> bool {
    let is_persistent = service.persistent.is_some();
    let (is_of_all, is_persistent_ftp) = match service.key {
        ServiceKey::Address { protocol, port, .. } => {
            (port == 0, is_persistent && (protocol, port) == (Protocol::Tcp, data::FTP))
        }
        ServiceKey::Mark { .. } => (is_persistent, false),
    };
    match server.forwarding {
        Forwarding::Masq => is_of_all,
        Forwarding::FullNat => is_of_all || is_persistent_ftp,
        Forwarding::Route | Forwarding::Tunnel(_) | Forwarding::Local => false,
    }
}

fn translates_replies(forwarding: Forwarding) -> bool {
    matches!(forwarding, Forwarding::Masq | Forwarding::FullNat)
}

fn wrapping(tunnel: Tunnel) -> data::Tunnel {
    let sums = |checksum| checksum != TunnelChecksum::None;
    match tunnel {
        Tunnel::Ipip => data::Tunnel { kind: TunnelKind::Ipip, checksum: false, port: 0 },
        Tunnel::Gue { port, checksum } => {
            data::Tunnel { kind: TunnelKind::Gue, checksum: sums(checksum), port }
        }
        Tunnel::Gre { checksum } => data::Tunnel { kind: TunnelKind::Gre, checksum: sums(checksum), port: 0 },
    }
}

fn wire(protocol: Protocol) -> data::Protocol {
    match protocol {
        Protocol::Tcp => data::Protocol::Tcp,
        Protocol::Udp => data::Protocol::Udp,
        Protocol::Sctp => data::Protocol::Sctp,
    }
}

fn totals(counters: &Counters, id: DestId) -> Totals {
    counters.dest(id).fold(Totals::default(), |sum, c| {
        let now = [&c.conns, &c.in_packets, &c.out_packets, &c.in_bytes, &c.out_bytes];
        plus(sum, now.map(|counter| counter.load(Ordering::Relaxed)))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use shunt_dataplane::service::WorkerId;

    use super::*;
    use crate::api::{Request, ServiceConfig};
    use crate::daemon::capabilities;
    use crate::rules::Capabilities;

    const SERVICE: &str = "-A -t 10.9.0.1:80 -s rr";
    const SERVER: &str = "-a -t 10.9.0.1:80 -r 10.2.0.11:8080 -m";

    fn rules(lines: &[&str]) -> Rules {
        Rules::restore(capabilities(), &lines.join("\n")).unwrap()
    }

    fn takes_replies(publisher: &Publisher, rules: &Rules) -> bool {
        publisher.targets(rules).any(|target| matches!(target, Target::RealServer { port: 8080, .. }))
    }

    #[test]
    fn replies_of_a_removed_server_are_taken_until_its_last_connection_is_gone() {
        let counters = Counters::new(1).unwrap();
        let (with, without) = (rules(&[SERVICE, SERVER]), rules(&[SERVICE]));
        let mut publisher = Publisher::default();
        let now = Instant::now();
        publisher.publish(&with, &counters, now).unwrap();
        let connections = &counters.worker(WorkerId(0)).dest(DestId(0)).inactive;
        connections.store(1, Ordering::Relaxed);

        let services = publisher.publish(&without, &counters, now).unwrap();
        assert!(takes_replies(&publisher, &without) && !publisher.is_outdated(&without, &counters));
        // What comes from it and is no reply is the director's to route, as long as the kernel does not see it.
        assert!(services.is_masqueraded(Ipv4Addr::new(10, 2, 0, 11), 8080, 6));

        connections.store(0, Ordering::Relaxed);
        assert!(publisher.is_outdated(&without, &counters));
        let services = publisher.publish(&without, &counters, now).unwrap();
        assert!(!takes_replies(&publisher, &without) && !publisher.is_outdated(&without, &counters));
        assert!(!services.is_masqueraded(Ipv4Addr::new(10, 2, 0, 11), 8080, 6));
    }

    #[test]
    fn replies_of_a_server_that_is_edited_away_from_nat_are_taken_as_long() {
        let counters = Counters::new(1).unwrap();
        let route = rules(&[SERVICE, "-a -t 10.9.0.1:80 -r 10.2.0.11:80 -g"]);
        let nat = rules(&[SERVICE, "-a -t 10.9.0.1:80 -r 10.2.0.11:80 -m"]);
        let takes = |publisher: &Publisher, rules: &Rules| {
            publisher.targets(rules).any(|target| matches!(target, Target::RealServer { port: 80, .. }))
        };
        let mut publisher = Publisher::default();
        publisher.publish(&nat, &counters, Instant::now()).unwrap();
        let connections = &counters.worker(WorkerId(0)).dest(DestId(0)).active;
        connections.store(1, Ordering::Relaxed);
        publisher.publish(&route, &counters, Instant::now()).unwrap();
        assert!(takes(&publisher, &route) && !publisher.is_outdated(&route, &counters));
        connections.store(0, Ordering::Relaxed);
        assert!(publisher.is_outdated(&route, &counters));
        publisher.publish(&route, &counters, Instant::now()).unwrap();
        assert!(!takes(&publisher, &route));
    }

    #[test]
    fn requests_of_a_removed_service_are_taken_until_its_last_connection_is_gone() {
        const OTHER: &str = "-A -t 10.9.0.1:81 -s rr";
        let counters = Counters::new(1).unwrap();
        let (with, without) = (rules(&[SERVICE, SERVER, OTHER]), rules(&[OTHER]));
        let takes = |publisher: &Publisher, rules: &Rules| {
            publisher.targets(rules).any(|target| matches!(target, Target::Service { port: 80, .. }))
        };
        let mut publisher = Publisher::default();
        let publish = |rules: &Rules, publisher: &mut Publisher| {
            publisher.publish(rules, &counters, Instant::now()).unwrap()
        };
        publish(&with, &mut publisher);
        let connections = &counters.worker(WorkerId(0)).dest(DestId(0)).active;
        connections.store(1, Ordering::Relaxed);
        let services = publish(&without, &mut publisher);
        assert!(takes(&publisher, &without) && !publisher.is_outdated(&without, &counters));
        // Who is new finds no real server there.
        let mut dests =
            services.iter().map(|service| (service.port, service.dests.len())).collect::<Vec<_>>();
        dests.sort_unstable();
        assert_eq!(dests, [(80, 0), (81, 0)]);

        // Added again it is a service like any other, of which there is one.
        assert_eq!(publish(&with, &mut publisher).iter().count(), 2);
        publish(&without, &mut publisher);
        connections.store(0, Ordering::Relaxed);
        assert!(publisher.is_outdated(&without, &counters));
        publish(&without, &mut publisher);
        assert!(!takes(&publisher, &without) && !publisher.is_outdated(&without, &counters));
    }

    #[test]
    fn nothing_is_taken_after_the_last_service_is_gone() {
        let counters = Counters::new(1).unwrap();
        let (with, none) = (rules(&[SERVICE, SERVER]), rules(&[]));
        let mut publisher = Publisher::default();
        publisher.publish(&with, &counters, Instant::now()).unwrap();
        counters.worker(WorkerId(0)).dest(DestId(0)).active.store(1, Ordering::Relaxed);
        publisher.publish(&none, &counters, Instant::now()).unwrap();
        assert_eq!(publisher.targets(&none).count(), 0);
        assert!(!publisher.is_outdated(&none, &counters));
    }

    #[test]
    fn errors_about_tunnels_are_taken_by_the_outer_packets_protocol() {
        let rules = rules(&[
            "-A -t 10.9.0.1:80 -s rr",
            "-a -t 10.9.0.1:80 -r 10.2.0.11:80 -i",
            "-a -t 10.9.0.1:80 -r 10.2.0.12:80 -i --tun-type gue --tun-port 6080 --tun-csum",
            "-a -t 10.9.0.1:80 -r [fd00:2::b]:80 -i --tun-type gre",
            "-A -u [fd00:9::1]:53 -s rr",
            "-a -u [fd00:9::1]:53 -r 10.2.0.11:53 -i",
            "-a -u [fd00:9::1]:53 -r 10.2.0.12:53 -i --tun-type gue --tun-port 6080",
            "-a -u [fd00:9::1]:53 -r [fd00:2::c]:53 -m",
        ]);
        let targets: HashSet<Target> = Publisher::default().targets(&rules).collect();
        let tunnel = |protocol, address: &str, port| {
            let address = address.parse().unwrap();
            Target::Tunnel { protocol, address, port }
        };
        let tunnels: HashSet<Target> =
            targets.into_iter().filter(|target| matches!(target, Target::Tunnel { .. })).collect();
        let expected = [
            tunnel(4, "10.2.0.11", 0),
            tunnel(17, "10.2.0.12", 6080),
            tunnel(47, "fd00:2::b", 0),
            tunnel(41, "10.2.0.11", 0),
        ];
        assert_eq!(tunnels, HashSet::from(expected));
    }

    fn published(rules: &Rules, publisher: &mut Publisher, counters: &Counters) -> Arc<data::Service> {
        let services = publisher.publish(rules, counters, Instant::now()).expect("few servers");
        Arc::clone(services.iter().next().expect("a service"))
    }

    #[test]
    fn a_server_that_drains_keeps_its_last_weight_and_one_that_is_added_anew_does_not() {
        let (mut rules, mut publisher) = (Rules::new(Capabilities::everything()), Publisher::default());
        let counters = Counters::new(1).expect("memory for counters");
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 9, 0, 1].into(), port: 80 };
        let config = |scheduler, flags| ServiceConfig { flags, ..ServiceConfig::new(key, scheduler) };
        let server = |weight| ServerConfig {
            key: ServerKey { address: [10, 1, 0, 11].into(), port: 80 },
            forwarding: Forwarding::Route,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
        };
        let mut after = |request| {
            rules.apply(&request).expect("it is accepted");
            let service = published(&rules, &mut publisher, &counters);
            (service.flags, service.dests.first().map(|dest| (dest.weight, dest.last_weight)))
        };
        assert_eq!(after(Request::AddService(config("rr", 1))), (1, None));
        assert_eq!(after(Request::AddServer(key, server(3))), (1, Some((3, 3))));
        assert_eq!(after(Request::EditServer(key, server(0))), (1, Some((0, 3))));
        assert_eq!(after(Request::EditService(config("mh", 3))), (3, Some((0, 3))));
        assert_eq!(after(Request::EditServer(key, server(0))), (3, Some((0, 3))));
        assert_eq!(after(Request::EditServer(key, server(2))), (3, Some((2, 2))));
        assert_eq!(after(Request::DeleteServer(key, server(2).key)), (3, None));
        assert_eq!(after(Request::AddServer(key, server(0))), (3, Some((0, 0))));
    }
}

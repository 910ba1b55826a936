//! What `--json` prints: every listing as one document, in a form that programs can rely on.
//!
//! A document is an object of two members: `schema`, the version of this form, and the listing under its own name. Long listings are arrays with
//! a line for each entry, written as they come; one that was broken off is no valid JSON, so nobody takes it for the whole. Numbers
//! are numbers in full, in the unit that `docs/json.md` gives; what does not apply or is not set is `null`; what has a name has the number all the same.
//!
//! These types are the form. Adding a member leaves [`SCHEMA`] as it is; taking one away, renaming it or giving it another meaning makes it
//! one more. The socket's own types ([`api`](crate::api)) may change otherwise.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use crate::api::{
    ClientAddress, ConnectionEntry, Family, Forwarding, LocalEntry, Pages, Per, Persistence, Profile,
    Protocol, ServerEntry, ServerKey, ServiceEntry, ServiceKey, Stats, Status, SyncDaemon, SyncRole,
    Timeouts, Tunnel, TunnelChecksum,
};
use crate::ipvsadm::address::Printed;
use crate::ipvsadm::parse::SCHED_FLAGS;
use crate::marks::MarkRule;

/// The version of all documents.
pub const SCHEMA: u32 = 1;

/// Writes a document of one line.
pub fn document(out: &mut dyn Write, name: &str, value: &impl Serialize) -> io::Result<()> {
    write!(out, "{{\"schema\":{SCHEMA},\"{name}\":")?;
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out, "}}")
}

/// Writes the beginning of a document whose entries follow one by one.
pub fn open(out: &mut dyn Write, name: &str) -> io::Result<()> {
    write!(out, "{{\"schema\":{SCHEMA},\"{name}\":[")
}

/// Writes an entry of such a document.
pub fn entry(out: &mut dyn Write, is_first: bool, value: &impl Serialize) -> io::Result<()> {
    out.write_all(if is_first { b"\n" } else { b",\n" })?;
    Ok(serde_json::to_writer(out, value)?)
}

/// The end of such a document.
pub const CLOSE: &str = "\n]}\n";

/// An address and a port, with their names where they have any and names were asked for.
#[derive(Debug, Serialize)]
pub struct Endpoint {
    address: Option<IpAddr>,
    port: Option<u16>,
    host: Option<String>,
    port_name: Option<String>,
}

impl Endpoint {
    fn new(address: IpAddr, port: u16, protocol: Option<Protocol>, names: &mut Printed<'_>) -> Endpoint {
        // Port 0 stands for every port, or for the one that the client has chosen.
        let port = (port != 0).then_some(port);
        let port_name = port.zip(protocol).and_then(|(port, protocol)| names.port_name(port, protocol));
        Endpoint { address: Some(address), port, host: names.host_name(address), port_name }
    }

    const NONE: Endpoint = Endpoint { address: None, port: None, host: None, port_name: None };
}

/// Which service: by its address, or by its mark.
#[derive(Debug, Serialize)]
pub struct ServiceName {
    protocol: Option<Protocol>,
    #[serde(flatten)]
    at: Endpoint,
    mark: Option<u32>,
    family: Family,
}

impl ServiceName {
    fn new(key: &ServiceKey, names: &mut Printed<'_>) -> ServiceName {
        let family = key.family();
        match *key {
            ServiceKey::Address { protocol, address, port } => {
                let at = Endpoint::new(address, port, Some(protocol), names);
                ServiceName { protocol: Some(protocol), at, mark: None, family }
            }
            ServiceKey::Mark { mark, .. } => {
                ServiceName { protocol: None, at: Endpoint::NONE, mark: Some(mark), family }
            }
        }
    }
}

/// A service with its servers, in `services`.
#[derive(Debug, Serialize)]
pub struct Service {
    #[serde(flatten)]
    name: ServiceName,
    scheduler: String,
    scheduler_flags: Vec<&'static str>,
    persistence: Option<Persistent>,
    persistence_engine: Option<String>,
    one_packet: bool,
    client_address: Option<&'static str>,
    mss: Option<u16>,
    counters: Counters,
    rates: Counters,
    servers: Vec<Server>,
}

impl Service {
    /// What is printed of an entry.
    pub fn new(entry: &ServiceEntry, names: &mut Printed<'_>) -> Service {
        let config = &entry.config;
        let protocol = match config.key {
            ServiceKey::Address { protocol, .. } => Some(protocol),
            ServiceKey::Mark { .. } => None,
        };
        Service {
            name: ServiceName::new(&config.key, names),
            scheduler: config.scheduler.clone(),
            scheduler_flags: flag_names(&config.scheduler, config.flags),
            persistence: config.persistent.map(|persistent| Persistent::new(config.key.family(), persistent)),
            persistence_engine: config.engine.clone(),
            one_packet: config.one_packet,
            client_address: match config.client_address {
                ClientAddress::Toa => Some("toa"),
                ClientAddress::ProxyV1 => Some("proxy_v1"),
                ClientAddress::ProxyV2 => Some("proxy_v2"),
                ClientAddress::None => None,
            },
            mss: config.mss,
            counters: Counters::totals(&entry.stats),
            rates: Counters::rates(&entry.stats),
            servers: entry.servers.iter().map(|server| Server::new(server, protocol, names)).collect(),
        }
    }
}

/// How a service keeps its clients.
#[derive(Debug, Serialize)]
struct Persistent {
    timeout_seconds: u32,
    netmask: Option<Ipv4Addr>,
    prefix_length: Option<u8>,
}

impl Persistent {
    fn new(family: Family, Persistence { timeout, prefix, mask }: Persistence) -> Persistent {
        let (netmask, prefix_length) = match family {
            Family::Ipv4 => (Some(mask.into()), None),
            Family::Ipv6 => (None, Some(prefix)),
        };
        Persistent { timeout_seconds: timeout, netmask, prefix_length }
    }
}

/// A real server.
#[derive(Debug, Serialize)]
struct Server {
    #[serde(flatten)]
    at: Endpoint,
    forwarding: &'static str,
    tunnel: Option<Wrapping>,
    weight: u32,
    upper_threshold: Option<u32>,
    lower_threshold: Option<u32>,
    active_connections: u32,
    inactive_connections: u32,
    persistent_connections: u32,
    counters: Counters,
    rates: Counters,
}

impl Server {
    fn new(entry: &ServerEntry, protocol: Option<Protocol>, names: &mut Printed<'_>) -> Server {
        let ServerEntry { config, active, inactive, persistent, stats } = entry;
        let ServerKey { address, port } = config.key;
        Server {
            at: Endpoint::new(address, port, protocol, names),
            forwarding: match config.forwarding {
                Forwarding::Masq => "masq",
                Forwarding::Route => "route",
                Forwarding::Tunnel(_) => "tunnel",
                Forwarding::FullNat => "fullnat",
                Forwarding::Local => "local",
            },
            tunnel: match config.forwarding {
                Forwarding::Tunnel(tunnel) => Some(Wrapping::from(tunnel)),
                _ => None,
            },
            weight: config.weight,
            upper_threshold: Some(config.upper_threshold).filter(|limit| *limit != 0),
            lower_threshold: Some(config.lower_threshold).filter(|limit| *limit != 0),
            active_connections: *active,
            inactive_connections: *inactive,
            persistent_connections: *persistent,
            counters: Counters::totals(stats),
            rates: Counters::rates(stats),
        }
    }
}

/// How a tunnel wraps packets.
#[derive(Debug, Serialize)]
struct Wrapping {
    r#type: &'static str,
    port: Option<u16>,
    checksum: Option<&'static str>,
}

impl From<Tunnel> for Wrapping {
    fn from(tunnel: Tunnel) -> Wrapping {
        let name = |checksum| match checksum {
            TunnelChecksum::None => None,
            TunnelChecksum::Full => Some("full"),
            TunnelChecksum::Remote => Some("remote"),
        };
        match tunnel {
            Tunnel::Ipip => Wrapping { r#type: "ipip", port: None, checksum: None },
            Tunnel::Gue { port, checksum } => {
                Wrapping { r#type: "gue", port: Some(port), checksum: name(checksum) }
            }
            Tunnel::Gre { checksum } => Wrapping { r#type: "gre", port: None, checksum: name(checksum) },
        }
    }
}

/// Totals, or rates per second.
#[derive(Debug, Serialize)]
struct Counters {
    connections: u64,
    in_packets: u64,
    out_packets: u64,
    in_bytes: u64,
    out_bytes: u64,
}

impl Counters {
    fn totals(stats: &Stats) -> Counters {
        let Stats { conns, in_packets, out_packets, in_bytes, out_bytes, rates: _ } = *stats;
        Counters { connections: conns, in_packets, out_packets, in_bytes, out_bytes }
    }

    fn rates(stats: &Stats) -> Counters {
        let [connections, in_packets, out_packets, in_bytes, out_bytes] = stats.rates;
        Counters { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

/// A connection or a template, in `connections`.
#[derive(Debug, Serialize)]
pub struct Connection {
    protocol: Option<Protocol>,
    is_template: bool,
    state: String,
    expires_seconds: u32,
    client: Endpoint,
    #[serde(rename = "virtual")]
    service: Endpoint,
    mark: Option<u32>,
    server: Endpoint,
    persistence_engine: Option<Engine>,
}

/// What a persistence engine knows of a template.
#[derive(Debug, Serialize)]
struct Engine {
    name: String,
    data: String,
}

impl Connection {
    /// What is printed of an entry.
    pub fn new(entry: &ConnectionEntry, names: &mut Printed<'_>) -> Connection {
        let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = known.into_iter().find(|p| entry.protocol.eq_ignore_ascii_case(p.name()));
        // A template of a mark has no protocol, and the mark in the place of the address.
        let mark = match (protocol, entry.service.0) {
            (Some(_), _) => None,
            (None, IpAddr::V4(address)) => Some(address.to_bits()),
            (None, IpAddr::V6(address)) => Some((address.to_bits() >> 96) as u32),
        };
        let mut at = |(address, port)| Endpoint::new(address, port, protocol, names);
        Connection {
            protocol,
            is_template: entry.is_template,
            state: entry.state.clone(),
            expires_seconds: entry.expires,
            client: at(entry.client),
            service: if mark.is_none() { at(entry.service) } else { Endpoint::NONE },
            mark,
            server: at(entry.server),
            persistence_engine: entry
                .engine
                .as_ref()
                .map(|(name, data)| Engine { name: name.clone(), data: data.clone() }),
        }
    }
}

/// A service with its local addresses, in `local_addresses`.
#[derive(Debug, Serialize)]
pub struct Locals {
    #[serde(flatten)]
    name: ServiceName,
    addresses: Vec<Local>,
}

#[derive(Debug, Serialize)]
struct Local {
    address: IpAddr,
    host: Option<String>,
    exhausted: u64,
    connections: u64,
}

impl Locals {
    /// What is printed of an entry.
    pub fn new(entry: &LocalEntry, names: &mut Printed<'_>) -> Locals {
        let addresses = entry.addresses.iter().map(|local| Local {
            address: local.address,
            host: names.host_name(local.address),
            exhausted: local.exhausted,
            connections: local.conns,
        });
        let addresses = addresses.collect();
        Locals { name: ServiceName::new(&entry.service, names), addresses }
    }
}

/// The timeouts, as `timeouts`.
#[derive(Debug, Serialize)]
pub struct TimeoutSeconds {
    tcp_seconds: u32,
    tcp_fin_seconds: u32,
    udp_seconds: u32,
}

impl From<&Timeouts> for TimeoutSeconds {
    fn from(Timeouts { tcp, tcp_fin, udp }: &Timeouts) -> TimeoutSeconds {
        TimeoutSeconds { tcp_seconds: *tcp, tcp_fin_seconds: *tcp_fin, udp_seconds: *udp }
    }
}

/// A synchronisation daemon, in `daemons`.
#[derive(Debug, Serialize)]
pub struct Daemon {
    role: SyncRole,
    interface: String,
    sync_id: u8,
    max_length: Option<u16>,
    group: Option<IpAddr>,
    port: Option<u16>,
    ttl: Option<u8>,
}

impl From<&SyncDaemon> for Daemon {
    fn from(daemon: &SyncDaemon) -> Daemon {
        Daemon {
            role: daemon.role,
            interface: daemon.interface.clone(),
            sync_id: daemon.syncid,
            max_length: Some(daemon.max_length).filter(|length| *length != 0),
            group: daemon.group,
            port: Some(daemon.port).filter(|port| *port != 0),
            ttl: Some(daemon.ttl).filter(|ttl| *ttl != 0),
        }
    }
}

/// How the director is doing, as `status`.
#[derive(Debug, Serialize)]
pub struct Condition {
    version: String,
    snapshot: u64,
    interfaces: Vec<Way>,
    cores: Vec<usize>,
    connection_places: u64,
    frame_memory: String,
    frame_pages: PageBytes,
    table_pages: Vec<PageBytes>,
    memory_bytes: u64,
    huge_page_bytes: u64,
    reserved_huge_pages: u64,
    counters: BTreeMap<String, u64>,
}

/// How an interface is driven.
#[derive(Debug, Serialize)]
struct Way {
    name: String,
    driven_by: String,
}

impl From<Status> for Condition {
    fn from(status: Status) -> Condition {
        let way = |(name, driven_by)| Way { name, driven_by };
        Condition {
            version: status.version,
            snapshot: status.epoch,
            interfaces: status.interfaces.into_iter().map(way).collect(),
            cores: status.cores,
            connection_places: status.table_size,
            frame_memory: status.memory,
            frame_pages: status.frames.into(),
            table_pages: status.tables.into_iter().map(PageBytes::from).collect(),
            memory_bytes: status.memory_in_use,
            huge_page_bytes: status.in_huge_pages,
            reserved_huge_pages: status.reserved_pages,
            counters: status.counters.into_iter().collect(),
        }
    }
}

/// Memory by the kind of its pages.
#[derive(Debug, Serialize)]
struct PageBytes {
    reserved_bytes: u64,
    transparent_bytes: u64,
    ordinary_bytes: u64,
}

impl From<Pages> for PageBytes {
    fn from(Pages { reserved, transparent, ordinary }: Pages) -> PageBytes {
        PageBytes { reserved_bytes: reserved, transparent_bytes: transparent, ordinary_bytes: ordinary }
    }
}

/// What a worker's stages take, in `profile`.
#[derive(Debug, Serialize)]
pub struct Taken {
    worker: usize,
    core: usize,
    cycles_per_second: u64,
    turns_per_sample: u32,
    turns: u64,
    bursts: u64,
    packets: u64,
    stages: Vec<StageTaken>,
}

/// What one stage takes.
#[derive(Debug, Serialize)]
struct StageTaken {
    stage: String,
    sample_of: Per,
    samples: u64,
    cycles: u64,
    nanoseconds: u64,
    median_cycles: u64,
    p99_cycles: u64,
    max_cycles: u64,
    buckets: Vec<(u64, u64, u64)>,
}

impl Taken {
    /// What is printed of a worker.
    pub fn new(worker: usize, profile: &Profile) -> Taken {
        let stages = profile.stages.iter().map(|stage| StageTaken {
            stage: stage.stage.clone(),
            sample_of: stage.per,
            samples: stage.samples(),
            cycles: stage.cycles,
            nanoseconds: profile.nanoseconds(stage.cycles) as u64,
            median_cycles: stage.quantile(50),
            p99_cycles: stage.quantile(99),
            max_cycles: stage.most(),
            buckets: stage.buckets.clone(),
        });
        Taken {
            worker,
            core: profile.core,
            cycles_per_second: profile.cycles_per_second,
            turns_per_sample: profile.every,
            turns: profile.turns,
            bursts: profile.bursts,
            packets: profile.packets,
            stages: stages.collect(),
        }
    }
}

/// A rule that marks packets, in `marks`.
#[derive(Debug, Serialize)]
pub struct Mark {
    destination: String,
    source: Option<String>,
    protocol: Option<Protocol>,
    first_port: Option<u16>,
    last_port: Option<u16>,
    interface: Option<String>,
    mark: u32,
}

impl From<&MarkRule> for Mark {
    fn from(rule: &MarkRule) -> Mark {
        Mark {
            destination: rule.destination.to_string(),
            source: rule.source.map(|source| source.to_string()),
            protocol: rule.protocol,
            first_port: rule.ports.map(|ports| ports.first),
            last_port: rule.ports.map(|ports| ports.last),
            interface: rule.interface.clone(),
            mark: rule.mark,
        }
    }
}

/// Settings by name, as `sysctls`. All of them take whole numbers.
pub fn settings(listed: &[(String, String)], prefix: &str) -> BTreeMap<String, Option<i64>> {
    listed.iter().map(|(name, value)| (format!("{prefix}{name}"), value.parse().ok())).collect()
}

/// The names of a scheduler's flags: its own where it has some, `flag-1` to `flag-3` otherwise.
fn flag_names(scheduler: &str, flags: u8) -> Vec<&'static str> {
    let name = |bit: u8| {
        let of = |owner| SCHED_FLAGS.iter().find(move |(_, of, its)| *its == bit && *of == owner);
        of(Some(scheduler)).or_else(|| of(None)).map(|(name, ..)| *name)
    };
    [1, 2, 4].into_iter().filter(|bit| flags & bit != 0).filter_map(name).collect()
}

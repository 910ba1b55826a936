//! What the daemon and its clients say to each other over the Unix socket.
//!
//! One request, one or more responses, each a 4-byte big-endian length and that many bytes of JSON. The first
//! request a client sends on a connection may be anything; a daemon that does not know it answers [`Response::Refused`].
//! The words are those of IPVS: a *service* is a virtual service, a *server* a real server of one service.
//!
//! A list comes in as many [`Response::Services`], [`Response::Locals`] or [`Response::Connections`] as it needs, none
//! longer than [`MAX_MESSAGE`], ended by [`Response::Done`]. A service with more servers or local addresses than one
//! message holds is continued: the next message begins with an entry of the same key that carries further ones. Every
//! other answer is one message.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::marks::MarkRule;

/// The version of this protocol. A daemon refuses requests of another one.
pub const VERSION: u32 = 1;

/// The longest message either side accepts, in bytes. The largest honest one is a page of a listing (`Response::Services` is sent in several).
pub const MAX_MESSAGE: usize = 1 << 20;

/// What a client sends: the version it speaks and what it wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// What is asked for.
    pub request: Request,
}

/// What a client can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Add a service. `EEXIST` when it is there, `ENOENT` for an unknown scheduler.
    AddService(ServiceConfig),
    /// Replace a service's settings, all of them. `ESRCH` when it is missing.
    EditService(ServiceConfig),
    /// Remove a service and its servers. `ESRCH` when it is missing.
    DeleteService(ServiceKey),
    /// Add a server to a service. `ESRCH`, `EEXIST`, `ERANGE`, …
    AddServer(ServiceKey, ServerConfig),
    /// Replace a server's settings, all of them.
    EditServer(ServiceKey, ServerConfig),
    /// Remove a server.
    DeleteServer(ServiceKey, ServerKey),
    /// Give a service one more local address. `ESRCH` when the service is missing, `EEXIST` when it has that address,
    /// `EINVAL` for what no packet can come from.
    AddLocal(ServiceKey, IpAddr),
    /// Take a local address away from a service. `ENOENT` when the service does not have it.
    DeleteLocal(ServiceKey, IpAddr),
    /// Add a rule that marks packets, behind all others. `EEXIST` when it is there, `ENODEV` when its interface is none of the director's, `ENOSPC`
    /// when there are too many.
    AddMark(MarkRule),
    /// Remove a rule that marks packets. `ENOENT` when it is not there.
    DeleteMark(MarkRule),
    /// The rules that mark packets. Answered by [`Response::Marks`].
    Marks,
    /// Remove all services. Rules that mark packets stay, as those of a firewall would.
    Flush,
    /// Set the counters of one service, or of all, to zero.
    Zero(Option<ServiceKey>),
    /// List one service, or all. Answered by [`Response::Services`].
    Services(Option<ServiceKey>),
    /// List the local addresses of one service, or of all. Answered by [`Response::Locals`].
    Locals(Option<ServiceKey>),
    /// List connections. Answered by [`Response::Connections`].
    Connections,
    /// The timeouts in force. Answered by [`Response::Timeouts`].
    Timeouts,
    /// Set timeouts; a zero leaves that one as it is.
    SetTimeouts(Timeouts),
    /// Start a synchronisation daemon. `EEXIST` when one runs in that role.
    StartDaemon(SyncDaemon),
    /// Stop the synchronisation daemon of a role. `ESRCH` when none runs.
    StopDaemon(SyncRole),
    /// The synchronisation daemons that run. Answered by [`Response::Daemons`].
    Daemons,
    /// What the director is and how it runs. Answered by [`Response::Status`].
    Status,
    /// What the stages of a worker's turns take. Answered by [`Response::Profile`]; `ENOENT` when there is no worker of this number.
    Profile(usize),
    /// One setting of `net.ipv4.vs`, or all. Answered by [`Response::Sysctls`]; `ENOENT` when there is none of this name.
    Sysctls(Option<String>),
    /// Change a setting of `net.ipv4.vs`. `ENOENT` when there is none of this name, `EINVAL` when it does not take the value.
    SetSysctl {
        /// Its name, without `net.ipv4.vs.`.
        name: String,
        /// Its new value, as one would write it to the kernel's file.
        value: String,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done, and in force in every worker.
    Done,
    /// Not done. Nothing has changed.
    Refused {
        /// The errno that kernel IPVS gives for this.
        errno: i32,
        /// A sentence for people who do not speak errno.
        why: String,
    },
    /// Services with their servers, in the kernel's order, as far as they fit one message; [`Response::Done`] ends the list.
    Services(Vec<ServiceEntry>),
    /// Services with their local addresses, in the kernel's order, as far as they fit one message; [`Response::Done`] ends the list.
    Locals(Vec<LocalEntry>),
    /// The rules that mark packets, in the order in which they were added.
    Marks(Vec<MarkRule>),
    /// Connections, in no order, as far as they fit one message; [`Response::Done`] ends the list.
    Connections(Vec<ConnectionEntry>),
    /// The timeouts in force.
    Timeouts(Timeouts),
    /// The synchronisation daemons that run, the master first.
    Daemons(Vec<SyncDaemon>),
    /// What the director is and how it runs.
    Status(Status),
    /// What the stages of a worker's turns take.
    Profile(Profile),
    /// Settings and their values, in alphabetical order.
    Sysctls(Vec<(String, String)>),
}

impl Response {
    /// Whether the answer ends with this message.
    pub fn is_last(&self) -> bool {
        !matches!(self, Response::Services(_) | Response::Locals(_) | Response::Connections(_))
    }
}

/// Transport protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "their names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "their names say it")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Protocol {
    /// The name that listings and `/etc/services` use, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

/// What identifies a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKey {
    /// A protocol, a virtual address and a port (0: every port).
    Address {
        /// The transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// The virtual port.
        port: u16,
    },
    /// A firewall mark.
    Mark {
        /// The mark, not 0.
        mark: u32,
        /// The family of the packets it is for.
        family: Family,
    },
}

impl ServiceKey {
    /// The family of the packets this service is for.
    pub fn family(&self) -> Family {
        match *self {
            ServiceKey::Address { address, .. } => Family::of(address),
            ServiceKey::Mark { family, .. } => family,
        }
    }
}

/// What identifies a server within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerKey {
    /// The real server's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// The settings of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// Which service.
    pub key: ServiceKey,
    /// The scheduler's name, such as `wlc`.
    pub scheduler: String,
    /// Scheduler flags: bit 0 flag-1 (sh-fallback, mh-fallback), bit 1 flag-2 (sh-port, mh-port), bit 2 flag-3.
    pub flags: u8,
    /// Persistence, if the service has it.
    pub persistent: Option<Persistence>,
    /// One-packet scheduling.
    pub one_packet: bool,
    /// The persistence engine's name.
    pub engine: Option<String>,
    /// How FullNAT servers learn who the client is.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// The largest segment that either end may announce in its SYN, in bytes; none: as they say.
    #[serde(default)]
    pub mss: Option<u16>,
}

impl ServiceConfig {
    /// A service with this scheduler and nothing special.
    pub fn new(key: ServiceKey, scheduler: &str) -> ServiceConfig {
        ServiceConfig {
            key,
            scheduler: scheduler.to_owned(),
            flags: 0,
            persistent: None,
            one_packet: false,
            engine: None,
            client_address: ClientAddress::default(),
            mss: None,
        }
    }
}

/// How a FullNAT server, which sees connections from a local address of the director, learns who the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAddress {
    /// By a TCP option in the client's first segments, which the server's `toa` module reads.
    #[default]
    Toa,
    /// By a line of text before the client's first bytes (PROXY protocol, version 1).
    ProxyV1,
    /// By a binary header before the client's first bytes (PROXY protocol, version 2).
    ProxyV2,
    /// Not at all.
    None,
}

/// Persistence of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// Seconds a template lives.
    pub timeout: u32,
    /// Leading bits of the client's address that count: 0 to 32, or 1 to 128 for IPv6. IPv4 masks with holes keep their bits in `mask`.
    pub prefix: u8,
    /// The IPv4 netmask as typed (host order); 0 for IPv6.
    pub mask: u32,
}

/// The settings of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Which server.
    pub key: ServerKey,
    /// How packets reach it.
    pub forwarding: Forwarding,
    /// Its share; 0 quiesces it.
    pub weight: u32,
    /// Connections from which on it gets no more; 0: no limit.
    pub upper_threshold: u32,
    /// Connections below which it gets some again; 0: three quarters of the upper threshold.
    pub lower_threshold: u32,
}

/// How packets reach a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forwarding {
    /// Masquerading (NAT).
    Masq,
    /// Direct routing (gatewaying).
    Route,
    /// Tunneling.
    Tunnel(Tunnel),
    /// Translation of both ends: the server sees one of the service's local addresses as the client.
    FullNat,
    /// The server is this machine. Never asked for, only listed.
    Local,
}

/// How a tunnel wraps packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation to a port.
    Gue {
        /// The destination port.
        port: u16,
        /// How the outer checksum is made.
        checksum: TunnelChecksum,
    },
    /// GRE.
    Gre {
        /// How the outer checksum is made.
        checksum: TunnelChecksum,
    },
}

/// A tunnel's outer checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the option names of ipvsadm")]
pub enum TunnelChecksum {
    None,
    Full,
    Remote,
}

/// A service as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Its settings.
    pub config: ServiceConfig,
    /// Its counters.
    pub stats: Stats,
    /// Its servers, newest first as the kernel keeps them.
    pub servers: Vec<ServerEntry>,
}

/// A server as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// Its settings.
    pub config: ServerConfig,
    /// Connections in an active state.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Its counters.
    pub stats: Stats,
}

impl ServiceEntry {
    /// Adds what one message of a listing has. A service with many servers comes in several, one behind the other.
    pub fn gather(all: &mut Vec<ServiceEntry>, part: Vec<ServiceEntry>) {
        for entry in part {
            match all.last_mut() {
                Some(last) if last.config.key == entry.config.key => last.servers.extend(entry.servers),
                _ => all.push(entry),
            }
        }
    }
}

/// A service with its local addresses, as they are listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEntry {
    /// Which service.
    pub service: ServiceKey,
    /// Its local addresses, oldest first.
    pub addresses: Vec<LocalAddress>,
}

/// A local address of a service: what its FullNAT servers see as the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// How often no port of it was left.
    pub exhausted: u64,
    /// Connections that have a port of it.
    pub conns: u64,
}

/// Counters and rates since the last `-Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections scheduled.
    pub conns: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients, from the IP header on.
    pub in_bytes: u64,
    /// Bytes to clients, from the IP header on.
    pub out_bytes: u64,
    /// Rates of the above, per second, in the same order.
    pub rates: [u64; 5],
}

/// A connection as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// `TCP`, `UDP`, `SCTP`, or `IP` for templates of firewall marks.
    pub protocol: String,
    /// Whole seconds until it expires.
    pub expires: u32,
    /// The state's name.
    pub state: String,
    /// The client's address and port.
    pub client: (IpAddr, u16),
    /// The virtual address and port.
    pub service: (IpAddr, u16),
    /// The real server's address and port.
    pub server: (IpAddr, u16),
    /// The persistence engine's name and data.
    pub engine: Option<(String, String)>,
    /// Whether it is a template, which makes a client's connections go to one server, and no connection.
    pub is_template: bool,
}

/// Timeouts in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// Which end of the synchronisation a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncRole {
    /// Sends connections.
    Master,
    /// Receives them.
    Backup,
}

/// A synchronisation daemon, as asked for or as it runs. A zero, or no group, asks for the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDaemon {
    /// Its role.
    pub role: SyncRole,
    /// The interface it sends or listens on.
    pub interface: String,
    /// The id both ends share; 0 on a backup accepts all.
    pub syncid: u8,
    /// The longest message, in bytes.
    pub max_length: u16,
    /// The multicast group.
    pub group: Option<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// The time to live of what it sends.
    pub ttl: u8,
}

/// What the director is and how it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// shunt's version.
    pub version: String,
    /// Entries the connection tables hold at most; the listing's `size=`.
    pub table_size: u64,
    /// Each interface, with the way it is driven, such as `af-xdp (native, copy)`.
    pub interfaces: Vec<(String, String)>,
    /// What frames are kept in: how much, and in what pages.
    pub memory: String,
    /// The same in bytes.
    pub frames: Pages,
    /// What each worker's tables have room in.
    pub tables: Vec<Pages>,
    /// Bytes of memory that are in use now.
    pub memory_in_use: u64,
    /// How many of them are in huge pages.
    pub in_huge_pages: u64,
    /// Huge pages of 2 MiB that the kernel has set aside for it, of those that were reserved, in use or not.
    #[serde(default)]
    pub reserved_pages: u64,
    /// The cores the workers are pinned to.
    pub cores: Vec<usize>,
    /// The snapshot every worker has reached.
    pub epoch: u64,
    /// Every counter of the data plane, by name.
    pub counters: Vec<(String, u64)>,
}

/// Memory by the kind of its pages, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// Huge ones that were reserved.
    pub reserved: u64,
    /// Huge ones where the kernel finds any.
    pub transparent: u64,
    /// Ordinary ones.
    pub ordinary: u64,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.reserved, "reserved huge pages"),
            (self.transparent, "huge pages where the kernel finds any"),
            (self.ordinary, "ordinary pages"),
        ];
        let some: Vec<_> = kinds.into_iter().filter(|(bytes, _)| *bytes > 0).collect();
        if let [(_, name)] = some[..] {
            return f.write_str(name);
        }
        let told: Vec<_> = some.iter().map(|(bytes, name)| format!("{name} ({} MiB)", bytes >> 20)).collect();
        f.write_str(&told.join(", "))
    }
}

impl Pages {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.reserved + self.transparent + self.ordinary
    }
}

/// What the stages of a worker's turns have taken since it began, in cycles of the processor's time-stamp counter. One turn in `every` is timed, of those
/// in which there is something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The core that the worker is pinned to.
    pub core: usize,
    /// Cycles in a second.
    pub cycles_per_second: u64,
    /// Turns of which one is timed.
    pub every: u32,
    /// Turns that were timed.
    pub turns: u64,
    /// Bursts in them.
    pub bursts: u64,
    /// Packets in these.
    pub packets: u64,
    /// Each stage, in the order of a turn.
    pub stages: Vec<StageProfile>,
}

/// What one stage has taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProfile {
    /// Its name.
    pub stage: String,
    /// What a sample is of.
    pub per: Per,
    /// The sum of all samples, in cycles.
    pub cycles: u64,
    /// The histogram: the fewest and the most cycles of a bucket, and the samples in it. Empty ones are left out.
    pub buckets: Vec<(u64, u64, u64)>,
}

/// What a stage has a sample of for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// A burst of frames.
    Burst,
    /// A turn of the worker.
    Turn,
}

//! What control publishes to the workers: immutable snapshots.
//!
//! A [`Snapshot`] has two halves that change for different reasons: [`Services`] when an operator edits the rules,
//! [`Network`] when the kernel's routes, addresses or neighbours change. Either half is shared with the previous snapshot when it
//! did not change, so an edit costs what it touches.
//!
//! Identifiers are stable: a [`ServiceId`] or [`DestId`] means the same object in every snapshot that has it, so
//! a worker's connections, counters and scheduler state survive any number of edits.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::conn::State;
use crate::packet::{Address, Tuple, protocol};
use crate::sched::Scheduler;
use crate::stats::MAX_DESTS;

mod local;
mod marking;
mod network;
mod place;
pub mod spread;
mod sysctl;

pub use local::Local;
use marking::Markings;
pub use marking::{EVERY_PORT, MAX_MARKINGS, Marking, Pattern, Prefix};
pub use network::{Hop, Interface, Neighbour, Network, Route, Unreachable, Vlan};
use place::Place;
pub use spread::{Sorted, Spread};
pub use sysctl::{SysctlError, Sysctls, absent};

/// Counts snapshots. A worker that has reached an epoch has forgotten everything older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A moment, in milliseconds since the director started. Wraps after 49.7 days: moments further apart than that
/// must not be compared, and no timeout is longer (31 days is the longest IPVS takes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
pub struct Tick(pub u32);

/// The index of an interface in the director's list, the same in every worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u8);

/// The index of a way out: one of the director's interfaces, whose number is that of its [`PortId`], or a VLAN on one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u16);

impl From<PortId> for LinkId {
    fn from(port: PortId) -> Self {
        LinkId(port.0.into())
    }
}

/// The index of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u8);

/// A virtual service, for as long as it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// A real server of one service ("dest" in the kernel's words), also while it is removed and connections remain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, zerocopy::FromZeros)]
pub struct DestId(pub u32);

impl DestId {
    /// Of connections that have no real server: where the books are done for them.
    pub const NOBODY: DestId = DestId(MAX_DESTS as u32);
}

/// Transport protocols a service can have, by their IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp = protocol::TCP,
    /// User Datagram Protocol.
    Udp = protocol::UDP,
    /// Stream Control Transmission Protocol.
    Sctp = protocol::SCTP,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
}

/// How a connection's packets reach their real server. The numbers are the kernel's (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(u8)]
pub enum Forwarding {
    /// NAT: the destination becomes the real server's address and port, replies come back through the director.
    #[default]
    Masq = 0,
    /// A tunnel: the packet goes to the real server inside another, replies go past the director.
    Tunnel = 2,
    /// Direct routing: the frame goes to the real server's MAC unchanged, replies go past the director.
    Route = 3,
    /// No real server, because there was none: the packet goes to where it is addressed, unchanged (`cache_bypass`).
    Bypass = 4,
    /// FullNAT: both ends are translated, so that the real server answers the director without knowing that it is one. The kernel lacks it; the
    /// number is that of Alibaba's LVS and DPVS.
    FullNat = 5,
}

/// How a tunnel wraps packets. Means nothing for other forwarding methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Tunnel {
    /// In what.
    pub kind: TunnelKind,
    /// Whether GUE's UDP or GRE carries a checksum.
    pub checksum: bool,
    /// GUE's destination port.
    pub port: u16,
}

impl Forwarding {
    /// Whether replies come back through the director, which translates them.
    #[inline]
    pub fn translates_replies(self) -> bool {
        matches!(self, Forwarding::Masq | Forwarding::FullNat)
    }
}

/// How a real server behind FullNAT is told of a TCP client. The connection itself comes from the director.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tell {
    /// Not at all.
    #[default]
    Nothing,
    /// By TCP option 254.
    Toa,
    /// By a header of the PROXY protocol, version 1.
    ProxyOne,
    /// By one of version 2.
    ProxyTwo,
}

/// Kinds of tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(u8)]
pub enum TunnelKind {
    /// IP in IP (RFC 2003, RFC 2473).
    #[default]
    Ipip = 0,
    /// Generic UDP encapsulation.
    Gue = 1,
    /// Generic routing encapsulation (RFC 2784).
    Gre = 2,
}

/// The port of FTP's control connections.
pub const FTP: u16 = 21;

/// The port of FTP's data connections where the server connects.
pub const FTP_DATA: u16 = 20;

/// Ports from here on are anybody's, and of FTP's data connections where the client connects (`net.ipv4.ip_unprivileged_port_start`).
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// Scheduler flag 1 (`sh-fallback`, `mh-fallback`): a client whose real server takes no connections gets another one.
pub const FALLBACK: u8 = 1;

/// Scheduler flag 2 (`sh-port`, `mh-port`): the client's port is hashed with its address.
pub const HASH_PORT: u8 = 2;

/// All that workers need to know, at one epoch. Immutable.
#[derive(Clone)]
pub struct Snapshot {
    /// When, in the order of snapshots.
    pub epoch: Epoch,
    /// Virtual services and real servers.
    pub services: Arc<Services>,
    /// Interfaces, addresses, routes and neighbours.
    pub network: Arc<Network>,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Settings.
    pub sysctls: Sysctls,
}

/// Virtual services and real servers.
#[derive(Clone, Default)]
pub struct Services {
    by_address: HashMap<Place, Arc<Service>>,
    /// By mark, and whether they are for IPv6.
    by_mark: HashMap<(u32, bool), Arc<Service>>,
    markings: Markings,
    /// Whether there may be FTP by NAT that no virtual address tells of: a mark's, or that of real servers which are only remembered.
    may_speak_ftp: bool,
    dests: Vec<Option<Arc<Dest>>>,
    /// Real servers reached by NAT, and whether they are in the rules or only remembered.
    masqueraded: HashMap<Place, bool>,
    /// Local addresses of FullNAT.
    locals: HashSet<IpAddr>,
    /// Virtual addresses by protocol, for packets without ports.
    addresses: HashSet<(IpAddr, u8)>,
    /// The same of NAT real servers.
    servers: HashSet<(IpAddr, u8)>,
    /// Whether there is a service of all ports of an address.
    has_any_port: bool,
    /// Whether there is a persistent service of FTP.
    has_ftp: bool,
    /// Whether there is a real server behind a tunnel.
    has_tunnels: bool,
    /// Virtual addresses with FTP by NAT.
    ftp: HashSet<IpAddr>,
    /// Real servers that may begin calls, by address and port.
    callers: HashMap<(IpAddr, u16), (Arc<Service>, Arc<Dest>)>,
}

/// A virtual service.
#[derive(Clone)]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// The mark of its packets, if they are known by that; they may then have any protocol, address and port.
    pub mark: Option<u32>,
    /// The transport protocol. TCP if it has a mark.
    pub protocol: Protocol,
    /// The virtual address; if it has a mark, the unspecified one of its family.
    pub address: IpAddr,
    /// The virtual port; 0 if it has a mark.
    pub port: u16,
    /// Its real servers, newest first: the order in which the kernel keeps them and schedulers walk them.
    pub dests: Vec<Arc<Dest>>,
    /// Edits of these so far. Schedulers hear of each, also of one that changes nothing.
    pub edits: u64,
    /// The director's own addresses from which FullNAT talks to its real servers.
    pub locals: Vec<Arc<Local>>,
    /// How it keeps its clients at their real servers, if it does.
    pub persistence: Option<Persistence>,
    /// Whether each UDP datagram is scheduled by itself.
    pub one_packet: bool,
    /// Flags for its scheduler, such as [`FALLBACK`].
    pub flags: u8,
    /// The name of its scheduler.
    pub scheduler_name: &'static str,
    /// The scheduler as it stands after all edits so far, had no connection been scheduled between them. A worker that meets the
    /// service for the first time begins with a copy.
    pub scheduler: Arc<dyn Scheduler>,
}

/// How a service keeps its clients at their real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// Milliseconds that a client is remembered after its last new connection.
    pub timeout: u32,
    /// The bits of a client's address that count: those who differ in others go together.
    pub mask: IpAddr,
    /// Whether each SIP call of a client is remembered by itself (the persistence engine `sip`).
    pub by_call: bool,
}

/// A real server of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dest {
    /// Its identity. The same again when a removed server is added again.
    pub id: DestId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How packets reach it.
    pub forwarding: Forwarding,
    /// How they are wrapped, when in a tunnel.
    pub tunnel: Tunnel,
    /// How it is told of its clients, under FullNAT.
    pub tell: Tell,
    /// Its share; 0 takes no new connections.
    pub weight: u32,
    /// The last weight it had that was not 0, since it was added. Tables by hash are made by it, so that a server whose
    /// weight is set to 0 for a while moves nobody else's clients.
    pub last_weight: u32,
    /// Connections from which on it takes no new ones; 0: no limit.
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again; 0: three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// The largest segment that either end may announce, in bytes. Its service's.
    pub mss: Option<u16>,
    /// Whether connections go to other ports of it, too, and what comes from any of them is taken.
    pub every_port: bool,
}

/// Milliseconds a connection lives in each state when nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    by_state: [u32; State::ALL.len()],
}

impl Tick {
    /// Milliseconds from `earlier` to this moment.
    #[inline]
    pub fn since(self, earlier: Tick) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The moment `milliseconds` later.
    #[inline]
    pub fn plus(self, milliseconds: u32) -> Tick {
        Tick(self.0.wrapping_add(milliseconds))
    }

    /// Whether this moment is earlier than `other`, for moments less than 24 days apart.
    #[inline]
    pub fn is_before(self, other: Tick) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

impl Dest {
    /// Whether it takes new connections again that it refused, now that it has so many (`ip_vs_dest_update_overload`).
    pub fn is_relieved(&self, connections: u64) -> bool {
        match (u64::from(self.upper_threshold), u64::from(self.lower_threshold)) {
            (0, _) => true,
            (upper, 0) => connections * 4 < upper * 3,
            (_, lower) => connections < lower,
        }
    }
}

impl Service {
    /// Whether a real server may begin calls.
    fn is_called_by(&self, dest: &Dest) -> bool {
        let by_call = self.persistence.is_some_and(|persistence| persistence.by_call);
        let is_one = self.mark.is_none() && self.protocol == Protocol::Udp && dest.port != 0;
        by_call && is_one && dest.forwarding == Forwarding::Masq
    }

    /// Whether a packet is scheduled by itself.
    #[inline]
    pub fn is_for_one<A>(&self, tuple: &Tuple<A>) -> bool {
        self.one_packet && tuple.protocol == Protocol::Udp as u8
    }

    /// Whether it is one of FTP whose clients' data connections go to their real servers too, at the ports that those have named.
    pub fn is_persistent_ftp(&self) -> bool {
        self.port == FTP && self.protocol == Protocol::Tcp && self.persistence.is_some()
    }
}

impl Services {
    /// The services with their real servers.
    pub fn new(services: impl IntoIterator<Item = Arc<Service>>) -> Self {
        let mut tables = Self::default();
        for service in services {
            for dest in &service.dests {
                let id = dest.id.0 as usize;
                if tables.dests.len() <= id {
                    tables.dests.resize(id + 1, None);
                }
                tables.dests[id] = Some(Arc::clone(dest));
                tables.has_tunnels |= dest.forwarding == Forwarding::Tunnel;
                for protocol in service.protocols().iter().filter(|_| dest.forwarding.translates_replies()) {
                    tables.masqueraded.insert(Place::new(dest.address, dest.port, *protocol as u8), true);
                    if dest.every_port {
                        tables
                            .masqueraded
                            .entry(Place::new(dest.address, 0, *protocol as u8))
                            .or_insert(false);
                        tables.has_any_port = true;
                    }
                    tables.servers.insert((dest.address, *protocol as u8));
                }
            }
            for dest in service.dests.iter().filter(|dest| service.is_called_by(dest)) {
                let caller = tables.callers.entry((dest.address, dest.port));
                let caller = caller.or_insert_with(|| (Arc::clone(&service), Arc::clone(dest)));
                // Of several services the one that got the real server last.
                if caller.1.id.0 < dest.id.0 {
                    *caller = (Arc::clone(&service), Arc::clone(dest));
                }
            }
            tables.has_any_port |= service.port == 0;
            tables.has_ftp |= service.is_persistent_ftp();
            for (service, server) in service.ftp_data() {
                tables.ftp.insert(service.0);
                tables
                    .masqueraded
                    .entry(Place::new(server.0, server.1, Protocol::Tcp as u8))
                    .or_insert(false);
            }
            tables.locals.extend(service.locals.iter().map(|local| local.address));
            match service.mark {
                Some(mark) => {
                    let by_nat = |dest: &Arc<Dest>| dest.forwarding == Forwarding::Masq;
                    tables.may_speak_ftp |= service.dests.iter().any(by_nat);
                    tables.by_mark.insert((mark, service.address.is_ipv6()), service);
                }
                None => {
                    let protocol = service.protocol as u8;
                    tables.addresses.insert((service.address, protocol));
                    tables.by_address.insert(Place::new(service.address, service.port, protocol), service);
                }
            }
        }
        tables
    }

    /// Adds real servers that were removed while connections by NAT remain: what comes from them may still be a reply.
    #[must_use]
    pub fn remembering(mut self, removed: impl IntoIterator<Item = (Protocol, IpAddr, u16)>) -> Self {
        for (protocol, address, port) in removed {
            self.has_any_port |= port == 0;
            self.may_speak_ftp |= protocol == Protocol::Tcp;
            self.masqueraded.entry(Place::new(address, port, protocol as u8)).or_insert(false);
            self.servers.insert((address, protocol as u8));
        }
        self
    }

    /// The same services, with these rules that mark packets, of which the last one that applies decides.
    #[must_use]
    pub fn marking(mut self, rules: &[Marking]) -> Self {
        self.markings = Markings::new(rules, |mark, is_v6| self.by_mark.get(&(mark, is_v6)).cloned());
        self
    }

    /// What rules mark packets by, in the order in which they are tried, and whether the mark has a service.
    pub fn patterns(&self) -> impl Iterator<Item = (&Pattern, bool)> {
        self.markings.patterns()
    }

    /// The service of a packet that came in by an interface (`ip_vs_service_find`): that of its mark, or that at its destination.
    #[inline]
    pub fn find_for<A: Address>(&self, tuple: &Tuple<A>, by: PortId) -> Option<&Arc<Service>> {
        let at = || self.find(tuple.destination, tuple.destination_port, tuple.protocol);
        self.markings.find(tuple, by).or_else(at)
    }

    /// The service at an address: of just this port, of FTP if this may be a port for its data, or of all ports.
    #[inline]
    pub fn find(&self, address: impl Into<IpAddr>, port: u16, protocol: u8) -> Option<&Arc<Service>> {
        let address = address.into();
        let of_all_ports =
            || self.by_address.get(&Place::new(address, 0, protocol)).filter(|_| self.has_any_port);
        let is_for_data = protocol == Protocol::Tcp as u8 && is_ftp_data(port);
        let of_ftp = || {
            let ftp = self
                .by_address
                .get(&Place::new(address, FTP, protocol))
                .filter(|_| self.has_ftp && is_for_data)?;
            ftp.is_persistent_ftp().then_some(ftp)
        };
        self.by_address.get(&Place::new(address, port, protocol)).or_else(of_ftp).or_else(of_all_ports)
    }

    /// Whether there is FTP by NAT, or may be: where a mark's service takes all ports, and as long as connections remain of what was reached by NAT.
    #[inline]
    pub fn speaks_ftp(&self) -> bool {
        !self.ftp.is_empty() || self.may_speak_ftp
    }

    /// Whether there is at this virtual address.
    pub fn speaks_ftp_at(&self, address: impl Into<IpAddr>) -> bool {
        self.ftp.contains(&address.into())
    }

    /// Whether a packet without ports may be to a service, or from a real server reached by NAT.
    pub fn may_concern<A: Address>(&self, source: A, destination: A, protocol: u8, by: PortId) -> bool {
        self.addresses.contains(&(destination.into(), protocol))
            || self.may_be_from_server(source, protocol)
            || self.markings.may_find(source, destination, protocol, by)
    }

    /// Whether a packet without ports may be from a real server reached by NAT.
    pub fn may_be_from_server<A: Address>(&self, source: A, protocol: u8) -> bool {
        self.servers.contains(&(source.into(), protocol))
    }

    /// Every service.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_address.values().chain(self.by_mark.values())
    }

    /// Whether there is a real server behind a tunnel.
    #[inline]
    pub fn has_tunnels(&self) -> bool {
        self.has_tunnels
    }

    /// Whether there is one for clients of a family.
    pub fn has_any_of(&self, is_ipv6: bool) -> bool {
        self.iter().any(|service| service.address.is_ipv6() == is_ipv6)
    }

    /// Whether there is one with a real server of this family by FullNAT, and clients of the other.
    pub fn reaches_across(&self, is_ipv6: bool) -> bool {
        // Without a local address there are no such connections; and few services have one, while this is asked at each edit.
        let mut theirs = self
            .iter()
            .filter(|service| !service.locals.is_empty() && service.address.is_ipv6() != is_ipv6)
            .flat_map(|service| &service.dests);
        theirs.any(|dest| dest.forwarding == Forwarding::FullNat && dest.address.is_ipv6() == is_ipv6)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.by_mark.is_empty()
    }

    /// Whether a real server is there, not removed.
    #[inline]
    pub fn has_dest(&self, dest: DestId) -> bool {
        self.dest(dest).is_some()
    }

    /// A real server, unless it was removed.
    #[inline]
    pub fn dest(&self, dest: DestId) -> Option<&Arc<Dest>> {
        self.dests.get(dest.0 as usize)?.as_ref()
    }

    /// Whether an address is one that FullNAT talks to real servers from.
    pub fn is_local(&self, address: impl Into<IpAddr>) -> bool {
        self.locals.contains(&address.into())
    }

    /// Whether a real server is reached by NAT at this address, or at all its ports, so that what comes from it may be a reply.
    #[inline]
    pub fn is_masqueraded(&self, address: impl Into<IpAddr>, port: u16, protocol: u8) -> bool {
        let address = address.into();
        let is = |port| self.masqueraded.contains_key(&Place::new(address, port, protocol));
        is(port) || self.has_any_port && is(0)
    }

    /// Whether the rules have a real server reached by NAT at this address and just this port (`ip_vs_has_real_service`, which looks no further).
    pub fn has_nat_server(&self, address: impl Into<IpAddr>, port: u16, protocol: u8) -> bool {
        self.masqueraded.get(&Place::new(address.into(), port, protocol)) == Some(&true)
    }

    /// The real server that sent a packet, and its service, if it may begin a call with it.
    pub fn caller<A: Address>(&self, tuple: &Tuple<A>) -> Option<&(Arc<Service>, Arc<Dest>)> {
        let may = !self.callers.is_empty() && tuple.protocol == Protocol::Udp as u8;
        may.then(|| self.callers.get(&(tuple.source.into(), tuple.source_port)))?
    }

    /// Whether a real server was there before and is not any more.
    pub fn has_lost_any(&self, before: &Self) -> bool {
        before.dests.iter().zip((0..).map(DestId)).any(|(dest, id)| dest.is_some() && !self.has_dest(id))
    }

    /// Whether packets to a real server that was there before are wrapped otherwise now.
    pub fn wraps_otherwise(&self, before: &Self) -> bool {
        // Nearly all are the very same.
        let is_other =
            |were: &Arc<Dest>, are: &Arc<Dest>| !Arc::ptr_eq(were, are) && were.tunnel != are.tunnel;
        let pairs = before.dests.iter().zip(&self.dests);
        pairs.filter_map(|(were, are)| were.as_ref().zip(are.as_ref())).any(|(were, are)| is_other(were, are))
    }
}

/// Whether FTP's data may go to a port of the virtual address: the server's own, or one that it has named.
pub fn is_ftp_data(port: u16) -> bool {
    port == FTP_DATA || port >= FIRST_UNPRIVILEGED
}

impl Service {
    /// The protocols of its packets.
    pub fn protocols(&self) -> &[Protocol] {
        match self.mark {
            Some(_) => &Protocol::ALL,
            None => std::slice::from_ref(&self.protocol),
        }
    }

    /// Between which ends real servers make FTP's data connections to clients, as the client and as the real server has it; none where it is not FTP by NAT.
    pub fn ftp_data(&self) -> impl Iterator<Item = ((IpAddr, u16), (IpAddr, u16))> {
        self.dests.iter().filter(|_| self.mark.is_none()).filter_map(|dest| {
            let port = ftp_data_port(self.protocol, self.port, dest.forwarding, dest.port)?;
            Some(((self.address, FTP_DATA), (dest.address, port)))
        })
    }
}

/// The port from which a real server makes FTP's data connections to clients, if it is one of FTP by NAT: the one before its own.
pub fn ftp_data_port(protocol: Protocol, service: u16, forwarding: Forwarding, server: u16) -> Option<u16> {
    let is_ftp = (protocol, forwarding) == (Protocol::Tcp, Forwarding::Masq);
    match service {
        FTP if is_ftp => Some(server.wrapping_sub(1)),
        // All ports are served, and that of the server is the client's choice.
        0 if is_ftp => Some(FTP_DATA),
        _ => None,
    }
}

impl Default for Timeouts {
    /// The kernel's defaults (`tcp_timeouts` of `ip_vs_proto_tcp.c`, `udp_timeouts` of `ip_vs_proto_udp.c`, `sctp_timeouts` of
    /// `ip_vs_proto_sctp.c`).
    fn default() -> Self {
        let seconds = |state| match state {
            // A template's own timeout is its service's.
            State::None | State::Assured => 2,
            State::Established | State::Associated => 900,
            State::SynSent | State::FinWait | State::TimeWait | State::Listen | State::SynAck => 120,
            State::SynRecv | State::CloseWait => 60,
            State::Close => 10,
            State::LastAck => 30,
            State::Udp => 300,
            State::Init1 | State::Rejected => 4,
            State::Init
            | State::CookieSent
            | State::CookieReplied
            | State::CookieWait
            | State::Cookie
            | State::CookieEchoed
            | State::ShutdownSent
            | State::ShutdownReceived
            | State::ShutdownAckSent
            | State::Closed => 61,
        };
        Self { by_state: State::ALL.map(|state| seconds(state) * 1000) }
    }
}

impl Timeouts {
    /// The timeout in a state, in milliseconds.
    #[inline]
    pub fn of(&self, state: State) -> u32 {
        self.by_state[state as usize]
    }

    /// Changes the timeout in a state, in seconds (at most 31 days, as IPVS has it).
    pub fn set(&mut self, state: State, seconds: u32) {
        self.by_state[state as usize] = seconds.min(31 * 86_400) * 1000;
    }
}

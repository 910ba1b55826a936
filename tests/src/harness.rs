//! What fuzzers and property tests do to directors, and what must hold whatever they do.
//!
//! A run is a list of [`Op`]s: frames, edits, time. [`Play`] carries them out on a [`Rig`] and after each holds the outcome
//! against the [`oracle`] and against itself: every frame that leaves is the one that came, translated as
//! the connection says; a connection keeps its server; no flow has two connections; directory, counters and tables agree.
//! At the end everything expires and nothing may remain.
//!
//! ```text
//!   fuzzer: bytes ─▶ Op::read ─┐
//!   proptest: strategies ──────┴▶ Play::step ─▶ Rig ─▶ oracle, audit
//! ```
//!
//! [`director`], [`request`] and [`ipvsadm`] are the fuzz targets' bodies. They live here so that `cargo test` replays
//! the corpus with the stable compiler.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use shunt::api::{
    Forwarding, MAX_MESSAGE, Message, Protocol, Request, Response, ServerConfig, ServerKey, ServiceConfig,
    ServiceKey, Timeouts, VERSION,
};
use shunt::ipvsadm::address::Names;
use shunt::rules::{Capabilities, Rules};
use shunt_dataplane::conn::{Conn, State};
use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::{Tuple, V4};
use shunt_dataplane::service::{self as data, DestId, PortId, WorkerId};
use shunt_dataplane::stats::{Event, Reason};

use crate::bench::{CLIENTS, SERVERS, VIP};
use crate::frames::{C0, S0, checksum, client_mac, frame, server_mac, to_hex};
use crate::oracle::{self, Packet, Rewrite};
use crate::rig::{Delivery, ROUTER, Rig, VIP2, macs_to};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Ops of one run. More find nothing new, and the audit after each makes a run's cost quadratic.
const MOST_OPS: usize = 200;

/// Milliseconds that a connection may outlive its timeout: two slots of the wheel, and the rig looks at the clock every half
/// second.
const LATE: u32 = 2_500;

/// The services that edits add: protocol, virtual address and port, the port of the servers, NAT or not. The last one's servers
/// are the first one's, so that replies of the two can be the same.
pub const SERVICES: &[(Protocol, Ipv4Addr, u16, u16, Forwarding)] = &[
    (Protocol::Tcp, VIP, 80, 80, Forwarding::Masq),
    (Protocol::Tcp, VIP, 81, 8080, Forwarding::Masq),
    (Protocol::Tcp, VIP, 82, 82, Forwarding::Route),
    (Protocol::Udp, VIP, 80, 80, Forwarding::Masq),
    (Protocol::Udp, VIP, 81, 8080, Forwarding::Masq),
    (Protocol::Udp, VIP, 82, 82, Forwarding::Route),
    (Protocol::Tcp, VIP2, 80, 80, Forwarding::Masq),
    (Protocol::Udp, VIP2, 80, 80, Forwarding::Masq),
];

/// The real servers: eight that answer, one not asked for yet, one mute, one without a route.
const SERVERS_THERE_ARE: u8 = 11;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// Bytes come to a worker. `mend` makes the IP checksum right, so that more gets past it.
    Raw {
        /// The worker.
        worker: u8,
        /// Which side: even is the clients'.
        side: u8,
        /// Whether the IP checksum is made right.
        mend: bool,
        /// The frame.
        bytes: Hex,
    },
    /// A client sends to a service.
    Request {
        /// The worker it comes to.
        worker: u8,
        /// Which client: address and port.
        client: u8,
        /// Which of [`SERVICES`].
        service: u8,
        /// What it looks like.
        shape: Shape,
    },
    /// The real server of a connection sends to its client.
    Reply {
        /// The worker it comes to.
        worker: u8,
        /// Which connection.
        conn: u8,
        /// What it looks like.
        shape: Shape,
    },
    /// Somebody sends an ICMP error about a connection.
    Error {
        /// The worker it comes to.
        worker: u8,
        /// Which connection.
        conn: u8,
        /// About a reply, from the client's side; else about a request, from the server's.
        about_reply: bool,
        /// The ICMP type.
        kind: u8,
        /// Bytes quoted behind the quoted IP header.
        quoted: u8,
    },
    /// The rules change, if they allow it.
    Edit(Edit),
    /// The MTU of the servers' link changes.
    Mtu(u8),
    /// Tenths of a second pass.
    Wait(u16),
}

/// Bytes that print as hex: a failing run is a list of these.
#[derive(Clone)]
pub struct Hex(pub Vec<u8>);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// A change of the rules.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Edit {
    AddService { service: u8 },
    Schedule { service: u8, weighted: bool },
    DeleteService { service: u8 },
    AddServer { service: u8, server: u8, weight: u8, limit: u8 },
    EditServer { service: u8, server: u8, weight: u8, limit: u8 },
    DeleteServer { service: u8, server: u8 },
    Flush,
    Zero,
    Timeouts { tcp: u8, fin: u8, udp: u8 },
}

/// What a frame looks like beyond its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// TCP flags.
    pub flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bytes of data, times eight.
    pub length: u8,
    /// The two lowest bits: VLAN tags, at most two. The next four: words of IP options, at most ten.
    pub wrapping: u8,
    /// Bit 0: the transport checksum is wrong; bit 1: UDP has none; bit 2: don't fragment; the rest: Ethernet padding.
    pub quirks: u8,
}

impl Default for Shape {
    fn default() -> Self {
        Self { flags: 0x10, ttl: 64, length: 2, wrapping: 0, quirks: 4 }
    }
}

impl Shape {
    /// A shape with these TCP flags.
    pub fn flags(flags: u8) -> Self {
        Self { flags, ..Self::default() }
    }

    /// The frame.
    pub fn frame(
        &self,
        macs: ([u8; 6], [u8; 6]),
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        protocol: u8,
    ) -> Vec<u8> {
        let data: Vec<u8> = (0..usize::from(self.length) * 8).map(|n| (n * 7 + 3) as u8).collect();
        let (mut segment, checksum_at) = if protocol == TCP {
            let mut header = vec![0; 20];
            header[4..8].copy_from_slice(&[0, 0, 3, 0xe8]);
            header[12..16].copy_from_slice(&[5 << 4, self.flags, 0x20, 0]);
            (header, 16)
        } else {
            (vec![0; 8], 6)
        };
        segment.extend(data);
        segment[..2].copy_from_slice(&from.1.to_be_bytes());
        segment[2..4].copy_from_slice(&to.1.to_be_bytes());
        if protocol == UDP {
            let length = segment.len() as u16;
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let mut bytes = frame(macs, from.0, to.0, protocol, segment, checksum_at);
        let field = 14 + 20 + checksum_at;
        if protocol == UDP && (self.quirks & 2 != 0 || bytes[field..field + 2] == [0, 0]) {
            // No checksum, or one that must be written the other way (RFC 768).
            bytes[field..field + 2].fill(if self.quirks & 2 != 0 { 0 } else { 0xff });
        }
        if self.quirks & 1 != 0 {
            bytes[field] ^= 0x55;
        }
        bytes[14 + 8] = self.ttl;
        bytes[14 + 6] = if self.quirks & 4 != 0 { 0x40 } else { 0 };
        let options = (usize::from(self.wrapping >> 2) & 15).min(10);
        bytes[14] = 0x45 + options as u8;
        bytes.splice(34..34, std::iter::repeat_n(1, options * 4));
        let total = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        mend(&mut bytes);
        bytes.extend(std::iter::repeat_n(0xaa, usize::from(self.quirks >> 3)));
        for n in 0..(self.wrapping & 3).min(2) {
            bytes.splice(12..12, [if n == 0 { 0x81 } else { 0x88 }, if n == 0 { 0 } else { 0xa8 }, 0, 42]);
        }
        bytes
    }
}

/// Makes the IP checksum of a frame right, if there is a header to speak of.
fn mend(bytes: &mut [u8]) {
    let mut at = 14;
    while at <= 18 && matches!(bytes.get(at - 2..at), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    let Some(first) = bytes.get(at) else { return };
    let header = usize::from(first & 15) * 4;
    if header < 20 || bytes.len() < at + header {
        return;
    }
    bytes[at + 10..at + 12].fill(0);
    let sum = checksum(&bytes[at..at + header]);
    bytes[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Takes bytes off the front; zeros when there are none left.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

impl Op {
    /// Reads a run from bytes. Any bytes are one.
    pub fn read_all(bytes: &[u8]) -> Vec<Op> {
        let mut cursor = Cursor(bytes);
        let mut ops = Vec::new();
        while !cursor.0.is_empty() && ops.len() < MOST_OPS {
            ops.push(Self::read(&mut cursor));
        }
        ops
    }

    fn read(cursor: &mut Cursor) -> Op {
        let kind = cursor.byte();
        match kind & 15 {
            0 => {
                let control = cursor.byte();
                let length = usize::from(cursor.byte()) << 8 | usize::from(cursor.byte());
                Op::Raw {
                    worker: control >> 1 & 3,
                    side: control & 1,
                    mend: control & 8 != 0,
                    bytes: Hex(cursor.bytes(length)),
                }
            }
            1..=3 => Op::Request {
                worker: kind >> 4,
                client: cursor.byte(),
                service: cursor.byte(),
                shape: Self::read_shape(cursor),
            },
            4..=5 => Op::Reply { worker: kind >> 4, conn: cursor.byte(), shape: Self::read_shape(cursor) },
            6 => {
                let control = cursor.byte();
                let kinds = [3, 4, 11, 12];
                Op::Error {
                    worker: kind >> 4,
                    conn: cursor.byte(),
                    about_reply: control & 1 != 0,
                    kind: kinds[usize::from(control >> 1 & 3)],
                    quoted: cursor.byte(),
                }
            }
            7 => Op::Mtu(cursor.byte()),
            8 => Op::Wait(u16::from(cursor.byte()) << 5),
            _ => Op::Edit(Self::read_edit(kind, cursor)),
        }
    }

    fn read_shape(cursor: &mut Cursor) -> Shape {
        Shape {
            flags: cursor.byte(),
            ttl: cursor.byte(),
            length: cursor.byte(),
            wrapping: cursor.byte(),
            quirks: cursor.byte(),
        }
    }

    fn read_edit(kind: u8, cursor: &mut Cursor) -> Edit {
        let service = kind >> 4;
        match kind & 15 {
            9 => Edit::AddService { service },
            10 => Edit::AddServer {
                service,
                server: cursor.byte(),
                weight: cursor.byte(),
                limit: cursor.byte(),
            },
            11 => Edit::EditServer {
                service,
                server: cursor.byte(),
                weight: cursor.byte(),
                limit: cursor.byte(),
            },
            12 => Edit::DeleteServer { service, server: cursor.byte() },
            13 => Edit::Schedule { service, weighted: cursor.byte() & 1 != 0 },
            14 => Edit::DeleteService { service },
            _ => match cursor.byte() & 3 {
                0 => Edit::Flush,
                1 => Edit::Zero,
                _ => Edit::Timeouts { tcp: cursor.byte(), fin: cursor.byte(), udp: cursor.byte() },
            },
        }
    }
}

impl Edit {
    /// The request it stands for.
    pub fn request(self) -> Request {
        let config = |service: u8, weighted| ServiceConfig {
            key: service_key(service),
            scheduler: if weighted { "wrr" } else { "rr" }.to_owned(),
            flags: 0,
            persistent: None,
            one_packet: false,
            engine: None,
        };
        let server_config = |service: u8, server: u8, weight: u8, limit: u8| ServerConfig {
            key: server_key(service, server),
            forwarding: place(SERVICES, service).4,
            weight: u32::from(weight % 16),
            upper_threshold: u32::from(limit % 4) * 2,
            lower_threshold: 0,
        };
        match self {
            Edit::AddService { service } => Request::AddService(config(service, service & 8 != 0)),
            Edit::Schedule { service, weighted } => Request::EditService(config(service, weighted)),
            Edit::DeleteService { service } => Request::DeleteService(service_key(service)),
            Edit::AddServer { service, server, weight, limit } => {
                Request::AddServer(service_key(service), server_config(service, server, weight, limit))
            }
            Edit::EditServer { service, server, weight, limit } => {
                Request::EditServer(service_key(service), server_config(service, server, weight, limit))
            }
            Edit::DeleteServer { service, server } => {
                Request::DeleteServer(service_key(service), server_key(service, server))
            }
            Edit::Flush => Request::Flush,
            Edit::Zero => Request::Zero(None),
            Edit::Timeouts { tcp, fin, udp } => {
                let [tcp, tcp_fin, udp] = [tcp, fin, udp].map(|n| u32::from(n) * 4);
                Request::SetTimeouts(Timeouts { tcp, tcp_fin, udp })
            }
        }
    }
}

fn place<T>(list: &[T], number: u8) -> &T {
    &list[usize::from(number) % list.len()]
}

/// The key of one of [`SERVICES`].
pub fn service_key(service: u8) -> ServiceKey {
    let (protocol, address, port, ..) = *place(SERVICES, service);
    ServiceKey::Address { protocol, address: address.into(), port }
}

/// The key of a real server of one of [`SERVICES`].
pub fn server_key(service: u8, server: u8) -> ServerKey {
    let address = match server % SERVERS_THERE_ARE {
        8 => Ipv4Addr::new(10, 1, 0, 50),
        9 => Ipv4Addr::new(10, 1, 0, 99),
        10 => Ipv4Addr::new(10, 3, 0, 1),
        n => Ipv4Addr::new(10, 1, 0, 11 + n),
    };
    ServerKey { address: address.into(), port: place(SERVICES, service).3 }
}

/// A client by its number: eight neighbours and eight hosts behind the router, sixteen ports each.
pub fn client(number: u8) -> (Ipv4Addr, u16) {
    let host = number & 7;
    let address =
        if number & 8 == 0 { Ipv4Addr::new(10, 0, 0, 2 + host) } else { Ipv4Addr::new(192, 0, 2, host) };
    (address, 1000 + u16::from(number >> 4))
}

/// The source and destination of a frame that comes to the director by a side.
pub fn macs_from(address: Ipv4Addr, side: PortId) -> ([u8; 6], [u8; 6]) {
    match (side, address.octets()) {
        (SERVERS, _) => (server_mac(address), S0),
        (_, [10, 0, 0, _]) => (client_mac(address), C0),
        _ => (client_mac(ROUTER), C0),
    }
}

/// A run under way.
pub struct Play {
    /// The directors.
    pub rig: Rig,
    /// Every tuple there ever was, and whether connections of two workers had it at once.
    seen: HashMap<[u8; 13], (Tuple<V4>, bool)>,
}

impl Play {
    /// A run on this many workers, with every service, two servers each.
    pub fn new(workers: usize) -> Self {
        let mut play = Self { rig: Rig::new(workers), seen: HashMap::new() };
        for service in 0..SERVICES.len() as u8 {
            play.edit(Edit::AddService { service });
            play.edit(Edit::AddServer { service, server: 0, weight: 1, limit: 0 });
            play.edit(Edit::AddServer { service, server: 1, weight: 2, limit: 0 });
        }
        play
    }

    /// Does one thing and checks everything.
    ///
    /// # Panics
    /// When something does not hold.
    pub fn step(&mut self, op: &Op) -> Option<Delivery> {
        let delivery = self.act(op);
        self.audit();
        delivery
    }

    fn act(&mut self, op: &Op) -> Option<Delivery> {
        match *op {
            Op::Raw { worker, side, mend: mends, ref bytes } => {
                let mut bytes = bytes.0.clone();
                if mends {
                    mend(&mut bytes);
                }
                let side = if side & 1 == 0 { CLIENTS } else { SERVERS };
                Some(self.frame(worker, side, &bytes))
            }
            Op::Request { worker, client: number, service, shape } => {
                let from = client(number);
                let (protocol, address, port, ..) = *place(SERVICES, service);
                let macs = macs_from(from.0, CLIENTS);
                let bytes = shape.frame(macs, from, (address, port), protocol.number());
                Some(self.frame(worker, CLIENTS, &bytes))
            }
            Op::Reply { worker, conn, shape } => {
                let conn = self.pick(conn)?;
                let reply = conn.reply()?;
                let macs = macs_from(ip(conn.server), SERVERS);
                let (from, to) =
                    ((ip(reply.source), reply.source_port), (ip(reply.destination), reply.destination_port));
                let bytes = shape.frame(macs, from, to, reply.protocol);
                Some(self.frame(worker, SERVERS, &bytes))
            }
            Op::Error { worker, conn, about_reply, kind, quoted } => {
                let conn = self.pick(conn)?;
                let (side, bytes) = error(&conn, about_reply, kind, quoted);
                Some(self.frame(worker, side, &bytes))
            }
            Op::Edit(edit) => {
                self.edit(edit);
                None
            }
            Op::Mtu(mtu) => {
                self.rig.set_mtu(SERVERS, 576 + u16::from(mtu) * 4);
                None
            }
            Op::Wait(tenths) => {
                self.rig.wait(Duration::from_millis(u64::from(tenths) * 100));
                None
            }
        }
    }

    /// Changes the rules, if they allow it.
    pub fn edit(&mut self, edit: Edit) {
        // Refusals are part of the game: the edit is made by dice.
        let _ = self.rig.apply(&edit.request());
    }

    fn pick(&self, number: u8) -> Option<Conn<V4>> {
        let count = self.rig.connections().count();
        self.rig.connections().nth(usize::from(number) % count.max(1)).map(|(_, conn)| conn)
    }

    /// A frame comes to a worker; what becomes of it must be right.
    ///
    /// # Panics
    /// When it is not.
    pub fn frame(&mut self, worker: u8, side: PortId, bytes: &[u8]) -> Delivery {
        let before: Vec<_> = self.rig.connections().collect();
        let delivery = self.rig.deliver(usize::from(worker) % self.rig.workers(), side, bytes);
        let checked = match delivery.verdict {
            Verdict::Forward(port) => self.forwarded(&before, bytes, &delivery.bytes, port),
            Verdict::Reply(_) => oracle::replied(bytes, &delivery.bytes),
            verdict => self.kept(&before, bytes, verdict),
        };
        if let Err(why) = checked {
            let (verdict, output) = (delivery.verdict, to_hex(&delivery.bytes));
            panic!("{why}\n  {verdict:?}\n  in  {}\n  out {output}", to_hex(bytes));
        }
        delivery
    }

    /// A frame that was sent on is the one that came, as one of the connections that it fits translates it.
    fn forwarded(
        &self,
        before: &[(WorkerId, Conn<V4>)],
        input: &[u8],
        output: &[u8],
        port: PortId,
    ) -> Result<(), String> {
        let packet = Packet::read(input)?;
        if output.len() - 14 > usize::from(self.rig.mtu(port)) {
            return Err("longer than the link takes".to_owned());
        }
        let flow = if packet.protocol() == ICMP {
            // The quoted packet went the other way.
            packet.quoted().map(|(from, to, protocol)| (to, from, protocol))
        } else {
            packet.flow()
        };
        let flow = flow.ok_or("not a flow's packet")?;
        let mut tried = Vec::new();
        for (_, conn) in self.rig.connections() {
            let rewrite = match conn.forwarding {
                data::Forwarding::Masq => Rewrite::Destination(ip(conn.server), conn.server_port),
                // The harness makes no tunnels.
                data::Forwarding::Route | data::Forwarding::Tunnel => Rewrite::Nothing,
            };
            if tuple_flow(&conn.request()) == flow {
                tried.push(self.is_kept(before, &conn, &packet).and_then(|()| {
                    oracle::forwarded(input, output, rewrite)?;
                    goes_to(output, ip(conn.server), port)
                }));
            }
            if conn.reply().is_some_and(|reply| tuple_flow(&reply) == flow) {
                let source = Rewrite::Source(ip(conn.virtual_address), conn.virtual_port);
                tried.push(
                    oracle::forwarded(input, output, source)
                        .and_then(|()| goes_to(output, ip(conn.client), port)),
                );
            }
        }
        if tried.is_empty() && self.is_masqueraded(flow.0, flow.2) {
            tried.push(
                oracle::forwarded(input, output, Rewrite::Nothing)
                    .and_then(|()| goes_to(output, packet.destination(), port)),
            );
        }
        match tried.iter().find(|tried| tried.is_ok()) {
            Some(_) => Ok(()),
            None => Err(format!("forwarded for no reason that holds: {tried:?}")),
        }
    }

    /// A request's connection is the one there was, or a new one on a server that may have it.
    fn is_kept(
        &self,
        before: &[(WorkerId, Conn<V4>)],
        conn: &Conn<V4>,
        packet: &Packet,
    ) -> Result<(), String> {
        let old = before.iter().find(|(_, old)| old.request() == conn.request());
        let begins = packet.protocol() == TCP && packet.segment()[13] & 2 != 0;
        match old {
            Some((_, old)) if !(old.state.is_over() && begins) => {
                let same =
                    (old.server, old.server_port, old.dest) == (conn.server, conn.server_port, conn.dest);
                if same { Ok(()) } else { Err("it changed its server".to_owned()) }
            }
            _ if packet.protocol() == ICMP => Err("an error began a connection".to_owned()),
            _ => {
                let weight = self.weight(conn).ok_or("scheduled to a server that is not there")?;
                if weight > 0 { Ok(()) } else { Err("scheduled to a server of weight 0".to_owned()) }
            }
        }
    }

    /// Verdicts without a frame.
    fn kept(&self, before: &[(WorkerId, Conn<V4>)], input: &[u8], verdict: Verdict) -> Result<(), String> {
        if verdict != Verdict::Drop(Reason::NoDest) {
            return Ok(());
        }
        let packet = Packet::read(input)?;
        let flow = packet.quoted().map(|(from, to, protocol)| (to, from, protocol)).or(packet.flow());
        let conn = before.iter().find(|(_, conn)| Some(tuple_flow(&conn.request())) == flow);
        let (_, conn) = conn.ok_or("no server, but no connection either")?;
        // The server may be there again under another identity, for another service of the same key.
        match self.rig.connections().any(|(_, now)| now.request() == conn.request()) {
            true => Ok(()),
            false => Err("a connection whose server was removed did not stay".to_owned()),
        }
    }

    /// The weight that the rules give to a connection's server, if they have it.
    fn weight(&self, conn: &Conn<V4>) -> Option<u32> {
        let protocol = if conn.protocol == TCP { Protocol::Tcp } else { Protocol::Udp };
        let address = ip(conn.virtual_address).into();
        let service =
            self.rig.rules.service(&ServiceKey::Address { protocol, address, port: conn.virtual_port })?;
        let server = ServerKey { address: ip(conn.server).into(), port: conn.server_port };
        service.servers.iter().find(|known| known.key == server).map(|known| known.weight)
    }

    /// Whether what comes from here is the director's to route: from a NAT server, or one that was removed while connections remain.
    fn is_masqueraded(&self, (address, port): (Ipv4Addr, u16), protocol: u8) -> bool {
        self.rig.services().is_masqueraded(address, port, protocol)
    }

    /// Tables, directory and counters agree with one another.
    fn audit(&mut self) {
        let mut tuples: HashMap<[u8; 13], (Tuple<V4>, Vec<WorkerId>)> = HashMap::new();
        let mut requests = HashSet::new();
        let mut loads: HashMap<DestId, (u64, u64)> = HashMap::new();
        for (worker, conn) in self.rig.connections() {
            let request = conn.request();
            assert!(requests.insert(word(&request)), "a flow has two connections: {conn:?}");
            let idle = self.rig.now().since(conn.last_seen);
            assert!(idle < conn.timeout.saturating_add(LATE), "it should be over: {conn:?}");
            for tuple in conn.reply().into_iter().chain([request]) {
                tuples.entry(word(&tuple)).or_insert((tuple, Vec::new())).1.push(worker);
            }
            let load = loads.entry(conn.dest).or_default();
            let active =
                matches!(conn.state, State::Established | State::SynSent | State::SynRecv | State::SynAck);
            *(if active { &mut load.0 } else { &mut load.1 }) += 1;
        }
        for (key, (tuple, workers)) in &tuples {
            // Two connections of one client to one server through two virtual addresses have one reply tuple between
            // them. On one worker both can live with that; on two, the first one's worker gets the replies, and
            // nobody when the first one is gone.
            let (_, torn) = self.seen.entry(*key).or_insert((*tuple, false));
            *torn |= workers.iter().any(|worker| *worker != workers[0]);
            if self.rig.workers() > 1 && !*torn {
                assert_eq!(self.rig.owner(tuple), Some(workers[0]), "not found by others: {tuple:?}");
            }
        }
        for (dest, (active, inactive)) in loads {
            let load = self.rig.counters.load(dest);
            assert_eq!((load.active, load.inactive), (active, inactive), "counted otherwise: {dest:?}");
        }
    }

    /// Lets everything expire. Nothing may remain.
    ///
    /// # Panics
    /// When something does.
    pub fn end(mut self) {
        // Longer than every timeout there is: 1020 s by an edit, 900 s by default.
        self.rig.wait(Duration::from_secs(1100));
        assert_eq!(self.rig.connections().count(), 0, "connections that never expire");
        for (tuple, _) in self.seen.values() {
            assert_eq!(self.rig.owner(tuple), None, "left in the directory: {tuple:?}");
        }
        for n in 0..64 {
            assert_eq!(self.rig.counters.load(DestId(n)), Default::default(), "{n} has connections for ever");
        }
        for worker in 0..self.rig.workers() {
            let counters = self.rig.counters.worker(WorkerId(worker as u8));
            assert_eq!(counters.event(Event::DirectoryFull), 0, "the directory was meant to be large enough");
        }
    }
}

/// An ICMP error about a packet of a connection, as the side sees it that the packet went to.
fn error(conn: &Conn<V4>, about_reply: bool, kind: u8, quoted: u8) -> (PortId, Vec<u8>) {
    let client = (ip(conn.client), conn.client_port);
    let vip = (ip(conn.virtual_address), conn.virtual_port);
    let server = match conn.forwarding {
        data::Forwarding::Masq => (ip(conn.server), conn.server_port),
        data::Forwarding::Route | data::Forwarding::Tunnel => vip,
    };
    let (side, from, to) = if about_reply { (CLIENTS, vip, client) } else { (SERVERS, client, server) };
    let shape = Shape { flags: 0x10, ttl: 63, ..Shape::default() };
    let about = shape.frame(macs_from(from.0, side), from, to, conn.protocol);
    let quote = &about[14..about.len().min(14 + 20 + usize::from(quoted))];
    let message = [&[kind, 1, 0, 0, 0, 0, 0, 0], quote].concat();
    // The sum of an ICMP message has no pseudo header, which `frame` would add.
    let mut bytes = frame(macs_from(to.0, side), to.0, from.0, ICMP, message.clone(), 2);
    bytes[36..38].copy_from_slice(&checksum(&message).to_be_bytes());
    (side, bytes)
}

fn goes_to(output: &[u8], address: Ipv4Addr, port: PortId) -> Result<(), String> {
    let expected = macs_to(address);
    let side = if address.octets()[..3] == [10, 1, 0] { SERVERS } else { CLIENTS };
    if output[..12] == expected && port == side { Ok(()) } else { Err(format!("not sent to {address}")) }
}

fn ip(address: V4) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.0)
}

fn tuple_flow(tuple: &Tuple<V4>) -> oracle::Flow {
    ((ip(tuple.source), tuple.source_port), (ip(tuple.destination), tuple.destination_port), tuple.protocol)
}

/// A tuple as bytes, to be a key.
fn word(tuple: &Tuple<V4>) -> [u8; 13] {
    let mut bytes = [0; 13];
    bytes[..4].copy_from_slice(&tuple.source.0.to_be_bytes());
    bytes[4..8].copy_from_slice(&tuple.destination.0.to_be_bytes());
    bytes[8..10].copy_from_slice(&tuple.source_port.to_be_bytes());
    bytes[10..12].copy_from_slice(&tuple.destination_port.to_be_bytes());
    bytes[12] = tuple.protocol;
    bytes
}

/// Fuzz target: frames, edits and time into directors. The first byte chooses how many there are.
pub fn director(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut play = Play::new(1 + usize::from(first & 1));
    for op in Op::read_all(rest) {
        play.step(&op);
    }
    play.end();
}

/// Fuzz target: lines of JSON, each a message to the daemon, applied to rules that are published to a director.
pub fn request(bytes: &[u8]) {
    let mut everything = Rules::new(Capabilities::everything());
    let mut rig = Rig::new(1);
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Ok(message) = serde_json::from_slice::<Message>(line) else { continue };
        let again = serde_json::to_vec(&message).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<Message>(&again).expect("and read again"), message);
        if message.version != VERSION {
            continue;
        }
        let before = everything.entries(None).expect("all are there");
        if let Err(refusal) = everything.apply(&message.request) {
            assert_eq!(everything.entries(None).expect("all are there"), before, "refused, yet changed");
            fits(&refusal.into());
        }
        shunt::socket::services(everything.entries(None).expect("all are there"))
            .for_each(|page| fits(&page));
        // Errors are refusals of what the director cannot do.
        let _ = rig.apply(&message.request);
        assert_eq!(rig.connections().count(), 0);
    }
}

fn fits(response: &Response) {
    let length = serde_json::to_vec(response).expect("an answer can be written").len();
    assert!(length <= MAX_MESSAGE, "an answer of {length} bytes");
}

/// Names that never ask the system.
struct Nobody;

impl Names for Nobody {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        (name == "vip").then_some(VIP)
    }

    fn service(&self, name: &str, _: Protocol) -> Option<u16> {
        (name == "http").then_some(80)
    }

    fn host_name(&self, _: IpAddr) -> Option<String> {
        None
    }

    fn service_name(&self, _: u16, _: Protocol) -> Option<String> {
        None
    }
}

/// Fuzz target: lines of words, each a command line of `ipvsadm`, on rules in memory; at the end the rules are saved
/// and restored.
pub fn ipvsadm(bytes: &[u8]) {
    let mut rules = Rules::new(Capabilities::everything());
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().take(64);
    while let Some(line) = lines.next() {
        // A tab ends a word, so that words can have blanks, and be empty.
        let words: Vec<String> = match line.contains('\t') {
            true => line.split('\t').map(str::to_owned).collect(),
            false => line.split_whitespace().map(str::to_owned).collect(),
        };
        let stdin = lines.clone().collect::<Vec<_>>().join("\n");
        let before = rules.entries(None).expect("all are there");
        let (code, stdout, stderr) = tool(&mut rules, &words, &stdin);
        assert!((0..=255).contains(&code), "exit code {code}");
        let restores = words.first().is_some_and(|word| word.starts_with("-R") || word == "--restore");
        if code != 0 && !restores {
            assert_eq!(rules.entries(None).expect("all are there"), before, "{line:?} failed, yet changed");
            assert!(!stderr.is_empty(), "{line:?} failed silently");
            assert!(stdout.is_empty() || stdout.contains("-->"), "{line:?} failed, yet printed {stdout}");
        }
    }
    // Two habits of the original write what it refuses to read, and so do we: a mark above 2³¹ comes out negative, and
    // flag 3 of `sh` and `mh`, alone, without its name.
    let odd = |config: &ServiceConfig| match config.key {
        ServiceKey::Mark { mark, .. } if mark > i32::MAX as u32 => true,
        _ => config.flags == 4 && matches!(config.scheduler.as_str(), "sh" | "mh"),
    };
    if rules.services().any(|service| odd(&service.config)) {
        return;
    }
    let save = ["-S".to_owned(), "-n".to_owned()];
    let (code, saved, _) = tool(&mut rules, &save, "");
    assert_eq!(code, 0);
    let mut restored = Rules::new(Capabilities::everything());
    let (code, _, stderr) = tool(&mut restored, &["-R".to_owned()], &saved);
    assert_eq!((code, stderr.as_str()), (0, ""), "cannot be restored:\n{saved}");
    assert_eq!(tool(&mut restored, &save, "").1, saved);
}

fn tool(rules: &mut Rules, words: &[String], stdin: &str) -> (i32, String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = stdin.as_bytes();
    let code =
        shunt::ipvsadm::main_with(&Nobody, "ipvsadm", words, rules, &mut stdin, &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (code, text(&stdout), text(&stderr))
}

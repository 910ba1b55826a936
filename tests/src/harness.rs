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
//! The fuzz targets' bodies are in [`targets`](crate::targets).

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use shunt::api::{Protocol, Request, ServerKey, ServiceKey};
use shunt_dataplane::conn::{Conn, State};
use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::{Tuple, V4};
use shunt_dataplane::service::{self as data, DestId, PortId, WorkerId};
use shunt_dataplane::stats::{Event, Reason};

use crate::bench::{CLIENTS, SERVERS};
use crate::frames::{C0, S0, checksum, client_mac, frame, server_mac, to_hex};
use crate::ops::{Edit, LOCALS, Op, SCTP, SERVICES, Shape, TCP, client, mend, place, service_key};
use crate::oracle::{self, Packet, Rewrite};
use crate::rig::{Delivery, ROUTER, Rig, macs_to};

const ICMP: u8 = 1;

/// Milliseconds that a connection may outlive its timeout: two slots of the wheel, and the rig looks at the clock every half
/// second.
const LATE: u32 = 2_500;

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
            for local in LOCALS {
                // Refused where there is no FullNAT.
                let _ = play.rig.apply(&Request::AddLocal(service_key(service), local.into()));
            }
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
            Verdict::Forward(port) => {
                let pieces = [&delivery.pieces[..], std::slice::from_ref(&delivery.bytes)].concat();
                oracle::together(&pieces, self.rig.mtu(port))
                    .and_then(|whole| self.forwarded(&before, bytes, &whole, port))
            }
            Verdict::Reply(_) => oracle::replied(bytes, &delivery.bytes, |to| self.rig.has_hop(to)),
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
        let flow = if packet.protocol() == ICMP {
            // The quoted packet went the other way.
            packet.quoted().map(|(from, to, protocol)| (to, from, protocol))
        } else {
            packet.flow()
        };
        let flow = flow.ok_or("not a flow's packet")?;
        let mut tried = Vec::new();
        for (_, conn) in self.rig.connections() {
            let (server, local) = ((ip(conn.server), conn.server_port), (ip(conn.local), conn.local_port));
            let rewrite = match conn.forwarding {
                data::Forwarding::Masq => Rewrite::destination(server.0, server.1),
                data::Forwarding::FullNat => Rewrite { source: Some(local), destination: Some(server) },
                // The harness makes no tunnels.
                data::Forwarding::Route | data::Forwarding::Tunnel | data::Forwarding::Bypass => {
                    Rewrite::NOTHING
                }
            };
            if tuple_flow(&conn.request()) == flow {
                tried.push(self.is_kept(before, &conn, &packet).and_then(|()| {
                    oracle::forwarded(input, output, rewrite)?;
                    goes_to(output, ip(conn.server), port)
                }));
            }
            if conn.reply().is_some_and(|reply| tuple_flow(&reply) == flow) {
                let back = Rewrite {
                    source: Some((ip(conn.virtual_address), conn.virtual_port)),
                    destination: (conn.forwarding == data::Forwarding::FullNat)
                        .then_some((ip(conn.client), conn.client_port)),
                };
                tried.push(
                    oracle::forwarded(input, output, back)
                        .and_then(|()| goes_to(output, ip(conn.client), port)),
                );
            }
        }
        if tried.is_empty() && self.is_masqueraded(flow.0, flow.2) {
            tried.push(
                oracle::forwarded(input, output, Rewrite::NOTHING)
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
        let begins = match packet.protocol() {
            TCP => packet.segment()[13] & 2 != 0,
            SCTP => packet.segment()[12] == 1,
            _ => false,
        };
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
        let protocol = match conn.protocol {
            TCP => Protocol::Tcp,
            SCTP => Protocol::Sctp,
            _ => Protocol::Udp,
        };
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
            let active = matches!(
                conn.state,
                State::Established | State::SynSent | State::SynRecv | State::SynAck | State::Associated
            );
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
        data::Forwarding::Masq | data::Forwarding::FullNat => (ip(conn.server), conn.server_port),
        data::Forwarding::Route | data::Forwarding::Tunnel | data::Forwarding::Bypass => vip,
    };
    let beyond = match conn.forwarding {
        data::Forwarding::FullNat => (ip(conn.local), conn.local_port),
        _ => client,
    };
    let (side, from, to) = if about_reply { (CLIENTS, vip, client) } else { (SERVERS, beyond, server) };
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

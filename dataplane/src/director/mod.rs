//! The life of a packet.
//!
//! The director is a pure machine: a function of its snapshot, its tables, the frames and the moment. It does no I/O, reads no clock, draws no random
//! number, and allocates nothing per packet. The same director runs behind AF_XDP, AF_PACKET and memory.
//!
//! ```text
//!   parse all ─▶ hash all, prefetch ─▶ for each:  find ─┬─ request ─▶ track ─▶ rewrite ─▶ Forward
//!                                                       ├─ reply ───▶ track ─▶ rewrite ─▶ Forward
//!                                                       ├─ elsewhere ──────────────────▶ HandOff
//!                                                       └─ admit: service? choose, insert, then as a request;
//!                                                                 nobody to choose, no SYN ─▶ Reply;  not ours ─▶ Pass
//! ```
//!
//! The order of the steps is IPVS's (`ip_vs_in_hook`, `ip_vs_out_hook`), with one difference: the next hop is found before anything is
//! counted, so that a packet which must wait for a neighbour can be tried again as if it had just come.

mod hops;
mod services;

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::conn::directory::{Announced, Directory};
use crate::conn::table::Secret;
use crate::conn::{Conn, ConnId, Direction, Side, State, Table};
use crate::forward::icmp::{Message, Problem};
use crate::forward::limit::Limiter;
use crate::forward::{self, dr, icmp, nat, reset};
use crate::packet::parse::{ETHERNET, NotOurs, tcp_flags};
use crate::packet::{Meta, Packet, V4, parse};
use crate::port::BURST;
use crate::service::{
    Dest, DestId, Forwarding, Hop, PortId, Protocol, Snapshot, Tick, Unreachable, WorkerId,
};
use crate::stats::{Counters, Event, Reason, WorkerCounters, add, sub};
use hops::{HopCache, Toward};
use services::Schedulers;

const ICMP: u8 = 1;
const TCP: u8 = Protocol::Tcp as u8;

/// Milliseconds a connection lives before its first packet has been tracked (`ip_vs_conn_new`).
const EMBRYO: u32 = 3_000;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was rewritten; send it by this port.
    Forward(PortId),
    /// It was turned into an answer to its sender; send it by this port.
    Reply(PortId),
    /// Not the director's.
    Pass,
    /// Gone.
    Drop(Reason),
    /// Another worker owns its connection. The frame is as it came.
    HandOff(WorkerId),
    /// The Ethernet address of a neighbour must be asked for; try again when it is known. The frame is as it came.
    Wait(PortId, V4),
}

/// One worker's director.
pub struct Director {
    worker: WorkerId,
    snapshot: Arc<Snapshot>,
    conns: Table<V4>,
    schedulers: Schedulers,
    hops: HopCache,
    directory: Option<Arc<Directory>>,
    counters: Arc<Counters>,
    limiter: Limiter,
}

/// What a director is made of. The secret must be the same for all workers and unknown to everybody else.
pub struct Parts {
    /// Which worker's it is.
    pub worker: WorkerId,
    /// What it begins with.
    pub snapshot: Arc<Snapshot>,
    /// The connections it may hold.
    pub capacity: usize,
    /// The key of the hash.
    pub secret: Secret,
    /// Where workers find each other's connections; `None` for a single worker.
    pub directory: Option<Arc<Directory>>,
    /// Everybody's counters.
    pub counters: Arc<Counters>,
}

impl Director {
    /// A director without connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory for the table.
    pub fn new(parts: Parts, now: Tick) -> std::io::Result<Self> {
        let Parts { worker, snapshot, capacity, secret, directory, counters } = parts;
        let mut schedulers = Schedulers::new(worker);
        schedulers.adopt(None, &snapshot.services);
        Ok(Self {
            worker,
            conns: Table::with_capacity(capacity, secret, now)?,
            schedulers,
            hops: HopCache::default(),
            directory,
            counters,
            limiter: Limiter::default(),
            snapshot,
        })
    }

    /// Decides about a burst of frames, in order. `verdicts` gets one for each.
    ///
    /// `handed` says that another worker sent them, because it took this one for their owner: they are not sent on again.
    pub fn burst(
        &mut self,
        packets: &mut [Packet],
        handed: bool,
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        let mut parsed: ArrayVec<(Result<Meta, NotOurs>, u64), BURST> = ArrayVec::new();
        for packet in packets.iter_mut().take(BURST) {
            let meta = parse(packet.data());
            let hash = meta.map_or(0, |meta| self.conns.hash(&meta.tuple));
            self.conns.prefetch_index(hash);
            parsed.push((meta, hash));
        }
        for (_, hash) in parsed.iter().filter(|(meta, _)| meta.is_ok()) {
            self.conns.prefetch_entry(*hash);
        }
        for (packet, (meta, hash)) in packets.iter_mut().zip(parsed) {
            let verdict = match meta {
                Ok(meta) => self.decide(packet, &meta, hash, handed, now),
                Err(NotOurs::Pass) => Verdict::Pass,
                Err(NotOurs::Drop(reason)) => Verdict::Drop(reason),
            };
            self.count(verdict);
            verdicts.push(verdict);
        }
    }

    fn decide(&mut self, packet: &mut Packet, meta: &Meta, hash: u64, handed: bool, now: Tick) -> Verdict {
        // With its last service IPVS unhooks itself, connections or not.
        if self.snapshot.services.is_empty() {
            return Verdict::Pass;
        }
        if meta.tuple.protocol == ICMP {
            return self.icmp(packet, meta, handed);
        }
        match self.conns.find(&meta.tuple, hash) {
            Some((id, Direction::Request)) => self.request(packet, meta, hash, id, now),
            Some((id, Direction::Reply)) => self.reply(packet, meta, id, now),
            None => match self.owner_elsewhere(hash, handed) {
                Some(owner) => Verdict::HandOff(owner),
                None => self.admit(packet, meta, hash, now),
            },
        }
    }

    /// A packet from the client of a known connection.
    fn request(&mut self, packet: &mut Packet, meta: &Meta, hash: u64, id: ConnId, now: Tick) -> Verdict {
        let conn = self.conns.conn(id);
        // A SYN for a connection that is over begins a new one, perhaps on another real server.
        if meta.tuple.protocol == TCP && meta.flags & tcp_flags::SYN != 0 && conn.state.is_over() {
            let old = self.conns.remove(id);
            self.end(&old);
            return self.admit(packet, meta, hash, now);
        }
        // The connection stays: its real server may come back, and then it goes on.
        if !self.snapshot.services.has_dest(conn.dest) {
            return Verdict::Drop(Reason::NoDest);
        }
        let hop = match self.hop(id, Toward::Server) {
            Err(Unreachable::Unresolved(port, neighbour)) => return Verdict::Wait(port, neighbour),
            hop => hop,
        };

        self.track(id, meta, Direction::Request, now);
        let length = u64::from(meta.end - meta.network);
        let conn = self.conns.conn_mut(id);
        conn.in_packets = conn.in_packets.wrapping_add(1);
        let (forwarding, server, server_port) = (conn.forwarding, conn.server, conn.server_port);
        let dest = conn.dest;
        let counters = self.mine().dest(dest);
        add(&counters.in_packets, 1);
        add(&counters.in_bytes, length);

        let hop = match hop {
            Ok(hop) => hop,
            Err(Unreachable::NoRoute) => {
                return self.refuse(packet, meta, Problem::HostUnreachable, Some(id), now);
            }
            Err(_) => return Verdict::Drop(Reason::NoNeighbour),
        };
        if forward::ttl(packet, meta) <= 1 {
            return self.refuse(packet, meta, Problem::TimeExceeded, Some(id), now);
        }
        match forward::exceeds(packet, meta, hop.mtu) {
            Some(true) => {
                let problem = Problem::FragmentationNeeded(hop.mtu);
                return self.refuse(packet, meta, problem, Some(id), now);
            }
            Some(false) => return Verdict::Drop(Reason::TooBig),
            None => {}
        }
        match forwarding {
            Forwarding::Route => dr::request(packet, meta, &hop),
            Forwarding::Masq => nat::request(packet, meta, server, server_port, &hop),
        }
        Verdict::Forward(hop.port)
    }

    /// A packet from the real server of a known NAT connection. It is translated also when the real server was removed.
    fn reply(&mut self, packet: &mut Packet, meta: &Meta, id: ConnId, now: Tick) -> Verdict {
        let hop = match self.hop(id, Toward::Client) {
            Ok(hop) => hop,
            Err(Unreachable::Unresolved(port, neighbour)) => return Verdict::Wait(port, neighbour),
            Err(Unreachable::NoRoute) => return Verdict::Drop(Reason::NoRoute),
            Err(Unreachable::NoNeighbour) => return Verdict::Drop(Reason::NoNeighbour),
        };
        // To the real server the director is a router, and a router looks at this before anything else.
        if forward::ttl(packet, meta) <= 1 {
            return self.refuse_as_router(packet, meta, Problem::TimeExceeded, now);
        }

        self.track(id, meta, Direction::Reply, now);
        let conn = self.conns.conn(id);
        let counters = self.mine().dest(conn.dest);
        add(&counters.out_packets, 1);
        add(&counters.out_bytes, u64::from(meta.end - meta.network));

        match forward::exceeds(packet, meta, hop.mtu) {
            Some(true) => {
                return self.refuse_as_router(packet, meta, Problem::FragmentationNeeded(hop.mtu), now);
            }
            Some(false) => return Verdict::Drop(Reason::TooBig),
            None => {}
        }
        nat::reply(packet, meta, conn.virtual_address, conn.virtual_port, &hop);
        Verdict::Forward(hop.port)
    }

    /// A packet of no known connection: the first of a new one, or a stray.
    fn admit(&mut self, packet: &mut Packet, meta: &Meta, hash: u64, now: Tick) -> Verdict {
        let tuple = &meta.tuple;
        let services = Arc::clone(&self.snapshot);
        let Some(service) = services.services.find(tuple.destination, tuple.destination_port, tuple.protocol)
        else {
            return self.stray(packet, meta, now);
        };
        if tuple.protocol == TCP && (meta.flags & (tcp_flags::SYN | tcp_flags::RST)) != tcp_flags::SYN {
            return self.reset(packet, meta);
        }
        if let Some(owner) = self.announce(hash) {
            return Verdict::HandOff(owner);
        }
        let Some(dest) = self.schedulers.choose(service, &self.counters) else {
            self.withdraw(hash);
            self.mine().count(Event::NoServer, 1);
            return self.refuse(packet, meta, Problem::PortUnreachable, None, now);
        };
        match self.begin(meta, &dest, now) {
            Some(id) => self.request(packet, meta, hash, id, now),
            None => {
                self.withdraw(hash);
                Verdict::Drop(Reason::TableFull)
            }
        }
    }

    /// Creates the connection of a packet to a real server.
    fn begin(&mut self, meta: &Meta, dest: &Dest, now: Tick) -> Option<ConnId> {
        // Control refuses real servers of another family for these methods.
        let std::net::IpAddr::V4(server) = dest.address else { return None };
        let tuple = &meta.tuple;
        let conn = Conn {
            client: tuple.source,
            virtual_address: tuple.destination,
            server: server.into(),
            client_port: tuple.source_port,
            virtual_port: tuple.destination_port,
            server_port: if dest.port == 0 { tuple.destination_port } else { dest.port },
            protocol: tuple.protocol,
            forwarding: dest.forwarding,
            no_output: dest.forwarding != Forwarding::Masq,
            dest: dest.id,
            last_seen: now,
            timeout: EMBRYO,
            ..Conn::default()
        };
        let id = self.conns.insert(conn).ok()?;
        if let Some(reply) = conn.reply() {
            // Whoever else claims the reply's tuple has the same real server and port: the kernel, too, finds the first one.
            let hash = self.conns.hash(&reply);
            self.announce(hash);
        }
        let counters = self.mine().dest(dest.id);
        add(&counters.conns, 1);
        add(&counters.inactive, 1);
        self.mine().count(Event::Created, 1);
        if dest.upper_threshold != 0 {
            let load = self.counters.load(dest.id);
            if load.active + load.inactive >= u64::from(dest.upper_threshold) {
                self.counters.set_overloaded(dest.id, true);
            }
        }
        Some(id)
    }

    /// Follows the connection's state and keeps it alive.
    fn track(&mut self, id: ConnId, meta: &Meta, direction: Direction, now: Tick) {
        let conn = self.conns.conn_mut(id);
        conn.last_seen = now;
        let old_timeout = conn.timeout;
        let new = if meta.tuple.protocol == TCP {
            let side = match direction {
                Direction::Request if conn.no_output => Side::InputOnly,
                Direction::Request => Side::Input,
                Direction::Reply => Side::Output,
            };
            conn.state.after(side, meta.flags)
        } else {
            State::Udp
        };
        conn.state = new;
        conn.timeout = self.snapshot.timeouts.of(new);
        let (dest, was_active) = (conn.dest, conn.active);
        conn.active = new.is_active();
        if conn.timeout < old_timeout {
            self.conns.hasten(id);
        }
        if was_active != new.is_active() {
            let counters = self.mine().dest(dest);
            let (from, to) = match was_active {
                true => (&counters.active, &counters.inactive),
                false => (&counters.inactive, &counters.active),
            };
            sub(from, 1);
            add(to, 1);
        }
    }

    /// Does the books for a connection that is no longer in the table.
    fn end(&self, conn: &Conn<V4>) {
        self.withdraw(self.conns.hash(&conn.request()));
        if let Some(reply) = conn.reply() {
            let hash = self.conns.hash(&reply);
            // The client's connection by another virtual address may be on the same real server and port.
            if self.conns.find(&reply, hash).is_none() {
                self.withdraw(hash);
            }
        }
        let counters = self.mine().dest(conn.dest);
        sub(if conn.active { &counters.active } else { &counters.inactive }, 1);
        self.release(conn.dest);
    }

    /// Lets a real server that has fallen below its lower threshold take connections again.
    fn release(&self, id: DestId) {
        if !self.counters.is_overloaded(id) {
            return;
        }
        let Some(dest) = self.snapshot.services.dest(id) else { return };
        let load = self.counters.load(id);
        if is_relieved(dest, load.active + load.inactive) {
            self.counters.set_overloaded(id, false);
        }
    }

    /// An ICMP packet: perhaps an error about a connection.
    fn icmp(&mut self, packet: &mut Packet, meta: &Meta, handed: bool) -> Verdict {
        let services = &self.snapshot.services;
        let quote = match icmp::read(packet, meta) {
            Message::Other => return Verdict::Pass,
            Message::Unusable => return Verdict::Pass,
            Message::Error(quote) => quote,
        };
        // The quoted packet went the other way: turned round it is one of its receiver's own.
        let tuple = quote.tuple;
        let turned = crate::packet::Tuple {
            source: tuple.destination,
            destination: tuple.source,
            source_port: tuple.destination_port,
            destination_port: tuple.source_port,
            protocol: tuple.protocol,
        };
        let hash = self.conns.hash(&turned);
        let Some((id, direction)) = self.conns.find(&turned, hash) else {
            if let Some(owner) = self.owner_elsewhere(hash, handed) {
                return Verdict::HandOff(owner);
            }
            let ours = services.find(tuple.source, tuple.source_port, tuple.protocol).is_some()
                || services.is_masqueraded(tuple.destination, tuple.destination_port, tuple.protocol);
            return if ours { Verdict::Drop(Reason::StrayIcmp) } else { Verdict::Pass };
        };
        let conn = *self.conns.conn(id);
        let toward = match direction {
            Direction::Request => Toward::Server,
            Direction::Reply => Toward::Client,
        };
        if direction == Direction::Request && !services.has_dest(conn.dest) {
            return Verdict::Drop(Reason::NoDest);
        }
        if conn.forwarding == Forwarding::Masq && !icmp::is_sound(packet, meta) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        if forward::ttl(packet, meta) <= 1 {
            // Nobody answers an error with an error.
            return Verdict::Drop(Reason::StrayIcmp);
        }
        let hop = match self.hop(id, toward) {
            Ok(hop) => hop,
            Err(Unreachable::Unresolved(port, neighbour)) => return Verdict::Wait(port, neighbour),
            Err(Unreachable::NoRoute) => return Verdict::Drop(Reason::NoRoute),
            Err(Unreachable::NoNeighbour) => return Verdict::Drop(Reason::NoNeighbour),
        };
        if forward::exceeds(packet, meta, hop.mtu).is_some() {
            // As above: its sender cannot be told.
            return Verdict::Drop(Reason::TooBig);
        }
        let counters = self.mine().dest(conn.dest);
        let length = u64::from(meta.end - meta.network);
        match direction {
            Direction::Request => {
                add(&counters.in_packets, 1);
                add(&counters.in_bytes, length);
                match conn.forwarding {
                    Forwarding::Route => dr::request(packet, meta, &hop),
                    Forwarding::Masq => {
                        let side = icmp::Side::ToServer;
                        icmp::translate(packet, meta, &quote, side, conn.server, conn.server_port, &hop);
                    }
                }
            }
            Direction::Reply => {
                add(&counters.out_packets, 1);
                add(&counters.out_bytes, length);
                let (address, port) = (conn.virtual_address, conn.virtual_port);
                icmp::translate(packet, meta, &quote, icmp::Side::ToClient, address, port, &hop);
            }
        }
        Verdict::Forward(hop.port)
    }

    /// A packet that is neither a connection's nor a service's. What a NAT real server sends was kept from the kernel in case it was
    /// a reply, so the director does the kernel's work and routes it.
    fn stray(&mut self, packet: &mut Packet, meta: &Meta, now: Tick) -> Verdict {
        let tuple = &meta.tuple;
        let Snapshot { services, network, .. } = &*self.snapshot;
        if !services.is_masqueraded(tuple.source, tuple.source_port, tuple.protocol)
            || network.is_local(tuple.destination)
        {
            return Verdict::Pass;
        }
        if !network.forwards() {
            return Verdict::Drop(Reason::NotWanted);
        }
        let hop = match network.hop(tuple.destination) {
            Ok(hop) => hop,
            Err(Unreachable::Unresolved(port, neighbour)) => return Verdict::Wait(port, neighbour),
            Err(Unreachable::NoRoute) => return Verdict::Drop(Reason::NoRoute),
            Err(Unreachable::NoNeighbour) => return Verdict::Drop(Reason::NoNeighbour),
        };
        if forward::ttl(packet, meta) <= 1 {
            return self.refuse_as_router(packet, meta, Problem::TimeExceeded, now);
        }
        match forward::exceeds(packet, meta, hop.mtu) {
            Some(true) => {
                return self.refuse_as_router(packet, meta, Problem::FragmentationNeeded(hop.mtu), now);
            }
            Some(false) => return Verdict::Drop(Reason::TooBig),
            None => {}
        }
        forward::route(packet, meta, &hop);
        self.mine().count(Event::Routed, 1);
        Verdict::Forward(hop.port)
    }

    /// Answers a segment that belongs to no connection and cannot begin one.
    fn reset(&mut self, packet: &mut Packet, meta: &Meta) -> Verdict {
        if meta.flags & tcp_flags::RST != 0 {
            return Verdict::Drop(Reason::StrayReset);
        }
        if !reset::is_sound(packet, meta) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        let back = self.way_back(packet, meta);
        reset::answer(packet, meta);
        send_back(packet, back)
    }

    /// Tells the client what is wrong, from the virtual address.
    fn refuse(
        &mut self,
        packet: &mut Packet,
        meta: &Meta,
        problem: Problem,
        conn: Option<ConnId>,
        now: Tick,
    ) -> Verdict {
        let verdict = self.answer(packet, meta, problem, meta.tuple.destination, now);
        // The kernel sees its own error leave and counts it as the connection's output, except under NAT.
        if let (Verdict::Reply(_), Some(id)) = (verdict, conn) {
            let conn = self.conns.conn(id);
            if conn.forwarding != Forwarding::Masq {
                let counters = self.mine().dest(conn.dest);
                add(&counters.out_packets, 1);
                add(&counters.out_bytes, (packet.len - ETHERNET) as u64);
            }
        }
        verdict
    }

    /// Tells the sender what is wrong, from the director's own address on the sender's side.
    fn refuse_as_router(&mut self, packet: &mut Packet, meta: &Meta, problem: Problem, now: Tick) -> Verdict {
        let network = &self.snapshot.network;
        let port = network.hop(meta.tuple.source).map_or(packet.port, |hop| hop.port);
        match network.interface(port).and_then(|interface| interface.address) {
            Some(address) => self.answer(packet, meta, problem, address, now),
            None => Verdict::Drop(Reason::NoRoute),
        }
    }

    fn answer(
        &mut self,
        packet: &mut Packet,
        meta: &Meta,
        problem: Problem,
        source: V4,
        now: Tick,
    ) -> Verdict {
        if problem.is_limited() && !self.limiter.allows(meta.tuple.source, now) {
            return Verdict::Drop(Reason::RateLimited);
        }
        let back = self.way_back(packet, meta);
        icmp::answer(packet, meta, problem, source);
        send_back(packet, back)
    }

    /// Where an answer to the packet's sender goes: by the route, or, if its neighbour is not known, the way the packet came.
    fn way_back(&mut self, packet: &mut Packet, meta: &Meta) -> (PortId, [u8; 12]) {
        match self.hops.hop(&self.snapshot.network, meta.tuple.source) {
            Ok(hop) => (hop.port, hop.macs),
            Err(_) => {
                let port = packet.port;
                let came = packet.data();
                let mut macs = [0; 12];
                macs[..6].copy_from_slice(&came[6..12]);
                macs[6..].copy_from_slice(&came[..6]);
                (port, macs)
            }
        }
    }

    fn hop(&mut self, id: ConnId, toward: Toward) -> Result<Hop, Unreachable> {
        self.hops.of_conn(&self.snapshot.network, self.conns.conn_mut(id), toward)
    }

    fn owner_elsewhere(&self, hash: u64, handed: bool) -> Option<WorkerId> {
        let owner = self.directory.as_ref().filter(|_| !handed)?.owner(hash)?;
        (owner != self.worker).then_some(owner)
    }

    /// Claims a tuple for this worker. Says who has it if somebody was quicker.
    fn announce(&self, hash: u64) -> Option<WorkerId> {
        match self.directory.as_ref()?.announce(hash, self.worker) {
            Announced::Ours => None,
            Announced::Theirs(owner) => Some(owner),
            Announced::Full => {
                self.mine().count(Event::DirectoryFull, 1);
                None
            }
        }
    }

    fn withdraw(&self, hash: u64) {
        if let Some(directory) = &self.directory {
            directory.withdraw(hash, self.worker);
        }
    }

    /// Begins to work by another snapshot; gives the old one back, to be dropped where time does not matter.
    pub fn adopt(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        self.schedulers.adopt(Some(&self.snapshot.services), &snapshot.services);
        if !Arc::ptr_eq(&self.snapshot.network, &snapshot.network) {
            self.hops.forget();
        }
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// Ends connections whose time is over, looking at `budget` of those that are due at most.
    pub fn expire(&mut self, now: Tick, mut budget: usize) {
        while let Some(conn) = self.conns.expire(now, &mut budget) {
            self.end(&conn);
            self.mine().count(Event::Expired, 1);
        }
    }

    /// The connections, for a listing in steps; see [`Table::from`].
    pub fn connections(&self, from: u32) -> impl Iterator<Item = (u32, &Conn<V4>)> {
        self.conns.from(from)
    }

    /// The snapshot it works by.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    fn mine(&self) -> &WorkerCounters {
        self.counters.worker(self.worker)
    }

    fn count(&self, verdict: Verdict) {
        let counters = self.mine();
        match verdict {
            Verdict::Forward(_) => counters.count(Event::Forwarded, 1),
            Verdict::Reply(_) => counters.count(Event::Replied, 1),
            Verdict::Pass => counters.count(Event::Passed, 1),
            Verdict::Drop(reason) => counters.drop(reason),
            Verdict::HandOff(_) => counters.count(Event::HandedOff, 1),
            Verdict::Wait(..) => counters.count(Event::Waited, 1),
        }
    }
}

/// Whether a real server with this many connections takes new ones again (`ip_vs_dest_update_overload`).
pub fn is_relieved(dest: &Dest, connections: u64) -> bool {
    match (u64::from(dest.upper_threshold), u64::from(dest.lower_threshold)) {
        (0, _) => true,
        (upper, 0) => connections * 4 < upper * 3,
        (_, lower) => connections < lower,
    }
}

fn send_back(packet: &mut Packet, (port, macs): (PortId, [u8; 12])) -> Verdict {
    packet.data()[..12].copy_from_slice(&macs);
    Verdict::Reply(port)
}

//! The life of a packet of one address family: the same lines for IPv4 and IPv6.

use std::net::IpAddr;
use std::sync::Arc;

use super::answers::is_refused_to_server;
use super::beyond::{self, Near};
use super::ftp::Talks;
use super::hops::{HopCache, Toward};
use super::{Shared, Verdict, admission, is_relieved};
use crate::conn::fragments::Fragments;
use crate::conn::table::Secret;
use crate::conn::{Conn, ConnId, Detail, Direction, Marks, Side, State, Table, sctp, tcp, template};
use crate::forward::cut::Cut;
use crate::forward::icmp::Problem;
use crate::forward::{self, across, dr, mss, nat, tunnel};
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{
    Dest, DestId, FTP, FTP_DATA, Forwarding, Hop, Protocol, Service, Snapshot, Tick, Unreachable,
};
use crate::stats::{Event, Reason, add, sub};

const TCP: u8 = Protocol::Tcp as u8;
const UDP: u8 = Protocol::Udp as u8;
const SCTP: u8 = Protocol::Sctp as u8;

/// Milliseconds a connection lives before its first packet has been tracked (`ip_vs_conn_new`).
const EMBRYO: u32 = 3_000;

/// One family's connections and next hops.
pub struct Family<A> {
    pub(super) conns: Table<A>,
    pub(super) hops: HopCache,
    pub(super) fragments: Fragments<A>,
    /// The id of the next outer packet that may be cut up.
    next_id: u16,
    /// How far the table has been gone through for connections of removed real servers; `None` when it need not be.
    swept: Option<u32>,
    /// Where whoever goes through all connections has got to.
    pub(super) place: u32,
    /// Draws places at random, for connections that may give way.
    pub(super) draw: u32,
    /// Connections that are still to be looked at in this period, whether to drop them.
    pub(super) to_look_at: u32,
    /// Control connections of FTP.
    pub(super) talks: Talks,
}

/// Where a listing has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the table of IPv4 connections.
    V4(u32),
    /// In that of IPv6 ones.
    V6(u32),
}

impl Default for Place {
    fn default() -> Self {
        Place::V4(0)
    }
}

/// A connection as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// IP protocol number.
    pub protocol: u8,
    /// Where it is in its life.
    pub state: State,
    /// Milliseconds it has left.
    pub left: u32,
    /// The client.
    pub client: (IpAddr, u16),
    /// The virtual address and port.
    pub service: (IpAddr, u16),
    /// The real server.
    pub server: (IpAddr, u16),
}

impl<A: Near> Family<A> {
    /// A family without connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(capacity: usize, secret: Secret, now: Tick) -> std::io::Result<Self> {
        Ok(Self {
            conns: Table::with_capacity(capacity, secret, now)?,
            hops: HopCache::default(),
            fragments: Fragments::default(),
            next_id: 0,
            swept: None,
            place: 0,
            draw: 0,
            to_look_at: 0,
            talks: Talks::default(),
        })
    }

    /// The hash of a packet, whose index line is now being fetched.
    #[inline]
    pub fn prepare(&self, meta: &Meta<A>) -> u64 {
        let hash = self.conns.hash(&meta.tuple);
        self.conns.prefetch_index(hash);
        hash
    }

    /// Has the entry fetched that a hash most likely leads to.
    #[inline]
    pub fn fetch(&self, hash: u64) {
        self.conns.prefetch_entry(hash);
    }

    /// Decides about a packet.
    #[inline]
    pub fn decide(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        now: Tick,
    ) -> Verdict {
        if meta.tuple.protocol == A::ICMP {
            return match meta.fragment {
                None => self.icmp(far, shared, packet, meta, now),
                Some(_) => Verdict::Pass,
            };
        }
        match meta.fragment {
            None => self.packet(far, shared, packet, meta, hash, now),
            Some(part) if part.offset == 0 => {
                self.first_fragment(far, shared, packet, meta, (&part, hash), now)
            }
            Some(part) => self.later_fragment(far, shared, packet, meta, &part, now),
        }
    }

    /// A packet with a transport header: whole, or a datagram's first part.
    #[inline]
    pub(super) fn packet(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        now: Tick,
    ) -> Verdict {
        match self.find(shared, &meta.tuple, hash, now) {
            Some((id, Direction::Request)) => self.request(shared, packet, meta, hash, id, now),
            Some((id, Direction::Reply)) => self.reply(shared, packet, meta, id, now),
            None => match (beyond::find(shared, &meta.tuple, hash), shared.owner_elsewhere(hash)) {
                (Some(id), _) => self.reply_across(far, shared, packet, meta, id, now),
                (None, Some(owner)) => Verdict::HandOff(owner),
                (None, None) => self.admit(shared, packet, meta, hash, now),
            },
        }
    }

    /// The connection of a tuple. One whose time is over, and which the wheel has not come to yet, ends here; a template only then.
    #[inline]
    pub(super) fn find(
        &mut self,
        shared: &mut Shared,
        tuple: &Tuple<A>,
        hash: u64,
        now: Tick,
    ) -> Option<(ConnId, Direction)> {
        let found = self.conns.find(tuple, hash)?;
        let entry = self.conns.conn(found.0);
        if entry.remaining(now) > 0 || entry.is_template() || entry.controls() > 0 {
            return Some(found);
        }
        let old = self.conns.remove(found.0);
        self.expired(shared, &old, now);
        None
    }

    /// A packet from the client of a known connection.
    pub(super) fn request(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        let conn = self.conns.conn(id);
        if admission::replaces(meta, conn, &shared.snapshot) {
            self.cut(shared, id, now);
            return self.admit(shared, packet, meta, hash, now);
        }
        if !shared.snapshot.services.has_dest(conn.dest) {
            // The connection stays: its real server may come back, and then it goes on.
            if shared.snapshot.sysctls.expire_nodest_conn == 0 || meta.is_later_fragment() {
                return Verdict::Drop(Reason::NoDest);
            }
            self.cut(shared, id, now);
            return self.admit(shared, packet, meta, hash, now);
        }
        self.deliver(shared, packet, meta, hash, id, now)
    }

    /// A packet from the client of a connection that is the one for it, to its real server.
    fn deliver(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        if nat::needs_whole(meta, self.conns.conn(id).changes_ports()) {
            return Verdict::Drop(Reason::SctpFragment);
        }
        let hop = match self.hop(shared, id, Toward::Server) {
            Err(Unreachable::Unresolved(link, neighbour)) => return Verdict::Wait(link, neighbour),
            hop => hop,
        };

        self.track(shared, id, meta, Direction::Request, now);
        let length = u64::from(meta.length());
        let conn = self.conns.conn_mut(id);
        // Past its end it goes on in the middle: one that counts few packets is a short one.
        conn.in_packets = conn.in_packets.checked_add(1).unwrap_or(1 << 15);
        let conn = *conn;
        let counters = shared.mine().dest(conn.dest);
        add(&counters.in_packets, 1);
        add(&counters.in_bytes, length);

        let hop = match hop {
            Ok(hop) => hop,
            Err(Unreachable::NoRoute) => {
                return self.refuse(shared, packet, meta, Problem::HostUnreachable, Some(id), now);
            }
            Err(_) => return Verdict::Drop(Reason::NoNeighbour),
        };
        if forward::hops_left(packet, meta) <= 1 {
            return self.refuse(shared, packet, meta, Problem::TimeExceeded, Some(id), now);
        }
        let mtu = mtu(shared, &conn, &hop, now);
        if forward::is_too_big(packet, meta, mtu) {
            // IPVS has aged the packet by now, and quotes it so.
            forward::age(packet, meta);
            let problem = Problem::TooBig(mtu);
            return self.refuse(shared, packet, meta, problem, Some(id), now);
        }
        Self::limit_segments(shared, packet, meta, conn.dest);
        match conn.forwarding {
            Forwarding::Route => dr::request(packet, meta, &hop),
            Forwarding::Masq => {
                if conn.marks.has(Marks::FTP)
                    && let Some(verdict) = self.hear_client(shared, packet, meta, id, now)
                {
                    return verdict;
                }
                nat::request(packet, meta, (conn.server, conn.server_port), &hop);
            }
            Forwarding::FullNat => {
                return self.request_by_full_nat(shared, packet, meta, id, &hop, mtu);
            }
            Forwarding::Tunnel => return self.tunnel(shared, packet, meta, (&conn, hash), &hop, now),
        }
        self.send(shared, packet, &hop)
    }

    /// A packet from the real server of a known NAT connection. It is translated also when the real server was removed.
    pub(super) fn reply(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        let conn = self.conns.conn(id);
        if nat::needs_whole(meta, conn.changes_ports()) {
            return Verdict::Drop(Reason::SctpFragment);
        }
        let hop = match self.hop(shared, id, Toward::Client) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        // To the real server the director is a router, and a router looks at this before anything else.
        if forward::hops_left(packet, meta) <= 1 {
            return self.refuse_as_router(shared, packet, meta, Problem::TimeExceeded, now);
        }
        let heard;
        let meta = if self.conns.conn(id).marks.has(Marks::FTP) {
            match self.hear_server(shared, packet, meta, id, &hop, now) {
                Ok(meta) => heard = meta,
                Err(verdict) => return verdict,
            }
            &heard
        } else {
            meta
        };

        self.track(shared, id, meta, Direction::Reply, now);
        let conn = self.conns.conn(id);
        let counters = shared.mine().dest(conn.dest);
        add(&counters.out_packets, 1);
        add(&counters.out_bytes, u64::from(meta.length()));

        if forward::is_too_big(packet, meta, hop.mtu) {
            return self.refuse_as_router(shared, packet, meta, Problem::TooBig(hop.mtu), now);
        }
        Self::limit_segments(shared, packet, meta, conn.dest);
        if conn.forwarding == Forwarding::FullNat {
            return self.reply_by_full_nat(shared, packet, meta, id, &hop);
        }
        nat::reply(packet, meta, (conn.virtual_address, conn.virtual_port), &hop);
        self.send(shared, packet, &hop)
    }

    /// Holds a SYN to the segments that its service allows.
    #[inline]
    pub(super) fn limit_segments(shared: &Shared, packet: &mut Packet, meta: &Meta<A>, dest: DestId) {
        if meta.tuple.protocol == TCP
            && meta.flags & tcp_flags::SYN != 0
            && let Some(most) = shared.snapshot.services.dest(dest).and_then(|dest| dest.mss)
        {
            mss::clamp(packet, meta, most);
        }
    }

    /// A packet of no known connection: the first of a new one, or a stray.
    pub(super) fn admit(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        now: Tick,
    ) -> Verdict {
        let tuple = &meta.tuple;
        let services = Arc::clone(&shared.snapshot);
        let speaks_ftp = services.services.speaks_ftp();
        if speaks_ftp && let Some(verdict) = self.expected(shared, packet, meta, hash, now) {
            return verdict;
        }
        let Some(service) = services.services.find(tuple.destination, tuple.destination_port, tuple.protocol)
        else {
            if speaks_ftp && let Some(verdict) = self.stray_of_ftp(shared, packet, meta) {
                return verdict;
            }
            return self.stray(shared, packet, meta, tuple, now);
        };
        if is_refused_to_server(&services, meta) {
            return self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now);
        }
        if tuple.source_port == FTP_DATA {
            return self.refuse_data_port(shared, packet, meta, now);
        }
        if !admission::may_begin(meta, &services.sysctls) {
            return self.reset(shared, packet, meta);
        }
        if shared.defence.refuses() {
            return Verdict::Drop(Reason::LoadShed);
        }
        self.make_room(shared, now);
        let key = self.key(service, tuple);
        if let Some(keeper) = key.as_ref().and_then(|key| shared.keeper_elsewhere(key.hash)) {
            return Verdict::HandOff(keeper);
        }
        if let Some(owner) = shared.announce(hash) {
            return Verdict::HandOff(owner);
        }
        let (dest, template) = match self.choose(shared, service, tuple, key.as_ref(), now) {
            Ok(Some(chosen)) => chosen,
            Ok(None) => {
                shared.withdraw(hash);
                shared.mine().count(Event::NoServer, 1);
                return self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now);
            }
            Err(reason) => {
                shared.withdraw(hash);
                return Verdict::Drop(reason);
            }
        };
        match self.begin(shared, meta, (service, &dest), now) {
            Ok(id) => {
                if let Some(template) = template {
                    self.made(template, id, now);
                }
                let verdict = self.deliver(shared, packet, meta, hash, id, now);
                if service.one_packet && tuple.protocol == UDP {
                    self.forget_packet(shared, meta, &verdict, id, now);
                }
                verdict
            }
            Err(reason) => {
                shared.withdraw(hash);
                match reason {
                    // Silence would cost the client seconds.
                    Reason::NoLocalPort => {
                        shared.mine().drop(reason);
                        match tuple.protocol {
                            TCP => self.reset(shared, packet, meta),
                            _ => self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now),
                        }
                    }
                    reason => Verdict::Drop(reason),
                }
            }
        }
    }

    /// Creates the connection of a packet to a real server.
    pub(super) fn begin(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        (service, dest): (&Service, &Dest),
        now: Tick,
    ) -> Result<ConnId, Reason> {
        // Control refuses real servers of another family for these methods.
        // A tunnel may lead to the other family.
        let server = A::of(dest.address).unwrap_or_default();
        let tuple = &meta.tuple;
        let mut marks = Marks::default();
        marks.set(Marks::NO_OUTPUT, !dest.forwarding.translates_replies());
        let is_ftp =
            dest.forwarding == Forwarding::Masq && tuple.protocol == TCP && tuple.destination_port == FTP;
        marks.set(Marks::FTP, is_ftp);
        let mut conn = Conn {
            client: tuple.source,
            virtual_address: tuple.destination,
            server,
            client_port: tuple.source_port,
            virtual_port: tuple.destination_port,
            // To another port than the service's goes FTP's data: real servers have the same.
            server_port: match dest.port {
                port if port != 0 && tuple.destination_port == service.port => port,
                _ => tuple.destination_port,
            },
            protocol: tuple.protocol,
            forwarding: dest.forwarding,
            detail: if is_ftp { Detail::default() } else { dest.tunnel.into() },
            marks,
            dest: dest.id,
            last_seen: now,
            timeout: EMBRYO,
            ..Conn::default()
        };
        if dest.forwarding == Forwarding::FullNat {
            Self::prepare_full_nat(shared, &mut conn, dest, now)?;
        }
        let Ok(id) = self.conns.insert(conn) else {
            if dest.forwarding == Forwarding::FullNat {
                Self::release_full_nat(shared, &conn, now);
            }
            return Err(Reason::TableFull);
        };
        if let Some(reply) = conn.reply() {
            // Whoever else claims the reply's tuple has the same real server and port: the kernel, too, finds the first one.
            let hash = self.conns.hash(&reply);
            shared.announce(hash);
        }
        if conn.marks.has(Marks::ACROSS) {
            Self::join_across(shared, &conn, id);
        }
        add(&shared.mine().dest(dest.id).conns, 1);
        self.bind(shared, dest.id);
        Ok(id)
    }

    /// Does the books for a connection that has come into the table.
    pub(super) fn bind(&self, shared: &Shared, id: DestId) {
        add(&shared.mine().dest(id).inactive, 1);
        shared.mine().count(Event::Created, 1);
        let most = shared.snapshot.services.dest(id).map_or(0, |dest| dest.upper_threshold);
        if most != 0 {
            let load = shared.counters.load(id);
            if load.active + load.inactive >= u64::from(most) {
                shared.counters.set_overloaded(id, true);
            }
        }
    }

    /// Follows the connection's state and keeps it alive. A later fragment has no flags to follow, it only keeps alive.
    pub(super) fn track<M: Address>(
        &mut self,
        shared: &mut Shared,
        id: ConnId,
        meta: &Meta<M>,
        direction: Direction,
        now: Tick,
    ) {
        let conn = self.conns.conn_mut(id);
        conn.last_seen = now;
        if meta.is_later_fragment() {
            return;
        }
        let side = match direction {
            Direction::Request if conn.marks.has(Marks::NO_OUTPUT) => Side::InputOnly,
            Direction::Request => Side::Input,
            Direction::Reply => Side::Output,
        };
        let new = match meta.tuple.protocol {
            TCP => tcp::after(conn.state, side, meta.flags, shared.defence.is_secure),
            SCTP => sctp::after(conn.state, side, meta.flags),
            _ => State::Udp,
        };
        let is_news = conn.marks.has(Marks::CONTROLLED)
            && new.is_established(direction)
            && (new != conn.state || new == State::Udp);
        if is_news {
            self.assure(id);
        }
        self.enter(shared, id, new);
    }

    /// Brings a connection into a state, with its timeout and counters.
    #[inline]
    pub(super) fn enter(&mut self, shared: &Shared, id: ConnId, new: State) {
        let conn = self.conns.conn_mut(id);
        let old_timeout = conn.timeout;
        conn.state = new;
        conn.timeout = shared.snapshot.timeouts.of(new);
        let (dest, was_active) = (conn.dest, conn.marks.has(Marks::ACTIVE));
        conn.marks.set(Marks::ACTIVE, new.is_active());
        if conn.timeout < old_timeout {
            self.conns.hasten(id);
        }
        if was_active != new.is_active() {
            let counters = shared.mine().dest(dest);
            let (from, to) = match was_active {
                true => (&counters.active, &counters.inactive),
                false => (&counters.inactive, &counters.active),
            };
            sub(from, 1);
            add(to, 1);
        }
    }

    /// Ends the connection of a packet that is scheduled by itself. One that is in parts is remembered until they are there; one that waits for a neighbour will be scheduled
    /// anew.
    fn forget_packet(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        verdict: &Verdict,
        id: ConnId,
        now: Tick,
    ) {
        if let Verdict::Wait(..) = verdict {
            sub(&shared.mine().dest(self.conns.conn(id).dest).conns, 1);
        }
        match meta.fragment {
            Some(_) => {
                let conn = self.conns.conn_mut(id);
                (conn.last_seen, conn.timeout) = (now, EMBRYO);
                self.conns.hasten(id);
            }
            None => {
                // Nobody waits for more of it.
                self.conns.conn_mut(id).timeout = 0;
                self.cut(shared, id, now);
            }
        }
    }

    /// Ends a connection before its time.
    pub(super) fn cut(&mut self, shared: &mut Shared, id: ConnId, now: Tick) {
        let old = self.conns.remove(id);
        self.end(shared, &old, now);
    }

    /// Does the books for an entry whose time was over.
    fn expired(&mut self, shared: &mut Shared, entry: &Conn<A>, now: Tick) {
        self.end(shared, entry, now);
        if !entry.is_template() {
            shared.mine().count(Event::Expired, 1);
        }
    }

    /// Does the books for an entry that is no longer in the table.
    fn end(&mut self, shared: &mut Shared, conn: &Conn<A>, now: Tick) {
        if conn.is_template() {
            return Self::forget_template(shared, conn);
        }
        shared.withdraw(self.conns.hash(&conn.request()));
        if let Some(reply) = conn.reply() {
            let hash = self.conns.hash(&reply);
            // The client's connection by another virtual address may be on the same real server and port.
            if self.conns.find(&reply, hash).is_none() {
                shared.withdraw(hash);
            }
        }
        let counters = shared.mine().dest(conn.dest);
        sub(if conn.marks.has(Marks::ACTIVE) { &counters.active } else { &counters.inactive }, 1);
        Self::release(shared, conn.dest);
        if conn.forwarding == Forwarding::FullNat {
            Self::release_full_nat(shared, conn, now);
        }
        if conn.marks.has(Marks::FTP_ANY) {
            self.end_of_ftp(shared, conn);
        }
    }

    /// Lets a real server that has fallen below its lower threshold take connections again.
    fn release(shared: &Shared, id: DestId) {
        if !shared.counters.is_overloaded(id) {
            return;
        }
        let Some(dest) = shared.snapshot.services.dest(id) else { return };
        let load = shared.counters.load(id);
        if is_relieved(dest, load.active + load.inactive) {
            shared.counters.set_overloaded(id, false);
        }
    }

    pub(super) fn hop(&mut self, shared: &Shared, id: ConnId, toward: Toward) -> Result<Hop, Unreachable> {
        let Snapshot { services, network, .. } = &*shared.snapshot;
        let conn = self.conns.conn_mut(id);
        let (dest, server, client) = (conn.dest, conn.server, conn.client);
        let is_ftp_data = conn.marks.has(Marks::DATA);
        self.hops.of_conn(network, &mut conn.hops, toward, || match toward {
            // The real server itself knows its address also where the connection has no room for it.
            Toward::Server if is_ftp_data => server.into(),
            Toward::Server => services.dest(dest).map_or_else(|| server.into(), |dest| dest.address),
            Toward::Client => client.into(),
        })
    }

    /// An id for a packet that may be cut up.
    pub(super) fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Sends a finished packet by a hop, in pieces if it is too long for it.
    pub(super) fn send(&mut self, shared: &mut Shared, packet: &mut Packet, hop: &Hop) -> Verdict {
        let network = ETHERNET + hop.tags.len();
        if packet.len <= network + usize::from(hop.mtu) {
            return Verdict::Forward(hop.port);
        }
        let id = self.id();
        match Cut::of(packet.data(), network, hop.mtu, id.into()) {
            Some(cut) if cut.pieces() <= shared.outbox.room() => {
                for piece in 0..cut.pieces() - 1 {
                    if let Some(out) = shared.outbox.add(hop.port, cut.length(piece)) {
                        cut.write(packet.data(), piece, out);
                    }
                }
                cut.keep_last(packet);
                shared.mine().count(Event::CutUp, 1);
                Verdict::Forward(hop.port)
            }
            _ => Verdict::Drop(Reason::TooBig),
        }
    }

    /// Wraps a packet and sends it to the real server, in pieces that the path is known to carry.
    pub(super) fn tunnel(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        (conn, hash): (&Conn<A>, u64),
        hop: &Hop,
        now: Tick,
    ) -> Verdict {
        let Snapshot { services, network, .. } = &*shared.snapshot;
        let Some(destination) = services.dest(conn.dest).map(|dest| dest.address) else {
            return Verdict::Drop(Reason::NoDest);
        };
        let source = network.link(hop.link).and_then(|(link, ..)| link.address_towards(destination));
        // Without an address of its own on the way the director cannot be the tunnel's end.
        let Some(source) = source else { return Verdict::Drop(Reason::NoRoute) };
        self.next_id = self.next_id.wrapping_add(1);
        let ends = tunnel::Ends { source, destination };
        tunnel::request(packet, meta, conn.detail.tunnel(), ends, hop, (hash, self.next_id));
        let mtu = hop.mtu.min(shared.paths.mtu(destination, now));
        self.send(shared, packet, &Hop { mtu, ..*hop })
    }

    /// Ends connections whose time is over, then those that are being swept away.
    pub fn expire(&mut self, shared: &mut Shared, now: Tick, budget: &mut usize) {
        while let Some(entry) = self.conns.expire(now, budget) {
            self.expired(shared, &entry, now);
        }
        let snapshot = Arc::clone(&shared.snapshot);
        let services = &snapshot.services;
        while let Some(from) = self.swept.filter(|_| *budget > 0) {
            // A template that controls others makes no new ones, and goes in its time.
            let is_orphan = |entry: &Conn<A>| !services.has_dest(entry.dest) && entry.controls() == 0;
            let (orphan, next) = self.conns.search(from, budget, is_orphan);
            self.swept = next;
            if let Some(id) = orphan {
                let entry = self.conns.remove(id);
                self.expired(shared, &entry, now);
            }
        }
    }

    /// Has the connections of removed real servers ended, little by little (`ip_vs_expire_nodest_conn_flush`).
    pub fn sweep(&mut self) {
        self.swept = Some(0);
    }

    /// Voids all remembered next hops.
    pub fn forget_hops(&mut self) {
        self.hops.forget();
    }

    /// Gives each connection to `each`.
    pub fn each(&self, each: impl FnMut(&Conn<A>)) {
        self.conns.walk(0, usize::MAX, each);
    }

    /// Gives the connections that live at `now` to `each`; see [`Table::walk`].
    pub fn list(
        &self,
        shared: &Shared,
        from: u32,
        places: usize,
        now: Tick,
        mut each: impl FnMut(Listed),
    ) -> Option<u32> {
        let services = &shared.snapshot.services;
        self.conns.walk(from, places, |conn| {
            let left = conn.remaining(now);
            if left > 0 {
                // A real server of the other family has its address only in the rules.
                let elsewhere = conn.forwarding == Forwarding::Tunnel && conn.server == A::default();
                let server = match conn.marks.has(Marks::ACROSS) {
                    true => Some(beyond::tuple::<A::Other>(shared, conn).source.into()),
                    false => services.dest(conn.dest).filter(|_| elsewhere).map(|dest| dest.address),
                };
                each(Listed {
                    protocol: if conn.is_template() { template::protocol(conn) } else { conn.protocol },
                    state: conn.state,
                    left,
                    client: (conn.client.into(), conn.client_port),
                    service: (conn.virtual_address.into(), conn.virtual_port),
                    server: (server.unwrap_or(conn.server.into()), conn.server_port),
                });
            }
        })
    }
}

/// Bytes of IP that fit on the way of a connection's requests, a tunnel's own headers taken off.
pub(super) fn mtu<A: Near>(shared: &Shared, conn: &Conn<A>, hop: &Hop, now: Tick) -> u16 {
    if conn.marks.has(Marks::ACROSS) {
        return across::fits::<A>(hop.mtu);
    }
    let dest = shared.snapshot.services.dest(conn.dest);
    let Some(dest) = dest.filter(|_| conn.forwarding == Forwarding::Tunnel) else { return hop.mtu };
    let overhead = tunnel::overhead(conn.detail.tunnel(), dest.address);
    let path = shared.paths.mtu(dest.address, now);
    hop.mtu.saturating_sub(overhead).min(tunnel::room::<A>(path, overhead))
}

impl From<Unreachable> for Verdict {
    fn from(why: Unreachable) -> Self {
        match why {
            Unreachable::Unresolved(link, neighbour) => Verdict::Wait(link, neighbour),
            Unreachable::NoRoute => Verdict::Drop(Reason::NoRoute),
            Unreachable::NoNeighbour => Verdict::Drop(Reason::NoNeighbour),
        }
    }
}

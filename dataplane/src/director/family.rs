//! The life of a packet of one address family: the same lines for IPv4 and IPv6.

use super::ahead::Glance;
use super::beyond::{self, Near};
use super::ending::Sweep;
use super::ftp::Talks;
use super::hops::{HopCache, Toward};
use super::sending::{Ids, mtu};
use super::{Shared, Verdict, admission};
use crate::conn::calls::Calls;
use crate::conn::directory::Directory;
use crate::conn::fragments::Fragments;
use crate::conn::supply::Supply;
use crate::conn::table::{Likely, Secret};
use crate::conn::{ConnId, Direction, Marks, Side, State, Table, sctp, tcp};
use crate::forward::icmp::Problem;
use crate::forward::{self, dr, nat};
use crate::packet::protocol::{SCTP, TCP};
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{Forwarding, Hop, Snapshot, Tick, Unreachable, WorkerId};
use crate::stats::{Event, Reason, add, sub};

/// One family's connections and next hops.
pub struct Family<A> {
    pub(super) conns: Table<A>,
    pub(super) hops: HopCache,
    pub(super) calls: Calls,
    pub(super) fragments: Fragments<A>,
    /// Ids for packets that may be cut up.
    pub(super) ids: Ids,
    /// The walk in search of connections of removed real servers; `None` when there is none to be made.
    pub(super) swept: Option<Sweep>,
    /// Where whoever goes through all connections has got to.
    pub(super) place: u32,
    /// Draws places at random, for connections that may give way.
    pub(super) draw: u32,
    /// Connections that are still to be looked at in this period, whether to drop them.
    pub(super) to_look_at: u32,
    /// Control connections of FTP.
    pub(super) talks: Talks,
}

impl<A: Near> Family<A> {
    /// A family without connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(
        capacity: usize,
        worker: WorkerId,
        secret: Secret,
        now: Tick,
    ) -> std::io::Result<Self> {
        let conns = Table::with_capacity(capacity, secret, now)?;
        Ok(Self {
            ids: Ids::begin_at(conns.hash_bytes(&[worker.0, A::HEADER as u8])),
            conns,
            hops: HopCache::default(),
            calls: Calls::default(),
            fragments: Fragments::default(),
            swept: None,
            place: 0,
            draw: 0,
            to_look_at: 0,
            talks: Talks::default(),
        })
    }

    /// Its connections' memory.
    pub fn supply(&self) -> Supply {
        self.conns.supply()
    }

    /// Has the entry fetched that a packet most likely belongs to; if it is of none here, what tells whose it is.
    #[inline]
    pub fn fetch(&self, hash: u64, owners: Option<&Directory>) -> Likely {
        let likely = self.conns.prefetch_entry(hash);
        if likely.candidate().is_none()
            && let Some(owners) = owners
        {
            owners.prefetch(hash);
        }
        likely
    }

    /// Decides about a packet that is no [whole segment or datagram](Meta::is_whole_transport).
    #[inline(never)]
    pub fn decide(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        glance: &Glance,
        now: Tick,
    ) -> Verdict {
        match meta.fragment {
            None => self.icmp(far, shared, packet, meta, now),
            Some(_) if meta.tuple.protocol == A::ICMP => Verdict::Pass,
            Some(part) if part.offset == 0 => {
                self.first_fragment(far, shared, packet, (meta, glance, &part), now)
            }
            Some(part) => self.later_fragment(far, shared, packet, meta, &part, now),
        }
    }

    /// Decides about a packet with a transport header: whole, or a datagram's first part.
    #[inline(always)]
    pub fn packet(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        glance: &Glance,
        now: Tick,
    ) -> Verdict {
        let Glance { hash, ref likely, .. } = *glance;
        let found = self.conns.find_where(likely, &meta.tuple, hash);
        match found.and_then(|found| self.if_alive(shared, found, now)) {
            Some((id, Direction::Request)) => self.request(shared, packet, meta, hash, id, now),
            Some((id, Direction::Reply)) => self.reply(shared, packet, meta, id, now),
            None => match (beyond::find(shared, &meta.tuple, hash), shared.elsewhere(glance)) {
                (Some(id), _) => self.reply_across(far, shared, packet, meta, id, now),
                (None, Some(verdict)) => verdict,
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
        self.if_alive(shared, found, now)
    }

    #[inline]
    pub(super) fn if_alive(
        &mut self,
        shared: &mut Shared,
        found: (ConnId, Direction),
        now: Tick,
    ) -> Option<(ConnId, Direction)> {
        let entry = self.conns.conn(found.0);
        if entry.remaining(now) > 0 || entry.is_template() || entry.controls() > 0 {
            return Some(found);
        }
        self.bury(shared, found.0, now);
        None
    }

    #[cold]
    fn bury(&mut self, shared: &mut Shared, id: ConnId, now: Tick) {
        let old = self.conns.remove(id);
        self.expired(shared, &old, now);
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
        if let Some(owner) = self.called_elsewhere(shared, hash, id) {
            return Verdict::hand_off(owner);
        }
        let conn = self.conns.conn(id);
        if admission::is_for_parts(conn) && !meta.is_later_fragment() {
            return self.schedule_beside(shared, packet, meta, hash, id, now);
        }
        let is_replaced = admission::replaces(meta, conn, &shared.snapshot);
        if is_replaced || !shared.snapshot.services.has_dest(conn.dest) && conn.has_server() {
            return self.leave(shared, packet, meta, (hash, is_replaced), id, now);
        }
        self.deliver(shared, packet, meta, hash, id, now)
    }

    /// A datagram that is scheduled by itself, while later parts of another one of the same ends, `id`, may still come.
    #[cold]
    fn schedule_beside(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        self.conns.displace(id);
        let verdict = self.admit(shared, packet, meta, hash, now);
        // If this one is whole, nothing of it stays. It may have cost the other one its place, if there was no room.
        let is_free = self.conns.find(&meta.tuple, hash).is_none();
        if is_free && self.conns.restore(id, &meta.tuple, hash) {
            shared.announce(hash);
        }
        verdict
    }

    /// A packet of a connection that another one takes the place of, or whose real server was removed.
    #[cold]
    fn leave(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        (hash, is_replaced): (u64, bool),
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        // A connection without its real server stays: that may come back, and then it goes on.
        let is_kept = shared.snapshot.sysctls.expire_nodest_conn == 0 || meta.is_later_fragment();
        if is_kept && !is_replaced {
            return Verdict::Drop(Reason::NoDest);
        }
        let old = self.conns.remove(id);
        self.detach(shared, &old, now);
        let verdict = self.admit(shared, packet, meta, hash, now);
        // The kernel's timer, which ends the old one, runs when the new one has been scheduled: that one still counts for thresholds and as load.
        Self::discount(shared, &old);
        verdict
    }

    /// A packet from the client of a connection that is the one for it, to its real server.
    // Here and below, a call costs as much as what it does: five to ten instructions, thirty with all that must be saved.
    #[inline(always)]
    pub(super) fn deliver(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        if nat::needs_whole(meta) && self.conns.conn(id).changes_ports() {
            return Verdict::Drop(Reason::SctpFragment);
        }
        let hop = match self.hop(shared, id, Toward::Server) {
            Ok(hop) => hop,
            Err(why) => return self.strand(shared, packet, meta, why, id, now),
        };
        self.follow(shared, meta, id, now);
        if self.conns.conn(id).forwarding == Forwarding::Tunnel {
            self.wrap_as_now(shared, id);
        }
        let is_home = shared.snapshot.network.is_home(hop.link);
        if !forward::may_go_on(packet, meta, is_home) {
            return self.refuse(shared, packet, meta, Problem::TimeExceeded, Some(id), now);
        }
        forward::spare(packet, meta, is_home);
        let conn = self.conns.conn(id);
        let mtu = mtu(shared, conn, &hop, now);
        if forward::is_too_big(packet, meta, mtu) {
            // IPVS has aged the packet by now, and quotes it so.
            forward::age(packet, meta);
            let problem = Problem::TooBig(mtu);
            return self.refuse(shared, packet, meta, problem, Some(id), now);
        }
        Self::limit_segments(shared, packet, meta, conn.dest);
        self.ease(shared, id);
        let conn = self.conns.conn(id);
        match conn.forwarding {
            Forwarding::Route | Forwarding::Bypass => dr::request(packet, meta, &hop),
            Forwarding::Masq => {
                if conn.marks.has(Marks::FTP)
                    && let Some(verdict) = self.hear_client(shared, packet, meta, id, now)
                {
                    return verdict;
                }
                let conn = self.conns.conn(id);
                nat::request(packet, meta, (conn.server, conn.server_port), &hop);
            }
            Forwarding::FullNat => {
                return self.request_by_full_nat(shared, packet, meta, id, &hop, mtu);
            }
            Forwarding::Tunnel => {
                let way = (conn.dest, conn.detail.tunnel(), hash);
                return self.tunnel(shared, packet, meta, way, &hop, now);
            }
        }
        self.send(shared, packet, &hop)
    }

    /// Has a connection's packets wrapped as its real server wants them now. How they are forwarded stays as it was when it began, but not this, as in the kernel
    /// (`ip_vs_tunnel_xmit`).
    pub(super) fn wrap_as_now(&mut self, shared: &Shared, id: ConnId) {
        let conn = self.conns.conn(id);
        let Some(dest) = shared.snapshot.services.dest(conn.dest) else { return };
        if conn.detail != dest.tunnel.into() {
            self.conns.conn_mut(id).detail = dest.tunnel.into();
        }
    }

    /// Counts a packet from the client, and follows its connection.
    #[inline(always)]
    fn follow(&mut self, shared: &mut Shared, meta: &Meta<A>, id: ConnId, now: Tick) {
        self.track(shared, id, meta, Direction::Request, now);
        let conn = self.conns.conn_mut(id);
        conn.count_packet();
        let counters = shared.mine().dest(conn.dest);
        counters.count_in(meta.length().into());
    }

    /// A packet from the client that has no way to its real server.
    #[cold]
    fn strand(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        why: Unreachable,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        if let Unreachable::Unresolved(link, neighbour) = why {
            return Verdict::Wait(link, neighbour);
        }
        self.follow(shared, meta, id, now);
        match why {
            Unreachable::NoRoute => {
                shared.mine().count(Event::NoRoute, 1);
                self.refuse(shared, packet, meta, Problem::HostUnreachable, Some(id), now)
            }
            _ => self.give_up(shared, packet, meta, id, now),
        }
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
        if nat::needs_whole(meta) && conn.changes_ports() {
            return Verdict::Drop(Reason::SctpFragment);
        }
        let hop = match self.hop(shared, id, Toward::Client) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        // To the real server the director is a router, and a router looks at this before anything else.
        let is_home = shared.snapshot.network.is_home(packet.port());
        if !forward::may_go_on(packet, meta, is_home) {
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
        counters.count_out(u64::from(meta.length()));

        if forward::is_too_big(packet, meta, hop.mtu) {
            return self.refuse_as_router(shared, packet, meta, Problem::TooBig(hop.mtu), now);
        }
        forward::spare(packet, meta, is_home);
        Self::limit_segments(shared, packet, meta, conn.dest);
        self.ease(shared, id);
        let conn = self.conns.conn(id);
        if conn.forwarding == Forwarding::FullNat {
            return self.reply_by_full_nat(shared, packet, meta, id, &hop);
        }
        nat::reply(packet, meta, (conn.virtual_address, conn.virtual_port), &hop);
        self.send(shared, packet, &hop)
    }

    /// Follows the connection's state and keeps it alive. A later fragment has no flags to follow, it only keeps alive.
    #[inline(always)]
    pub(super) fn track<M: Address>(
        &mut self,
        shared: &mut Shared,
        id: ConnId,
        meta: &Meta<M>,
        direction: Direction,
        now: Tick,
    ) {
        let conn = self.conns.conn_mut(id);
        if direction == Direction::Reply && admission::is_for_parts(conn) {
            // An answer makes no connection of it.
            return;
        }
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
    #[inline(always)]
    pub(super) fn enter(&mut self, shared: &Shared, id: ConnId, new: State) {
        let conn = self.conns.conn(id);
        let timeout = shared.snapshot.timeouts.of(new);
        if (conn.state, conn.timeout) != (new, timeout) {
            self.change(shared, id, new, timeout);
        }
    }

    #[inline(never)]
    fn change(&mut self, shared: &Shared, id: ConnId, new: State, timeout: u32) {
        let conn = self.conns.conn_mut(id);
        let old_timeout = conn.timeout;
        (conn.state, conn.timeout) = (new, timeout);
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

    #[inline(always)]
    pub(super) fn hop(&mut self, shared: &Shared, id: ConnId, toward: Toward) -> Result<Hop, Unreachable> {
        let Snapshot { services, network, .. } = &*shared.snapshot;
        let conn = self.conns.conn_mut(id);
        let (dest, server, client) = (conn.dest, conn.server, conn.client);
        let is_ftp_data = conn.marks.has(Marks::DATA);
        let bypassed = (!conn.has_server()).then_some(conn.virtual_address);
        self.hops.of_conn(network, &mut conn.hops, toward, || match toward {
            // The real server itself knows its address also where the connection has no room for it.
            Toward::Server if is_ftp_data => server.into(),
            Toward::Server => {
                let elsewhere = || bypassed.unwrap_or(server).into();
                services.dest(dest).map_or_else(elsewhere, |dest| dest.address)
            }
            Toward::Client => client.into(),
        })
    }

    /// Voids all remembered next hops.
    pub fn forget_hops(&mut self) {
        self.hops.forget();
    }

    /// Has the long way look at each connection again.
    pub fn doubt(&mut self) {
        self.hops.doubt();
    }
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

//! FullNAT to a real server of the other family: the second half of a connection's life, from the server's side.

use super::beyond::{self, Near};
use super::family::Family;
use super::full_nat::{self, Before};
use super::hops::Toward;
use super::{Shared, Verdict};
use crate::conn::{Conn, ConnId, Direction};
use crate::forward::icmp::{self, Problem, Quote};
use crate::forward::{self, across, nat};
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{Hop, Tick};
use crate::stats::Reason;

/// What every IPv6 link takes: IPv4 packets that may be cut up are cut to this (RFC 7915 §4).
const LEAST_V6: u16 = 1280;

impl<A: Near> Family<A> {
    /// Sends a packet of the client to a real server of the other family, and what must go before it.
    pub(super) fn request_across(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        conn: &Conn<A>,
        hop: &Hop,
        before: Option<Before>,
    ) -> Verdict {
        let reply = beyond::tuple::<A::Other>(shared, conn);
        let (local, server) =
            ((reply.destination, reply.destination_port), (reply.source, reply.source_port));
        let may_be_cut = A::ROUTERS_FRAGMENT && !forward::forbids_fragments(packet, meta);
        let id = self.ids.next_short();
        if !across::translate(packet, meta, local, server, id, hop) {
            return Verdict::Drop(Reason::Untranslatable);
        }
        if let Some(before) = before {
            full_nat::put_before::<A::Other>(shared, packet, A::Other::HEADER, &before, hop);
        }
        let mtu = if may_be_cut { hop.mtu.min(LEAST_V6) } else { hop.mtu };
        self.send(shared, packet, &Hop { mtu, ..*hop })
    }

    /// A packet from the real server of a connection whose client, and table, are of the other family.
    pub(super) fn reply_across(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        if far.conns.conn(id).remaining(now) == 0 {
            return self.stray(shared, packet, meta, &meta.tuple, now);
        }
        if nat::needs_whole(meta) {
            return Verdict::Drop(Reason::SctpFragment);
        }
        let hop = match far.hop(shared, id, Toward::Client) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        let is_home = shared.snapshot.network.is_home(packet.port());
        if !forward::may_go_on(packet, meta, is_home) {
            return self.refuse_as_router(shared, packet, meta, Problem::TimeExceeded, now);
        }
        far.track(shared, id, meta, Direction::Reply, now);
        let conn = *far.conns.conn(id);
        let counters = shared.mine().dest(conn.dest);
        counters.count_out(u64::from(meta.length()));
        let mtu = across::fits::<A>(hop.mtu);
        if forward::is_too_big(packet, meta, mtu) {
            return self.refuse_as_router(shared, packet, meta, Problem::TooBig(mtu), now);
        }
        forward::spare(packet, meta, is_home);
        Self::limit_segments(shared, packet, meta, conn.dest);
        far.take_back(packet, meta, id);
        let (service, client) = ((conn.virtual_address, conn.virtual_port), (conn.client, conn.client_port));
        let may_be_cut = A::ROUTERS_FRAGMENT && !forward::forbids_fragments(packet, meta);
        if !across::translate(packet, meta, service, client, self.ids.next_short(), &hop) {
            return Verdict::Drop(Reason::Untranslatable);
        }
        let mtu = if may_be_cut { hop.mtu.min(LEAST_V6) } else { hop.mtu };
        self.send(shared, packet, &Hop { mtu, ..hop })
    }

    /// An ICMP error from the real server's side, about a request that was translated to this family.
    pub(super) fn error_across(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        quote: &Quote<A>,
        id: ConnId,
    ) -> Verdict {
        let hop = match far.hop(shared, id, Toward::Client) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        let conn = far.conns.conn(id);
        let counters = shared.mine().dest(conn.dest);
        counters.count_out(u64::from(meta.length()));
        if !icmp::is_sound(packet, meta) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        Family::take_back_quoted(packet, quote, meta.end, conn);
        let ends = (conn.virtual_address, conn.client);
        Self::translate_error(packet, meta, quote, ends, &conn.request(), &hop)
    }

    /// An ICMP error from the client's side, about a reply, to a real server of the other family.
    pub(super) fn error_to_server_across(
        shared: &Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        quote: &Quote<A>,
        conn: &Conn<A>,
        hop: &Hop,
    ) -> Verdict {
        let reply = beyond::tuple::<A::Other>(shared, conn);
        Self::translate_error(packet, meta, quote, (reply.destination, reply.source), &reply, hop)
    }

    fn translate_error(
        packet: &mut Packet,
        meta: &Meta<A>,
        quote: &Quote<A>,
        ends: (A::Other, A::Other),
        quoted: &Tuple<A::Other>,
        hop: &Hop,
    ) -> Verdict {
        if forward::hops_left(packet, meta) <= 1 {
            // Nobody answers an error with an error.
            return Verdict::Drop(Reason::StrayIcmp);
        }
        match across::error(packet, meta, quote, ends, quoted, hop) {
            true => Verdict::Forward(hop.port),
            false => Verdict::Drop(Reason::Untranslatable),
        }
    }

    /// Makes a new connection and its twin known to each other. The workers know of the twin since its port was taken.
    pub(super) fn join_across(shared: &mut Shared, conn: &Conn<A>, id: ConnId) {
        beyond::point::<A::Other>(shared, conn.server.pointed(), id);
    }
}

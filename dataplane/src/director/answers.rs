//! What the director says and does in the kernel's place: resets and aborts, ICMP errors of its own, and the routing of what was kept from the kernel.

use super::beyond::Near;
use super::family::Family;
use super::{Shared, Verdict, admission};
use crate::conn::ConnId;
use crate::forward::icmp::Problem;
use crate::forward::{self, abort, icmp, reset};
use crate::packet::parse::ETHERNET;
use crate::packet::protocol::{SCTP, TCP};
use crate::packet::{Address, Meta, Packet, Tags, Tuple, V4};
use crate::service::{Forwarding, Hop, Protocol, Snapshot, Tick};
use crate::stats::{Event, Reason};
use crate::steer::Target;

impl<A: Near> Family<A> {
    /// A packet that is neither a connection's nor a service's. What a NAT real server sends, or an error about what it was sent, was kept from
    /// the kernel in case it was about a connection, so the director does the kernel's work and routes it. `tuple` tells the real server: the
    /// packet's own, or for an error that of the packet it quotes, turned round.
    pub(super) fn stray(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        tuple: &Tuple<A>,
        now: Tick,
    ) -> Verdict {
        let Snapshot { services, network, .. } = &*shared.snapshot;
        let is_home = network.is_home(packet.port());
        // Of datagrams in parts all of a real server's come here: later parts show no port.
        let is_servers = services.is_masqueraded(tuple.source, tuple.source_port, tuple.protocol)
            || meta.fragment.is_some() && services.may_be_from_server(tuple.source, tuple.protocol)
            || is_from_data_port(shared, tuple);
        if is_servers && services.is_local(meta.tuple.destination) {
            return self.turn_away(shared, packet, meta, now);
        }
        if !(is_servers || is_home) || network.is_local(meta.tuple.destination) {
            return Verdict::Pass;
        }
        if !(is_home || network.forwards(meta.tuple.destination)) {
            return Verdict::Drop(Reason::NotWanted);
        }
        let hop = match network.hop(meta.tuple.destination) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        if !forward::may_go_on(packet, meta, is_home) {
            return self.refuse_as_router(shared, packet, meta, Problem::TimeExceeded, now);
        }
        if forward::is_too_big(packet, meta, hop.mtu) {
            return self.refuse_as_router(shared, packet, meta, Problem::TooBig(hop.mtu), now);
        }
        if let Some(verdict) = self.call_out(shared, packet, meta, now) {
            return verdict;
        }
        forward::spare(packet, meta, is_home);
        if is_refused_to_server(&shared.snapshot, meta) {
            // The kernel asks IPVS when it has aged the packet, and quotes it so.
            forward::age(packet, meta);
            return self.refuse_as_router(shared, packet, meta, Problem::PortUnreachable, now);
        }
        forward::route(packet, meta, &hop);
        shared.mine().count(Event::Routed, 1);
        self.send(shared, packet, &hop)
    }

    /// A packet to an address of the director's, of no connection and beginning none: it is told so as by the machine's own stack.
    pub(super) fn turn_away(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        now: Tick,
    ) -> Verdict {
        match meta.tuple.protocol {
            TCP | SCTP => self.reset(shared, packet, meta),
            protocol if protocol == A::ICMP => Verdict::Drop(Reason::StrayIcmp),
            _ => self.answer(shared, packet, meta, Problem::PortUnreachable, meta.tuple.destination, now),
        }
    }

    /// Answers a TCP segment or an SCTP packet that belongs to no connection and cannot begin one.
    pub(super) fn reset(&mut self, shared: &mut Shared, packet: &mut Packet, meta: &Meta<A>) -> Verdict {
        if admission::is_abrupt(meta) {
            return Verdict::Drop(Reason::StrayReset);
        }
        let is_sctp = meta.tuple.protocol == SCTP;
        let is_sound = if is_sctp { abort::is_sound(packet, meta) } else { reset::is_sound(packet, meta) };
        if !is_sound {
            return Verdict::Drop(Reason::BadChecksum);
        }
        let back = self.way_back(shared, packet, meta);
        if !is_sctp {
            reset::answer(packet, meta);
        } else if abort::answer(packet, meta).is_none() {
            return Verdict::Drop(Reason::StrayReset);
        }
        send_back(packet, back)
    }

    /// Tells the client what is wrong, from the virtual address.
    #[cold]
    pub(super) fn refuse(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        problem: Problem,
        conn: Option<ConnId>,
        now: Tick,
    ) -> Verdict {
        if conn.is_some_and(|id| !self.conns.conn(id).has_server()) {
            // The packet's own end says nothing yet.
            return self.refuse_as_router(shared, packet, meta, problem, now);
        }
        let verdict = self.answer(shared, packet, meta, problem, meta.tuple.destination, now);
        // The kernel sees its own error leave and counts it as the connection's output, except under NAT.
        if let Some(id) = conn.filter(|id| !self.conns.conn(*id).forwarding.translates_replies()) {
            self.count_answer(shared, packet, verdict, id);
        }
        verdict
    }

    /// Tells the client that its real server's neighbour does not answer: what the kernel says of a packet that has waited for one in vain (`arp_error_report`, `ndisc_error_report`).
    #[cold]
    pub(super) fn give_up(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        now: Tick,
    ) -> Verdict {
        if forward::hops_left(packet, meta) <= 1 {
            return self.refuse(shared, packet, meta, Problem::TimeExceeded, Some(id), now);
        }
        let forwarding = self.conns.conn(id).forwarding;
        let problem = Problem::HostUnreachable;
        let is_v4 = A::ETHERTYPE == V4::ETHERTYPE;
        if forwarding == Forwarding::Tunnel && !is_v4 {
            // What comes of the outer packet is of no use to anybody there.
            return Verdict::Drop(Reason::NoNeighbour);
        }
        shared.mine().drop(Reason::NoNeighbour);
        forward::age(packet, meta);
        if forwarding == Forwarding::Route && is_v4 {
            return self.refuse_as_router(shared, packet, meta, problem, now);
        }
        let verdict = self.refuse(shared, packet, meta, problem, Some(id), now);
        if forwarding.translates_replies() {
            // Here it is translated as the real server's would be, and counted so.
            self.count_answer(shared, packet, verdict, id);
        }
        verdict
    }

    /// Counts an error to the client, which the packet has become if it was answered, as its connection's output.
    fn count_answer(&self, shared: &Shared, packet: &mut Packet, verdict: Verdict, id: ConnId) {
        if matches!(verdict, Verdict::Reply(_)) {
            let headers = ETHERNET + Tags::of(packet.data()).len();
            shared.mine().dest(self.conns.conn(id).dest).count_out((packet.len() - headers) as u64);
        }
    }

    /// Tells the sender what is wrong, from the director's own address on the sender's side.
    #[cold]
    pub(super) fn refuse_as_router(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        problem: Problem,
        now: Tick,
    ) -> Verdict {
        if meta.tuple.protocol == A::ICMP {
            // Only errors come this far, and nobody answers an error with an error.
            return Verdict::Drop(Reason::StrayIcmp);
        }
        let network = &shared.snapshot.network;
        let back = network.route(meta.tuple.source.into()).and_then(|route| route.link);
        match network
            .link(back.unwrap_or(packet.port().into()))
            .and_then(|(interface, ..)| interface.address_towards(&meta.tuple.source.into()))
            .and_then(|address| A::of(*address))
        {
            Some(address) => self.answer(shared, packet, meta, problem, address, now),
            None => Verdict::Drop(Reason::NoRoute),
        }
    }

    pub(super) fn answer(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        problem: Problem,
        source: A,
        now: Tick,
    ) -> Verdict {
        if A::ETHERTYPE == V4::ETHERTYPE && meta.is_later_fragment() {
            return Verdict::Drop(Reason::FragmentUnanswered);
        }
        if problem.is_limited() && !shared.limiter.allows(meta.tuple.source.into(), now) {
            return Verdict::Drop(Reason::RateLimited);
        }
        let back = self.way_back(shared, packet, meta);
        icmp::answer(packet, meta, problem, source);
        send_back(packet, back)
    }

    /// Where an answer to the packet's sender goes: by the route, or, if its neighbour is not known, the way the packet came.
    pub(super) fn way_back(&mut self, shared: &mut Shared, packet: &mut Packet, meta: &Meta<A>) -> Hop {
        let network = &shared.snapshot.network;
        let sender = meta.tuple.source.into();
        self.hops.hop(network, sender).unwrap_or_else(|_| {
            let port = packet.port();
            let came = packet.data();
            let mut macs = [0; 12];
            macs[..6].copy_from_slice(&came[6..12]);
            macs[6..].copy_from_slice(&came[..6]);
            let mut tags = Tags::of(came);
            // A NIC may have kept the outer tag to itself; the route still knows it.
            let by_route = network.route(sender).and_then(|route| network.link(route.link?));
            if let Some((_, _, whole)) =
                by_route.filter(|(_, of, whole)| *of == port && whole.end_with(&tags))
            {
                tags = whole;
            }
            // Neither the link nor its MTU is asked for any more: answers are short.
            Hop { port, link: port.into(), mtu: u16::MAX, macs, tags, ..Hop::default() }
        })
    }
}

/// Whether a NAT real server is to be told that what it sends belongs to no connection (`nat_icmp_send`). Of a later fragment it is not: that shows no port.
pub(super) fn is_refused_to_server<A: Address>(snapshot: &Snapshot, meta: &Meta<A>) -> bool {
    let Tuple { source, source_port, protocol, .. } = meta.tuple;
    snapshot.sysctls.nat_icmp_send != 0
        && protocol != A::ICMP
        && !meta.is_later_fragment()
        && !admission::is_abrupt(meta)
        && snapshot.services.has_nat_server(source, source_port, protocol)
}

/// Whether a packet was kept from the kernel because it comes from where an FTP server sends or takes data.
fn is_from_data_port<A: Address>(shared: &Shared, tuple: &Tuple<A>) -> bool {
    let (address, port) = (tuple.source.into(), tuple.source_port);
    tuple.protocol == TCP
        && shared.openings.has(Target::RealServer { protocol: Protocol::Tcp, address, port })
}

fn send_back(packet: &mut Packet, hop: Hop) -> Verdict {
    forward::address(packet, &hop);
    Verdict::Reply(hop.port)
}

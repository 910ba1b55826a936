//! FullNAT: both ends of a connection are translated, and the real server is told who the client is.

use std::net::IpAddr;

use super::beyond::{self, Near};
use super::family::Family;
use super::{Shared, Verdict};
use crate::conn::{Conn, ConnId, Marks};
use crate::director::pools::Way;
use crate::forward::icmp::Quote;
use crate::forward::sequence::{self, acknowledge, acknowledged, advance};
use crate::forward::{mss, nat, proxy, toa};
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::protocol::TCP;
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{Dest, Hop, Tell, Tick};
use crate::stats::Reason;

impl<A: Near> Family<A> {
    /// Sends a packet of the client to the real server, from the director's own end. On its way `mtu` bytes of it fit, as the client counts them.
    pub(super) fn request_by_full_nat(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        hop: &Hop,
        mtu: u16,
    ) -> Verdict {
        let mut meta = *meta;
        let before = self.tell(packet, &mut meta, id, mtu);
        let conn = *self.conns.conn(id);
        if conn.marks.has(Marks::ACROSS) {
            return self.request_across(shared, packet, &meta, &conn, hop, before);
        }
        let (local, server) = ((conn.local, conn.local_port), (conn.server, conn.server_port));
        nat::both(packet, &meta, local, server, hop);
        if let Some(before) = before {
            put_before::<A>(shared, packet, usize::from(meta.transport - meta.network), &before, hop);
        }
        self.send(shared, packet, hop)
    }

    /// Sends a packet of the real server to the client, from the virtual end.
    pub(super) fn reply_by_full_nat(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        hop: &Hop,
    ) -> Verdict {
        self.take_back(packet, meta, id);
        let conn = self.conns.conn(id);
        let (service, client) = ((conn.virtual_address, conn.virtual_port), (conn.client, conn.client_port));
        nat::both(packet, meta, service, client, hop);
        self.send(shared, packet, hop)
    }

    /// Takes a local port for a new connection, and notes how its real server is to be told of the client.
    pub(super) fn prepare_full_nat(
        shared: &mut Shared,
        conn: &mut Conn<A>,
        dest: &Dest,
        now: Tick,
    ) -> Result<(), Reason> {
        let Some((way, port)) = shared.pools.take(dest, conn.protocol, conn.server_port, now) else {
            return Err(Reason::NoLocalPort);
        };
        conn.local_port = port;
        conn.marks.set(Marks::ANY_PORT, way.server.1 != conn.server_port);
        match (A::either(way.local), A::either(dest.address)) {
            (Ok(local), _) => conn.local = local,
            (Err(local), Err(server)) => {
                let reply = Tuple {
                    source: server,
                    destination: local,
                    source_port: conn.server_port,
                    destination_port: port,
                    protocol: conn.protocol,
                };
                let Some(twin) = beyond::insert::<A::Other>(shared, &reply, now) else {
                    shared.withdraw(A::Other::twins(&shared.beyond).hash(&reply));
                    shared.pools.give(conn.dest, &way, port, now, now);
                    return Err(Reason::TableFull);
                };
                conn.server = A::pointer(twin);
                conn.marks.set(Marks::ACROSS, true);
            }
            // A local address is of its real server's family.
            (Err(_), Ok(_)) => return Err(Reason::NoLocalPort),
        }
        if conn.protocol == TCP {
            match dest.tell {
                Tell::Nothing => {}
                Tell::Toa => conn.marks.set(Marks::TOA, true),
                Tell::ProxyOne => conn.marks.set(Marks::PROXY_ONE, true),
                Tell::ProxyTwo => conn.marks.set(Marks::PROXY_TWO, true),
            }
        }
        Ok(())
    }

    /// Gives a connection's local port back, to be used again when its time would have been over.
    pub(super) fn release_full_nat(shared: &mut Shared, conn: &Conn<A>, now: Tick) {
        let (local, server) = if conn.marks.has(Marks::ACROSS) {
            let reply = beyond::remove::<A::Other>(shared, conn);
            shared.withdraw(A::Other::twins(&shared.beyond).hash(&reply));
            (reply.destination.into(), reply.source.into())
        } else {
            shared.withdraw(A::twins(&shared.beyond).hash(&conn.beyond()));
            (conn.local.into(), conn.server.into())
        };
        let server_port = if conn.marks.has(Marks::ANY_PORT) { 0 } else { conn.server_port };
        let way = Way { protocol: conn.protocol, local, server: (server, server_port) };
        shared.pools.give(conn.dest, &way, conn.local_port, now.plus(conn.remaining(now)), now);
    }

    /// Tells the real server of the client, where the packet is one to do that with. Gives what must go before the packet.
    fn tell(&mut self, packet: &mut Packet, meta: &mut Meta<A>, id: ConnId, mtu: u16) -> Option<Before> {
        let conn = self.conns.conn(id);
        if !conn.marks.has(Marks::TELLS) || meta.is_later_fragment() {
            return None;
        }
        let has = |flags| meta.flags & flags != 0;
        let is_first = sequence::number(packet, meta) == conn.detail.first() && meta.fragment.is_none();
        if conn.marks.has(Marks::TOA) {
            if is_first && !has(tcp_flags::SYN | tcp_flags::RST | tcp_flags::FIN) {
                toa::insert(packet, meta, (conn.client.into(), conn.client_port), mtu);
            }
            return None;
        }
        if has(tcp_flags::SYN) {
            // Data in a SYN (RFC 7413) would come before the header. The client repeats what the real server does not acknowledge.
            sequence::empty(packet, meta);
            return None;
        }
        if conn.shift == 0 {
            // It was under way before the director knew it (sloppy_tcp).
            return None;
        }
        if conn.marks.has(Marks::TOLD) || !is_first {
            advance(packet, meta, conn.shift.into());
            return None;
        }
        if has(tcp_flags::RST) && !has(tcp_flags::ACK) {
            // It answers a segment of the real server's, and has the number that this one expects.
            return None;
        }
        let header = conn.proxy_header();
        let (tcp_header, data) = sequence::lengths(packet, meta);
        if data == 0 && !has(tcp_flags::FIN | tcp_flags::RST) {
            // Without room the client's next segment has it.
            proxy::ride(packet, meta, &header, mtu);
            return None;
        }
        advance(packet, meta, conn.shift.into());
        Some(Before { header, tcp_header })
    }

    /// Takes what the director adds to the client's stream out of what the real server acknowledges, and of what it says that it takes.
    pub(super) fn take_back<M: Address>(&mut self, packet: &mut Packet, meta: &Meta<M>, id: ConnId) {
        let is_told = self.conns.conn(id).marks.has(Marks::TELLS);
        if !is_told || meta.is_later_fragment() || meta.flags & tcp_flags::ACK == 0 {
            return;
        }
        let conn = self.conns.conn_mut(id);
        let number = acknowledged(packet, meta);
        let is_told_by_option = conn.marks.has(Marks::TOA);
        if meta.flags & tcp_flags::SYN != 0 {
            // The client's data begins where the real server says, not where some SYN does that it may refuse.
            conn.detail.set_first(number);
            conn.marks.set(Marks::TOLD, false);
            if is_told_by_option {
                // A full segment of the client's shall have room for the option.
                mss::leave_room(packet, meta, toa::length(IpAddr::is_ipv4(&conn.client.into())));
            } else {
                conn.shift = conn.proxy_header().len() as u8;
            }
            return;
        }
        if is_told_by_option || conn.shift == 0 {
            return;
        }
        let answers_syn = meta.flags & tcp_flags::RST != 0 && sequence::number(packet, meta) == 0;
        if answers_syn {
            // It refuses a connection in this one's place, and no header came before that one's SYN (RFC 9293 §3.10.7.1).
            return;
        }
        let theirs = conn.number_of_client(number);
        if number.wrapping_sub(conn.detail.first()) as i32 >= i32::from(conn.shift) {
            conn.marks.set(Marks::TOLD, true);
        }
        let shift = u32::from(conn.shift);
        acknowledge(packet, meta, theirs, |edge| edge.wrapping_sub(shift));
    }

    /// Numbers a segment of the client's that an ICMP error quotes as the client did, who would not know it otherwise.
    pub(super) fn take_back_quoted<M: Address>(
        packet: &mut Packet,
        quote: &Quote<M>,
        end: u16,
        conn: &Conn<A>,
    ) {
        if conn.shift != 0 {
            sequence::renumber(packet, quote.transport(), end.into(), |number| conn.number_of_client(number));
        }
    }
}

impl<A: Address> Conn<A> {
    fn proxy_header(&self) -> proxy::Header {
        let version =
            if self.marks.has(Marks::PROXY_ONE) { proxy::Version::One } else { proxy::Version::Two };
        let service = (self.virtual_address.into(), self.virtual_port);
        proxy::header(version, (self.client.into(), self.client_port), service)
    }

    /// A sequence number of the client's stream as the client counts, from what the real server has. In the middle of the header it is where
    /// the client's data begins.
    fn number_of_client(&self, number: u32) -> u32 {
        let (first, shift) = (self.detail.first(), u32::from(self.shift));
        let further = number.wrapping_sub(first);
        match self.marks.has(Marks::TOLD) {
            true => number.wrapping_sub(shift),
            // A SYN.
            false if (further as i32) < 0 => number,
            false => first.wrapping_add(further.saturating_sub(shift)),
        }
    }
}

/// What must go before a packet, in a segment of its own.
pub(super) struct Before {
    header: proxy::Header,
    /// Bytes of the packet's own TCP header, which the segment has, too.
    tcp_header: usize,
}

/// Sends a header in a segment of its own, before the client's first data, which is ready to leave. Where there is no room the data goes alone,
/// and the client's next try has the header again.
pub(super) fn put_before<A: Address>(
    shared: &mut Shared,
    packet: &mut Packet,
    ip_header: usize,
    Before { header, tcp_header }: &Before,
    hop: &Hop,
) {
    let network = ETHERNET + hop.tags.len();
    let transport = network + ip_header;
    let data = transport + tcp_header;
    if let Some(out) = shared.outbox.add(hop.port, data + header.len()) {
        proxy::alone::<A>(packet.data(), (network, transport, data), header, out);
    }
}

//! FullNAT: both ends of a connection are translated, and the real server is told who the client is.

use std::net::IpAddr;

use super::beyond::{self, Near};
use super::family::Family;
use super::{Shared, Verdict};
use crate::conn::{Conn, ConnId, Marks};
use crate::director::pools::Way;
use crate::forward::sequence::{self, acknowledge, acknowledged, advance};
use crate::forward::{mss, nat, proxy, toa};
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{Dest, Hop, Protocol, Tell, Tick};
use crate::stats::Reason;

const TCP: u8 = Protocol::Tcp as u8;

impl<A: Near> Family<A> {
    /// Sends a packet of the client to the real server, from the director's own end.
    pub(super) fn request_by_full_nat(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        hop: &Hop,
    ) -> Verdict {
        let mut meta = *meta;
        let header = self.tell(packet, &mut meta, id, hop.mtu);
        let conn = *self.conns.conn(id);
        if conn.marks.has(Marks::ACROSS) {
            let verdict = self.request_across(shared, packet, &meta, &conn, hop);
            if let (Some((header, tcp_header)), Verdict::Forward(_)) = (header, verdict) {
                put_before::<A::Other>(shared, packet, (A::Other::HEADER, tcp_header), &header, hop);
            }
            return verdict;
        }
        let (local, server) = ((conn.local, conn.local_port), (conn.server, conn.server_port));
        nat::both(packet, &meta, local, server, hop);
        if let Some((header, tcp_header)) = header {
            let ip_header = usize::from(meta.transport - meta.network);
            put_before::<A>(shared, packet, (ip_header, tcp_header), &header, hop);
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

    /// Lowers what a SYN in answer announces, so that a full segment of the client's has room for the option that tells of the client.
    fn leave_room<M: Address>(packet: &mut Packet, meta: &Meta<M>, conn: &Conn<A>) {
        if conn.marks.has(Marks::TOA) && meta.flags & tcp_flags::SYN != 0 {
            mss::leave_room(packet, meta, toa::length(IpAddr::is_ipv4(&conn.client.into())));
        }
    }

    /// Takes a local port for a new connection, and notes how its real server is to be told of the client.
    pub(super) fn prepare_full_nat(
        shared: &mut Shared,
        conn: &mut Conn<A>,
        dest: &Dest,
        now: Tick,
    ) -> Result<(), Reason> {
        let Some((local, port)) = shared.pools.take(dest, conn.protocol) else {
            return Err(Reason::NoLocalPort);
        };
        conn.local_port = port;
        match (A::either(local), A::either(dest.address)) {
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
                    let way = Way {
                        protocol: conn.protocol,
                        local: local.into(),
                        server: (server.into(), conn.server_port),
                    };
                    shared.pools.give(conn.dest, &way, port);
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

    /// Gives a connection's local port back.
    pub(super) fn release_full_nat(shared: &mut Shared, conn: &Conn<A>) {
        let (local, server) = if conn.marks.has(Marks::ACROSS) {
            let reply = beyond::remove::<A::Other>(shared, conn);
            let hash = A::Other::twins(&shared.beyond).hash(&reply);
            shared.withdraw(hash);
            (reply.destination.into(), reply.source.into())
        } else {
            (conn.local.into(), conn.server.into())
        };
        let way = Way { protocol: conn.protocol, local, server: (server, conn.server_port) };
        shared.pools.give(conn.dest, &way, conn.local_port);
    }

    /// Tells the real server of the client, where the packet is one to do that with. Gives the header that must go before the packet, and the length of the
    /// packet's own.
    fn tell(
        &mut self,
        packet: &mut Packet,
        meta: &mut Meta<A>,
        id: ConnId,
        mtu: u16,
    ) -> Option<(proxy::Header, usize)> {
        let conn = self.conns.conn_mut(id);
        if !conn.marks.has(Marks::TELLS) || meta.is_later_fragment() {
            return None;
        }
        let number = sequence::number(packet, meta);
        if meta.flags & tcp_flags::SYN != 0 {
            conn.detail.set_first(number.wrapping_add(1));
            conn.marks.set(Marks::TOLD, false);
            return None;
        }
        let is_first = number == conn.detail.first() && meta.fragment.is_none();
        let client = (conn.client.into(), conn.client_port);
        if conn.marks.has(Marks::TOA) {
            if is_first && meta.flags & (tcp_flags::RST | tcp_flags::FIN) == 0 {
                toa::insert(packet, meta, client, mtu);
            }
            return None;
        }
        let version =
            if conn.marks.has(Marks::PROXY_ONE) { proxy::Version::One } else { proxy::Version::Two };
        if conn.marks.has(Marks::TOLD) || !is_first {
            advance(packet, meta, conn.shift.into());
            return None;
        }
        if meta.flags & tcp_flags::RST != 0 {
            return None;
        }
        let header = proxy::header(version, client, (conn.virtual_address.into(), conn.virtual_port));
        conn.shift = header.len() as u8;
        let (tcp_header, data) = sequence::lengths(packet, meta);
        if data == 0 && meta.flags & tcp_flags::FIN == 0 {
            // Without room the client's next segment has it.
            proxy::ride(packet, meta, &header, mtu);
            return None;
        }
        advance(packet, meta, conn.shift.into());
        Some((header, tcp_header))
    }

    /// Takes what the director adds to the client's stream out of what the real server acknowledges, and of what it says that it takes.
    pub(super) fn take_back<M: Address>(&mut self, packet: &mut Packet, meta: &Meta<M>, id: ConnId) {
        let conn = self.conns.conn_mut(id);
        Self::leave_room(packet, meta, conn);
        let is_shifted = conn.marks.has(Marks::PROXY_ONE) || conn.marks.has(Marks::PROXY_TWO);
        if !is_shifted
            || meta.is_later_fragment()
            || meta.flags & (tcp_flags::SYN | tcp_flags::ACK) != tcp_flags::ACK
        {
            return;
        }
        let (first, shift) = (conn.detail.first(), u32::from(conn.shift));
        let number = acknowledged(packet, meta);
        if number.wrapping_sub(first) as i32 >= shift as i32 {
            conn.marks.set(Marks::TOLD, true);
        }
        let told = conn.marks.has(Marks::TOLD);
        acknowledge(packet, meta, if told { number.wrapping_sub(shift) } else { first }, shift);
    }
}

/// Sends a header in a segment of its own, before the client's first data, which is ready to leave. Its own headers have these lengths. Where there is no room
/// the data goes alone, and the client's next try has the header again.
fn put_before<A: Address>(
    shared: &mut Shared,
    packet: &mut Packet,
    (ip_header, tcp_header): (usize, usize),
    header: &proxy::Header,
    hop: &Hop,
) {
    let network = ETHERNET + hop.tags.len();
    let transport = network + ip_header;
    let data = transport + tcp_header;
    if let Some(out) = shared.outbox.add(hop.port, data + header.len()) {
        proxy::alone::<A>(packet.data(), (network, transport, data), header, out);
    }
}

//! Tunnels: the packet goes to the real server inside another one, from the director's own address to the real server's. The real server
//! unwraps it, has the virtual address itself and answers the client directly.
//!
//! ```text
//!   | Ethernet | outer IP | GUE: UDP, 4 bytes · GRE: 4 bytes, 8 with checksum · IPIP: nothing | inner packet |
//! ```
//!
//! All of IPv4 and IPv6 in IPv4 and IPv6. The outer header's TTL, TOS and don't-fragment are the inner one's, ECN by the rules of
//! `INET_ECN_encapsulate` (`ip_vs_tunnel_xmit`, `ipvs_gue_encap`, `ipvs_gre_encap`). The source port of GUE comes from the flow's hash, so that the real
//! server's NIC can spread flows over its queues. Remote checksum offload changes nothing here: the kernel uses it only for
//! packets whose own checksum is still to be made, and a director forwards whole ones.

use std::net::IpAddr;
use std::ops::Range;

use super::{address, icmp, ip};
use crate::packet::address::Onward;
use crate::packet::checksum::{Change, Sum, pseudo_header};
use crate::packet::parse::ETHERNET;
use crate::packet::plain::Header;
use crate::packet::protocol::UDP;
use crate::packet::{Address, Meta, Packet, Plain, V4, V6, be16, put16, put32};
use crate::service::{Hop, Tunnel, TunnelKind};

const GRE: u8 = 47;
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Source ports of GUE: the kernel's default range of ephemeral ports (`udp_flow_src_port`).
const SOURCE_PORTS: Range<u16> = 32_768..61_000;

/// Where a packet is tunnelled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A = IpAddr> {
    /// The director's own address on the way.
    pub source: A,
    /// The real server's.
    pub destination: A,
}

/// The same, of the family that a tunnel goes by.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// By IPv4.
    V4(Ends<V4>),
    /// By IPv6.
    V6(Ends<V6>),
}

impl Way {
    /// To a real server by a hop. `None` without an address of the director's own on the link: it cannot be the tunnel's end then.
    pub fn by(hop: &Hop, server: IpAddr) -> Option<Self> {
        match server {
            IpAddr::V4(server) => Ends::between(hop.own_v4, server.into()).map(Self::V4),
            IpAddr::V6(server) => Ends::between(hop.own_v6, server.into()).map(Self::V6),
        }
    }
}

impl<A: Address> Ends<A> {
    /// From and to these, if both are there: zero is nobody's address.
    #[inline]
    pub fn between(source: A, destination: A) -> Option<Self> {
        let are_both = source != A::default() && destination != A::default();
        are_both.then_some(Self { source, destination })
    }
}

/// Bytes that a tunnel to this address puts before a packet.
pub fn overhead(tunnel: Tunnel, destination: &IpAddr) -> u16 {
    let outer = if destination.is_ipv4() { V4::HEADER } else { V6::HEADER };
    (outer + wrapping(tunnel)) as u16
}

/// The IP protocol number of packets with IPv4 inside, or IPv6.
pub fn protocol(kind: TunnelKind, is_v4: bool) -> u8 {
    match kind {
        TunnelKind::Ipip if is_v4 => IPV4_IN_IP,
        TunnelKind::Ipip => IPV6_IN_IP,
        TunnelKind::Gue => UDP,
        TunnelKind::Gre => GRE,
    }
}

/// Bytes of an inner packet that fit through a path that carries `path`. Never less than what every path must carry: what is shorter may not be
/// refused for its length, and a tunnel so narrow must cut up its own packets.
pub fn room<A: Address>(path: u16, overhead: u16) -> u16 {
    path.saturating_sub(overhead).max(A::LEAST_MTU)
}

/// Bytes between the two IP headers.
#[inline]
fn wrapping(tunnel: Tunnel) -> usize {
    match tunnel.kind {
        TunnelKind::Ipip => 0,
        TunnelKind::Gue => 12,
        TunnelKind::Gre => 4 + if tunnel.checksum { 4 } else { 0 },
    }
}

/// Sends a request to the real server. `flow` is the packet's hash, `id` the outer packet's id for when it may be cut up.
pub fn request<A: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    tunnel: Tunnel,
    way: Way,
    hop: &Hop,
    (flow, id): (u64, u16),
) {
    let header = ip(packet, meta);
    A::age(header, Change::default());
    let onward = onward::<A>(header, id);
    let inner = (packet.start() + usize::from(meta.network), usize::from(meta.length()));
    match way {
        Way::V4(ends) => encase::<A, V4>(packet, inner, &onward, (tunnel, flow), ends, hop),
        Way::V6(ends) => encase::<A, V6>(packet, inner, &onward, (tunnel, flow), ends, hop),
    }
}

/// The same with a [plain](Plain) packet, if the outer one is no longer than `mtu`; otherwise nothing happens.
#[inline(always)]
pub fn plain_request<H: Header, O: Address>(
    packet: &mut Packet,
    tunnel: Tunnel,
    ends: Ends<O>,
    hop: &Hop,
    mtu: u16,
    (flow, id): (u64, impl FnOnce() -> u16),
) -> Option<()> {
    let inner = packet.start() + ETHERNET;
    let plain = Plain::<H>::again(packet)?;
    let length = usize::from(plain.length());
    if O::HEADER + wrapping(tunnel) + length > usize::from(mtu) {
        return None;
    }
    plain.age();
    let onward = onward::<H::Address>(plain.ip().as_bytes(), id());
    encase::<H::Address, O>(packet, (inner, length), &onward, (tunnel, flow), ends, hop);
    Some(())
}

/// What the outer packet takes from the inner one, which has been aged.
#[inline(always)]
fn onward<A: Address>(inner: &[u8], id: u16) -> Onward {
    Onward {
        ttl: A::hops_left(inner),
        tos: encapsulate_ecn(A::tos(inner)),
        fragment: None,
        // An IPv6 packet is cut up by its sender only; the kernel does not forbid it to the outer one.
        may_be_cut: !(A::ROUTERS_FRAGMENT && A::forbids_fragments(inner)),
        id,
    }
}

/// Puts the outer headers before a packet, of which is said where in the chunk it begins and how long it is.
#[inline(always)]
fn encase<A: Address, O: Address>(
    packet: &mut Packet,
    (inner, length): (usize, usize),
    onward: &Onward,
    (tunnel, flow): (Tunnel, u64),
    ends: Ends<O>,
    hop: &Hop,
) {
    let before = ETHERNET + O::HEADER + wrapping(tunnel);
    // The inner packet stays where it is when there is room before it, as there is in every frame that a port received.
    let start = inner.checked_sub(before).unwrap_or_else(|| {
        packet.chunk.copy_within(inner..inner + length, before);
        0
    });
    packet.set_extent(start, before + length);
    if let Some(frame) = packet.chunk.get_mut(start..) {
        write::<A, O>(frame, wrapping(tunnel) + length, tunnel, onward, ends, hop, flow);
    }
    if !hop.tags.is_empty() {
        address(packet, hop);
    }
}

/// Writes what stands before the inner packet of a frame, without VLAN tags. Behind the outer IP header come `payload` bytes.
#[inline(always)]
fn write<A: Address, O: Address>(
    frame: &mut [u8],
    payload: usize,
    tunnel: Tunnel,
    onward: &Onward,
    Ends { source, destination }: Ends<O>,
    hop: &Hop,
    flow: u64,
) {
    let Some((head, rest)) = frame.split_at_mut_checked(ETHERNET + O::HEADER) else { return };
    head[..12].copy_from_slice(&hop.macs);
    put16(head, 12, O::ETHERTYPE);
    let protocol = protocol(tunnel.kind, A::ETHERTYPE == V4::ETHERTYPE);
    O::write_onward(&mut head[ETHERNET..], payload, protocol, onward, source, destination);
    if tunnel.kind != TunnelKind::Ipip {
        let Some(rest) = rest.get_mut(..payload) else { return };
        wrap::<A, O>(rest, tunnel, flow, source, destination);
    }
}

/// `INET_ECN_encapsulate`: what the inner packet says of congestion, but not that it has met some. That is the highest of four numbers, ECT(0) the one below.
fn encapsulate_ecn(tos: u8) -> u8 {
    let has_met_some = tos & tos >> 1 & 1;
    tos - has_met_some
}

fn bare_protocol<A: Address>() -> u8 {
    protocol(TunnelKind::Ipip, A::ETHERTYPE == V4::ETHERTYPE)
}

/// Writes what stands between the two IP headers. `payload` is everything behind the outer one.
#[inline(never)]
fn wrap<A: Address, O: Address>(payload: &mut [u8], tunnel: Tunnel, flow: u64, source: O, destination: O) {
    match tunnel.kind {
        TunnelKind::Ipip => {}
        TunnelKind::Gue => {
            let ports = u64::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
            let length = payload.len() as u16;
            put16(payload, 0, SOURCE_PORTS.start + (flow % ports) as u16);
            put16(payload, 2, tunnel.port);
            put16(payload, 4, length);
            put16(payload, 6, 0);
            // Version 0, no options, and what is inside (draft-ietf-intarea-gue §3.2).
            payload[8..12].copy_from_slice(&[0, bare_protocol::<A>(), 0, 0]);
            if tunnel.checksum {
                let checksum = pseudo_header(source, destination, UDP, length).bytes(payload).field();
                put16(payload, 6, if checksum == 0 { 0xffff } else { checksum });
            }
        }
        TunnelKind::Gre => {
            // RFC 2784: a bit says that there is a checksum, which covers all that follows.
            put16(payload, 0, if tunnel.checksum { 0x8000 } else { 0 });
            put16(payload, 2, A::ETHERTYPE);
            if tunnel.checksum {
                put32(payload, 4, 0);
                let checksum = Sum::default().bytes(payload).field();
                put16(payload, 4, checksum);
            }
        }
    }
}

/// What a wrapped packet's outer headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// From where to where it went.
    pub ends: Ends,
    /// In what. The port is that of GUE, otherwise 0.
    pub wrapping: (TunnelKind, u16),
    /// Where the inner packet begins.
    pub inner: usize,
    /// Whether that is an IPv4 packet; otherwise an IPv6 one.
    pub is_v4: bool,
}

/// Reads the outer headers of a packet that [`request`] may have made, from the start of the outer IP header. `None` if it has made no such
/// packet, or too little of it is left to know.
pub fn unwrap<O: Address>(packet: &[u8]) -> Option<Unwrapped> {
    let (header, protocol) = icmp::header::<O>(packet)?;
    let between = &packet[header..];
    let (wrapping, inner, length) = match protocol {
        IPV4_IN_IP | IPV6_IN_IP => ((TunnelKind::Ipip, 0), protocol, 0),
        UDP => match between.get(..12)? {
            &[_, _, port0, port1, _, _, _, _, 0, inner, 0, 0] => {
                ((TunnelKind::Gue, u16::from_be_bytes([port0, port1])), inner, 12)
            }
            _ => return None,
        },
        GRE => {
            let inner = match be16(between.get(..4)?, 2) {
                V4::ETHERTYPE => IPV4_IN_IP,
                V6::ETHERTYPE => IPV6_IN_IP,
                _ => return None,
            };
            match be16(between, 0) {
                0 => ((TunnelKind::Gre, 0), inner, 4),
                0x8000 => ((TunnelKind::Gre, 0), inner, 8),
                _ => return None,
            }
        }
        _ => return None,
    };
    if !matches!(inner, IPV4_IN_IP | IPV6_IN_IP) || between.len() < length {
        return None;
    }
    let (source, destination) = (O::read(packet, O::SOURCE), O::read(packet, O::DESTINATION));
    let ends = Ends { source: source.into(), destination: destination.into() };
    Some(Unwrapped { ends, wrapping, inner: header + length, is_v4: inner == IPV4_IN_IP })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::{CHUNK, Extent, Parsed, parse};
    use crate::service::PortId;

    const OWN_V4: V4 = V4(3);
    const OWN_V6: V6 = V6(3);

    /// A packet that may be sent into a tunnel, in a frame.
    fn inner(is_v4: bool, length: usize) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + if is_v4 { 20 } else { 40 }];
        if is_v4 {
            put16(&mut frame, 12, V4::ETHERTYPE);
            V4::write_header(&mut frame[ETHERNET..], length, UDP, None, V4(1), V4(2));
        } else {
            put16(&mut frame, 12, V6::ETHERTYPE);
            V6::write_header(&mut frame[ETHERNET..], length, UDP, None, V6(1), V6(2));
        }
        frame.resize(frame.len() + length, 0xaa);
        frame
    }

    /// The same in a tunnel, from the outer IP header on.
    fn wrapped(frame: &[u8], tunnel: Tunnel, ends: Ends) -> Vec<u8> {
        let mut chunk = [0; CHUNK];
        chunk[128..128 + frame.len()].copy_from_slice(frame);
        let mut extent = Extent::new(128, frame.len(), PortId(0));
        let mut packet = Packet::new(&mut chunk, &mut extent);
        let hop = Hop { mtu: 1500, own_v4: OWN_V4, own_v6: OWN_V6, ..Hop::default() };
        let way = Way::by(&hop, ends.destination).unwrap();
        match parse(frame) {
            Ok(Parsed::V4(meta)) => request(&mut packet, &meta, tunnel, way, &hop, (7, 8)),
            Ok(Parsed::V6(meta)) => request(&mut packet, &meta, tunnel, way, &hop, (7, 8)),
            Err(why) => panic!("{why:?}"),
        }
        packet.data()[ETHERNET..].to_vec()
    }

    fn read(outer: &[u8], is_v4: bool) -> Option<Unwrapped> {
        if is_v4 { unwrap::<V4>(outer) } else { unwrap::<V6>(outer) }
    }

    proptest! {
        #[test]
        fn what_is_wrapped_can_be_unwrapped_however_much_is_left(
            is_v4: bool, outer_is_v4: bool, kind in 0..3, checksum: bool, port: u16, length in 8usize..100, left in 0usize..200,
        ) {
            let kind = [TunnelKind::Ipip, TunnelKind::Gue, TunnelKind::Gre][kind as usize];
            let port = if kind == TunnelKind::Gue { port } else { 0 };
            let tunnel = Tunnel { kind, checksum, port };
            let ends: Ends = if outer_is_v4 {
                Ends { source: OWN_V4.into(), destination: V4(4).into() }
            } else {
                Ends { source: OWN_V6.into(), destination: V6(4).into() }
            };
            let frame = inner(is_v4, length);
            let outer = wrapped(&frame, tunnel, ends);
            let before = usize::from(overhead(tunnel, &ends.destination));
            let expected = Unwrapped { ends, wrapping: (kind, port), inner: before, is_v4 };
            prop_assert_eq!(read(&outer, outer_is_v4), Some(expected));
            prop_assert_eq!(outer.len() - before, frame.len() - ETHERNET);
            let left = left.min(outer.len());
            prop_assert_eq!(read(&outer[..left], outer_is_v4), (left >= before).then_some(expected));
            prop_assert_eq!(read(&outer, !outer_is_v4), None);
        }

        #[test]
        fn any_bytes_are_unwrapped_or_not(mut bytes in prop::collection::vec(any::<u8>(), 0..80), protocol in 0..4) {
            if bytes.len() >= 20 {
                let protocol = [4, 41, 17, 47][protocol as usize];
                let at = if bytes[0] & 1 == 0 { 9 } else { 6 };
                bytes[at] = protocol;
                bytes[0] = if at == 9 { 0x40 | bytes[0] & 0xf } else { 0x60 };
            }
            for is_v4 in [true, false] {
                if let Some(unwrapped) = read(&bytes, is_v4) {
                    prop_assert!(unwrapped.inner <= bytes.len());
                }
            }
        }
    }

    #[test]
    fn congestion_is_not_copied_out() {
        assert_eq!(encapsulate_ecn(0xb9), 0xb9);
        assert_eq!(encapsulate_ecn(0xbb), 0xba);
        assert_eq!(encapsulate_ecn(0), 0);
    }
}

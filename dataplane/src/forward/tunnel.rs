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

use super::{address, ip};
use crate::packet::checksum::{Sum, pseudo_header};
use crate::packet::parse::ETHERNET;
use crate::packet::{Address, Meta, Packet, V4, V6, put16, put32};
use crate::service::{Hop, Tunnel, TunnelKind};

const UDP: u8 = 17;
const GRE: u8 = 47;
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// Source ports of GUE: the kernel's default range of ephemeral ports (`udp_flow_src_port`).
const SOURCE_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// Where a packet is tunnelled to.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The director's own address on the way.
    pub source: IpAddr,
    /// The real server's.
    pub destination: IpAddr,
}

/// Bytes that a tunnel to this address puts before a packet.
pub fn overhead(tunnel: Tunnel, destination: IpAddr) -> u16 {
    let outer = if destination.is_ipv4() { V4::HEADER } else { V6::HEADER };
    (outer + wrapping(tunnel)) as u16
}

/// Bytes between the two IP headers.
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
    ends: Ends,
    hop: &Hop,
    (flow, id): (u64, u16),
) {
    let inner = ip(packet, meta);
    A::age(inner);
    let inherited = Inherited {
        ttl: A::hops_left(inner),
        tos: encapsulate_ecn(A::tos(inner)),
        // An IPv6 packet is cut up by its sender only; the kernel does not forbid it to the outer one.
        whole: A::ROUTERS_FRAGMENT && A::forbids_fragments(inner),
        id,
    };

    // The inner packet stays where it is when there is room before it, as there is in every frame that a port received.
    let length = usize::from(meta.length());
    let before = ETHERNET + usize::from(overhead(tunnel, ends.destination));
    let at = packet.start + usize::from(meta.network);
    let inner_at = at.max(before);
    packet.chunk.copy_within(at..at + length, inner_at);
    packet.start = inner_at - before;
    packet.len = before + length;

    let data = packet.data();
    let (outer, protocol) = (&mut data[ETHERNET..], inner_protocol::<A>(tunnel));
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (V4::from(source), V4::from(destination));
            write_v4(outer, protocol, inherited, source, destination);
            wrap::<A, V4>(&mut outer[V4::HEADER..], tunnel, flow, source, destination);
            put16(data, 12, V4::ETHERTYPE);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (V6::from(source), V6::from(destination));
            write_v6(outer, protocol, inherited, source, destination);
            wrap::<A, V6>(&mut outer[V6::HEADER..], tunnel, flow, source, destination);
            put16(data, 12, V6::ETHERTYPE);
        }
        // The source is chosen by the destination's family.
        _ => debug_assert!(false, "a tunnel between families"),
    }
    address(packet, hop);
}

/// What the outer header takes from the inner one.
#[derive(Clone, Copy)]
struct Inherited {
    ttl: u8,
    tos: u8,
    whole: bool,
    id: u16,
}

/// `INET_ECN_encapsulate`: what the inner packet says of congestion, but not that it has met some.
fn encapsulate_ecn(tos: u8) -> u8 {
    const CONGESTED: u8 = 0b11;
    const CAPABLE_0: u8 = 0b10;
    if tos & CONGESTED == CONGESTED { tos & !CONGESTED | CAPABLE_0 } else { tos }
}

fn inner_protocol<A: Address>(tunnel: Tunnel) -> u8 {
    match tunnel.kind {
        TunnelKind::Ipip => bare_protocol::<A>(),
        TunnelKind::Gue => UDP,
        TunnelKind::Gre => GRE,
    }
}

fn bare_protocol<A: Address>() -> u8 {
    if A::ETHERTYPE == V4::ETHERTYPE { IPV4_IN_IP } else { IPV6_IN_IP }
}

fn write_v4(ip: &mut [u8], protocol: u8, inherited: Inherited, source: V4, destination: V4) {
    let total = ip.len();
    V4::write_header(&mut ip[..V4::HEADER], total - V4::HEADER, protocol, None, source, destination);
    ip[1] = inherited.tos;
    put32(ip, 4, if inherited.whole { 0x4000 } else { u32::from(inherited.id) << 16 });
    ip[8] = inherited.ttl;
    put16(ip, 10, 0);
    let checksum = Sum::default().bytes(&ip[..V4::HEADER]).field();
    put16(ip, 10, checksum);
}

fn write_v6(ip: &mut [u8], protocol: u8, inherited: Inherited, source: V6, destination: V6) {
    let total = ip.len();
    V6::write_header(&mut ip[..V6::HEADER], total - V6::HEADER, protocol, None, source, destination);
    put32(ip, 0, 6 << 28 | u32::from(inherited.tos) << 20);
    ip[7] = inherited.ttl;
}

/// Writes what stands between the two IP headers. `payload` is everything behind the outer one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_is_not_copied_out() {
        assert_eq!(encapsulate_ecn(0xb9), 0xb9);
        assert_eq!(encapsulate_ecn(0xbb), 0xba);
        assert_eq!(encapsulate_ecn(0), 0);
    }
}

//! Between the families: an IPv4 packet becomes an IPv6 one, or the other way round, as RFC 7915 has it, with other ends.
//!
//! The transport header and its data stay where they are, and a new IP header is written before them: traffic class and time to live are the old one's, the
//! time to live less one. TCP and UDP checksums cover the addresses and are adjusted. Fragments stay fragments; options and extension headers end
//! here (RFC 7915 §4.1, §5.1). An ICMP error is written anew around what it quotes, which is translated too, since that is how its receiver tells
//! which connection is meant.

use super::nat::{self, End};
use super::{address, ip};
use crate::forward::icmp::{self, Quote};
use crate::packet::address::Onward;
use crate::packet::checksum::{Change, Sum, pseudo_header, write_sctp_crc};
use crate::packet::parse::ETHERNET;
use crate::packet::protocol::SCTP;
use crate::packet::{Address, Meta, Packet, Tuple, V4, V6, be16, be32, put16, put32};
use crate::service::Hop;

/// Bytes of an ICMP error before its quote.
const HEADER: usize = 8;

/// The longest IPv4 packet that every IPv6 link takes when it has become IPv6 (RFC 7915 §5.1).
const SHORT: usize = 1260;

/// Bytes that a packet of family `A` grows by on its way to the other one; it shrinks when this is negative.
const fn growth<A: Address>() -> i32 {
    if A::HEADER == V4::HEADER { 20 } else { -20 }
}

/// Bytes of a packet of family `A` that fit a link of the other family that takes `mtu`, or what every path of its own takes: shorter ones nobody sends who is told
/// to (RFC 8201 §4), and they may be cut up on IPv4.
pub fn fits<A: Address>(mtu: u16) -> u16 {
    (i32::from(mtu) - growth::<A>()).clamp(A::LEAST_MTU.into(), 0xffff) as u16
}

/// Translates a packet and sends it to `hop`. `id` names an IPv4 packet that may be cut up. `false`, with the packet destroyed, where that cannot be done:
/// a fragment of a datagram without checksum, or no room before the packet.
pub fn translate<A: Address, B: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    (source, source_port): End<B>,
    (destination, destination_port): End<B>,
    id: u16,
    hop: &Hop,
) -> bool {
    let (old_ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    let onward = Onward {
        // It wraps for a packet that is to keep its own.
        ttl: A::hops_left(old_ip).wrapping_sub(1),
        tos: A::tos(old_ip),
        fragment: meta.fragment,
        may_be_cut: if A::ROUTERS_FRAGMENT {
            !A::forbids_fragments(old_ip)
        } else {
            segment.len() <= SHORT - V4::HEADER
        },
        id,
    };
    let old = A::read(old_ip, A::DESTINATION).sum(A::read(old_ip, A::SOURCE).sum(Sum::default()));
    let new = destination.sum(source.sum(Sum::default()));
    if !meta.is_later_fragment() {
        let change = Change::default()
            .replaced(old, new)
            .word(be16(segment, 0), source_port)
            .word(be16(segment, 2), destination_port);
        put16(segment, 0, source_port);
        put16(segment, 2, destination_port);
        if meta.tuple.protocol == SCTP {
            write_sctp_crc(segment);
        } else if !nat::adjust_checksum(segment, meta, change, || (source, destination)) {
            return false;
        }
    }
    let transport = packet.start() + usize::from(meta.transport);
    let length = usize::from(meta.end - meta.transport);
    head(packet, transport, length, meta.tuple.protocol, &onward, (source, destination), hop)
}

/// Writes an IP header of family `B`, and an Ethernet header, before `length` bytes at `transport` of the chunk. `false` when there is no room.
fn head<B: Address>(
    packet: &mut Packet,
    transport: usize,
    length: usize,
    protocol: u8,
    onward: &Onward,
    (source, destination): (B, B),
    hop: &Hop,
) -> bool {
    let header = B::onward_header(onward);
    let Some(start) = transport.checked_sub(ETHERNET + header) else { return false };
    packet.set_extent(start, ETHERNET + header + length);
    let data = packet.data();
    put16(data, 12, B::ETHERTYPE);
    B::write_onward(&mut data[ETHERNET..ETHERNET + header], length, protocol, onward, source, destination);
    address(packet, hop);
    true
}

/// Translates an ICMP error that goes from `source` to `destination` and quotes what is `quoted` on their side; sends it to `hop`. `false` when there is no such error
/// in the other family.
pub fn error<A: Address, B: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    quote: &Quote<A>,
    (source, destination): (B, B),
    quoted: &Tuple<B>,
    hop: &Hop,
) -> bool {
    let data = &packet.data()[..usize::from(meta.end)];
    let message = &data[usize::from(meta.transport)..];
    let Some((kind, code, rest)) = kind::<A>(message[0], message[1], be32(message, 4)) else { return false };
    let inner = &data[quote.network()..];
    let header = quote.transport() - quote.network();
    let onward = Onward {
        ttl: A::hops_left(inner),
        tos: A::tos(inner),
        fragment: None,
        may_be_cut: A::ROUTERS_FRAGMENT && !A::forbids_fragments(inner),
        id: 0,
    };
    // What the quoted packet's header says that there was, not what is left of it here.
    let whole = A::payload_length(inner, header);
    let segment = &inner[header..];

    let mut out = [0; V6_ERROR];
    let inner_header = B::onward_header(&onward);
    let room = B::LONGEST_ERROR - B::HEADER - HEADER - inner_header;
    let kept = segment.len().min(room);
    let length = HEADER + inner_header + kept;
    let out = &mut out[..length];
    out[..4].copy_from_slice(&[kind, code, 0, 0]);
    put32(out, 4, rest);
    let (inner_ip, new_segment) = out[HEADER..].split_at_mut(inner_header);
    B::write_onward(inner_ip, whole, quote.tuple.protocol, &onward, quoted.source, quoted.destination);
    new_segment.copy_from_slice(&segment[..kept]);
    let old_sum = quote.tuple.destination.sum(quote.tuple.source.sum(Sum::default()));
    let new_sum = quoted.destination.sum(quoted.source.sum(Sum::default()));
    let change = Change::default()
        .replaced(old_sum, new_sum)
        .word(be16(new_segment, 0), quoted.source_port)
        .word(be16(new_segment, 2), quoted.destination_port);
    put16(new_segment, 0, quoted.source_port);
    put16(new_segment, 2, quoted.destination_port);
    icmp::adjust_quoted(new_segment, quote.tuple.protocol, change);
    let begin = if B::HEADER == V4::HEADER {
        Sum::default()
    } else {
        pseudo_header(source, destination, B::ICMP, length as u16)
    };
    let checksum = begin.bytes(out).field();
    put16(out, 2, checksum);

    let outer = Onward {
        ttl: A::hops_left(&data[usize::from(meta.network)..]).wrapping_sub(1),
        tos: A::tos(&data[usize::from(meta.network)..]),
        fragment: None,
        may_be_cut: true,
        id: 0,
    };
    // A message that has grown may reach further than the frame did; there is room for it behind a header of the new family.
    let transport = (packet.start() + usize::from(meta.transport)).max(ETHERNET + B::HEADER);
    if transport + length > packet.chunk.len() {
        return false;
    }
    packet.chunk[transport..transport + length].copy_from_slice(out);
    head(packet, transport, length, B::ICMP, &outer, (source, destination), hop)
}

/// The longest ICMPv6 error.
const V6_ERROR: usize = 1280;

/// Type, code and the word after the checksum in the other family (RFC 7915 §4.2, §5.2). `None` for what has no counterpart.
fn kind<A: Address>(kind: u8, code: u8, rest: u32) -> Option<(u8, u8, u32)> {
    let same = |kind, code| Some((kind, code, 0));
    if A::HEADER == V4::HEADER {
        match (kind, code) {
            // Also of a router that does not say (RFC 1191 §7.1).
            (3, 4) => Some((2, 0, fits::<V6>(rest as u16).into())),
            (3, 0 | 1 | 5..=8 | 11 | 12) => same(1, 0),
            (3, 3) => same(1, 4),
            (3, 9 | 10 | 13 | 15) => same(1, 1),
            // The protocol is named by the pointer, to the next header field.
            (3, 2) => Some((4, 1, 6)),
            (11, code) => same(3, code),
            _ => None,
        }
    } else {
        match (kind, code) {
            (1, 0 | 2 | 3) => same(3, 1),
            (1, 1) => same(3, 10),
            (1, 4) => same(3, 3),
            (2, _) => Some((3, 4, rest.saturating_sub(20).clamp(68, 0xffff))),
            (3, code) => same(11, code),
            (4, 1) => same(3, 2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_of_less_than_every_ipv6_path_takes() {
        for (of_v4, of_v6) in [(0, 1280), (1006, 1280), (1260, 1280), (1400, 1420), (0xffff, 0xffff)] {
            assert_eq!(fits::<V6>(of_v4), of_v6);
            assert_eq!(kind::<V4>(3, 4, of_v4.into()), Some((2, 0, of_v6.into())));
        }
        assert_eq!(kind::<V6>(2, 0, 1280), Some((3, 4, 1260)));
    }
}

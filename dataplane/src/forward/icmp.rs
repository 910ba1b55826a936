//! ICMP errors: those the director sends itself, and those about a connection that pass through it (RFC 792, RFC 1122 §3.2.2,
//! RFC 5508 for NAT).
//!
//! An error quotes the packet that caused it. Seen from the side that the quoted packet came from, its addresses are not the
//! ones the director's other side knows, so under NAT the quote is translated along with the outer header; otherwise the
//! host could not tell which of its connections is meant, and path MTU discovery would not work.

use super::{HEADER_CHECKSUM, Hop, TTL, age, frame};
use crate::packet::checksum::{Change, Sum};
use crate::packet::parse::ETHERNET;
use crate::packet::{Meta, Packet, Tuple, V4, be16, be32, put16, put32};

pub(super) const ADDRESS_SOURCE: usize = 12;
pub(super) const ADDRESS_DESTINATION: usize = 16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// RFC 1812 §4.3.2.3: an error is no longer than this, headers included.
const LONGEST: usize = 576;

/// An error that the director sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The time to live ran out here.
    TimeExceeded,
    /// No real server takes the connection.
    PortUnreachable,
    /// There is no way to the real server.
    HostUnreachable,
    /// The packet must not be cut up and is longer than this.
    FragmentationNeeded(u16),
}

impl Problem {
    /// Type, code, and the word after the checksum.
    fn header(self) -> (u8, u8, u32) {
        match self {
            Problem::TimeExceeded => (11, 0, 0),
            Problem::PortUnreachable => (3, 3, 0),
            Problem::HostUnreachable => (3, 1, 0),
            Problem::FragmentationNeeded(mtu) => (3, 4, u32::from(mtu)),
        }
    }

    /// Whether the sender's allowance counts (`icmpv4_mask_allow`: path MTU discovery is exempt).
    pub fn is_limited(self) -> bool {
        !matches!(self, Problem::FragmentationNeeded(_))
    }
}

/// Turns the packet into an error about itself, from `source` to its sender. The Ethernet addresses are the caller's to write.
pub fn answer(packet: &mut Packet, meta: &Meta, problem: Problem, source: V4) {
    const HEADERS: usize = ETHERNET + 20 + 8;
    let quoted = usize::from(meta.end - meta.network).min(LONGEST - 28);
    // The quote stays where it is when there is room before it, as there is in every frame that a port received.
    let at = packet.start + usize::from(meta.network);
    let quote = at.max(HEADERS);
    packet.chunk.copy_within(at..at + quoted, quote);
    packet.start = quote - HEADERS;
    packet.len = HEADERS + quoted;

    let data = packet.data();
    data[12..14].copy_from_slice(&[0x08, 0x00]);
    let (ip, message) = data[ETHERNET..].split_at_mut(20);
    // The kernel marks errors "internetwork control" and keeps the rest of the sender's TOS (`icmp_send`).
    let tos = message[8 + 1] & 0x1e | 0xc0;
    write_ip_header(ip, 28 + quoted, tos, false, ICMP, source, meta.tuple.source);
    let (kind, code, rest) = problem.header();
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    put32(message, 4, rest);
    let checksum = Sum::default().bytes(message).field();
    put16(message, 2, checksum);
}

/// Writes an IPv4 header of 20 bytes, time to live 64.
pub(super) fn write_ip_header(
    ip: &mut [u8],
    total: usize,
    tos: u8,
    whole: bool,
    protocol: u8,
    source: V4,
    destination: V4,
) {
    ip[..2].copy_from_slice(&[0x45, tos]);
    put16(ip, 2, total as u16);
    put32(ip, 4, if whole { 0x4000 } else { 0 });
    ip[TTL] = 64;
    ip[9] = protocol;
    put16(ip, HEADER_CHECKSUM, 0);
    put32(ip, ADDRESS_SOURCE, source.0);
    put32(ip, ADDRESS_DESTINATION, destination.0);
    let checksum = Sum::default().bytes(&ip[..20]).field();
    put16(ip, HEADER_CHECKSUM, checksum);
}

/// An error on its way through, about a packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The quoted packet's own tuple.
    pub tuple: Tuple<V4>,
    /// Offset of the quoted IP header in the frame.
    network: u16,
    /// Offset of the quoted transport header in the frame.
    transport: u16,
}

/// What an ICMP packet is to the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An error that quotes a TCP or UDP packet, ports included.
    Error(Quote),
    /// An error that quotes too little, or something the director does not know.
    Unusable,
    /// Echo and everything else that is the kernel's.
    Other,
}

/// Reads an ICMP packet. IPVS follows unreachable, source quench and time exceeded.
pub fn read(packet: &mut Packet, meta: &Meta) -> Message {
    let transport = usize::from(meta.transport);
    let message = &packet.data()[transport..usize::from(meta.end)];
    if !matches!(message[0], 3 | 4 | 11) {
        return Message::Other;
    }
    let inner = &message[8..];
    if inner.len() < 20 || inner[0] >> 4 != 4 {
        return Message::Unusable;
    }
    let header = usize::from(inner[0] & 0xf) * 4;
    let protocol = inner[9];
    // Eight bytes of the transport header are the least a quote must have (RFC 792). A later fragment has no ports.
    if header < 20
        || inner.len() < header + 8
        || be16(inner, 6) & 0x1fff != 0
        || !matches!(protocol, TCP | UDP)
    {
        return Message::Unusable;
    }
    Message::Error(Quote {
        tuple: Tuple {
            source: V4(be32(inner, ADDRESS_SOURCE)),
            destination: V4(be32(inner, ADDRESS_DESTINATION)),
            source_port: be16(inner, header),
            destination_port: be16(inner, header + 2),
            protocol,
        },
        network: (transport + 8) as u16,
        transport: (transport + 8 + header) as u16,
    })
}

/// Whether the message's own checksum is right. IPVS refuses to translate one that is not.
pub fn is_sound(packet: &mut Packet, meta: &Meta) -> bool {
    let message = &packet.data()[usize::from(meta.transport)..usize::from(meta.end)];
    Sum::default().bytes(message).field() == 0
}

/// Which addresses of an error change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It goes to the real server: outer destination, quoted source.
    ToServer,
    /// It goes to the client: outer source, quoted destination.
    ToClient,
}

/// Translates an error about a NAT connection: `address` and `port` take the place of the other side's, outside and in the quote. Sends
/// it to `hop`.
pub fn translate(
    packet: &mut Packet,
    meta: &Meta,
    quote: &Quote,
    side: Side,
    address: V4,
    port: u16,
    hop: &Hop,
) {
    let (outer_at, inner_at, port_at) = match side {
        Side::ToServer => (ADDRESS_DESTINATION, ADDRESS_SOURCE, 0),
        Side::ToClient => (ADDRESS_SOURCE, ADDRESS_DESTINATION, 2),
    };
    let (network, transport, end) =
        (usize::from(meta.network), usize::from(meta.transport), usize::from(meta.end));
    let data = &mut packet.data()[..end];

    // The quote: address, port, its IP checksum, and its transport checksum if that was quoted too.
    let (inner, segment) =
        data[usize::from(quote.network)..].split_at_mut(usize::from(quote.transport - quote.network));
    let change = Change::default().address(be32(inner, inner_at), address.0);
    put32(inner, inner_at, address.0);
    let checksum = change.apply(be16(inner, HEADER_CHECKSUM));
    put16(inner, HEADER_CHECKSUM, checksum);
    let change = change.word(be16(segment, port_at), port);
    put16(segment, port_at, port);
    let checksum_at = if quote.tuple.protocol == TCP { 16 } else { 6 };
    if segment.len() >= checksum_at + 2 && (quote.tuple.protocol == TCP || be16(segment, 6) != 0) {
        let checksum = change.apply(be16(segment, checksum_at));
        put16(segment, checksum_at, checksum);
    }

    // The message: recomputed, for it is rare and short.
    let message = &mut data[transport..];
    put16(message, 2, 0);
    let checksum = Sum::default().bytes(message).field();
    put16(message, 2, checksum);

    // The outer header.
    let ip = &mut data[network..transport];
    let change = Change::default().address(be32(ip, outer_at), address.0);
    put32(ip, outer_at, address.0);
    let checksum = change.apply(be16(ip, HEADER_CHECKSUM));
    put16(ip, HEADER_CHECKSUM, checksum);
    age(ip);
    frame(packet, meta, hop);
}

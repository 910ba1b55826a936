//! ICMP errors: those the director sends itself, and those about a connection that pass through it (RFC 792, RFC 1122 §3.2.2, RFC 4443,
//! RFC 5508 for NAT).
//!
//! An error quotes the packet that caused it. Seen from the side that the quoted packet came from, its addresses are not the
//! ones the director's other side knows, so under NAT the quote is translated along with the outer header; otherwise the
//! host could not tell which of its connections is meant, and path MTU discovery would not work.

use super::{Hop, frame, ip};
use crate::packet::checksum::{Change, Sum, pseudo_header};
use crate::packet::parse::{ETHERNET, Upper, upper};
use crate::packet::protocol::{ICMP, SCTP, TCP, UDP};
use crate::packet::{Address, Meta, Packet, Tuple, be16, put16, put32};

/// Bytes of an error before its quote.
pub(super) const HEADER: usize = 8;

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
    TooBig(u16),
    /// What somebody further on has said, by type and code.
    Reported(u8, u8),
}

impl Problem {
    /// Type, code, and the word after the checksum.
    fn header<A: Address>(self) -> (u8, u8, u32) {
        match (self, A::ICMP == ICMP) {
            (Problem::TimeExceeded, true) => (11, 0, 0),
            (Problem::PortUnreachable, true) => (3, 3, 0),
            (Problem::HostUnreachable, true) => (3, 1, 0),
            (Problem::TooBig(mtu), true) => (3, 4, u32::from(mtu)),
            (Problem::TimeExceeded, false) => (3, 0, 0),
            (Problem::PortUnreachable, false) => (1, 4, 0),
            (Problem::HostUnreachable, false) => (1, 3, 0),
            (Problem::TooBig(mtu), false) => (2, 0, u32::from(mtu)),
            (Problem::Reported(kind, code), _) => (kind, code, 0),
        }
    }

    /// Whether the sender's allowance counts (`icmpv4_mask_allow`, `icmpv6_mask_allow`: path MTU discovery is exempt).
    pub fn is_limited(self) -> bool {
        !matches!(self, Problem::TooBig(_))
    }
}

/// Turns the packet into an error about itself, from `source` to its sender. The Ethernet addresses are the caller's to write.
pub fn answer<A: Address>(packet: &mut Packet, meta: &Meta<A>, problem: Problem, source: A) {
    let headers = ETHERNET + A::HEADER + HEADER;
    let quoted = usize::from(meta.length()).min(A::LONGEST_ERROR - A::HEADER - HEADER);
    // The quote stays where it is when there is room before it, as there is in every frame that a port received.
    let at = packet.start() + usize::from(meta.network);
    let quote = at.max(headers);
    packet.chunk.copy_within(at..at + quoted, quote);
    packet.set_extent(quote - headers, headers + quoted);

    let data = packet.data();
    put16(data, 12, A::ETHERTYPE);
    let (ip, message) = data[ETHERNET..].split_at_mut(A::HEADER);
    let tos = message[HEADER + 1];
    A::write_header(ip, message.len(), A::ICMP, Some(tos), source, meta.tuple.source);
    let (kind, code, rest) = problem.header::<A>();
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    put32(message, 4, rest);
    let checksum = sum(message, source, meta.tuple.source).field();
    put16(message, 2, checksum);
}

/// The sum of a message. ICMPv6 covers the pseudo header too (RFC 4443 §2.3).
fn sum<A: Address>(message: &[u8], source: A, destination: A) -> Sum {
    let begin = if A::ICMP == ICMP {
        Sum::default()
    } else {
        pseudo_header(source, destination, A::ICMP, message.len() as u16)
    };
    begin.bytes(message)
}

/// An error on its way through, about a packet that it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<A> {
    /// The quoted packet's own tuple.
    pub tuple: Tuple<A>,
    /// Offset of the quoted IP header in the frame.
    network: u16,
    /// Offset of the quoted transport header in the frame.
    transport: u16,
}

impl<A> Quote<A> {
    /// Offset of the quoted IP header in the frame.
    pub fn network(&self) -> usize {
        self.network.into()
    }

    /// Offset of the quoted transport header in the frame.
    pub fn transport(&self) -> usize {
        self.transport.into()
    }
}

/// What an ICMP packet is to the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<A> {
    /// An error that quotes a TCP, UDP or SCTP packet, ports included.
    Error(Quote<A>),
    /// An error that quotes too little, or something the director does not know.
    Unusable,
    /// Echo and everything else that is the kernel's.
    Other,
}

/// Reads an ICMP packet. IPVS follows unreachable, source quench and time exceeded of IPv4, and every error of IPv6.
pub fn read<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> Message<A> {
    let transport = usize::from(meta.transport);
    let message = &packet.data()[transport..usize::from(meta.end)];
    if !is_error::<A>(message) {
        return Message::Other;
    }
    let Some((tuple, header)) = quoted::<A>(&message[HEADER..]) else { return Message::Unusable };
    Message::Error(Quote {
        tuple,
        network: (transport + HEADER) as u16,
        transport: (transport + HEADER + header) as u16,
    })
}

/// Whether a message is an error that IPVS follows.
pub(super) fn is_error<A: Address>(message: &[u8]) -> bool {
    if A::ICMP == ICMP { matches!(message[0], 3 | 4 | 11) } else { message[0] < 128 }
}

/// The tuple of the packet that a quote begins with, and the length of its IP header.
pub(super) fn quoted<A: Address>(quote: &[u8]) -> Option<(Tuple<A>, usize)> {
    let (header, protocol) = header::<A>(quote)?;
    // Eight bytes of the transport header are the least a quote must have (RFC 792).
    if quote.len() < header + 8 || !matches!(protocol, TCP | UDP | SCTP) {
        return None;
    }
    let tuple = Tuple {
        source: A::read(quote, A::SOURCE),
        destination: A::read(quote, A::DESTINATION),
        source_port: be16(quote, header),
        destination_port: be16(quote, header + 2),
        protocol,
    };
    Some((tuple, header))
}

/// The length of the IP header that a quote begins with, extension headers included, and what follows it. A later fragment is none: nothing of use follows.
pub(super) fn header<A: Address>(quote: &[u8]) -> Option<(usize, u8)> {
    if quote.len() < A::HEADER {
        return None;
    }
    let (header, protocol, is_first) = match (A::ICMP == ICMP, quote[0] >> 4) {
        (true, 4) => (usize::from(quote[0] & 0xf) * 4, quote[9], be16(quote, 6) & 0x1fff == 0),
        (false, 6) => {
            let Upper { at, protocol, fragment } = upper(quote)?;
            (at, protocol, fragment.is_none_or(|part| part.offset == 0))
        }
        _ => return None,
    };
    (A::HEADER..=quote.len()).contains(&header).then_some((header, protocol)).filter(|_| is_first)
}

/// Whether the message's own checksum is right. IPVS refuses to translate one that is not.
pub fn is_sound<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> bool {
    let message = &packet.data()[usize::from(meta.transport)..usize::from(meta.end)];
    sum(message, meta.tuple.source, meta.tuple.destination).field() == 0
}

/// What an error about a translated connection becomes.
#[derive(Clone, Copy, Debug)]
pub struct Translated<A> {
    /// The outer source address.
    pub source: A,
    /// The outer destination address.
    pub destination: A,
    /// The tuple of the packet it quotes.
    pub quoted: Tuple<A>,
}

/// Translates an error about a NAT or FullNAT connection, outside and in the quote. Sends it to `hop`.
pub fn translate<A: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    quote: &Quote<A>,
    new: &Translated<A>,
    hop: &Hop,
) {
    let data = &mut packet.data()[..usize::from(meta.end)];

    // The quote: addresses, ports and checksums.
    let (inner, segment) =
        data[usize::from(quote.network)..].split_at_mut(usize::from(quote.transport - quote.network));
    let change = readdress(inner, new.quoted.source, new.quoted.destination);
    let change = change
        .word(be16(segment, 0), new.quoted.source_port)
        .word(be16(segment, 2), new.quoted.destination_port);
    put16(segment, 0, new.quoted.source_port);
    put16(segment, 2, new.quoted.destination_port);
    adjust_quoted(segment, quote.tuple.protocol, change);

    // The outer header, then the message: its sum is taken anew, for it is rare and short.
    let (outer, message) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    readdress(outer, new.source, new.destination);
    A::age(outer, Change::default());
    put16(message, 2, 0);
    let checksum = sum(message, new.source, new.destination).field();
    put16(message, 2, checksum);
    frame(packet, meta, hop);
}

/// Adjusts the transport checksum of a quoted packet, if that was quoted too and is a sum.
pub(super) fn adjust_quoted(segment: &mut [u8], protocol: u8, change: Change) {
    let checksum_at = match protocol {
        TCP => Some(16),
        UDP => Some(6).filter(|_| be16(segment, 6) != 0),
        // A CRC would need the whole packet.
        _ => None,
    };
    if let Some(at) = checksum_at.filter(|at| segment.len() >= at + 2) {
        let checksum = change.apply(be16(segment, at));
        put16(segment, at, checksum);
    }
}

/// Gives a header other addresses. Says how that changes sums that cover them.
fn readdress<A: Address>(ip: &mut [u8], source: A, destination: A) -> Change {
    let change = A::read(ip, A::SOURCE).becomes(source, Change::default());
    let change = A::read(ip, A::DESTINATION).becomes(destination, change);
    source.write(ip, A::SOURCE);
    destination.write(ip, A::DESTINATION);
    A::adjust_header(ip, change);
    change
}

//! PROXY protocol: a header before a client's data that tells a FullNAT real server who the client is (HAProxy's `proxy-protocol.txt`, versions 1 and 2).
//!
//! The header is the director's own addition to the client's stream. It goes with the segment that completes the handshake, so a server that speaks first
//! has it too, and again before each segment that begins where the client's data begins, until the server has acknowledged it: so it is as
//! reliable as the client's own data. A bare acknowledgement carries it; before data it goes in a segment of its own. From then on the client's
//! bytes are counted so many further on ([`sequence`](super::sequence)).

use std::fmt::Write;
use std::net::IpAddr;

use arrayvec::{ArrayString, ArrayVec};

use super::ip;
use crate::packet::checksum::{Change, Sum, pseudo_header};
use crate::packet::parse::tcp_flags;
use crate::packet::protocol::TCP;
use crate::packet::{Address, Meta, Packet, be16, be32, put16, put32};

/// The longest header: that of version 1 with two IPv6 addresses in full, line end included.
const LONGEST: usize = 107;

/// A header.
pub type Header = ArrayVec<u8, LONGEST>;

/// Which header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    One,
    /// Binary.
    Two,
}

/// The header for a connection of a client to a virtual service, which are of one family.
pub fn header(version: Version, client: (IpAddr, u16), service: (IpAddr, u16)) -> Header {
    match version {
        Version::One => {
            let mut line = ArrayString::<LONGEST>::new();
            let family = if client.0.is_ipv4() { 4 } else { 6 };
            // 107 bytes are enough for any two addresses, so that it cannot fail.
            let _ =
                write!(line, "PROXY TCP{family} {} {} {} {}\r\n", client.0, service.0, client.1, service.1);
            line.bytes().collect()
        }
        Version::Two => {
            let mut header = Header::new();
            header.extend(*b"\r\n\r\n\0\r\nQUIT\n");
            // Version 2, on somebody's behalf.
            header.push(0x21);
            match (client.0, service.0) {
                (IpAddr::V4(client), IpAddr::V4(service)) => {
                    header.extend([0x11, 0, 12]);
                    header.extend(client.octets().into_iter().chain(service.octets()));
                }
                (client, service) => {
                    header.extend([0x21, 0, 36]);
                    let octets = |address| match address {
                        IpAddr::V4(address) => std::net::Ipv4Addr::to_ipv6_mapped(&address).octets(),
                        IpAddr::V6(address) => address.octets(),
                    };
                    header.extend(octets(client).into_iter().chain(octets(service)));
                }
            }
            header.extend(client.1.to_be_bytes().into_iter().chain(service.1.to_be_bytes()));
            header
        }
    }
}

/// Puts the header into a segment without data. `false` when there is no room.
pub fn ride<A: Address>(packet: &mut Packet, meta: &mut Meta<A>, header: &Header, mtu: u16) -> bool {
    let more = header.len() as u16;
    let end = packet.start() + usize::from(meta.end);
    if meta.length() + more > mtu || end + header.len() > packet.chunk.len() {
        return false;
    }
    // What Ethernet padded the frame with is overwritten.
    packet.chunk[end..end + header.len()].copy_from_slice(header);
    meta.end += more;
    packet.set_len(usize::from(meta.end));
    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    let old = be16(segment, 12);
    segment[13] |= tcp_flags::PSH;
    // A TCP header is a multiple of four bytes, so the data is at an even place.
    let change = Change::default().word(old, be16(segment, 12)).inserted(Sum::default().bytes(header));
    let change = A::lengthen(ip, more, change);
    let checksum = change.apply(be16(segment, 16));
    put16(segment, 16, checksum);
    true
}

/// Writes the header as a segment of its own, to go before the finished frame of a client's first data: the same in all but its data and the number of that. `headers`
/// are where the frame's IP header, its TCP header and its data begin; `out` is as long as what comes before the data and the header.
pub fn alone<A: Address>(
    frame: &[u8],
    (network, transport, data): (usize, usize, usize),
    header: &Header,
    out: &mut [u8],
) {
    out[..data].copy_from_slice(&frame[..data]);
    out[data..].copy_from_slice(header);
    let (ip, segment) = out[network..].split_at_mut(transport - network);
    let (old, new) = (frame.len() - network, ip.len() + segment.len());
    A::lengthen(ip, (new as u16).wrapping_sub(old as u16), Change::default());
    let number = be32(segment, 4).wrapping_sub(header.len() as u32);
    put32(segment, 4, number);
    segment[13] = tcp_flags::ACK | tcp_flags::PSH;
    put16(segment, 16, 0);
    let (source, destination) = (A::read(ip, A::SOURCE), A::read(ip, A::DESTINATION));
    let checksum = pseudo_header(source, destination, TCP, segment.len() as u16).bytes(segment).field();
    put16(segment, 16, checksum);
}

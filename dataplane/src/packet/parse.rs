//! One pass over a frame: what it is, where its headers are, which tuple it carries.
//!
//! The pass follows the kernel's own order of checks (`ip_rcv`): a header that IP itself would refuse is dropped here under a
//! reason of its own; what is not for the director is passed.

use super::address::FRAGMENT;
use super::checksum::{Sum, is_right_header};
use super::protocol::{SCTP, TCP, UDP};
use super::{Address, Tuple, V4, V6, be16, be32, tags};
use crate::stats::Reason;

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;

/// At most this many IPv6 extension headers are walked. Real packets have one or two; a chain of them only serves to slow routers
/// down.
const MAX_EXTENSIONS: usize = 8;

/// Length of SCTP's common header: ports, tag, CRC.
pub const SCTP_HEADER: usize = 12;

/// TCP flags as they stand in the header.
#[allow(missing_docs, reason = "their names say it")]
pub mod tcp_flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    /// Those that a connection's state depends on.
    pub const DECISIVE: u8 = FIN | SYN | RST | ACK;
}

/// Types of SCTP chunks (RFC 9260 §3.2), as far as they mean something to the director.
#[allow(missing_docs, reason = "their names say it")]
pub mod chunks {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    /// No type on the wire: a COOKIE ECHO or COOKIE ACK with an ABORT behind it.
    pub const COOKIE_AND_ABORT: u8 = 0xff;
}

/// What a frame is, in the few bytes the director needs.
///
/// Having one means: the IP header at `network` is whole (and an IPv4 header's checksum right), `network..end` lies inside the frame, and at
/// `transport` stands a whole TCP or UDP header (options not included), SCTP's header and that of its first chunk, or 8 bytes of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta<A> {
    /// Addresses, ports and protocol. An ICMP packet has ports 0.
    pub tuple: Tuple<A>,
    /// Offset of the IP header in the frame.
    pub network: u16,
    /// Offset of the transport header in the frame.
    pub transport: u16,
    /// Where the IP packet ends; Ethernet padding may follow.
    pub end: u16,
    /// TCP flags; for SCTP the type of the first chunk, one of [`chunks`] (what is not among them is DATA); 0 for other protocols.
    pub flags: u8,
    /// Which part of a datagram it is, if it is not a whole one.
    pub fragment: Option<Fragment>,
}

/// A part of a datagram (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What the parts of a datagram have in common, besides addresses and protocol.
    pub id: u32,
    /// Where it belongs in the datagram, in units of 8 bytes. The first part, at 0, has the transport header; a later one has none, and its
    /// ports are read as 0.
    pub offset: u16,
    /// Bytes of the datagram that it carries.
    pub length: u16,
    /// Whether it is not the last one.
    pub more: bool,
}

/// A packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// IPv4.
    V4(Meta<V4>),
    /// IPv6.
    V6(Meta<V6>),
}

impl<A> Meta<A> {
    /// Whether it is a later part of a datagram, without a transport header.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }

    /// Whether it is a whole segment or datagram of a transport protocol: no part of one, and no ICMP.
    #[inline]
    pub fn is_whole_transport(&self) -> bool
    where
        A: Address,
    {
        self.fragment.is_none() && self.tuple.protocol != A::ICMP
    }

    /// Bytes from the IP header on, as IPVS counts them.
    #[inline]
    pub fn length(&self) -> u16 {
        self.end - self.network
    }
}

/// Why a frame is neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// Not a kind of frame the director handles.
    Pass,
    /// A broken one.
    Drop(Reason),
}

/// Reads a frame.
///
/// # Errors
/// Says what to do with a frame that is not a whole IP packet of a protocol the director knows.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, NotOurs> {
    let (network, ethertype) = network_offset(frame)?;
    match ethertype {
        V4::ETHERTYPE => parse_v4(frame, network).map(Parsed::V4),
        V6::ETHERTYPE => parse_v6(frame, network).map(Parsed::V6),
        _ => Err(NotOurs::Pass),
    }
}

#[inline]
fn parse_v4(frame: &[u8], network: usize) -> Result<Meta<V4>, NotOurs> {
    let bytes = &frame[network..];
    // As an array: what is read of it needs no check.
    let Some(ip) = bytes.first_chunk::<{ V4::HEADER }>().filter(|ip| ip[0] >> 4 == 4) else {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    };
    let header = usize::from(ip[0] & 0xf) * 4;
    let total = usize::from(be16(ip, 2));
    if header < V4::HEADER || total < header || bytes.len() < total {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    }
    let is_right = match header {
        V4::HEADER => is_right_header(ip),
        _ => Sum::default().bytes(&bytes[..header]).field() == 0,
    };
    if !is_right {
        return Err(NotOurs::Drop(Reason::BadIpChecksum));
    }
    let part = be16(ip, 6);
    let is_fragment = part & 0x3fff != 0;
    let fragment = is_fragment.then(|| Fragment {
        id: be16(ip, 4).into(),
        offset: part & 0x1fff,
        length: (total - header) as u16,
        more: part & 0x2000 != 0,
    });
    transport(frame, network, network + header, network + total, ip[9], fragment)
}

#[inline]
fn parse_v6(frame: &[u8], network: usize) -> Result<Meta<V6>, NotOurs> {
    let ip = &frame[network..];
    if ip.len() < V6::HEADER || ip[0] >> 4 != 6 {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    }
    let total = V6::HEADER + usize::from(be16(ip, 4));
    if ip.len() < total {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    }
    let ip = &ip[..total];
    let Some(Upper { at, protocol, fragment }) = upper(ip) else {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    };
    transport(frame, network, network + at, network + total, protocol, fragment)
}

/// What an IPv6 packet carries behind its extension headers.
pub struct Upper {
    /// Where it begins.
    pub at: usize,
    /// Its protocol number.
    pub protocol: u8,
    /// Which part of a datagram it is. That of a later one is data, whatever it looks like.
    pub fragment: Option<Fragment>,
}

/// Walks the extension headers of a packet, which begins with a whole IPv6 header. `None` where they end before they are over, or do not end.
pub fn upper(ip: &[u8]) -> Option<Upper> {
    let (mut next, mut at, mut fragment) = (ip[6], V6::HEADER, None);
    for _ in 0..=MAX_EXTENSIONS {
        // Each extension says what comes next and how long it is (RFC 8200 §4, RFC 4302 §2.2).
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(*ip.get(at + 1)?) + 1) * 8,
            AUTHENTICATION => (usize::from(*ip.get(at + 1)?) + 2) * 4,
            FRAGMENT => {
                // An "atomic" fragment is a whole packet (RFC 6946).
                let part = ip.get(at + 2..at + 8).filter(|field| be16(field, 0) & 0xfff9 != 0);
                let of = |field: &[u8]| Fragment {
                    id: be32(field, 2),
                    offset: be16(field, 0) >> 3,
                    length: (ip.len() - at - 8) as u16,
                    more: field[1] & 1 != 0,
                };
                fragment = part.map(of).or(fragment);
                8
            }
            protocol => return Some(Upper { at, protocol, fragment }),
        };
        let after = at + length;
        if after > ip.len() {
            return None;
        }
        if next == FRAGMENT && fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Some(Upper { at: after, protocol: ip[at], fragment });
        }
        (next, at) = (ip[at], after);
    }
    None
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;

const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Reads the transport header at `at`, for the packet that reaches from `network` to `end`.
#[inline]
fn transport<A: Address>(
    frame: &[u8],
    network: usize,
    at: usize,
    end: usize,
    protocol: u8,
    fragment: Option<Fragment>,
) -> Result<Meta<A>, NotOurs> {
    let least = match protocol {
        TCP => 20,
        UDP => 8,
        SCTP => SCTP_HEADER + 4,
        protocol if protocol == A::ICMP => 8,
        _ => return Err(NotOurs::Pass),
    };
    let payload = &frame[at..end];
    let is_later = fragment.is_some_and(|fragment| fragment.offset != 0);
    if is_later {
        // RFC 1858, RFC 3128: a part that begins inside the transport header is meant to get past somebody.
        if payload.is_empty() || usize::from(fragment.map_or(0, |f| f.offset)) * 8 < least {
            return Err(NotOurs::Drop(Reason::TinyFragment));
        }
    } else if payload.len() < least {
        return Err(NotOurs::Drop(Reason::TruncatedTransport));
    }
    let has_ports = protocol != A::ICMP && !is_later;
    let (source_port, destination_port) =
        if has_ports { (be16(payload, 0), be16(payload, 2)) } else { (0, 0) };
    Ok(Meta {
        tuple: Tuple {
            source: A::read(frame, network + A::SOURCE),
            destination: A::read(frame, network + A::DESTINATION),
            source_port,
            destination_port,
            protocol,
        },
        network: network as u16,
        transport: at as u16,
        end: end as u16,
        flags: match protocol {
            TCP if !is_later => payload[13],
            SCTP if !is_later => chunk(payload),
            _ => 0,
        },
        fragment,
    })
}

/// The chunk that decides what an SCTP packet means: the first one, unless that is a cookie with an ABORT behind it.
#[inline]
fn chunk(packet: &[u8]) -> u8 {
    match packet[SCTP_HEADER] {
        kind @ (chunks::COOKIE_ECHO | chunks::COOKIE_ACK) => {
            let length = usize::from(be16(packet, SCTP_HEADER + 2));
            let second = SCTP_HEADER + length.next_multiple_of(4);
            let is_aborted =
                length >= 4 && packet.get(second..second + 4).is_some_and(|c| c[0] == chunks::ABORT);
            if is_aborted { chunks::COOKIE_AND_ABORT } else { kind }
        }
        kind if kind <= chunks::SHUTDOWN_COMPLETE => kind,
        _ => chunks::DATA,
    }
}

/// Where the packet begins, behind the Ethernet header and its tags, and its ethertype.
#[inline]
fn network_offset(frame: &[u8]) -> Result<(usize, u16), NotOurs> {
    let mut at = ETHERNET;
    for _ in 0..=tags::MOST {
        if frame.len() < at {
            return Err(NotOurs::Drop(Reason::TruncatedFrame));
        }
        match be16(frame, at - 2) {
            tags::VLAN | tags::QINQ => at += 4,
            ethertype => return Ok((at, ethertype)),
        }
    }
    Err(NotOurs::Pass)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN from 10.0.0.2:1000 to 10.9.0.1:80, as recorded from a real client.
    const SYN: &[u8] = &[
        0x02, 0x1b, 0, 0, 0, 0xc0, 0x02, 0xc0, 0, 0, 0, 0x02, 0x08, 0x00, 0x45, 0, 0, 0x28, 0x12, 0x34, 0x40,
        0, 0x40, 0x06, 0x14, 0x91, 0x0a, 0, 0, 0x02, 0x0a, 0x09, 0, 0x01, 0x03, 0xe8, 0, 0x50, 0, 0, 0x03,
        0xe8, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0x73, 0xb7, 0, 0,
    ];

    fn v4(frame: &[u8]) -> Meta<V4> {
        match parse(frame) {
            Ok(Parsed::V4(meta)) => meta,
            other => panic!("{other:?} is no IPv4"),
        }
    }

    fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
        let mut out = frame[..12].to_vec();
        for tag in tags {
            out.extend(tag.to_be_bytes());
            out.extend([0, 42]);
        }
        out.extend(&frame[12..]);
        out
    }

    #[test]
    fn a_syn_and_its_tagged_kin() {
        let meta = v4(SYN);
        assert_eq!(meta.tuple.source, V4(0x0a00_0002));
        assert_eq!((meta.tuple.source_port, meta.tuple.destination_port), (1000, 80));
        assert_eq!((meta.network, meta.transport, meta.end), (14, 34, 54));
        assert_eq!(meta.flags, tcp_flags::SYN);
        let vlan = v4(&tagged(SYN, &[0x8100]));
        assert_eq!((vlan.network, vlan.tuple), (18, meta.tuple));
        let qinq = v4(&tagged(SYN, &[0x88a8, 0x8100]));
        assert_eq!((qinq.network, qinq.tuple), (22, meta.tuple));
        assert_eq!(parse(&tagged(SYN, &[0x88a8, 0x8100, 0x8100])), Err(NotOurs::Pass));
    }

    #[test]
    fn each_defect_has_its_reason() {
        let with = |at: usize, value: u8| {
            let mut frame = SYN.to_vec();
            frame[at] = value;
            parse(&frame)
        };
        assert_eq!(with(13, 0x06), Err(NotOurs::Pass), "ARP");
        assert_eq!(with(14, 0x44), Err(NotOurs::Drop(Reason::BadIpHeader)), "header of 16 bytes");
        assert_eq!(with(14, 0x65), Err(NotOurs::Drop(Reason::BadIpHeader)), "version 6");
        assert_eq!(with(16, 0x40), Err(NotOurs::Drop(Reason::BadIpHeader)), "longer than the frame");
        assert_eq!(with(22, 0x41), Err(NotOurs::Drop(Reason::BadIpChecksum)), "ttl changed");
        assert_eq!(parse(&SYN[..13]), Err(NotOurs::Drop(Reason::TruncatedFrame)));
        assert_eq!(parse(&SYN[..40]), Err(NotOurs::Drop(Reason::BadIpHeader)));
    }

    /// Another parser's view of the same frame.
    #[test]
    fn a_syn_is_to_pnet_what_it_is_to_us() {
        use pnet::packet::Packet as _;
        use pnet::packet::ethernet::EthernetPacket;
        use pnet::packet::ipv4::{Ipv4Packet, checksum};
        use pnet::packet::tcp::TcpPacket;

        let ethernet = EthernetPacket::new(SYN).unwrap();
        let ip = Ipv4Packet::new(ethernet.payload()).unwrap();
        let tcp = TcpPacket::new(ip.payload()).unwrap();
        let meta = v4(SYN);
        assert_eq!(meta.tuple.source, V4::from(ip.get_source()));
        assert_eq!(meta.tuple.destination, V4::from(ip.get_destination()));
        assert_eq!(meta.tuple.protocol, ip.get_next_level_protocol().0);
        assert_eq!(meta.tuple.source_port, tcp.get_source());
        assert_eq!(meta.tuple.destination_port, tcp.get_destination());
        assert_eq!(meta.flags, tcp.get_flags());
        assert_eq!(checksum(&ip), ip.get_checksum());
    }

    /// An SCTP packet of these chunks: type, length as it says, bytes that follow.
    fn sctp(chunks: &[(u8, u16, &[u8])]) -> Result<u8, NotOurs> {
        let mut packet = vec![0; SCTP_HEADER];
        for (kind, length, bytes) in chunks {
            packet.extend([*kind, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend(*bytes);
        }
        let mut frame = SYN[..ETHERNET + 20].to_vec();
        frame[16..18].copy_from_slice(&(20 + packet.len() as u16).to_be_bytes());
        frame[23] = SCTP;
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[ETHERNET..]).field();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(packet);
        match parse(&frame)? {
            Parsed::V4(meta) => Ok(meta.flags),
            Parsed::V6(_) => panic!("IPv4 was written"),
        }
    }

    #[test]
    fn the_first_chunk_decides_unless_an_abort_follows_a_cookie() {
        assert_eq!(sctp(&[]), Err(NotOurs::Drop(Reason::TruncatedTransport)));
        assert_eq!(sctp(&[(chunks::INIT, 20, &[0; 16])]), Ok(chunks::INIT));
        assert_eq!(sctp(&[(64, 4, &[])]), Ok(chunks::DATA), "a type of later days");
        let abort = (chunks::ABORT, 4, &[][..]);
        assert_eq!(sctp(&[(chunks::ERROR, 4, &[]), abort]), Ok(chunks::ERROR));
        for cookie in [chunks::COOKIE_ECHO, chunks::COOKIE_ACK] {
            assert_eq!(sctp(&[(cookie, 4, &[])]), Ok(cookie));
            assert_eq!(sctp(&[(cookie, 4, &[]), abort]), Ok(chunks::COOKIE_AND_ABORT));
            assert_eq!(sctp(&[(cookie, 6, &[1, 2, 0, 0]), abort]), Ok(chunks::COOKIE_AND_ABORT), "padded");
            assert_eq!(sctp(&[(cookie, 6, &[1, 2]), abort]), Ok(cookie), "not padded");
            assert_eq!(sctp(&[(cookie, 3, &[]), abort]), Ok(cookie), "too short to be one");
            assert_eq!(sctp(&[(cookie, u16::MAX, &[]), abort]), Ok(cookie), "longer than the packet");
        }
    }

    /// A UDP datagram over IPv6 behind these extension headers.
    fn v6(extensions: &[(u8, &[u8])]) -> Vec<u8> {
        let datagram = [0x07, 0xd0, 0, 53, 0, 8, 0xff, 0xff];
        let length: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + datagram.len();
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length as u8, 0, 64]);
        frame.extend([0x20; 16]);
        frame.extend([0x30; 16]);
        let kinds = extensions.iter().map(|(kind, _)| *kind).chain([UDP]);
        frame[20] = kinds.clone().next().unwrap();
        for ((_, bytes), next) in extensions.iter().zip(kinds.skip(1)) {
            frame.push(next);
            frame.extend(&bytes[1..]);
        }
        frame.extend(datagram);
        frame
    }

    #[test]
    fn extension_headers_are_walked_and_bounded() {
        let plain = parse(&v6(&[])).unwrap();
        let Parsed::V6(plain) = plain else { panic!("IPv6") };
        assert_eq!((plain.network, plain.transport, plain.end), (14, 54, 62));
        assert_eq!((plain.tuple.source_port, plain.tuple.destination_port), (2000, 53));

        let options: &[u8] = &[0; 8];
        let long: &[u8] = &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let atomic: &[u8] = &[0; 8];
        let Ok(Parsed::V6(meta)) =
            parse(&v6(&[(HOP_BY_HOP, options), (DESTINATION_OPTIONS, long), (FRAGMENT, atomic)]))
        else {
            panic!("IPv6")
        };
        assert_eq!((meta.transport, meta.tuple), (54 + 32, plain.tuple));

        let first: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 7];
        let later: &[u8] = &[0, 0, 4, 0, 0, 0, 0, 7];
        let part = |fragment| match parse(&v6(&[(FRAGMENT, fragment)])) {
            Ok(Parsed::V6(meta)) => (meta.fragment, meta.tuple.destination_port),
            other => panic!("{other:?}"),
        };
        assert_eq!(part(first), (Some(Fragment { id: 7, offset: 0, length: 8, more: true }), 53));
        assert_eq!(part(later), (Some(Fragment { id: 7, offset: 0x80, length: 8, more: false }), 0));
        let many = [(DESTINATION_OPTIONS, options); MAX_EXTENSIONS + 1];
        assert!(parse(&v6(&many[1..])).is_ok());
        assert_eq!(parse(&v6(&many)), Err(NotOurs::Drop(Reason::BadIpHeader)));
        let mut cut = v6(&[(HOP_BY_HOP, options)]);
        cut[55] = 9;
        assert_eq!(
            parse(&cut),
            Err(NotOurs::Drop(Reason::BadIpHeader)),
            "an extension longer than the packet"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused_and_offsets_lie_inside(
            mut frame in prop::collection::vec(any::<u8>(), 0..200), mend in 0u8..3,
        ) {
            if mend == 2 && frame.len() >= 54 {
                frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                frame[18..20].copy_from_slice(&[0, 100]);
                frame[20] = [0, 43, 44, 51, 60, 6, 17, 58, 132][usize::from(frame[20] % 9)];
            }
            // Random bytes seldom get past the ethertype and the checksum; mend those, so that what follows is tried too.
            if mend == 1 && frame.len() >= 34 {
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[14] = 0x40 | (frame[14] & 0xf);
                frame[20..22].fill(0);
                let header = (usize::from(frame[14] & 0xf) * 4).max(20).min(frame.len() - 14);
                frame[24..26].fill(0);
                let field = Sum::default().bytes(&frame[14..14 + header]).field();
                super::super::put16(&mut frame, 24, field);
            }
            let (network, transport, end) = match parse(&frame) {
                Ok(Parsed::V4(meta)) => (meta.network, meta.transport, meta.end),
                Ok(Parsed::V6(meta)) => (meta.network, meta.transport, meta.end),
                Err(_) => return Ok(()),
            };
            prop_assert!(network < transport && transport < end);
            prop_assert!(usize::from(end) <= frame.len());
        }
    }
}

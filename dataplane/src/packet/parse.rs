//! One pass over a frame: what it is, where its headers are, which tuple it carries.
//!
//! The pass follows the kernel's own order of checks (`ip_rcv`): a header that IP itself would refuse is dropped here under a
//! reason of its own; what is not for the director is passed.

use super::checksum::Sum;
use super::{Tuple, V4, be16, be32};
use crate::stats::Reason;

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;

/// At most this many VLAN tags: 802.1Q inside 802.1ad (QinQ). More is nobody's frame.
const MAX_TAGS: usize = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// TCP flags as they stand in the header.
#[allow(missing_docs, reason = "their names say it")]
pub mod tcp_flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What a frame is, in the few bytes the director needs.
///
/// Having one means: the IPv4 header at `network` is whole and its checksum right, `network..end` lies inside the frame, and at
/// `transport` stands a whole TCP or UDP header (options not included), or 8 bytes of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Addresses, ports and protocol. An ICMP packet has ports 0.
    pub tuple: Tuple<V4>,
    /// Offset of the IPv4 header in the frame.
    pub network: u16,
    /// Offset of the transport header in the frame.
    pub transport: u16,
    /// Where the IP packet ends; Ethernet padding may follow.
    pub end: u16,
    /// TCP flags; 0 for other protocols.
    pub flags: u8,
}

/// Why a frame has no [`Meta`].
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
/// Says what to do with a frame that is not a whole IPv4 packet of a protocol the director knows.
pub fn parse(frame: &[u8]) -> Result<Meta, NotOurs> {
    let network = network_offset(frame)?;
    let ip = &frame[network..];
    if ip.len() < 20 || ip[0] >> 4 != 4 {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    }
    let header = usize::from(ip[0] & 0xf) * 4;
    let total = usize::from(be16(ip, 2));
    if header < 20 || total < header || ip.len() < total {
        return Err(NotOurs::Drop(Reason::BadIpHeader));
    }
    if Sum::default().bytes(&ip[..header]).field() != 0 {
        return Err(NotOurs::Drop(Reason::BadIpChecksum));
    }
    let protocol = ip[9];
    // Fragments of others are theirs; ours need the first one's ports.
    let fragment = be16(ip, 6) & 0x3fff != 0;
    let least = match protocol {
        TCP => 20,
        UDP | ICMP => 8,
        _ => return Err(NotOurs::Pass),
    };
    if fragment {
        return Err(NotOurs::Drop(Reason::Fragment));
    }
    let payload = &ip[header..total];
    if payload.len() < least {
        return Err(NotOurs::Drop(Reason::TruncatedTransport));
    }
    let (source_port, destination_port) =
        if protocol == ICMP { (0, 0) } else { (be16(payload, 0), be16(payload, 2)) };
    Ok(Meta {
        tuple: Tuple {
            source: V4(be32(ip, 12)),
            destination: V4(be32(ip, 16)),
            source_port,
            destination_port,
            protocol,
        },
        network: network as u16,
        transport: (network + header) as u16,
        end: (network + total) as u16,
        flags: if protocol == TCP { payload[13] } else { 0 },
    })
}

/// Where the IPv4 header begins, behind the Ethernet header and its tags.
fn network_offset(frame: &[u8]) -> Result<usize, NotOurs> {
    let mut at = ETHERNET;
    for _ in 0..=MAX_TAGS {
        if frame.len() < at {
            return Err(NotOurs::Drop(Reason::TruncatedFrame));
        }
        match be16(frame, at - 2) {
            ETHERTYPE_IPV4 => return Ok(at),
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => at += 4,
            _ => return Err(NotOurs::Pass),
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
        let meta = parse(SYN).unwrap();
        assert_eq!(meta.tuple.source, V4(0x0a00_0002));
        assert_eq!((meta.tuple.source_port, meta.tuple.destination_port), (1000, 80));
        assert_eq!((meta.network, meta.transport, meta.end), (14, 34, 54));
        assert_eq!(meta.flags, tcp_flags::SYN);
        let vlan = parse(&tagged(SYN, &[0x8100])).unwrap();
        assert_eq!((vlan.network, vlan.tuple), (18, meta.tuple));
        let qinq = parse(&tagged(SYN, &[0x88a8, 0x8100])).unwrap();
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
        let meta = parse(SYN).unwrap();
        assert_eq!(meta.tuple.source, V4::from(ip.get_source()));
        assert_eq!(meta.tuple.destination, V4::from(ip.get_destination()));
        assert_eq!(meta.tuple.protocol, ip.get_next_level_protocol().0);
        assert_eq!(meta.tuple.source_port, tcp.get_source());
        assert_eq!(meta.tuple.destination_port, tcp.get_destination());
        assert_eq!(meta.flags, tcp.get_flags());
        assert_eq!(checksum(&ip), ip.get_checksum());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused_and_offsets_lie_inside(
            mut frame in prop::collection::vec(any::<u8>(), 0..200), mend in any::<bool>(),
        ) {
            // Random bytes seldom get past the ethertype and the checksum; mend those, so that what follows is tried too.
            if mend && frame.len() >= 34 {
                frame[12..14].copy_from_slice(&[8, 0]);
                frame[14] = 0x40 | (frame[14] & 0xf);
                frame[20..22].fill(0);
                let header = (usize::from(frame[14] & 0xf) * 4).max(20).min(frame.len() - 14);
                frame[24..26].fill(0);
                let field = Sum::default().bytes(&frame[14..14 + header]).field();
                super::super::put16(&mut frame, 24, field);
            }
            if let Ok(meta) = parse(&frame) {
                prop_assert!(meta.network < meta.transport && meta.transport < meta.end);
                prop_assert!(usize::from(meta.end) <= frame.len());
            }
        }
    }
}

//! Frames for the tests, and what should happen to each: one table for both ways of steering.
//!
//! The XDP tests run the program on every row; the filter's tests send the rows that a router would forward through a
//! real one.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use super::{Marked, Target};
use crate::service::Protocol::{self, Sctp, Tcp, Udp};
use crate::service::{EVERY_PORT, Pattern, Prefix};

mod ipv6;

pub(super) use ipv6::chains;

pub(super) const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub(super) const THEIR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Has a service on every TCP port.
const OPEN_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
/// An address of the machine with a service on port 80: not for routed frames, but to see what the machine answers.
const HELD_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const REAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// Is a real server on every UDP port.
const OPEN_REAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
/// Half a network of marked addresses; some in its lower half, and in its upper one.
const MARKED_NET: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 128);
const LOW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 130);
const HIGH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
const HIGHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
const OTHER_NET: Ipv4Addr = Ipv4Addr::new(198, 51, 101, 7);
const BELOW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 127);
/// Of the machine itself.
const OURS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The addresses that have a part in the table, of one family.
#[derive(Clone, Copy)]
struct Addresses {
    vip: IpAddr,
    open_vip: IpAddr,
    held_vip: IpAddr,
    real: IpAddr,
    open_real: IpAddr,
    ours: IpAddr,
    client: IpAddr,
    marked: IpAddr,
    high: IpAddr,
}

const FAMILIES: [Addresses; 2] = [
    Addresses {
        vip: IpAddr::V4(VIP),
        open_vip: IpAddr::V4(OPEN_VIP),
        held_vip: IpAddr::V4(HELD_VIP),
        real: IpAddr::V4(REAL),
        open_real: IpAddr::V4(OPEN_REAL),
        ours: IpAddr::V4(OURS),
        client: IpAddr::V4(CLIENT),
        marked: IpAddr::V4(MARKED_NET),
        high: IpAddr::V4(HIGH),
    },
    ipv6::ADDRESSES,
];

/// The machine's own addresses.
pub(super) fn ours() -> [IpAddr; 2] {
    FAMILIES.map(|family| family.ours)
}

/// Addresses of the machine with a service on port 80.
pub(super) fn held() -> [IpAddr; 2] {
    FAMILIES.map(|family| family.held_vip)
}

/// Real servers with TCP port 8080.
pub(super) fn real_servers() -> [IpAddr; 2] {
    FAMILIES.map(|family| family.real)
}

/// What is taken while the table holds.
pub(super) fn targets() -> Vec<Target> {
    let service = |protocol, address, port| Target::Service { protocol, address, port };
    let real = |protocol, address, port| Target::RealServer { protocol, address, port };
    let tunnel = |protocol, address, port| Target::Tunnel { protocol, address, port };
    let of_family = |family: Addresses| {
        [
            service(Tcp, family.vip, 80),
            service(Udp, family.vip, 53),
            service(Sctp, family.vip, 3868),
            service(Tcp, family.open_vip, 0),
            service(Tcp, family.held_vip, 80),
            real(Tcp, family.real, 8080),
            real(Sctp, family.real, 3868),
            real(Udp, family.open_real, 0),
            tunnel(4, family.real, 0),
            tunnel(17, family.real, 6080),
            tunnel(17, family.open_real, 6080),
            tunnel(41, family.open_real, 0),
            tunnel(47, family.open_real, 0),
        ]
    };
    FAMILIES.into_iter().flat_map(of_family).collect()
}

/// The rules for marks while the table holds, in the order in which they are tried.
pub(super) fn markings() -> Vec<Marked> {
    FAMILIES.into_iter().flat_map(markings_of).collect()
}

fn markings_of(family: Addresses) -> [Marked; 5] {
    let bits: u8 = if family.marked.is_ipv4() { 32 } else { 128 };
    let prefix = |address, short| Prefix::new(address, bits - short).expect("it has so many bits");
    let rule = |source, destination, protocol: Option<Protocol>, ports: RangeInclusive<u16>, is_taken| {
        Marked { pattern: Pattern { port: None, source, destination, protocol, ports }, is_taken }
    };
    let anybody = Prefix::all(family.client);
    [
        rule(anybody, prefix(family.high, 0), Some(Tcp), 22..=22, false),
        rule(anybody, prefix(family.high, 6), Some(Tcp), 22..=1999, true),
        rule(prefix(family.client, 8), prefix(family.marked, 6), None, EVERY_PORT, true),
        rule(anybody, prefix(family.marked, 7), Some(Udp), EVERY_PORT, false),
        rule(anybody, prefix(family.marked, 7), None, 5000..=5000, true),
    ]
}

/// Rows that the XDP program takes and the filter cannot.
const ONLY_XDP: [&str; 6] = [
    "unreachable, IP options inside",
    ipv6::AUTHENTICATION,
    ipv6::EVERY_EXTENSION,
    ipv6::AUTHENTICATED_FRAGMENT,
    ipv6::AUTHENTICATED_ERROR,
    ipv6::ERROR_ABOUT_A_PART,
];

/// Rows that the filter takes and the XDP program leaves.
const ONLY_FILTER: [&str; 1] = [ipv6::TOO_MANY];

/// A row of the table.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) frame: Vec<u8>,
    pub(super) taken: bool,
    /// A router that takes nothing would forward it from the real servers' side to the clients'.
    pub(super) routed: bool,
}

impl Case {
    /// Whether the filter takes it.
    pub(super) fn is_filtered(&self) -> bool {
        self.taken && !ONLY_XDP.contains(&self.name) || ONLY_FILTER.contains(&self.name)
    }
}

/// A packet, from the outside in. Fields not named in a row are those of a plain SYN from the client to the service.
#[derive(Clone, Copy)]
struct Packet {
    mac: [u8; 6],
    tags: &'static [u16],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ports: (u16, u16),
    /// Words of IP options.
    options: usize,
    /// The IPv4 header's flags and fragment offset.
    fragment: u16,
    /// Bytes after the IPv4 header.
    length: usize,
}

const SYN: Packet = Packet {
    mac: OUR_MAC,
    tags: &[],
    source: CLIENT,
    destination: VIP,
    protocol: 6,
    ports: (40_000, 80),
    options: 0,
    fragment: 0,
    length: 20,
};

const REPLY: Packet = Packet { source: REAL, destination: CLIENT, ports: (8080, 40_000), ..SYN };
const UDP_REPLY: Packet = Packet { source: OPEN_REAL, protocol: 17, ..REPLY };

const MORE_FRAGMENTS: u16 = 0x2000;
/// The second fragment of a full frame.
const LATER: u16 = 185;

impl Packet {
    fn ip(&self) -> Vec<u8> {
        let mut payload = vec![0; self.length];
        payload[..2].copy_from_slice(&self.ports.0.to_be_bytes());
        payload[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        self.ip_with(&payload)
    }

    fn ip_with(&self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options * 4;
        let mut ip = vec![0; header];
        ip[0] = 0x40 | (header / 4) as u8;
        ip[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        ip[8] = 64;
        ip[9] = self.protocol;
        ip[12..16].copy_from_slice(&self.source.octets());
        ip[16..20].copy_from_slice(&self.destination.octets());
        ip[20..].fill(1); // no operation
        ip.extend_from_slice(payload);
        finish_checksum(&mut ip);
        ip
    }

    fn frame(&self) -> Vec<u8> {
        self.frame_with(0x0800, &self.ip())
    }

    fn frame_with(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.mac, THEIR_MAC].concat();
        for tag in self.tags {
            frame.extend_from_slice(&tag.to_be_bytes());
            frame.extend_from_slice(&[0, 7]);
        }
        frame.extend_from_slice(&ether_type.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// An ICMP message from `source` to `destination` about `about`.
    fn icmp(&self, kind: u8, about: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(about);
        let sum = !sum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let outer = Packet { protocol: 1, ..*self };
        outer.frame_with(0x0800, &outer.ip_with(&message))
    }
}

/// Puts a number into the identification of a frame's untagged IPv4 header, or into the flow label of its IPv6 header,
/// to know it again.
pub(super) fn mark(frame: &mut [u8], number: u16) {
    match frame[14] >> 4 {
        4 => {
            frame[18..20].copy_from_slice(&number.to_be_bytes());
            finish_checksum(&mut frame[14..]);
        }
        _ => {
            frame[15] = frame[15] & 0xf0 | MARKED;
            frame[16..18].copy_from_slice(&number.to_be_bytes());
        }
    }
}

/// The number that [`mark`] put there.
pub(super) fn marked(frame: &[u8]) -> Option<u16> {
    let number = match frame.get(12..14)? {
        [0x08, 0x00] => &frame[18..20],
        [0x86, 0xdd] if frame[15] & 0x0f == MARKED => &frame[16..18],
        _ => return None,
    };
    Some(u16::from_be_bytes([number[0], number[1]]))
}

/// The upper four bits of a marked flow label: the kernel's own neighbour discovery has zeros there.
const MARKED: u8 = 0x0a;

fn finish_checksum(ip: &mut [u8]) {
    let header = usize::from(ip[0] & 15) * 4;
    ip[10..12].fill(0);
    let sum = !sum(&ip[..header]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame that no rule takes and every router forwards.
pub(super) fn indifferent() -> Vec<u8> {
    Packet { destination: OTHER, ..SYN }.frame()
}

/// The table.
#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let mut table = Vec::new();
    let mut row = |name, frame, taken, routed| table.push(Case { name, frame, taken, routed });
    const TAKEN: bool = true;
    const PASSED: bool = false;
    const ROUTED: bool = true;
    const NOT_ROUTED: bool = false;

    // To services.
    row("TCP to a service", SYN.frame(), TAKEN, ROUTED);
    row("TCP to another port", Packet { ports: (40_000, 81), ..SYN }.frame(), PASSED, ROUTED);
    row("TCP to the port that has UDP", Packet { ports: (40_000, 53), ..SYN }.frame(), PASSED, ROUTED);
    row("UDP to a service", Packet { protocol: 17, ports: (1, 53), length: 8, ..SYN }.frame(), TAKEN, ROUTED);
    row("UDP to the port that has TCP", Packet { protocol: 17, ..SYN }.frame(), PASSED, ROUTED);
    row("SCTP to a service", Packet { protocol: 132, ports: (1, 3868), ..SYN }.frame(), TAKEN, ROUTED);
    row("GRE with bytes like ports", Packet { protocol: 47, ..SYN }.frame(), PASSED, ROUTED);
    row("TCP to another address", indifferent(), PASSED, ROUTED);
    row("TCP to port 0 of a service with ports", Packet { ports: (40_000, 0), ..SYN }.frame(), PASSED, ROUTED);
    row("TCP from a service's port", Packet { source: VIP, destination: CLIENT, ports: (80, 40_000), ..SYN }.frame(), PASSED, ROUTED);
    row("TCP to every port", Packet { destination: OPEN_VIP, ports: (1, 4711), ..SYN }.frame(), TAKEN, ROUTED);
    row("TCP to port 0 of every port", Packet { destination: OPEN_VIP, ports: (1, 0), ..SYN }.frame(), TAKEN, ROUTED);
    row("UDP where every TCP port is taken", Packet { destination: OPEN_VIP, protocol: 17, ..SYN }.frame(), PASSED, ROUTED);

    // The link.
    row("another MAC", Packet { mac: [2, 0, 0, 0, 0, 9], ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("another MAC in the first half", Packet { mac: [3, 0, 0, 0, 0, 1], ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("multicast MAC", Packet { mac: [1, 0, 0x5e, 0, 0, 1], ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("broadcast MAC", Packet { mac: [0xff; 6], ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("VLAN", Packet { tags: &[0x8100], ..SYN }.frame(), TAKEN, NOT_ROUTED);
    row("service VLAN", Packet { tags: &[0x88a8], ..SYN }.frame(), TAKEN, NOT_ROUTED);
    row("QinQ", Packet { tags: &[0x88a8, 0x8100], ..SYN }.frame(), TAKEN, NOT_ROUTED);
    row("old QinQ", Packet { tags: &[0x8100, 0x8100], ..SYN }.frame(), TAKEN, NOT_ROUTED);
    row("three tags", Packet { tags: &[0x88a8, 0x8100, 0x8100], ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("VLAN to another port", Packet { tags: &[0x8100], ports: (1, 81), ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("ARP", SYN.frame_with(0x0806, &[0; 28]), PASSED, NOT_ROUTED);
    row("version 6 as IPv4", { let mut f = SYN.frame(); f[14] = 0x65; f }, PASSED, NOT_ROUTED);
    row("header of four words", { let mut f = SYN.frame(); f[14] = 0x44; f }, PASSED, NOT_ROUTED);
    row("nothing but Ethernet", SYN.frame_with(0x0800, &[]), PASSED, NOT_ROUTED);
    row("padded to the minimum", { let mut f = Packet { length: 8, ..SYN }.frame(); f.resize(60, 0); f }, TAKEN, ROUTED);

    // Options and fragments.
    row("IP options", Packet { options: 1, ..SYN }.frame(), TAKEN, ROUTED);
    row("all IP options", Packet { options: 10, ..SYN }.frame(), TAKEN, ROUTED);
    row("IP options to another port", Packet { options: 10, ports: (1, 81), ..SYN }.frame(), PASSED, ROUTED);
    row("first fragment", Packet { fragment: MORE_FRAGMENTS, length: 24, ..SYN }.frame(), TAKEN, ROUTED);
    row("first fragment to another port", Packet { fragment: MORE_FRAGMENTS, ports: (1, 81), length: 24, ..SYN }.frame(), PASSED, ROUTED);
    row("do not fragment", Packet { fragment: 0x4000, ..SYN }.frame(), TAKEN, ROUTED);
    row("middle fragment", Packet { fragment: MORE_FRAGMENTS | LATER, ports: (0, 0), length: 24, ..SYN }.frame(), TAKEN, ROUTED);
    row("last fragment", Packet { fragment: LATER, ports: (9, 9), ..SYN }.frame(), TAKEN, ROUTED);
    row("last fragment to every port", Packet { fragment: LATER, destination: OPEN_VIP, ..SYN }.frame(), TAKEN, ROUTED);
    row("last fragment of GRE", Packet { fragment: LATER, protocol: 47, ..SYN }.frame(), PASSED, ROUTED);
    row("last fragment of ICMP", Packet { fragment: LATER, protocol: 1, ports: (0x0300, 0), ..SYN }.frame(), PASSED, ROUTED);
    row("last fragment to another address", Packet { fragment: LATER, destination: OTHER, ..SYN }.frame(), PASSED, ROUTED);
    row("first fragment from a real server's other port", Packet { fragment: MORE_FRAGMENTS, ports: (1, 40_000), length: 24, ..REPLY }.frame(), TAKEN, ROUTED);
    row("first fragment from a real server's other port to us", Packet { fragment: MORE_FRAGMENTS, ports: (1, 40_000), length: 24, destination: OURS, ..REPLY }.frame(), PASSED, NOT_ROUTED);
    row("first fragment from a real server of TCP, in UDP", Packet { fragment: MORE_FRAGMENTS, protocol: 17, length: 24, ..REPLY }.frame(), PASSED, ROUTED);
    row("last fragment from a real server", Packet { fragment: LATER, ..REPLY }.frame(), TAKEN, ROUTED);
    row("last fragment from a real server to us", Packet { fragment: LATER, destination: OURS, ..REPLY }.frame(), PASSED, NOT_ROUTED);
    row("last fragment from a real server of TCP, in UDP", Packet { fragment: LATER, protocol: 17, ..REPLY }.frame(), PASSED, ROUTED);

    // From real servers.
    row("reply to a client", REPLY.frame(), TAKEN, ROUTED);
    row("reply to us", Packet { destination: OURS, ..REPLY }.frame(), PASSED, NOT_ROUTED);
    row("reply from another port", Packet { ports: (22, 40_000), ..REPLY }.frame(), PASSED, ROUTED);
    row("reply of another protocol", Packet { protocol: 17, ..REPLY }.frame(), PASSED, ROUTED);
    row("reply from port 0", Packet { ports: (0, 40_000), ..REPLY }.frame(), PASSED, ROUTED);
    row("SCTP reply", Packet { protocol: 132, ports: (3868, 1), ..REPLY }.frame(), TAKEN, ROUTED);
    row("reply from every port", UDP_REPLY.frame(), TAKEN, ROUTED);
    row("reply from every port to us", Packet { destination: OURS, ..UDP_REPLY }.frame(), PASSED, NOT_ROUTED);
    row("TCP where every UDP port replies", Packet { protocol: 6, ..UDP_REPLY }.frame(), PASSED, ROUTED);
    row("to a real server", Packet { destination: REAL, ports: (1, 8080), ..SYN }.frame(), PASSED, NOT_ROUTED);
    row("from a real server to a service", Packet { source: REAL, ports: (8080, 80), ..SYN }.frame(), TAKEN, ROUTED);
    row("from a real server to a service's other port", Packet { source: REAL, ports: (8080, 81), ..SYN }.frame(), TAKEN, ROUTED);

    // ICMP. `answer` is what a service said to the client, and some router on the way does not like.
    let answer = Packet { source: VIP, destination: CLIENT, ports: (80, 40_000), ..SYN };
    let asked = Packet { source: CLIENT, destination: REAL, ports: (40_000, 8080), ..SYN };
    let to_vip = Packet { source: OTHER, ..SYN };
    let from_real = Packet { source: REAL, destination: CLIENT, ..SYN };
    row("echo request", to_vip.icmp(8, &[0; 56]), PASSED, ROUTED);
    row("echo reply", to_vip.icmp(0, &[0; 56]), PASSED, ROUTED);
    row("echo request with a packet inside", to_vip.icmp(8, &answer.ip()), PASSED, ROUTED);
    row("redirect", to_vip.icmp(5, &answer.ip()), PASSED, ROUTED);
    row("unreachable, about a service's answer", to_vip.icmp(3, &answer.ip()), TAKEN, ROUTED);
    row("unreachable, with eight bytes of it", to_vip.icmp(3, &answer.ip()[..28]), TAKEN, ROUTED);
    row("quench, about a service's answer", to_vip.icmp(4, &answer.ip()), TAKEN, ROUTED);
    row("time exceeded, about a service's answer", to_vip.icmp(11, &answer.ip()), TAKEN, ROUTED);
    row("unreachable, IP options outside", Packet { options: 3, ..to_vip }.icmp(3, &answer.ip()), TAKEN, ROUTED);
    row("unreachable, IP options inside", to_vip.icmp(3, &Packet { options: 3, ..answer }.ip()), TAKEN, ROUTED);
    row("unreachable, about another port's answer", to_vip.icmp(3, &Packet { ports: (81, 1), ..answer }.ip()), PASSED, ROUTED);
    row("unreachable, about UDP from there", to_vip.icmp(3, &Packet { protocol: 17, ..answer }.ip()), PASSED, ROUTED);
    row("unreachable, about SCTP's answer", to_vip.icmp(3, &Packet { protocol: 132, ports: (3868, 1), ..answer }.ip()), TAKEN, ROUTED);
    row("unreachable, about SCTP from TCP's port", to_vip.icmp(3, &Packet { protocol: 132, ..answer }.ip()), PASSED, ROUTED);
    row("unreachable, about every port's answer", to_vip.icmp(3, &Packet { source: OPEN_VIP, ports: (4, 4), ..answer }.ip()), TAKEN, ROUTED);
    row("unreachable, about ICMP", to_vip.icmp(3, &Packet { protocol: 1, ..answer }.ip()), PASSED, ROUTED);
    row("unreachable, about a later fragment", to_vip.icmp(3, &Packet { fragment: LATER, ..answer }.ip()), PASSED, ROUTED);
    row("unreachable, about a first fragment", to_vip.icmp(3, &Packet { fragment: MORE_FRAGMENTS, ..answer }.ip()), TAKEN, ROUTED);
    row("unreachable, about a request", from_real.icmp(3, &asked.ip()), TAKEN, ROUTED);
    row("unreachable, from a router near a real server", Packet { source: OTHER, ..from_real }.icmp(3, &asked.ip()), TAKEN, ROUTED);
    row("unreachable, about a request to another port", from_real.icmp(3, &Packet { ports: (1, 22), ..asked }.ip()), PASSED, ROUTED);
    row("unreachable, about a request to every port", from_real.icmp(3, &Packet { protocol: 17, destination: OPEN_REAL, ..asked }.ip()), TAKEN, ROUTED);
    row("unreachable, about an SCTP request", from_real.icmp(3, &Packet { protocol: 132, ports: (1, 3868), ..asked }.ip()[..28]), TAKEN, ROUTED);
    row("unreachable, about our own health check", Packet { destination: OURS, ..from_real }.icmp(3, &Packet { source: OURS, ..asked }.ip()), PASSED, NOT_ROUTED);
    row("unreachable, about a request to a service", from_real.icmp(3, &SYN.ip()), PASSED, ROUTED);
    row("unreachable, cut off inside", to_vip.icmp(3, &answer.ip()[..21]), PASSED, ROUTED);

    // ICMP about what the machine itself has sent. `ipip` is in a tunnel, and some router on the way does not like it.
    let ipip = Packet { source: OURS, destination: REAL, protocol: 4, ports: (0x4500, 60), ..SYN };
    let gue = Packet { protocol: 17, ports: (40_000, 6080), ..ipip };
    let to_us = Packet { source: OTHER, destination: OURS, ..SYN };
    row("tunnel: unreachable, about ipip", to_us.icmp(3, &ipip.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: time exceeded, about ipip", to_us.icmp(11, &ipip.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: quench, about ipip", to_us.icmp(4, &ipip.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: parameter problem, about ipip", to_us.icmp(12, &ipip.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about ipip, IP options outside", Packet { options: 3, ..to_us }.icmp(3, &ipip.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: unreachable, about a later fragment of ipip", to_us.icmp(3, &Packet { fragment: LATER, ..ipip }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about ipip to another address", to_us.icmp(3, &Packet { destination: OTHER, ..ipip }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about IPv6 in IP where that is no tunnel", to_us.icmp(3, &Packet { protocol: 41, ..ipip }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about IPv6 in IP", to_us.icmp(3, &Packet { destination: OPEN_REAL, protocol: 41, ..ipip }.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: unreachable, about gre", to_us.icmp(3, &Packet { destination: OPEN_REAL, protocol: 47, ..ipip }.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: unreachable, about gre where that is no tunnel", to_us.icmp(3, &Packet { protocol: 47, ..ipip }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about gue", to_us.icmp(3, &gue.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: unreachable, about gue where every UDP port replies", to_us.icmp(3, &Packet { destination: OPEN_REAL, ..gue }.ip()), TAKEN, NOT_ROUTED);
    row("tunnel: unreachable, about UDP to another port", to_us.icmp(3, &Packet { ports: (6080, 53), ..gue }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about TCP to the port of gue", to_us.icmp(3, &Packet { protocol: 6, ..gue }.ip()), PASSED, NOT_ROUTED);
    row("tunnel: unreachable, about ipip of somebody else", Packet { destination: CLIENT, ..to_us }.icmp(3, &Packet { source: CLIENT, ..ipip }.ip()), PASSED, ROUTED);
    row("tunnel: unreachable, about gue of somebody else", Packet { destination: CLIENT, ..to_us }.icmp(3, &Packet { source: CLIENT, ..gue }.ip()), PASSED, ROUTED);
    row("tunnel: ipip itself", Packet { protocol: 4, source: REAL, destination: CLIENT, ..SYN }.frame(), PASSED, ROUTED);
    row("tunnel: gue itself", Packet { protocol: 17, source: REAL, destination: CLIENT, ports: (6080, 6080), ..SYN }.frame(), PASSED, ROUTED);

    // Marked ones.
    let to_high = Packet { destination: HIGH, ports: (40_000, 1000), ..SYN };
    let to_low = Packet { destination: LOW, protocol: 17, ports: (40_000, 9), ..SYN };
    row("marked: to a range of ports", to_high.frame(), TAKEN, ROUTED);
    row("marked: to its last port", Packet { ports: (1, 1999), ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: behind its last port", Packet { ports: (1, 2000), ..to_high }.frame(), PASSED, ROUTED);
    row("marked: to its first port", Packet { destination: HIGHER, ports: (1, 22), ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: to its first port, where that is excepted", Packet { ports: (1, 22), ..to_high }.frame(), PASSED, ROUTED);
    row("marked: before its first port", Packet { ports: (1, 21), ..to_high }.frame(), PASSED, ROUTED);
    row("marked: the range from the other end", Packet { ports: (1000, 2000), ..to_high }.frame(), PASSED, ROUTED);
    row("marked: another protocol to the range", Packet { protocol: 17, ..to_high }.frame(), PASSED, ROUTED);
    row("marked: one port of what is left", Packet { ports: (1, 5000), ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: the same of SCTP", Packet { protocol: 132, ports: (1, 5000), ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: the same of UDP, which an earlier rule is about", Packet { protocol: 17, ports: (1, 5000), ..to_high }.frame(), PASSED, ROUTED);
    row("marked: from a network", to_low.frame(), TAKEN, ROUTED);
    row("marked: from another network", Packet { source: OTHER_NET, ..to_low }.frame(), PASSED, ROUTED);
    row("marked: from another network, TCP to the one port", Packet { source: OTHER_NET, protocol: 6, ports: (1, 5000), ..to_low }.frame(), TAKEN, ROUTED);
    row("marked: GRE", Packet { protocol: 47, ..to_low }.frame(), PASSED, ROUTED);
    row("marked: below the prefix", Packet { destination: BELOW, ..to_low }.frame(), PASSED, ROUTED);
    row("marked: VLAN", Packet { tags: &[0x8100], ..to_high }.frame(), TAKEN, NOT_ROUTED);
    row("marked: first fragment", Packet { fragment: MORE_FRAGMENTS, length: 24, ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: first fragment to another port", Packet { fragment: MORE_FRAGMENTS, ports: (1, 2000), length: 24, ..to_high }.frame(), PASSED, ROUTED);
    row("marked: last fragment, where some ports are", Packet { fragment: LATER, ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: last fragment of UDP, where none is", Packet { fragment: LATER, protocol: 17, ..to_high }.frame(), PASSED, ROUTED);
    row("marked: last fragment of SCTP", Packet { fragment: LATER, protocol: 132, ..to_high }.frame(), TAKEN, ROUTED);
    row("marked: last fragment of GRE", Packet { fragment: LATER, protocol: 47, ..to_low }.frame(), PASSED, ROUTED);
    row("marked: last fragment from a network", Packet { fragment: LATER, ..to_low }.frame(), TAKEN, ROUTED);
    row("marked: last fragment from another network", Packet { fragment: LATER, source: OTHER_NET, ..to_low }.frame(), PASSED, ROUTED);
    let from_high = Packet { source: HIGH, destination: CLIENT, ports: (1000, 40_000), ..SYN };
    let from_low = Packet { source: LOW, destination: CLIENT, protocol: 17, ports: (9, 40_000), ..SYN };
    row("marked: an answer", from_high.frame(), PASSED, ROUTED);
    row("marked: echo request", Packet { destination: LOW, ..to_vip }.icmp(8, &[0; 56]), PASSED, ROUTED);
    row("marked: unreachable, about an answer", to_vip.icmp(3, &from_high.ip()), TAKEN, ROUTED);
    row("marked: unreachable, about an answer from another port", to_vip.icmp(3, &Packet { ports: (2000, 1000), ..from_high }.ip()), PASSED, ROUTED);
    row("marked: unreachable, about an answer to a network", to_vip.icmp(3, &from_low.ip()), TAKEN, ROUTED);
    row("marked: unreachable, about an answer to another network", to_vip.icmp(3, &Packet { destination: OTHER_NET, ..from_low }.ip()), PASSED, ROUTED);
    row("marked: unreachable, about a request", to_vip.icmp(3, &to_low.ip()), PASSED, ROUTED);

    ipv6::rows(&mut row);
    table
}

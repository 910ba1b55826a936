//! A frame of either family, read and readdressed the slow way: what there is of headers, whom they name, and by how much their checksums are
//! wrong.
//!
//! Nothing here shares code with the data plane. Every checksum is summed over the whole packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frames::{checksum, crc32c};
use shunt_dataplane::packet::protocol::{ICMP, SCTP, TCP, UDP};

const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;

const ETHERNET: usize = 14;

/// An address and a port; the port is 0 where there is none to read.
pub type End = (IpAddr, u16);

/// Where the headers of a packet stand in a frame. For a packet that an ICMP error quotes, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    is_v4: bool,
    /// Where the IP header begins.
    pub network: usize,
    /// Where the transport header begins, or the data of a later fragment.
    pub transport: usize,
    /// Where the packet ends. What follows is Ethernet padding.
    pub end: usize,
    /// The transport protocol.
    pub protocol: u8,
    /// Of a fragment: its id, its offset in bytes, whether others follow.
    pub fragment: Option<(u32, usize, bool)>,
}

impl Layers {
    /// Reads a frame without VLAN tags. A quoted packet may be cut short; this one must be whole.
    ///
    /// # Panics
    /// When it is not, or no IP packet.
    pub fn of(frame: &[u8]) -> Self {
        let layers = Self::at(frame, ETHERNET).expect("an IP packet");
        assert!(layers.end <= frame.len(), "cut short");
        layers
    }

    /// The same of a frame that may be anything; `None` when it is no IP packet that is whole, its transport header included.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let layers = Self::at(frame, ETHERNET)?;
        let least = match layers.protocol {
            _ if !layers.starts() => 0,
            TCP => 20,
            SCTP => 12,
            UDP | ICMP | ICMP6 => 8,
            _ => 0,
        };
        let is_header = layers.transport - layers.network >= if layers.is_v4 { 20 } else { 40 };
        (is_header && layers.transport + least <= layers.end && layers.end <= frame.len()).then_some(layers)
    }

    /// The packet that an ICMP error quotes, if it quotes its ports.
    pub fn quoted(&self, frame: &[u8]) -> Option<Self> {
        let kind = frame[self.transport];
        let is_error = match self.protocol {
            ICMP => matches!(kind, 3 | 4 | 11),
            ICMP6 => kind < 128,
            _ => false,
        };
        let mut quoted = Self::at(&frame[..self.end], self.transport + 8).filter(|_| is_error)?;
        quoted.end = quoted.end.min(self.end);
        (quoted.has_ports() && quoted.transport + 8 <= quoted.end).then_some(quoted)
    }

    fn at(frame: &[u8], network: usize) -> Option<Self> {
        let ip = frame.get(network..)?;
        match ip.first()? >> 4 {
            4 if ip.len() >= 20 => {
                let part = word(ip, 6);
                let (offset, more) = (usize::from(part & 0x1fff) * 8, part & 0x2000 != 0);
                Some(Self {
                    is_v4: true,
                    network,
                    transport: network + usize::from(ip[0] & 15) * 4,
                    end: network + usize::from(word(ip, 2)),
                    protocol: ip[9],
                    fragment: (offset > 0 || more).then(|| (word(ip, 4).into(), offset, more)),
                })
            }
            6 if ip.len() >= 48 => {
                let is_part = ip[6] == FRAGMENT;
                let part = word(ip, 42);
                let id = u32::from(word(ip, 44)) << 16 | u32::from(word(ip, 46));
                Some(Self {
                    is_v4: false,
                    network,
                    transport: network + if is_part { 48 } else { 40 },
                    end: network + 40 + usize::from(word(ip, 4)),
                    protocol: if is_part { ip[40] } else { ip[6] },
                    fragment: is_part.then_some((id, usize::from(part & 0xfff8), part & 1 != 0)),
                })
            }
            _ => None,
        }
    }

    /// The source.
    pub fn source(&self, frame: &[u8]) -> End {
        (self.address(frame, self.source_at()), self.port(frame, 0))
    }

    /// The destination.
    pub fn destination(&self, frame: &[u8]) -> End {
        (self.address(frame, self.destination_at()), self.port(frame, 2))
    }

    /// Names other ends. Checksums change by as much as the words do: those of the IP header, of the transport header, and where a packet is
    /// a quote in `frame` nothing else; the message's own sum is the caller's.
    pub fn readdress(&self, frame: &mut [u8], source: Option<End>, destination: Option<End>) {
        let old = self.named(frame);
        for (end, at, port_at) in [(source, self.source_at(), 0), (destination, self.destination_at(), 2)] {
            let Some((address, port)) = end else { continue };
            match address {
                IpAddr::V4(address) => frame[at..at + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => frame[at..at + 16].copy_from_slice(&address.octets()),
            }
            if self.has_ports() {
                put(frame, self.transport + port_at, port);
            }
        }
        let new = self.named(frame);
        let (addresses, _) = self.addresses();
        if self.is_v4 {
            // The ports are no part of the header's sum.
            let without_ports = |named: &[u8]| sum(&named[..addresses]);
            adjust(frame, self.network + 10, without_ports(&old), without_ports(&new));
        }
        if let Some(at) = self.checksum_at().filter(|at| at + 2 <= self.end)
            && (self.protocol != UDP || word(frame, at) != 0)
        {
            adjust(frame, at, sum(&old), sum(&new));
            if self.protocol == UDP && word(frame, at) == 0 {
                put(frame, at, 0xffff);
            }
        }
    }

    /// Makes the checksums of a whole packet right.
    pub fn mend(&self, frame: &mut [u8]) {
        if self.is_v4 {
            put(frame, self.network + 10, 0);
            let field = checksum(&frame[self.network..self.transport]);
            put(frame, self.network + 10, field);
        }
        if self.protocol == SCTP && self.starts() {
            let crc = self.crc(frame);
            frame[self.transport + 8..self.transport + 12].copy_from_slice(&crc);
        }
        if let Some(at) = self.checksum_at() {
            put(frame, at, 0);
            let field = checksum(&self.summed(frame));
            put(frame, at, if self.protocol == UDP && field == 0 { 0xffff } else { field });
        }
    }

    /// SCTP's CRC32c, as it stands in the header.
    fn crc(&self, frame: &[u8]) -> [u8; 4] {
        let segment = &frame[self.transport..self.end];
        crc32c(&[&segment[..8], &[0; 4], &segment[12..]].concat()).to_le_bytes()
    }

    /// Whether the IP header's checksum is right; IPv6 has none.
    pub fn header_is_right(&self, frame: &[u8]) -> bool {
        !self.is_v4 || checksum(&frame[self.network..self.network + self.header()]) == 0
    }

    /// By how much the transport checksum of a whole packet is wrong; 0 when it is right. One of ones is one of zeros. SCTP's CRC is right or it is not.
    pub fn residue(&self, frame: &[u8]) -> u16 {
        if self.protocol == SCTP {
            let field = self.transport + 8..self.transport + 12;
            return u16::from(frame[field] != self.crc(frame));
        }
        match checksum(&self.summed(frame)) {
            0xffff => 0,
            residue => residue,
        }
    }

    /// A UDP datagram that says it has no checksum.
    pub fn has_none(&self, frame: &[u8]) -> bool {
        self.protocol == UDP && self.starts() && word(frame, self.transport + 6) == 0
    }

    /// The frame without its checksums, to be compared by meaning.
    pub fn without_checksums(&self, frame: &mut [u8]) {
        if self.is_v4 {
            put(frame, self.network + 10, 0);
        }
        if let Some(at) = self.checksum_at().filter(|at| at + 2 <= self.end) {
            put(frame, at, 0);
        }
    }

    /// Whether it is an ICMP packet of its family.
    pub fn is_icmp(&self) -> bool {
        matches!(self.protocol, ICMP | ICMP6)
    }

    /// Whether the packet has ports to read.
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP | SCTP) && self.starts()
    }

    /// The pseudo header as far as it is no length, and the ports: what an address change changes.
    fn named(&self, frame: &[u8]) -> Vec<u8> {
        let (length, from) = self.addresses();
        let ports = if self.has_ports() { self.transport..self.transport + 4 } else { 0..0 };
        [&frame[from..from + length], &frame[ports]].concat()
    }

    /// All that the transport checksum covers.
    fn summed(&self, frame: &[u8]) -> Vec<u8> {
        let segment = &frame[self.transport..self.end];
        if self.protocol == ICMP {
            return segment.to_vec();
        }
        let (length, from) = self.addresses();
        let rest = [0, self.protocol, (segment.len() >> 8) as u8, segment.len() as u8];
        [&frame[from..from + length], &rest, segment].concat()
    }

    /// How long both addresses are, and where they stand.
    fn addresses(&self) -> (usize, usize) {
        (if self.is_v4 { 8 } else { 32 }, self.source_at())
    }

    fn source_at(&self) -> usize {
        self.network + if self.is_v4 { 12 } else { 8 }
    }

    fn destination_at(&self) -> usize {
        self.source_at() + if self.is_v4 { 4 } else { 16 }
    }

    fn header(&self) -> usize {
        if self.is_v4 { self.transport - self.network } else { 40 }
    }

    fn starts(&self) -> bool {
        self.fragment.is_none_or(|(_, offset, _)| offset == 0)
    }

    fn checksum_at(&self) -> Option<usize> {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMP6 => 2,
            _ => return None,
        };
        self.starts().then_some(self.transport + at)
    }

    fn address(&self, frame: &[u8], at: usize) -> IpAddr {
        if self.is_v4 {
            let octets: [u8; 4] = frame[at..at + 4].try_into().expect("four");
            Ipv4Addr::from(octets).into()
        } else {
            let octets: [u8; 16] = frame[at..at + 16].try_into().expect("sixteen");
            Ipv6Addr::from(octets).into()
        }
    }

    fn port(&self, frame: &[u8], at: usize) -> u16 {
        if self.has_ports() { word(frame, self.transport + at) } else { 0 }
    }
}

/// Puts the fragments of one datagram together: the first one's headers as if it were whole, and all data. They may come in any order.
///
/// # Panics
/// When there is a hole.
pub fn together(mut parts: Vec<Vec<u8>>) -> Vec<u8> {
    let offset = |part: &Vec<u8>| Layers::of(part).fragment.map_or(0, |(_, offset, _)| offset);
    parts.sort_by_key(offset);
    let mut whole = parts[0][..Layers::of(&parts[0]).transport].to_vec();
    for part in &parts {
        let layers = Layers::of(part);
        assert_eq!(whole.len(), Layers::of(&parts[0]).transport + offset(part), "a hole");
        whole.extend(&part[layers.transport..layers.end]);
    }
    let first = Layers::of(&parts[0]);
    let length = whole.len() - first.network;
    match first.is_v4 {
        true => {
            put(&mut whole, first.network + 2, length as u16);
            put(&mut whole, first.network + 6, 0);
        }
        false => put(&mut whole, first.network + 4, (length - 40) as u16),
    }
    whole
}

/// The ones' complement sum.
fn sum(bytes: &[u8]) -> u16 {
    !checksum(bytes)
}

/// Changes a checksum field by as much as what it covers has changed.
fn adjust(frame: &mut [u8], at: usize, old: u16, new: u16) {
    let words = [!word(frame, at), !old, new].map(u16::to_be_bytes).concat();
    put(frame, at, checksum(&words));
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

//! What a frame is, and what should have become of it, worked out the slow and obvious way.
//!
//! Nothing here shares code with the data plane: headers are read again, checksums are summed over whole packets, and an
//! expected packet is the old one with a few bytes replaced. Checksum fields are compared by what they mean (the
//! packet sums up right, or is wrong by as much as before), because zero has two representations.

use std::net::Ipv4Addr;

use crate::frames::{checksum, crc32c};
use shunt_dataplane::packet::protocol::{ICMP, SCTP, TCP, UDP};

/// An IPv4 packet in a frame: whole, with a header that makes sense.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// VLAN tags before it.
    pub tags: usize,
    /// From the IP header to the end of the packet, without Ethernet padding.
    pub ip: &'a [u8],
    header: usize,
}

/// What a translation puts in. The time to live changes in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// A new source.
    pub source: Option<(Ipv4Addr, u16)>,
    /// A new destination.
    pub destination: Option<(Ipv4Addr, u16)>,
}

/// Addresses and ports: source, destination, protocol.
pub type Flow = ((Ipv4Addr, u16), (Ipv4Addr, u16), u8);

impl Rewrite {
    /// Nothing but the time to live changes.
    pub const NOTHING: Rewrite = Rewrite { source: None, destination: None };

    /// A new source.
    pub fn source(address: Ipv4Addr, port: u16) -> Self {
        Self { source: Some((address, port)), ..Self::NOTHING }
    }

    /// A new destination.
    pub fn destination(address: Ipv4Addr, port: u16) -> Self {
        Self { destination: Some((address, port)), ..Self::NOTHING }
    }
}

impl<'a> Packet<'a> {
    /// Reads a frame; says what is wrong with it.
    pub fn read(frame: &'a [u8]) -> Result<Self, &'static str> {
        let mut rest = frame.get(12..).ok_or("no Ethernet header")?;
        let mut tags = 0;
        while tags < 2 && matches!(rest.get(..2), Some([0x81, 0x00] | [0x88, 0xa8])) {
            tags += 1;
            rest = rest.get(4..).ok_or("the tag is cut short")?;
        }
        if rest.get(..2) != Some(&[0x08, 0x00]) {
            return Err("not IPv4");
        }
        let ip = &rest[2..];
        let first = *ip.first().ok_or("no IP header")?;
        let header = usize::from(first & 15) * 4;
        if first >> 4 != 4 || header < 20 || ip.len() < header {
            return Err("no whole IPv4 header");
        }
        let total = usize::from(word(ip, 2));
        if total < header || ip.len() < total {
            return Err("the total length contradicts the frame's");
        }
        let least = match ip[9] {
            TCP => 20,
            UDP | ICMP => 8,
            SCTP => 16,
            _ => 0,
        };
        if total - header < least {
            return Err("no whole transport header");
        }
        Ok(Self { tags, ip: &ip[..total], header })
    }

    /// The time to live.
    pub fn ttl(&self) -> u8 {
        self.ip[8]
    }

    /// The protocol's number.
    pub fn protocol(&self) -> u8 {
        self.ip[9]
    }

    /// The source address.
    pub fn source(&self) -> Ipv4Addr {
        address(self.ip, 12)
    }

    /// The destination address.
    pub fn destination(&self) -> Ipv4Addr {
        address(self.ip, 16)
    }

    /// What follows the IP header.
    pub fn segment(&self) -> &'a [u8] {
        &self.ip[self.header..]
    }

    /// Addresses and ports of a TCP, UDP or SCTP packet.
    pub fn flow(&self) -> Option<Flow> {
        matches!(self.protocol(), TCP | UDP | SCTP).then(|| flow(self.ip, self.segment()))
    }

    /// The flow of the packet that an ICMP error quotes, if it quotes enough of one.
    pub fn quoted(&self) -> Option<Flow> {
        let (inner, header) = self.quote()?;
        Some(flow(inner, &inner[header..]))
    }

    /// The quoted packet and the length of its header.
    fn quote(&self) -> Option<(&'a [u8], usize)> {
        let inner = self.segment().get(8..).filter(|inner| self.protocol() == ICMP && inner.len() >= 20)?;
        let header = usize::from(inner[0] & 15) * 4;
        let enough = inner[0] >> 4 == 4 && header >= 20 && inner.len() >= header + 8;
        (enough && matches!(inner[9], TCP | UDP | SCTP)).then_some((inner, header))
    }

    /// Whether the IP header's checksum is right.
    pub fn header_is_right(&self) -> bool {
        checksum(&self.ip[..self.header]) == 0
    }

    /// By how much the TCP, UDP or ICMP checksum is wrong; 0 when it is right. Of SCTP's CRC only whether it is.
    pub fn residue(&self) -> u16 {
        let segment = self.segment();
        match self.protocol() {
            ICMP => return checksum(segment),
            SCTP => {
                let crc = crc32c(&[&segment[..8], &[0; 4], &segment[12..]].concat());
                return u16::from(segment[8..12] != crc.to_le_bytes());
            }
            _ => {}
        }
        let mut summed = self.ip[12..20].to_vec();
        summed.extend([0, self.protocol()]);
        summed.extend((segment.len() as u16).to_be_bytes());
        summed.extend(segment);
        checksum(&summed)
    }

    fn checksum_field(&self) -> u16 {
        word(self.segment(), checksum_at(self.protocol()))
    }
}

/// Holds a frame that was forwarded against what came in. Says what is wrong.
pub fn forwarded(input: &[u8], output: &[u8], rewrite: Rewrite) -> Result<(), String> {
    let before =
        Packet::read(input).map_err(|why| format!("the input should not have got through: {why}"))?;
    let after = Packet::read(output).map_err(|why| format!("the output is no packet: {why}"))?;
    must(before.header_is_right(), "an input with a wrong IP checksum got through")?;
    must(after.header_is_right(), "the IP checksum is wrong")?;
    must(after.tags == 0 && output.len() == 14 + after.ip.len(), "tags or padding were left")?;
    must(before.ttl() >= 2, "the packet had no life left")?;

    let mut expected = before.ip.to_vec();
    expected[8] -= 1;
    for (end, place, port_at) in [(rewrite.source, 12, 0), (rewrite.destination, 16, 2)] {
        let Some((address, port)) = end else { continue };
        expected[place..place + 4].copy_from_slice(&address.octets());
        if before.protocol() == ICMP {
            rewrite_quote(&before, &mut expected, place, (address, port));
        } else {
            expected[before.header + port_at..][..2].copy_from_slice(&port.to_be_bytes());
        }
    }
    let translates = rewrite != Rewrite::NOTHING;
    let mut got = after.ip.to_vec();
    must(got.len() == expected.len(), "the length changed")?;
    if before.protocol() == ICMP && translates {
        must(after.residue() == 0, "the ICMP checksum is wrong")?;
        quote_is_adjusted(&before, &after)?;
    } else if before.protocol() == SCTP {
        let is_same = before.flow().map(ports) == after.flow().map(ports);
        let is_kept = before.segment()[8..12] == after.segment()[8..12];
        must(if is_same { is_kept } else { after.residue() == 0 }, "the CRC")?;
    } else if before.protocol() == UDP && before.checksum_field() == 0 {
        let filled_in = after.checksum_field() != 0 && after.residue() == 0;
        must(filled_in == translates, "a datagram without checksum")?;
    } else {
        must(after.residue() == before.residue(), "the checksum's error changed")?;
        must(before.protocol() != UDP || after.checksum_field() != 0, "a checksum became none")?;
    }
    for packet in [&mut expected, &mut got] {
        mask(packet, before.header);
    }
    must(got == expected, "other bytes changed")
}

/// Puts the pieces of a packet together that was cut up for a link that takes `mtu` bytes. Says what is wrong with them.
pub fn together(pieces: &[Vec<u8>], mtu: u16) -> Result<Vec<u8>, String> {
    const MORE: u16 = 0x2000;
    let (mut whole, mut next) = (Vec::new(), 0);
    for (n, piece) in pieces.iter().enumerate() {
        must(piece.len() - 14 <= usize::from(mtu), "longer than the link takes")?;
        if pieces.len() == 1 {
            return Ok(piece.clone());
        }
        let packet = Packet { tags: 0, ip: &piece[14..], header: usize::from(piece[14] & 15) * 4 };
        let part = word(packet.ip, 6);
        must(
            packet.header_is_right() && usize::from(word(packet.ip, 2)) == packet.ip.len(),
            "a piece's header",
        )?;
        must(part & 0x4000 == 0, "a packet that forbids it was cut up")?;
        if n == 0 {
            whole.clone_from(piece);
        } else {
            must(part & 0x1fff == next, "a hole between pieces")?;
            whole.extend(packet.segment());
        }
        next = (part & 0x1fff) + (packet.segment().len() / 8) as u16;
        if n + 1 < pieces.len() {
            must(part & MORE != 0 && packet.segment().len().is_multiple_of(8), "a piece that others follow")?;
        } else {
            let [high, low] = ((word(&whole, 20) & 0x1fff) | (part & MORE)).to_be_bytes();
            whole[20..22].copy_from_slice(&[high, low]);
        }
    }
    let total = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&total.to_be_bytes());
    whole[24..26].fill(0);
    let sum = checksum(&whole[14..14 + usize::from(whole[14] & 15) * 4]);
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    Ok(whole)
}

/// Holds an answer of the director's own against the frame that it answers. It goes by the route, whose links have no tags, or, where
/// there is no hop, the way the frame came.
pub fn replied(input: &[u8], output: &[u8], has_hop: impl Fn(Ipv4Addr) -> bool) -> Result<(), String> {
    let before = Packet::read(input).map_err(|why| format!("a broken packet was answered: {why}"))?;
    let after = Packet::read(output).map_err(|why| format!("the answer is no packet: {why}"))?;
    must(after.header_is_right() && after.residue() == 0, "a checksum is wrong")?;
    let header = match has_hop(before.source()) {
        true => output[..12].to_vec(),
        false => [&input[6..12], &input[..6], &input[12..12 + 4 * before.tags]].concat(),
    };
    must(output.starts_with(&header), "another way back")?;
    must(output.len() == header.len() + 2 + after.ip.len(), "tags or padding were left")?;
    must(after.destination() == before.source() && after.ttl() == 64, "it does not go back")?;
    let message = after.segment();
    match after.protocol() {
        TCP => {
            let flags = before.segment()[13];
            must(before.residue() == 0, "a broken segment was answered")?;
            must(flags & 4 == 0, "a reset was answered")?;
            let (from, to, _) = before.flow().ok_or("a reset for no TCP")?;
            must(after.flow() == Some((to, from, TCP)), "the reset is not the way back")?;
            must(message[13] & 4 != 0 && after.ip.len() == 40, "it is no bare reset")
        }
        SCTP => {
            let (from, to, _) = before.flow().ok_or("an abort for no SCTP")?;
            let asked = before.segment();
            must(before.residue() == 0, "a broken packet was answered")?;
            must(!matches!(asked[12], 6 | 14), "what nobody answers was answered")?;
            must(after.flow() == Some((to, from, SCTP)), "the abort is not the way back")?;
            must(message[4..8] == asked[4..8], "another tag")?;
            must(matches!(message[12..], [6 | 14, 1, 0, 4]), "neither abort nor shutdown complete, with T")
        }
        ICMP => {
            must(matches!(message[0], 3 | 11), "an odd error")?;
            must(before.protocol() != ICMP, "an error about an ICMP packet")?;
            let quote = &message[8..];
            must(quote.len() == before.ip.len().min(548), "the quote's length")?;
            // IPVS finds a request too long, or its real server mute, after it has taken one from its TTL, and quotes it so; as a router it looks before.
            let mut aged = before.ip.to_vec();
            aged[8] = aged[8].wrapping_sub(1);
            aged[10..12].fill(0);
            let header = usize::from(aged[0] & 0xf) * 4;
            let sum = checksum(&aged[..header]);
            aged[10..12].copy_from_slice(&sum.to_be_bytes());
            let may_be_aged = matches!(message[..2], [3, 1 | 4]);
            let same = quote == &before.ip[..quote.len()] || may_be_aged && quote == &aged[..quote.len()];
            must(same, "the quote is not what came")
        }
        _ => Err("an answer of an unknown protocol".to_owned()),
    }
}

fn ports(((_, source), (_, destination), _): Flow) -> (u16, u16) {
    (source, destination)
}

/// Puts address and port into the quoted packet, on the other side than outside.
fn rewrite_quote(before: &Packet, expected: &mut [u8], place: usize, (address, port): (Ipv4Addr, u16)) {
    let Some((_, inner_header)) = before.quote() else { return };
    let (place, port_at) = if place == 16 { (12, 0) } else { (16, 2) };
    let inner = &mut expected[before.header + 8..];
    inner[place..place + 4].copy_from_slice(&address.octets());
    inner[inner_header + port_at..][..2].copy_from_slice(&port.to_be_bytes());
}

/// Whether the quoted checksums changed by as much as the quoted words did. A quote may be cut short, so it cannot be
/// summed up.
fn quote_is_adjusted(before: &Packet, after: &Packet) -> Result<(), String> {
    let Some(((old, header), (new, _))) = before.quote().zip(after.quote()) else {
        return Err("an error that quotes nothing was translated".to_owned());
    };
    must(checksum(&old[..header]) == checksum(&new[..header]), "the quoted IP checksum")?;
    let at = header + checksum_at(old[9]);
    if old[9] == SCTP || old.len() < at + 2 || (old[9] == UDP && word(old, at) == 0) {
        return Ok(());
    }
    // The pseudo header, the ports and the field; the rest is the same.
    let sum = |inner: &[u8]| {
        let mut words = inner[12..20].to_vec();
        words.extend(&inner[header..header + 4]);
        words.extend(&inner[at..at + 2]);
        checksum(&words) % 0xffff
    };
    must(sum(old) == sum(new), "the quoted transport checksum")
}

/// Blanks the checksums, which are compared by meaning, and the reserved bit, which a packet loses when it is cut up (`ip_frag_next`).
fn mask(packet: &mut [u8], header: usize) {
    packet[6] &= 0x7f;
    packet[10..12].fill(0);
    let protocol = packet[9];
    let at = header + checksum_at(protocol);
    packet[at..at + if protocol == SCTP { 4 } else { 2 }].fill(0);
    if protocol == ICMP && packet.len() >= header + 8 + 20 {
        let inner = &mut packet[header + 8..];
        inner[10..12].fill(0);
        let at = usize::from(inner[0] & 15) * 4 + checksum_at(inner[9]);
        // A quoted CRC stays as it is.
        if inner[9] != SCTP
            && let Some(field) = inner.get_mut(at..at + 2)
        {
            field.fill(0);
        }
    }
}

fn flow(ip: &[u8], segment: &[u8]) -> Flow {
    ((address(ip, 12), word(segment, 0)), (address(ip, 16), word(segment, 2)), ip[9])
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        SCTP => 8,
        _ => 2,
    }
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn must(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

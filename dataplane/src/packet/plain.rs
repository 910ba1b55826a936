//! The plainest and most frequent frames: a whole, sound TCP segment or UDP datagram without VLAN tags, IP options and extension headers. All that
//! the director asks of them stands at places known beforehand, so they are read and written as what they are: nothing is looked for, and nothing checked twice.

use zerocopy::big_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_ref};

use super::checksum::{Folded, is_right_header};
use super::parse::{ETHERNET, tcp_flags};
use super::protocol::{TCP, UDP};
use super::{Address, Meta, Packet, Tuple, V4, V6, Words};

/// The headers of a plain frame, in place. Of a UDP datagram's data they hold the beginning, or what lies in memory behind it.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Plain<H> {
    /// Destination and source addresses of the frame.
    pub macs: [u8; 12],
    ethertype: U16,
    ip: H,
    /// The source's and the destination's.
    ports: [U16; 2],
    /// UDP's length; half of TCP's sequence number.
    length: [u8; 2],
    /// UDP's; the other half.
    udp_checksum: U16,
    /// The rest is TCP's.
    acknowledged: [u8; 4],
    offset: u8,
    flags: u8,
    window: [u8; 2],
    tcp_checksum: U16,
    urgent: [u8; 2],
}

/// An IPv4 header (RFC 791 §3.1).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HeaderV4 {
    /// With the header's length.
    version: u8,
    tos: u8,
    length: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    /// The source's and the destination's.
    addresses: [U32; 2],
}

/// An IPv6 header (RFC 8200 §3).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HeaderV6 {
    /// With half of the traffic class.
    version: u8,
    flow: [u8; 3],
    /// Without this header.
    length: U16,
    protocol: u8,
    hop_limit: u8,
    source: U128,
    destination: U128,
}

/// An IP header without options and extensions.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {
    /// The family's addresses.
    type Address: Address;

    /// Whether it is one, sound, of a whole packet.
    fn is_sound(&self) -> bool;

    /// Bytes of the packet, from this header on.
    fn length(&self) -> u16;

    /// The protocol number of what follows.
    fn protocol(&self) -> u8;

    /// The time to live, or hop limit.
    fn hops_left(&self) -> u8;

    /// From where to where.
    fn ends(&self) -> (Self::Address, Self::Address);

    /// Replaces the source address.
    fn set_source(&mut self, address: Self::Address);

    /// Replaces the destination address.
    fn set_destination(&mut self, address: Self::Address);

    /// Adjusts the header's checksum, where it has one.
    fn adjust(&mut self, change: Folded);

    /// Takes one from the time to live, which has one to take, and adjusts the header's checksum.
    fn age(&mut self);
}

impl<H: Header> Plain<H> {
    /// The headers of a frame, if it is a plain one of this family.
    #[inline]
    pub fn of<'a>(packet: &'a Packet) -> Option<&'a Self> {
        Self::of_wanted(packet, |_| true)
    }

    /// The same, if it [is midstream](Self::is_midstream).
    #[inline]
    pub fn midstream<'a>(packet: &'a Packet) -> Option<&'a Self> {
        Self::of_wanted(packet, Self::leaves_established)
    }

    /// The headers of a plain frame with a datagram, or a segment that is wanted.
    #[inline(always)]
    fn of_wanted<'a>(packet: &'a Packet, is_wanted: impl Fn(&Self) -> bool) -> Option<&'a Self> {
        let start = packet.start();
        let (plain, _) = Self::ref_from_prefix(packet.chunk.get(start..)?).ok()?;
        let least = match plain.ip.protocol() {
            TCP if is_wanted(plain) => 20,
            UDP => 8,
            _ => return None,
        };
        let length = usize::from(plain.ip.length());
        let is_whole = least + size_of::<H>() <= length && ETHERNET + length <= packet.len();
        (is_whole && plain.ethertype.get() == H::Address::ETHERTYPE && plain.ip.is_sound()).then_some(plain)
    }

    /// The headers of a frame that is [known](Self::of) to be plain.
    #[inline]
    pub fn again<'a>(packet: &'a mut Packet) -> Option<&'a mut Self> {
        let start = packet.start();
        let (plain, _) = Self::mut_from_prefix(packet.chunk.get_mut(start..)?).ok()?;
        Some(plain)
    }

    /// What [`parse`](super::parse()) says of it.
    #[inline]
    pub fn meta(&self) -> Meta<H::Address> {
        let transport = ETHERNET + size_of::<H>();
        Meta {
            tuple: self.tuple(),
            network: ETHERNET as u16,
            transport: transport as u16,
            end: ETHERNET as u16 + self.length(),
            flags: self.flags(),
            fragment: None,
        }
    }

    /// What it carries.
    #[inline]
    pub fn tuple(&self) -> Tuple<H::Address> {
        let (source, destination) = self.ip.ends();
        let ports = self.ports();
        Tuple {
            source,
            destination,
            source_port: (ports >> 16) as u16,
            destination_port: ports as u16,
            protocol: self.ip.protocol(),
        }
    }

    /// The same as words, which are read as such.
    #[inline]
    pub fn words(&self) -> Words<H::Address> {
        let (source, destination) = self.ip.ends();
        Words::new(H::Address::pair(source, destination), self.ip.protocol(), self.ports())
    }

    #[inline]
    fn ports(&self) -> u32 {
        let ports: &U32 = transmute_ref!(&self.ports);
        ports.get()
    }

    /// Its IP header.
    #[inline]
    pub fn ip(&mut self) -> &mut H {
        &mut self.ip
    }

    /// Bytes from the IP header on.
    #[inline]
    pub fn length(&self) -> u16 {
        self.ip.length()
    }

    /// Its time to live.
    #[inline]
    pub fn hops_left(&self) -> u8 {
        self.ip.hops_left()
    }

    /// Whether it is a datagram; otherwise it is a segment.
    #[inline]
    pub fn is_udp(&self) -> bool {
        self.ip.protocol() == UDP
    }

    /// TCP's flags; 0 for UDP.
    #[inline]
    pub fn flags(&self) -> u8 {
        if self.is_udp() { 0 } else { self.flags }
    }

    /// Whether it changes no state: a datagram, or a segment that leaves an established connection established, whoever sends it.
    #[inline]
    pub fn is_midstream(&self) -> bool {
        self.is_udp() || self.leaves_established()
    }

    /// Whether a segment does so.
    #[inline]
    fn leaves_established(&self) -> bool {
        self.flags & tcp_flags::DECISIVE == tcp_flags::ACK
    }

    /// Sends it on as a router does.
    #[inline]
    pub fn age(&mut self) {
        self.ip.age();
    }

    /// Replaces its ends, as [`nat`](crate::forward::nat) does, and ages it. `false` if it has no checksum, as a datagram need not; nothing has changed then.
    #[inline(always)]
    pub fn translate(
        &mut self,
        source: Option<End<H>>,
        destination: Option<End<H>>,
        by: Translation,
    ) -> bool {
        if !self.is_udp() {
            by.transport.apply(&mut self.tcp_checksum);
        } else if self.udp_checksum == U16::ZERO {
            return false;
        } else {
            by.transport.apply(&mut self.udp_checksum);
            // RFC 768: a computed zero is sent as all ones, because zero says that there is none.
            if self.udp_checksum == U16::ZERO {
                self.udp_checksum = U16::MAX_VALUE;
            }
        }
        if let Some((address, port)) = source {
            self.ip.set_source(address);
            self.ports[0].set(port);
        }
        if let Some((address, port)) = destination {
            self.ip.set_destination(address);
            self.ports[1].set(port);
        }
        self.ip.adjust(by.header);
        self.ip.age();
        true
    }
}

/// What changes checksums where a packet's ends are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// By its addresses: an IPv4 header's.
    pub header: Folded,
    /// By its addresses and ports: that of what it carries.
    pub transport: Folded,
}

impl Translation {
    /// That of packets that go the other way.
    #[inline]
    pub fn reversed(self) -> Self {
        Self { header: self.header.reversed(), transport: self.transport.reversed() }
    }
}

/// An end of a connection.
type End<H> = (<H as Header>::Address, u16);

impl Header for HeaderV4 {
    type Address = V4;

    #[inline]
    fn is_sound(&self) -> bool {
        self.version == 0x45 && self.fragment.get() & 0x3fff == 0 && is_right_header(transmute_ref!(self))
    }

    #[inline]
    fn length(&self) -> u16 {
        self.length.get()
    }

    #[inline]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline]
    fn hops_left(&self) -> u8 {
        self.ttl
    }

    #[inline]
    fn ends(&self) -> (V4, V4) {
        let pair: &U64 = transmute_ref!(&self.addresses);
        (V4((pair.get() >> 32) as u32), V4(pair.get() as u32))
    }

    #[inline]
    fn set_source(&mut self, address: V4) {
        self.addresses[0].set(address.0);
    }

    #[inline]
    fn set_destination(&mut self, address: V4) {
        self.addresses[1].set(address.0);
    }

    #[inline(always)]
    fn adjust(&mut self, change: Folded) {
        change.apply(&mut self.checksum);
    }

    #[inline(always)]
    fn age(&mut self) {
        self.ttl = self.ttl.wrapping_sub(1);
        Folded::HOP.apply(&mut self.checksum);
    }
}

impl Header for HeaderV6 {
    type Address = V6;

    #[inline]
    fn is_sound(&self) -> bool {
        self.version >> 4 == 6
    }

    #[inline]
    fn length(&self) -> u16 {
        // One that would be longer than can be said is longer than any frame, too.
        self.length.get().saturating_add(V6::HEADER as u16)
    }

    #[inline]
    fn protocol(&self) -> u8 {
        self.protocol
    }

    #[inline]
    fn hops_left(&self) -> u8 {
        self.hop_limit
    }

    #[inline]
    fn ends(&self) -> (V6, V6) {
        (V6(self.source.get()), V6(self.destination.get()))
    }

    #[inline]
    fn set_source(&mut self, address: V6) {
        self.source.set(address.0);
    }

    #[inline]
    fn set_destination(&mut self, address: V6) {
        self.destination.set(address.0);
    }

    #[inline(always)]
    fn adjust(&mut self, _: Folded) {}

    #[inline(always)]
    fn age(&mut self) {
        self.hop_limit = self.hop_limit.wrapping_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::checksum::{Change, Sum};
    use super::super::{CHUNK, Extent, Parsed, parse, put16, tags};
    use super::*;
    use crate::service::PortId;

    /// A frame that is plain, or nearly: UDP or TCP most often, and often whole.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let header = (any::<bool>(), prop::sample::select(&[TCP, TCP, UDP, UDP, 132, 1][..]), 0u16..60);
        let bytes = prop::collection::vec(any::<u8>(), 70);
        let broken = prop::option::of((12usize..60, any::<u8>()));
        (header, bytes, 40usize..110, broken, any::<bool>()).prop_map(
            |(header, bytes, length, broken, mended)| {
                let (is_v4, protocol, payload) = header;
                let mut frame = vec![2; 12];
                if is_v4 {
                    frame.extend([
                        0x08,
                        0,
                        0x45,
                        0,
                        0,
                        20 + payload as u8,
                        0,
                        1,
                        0x40,
                        0,
                        64,
                        protocol,
                        0,
                        0,
                    ]);
                } else {
                    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload as u8, protocol, 64]);
                }
                frame.extend(bytes);
                frame.truncate(length);
                if let Some((at, byte)) = broken
                    && at < frame.len()
                {
                    frame[at] = byte;
                }
                if is_v4 && mended {
                    frame[24..26].fill(0);
                    let field = Sum::default().bytes(&frame[14..34]).field();
                    put16(&mut frame, 24, field);
                }
                frame
            },
        )
    }

    fn agrees<H: Header>(chunk: &mut [u8; CHUNK], len: usize, long: Option<Meta<H::Address>>) {
        let mut extent = Extent::new(64, len, PortId(0));
        let packet = Packet::new(chunk, &mut extent);
        match (Plain::<H>::of(&packet), long) {
            (Some(plain), long) => assert_eq!(Some(plain.meta()), long),
            (None, Some(meta)) => {
                let is_other = !matches!(meta.tuple.protocol, TCP | UDP);
                let has_more = usize::from(meta.transport) != ETHERNET + H::Address::HEADER;
                assert!(is_other || has_more || meta.fragment.is_some(), "{meta:?}");
            }
            (None, None) => {}
        }
    }

    #[test]
    fn a_header_ages_whatever_its_checksum() {
        for field in 0..=u16::MAX {
            let mut header = HeaderV4::read_from_bytes(&[0; 20]).unwrap();
            (header.ttl, header.protocol) = (64, TCP);
            header.checksum.set(field);
            header.age();
            // The time to live shares a word with the protocol.
            assert_eq!(
                header.checksum.get(),
                Change::default().word(0x4006, 0x3f06).apply(field),
                "{field:#x}"
            );
            assert_eq!(header.ttl, 63);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// What a short look says of a plain frame is what the parser says, and it leaves no plain frame to that one.
        #[test]
        fn plain_frames_are_to_both_parsers_the_same(frame in frames()) {
            let mut chunk = [0xee; CHUNK];
            chunk[64..64 + frame.len()].copy_from_slice(&frame);
            let (v4, v6) = match parse(&frame) {
                Ok(Parsed::V4(meta)) => (Some(meta), None),
                Ok(Parsed::V6(meta)) => (None, Some(meta)),
                Err(_) => (None, None),
            };
            agrees::<HeaderV4>(&mut chunk, frame.len(), v4);
            agrees::<HeaderV6>(&mut chunk, frame.len(), v6);
        }
    }

    #[test]
    fn tagged_frames_are_not_plain() {
        let tagged = [&[2; 12][..], &tags::VLAN.to_be_bytes(), &[0, 7, 8, 0, 0x45], &[0; 100]].concat();
        let mut chunk = [0; CHUNK];
        chunk[..tagged.len()].copy_from_slice(&tagged);
        let mut extent = Extent::new(0, tagged.len(), PortId(0));
        let packet = Packet::new(&mut chunk, &mut extent);
        assert!(Plain::<HeaderV4>::of(&packet).is_none());
    }
}

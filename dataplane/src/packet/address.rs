//! The two address families: what differs between IPv4 and IPv6 headers, and nothing else.
//!
//! Everything above is written once, for an [`Address`]; a connection, its table and its way through the director are of one family.
//! What a family must say is how long its header is, where things stand in it, and how they change.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromZeros, Immutable};

use super::checksum::{Change, Sum};
use super::parse::Fragment;
use super::plain::{Header, HeaderV4, HeaderV6};
use super::{be16, be32, protocol, put16, put32};

/// An IPv4 address, in host order so that it is a number to mask and to hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromZeros, Immutable)]
#[repr(transparent)]
pub struct V4(pub u32);

/// An IPv6 address, in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromZeros, Immutable)]
#[repr(transparent)]
pub struct V6(pub u128);

/// An address of either family, and what its family's header looks like. `ip` is always a slice that begins with a whole header.
pub trait Address:
    Copy + Eq + Hash + Debug + Default + FromZeros + Immutable + Into<IpAddr> + 'static
{
    /// The family's header, without options and extensions.
    type Header: Header<Address = Self>;
    /// Two addresses, as what is compared at once.
    type Pair: Copy + Eq;

    /// The family's ethertype.
    const ETHERTYPE: u16;
    /// Bytes of a header without options or extensions.
    const HEADER: usize;
    /// Where the source address stands.
    const SOURCE: usize;
    /// Where the destination address stands.
    const DESTINATION: usize;
    /// The protocol number of the family's ICMP.
    const ICMP: u8;
    /// Bytes of an ICMP error at most, IP header included (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
    const LONGEST_ERROR: usize;
    /// Bytes of IP that every path must carry (RFC 791 §3.2, RFC 8200 §5).
    const LEAST_MTU: u16;
    /// Whether routers may cut packets up that do not forbid it.
    const ROUTERS_FRAGMENT: bool;

    /// The address if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;

    /// The address that stands at an offset.
    fn read(bytes: &[u8], at: usize) -> Self;

    /// Writes the address to an offset.
    fn write(self, bytes: &mut [u8], at: usize);

    /// The bits of the address that a mask has.
    #[must_use]
    fn masked(self, mask: Self) -> Self;

    /// Whether no host has it that sends by a wire: loopback, a group's; of IPv4 also everybody's and this network's (RFC 1122 §3.2.1.3).
    fn is_no_source(self) -> bool;

    /// The address folded into 64 bits, injectively where it fits.
    fn word(self) -> u64;

    /// Where a packet is from and where it goes.
    fn pair(source: Self, destination: Self) -> Self::Pair;

    /// The same in 64 bits: as it is where it fits, otherwise mixed with a key. Mixed without one, there would be addresses that are one word whatever the key, and
    /// who has a network of them could choose them.
    fn word_of(pair: Self::Pair, key: [u64; 3]) -> u64;

    /// The address added to a sum.
    fn sum(self, sum: Sum) -> Sum;

    /// The change of a sum in which this address becomes another.
    fn becomes(self, other: Self, change: Change) -> Change;

    /// The time to live, or hop limit.
    fn hops_left(ip: &[u8]) -> u8;

    /// The type of service, or traffic class.
    fn tos(ip: &[u8]) -> u8;

    /// Takes one from the time to live, and adjusts the header's own checksum, where it has one, by this and by what else was changed. The caller has
    /// seen that there is one to take, or [put it on](Self::spare).
    fn age(ip: &mut [u8], change: Change);

    /// Puts one on the time to live, which is about to be taken off again.
    fn spare(ip: &mut [u8]);

    /// Adjusts the header's own checksum, where it has one.
    fn adjust_header(ip: &mut [u8], change: Change);

    /// Makes the packet longer by so many bytes (or shorter, by what wraps), as its header has it. Gives `change` with that of the pseudo header's length.
    fn lengthen(ip: &mut [u8], by: u16, change: Change) -> Change;

    /// Bytes behind the IP header (of `header` bytes, extensions included), as the header has it.
    fn payload_length(ip: &[u8], header: usize) -> usize;

    /// Bytes of the header that [`write_onward`](Self::write_onward) writes.
    fn onward_header(onward: &Onward) -> usize;

    /// Writes a header for a packet that the director sends on in another one's place, around it or translated, `payload` bytes behind it.
    fn write_onward(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        onward: &Onward,
        source: Self,
        destination: Self,
    );

    /// Whether the packet's sender forbids cutting it up.
    fn forbids_fragments(ip: &[u8]) -> bool;

    /// Writes a header of [`HEADER`](Self::HEADER) bytes for a packet that the director sends itself, `payload` bytes behind it. `tos` is what
    /// the sender's packet had; `error` says that this is an ICMP error.
    fn write_header(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        error: Option<u8>,
        source: Self,
        destination: Self,
    );

    /// Says in a header written so that its sender understands congestion marks (ECT(0) of RFC 3168 §5).
    fn mark_ecn_capable(ip: &mut [u8]);
}

/// What a packet that is sent on under a new header takes from its old one.
#[derive(Clone, Copy, Debug)]
pub struct Onward {
    /// The time to live.
    pub ttl: u8,
    /// The type of service.
    pub tos: u8,
    /// Which part of a datagram it is.
    pub fragment: Option<Fragment>,
    /// Whether routers may cut it up.
    pub may_be_cut: bool,
    /// Its id, if they may.
    pub id: u16,
}

/// TTL of packets that the director sends itself: the kernel's default (`net.ipv4.ip_default_ttl`, hop limit of IPv6).
const OWN_TTL: u8 = 64;

const V4_CHECKSUM: usize = 10;

/// The word about fragments of a header that forbids them, and whose id means nothing (RFC 6864).
const FORBIDS_FRAGMENTS: u32 = 0x4000;

/// The kind of an IPv6 fragment header.
pub const FRAGMENT: u8 = 44;

/// Bytes of an IPv6 fragment header.
pub const FRAGMENT_HEADER: usize = 8;

impl Address for V4 {
    type Header = HeaderV4;
    type Pair = u64;

    const ETHERTYPE: u16 = 0x0800;
    const HEADER: usize = 20;
    const SOURCE: usize = 12;
    const DESTINATION: usize = 16;
    const ICMP: u8 = protocol::ICMP;
    const LONGEST_ERROR: usize = 576;
    const LEAST_MTU: u16 = 68;
    const ROUTERS_FRAGMENT: bool = true;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[inline]
    fn read(bytes: &[u8], at: usize) -> Self {
        Self(be32(bytes, at))
    }

    #[inline]
    fn write(self, bytes: &mut [u8], at: usize) {
        put32(bytes, at, self.0);
    }

    #[inline]
    fn is_no_source(self) -> bool {
        matches!(self.0 >> 24, 0 | 127 | 224..=239) || self.0 == u32::MAX
    }

    #[inline]
    fn masked(self, mask: Self) -> Self {
        Self(self.0 & mask.0)
    }

    #[inline]
    fn word(self) -> u64 {
        u64::from(self.0)
    }

    #[inline]
    fn pair(source: Self, destination: Self) -> u64 {
        u64::from(source.0) << 32 | u64::from(destination.0)
    }

    #[inline]
    fn word_of(pair: u64, _: [u64; 3]) -> u64 {
        pair
    }

    #[inline]
    fn sum(self, sum: Sum) -> Sum {
        sum.long(self.0)
    }

    #[inline]
    fn becomes(self, other: Self, change: Change) -> Change {
        change.long(self.0, other.0)
    }

    #[inline]
    fn hops_left(ip: &[u8]) -> u8 {
        ip[8]
    }

    #[inline]
    fn tos(ip: &[u8]) -> u8 {
        ip[1]
    }

    #[inline]
    fn age(ip: &mut [u8], change: Change) {
        add_to_ttl(ip, u8::MAX, change);
    }

    fn spare(ip: &mut [u8]) {
        add_to_ttl(ip, 1, Change::default());
    }

    #[inline]
    fn adjust_header(ip: &mut [u8], change: Change) {
        let Some(field) = ip[V4_CHECKSUM..].first_chunk_mut() else { return };
        *field = change.apply(u16::from_be_bytes(*field)).to_be_bytes();
    }

    fn lengthen(ip: &mut [u8], by: u16, change: Change) -> Change {
        let old = be16(ip, 2);
        let new = old.wrapping_add(by);
        put16(ip, 2, new);
        Self::adjust_header(ip, Change::default().word(old, new));
        change.word(old, new)
    }

    fn payload_length(ip: &[u8], header: usize) -> usize {
        usize::from(be16(ip, 2)).saturating_sub(header)
    }

    fn onward_header(_onward: &Onward) -> usize {
        Self::HEADER
    }

    #[inline(always)]
    fn write_onward(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        onward: &Onward,
        source: Self,
        destination: Self,
    ) {
        let part = match onward.fragment {
            Some(part) => part.id << 16 | u32::from(part.more) << 13 | u32::from(part.offset),
            None if onward.may_be_cut => u32::from(onward.id) << 16,
            None => FORBIDS_FRAGMENTS,
        };
        let kind = u32::from(onward.ttl) << 24 | u32::from(protocol) << 16;
        write_v4(ip, onward.tos, payload, part, kind, [source, destination]);
    }

    #[inline]
    fn forbids_fragments(ip: &[u8]) -> bool {
        ip[6] & 0x40 != 0
    }

    fn write_header(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        error: Option<u8>,
        source: Self,
        destination: Self,
    ) {
        // The kernel marks errors "internetwork control" and keeps the rest of the sender's TOS (`icmp_send`); a reset forbids fragments and
        // needs no id (`ip_send_unicast_reply`).
        let tos = error.map_or(0, |tos| tos & 0x1e | 0xc0);
        let part = if error.is_some() { 0 } else { FORBIDS_FRAGMENTS };
        let kind = u32::from_be_bytes([OWN_TTL, protocol, 0, 0]);
        write_v4(ip, tos, payload, part, kind, [source, destination]);
    }

    fn mark_ecn_capable(ip: &mut [u8]) {
        let old = be16(ip, 0);
        put16(ip, 0, old | 0x0002);
        Self::adjust_header(ip, Change::default().word(old, old | 0x0002));
    }
}

/// Adds to the time to live, which wraps. The protocol, in the other half of its word, stays.
#[inline]
fn add_to_ttl(ip: &mut [u8], more: u8, change: Change) {
    let Some(header) = ip.first_chunk_mut::<{ V4::HEADER }>() else { return };
    let old = header[8];
    header[8] = old.wrapping_add(more);
    let change = change.word(u16::from(old) << 8, u16::from(header[8]) << 8);
    let field = change.apply(be16(header, V4_CHECKSUM));
    put16(header, V4_CHECKSUM, field);
}

/// The words of a header without options: `part` is the one about fragments, `kind` the one of TTL and protocol.
// Summed as they are written: to read them back from where they have just been written in other pieces would be to wait.
#[inline(always)]
fn write_v4(ip: &mut [u8], tos: u8, payload: usize, part: u32, kind: u32, [source, destination]: [V4; 2]) {
    let length = (V4::HEADER + payload) as u16;
    let first = 0x4500_0000 | u32::from(tos) << 16 | u32::from(length);
    let words = [first, part, kind, source.0, destination.0];
    let field = words.iter().fold(Sum::default(), |sum, word| sum.long(*word)).field();
    let words = [first, part, kind | u32::from(field), source.0, destination.0];
    for (place, word) in ip.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

impl Address for V6 {
    type Header = HeaderV6;
    type Pair = [Self; 2];

    const ETHERTYPE: u16 = 0x86dd;
    const HEADER: usize = 40;
    const SOURCE: usize = 8;
    const DESTINATION: usize = 24;
    const ICMP: u8 = protocol::ICMPV6;
    const LONGEST_ERROR: usize = 1280;
    const LEAST_MTU: u16 = 1280;
    const ROUTERS_FRAGMENT: bool = false;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    #[inline]
    fn read(bytes: &[u8], at: usize) -> Self {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        Self(u128::from_be_bytes(octets))
    }

    #[inline]
    fn write(self, bytes: &mut [u8], at: usize) {
        bytes[at..at + 16].copy_from_slice(&self.0.to_be_bytes());
    }

    fn is_no_source(self) -> bool {
        let address = Ipv6Addr::from_bits(self.0);
        address.is_loopback() || address.is_multicast()
    }

    #[inline]
    fn masked(self, mask: Self) -> Self {
        Self(self.0 & mask.0)
    }

    #[inline]
    fn word(self) -> u64 {
        // Both halves count, and neither cancels the other when they are alike.
        (self.0 >> 64) as u64 ^ (self.0 as u64).wrapping_mul(SPREAD).rotate_left(31)
    }

    #[inline]
    fn pair(source: Self, destination: Self) -> [Self; 2] {
        [source, destination]
    }

    #[inline]
    fn word_of([source, destination]: [Self; 2], [a, b, c]: [u64; 3]) -> u64 {
        let [source, destination] = [source, destination].map(|V6(it)| ((it >> 64) as u64, it as u64));
        mix(source.0 ^ a, source.1 ^ b).wrapping_add(mix(destination.0 ^ b, destination.1 ^ c))
    }

    #[inline]
    fn sum(self, sum: Sum) -> Sum {
        self.longs().into_iter().fold(sum, Sum::long)
    }

    #[inline]
    fn becomes(self, other: Self, change: Change) -> Change {
        self.longs().into_iter().zip(other.longs()).fold(change, |change, (old, new)| change.long(old, new))
    }

    #[inline]
    fn hops_left(ip: &[u8]) -> u8 {
        ip[7]
    }

    #[inline]
    fn tos(ip: &[u8]) -> u8 {
        (be16(ip, 0) >> 4) as u8
    }

    #[inline]
    fn age(ip: &mut [u8], _change: Change) {
        ip[7] = ip[7].wrapping_sub(1);
    }

    fn spare(ip: &mut [u8]) {
        ip[7] = ip[7].wrapping_add(1);
    }

    #[inline]
    fn adjust_header(_ip: &mut [u8], _change: Change) {}

    fn lengthen(ip: &mut [u8], by: u16, change: Change) -> Change {
        let old = be16(ip, 4);
        let new = old.wrapping_add(by);
        put16(ip, 4, new);
        change.word(old, new)
    }

    fn payload_length(ip: &[u8], header: usize) -> usize {
        (usize::from(be16(ip, 4)) + Self::HEADER).saturating_sub(header)
    }

    fn onward_header(onward: &Onward) -> usize {
        Self::HEADER + if onward.fragment.is_some() { FRAGMENT_HEADER } else { 0 }
    }

    #[inline(always)]
    fn write_onward(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        onward: &Onward,
        source: Self,
        destination: Self,
    ) {
        put32(ip, 0, 6 << 28 | u32::from(onward.tos) << 20);
        let extension = Self::onward_header(onward) - Self::HEADER;
        put16(ip, 4, (extension + payload) as u16);
        ip[6..8].copy_from_slice(&[protocol, onward.ttl]);
        source.write(ip, Self::SOURCE);
        destination.write(ip, Self::DESTINATION);
        if let Some(part) = onward.fragment {
            ip[6] = FRAGMENT;
            ip[Self::HEADER..Self::HEADER + 2].copy_from_slice(&[protocol, 0]);
            put16(ip, Self::HEADER + 2, part.offset << 3 | u16::from(part.more));
            put32(ip, Self::HEADER + 4, part.id);
        }
    }

    #[inline]
    fn forbids_fragments(_ip: &[u8]) -> bool {
        true
    }

    fn write_header(
        ip: &mut [u8],
        payload: usize,
        protocol: u8,
        _error: Option<u8>,
        source: Self,
        destination: Self,
    ) {
        put32(ip, 0, 0x6000_0000);
        put16(ip, 4, payload as u16);
        ip[6..8].copy_from_slice(&[protocol, OWN_TTL]);
        source.write(ip, Self::SOURCE);
        destination.write(ip, Self::DESTINATION);
    }

    fn mark_ecn_capable(ip: &mut [u8]) {
        ip[1] |= 0x20;
    }
}

/// Two words as one, each of whose bits depends on all of theirs. With a key in both, nobody who does not know it can say what becomes of which.
#[inline]
pub(crate) fn mix(x: u64, y: u64) -> u64 {
    let product = u128::from(x) * u128::from(y);
    product as u64 ^ (product >> 64) as u64
}

/// What words are multiplied by, so that all of their bits count in the product's upper ones, and two do not cancel each other: 2⁶⁴ by the golden ratio.
pub(crate) const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl V6 {
    #[inline]
    fn longs(self) -> [u32; 4] {
        [(self.0 >> 96) as u32, (self.0 >> 64) as u32, (self.0 >> 32) as u32, self.0 as u32]
    }
}

impl From<Ipv4Addr> for V4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.to_bits())
    }
}

impl From<V4> for IpAddr {
    fn from(address: V4) -> Self {
        IpAddr::V4(Ipv4Addr::from_bits(address.0))
    }
}

impl From<Ipv6Addr> for V6 {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.to_bits())
    }
}

impl From<V6> for IpAddr {
    fn from(address: V6) -> Self {
        IpAddr::V6(Ipv6Addr::from_bits(address.0))
    }
}

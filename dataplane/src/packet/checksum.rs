//! The Internet checksum (RFC 1071) and its adjustment (RFC 1624).
//!
//! A checksum field is the complement of the ones' complement sum of 16-bit words. When a few words of a packet change, the field
//! follows from the words' old and new values alone: `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3; equation 2 of RFC 1141
//! gets 0xffff wrong). A [`Change`] collects `~m + m'` over everything that a rewrite touches and is then applied to
//! each field that covers those words. The packet itself is never read: a wrong checksum stays wrong by as much.
//!
//! Two types for two meanings: a [`Sum`] is a running sum, a field is a `u16` as it stands in a header.

use zerocopy::big_endian::U16;

use super::{Address, array};

/// A running ones' complement sum, not folded and not complemented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd one at the end counts as followed by a zero.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let native = words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        Self(self.0 + u64::from(u16::from_be(fold(native))))
    }

    /// Adds a word.
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds two words.
    pub fn long(self, words: u32) -> Self {
        Self(self.0 + u64::from(words))
    }

    /// The checksum field that makes the whole sum come out right.
    pub fn field(self) -> u16 {
        !fold(self.0)
    }
}

/// The sum of the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).
pub fn pseudo_header<A: Address>(source: A, destination: A, protocol: u8, length: u16) -> Sum {
    destination.sum(source.sum(Sum::default())).word(u16::from(protocol)).word(length)
}

/// Whether the checksum of an IPv4 header without options is right. The header is not all zeros, as it has a version.
#[inline]
pub fn is_right_header(header: &[u8; 20]) -> bool {
    // Of words of 64 bits, in the machine's own order, each carry is worth one: 2¹⁶, and so 2⁶⁴, is 1 modulo 0xffff. That a sum comes out as 0xffff means that
    // it is a multiple of it, which takes one multiplication to tell, where to fold the sum takes ten instructions.
    let [upper, lower] = [0, 12].map(|at| u64::from_ne_bytes(array(header, at)));
    let middle = u64::from(u32::from_ne_bytes(array(header, 8)));
    let (sum, carry) = upper.overflowing_add(lower);
    let (sum, last_carry) = sum.carrying_add(middle, carry);
    (sum + u64::from(last_carry)).is_multiple_of(0xffff)
}

/// Folds a sum of words of 16 or 32 bits. In the machine's own order, which may not be the wire's, the sum is the same but for the order of its
/// bytes (RFC 1071 §2 B).
#[inline]
const fn fold(sum: u64) -> u16 {
    // Twice, the upper half becomes the sum of both, with the carry that the same addition has in the lower one.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// How much a rewrite changes a sum: `~m + m'` over the words it touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(u64);

impl Change {
    /// A word changes.
    #[inline]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Two words change.
    #[inline]
    pub fn long(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// Another change besides.
    #[inline]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Words of one sum become those of another.
    #[inline]
    pub fn replaced(self, old: Sum, new: Sum) -> Self {
        self.word(fold(old.0), fold(new.0))
    }

    /// Bytes are added, at an even place.
    #[inline]
    pub fn inserted(self, sum: Sum) -> Self {
        Self(self.0 + u64::from(fold(sum.0)))
    }

    /// The field after the change.
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        !fold(self.0 + u64::from(!field))
    }

    /// The same change, to be made of many fields.
    pub const fn folded(self) -> Folded {
        Folded(fold(self.0).to_be())
    }
}

/// A [`Change`] that is made of many packets: two instructions a field, in whose order it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Folded(u16);

impl Folded {
    /// A router has counted the time to live down, which is the upper half of its word.
    pub const HOP: Self = Change(0).word(0x100, 0).folded();

    /// The change that takes this one back.
    #[inline]
    pub fn reversed(self) -> Self {
        // A sum of `~m + m'` is 0xffff and not 0 where nothing changes.
        Self(if self.0 == 0xffff { 0xffff } else { !self.0 })
    }

    /// Makes the change of a field.
    #[inline]
    pub fn apply(self, field: &mut U16) {
        // `~(~HC + c)` is `HC - c`, with the borrow taken from the end as the carry is added there.
        let (changed, borrow) = u16::from_ne_bytes(field.to_bytes()).overflowing_sub(self.0);
        *field = U16::from_bytes(changed.wrapping_sub(borrow.into()).to_ne_bytes());
    }

    /// As a word.
    pub const fn into_word(self) -> u16 {
        self.0
    }

    /// From the [word](Self::into_word).
    #[inline]
    pub const fn from_word(word: u16) -> Self {
        Self(word)
    }
}

/// Puts the CRC of an SCTP packet into it (RFC 9260 §6.8, appendix A: CRC32c, its lowest byte first).
///
/// The packet has its common header at least.
pub fn write_sctp_crc(packet: &mut [u8]) {
    packet[SCTP_CRC].fill(0);
    let crc = crc32c::crc32c(packet).to_le_bytes();
    packet[SCTP_CRC].copy_from_slice(&crc);
}

/// Whether the CRC of an SCTP packet is right. The packet has its common header at least.
pub fn has_right_sctp_crc(packet: &[u8]) -> bool {
    let crc = crc32c::crc32c(&packet[..SCTP_CRC.start]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    let crc = crc32c::crc32c_append(crc, &packet[SCTP_CRC.end..]);
    packet[SCTP_CRC] == crc.to_le_bytes()
}

/// Where the CRC stands in SCTP's common header.
const SCTP_CRC: std::ops::Range<usize> = 8..12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::V4;

    #[test]
    fn the_example_of_rfc_1624() {
        // §4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, where RFC 1141 gave 0xffff.
        assert_eq!(Change::default().word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn the_crc_of_a_recorded_init() {
        // An INIT as `tests/golden/packets.json` has it, from 10.0.0.2:4001.
        let recorded = [
            0x0f, 0xa1, 0x13, 0x88, 0, 0, 0, 0, 0xfb, 0x3b, 0xed, 0xf3, 1, 0, 0, 0x14, 0, 0, 0, 7, 0, 0,
            0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 9,
        ];
        assert!(has_right_sctp_crc(&recorded));
        let mut packet = recorded;
        packet[9] ^= 1;
        assert!(!has_right_sctp_crc(&packet));
        write_sctp_crc(&mut packet);
        assert_eq!(packet, recorded);
    }

    #[test]
    fn an_odd_byte_counts_as_followed_by_zero() {
        assert_eq!(Sum::default().bytes(&[1, 2, 3]), Sum::default().bytes(&[1, 2, 3, 0]));
    }

    proptest! {
        #[test]
        fn a_whole_checksum_is_what_pnet_computes(
            segment in prop::collection::vec(any::<u8>(), 20..200), source: [u8; 4], destination: [u8; 4],
        ) {
            use pnet::packet::tcp::{TcpPacket, ipv4_checksum};
            let theirs = ipv4_checksum(&TcpPacket::new(&segment).unwrap(), &source.into(), &destination.into());
            let mut ours = segment.clone();
            ours[16..18].fill(0);
            let address = |octets| V4(u32::from_be_bytes(octets));
            let sum = pseudo_header(address(source), address(destination), 6, ours.len() as u16);
            prop_assert_eq!(sum.bytes(&ours).field(), theirs);
        }

        #[test]
        fn adjusting_is_recomputing(
            mut bytes in prop::collection::vec(any::<u8>(), 20..200),
            at in 0usize..4, new in any::<u32>(),
        ) {
            let at = at * 4;
            // The first word is kept non-zero: of an all-zero sum both 0 and 0xffff are representations.
            bytes[18] = 1;
            let before = Sum::default().bytes(&bytes).field();
            let old = super::super::be32(&bytes, at);
            super::super::put32(&mut bytes, at, new);
            let recomputed = Sum::default().bytes(&bytes).field();
            prop_assert_eq!(Change::default().long(old, new).apply(before), recomputed);
        }

        /// Words at the ends are frequent, so that sums of 64 bits carry; every other header is made right.
        #[test]
        fn a_header_is_right_if_its_sum_is(words in prop::array::uniform10(word()), is_mended: bool) {
            let mut header = [0x45; 20];
            for (at, word) in (0..20).step_by(2).zip(words).skip(1) {
                super::super::put16(&mut header, at, word as u16);
            }
            if is_mended {
                super::super::put16(&mut header, 10, 0);
                let field = Sum::default().bytes(&header).field();
                super::super::put16(&mut header, 10, field);
            }
            prop_assert_eq!(is_right_header(&header), Sum::default().bytes(&header).field() == 0);
        }

        /// There and back, also where nothing changes and where the field is one of the two zeros.
        #[test]
        fn a_folded_change_is_the_same_change(
            old in word(), new in word(), port in word(), field in word(),
        ) {
            let (old, new) = (old << 16 | port, new << 16 | port);
            let there = Change::default().long(old, new).word(old as u16, new as u16);
            let back = Change::default().long(new, old).word(new as u16, old as u16);
            for (folded, change) in [(there.folded(), there), (there.folded().reversed(), back)] {
                let mut changed = U16::new(field as u16);
                folded.apply(&mut changed);
                prop_assert_eq!(changed.get(), change.apply(field as u16));
                prop_assert_eq!(Folded::from_word(folded.into_word()), folded);
            }
        }
    }

    /// Words of 16 bits, often those at the ends.
    fn word() -> impl Strategy<Value = u32> {
        prop_oneof![Just(0), Just(0xffff), 0..=0xffffu32]
    }
}

//! Checksums that a sender on this machine left for hardware to finish.
//!
//! A local sender whose device offers checksum offload (veth, virtio_net) puts only the pseudo header's sum into
//! the TCP or UDP checksum field and marks the packet; the device would add the rest. On veth there is no hardware:
//! the mark travels with the packet and the kernel never looks at the field. A port that takes the packet from the
//! kernel loses the mark and keeps the half sum. The director adjusts checksums by difference (RFC 1624), so a half
//! sum would leave as garbage: ports finish it before they deliver the frame.
//!
//! Fragments are never partial: the kernel finishes a sum before it fragments (`ip_do_fragment`). SCTP's CRC is
//! left undone by the same senders, with zero in the field (`sctp_packet_pack`); it is finished too.

use crate::packet::checksum::write_sctp_crc;
use crate::packet::protocol::{SCTP, TCP, UDP};

/// Bytes of an Ethernet header without tags.
const ETHERNET: usize = 14;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// The tags that may precede the real ethertype: 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// IPv6 extension headers looked past. A packet with more is not from a sane sender; its checksum is left alone.
const EXTENSIONS: usize = 8;

/// Finishes the checksum of a frame that the kernel says is partial. Frames without a transport header that is
/// known here stay as they are.
pub(super) fn finish(frame: &mut [u8]) {
    if let Some(segment) = Segment::find(frame) {
        segment.write_checksum(frame);
    }
}

/// Finishes the checksum of a frame if it looks partial: the field holds exactly the pseudo header's sum, SCTP's zero. For ports
/// on devices that leave partial sums and cannot say on which packets (AF_XDP on veth and virtio_net).
///
/// One whole packet in 65 536 looks partial by chance. Computing its sum anew gives the value it already had, so
/// nothing is lost but the time; only a packet damaged on the way, one in 65 536 of those, would pass as sound.
pub(super) fn finish_if_partial(frame: &mut [u8]) {
    if let Some(segment) = Segment::find(frame)
        && segment.looks_partial(frame)
    {
        segment.write_checksum(frame);
    }
}

/// A transport header with its payload: `frame[start..end]`.
struct Segment {
    protocol: u8,
    start: usize,
    end: usize,
    /// The pseudo header's sum, not folded.
    pseudo: u64,
}

impl Segment {
    /// Finds the segment of a frame; `None` when it is not a whole, well-formed TCP, UDP or SCTP packet over IP.
    fn find(frame: &[u8]) -> Option<Self> {
        let mut at = ETHERNET;
        let mut ethertype = be16(frame, at - 2)?;
        for _ in 0..2 {
            if TAGS.contains(&ethertype) {
                at += 4;
                ethertype = be16(frame, at - 2)?;
            }
        }
        let segment = match ethertype {
            IPV4 => Self::in_ipv4(frame, at),
            IPV6 => Self::in_ipv6(frame, at),
            _ => None,
        }?;
        let whole = segment.end <= frame.len() && segment.start + segment.header_len()? <= segment.end;
        whole.then_some(segment)
    }

    fn in_ipv4(frame: &[u8], at: usize) -> Option<Self> {
        let header = frame.get(at..at + 20)?;
        let header_len = (header[0] & 0x0f) as usize * 4;
        let total = be16(header, 2)? as usize;
        // More fragments follow, or this is not the first one.
        let fragment = be16(header, 6)? & 0x3fff != 0;
        if header[0] >> 4 != 4 || header_len < 20 || total < header_len || fragment {
            return None;
        }
        let protocol = header[9];
        let pseudo = sum(&header[12..20]) + protocol as u64 + (total - header_len) as u64;
        Some(Self { protocol, start: at + header_len, end: at + total, pseudo })
    }

    fn in_ipv6(frame: &[u8], at: usize) -> Option<Self> {
        let header = frame.get(at..at + 40)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let end = at + 40 + be16(header, 4)? as usize;
        let (mut protocol, mut start) = (header[6], at + 40);
        for _ in 0..EXTENSIONS {
            match protocol {
                // Hop-by-hop and destination options: their length is in units of 8 bytes, the first not counted.
                0 | 60 => {
                    protocol = *frame.get(start)?;
                    start += (*frame.get(start + 1)? as usize + 1) * 8;
                }
                _ => break,
            }
        }
        let pseudo = sum(&header[8..40]) + protocol as u64 + end.checked_sub(start)? as u64;
        Some(Self { protocol, start, end, pseudo })
    }

    /// The shortest transport header; `None` for protocols whose checksum is not offloaded.
    fn header_len(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(20),
            UDP => Some(8),
            SCTP => Some(12),
            _ => None,
        }
    }

    /// Where the checksum is in the frame.
    fn field_at(&self) -> usize {
        self.start
            + match self.protocol {
                TCP => 16,
                UDP => 6,
                _ => 8,
            }
    }

    fn looks_partial(&self, frame: &[u8]) -> bool {
        let at = self.field_at();
        match self.protocol {
            SCTP => frame[at..at + 4] == [0; 4],
            _ => frame[at..at + 2] == fold(self.pseudo).to_be_bytes(),
        }
    }

    fn write_checksum(&self, frame: &mut [u8]) {
        let at = self.field_at();
        if self.protocol == SCTP {
            write_sctp_crc(&mut frame[self.start..self.end]);
            return;
        }
        frame[at..at + 2].fill(0);
        let checksum = match !fold(self.pseudo + sum(&frame[self.start..self.end])) {
            // RFC 768: zero means "no checksum", so a sum of zero is sent as its other form.
            0 if self.protocol == UDP => 0xffff,
            sum => sum,
        };
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The sum of `bytes` as big-endian 16-bit words (RFC 1071), an odd last byte padded with zero. Not folded: 64 bits
/// hold the words of 2⁴⁸ bytes.
fn sum(bytes: &[u8]) -> u64 {
    // Four bytes at a time: the upper and the lower word meet again when the sum is folded.
    let mut fours = bytes.chunks_exact(4);
    let whole: u64 = fours.by_ref().map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as u64).sum();
    let mut last = [0; 4];
    last[..fours.remainder().len()].copy_from_slice(fours.remainder());
    whole + u32::from_be_bytes(last) as u64
}

/// A sum in 16 bits, carries added back in.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::checksum::has_right_sctp_crc;

    /// A frame as a local sender makes it, its checksum field holding the pseudo header's sum.
    fn partial(v6: bool, tags: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for _ in 0..tags {
            frame.extend([0x81, 0x00, 0x00, 0x2a]);
        }
        let (header_len, field) = match protocol {
            TCP => (20, 16),
            UDP => (8, 6),
            _ => (12, 8),
        };
        let len = header_len + payload.len();
        let addresses = if v6 {
            frame.extend(IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            (1..=32).map(|n| n * 7).collect::<Vec<u8>>()
        } else {
            frame.extend(IPV4.to_be_bytes());
            frame.extend([0x45, 0]);
            frame.extend((len as u16 + 20).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            vec![10, 1, 2, 3, 192, 168, 200, 9]
        };
        frame.extend(&addresses);
        let start = frame.len();
        frame.resize(start + header_len, 0x11);
        frame[start + field..start + field + 2].fill(0);
        frame.extend(payload);
        if protocol == SCTP {
            frame[start + 8..start + 12].fill(0);
        } else {
            let pseudo = fold(sum(&addresses) + protocol as u64 + len as u64);
            frame[start + field..start + field + 2].copy_from_slice(&pseudo.to_be_bytes());
        }
        frame
    }

    /// What a receiver computes over pseudo header and segment: all ones when the checksum is right.
    fn receiver_sum(frame: &[u8]) -> u16 {
        let segment = Segment::find(frame).unwrap();
        fold(segment.pseudo + sum(&frame[segment.start..segment.end]))
    }

    proptest! {
        #[test]
        fn a_partial_sum_is_finished_and_a_whole_one_stays(
            v6: bool, tags in 0..3usize, tcp: bool, padding in 0..20usize,
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut frame = partial(v6, tags, if tcp { TCP } else { UDP }, &payload);
            // Ethernet padding belongs to no packet and must not be summed.
            frame.extend(std::iter::repeat_n(0xee, padding));
            let mut told = frame.clone();
            finish_if_partial(&mut frame);
            prop_assert_eq!(receiver_sum(&frame), 0xffff);
            finish(&mut told);
            prop_assert_eq!(&told, &frame);
            finish_if_partial(&mut told);
            prop_assert_eq!(&told, &frame, "done twice is done once");
        }

        #[test]
        fn any_bytes_are_survived(mut frame in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            finish(&mut frame);
            if frame.len() > 24 {
                frame[12..15].copy_from_slice(if v6 { &[0x86, 0xdd, 0x60] } else { &[0x08, 0x00, 0x45] });
                finish(&mut frame);
                finish_if_partial(&mut frame);
            }
        }
    }

    #[test]
    fn a_datagram_without_checksum_and_a_fragment_are_left_alone() {
        let mut none = partial(false, 0, UDP, b"no checksum");
        none[14 + 20 + 6..][..2].fill(0);
        let before = none.clone();
        finish_if_partial(&mut none);
        assert_eq!(none, before);

        let mut fragment = partial(false, 0, UDP, b"first of several");
        fragment[14 + 6] = 0x20;
        let before = fragment.clone();
        finish(&mut fragment);
        assert_eq!(fragment, before);
    }

    #[test]
    fn options_before_the_segment_are_looked_past() {
        let plain = partial(true, 0, TCP, b"behind options");
        let mut frame = plain[..54].to_vec();
        frame[14 + 6] = 60;
        frame[14 + 4..14 + 6].copy_from_slice(&((plain.len() - 54 + 8) as u16).to_be_bytes());
        frame.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend(&plain[54..]);
        finish_if_partial(&mut frame);
        assert_eq!(receiver_sum(&frame), 0xffff);
    }

    #[test]
    fn the_crc_of_sctp_is_finished_where_it_is_zero() {
        let mut frame = partial(false, 1, SCTP, b"chunk");
        let mut told = frame.clone();
        finish_if_partial(&mut frame);
        finish(&mut told);
        let segment = Segment::find(&frame).unwrap();
        assert!(has_right_sctp_crc(&frame[segment.start..segment.end]));
        assert_eq!(told, frame);

        frame[segment.start + 9] ^= 1;
        let wrong = frame.clone();
        finish_if_partial(&mut frame);
        assert_eq!(frame, wrong, "what is not zero is the sender's own");
    }
}

//! Cuts a packet up that is longer than its way takes, as a router does for IPv4 (RFC 791 §3.2) and the end of a tunnel for
//! its own outer packets of either family (RFC 8200 §4.5; `ip_do_fragment`, `ip6_fragment`).
//!
//! The packet is finished when it comes here: addressed, aged, wrapped. Pieces that leave before it are written elsewhere, the packet itself becomes
//! the last one.

use crate::packet::address::{FRAGMENT, FRAGMENT_HEADER};
use crate::packet::checksum::Sum;
use crate::packet::{Address, Packet, V4, V6, be16, be32, put16, put32};
use crate::port::frame::CHUNK;

/// More parts follow, in an IPv4 header.
const MORE: u16 = 0x2000;

/// How a packet is to be cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where the IP header begins in the frame.
    network: usize,
    /// Bytes of the headers that each piece has: up to the IP header's end.
    headers: usize,
    /// Where the data begins in the frame.
    begin: usize,
    /// Bytes of data in each piece but the last.
    step: usize,
    /// Bytes of data in all.
    data: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V4,
    /// With the fragment header that the whole packet has or would have: what follows, its place and flag, and the datagram's id.
    V6(u8, u16, u32),
}

impl Cut {
    /// How to cut up the packet of a frame, whose IP header is at `network`, so that no piece is longer than `mtu`. `id` names the pieces of an
    /// IPv6 packet that is no fragment yet. `None` when the MTU is too small for that.
    pub fn of(frame: &[u8], network: usize, mtu: u16, id: u32) -> Option<Self> {
        let (ip, mtu) = (&frame[network..], usize::from(mtu));
        let (header, begin, more, kind) = match ip[0] >> 4 {
            4 => {
                let header = usize::from(ip[0] & 0xf) * 4;
                (header, header, 0, Kind::V4)
            }
            _ => {
                let is_part = ip[6] == FRAGMENT && ip.len() >= V6::HEADER + FRAGMENT_HEADER;
                let (begin, kind) = if is_part {
                    let part = &ip[V6::HEADER..];
                    (V6::HEADER + FRAGMENT_HEADER, Kind::V6(part[0], be16(part, 2), be32(part, 4)))
                } else {
                    (V6::HEADER, Kind::V6(ip[6], 0, id))
                };
                (V6::HEADER, begin, FRAGMENT_HEADER, kind)
            }
        };
        let step = mtu.checked_sub(header + more)? / 8 * 8;
        let data = ip.len().checked_sub(begin)?;
        let (headers, begin) = (network + header, network + begin);
        (step > 0).then_some(Self { network, headers, begin, step, data, kind })
    }

    /// Pieces that there will be.
    pub fn pieces(&self) -> usize {
        self.data.div_ceil(self.step).max(1)
    }

    /// Bytes of a piece's frame.
    pub fn length(&self, piece: usize) -> usize {
        let data = self.step.min(self.data - piece * self.step);
        self.headers + data + if self.kind == Kind::V4 { 0 } else { FRAGMENT_HEADER }
    }

    /// Writes a piece into `out`, which has its [`length`](Self::length).
    pub fn write(&self, frame: &[u8], piece: usize, out: &mut [u8]) {
        let at = piece * self.step;
        let data = self.step.min(self.data - at);
        let is_last = piece + 1 == self.pieces();
        let (headers, payload) = out.split_at_mut(self.headers);
        headers.copy_from_slice(&frame[..self.headers]);
        let ip = &mut headers[self.network..];
        let payload = match self.kind {
            Kind::V4 => {
                let whole = be16(ip, 6);
                // A part may be cut up again: it keeps its place, and whether more follow it.
                let offset = (whole & 0x1fff) + (at / 8) as u16;
                let more = if is_last { whole & MORE } else { MORE };
                put16(ip, 2, (ip.len() + data) as u16);
                put16(ip, 6, offset | more);
                if piece > 0 {
                    blank_options(&mut ip[V4::HEADER..]);
                }
                put16(ip, 10, 0);
                let checksum = Sum::default().bytes(ip).field();
                put16(ip, 10, checksum);
                payload
            }
            Kind::V6(next, whole, id) => {
                let (fragment, payload) = payload.split_at_mut(FRAGMENT_HEADER);
                fragment[..2].copy_from_slice(&[next, 0]);
                let more = if is_last { whole & 1 } else { 1 };
                put16(fragment, 2, (whole & !7).wrapping_add(at as u16) | more);
                put32(fragment, 4, id);
                ip[6] = FRAGMENT;
                put16(ip, 4, (FRAGMENT_HEADER + data) as u16);
                payload
            }
        };
        payload.copy_from_slice(&frame[self.begin + at..self.begin + at + data]);
    }

    /// Turns the packet into its last piece. The others have been written.
    pub fn keep_last(&self, packet: &mut Packet) {
        let last = self.pieces() - 1;
        let mut piece = [0; CHUNK];
        let piece = &mut piece[..self.length(last)];
        self.write(packet.data(), last, piece);
        packet.set_len(piece.len());
        packet.data().copy_from_slice(piece);
    }
}

/// Turns the options that only the first piece has into "no operation" (RFC 791 §3.1, the copied flag; `ip_options_fragment`).
fn blank_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while at < options.len() {
        let length = match options[at] {
            END => return,
            NO_OPERATION => 1,
            _ => match options.get(at + 1) {
                Some(length) if *length >= 2 && at + usize::from(*length) <= options.len() => {
                    usize::from(*length)
                }
                _ => return,
            },
        };
        if options[at] & COPIED == 0 {
            options[at..at + length].fill(NO_OPERATION);
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::Extent;
    use crate::service::PortId;

    /// A frame around an IP packet with this header.
    fn frame(header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; 14];
        frame.extend(header);
        frame.extend(data);
        let length = header.len() + data.len();
        match header[0] >> 4 {
            4 => {
                put16(&mut frame, 16, length as u16);
                put16(&mut frame, 24, 0);
                let checksum = Sum::default().bytes(&frame[14..14 + header.len()]).field();
                put16(&mut frame, 24, checksum);
            }
            _ => put16(&mut frame, 18, (length - V6::HEADER) as u16),
        }
        frame
    }

    fn pieces(frame: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let Some(cut) = Cut::of(frame, 14, mtu, 7) else { return Vec::new() };
        let mut pieces: Vec<_> = (0..cut.pieces() - 1)
            .map(|n| {
                let mut piece = vec![0; cut.length(n)];
                cut.write(frame, n, &mut piece);
                piece
            })
            .collect();
        let mut chunk = [0; CHUNK];
        chunk[100..100 + frame.len()].copy_from_slice(frame);
        let mut extent = Extent::new(100, frame.len(), PortId(0));
        let mut packet = Packet::new(&mut chunk, &mut extent);
        cut.keep_last(&mut packet);
        pieces.push(packet.data().to_vec());
        pieces
    }

    #[test]
    fn options_that_are_not_copied_stay_with_the_first_piece() {
        // Record route (not copied), no operation, router alert (copied), end.
        let header: Vec<u8> = [
            &[0x48, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..],
            &[7, 4, 4, 0, 1, 148, 4, 0, 0, 0, 0, 0],
        ]
        .concat();
        let cut = pieces(&frame(&header, &[5; 100]), 32 + 64);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[0][34..46], [7, 4, 4, 0, 1, 148, 4, 0, 0, 0, 0, 0]);
        assert_eq!(cut[1][34..46], [1, 1, 1, 1, 1, 148, 4, 0, 0, 0, 0, 0]);
    }

    proptest! {
        /// The pieces fit, have sound headers, and are the packet when they are put together.
        #[test]
        fn pieces_make_the_packet(
            v6: bool, data in prop::collection::vec(any::<u8>(), 1..1600), mtu in 60u16..1500, offset in 0u16..100, more: bool,
        ) {
            let header = if v6 {
                // A packet is a fragment already, or it is not.
                let part = offset != 0 || more;
                let mut header = vec![0x60, 0, 0, 0, 0, 0, if part { FRAGMENT } else { 4 }, 64];
                header.extend([9; 32]);
                if part {
                    header.extend([4, 0]);
                    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    header.extend([0, 0, 0, 7]);
                }
                header
            } else {
                let [high, low] = (offset | if more { MORE } else { 0 }).to_be_bytes();
                vec![0x45, 0, 0, 0, 0, 9, high, low, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
            };
            let whole = frame(&header, &data);
            let cut = pieces(&whole, mtu);
            prop_assert!(!cut.is_empty());
            let mut together: Vec<u8> = Vec::new();
            for (n, piece) in cut.iter().enumerate() {
                let last = n + 1 == cut.len();
                prop_assert!(piece.len() - 14 <= usize::from(mtu));
                let ip = &piece[14..];
                let (at, follows, payload) = if v6 {
                    prop_assert_eq!(usize::from(be16(ip, 4)), ip.len() - 40);
                    prop_assert_eq!((ip[6], ip[40], be16(ip, 46)), (FRAGMENT, 4, 7));
                    ((be16(ip, 42) & !7) - offset * 8, ip[43] & 1 == 1, &ip[48..])
                } else {
                    prop_assert_eq!(usize::from(be16(ip, 2)), ip.len());
                    prop_assert_eq!(Sum::default().bytes(&ip[..20]).field(), 0);
                    ((be16(ip, 6) & 0x1fff) * 8 - offset * 8, be16(ip, 6) & MORE != 0, &ip[20..])
                };
                prop_assert_eq!(usize::from(at), together.len());
                prop_assert_eq!(follows, !last || more);
                together.extend(payload);
            }
            prop_assert_eq!(together, data);
        }
    }
}

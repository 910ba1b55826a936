//! The limit on segments: what a SYN announces as the largest one it takes (RFC 9293 §3.7.1) is lowered to what fits the way.
//!
//! Wherever the way through the director is narrower than either end knows, be it by a tunnel's headers or by an option that FullNAT
//! adds, ends that announce less need no path MTU discovery. A SYN that announces nothing means 536 bytes (1220 over IPv6), which is
//! little enough; it gets no option.

use super::ip;
use crate::packet::checksum::Change;
use crate::packet::{Address, Meta, Packet, be16, put16};

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// Kinds of TCP options (RFC 9293 §3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Lowers the largest segment that a SYN, or the SYN in answer to one, announces to `most` bytes. Never raises it. The checksum changes
/// by as much, so a wrong one stays wrong.
pub fn clamp<A: Address>(packet: &mut Packet, meta: &Meta<A>, most: u16) {
    limit(packet, meta, |said| said.min(most));
}

/// Lowers it by `bytes`, which the director will put into segments itself.
pub fn leave_room<A: Address>(packet: &mut Packet, meta: &Meta<A>, bytes: u16) {
    limit(packet, meta, |said| said.saturating_sub(bytes).max(1));
}

fn limit<A: Address>(packet: &mut Packet, meta: &Meta<A>, may: impl Fn(u16) -> u16) {
    let segment = &mut ip(packet, meta)[usize::from(meta.transport - meta.network)..];
    let header = usize::from(segment[12] >> 4) * 4;
    let Some(options) = segment.get_mut(..header).filter(|header| header.len() >= TCP_HEADER) else { return };
    let mut change = Change::default();
    let mut at = TCP_HEADER;
    while let Some(&kind) = options.get(at) {
        at += match kind {
            END => break,
            NO_OPERATION => 1,
            kind => {
                let Some(length) = options.get(at + 1).map(|length| usize::from(*length)) else { break };
                if length < 2 || at + length > header {
                    break;
                }
                if kind == MAXIMUM_SEGMENT_SIZE && length == 4 {
                    change = lower(options, at + 2, &may, change);
                }
                length
            }
        };
    }
    let checksum = change.apply(be16(segment, 16));
    put16(segment, 16, checksum);
}

/// Lowers the number at `at`.
fn lower(options: &mut [u8], at: usize, may: impl Fn(u16) -> u16, change: Change) -> Change {
    let said = be16(options, at);
    let most = may(said);
    if said <= most {
        return change;
    }
    put16(options, at, most);
    // At an odd place its bytes lie in two words, the other way round in each (RFC 1071 §2).
    match at % 2 {
        0 => change.word(said, most),
        _ => change.word(said.swap_bytes(), most.swap_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::checksum::{Sum, pseudo_header};
    use crate::packet::{CHUNK, Extent, Parsed, V4, parse};
    use crate::service::PortId;

    /// A SYN over IPv4 with these options, and bytes after them.
    fn syn(options: &[u8], data: &[u8]) -> Vec<u8> {
        let header = TCP_HEADER + options.len();
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((20 + header + data.len()) as u16).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 9, 0, 1]);
        let field = Sum::default().bytes(&frame[14..34]).field();
        put16(&mut frame, 24, field);
        frame.extend([
            3,
            232,
            0,
            80,
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            (header as u8 / 4) << 4,
            2,
            255,
            255,
            0,
            0,
            0,
            0,
        ]);
        frame.extend(options);
        frame.extend(data);
        let field = checksum(&frame[34..]);
        put16(&mut frame, 50, field);
        frame
    }

    /// What the checksum field would have to be were it 0 now; 0 when it is right.
    fn checksum(segment: &[u8]) -> u16 {
        let (source, destination) = (V4(0x0a00_0002), V4(0x0a09_0001));
        pseudo_header(source, destination, 6, segment.len() as u16).bytes(segment).field()
    }

    fn clamped(frame: &[u8], most: u16) -> Vec<u8> {
        let mut chunk = [0; CHUNK];
        chunk[..frame.len()].copy_from_slice(frame);
        let Ok(Parsed::V4(meta)) = parse(frame) else { panic!("a SYN") };
        let mut extent = Extent::new(0, frame.len(), PortId(0));
        let mut packet = Packet::new(&mut chunk, &mut extent);
        clamp(&mut packet, &meta, most);
        packet.data().to_vec()
    }

    #[test]
    fn a_larger_segment_is_lowered_and_a_smaller_one_left() {
        let frame = syn(&[2, 4, 5, 180, 1, 1, 4, 2], &[]);
        let lowered = clamped(&frame, 1400);
        assert_eq!(lowered[54..], [2, 4, 5, 120, 1, 1, 4, 2]);
        assert_eq!(checksum(&lowered[34..]), 0);
        assert_eq!(clamped(&frame, 1460), frame);
        assert_eq!(clamped(&frame, 9000), frame);
    }

    #[test]
    fn at_an_odd_place_too() {
        let lowered = clamped(&syn(&[1, 2, 4, 5, 180, 3, 3, 7], b"odd"), 1300);
        assert_eq!(lowered[54..62], [1, 2, 4, 5, 20, 3, 3, 7]);
        assert_eq!(checksum(&lowered[34..]), 0);
    }

    #[test]
    fn nothing_is_read_behind_the_options_or_made_of_broken_ones() {
        for options in [
            &[][..],
            &[0, 2, 4, 5, 180, 0, 0, 0],
            &[2, 0, 5, 180],
            &[2, 1, 5, 180],
            &[1, 1, 2, 4],
            &[1, 1, 1, 2],
            &[2, 3, 5, 180],
            &[8, 40, 2, 4, 5, 180, 1, 1],
        ] {
            let frame = syn(options, &[2, 4, 5, 180]);
            assert_eq!(clamped(&frame, 500), frame, "{options:?}");
        }
        // A header that claims to be longer than the packet, and one shorter than any.
        for claimed in [0xf0, 0x40] {
            let mut frame = syn(&[2, 4, 5, 180], &[]);
            frame[46] = claimed;
            assert_eq!(clamped(&frame, 500), frame);
        }
    }

    proptest! {
        #[test]
        fn only_the_number_and_the_checksum_change(
            mut options in prop::collection::vec(any::<u8>(), 0..40),
            size in any::<u16>(), place in 0usize..40, before in any::<bool>(),
            data in prop::collection::vec(any::<u8>(), 0..9), most in 1u16..,
        ) {
            options.truncate(options.len() / 4 * 4);
            // Random bytes seldom are an option; one is written over them, most often behind others that can be skipped.
            if place + 4 <= options.len() {
                if before {
                    options[..place].fill(NO_OPERATION);
                }
                options[place..place + 2].copy_from_slice(&[MAXIMUM_SEGMENT_SIZE, 4]);
                put16(&mut options, place + 2, size);
            }
            let frame = syn(&options, &data);
            let after = clamped(&frame, most);
            prop_assert_eq!(checksum(&after[34..]), 0);

            let end = 54 + options.len();
            prop_assert_eq!(&after[..50], &frame[..50]);
            prop_assert_eq!(&after[52..54], &frame[52..54]);
            prop_assert_eq!(&after[end..], &frame[end..]);
            prop_assert_eq!(&after[54..end], &by_patterns(&frame, most)[..]);
        }
    }

    /// The options as they should be, by slice patterns.
    fn by_patterns(frame: &[u8], most: u16) -> Vec<u8> {
        let mut options = frame[54..34 + usize::from(frame[46] >> 4) * 4].to_vec();
        let mut rest = 0;
        loop {
            match options[rest..] {
                [1, ..] => rest += 1,
                [0, ..] | [] | [_] => return options,
                [kind, length, ..] => {
                    let length = usize::from(length);
                    if length < 2 || rest + length > options.len() {
                        return options;
                    }
                    if let (2, [_, 4, high, low]) = (kind, &mut options[rest..rest + length]) {
                        let said = u16::from_be_bytes([*high, *low]).min(most);
                        [*high, *low] = said.to_be_bytes();
                    }
                    rest += length;
                }
            }
        }
    }
}

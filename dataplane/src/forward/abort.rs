//! SCTP's answers to packets that belong to no association, "out of the blue" (RFC 9260 §8.4): what the kernel's own stack would have
//! answered, had it seen them (`sctp_rcv_ootb`, `sctp_sf_ootb`). The bit T says that the tag is the sender's own, for there is no other.
//!
//! A packet may carry many chunks, and the kernel's order of looking at them is kept, as asked of Linux 6.1. In one thing it is not: to a chunk
//! whose length is wrong the kernel says so in its ABORT, and this one gives no reason.

use crate::packet::checksum::{has_right_sctp_crc, write_sctp_crc};
use crate::packet::parse::{ETHERNET, SCTP_HEADER, chunks};
use crate::packet::protocol::SCTP;
use crate::packet::{Address, Meta, Packet, be16, be32, put16, put32};

/// Bytes of an answer: the common header and a bare chunk.
const ANSWER: usize = SCTP_HEADER + CHUNK;

/// Bytes of a chunk's own header.
const CHUNK: usize = 4;

/// The tag is reflected, not the receiver's own.
const T: u8 = 1;

/// Chunks that end alone, without an answer and without prejudice to those behind them. The last three are ASCONF-ACK, RE-CONFIG and ASCONF.
const IGNORED: [u8; 6] = [chunks::COOKIE_ACK, 12, 13, 0x80, 0x82, 0xc1];

/// The cause of an ERROR that says that a cookie was too old (RFC 9260 §3.3.10.3).
const STALE_COOKIE: u16 = 3;

/// Whether the packet's CRC is right. The kernel answers no broken packet.
pub fn is_sound<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> bool {
    has_right_sctp_crc(&packet.data()[usize::from(meta.transport)..usize::from(meta.end)])
}

/// Turns the packet into its answer; `None` when nobody may answer it, and then it is as it was. The Ethernet addresses are the caller's to
/// write.
pub fn answer<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> Option<()> {
    let (network, transport) = (usize::from(meta.network), usize::from(meta.transport));
    let data = packet.data();
    let message = &data[transport..usize::from(meta.end)];
    let kind = answer_to(&message[SCTP_HEADER..])?;
    let tag = be32(message, 4);

    // Two headers and a chunk's, no longer than what they answer, go where that begins, VLAN tags dropped.
    packet.set_extent(packet.start() + network - ETHERNET, ETHERNET + A::HEADER + ANSWER);
    let data = packet.data();
    put16(data, 12, A::ETHERTYPE);
    let (ip, answer) = data[ETHERNET..].split_at_mut(A::HEADER);
    let turned = meta.tuple.turned();
    A::write_header(ip, ANSWER, SCTP, None, turned.source, turned.destination);
    // `sctp_packet_transmit` says so of all that it sends.
    A::mark_ecn_capable(ip);
    put16(answer, 0, turned.source_port);
    put16(answer, 2, turned.destination_port);
    put32(answer, 4, tag);
    answer[SCTP_HEADER..].copy_from_slice(&[kind, T, 0, CHUNK as u8]);
    write_sctp_crc(answer);
    Some(())
}

/// The chunk that answers these, if any may.
fn answer_to(all: &[u8]) -> Option<u8> {
    let mut rest = all;
    while let Some((kind, _, after)) = split(rest) {
        // An INIT may not stand behind others, and one that stands first begins a connection.
        if matches!(kind, chunks::ABORT | chunks::SHUTDOWN_COMPLETE | chunks::INIT) {
            return None;
        }
        rest = after;
    }

    let mut rest = all;
    while let Some((kind, _, after)) = split(rest)
        && IGNORED.contains(&kind)
    {
        rest = after;
    }
    // Too short for a chunk: nothing is left that could be answered.
    if rest.len() < CHUNK {
        return None;
    }
    if rest[0] == chunks::COOKIE_ECHO {
        return Some(chunks::ABORT);
    }

    let (mut is_shut, mut is_late) = (false, false);
    loop {
        let Some((kind, value, after)) = split(rest) else { return Some(chunks::ABORT) };
        is_shut |= kind == chunks::SHUTDOWN_ACK;
        is_late |= kind == chunks::COOKIE_ACK || kind == chunks::ERROR && is_about_stale_cookie(value);
        // The kernel overlooks a bare chunk at the very end, and bytes that are none.
        if after.len() <= CHUNK {
            break;
        }
        rest = after;
    }
    match (is_shut, is_late) {
        (true, _) => Some(chunks::SHUTDOWN_COMPLETE),
        (false, true) => None,
        (false, false) => Some(chunks::ABORT),
    }
}

/// The first chunk's type and value, and what stands behind its padding; `None` when its length is wrong.
fn split(chunks: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let length = usize::from(be16(chunks.get(..CHUNK)?, 2));
    let value = chunks.get(CHUNK..length)?;
    let rest = chunks.get(length.next_multiple_of(4)..)?;
    Some((chunks[0], value, rest))
}

/// Whether one of the causes of an ERROR is that a cookie was too old.
fn is_about_stale_cookie(mut causes: &[u8]) -> bool {
    while causes.len() >= 4 {
        let length = usize::from(be16(causes, 2));
        if !(4..=causes.len()).contains(&length) {
            return false;
        }
        if be16(causes, 0) == STALE_COOKIE {
            return true;
        }
        causes = causes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABORT: Option<u8> = Some(chunks::ABORT);
    const COMPLETE: Option<u8> = Some(chunks::SHUTDOWN_COMPLETE);

    /// What these chunks, each of a type and so many bytes of zeros, are answered with.
    fn answer_to_all(chunks: &[(u8, usize)]) -> Option<u8> {
        let chunk = |(kind, length): &(u8, usize)| {
            let mut bytes = vec![*kind, 0, 0, (CHUNK + length) as u8];
            bytes.resize(CHUNK + length.next_multiple_of(4), 0);
            bytes
        };
        answer_to(&chunks.iter().flat_map(chunk).collect::<Vec<_>>())
    }

    /// As Linux 6.1 answered each of them.
    #[test]
    fn every_chunk_alone_and_before_others() {
        for kind in [0, 2, 3, 4, 5, 7, 9, 15, 16, 17, 63, 64, 129, 192, 194, 255] {
            assert_eq!(answer_to_all(&[(kind, 16)]), ABORT, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (8, 0)]), ABORT, "{kind}, and a bare chunk at the end");
            assert_eq!(answer_to_all(&[(kind, 16), (8, 4)]), COMPLETE, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (8, 0), (0, 12)]), COMPLETE, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (11, 4)]), None, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (12, 4)]), ABORT, "{kind}");
        }
        for kind in IGNORED {
            assert_eq!(answer_to_all(&[(kind, 16)]), None, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (8, 0)]), COMPLETE, "{kind}");
            assert_eq!(answer_to_all(&[(kind, 16), (11, 0), (0, 12)]), ABORT, "{kind}");
        }
        for behind in [(8, 0), (8, 4), (11, 4), (12, 4)] {
            assert_eq!(answer_to_all(&[(10, 16), behind]), ABORT, "a cookie before {behind:?}");
        }
        for silent in [chunks::ABORT, chunks::SHUTDOWN_COMPLETE] {
            assert_eq!(answer_to_all(&[(silent, 0)]), None);
            assert_eq!(answer_to_all(&[(0, 12), (silent, 0)]), None);
        }
        assert_eq!(answer_to_all(&[(0, 12), (chunks::INIT, 16)]), None);
        assert_eq!(answer_to_all(&[(8, 0), (0, 12)]), COMPLETE);
    }

    #[test]
    fn a_stale_cookie_is_not_answered_whatever_else_went_wrong() {
        let stale = [0, 3, 0, 8, 0, 0, 0, 1];
        let other = [0, 1, 0, 5, 1, 0, 0, 0];
        let error = |causes: &[&[u8]]| {
            let causes = causes.concat();
            let head = [chunks::ERROR, 0, 0, (CHUNK + causes.len()) as u8];
            answer_to(&[&head[..], &causes].concat())
        };
        assert_eq!(error(&[&stale]), None);
        assert_eq!(error(&[&other, &stale]), None);
        assert_eq!(error(&[&other]), ABORT);
        assert_eq!(error(&[&[0, 3, 0, 3]]), ABORT, "no cause");
        assert_eq!(error(&[&[0, 3, 0, 9, 0, 0, 0, 1]]), ABORT, "a cause longer than its chunk");
        assert_eq!(error(&[]), ABORT);
    }

    #[test]
    fn lengths_that_are_wrong() {
        assert_eq!(answer_to(&[0, 0, 0, 3, 1, 2, 3, 4]), ABORT);
        assert_eq!(answer_to(&[0, 0, 0, 30, 1, 2, 3, 4]), ABORT);
        assert_eq!(answer_to(&[0, 0, 0, 6, 1, 2]), ABORT, "no padding");
        assert_eq!(answer_to(&[12, 0, 0, 4, 1, 2]), None, "less than a chunk");
        assert_eq!(answer_to(&[8, 0, 0, 4, 0, 0, 0, 30, 1, 2, 3, 4]), ABORT);
    }
}

//! Sequence numbers of a TCP connection in whose stream the director has put or replaced bytes: what is behind them is counted otherwise by each end.

use super::ip;
use crate::packet::checksum::{Change, Sum};
use crate::packet::{Address, Meta, Packet, be16, be32, put16, put32};

/// Where a TCP header's options begin.
const OPTIONS: usize = 20;

/// Where the checksum stands.
const CHECKSUM: usize = 16;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const SACK: u8 = 5;

/// The sequence number of a segment.
pub fn number<A>(packet: &mut Packet, meta: &Meta<A>) -> u32 {
    be32(packet.data(), usize::from(meta.transport) + 4)
}

/// The acknowledgement number of a segment.
pub fn acknowledged<A>(packet: &mut Packet, meta: &Meta<A>) -> u32 {
    be32(packet.data(), usize::from(meta.transport) + 8)
}

/// Bytes of a segment's header and of its data, as its header says.
pub fn lengths<A>(packet: &mut Packet, meta: &Meta<A>) -> (usize, usize) {
    let segment = usize::from(meta.end - meta.transport);
    let header = usize::from(packet.data()[usize::from(meta.transport) + 12] >> 4) * 4;
    let header = header.clamp(OPTIONS.min(segment), segment);
    (header, segment - header)
}

/// Takes the data off a segment that is no part of one.
pub fn empty<A: Address>(packet: &mut Packet, meta: &mut Meta<A>) {
    let (header, data) = lengths(packet, meta);
    if data == 0 || meta.fragment.is_some() {
        return;
    }
    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    let change = Change::default().replaced(Sum::default().bytes(&segment[header..]), Sum::default());
    adjust(segment, A::lengthen(ip, (data as u16).wrapping_neg(), change));
    meta.end -= data as u16;
}

/// Gives a segment that stands quoted between `transport` and `end`, of which its number is there at least, another one.
pub fn renumber(packet: &mut Packet, transport: usize, end: usize, number: impl Fn(u32) -> u32) {
    let segment = &mut packet.data()[transport..end];
    let (old, new) = (be32(segment, 4), number(be32(segment, 4)));
    put32(segment, 4, new);
    if segment.len() >= CHECKSUM + 2 {
        adjust(segment, Change::default().long(old, new));
    }
}

/// Moves a segment's sequence number on by so many bytes.
pub fn advance<A: Address>(packet: &mut Packet, meta: &Meta<A>, by: u32) {
    let segment = &mut ip(packet, meta)[usize::from(meta.transport - meta.network)..];
    let old = be32(segment, 4);
    put32(segment, 4, old.wrapping_add(by));
    adjust(segment, Change::default().long(old, old.wrapping_add(by)));
}

/// Gives a segment another acknowledgement number, and counts what it acknowledges selectively (RFC 2018) as `edge` says.
pub fn acknowledge<A: Address>(packet: &mut Packet, meta: &Meta<A>, number: u32, edge: impl Fn(u32) -> u32) {
    let (header, _) = lengths(packet, meta);
    let segment = &mut ip(packet, meta)[usize::from(meta.transport - meta.network)..];
    let old = be32(segment, 8);
    put32(segment, 8, number);
    let mut change = Change::default().long(old, number);
    let mut at = OPTIONS;
    while at < header {
        let length = match segment[at] {
            END => break,
            NO_OPERATION => 1,
            _ if at + 1 < header => usize::from(segment[at + 1]),
            _ => break,
        };
        // One that says less than two would not end.
        if length == 0 || (segment[at] != NO_OPERATION && length < 2) || at + length > header {
            break;
        }
        if segment[at] == SACK {
            for place in (at + 2..).step_by(4).take((length - 2) / 4) {
                let old = be32(segment, place);
                let new = edge(old);
                put32(segment, place, new);
                // At an odd place its bytes fall into three words of the sum; turned by one they make the same sum in two.
                let as_summed = |value: u32| if place % 2 == 0 { value } else { value.rotate_right(8) };
                change = change.long(as_summed(old), as_summed(new));
            }
        }
        at += length;
    }
    adjust(segment, change);
}

fn adjust(segment: &mut [u8], change: Change) {
    let checksum = change.apply(be16(segment, CHECKSUM));
    put16(segment, CHECKSUM, checksum);
}

//! TCP resets for segments that belong to no connection: what the kernel's own stack would have answered, had it seen them
//! (RFC 9293 §3.10.7.1; `tcp_v4_send_reset`, `tcp_v6_send_reset`).

use crate::packet::checksum::pseudo_header;
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::protocol::TCP;
use crate::packet::{Address, Meta, Packet, be32, put16, put32};

/// Bytes of a reset.
const SEGMENT: usize = 20;

/// Whether the segment's checksum is right. The kernel answers no broken segment.
pub fn is_sound<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> bool {
    let segment = &packet.data()[usize::from(meta.transport)..usize::from(meta.end)];
    pseudo_header(meta.tuple.source, meta.tuple.destination, TCP, segment.len() as u16).bytes(segment).field()
        == 0
}

/// Turns the segment into the reset that answers it. The Ethernet addresses are the caller's to write.
pub fn answer<A: Address>(packet: &mut Packet, meta: &Meta<A>) {
    let (network, transport) = (usize::from(meta.network), usize::from(meta.transport));
    let data = packet.data();
    let segment = &data[transport..usize::from(meta.end)];
    let (sequence, acknowledgement) = (be32(segment, 4), be32(segment, 8));
    let header = usize::from(segment[12] >> 4) * 4;
    let length = (segment.len().saturating_sub(header)) as u32
        + u32::from(meta.flags & tcp_flags::SYN != 0)
        + u32::from(meta.flags & tcp_flags::FIN != 0);

    // The answer is two bare headers, no longer than what it answers, and goes where that begins, VLAN tags dropped.
    packet.set_extent(packet.start() + network - ETHERNET, ETHERNET + A::HEADER + SEGMENT);
    let data = packet.data();
    put16(data, 12, A::ETHERTYPE);
    let (ip, answer) = data[ETHERNET..].split_at_mut(A::HEADER);
    let turned = meta.tuple.turned();
    A::write_header(ip, SEGMENT, TCP, None, turned.source, turned.destination);
    answer.fill(0);
    put16(answer, 0, turned.source_port);
    put16(answer, 2, turned.destination_port);
    answer[12] = 5 << 4;
    if meta.flags & tcp_flags::ACK != 0 {
        put32(answer, 4, acknowledgement);
        answer[13] = tcp_flags::RST;
    } else {
        put32(answer, 8, sequence.wrapping_add(length));
        answer[13] = tcp_flags::RST | tcp_flags::ACK;
    }
    let checksum =
        pseudo_header(turned.source, turned.destination, TCP, SEGMENT as u16).bytes(answer).field();
    put16(answer, 16, checksum);
}

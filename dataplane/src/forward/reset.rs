//! TCP resets for segments that belong to no connection: what the kernel's own stack would have answered, had it seen them
//! (RFC 9293 §3.10.7.1; `tcp_v4_send_reset`).

use super::icmp::{ADDRESS_DESTINATION, ADDRESS_SOURCE, write_ip_header};
use crate::packet::checksum::pseudo_header;
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::{Meta, Packet, be32, put16, put32};

const TCP: u8 = 6;

/// Whether the segment's checksum is right. The kernel answers no broken segment.
pub fn is_sound(packet: &mut Packet, meta: &Meta) -> bool {
    let segment = &packet.data()[usize::from(meta.transport)..usize::from(meta.end)];
    let tuple = &meta.tuple;
    pseudo_header(tuple.source.0, tuple.destination.0, TCP, segment.len() as u16).bytes(segment).field() == 0
}

/// Turns the segment into the reset that answers it. The Ethernet addresses are the caller's to write.
pub fn answer(packet: &mut Packet, meta: &Meta) {
    let (network, transport) = (usize::from(meta.network), usize::from(meta.transport));
    let data = packet.data();
    let segment = &data[transport..usize::from(meta.end)];
    let (sequence, acknowledgement) = (be32(segment, 4), be32(segment, 8));
    let header = usize::from(segment[12] >> 4) * 4;
    let length = (segment.len().saturating_sub(header)) as u32
        + u32::from(meta.flags & tcp_flags::SYN != 0)
        + u32::from(meta.flags & tcp_flags::FIN != 0);

    // The answer is 20 + 20 bytes, no longer than what it answers, and goes where that begins, VLAN tags dropped.
    packet.start += network - ETHERNET;
    packet.len = ETHERNET + 40;
    let data = packet.data();
    data[12..14].copy_from_slice(&[0x08, 0x00]);
    let (ip, answer) = data[ETHERNET..].split_at_mut(20);
    let tuple = &meta.tuple;
    // Don't fragment and no id: `ip_send_unicast_reply` has nothing to cut up.
    write_ip_header(ip, 40, 0, true, TCP, tuple.destination, tuple.source);
    answer.fill(0);
    put16(answer, 0, tuple.destination_port);
    put16(answer, 2, tuple.source_port);
    answer[12] = 5 << 4;
    if meta.flags & tcp_flags::ACK != 0 {
        put32(answer, 4, acknowledgement);
        answer[13] = tcp_flags::RST;
    } else {
        put32(answer, 8, sequence.wrapping_add(length));
        answer[13] = tcp_flags::RST | tcp_flags::ACK;
    }
    let checksum =
        pseudo_header(be32(ip, ADDRESS_SOURCE), be32(ip, ADDRESS_DESTINATION), TCP, 20).bytes(answer).field();
    put16(answer, 16, checksum);
}

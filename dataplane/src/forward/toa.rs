//! TOA: a TCP option that tells a FullNAT real server the client's address and port, as the `toa` module of Alibaba's LVS and DPVS reads it there.
//!
//! ```text
//!   | kind 254 | length 8 or 20 | port | IPv4 or IPv6 address |
//! ```
//!
//! It goes right behind the fixed header, before other options, into segments that begin where the client's data begins: the one that completes the
//! handshake, which is where the module looks, and the first one with data. Where it does not fit (60 bytes of header, the
//! MTU) it is left out.

use std::net::IpAddr;

use super::ip;
use crate::packet::checksum::{Change, Sum};
use crate::packet::{Address, Meta, Packet, be16, put16};

/// Where a TCP header's options begin.
const OPTIONS: usize = 20;

/// The longest TCP header.
const LONGEST: usize = 60;

const KIND: u8 = 254;

/// Bytes of the option for a client of this family.
pub fn length(is_v4: bool) -> u16 {
    if is_v4 { 8 } else { 20 }
}

/// Puts the option into a TCP segment. It gets room in front: the headers before it move.
pub fn insert<A: Address>(packet: &mut Packet, meta: &mut Meta<A>, (address, port): (IpAddr, u16), mtu: u16) {
    let length = length(address.is_ipv4());
    let (more, header_at) = (usize::from(length), usize::from(meta.transport));
    let header = usize::from(packet.data()[header_at + 12] >> 4) * 4;
    let end = usize::from(meta.end) - header_at;
    let fits =
        header >= OPTIONS && header + more <= LONGEST && header <= end && meta.length() + length <= mtu;
    if !fits || packet.start() < more {
        return;
    }
    let from = packet.start();
    packet.chunk.copy_within(from..from + header_at + OPTIONS, from - more);
    packet.set_extent(from - more, packet.len() + more);
    meta.end += length;

    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    let option = &mut segment[OPTIONS..OPTIONS + more];
    option[..2].copy_from_slice(&[KIND, length as u8]);
    put16(option, 2, port);
    match address {
        IpAddr::V4(address) => option[4..8].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => option[4..20].copy_from_slice(&address.octets()),
    }
    let change = Change::default().inserted(Sum::default().bytes(option));
    let old = be16(segment, 12);
    put16(segment, 12, old + (length / 4) * 0x1000);
    let change = change.word(old, be16(segment, 12));
    let change = A::lengthen(ip, length, change);
    let checksum = change.apply(be16(segment, 16));
    put16(segment, 16, checksum);
}

//! The ways out: how a packet is rewritten for its next hop.
//!
//! A forwarder changes bytes and nothing else. It knows no scheduler and no table; the director hands it
//! the packet, what was parsed of it, the connection and the hop. A file a method: [`dr`], [`nat`]; [`icmp`] and [`reset`] serve all.

pub mod dr;
pub mod icmp;
pub mod limit;
pub mod nat;
pub mod reset;

use crate::packet::checksum::Change;
use crate::packet::parse::ETHERNET;
use crate::packet::{Meta, Packet, be16, put16};
use crate::service::Hop;

const TTL: usize = 8;
const HEADER_CHECKSUM: usize = 10;

/// The packet's time to live.
#[inline]
pub fn ttl(packet: &mut Packet, meta: &Meta) -> u8 {
    packet.data()[usize::from(meta.network) + TTL]
}

/// Whether the packet is too long for the hop: `Some(true)` when its sender forbids cutting it up.
#[inline]
pub fn exceeds(packet: &mut Packet, meta: &Meta, mtu: u16) -> Option<bool> {
    let network = usize::from(meta.network);
    (meta.end - meta.network > mtu).then(|| packet.data()[network + 6] & 0x40 != 0)
}

/// Takes one from the time to live. The caller has seen that more than one is left.
#[inline]
fn age(ip: &mut [u8]) {
    let old = be16(ip, TTL);
    let new = old - 0x0100;
    put16(ip, TTL, new);
    let checksum = Change::default().word(old, new).apply(be16(ip, HEADER_CHECKSUM));
    put16(ip, HEADER_CHECKSUM, checksum);
}

/// Takes one from the packet's time to live.
pub fn age_packet(packet: &mut Packet, meta: &Meta) {
    age(&mut packet.data()[usize::from(meta.network)..]);
}

/// Puts the frame's addresses on, drops VLAN tags and Ethernet padding: the hop's interface is untagged.
#[inline]
fn frame(packet: &mut Packet, meta: &Meta, hop: &Hop) {
    let tags = usize::from(meta.network) - ETHERNET;
    packet.len = usize::from(meta.end) - tags;
    packet.start += tags;
    let data = packet.data();
    data[..12].copy_from_slice(&hop.macs);
    data[12..14].copy_from_slice(&[0x08, 0x00]);
}

/// Sends the packet on as a router does: nothing changes but the time to live.
#[inline]
pub fn route(packet: &mut Packet, meta: &Meta, hop: &Hop) {
    age_packet(packet, meta);
    frame(packet, meta, hop);
}

//! The ways out: how a packet is rewritten for its next hop.
//!
//! A forwarder changes bytes and nothing else. It knows no scheduler and no table; the director hands it
//! the packet, what was parsed of it, the connection and the hop. A file a method: [`dr`], [`nat`], [`tunnel`], with [`undelivered`] for what comes back of it,
//! and [`across`] the families; [`icmp`], [`mss`], [`reset`] and [`abort`] serve all. Both address families go through the same lines.

pub mod abort;
pub mod across;
pub mod correction;
pub mod cut;
pub mod dr;
pub mod icmp;
pub mod limit;
pub mod mss;
pub mod nat;
pub mod proxy;
pub mod reset;
pub mod sequence;
pub mod toa;
pub mod tunnel;
pub mod undelivered;

use crate::packet::checksum::Change;
use crate::packet::parse::ETHERNET;
use crate::packet::{Address, Meta, Packet, Tags, put16};
use crate::service::Hop;

/// The packet, from its IP header to its end.
#[inline]
fn ip<'a, A>(packet: &'a mut Packet, meta: &Meta<A>) -> &'a mut [u8] {
    &mut packet.data()[usize::from(meta.network)..usize::from(meta.end)]
}

/// The packet's time to live.
#[inline]
pub fn hops_left<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> u8 {
    A::hops_left(ip(packet, meta))
}

/// Takes one from the packet's time to live. The caller has seen that more than one is left.
#[inline]
pub fn age<A: Address>(packet: &mut Packet, meta: &Meta<A>) {
    A::age(ip(packet, meta), Change::default());
}

/// Whether the packet's time to live lets it go on: it has more than one, or keeps what it has, as it `is_home`'s: it goes to the machine's own kernel or comes from there, which
/// is no hop.
#[inline]
pub fn may_go_on<A: Address>(packet: &mut Packet, meta: &Meta<A>, is_home: bool) -> bool {
    is_home || hops_left(packet, meta) > 1
}

/// Has the packet keep its time to live, of which rewriting it takes one, if it `is_home`'s. What becomes of the packet must be certain by then: one that is to be looked at again
/// stays as it came.
#[inline]
pub fn spare<A: Address>(packet: &mut Packet, meta: &Meta<A>, is_home: bool) {
    if is_home {
        A::spare(ip(packet, meta));
    }
}

/// Whether the packet's sender forbids cutting it up.
#[inline]
pub fn forbids_fragments<A: Address>(packet: &mut Packet, meta: &Meta<A>) -> bool {
    A::forbids_fragments(ip(packet, meta))
}

/// Whether the packet is too long for its way and must not be cut up.
#[inline]
pub fn is_too_big<A: Address>(packet: &mut Packet, meta: &Meta<A>, mtu: u16) -> bool {
    meta.length() > mtu && forbids_fragments(packet, meta)
}

/// Puts the hop's addresses and VLAN tags on, in place of those that the frame came with, and drops Ethernet padding.
#[inline(always)]
fn frame<A: Address>(packet: &mut Packet, meta: &Meta<A>, hop: &Hop) {
    let tags = usize::from(meta.network) - ETHERNET;
    packet.set_extent(packet.start() + tags, usize::from(meta.end) - tags);
    let Some(header) = packet.data().first_chunk_mut::<ETHERNET>() else { return };
    header[..12].copy_from_slice(&hop.macs);
    put16(header, 12, A::ETHERTYPE);
    if !hop.tags.is_empty() {
        address(packet, hop);
    }
}

/// Addresses a frame to the hop. It has no tags so far and gets the hop's; its ethertype stays where it is, right before the packet.
#[inline]
pub fn address(packet: &mut Packet, hop: &Hop) {
    if !hop.tags.is_empty() {
        tag(packet, &hop.tags);
    }
    packet.data()[..12].copy_from_slice(&hop.macs);
}

/// Puts tags on, over where the addresses are: those come anew.
#[cold]
fn tag(packet: &mut Packet, tags: &Tags) {
    // There is room before the frame, as there is before every frame that a port received.
    let (mut start, len) = (packet.start(), packet.len());
    if start < tags.len() {
        packet.chunk.copy_within(start..start + len, tags.len());
        start = tags.len();
    }
    packet.set_extent(start - tags.len(), len + tags.len());
    packet.data()[12..12 + tags.len()].copy_from_slice(tags.bytes());
}

/// Sends the packet on as a router does: nothing changes but the time to live.
#[inline(always)]
pub fn route<A: Address>(packet: &mut Packet, meta: &Meta<A>, hop: &Hop) {
    age(packet, meta);
    frame(packet, meta, hop);
}

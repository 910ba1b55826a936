//! NAT: requests get the real server's address and port as their destination, replies the virtual ones as their source. FullNAT: both ends of
//! both are replaced.
//!
//! Checksums are adjusted by what changes. IPVS never verifies them, so a wrong one stays wrong by as much. One exception, IPVS's too: a UDP
//! packet without a checksum leaves with one. (Not so when it comes in fragments, which the kernel puts together first.)
//!
//! SCTP's CRC covers no addresses. Where a port changes it is made anew over the whole packet, so that a wrong one becomes right; where none
//! does it stays as it is (`sctp_snat_handler`, `sctp_dnat_handler`). A part of a datagram does not have what the CRC covers: the
//! director [drops](needs_whole) what would need it.

use super::{frame, ip};
use crate::packet::checksum::{Change, pseudo_header, write_sctp_crc};
use crate::packet::protocol::{SCTP, TCP, UDP};
use crate::packet::{Address, Meta, Packet, be16, put16};
use crate::service::Hop;

/// Whether a packet cannot be rewritten if that changes its ports, because it is only a part.
#[inline]
pub fn needs_whole<A>(meta: &Meta<A>) -> bool {
    meta.tuple.protocol == SCTP && meta.fragment.is_some()
}

/// An end of a connection: an address and a port.
pub type End<A> = (A, u16);

/// Sends a request to the real server.
#[inline(always)]
pub fn request<A: Address>(packet: &mut Packet, meta: &Meta<A>, server: End<A>, hop: &Hop) {
    rewrite(packet, meta, None, Some(server));
    frame(packet, meta, hop);
}

/// Sends a reply to the client, from the virtual address and port.
#[inline(always)]
pub fn reply<A: Address>(packet: &mut Packet, meta: &Meta<A>, service: End<A>, hop: &Hop) {
    rewrite(packet, meta, Some(service), None);
    frame(packet, meta, hop);
}

/// FullNAT: sends a packet on from and to other ends.
#[inline(always)]
pub fn both<A: Address>(packet: &mut Packet, meta: &Meta<A>, source: End<A>, destination: End<A>, hop: &Hop) {
    rewrite(packet, meta, Some(source), Some(destination));
    frame(packet, meta, hop);
}

/// Replaces the packet's ends, each address in the IP header with its port in the transport header, and ages the packet.
// Each caller gets lines of its own, without the end that stays: 3 ns a packet less.
#[inline(always)]
fn rewrite<A: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    source: Option<End<A>>,
    destination: Option<End<A>>,
) {
    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));

    let mut change = Change::default();
    for (end, at) in [(source, A::SOURCE), (destination, A::DESTINATION)] {
        if let Some((address, _)) = end {
            change = A::read(ip, at).becomes(address, change);
            address.write(ip, at);
        }
    }
    A::age(ip, change);
    if meta.is_later_fragment() {
        return;
    }

    let mut has_other_ports = false;
    for (end, at) in [(source, 0), (destination, 2)] {
        if let Some((_, port)) = end {
            has_other_ports |= be16(segment, at) != port;
            change = change.word(be16(segment, at), port);
            put16(segment, at, port);
        }
    }
    match meta.tuple.protocol {
        SCTP if has_other_ports => write_sctp_crc(segment),
        _ => {
            let ends = || (A::read(ip, A::SOURCE), A::read(ip, A::DESTINATION));
            // A part of a datagram without a checksum goes on without one.
            adjust_checksum(segment, meta, change, ends);
        }
    }
}

/// Changes a TCP or UDP checksum by as much as what it covers has changed. A datagram without one gets one, between the `ends` it has now; `false` where
/// that would need the rest of it, which has not come yet.
#[inline(always)]
pub(super) fn adjust_checksum<M, A: Address>(
    segment: &mut [u8],
    meta: &Meta<M>,
    change: Change,
    ends: impl FnOnce() -> (A, A),
) -> bool {
    match meta.tuple.protocol {
        TCP => {
            let checksum = change.apply(be16(segment, 16));
            put16(segment, 16, checksum);
        }
        UDP => {
            let checksum = match be16(segment, 6) {
                0 if meta.fragment.is_some() => return false,
                0 => {
                    let (source, destination) = ends();
                    pseudo_header(source, destination, UDP, segment.len() as u16).bytes(segment).field()
                }
                old => change.apply(old),
            };
            // RFC 768: a computed zero is sent as all ones, because zero says that there is none.
            put16(segment, 6, if checksum == 0 { 0xffff } else { checksum });
        }
        _ => {}
    }
    true
}

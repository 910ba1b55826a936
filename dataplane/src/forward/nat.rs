//! NAT: requests get the real server's address and port as their destination, replies the virtual ones as their source.
//!
//! Checksums are adjusted by what changes. IPVS never verifies them, so a wrong one stays wrong by as much. One exception, IPVS's too: a UDP
//! packet without a checksum leaves with one. (Not so when it comes in fragments, which the kernel puts together first.)
//!
//! SCTP's CRC covers no addresses. Where a port changes it is made anew over the whole packet, so that a wrong one becomes right; where none
//! does it stays as it is (`sctp_snat_handler`, `sctp_dnat_handler`). A part of a datagram does not have what the CRC covers: the
//! director [drops](needs_whole) what would need it.

use super::{frame, ip};
use crate::packet::checksum::{Change, pseudo_header, write_sctp_crc};
use crate::packet::{Address, Meta, Packet, be16, put16};
use crate::service::Hop;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Whether a packet cannot be rewritten because it is only a part: its ports change from one of these to the other.
#[inline]
pub fn needs_whole<A>(meta: &Meta<A>, ports: (u16, u16)) -> bool {
    meta.tuple.protocol == SCTP && meta.fragment.is_some() && ports.0 != ports.1
}

/// Sends a request to the real server at `server` and `port`.
#[inline]
pub fn request<A: Address>(packet: &mut Packet, meta: &Meta<A>, server: A, port: u16, hop: &Hop) {
    rewrite(packet, meta, A::DESTINATION, 2, server, port);
    frame(packet, meta, hop);
}

/// Sends a reply to the client, from the virtual `address` and `port`.
#[inline]
pub fn reply<A: Address>(packet: &mut Packet, meta: &Meta<A>, address: A, port: u16, hop: &Hop) {
    rewrite(packet, meta, A::SOURCE, 0, address, port);
    frame(packet, meta, hop);
}

/// Replaces the address at `address_at` in the IP header and the port at `port_at` in the transport header, and ages
/// the packet.
#[inline]
fn rewrite<A: Address>(
    packet: &mut Packet,
    meta: &Meta<A>,
    address_at: usize,
    port_at: usize,
    address: A,
    port: u16,
) {
    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));

    let old_address = A::read(ip, address_at);
    address.write(ip, address_at);
    let change = old_address.becomes(address, Change::default());
    A::adjust_header(ip, change);
    A::age(ip);
    if meta.is_later_fragment() {
        return;
    }

    let old_port = be16(segment, port_at);
    put16(segment, port_at, port);

    let change = change.word(old_port, port);
    match meta.tuple.protocol {
        TCP => {
            let checksum = change.apply(be16(segment, 16));
            put16(segment, 16, checksum);
        }
        UDP => {
            let checksum = match be16(segment, 6) {
                // The rest of the datagram would be needed, and has not come yet.
                0 if meta.fragment.is_some() => return,
                0 => pseudo_header(
                    A::read(ip, A::SOURCE),
                    A::read(ip, A::DESTINATION),
                    UDP,
                    segment.len() as u16,
                )
                .bytes(segment)
                .field(),
                old => change.apply(old),
            };
            // RFC 768: a computed zero is sent as all ones, because zero says that there is none.
            put16(segment, 6, if checksum == 0 { 0xffff } else { checksum });
        }
        SCTP if old_port != port => write_sctp_crc(segment),
        _ => {}
    }
}

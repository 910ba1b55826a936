//! NAT: requests get the real server's address and port as their destination, replies the virtual ones as their source.
//!
//! Checksums are adjusted by what changes. IPVS never verifies them, so a wrong one stays wrong by as much. One exception, IPVS's too: a UDP
//! packet without a checksum leaves with one.

use super::{HEADER_CHECKSUM, age, frame};
use crate::packet::checksum::{Change, pseudo_header};
use crate::packet::{Meta, Packet, V4, be16, be32, put16, put32};
use crate::service::Hop;

const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// Sends a request to the real server at `server` and `port`.
#[inline]
pub fn request(packet: &mut Packet, meta: &Meta, server: V4, port: u16, hop: &Hop) {
    rewrite(packet, meta, DESTINATION, 2, server, port);
    frame(packet, meta, hop);
}

/// Sends a reply to the client, from the virtual `address` and `port`.
#[inline]
pub fn reply(packet: &mut Packet, meta: &Meta, address: V4, port: u16, hop: &Hop) {
    rewrite(packet, meta, SOURCE, 0, address, port);
    frame(packet, meta, hop);
}

/// Replaces the address at `address_at` in the IP header and the port at `port_at` in the transport header, and ages
/// the packet.
#[inline]
fn rewrite(packet: &mut Packet, meta: &Meta, address_at: usize, port_at: usize, address: V4, port: u16) {
    let (network, transport, end) =
        (usize::from(meta.network), usize::from(meta.transport), usize::from(meta.end));
    let (ip, segment) = packet.data()[network..end].split_at_mut(transport - network);

    let old_address = be32(ip, address_at);
    let old_port = be16(segment, port_at);
    put32(ip, address_at, address.0);
    put16(segment, port_at, port);

    let change = Change::default().address(old_address, address.0);
    let checksum = change.apply(be16(ip, HEADER_CHECKSUM));
    put16(ip, HEADER_CHECKSUM, checksum);
    age(ip);

    let change = change.word(old_port, port);
    match meta.tuple.protocol {
        TCP => {
            let checksum = change.apply(be16(segment, 16));
            put16(segment, 16, checksum);
        }
        UDP => {
            let checksum = match be16(segment, 6) {
                0 => pseudo_header(be32(ip, SOURCE), be32(ip, DESTINATION), UDP, segment.len() as u16)
                    .bytes(segment)
                    .field(),
                old => change.apply(old),
            };
            // RFC 768: a computed zero is sent as all ones, because zero says that there is none.
            put16(segment, 6, if checksum == 0 { 0xffff } else { checksum });
        }
        _ => {}
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

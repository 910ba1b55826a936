//! Templates: what makes a client's connections go where its first one went (`IP_VS_CONN_F_TEMPLATE`).
//!
//! A template is an entry of the table like a connection, with a key that no packet has: the protocol stands in it with all bits turned round. The other
//! parts of its key are those that all the connections it makes have in common.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Conn, Marks};
use crate::packet::{Address, Tuple};
use crate::service::{Dest, FTP, Forwarding, Persistence, Service, Tick};

/// The key of the template for a packet to a persistent service. A service of FTP or of all ports has one for all of a client's connections;
/// that of a mark, too, for all addresses and protocols (0 stands for them).
pub fn key<A: Address>(service: &Service, persistence: &Persistence, packet: &Tuple<A>) -> Tuple<A> {
    let client = packet.source.masked(A::of(persistence.mask).unwrap_or_default());
    if let Some(mark) = service.mark {
        return Tuple {
            source: client,
            destination: marked(mark),
            source_port: 0,
            destination_port: 0,
            protocol: !0,
        };
    }
    let is_one_port = service.port == packet.destination_port && service.port != FTP;
    Tuple {
        source: client,
        destination: packet.destination,
        source_port: 0,
        destination_port: if is_one_port { packet.destination_port } else { 0 },
        protocol: !packet.protocol,
    }
}

/// A mark in the place of an address.
fn marked<A: Address>(mark: u32) -> A {
    let v4 = A::of(Ipv4Addr::from_bits(mark).into());
    v4.or_else(|| A::of(Ipv6Addr::from_bits(u128::from(mark) << 96).into())).unwrap_or_default()
}

/// The place of a template's call, if it is about one: where a FullNAT connection has its local port.
pub fn call<A>(template: &Conn<A>) -> Option<u16> {
    template.local_port.checked_sub(1)
}

/// Notes the place of a template's call.
pub fn set_call<A>(template: &mut Conn<A>, place: u16) {
    template.local_port = place + 1;
}

/// A template of this key that leads to a real server.
pub fn new<A: Address>(key: &Tuple<A>, persistence: &Persistence, dest: &Dest, now: Tick) -> Conn<A> {
    let mut marks = Marks::default();
    marks.set(Marks::TEMPLATE, true);
    Conn {
        client: key.source,
        virtual_address: key.destination,
        server: A::of(dest.address).unwrap_or_default(),
        client_port: key.source_port,
        virtual_port: key.destination_port,
        server_port: if key.destination_port == 0 { 0 } else { dest.port },
        protocol: key.protocol,
        // It sends nothing, and is found by one tuple only.
        forwarding: Forwarding::Route,
        marks,
        dest: dest.id,
        last_seen: now,
        timeout: persistence.timeout,
        ..Conn::default()
    }
}

/// The protocol that a template is listed with.
pub fn protocol<A>(template: &Conn<A>) -> u8 {
    !template.protocol
}

//! Connections as they are listed, in steps of bounded length.

use std::net::IpAddr;

use super::Shared;
use super::beyond::{self, Near};
use super::family::Family;
use crate::conn::{Conn, Marks, State, template};
use crate::service::{DestId, Tick};

/// Where a listing has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the table of IPv4 connections.
    V4(u32),
    /// In that of IPv6 ones.
    V6(u32),
}

impl Default for Place {
    fn default() -> Self {
        Place::V4(0)
    }
}

/// A connection as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// IP protocol number.
    pub protocol: u8,
    /// Where it is in its life.
    pub state: State,
    /// Milliseconds it has left.
    pub left: u32,
    /// The client.
    pub client: (IpAddr, u16),
    /// The virtual address and port.
    pub service: (IpAddr, u16),
    /// The real server. One of the other family that the rules no longer have is all zeros: control knows it by its identity.
    pub server: (IpAddr, u16),
    /// The real server's identity.
    pub dest: DestId,
    /// The Call-ID of a template's SIP call.
    pub call: Option<Box<str>>,
    /// Whether it is a template.
    pub is_template: bool,
}

impl<A: Near> Family<A> {
    /// Gives each connection to `each`.
    pub fn each(&self, each: impl FnMut(&Conn<A>)) {
        self.conns.walk(0, usize::MAX, each);
    }

    /// Gives the connections that live at `now` to `each`; see [`Table::walk`](crate::conn::Table::walk).
    pub fn list(
        &self,
        shared: &Shared,
        from: u32,
        places: usize,
        now: Tick,
        mut each: impl FnMut(Listed),
    ) -> Option<u32> {
        let services = &shared.snapshot.services;
        self.conns.walk(from, places, |conn| {
            let left = conn.remaining(now);
            if left > 0 {
                // A real server of the other family has its address only in the rules. A template does not say how it is reached.
                let across = conn.server == A::default();
                // One that is the director itself may have got the packets as they are.
                let elsewhere = across || conn.server == conn.virtual_address;
                let server = match conn.marks.has(Marks::ACROSS) {
                    true => Some(beyond::tuple::<A::Other>(shared, conn).source.into()),
                    false => services.dest(conn.dest).filter(|_| elsewhere).map(|dest| dest.address),
                };
                each(Listed {
                    protocol: if conn.is_template() { template::protocol(conn) } else { conn.protocol },
                    state: conn.state,
                    left,
                    client: (conn.client.into(), if conn.is_template() { 0 } else { conn.client_port }),
                    service: (conn.virtual_address.into(), conn.virtual_port),
                    server: (server.unwrap_or(conn.server.into()), conn.server_port),
                    dest: conn.dest,
                    call: self.call(conn).map(|id| String::from_utf8_lossy(id).into()),
                    is_template: conn.is_template(),
                });
            }
        })
    }
}

//! Connections: the entries, the table that finds them, the states they go through, the wheel that ends them.
//!
//! A worker owns its table. An IPv4 connection costs one cache line for its entry and one or two words in the index
//! (NAT needs to be found from both sides).

pub mod directory;
pub mod fragments;
pub mod index;
pub mod memory;
pub mod parts;
pub mod paths;
pub mod table;
pub mod tcp;
pub mod wheel;

use zerocopy::FromZeros;

pub use index::Direction;
pub use table::{ConnId, Table};
pub use tcp::{Side, State};

use crate::packet::{Address, Tuple};
use crate::service::{DestId, Forwarding, Tick, Tunnel};

/// A connection.
///
/// The forwarding method and the real server are copied from the service when the connection is created: later edits do
/// not change live connections.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
#[repr(C, align(64))]
pub struct Conn<A> {
    /// The client's address.
    pub client: A,
    /// The virtual address.
    pub virtual_address: A,
    /// The real server's address; zero when it is of the other family, as only a tunnel's may be.
    pub server: A,
    /// The client's port.
    pub client_port: u16,
    /// The virtual port.
    pub virtual_port: u16,
    /// The real server's port.
    pub server_port: u16,
    /// IP protocol number; 0 marks a free entry.
    pub protocol: u8,
    /// Where it is in its life.
    pub state: State,
    /// How its packets reach the real server.
    pub forwarding: Forwarding,
    /// How they are wrapped, when in a tunnel.
    pub tunnel: Tunnel,
    /// No reply was seen, and none is expected: the client's half decides the state.
    pub no_output: bool,
    /// Whether it is counted as active at its real server.
    pub active: bool,
    /// Its real server, which also tells the service.
    pub dest: DestId,
    /// When its last packet came.
    pub last_seen: Tick,
    /// Milliseconds it lives without packets.
    pub timeout: u32,
    /// Packets from the client, as IPVS counts them for synchronisation and load shedding.
    pub in_packets: u32,
    /// Cached next hops, as numbers of the worker's own list.
    pub hops: Hops,
    pub(crate) links: wheel::Links,
}

/// Next hops of a connection, valid while `generation` is the worker's.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
pub struct Hops {
    /// To the real server.
    pub to_server: u32,
    /// To the client.
    pub to_client: u32,
    /// The worker's generation of hops that the numbers are of; 0 is never a current one.
    pub generation: u32,
}

impl<A: Address> Conn<A> {
    /// What its requests look like on the wire.
    pub fn request(&self) -> Tuple<A> {
        Tuple {
            source: self.client,
            destination: self.virtual_address,
            source_port: self.client_port,
            destination_port: self.virtual_port,
            protocol: self.protocol,
        }
    }

    /// What its replies look like on the wire, if they come through the director.
    pub fn reply(&self) -> Option<Tuple<A>> {
        (self.forwarding == Forwarding::Masq).then_some(Tuple {
            source: self.server,
            destination: self.client,
            source_port: self.server_port,
            destination_port: self.client_port,
            protocol: self.protocol,
        })
    }

    /// Milliseconds it has left to live at `now`.
    pub fn remaining(&self, now: Tick) -> u32 {
        self.timeout.saturating_sub(now.since(self.last_seen))
    }
}

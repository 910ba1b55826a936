//! FullNAT between the families: a client of one, a real server of the other.
//!
//! A connection stands in the table of its client's family. What its real server sends is of the other family, so there is a twin for it in a table of that
//! family: it is found by the reply's tuple, and leads to the connection.
//!
//! ```text
//!   client ─IPv6─▶ VIP   [connection, IPv6] ◀──▶ [twin, IPv4]   local ─IPv4─▶ real server
//! ```

use std::net::IpAddr;

use super::Shared;
use crate::conn::supply::Supply;
use crate::conn::table::Secret;
use crate::conn::{Conn, ConnId, Table};
use crate::packet::{Address, Tuple, V4, V6};
use crate::service::{Forwarding, Hop, Tick};

/// The twins of connections whose real server is of the other family, by the server's family.
pub struct Beyond {
    v4: Table<V4>,
    v6: Table<V6>,
}

impl Beyond {
    /// Room for as many twins as there can be connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(capacity: usize, secret: Secret, now: Tick) -> std::io::Result<Self> {
        Ok(Self {
            v4: Table::with_capacity(capacity, secret, now)?,
            v6: Table::with_capacity(capacity, secret, now)?,
        })
    }

    /// Their memory, of IPv4 and of IPv6.
    pub fn supplies(&self) -> [Supply; 2] {
        [self.v4.supply(), self.v6.supply()]
    }
}

/// A family, with the other one in reach.
pub trait Near: Address {
    /// The other family.
    type Other: Near<Other = Self>;

    /// This family's twins.
    fn twins(beyond: &Beyond) -> &Table<Self>;

    /// The same, to change.
    fn twins_mut(beyond: &mut Beyond) -> &mut Table<Self>;

    /// A number in the place of an address: how a connection and its twin point at each other.
    fn pointer(id: ConnId) -> Self;

    /// The number again.
    fn pointed(self) -> ConnId;

    /// The address, in whichever family it is.
    fn either(address: IpAddr) -> Result<Self, Self::Other>;

    /// The director's own address on the link of a hop; zero if it has none.
    fn own(hop: &Hop) -> Self;
}

impl Near for V4 {
    type Other = V6;

    fn twins(beyond: &Beyond) -> &Table<Self> {
        &beyond.v4
    }

    fn twins_mut(beyond: &mut Beyond) -> &mut Table<Self> {
        &mut beyond.v4
    }

    fn pointer(id: ConnId) -> Self {
        Self(id.number())
    }

    fn pointed(self) -> ConnId {
        ConnId::numbered(self.0)
    }

    fn either(address: IpAddr) -> Result<Self, V6> {
        match address {
            IpAddr::V4(address) => Ok(address.into()),
            IpAddr::V6(address) => Err(address.into()),
        }
    }

    #[inline]
    fn own(hop: &Hop) -> Self {
        hop.own_v4
    }
}

impl Near for V6 {
    type Other = V4;

    fn twins(beyond: &Beyond) -> &Table<Self> {
        &beyond.v6
    }

    fn twins_mut(beyond: &mut Beyond) -> &mut Table<Self> {
        &mut beyond.v6
    }

    fn pointer(id: ConnId) -> Self {
        Self(id.number().into())
    }

    fn pointed(self) -> ConnId {
        ConnId::numbered(self.0 as u32)
    }

    fn either(address: IpAddr) -> Result<Self, V4> {
        match address {
            IpAddr::V4(address) => Err(address.into()),
            IpAddr::V6(address) => Ok(address.into()),
        }
    }

    #[inline]
    fn own(hop: &Hop) -> Self {
        hop.own_v6
    }
}

/// Finds the connection of the other family whose real server sends what has this tuple.
#[inline]
pub fn find<A: Near>(shared: &Shared, tuple: &Tuple<A>, hash: u64) -> Option<ConnId> {
    let twins = A::twins(&shared.beyond);
    if twins.is_empty() {
        return None;
    }
    let (twin, _) = twins.find(tuple, hash)?;
    Some(twins.conn(twin).server.pointed())
}

/// The tuple of what the real server of a connection sends, the real server being of family `A`.
pub fn tuple<A: Near>(shared: &Shared, conn: &Conn<A::Other>) -> Tuple<A> {
    A::twins(&shared.beyond).conn(conn.server.pointed()).request()
}

/// Makes a twin; `None` when there is no room. It points nowhere until [`point`] is called.
pub fn insert<A: Near>(shared: &mut Shared, tuple: &Tuple<A>, now: Tick) -> Option<ConnId> {
    let twin = Conn {
        client: tuple.source,
        client_port: tuple.source_port,
        virtual_address: tuple.destination,
        virtual_port: tuple.destination_port,
        protocol: tuple.protocol,
        // It is found one way only.
        forwarding: Forwarding::Route,
        last_seen: now,
        ..Conn::default()
    };
    A::twins_mut(&mut shared.beyond).insert(twin).ok()
}

/// Lets a twin lead to its connection.
pub fn point<A: Near>(shared: &mut Shared, twin: ConnId, conn: ConnId) {
    A::twins_mut(&mut shared.beyond).conn_mut(twin).server = A::pointer(conn);
}

/// Takes the twin of a connection away; gives its tuple.
pub fn remove<A: Near>(shared: &mut Shared, conn: &Conn<A::Other>) -> Tuple<A> {
    A::twins_mut(&mut shared.beyond).remove(conn.server.pointed()).request()
}

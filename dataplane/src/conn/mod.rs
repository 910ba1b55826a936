//! Connections: the entries, the table that finds them, the states they go through, the wheel that ends them.
//!
//! A worker owns its table. An IPv4 connection costs one cache line for its entry and six bytes in the index, or twelve
//! (NAT needs to be found from both sides).

pub mod calls;
pub mod directory;
pub mod fragments;
pub mod hops;
pub mod index;
pub mod memory;
pub mod parts;
pub mod paths;
pub mod sctp;
pub mod state;
pub mod supplier;
pub mod supply;
pub mod table;
pub mod tcp;
pub mod template;
pub mod wheel;

use zerocopy::FromZeros;

pub use hops::{Generation, Hops};
pub use index::Direction;
pub use state::{Side, State};
pub use table::{ConnId, Table};

use crate::packet::checksum::{Change, Folded};
use crate::packet::plain::Translation;
use crate::packet::{Address, Tuple};
use crate::service::{DestId, Forwarding, Tick, Tunnel, TunnelKind};

/// A connection.
///
/// The forwarding method and the real server are copied from the service when the connection is created: later edits do
/// not change live connections.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
#[repr(C, align(64))]
pub struct Conn<A> {
    // Each destination before its source: both are read as one little-endian word, which has the source in its upper half then, as `Address::pair` has it.
    /// The virtual address.
    pub virtual_address: A,
    /// The client's address.
    pub client: A,
    /// The director's own address towards the real server, under FullNAT.
    pub local: A,
    /// The real server's address; zero when it is of the other family, as only a tunnel's may be, or when there is none.
    pub server: A,
    /// The virtual port.
    pub virtual_port: u16,
    /// The client's port.
    pub client_port: u16,
    /// The port at `local`.
    pub local_port: u16,
    /// The real server's port.
    pub server_port: u16,
    /// IP protocol number; 0 marks a free entry.
    pub protocol: u8,
    /// Where it is in its life.
    pub state: State,
    /// How its packets reach the real server.
    pub forwarding: Forwarding,
    /// Bytes that the director has put before the client's data.
    pub shift: u8,
    /// What else is known of it.
    pub marks: Marks,
    /// Packets from the client, as IPVS counts them for synchronisation and load shedding. It wraps.
    pub in_packets: u16,
    /// What only its forwarding method needs.
    pub detail: Detail,
    /// Its real server, which also tells the service.
    pub dest: DestId,
    /// When its last packet came.
    pub last_seen: Tick,
    /// Milliseconds it lives without packets.
    pub timeout: u32,
    /// What its worker remembers for its next packets.
    pub hops: Hops,
    pub(crate) links: wheel::Links,
}

/// Yes-or-no facts of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(transparent)]
pub struct Marks(u16);

impl Marks {
    /// No reply was seen, and none is expected: the client's half decides the state.
    pub const NO_OUTPUT: Marks = Marks(1 << 0);
    /// It is counted as active at its real server.
    pub const ACTIVE: Marks = Marks(1 << 1);
    /// Its real server is told of the client by a TCP option.
    pub const TOA: Marks = Marks(1 << 2);
    /// Its real server is told of the client by a PROXY header of version 1.
    pub const PROXY_ONE: Marks = Marks(1 << 3);
    /// The same, of version 2.
    pub const PROXY_TWO: Marks = Marks(1 << 4);
    /// In any of these ways.
    pub const TELLS: Marks = Self::TOA.and(Self::PROXY_ONE).and(Self::PROXY_TWO);
    /// Its real server has acknowledged the PROXY header.
    pub const TOLD: Marks = Marks(1 << 5);
    /// Its real server is of the other family: `server` points at the twin that stands for it there.
    pub const ACROSS: Marks = Marks(1 << 6);
    /// It is no connection but a [`template`] of some.
    pub const TEMPLATE: Marks = Marks(1 << 7);
    /// It was made by a template, which lives at least as long.
    pub const CONTROLLED: Marks = Marks(1 << 8);
    /// Its request is not in the index: a template that makes no more connections, or a connection whose client's packets are another's now.
    pub const RETIRED: Marks = Marks(1 << 9);
    /// Its local port, under FullNAT, is of the queue for all ports of its real server.
    pub const ANY_PORT: Marks = Marks(1 << 10);
    /// A control connection of FTP: what is said on it is read.
    pub const FTP: Marks = Marks(1 << 11);
    /// A data connection of FTP, which has come of a control connection.
    pub const DATA: Marks = Marks(1 << 12);
    /// Either.
    pub const FTP_ANY: Marks = Self::FTP.and(Self::DATA);
    /// Its client has not chosen a port yet, and `client_port` is 0.
    pub const NO_CLIENT_PORT: Marks = Marks(1 << 13);
    /// There are data connections of it, so that it must outlive them.
    pub const PARENT: Marks = Marks(1 << 14);
    /// The frames of its virtual port and of its real server's port are steered to the director for its sake.
    pub const STEERED: Marks = Marks(1 << 15);

    /// These marks and others.
    #[must_use]
    pub const fn and(self, others: Marks) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether any of `marks` is there.
    #[inline]
    pub fn has(self, marks: Marks) -> bool {
        self.0 & marks.0 != 0
    }

    /// Puts `marks` there or takes them away.
    #[inline]
    pub fn set(&mut self, marks: Marks, there: bool) {
        self.0 = if there { self.0 | marks.0 } else { self.0 & !marks.0 };
    }
}

/// Four bytes of a connection that mean something else for each forwarding method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(transparent)]
pub struct Detail(u32);

impl Detail {
    /// The number of the first byte of the client's data, under FullNAT.
    pub fn first(self) -> u32 {
        self.0
    }

    /// Notes the number of the first byte of the client's data.
    pub fn set_first(&mut self, number: u32) {
        self.0 = number;
    }

    /// How many connections a template controls.
    pub fn controls(self) -> u32 {
        self.0
    }

    /// One more connection that a template controls, or one fewer.
    pub fn count(&mut self, one_more: bool) {
        self.0 = if one_more { self.0.saturating_add(1) } else { self.0.saturating_sub(1) };
    }

    /// The number of the talk that it belongs to, of FTP under NAT.
    pub fn talk(self) -> Option<u32> {
        self.0.checked_sub(1)
    }

    /// Notes the number of a talk.
    pub fn set_talk(&mut self, number: u32) {
        self.0 = number + 1;
    }

    /// What changes the checksums of requests, of a translated connection that is not FTP's and whose real server is not told of the client.
    #[inline]
    pub fn translation(self) -> Translation {
        Translation {
            header: Folded::from_word(self.0 as u16),
            transport: Folded::from_word((self.0 >> 16) as u16),
        }
    }

    /// How the packets are wrapped, in a tunnel.
    #[inline]
    pub fn tunnel(self) -> Tunnel {
        // Said first, the compiler makes a way of its own of what is the usual one.
        if self.0 == 0 {
            return Tunnel::default();
        }
        let kind = match self.0 & 3 {
            1 => TunnelKind::Gue,
            2 => TunnelKind::Gre,
            _ => TunnelKind::Ipip,
        };
        Tunnel { kind, checksum: self.0 & 4 != 0, port: (self.0 >> 16) as u16 }
    }
}

impl From<Translation> for Detail {
    fn from(Translation { header, transport }: Translation) -> Self {
        Self(u32::from(header.into_word()) | u32::from(transport.into_word()) << 16)
    }
}

impl From<Tunnel> for Detail {
    fn from(tunnel: Tunnel) -> Self {
        Self(tunnel.kind as u32 | u32::from(tunnel.checksum) << 2 | u32::from(tunnel.port) << 16)
    }
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

    /// What its replies look like on the wire, if they come through the director and are of its family.
    pub fn reply(&self) -> Option<Tuple<A>> {
        let is_found = self.forwarding.translates_replies() && !self.marks.has(Marks::ACROSS);
        is_found.then(|| self.beyond())
    }

    /// The [`reply`](Self::reply) if it is announced with the connection, and withdrawn: FullNAT's is with its local port.
    pub fn announced_reply(&self) -> Option<Tuple<A>> {
        self.reply().filter(|_| self.forwarding != Forwarding::FullNat)
    }

    /// The tuple on the real server's side of a translated connection, as its replies have it.
    pub fn beyond(&self) -> Tuple<A> {
        let (destination, destination_port) = match self.forwarding {
            Forwarding::FullNat => (self.local, self.local_port),
            _ => (self.client, self.client_port),
        };
        Tuple {
            source: self.server,
            destination,
            source_port: self.server_port,
            destination_port,
            protocol: self.protocol,
        }
    }

    /// What changes the checksums of its requests where its ends are replaced. Those of which nothing else is to be noted have it as their [`detail`](Self::detail).
    pub fn translation(&self) -> Translation {
        let mut addresses = self.virtual_address.becomes(self.server, Change::default());
        let mut ports = Change::default().word(self.virtual_port, self.server_port);
        if self.forwarding == Forwarding::FullNat {
            addresses = self.client.becomes(self.local, addresses);
            ports = ports.word(self.client_port, self.local_port);
        }
        Translation { header: addresses.folded(), transport: addresses.and(ports).folded() }
    }

    /// Whether the translation of its packets changes ports.
    pub fn changes_ports(&self) -> bool {
        match self.forwarding {
            Forwarding::Masq => self.virtual_port != self.server_port,
            Forwarding::FullNat => true,
            Forwarding::Route | Forwarding::Tunnel | Forwarding::Bypass => false,
        }
    }

    /// Whether it has a real server, which may have been removed.
    #[inline]
    pub fn has_server(&self) -> bool {
        self.forwarding != Forwarding::Bypass
    }

    /// Whether it is no connection, but what makes some go where the first one went.
    #[inline]
    pub fn is_template(&self) -> bool {
        self.marks.has(Marks::TEMPLATE)
    }

    /// Connections that it controls: it must outlive them. Of a control connection of FTP only whether there are any.
    #[inline]
    pub fn controls(&self) -> u32 {
        if self.is_template() { self.detail.controls() } else { self.marks.has(Marks::PARENT).into() }
    }

    /// Milliseconds from its end until it is gone. A template is still obeyed then: the kernel's timers, which have 64 steps
    /// in a span eight times their own, are about so late, and a client who comes back after just the time finds its real server.
    #[inline]
    pub fn lingers(&self) -> u32 {
        if self.is_template() { self.timeout / 64 } else { 0 }
    }

    /// Counts a packet from the client.
    #[inline]
    pub fn count_packet(&mut self) {
        // Past its end it goes on in the middle: one that counts few packets is a short one.
        self.in_packets = self.in_packets.checked_add(1).unwrap_or(1 << 15);
    }

    /// Lets it live on although its time is over.
    pub fn reprieve(&mut self, now: Tick) {
        (self.timeout, self.last_seen) = (table::REPRIEVE, now);
    }

    /// Milliseconds it has left to live at `now`.
    pub fn remaining(&self, now: Tick) -> u32 {
        self.timeout.saturating_sub(now.since(self.last_seen))
    }
}

//! The language that fuzzers and property tests speak: lists of [`Op`]s, read from any bytes.

use std::net::Ipv4Addr;

use shunt::api::{
    ClientAddress, Forwarding, Protocol, Request, ServerConfig, ServerKey, ServiceConfig, ServiceKey,
    Timeouts,
};

use crate::bench::VIP;
use crate::frames::{checksum, frame, sctp, to_hex};
use crate::rig::VIP2;
pub(crate) use shunt_dataplane::packet::protocol::{SCTP, TCP, UDP};

/// Ops of one run. More find nothing new, and the audit after each makes a run's cost quadratic.
const MOST_OPS: usize = 200;

/// The services that edits add: protocol, virtual address and port, the port of the servers, NAT or not. The servers at the second address
/// are the first one's, so that replies of the two can be the same.
pub const SERVICES: &[(Protocol, Ipv4Addr, u16, u16, Forwarding)] = &[
    (Protocol::Tcp, VIP, 80, 80, Forwarding::Masq),
    (Protocol::Tcp, VIP, 81, 8080, Forwarding::Masq),
    (Protocol::Tcp, VIP, 82, 82, Forwarding::Route),
    (Protocol::Udp, VIP, 80, 80, Forwarding::Masq),
    (Protocol::Udp, VIP, 81, 8080, Forwarding::Masq),
    (Protocol::Udp, VIP, 82, 82, Forwarding::Route),
    (Protocol::Tcp, VIP2, 80, 80, Forwarding::Masq),
    (Protocol::Udp, VIP2, 80, 80, Forwarding::Masq),
    (Protocol::Tcp, VIP, 83, 8083, Forwarding::FullNat),
    (Protocol::Udp, VIP, 83, 8083, Forwarding::FullNat),
    (Protocol::Sctp, VIP, 80, 80, Forwarding::Masq),
    (Protocol::Sctp, VIP, 81, 8080, Forwarding::Masq),
    (Protocol::Sctp, VIP, 82, 82, Forwarding::Route),
];

/// The local addresses of the FullNAT services.
pub const LOCALS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 1, 0, 3)];

/// The real servers: eight that answer, one not asked for yet, one mute, one without a route.
const SERVERS_THERE_ARE: u8 = 11;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// Bytes come to a worker. `mend` makes the IP checksum right, so that more gets past it.
    Raw {
        /// The worker.
        worker: u8,
        /// Which side: even is the clients'.
        side: u8,
        /// Whether the IP checksum is made right.
        mend: bool,
        /// The frame.
        bytes: Hex,
    },
    /// A client sends to a service.
    Request {
        /// The worker it comes to.
        worker: u8,
        /// Which client: address and port.
        client: u8,
        /// Which of [`SERVICES`].
        service: u8,
        /// What it looks like.
        shape: Shape,
    },
    /// The real server of a connection sends to its client.
    Reply {
        /// The worker it comes to.
        worker: u8,
        /// Which connection.
        conn: u8,
        /// What it looks like.
        shape: Shape,
    },
    /// Somebody sends an ICMP error about a connection.
    Error {
        /// The worker it comes to.
        worker: u8,
        /// Which connection.
        conn: u8,
        /// About a reply, from the client's side; else about a request, from the server's.
        about_reply: bool,
        /// The ICMP type.
        kind: u8,
        /// Bytes quoted behind the quoted IP header.
        quoted: u8,
    },
    /// The rules change, if they allow it.
    Edit(Edit),
    /// The MTU of the servers' link changes.
    Mtu(u8),
    /// Tenths of a second pass.
    Wait(u16),
}

/// Bytes that print as hex: a failing run is a list of these.
#[derive(Clone)]
pub struct Hex(pub Vec<u8>);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// A change of the rules.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Edit {
    AddService { service: u8 },
    Schedule { service: u8, weighted: bool },
    DeleteService { service: u8 },
    AddServer { service: u8, server: u8, weight: u8, limit: u8 },
    EditServer { service: u8, server: u8, weight: u8, limit: u8 },
    DeleteServer { service: u8, server: u8 },
    Flush,
    Zero,
    Timeouts { tcp: u8, fin: u8, udp: u8 },
}

/// What a frame looks like beyond its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// TCP flags. SCTP's one chunk is of half this type, so that a SYN is an INIT.
    pub flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bytes of data, times eight.
    pub length: u8,
    /// The two lowest bits: VLAN tags, at most two. The next four: words of IP options, at most ten.
    pub wrapping: u8,
    /// Bit 0: the transport checksum is wrong; bit 1: UDP has none; bit 2: don't fragment; the rest: Ethernet padding.
    pub quirks: u8,
}

impl Default for Shape {
    fn default() -> Self {
        Self { flags: 0x10, ttl: 64, length: 2, wrapping: 0, quirks: 4 }
    }
}

impl Shape {
    /// A shape with these TCP flags.
    pub fn flags(flags: u8) -> Self {
        Self { flags, ..Self::default() }
    }

    /// The frame.
    pub fn frame(
        &self,
        macs: ([u8; 6], [u8; 6]),
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        protocol: u8,
    ) -> Vec<u8> {
        let data: Vec<u8> = (0..usize::from(self.length) * 8).map(|n| (n * 7 + 3) as u8).collect();
        let (mut segment, checksum_at) = if protocol == SCTP {
            (Vec::new(), 8)
        } else if protocol == TCP {
            let mut header = vec![0; 20];
            header[4..8].copy_from_slice(&[0, 0, 3, 0xe8]);
            header[12..16].copy_from_slice(&[5 << 4, self.flags, 0x20, 0]);
            (header, 16)
        } else {
            (vec![0; 8], 6)
        };
        let mut bytes = if protocol == SCTP {
            sctp(macs, from, to, &[(self.flags >> 1, &data)])
        } else {
            segment.extend(data);
            segment[..2].copy_from_slice(&from.1.to_be_bytes());
            segment[2..4].copy_from_slice(&to.1.to_be_bytes());
            if protocol == UDP {
                let length = segment.len() as u16;
                segment[4..6].copy_from_slice(&length.to_be_bytes());
            }
            frame(macs, from.0, to.0, protocol, segment, checksum_at)
        };
        let field = 14 + 20 + checksum_at;
        if protocol == UDP && (self.quirks & 2 != 0 || bytes[field..field + 2] == [0, 0]) {
            // No checksum, or one that must be written the other way (RFC 768).
            bytes[field..field + 2].fill(if self.quirks & 2 != 0 { 0 } else { 0xff });
        }
        if self.quirks & 1 != 0 {
            bytes[field] ^= 0x55;
        }
        bytes[14 + 8] = self.ttl;
        bytes[14 + 6] = if self.quirks & 4 != 0 { 0x40 } else { 0 };
        let options = (usize::from(self.wrapping >> 2) & 15).min(10);
        bytes[14] = 0x45 + options as u8;
        bytes.splice(34..34, std::iter::repeat_n(1, options * 4));
        let total = (bytes.len() - 14) as u16;
        bytes[16..18].copy_from_slice(&total.to_be_bytes());
        mend(&mut bytes);
        bytes.extend(std::iter::repeat_n(0xaa, usize::from(self.quirks >> 3)));
        for n in 0..(self.wrapping & 3).min(2) {
            bytes.splice(12..12, [if n == 0 { 0x81 } else { 0x88 }, if n == 0 { 0 } else { 0xa8 }, 0, 42]);
        }
        bytes
    }
}

/// Makes the IP checksum of a frame right, if there is a header to speak of.
pub(crate) fn mend(bytes: &mut [u8]) {
    let mut at = 14;
    while at <= 18 && matches!(bytes.get(at - 2..at), Some([0x81, 0x00] | [0x88, 0xa8])) {
        at += 4;
    }
    let Some(first) = bytes.get(at) else { return };
    let header = usize::from(first & 15) * 4;
    if header < 20 || bytes.len() < at + header {
        return;
    }
    bytes[at + 10..at + 12].fill(0);
    let sum = checksum(&bytes[at..at + header]);
    bytes[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Takes bytes off the front; zeros when there are none left.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl Cursor<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

impl Op {
    /// Reads a run from bytes. Any bytes are one.
    pub fn read_all(bytes: &[u8]) -> Vec<Op> {
        let mut cursor = Cursor(bytes);
        let mut ops = Vec::new();
        while !cursor.is_empty() && ops.len() < MOST_OPS {
            ops.push(Self::read(&mut cursor));
        }
        ops
    }

    fn read(cursor: &mut Cursor) -> Op {
        let kind = cursor.byte();
        match kind & 15 {
            0 => {
                let control = cursor.byte();
                let length = usize::from(cursor.byte()) << 8 | usize::from(cursor.byte());
                Op::Raw {
                    worker: control >> 1 & 3,
                    side: control & 1,
                    mend: control & 8 != 0,
                    bytes: Hex(cursor.bytes(length)),
                }
            }
            1..=3 => Op::Request {
                worker: kind >> 4,
                client: cursor.byte(),
                service: cursor.byte(),
                shape: Self::read_shape(cursor),
            },
            4..=5 => Op::Reply { worker: kind >> 4, conn: cursor.byte(), shape: Self::read_shape(cursor) },
            6 => {
                let control = cursor.byte();
                let kinds = [3, 4, 11, 12];
                Op::Error {
                    worker: kind >> 4,
                    conn: cursor.byte(),
                    about_reply: control & 1 != 0,
                    kind: kinds[usize::from(control >> 1 & 3)],
                    quoted: cursor.byte(),
                }
            }
            7 => Op::Mtu(cursor.byte()),
            8 => Op::Wait(u16::from(cursor.byte()) << 5),
            _ => Op::Edit(Self::read_edit(kind, cursor)),
        }
    }

    fn read_shape(cursor: &mut Cursor) -> Shape {
        Shape {
            flags: cursor.byte(),
            ttl: cursor.byte(),
            length: cursor.byte(),
            wrapping: cursor.byte(),
            quirks: cursor.byte(),
        }
    }

    fn read_edit(kind: u8, cursor: &mut Cursor) -> Edit {
        let service = kind >> 4;
        match kind & 15 {
            9 => Edit::AddService { service },
            10 => Edit::AddServer {
                service,
                server: cursor.byte(),
                weight: cursor.byte(),
                limit: cursor.byte(),
            },
            11 => Edit::EditServer {
                service,
                server: cursor.byte(),
                weight: cursor.byte(),
                limit: cursor.byte(),
            },
            12 => Edit::DeleteServer { service, server: cursor.byte() },
            13 => Edit::Schedule { service, weighted: cursor.byte() & 1 != 0 },
            14 => Edit::DeleteService { service },
            _ => match cursor.byte() & 3 {
                0 => Edit::Flush,
                1 => Edit::Zero,
                _ => Edit::Timeouts { tcp: cursor.byte(), fin: cursor.byte(), udp: cursor.byte() },
            },
        }
    }
}

impl Edit {
    /// The request it stands for.
    pub fn request(self) -> Request {
        let config = |service: u8, weighted| ServiceConfig {
            // What tells the real server of the client changes more than the oracle knows of; it has tests of its own.
            client_address: ClientAddress::None,
            ..ServiceConfig::new(service_key(service), if weighted { "wrr" } else { "rr" })
        };
        let server_config = |service: u8, server: u8, weight: u8, limit: u8| ServerConfig {
            key: server_key(service, server),
            forwarding: place(SERVICES, service).4,
            weight: u32::from(weight % 16),
            upper_threshold: u32::from(limit % 4) * 2,
            lower_threshold: 0,
        };
        match self {
            Edit::AddService { service } => Request::AddService(config(service, service & 8 != 0)),
            Edit::Schedule { service, weighted } => Request::EditService(config(service, weighted)),
            Edit::DeleteService { service } => Request::DeleteService(service_key(service)),
            Edit::AddServer { service, server, weight, limit } => {
                Request::AddServer(service_key(service), server_config(service, server, weight, limit))
            }
            Edit::EditServer { service, server, weight, limit } => {
                Request::EditServer(service_key(service), server_config(service, server, weight, limit))
            }
            Edit::DeleteServer { service, server } => {
                Request::DeleteServer(service_key(service), server_key(service, server))
            }
            Edit::Flush => Request::Flush,
            Edit::Zero => Request::Zero(None),
            Edit::Timeouts { tcp, fin, udp } => {
                let [tcp, tcp_fin, udp] = [tcp, fin, udp].map(|n| u32::from(n) * 4);
                Request::SetTimeouts(Timeouts { tcp, tcp_fin, udp })
            }
        }
    }
}

pub(crate) fn place<T>(list: &[T], number: u8) -> &T {
    &list[usize::from(number) % list.len()]
}

/// The key of one of [`SERVICES`].
pub fn service_key(service: u8) -> ServiceKey {
    let (protocol, address, port, ..) = *place(SERVICES, service);
    ServiceKey::Address { protocol, address: address.into(), port }
}

/// The key of a real server of one of [`SERVICES`].
pub fn server_key(service: u8, server: u8) -> ServerKey {
    let address = match server % SERVERS_THERE_ARE {
        8 => Ipv4Addr::new(10, 1, 0, 50),
        9 => Ipv4Addr::new(10, 1, 0, 99),
        10 => Ipv4Addr::new(10, 3, 0, 1),
        n => Ipv4Addr::new(10, 1, 0, 11 + n),
    };
    ServerKey { address: address.into(), port: place(SERVICES, service).3 }
}

/// A client by its number: eight neighbours and eight hosts behind the router, sixteen ports each.
pub fn client(number: u8) -> (Ipv4Addr, u16) {
    let host = number & 7;
    let address =
        if number & 8 == 0 { Ipv4Addr::new(10, 0, 0, 2 + host) } else { Ipv4Addr::new(192, 0, 2, host) };
    (address, 1000 + u16::from(number >> 4))
}

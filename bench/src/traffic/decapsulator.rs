//! The far end of a tunnel: what the director wrapped is unwrapped in a real server's namespace and given to its
//! own stack.
//!
//! ```text
//!  front ─▶ raw sockets: IP protocols 4, 41 (ipip), 47 (gre), 17 (gue) ─▶ unwrap ─▶ raw socket ─▶ lo ─▶ TCP, UDP
//! ```
//!
//! A real server does this with devices (see [`super::unwrapping`]), which many kernels lack, such as those of
//! containers and test machines. So it is done here, and strictly: whatever a tunnel's receiver may check is checked,
//! checksums above all, and what is wrong is counted by reason in [`Counters::refused`]. A packet goes on only to the
//! VIP, a local address of the server; its replies leave as they do with DR.
//!
//! Raw sockets and not a UDP socket for GUE: over IPv6 the kernel hands no datagram without a checksum to a
//! UDP socket that has not asked for them. A bound one is there all the same, unread, or the kernel would answer
//! "port unreachable". Traps: the kernel writes the inner IPv4 header's checksum anew when it sends, so it is checked
//! here; and a raw socket is given packets behind the outer IPv6 header, but from the outer IPv4 header on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::background::Background;
use crate::namespace::Namespace;
use crate::netlink::Netlink;
use crate::topology::{DIRECTOR_TO_SERVERS, DIRECTOR_TO_SERVERS6, LOCAL, LOCAL6, VIP, VIP6};
use shunt_dataplane::packet::protocol::UDP;

/// Where GUE is received: the port of the examples in the kernel's documentation, IANA's for GUE.
pub const GUE_PORT: u16 = 6080;

const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;

/// How often a quiet one looks whether it is to stop, in milliseconds.
const ATTENTION: u16 = 50;

/// Packets taken from one socket before the others get their turn.
const TURN: usize = 64;

/// Of each socket: some thousand packets, for a burst that arrives while the thread is off the core.
const ROOM: usize = 4 << 20;

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// An IP packet in an IP packet.
    Ipip,
    /// Generic UDP encapsulation, to [`GUE_PORT`].
    Gue,
    /// Generic routing encapsulation.
    Gre,
}

impl Tunnel {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::Gue, Self::Gre];

    fn protocols(self) -> &'static [u8] {
        match self {
            Self::Ipip => &[IPV4, IPV6],
            Self::Gue => &[UDP],
            Self::Gre => &[GRE],
        }
    }
}

/// What one decapsulator has seen since it started.
#[derive(Debug, Default)]
pub struct Counters {
    unwrapped: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// Packets given to the server's own stack.
    pub fn unwrapped(&self) -> u64 {
        self.unwrapped.load(Ordering::Relaxed)
    }

    /// Packets that were not in order, by reason.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, reason: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }
}

/// Unwraps in a namespace, on a thread of its own. Dropping it ends it.
pub struct Decapsulator {
    counters: Arc<Counters>,
    background: Background,
}

impl Decapsulator {
    /// Starts one that takes what is sent to these addresses, and returns once it listens.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], tunnels: &[Tunnel]) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let ends = namespace.run_in(|| {
            silence_the_kernel(addresses)?;
            Ends::open(addresses, tunnels)
        })??;
        let background = Background::start(namespace, "decapsulator", {
            let counters = counters.clone();
            move |stop| ends.run(&counters, stop)
        })?;
        Ok(Self { counters, background })
    }

    /// What it has seen so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends it; the error is what made it end before.
    pub fn stop(self) -> Result<()> {
        self.background.stop()
    }
}

/// A kernel that has devices for tunnels tells the director that none of them takes what comes, though a raw socket does.
fn silence_the_kernel(addresses: &[IpAddr]) -> Result<()> {
    let netlink = Netlink::open()?;
    let v4 = [DIRECTOR_TO_SERVERS, LOCAL].map(IpAddr::from);
    let v6 = [DIRECTOR_TO_SERVERS6, LOCAL6].map(IpAddr::from);
    v4.into_iter()
        .chain(v6)
        .filter(|to| addresses.iter().any(|address| address.is_ipv4() == to.is_ipv4()))
        .try_for_each(|to| netlink.silence(to))
}

/// The sockets of a decapsulator.
struct Ends {
    doors: Vec<Door>,
    /// Keep the kernel from answering that nobody listens.
    _plugs: Vec<UdpSocket>,
    to_stack: Socket,
    to_stack6: Option<Socket>,
}

/// Where packets of one protocol to one address come in.
struct Door {
    socket: Socket,
    protocol: u8,
    address: IpAddr,
}

impl Ends {
    fn open(addresses: &[IpAddr], tunnels: &[Tunnel]) -> Result<Self> {
        let (mut doors, mut plugs) = (Vec::new(), Vec::new());
        for &address in addresses {
            for &protocol in tunnels.iter().flat_map(|tunnel| tunnel.protocols()) {
                doors.push(Door::open(address, protocol)?);
                if protocol == UDP {
                    plugs.push(UdpSocket::bind((address, GUE_PORT)).context("binding the port of GUE")?);
                }
            }
        }
        // A socket of "protocol" RAW only sends, packets with their headers.
        let sender = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(nix::libc::IPPROTO_RAW)));
        Ok(Self {
            doors,
            _plugs: plugs,
            to_stack: sender(Domain::IPV4).context("a socket for IPv4 packets")?,
            // A kernel without it is given no address of it either.
            to_stack6: sender(Domain::IPV6).ok(),
        })
    }

    fn run(&self, counters: &Counters, stop: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        let mut waiting: Vec<_> =
            self.doors.iter().map(|door| PollFd::new(door.socket.as_fd(), PollFlags::POLLIN)).collect();
        while !stop.load(Ordering::Relaxed) {
            match poll(&mut waiting, ATTENTION) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("waiting for packets"),
            }
            for (door, event) in self.doors.iter().zip(&waiting) {
                if event.any() == Some(false) {
                    continue;
                }
                for _ in 0..TURN {
                    let Some((source, payload)) = door.receive(&mut buffer)? else { break };
                    match unwrap(door.protocol, (source, door.address), payload) {
                        Ok(None) => {}
                        Ok(Some(inner)) => {
                            self.give_to_stack(inner)?;
                            counters.unwrapped.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(reason) => counters.refuse(reason),
                    }
                }
            }
        }
        Ok(())
    }

    fn give_to_stack(&self, inner: &[u8]) -> Result<()> {
        let (socket, to): (_, SocketAddr) = match &self.to_stack6 {
            Some(socket) if inner[0] >> 4 == 6 => (socket, (VIP6, 0).into()),
            _ => (&self.to_stack, (VIP, 0).into()),
        };
        match sendto(socket.as_raw_fd(), inner, &SockaddrStorage::from(to), MsgFlags::empty()) {
            // A full queue loses packets, as any device's does.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("giving {} bytes to the stack", inner.len())),
        }
    }
}

impl Door {
    fn open(address: IpAddr, protocol: u8) -> Result<Self> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let open = || -> Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddr::from((address, 0)).into())?;
            // Beyond net.core.rmem_max it takes a privilege.
            if setsockopt(&socket, sockopt::RcvBufForce, &ROOM).is_err() {
                setsockopt(&socket, sockopt::RcvBuf, &ROOM).context("SO_RCVBUF")?;
            }
            Ok(socket)
        };
        let socket = open().with_context(|| format!("receiving IP protocol {protocol} at {address}"))?;
        Ok(Self { socket, protocol, address })
    }

    /// The next packet's source and what is behind its IP header. `None` if there is none.
    fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<(IpAddr, &'b [u8])>> {
        let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), buffer) {
            Ok((length, Some(from))) => (length, from),
            Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno).context("receiving a packet"),
        };
        let v4 = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
        let v6 = from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip()));
        let source = v4.or(v6).context("a packet from no IP address")?;
        let packet = &buffer[..length];
        // The kernel has checked the header's length before it gave the packet to anybody.
        let header = if source.is_ipv4() { usize::from(packet[0] & 0xf) * 4 } else { 0 };
        Ok(Some((source, &packet[header..])))
    }
}

/// What is in a tunnel's packet, checked. `None` for a datagram that is no tunnel's. The error is the reason to
/// refuse it.
fn unwrap(protocol: u8, ends: (IpAddr, IpAddr), payload: &[u8]) -> Result<Option<&[u8]>, &'static str> {
    let (inside, inner) = match protocol {
        GRE => gre(payload)?,
        UDP if word(payload, 2) != Some(GUE_PORT) => return Ok(None),
        UDP => gue(ends, payload)?,
        bare => (bare, payload),
    };
    match inside {
        IPV4 => check_v4(inner)?,
        IPV6 => check_v6(inner)?,
        _ => return Err("neither IPv4 nor IPv6 inside"),
    }
    Ok(Some(inner))
}

/// RFC 2784: a bit says whether there is a checksum; keys and sequence numbers (RFC 2890) are nobody's here.
fn gre(payload: &[u8]) -> Result<(u8, &[u8]), &'static str> {
    const CHECKSUM: u16 = 0x8000;
    let flags = word(payload, 0).ok_or("GRE: cut off")?;
    let inside = match word(payload, 2) {
        Some(0x0800) => IPV4,
        Some(0x86dd) => IPV6,
        _ => return Err("GRE: another protocol"),
    };
    let header = match flags {
        0 => 4,
        CHECKSUM if sum(&[payload]) == 0xffff => 8,
        CHECKSUM => return Err("GRE: checksum"),
        _ => return Err("GRE: flags"),
    };
    Ok((inside, payload.get(header..).ok_or("GRE: cut off")?))
}

/// A datagram with GUE's header of version 0 without options (draft-ietf-intarea-gue §3.2).
fn gue((source, destination): (IpAddr, IpAddr), payload: &[u8]) -> Result<(u8, &[u8]), &'static str> {
    if word(payload, 4).map(usize::from) != Some(payload.len()) {
        return Err("GUE: the datagram's length");
    }
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let pseudo = [&payload[4..6], &[0, UDP]].concat();
    let whole = || sum(&[&octets(source), &octets(destination), &pseudo, payload]) == 0xffff;
    if word(payload, 6) != Some(0) && !whole() {
        return Err("GUE: the datagram's checksum");
    }
    match payload.get(8..12) {
        None => Err("GUE: cut off"),
        Some(&[0, inside, 0, 0]) => Ok((inside, &payload[12..])),
        Some(_) => Err("GUE: version, options or flags"),
    }
}

fn check_v4(packet: &[u8]) -> Result<(), &'static str> {
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    if packet.len() < header.max(20) || packet[0] >> 4 != 4 || header < 20 {
        return Err("inner IPv4: header");
    }
    if word(packet, 2).map(usize::from) != Some(packet.len()) {
        return Err("inner IPv4: length");
    }
    if sum(&[&packet[..header]]) != 0xffff {
        return Err("inner IPv4: header checksum");
    }
    if packet[16..20] == VIP.octets() { Ok(()) } else { Err("inner IPv4: not to the VIP") }
}

fn check_v6(packet: &[u8]) -> Result<(), &'static str> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return Err("inner IPv6: header");
    }
    if word(packet, 4).map(|length| usize::from(length) + 40) != Some(packet.len()) {
        return Err("inner IPv6: length");
    }
    if packet[24..40] == VIP6.octets() { Ok(()) } else { Err("inner IPv6: not to the VIP") }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The ones' complement sum of parts, each but the last of even length. All ones for what carries a right checksum.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 packet to the VIP with nothing inside.
    fn inner() -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6]) = (0x60, 59);
        packet[24..].copy_from_slice(&VIP6.octets());
        packet
    }

    fn ends() -> (IpAddr, IpAddr) {
        (IpAddr::from([10, 2, 0, 1]), IpAddr::from([10, 2, 0, 11]))
    }

    #[test]
    fn what_is_in_order_is_unwrapped() {
        let inner = inner();
        assert_eq!(unwrap(IPV6, ends(), &inner), Ok(Some(&inner[..])));
        let gre = [&[0, 0, 0x86, 0xdd], &inner[..]].concat();
        assert_eq!(unwrap(GRE, ends(), &gre), Ok(Some(&inner[..])));
        let gue = [&[0x80, 0, 0x17, 0xc0, 0, 52, 0, 0, 0, IPV6, 0, 0], &inner[..]].concat();
        assert_eq!(unwrap(UDP, ends(), &gue), Ok(Some(&inner[..])));
    }

    #[test]
    fn a_wrong_checksum_is_refused_and_a_right_one_is_not() {
        let mut gre = [&[0x80, 0, 0x86, 0xdd, 0, 0, 0, 0], &inner()[..]].concat();
        assert_eq!(unwrap(GRE, ends(), &gre), Err("GRE: checksum"));
        let right = !sum(&[&gre]);
        gre[4..6].copy_from_slice(&right.to_be_bytes());
        assert!(unwrap(GRE, ends(), &gre).is_ok());

        let mut gue = [&[0x80, 0, 0x17, 0xc0, 0, 52, 0, 0, 0, IPV6, 0, 0], &inner()[..]].concat();
        let right = !sum(&[&[10, 2, 0, 1, 10, 2, 0, 11, 0, 52, 0, UDP], &gue]);
        gue[6..8].copy_from_slice(&right.to_be_bytes());
        assert!(unwrap(UDP, ends(), &gue).is_ok());
        gue[20] ^= 1;
        assert_eq!(unwrap(UDP, ends(), &gue), Err("GUE: the datagram's checksum"));
    }

    #[test]
    fn nothing_that_is_cut_off_is_taken() {
        let inner = inner();
        let gre = [&[0, 0, 0x86, 0xdd], &inner[..]].concat();
        for end in 0..gre.len() {
            assert!(unwrap(GRE, ends(), &gre[..end]).is_err(), "GRE, {end} bytes");
        }
        for end in 0..inner.len() {
            assert!(unwrap(IPV6, ends(), &inner[..end]).is_err(), "IPv6, {end} bytes");
            assert!(unwrap(IPV4, ends(), &inner[..end]).is_err(), "IPv4, {end} bytes");
        }
        assert_eq!(unwrap(UDP, ends(), &[0, 1, 0, 7, 0, 8, 0, 0]), Ok(None));
    }
}

//! What a traceroute to a service shows: the director is a hop, whatever it does with packets afterwards, and the real server is the last one.
//!
//! What dies at the director is answered from the virtual address, as IPVS has it. So is what dies at a router inside a tunnel: the router tells the
//! director, and the director the client.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, getsockopt, setsockopt,
    sockopt,
};
use shunt_bench::director::Director;
use shunt_bench::topology::{Options, Topology};
use shunt_bench::traffic::decapsulator::Tunnel;
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};

use crate::ground::{Backend, PATIENCE, permitted, serve_at, source_for, start};
use crate::path_mtu::{far, far_end};
use crate::tunnels::{DR, Family, GUE, IPIP, NAT, Way};

/// Until a probe is sent again: the director answers one client with as many errors a second.
const AGAIN: Duration = Duration::from_secs(1);

#[test]
fn a_traceroute_shows_director_and_real_server_over_ipv4() -> Result<()> {
    traceroutes(a_traceroute_shows_director_and_real_server_over_ipv4, Family::V4)
}

#[test]
fn a_traceroute_shows_director_and_real_server_over_ipv6() -> Result<()> {
    traceroutes(a_traceroute_shows_director_and_real_server_over_ipv6, Family::V6)
}

fn traceroutes(test: impl Fn() -> Result<()>, family: Family) -> Result<()> {
    if !permitted(test)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let _unwrapping = (topology.start_decapsulators(&Tunnel::ALL)?, far_end(&topology, 1)?);
        let director = start(&topology, backend, &[])?;
        let here = Hop::Dies(family.vip());
        for way in [NAT, DR, IPIP] {
            shows(&topology, &director, family, &way, family.server(0), &[here, Hop::Arrives])?;
        }
        director.stop()?;
        // A router between the director and the real server. Another director owes nobody an answer yet.
        let director = start(&topology, backend, &[])?;
        for way in [IPIP, GUE] {
            shows(&topology, &director, family, &way, far(family, 0), &[here, here, Hop::Arrives])?;
        }
        director.stop()?;
    }
    Ok(())
}

/// What becomes of a probe that may take so many hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hop {
    /// Its time to live is over, says this address.
    Dies(IpAddr),
    /// The real server answers.
    Arrives,
}

/// By UDP and by TCP.
fn shows(
    topology: &Topology,
    director: &Director,
    family: Family,
    way: &Way,
    server: IpAddr,
    expected: &[Hop],
) -> Result<()> {
    director.ipvsadm(&["-C"])?;
    for (protocol, port) in [("-u", ECHO_PORT), ("-t", HTTP_PORT)] {
        let at = SocketAddr::new(family.vip(), port);
        serve_at(director, protocol, at, SocketAddr::new(server, port), way.how)?;
        let hops = topology.client().run_in(|| -> Result<Vec<Hop>> {
            let mut hops = Vec::new();
            while hops.last() != Some(&Hop::Arrives) && hops.len() < 5 {
                hops.push(probe(protocol == "-u", at, hops.len() as i32 + 1)?);
            }
            Ok(hops)
        })?;
        let what = || format!("{} to {server} by {}, {protocol}", family.vip(), way.label());
        let hops = hops.with_context(what)?;
        ensure!(hops == expected, "{}: {hops:?}", what());
    }
    Ok(())
}

/// Sends one packet that lives so long, from the calling thread's namespace, and waits for what is said about it.
fn probe(by_udp: bool, to: SocketAddr, life: i32) -> Result<Hop> {
    let ear = Ear::open(to)?;
    let from = source_for(to);
    let probe: OwnedFd = if by_udp {
        let socket = UdpSocket::bind(from)?;
        lives(&socket, to, life)?;
        socket.connect(to)?;
        socket.into()
    } else {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(family, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        lives(&socket, to, life)?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        match socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Err(Errno::EINPROGRESS) => socket,
            other => bail!("connecting at once: {other:?}"),
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        // TCP itself sends again.
        if by_udp {
            socket::send(probe.as_raw_fd(), b"is it far?", MsgFlags::empty())?;
        }
        let sent = Instant::now();
        while sent.elapsed() < AGAIN {
            let answers = if by_udp { PollFlags::POLLIN } else { PollFlags::POLLOUT };
            let mut both =
                [PollFd::new(probe.as_fd(), answers), PollFd::new(ear.0.as_fd(), PollFlags::POLLIN)];
            poll(&mut both, PollTimeout::from(50_u8))?;
            let [answered, heard] = both.map(|fd| fd.any() == Some(true));
            if heard && let Some(by) = ear.hears(from, to)? {
                return Ok(Hop::Dies(by));
            }
            if answered {
                let error = getsockopt(&probe, sockopt::SocketError)?;
                ensure!(error == 0, "{}", Errno::from_raw(error));
                return Ok(Hop::Arrives);
            }
        }
    }
    bail!("nobody says anything about a probe that lives {life} hops")
}

fn lives(socket: &impl AsFd, to: SocketAddr, hops: i32) -> Result<()> {
    match to {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Ttl, &hops),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6Ttl, &hops),
    }
    .context("setting the time to live")
}

/// Hears ICMP.
struct Ear(OwnedFd);

impl Ear {
    fn open(to: SocketAddr) -> Result<Self> {
        let (family, protocol) = match to {
            SocketAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            SocketAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket::socket(family, SockType::Raw, flags, protocol).context("a socket for ICMP")?))
    }

    /// Who says that a packet between these has lived too long; `None` if it is about something else.
    fn hears(&self, from: SocketAddr, to: SocketAddr) -> Result<Option<IpAddr>> {
        let mut heard = [0; 2048];
        let (length, by) = match socket::recvfrom::<SockaddrStorage>(self.0.as_raw_fd(), &mut heard) {
            Ok((length, Some(by))) => (length, by),
            Ok(_) | Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno).context("receiving ICMP"),
        };
        let by = by
            .as_sockaddr_in()
            .map(|by| IpAddr::from(by.ip()))
            .or(by.as_sockaddr_in6().map(|by| IpAddr::from(by.ip())));
        let by = by.context("from no IP address")?;
        // Of IPv4 the header comes along.
        let (header, kind) = if to.is_ipv4() { (20, 11) } else { (40, 3) };
        let message = if to.is_ipv4() { &heard[header..length] } else { &heard[..length] };
        let quote = message.get(8..8 + header + 4).filter(|_| message[0] == kind);
        let Some((ip, ports)) = quote.map(|quote| quote.split_at(header)) else { return Ok(None) };
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let is_ours = ip.ends_with(&[octets(from.ip()), octets(to.ip())].concat())
            && ports == [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        Ok(is_ours.then_some(by))
    }
}

//! What IPv6 has of its own: neighbour discovery, and a ping that stays the kernel's.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto, setsockopt,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    BACK, DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, FRONT, Options, Topology, VIP6, client6, server6,
};
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};

use crate::ground::{
    Backend, PATIENCE, counter, echo, get, get_each, hear, permitted, resets_sent, say_to_all, serve, start,
    udp,
};
use crate::network::{no_drops, the_mirror_has_followed};

const HTTP: SocketAddrV6 = SocketAddrV6::new(VIP6, HTTP_PORT, 0, 0);
const ECHO: SocketAddrV6 = SocketAddrV6::new(VIP6, ECHO_PORT, 0, 0);

/// The director's own address towards the clients, host 1 of their network.
const DIRECTOR: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);

/// Of the director's own machine, where no service is.
const OWN_PORT: u16 = 2222;

#[test]
fn a_packet_to_an_unknown_ipv6_neighbour_waits_and_is_sent_on() -> Result<()> {
    if !permitted(a_packet_to_an_unknown_ipv6_neighbour_waits_and_is_sent_on)? {
        return Ok(());
    }
    for backend in Backend::ALL {
        if !backend.works()? {
            continue;
        }
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let director = start(&topology, backend, &[])?;
        serve(&director, "-u", ECHO, "-m", ECHO_PORT)?;
        let socket = topology.client().run_in(|| udp(ECHO.into()))??;
        for round in 1..=5u8 {
            // To the server and back to the client: a datagram meets two of them, and nobody repeats it.
            for interface in [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE] {
                topology.director().run_in(|| Netlink::open()?.forget_neighbours(interface))??;
            }
            the_mirror_has_followed(&topology)?;
            echo(&socket, &[round; 32]).with_context(|| format!("round {round} over {}", backend.name()))?;
        }
        let waited = counter(&topology, "neighbour.waited")?;
        ensure!(waited >= 5, "only {waited} packets had to wait, of ten");
        no_drops(&topology)?;
        director.stop()?;
    }
    Ok(())
}

/// Everybody asks for everybody's Ethernet address again, and the director's kernel must hear it and answer.
#[test]
fn ping_and_neighbour_discovery_stay_the_kernels() -> Result<()> {
    if !permitted(ping_and_neighbour_discovery_stay_the_kernels)? {
        return Ok(());
    }
    for backend in Backend::ALL {
        if !backend.works()? {
            continue;
        }
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let director = start(&topology, backend, &[])?;
        serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
        let own = [(VIP6, OWN_PORT), (DIRECTOR, OWN_PORT), (DIRECTOR, HTTP_PORT)];
        for at in own {
            say_to_all(topology.director(), at.into(), "the director's own")?;
        }
        for round in 0..3 {
            let [first, second] = topology.servers();
            for (namespace, interfaces) in [
                (topology.client(), [FRONT, BACK]),
                (topology.director(), [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE]),
                (first, [FRONT, BACK]),
                (second, [FRONT, BACK]),
            ] {
                for interface in interfaces {
                    namespace.run_in(|| Netlink::open()?.forget_neighbours(interface))??;
                }
            }
            let over = || format!("round {round} over {}", backend.name());
            for at in [VIP6, DIRECTOR] {
                topology.client().run_in(|| ping(at, round))?.with_context(over)?;
            }
            for at in [client6(0), server6(0), server6(1)] {
                topology.director().run_in(|| ping(at, round))?.with_context(over)?;
            }
            for at in own {
                let heard = topology.client().run_in(|| hear(at.into()))?.with_context(over)?;
                ensure!(heard == "the director's own", "{at:?} said {heard:?}");
            }
            get_each(&topology, HTTP.into(), 4).with_context(over)?;
            // A health check: from the director's own machine to the very port whose replies it takes.
            for n in 0..2 {
                let whose = topology.director().run_in(|| get((server6(n), HTTP_PORT).into()))?;
                ensure!(whose.with_context(over)? == n);
            }
        }
        let resets = resets_sent(topology.director())?;
        ensure!(resets == 0, "the director's kernel sent {resets} RSTs");
        no_drops(&topology)?;
        director.stop()?;
    }
    Ok(())
}

/// One echo request and its answer (RFC 4443 §4). The kernel fills in the checksum.
fn ping(to: Ipv6Addr, sequence: u16) -> Result<()> {
    const REQUEST: u8 = 128;
    const REPLY: u8 = 129;
    let socket = nix::sys::socket::socket(
        AddressFamily::Inet6,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::IcmpV6,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))?;
    let request = [&[REQUEST, 0, 0, 0, 0x5a, 0x5a][..], &sequence.to_be_bytes(), b"are you there"].concat();
    let target = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
    sendto(socket.as_raw_fd(), &request, &target, MsgFlags::empty())?;

    // The socket hears all ICMPv6 that comes in.
    let mut message = [0; 256];
    for _ in 0..100 {
        let heard = recvfrom::<SockaddrIn6>(socket.as_raw_fd(), &mut message);
        let (length, from) = heard.with_context(|| format!("no answer from {to}"))?;
        let from = from.context("an answer from nobody")?.ip();
        if from == to && message[0] == REPLY && message[4..length] == request[4..] {
            return Ok(());
        }
    }
    bail!("a hundred ICMPv6 messages, but no answer")
}

//! What IPv6 has of its own: neighbour discovery, and a ping that stays the kernel's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use nix::libc::EMSGSIZE;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto, setsockopt,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    BACK, DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, FRONT, Options, Topology, VIP, VIP6, client6, server6,
};
use shunt_bench::traffic::decapsulator::Tunnel;
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};

use crate::ground::{
    Backend, PATIENCE, counter, echo, eventually, get, get_each, hear, permitted, resets_sent, say_to_all,
    serve, source_for, source6, start, start_workers, status, told_that_it_is_closed, udp_from,
};
use crate::network::{a_datagram_waits_for_unknown_neighbours, no_drops};

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
    a_datagram_waits_for_unknown_neighbours(ECHO.into())
}

/// Everybody asks for everybody's Ethernet address again, and the director's kernel must hear it and answer.
#[test]
fn ping_and_neighbour_discovery_stay_the_kernels() -> Result<()> {
    if !permitted(ping_and_neighbour_discovery_stay_the_kernels)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
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

/// Two workers on two queues: replies often come in by the queue of the worker that does not own their connection.
#[test]
fn nat_over_ipv6_with_two_workers() -> Result<()> {
    if !permitted(nat_over_ipv6_with_two_workers)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let _servers = topology.start_servers()?;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
        serve(&director, "-u", ECHO, "-m", ECHO_PORT)?;
        let over = || format!("over {}", backend.name());
        let answers = get_each(&topology, HTTP.into(), 40).with_context(over)?;
        let first = answers.iter().filter(|&&n| n == 0).count();
        ensure!(first.abs_diff(20) <= 1, "rr gave server 0 {first} of 40 requests");
        for n in 0..16 {
            let run = || echo(&udp_from(source6(), ECHO.into())?, &[n; 1452]);
            topology.client().run_in(run)?.with_context(over)?;
        }
        ensure!(counter(&topology, "frames.handed_off")? > 0, "no reply came in by the other worker's queue");
        no_drops(&topology)?;
        director.stop()?;
    }
    Ok(())
}

/// A closed port behind NAT; and a service without servers, for which the director itself speaks.
#[test]
fn icmpv6_errors_reach_the_client() -> Result<()> {
    const CLOSED: u16 = 5353;
    const EMPTY: u16 = 5354;
    if !permitted(icmpv6_errors_reach_the_client)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        // By default a Linux host sends one error a second to one receiver.
        for namespace in topology.servers() {
            namespace.set_variables(&[("ipv6/icmp/ratelimit", "0")])?;
        }
        let at = |port| SocketAddr::from(SocketAddrV6::new(VIP6, port, 0, 0));
        serve(&director, "-u", at(CLOSED), "-m", CLOSED)?;
        director.ipvsadm(&["-A", "-u", &at(EMPTY).to_string(), "-s", "rr"])?;
        // Six answers to one sender a worker has saved up, and all may come to one.
        for n in 0..6 {
            for port in [CLOSED, EMPTY] {
                topology
                    .client()
                    .run_in(|| told_that_it_is_closed(&udp_from(source6(), at(port))?))?
                    .with_context(|| {
                        let counters = status(&topology).map(|status| status.counters);
                        format!("socket {n} to {port} over {}: {counters:?}", backend.name())
                    })?;
            }
        }
        director.stop()?;
    }
    Ok(())
}

/// Datagrams that fit the client's way but not the tunnel: the sender is told, once, and what fits goes on.
#[test]
fn a_datagram_too_long_for_a_tunnel_is_told_to_its_sender() -> Result<()> {
    if !permitted(a_datagram_too_long_for_a_tunnel_is_told_to_its_sender)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let _unwrapping = topology.start_decapsulators(&[Tunnel::Ipip])?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    // An IPv4 and an IPv6 header and UDP's: what is left of 1500 bytes in a tunnel of the same family.
    for (vip, header) in [(IpAddr::from(VIP), 20), (VIP6.into(), 40)] {
        let at = SocketAddr::new(vip, ECHO_PORT);
        serve(&director, "-u", at, "-i", ECHO_PORT)?;
        let socket = topology.client().run_in(|| udp_from(source_for(at), at))??;
        if header == 40 {
            // Linux itself cuts IPv6 datagrams up unless it is told not to.
            setsockopt(&socket, sockopt::Ipv6DontFrag, &true)?;
        }
        let (fits, too_long) = (1500 - 2 * header - 8, 1500 - header - 8);
        echo(&socket, &vec![1; fits])?;
        let replied = counter(&topology, "frames.replied")?;
        socket.send(&vec![2; too_long])?;
        eventually(PATIENCE, || {
            let told = socket.take_error()?.context("the client was told nothing")?;
            ensure!(told.raw_os_error() == Some(EMSGSIZE), "{told}");
            Ok(())
        })
        .with_context(|| vip.to_string())?;
        ensure!(counter(&topology, "frames.replied")? == replied + 1);
        if vip.is_ipv6() {
            // Now the client's kernel knows the longest, to the byte. IPv4's cuts up what is longer.
            let refused =
                socket.send(&vec![3; fits + 1]).err().context("the client's kernel knows no better")?;
            ensure!(refused.raw_os_error() == Some(EMSGSIZE), "{refused}");
        }
        echo(&socket, &vec![4; fits])?;
    }
    no_drops(&topology)?;
    director.stop()
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

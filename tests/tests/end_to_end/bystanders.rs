//! What is not the director's stays the kernel's: other ports, ARP, ping, and its own connections to the servers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_TO_CLIENTS, FRONT, Options, Topology, VIP, server,
};
use shunt_bench::traffic::HTTP_PORT;
use shunt_tests::frames::checksum;

use crate::ground::{
    Backend, PATIENCE, get, get_each, hear, permitted, resets_sent, say_to_all, serve, start,
};

/// Of the director's own machine, where no service is.
const OWN_PORT: u16 = 2222;

#[test]
fn what_is_not_a_services_stays_the_kernels_over_af_xdp() -> Result<()> {
    stays_the_kernels(what_is_not_a_services_stays_the_kernels_over_af_xdp, Backend::AfXdp)
}

#[test]
fn what_is_not_a_services_stays_the_kernels_over_af_packet() -> Result<()> {
    stays_the_kernels(what_is_not_a_services_stays_the_kernels_over_af_packet, Backend::AfPacket)
}

fn stays_the_kernels(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, backend, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    // On the service's address and, where no service is, on its port.
    let own = [(VIP, OWN_PORT), (DIRECTOR_TO_CLIENTS, OWN_PORT), (DIRECTOR_TO_CLIENTS, HTTP_PORT)];
    for at in own {
        say_to_all(topology.director(), at.into(), "the director's own")?;
    }

    for round in 0..5u16 {
        get_each(&topology, http.into(), 4)?;
        for at in own {
            let heard = topology.client().run_in(|| hear(at.into()))??;
            ensure!(heard == "the director's own", "{at:?} said {heard:?}");
        }
        for at in [VIP, DIRECTOR_TO_CLIENTS] {
            topology.client().run_in(|| ping(at, round))?.with_context(|| format!("ping {at}"))?;
        }
        // The way back of a ping is ARP's as well.
        topology.client().run_in(|| Netlink::open()?.forget_neighbours(FRONT))??;
        topology.director().run_in(|| Netlink::open()?.forget_neighbours(DIRECTOR_CLIENT_SIDE))??;

        // A health check: from the director's own machine to the very port whose replies it takes.
        for n in 0..2 {
            let whose = topology.director().run_in(|| get((server(n), HTTP_PORT).into()))??;
            ensure!(whose == n);
        }
    }
    // Nobody was refused: neither the kernel's own connections nor, by a kernel that saw them, the service's.
    let resets = resets_sent(topology.director())?;
    ensure!(resets == 0, "the director's kernel sent {resets} RSTs");
    director.stop()?;

    // That number can grow: without a director the service's port is closed.
    let refused = topology.client().run_in(|| get(http.into()))?;
    ensure!(refused.is_err() && resets_sent(topology.director())? == 1, "{refused:?}");
    Ok(())
}

/// One echo request and its answer (RFC 792).
fn ping(to: Ipv4Addr, sequence: u16) -> Result<()> {
    let socket = nix::sys::socket::socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))?;
    let mut request = [&[8, 0, 0, 0, 0x5a, 0x5a][..], &sequence.to_be_bytes(), b"are you there"].concat();
    let sum = checksum(&request).to_be_bytes();
    request[2..4].copy_from_slice(&sum);
    let [a, b, c, d] = to.octets();
    sendto(socket.as_raw_fd(), &request, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())?;

    // The socket hears all ICMP that comes in.
    let mut packet = [0; 256];
    for _ in 0..100 {
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).context("no answer")?;
        let (header, message) = packet[..length].split_at(20);
        if header[12..16] == to.octets() && message[0] == 0 && message[4..] == request[4..] {
            return Ok(());
        }
    }
    anyhow::bail!("a hundred ICMP packets, but no answer")
}

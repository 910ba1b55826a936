//! Path MTU discovery through tunnels: somewhere behind the director is a link that carries less than all others, and only an ICMP error to the director
//! says so.
//!
//! ```text
//!   client ── 1500 ── director ── 1500 ── server 1, as a router ── 1400 ── server 0, at addresses beyond
//!      ◀───────────────────────────── answers, past all of them ──────────────┘
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context, Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{Options, Topology, server, server6};
use shunt_bench::traffic::decapsulator::{Decapsulator, Tunnel};

use crate::ground::{
    Backend, PATIENCE, connect_from, counter, lend, permitted, serve_at, source_for, start_workers, status,
};
use crate::tunnels::{Family, GRE, GRE_SUM, GUE, IPIP, Way, lost, through};

const PORT: u16 = 8080;

/// Of the upload: some thousands of segments, so that many are under way when the first one turns out to be too long.
const LENGTH: usize = 10_000_000;

/// Bytes of IP that the last link carries. An IPv6 packet in the longest headers still has more than the 1280 that it must have.
const NARROW: u32 = 1400;

/// Ends of that link.
const ROUTER_SIDE: &str = "beyond";
const SERVER_SIDE: &str = "before";

/// Each adds more than the one before, so that each time the client's segments turn out to be too long again. Those through the
/// other family of which the outer packets may be cut up come first: of these no error tells.
const IPV4: [Way; 5] = [IPIP, GRE, GRE_SUM, GUE, through(Family::V6, IPIP)];
const IPV6: [Way; 5] = [through(Family::V4, IPIP), IPIP, GRE, GRE_SUM, GUE];

#[test]
fn ipv4_uploads_find_the_narrow_link_over_af_xdp() -> Result<()> {
    uploads(ipv4_uploads_find_the_narrow_link_over_af_xdp, Family::V4, &IPV4, Backend::AfXdp)
}

#[test]
fn ipv4_uploads_find_the_narrow_link_over_af_packet() -> Result<()> {
    uploads(ipv4_uploads_find_the_narrow_link_over_af_packet, Family::V4, &IPV4, Backend::AfPacket)
}

#[test]
fn ipv6_uploads_find_the_narrow_link_over_af_xdp() -> Result<()> {
    uploads(ipv6_uploads_find_the_narrow_link_over_af_xdp, Family::V6, &IPV6, Backend::AfXdp)
}

#[test]
fn ipv6_uploads_find_the_narrow_link_over_af_packet() -> Result<()> {
    uploads(ipv6_uploads_find_the_narrow_link_over_af_packet, Family::V6, &IPV6, Backend::AfPacket)
}

fn uploads(test: impl Fn() -> Result<()>, family: Family, ways: &[Way], backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    // Two queues, so that an error may come to another worker than the segments do.
    let topology = Topology::new(Options { queues: 2 })?;
    let _unwrapping = far_end(&topology, ways.len())?;
    acknowledge_uploads(&topology.servers()[0])?;
    // Nothing but ICMP may tell the client.
    topology.client().set_variables(&[("ipv4/tcp_mtu_probing", "0")])?;
    // FullNAT's addresses, here the newest of their interface, are no tunnel's ends.
    topology.lend_local_addresses()?;
    let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };

    let mut narrowed = 0;
    for (n, way) in ways.iter().enumerate() {
        director.ipvsadm(&["-C"])?;
        for family in [Family::V4, Family::V6] {
            let beside = SocketAddr::new(family.vip(), PORT + 1);
            serve_at(&director, "-t", beside, SocketAddr::new(family.server(1), PORT), &["--fullnat"])?;
            lend(&director, "-t", beside, family.local())?;
        }
        let outer = way.through.unwrap_or(family);
        let at = SocketAddr::new(family.vip(), PORT);
        serve_at(&director, "-t", at, SocketAddr::new(far(outer, n), PORT), way.how)?;
        let run = || topology.client().run_in(|| upload(at))?;
        run().with_context(|| {
            let counters = status(&topology).map(|state| state.counters);
            format!("{family:?} by {} over {}: {counters:?}", way.label(), backend.name())
        })?;
        // Only an IPv6 packet in an IPv4 one goes in an outer packet that may be cut up.
        let is_told = (family, outer) != (Family::V6, Family::V4);
        narrowed += u64::from(is_told);
        let counted = counter(&topology, "path.narrowed")?;
        ensure!(
            counted == narrowed,
            "{}: {counted} paths turned out to be narrow, not {narrowed}",
            way.label()
        );
    }
    let lost = lost(&topology)?;
    ensure!(lost.is_empty(), "{lost:?}");
    director.stop()
}

/// The real server's address for the `n`th way: each has its own, of whose path nothing is known yet.
pub fn far(family: Family, n: usize) -> IpAddr {
    let host = 10 + n as u8;
    match family {
        Family::V4 => Ipv4Addr::new(10, 88, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 88, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

/// Gives server 0 addresses that server 1 is the router to, and unwraps what is sent there.
pub fn far_end(topology: &Topology, addresses: usize) -> Result<Decapsulator> {
    let [end, router] = topology.servers();
    let families = if topology.has_ipv6() { &[Family::V4, Family::V6][..] } else { &[Family::V4] };
    let all: Vec<IpAddr> =
        families.iter().flat_map(|family| (0..addresses).map(|n| far(*family, n))).collect();
    router.set_variables(&[("ipv4/ip_forward", "1")])?;
    if topology.has_ipv6() {
        router.set_variables(&[("ipv6/conf/all/forwarding", "1")])?;
    }
    router.run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.veth(ROUTER_SIDE, SERVER_SIDE, end, 1)?;
        netlink.mtu(ROUTER_SIDE, NARROW)?;
        netlink.up(ROUTER_SIDE)?;
        netlink.address(ROUTER_SIDE, Ipv4Addr::new(10, 88, 0, 1).into(), 24)?;
        if topology.has_ipv6() {
            netlink.address(ROUTER_SIDE, Ipv6Addr::new(0xfd00, 88, 0, 0, 0, 0, 0, 1).into(), 64)?;
        }
        Ok(())
    })??;
    end.run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.mtu(SERVER_SIDE, NARROW)?;
        netlink.up(SERVER_SIDE)?;
        all.iter().try_for_each(|address| {
            netlink.address(SERVER_SIDE, *address, if address.is_ipv4() { 24 } else { 64 })
        })
    })??;
    topology.director().run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        all.iter().try_for_each(|address| {
            let router: IpAddr = if address.is_ipv4() { server(1).into() } else { server6(1).into() };
            netlink.route(*address, router)
        })
    })??;
    // An IPv6 address is not to be had before its link is.
    for namespace in [router, end] {
        namespace.run_in(|| Netlink::open()?.wait_until_all_pass_packets())??;
    }
    Decapsulator::start(end, &all, &Tunnel::ALL)
}

fn byte(at: usize) -> u8 {
    (at ^ (at >> 8)) as u8
}

fn upload(target: SocketAddr) -> Result<()> {
    let mut stream = connect_from(source_for(target), target)?;
    let all: Vec<u8> = (0..LENGTH).map(byte).collect();
    stream.write_all(&all).context("the upload stands still")?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("waiting for the server's word")?;
    ensure!(said == "whole", "the server says: {said:?}");
    Ok(())
}

fn acknowledge_uploads(server: &Namespace) -> Result<()> {
    let any = (Ipv6Addr::UNSPECIFIED, PORT);
    let listener = server.run_in(|| TcpListener::bind(any))?.context("listening for uploads")?;
    // The thread is left to the process: it holds a socket, and with it a namespace without a director.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = Vec::new();
            let whole = stream.set_read_timeout(Some(PATIENCE)).is_ok()
                && stream.read_to_end(&mut heard).is_ok()
                && heard.len() == LENGTH
                && heard.iter().enumerate().all(|(at, heard)| *heard == byte(at));
            let _ = stream.write_all(if whole { b"whole" } else { b"damaged" });
        }
    });
    Ok(())
}

//! Clients and servers behind VLANs on the director's interfaces: every way to forward, tags in frames and tags in the kernel's hands.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_SERVER_SIDE, DIRECTOR_TO_SERVERS, FRONT, Options, Tag, Topology, VIP, VIP6, vlan,
};
use shunt_bench::traffic::decapsulator::Tunnel;
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};
use shunt_dataplane::port::ethtool::{Ethtool, Offload};

use crate::forwarding::long_answers_arrive_whole;
use crate::ground::{
    Backend, PATIENCE, echo, eventually, get_each, permitted, resets_sent, say, serve, source_for, start,
    start_workers, status, told_that_it_is_closed, udp_from,
};
use crate::network::no_drops;

const CLIENTS: &[Tag] = &[(0x8100, 100)];
const SERVERS: &[Tag] = &[(0x8100, 200)];
/// 802.1Q inside 802.1ad.
const QINQ: &[Tag] = &[(0x88a8, 300), (0x8100, 7)];

/// Each way has a port of its own at the VIP.
const NAT_PORT: u16 = 8081;
const TUNNEL_PORT: u16 = ECHO_PORT;
const NOBODY_PORT: u16 = 8082;

#[test]
fn every_way_of_forwarding_works_between_vlans() -> Result<()> {
    if !permitted(every_way_of_forwarding_works_between_vlans)? || !there_are_vlans()? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        // On veth the sender's kernel leaves the tag to the hardware, and it travels beside the frame; or it stands in the frame.
        for in_frames in [false, true] {
            let topology = Topology::behind_vlans(Options::default(), CLIENTS, SERVERS)?;
            if in_frames {
                tags_stand_in_frames(&topology)?;
            }
            forwards(&topology, backend, 1)
                .with_context(|| format!("over {}, tags in frames: {in_frames}", backend.name()))?;
        }
    }
    Ok(())
}

#[test]
fn two_workers_between_vlans() -> Result<()> {
    if !permitted(two_workers_between_vlans)? || !there_are_vlans()? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::behind_vlans(Options { queues: 2 }, CLIENTS, SERVERS)?;
        forwards(&topology, backend, 2).with_context(|| format!("over {}", backend.name()))?;
    }
    Ok(())
}

#[test]
fn a_vlan_in_a_vlan_and_an_untagged_network() -> Result<()> {
    if !permitted(a_vlan_in_a_vlan_and_an_untagged_network)? || !there_are_vlans()? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        for [clients, servers] in [[QINQ, &[]], [&[], QINQ]] {
            let topology = Topology::behind_vlans(Options::default(), clients, servers)?;
            shorten(&topology, clients, servers)?;
            forwards(&topology, backend, 1)
                .with_context(|| format!("over {}, {clients:?} to {servers:?}", backend.name()))?;
        }
    }
    Ok(())
}

/// Whether the kernel has VLANs. Says so if not.
fn there_are_vlans() -> Result<bool> {
    let (here, there) = (Namespace::new("here")?, Namespace::new("there")?);
    let made = here.run_in(|| -> Result<_> {
        let netlink = Netlink::open()?;
        netlink.veth(FRONT, FRONT, &there, 1)?;
        Ok(netlink.vlan(&vlan(FRONT, CLIENTS), FRONT, CLIENTS[0]))
    })??;
    if let Err(error) = &made {
        say(&format!("skip: VLANs: {error:#}; the kernel needs CONFIG_VLAN_8021Q"));
    }
    Ok(made.is_ok())
}

/// Two tags and a full packet are more than a cable takes, which its ends' kernels have to be told. Not so the director: it finds out, and
/// tells who sends too much.
fn shorten(topology: &Topology, clients: &[Tag], servers: &[Tag]) -> Result<()> {
    let [first, second] = topology.servers();
    for (namespace, tags) in [(topology.client(), clients), (first, servers), (second, servers)] {
        if !tags.is_empty() {
            namespace.run_in(|| Netlink::open()?.mtu(&vlan(FRONT, tags), 1496))??;
        }
    }
    Ok(())
}

fn tags_stand_in_frames(topology: &Topology) -> Result<()> {
    let [first, second] = topology.servers();
    for namespace in [topology.client(), first, second] {
        namespace.run_in(|| Ethtool::open(FRONT)?.set_offload(Offload::TxVlan, false))??;
    }
    Ok(())
}

/// HTTP by DR and by NAT, datagrams through a tunnel, and the director's own answers, of both families.
fn forwards(topology: &Topology, backend: Backend, workers: usize) -> Result<()> {
    let _servers = topology.start_servers()?;
    let _unwrapping = topology.start_decapsulators(&[Tunnel::Ipip])?;
    let Some(director) = start_workers(topology, backend, workers)? else { return Ok(()) };
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        let at = |port| SocketAddr::new(vip, port);
        serve(&director, "-t", at(HTTP_PORT), "-g", HTTP_PORT)?;
        serve(&director, "-t", at(NAT_PORT), "-m", HTTP_PORT)?;
        serve(&director, "-u", at(TUNNEL_PORT), "-i", ECHO_PORT)?;
        director.ipvsadm(&["-A", "-u", &at(NOBODY_PORT).to_string(), "-s", "rr"])?;
        for port in [HTTP_PORT, NAT_PORT] {
            let answers = get_each(topology, at(port), 10).with_context(|| at(port).to_string())?;
            let first = answers.iter().filter(|&&n| n == 0).count();
            ensure!(first.abs_diff(5) < workers + 1, "{port}: {answers:?}");
            long_answers_arrive_whole(topology, at(port)).with_context(|| at(port).to_string())?;
        }
        for n in 0..4 {
            let run = || echo(&udp_from(source_for(at(TUNNEL_PORT)), at(TUNNEL_PORT))?, &[n; 1400]);
            topology.client().run_in(run)?.with_context(|| at(TUNNEL_PORT).to_string())?;
        }
        let refused = || told_that_it_is_closed(&udp_from(source_for(at(NOBODY_PORT)), at(NOBODY_PORT))?);
        topology.client().run_in(refused)?.with_context(|| {
            let counters = status(topology).map(|status| status.counters);
            format!("{}: {counters:?}", at(NOBODY_PORT))
        })?;
    }
    let resets = resets_sent(topology.director())?;
    ensure!(resets == 0, "the director's kernel sent {resets} RSTs: it saw what was the director's");
    no_drops(topology)?;
    director.stop()
}

#[test]
fn a_vlan_that_goes_and_comes_is_followed() -> Result<()> {
    if !permitted(a_vlan_that_goes_and_comes_is_followed)? || !there_are_vlans()? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::behind_vlans(Options::default(), &[], SERVERS)?;
        let _servers = topology.start_servers()?;
        let name = vlan(DIRECTOR_SERVER_SIDE, SERVERS);
        let director = start(&topology, backend, &[])?;
        let service = SocketAddr::new(VIP.into(), HTTP_PORT);
        serve(&director, "-t", service, "-m", HTTP_PORT)?;
        get_each(&topology, service, 2)?;

        topology.director().run_in(|| Netlink::open()?.remove(&name))??;
        thread::sleep(Duration::from_millis(100));
        ensure!(get_each(&topology, service, 1).is_err(), "an answer by a VLAN that is gone");
        topology.director().run_in(|| -> Result<()> {
            let netlink = Netlink::open()?;
            netlink.vlan(&name, DIRECTOR_SERVER_SIDE, SERVERS[0])?;
            netlink.up(&name)?;
            netlink.address(&name, DIRECTOR_TO_SERVERS.into(), 24)
        })??;
        eventually(PATIENCE, || get_each(&topology, service, 2).map(drop))
            .with_context(|| format!("over {}", backend.name()))?;
        let resets = resets_sent(topology.director())?;
        ensure!(resets == 0, "the director's kernel sent {resets} RSTs");
        director.stop()?;
    }
    Ok(())
}

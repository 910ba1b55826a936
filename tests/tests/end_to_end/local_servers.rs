//! Real servers on the director itself, beside others: by NAT and as they are, in both families, with what they say to those who ask them without the director.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shunt_bench::director::Director;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_SERVER_SIDE, DIRECTOR_TO_SERVERS, DIRECTOR_TO_SERVERS6, Options, Topology, VIP, VIP6, server,
    server6,
};
use shunt_bench::traffic::ECHO_PORT;
use shunt_bench::traffic::server::Server;

use crate::ground::{
    Backend, PATIENCE, echo, eventually, hear, permitted, run_to_end, say_to_all, serve_at, source_for,
    start, start_workers_with, told_that_it_is_closed, udp_from,
};
use crate::network::no_drops;

/// Where all servers listen, and the service that leads there by NAT.
const PORT: u16 = 8100;
const BY_NAT: u16 = 80;

/// Services that the director's own server gets as they are, by direct routing and by a tunnel.
const AS_THEY_ARE: [(u16, &str); 2] = [(8200, "-g"), (8201, "-i")];

#[test]
fn the_director_serves_too_over_af_xdp() -> Result<()> {
    serves_too(the_director_serves_too_over_af_xdp, Backend::AfXdp, 1)
}

#[test]
fn the_director_serves_too_over_af_packet() -> Result<()> {
    serves_too(the_director_serves_too_over_af_packet, Backend::AfPacket, 1)
}

#[test]
fn the_director_serves_too_with_two_workers() -> Result<()> {
    let backend = if Backend::AfXdp.works()? { Backend::AfXdp } else { Backend::AfPacket };
    serves_too(the_director_serves_too_with_two_workers, backend, 2)
}

fn serves_too(test: impl Fn() -> Result<()>, backend: Backend, workers: usize) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options { queues: workers as u32 })?;
    let before = routing(&topology)?;
    let Some(director) = start_workers_with(&topology, backend, workers, &["--local-servers"])? else {
        return Ok(());
    };
    for is_v4 in [true, false] {
        let (vip, own): (IpAddr, IpAddr) = if is_v4 {
            (VIP.into(), DIRECTOR_TO_SERVERS.into())
        } else {
            (VIP6.into(), DIRECTOR_TO_SERVERS6.into())
        };
        by_nat(&topology, &director, vip, own).with_context(|| format!("NAT at {vip}"))?;
        for (port, how) in AS_THEY_ARE {
            as_it_is(&topology, &director, (vip, port).into(), own, how)
                .with_context(|| format!("{how} at {vip}"))?;
        }
    }
    datagrams(&topology, &director)?;
    errors(&topology, &director)?;
    no_drops(&topology)?;
    director.stop()?;
    let after = routing(&topology)?;
    ensure!(before == after, "rules of routing were left: {after}");
    Ok(())
}

/// A service of the director itself and another server.
fn by_nat(topology: &Topology, director: &Director, vip: IpAddr, own: IpAddr) -> Result<()> {
    let other: IpAddr = if vip.is_ipv4() { server(0).into() } else { server6(0).into() };
    say_to_all(topology.director(), (own, PORT).into(), "own")?;
    say_to_all(&topology.servers()[0], (other, PORT).into(), "other")?;
    let service = SocketAddr::new(vip, BY_NAT);
    director.ipvsadm(&["-A", "-t", &service.to_string(), "-s", "rr"])?;
    for real in [own, other].map(|real| SocketAddr::new(real, PORT).to_string()) {
        director.ipvsadm(&["-a", "-t", &service.to_string(), "-r", &real, "-m"])?;
    }
    let heard = all_heard(topology, service)?;
    ensure!(heard == ["other", "own"].map(str::to_owned).into(), "{heard:?}");
    let listed = director.ipvsadm(&["-Ln"])?;
    let own = SocketAddr::new(own, PORT);
    ensure!(
        listed.lines().any(|line| line.contains(&format!("{own} ")) && line.contains("Masq")),
        "{listed}"
    );
    // Its answers to others are routed, too.
    let heard = topology.client().run_in(|| hear(own))??;
    ensure!(heard == "own", "{heard:?} at {own}");
    Ok(())
}

/// A service of the director alone, which has the virtual address itself.
fn as_it_is(
    topology: &Topology,
    director: &Director,
    service: SocketAddr,
    own: IpAddr,
    how: &str,
) -> Result<()> {
    say_to_all(topology.director(), service, "itself")?;
    let real = SocketAddr::new(own, service.port()).to_string();
    director.ipvsadm(&["-A", "-t", &service.to_string(), "-s", "rr"])?;
    director.ipvsadm(&["-a", "-t", &service.to_string(), "-r", &real, how])?;
    let heard = all_heard(topology, service)?;
    ensure!(heard == ["itself".to_owned()].into(), "{heard:?}");
    let listed = director.ipvsadm(&["-Lnc"])?;
    ensure!(
        listed.lines().any(|line| line.ends_with(&real) && line.contains(&service.to_string())),
        "{listed}"
    );
    let counted = director.ipvsadm(&["-Ln", "--stats", "--exact", "-t", &service.to_string()])?;
    let counts: Vec<&str> = counted.lines().last().unwrap_or_default().split_whitespace().collect();
    ensure!(counts.len() == 7 && counts[3..].iter().all(|count| *count != "0"), "{counted}");
    Ok(())
}

/// Echoes of datagrams by NAT.
fn datagrams(topology: &Topology, director: &Director) -> Result<()> {
    let own: IpAddr = DIRECTOR_TO_SERVERS.into();
    let _server = Server::start(topology.director(), 0, &[own])?;
    let service = SocketAddr::new(VIP.into(), 53);
    let real = SocketAddr::new(own, ECHO_PORT).to_string();
    director.ipvsadm(&["-A", "-u", &service.to_string(), "-s", "rr"])?;
    director.ipvsadm(&["-a", "-u", &service.to_string(), "-r", &real, "-m"])?;
    topology
        .client()
        .run_in(|| (0..8).try_for_each(|n| echo(&udp_from(source_for(service), service)?, &[n; 1400])))?
}

/// Nobody listens at the director's own server: clients are told so by the address that they asked.
fn errors(topology: &Topology, director: &Director) -> Result<()> {
    const CLOSED: u16 = 8300;
    for (vip, own) in
        [(IpAddr::from(VIP), DIRECTOR_TO_SERVERS.into()), (VIP6.into(), DIRECTOR_TO_SERVERS6.into())]
    {
        for (how, port) in [("-m", CLOSED), ("-g", CLOSED + 1)] {
            let (service, real) = (SocketAddr::new(vip, port), SocketAddr::new(own, CLOSED));
            serve_at(director, "-u", service, real, &[how])?;
            topology
                .client()
                .run_in(|| told_that_it_is_closed(&udp_from(source_for(service), service)?))?
                .with_context(|| format!("{how} at {service}"))?;
        }
        // What others ask the same address is answered by the kernel, whichever way that goes.
        let closed = SocketAddr::new(own, CLOSED);
        topology
            .client()
            .run_in(|| told_that_it_is_closed(&udp_from(source_for(closed), closed)?))?
            .with_context(|| format!("at {closed} itself"))?;
    }
    Ok(())
}

#[test]
fn what_a_killed_director_leaves_the_next_removes() -> Result<()> {
    if !permitted(what_a_killed_director_leaves_the_next_removes)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let before = routing(&topology)?;
    for next in [&["--local-servers"][..], &[]] {
        let killed = start(&topology, Backend::AfPacket, &["--local-servers"])?;
        let (service, real) = ((VIP, BY_NAT).into(), (DIRECTOR_TO_SERVERS, PORT).into());
        serve_at(&killed, "-t", service, real, &["-m"])?;
        ensure!(routing(&topology)? != before, "no rules of routing");
        drop(killed); // by SIGKILL
        ensure!(routing(&topology)? != before, "the kernel removed them itself");
        let director = start(&topology, Backend::AfPacket, next)?;
        ensure!(routing(&topology)? == before, "{next:?}: {}", routing(&topology)?);
        director.stop()?;
    }
    Ok(())
}

#[test]
fn rules_of_routing_that_somebody_removes_are_put_back() -> Result<()> {
    if !permitted(rules_of_routing_that_somebody_removes_are_put_back)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let before = routing(&topology)?;
    let director = start(&topology, Backend::AfPacket, &["--local-servers"])?;
    let service = SocketAddr::new(VIP.into(), BY_NAT);
    serve_at(&director, "-t", service, (DIRECTOR_TO_SERVERS, PORT).into(), &["-m"])?;
    let during = routing(&topology)?;
    ensure!(during != before, "no rules of routing");
    for _ in 0..3 {
        remove_rules_home(&topology)?;
        eventually(PATIENCE, || {
            let now = routing(&topology)?;
            ensure!(sorted(&now) == sorted(&during), "{now}");
            Ok(())
        })?;
    }
    // And what is not there any more can be removed.
    remove_rules_home(&topology)?;
    director.ipvsadm(&["-D", "-t", &service.to_string()])?;
    eventually(PATIENCE, || {
        ensure!(routing(&topology)? == before, "{}", routing(&topology)?);
        Ok(())
    })?;
    director.stop()
}

#[test]
fn a_server_becomes_the_director_with_its_address() -> Result<()> {
    const LATER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 77);
    if !permitted(a_server_becomes_the_director_with_its_address)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let before = routing(&topology)?;
    let director = start(&topology, Backend::AfPacket, &["--local-servers"])?;
    let service = SocketAddr::new(VIP.into(), BY_NAT);
    serve_at(&director, "-t", service, (LATER, PORT).into(), &["-m"])?;
    ensure!(routing(&topology)? == before, "it is another machine so far: {}", routing(&topology)?);

    let here = || topology.director().run_in(Netlink::open)?;
    here()?.address(DIRECTOR_SERVER_SIDE, LATER.into(), 32)?;
    eventually(PATIENCE, || {
        let now = routing(&topology)?;
        ensure!(now.contains(&format!("from {LATER} ")), "{now}");
        Ok(())
    })?;
    say_to_all(topology.director(), (LATER, PORT).into(), "own")?;
    let heard = all_heard(&topology, service)?;
    ensure!(heard == ["own".to_owned()].into(), "{heard:?}");

    here()?.remove_address(DIRECTOR_SERVER_SIDE, LATER.into())?;
    eventually(PATIENCE, || {
        ensure!(routing(&topology)? == before, "{}", routing(&topology)?);
        Ok(())
    })?;
    director.stop()
}

/// As systemd-networkd does with rules that it does not know.
fn remove_rules_home(topology: &Topology) -> Result<()> {
    for rule in routing(topology)?.lines().filter(|line| line.ends_with("29544")) {
        let words = rule.split_once(':').context("a rule without a number")?.1;
        let mut command = Command::new("ip");
        command.args(["rule", "delete"]).args(words.split_whitespace());
        let removed = run_to_end(topology.director(), command)?;
        ensure!(removed.status.success(), "{rule}: {}", String::from_utf8_lossy(&removed.stderr));
    }
    Ok(())
}

/// Rules without their numbers, which tell when each was added.
fn sorted(rules: &str) -> BTreeSet<&str> {
    rules.lines().filter_map(|rule| Some(rule.split_once(':')?.1)).collect()
}

fn all_heard(topology: &Topology, at: SocketAddr) -> Result<BTreeSet<String>> {
    topology.client().run_in(|| (0..8).map(|_| hear(at)).collect())?
}

/// The rules of routing.
fn routing(topology: &Topology) -> Result<String> {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        let mut command = Command::new("ip");
        command.args([family, "rule"]);
        all += &String::from_utf8(run_to_end(topology.director(), command)?.stdout)?;
    }
    Ok(all)
}

#[test]
fn without_the_way_home_it_is_refused_in_words() -> Result<()> {
    if !permitted(without_the_way_home_it_is_refused_in_words)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let service = SocketAddr::new(VIP.into(), BY_NAT).to_string();
    director.ipvsadm(&["-A", "-t", &service, "-s", "rr"])?;
    let real = SocketAddr::new(DIRECTOR_TO_SERVERS.into(), PORT).to_string();
    let refused = director.ipvsadm(&["-a", "-t", &service, "-r", &real, "-m"]);
    let why = refused.err().context("it was not refused")?;
    ensure!(format!("{why:#}").contains("shunt run --local-servers"), "{why:#}");
    director.stop()
}

//! Traffic through every way to forward, of both families: NAT, DR, FullNAT, and each tunnel, also to servers of the other family.
//!
//! The servers unwrap with a program of the lab's that refuses what a receiver may refuse, see [`Decapsulator`]; then it is
//! their own stack that answers. The way back is DR's, past the director. Where the kernel has devices for tunnels, servers unwrap with those, too.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use shunt_bench::director::Director;
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{FRONT, LOCAL, LOCAL6, Options, SERVERS, Topology, VIP, VIP6, server, server6};
use shunt_bench::traffic::decapsulator::{Decapsulator, GUE_PORT, Tunnel};
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT, long_answer};
use shunt_dataplane::port::ethtool::{Ethtool, Offload};

use crate::ground::{
    Backend, PATIENCE, connect_from, counter, echo, get_each, lend, permitted, run_to_end, say, serve_with,
    source_for, start, start_workers, status, udp, udp_from,
};

/// Where whole uploads are acknowledged.
const UPLOAD_PORT: u16 = 8080;

/// A way from the director to the servers.
pub struct Way {
    /// In errors.
    pub name: &'static str,
    /// On `ipvsadm`'s command line.
    pub how: &'static [&'static str],
    /// The family of the servers' addresses, if it is the outer packet's alone.
    pub through: Option<Family>,
    /// Bytes between the outer IP header and the inner one.
    wrapping: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn vip(self) -> IpAddr {
        if self == Self::V4 { VIP.into() } else { VIP6.into() }
    }

    pub fn server(self, n: usize) -> IpAddr {
        if self == Self::V4 { server(n).into() } else { server6(n).into() }
    }

    pub fn local(self) -> IpAddr {
        if self == Self::V4 { LOCAL.into() } else { LOCAL6.into() }
    }

    fn header(self) -> usize {
        if self == Self::V4 { 20 } else { 40 }
    }
}

const fn way(name: &'static str, how: &'static [&'static str], wrapping: usize) -> Way {
    Way { name, how, through: None, wrapping }
}

pub const NAT: Way = way("NAT", &["-m"], 0);
pub const DR: Way = way("DR", &["-g"], 0);
pub const FULL_NAT: Way = way("FullNAT", &["--fullnat"], 0);
pub const IPIP: Way = way("ipip", &["-i"], 0);
pub const GRE: Way = way("gre", &["-i", "--tun-type", "gre", "--tun-nocsum"], 4);
pub const GRE_SUM: Way = way("gre with checksum", &["-i", "--tun-type", "gre", "--tun-csum"], 8);
pub const GUE: Way = way("gue", &["-i", "--tun-type", "gue", "--tun-port", "6080", "--tun-nocsum"], 12);
const GUE_SUM: Way =
    way("gue with checksum", &["-i", "--tun-type", "gue", "--tun-port", "6080", "--tun-csum"], 12);
const GUE_REMOTE: Way =
    way("gue with remote checksum", &["-i", "--tun-type", "gue", "--tun-port", "6080", "--tun-remcsum"], 12);

pub const fn through(family: Family, way: Way) -> Way {
    Way { through: Some(family), ..way }
}

/// By the room that is left, so that the director must say of almost each that it has less than the one before.
const IPV4: [Way; 12] = [
    NAT,
    DR,
    FULL_NAT,
    through(Family::V6, FULL_NAT),
    IPIP,
    GRE,
    GRE_SUM,
    GUE,
    GUE_SUM,
    GUE_REMOTE,
    through(Family::V6, IPIP),
    through(Family::V6, GUE_SUM),
];
const IPV6: [Way; 12] = [
    NAT,
    DR,
    FULL_NAT,
    through(Family::V4, FULL_NAT),
    through(Family::V4, IPIP),
    through(Family::V4, GRE_SUM),
    IPIP,
    GRE,
    GRE_SUM,
    GUE,
    GUE_SUM,
    GUE_REMOTE,
];

#[test]
fn ipv4_takes_every_way_over_af_xdp() -> Result<()> {
    every_way(ipv4_takes_every_way_over_af_xdp, Family::V4, &IPV4, Backend::AfXdp)
}

#[test]
fn ipv4_takes_every_way_over_af_packet() -> Result<()> {
    every_way(ipv4_takes_every_way_over_af_packet, Family::V4, &IPV4, Backend::AfPacket)
}

#[test]
fn ipv6_takes_every_way_over_af_xdp() -> Result<()> {
    every_way(ipv6_takes_every_way_over_af_xdp, Family::V6, &IPV6, Backend::AfXdp)
}

#[test]
fn ipv6_takes_every_way_over_af_packet() -> Result<()> {
    every_way(ipv6_takes_every_way_over_af_packet, Family::V6, &IPV6, Backend::AfPacket)
}

fn every_way(test: impl Fn() -> Result<()>, family: Family, ways: &[Way], backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    topology.servers().iter().try_for_each(acknowledge_uploads)?;
    let unwrapping = topology.start_decapsulators(&Tunnel::ALL)?;
    topology.lend_local_addresses()?;
    let director = start(&topology, backend, &[])?;
    let mut told = 0;
    for way in ways {
        let before = unwrapping.each_ref().map(|server| server.counters().unwrapped());
        let mut run = || -> Result<()> {
            take(&topology, &director, family, way, &mut told)?;
            for (server, before) in unwrapping.iter().zip(before) {
                let (now, refused) = (server.counters().unwrapped(), server.counters().refused());
                ensure!(refused.is_empty(), "a server refused {refused:?}");
                ensure!((now > before) == way.is_tunnel(), "a server unwrapped {} packets", now - before);
            }
            Ok(())
        };
        run().with_context(|| {
            let counters = status(&topology).map(|state| state.counters);
            let refused = unwrapping.each_ref().map(|server| server.counters().refused());
            format!(
                "{family:?} by {} over {}: {counters:?}, refused {refused:?}",
                way.label(),
                backend.name()
            )
        })?;
    }
    unwrapping.into_iter().try_for_each(Decapsulator::stop)?;
    director.stop()
}

#[test]
fn the_kernels_devices_unwrap_over_af_xdp() -> Result<()> {
    by_devices(the_kernels_devices_unwrap_over_af_xdp, Backend::AfXdp)
}

#[test]
fn the_kernels_devices_unwrap_over_af_packet() -> Result<()> {
    by_devices(the_kernels_devices_unwrap_over_af_packet, Backend::AfPacket)
}

/// Every tunnel, to servers whose kernels unwrap.
fn by_devices(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let each_server = |work: &dyn Fn(&Namespace, Ipv4Addr, Ipv6Addr) -> Result<()>| {
        (0..SERVERS).try_for_each(|n| work(&topology.servers()[n], server(n), server6(n)))
    };
    if let Err(error) = each_server(&make_devices) {
        say(&format!("skip: tunnel devices: {error:#}"));
        return Ok(());
    }
    let _servers = topology.start_servers()?;
    topology.servers().iter().try_for_each(acknowledge_uploads)?;
    let director = start(&topology, backend, &[])?;
    for (family, ways) in [(Family::V4, &IPV4), (Family::V6, &IPV6)] {
        let mut told = 0;
        for way in ways.iter().filter(|way| way.is_tunnel()) {
            let has_checksum = way.how.contains(&"--tun-csum");
            each_server(&|server, v4, v6| expect_checksums(server, v4, v6, has_checksum))?;
            take(&topology, &director, family, way, &mut told).with_context(|| {
                let counters = status(&topology).map(|state| state.counters);
                format!("{family:?} by {} over {}: {counters:?}", way.label(), backend.name())
            })?;
        }
    }
    director.stop()
}

/// The far ends of all tunnels at a server, as its operator would make them.
fn make_devices(server: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    shell(
        server,
        &format!(
            "ip link add ipip1 type ipip local {v4}; ip link add sit1 type sit local {v4}
             ip link add gre1 type gre local {v4}; ip link add ip6gre1 type ip6gre local {v6}
             ip link add ip6tnl1 type ip6tnl mode any local {v6}
             for device in ipip1 sit1 gre1 ip6gre1 ip6tnl1; do ip link set $device up; done
             ip fou add port {GUE_PORT} gue; ip -6 fou add port {GUE_PORT} gue"
        ),
    )
}

/// A device of GRE takes packets with a checksum only, or only those without.
fn expect_checksums(server: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr, expected: bool) -> Result<()> {
    let how = if expected { "icsum" } else { "noicsum" };
    shell(
        server,
        &format!(
            "ip link change gre1 type gre local {v4} {how}; ip link change ip6gre1 type ip6gre local {v6} {how}"
        ),
    )
}

fn shell(namespace: &Namespace, script: &str) -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = run_to_end(namespace, command)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

impl Way {
    fn is_tunnel(&self) -> bool {
        self.how[0] == "-i"
    }

    fn is_full_nat(&self) -> bool {
        self.how[0] == "--fullnat"
    }

    /// What the director adds to a packet's length.
    pub fn overhead(&self, family: Family) -> usize {
        if self.is_tunnel() { self.through.unwrap_or(family).header() + self.wrapping } else { 0 }
    }

    pub fn label(&self) -> String {
        let through = self.through.map_or_else(String::new, |family| format!(" through {family:?}"));
        format!("{}{through}", self.name)
    }
}

/// Requests, a long answer, datagrams and an upload one way. `told` is the most overhead that the client has been told of.
fn take(topology: &Topology, director: &Director, family: Family, way: &Way, told: &mut usize) -> Result<()> {
    director.ipvsadm(&["-C"])?;
    let at = |port| SocketAddr::new(family.vip(), port);
    let real = |n| way.through.unwrap_or(family).server(n);
    for (protocol, port) in [("-t", HTTP_PORT), ("-u", ECHO_PORT), ("-t", UPLOAD_PORT)] {
        serve_with(director, protocol, at(port), real, way.how, port)?;
        if way.is_full_nat() {
            lend(director, protocol, at(port), way.through.unwrap_or(family).local())?;
        }
    }
    let (dropped, replied) = (drops(topology)?, counter(topology, "frames.replied")?);

    let answers = get_each(topology, at(HTTP_PORT), 8).context("short answers")?;
    ensure!(answers.iter().filter(|&&n| n == 0).count() == 4, "{answers:?}");
    topology.client().run_in(|| download(at(HTTP_PORT)))?.context("a long answer")?;
    // What fits even the narrowest tunnel unfragmented, and odd lengths.
    let longest = 1500 - (40 + 12) - family.header() - 8;
    topology.client().run_in(|| -> Result<()> {
        for length in [1, 2, 333, longest] {
            let payload: Vec<u8> = (0..length).map(|i| (i ^ length) as u8).collect();
            // Both servers' turn.
            for _ in 0..SERVERS {
                let socket = udp_from(source_for(at(ECHO_PORT)), at(ECHO_PORT))?;
                echo(&socket, &payload).with_context(|| format!("an echo of {length} bytes"))?;
            }
        }
        Ok(())
    })??;
    ensure!(counter(topology, "frames.replied")? == replied, "the director refused what fits");

    topology.client().run_in(|| upload(at(UPLOAD_PORT)))?.context("an upload")?;
    let was_told = counter(topology, "frames.replied")? > replied;
    let narrower = way.overhead(family) > *told;
    ensure!(was_told == narrower, "the client was told of the tunnel's MTU: {was_told}, due: {narrower}");
    *told = way.overhead(family).max(*told);

    listed(director, family, way)?;
    // A window of segments that do not fit is more than the director answers at once.
    let lost: Vec<_> = drops(topology)?.difference(&dropped).cloned().collect();
    ensure!(lost.iter().all(|(name, _)| name == "drop.rate_limited"), "{lost:?}");
    Ok(())
}

/// Frames that were dropped, but for the last ones of connections whose service was already taken away for the next.
pub fn lost(topology: &Topology) -> Result<BTreeSet<(String, u64)>> {
    Ok(drops(topology)?.into_iter().filter(|(name, _)| name != "drop.no_dest").collect())
}

pub fn drops(topology: &Topology) -> Result<BTreeSet<(String, u64)>> {
    Ok(status(topology)?.counters.into_iter().filter(|(name, _)| name.starts_with("drop.")).collect())
}

fn download(target: SocketAddr) -> Result<()> {
    const LENGTH: usize = 1_000_000;
    let mut stream = connect_from(source_for(target), target)?;
    write!(stream, "GET /bytes/{LENGTH} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    ensure!((0..SERVERS).any(|n| long_answer(n, LENGTH) == said), "a wrong answer of {} bytes", said.len());
    Ok(())
}

/// In segments as long as the client's interface takes, of which none may be cut up on the way.
fn upload(target: SocketAddr) -> Result<()> {
    let mut stream = connect_from(source_for(target), target)?;
    stream.write_all(&uploaded())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("waiting for the server's word")?;
    ensure!(said == "whole", "the server says: {said:?}");
    Ok(())
}

fn uploaded() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect()
}

fn acknowledge_uploads(server: &Namespace) -> Result<()> {
    let any = (Ipv6Addr::UNSPECIFIED, UPLOAD_PORT);
    let listener = server.run_in(|| TcpListener::bind(any))?.context("listening for uploads")?;
    // The thread is left to the process: it holds a socket, and with it a namespace without a director.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = Vec::new();
            let whole = stream.set_read_timeout(Some(PATIENCE)).is_ok()
                && stream.read_to_end(&mut heard).is_ok()
                && heard == uploaded();
            let _ = stream.write_all(if whole { b"whole" } else { b"damaged" });
        }
    });
    Ok(())
}

/// The services, their servers and their connections are listed by their addresses.
fn listed(director: &Director, family: Family, way: &Way) -> Result<()> {
    let forward = if way.is_tunnel() {
        "Tunnel"
    } else if way.name == "NAT" || way.is_full_nat() {
        "Masq"
    } else {
        "Route"
    };
    let (services, connections) = (director.ipvsadm(&["-L", "-n"])?, director.ipvsadm(&["-L", "-n", "-c"])?);
    let service = SocketAddr::new(family.vip(), HTTP_PORT).to_string();
    ensure!(services.contains(&format!("TCP  {service} rr\n")), "{services}");
    for n in 0..SERVERS {
        let real = SocketAddr::new(way.through.unwrap_or(family).server(n), HTTP_PORT).to_string();
        let words: Vec<_> =
            services.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        let line = words.iter().find(|line| line.get(1) == Some(&real.as_str()));
        let line = line.with_context(|| format!("no {real} in\n{services}"))?;
        ensure!(line[0] == "->" && line[2] == forward, "{line:?}");
        // Half of eight short answers at least; connections of the ways before are listed until their time is over.
        let to_it = connections.lines().filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let is_client = |address: &str| {
                address.parse().is_ok_and(|client: SocketAddr| client.is_ipv4() == family.vip().is_ipv4())
            };
            words.len() == 6
                && words[0] == "TCP"
                && is_client(words[3])
                && words[4] == service
                && words[5] == real
        });
        let (to_it, counted) = (to_it.count(), line[4].parse::<usize>()? + line[5].parse::<usize>()?);
        ensure!(
            counted >= 4 && to_it >= counted,
            "{counted} and {to_it} connections to {real}:\n{services}{connections}"
        );
    }
    Ok(())
}

/// A client that leaves checksums to its hardware, as all do that nobody has prepared: a tunnel must not carry half a checksum.
#[test]
fn checksums_left_to_the_hardware_are_finished_before_a_tunnel() -> Result<()> {
    if !permitted(checksums_left_to_the_hardware_are_finished_before_a_tunnel)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let _servers = topology.start_servers()?;
        topology.servers().iter().try_for_each(acknowledge_uploads)?;
        let unwrapping = topology.start_decapsulators(&Tunnel::ALL)?;
        topology.client().run_in(|| Ethtool::open(FRONT)?.set_offload(Offload::TxChecksum, true))??;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        for (family, way) in [(Family::V4, GUE_SUM), (Family::V6, IPIP)] {
            director.ipvsadm(&["-C"])?;
            let at = |port| SocketAddr::new(family.vip(), port);
            for (protocol, port) in [("-t", HTTP_PORT), ("-u", ECHO_PORT), ("-t", UPLOAD_PORT)] {
                serve_with(&director, protocol, at(port), |n| family.server(n), way.how, port)?;
            }
            let run = || -> Result<()> {
                get_each(&topology, at(HTTP_PORT), 16)?;
                topology.client().run_in(|| echo(&udp(at(ECHO_PORT))?, b"half a checksum"))??;
                topology.client().run_in(|| upload(at(UPLOAD_PORT)))?
            };
            run().with_context(|| format!("{family:?} by {} over {}", way.label(), backend.name()))?;
        }
        for server in &unwrapping {
            ensure!(server.counters().refused().is_empty(), "{:?}", server.counters().refused());
        }
        director.stop()?;
    }
    Ok(())
}

//! Firewall marks: networks of virtual addresses and ranges of ports as one service, with rules that change while it runs.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use shunt_bench::director::Director;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, Options, SERVERS, Topology, VIP, VIP6, server, server6,
};
use shunt_bench::traffic::ECHO_PORT;

use crate::ground::{
    Backend, PATIENCE, echo, eventually, hear, permitted, say_to_all, source_for, start, start_workers,
    told_that_it_is_closed, udp_from,
};
use crate::network::no_drops;

/// The range, and a port behind it at which somebody listens as well.
const PORTS: [u16; 2] = [8100, 8101];
const BEHIND: u16 = 8102;

/// The range at addresses of the machine. Another one, as a client that happens to take a port again would be the same to the real server by two virtual addresses, and what that
/// answers goes to the older connection, as under IPVS.
const AT_HOME: [u16; 2] = [8103, 8104];

const WORDS: [&str; SERVERS] = ["zero", "one"];

/// The routing table by which servers answer clients from virtual addresses.
const REPLIES: u32 = 100;

/// Addresses of networks that are routed to the director, which has none of them: behind NAT, and behind DR.
fn networks(is_v4: bool) -> [[IpAddr; 2]; 2] {
    let v4 = |net, host| IpAddr::from(Ipv4Addr::new(10, net, host, host));
    let v6 = |net, host: u8| IpAddr::from(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host.into()));
    [10, 11].map(|net: u8| [1, 200].map(|host| if is_v4 { v4(net, host) } else { v6(net.into(), host) }))
}

fn network(of: IpAddr) -> String {
    match of {
        IpAddr::V4(v4) => format!("10.{}.0.0/16", v4.octets()[1]),
        IpAddr::V6(v6) => format!("fd00:{:x}::/64", v6.segments()[1]),
    }
}

#[test]
fn networks_and_port_ranges_over_af_xdp() -> Result<()> {
    marked(networks_and_port_ranges_over_af_xdp, Backend::AfXdp, 1)
}

#[test]
fn networks_and_port_ranges_over_af_packet() -> Result<()> {
    marked(networks_and_port_ranges_over_af_packet, Backend::AfPacket, 1)
}

#[test]
fn networks_and_port_ranges_with_two_workers() -> Result<()> {
    let backend = if Backend::AfXdp.works()? { Backend::AfXdp } else { Backend::AfPacket };
    marked(networks_and_port_ranges_with_two_workers, backend, 2)
}

fn marked(test: impl Fn() -> Result<()>, backend: Backend, workers: usize) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options { queues: workers as u32 })?;
    let _servers = topology.start_servers()?;
    for (n, word) in WORDS.into_iter().enumerate() {
        for port in PORTS.into_iter().chain([BEHIND]).chain(AT_HOME) {
            let namespace = &topology.servers()[n];
            say_to_all(namespace, (server(n), port).into(), word)?;
            say_to_all(namespace, (server6(n), port).into(), word)?;
        }
    }
    let Some(director) = start_workers(&topology, backend, workers)? else { return Ok(()) };
    for is_v4 in [true, false] {
        by_nat(&topology, &director, is_v4).with_context(|| format!("NAT, IPv4: {is_v4}"))?;
        by_direct_routing(&topology, &director, is_v4).with_context(|| format!("DR, IPv4: {is_v4}"))?;
    }
    at_an_address_of_the_machine(&topology, &director)?;
    no_drops(&topology)?;
    director.stop()
}

/// A rule, in the words of the command line.
fn rule(director: &Director, words: &str) -> Result<()> {
    let words: Vec<&str> = ["mark"].into_iter().chain(words.split(' ')).collect();
    let output = director.shunt(&words, "")?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A service of a mark with both servers, at whatever port the client has asked for.
fn serve_mark(director: &Director, mark: &str, is_v4: bool, how: &str) -> Result<()> {
    let family: &[&str] = if is_v4 { &[] } else { &["-6"] };
    director.ipvsadm(&[&["-A", "-f", mark], family, &["-s", "rr"]].concat())?;
    for n in 0..SERVERS {
        let real: IpAddr = if is_v4 { server(n).into() } else { server6(n).into() };
        let real = SocketAddr::new(real, 0).to_string();
        director.ipvsadm(&[&["-a", "-f", mark], family, &["-r", &real, how]].concat())?;
    }
    Ok(())
}

/// Both servers answer, at every address and port.
fn all_answer(topology: &Topology, addresses: [IpAddr; 2], ports: [u16; 2]) -> Result<()> {
    for (address, port) in addresses.into_iter().zip(ports) {
        let at = SocketAddr::new(address, port);
        let mut heard: Vec<String> =
            topology.client().run_in(|| (0..8).map(|_| hear(at)).collect::<Result<_>>())??;
        heard.sort();
        heard.dedup();
        ensure!(heard == ["one", "zero"], "at {at}: {heard:?}");
    }
    Ok(())
}

/// Nobody takes a connection there, and the client is told.
fn nobody_answers(topology: &Topology, at: SocketAddr) -> Result<ErrorKind> {
    let connected = topology.client().run_in(|| TcpStream::connect_timeout(&at, PATIENCE))?;
    let error = connected.err().with_context(|| format!("somebody took a connection at {at}"))?;
    ensure!(error.kind() != ErrorKind::TimedOut, "{at}: {error}");
    Ok(error.kind())
}

fn by_nat(topology: &Topology, director: &Director, is_v4: bool) -> Result<()> {
    let [addresses, _] = networks(is_v4);
    let network = network(addresses[0]);
    let range = format!("--destination {network} --protocol tcp --ports 8100-8101 --mark 1");
    rule(director, &format!("add {range}"))?;
    rule(director, &format!("add --destination {network} --protocol udp --mark 1"))?;
    nobody_answers(topology, (addresses[0], PORTS[0]).into()).context("without a service")?;
    serve_mark(director, "1", is_v4, "-m")?;
    all_answer(topology, addresses, PORTS)?;
    nobody_answers(topology, (addresses[0], BEHIND).into()).context("behind the range")?;
    let listing = director.ipvsadm(&["-L", "-n", "-c"])?;
    for (address, port) in addresses.into_iter().zip(PORTS) {
        let shown = SocketAddr::new(address, port).to_string();
        ensure!(listing.contains(&shown), "{shown} is not in {listing}");
    }

    // Whole, in parts, and to where no server listens.
    let at = |port| SocketAddr::new(addresses[1], port);
    topology.client().run_in(|| -> Result<()> {
        let socket = udp_from(source_for(at(ECHO_PORT)), at(ECHO_PORT))?;
        echo(&socket, b"marked")?;
        echo(&socket, &[0x5a; 1999])?;
        told_that_it_is_closed(&udp_from(source_for(at(BEHIND)), at(BEHIND))?)
    })??;

    // Rules come and go, and with them all that they mark.
    rule(director, &format!("delete {range}"))?;
    nobody_answers(topology, at(PORTS[1])).context("without the rule")?;
    rule(director, &format!("add {range} --interface {DIRECTOR_SERVER_SIDE}"))?;
    nobody_answers(topology, at(PORTS[1])).context("with a rule for the other interface")?;
    rule(director, &format!("add {range} --interface {DIRECTOR_CLIENT_SIDE}"))?;
    all_answer(topology, addresses, PORTS)?;
    rule(director, &format!("add --destination {} --ports 8101 --mark 0", addresses[1]))?;
    nobody_answers(topology, at(PORTS[1])).context("with an exception")?;
    let first = SocketAddr::new(addresses[0], PORTS[1]);
    topology.client().run_in(|| hear(first))?.context("besides the exception")?;
    Ok(())
}

fn by_direct_routing(topology: &Topology, director: &Director, is_v4: bool) -> Result<()> {
    let [_, addresses] = networks(is_v4);
    for (n, namespace) in topology.servers().iter().enumerate() {
        namespace.run_in(|| -> Result<()> {
            let netlink = Netlink::open()?;
            for address in addresses {
                netlink.address("lo", address, if is_v4 { 32 } else { 128 })?;
                netlink.source_uses_table(address, REPLIES)?;
            }
            Ok(())
        })??;
        for (address, port) in addresses.into_iter().zip(PORTS) {
            // A new IPv6 address takes a moment to be one.
            eventually(PATIENCE, || say_to_all(namespace, (address, port).into(), WORDS[n]))?;
        }
    }
    rule(director, &format!("add --destination {} --ports 8100-8101 --mark 0x2", network(addresses[0])))?;
    serve_mark(director, "2", is_v4, "-g")?;
    all_answer(topology, addresses, PORTS)?;
    nobody_answers(topology, (addresses[0], BEHIND).into()).context("behind the range")?;
    Ok(())
}

/// What no rule marks stays the kernel's, which has the address and refuses.
fn at_an_address_of_the_machine(topology: &Topology, director: &Director) -> Result<()> {
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        rule(director, &format!("add --destination {vip} --ports 8103-8104 --mark 1"))?;
        all_answer(topology, [vip; 2], AT_HOME)?;
        let refused = nobody_answers(topology, (vip, BEHIND).into())?;
        ensure!(refused == ErrorKind::ConnectionRefused, "{refused}");
    }
    Ok(())
}

#[test]
fn rules_for_marks_are_listed_as_a_file_has_them() -> Result<()> {
    if !permitted(rules_for_marks_are_listed_as_a_file_has_them)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules");
    let lines = [
        "mark add --destination 10.10.0.0/16 --protocol tcp --ports 8100-8101 --mark 1".to_owned(),
        format!("mark add --destination fd00:a::/64 --interface {DIRECTOR_CLIENT_SIDE} --mark 7"),
        "mark add --destination 10.10.0.1/32 --source 10.1.0.0/24 --mark 0".to_owned(),
    ];
    let services = "-A -f 1 -s rr\n-a -f 1 -r 10.2.0.11:0 -m -w 1\n-A -f 7 -6 -s wlc\n";
    fs::write(&file, format!("# All of it.\n{}\n{services}", lines.join("\n")))?;
    let director = start(&topology, Backend::AfPacket, &["--rules", &file.to_string_lossy()])?;
    let list = || -> Result<String> { Ok(String::from_utf8(director.shunt(&["mark", "list"], "")?.stdout)?) };
    ensure!(list()? == lines.join("\n") + "\n", "{}", list()?);
    ensure!(director.ipvsadm(&["-S", "-n"])? == services, "{}", director.ipvsadm(&["-S", "-n"])?);

    for (words, said) in [
        ("add --destination 10.10.0.0/16 --protocol tcp --ports 8100-8101 --mark 1", "there already"),
        ("delete --destination 10.10.0.0/16 --mark 1", "no such rule for marks"),
        ("add --destination 10.10.0.0/16 --source fd00::/8 --mark 1", "one address family"),
        ("add --destination 10.10.0.0/16 --interface eth7 --mark 1", "no interface of the director's"),
        ("add --destination 10.10.0.0/16 --mark 1 --ports 9-8", "the first port is behind the last one"),
    ] {
        let words: Vec<&str> = ["mark"].into_iter().chain(words.split(' ')).collect();
        let output = director.shunt(&words, "")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && error.contains(said), "{words:?}: {error}");
    }
    director.ipvsadm(&["-C"])?;
    ensure!(list()?.lines().count() == lines.len(), "clearing the services leaves the rules for marks");
    for line in &lines {
        rule(&director, &line.replacen("mark add", "delete", 1))?;
    }
    ensure!(list()?.is_empty(), "{}", list()?);
    director.stop()
}

//! The kernel's network, mirrored: neighbours nobody has asked for yet, dead ones, and changes while the director runs.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::EMSGSIZE;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};
use shunt_bench::director::Director;
use shunt_bench::netlink::{MAIN, Netlink};
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, DIRECTOR_TO_SERVERS, FRONT, Options, Topology, VIP, server,
    server6,
};
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};

use crate::ground::{
    Backend, PATIENCE, connect, connect_from, counter, echo, eventually, get_each, permitted, serve,
    serve_at, start, status, udp,
};
use crate::wire::Watch;

const HTTP: SocketAddrV4 = SocketAddrV4::new(VIP, HTTP_PORT);
const ECHO: SocketAddrV4 = SocketAddrV4::new(VIP, ECHO_PORT);

#[test]
fn a_packet_to_an_unknown_neighbour_waits_and_is_sent_on() -> Result<()> {
    if !permitted(a_packet_to_an_unknown_neighbour_waits_and_is_sent_on)? {
        return Ok(());
    }
    a_datagram_waits_for_unknown_neighbours(ECHO.into())
}

/// Of either family: `at` is the echo service.
pub fn a_datagram_waits_for_unknown_neighbours(at: SocketAddr) -> Result<()> {
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let director = start(&topology, backend, &[])?;
        serve(&director, "-u", at, "-m", ECHO_PORT)?;
        let socket = topology.client().run_in(|| udp(at))??;
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

#[test]
fn a_neighbour_that_an_operator_has_fixed_stays_fixed() -> Result<()> {
    if !permitted(a_neighbour_that_an_operator_has_fixed_stays_fixed)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    topology.name_servers([2, 0, 0, 0, 0, 15])?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    only_server_0(&director)?;
    let fixed = || -> Result<bool> {
        let table = topology.director().run_in(|| std::fs::read_to_string("/proc/thread-self/net/arp"))??;
        let line = table.lines().find(|line| line.starts_with(&format!("{} ", server(0))));
        // ATF_COM and ATF_PERM of linux/if_arp.h.
        Ok(line.is_some_and(|line| line.contains(" 0x6 ") && line.contains("02:00:00:00:00:0f")))
    };
    ensure!(fixed()?, "it was never fixed");
    // Longer than the director lets pass between two reminders that its servers are in use.
    std::thread::sleep(Duration::from_secs(6));
    ensure!(fixed()?, "the director has made the kernel forget it");
    director.stop()
}

#[test]
fn a_dead_server_loses_packets_under_a_counter_and_recovers() -> Result<()> {
    if !permitted(a_dead_server_loses_packets_under_a_counter_and_recovers)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    only_server_0(&director)?;
    let socket = topology.client().run_in(|| udp(ECHO.into()))??;
    echo(&socket, b"alive")?;

    let here = &topology.servers()[0];
    here.run_in(|| Netlink::open()?.down(FRONT))??;
    topology.director().run_in(|| Netlink::open()?.forget_neighbours(DIRECTOR_SERVER_SIDE))??;
    the_mirror_has_followed(&topology)?;
    // The first waits until its time is over, or the kernel's, which is as long; later ones are dropped at once.
    let datagram = || socket.send(b"anybody there?").map(drop);
    datagram()?;
    eventually(PATIENCE, || {
        let names = ["drop.neighbour_timeout", "drop.no_neighbour"];
        let lost: u64 = names.iter().map(|name| counter(&topology, name)).sum::<Result<_>>()?;
        ensure!(lost == 1, "{:?}", status(&topology)?.counters);
        Ok(())
    })?;
    eventually(PATIENCE, || {
        datagram()?;
        ensure!(counter(&topology, "drop.no_neighbour")? > 1, "{:?}", status(&topology)?.counters);
        Ok(())
    })?;

    here.run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.up(FRONT)?;
        // The kernel has dropped it with the interface.
        netlink.default_route(DIRECTOR_TO_SERVERS.into(), MAIN)
    })??;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    eventually(PATIENCE, || echo_among_others(&socket, b"alive again"))?;
    director.stop()
}

#[test]
fn only_neighbours_that_services_need_are_asked_for_again() -> Result<()> {
    /// Neither is there; one of them is a real server.
    const NOBODYS: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 97);
    const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 98);
    if !permitted(only_neighbours_that_services_need_are_asked_for_again)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let asked = || -> Result<Vec<Ipv4Addr>> {
        let watch = Watch::open(topology.director(), DIRECTOR_SERVER_SIDE)?;
        std::thread::sleep(Duration::from_millis(2500));
        let requests = watch.frames()?.into_iter().filter(|frame| frame[12..14] == [8, 6]);
        Ok(requests
            .filter_map(|frame| Some(Ipv4Addr::from(<[u8; 4]>::try_from(&frame[38..42]).ok()?)))
            .collect())
    };
    // Both are known to be dead: the kernel tells who calls them.
    for dead in [NOBODYS, SERVICES] {
        let called = topology.director().run_in(|| connect((dead, ECHO_PORT).into()))?;
        let told = called.err().context("an answer from nobody")?;
        ensure!(format!("{told:#}").contains("No route to host"), "{told:#}");
    }
    let without = asked()?;
    ensure!(!without.contains(&NOBODYS) && !without.contains(&SERVICES), "without a service: {without:?}");
    serve_at(&director, "-t", HTTP.into(), (SERVICES, HTTP_PORT).into(), &["-m"])?;
    let with = asked()?;
    ensure!(!with.contains(&NOBODYS) && with.contains(&SERVICES), "with one: {with:?}");
    director.stop()
}

/// Waits for this echo; those of earlier datagrams may come first.
fn echo_among_others(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    socket.send(payload)?;
    let mut said = [0; 64];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let length = socket.recv(&mut said).context("no echo")?;
        if &said[..length] == payload {
            return Ok(());
        }
    }
    bail!("only other echoes")
}

#[test]
fn a_new_route_is_followed_and_so_is_its_change() -> Result<()> {
    /// On both servers, but on no network.
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    if !permitted(a_new_route_is_followed_and_so_is_its_change)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for namespace in topology.servers() {
        namespace.run_in(|| Netlink::open()?.address("lo", FAR.into(), 32))??;
    }
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let service = HTTP.to_string();
    director.ipvsadm(&["-A", "-t", &service, "-s", "rr"])?;
    director.ipvsadm(&["-a", "-t", &service, "-r", &format!("{FAR}:{HTTP_PORT}"), "-m"])?;

    let lost = get_each(&topology, HTTP.into(), 1);
    let error = lost.err().context("an answer from where no route leads")?;
    ensure!(format!("{error:#}").contains("No route to host"), "{error:#}");

    for n in [0, 1, 0] {
        topology.director().run_in(|| Netlink::open()?.route(FAR, server(n)))??;
        the_mirror_has_followed(&topology)?;
        let answers = get_each(&topology, HTTP.into(), 3)?;
        ensure!(answers.iter().all(|&whose| whose == n), "by way of server {n}: {answers:?}");
    }
    // By a router of the other family (RFC 5549), whose Ethernet address nobody knows yet.
    if topology.has_ipv6() {
        topology.director().run_in(|| Netlink::open()?.forget_neighbours(DIRECTOR_SERVER_SIDE))??;
        topology.director().run_in(|| Netlink::open()?.route(FAR, server6(1)))??;
        the_mirror_has_followed(&topology)?;
        let answers = get_each(&topology, HTTP.into(), 3)?;
        ensure!(answers == [1; 3], "by way of server 1's IPv6 address: {answers:?}");
    }
    director.stop()
}

#[test]
fn a_route_of_several_ways_leads_by_one_that_has_a_carrier() -> Result<()> {
    /// On both servers, but on no network.
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    /// A third interface of the director, straight to server 0, and what is at its ends.
    const AISLE: &str = "a0";
    const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
    if !permitted(a_route_of_several_ways_leads_by_one_that_has_a_carrier)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for namespace in topology.servers() {
        namespace.run_in(|| Netlink::open()?.address("lo", FAR.into(), 32))??;
    }
    let here = &topology.servers()[0];
    topology.director().run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.veth(AISLE, AISLE, here, 1)?;
        netlink.address(AISLE, ENDS[0].into(), 24)?;
        netlink.up(AISLE)
    })??;
    here.run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.address(AISLE, ENDS[1].into(), 24)?;
        netlink.up(AISLE)
    })??;
    topology.director().run_in(|| -> Result<()> {
        let netlink = Netlink::open()?;
        netlink.wait_until_all_pass_packets()?;
        netlink.spread_route(FAR, &[ENDS[1], server(1)])
    })??;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &["--interface", AISLE])?;
    let service = HTTP.to_string();
    director.ipvsadm(&["-A", "-t", &service, "-s", "rr"])?;
    director.ipvsadm(&["-a", "-t", &service, "-r", &format!("{FAR}:{HTTP_PORT}"), "-m"])?;

    let leads_to = |n: usize| -> Result<()> {
        the_mirror_has_followed(&topology)?;
        let answers = get_each(&topology, HTTP.into(), 3)?;
        ensure!(answers.iter().all(|&whose| whose == n), "by way of server {n}: {answers:?}");
        Ok(())
    };
    leads_to(0).context("both ways are there")?;
    here.run_in(|| Netlink::open()?.down(AISLE))??;
    eventually(PATIENCE, || leads_to(1)).context("the far end of the first is down")?;
    here.run_in(|| Netlink::open()?.up(AISLE))??;
    eventually(PATIENCE, || leads_to(0)).context("it is up again")?;
    director.stop()
}

#[test]
fn a_flood_of_changes_leaves_the_director_answering_and_following() -> Result<()> {
    /// On both servers, but on no network.
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    /// Longer than the director lets pass between two reminders to the kernel that its servers are in use.
    const FLOOD: Duration = Duration::from_secs(6);
    if !permitted(a_flood_of_changes_leaves_the_director_answering_and_following)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for namespace in topology.servers() {
        namespace.run_in(|| Netlink::open()?.address("lo", FAR.into(), 32))??;
    }
    let leads_to = |n| topology.director().run_in(move || Netlink::open()?.route(FAR, server(n)))?;
    leads_to(0)?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    serve_at(&director, "-t", HTTP.into(), (FAR, HTTP_PORT).into(), &["-m"])?;
    // Many questions at once, so that an answer is among what is lost.
    let many = (101..=200).map(|n| format!("-a -t {VIP}:1 -r 10.2.0.{n}:1 -m\n"));
    let restored =
        director.shunt(&["ipvsadm", "-R"], &(format!("-A -t {VIP}:1\n") + &many.collect::<String>()))?;
    ensure!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));

    topology.director().run_in(|| flood_with_routes(FLOOD))??;
    status(&topology).context("after the flood")?;
    leads_to(1)?;
    eventually(PATIENCE, || {
        let answers = get_each(&topology, HTTP.into(), 1)?;
        ensure!(answers == [1], "by way of server {answers:?}");
        Ok(())
    })?;
    // No event was taken for the end of a table that was being read.
    let log = director.end()?.into_iter();
    let gaps: Vec<_> = log.filter(|line| line.contains("no route") || line.contains("followed")).collect();
    ensure!(gaps.is_empty(), "{gaps:#?}");
    Ok(())
}

/// Adds and removes routes as fast as the kernel takes them, faster than anybody can follow.
fn flood_with_routes(time: Duration) -> Result<()> {
    const NEW_ROUTE: (u16, u16) = (24, 0x401); // RTM_NEWROUTE; NLM_F_CREATE, NLM_F_REQUEST
    const DELETE_ROUTE: (u16, u16) = (25, 0x1);
    const AT_ONCE: u32 = 500;
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let begun = Instant::now();
    while begun.elapsed() < time {
        for (kind, flags) in [NEW_ROUTE, DELETE_ROUTE] {
            for first in (0..5000).step_by(AT_ONCE as usize) {
                let requests = (first..first + AT_ONCE).flat_map(|n| {
                    let to = (u32::from(Ipv4Addr::new(172, 16, 0, 0)) + n).to_be_bytes();
                    // A host's route in the main table, to anywhere; its address; its router.
                    let route = [2, 32, 0, 0, 254, 186, 0, 1, 0, 0, 0, 0];
                    let length = 16 + 12 + 2 * 8u32;
                    let header = [length, u32::from(kind) | u32::from(flags) << 16, n, 0];
                    let header = header.into_iter().flat_map(u32::to_ne_bytes);
                    let attribute = |kind, value: [u8; 4]| [8, 0, kind, 0].into_iter().chain(value);
                    header.chain(route).chain(attribute(1, to)).chain(attribute(5, server(0).octets()))
                });
                let requests: Vec<u8> = requests.collect();
                sendto(socket.as_raw_fd(), &requests, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
            }
        }
    }
    Ok(())
}

#[test]
fn rules_of_routing_are_spoken_of_if_there_are_any() -> Result<()> {
    if !permitted(rules_of_routing_are_spoken_of_if_there_are_any)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let spoken = |director: Director| -> Result<Vec<String>> {
        let log = director.end()?.into_iter();
        Ok(log.filter(|line| line.contains("WARN") && line.contains("ip rule")).collect())
    };
    let add_rule = |table| {
        topology
            .director()
            .run_in(move || Netlink::open()?.source_uses_table([10, 78, 0, 1].into(), table))?
    };
    // A rule of the director's own is none of them.
    let director = start(&topology, Backend::AfPacket, &["--local-servers"])?;
    let here = SocketAddrV4::new(DIRECTOR_TO_SERVERS, HTTP_PORT);
    serve_at(&director, "-t", HTTP.into(), here.into(), &["-m"])?;
    std::thread::sleep(Duration::from_millis(100));
    let lines = spoken(director)?;
    ensure!(lines.is_empty(), "{lines:#?}");

    let director = start(&topology, Backend::AfPacket, &[])?;
    add_rule(1000)?;
    // No snapshot comes of it that could be waited for.
    std::thread::sleep(Duration::from_millis(200));
    let lines = spoken(director)?;
    ensure!(lines.len() == 1 && lines[0].contains("table 1000"), "{lines:#?}");

    let lines = spoken(start(&topology, Backend::AfPacket, &[])?)?;
    ensure!(lines.len() == 1 && lines[0].contains("table 1000"), "{lines:#?}");
    Ok(())
}

#[test]
fn a_server_with_another_ethernet_address_is_found_again() -> Result<()> {
    if !permitted(a_server_with_another_ethernet_address_is_found_again)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    only_server_0(&director)?;
    let socket = topology.client().run_in(|| udp(ECHO.into()))??;
    echo(&socket, b"before")?;

    // The server announces itself, as one does that has taken over from a peer.
    topology.servers()[0].set_variables(&[("ipv4/conf/front/arp_notify", "1")])?;
    topology.servers()[0].run_in(|| Netlink::open()?.mac(FRONT, [0x02, 0, 0, 0x77, 0, 1]))??;
    the_mirror_has_followed(&topology)?;
    echo(&socket, b"after")?;

    // The client does not.
    topology.client().run_in(|| Netlink::open()?.mac(FRONT, [0x02, 0, 0, 0x77, 0, 2]))??;
    topology.director().run_in(|| Netlink::open()?.forget_neighbours(DIRECTOR_CLIENT_SIDE))??;
    the_mirror_has_followed(&topology)?;
    echo(&socket, b"and after")?;
    no_drops(&topology)?;
    director.stop()
}

#[test]
fn a_director_with_other_ethernet_addresses_serves_on() -> Result<()> {
    if !permitted(a_director_with_other_ethernet_addresses_serves_on)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let director = start(&topology, backend, &[])?;
        serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
        get_each(&topology, HTTP.into(), 2)?;
        for (interface, last) in [(DIRECTOR_SERVER_SIDE, 1), (DIRECTOR_CLIENT_SIDE, 2)] {
            let announce = format!("ipv4/conf/{interface}/arp_notify");
            topology.director().set_variables(&[(&announce, "1")])?;
            topology.director().run_in(|| Netlink::open()?.mac(interface, [0x02, 0, 0, 0x77, 1, last]))??;
            the_mirror_has_followed(&topology)?;
            let answers = get_each(&topology, HTTP.into(), 2);
            let answers = answers
                .with_context(|| format!("{interface} has another address, over {}", backend.name()))?;
            ensure!(answers.len() == 2 && answers[0] != answers[1], "{answers:?}");
        }
        no_drops(&topology)?;
        director.stop()?;
    }
    Ok(())
}

#[test]
fn a_new_address_of_the_director_is_left_to_the_kernel_at_once() -> Result<()> {
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 99);
    if !permitted(a_new_address_of_the_director_is_left_to_the_kernel_at_once)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let director = start(&topology, backend, &[])?;
        serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
        topology.director().run_in(|| Netlink::open()?.address(DIRECTOR_SERVER_SIDE, NEW.into(), 24))??;
        the_mirror_has_followed(&topology)?;
        // What the server sends from the service's port to the new address is no reply of a service's connection.
        let checked = topology
            .director()
            .run_in(|| connect_from((NEW, 0).into(), (server(0), HTTP_PORT).into()).map(drop::<TcpStream>))?;
        checked.with_context(|| format!("a health check from the new address over {}", backend.name()))?;
        director.stop()?;
    }
    Ok(())
}

#[test]
fn an_interface_that_was_down_for_a_while_carries_on() -> Result<()> {
    if !permitted(an_interface_that_was_down_for_a_while_carries_on)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        let mut director = start(&topology, backend, &[])?;
        serve(&director, "-u", ECHO, "-m", ECHO_PORT)?;
        let socket = topology.client().run_in(|| udp(ECHO.into()))??;
        echo(&socket, b"before")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        for interface in [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE] {
            topology.director().run_in(|| Netlink::open()?.down(interface))??;
            the_mirror_has_followed(&topology)?;
            ensure!(echo(&socket, b"meanwhile").is_err());
            topology.director().run_in(|| Netlink::open()?.up(interface))??;
            eventually(PATIENCE, || echo_among_others(&socket, b"after"))
                .with_context(|| format!("{interface} over {}", backend.name()))?;
        }
        director.check()?;
        director.stop()?;
    }
    Ok(())
}

#[test]
fn an_interface_that_is_down_or_gone_is_shown_as_that() -> Result<()> {
    if !permitted(an_interface_that_is_down_or_gone_is_shown_as_that)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let mut director = start(&topology, backend, &[])?;
        let at_begin = status(&topology)?.interfaces;
        let here = || topology.director().run_in(Netlink::open)?;
        let shown = |expected: &str| {
            eventually(PATIENCE, || {
                let shown = status(&topology)?.interfaces;
                ensure!(shown[0] == at_begin[0], "{shown:?}");
                ensure!(shown[1] == (DIRECTOR_SERVER_SIDE.to_owned(), expected.to_owned()), "{shown:?}");
                Ok(())
            })
        };
        shown(&at_begin[1].1)?;
        ensure!(at_begin[1].1.starts_with(backend.name()), "{at_begin:?}");
        here()?.down(DIRECTOR_SERVER_SIDE)?;
        shown("down")?;
        here()?.up(DIRECTOR_SERVER_SIDE)?;
        shown(&at_begin[1].1)?;
        here()?.remove(DIRECTOR_SERVER_SIDE)?;
        shown("gone")?;

        // The other one is looked after all the same.
        let rule = ["mark", "add", "--destination", "10.10.0.0/16", "--mark", "1"];
        director.ipvsadm(&["-A", "-f", "1"])?;
        let added = director.shunt(&rule, "")?;
        ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let text = director.shunt(&["status"], "")?.stdout;
        let line = format!("{DIRECTOR_SERVER_SIDE}: gone");
        ensure!(String::from_utf8_lossy(&text).lines().any(|shown| shown == line), "no {line:?}");
        director.check()?;
        director.stop()?;
    }
    Ok(())
}

#[test]
fn a_smaller_mtu_is_told_to_the_sender() -> Result<()> {
    const SMALL: usize = 1000;
    if !permitted(a_smaller_mtu_is_told_to_the_sender)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    only_server_0(&director)?;
    let socket = topology.client().run_in(|| udp(ECHO.into()))??;
    echo(&socket, &[7; 1400])?;

    topology.director().run_in(|| Netlink::open()?.mtu(DIRECTOR_SERVER_SIDE, SMALL as u32))??;
    the_mirror_has_followed(&topology)?;
    // By default Linux forbids that its datagrams be cut up, and reports what it is told instead.
    socket.send(&[7; 1400])?;
    let told = socket.recv(&mut [0; 2048]).err().context("an echo too long for the way")?;
    ensure!(told.raw_os_error() == Some(EMSGSIZE), "{told}");
    // From now on the kernel itself knows better, or cuts them up before the director sees them.
    let longest = [7; SMALL - 28];
    echo(&socket, &longest)?;
    ensure!(counter(&topology, "frames.replied")? == 1);
    director.stop()
}

/// An echo service of one server, so that it is known which one is asked.
fn only_server_0(director: &Director) -> Result<()> {
    let service = ECHO.to_string();
    director.ipvsadm(&["-A", "-u", &service, "-s", "rr"])?;
    let at = format!("{}:{ECHO_PORT}", server(0));
    director.ipvsadm(&["-a", "-u", &service, "-r", &at, "-m"]).map(drop)
}

/// Waits until no new snapshot has come for a while: the mirror gathers events for a millisecond.
fn the_mirror_has_followed(topology: &Topology) -> Result<()> {
    let mut epoch = status(topology)?.epoch;
    for _ in 0..100 {
        std::thread::sleep(Duration::from_millis(30));
        let now = status(topology)?.epoch;
        if now == epoch {
            return Ok(());
        }
        epoch = now;
    }
    bail!("the director publishes snapshots without end")
}

/// Nothing was dropped so far.
pub fn no_drops(topology: &Topology) -> Result<()> {
    let counters = status(topology)?.counters;
    let drops: Vec<_> = counters.iter().filter(|(name, _)| name.starts_with("drop.")).collect();
    ensure!(drops.is_empty(), "{drops:?}");
    Ok(())
}

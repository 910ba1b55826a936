//! The topology by itself: every path of its picture carries real traffic, frames on the director's side are
//! true frames, and nothing is left when it goes.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use shunt_bench::director::Launcher;
use shunt_bench::netlink::Netlink;
use shunt_bench::privilege::permit_test;
use shunt_bench::topology::{
    BACK, CLIENTS, DIRECTOR_CLIENT_SIDE, FRONT, Options, SERVERS, Topology, VIP, VIP6, client, client6,
    server, server_back, server_back6, server6,
};
use shunt_bench::traffic::server::Server;
use shunt_bench::traffic::{DISCARD_PORT, ECHO_PORT, HTTP_PORT, Sources, http, udp};

#[test]
fn servers_answer_by_way_of_the_director_and_past_it() -> Result<()> {
    if !permit_test("servers_answer_by_way_of_the_director_and_past_it")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let servers = topology.start_servers()?;
    for address in [server, server_back] {
        let targets = (0..SERVERS).map(|n| (address(n), HTTP_PORT).into());
        let outcome = ask(&topology, targets.collect(), true, None)?;
        ensure!(outcome.answers.iter().all(|&n| n > 10), "{outcome:?}");
    }
    servers.map(Server::stop).into_iter().collect()
}

#[test]
fn both_families_are_wired() -> Result<()> {
    if !permit_test("both_families_are_wired")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    if !topology.has_ipv6() {
        println!("skip: the kernel has no IPv6");
        return Ok(());
    }
    let _servers = topology.start_servers()?;
    for address in [server6, server_back6] {
        let targets = (0..SERVERS).map(|n| (address(n), HTTP_PORT).into());
        let outcome = ask(&topology, targets.collect(), false, None)?;
        ensure!(outcome.answers.iter().all(|&n| n > 10), "{outcome:?}");
    }
    // The VIP is the director's, whose kernel has no server on it; what matters is that it is reached and
    // answers.
    let refused = topology.client().run_in(|| std::net::TcpStream::connect((VIP6, HTTP_PORT)))?;
    ensure!(refused.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused));
    Ok(())
}

#[test]
fn replies_from_the_vip_go_past_the_director() -> Result<()> {
    if !permit_test("replies_from_the_vip_go_past_the_director")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    topology.forward_by_kernel_route()?;

    let outcome = ask(&topology, vec![(VIP, HTTP_PORT).into()], false, None)?;
    ensure!(outcome.answers.iter().all(|&n| n > 10), "{outcome:?}");
    let (received, sent) = packets(&topology, DIRECTOR_CLIENT_SIDE)?;
    ensure!(received > 10 * sent, "replies came through the director: {received} packets in, {sent} out");
    Ok(())
}

#[test]
fn long_answers_arrive_whole_with_and_without_keep_alive() -> Result<()> {
    if !permit_test("long_answers_arrive_whole_with_and_without_keep_alive")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    for keep_alive in [true, false] {
        let outcome = ask(&topology, vec![(server(0), HTTP_PORT).into()], keep_alive, Some(300_000))?;
        ensure!(outcome.answers[0] > 0 && outcome.answers[1] == 0, "{outcome:?}");
    }
    Ok(())
}

#[test]
fn echoes_come_from_the_address_they_were_sent_to() -> Result<()> {
    if !permit_test("echoes_come_from_the_address_they_were_sent_to")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    topology.forward_by_kernel_route()?;
    for target in [VIP, server(0), server_back(1)] {
        let said = topology.client().run_in(|| -> Result<[u8; 5]> {
            let socket = UdpSocket::bind((client(3), 0))?;
            // A connected socket hears nobody else.
            socket.connect((target, ECHO_PORT))?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.send(b"hello")?;
            let mut said = [0; 5];
            socket.recv(&mut said)?;
            Ok(said)
        })?;
        ensure!(&said.with_context(|| format!("echo from {target}"))? == b"hello");
    }
    Ok(())
}

#[test]
fn every_pace_of_datagrams_is_counted_at_the_servers() -> Result<()> {
    if !permit_test("every_pace_of_datagrams_is_counted_at_the_servers")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let servers = topology.start_servers()?;
    let sources = sources();
    for pace in [udp::Pace::Flood, udp::Pace::Rate(20_000), udp::Pace::Window(256)] {
        let load = udp::Load {
            targets: (0..SERVERS).map(|n| (server(n), DISCARD_PORT).into()).collect(),
            flows: 8,
            pace,
            warm_up: Duration::from_millis(50),
            window: Duration::from_millis(250),
        };
        let counters = servers.each_ref().map(Server::counters);
        let outcome = topology.client().run_in(|| udp::run(&load, &sources, counters))??;
        println!("{pace:?}: {:.0} packets/s received, {outcome:?}", outcome.rate());
        ensure!(outcome.received.iter().all(|&n| n > 100), "{pace:?}: {outcome:?}");
        if let udp::Pace::Rate(rate) = pace {
            ensure!(outcome.rate() < f64::from(rate) * 1.2, "{outcome:?}");
        }
    }
    Ok(())
}

/// With offloads on, a datagram's checksum field holds the pseudo header's sum, and a long answer comes in
/// frames of 64 KiB.
#[test]
fn the_director_sees_true_frames() -> Result<()> {
    if !permit_test("the_director_sees_true_frames")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let tap = topology.director().run_in(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
    })??;
    ask(&topology, vec![(server(0), HTTP_PORT).into()], false, Some(100_000))?;

    let mut frame = [0; 0x1_0000];
    let mut segments = 0;
    while let Ok(length) = recv(tap.as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
        ensure!(length <= 1514, "a frame of {length} bytes");
        let frame = &frame[..length];
        // Ethernet, IPv4 without options, TCP.
        if frame[12..15] == [0x08, 0x00, 0x45] && frame[23] == 6 {
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let segment = &frame[34..14 + total];
            let pseudo = [&frame[26..34], &[0, 6], &(segment.len() as u16).to_be_bytes()].concat();
            ensure!(
                internet_sum(&[&pseudo, segment].concat()) == 0xffff,
                "an unfinished checksum: {segment:02x?}"
            );
            segments += 1;
        }
    }
    ensure!(segments > 20, "only {segments} segments seen");
    Ok(())
}

#[test]
fn interfaces_have_the_queues_asked_for() -> Result<()> {
    if !permit_test("interfaces_have_the_queues_asked_for")? {
        return Ok(());
    }
    let topology = Topology::new(Options { queues: 2 })?;
    for interface in [FRONT, BACK] {
        let queues = topology.client().run_in(|| queues(interface))??;
        ensure!(queues == (2, 2), "{interface}: {queues:?}");
    }
    let queues = topology.director().run_in(|| queues(DIRECTOR_CLIENT_SIDE))??;
    ensure!(queues == (2, 2), "{DIRECTOR_CLIENT_SIDE}: {queues:?}");
    Ok(())
}

#[test]
fn namespaces_end_with_their_owner_and_take_their_processes_along() -> Result<()> {
    if !permit_test("namespaces_end_with_their_owner_and_take_their_processes_along")? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let names = topology.director().run_in(|| Netlink::open()?.interfaces())??;
    ensure!(["lo", "c0", "s0"].iter().all(|name| names.contains(&(*name).to_owned())), "{names:?}");

    // A program that would outlive us, tied to the namespace it runs in.
    let mut command = Launcher::find()?.with_shunt("sleep").shunt();
    command.arg("60").stdout(Stdio::piped());
    let mut child = topology.client().spawn(command)?;
    let mut output = child.stdout.take().context("a pipe was asked for")?;
    ensure!(child.try_wait()?.is_none(), "it ended at once");
    drop(topology);

    // Its end closes the pipe, and the wait tells how it ended.
    output.read_to_end(&mut Vec::new())?;
    let begun = Instant::now();
    let status = child.wait()?;
    ensure!(!status.success() && begun.elapsed() < Duration::from_secs(1), "{status}");
    Ok(())
}

#[test]
fn the_private_run_directory_is_nobody_elses() -> Result<()> {
    if !permit_test("the_private_run_directory_is_nobody_elses")? {
        return Ok(());
    }
    const FILE: &str = "/run/shunt-lab-test-was-here";
    let topology = Topology::new(Options::default())?;
    topology.director().run_in(|| std::fs::write(FILE, "."))??;
    let mut look = Command::new("test");
    look.args(["-e", FILE]);
    ensure!(topology.director().spawn(look)?.wait()?.success(), "children do not share it");
    ensure!(!topology.client().run_in(|| std::path::Path::new(FILE).exists())?, "another namespace sees it");
    ensure!(!std::path::Path::new(FILE).exists(), "the machine sees it");
    Ok(())
}

fn sources() -> Sources {
    Sources::new((0..CLIENTS).map(|n| IpAddr::from(client(n))))
}

fn ask(
    topology: &Topology,
    targets: Vec<SocketAddr>,
    keep_alive: bool,
    bytes: Option<usize>,
) -> Result<http::Outcome> {
    let six = targets[0].is_ipv6();
    let sources = if six { Sources::new((0..CLIENTS).map(|n| IpAddr::from(client6(n)))) } else { sources() };
    let load = http::Load {
        targets,
        connections: 8,
        keep_alive,
        bytes,
        warm_up: Duration::from_millis(50),
        window: Duration::from_millis(200),
    };
    topology.client().run_in(|| http::run(&load, &sources))?
}

/// Packets received and sent by an interface of the director.
fn packets(topology: &Topology, interface: &str) -> Result<(u64, u64)> {
    let read = |way: &str| -> Result<u64> {
        let path = format!("/sys/class/net/{interface}/statistics/{way}_packets");
        let number = topology.director().run_in(|| std::fs::read_to_string(&path))??;
        Ok(number.trim().parse()?)
    };
    Ok((read("rx")?, read("tx")?))
}

/// Receive and transmit queues of an interface of the calling thread's namespace.
fn queues(interface: &str) -> Result<(usize, usize)> {
    let (mut rx, mut tx) = (0, 0);
    for entry in std::fs::read_dir(format!("/sys/class/net/{interface}/queues"))? {
        match entry?.file_name().to_string_lossy().split('-').next() {
            Some("rx") => rx += 1,
            Some("tx") => tx += 1,
            _ => {}
        }
    }
    Ok((rx, tx))
}

/// RFC 1071, folded, not complemented: 0xffff over bytes that include a right checksum.
fn internet_sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

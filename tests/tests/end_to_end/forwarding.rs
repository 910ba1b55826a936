//! Traffic through the real binary: both modes, both backends, one worker on one queue and two on two.
//!
//! With two workers a NAT reply often comes in by the other worker's queue: on veth a frame's receive queue is its sender's
//! transmit queue, which the kernel picks by a hash of the flow, for each direction on its own.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::thread;

use anyhow::{Context, Result, ensure};
use shunt::api::Response;
use shunt_bench::director::Director;
use shunt_bench::topology::{CLIENTS, FRONT, Options, SERVERS, Topology, VIP, client, server};
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT, answer, long_answer};
use shunt_dataplane::port::ethtool::{Ethtool, Offload};

use crate::ground::{
    Backend, ask, connect, counter, echo, get_each, hear, permitted, say_to_all, serve, services, start,
    start_workers, status, told_that_it_is_closed, udp,
};

/// A way to forward.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nat,
    Dr,
}

/// HTTP requests, each with a connection of its own. A multiple of both schedulers' rounds. Sixteen and more flows
/// meet both queues but for one run in ten thousand.
const REQUESTS: usize = 40;

#[test]
fn nat_over_af_xdp_with_one_worker() -> Result<()> {
    forwards(nat_over_af_xdp_with_one_worker, Mode::Nat, Backend::AfXdp, 1)
}

#[test]
fn nat_over_af_xdp_with_two_workers() -> Result<()> {
    forwards(nat_over_af_xdp_with_two_workers, Mode::Nat, Backend::AfXdp, 2)
}

#[test]
fn nat_over_af_packet_with_one_worker() -> Result<()> {
    forwards(nat_over_af_packet_with_one_worker, Mode::Nat, Backend::AfPacket, 1)
}

#[test]
fn nat_over_af_packet_with_two_workers() -> Result<()> {
    forwards(nat_over_af_packet_with_two_workers, Mode::Nat, Backend::AfPacket, 2)
}

#[test]
fn dr_over_af_xdp_with_one_worker() -> Result<()> {
    forwards(dr_over_af_xdp_with_one_worker, Mode::Dr, Backend::AfXdp, 1)
}

#[test]
fn dr_over_af_xdp_with_two_workers() -> Result<()> {
    forwards(dr_over_af_xdp_with_two_workers, Mode::Dr, Backend::AfXdp, 2)
}

#[test]
fn dr_over_af_packet_with_one_worker() -> Result<()> {
    forwards(dr_over_af_packet_with_one_worker, Mode::Dr, Backend::AfPacket, 1)
}

#[test]
fn dr_over_af_packet_with_two_workers() -> Result<()> {
    forwards(dr_over_af_packet_with_two_workers, Mode::Dr, Backend::AfPacket, 2)
}

fn forwards(test: impl Fn() -> Result<()>, mode: Mode, backend: Backend, workers: usize) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options { queues: workers as u32 })?;
    let _servers = topology.start_servers()?;
    let Some(director) = start_workers(&topology, backend, workers)? else { return Ok(()) };
    let state = status(&topology)?;
    ensure!(state.cores.len() == workers, "{state:?}");
    ensure!(state.tables.len() == workers && state.tables.iter().all(|pages| pages.bytes() > 0), "{state:?}");
    ensure!(state.frames.bytes() > 0 && state.memory_in_use > state.in_huge_pages, "{state:?}");
    ensure!(state.interfaces.iter().all(|(_, way)| way.starts_with(backend.name())), "{state:?}");

    let how = if mode == Mode::Nat { "-m" } else { "-g" };
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, how, HTTP_PORT)?;
    let by_server = by_server(&get_each(&topology, http.into(), REQUESTS)?);
    // Each worker has a round robin of its own, which may be at the first server's turn or at the second's.
    let uneven = by_server[0].abs_diff(by_server[1]);
    ensure!(uneven < workers + 1, "rr gave the servers {by_server:?} requests");
    the_listings_agree(&director, by_server, mode)?;

    let weights = ["3", "1"];
    let service = http.to_string();
    director.ipvsadm(&["-E", "-t", &service, "-s", "wrr"])?;
    for (n, weight) in weights.iter().enumerate() {
        let server = format!("{}:{HTTP_PORT}", server(n));
        director.ipvsadm(&["-e", "-t", &service, "-r", &server, how, "-w", weight])?;
    }
    let answers = get_each(&topology, http.into(), REQUESTS)?;
    let weighted = self::by_server(&answers);
    let fair = REQUESTS * 3 / 4;
    ensure!(weighted[0].abs_diff(fair) <= 3 * (workers - 1), "wrr 3:1 gave {weighted:?}: {answers:?}");

    long_answers_arrive_whole(&topology, http.into())?;
    datagrams_come_back(&topology, &director, how)?;
    every_queue_took_part(&topology, mode, workers)?;
    director.stop()
}

#[test]
fn rr_takes_strict_turns_with_one_worker() -> Result<()> {
    if !permitted(rr_takes_strict_turns_with_one_worker)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    let answers = get_each(&topology, http.into(), 12)?;
    ensure!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
    director.stop()
}

#[test]
fn nat_maps_the_port_of_the_service_to_the_servers_own() -> Result<()> {
    if !permitted(nat_maps_the_port_of_the_service_to_the_servers_own)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let words = ["zero", "one"];
        for (n, word) in words.into_iter().enumerate() {
            say_to_all(&topology.servers()[n], (server(n), 8080).into(), word)?;
        }
        let director = start(&topology, backend, &[])?;
        let at = SocketAddrV4::new(VIP, 80);
        serve(&director, "-t", at, "-m", 8080)?;
        let heard: Vec<String> =
            topology.client().run_in(|| (0..6).map(|_| hear(at.into())).collect::<Result<_>>())??;
        ensure!(heard.iter().all(|word| words.contains(&word.as_str())), "{heard:?}");
        ensure!(heard.windows(2).all(|pair| pair[0] != pair[1]), "{heard:?}");
        let listing = director.ipvsadm(&["-L", "-n", "-c"])?;
        let mapped = format!("{}:8080", server(1));
        ensure!(
            listing.lines().filter(|l| l.contains("10.9.0.1:80 ") && l.contains(&mapped)).count() == 3,
            "{listing}"
        );
        director.stop()?;
    }
    Ok(())
}

/// 5,000 connections, from four threads and sixteen addresses, through two workers: none may fail, each is listed.
#[test]
fn none_of_many_short_connections_fails_and_all_are_listed() -> Result<()> {
    const THREADS: usize = 4;
    const EACH: usize = 1250;
    if !permitted(none_of_many_short_connections_fails_and_all_are_listed)? {
        return Ok(());
    }
    let backend = if Backend::AfXdp.works()? { Backend::AfXdp } else { Backend::AfPacket };
    let topology = Topology::new(Options { queues: 2 })?;
    let _servers = topology.start_servers()?;
    let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;

    let by_thread: Vec<Result<Vec<usize>>> = thread::scope(|scope| {
        let asking: Vec<_> =
            (0..THREADS).map(|_| scope.spawn(|| get_each(&topology, http.into(), EACH))).collect();
        asking.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    });
    let answers = by_thread.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let by_server = by_server(&answers);
    ensure!(by_server[0].abs_diff(by_server[1]) <= 2, "rr gave the servers {by_server:?}");

    the_listings_agree(&director, by_server, Mode::Nat)?;
    ensure!(counter(&topology, "conn.created")? == (THREADS * EACH) as u64);
    every_queue_took_part(&topology, Mode::Nat, 2)?;
    let inactive: Vec<u32> =
        services(&topology)?.iter().flat_map(|s| &s.servers).map(|s| s.inactive).collect();
    ensure!(inactive.iter().sum::<u32>() as usize == THREADS * EACH, "{inactive:?} are inactive");
    director.stop()
}

#[test]
fn checksums_left_to_the_hardware_are_finished() -> Result<()> {
    if !permitted(checksums_left_to_the_hardware_are_finished)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let _servers = topology.start_servers()?;
        // As on any machine that nobody has prepared. Segments stay as long as the wire takes.
        let [first, second] = topology.servers();
        for namespace in [topology.client(), first, second] {
            namespace.run_in(|| Ethtool::open(FRONT)?.set_offload(Offload::TxChecksum, true))??;
        }
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        let http = SocketAddrV4::new(VIP, HTTP_PORT);
        serve(&director, "-t", http, "-m", HTTP_PORT)?;
        get_each(&topology, http.into(), REQUESTS)
            .and_then(|_| long_answers_arrive_whole(&topology, http.into()))
            .and_then(|()| datagrams_come_back(&topology, &director, "-m"))
            .with_context(|| format!("NAT over {}", backend.name()))?;
        director.ipvsadm(&["-C"])?;
        serve(&director, "-t", http, "-g", HTTP_PORT)?;
        get_each(&topology, http.into(), REQUESTS).with_context(|| format!("DR over {}", backend.name()))?;
        director.stop()?;
    }
    Ok(())
}

/// A closed port behind NAT, from several sockets, so that the error comes in by either worker's queue.
#[test]
fn a_servers_icmp_errors_reach_the_client() -> Result<()> {
    const CLOSED: u16 = 5353;
    if !permitted(a_servers_icmp_errors_reach_the_client)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options { queues: 2 })?;
        let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
        // By default a Linux host sends one error a second to one receiver.
        for namespace in topology.servers() {
            namespace.set_variables(&[("ipv4/icmp_ratelimit", "0")])?;
        }
        let at = SocketAddrV4::new(VIP, CLOSED);
        serve(&director, "-u", at, "-m", CLOSED)?;
        for n in 0..12 {
            topology.client().run_in(|| told_that_it_is_closed(&udp(at.into())?))?.with_context(|| {
                let counters = status(&topology).map(|status| status.counters);
                format!("socket {n} over {}: {counters:?}", backend.name())
            })?;
        }
        director.stop()?;
    }
    Ok(())
}

#[test]
fn a_service_without_servers_refuses_at_once() -> Result<()> {
    if !permitted(a_service_without_servers_refuses_at_once)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    director.ipvsadm(&["-A", "-t", &http.to_string(), "-s", "rr"])?;
    let error = get_each(&topology, http.into(), 1).err().context("an answer from nobody")?;
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    ensure!(counter(&topology, "sched.no_server")? == 1);
    director.stop()
}

/// Forwarding is the director's work; the kernel need not be a router.
#[test]
fn nat_needs_no_ip_forward() -> Result<()> {
    if !permitted(nat_needs_no_ip_forward)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        let _servers = topology.start_servers()?;
        topology.director().set_variables(&[("ipv4/ip_forward", "0")])?;
        let director = start(&topology, backend, &[])?;
        let http = SocketAddrV4::new(VIP, HTTP_PORT);
        serve(&director, "-t", http, "-m", HTTP_PORT)?;
        get_each(&topology, http.into(), 4).with_context(|| format!("over {}", backend.name()))?;
        director.stop()?;
    }
    Ok(())
}

fn by_server(answers: &[usize]) -> [usize; SERVERS] {
    std::array::from_fn(|n| answers.iter().filter(|&&whose| whose == n).count())
}

/// `-Ln`, `-Ln --stats` and `-Lnc` tell of so many finished connections to each server.
fn the_listings_agree(director: &Director, by_server: [usize; SERVERS], mode: Mode) -> Result<()> {
    let total: usize = by_server.iter().sum();

    let connections = director.ipvsadm(&["-L", "-n", "-c"])?;
    let service = format!("{VIP}:{HTTP_PORT}");
    let listed: Vec<Vec<&str>> =
        connections.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
    ensure!(listed.len() == total, "{} of {total} connections are listed", listed.len());
    for line in &listed {
        ensure!(line.len() == 6 && line[0] == "TCP" && line[4] == service, "{line:?}");
        ensure!(line[3].parse::<SocketAddr>().is_ok_and(|client| is_client(client.ip())), "{line:?}");
    }

    let plain = director.ipvsadm(&["-L", "-n"])?;
    let stats = director.ipvsadm(&["-L", "-n", "--stats", "--exact"])?;
    let whole = stats_of(&stats, &format!("TCP  {service}"))?;
    let mut sum = [0; 5];
    for (n, &count) in by_server.iter().enumerate() {
        let address = format!("{}:{HTTP_PORT}", server(n));
        let to_it = listed.iter().filter(|line| line[5] == address).count();
        ensure!(to_it == count, "{to_it} connections to {address} are listed, {count} were made");

        let line = line_of(&plain, &format!("-> {address}"))?;
        let columns: Vec<&str> = line.split_whitespace().collect();
        ensure!(columns[2] == if mode == Mode::Nat { "Masq" } else { "Route" }, "{line}");
        let (active, inactive): (usize, usize) = (columns[4].parse()?, columns[5].parse()?);
        ensure!(active + inactive == to_it, "{line}, but {to_it} connections are listed");

        let [conns, in_packets, out_packets, in_bytes, out_bytes] =
            stats_of(&stats, &format!("-> {address}"))?;
        let count = count as u64;
        ensure!(conns == count, "{stats}");
        // SYN, ACK, request, FIN and perhaps an ACK or two; SYN-ACK, answer, FIN and ACKs.
        ensure!((4 * count..=12 * count).contains(&in_packets), "{stats}");
        ensure!(in_bytes >= 40 * in_packets + 50 * count && in_bytes < 200 * in_packets, "{stats}");
        match mode {
            Mode::Nat => {
                ensure!((3 * count..=12 * count).contains(&out_packets), "{stats}");
                ensure!(out_bytes >= 40 * out_packets + count * answer(n).len() as u64, "{stats}");
            }
            // Replies pass the director by.
            Mode::Dr => ensure!(out_packets == 0 && out_bytes == 0, "{stats}"),
        }
        for (sum, part) in sum.iter_mut().zip([conns, in_packets, out_packets, in_bytes, out_bytes]) {
            *sum += part;
        }
    }
    ensure!(sum == whole, "the service's counters are not the sum of its servers': {stats}");
    Ok(())
}

fn is_client(address: IpAddr) -> bool {
    (0..CLIENTS).any(|n| address == IpAddr::from(client(n)))
}

fn line_of<'t>(listing: &'t str, begin: &str) -> Result<&'t str> {
    let line = listing.lines().map(str::trim).find(|line| line.starts_with(begin));
    line.with_context(|| format!("no line begins with {begin:?} in\n{listing}"))
}

/// The five numbers at the end of a line of `--stats --exact`.
fn stats_of(listing: &str, begin: &str) -> Result<[u64; 5]> {
    let line = line_of(listing, begin)?;
    let numbers: Vec<u64> = line[begin.len()..].split_whitespace().flat_map(str::parse).collect();
    numbers.try_into().ok().with_context(|| format!("not five numbers: {line}"))
}

/// Segments of full size, and enough of them that queues and windows matter.
pub fn long_answers_arrive_whole(topology: &Topology, target: SocketAddr) -> Result<()> {
    use std::io::{Read, Write};
    const LENGTH: usize = 400_000;
    let said = topology.client().run_in(|| -> Result<Vec<u8>> {
        let mut stream = connect(target)?;
        write!(stream, "GET /bytes/{LENGTH} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).context("reading a long answer")?;
        Ok(said)
    })??;
    ensure!((0..SERVERS).any(|n| long_answer(n, LENGTH) == said), "a wrong answer of {} bytes", said.len());
    Ok(())
}

/// UDP echo from several sockets: one datagram each way at a time, none may be lost.
fn datagrams_come_back(topology: &Topology, director: &Director, how: &str) -> Result<()> {
    const SOCKETS: usize = 16;
    const EACH: usize = 5;
    let at = SocketAddrV4::new(VIP, ECHO_PORT);
    serve(director, "-u", at, how, ECHO_PORT)?;
    topology.client().run_in(|| -> Result<()> {
        let sockets = (0..SOCKETS).map(|_| udp(at.into())).collect::<Result<Vec<_>>>()?;
        for n in 0..EACH {
            for (which, socket) in sockets.iter().enumerate() {
                // An odd and an even length, the longest that fits an Ethernet frame among them.
                let length = [1, 2, 333, 1472][n.min(3)];
                echo(socket, &vec![which as u8; length])
                    .with_context(|| format!("datagram {n} of socket {which}"))?;
            }
        }
        Ok(())
    })??;
    let listing = director.ipvsadm(&["-L", "-n", "-c"])?;
    let listed = listing.lines().filter(|line| line.starts_with("UDP")).count();
    ensure!(listed == SOCKETS, "{listed} of {SOCKETS} UDP connections are listed:\n{listing}");
    let stats = director.ipvsadm(&["-L", "-n", "--stats", "--exact"])?;
    let [conns, in_packets, out_packets, ..] = stats_of(&stats, &format!("UDP  {at}"))?;
    let sent = (SOCKETS * EACH) as u64;
    ensure!(conns == SOCKETS as u64 && in_packets == sent, "{stats}");
    ensure!(out_packets == if how == "-m" { sent } else { 0 }, "{stats}");
    Ok(())
}

/// With two workers and NAT, replies came in by the wrong queue and were handed to their owners; and nothing was lost.
fn every_queue_took_part(topology: &Topology, mode: Mode, workers: usize) -> Result<()> {
    let state = status(topology)?;
    let handed = counter(topology, "frames.handed_off")?;
    if workers == 1 {
        ensure!(handed == 0, "one worker handed frames off: {state:?}");
    } else if mode == Mode::Nat {
        ensure!(handed > 0, "no reply came in by the other worker's queue: {state:?}");
    }
    let lost = state.counters.iter().filter(|(name, _)| name.starts_with("drop."));
    let lost: Vec<_> = lost.collect();
    ensure!(lost.is_empty(), "frames were dropped: {lost:?}");
    ensure!(matches!(ask(topology, &shunt::api::Request::Status)?.last(), Some(Response::Status(_))));
    Ok(())
}

//! Local ports: each worker's share, one after the other, and what happens when there are none left.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::{Tuple, V4};
use shunt_dataplane::service::spread::Ends;
use shunt_dataplane::service::{Spread, WorkerId};
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS};
use shunt_tests::frames::{C0, S0, client_mac, sctp, server_mac, udp};
use shunt_tests::layers::Layers;
use shunt_tests::rig::Rig;
use shunt_tests::segment::{Pair, Segment};

/// Workers among which the ports are shared out, so that a test need not open 64,512 connections.
const WORKERS: usize = 64;

/// Local ports there are: from 1024 on, as many for each worker.
const SHARE: usize = (65536 - 1024) / WORKERS;

fn pair(worker: u8, is_v4: bool) -> Pair {
    Pair::between(Bench::of_worker(worker, WORKERS), is_v4, is_v4, "--toa disable")
}

/// The SYN of the client's `n`th connection.
fn syn(pair: &mut Pair, n: usize) -> Segment {
    pair.client.set_port(1000 + n as u16);
    pair.request("S", 100, 0)
}

/// Opens the client's `n`th connection. Gives the director's own end of it.
fn open(pair: &mut Pair, n: usize) -> SocketAddr {
    let syn = syn(pair, n);
    pair.local = None;
    assert_eq!(pair.to_server(&syn).len(), 1, "connection {n}");
    pair.local.expect("a segment has left")
}

/// Both ends close connection `n`, the client first.
fn close(pair: &mut Pair, n: usize, local: SocketAddr) {
    pair.client.set_port(1000 + n as u16);
    pair.local = Some(local);
    let (answer, fin) = (pair.reply("SA", 5000, 101), pair.request("FA", 101, 5001));
    let (theirs, last) = (pair.reply("FA", 5001, 102), pair.request("A", 102, 5002));
    pair.to_client(&answer);
    pair.to_server(&fin);
    pair.to_client(&theirs);
    pair.to_server(&last);
    let client = pair.client.to_string();
    let state = pair.bench.connections().into_iter().find(|c| c.3 == client).expect("it is listed").2;
    assert_eq!(state, "TIME_WAIT");
}

#[test]
fn a_pool_used_up_resets_tcp_clients_at_once_and_is_listed() {
    for is_v4 in [true, false] {
        let mut pair = pair(63, is_v4);
        let ports: HashSet<_> = (0..SHARE).map(|n| open(&mut pair, n).port()).collect();
        assert_eq!(ports.len(), SHARE);
        assert!(ports.iter().all(|port| *port >= 1024 && usize::from(port - 1024) % WORKERS == 63));

        for n in [SHARE, SHARE + 1] {
            let syn = syn(&mut pair, n);
            let outcome = pair.bench.frame(CLIENTS, &syn.frame());
            assert_eq!(outcome.verdict, Verdict::Reply(CLIENTS));
            let reset = Segment::read(&outcome.sent[0].1);
            assert_eq!((reset.from, reset.to, reset.flags), (pair.service, pair.client, 0x14));
            assert_eq!(reset.acknowledges, 101);
        }
        assert_eq!(pair.bench.counter("drop.no_local_port"), 2);
        assert_eq!(pair.bench.connections().len(), SHARE);
        let listing = pair.ipvsadm("-G -n");
        let row: Vec<&str> = listing.lines().last().expect("a row").split_whitespace().collect();
        let local = pair.local.expect("connections").ip().to_string();
        assert_eq!(row, [&local, "2", &SHARE.to_string()]);
    }
}

/// A datagram of the client's from this port.
fn datagram(pair: &Pair, port: u16) -> Vec<u8> {
    let mut frame =
        Segment { from: SocketAddr::new(pair.client.ip(), port), ..pair.request("", 0, 0) }.frame();
    let transport = Layers::of(&frame).transport;
    let protocol_at = if pair.client.is_ipv4() { 23 } else { 20 };
    frame[protocol_at] = 17;
    frame[transport + 4..transport + 8].copy_from_slice(&[0, 20, 0, 0]);
    Layers::of(&frame).mend(&mut frame);
    frame
}

#[test]
fn a_pool_used_up_tells_udp_clients_that_nobody_is_there() {
    for is_v4 in [true, false] {
        let mut pair = pair(0, is_v4);
        let (service, server) = (pair.service, pair.server);
        let local = open(&mut pair, 0).ip();
        pair.ipvsadm(&format!("-A -u {service} -s rr"));
        pair.ipvsadm(&format!("-a -u {service} -r {server} --fullnat"));
        pair.ipvsadm(&format!("-P -u {service} -z {local}"));
        for n in 0..SHARE as u16 {
            let datagram = datagram(&pair, 2000 + n);
            assert_eq!(pair.bench.frame(CLIENTS, &datagram).verdict, Verdict::Forward(SERVERS), "{n}");
        }
        let datagram = datagram(&pair, 9000);
        told_that_nobody_is_there(&mut pair, &datagram);
        // Another protocol has ports of its own.
        open(&mut pair, 1);
    }
}

#[test]
fn a_pool_used_up_tells_sctp_clients_the_same() {
    let mut pair = pair(0, true);
    let (SocketAddr::V4(service), server) = (pair.service, pair.server) else { panic!("IPv4") };
    pair.ipvsadm(&format!("-A --sctp-service {service} -s rr"));
    pair.ipvsadm(&format!("-a --sctp-service {service} -r {server} --fullnat"));
    pair.ipvsadm(&format!("-P --sctp-service {service} -z 10.1.0.2"));
    let init = |port| {
        let client = [10, 0, 0, 2].into();
        let init = [0, 0, 0, 9, 0, 0, 32, 0, 0, 1, 0, 1, 0, 0, 0, 1];
        sctp((client_mac(client), C0), (client, port), (*service.ip(), 80), &[(1, &init)])
    };
    for n in 0..SHARE as u16 {
        assert_eq!(pair.bench.frame(CLIENTS, &init(2000 + n)).verdict, Verdict::Forward(SERVERS), "{n}");
    }
    told_that_nobody_is_there(&mut pair, &init(9000));
}

/// An ICMP error from the service that quotes the packet: its port is unreachable.
fn told_that_nobody_is_there(pair: &mut Pair, packet: &[u8]) {
    let before = pair.bench.counter("drop.no_local_port");
    let outcome = pair.bench.frame(CLIENTS, packet);
    assert_eq!(outcome.verdict, Verdict::Reply(CLIENTS));
    let told = &outcome.sent[0].1;
    let layers = Layers::of(told);
    assert!(layers.header_is_right(told) && layers.residue(told) == 0);
    assert_eq!(layers.source(told).0, pair.service.ip());
    let (kind, message) = (if pair.client.is_ipv4() { [3, 3] } else { [1, 4] }, &told[layers.transport..]);
    assert_eq!((&message[..2], &message[8..]), (&kind[..], &packet[14..]));
    assert_eq!(pair.bench.counter("drop.no_local_port"), before + 1);

    // Not without measure: as with any error, six at once.
    let verdicts: Vec<_> = (0..6).map(|_| pair.bench.frame(CLIENTS, packet).verdict).collect();
    assert_eq!(verdicts[5], Verdict::Drop(Reason::RateLimited));
}

#[test]
fn a_port_comes_back_when_its_connections_wait_is_over() {
    let mut pair = pair(5, true);
    let locals: Vec<_> = (0..SHARE).map(|n| open(&mut pair, n)).collect();
    close(&mut pair, 700, locals[700]);
    pair.bench.wait(Duration::from_secs(1));
    close(&mut pair, 3, locals[3]);

    // TIME_WAIT takes two minutes; the half-open ones beside them are over after one.
    let refused = |pair: &mut Pair| {
        let syn = syn(pair, SHARE);
        matches!(pair.bench.frame(CLIENTS, &syn.frame()).verdict, Verdict::Reply(_))
    };
    assert!(refused(&mut pair));
    pair.bench.wait(Duration::from_millis(58_900));
    assert!(refused(&mut pair));
    pair.bench.wait(Duration::from_secs(10));
    assert_eq!(pair.bench.connections().len(), 2);
    // Those that waited in vain came back first: the two that wait are not among so many.
    let again: HashSet<_> = (0..SHARE - 2).map(|n| open(&mut pair, 2000 + n)).collect();
    assert!(!again.contains(&locals[700]) && !again.contains(&locals[3]) && again.len() == SHARE - 2);
    assert!(refused(&mut pair));
    pair.bench.wait(Duration::from_millis(49_900));
    assert_eq!(pair.bench.connections().iter().filter(|c| c.2 == "TIME_WAIT").count(), 2);
    pair.bench.wait(Duration::from_secs(3));
    // The first over is the first used again, as far as none of the others is.
    let order: Vec<_> = (0..2).map(|n| open(&mut pair, 4000 + n)).collect();
    assert_eq!(order, [locals[700], locals[3]]);
}

/// A client that uses its own port again while its last connection is in TIME_WAIT: to the server it is another client.
#[test]
fn a_port_waits_also_when_its_connection_was_replaced() {
    let mut pair = pair(1, true);
    let mut seen = Vec::new();
    for n in 0..SHARE {
        let local = open(&mut pair, 0);
        assert!(!seen.contains(&local), "{local} again after {n} connections");
        seen.push(local);
        close(&mut pair, 0, local);
    }
    assert_eq!(pair.bench.connections().len(), 1);
    let again = syn(&mut pair, 0);
    assert!(matches!(pair.bench.frame(CLIENTS, &again.frame()).verdict, Verdict::Reply(_)));
    pair.bench.wait(Duration::from_secs(122));
    assert_eq!([open(&mut pair, 0), open(&mut pair, 1)], seen[..2]);
}

#[test]
fn workers_have_ports_of_their_own() {
    let mut seen = HashSet::new();
    for worker in [0, 1, 2, 63] {
        let mut pair = pair(worker, true);
        for n in 0..SHARE {
            assert!(seen.insert(open(&mut pair, n)), "worker {worker}, connection {n}");
        }
    }
}

/// Two services on one real server share its ports, or their replies could not be told apart.
#[test]
fn services_on_one_server_share_its_ports() {
    let mut pair = pair(2, true);
    let (service, server) = (pair.service, pair.server);
    let other = SocketAddr::new(service.ip(), 81);
    pair.ipvsadm(&format!("-A -t {other} -s rr --toa disable"));
    pair.ipvsadm(&format!("-a -t {other} -r {server} --fullnat"));
    pair.ipvsadm(&format!("-P -t {other} -z 10.1.0.2"));
    let mut seen = HashSet::new();
    for n in 0..SHARE {
        pair.service = if n % 2 == 0 { service } else { other };
        assert!(seen.insert(open(&mut pair, n)));
    }
    for service in [service, other] {
        pair.service = service;
        let syn = syn(&mut pair, SHARE);
        assert!(matches!(pair.bench.frame(CLIENTS, &syn.frame()).verdict, Verdict::Reply(_)));
    }
    let conns: Vec<String> = pair
        .ipvsadm("-G -n")
        .lines()
        .filter(|line| line.starts_with(' '))
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(conns, [format!("1 {}", SHARE.div_ceil(2)), format!("1 {}", SHARE / 2)]);
}

/// The real server is reached at the port that the client chose.
#[test]
fn a_service_of_all_ports_gives_its_ports_back() {
    let for_all = |worker| {
        let mut pair = pair(worker, true);
        let [all, server] = [pair.service, pair.server].map(|end| SocketAddr::new(end.ip(), 0));
        pair.ipvsadm(&format!("-A -t {all} -s rr -p 60 --toa disable"));
        pair.ipvsadm(&format!("-a -t {all} -r {server} --fullnat"));
        pair.ipvsadm(&format!("-P -t {all} -z 10.1.0.2"));
        pair.service.set_port(443);
        pair
    };
    // A client's template belongs to one of the workers.
    let mut pair = for_all(3);
    let first = syn(&mut pair, 0);
    if let Verdict::HandOff(owner, _) = pair.bench.frame(CLIENTS, &first.frame()).verdict {
        pair = for_all(owner.0);
    }
    for port in [443, 8080, 443] {
        pair.service.set_port(port);
        pair.server.set_port(port);
        for n in 0..SHARE {
            open(&mut pair, n);
        }
        // The template of the client outlives its connections.
        pair.bench.wait(Duration::from_secs(130));
        assert_eq!(pair.bench.connections(), []);
    }
    assert_eq!(pair.bench.counter("drop.no_local_port"), 0);
}

#[test]
fn a_connection_without_a_local_address_is_told_so_too() {
    let mut pair = Pair::new(true, "");
    let service = pair.service;
    pair.ipvsadm(&format!("-Q -t {service} -z 10.1.0.2"));
    let syn = pair.request("S", 100, 0);
    assert!(matches!(pair.bench.frame(CLIENTS, &syn.frame()).verdict, Verdict::Reply(_)));
    assert_eq!(pair.bench.counter("drop.no_local_port"), 1);
}

/// How NICs deal out to two workers, by a key made of this number.
fn spread(seed: u8) -> Spread {
    let key = (0..40u8).map(|n| n.wrapping_mul(37).wrapping_add(seed)).collect();
    Spread::new(key, (0..128).map(|place| WorkerId(place % 2)).collect(), true).expect("a good one")
}

#[test]
fn when_nics_deal_otherwise_replies_find_older_connections_and_new_ones_are_not_handed_over() {
    let mut rig = Rig::new(2);
    rig.set_spread(spread(1));
    rig.ipvsadm("-A -u 10.9.0.1:80 -s rr");
    rig.ipvsadm("-a -u 10.9.0.1:80 -r 10.1.0.11:80 --fullnat");
    rig.ipvsadm("-P -u 10.9.0.1:80 -z 10.1.0.2");
    let client = [10, 0, 0, 2].into();
    let mut tuples: Vec<Tuple<V4>> = Vec::new();
    for (round, spread) in [spread(1), spread(90), spread(1), spread(7)].into_iter().enumerate() {
        rig.set_spread(spread.clone());
        for n in 0..200u16 {
            let from = (client, 2000 + 200 * round as u16 + n);
            let frame = udp((client_mac(client), C0), from, ([10, 9, 0, 1].into(), 80));
            assert_eq!(rig.deliver(usize::from(n % 2), CLIENTS, &frame).verdict, Verdict::Forward(SERVERS));
        }
        let conns: Vec<_> = rig.connections().collect();
        assert_eq!(conns.len(), 200 * (round + 1));
        tuples = conns.iter().filter_map(|(_, conn)| conn.reply()).collect();
        assert_eq!(
            tuples.iter().map(|tuple| tuple.destination_port).collect::<HashSet<_>>().len(),
            conns.len()
        );

        let mut handed = 0;
        for (owner, conn) in conns {
            let (server, local) = (conn.server.into(), conn.local.into());
            let ends = Ends { source: (server, 80), destination: (local, conn.local_port) };
            let comes_to = spread.worker(&ends);
            handed += usize::from(comes_to != owner);
            assert!(comes_to == owner || usize::from(conn.client_port) < 2000 + 200 * round);
            let from = [10, 1, 0, 11].into();
            let reply = udp((server_mac(from), S0), (from, 80), ([10, 1, 0, 2].into(), conn.local_port));
            let went = rig.deliver(comes_to.0.into(), SERVERS, &reply);
            assert_eq!((went.verdict, went.worker), (Verdict::Forward(CLIENTS), owner));
        }
        assert_eq!(handed > 0, round > 0);
    }
    rig.wait(Duration::from_secs(301));
    assert_eq!(rig.connections().count(), 0);
    assert!(tuples.iter().all(|tuple| rig.owner(tuple).is_none()), "left in the directory");
}

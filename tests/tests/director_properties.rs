//! What holds for every frame, every edit and every order of events.
//!
//! The checks themselves are in [`shunt_tests::harness`], which the fuzzers share; here are the generators, and the
//! properties that need a model of their own.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::protocol::{TCP, UDP};
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, server_mac};
use shunt_tests::harness::{Play, macs_from};
use shunt_tests::ops::{Edit, Hex, Op, SERVICES, Shape, client};
use shunt_tests::oracle::{Packet, Rewrite, forwarded};
use shunt_tests::rig::{Rig, macs_to};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn shapes() -> impl Strategy<Value = Shape> {
    let flags =
        prop_oneof![4 => Just(SYN), 4 => Just(ACK), 1 => Just(0x11), 1 => Just(0x04), 1 => any::<u8>()];
    let ttl = prop_oneof![8 => Just(64), 1 => 0u8..3, 1 => any::<u8>()];
    let quirks = prop_oneof![4 => Just(4u8), 1 => any::<u8>()];
    (flags, ttl, 0u8..200, any::<u8>(), quirks).prop_map(|(flags, ttl, length, wrapping, quirks)| Shape {
        flags,
        ttl,
        length,
        wrapping,
        quirks,
    })
}

fn edits() -> impl Strategy<Value = Edit> {
    (0u8..12, 0u8..16, 0u8..11, any::<u8>(), any::<u8>()).prop_map(
        |(kind, service, server, weight, limit)| {
            // A limit in one of four: with more, hardly anything is ever scheduled.
            let limit = if limit < 192 { 0 } else { limit };
            match kind {
                0 => Edit::AddService { service },
                1..=3 => Edit::AddServer { service, server, weight, limit },
                4..=6 => Edit::EditServer { service, server, weight, limit },
                7..=8 => Edit::DeleteServer { service, server },
                9 => Edit::Schedule { service, weighted: weight & 1 == 0 },
                10 => Edit::DeleteService { service },
                _ => Edit::Timeouts { tcp: weight, fin: limit, udp: server },
            }
        },
    )
}

/// A frame that makes sense, with a few bytes changed; `mend` makes the IP checksum right again.
fn mutants() -> impl Strategy<Value = Op> {
    let changes = prop::collection::vec((0usize..80, any::<u8>()), 0..4);
    let made = (any::<u8>(), 0..SERVICES.len() as u8, any::<bool>(), shapes());
    (0u8..4, any::<bool>(), made, changes, 0usize..40).prop_map(|(worker, mend, made, changes, cut)| {
        let (number, service, toward_server, shape) = made;
        let (protocol, vip, port, server_port, _) = SERVICES[usize::from(service)];
        let from = client(number);
        let server = (Ipv4Addr::new(10, 1, 0, 11 + number % 2), server_port);
        let (side, from, to) =
            if toward_server { (CLIENTS, from, (vip, port)) } else { (SERVERS, server, from) };
        let mut bytes = shape.frame(macs_from(from.0, side), from, to, protocol.number());
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        // Most frames stay whole.
        bytes.truncate(bytes.len() - cut.saturating_sub(30).min(bytes.len()));
        Op::Raw { worker, side: side.0, mend, bytes: Hex(bytes) }
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let raw = (0u8..4, 0u8..2, any::<bool>(), prop::collection::vec(any::<u8>(), 0..120))
        .prop_map(|(worker, side, mend, bytes)| Op::Raw { worker, side, mend, bytes: Hex(bytes) });
    let request = (0u8..4, any::<u8>(), 0..SERVICES.len() as u8, shapes())
        .prop_map(|(worker, client, service, shape)| Op::Request { worker, client, service, shape });
    let reply =
        (0u8..4, any::<u8>(), shapes()).prop_map(|(worker, conn, shape)| Op::Reply { worker, conn, shape });
    let kinds = prop::sample::select(vec![3u8, 4, 11, 12]);
    let error = (0u8..4, any::<u8>(), any::<bool>(), kinds, any::<u8>()).prop_map(
        |(worker, conn, about_reply, kind, quoted)| Op::Error { worker, conn, about_reply, kind, quoted },
    );
    prop_oneof![
        1 => raw,
        4 => mutants(),
        8 => request,
        4 => reply,
        3 => error,
        4 => edits().prop_map(Op::Edit),
        1 => any::<u8>().prop_map(Op::Mtu),
        2 => prop_oneof![0u16..100, 0u16..2000].prop_map(Op::Wait),
    ]
}

/// A service by its protocol, forwarding and port mapping, with servers 11, 12 and 13.
fn service(rig: &mut Rig, udp: bool, mode: usize, scheduler: &str) -> (u8, u16) {
    let letter = if udp { "-u" } else { "-t" };
    rig.ipvsadm(&format!("-A {letter} 10.9.0.1:80 -s {scheduler}"));
    let (port, method) = [(80, "-m"), (8080, "-m"), (80, "-g")][mode];
    for server in 11..=13 {
        rig.ipvsadm(&format!("-a {letter} 10.9.0.1:80 -r 10.1.0.{server}:{port} {method}"));
    }
    (if udp { UDP } else { TCP }, port)
}

/// The server that a forwarded frame went to, by its Ethernet address.
fn server_of(verdict: Verdict, bytes: &[u8]) -> Option<u8> {
    (verdict == Verdict::Forward(SERVERS)).then(|| bytes[5])
}

proptest! {
    /// Everything at once: the harness checks each frame, and all tables after each step.
    #[test]
    fn whatever_happens_frames_tables_and_counters_are_right(
        workers in 1usize..4, ops in prop::collection::vec(ops(), 1..80),
    ) {
        let mut play = Play::new(workers);
        for op in &ops {
            play.step(op);
        }
        play.end();
    }

    /// The client sees what a server at the virtual address would have sent, one hop further away; the server sees what
    /// the client sent, to itself.
    #[test]
    fn nat_there_and_back_is_the_identity_for_the_client(
        udp: bool, mapped: bool, number: u8, there in shapes(), back in shapes(),
    ) {
        // What is refused is not translated, and a length above the MTU is.
        let sane = |shape: Shape, flags| Shape { ttl: shape.ttl.max(2), flags, length: shape.length.min(170), ..shape };
        let (there, back) = (sane(there, SYN), sane(back, SYN | ACK));
        let mut rig = Rig::new(1);
        let (protocol, port) = service(&mut rig, udp, usize::from(mapped), "rr");
        let (from, vip) = (client(number), (VIP, 80));

        let request = there.frame(macs_from(from.0, CLIENTS), from, vip, protocol);
        let went = rig.deliver(0, CLIENTS, &request);
        let server = Ipv4Addr::new(10, 1, 0, server_of(went.verdict, &went.bytes).expect("it is forwarded"));
        forwarded(&request, &went.bytes, Rewrite::destination(server, port)).map_err(TestCaseError::fail)?;

        let reply = back.frame((server_mac(server), S0), (server, port), from, protocol);
        let came = rig.deliver(0, SERVERS, &reply);
        prop_assert_eq!(came.verdict, Verdict::Forward(CLIENTS));
        // Byte for byte, but that one: a datagram without a checksum gets one on its way.
        let padding = 0b111 & back.quirks;
        let plain = Shape { wrapping: back.wrapping & !3, quirks: padding & !2, ttl: back.ttl - 1, ..back };
        if !(udp && back.quirks & 3 == 3) {
            let mut direct = plain.frame((C0, client_mac(from.0)), vip, from, protocol);
            direct[..12].copy_from_slice(&macs_to(from.0));
            if plain.quirks & 1 == 0 {
                prop_assert_eq!(&came.bytes, &direct);
            }
        }
        forwarded(&reply, &came.bytes, Rewrite::source(VIP, 80)).map_err(TestCaseError::fail)?;
    }

    /// Flows against a map: whatever is done to other servers, and to its own server's weight, a flow stays where it is.
    #[test]
    fn a_flow_never_changes_its_server(
        udp: bool, mode in 0usize..3, workers in 1usize..4, weighted: bool,
        events in prop::collection::vec((0u8..8, any::<u8>(), 0u8..4, 0u8..3), 1..120),
    ) {
        let mut rig = Rig::new(workers);
        let scheduler = if weighted { "wrr" } else { "rr" };
        let (protocol, port) = service(&mut rig, udp, mode, scheduler);
        let (letter, method) = (if udp { "-u" } else { "-t" }, if mode == 2 { "-g" } else { "-m" });
        let mut model: HashMap<u8, u8> = HashMap::new();
        // Server 13 stays, so that there is always somebody; 11 and 12 come and go.
        let mut weights = BTreeMap::from([(11u8, 1u8), (12, 1), (13, 1)]);
        for (event, number, worker, choice) in events {
            let worker = usize::from(worker) % workers;
            let from = client(number);
            match event {
                0 | 1 => {
                    let server = 11 + choice % 2;
                    let line = format!("{letter} 10.9.0.1:80 -r 10.1.0.{server}:{port}");
                    match weights.get(&server) {
                        Some(_) if event == 0 => {
                            weights.remove(&server);
                            rig.ipvsadm(&format!("-d {line}"));
                        }
                        known => {
                            let verb = if known.is_some() { "-e" } else { "-a" };
                            rig.ipvsadm(&format!("{verb} {line} {method} -w {choice}"));
                            weights.insert(server, choice);
                        }
                    }
                }
                2 if mode < 2 => {
                    // A reply of whatever server the flow is on, to whatever worker.
                    let Some(server) = model.get(&number) else { continue };
                    let server = Ipv4Addr::new(10, 1, 0, *server);
                    let frame = Shape::flags(SYN | ACK).frame((server_mac(server), S0), (server, port), from, protocol);
                    let came = rig.deliver(worker, SERVERS, &frame);
                    prop_assert_eq!(came.verdict, Verdict::Forward(CLIENTS), "also from a removed server");
                    forwarded(&frame, &came.bytes, Rewrite::source(VIP, 80)).map_err(TestCaseError::fail)?;
                }
                3 => rig.wait(Duration::from_secs(1)),
                _ => {
                    // A SYN begins a flow, and may be sent again.
                    let flags = if model.contains_key(&number) && event != 4 { ACK } else { SYN };
                    let frame = Shape::flags(flags).frame(macs_from(from.0, CLIENTS), from, (VIP, 80), protocol);
                    let went = rig.deliver(worker, CLIENTS, &frame);
                    let known = model.get(&number).copied();
                    if let Some(gone) = known.filter(|server| !weights.contains_key(server)) {
                        prop_assert_eq!(went.verdict, Verdict::Drop(Reason::NoDest), "{} is gone", gone);
                        continue;
                    }
                    let server = server_of(went.verdict, &went.bytes);
                    prop_assert!(server.is_some(), "{:?}", went.verdict);
                    let server = server.expect("just seen");
                    if known.is_none() {
                        prop_assert!(weights[&server] > 0, "{} has weight 0", server);
                    }
                    prop_assert_eq!(known.unwrap_or(server), server);
                    model.insert(number, server);
                }
            }
        }
        prop_assert_eq!(rig.connections().count(), model.len());
        for (_, conn) in rig.connections() {
            let on = rig.connections().filter(|(_, other)| other.request() == conn.request()).count();
            prop_assert_eq!(on, 1, "a flow with two connections");
        }
    }

    /// A burst is as good as its frames one by one.
    #[test]
    fn a_burst_is_its_frames_in_order(
        frames in prop::collection::vec((any::<u8>(), 0u8..8, shapes()), 1..40),
    ) {
        let frames: Vec<Vec<u8>> = frames
            .into_iter()
            .map(|(number, service, shape)| {
                let (protocol, vip, port, ..) = SERVICES[usize::from(service)];
                let from = client(number);
                shape.frame(macs_from(from.0, CLIENTS), from, (vip, port), protocol.number())
            })
            .collect();
        let (mut together, mut alone) = (Play::new(1), Play::new(1));
        let at_once = together.rig.burst(&frames);
        for (frame, (verdict, bytes)) in frames.iter().zip(at_once) {
            let one = alone.rig.deliver(0, CLIENTS, frame);
            prop_assert_eq!((one.verdict, one.bytes), (verdict, bytes));
        }
    }

    /// What each worker chooses is a run of what one worker alone would choose, so that with `rr` no server is off by more
    /// than a connection a worker.
    #[test]
    fn round_robin_stays_fair_over_workers(
        workers in 1usize..9, servers in 1usize..8, places in prop::collection::vec(any::<usize>(), 1..200),
    ) {
        let spread = |workers: usize| -> Vec<i64> {
            let mut rig = Rig::new(workers);
            rig.ipvsadm("-A -u 10.9.0.1:80 -s rr");
            (0..servers).for_each(|n| rig.ipvsadm(&format!("-a -u 10.9.0.1:80 -r 10.1.0.{}:80 -m", 11 + n)));
            let mut counts = vec![0; servers];
            for (n, place) in places.iter().enumerate() {
                let from = (client(0).0, 2000 + n as u16);
                let frame = Shape::default().frame(macs_from(from.0, CLIENTS), from, (VIP, 80), UDP);
                let went = rig.deliver(place % workers, CLIENTS, &frame);
                counts[usize::from(server_of(went.verdict, &went.bytes).expect("forwarded")) - 11] += 1;
            }
            counts
        };
        for (one, many) in spread(1).into_iter().zip(spread(workers)) {
            prop_assert!((one - many).abs() <= workers as i64, "{one} with one worker, {many} with {workers}");
        }
    }

    /// With `wrr` each worker's choices are a run of the one worker's cycle: whole cycles are exact, and what is left over
    /// is off by no more than the cycle itself is within any run as long.
    #[test]
    fn weighted_round_robin_is_the_same_cycle_on_every_worker(
        workers in 1usize..6, weights in prop::collection::vec(1u32..6, 1..6), count in 1usize..60,
    ) {
        let choices = |rig: &mut Rig, worker: usize, first: usize, count: usize| -> Vec<u8> {
            (first..first + count)
                .map(|n| {
                    let from = (client(0).0, 2000 + n as u16);
                    let frame = Shape::default().frame(macs_from(from.0, CLIENTS), from, (VIP, 80), UDP);
                    let went = rig.deliver(worker, CLIENTS, &frame);
                    server_of(went.verdict, &went.bytes).expect("forwarded")
                })
                .collect()
        };
        let rig = |workers| {
            let mut rig = Rig::new(workers);
            rig.ipvsadm("-A -u 10.9.0.1:80 -s wrr");
            for (n, weight) in weights.iter().enumerate() {
                rig.ipvsadm(&format!("-a -u 10.9.0.1:80 -r 10.1.0.{}:80 -m -w {weight}", 11 + n));
            }
            rig
        };
        let alone = choices(&mut rig(1), 0, 0, count + workers);
        let mut many = rig(workers);
        for worker in 0..workers {
            let run = choices(&mut many, worker, worker * count, count);
            prop_assert_eq!(&run[..], &alone[worker..worker + count], "worker {}", worker);
        }
    }
}

/// A removed server's connections wait for it; added again, they go on; a new service elsewhere does not touch them.
#[test]
fn a_removed_server_that_comes_back_has_its_connections_again() {
    for mode in 0..3 {
        let mut rig = Rig::new(2);
        let (_, port) = service(&mut rig, false, mode, "rr");
        let method = if mode == 2 { "-g" } else { "-m" };
        let from = client(3);
        let frame = |flags| Shape::flags(flags).frame(macs_from(from.0, CLIENTS), from, (VIP, 80), TCP);
        let went = rig.deliver(0, CLIENTS, &frame(SYN));
        let server = server_of(went.verdict, &went.bytes).expect("forwarded");
        let line = format!("-t 10.9.0.1:80 -r 10.1.0.{server}:{port}");
        rig.ipvsadm(&format!("-d {line}"));
        assert_eq!(rig.deliver(1, CLIENTS, &frame(ACK)).verdict, Verdict::Drop(Reason::NoDest));
        rig.ipvsadm(&format!("-a {line} {method} -w 0"));
        let again = rig.deliver(1, CLIENTS, &frame(ACK));
        assert_eq!(server_of(again.verdict, &again.bytes), Some(server), "weight 0 keeps what it has");
        let other = client(19);
        let frame = Shape::flags(SYN).frame(macs_from(other.0, CLIENTS), other, (VIP, 80), TCP);
        for _ in 0..3 {
            let went = rig.deliver(0, CLIENTS, &frame);
            assert_ne!(server_of(went.verdict, &went.bytes), Some(server), "weight 0 gets nothing new");
        }
    }
}

/// A UDP checksum that comes out as zero is written the other way, because zero says that there is none (RFC 768). One in
/// 65,536 does, so all are tried; a wrong one stays wrong by as much.
#[test]
fn no_udp_checksum_becomes_none() {
    let mut rig = Rig::new(1);
    service(&mut rig, true, 1, "rr");
    let from = client(0);
    let there = Shape::default().frame(macs_from(from.0, CLIENTS), from, (VIP, 80), UDP);
    let went = rig.deliver(0, CLIENTS, &there);
    let server = (Packet::read(&went.bytes).expect("a packet").destination(), 8080);
    let back = Shape::default().frame((server_mac(server.0), S0), server, from, UDP);
    for checksum in 1..=u16::MAX {
        for (side, frame, rewrite) in [
            (CLIENTS, &there, Rewrite::destination(server.0, server.1)),
            (SERVERS, &back, Rewrite::source(VIP, 80)),
        ] {
            let mut frame = frame.clone();
            frame[40..42].copy_from_slice(&checksum.to_be_bytes());
            let sent = rig.deliver(0, side, &frame);
            assert_eq!(forwarded(&frame, &sent.bytes, rewrite), Ok(()));
        }
    }
}

/// The oracle itself refuses what it should.
#[test]
fn the_oracle_sees_a_wrong_byte() {
    let from = client(0);
    let mut rig = Rig::new(1);
    service(&mut rig, false, 1, "rr");
    let frame = Shape::flags(SYN).frame(macs_from(from.0, CLIENTS), from, (VIP, 80), TCP);
    let went = rig.deliver(0, CLIENTS, &frame);
    let server = Packet::read(&went.bytes).expect("a packet").destination();
    let right = Rewrite::destination(server, 8080);
    assert_eq!(forwarded(&frame, &went.bytes, right), Ok(()));
    assert!(forwarded(&frame, &went.bytes, Rewrite::NOTHING).is_err());
    for at in 12..went.bytes.len() {
        let mut wrong = went.bytes.clone();
        wrong[at] ^= 0x10;
        assert!(forwarded(&frame, &wrong, right).is_err(), "byte {at}");
    }
}

/// What a real server sends that is no reply is routed, but not onto a link that is too narrow for it.
#[test]
fn a_routed_packet_and_an_icmp_error_are_held_to_the_mtu() {
    let mut rig = Rig::new(1);
    service(&mut rig, false, 0, "rr");
    rig.set_mtu(CLIENTS, 576);
    let (from, to) = ((Ipv4Addr::new(10, 1, 0, 11), 80), client(9));
    let long = Shape { length: 100, ..Shape::default() };
    let stray = |quirks| Shape { quirks, ..long }.frame((server_mac(from.0), S0), from, to, TCP);
    let told = rig.deliver(0, SERVERS, &stray(4));
    assert_eq!(told.verdict, Verdict::Reply(SERVERS));
    assert_eq!(told.bytes[34..36], [3, 4], "fragmentation needed");
    let cut = rig.deliver(0, SERVERS, &stray(0));
    assert_eq!((cut.verdict, cut.pieces.len()), (Verdict::Forward(CLIENTS), 1), "cut in two");

    let mut play = Play::new(1);
    play.step(&Op::Request { worker: 0, client: 0, service: 0, shape: Shape::flags(SYN) });
    play.rig.set_mtu(SERVERS, 68);
    let error = Op::Error { worker: 0, conn: 0, about_reply: true, kind: 3, quoted: 36 };
    let error = play.step(&error).expect("it was delivered");
    assert_eq!(error.verdict, Verdict::Drop(Reason::TooBig));
}

/// One client socket that talks to two virtual addresses of one real server has two connections with one reply tuple.
/// The end of one must not hide the other from the other workers.
#[test]
fn a_reply_tuple_that_two_connections_share_is_found_until_the_last_one_ends() {
    let mut play = Play::new(2);
    let datagram = |service| Op::Request { worker: 0, client: 0, service, shape: Shape::default() };
    for service in [3, 7] {
        play.edit(Edit::DeleteServer { service, server: 1 });
        play.step(&datagram(service));
    }
    play.step(&Op::Wait(2900));
    play.step(&datagram(7));
    play.step(&Op::Wait(1000));
    assert_eq!(play.rig.connections().count(), 1, "the first one has expired");
    let reply = Op::Reply { worker: 1, conn: 0, shape: Shape::default() };
    let reply = play.step(&reply).expect("it was delivered");
    assert_eq!(reply.verdict, Verdict::Forward(CLIENTS));
    play.end();
}

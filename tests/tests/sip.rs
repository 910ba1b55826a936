//! Services that go by SIP calls (`--pe sip`): each call of a client keeps its real server, as asked of Linux 6.1's `ip_vs_pe_sip`.

use std::net::Ipv4Addr;
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::Tuple;
use shunt_dataplane::service::WorkerId;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, HOME, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, frame, server_mac, udp};
use shunt_tests::rig::Rig;

fn bench(service: &str) -> Bench {
    let mut bench = Bench::default();
    let port = service.rsplit(':').next().expect("a port").to_owned();
    assert_eq!(bench.ipvsadm(&format!("-A -u {service} -s rr -p 100 --pe sip")).0, 0);
    for n in [11, 12, 13] {
        assert_eq!(bench.ipvsadm(&format!("-a -u {service} -r 10.1.0.{n}:{port} -g")).0, 0);
    }
    bench
}

/// A message in a frame.
fn datagram(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), message: &str) -> Vec<u8> {
    let mut datagram = [from.1, to.1, 8 + message.len() as u16, 0].map(u16::to_be_bytes).concat();
    datagram.extend(message.as_bytes());
    frame(macs, from.0, to.0, 17, datagram, 6)
}

/// Sends a message; gives the real server's number, or why it was dropped.
fn send(bench: &mut Bench, client: u8, from: u16, to: u16, message: &str) -> Result<u8, Verdict> {
    let client = Ipv4Addr::new(10, 0, 0, client);
    let bytes = datagram((client_mac(client), C0), (client, from), (VIP, to), message);
    let outcome = bench.frame(CLIENTS, &bytes);
    match outcome.verdict {
        Verdict::Forward(_) => Ok(outcome.only().1[5] - 10),
        verdict => Err(verdict),
    }
}

fn invite(call: &str) -> String {
    format!("INVITE sip:a@b SIP/2.0\r\nVia: x\r\nCall-ID: {call}\r\nCSeq: 1\r\n\r\n")
}

#[test]
fn calls_keep_their_servers_and_clients_have_calls_of_their_own() {
    let mut bench = bench("10.9.0.1:5060");
    let mut port = 5000;
    let mut from = |client, call: &str| {
        port += 1;
        send(&mut bench, client, port, 5060, &invite(call))
    };
    // The kernel's own sequence.
    assert_eq!(from(2, "a1@h"), Ok(3));
    assert_eq!(from(3, "a1@h"), Ok(2));
    assert_eq!(from(2, "b2@h"), Ok(1));
    assert_eq!(
        [from(4, "a1@h"), from(4, "a1@h"), from(2, "a1@h"), from(3, "a1@h")],
        [Ok(3), Ok(3), Ok(3), Ok(2)]
    );
    assert_eq!(from(2, "c3"), Ok(2));
    assert_eq!(from(2, "A1@H"), Ok(1));
    assert_eq!(from(2, "d4@"), Err(Verdict::Drop(Reason::NoCall)));
    let listed = bench.connections();
    let templates: Vec<_> = listed.iter().filter(|c| c.3.ends_with(":0")).collect();
    assert_eq!(templates.len(), 6, "{templates:?}");
    assert!(templates.iter().all(|t| t.2 == "NONE" && t.4 == "10.9.0.1:5060"), "{templates:?}");
    bench.wait(Duration::from_secs(1000));
    assert_eq!(bench.connections(), []);
}

#[test]
fn every_port_of_a_service_of_all_is_of_one_call() {
    let mut bench = bench("10.9.0.1:0");
    assert_eq!(send(&mut bench, 2, 5000, 5060, &invite("a1@h")), Ok(3));
    assert_eq!(send(&mut bench, 2, 5000, 5070, &invite("a1@h")), Ok(3));
    assert_eq!(send(&mut bench, 2, 5000, 5080, &invite("a2@h")), Ok(2));
}

#[test]
fn a_proxys_many_calls_are_told_apart() {
    let mut bench = bench("10.9.0.1:5060");
    let calls: Vec<String> = (0..1500).map(|n| format!("{n}@proxy")).collect();
    let first: Vec<_> =
        calls.iter().zip(1000..).map(|(call, port)| send(&mut bench, 2, port, 5060, &invite(call))).collect();
    // Round robin: nobody was taken for somebody else.
    assert!(first.iter().enumerate().all(|(n, server)| *server == Ok(3 - (n % 3) as u8)));
    bench.wait(Duration::from_secs(50));
    let again: Vec<_> = calls
        .iter()
        .zip(20_000..)
        .map(|(call, port)| send(&mut bench, 2, port, 5060, &invite(call)))
        .collect();
    assert_eq!(again[..1000], first[..1000]);
}

/// Calls of a client that look alike have places next to each other. Where one is over its place is free, and the others are found behind it.
#[test]
fn a_call_keeps_its_server_when_another_that_looks_alike_is_over() {
    let mut bench = bench("10.9.0.1:5060");
    let calls: Vec<String> = (0..1000).map(|n| format!("{n}@proxy")).collect();
    let mut port = 1000;
    let mut say = |bench: &mut Bench, call| {
        port += 1;
        send(bench, 2, port, 5060, &invite(call))
    };
    let first: Vec<_> = calls.iter().map(|call| say(&mut bench, call)).collect();
    for seconds in [280, 120] {
        bench.wait(Duration::from_secs(seconds));
        for (call, server) in calls.iter().zip(&first).skip(1).step_by(2) {
            assert_eq!(say(&mut bench, call), *server, "{call} after {seconds} s");
        }
    }
}

/// Of two workers one keeps a call, whoever begins it: there its messages are handed, and nowhere else.
#[test]
fn a_call_is_one_workers_also_when_its_server_begins_it() {
    let mut handed = 0;
    for n in 0..20 {
        let name = format!("{n}@h");
        let verdicts = [true, false].map(|from_server| {
            let mut bench = Bench::of_worker(0, 2);
            assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:5060 -s rr -p 100 --pe sip").0, 0);
            assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:5060 -r 10.1.0.11:5060 -m").0, 0);
            let (server, client) = (Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 0, 0, 2));
            let (port, bytes) = match from_server {
                true => (SERVERS, call((server_mac(server), S0), server, (client, 5060), &name)),
                false => (CLIENTS, asked(client, &name)),
            };
            matches!(bench.frame(port, &bytes).verdict, Verdict::HandOff(WorkerId(1), _))
        });
        assert_eq!(verdicts[0], verdicts[1], "{name}");
        handed += usize::from(verdicts[0]);
    }
    assert!((1..20).contains(&handed), "{handed} of 20 are the other worker's");
}

/// The bench looks that what is handed over is as it came.
#[test]
fn a_call_of_a_local_server_does_not_age() {
    let (server, client) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let mut handed = 0;
    for n in 0..20 {
        let mut bench = Bench::of_worker(0, 2);
        assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:5060 -s rr -p 100 --pe sip").0, 0);
        assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:5060 -r 10.1.0.1:5060 -m").0, 0);
        let bytes = call((server_mac(server), S0), server, (client, 5060), &format!("{n}@h"));
        let outcome = bench.frame(HOME, &bytes);
        match outcome.verdict {
            Verdict::HandOff(..) => handed += 1,
            _ => assert_eq!(outcome.only().1[22], bytes[22]),
        }
    }
    assert!((1..20).contains(&handed), "{handed} of 20 are the other worker's");
}

/// The first message of a call.
fn call(macs: ([u8; 6], [u8; 6]), from: Ipv4Addr, to: (Ipv4Addr, u16), call: &str) -> Vec<u8> {
    datagram(macs, (from, 5060), to, &invite(call))
}

/// Two workers of a service that goes by calls, with these real servers.
fn rig(servers: &[u8]) -> Rig {
    let mut rig = Rig::new(2);
    rig.ipvsadm("-A -u 10.9.0.1:5060 -s rr -p 100 --pe sip");
    for n in servers {
        rig.ipvsadm(&format!("-a -u 10.9.0.1:5060 -r 10.1.0.{n}:5060 -m"));
    }
    rig
}

/// What a client asks in a call.
fn asked(client: Ipv4Addr, name: &str) -> Vec<u8> {
    call((client_mac(client), C0), client, (VIP, 5060), name)
}

/// A call of a client's that a worker keeps.
fn kept_by(worker: u8, client: Ipv4Addr, name: &str) -> String {
    let is_kept =
        |name: &String| rig(&[11]).deliver(0, CLIENTS, &asked(client, name)).worker == WorkerId(worker);
    (0..).map(|n| format!("{name}{n}@h")).find(is_kept).unwrap()
}

/// A call that finds no room leaves no word of itself: two workers would hand what comes of it to each other for ever.
#[test]
fn a_call_that_finds_no_room_is_nobodys() {
    let (server, client) = (Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 0, 0, 2));
    let called = |to: u16, name: &str| call((server_mac(server), S0), server, (client, to), name);
    let [first, second] = [0, 1].map(|worker| kept_by(worker, client, "a"));

    let mut rig = rig(&[11]);
    rig.ipvsadm("-A -u 10.9.0.1:53 -s rr");
    rig.ipvsadm("-a -u 10.9.0.1:53 -r 10.1.0.12:53 -m");
    // Makes the call's template; then the worker's table fills up.
    assert!(matches!(rig.deliver(0, SERVERS, &called(5061, &first)).verdict, Verdict::Forward(_)));
    let fill = |n| udp((client_mac(client), C0), (client, n), (VIP, 53));
    let is_full = |n| matches!(rig.deliver(0, CLIENTS, &fill(n)).verdict, Verdict::Drop(Reason::TableFull));
    assert!((10_000..60_000).any(is_full));
    assert_eq!(rig.deliver(0, SERVERS, &called(5060, &first)).verdict, Verdict::Drop(Reason::TableFull));
    let answer = Tuple {
        source: client.into(),
        destination: VIP.into(),
        source_port: 5060,
        destination_port: 5060,
        protocol: 17,
    };
    assert_eq!(rig.owner(&answer), None);
    // Another call of the same ports, which the other worker keeps.
    rig.wait(Duration::from_secs(1000));
    let delivery = rig.deliver(1, CLIENTS, &asked(client, &second));
    assert!(matches!(delivery.verdict, Verdict::Forward(_)), "{delivery:?}");
}

/// Also where another worker has the client's older connection, and does not hear of it.
#[test]
fn a_client_answers_the_last_who_called() {
    let client = Ipv4Addr::new(10, 0, 0, 2);
    for keeper in [0, 1] {
        let (first, second) = (kept_by(0, client, "a"), kept_by(keeper, client, "b"));
        let mut rig = rig(&[11, 12]);
        let older = rig.deliver(0, CLIENTS, &asked(client, &first)).bytes[5];
        // Steady, if it may be.
        rig.deliver(0, CLIENTS, &asked(client, &first));
        let caller = 23 - older;
        let server = Ipv4Addr::new(10, 1, 0, caller);
        let called = call((server_mac(server), S0), server, (client, 5060), &second);
        assert_eq!(rig.deliver(1, SERVERS, &called).worker, WorkerId(keeper));
        for worker in [1, 0, 0, 1] {
            let answer = rig.deliver(worker, CLIENTS, &asked(client, &second));
            assert_eq!((answer.bytes[5], answer.worker), (caller, WorkerId(keeper)));
        }
        // The older one's real server is still heard.
        let server = Ipv4Addr::new(10, 1, 0, older);
        let reply = call((server_mac(server), S0), server, (client, 5060), &first);
        let heard = rig.deliver(1, SERVERS, &reply);
        assert!(matches!(heard.verdict, Verdict::Forward(_)), "{heard:?}");
    }
}

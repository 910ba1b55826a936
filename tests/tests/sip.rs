//! Services that go by SIP calls (`--pe sip`): each call of a client keeps its real server, as asked of Linux 6.1's `ip_vs_pe_sip`.

use std::net::Ipv4Addr;
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::WorkerId;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, frame, server_mac};

fn bench(service: &str) -> Bench {
    let mut bench = Bench::default();
    let port = service.rsplit(':').next().expect("a port").to_owned();
    assert_eq!(bench.ipvsadm(&format!("-A -u {service} -s rr -p 100 --pe sip")).0, 0);
    for n in [11, 12, 13] {
        assert_eq!(bench.ipvsadm(&format!("-a -u {service} -r 10.1.0.{n}:{port} -g")).0, 0);
    }
    bench
}

/// Sends a message; gives the real server's number, or why it was dropped.
fn send(bench: &mut Bench, client: u8, from: u16, to: u16, message: &str) -> Result<u8, Verdict> {
    let client = Ipv4Addr::new(10, 0, 0, client);
    let length = 8 + message.len() as u16;
    let mut datagram = [from, to, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(message.as_bytes());
    let bytes = frame((client_mac(client), C0), client, VIP, 17, datagram, 6);
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

/// Of two workers one keeps a call, whoever begins it: there its messages are handed, and nowhere else.
#[test]
fn a_call_is_one_workers_also_when_its_server_begins_it() {
    let mut handed = 0;
    for n in 0..20 {
        let call = format!("{n}@h");
        let verdicts = [true, false].map(|from_server| {
            let mut bench = Bench::of_worker(0, 2);
            assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:5060 -s rr -p 100 --pe sip").0, 0);
            assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:5060 -r 10.1.0.11:5060 -m").0, 0);
            let (server, client) = (Ipv4Addr::new(10, 1, 0, 11), Ipv4Addr::new(10, 0, 0, 2));
            let message = invite(&call);
            let mut datagram = [5060, 5060, 8 + message.len() as u16, 0].map(u16::to_be_bytes).concat();
            datagram.extend(message.as_bytes());
            let (port, bytes) = match from_server {
                true => (SERVERS, frame((server_mac(server), S0), server, client, 17, datagram, 6)),
                false => (CLIENTS, frame((client_mac(client), C0), client, VIP, 17, datagram, 6)),
            };
            matches!(bench.frame(port, &bytes).verdict, Verdict::HandOff(WorkerId(1), _))
        });
        assert_eq!(verdicts[0], verdicts[1], "{call}");
        handed += usize::from(verdicts[0]);
    }
    assert!((1..20).contains(&handed), "{handed} of 20 are the other worker's");
}

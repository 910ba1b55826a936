//! SCTP and the settings of `net.ipv4.vs`, where the golden files have no step for it.

use std::net::Ipv4Addr;
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, checksum, client_mac, sctp, server_mac, tcp};

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 4000);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const INIT: (u8, &[u8]) = (1, &[0; 16]);
const DATA: (u8, &[u8]) = (0, &[0; 600]);

/// A bench after these lines of ipvsadm.
fn bench(lines: &[&str]) -> Bench {
    let mut bench = Bench::default();
    for line in lines {
        assert_eq!(bench.ipvsadm(line), (0, String::new(), String::new()), "{line}");
    }
    bench
}

/// Makes a frame the first part of a datagram.
fn first_part(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] = 0x20;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_part_of_a_datagram_whose_port_would_change_is_dropped_by_name() {
    for (service, server, is_translated) in [(5000, 5001, true), (6000, 6000, false)] {
        let mut bench = bench(&[
            &format!("-A --sctp-service 10.9.0.1:{service} -s rr"),
            &format!("-a --sctp-service 10.9.0.1:{service} -r 10.1.0.11:{server} -m"),
        ]);
        let macs = (client_mac(CLIENT.0), C0);
        bench.frame(CLIENTS, &sctp(macs, CLIENT, (VIP, service), &[INIT]));
        let request = first_part(sctp(macs, CLIENT, (VIP, service), &[DATA]));
        let reply = first_part(sctp((server_mac(SERVER), S0), (SERVER, server), CLIENT, &[DATA]));
        for (side, frame) in [(CLIENTS, request), (SERVERS, reply)] {
            let verdict = bench.frame(side, &frame).verdict;
            match is_translated {
                true => assert_eq!(verdict, Verdict::Drop(Reason::SctpFragment)),
                false => assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}"),
            }
        }
    }
}

#[test]
fn connections_of_a_removed_server_wait_for_it_or_end_as_the_setting_says() {
    for expire in [0, 1] {
        let mut bench = bench(&["-A -t 10.9.0.1:80 -s rr", "-a -t 10.9.0.1:80 -r 10.1.0.11 -m"]);
        bench.sysctl("expire_nodest_conn", expire).unwrap();
        for n in 0..10 {
            let from = (Ipv4Addr::new(10, 0, 0, 2 + n), 1000);
            bench.frame(CLIENTS, &tcp((client_mac(from.0), C0), from, (VIP, 80), 0x02));
        }
        bench.ipvsadm("-a -t 10.9.0.1:80 -r 10.1.0.12 -m");
        bench.wait(Duration::from_millis(100));
        assert_eq!(bench.connections().len(), 10, "an edit that removes nobody ends nothing");
        bench.ipvsadm("-d -t 10.9.0.1:80 -r 10.1.0.11");
        bench.wait(Duration::from_millis(100));
        assert_eq!(bench.connections().len(), if expire == 0 { 10 } else { 0 });
    }
}

#[test]
fn a_setting_that_is_refused_says_why() {
    let mut bench = Bench::default();
    assert!(bench.sysctl("net.ipv4.vs.no_such", 1).unwrap_err().contains("sloppy_tcp"));
}

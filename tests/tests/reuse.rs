//! A client that uses a port again: the new connection is scheduled while the old one, which is over, still counts at its real server (`ip_vs_conn_expire_now` only has its timer run next).

use std::net::Ipv4Addr;

use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, client_mac, flags, tcp};

/// Sends segments of one client from these ports, with these flags, to a service with two real servers; each must go where a real kernel (6.1) sent it, which the end of
/// the address says.
#[track_caller]
fn goes(scheduler: &str, options: [&str; 2], segments: &str) {
    let mut bench = Bench::default();
    assert_eq!(bench.ipvsadm(&format!("-A -t 10.9.0.1:80 -s {scheduler}")).0, 0);
    for (server, options) in (11..).zip(options) {
        let line = format!("-a -t 10.9.0.1:80 -r 10.1.0.{server}:80 -g {options}");
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    let client = Ipv4Addr::new(10, 0, 0, 2);
    for segment in segments.split(' ') {
        let (sent, server) = segment.split_once('=').expect("a segment and a server");
        let (port, letters) = sent.split_at(4);
        let from = (client, port.parse().expect("a port"));
        let frame = tcp((client_mac(client), C0), from, (VIP, 80), flags(letters));
        let outcome = bench.frame(CLIENTS, &frame);
        assert_eq!(outcome.verdict, Verdict::Forward(SERVERS), "{segment}");
        assert_eq!(outcome.only().1[5].to_string(), server, "{segment} of {segments}");
    }
}

#[test]
fn a_connection_that_is_over_counts_for_the_threshold_until_its_successor_is_scheduled() {
    goes(
        "fo",
        ["-w 2 -x 3", "-w 1"],
        "1000S=11 1001S=11 1002S=11 1003S=12 1002FA=11 1002S=12 1004S=11 1000FA=11 1000S=12 1000R=12 1000S=12 \
         1005S=11 1006S=12",
    );
}

#[test]
fn and_as_load() {
    goes(
        "lc",
        ["", ""],
        "1000S=12 1001S=11 1002S=12 1003S=11 1002FA=12 1002S=12 1004S=12 1000FA=12 1000S=11 1000R=11 1000S=11 \
         1005S=12 1006S=12",
    );
}

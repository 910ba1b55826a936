//! A client that uses a port again: the new connection is scheduled while the old one, which is over, still counts at its real server (`ip_vs_conn_expire_now` only has its timer run next).

use std::net::Ipv4Addr;

use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, client_mac, flags, tcp};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A director with a service with these options, and two real servers with these.
fn bench(service: &str, servers: [&str; 2]) -> Bench {
    let mut bench = Bench::default();
    assert_eq!(bench.ipvsadm(&format!("-A -t 10.9.0.1:80 -s {service}")).0, 0);
    for (server, options) in (11..).zip(servers) {
        let line = format!("-a -t 10.9.0.1:80 -r 10.1.0.{server}:80 -g {options}");
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    bench
}

/// Sends segments from these ports of one client, with these flags; each must go where a real kernel (6.1) sent it, which the end of the address says.
#[track_caller]
fn goes(bench: &mut Bench, segments: &str) {
    for segment in segments.split(' ') {
        let (sent, server) = segment.split_once('=').expect("a segment and a server");
        let (port, letters) = sent.split_at(4);
        let from = (CLIENT, port.parse().expect("a port"));
        let frame = tcp((client_mac(CLIENT), C0), from, (VIP, 80), flags(letters));
        let outcome = bench.frame(CLIENTS, &frame);
        assert_eq!(outcome.verdict, Verdict::Forward(SERVERS), "{segment}");
        assert_eq!(outcome.only().1[5].to_string(), server, "{segment} of {segments}");
    }
}

#[test]
fn a_connection_that_is_over_counts_for_the_threshold_until_its_successor_is_scheduled() {
    goes(
        &mut bench("fo", ["-w 2 -x 3", "-w 1"]),
        "1000S=11 1001S=11 1002S=11 1003S=12 1002FA=11 1002S=12 1004S=11 1000FA=11 1000S=12 1000R=12 1000S=12 \
         1005S=11 1006S=12",
    );
}

#[test]
fn and_as_load() {
    goes(
        &mut bench("lc", ["", ""]),
        "1000S=12 1001S=11 1002S=12 1003S=11 1002FA=12 1002S=12 1004S=12 1000FA=12 1000S=11 1000R=11 1000S=11 \
         1005S=12 1006S=12",
    );
}

/// `is_new_conn_expected`: what a template made is used again as it is, for its template leads to the same real server.
#[test]
fn a_template_s_connection_stays_on_its_real_server() {
    for over in ["R", "FA"] {
        let mut bench = bench("rr -p 300", ["", ""]);
        bench.sysctl("net.ipv4.vs.expire_quiescent_template", 1).unwrap();
        goes(&mut bench, &format!("1000S=12 1001S=12 1000{over}=12 1000S=12 1000{over}=12"));
        assert_eq!(bench.ipvsadm("-e -t 10.9.0.1:80 -r 10.1.0.12:80 -g -w 0").0, 0);
        goes(&mut bench, "1000S=12 1001A=12 1001S=12 1002S=11");
    }
}

/// But not if the real server is quiesced and `expire_nodest_conn` is set.
#[test]
fn unless_that_is_quiesced_and_its_connections_are_not_to_wait() {
    for (over, mode) in [("R", 1), ("FA", 1), ("R", 0), ("FA", 0)] {
        let mut bench = bench("rr -p 300", ["", ""]);
        bench.sysctl("net.ipv4.vs.conn_reuse_mode", mode).unwrap();
        bench.sysctl("net.ipv4.vs.expire_nodest_conn", 1).unwrap();
        bench.sysctl("net.ipv4.vs.expire_quiescent_template", 1).unwrap();
        goes(&mut bench, &format!("1000S=12 1001S=12 1000{over}=12 1000S=12 1000{over}=12"));
        assert_eq!(bench.ipvsadm("-e -t 10.9.0.1:80 -r 10.1.0.12:80 -g -w 0").0, 0);
        goes(&mut bench, "1000S=11 1001A=12 1001S=11 1002S=11");
    }
}

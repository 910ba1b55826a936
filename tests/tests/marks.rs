//! Services of firewall marks beyond what the golden files have: FullNAT, interfaces, fragments, rules that change.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::PortId;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS};
use shunt_tests::frames::{C0, S0, client_mac, flags, server_mac, tcp, udp};
use shunt_tests::layers::Layers;
use shunt_tests::modes::{datagram, host, part};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// In the network of mark 1.
const MARKED: Ipv4Addr = Ipv4Addr::new(10, 10, 3, 4);
const REAL: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

fn serve(how: &str) -> Bench {
    let mut bench = Bench::default();
    bench.ipvsadm("-A -f 1 -s rr");
    bench.ipvsadm(&format!("-a -f 1 -r 10.1.0.11 {how}"));
    bench
}

fn syn(bench: &mut Bench, by: PortId, from: u16, to: (Ipv4Addr, u16)) -> Verdict {
    let macs = if by == CLIENTS { (client_mac(CLIENT), C0) } else { (server_mac(REAL), S0) };
    bench.frame(by, &tcp(macs, (CLIENT, from), to, flags("S"))).verdict
}

/// A connection to each of these ports, with one of a service of just one of them in between: the server tells all of them apart.
#[test]
fn full_nat_keeps_a_marks_connections_apart_at_every_port() {
    let mut bench = serve("--fullnat");
    bench.ipvsadm("-P -f 1 -z 10.1.0.2");
    bench.ipvsadm("-A -t 10.9.0.1:80 -s rr");
    bench.ipvsadm("-a -t 10.9.0.1:80 -r 10.1.0.11:80 --fullnat");
    bench.ipvsadm("-P -t 10.9.0.1:80 -z 10.1.0.2");
    let mut seen = HashSet::new();
    for n in 0..60u16 {
        let at = [(MARKED, 80), (MARKED, 443), (Ipv4Addr::new(10, 9, 0, 1), 80)][usize::from(n) % 3];
        let by_udp = n % 4 == 1 && at.0 == MARKED;
        let build = |macs, from, to, letters| match by_udp {
            true => udp(macs, from, to),
            false => tcp(macs, from, to, flags(letters)),
        };
        let from = (CLIENT, 1000 + n);
        let (_, request) = bench.frame(CLIENTS, &build((client_mac(CLIENT), C0), from, at, "S")).only();
        let layers = Layers::of(&request);
        let (local, server) = (layers.source(&request), layers.destination(&request));
        assert_eq!((local.0, server), (Ipv4Addr::new(10, 1, 0, 2).into(), (REAL.into(), at.1)));
        assert!(seen.insert((by_udp, local, server)), "{local:?} is in use");
        let (std::net::IpAddr::V4(local_address), port) = local else { panic!("{local:?}") };
        let answer = build((server_mac(REAL), S0), (REAL, at.1), (local_address, port), "SA");
        let (by, reply) = bench.frame(SERVERS, &answer).only();
        let layers = Layers::of(&reply);
        assert_eq!(by, CLIENTS);
        let ends = (layers.source(&reply), layers.destination(&reply));
        assert_eq!(ends, ((at.0.into(), at.1), (CLIENT.into(), 1000 + n)));
    }
}

#[test]
fn a_rule_is_about_the_interface_it_names() {
    let mut bench = serve("-m");
    bench.mark("mark add --destination 10.11.0.0/16 --interface s0 --mark 1");
    bench.mark("mark add --destination 10.12.0.0/16 --interface c0 --protocol tcp --ports 80-90 --mark 1");
    let [eleven, twelve] = [11, 12].map(|n| Ipv4Addr::new(10, n, 0, 1));
    assert_eq!(syn(&mut bench, CLIENTS, 1, (eleven, 80)), Verdict::Pass);
    assert_eq!(syn(&mut bench, SERVERS, 2, (eleven, 80)), Verdict::Forward(SERVERS));
    assert_eq!(syn(&mut bench, SERVERS, 3, (twelve, 80)), Verdict::Pass);
    assert_eq!(syn(&mut bench, CLIENTS, 4, (twelve, 80)), Verdict::Forward(SERVERS));
    assert_eq!(syn(&mut bench, CLIENTS, 5, (twelve, 90)), Verdict::Forward(SERVERS));
    assert_eq!(syn(&mut bench, CLIENTS, 6, (twelve, 91)), Verdict::Pass);
}

/// What has been marked once is a connection, and what comes after is that connection's.
#[test]
fn rules_are_asked_about_new_connections_only() {
    let mut bench = serve("-m");
    assert_eq!(syn(&mut bench, CLIENTS, 1, (MARKED, 80)), Verdict::Forward(SERVERS));
    bench.mark("mark add --destination 10.10.0.0/16 --mark 0");
    assert_eq!(syn(&mut bench, CLIENTS, 1, (MARKED, 80)), Verdict::Forward(SERVERS));
    assert_eq!(syn(&mut bench, CLIENTS, 2, (MARKED, 80)), Verdict::Pass);
    bench.mark("mark add --destination 10.10.3.0/24 --mark 1");
    assert_eq!(syn(&mut bench, CLIENTS, 2, (MARKED, 80)), Verdict::Forward(SERVERS));
}

#[test]
fn a_later_fragment_waits_for_its_first_where_some_port_is_marked() {
    for is_v4 in [true, false] {
        let mut bench = Bench::default();
        let (family, real) = if is_v4 { ("", "10.1.0.11:0") } else { ("-6", "[2001:db8:b::b]:0") };
        bench.ipvsadm(&format!("-A -f 2 {family} -s rr"));
        bench.ipvsadm(&format!("-a -f 2 {family} -r {real} -m"));
        let (client, vip) = (host(is_v4, 0xa, 9), host(is_v4, 0xf, 9));
        let (from, to) = ((client, 5000), (vip, 7000));
        let [first, second] = [false, true].map(|is_second| part(from, to, is_second));
        assert_eq!(bench.frame(CLIENTS, &second).verdict, Verdict::Pass, "nothing is marked");
        bench.mark(&format!("mark add --destination {vip} --ports 7000-7001 --mark 2"));
        bench.mark(&format!("mark add --destination {vip} --ports 53 --mark 0"));
        assert!(bench.frame_and_kept(CLIENTS, &second).is_empty());
        assert_eq!(bench.frame_and_kept(CLIENTS, &first).len(), 2, "both go on");
        assert_eq!(bench.frame(CLIENTS, &datagram(from, (vip, 53))).verdict, Verdict::Pass);
        bench.mark(&format!("mark add --destination {vip} --protocol udp --mark 0"));
        let elsewhere = part((host(is_v4, 0xa, 10), 5000), to, true);
        assert_eq!(bench.frame(CLIENTS, &elsewhere).verdict, Verdict::Pass, "no port of UDP is");
    }
}

/// As asked of Linux 6.1: the real server's own port is for connections without a template. Both ways, also where that port is another one.
#[test]
fn a_persistent_marks_connections_keep_their_port() {
    for (persistence, ports) in [("", [8080, 8080]), ("-p 100", [80, 81])] {
        for how in ["-m", "--fullnat"] {
            let mut bench = Bench::default();
            bench.ipvsadm(&format!("-A -f 1 -s rr {persistence}"));
            bench.ipvsadm(&format!("-a -f 1 -r 10.1.0.11:8080 {how}"));
            bench.ipvsadm("-P -f 1 -z 10.1.0.2");
            for (n, port) in (0..).zip(ports) {
                let (from, to) = ((CLIENT, 1080 + n), (MARKED, 80 + n));
                let syn = tcp((client_mac(CLIENT), C0), from, to, flags("S"));
                let (_, request) = bench.frame(CLIENTS, &syn).only();
                let layers = Layers::of(&request);
                assert_eq!(layers.destination(&request), (REAL.into(), port), "{how} {persistence}");
                let (std::net::IpAddr::V4(local), local_port) = layers.source(&request) else {
                    panic!("{request:?}")
                };
                let answer = tcp((server_mac(REAL), S0), (REAL, port), (local, local_port), flags("SA"));
                let (by, reply) = bench.frame(SERVERS, &answer).only();
                let layers = Layers::of(&reply);
                assert_eq!(
                    (by, layers.source(&reply)),
                    (CLIENTS, (to.0.into(), to.1)),
                    "{how} {persistence}"
                );
            }
        }
    }
}

//! Connections to ports of real servers that no rule names: FTP's data where its service is persistent, and services of all ports whose real servers have one.

use std::net::Ipv4Addr;
use std::time::Instant;

use shunt::daemon::capabilities;
use shunt::publisher::Publisher;
use shunt::rules::Rules;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::Protocol;
use shunt_dataplane::stats::Counters;
use shunt_dataplane::steer::Target;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, flags, server_mac, tcp};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

/// A port of a service's, and that of the real server that it leads to.
type Lead = (u16, u16);

/// Services that lead to other ports, the real server's port, and where they lead.
const CASES: [(&str, u16, [Lead; 2]); 3] = [
    ("-t 10.9.0.1:21 -p 60", 2121, [(21, 2121), (50_000, 50_000)]),
    ("-t 10.9.0.1:0 -p 60", 8080, [(80, 80), (443, 443)]),
    ("-t 10.9.0.1:0 -p 60", 0, [(80, 80), (443, 443)]),
];

/// The ends of a segment.
fn ends(frame: &[u8]) -> [(Ipv4Addr, u16); 2] {
    let address = |at: usize| Ipv4Addr::from_octets(frame[at..at + 4].try_into().unwrap());
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    [(address(26), port(34)), (address(30), port(36))]
}

#[test]
fn replies_from_other_ports_are_steered() {
    let is_steered = |service: &str, server: &str, way: &str| {
        let address = service.split(" -p").next().unwrap();
        let text = format!("-A {service} -s rr\n-a {address} -r {server} {way}");
        let rules = Rules::restore(capabilities(), &text).unwrap();
        let mut publisher = Publisher::new(vec!["c0".to_owned(), "s0".to_owned()]);
        publisher.publish(&rules, &Counters::new(1).unwrap(), Instant::now()).unwrap();
        let all = Target::RealServer { protocol: Protocol::Tcp, address: SERVER.into(), port: 0 };
        publisher.targets(&rules).any(|target| target == all)
    };
    for (service, port, _) in CASES {
        let server = format!("10.1.0.11:{port}");
        assert!(is_steered(service, &server, "--fullnat"), "{service}");
        // What an FTP server behind its router sends by itself stays the kernel's, and so do its data over TLS.
        assert_eq!(is_steered(service, &server, "-m"), !service.contains(":21"), "{service}");
    }
    assert!(!is_steered("-t 10.9.0.1:21", "10.1.0.11:21", "--fullnat"));
    assert!(!is_steered("-t 10.9.0.1:80 -p 60", "10.1.0.11:8080", "-m"));
    // A persistent mark's connections keep their port, others go to the real server's.
    assert!(is_steered("-f 1 -p 60", "10.1.0.11:8080", "-m"));
    assert!(!is_steered("-f 1", "10.1.0.11:8080", "-m"));
}

#[test]
fn they_are_translated_whichever_way_the_real_server_is_reached() {
    for (service, port, leads) in CASES {
        for way in ["-m", "--fullnat"] {
            let address = service.split(" -p").next().unwrap();
            let mut bench = Bench::default();
            let mut lines =
                vec![format!("-A {service} -s rr"), format!("-a {address} -r 10.1.0.11:{port} {way}")];
            if way == "--fullnat" {
                lines.push(format!("-P {address} -z 10.1.0.2"));
            }
            for line in &lines {
                assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
            }
            for (to, expected) in leads {
                let macs = [(client_mac(CLIENT), C0), (server_mac(SERVER), S0)];
                let syn = tcp(macs[0], (CLIENT, 1000), (VIP, to), flags("S"));
                let [source, destination] = ends(&bench.frame(CLIENTS, &syn).only().1);
                assert_eq!(destination, (SERVER, expected), "{lines:?}");
                let answer = tcp(macs[1], destination, source, flags("SA"));
                let (by, sent) = bench.frame(SERVERS, &answer).only();
                assert_eq!((by, ends(&sent)), (CLIENTS, [(VIP, to), (CLIENT, 1000)]), "{lines:?}");
            }
        }
    }
}

/// All that the real server sends is steered here then, and goes on.
#[test]
fn what_the_real_server_sends_by_itself_is_routed() {
    for (service, port, _) in &CASES[1..] {
        let address = service.split(" -p").next().unwrap();
        let mut bench = Bench::default();
        assert_eq!(bench.ipvsadm(&format!("-A {service} -s rr")).0, 0);
        assert_eq!(bench.ipvsadm(&format!("-a {address} -r 10.1.0.11:{port} -m")).0, 0);
        let syn = tcp((server_mac(SERVER), S0), (SERVER, 40_000), (CLIENT, 25), flags("S"));
        let outcome = bench.frame(SERVERS, &syn);
        assert_eq!(outcome.verdict, Verdict::Forward(CLIENTS), "{service}");
        assert_eq!(ends(&outcome.only().1), [(SERVER, 40_000), (CLIENT, 25)]);
    }
}

/// While connections of a removed service remain, new ones are for whoever takes its port now.
#[test]
fn a_removed_services_port_is_that_of_the_service_of_all_ports() {
    let mut bench = Bench::default();
    for line in [
        "-A -t 10.9.0.1:80 -s rr",
        "-a -t 10.9.0.1:80 -r 10.1.0.11:80 -g",
        "-A -t 10.9.0.1:0 -s rr -p 60",
        "-a -t 10.9.0.1:0 -r 10.1.0.12:0 -g",
    ] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    let syn = |port| tcp((client_mac(CLIENT), C0), (CLIENT, port), (VIP, 80), flags("S"));
    assert_eq!(bench.frame(CLIENTS, &syn(1000)).only().1[5], 11);
    assert_eq!(bench.ipvsadm("-D -t 10.9.0.1:80").0, 0);
    assert_eq!(bench.frame(CLIENTS, &syn(1001)).only().1[5], 12);
}

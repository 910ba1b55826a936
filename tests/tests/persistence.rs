//! Persistence and one-packet scheduling beyond what the golden files have: several workers, NAT, IPv6, fragments.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::Tuple;
use shunt_dataplane::packet::protocol::{TCP, UDP};
use shunt_dataplane::service::WorkerId;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS};
use shunt_tests::frames::{C0, S0, client_mac, flags, server_mac, tcp, udp};
use shunt_tests::harness::macs_from;
use shunt_tests::layers::Layers;
use shunt_tests::modes;
use shunt_tests::ops::{Shape, client};
use shunt_tests::rig::Rig;

const VIP: Ipv4Addr = shunt_tests::bench::VIP;
const SYN: u8 = 2;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever a client's connections come in, they go where its first one went; and nothing is left of any of it.
    #[test]
    fn clients_keep_their_servers_over_workers(
        workers in 1usize..5, servers in 1usize..8, bits in 24u8..=32, by_nat: bool,
        events in prop::collection::vec((0u8..8, 0u16..500, 0usize..4, 0u64..20), 1..120),
    ) {
        let mut rig = Rig::new(workers);
        let mask = Ipv4Addr::from(u32::MAX << (32 - u32::from(bits)));
        rig.ipvsadm(&format!("-A -t 10.9.0.1:80 -s rr -p 100 -M {mask}"));
        let how = if by_nat { "-m" } else { "-g" };
        (0..servers).for_each(|n| rig.ipvsadm(&format!("-a -t 10.9.0.1:80 -r 10.1.0.{}:80 {how}", 11 + n)));
        let mut went_to = HashMap::new();
        for (who, port, worker, wait) in events {
            let from = (client(who).0, 1000 + port);
            let shape = Shape { flags: SYN, ..Shape::default() };
            let frame = shape.frame(macs_from(from.0, CLIENTS), from, (VIP, 80), TCP);
            let delivery = rig.deliver(worker % workers, CLIENTS, &frame);
            prop_assert_eq!(delivery.verdict, Verdict::Forward(SERVERS));
            let server = delivery.bytes[5];
            let known = went_to.entry(Ipv4Addr::from(from.0.to_bits() & mask.to_bits())).or_insert(server);
            prop_assert_eq!(*known, server);
            // Never as long as a client is remembered.
            rig.wait(Duration::from_millis(wait * 100));
        }
        let templates = rig.connections().filter(|(_, conn)| conn.is_template()).count();
        prop_assert_eq!(templates, went_to.len());
        // Reprieves of a minute follow the last connection's end.
        rig.wait(Duration::from_secs(300));
        prop_assert_eq!(rig.connections().count(), 0);
    }
}

#[test]
fn others_know_a_connection_when_its_packet_leaves_and_nothing_of_one_that_is_over() {
    for (options, owner) in [("", Some(WorkerId(1))), ("-o", None)] {
        let mut rig = Rig::new(2);
        rig.ipvsadm(&format!("-A -u 10.9.0.1:80 -s rr {options}"));
        rig.ipvsadm("-a -u 10.9.0.1:80 -r 10.1.0.11:8080 -m");
        let (from, server) = ((Ipv4Addr::new(10, 0, 0, 2), 4000), (Ipv4Addr::new(10, 1, 0, 11), 8080));
        let request = udp((client_mac(from.0), C0), from, (VIP, 80));
        assert_eq!(rig.deliver(1, CLIENTS, &request).verdict, Verdict::Forward(SERVERS));
        let tuple = |source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)| Tuple {
            source: source.0.into(),
            destination: destination.0.into(),
            source_port: source.1,
            destination_port: destination.1,
            protocol: UDP,
        };
        assert_eq!(rig.owner(&tuple(from, (VIP, 80))), owner, "{options}");
        assert_eq!(rig.owner(&tuple(server, from)), owner, "{options}");
    }
}

#[test]
fn a_service_of_all_ports_translates_each() {
    let mut bench = Bench::default();
    for line in ["-A -t 10.9.0.1:0 -s rr -p 100", "-a -t 10.9.0.1:0 -r 10.1.0.11:0 -m"] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    let (client, server) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 1, 0, 11));
    for port in [80, 443, 22] {
        let syn = tcp((client_mac(client), C0), (client, 1000), (VIP, port), flags("S"));
        let (_, sent) = bench.frame(CLIENTS, &syn).only();
        assert_eq!(Layers::of(&sent).destination(&sent), (server.into(), port));
        let answer = tcp((server_mac(server), S0), (server, port), (client, 1000), flags("SA"));
        let (_, sent) = bench.frame(SERVERS, &answer).only();
        assert_eq!(Layers::of(&sent).source(&sent), (VIP.into(), port));
    }
    let listed: Vec<_> = bench.connections().into_iter().map(|c| (c.2, c.3, c.4, c.5)).collect();
    let template = ["NONE", "10.0.0.2:0", "10.9.0.1:0", "10.1.0.11:0"].map(str::to_owned);
    assert!(listed.contains(&template.into()), "{listed:?}");
    assert_eq!(listed.len(), 4);
}

#[test]
fn the_first_answer_to_a_datagram_assures_its_template() {
    let mut bench = Bench::default();
    for line in ["-A -u 10.9.0.1:53 -s rr -p 100", "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -m"] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    let (client, server) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 1, 0, 11));
    let question = modes::datagram((client.into(), 1000), (VIP.into(), 53));
    let answer = modes::datagram((server.into(), 53), (client.into(), 1000));
    let template = |bench: &Bench| {
        let all = bench.connections().into_iter();
        all.filter(|(.., client, _, _)| client.ends_with(":0"))
            .map(|(_, _, state, ..)| state)
            .collect::<Vec<_>>()
    };
    for _ in 0..2 {
        bench.frame(CLIENTS, &question).only();
        assert_eq!(template(&bench), ["NONE"], "questions say nothing about the real server");
    }
    bench.frame(SERVERS, &answer).only();
    assert_eq!(template(&bench), ["ASSURED"]);
}

#[test]
fn clients_of_one_ipv6_prefix_go_together() {
    let mut bench = Bench::default();
    let service = "[2001:db8:f::1]:80";
    assert_eq!(bench.ipvsadm(&format!("-A -u {service} -s rr -p 100 -M 126")).0, 0);
    for server in [0xb, 0xc, 0xd] {
        assert_eq!(bench.ipvsadm(&format!("-a -u {service} -r [2001:db8:b::{server:x}]:80 -g")).0, 0);
    }
    let mut server_of = |client, port| {
        let frame =
            modes::datagram((modes::host(false, 0xa, client), port), (shunt_tests::bench::VIP6.into(), 80));
        bench.frame(CLIENTS, &frame).only().1[5]
    };
    // 4 to 7 are one block of four addresses, 8 to 11 the next.
    let first = server_of(4, 1000);
    assert_eq!([server_of(5, 1000), server_of(7, 2000), server_of(4, 1001)], [first; 3]);
    let second = server_of(8, 1000);
    assert_ne!(second, first);
    assert_eq!(server_of(11, 1000), second);
}

#[test]
fn a_datagram_by_itself_is_whole_also_in_parts() {
    let mut bench = Bench::default();
    for line in [
        "-A -u 10.9.0.1:80 -s rr -o",
        "-a -u 10.9.0.1:80 -r 10.1.0.11:80 -g",
        "-a -u 10.9.0.1:80 -r 10.1.0.12:80 -g",
    ] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    let client = Ipv4Addr::new(10, 0, 0, 2);
    let whole = udp((client_mac(client), C0), (client, 1000), (VIP, 80));
    let mut servers = Vec::new();
    for _ in 0..4 {
        servers.push(bench.frame(CLIENTS, &whole).only().1[5]);
        assert_eq!(bench.connections().len(), 0);
    }
    assert_eq!(servers, [12, 11, 12, 11]);
    let part = |second| modes::part((client.into(), 1000), (VIP.into(), 80), second);
    let first = bench.frame(CLIENTS, &part(false)).only().1[5];
    assert_eq!((first, bench.frame(CLIENTS, &part(true)).only().1[5]), (12, 12));
    bench.wait(Duration::from_secs(4));
    assert_eq!(bench.connections().len(), 0);
    // A reply finds nothing to be translated by: real servers of such a service answer past the director.
    assert_eq!(bench.loads().iter().map(|l| (l.2, l.3)).collect::<Vec<_>>(), [(0, 0), (0, 0)]);
}

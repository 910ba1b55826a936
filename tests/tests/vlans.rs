//! Answers behind VLANs when the kernel does not know the neighbour: they go the way the packet came, tags included.

use std::net::Ipv4Addr;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::tags::{QINQ, Tags, VLAN};
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, flags, server_mac, tcp};

/// On the clients' network, and without an entry among the neighbours.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 30, 5);

fn bench() -> Bench {
    let one = Tags::default().and(VLAN, 100).expect("there is room");
    let two = Tags::default().and(QINQ, 200).and_then(|tags| tags.and(VLAN, 7)).expect("there is room");
    // The bench looks at the tags of all that leaves.
    let mut bench = Bench::default().with_tags([one, two]);
    for line in [
        format!("-A -t {VIP}:80 -s rr"),
        format!("-a -t {VIP}:80 -r 10.1.0.11 -m"),
        format!("-A -t {VIP}:81"),
    ] {
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    bench
}

#[test]
fn resets_and_errors_to_an_unknown_client_go_back_by_its_vlan() {
    for hidden in [false, true] {
        let mut bench = bench();
        let macs = (client_mac(UNKNOWN), C0);
        for (port, letters) in [(80, "A"), (81, "S")] {
            let frame = tcp(macs, (UNKNOWN, 1000), (VIP, port), flags(letters));
            let outcome = match hidden {
                false => bench.frame(CLIENTS, &frame),
                true => bench.frame_with_tags(CLIENTS, Tags::default(), &frame),
            };
            assert_eq!(outcome.verdict, Verdict::Reply(CLIENTS));
            let (_, answer) = outcome.only();
            assert_eq!(answer[..12], [client_mac(UNKNOWN), C0].concat());
            assert_eq!(answer[30..34], UNKNOWN.octets());
        }
    }
}

/// Real server 99 does not answer ARP, but sends.
#[test]
fn what_the_director_says_as_a_router_has_the_vlans_address() {
    const MUTE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 99);
    let mut bench = bench();
    assert_eq!(bench.ipvsadm(&format!("-a -t {VIP}:80 -r {MUTE} -m")).0, 0);
    let client = Ipv4Addr::new(10, 0, 0, 2);
    let mut dying = tcp((server_mac(MUTE), S0), (MUTE, 80), (client, 5000), flags("A"));
    // Its last hop: the header's checksum goes up by what the time to live goes down.
    dying[22] = 1;
    let sum = u16::from_be_bytes([dying[24], dying[25]]).wrapping_add(63 << 8);
    dying[24..26].copy_from_slice(&sum.to_be_bytes());
    let inner = Tags::default().and(VLAN, 7).expect("there is room");
    for outcome in [bench.frame(SERVERS, &dying), bench.frame_with_tags(SERVERS, inner, &dying)] {
        assert_eq!(outcome.verdict, Verdict::Reply(SERVERS));
        let (_, answer) = outcome.only();
        assert_eq!(answer[26..30], [10, 1, 0, 1]);
    }
}

//! How a tunnel wraps is asked of its real server for each packet, also of connections that began before an edit. As asked of Linux 6.1.

use std::net::Ipv4Addr;

use shunt_tests::bench::{Bench, CLIENTS, VIP};
use shunt_tests::frames::{C0, client_mac, udp};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

#[test]
fn connections_are_wrapped_as_their_real_server_wants_it_now() {
    let mut bench = Bench::default();
    assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:53 -s rr").0, 0);
    assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:53 -r 10.1.0.11 -i").0, 0);
    let datagram = udp((client_mac(CLIENT), C0), (CLIENT, 5000), (VIP, 53));
    // The outer packet's protocol, and where the inner one begins.
    for (options, protocol, inner) in [
        ("", 4, 34),
        ("--tun-type gre --tun-nocsum", 47, 38),
        ("--tun-type gue --tun-port 6080 --tun-nocsum", 17, 46),
        ("--tun-type ipip", 4, 34),
    ] {
        assert_eq!(bench.ipvsadm(&format!("-e -u 10.9.0.1:53 -r 10.1.0.11 -i {options}")).0, 0);
        // Twice, as the second one goes the short way.
        for _ in 0..2 {
            let (_, sent) = bench.frame(CLIENTS, &datagram).only();
            assert_eq!((sent[23], &sent[inner + 12..]), (protocol, &datagram[26..]), "{options}");
        }
    }
    assert_eq!(bench.connections().len(), 1);
}

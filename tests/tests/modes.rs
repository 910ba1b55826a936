//! Every mode, every protocol, both families, with and without VLAN tags: [`shunt_tests::modes`] says what must hold.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{Bench, CLIENTS, HOME, SERVERS, VIP};
use shunt_tests::frames::{C0, checksum, client_mac, udp};
use shunt_tests::modes::{MODES, Modes, Service, Shape};
use shunt_tests::targets;

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const FIN: u8 = 1;
const INIT: u8 = 1;

#[test]
fn every_mode_forwards_there_and_back() {
    for is_tagged in [false, true] {
        let mut modes = Modes::new(is_tagged);
        let mut flows = 0;
        for mode in 0..MODES.len() {
            for (protocol, first, then) in [(6, SYN, ACK), (17, 0, 0), (132, INIT, 3)] {
                for is_v4 in [true, false] {
                    let service = Service { mode, protocol, is_v4 };
                    let shape = |flags, length| Shape { flags, length, ttl: 64, quirks: 0 };
                    let forward = Verdict::Forward(SERVERS);
                    assert_eq!(modes.request(service, 7, shape(first, 0)), forward, "{service:?}");
                    assert_eq!(modes.request(service, 7, shape(then, 40)), forward, "{service:?}");
                    let back = modes.reply(flows, shape(then, 9));
                    let expected = service.translates().then_some(Verdict::Forward(CLIENTS));
                    assert_eq!(back, expected, "{service:?}");
                    flows += 1;
                }
            }
        }
        modes.end();
    }
}

/// There is a [second director](shunt_tests::both) that takes nothing for granted, and both must do the same.
#[test]
fn what_changes_between_two_packets_of_a_connection_is_heeded() {
    let plain = Shape { flags: ACK, length: 5, ttl: 64, quirks: 0 };
    let shapes = [
        plain,
        Shape { ttl: 2, ..plain },
        Shape { ttl: 1, ..plain },
        // Longer than 1280 bytes only in a tunnel; and by itself.
        Shape { length: 155, ..plain },
        Shape { length: 155, quirks: 4, ..plain },
        Shape { length: 160, ..plain },
        Shape { length: 160, quirks: 4, ..plain },
        Shape { quirks: 8 | 16, ..plain },
        Shape { flags: 0, ..plain },
        Shape { flags: ACK | FIN, ..plain },
        // It goes no further, and ends the connection all the same.
        Shape { flags: ACK | FIN, ttl: 1, ..plain },
    ];
    for (event, value) in (0..8).flat_map(|event| [(event, 0), (event, 70)]) {
        let mut modes = Modes::new(false);
        let mut flow = 0;
        for mode in 0..MODES.len() {
            for (protocol, first) in [(6, SYN), (17, 0), (132, INIT)] {
                for is_v4 in [true, false] {
                    let service = Service { mode, protocol, is_v4 };
                    let opening = Shape { flags: first, length: 0, ..plain };
                    for client in 0..shapes.len() as u8 {
                        modes.request(service, client, opening);
                        modes.reply(flow + usize::from(client), Shape { flags: first | ACK, ..opening });
                        modes.request(service, client, plain);
                    }
                    modes.turn_of_events(event, value);
                    for (client, shape) in (0..).zip(shapes) {
                        // The first one after a change learns of it, the second one meets what was learned, and the last what these have changed.
                        for shape in [if client % 2 == 0 { plain } else { shape }, shape, plain] {
                            modes.request(service, client, shape);
                            modes.reply(flow + usize::from(client), shape);
                        }
                    }
                    flow += shapes.len();
                }
            }
        }
        modes.end();
    }
}

/// A connection's first packet goes the long way, its later ones could go the short one.
#[test]
fn what_goes_to_the_machine_itself_does_not_age() {
    let mut bench = Bench::default();
    assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:53").0, 0);
    assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:53 -r 10.1.0.1 -m").0, 0);
    let client = Ipv4Addr::new(10, 0, 0, 2);
    for ttl in [64, 64, 1] {
        let mut datagram = udp((client_mac(client), C0), (client, 4000), (VIP, 53));
        datagram[22] = ttl;
        datagram[24..26].fill(0);
        let sum = checksum(&datagram[14..34]);
        datagram[24..26].copy_from_slice(&sum.to_be_bytes());
        let (port, sent) = bench.frame(CLIENTS, &datagram).only();
        assert_eq!((port, sent[22], &sent[30..34]), (HOME, ttl, &[10, 1, 0, 1][..]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_comes_what_leaves_is_sound(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        targets::modes(&bytes);
    }
}

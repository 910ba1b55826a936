//! Every mode, every protocol, both families, with and without VLAN tags: [`shunt_tests::modes`] says what must hold.

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{CLIENTS, SERVERS};
use shunt_tests::modes::{MODES, Modes, Service, Shape};
use shunt_tests::targets;

const SYN: u8 = 2;
const ACK: u8 = 0x10;
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_comes_what_leaves_is_sound(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        targets::modes(&bytes);
    }
}

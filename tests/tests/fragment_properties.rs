//! Datagrams in parts through a director: all parts get through, in whatever order they come and however they were cut, and no two that overlap.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use proptest::prelude::*;
use shunt_dataplane::packet::protocol::UDP;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, checksum, client_mac};

/// A part of a datagram: its bytes, in units of 8, and whether more follow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    units: Range<u16>,
    more: bool,
}

impl Part {
    /// In a frame from the client. All have what the first would need: the ports stand at the beginning.
    fn frame(&self, is_v4: bool, id: u16) -> Vec<u8> {
        let payload: Vec<u8> = [1000_u16.to_be_bytes(), 53_u16.to_be_bytes(), [0xff; 2], [1; 2]].concat();
        let payload = payload.repeat(usize::from(self.units.end - self.units.start));
        let length = payload.len() as u16;
        let [i0, i1] = id.to_be_bytes();
        let packet = if is_v4 {
            let [l0, l1] = (length + 20).to_be_bytes();
            let [o0, o1] = (self.units.start | if self.more { 0x2000 } else { 0 }).to_be_bytes();
            let fixed = [0x45, 0, l0, l1, i0, i1, o0, o1, 64, UDP, 0, 0, 10, 0, 0, 2];
            let mut packet = [&fixed[..], &VIP.octets(), &payload].concat();
            let sum = checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        } else {
            let [l0, l1] = (length + 8).to_be_bytes();
            let [o0, o1] = (self.units.start << 3 | u16::from(self.more)).to_be_bytes();
            let address =
                |net| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, if net == 0xf { 1 } else { 2 }).octets();
            let (from, to) = (address(0xa), address(0xf));
            let fragment = [UDP, 0, o0, o1, 0, 0, i0, i1];
            [&[0x60, 0, 0, 0, l0, l1, 44, 64][..], &from, &to, &fragment, &payload].concat()
        };
        let mac = client_mac([10, 0, 0, 2].into());
        [&C0[..], &mac, &if is_v4 { [8, 0] } else { [0x86, 0xdd] }, &packet].concat()
    }

    /// Reads a frame to the real server.
    fn read(frame: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (begin, bytes, more) = if frame[12] == 8 {
            (word(20) & 0x1fff, word(16) - 20, frame[20] & 0x20 != 0)
        } else {
            (word(56) >> 3, word(18) - 8, frame[57] & 1 != 0)
        };
        Self { units: begin..begin + bytes / 8, more }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.units.start < other.units.end && other.units.start < self.units.end
    }
}

/// A bench with a service of UDP, by NAT and by direct routing.
fn bench(is_v4: bool, by_nat: bool) -> Bench {
    let mut bench = Bench::default();
    let vip = if is_v4 { VIP.to_string() } else { "[2001:db8:f::1]".to_owned() };
    let real: IpAddr = if is_v4 { [10, 1, 0, 11].into() } else { "2001:db8:b::b".parse().unwrap() };
    let real = if is_v4 { real.to_string() } else { format!("[{real}]") };
    let how = if by_nat { "-m" } else { "-g" };
    for line in [format!("-A -u {vip}:53 -s rr"), format!("-a -u {vip}:53 -r {real}:53 {how}")] {
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    bench
}

fn deliver(bench: &mut Bench, frame: &[u8]) -> Vec<Part> {
    let sent = bench.frame_and_kept(CLIENTS, frame);
    sent.iter()
        .map(|(port, frame)| {
            assert_eq!(*port, SERVERS);
            Part::read(frame)
        })
        .collect()
}

/// Cuts a datagram into parts of up to 1400 bytes.
fn partitions() -> impl Strategy<Value = Vec<Part>> {
    prop::collection::vec(1u16..176, 2..46).prop_map(|lengths| {
        let mut at = 0;
        let last = lengths.len() - 1;
        let cut = |(n, length): (usize, u16)| {
            at += length;
            Part { units: at - length..at, more: n != last }
        };
        lengths.into_iter().enumerate().map(cut).collect()
    })
}

/// The same in some order.
fn shuffled() -> impl Strategy<Value = Vec<Part>> {
    partitions().prop_flat_map(|parts| Just(parts).prop_shuffle())
}

fn sorted(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort_by_key(|part| part.units.start);
    parts
}

proptest! {
    #[test]
    fn all_parts_get_through_once_the_first_is_there(is_v4: bool, by_nat: bool, parts in shuffled(), again: bool) {
        let mut bench = bench(is_v4, by_nat);
        // The same id again is another datagram.
        for _ in 0..=usize::from(again) {
            let mut sent = Vec::new();
            for part in &parts {
                sent.extend(deliver(&mut bench, &part.frame(is_v4, 7)));
                let first_was_there = sent.first().is_some_and(|first| first.units.start == 0);
                prop_assert!(sent.is_empty() || first_was_there);
            }
            prop_assert_eq!(sorted(sent), sorted(parts.clone()));
        }
    }

    #[test]
    fn duplicates_are_dropped_alone(
        is_v4: bool, parts in shuffled(), twice in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
    ) {
        let mut bench = bench(is_v4, true);
        // The last to come makes the datagram whole: what comes after that is of another.
        let mut list = parts.clone();
        for index in twice {
            let part = index.get(&parts[..parts.len() - 1]).clone();
            let at = index.index(list.len() - 1);
            list.insert(at, part);
        }
        let sent: Vec<Part> = list.iter().flat_map(|part| deliver(&mut bench, &part.frame(is_v4, 7))).collect();
        prop_assert_eq!(sorted(sent), sorted(parts));
    }

    #[test]
    fn no_two_parts_that_overlap_get_through(
        is_v4: bool, by_nat: bool, parts in shuffled(),
        intruders in prop::collection::vec((0u16..4000, 1u16..176, any::<bool>(), any::<prop::sample::Index>()), 1..8),
    ) {
        let mut bench = bench(is_v4, by_nat);
        // Without one of them, and an end before it, the datagram never is whole, and all that comes belongs to it.
        let missing = &parts[0];
        let mut list = parts[1..].to_vec();
        for (begin, length, more, at) in intruders {
            let more = more || begin + length <= missing.units.end;
            list.insert(at.index(list.len() + 1), Part { units: begin..begin + length, more });
        }
        list.retain(|part| !part.overlaps(missing));
        let mut sent: Vec<Part> = Vec::new();
        for part in &list {
            for new in deliver(&mut bench, &part.frame(is_v4, 7)) {
                prop_assert!(!sent.iter().any(|old| old.overlaps(&new)), "{:?} after {:?}", new, sent);
                sent.push(new);
            }
        }
    }
}

//! Consistent hash: a client's address decides, by a ring on which each real server has many points (Karger et al., Consistent Hashing and
//! Random Trees, STOC 1997).
//!
//! Kernel IPVS has no such scheduler; DPVS users know it by this name. Points and hashes are ours, so the servers chosen are not those
//! that DPVS would choose. A server's points depend on nothing but its address, its port and its weight, not on the order in which
//! servers were added: directors with the same rules agree.
//!
//! A client belongs to the next point on the ring whose server takes connections. When a server leaves, drains or is overloaded, its
//! clients go to others and nobody else's do; they come back when it does. The exception is the removal (or another weight) of the
//! heaviest server of all, if that halves the scale of all weights ([`scale`]).

use std::net::IpAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, Service};
use crate::stats::Counters;

/// The scheduler `conhash`.
#[derive(Clone, Debug, Default)]
pub struct ConsistentHash {
    /// In the order of the ring. Made anew when the list of real servers changes; copies share it.
    ring: Arc<[Point]>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    at: u32,
    /// The real server's place in the service's list.
    place: u32,
}

/// The heaviest server's points have so many bits: it has 128 to 255. More would spread clients more evenly and take more memory: with this many, a
/// server's share is off by a fourteenth typically, and a thousand equal servers take a megabyte.
const POINT_BITS: u32 = 8;

/// Everybody knows the key, and every director has the same one: a client that chooses its address can choose its server. That is
/// what hashing schedulers are for.
const KEY: [u64; 2] = [u64::from_be_bytes(*b"shunt co"), u64::from_be_bytes(*b"nsistent")];

impl Scheduler for ConsistentHash {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        // The search below ends at the first that may; it must not begin if there is none.
        if !service.dests.iter().any(|dest| is_eligible(dest, counters)) {
            return None;
        }
        let client = hash(request.client.0, &[]);
        let (before, after) = self.ring.split_at(self.ring.partition_point(|point| point.at < client));
        let dests = after.iter().chain(before).filter_map(|point| service.dests.get(point.place as usize));
        let mut eligible = dests.filter(|dest| is_eligible(dest, counters));
        eligible.next()
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        let heaviest = new.iter().map(|dest| dest.last_weight).max().unwrap_or(0);
        let mut ring: Vec<Point> = (0..)
            .zip(new)
            .flat_map(|(place, dest)| points(dest, heaviest).map(move |at| Point { at, place }))
            .collect();
        // Of two points at one place the list's order must not decide.
        ring.sort_unstable_by_key(|point| {
            let dest = &new[point.place as usize];
            (point.at, dest.address, dest.port)
        });
        self.ring = ring.into();
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn has_history(&self) -> bool {
        false
    }
}

/// Where a server's points are.
fn points(dest: &Dest, heaviest: u32) -> impl Iterator<Item = u32> {
    let (address, port) = (dest.address, dest.port.to_be_bytes());
    (0..scale(dest.last_weight, heaviest)).map(move |n| {
        let [high, low] = (n as u16).to_be_bytes();
        hash(address, &[port[0], port[1], high, low])
    })
}

/// The points of a server: its weight, times or divided by the power of two that gives the heaviest server [`POINT_BITS`]; one at least
/// if it has any weight.
fn scale(weight: u32, heaviest: u32) -> u32 {
    let bits = u32::BITS - heaviest.leading_zeros();
    match POINT_BITS.checked_sub(bits) {
        Some(up) => weight << up,
        None => (weight >> (bits - POINT_BITS)).max(weight.min(1)),
    }
}

fn hash(address: IpAddr, more: &[u8]) -> u32 {
    let mut bytes = [0; 20];
    let length = match address {
        IpAddr::V4(v4) => {
            bytes[..4].copy_from_slice(&v4.octets());
            4
        }
        IpAddr::V6(v6) => {
            bytes[..16].copy_from_slice(&v6.octets());
            16
        }
    };
    bytes[length..length + more.len()].copy_from_slice(more);
    let [a, b] = KEY;
    (SipHasher13::new_with_keys(a, b).hash(&bytes[..length + more.len()]) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sched::bench::Bench;

    fn chosen(bench: &mut Bench, clients: u32) -> Vec<String> {
        (0..clients)
            .map(|n| bench.client(&std::net::Ipv4Addr::from_bits(0x0a00_0000 + n * 7).to_string(), 1))
            .collect()
    }

    #[test]
    fn nobody_and_everybody() {
        let mut bench = Bench::new("conhash");
        assert_eq!(bench.client("2001:db8::1", 1), "-");
        bench.weight('A', 0);
        assert_eq!(bench.client("2001:db8::1", 1), "-");
        bench.weight('A', 65_535);
        assert_eq!(bench.client("2001:db8::1", 1), "A");
        bench.overload('A', true);
        assert_eq!(bench.client("2001:db8::1", 1), "-");
    }

    #[test]
    fn weights_are_points() {
        assert_eq!([1, 2, 3].map(|weight| scale(weight, 3)), [64, 128, 192]);
        assert_eq!([0, 1, 100, 65_535].map(|weight| scale(weight, 65_535)), [0, 1, 1, 255]);
        assert_eq!([0, 5].map(|weight| scale(weight, 5)), [0, 160]);
        assert_eq!([1, i32::MAX as u32].map(|weight| scale(weight, i32::MAX as u32)), [1, 255]);

        let mut bench = Bench::new("conhash");
        bench.weight('A', 1);
        bench.weight('B', 3);
        let chosen = chosen(&mut bench, 4000);
        let share = chosen.iter().filter(|name| *name == "B").count();
        assert!(share.abs_diff(3000) < 300, "{share} of 4000");
    }

    #[test]
    fn the_order_of_addition_does_not_matter() {
        let (mut one, mut two) = (Bench::new("conhash"), Bench::new("conhash"));
        "ABCDE".chars().for_each(|name| one.weight(name, 2));
        "DBECA".chars().for_each(|name| two.weight(name, 2));
        assert_eq!(chosen(&mut one, 500), chosen(&mut two, 500));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However a server stops taking connections, only its own clients go elsewhere, and they return.
        #[test]
        fn only_the_leaving_servers_clients_move(servers in 2u8..20, leaves in any::<prop::sample::Index>(), how in 0..3) {
            let names: Vec<char> = (0..servers).map(|n| char::from(b'A' + n)).collect();
            let leaves = names[leaves.index(names.len())];
            let mut bench = Bench::new("conhash");
            names.iter().for_each(|name| bench.weight(*name, 4));
            let before = chosen(&mut bench, 1000);
            match how {
                0 => bench.remove(leaves),
                1 => bench.weight(leaves, 0),
                _ => bench.overload(leaves, true),
            }
            for (before, after) in before.iter().zip(chosen(&mut bench, 1000)) {
                if *before == leaves.to_string() {
                    prop_assert_ne!(before, &after);
                } else {
                    prop_assert_eq!(before, &after);
                }
            }
            bench.overload(leaves, false);
            bench.weight(leaves, 4);
            prop_assert_eq!(before, chosen(&mut bench, 1000));
        }
    }
}

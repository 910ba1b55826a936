//! Maglev hash: a client's address decides, through a table of 4093 slots that hardly changes when a real server comes or goes
//! (`ip_vs_mh_schedule`; Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, section 3.4).
//!
//! Each real server has its own order of all slots, made of two hashes of its address and port: where it starts and how far it skips. Going
//! around the list, each takes the next slots of its order that are free, as many as its weight says, until none is free
//! (`ip_vs_mh_populate`). The table is the kernel's slot for slot, so that directors of either kind can serve one virtual
//! address behind one router.
//!
//! Weights count by their last value that was not 0: a server that drains keeps its slots, and its clients get nobody (ICMP port
//! unreachable) unless the flag `mh-fallback` is set; then they are hashed again, with other offsets, until a server is
//! found (`ip_vs_mh_get_fallback`). With `mh-port` the client's port is hashed too.

use std::net::IpAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::hash::{Slots, word};
use super::{Choice, Request, Scheduler, is_eligible};
use crate::service::{Dest, FALLBACK, HASH_PORT, Service};
use crate::stats::Counters;

/// The scheduler `mh`.
#[derive(Clone, Debug, Default)]
pub struct Maglev {
    slots: Slots,
}

/// A real server's own order of slots.
struct Permutation {
    next: usize,
    skip: usize,
    /// Slots it takes each time around.
    turns: u32,
}

/// The kernel's table as distributions build it (`CONFIG_IP_VS_MH_TAB_INDEX=12`): a prime near 2¹². A server more than there are
/// slots gets none.
const SLOTS: usize = 4093;

/// Significant bits that weights keep when they become turns: half of the table's, so that the heaviest servers do not fill it
/// before the lightest had theirs.
const TURN_BITS: u32 = 6;

/// The keys of the two hashes, the kernel's: both words of a key are the same.
const FIRST: u64 = 2_654_435_761;
const SECOND: u64 = 2_654_446_892;

impl Scheduler for Maglev {
    fn choose<'a>(&mut self, service: &'a Service, request: &Request, counters: &Counters) -> Choice<'a> {
        let (address, port) = request.client;
        let port = if service.flags & HASH_PORT != 0 { port } else { 0 };
        let slot = |offset| hash(FIRST, address, port, offset) % SLOTS;

        let may = |dest: &&Arc<Dest>| is_eligible(dest, counters);
        let home = slot(0);
        if let Some(dest) = self.slots.dest(service, home).filter(may) {
            return Some(dest);
        }
        // Hashing thousands of times only makes sense if there is somebody to find.
        if service.flags & FALLBACK == 0 || !service.dests.iter().any(|dest| is_eligible(dest, counters)) {
            return None;
        }
        let elsewhere = (0..SLOTS).map(|offset| slot((offset + home) % SLOTS));
        elsewhere.filter_map(|slot| self.slots.dest(service, slot)).find(may)
    }

    fn edited(&mut self, _old: &[Arc<Dest>], new: &[Arc<Dest>]) {
        self.slots = populate(new);
    }

    fn boxed(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn has_history(&self) -> bool {
        false
    }
}

fn populate(dests: &[Arc<Dest>]) -> Slots {
    const FREE: u32 = u32::MAX;
    let turns = turns(dests);
    if turns.iter().all(|turns| *turns == 0) {
        return Slots::default();
    }
    let orders = dests.iter().zip(turns).map(|(dest, turns)| Permutation::new(dest, turns));
    let mut orders: Vec<(u32, Permutation)> =
        (0..).zip(orders).filter(|(_, order)| order.turns > 0).collect();

    let mut slots = vec![FREE; SLOTS];
    let mut free = SLOTS;
    while free > 0 {
        for (place, order) in &mut orders {
            for _ in 0..order.turns.min(free as u32) {
                while slots[order.next] != FREE {
                    order.next = (order.next + order.skip) % SLOTS;
                }
                slots[order.next] = *place;
                free -= 1;
            }
        }
    }
    slots.into_iter().collect()
}

/// The slots each real server takes each time around: its weight without the common divisor, cut to [`TURN_BITS`] by the same shift
/// for all, one at least. A server that never had a weight takes none.
fn turns(dests: &[Arc<Dest>]) -> Vec<u32> {
    let weights = || dests.iter().map(|dest| dest.last_weight).filter(|weight| *weight > 0);
    let divisor = weights().fold(0, gcd).max(1);
    let bits = u32::BITS - (weights().max().unwrap_or(0) / divisor).leading_zeros();
    let shift = bits.saturating_sub(TURN_BITS);
    let turns = |weight: u32| ((weight / divisor) >> shift).max(weight.min(1));
    dests.iter().map(|dest| turns(dest.last_weight)).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Permutation {
    fn new(dest: &Dest, turns: u32) -> Self {
        Self {
            next: hash(FIRST, dest.address, dest.port, 0) % SLOTS,
            skip: hash(SECOND, dest.address, dest.port, 0) % (SLOTS - 1) + 1,
            turns,
        }
    }
}

/// The kernel's `hsiphash` as 64-bit machines have it, SipHash-1-3 cut to 32 bits, of the sum of what is hashed. The bytes go
/// in as a little-endian machine has them in memory.
fn hash(key: u64, address: IpAddr, port: u16, offset: usize) -> usize {
    let sum = word(address).wrapping_add(port.into()).wrapping_add(offset as u32);
    SipHasher13::new_with_keys(key, key).hash(&sum.to_le_bytes()) as u32 as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sched::bench::{self, Bench};

    /// 192.168.1.13, .12 and .11 port 80, in this order, named M, L and K.
    fn reference(weights: [u32; 3]) -> Vec<Arc<Dest>> {
        let dest = |(name, weight): (char, u32)| {
            let address = IpAddr::from([192, 168, 1, name as u8 - b'K' + 11]);
            Arc::new(Dest { address, ..bench::dest(name, weight, weight) })
        };
        "MLK".chars().zip(weights).map(dest).collect()
    }

    #[test]
    fn the_kernels_permutations() {
        let orders = reference([1; 3]).iter().map(|dest| Permutation::new(dest, 1)).collect::<Vec<_>>();
        let orders: Vec<_> = orders.iter().map(|order| (order.next, order.skip)).collect();
        assert_eq!(orders, [(1731, 3635), (3773, 149), (2340, 414)]);
    }

    #[test]
    fn the_kernels_shares() {
        assert_eq!(populate(&reference([1; 3])).shares(3), [1365, 1364, 1364]);
        assert_eq!(populate(&reference([4, 2, 2])).shares(3), [2047, 1023, 1023]);
        assert_eq!(populate(&reference([40, 20, 20])).shares(3), [2047, 1023, 1023]);
    }

    #[test]
    fn the_kernels_choices() {
        let clients = ["10.0.0.1", "10.0.0.2", "192.168.1.100", "203.0.113.7"];
        let slots = clients.map(|client| hash(FIRST, client.parse().unwrap(), 0, 0) % SLOTS);
        assert_eq!(slots, [3711, 1884, 1341, 1705]);

        let mut bench = Bench::new("mh");
        assert_eq!(bench.client("10.0.0.1", 1), "-");
        bench.replace(reference([1; 3]));
        let chosen = |bench: &mut Bench| clients.map(|client| bench.client(client, 1)).concat();
        assert_eq!(chosen(&mut bench), "LKLL");
        bench.overload('L', true);
        assert_eq!(chosen(&mut bench), "-K--");
        bench.flags(FALLBACK);
        assert!(!chosen(&mut bench).contains(['-', 'L']));
        "KM".chars().for_each(|name| bench.overload(name, true));
        assert_eq!(chosen(&mut bench), "----");
    }

    #[test]
    fn a_draining_server_keeps_its_slots_and_an_empty_one_has_none() {
        let clients: Vec<String> = (0..200).map(|n| format!("10.0.{n}.1")).collect();
        let chosen =
            |bench: &mut Bench| -> Vec<String> { clients.iter().map(|c| bench.client(c, 1)).collect() };
        let mut bench = Bench::new("mh");
        "AB".chars().for_each(|name| bench.weight(name, 3));
        bench.weight('C', 0);
        let before = chosen(&mut bench);
        assert!(before.iter().all(|name| name == "A" || name == "B"));
        bench.weight('B', 0);
        for (before, after) in before.iter().zip(chosen(&mut bench)) {
            assert_eq!(after, if before == "B" { "-" } else { "A" });
        }
    }

    #[test]
    fn the_port_counts_if_asked_for() {
        let mut bench = Bench::new("mh");
        "ABCDE".chars().for_each(|name| bench.weight(name, 1));
        let chosen =
            |bench: &mut Bench| (1..50).map(|port| bench.client("10.0.0.1", port)).collect::<Vec<_>>();
        assert!(chosen(&mut bench).windows(2).all(|two| two[0] == two[1]));
        bench.flags(HASH_PORT);
        assert!("ABCDE".chars().all(|name| chosen(&mut bench).contains(&name.to_string())));
    }

    #[test]
    fn more_servers_than_slots_do_no_harm() {
        let dests: Vec<_> =
            (0..SLOTS as u16 + 5).map(|port| Arc::new(Dest { port, ..bench::dest('A', 1, 1) })).collect();
        let shares = populate(&dests).shares(dests.len());
        assert!(shares[..SLOTS].iter().all(|share| *share == 1));
    }

    proptest! {
        #[test]
        fn slots_are_proportional_to_weights(weights in prop::collection::vec(1u32..=60, 1..40)) {
            let dests: Vec<_> = (b'A'..).zip(&weights).map(|(name, weight)| Arc::new(bench::dest(name.into(), *weight, *weight))).collect();
            let shares = populate(&dests).shares(dests.len());
            let (all, turns) = (weights.iter().sum::<u32>() as f64, turns(&dests));
            for (share, weight) in shares.iter().zip(&weights) {
                // The last time around may end anywhere.
                let fair = SLOTS as f64 * f64::from(*weight) / all;
                prop_assert!((*share as f64 - fair).abs() <= f64::from(*turns.iter().max().unwrap()) + 1.0);
            }
        }
    }
}

//! How often the director answers one sender with ICMP errors.
//!
//! As the kernel does it (`inet_peer_xrlim_allow`, `net.ipv4.icmp_ratelimit` at its default): each destination earns one
//! error a second and may save up six. The kernel keeps a tree of peers; here is a fixed table in which two peers may share a place, and then share
//! its allowance.

use std::net::IpAddr;

use crate::packet::address::SPREAD;
use crate::service::Tick;

/// Milliseconds that one answer costs.
const COST: u32 = 1000;

/// Answers that may be saved up (`XRLIM_BURST_FACTOR`).
const BURST: u32 = 6;

/// Places. A flood from more senders than this is answered less, which is the point of limiting.
const PLACES: usize = 1024;

/// The limiter.
pub struct Limiter {
    places: Box<[Place]>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    peer: u64,
    saved: u32,
    last: Tick,
    used: bool,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { places: vec![Place::default(); PLACES].into() }
    }
}

impl Limiter {
    /// Whether `peer` may get one more answer now; counts it if so.
    pub fn allows(&mut self, peer: IpAddr, now: Tick) -> bool {
        let peer = match peer {
            IpAddr::V4(peer) => u64::from(peer.to_bits()),
            // A host may have any number of addresses in its /64; they share an allowance.
            IpAddr::V6(peer) => (peer.to_bits() >> 64) as u64,
        };
        let place = &mut self.places[(peer.wrapping_mul(SPREAD) >> 54) as usize % PLACES];
        if !place.used || (place.peer != peer && now.since(place.last) >= COST * BURST) {
            *place = Place { peer, saved: COST * BURST, last: now, used: true };
        }
        place.saved = place.saved.saturating_add(now.since(place.last)).min(COST * BURST);
        place.last = now;
        let allowed = place.saved >= COST;
        if allowed {
            place.saved -= COST;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_at_once_then_one_a_second() {
        let mut limiter = Limiter::default();
        let peer: IpAddr = [10, 0, 0, 2].into();
        assert_eq!((0..10).filter(|_| limiter.allows(peer, Tick(5))).count(), 6);
        assert!(!limiter.allows(peer, Tick(1004)));
        assert!(limiter.allows(peer, Tick(1005)));
        assert!(limiter.allows([10, 0, 0, 3].into(), Tick(1005)), "another peer has its own allowance");
    }
}

//! What `lblc` and `lblcr` remember: the real server, or servers, of each destination address.
//!
//! Unlike a cache of connections this may grow with every address on the Internet, so it is bounded as in the kernel (`ip_vs_lblc_check_expire`):
//! looked at once a minute at most, it forgets what was unused for a day (`lblc_expiration`, `lblcr_expiration`), and when full what was unused for six minutes. What
//! the kernel does by a timer is done here by the first request after a minute; the kernel's table may grow past its limit meanwhile, this one does
//! not, and destinations that find no room are scheduled afresh each time.
//!
//! Real servers are remembered by address, not by identity: one that is removed and added again gets its destinations back.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::service::{Dest, Service, Tick};
use crate::stats::Counters;

/// A real server's address and port.
pub type Server = (IpAddr, u16);

/// What is known of destinations.
#[derive(Clone, Debug)]
pub struct Locality<T> {
    entries: HashMap<IpAddr, Entry<T>>,
    places: Places,
    /// When it was last tidied, and how often it was.
    tidied: Option<Tick>,
    rounds: u32,
}

/// The place of each real server in the service's list.
#[derive(Clone, Debug, Default)]
pub struct Places(HashMap<Server, usize>);

#[derive(Clone, Debug)]
struct Entry<T> {
    known: T,
    used: Tick,
}

/// Destinations of one service that are remembered (`16 * IP_VS_LBLC_TAB_SIZE`); about a megabyte.
const CAPACITY: usize = 16 * 1024;

/// How often the table is looked through at most (`CHECK_EXPIRE_INTERVAL`).
const INTERVAL: u32 = 60_000;

/// Each so many intervals all that expired is forgotten (`COUNT_FOR_FULL_EXPIRATION`).
const FULL_EXPIRATION: u32 = 30;

/// When the table is full, what was unused for so long is forgotten (`ENTRY_TIMEOUT`).
const FULL_TIMEOUT: u32 = 6 * 60_000;

impl<T> Locality<T> {
    /// What is known of a destination, and where its servers are. Asking counts as use; what was unused for `expiration` milliseconds is forgotten.
    pub fn find(&mut self, destination: IpAddr, expiration: u32, now: Tick) -> Option<(&mut T, &Places)> {
        self.tidy(expiration, now);
        let entry = self.entries.get_mut(&destination)?;
        entry.used = now;
        Some((&mut entry.known, &self.places))
    }

    /// Remembers something of a destination, if there is room.
    pub fn remember(&mut self, destination: IpAddr, known: T, now: Tick) {
        if self.entries.len() < CAPACITY || self.entries.contains_key(&destination) {
            self.entries.insert(destination, Entry { known, used: now });
        }
    }

    /// Learns the service's real servers.
    pub fn edited(&mut self, dests: &[Arc<Dest>]) {
        self.places = Places(dests.iter().enumerate().map(|(place, dest)| (server(dest), place)).collect());
    }

    fn tidy(&mut self, expiration: u32, now: Tick) {
        if now.since(*self.tidied.get_or_insert(now)) < INTERVAL {
            return;
        }
        self.tidied = Some(now);
        self.rounds = (self.rounds + 1) % FULL_EXPIRATION;
        if self.rounds == 0 {
            self.entries.retain(|_, entry| now.since(entry.used) <= expiration);
        } else if self.entries.len() >= CAPACITY {
            self.entries.retain(|_, entry| now.since(entry.used) <= FULL_TIMEOUT);
        }
    }
}

impl Places {
    /// A remembered real server, unless it was removed.
    pub fn dest<'a>(&self, service: &'a Service, server: &Server) -> Option<&'a Arc<Dest>> {
        service.dests.get(*self.0.get(server)?)
    }

    /// Those of several that were not removed.
    pub fn dests<'a>(&self, service: &'a Service, servers: &[Server]) -> impl Iterator<Item = &'a Arc<Dest>> {
        servers.iter().filter_map(|server| self.dest(service, server))
    }
}

impl<T> Default for Locality<T> {
    fn default() -> Self {
        Self { entries: HashMap::new(), places: Places::default(), tidied: None, rounds: 0 }
    }
}

/// A setting in seconds, in milliseconds.
pub fn milliseconds(seconds: i32) -> u32 {
    seconds.unsigned_abs().saturating_mul(1000)
}

/// How a real server is remembered.
pub fn server(dest: &Dest) -> Server {
    (dest.address, dest.port)
}

/// Whether a real server has more active connections than its weight while another one is half idle (`is_overloaded`). This is not the
/// overload of thresholds.
pub fn is_overworked(dest: &Dest, service: &Service, counters: &Counters) -> bool {
    let active = |dest: &Dest| counters.load(dest.id).active;
    let is_half_idle = |dest: &Arc<Dest>| active(dest) * 2 < u64::from(dest.weight);
    active(dest) > u64::from(dest.weight) && service.dests.iter().any(is_half_idle)
}

/// The real server of a set with the greatest `load` for its weight; weight 0 does not count.
pub fn most<'a>(
    dests: impl Iterator<Item = &'a Arc<Dest>>,
    load: impl Fn(&Dest) -> u64,
) -> Option<&'a Arc<Dest>> {
    let weighed = dests
        .filter(|dest| dest.weight > 0)
        .map(|dest| (dest, u128::from(load(dest)), u128::from(dest.weight)));
    let most = weighed.reduce(|best, next| if best.1 * next.2 < next.1 * best.2 { next } else { best });
    most.map(|(dest, ..)| dest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 24 * 3_600_000;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn what_is_unused_for_a_day_is_forgotten() {
        let mut known = Locality::default();
        let mut now = Tick(u32::MAX - 1000);
        known.remember(address(1), 'a', now);
        known.remember(address(2), 'b', now);
        for _ in 0..25 * 60 {
            now = now.plus(60_000);
            assert!(known.find(address(2), DAY, now).is_some());
        }
        assert!(known.find(address(1), DAY, now).is_none());
    }

    #[test]
    fn a_full_table_takes_no_more_until_something_is_unused() {
        let mut known = Locality::default();
        let mut now = Tick(0);
        (0..CAPACITY as u32 + 1).for_each(|n| known.remember(address(n), n, now));
        assert!(known.find(address(CAPACITY as u32), DAY, now).is_none());
        known.remember(address(0), 7, now);
        assert_eq!(known.find(address(0), DAY, now).map(|(known, _)| *known), Some(7));
        for _ in 0..8 {
            now = now.plus(60_000);
            assert!(known.find(address(0), DAY, now).is_some());
        }
        assert!(known.find(address(1), DAY, now).is_none());
        known.remember(address(1), 1, now);
        assert!(known.find(address(1), DAY, now).is_some());
    }
}

//! What is taken, whichever way it is taken.
//!
//! Both ways of steering need to know, besides the targets themselves, at which addresses any target is left: a later
//! fragment has no ports, so it is taken when its protocol and address have *some* target. [`Claims`] keeps the
//! set and counts the targets of each [`Place`]. It knows nothing of the kernel; its owners write to the kernel what it
//! says.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Target;

/// On which side of a frame a target is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Service,
    RealServer,
    Tunnel,
}

/// An address with a protocol, in a role: a target without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) role: Role,
    /// The IP protocol's number.
    pub(super) protocol: u8,
    pub(super) address: IpAddr,
}

impl Place {
    pub(super) fn of(target: Target) -> Place {
        match target {
            Target::Service { protocol, address, .. } => {
                Place { role: Role::Service, protocol: protocol as u8, address }
            }
            Target::RealServer { protocol, address, .. } => {
                Place { role: Role::RealServer, protocol: protocol as u8, address }
            }
            Target::Tunnel { protocol, address, .. } => Place { role: Role::Tunnel, protocol, address },
        }
    }
}

impl Target {
    /// The port; 0 is every port, or that the protocol has none.
    pub(super) fn port(self) -> u16 {
        match self {
            Target::Service { port, .. } | Target::RealServer { port, .. } | Target::Tunnel { port, .. } => {
                port
            }
        }
    }
}

/// The targets that are taken.
#[derive(Debug, Default)]
pub(super) struct Claims {
    targets: HashSet<(Place, u16)>,
    places: HashMap<Place, u32>,
}

impl Claims {
    /// Adds a target; false if it was there.
    pub(super) fn insert(&mut self, target: Target) -> bool {
        let place = Place::of(target);
        let new = self.targets.insert((place, target.port()));
        if new {
            *self.places.entry(place).or_default() += 1;
        }
        new
    }

    /// Removes a target; false if it was not there.
    pub(super) fn remove(&mut self, target: Target) -> bool {
        let place = Place::of(target);
        let old = self.targets.remove(&(place, target.port()));
        if old {
            match self.places.get_mut(&place) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.places.remove(&place)),
            }
        }
        old
    }

    pub(super) fn contains(&self, target: Target) -> bool {
        self.has(Place::of(target), target.port())
    }

    pub(super) fn has(&self, place: Place, port: u16) -> bool {
        self.targets.contains(&(place, port))
    }

    /// The number of targets at a place.
    pub(super) fn count(&self, place: Place) -> u32 {
        self.places.get(&place).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    #[test]
    fn a_place_is_there_as_long_as_its_last_target() {
        let target = |port| Target::Service { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port };
        let place = Place::of(target(80));
        let mut claims = Claims::default();
        assert!(claims.insert(target(80)));
        assert!(!claims.insert(target(80)), "the same again changes nothing");
        assert!(claims.insert(target(443)));
        assert_eq!(claims.count(place), 2);
        assert!(claims.remove(target(80)));
        assert!(!claims.remove(target(80)));
        assert_eq!(claims.count(place), 1);
        assert!(claims.remove(target(443)));
        assert_eq!(claims.count(place), 0);
        assert_eq!(claims.count(Place { role: Role::RealServer, ..place }), 0);
    }
}

//! What is taken, whichever way it is taken.
//!
//! Both ways of steering need to know, besides the targets themselves, at which addresses any target is left: a later
//! fragment has no ports, so it is taken when its protocol and address have *some* target. [`Claims`] keeps the
//! set and counts the targets of each [`Place`]. It knows nothing of the kernel; its owners write to the kernel what it
//! says.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Target;
use crate::service::Protocol;

/// On which side of a frame a target is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Service,
    RealServer,
}

/// An address with a protocol, in a role: a target without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) protocol: Protocol,
    pub(super) address: IpAddr,
}

impl Place {
    pub(super) fn of(target: Target) -> Place {
        match target {
            Target::Service { protocol, address, .. } => Place { role: Role::Service, protocol, address },
            Target::RealServer { protocol, address, .. } => {
                Place { role: Role::RealServer, protocol, address }
            }
        }
    }

    pub(super) fn target(self, port: u16) -> Target {
        let Place { role, protocol, address } = self;
        match role {
            Role::Service => Target::Service { protocol, address, port },
            Role::RealServer => Target::RealServer { protocol, address, port },
        }
    }
}

impl Target {
    /// The port; 0 is every port.
    pub(super) fn port(self) -> u16 {
        match self {
            Target::Service { port, .. } | Target::RealServer { port, .. } => port,
        }
    }
}

/// The targets that are taken.
#[derive(Debug, Default)]
pub(super) struct Claims {
    targets: HashSet<Target>,
    places: HashMap<Place, u32>,
}

impl Claims {
    /// Adds a target; false if it was there.
    pub(super) fn insert(&mut self, target: Target) -> bool {
        let new = self.targets.insert(target);
        if new {
            *self.places.entry(Place::of(target)).or_default() += 1;
        }
        new
    }

    /// Removes a target; false if it was not there.
    pub(super) fn remove(&mut self, target: Target) -> bool {
        let old = self.targets.remove(&target);
        if old {
            let place = Place::of(target);
            match self.places.get_mut(&place) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.places.remove(&place)),
            }
        }
        old
    }

    pub(super) fn contains(&self, target: Target) -> bool {
        self.targets.contains(&target)
    }

    /// The number of targets at a place.
    pub(super) fn count(&self, place: Place) -> u32 {
        self.places.get(&place).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_there_as_long_as_its_last_target() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let place = Place { role: Role::Service, protocol: Protocol::Tcp, address };
        let mut claims = Claims::default();
        assert!(claims.insert(place.target(80)));
        assert!(!claims.insert(place.target(80)), "the same again changes nothing");
        assert!(claims.insert(place.target(443)));
        assert_eq!(claims.count(place), 2);
        assert!(claims.remove(place.target(80)));
        assert!(!claims.remove(place.target(80)));
        assert_eq!(claims.count(place), 1);
        assert!(claims.remove(place.target(443)));
        assert_eq!(claims.count(place), 0);
        assert_eq!(claims.count(Place { role: Role::RealServer, ..place }), 0);
    }
}

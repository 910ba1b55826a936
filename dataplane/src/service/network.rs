//! The kernel's own view of the network, mirrored: interfaces, addresses, routes, neighbours.
//!
//! Nothing here is configured. Control follows netlink and publishes; workers ask [`Network::hop`] where a packet to an address must go.
//! The answer is cached in connections and valid for one network's life.

use hashbrown::{HashMap, HashSet};

use super::PortId;
use crate::packet::V4;

/// An interface of the director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Bytes of IP that it takes.
    pub mtu: u16,
    /// Its first IPv4 address: the source of what the director itself says as a router.
    pub address: Option<V4>,
}

/// A route of the main table through an interface of the director, or through none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub prefix: V4,
    /// Leading bits of the destination that count, 0 to 32.
    pub length: u8,
    /// The next router, if the destination is not on the link.
    pub gateway: Option<V4>,
    /// The interface; `None` when it is not one of the director's, or the route says unreachable.
    pub port: Option<PortId>,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its Ethernet address.
    Reachable([u8; 6]),
    /// It does not answer.
    Failed,
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The port to send it by.
    pub port: PortId,
    /// Bytes of IP that fit.
    pub mtu: u16,
    /// Destination and source addresses of the frame, in the order of the header.
    pub macs: [u8; 12],
}

/// Why there is no hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route, or one through somebody else's interface.
    NoRoute,
    /// The neighbour's Ethernet address is not known yet; it must be asked for.
    Unresolved(PortId, V4),
    /// The neighbour does not answer.
    NoNeighbour,
}

/// The network at one moment. Immutable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    interfaces: Vec<Interface>,
    /// By prefix length, longest first; only lengths that occur.
    routes: Vec<(u8, HashMap<V4, Route>)>,
    neighbours: HashMap<(PortId, V4), Neighbour>,
    local: HashSet<V4>,
    forwards: bool,
}

impl Network {
    /// A network of these parts. Of two routes to one prefix the first counts: the kernel lists them by metric.
    pub fn new(
        interfaces: Vec<Interface>,
        routes: impl IntoIterator<Item = Route>,
        neighbours: impl IntoIterator<Item = ((PortId, V4), Neighbour)>,
    ) -> Self {
        let mut by_length: Vec<(u8, HashMap<V4, Route>)> = Vec::new();
        for route in routes {
            let at = match by_length.binary_search_by(|(length, _)| route.length.cmp(length)) {
                Ok(at) => at,
                Err(at) => {
                    by_length.insert(at, (route.length, HashMap::new()));
                    at
                }
            };
            by_length[at].1.entry(mask(route.prefix, route.length)).or_insert(route);
        }
        Self {
            interfaces,
            routes: by_length,
            neighbours: neighbours.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The same network, on a machine that has these addresses and forwards between its interfaces or not.
    #[must_use]
    pub fn on_machine(mut self, local: impl IntoIterator<Item = V4>, forwards: bool) -> Self {
        self.local = local.into_iter().collect();
        self.forwards = forwards;
        self
    }

    /// Whether an address is the machine's own.
    pub fn is_local(&self, address: V4) -> bool {
        self.local.contains(&address)
    }

    /// Whether the machine is a router (`net.ipv4.ip_forward`).
    pub fn forwards(&self) -> bool {
        self.forwards
    }

    /// The director's interfaces, by [`PortId`].
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The interface of a port.
    pub fn interface(&self, port: PortId) -> Option<&Interface> {
        self.interfaces.get(usize::from(port.0))
    }

    /// The route to an address: the one with the longest prefix.
    pub fn route(&self, to: V4) -> Option<&Route> {
        self.routes.iter().find_map(|(length, routes)| routes.get(&mask(to, *length)))
    }

    /// Where a packet to an address goes next.
    ///
    /// # Errors
    /// Says why it cannot go anywhere, or not yet.
    pub fn hop(&self, to: V4) -> Result<Hop, Unreachable> {
        let route = self.route(to).ok_or(Unreachable::NoRoute)?;
        let port = route.port.ok_or(Unreachable::NoRoute)?;
        let interface = self.interface(port).ok_or(Unreachable::NoRoute)?;
        let next = route.gateway.unwrap_or(to);
        match self.neighbours.get(&(port, next)) {
            Some(Neighbour::Reachable(mac)) => {
                let mut macs = [0; 12];
                macs[..6].copy_from_slice(mac);
                macs[6..].copy_from_slice(&interface.mac);
                Ok(Hop { port, mtu: interface.mtu, macs })
            }
            Some(Neighbour::Failed) => Err(Unreachable::NoNeighbour),
            None => Err(Unreachable::Unresolved(port, next)),
        }
    }
}

fn mask(address: V4, length: u8) -> V4 {
    // A shift by 32 is no shift at all, hence the detour for the default route.
    V4(address.0.checked_shr(32 - u32::from(length)).map_or(0, |bits| bits << (32 - u32::from(length))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> V4 {
        text.parse::<std::net::Ipv4Addr>().unwrap().into()
    }

    fn network() -> Network {
        let interface = |name: &str, n: u8| Interface {
            name: name.into(),
            index: u32::from(n) + 7,
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1500,
            address: None,
        };
        let route = |prefix: &str, length, gateway: Option<&str>, port: Option<u8>| Route {
            prefix: v4(prefix),
            length,
            gateway: gateway.map(v4),
            port: port.map(PortId),
        };
        Network::new(
            vec![interface("c0", 0), interface("s0", 1)],
            [
                route("0.0.0.0", 0, Some("10.0.0.254"), Some(0)),
                route("10.0.0.0", 16, None, Some(0)),
                route("10.1.0.0", 24, None, Some(1)),
                route("10.1.0.128", 25, None, None),
                route("10.1.0.0", 24, None, Some(0)),
            ],
            [
                ((PortId(1), v4("10.1.0.11")), Neighbour::Reachable([0xb; 6])),
                ((PortId(0), v4("10.0.0.254")), Neighbour::Reachable([0xfe; 6])),
                ((PortId(1), v4("10.1.0.12")), Neighbour::Failed),
            ],
        )
    }

    #[test]
    fn the_longest_prefix_decides_and_the_gateway_is_the_neighbour() {
        let network = network();
        let hop = network.hop(v4("10.1.0.11")).unwrap();
        assert_eq!((hop.port, hop.macs), (PortId(1), [0xb, 0xb, 0xb, 0xb, 0xb, 0xb, 2, 0, 0, 0, 0, 1]));
        assert_eq!(network.hop(v4("8.8.8.8")).unwrap().macs[..6], [0xfe; 6]);
        assert_eq!(network.hop(v4("10.1.0.200")), Err(Unreachable::NoRoute));
        assert_eq!(network.hop(v4("10.1.0.12")), Err(Unreachable::NoNeighbour));
        assert_eq!(network.hop(v4("10.1.0.13")), Err(Unreachable::Unresolved(PortId(1), v4("10.1.0.13"))));
    }
}

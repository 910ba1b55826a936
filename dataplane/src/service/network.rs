//! The kernel's own view of the network, mirrored: interfaces and VLANs on them, addresses, routes, neighbours.
//!
//! Nothing here is configured. Control follows netlink and publishes; workers ask [`Network::hop`] where a packet to an address must go.
//! The answer is cached in connections and valid for one network's life.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::{LinkId, PortId, Sorted};
use crate::packet::{Address, Tags, V4, V6};

/// An interface of the machine: one of the director's, or a VLAN on one of those.
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
    /// Its first address of each family, global before link-local: the sources of what the director itself says as a router.
    pub addresses: [Option<IpAddr>; 2],
}

/// A VLAN: an interface of its own to the kernel, whose frames come and go by an interface of the director with tags on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// What the kernel knows of it.
    pub interface: Interface,
    /// The port of the interface below.
    pub port: PortId,
    /// The tags.
    pub tags: Tags,
}

/// A route of the main table through an interface of the director or a VLAN on one, or through none of them; or one of the local table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub prefix: IpAddr,
    /// Leading bits of the destination that count.
    pub length: u8,
    /// The next router, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// The interface or VLAN; `None` when it is none of the director's, or the route says local or unreachable.
    pub link: Option<LinkId>,
    /// Bytes of IP that fit, if the route has less than its interface (`mtu`).
    pub mtu: Option<u16>,
    /// The director's address that tunnels begin at there, if the route says which (`src`).
    pub source: Option<IpAddr>,
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
// Aligned, it is copied in two pieces that are read again as such: a load of what two stores have just written waits for both to reach the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(align(16))]
pub struct Hop {
    /// The port to send it by.
    pub port: PortId,
    /// The link that is, which is not the port's own interface when there are tags.
    pub link: LinkId,
    /// Bytes of IP that fit.
    pub mtu: u16,
    /// The same for packets of which nothing else needs to be asked. None of those to the machine itself are such.
    pub plain_mtu: u16,
    /// Destination and source addresses of the frame, in the order of the header.
    pub macs: [u8; 12],
    /// The VLAN's tags, mostly none.
    pub tags: Tags,
    /// The director's own IPv4 address on the link, which tunnels come from; zero if it has none.
    pub own_v4: V4,
    /// The same of IPv6.
    pub own_v6: V6,
}

/// Why there is no hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route, or one through somebody else's interface.
    NoRoute,
    /// The neighbour's Ethernet address is not known yet; it must be asked for.
    Unresolved(LinkId, IpAddr),
    /// The neighbour does not answer.
    NoNeighbour,
}

/// The network at one moment. Immutable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    interfaces: Vec<Interface>,
    vlans: Vec<Vlan>,
    /// By prefix length, longest first; only lengths that occur. IPv4 and IPv6 apart.
    routes: [Vec<(u8, HashMap<IpAddr, Route>)>; 2],
    neighbours: HashMap<(LinkId, IpAddr), Neighbour>,
    local: HashSet<IpAddr>,
    /// How those end: nearly all others are ruled out by that.
    endings: u64,
    forwards: [bool; 2],
    home: Option<LinkId>,
    spread: Option<Arc<Sorted>>,
}

impl Network {
    /// A network of these parts. Of two routes to one prefix the first counts: the kernel lists them by metric.
    pub fn new(
        interfaces: Vec<Interface>,
        routes: impl IntoIterator<Item = Route>,
        neighbours: impl IntoIterator<Item = ((LinkId, IpAddr), Neighbour)>,
    ) -> Self {
        let mut all: [Vec<(u8, HashMap<IpAddr, Route>)>; 2] = Default::default();
        for route in routes {
            let by_length = &mut all[family(route.prefix)];
            let at = match by_length.binary_search_by(|(length, _)| route.length.cmp(length)) {
                Ok(at) => at,
                Err(at) => {
                    by_length.insert(at, (route.length, HashMap::new()));
                    at
                }
            };
            by_length[at].1.entry(mask(route.prefix, route.length)).or_insert(route);
        }
        Self { interfaces, routes: all, neighbours: neighbours.into_iter().collect(), ..Self::default() }
    }

    /// The same network, with VLANs: after the interfaces they are the next links, in this order.
    #[must_use]
    pub fn with_vlans(mut self, vlans: Vec<Vlan>) -> Self {
        self.vlans = vlans;
        self
    }

    /// The same network, whose NICs deal frames out to the workers like this.
    #[must_use]
    pub fn with_spread(mut self, spread: Option<Arc<Sorted>>) -> Self {
        self.spread = spread;
        self
    }

    /// How the NICs deal frames out to the workers, if that is known and the same for all.
    pub fn spread(&self) -> Option<&Arc<Sorted>> {
        self.spread.as_ref()
    }

    /// The same network, on a machine that has these addresses and forwards IPv4 and IPv6 between its interfaces or not.
    #[must_use]
    pub fn on_machine(mut self, local: impl IntoIterator<Item = IpAddr>, forwards: [bool; 2]) -> Self {
        self.local = local.into_iter().collect();
        self.endings = self.local.iter().fold(0, |endings, address| endings | ending(*address));
        self.forwards = forwards;
        self
    }

    /// The same network, where the machine's own kernel is beyond a link: the interface that is behind the director's.
    #[must_use]
    pub fn with_home(mut self, home: LinkId) -> Self {
        self.home = Some(home);
        self
    }

    /// Whether the machine's own kernel is beyond a link.
    #[inline]
    pub fn is_home(&self, link: impl Into<LinkId>) -> bool {
        self.home == Some(link.into())
    }

    /// Whether an address is the machine's own, and packets to it can be given to the kernel.
    pub fn is_at_home(&self, address: impl Into<IpAddr>) -> bool {
        self.home.is_some() && self.is_local(address)
    }

    /// Whether an address is the machine's own.
    #[inline]
    pub fn is_local(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.endings & ending(address) != 0 && self.local.contains(&address)
    }

    /// Whether the machine is a router for an address's family (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`).
    pub fn forwards(&self, to: impl Into<IpAddr>) -> bool {
        self.forwards[family(to.into())]
    }

    /// The director's interfaces, by [`PortId`].
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The VLANs on them.
    pub fn vlans(&self) -> &[Vlan] {
        &self.vlans
    }

    /// Whether a VLAN has an Ethernet address of its own. Frames to that are not taken: an interface of the director has one address.
    pub fn has_own_mac(&self, vlan: &Vlan) -> bool {
        self.link(vlan.port.into()).is_some_and(|(below, ..)| below.mac != vlan.interface.mac)
    }

    /// What the kernel knows of a link, the port that it goes by and the tags that it puts on.
    pub fn link(&self, link: LinkId) -> Option<(&Interface, PortId, Tags)> {
        let number = usize::from(link.0);
        match self.interfaces.get(number) {
            Some(interface) => Some((interface, PortId(number as u8), Tags::default())),
            None => self.vlans.get(number - self.interfaces.len()).map(|v| (&v.interface, v.port, v.tags)),
        }
    }

    /// The route to an address: the one with the longest prefix.
    pub fn route(&self, to: IpAddr) -> Option<&Route> {
        self.routes[family(to)].iter().find_map(|(length, routes)| routes.get(&mask(to, *length)))
    }

    /// Where a packet to an address goes next.
    ///
    /// # Errors
    /// Says why it cannot go anywhere, or not yet.
    pub fn hop(&self, to: impl Into<IpAddr>) -> Result<Hop, Unreachable> {
        let to = to.into();
        let route = self.route(to).ok_or(Unreachable::NoRoute)?;
        let link = route.link.ok_or(Unreachable::NoRoute)?;
        let (interface, port, tags) = self.link(link).ok_or(Unreachable::NoRoute)?;
        let next = route.gateway.unwrap_or(to);
        let own = Neighbour::Reachable(interface.mac);
        match if self.is_home(link) { Some(&own) } else { self.neighbours.get(&(link, next)) } {
            Some(Neighbour::Reachable(mac)) => {
                let mut macs = [0; 12];
                macs[..6].copy_from_slice(mac);
                macs[6..].copy_from_slice(&interface.mac);
                let mtu = route.mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
                let plain_mtu = if self.is_home(link) { 0 } else { mtu };
                let own_v4 =
                    route.source.and_then(V4::of).or(interface.ipv4().map(V4::from)).unwrap_or_default();
                let own_v6 =
                    route.source.and_then(V6::of).or(interface.ipv6().map(V6::from)).unwrap_or_default();
                Ok(Hop { port, link, mtu, plain_mtu, macs, tags, own_v4, own_v6 })
            }
            Some(Neighbour::Failed) => Err(Unreachable::NoNeighbour),
            None => Err(Unreachable::Unresolved(link, next)),
        }
    }
}

impl Interface {
    /// Its first IPv4 address.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        if let [Some(IpAddr::V4(address)), _] = self.addresses { Some(address) } else { None }
    }

    /// Its first IPv6 address, global before link-local.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        if let [_, Some(IpAddr::V6(address))] = self.addresses { Some(address) } else { None }
    }

    /// Its first address of the family of `other`.
    pub fn address_towards(&self, other: &IpAddr) -> Option<&IpAddr> {
        self.addresses[family(*other)].as_ref()
    }
}

/// A bit for the last bits of an address.
#[inline]
fn ending(address: IpAddr) -> u64 {
    let last = match address {
        IpAddr::V4(v4) => v4.to_bits() as u8,
        IpAddr::V6(v6) => v6.to_bits() as u8,
    };
    1 << (last & 63)
}

/// The place of an address's family in a pair.
fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

pub(super) fn mask(address: IpAddr, length: u8) -> IpAddr {
    // A shift by all bits is no shift at all, hence the detour for the default route.
    match address {
        IpAddr::V4(address) => {
            let rest = 32u32.saturating_sub(length.into());
            IpAddr::V4(address.to_bits().checked_shr(rest).map_or(0, |bits| bits << rest).into())
        }
        IpAddr::V6(address) => {
            let rest = 128u32.saturating_sub(length.into());
            IpAddr::V6(address.to_bits().checked_shr(rest).map_or(0, |bits| bits << rest).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tags::VLAN;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network() -> Network {
        let interface = |name: &str, n: u8| Interface {
            name: name.into(),
            index: u32::from(n) + 7,
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1500,
            addresses: [None; 2],
        };
        let route = |prefix: &str, length, gateway: Option<&str>, link: Option<u16>| Route {
            prefix: ip(prefix),
            length,
            gateway: gateway.map(ip),
            link: link.map(LinkId),
            mtu: None,
            source: None,
        };
        Network::new(
            vec![interface("c0", 0), interface("s0", 1)],
            [
                route("0.0.0.0", 0, Some("10.0.0.254"), Some(0)),
                route("10.0.0.0", 16, None, Some(0)),
                route("10.1.0.0", 24, None, Some(1)),
                route("10.1.0.128", 25, None, None),
                route("10.1.0.0", 24, None, Some(0)),
                route("::", 0, Some("fe80::fe"), Some(0)),
                route("2001:db8:b::", 64, None, Some(1)),
                route("10.2.0.0", 24, None, Some(2)),
                route("10.3.0.0", 24, None, Some(3)),
            ],
            [
                ((LinkId(1), ip("10.1.0.11")), Neighbour::Reachable([0xb; 6])),
                ((LinkId(0), ip("10.0.0.254")), Neighbour::Reachable([0xfe; 6])),
                ((LinkId(1), ip("10.1.0.12")), Neighbour::Failed),
                ((LinkId(2), ip("10.2.0.11")), Neighbour::Reachable([0x2b; 6])),
                ((LinkId(0), ip("fe80::fe")), Neighbour::Reachable([0x6f; 6])),
                ((LinkId(1), ip("2001:db8:b::b")), Neighbour::Reachable([0x6b; 6])),
            ],
        )
        .with_vlans(vec![Vlan { interface: interface("s0.7", 8), port: PortId(1), tags: tags(7) }])
    }

    fn tags(id: u16) -> Tags {
        Tags::default().and(VLAN, id).unwrap()
    }

    #[test]
    fn a_route_may_have_a_smaller_mtu_and_an_address_of_its_own() {
        let (mut network, to) = (network(), ip("10.1.0.11"));
        let first = network.hop(to).unwrap();
        let route = *network.route(to).unwrap();
        for (mtu, fits) in [(1000, 1000), (9000, 1500)] {
            let special =
                Route { length: 32, prefix: to, mtu: Some(mtu), source: Some(ip("10.1.0.77")), ..route };
            network.routes[0].insert(0, (32, [(to, special)].into_iter().collect()));
            let hop = network.hop(to).unwrap();
            assert_eq!((hop.mtu, hop.plain_mtu, hop.own_v6), (fits, fits, first.own_v6));
            assert_eq!(hop.own_v4, V4(0x0a01_004d));
        }
    }

    #[test]
    fn a_vlan_is_a_link_behind_the_interfaces() {
        let network = network();
        let hop = network.hop(ip("10.2.0.11")).unwrap();
        assert_eq!((hop.port, hop.link, hop.tags), (PortId(1), LinkId(2), tags(7)));
        assert_eq!(hop.macs, [0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 0x2b, 2, 0, 0, 0, 0, 8]);
        let nobody = ip("10.2.0.12");
        assert_eq!(network.hop(nobody), Err(Unreachable::Unresolved(LinkId(2), nobody)));
        assert_eq!(network.hop(ip("10.3.0.1")), Err(Unreachable::NoRoute), "there is no such link");
        assert_eq!(network.hop(ip("10.1.0.11")).unwrap().tags, Tags::default());
    }

    #[test]
    fn the_longest_prefix_decides_and_the_gateway_is_the_neighbour() {
        let network = network();
        let hop = network.hop(ip("10.1.0.11")).unwrap();
        assert_eq!((hop.port, hop.macs), (PortId(1), [0xb, 0xb, 0xb, 0xb, 0xb, 0xb, 2, 0, 0, 0, 0, 1]));
        assert_eq!(network.hop(ip("8.8.8.8")).unwrap().macs[..6], [0xfe; 6]);
        assert_eq!(network.hop(ip("2001:db8:b::b")).unwrap().macs[..6], [0x6b; 6]);
        assert_eq!(network.hop(ip("2001:db8:c::1")).unwrap().macs[..6], [0x6f; 6]);
        assert_eq!(network.hop(ip("10.1.0.200")), Err(Unreachable::NoRoute));
        assert_eq!(network.hop(ip("10.1.0.12")), Err(Unreachable::NoNeighbour));
        assert_eq!(network.hop(ip("10.1.0.13")), Err(Unreachable::Unresolved(LinkId(1), ip("10.1.0.13"))));
    }
}

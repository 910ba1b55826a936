//! The kernel's routes, as packets of the director take them.
//!
//! They are those of the main table; and of the local one what is the machine's own, which leads nowhere else, whatever other routes
//! say. A packet has one way: of several (multipath) the first through one of our links that the kernel would use. A way that is dead is as
//! good as not there; one without a carrier serves only where there is no better to the same prefix, as long as the kernel is not told to ignore it
//! (`ignore_routes_with_linkdown`), when it is dead, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use shunt_dataplane::service::{LinkId, Prefix, Route};

use super::{Links, ip};

/// The routes of a dump, to one prefix the best first.
pub(super) fn routes(messages: &[RouteMessage], links: &Links, home: Option<LinkId>) -> Vec<Route> {
    let mut routes: Vec<(Rank, Route)> =
        messages.iter().filter_map(|message| route(message, links, home)).collect();
    routes.sort_by_key(|(rank, _)| *rank);
    routes.into_iter().map(|(_, route)| route).collect()
}

/// What is the machine's own by a dump of routes: its addresses, and networks that it answers for as a whole (`ip route add local`).
pub(super) fn own(messages: &[RouteMessage]) -> Vec<Prefix> {
    let local = messages.iter().filter(|message| message.header.kind == RouteType::Local);
    let prefix = |message: &RouteMessage| {
        let to = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(to) => ip(to),
            _ => None,
        });
        Prefix::new(to?, message.header.destination_prefix_length)
    };
    local.filter_map(prefix).collect()
}

/// The place of a route among those to its prefix: the kernel takes the one with the least metric.
type Rank = (Carrier, u32);

/// Whether frames can leave by a way that is not dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Carrier {
    There,
    Missing,
}

/// One way of a route.
struct Way {
    interface: Option<u32>,
    gateway: Option<IpAddr>,
    /// None for a dead one.
    carrier: Option<Carrier>,
}

impl Way {
    /// The only one of a route.
    fn only(message: &RouteMessage) -> Self {
        let flags = message.header.flags;
        Self {
            interface: message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            }),
            gateway: message.attributes.iter().find_map(gateway),
            carrier: carrier(flags.contains(RouteFlags::Dead), flags.contains(RouteFlags::Linkdown)),
        }
    }

    /// One of several.
    fn of(hop: &RouteNextHop) -> Self {
        let is = |flag| hop.flags.contains(flag);
        Self {
            interface: Some(hop.interface_index),
            gateway: hop.attributes.iter().find_map(gateway),
            carrier: carrier(is(RouteNextHopFlags::Dead), is(RouteNextHopFlags::Linkdown)),
        }
    }

    fn link(&self, links: &Links) -> Option<LinkId> {
        self.interface.and_then(|index| links.get(&index).copied())
    }
}

fn route(message: &RouteMessage, links: &Links, home: Option<LinkId>) -> Option<(Rank, Route)> {
    // What is sent has no type of service of its own, so these are for others, and hide no route to the same prefix.
    if message.header.tos != 0 {
        return None;
    }
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let (mut prefix, mut metric, mut ways) = (any, 0, Vec::new());
    let (mut mtu, mut source) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(long) => table = *long,
            RouteAttribute::Destination(to) => prefix = ip(to)?,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::PrefSource(own) => source = ip(own),
            RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(route_mtu),
            RouteAttribute::MultiPath(hops) => ways.extend(hops.iter().map(Way::of)),
            _ => {}
        }
    }
    if ways.is_empty() {
        ways.push(Way::only(message));
    }
    let is_local = table == u32::from(nix::libc::RT_TABLE_LOCAL) && message.header.kind == RouteType::Local;
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) && !is_local {
        return None;
    }
    let length = message.header.destination_prefix_length;
    let nowhere = Route { prefix, length, gateway: None, link: None, mtu, source };
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Some(((Carrier::There, metric), Route { link: home, ..nowhere })),
        _ => return Some(((Carrier::There, metric), nowhere)),
    }

    // Of those that are alive the first of ours with a carrier; or else one of ours without; or else none of ours.
    let alive = ways.iter().filter_map(|way| Some((way.carrier?, way)));
    let ours = |way: &Way| way.link(links).is_some();
    let (carrier, way) = alive.min_by_key(|(carrier, way)| (!ours(way), *carrier))?;
    Some(((carrier, metric), Route { gateway: way.gateway, link: way.link(links), ..nowhere }))
}

/// The MTU of a route, locked or not: the kernel forwards by it either way (`ip_dst_mtu_maybe_forward`).
fn route_mtu(metric: &RouteMetric) -> Option<u16> {
    match metric {
        RouteMetric::Mtu(mtu) => u16::try_from(*mtu).ok().filter(|mtu| *mtu != 0),
        _ => None,
    }
}

fn carrier(is_dead: bool, is_missing: bool) -> Option<Carrier> {
    match (is_dead, is_missing) {
        (true, _) => None,
        (false, true) => Some(Carrier::Missing),
        (false, false) => Some(Carrier::There),
    }
}

/// The next router, which may be of the other family (RFC 5549).
fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(by) => ip(by),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{RouteMessageBuilder, RouteNextHopBuilder};

    use super::*;

    const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);

    /// Ours are 7 and 8.
    fn read(messages: &[RouteMessage]) -> Vec<(Option<u16>, Option<IpAddr>)> {
        let links = Links::from([(7, LinkId(0)), (8, LinkId(1))]);
        let routes = routes(messages, &links, Some(LinkId(2)));
        routes.iter().map(|route| (route.link.map(|link| link.0), route.gateway)).collect()
    }

    fn to_far() -> RouteMessageBuilder<Ipv4Addr> {
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(FAR, 24)
    }

    /// By way of 10.0.0.INTERFACE.
    fn by(interface: u8, metric: u32, flags: RouteFlags) -> RouteMessage {
        let route = to_far().gateway(router(interface)).output_interface(interface.into()).priority(metric);
        let mut message = route.build();
        message.header.flags = flags;
        message
    }

    fn router(interface: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, interface)
    }

    fn through(link: u16) -> (Option<u16>, Option<IpAddr>) {
        (Some(link), Some(router(link as u8 + 7).into()))
    }

    fn several(hops: &[(u8, RouteNextHopFlags)]) -> RouteMessage {
        let hop = |&(interface, flags): &(u8, _)| {
            let hop = RouteNextHopBuilder::new_ipv4().interface(interface.into()).flags(flags);
            hop.via(router(interface).into()).expect("both are IPv4").build()
        };
        to_far().multipath(hops.iter().map(hop).collect()).build()
    }

    #[test]
    fn of_several_ways_the_first_of_ours_that_the_kernel_would_use_serves() {
        const UP: RouteNextHopFlags = RouteNextHopFlags::empty();
        const DOWN: RouteNextHopFlags = RouteNextHopFlags::Linkdown;
        const DEAD: RouteNextHopFlags = RouteNextHopFlags::Dead;
        let first = |hops: &[_]| read(&[several(hops)]);
        assert_eq!(first(&[(7, UP), (8, UP)]), [through(0)]);
        assert_eq!(first(&[(6, UP), (8, UP), (7, UP)]), [through(1)]);
        assert_eq!(first(&[(7, DEAD), (8, UP)]), [through(1)]);
        assert_eq!(first(&[(7, DOWN), (8, UP)]), [through(1)]);
        assert_eq!(first(&[(7, DEAD | DOWN), (8, DOWN)]), [through(1)], "no better one");
        assert_eq!(first(&[(7, DEAD), (8, DEAD)]), [], "another route may be alive");
        assert_eq!(first(&[(7, DEAD), (6, UP)])[0].0, None, "somebody else's interface");
    }

    #[test]
    fn a_dead_route_is_none_and_one_without_a_carrier_the_last() {
        let (up, down, dead) = (RouteFlags::empty(), RouteFlags::Linkdown, RouteFlags::Dead);
        assert_eq!(read(&[by(7, 20, up), by(8, 10, up)]), [through(1), through(0)]);
        assert_eq!(read(&[by(7, 20, up), by(8, 10, down)]), [through(0), through(1)]);
        assert_eq!(read(&[by(7, 20, up), by(8, 10, dead)]), [through(0)]);
        assert_eq!(read(&[by(7, 20, dead | down)]), []);
    }

    #[test]
    fn a_route_may_have_an_mtu_and_an_address_of_its_own() {
        let own = Ipv4Addr::new(10, 0, 0, 77);
        let mut message = by(7, 0, RouteFlags::empty());
        message.attributes.push(RouteAttribute::PrefSource(own.into()));
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Lock(4), RouteMetric::Mtu(1000)]));
        let [route] = routes(&[message], &Links::from([(7, LinkId(0))]), None)[..] else {
            panic!("one route")
        };
        assert_eq!((route.mtu, route.source), (Some(1000), Some(own.into())));
    }

    #[test]
    fn a_gateway_may_be_of_the_other_family() {
        let router: Ipv6Addr = "fe80::7".parse().expect("an address");
        let expected = [(Some(0), Some(router.into()))];
        assert_eq!(read(&[to_far().via(router).output_interface(7).build()]), expected);
        let hop = RouteNextHopBuilder::new_ipv4().interface(7).via(router.into());
        assert_eq!(read(&[to_far().multipath(vec![hop.expect("IPv4 may").build()]).build()]), expected);
    }

    #[test]
    fn a_route_of_a_type_of_service_hides_no_other() {
        let of_a_kind = to_far().output_interface(8).tos(0x10).build();
        assert_eq!(read(&[of_a_kind, by(7, 0, RouteFlags::empty())]), [through(0)]);
    }

    #[test]
    fn networks_that_the_machine_answers_for_are_its_own() {
        let local = to_far().table_id(255).kind(RouteType::Local).build();
        let own = own(&[by(7, 0, RouteFlags::empty()), local]);
        assert_eq!(own, [Prefix::new(FAR.into(), 24).expect("a prefix")]);
    }

    #[test]
    fn only_the_main_table_leads_anywhere_and_what_is_local_leads_home() {
        let mut own = to_far().table_id(u32::from(nix::libc::RT_TABLE_LOCAL)).kind(RouteType::Local).build();
        assert_eq!(read(std::slice::from_ref(&own)), [(Some(2), None)]);
        own.header.kind = RouteType::Broadcast;
        assert_eq!(read(&[own, to_far().table_id(1000).output_interface(7).build()]), []);
        assert_eq!(read(&[to_far().kind(RouteType::Unreachable).build()]), [(None, None)]);
    }
}

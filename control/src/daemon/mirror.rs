//! The kernel's network, mirrored: links with the VLANs on them, addresses, routes and neighbours, over netlink, live.
//!
//! Nothing is configured twice: where a packet goes is what the kernel's main routing table says, and Ethernet addresses are those
//! of the kernel's neighbour table. Any event makes the mirror read the tables again, a moment later, so that a burst of events costs
//! one reading. The kernel also does the asking: [`Mirror::resolve`] makes it send an ARP request as if it had a packet to
//! send itself.

mod events;
mod policy;
mod routes;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, TryStreamExt as _};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteMessage};
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use shunt_dataplane::packet::{Tags, tags};
use shunt_dataplane::service::{Interface, LinkId, Neighbour, Network, PortId, Prefix, Sorted, Vlan};

use super::home;
pub use events::Events;

/// How long the kernel may say nothing in the middle of an answer. It has its tables at hand; one that is silent for so long has lost
/// the question, or the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Neighbours by interface and address.
type Neighbours = Vec<((LinkId, IpAddr), Neighbour)>;

/// The links, by the kernel's index.
type Links = HashMap<u32, LinkId>;

/// The mirror.
pub struct Mirror {
    handle: Handle,
    /// The director's interfaces, by [`PortId`].
    interfaces: Vec<u32>,
    /// Their names.
    names: Vec<String>,
    /// The one that the machine's own kernel is beyond.
    home: Option<LinkId>,
    /// How they deal frames out to the workers.
    spread: Option<Arc<Sorted>>,
}

/// What the mirror shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// What workers need of it.
    pub network: Network,
    /// The director's interfaces that are there but not up.
    pub down: HashSet<String>,
    /// The machine's own addresses.
    pub local: Vec<IpAddr>,
    /// These, and networks that it answers for as a whole.
    pub answered: Vec<Prefix>,
    /// The broadcast addresses of the networks that it is on.
    pub broadcasts: Vec<IpAddr>,
    /// Neighbours that do not answer.
    pub failed: Vec<(LinkId, IpAddr)>,
    /// Neighbours that routes lead by.
    pub routers: HashSet<(LinkId, IpAddr)>,
    /// Neighbours that the kernel was told of for good. It must not be asked for them: since Linux 5.16 it forgets them then.
    pub permanent: HashSet<(LinkId, IpAddr)>,
    /// A rule of routing that leads packets elsewhere than by the main table, in words.
    pub policy: Option<String>,
    /// What the director's own rules of routing lead home.
    pub led_home: HashSet<home::Source>,
}

/// The addresses of the machine.
#[derive(Default)]
struct Addresses {
    /// All of them.
    local: Vec<IpAddr>,
    /// The broadcast addresses of their networks.
    broadcasts: Vec<IpAddr>,
    /// The first of each family of each interface.
    first: Vec<(u32, [Option<IpAddr>; 2])>,
}

impl View {
    /// Whether an address is the machine's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.network.is_local(address)
    }

    /// Whether what is sent to an address on a network of the machine comes here.
    pub fn answers_for(&self, address: IpAddr) -> bool {
        self.is_own(address) || self.answered.iter().any(|prefix| prefix.contains(address))
    }
}

impl Mirror {
    /// Connects to the kernel and finds the interfaces, the last one the way `home` if there is one. Comes with the events of
    /// what changes from now on.
    ///
    /// # Errors
    /// When netlink is refused, or an interface does not exist.
    pub async fn open(names: &[String], home: Option<&str>) -> anyhow::Result<(Self, Events)> {
        let cannot = "cannot open a netlink socket to follow addresses, routes and neighbours";
        let events = Events::listen().context(cannot)?;
        let (connection, handle, _) = rtnetlink::new_connection().context(cannot)?;
        tokio::spawn(connection);
        let mut interfaces = Vec::new();
        let all = names.iter().map(String::as_str).chain(home);
        for name in all.clone() {
            let index = index_of(&handle, name).await?;
            // One can have several names (ip link property add altname). Each frame would be taken twice.
            if interfaces.contains(&index) {
                anyhow::bail!("interface {name} is named twice; one that carries both sides is named once");
            }
            interfaces.push(index);
        }
        let names: Vec<String> = all.map(str::to_owned).collect();
        let home = home.map(|_| LinkId(names.len() as u16 - 1));
        Ok((Self { handle, interfaces, names, home, spread: None }, events))
    }

    /// Notes how the interfaces deal frames out to the workers: from now on a part of what is read.
    pub fn note_spread(&mut self, spread: Option<&Arc<Sorted>>) {
        self.spread = spread.cloned();
    }

    /// Reads everything. The director itself speaks from none of the `lent` addresses where there is another: they are FullNAT's, and what comes there is taken for
    /// the answer of a real server.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read(&self, lent: &HashSet<IpAddr>) -> anyhow::Result<View> {
        let Addresses { local, broadcasts, first } = self.addresses(lent).await?;
        let links = all(self.handle.link().get().execute()).await?;
        let addresses =
            |index: u32| first.iter().find(|(i, _)| *i == index).map_or([None; 2], |(_, both)| *both);
        let interfaces = self.interfaces.iter().zip(&self.names);
        let interfaces = interfaces.map(|(index, name)| {
            // One that was deleted is one that no route leads through; the others carry on.
            links.iter().find(|link| link.header.index == *index).map_or_else(
                || Interface { name: name.clone(), index: *index, mac: [0; 6], mtu: 0, addresses: [None; 2] },
                |link| interface(link, addresses(*index)),
            )
        });
        let interfaces: Vec<_> = interfaces.collect();
        let is_down = |link: &&LinkMessage| !link.header.flags.contains(LinkFlags::Up);
        let down = links.iter().filter(is_down).map(|link| link.header.index);
        let down = down.filter_map(|index| interfaces.iter().find(|interface| interface.index == index));
        let down = down.map(|interface| interface.name.clone()).collect();
        let vlans = vlans(&interfaces, &links, addresses);
        let indices = interfaces.iter().chain(vlans.iter().map(|vlan| &vlan.interface)).map(|i| i.index);
        let indices: Links = indices.zip((0..).map(LinkId)).collect();
        let (neighbours, failed, permanent) = self.neighbours(&indices).await?;
        let routes = self.routes().await?;
        let answered = routes::own(&routes);
        let mut routes = routes::routes(&routes, &indices, self.home);
        // The kernel names the interface's first address with each network that is on a wire.
        let is_lent = |own: &IpAddr| lent.contains(own);
        routes
            .iter_mut()
            .filter(|route| route.source.as_ref().is_some_and(is_lent))
            .for_each(|route| route.source = None);
        let routers = routes.iter().filter_map(|route| Some((route.link?, route.gateway?))).collect();
        let network = Network::new(interfaces, routes, neighbours)
            .with_vlans(vlans)
            .with_spread(self.spread.clone())
            .on_machine(local.iter().copied(), is_router());
        let network = match self.home {
            Some(home) => network.with_home(home),
            None => network,
        };
        let rules = self.rules().await;
        let (policy, led_home) = (policy::foreign(&rules), home::known(&rules));
        Ok(View { network, down, local, answered, broadcasts, failed, routers, permanent, policy, led_home })
    }

    /// Makes the kernel find out a neighbour's Ethernet address, or make sure of it.
    pub async fn resolve(&self, interface: u32, neighbour: IpAddr) {
        let request = self.handle.neighbours().add(interface, neighbour);
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
        match tokio::time::timeout(PATIENCE, request.execute()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%neighbour, %error, "the kernel did not ask for a neighbour"),
            Err(_) => tracing::debug!(%neighbour, "the kernel did not say whether it asks for a neighbour"),
        }
    }

    async fn addresses(&self, lent: &HashSet<IpAddr>) -> anyhow::Result<Addresses> {
        let messages = all(self.handle.address().get().execute()).await?;
        let Addresses { mut local, mut broadcasts, mut first } = Addresses::default();
        for message in messages {
            let index = message.header.index;
            // On a point-to-point link `Address` is the other end; `Local` is always ours where it is given.
            let mut address = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(ours) => address = Some(*ours),
                    AddressAttribute::Address(ours) => address = address.or(Some(*ours)),
                    _ => {}
                }
            }
            let Some(address) = address else { continue };
            local.push(address);
            // Two hosts on a wire of their own (RFC 3021) need no broadcasts.
            if let IpAddr::V4(v4) = address
                && let length @ 0..31 = message.header.prefix_len
            {
                broadcasts.push(Ipv4Addr::from_bits(v4.to_bits() | u32::MAX >> length).into());
            }
            let at = first.iter().position(|(i, _)| *i == index).unwrap_or_else(|| {
                first.push((index, [None; 2]));
                first.len() - 1
            });
            let place = &mut first[at].1[usize::from(address.is_ipv6())];
            // A link-local address, or one that is lent, only serves where there is no better.
            let rank = |address: IpAddr| (!is_link_local(address), !lent.contains(&address));
            if place.is_none_or(|best| rank(address) > rank(best)) {
                *place = Some(address);
            }
        }
        Ok(Addresses { local, broadcasts, first })
    }

    async fn routes(&self) -> anyhow::Result<Vec<RouteMessage>> {
        let v4 = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build());
        let v6 = self.handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build());
        let mut messages = all(v4.execute()).await?;
        messages.extend(all(v6.execute()).await?);
        Ok(messages)
    }

    /// The rules of routing, as far as the kernel tells: it may have none of a family.
    async fn rules(&self) -> Vec<RuleMessage> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            rules.extend(all(self.handle.rule().get(version).execute()).await.unwrap_or_default());
        }
        rules
    }

    /// Those that are known, those that do not answer, those that are permanent.
    async fn neighbours(
        &self,
        links: &Links,
    ) -> anyhow::Result<(Neighbours, Vec<(LinkId, IpAddr)>, HashSet<(LinkId, IpAddr)>)> {
        let messages = all(self.handle.neighbours().get().execute()).await?;
        let (mut known, mut failed, mut permanent) = (Vec::new(), Vec::new(), HashSet::new());
        for message in messages {
            let Some(&link) = links.get(&message.header.ifindex) else { continue };
            let Some((address, mac)) = neighbour(&message) else { continue };
            if message.header.state == NeighbourState::Permanent {
                permanent.insert((link, address));
            }
            match message.header.state {
                NeighbourState::Failed => {
                    known.push(((link, address), Neighbour::Failed));
                    failed.push((link, address));
                }
                NeighbourState::Incomplete | NeighbourState::None => {}
                // A stale address is still the best there is; the kernel checks it when it is used.
                _ => known.extend(mac.map(|mac| ((link, address), Neighbour::Reachable(mac)))),
            }
        }
        Ok((known, failed, permanent))
    }
}

/// A whole table, as the kernel tells it.
async fn all<T>(answer: impl Stream<Item = Result<T, rtnetlink::Error>>) -> anyhow::Result<Vec<T>> {
    let (mut answer, mut told) = (std::pin::pin!(answer), Vec::new());
    let silence = || format!("the kernel has said nothing for {} seconds", PATIENCE.as_secs());
    while let Some(next) = tokio::time::timeout(PATIENCE, answer.try_next()).await.with_context(silence)?? {
        told.push(next);
    }
    Ok(told)
}

async fn index_of(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        _ => anyhow::bail!("interface {name} does not exist (ip link shows those that do)"),
    }
}

fn interface(link: &LinkMessage, addresses: [Option<IpAddr>; 2]) -> Interface {
    let mut interface =
        Interface { name: String::new(), index: link.header.index, mac: [0; 6], mtu: 1500, addresses };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    interface.mac = mac;
                }
            }
            _ => {}
        }
    }
    interface
}

/// The VLANs on the director's interfaces, and on those VLANs. One that is itself named as an interface is no VLAN of ours: its frames
/// come in by a port of their own.
fn vlans(
    interfaces: &[Interface],
    links: &[LinkMessage],
    addresses: impl Fn(u32) -> [Option<IpAddr>; 2],
) -> Vec<Vlan> {
    let mut found: Vec<Vlan> = Vec::new();
    // Each round finds those one tag further up.
    for _ in 0..tags::MOST {
        let is_known = |index| {
            let mut known = interfaces.iter().chain(found.iter().map(|vlan| &vlan.interface));
            known.any(|interface| interface.index == index)
        };
        let new = links.iter().filter(|link| !is_known(link.header.index));
        let new = new.filter_map(|link| {
            let (below, ethertype, id) = vlan(link)?;
            let (at, outer) = match interfaces.iter().position(|interface| interface.index == below) {
                Some(at) => (at, Tags::default()),
                None => {
                    let below = found.iter().find(|vlan| vlan.interface.index == below)?;
                    (usize::from(below.port.0), below.tags)
                }
            };
            let tags = outer.and(ethertype, id)?;
            let mut interface = interface(link, addresses(link.header.index));
            interface.mtu = interface.mtu.min(room(interfaces[at].mtu, &tags));
            Some(Vlan { interface, port: PortId(at as u8), tags })
        });
        let new: Vec<Vlan> = new.collect();
        found.extend(new);
    }
    // A new one is the last, so that the others keep their numbers.
    found.sort_by_key(|vlan| vlan.interface.index);
    found
}

/// Bytes of IP that fit behind tags, on an interface that takes `mtu` of them without. The kernel grants an outer 802.1Q tag four bytes
/// more, and no other (`packet_extra_vlan_len_allowed`): two tags on an interface of 1500 bytes leave 1496, or 1492.
fn room(mtu: u16, tags: &Tags) -> u16 {
    let granted = if tags.bytes().starts_with(&tags::VLAN.to_be_bytes()) { 4 } else { 0 };
    mtu.saturating_add(granted).saturating_sub(tags.len() as u16)
}

/// The link below a VLAN, the ethertype of its tag, and its id.
fn vlan(link: &LinkMessage) -> Option<(u32, u16, u16)> {
    let (mut below, mut ethertype, mut id) = (None, tags::VLAN, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => below = Some(*index),
            // The link below is in another namespace, where the index means something else.
            LinkAttribute::LinkNetNsId(_) => return None,
            LinkAttribute::LinkInfo(info) => {
                let data = info.iter().filter_map(|part| match part {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
                    _ => None,
                });
                for part in data.flatten() {
                    match part {
                        InfoVlan::Id(number) => id = Some(*number),
                        InfoVlan::Protocol(protocol) => ethertype = (*protocol).into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((below?, ethertype, id?))
}

fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Option<[u8; 6]>)> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    address.map(|address| (address, mac))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether the machine forwards IPv4, and IPv6.
fn is_router() -> [bool; 2] {
    ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
        .map(|setting| std::fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_grants_one_tag_of_the_common_kind() {
        let tags = |kinds: &[u16]| {
            kinds.iter().fold(Tags::default(), |tags, kind| tags.and(*kind, 7).expect("there is room"))
        };
        assert_eq!(room(1500, &tags(&[tags::VLAN])), 1500);
        assert_eq!(room(1500, &tags(&[tags::QINQ])), 1496);
        assert_eq!(room(1500, &tags(&[tags::VLAN, tags::VLAN])), 1496);
        assert_eq!(room(1500, &tags(&[tags::QINQ, tags::VLAN])), 1492);
        assert_eq!(room(0, &tags(&[tags::QINQ])), 0);
    }
}

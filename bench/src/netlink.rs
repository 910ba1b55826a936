//! Links, addresses, routes and rules of the namespace the calling thread is in.
//!
//! [`Netlink`] is rtnetlink with its asynchrony hidden: the lab sets up one thing after the other and wants
//! each to be done or refused when the call returns. Interfaces go by name; every error says which one and
//! what was tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkMessage, LinkXdp, State,
    VlanProtocol,
};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan, RouteMessageBuilder,
};
use tokio::runtime::{Builder, Runtime};

/// The kernel's main routing table.
pub const MAIN: u32 = 254;

/// Carriers come up in milliseconds; linkwatch puts events that do not hurry off by a second at most.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);

/// A connection to rtnetlink in one namespace.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Connects in the namespace of the calling thread and stays there, wherever it is used later.
    pub fn open() -> Result<Self> {
        let runtime =
            Builder::new_current_thread().enable_io().build().context("starting a tokio runtime")?;
        let (connection, handle, _) = {
            let _context = runtime.enter();
            rtnetlink::new_connection().context("opening a netlink socket")?
        };
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// Makes a veth pair: `name` here, `peer` in another namespace, both with `queues` queues each way.
    pub fn veth(&self, name: &str, peer: &str, elsewhere: &impl AsFd, queues: u32) -> Result<()> {
        // With the counts given, veth also activates that many queues; without, it starts with one.
        let counts = [LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)];
        let mut far = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.to_owned())
            .setns_by_fd(elsewhere.as_fd().as_raw_fd())
            .build();
        far.attributes.extend(counts.clone());
        let mut near = LinkMessageBuilder::<LinkVeth>::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        near.attributes.extend(counts);
        self.runtime
            .block_on(self.handle.link().add(near).execute())
            .with_context(|| format!("making the veth pair {name}, {peer} with {queues} queues"))
    }

    /// Makes a VLAN on an interface: `name`, whose frames go by `below` with a tag of this ethertype and id.
    pub fn vlan(&self, name: &str, below: &str, (ethertype, id): (u16, u16)) -> Result<()> {
        let link = LinkVlan::new(name, self.index(below)?, id).protocol(VlanProtocol::from(ethertype));
        self.runtime
            .block_on(self.handle.link().add(link.build()).execute())
            .with_context(|| format!("making the VLAN {name} on {below}"))
    }

    /// Makes the far end of IP in IP, up: what anybody wraps and sends to `local` is unwrapped.
    pub fn tunnel_end(&self, name: &str, local: IpAddr) -> Result<()> {
        let local_end = InfoIpTunnel::Local(local);
        let (kind, data) = match local {
            IpAddr::V4(_) => (InfoKind::IpIp, vec![local_end]),
            IpAddr::V6(_) => (InfoKind::Ip6Tnl, vec![local_end, InfoIpTunnel::Protocol(IpProtocol::Ipv6)]),
        };
        let device = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind.clone())
            .name(name.to_owned())
            .set_info_data(InfoData::IpTunnel(data))
            .up();
        self.runtime
            .block_on(self.handle.link().add(device.build()).execute())
            .with_context(|| format!("the kernel made no {kind:?} device"))
    }

    /// Removes an interface.
    pub fn remove(&self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        self.runtime
            .block_on(self.handle.link().del(index).execute())
            .with_context(|| format!("removing {name}"))
    }

    /// Makes a bridge, up. It neither speaks STP nor snoops multicast: neighbour discovery must not wait for
    /// either.
    pub fn bridge(&self, name: &str) -> Result<()> {
        let bridge = LinkBridge::new(name).mcast_snooping(false).build();
        self.runtime
            .block_on(self.handle.link().add(bridge).execute())
            .with_context(|| format!("making the bridge {name}"))
    }

    /// Plugs an interface into a bridge and sets it up.
    pub fn plug(&self, name: &str, bridge: &str) -> Result<()> {
        let controller = self.index(bridge)?;
        let port = LinkUnspec::new_with_index(self.index(name)?).controller(controller).up().build();
        self.runtime
            .block_on(self.handle.link().set(port).execute())
            .with_context(|| format!("plugging {name} into {bridge}"))
    }

    /// Unplugs an interface from its bridge.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let port = LinkUnspec::new_with_index(self.index(name)?).nocontroller().build();
        self.runtime
            .block_on(self.handle.link().set(port).execute())
            .with_context(|| format!("unplugging {name}"))
    }

    /// Tells the kernel a neighbour's Ethernet address, for good.
    pub fn neighbour(&self, name: &str, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        let request = self.handle.neighbours().add(self.index(name)?, address);
        self.runtime
            .block_on(request.link_layer_address(&mac).replace().execute())
            .with_context(|| format!("telling {name} of its neighbour {address}"))
    }

    /// Sets an interface up.
    pub fn up(&self, name: &str) -> Result<()> {
        let link = LinkUnspec::new_with_index(self.index(name)?).up().build();
        self.runtime
            .block_on(self.handle.link().set(link).execute())
            .with_context(|| format!("setting {name} up"))
    }

    /// Sets an interface down: no carrier for either end of a cable.
    pub fn down(&self, name: &str) -> Result<()> {
        let link = LinkUnspec::new_with_index(self.index(name)?).down().build();
        self.runtime
            .block_on(self.handle.link().set(link).execute())
            .with_context(|| format!("setting {name} down"))
    }

    /// Sets the longest packet an interface sends.
    pub fn mtu(&self, name: &str, mtu: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(self.index(name)?).mtu(mtu).build();
        self.runtime
            .block_on(self.handle.link().set(link).execute())
            .with_context(|| format!("setting the MTU of {name} to {mtu}"))
    }

    /// Gives an interface another Ethernet address.
    pub fn mac(&self, name: &str, mac: [u8; 6]) -> Result<()> {
        let link = LinkUnspec::new_with_index(self.index(name)?).address(mac.to_vec()).build();
        self.runtime
            .block_on(self.handle.link().set(link).execute())
            .with_context(|| format!("setting the Ethernet address of {name} to {mac:02x?}"))
    }

    /// Makes the kernel forget the neighbours of an interface, as `ip neigh flush` does.
    pub fn forget_neighbours(&self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        let all = self.handle.neighbours().get().set_address_family(AddressFamily::Unspec).execute();
        self.runtime
            .block_on(async {
                let found = all.try_collect::<Vec<_>>().await?;
                for message in found.into_iter().filter(|message| message.header.ifindex == index) {
                    // It may have gone by itself meanwhile.
                    let _ = self.handle.neighbours().del(message).execute().await;
                }
                Ok::<(), rtnetlink::Error>(())
            })
            .with_context(|| format!("forgetting the neighbours of {name}"))
    }

    /// Routes a single address by way of `gateway`, in place of an earlier such route.
    pub fn route(&self, to: impl Into<IpAddr>, gateway: impl Into<IpAddr>) -> Result<()> {
        let (to, gateway) = (to.into(), gateway.into());
        let prefix = if to.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, prefix)
            .and_then(|route| route.gateway(gateway))
            .with_context(|| format!("{to} and {gateway} are of two families"))?
            .build();
        self.runtime
            .block_on(self.handle.route().add(route).replace().execute())
            .with_context(|| format!("routing {to} by way of {gateway}"))
    }

    /// The ids of the XDP programs at work on an interface.
    pub fn xdp_programs(&self, name: &str) -> Result<Vec<u32>> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = self
            .runtime
            .block_on(async { std::pin::pin!(request).try_next().await })
            .with_context(|| format!("looking for interface {name}"))?
            .with_context(|| format!("there is no interface {name}"))?;
        let xdp = link.attributes.into_iter().filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(parts) => Some(parts),
            _ => None,
        });
        Ok(xdp
            .flatten()
            .filter_map(|part| match part {
                LinkXdp::ProgId(id) => Some(id),
                _ => None,
            })
            .collect())
    }

    /// Gives an interface an address.
    pub fn address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let index = self.index(name)?;
        let mut request = self.handle.address().add(index, address, prefix);
        // Nobody else has it, and it is to be of use at once.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        self.runtime
            .block_on(request.execute())
            .with_context(|| format!("adding {address}/{prefix} to {name}"))
    }

    /// Takes an address away, whatever its prefix.
    pub fn remove_address(&self, name: &str, address: IpAddr) -> Result<()> {
        let index = self.index(name)?;
        let addresses = self.handle.address().get().set_link_index_filter(index).set_address_filter(address);
        self.runtime
            .block_on(async {
                let found = addresses.execute().try_collect::<Vec<_>>().await?;
                for message in found {
                    self.handle.address().del(message).execute().await?;
                }
                Ok::<(), rtnetlink::Error>(())
            })
            .with_context(|| format!("removing {address} from {name}"))
    }

    /// Adds a default route by way of `gateway` to a table. The gateway's family is the route's.
    pub fn default_route(&self, gateway: IpAddr, table: u32) -> Result<()> {
        self.runtime
            .block_on(self.handle.route().add(default_by(gateway, table)).execute())
            .with_context(|| format!("routing by way of {gateway} in table {table}"))
    }

    /// Takes the default route by way of `gateway` away.
    pub fn remove_default_route(&self, gateway: IpAddr) -> Result<()> {
        self.runtime
            .block_on(self.handle.route().del(default_by(gateway, MAIN)).execute())
            .with_context(|| format!("routing no longer by way of {gateway}"))
    }

    /// Adds a route to a single address, spread evenly over `gateways` by flow.
    pub fn spread_route(&self, to: Ipv4Addr, gateways: &[Ipv4Addr]) -> Result<()> {
        let hops = gateways
            .iter()
            .map(|&via| Ok(rtnetlink::RouteNextHopBuilder::new_ipv4().via(via.into())?.build()))
            .collect::<Result<Vec<_>>>()?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).multipath(hops).build();
        self.runtime
            .block_on(self.handle.route().add(route).execute())
            .with_context(|| format!("routing {to} by way of {gateways:?}"))
    }

    /// Makes packets *from* this address use another routing table.
    pub fn source_uses_table(&self, source: IpAddr, table: u32) -> Result<()> {
        let rule = self.handle.rule().add().action(RuleAction::ToTable).table_id(table);
        self.runtime
            .block_on(async {
                match source {
                    IpAddr::V4(source) => rule.v4().source_prefix(source, 32).execute().await,
                    IpAddr::V6(source) => rule.v6().source_prefix(source, 128).execute().await,
                }
            })
            .with_context(|| format!("sending what comes from {source} to table {table}"))
    }

    /// Lets no "port unreachable" leave for this address any more.
    pub fn silence(&self, to: IpAddr) -> Result<()> {
        let rule = self.handle.rule().add().action(RuleAction::Blackhole);
        let (mut rule, protocol, type_and_code) = match to {
            IpAddr::V4(to) => {
                (rule.v4().destination_prefix(to, 32).message_mut().clone(), IpProtocol::Icmp, [3, 3])
            }
            IpAddr::V6(to) => {
                let icmp = IpProtocol::Other(nix::libc::IPPROTO_ICMPV6);
                (rule.v6().destination_prefix(to, 128).message_mut().clone(), icmp, [1, 4])
            }
        };
        rule.attributes.push(RuleAttribute::IpProtocol(protocol));
        // They stand where others have the destination's port (`union flowi_uli`).
        let port = u16::from_be_bytes(type_and_code);
        rule.attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }));
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule;
        self.runtime.block_on(request.execute()).with_context(|| format!("silencing errors to {to}"))
    }

    /// The names of all interfaces here.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        Ok(self.links()?.into_iter().map(|link| link.name).collect())
    }

    /// Waits until every interface that was set up, but `lo`, passes packets. Some kernels put devices for tunnels into each
    /// namespace, which nobody sets up.
    ///
    /// A veth has a carrier when both ends are up, but the kernel notices in the background (linkwatch) and
    /// gives the device its queue only then. A frame sent before is lost without a trace, and its TCP waits a
    /// second.
    pub fn wait_until_all_pass_packets(&self) -> Result<()> {
        let deadline = Instant::now() + CARRIER_LIMIT;
        loop {
            let links = self.links()?;
            let awaited = |link: &&Link| link.is_set_up && link.name != "lo" && link.state != Some(State::Up);
            match links.iter().find(awaited) {
                None => return Ok(()),
                Some(Link { name, state, .. }) if Instant::now() > deadline => {
                    bail!("{name} is {state:?}, not up, after {CARRIER_LIMIT:?}")
                }
                Some(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn links(&self) -> Result<Vec<Link>> {
        let links: Vec<_> = self
            .runtime
            .block_on(self.handle.link().get().execute().try_collect())
            .context("listing interfaces")?;
        let describe = |message: LinkMessage| {
            let is_set_up = message.header.flags.contains(LinkFlags::Up);
            let mut link = Link { name: String::new(), is_set_up, state: None };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(found) => link.name = found,
                    LinkAttribute::OperState(found) => link.state = Some(found),
                    _ => {}
                }
            }
            link
        };
        Ok(links.into_iter().map(describe).collect())
    }

    /// The kernel's number of an interface.
    pub fn index(&self, name: &str) -> Result<u32> {
        let request = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = self
            .runtime
            .block_on(async { std::pin::pin!(request).try_next().await })
            .with_context(|| format!("looking for interface {name}"))?
            .with_context(|| format!("there is no interface {name}"))?;
        Ok(link.header.index)
    }
}

/// What the kernel says of an interface.
struct Link {
    name: String,
    /// By `ip link set … up`, with a carrier or without.
    is_set_up: bool,
    state: Option<State>,
}

fn default_by(gateway: IpAddr, table: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(via) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).table_id(table).build(),
        IpAddr::V6(via) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(via).table_id(table).build(),
    }
}

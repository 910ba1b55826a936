//! The data centre every lab run and every end-to-end test stands in.
//!
//! ```text
//!           10.1.0.0/24                  10.2.0.0/24
//!  client ─────────────── director ────────── lan ──┬────── server 0  .11
//!    │  front          c0  VIP   s0       (a bridge) └────── server 1  .12
//!    │  .2 to .17      .1  on lo .1                   front     │  VIP on lo of both, silent
//!    │                                                          │
//!    └──────────────────────── wan ─────────────────────────────┘
//!     back            .1   (a bridge)   10.3.0.0/24      .11, .12  back
//! ```
//!
//! Three ways back to the client share this one picture, told apart by the reply's source address, so NAT and
//! DR services can run side by side. A real server's own address (NAT) goes by way of the director, the
//! server's default gateway. The VIP (DR and tunnels) goes over the back network, past the director: a
//! rule sends it to a table of its own. The back addresses are the *direct* path without any director, which
//! results are compared with.
//!
//! [`Topology::behind_vlans`] puts the networks left and right of the director into VLANs on the same cables: `c0.100` then has
//! the director's address towards the clients, and `c0` none.
//!
//! Every network has its IPv6 twin, `fd00:N::/64` for `10.N.0.0/24` with the same host numbers.
//!
//! Traps. A real server that holds the VIP must not answer ARP for it (`arp_ignore`, `arp_announce`; for IPv6
//! an address on `lo` is never answered for). Sending ends have their offloads off, see [`crate::offload`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::director::{Director, Launcher};
use crate::namespace::Namespace;
use crate::netlink::{MAIN, Netlink};
use crate::offload;
use crate::traffic::decapsulator::{Decapsulator, Tunnel};
use crate::traffic::server::Server;
use crate::traffic::unwrapping::Unwrapping;

/// The virtual address, on `lo` of the director and of every real server.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The IPv6 virtual address.
pub const VIP6: Ipv6Addr = host6(9, 1);
/// The director's address towards the clients, on [`DIRECTOR_CLIENT_SIDE`]: the client's default gateway.
pub const DIRECTOR_TO_CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The director's address towards the servers, on [`DIRECTOR_SERVER_SIDE`]: their default gateway.
pub const DIRECTOR_TO_SERVERS: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// The IPv6 twin of [`DIRECTOR_TO_SERVERS`].
pub const DIRECTOR_TO_SERVERS6: Ipv6Addr = host6(2, 1);
/// The director's address that FullNAT goes to the servers from, if it was [lent](Topology::lend_local_addresses).
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// Its IPv6 twin.
pub const LOCAL6: Ipv6Addr = host6(2, 2);
/// The director's interface towards the clients.
pub const DIRECTOR_CLIENT_SIDE: &str = "c0";
/// The director's interface towards the servers.
pub const DIRECTOR_SERVER_SIDE: &str = "s0";
/// The far end of [`DIRECTOR_SERVER_SIDE`].
pub const SINK: &str = "lan-director";
/// The interface of clients and servers that the director is behind.
pub const FRONT: &str = "front";
/// The interface of clients and servers on the network without a director.
pub const BACK: &str = "back";

/// How many real servers there are.
pub const SERVERS: usize = 2;

/// How many addresses the client has. One address yields some 55,000 connections before a port is used twice
/// within TIME_WAIT; the lab makes a few hundred thousand.
pub const CLIENTS: u8 = 16;

/// The routing table of replies that leave with the VIP as their source.
const REPLIES: u32 = 100;

/// A client address on the director's network: `n` below [`CLIENTS`].
pub const fn client(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 2 + n)
}

/// The IPv6 twin of [`client`].
pub const fn client6(n: u8) -> Ipv6Addr {
    host6(1, 2 + n as u16)
}

/// The real address of server `n`, which the director forwards to.
pub const fn server(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, 11 + n as u8)
}

/// The IPv6 twin of [`server`].
pub const fn server6(n: usize) -> Ipv6Addr {
    host6(2, 11 + n as u16)
}

/// The address of server `n` on the back network: reaching it involves no director.
pub const fn server_back(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 3, 0, 11 + n as u8)
}

/// The IPv6 twin of [`server_back`].
pub const fn server_back6(n: usize) -> Ipv6Addr {
    host6(3, 11 + n as u16)
}

/// The client's address on the back network, by way of which replies from the VIP reach it.
const CLIENT_BACK: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);

const fn host6(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host)
}

/// What may differ between topologies.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Queues of each veth, both ways. On veth the sender's transmit queue is the receiver's receive queue.
    pub queues: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1 }
    }
}

/// The namespaces of one data centre, wired and up. Dropping it takes everything down.
pub struct Topology {
    client: Namespace,
    director: Namespace,
    servers: [Namespace; SERVERS],
    /// Holds the two bridges, so that neither client nor director shares an interface list with them.
    switch: Namespace,
    has_ipv6: bool,
    /// On the clients' network, and on the servers'.
    tags: [Vec<Tag>; 2],
}

/// A VLAN tag: its ethertype, 0x8100 or 0x88a8, and its id.
pub type Tag = (u16, u16);

/// The name of the VLAN with these tags, the outer one first, on an interface; without tags the interface's own.
pub fn vlan(below: &str, tags: &[Tag]) -> String {
    tags.iter().fold(below.to_owned(), |name, (_, id)| format!("{name}.{id}"))
}

impl Topology {
    /// Builds it. Needs root or a user namespace, see [`crate::privilege`].
    pub fn new(options: Options) -> Result<Self> {
        Self::behind_vlans(options, &[], &[])
    }

    /// The same with the clients' network, and the servers', in VLANs with these tags, the outer one first.
    pub fn behind_vlans(options: Options, clients: &[Tag], servers: &[Tag]) -> Result<Self> {
        if options.queues == 0 {
            bail!("an interface needs at least one queue");
        }
        let topology = Self {
            client: Namespace::new("client")?,
            director: Namespace::new("director")?,
            servers: [Namespace::new("server 0")?, Namespace::new("server 1")?],
            switch: Namespace::new("switch")?,
            has_ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            tags: [clients.to_vec(), servers.to_vec()],
        };
        topology.tune()?;
        topology.wire(options.queues)?;
        topology.number()?;
        topology.silence_offloads()?;
        for namespace in topology.namespaces() {
            namespace
                .run_in(|| Netlink::open()?.wait_until_all_pass_packets())?
                .with_context(|| format!("waiting for the interfaces of the {}", namespace.name()))?;
        }
        Ok(topology)
    }

    /// Where clients run.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where the director runs. Its interfaces are [`DIRECTOR_CLIENT_SIDE`] and [`DIRECTOR_SERVER_SIDE`].
    pub fn director(&self) -> &Namespace {
        &self.director
    }

    /// Where the real servers run.
    pub fn servers(&self) -> &[Namespace; SERVERS] {
        &self.servers
    }

    /// Where the bridges are, and the far ends of what is plugged into them.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Starts the lab's own server on each: HTTP and UDP, on their own addresses and the VIPs.
    pub fn start_servers(&self) -> Result<[Server; SERVERS]> {
        let start = |n: usize| {
            let v4 = [server(n), server_back(n), VIP].map(IpAddr::from);
            let v6 = [server6(n), server_back6(n), VIP6].map(IpAddr::from);
            let v6 = if self.has_ipv6 { &v6[..] } else { &[] };
            Server::start(&self.servers[n], n, &[&v4, v6].concat())
                .with_context(|| format!("starting server {n}"))
        };
        Ok([start(0)?, start(1)?])
    }

    /// Makes both servers the far ends of IP in IP, over both families: by the kernel's devices if it has them.
    pub fn start_unwrapping(&self) -> Result<[Unwrapping; SERVERS]> {
        let start = |n: usize| {
            Unwrapping::start(&self.servers[n], &self.tunnel_ends(n))
                .with_context(|| format!("unwrapping at server {n}"))
        };
        Ok([start(0)?, start(1)?])
    }

    /// A server's addresses that tunnels lead to.
    fn tunnel_ends(&self, n: usize) -> Vec<IpAddr> {
        let addresses = [IpAddr::from(server(n)), server6(n).into()];
        addresses.into_iter().filter(|address| address.is_ipv4() || self.has_ipv6).collect()
    }

    /// Makes both servers the far ends of these tunnels, over both families, by the lab's own program, which looks closely at what comes.
    pub fn start_decapsulators(&self, tunnels: &[Tunnel]) -> Result<[Decapsulator; SERVERS]> {
        let start = |n: usize| {
            Decapsulator::start(&self.servers[n], &self.tunnel_ends(n), tunnels)
                .with_context(|| format!("unwrapping at server {n}"))
        };
        Ok([start(0)?, start(1)?])
    }

    /// Starts a director on both interfaces: `shunt run` with these further arguments. The rules are still to
    /// come.
    pub fn start_director(&self, args: &[&str]) -> Result<Director<'_>> {
        Director::start(self, Launcher::find()?, args)
    }

    /// Gives the director the addresses that FullNAT goes to the servers from. They are of the servers' own network, so that these need no route to
    /// answer.
    pub fn lend_local_addresses(&self) -> Result<()> {
        self.at(&self.director, |here| here.interface(DIRECTOR_SERVER_SIDE, &[(LOCAL, LOCAL6)], 24))
    }

    /// Takes the servers' default route, which leads to the director, away: of all that this one forwards only NAT needs it.
    pub fn forget_the_director_as_gateway(&self) -> Result<()> {
        self.servers.iter().try_for_each(|server| {
            self.at(server, |here| {
                here.each((DIRECTOR_TO_SERVERS, DIRECTOR_TO_SERVERS6), |gateway| {
                    here.netlink.remove_default_route(gateway)
                })
            })
        })
    }

    /// Takes the servers away: what the director sends them ends at [`SINK`], in the namespace that is returned.
    pub fn put_a_sink_before_servers(&self) -> Result<&Namespace> {
        self.switch.run_in(|| Netlink::open()?.unplug(SINK))??;
        Ok(&self.switch)
    }

    /// Tells the director's kernel the servers' Ethernet address, which nobody answers for any more. It forgets it when the interface goes down.
    pub fn name_servers(&self, mac: [u8; 6]) -> Result<()> {
        self.at(&self.director, |here| {
            here.netlink.up(DIRECTOR_SERVER_SIDE)?;
            (0..SERVERS).try_for_each(|n| here.netlink.neighbour(DIRECTOR_SERVER_SIDE, server(n).into(), mac))
        })
    }

    /// Whether the kernel has IPv6, and with it the topology.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    /// Lets the director's *kernel* do what a DR director does, spreading flows over the servers by its
    /// routing table. For tests of the topology itself, and as an example of the return path; no director may
    /// run at the same time.
    pub fn forward_by_kernel_route(&self) -> Result<()> {
        self.director.set_variables(&[("ipv4/fib_multipath_hash_policy", "1")])?;
        self.director.run_in(|| {
            let netlink = Netlink::open()?;
            netlink.remove_address("lo", VIP.into())?;
            netlink.spread_route(VIP, &[server(0), server(1)])
        })?
    }

    fn namespaces(&self) -> [&Namespace; 5] {
        let [first, second] = &self.servers;
        [&self.client, &self.director, first, second, &self.switch]
    }

    /// Variables that new interfaces inherit, so before there are any.
    fn tune(&self) -> Result<()> {
        for namespace in self.namespaces() {
            // Replies may come in by another interface than requests leave by: that is what DR is.
            namespace
                .set_variables(&[("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")])?;
            if self.has_ipv6 {
                // The addresses are ours alone; detecting duplicates would take a second per interface.
                let everywhere = [("ipv6/conf/all/accept_dad", "0"), ("ipv6/conf/default/accept_dad", "0")];
                namespace.set_variables(&everywhere)?;
            }
        }
        self.director.set_variables(&[("ipv4/ip_forward", "1")])?;
        if self.has_ipv6 {
            self.director.set_variables(&[("ipv6/conf/all/forwarding", "1")])?;
        }
        for server in &self.servers {
            server
                .set_variables(&[("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")])?;
        }
        if Path::new("/proc/sys/net/bridge").exists() {
            let calls =
                ["iptables", "ip6tables", "arptables"].map(|table| format!("bridge/bridge-nf-call-{table}"));
            self.switch.set_variables(&calls.each_ref().map(|call| (call.as_str(), "0")))?;
        }
        Ok(())
    }

    /// Cables and bridges.
    fn wire(&self, queues: u32) -> Result<()> {
        self.switch
            .run_in(|| -> Result<()> {
                let here = Netlink::open()?;
                here.bridge("lan")?;
                here.bridge("wan")?;
                let plug = |port: &str, bridge, to: &Namespace, there| -> Result<()> {
                    here.veth(port, there, to, queues)?;
                    here.plug(port, bridge)
                };
                plug(SINK, "lan", &self.director, DIRECTOR_SERVER_SIDE)?;
                plug("wan-client", "wan", &self.client, BACK)?;
                for (n, server) in self.servers.iter().enumerate() {
                    plug(&format!("lan-server{n}"), "lan", server, FRONT)?;
                    plug(&format!("wan-server{n}"), "wan", server, BACK)?;
                }
                Ok(())
            })?
            .context("wiring the switch")?;
        self.client
            .run_in(|| Netlink::open()?.veth(FRONT, DIRECTOR_CLIENT_SIDE, &self.director, queues))?
            .context("wiring client and director")
    }

    /// Addresses and routes. An interface is set up before its routes, which need a device that is.
    fn number(&self) -> Result<()> {
        let [client_tags, server_tags] = &self.tags;
        self.at(&self.director, |here| {
            here.interface("lo", &[], 32)?;
            here.vlan(DIRECTOR_CLIENT_SIDE, client_tags, &[(DIRECTOR_TO_CLIENTS, host6(1, 1))], 24)?;
            here.vlan(DIRECTOR_SERVER_SIDE, server_tags, &[(DIRECTOR_TO_SERVERS, DIRECTOR_TO_SERVERS6)], 24)?;
            here.interface("lo", &[(VIP, VIP6)], 32)
        })?;

        let clients: Vec<_> = (0..CLIENTS).map(|n| (client(n), client6(n))).collect();
        self.at(&self.client, |here| {
            here.interface("lo", &[], 32)?;
            here.vlan(FRONT, client_tags, &clients, 24)?;
            here.interface(BACK, &[(CLIENT_BACK, host6(3, 1))], 24)?;
            here.default_route((DIRECTOR_TO_CLIENTS, host6(1, 1)), MAIN)
        })?;

        for (n, namespace) in self.servers.iter().enumerate() {
            self.at(namespace, |here| {
                here.interface("lo", &[(VIP, VIP6)], 32)?;
                here.vlan(FRONT, server_tags, &[(server(n), server6(n))], 24)?;
                here.interface(BACK, &[(server_back(n), server_back6(n))], 24)?;
                here.default_route((DIRECTOR_TO_SERVERS, DIRECTOR_TO_SERVERS6), MAIN)?;
                here.default_route((CLIENT_BACK, host6(3, 1)), REPLIES)?;
                here.source_uses_table((VIP, VIP6), REPLIES)
            })?;
        }
        Ok(())
    }

    fn silence_offloads(&self) -> Result<()> {
        for namespace in [&self.client, &self.servers[0], &self.servers[1]] {
            namespace.run_in(|| [FRONT, BACK].into_iter().try_for_each(offload::switch_off))??;
        }
        // What the director's own kernel sends (answers to ping, passed packets) is nobody's measurement, but
        // true frames as well.
        let own = [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE];
        self.director.run_in(|| own.into_iter().try_for_each(offload::switch_off))?
    }

    fn at(&self, namespace: &Namespace, work: impl FnOnce(&Here) -> Result<()> + Send) -> Result<()> {
        let with_ipv6 = self.has_ipv6;
        namespace
            .run_in(|| work(&Here { netlink: Netlink::open()?, with_ipv6 }))?
            .with_context(|| format!("numbering the {}", namespace.name()))
    }
}

/// Netlink that speaks of both families at once, or of IPv4 alone where the kernel has no other.
struct Here {
    netlink: Netlink,
    with_ipv6: bool,
}

type Twins = (Ipv4Addr, Ipv6Addr);

impl Here {
    /// Sets an interface up and adds addresses. The IPv6 prefix is /128 for host addresses, else /64.
    fn interface(&self, name: &str, addresses: &[Twins], prefix: u8) -> Result<()> {
        self.netlink.up(name)?;
        let prefix6 = if prefix == 32 { 128 } else { 64 };
        for &twins in addresses {
            self.each(twins, |address| {
                self.netlink.address(name, address, if address.is_ipv4() { prefix } else { prefix6 })
            })?;
        }
        Ok(())
    }

    /// The same for a VLAN on an interface, which is made and gets the addresses; without tags the interface gets them.
    fn vlan(&self, below: &str, tags: &[Tag], addresses: &[Twins], prefix: u8) -> Result<()> {
        for (n, tag) in tags.iter().enumerate() {
            let carrier = vlan(below, &tags[..n]);
            self.netlink.up(&carrier)?;
            self.netlink.vlan(&vlan(below, &tags[..=n]), &carrier, *tag)?;
        }
        self.interface(&vlan(below, tags), addresses, prefix)
    }

    fn default_route(&self, gateway: Twins, table: u32) -> Result<()> {
        self.each(gateway, |gateway| self.netlink.default_route(gateway, table))
    }

    fn source_uses_table(&self, source: Twins, table: u32) -> Result<()> {
        self.each(source, |source| self.netlink.source_uses_table(source, table))
    }

    fn each(&self, (v4, v6): Twins, work: impl Fn(IpAddr) -> Result<()>) -> Result<()> {
        work(v4.into())?;
        if self.with_ipv6 { work(v6.into()) } else { Ok(()) }
    }
}

//! Keeping the kernel's hands off the director's frames while AF_PACKET takes them.
//!
//! AF_PACKET gets a copy of every frame and leaves the original to the kernel, which would answer a SYN to a VIP with
//! RST and forward a real server's reply untranslated. An nftables table drops the originals, before connection
//! tracking and defragmentation see them. The copy was made earlier, where the kernel takes a frame from the interface, so it still
//! arrives. Only on a bridge with br_netfilter is it made later: prerouting is then passed at the port that the frame came in by, and nothing the
//! filter drops arrives.
//!
//! ```text
//!   frame ─▶ AF_PACKET's copy ─▶ prerouting, priority -450 ─▶ chain "steer" ─┬─▶ not ours: goes on as ever
//!                                                                            └─▶ ours: dropped
//! ```
//!
//! The table belongs to a netlink socket of this process (`NFT_TABLE_F_OWNER`, Linux 5.12): nobody else can change it,
//! and the kernel destroys it when the socket is closed, which it does also for a process that was killed. Its name
//! carries the socket's address, which the kernel keeps unique, so any number of directors can live in one network
//! namespace.
//!
//! What is dropped is what [the XDP program](super::xdp) takes, with these differences:
//!
//! - Of an ICMP error whose embedded packet has IP options, or is the first fragment of an IPv6 one, the kernel keeps its
//!   copy: a payload expression cannot walk them. It does no harm, for the kernel finds no socket for it.
//! - Of an IPv6 frame with an authentication header the kernel keeps its copy: nf_tables does not look behind one. The
//!   kernel drops it if the address is its own, and forwards it, as if there were no director, if it is not.
//! - Other IPv6 extension headers are walked however many there are. A frame with more than the program walks is
//!   dropped if its ports are taken, and belongs to nobody.
//! - A VLAN device is an interface of its own here ([`set_vlans`](Steering::set_vlans)): rules see the device that a frame
//!   came in by after its tag was taken off. Until one is known the kernel keeps its copies.

mod marked;

use std::collections::HashSet;
use std::net::IpAddr;

use super::claims::{Claims, Place, Role};
use super::netlink::{Batch, Socket};
use super::nftables::{Base, Meta, Part, Rule, Table, Verdict};
use super::{Error, Interface, Marked, Steering, Target};
use crate::service::{PortId, Protocol};
use marked::Kind;

/// Frames kept from the kernel by an nftables table.
#[derive(Debug)]
pub struct Filter {
    /// The owner of the table: they go together.
    socket: Socket,
    table: Table,
    claims: Claims,
    local: HashSet<IpAddr>,
    /// The kernel's indices of our interfaces, by [`PortId`].
    interfaces: Vec<u32>,
    vlans: HashSet<(PortId, u32)>,
    marked: Vec<Marked>,
}

impl Filter {
    /// Creates the table, in the network namespace of the calling thread. It drops nothing yet.
    ///
    /// # Errors
    /// When the process may not use nftables, or the kernel has none.
    pub fn install(interfaces: &[Interface]) -> Result<Filter, Error> {
        let mut socket = Socket::open()?;
        let table = Table { name: format!("shunt_{}", socket.address()) };
        let mut batch = Batch::new();
        table.create(&mut batch);
        for (number, (name, parts)) in SETS.iter().enumerate() {
            table.set(&mut batch, number as u32 + 1, name, parts);
        }
        let indices: Vec<_> = interfaces.iter().map(|i| index(&i.index)).collect();
        table.add(&mut batch, INTERFACES, &indices);
        table.add(&mut batch, ERROR_TYPES, &ICMP_ERRORS.map(|kind| vec![kind, 0, 0, 0]));
        table.add(&mut batch, PROTOCOLS, &Protocol::ALL.map(|protocol| vec![protocol as u8, 0, 0, 0]));
        rules(&table, &mut batch);
        socket.commit(batch)?;
        let interfaces = interfaces.iter().map(|interface| interface.index).collect();
        let (claims, local, vlans, marked) = Default::default();
        Ok(Filter { socket, table, claims, local, interfaces, vlans, marked })
    }

    /// The table's name, for people who look with `nft list ruleset`.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table.name
    }
}

impl Drop for Filter {
    /// Destroys the table at once. The kernel does so when the socket is closed, but a child process that another
    /// thread is just starting has a copy of the socket until it executes its program.
    fn drop(&mut self) {
        let mut batch = Batch::new();
        self.table.destroy(&mut batch);
        let _ = self.socket.commit(batch); // it goes with the socket anyway
    }
}

impl Steering for Filter {
    fn take(&mut self, target: Target) -> Result<(), Error> {
        if self.claims.contains(target) {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (set, key) in elements(target, self.claims.count(Place::of(target))) {
            self.table.add(&mut batch, set, &[key]);
        }
        self.socket.commit(batch)?;
        self.claims.insert(target);
        Ok(())
    }

    fn release(&mut self, target: Target) -> Result<(), Error> {
        if !self.claims.contains(target) {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (set, key) in elements(target, self.claims.count(Place::of(target)) - 1) {
            self.table.remove(&mut batch, set, &[key]);
        }
        self.socket.commit(batch)?;
        self.claims.remove(target);
        Ok(())
    }

    fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let wanted: HashSet<IpAddr> = addresses.iter().copied().collect();
        if wanted == self.local {
            return Ok(());
        }
        let mut batch = Batch::new();
        for family in FAMILIES {
            let keys = |of: &HashSet<IpAddr>, without: &HashSet<IpAddr>| -> Vec<Vec<u8>> {
                of.difference(without).filter(|address| family.has(**address)).map(octets).collect()
            };
            self.table.add(&mut batch, family.local, &keys(&wanted, &self.local));
            self.table.remove(&mut batch, family.local, &keys(&self.local, &wanted));
        }
        self.socket.commit(batch)?;
        self.local = wanted;
        Ok(())
    }

    fn set_marked(&mut self, marked: &[Marked]) -> Result<(), Error> {
        if marked == self.marked {
            return Ok(());
        }
        let mut batch = Batch::new();
        self.rewrite_marked(&mut batch, marked, &self.vlans);
        self.socket.commit(batch)?;
        self.marked = marked.to_vec();
        Ok(())
    }

    fn set_vlans(&mut self, vlans: &[(PortId, u32)]) -> Result<(), Error> {
        let wanted: HashSet<(PortId, u32)> = vlans.iter().copied().collect();
        if wanted == self.vlans {
            return Ok(());
        }
        let mut batch = Batch::new();
        type Vlans = HashSet<(PortId, u32)>;
        let keys = |of: &Vlans, without: &Vlans| -> Vec<Vec<u8>> {
            of.difference(without).map(|(_, vlan)| index(vlan)).collect()
        };
        self.table.add(&mut batch, INTERFACES, &keys(&wanted, &self.vlans));
        self.table.remove(&mut batch, INTERFACES, &keys(&self.vlans, &wanted));
        if self.marked.iter().any(|marked| marked.pattern.port.is_some()) {
            self.rewrite_marked(&mut batch, &self.marked, &wanted);
        }
        self.socket.commit(batch)?;
        self.vlans = wanted;
        Ok(())
    }

    /// Nothing to do: rules go by the kernel's word that a frame is to this machine.
    fn set_macs(&mut self, _: &[[u8; 6]]) -> Result<(), Error> {
        Ok(())
    }
}

impl Filter {
    /// Writes the chains for marked frames anew: what comes in by an interface comes in by the VLANs on it, too.
    fn rewrite_marked(&self, batch: &mut Batch, marked: &[Marked], vlans: &HashSet<(PortId, u32)>) {
        marked::rewrite(&self.table, batch, marked, |port| {
            let own = self.interfaces.get(usize::from(port.0)).copied();
            own.into_iter().chain(vlans.iter().filter(|(of, _)| *of == port).map(|(_, vlan)| *vlan)).collect()
        });
    }
}

/// The key of an interface.
fn index(index: &u32) -> Vec<u8> {
    index.to_ne_bytes().to_vec()
}

/// The elements that come with a target and go with it, when `others` are at its place.
fn elements(target: Target, others: u32) -> Vec<(&'static str, Vec<u8>)> {
    let place = Place::of(target);
    let family = Family::of(place.address);
    let (exact, any, here) = match place.role {
        Role::Service => family.services.all(),
        Role::RealServer => family.real_servers.all(),
        Role::Tunnel => (family.tunnels_with_port, family.tunnels, None),
    };

    let mut key = vec![place.protocol, 0, 0, 0];
    key.extend(octets(&place.address));
    let mut elements = Vec::new();
    if let Some(here) = here.filter(|_| others == 0) {
        elements.push((here, key.clone()));
    }
    match target.port() {
        0 => elements.push((any, key)),
        port => {
            key.extend_from_slice(&port.to_be_bytes());
            key.extend_from_slice(&[0; 2]);
            elements.push((exact, key));
        }
    }
    elements
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// All rules.
fn rules(table: &Table, batch: &mut Batch) {
    // A chain is there before a rule goes to it.
    for family in FAMILIES {
        for chain in
            family.marked.into_iter().chain([family.later_fragments, family.icmp_error, family.steer])
        {
            table.chain(batch, chain, None);
        }
    }
    table.chain(batch, STEER, Some(PRIORITY));

    // Only what an interface of ours received at its own Ethernet address.
    let mut rule = |expressions: &dyn Fn(&mut Rule<'_, '_>)| table.rule(batch, STEER, expressions);
    rule(&|r| r.meta(Meta::InputInterface).is_not_in(INTERFACES).verdict(Verdict::Accept));
    rule(&|r| r.meta(Meta::PacketType).differs(&[PACKET_TO_US]).verdict(Verdict::Accept));
    for family in FAMILIES {
        rule(&|r| r.meta(Meta::Family).equals(&[family.number]).verdict(Verdict::Goto(family.steer)));
    }

    for family in FAMILIES {
        family.rules(table, batch);
    }
}

/// A family of addresses: where its headers have what rules look at, and the names of its sets and chains.
#[derive(Debug)]
struct Family {
    /// `NFPROTO_*`.
    number: u8,
    /// Bytes of an address.
    address: u32,
    // Offsets in the header, and its length without options and extension headers.
    version: [u8; 2],
    protocol: u32,
    source: u32,
    destination: u32,
    header: u32,
    // Chains.
    steer: &'static str,
    later_fragments: &'static str,
    icmp_error: &'static str,
    /// Those of the rules for marks, by [`Kind`].
    marked: [&'static str; 3],
    // Sets.
    local: &'static str,
    services: Sets,
    real_servers: Sets,
    /// Far ends of tunnels whose outer packets have no ports.
    tunnels: &'static str,
    /// Those of GUE.
    tunnels_with_port: &'static str,
}

/// The sets of a role.
#[derive(Clone, Copy, Debug)]
struct Sets {
    /// Targets with a port.
    exact: &'static str,
    /// Targets with every port.
    any: &'static str,
    /// Places that have any target: all that a later fragment shows.
    here: &'static str,
}

impl Sets {
    fn all(self) -> (&'static str, &'static str, Option<&'static str>) {
        (self.exact, self.any, Some(self.here))
    }
}

impl Family {
    fn of(address: IpAddr) -> &'static Family {
        match address {
            IpAddr::V4(_) => &IPV4,
            IpAddr::V6(_) => &IPV6,
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        Family::of(address).number == self.number
    }

    /// The rules for packets of this family.
    fn rules(&self, table: &Table, batch: &mut Batch) {
        let Family { source, destination, services, real_servers, .. } = *self;
        let mut rule = |chain, expressions: &dyn Fn(&mut Rule<'_, '_>)| {
            table.rule(batch, chain, expressions);
        };

        // To a service, as most are: each rule that is tried costs the core that receives. What has no port of its own this does not apply to.
        let chain = self.steer;
        rule(chain, &|r| self.own(r, destination, Some(2)).is_in(services.exact).verdict(Verdict::Drop));

        // Frames whose own header does not decide.
        rule(chain, &|r| {
            self.fragment(r, OFFSET).verdict(Verdict::Goto(self.later_fragments));
        });
        rule(chain, &|r| {
            self.icmp_error(r).verdict(Verdict::Goto(self.icmp_error));
        });

        // To a service, or from a real server to another.
        rule(chain, &|r| self.own(r, destination, None).is_in(services.any).verdict(Verdict::Drop));
        rule(chain, &|r| self.jump_to_marked(r, Kind::Whole));
        rule(chain, &|r| self.accept_local(r));
        rule(chain, &|r| self.own(r, source, Some(0)).is_in(real_servers.exact).verdict(Verdict::Drop));
        rule(chain, &|r| self.own(r, source, None).is_in(real_servers.any).verdict(Verdict::Drop));
        // A first fragment goes where the later ones go.
        rule(chain, &|r| {
            self.fragment(r, MORE);
            self.own(r, source, None).is_in(real_servers.here).verdict(Verdict::Drop);
        });

        // The same without ports.
        let chain = self.later_fragments;
        rule(chain, &|r| self.own(r, destination, None).is_in(services.here).verdict(Verdict::Drop));
        rule(chain, &|r| self.jump_to_marked(r, Kind::LaterFragment));
        rule(chain, &|r| self.accept_local(r));
        rule(chain, &|r| self.own(r, source, None).is_in(real_servers.here).verdict(Verdict::Drop));

        // The same with the embedded packet, which went the other way. Its header must have no options, and it must be
        // no later fragment (RFC 1122 3.2.2: no error is sent about one; in IPv6 the protocol would be another).
        let chain = self.icmp_error;
        let [version, mask] = self.version;
        rule(chain, &|r| {
            r.payload(Base::Transport, EMBEDDED, 1).mask(&[mask]).differs(&[version]);
            r.verdict(Verdict::Accept);
        });
        if self.number == IPV4.number {
            rule(chain, &|r| {
                r.payload(Base::Transport, EMBEDDED + 6, 2).mask(&[0x1f, 0xff]).differs(&[0, 0]);
                r.verdict(Verdict::Accept);
            });
        }
        rule(chain, &|r| {
            self.to_us(r);
            self.embedded(r, destination, None).is_in(self.tunnels).verdict(Verdict::Drop);
        });
        rule(chain, &|r| {
            self.to_us(r);
            self.embedded(r, destination, Some(2)).is_in(self.tunnels_with_port).verdict(Verdict::Drop);
        });
        rule(chain, &|r| self.embedded(r, source, None).is_in(services.any).verdict(Verdict::Drop));
        rule(chain, &|r| self.embedded(r, source, Some(0)).is_in(services.exact).verdict(Verdict::Drop));
        rule(chain, &|r| self.jump_to_marked(r, Kind::Error));
        rule(chain, &|r| self.accept_local(r));
        rule(chain, &|r| self.embedded(r, destination, None).is_in(real_servers.any).verdict(Verdict::Drop));
        rule(chain, &|r| {
            self.embedded(r, destination, Some(2)).is_in(real_servers.exact).verdict(Verdict::Drop);
        });
    }

    /// Goes on with packets that have any of these bits in the word about fragments, as IPv4 and IPv6 have them.
    fn fragment<'l, 'r, 'a>(
        &self,
        rule: &'l mut Rule<'r, 'a>,
        [v4, v6]: [[u8; 2]; 2],
    ) -> &'l mut Rule<'r, 'a> {
        match self.number {
            NFPROTO_IPV4 => rule.payload(Base::Network, 6, 2).mask(&v4),
            // Without a fragment header this ends the rule.
            _ => rule.extension(FRAGMENT, 2, 2).mask(&v6),
        }
        .differs(&[0, 0])
    }

    /// Goes on with ICMP errors.
    fn icmp_error<'l, 'r, 'a>(&self, rule: &'l mut Rule<'r, 'a>) -> &'l mut Rule<'r, 'a> {
        match self.number {
            NFPROTO_IPV4 => {
                rule.meta(Meta::Protocol).equals(&[libc::IPPROTO_ICMP as u8]);
                rule.payload(Base::Transport, 0, 1).is_in(ERROR_TYPES)
            }
            // RFC 4443 2.1: the first bit of an error's type is 0.
            _ => {
                rule.meta(Meta::Protocol).equals(&[libc::IPPROTO_ICMPV6 as u8]);
                rule.payload(Base::Transport, 0, 1).mask(&[0x80]).equals(&[0])
            }
        }
    }

    /// Loads protocol, an address and perhaps a port of the packet itself. Offsets are within the IP and the transport
    /// header.
    fn own<'l, 'r, 'a>(
        &self,
        rule: &'l mut Rule<'r, 'a>,
        address: u32,
        port: Option<u32>,
    ) -> &'l mut Rule<'r, 'a> {
        rule.meta(Meta::Protocol).payload(Base::Network, address, self.address);
        match port {
            Some(offset) => rule.payload(Base::Transport, offset, 2),
            None => rule,
        }
    }

    /// Loads protocol, an address and perhaps a port of the packet embedded in an ICMP error.
    fn embedded<'l, 'r, 'a>(
        &self,
        rule: &'l mut Rule<'r, 'a>,
        address: u32,
        port: Option<u32>,
    ) -> &'l mut Rule<'r, 'a> {
        rule.payload(Base::Transport, EMBEDDED + self.protocol, 1);
        rule.payload(Base::Transport, EMBEDDED + address, self.address);
        match port {
            Some(offset) => rule.payload(Base::Transport, EMBEDDED + self.header + offset, 2),
            None => rule,
        }
    }

    /// What is sent to the machine itself is the machine's, also if a real server sends it.
    fn accept_local(&self, rule: &mut Rule<'_, '_>) {
        self.to_us(rule).verdict(Verdict::Accept);
    }

    /// Goes on with what is sent to the machine itself.
    fn to_us<'l, 'r, 'a>(&self, rule: &'l mut Rule<'r, 'a>) -> &'l mut Rule<'r, 'a> {
        rule.payload(Base::Network, self.destination, self.address).is_in(self.local)
    }
}

const FAMILIES: [&Family; 2] = [&IPV4, &IPV6];

const IPV4: Family = Family {
    number: NFPROTO_IPV4,
    address: 4,
    version: [0x45, 0xff], // and no options
    protocol: 9,
    source: 12,
    destination: 16,
    header: 20,
    steer: "steer_ipv4",
    later_fragments: "later_fragments_ipv4",
    icmp_error: "icmp_error_ipv4",
    marked: ["marked_ipv4", "marked_fragments_ipv4", "marked_errors_ipv4"],
    local: "local_addresses_ipv4",
    services: Sets {
        exact: "services_ipv4",
        any: "services_ipv4_with_every_port",
        here: "services_ipv4_at_any_port",
    },
    real_servers: Sets {
        exact: "real_servers_ipv4",
        any: "real_servers_ipv4_with_every_port",
        here: "real_servers_ipv4_at_any_port",
    },
    tunnels: "tunnels_ipv4",
    tunnels_with_port: "tunnels_ipv4_with_port",
};

const IPV6: Family = Family {
    number: NFPROTO_IPV6,
    address: 16,
    version: [0x60, 0xf0],
    protocol: 6,
    source: 8,
    destination: 24,
    header: 40,
    steer: "steer_ipv6",
    later_fragments: "later_fragments_ipv6",
    icmp_error: "icmp_error_ipv6",
    marked: ["marked_ipv6", "marked_fragments_ipv6", "marked_errors_ipv6"],
    local: "local_addresses_ipv6",
    services: Sets {
        exact: "services_ipv6",
        any: "services_ipv6_with_every_port",
        here: "services_ipv6_at_any_port",
    },
    real_servers: Sets {
        exact: "real_servers_ipv6",
        any: "real_servers_ipv6_with_every_port",
        here: "real_servers_ipv6_at_any_port",
    },
    tunnels: "tunnels_ipv6",
    tunnels_with_port: "tunnels_ipv6_with_port",
};

/// Every set and its key.
const SETS: [(&str, &[Part]); 21] = [
    (INTERFACES, &[Part::Interface]),
    (ERROR_TYPES, &[Part::IcmpType]),
    (PROTOCOLS, &[Part::Protocol]),
    (IPV4.local, &[Part::AddressV4]),
    (IPV4.services.exact, &[Part::Protocol, Part::AddressV4, Part::Port]),
    (IPV4.services.any, &[Part::Protocol, Part::AddressV4]),
    (IPV4.services.here, &[Part::Protocol, Part::AddressV4]),
    (IPV4.real_servers.exact, &[Part::Protocol, Part::AddressV4, Part::Port]),
    (IPV4.real_servers.any, &[Part::Protocol, Part::AddressV4]),
    (IPV4.real_servers.here, &[Part::Protocol, Part::AddressV4]),
    (IPV4.tunnels, &[Part::Protocol, Part::AddressV4]),
    (IPV4.tunnels_with_port, &[Part::Protocol, Part::AddressV4, Part::Port]),
    (IPV6.local, &[Part::AddressV6]),
    (IPV6.services.exact, &[Part::Protocol, Part::AddressV6, Part::Port]),
    (IPV6.services.any, &[Part::Protocol, Part::AddressV6]),
    (IPV6.services.here, &[Part::Protocol, Part::AddressV6]),
    (IPV6.real_servers.exact, &[Part::Protocol, Part::AddressV6, Part::Port]),
    (IPV6.real_servers.any, &[Part::Protocol, Part::AddressV6]),
    (IPV6.real_servers.here, &[Part::Protocol, Part::AddressV6]),
    (IPV6.tunnels, &[Part::Protocol, Part::AddressV6]),
    (IPV6.tunnels_with_port, &[Part::Protocol, Part::AddressV6, Part::Port]),
];

const INTERFACES: &str = "interfaces";
const ERROR_TYPES: &str = "error_types";
const PROTOCOLS: &str = "protocols";

/// The chain that is called.
const STEER: &str = "steer";

/// Before defragmentation (-400), which would keep fragments and show the whole, before raw rules (-300) and connection
/// tracking (-200), which would remember connections that it sees half of.
const PRIORITY: i32 = -450;

/// Destination unreachable, source quench, time exceeded, of IPv4.
const ICMP_ERRORS: [u8; 3] = [3, 4, 11];

/// Where an ICMP error's embedded packet begins, in the ICMP message of either family.
const EMBEDDED: u32 = 8;

/// The kind of an IPv6 fragment header.
const FRAGMENT: u8 = 44;

/// Where a fragment stands in its datagram, in IPv4 and in IPv6; and that others follow.
const OFFSET: [[u8; 2]; 2] = [[0x1f, 0xff], [0xff, 0xf8]];
const MORE: [[u8; 2]; 2] = [[0x20, 0], [0, 1]];

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// `PACKET_HOST`.
const PACKET_TO_US: u8 = 0;

#[cfg(test)]
mod tests;

//! Keeping the kernel's hands off the director's frames while AF_PACKET takes them.
//!
//! AF_PACKET gets a copy of every frame and leaves the original to the kernel, which would answer a SYN to a VIP with
//! RST and forward a real server's reply untranslated. An nftables table drops the originals, before connection
//! tracking and defragmentation see them. The copy was made earlier, in the driver's receive path, so it still arrives.
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
//! What is dropped is what [the XDP program](super::xdp) takes, with two differences. Of an ICMP error whose embedded
//! packet has IP options the kernel keeps its copy: a payload expression cannot walk them. It does no harm, for the
//! kernel finds no socket for it. And a VLAN device is an interface of its own here, to be listed as one: rules see the
//! device that a frame came in by after its tag was taken off.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use super::claims::{Claims, Place, Role};
use super::netlink::{Batch, Socket};
use super::nftables::{Base, Meta, Part, Rule, Table, Verdict};
use super::{Error, Interface, Steering, Target};

/// Frames kept from the kernel by an nftables table.
#[derive(Debug)]
pub struct Filter {
    /// The owner of the table: they go together.
    socket: Socket,
    table: Table,
    claims: Claims,
    local: HashSet<Ipv4Addr>,
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
        let indices: Vec<_> = interfaces.iter().map(|i| i.index.to_ne_bytes().to_vec()).collect();
        table.add(&mut batch, INTERFACES, &indices);
        table.add(&mut batch, ERROR_TYPES, &ICMP_ERRORS.map(|kind| vec![kind, 0, 0, 0]));
        rules(&table, &mut batch);
        socket.commit(batch)?;
        Ok(Filter { socket, table, claims: Claims::default(), local: HashSet::new() })
    }

    /// The table's name, for people who look with `nft list ruleset`.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table.name
    }

    /// The elements that come with a target and go with it, when `others` are at its place.
    fn elements(target: Target, others: u32) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        let place = Place::of(target);
        let IpAddr::V4(address) = place.address else { return Err(Error::Unsupported("IPv6")) };
        let sets = Sets::of(place.role);

        let mut key = vec![place.protocol as u8, 0, 0, 0];
        key.extend_from_slice(&address.octets());
        let mut elements = Vec::new();
        if others == 0 {
            elements.push((sets.here, key.clone()));
        }
        match target.port() {
            0 => elements.push((sets.any, key)),
            port => {
                key.extend_from_slice(&port.to_be_bytes());
                key.extend_from_slice(&[0; 2]);
                elements.push((sets.exact, key));
            }
        }
        Ok(elements)
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
        for (set, key) in Self::elements(target, self.claims.count(Place::of(target)))? {
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
        for (set, key) in Self::elements(target, self.claims.count(Place::of(target)) - 1)? {
            self.table.remove(&mut batch, set, &[key]);
        }
        self.socket.commit(batch)?;
        self.claims.remove(target);
        Ok(())
    }

    fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        // Rules look at IPv4 only, so an IPv6 address has no one to be excluded from.
        let wanted: HashSet<Ipv4Addr> = addresses
            .iter()
            .filter_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
            .collect();
        if wanted == self.local {
            return Ok(());
        }
        let keys = |of: &HashSet<Ipv4Addr>, without: &HashSet<Ipv4Addr>| -> Vec<Vec<u8>> {
            of.difference(without).map(|address| address.octets().to_vec()).collect()
        };
        let mut batch = Batch::new();
        self.table.add(&mut batch, LOCAL_ADDRESSES, &keys(&wanted, &self.local));
        self.table.remove(&mut batch, LOCAL_ADDRESSES, &keys(&self.local, &wanted));
        self.socket.commit(batch)?;
        self.local = wanted;
        Ok(())
    }
}

/// All rules.
fn rules(table: &Table, batch: &mut Batch) {
    for (chain, priority) in [(LATER_FRAGMENTS, None), (ICMP_ERROR, None), (STEER, Some(PRIORITY))] {
        table.chain(batch, chain, priority);
    }
    let mut rule = |chain, expressions: &dyn Fn(&mut Rule<'_, '_>)| {
        table.rule(batch, chain, expressions);
    };
    let services = Sets::of(Role::Service);
    let real_servers = Sets::of(Role::RealServer);

    // Only what an interface of ours received, in IPv4, at its own Ethernet address.
    rule(STEER, &|r| r.meta(Meta::InputInterface).is_not_in(INTERFACES).verdict(Verdict::Accept));
    rule(STEER, &|r| r.meta(Meta::Family).differs(&[FAMILY_IPV4]).verdict(Verdict::Accept));
    rule(STEER, &|r| r.meta(Meta::PacketType).differs(&[PACKET_TO_US]).verdict(Verdict::Accept));

    // Frames whose own header does not decide.
    rule(STEER, &|r| {
        r.payload(Base::Network, 6, 2).mask(&[0x1f, 0xff]).differs(&[0, 0]);
        r.verdict(Verdict::Goto(LATER_FRAGMENTS));
    });
    rule(STEER, &|r| {
        r.meta(Meta::Protocol).equals(&[libc::IPPROTO_ICMP as u8]);
        r.payload(Base::Transport, 0, 1).is_in(ERROR_TYPES).verdict(Verdict::Goto(ICMP_ERROR));
    });

    // To a service, or from a real server to another.
    rule(STEER, &|r| own(r, DESTINATION, None).is_in(services.any).verdict(Verdict::Drop));
    rule(STEER, &|r| own(r, DESTINATION, Some(2)).is_in(services.exact).verdict(Verdict::Drop));
    rule(STEER, &accept_local);
    rule(STEER, &|r| own(r, SOURCE, None).is_in(real_servers.any).verdict(Verdict::Drop));
    rule(STEER, &|r| own(r, SOURCE, Some(0)).is_in(real_servers.exact).verdict(Verdict::Drop));

    // The same without ports.
    let chain = LATER_FRAGMENTS;
    rule(chain, &|r| own(r, DESTINATION, None).is_in(services.here).verdict(Verdict::Drop));
    rule(chain, &accept_local);
    rule(chain, &|r| own(r, SOURCE, None).is_in(real_servers.here).verdict(Verdict::Drop));

    // The same with the embedded packet, which went the other way. Its header must have no options, and it must be no
    // later fragment (RFC 1122 3.2.2: no error is sent about one).
    let chain = ICMP_ERROR;
    rule(chain, &|r| {
        r.payload(Base::Transport, EMBEDDED, 1).differs(&[0x45]).verdict(Verdict::Accept);
    });
    rule(chain, &|r| {
        r.payload(Base::Transport, EMBEDDED + 6, 2).mask(&[0x1f, 0xff]).differs(&[0, 0]);
        r.verdict(Verdict::Accept);
    });
    rule(chain, &|r| embedded(r, SOURCE, None).is_in(services.any).verdict(Verdict::Drop));
    rule(chain, &|r| embedded(r, SOURCE, Some(0)).is_in(services.exact).verdict(Verdict::Drop));
    rule(chain, &accept_local);
    rule(chain, &|r| embedded(r, DESTINATION, None).is_in(real_servers.any).verdict(Verdict::Drop));
    rule(chain, &|r| {
        embedded(r, DESTINATION, Some(2)).is_in(real_servers.exact).verdict(Verdict::Drop);
    });
}

/// Loads protocol, an address and perhaps a port of the packet itself. Offsets are within the IPv4 and the transport
/// header.
fn own<'l, 'r, 'a>(rule: &'l mut Rule<'r, 'a>, address: u32, port: Option<u32>) -> &'l mut Rule<'r, 'a> {
    rule.meta(Meta::Protocol).payload(Base::Network, address, 4);
    match port {
        Some(offset) => rule.payload(Base::Transport, offset, 2),
        None => rule,
    }
}

/// Loads protocol, an address and perhaps a port of the packet embedded in an ICMP error.
fn embedded<'l, 'r, 'a>(rule: &'l mut Rule<'r, 'a>, address: u32, port: Option<u32>) -> &'l mut Rule<'r, 'a> {
    rule.payload(Base::Transport, EMBEDDED + 9, 1); // the protocol
    rule.payload(Base::Transport, EMBEDDED + address, 4);
    match port {
        Some(offset) => rule.payload(Base::Transport, EMBEDDED + 20 + offset, 2),
        None => rule,
    }
}

/// What is sent to the machine itself is the machine's, also if a real server sends it.
fn accept_local(rule: &mut Rule<'_, '_>) {
    rule.payload(Base::Network, DESTINATION, 4).is_in(LOCAL_ADDRESSES).verdict(Verdict::Accept);
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
    fn of(role: Role) -> Sets {
        match role {
            Role::Service => {
                Sets { exact: "services", any: "services_with_every_port", here: "services_at_any_port" }
            }
            Role::RealServer => Sets {
                exact: "real_servers",
                any: "real_servers_with_every_port",
                here: "real_servers_at_any_port",
            },
        }
    }
}

/// Every set and its key.
const SETS: [(&str, &[Part]); 9] = [
    (INTERFACES, &[Part::Interface]),
    (LOCAL_ADDRESSES, &[Part::AddressV4]),
    (ERROR_TYPES, &[Part::IcmpType]),
    ("services", &[Part::Protocol, Part::AddressV4, Part::Port]),
    ("services_with_every_port", &[Part::Protocol, Part::AddressV4]),
    ("services_at_any_port", &[Part::Protocol, Part::AddressV4]),
    ("real_servers", &[Part::Protocol, Part::AddressV4, Part::Port]),
    ("real_servers_with_every_port", &[Part::Protocol, Part::AddressV4]),
    ("real_servers_at_any_port", &[Part::Protocol, Part::AddressV4]),
];

const INTERFACES: &str = "interfaces";
const LOCAL_ADDRESSES: &str = "local_addresses";
const ERROR_TYPES: &str = "error_types";

// Chains.
const STEER: &str = "steer";
const LATER_FRAGMENTS: &str = "later_fragments";
const ICMP_ERROR: &str = "icmp_error";

/// Before defragmentation (-400), which would keep fragments and show the whole, before raw rules (-300) and connection
/// tracking (-200), which would remember connections that it sees half of.
const PRIORITY: i32 = -450;

/// Destination unreachable, source quench, time exceeded.
const ICMP_ERRORS: [u8; 3] = [3, 4, 11];

/// Where an ICMP error's embedded packet begins, in the ICMP message.
const EMBEDDED: u32 = 8;

// Where the addresses are in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// `NFPROTO_IPV4`.
const FAMILY_IPV4: u8 = 2;

/// `PACKET_HOST`.
const PACKET_TO_US: u8 = 0;

#[cfg(test)]
mod tests;

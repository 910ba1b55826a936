//! Firewall marks without a firewall: rules that mark packets, and whose the marked ones are.
//!
//! Rules are a list, and the last one that applies to a packet decides, as in a chain of MARK targets of iptables: there the packet goes on
//! after each of them, and each writes over the mark of the one before. Here they are tried from the last to the first, and the first hit ends it.
//!
//! Only a packet of no known connection is held against them. Without rules that costs nothing.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::network::mask;
use super::{PortId, Protocol, Service};
use crate::packet::{Address, Tuple};

/// The most rules there can be: each frame that is not the director's is held against them, one by one, before it goes to the kernel.
pub const MAX_MARKINGS: usize = 128;

/// Every port.
pub const EVERY_PORT: RangeInclusive<u16> = 0..=u16::MAX;

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Which packets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The interface that they come in by, its VLANs included; `None`: any of the director's.
    pub port: Option<PortId>,
    /// Where they come from. Of the family of `destination`.
    pub source: Prefix,
    /// Where they go.
    pub destination: Prefix,
    /// Their protocol; `None`: every one that a service can have.
    pub protocol: Option<Protocol>,
    /// Their destination ports.
    pub ports: RangeInclusive<u16>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marking {
    /// What it is about.
    pub pattern: Pattern,
    /// The mark that these packets get; 0: none.
    pub mark: u32,
}

/// The rules, the last one first, with the services of their marks.
#[derive(Clone, Default)]
pub(super) struct Markings {
    /// By family: IPv4, IPv6.
    rules: [Vec<Rule>; 2],
}

/// A rule as packets are held against it.
#[derive(Clone)]
struct Rule {
    pattern: Pattern,
    /// Bits of an address and those that count, in a number of either family's length.
    source: (u128, u128),
    destination: (u128, u128),
    /// The service of the mark. Without one the mark means nothing.
    service: Option<Arc<Service>>,
}

impl Prefix {
    /// The addresses that share their leading `length` bits with `address`; `None` if it has not so many.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(address)).then(|| Self { address: mask(address, length), length })
    }

    /// All addresses of the family of `address`.
    pub fn all(address: IpAddr) -> Self {
        Self { address: mask(address, 0), length: 0 }
    }

    /// The first of its addresses.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits its addresses share.
    pub fn length(self) -> u8 {
        self.length
    }

    /// The bits that count, as an address.
    pub fn mask(self) -> IpAddr {
        let ones = match self.address {
            IpAddr::V4(_) => IpAddr::from([0xff; 4]),
            IpAddr::V6(_) => IpAddr::from([0xff; 16]),
        };
        mask(ones, self.length)
    }

    /// Whether an address is one of these.
    pub fn contains(self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        address.is_ipv4() == self.address.is_ipv4() && mask(address, self.length) == self.address
    }
}

impl Pattern {
    /// Whether packets to all ports are meant, so that a port need not be known.
    pub fn has_every_port(&self) -> bool {
        self.ports == EVERY_PORT
    }

    /// Whether every packet of the family is meant that can be a service's, by whatever interface.
    pub fn is_about_all(&self) -> bool {
        self.source.length == 0
            && self.destination.length == 0
            && self.protocol.is_none()
            && self.has_every_port()
            && self.port.is_none()
    }
}

impl Rule {
    /// Whether it applies to a packet, its port aside.
    #[inline]
    fn applies(&self, source: u128, destination: u128, protocol: u8, by: PortId) -> bool {
        let has = |address: u128, (prefix, mask): (u128, u128)| address & mask == prefix;
        has(destination, self.destination)
            && has(source, self.source)
            && self.pattern.protocol.map_or_else(|| has_ports(protocol), |p| p as u8 == protocol)
            && self.pattern.port.is_none_or(|port| port == by)
    }
}

impl Markings {
    /// Rules in the order in which they were added, and where to find the service of a mark, for packets of IPv6 or not.
    pub(super) fn new(rules: &[Marking], service: impl Fn(u32, bool) -> Option<Arc<Service>>) -> Self {
        let mut by_family: [Vec<Rule>; 2] = Default::default();
        for Marking { pattern, mark } in rules.iter().rev() {
            let is_v6 = pattern.destination.address.is_ipv6();
            let compiled = |prefix: Prefix| (number(prefix.address), number(prefix.mask()));
            by_family[usize::from(is_v6)].push(Rule {
                source: compiled(pattern.source),
                destination: compiled(pattern.destination),
                pattern: pattern.clone(),
                service: service(*mark, is_v6),
            });
        }
        for rules in &mut by_family {
            // What no service wants need not be told from what no rule is about.
            let wanted = rules.iter().rposition(|rule| rule.service.is_some()).map_or(0, |last| last + 1);
            rules.truncate(wanted);
        }
        Self { rules: by_family }
    }

    /// The service that a packet's mark leads to.
    #[inline]
    pub(super) fn find<A: Address>(&self, tuple: &Tuple<A>, by: PortId) -> Option<&Arc<Service>> {
        let rules = self.of::<A>();
        if rules.is_empty() {
            return None;
        }
        let (source, destination) = (number(tuple.source.into()), number(tuple.destination.into()));
        let decides = |rule: &&Rule| {
            rule.applies(source, destination, tuple.protocol, by)
                && rule.pattern.ports.contains(&tuple.destination_port)
        };
        rules.iter().find(decides)?.service.as_ref()
    }

    /// Whether a packet whose ports are not known may lead to a service by its mark. A rule about some ports only decides for it, never against it.
    pub(super) fn may_find<A: Address>(&self, source: A, destination: A, protocol: u8, by: PortId) -> bool {
        let (source, destination) = (number(source.into()), number(destination.into()));
        let mut about = self.of::<A>().iter().filter(|r| r.applies(source, destination, protocol, by));
        about
            .find(|rule| rule.service.is_some() || rule.pattern.has_every_port())
            .is_some_and(|rule| rule.service.is_some())
    }

    /// The patterns in the order in which they are tried, and whether they lead to a service.
    pub(super) fn patterns(&self) -> impl Iterator<Item = (&Pattern, bool)> {
        self.rules.iter().flatten().map(|rule| (&rule.pattern, rule.service.is_some()))
    }

    fn of<A: Address>(&self) -> &[Rule] {
        &self.rules[usize::from(A::HEADER == crate::packet::V6::HEADER)]
    }
}

/// Whether packets of a protocol have ports that a rule can be about.
fn has_ports(protocol: u8) -> bool {
    Protocol::ALL.iter().any(|known| *known as u8 == protocol)
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ServiceId, Services};
    use super::*;
    use crate::packet::{V4, V6};
    use crate::sched;

    /// A service of a mark. Its id is the mark, doubled, and one more if it is for IPv6.
    fn service(mark: u32, is_v6: bool) -> Arc<Service> {
        let (scheduler_name, scheduler) = sched::by_name("rr").unwrap();
        Arc::new(Service {
            id: ServiceId(mark * 2 + u32::from(is_v6)),
            mark: Some(mark),
            protocol: Protocol::Tcp,
            address: if is_v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) },
            port: 0,
            dests: Vec::new(),
            locals: Vec::new(),
            edits: 0,
            persistence: None,
            one_packet: false,
            flags: 0,
            scheduler_name,
            scheduler: Arc::from(scheduler),
        })
    }

    /// Addresses that few bits tell apart, so that rules meet them often.
    fn address(is_v6: bool, n: u8) -> IpAddr {
        match is_v6 {
            false => IpAddr::from([10, n >> 4, 0, n & 15]),
            true => IpAddr::from([0x2001, 0xdb8, 0, u16::from(n >> 4), 0, 0, 0, u16::from(n & 15)]),
        }
    }

    fn prefix(is_v6: bool) -> impl Strategy<Value = Prefix> {
        let lengths = if is_v6 { vec![0, 31, 60, 64, 126, 128] } else { vec![0, 8, 12, 16, 30, 32] };
        let length = prop::sample::select(lengths);
        (any::<u8>(), length).prop_map(move |(n, length)| Prefix::new(address(is_v6, n), length).unwrap())
    }

    fn marking(is_v6: bool) -> impl Strategy<Value = Marking> {
        let ports = prop_oneof![
            2 => Just(EVERY_PORT),
            1 => (0u16..6, 0u16..6).prop_map(|(a, b)| a.min(b)..=a.max(b)),
        ];
        let protocol = prop::sample::select(vec![
            None,
            None,
            Some(Protocol::Tcp),
            Some(Protocol::Udp),
            Some(Protocol::Sctp),
        ]);
        let port = prop::option::weighted(0.3, (0u8..3).prop_map(PortId));
        (port, prefix(is_v6), prefix(is_v6), protocol, ports, 0u32..5).prop_map(
            |(port, source, destination, protocol, ports, mark)| Marking {
                pattern: Pattern { port, source, destination, protocol, ports },
                mark,
            },
        )
    }

    /// The plain list: each rule in turn writes its mark on the packet.
    fn marked(rules: &[Marking], tuple: &Tuple<IpAddr>, by: PortId) -> u32 {
        let mut mark = 0;
        for Marking { pattern, mark: new } in rules {
            if pattern.port.is_none_or(|port| port == by)
                && pattern.source.contains(tuple.source)
                && pattern.destination.contains(tuple.destination)
                && [6, 17, 132].contains(&tuple.protocol)
                && pattern.protocol.is_none_or(|protocol| protocol as u8 == tuple.protocol)
                && pattern.ports.contains(&tuple.destination_port)
            {
                mark = *new;
            }
        }
        mark
    }

    fn lookup(services: &Services, tuple: &Tuple<IpAddr>, by: PortId) -> (Option<u32>, bool) {
        fn of<A: Address>(services: &Services, tuple: &Tuple<IpAddr>, by: PortId) -> (Option<u32>, bool) {
            let tuple = Tuple {
                source: A::of(tuple.source).unwrap(),
                destination: A::of(tuple.destination).unwrap(),
                source_port: tuple.source_port,
                destination_port: tuple.destination_port,
                protocol: tuple.protocol,
            };
            let found = services.find_for(&tuple, by).map(|service| service.id.0);
            (found, services.may_concern(tuple.source, tuple.destination, tuple.protocol, by))
        }
        if tuple.source.is_ipv4() { of::<V4>(services, tuple, by) } else { of::<V6>(services, tuple, by) }
    }

    proptest! {
        #[test]
        fn the_lookup_finds_what_a_plain_list_of_rules_says(
            v4 in prop::collection::vec(marking(false), 0..12),
            v6 in prop::collection::vec(marking(true), 0..12),
            // Mark 4 has no service, mark 3 none for IPv6.
            packets in prop::collection::vec(
                (any::<bool>(), any::<u8>(), any::<u8>(), prop::sample::select(vec![6, 17, 132, 1, 47]), 0u16..7, 0u8..3),
                40,
            ),
        ) {
            let known = [(1, false), (2, false), (3, false), (1, true), (2, true)];
            let rules: Vec<Marking> = v4.into_iter().chain(v6).collect();
            let services = Services::new(known.map(|(mark, is_v6)| service(mark, is_v6))).marking(&rules);
            for (is_v6, source, destination, protocol, port, by) in packets {
                let tuple = Tuple {
                    source: address(is_v6, source),
                    destination: address(is_v6, destination),
                    source_port: 9,
                    destination_port: port,
                    protocol,
                };
                let expected = |port| {
                    let mark = marked(&rules, &Tuple { destination_port: port, ..tuple }, PortId(by));
                    known.contains(&(mark, is_v6)).then(|| mark * 2 + u32::from(is_v6))
                };
                // Beyond port 6 no rule tells ports apart.
                let might = (0..8).any(|port| expected(port).is_some());
                let (found, may) = lookup(&services, &tuple, PortId(by));
                prop_assert_eq!(found, expected(port));
                prop_assert!(may || !might, "a fragment of what is found may be found");
                // Rules for different ports are not put together, so it may also be a little too much.
                let taken: Vec<Marking> = rules.iter().filter(|r| known.contains(&(r.mark, is_v6))).cloned().collect();
                let alone = (0..8).any(|port| marked(&taken, &Tuple { destination_port: port, ..tuple }, PortId(by)) != 0);
                prop_assert!(alone || !may);
            }
        }
    }

    #[test]
    fn a_prefix_has_no_more_bits_than_its_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(Prefix::new(ip("10.0.0.0"), 33), None);
        assert_eq!(Prefix::new(ip("::"), 129), None);
        let prefix = Prefix::new(ip("10.1.2.3"), 15).unwrap();
        assert_eq!((prefix.address(), prefix.mask()), (ip("10.0.0.0"), ip("255.254.0.0")));
        assert!(prefix.contains(ip("10.1.255.255")) && !prefix.contains(ip("10.2.0.0")));
        assert!(!Prefix::all(ip("::1")).contains(ip("10.0.0.1")), "the other family");
        assert!(Prefix::all(ip("::1")).contains(ip("ffff::")));
    }

    #[test]
    fn a_marks_service_comes_before_that_of_the_address() {
        let of_address = Arc::new(Service {
            mark: None,
            id: ServiceId(99),
            address: [10, 0, 0, 1].into(),
            port: 80,
            ..(*service(1, false)).clone()
        });
        let rule = |ports, mark| {
            let destination = Prefix::new([10, 0, 0, 0].into(), 16).unwrap();
            let source = Prefix::all([0; 4].into());
            Marking { pattern: Pattern { port: None, source, destination, protocol: None, ports }, mark }
        };
        let services = Services::new([of_address, service(1, false)]);
        let found = |rules: &[Marking], port| {
            let tuple = Tuple {
                source: V4(1),
                destination: V4(0x0a00_0001),
                source_port: 1,
                destination_port: port,
                protocol: 6,
            };
            services.clone().marking(rules).find_for(&tuple, PortId(0)).map(|service| service.id.0)
        };
        assert_eq!(found(&[], 80), Some(99));
        assert_eq!(found(&[rule(EVERY_PORT, 1)], 80), Some(2));
        assert_eq!(found(&[rule(EVERY_PORT, 1)], 81), Some(2));
        assert_eq!(found(&[rule(EVERY_PORT, 7)], 80), Some(99), "nobody serves this mark");
        assert_eq!(found(&[rule(EVERY_PORT, 1), rule(80..=80, 0)], 80), Some(99), "an exception");
        assert_eq!(found(&[rule(80..=80, 0), rule(EVERY_PORT, 1)], 80), Some(2), "the last one decides");
    }
}

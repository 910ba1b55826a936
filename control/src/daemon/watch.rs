//! What an operator should be told while the director runs: each thing once, or once in a while, in words that say what to do.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shunt_dataplane::packet::parse::ETHERNET;
use shunt_dataplane::port::frame::MAX_FRAME;
use shunt_dataplane::service::Network;
use shunt_dataplane::stats::Counters;

use super::mirror::View;
use crate::api::{Forwarding, ServerConfig, ServiceKey};
use crate::ipvsadm::{address::Printed, save};
use crate::publisher::Publisher;
use crate::rules::{Rules, Service};

/// How often a loss that goes on is spoken of.
const REPEAT: Duration = Duration::from_secs(10);

/// How many services one line names.
const MOST_NAMED: usize = 8;

/// Bytes of IP that fit one chunk of frame memory behind an Ethernet header and two VLAN tags.
const LONGEST: usize = MAX_FRAME - ETHERNET - 8;

/// What has been said.
#[derive(Default)]
pub struct Watch {
    gone: HashSet<String>,
    down: HashSet<String>,
    unreached: HashSet<IpAddr>,
    aloof: HashSet<String>,
    policy: Option<String>,
    mtus: HashSet<(String, u16)>,
    oversized: Count,
    unrouted: Count,
    unserved: Count,
    crowded: Count,
    /// Local addresses of FullNAT that the machine does not have.
    strange: HashSet<(ServiceKey, IpAddr)>,
    exhausted: HashMap<(ServiceKey, IpAddr), u64>,
    /// Connections for which FullNAT found no local port.
    portless: u64,
}

/// What has been said of a counter.
#[derive(Default)]
struct Count {
    total: u64,
    said: Option<Instant>,
}

impl Count {
    /// What has been added since something was last said of it, if that is not too short a time ago.
    fn news(&mut self, total: u64, now: Instant) -> Option<u64> {
        let is_time = self.said.is_none_or(|said| now.duration_since(said) >= REPEAT);
        let added = total.checked_sub(self.total).filter(|added| *added > 0 && is_time)?;
        *self = Self { total, said: Some(now) };
        Some(added)
    }
}

/// The total of a counter.
fn total(counters: &Counters, wanted: &str) -> u64 {
    counters.totals().find(|(name, _)| *name == wanted).map_or(0, |(_, total)| total)
}

impl Watch {
    /// Warns of interfaces that are set up for longer packets than the director takes.
    fn mtus(&mut self, network: &Network) {
        let long = network.interfaces().iter().filter(|i| usize::from(i.mtu) > LONGEST);
        let long: HashSet<_> = long.map(|interface| (interface.name.clone(), interface.mtu)).collect();
        for (name, mtu) in long.difference(&self.mtus) {
            tracing::warn!(
                "{name} has an MTU of {mtu}; the director takes packets of up to {LONGEST} bytes and drops longer ones: ip link set \
                 {name} mtu 1500"
            );
        }
        self.mtus = long;
    }

    /// Local addresses of FullNAT that the machine does not have, if nothing was said of them yet.
    fn strange_locals(&mut self, view: &View, rules: &Rules) -> Vec<(ServiceKey, IpAddr)> {
        let locals = rules
            .services()
            .flat_map(|service| service.locals.iter().map(|local| (service.config.key, *local)));
        let strange: HashSet<_> = locals.filter(|(_, local)| !view.answers_for(*local)).collect();
        let new = strange.difference(&self.strange).copied().collect();
        self.strange = strange;
        new
    }

    /// A rule of routing that nothing was said of yet.
    fn other_ways<'p>(&mut self, policy: &'p Option<String>) -> Option<&'p str> {
        let is_new = self.policy != *policy;
        self.policy.clone_from(policy);
        policy.as_deref().filter(|_| is_new)
    }

    /// Looks at the network and the rules after either has changed.
    pub fn network(&mut self, view: &View, rules: &Rules) {
        let View { network, down, policy, .. } = view;
        self.mtus(network);
        for (service, local) in self.strange_locals(view, rules) {
            let service = save::service_words(&service, &mut Printed::numeric());
            tracing::warn!(
                "{local}, a local address of the service {service}, is none of this machine's: unless a router sends here what FullNAT real \
                 servers answer to it, their clients get nothing. Add it (ip address add {local} dev …), or use another (ipvsadm -Q {service} \
                 -z {local})"
            );
        }
        if let Some(rule) = self.other_ways(policy) {
            tracing::warn!(
                "there are rules of routing (ip rule), and the director does not go by them: its packets take the main table's routes (ip \
                 route) whatever they say. The first one is {rule}"
            );
        }
        for name in down.difference(&self.down) {
            tracing::warn!("{name} is not up; nothing goes through it until it is: ip link set {name} up");
        }
        self.down.clone_from(down);
        // One that is gone has no MTU.
        let gone = network.interfaces().iter().filter(|interface| interface.mtu == 0);
        let gone: HashSet<String> = gone.map(|interface| interface.name.clone()).collect();
        for name in gone.difference(&self.gone) {
            tracing::warn!(
                "{name} is gone; what goes through it is lost. When it is back, restart the director"
            );
        }
        self.gone = gone;

        let aloof = network.vlans().iter().filter(|vlan| network.has_own_mac(vlan));
        let aloof: HashSet<String> = aloof.map(|vlan| vlan.interface.name.clone()).collect();
        for name in aloof.difference(&self.aloof) {
            tracing::warn!(
                "{name} has another Ethernet address than the interface below it; what is sent there stays with the kernel: give it the \
                 same one (ip link set {name} address …)"
            );
        }
        self.aloof = aloof;

        let servers = rules.services().flat_map(|service| &service.servers).map(|server| server.key.address);
        let unreached =
            servers.filter(|address| network.route(*address).is_none_or(|route| route.link.is_none()));
        let unreached: HashSet<IpAddr> = unreached.collect();
        for address in unreached.difference(&self.unreached) {
            tracing::warn!(
                "no route leads to real server {address} through an interface of the director; is its interface named with --interface?"
            );
        }
        self.unreached = unreached;
    }

    /// Looks at the local ports of FullNAT; one line for all that are used up or were never there, each second that connections find none.
    pub fn local_ports(&mut self, publisher: &Publisher, rules: &Rules, counters: &Counters) {
        let mut used_up = Vec::new();
        let counts: HashMap<_, _> =
            publisher.exhausted().map(|(key, local, n)| ((*key, *local), n)).collect();
        for (which, n) in &counts {
            if *n > self.exhausted.get(which).copied().unwrap_or(0) {
                used_up.push(which.1.to_string());
            }
        }
        self.exhausted = counts;
        if !used_up.is_empty() {
            used_up.sort();
            used_up.dedup();
            tracing::warn!(
                "the ports of local addresses {} are used up towards some real servers; where no other address had any, new \
                 connections were refused (drop.no_local_port). Add addresses: ipvsadm -P -t VIP:PORT -z ADDRESS",
                used_up.join(", ")
            );
        }
        let portless = total(counters, "drop.no_local_port");
        let lacking = if portless > self.portless { lacking(rules) } else { Vec::new() };
        if !lacking.is_empty() {
            tracing::warn!(
                "FullNAT real servers {} have no local address of their family, and new connections were refused \
                 (drop.no_local_port). Add one: ipvsadm -P -t VIP:PORT -z ADDRESS",
                lacking.join(", ")
            );
        }
        self.portless = portless;
    }

    /// In a word, why nothing goes through an interface, if it does not.
    pub fn hindrance(&self, interface: &str) -> Option<&'static str> {
        // One that is gone is not down besides.
        let is = |set: &HashSet<String>| set.contains(interface);
        if is(&self.gone) { Some("gone") } else { is(&self.down).then_some("down") }
    }

    /// What is to be said of what was refused, by the totals of counters.
    fn refusals(&mut self, total: impl Fn(&str) -> u64, rules: &Rules, now: Instant) -> Vec<String> {
        let mut complaints = Vec::new();
        if let Some(packets) = self.crowded.news(total("drop.table_full"), now) {
            complaints.push(format!(
                "{packets} packets of new connections were dropped for want of room (drop.table_full). If there are nearly as many connections \
                 as shunt status says there is room for, restart the director with room for more: --connections N. SIP's calls and what FTP's \
                 servers speak of have tables of a fixed size"
            ));
        }
        if let Some(packets) = self.unrouted.news(total("hop.no_route"), now) {
            let mut unreached: Vec<_> = self.unreached.iter().map(IpAddr::to_string).collect();
            unreached.sort();
            // There may be a route again by now.
            let whose =
                if unreached.is_empty() { String::new() } else { format!(": {}", unreached.join(", ")) };
            complaints.push(format!(
                "{packets} packets were refused for want of a route to their real server (hop.no_route){whose}. Look at ip route, and whether \
                 its interface is up and named with --interface"
            ));
        }
        if let Some(connections) = self.unserved.news(total("sched.no_server"), now) {
            let weightless = weightless(rules);
            let whose = match weightless.as_slice() {
                [] => String::new(),
                services => format!(" In {} no server has any weight.", the_first(services)),
            };
            complaints.push(format!(
                "{connections} new connections were refused for want of a real server (sched.no_server).{whose} Look at servers' weights \
                 (ipvsadm -Ln) and thresholds (ipvsadm -Ln --thresholds)"
            ));
        }
        complaints
    }

    /// Looks at the counters.
    pub fn losses(&mut self, counters: &Counters, rules: &Rules, now: Instant) {
        for complaint in self.refusals(|name| total(counters, name), rules, now) {
            tracing::warn!("{complaint}");
        }
        if let Some(frames) = self.oversized.news(total(counters, "port.rx_oversized"), now) {
            tracing::warn!(
                "{frames} frames were longer than {LONGEST} bytes of IP and were dropped (port.rx_oversized). Somebody joins packets: switch \
                 gro and lro off here (ethtool -K IF gro off lro off); on veth and virtio, tso and gso at the sender, too (ethtool -K IF \
                 tso off gso off)"
            );
        }
    }
}

/// The first of many, on one line.
fn the_first(names: &[String]) -> String {
    let (named, others) = names.split_at(names.len().min(MOST_NAMED));
    let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    named.join(", ") + &more
}

/// Services that have no server which new connections could go to.
fn weightless(rules: &Rules) -> Vec<String> {
    let services = rules.services().filter(|service| service.servers.iter().all(|server| server.weight == 0));
    services.map(|service| save::service_words(&service.config.key, &mut Printed::numeric())).collect()
}

/// FullNAT's real servers whose service has no local address of their family.
fn lacking(rules: &Rules) -> Vec<String> {
    let lacks = |service: &Service, server: &ServerConfig| {
        let has = |local: &IpAddr| local.is_ipv4() == server.key.address.is_ipv4();
        server.forwarding == Forwarding::FullNat && !service.locals.iter().any(has)
    };
    let all =
        rules.services().flat_map(|service| service.servers.iter().map(move |server| (service, server)));
    let mut lacking: Vec<_> = all
        .filter(|(service, server)| lacks(service, server))
        .map(|(_, server)| server.key.address.to_string())
        .collect();
    lacking.sort();
    lacking.dedup();
    lacking
}

#[cfg(test)]
mod tests {
    use shunt_dataplane::service::Prefix;

    use super::*;
    use crate::daemon::capabilities;

    fn rules(lines: &[&str]) -> Rules {
        Rules::restore(capabilities(), &lines.join("\n")).expect("good rules")
    }

    #[test]
    fn a_local_address_that_the_machine_does_not_have_is_spoken_of_until_it_has_it() {
        let mut watch = Watch::default();
        let rules = rules(&[
            "-A -t 10.9.0.1:80 -s rr",
            "-P -t 10.9.0.1:80 -z 10.2.0.2",
            "-P -t 10.9.0.1:80 -z 10.2.0.3",
            "-P -t 10.9.0.1:80 -z 10.3.0.3",
        ]);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let has = |addresses: &[&str]| View {
            network: Network::default().on_machine(addresses.iter().map(|text| address(text)), [true; 2]),
            answered: vec![Prefix::new(address("10.3.0.0"), 24).expect("a prefix")],
            ..View::default()
        };
        let mut strange = |addresses| {
            let strange = watch.strange_locals(&has(addresses), &rules).into_iter();
            strange.map(|(_, local)| local.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(strange(&["10.2.0.3"]), ["10.2.0.2"]);
        assert_eq!(strange(&["10.2.0.3"]), [""; 0]);
        assert_eq!(strange(&["10.2.0.2", "10.2.0.3"]), [""; 0]);
        assert_eq!(strange(&["10.2.0.3"]), ["10.2.0.2"]);
    }

    #[test]
    fn refused_connections_are_spoken_of_once_in_a_while_with_what_to_do() {
        let mut watch = Watch::default();
        let rules = rules(&[
            "-A -t 10.9.0.1:80 -s rr",
            "-A -f 7 -s rr",
            "-a -f 7 -r 10.1.0.11:0 -g -w 0",
            "-A -u 10.9.0.1:53 -s rr",
            "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -g",
        ]);
        let begun = Instant::now();
        let mut said = |table_full: u64, no_server: u64, seconds| {
            let total = |name: &str| match name {
                "drop.table_full" => table_full,
                "sched.no_server" => no_server,
                _ => 0,
            };
            watch.refusals(total, &rules, begun + Duration::from_secs(seconds))
        };
        assert_eq!(said(0, 0, 0), [""; 0]);
        let full = said(3, 0, 1);
        assert!(full.len() == 1 && full[0].starts_with("3 packets") && full[0].contains("--connections"));
        let nobody = said(4, 5, 2);
        assert!(nobody.len() == 1 && nobody[0].starts_with("5 new connections"), "{nobody:?}");
        assert!(nobody[0].contains("-t 10.9.0.1:80, -f 7 no server") && nobody[0].contains("thresholds"));
        assert_eq!(said(5, 6, 9), [""; 0], "too soon");
        let both = said(5, 6, 12);
        assert!(
            both.len() == 2 && both[0].starts_with("2 packets") && both[1].starts_with("1 new"),
            "{both:?}"
        );
        assert_eq!(said(5, 6, 60), [""; 0], "it is over");
    }

    #[test]
    fn a_line_names_a_few_and_counts_the_others() {
        let names: Vec<_> = (1..=10).map(|n| n.to_string()).collect();
        assert_eq!(the_first(&names[..2]), "1, 2");
        assert_eq!(the_first(&names), "1, 2, 3, 4, 5, 6, 7, 8 and 2 more");
    }

    #[test]
    fn servers_without_a_route_are_named_as_long_as_they_have_none() {
        let mut watch = Watch::default();
        let begun = Instant::now();
        let said = |watch: &mut Watch, no_route: u64, seconds| {
            let total = |name: &str| if name == "hop.no_route" { no_route } else { 0 };
            watch.refusals(total, &rules(&[]), begun + Duration::from_secs(seconds)).concat()
        };
        watch.unreached = ["10.1.0.12", "10.1.0.11"].map(|text| text.parse().expect("an address")).into();
        let text = said(&mut watch, 1, 0);
        assert!(text.contains("(hop.no_route): 10.1.0.11, 10.1.0.12. Look at ip route"), "{text}");
        watch.unreached.clear();
        let text = said(&mut watch, 3, 60);
        assert!(text.starts_with("2 packets") && text.contains("(hop.no_route). Look at ip route"), "{text}");
    }

    #[test]
    fn a_rule_of_routing_is_spoken_of_once_and_again_when_it_is_another() {
        let mut watch = Watch::default();
        let [one, other] = ["IPv4's 100", "IPv4's 101"].map(|rule| Some(rule.to_owned()));
        assert_eq!(watch.other_ways(&None), None);
        assert_eq!(watch.other_ways(&one), one.as_deref());
        assert_eq!(watch.other_ways(&one), None);
        assert_eq!(watch.other_ways(&other), other.as_deref());
        assert_eq!(watch.other_ways(&None), None);
        assert_eq!(watch.other_ways(&one), one.as_deref());
    }
}

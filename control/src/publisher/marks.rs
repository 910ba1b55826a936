//! Frames that are taken by more than an address and a port: rules that mark packets, as workers know them, and the ports of FTP's data.

use shunt_dataplane::service::{
    EVERY_PORT, FIRST_UNPRIVILEGED, FTP_DATA, Marking, Pattern, PortId, Prefix, Protocol, Services,
};
use shunt_dataplane::steer::Marked;

use super::wire;
use crate::marks::{self, MarkRule, Ports};

/// The rules for a director with these interfaces. One about another interface, which would have been refused, is about no packet, and left out.
pub fn markings(rules: &[MarkRule], interfaces: &[String]) -> Vec<Marking> {
    rules.iter().filter_map(|rule| marking(rule, interfaces)).collect()
}

fn marking(rule: &MarkRule, interfaces: &[String]) -> Option<Marking> {
    let port = match &rule.interface {
        Some(name) => Some(PortId(interfaces.iter().position(|known| known == name)? as u8)),
        None => None,
    };
    let destination = prefix(rule.destination)?;
    let source = match rule.source {
        Some(source) => prefix(source)?,
        None => Prefix::all(destination.address()),
    };
    let ports = rule.ports.map_or(EVERY_PORT, |Ports { first, last }| first..=last);
    let pattern = Pattern { port, source, destination, protocol: rule.protocol.map(wire), ports };
    Some(Marking { pattern, mark: rule.mark })
}

/// What clients of persistent services of FTP may send their data connections to: it goes where their control connections go.
pub fn ftp_data(services: &Services) -> impl Iterator<Item = Marked> {
    let persistent = services.iter().filter(|service| service.is_persistent_ftp() && service.mark.is_none());
    persistent.flat_map(|service| {
        let (all, length) = (Prefix::all(service.address), if service.address.is_ipv4() { 32 } else { 128 });
        let ranges = [FTP_DATA..=FTP_DATA, FIRST_UNPRIVILEGED..=u16::MAX];
        ranges.into_iter().filter_map(move |ports| {
            let destination = Prefix::new(service.address, length)?;
            let protocol = Some(Protocol::Tcp);
            Some(Marked {
                pattern: Pattern { port: None, source: all, destination, protocol, ports },
                is_taken: true,
            })
        })
    })
}

fn prefix(prefix: marks::Prefix) -> Option<Prefix> {
    Prefix::new(prefix.address, prefix.length)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    use shunt_dataplane::service::{DestId, Protocol, WorkerId};
    use shunt_dataplane::stats::Counters;
    use shunt_dataplane::steer::{Marked, Target};

    use crate::daemon::capabilities;
    use crate::publisher::Publisher;
    use crate::rules::Rules;

    const SERVICES: &str =
        "-A -f 1 -s rr\n-a -f 1 -r 10.2.0.11:0 -m\n-A -f 1 -6 -s rr\n-a -f 1 -6 -r 10.2.0.12:0 -i";

    fn published(text: &str) -> (Publisher, Rules, Counters) {
        let rules = Rules::restore(capabilities(), text).unwrap();
        let mut publisher = Publisher::new(vec!["c0".to_owned(), "s0".to_owned()]);
        let counters = Counters::new(1).unwrap();
        publisher.publish(&rules, &counters, Instant::now()).unwrap();
        (publisher, rules, counters)
    }

    #[test]
    fn replies_to_a_marks_service_are_taken_of_every_protocol() {
        let (mut publisher, rules, counters) = published(SERVICES);
        let address = [10, 2, 0, 11].into();
        let replies = Protocol::ALL.map(|protocol| Target::RealServer { protocol, address, port: 0 });
        let errors = Target::Tunnel { protocol: 41, address: [10, 2, 0, 12].into(), port: 0 };
        let all: HashSet<Target> = publisher.targets(&rules).collect();
        assert_eq!(all, replies.into_iter().chain([errors]).collect());

        // And while connections remain that a removed server has.
        let busy = (0..2).map(|n| &counters.worker(WorkerId(0)).dest(DestId(n)).inactive);
        busy.for_each(|connections| connections.store(1, Ordering::Relaxed));
        let without = Rules::restore(capabilities(), "-A -f 1 -s rr").unwrap();
        let services = publisher.publish(&without, &counters, Instant::now()).unwrap();
        assert_eq!(publisher.targets(&without).collect::<HashSet<_>>(), HashSet::from(replies));
        assert!(services.is_masqueraded(std::net::Ipv4Addr::new(10, 2, 0, 11), 4711, 132));
    }

    #[test]
    fn the_data_of_persistent_ftp_is_taken_too() {
        let shown = |text: &str| -> Vec<(String, u16, u16)> {
            let (publisher, ..) = published(text);
            let ports = |m: &Marked| (*m.pattern.ports.start(), *m.pattern.ports.end());
            let told = publisher.marked().iter().map(|m| (m.pattern.destination.address(), ports(m)));
            told.map(|(address, (first, last))| (address.to_string(), first, last)).collect()
        };
        let service = "-A -t 10.9.0.1:21 -s rr";
        assert_eq!(shown(service), []);
        let of = |first, last| ("10.9.0.1".to_owned(), first, last);
        assert_eq!(shown(&format!("{service} -p 60")), [of(20, 20), of(1024, 65535)]);
        assert_eq!(shown("-A -t 10.9.0.1:80 -s rr -p 60"), []);
    }

    #[test]
    fn what_steering_is_told_ends_with_the_last_rule_of_a_served_mark() {
        let marks = "mark add --destination 10.10.0.0/16 --mark 7\nmark add --destination 10.10.0.0/17 --interface s0 --mark 1\n\
                     mark add --destination 10.10.1.0/24 --mark 0\nmark add --destination fd00::/64 --mark 1\n";
        let shown = |text: &str| -> Vec<(String, Option<u8>, bool)> {
            let (publisher, ..) = published(text);
            let told = publisher.marked().iter();
            told.map(|m| {
                (m.pattern.destination.address().to_string(), m.pattern.port.map(|p| p.0), m.is_taken)
            })
            .collect()
        };
        assert_eq!(shown(marks), [], "no mark has a service");
        let told = |address: &str, port, is_taken| (address.to_owned(), port, is_taken);
        assert_eq!(
            shown(&format!("{marks}{SERVICES}")),
            [told("10.10.1.0", None, false), told("10.10.0.0", Some(1), true), told("fd00::", None, true)]
        );
    }
}

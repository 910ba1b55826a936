//! Rules that mark packets, as workers know them.

use shunt_dataplane::service::{EVERY_PORT, Marking, Pattern, PortId, Prefix};

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

fn prefix(prefix: marks::Prefix) -> Option<Prefix> {
    Prefix::new(prefix.address, prefix.length)
}

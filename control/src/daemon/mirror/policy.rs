//! Rules of routing (`ip rule`) that the director does not go by.
//!
//! It mirrors the main table alone, so an operator should know of rules that lead elsewhere. Those that the kernel has in any case are no news, nor are the
//! director's own, which lead home what real servers on the director say.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::daemon::home;

/// The kernel's own rules by priority and table: for the local table, the main and the default one.
const ORDINARY: [(u32, u32); 3] = [(0, 255), (32_766, 254), (32_767, 253)];

/// The first rule that is neither the kernel's own nor the director's, in words.
pub(super) fn foreign(rules: &[RuleMessage]) -> Option<String> {
    rules.iter().find_map(|rule| {
        let find = |wanted: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(wanted);
        let priority = find(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        let table = find(|attribute| match attribute {
            RuleAttribute::Table(long) => Some(*long),
            _ => None,
        });
        let (priority, table) = (priority.unwrap_or(0), table.unwrap_or(rule.header.table.into()));
        let is_table = rule.header.action == RuleAction::ToTable;
        if is_table && (table == home::TABLE || ORDINARY.contains(&(priority, table))) {
            return None;
        }
        let family = if rule.header.family == AddressFamily::Inet6 { "IPv6" } else { "IPv4" };
        Some(match rule.header.action {
            // That of the l3mdev names none: each VRF has its own.
            RuleAction::ToTable if table != 0 => format!("{family}'s {priority}, for table {table}"),
            _ => format!("{family}'s {priority}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(family: AddressFamily, priority: u32, table: u32) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        // The kernel says no priority 0, and in the header only what fits a byte.
        rule.header.table = u8::try_from(table).unwrap_or(252);
        rule.attributes.extend((priority > 0).then_some(RuleAttribute::Priority(priority)));
        rule.attributes.push(RuleAttribute::Table(table));
        rule
    }

    #[test]
    fn the_first_rule_beyond_the_kernels_and_our_own_is_named() {
        use AddressFamily::{Inet, Inet6};
        let ordinary = ORDINARY.map(|(priority, table)| rule(Inet, priority, table));
        let ordinary6 = [rule(Inet6, 0, 255), rule(Inet6, 32_766, 254)];
        let with = |more: &[RuleMessage]| foreign(&[&ordinary[..], more, &ordinary6[..]].concat());
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[rule(Inet, 32_765, home::TABLE)]), None);
        let several = [rule(Inet, 32_764, home::TABLE), rule(Inet6, 100, 1000), rule(Inet6, 101, 7)];
        assert_eq!(with(&several).as_deref(), Some("IPv6's 100, for table 1000"));
        // As WireGuard's scripts have it: the main table, but not for default routes.
        assert_eq!(with(&[rule(Inet, 32_764, 254)]).as_deref(), Some("IPv4's 32764, for table 254"));
        let mut unreachable = rule(Inet, 5, 0);
        unreachable.header.action = RuleAction::Unreachable;
        assert_eq!(with(&[unreachable, rule(Inet, 6, 6)]).as_deref(), Some("IPv4's 5"));
        assert_eq!(with(&[rule(Inet, 1000, 0)]).as_deref(), Some("IPv4's 1000"), "that of VRFs");
    }
}

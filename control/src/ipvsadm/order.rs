//! The order of a sorted listing.
//!
//! The original compares by subtraction: the difference of two 32-bit words, taken as a signed number, decides. So
//! 200.0.0.0 stands before 1.0.0.0, the mark 4294967295 before all others, and 1 before 100 before 200 before 1 again.
//! Where such a circle is, the original's listing depends on the order in which things were added. Ours does not, so
//! that rules saved, restored and saved again are the same text: what is to be sorted is first put into an order of its
//! own, and then sorted by the original's comparison with the very steps of the C library's `qsort`. Without a circle
//! the two orders are one and the same.

use std::net::IpAddr;

use crate::api::{Family, LocalEntry, Protocol, ServerEntry, ServerKey, ServiceEntry, ServiceKey};

/// Services as `-L` and `-S` print them.
pub fn services(entries: &mut Vec<ServiceEntry>) {
    entries.sort_by_key(|entry| service_parts(&entry.config.key));
    merge_sort(entries, &|a, b| compare_services(&a.config.key, &b.config.key));
}

/// Services with their local addresses, in the order of [`services`].
pub fn locals(entries: &mut Vec<LocalEntry>) {
    entries.sort_by_key(|entry| service_parts(&entry.service));
    merge_sort(entries, &|a, b| compare_services(&a.service, &b.service));
}

/// The servers of one service.
pub fn servers(entries: &mut Vec<ServerEntry>) {
    entries.sort_by_key(|entry| entry.config.key);
    merge_sort(entries, &|a, b| compare_servers(&a.config.key, &b.config.key));
}

/// Mark, family, protocol number, address and port. Services with an address have mark 0.
fn service_parts(key: &ServiceKey) -> (u32, bool, u8, [u32; 4], u16) {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            (0, address.is_ipv6(), protocol.number(), words(address), port)
        }
        ServiceKey::Mark { mark, family } => {
            (mark, family == Family::Ipv6, Protocol::Tcp.number(), [0; 4], 0)
        }
    }
}

/// By each of the parts in turn.
fn compare_services(a: &ServiceKey, b: &ServiceKey) -> i32 {
    let (mark_a, v6_a, protocol_a, words_a, port_a) = service_parts(a);
    let (mark_b, v6_b, protocol_b, words_b, port_b) = service_parts(b);
    let keys = [
        difference(mark_a, mark_b),
        i32::from(v6_a) - i32::from(v6_b),
        i32::from(protocol_a) - i32::from(protocol_b),
    ];
    let addresses = words_a.iter().zip(words_b).map(|(a, b)| difference(*a, b));
    let ports = i32::from(port_a) - i32::from(port_b);
    keys.into_iter().chain(addresses).chain([ports]).find(|d| *d != 0).unwrap_or(0)
}

/// By address and port. Of an IPv4 address there is only the first word to compare.
fn compare_servers(a: &ServerKey, b: &ServerKey) -> i32 {
    let compared = if a.address.is_ipv4() { 1 } else { 4 };
    let (words_a, words_b) = (words(a.address), words(b.address));
    let addresses = words_a.iter().zip(words_b).take(compared).map(|(a, b)| difference(*a, b));
    let ports = i32::from(a.port) - i32::from(b.port);
    addresses.chain([ports]).find(|d| *d != 0).unwrap_or(0)
}

fn difference(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// The 32-bit words of an address. An IPv4 address is the first of four.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [v4.to_bits(), 0, 0, 0],
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
        }
    }
}

/// Top-down merge sort, the shorter half first, the left element first where `compare` is not above 0.
/// Rust's own sorts may panic on a comparison that is no order.
fn merge_sort<T>(items: &mut Vec<T>, compare: &dyn Fn(&T, &T) -> i32) {
    if items.len() <= 1 {
        return;
    }
    let mut right = items.split_off(items.len() / 2);
    let mut left = std::mem::take(items);
    merge_sort(&mut left, compare);
    merge_sort(&mut right, compare);

    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let smaller = if compare(l, r) <= 0 { left.next() } else { right.next() };
        items.extend(smaller);
    }
    items.extend(left);
    items.extend(right);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_more_than_half_the_range_apart_sort_the_wrong_way_round() {
        let key = |a: &str| ServerKey { address: a.parse().expect("a test's address"), port: 80 };
        let mut keys = ["10.1.0.1", "32.1.13.184", "::2", "fec0::1", "200.1.0.11", "::1"].map(key).to_vec();
        merge_sort(&mut keys, &compare_servers);
        let printed: Vec<_> = keys.iter().map(|k| k.address.to_string()).collect();
        assert_eq!(printed, ["200.1.0.11", "fec0::1", "::1", "::2", "10.1.0.1", "32.1.13.184"]);
    }

    #[test]
    fn where_the_comparison_runs_in_a_circle_the_order_is_still_one() {
        let server = |a: &str| ServerEntry {
            config: crate::api::ServerConfig {
                key: ServerKey { address: a.parse().expect("a test's address"), port: 80 },
                forwarding: crate::api::Forwarding::Masq,
                weight: 1,
                upper_threshold: 0,
                lower_threshold: 0,
            },
            active: 0,
            inactive: 0,
            persistent: 0,
            stats: crate::api::Stats::default(),
        };
        let mut one = ["1.0.0.0", "100.0.0.0", "200.0.0.0"].map(server).to_vec();
        let mut other = ["200.0.0.0", "1.0.0.0", "100.0.0.0"].map(server).to_vec();
        servers(&mut one);
        servers(&mut other);
        assert_eq!(one, other);
    }

    #[test]
    fn a_mark_above_half_the_range_stands_before_all_addresses() {
        let mark = |mark| ServiceKey::Mark { mark, family: Family::Ipv4 };
        let vip = ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 9, 0, 1].into(), port: 80 };
        let mut keys = vec![mark(1), vip, mark(u32::MAX)];
        merge_sort(&mut keys, &compare_services);
        assert_eq!(keys, [mark(u32::MAX), vip, mark(1)]);
    }
}

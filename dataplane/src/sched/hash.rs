//! What the hashing schedulers share: an address as one word, and a table of real servers.

use std::net::IpAddr;
use std::sync::Arc;

use crate::service::{Dest, Service};

/// An address as the kernel's hashing schedulers see it: IPv4 in host order, the four words of IPv6 XORed.
pub fn word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (0..4).fold(0, |word, n| word ^ (bits >> (32 * n)) as u32)
        }
    }
}

/// Which of [`BUCKETS`] a value belongs to: its product with 2³² divided by the golden ratio, of which the first bits are the best
/// mixed (the kernel's `hash_32`).
pub fn bucket(value: u32) -> usize {
    (value.wrapping_mul(0x61c8_8647) >> 24) as usize
}

/// The buckets of `sh` and `dh` (`IP_VS_SH_TAB_SIZE`, `IP_VS_DH_TAB_SIZE` as distributions build them).
pub const BUCKETS: usize = 256;

/// Real servers by slot, as places in the service's list. Made anew when the list changes; copies share it.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<[u32]>);

impl Slots {
    /// The real server of a slot. Nobody's if there are no real servers.
    pub fn dest<'a>(&self, service: &'a Service, slot: usize) -> Option<&'a Arc<Dest>> {
        service.dests.get(*self.0.get(slot)? as usize)
    }

    /// How many slots each place in the list has.
    #[cfg(test)]
    pub fn shares(&self, places: usize) -> Vec<usize> {
        (0..places).map(|place| self.0.iter().filter(|p| **p as usize == place).count()).collect()
    }
}

impl FromIterator<u32> for Slots {
    fn from_iter<I: IntoIterator<Item = u32>>(places: I) -> Self {
        Self(places.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::bench::{self, Bench};
    use crate::service::HASH_PORT;

    #[test]
    fn the_kernels_buckets() {
        let of = |address: &str, port: u32| bucket(word(address.parse().unwrap()).wrapping_add(port));
        let clients = ["10.0.0.1", "10.0.0.2", "192.168.1.100", "203.0.113.7"];
        assert_eq!(clients.map(|client| of(client, 0)), [39, 137, 89, 124]);
        assert_eq!(clients.map(|client| of(client, 40_000)), [203, 45, 253, 32]);
    }

    /// What Linux 6.1 chose for these clients, from the ports 1000, 40000 and 65535 each, and for these destinations.
    #[test]
    fn the_kernels_choices_for_ipv6() {
        let clients = [
            "2001:db8:a::2",
            "2001:db8:a::1234:5678",
            "2001:db8:a:5:dead:beef:0:7",
            "2001:db8:a:5:ffff:ffff:ffff:ffff",
            "2001:db8:a::9:0",
            "2001:db8:a:5:1:2:3:4",
        ];
        let virtual_addresses =
            ["2001:db8:f::1", "2001:db8:f:1::9", "2001:db8:f:2:3:4:5:6", "2001:db8:ffff::abcd"];
        let dests = [('E', 5), ('D', 2), ('C', 1), ('B', 3)].map(|(name, weight)| {
            let address = IpAddr::from([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, name as u16 - b'B' as u16 + 0xb]);
            Arc::new(Dest { address, ..bench::dest(name, weight, weight) })
        });
        for (name, flags, expected) in [
            ("sh", 0, "EEEEEEDDDEEEEEEBBB"),
            ("sh", HASH_PORT, "DBEDBCCEBBEBECEECE"),
            ("mh", 0, "DDDDDDCCCDDDBBBEEE"),
            ("mh", HASH_PORT, "BEECEEEEBEEEEDDBEE"),
        ] {
            let mut bench = Bench::new(name);
            bench.replace(dests.to_vec());
            bench.flags(flags);
            let ports = |client| [1000, 40_000, 65_535].map(|port| (client, port));
            let chosen: String =
                clients.into_iter().flat_map(ports).map(|(c, port)| bench.client(c, port)).collect();
            assert_eq!(chosen, expected, "{name} {flags}");
        }
        let mut bench = Bench::new("dh");
        bench.replace(dests.to_vec());
        assert_eq!(virtual_addresses.map(|address| bench.destination(address)).concat(), "EEDB");
    }

    #[test]
    fn ipv6_is_folded() {
        assert_eq!(word("1:2:30:40:500:600:7000:8000".parse().unwrap()), 0x7531_8642);
    }
}

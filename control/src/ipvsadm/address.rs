//! Addresses, ports and their names, as typed and as printed.
//!
//! What may be typed is what the resolver's old functions take: `10.1` is 10.0.0.1, `0x0a000001` too, and `010` is 8 in
//! an address but 10 in a port. A bare IPv6 address has no port; with one it stands in brackets. A bracketed word that
//! is no IPv6 address is looked up as an IPv4 host and its port is not looked at: odd, but scripts may lean on it.
//!
//! All look-ups go through [`Names`], on the side of the command line; the daemon only ever sees numbers.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use dns_lookup::AddrInfoHints;
use nix::libc::{AF_INET, SOCK_STREAM};

use crate::api::{Protocol, ServerKey};

/// Where names of hosts and services come from.
pub trait Names {
    /// The first IPv4 address of a host.
    fn host(&self, name: &str) -> Option<Ipv4Addr>;
    /// The port of a service.
    fn service(&self, name: &str, protocol: Protocol) -> Option<u16>;
    /// The name of a host.
    fn host_name(&self, address: IpAddr) -> Option<String>;
    /// The name of a service.
    fn service_name(&self, port: u16, protocol: Protocol) -> Option<String>;
}

/// The names this machine knows: its resolver and `/etc/services`.
#[derive(Debug, Default)]
pub struct SystemNames {
    services: std::sync::OnceLock<Services>,
}

impl Names for SystemNames {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        // Digits and dots are an address that was typed wrong, and no reason to ask and to wait.
        if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return None;
        }
        let ipv4 = AddrInfoHints { address: AF_INET, socktype: SOCK_STREAM, ..AddrInfoHints::default() };
        let found = dns_lookup::getaddrinfo(Some(name), None, Some(ipv4)).ok()?;
        found.flatten().find_map(|found| match found.sockaddr.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }

    fn service(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.services().port(name, protocol)
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        // Where there is no name the resolver hands back the address.
        dns_lookup::lookup_addr(&address).ok().filter(|name| name.parse::<IpAddr>().is_err())
    }

    fn service_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.services().name(port, protocol)
    }
}

impl SystemNames {
    fn services(&self) -> &Services {
        self.services
            .get_or_init(|| Services::parse(&std::fs::read_to_string("/etc/services").unwrap_or_default()))
    }
}

/// A file of services: `name port/protocol alias…  # comment`. The first line that fits wins.
#[derive(Debug, Default)]
pub struct Services {
    ports: HashMap<(String, String), u16>,
    names: HashMap<(u16, String), String>,
}

impl Services {
    /// Reads such a file. Lines that make no sense are skipped, as the C library does.
    pub fn parse(text: &str) -> Services {
        let mut services = Services::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some(place)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = place.split_once('/') else { continue };
            let Ok(port) = port.parse::<u16>() else { continue };

            services.names.entry((port, protocol.to_string())).or_insert_with(|| name.to_string());
            for alias in std::iter::once(name).chain(words) {
                services.ports.entry((alias.to_string(), protocol.to_string())).or_insert(port);
            }
        }
        services
    }

    /// The port of a service by any of its names.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.get(&(name.to_string(), protocol.name().to_string())).copied()
    }

    /// The first name of a port.
    pub fn name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.names.get(&(port, protocol.name().to_string())).cloned()
    }
}

/// An address with the port that was typed, if one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

impl Endpoint {
    /// Reads `host`, `host:port`, `ipv6` or `[ipv6]:port`. Without a protocol the port must be a number.
    pub fn parse(text: &str, protocol: Option<Protocol>, names: &dyn Names) -> Option<Endpoint> {
        let port = |text: &str| {
            let number = number(text, 0..=65535).and_then(|n| u16::try_from(n).ok());
            number.or_else(|| names.service(text, protocol?))
        };

        if let Some(bracketed) = text.strip_prefix('[') {
            let (host, after) = bracketed.split_once(']')?;
            let typed = after.strip_prefix(':')?;
            return match host.parse::<Ipv6Addr>() {
                Ok(address) => Some(Endpoint { address: address.into(), port: Some(port(typed)?) }),
                Err(_) => Some(Endpoint { address: ipv4(host, names)?.into(), port: None }),
            };
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Some(Endpoint { address: address.into(), port: None });
        }
        match text.rsplit_once(':') {
            Some((host, typed)) => {
                Some(Endpoint { address: ipv4(host, names)?.into(), port: Some(port(typed)?) })
            }
            // A number alone is a port without a host.
            None if text.bytes().all(|b| b.is_ascii_digit()) => None,
            None => Some(Endpoint { address: ipv4(text, names)?.into(), port: None }),
        }
    }
}

/// An IPv4 address in any form the resolver takes, or the name of a host.
pub fn ipv4(text: &str, names: &dyn Names) -> Option<Ipv4Addr> {
    dotted(text).or_else(|| names.host(text))
}

/// The historic forms: one to four parts, each decimal, octal or hexadecimal, the last one filling what is left.
/// Anything may follow after a blank.
fn dotted(text: &str) -> Option<Ipv4Addr> {
    let text = text.split([' ', '\t', '\n', '\r', '\x0b', '\x0c']).next()?;
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    let (last, leading) = parts.split_last()?;
    let mut address = 0u32;
    for (place, part) in leading.iter().enumerate() {
        let octet = u32::from(u8::try_from(c_number(part)?).ok()?);
        address |= octet << (24 - 8 * place);
    }
    let rest = c_number(last)?;
    let room = 32 - 8 * leading.len() as u32;
    if room < 32 && rest >> room != 0 {
        return None;
    }
    Some(Ipv4Addr::from(address | rest))
}

/// A number as C writes it: `0x` hexadecimal, a leading `0` octal.
fn c_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// A decimal number within bounds: blanks before it and a sign are fine, anything after it is not.
pub fn number(text: &str, bounds: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    text.parse::<i64>().ok().filter(|n| bounds.contains(n))
}

/// Prints addresses: numbers, or names where there are any. Remembers what it looked up.
pub struct Printed<'a> {
    names: Option<&'a dyn Names>,
    hosts: HashMap<IpAddr, Option<String>>,
}

impl<'a> Printed<'a> {
    /// Prints numbers only.
    pub fn numeric() -> Printed<'a> {
        Printed { names: None, hosts: HashMap::new() }
    }

    /// Prints names where there are any.
    pub fn named(names: &'a dyn Names) -> Printed<'a> {
        Printed { names: Some(names), hosts: HashMap::new() }
    }

    /// `host:port`, or `[host]:port` for IPv6. Without a protocol the port stays a number.
    pub fn endpoint(&mut self, at: ServerKey, protocol: Option<Protocol>) -> String {
        let host = self.host(at.address);
        let port = protocol.and_then(|protocol| self.port_name(at.port, protocol));
        let port = port.unwrap_or_else(|| at.port.to_string());
        match at.address {
            IpAddr::V4(_) => format!("{host}:{port}"),
            IpAddr::V6(_) => format!("[{host}]:{port}"),
        }
    }

    /// The address alone.
    pub fn host(&mut self, address: IpAddr) -> String {
        self.host_name(address).unwrap_or_else(|| plain(address))
    }

    /// The name of a host, if it has one and names are to be printed.
    pub fn host_name(&mut self, address: IpAddr) -> Option<String> {
        let names = self.names?;
        self.hosts.entry(address).or_insert_with(|| names.host_name(address)).clone()
    }

    /// The name of a port, if it has one and names are to be printed.
    pub fn port_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.names?.service_name(port, protocol)
    }
}

/// An address as the C library writes it; it differs from Rust's way in `::10.0.0.1` alone.
fn plain(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) if v6.segments()[..6] == [0; 6] && v6.segments()[6] != 0 => {
            let [.., a, b, c, d] = v6.octets();
            format!("::{a}.{b}.{c}.{d}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Names for Nobody {
        fn host(&self, name: &str) -> Option<Ipv4Addr> {
            (name == "vip").then_some(Ipv4Addr::new(10, 9, 0, 1))
        }
        fn service(&self, name: &str, _: Protocol) -> Option<u16> {
            (name == "http").then_some(80)
        }
        fn host_name(&self, _: IpAddr) -> Option<String> {
            None
        }
        fn service_name(&self, _: u16, _: Protocol) -> Option<String> {
            None
        }
    }

    #[test]
    fn addresses_are_read_as_the_resolver_reads_them() {
        type Read<'a> = Option<(&'a str, Option<u16>)>;
        let cases: &[(&str, Read)] = &[
            ("10.9.0.1", Some(("10.9.0.1", None))),
            ("10.9.0.1:80", Some(("10.9.0.1", Some(80)))),
            ("10.9:80", Some(("10.0.0.9", Some(80)))),
            ("10:80", Some(("0.0.0.10", Some(80)))),
            ("0x0a.011.1:080", Some(("10.9.0.1", Some(80)))),
            ("4294967295:80", Some(("255.255.255.255", Some(80)))),
            ("4294967296:80", None),
            ("10.09.0.1:80", None),
            ("10.9.256.1:80", None),
            ("10.9.65536:80", None),
            ("10.9.0.1 x:80", Some(("10.9.0.1", Some(80)))),
            (" 10.9.0.1:80", None),
            ("vip:http", Some(("10.9.0.1", Some(80)))),
            ("vip:", None),
            ("80", None),
            ("", None),
            (":80", None),
            ("10.9.0.1:65536", None),
            ("10.9.0.1:+80", Some(("10.9.0.1", Some(80)))),
            ("2001:db8::1", Some(("2001:db8::1", None))),
            ("2001:db8::5:80", Some(("2001:db8::5:80", None))),
            ("[2001:db8::1]:80", Some(("2001:db8::1", Some(80)))),
            ("[2001:db8::1]:99999", None),
            ("[2001:db8::1]", None),
            ("[2001:db8::1", None),
            ("[10.9.0.4]:99999", Some(("10.9.0.4", None))),
            ("[vip]:80", Some(("10.9.0.1", None))),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(address, port)| Endpoint {
                address: address.parse().expect("a test's address"),
                port,
            });
            assert_eq!(Endpoint::parse(text, Some(Protocol::Tcp), &Nobody), expected, "{text:?}");
        }
    }

    #[test]
    fn the_machine_knows_itself_and_no_misspelt_address() {
        let names = SystemNames::default();
        assert_eq!(names.host("localhost"), Some(Ipv4Addr::LOCALHOST));
        for wrong in ["", "10.9.0.300", "10.9.0.1.1", "."] {
            assert_eq!(names.host(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_first_line_of_a_service_wins_and_aliases_count() {
        let services = Services::parse("www 80/tcp http # web\nhttp 80/tcp\nntp 123/udp\nbad line\n");
        assert_eq!(services.port("http", Protocol::Tcp), Some(80));
        assert_eq!(services.name(80, Protocol::Tcp).as_deref(), Some("www"));
        assert_eq!(services.port("ntp", Protocol::Tcp), None);
    }

    #[test]
    fn ipv6_is_printed_as_the_c_library_prints_it() {
        for (text, printed) in [
            ("::10.0.0.1", "::10.0.0.1"),
            ("::2", "::2"),
            ("::ffff:10.9.0.1", "::ffff:10.9.0.1"),
            ("::", "::"),
        ] {
            assert_eq!(plain(text.parse().expect("a test's address")), printed);
        }
    }
}

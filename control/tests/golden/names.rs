//! The names that the recorded machines knew.

use std::net::{IpAddr, Ipv4Addr};

use shunt::{
    api::Protocol,
    ipvsadm::address::{Names, Services},
};

const HOSTS: &str = include_str!("../../../tests/golden/names/hosts");
const SERVICES: &str = include_str!("../../../tests/golden/names/services");

/// The lines of the file of hosts: an address and its name.
fn hosts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = HOSTS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(address, name)| (address, name.trim()))
}

pub struct Recorded(Services);

impl Recorded {
    pub fn new() -> Recorded {
        Recorded(Services::parse(SERVICES))
    }
}

impl Names for Recorded {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        let named = hosts().filter(|(_, known)| known.eq_ignore_ascii_case(name));
        named.filter_map(|(address, _)| address.parse().ok()).next()
    }

    fn service(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.0.port(name, protocol)
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        hosts().find(|(known, _)| known.parse() == Ok(address)).map(|(_, name)| name.to_string())
    }

    fn service_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.0.name(port, protocol)
    }
}

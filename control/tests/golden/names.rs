//! The names that the recorded machines knew.

use std::net::{IpAddr, Ipv4Addr};

use shunt::{
    api::Protocol,
    ipvsadm::address::{Names, Services},
};

const HOSTS: &[(&str, &str)] = &[
    ("127.0.0.1", "localhost"),
    ("ff02::1", "ip6-allnodes"),
    ("10.9.0.1", "vip.example"),
    ("10.9.0.66", "a-very-long-name-of-a-virtual-server.example"),
    ("10.1.0.11", "rs1.example"),
    ("10.1.0.99", "another-very-long-name-of-a-real-server.example"),
    ("2001:db8:f::1", "vip6.example"),
];

const SERVICES: &str = "
domain    53/tcp
domain    53/udp
http      80/tcp  www
iso-tsap  102/tcp tsap
pop3      110/tcp pop-3
auth      113/tcp authentication tap ident
shell     514/tcp cmd syslog
syslog    514/udp
http-alt  8080/tcp webcache
";

pub struct Recorded(Services);

impl Recorded {
    pub fn new() -> Recorded {
        Recorded(Services::parse(SERVICES))
    }
}

impl Names for Recorded {
    fn host(&self, name: &str) -> Option<Ipv4Addr> {
        HOSTS.iter().filter(|(_, known)| *known == name).find_map(|(address, _)| address.parse().ok())
    }

    fn service(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.0.port(name, protocol)
    }

    fn host_name(&self, address: IpAddr) -> Option<String> {
        let known = HOSTS.iter().find(|(known, _)| known.parse() == Ok(address));
        known.map(|(_, name)| name.to_string())
    }

    fn service_name(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.0.name(port, protocol)
    }
}

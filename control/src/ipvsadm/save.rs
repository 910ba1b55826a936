//! `-S`: the rules as commands that `-R` reads.
//!
//! What the original does not print is lost on the way: thresholds, timeouts and the daemons. Two of its habits even
//! write what it will not read again: a mark above 2³¹ comes out negative, and `-b` comes out without a word when `sh`
//! or `mh` has flag 3 alone. Files are compared byte for byte, so these stay.

use std::io::{self, Write};

use super::{
    address::Printed,
    fullnat,
    print::{netmask, port_protocol, sched_flags},
};
use crate::api::{
    Family, Forwarding, LocalAddress, Protocol, ServerConfig, ServerKey, ServiceConfig, ServiceEntry,
    ServiceKey, Tunnel, TunnelChecksum,
};

/// Prints a service, its local addresses and its servers.
pub fn service(
    out: &mut dyn Write,
    entry: &ServiceEntry,
    locals: &[LocalAddress],
    names: &mut Printed<'_>,
) -> io::Result<()> {
    let key = &entry.config.key;
    let which = service_words(key, names);
    writeln!(out, "-A {which}{}", service_settings(&entry.config))?;
    for local in locals {
        // Never by name: a name would not be read back as an IPv6 address.
        writeln!(out, "-P {which} -z {}", local.address)?;
    }
    for one in &entry.servers {
        let at = names.endpoint(one.config.key, port_protocol(key));
        writeln!(out, "-a {which} -r {at}{}", server_settings(&one.config))?;
    }
    Ok(())
}

/// The words by which a service is meant, such as `-t 192.0.2.1:80`.
pub fn service_words(key: &ServiceKey, names: &mut Printed<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            let option = match protocol {
                Protocol::Tcp => "-t",
                Protocol::Udp => "-u",
                Protocol::Sctp => "--sctp-service",
            };
            format!("{option} {}", names.endpoint(ServerKey { address, port }, Some(protocol)))
        }
        ServiceKey::Mark { mark, family: Family::Ipv4 } => format!("-f {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::Ipv6 } => format!("-f {} -6", mark as i32),
    }
}

fn service_settings(config: &ServiceConfig) -> String {
    let mut text = format!(" -s {}", config.scheduler);
    if let Some(persistent) = config.persistent {
        text.push_str(&format!(" -p {}", persistent.timeout));
    }
    if let Some(mask) = netmask(config) {
        text.push_str(&format!(" -M {mask}"));
    }
    if let Some(engine) = &config.engine {
        text.push_str(&format!(" --pe {engine}"));
    }
    if config.one_packet {
        text.push_str(" -o");
    }
    if let Some(flags) = sched_flags(config) {
        text.push_str(&format!(" -b {flags}"));
    }
    text + &fullnat::typed(config)
}

fn server_settings(config: &ServerConfig) -> String {
    let (method, tunnel) = match config.forwarding {
        Forwarding::Masq => ("-m", String::new()),
        Forwarding::FullNat => ("--fullnat", String::new()),
        // A server on this machine was asked for as one to route to.
        Forwarding::Route | Forwarding::Local => ("-g", String::new()),
        Forwarding::Tunnel(tunnel) => ("-i", tunnel_settings(tunnel)),
    };
    format!(" {method} -w {}{tunnel}", config.weight)
}

fn tunnel_settings(tunnel: Tunnel) -> String {
    let option = |checksum| match checksum {
        TunnelChecksum::None => "--tun-nocsum",
        TunnelChecksum::Full => "--tun-csum",
        TunnelChecksum::Remote => "--tun-remcsum",
    };
    match tunnel {
        Tunnel::Ipip => " --tun-type ipip".to_string(),
        Tunnel::Gue { port, checksum } => format!(" --tun-type gue --tun-port {port} {}", option(checksum)),
        Tunnel::Gre { checksum } => format!(" --tun-type gre {}", option(checksum)),
    }
}

//! The listings of services and connections, to the byte.
//!
//! Each layout is a title and two kinds of row, one for services and one for servers, and stands here as one `match`
//! arm each, so that it can be held against the reference's samples. The columns are those of a terminal of the
//! nineties: IPv4 text is cut to fit, IPv6 text is not and shifts what follows. Trailing blanks are part of the format.

use std::io::{self, Write};

use super::{
    address::Printed,
    fullnat,
    parse::{Layout, Listing, SCHED_FLAGS},
};
use crate::api::{
    ConnectionEntry, Family, Forwarding, Protocol, ServerEntry, ServerKey, ServiceConfig, ServiceEntry,
    ServiceKey, Stats, SyncDaemon, SyncRole, Timeouts, Tunnel, TunnelChecksum,
};

/// The version of IPVS that shunt speaks like.
pub const IPVS_VERSION: &str = "1.2.1";

/// Characters an IPv4 service may take, its protocol included.
const SERVICE_WIDTH: usize = 33;
/// Characters an IPv4 server may take.
const SERVER_WIDTH: usize = 28;

/// The line above a listing of all services.
pub fn banner(out: &mut dyn Write, table_size: u64) -> io::Result<()> {
    writeln!(out, "IP Virtual Server version {IPVS_VERSION} (size={table_size})")
}

/// The two lines of titles.
pub fn titles(out: &mut dyn Write, layout: Layout) -> io::Result<()> {
    const LOCAL: &str = "Prot LocalAddress:Port";
    const REMOTE: &str = "  -> RemoteAddress:Port";
    match layout {
        Layout::Stats => writeln!(
            out,
            "{LOCAL:<33} {:>8} {:>8} {:>8} {:>8} {:>8}\n{REMOTE}",
            "Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"
        ),
        Layout::Rate => writeln!(
            out,
            "{LOCAL:<33} {:>8} {:>8} {:>8} {:>8} {:>8}\n{REMOTE}",
            "CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"
        ),
        Layout::Thresholds => writeln!(
            out,
            "{LOCAL:<33} {:<10} {:<10} {:<10} {:<10}\n{REMOTE}",
            "Uthreshold", "Lthreshold", "ActiveConn", "InActConn"
        ),
        Layout::PersistentConn => writeln!(
            out,
            "{LOCAL:<33} {:<9} {:<11} {:<10} {:<10}\n{REMOTE}",
            "Weight", "PersistConn", "ActiveConn", "InActConn"
        ),
        Layout::TunInfo => writeln!(
            out,
            "{LOCAL} Scheduler Flags\n{REMOTE:<33} Forward TunnelInfo    Weight ActiveConn InActConn"
        ),
        Layout::Plain => {
            writeln!(out, "{LOCAL} Scheduler Flags\n{REMOTE:<33} Forward Weight ActiveConn InActConn")
        }
    }
}

/// A service and its servers.
pub fn service(
    out: &mut dyn Write,
    entry: &ServiceEntry,
    listing: &Listing,
    names: &mut Printed<'_>,
) -> io::Result<()> {
    let key = &entry.config.key;
    let text = service_text(key, names);
    match listing.layout {
        Layout::Stats => writeln!(out, "{text:<33}{}", columns(totals(&entry.stats), listing.exact))?,
        Layout::Rate => writeln!(out, "{text:<33}{}", columns(entry.stats.rates, listing.exact))?,
        _ => writeln!(out, "{text} {}", settings(&entry.config))?,
    }
    for one in &entry.servers {
        let at = server_text(one.config.key, key, names);
        server(out, &at, one, listing)?;
    }
    Ok(())
}

fn server(out: &mut dyn Write, at: &str, entry: &ServerEntry, listing: &Listing) -> io::Result<()> {
    let ServerEntry { config, active, inactive, persistent, stats } = entry;
    let forward = forward_name(config.forwarding, listing.shows_full_nat);
    let (weight, exact) = (config.weight, listing.exact);
    match listing.layout {
        Layout::Stats => writeln!(out, "  -> {at:<28}{}", columns(totals(stats), exact)),
        // Of a server's rates the first three are never scaled.
        Layout::Rate => {
            let [cps, in_pps, out_pps, in_bps, out_bps] = stats.rates;
            let (packets, bytes) = ([cps, in_pps, out_pps], [in_bps, out_bps]);
            writeln!(out, "  -> {at:<28}{}{}", columns(packets, true), columns(bytes, exact))
        }
        Layout::Thresholds => writeln!(
            out,
            "  -> {at:<28} {:<10} {:<10} {active:<10} {inactive:<10}",
            config.upper_threshold, config.lower_threshold
        ),
        Layout::PersistentConn => {
            writeln!(out, "  -> {at:<28} {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
        }
        Layout::TunInfo => {
            let tunnel = tunnel_text(config.forwarding);
            writeln!(out, "  -> {at:<28} {forward:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
        }
        Layout::Plain => {
            writeln!(out, "  -> {at:<28} {forward:<7} {weight:<6} {active:<10} {inactive:<10}")
        }
    }
}

/// What a service line says after the address.
fn settings(config: &ServiceConfig) -> String {
    let mut text = config.scheduler.clone();
    if let Some(flags) = sched_flags(config) {
        text.push_str(&format!(" ({flags})"));
    }
    // Without persistence an engine is not shown, though -S prints it.
    if let Some(persistent) = config.persistent {
        text.push_str(&format!(" persistent {}", persistent.timeout));
        if let Some(mask) = netmask(config) {
            text.push_str(&format!(" mask {mask}"));
        }
        if let Some(engine) = &config.engine {
            text.push_str(&format!(" pe {engine}"));
        }
    }
    if config.one_packet {
        text.push_str(" ops");
    }
    text + &fullnat::listed(config)
}

/// The names of a service's scheduler flags. `sh` and `mh` have their own for two of them and none for the third.
pub fn sched_flags(config: &ServiceConfig) -> Option<String> {
    let owner = ["sh", "mh"].into_iter().find(|owner| config.scheduler == *owner);
    let set = SCHED_FLAGS.iter().filter(|(_, of, bit)| *of == owner && config.flags & bit != 0);
    (config.flags != 0).then(|| set.map(|(name, ..)| *name).collect::<Vec<_>>().join(","))
}

/// A persistent service's mask or prefix, unless it is the whole address.
pub fn netmask(config: &ServiceConfig) -> Option<String> {
    let persistent = config.persistent?;
    match config.key.family() {
        Family::Ipv4 => {
            (persistent.mask != u32::MAX).then(|| std::net::Ipv4Addr::from_bits(persistent.mask).to_string())
        }
        Family::Ipv6 => (persistent.prefix != 128).then(|| persistent.prefix.to_string()),
    }
}

fn service_text(key: &ServiceKey, names: &mut Printed<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            let at = names.endpoint(ServerKey { address, port }, Some(protocol));
            let text = format!("{:<4} {at}", protocol.name().to_ascii_uppercase());
            if address.is_ipv4() { cut(text, SERVICE_WIDTH) } else { text }
        }
        // The original prints the mark as a signed number.
        ServiceKey::Mark { mark, family: Family::Ipv4 } => format!("FWM  {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::Ipv6 } => format!("FWM  {} IPv6", mark as i32),
    }
}

fn server_text(server: ServerKey, service: &ServiceKey, names: &mut Printed<'_>) -> String {
    let text = names.endpoint(server, port_protocol(service));
    if server.address.is_ipv4() { cut(text, SERVER_WIDTH) } else { text }
}

/// The protocol by which ports of a service's servers have names: marks have none.
pub fn port_protocol(service: &ServiceKey) -> Option<Protocol> {
    match service {
        ServiceKey::Address { protocol, .. } => Some(*protocol),
        ServiceKey::Mark { .. } => None,
    }
}

fn cut(text: String, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some((end, _)) => text[..end].to_string(),
        None => text,
    }
}

/// What a way of forwarding is called. Whoever reads listings knows the original's four names, and may not take to a fifth: to a
/// client FullNAT is masquerading.
fn forward_name(forwarding: Forwarding, shows_full_nat: bool) -> &'static str {
    match forwarding {
        Forwarding::FullNat if shows_full_nat => "FullNat",
        Forwarding::Masq | Forwarding::FullNat => "Masq",
        Forwarding::Local => "Local",
        Forwarding::Tunnel(_) => "Tunnel",
        Forwarding::Route => "Route",
    }
}

fn tunnel_text(forwarding: Forwarding) -> String {
    let flag = |checksum| match checksum {
        TunnelChecksum::None => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    match forwarding {
        Forwarding::Tunnel(Tunnel::Ipip) => "ipip".to_string(),
        Forwarding::Tunnel(Tunnel::Gue { port, checksum }) => format!("gue:{port}:{}", flag(checksum)),
        Forwarding::Tunnel(Tunnel::Gre { checksum }) => format!("gre:{}", flag(checksum)),
        _ => "n/a".to_string(),
    }
}

fn totals(stats: &Stats) -> [u64; 5] {
    [stats.conns, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes]
}

fn columns<const N: usize>(numbers: [u64; N], exact: bool) -> String {
    numbers.map(|n| if exact { format!(" {n:>8}") } else { scaled(n) }).concat()
}

/// A number in nine characters. K is used between 10⁸ and 10⁹ only: below there is room for all digits.
fn scaled(number: u64) -> String {
    let (divisor, unit) = match number {
        0..100_000_000 => return format!("{number:>9}"),
        100_000_000..1_000_000_000 => (1_000, 'K'),
        1_000_000_000..100_000_000_000 => (1_000_000, 'M'),
        100_000_000_000..100_000_000_000_000 => (1_000_000_000, 'G'),
        _ => (1_000_000_000_000, 'T'),
    };
    format!("{:>8}{unit}", number / divisor)
}

/// The titles of the connections.
pub fn connection_titles(out: &mut dyn Write, engines: bool) -> io::Result<()> {
    writeln!(out, "IPVS connection entries")?;
    write!(out, "pro expire {:<11} {:<18} {:<18} ", "state", "source", "virtual")?;
    match engines {
        true => writeln!(out, "{:<18} {:<16} pe_data", "destination", "pe name"),
        false => writeln!(out, "destination"),
    }
}

/// A connection.
pub fn connection(
    out: &mut dyn Write,
    entry: &ConnectionEntry,
    engines: bool,
    names: &mut Printed<'_>,
) -> io::Result<()> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| entry.protocol.eq_ignore_ascii_case(p.name()));
    let [client, service, server] = [entry.client, entry.service, entry.server]
        .map(|(address, port)| names.endpoint(ServerKey { address, port }, protocol));
    let expires = format!("{:02}:{:02}", entry.expires / 60, entry.expires % 60);
    write!(out, "{:<3} {expires:<6} {:<11} {client:<18} {service:<18} ", entry.protocol, entry.state)?;
    match &entry.engine {
        // The widths of the original's row, which are not those of its title.
        Some((name, data)) if engines => writeln!(out, "{server:<16} {name:<18} {data}"),
        _ => writeln!(out, "{server}"),
    }
}

/// The timeouts.
pub fn timeouts(out: &mut dyn Write, timeouts: &Timeouts) -> io::Result<()> {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    writeln!(out, "Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}")
}

/// A synchronisation daemon.
pub fn daemon(out: &mut dyn Write, daemon: &SyncDaemon) -> io::Result<()> {
    let role = match daemon.role {
        SyncRole::Master => "master",
        SyncRole::Backup => "backup",
    };
    write!(out, "{role} sync daemon (mcast={}, syncid={}", daemon.interface, daemon.syncid)?;
    if daemon.max_length != 0 {
        write!(out, ", maxlen={}", daemon.max_length)?;
    }
    if let Some(group) = daemon.group {
        write!(out, ", group={group}")?;
    }
    if daemon.port != 0 {
        write!(out, ", port={}", daemon.port)?;
    }
    if daemon.ttl != 0 {
        write!(out, ", ttl={}", daemon.ttl)?;
    }
    writeln!(out, ")")
}

#[cfg(test)]
mod tests;

//! What kernel IPVS refuses, in the order in which it looks, and what this director cannot do.
//!
//! The order matters where two things are wrong at once: scripts match on the message. It follows
//! `ip_vs_genl_set_cmd`, `ip_vs_add_service`, `ip_vs_add_dest` and their helpers in Linux 6.1.

use std::net::IpAddr;

use nix::libc::{EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC, EOPNOTSUPP, ERANGE, ESRCH};
use shunt_dataplane::service::MAX_MARKINGS;

use super::Capabilities;
use crate::api::{
    ClientAddress, Family, Forwarding, Protocol, Response, ServerConfig, ServiceConfig, ServiceKey, Timeouts,
    Tunnel,
};
use crate::marks::{MarkRule, Ports, Prefix};

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// The errno of kernel IPVS for this, or EOPNOTSUPP for what only shunt lacks.
    pub errno: i32,
    /// A sentence for people.
    pub why: String,
}

/// Seconds that fit the kernel's signed count of ticks at 250 a second.
const MAX_TIMEOUT: u32 = i32::MAX as u32 / 250;

/// Bytes of an interface's name (`IFNAMSIZ`, less the zero at its end).
const MAX_INTERFACE: usize = 15;

/// The smallest segment that a Linux socket can be limited to (`TCP_MIN_MSS`).
pub const MIN_MSS: u16 = 88;

impl Refusal {
    fn new(errno: i32, why: impl Into<String>) -> Refusal {
        Refusal { errno, why: why.into() }
    }

    pub(super) fn service_exists() -> Refusal {
        Refusal::new(EEXIST, "This service exists already")
    }

    pub(super) fn no_service() -> Refusal {
        Refusal::new(ESRCH, "There is no such service")
    }

    pub(super) fn server_exists() -> Refusal {
        Refusal::new(EEXIST, "This service has that server already")
    }

    pub(super) fn no_server() -> Refusal {
        Refusal::new(ENOENT, "This service has no such server")
    }

    pub(super) fn local_exists() -> Refusal {
        Refusal::new(EEXIST, "This service has that local address already")
    }

    pub(super) fn no_local() -> Refusal {
        Refusal::new(ENOENT, "This service has no such local address")
    }

    pub(super) fn no_mark() -> Refusal {
        Refusal::new(ENOENT, "There is no such rule for marks")
    }

    /// About a rule that names an interface which is none of the director's, `known`.
    pub(super) fn no_interface(name: &str, known: &[String]) -> Refusal {
        let name = short(name);
        let known = known.join(", ");
        let why = format!(
            "{name:?} is no interface of the director's (those are {known}; what comes in by a VLAN comes in by the one below)"
        );
        Refusal::new(ENODEV, why)
    }

    pub(super) fn no_daemon() -> Refusal {
        Refusal::new(ESRCH, "No synchronisation daemon is running")
    }

    /// `what` with its verb, such as "IPv6 services are".
    pub(super) fn not_supported(what: &str) -> Refusal {
        Refusal::new(EOPNOTSUPP, format!("{what} not supported yet"))
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Response {
        Response::Refused { errno: refusal.errno, why: refusal.why }
    }
}

/// A service's settings.
pub(super) fn service(config: &ServiceConfig, can: &Capabilities) -> Result<(), Refusal> {
    if !can.schedulers.contains(&config.scheduler.as_str()) {
        let known = can.schedulers.join(", ");
        let name = short(&config.scheduler);
        let why = format!("There is no scheduler {name:?} here (there are {known})");
        return Err(Refusal::new(ENOENT, why));
    }
    if let Some(engine) = &config.engine
        && !can.engines.contains(&engine.as_str())
    {
        return Err(Refusal::new(ENOENT, format!("There is no persistence engine {:?}", short(engine))));
    }
    if let Some(persistent) = config.persistent {
        if config.key.family() == Family::Ipv6 && !(1..=128).contains(&persistent.prefix) {
            return Err(Refusal::new(EINVAL, "An IPv6 persistence prefix has 1 to 128 bits"));
        }
        if persistent.timeout == 0 {
            return Err(Refusal::new(
                EINVAL,
                "A persistent service remembers its clients for a second at least",
            ));
        }
    }
    if let ServiceKey::Mark { mark: 0, .. } = config.key {
        return Err(Refusal::new(EINVAL, "A firewall mark is not 0"));
    }

    if config.mss.is_some_and(|bytes| bytes < MIN_MSS) {
        return Err(Refusal::new(EINVAL, format!("A largest segment has {MIN_MSS} bytes at least")));
    }

    let key = &config.key;
    let lacks = [
        (!can.marks && matches!(key, ServiceKey::Mark { .. }), "Firewall-mark services are"),
        (!can.ipv6 && key.family() == Family::Ipv6, "IPv6 services are"),
        (
            !can.sctp && matches!(key, ServiceKey::Address { protocol: Protocol::Sctp, .. }),
            "SCTP services are",
        ),
        (!can.persistence && config.persistent.is_some(), "Persistent services are"),
        (!can.one_packet && config.one_packet, "One-packet scheduling is"),
        (
            !can.fullnat && config.client_address != ClientAddress::default(),
            "Other ways than TOA to tell FullNAT servers of clients are",
        ),
    ];
    refuse_first(&lacks)
}

/// A server's settings, as far as they can be judged without the other servers.
pub(super) fn server(
    service: &ServiceConfig,
    config: &ServerConfig,
    can: &Capabilities,
) -> Result<(), Refusal> {
    let tunnel = matches!(config.forwarding, Forwarding::Tunnel(_));
    let family = Family::of(config.key.address);
    let fullnat = config.forwarding == Forwarding::FullNat;
    let across = family != service.key.family();
    if across && !tunnel && !fullnat {
        let why = "A server of the other address family is reached by a tunnel or FullNAT only";
        return Err(Refusal::new(EINVAL, why));
    }
    if config.weight > i32::MAX as u32 {
        return Err(Refusal::new(ERANGE, format!("A weight is at most {}", i32::MAX)));
    }
    if config.lower_threshold > config.upper_threshold {
        return Err(Refusal::new(ERANGE, "The lower threshold is above the upper one"));
    }
    if matches!(config.forwarding, Forwarding::Tunnel(Tunnel::Gue { port: 0, .. })) {
        return Err(Refusal::new(EINVAL, "A GUE tunnel needs a port"));
    }
    if config.forwarding == Forwarding::Local {
        return Err(Refusal::new(EINVAL, "Local forwarding is listed, never asked for"));
    }

    let lacks = [
        (!can.tunnel && tunnel, "Tunneling is"),
        (!can.fullnat && fullnat, "FullNAT is"),
        (!can.fullnat_across && fullnat && across, "FullNAT to servers of the other address family is"),
        (!can.ipv6 && family == Family::Ipv6, "IPv6 servers are"),
        (!can.thresholds && config.upper_threshold != 0, "Connection thresholds are"),
    ];
    refuse_first(&lacks)?;
    together(service, config)
}

/// A service and one of its servers, as far as one forbids the other.
pub(super) fn together(service: &ServiceConfig, server: &ServerConfig) -> Result<(), Refusal> {
    if service.one_packet && server.forwarding == Forwarding::FullNat {
        let why = "One-packet scheduling keeps no connection by which a FullNAT server's answer would find its client: a service has one or the other";
        return Err(Refusal::new(EOPNOTSUPP, why));
    }
    Ok(())
}

/// A server's address must be one host's. Whether it is the broadcast address of a network this machine is on is the
/// daemon's to know.
pub(super) fn server_address(address: IpAddr) -> Result<(), Refusal> {
    let unicast = match address {
        IpAddr::V4(v4) => !(v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified()),
        IpAddr::V6(v6) => {
            let mapped = v6.to_ipv4_mapped().is_some();
            !(v6.is_multicast() || v6.is_unspecified() || v6.is_unicast_link_local() || mapped)
        }
    };
    match unicast {
        true => Ok(()),
        false => Err(Refusal::new(EINVAL, format!("{address} is not a server's unicast address"))),
    }
}

/// A local address must be one that a server can answer to. Its family need not be the service's: it is the servers' that counts.
pub(super) fn local_address(
    service: &ServiceKey,
    address: IpAddr,
    can: &Capabilities,
) -> Result<(), Refusal> {
    if server_address(address).is_err() || address.is_loopback() {
        return Err(Refusal::new(EINVAL, format!("{address} is not an address that a server can answer to")));
    }
    let lacks = [
        (!can.fullnat, "FullNAT is"),
        (
            !can.fullnat_across && Family::of(address) != service.family(),
            "FullNAT to servers of the other address family is",
        ),
    ];
    refuse_first(&lacks)
}

/// A rule that marks packets, to be added to these.
pub(super) fn mark(rule: &MarkRule, others: &[MarkRule], can: &Capabilities) -> Result<(), Refusal> {
    refuse_first(&[(!can.marks, "Firewall marks are")])?;
    let invalid = |why: &str| Err(Refusal::new(EINVAL, why));
    let is_too_long = |prefix: &Prefix| prefix.length > if prefix.address.is_ipv4() { 32 } else { 128 };
    if is_too_long(&rule.destination) || rule.source.as_ref().is_some_and(is_too_long) {
        return invalid("An address has not so many bits");
    }
    if rule.source.is_some_and(|s| s.address.is_ipv4() != rule.destination.address.is_ipv4()) {
        return invalid("Source and destination of a packet are of one address family");
    }
    if rule.ports.is_some_and(|Ports { first, last }| first > last) {
        return invalid("The first port is behind the last one");
    }
    if rule.interface.as_ref().is_some_and(|name| name.len() > MAX_INTERFACE) {
        return invalid("An interface's name has 15 characters at most");
    }
    if others.contains(rule) {
        return Err(Refusal::new(EEXIST, "This rule for marks is there already"));
    }
    if others.len() >= MAX_MARKINGS {
        return Err(Refusal::new(
            ENOSPC,
            format!("There are {MAX_MARKINGS} rules for marks, and no more can be"),
        ));
    }
    Ok(())
}

/// New timeouts.
pub(super) fn timeouts(new: &Timeouts) -> Result<(), Refusal> {
    if [new.tcp, new.tcp_fin, new.udp].iter().any(|seconds| *seconds > MAX_TIMEOUT) {
        return Err(Refusal::new(EINVAL, format!("A timeout is at most {MAX_TIMEOUT} seconds")));
    }
    Ok(())
}

/// As much of a name as a sentence repeats. A refusal must fit a message, however long what it refuses is; the kernel's own
/// names have 15 characters at most.
pub(super) fn short(name: &str) -> String {
    name.chars().take(15).collect()
}

fn refuse_first(lacks: &[(bool, &str)]) -> Result<(), Refusal> {
    match lacks.iter().find(|(missing, _)| *missing) {
        Some((_, what)) => Err(Refusal::not_supported(what)),
        None => Ok(()),
    }
}

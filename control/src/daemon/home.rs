//! Real servers on the director itself: the way to the machine's own kernel, and back.
//!
//! The way there is a TAP device, the last of the director's ports. The way back is routing: what such a server sends from its address and port has a rule of its own, which
//! leads to a table of routes that has nothing but the device in it. So has what the machine's stack says in its place, by ICMP errors: to a client they must come from
//! the virtual address. The device goes with the process; a rule that a killed one leaves leads to an empty table and so means nothing, and the next director removes it.
//! Others remove rules, too (systemd-networkd those it does not know): what is missing is put back when the kernel tells of it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use nix::libc::{EEXIST, EINVAL, ENOENT, EOPNOTSUPP, IPPROTO_ICMPV6};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use shunt_dataplane::port::tap::Tap;

use super::mirror::View;
use crate::api::{Forwarding, Protocol, ServerConfig, ServiceKey};
use crate::rules::{Refusal, Rules};

/// The device.
pub const NAME: &str = "shunt-home";

/// The table of routes: "sh" in ASCII. Nobody else's, as far as anybody knows.
pub const TABLE: u32 = 0x7368;

/// The way home.
pub struct Home {
    handle: Handle,
    /// Those that the kernel has, as far as is known.
    rules: HashSet<Source>,
}

/// What a rule of routing leads home: packets from this address, if they are these.
pub type Source = (IpAddr, What);

/// Kinds of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Of a server at this port; port 0 is any.
    Answers(Protocol, u16),
    /// ICMP of types from this one to that.
    Errors(u8, u8),
}

/// The types of errors: unreachable, time exceeded, parameter problem; of IPv4 there are others between.
fn errors(address: IpAddr) -> &'static [What] {
    if address.is_ipv4() { &[What::Errors(3, 3), What::Errors(11, 12)] } else { &[What::Errors(1, 4)] }
}

impl Home {
    /// Makes the device, with a queue for each worker, and its routes.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn open(workers: usize) -> anyhow::Result<(Self, Vec<Tap>)> {
        let queues = Tap::open(NAME, workers)
            .with_context(|| format!("cannot make the device {NAME} for real servers on the director"))?;
        // Clients come in by it, though no route to them leads there; and it says nothing by itself. There may be no IPv6.
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{NAME}/rp_filter"), "2")
            .with_context(|| format!("cannot set net.ipv4.conf.{NAME}.rp_filter"))?;
        for (setting, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{NAME}/{setting}"), value);
        }
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let link = handle.link().get().match_name(NAME.to_owned()).execute().try_next().await?;
        let index = link.with_context(|| format!("{NAME} is gone"))?.header.index;
        let up = LinkUnspec::new_with_index(index).arp(false).up().build();
        handle.link().set(up).execute().await.with_context(|| format!("cannot set {NAME} up"))?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().table_id(TABLE).output_interface(index).build();
        handle.route().add(v4).execute().await.with_context(|| format!("cannot route to {NAME}"))?;
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().table_id(TABLE).output_interface(index).build();
        if let Err(error) = handle.route().add(v6).execute().await {
            tracing::debug!(%error, "no IPv6 route to the device for real servers on the director");
        }
        let home = Self { handle, rules: HashSet::new() };
        say_swept(home.clear().await?);
        Ok((home, queues))
    }

    /// Notes which of its rules the kernel has.
    pub fn note(&mut self, there: &HashSet<Source>) {
        self.rules.clone_from(there);
    }

    /// Brings the rules of routing in line with the director's. One that somebody else has removed, or added again, is as good as done.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn follow(&mut self, rules: &Rules, view: &View) -> anyhow::Result<()> {
        let wanted = sources(rules, view);
        let (gone, new): (Vec<Source>, Vec<Source>) = (
            self.rules.difference(&wanted).copied().collect(),
            wanted.difference(&self.rules).copied().collect(),
        );
        for source in gone {
            remove(&self.handle, rule(&source))
                .await
                .with_context(|| format!("cannot remove the rule of routing for {source:?}"))?;
            self.rules.remove(&source);
        }
        for source in new {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule(&source);
            unless(request.execute().await, EEXIST)
                .with_context(|| format!("cannot add a rule of routing for {source:?}"))?;
            self.rules.insert(source);
        }
        Ok(())
    }

    /// Removes all rules. Says how many there were.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn clear(&self) -> anyhow::Result<usize> {
        clear(&self.handle).await
    }
}

/// The rule for these packets.
fn rule((address, what): &Source) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.action = RuleAction::ToTable;
    (rule.header.family, rule.header.src_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    // With a preference of its own the kernel tells a rule that is there already from another one.
    rule.attributes.extend([
        RuleAttribute::Table(TABLE),
        RuleAttribute::Priority(TABLE),
        RuleAttribute::Source(*address),
    ]);
    match *what {
        What::Answers(protocol, port) => {
            rule.attributes.push(RuleAttribute::IpProtocol(wire(protocol)));
            if port != 0 {
                let only = RulePortRange { start: port, end: port };
                rule.attributes.push(RuleAttribute::SourcePortRange(only));
            }
        }
        What::Errors(first, last) => {
            rule.attributes.push(RuleAttribute::IpProtocol(icmp(address)));
            // To the kernel, type and code stand where others have the destination's port (`union flowi_uli`).
            let [start, end] = [[first, 0], [last, 0xff]].map(u16::from_be_bytes);
            rule.attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start, end }));
        }
    }
    rule
}

/// The packets that a rule is for, if it leads home.
fn source(rule: &RuleMessage) -> Option<Source> {
    let (mut table, mut address, mut protocol, mut from, mut to) = (None, None, None, None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = Some(*number),
            RuleAttribute::Source(source) => address = Some(*source),
            RuleAttribute::IpProtocol(number) => protocol = Some(*number),
            RuleAttribute::SourcePortRange(range) => from = Some(range.start),
            RuleAttribute::DestinationPortRange(range) => to = Some((range.start, range.end)),
            _ => {}
        }
    }
    let (address, protocol) = (address.filter(|_| table == Some(TABLE))?, protocol?);
    let what = match to {
        Some((start, end)) => What::Errors(start.to_be_bytes()[0], end.to_be_bytes()[0]),
        None => {
            let mut known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
            What::Answers(known.find(|known| wire(*known) == protocol)?, from.unwrap_or(0))
        }
    };
    Some((address, what))
}

/// What the director's own among the kernel's rules lead home.
pub fn known(rules: &[RuleMessage]) -> HashSet<Source> {
    rules.iter().filter_map(source).collect()
}

fn wire(protocol: Protocol) -> IpProtocol {
    match protocol {
        Protocol::Tcp => IpProtocol::Tcp,
        Protocol::Udp => IpProtocol::Udp,
        Protocol::Sctp => IpProtocol::Sctp,
    }
}

fn icmp(address: &IpAddr) -> IpProtocol {
    if address.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Other(IPPROTO_ICMPV6) }
}

/// Removes a rule, if it is still there.
async fn remove(handle: &Handle, rule: RuleMessage) -> Result<(), rtnetlink::Error> {
    unless(handle.rule().del(rule).execute().await, ENOENT)
}

/// What the kernel answered, this refusal being none.
fn unless(answer: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match answer {
        Err(rtnetlink::Error::NetlinkError(refusal)) if refusal.raw_code() == -errno => Ok(()),
        answer => answer,
    }
}

/// Removes what a killed director left. Not while the device is there: then it is another director's.
///
/// # Errors
/// What the kernel refused.
pub async fn sweep() -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    if handle.link().get().match_name(NAME.to_owned()).execute().try_next().await.is_err() {
        say_swept(clear(&handle).await?);
    }
    Ok(())
}

fn say_swept(rules: usize) {
    if rules > 0 {
        tracing::info!("removed {rules} rules of routing that a killed director left");
    }
}

/// Removes all rules that lead to the table.
async fn clear(handle: &Handle) -> anyhow::Result<usize> {
    let mut removed = 0;
    for version in [IpVersion::V4, IpVersion::V6] {
        let all: Vec<RuleMessage> =
            handle.rule().get(version).execute().try_collect().await.unwrap_or_default();
        for rule in all {
            if rule.attributes.contains(&RuleAttribute::Table(TABLE)) {
                remove(handle, rule).await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Says if this machine's network is such that a real server cannot be one: it is the director itself, or nobody's address.
///
/// # Errors
/// In words.
pub fn check(
    has_home: bool,
    view: &View,
    service: &ServiceKey,
    server: &ServerConfig,
) -> Result<(), Refusal> {
    let address = server.key.address;
    let refuse = |errno, why| Err(Refusal { errno, why });
    if view.broadcasts.contains(&address) {
        let why = format!("{address} is the broadcast address of a network that this machine is on");
        return refuse(EINVAL, why);
    }
    if !view.is_own(address) {
        return Ok(());
    }
    let why = if address.is_loopback() {
        format!("A real server cannot be reached at {address}; use another address of the director")
    } else if !has_home {
        format!("A real server that is the director itself ({address}) needs: shunt run --local-servers")
    } else {
        match (server.forwarding, service) {
            (Forwarding::FullNat, _) => {
                "A real server that is the director itself is not reached by FullNAT".to_owned()
            }
            (Forwarding::Masq, _) | (_, ServiceKey::Address { .. }) => return Ok(()),
            _ => "A real server that is the director itself is reached by NAT only, in a service of a mark"
                .to_owned(),
        }
    };
    refuse(EOPNOTSUPP, why)
}

/// What real servers on the director send, and the machine's stack for them: by NAT from their own address and port; else from the service's, which their packets keep, and
/// errors about those are right as they are.
fn sources(rules: &Rules, view: &View) -> HashSet<Source> {
    let mut sources = HashSet::new();
    for service in rules.services() {
        for server in service.servers.iter().filter(|server| view.is_own(server.key.address)) {
            let own = |protocol| (server.key.address, What::Answers(protocol, server.key.port));
            let errors = errors(server.key.address).iter().map(|what| (server.key.address, *what));
            match (service.config.key, server.forwarding) {
                (ServiceKey::Address { protocol, port, .. }, Forwarding::Masq) => {
                    sources.insert(own(protocol));
                    if port == 0 {
                        sources.insert((server.key.address, What::Answers(protocol, 0)));
                    }
                    sources.extend(errors);
                }
                (ServiceKey::Address { protocol, address, port }, _) => {
                    sources.insert((address, What::Answers(protocol, port)));
                }
                (ServiceKey::Mark { .. }, _) => {
                    sources.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(own));
                    sources.extend(errors);
                }
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_the_kernels_is_known_by_what_it_leads_home() {
        let (v4, v6) = (IpAddr::from([10, 2, 0, 1]), IpAddr::from([0xfd00, 2, 0, 0, 0, 0, 0, 1]));
        for address in [v4, v6] {
            let answers = [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Sctp, 0)];
            let answers = answers.map(|(protocol, port)| What::Answers(protocol, port));
            for what in answers.iter().chain(errors(address)) {
                let mut kernels = rule(&(address, *what));
                assert_eq!(source(&kernels), Some((address, *what)));
                kernels.attributes.retain(|attribute| *attribute != RuleAttribute::Table(TABLE));
                assert_eq!(source(&kernels), None, "it leads elsewhere");
            }
        }
    }
}

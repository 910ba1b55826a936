//! Real servers on the director itself: the way to the machine's own kernel, and back.
//!
//! The way there is a TAP device, the last of the director's ports. The way back is routing: what such a server sends from its address and port has a rule of its own, which
//! leads to a table of routes that has nothing but the device in it. So has what the machine's stack says in its place, by ICMP errors: to a client they must come from
//! the virtual address. The device goes with the process; a rule that a killed one leaves leads to an empty table and so means nothing, and the next director removes it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt as _;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use shunt_dataplane::port::tap::Tap;

use super::mirror::View;
use crate::api::{Forwarding, Protocol, ServerConfig, ServiceKey};
use crate::rules::Rules;

/// The device.
pub const NAME: &str = "shunt-home";

/// The table of routes: "sh" in ASCII. Nobody else's, as far as anybody knows.
pub const TABLE: u32 = 0x7368;

/// The way home.
pub struct Home {
    handle: Handle,
    rules: HashSet<Source>,
}

/// What a rule of routing leads home: packets from this address, if they are these.
type Source = (IpAddr, What);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
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

    /// Brings the rules of routing in line with the director's.
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
            self.handle.rule().del(self.rule(&source)).execute().await?;
            self.rules.remove(&source);
        }
        for source in new {
            let mut request = self.handle.rule().add();
            *request.message_mut() = self.rule(&source);
            request
                .execute()
                .await
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

    fn rule(&self, (address, what): &Source) -> RuleMessage {
        let request = self.handle.rule().add().action(RuleAction::ToTable).table_id(TABLE);
        let mut rule = match address {
            IpAddr::V4(v4) => request.v4().source_prefix(*v4, 32).message_mut().clone(),
            IpAddr::V6(v6) => request.v6().source_prefix(*v6, 128).message_mut().clone(),
        };
        match *what {
            What::Answers(protocol, port) => {
                rule.attributes.push(RuleAttribute::IpProtocol(match protocol {
                    Protocol::Tcp => IpProtocol::Tcp,
                    Protocol::Udp => IpProtocol::Udp,
                    Protocol::Sctp => IpProtocol::Sctp,
                }));
                if port != 0 {
                    let only = RulePortRange { start: port, end: port };
                    rule.attributes.push(RuleAttribute::SourcePortRange(only));
                }
            }
            What::Errors(first, last) => {
                let icmp = if address.is_ipv4() {
                    IpProtocol::Icmp
                } else {
                    IpProtocol::Other(nix::libc::IPPROTO_ICMPV6)
                };
                rule.attributes.push(RuleAttribute::IpProtocol(icmp));
                // To the kernel, type and code stand where others have the destination's port (`union flowi_uli`).
                let [start, end] = [[first, 0], [last, 0xff]].map(u16::from_be_bytes);
                rule.attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start, end }));
            }
        }
        rule
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
                handle.rule().del(rule).execute().await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Says if a real server is the director itself and cannot be one.
///
/// # Errors
/// In words.
pub fn check(has_home: bool, view: &View, service: &ServiceKey, server: &ServerConfig) -> anyhow::Result<()> {
    let address = server.key.address;
    if !view.is_own(address) {
        return Ok(());
    }
    if address.is_loopback() {
        bail!("A real server cannot be reached at {address}; use another address of the director");
    }
    if !has_home {
        bail!("A real server that is the director itself ({address}) needs: shunt run --local-servers");
    }
    match (server.forwarding, service) {
        (Forwarding::FullNat, _) => {
            bail!("A real server that is the director itself is not reached by FullNAT")
        }
        (Forwarding::Masq, _) | (_, ServiceKey::Address { .. }) => Ok(()),
        _ => {
            bail!("A real server that is the director itself is reached by NAT only, in a service of a mark")
        }
    }
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

//! What an operator should be told while the director runs: each thing once, or once in a while, in words that say what to do.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shunt_dataplane::packet::parse::ETHERNET;
use shunt_dataplane::port::frame::MAX_FRAME;
use shunt_dataplane::service::Network;
use shunt_dataplane::stats::Counters;

use crate::api::ServiceKey;
use crate::publisher::Publisher;
use crate::rules::Rules;

/// How often a loss that goes on is spoken of.
const REPEAT: Duration = Duration::from_secs(10);

/// Bytes of IP that fit one chunk of frame memory behind an Ethernet header and two VLAN tags.
const LONGEST: usize = MAX_FRAME - ETHERNET - 8;

/// What has been said.
#[derive(Default)]
pub struct Watch {
    gone: HashSet<String>,
    unreached: HashSet<IpAddr>,
    aloof: HashSet<String>,
    oversized: u64,
    last_said: Option<Instant>,
    exhausted: HashMap<(ServiceKey, IpAddr), u64>,
}

impl Watch {
    /// Warns of interfaces that are set up for longer packets than the director takes.
    pub fn mtus(network: &Network) {
        for interface in network.interfaces().iter().filter(|i| usize::from(i.mtu) > LONGEST) {
            tracing::warn!(
                "{name} has an MTU of {mtu}; the director takes packets of up to {LONGEST} bytes and drops longer ones: ip link set \
                 {name} mtu 1500",
                name = interface.name,
                mtu = interface.mtu,
            );
        }
    }

    /// Looks at the network and the rules after either has changed.
    pub fn network(&mut self, network: &Network, rules: &Rules) {
        // One that is gone has no MTU.
        let gone = network.interfaces().iter().filter(|interface| interface.mtu == 0);
        let gone: HashSet<String> = gone.map(|interface| interface.name.clone()).collect();
        for name in gone.difference(&self.gone) {
            tracing::warn!(
                "{name} is gone; what goes through it is lost. When it is back, restart the director"
            );
        }
        self.gone = gone;

        let aloof = network.vlans().iter().filter(|vlan| network.has_own_mac(vlan));
        let aloof: HashSet<String> = aloof.map(|vlan| vlan.interface.name.clone()).collect();
        for name in aloof.difference(&self.aloof) {
            tracing::warn!(
                "{name} has another Ethernet address than the interface below it; what is sent there stays with the kernel: give it the \
                 same one (ip link set {name} address …)"
            );
        }
        self.aloof = aloof;

        let servers = rules.services().flat_map(|service| &service.servers).map(|server| server.key.address);
        let unreached =
            servers.filter(|address| network.route(*address).is_none_or(|route| route.link.is_none()));
        let unreached: HashSet<IpAddr> = unreached.collect();
        for address in unreached.difference(&self.unreached) {
            tracing::warn!(
                "no route leads to real server {address} through an interface of the director; is its interface named with --interface?"
            );
        }
        self.unreached = unreached;
    }

    /// Looks at the local ports of FullNAT; one line for all that are used up, each second that connections find none.
    pub fn local_ports(&mut self, publisher: &Publisher) {
        let mut used_up = Vec::new();
        let counts: HashMap<_, _> =
            publisher.exhausted().map(|(key, local, n)| ((*key, *local), n)).collect();
        for (which, n) in &counts {
            if *n > self.exhausted.get(which).copied().unwrap_or(0) {
                used_up.push(which.1.to_string());
            }
        }
        self.exhausted = counts;
        if !used_up.is_empty() {
            used_up.sort();
            used_up.dedup();
            tracing::warn!(
                "the ports of local addresses {} are used up towards some real servers; where no other address had any, new \
                 connections were refused (drop.no_local_port). Add addresses: ipvsadm -P -t VIP:PORT -z ADDRESS",
                used_up.join(", ")
            );
        }
    }

    /// Looks at the counters.
    pub fn losses(&mut self, counters: &Counters, now: Instant) {
        let total =
            counters.totals().find(|(name, _)| *name == "port.rx_oversized").map_or(0, |(_, total)| total);
        let is_time = self.last_said.is_none_or(|last| now.duration_since(last) >= REPEAT);
        if total > self.oversized && is_time {
            tracing::warn!(
                "{} frames were longer than {LONGEST} bytes of IP and were dropped (port.rx_oversized). Somebody joins packets: on physical \
                 interfaces switch gro and lro off; on veth and virtio switch tso and gso off at the sender (ethtool -K IF tso off gso off)",
                total - self.oversized
            );
            (self.oversized, self.last_said) = (total, Some(now));
        }
    }
}

//! The bench of the golden files: a director with two Ethernet links and static neighbours, driven by ipvsadm lines.
//!
//! The director is the data plane's own, the rules, the publisher and ipvsadm are the daemon's own; only the ports, the clock and the kernel are
//! played by the test.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shunt::api::{Request, Response};
use shunt::daemon::capabilities;
use shunt::ipvsadm::{self, Backend};
use shunt::marks::{MarkRule, Prefix};
use shunt::publisher::Publisher;
use shunt::rules::{Change, Rules};
use shunt_dataplane::conn::State;
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::director::{Parts, Place, Verdict, Wish};
use shunt_dataplane::packet::{Extent, Packet, Tags};
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use shunt_dataplane::service::{
    Epoch, Interface, LinkId, Neighbour, Network, PortId, Route, Snapshot, Sysctls, Tick, Timeouts, Vlan,
    WorkerId,
};
use shunt_dataplane::stats::Counters;
use shunt_dataplane::steer::Target;

use crate::both::{Aside, Both};
use crate::frames::{C0, S0, client_mac, server_mac};
use crate::ops::LOCALS;

/// A side of the director.
pub const CLIENTS: PortId = PortId(0);
/// The other one.
pub const SERVERS: PortId = PortId(1);

/// Where the machine's own kernel is.
pub const HOME: PortId = PortId(2);

/// The virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The IPv6 virtual address.
pub const VIP6: Ipv6Addr = v6(0xf, 1);

/// What is sent there has mark 1.
pub const MARKED: [Prefix; 2] = [
    Prefix { address: IpAddr::V4(Ipv4Addr::new(10, 10, 0, 0)), length: 16 },
    Prefix { address: IpAddr::V6(v6(0x10, 0)), length: 64 },
];

/// The director's local addresses over IPv6; those over IPv4 are [`LOCALS`].
pub const LOCALS6: [Ipv6Addr; 2] = [v6(0xb, 2), v6(0xb, 3)];

/// A director on the bench.
pub struct Bench {
    rules: Rules,
    publisher: Publisher,
    counters: Arc<Counters>,
    director: Both,
    aside: Aside,
    now: Tick,
    start: Instant,
    mtu: [u16; 2],
    /// Routes by routers on the servers' side.
    routes: Vec<(Prefix, IpAddr)>,
    /// Neighbours on that side who do not answer.
    lost: Vec<IpAddr>,
    /// What frames come and go with, by side.
    tags: [Tags; 2],
    /// Later fragments whose first has not come yet, as a worker keeps them.
    kept: Vec<(PortId, Vec<u8>)>,
    /// Frames that are steered to the director though no rule tells of them.
    pub steered: HashSet<Target>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The director's verdict.
    pub verdict: Verdict,
    /// What was sent: by which port, with which bytes.
    pub sent: Vec<(PortId, Vec<u8>)>,
}

impl Outcome {
    /// The only frame that was sent.
    ///
    /// # Panics
    /// When none was, or several.
    pub fn only(mut self) -> (PortId, Vec<u8>) {
        assert_eq!(self.sent.len(), 1, "{:?}", self.verdict);
        self.sent.remove(0)
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::of_worker(0, 1)
    }
}

impl Bench {
    /// The director of one worker among `workers`, the others of which are played by nobody.
    pub fn of_worker(worker: u8, workers: usize) -> Self {
        let counters = Arc::new(Counters::new(workers).expect("memory for counters"));
        let snapshot = Snapshot {
            epoch: Epoch(0),
            services: Arc::default(),
            network: Arc::new(network([1500; 2], [Tags::default(); 2], &[], &[])),
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
        };
        let parts = Parts {
            worker: WorkerId(worker),
            snapshot: Arc::new(snapshot),
            capacity: 4096,
            secret: Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]),
            directory: None,
            paths: Arc::default(),
            counters: Arc::clone(&counters),
        };
        let mut rules = Rules::new(capabilities());
        for destination in MARKED {
            let rule =
                MarkRule { destination, source: None, protocol: None, ports: None, interface: None, mark: 1 };
            rules.apply(&Request::AddMark(rule)).expect("there is room for two");
        }
        // Late enough that the clock wraps in the middle of a long test.
        let now = Tick(u32::MAX - 600_000);
        let publisher = || Publisher::new(vec!["c0".to_owned(), "s0".to_owned()]);
        let aside = Aside::new(publisher(), workers, None);
        Self {
            rules,
            publisher: publisher(),
            counters,
            director: Both::new(parts, &aside, now),
            aside,
            now,
            start: Instant::now(),
            mtu: [1500; 2],
            routes: Vec::new(),
            lost: Vec::new(),
            tags: [Tags::default(); 2],
            kept: Vec::new(),
            steered: HashSet::new(),
        }
    }

    /// Runs ipvsadm. Gives its exit code, standard output and standard error.
    pub fn ipvsadm(&mut self, line: &str) -> (i32, String, String) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = ipvsadm::main("ipvsadm", &words, self, &mut io::empty(), &mut stdout, &mut stderr);
        let text = |bytes| String::from_utf8(bytes).expect("ipvsadm prints text");
        (code, text(stdout), text(stderr))
    }

    /// Adds a rule that marks packets, in the words of the command line.
    ///
    /// # Panics
    /// When it is refused.
    pub fn mark(&mut self, line: &str) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let rule = MarkRule::of(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
        self.request(&Request::AddMark(rule), &mut |response| {
            assert_eq!(response, Response::Done, "{line}");
            Ok(())
        })
        .expect("rules in memory answer");
    }

    /// Sets a setting; `net.ipv4.vs.` before its name may be left out.
    ///
    /// # Errors
    /// When the rules refuse, and why.
    pub fn sysctl(&mut self, name: &str, value: u32) -> Result<(), String> {
        let name = name.strip_prefix("net.ipv4.vs.").unwrap_or(name).to_owned();
        let mut refused = None;
        let set = Request::SetSysctl { name, value: value.to_string() };
        self.request(&set, &mut |response| {
            if let Response::Refused { why, .. } = response {
                refused = Some(why);
            }
            Ok(())
        })
        .expect("rules in memory answer");
        refused.map_or(Ok(()), Err)
    }

    /// A frame comes in by a port, and those that were kept are tried again. Gives all that is sent.
    pub fn frame_and_kept(&mut self, port: PortId, bytes: &[u8]) -> Vec<(PortId, Vec<u8>)> {
        let mut sent = Vec::new();
        let mut tried = vec![(port, bytes.to_vec())];
        tried.append(&mut self.kept);
        for (port, bytes) in tried {
            let outcome = self.frame(port, &bytes);
            match outcome.verdict {
                Verdict::Keep => self.kept.push((port, bytes)),
                _ => sent.extend(outcome.sent),
            }
        }
        sent
    }

    /// A frame comes in by a port. If it must wait for frames to be steered, they are, and it is tried again. What is sent to the machine's own kernel is shown as it
    /// is.
    pub fn frame(&mut self, port: PortId, bytes: &[u8]) -> Outcome {
        self.frame_with_tags(port, self.tags_of(port), bytes)
    }

    fn tags_of(&self, port: PortId) -> Tags {
        self.tags.get(usize::from(port.0)).copied().unwrap_or_default()
    }

    /// The same with other tags than the side's, as where a NIC keeps the outer one to itself.
    pub fn frame_with_tags(&mut self, port: PortId, tags: Tags, bytes: &[u8]) -> Outcome {
        let outcome = self.look(port, tags, bytes);
        self.steer();
        if outcome.verdict == Verdict::Hold { self.look(port, tags, bytes) } else { outcome }
    }

    /// What control does for the director's data connections.
    fn steer(&mut self) {
        while let Some(wish) = self.director.wish() {
            match wish {
                Wish::Take(target) => {
                    assert!(self.steered.insert(target), "wished for twice: {target:?}");
                    self.director.opened(target);
                }
                Wish::Release(target) => {
                    assert!(self.steered.remove(&target), "never wished for: {target:?}")
                }
            }
        }
    }

    fn look(&mut self, port: PortId, tags: Tags, bytes: &[u8]) -> Outcome {
        let bytes = [&bytes[..12], tags.bytes(), &bytes[12..]].concat();
        let mut chunk = [0xee; CHUNK];
        chunk[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
        let mut extent = Extent::new(HEADROOM, bytes.len(), port);
        let mut packets = [Packet::new(&mut chunk, &mut extent)];
        let mut verdicts = Default::default();
        self.director.burst(&mut packets, None, self.now, &mut verdicts);
        let verdict = verdicts[0];
        if matches!(
            verdict,
            Verdict::HandOff(..) | Verdict::Wait(..) | Verdict::Keep | Verdict::Hold | Verdict::Pass
        ) {
            assert_eq!(packets[0].data(), &bytes[..], "as it came: {verdict:?}");
        }
        let mut sent: Vec<_> = self.director.extras().map(|(port, bytes)| (port, bytes.to_vec())).collect();
        if let Verdict::Forward(port) | Verdict::Reply(port) = verdict {
            sent.push((port, packets[0].data().to_vec()));
        }
        for (port, frame) in &mut sent {
            let tags = self.tags_of(*port);
            let tags = tags.bytes();
            let put_on: Vec<u8> = frame.drain(12..12 + tags.len()).collect();
            assert_eq!(put_on, tags, "the tags of {port:?}");
        }
        Outcome { verdict, sent }
    }

    /// Time passes.
    pub fn wait(&mut self, duration: Duration) {
        let mut left = duration.as_millis() as u32;
        // In steps, as a worker would look at the clock.
        while left > 0 {
            let step = left.min(100);
            self.now = self.now.plus(step);
            self.director.expire(self.now, usize::MAX);
            left -= step;
        }
        self.steer();
    }

    /// Time passes, and the director does not look at the clock.
    pub fn pass(&mut self, duration: Duration) {
        self.now = self.now.plus(duration.as_millis() as u32);
    }

    /// The connections: protocol, seconds left, state, client, virtual address, real server.
    pub fn connections(&self) -> Vec<(String, u32, String, String, String, String)> {
        let show = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port).to_string();
        let (mut list, mut from) = (Vec::new(), Some(Place::default()));
        while let Some(place) = from {
            from = self.director.connections(place, usize::MAX, self.now, |listed| {
                list.push((
                    match listed.protocol {
                        6 => "TCP",
                        17 => "UDP",
                        132 => "SCTP",
                        _ => "IP",
                    }
                    .to_owned(),
                    listed.left / 1000,
                    listed.state.name().to_owned(),
                    show(listed.client),
                    show(listed.service),
                    show(listed.server),
                ));
            });
        }
        list
    }

    /// Active and inactive connections of every server of every service, as listed.
    pub fn loads(&self) -> Vec<(Ipv4Addr, u32, u32, u32)> {
        let entries = self.rules.entries(None).expect("all are there");
        let entries = self.publisher.counted(entries, &self.counters);
        let servers = entries.iter().flat_map(|entry| &entry.servers);
        servers
            .filter_map(|server| match server.config.key.address {
                IpAddr::V4(address) => Some((address, server.config.weight, server.active, server.inactive)),
                IpAddr::V6(_) => None,
            })
            .collect()
    }

    /// Puts clients and servers behind VLANs: frames are given and shown without tags as ever, but go through the director with them, and
    /// what leaves without the right ones is a bug.
    #[must_use]
    pub fn with_tags(mut self, tags: [Tags; 2]) -> Self {
        self.tags = tags;
        self.set_mtu(CLIENTS, self.mtu[0]);
        self
    }

    /// A counter of the data plane.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.totals().find(|(known, _)| *known == name).expect("a counter that there is").1
    }

    /// Gives a link another MTU.
    pub fn set_mtu(&mut self, port: PortId, mtu: u16) {
        self.mtu[usize::from(port.0)] = mtu;
        self.publish_network();
    }

    /// Adds a route by a router on the servers' side.
    pub fn add_route(&mut self, to: Prefix, gateway: IpAddr) {
        self.routes.push((to, gateway));
        self.publish_network();
    }

    /// Has a neighbour on the servers' side answer no more.
    pub fn lose_neighbour(&mut self, address: IpAddr) {
        self.lost.push(address);
        self.publish_network();
    }

    fn publish_network(&mut self) {
        let mut snapshot = (**self.director.snapshot()).clone();
        snapshot.network = Arc::new(network(self.mtu, self.tags, &self.routes, &self.lost));
        self.director.adopt(&snapshot, &self.aside.services);
    }

    fn publish(&mut self, rules: Rules) {
        let services = self.publisher.publish(&rules, &self.counters, self.start).expect("few servers");
        self.aside.publish(&rules, self.start);
        let mut snapshot = (**self.director.snapshot()).clone();
        snapshot.epoch = Epoch(snapshot.epoch.0 + 1);
        snapshot.services = Arc::new(services);
        let seconds = rules.timeouts();
        snapshot.timeouts.set(State::Established, seconds.tcp);
        snapshot.timeouts.set(State::FinWait, seconds.tcp_fin);
        snapshot.timeouts.set(State::Udp, seconds.udp);
        snapshot.sysctls = *rules.sysctls();
        self.director.adopt(&snapshot, &self.aside.services);
        self.rules = rules;
    }
}

impl Backend for Bench {
    fn request(
        &mut self,
        request: &Request,
        part: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Request::Services(key) = request {
            return match self.rules.entries(key.as_ref()) {
                Ok(entries) => {
                    part(Response::Services(self.publisher.counted(entries, &self.counters)))?;
                    part(Response::Done)
                }
                Err(refusal) => part(refusal.into()),
            };
        }
        if let Request::Locals(key) = request {
            return match self.rules.locals(key.as_ref()) {
                Ok(entries) => {
                    part(Response::Locals(self.publisher.count_locals(entries)))?;
                    part(Response::Done)
                }
                Err(refusal) => part(refusal.into()),
            };
        }
        let mut rules = self.rules.clone();
        match rules.apply(request) {
            Ok(Change::Nothing) => self.rules.request(request, part),
            Ok(Change::Zeroed(key)) => {
                self.publisher.zero(key.as_ref(), &self.counters);
                part(Response::Done)
            }
            Ok(_) => {
                self.publish(rules);
                part(Response::Done)
            }
            Err(refusal) => part(refusal.into()),
        }
    }
}

/// The bench's two links, its routes and its neighbours. Real server 99 does not answer ARP. With tags the links are VLANs on interfaces
/// without addresses.
fn network(mtu: [u16; 2], tags: [Tags; 2], routers: &[(Prefix, IpAddr)], lost: &[IpAddr]) -> Network {
    let v6 = |net, host| IpAddr::V6(v6(net, host));
    let interface = |name: &str, index, mac, v4: [u8; 4], v6, mtu| Interface {
        name: name.to_owned(),
        index,
        mac,
        mtu,
        addresses: [Some(v4.into()), Some(v6)],
    };
    let route = |prefix, length, link: LinkId| Route {
        prefix,
        length,
        gateway: None,
        link: Some(link),
        mtu: None,
        source: None,
    };
    let is_tagged = tags.iter().any(|tags| !tags.is_empty());
    let [clients_link, servers_link] =
        if is_tagged { [LinkId(3), LinkId(4)] } else { [LinkId(0), LinkId(1)] };
    let clients = (0..=20u8).flat_map(|h| (0..=255u8).map(move |l| Ipv4Addr::new(10, 0, h, l)));
    let servers = (2..=255u8).filter(|n| *n != 99).map(|n| Ipv4Addr::new(10, 1, 0, n));
    let clients = clients.map(|a| ((clients_link, IpAddr::V4(a)), Neighbour::Reachable(client_mac(a))));
    let servers = servers.map(|a| ((servers_link, IpAddr::V4(a)), Neighbour::Reachable(server_mac(a))));
    let hosts = 2..=255u16;
    let clients6 = hosts
        .clone()
        .map(|n| ((clients_link, v6(0xa, n)), Neighbour::Reachable([2, 0xc6, 0, 0, 0, n as u8])));
    let servers6 =
        hosts.map(|n| ((servers_link, v6(0xb, n)), Neighbour::Reachable([2, 0x56, 0, 0, 0, n as u8])));
    let lost = lost.iter().map(|address| ((servers_link, *address), Neighbour::Failed));
    let addressed = vec![
        interface("c0", 2, C0, [10, 0, 0, 1], v6(0xa, 1), mtu[0]),
        interface("s0", 3, S0, [10, 1, 0, 1], v6(0xb, 1), mtu[1]),
    ];
    let home = Interface { addresses: [None; 2], ..interface("home", 4, HOME_MAC, [0; 4], v6(0, 0), 1500) };
    let bare: Vec<_> = addressed.iter().map(|i| Interface { addresses: [None; 2], ..i.clone() }).collect();
    let vlans = addressed.iter().zip([CLIENTS, SERVERS]).zip(tags);
    let vlans = vlans.map(|((interface, port), tags)| Vlan { interface: interface.clone(), port, tags });
    let vlans: Vec<Vlan> = vlans.filter(|_| is_tagged).collect();
    let own = [VIP.into(), [10, 0, 0, 1].into(), [10, 1, 0, 1].into(), VIP6.into(), v6(0xa, 1), v6(0xb, 1)];
    let local = LOCALS.map(IpAddr::from).into_iter().chain(LOCALS6.map(IpAddr::from)).chain(own);
    let direct = [
        route([10, 0, 0, 0].into(), 16, clients_link),
        route([10, 1, 0, 0].into(), 24, servers_link),
        route(v6(0xa, 0), 64, clients_link),
        route(v6(0xb, 0), 64, servers_link),
    ];
    let routed = routers
        .iter()
        .map(|(to, gateway)| Route { gateway: Some(*gateway), ..route(to.address, to.length, servers_link) });
    let at_home = own.map(|address| route(address, if address.is_ipv4() { 32 } else { 128 }, HOME.into()));
    let interfaces: Vec<_> = if is_tagged { bare } else { addressed };
    Network::new(
        interfaces.into_iter().chain([home]).collect(),
        direct.into_iter().chain(routed).chain(at_home),
        clients.chain(servers).chain(clients6).chain(servers6).chain(lost),
    )
    .with_vlans(vlans)
    .on_machine(local, [true; 2])
    .with_home(HOME.into())
}

/// Of the interface that is the way to the machine's own kernel.
const HOME_MAC: [u8; 6] = [2, 0x1b, 0, 0, 0, 0x40];

const fn v6(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host)
}

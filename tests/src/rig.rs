//! Several workers' directors side by side: one set of rules, one directory, one clock, frames carried by hand.
//!
//! The rig plays the workers' part of the bargain: a frame with the verdict
//! [`HandOff`](Verdict::HandOff) is given to the worker it names, once. Rules, publisher and directors are the daemon's own.
//!
//! Clients are 10.0.0.2 to 10.0.0.9 and all that lies behind the router 10.0.0.254. Real servers are 10.1.0.11 to
//! 10.1.0.18; 10.1.0.99 does not answer ARP, the others of 10.1.0.0/24 have not been asked for yet, and to
//! 10.3.0.0/16 there is no way.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shunt::api::Request;
use shunt::daemon::capabilities;
use shunt::publisher::Publisher;
use shunt::rules::{Change, Refusal, Rules};
use shunt_dataplane::conn::directory::Directory;
use shunt_dataplane::conn::paths::Paths;
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::conn::{Conn, State};
use shunt_dataplane::director::{Known, Parts, Verdict, Wish};
use shunt_dataplane::packet::{Extent, Packet, Tuple, V4};
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM, MAX_FRAME};
use shunt_dataplane::service::{
    Epoch, Interface, LinkId, Neighbour, Network, PortId, Route, Services, Snapshot, Sorted, Spread, Sysctls,
    Tick, Timeouts, WorkerId,
};
use shunt_dataplane::stats::Counters;

use crate::bench::{CLIENTS, SERVERS, VIP};
use crate::both::{Aside, Both};
use crate::frames::{C0, S0, client_mac, server_mac};
use crate::ops::LOCALS;

/// The second virtual address.
pub const VIP2: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The router on the clients' side.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// The hash key.
const SECRET: Secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

/// Connections a worker can hold. Enough for every test, and its tables stay far below a huge page.
const CAPACITY: usize = 1024;

/// Workers' directors.
pub struct Rig {
    /// The rules in force.
    pub rules: Rules,
    publisher: Publisher,
    /// Everybody's counters.
    pub counters: Arc<Counters>,
    directory: Option<Arc<Directory>>,
    directors: Vec<Both>,
    aside: Aside,
    now: Tick,
    elapsed: Duration,
    start: Instant,
    mtu: [u16; 2],
    /// Frames handed over so far.
    handed: usize,
}

/// What became of a frame.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Who decided about it in the end.
    pub worker: WorkerId,
    /// The final verdict.
    pub verdict: Verdict,
    /// The bytes afterwards.
    pub bytes: Vec<u8>,
    /// What was sent before it: its first pieces, if it was cut up.
    pub pieces: Vec<Vec<u8>>,
}

impl Rig {
    /// Workers without services. With more than one there is a directory.
    pub fn new(workers: usize) -> Self {
        let counters = Arc::new(Counters::new(workers).expect("memory for counters"));
        let entries = (workers > 1).then_some(2 * CAPACITY * workers);
        let directory = entries.map(|entries| Arc::new(Directory::with_capacity(entries).expect("memory")));
        let mtu = [1500, 1500];
        let snapshot = Arc::new(Snapshot {
            epoch: Epoch(0),
            services: Arc::default(),
            network: Arc::new(network(mtu)),
            timeouts: Timeouts::default(),
            sysctls: Sysctls::default(),
        });
        // Late enough that the clock wraps in the middle of a long test.
        let now = Tick(u32::MAX - 600_000);
        let paths = Arc::<Paths>::default();
        let aside = Aside::new(Publisher::default(), workers, entries);
        let director = |n| {
            let parts = Parts {
                worker: WorkerId(n as u8),
                snapshot: Arc::clone(&snapshot),
                capacity: CAPACITY,
                secret: SECRET,
                directory: directory.clone(),
                paths: Arc::clone(&paths),
                counters: Arc::clone(&counters),
            };
            Both::new(parts, &aside, now)
        };
        let directors = (0..workers).map(director).collect();
        Self {
            rules: Rules::new(capabilities()),
            publisher: Publisher::default(),
            counters,
            directory,
            directors,
            aside,
            now,
            elapsed: Duration::ZERO,
            start: Instant::now(),
            mtu,
            handed: 0,
        }
    }

    /// Changes the rules in all workers.
    ///
    /// # Errors
    /// When the rules refuse; nothing has changed then.
    pub fn apply(&mut self, request: &Request) -> Result<(), Refusal> {
        let mut rules = self.rules.clone();
        match rules.apply(request)? {
            Change::Nothing => return Ok(()),
            Change::Zeroed(key) => {
                self.publisher.zero(key.as_ref(), &self.counters);
                return Ok(());
            }
            _ => {}
        }
        let moment = self.start + self.elapsed;
        let services = self.publisher.publish(&rules, &self.counters, moment).expect("few servers");
        self.aside.publish(&rules, moment);
        let mut snapshot = (**self.directors[0].snapshot()).clone();
        snapshot.epoch = Epoch(snapshot.epoch.0 + 1);
        snapshot.services = Arc::new(services);
        let seconds = rules.timeouts();
        snapshot.timeouts.set(State::Established, seconds.tcp);
        snapshot.timeouts.set(State::FinWait, seconds.tcp_fin);
        snapshot.timeouts.set(State::Udp, seconds.udp);
        snapshot.sysctls = *rules.sysctls();
        self.rules = rules;
        self.adopt(snapshot);
        Ok(())
    }

    /// Changes the rules by a line of `ipvsadm`, which must be one that changes rules and must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn ipvsadm(&mut self, line: &str) {
        use shunt::ipvsadm::{address::SystemNames, parse, restore::split};
        let command = parse::parse("ipvsadm", &split(line), &SystemNames::default());
        let Ok(parse::Command::Ask(request)) = command else { panic!("{line}: {command:?}") };
        self.apply(&request).unwrap_or_else(|refusal| panic!("{line}: {refusal}"));
    }

    /// Whether a packet to an address could be sent now: there is a route, and the neighbour is known.
    pub fn has_hop(&self, to: Ipv4Addr) -> bool {
        self.directors[0].snapshot().network.hop(to).is_ok()
    }

    /// Gives a link another MTU.
    pub fn set_mtu(&mut self, port: PortId, mtu: u16) {
        self.mtu[usize::from(port.0)] = mtu;
        let mut snapshot = (**self.directors[0].snapshot()).clone();
        snapshot.network = Arc::new(network(self.mtu));
        self.adopt(snapshot);
    }

    /// Has the NICs deal frames out otherwise.
    pub fn set_spread(&mut self, spread: Spread) {
        let mut snapshot = (**self.directors[0].snapshot()).clone();
        snapshot.network = Arc::new(network(self.mtu).with_spread(Some(Arc::new(Sorted::new(spread)))));
        self.adopt(snapshot);
    }

    fn adopt(&mut self, snapshot: Snapshot) {
        for director in &mut self.directors {
            director.adopt(&snapshot, &self.aside.services);
        }
    }

    /// A frame comes to a worker, by a port. A frame longer than a port can deliver is cut.
    ///
    /// # Panics
    /// When the worker it is handed to hands it on, or a frame that is handed on, passed or told to wait was changed.
    pub fn deliver(&mut self, worker: usize, port: PortId, frame: &[u8]) -> Delivery {
        let frame = &frame[..frame.len().min(MAX_FRAME)];
        let mut delivery = self.look_until_steered(worker, port, frame, None);
        // To the owner; who may not be it any more, and then to the worker that the client's template belongs to.
        for _ in 0..2 {
            let Verdict::HandOff(next, known) = delivery.verdict else { return delivery };
            assert_ne!(next, delivery.worker, "handed to itself");
            let known = self.through_time(known);
            delivery = self.look_until_steered(next.0.into(), port, frame, Some(known));
        }
        assert!(!matches!(delivery.verdict, Verdict::HandOff(..)), "handed on and on");
        delivery
    }

    /// What is known of a frame when its owner gets it: where the connection is may be out of date by then, or no place in the table.
    fn through_time(&mut self, known: Known) -> Known {
        self.handed += 1;
        let is_candidate = (1..=u64::from(u32::MAX)).contains(&known.into_word());
        match self.handed % 3 {
            1 if is_candidate => Known::from_word(known.into_word() ^ 2),
            2 if is_candidate => Known::from_word(u32::MAX.into()),
            _ => known,
        }
    }

    fn look_until_steered(
        &mut self,
        worker: usize,
        port: PortId,
        frame: &[u8],
        handed: Option<Known>,
    ) -> Delivery {
        let first = self.look(worker, port, frame, handed);
        let director = &mut self.directors[worker];
        while let Some(wish) = director.wish() {
            if let Wish::Take(target) = wish {
                director.opened(target);
            }
        }
        if first.verdict == Verdict::Hold { self.look(worker, port, frame, handed) } else { first }
    }

    fn look(&mut self, worker: usize, port: PortId, frame: &[u8], handed: Option<Known>) -> Delivery {
        let mut chunk = [0xee; CHUNK];
        chunk[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
        let mut extent = Extent::new(HEADROOM, frame.len(), port);
        let mut packets = [Packet::new(&mut chunk, &mut extent)];
        let mut verdicts = Default::default();
        let handed = handed.as_ref().map(std::slice::from_ref);
        self.directors[worker].burst(&mut packets, handed, self.now, &mut verdicts);
        let verdict = verdicts[0];
        let bytes = packets[0].data().to_vec();
        if matches!(verdict, Verdict::Pass | Verdict::Wait(..) | Verdict::HandOff(..) | Verdict::Hold) {
            assert_eq!(bytes, frame, "changed, though it is to be looked at again: {verdict:?}");
        }
        let pieces = self.directors[worker].extras().map(|(_, bytes)| bytes.to_vec()).collect();
        Delivery { worker: WorkerId(worker as u8), verdict, bytes, pieces }
    }

    /// A burst comes to the first worker, by the clients' port. Gives the verdicts and the bytes.
    pub fn burst(&mut self, frames: &[Vec<u8>]) -> Vec<(Verdict, Vec<u8>)> {
        let mut chunks = vec![[0xee; CHUNK]; frames.len().min(BURST)];
        let mut packets: Vec<Packet> = Vec::new();
        let mut extents: Vec<_> =
            frames.iter().map(|frame| Extent::new(HEADROOM, frame.len(), CLIENTS)).collect();
        for ((chunk, extent), frame) in chunks.iter_mut().zip(&mut extents).zip(frames) {
            chunk[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
            packets.push(Packet::new(chunk, extent));
        }
        let mut verdicts = Default::default();
        self.directors[0].burst(&mut packets, None, self.now, &mut verdicts);
        packets.iter_mut().zip(verdicts).map(|(packet, verdict)| (verdict, packet.data().to_vec())).collect()
    }

    /// Time passes, with a look at the clock every half second.
    pub fn wait(&mut self, duration: Duration) {
        let mut left = duration.as_millis() as u32;
        self.elapsed += duration;
        while left > 0 {
            let step = left.min(500);
            self.now = self.now.plus(step);
            for director in &mut self.directors {
                director.expire(self.now, usize::MAX);
            }
            left -= step;
        }
        self.publisher.forget(&self.counters, self.start + self.elapsed);
        self.aside.forget(self.start + self.elapsed);
    }

    /// Every worker's connections.
    pub fn connections(&self) -> impl Iterator<Item = (WorkerId, Conn<V4>)> {
        let mut all = Vec::new();
        for (n, director) in (0u8..).zip(&self.directors) {
            director.each_v4(|conn| all.push((WorkerId(n), *conn)));
        }
        all.into_iter()
    }

    /// What the directors work by.
    pub fn services(&self) -> &Services {
        &self.directors[0].snapshot().services
    }

    /// Whom the directory gives a tuple to.
    pub fn owner(&self, tuple: &Tuple<V4>) -> Option<WorkerId> {
        self.directory.as_ref()?.owner(SECRET.hash(tuple.words()))
    }

    /// The moment.
    pub fn now(&self) -> Tick {
        self.now
    }

    /// Workers there are.
    pub fn workers(&self) -> usize {
        self.directors.len()
    }

    /// Bytes of IP that a link takes.
    pub fn mtu(&self, port: PortId) -> u16 {
        self.mtu[usize::from(port.0)]
    }
}

/// The Ethernet addresses of a frame to an address, in the header's order, as this network has it.
pub fn macs_to(address: Ipv4Addr) -> [u8; 12] {
    let (to, from) = match address.octets() {
        [10, 1, 0, _] => (server_mac(address), S0),
        [10, 0, 0, 2..=9] => (client_mac(address), C0),
        _ => (client_mac(ROUTER), C0),
    };
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&to);
    macs[6..].copy_from_slice(&from);
    macs
}

fn network(mtu: [u16; 2]) -> Network {
    let v4 = |octets: [u8; 4]| IpAddr::from(octets);
    let interface = |name: &str, index, mac, address, mtu| Interface {
        name: name.to_owned(),
        index,
        mac,
        mtu,
        addresses: [Some(v4(address)), None],
    };
    let route = |prefix, length, gateway, port: Option<PortId>| Route {
        prefix: v4(prefix),
        length,
        gateway,
        link: port.map(LinkId::from),
        mtu: None,
        source: None,
    };
    let clients = (2..=9).chain([254]).map(|n| Ipv4Addr::new(10, 0, 0, n));
    let servers = (11..=18).map(|n| Ipv4Addr::new(10, 1, 0, n));
    let clients = clients.map(|a| ((CLIENTS.into(), IpAddr::V4(a)), Neighbour::Reachable(client_mac(a))));
    let servers = servers.map(|a| ((SERVERS.into(), IpAddr::V4(a)), Neighbour::Reachable(server_mac(a))));
    let mute = ((SERVERS.into(), v4([10, 1, 0, 99])), Neighbour::Failed);
    let local =
        [VIP.into(), VIP2.into(), v4([10, 0, 0, 1]), v4([10, 1, 0, 1]), LOCALS[0].into(), LOCALS[1].into()];
    Network::new(
        vec![interface("c0", 2, C0, [10, 0, 0, 1], mtu[0]), interface("s0", 3, S0, [10, 1, 0, 1], mtu[1])],
        [
            route([10, 0, 0, 0], 24, None, Some(CLIENTS)),
            route([10, 1, 0, 0], 24, None, Some(SERVERS)),
            route([10, 3, 0, 0], 16, None, None),
            route([0, 0, 0, 0], 0, Some(ROUTER.into()), Some(CLIENTS)),
        ],
        clients.chain(servers).chain([mute]),
    )
    .on_machine(local, [true; 2])
}

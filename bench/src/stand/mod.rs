//! A director on a stand: frames and tables in memory, nothing else, so that what is measured is the director.
//!
//! Bursts are laid into frame memory before the clock starts, because the director rewrites them and because on a machine a NIC does that. As many chunks take turns as
//! a busy worker has under way, so that their headers lie in the second-level cache.

pub mod frames;
pub mod team;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use arrayvec::ArrayVec;
use shunt_dataplane::conn::directory::Directory;
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::director::{Director, Parts, Verdict};
use shunt_dataplane::packet::{Extent, Packet};
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use shunt_dataplane::sched;
use shunt_dataplane::service::{
    Dest, DestId, Epoch, Forwarding, Interface, Local, Neighbour, Network, PortId, Protocol, Route, Service,
    ServiceId, Services, Snapshot, Sysctls, Tick, Timeouts, Tunnel, WorkerId,
};
use shunt_dataplane::stats::Counters;

use crate::interrupt;
use frames::{End, FRAME, datagram, numbered, segment};

/// The virtual service: UDP and TCP at the same address and port.
pub const VIP: End = (Ipv4Addr::new(10, 9, 0, 1), 80);
/// Where the clients' frames come from.
pub const CLIENTS: PortId = PortId(0);
/// Where the real servers' frames come from.
pub const SERVERS: PortId = PortId(1);

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// Real servers of each service. Ten million connections by FullNAT need 160 pairs of a server and a local address.
pub const REAL_SERVERS: u8 = 16;
const LOCALS: u8 = 16;

/// Connections that a director has room for at least, as a daemon would be sized: for more than a million.
const CAPACITY: usize = 1 << 21;

/// Bursts of frames that take turns.
pub const BURSTS: usize = 8;

/// The modes to measure, with their names in reports.
pub const MODES: [(&str, Forwarding); 4] = [
    ("nat", Forwarding::Masq),
    ("dr", Forwarding::Route),
    ("tun", Forwarding::Tunnel),
    ("fullnat", Forwarding::FullNat),
];

/// The key of every stand's hash.
pub const SECRET: Secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

/// The client with a number. There are sixteen ports a host.
pub fn client(n: u32) -> End {
    (Ipv4Addr::from_bits(0x6440_0000 + n / 16), 1024 + (n % 16) as u16)
}

fn server(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 1 + n)
}

/// What the directors of `workers` workers work by: services at [`VIP`] with all real servers by one forwarding method.
pub fn snapshot(forwarding: Forwarding, workers: usize) -> Snapshot {
    let locals: Vec<_> =
        (0..LOCALS).map(|n| Arc::new(Local::new(Ipv4Addr::new(10, 1, 1, 1 + n).into(), workers))).collect();
    let services = [Protocol::Udp, Protocol::Tcp].into_iter().zip(1..).map(|(protocol, id)| {
        let dests: Vec<_> = (0..REAL_SERVERS)
            .map(|n| Arc::new(dest(forwarding, (id - 1) * u32::from(REAL_SERVERS), n)))
            .collect();
        let (scheduler_name, mut scheduler) = sched::by_name("rr").expect("there is rr");
        scheduler.edited(&[], &dests);
        Arc::new(Service {
            mark: None,
            id: ServiceId(id),
            protocol,
            address: IpAddr::V4(VIP.0),
            port: VIP.1,
            dests,
            locals: if forwarding == Forwarding::FullNat { locals.clone() } else { Vec::new() },
            scheduler_name,
            edits: 0,
            persistence: None,
            one_packet: false,
            flags: 0,
            scheduler: Arc::from(scheduler),
        })
    });
    Snapshot {
        epoch: Epoch(1),
        services: Arc::new(Services::new(services)),
        network: Arc::new(network()),
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
    }
}

fn dest(forwarding: Forwarding, first_id: u32, n: u8) -> Dest {
    Dest {
        id: DestId(first_id + u32::from(n)),
        address: server(n).into(),
        port: if forwarding.translates_replies() { 8080 } else { VIP.1 },
        forwarding,
        tunnel: Tunnel::default(),
        tell: Default::default(),
        weight: 1,
        last_weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        mss: None,
        every_port: false,
    }
}

fn network() -> Network {
    let interface = |name: &str, n: u8| Interface {
        name: name.to_owned(),
        index: u32::from(n),
        mac: [2, 0, 0, 0, 0, n],
        mtu: 1500,
        addresses: [Some(Ipv4Addr::new(10, n - 1, 255, 1).into()), None],
    };
    let route = |prefix, length, gateway, port: PortId| Route {
        prefix,
        length,
        gateway,
        link: Some(port.into()),
        mtu: None,
        source: None,
    };
    let router = IpAddr::V4(ROUTER);
    // Also of those that only a publication has.
    let servers = (0..100)
        .map(|n| ((SERVERS.into(), IpAddr::V4(server(n))), Neighbour::Reachable([2, 0, 0, 0, 1, 2 + n])));
    Network::new(
        vec![interface("c0", 1), interface("s0", 2)],
        [
            route(Ipv4Addr::new(10, 1, 0, 0).into(), 16, None, SERVERS),
            route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(router), CLIENTS),
        ],
        servers.chain([((CLIENTS.into(), router), Neighbour::Reachable([2, 0, 0, 0, 1, 1]))]),
    )
}

/// A director, its connections, and memory for frames.
pub struct Stand {
    /// The director.
    pub director: Director,
    /// The moment it is told.
    pub now: Tick,
    worker: WorkerId,
    counters: Arc<Counters>,
    chunks: Vec<[u8; CHUNK]>,
    /// By client, the real server that its connection went to.
    chosen: Vec<u8>,
}

impl Stand {
    /// A director with the connections of the clients from 0 on.
    ///
    /// # Errors
    /// When the user interrupts: ten million connections take seconds.
    ///
    /// # Panics
    /// When there is no memory for them.
    pub fn new(forwarding: Forwarding, connections: u32) -> Result<Self> {
        let first = snapshot(forwarding, 1);
        let counters = Arc::new(Counters::new(1).expect("memory for counters"));
        let mut stand = Self::of(WorkerId(0), first, connections, None, counters);
        let numbers: Vec<u32> = (0..connections).collect();
        for numbers in numbers.chunks(BURST) {
            interrupt::check()?;
            let bytes: ArrayVec<_, BURST> = numbers.iter().map(|n| datagram(client(*n), VIP)).collect();
            stand.burst(CLIENTS, 0, &bytes);
            for (place, n) in numbers.iter().enumerate() {
                if forwarding.translates_replies() {
                    stand.chosen[*n as usize] = stand.server_in(0, place);
                }
            }
        }
        assert_eq!(stand.connections(), u64::from(connections));
        Ok(stand)
    }

    /// The directors of two workers who share their services and tell each other of connections. There are none yet.
    ///
    /// # Panics
    /// When there is no memory for them.
    pub fn pair(forwarding: Forwarding) -> [Self; 2] {
        let first = snapshot(forwarding, 2);
        let counters = Arc::new(Counters::new(2).expect("memory for counters"));
        let directory = Arc::new(Directory::with_capacity(4 * CAPACITY).expect("memory for the directory"));
        [0, 1].map(|n| {
            let (directory, counters) = (Arc::clone(&directory), Arc::clone(&counters));
            Self::of(WorkerId(n), first.clone(), 0, Some(directory), counters)
        })
    }

    fn of(
        worker: WorkerId,
        snapshot: Snapshot,
        connections: u32,
        directory: Option<Arc<Directory>>,
        counters: Arc<Counters>,
    ) -> Self {
        let parts = Parts {
            worker,
            snapshot: Arc::new(snapshot),
            capacity: (connections as usize).max(CAPACITY),
            secret: SECRET,
            directory,
            paths: Arc::default(),
            counters: Arc::clone(&counters),
        };
        let now = Tick(0);
        let director = Director::new(parts, now).expect("memory for connections");
        let chunks = vec![[0; CHUNK]; BURST * BURSTS];
        Self { director, now, worker, counters, chunks, chosen: vec![0; connections as usize] }
    }

    /// Connections there are, as the counters have it.
    pub fn connections(&self) -> u64 {
        let counters = self.counters.worker(self.worker);
        let each = (0..2 * u32::from(REAL_SERVERS)).map(|n| counters.dest(DestId(n)));
        each.map(|dest| dest.active.load(Ordering::Relaxed) + dest.inactive.load(Ordering::Relaxed)).sum()
    }

    /// The datagram of a client's, which has the client's number in it.
    pub fn request(&self, n: u32) -> [u8; FRAME] {
        numbered(n, client(n), VIP)
    }

    /// Its real server's answer by NAT.
    pub fn reply(&self, n: u32) -> [u8; FRAME] {
        datagram((server(self.chosen[n as usize]), 8080), client(n))
    }

    /// A segment of a client's, without data.
    pub fn segment(&self, n: u32, flags: u8) -> [u8; FRAME] {
        segment(client(n), VIP, flags)
    }

    /// A segment that a real server answers a client by NAT.
    pub fn answer(&self, server_number: u8, n: u32, flags: u8) -> [u8; FRAME] {
        segment((server(server_number), 8080), client(n), flags)
    }

    /// The real server that frame `n` of the last burst of this turn went to by NAT.
    pub fn server_in(&self, turn: usize, n: usize) -> u8 {
        // The last byte of its address.
        self.chunks[turn % BURSTS * BURST + n][HEADROOM + 33] - 1
    }

    /// Puts a burst of frames through the director. Gives the time that this took.
    ///
    /// # Panics
    /// When the director does not forward them all.
    pub fn burst(&mut self, port: PortId, turn: usize, bytes: &[[u8; FRAME]]) -> Duration {
        let chunks = &mut self.chunks[turn % BURSTS * BURST..][..bytes.len()];
        let mut extents = [Extent::new(HEADROOM, FRAME, port); BURST];
        let mut packets: ArrayVec<Packet, BURST> = chunks
            .iter_mut()
            .zip(&mut extents)
            .zip(bytes)
            .map(|((chunk, extent), bytes)| {
                chunk[HEADROOM..HEADROOM + FRAME].copy_from_slice(bytes);
                Packet::new(chunk, extent)
            })
            .collect();
        let mut verdicts = ArrayVec::new();
        let start = Instant::now();
        self.director.burst(&mut packets, None, self.now, &mut verdicts);
        let took = start.elapsed();
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Forward(_))), "{verdicts:?}");
        took
    }

    /// Has what is over expire, of `budget` connections that are looked at. Gives the time that this took.
    pub fn expire(&mut self, budget: usize) -> Duration {
        let start = Instant::now();
        self.director.expire(self.now, budget);
        start.elapsed()
    }
}

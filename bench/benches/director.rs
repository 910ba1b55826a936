//! What does a frame cost? Nanoseconds per frame of parsing, and of a burst's way through the director, frames and tables in memory.
//!
//! A burst is 64 frames of 64 different connections, picked by a stride that visits all of them before it comes back: with a
//! million connections every look-up misses the caches, with one it never does. The frames are copied into their
//! chunks anew before each burst, because the director rewrites them; that copy is not in the figures.
//!
//! The director allocates nothing per frame; the benches that end in `new` pay for insertion and expiry of a UDP
//! connection as well.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::director::{Director, Parts, Verdict};
use shunt_dataplane::packet::checksum::Sum;
use shunt_dataplane::packet::{Packet, parse};
use shunt_dataplane::port::BURST;
use shunt_dataplane::port::frame::{CHUNK, HEADROOM};
use shunt_dataplane::sched;
use shunt_dataplane::service::{
    Dest, DestId, Epoch, Forwarding, Interface, Neighbour, Network, PortId, Protocol, Route, Service,
    ServiceId, Services, Snapshot, Sysctls, Tick, Timeouts, Tunnel, WorkerId,
};
use shunt_dataplane::stats::Counters;

const UDP: u8 = 17;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const CLIENTS: PortId = PortId(0);
const SERVERS: PortId = PortId(1);

/// Bytes of a frame on the wire, as small as Ethernet has them.
const FRAME: usize = 60;

/// Chunks of frame memory that take turns: as many as a busy worker has under way, so that they lie in the second-level cache as
/// they would behind a NIC.
const BURSTS: usize = 8;

/// A prime that is no neighbour of a power of two: steps through any of the connection counts without a pattern.
const STRIDE: u32 = 7_368_787;

fn client(n: u32) -> (Ipv4Addr, u16) {
    // Sixteen ports a host.
    (Ipv4Addr::from_bits(0x6440_0000 + n / 16), 1024 + (n % 16) as u16)
}

/// A UDP datagram of 18 bytes of data, checksums in place.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[12..18].copy_from_slice(&[0x08, 0x00, 0x45, 0, 0, 46]);
    frame[20..24].copy_from_slice(&[0x40, 0, 64, UDP]);
    frame[26..30].copy_from_slice(&from.0.octets());
    frame[30..34].copy_from_slice(&to.0.octets());
    let sum = Sum::default().bytes(&frame[14..34]).field();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..36].copy_from_slice(&from.1.to_be_bytes());
    frame[36..38].copy_from_slice(&to.1.to_be_bytes());
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    // Any checksum will do: it is adjusted, never verified.
    frame[40..42].copy_from_slice(&[0x12, 0x34]);
    frame
}

fn snapshot(forwarding: Forwarding) -> Snapshot {
    let dest = Arc::new(Dest {
        id: DestId(0),
        address: IpAddr::V4(SERVER),
        port: if forwarding == Forwarding::Masq { 8080 } else { 80 },
        forwarding,
        tunnel: Tunnel::default(),
        tell: Default::default(),
        weight: 1,
        last_weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        mss: None,
    });
    let (scheduler_name, mut scheduler) = sched::by_name("rr").expect("there is rr");
    scheduler.edited(&[], std::slice::from_ref(&dest));
    let service = Service {
        mark: None,
        id: ServiceId(1),
        protocol: Protocol::Udp,
        address: IpAddr::V4(VIP),
        port: 80,
        dests: vec![dest],
        locals: Vec::new(),
        scheduler_name,
        edits: 0,
        persistence: None,
        one_packet: false,
        flags: 0,
        scheduler: Arc::from(scheduler),
    };
    let interface = |name: &str, n: u8| Interface {
        name: name.to_owned(),
        index: u32::from(n),
        mac: [2, 0, 0, 0, 0, n],
        mtu: 1500,
        addresses: [None; 2],
    };
    let route =
        |prefix, length, gateway, port: PortId| Route { prefix, length, gateway, link: Some(port.into()) };
    let router = IpAddr::V4(ROUTER);
    let network = Network::new(
        vec![interface("c0", 1), interface("s0", 2)],
        [
            route(Ipv4Addr::new(10, 1, 0, 0).into(), 24, None, SERVERS),
            route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(router), CLIENTS),
        ],
        [
            ((CLIENTS.into(), router), Neighbour::Reachable([2, 0, 0, 0, 1, 1])),
            ((SERVERS.into(), SERVER.into()), Neighbour::Reachable([2, 0, 0, 0, 1, 2])),
        ],
    );
    Snapshot {
        epoch: Epoch(1),
        services: Arc::new(Services::new([Arc::new(service)])),
        network: Arc::new(network),
        timeouts: Timeouts::default(),
        sysctls: Sysctls::default(),
    }
}

/// A director, its connections, and memory for frames.
struct Stand {
    director: Director,
    counters: Arc<Counters>,
    chunks: Vec<[u8; CHUNK]>,
    connections: u32,
    place: u32,
    now: Tick,
}

impl Stand {
    fn new(forwarding: Forwarding, connections: u32) -> Self {
        let counters = Arc::new(Counters::new(1).expect("memory for counters"));
        let parts = Parts {
            worker: WorkerId(0),
            snapshot: Arc::new(snapshot(forwarding)),
            // As a daemon would be sized: for a million at least, and half empty.
            capacity: 1 << 21,
            secret: Secret([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]),
            directory: None,
            paths: Arc::default(),
            counters: Arc::clone(&counters),
        };
        let now = Tick(0);
        let director = Director::new(parts, now).expect("memory for connections");
        let chunks = vec![[0; CHUNK]; BURST * BURSTS];
        let mut stand = Self { director, counters, chunks, connections, place: 0, now };
        for _ in 0..connections.div_ceil(BURST as u32) {
            stand.burst(|n| datagram(client(n), (VIP, 80)), 0);
        }
        assert_eq!(stand.counters.load(DestId(0)).inactive, u64::from(connections));
        stand
    }

    /// A burst of frames through the director; gives the time that it took.
    fn burst(&mut self, frame: impl Fn(u32) -> [u8; FRAME], turn: usize) -> Duration {
        let first = turn % BURSTS * BURST;
        let chunks = &mut self.chunks[first..first + BURST];
        let mut packets: Vec<Packet> = chunks
            .iter_mut()
            .map(|chunk| {
                self.place = (self.place + STRIDE) % self.connections;
                chunk[HEADROOM..HEADROOM + FRAME].copy_from_slice(&frame(self.place));
                Packet { chunk: &mut chunk[..], start: HEADROOM, len: FRAME, port: CLIENTS }
            })
            .collect();
        let mut verdicts = Default::default();
        let start = Instant::now();
        self.director.burst(&mut packets, false, self.now, &mut verdicts);
        let took = start.elapsed();
        assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Forward(_))));
        took
    }
}

fn parsing(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let frames: Vec<_> = (0..1024).map(|n| datagram(client(n), (VIP, 80))).collect();
    group.throughput(Throughput::Elements(frames.len() as u64));
    group.bench_function("udp", |b| b.iter(|| frames.iter().for_each(|frame| _ = black_box(parse(frame)))));
    group.finish();
}

/// Names a bench, and makes the frame of the connection with a number.
type Case = (&'static str, Forwarding, fn(u32) -> [u8; FRAME]);

fn established(c: &mut Criterion) {
    const CASES: [Case; 3] = [
        ("nat_request", Forwarding::Masq, |n| datagram(client(n), (VIP, 80))),
        ("nat_reply", Forwarding::Masq, |n| datagram((SERVER, 8080), client(n))),
        ("dr_request", Forwarding::Route, |n| datagram(client(n), (VIP, 80))),
    ];
    for (name, forwarding, frame) in CASES {
        let mut group = c.benchmark_group(format!("director/{name}"));
        group.throughput(Throughput::Elements(BURST as u64));
        for connections in [1, 1000, 1_000_000] {
            let mut stand = Stand::new(forwarding, connections);
            group.bench_function(BenchmarkId::from_parameter(connections), |b| {
                b.iter_custom(|bursts| (0..bursts as usize).map(|turn| stand.burst(frame, turn)).sum());
            });
        }
        group.finish();
    }
}

/// Every frame is a new connection's; before the next burst, and in the figure, the last burst's connections expire. Time
/// runs a timeout ahead for each burst, so the wheel turns by 300 empty slots too: 5 per connection.
fn new_connections(c: &mut Criterion) {
    let mut group = c.benchmark_group("director/new");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, forwarding) in [("nat", Forwarding::Masq), ("dr", Forwarding::Route)] {
        let mut stand = Stand::new(forwarding, 1_000_000);
        // The connections it was made with are not wanted here.
        stand.now = stand.now.plus(400_000);
        stand.director.expire(stand.now, usize::MAX);
        let frame = |n| datagram(client(n), (VIP, 80));
        group.bench_function(name, |b| {
            b.iter_custom(|bursts| {
                let mut sum = Duration::ZERO;
                for turn in 0..bursts as usize {
                    sum += stand.burst(frame, turn);
                    stand.now = stand.now.plus(310_000);
                    let start = Instant::now();
                    stand.director.expire(stand.now, usize::MAX);
                    sum += start.elapsed();
                }
                let mut left = 0;
                stand.director.each_v4(|_| left += 1);
                assert_eq!(left, 0);
                sum
            });
        });
    }
    group.finish();
}

fn briefly() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = briefly(); targets = parsing, established, new_connections }
criterion_main!(benches);

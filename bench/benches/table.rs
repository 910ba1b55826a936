//! What does a look-up cost? Nanoseconds per tuple in the connection table: found and not found, the table in the cache and far
//! beyond it; one by one, and as the director does it, a burst's lines fetched ahead. And what does a connection that begins and ends?

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod briefly;

use briefly::briefly;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::conn::{Conn, Table};
use shunt_dataplane::packet::{Tuple, V4};
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::Tick;
use std::hint::black_box;

/// A prime that is no neighbour of a power of two, so that look-ups jump.
const STRIDE: u32 = 7_368_787;

const SECRET: Secret = Secret::new([0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c908, 0xbb67_ae85_84ca_a73b]);

fn conn(n: u32) -> Conn<V4> {
    let mut conn = Conn::default();
    conn.client = V4(0x6440_0000 + n / 16);
    conn.virtual_address = V4(0x0a09_0001);
    conn.server = V4(0x0a01_000b);
    (conn.client_port, conn.virtual_port, conn.server_port) = (1024 + (n % 16) as u16, 80, 8080);
    conn.protocol = 17;
    conn.timeout = 300_000;
    conn
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(BURST as u64));
    for (connections, capacity) in [(1000u32, 1 << 21), (1_000_000, 1 << 21), (10_000_000, 10_000_000)] {
        let mut table = Table::with_capacity(capacity, SECRET, Tick(0)).expect("memory for the table");
        for n in 0..connections {
            table.insert(conn(n)).expect("room");
        }
        let mut place = 0;
        // Numbers from `first` on are in the table, or beyond it.
        let mut tuples = |first: u32| -> [Tuple<V4>; BURST] {
            std::array::from_fn(|_| {
                place = (place + STRIDE) % connections;
                conn(first + place).request()
            })
        };
        for (name, first, found) in [("hit", 0, BURST), ("miss", connections, 0)] {
            group.bench_function(BenchmarkId::new(name, connections), |b| {
                b.iter(|| {
                    let tuples = tuples(first);
                    let hits = tuples.iter().filter(|tuple| table.find(tuple, table.hash(tuple)).is_some());
                    assert_eq!(black_box(hits.count()), found);
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}_ahead"), connections), |b| {
                b.iter(|| {
                    let tuples = tuples(first);
                    let hashes = tuples.map(|tuple| table.hash(&tuple));
                    hashes.iter().for_each(|hash| table.prefetch_index(*hash));
                    hashes.iter().for_each(|hash| _ = table.prefetch_entry(*hash));
                    let both = tuples.iter().zip(hashes);
                    let hits = both.filter(|(tuple, hash)| table.find(tuple, *hash).is_some());
                    assert_eq!(black_box(hits.count()), found);
                });
            });
        }
    }
    group.finish();
}

/// What a connection costs that begins and ends: one inserted, one expired, at so many alive.
fn turnover(c: &mut Criterion) {
    let mut group = c.benchmark_group("table/insert_and_expire");
    group.throughput(Throughput::Elements(BURST as u64));
    for alive in [1000u32, 1_000_000] {
        let (mut now, mut n) = (Tick(0), 0u32);
        let mut table = Table::with_capacity(1 << 21, SECRET, now).expect("memory for the table");
        // A burst in a millisecond, each connection alive for as many as make so many.
        let timeout = alive / BURST as u32;
        let mut turn = || {
            now = now.plus(1);
            let mut budget = usize::MAX;
            while table.expire(now, &mut budget, |_| {}).is_some() {}
            for _ in 0..BURST {
                n = (n + 1) % (4 * alive);
                let mut conn = conn(n);
                (conn.last_seen, conn.timeout) = (now, timeout);
                // The director knows it from the packet.
                let hash = table.hash(&conn.request());
                table.insert_hashed(conn, hash).expect("room");
            }
        };
        (0..2 * timeout).for_each(|_| turn());
        group.bench_function(BenchmarkId::from_parameter(alive), |b| b.iter(&mut turn));
    }
    group.finish();
}

criterion_group! { name = benches; config = briefly(); targets = lookups, turnover }
criterion_main!(benches);

//! What does a packet cost a whole worker? Nanoseconds per packet of its turns, ports in memory: receiving, deciding, sorting, sending, expiry, and what it is asked by
//! control. By each mode, among few connections and many.
//!
//! `cargo bench --bench worker` measures all; `-- worker/nat/uniform/1000000` one of them, and makes no other's tables.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod among;
mod briefly;

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use among::{CONNECTIONS, laws};
use briefly::briefly;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use shunt_bench::stand::frames::datagram;
use shunt_bench::stand::team::{Options, TURN, Team};
use shunt_bench::stand::{MODES, VIP, client};

/// Turns whose frames are laid out before the clock starts: 240 KiB, which stay in the second-level cache.
const STRETCH: u64 = 16;

/// As many requests as a turn takes.
fn requests(c: &mut Criterion) {
    for (name, forwarding) in MODES {
        let mut group = c.benchmark_group(format!("worker/{name}"));
        group.throughput(Throughput::Elements(TURN as u64));
        for connections in CONNECTIONS {
            let options = Options { forwarding, connections, ..Options::default() };
            // Made for the first one that is measured, and kept for the second.
            let mut team = LazyCell::new(|| Team::new(options).expect("memory for a worker"));
            let mut random = SmallRng::seed_from_u64(1);
            for (law, draw) in laws(connections) {
                group.bench_function(BenchmarkId::new(law, connections), |b| {
                    let team = LazyCell::force_mut(&mut team);
                    b.iter_custom(|turns| {
                        let mut took = Duration::ZERO;
                        for begun in (0..turns).step_by(STRETCH as usize) {
                            let turns = STRETCH.min(turns - begun);
                            let frames = 0..turns as usize * TURN;
                            team.feed(frames.map(|_| datagram(client(draw(&mut random)), VIP)));
                            let start = Instant::now();
                            (0..turns).for_each(|_| team.turn());
                            took += start.elapsed();
                        }
                        took
                    });
                    assert!(team.lost().is_empty(), "{:?}", team.lost());
                });
            }
        }
        group.finish();
    }
}

/// As many requests and as many replies, of a thousand connections by NAT.
fn both_ways(c: &mut Criterion) {
    let mut team = Team::new(Options::default()).expect("memory for a worker");
    let mut group = c.benchmark_group("worker");
    group.throughput(Throughput::Elements(2 * TURN as u64));
    group.bench_function("nat, both ways", |b| b.iter(|| team.turn()));
    group.finish();
}

criterion_group! { name = benches; config = briefly(); targets = requests, both_ways }
criterion_main!(benches);

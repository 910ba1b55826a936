//! What does a packet cost? Nanoseconds per packet of a burst's way through the director, frames and tables in memory: by each mode, among few connections
//! and many, all equally busy or a few much busier than the rest; and of a whole worker's turn, the ports' part included.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod briefly;

use briefly::briefly;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use shunt_bench::stand::team::Team;
use shunt_bench::stand::{CLIENTS, MODES, SERVERS, Stand};
use shunt_dataplane::director::Place;
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::Forwarding;
use shunt_dataplane::worker::LISTING_STEP;
use std::hint::black_box;

const CONNECTIONS: [u32; 4] = [1, 1000, 1_000_000, 10_000_000];

/// Exponent of Zipf's law: a little more than what web sites' clients are found to follow.
const SKEW: f64 = 1.1;

/// Which connection comes next.
type Draw<'a> = &'a dyn Fn(&mut SmallRng) -> u32;

fn requests(c: &mut Criterion) {
    for (name, forwarding) in MODES {
        let mut group = c.benchmark_group(format!("director/{name}"));
        group.throughput(Throughput::Elements(BURST as u64));
        for connections in CONNECTIONS {
            let mut stand = Stand::new(forwarding, connections);
            let mut random = SmallRng::seed_from_u64(1);
            let uniform = |random: &mut SmallRng| random.random_range(0..connections);
            let zipf = Zipf::new(f64::from(connections), SKEW).expect("it is a law");
            let skewed = |random: &mut SmallRng| zipf.sample(random) as u32 - 1;
            let draws: [(&str, Draw); 2] = [("uniform", &uniform), ("zipf", &skewed)];
            for (law, draw) in draws {
                group.bench_function(BenchmarkId::new(law, connections), |b| {
                    b.iter_custom(|bursts| {
                        let once = |turn| {
                            let bytes: [_; BURST] = std::array::from_fn(|_| stand.request(draw(&mut random)));
                            stand.burst(CLIENTS, turn, &bytes)
                        };
                        (0..bursts as usize).map(once).sum()
                    });
                });
            }
        }
        group.finish();
    }
}

fn replies(c: &mut Criterion) {
    let mut group = c.benchmark_group("director/nat_reply");
    group.throughput(Throughput::Elements(BURST as u64));
    for connections in CONNECTIONS {
        let mut stand = Stand::new(Forwarding::Masq, connections);
        let mut random = SmallRng::seed_from_u64(1);
        group.bench_function(BenchmarkId::new("uniform", connections), |b| {
            b.iter_custom(|bursts| {
                let once = |turn| {
                    let bytes: [_; BURST] =
                        std::array::from_fn(|_| stand.reply(random.random_range(0..connections)));
                    stand.burst(SERVERS, turn, &bytes)
                };
                (0..bursts as usize).map(once).sum()
            });
        });
    }
    group.finish();
}

/// A turn of a worker with a thousand connections by NAT: a burst of requests and one of replies, ports in memory.
fn turns(c: &mut Criterion) {
    let mut team = Team::new(1).expect("memory for a worker");
    let mut group = c.benchmark_group("worker");
    group.throughput(Throughput::Elements(2 * BURST as u64));
    group.bench_function("turn", |b| b.iter(|| team.turn()));
    group.finish();
}

/// What a listing of a million connections takes of one turn of a worker: how much longer a burst may wait that comes just then.
fn listing(c: &mut Criterion) {
    let stand = Stand::new(Forwarding::Masq, 1_000_000);
    let (mut page, mut from) = (Vec::with_capacity(LISTING_STEP), Place::default());
    c.bench_function("director/page of a listing", |b| {
        b.iter(|| {
            page.clear();
            let next = stand.director.connections(from, LISTING_STEP, stand.now, |listed| page.push(listed));
            from = next.unwrap_or_default();
            black_box(&page);
        });
    });
}

criterion_group! { name = benches; config = briefly(); targets = requests, replies, turns, listing }
criterion_main!(benches);

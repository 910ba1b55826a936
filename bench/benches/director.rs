//! What does a packet cost? Nanoseconds per packet of a burst's way through the director, frames and tables in memory: by each mode, among few connections
//! and many, all equally busy or a few much busier than the rest. What a whole worker takes is in `worker`.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

mod among;
mod briefly;

use std::cell::LazyCell;
use std::hint::black_box;

use among::{CONNECTIONS, laws};
use briefly::briefly;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shunt_bench::stand::{CLIENTS, MODES, SERVERS, Stand};
use shunt_dataplane::director::Place;
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::Forwarding;
use shunt_dataplane::worker::LISTING_STEP;

fn requests(c: &mut Criterion) {
    for (name, forwarding) in MODES {
        let mut group = c.benchmark_group(format!("director/{name}"));
        group.throughput(Throughput::Elements(BURST as u64));
        for connections in CONNECTIONS {
            // Made for the first one that is measured, and kept for the second.
            let mut stand = LazyCell::new(|| Stand::new(forwarding, connections).expect("nobody interrupts"));
            let mut random = SmallRng::seed_from_u64(1);
            for (law, draw) in laws(connections) {
                group.bench_function(BenchmarkId::new(law, connections), |b| {
                    let stand = LazyCell::force_mut(&mut stand);
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
        let mut stand =
            LazyCell::new(|| Stand::new(Forwarding::Masq, connections).expect("nobody interrupts"));
        let mut random = SmallRng::seed_from_u64(1);
        group.bench_function(BenchmarkId::new("uniform", connections), |b| {
            let stand = LazyCell::force_mut(&mut stand);
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

/// What a listing of a million connections takes of one turn of a worker: how much longer a burst may wait that comes just then.
fn listing(c: &mut Criterion) {
    let stand = Stand::new(Forwarding::Masq, 1_000_000).expect("nobody interrupts");
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

criterion_group! { name = benches; config = briefly(); targets = requests, replies, listing }
criterion_main!(benches);

//! What does a choice cost? Each scheduler among 10, 100 and 1,000 real servers of mixed weights; and what an edit costs control when the table that
//! it makes is Maglev's.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shunt_dataplane::sched::{self, Request, Scheduler};
use shunt_dataplane::service::{
    Dest, DestId, Forwarding, Protocol, Service, ServiceId, Sysctls, Tell, Tick, Tunnel, WorkerId,
};
use shunt_dataplane::stats::{Counters, add};

const SERVERS: [u32; 3] = [10, 100, 1000];

fn dest(n: u32) -> Arc<Dest> {
    // One in ten is heavier, as where old machines work beside new ones.
    let weight = if n.is_multiple_of(10) { 4 } else { 1 };
    Arc::new(Dest {
        id: DestId(n),
        address: IpAddr::V4(Ipv4Addr::from(0x0a01_0000 + n)),
        port: 80,
        forwarding: Forwarding::Route,
        tunnel: Tunnel::default(),
        tell: Tell::Nothing,
        weight,
        last_weight: weight,
        upper_threshold: 0,
        lower_threshold: 0,
        mss: None,
        every_port: false,
    })
}

fn service(name: &str, servers: u32) -> (Service, Box<dyn Scheduler>) {
    let dests: Vec<Arc<Dest>> = (0..servers).map(dest).collect();
    let (scheduler_name, mut scheduler) = sched::by_name(name).expect("a name of the table");
    scheduler.edited(&[], &dests);
    let service = Service {
        mark: None,
        id: ServiceId(1),
        protocol: Protocol::Tcp,
        address: Ipv4Addr::new(10, 9, 0, 1).into(),
        port: 80,
        dests,
        edits: 0,
        locals: Vec::new(),
        persistence: None,
        one_packet: false,
        flags: 0,
        scheduler_name,
        scheduler: Arc::from(scheduler.boxed()),
    };
    (service, scheduler)
}

fn choices(c: &mut Criterion) {
    let counters = Counters::new(1).expect("memory for counters");
    let sysctls = Sysctls::default();
    // Loads that differ, so that the least is somewhere.
    for n in 0..1000 {
        let load = counters.worker(WorkerId(0)).dest(DestId(n));
        add(&load.active, u64::from(n * 7 % 31) + 3);
        add(&load.inactive, u64::from(n * 13 % 97));
    }
    for name in sched::NAMES {
        let mut group = c.benchmark_group(format!("choice/{name}"));
        group.throughput(Throughput::Elements(1));
        for servers in SERVERS {
            let (service, mut scheduler) = service(name, servers);
            let mut n = 0u32;
            group.bench_function(BenchmarkId::from_parameter(servers), |b| {
                b.iter(|| {
                    n = n.wrapping_add(7_368_787);
                    let request = Request {
                        client: (Ipv4Addr::from(0x6440_0000 + n % 65_536).into(), 1024 + n as u16 / 2),
                        destination: (Ipv4Addr::from(0x0a0a_0000 + n % 256).into(), 80),
                        now: Tick(n / 1024),
                        random: u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                        sysctls: &sysctls,
                    };
                    black_box(scheduler.choose(&service, &request, &counters))
                });
            });
        }
        group.finish();
    }
}

fn rebuilds(c: &mut Criterion) {
    let mut group = c.benchmark_group("rebuild");
    for name in ["mh", "conhash"] {
        let (service, mut scheduler) = service(name, 1000);
        let fewer: Vec<_> = service.dests[1..].to_vec();
        group.bench_function(BenchmarkId::new(name, 1000), |b| {
            b.iter(|| {
                scheduler.edited(&service.dests, &fewer);
                scheduler.edited(&fewer, &service.dests);
            });
        });
    }
    group.finish();
}

fn briefly() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
}

criterion_group! { name = benches; config = briefly(); targets = choices, rebuilds }
criterion_main!(benches);

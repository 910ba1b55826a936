//! What is listed while two workers count and the rules change: no counter ever goes back, and in the end all are exact.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use shunt::api::{ServiceEntry, Stats};
use shunt::daemon::capabilities;
use shunt::ipvsadm::address::SystemNames;
use shunt::ipvsadm::parse::{Command, parse};
use shunt::publisher::Publisher;
use shunt::rules::Rules;
use shunt_dataplane::service::{DestId, WorkerId};
use shunt_dataplane::stats::{self, Counters};

/// Packets that each worker counts for each of two servers.
const PACKETS: u64 = 3_000_000;

/// Edits that leave the first two servers' identities alone, though one is gone for a while.
const EDITS: &[&str] = &[
    "-e -t 10.9.0.1:80 -r 10.1.0.11:80 -m -w 3",
    "-E -t 10.9.0.1:80 -s wrr",
    "-a -t 10.9.0.1:80 -r 10.1.0.13:80 -m",
    "-d -t 10.9.0.1:80 -r 10.1.0.12:80",
    "-d -t 10.9.0.1:80 -r 10.1.0.13:80",
    "-a -t 10.9.0.1:80 -r 10.1.0.12:80 -m",
    "-E -t 10.9.0.1:80 -s rr",
];

#[test]
fn no_counter_goes_back_while_rules_change_and_all_are_exact_in_the_end() {
    let counters = Counters::new(2).expect("memory for counters");
    let (mut rules, mut publisher) = (Rules::new(capabilities()), Publisher::default());
    let mut edit = |publisher: &mut Publisher, line: &str| {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let Ok(Command::Ask(request)) = parse("ipvsadm", &words, &SystemNames::default()) else {
            panic!("{line} is no request")
        };
        rules.apply(&request).expect("it is accepted");
        publisher.publish(&rules, &counters, Instant::now()).expect("there is room");
        rules.entries(None).expect("all are there")
    };
    edit(&mut publisher, "-A -t 10.9.0.1:80 -s rr");
    edit(&mut publisher, "-a -t 10.9.0.1:80 -r 10.1.0.11:80 -m");
    edit(&mut publisher, "-a -t 10.9.0.1:80 -r 10.1.0.12:80 -m");

    let (done, mut seen, mut rounds) = (AtomicBool::new(false), Seen::default(), 0);
    thread::scope(|scope| {
        let workers = [0, 1].map(|worker| {
            scope.spawn({
                let counters = &counters;
                move || count(counters, WorkerId(worker))
            })
        });
        scope.spawn(|| {
            // A worker that panics fails the test when it is joined by the scope.
            workers.into_iter().for_each(|worker| drop(worker.join()));
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) || rounds == 0 {
            rounds += 1;
            for line in EDITS {
                let entries = edit(&mut publisher, line);
                seen.look(&publisher.counted(entries, &counters));
                publisher.forget(&counters, Instant::now());
            }
        }
    });

    let entries = edit(&mut publisher, EDITS[0]);
    let listed = publisher.counted(entries, &counters).remove(0);
    // Each worker, then both servers.
    let each = 2 * PACKETS;
    let exact = |n: u64| Stats {
        conns: n / 4,
        in_packets: n,
        out_packets: n,
        in_bytes: 40 * n,
        out_bytes: 1500 * n,
        rates: [0; 5],
    };
    assert_eq!(listed.stats, exact(2 * each));
    assert!(listed.servers.iter().all(|server| server.stats == exact(each)), "{listed:?}");
}

/// What a worker counts.
fn count(counters: &Counters, worker: WorkerId) {
    for n in 0..PACKETS {
        for server in [0, 1] {
            let of = counters.worker(worker).dest(DestId(server));
            stats::add(&of.conns, u64::from(n % 4 == 0));
            stats::add(&of.in_packets, 1);
            stats::add(&of.in_bytes, 40);
            stats::add(&of.out_packets, 1);
            stats::add(&of.out_bytes, 1500);
        }
    }
}

/// The highest counters so far: of the service, and of each server.
#[derive(Default)]
struct Seen(std::collections::HashMap<Option<IpAddr>, [u64; 5]>);

impl Seen {
    fn look(&mut self, listed: &[ServiceEntry]) {
        let service = listed.iter().map(|entry| (None, entry.stats));
        let servers = listed.iter().flat_map(|entry| &entry.servers);
        let servers = servers.map(|server| (Some(server.config.key.address), server.stats));
        for (whose, s) in service.chain(servers) {
            let now = [s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes];
            let before = self.0.insert(whose, now).unwrap_or_default();
            assert!(
                now.iter().zip(before).all(|(now, before)| *now >= before),
                "{whose:?}: {before:?}, then {now:?}"
            );
        }
    }
}

//! Counters and rates as a real kernel showed them after the same traffic, edits and resets, one estimation after the other.
//!
//! The kernel of the recording gathers counters when it estimates, shunt counts at once: where the recording has no `stats`, something was not gathered yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use serde::Deserialize;
use shunt::api::{ServiceKey, Stats};
use shunt::daemon::capabilities;
use shunt::ipvsadm::address::SystemNames;
use shunt::ipvsadm::parse::{self, Command};
use shunt::publisher::Publisher;
use shunt::rules::{Change, Rules};
use shunt_dataplane::service::{Services, WorkerId};
use shunt_dataplane::stats::{self, Counters};

#[derive(Deserialize)]
struct Case {
    name: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    /// A line of ipvsadm.
    Cmd(String),
    /// A setting.
    Sysctl(String, i32),
    /// What each server has counted: connections, packets in and out, bytes in and out.
    Traffic(BTreeMap<String, [u64; 5]>),
    /// Two seconds are over.
    Tick,
    /// What is listed, by address and port.
    Listed { rates: BTreeMap<String, [u64; 5]>, stats: Option<BTreeMap<String, [u64; 5]>> },
}

struct Director {
    rules: Rules,
    publisher: Publisher,
    counters: Counters,
    services: Services,
    /// The worker that the next packets come to.
    worker: u8,
}

impl Director {
    fn new() -> Director {
        let counters = Counters::new(2).expect("memory for counters");
        let (rules, mut publisher) = (Rules::new(capabilities()), Publisher::default());
        let services = publisher.publish(&rules, &counters, Instant::now()).expect("room");
        Director { rules, publisher, counters, services, worker: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Cmd(line) => {
                let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                let command = parse::parse("ipvsadm", &words, &SystemNames::default()).expect("a command");
                let Command::Ask(request) = command else { panic!("{line} asks for nothing") };
                match self.rules.apply(&request).expect("it is accepted") {
                    Change::Zeroed(key) => self.publisher.zero(key.as_ref(), &self.counters),
                    _ => {
                        let now = Instant::now();
                        self.services =
                            self.publisher.publish(&self.rules, &self.counters, now).expect("room");
                    }
                }
            }
            Step::Sysctl(name, value) => {
                let (name, value) = (name.clone(), value.to_string());
                self.rules.apply(&shunt::api::Request::SetSysctl { name, value }).expect("it is known");
            }
            Step::Traffic(of) => of.iter().for_each(|(server, counted)| self.count(server, counted)),
            Step::Tick => self.publisher.estimate(&self.rules, &self.counters),
            Step::Listed { .. } => {}
        }
    }

    /// Counts traffic of `rsN`, a part of it by each worker.
    fn count(&mut self, server: &str, counted: &[u64; 5]) {
        let last = 10 + server.strip_prefix("rs").and_then(|n| n.parse::<u8>().ok()).expect("a number");
        let mut dests = self.services.iter().flat_map(|service| &service.dests);
        let address = IpAddr::from([10, 1, 0, last]);
        let id = dests.find(|dest| dest.address == address).expect("it is there").id;
        for (n, total) in counted.iter().enumerate() {
            for part in [total / 3, total - total / 3] {
                let c = self.counters.worker(WorkerId(self.worker)).dest(id);
                let counter: &AtomicU64 =
                    [&c.conns, &c.in_packets, &c.out_packets, &c.in_bytes, &c.out_bytes][n];
                stats::add(counter, part);
                self.worker = 1 - self.worker;
            }
        }
    }

    fn listed(&self) -> BTreeMap<String, Stats> {
        let entries = self.rules.entries(None).expect("all are there");
        let mut listed = BTreeMap::new();
        for entry in self.publisher.counted(entries, &self.counters) {
            let ServiceKey::Address { address, port, .. } = entry.config.key else { panic!("no marks here") };
            listed.insert(format!("{address}:{port}"), entry.stats);
            for server in entry.servers {
                let key = server.config.key;
                listed.insert(format!("{}:{}", key.address, key.port), server.stats);
            }
        }
        listed
    }
}

#[test]
fn counters_and_rates_are_those_of_the_kernel() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../tests/golden/rates.json")).expect("recorded cases");
    let mut listings = 0;
    for Case { name, steps } in &cases {
        let mut director = Director::new();
        for (n, step) in steps.iter().enumerate() {
            director.take(step);
            let Step::Listed { rates, stats } = step else { continue };
            listings += 1;
            let listed = director.listed();
            let shown: BTreeMap<_, _> = listed.iter().map(|(at, stats)| (at.clone(), stats.rates)).collect();
            assert_eq!(shown, *rates, "{name}, step {n}: rates");
            let totals = |s: &Stats| [s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes];
            let shown: BTreeMap<_, _> = listed.iter().map(|(at, s)| (at.clone(), totals(s))).collect();
            assert!(stats.as_ref().is_none_or(|stats| *stats == shown), "{name}, step {n}: {shown:?}");
        }
    }
    assert_eq!((cases.len(), listings), (9, 108));
}

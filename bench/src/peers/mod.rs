//! `shunt-lab peers`: the director beside DPDK's testpmd and the kernel's own DNAT, on the lab's topology.
//!
//! ```text
//!   for each round, every second one backwards:
//!                    generator alone
//!                    for each driver: a loop that only sends, one that only hands on,
//!                    testpmd, nat, dr, tun, fullnat                           64 k flows, then one
//!                    nftables                                                 the same
//!   then, for each driver: a worker left alone, and woken
//! ```
//!
//! All take turns in each round, and every second round goes backwards: what disturbs the machine disturbs all, and where its pace drifts, who is measured first in one round
//! is last in the next. A ratio is of two turns of one round, which may be as far apart as a round is long; its median and spread are of the rounds' ratios. The director and its peers have a core, the generator the other: see [`ground`].

pub mod bare;
pub mod contender;
pub mod ground;
mod idle;
mod table;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::interrupt;
use crate::lab::{Backend, Mode, Progress};
use crate::report::{
    FIRST_PACKET, FIRST_PACKET_AWAKE, IDLE, Metric, PACKETS, Report, TO_NFTABLES, TO_TESTPMD, WAKE, Way,
    median_and_spread,
};
use bare::Task;
use contender::Contender;
use ground::{Ground, Sample};
use table::Limit;

/// All that is measured.
pub const METRICS: [Metric; 7] =
    [PACKETS, TO_TESTPMD, TO_NFTABLES, IDLE, FIRST_PACKET, FIRST_PACKET_AWAKE, WAKE];

/// How long it takes, and how much it says.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Turns of each.
    pub rounds: usize,
    /// Before each window, connections being made meanwhile.
    pub warm_up: Duration,
    /// Of each turn.
    pub window: Duration,
}

impl Plan {
    /// What figures are quoted from: about five minutes.
    pub const FULL: Self =
        Self { rounds: 5, warm_up: Duration::from_millis(300), window: Duration::from_millis(500) };
    /// Whether it works at all: some forty seconds.
    pub const QUICK: Self =
        Self { rounds: 1, warm_up: Duration::from_millis(100), window: Duration::from_millis(200) };

    /// How many times [`Progress::step`] will be called if nothing is skipped.
    pub fn steps(&self) -> usize {
        self.rounds * (1 + contenders().len()) + BACKENDS.len()
    }
}

const MODES: [Mode; 4] = [Mode::Nat, Mode::Dr, Mode::Tun, Mode::FullNat];
const BACKENDS: [Backend; 2] = [Backend::AfXdp, Backend::AfPacket];

/// Flows of a load: enough to miss every cache of first level, and the best case.
const FLOWS: [u32; 2] = [1 << 16, 1];

/// The generator's names in a report.
const GENERATOR: (&str, &str) = ("generator", "kernel");

/// Of a core's time, a tick's uncertainty.
const EVEN: f64 = 0.02;

/// The part of a core's time below which a figure says more of the machine than of who had so little of it.
const FULL_CORE: f64 = 0.8;

/// In the order of their turns; in every second round it is the other way round.
fn contenders() -> Vec<Contender> {
    let driven = BACKENDS.into_iter().flat_map(|backend| {
        let modes = MODES.into_iter().map(move |mode| Contender::Shunt(mode, backend));
        let bare = [Task::Sending, Task::HandingOn].map(|task| Contender::Bare(task, backend));
        bare.into_iter().chain([Contender::Testpmd(backend)]).chain(modes)
    });
    driven.chain([Contender::Nftables]).collect()
}

/// What was measured of one contender under one load, by round.
struct Series {
    contender: Contender,
    flows: u32,
    samples: Vec<Sample>,
}

/// Runs all of it; the text is for people.
pub fn compare(plan: &Plan, mut report: Report, progress: &mut dyn Progress) -> Result<(Report, String)> {
    let ground = Ground::new()?;
    let mut series: Vec<Series> = Vec::new();
    let mut alone: [Vec<f64>; 2] = Default::default();
    let mut present = contenders();
    present.retain(|&contender| match contender.is_missing() {
        None => true,
        Some(why) => {
            leave_out(&mut report, contender, &why);
            false
        }
    });

    for round in 1..=plan.rounds {
        for turn in turns(&present, round) {
            interrupt::check()?;
            let (mode, backend) = turn.map_or(GENERATOR, Contender::names);
            progress.step(&format!("round {round} of {}: {mode} over {backend}", plan.rounds));
            match turn {
                Some(contender) => measure(&ground, contender, plan, &mut series),
                None => generate(&ground, plan, &mut alone),
            }
            .with_context(|| format!("measuring {mode} over {backend}"))?;
        }
    }
    let mut rows = Vec::new();
    for ((flows, rates), place) in FLOWS.into_iter().zip(&alone).zip(0..) {
        let (mode, backend) = GENERATOR;
        report.add_for(flows.into(), Way { family: "ipv4", mode, backend }, PACKETS, rates);
        let generator = median_and_spread(rates).0;
        for contender in &present {
            let of = |wanted: Contender| {
                series.iter().find(|series| (series.contender, series.flows) == (wanted, flows))
            };
            let Some(own) = of(*contender) else { continue };
            let (mode, backend) = contender.names();
            let way = Way { family: "ipv4", mode, backend };
            let rates: Vec<f64> = own.samples.iter().map(Sample::rate).collect();
            let had: Vec<f64> = own.samples.iter().map(|sample| sample.had).collect();
            let (had, limit) = (median_and_spread(&had).0, limit(own));
            report.add_for(flows.into(), way, PACKETS, &rates);
            (report.last().core_share, report.last().limit) = (Some(had), Some(limit.name()));
            let mut ratios = [None, None];
            for ((metric, peer), ratio) in beside(*contender).zip(&mut ratios) {
                let Some(peer) = of(peer) else { continue };
                let pairs = own.samples.iter().zip(&peer.samples);
                let by_round: Vec<f64> = pairs.map(|(own, peer)| own.rate() / peer.rate()).collect();
                report.add_for(flows.into(), way, metric, &by_round);
                *ratio = Some(median_and_spread(&by_round));
            }
            rows.push((
                place,
                table::Row {
                    mode,
                    backend,
                    flows,
                    rate: median_and_spread(&rates),
                    had,
                    generator,
                    ratios,
                    limit,
                },
            ));
        }
    }
    rows.sort_by_key(|(place, row)| (row.backend, *place));
    let mut text = table::rates(rows.into_iter().map(|(_, row)| row));

    for backend in BACKENDS {
        interrupt::check()?;
        progress.step(&format!("a worker left alone, {}", backend.name()));
        let found = idle::measure(&ground, backend, false, plan.rounds)?;
        let way = Way { family: "ipv4", mode: Mode::Nat.name(), backend: backend.name() };
        let cpu: Vec<f64> = found.iter().map(|idle| idle.cpu_percent).collect();
        let first: Vec<f64> = found.iter().map(|idle| idle.first_packet_us).collect();
        report.add(way, IDLE, &cpu);
        let wake: Vec<f64> = found.iter().map(|idle| idle.wake_us).collect();
        report.add(way, FIRST_PACKET, &first);
        report.add(way, WAKE, &wake);
        text += &table::idle(backend.name(), &cpu, &first, &wake);
        match idle::measure(&ground, backend, true, plan.rounds) {
            Ok(found) => {
                let first: Vec<f64> = found.iter().map(|idle| idle.first_packet_us).collect();
                let wake: Vec<f64> = found.iter().map(|idle| idle.wake_us).collect();
                report.add(way, FIRST_PACKET_AWAKE, &first);
                text += &table::awake(&first, &wake);
            }
            Err(error) => {
                interrupt::check()?;
                let why = format!("not with --wake-within: {error:#}");
                progress.note(&why);
                report.skip_one(way, FIRST_PACKET_AWAKE, &why);
            }
        }
    }
    Ok((report, text))
}

/// Lists what would have been measured of one that is not there, also of others beside it.
fn leave_out(report: &mut Report, absent: Contender, why: &str) {
    let way = |contender: Contender| {
        let (mode, backend) = contender.names();
        Way { family: "ipv4", mode, backend }
    };
    report.skip_one(way(absent), PACKETS, why);
    for contender in contenders() {
        for (metric, peer) in beside(contender) {
            if peer == absent {
                report.skip_one(way(contender), metric, why);
            }
        }
    }
}

/// Who is held against whom.
fn beside(contender: Contender) -> impl Iterator<Item = (Metric, Contender)> {
    let peers = match contender {
        Contender::Shunt(_, backend) | Contender::Bare(_, backend) => {
            Some([(TO_TESTPMD, Contender::Testpmd(backend)), (TO_NFTABLES, Contender::Nftables)])
        }
        Contender::Testpmd(_) | Contender::Nftables => None,
    };
    peers.into_iter().flatten()
}

/// The turns of a round; `None` is the generator's alone.
fn turns(present: &[Contender], round: usize) -> Vec<Option<Contender>> {
    let mut turns: Vec<_> = std::iter::once(None).chain(present.iter().copied().map(Some)).collect();
    if round.is_multiple_of(2) {
        turns.reverse();
    }
    turns
}

/// The generator's turn: both loads, one after the other.
fn generate(ground: &Ground, plan: &Plan, alone: &mut [Vec<f64>; 2]) -> Result<()> {
    for (flows, rates) in FLOWS.into_iter().zip(alone) {
        rates.push(ground.generator_alone(flows, plan.warm_up, plan.window)?);
    }
    Ok(())
}

/// One turn of one contender: both loads, one after the other.
fn measure(ground: &Ground, contender: Contender, plan: &Plan, series: &mut Vec<Series>) -> Result<()> {
    let running = contender.start(ground)?;
    for flows in FLOWS {
        let sample = ground.measure(flows, plan.warm_up, plan.window, || running.times())?;
        let known = series.iter_mut().find(|series| (series.contender, series.flows) == (contender, flows));
        match known {
            Some(known) => known.samples.push(sample),
            None => series.push(Series { contender, flows, samples: vec![sample] }),
        }
    }
    running.stop()
}

/// What keeps a contender from forwarding more.
fn limit(series: &Series) -> Limit {
    let sum = |of: fn(&Sample) -> f64| series.samples.iter().map(of).sum::<f64>();
    let takes_part = !matches!(series.contender, Contender::Bare(Task::Sending, _));
    if takes_part && sum(|sample| sample.forwarded) > sum(|sample| sample.offered) * (1.0 - EVEN) {
        return Limit::Generator;
    }
    // All of them poll without rest, or are the kernel's own work: what they had not, somebody else did.
    let had = sum(|sample| sample.had) / series.samples.len() as f64;
    if had < FULL_CORE {
        return Limit::Core;
    }
    match series.contender {
        Contender::Nftables => Limit::Kernel(1.0),
        _ => {
            let [own, kernels] =
                [sum(|sample| sample.times.own as f64), sum(|sample| sample.times.kernels as f64)];
            let share = kernels / (own + kernels).max(1.0);
            if share > 0.5 { Limit::Kernel(share) } else { Limit::Director(1.0 - share) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn every_second_round_goes_backwards() {
        let present = contenders();
        let [first, mut second, third] = [1, 2, 3].map(|round| turns(&present, round));
        assert_eq!((first.len(), first[0]), (present.len() + 1, None));
        assert_ne!(first, second);
        second.reverse();
        assert_eq!([&second, &third], [&first, &first]);
    }

    #[test]
    fn what_is_not_there_is_missing_from_nothing_without_a_word() {
        let mut report = Report::new(Machine::describe("root"));
        leave_out(&mut report, Contender::Testpmd(Backend::AfXdp), "no testpmd");
        leave_out(&mut report, Contender::Nftables, "no nft");
        let count = |metric: Metric, backend: &str, why: &str| {
            let of = |s: &&crate::report::Skipped| {
                (s.metric, s.backend, s.why.as_str()) == (metric.name, backend, why)
            };
            report.skipped.iter().filter(of).count()
        };
        // Four modes and two loops.
        assert_eq!(count(TO_TESTPMD, "af-xdp", "no testpmd"), MODES.len() + 2);
        assert_eq!(count(TO_TESTPMD, "af-packet", "no testpmd"), 0);
        assert_eq!(count(TO_NFTABLES, "af-xdp", "no nft"), MODES.len() + 2);
        assert_eq!(count(TO_NFTABLES, "af-packet", "no nft"), MODES.len() + 2);
        assert_eq!((count(PACKETS, "af-xdp", "no testpmd"), count(PACKETS, "kernel", "no nft")), (1, 1));
    }
}

//! `shunt status --profile`: what the stages of a burst's life take, worker by worker, from the histograms that the director answers with.
//!
//! They have grown since it began; of two readings the later one less the earlier is what happened in between (`--over`).

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::api::{Per, Profile, Request, Response, StageProfile};
use crate::ipvsadm::Backend;

/// The profiles of all workers: since the director began, or over a time to come. `wait` lets it pass, and may connect anew: the director does not wait for long.
///
/// # Errors
/// When the director cannot be asked, or is another one after that time.
pub fn read<B: Backend>(
    director: &mut B,
    workers: usize,
    over: Option<Duration>,
    wait: impl FnOnce(&mut B, Duration) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Profile>> {
    let Some(time) = over else { return ask(director, workers) };
    let before = ask(director, workers)?;
    wait(director, time)?;
    let after = ask(director, workers)?;
    let taken = after.into_iter().zip(&before).map(|(after, before)| after.since(before));
    taken.collect::<Option<_>>().context("the director has begun anew meanwhile: ask again")
}

fn ask<B: Backend>(director: &mut B, workers: usize) -> anyhow::Result<Vec<Profile>> {
    (0..workers)
        .map(|worker| {
            let mut profile = None;
            director.request(&Request::Profile(worker), &mut |response| {
                if let Response::Profile(found) = response {
                    profile = Some(found);
                }
                Ok(())
            })?;
            match profile {
                Some(profile) => Ok(profile),
                None => bail!("the director does not say what worker {worker} takes"),
            }
        })
        .collect()
}

impl Profile {
    /// What has been added since an earlier reading. `None` where there is less now: it was another director's.
    fn since(self, earlier: &Profile) -> Option<Profile> {
        let stages = self.stages.into_iter().zip(&earlier.stages);
        Some(Profile {
            turns: self.turns.checked_sub(earlier.turns)?,
            bursts: self.bursts.checked_sub(earlier.bursts)?,
            packets: self.packets.checked_sub(earlier.packets)?,
            stages: stages.map(|(stage, earlier)| stage.since(earlier)).collect::<Option<_>>()?,
            ..self
        })
    }

    /// Cycles as nanoseconds.
    pub fn nanoseconds(&self, cycles: u64) -> f64 {
        cycles as f64 * 1e9 / self.cycles_per_second as f64
    }
}

impl StageProfile {
    fn since(self, earlier: &StageProfile) -> Option<StageProfile> {
        let before = |least| earlier.buckets.iter().find(|b| b.0 == least).map_or(0, |bucket| bucket.2);
        let left = |(least, most, n): &(u64, u64, u64)| Some((*least, *most, n.checked_sub(before(*least))?));
        let mut buckets = self.buckets.iter().map(left).collect::<Option<Vec<_>>>()?;
        buckets.retain(|bucket| bucket.2 > 0);
        Some(StageProfile { cycles: self.cycles.checked_sub(earlier.cycles)?, buckets, ..self })
    }

    /// Bursts or turns that it was timed in.
    pub fn samples(&self) -> u64 {
        self.buckets.iter().map(|(_, _, samples)| samples).sum()
    }

    /// The cycles that a part of the samples stays within, the part in hundredths: the middle of its bucket, and so true to a sixty-fourth.
    pub fn quantile(&self, hundredths: u64) -> u64 {
        let mut left = (self.samples() * hundredths).div_ceil(100);
        for (least, most, samples) in &self.buckets {
            if left <= *samples {
                return least + (most - least) / 2;
            }
            left -= samples;
        }
        0
    }

    /// The most cycles that a sample may have had.
    pub fn most(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, most, _)| *most)
    }
}

/// The table for people: since the director began, or over a time.
pub fn table(profiles: &[Profile], over: Option<Duration>) -> String {
    let mut text = String::new();
    for (worker, profile) in profiles.iter().enumerate() {
        if worker > 0 {
            text.push('\n');
        }
        of_worker(&mut text, worker, profile, over);
    }
    text
}

fn of_worker(text: &mut String, worker: usize, profile: &Profile, over: Option<Duration>) {
    let Profile { core, every, turns, bursts, packets, .. } = profile;
    let all: u64 = profile.stages.iter().map(|stage| stage.cycles).sum();
    let when = match over {
        None => "since it began".to_owned(),
        Some(time) => {
            // Of a sample of the turns, so that it may come out as a little more than all the time.
            let worked = profile.nanoseconds(all * u64::from(*every)) / time.as_nanos() as f64;
            format!("in {}, {:.0} % of it at work", humantime::format_duration(time), worked.min(1.0) * 100.0)
        }
    };
    // Writing to a string cannot fail.
    let _ = write!(text, "worker {worker}, core {core}, {when}: ");
    if *turns == 0 {
        let _ = writeln!(text, "no turn with work has been timed");
        return;
    }
    let _ = writeln!(text, "{turns} turns timed, one in {every}; {bursts} bursts, {packets} packets in them");
    let _ = writeln!(
        text,
        "{:<9} {:<5} {:>9} {:>10} {:>10} {:>12} {:>10} {:>6}",
        "stage", "of a", "samples", "median", "p99", "max", "ns/packet", "share"
    );
    let each = |cycles| match packets {
        0 => "-".to_owned(),
        _ => format!("{:.1}", profile.nanoseconds(cycles) / *packets as f64),
    };
    for stage in profile.stages.iter().filter(|stage| stage.samples() > 0) {
        let per = match stage.per {
            Per::Burst => "burst",
            Per::Turn => "turn",
        };
        let _ = writeln!(
            text,
            "{:<9} {per:<5} {:>9} {:>10} {:>10} {:>12} {:>10} {:>4.0} %",
            stage.stage,
            stage.samples(),
            stage.quantile(50),
            stage.quantile(99),
            stage.most(),
            each(stage.cycles),
            stage.cycles as f64 * 100.0 / all as f64,
        );
    }
    let _ = writeln!(text, "{:<58} {:>10}", "all", each(all));
}

/// What people are told below the table.
pub fn legend(profiles: &[Profile]) -> String {
    let rate = profiles.first().map_or(0.0, |profile| profile.cycles_per_second as f64 / 1e9);
    format!(
        "median, p99, max: cycles of the time-stamp counter, {rate:.2} a nanosecond; ns/packet: a stage's whole time by the packets of the timed bursts"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(cycles: u64, buckets: &[(u64, u64, u64)]) -> StageProfile {
        StageProfile { stage: "decide".to_owned(), per: Per::Burst, cycles, buckets: buckets.to_vec() }
    }

    fn profile(bursts: u64, stage: StageProfile) -> Profile {
        let (turns, packets) = (bursts, bursts * 10);
        let (core, every, cycles_per_second) = (3, 64, 2_000_000_000);
        Profile { core, every, cycles_per_second, turns, bursts, packets, stages: vec![stage] }
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let stage = stage(0, &[(8, 8, 50), (16, 17, 49), (100, 111, 1)]);
        assert_eq!([0, 50, 51, 99, 100].map(|part| stage.quantile(part)), [8, 8, 16, 16, 105]);
        assert_eq!((stage.samples(), stage.most()), (100, 111));
    }

    #[test]
    fn of_two_readings_the_later_less_the_earlier_is_left() {
        let before = profile(3, stage(50, &[(8, 8, 2), (16, 17, 1)]));
        let after = profile(5, stage(180, &[(8, 8, 2), (16, 17, 2), (100, 111, 1)]));
        let left = profile(2, stage(130, &[(16, 17, 1), (100, 111, 1)]));
        assert_eq!(after.clone().since(&before), Some(left));
        assert_eq!(before.since(&after), None, "a director that has begun anew");
    }

    #[test]
    fn a_stage_has_a_line_with_its_share_of_a_packet() {
        let two = [profile(2, stage(400, &[(192, 207, 2)])), profile(0, stage(0, &[]))];
        let told = table(&two, None);
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "worker 0, core 3, since it began: 2 turns timed, one in 64; 2 bursts, 20 packets in them",
                "stage     of a    samples     median        p99          max  ns/packet  share",
                "decide    burst         2        199        199          207       10.0  100 %",
                "all                                                              10.0",
                "",
                "worker 1, core 3, since it began: no turn with work has been timed",
            ]
        );
    }

    #[test]
    fn over_a_time_it_says_how_much_of_it_a_worker_worked() {
        // 400 cycles of one turn in 64 are 12.8 µs.
        let one = [profile(2, stage(400, &[(192, 207, 2)]))];
        let begins = |micros, with: &str| {
            let told = table(&one, Some(Duration::from_micros(micros)));
            assert!(told.starts_with(with), "{told}");
        };
        begins(128, "worker 0, core 3, in 128us, 10 % of it at work: 2 turns timed");
        begins(12, "worker 0, core 3, in 12us, 100 % of it at work: 2 turns timed");
    }
}

//! What it costs that the stages of some turns are timed: one turn that is and one that is not, in turns, as far apart as in a director at work.
//!
//! Single turns, because the median of these is steady on a machine where others work, too. What the turns that are not timed pay, a test of a flag for each lap, is in the
//! [budget](super::budget) of instructions.

use std::time::{Duration, Instant};

use anyhow::Result;
use shunt_dataplane::port::BURST;
use shunt_dataplane::profile::EVERY;

use super::{PROFILE, Row, Run, median, way};
use crate::interrupt;
use crate::stand::team::{Options, Team};

/// Turns of each kind in a repetition.
const ROUNDS: usize = 512;

pub(super) fn measure(run: &mut Run) -> Result<()> {
    (run.step)("the cost of the stage profile");
    // One worker for both: what another's memory happens to share in the caches makes more of a difference than this.
    let mut team = Team::new(Options::default())?;
    // The shorter a turn, the more a timed one costs beside it.
    for (portion, name) in [(BURST, "of 64 packets"), (1, "of one packet")] {
        team.serve_by(portion);
        let (mut ratios, mut turns) = (Vec::new(), Vec::new());
        for repetition in 0..=run.plan.repetitions {
            interrupt::check()?;
            let (mut with, mut without): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| round(&mut team)).unzip();
            if repetition > 0 {
                let [with, without] = [&mut with, &mut without].map(|turns| median_of(turns));
                ratios.push(1.0 + (with / without - 1.0) / f64::from(EVERY));
                turns.push((with, without));
            }
        }
        let (with, without): (Vec<_>, Vec<_>) = turns.into_iter().unzip();
        if portion == BURST {
            run.report.add(way("nat"), PROFILE, &ratios);
        }
        run.rows.push(Row {
            what: format!("stages timed ÷ not, bursts {name}"),
            is_met: median(&ratios) <= 1.01,
            values: ratios,
            digits: 4,
            beside: format!("one timed: {:.0} ns, not: {:.0}", median(&with), median(&without)),
            target: "≤ 1.01",
        });
    }
    Ok(())
}

/// As many turns as there are from one timed turn to the next. What the timed one took, and the one in the middle.
fn round(team: &mut Team) -> (Duration, Duration) {
    team.time();
    let timed = turn(team);
    (1..EVERY / 2).for_each(|_| team.turn());
    let untimed = turn(team);
    (EVERY / 2 + 1..EVERY).for_each(|_| team.turn());
    (timed, untimed)
}

fn turn(team: &mut Team) -> Duration {
    let start = Instant::now();
    team.turn();
    start.elapsed()
}

/// In nanoseconds.
fn median_of(turns: &mut [Duration]) -> f64 {
    turns.sort_unstable();
    turns[turns.len() / 2].as_nanos() as f64
}

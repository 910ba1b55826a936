//! What a second worker adds, also where every reply comes to the wrong one; beside it, what is added by a second that has nothing to do with the first, and how far the cores are from
//! each other. Virtual cores may be halves of one, or of different chips, and change that from one moment to the next.

use std::thread::scope;

use anyhow::Result;
use shunt_dataplane::worker::link::Handle;

use super::handing::Pair;
use super::{
    CORE_TO_CORE, HANDOFF, HANDOFF_FLOOR, Row, Run, SPEEDUP, SPEEDUP_APART, SPEEDUP_HANDOFF, distance,
    median, two_cores, way,
};
use crate::interrupt;
use crate::report::Metric;
use crate::stand::team::{Options, Team};

/// What is measured here.
const METRICS: [Metric; 6] = [SPEEDUP, SPEEDUP_HANDOFF, SPEEDUP_APART, HANDOFF, HANDOFF_FLOOR, CORE_TO_CORE];

pub(super) fn measure(run: &mut Run) -> Result<()> {
    (run.step)("two workers beside one");
    let Some(cores) = two_cores(&mut run.report, "nat", &METRICS)? else { return Ok(()) };
    let of = |workers| Team::new(Options { workers, ..Options::default() });
    let (mut each, mut two, mut crossed) = ([of(1)?, of(1)?], of(2)?, of(2)?);
    crossed.cross();
    let (mut keeping, mut handing_over) = (Pair::new(cores, false)?, Pair::new(cores, true)?);
    let (mut own, mut handed, mut rates, mut apart) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut longer, mut handing, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    // Short and many: a machine that lends its cores to others changes by the second.
    let window = run.plan.window / 2;
    for repetition in 0..=3 * run.plan.repetitions {
        interrupt::check()?;
        // One that was cut short is of a run that ends, at the next repetition or when all is over.
        let rest = |_: &[Handle]| drop(interrupt::sleep(window));
        let each_in_turn = each.iter_mut().zip(&cores).map(|(team, core)| team.work(&[*core], rest));
        // Cores need not be as fast as each other.
        let alone = each_in_turn.sum::<f64>() / 2.0;
        let (both, across) = (two.work(&cores, rest), crossed.work(&cores, rest));
        if repetition > 0 {
            rates.push(alone);
            own.push(both / alone);
            handed.push(across / alone);
            apart.push(side_by_side(&mut each, cores, rest) / alone);
            // Two workers' nanoseconds a packet; every second packet is a reply.
            longer.push(2.0 * (2e9 / across - 2e9 / both));
            handing.push(2.0 * (handing_over.run(window) - keeping.run(window)));
            lines.push(distance::between(cores));
        }
    }
    let beside = format!(
        "one: {:.1} M packets/s; two that share nothing: {:.2} ×",
        median(&rates) / 1e6,
        median(&apart)
    );
    for (metric, values) in METRICS.into_iter().zip([&own, &handed, &apart, &longer, &handing, &lines]) {
        run.report.add(way("nat"), metric, values);
    }
    run.rows.push(Row {
        what: "two workers ÷ one, own queues".to_owned(),
        is_met: median(&own) >= 1.9,
        values: own,
        digits: 2,
        beside,
        target: "≥ 1.9",
    });
    run.rows.push(Row {
        what: "two workers ÷ one, replies at the wrong one".to_owned(),
        is_met: median(&handed) >= 1.5,
        values: handed,
        digits: 2,
        beside: format!(
            "each {:.0} ns longer; handing over alone: {:.0}; core to core: {:.0}",
            median(&longer),
            median(&handing),
            median(&lines)
        ),
        target: "≥ 1.5",
    });
    Ok(())
}

/// What teams of one forward a second together, each on a core of its own, at once.
fn side_by_side(teams: &mut [Team; 2], cores: [usize; 2], rest: impl Fn(&[Handle]) + Copy + Send) -> f64 {
    scope(|threads| {
        let works =
            teams.iter_mut().zip(cores).map(|(team, core)| threads.spawn(move || team.work(&[core], rest)));
        let works: Vec<_> = works.collect();
        works.into_iter().map(|work| work.join().expect("workers do not panic")).sum()
    })
}

//! What a second worker adds, also where every reply comes to the wrong one.

use anyhow::Result;
use shunt_dataplane::worker::link::Handle;

use super::{Row, Run, SPEEDUP, SPEEDUP_HANDOFF, median, way};
use crate::interrupt;
use crate::machine;
use crate::stand::team::{Options, Team};

pub(super) fn measure(run: &mut Run) -> Result<()> {
    (run.step)("two workers beside one");
    let cores = machine::cores()?;
    let [.., first, second] = cores[..] else {
        for metric in [SPEEDUP, SPEEDUP_HANDOFF] {
            run.report.skip_one(way("nat"), metric, "there is one core, and a worker wants one of its own");
        }
        return Ok(());
    };
    let cores = [first, second];
    let of = |workers| Team::new(Options { workers, ..Options::default() });
    let (mut one, mut two, mut crossed) = (of(1)?, of(2)?, of(2)?);
    crossed.cross();
    let (mut own, mut handed, mut alone_rates) = (Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..=run.plan.repetitions {
        interrupt::check()?;
        let rest = |_: &[Handle]| std::thread::sleep(run.plan.window);
        let (alone, both, apart) =
            (one.work(&cores, rest), two.work(&cores, rest), crossed.work(&cores, rest));
        if repetition > 0 {
            alone_rates.push(alone);
            own.push(both / alone);
            handed.push(apart / alone);
        }
    }
    let handed_over = crossed.counters.totals().find(|(name, _)| *name == "frames.handed_off");
    let beside = format!("one: {:.1} M packets/s", median(&alone_rates) / 1e6);
    run.report.add(way("nat"), SPEEDUP, &own);
    run.report.add(way("nat"), SPEEDUP_HANDOFF, &handed);
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
        beside: handed_over.map_or_else(String::new, |(_, n)| format!("{:.0} M handed over", n as f64 / 1e6)),
        target: "≥ 1.5",
    });
    Ok(())
}

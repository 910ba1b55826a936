//! What a second worker adds, also where every reply comes to the wrong one; beside it, what a second core adds to a program that shares nothing, and how far the cores are from
//! each other. Virtual cores may be halves of one, or of different chips, and change that from one moment to the next.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use shunt_dataplane::worker::link::Handle;

use super::handing::Pair;
use super::{
    CORE_TO_CORE, HANDOFF, HANDOFF_FLOOR, Row, Run, SPEEDUP, SPEEDUP_BARE, SPEEDUP_HANDOFF, distance, median,
    two_cores, way,
};
use crate::interrupt;
use crate::machine;
use crate::stand::team::{Options, Team};

pub(super) fn measure(run: &mut Run) -> Result<()> {
    (run.step)("two workers beside one");
    let Some(cores) = two_cores(&mut run.report, "nat", &[SPEEDUP, SPEEDUP_HANDOFF])? else { return Ok(()) };
    let of = |workers| Team::new(Options { workers, ..Options::default() });
    let (mut one, mut two, mut crossed) = (of(1)?, of(2)?, of(2)?);
    crossed.cross();
    let (mut apart, mut handing_over) = (Pair::new(cores, false)?, Pair::new(cores, true)?);
    let (mut own, mut handed, mut alone_rates, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut longer, mut handing, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    // Short and many: a machine that lends its cores to others changes by the second.
    let window = run.plan.window / 2;
    for repetition in 0..=3 * run.plan.repetitions {
        interrupt::check()?;
        let rest = |_: &[Handle]| std::thread::sleep(window);
        let (alone, both, across) =
            (one.work(&cores, rest), two.work(&cores, rest), crossed.work(&cores, rest));
        if repetition > 0 {
            alone_rates.push(alone);
            own.push(both / alone);
            handed.push(across / alone);
            bare.push(loops(&cores, window) / loops(&cores[..1], window));
            // Two workers' nanoseconds a packet; every second packet is a reply.
            longer.push(2.0 * (2e9 / across - 2e9 / both));
            handing.push(2.0 * (handing_over.run(window) - apart.run(window)));
            lines.push(distance::between(cores));
        }
    }
    let beside =
        format!("one: {:.1} M packets/s; bare loops: {:.2} ×", median(&alone_rates) / 1e6, median(&bare));
    run.report.add(way("nat"), SPEEDUP, &own);
    run.report.add(way("nat"), SPEEDUP_HANDOFF, &handed);
    run.report.add(way("nat"), SPEEDUP_BARE, &bare);
    run.report.add(way("nat"), HANDOFF, &longer);
    run.report.add(way("nat"), HANDOFF_FLOOR, &handing);
    run.report.add(way("nat"), CORE_TO_CORE, &lines);
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

/// Rounds a second of a loop that needs a core's arithmetic and no memory, one on each core, together.
fn loops(cores: &[usize], window: Duration) -> f64 {
    let job = |(), stop: &AtomicBool| {
        // More chains than a core's multipliers can be kept busy with by half of it.
        let (mut chains, mut rounds) = ([1u64, 3, 5, 7, 9, 11, 13, 15], 0u64);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..1000 {
                chains = black_box(chains.map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7) ^ n));
            }
            rounds += 1;
        }
        rounds
    };
    let who = cores.iter().map(|core| (*core, ()));
    let rounds: u64 = machine::side_by_side(who, job, || std::thread::sleep(window)).iter().sum();
    rounds as f64 / window.as_secs_f64()
}

//! A packet of a connection that is there, by each mode, beside the floor.

use std::time::Duration;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shunt_dataplane::port::BURST;
use shunt_dataplane::service::Forwarding;

use super::floor::{Floor, TableFloor};
use super::{DIRECTOR, FLOOR, Plan, Row, Run, TABLE_FLOOR, TOIL_FLOOR, median, per_packet, way};
use crate::interrupt;
use crate::report::grouped;
use crate::stand::frames::FRAME;
use crate::stand::{CLIENTS, MODES, Stand};

/// Bursts of a slice, and slices of each in a repetition. What came before has driven all else from the caches and the processor's memory of pages: among ten million connections a slice
/// of 1,024 bursts is over before they are warm again, and says 48 ns where a director that nobody interrupts takes 36.
const SLICE: usize = 8192;
const SLICES: usize = 2;

/// Bytes of a connection by NAT, index included, as `bytes_per_connection` has it.
const BYTES_EACH: usize = 99;

/// Rounds of toil a burst that are tried first, and how often their number is corrected.
const FEW: usize = 200;
const TRIALS: usize = 5;

/// Connections up to which all modes' directors are there at once, and take turns. Of ten million each takes three gigabytes, with what is beside it.
const TOGETHER: u32 = 1_000_000;

/// The part of the others' floor by which one may differ. It is the same loop over the same memory for all: what makes it faster or slower made the director so, too.
const ODD: f64 = 0.25;

/// How many modes are measured in turns.
pub(super) fn modes_at_once(connections: u32) -> usize {
    if connections <= TOGETHER { MODES.len() } else { 1 }
}

pub(super) fn measure(run: &mut Run) -> Result<()> {
    // Of each mode as many as take as long as the director does where nothing is waited for: among the fewest connections, which come first.
    let mut rounds = [None; MODES.len()];
    for &connections in &run.plan.connections {
        let at_once = modes_at_once(connections);
        let mut cases = Vec::new();
        for (modes, rounds) in MODES.chunks(at_once).zip(rounds.chunks_mut(at_once)) {
            let names: Vec<_> = modes.iter().map(|(name, _)| *name).collect();
            (run.step)(&format!("{}, {connections} connections", names.join(", ")));
            cases.extend(in_turns(run.plan, modes, connections, rounds)?);
        }
        let floors: Vec<_> = cases.iter().map(|case| median(&case.floor)).collect();
        for ((name, forwarding), case) in MODES.into_iter().zip(cases) {
            let ground = median(&case.floor);
            if is_odd(ground, &floors) {
                run.report.note(format!(
                    "The floor of {name} among {} is {ground:.1} ns and the others' {:.1}: the machine was at another pace, and so are that line's figures.",
                    grouped(connections.into()),
                    median(&floors)
                ));
            }
            tell(run, name, forwarding, connections, case);
        }
    }
    Ok(())
}

/// Whether a floor is another than most.
fn is_odd(floor: f64, all: &[f64]) -> bool {
    (floor / median(all) - 1.0).abs() > ODD
}

fn tell(run: &mut Run, name: &'static str, forwarding: Forwarding, connections: u32, case: Beside) {
    let Beside { director, floor, table, toil } = case;
    run.report.add_for(connections.into(), way(name), DIRECTOR, &director);
    run.report.add_for(connections.into(), way(name), FLOOR, &floor);
    run.report.add_for(connections.into(), way(name), TABLE_FLOOR, &table);
    run.report.add_for(connections.into(), way(name), TOIL_FLOOR, &toil);
    let (ours, ground) = (median(&director), median(&floor));
    let ratio = ours / ground;
    let (target, is_met) = match (connections, forwarding) {
        (1, Forwarding::Route) => ("≤ 45 ns", ours <= 45.0),
        (1, _) => ("≤ 60 ns", ours <= 60.0),
        (1_000_000, Forwarding::Route) => ("≤ 2.0 × floor, ≤ 100 ns", ratio <= 2.0 && ours <= 100.0),
        (1_000_000, _) => ("≤ 2.0 × floor", ratio <= 2.0),
        (10_000_000, _) => ("≤ 2.5 × floor", ratio <= 2.5),
        _ => ("", true),
    };
    run.rows.push(Row {
        what: format!("{name} request among {}, ns", grouped(connections.into())),
        values: director,
        digits: 1,
        beside: format!(
            "floor {ground:.1}: {ratio:.1} ×; two lines {:.1}, and as much work {:.1}",
            median(&table),
            median(&toil)
        ),
        target,
        is_met,
    });
}

/// Nanoseconds a packet, for each repetition.
#[derive(Default)]
struct Beside {
    director: Vec<f64>,
    floor: Vec<f64>,
    table: Vec<f64>,
    toil: Vec<f64>,
}

/// Measures the directors of these modes and what is under them, all in turns. The `rounds` of toil of each are found out the first time.
fn in_turns(
    plan: &Plan,
    modes: &[(&str, Forwarding)],
    connections: u32,
    rounds: &mut [Option<usize>],
) -> Result<Vec<Beside>> {
    let stands = modes.iter().map(|(_, forwarding)| Stand::new(*forwarding, connections));
    let mut stands = stands.collect::<Result<Vec<_>>>()?;
    let count = connections as usize;
    let (mut floor, mut table) =
        (Floor::new(count * BYTES_EACH), TableFloor::new(count, count * (BYTES_EACH - 64)));
    let mut random = SmallRng::seed_from_u64(1);
    let mut cases: Vec<Beside> = stands.iter().map(|_| Beside::default()).collect();
    // The first repetition warms up.
    for repetition in 0..=plan.repetitions {
        for ((stand, rounds), case) in stands.iter_mut().zip(&mut *rounds).zip(&mut cases) {
            let rounds = match *rounds {
                Some(rounds) => rounds,
                None => *rounds.insert(rounds_like(stand, &mut table, &mut random, connections)?),
            };
            let mut times: [Vec<Duration>; 4] = Default::default();
            for _ in 0..SLICES {
                interrupt::check()?;
                for turn in 0..SLICE {
                    times[0].push(stand.burst(CLIENTS, turn, &burst(stand, &mut random, connections)));
                }
                for turn in 0..SLICE {
                    times[1].push(floor.burst(turn, &burst(stand, &mut random, connections)));
                }
                for (rounds, times) in [0, rounds].into_iter().zip(&mut times[2..]) {
                    interrupt::check()?;
                    table.toil(rounds);
                    for turn in 0..SLICE {
                        times.push(table.burst(turn, &burst(stand, &mut random, connections)));
                    }
                }
            }
            if repetition > 0 {
                let figures = [&mut case.director, &mut case.floor, &mut case.table, &mut case.toil];
                for (figures, times) in figures.into_iter().zip(&mut times) {
                    figures.push(per_packet(times, BURST));
                }
            }
        }
    }
    Ok(cases)
}

/// Rounds of toil that take as long as the director does.
fn rounds_like(
    stand: &mut Stand,
    table: &mut TableFloor,
    random: &mut SmallRng,
    connections: u32,
) -> Result<usize> {
    let mut rounds = FEW;
    for _ in 0..TRIALS {
        interrupt::check()?;
        let (mut director, mut idle, mut toiling) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..SLICE {
            let bytes = burst(stand, random, connections);
            director.push(stand.burst(CLIENTS, turn, &bytes));
            table.toil(0);
            idle.push(table.burst(turn, &bytes));
            table.toil(rounds);
            toiling.push(table.burst(turn, &bytes));
        }
        let [director, idle, toiling] =
            [director, idle, toiling].map(|mut times| per_packet(&mut times, BURST));
        rounds = (rounds as f64 * (director - idle) / (toiling - idle)).max(1.0) as usize;
    }
    Ok(rounds)
}

fn burst(stand: &Stand, random: &mut SmallRng, connections: u32) -> [[u8; FRAME]; BURST] {
    std::array::from_fn(|_| stand.request(random.random_range(0..connections)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_a_quarter_off_the_others_is_odd() {
        let floors = [3.0, 3.1, 4.0, 3.0];
        assert_eq!(floors.map(|floor| is_odd(floor, &floors)), [false, false, true, false]);
        assert!(is_odd(2.0, &[2.0, 3.0, 3.0, 3.0]));
    }

    #[test]
    fn modes_take_turns_where_memory_allows() {
        assert_eq!([1, 1_000_000, 10_000_000].map(modes_at_once), [MODES.len(), MODES.len(), 1]);
        let plan = Plan { repetitions: 1, ..Plan::full() };
        assert_eq!(plan.steps(), 1 + 1 + MODES.len() + 9);
    }
}

//! `shunt-lab core`: what the director itself costs, without NIC, kernel or generator, beside the floor under any program like it.
//!
//! Frames and tables are in memory. What is compared takes turns in slices of some milliseconds, and modes in each repetition, so that what disturbs the one disturbs the other. A
//! slice's figure is that of its median burst: a burst in which the scheduler gave the core to somebody else says nothing about the director.

pub mod budget;
mod distance;
mod floor;
mod handing;
mod packets;
mod pair;
mod profile;
mod publishing;
mod turnover;

use std::time::Duration;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::interrupt;
use crate::machine;
use crate::report::{Metric, Report, Way, median_and_spread, plus_minus};
use crate::stand::MODES;

/// From bytes to verdict.
pub const DIRECTOR: Metric = Metric::new("director_ns_per_packet", "ns");
/// What any program pays that looks up one line a packet in as much memory.
pub const FLOOR: Metric = Metric::new("floor_ns_per_packet", "ns");
/// What an index and an entry a connection ask of memory.
pub const TABLE_FLOOR: Metric = Metric::new("table_floor_ns_per_packet", "ns");
/// The same in a loop that computes besides, for as long as the director takes of one connection.
pub const TOIL_FLOOR: Metric = Metric::new("toil_floor_ns_per_packet", "ns");
/// UDP connections that begin and end: one divided by the sum of what each takes, in the median.
pub const INSERTS: Metric = Metric::new("udp_inserts_per_second", "connections/s");
/// Those of two workers ÷ those of one.
pub const INSERTS_SPEEDUP: Metric = Metric::new("two_worker_speedup_inserts", "ratio");
/// TCP connections from SYN to expiry, of ten packets: 64 connections at a time go through all ten, back to back.
pub const LIVES: Metric = Metric::new("tcp_lives_per_second", "connections/s");
/// Memory of a connection, index included.
pub const BYTES: Metric = Metric::new("bytes_per_connection", "bytes");
/// Two workers' packets a second ÷ one's.
pub const SPEEDUP: Metric = Metric::new("two_worker_speedup", "ratio");
/// The same where every reply comes to the worker that has not its connection.
pub const SPEEDUP_HANDOFF: Metric = Metric::new("two_worker_speedup_handoff", "ratio");
/// The same of two that share nothing, not even their services.
pub const SPEEDUP_APART: Metric = Metric::new("two_worker_speedup_apart", "ratio");
/// What a packet takes longer that comes to the wrong worker.
pub const HANDOFF: Metric = Metric::new("handoff_ns_per_packet", "ns");
/// What a frame takes longer in a loop that hands it over and decides nothing.
pub const HANDOFF_FLOOR: Metric = Metric::new("handoff_floor_ns_per_packet", "ns");
/// What a line takes from one core to the other.
pub const CORE_TO_CORE: Metric = Metric::new("core_to_core_ns", "ns");
/// From an edit's request until the worker, which is one and busy, obeys it.
pub const PUBLISH: Metric = Metric::new("publish_milliseconds", "ms");

/// What a worker's turns take whose stages are timed now and then ÷ what others take.
pub const PROFILE: Metric = Metric::new("profile_cost_ratio", "ratio");

/// All of them.
pub const METRICS: [Metric; 16] = [
    DIRECTOR,
    FLOOR,
    TABLE_FLOOR,
    TOIL_FLOOR,
    INSERTS,
    INSERTS_SPEEDUP,
    LIVES,
    BYTES,
    SPEEDUP,
    SPEEDUP_HANDOFF,
    SPEEDUP_APART,
    HANDOFF,
    HANDOFF_FLOOR,
    CORE_TO_CORE,
    PUBLISH,
    PROFILE,
];

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Repetitions of each.
    pub repetitions: usize,
    /// Connections among which packets are spread evenly.
    pub connections: Vec<u32>,
    /// Connections that begin and end in a repetition.
    pub turnover: u32,
    /// How long workers work in a repetition.
    pub window: Duration,
}

impl Plan {
    /// What the targets are about.
    pub fn full() -> Self {
        let connections = vec![1, 1_000_000, 10_000_000];
        Self { repetitions: 5, connections, turnover: 1_000_000, window: Duration::from_millis(500) }
    }

    /// Whether it works.
    pub fn quick() -> Self {
        let connections = vec![1, 100_000];
        Self { repetitions: 2, connections, turnover: 100_000, window: Duration::from_millis(100) }
    }

    /// Steps that [`measure`] tells of.
    pub fn steps(&self) -> usize {
        let groups = |connections: &u32| MODES.len().div_ceil(packets::modes_at_once(*connections));
        self.connections.iter().map(groups).sum::<usize>() + 9
    }
}

/// A row of the table: a measurement and what it is held against.
struct Row {
    what: String,
    values: Vec<f64>,
    digits: usize,
    beside: String,
    target: &'static str,
    is_met: bool,
}

/// What the measurements have in common: how much, what was found so far, whom to tell of progress.
struct Run<'a> {
    plan: &'a Plan,
    report: Report,
    rows: Vec<Row>,
    step: &'a mut dyn FnMut(&str),
}

/// What people are told below the table.
const NOTE: &str = "\nMedians, ± half the spread, of repetitions that took turns. A slice's figure is its median burst's, of 64 packets; \
                    requests are of\nso many connections, chosen evenly at random. \
                    Modes take turns, too, among up to a million; of more there is one director at a time.\n";

/// Measures all; gives the report, and the table for people.
///
/// # Errors
/// When memory, threads or namespaces cannot be had, or the user interrupts.
pub fn measure(plan: &Plan, report: Report, mut step: impl FnMut(&str)) -> Result<(Report, String)> {
    let mut run = Run { plan, report, rows: Vec::new(), step: &mut step };
    packets::measure(&mut run)?;
    turnover::measure(&mut run)?;
    pair::measure(&mut run)?;
    profile::measure(&mut run)?;
    publishing::measure(&mut run)?;
    interrupt::check()?;
    let notes: String = run.report.notes.iter().map(|note| format!("{note}\n")).collect();
    Ok((run.report, table(&run.rows).to_string() + NOTE + &notes))
}

fn way(mode: &'static str) -> Way {
    Way { family: "ipv4", mode, backend: "memory" }
}

/// The cores of two workers. Where there are none, these metrics are said to be skipped.
fn two_cores(report: &mut Report, name: &'static str, metrics: &[Metric]) -> Result<Option<[usize; 2]>> {
    if let [.., one, other] = machine::cores()?[..] {
        return Ok(Some([one, other]));
    }
    for metric in metrics {
        report.skip_one(way(name), *metric, "there is one core, and a worker wants one of its own");
    }
    Ok(None)
}

/// A figure's median.
fn median(values: &[f64]) -> f64 {
    median_and_spread(values).0
}

/// The median of what bursts took, in nanoseconds a packet.
fn per_packet(bursts: &mut [Duration], packets: usize) -> f64 {
    bursts.sort_unstable();
    bursts[bursts.len() / 2].as_nanos() as f64 / packets as f64
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "measured", "beside", "target", ""]);
    for row in rows {
        let (value, spread) = median_and_spread(&row.values);
        let digits = row.digits;
        let measured = format!("{value:.digits$}{}", plus_minus(spread));
        let verdict = if row.is_met { "met" } else { "missed" };
        let verdict = if row.target.is_empty() { "" } else { verdict };
        table.add_row([
            Cell::new(&row.what),
            Cell::new(measured).set_alignment(CellAlignment::Right),
            Cell::new(&row.beside).set_alignment(CellAlignment::Right),
            Cell::new(row.target),
            Cell::new(verdict),
        ]);
    }
    table
}

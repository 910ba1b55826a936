//! What a lab run found: the file for programs and the tables for people.
//!
//! A measurement is the median of its repetitions; its spread is (largest − smallest) ÷ median, and one alone
//! has none. What was not measured is listed with the reason, never left out. `docs/json.md` has the file's
//! form.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::machine::Machine;

/// Requests over connections that stay.
pub const REQUESTS: Metric =
    Metric { name: "http_requests_per_second", unit: "requests/s", heading: "HTTP\nrequests/s" };
/// Connections, each with one request.
pub const CONNECTIONS: Metric =
    Metric { name: "tcp_connections_per_second", unit: "connections/s", heading: "TCP\nconnections/s" };
/// The median time a request takes while few are under way.
pub const LATENCY_P50: Metric = Metric { name: "http_latency_p50_us", unit: "us", heading: "HTTP p50\nµs" };
/// The time 99 of 100 such requests stay below.
pub const LATENCY_P99: Metric = Metric { name: "http_latency_p99_us", unit: "us", heading: "HTTP p99\nµs" };
/// Smallest datagrams that arrive.
pub const DATAGRAMS: Metric =
    Metric { name: "udp_packets_per_second", unit: "packets/s", heading: "UDP\npackets/s" };

/// All that is measured, in the order of the table's columns.
pub const METRICS: [Metric; 5] = [REQUESTS, CONNECTIONS, LATENCY_P50, LATENCY_P99, DATAGRAMS];

/// As in [`Entry`], in the order of the tables.
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// The mode that others are compared with.
const DIRECT: &str = "direct";

/// Frames a second that a peer forwards, or the generator makes.
pub const PACKETS: Metric = Metric { name: "packets_per_second", unit: "packets/s", heading: "packets/s" };
/// The director's frames a second ÷ those of testpmd, over the same driver.
pub const TO_TESTPMD: Metric = Metric { name: "ratio_to_testpmd", unit: "ratio", heading: "÷ testpmd" };
/// The director's frames a second ÷ those of the kernel's DNAT.
pub const TO_NFTABLES: Metric = Metric { name: "ratio_to_nftables", unit: "ratio", heading: "÷ nftables" };
/// What a worker without traffic uses of its core.
pub const IDLE: Metric = Metric { name: "idle_cpu_percent", unit: "percent", heading: "idle CPU" };
/// How long the first frame after that takes through the director.
pub const FIRST_PACKET: Metric = Metric { name: "first_packet_us", unit: "us", heading: "first frame" };
/// The same, of a director that keeps the processors awake (`--wake-within 0`).
pub const FIRST_PACKET_AWAKE: Metric =
    Metric { name: "first_packet_awake_us", unit: "us", heading: "first frame, awake" };
/// How long any thread takes to wake on the same core.
pub const WAKE: Metric = Metric { name: "wake_us", unit: "us", heading: "a wake" };

/// A quiet machine's rates stay well below this spread.
const NOISY: f64 = 0.3;

/// The tables fit a terminal of this width.
const WIDTH: u16 = 100;

/// Something that can be measured.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name in the file.
    pub name: &'static str,
    /// Its unit in the file.
    pub unit: &'static str,
    heading: &'static str,
}

impl Metric {
    /// One that is no column of the lab's tables.
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, heading: "" }
    }
}

/// What was measured: how packets went, or were to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// As in [`Entry`].
    pub family: &'static str,
    /// As in [`Entry`].
    pub mode: &'static str,
    /// As in [`Entry`].
    pub backend: &'static str,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} over {}", self.family, self.mode, self.backend)
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// `nat`, `dr`, `tun`, `fullnat`, or `direct` for no director at all.
    pub mode: &'static str,
    /// `af-xdp`, `af-packet`, or `kernel` for no director at all.
    pub backend: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// A [`Metric`]'s name.
    pub metric: &'static str,
    /// The median.
    pub value: f64,
    /// What the value counts.
    pub unit: &'static str,
    /// (largest − smallest) ÷ median of the repetitions. `null` for one alone.
    pub spread: Option<f64>,
    /// How many there were.
    pub repetitions: usize,
    /// The median of the rounds' ratios to `direct`, of the same family. `null` where that was not measured.
    pub of_direct: Option<f64>,
    /// The spread of these ratios.
    pub of_direct_spread: Option<f64>,
    /// How many connections the packets were of, where that is what a measurement is about.
    pub connections: Option<u64>,
    /// The part of its core's time that forwarding had, where that was looked at.
    pub core_share: Option<f64>,
    /// What kept it from forwarding more, where that was looked at: `generator`, `core`, `kernel` or `own code`.
    pub limit: Option<&'static str>,
    /// By round.
    #[serde(skip)]
    values: Vec<f64>,
}

/// One measurement that was not made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skipped {
    /// As in [`Entry`].
    pub mode: &'static str,
    /// As in [`Entry`].
    pub backend: &'static str,
    /// As in [`Entry`].
    pub family: &'static str,
    /// As in [`Entry`].
    pub metric: &'static str,
    /// A sentence.
    pub why: String,
}

/// All of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of the file's form.
    pub schema: u32,
    /// What was measured.
    pub results: Vec<Entry>,
    /// Where.
    pub machine: Machine,
    /// What was not measured.
    pub skipped: Vec<Skipped>,
    /// What people should know besides, each once.
    pub notes: BTreeSet<String>,
}

impl Report {
    /// An empty one.
    pub fn new(machine: Machine) -> Self {
        Self { schema: 1, results: Vec::new(), machine, skipped: Vec::new(), notes: BTreeSet::new() }
    }

    /// Adds a measurement from its repetitions, of which there is at least one.
    pub fn add(&mut self, way: Way, metric: Metric, repetitions: &[f64]) {
        let (value, spread) = median_and_spread(repetitions);
        let Metric { name: metric, unit, .. } = metric;
        let Way { family, mode, backend } = way;
        let entry = Entry {
            mode,
            backend,
            family,
            metric,
            value,
            unit,
            spread,
            repetitions: repetitions.len(),
            of_direct: None,
            of_direct_spread: None,
            connections: None,
            core_share: None,
            limit: None,
            values: repetitions.to_vec(),
        };
        self.results.push(entry);
    }

    /// Adds a measurement about so many connections.
    pub fn add_for(&mut self, connections: u64, way: Way, metric: Metric, repetitions: &[f64]) {
        self.add(way, metric, repetitions);
        self.last().connections = Some(connections);
    }

    /// The measurement that was added last.
    ///
    /// # Panics
    /// When there is none.
    pub fn last(&mut self) -> &mut Entry {
        self.results.last_mut().expect("it was just added")
    }

    /// Adds something that people should know.
    pub fn note(&mut self, note: String) {
        self.notes.insert(note);
    }

    /// Says of each measurement what part it is of the one without a director, round by round: each round has one of both.
    pub fn relate_to_direct(&mut self) {
        let direct: Vec<_> = self.results.iter().filter(|entry| entry.mode == DIRECT).cloned().collect();
        for entry in &mut self.results {
            let peer = direct.iter().find(|d| (d.family, d.metric) == (entry.family, entry.metric));
            let Some(peer) = peer.filter(|peer| peer.values.iter().all(|value| *value > 0.0)) else {
                continue;
            };
            let ratios: Vec<_> =
                entry.values.iter().zip(&peer.values).map(|(own, direct)| own / direct).collect();
            let (ratio, spread) = median_and_spread(&ratios);
            (entry.of_direct, entry.of_direct_spread) = (Some(ratio), spread);
        }
    }

    /// Lists all metrics of the lab's tables as not measured by a way.
    pub fn skip(&mut self, way: Way, why: &str) {
        for metric in METRICS {
            self.skip_one(way, metric, why);
        }
    }

    /// Lists a metric as not measured.
    pub fn skip_one(&mut self, Way { family, mode, backend }: Way, metric: Metric, why: &str) {
        self.skipped.push(Skipped { mode, backend, family, metric: metric.name, why: why.to_owned() });
    }

    /// Whether the file for programs could be written, before anything is measured.
    ///
    /// # Errors
    /// Says why it could not.
    pub fn try_json(path: &Path) -> Result<()> {
        let is_new = !path.exists();
        let opened = fs::File::options().append(true).create(true).open(path);
        opened.with_context(|| format!("cannot write {}", path.display()))?;
        if is_new {
            // An interrupted run leaves none behind. A link is somebody's and stays; what is new is what it leads to.
            let made = fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
            fs::remove_file(&made).with_context(|| format!("cannot remove {}", made.display()))?;
        }
        Ok(())
    }

    /// Writes the file for programs.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_string_pretty(self).context("writing JSON")?;
        json.push('\n');
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))
    }

    /// The tables for people, one of each family, and what they do not show below them.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for family in FAMILIES {
            let rows: Vec<_> = self.rows().into_iter().filter(|way| way.family == family).collect();
            if !rows.is_empty() {
                text += &format!("{}\n", self.table(family, &rows));
            }
        }

        let Machine { kernel, cpu, cores, memory_mib, .. } = &self.machine;
        text += "Medians, ± half the spread.";
        if self.results.iter().any(|entry| entry.of_direct.is_some()) {
            text += " \"direct\" is client to server with no director: what the lab's own\n";
            text += "generators reach; the ratio is of the UDP packets to its, in the same round.";
            // With one core there is no second one to bring.
            if *cores > 1 {
                text += " A director can beat\nit: its worker brings a second core to the packet's way.";
            }
        }
        text.push('\n');
        let noisy = self.noisy();
        if !noisy.is_empty() {
            text += "Something else is at work on this machine. Measure on a quiet one, or take no ratio for good that these\n";
            text += &format!("are part of, as their rounds differ much: {}.\n", noisy.join("; "));
        }
        let plural = if *cores == 1 { "" } else { "s" };
        text += &format!("Measured on {cores} core{plural} of {cpu}, {memory_mib} MiB, Linux {kernel}.\n");
        let reasons: BTreeSet<_> = self.skipped.iter().map(|skipped| (skipped.way(), &skipped.why)).collect();
        for (way, why) in reasons {
            text += &format!("Not measured: {way}: {why}\n");
        }
        for note in &self.notes {
            text += &format!("{note}\n");
        }
        text
    }

    /// A line for each reason that something of `peers` or `core` was not measured, with all that it is the reason for.
    pub fn not_measured(&self) -> String {
        let reasons: BTreeSet<_> = self.skipped.iter().map(|skipped| &skipped.why).collect();
        let line = |why: &&String| {
            let mut metrics = BTreeMap::<_, BTreeSet<_>>::new();
            for skipped in self.skipped.iter().filter(|skipped| skipped.why == **why) {
                metrics
                    .entry(skipped.metric)
                    .or_default()
                    .insert(format!("{} over {}", skipped.mode, skipped.backend));
            }
            let named = metrics.into_iter().map(|(metric, ways)| {
                format!("{metric} ({})", ways.into_iter().collect::<Vec<_>>().join(", "))
            });
            format!("Not measured: {}: {why}\n", named.collect::<Vec<_>>().join("; "))
        };
        reasons.iter().map(line).collect()
    }

    fn table(&self, family: &str, rows: &[Way]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_width(WIDTH);
        let headings = METRICS.map(|metric| Cell::new(metric.heading).set_alignment(CellAlignment::Right));
        let first = [format!("{family}\nmode"), "\nbackend".to_owned()].map(Cell::new);
        let ratio = Cell::new("\nratio").set_alignment(CellAlignment::Right);
        table.set_header(first.into_iter().chain(headings).chain([ratio]));
        for &way in rows {
            let cells =
                METRICS.map(|metric| Cell::new(self.cell(way, metric)).set_alignment(CellAlignment::Right));
            let ratio = Cell::new(self.packets_of_direct(way)).set_alignment(CellAlignment::Right);
            table.add_row([way.mode, way.backend].map(Cell::new).into_iter().chain(cells).chain([ratio]));
        }
        // A blank between columns is enough, and all there is room for.
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        table
    }

    /// In the order they were measured.
    fn rows(&self) -> Vec<Way> {
        let mut rows = Vec::new();
        for way in self.results.iter().map(Entry::way) {
            if !rows.contains(&way) {
                rows.push(way);
            }
        }
        rows
    }

    fn cell(&self, way: Way, metric: Metric) -> String {
        let entry = self.entry(way, metric);
        entry.map_or_else(String::new, |entry| grouped(entry.value) + &plus_minus(entry.spread))
    }

    /// Packets a second, as a part of those without a director.
    fn packets_of_direct(&self, way: Way) -> String {
        let Some(entry) = self.entry(way, DATAGRAMS) else { return String::new() };
        // Of itself it is all in every round.
        let spread = entry.of_direct_spread.filter(|_| entry.mode != DIRECT);
        entry
            .of_direct
            .map_or_else(String::new, |ratio| format!("{:.0}%{}", ratio * 100.0, plus_minus(spread)))
    }

    /// What differs so much between rounds that its ratio says little, or that of all others of its family if it is direct. Percentiles of latency jump anyway.
    fn noisy(&self) -> Vec<String> {
        let noisy = |entry: &&Entry| {
            entry.of_direct.is_some()
                && entry.unit != LATENCY_P50.unit
                && entry.spread.is_some_and(|spread| spread > NOISY)
        };
        let mut ways: Vec<_> = self.results.iter().filter(noisy).map(Entry::way).collect();
        ways.sort_unstable();
        ways.dedup();
        ways.iter().map(Way::to_string).collect()
    }

    fn entry(&self, way: Way, metric: Metric) -> Option<&Entry> {
        self.results.iter().find(|entry| entry.way() == way && entry.metric == metric.name)
    }
}

impl Entry {
    fn way(&self) -> Way {
        Way { family: self.family, mode: self.mode, backend: self.backend }
    }
}

impl Skipped {
    fn way(&self) -> Way {
        Way { family: self.family, mode: self.mode, backend: self.backend }
    }
}

/// Of at least one number. The median of an even count is the mean of the two in the middle; one number has no spread.
pub(crate) fn median_and_spread(repetitions: &[f64]) -> (f64, Option<f64>) {
    let mut sorted = repetitions.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    let median = (lower + upper) / 2.0;
    let range = sorted[sorted.len() - 1] - sorted[0];
    let spread = if median == 0.0 { 0.0 } else { range / median };
    (median, (sorted.len() > 1).then_some(spread))
}

/// What stands behind a median for people: half its spread, if it has one.
pub(crate) fn plus_minus(spread: Option<f64>) -> String {
    spread.map_or_else(String::new, |spread| format!(" ±{:.0}%", spread * 50.0))
}

/// 1234567.8 as `1 234 568`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report() -> Report {
        let machine = Machine {
            kernel: "6.1".to_owned(),
            cpu: "A processor with a rather long name, as they have".to_owned(),
            cores: 2,
            memory_mib: 2048,
            architecture: "x86_64",
            privilege: "root",
        };
        let mut report = Report::new(machine);
        let modes = [("direct", "kernel"), ("nat", "af-xdp"), ("nat", "af-packet"), ("fullnat", "af-packet")];
        for family in ["ipv4", "ipv6"] {
            for (mode, backend) in modes {
                for metric in METRICS {
                    let values = match metric.unit {
                        "packets/s" => [1_234_567.0, 1_000_000.0, 1_345_678.0],
                        "us" => [1_234.0, 1_000.0, 1_345.0],
                        _ => [123_456.0, 100_000.0, 134_567.0],
                    };
                    report.add(Way { family, mode, backend }, metric, &values);
                }
            }
        }
        report.skip(Way { family: "ipv6", mode: "dr", backend: "af-xdp" }, "no reason");
        report.relate_to_direct();
        report
    }

    #[test]
    fn the_file_has_the_agreed_fields_and_no_others() {
        let file = serde_json::to_value(report()).expect("plain data becomes JSON");
        let keys = |value: &Value| {
            value.as_object().expect("an object").keys().map(String::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(keys(&file), "machine notes results schema skipped");
        assert_eq!(
            keys(&file["results"][0]),
            "backend connections core_share family limit metric mode of_direct of_direct_spread repetitions spread unit value"
        );
        assert_eq!(keys(&file["skipped"][0]), "backend family metric mode why");
        assert_eq!(file["results"].as_array().map(Vec::len), Some(40));
        assert_eq!(file["skipped"].as_array().map(Vec::len), Some(5));
        assert_eq!(
            file["results"][5],
            json!({"mode": "nat", "backend": "af-xdp", "family": "ipv4", "metric": "http_requests_per_second",
                   "value": 123_456.0, "unit": "requests/s", "spread": 34_567.0 / 123_456.0,
                   "repetitions": 3, "of_direct": 1.0, "of_direct_spread": 0.0, "connections": null,
                   "core_share": null, "limit": null})
        );
    }

    /// What docs/json.md says of the lab.
    fn told() -> &'static str {
        include_str!("../../docs/json.md").split_once("\n## The lab's results").expect("a section").1
    }

    /// The cells of its tables' rows whose first is this.
    fn rows_of(first: &str) -> impl Iterator<Item = Vec<String>> {
        let rows = told().lines().filter(move |line| line.starts_with(&format!("| {first} |")));
        rows.map(|line| line.split('|').map(|cell| cell.trim().replace('`', "")).collect())
    }

    #[test]
    fn the_document_has_the_files_members_and_no_others() {
        let mut report = report();
        report.note("a note".to_owned());
        let file = serde_json::to_value(report).expect("plain data becomes JSON");
        let block =
            told().split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let example: Value = serde_json::from_str(block).expect("JSON");
        let parts = |value: &Value| {
            [value, &value["results"][0], &value["machine"], &value["skipped"][0]]
                .map(|part| part.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>())
        };
        assert_eq!(parts(&example), parts(&file));
        for (part, members) in
            ["all", "a measurement", "the machine", "not measured"].iter().zip(parts(&file))
        {
            let names =
                rows_of(part).flat_map(|cells| cells[2].split(", ").map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(names.collect::<BTreeSet<_>>(), members, "{part}");
        }
    }

    #[test]
    fn the_document_has_every_metric_and_its_unit() {
        let told = |command| {
            rows_of(command).map(|cells| (cells[2].clone(), cells[3].clone())).collect::<BTreeSet<_>>()
        };
        let known = |metrics: &[Metric]| {
            metrics
                .iter()
                .map(|metric| (metric.name.to_owned(), metric.unit.to_owned()))
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(told("lab"), known(&METRICS));
        assert_eq!(told("core"), known(&crate::core::METRICS));
        assert_eq!(told("peers"), known(&crate::peers::METRICS));
    }

    #[test]
    fn the_table_fits_a_hundred_columns() {
        let text = report().to_text();
        let table = text.lines().take_while(|line| !line.starts_with("Medians"));
        assert!(table.clone().count() > 8, "{text}");
        for line in table {
            assert!(line.chars().count() <= usize::from(WIDTH), "{} columns: {line}", line.chars().count());
        }
        assert!(text.contains("1 234 567 ±14%"), "{text}");
        assert!(text.contains("Not measured: ipv6 by dr over af-xdp: no reason"), "{text}");
        // A line for each, none broken in two.
        let rows: Vec<_> = text.lines().filter(|line| line.contains('±') && line.contains('%')).collect();
        assert_eq!(rows.len(), 8, "{text}");
        assert!(rows.iter().all(|row| row.matches("±14%").count() >= METRICS.len()), "{text}");
    }

    #[test]
    fn ratios_are_to_direct_of_the_same_family_where_that_was_measured() {
        let mut report = report();
        report.results.clear();
        let way = |family, mode| Way { family, mode, backend: "af-xdp" };
        // The order is the user's.
        report.add(way("ipv4", "nat"), DATAGRAMS, &[50.0]);
        report.add(way("ipv6", "nat"), DATAGRAMS, &[50.0]);
        report.add(way("ipv4", "direct"), DATAGRAMS, &[200.0]);
        report.relate_to_direct();
        let ratios: Vec<_> = report.results.iter().map(|entry| entry.of_direct).collect();
        assert_eq!(ratios, [Some(0.25), None, Some(1.0)]);
        let text = report.to_text();
        assert!(text.contains(" 25% ") && text.contains(" 100% "), "{text}");
        assert!(!text.contains("±0"), "a single round has no spread: {text}");
        assert!(!text.contains("quiet one"), "{text}");
    }

    #[test]
    fn a_ratio_is_of_rounds_and_shows_its_uncertainty_and_who_is_noisy_is_named() {
        let mut report = report();
        report.results.clear();
        let way = |family, mode| Way { family, mode, backend: "af-xdp" };
        // The machine's pace doubles, and both go along with it.
        report.add(way("ipv4", "direct"), DATAGRAMS, &[100.0, 200.0, 210.0]);
        report.add(way("ipv4", "nat"), DATAGRAMS, &[50.0, 110.0, 105.0]);
        report.add(way("ipv6", "direct"), DATAGRAMS, &[100.0, 101.0]);
        report.add(way("ipv6", "nat"), DATAGRAMS, &[50.0]);
        // Of nothing.
        report.add(Way { family: "ipv4", mode: "nat", backend: "kernel" }, REQUESTS, &[1.0, 9.0]);
        report.relate_to_direct();
        let entry = &report.results[1];
        assert_eq!(entry.of_direct, Some(0.5));
        assert!(entry.of_direct_spread.is_some_and(|spread| (spread - 0.1).abs() < 1e-9), "{entry:?}");
        assert_eq!((report.results[3].of_direct, report.results[3].of_direct_spread), (Some(0.5), None));
        assert_eq!(report.noisy(), ["ipv4 by direct over af-xdp", "ipv4 by nat over af-xdp"]);
        let text = report.to_text();
        assert!(text.contains(" 50% ±5%") && text.contains(" 100% ") && text.contains("quiet one"), "{text}");
    }

    #[test]
    fn a_reason_is_told_once_with_all_that_was_not_measured_for_it() {
        let mut report = report();
        report.skipped.clear();
        for (mode, metric) in [("nat", DATAGRAMS), ("dr", DATAGRAMS), ("dr", REQUESTS)] {
            report.skip_one(Way { family: "ipv4", mode, backend: "memory" }, metric, "one core");
        }
        assert_eq!(
            report.not_measured(),
            "Not measured: http_requests_per_second (dr over memory); \
             udp_packets_per_second (dr over memory, nat over memory): one core\n"
        );
    }

    #[test]
    fn one_core_is_no_second_one() {
        let mut report = report();
        assert!(report.to_text().contains("a second core") && report.to_text().contains("on 2 cores of"));
        report.machine.cores = 1;
        let text = report.to_text();
        assert!(!text.contains("a second core") && text.contains("on 1 core of"), "{text}");
    }

    #[test]
    fn a_trial_leaves_no_file_behind_and_takes_no_link_away() {
        let directory = std::env::temp_dir().join(format!("shunt-lab-trial-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let [file, link] = ["results.json", "latest.json"].map(|name| directory.join(name));
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        for path in [&file, &link] {
            Report::try_json(path).expect("it can be written");
            assert!(!file.exists() && link.is_symlink(), "{}", path.display());
        }
        fs::write(&file, "{}").expect("it can be written");
        Report::try_json(&link).expect("it can be written");
        assert_eq!(fs::read_to_string(&link).expect("it is there"), "{}");
        fs::remove_dir_all(&directory).expect("it is there");
    }

    #[test]
    fn the_median_is_in_the_middle_and_one_value_has_no_spread() {
        assert_eq!(median_and_spread(&[3.0, 1.0, 2.0]), (2.0, Some(1.0)));
        assert_eq!(median_and_spread(&[4.0, 1.0]), (2.5, Some(1.2)));
        assert_eq!(median_and_spread(&[0.0, 0.0]), (0.0, Some(0.0)));
        assert_eq!(median_and_spread(&[5.0]), (5.0, None));
        assert_eq!((plus_minus(Some(0.2)).as_str(), plus_minus(None).as_str()), (" ±10%", ""));
    }
}

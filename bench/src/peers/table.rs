//! What `shunt-lab peers` tells people.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::report::{grouped, median_and_spread};

/// One line of the table of rates. Pairs are a median and its spread.
pub struct Row {
    pub mode: &'static str,
    pub backend: &'static str,
    pub flows: u32,
    pub rate: (f64, f64),
    /// What the generator alone does with as many flows.
    pub generator: f64,
    /// To testpmd, to nftables.
    pub ratios: [Option<(f64, f64)>; 2],
    /// The part of its core's time that it had.
    pub had: f64,
    pub limit: Limit,
}

/// What keeps a contender from forwarding more.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// It forwarded all there was.
    Generator,
    /// It had too little of its core: others were at work on the machine.
    Core,
    /// Its thread spends most of its time, this share, in the kernel: sending, where each frame is copied.
    Kernel(f64),
    /// Its thread spends most of its time, this share, in its own code.
    Director(f64),
}

/// The table of rates.
pub fn rates(rows: impl Iterator<Item = Row>) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_width(110);
    table.set_header([
        "mode",
        "backend",
        "flows",
        "packets/s",
        "core",
        "generator",
        "÷ testpmd",
        "÷ nftables",
        "limit",
    ]);
    for row in rows {
        let with_spread = |(value, spread): (f64, f64), value_text: String| {
            if value == 0.0 || spread == 0.0 {
                value_text
            } else {
                format!("{value_text} ±{:.0}%", spread * 50.0)
            }
        };
        let [testpmd, nftables] = row.ratios.map(|ratio| {
            ratio.map_or_else(String::new, |ratio| with_spread(ratio, format!("{:.2}", ratio.0)))
        });
        let limit = match row.limit {
            Limit::Generator => "generator".to_owned(),
            Limit::Core => "its core".to_owned(),
            Limit::Kernel(share) => format!("kernel {:.0}%", share * 100.0),
            Limit::Director(share) => format!("own code {:.0}%", share * 100.0),
        };
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(row.mode),
            Cell::new(row.backend),
            right(row.flows.to_string()),
            right(with_spread(row.rate, grouped(row.rate.0))),
            right(format!("{:.0}%", row.had * 100.0)),
            right(grouped(row.generator)),
            right(testpmd),
            right(nftables),
            Cell::new(limit),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    format!(
        "{table}\nMedians, ± half the spread; \"core\" is what forwarding had of its core, as far as the kernel accounts for it. Ratios are of neighbours in one round. \"generator\" is what it does alone, into a \
         program that drops; \"sending-alone\" what the kernel takes of a loop that does nothing but send by the same ports.\nThe limit is what the forwarding core is busy with: the kernel (sending copies each frame into a \
         socket buffer), or its own code. Where it is the core itself, others had too much of it for the figure to mean anything.\n"
    )
}

/// A line about a worker left alone while the processors stay awake.
pub fn awake(first: &[f64], wake: &[f64]) -> String {
    let ((first, spread), (wake, _)) = (median_and_spread(first), median_and_spread(wake));
    format!(
        "While no processor sleeps (--wake-within 0) it takes {first:.0} µs (±{:.0}%); to wake alone takes {wake:.0} µs.\n",
        spread * 50.0
    )
}

/// A line about a worker left alone.
pub fn idle(backend: &str, cpu: &[f64], first: &[f64], wake: &[f64]) -> String {
    let ((cpu, _), (first, spread)) = (median_and_spread(cpu), median_and_spread(first));
    let (wake, wakes_spread) = median_and_spread(wake);
    format!(
        "Left alone, over {backend}: {cpu:.2} % of a core; the first frame then takes {first:.0} µs (±{:.0}%) through the director. \
         To wake alone takes any thread there {wake:.0} µs (±{:.0}%).\n",
        spread * 50.0,
        wakes_spread * 50.0
    )
}

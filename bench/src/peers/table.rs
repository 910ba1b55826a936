//! What `shunt-lab peers` tells people.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::report::{grouped, median_and_spread, plus_minus};

/// One line of the table of rates. Pairs are a median and its spread, if it has one.
pub struct Row {
    pub mode: &'static str,
    pub backend: &'static str,
    pub flows: u32,
    pub rate: (f64, Option<f64>),
    /// What the generator alone does with as many flows.
    pub generator: f64,
    /// To testpmd, to nftables.
    pub ratios: [Option<(f64, Option<f64>)>; 2],
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

impl Limit {
    /// Its name in the file for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator",
            Self::Core => "core",
            Self::Kernel(_) => "kernel",
            Self::Director(_) => "own code",
        }
    }
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
        let [testpmd, nftables] = row.ratios.map(|ratio| {
            ratio.map_or_else(String::new, |(ratio, spread)| format!("{ratio:.2}{}", plus_minus(spread)))
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
            right(grouped(row.rate.0) + &plus_minus(row.rate.1)),
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
        "{table}\nMedians, ± half the spread; \"core\" is what forwarding had of its core, as far as the kernel accounts for it. Ratios are of two turns of one round, and every second round goes backwards, so that a machine whose pace drifts favours nobody. \"generator\" is what it does alone, into a \
         program that drops; \"sending-alone\" what the kernel takes of a loop that does nothing but send by the same ports, \"handing-on\" a loop that sends what it received as it is.\nThe limit is what the forwarding core is busy with: the kernel (sending copies each frame into a \
         socket buffer, and the far end receives it on the same core), or its own code. Where it is the core itself, others had too much of it for the figure to mean anything.\n"
    )
}

/// A time with its spread, in microseconds.
fn time(values: &[f64]) -> String {
    let (value, spread) = median_and_spread(values);
    format!("{value:.0} µs{}", plus_minus(spread))
}

/// A line about a worker left alone while the processors stay awake.
pub fn awake(first: &[f64], wake: &[f64]) -> String {
    let (first, wake) = (time(first), time(wake));
    format!("While no processor sleeps (--wake-within 0) it takes {first}; to wake alone takes {wake}.\n")
}

/// A line about a worker left alone.
pub fn idle(backend: &str, cpu: &[f64], first: &[f64], wake: &[f64]) -> String {
    let (cpu, first, wake) = (median_and_spread(cpu).0, time(first), time(wake));
    format!(
        "Left alone, over {backend}: {cpu:.2} % of a core; the first frame then takes {first} through the director. \
         To wake alone takes any thread there {wake}.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_shown_without_a_spread() {
        let row = || Row {
            mode: "nat",
            backend: "af-xdp",
            flows: 1,
            rate: median_and_spread(&[1000.0]),
            generator: 5000.0,
            ratios: [Some(median_and_spread(&[0.5])), None],
            had: 1.0,
            limit: Limit::Kernel(0.9),
        };
        let text = rates(std::iter::once(row()))
            + &awake(&[80.0], &[70.0])
            + &idle("af-xdp", &[0.1], &[90.0], &[70.0]);
        assert!(text.contains("1 000") && text.contains("0.50") && !text.contains("±0"), "{text}");
        let two = Row { rate: median_and_spread(&[1000.0, 1000.0]), ..row() };
        assert!(rates(std::iter::once(two)).contains("1 000 ±0%"));
        assert!(awake(&[80.0, 120.0], &[70.0]).contains("100 µs ±20%"));
    }
}

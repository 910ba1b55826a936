//! `shunt-lab`: forwarding modes compared on this machine, with one command and nothing but this binary.
//!
//! The same binary plays several parts. Without a hidden first word it is the lab. `director ARGS…` is shunt
//! itself, tied to the namespace it was started in; `child PROGRAM ARGS…` ties any program that way; `inside
//! PROGRAM ARGS…` runs one with the right to make namespaces. The parts are told apart before anything else
//! happens, as namespaces must be entered before the first thread.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use shunt_bench::lab::{self, Backend, Family, Mode, Plan, Progress};
use shunt_bench::machine::{Machine, cores};
use shunt_bench::privilege::{self, Privilege};
use shunt_bench::report::Report;
use shunt_bench::{core, interrupt, namespace::tie_to_keeper, peers};

/// Compares shunt's forwarding modes and backends on this machine: real HTTP and UDP through a real director
/// in network namespaces. Takes some two minutes, leaves nothing behind. Without root it uses a user
/// namespace and cannot measure AF_XDP.
#[derive(Parser)]
#[command(name = "shunt-lab", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Comparison>,
    #[command(flatten)]
    options: Options,
}

/// What else is measured.
#[derive(Subcommand)]
enum Comparison {
    Core(CoreOptions),
    Peers(PeerOptions),
}

#[derive(Args)]
struct Options {
    /// One short round of each: does it work at all?
    #[arg(long)]
    quick: bool,

    /// Also write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measure only these modes
    #[arg(long, value_delimiter = ',', default_value = "direct,nat,dr,tun,fullnat")]
    mode: Vec<Mode>,

    /// Measure only these address families
    #[arg(long, value_delimiter = ',', default_value = "ipv4,ipv6")]
    family: Vec<Family>,

    /// Measure only these backends
    #[arg(long, value_delimiter = ',', default_value = "af-xdp,af-packet")]
    backend: Vec<Backend>,

    /// Worker threads of the director, one core and one queue per interface each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
}

/// Rounds and window of the full comparison. 5 cases (IPv4 by NAT and DR, and direct) of 3 rounds and 13 of 2 are 41
/// rounds of 4 loads of 0.65 s with warm-up: 107 s, and some twenty for what is around them. 500 ms are hundreds of
/// scheduler ticks; three rounds are the fewest that have a median and a spread, two have a spread.
const ROUNDS: usize = 3;
const FEWER_ROUNDS: usize = 2;
const WINDOW: Duration = Duration::from_millis(500);

/// And of `--quick`, half a minute at most.
const QUICK_ROUNDS: usize = 1;
const QUICK_WINDOW: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let part = words.next().unwrap_or_default();
    let outcome = match part.to_str() {
        Some("director") => tie_to_keeper().map(|()| run_director(words.collect())),
        Some("child") => tie_to_keeper().and_then(|()| run_program(words.collect())),
        Some("inside") => return inside(words.collect()),
        Some("burst") => {
            return counted(&words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>());
        }
        _ => compare(&Arguments::parse()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shunt-lab: {error:#}");
            // The customary code of a program that a signal ended.
            ExitCode::from(interrupt::requested().map_or(1, |signal| 128u8.saturating_add(signal as u8)))
        }
    }
}

fn compare(arguments: &Arguments) -> Result<ExitCode> {
    let json = match &arguments.command {
        Some(Comparison::Core(options)) => &options.json,
        Some(Comparison::Peers(options)) => &options.json,
        None => &arguments.options.json,
    };
    json.as_deref().map_or(Ok(()), Report::try_json)?;
    match &arguments.command {
        Some(Comparison::Core(options)) => run_core(options),
        Some(Comparison::Peers(options)) => run_peers(options),
        None => run_lab(&arguments.options),
    }
}

/// Compares the director with its peers: DPDK's testpmd over the same drivers, the kernel's DNAT by nftables. Small packets, one core for
/// the director and one for the generator. Takes some five minutes; wants root.
#[derive(Args)]
struct PeerOptions {
    /// One short round of each: does it work at all?
    #[arg(long)]
    quick: bool,

    /// Turns of each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// How long each is measured in a turn
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(LEAST_WINDOW..))]
    window: Option<u64>,

    /// Also write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// In milliseconds. The generator sends for as long at a time; what comes out in less says more of when that began.
const LEAST_WINDOW: u64 = 50;

fn run_peers(options: &PeerOptions) -> Result<ExitCode> {
    if privilege::obtain()? != Privilege::Root {
        bail!("peers are measured over AF_XDP, and with frames that the kernel makes: run as root");
    }
    interrupt::listen()?;
    let mut plan = if options.quick { peers::Plan::QUICK } else { peers::Plan::FULL };
    plan.rounds = options.rounds.map_or(plan.rounds, usize::from);
    plan.window = options.window.map_or(plan.window, Duration::from_millis);
    let mut progress = Display::new();
    progress.begin(plan.steps());
    let (report, text) =
        peers::compare(&plan, Report::new(Machine::describe(Privilege::Root.name())), &mut progress)?;
    progress.end();
    print!("{text}");
    print!("{}", report.not_measured());
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the director itself, without NIC, kernel or generator: nanoseconds a packet beside the floor, new connections, two workers, a
/// publication. Takes some two minutes and three gigabytes.
#[derive(Args)]
struct CoreOptions {
    /// Two short rounds of each, of fewer connections: does it work at all?
    #[arg(long)]
    quick: bool,

    /// Instead, count instructions a packet with valgrind, and fail where they are more than was recorded
    #[arg(long, conflicts_with_all = ["quick", "json"])]
    budget: bool,

    /// Also write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn run_core(options: &CoreOptions) -> Result<ExitCode> {
    interrupt::listen()?;
    if options.budget {
        return Ok(if core::budget::check()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let plan = if options.quick { core::Plan::quick() } else { core::Plan::full() };
    let mut progress = Display::new();
    progress.begin(plan.steps());
    let report = Report::new(Machine::describe(privilege::held()?));
    let (report, text) = core::measure(&plan, report, |doing| progress.step(doing))?;
    progress.end();
    print!("{text}");
    print!("{}", report.not_measured());
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn run_lab(options: &Options) -> Result<ExitCode> {
    let privilege = privilege::obtain()?;
    interrupt::listen()?;
    let cores = cores()?.len();
    if usize::from(options.workers) > cores {
        bail!("--workers {}: there are {cores} cores to use here", options.workers);
    }

    let mut progress = Display::new();
    if privilege == Privilege::UserNamespace {
        progress.note(
            "Not root of the machine, so in a user namespace: AF_PACKET can be measured, AF_XDP cannot.",
        );
    }
    let (repetitions, fewer, window) = if options.quick {
        (QUICK_ROUNDS, QUICK_ROUNDS, QUICK_WINDOW)
    } else {
        (ROUNDS, FEWER_ROUNDS, WINDOW)
    };
    let plan = Plan {
        families: each_once(&options.family),
        modes: each_once(&options.mode),
        backends: each_once(&options.backend),
        workers: options.workers.into(),
        repetitions,
        fewer,
        window,
    };
    progress.begin(plan.steps());
    let report =
        lab::compare(&plan, privilege, Report::new(Machine::describe(privilege.name())), &mut progress)?;
    progress.end();

    print!("{}", report.to_text());
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if report.results.is_empty() {
        bail!("nothing could be measured");
    }
    Ok(ExitCode::SUCCESS)
}

/// In the order they were named first: one that is named twice is measured once.
fn each_once<T: Copy + PartialEq>(named: &[T]) -> Vec<T> {
    let mut each = Vec::new();
    for one in named {
        if !each.contains(one) {
            each.push(*one);
        }
    }
    each
}

/// Is shunt: the words are those of its command line, without the program's name.
fn run_director(words: Vec<OsString>) -> ExitCode {
    shunt::cli::main_with(std::iter::once("shunt".into()).chain(words).collect())
}

fn run_program(words: Vec<OsString>) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;

    let (program, args) = words.split_first().context("no program named")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("running {}", program.display()))
}

/// Is what the lab counts the instructions of.
fn counted(words: &[String]) -> ExitCode {
    match core::budget::run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shunt-lab burst: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn inside(words: Vec<OsString>) -> ExitCode {
    let Some((program, args)) = words.split_first() else {
        eprintln!("shunt-lab inside: no program named");
        return ExitCode::FAILURE;
    };
    let mut command = Command::new(program);
    command.args(args);
    match privilege::exec_inside(command) {
        Ok(error) => {
            eprintln!("shunt-lab: running {}: {error}", program.display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(privilege::REFUSED)
        }
    }
}

/// A bar on a terminal, lines elsewhere.
struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = std::io::stdout().is_terminal().then(|| ProgressBar::new(0).with_style(style));
        Self { bar }
    }

    fn begin(&self, steps: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(steps as u64);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn step(&mut self, doing: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(doing.to_owned());
                bar.inc(1);
            }
            None => println!("{doing}"),
        }
    }

    fn note(&mut self, note: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{note}")),
            None => println!("{note}"),
        }
    }
}

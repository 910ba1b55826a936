//! The comparison: each forwarding mode over each backend, under the same loads, beside no director at all.
//!
//! ```text
//!  for each case (direct; nat, dr × af-xdp, af-packet):
//!      a fresh topology ─▶ two servers ─▶ the director, its rules typed as an operator types them
//!      repeat: keep-alive requests, new connections, latency of few, small datagrams
//!      the director must still run, and stop well
//! ```
//!
//! A case that gives a wrong answer, loses a server or crashes the director ends the run with an error: its
//! speed is of no interest. A backend that cannot *start* on this machine is skipped, in the director's own
//! words.
//!
//! Cores. Workers get the last cores; clients and servers are left to the scheduler, which on two cores does
//! better than any fixed place: a veth carries a frame to the far end's socket on the sender's core, so half
//! of "the server's work" is done by the worker.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::director::Director;
use crate::interrupt;
use crate::machine;
use crate::privilege::Privilege;
use crate::report::{CONNECTIONS, DATAGRAMS, LATENCY_P50, LATENCY_P99, METRICS, Metric, REQUESTS, Report};
use crate::topology::{self, Options, SERVERS, Topology, VIP, client, server, server_back};
use crate::traffic::server::Server;
use crate::traffic::{DISCARD_PORT, HTTP_PORT, Sources, http, udp};

/// A way to forward, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// No director: client to server over the back network.
    Direct,
    /// Masquerading, both ways through the director.
    Nat,
    /// Direct routing, replies past the director.
    Dr,
}

impl Mode {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nat => "nat",
            Self::Dr => "dr",
        }
    }
}

/// How the director is joined to its interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// AF_XDP sockets.
    AfXdp,
    /// AF_PACKET rings.
    AfPacket,
}

impl Backend {
    /// Its name in reports and on shunt's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af-xdp",
            Self::AfPacket => "af-packet",
        }
    }
}

/// What to compare, and how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub modes: Vec<Mode>,
    /// In this order, for each mode but direct.
    pub backends: Vec<Backend>,
    /// Worker threads of the director, and queues of each interface.
    pub workers: usize,
    /// Of each load.
    pub repetitions: usize,
    /// Of each load.
    pub window: Duration,
}

impl Plan {
    /// How many times [`Progress::step`] will be called if nothing is skipped.
    pub fn steps(&self) -> usize {
        self.cases().len() * self.repetitions * LOADS.len()
    }

    fn cases(&self) -> Vec<(Mode, Option<Backend>)> {
        let each = |&mode: &Mode| match mode {
            Mode::Direct => vec![(mode, None)],
            _ => self.backends.iter().map(|&backend| (mode, Some(backend))).collect(),
        };
        self.modes.iter().flat_map(each).collect()
    }
}

/// Who is told how far the run is.
pub trait Progress {
    /// A load is being put on.
    fn step(&mut self, doing: &str);
    /// Something a reader of the results should know.
    fn note(&mut self, note: &str);
}

/// The loads, in the order they are put on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Requests a second over connections that stay.
    Requests,
    /// Connections a second.
    Connections,
    /// Latency with few requests under way.
    Latency,
    /// Small datagrams a second.
    Datagrams,
}

const LOADS: [Load; 4] = [Load::Requests, Load::Connections, Load::Latency, Load::Datagrams];

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "HTTP requests",
            Self::Connections => "TCP connections",
            Self::Latency => "HTTP latency",
            Self::Datagrams => "UDP packets",
        }
    }
}

/// Enough requests under way that no queue on the path runs empty on two cores; more only adds latency.
const MANY: usize = 64;
/// One for each server, so that the latency is the path's and not a queue's.
const FEW: usize = SERVERS;
/// Datagrams under way at most. Half a ring of the usual 1024 descriptors, so that a ring that overflows is
/// the director's doing.
const WINDOW: u64 = 512;
/// Flows of datagrams; both servers get half of them by any fair scheduler.
const FLOWS: usize = 16;
/// Before each window.
const WARM_UP: Duration = Duration::from_millis(150);

/// More than this fraction of datagrams lost is worth a note: the window should have prevented it.
const NOTABLE_LOSS: f64 = 0.01;

/// Runs the whole comparison.
pub fn compare(
    plan: &Plan,
    privilege: Privilege,
    mut report: Report,
    progress: &mut dyn Progress,
) -> Result<Report> {
    for (mode, backend) in plan.cases() {
        let name = backend.map_or("kernel", Backend::name);
        if backend == Some(Backend::AfXdp) && privilege == Privilege::UserNamespace {
            report.skip(
                mode.name(),
                name,
                "loading XDP programs (bpf) is refused in a user namespace; run as root",
            );
            continue;
        }
        let what = format!("{} over {name}", mode.name());
        Case { mode, backend, plan }
            .measure(&mut report, progress)
            .with_context(|| format!("measuring {what}"))?;
    }
    Ok(report)
}

struct Case<'p> {
    mode: Mode,
    backend: Option<Backend>,
    plan: &'p Plan,
}

impl Case<'_> {
    fn measure(&self, report: &mut Report, progress: &mut dyn Progress) -> Result<()> {
        let workers = self.plan.workers;
        let topology =
            Topology::new(Options { queues: u32::try_from(workers)? }).context("building the topology")?;
        let servers = topology.start_servers().context("starting the servers")?;

        let mut director = None;
        if let Some(backend) = self.backend {
            match self.start_director(&topology, backend) {
                Ok(started) => director = Some(started),
                Err(error) => {
                    interrupt::check()?;
                    report.skip(self.mode.name(), backend.name(), &format!("{error:#}"));
                    return Ok(());
                }
            }
        }
        if let Some(director) = &director {
            self.load_rules(director).context("loading the rules")?;
        }

        let sources = Sources::new((0..topology::CLIENTS).map(|n| client(n).into()));
        let stage = Stage { topology: &topology, servers, sources };
        if let Err(error) = self.put_loads_on(&stage, report, progress) {
            // The end of the director explains any other trouble.
            interrupt::check()?;
            director.as_mut().map_or(Ok(()), Director::check)?;
            return Err(error);
        }
        for server in stage.servers {
            server.stop().context("a server failed")?;
        }
        if let Some(director) = director {
            director.stop()?;
        }
        Ok(())
    }

    fn start_director<'t>(&self, topology: &'t Topology, backend: Backend) -> Result<Director<'t>> {
        let cores = machine::cores()?;
        let workers = cores.len().saturating_sub(self.plan.workers)..;
        let list: Vec<_> = cores[workers].iter().map(usize::to_string).collect();
        topology.start_director(&["--backend", backend.name(), "--cores", &list.join(",")])
    }

    /// As in any LVS tutorial.
    fn load_rules(&self, director: &Director) -> Result<()> {
        let forwarding = if self.mode == Mode::Nat { "-m" } else { "-g" };
        for (protocol, port) in [("-t", HTTP_PORT), ("-u", DISCARD_PORT)] {
            let service = format!("{VIP}:{port}");
            director.ipvsadm(&["-A", protocol, &service, "-s", "rr"])?;
            for n in 0..SERVERS {
                let server = format!("{}:{port}", server(n));
                director.ipvsadm(&["-a", protocol, &service, "-r", &server, forwarding])?;
            }
        }
        Ok(())
    }

    fn put_loads_on(&self, stage: &Stage, report: &mut Report, progress: &mut dyn Progress) -> Result<()> {
        let backend = self.backend.map_or("kernel", Backend::name);
        let mut samples: Vec<Sample> = Vec::new();
        for round in 1..=self.plan.repetitions {
            for load in LOADS {
                interrupt::check()?;
                let (mode, of) = (self.mode.name(), self.plan.repetitions);
                progress.step(&format!("{mode} over {backend}, round {round} of {of}: {}", load.name()));
                let taken = self.put_on(load, stage).with_context(|| format!("load: {}", load.name()))?;
                samples.extend(taken);
            }
        }

        for metric in METRICS {
            let values: Vec<f64> =
                samples.iter().filter(|sample| sample.metric.name == metric.name).map(|s| s.value).collect();
            report.add(self.mode.name(), backend, metric, &values);
        }
        let loss = samples.iter().map(|sample| sample.loss).fold(0.0, f64::max);
        if loss > NOTABLE_LOSS {
            let mode = self.mode.name();
            progress.note(&format!(
                "{mode} over {backend}: up to {:.1} % of the datagrams were lost",
                loss * 100.0
            ));
        }
        Ok(())
    }

    /// Puts one load on once.
    fn put_on(&self, load: Load, stage: &Stage) -> Result<Vec<Sample>> {
        let sample = |metric, value| Sample { metric, value, loss: 0.0 };
        Ok(match load {
            Load::Requests | Load::Connections => {
                let (metric, keep_alive) =
                    if load == Load::Requests { (REQUESTS, true) } else { (CONNECTIONS, false) };
                let outcome = self.http(stage, MANY, keep_alive)?;
                both_took_part(outcome.answers)?;
                vec![sample(metric, outcome.rate())]
            }
            // Two connections may meet at one server: each worker has a round robin of its own.
            Load::Latency => {
                let latency = self.http(stage, FEW, true)?.latency;
                let at = |quantile| latency.value_at_quantile(quantile) as f64;
                vec![sample(LATENCY_P50, at(0.50)), sample(LATENCY_P99, at(0.99))]
            }
            Load::Datagrams => {
                let outcome = self.udp(stage)?;
                both_took_part(outcome.received)?;
                vec![Sample { metric: DATAGRAMS, value: outcome.rate(), loss: outcome.loss }]
            }
        })
    }

    fn http(&self, stage: &Stage, connections: usize, keep_alive: bool) -> Result<http::Outcome> {
        let load = http::Load {
            targets: self.targets(HTTP_PORT),
            connections,
            keep_alive,
            bytes: None,
            warm_up: WARM_UP,
            window: self.plan.window,
        };
        stage.topology.client().run_in(|| http::run(&load, &stage.sources))?
    }

    fn udp(&self, stage: &Stage) -> Result<udp::Outcome> {
        let load = udp::Load {
            targets: self.targets(DISCARD_PORT),
            flows: FLOWS,
            pace: udp::Pace::Window(WINDOW),
            warm_up: WARM_UP,
            window: self.plan.window,
        };
        let counters = stage.servers.each_ref().map(Server::counters);
        stage.topology.client().run_in(|| udp::run(&load, &stage.sources, counters))?
    }

    fn targets(&self, port: u16) -> Vec<SocketAddr> {
        match self.mode {
            Mode::Direct => (0..SERVERS).map(|n| (server_back(n), port).into()).collect(),
            Mode::Nat | Mode::Dr => vec![(VIP, port).into()],
        }
    }
}

/// What loads need: where, from where, against whom.
struct Stage<'t> {
    topology: &'t Topology,
    servers: [Server; SERVERS],
    sources: Sources,
}

/// One value of one repetition.
struct Sample {
    metric: Metric,
    value: f64,
    /// The fraction of datagrams lost on the way.
    loss: f64,
}

/// rr that leaves a server out is not rr.
fn both_took_part(by_server: [u64; SERVERS]) -> Result<()> {
    match by_server.iter().position(|&count| count == 0) {
        Some(idle) => bail!("server {idle} got nothing; the servers got {by_server:?}"),
        None => Ok(()),
    }
}

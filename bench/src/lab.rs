//! The comparison: each forwarding mode over each backend, under the same loads, beside no director at all.
//!
//! ```text
//!  for each round:
//!      for each case (ipv4, ipv6 × direct; nat, dr, tun, fullnat × af-xdp, af-packet):
//!          a fresh topology ─▶ two servers (tun: that unwrap; fullnat: without a gateway) ─▶ the director, its rules typed as an operator types them
//!          keep-alive requests, new connections, latency of few, small datagrams
//!          the director must still run, and stop well
//! ```
//!
//! Cases take turns, so that what disturbs the machine for longer than a case is seen in each case's spread, and a ratio is of two
//! cases of one round. That is why each turn has a topology of its own.
//!
//! A case that gives a wrong answer, loses a server or crashes the director ends the run with an error: its
//! speed is of no interest. A backend that cannot *start* on this machine is skipped, in the director's own
//! words.
//!
//! Cores. Workers get the last cores; clients and servers are left to the scheduler, which on two cores does
//! better than any fixed place: a veth carries a frame to the far end's socket on the sender's core, so half
//! of "the server's work" is done by the worker.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::director::Director;
use crate::interrupt;
use crate::machine;
use crate::privilege::Privilege;
use crate::report::{
    CONNECTIONS, DATAGRAMS, LATENCY_P50, LATENCY_P99, METRICS, Metric, REQUESTS, Report, Way,
};
use crate::topology::{
    self, LOCAL, LOCAL6, Options, SERVERS, Topology, VIP, VIP6, client, client6, server, server_back,
    server_back6, server6,
};
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
    /// IP in IP, replies past the director.
    Tun,
    /// Both ends translated, both ways through the director, which is no server's gateway.
    #[value(name = "fullnat")]
    FullNat,
}

impl Mode {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tun => "tun",
            Self::FullNat => "fullnat",
        }
    }

    /// On ipvsadm's command line, for all but direct.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Direct | Self::Nat => "-m",
            Self::Dr => "-g",
            Self::Tun => "-i",
            Self::FullNat => "--fullnat",
        }
    }
}

/// Which IP clients and servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    fn pick(self, v4: impl Into<IpAddr>, v6: impl Into<IpAddr>) -> IpAddr {
        match self {
            Self::Ipv4 => v4.into(),
            Self::Ipv6 => v6.into(),
        }
    }

    fn vip(self) -> IpAddr {
        self.pick(VIP, VIP6)
    }

    fn client(self, n: u8) -> IpAddr {
        self.pick(client(n), client6(n))
    }

    fn server(self, n: usize) -> IpAddr {
        self.pick(server(n), server6(n))
    }

    fn local(self) -> IpAddr {
        self.pick(LOCAL, LOCAL6)
    }

    fn server_back(self, n: usize) -> IpAddr {
        self.pick(server_back(n), server_back6(n))
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
    /// In this order, all modes of one before the next, in every round.
    pub families: Vec<Family>,
    /// In this order.
    pub modes: Vec<Mode>,
    /// In this order, for each mode but direct.
    pub backends: Vec<Backend>,
    /// Worker threads of the director, and queues of each interface.
    pub workers: usize,
    /// Of each load, for IPv4 by NAT and DR and without a director.
    pub repetitions: usize,
    /// Of each load, for all else.
    pub fewer: usize,
    /// Of each load.
    pub window: Duration,
}

impl Plan {
    /// How many times [`Progress::step`] will be called if nothing is skipped.
    pub fn steps(&self) -> usize {
        self.cases().iter().map(|case| case.repetitions() * LOADS.len()).sum()
    }

    fn cases(&self) -> Vec<Case<'_>> {
        let mut cases = Vec::new();
        for &family in &self.families {
            for &mode in &self.modes {
                let case = |backend| Case { family, mode, backend, plan: self, is_skipped: false };
                match mode {
                    Mode::Direct => cases.push(case(None)),
                    _ => cases.extend(self.backends.iter().map(|&backend| case(Some(backend)))),
                }
            }
        }
        cases
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
    let mut cases = Vec::new();
    for case in plan.cases() {
        if case.backend == Some(Backend::AfXdp) && privilege == Privilege::UserNamespace {
            let why = "loading XDP programs (bpf) is refused in a user namespace; run as root";
            report.skip(case.way(), why);
        } else {
            cases.push((case, Vec::new()));
        }
    }
    for round in 1..=plan.repetitions.max(plan.fewer) {
        for (case, samples) in &mut cases {
            if !case.is_skipped && round <= case.repetitions() {
                let measured = case.measure(round, samples, &mut report, progress);
                measured.with_context(|| format!("measuring {}", case.way()))?;
            }
        }
    }
    for (case, samples) in &cases {
        if !samples.is_empty() {
            case.tell(samples, &mut report);
        }
    }
    report.relate_to_direct();
    Ok(report)
}

struct Case<'p> {
    family: Family,
    mode: Mode,
    backend: Option<Backend>,
    plan: &'p Plan,
    /// Whether it cannot be measured on this machine, as its first round has shown.
    is_skipped: bool,
}

impl Case<'_> {
    fn way(&self) -> Way {
        let backend = self.backend.map_or("kernel", Backend::name);
        Way { family: self.family.name(), mode: self.mode.name(), backend }
    }

    fn repetitions(&self) -> usize {
        let central = self.family == Family::Ipv4 && !matches!(self.mode, Mode::Tun | Mode::FullNat);
        if central { self.plan.repetitions } else { self.plan.fewer }
    }

    /// A round of it.
    fn measure(
        &mut self,
        round: usize,
        samples: &mut Vec<Sample>,
        report: &mut Report,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let workers = self.plan.workers;
        let topology =
            Topology::new(Options { queues: u32::try_from(workers)? }).context("building the topology")?;
        if self.family == Family::Ipv6 && !topology.has_ipv6() {
            report.skip(self.way(), "this kernel has no IPv6");
            self.is_skipped = true;
            return Ok(());
        }
        let servers = topology.start_servers().context("starting the servers")?;
        let unwrapping = match self.mode {
            Mode::Tun => Some(topology.start_unwrapping()?),
            _ => None,
        };
        if self.mode == Mode::FullNat {
            topology.lend_local_addresses()?;
            topology.forget_the_director_as_gateway()?;
        }

        let mut director = None;
        if let Some(backend) = self.backend {
            match self.start_director(&topology, backend) {
                Ok(started) => director = Some(started),
                Err(error) => {
                    interrupt::check()?;
                    // One that could start before has another reason.
                    if round > 1 {
                        return Err(error);
                    }
                    report.skip(self.way(), &format!("{error:#}"));
                    self.is_skipped = true;
                    return Ok(());
                }
            }
        }
        if let Some(director) = &director {
            self.load_rules(director).context("loading the rules")?;
        }

        let sources = Sources::new((0..topology::CLIENTS).map(|n| self.family.client(n)));
        let stage = Stage { topology: &topology, servers, sources };
        if let Err(error) = self.put_loads_on(&stage, round, samples, progress) {
            // The end of the director explains any other trouble.
            interrupt::check()?;
            director.as_mut().map_or(Ok(()), Director::check)?;
            return Err(error);
        }
        for server in stage.servers {
            server.stop().context("a server failed")?;
        }
        for server in unwrapping.into_iter().flatten() {
            report.note(server.describe());
            server.stop().context("unwrapping failed")?;
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
        for (protocol, port) in [("-t", HTTP_PORT), ("-u", DISCARD_PORT)] {
            let service = SocketAddr::new(self.family.vip(), port).to_string();
            director.ipvsadm(&["-A", protocol, &service, "-s", "rr"])?;
            for n in 0..SERVERS {
                let server = SocketAddr::new(self.family.server(n), port).to_string();
                director.ipvsadm(&["-a", protocol, &service, "-r", &server, self.mode.option()])?;
            }
            if self.mode == Mode::FullNat {
                director.ipvsadm(&["-P", protocol, &service, "-z", &self.family.local().to_string()])?;
            }
        }
        Ok(())
    }

    fn put_loads_on(
        &self,
        stage: &Stage,
        round: usize,
        samples: &mut Vec<Sample>,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (way, rounds) = (self.way(), self.repetitions());
        for load in LOADS {
            interrupt::check()?;
            progress.step(&format!("{way}, round {round} of {rounds}: {}", load.name()));
            let taken = self.put_on(load, stage).with_context(|| format!("load: {}", load.name()))?;
            samples.extend(taken);
        }
        Ok(())
    }

    /// Adds all of its rounds to the report.
    fn tell(&self, samples: &[Sample], report: &mut Report) {
        let way = self.way();
        for metric in METRICS {
            let values: Vec<f64> =
                samples.iter().filter(|sample| sample.metric.name == metric.name).map(|s| s.value).collect();
            report.add(way, metric, &values);
        }
        let loss = samples.iter().map(|sample| sample.loss).fold(0.0, f64::max);
        if loss > NOTABLE_LOSS {
            report.note(format!("{way}: up to {:.1} % of the datagrams were lost", loss * 100.0));
        }
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
            Mode::Direct => (0..SERVERS).map(|n| (self.family.server_back(n), port).into()).collect(),
            _ => vec![(self.family.vip(), port).into()],
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

//! The daemon: `shunt run`.
//!
//! ```text
//!   socket ─ requests ─▶ ┌─────────── Director's control ───────────┐ ─ snapshots ─▶ workers
//!   netlink ─ events ──▶ │ rules · publisher · mirror · steering    │ ◀─ answers ─── (one thread each)
//!   signals, ticks ────▶ └──────────────────────────────────────────┘ ─ targets ───▶ XDP maps or netfilter
//! ```
//!
//! One thread does all of this, one thing at a time. A change of the rules is tried on a copy, published, acknowledged by every worker,
//! steered, and only then answered; if any step fails the old rules are published again. So what `ipvsadm` says is
//! done is in force, and what it says failed has changed nothing.

mod awake;
pub mod backend;
mod calls;
mod claim;
mod engine;
mod first_rules;
mod home;
mod memory;
mod mirror;
mod napi;
mod options;
mod placement;
mod queues;
mod stop;
mod taking;
mod watch;

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use shunt_dataplane::conn::State;
use shunt_dataplane::conn::directory::Directory;
use shunt_dataplane::conn::paths::Paths;
use shunt_dataplane::conn::supplier::{self, Supplier};
use shunt_dataplane::conn::table::Secret;
use shunt_dataplane::director::{self, Director, Wish};
use shunt_dataplane::port::tap::Tap;
use shunt_dataplane::profile::{EVERY, Per, Stage, Stopwatch};
use shunt_dataplane::sched;
use shunt_dataplane::service::{Epoch, LinkId, Network, PortId, Services, Snapshot, Timeouts, WorkerId};
use shunt_dataplane::stats::Counters;
use shunt_dataplane::steer::Target;
use shunt_dataplane::worker::{self, Clock, Polling, Worker, link};

use crate::api::{self, Pages, Request, Response, Status};
use crate::cli::in_one_line;
use crate::publisher::{PERIOD, Publisher};
use crate::rules::{Capabilities, Change, Refusal, Rules};
use crate::socket;
use awake::Awake;
use backend::Backend;
use calls::{Answer, Call, Question};
use claim::Claim;
use engine::{Cursor, Engine};
use home::Home;
use mirror::{Mirror, View};
use napi::Napi;
pub use options::Options;
use placement::{Machine, Setup};
use queues::Queues;
use stop::Stop;
use taking::Taking;
use watch::Watch;

/// How often control looks after things: workers alive, neighbours that did not answer asked again.
const TICK: Duration = Duration::from_secs(1);

/// Ticks (seconds) between two reminders to the kernel that the real servers' neighbours are in use. The kernel does not see our traffic, would let
/// them grow stale and never notice that one is gone; its own traffic would make it check within 5 s of using a stale one
/// (`delay_first_probe_time`).
const REMIND: u64 = 5;

/// Ticks (seconds) for which a neighbour that workers asked for is asked again if it does not answer. One that is back later speaks first, and the kernel hears it.
const ASKED: u64 = 60;

/// What the data plane can do, for the rules.
pub fn capabilities() -> Capabilities {
    Capabilities {
        schedulers: sched::NAMES,
        engines: &["sip"],
        ipv6: true,
        tunnel: true,
        persistence: true,
        one_packet: true,
        marks: true,
        sctp: true,
        thresholds: true,
        fullnat: true,
        fullnat_across: true,
    }
}

/// Runs the director until it is told to stop.
///
/// # Errors
/// What could not be set up, and what to do about it. Nothing is left behind.
pub fn run(options: Options) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_target(false)
        .with_writer(std::io::stderr)
        // A journal or a file wants no colours.
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    // Everything that can be wrong with what was typed comes first, before anything is touched.
    let rules = first_rules::read(&options)?;
    let cores = choose_cores(&options)?;
    let home = if options.local_servers { Some(Home::open(cores.len()).await?) } else { None };
    if home.is_none()
        && let Err(error) = home::sweep().await
    {
        tracing::warn!("rules of routing that a killed director left stay, and mean nothing: {error:#}");
    }
    let (mirror, mut events) = Mirror::open(&options.interfaces, home.as_ref().map(|_| home::NAME)).await?;
    let view = mirror.read(&HashSet::new()).await?;
    let path = options.socket.clone().unwrap_or_else(socket::path);
    let listener = socket::bind(&path)?;
    let socket_file = SocketFile(path);

    let mut control = Control::start(&options, rules, mirror, view, cores, home).await?;
    let (calls, mut questions) = calls::channel();
    tokio::spawn(socket::serve(listener, calls));
    let mut stop = Stop::listen()?;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut estimations = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    estimations.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Only systemd has a place to be told.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %socket_file.0.display(), "ready");

    let ended = loop {
        tokio::select! {
            Some(Call { question, answer }) = questions.recv() => {
                // A client that has gone does not want to know.
                let _ = answer.send(control.answer(question).await);
            }
            () = events.next() => {
                events.settle().await;
                control.follow().await;
            }
            heard = control.engine.heard() => {
                if let Err(error) = heard {
                    break Err(error);
                }
                control.resolve_wanted().await;
            }
            _ = ticks.tick() => {
                if let Err(error) = control.tick().await {
                    break Err(error);
                }
            }
            _ = estimations.tick() => control.publisher.estimate(&control.rules, control.engine.counters()),
            () = stop.told() => break Ok(()),
        }
        // They may have come while anything else was waited for.
        control.grant();
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    drop(socket_file);
    control.stop().await;
    tracing::info!("stopped; interfaces are as they were");
    ended
}

/// The director's control.
struct Control {
    rules: Rules,
    publisher: Publisher,
    engine: Engine,
    /// Brings memory for connections.
    supplier: Supplier,
    mirror: Mirror,
    view: View,
    /// Neighbours that packets waited for, and in which tick.
    asked: HashMap<(LinkId, IpAddr), u64>,
    taking: Taking,
    /// Workers that are still to be told of targets that were granted to them.
    granted: Vec<(usize, Target)>,
    ways: Vec<(String, String)>,
    /// The NICs' queues that workers have.
    queues: Option<Queues>,
    /// Held for as long as workers poll.
    napi: Napi,
    /// What frames are kept in.
    frames: Pages,
    /// What each worker's tables are kept in.
    tables: Vec<Pages>,
    cores: Vec<usize>,
    /// Connections that a worker has room for.
    capacity: usize,
    /// What workers time their stages by.
    cycles: quanta::Clock,
    watch: Watch,
    /// The way to real servers on the director itself.
    home: Option<Home>,
    /// The machine's addresses that are left to the kernel.
    kernels: Vec<IpAddr>,
    /// Whether the network, or what is used of it, has changed in a way that is not followed yet.
    is_behind: bool,
    /// Whether the rules are, all that there is to them.
    is_in_force: bool,
    /// Held for as long as the interfaces are.
    _claim: Claim,
    _awake: Option<Awake>,
    ticks: u64,
}

impl Control {
    /// Opens the queues, starts the workers and takes the frames of the first rules.
    async fn start(
        options: &Options,
        rules: Rules,
        mut mirror: Mirror,
        mut view: View,
        cores: Vec<usize>,
        home: Option<(Home, Vec<Tap>)>,
    ) -> anyhow::Result<Self> {
        first_rules::check(options, &rules, home.is_some(), &view)?;
        let claim = Claim::stake(view.network.interfaces())?;
        let awake = options.wake_within.map(Awake::within).transpose()?;
        let (named, _) = view.network.interfaces().split_at(options.interfaces.len());
        let Backend { mut ports, pools, steering, ways, queues } =
            backend::open(options.backend, named, cores.len(), options.busy_poll)?;
        let home = home.map(|(home, queues)| {
            for (ports, queue) in ports.iter_mut().zip(queues) {
                ports.push((PortId(named.len() as u8), Box::new(queue)));
            }
            home
        });
        for (name, way) in &ways {
            tracing::info!("{name}: {way}");
        }
        let setup = Setup { ways: &ways, cores: &cores, busy_poll: options.busy_poll };
        let machine = Machine::here();
        for complaint in machine.complaints(&setup) {
            tracing::warn!("{complaint}");
        }
        // Over AF_PACKET no system call of a worker's receives.
        let polled = named.iter().filter(|_| options.busy_poll && queues.is_some()).cloned();
        let (napi, complaints) = Napi::leave_to_pollers(Path::new("/"), &polled.collect::<Vec<_>>());
        for complaint in complaints {
            tracing::warn!("{complaint}");
        }
        let spread = queues.as_ref().and_then(Queues::spread);
        view.network = view.network.with_spread(spread.cloned());
        mirror.note_spread(spread);
        let has_transparent = machine.has_transparent_pages();
        let frames = pools.first().map(|pool| (pool.memory().backing(), pool.memory().size()));
        let frames = memory::pages(frames, has_transparent);

        let counters = Arc::new(Counters::new(cores.len()).context("cannot map memory for counters")?);
        let mut publisher = Publisher::new(options.interfaces.clone());
        let snapshot = Snapshot {
            epoch: Epoch(1),
            services: Arc::new(publisher.publish(&rules, &counters, Instant::now())?),
            network: Arc::new(view.network.clone()),
            timeouts: timeouts(rules.timeouts()),
            sysctls: *rules.sysctls(),
        };
        let clock = Clock::start();
        let cycles = quanta::Clock::new();
        let words = backend::random::<24>()?;
        let word = |n: usize| u64::from_ne_bytes(std::array::from_fn(|byte| words[n * 8 + byte]));
        let secret = Secret::new([word(0), word(1), word(2)]);
        let capacity = options.connections as usize;
        let directory = match cores.len() {
            1 => None,
            // Each connection may be announced twice, by its request and by its reply.
            workers => Some(Arc::new(Directory::with_capacity(workers * capacity * 2)?)),
        };

        let paths = Arc::<Paths>::default();

        let (bell, answers) = std::os::unix::net::UnixStream::pair()?;
        let (links, handles): (Vec<_>, Vec<_>) = (0..cores.len())
            .map(|_| link::channel(snapshot.epoch, answers.try_clone()?))
            .collect::<std::io::Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let bells: Vec<_> = handles.iter().map(link::Handle::bell).collect();
        let parts = ports.into_iter().zip(pools).zip(links).zip(worker::connect(&bells)).enumerate();
        let shared = directory.iter().map(|directory| supplier::Part {
            supply: directory.supply(),
            is_needed: |services| !services.is_empty(),
        });
        let mut supplies: Vec<_> = shared.collect();
        let (mut workers, mut tables) = (Vec::new(), Vec::new());
        for ((n, (((ports, pool), link), peers)), handle) in parts.zip(handles) {
            let id = WorkerId(n as u8);
            let director = Director::new(
                director::Parts {
                    worker: id,
                    snapshot: Arc::new(snapshot.clone()),
                    capacity,
                    secret,
                    directory: directory.clone(),
                    paths: Arc::clone(&paths),
                    counters: Arc::clone(&counters),
                },
                clock.now(),
            )
            .context("cannot map memory for connections")?;
            let own = director.supplies();
            let backings = own.iter().flat_map(|part| part.supply.backings());
            tables.push(memory::pages(backings, has_transparent));
            supplies.extend(own);
            let counters = Arc::clone(&counters);
            let polling = if options.busy_poll { Polling::Busy } else { Polling::Adaptive };
            let worker = Worker::new(worker::Parts {
                id,
                director,
                ports,
                pool,
                peers,
                link,
                counters,
                clock,
                polling,
                watch: Stopwatch::by(cycles.clone()),
            });
            let core = cores[n];
            let thread = std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
                if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
                    tracing::warn!(
                        "worker {n} could not be pinned to core {core}; it runs wherever there is room"
                    );
                }
                worker.run();
            })?;
            workers.push((handle, thread));
        }
        let supplier = Supplier::start(supplies)?;
        bring_memory(&supplier, &snapshot.services);
        if let Some(complaint) = machine.complaint_of_pages(frames, &tables) {
            tracing::warn!("{complaint}");
        }
        let engine = Engine::new(workers, bell, snapshot, counters)?;
        tracing::info!(workers = cores.len(), ?cores, "workers run");

        let mut control = Self {
            rules,
            publisher,
            engine,
            supplier,
            mirror,
            view,
            asked: HashMap::new(),
            taking: Taking::new(steering),
            granted: Vec::new(),
            ways,
            queues,
            napi,
            frames,
            tables,
            cores,
            capacity,
            cycles,
            watch: Watch::default(),
            home,
            kernels: Vec::new(),
            is_behind: false,
            is_in_force: true,
            _claim: claim,
            _awake: awake,
            ticks: 0,
        };
        control.leave_to_kernel(&control.view.local.clone())?;
        control.taking.steering().set_vlans(&steered_vlans(&control.view.network))?;
        control.taking.steering().set_marked(control.publisher.marked())?;
        let targets = control.publisher.targets(&control.rules).collect();
        control.taking.follow(&targets, true)?;
        if let Some(home) = &mut control.home {
            home.follow(&control.rules, &control.view).await?;
        }
        control.watch.network(&control.view, &control.rules);
        Ok(control)
    }

    /// Answers a client's task.
    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Request(request) => self.answer_request(request).await,
            Question::Count(page) => Answer::Counted(self.publisher.counted(page, self.engine.counters())),
            Question::Connections(from) => match self.engine.connections(from).await {
                Ok((mut page, next)) => {
                    self.publisher.name_servers(&mut page);
                    Answer::Page(page, next)
                }
                Err(error) => {
                    Answer::Message(Response::Refused { errno: nix::libc::EIO, why: format!("{error:#}") })
                }
            },
        }
    }

    /// Answers a request; a long listing only with where it begins.
    async fn answer_request(&mut self, request: Request) -> Answer {
        match request {
            Request::Services(key) => match self.rules.at_once(key.as_ref()) {
                Ok(services) => Answer::Services(services),
                Err(refusal) => Answer::Message(refusal.into()),
            },
            Request::Locals(key) => match self.rules.locals(key.as_ref()) {
                Ok(entries) => Answer::Locals(self.publisher.count_locals(entries)),
                Err(refusal) => Answer::Message(refusal.into()),
            },
            Request::Connections => Answer::Connections(Cursor::default()),
            Request::Timeouts => Answer::Message(Response::Timeouts(self.rules.timeouts())),
            Request::Sysctls(name) => {
                let listed = self.rules.listed_sysctls(name.as_deref());
                Answer::Message(listed.map_or_else(Response::from, Response::Sysctls))
            }
            Request::Marks => Answer::Message(Response::Marks(self.rules.marks().to_vec())),
            Request::Daemons => Answer::Message(Response::Daemons(Vec::new())),
            Request::Status => Answer::Message(Response::Status(self.status())),
            Request::Profile(worker) => Answer::Message(self.profile(worker)),
            change => Answer::Message(self.change(&change).await.unwrap_or_else(Response::from)),
        }
    }

    /// Carries out a change, or nothing of it.
    async fn change(&mut self, request: &Request) -> Result<Response, Refusal> {
        let mut rules = self.rules.clone();
        let change = rules.apply(request)?;
        let reached_anew = match request {
            Request::AddServer(service, server) => Some((service, server)),
            // One that is there can be quiesced, whatever has become of its address.
            Request::EditServer(service, server) => {
                let known = self.rules.service(service).into_iter().flat_map(|service| &service.servers);
                let mut same = known.filter(|known| known.key == server.key);
                same.all(|known| known.forwarding != server.forwarding).then_some((service, server))
            }
            _ => None,
        };
        if let Some((service, server)) = reached_anew {
            home::check(self.home.is_some(), &self.view, service, server)?;
        }
        rules.check_interfaces(self.publisher.interfaces())?;
        match change {
            Change::Nothing => {}
            Change::Zeroed(key) => self.publisher.zero(key.as_ref(), self.engine.counters()),
            _ => {
                if let Err(error) = self.put_in_force(&rules).await {
                    tracing::error!("a change could not be put in force, the old rules stay: {error:#}");
                    let old = self.rules.clone();
                    if let Err(error) = self.put_in_force(&old).await {
                        tracing::error!("the old rules could not be put in force again: {error:#}");
                    }
                    return Err(Refusal { errno: nix::libc::ENOMEM, why: format!("{error:#}") });
                }
                self.rules = rules;
                self.watch.network(&self.view, &self.rules);
            }
        }
        Ok(Response::Done)
    }

    /// Publishes rules to every worker, then takes the frames of what is new and leaves those of what is gone.
    async fn put_in_force(&mut self, rules: &Rules) -> anyhow::Result<()> {
        self.is_in_force = false;
        let services = self.publisher.publish(rules, self.engine.counters(), Instant::now())?;
        bring_memory(&self.supplier, &services);
        self.engine.serve(services, timeouts(rules.timeouts()), *rules.sysctls()).await?;
        self.leave_to_kernel(&self.view.local.clone())?;
        self.taking.steering().set_marked(self.publisher.marked())?;
        let targets = self.publisher.targets(rules).collect();
        // Without rules the director, like IPVS, lets go of everything.
        self.taking.follow(&targets, rules.services().next().is_some())?;
        if let Some(home) = &mut self.home {
            home.follow(rules, &self.view).await?;
        }
        self.is_in_force = true;
        Ok(())
    }

    /// Takes and releases the frames that workers wish to have or not to have.
    fn grant(&mut self) {
        for (worker, wish) in self.engine.wishes() {
            match wish {
                Wish::Take(target) => {
                    self.taking.wish(target);
                    self.granted.push((worker, target));
                }
                Wish::Release(target) => {
                    let of_rules = || self.publisher.targets(&self.rules).any(|of_rules| of_rules == target);
                    self.taking.give_up(target, of_rules);
                }
            }
        }
        // A worker that is behind hears of the rest a moment later; its clients' servers repeat what waits.
        self.granted.retain(|(worker, target)| !self.engine.opened(*worker, *target));
    }

    /// Leaves to the kernel what real servers send to the machine's own addresses, but for those that FullNAT uses.
    fn leave_to_kernel(&mut self, own: &[IpAddr]) -> anyhow::Result<()> {
        let full_nat = self.publisher.local_addresses();
        let kernels: Vec<IpAddr> = own.iter().copied().filter(|a| !full_nat.contains(a)).collect();
        if kernels != self.kernels {
            self.taking.steering().set_local_addresses(&kernels)?;
            self.kernels = kernels;
            // The director may have to speak from other addresses now.
            self.is_behind = true;
        }
        Ok(())
    }

    /// Looks at the network again and has all go by it. What cannot be done stays as it is, and the next tick tries again.
    async fn follow(&mut self) {
        let followed = self.try_to_follow().await;
        self.is_behind = followed.is_err();
        if let Err(error) = followed {
            tracing::warn!("a change of the network could not be followed yet: {}", in_one_line(&error));
        }
    }

    async fn try_to_follow(&mut self) -> anyhow::Result<()> {
        let view = self.mirror.read(&self.publisher.local_addresses()).await?;
        self.steer_by(&view)?;
        if view.network != self.view.network {
            self.engine.route(view.network.clone()).await?;
        }
        self.view = view;
        self.watch.network(&self.view, &self.rules);
        self.resolve_wanted().await;
        if let Some(home) = &mut self.home {
            home.note(&self.view.led_home);
            home.follow(&self.rules, &self.view).await?;
        }
        Ok(())
    }

    /// Tells the steering what of the network concerns it, if that has changed.
    fn steer_by(&mut self, view: &View) -> anyhow::Result<()> {
        self.leave_to_kernel(&view.local)?;
        let vlans = steered_vlans(&view.network);
        if vlans != steered_vlans(&self.view.network) {
            self.taking.steering().set_vlans(&vlans)?;
        }
        let macs: Vec<_> = view.network.interfaces().iter().map(|interface| interface.mac).collect();
        self.taking.steering().set_macs(&macs)?;
        Ok(())
    }

    /// Asks for the neighbours that packets wait for.
    async fn resolve_wanted(&mut self) {
        for (link, neighbour) in self.engine.wanted() {
            self.asked.insert((link, neighbour), self.ticks);
            self.resolve(link, neighbour).await;
        }
    }

    async fn resolve(&self, link: LinkId, neighbour: IpAddr) {
        if let Some((interface, ..)) = self.view.network.link(link) {
            self.mirror.resolve(interface.index, neighbour).await;
        }
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        if !self.engine.is_alive() {
            bail!("a worker has ended by itself; this is a bug in shunt, its last words are above");
        }
        self.ticks += 1;
        self.watch.losses(self.engine.counters(), &self.rules, Instant::now());
        self.watch.local_ports(&self.publisher, &self.rules, self.engine.counters());
        self.asked.retain(|_, tick| *tick + ASKED > self.ticks);
        for (link, neighbour) in self.missed() {
            self.resolve(link, neighbour).await;
        }
        if !self.is_in_force || self.publisher.is_outdated(&self.rules, self.engine.counters()) {
            let rules = self.rules.clone();
            if let Err(error) = self.put_in_force(&rules).await {
                tracing::error!("the rules are not wholly in force yet: {}", in_one_line(&error));
            }
        }
        if self.is_behind {
            self.follow().await;
        }
        if self.ticks.is_multiple_of(REMIND) {
            for (link, neighbour) in self.next_hops().difference(&self.view.permanent).copied() {
                self.resolve(link, neighbour).await;
            }
            self.publisher.forget(self.engine.counters(), Instant::now());
            if let Some(queues) = &mut self.queues
                && queues.look()
            {
                self.mirror.note_spread(queues.spread());
            }
            // Forwarding may have been switched on or off, which no event tells, nor of the queues.
            self.follow().await;
        }
        Ok(())
    }

    /// The neighbours that do not answer and that packets of services go to, as far as is known. Others the kernel may have asked for in vain, on behalf of somebody
    /// who has long given up.
    fn missed(&self) -> Vec<(LinkId, IpAddr)> {
        if self.rules.services().next().is_none() {
            return Vec::new();
        }
        let next_hops = self.next_hops();
        let is_missed = |neighbour: &&(LinkId, IpAddr)| {
            next_hops.contains(neighbour)
                || self.view.routers.contains(neighbour)
                || self.asked.contains_key(neighbour)
        };
        self.view.failed.iter().filter(is_missed).copied().collect()
    }

    /// The neighbours that packets to real servers go to.
    fn next_hops(&self) -> HashSet<(LinkId, IpAddr)> {
        let servers = self.rules.services().flat_map(|service| &service.servers);
        servers
            .filter_map(|server| {
                let address = server.key.address;
                let route = self.view.network.route(address)?;
                let route = Some(route)
                    .filter(|route| !route.link.is_some_and(|link| self.view.network.is_home(link)))?;
                Some((route.link?, route.gateway.unwrap_or(address)))
            })
            .collect()
    }

    /// How each interface is driven, or why it is not just now.
    fn ways_now(&self) -> Vec<(String, String)> {
        let now = |name: &String, way: &String| self.watch.hindrance(name).unwrap_or(way).to_owned();
        self.ways.iter().map(|(name, way)| (name.clone(), now(name, way))).collect()
    }

    fn status(&self) -> Status {
        let (memory_in_use, in_huge_pages) = memory::in_use();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            table_size: (self.capacity * self.cores.len()) as u64,
            interfaces: self.ways_now(),
            memory: format!("{} MiB of frames in {}", self.frames.bytes() >> 20, self.frames),
            frames: self.frames,
            tables: self.tables.clone(),
            memory_in_use,
            in_huge_pages,
            reserved_pages: memory::set_aside(),
            cores: self.cores.clone(),
            epoch: self.engine.epoch().0,
            counters: self.engine.counters().totals().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }

    fn profile(&self, worker: usize) -> Response {
        let Some(core) = self.cores.get(worker) else {
            return Response::Refused {
                errno: nix::libc::ENOENT,
                why: format!("there is no worker {worker}"),
            };
        };
        let profile = self.engine.counters().worker(WorkerId(worker as u8)).profile();
        let stages = Stage::ALL.into_iter().map(|stage| {
            let taken = profile.stage(stage);
            let buckets = taken.buckets().map(|bucket| (bucket.least, bucket.most, bucket.samples));
            api::StageProfile {
                stage: stage.name().to_owned(),
                per: match stage.per() {
                    Per::Burst => api::Per::Burst,
                    Per::Turn => api::Per::Turn,
                },
                cycles: taken.cycles(),
                buckets: buckets.collect(),
            }
        });
        let second = 1_000_000_000;
        // So many nanoseconds a thousand million cycles are.
        let nanoseconds = self.cycles.delta_as_nanos(0, second).max(1);
        Response::Profile(api::Profile {
            core: *core,
            cycles_per_second: (u128::from(second).pow(2) / u128::from(nanoseconds)) as u64,
            every: EVERY,
            turns: profile.turns(),
            bursts: profile.bursts(),
            packets: profile.packets(),
            stages: stages.collect(),
        })
    }

    /// Gives the frames back to the kernel, then stops the workers.
    async fn stop(self) {
        let Self { taking, engine, home, napi, .. } = self;
        drop(taking);
        if let Some(home) = home
            && let Err(error) = home.clear().await
        {
            tracing::warn!("rules of routing for {} stay, and mean nothing: {error:#}", home::NAME);
        }
        engine.stop();
        drop(napi);
    }
}

/// The socket's file, removed when the daemon ends, however it ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The VLANs whose frames are taken, by the port of the interface below and the kernel's index: those that have the Ethernet address of that interface.
fn steered_vlans(network: &Network) -> Vec<(PortId, u32)> {
    let same = network.vlans().iter().filter(|vlan| !network.has_own_mac(vlan));
    same.map(|vlan| (vlan.port, vlan.interface.index)).collect()
}

/// Has the memory brought that the connections of these services need first.
fn bring_memory(supplier: &Supplier, services: &Services) {
    if let Err(error) = supplier.prepare(services) {
        tracing::warn!(
            "memory for connections cannot be brought before they come (that needs Linux 5.14): workers \
             stand still for it now and then: {error}"
        );
    }
}

/// The cores of the workers: those that were typed, or the last ones, one for each queue that every interface has.
fn choose_cores(options: &Options) -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot find out the cores")?;
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
    if let Some(core) = options.cores.iter().find(|core| !allowed.contains(core)) {
        bail!("core {core} is not one of this process's cores ({allowed:?})");
    }
    if let Some((at, core)) =
        options.cores.iter().enumerate().find(|(at, core)| options.cores[..*at].contains(core))
    {
        bail!("core {core} is named twice (the second time in place {})", at + 1);
    }
    if options.cores.len() > usize::from(u8::MAX) {
        bail!("{} cores are more than the 255 workers that are possible", options.cores.len());
    }
    if !options.cores.is_empty() {
        return Ok(options.cores.clone());
    }
    let queues = options.interfaces.iter().map(|name| backend::queues(name)).min().unwrap_or(1) as usize;
    let allowed = Machine::here().by_nearness(&allowed, &options.interfaces);
    let mut cores: Vec<usize> = allowed.iter().rev().take(queues).copied().collect();
    cores.sort_unstable();
    Ok(cores)
}

fn timeouts(seconds: api::Timeouts) -> Timeouts {
    let mut timeouts = Timeouts::default();
    timeouts.set(State::Established, seconds.tcp);
    timeouts.set(State::FinWait, seconds.tcp_fin);
    timeouts.set(State::Udp, seconds.udp);
    timeouts
}

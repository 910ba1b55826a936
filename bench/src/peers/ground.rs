//! Where peers are measured: the lab's topology with a generator before the director and a sink behind it.
//!
//! ```text
//!   generator ─ front ═══ c0 ─ director ─ s0 ═══ lan-director: counted, dropped
//!   (one core, with the receiving half of c0)    (another core, with the sink)
//! ```
//!
//! The generator's frames are made by the kernel ([`LiveFrames`]). A veth's receive queue is polled on the core that filled it, so
//! the XDP program and the copy into the director's memory run on the generator's core, for every peer alike. What the director sends it
//! carries itself to the far end, where nobody listens to the Ethernet address it is sent to: the kernel drops it at the first look.
//! That is no peer's work and on every peer's core, so it has to be cheap: the far end has no queue of its own, whose frames
//! would be looked through to be joined (GRO): half of an AF_XDP peer's core, a quarter of DNAT's. Without one its frames go to the queue that a core's
//! interrupts work off, where they meet those that the kernel has still to forward, and are lost when it is full. Whoever
//! sent them has done its part: they count as forwarded.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shunt_dataplane::steer::live::{LiveFrames, Template};
use shunt_dataplane::steer::{self, live::Discard};

use super::contender::Times;
use crate::namespace::Namespace;
use crate::netlink::Netlink;
use crate::topology::{self, DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, FRONT, Options, Topology, VIP};
use crate::traffic::DISCARD_PORT;
use crate::traffic::background::Background;
use crate::{interrupt, machine, offload};

/// The servers' Ethernet address. The sink has it only when it is to be heard.
pub const FAR: [u8; 6] = [2, 0, 0, 0, 0, 15];

/// Frames made in one system call: some 50 ms, so that the generator hears of its end.
const AT_ONCE: u32 = 1 << 18;

/// Threads of the generator, all on its core. At the end of each system call the kernel waits some 25 ms until its pages are let go; the other
/// thread sends meanwhile. A pause would measure how much a contender's rings hold.
const SENDERS: usize = 2;

/// How many frames show that a peer forwards.
const FORWARDS: u64 = 4096;

/// The longest a peer may take to forward its first frame.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The topology, and who has which core.
pub struct Ground {
    /// With a sink in the place of the servers.
    pub topology: Topology,
    /// Where the director's thread runs.
    pub core: usize,
    generators_core: usize,
}

/// The senders of the generator.
struct Generator(Vec<Background>);

/// What one window of measuring showed, in frames a second.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What the director sent.
    pub forwarded: f64,
    /// What came in before it.
    pub offered: f64,
    /// What forwarding used of its core.
    pub times: Times,
    /// The same as a part of the window.
    pub had: f64,
}

impl Sample {
    /// Frames forwarded in a second. What of its core forwarding [had](Self::had) is shown beside it: on a machine that others keep busy it is not all.
    pub fn rate(&self) -> f64 {
        self.forwarded
    }
}

impl Ground {
    /// Builds it. Two cores are needed.
    pub fn new() -> Result<Self> {
        let cores = machine::cores()?;
        ensure!(cores.len() > 1, "two cores are needed, one for the director and one for the generator");
        let topology = Topology::new(Options::default()).context("building the topology")?;
        topology.lend_local_addresses()?;
        topology.put_a_sink_before_servers()?;
        topology.director().run_in(|| offload::give_a_queue(DIRECTOR_CLIENT_SIDE))??;
        Ok(Self { topology, core: cores[cores.len() - 1], generators_core: cores[0] })
    }

    /// Puts right what the contender before has left behind: testpmd takes interfaces down when it ends.
    pub fn prepare(&self) -> Result<()> {
        self.topology.director().run_in(|| Netlink::open()?.up(DIRECTOR_CLIENT_SIDE))??;
        self.topology.name_servers(FAR)
    }

    /// The namespace of the sink.
    pub fn sink(&self) -> &Namespace {
        self.topology.switch()
    }

    /// Puts the calling thread on the generator's core.
    pub fn join_generator(&self) {
        machine::pin(self.generators_core);
    }

    /// What the generator alone can do, with everything dropped where the director would receive it.
    pub fn generator_alone(&self, flows: u32, warm_up: Duration, window: Duration) -> Result<f64> {
        let interface = self.interfaces()?.swap_remove(0);
        let discard = self.topology.director().run_in(|| Discard::attach(&interface))??;
        let generator = self.generate(flows)?;
        interrupt::sleep(warm_up)?;
        let rate = self.sample(window, || Ok(Times::default()))?.offered;
        generator.stop()?;
        drop(discard);
        Ok(rate)
    }

    /// Loads whatever runs as director, and measures once it forwards and has been warm for a while.
    pub fn measure(
        &self,
        flows: u32,
        warm_up: Duration,
        window: Duration,
        times: impl Fn() -> Result<Times>,
    ) -> Result<Sample> {
        let generator = self.generate(flows)?;
        let (begin, before) = (Instant::now(), self.sent()?);
        while self.sent()? < before + FORWARDS {
            ensure!(begin.elapsed() < START_LIMIT, "nothing is forwarded");
            interrupt::sleep(Duration::from_millis(10))?;
        }
        interrupt::sleep(warm_up)?;
        let sample = self.sample(window, times)?;
        generator.stop()?;
        Ok(sample)
    }

    /// The director's interfaces, as steering knows them.
    pub fn interfaces(&self) -> Result<Vec<steer::Interface>> {
        let names = [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE];
        self.topology.director().run_in(|| {
            let netlink = Netlink::open()?;
            let describe = |name: &str| {
                Ok(steer::Interface { name: name.to_owned(), index: netlink.index(name)?, mac: mac(name)? })
            };
            names.into_iter().map(describe).collect()
        })?
    }

    /// A frame's Ethernet addresses on the way to the director.
    pub fn macs(&self) -> Result<[[u8; 6]; 2]> {
        Ok([self.interfaces()?[0].mac, self.topology.client().run_in(|| mac(FRONT))??])
    }

    fn generate(&self, flows: u32) -> Result<Generator> {
        let template = Template {
            macs: self.macs()?,
            source: topology::client(0).octets(),
            destination: VIP.octets(),
            port: DISCARD_PORT,
            flows,
        };
        let core = self.generators_core;
        let sender = || {
            Background::start(self.topology.client(), "generator", move |stop| {
                machine::pin(core);
                let frames = LiveFrames::new(&template, Netlink::open()?.index(FRONT)?)?;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    frames.send(AT_ONCE).context("making frames in the kernel (Linux 5.18 or newer)")?;
                }
                Ok(())
            })
        };
        (0..SENDERS).map(|_| sender()).collect::<Result<_>>().map(Generator)
    }

    fn sample(&self, window: Duration, times: impl Fn() -> Result<Times>) -> Result<Sample> {
        let (begin, forwarded, offered, before) = (Instant::now(), self.sent()?, self.offered()?, times()?);
        interrupt::sleep(window)?;
        let (forwarded, offered) = (self.sent()? - forwarded, self.offered()? - offered);
        let (seconds, times) = (begin.elapsed().as_secs_f64(), times()?.since(before));
        let had = times.run.as_secs_f64() / seconds;
        Ok(Sample { forwarded: forwarded as f64 / seconds, offered: offered as f64 / seconds, times, had })
    }

    /// Frames that the director has sent, those included that the far end's kernel had no room for.
    fn sent(&self) -> Result<u64> {
        self.topology.director().run_in(|| {
            Ok(count(DIRECTOR_SERVER_SIDE, "tx_packets")? + count(DIRECTOR_SERVER_SIDE, "tx_dropped")?)
        })?
    }

    fn offered(&self) -> Result<u64> {
        self.topology.director().run_in(|| count(DIRECTOR_CLIENT_SIDE, "rx_packets"))?
    }
}

impl Generator {
    /// Ends it; the error is what made it end before.
    fn stop(self) -> Result<()> {
        self.0.into_iter().try_for_each(Background::stop)
    }
}

/// An interface's Ethernet address.
pub fn mac(interface: &str) -> Result<[u8; 6]> {
    let text = read(interface, "address")?;
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok().with_context(|| format!("{interface} has the Ethernet address {text}"))
}

fn count(interface: &str, what: &str) -> Result<u64> {
    read(interface, &format!("statistics/{what}"))?
        .parse()
        .with_context(|| format!("counting {what} of {interface}"))
}

fn read(interface: &str, what: &str) -> Result<String> {
    let path = path(interface, what);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Writes what the kernel is told of an interface in the calling thread's namespace.
pub fn write(interface: &str, what: &str, value: &str) -> Result<()> {
    let path = path(interface, what);
    fs::write(&path, value).with_context(|| format!("writing {}", path.display()))
}

fn path(interface: &str, what: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface).join(what)
}

//! Who forwards: shunt in its modes, testpmd, the kernel's DNAT; and loops that decide nothing. Each is started on the ground, one at a time.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shunt_dataplane::service::Protocol;
use shunt_dataplane::steer::{Filter, Steering, Target};

use super::bare::{self, Bare, Task};
use super::ground::{Ground, write};
use crate::director::{Director, Launcher};
use crate::lab::{Backend, Mode};
use crate::topology::{DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, LOCAL, SERVERS, VIP, server};
use crate::traffic::DISCARD_PORT;

/// A way to get frames from the generator to the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The director.
    Shunt(Mode, Backend),
    /// DPDK's test program, which hands every frame on as it came.
    Testpmd(Backend),
    /// The kernel, by a rule of nftables.
    Nftables,
    /// Nobody: a loop by the director's ports.
    Bare(Task, Backend),
}

/// One that runs. Dropping it ends it, however it is.
pub enum Running<'g> {
    /// The director.
    Shunt(Director<'g>),
    /// testpmd, with what keeps the kernel from handling its frames as well.
    Testpmd(Process, Option<Filter>),
    /// The rule, to be taken away again.
    Nftables(&'g Ground),
    /// The loop.
    Bare(Bare),
}

/// A child that is ended.
pub struct Process(Child);

/// Processor time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Ticks in its own code.
    pub own: u64,
    /// Ticks in the kernel on its behalf.
    pub kernels: u64,
    /// All of it; for a thread exact.
    pub run: Duration,
}

/// The director's forwarding thread.
pub(super) const WORKER: &str = "worker-0";

const TESTPMD: &str = "dpdk-testpmd";
const NFT: &str = "nft";

/// How long testpmd may take to close its ports.
const STOP_LIMIT: Duration = Duration::from_secs(5);

impl Contender {
    /// Its names in a report: mode and backend.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Shunt(mode, backend) => (mode.name(), backend.name()),
            Self::Testpmd(backend) => ("testpmd-io", backend.name()),
            Self::Nftables => ("nftables-dnat", "kernel"),
            Self::Bare(task, backend) => (task.name(), backend.name()),
        }
    }

    /// What it needs and is not there, as a sentence.
    pub fn is_missing(self) -> Option<String> {
        let (program, package) = match self {
            Self::Shunt(..) | Self::Bare(..) => return None,
            Self::Testpmd(_) => {
                (TESTPMD, "dpdk-dev (Debian; librte-net-af-xdp and librte-net-af-packet with it)")
            }
            Self::Nftables => (NFT, "nftables"),
        };
        find(program).is_none().then(|| format!("there is no {program} here; it is in the package {package}"))
    }

    /// Starts it.
    pub fn start(self, ground: &Ground) -> Result<Running<'_>> {
        ground.prepare()?;
        match self {
            // testpmd never sleeps either.
            Self::Shunt(mode, backend) => {
                start_shunt(ground, mode, backend, &["--busy-poll"]).map(Running::Shunt)
            }
            Self::Testpmd(backend) => start_testpmd(ground, backend),
            Self::Nftables => start_nftables(ground).map(|()| Running::Nftables(ground)),
            Self::Bare(task, backend) => Bare::start(ground, task, backend).map(Running::Bare),
        }
    }
}

impl Running<'_> {
    /// What forwarding has used of its core so far.
    pub fn times(&self) -> Result<Times> {
        match self {
            Self::Shunt(director) => Times::of_thread(director.id(), WORKER),
            Self::Testpmd(Process(child), _) => Times::of_thread(child.id(), "rte-worker"),
            Self::Nftables(ground) => Times::of_interrupts(ground.core),
            Self::Bare(_) => Times::of_thread(std::process::id(), bare::NAME),
        }
    }

    /// Ends it; the error is how it ended before.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Shunt(director) => director.stop(),
            Self::Testpmd(process, _) => process.stop(),
            Self::Nftables(ground) => stop_nftables(ground),
            Self::Bare(bare) => bare.stop(),
        }
    }
}

/// Starts a director whose workers sleep when there is nothing to do. The processor, too, unless it is to stay awake.
pub fn start_sleepy(ground: &Ground, backend: Backend, stays_awake: bool) -> Result<Director<'_>> {
    ground.prepare()?;
    let awake: &[&str] = if stays_awake { &["--wake-within", "0"] } else { &[] };
    start_shunt(ground, Mode::Nat, backend, awake)
}

fn start_shunt<'g>(ground: &'g Ground, mode: Mode, backend: Backend, more: &[&str]) -> Result<Director<'g>> {
    let core = ground.core.to_string();
    let arguments = [&["--backend", backend.name(), "--cores", &core], more].concat();
    let director = ground.topology.start_director(&arguments)?;
    let service = format!("{VIP}:{DISCARD_PORT}");
    director.ipvsadm(&["-A", "-u", &service, "-s", "rr"])?;
    for n in 0..SERVERS {
        let server = format!("{}:{DISCARD_PORT}", server(n));
        director.ipvsadm(&["-a", "-u", &service, "-r", &server, mode.option()])?;
    }
    if mode == Mode::FullNat {
        director.ipvsadm(&["-P", "-u", &service, "-z", &LOCAL.to_string()])?;
    }
    Ok(director)
}

fn start_testpmd(ground: &Ground, backend: Backend) -> Result<Running<'_>> {
    let device = |n: usize, interface: &str| match backend {
        Backend::AfXdp => format!("net_af_xdp{n},iface={interface}"),
        // Rings as long as the director's.
        Backend::AfPacket => {
            format!("net_af_packet{n},iface={interface},framesz=2048,framecnt=2048,blocksz=65536")
        }
    };
    // The kernel gets a copy of what AF_PACKET gets, and must not handle it.
    let filter = match backend {
        Backend::AfXdp => None,
        Backend::AfPacket => {
            let interfaces = ground.interfaces()?;
            let filter = ground.topology.director().run_in(|| -> Result<Filter> {
                let mut filter = Filter::install(&interfaces)?;
                filter.take(Target::Service {
                    protocol: Protocol::Udp,
                    address: VIP.into(),
                    port: DISCARD_PORT,
                })?;
                Ok(filter)
            })??;
            Some(filter)
        }
    };
    let core = ground.core;
    let mut command = Launcher::find()?.program(TESTPMD);
    // Its first thread only waits for its input to end.
    command
        .args(["--lcores", &format!("0@0-{core},1@{core}"), "--main-lcore", "0"])
        .args(["--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--no-telemetry"])
        .args(["--vdev", &device(0, DIRECTOR_CLIENT_SIDE), "--vdev", &device(1, DIRECTOR_SERVER_SIDE)])
        .args(["--", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=32768", "--auto-start"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Running::Testpmd(Process(ground.topology.director().spawn(command)?), filter))
}

fn start_nftables(ground: &Ground) -> Result<()> {
    steer_to_core(ground, 1 << ground.core)?;
    let servers: Vec<_> = (0..SERVERS).map(|n| format!("{n} : {}", server(n))).collect();
    nft(
        ground,
        &format!(
            "table ip peers {{\n chain incoming {{\n type nat hook prerouting priority dstnat\n \
             ip daddr {VIP} udp dport {DISCARD_PORT} \
             dnat to jhash ip saddr . udp sport mod {SERVERS} map {{ {} }}\n }}\n }}\n",
            servers.join(", ")
        ),
    )
}

fn stop_nftables(ground: &Ground) -> Result<()> {
    nft(ground, "delete table ip peers")?;
    steer_to_core(ground, 0)
}

/// RPS: which cores do the kernel's work for what the director's interface receives.
fn steer_to_core(ground: &Ground, mask: u64) -> Result<()> {
    let mask = format!("{mask:x}");
    ground.topology.director().run_in(|| write(DIRECTOR_CLIENT_SIDE, "queues/rx-0/rps_cpus", &mask))?
}

fn nft(ground: &Ground, rules: &str) -> Result<()> {
    let mut command = Launcher::find()?.program(NFT);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ground.topology.director().spawn(command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).context("telling nft the rules")?;
    }
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        bail!("nft refused {rules}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Process {
    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).context("ending testpmd")?;
        // A signal just before its first thread waits for input does not wake that.
        drop(self.0.stdin.take());
        let begin = std::time::Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if self.0.try_wait().context("waiting for testpmd")?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("testpmd did not end within {STOP_LIMIT:?} of SIGTERM")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Times {
    /// Of the thread of a process whose name begins like this.
    pub(super) fn of_thread(process: u32, name: &str) -> Result<Self> {
        let tasks = format!("/proc/{process}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let read =
                |file: &str| fs::read_to_string(task.as_ref().map(|task| task.path().join(file)).ok()?).ok();
            // A thread may end while we look.
            let (Some(found), Some(stat), Some(run)) = (read("comm"), read("stat"), read("schedstat")) else {
                continue;
            };
            if found.starts_with(name) {
                // Behind the name, which is in brackets and may hold anything, fields are numbers.
                let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
                let mut fields = fields.split(' ').skip(11).map(number);
                let (own, kernels) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
                let nanoseconds = run.split(' ').next().map_or(0, number);
                return Ok(Self { own, kernels, run: Duration::from_nanos(nanoseconds) });
            }
        }
        bail!("process {process} has no thread {name}")
    }

    /// Of what the kernel does on a core in the wake of interrupts.
    fn of_interrupts(core: usize) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let line = stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} ")));
        let kernels =
            line.and_then(|line| line.split(' ').nth(6)).map(number).context("no softirq in /proc/stat")?;
        Ok(Self { own: 0, kernels, run: Duration::from_millis(kernels * 10) })
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        let [own, kernels] = [self.own - before.own, self.kernels - before.kernels];
        Self { own, kernels, run: self.run.saturating_sub(before.run) }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

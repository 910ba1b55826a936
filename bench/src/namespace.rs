//! A network namespace that lives exactly as long as its owner.
//!
//! ```text
//!  Namespace ── fd of the network namespace ──▶ threads enter it (run_in, thread)
//!     │    └─── fd of a mount namespace of its own: /run is an empty tmpfs, /sys shows this namespace's interfaces
//!     └─ keeper: a thread that was born the namespace, forks its child processes, and takes them along when it ends
//! ```
//!
//! The namespace has no name in the file system. It exists while the descriptors, the keeper or a child do,
//! and these go with the process, so even SIGKILL leaves nothing to clean up. The private /run is there for
//! the same reason: a daemon's socket file in it is gone with the mount.
//!
//! The trap the keeper is there for: a parent-death signal (`PR_SET_PDEATHSIG`) fires when the *thread* that
//! forked ends, not when its process does. A child forked on a helper thread that returns at once would be
//! killed at once. And one that asks too late gets none: so it looks for its keeper after it has asked, see
//! [`tie_to_keeper`].

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::gettid;

/// Tells a child which thread keeps it: a directory in /proc.
const KEEPER: &str = "SHUNT_LAB_KEEPER";

/// A network namespace with a mount namespace beside it. Dropping it ends the child processes started in it.
pub struct Namespace {
    name: String,
    network: File,
    mounts: File,
    /// `None` only while being dropped.
    keeper: Option<Keeper>,
}

struct Keeper {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Namespace {
    /// Makes an empty namespace; only `lo` is in it, and down. `name` is for messages and thread names.
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (report, born) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("{name}-keeper"))
            .spawn(move || {
                let made = leave_for_a_new_namespace();
                let alive = made.is_ok();
                // The receiver waits for this in `new`; if it is gone there is nobody to serve either.
                if report.send(made).is_ok() && alive {
                    todo.into_iter().for_each(|job| job());
                }
            })
            .context("starting a thread")?;

        let made = born.recv().map_err(|_| anyhow!("the keeper of namespace {name} died"))?;
        let (network, mounts) =
            made.with_context(|| format!("making the network namespace of the {name}"))?;
        Ok(Self { name: name.to_owned(), network, mounts, keeper: Some(Keeper { jobs, thread }) })
    }

    /// What it was called at birth.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure on a fresh thread inside the namespace and waits for it. Its working directory is `/`.
    /// A panic of the closure goes on in the caller.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| enter(&self.network, &self.mounts).map(|()| work()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("entering the namespace of the {}", self.name))
    }

    /// Starts a thread inside the namespace that outlives this call: a server, a generator.
    pub fn thread<T: Send + 'static>(
        &self,
        label: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let network = self.network.try_clone().context("duplicating a descriptor")?;
        let mounts = self.mounts.try_clone().context("duplicating a descriptor")?;
        let name = self.name.clone();
        thread::Builder::new()
            .name(label.to_owned())
            .spawn(move || {
                enter(&network, &mounts).with_context(|| format!("entering the namespace of the {name}"))?;
                work()
            })
            .context("starting a thread")
    }

    /// Starts a process inside the namespace. A program that asked for a parent-death signal gets it when the
    /// `Namespace` is dropped or this process ends in whatever way.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let (report, result) = mpsc::channel();
        let program = command.get_program().to_string_lossy().into_owned();
        let job: Job = Box::new(move || {
            command.env(KEEPER, format!("/proc/{}/task/{}", std::process::id(), gettid()));
            let _ = report.send(command.spawn());
        });
        let gone = || anyhow!("the keeper of namespace {} died", self.name);
        let keeper = self.keeper.as_ref().ok_or_else(gone)?;
        keeper.jobs.send(job).map_err(|_| gone())?;
        let spawned: io::Result<Child> = result.recv().map_err(|_| gone())?;
        spawned.with_context(|| format!("starting {program} in the namespace of the {}", self.name))
    }

    /// Sets `net.…` variables inside, such as `("ipv4/ip_forward", "1")`.
    pub fn set_variables(&self, variables: &[(&str, &str)]) -> Result<()> {
        self.run_in(|| {
            for (variable, value) in variables {
                let path = format!("/proc/sys/net/{variable}");
                fs::write(&path, value).with_context(|| format!("writing {value:?} to {path}"))?;
            }
            Ok(())
        })?
    }
}

impl AsFd for Namespace {
    /// The network namespace, as `IFLA_NET_NS_FD` wants it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(Keeper { jobs, thread }) = self.keeper.take() {
            drop(jobs);
            // A panicked keeper has ended too, which is all we want of it.
            let _ = thread.join();
        }
    }
}

/// Makes the calling process die with the namespace that [`Namespace::spawn`] started it in. For a child,
/// first thing.
pub fn tie_to_keeper() -> Result<()> {
    let keeper = std::env::var_os(KEEPER)
        .with_context(|| format!("{KEEPER} is not set: this is for processes that the lab starts"))?;
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking for a parent-death signal")?;
    // For one that ended before we asked there is no signal.
    ensure!(Path::new(&keeper).exists(), "whoever started this process is gone");
    Ok(())
}

/// On the keeper: the calling thread gets its own network and mounts, and hands out descriptors of both.
fn leave_for_a_new_namespace() -> Result<(File, File)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .context("unshare: root or a user namespace is needed")?;

    // First of all: what is mounted below must never propagate to the machine.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), quiet, Some("mode=0755,size=16m"))
        .context("mounting a private /run")?;
    // Some containers refuse this. Then /sys/class/net shows the wrong interfaces, which matters to few
    // programs.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), quiet, none);

    let open = |kind| {
        let path = format!("/proc/thread-self/ns/{kind}");
        File::open(&path).with_context(|| format!("opening {path}"))
    };
    Ok((open("net")?, open("mnt")?))
}

fn enter(network: &File, mounts: &File) -> Result<()> {
    setns(network, CloneFlags::CLONE_NEWNET).context("setns(CLONE_NEWNET)")?;
    // A thread that shares its root and working directory with others may not change mounts.
    unshare(CloneFlags::CLONE_FS).context("unshare(CLONE_FS)")?;
    setns(mounts, CloneFlags::CLONE_NEWNS).context("setns(CLONE_NEWNS)")
}

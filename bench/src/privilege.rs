//! The right to make network namespaces: root's own, or that of a user namespace of our own.
//!
//! As root the process leaves its network and mount namespaces, so that whatever goes wrong later cannot
//! reach the machine's interfaces or mounts. Without root it first enters a user namespace in which it is
//! root over everything made there. veth pairs, bridges and AF_PACKET work in both; `bpf(2)` and with it
//! AF_XDP steering works only in the first: the kernel asks for CAP_BPF in the initial user namespace.
//!
//! The trap: `unshare(CLONE_NEWUSER)` is refused to a process with more than one thread. So [`obtain`] runs
//! first thing in `main`, and tests, whose harness has threads already, run again as a child of `shunt-lab
//! inside`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, getgid, getuid};

use crate::director::Launcher;

/// The exit code of `shunt-lab inside` when the kernel grants no namespaces; the customary "skipped" of test
/// harnesses.
pub const REFUSED: u8 = 77;

/// Set in the environment of a test that was started again by [`permit_test`], so that it does not do so for
/// ever.
const INSIDE: &str = "SHUNT_LAB_INSIDE";

/// What the process was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root in the initial user namespace: everything works.
    Root,
    /// Root in some other user namespace: everything but `bpf(2)`.
    UserNamespace,
}

impl Privilege {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::UserNamespace => "user namespace",
        }
    }
}

/// What a process that asks for nothing has, as reports name it: a kind of root, or `none`.
pub fn held() -> Result<&'static str> {
    Ok(if geteuid().is_root() { current()?.name() } else { "none" })
}

/// Moves the process into namespaces of its own. Must be called before the first thread is started.
pub fn obtain() -> Result<Privilege> {
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(own) {
        Ok(()) => return current(),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(anyhow!(errno).context("making a network namespace (CONFIG_NET_NS?)")),
    }

    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | own).map_err(|errno| {
        anyhow!(errno).context(
            "making a user namespace. Run as root, or allow user namespaces: \
             sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns",
        )
    })?;
    // Without "deny" the kernel accepts no gid_map from an unprivileged process (user_namespaces(7)).
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        fs::write(&path, line)
            .with_context(|| format!("becoming root in the user namespace: writing {path}"))?;
    }
    Ok(Privilege::UserNamespace)
}

/// Which kind of root this process is, given that it can make namespaces.
pub fn current() -> Result<Privilege> {
    let map = fs::read_to_string("/proc/self/uid_map").context("reading /proc/self/uid_map")?;
    // The initial user namespace maps all 2³²-1 ids onto themselves. A container that does so is as good.
    let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    Ok(if initial { Privilege::Root } else { Privilege::UserNamespace })
}

/// Runs `program` with the rights of [`obtain`], in place of this process. Returns only on failure.
pub fn exec_inside(mut program: Command) -> Result<io::Error> {
    obtain()?;
    Ok(program.env(INSIDE, "1").exec())
}

/// Says whether the calling test may go on. If this process may not make namespaces, the test called `name`
/// is run again in a user namespace, its failure is ours, and the answer is `false`; where that is refused
/// too, it prints a `skip:` line.
pub fn permit_test(name: &str) -> Result<bool> {
    if namespaces_are_granted() {
        return Ok(true);
    }
    if std::env::var_os(INSIDE).is_some() {
        bail!("no namespaces although {INSIDE} is set");
    }

    let test = std::env::current_exe().context("finding the test's own binary")?;
    let output = Launcher::find()?
        .inside()
        .arg(test)
        .args(["--exact", name, "--nocapture"])
        .stdin(Stdio::null())
        .output()
        .context("running the test again in a user namespace")?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {
            // What it could not do there is worth as much as what it could not do here.
            for line in said.lines().filter(|line| line.starts_with("skip:")) {
                writeln!(io::stderr(), "{line}").context("writing to standard error")?;
            }
            Ok(false)
        }
        Some(code) if code == i32::from(REFUSED) => {
            // Past the harness, which shows what a passing test prints to nobody.
            let line = format!("skip: {name}: neither root nor a user namespace: {}\n", said.trim());
            io::stderr().write_all(line.as_bytes()).context("writing to standard error")?;
            Ok(false)
        }
        _ => bail!("{name} failed in a user namespace:\n{}\n{said}", String::from_utf8_lossy(&output.stdout)),
    }
}

/// Tries it on a thread that then ends, and its namespaces with it.
fn namespaces_are_granted() -> bool {
    let attempt = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).is_ok());
    attempt.join().unwrap_or(false)
}

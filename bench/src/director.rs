//! The real director, started in its namespace and driven as an operator drives it.
//!
//! The lab needs nothing but its own binary: `shunt-lab director …` *is* `shunt …`. [`Launcher`] knows how to
//! start it, or the binary that `SHUNT_BIN` names, from the lab or from a test. Either way the child first
//! ties itself to its namespace (a parent-death signal), so that no director outlives a lab that was killed.
//!
//! [`Director`] is a running one: it answers on its socket when [`Director::start`] returns, is sent SIGTERM
//! when stopped, and killed if that does not help or if it is merely dropped. The socket lies on the
//! namespace's private /run.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;
use crate::topology::{DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, Topology};

/// Where the director's socket is, inside its namespace: shunt's own default.
pub const SOCKET: &str = "/run/shunt.sock";

/// A director that has not answered by then will not. Attaching XDP takes milliseconds on veth; the rest is a
/// loaded machine, or an emulated one.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a director may take to detach after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// Lines of its log that an error quotes.
const LAST_WORDS: usize = 20;

/// Starts shunt-lab's hidden commands and, through them, shunt.
pub struct Launcher {
    lab: PathBuf,
    /// The `shunt` to run instead of the one inside the lab.
    shunt: Option<OsString>,
}

impl Launcher {
    /// Finds the lab: this very process, or, from a test, `SHUNT_LAB` or the `shunt-lab` that cargo built
    /// beside it.
    pub fn find() -> Result<Self> {
        let this = std::env::current_exe().context("finding this program's own file")?;
        let lab = if let Some(lab) = std::env::var_os("SHUNT_LAB") {
            PathBuf::from(lab)
        } else if this.file_stem() == Some(OsStr::new("shunt-lab")) {
            // Not by its name: cargo may replace the file while we run.
            PathBuf::from("/proc/self/exe")
        } else {
            this.ancestors()
                .skip(1)
                .take(2)
                .map(|directory| directory.join("shunt-lab"))
                .find(|candidate| candidate.is_file())
                .context("no shunt-lab beside this program: cargo build -p shunt-bench, or set SHUNT_LAB")?
        };
        Ok(Self { lab, shunt: std::env::var_os("SHUNT_BIN") })
    }

    /// Runs this `shunt` instead of the one inside the lab.
    pub fn with_shunt(mut self, shunt: impl Into<OsString>) -> Self {
        self.shunt = Some(shunt.into());
        self
    }

    /// `shunt` with its arguments still to come, tied to the namespace it will be spawned in.
    pub fn shunt(&self) -> Command {
        let mut command = Command::new(&self.lab);
        match &self.shunt {
            Some(shunt) => command.arg("child").arg(shunt),
            None => command.arg("director"),
        };
        command.env("SHUNT_SOCKET", SOCKET);
        command
    }

    /// Any other program with its arguments still to come, tied in the same way.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(&self.lab);
        command.arg("child").arg(name);
        command
    }

    /// The command that runs a program in a user namespace, program and arguments still to come.
    pub fn inside(&self) -> Command {
        let mut command = Command::new(&self.lab);
        command.arg("inside");
        command
    }
}

/// A running director. It cannot outlive the topology it stands in.
pub struct Director<'t> {
    topology: &'t Topology,
    launcher: Launcher,
    child: Child,
    log: Option<JoinHandle<VecDeque<String>>>,
}

impl<'t> Director<'t> {
    /// Runs `shunt run --interface c0 --interface s0 --socket … ARGS` and waits until it answers. The error
    /// says what it said.
    pub fn start(topology: &'t Topology, launcher: Launcher, args: &[&str]) -> Result<Self> {
        let mut command = launcher.shunt();
        command
            .args(["run", "--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE])
            .args(["--socket", SOCKET])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = topology.director().spawn(command)?;
        let log = child.stderr.take().map(|stderr| thread::spawn(move || last_words(BufReader::new(stderr))));

        let mut director = Self { topology, launcher, child, log };
        director.wait_until_it_answers()?;
        Ok(director)
    }

    /// Runs `shunt ipvsadm ARGS` against this director and returns what it printed. That it refuses is an
    /// error.
    pub fn ipvsadm(&self, args: &[&str]) -> Result<String> {
        let output = self.shunt(&[&["ipvsadm"], args].concat(), "")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("ipvsadm {}: {}: {}", args.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs any `shunt` command beside this director, such as `ipvsadm -R`, with `input` as its standard
    /// input.
    pub fn shunt(&self, words: &[&str], input: &str) -> Result<Output> {
        let line = || format!("shunt {}", words.join(" "));
        let mut command = self.launcher.shunt();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.topology.director().spawn(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing may be gone by now, which its status tells better.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().with_context(line)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGTERM, as systemd would, and checks that it ended well.
    pub fn stop(mut self) -> Result<()> {
        let status = self.terminate()?;
        if !status.success() {
            bail!("the director ended with {status} after SIGTERM\n{}", self.said());
        }
        Ok(())
    }

    /// Ends it in the same way, and tells the end of its log.
    pub fn end(mut self) -> Result<Vec<String>> {
        let status = self.terminate()?;
        let log = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        if !status.success() {
            bail!("the director ended with {status} after SIGTERM\n{log:#?}");
        }
        Ok(log.into())
    }

    /// Whether it still runs; the error quotes its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("waiting for the director")? {
            None => Ok(()),
            Some(status) => bail!("the director ended with {status}\n{}", self.said()),
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while self.topology.director().run_in(|| UnixStream::connect(Path::new(SOCKET)).is_err())? {
            interrupt::check()?;
            self.check()?;
            if Instant::now() > deadline {
                bail!("the director does not answer on {SOCKET} after {START_LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        // Accepting is not answering.
        let Err(error) = self.ipvsadm(&["-L", "-n"]) else { return Ok(()) };
        // One that is just ending says better why.
        interrupt::sleep(Duration::from_millis(100))?;
        self.check()?;
        Err(error)
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        // The child has not been waited for, so the id is still its own.
        let id = Pid::from_raw(self.child.id().cast_signed());
        if let Some(status) = self.child.try_wait().context("waiting for the director")? {
            return Ok(status);
        }
        kill(id, Signal::SIGTERM).context("sending SIGTERM to the director")?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("waiting for the director")? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().context("killing the director")?;
        self.child.wait().context("waiting for the director")?;
        bail!("the director did not end within {STOP_LIMIT:?} of SIGTERM and was killed\n{}", self.said())
    }

    /// The end of its log. Only for one that has ended: reading goes on until then.
    fn said(&mut self) -> String {
        let lines = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        lines.into_iter().map(|line| format!("  {line}\n")).collect()
    }
}

impl Drop for Director<'_> {
    fn drop(&mut self) {
        // Fails only for a child that has been waited for, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a log to its end and keeps the last lines. With `SHUNT_LAB_LOG` set, they also go to standard error.
fn last_words(log: impl BufRead) -> VecDeque<String> {
    let aloud = std::env::var_os("SHUNT_LAB_LOG").is_some();
    let mut kept = VecDeque::with_capacity(LAST_WORDS);
    for line in log.lines().map_while(Result::ok) {
        if aloud {
            eprintln!("director: {line}");
        }
        if kept.len() == LAST_WORDS {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    kept
}

//! In a user namespace: what a user without any rights gets.
//!
//! A test that root runs is run again as nobody, by way of `shunt-lab inside`, from copies of the binaries that nobody may read.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use shunt_bench::director::SOCKET;
use shunt_bench::privilege::{Privilege, REFUSED, current};
use shunt_bench::topology::{DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, Options, Topology, VIP};
use shunt_bench::traffic::{ECHO_PORT, HTTP_PORT};

use crate::ground::{
    Backend, PATIENCE, echo, get_each, launcher, permitted, say, serve, shunt_binary, start, udp,
};

const NOBODY: u32 = 65_534;

#[test]
fn af_packet_works_in_a_user_namespace() -> Result<()> {
    if !as_nobody(af_packet_works_in_a_user_namespace)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let (http, udp_echo) = (SocketAddrV4::new(VIP, HTTP_PORT), SocketAddrV4::new(VIP, ECHO_PORT));
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    serve(&director, "-u", udp_echo, "-g", ECHO_PORT)?;
    let answers = get_each(&topology, http.into(), 10)?;
    ensure!(answers.iter().filter(|&&n| n == 0).count() == 5, "{answers:?}");
    topology.client().run_in(|| echo(&udp(udp_echo.into())?, b"nobody"))??;
    director.stop()
}

#[test]
fn auto_falls_back_to_af_packet_and_says_why() -> Result<()> {
    if !as_nobody(auto_falls_back_to_af_packet_and_says_why)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let mut command = launcher()?.shunt();
    command
        .args(["run", "--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE])
        .args(["--backend", "auto", "--socket", SOCKET])
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = topology.director().spawn(command)?;
    let log = child.stderr.take().context("a pipe was asked for")?;
    let (line, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        BufReader::new(log).lines().map_while(Result::ok).try_for_each(|said| line.send(said))
    });
    let mut said = Vec::new();
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        said.push(line);
        if said.last().is_some_and(|line| line.contains("ready")) {
            break;
        }
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
    let status = child.wait()?;
    drop(lines);
    // It could not tell us the rest, which nobody wants.
    let _ = reader.join();
    ensure!(status.success(), "{status}: {said:#?}");
    let why = said.iter().find(|line| line.contains("AF_XDP does not work here"));
    let why = why.with_context(|| format!("not a word about AF_XDP: {said:#?}"))?;
    ensure!(!said.iter().any(|line| line.contains('\u{1b}')), "colours for a pipe: {said:#?}");
    ensure!(why.contains("WARN") && why.contains("ermi"), "{why}");
    let way = format!("{DIRECTOR_CLIENT_SIDE}: af-packet");
    ensure!(said.iter().any(|line| line.contains(&way)), "{said:#?}");
    Ok(())
}

/// Whether this is a process in a user namespace. If not, the test was run in one and passed, or has said `skip:`.
fn as_nobody<T: Fn() -> Result<()>>(test: T) -> Result<bool> {
    if !permitted(test)? {
        return Ok(false);
    }
    if current()? == Privilege::UserNamespace {
        return Ok(true);
    }
    ensure!(getuid().is_root(), "root over all namespaces, but not by name");

    let path = std::any::type_name::<T>();
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let copies = Copies::new()?;
    let output = Command::new(&copies.lab)
        .arg("inside")
        .arg(&copies.test)
        .args(["--exact", name, "--nocapture"])
        .env("SHUNT_LAB", &copies.lab)
        .env("SHUNT_BIN", &copies.shunt)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .context("running the test as nobody")?;
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter(|line| line.starts_with("skip:")).for_each(say);
    match output.status.code() {
        Some(0) => {
            let told = String::from_utf8_lossy(&output.stdout);
            ensure!(told.contains("1 passed"), "nobody ran another test: {told}");
        }
        Some(code) if code == i32::from(REFUSED) => say(&format!("skip: {name}: {}", said.trim())),
        _ => bail!("as nobody:\n{}\n{said}", String::from_utf8_lossy(&output.stdout)),
    }
    Ok(false)
}

/// The binaries where everybody may run them. The build may lie in somebody's home.
struct Copies {
    _directory: tempfile::TempDir,
    test: PathBuf,
    lab: PathBuf,
    shunt: PathBuf,
}

impl Copies {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let copy = |from: &Path, name: &str| -> Result<PathBuf> {
            let to = directory.path().join(name);
            fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
            Ok(to)
        };
        let shunt = shunt_binary()?;
        let lab = shunt.with_file_name("shunt-lab");
        let test = std::env::current_exe()?;
        Ok(Self {
            test: copy(&test, "end_to_end")?,
            lab: copy(&std::env::var_os("SHUNT_LAB").map_or(lab, PathBuf::from), "shunt-lab")?,
            shunt: copy(&shunt, "shunt")?,
            _directory: directory,
        })
    }
}

//! FTP through NAT: a real server (vsftpd) and a real client (curl), in all four ways to make a data connection.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use shunt_bench::namespace::Namespace;
use shunt_bench::privilege::{Privilege, current};
use shunt_bench::topology::{Options, Topology, VIP, VIP6};

use tempfile::TempDir;

use crate::ground::{
    Backend, PATIENCE, connect, eventually, permitted, run_to_end, say, serve, start_workers, status,
};

const PORT: u16 = 21;

/// Many segments, so that a data connection is more than its beginning.
const LENGTH: usize = 1 << 20;

/// How a data connection is made, the family it is for if not for both, and what curl must be told for it. Without the last word of the first it would not read the
/// address in the answer.
const WAYS: &[(&str, Option<bool>, &[&str])] = &[
    ("PASV", Some(true), &["--disable-epsv", "--no-ftp-skip-pasv-ip"]),
    ("EPSV", None, &[]),
    ("PORT", Some(true), &["--ftp-port", "-", "--disable-eprt"]),
    ("EPRT", None, &["--ftp-port", "-"]),
];

/// A directory that servers' unprivileged processes may enter.
fn directory() -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// A server with a file to fetch and a place to store others.
struct Server {
    child: Child,
    root: TempDir,
}

impl Server {
    fn start(namespace: &Namespace, content: &[u8]) -> Result<Self> {
        let root = directory()?;
        let path = root.path().display();
        let sub = |name: &str, mode| -> Result<PathBuf> {
            let sub = root.path().join(name);
            fs::create_dir(&sub)?;
            fs::set_permissions(&sub, fs::Permissions::from_mode(mode))?;
            Ok(sub)
        };
        let files = sub("files", 0o755)?;
        sub("files/in", 0o777)?;
        sub("empty", 0o755)?;
        fs::write(files.join("out"), content)?;
        let settings = format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nftp_username=daemon\n\
             anon_root={path}/files\nsecure_chroot_dir={path}/empty\nwrite_enable=YES\nanon_upload_enable=YES\n\
             anon_world_readable_only=NO\nconnect_from_port_20=YES\nseccomp_sandbox=NO\nisolate=NO\nisolate_network=NO\n\
             xferlog_enable=NO\n"
        );
        let file = root.path().join("vsftpd.conf");
        fs::write(&file, settings)?;
        // It ends with the namespace's keeper, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "vsftpd"]).arg(&file).stdin(Stdio::null());
        Ok(Self { child: namespace.spawn(command)?, root })
    }

    fn stored(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.root.path().join("files/in").join(name);
        fs::read(&path).with_context(|| format!("reading {path:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_installed(program: &str) -> bool {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places.iter().any(|place| Path::new(place).join(program).is_file())
}

#[test]
fn files_go_both_ways_with_every_command() -> Result<()> {
    if !permitted(files_go_both_ways_with_every_command)? {
        return Ok(());
    }
    if let Some(missing) = ["vsftpd", "curl", "setpriv"].into_iter().find(|program| !is_installed(program)) {
        say(&format!("skip: FTP: {missing} is not installed (apt-get install vsftpd curl util-linux)"));
        return Ok(());
    }
    if current()? != Privilege::Root {
        say("skip: FTP: vsftpd changes users, which is refused in a user namespace");
        return Ok(());
    }
    for backend in Backend::that_work()? {
        for workers in [1, 2] {
            both_ways(backend, workers).with_context(|| format!("{workers} over {}", backend.name()))?;
        }
    }
    Ok(())
}

fn both_ways(backend: Backend, workers: usize) -> Result<()> {
    let topology = Topology::new(Options { queues: workers as u32 })?;
    let content: Vec<u8> =
        (0..LENGTH as u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    let content = &content[..LENGTH];
    let servers = topology.servers().iter();
    let servers = servers.map(|namespace| Server::start(namespace, content)).collect::<Result<Vec<_>>>()?;
    let here = directory()?;
    let (own, fetched) = (here.path().join("own"), here.path().join("fetched"));
    fs::write(&own, content)?;
    for namespace in topology.servers() {
        namespace.run_in(|| {
            eventually(PATIENCE, || connect(SocketAddr::new([127, 0, 0, 1].into(), PORT)).map(drop))
        })??;
    }

    let Some(director) = start_workers(&topology, backend, workers)? else { return Ok(()) };
    let mut transfers = 0;
    for address in [IpAddr::from(VIP), VIP6.into()] {
        serve(&director, "-t", SocketAddr::new(address, PORT), "-m", PORT)?;
        for (way, family, args) in WAYS {
            if family.is_some_and(|is_v4| is_v4 != address.is_ipv4()) {
                continue;
            }
            let at = SocketAddr::new(address, PORT);
            let curl = |rest: &[&str]| -> Result<()> {
                let mut command = Command::new("curl");
                command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "8"]);
                command.args(*args).args(rest);
                let output = run_to_end(topology.client(), command)?;
                let said = String::from_utf8_lossy(&output.stderr);
                ensure!(
                    output.status.success(),
                    "{way} at {at}: {said} {:?}\n{}",
                    status(&topology)?.counters,
                    director.ipvsadm(&["-Lnc"])?
                );
                Ok(())
            };
            // Both servers have their turn.
            for n in 0..2 {
                curl(&[&format!("ftp://{at}/out"), "--output", &fetched.to_string_lossy()])?;
                ensure!(fs::read(&fetched)? == content, "{way} at {at}: another file came than was there");
                fs::remove_file(&fetched)?;
                let stored = format!("{way}-{}-{n}", address.is_ipv4());
                curl(&[&format!("ftp://{at}/in/{stored}"), "--upload-file", &own.to_string_lossy()])?;
                let found =
                    servers.iter().filter_map(|server| server.stored(&stored).ok()).collect::<Vec<_>>();
                ensure!(found == [content], "{way} at {at}: another file was stored than was sent");
                transfers += 2;
            }
        }
    }
    let counters = status(&topology)?.counters;
    let counter = |name: &str| counters.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n);
    ensure!(counter("ftp.expected") == transfers, "{transfers} transfers: {counters:?}");
    ensure!(counters.iter().all(|(name, _)| !name.starts_with("drop.ftp")), "{counters:?}");
    ensure!(counter("ftp.waited") > 0, "no answer waited for its port to be steered: {counters:?}");
    director.stop()
}

//! FullNAT to nginx, asked by curl: real servers whose way to the client does not lead over the director, and which learn of the client all the same.
//!
//! ```text
//!   client ─▶ VIP ─ director ─ its own address ─▶ nginx, without a default route
//!                                                  :8080 plain, TOA in its TCP options  ◀─ watched on the wire: no kernel here reads it
//!                                                  :8081 proxy_protocol, versions 1 and 2
//! ```

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use shunt_bench::director::Director;
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{FRONT, LOCAL, Options, SERVERS, Topology, VIP, server, server6};
use shunt_bench::traffic::HTTP_PORT;
use shunt_tests::segment::Segment;
use tempfile::TempDir;

use crate::ground::{
    Backend, PATIENCE, connect, eventually, launcher, lend, permitted, run_to_end, say, serve_with,
    source_for, start, status,
};
use crate::tunnels::{Family, lost};
use crate::wire::Watch;

/// Where nginx serves as ever.
const PLAIN: u16 = 8080;

/// Where it wants to be told of the client first.
const PROXIED: u16 = 8081;

/// Of uploads and downloads: a few hundred segments.
const LENGTH: usize = 400_000;

/// How servers are told of the client: a service's options, and the port that understands it.
const TOLD: [(&[&str], u16); 4] = [
    (&["--toa", "disable"], PLAIN),
    (&[], PLAIN),
    (&["--proxy-protocol", "v1"], PROXIED),
    (&["--proxy-protocol", "v2"], PROXIED),
];

#[test]
fn a_local_address_that_the_director_does_not_have_is_spoken_of() -> Result<()> {
    if !permitted(a_local_address_that_the_director_does_not_have_is_spoken_of)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    topology.lend_local_addresses()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let service = format!("{VIP}:{HTTP_PORT}");
    director.ipvsadm(&["-A", "-t", &service])?;
    director.ipvsadm(&["-P", "-t", &service, "-z", &LOCAL.to_string()])?;
    director.ipvsadm(&["-P", "-t", &service, "-z", "10.2.0.222"])?;
    let log = director.end()?.into_iter();
    let lines: Vec<_> = log.filter(|line| line.contains("a local address of the service")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("10.2.0.222") && lines[0].contains(&service), "{lines:#?}");
    Ok(())
}

#[test]
fn nginx_learns_of_curl_over_af_xdp() -> Result<()> {
    nginx_learns_of_curl(nginx_learns_of_curl_over_af_xdp, Backend::AfXdp)
}

#[test]
fn nginx_learns_of_curl_over_af_packet() -> Result<()> {
    nginx_learns_of_curl(nginx_learns_of_curl_over_af_packet, Backend::AfPacket)
}

fn nginx_learns_of_curl(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? || !there_are(&["nginx", "curl"]) {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    topology.lend_local_addresses()?;
    topology.forget_the_director_as_gateway()?;
    let servers: Vec<_> = (0..SERVERS).map(|n| Nginx::start(&topology, n)).collect::<Result<_>>()?;
    let director = start(&topology, backend, &[])?;
    for client in [Family::V4, Family::V6] {
        for server in [Family::V4, Family::V6] {
            for (options, port) in TOLD {
                let case = Case { topology: &topology, servers: &servers, client, server, options };
                case.run(&director, port).with_context(|| {
                    let counters = status(&topology).map(|state| state.counters);
                    format!("{client:?} to {server:?} with {options:?} over {}: {counters:?}", backend.name())
                })?;
            }
        }
    }
    let lost = lost(&topology)?;
    ensure!(lost.is_empty(), "{lost:?}");
    director.stop()
}

/// A service in front of both servers.
struct Case<'t> {
    topology: &'t Topology,
    servers: &'t [Nginx],
    client: Family,
    server: Family,
    options: &'t [&'t str],
}

impl Case<'_> {
    fn run(&self, director: &Director, port: u16) -> Result<()> {
        director.ipvsadm(&["-C"])?;
        let at = SocketAddr::new(self.client.vip(), 80);
        serve_with(director, "-t", at, |n| self.server.server(n), &["--fullnat"], port)?;
        director.ipvsadm(&[&["-E", "-t", &at.to_string(), "-s", "rr"], self.options].concat())?;
        lend(director, "-t", at, self.server.local())?;

        let mut wires = Vec::new();
        for namespace in self.topology.servers() {
            wires.push(Watch::open(namespace, FRONT)?);
        }
        let asked: Vec<SocketAddr> = (0..2 * SERVERS).map(|_| source_for(at)).collect();
        let mut answered = [0; SERVERS];
        for &source in &asked {
            let said = self.curl(source, &format!("http://{at}/"), &[])?;
            // What nginx takes for the client, and what the PROXY protocol told it.
            let words: Vec<&str> = said.split_whitespace().collect();
            let [whose, seen, told, told_port] = words[..] else { bail!("nginx says {said:?}") };
            answered[whose.parse::<usize>()?] += 1;
            ensure!(seen.parse::<IpAddr>()? == self.server.local(), "nginx sees {seen}");
            match port {
                PROXIED => ensure!(
                    told.parse::<IpAddr>()? == source.ip() && told_port.parse::<u16>()? == source.port(),
                    "nginx was told of {told} {told_port} instead of {source}"
                ),
                _ => ensure!((told, told_port) == ("-", "-"), "nginx was told of {told} {told_port}"),
            }
        }
        ensure!(answered == [2; SERVERS], "{answered:?}");
        self.options_tell_of(&wires, &asked)?;

        // Whole windows both ways.
        let [sent, got] = ["sent", "got"].map(|name| self.servers[0].directory.path().join(name));
        let word = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
        let source = source_for(at);
        let name = format!("upload-{}-{}", source.ip(), source.port());
        self.curl(source, &format!("http://{at}/files/{name}"), &["-T", &word(&sent)?])?;
        let arrived = self.servers.iter().find_map(|nginx| fs::read(nginx.files().join(&name)).ok());
        ensure!(arrived.context("the upload is on no server")? == pattern(), "the upload is damaged");
        self.curl(source_for(at), &format!("http://{at}/files/long"), &["-o", &word(&got)?])?;
        ensure!(fs::read(&got)? == pattern(), "the download is damaged");
        Ok(())
    }

    /// On the wire before the servers every connection was told of by TOA just when the service has it.
    fn options_tell_of(&self, wires: &[Watch], asked: &[SocketAddr]) -> Result<()> {
        let mut told = Vec::new();
        for wire in wires {
            for frame in wire.frames()? {
                let Some(segment) = Segment::of(&frame).filter(|segment| segment.to.port() == PLAIN) else {
                    continue;
                };
                let Some(client) = toa(&segment.options)? else { continue };
                ensure!(segment.flags & 2 == 0 && segment.from.ip() == self.server.local(), "{segment:?}");
                if !told.contains(&client) {
                    told.push(client);
                }
            }
        }
        told.sort();
        let mut expected = if self.options.is_empty() { asked.to_vec() } else { Vec::new() };
        expected.sort();
        ensure!(told == expected, "TOA told of {told:?} instead of {expected:?}");
        Ok(())
    }

    fn curl(&self, source: SocketAddr, url: &str, more: &[&str]) -> Result<String> {
        let mut curl = Command::new("curl");
        let bounds = ["-sS", "-g", "-f", "--max-time", "8"];
        let (address, port) = (source.ip().to_string(), source.port().to_string());
        // Nothing of the machine's own settings: they may name a proxy.
        curl.arg("-q").args(["--noproxy", "*"]).args(bounds);
        curl.args(["--interface", &address, "--local-port", &port]).args(more).arg(url);
        let output = run_to_end(self.topology.client(), curl)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "curl from {source}: {}: {error}", output.status);
        String::from_utf8(output.stdout).context("nginx says no text")
    }
}

/// The client that a TOA option tells of: kind, length, port, address.
fn toa(options: &[u8]) -> Result<Option<SocketAddr>> {
    let mut rest = options;
    while let [kind, after @ ..] = rest {
        let length = match (kind, after) {
            (0, _) => break,
            (1, _) => 1,
            (_, [length, ..]) if (2..=rest.len()).contains(&usize::from(*length)) => usize::from(*length),
            _ => bail!("options that contradict themselves: {options:02x?}"),
        };
        if let [254, _, p0, p1, address @ ..] = &rest[..length] {
            let address: IpAddr = match address.len() {
                4 => <[u8; 4]>::try_from(address)?.into(),
                _ => <[u8; 16]>::try_from(address)?.into(),
            };
            return Ok(Some(SocketAddr::new(address, u16::from_be_bytes([*p0, *p1]))));
        }
        rest = &rest[length..];
    }
    Ok(None)
}

fn pattern() -> Vec<u8> {
    (0..LENGTH as u32).map(|i| (i ^ (i >> 8)) as u8).collect()
}

/// Whether these programs are installed. Says so if not.
fn there_are(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = programs
        .iter()
        .find(|program| !std::env::split_paths(&path).any(|directory| directory.join(program).is_file()));
    if let Some(program) = missing {
        say(&format!("skip: there is no {program} here"));
    }
    missing.is_none()
}

/// An nginx in a server's namespace. It ends with its value, or with the test.
struct Nginx {
    child: Child,
    directory: TempDir,
}

impl Nginx {
    fn start(topology: &Topology, n: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = directory.path();
        fs::create_dir(at.join("files"))?;
        fs::write(at.join("files/long"), pattern())?;
        fs::write(at.join("sent"), pattern())?;
        fs::write(at.join("nginx.conf"), configuration(at, n)?)?;
        let nginx = launcher()?.with_shunt("nginx");
        let mut command = nginx.shunt();
        command.arg("-p").arg(at).arg("-c").arg(at.join("nginx.conf"));
        command.arg("-e").arg("stderr").stdin(Stdio::null()).stdout(Stdio::null());
        let namespace: &Namespace = &topology.servers()[n];
        let started = Self { child: namespace.spawn(command)?, directory };
        let own = SocketAddr::new(server(n).into(), PLAIN);
        eventually(PATIENCE, || namespace.run_in(|| connect(own).map(drop))?)
            .with_context(|| format!("nginx does not serve at {own}"))?;
        Ok(started)
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that has ended by itself is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process, and no file outside `at`.
fn configuration(at: &Path, n: usize) -> Result<String> {
    let mut text = format!(
        "daemon off; master_process off; error_log stderr warn; pid {}/pid;\nevents {{ }}\nhttp {{\n  access_log off; client_max_body_size 0;\n",
        at.display()
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "  {kind}_temp_path {}/{kind};", at.display())?;
    }
    let [v4, v6] = [IpAddr::from(server(n)), server6(n).into()];
    for (port, how, told) in
        [(PLAIN, "", "- -"), (PROXIED, " proxy_protocol", "$proxy_protocol_addr $proxy_protocol_port")]
    {
        writeln!(text, "  server {{\n    listen {v4}:{port}{how}; listen [{v6}]:{port}{how};")?;
        writeln!(text, "    location = / {{ return 200 \"{n} $remote_addr {told}\\n\"; }}")?;
        writeln!(text, "    location /files/ {{ root {}; dav_methods PUT; }}\n  }}", at.display())?;
    }
    text.push_str("}\n");
    Ok(text)
}

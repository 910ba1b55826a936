//! Listings of a running director. Long ones, of a million connections or a hundred thousand real servers, stream: the daemon's memory grows by little,
//! however slow the reader is. Counters are exact, whatever is edited meanwhile.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{MsgFlags, send};
use shunt_bench::director::{Director, SOCKET};
use shunt_bench::topology::{Options, Topology, VIP, server, server6};
use shunt_bench::traffic::HTTP_PORT;
use shunt_tests::frames;

use crate::ground::{
    Backend, PATIENCE, eventually, get_each, launcher, permitted, say, serve, serve_at, services, start,
    start_workers,
};
use crate::wire::Wire;

/// What a listing may add to the daemon's memory, in KiB.
const MOST: u64 = 64 << 10;

const SERVICE: SocketAddrV4 = SocketAddrV4::new(VIP, 9);

/// Connections of the long listing.
const CONNECTIONS: u64 = 1_000_000;

#[test]
fn a_million_connections_are_listed_in_little_memory() -> Result<()> {
    if !permitted(a_million_connections_are_listed_in_little_memory)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let backend = Backend::that_work()?.remove(0);
    let director = start(&topology, backend, &[])?;
    // Its kernel takes what comes and answers nothing.
    let _sink = topology.servers()[0].run_in(|| UdpSocket::bind((server(0), SERVICE.port())))??;
    serve_at(&director, "-u", SERVICE.into(), (server(0), SERVICE.port()).into(), &["-m"])?;
    begin(&topology)?;

    let before = Memory::of(&director)?;
    let listed = director.ipvsadm(&["-L", "-n", "-c"])?;
    let rows = listed.lines().filter(|line| line.starts_with("UDP ")).count();
    ensure!(rows as u64 == CONNECTIONS, "{rows} connections are listed");
    before.check("a listing")?;

    let listed = director.ipvsadm(&["-L", "-n", "-c", "--json"])?;
    let rows = listed.lines().filter(|line| line.starts_with("{\"protocol\":\"udp\"")).count();
    ensure!(rows as u64 == CONNECTIONS && listed.ends_with("\n]}\n"), "{rows} connections are listed");
    drop(listed);

    // Those who ask and do not read keep a page each.
    let request = br#"{"version":1,"request":"connections"}"#;
    let mut sleepers = Vec::new();
    for _ in 0..20 {
        let mut stream = topology.director().run_in(|| UnixStream::connect(SOCKET))??;
        std::io::Write::write_all(&mut stream, &(request.len() as u32).to_be_bytes())?;
        std::io::Write::write_all(&mut stream, request)?;
        stream.read_exact(&mut [0; 64]).context("the listing begins")?;
        sleepers.push(stream);
    }
    director.ipvsadm(&["-L", "-n"])?;
    before.check("twenty listings that nobody reads")?;
    drop(sleepers);
    director.stop()
}

/// Begins the connections, by a datagram each; what is lost on the way is sent again.
fn begin(topology: &Topology) -> Result<()> {
    let wire = Wire::open(topology)?;
    let deadline = Instant::now() + Duration::from_secs(180);
    let mut frame = frames::udp((wire.client, wire.director), (Ipv4Addr::UNSPECIFIED, 0), (VIP, 9));
    // Without a checksum, so that only the header's is to be made.
    frame[40..42].fill(0);
    let begun = || Ok::<_, anyhow::Error>(services(topology)?[0].servers[0].inactive);
    while u64::from(begun()?) < CONNECTIONS {
        ensure!(Instant::now() < deadline, "{} connections so far", begun()?);
        for n in 0..CONNECTIONS as u32 {
            let (host, port) = (n / 20_000, 10_000 + n % 20_000);
            frame[26..30].copy_from_slice(&(0x0a01_0200 + host).to_be_bytes());
            frame[34..36].copy_from_slice(&(port as u16).to_be_bytes());
            frame[24..26].fill(0);
            let sum = frames::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            while let Err(error) = send(wire.socket.as_raw_fd(), &frame, MsgFlags::empty()) {
                ensure!(error == nix::errno::Errno::ENOBUFS, "sending: {error}");
                thread::yield_now();
            }
            // The rings hold 2,048 frames, and the director may have to share its core.
            if n.is_multiple_of(512) {
                thread::sleep(Duration::from_millis(3));
            }
        }
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_servers_are_listed_in_little_memory() -> Result<()> {
    if !permitted(a_hundred_thousand_servers_are_listed_in_little_memory)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let mut rules = String::new();
    for service in 0..1000u32 {
        rules += &format!("-A -u {VIP}:{} -s rr\n", 1000 + service);
        for n in 0..100u32 {
            let port = 1000 + service;
            rules += &format!("-a -u {VIP}:{port} -r 10.2.{}.{}:{port} -g -w 1\n", 1 + n / 50, 100 + n % 50);
        }
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), &rules)?;
    let path = file.path().to_str().context("a path in UTF-8")?;
    let director = start(&topology, Backend::AfPacket, &["--rules", path])?;

    let before = Memory::of(&director)?;
    for options in [&["-L", "-n"][..], &["-L", "-n", "--stats", "--nosort"]] {
        let listed = director.ipvsadm(options)?;
        ensure!(listed.lines().filter(|line| line.starts_with("UDP")).count() == 1000);
        ensure!(listed.lines().filter(|line| line.starts_with("  -> 10.2.")).count() == 100_000);
    }
    let listed = director.ipvsadm(&["-L", "-n", "--json"])?;
    ensure!(listed.matches("\"forwarding\":\"route\"").count() == 100_000);
    ensure!(director.ipvsadm(&["-S", "-n"])?.lines().count() == 101_000);
    before.check("listings of all servers")?;
    director.stop()
}

#[test]
fn counters_of_two_workers_never_go_back_and_are_exact() -> Result<()> {
    const CLIENTS: u64 = 300;
    if !permitted(counters_of_two_workers_never_go_back_and_are_exact)? {
        return Ok(());
    }
    let topology = Topology::new(Options { queues: 2 })?;
    let _servers = topology.start_servers()?;
    let backend = Backend::that_work()?.remove(0);
    let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
    let at = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", at, "-m", HTTP_PORT)?;
    let (service, first) = (at.to_string(), format!("{}:{HTTP_PORT}", server(0)));

    let totals = || -> Result<Vec<[u64; 5]>> {
        let listed = services(&topology)?;
        let servers = listed[0].servers.iter().map(|server| server.stats);
        let all = [listed[0].stats].into_iter().chain(servers);
        Ok(all.map(|s| [s.conns, s.in_packets, s.out_packets, s.in_bytes, s.out_bytes]).collect())
    };
    thread::scope(|scope| -> Result<()> {
        let traffic = scope.spawn(|| get_each(&topology, at.into(), CLIENTS as usize));
        let mut before = totals()?;
        while !traffic.is_finished() {
            for edit in [
                &["-e", "-t", &service, "-r", &first, "-m", "-w", "2"][..],
                &["-E", "-t", &service, "-s", "wrr"],
                &["-e", "-t", &service, "-r", &first, "-m", "-w", "1"],
                &["-E", "-t", &service, "-s", "rr"],
            ] {
                director.ipvsadm(edit)?;
                let now = totals()?;
                let steps = now.iter().flatten().zip(before.iter().flatten());
                ensure!(steps.clone().all(|(now, before)| now >= before), "{before:?}, then {now:?}");
                before = now;
            }
        }
        traffic.join().ok().context("the clients panicked")?.map(drop)
    })?;
    // The last FINs may still be under way.
    eventually(Duration::from_secs(10), || {
        let listed = services(&topology)?;
        ensure!(listed[0].servers.iter().all(|server| server.active == 0), "{listed:?}");
        Ok(())
    })?;
    let all = totals()?;
    ensure!(all[0][0] == CLIENTS, "{} connections for {CLIENTS} clients", all[0][0]);
    ensure!(
        (0..5).all(|n| all[0][n] == all[1][n] + all[2][n]),
        "a service is the sum of its servers: {all:?}"
    );
    director.stop()
}

/// A daemon's memory at some moment; its peak is counted from then on.
struct Memory {
    process: u32,
    resident: u64,
}

impl Memory {
    fn of(director: &Director) -> Result<Self> {
        let process = director.id();
        // Makes the peak what is resident now (proc(5)).
        fs::write(format!("/proc/{process}/clear_refs"), "5")?;
        Ok(Self { process, resident: field(process, "VmRSS:")? })
    }

    /// Says if it has grown by too much, be it for a moment.
    fn check(&self, by: &str) -> Result<()> {
        let peak = field(self.process, "VmHWM:")?;
        let grown = peak.saturating_sub(self.resident);
        say(&format!("{by}: {} KiB before, {grown} more at the peak", self.resident));
        ensure!(grown < MOST, "{by} took {grown} KiB, {MOST} are allowed");
        Ok(())
    }
}

/// A number of KiB in a process's status.
fn field(process: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let Some(line) = status.lines().find_map(|line| line.strip_prefix(name)) else { bail!("no {name}") };
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

#[test]
fn what_nobody_reads_on_ends_quietly() -> Result<()> {
    if !permitted(what_nobody_reads_on_ends_quietly)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let marked = director.shunt(&["mark", "add", "--destination", "10.10.0.0/16", "--mark", "1"], "")?;
    ensure!(marked.status.success(), "{marked:?}");
    let all: [&[&str]; 7] = [
        &["status"],
        &["status", "--json"],
        &["status", "--profile"],
        &["sysctl"],
        &["mark", "list"],
        &["ipvsadm", "-Ln"],
        &["completions", "bash"],
    ];
    for words in all {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = launcher()?.shunt();
        command.args(words).stdout(writer).stderr(Stdio::piped());
        let output = topology.director().spawn(command)?.wait_with_output()?;
        ensure!(output.status.code() == Some(141), "{words:?}: {output:?}");
        ensure!(output.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    director.stop()
}

#[test]
fn a_server_of_the_other_family_is_listed_by_its_address_also_when_it_is_removed() -> Result<()> {
    if !permitted(a_server_of_the_other_family_is_listed_by_its_address_also_when_it_is_removed)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let service = SERVICE.to_string();
    let at = format!("[{}]:{}", server6(0), SERVICE.port());
    director.ipvsadm(&["-A", "-u", &service, "-s", "rr", "-p", "60"])?;
    director.ipvsadm(&["-a", "-u", &service, "-r", &at, "-i"])?;
    topology.client().run_in(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", SERVICE))??;
    // The connection and its template.
    let is_listed = || {
        let lines = director.ipvsadm(&["-L", "-n", "-c"])?;
        let named = lines.lines().filter(|line| line.trim_end().ends_with(&at)).count();
        ensure!(named == 2, "{lines}");
        Ok(())
    };
    eventually(PATIENCE, is_listed)?;
    director.ipvsadm(&["-d", "-u", &service, "-r", &at])?;
    is_listed().context("after -d")?;
    director.ipvsadm(&["-C"])?;
    is_listed().context("after -C")?;
    director.stop()
}

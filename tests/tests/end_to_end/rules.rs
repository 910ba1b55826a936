//! Rules: changed under load, read from a file, saved and restored by the tools people know.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shunt_bench::director::{Director, Launcher};
use shunt_bench::topology::{Options, SERVERS, Topology, VIP, server};
use shunt_bench::traffic::{HTTP_PORT, Sources, answer, http, long_answer};

use crate::ground::{
    Backend, PATIENCE, connect, counter, get_each, permitted, resets_sent, serve, services, shunt_binary,
    start, start_workers,
};

const HTTP: SocketAddrV4 = SocketAddrV4::new(VIP, HTTP_PORT);

#[test]
fn rules_change_under_load_and_no_connection_breaks() -> Result<()> {
    if !permitted(rules_change_under_load_and_no_connection_breaks)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        rules_change_under_load(backend)?;
    }
    Ok(())
}

/// A long download and a loop of requests, while servers are drained, removed, added and weighted, and services come and go.
fn rules_change_under_load(backend: Backend) -> Result<()> {
    const LENGTH: usize = 8 << 20;
    const ROUNDS: usize = 12;
    let topology = Topology::new(Options { queues: 2 })?;
    let _servers = topology.start_servers()?;
    let Some(director) = start_workers(&topology, backend, 2)? else { return Ok(()) };
    serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;

    let over = AtomicBool::new(false);
    let (downloaded, loaded, changed) = thread::scope(|scope| {
        let download = scope.spawn(|| topology.client().run_in(|| slow_download(LENGTH, &over)));
        let requests = scope.spawn(|| {
            // Other addresses than the download's, which the kernel gives the first.
            let sources = Sources::new((1..8).map(|n| shunt_bench::topology::client(n).into()));
            let load = http::Load {
                targets: vec![HTTP.into()],
                connections: 4,
                keep_alive: false,
                bytes: None,
                warm_up: Duration::ZERO,
                window: Duration::from_millis(1500),
            };
            topology.client().run_in(|| http::run(&load, &sources))
        });
        let changes = scope.spawn(|| {
            let changed = (0..ROUNDS).try_for_each(|round| change_everything(&director, round));
            over.store(true, Ordering::Relaxed);
            changed
        });
        let joined = "does not panic";
        (download.join().expect(joined), requests.join().expect(joined), changes.join().expect(joined))
    });
    changed.context("changing the rules")?;
    let outcome = loaded?.context("the request loop")?;
    downloaded?.context("the download")?;
    ensure!(outcome.answers.iter().all(|&n| n > 20), "{:?} answers", outcome.answers);
    director.stop()
}

/// Takes server 1 out the way operators do, and puts it back; meanwhile weights and services change.
fn change_everything(director: &Director, round: usize) -> Result<()> {
    let service = HTTP.to_string();
    let [stays, goes] = [0, 1].map(|n| format!("{}:{HTTP_PORT}", server(n)));
    let other = format!("{VIP}:{}", 8000 + round);
    let weight = (1 + round % 3).to_string();
    let breath = || thread::sleep(Duration::from_millis(20));
    director.ipvsadm(&["-A", "-t", &other, "-s", "rr"])?;
    director.ipvsadm(&["-e", "-t", &service, "-r", &goes, "-m", "-w", "0"])?;
    breath();
    director.ipvsadm(&["-E", "-t", &service, "-s", if round.is_multiple_of(2) { "wrr" } else { "rr" }])?;
    director.ipvsadm(&["-e", "-t", &service, "-r", &stays, "-m", "-w", &weight])?;
    // Only a server without connections is removed here; what becomes of the others is the next test's.
    director.ipvsadm(&["-a", "-t", &other, "-r", &goes, "-m"])?;
    director.ipvsadm(&["-d", "-t", &other, "-r", &goes])?;
    director.ipvsadm(&["-e", "-t", &service, "-r", &goes, "-m", "-w", "2"])?;
    breath();
    director.ipvsadm(&["-D", "-t", &other]).map(drop)
}

/// Reads a long answer in many small sips, so that it takes until `over`, and checks every byte.
fn slow_download(length: usize, over: &AtomicBool) -> Result<()> {
    let mut stream = connect(HTTP.into())?;
    request(&mut stream, length)?;
    let mut said = Vec::with_capacity(length);
    let mut sip = vec![0; 16 << 10];
    loop {
        match stream.read(&mut sip).context("reading")? {
            0 => bail!("closed after {} bytes", said.len()),
            n => said.extend_from_slice(&sip[..n]),
        }
        if (0..SERVERS).any(|n| long_answer(n, length).len() == said.len()) {
            break;
        }
        if !over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(2));
        }
    }
    ensure!((0..SERVERS).any(|n| long_answer(n, length) == said), "the download is damaged");
    Ok(())
}

fn request(stream: &mut TcpStream, length: usize) -> Result<()> {
    Ok(write!(stream, "GET /bytes/{length} HTTP/1.1\r\nHost: test\r\n\r\n")?)
}

#[test]
fn new_connections_follow_the_rules_at_once() -> Result<()> {
    if !permitted(new_connections_follow_the_rules_at_once)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    serve(&director, "-t", HTTP, "-m", HTTP_PORT)?;
    let service = HTTP.to_string();
    for round in 0..4 {
        let (stays, goes) = (round % 2, 1 - round % 2);
        let at = format!("{}:{HTTP_PORT}", server(goes));
        director.ipvsadm(&["-d", "-t", &service, "-r", &at])?;
        let answers = get_each(&topology, HTTP.into(), 4)?;
        ensure!(answers.iter().all(|&n| n == stays), "after -d {at}: {answers:?}");

        director.ipvsadm(&["-a", "-t", &service, "-r", &at, "-m"])?;
        let answers = get_each(&topology, HTTP.into(), 4)?;
        ensure!(answers.iter().filter(|&&n| n == goes).count() == 2, "after -a {at}: {answers:?}");
    }
    director.ipvsadm(&["-D", "-t", &service])?;
    let error = get_each(&topology, HTTP.into(), 1).err().context("an answer without a service")?;
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    director.stop()
}

#[test]
fn a_removed_server_stalls_its_connections_and_an_added_one_revives_them_over_af_xdp() -> Result<()> {
    stalls_and_revives(
        a_removed_server_stalls_its_connections_and_an_added_one_revives_them_over_af_xdp,
        Backend::AfXdp,
    )
}

#[test]
fn a_removed_server_stalls_its_connections_and_an_added_one_revives_them_over_af_packet() -> Result<()> {
    stalls_and_revives(
        a_removed_server_stalls_its_connections_and_an_added_one_revives_them_over_af_packet,
        Backend::AfPacket,
    )
}

/// One connection rests when its server goes, one is in the middle of a download: the server's segments still come, and a client
/// that saw them from the server's own address would reset the connection.
fn stalls_and_revives(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    const LENGTH: usize = 4 << 20;
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, backend, &[])?;
    let service = HTTP.to_string();
    let at = format!("{}:{HTTP_PORT}", server(0));
    director.ipvsadm(&["-A", "-t", &service, "-s", "rr"])?;
    director.ipvsadm(&["-a", "-t", &service, "-r", &at, "-m"])?;

    let open = || topology.client().run_in(|| connect(HTTP.into()))?;
    let (mut resting, mut busy) = (open()?, open()?);
    ask_for_short(&mut resting)?;
    ensure!(read_exactly(&mut resting, answer(0).len())? == answer(0));
    request(&mut busy, LENGTH)?;
    let mut said = read_exactly(&mut busy, 100_000)?;

    director.ipvsadm(&["-d", "-t", &service, "-r", &at])?;
    ask_for_short(&mut resting)?;
    for (stream, what) in [(&mut resting, "resting"), (&mut busy, "busy")] {
        let more = read_until_silent(stream).with_context(|| format!("the {what} connection"))?;
        if what == "resting" {
            ensure!(more.is_empty(), "an answer through a server that was removed");
        } else {
            said.extend(more);
            ensure!(said.len() < LENGTH, "the download went on to its end");
        }
    }
    ensure!(counter(&topology, "drop.no_dest")? > 0);
    let resets = resets_sent(topology.client())?;
    ensure!(resets == 0, "the client was sent segments it did not know, and answered with {resets} RSTs");
    ensure!(director.ipvsadm(&["-L", "-n", "-c"])?.lines().count() == 2 + 2, "both are still listed");

    director.ipvsadm(&["-a", "-t", &service, "-r", &at, "-m"])?;
    ensure!(read_exactly(&mut resting, answer(0).len())? == answer(0), "another answer after the revival");
    said.extend(read_exactly(&mut busy, long_answer(0, LENGTH).len() - said.len())?);
    ensure!(said == long_answer(0, LENGTH), "the download was damaged");

    // The same when the whole service goes, as long as there is another one.
    director.ipvsadm(&["-A", "-t", &format!("{VIP}:1"), "-s", "rr"])?;
    director.ipvsadm(&["-D", "-t", &service])?;
    ask_for_short(&mut resting)?;
    let more = read_until_silent(&mut resting).context("the connection of a removed service")?;
    ensure!(more.is_empty(), "an answer through a service that was removed");
    let error = get_each(&topology, HTTP.into(), 1).err().context("an answer without a service")?;
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    director.ipvsadm(&["-A", "-t", &service, "-s", "rr"])?;
    director.ipvsadm(&["-a", "-t", &service, "-r", &at, "-m"])?;
    ensure!(read_exactly(&mut resting, answer(0).len())? == answer(0), "another answer after the revival");
    director.stop()
}

fn ask_for_short(stream: &mut TcpStream) -> Result<()> {
    Ok(stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?)
}

fn read_exactly(stream: &mut TcpStream, length: usize) -> Result<Vec<u8>> {
    let mut said = vec![0; length];
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut said).with_context(|| format!("reading {length} bytes"))?;
    Ok(said)
}

/// Everything that comes until nothing has come for a while. An end or a reset is an error.
fn read_until_silent(stream: &mut TcpStream) -> Result<Vec<u8>> {
    // Twice the kernel's shortest retransmission timeout and a bit.
    stream.set_read_timeout(Some(Duration::from_millis(700)))?;
    let (mut said, mut some) = (Vec::new(), vec![0; 1 << 16]);
    let begun = Instant::now();
    loop {
        match stream.read(&mut some) {
            Ok(0) => bail!("it was closed"),
            Ok(n) => said.extend_from_slice(&some[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(said),
            Err(error) => return Err(error).context("it broke"),
        }
        ensure!(begun.elapsed() < PATIENCE, "it goes on and on");
    }
}

#[test]
fn rules_from_a_file_are_in_force_when_the_director_is_ready() -> Result<()> {
    if !permitted(rules_from_a_file_are_in_force_when_the_director_is_ready)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("director.rules");
    let rules = format!(
        "# the shop\n-A -t {VIP}:80 -s wrr\n-a -t {VIP}:80 -r {0}:80 -m -w 1\n\n-a -t {VIP}:80 -r {1}:80 -m -w 2\n",
        server(0),
        server(1),
    );
    fs::write(&file, rules)?;
    for backend in Backend::that_work()? {
        let director = start(&topology, backend, &["--rules", &file.to_string_lossy()])?;
        let answers = get_each(&topology, HTTP.into(), 9)?;
        ensure!(answers.iter().filter(|&&n| n == 1).count() == 6, "{answers:?}");
        director.stop()?;
    }
    Ok(())
}

#[test]
fn the_tools_people_know_are_links_to_the_binary() -> Result<()> {
    if !permitted(the_tools_people_know_are_links_to_the_binary)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let directory = tempfile::tempdir()?;
    let tool = |name: &str, words: &[&str], input: &str| -> Result<String> {
        let link = directory.path().join(name);
        if !link.exists() {
            symlink(shunt_binary()?, &link)?;
        }
        let mut command = Launcher::find()?.with_shunt(link).shunt();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = topology.director().spawn(command)?;
        // Closed at the end of the line: that is the end of the rules.
        child.stdin.take().context("a pipe was asked for")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name} {words:?}: {}: {said}", output.status);
        ensure!(said.is_empty(), "{name} {words:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };

    let (web, echo) = (format!("{VIP}:80"), format!("{VIP}:7"));
    tool("ipvsadm", &["-A", "-t", &web, "-s", "wrr"], "")?;
    for (n, weight) in ["3", "1"].iter().enumerate() {
        tool("ipvsadm", &["-a", "-t", &web, "-r", &format!("{}:80", server(n)), "-m", "-w", weight], "")?;
    }
    tool("ipvsadm", &["-A", "-u", &echo, "-s", "rr"], "")?;
    tool("ipvsadm", &["-a", "-u", &echo, "-r", &format!("{}:7", server(0)), "-g"], "")?;
    let listing = tool("ipvsadm", &["-L", "-n"], "")?;
    let saved = tool("ipvsadm-save", &["-n"], "")?;
    ensure!(saved.lines().count() == 5, "{saved}");
    ensure!(saved.contains(&format!("-a -t {web} -r {}:80 -m -w 3\n", server(0))), "{saved}");

    tool("ipvsadm", &["-C"], "")?;
    ensure!(services(&topology)?.is_empty(), "-C left something");
    tool("ipvsadm-restore", &[], &saved)?;
    ensure!(tool("ipvsadm-save", &["-n"], "")? == saved, "save, restore and save gives something else");
    ensure!(tool("ipvsadm", &["-L", "-n"], "")? == listing);
    let answers = get_each(&topology, SocketAddr::from(HTTP), 8)?;
    ensure!(answers.iter().filter(|&&n| n == 0).count() == 6, "{answers:?}");
    director.stop()
}

//! What cannot be started says why in one clear line, exits with a code that is not 0, and leaves everything as it was.

use std::fs;
use std::net::{IpAddr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use shunt_bench::director::SOCKET;
use shunt_bench::machine::cores;
use shunt_bench::netlink::Netlink;
use shunt_bench::privilege::{Privilege, current};
use shunt_bench::topology::{
    DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, DIRECTOR_TO_SERVERS, Options, Topology, VIP,
};
use shunt_bench::traffic::HTTP_PORT;
use shunt_dataplane::steer::{Interface, Preference, Xdp};

use crate::ground::{
    Backend, PATIENCE, eventually, get_each, launcher, permitted, run_to_end, say, serve, start, status,
};
use crate::lifecycle::{difference, machine};

/// Of a director that is refused.
const OTHER_SOCKET: &str = "/run/other.sock";

#[test]
fn an_interface_that_does_not_exist_is_named() -> Result<()> {
    if !permitted(an_interface_that_does_not_exist_is_named)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for backend in ["auto", "af-xdp", "af-packet"] {
        let words = ["--interface", DIRECTOR_CLIENT_SIDE, "--interface", "eth77", "--backend", backend];
        refused(&topology, run(&words)?, &["eth77", "does not exist"])?;
    }
    Ok(())
}

#[test]
fn an_interface_that_is_named_twice_is_refused() -> Result<()> {
    if !permitted(an_interface_that_is_named_twice_is_refused)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for backend in ["auto", "af-packet"] {
        let words = ["--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_CLIENT_SIDE];
        let words = [&words[..], &["--backend", backend]].concat();
        refused(&topology, run(&words)?, &[DIRECTOR_CLIENT_SIDE, "twice"])?;
    }
    Ok(())
}

#[test]
fn a_bridge_whose_frames_are_filtered_before_they_are_taken_is_refused() -> Result<()> {
    if !permitted(a_bridge_whose_frames_are_filtered_before_they_are_taken_is_refused)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    topology.director().run_in(|| Netlink::open()?.bridge("br7"))??;
    if let Err(error) = topology.director().set_variables(&[("bridge/bridge-nf-call-iptables", "1")]) {
        say(&format!("skip: bridges with netfilter: {error:#}"));
        return Ok(());
    }
    let words = ["--interface", "br7", "--interface", DIRECTOR_SERVER_SIDE, "--backend", "af-packet"];
    refused(&topology, run(&words)?, &["br7", "sysctl -w net.bridge.bridge-nf-call-iptables=0"])
}

#[test]
fn cores_that_are_not_there_are_named() -> Result<()> {
    if !permitted(cores_that_are_not_there_are_named)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let first = cores()?[0];
    for backend in ["auto", "af-packet"] {
        let all = both(&["--backend", backend, "--cores", "1000"])?;
        refused(&topology, all, &["core 1000"])?;
        let twice = format!("{first},{first}");
        refused(&topology, both(&["--backend", backend, "--cores", &twice])?, &["twice"])?;
        // No number at all is the command line's to refuse, in more than a line.
        let output = run_to_end(topology.director(), both(&["--backend", backend, "--cores", "all"])?)?;
        ensure!(output.status.code() == Some(2), "{output:?}");
    }
    Ok(())
}

#[test]
fn more_workers_than_queues_are_refused_with_the_cure() -> Result<()> {
    if !permitted(more_workers_than_queues_are_refused_with_the_cure)? || !Backend::AfXdp.works()? {
        return Ok(());
    }
    let cores = cores()?;
    if cores.len() < 2 {
        say("skip: 2 workers: there is one core");
        return Ok(());
    }
    let topology = Topology::new(Options { queues: 1 })?;
    let two = format!("{},{}", cores[0], cores[1]);
    let expected = [DIRECTOR_CLIENT_SIDE, "1 receive queue", "2 workers", "ethtool -L"];
    refused(&topology, both(&["--backend", "af-xdp", "--cores", &two])?, &expected)
}

#[test]
fn an_interface_with_another_director_is_refused() -> Result<()> {
    if !permitted(an_interface_with_another_director_is_refused)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    for backend in ["auto", "af-packet"] {
        let expected = [DIRECTOR_CLIENT_SIDE, "another shunt"];
        refused(&topology, both(&["--backend", backend])?, &expected)?;
    }
    // The one that was there goes on.
    get_each(&topology, http.into(), 4)?;
    director.stop()
}

/// Somebody else's program: this test's own, which passes everything.
#[test]
fn an_interface_with_another_xdp_program_is_refused() -> Result<()> {
    if !permitted(an_interface_with_another_xdp_program_is_refused)? || !Backend::AfXdp.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let other = topology.director().run_in(|| -> Result<_> {
        let index = nix::net::if_::if_nametoindex(DIRECTOR_CLIENT_SIDE)?;
        let name = DIRECTOR_CLIENT_SIDE.to_owned();
        let mut other = Xdp::load(&[Interface { name, index, mac: [0; 6] }])?;
        other.attach(Preference::Fastest)?;
        Ok(other)
    })??;
    for backend in ["auto", "af-xdp"] {
        let expected = [DIRECTOR_CLIENT_SIDE, "another XDP program"];
        refused(&topology, both(&["--backend", backend])?, &expected)?;
    }
    drop(other);
    start(&topology, Backend::AfXdp, &[])?.stop()
}

#[test]
fn a_socket_that_is_served_or_no_socket_is_refused() -> Result<()> {
    if !permitted(a_socket_that_is_served_or_no_socket_is_refused)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    serve(&director, "-t", http, "-m", HTTP_PORT)?;
    let words = ["--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE];
    for backend in ["auto", "af-packet"] {
        let mut command = launcher()?.shunt();
        command.arg("run").args(words).args(["--backend", backend, "--socket", SOCKET]);
        refused(&topology, command, &[SOCKET, "already served"])?;
    }
    // It is still the first one's, which goes on.
    get_each(&topology, http.into(), 4)?;
    ensure!(status(&topology)?.epoch > 1);

    let file = "/run/precious";
    topology.director().run_in(|| fs::write(file, "do not touch"))??;
    let mut command = launcher()?.shunt();
    command.arg("run").args(words).args(["--backend", "af-packet", "--socket", file]);
    refused(&topology, command, &[file, "no socket"])?;
    ensure!(topology.director().run_in(|| fs::read_to_string(file))?? == "do not touch");

    let mut command = launcher()?.shunt();
    command.arg("run").args(words).args(["--backend", "af-packet", "--socket", "/nowhere/shunt.sock"]);
    refused(&topology, command, &["/nowhere/shunt.sock"])?;
    director.stop()
}

#[test]
fn a_user_without_rights_is_refused() -> Result<()> {
    const NOBODY: u32 = 65_534;
    if !permitted(a_user_without_rights_is_refused)? {
        return Ok(());
    }
    if current()? != Privilege::Root {
        say("skip: a user without rights: a user namespace of one user has no other");
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    // Where nobody may write, so that the rights to the interfaces are what is missing.
    topology.director().run_in(|| {
        fs::create_dir("/run/nobody")?;
        std::os::unix::fs::chown("/run/nobody", Some(NOBODY), Some(NOBODY))
    })??;
    let socket = "/run/nobody/shunt.sock";
    for backend in ["auto", "af-xdp", "af-packet"] {
        let mut command = launcher()?.shunt();
        command
            .args(["run", "--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE])
            .args(["--backend", backend, "--socket", socket])
            .uid(NOBODY)
            .gid(NOBODY);
        match refused_in(&topology, command, &["ermi"], backend == "auto") {
            // The build lies where nobody may go.
            Err(error) if format!("{error:#}").contains("starting") => {
                say(&format!("skip: a user without rights: {error:#}"));
                return Ok(());
            }
            done => done?,
        }
        ensure!(
            !topology.director().run_in(|| Path::new(socket).exists())?,
            "{backend}: the socket file stays"
        );
    }
    Ok(())
}

#[test]
fn a_wrong_line_of_the_rules_is_named_and_nothing_is_touched() -> Result<()> {
    if !permitted(a_wrong_line_of_the_rules_is_named_and_nothing_is_touched)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("director.rules");
    let path = file.to_string_lossy().into_owned();
    let good = "# our services\n-A -t 10.9.0.1:80 -s rr\n";
    let wrong = [
        ("-a -t 10.9.0.1:80 -r 10.2.0.11:80 -x\n", "line 3"),
        ("-a -t 10.9.0.1:99 -r 10.2.0.11:80 -m\n", "line 3"),
        ("\n-A -t 10.9.0.1:81 -s nosuch\n", "line 4"),
        ("-A -t 10.9.0.1:80 -s rr\n", "line 3"),
        ("-D -t 10.9.0.1:80\n", "line 3"),
        ("what is this\n", "line 3"),
    ];
    for (line, number) in wrong {
        fs::write(&file, [good, line].concat())?;
        for backend in ["auto", "af-packet"] {
            let words = ["--backend", backend, "--rules", &path];
            refused(&topology, both(&words)?, &[&path, number, "expected"])?;
        }
    }
    // What shows only when the machine's addresses are known.
    let ours = format!(
        "{good}-a -t 10.9.0.1:80 -r 10.2.0.11:80 -m\n\n-a -t 10.9.0.1:80 -r {DIRECTOR_TO_SERVERS}:80 -m\n"
    );
    fs::write(&file, ours)?;
    let words = ["--backend", "af-packet", "--rules", &path];
    refused(&topology, both(&words)?, &[&path, "line 5", "--local-servers", "expected"])?;
    let words = ["--rules", "/nowhere/rules"];
    refused(&topology, both(&words)?, &["/nowhere/rules"])
}

#[test]
fn addresses_that_no_real_server_has_are_refused_once_the_service_is_there() -> Result<()> {
    if !permitted(addresses_that_no_real_server_has_are_refused_once_the_service_is_there)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let vip = SocketAddrV4::new(VIP, HTTP_PORT).to_string();
    let broadcast = "10.2.0.255:80";
    let add = |server: &str| director.ipvsadm(&["-a", "-t", &vip, "-r", server, "-m"]);
    for server in [broadcast, &vip] {
        let refused = add(server).err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains("Service not defined"), "{server}: {refused:?}");
    }
    director.ipvsadm(&["-A", "-t", &vip])?;
    for (server, why) in [(broadcast, "address not unicast"), (&vip, "the director itself")] {
        let refused = add(server).err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains(why), "{server}: {refused:?}");
    }
    add("10.2.0.254:80").map(drop)
}

#[test]
fn a_server_whose_address_became_the_directors_can_be_quiesced() -> Result<()> {
    if !permitted(a_server_whose_address_became_the_directors_can_be_quiesced)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;
    let vip = SocketAddrV4::new(VIP, HTTP_PORT).to_string();
    let (own, broadcast) = ("10.2.0.77:80", "10.2.7.255:80");
    director.ipvsadm(&["-A", "-t", &vip])?;
    for server in [own, broadcast] {
        director.ipvsadm(&["-a", "-t", &vip, "-r", server, "-m"])?;
    }
    for (address, prefix) in [([10, 2, 0, 77], 32), ([10, 2, 7, 1], 24)] {
        topology
            .director()
            .run_in(|| Netlink::open()?.address(DIRECTOR_SERVER_SIDE, IpAddr::from(address), prefix))??;
    }
    for server in [own, broadcast] {
        // Another way to it is as if it were added.
        eventually(PATIENCE, || {
            ensure!(
                director.ipvsadm(&["-e", "-t", &vip, "-r", server, "-g"]).is_err(),
                "it is not known yet"
            );
            Ok(())
        })?;
        director.ipvsadm(&["-e", "-t", &vip, "-r", server, "-m", "-w", "0"])?;
        let drained = director.shunt(&["drain", &vip, server], "")?;
        ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    }

    let rules = topology.director().run_in(|| {
        let rules = "/run/broadcast.rules";
        fs::write(rules, format!("-A -t {vip} -s rr\n-a -t {vip} -r {broadcast} -m\n")).map(|()| rules)
    })??;
    director.stop()?;
    refused(&topology, both(&["--rules", rules])?, &["line 2", broadcast, "broadcast"])
}

/// `shunt run` on both interfaces, with a socket of its own.
fn both(words: &[&str]) -> Result<Command> {
    run(&[&["--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE], words].concat())
}

fn run(words: &[&str]) -> Result<Command> {
    let mut command = launcher()?.shunt();
    command.arg("run").args(words).args(["--socket", OTHER_SOCKET]);
    Ok(command)
}

/// Runs it to its end, which must be a refusal of a single line with all these words.
fn refused(topology: &Topology, command: Command, words: &[&str]) -> Result<()> {
    refused_in(topology, command, words, false)
}

/// The same; with `warned`, after a line of the log that says which way did not work.
fn refused_in(topology: &Topology, command: Command, words: &[&str], warned: bool) -> Result<()> {
    let before = machine(topology)?;
    let output = run_to_end(topology.director(), command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(output.stdout.is_empty(), "on standard output: {}", String::from_utf8_lossy(&output.stdout));

    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.len() == 1 + usize::from(warned), "{} lines:\n{said}", lines.len());
    let last = lines.last().expect("there is at least one");
    ensure!(last.starts_with("shunt: "), "{last}");
    for line in &lines {
        ensure!(line.matches("(os error").count() <= 1, "the same reason twice: {line}");
    }
    let missing: Vec<_> = words.iter().filter(|word| !last.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} not in: {last}");

    ensure!(!topology.director().run_in(|| Path::new(OTHER_SOCKET).exists())?, "it left its socket file");
    eventually(std::time::Duration::from_secs(2), || {
        let after = machine(topology)?;
        ensure!(after == before, "it changed something:\n{}", difference(&before, &after));
        Ok(())
    })
}

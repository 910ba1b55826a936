//! From ready to gone: systemd is told, SIGTERM ends well, SIGKILL leaves nothing, a restart works at once.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::unistd::Pid;
use shunt_bench::director::SOCKET;
use shunt_bench::netlink::Netlink;
use shunt_bench::topology::{DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE, Options, Topology, VIP};
use shunt_bench::traffic::HTTP_PORT;

use crate::ground::{Backend, PATIENCE, eventually, get, get_each, launcher, permitted, say, serve, start};

#[test]
fn after_sigterm_and_after_sigkill_the_machine_is_as_before_over_af_xdp() -> Result<()> {
    leaves_nothing(after_sigterm_and_after_sigkill_the_machine_is_as_before_over_af_xdp, Backend::AfXdp)
}

#[test]
fn after_sigterm_and_after_sigkill_the_machine_is_as_before_over_af_packet() -> Result<()> {
    leaves_nothing(after_sigterm_and_after_sigkill_the_machine_is_as_before_over_af_packet, Backend::AfPacket)
}

fn leaves_nothing(test: impl Fn() -> Result<()>, backend: Backend) -> Result<()> {
    if !permitted(test)? || !backend.works()? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    let before = machine(&topology)?;

    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        // After the second round: on the socket file of a dead director.
        let mut director = start(&topology, backend, &[])?;
        serve(&director, "-t", http, "-m", HTTP_PORT)?;
        get_each(&topology, http.into(), 4)?;
        let during = machine(&topology)?;
        match backend {
            Backend::AfXdp => ensure!(during.xdp.iter().all(|ids| ids.len() == 1), "{during:?}"),
            Backend::AfPacket => ensure!(during.nftables > before.nftables, "{during:?}"),
        }

        if signal == Signal::SIGTERM {
            director.stop()?;
            ensure!(
                !topology.director().run_in(|| Path::new(SOCKET).exists())?,
                "the socket file is still there"
            );
        } else {
            kill(Pid::from_raw(director.id().cast_signed()), signal)?;
            eventually(PATIENCE, || {
                ensure!(director.check().is_err());
                Ok(())
            })?;
            ensure!(
                topology.director().run_in(|| Path::new(SOCKET).exists())?,
                "who removed the socket file?"
            );
        }

        // The kernel takes XDP programs off in the background.
        eventually(Duration::from_secs(2), || {
            let after = machine(&topology)?;
            ensure!(after == before, "after {signal}:\n{}", difference(&before, &after));
            Ok(())
        })?;
        // The service's port is the kernel's again, which has nobody there.
        let refused = topology.client().run_in(|| get(http.into()))?;
        let error = refused.err().context("there is an answer without a director")?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    }
    Ok(())
}

#[test]
fn busy_polling_sets_what_is_zero_and_puts_it_back() -> Result<()> {
    if !permitted(busy_polling_sets_what_is_zero_and_puts_it_back)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let _servers = topology.start_servers()?;
    let http = SocketAddrV4::new(VIP, HTTP_PORT);
    // What an operator has chosen.
    topology.director().run_in(|| fs::write(napi(DIRECTOR_SERVER_SIDE, "gro_flush_timeout"), "50000"))??;
    let before = machine(&topology)?;
    for backend in Backend::that_work()? {
        let director = start(&topology, backend, &["--busy-poll"])?;
        serve(&director, "-t", http, "-m", HTTP_PORT)?;
        get_each(&topology, http.into(), 4)?;
        let during = machine(&topology)?;
        let set =
            |interface, name| during.settings.get(&napi(interface, name)).map_or("", |value| value.trim());
        let settings = [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE]
            .map(|interface| [set(interface, "napi_defer_hard_irqs"), set(interface, "gro_flush_timeout")]);
        let expected = match backend {
            Backend::AfXdp => [["2", "200000"], ["2", "50000"]],
            Backend::AfPacket => [["0", "0"], ["0", "50000"]],
        };
        ensure!(settings == expected, "{}: {settings:?}", backend.name());
        director.stop()?;
        eventually(Duration::from_secs(2), || {
            let after = machine(&topology)?;
            ensure!(after == before, "{}", difference(&before, &after));
            Ok(())
        })?;
    }
    Ok(())
}

/// Where a setting of an interface is.
fn napi(interface: &str, name: &str) -> String {
    format!("/sys/class/net/{interface}/{name}")
}

#[test]
fn systemd_is_told_when_the_director_is_ready_and_when_it_stops() -> Result<()> {
    const NOTIFY: &str = "/run/notify";
    if !permitted(systemd_is_told_when_the_director_is_ready_and_when_it_stops)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let systemd = topology.director().run_in(|| UnixDatagram::bind(NOTIFY))??;
    systemd.set_read_timeout(Some(PATIENCE))?;

    let mut command = launcher()?.shunt();
    command
        .args(["run", "--interface", DIRECTOR_CLIENT_SIDE, "--interface", DIRECTOR_SERVER_SIDE])
        .args(["--backend", "af-packet", "--socket", SOCKET])
        .env("NOTIFY_SOCKET", NOTIFY)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut child = topology.director().spawn(command)?;
    let heard = || -> Result<String> {
        let mut said = [0; 256];
        let length = systemd.recv(&mut said).context("systemd hears nothing")?;
        Ok(String::from_utf8_lossy(&said[..length]).into_owned())
    };
    let ready = heard();
    // Ready means that it answers, now.
    let answers = topology.director().run_in(|| std::os::unix::net::UnixStream::connect(SOCKET))?;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
    let stopping = heard();
    let status = child.wait()?;
    ensure!(ready?.lines().any(|line| line == "READY=1"));
    ensure!(stopping?.lines().any(|line| line == "STOPPING=1"));
    ensure!(answers.is_ok() && status.success(), "{answers:?}, {status}");
    Ok(())
}

/// All that a director could have changed.
#[derive(Debug, PartialEq)]
pub struct Machine {
    xdp: [Vec<u32>; 2],
    nftables: usize,
    /// Files of /proc/sys/net and of the interfaces in /sys, with what they say.
    settings: BTreeMap<String, String>,
}

/// Looks at the director's machine.
pub fn machine(topology: &Topology) -> Result<Machine> {
    topology.director().run_in(|| {
        let netlink = Netlink::open()?;
        let mut settings = BTreeMap::new();
        for directory in ["/proc/sys/net/core", "/proc/sys/net/ipv4", "/proc/sys/net/ipv6"] {
            read_all(Path::new(directory), true, &mut settings);
        }
        for interface in [DIRECTOR_CLIENT_SIDE, DIRECTOR_SERVER_SIDE] {
            read_all(&Path::new("/sys/class/net").join(interface), false, &mut settings);
            for offload in OFFLOADS {
                let ethtool = shunt_dataplane::port::ethtool::Ethtool::open(interface)?;
                settings.insert(
                    format!("{interface} {offload:?}"),
                    format!("{:?}", ethtool.offload(offload).ok()),
                );
            }
        }
        Ok(Machine {
            xdp: [netlink.xdp_programs(DIRECTOR_CLIENT_SIDE)?, netlink.xdp_programs(DIRECTOR_SERVER_SIDE)?],
            nftables: nftables()?,
            settings,
        })
    })?
}

const OFFLOADS: [shunt_dataplane::port::ethtool::Offload; 4] = {
    use shunt_dataplane::port::ethtool::Offload;
    [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::Gro]
};

fn read_all(directory: &Path, deeply: bool, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if deeply {
                read_all(&path, true, into);
            }
        } else if let Ok(text) = fs::read_to_string(&path) {
            // Some cannot be read, and some say something else each time by design.
            if !VOLATILE.iter().any(|name| path.ends_with(name)) {
                into.insert(path.display().to_string(), text);
            }
        }
    }
}

/// Values that change by themselves, or with the load of the machine.
const VOLATILE: &[&str] = &["tcp_fastopen_key", "tcp_mem", "udp_mem"];

/// How many nftables tables there are, of all families.
fn nftables() -> Result<usize> {
    const NEWTABLE: u16 = 10 << 8;
    const GETTABLE: u16 = (10 << 8) | 1; // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
    const REQUEST_DUMP: u16 = 0x301; // NLM_F_REQUEST | NLM_F_DUMP
    const DONE: u16 = 3;
    const ERROR: u16 = 2;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut request = Vec::new();
    request.extend(20u32.to_ne_bytes());
    request.extend(GETTABLE.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence and port
    request.extend([0, 0, 0, 0]); // nfgenmsg: any family
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;

    let mut tables = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while rest.len() >= 16 {
            let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            match u16::from_ne_bytes([rest[4], rest[5]]) {
                NEWTABLE => tables += 1,
                DONE => return Ok(tables),
                // No nftables, no tables.
                ERROR => return Ok(0),
                _ => {}
            }
            rest = &rest[size.next_multiple_of(4).clamp(16, rest.len())..];
        }
    }
}

/// What is not as it was.
pub fn difference(before: &Machine, after: &Machine) -> String {
    let mut text =
        format!("XDP {:?} {:?}, nftables {} {}\n", before.xdp, after.xdp, before.nftables, after.nftables);
    for (name, value) in &after.settings {
        let was = before.settings.get(name);
        if was != Some(value) {
            text.push_str(&format!("{name}: {was:?}, then {value:?}\n"));
        }
    }
    text
}

#[test]
fn processors_stay_awake_for_as_long_as_a_director_that_wants_it() -> Result<()> {
    if !permitted(processors_stay_awake_for_as_long_as_a_director_that_wants_it)? {
        return Ok(());
    }
    const WISHES: &str = "/dev/cpu_dma_latency";
    if !Path::new(WISHES).exists() {
        say(&format!("skip: there is no {WISHES}"));
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    for (arguments, wishes) in [(&[][..], 0), (&["--wake-within", "20"], 1)] {
        let director = start(&topology, Backend::AfPacket, arguments)?;
        let open = fs::read_dir(format!("/proc/{}/fd", director.id()))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|file| file == Path::new(WISHES));
        ensure!(open.count() == wishes, "with {arguments:?}");
        director.stop()?;
    }
    Ok(())
}

//! An SCTP association by hand, over raw sockets, so that it needs no SCTP in the kernel; settings by `shunt sysctl`, which decide about it; and the kernel's own SCTP
//! every way, where it has it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use shunt_bench::director::Director;
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{Options, SERVERS, Topology, VIP, client, server};
use shunt_bench::traffic::decapsulator::Tunnel;
use shunt_tests::frames;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ground::{Backend, PATIENCE, lend, permitted, say, serve_with, source_for, start};
use crate::tunnels::{Family, lost};

const SCTP: i32 = 132;

const CLIENT: (Ipv4Addr, u16) = (client(0), 4000);
const SERVICE: (Ipv4Addr, u16) = (VIP, 5000);
const SERVER: (Ipv4Addr, u16) = (server(0), 5001);

// Types of chunks (RFC 9260 §3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// One end of an association.
struct End(Socket);

impl End {
    fn open(namespace: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let socket =
            namespace.run_in(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(SCTP))))??;
        socket.bind(&SockAddr::from(SocketAddrV4::new(address, 0)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends a packet of one chunk.
    fn send(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), chunk: u8) -> Result<()> {
        // The kernel writes what comes before the SCTP header.
        let frame = frames::sctp(([0; 6], [0; 6]), from, to, &[(chunk, &[0; 16])]);
        self.0.send_to(&frame[34..], &SockAddr::from(SocketAddrV4::new(to.0, 0)))?;
        Ok(())
    }

    /// Waits for a packet of this chunk between these ends; its CRC must be right. Gives it from the SCTP header on.
    fn expect(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), chunk: u8) -> Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            let length = (&self.0).read(&mut buffer).with_context(|| format!("waiting for chunk {chunk}"))?;
            let packet = &buffer[20..length];
            let ends = [&from.0.octets()[..], &to.0.octets(), &from.1.to_be_bytes(), &to.1.to_be_bytes()];
            if [&buffer[12..20], &packet[..4]].concat() != ends.concat() || packet[12] != chunk {
                continue;
            }
            let crc = frames::crc32c(&[&packet[..8], &[0; 4], &packet[12..]].concat());
            ensure!(packet[8..12] == crc.to_le_bytes(), "the CRC is wrong: {packet:02x?}");
            return Ok(packet.to_vec());
        }
        bail!("no chunk {chunk} from {from:?} to {to:?}")
    }
}

#[test]
fn an_association_by_nat() -> Result<()> {
    if !permitted(an_association_by_nat)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        if topology.client().run_in(|| std::path::Path::new("/proc/thread-self/net/sctp").exists())? {
            say("skip: SCTP by hand: this kernel's own would answer");
            return Ok(());
        }
        let director = start(&topology, backend, &[])?;
        let (service, real) = (format!("{VIP}:{}", SERVICE.1), format!("{}:{}", SERVER.0, SERVER.1));
        director.ipvsadm(&["-A", "--sctp-service", &service, "-s", "rr"])?;
        director.ipvsadm(&["-a", "--sctp-service", &service, "-r", &real, "-m"])?;
        let caller = End::open(topology.client(), CLIENT.0)?;
        let called = End::open(&topology.servers()[0], SERVER.0)?;

        for (there, back) in [(INIT, INIT_ACK), (COOKIE_ECHO, COOKIE_ACK)] {
            caller.send(CLIENT, SERVICE, there)?;
            called.expect(CLIENT, SERVER, there).with_context(|| format!("over {}", backend.name()))?;
            called.send(SERVER, CLIENT, back)?;
            caller.expect(SERVICE, CLIENT, back)?;
        }
        let listing = director.ipvsadm(&["-L", "-n", "-c"])?;
        let line = listing.lines().find(|line| line.starts_with("SCTP")).context("no SCTP is listed")?;
        ensure!(line.contains(" ESTABLISHED ") && line.trim_end().ends_with(&real), "{line}");

        let stranger = (CLIENT.0, CLIENT.1 + 1);
        caller.send(stranger, SERVICE, DATA)?;
        let abort = caller.expect(SERVICE, stranger, ABORT)?;
        ensure!(abort[13] == 1 && abort[4..8] == 7u32.to_be_bytes(), "{abort:02x?}");
        ensure!(sysctl(&director, &["sloppy_sctp=1"])?.0 == Some(0));
        caller.send(stranger, SERVICE, DATA)?;
        called.expect(stranger, SERVER, DATA)?;
        director.stop()?;
    }
    Ok(())
}

/// Where the kernels' own SCTP is asked for an echo, and where real servers behind NAT give it.
const ECHO: u16 = 5002;
const REAL_ECHO: u16 = 5003;

#[test]
fn the_kernels_own_associations_every_way() -> Result<()> {
    if !permitted(the_kernels_own_associations_every_way)? {
        return Ok(());
    }
    for backend in Backend::that_work()? {
        let topology = Topology::new(Options::default())?;
        topology.lend_local_addresses()?;
        let _unwrapping = topology.start_decapsulators(&[Tunnel::Ipip])?;
        let director = start(&topology, backend, &[])?;
        for family in [Family::V4, Family::V6] {
            for n in 0..SERVERS {
                for at in [(family.server(n), REAL_ECHO), (family.vip(), ECHO)] {
                    if let Err(error) = echo_over_sctp(&topology.servers()[n], at.into()) {
                        say(&format!("skip: the kernel's SCTP: {error:#}"));
                        return Ok(());
                    }
                }
            }
            let service = SocketAddr::new(family.vip(), ECHO);
            for (how, port) in [("-m", REAL_ECHO), ("-g", ECHO), ("-i", ECHO), ("--fullnat", REAL_ECHO)] {
                director.ipvsadm(&["-C"])?;
                serve_with(&director, "--sctp-service", service, |n| family.server(n), &[how], port)?;
                if how == "--fullnat" {
                    lend(&director, "--sctp-service", service, family.local())?;
                }
                // Both servers' turn.
                for _ in 0..SERVERS {
                    topology
                        .client()
                        .run_in(|| exchange(source_for(service), service))?
                        .with_context(|| format!("{how} at {service} over {}", backend.name()))?;
                }
            }
        }
        let lost = lost(&topology)?;
        ensure!(lost.is_empty(), "{lost:?}");
        director.stop()?;
    }
    Ok(())
}

fn sctp_socket(at: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::from(SCTP)))?;
    socket.set_reuse_address(true)?;
    // To one address: the other end hears of no others.
    socket.bind(&at.into()).with_context(|| format!("binding to {at}"))?;
    Ok(socket)
}

/// Sends back what comes, one association after the other, until the test ends.
fn echo_over_sctp(namespace: &Namespace, at: SocketAddr) -> Result<()> {
    let listener = namespace.run_in(|| sctp_socket(at))??;
    listener.listen(8)?;
    // The thread is left to the process: it holds a socket, and with it a namespace without a director.
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let mut heard = [0; 16_384];
            while let Ok(length @ 1..) = socket.read(&mut heard) {
                if socket.write_all(&heard[..length]).is_err() {
                    break;
                }
            }
        }
    });
    Ok(())
}

/// Messages that fit a packet, and one that needs several.
fn exchange(source: SocketAddr, target: SocketAddr) -> Result<()> {
    let mut socket = sctp_socket(source)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&target.into(), PATIENCE).with_context(|| format!("connecting to {target}"))?;
    for length in [1, 333, 1300, 5000] {
        let message: Vec<u8> = (0..length).map(|i| (i ^ length) as u8).collect();
        socket.write_all(&message)?;
        let mut heard = vec![0; length];
        socket.read_exact(&mut heard).with_context(|| format!("an echo of {length} bytes"))?;
        ensure!(heard == message, "another echo of {length} bytes");
    }
    Ok(())
}

#[test]
fn settings_are_shown_and_changed() -> Result<()> {
    if !permitted(settings_are_shown_and_changed)? {
        return Ok(());
    }
    let topology = Topology::new(Options::default())?;
    let director = start(&topology, Backend::AfPacket, &[])?;

    let (code, all, _) = sysctl(&director, &[])?;
    ensure!(code == Some(0), "{code:?}");
    for line in ["net.ipv4.vs.conn_reuse_mode = 1", "net.ipv4.vs.pmtu_disc = 1", "net.ipv4.vs.sloppy_tcp = 0"]
    {
        ensure!(all.lines().any(|known| known == line), "{line} is not in\n{all}");
    }
    let one = sysctl(&director, &["net.ipv4.vs.sloppy_tcp"])?;
    ensure!(one == (Some(0), "net.ipv4.vs.sloppy_tcp = 0\n".to_owned(), String::new()), "{one:?}");

    // What is wrong is said, and what is right is done.
    let (code, shown, said) = sysctl(
        &director,
        &["sloppy_tcp=1", "sloppy_tpc=1", "conn_reuse_mode=x", "net.ipv4.vs.nat_icmp_send=0x2"],
    )?;
    ensure!(code == Some(1), "{code:?}");
    ensure!(shown == "net.ipv4.vs.sloppy_tcp = 1\nnet.ipv4.vs.nat_icmp_send = 2\n", "{shown}");
    let said: Vec<&str> = said.lines().collect();
    ensure!(
        said.len() == 2 && said[0].contains("sloppy_tpc") && said[1].contains("conn_reuse_mode"),
        "{said:?}"
    );
    let again = sysctl(&director, &["sloppy_tcp", "conn_reuse_mode"])?;
    ensure!(again.1 == "net.ipv4.vs.sloppy_tcp = 1\nnet.ipv4.vs.conn_reuse_mode = 1\n", "{again:?}");
    director.stop()
}

/// Runs `shunt sysctl`. Gives its exit code, standard output and standard error.
fn sysctl(director: &Director, settings: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = director.shunt(&[&["sysctl"], settings].concat(), "")?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("shunt prints text");
    Ok((output.status.code(), text(output.stdout)?, text(output.stderr)?))
}

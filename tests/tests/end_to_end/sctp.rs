//! An SCTP association by hand, over raw sockets, so that it needs no SCTP in the kernel; and settings by `shunt sysctl`, which decide about it.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use shunt_bench::director::Director;
use shunt_bench::namespace::Namespace;
use shunt_bench::topology::{Options, Topology, VIP, client, server};
use shunt_tests::frames;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ground::{Backend, PATIENCE, permitted, say, start};

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

//! What every test stands on.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use shunt::api::{Request, Response, ServiceEntry, Status};
use shunt::socket::Client;
use shunt_bench::director::{Director, Launcher, SOCKET};
use shunt_bench::machine::cores;
use shunt_bench::namespace::Namespace;
use shunt_bench::privilege::{Privilege, current, permit_test};
use shunt_bench::topology::{CLIENTS, SERVERS, Topology, client, client6, server, server6};
use shunt_bench::traffic::{Sources, answer};

/// Longer than any answer takes on a loaded machine; a lost SYN alone costs a second.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A way into the director's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    AfXdp,
    AfPacket,
}

impl Backend {
    /// Those that can work here.
    pub fn that_work() -> Result<Vec<Self>> {
        let mut those = Vec::new();
        for backend in [Self::AfXdp, Self::AfPacket] {
            if backend.works()? {
                those.push(backend);
            }
        }
        Ok(those)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af-xdp",
            Self::AfPacket => "af-packet",
        }
    }

    /// Whether it can work here. Says so if not.
    pub fn works(self) -> Result<bool> {
        let works = self == Self::AfPacket || current()? == Privilege::Root;
        if !works {
            say("skip: AF_XDP: loading XDP programs (bpf) is refused in a user namespace");
        }
        Ok(works)
    }
}

/// Whether a test may make namespaces. If not, it was run again where it may, or has said `skip:`. The test passes itself: its path is
/// its name in the harness.
pub fn permitted<T: Fn() -> Result<()>>(_test: T) -> Result<bool> {
    let path = std::any::type_name::<T>();
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    // Now, not in the middle of the test.
    shunt_binary()?;
    permit_test(name)
}

/// Past the harness, which shows nobody what a passing test prints.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The binary that is tested: `SHUNT_BIN`, or the one cargo built beside this test.
pub fn shunt_binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("SHUNT_BIN") {
        return Ok(named.into());
    }
    let this = std::env::current_exe().context("finding this test's own file")?;
    let beside = this.ancestors().skip(1).take(2).map(|directory| directory.join("shunt"));
    beside.into_iter().find(|candidate| candidate.is_file()).context(
        "there is no shunt beside this test; build it first: cargo build --workspace --bins (or set SHUNT_BIN)",
    )
}

/// Starts the real binary.
pub fn launcher() -> Result<Launcher> {
    Ok(Launcher::find()?.with_shunt(shunt_binary()?))
}

/// A director on the topology's interfaces.
pub fn start<'t>(topology: &'t Topology, backend: Backend, args: &[&str]) -> Result<Director<'t>> {
    let args = [&["--backend", backend.name()], args].concat();
    Director::start(topology, launcher()?, &args)
}

/// A director with so many workers, on the last cores. `None` if there are not that many.
pub fn start_workers<'t>(
    topology: &'t Topology,
    backend: Backend,
    workers: usize,
) -> Result<Option<Director<'t>>> {
    start_workers_with(topology, backend, workers, &[])
}

/// The same with more options.
pub fn start_workers_with<'t>(
    topology: &'t Topology,
    backend: Backend,
    workers: usize,
    args: &[&str],
) -> Result<Option<Director<'t>>> {
    let cores = cores()?;
    let Some(first) = cores.len().checked_sub(workers) else {
        say(&format!("skip: {workers} workers: there are {} cores", cores.len()));
        return Ok(None);
    };
    let list: Vec<_> = cores[first..].iter().map(usize::to_string).collect();
    start(topology, backend, &[&["--cores", &*list.join(",")], args].concat()).map(Some)
}

/// Adds a service and both servers by their addresses of its family, as in any LVS tutorial. `how` is `-m` or `-g`.
pub fn serve(
    director: &Director,
    protocol: &str,
    at: impl Into<SocketAddr>,
    how: &str,
    port: u16,
) -> Result<()> {
    let at = at.into();
    let real = |n| if at.is_ipv4() { server(n).into() } else { server6(n).into() };
    serve_with(director, protocol, at, real, &[how], port)
}

/// The same with any servers, and any options for them.
pub fn serve_with(
    director: &Director,
    protocol: &str,
    at: SocketAddr,
    real: impl Fn(usize) -> IpAddr,
    how: &[&str],
    port: u16,
) -> Result<()> {
    let service = at.to_string();
    director.ipvsadm(&["-A", protocol, &service, "-s", "rr"])?;
    for n in 0..SERVERS {
        let server = SocketAddr::new(real(n), port).to_string();
        director.ipvsadm(&[&["-a", protocol, &service, "-r", &server], how].concat())?;
    }
    Ok(())
}

/// Adds a service with one server.
pub fn serve_at(
    director: &Director,
    protocol: &str,
    at: SocketAddr,
    real: SocketAddr,
    how: &[&str],
) -> Result<()> {
    let (service, server) = (at.to_string(), real.to_string());
    director.ipvsadm(&["-A", protocol, &service, "-s", "rr"])?;
    director.ipvsadm(&[&["-a", protocol, &service, "-r", &server], how].concat())?;
    Ok(())
}

/// Gives a FullNAT service the address that it goes to its servers from.
pub fn lend(director: &Director, protocol: &str, at: SocketAddr, local: IpAddr) -> Result<()> {
    director.ipvsadm(&["-P", protocol, &at.to_string(), "-z", &local.to_string()]).map(drop)
}

/// Asks for `/` over a connection of its own, from the calling thread's namespace. Says which server answered.
pub fn get(target: SocketAddr) -> Result<usize> {
    get_over(connect(target)?, target)
}

/// The same over a connection from that address and port.
pub fn get_from(source: SocketAddr, target: SocketAddr) -> Result<usize> {
    get_over(connect_from(source, target)?, target)
}

fn get_over(mut stream: TcpStream, target: SocketAddr) -> Result<usize> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).with_context(|| format!("reading the answer of {target}"))?;
    let whose = (0..SERVERS).find(|&n| answer(n) == said);
    whose.with_context(|| format!("{target} answered {:?}", String::from_utf8_lossy(&said)))
}

/// A client's address and port that nobody else gets. Left to itself the kernel may use a port again at once, and the second
/// connection would take the first one's entry in the director's table.
pub fn source() -> SocketAddr {
    static SOURCES: LazyLock<Sources> =
        LazyLock::new(|| Sources::new((0..CLIENTS).map(|n| IpAddr::from(client(n)))));
    SOURCES.next()
}

/// Its IPv6 twin.
pub fn source6() -> SocketAddr {
    static SOURCES: LazyLock<Sources> =
        LazyLock::new(|| Sources::new((0..CLIENTS).map(|n| IpAddr::from(client6(n)))));
    SOURCES.next()
}

/// One of the family that can reach this.
pub fn source_for(target: SocketAddr) -> SocketAddr {
    if target.is_ipv4() { source() } else { source6() }
}

/// The servers that answered so many clients, one after the other.
pub fn get_each(topology: &Topology, target: SocketAddr, times: usize) -> Result<Vec<usize>> {
    topology.client().run_in(|| (0..times).map(|_| get_from(source_for(target), target)).collect())?
}

/// Connects, with bounds on everything that may take long.
pub fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connecting to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The same from an address and port of one's own.
pub fn connect_from(source: SocketAddr, target: SocketAddr) -> Result<TcpStream> {
    let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // It bounds connecting, too.
    let bound = TimeVal::seconds(PATIENCE.as_secs() as i64);
    setsockopt(&socket, sockopt::SendTimeout, &bound)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &bound)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source))
        .with_context(|| format!("binding to {source}"))?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target))
        .with_context(|| format!("connecting from {source} to {target}"))?;
    Ok(socket.into())
}

/// A UDP socket of the calling thread's namespace that hears only `target`.
pub fn udp(target: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    udp_from((any, 0).into(), target)
}

/// The same from an address and port of one's own.
pub fn udp_from(source: SocketAddr, target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(source).context("making a UDP socket")?;
    socket.connect(target).with_context(|| format!("connecting to {target}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends one datagram and waits for the same to come back. UDP repeats nothing: a packet lost on the way is an error.
pub fn echo(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    socket.send(payload).context("sending a datagram")?;
    let mut said = [0; 2048];
    let length = socket.recv(&mut said).context("waiting for the echo")?;
    ensure!(&said[..length] == payload, "another echo than what was sent: {:02x?}", &said[..length]);
    Ok(())
}

/// Sends one datagram to where nobody takes it and waits for the ICMP error that says so.
pub fn told_that_it_is_closed(socket: &UdpSocket) -> Result<()> {
    socket.send(b"is it open")?;
    let error = socket.recv(&mut [0; 16]).err().context("an answer from a closed port")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

/// Listens in a namespace and says a word to everybody who connects, until the test ends.
pub fn say_to_all(namespace: &Namespace, at: SocketAddr, word: &'static str) -> Result<()> {
    let listener =
        namespace.run_in(|| TcpListener::bind(at))?.with_context(|| format!("listening on {at}"))?;
    // The thread is left to the process: it holds a socket, and with it a namespace without a director.
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(word.as_bytes());
        }
    });
    Ok(())
}

/// What is said by the one who listens there, from the calling thread's namespace.
pub fn hear(target: SocketAddr) -> Result<String> {
    let mut said = String::new();
    connect(target)?.read_to_string(&mut said).with_context(|| format!("listening to {target}"))?;
    Ok(said)
}

/// How many RSTs a namespace's kernel has sent (`OutRsts` of RFC 4022).
pub fn resets_sent(namespace: &Namespace) -> Result<u64> {
    // Not /proc/net: that is the first thread's namespace.
    let table = namespace.run_in(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut tcp = table.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (names, values) = (tcp.next().context("no names")?, tcp.next().context("no values")?);
    let resets = names.zip(values).find(|(name, _)| *name == "OutRsts").context("no OutRsts")?;
    Ok(resets.1.parse()?)
}

/// Asks the running director something over its socket.
pub fn ask(topology: &Topology, request: &Request) -> Result<Vec<Response>> {
    topology.director().run_in(|| Ok(Client::connect(SOCKET)?.call(request)?))?
}

/// What the director says of itself; of the counters those that are not zero.
pub fn status(topology: &Topology) -> Result<Status> {
    match ask(topology, &Request::Status)?.pop() {
        Some(Response::Status(mut status)) => {
            status.counters.retain(|(_, n)| *n > 0);
            Ok(status)
        }
        other => bail!("no status but {other:?}"),
    }
}

/// A counter of the data plane.
pub fn counter(topology: &Topology, name: &str) -> Result<u64> {
    let counters = status(topology)?.counters;
    Ok(counters.into_iter().find(|(known, _)| known == name).map_or(0, |(_, n)| n))
}

/// Waits until a counter is at least `least`.
pub fn wait_for_counter(topology: &Topology, name: &str, least: u64) -> Result<()> {
    eventually(PATIENCE, || {
        let n = counter(topology, name)?;
        ensure!(n >= least, "{name} is {n}, not {least}: {:?}", status(topology)?.counters);
        Ok(())
    })
}

/// The services as the director lists them.
pub fn services(topology: &Topology) -> Result<Vec<ServiceEntry>> {
    let answer = ask(topology, &Request::Services(None))?.into_iter();
    Ok(answer.flat_map(|part| if let Response::Services(page) = part { page } else { Vec::new() }).collect())
}

/// Tries again until it succeeds or the time is over; then its last error is ours.
pub fn eventually(limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still so after {limit:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Runs a command in a namespace to its end. One that does not end is killed and is an error.
pub fn run_to_end(namespace: &Namespace, mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = namespace.spawn(command)?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().context("waiting for a command")?.is_none() {
        if Instant::now() > deadline {
            child.kill().context("killing a command")?;
            let output = child.wait_with_output()?;
            bail!("it still runs after {PATIENCE:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().context("reading what a command said")
}

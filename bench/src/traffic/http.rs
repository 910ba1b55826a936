//! Closed-loop HTTP clients: a fixed number of connections, each with exactly one request on its way.
//!
//! In keep-alive mode a connection sends its next request when the answer is there; without, every request
//! has a connection of its own, `Connection: close`, that is over when the server's FIN has come. Either way
//! the number of requests under way stays the same, so the rate measured is concurrency ÷ latency and nothing
//! is ever offered faster than it is taken.
//!
//! One thread, one epoll, edge-triggered. Answers are compared byte for byte (see [`super`]); any reset,
//! refusal or foreign byte ends the run with an error.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use super::{Sources, answer, long_answer};
use crate::interrupt;
use crate::topology::SERVERS;

/// How long the last answers may take after the window has closed.
const DRAIN: Duration = Duration::from_millis(300);

/// Latencies from 1 µs to a minute, to three digits.
const LONGEST_LATENCY_US: u64 = 60_000_000;

/// What to ask, and how.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to: connections take turns. One VIP, or all servers when there is no director.
    pub targets: Vec<SocketAddr>,
    /// How many requests are under way at any time.
    pub connections: usize,
    /// Whether a connection serves many requests or one.
    pub keep_alive: bool,
    /// The body's length for `GET /bytes/N`; `None` for `GET /`.
    pub bytes: Option<usize>,
    /// Answers in this time count for nothing: caches, neighbours and the director's snapshot get warm.
    pub warm_up: Duration,
    /// How long to measure.
    pub window: Duration,
}

/// What came of it, in the window alone.
#[derive(Debug)]
pub struct Outcome {
    /// Answers by server.
    pub answers: [u64; SERVERS],
    /// The window as it was.
    pub elapsed: Duration,
    /// Microseconds from the request (without keep-alive: from the SYN) to the last byte (the FIN).
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answers.iter().sum::<u64>() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Puts a load on from the calling thread's namespace.
pub fn run(load: &Load, sources: &Sources) -> Result<Outcome> {
    let mut clients = Clients::new(load, sources)?;
    let begin = Instant::now();
    clients.go_on_until(begin + load.warm_up, true)?;
    clients.forget();
    let opened = Instant::now();
    clients.go_on_until(opened + load.window, true)?;
    let elapsed = opened.elapsed();
    let (answers, latency) = (clients.answers, clients.latency.clone());

    // Closing a connection with bytes on their way makes the kernel send a reset; wait for them.
    clients.go_on_until(Instant::now() + DRAIN, false)?;
    if answers == [0; SERVERS] {
        bail!("no answer from {:?} within {:?}", load.targets, load.warm_up + load.window);
    }
    Ok(Outcome { answers, elapsed, latency })
}

struct Clients<'l> {
    load: &'l Load,
    sources: &'l Sources,
    epoll: Epoll,
    slots: Vec<Slot>,
    /// Slots with a request under way.
    busy: usize,
    request: Vec<u8>,
    expected: [Vec<u8>; SERVERS],
    answers: [u64; SERVERS],
    latency: Histogram<u64>,
    generation: u32,
    turn: usize,
}

struct Slot {
    stream: TcpStream,
    generation: u32,
    phase: Phase,
    begun: Instant,
    received: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Answering,
    /// The answer of this server is complete; the FIN is missing.
    Closing(usize),
    /// So is the connection.
    Closed(usize),
    Idle,
}

impl<'l> Clients<'l> {
    fn new(load: &'l Load, sources: &'l Sources) -> Result<Self> {
        let path = load.bytes.map_or_else(|| "/".to_owned(), |n| format!("/bytes/{n}"));
        let close = if load.keep_alive { "" } else { "Connection: close\r\n" };
        let expect = |n| load.bytes.map_or_else(|| answer(n), |length| long_answer(n, length));
        let mut clients = Self {
            load,
            sources,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?,
            slots: Vec::with_capacity(load.connections),
            busy: 0,
            request: format!("GET {path} HTTP/1.1\r\nHost: lab\r\n{close}\r\n").into_bytes(),
            expected: std::array::from_fn(expect),
            answers: [0; SERVERS],
            latency: Histogram::new_with_bounds(1, LONGEST_LATENCY_US, 3).context("making a histogram")?,
            generation: 0,
            turn: 0,
        };
        for i in 0..load.connections {
            let slot = clients.open(i)?;
            clients.slots.push(slot);
            clients.busy += 1;
        }
        Ok(clients)
    }

    /// Handles events until the deadline. Unless `asking`, answered slots rest, and all resting is an end as
    /// well.
    fn go_on_until(&mut self, deadline: Instant, asking: bool) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (!asking && self.busy == 0) {
                return Ok(());
            }
            interrupt::check()?;
            // At least 1: a wait of 0 would spin through the last millisecond. At most 50: signals.
            let wait = u16::try_from(left.as_millis().clamp(1, 50)).unwrap_or(50);
            let ready = match self.epoll.wait(&mut events, wait) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).context("waiting for events"),
            };
            for event in &events[..ready] {
                let (i, generation) = ((event.data() & 0xffff_ffff) as usize, (event.data() >> 32) as u32);
                if self.slots[i].generation == generation {
                    self.advance(i, asking).with_context(|| self.describe(i))?;
                }
            }
        }
    }

    fn forget(&mut self) {
        self.answers = [0; SERVERS];
        self.latency.reset();
    }

    /// Takes one connection as far as it goes.
    fn advance(&mut self, i: usize, asking: bool) -> Result<()> {
        if self.slots[i].phase == Phase::Connecting && !self.connected(i)? {
            return Ok(());
        }
        if self.slots[i].phase == Phase::Idle {
            return Ok(());
        }
        while self.read(i)? {}

        if let Some(n) = self.finished(i) {
            self.answers[n] += 1;
            let taken = self.slots[i].begun.elapsed();
            self.latency.saturating_record(taken.as_micros() as u64);
            if !asking {
                self.slots[i].phase = Phase::Idle;
                self.busy -= 1;
            } else if self.load.keep_alive {
                self.slots[i].begun = Instant::now();
                self.ask(i)?;
            } else {
                self.slots[i] = self.open(i)?;
            }
        }
        Ok(())
    }

    /// Starts a connection in slot `i`.
    fn open(&mut self, i: usize) -> Result<Slot> {
        let target = self.load.targets[self.turn % self.load.targets.len()];
        self.turn += 1;
        let begun = Instant::now();
        let stream = dial(target, self.sources).with_context(|| format!("connecting to {target}"))?;
        self.generation = self.generation.wrapping_add(1);
        let data = i as u64 | u64::from(self.generation) << 32;
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&stream, EpollEvent::new(both, data)).context("epoll")?;
        Ok(Slot {
            stream,
            generation: self.generation,
            phase: Phase::Connecting,
            begun,
            received: Vec::new(),
        })
    }

    /// Asks, if the connection is there by now.
    fn connected(&mut self, i: usize) -> Result<bool> {
        let stream = &self.slots[i].stream;
        if let Some(error) = stream.take_error()? {
            return Err(error).context("connecting");
        }
        match stream.peer_addr() {
            Ok(_) => self.ask(i).map(|()| true),
            Err(e) if e.kind() == ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(e).context("connecting"),
        }
    }

    fn ask(&mut self, i: usize) -> Result<()> {
        let slot = &mut self.slots[i];
        slot.received.clear();
        slot.phase = Phase::Answering;
        // Some 50 bytes into an empty send buffer: all of it fits.
        slot.stream.write_all(&self.request).context("sending the request")
    }

    /// Reads once. `false` when there is no more for now.
    fn read(&mut self, i: usize) -> Result<bool> {
        let slot = &mut self.slots[i];
        let mut buffer = [0; 4096];
        let n = match slot.stream.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e).context("reading the answer"),
        };
        if n == 0 {
            let Phase::Closing(whose) = slot.phase else {
                bail!("the connection was closed in the middle of the answer")
            };
            slot.phase = Phase::Closed(whose);
            return Ok(false);
        }
        slot.received.extend_from_slice(&buffer[..n]);
        if let Some(whose) = self.expected.iter().position(|expected| *expected == slot.received) {
            slot.phase = Phase::Closing(whose);
        } else if !self.expected.iter().any(|expected| expected.starts_with(&slot.received)) {
            let text = String::from_utf8_lossy(&slot.received);
            bail!("a wrong answer: {:?}", text.chars().take(200).collect::<String>());
        }
        // A short read has emptied the socket and later bytes raise a new event, but a FIN that came along does not
        // show. Only where the answer is whole and the connection goes on is there nothing to wait for.
        let whole = self.load.keep_alive && matches!(slot.phase, Phase::Closing(_));
        Ok(n == buffer.len() || !whole)
    }

    /// Whose answer is complete, and without keep-alive the connection over.
    fn finished(&self, i: usize) -> Option<usize> {
        match self.slots[i].phase {
            Phase::Closing(whose) if self.load.keep_alive => Some(whose),
            Phase::Closed(whose) => Some(whose),
            _ => None,
        }
    }

    fn describe(&self, i: usize) -> String {
        let ends = |address: std::io::Result<SocketAddr>| address.map_or("?".to_owned(), |a| a.to_string());
        let stream = &self.slots[i].stream;
        format!("{} -> {}", ends(stream.local_addr()), ends(stream.peer_addr()))
    }
}

/// Starts connecting from the next free source, without waiting.
fn dial(target: SocketAddr, sources: &Sources) -> Result<TcpStream> {
    // Something else may hold a port (an earlier socket in its last moments); no more than a few in a row.
    const ATTEMPTS: usize = 16;
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    for _ in 0..ATTEMPTS {
        let socket = socket(family, SockType::Stream, flags, None).context("making a socket")?;
        setsockopt(&socket, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
        let source = sources.next();
        match bind(socket.as_raw_fd(), &SockaddrStorage::from(source)) {
            Ok(()) => {}
            Err(Errno::EADDRINUSE) => continue,
            Err(errno) => return Err(errno).with_context(|| format!("binding to {source}")),
        }
        return match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
            // From there to the target a connection waits for its end.
            Err(Errno::EADDRNOTAVAIL) => continue,
            Err(errno) => Err(errno).with_context(|| format!("from {source}")),
        };
    }
    bail!("{ATTEMPTS} source ports in a row are in use")
}

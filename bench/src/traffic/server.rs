//! A real server: HTTP, UDP discard and UDP echo on one thread and one epoll.
//!
//! HTTP is just enough of RFC 9112 for the lab's clients and for curl: GET of `/` and of `/bytes/N`,
//! keep-alive unless the client says `Connection: close`, then the server closes first, with a FIN, after its
//! last byte.
//!
//! Everything is non-blocking and edge-triggered: one `epoll_ctl` in a connection's life. The price is the
//! rule that an event must be followed until the kernel says "would block"; [`Connection::drive`] is that
//! loop.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt};

use super::background::Background;
use super::{Counters, DISCARD_PORT, ECHO_PORT, HTTP_PORT, answer, long_answer, udp};
use crate::namespace::Namespace;

/// How often a quiet server looks whether it is to stop, in milliseconds.
const ATTENTION: u16 = 50;

/// Datagrams taken with one system call. As many as the generator sends with one.
const DATAGRAMS: usize = 32;

/// System calls spent on one datagram socket before the others get their turn. Level-triggered, so nothing is
/// forgotten.
const DATAGRAM_TURNS: usize = 8;

/// A request that has no end after this many bytes is none of ours; the connection is closed.
const LONGEST_REQUEST: usize = 4096;

/// The longest answer to `/bytes/N`.
const LONGEST_BODY: usize = 64 << 20;

/// Epoll data: the listener, the discard socket, then echo sockets, then connections with their generation
/// above bit 32.
const LISTENER: u64 = 0;
const DISCARD: u64 = 1;
const FIRST_ECHO: u64 = 2;
const FIRST_CONNECTION: u64 = 1024;

/// A server running in a namespace. Dropping it ends it.
pub struct Server {
    counters: Arc<Counters>,
    background: Background,
}

impl Server {
    /// Starts server number `n` and returns once it listens. Echo answers come from the address they were
    /// sent to, so each of `echo_addresses` gets a socket; everything else listens on all addresses.
    pub fn start(namespace: &Namespace, n: usize, echo_addresses: &[IpAddr]) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let sockets = namespace.run_in(|| Sockets::open(echo_addresses))??;
        let background = Background::start(namespace, &format!("server-{n}"), {
            let counters = counters.clone();
            move |stop| Service::new(n, sockets, counters)?.run(stop)
        })?;
        Ok(Self { counters, background })
    }

    /// What it has seen so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Ends it; the error is what made it end before.
    pub fn stop(self) -> Result<()> {
        self.background.stop()
    }
}

struct Sockets {
    listener: TcpListener,
    discard: UdpSocket,
    echoes: Vec<UdpSocket>,
}

impl Sockets {
    fn open(echo_addresses: &[IpAddr]) -> Result<Self> {
        // [::] takes IPv4 as well. Without IPv6 in the kernel there is only 0.0.0.0.
        let any =
            |port| [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), (Ipv4Addr::UNSPECIFIED, port).into()];
        let listener = TcpListener::bind(&any(HTTP_PORT)[..]).context("listening for HTTP")?;
        listener.set_nonblocking(true)?;
        // Accepted sockets inherit it: the last segment of a long answer must not wait for an
        // acknowledgement.
        setsockopt(&listener, sockopt::TcpNoDelay, &true).context("TCP_NODELAY")?;

        let discard = UdpSocket::bind(&any(DISCARD_PORT)[..]).context("listening for UDP to discard")?;
        discard.set_nonblocking(true)?;
        // Room for a burst that arrives while the thread is off the core. Beyond net.core.rmem_max it takes a
        // privilege.
        let room = 4 << 20;
        if setsockopt(&discard, sockopt::RcvBufForce, &room).is_err() {
            setsockopt(&discard, sockopt::RcvBuf, &room).context("SO_RCVBUF")?;
        }

        let echoes = echo_addresses
            .iter()
            .map(|&address| {
                let echo = UdpSocket::bind((address, ECHO_PORT))
                    .with_context(|| format!("UDP echo on {address}"))?;
                echo.set_nonblocking(true)?;
                Ok(echo)
            })
            .collect::<Result<_>>()?;
        Ok(Self { listener, discard, echoes })
    }
}

/// Everything the server's thread owns.
struct Service {
    epoll: Epoll,
    sockets: Sockets,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    generation: u32,
    script: Script,
    counters: Arc<Counters>,
    datagrams: MultiHeaders<SockaddrStorage>,
    buffers: [[u8; udp::ROOM]; DATAGRAMS],
}

/// What a connection needs to know to answer.
struct Script {
    n: usize,
    short: Vec<u8>,
}

impl Service {
    fn new(n: usize, sockets: Sockets, counters: Arc<Counters>) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let watch = |socket: &dyn AsFd, data| {
            epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data)).context("epoll")
        };
        watch(&sockets.listener, LISTENER)?;
        watch(&sockets.discard, DISCARD)?;
        for (i, echo) in sockets.echoes.iter().enumerate() {
            watch(echo, FIRST_ECHO + i as u64)?;
        }
        Ok(Self {
            epoll,
            sockets,
            connections: Vec::new(),
            free: Vec::new(),
            generation: 0,
            script: Script { n, short: answer(n) },
            counters,
            datagrams: MultiHeaders::preallocate(DATAGRAMS, None),
            buffers: [[0; udp::ROOM]; DATAGRAMS],
        })
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        while !stop.load(Ordering::Relaxed) {
            let ready = match self.epoll.wait(&mut events, ATTENTION) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).context("waiting for events"),
            };
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept()?,
                    DISCARD => self.discard()?,
                    echo if echo < FIRST_CONNECTION => self.echo((echo - FIRST_ECHO) as usize),
                    connection => self.serve(connection - FIRST_CONNECTION),
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.sockets.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client gave up between SYN and accept.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                Err(e) => return Err(e).context("accepting a connection"),
            };
            stream.set_nonblocking(true)?;
            Counters::add(&self.counters.connections, 1);

            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.generation = self.generation.wrapping_add(1);
            let data = FIRST_CONNECTION + (slot as u64 | u64::from(self.generation) << 32);
            let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            self.epoll.add(&stream, EpollEvent::new(both, data)).context("epoll")?;
            self.connections[slot] = Some(Connection::new(stream, self.generation));
        }
    }

    /// Goes on with a connection. Its slot may have got a new owner while the event waited in the batch.
    fn serve(&mut self, data: u64) {
        let (slot, generation) = ((data & 0xffff_ffff) as usize, (data >> 32) as u32);
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        if connection.generation != generation {
            return;
        }
        let (answered, state) = connection.drive(&self.script);
        Counters::add(&self.counters.requests, answered);
        if state == State::Ended {
            self.connections[slot] = None;
            self.free.push(slot);
        }
    }

    fn discard(&mut self) -> Result<()> {
        for _ in 0..DATAGRAM_TURNS {
            let mut slices: Vec<_> = self.buffers.iter_mut().map(|b| [IoSliceMut::new(&mut b[..])]).collect();
            let socket = self.sockets.discard.as_raw_fd();
            let lengths: Vec<usize> =
                match recvmmsg(socket, &mut self.datagrams, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
                    Ok(received) => received.map(|message| message.bytes).collect(),
                    Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                    Err(errno) => return Err(errno).context("receiving datagrams"),
                };
            let whole = self
                .buffers
                .iter()
                .zip(&lengths)
                .filter(|&(buffer, &length)| udp::is_whole(&buffer[..length]))
                .count();
            Counters::add(&self.counters.datagrams, whole as u64);
            Counters::add(&self.counters.damaged, (lengths.len() - whole) as u64);
            if lengths.len() < DATAGRAMS {
                break;
            }
        }
        Ok(())
    }

    fn echo(&mut self, which: usize) {
        let mut buffer = [0; 2048];
        for _ in 0..DATAGRAM_TURNS {
            let Ok((length, from)) = self.sockets.echoes[which].recv_from(&mut buffer) else { return };
            // A full queue loses the answer, as UDP does.
            if self.sockets.echoes[which].send_to(&buffer[..length], from).is_ok() {
                Counters::add(&self.counters.echoed, 1);
            }
        }
    }
}

/// One TCP connection.
struct Connection {
    stream: TcpStream,
    generation: u32,
    /// What was received and is not yet a whole request.
    request: Vec<u8>,
    /// What is still to be sent, from `sent` on.
    answer: Vec<u8>,
    sent: usize,
    closing: bool,
}

#[derive(PartialEq, Eq)]
enum State {
    Waiting,
    Ended,
}

impl Connection {
    fn new(stream: TcpStream, generation: u32) -> Self {
        Self { stream, generation, request: Vec::new(), answer: Vec::new(), sent: 0, closing: false }
    }

    /// Sends, answers and reads until the kernel would block. Returns how many requests were answered.
    fn drive(&mut self, script: &Script) -> (u64, State) {
        let mut answered = 0;
        loop {
            match self.flush() {
                Ok(true) => {}
                Ok(false) => return (answered, State::Waiting),
                Err(_) => return (answered, State::Ended),
            }
            if self.closing {
                return (answered, State::Ended);
            }
            match self.take_request(script) {
                Some(Taken::Answered) => answered += 1,
                Some(Taken::Nonsense) => return (answered, State::Ended),
                None => match self.read() {
                    Ok(true) => {}
                    Ok(false) => return (answered, State::Waiting),
                    Err(_) => return (answered, State::Ended),
                },
            }
        }
    }

    /// Sends what is to be sent; `false` if the kernel would block first.
    fn flush(&mut self) -> std::io::Result<bool> {
        while self.sent < self.answer.len() {
            match self.stream.write(&self.answer[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.answer.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Reads once; `false` if there is nothing. The end of the stream is an error like any other: it ends the
    /// connection.
    fn read(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.request.extend_from_slice(&buffer[..n]);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Takes the first whole request, if there is one, and puts its answer in place.
    fn take_request(&mut self, script: &Script) -> Option<Taken> {
        let Some(end) = self.request.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return (self.request.len() > LONGEST_REQUEST).then_some(Taken::Nonsense);
        };
        let head = &self.request[..end];
        self.closing = head.windows(17).any(|bytes| bytes.eq_ignore_ascii_case(b"connection: close"));
        let Some(path) = head.strip_prefix(b"GET ").and_then(|rest| rest.split(|&b| b == b' ').next()) else {
            return Some(Taken::Nonsense);
        };
        match bytes_wanted(path) {
            Some(length) => self.answer = long_answer(script.n, length.min(LONGEST_BODY)),
            None => self.answer.extend_from_slice(&script.short),
        }
        self.request.drain(..end + 4);
        Some(Taken::Answered)
    }
}

enum Taken {
    Answered,
    Nonsense,
}

/// The N of `/bytes/N`.
fn bytes_wanted(path: &[u8]) -> Option<usize> {
    std::str::from_utf8(path.strip_prefix(b"/bytes/")?).ok()?.parse().ok()
}

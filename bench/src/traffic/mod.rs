//! Real clients and servers, and the words they share.
//!
//! ```text
//!  http::run ──TCP──▶ (director) ──▶ server  answers byte for byte what `answer` says, or the client reports it
//!  udp::run  ──UDP──▶ (director) ──▶ server  counts in `Counters`, which the generator reads: that closes its loop
//!                        └─ tunnel ─▶ decapsulator ─▶ server  on the server's own stack
//! ```
//!
//! A client knows the whole answer of each server beforehand and compares every byte. So a director that
//! mixes up connections, breaks a checksum the kernel then drops, or cuts a segment is an error here, not a
//! slow result.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) mod background;
pub mod decapsulator;
pub mod http;
pub mod server;
pub mod udp;
pub mod unwrapping;

/// HTTP, on the VIP and on the servers.
pub const HTTP_PORT: u16 = 80;
/// UDP that is counted and not answered (RFC 863's port).
pub const DISCARD_PORT: u16 = 9;
/// UDP that is sent back (RFC 862's port).
pub const ECHO_PORT: u16 = 7;

/// What server `n` answers to `GET /`: some 110 bytes, so that a request and its answer are a frame each.
pub fn answer(n: usize) -> Vec<u8> {
    let body = format!("answered by server {n}\n");
    with_headers(n, body.as_bytes())
}

/// What server `n` answers to `GET /bytes/length`: bytes that differ from their neighbours and between
/// offsets, so that a segment that went astray shows.
pub fn long_answer(n: usize, length: usize) -> Vec<u8> {
    let body: Vec<u8> = (0..length).map(|i| (i ^ (i >> 8)) as u8).collect();
    with_headers(n, &body)
}

fn with_headers(n: usize, body: &[u8]) -> Vec<u8> {
    let headers = format!("HTTP/1.1 200 OK\r\nX-Server: {n}\r\nContent-Length: {}\r\n\r\n", body.len());
    [headers.as_bytes(), body].concat()
}

/// Source addresses and ports, each pair handed out once until all are used up.
///
/// A pair used again within TIME_WAIT (60 s) would meet the remains of its first connection at the server,
/// and in the director's table. Left to itself the kernel picks from 28,000 ports of one address.
pub struct Sources {
    addresses: Vec<IpAddr>,
    next: AtomicU32,
}

impl Sources {
    /// Below are the ports of services.
    const FIRST_PORT: u32 = 10_000;
    const PORTS: u32 = 0x1_0000 - Self::FIRST_PORT;

    /// Sources at these addresses.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses: Vec<_> = addresses.into_iter().collect();
        assert!(!addresses.is_empty(), "a client has an address");
        Self { addresses, next: AtomicU32::new(0) }
    }

    /// The next pair. Neighbours differ in their address.
    pub fn next(&self) -> SocketAddr {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let addresses = self.addresses.len() as u32;
        let port = Self::FIRST_PORT + (n / addresses) % Self::PORTS;
        SocketAddr::new(self.addresses[(n % addresses) as usize], port as u16)
    }
}

/// What one server has seen since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// HTTP requests answered.
    pub requests: AtomicU64,
    /// TCP connections accepted.
    pub connections: AtomicU64,
    /// Datagrams of the generator, whole.
    pub datagrams: AtomicU64,
    /// Datagrams to the discard port that no generator sent like this: damaged, or a stranger's.
    pub damaged: AtomicU64,
    /// Datagrams echoed.
    pub echoed: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sources_do_not_repeat_for_as_long_as_the_lab_runs() {
        let sources = Sources::new((0..16).map(|n| IpAddr::from([10, 1, 0, 2 + n])));
        let handed_out: HashSet<_> = (0..800_000).map(|_| sources.next()).collect();
        assert_eq!(handed_out.len(), 800_000);
        assert!(handed_out.iter().all(|source| source.port() >= 10_000));
    }

    #[test]
    fn answers_tell_the_servers_apart_and_have_one_length() {
        assert_ne!(answer(0), answer(1));
        assert_eq!(answer(0).len(), answer(1).len());
        assert!(
            long_answer(1, 3000)
                .starts_with(b"HTTP/1.1 200 OK\r\nX-Server: 1\r\nContent-Length: 3000\r\n\r\n")
        );
    }
}

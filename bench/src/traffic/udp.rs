//! A generator of small datagrams, numbered, from several flows.
//!
//! What a director *forwards* is counted at the servers. How much it is *offered* decides what that number
//! means, hence [`Pace`]. A flood measures who wins the cores when the generator itself takes one; on a small
//! machine the generator wins and the director starves. So the comparison uses a window: no more than so many
//! datagrams are under way, which the generator knows by reading the servers' counters, in memory, without a
//! packet going back. That is the highest rate without much loss, and it is steady.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use super::{Counters, Sources};
use crate::interrupt;
use crate::topology::SERVERS;

/// Room for a datagram of ours and a bit, so that one that is too long shows.
pub const ROOM: usize = 64;

/// 18 bytes of payload make the smallest Ethernet frame, 60 bytes without its checksum.
const PAYLOAD: usize = 18;
const MAGIC: [u8; 4] = *b"shnt";

/// Datagrams sent with one system call.
const BURST: usize = 32;

/// How long the window stays shut before what is under way counts as lost. Ten times what a full window takes
/// on a slow machine.
const LOST_AFTER: Duration = Duration::from_millis(20);

/// How long after the last datagram the servers' counters are final.
const DRAIN: Duration = Duration::from_millis(100);

/// How fast datagrams are offered.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As fast as the generator can.
    Flood,
    /// So many a second, evenly in bursts.
    Rate(u32),
    /// As fast as possible with at most so many under way.
    Window(u64),
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to: flows take turns. One VIP, or all servers when there is no director.
    pub targets: Vec<SocketAddr>,
    /// Different source ports, and so connections in the director's eyes.
    pub flows: usize,
    /// How fast.
    pub pace: Pace,
    /// Datagrams in this time count for nothing.
    pub warm_up: Duration,
    /// How long to measure.
    pub window: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Sent in the window.
    pub sent: u64,
    /// Received in the window, by server.
    pub received: [u64; SERVERS],
    /// Lost of all that was sent, warm-up included, as a fraction.
    pub loss: f64,
    /// The window as it was.
    pub elapsed: Duration,
}

impl Outcome {
    /// Datagrams received a second.
    pub fn rate(&self) -> f64 {
        self.received.iter().sum::<u64>() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends from the calling thread's namespace to servers that count into `counters`.
pub fn run(load: &Load, sources: &Sources, counters: [&Counters; SERVERS]) -> Result<Outcome> {
    let seen = || counters.map(|c| c.datagrams.load(Ordering::Relaxed));
    let damaged = || counters.iter().map(|c| c.damaged.load(Ordering::Relaxed)).sum::<u64>();
    let (seen_before, damaged_before) = (seen(), damaged());
    let received = || total(since(seen(), seen_before));
    let mut generator = Generator::new(load, sources)?;

    generator.go_on_until(Instant::now() + load.warm_up, &received)?;
    let (opened, sent_by_then, seen_by_then) = (Instant::now(), generator.sent, seen());
    generator.go_on_until(opened + load.window, &received)?;
    let (elapsed, sent) = (opened.elapsed(), generator.sent - sent_by_then);
    let in_window = since(seen(), seen_by_then);

    interrupt::sleep(DRAIN)?;
    let damaged = damaged() - damaged_before;
    if damaged > 0 {
        bail!("{damaged} datagrams arrived damaged");
    }
    if total(in_window) == 0 {
        bail!("no datagram to {:?} arrived within {elapsed:?}", load.targets);
    }
    let lost = generator.sent.saturating_sub(received());
    Ok(Outcome { sent, received: in_window, loss: lost as f64 / generator.sent as f64, elapsed })
}

fn since(now: [u64; SERVERS], then: [u64; SERVERS]) -> [u64; SERVERS] {
    std::array::from_fn(|n| now[n] - then[n])
}

fn total(by_server: [u64; SERVERS]) -> u64 {
    by_server.iter().sum()
}

/// Whether a datagram is one of ours, unharmed as far as can be told without its checksum, which the kernel
/// has verified.
pub fn is_whole(datagram: &[u8]) -> bool {
    datagram.len() == PAYLOAD && datagram.starts_with(&MAGIC)
}

struct Generator {
    pace: Pace,
    flows: Vec<UdpSocket>,
    turn: usize,
    sent: u64,
    /// Datagrams given up, so that the window opens again.
    given_up: u64,
    headers: MultiHeaders<()>,
    payloads: [[u8; PAYLOAD]; BURST],
    /// When the next burst of a paced generator is due.
    due: Instant,
}

impl Generator {
    fn new(load: &Load, sources: &Sources) -> Result<Self> {
        let flows = (0..load.flows)
            .map(|i| {
                let target = load.targets[i % load.targets.len()];
                let source = sources.next();
                let flow = UdpSocket::bind(source).with_context(|| format!("binding to {source}"))?;
                flow.connect(target).with_context(|| format!("connecting to {target}"))?;
                Ok(flow)
            })
            .collect::<Result<_>>()?;
        let mut payload = [0; PAYLOAD];
        payload[..4].copy_from_slice(&MAGIC);
        Ok(Self {
            pace: load.pace,
            flows,
            turn: 0,
            sent: 0,
            given_up: 0,
            headers: MultiHeaders::preallocate(BURST, None),
            payloads: [payload; BURST],
            due: Instant::now(),
        })
    }

    fn go_on_until(&mut self, deadline: Instant, received: &impl Fn() -> u64) -> Result<()> {
        self.due = Instant::now();
        while Instant::now() < deadline {
            interrupt::check()?;
            match self.pace {
                Pace::Flood => {}
                Pace::Rate(rate) => {
                    interrupt::sleep(self.due.saturating_duration_since(Instant::now()))?;
                    self.due += Duration::from_secs(BURST as u64) / rate.max(1);
                }
                Pace::Window(size) => self.wait_for_room(size, received),
            }
            self.burst()?;
        }
        Ok(())
    }

    /// Waits until another burst fits the window.
    fn wait_for_room(&mut self, size: u64, received: &impl Fn() -> u64) {
        let (mut latest, mut moved) = (received(), Instant::now());
        loop {
            let under_way = self.sent.saturating_sub(latest + self.given_up);
            if under_way + BURST as u64 <= size.max(BURST as u64) {
                return;
            }
            if moved.elapsed() > LOST_AFTER {
                self.given_up += under_way;
                return;
            }
            // Shorter than a window takes, longer than a system call: the core is the servers' meanwhile.
            std::thread::sleep(Duration::from_micros(20));
            let now = received();
            if now != latest {
                (latest, moved) = (now, Instant::now());
            }
        }
    }

    /// Sends one burst on the next flow.
    fn burst(&mut self) -> Result<()> {
        for (n, payload) in (self.sent..).zip(&mut self.payloads) {
            payload[4..12].copy_from_slice(&n.to_be_bytes());
        }
        let slices: [_; BURST] = std::array::from_fn(|i| [IoSlice::new(&self.payloads[i])]);
        let flow = self.flows[self.turn % self.flows.len()].as_raw_fd();
        self.turn += 1;
        match sendmmsg(flow, &mut self.headers, &slices, [None::<()>; BURST], [], MsgFlags::empty()) {
            Ok(sent) => self.sent += sent.count() as u64,
            // The device's queue is full: that is the flood's limit, or an ARP entry that is not there yet.
            Err(Errno::ENOBUFS | Errno::EAGAIN) => std::thread::yield_now(),
            Err(errno) => return Err(errno).context("sending datagrams"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_of_another_length_or_beginning_is_damaged() {
        let mut datagram = [0; PAYLOAD];
        datagram[..4].copy_from_slice(&MAGIC);
        assert!(is_whole(&datagram));
        assert!(!is_whole(&datagram[..17]));
        datagram[0] ^= 1;
        assert!(!is_whole(&datagram));
    }
}

//! Whole workers over ports in memory.
//!
//! A port here feeds its worker without end: each frame it gives is a copy of one of its tray's, and what it is to send it takes back. So each worker is its own
//! generator, on its own core, and a worker alone and two side by side do the same work a packet.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use shunt_dataplane::conn::directory::Directory;
use shunt_dataplane::director::{self, Director};
use shunt_dataplane::port::frame::HEADROOM;
use shunt_dataplane::port::{BURST, Burst, FrameMemory, Losses, Pool, Port};
use shunt_dataplane::profile::Stopwatch;
use shunt_dataplane::service::{Forwarding, Tick, WorkerId};
use shunt_dataplane::stats::{Counters, Event};
use shunt_dataplane::worker::link::{self, Handle};
use shunt_dataplane::worker::{self, BURSTS, Clock, Polling, Worker};

use super::frames::{FRAME, datagram};
use super::{CLIENTS, SECRET, SERVERS, VIP, client, snapshot};
use crate::machine;

/// Frames of each worker.
pub const FRAMES: u32 = 16_384;

/// Clients whose datagrams lie in a tray at once while connections begin.
const TRAYFUL: u32 = 4096;

/// Packets of a turn from each port that has as many.
pub const TURN: usize = BURSTS * BURST;

/// Turns of a slice: half a millisecond or so.
const SLICE: usize = 32;

/// What a team is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Workers in it.
    pub workers: usize,
    /// How they forward.
    pub forwarding: Forwarding,
    /// Connections of each. By default so few that they and their frames stay in its caches.
    pub connections: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 1, forwarding: Forwarding::Masq, connections: 1024 }
    }
}

/// What comes in by a port, over and over, and the last frames that it sent. On lines of its own, as all that a worker writes.
#[repr(align(128))]
struct Tray {
    frames: Vec<[u8; FRAME]>,
    next: usize,
    /// Frames that are taken at once, at most.
    portion: usize,
    /// Whether sent frames are to be kept.
    listens: bool,
    heard: Vec<[u8; FRAME]>,
}

impl Default for Tray {
    fn default() -> Self {
        Self { frames: Vec::new(), next: 0, portion: BURST, listens: false, heard: Vec::new() }
    }
}

struct Feed(Arc<Mutex<Tray>>);

impl Port for Feed {
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let mut tray = self.0.lock().expect("nobody panics with a tray in hand");
        while !tray.frames.is_empty()
            && burst.len() < tray.portion
            && let Some(mut frame) = pool.take()
        {
            frame.set_data(HEADROOM, FRAME);
            let next = tray.next % tray.frames.len();
            pool.memory().data(&mut frame).copy_from_slice(&tray.frames[next]);
            tray.next = next + 1;
            burst.push(frame);
        }
    }

    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let mut tray = self.0.lock().expect("nobody panics with a tray in hand");
        for mut frame in burst.drain(..) {
            if tray.listens
                && let Some(bytes) = pool.memory().data(&mut frame).first_chunk()
            {
                tray.heard.push(*bytes);
            }
            pool.give(frame);
        }
    }

    fn flush(&mut self, _: &mut Pool) -> bool {
        false
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn losses(&self) -> Losses {
        Losses::default()
    }
}

/// Workers with connections of their own, and what is fed to them.
pub struct Team {
    workers: Vec<Worker>,
    /// By worker: from clients, from real servers.
    trays: Vec<[Arc<Mutex<Tray>>; 2]>,
    /// Control's ends of their lines.
    pub handles: Vec<Handle>,
    /// Everybody's counters.
    pub counters: Arc<Counters>,
    connections: u32,
    cycles: quanta::Clock,
    /// Keeps the workers' answering line open.
    _bell: UnixStream,
}

impl Team {
    /// Workers that know their clients, and are fed with these clients' datagrams; by NAT with the real servers' answers, too.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(options: Options) -> Result<Self> {
        let Options { workers: count, forwarding, connections } = options;
        let counters = Arc::new(Counters::new(count).context("memory for counters")?);
        let (_, pools) = FrameMemory::with_pools(count as u32, FRAMES).context("memory for frames")?;
        let directory = match count {
            1 => None,
            _ => Some(Arc::new(Directory::with_capacity(1 << 20).context("memory for the directory")?)),
        };
        let first = snapshot(forwarding, count);
        let (bell, answers) = UnixStream::pair().context("a socket pair")?;
        let lines = (0..count).map(|_| link::channel(first.epoch, answers.try_clone()?));
        let (links, handles): (Vec<_>, Vec<_>) =
            lines.collect::<std::io::Result<Vec<_>>>().context("socket pairs")?.into_iter().unzip();
        let bells: Vec<_> = handles.iter().map(Handle::bell).collect();
        let clock = Clock::start();
        let cycles = quanta::Clock::new();
        let (mut workers, mut trays) = (Vec::new(), Vec::new());
        let parts = pools.into_iter().zip(links).zip(worker::connect(&bells)).enumerate();
        for (n, ((pool, link), peers)) in parts {
            let id = WorkerId(n as u8);
            let parts = director::Parts {
                worker: id,
                snapshot: Arc::new(first.clone()),
                capacity: (connections as usize).max(1 << 16),
                secret: SECRET,
                directory: directory.clone(),
                paths: Arc::default(),
                counters: Arc::clone(&counters),
            };
            let director = Director::new(parts, Tick(0)).context("memory for connections")?;
            let pair: [Arc<Mutex<Tray>>; 2] = Default::default();
            let ports = [CLIENTS, SERVERS]
                .into_iter()
                .zip(&pair)
                .map(|(port, tray)| (port, Box::new(Feed(Arc::clone(tray))) as Box<dyn Port>))
                .collect();
            trays.push(pair);
            let (counters, polling) = (Arc::clone(&counters), Polling::Busy);
            workers.push(Worker::new(worker::Parts {
                id,
                director,
                ports,
                pool,
                peers,
                link,
                counters,
                clock,
                polling,
                watch: Stopwatch::by(cycles.clone()),
            }));
        }
        let mut team = Self { workers, trays, handles, counters, connections, cycles, _bell: bell };
        team.acquaint(forwarding);
        Ok(team)
    }

    /// Lets each worker meet its clients, and leaves the last of their datagrams in the trays, with the real servers' answers by NAT.
    fn acquaint(&mut self, forwarding: Forwarding) {
        for (n, worker) in self.workers.iter_mut().enumerate() {
            let [clients, servers] = &self.trays[n];
            let first = n as u32 * self.connections;
            let numbers: Vec<u32> = (first..first + self.connections).collect();
            for (at, numbers) in numbers.chunks(TRAYFUL as usize).enumerate() {
                let is_last = (at + 1) * TRAYFUL as usize >= self.connections as usize;
                servers.lock().expect("free").listens = is_last && forwarding == Forwarding::Masq;
                let mut tray = clients.lock().expect("free");
                (tray.frames, tray.next) = (numbers.iter().map(|n| datagram(client(*n), VIP)).collect(), 0);
                drop(tray);
                for _ in 0..numbers.len().div_ceil(TURN) {
                    worker.turn();
                }
            }
            let count = clients.lock().expect("free").frames.len();
            let mut servers = servers.lock().expect("free");
            servers.listens = false;
            // What went to a real server comes back with its ends exchanged.
            let mut heard = std::mem::take(&mut servers.heard);
            heard.truncate(count);
            for frame in &mut heard {
                let (from, to) = frame[26..34].split_at_mut(4);
                from.swap_with_slice(to);
                let (from, to) = frame[34..38].split_at_mut(2);
                from.swap_with_slice(to);
            }
            servers.frames = heard;
        }
    }

    /// Has every worker get the other's answers. Only for two.
    ///
    /// # Panics
    /// When a worker has panicked.
    pub fn cross(&mut self) {
        let [first, second] = &self.trays[..] else { return };
        let (mut first, mut second) = (first[1].lock().expect("free"), second[1].lock().expect("free"));
        std::mem::swap(&mut first.frames, &mut second.frames);
    }

    /// Has the workers work, each on a core of its own, while `meanwhile` goes on. Gives the packets that they forwarded a second, together: of each worker what it forwarded in its
    /// median slice, for one in which somebody else had the core says nothing about workers.
    ///
    /// # Panics
    /// When a worker panics.
    pub fn work(&mut self, cores: &[usize], meanwhile: impl FnOnce(&[Handle])) -> f64 {
        let counters = &self.counters;
        let pace = |(id, worker): (_, &mut Worker), stop: &AtomicBool| {
            let forwarded = || counters.worker(WorkerId(id)).event(Event::Forwarded);
            let mut paces = Vec::new();
            while !stop.load(Ordering::Relaxed) || paces.is_empty() {
                let (before, start) = (forwarded(), Instant::now());
                for _ in 0..SLICE {
                    worker.turn();
                }
                paces.push((forwarded() - before) as f64 / start.elapsed().as_secs_f64());
            }
            paces.sort_by(f64::total_cmp);
            paces[paces.len() / 2]
        };
        let workers = cores.iter().copied().zip((0..).zip(&mut self.workers));
        machine::side_by_side(workers, pace, || meanwhile(&self.handles)).iter().sum()
    }

    /// Feeds the first worker with these datagrams, and nothing else, from the first one on.
    ///
    /// # Panics
    /// When a worker has panicked.
    pub fn feed(&mut self, frames: impl IntoIterator<Item = [u8; FRAME]>) {
        let [clients, servers] = &self.trays[0];
        servers.lock().expect("free").frames.clear();
        let mut tray = clients.lock().expect("free");
        tray.next = 0;
        tray.frames.clear();
        tray.frames.extend(frames);
    }

    /// Gives the workers so many frames at a time, at most.
    ///
    /// # Panics
    /// When a worker has panicked.
    pub fn serve_by(&mut self, portion: usize) {
        self.trays.iter().flatten().for_each(|tray| tray.lock().expect("free").portion = portion);
    }

    /// Has the stages of the first worker's next turn timed, and of one in many after it.
    pub fn time(&mut self) {
        self.workers[0].go_by(Stopwatch::by(self.cycles.clone()));
    }

    /// One turn of the first worker.
    pub fn turn(&mut self) {
        self.workers[0].turn();
    }

    /// Frames lost so far, by reason.
    pub fn lost(&self) -> Vec<(&'static str, u64)> {
        self.counters.totals().filter(|(name, count)| name.starts_with("drop.") && *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_takes_four_bursts_of_a_queue_at_most_and_no_more_of_one_that_is_not_full() {
        let mut team = Team::new(Options::default()).unwrap();
        let mut turn = || {
            let received = |team: &Team| team.counters.worker(WorkerId(0)).event(Event::Received);
            let before = received(&team);
            team.turn();
            let taken = received(&team) - before;
            team.serve_by(BURST - 1);
            taken
        };
        let queues = 2;
        assert_eq!(turn(), queues * 4 * BURST as u64);
        assert_eq!(turn(), queues * (BURST as u64 - 1));
    }
}

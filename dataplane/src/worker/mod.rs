//! The poll loop: one thread, pinned to one core, that owns its queues, its frames and its director.
//!
//! ```text
//!   turn:  control queue ─▶ frames handed over by other workers ┬▶ director ─▶ sort by verdict ─▶ transmit, flush
//!                        └▶ for each port: receive ─────────────┘
//!                        └▶ expiry, packets that wait for a neighbour
//! ```
//!
//! Nothing is shared but what is written seldom: queues of commands and answers ([`link`]), rings of frames between workers
//! ([`ring`]), counters that only this worker writes. Nor do workers share cache lines by chance: what one writes each turn (itself, its ports, its ends of rings, the bursts on their way
//! out) is aligned to two. A worker with nothing to do spins for a moment, then sleeps in poll(2) until a frame, a command or a
//! hand-over comes.

mod kept;
pub mod link;
pub mod ring;
mod waiting;

use std::iter::once;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::conn::memory::prefetch;
use crate::director::{Director, Known, Verdict};
use crate::packet::Packet;
use crate::port::{BURST, Burst, Frame, Losses, Pool, Port};
use crate::profile::{Stage, Stopwatch};
use crate::service::{Epoch, LinkId, PortId, Tick, WorkerId};
use crate::stats::{Counters, Event, Reason};
use kept::Kept;
use link::{Answer, Command, Link};
use ring::{Receiver, Sender};
use waiting::{Ask, Waiting};

/// How long a worker looks for work before it sleeps. A wake-up costs 5 to 50 µs; spinning much longer than that costs more than it
/// saves, and on a machine that shares the core with the kernel's own work it delays that work.
const SPIN: Duration = Duration::from_micros(50);

/// The longest sleep, in milliseconds: connections expire, and waiting packets are given up, at least this often.
const NAP: u8 = 200;

/// The longest sleep while sending has stalled, in milliseconds: the kernel does not say when it goes on.
const STALL: u8 = 2;

/// Expiring connections visited for each burst of a turn, and in one without: twice as many as a burst can begin, so that a flood does not
/// leave them behind. A visit costs about 100 ns, so a burst is held up by at most some 10 µs; what is left is visited in the next turn.
const EXPIRY_BUDGET: usize = 2 * BURST;

/// Milliseconds between two looks at what the ports have lost: a system call a port.
const LOSSES_EVERY: u32 = 1000;

/// Places of the table looked at for a listing in one turn: 16 KiB, some 10 µs (`cargo bench --bench director -- page`).
pub const LISTING_STEP: usize = 256;

/// Frames that can be under way from one worker to another. A ring that is full loses frames under a counter, which happens when the
/// owner cannot keep up: 4096 are a few milliseconds of work.
const HANDOFF: usize = 4096;

/// Bursts of a queue, or of another worker's frames, in a turn at most, while they are full: the kernel's sending leaves nothing of ours in the
/// first caches, which is then so once for all of them. A queue that is not full waits no longer.
pub const BURSTS: usize = 4;

/// Queues a worker can have, over all its interfaces.
pub const MAX_PORTS: usize = 64;

/// The clock of all workers: milliseconds since the director started.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The moment.
    pub fn now(&self) -> Tick {
        Tick(self.0.elapsed().as_millis() as u32)
    }
}

/// The rings between workers: what each sends by, and receives by.
pub struct Peers {
    to: Vec<Option<Peer>>,
    from: Vec<(WorkerId, Receiver)>,
}

struct Peer {
    sender: Sender,
    bell: link::Bell,
}

/// Connects all workers with one another. `bells` wake them, in order.
pub fn connect(bells: &[link::Bell]) -> Vec<Peers> {
    let mut peers: Vec<Peers> = bells.iter().map(|_| Peers { to: Vec::new(), from: Vec::new() }).collect();
    for from in 0..bells.len() {
        for (to, bell) in bells.iter().enumerate() {
            let end = (from != to).then(|| {
                let (sender, receiver) = ring::channel(HANDOFF);
                peers[to].from.push((WorkerId(from as u8), receiver));
                Peer { sender, bell: bell.clone() }
            });
            peers[from].to.push(end);
        }
    }
    peers
}

/// A worker.
pub struct Worker {
    id: WorkerId,
    director: Director,
    ports: Vec<(PortId, Box<dyn Port>)>,
    /// The queue to send by, by interface.
    ways_out: Vec<usize>,
    pool: Pool,
    peers: Peers,
    link: Link,
    counters: std::sync::Arc<Counters>,
    clock: Clock,
    waiting: Waiting,
    kept: Kept,
    /// Frames on their way out, by port.
    out: Vec<CachePadded<Burst>>,
    reached: Epoch,
    /// When the ports were last asked what they have lost.
    asked: Tick,
    polling: Polling,
    /// Whether sending has stalled on any port.
    has_unsent: bool,
}

/// What a worker does while there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Polling {
    /// Looks on for a moment, then sleeps until something comes: an idle worker costs next to nothing.
    #[default]
    Adaptive,
    /// Never sleeps: for a core that nothing else is to run on.
    Busy,
}

/// What a worker is made of.
pub struct Parts {
    /// Which one it is.
    pub id: WorkerId,
    /// Its director.
    pub director: Director,
    /// Its queues, each with its interface; at least one of every interface, so that every way out is open.
    pub ports: Vec<(PortId, Box<dyn Port>)>,
    /// Its frames.
    pub pool: Pool,
    /// The other workers.
    pub peers: Peers,
    /// Control.
    pub link: Link,
    /// Everybody's counters.
    pub counters: std::sync::Arc<Counters>,
    /// The time.
    pub clock: Clock,
    /// What to do while there is nothing to do.
    pub polling: Polling,
    /// What the stages of its turns are timed by.
    pub watch: Stopwatch,
}

impl Worker {
    /// A worker, ready to run.
    pub fn new(parts: Parts) -> Self {
        let Parts { id, mut director, ports, pool, peers, link, counters, clock, polling, watch } = parts;
        *director.watch() = watch;
        assert!(ports.len() <= MAX_PORTS, "more queues than a worker can have");
        let out = ports.iter().map(|_| CachePadded::default()).collect();
        let interfaces = ports.iter().map(|(interface, _)| usize::from(interface.0) + 1).max().unwrap_or(0);
        let ways_out = (0..interfaces)
            .map(|i| ports.iter().position(|(interface, _)| usize::from(interface.0) == i).unwrap_or(0))
            .collect();
        let reached = director.snapshot().epoch;
        Self {
            id,
            director,
            ports,
            ways_out,
            pool,
            peers,
            link,
            counters,
            clock,
            waiting: Waiting::default(),
            kept: Kept::default(),
            out,
            reached,
            asked: clock.now(),
            polling,
            has_unsent: false,
        }
    }

    /// Times the stages of its turns by another stopwatch.
    pub fn go_by(&mut self, watch: Stopwatch) {
        *self.director.watch() = watch;
    }

    /// Works until control says stop.
    pub fn run(mut self) {
        let mut idle_since = None;
        loop {
            let Some(worked) = self.turn() else { return };
            if worked {
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if self.polling == Polling::Adaptive && since.elapsed() >= SPIN {
                self.sleep();
                idle_since = None;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One turn. Says whether there was anything to do; `None` when control said stop.
    pub fn turn(&mut self) -> Option<bool> {
        let now = self.clock.now();
        self.director.watch().begin_turn();
        let mut worked = self.obey(now)?;
        self.director.watch().lap(Stage::Orders);
        self.pool.collect();
        for peer in 0..self.peers.from.len() {
            // Before new frames, and up to four bursts of them: another worker has had its work with them already, while new ones can wait in the NIC's ring.
            for _ in 0..BURSTS {
                let (mut burst, mut known) = (Burst::new(), ArrayVec::<_, BURST>::new());
                let (sender, ring) = &mut self.peers.from[peer];
                ring.receive(BURST, |frame, note| {
                    burst.push(frame);
                    known.push(Known::from_word(note));
                });
                self.pool.borrow(*sender, burst.len());
                let is_last = !burst.is_full();
                worked |= !burst.is_empty();
                self.process(&mut burst, Some(&known), now);
                if is_last {
                    break;
                }
            }
        }
        let mut bursts = 0;
        for port in 0..self.ports.len() {
            for _ in 0..BURSTS {
                let mut burst = Burst::new();
                let (interface, queue) = &mut self.ports[port];
                queue.receive(&mut self.pool, &mut burst);
                if burst.is_empty() {
                    break;
                }
                let is_last = !burst.is_full();
                for frame in &mut burst {
                    frame.came_by(*interface);
                }
                self.counters.worker(self.id).count(Event::Received, burst.len() as u64);
                self.process(&mut burst, None, now);
                bursts += 1;
                if is_last {
                    break;
                }
            }
        }
        worked |= bursts != 0;
        for (frame, since) in self.kept.due(now) {
            self.director.watch().lap(Stage::Timers);
            let mut burst = Burst::new();
            burst.push(frame);
            // Not handed: its first part may have gone to another worker meanwhile.
            let verdicts = self.judge(&mut burst, None, now);
            for (frame, verdict) in burst.into_iter().zip(verdicts) {
                match verdict {
                    Verdict::Keep if Kept::is_overdue(since, now) => {
                        self.lose(frame, Reason::FragmentTimeout)
                    }
                    Verdict::Hold if Kept::is_overdue(since, now) => self.lose(frame, Reason::FtpTimeout),
                    Verdict::Keep | Verdict::Hold => self.keep(frame, since),
                    verdict => self.settle_unusual(frame, verdict, now),
                }
            }
            self.end_burst(1);
        }
        while let Some(frame) = self.waiting.overdue(now) {
            self.lose(frame, Reason::NeighbourTimeout);
        }
        worked |= self.director.expire(now, EXPIRY_BUDGET * bursts.max(1));
        while self.link.has_room()
            && let Some(wish) = self.director.wish()
        {
            self.link.answer(Answer::Steer(wish));
        }
        if now.since(self.asked) >= LOSSES_EVERY {
            self.asked = now;
            self.note_losses();
        }
        for (peer, to) in self.peers.to.iter_mut().zip(0..) {
            let Some(peer) = peer else { continue };
            let frames = peer.sender.publish();
            if frames > 0 {
                self.pool.lend(WorkerId(to), frames);
                peer.bell.ring_if_asleep();
            }
        }
        self.peers.from.iter_mut().for_each(|(_, ring)| ring.prefetch());
        self.director.watch().lap(Stage::Timers);
        self.has_unsent = false;
        for port in 0..self.ports.len() {
            self.transmit(port);
            self.has_unsent |= self.ports[port].1.flush(&mut self.pool);
        }
        self.pool.settle();
        self.director.watch().lap(Stage::Send);
        self.director.watch().end_turn(worked, self.counters.worker(self.id).profile());
        Some(worked)
    }

    /// Decides about frames and sorts them by what becomes of them.
    fn process(&mut self, burst: &mut Burst, handed: Option<&[Known]>, now: Tick) {
        if burst.is_empty() {
            return;
        }
        self.director.watch().lap(Stage::Receive);
        let packets = burst.len();
        let verdicts = self.judge(burst, handed, now);
        let (mut frames, mut verdicts) = (burst.drain(..), &verdicts[..]);
        while !verdicts.is_empty() {
            let settled = self.settle(&mut frames, verdicts, now);
            verdicts = &verdicts[settled..];
        }
        self.end_burst(packets);
    }

    /// A burst has been sorted.
    fn end_burst(&mut self, packets: usize) {
        let profile = self.counters.worker(self.id).profile();
        self.director.watch().lap(Stage::Sort);
        self.director.watch().end_burst(packets, profile);
    }

    /// Lets the director look at frames.
    fn judge(&mut self, burst: &mut Burst, handed: Option<&[Known]>, now: Tick) -> ArrayVec<Verdict, BURST> {
        let memory = self.pool.memory();
        let mut verdicts = ArrayVec::new();
        let mut packets: ArrayVec<Packet, BURST> =
            burst.iter_mut().map(|frame| memory.packet(frame)).collect();
        // Those that were handed over the director need not read so soon, and asks for them itself.
        if handed.is_none() {
            packets.iter().for_each(|packet| prefetch(packet.first_line()));
        }
        self.director.burst(&mut packets, handed, now, &mut verdicts);
        drop(packets);
        self.send_extras();
        verdicts
    }

    /// Puts what the director sends besides the burst into frames of this worker's own.
    fn send_extras(&mut self) {
        for n in 0.. {
            let Some((port, bytes)) = self.director.extras().nth(n) else { return };
            let Some(mut frame) = self.pool.take() else {
                self.counters.worker(self.id).drop(Reason::TransmitFull);
                continue;
            };
            frame.set_data(frame.start(), bytes.len());
            self.pool.memory().data(&mut frame).copy_from_slice(bytes);
            self.queue(once(frame), port);
        }
    }

    /// Does what the director has decided about the first frame, and about those after it that go the same usual way. Says how many those are.
    // Inlined, and what is seldom decided is a call: the others need not save for it what they do not use.
    #[inline(always)]
    fn settle(&mut self, frames: &mut impl Iterator<Item = Frame>, verdicts: &[Verdict], now: Tick) -> usize {
        match verdicts[0] {
            Verdict::Forward(port) => {
                let is_same =
                    |verdict: &&Verdict| matches!(verdict, Verdict::Forward(other) if *other == port);
                let count = verdicts.iter().take_while(is_same).count();
                self.queue(frames.take(count), port);
                count
            }
            Verdict::HandOff(owner, _) => {
                let known = verdicts.iter().map_while(|verdict| match verdict {
                    Verdict::HandOff(other, known) if *other == owner => Some(known.into_word()),
                    _ => None,
                });
                self.hand_off(known.zip(frames).map(|(known, frame)| (frame, known)), owner)
            }
            verdict => {
                frames.take(1).for_each(|frame| self.settle_unusual(frame, verdict, now));
                1
            }
        }
    }

    fn settle_unusual(&mut self, frame: Frame, verdict: Verdict, now: Tick) {
        match verdict {
            Verdict::Forward(port) | Verdict::Reply(port) => self.queue(once(frame), port),
            // The director has counted these two.
            Verdict::Pass | Verdict::Drop(_) => self.pool.give(frame),
            Verdict::HandOff(owner, known) => _ = self.hand_off(once((frame, known.into_word())), owner),
            Verdict::Keep => self.keep_new(frame, Event::FragmentWaited, now),
            Verdict::Hold => self.keep_new(frame, Event::FtpWaited, now),
            Verdict::Wait(link, neighbour) => self.wait_new(frame, (link, neighbour), now),
        }
    }

    /// Has frames go out by an interface with the next ones.
    #[inline(always)]
    fn queue(&mut self, mut frames: impl Iterator<Item = Frame>, interface: PortId) {
        let port = self.ways_out[usize::from(interface.0)];
        loop {
            let out = &mut self.out[port];
            let room = out.remaining_capacity();
            out.extend(frames.by_ref().take(room));
            let Some(next) = frames.next() else { return };
            self.director.watch().lap(Stage::Sort);
            self.transmit(port);
            self.director.watch().lap(Stage::Send);
            self.out[port].push(next);
        }
    }

    #[cold]
    fn keep_new(&mut self, frame: Frame, why: Event, now: Tick) {
        self.counters.worker(self.id).count(why, 1);
        self.keep(frame, now);
    }

    #[cold]
    fn wait_new(&mut self, frame: Frame, neighbour: (LinkId, IpAddr), now: Tick) {
        self.counters.worker(self.id).count(Event::Waited, 1);
        self.wait(frame, neighbour, now, now);
    }

    fn wait(&mut self, frame: Frame, neighbour: (LinkId, IpAddr), since: Tick, now: Tick) {
        match self.waiting.push(frame, neighbour, since, now) {
            Ok(Ask::Now) => self.link.answer(Answer::Resolve(neighbour.0, neighbour.1)),
            Ok(Ask::NotYet) => {}
            Err(frame) => self.lose(frame, Reason::NeighbourQueueFull),
        }
    }

    fn keep(&mut self, frame: Frame, since: Tick) {
        if let Err(frame) = self.kept.push(frame, since) {
            self.lose(frame, Reason::FragmentQueueFull);
        }
    }

    /// Sends frames to their owner, with what is known of them. Says how many there were.
    #[inline(always)]
    fn hand_off(&mut self, frames: impl Iterator<Item = (Frame, u64)>, owner: WorkerId) -> usize {
        let Some(Some(peer)) = self.peers.to.get_mut(usize::from(owner.0)) else {
            return frames.map(|(frame, _)| self.lose(frame, Reason::HandoffFull)).count();
        };
        peer.sender.send_all(frames, |frame| {
            self.counters.worker(self.id).drop(Reason::HandoffFull);
            self.pool.give(frame);
        })
    }

    /// Sends what waits to go out by a port; what does not fit even after a flush is lost.
    fn transmit(&mut self, port: usize) {
        if self.out[port].is_empty() {
            return;
        }
        let mut burst = std::mem::take(&mut *self.out[port]);
        let (_, queue) = &mut self.ports[port];
        queue.transmit(&mut self.pool, &mut burst);
        if !burst.is_empty() {
            queue.flush(&mut self.pool);
            queue.transmit(&mut self.pool, &mut burst);
        }
        for frame in burst {
            self.lose(frame, Reason::TransmitFull);
        }
    }

    #[cold]
    fn lose(&mut self, frame: Frame, reason: Reason) {
        self.counters.worker(self.id).drop(reason);
        self.pool.give(frame);
    }

    fn note_losses(&self) {
        let all = self.ports.iter().map(|(_, port)| port.losses());
        let sum = all.fold(Losses::default(), |sum, losses| Losses {
            rx_overrun: sum.rx_overrun + losses.rx_overrun,
            rx_no_buffer: sum.rx_no_buffer + losses.rx_no_buffer,
            rx_oversized: sum.rx_oversized + losses.rx_oversized,
            tx_refused: sum.tx_refused + losses.tx_refused,
        });
        self.counters.worker(self.id).note(sum);
    }

    /// Does what control asks for. `None` to stop.
    fn obey(&mut self, now: Tick) -> Option<bool> {
        let mut worked = false;
        while let Some(command) = self.link.command() {
            worked = true;
            match command {
                Command::Adopt(snapshot) => {
                    self.reached = snapshot.epoch;
                    let retired = self.director.adopt(snapshot);
                    self.link.reach(self.reached);
                    self.link.answer(Answer::Retired(retired));
                    self.retry(now);
                }
                Command::List { from, mut connections } => {
                    let places = LISTING_STEP.min(connections.capacity());
                    let next =
                        self.director.connections(from, places, now, |listed| connections.push(listed));
                    self.link.answer(Answer::Listed { next, connections });
                }
                Command::Opened(target) => self.director.opened(target),
                Command::Stop => return None,
            }
        }
        Some(worked)
    }

    /// Looks again at packets that waited for a neighbour.
    fn retry(&mut self, now: Tick) {
        let mut neighbour = 0;
        while let Some(packets) = self.waiting.take(neighbour) {
            neighbour += 1;
            for (frame, since) in packets {
                self.director.watch().lap(Stage::Orders);
                let mut burst = Burst::new();
                burst.push(frame);
                let verdicts = self.judge(&mut burst, Some(&[]), now);
                for (frame, verdict) in burst.into_iter().zip(verdicts) {
                    match verdict {
                        Verdict::Wait(link, address) => self.wait(frame, (link, address), since, now),
                        verdict => self.settle_unusual(frame, verdict, now),
                    }
                }
                self.end_burst(1);
            }
        }
        self.waiting.tidy();
    }

    fn sleep(&mut self) {
        if !self.link.prepare_to_sleep() || self.peers.from.iter().any(|(_, ring)| !ring.is_empty()) {
            self.link.wake(false);
            return;
        }
        let mut fds: ArrayVec<PollFd, { MAX_PORTS + 1 }> = ArrayVec::new();
        fds.push(PollFd::new(self.link.descriptor(), PollFlags::POLLIN));
        fds.extend(
            self.ports
                .iter()
                .filter_map(|(_, port)| port.descriptor())
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        // An interrupted sleep is a short one.
        let nap = if !self.kept.is_empty() {
            kept::PAUSE as u8
        } else if self.has_unsent {
            STALL
        } else {
            NAP
        };
        let _ = nix::poll::poll(&mut fds, PollTimeout::from(nap));
        let is_rung = fds[0].any().unwrap_or(true);
        drop(fds);
        self.link.wake(is_rung);
    }
}

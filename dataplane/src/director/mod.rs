//! The life of a packet.
//!
//! The director is a pure machine: a function of its snapshot, its tables, the frames and the moment. It does no I/O, reads no clock, draws no random
//! number, and allocates nothing per packet. The same director runs behind AF_XDP, AF_PACKET and memory.
//!
//! ```text
//!   parse, hash and fetch ahead ─▶ then each:   goes on as it did? ─▶ rewrite ─────────▶ Forward       the short way
//!                                                 │
//!                                                find ─┬─ request ─▶ track ─▶ rewrite ─▶ Forward       the long way
//!                                                      ├─ reply ───▶ track ─▶ rewrite ─▶ Forward
//!                                                      ├─ elsewhere ──────────────────▶ HandOff
//!                                                      └─ admit: service? choose, insert, then as a request;
//!                                                                nobody to choose, no SYN ─▶ Reply;  not ours ─▶ Pass
//! ```
//!
//! The order of the steps is IPVS's (`ip_vs_in_hook`, `ip_vs_out_hook`), with one difference: the next hop is found before anything is
//! counted, so that a packet which must wait for a neighbour can be tried again as if it had just come.

mod across;
mod admission;
mod ahead;
mod answers;
mod beginning;
mod beyond;
mod calling;
mod defence;
mod ending;
mod errors;
mod family;
mod fragments;
mod ftp;
mod full_nat;
mod hops;
mod listing;
mod openings;
mod outbox;
mod owners;
mod persistence;
mod pools;
mod sending;
mod services;
mod short;
mod undelivered;

use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;

use crate::conn::Conn;
use crate::conn::directory::Directory;
use crate::conn::memory::prefetch;
use crate::conn::paths::Paths;
use crate::conn::supplier;
use crate::conn::table::Secret;
use crate::packet::parse::NotOurs;
use crate::packet::plain::{HeaderV4, HeaderV6};
use crate::packet::{Meta, Packet, Plain, V4, V6};
use crate::port::BURST;
use crate::profile::{Stage, Stopwatch};
use crate::service::{LinkId, PortId, Snapshot, Tick, WorkerId};
use crate::stats::{Counters, Event, Reason, WorkerCounters};
use crate::steer::Target;
pub use ahead::Known;
use ahead::{AHEAD, Glance, Kind, Seen};
use beyond::Beyond;
use defence::Defence;
use family::Family;
pub use listing::{Listed, Place};
use openings::Openings;
pub use openings::Wish;
use outbox::Outbox;
use owners::Notices;
use pools::Pools;
use services::Schedulers;

use crate::forward::limit::Limiter;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was rewritten; send it by this port, after the [extras](Director::extras) of its burst.
    Forward(PortId),
    /// It was turned into an answer to its sender; send it by this port.
    Reply(PortId),
    /// Not the director's.
    Pass,
    /// Gone.
    Drop(Reason),
    /// Another worker owns its connection, and is to be told this. The frame is as it came.
    HandOff(WorkerId, Known),
    /// The Ethernet address of a neighbour must be asked for; try again when it is known. The frame is as it came.
    Wait(LinkId, IpAddr),
    /// A later fragment whose first has not come; try again in a moment. The frame is as it came.
    Keep,
    /// An answer of an FTP server names a port whose frames do not come to the director yet; try again in a moment. The frame is as it came.
    Hold,
}

impl Verdict {
    /// Another worker owns its connection, and has to look at it anew.
    fn hand_off(owner: WorkerId) -> Self {
        Self::HandOff(owner, Known::default())
    }
}

/// One worker's director.
// It begins at a page, and so does what holds it: no cache line of it is another worker's, too, and it lies the same way each time. The headers of frames, whose chunks begin at multiples
// of 2 KiB, all meet in two sets of the first cache, and what lies there as well is driven out with every burst: had it been what each packet needs, every packet took 3 to 5 ns longer.
#[repr(align(4096))]
pub struct Director {
    shared: Shared,
    v4: Family<V4>,
    v6: Family<V6>,
    /// The last burst.
    seen: Seen,
}

/// What both families of a director use.
struct Shared {
    worker: WorkerId,
    snapshot: Arc<Snapshot>,
    schedulers: Schedulers,
    directory: Option<Arc<Directory>>,
    notices: Notices,
    paths: Arc<Paths>,
    counters: Arc<Counters>,
    /// This worker's of them.
    mine: Arc<CachePadded<WorkerCounters>>,
    limiter: Limiter,
    outbox: Outbox,
    pools: Pools,
    beyond: Beyond,
    defence: Defence,
    openings: Openings,
    /// Whether the burst under way was sent by another worker.
    handed: bool,
    /// Whether no packet goes the [short] way.
    is_long: bool,
    watch: Stopwatch,
}

/// What a director is made of. The secret must be the same for all workers and unknown to everybody else.
pub struct Parts {
    /// Which worker's it is.
    pub worker: WorkerId,
    /// What it begins with.
    pub snapshot: Arc<Snapshot>,
    /// The connections it may hold, of each family.
    pub capacity: usize,
    /// The key of the hash.
    pub secret: Secret,
    /// Where workers find each other's connections; `None` for a single worker.
    pub directory: Option<Arc<Directory>>,
    /// What all workers have been told of the paths to tunnels' real servers.
    pub paths: Arc<Paths>,
    /// Everybody's counters.
    pub counters: Arc<Counters>,
}

impl Director {
    /// A director without connections.
    ///
    /// # Errors
    /// When the kernel refuses the memory for the tables.
    pub fn new(parts: Parts, now: Tick) -> std::io::Result<Self> {
        let Parts { worker, snapshot, capacity, secret, directory, paths, counters } = parts;
        let mut schedulers = Schedulers::new(worker, &secret);
        schedulers.adopt(None, &snapshot.services);
        let mut pools = Pools::new(worker, counters.workers(), secret, directory.clone());
        pools.adopt(&snapshot.services, snapshot.network.spread());
        let beyond = Beyond::with_capacity(capacity, secret, now)?;
        let (limiter, outbox, defence) = Default::default();
        let mine = counters.own(worker);
        Ok(Self {
            shared: Shared {
                worker,
                snapshot,
                schedulers,
                directory,
                notices: Notices::default(),
                paths,
                counters,
                mine,
                limiter,
                outbox,
                pools,
                beyond,
                defence,
                openings: Openings::default(),
                handed: false,
                is_long: false,
                watch: Stopwatch::stopped(),
            },
            v4: Family::with_capacity(capacity, worker, secret, now)?,
            v6: Family::with_capacity(capacity, worker, secret, now)?,
            seen: Seen::default(),
        })
    }

    /// The memory of its tables, for the one who brings it.
    pub fn supplies(&self) -> [supplier::Part; 4] {
        let (v4, v6) = (self.v4.supply(), self.v6.supply());
        let [twins_v4, twins_v6] = self.shared.beyond.supplies();
        [
            supplier::Part { supply: v4, is_needed: |services| services.has_any_of(false) },
            supplier::Part { supply: v6, is_needed: |services| services.has_any_of(true) },
            supplier::Part { supply: twins_v4, is_needed: |services| services.reaches_across(false) },
            supplier::Part { supply: twins_v6, is_needed: |services| services.reaches_across(true) },
        ]
    }

    /// Decides about a burst of frames, in order. `verdicts`, empty before, gets one for each.
    ///
    /// `handed` says that another worker sent them, because it took this one for their owner, and what it knew of them: they are not sent on again.
    pub fn burst(
        &mut self,
        packets: &mut [Packet],
        handed: Option<&[Known]>,
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        let count = packets.len().min(BURST);
        let packets = &mut packets[..count];
        self.shared.handed = handed.is_some();
        self.shared.outbox.clear();
        self.seen.clear();
        let families = (&self.v4, &self.v6);
        let Snapshot { services, .. } = &*self.shared.snapshot;
        // With its last service IPVS unhooks itself, connections or not.
        let is_idle = services.is_empty();
        self.seen.look(families, packets, handed.unwrap_or_default());
        self.shared.watch.lap(Stage::Parse);
        self.seen.fetch(families, self.shared.owners());
        self.shared.watch.lap(Stage::LookUp);
        let lines = self.lines(packets);
        while verdicts.len() < count {
            if !is_idle && !self.shared.is_long {
                self.go_on(packets, &lines, now, verdicts);
            }
            let at = verdicts.len();
            if at < count {
                let verdict = self.decide(&mut packets[at], self.seen.glances[at], is_idle, now);
                self.shared.count(verdict);
                verdicts.push(verdict);
            }
        }
        self.v4.conns.end_burst();
        self.v6.conns.end_burst();
        self.shared.tell();
        self.shared.watch.lap(Stage::Decide);
    }

    /// The lines that are asked for packet by packet, [some](AHEAD) before each one's: all at once, they would keep index lines from coming. Asks for the
    /// first of them.
    #[inline]
    fn lines(&self, packets: &[Packet]) -> ArrayVec<*const u8, BURST> {
        let first_lines = packets.iter().map(Packet::first_line);
        // Where outer headers will stand.
        let lines_before = first_lines.clone().map(|line| line.wrapping_sub(1));
        match (self.shared.handed, self.shared.snapshot.services.has_tunnels()) {
            (false, false) => ArrayVec::new(),
            (false, true) => {
                lines_before.clone().take(AHEAD).for_each(prefetch);
                lines_before.collect()
            }
            // Another core has written frames, not what is before them. The first have been asked for by now.
            (true, has_tunnels) => {
                if has_tunnels {
                    lines_before.for_each(prefetch);
                }
                first_lines.collect()
            }
        }
    }

    /// Decides about the next packets, as many of them as go the [short] way.
    #[inline]
    fn go_on(
        &mut self,
        packets: &mut [Packet],
        lines: &[*const u8],
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        let next = verdicts.len();
        let (packets, glances) = (&mut packets[next..], &self.seen.glances[next..]);
        let lines = lines.get(next..).unwrap_or_default();
        // Of no connection, and nobody else to ask: it begins one.
        if glances[0].likely.candidate().is_none() && self.shared.owners().is_none() {
            return;
        }
        match glances[0].kind {
            Kind::PlainV4 | Kind::FoundV4 => {
                let is_plain = |kind| matches!(kind, Kind::PlainV4 | Kind::FoundV4);
                self.v4.go_on(&self.shared, (packets, glances, lines), is_plain, now, verdicts);
            }
            Kind::PlainV6 => {
                let is_plain = |kind| kind == Kind::PlainV6;
                self.v6.go_on(&self.shared, (packets, glances, lines), is_plain, now, verdicts);
            }
            _ => {}
        }
    }

    /// Decides about a packet, the long way.
    #[inline(never)]
    fn decide(&mut self, packet: &mut Packet, glance: Glance, is_idle: bool, now: Tick) -> Verdict {
        match glance.kind {
            Kind::NotOurs(NotOurs::Pass) => Verdict::Pass,
            Kind::NotOurs(NotOurs::Drop(reason)) => Verdict::Drop(reason),
            _ if is_idle => Verdict::Pass,
            Kind::PlainV4 => {
                let meta = Plain::<HeaderV4>::again(packet).map(|plain| plain.meta());
                meta.map_or(Verdict::Pass, |meta| self.decide_v4(packet, &meta, &glance, now))
            }
            Kind::FoundV4 => {
                let Some(plain) = Plain::<HeaderV4>::again(packet) else { return Verdict::Pass };
                let (hash, kind) = (self.v4.conns.hash(&plain.tuple()), Kind::PlainV4);
                let glance = Glance { hash, likely: self.v4.fetch(hash, None), kind };
                self.decide(packet, glance, is_idle, now)
            }
            Kind::PlainV6 => {
                let meta = Plain::<HeaderV6>::again(packet).map(|plain| plain.meta());
                meta.map_or(Verdict::Pass, |meta| self.decide_v6(packet, &meta, &glance, now))
            }
            Kind::V4(place) => self.decide_v4(packet, &self.seen.meta_v4(place), &glance, now),
            Kind::V6(place) => self.decide_v6(packet, &self.seen.meta_v6(place), &glance, now),
        }
    }

    #[inline(never)]
    fn decide_v4(&mut self, packet: &mut Packet, meta: &Meta<V4>, glance: &Glance, now: Tick) -> Verdict {
        if meta.is_whole_transport() {
            return self.v4.packet(&mut self.v6, &mut self.shared, packet, meta, glance, now);
        }
        match self.undelivered(packet, meta, now) {
            Some(verdict) => verdict,
            None => self.v4.decide(&mut self.v6, &mut self.shared, packet, meta, glance, now),
        }
    }

    #[inline(never)]
    fn decide_v6(&mut self, packet: &mut Packet, meta: &Meta<V6>, glance: &Glance, now: Tick) -> Verdict {
        if meta.is_whole_transport() {
            return self.v6.packet(&mut self.v4, &mut self.shared, packet, meta, glance, now);
        }
        match self.undelivered(packet, meta, now) {
            Some(verdict) => verdict,
            None => self.v6.decide(&mut self.v4, &mut self.shared, packet, meta, glance, now),
        }
    }

    /// Frames to be sent besides those of the last burst, before them, each with the port to send it by.
    pub fn extras(&self) -> impl Iterator<Item = (PortId, &[u8])> {
        self.shared.outbox.frames()
    }

    /// Begins to work by another snapshot; gives the old one back, to be dropped where time does not matter.
    pub fn adopt(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        let shared = &mut self.shared;
        shared.schedulers.adopt(Some(&shared.snapshot.services), &snapshot.services);
        if !Arc::ptr_eq(&shared.snapshot.services, &snapshot.services)
            || shared.snapshot.network.spread() != snapshot.network.spread()
        {
            shared.pools.adopt(&snapshot.services, snapshot.network.spread());
        }
        let has_lost_any = !Arc::ptr_eq(&shared.snapshot.services, &snapshot.services)
            && snapshot.services.has_lost_any(&shared.snapshot.services);
        if !Arc::ptr_eq(&shared.snapshot.network, &snapshot.network) {
            self.v4.forget_hops();
            self.v6.forget_hops();
        } else if has_lost_any
            || shared.snapshot.timeouts != snapshot.timeouts
            || snapshot.services.wraps_otherwise(&shared.snapshot.services)
        {
            self.v4.doubt();
            self.v6.doubt();
        }
        if has_lost_any && snapshot.sysctls.expire_nodest_conn != 0 {
            self.v4.sweep();
            self.v6.sweep();
        }
        let old = std::mem::replace(&mut shared.snapshot, snapshot);
        self.weigh();
        old
    }

    /// What control must be asked for next: frames to be steered here, or not any more.
    pub fn wish(&mut self) -> Option<Wish> {
        self.shared.openings.wish()
    }

    /// Control has had the frames of a target steered here that was asked for.
    pub fn opened(&mut self, target: Target) {
        self.shared.openings.opened(target);
    }

    /// Ends connections whose time is over, and those of removed real servers if they are not to wait for them, looking at `budget` connections at
    /// most. Then those that may be dropped, if there is little room. Says whether there may be more to look at.
    pub fn expire(&mut self, now: Tick, mut budget: usize) -> bool {
        self.v4.expire(&mut self.shared, now, &mut budget);
        self.v6.expire(&mut self.shared, now, &mut budget);
        self.defend(now, &mut budget);
        budget == 0
    }

    /// Gives the connections that live at `now` to `each`, a listing in steps that look at `places` places of the tables. Says where to go on;
    /// `None` at the end.
    pub fn connections(
        &self,
        from: Place,
        places: usize,
        now: Tick,
        each: impl FnMut(Listed),
    ) -> Option<Place> {
        match from {
            Place::V4(place) => {
                let next = self.v4.list(&self.shared, place, places, now, each);
                Some(next.map_or(Place::V6(0), Place::V4))
            }
            Place::V6(place) => self.v6.list(&self.shared, place, places, now, each).map(Place::V6),
        }
    }

    /// Gives each IPv4 connection, whole, to `each`: for tests, which look closer than a listing does.
    pub fn each_v4(&self, each: impl FnMut(&Conn<V4>)) {
        self.v4.each(each);
    }

    /// Sends nothing the [short] way from now on: for tests, which compare.
    pub fn go_the_long_way(&mut self) {
        self.shared.is_long = true;
    }

    /// What its stages are timed by, if its owner has it run. Nothing that is decided depends on it.
    pub fn watch(&mut self) -> &mut Stopwatch {
        &mut self.shared.watch
    }

    /// The snapshot it works by.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.shared.snapshot
    }
}

impl Shared {
    fn mine(&self) -> &WorkerCounters {
        &self.mine
    }

    fn count(&self, verdict: Verdict) {
        let counters = self.mine();
        match verdict {
            Verdict::Forward(_) => counters.count(Event::Forwarded, 1),
            Verdict::HandOff(..) => counters.count(Event::HandedOff, 1),
            Verdict::Reply(_) => counters.count(Event::Replied, 1),
            Verdict::Pass => counters.count(Event::Passed, 1),
            Verdict::Drop(reason) => counters.drop(reason),
            // Tried again and again; the worker counts it once.
            Verdict::Wait(..) | Verdict::Keep | Verdict::Hold => {}
        }
    }
}

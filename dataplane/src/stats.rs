//! Counters, one set per worker; the reader sums.
//!
//! Every counter has one writer, so it is written by a plain load and store (no locked instruction) and lies on
//! cache lines that no other worker writes. Readers may look at any time and see each counter slightly late, never torn.
//! Counters only grow: `-Z` is the reader's business, who remembers a base.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::conn::memory::Mapped;
use crate::port::Losses;
use crate::profile::Profile;
use crate::service::{DestId, WorkerId};

/// Real servers, live or waiting for their last connections, that counters are kept for. 131,072 are a thousand services of a hundred
/// servers and room to replace some; at 64 bytes each that is 8 MiB of address space a worker, touched as
/// used. Control refuses to add more.
pub const MAX_DESTS: usize = 1 << 17;

/// These, and [`DestId::NOBODY`].
const PLACES: usize = MAX_DESTS + 1;

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Why a frame was dropped. Each has a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of their counters.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// The counter's name.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// The frame ends inside its Ethernet header.
    TruncatedFrame = "drop.truncated_frame",
    /// The IPv4 header is cut short or contradicts itself.
    BadIpHeader = "drop.bad_ip_header",
    /// The IPv4 header's checksum is wrong.
    BadIpChecksum = "drop.bad_ip_checksum",
    /// The packet ends inside its transport header.
    TruncatedTransport = "drop.truncated_transport",
    /// A later fragment that begins inside the transport header.
    TinyFragment = "drop.tiny_fragment",
    /// A later fragment whose first did not come in time.
    FragmentTimeout = "drop.fragment_timeout",
    /// A fragment that was sent on before.
    FragmentDuplicate = "drop.fragment_duplicate",
    /// A fragment that overlaps with one that was sent on, or any later one of the same datagram.
    FragmentOverlap = "drop.fragment_overlap",
    /// A fragment of a datagram that comes in too little order to be kept track of.
    FragmentScattered = "drop.fragment_scattered",
    /// A later fragment that could not go on, and whose sender may not be told: of IPv4 (RFC 1122 §3.2.2).
    FragmentUnanswered = "drop.fragment_unanswered",
    /// Too many later fragments wait for their first, or answers of FTP servers for their ports to be steered.
    FragmentQueueFull = "drop.fragment_queue_full",
    /// A part of an SCTP datagram whose port NAT would change: the new CRC needs the whole.
    SctpFragment = "drop.sctp_fragment",
    /// The connection's real server was removed; the connection waits for it to come back, or for its timeout.
    NoDest = "drop.no_dest",
    /// A RST, or an SCTP packet that nobody may answer, that belongs to no connection.
    StrayReset = "drop.stray_reset",
    /// A packet that would have been answered, but its own checksum is wrong.
    BadChecksum = "drop.bad_checksum",
    /// An ICMP error that fits no connection.
    StrayIcmp = "drop.stray_icmp",
    /// An ICMP error about a tunnel's packet that is of no use to the packet's sender.
    AbsorbedIcmp = "drop.absorbed_icmp",
    /// A packet that would begin a connection, from an address that nobody who sent it can have: loopback, a group's, the machine's own (IPv4).
    ImpossibleSource = "drop.impossible_source",
    /// The connection table is full.
    TableFull = "drop.table_full",
    /// A new connection that was refused to shed load (`drop_packet`).
    LoadShed = "drop.load_shed",
    /// A packet to a service that goes by SIP calls, of no call that could be read.
    NoCall = "drop.no_call",
    /// FullNAT has no local address for the real server, or no port left at any. The client was told: TCP by a RST, others by ICMP port
    /// unreachable, and this is counted besides (`frames.replied`, `drop.rate_limited`).
    NoLocalPort = "drop.no_local_port",
    /// An answer on a control connection of FTP that cannot be rewritten now: the one before it is not acknowledged yet, it comes in fragments, or
    /// its frame has no room for a longer one. The server sends it again.
    FtpAnswer = "drop.ftp_answer",
    /// An answer of an FTP server waited in vain for the port it names to be steered to the director. The server sends it again.
    FtpTimeout = "drop.ftp_timeout",
    /// An acknowledgement on a control connection of FTP of what was never sent.
    FtpUnsent = "drop.ftp_unsent",
    /// A packet that has no counterpart in the other address family.
    Untranslatable = "drop.untranslatable",
    /// No route leads to where the packet must go, or through an interface that is not the director's.
    NoRoute = "drop.no_route",
    /// The next hop does not answer ARP. The client of a real server is told by ICMP host unreachable, and this is counted besides.
    NoNeighbour = "drop.no_neighbour",
    /// Too many packets wait for a neighbour to answer.
    NeighbourQueueFull = "drop.neighbour_queue_full",
    /// The packet waited for a neighbour in vain.
    NeighbourTimeout = "drop.neighbour_timeout",
    /// The packet is longer than the next hop's MTU, its sender cannot be told, and it cannot be cut up.
    TooBig = "drop.too_big",
    /// An answer (RST, ICMP) to this sender would exceed its rate.
    RateLimited = "drop.rate_limited",
    /// The port's transmit queue was full.
    TransmitFull = "drop.transmit_full",
    /// The other worker's hand-off ring was full.
    HandoffFull = "drop.handoff_full",
    /// The kernel had already been kept from it, but the director does not want it: steering and snapshot disagreed for a moment.
    NotWanted = "drop.not_wanted",
}

macro_rules! events {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Things that happen to frames and are not drops. Each has a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Event { $($(#[$doc])+ $name,)+ }

        impl Event {
            /// Every event, in the order of their counters.
            pub const ALL: &[Event] = &[$(Event::$name,)+];

            /// The counter's name.
            pub fn name(self) -> &'static str {
                match self { $(Event::$name => $text,)+ }
            }
        }
    };
}

events! {
    /// Frames received.
    Received = "frames.received",
    /// Frames sent on to a real server or a client.
    Forwarded = "frames.forwarded",
    /// Frames answered by the director itself.
    Replied = "frames.replied",
    /// Frames left to the kernel.
    Passed = "frames.passed",
    /// Frames handed to the worker that owns their connection.
    HandedOff = "frames.handed_off",
    /// Packets of no connection that were routed as the kernel would have.
    Routed = "frames.routed",
    /// Packets that were cut up because they were too long for the next hop.
    CutUp = "fragment.cut_up",
    /// Later fragments that came before their first and began to wait for it.
    FragmentWaited = "fragment.waited",
    /// Errors by which the director learned that the path to a tunnel's real server carries less than it took it to.
    PathNarrowed = "path.narrowed",
    /// Answers of FTP servers that began to wait for the port they name to be steered to the director.
    FtpWaited = "ftp.waited",
    /// Data connections of FTP that were made room for.
    FtpExpected = "ftp.expected",
    /// Packets that began to wait for a neighbour.
    Waited = "neighbour.waited",
    /// Connections created.
    Created = "conn.created",
    /// Connections that reached their timeout.
    Expired = "conn.expired",
    /// Connections that were ended to make room for others.
    GaveWay = "conn.gave_way",
    /// New connections nobody could be scheduled for; answered with ICMP port unreachable.
    NoServer = "sched.no_server",
    /// Packets from clients for whose real server there is no route; answered with ICMP host unreachable.
    NoRoute = "hop.no_route",
    /// Connections that other workers cannot find, because the directory had no room.
    DirectoryFull = "directory.full",
}

/// What one real server did, by one worker's count. One cache line.
#[derive(Debug, Default, zerocopy::FromZeros)]
#[repr(C, align(64))]
pub struct DestCounters {
    /// Connections scheduled.
    pub conns: AtomicU64,
    /// Packets from clients.
    pub in_packets: AtomicU64,
    /// Packets to clients.
    pub out_packets: AtomicU64,
    /// Bytes from clients, from the IP header on.
    pub in_bytes: AtomicU64,
    /// Bytes to clients, from the IP header on.
    pub out_bytes: AtomicU64,
    /// Connections in an active state now.
    pub active: AtomicU64,
    /// Other connections now.
    pub inactive: AtomicU64,
    /// Templates now.
    pub templates: AtomicU64,
}

impl DestCounters {
    /// Counts a packet from a client. Only the worker whose counters they are may, here and below.
    #[inline]
    pub fn count_in(&self, bytes: u64) {
        add(&self.in_packets, 1);
        add(&self.in_bytes, bytes);
    }

    /// Counts a packet to a client.
    #[inline]
    pub fn count_out(&self, bytes: u64) {
        add(&self.out_packets, 1);
        add(&self.out_bytes, bytes);
    }
}

/// One worker's counters.
pub struct WorkerCounters {
    dests: Mapped<DestCounters>,
    drops: [AtomicU64; Reason::ALL.len()],
    events: [AtomicU64; Event::ALL.len()],
    /// What the worker's ports have lost, as they last said.
    losses: [AtomicU64; LOSSES.len()],
    profile: Profile,
}

/// The names of [`Losses`]' counters, in order.
const LOSSES: [&str; 4] = ["port.rx_overrun", "port.rx_no_buffer", "port.rx_oversized", "port.tx_refused"];

/// The counters of all workers.
pub struct Counters {
    workers: Vec<Arc<CachePadded<WorkerCounters>>>,
    /// Real servers that have reached their upper threshold. Written when one crosses a threshold, read when scheduling.
    overloaded: Mapped<AtomicBool>,
}

/// Connections of a real server, over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// In an active state.
    pub active: u64,
    /// In any other.
    pub inactive: u64,
    /// Templates, which are no connections.
    pub templates: u64,
}

/// Adds to a counter that only the caller writes.
#[inline]
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Takes from a counter that only the caller writes.
#[inline]
pub fn sub(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
}

impl Counters {
    /// Counters for some workers, all zero.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        Ok(Self {
            workers: (0..workers)
                .map(|_| {
                    Ok(Arc::new(CachePadded::new(WorkerCounters {
                        dests: Mapped::zeroed(PLACES)?,
                        drops: std::array::from_fn(|_| AtomicU64::new(0)),
                        events: std::array::from_fn(|_| AtomicU64::new(0)),
                        losses: std::array::from_fn(|_| AtomicU64::new(0)),
                        profile: Profile::default(),
                    })))
                })
                .collect::<std::io::Result<_>>()?,
            overloaded: Mapped::zeroed(PLACES)?,
        })
    }

    /// Workers there are.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// One worker's counters. Only that worker may write to them.
    pub fn worker(&self, worker: WorkerId) -> &WorkerCounters {
        &self.workers[usize::from(worker.0)]
    }

    /// One worker's counters, for that worker to keep at hand.
    pub fn own(&self, worker: WorkerId) -> Arc<CachePadded<WorkerCounters>> {
        Arc::clone(&self.workers[usize::from(worker.0)])
    }

    /// Each worker's counters of a real server.
    pub fn dest(&self, dest: DestId) -> impl Iterator<Item = &DestCounters> {
        self.workers.iter().map(move |w| w.dest(dest))
    }

    /// The connections of a real server now.
    pub fn load(&self, dest: DestId) -> Load {
        // Two workers' counts are read at two moments: a sum may be off by what changed in between.
        self.dest(dest).fold(Load::default(), |load, c| Load {
            active: load.active + c.active.load(Ordering::Relaxed),
            inactive: load.inactive + c.inactive.load(Ordering::Relaxed),
            templates: load.templates + c.templates.load(Ordering::Relaxed),
        })
    }

    /// Whether a real server has reached its upper threshold and not yet fallen below the lower one.
    pub fn is_overloaded(&self, dest: DestId) -> bool {
        self.overloaded[dest.0 as usize].load(Ordering::Relaxed)
    }

    /// Says whether a real server is overloaded. Writes only when that changes, so that the line stays shared.
    pub fn set_overloaded(&self, dest: DestId, overloaded: bool) {
        if self.is_overloaded(dest) != overloaded {
            self.overloaded[dest.0 as usize].store(overloaded, Ordering::Relaxed);
        }
    }

    /// Every counter that is no real server's, summed over the workers, with its name.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = |f: &dyn Fn(&WorkerCounters) -> u64| self.workers.iter().map(|w| f(w)).sum::<u64>();
        let events: Vec<_> = Event::ALL.iter().map(|e| (e.name(), sum(&|w| w.event(*e)))).collect();
        let drops: Vec<_> = Reason::ALL.iter().map(|r| (r.name(), sum(&|w| w.dropped(*r)))).collect();
        let lost = (0..LOSSES.len()).map(|n| (LOSSES[n], sum(&|w| w.losses[n].load(Ordering::Relaxed))));
        let lost: Vec<_> = lost.collect();
        events.into_iter().chain(drops).chain(lost)
    }
}

impl WorkerCounters {
    /// The counters of a real server.
    #[inline]
    pub fn dest(&self, dest: DestId) -> &DestCounters {
        &self.dests[dest.0 as usize]
    }

    /// Counts a drop.
    #[inline]
    pub fn drop(&self, reason: Reason) {
        add(&self.drops[reason as usize], 1);
    }

    /// Counts an event `n` times.
    #[inline]
    pub fn count(&self, event: Event, n: u64) {
        add(&self.events[event as usize], n);
    }

    /// Notes what the worker's ports have lost so far.
    pub fn note(&self, losses: Losses) {
        let Losses { rx_overrun, rx_no_buffer, rx_oversized, tx_refused } = losses;
        for (counter, total) in self.losses.iter().zip([rx_overrun, rx_no_buffer, rx_oversized, tx_refused]) {
            counter.store(total, Ordering::Relaxed);
        }
    }

    /// What its timed turns have taken.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Drops for a reason so far.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }

    /// Events so far.
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize].load(Ordering::Relaxed)
    }
}

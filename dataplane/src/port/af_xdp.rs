//! AF_XDP ports: frames straight from and to the NIC's queues.
//!
//! An XDP program redirects frames to a socket, one per interface and queue, whose rings ([`ring`](super::ring)) are shared with
//! the kernel. All sockets share one UMEM, the frame memory: a frame received on one leaves on any other by its
//! descriptor, uncopied. Each (interface, queue) has a fill and a completion ring of its own.
//!
//! ```text
//!   Pool ─ lend ─▶ Fill ─▶ kernel ─▶ Rx ─ reclaim ─▶ Burst          frames in the kernel: `lent` ≤ fill ring
//!   Burst ─ lend ─▶ Tx ─▶ kernel ─▶ Completion ─ reclaim ─▶ Pool    `in_flight`
//! ```
//!
//! A frame's token exists exactly while the kernel does not have the frame. Those in the kernel when a port
//! is dropped are not used again; ports live as long as the process.
//!
//! In zero-copy mode the NIC writes to and reads from the frames itself, and its driver is woken when it has asked for that
//! (`need_wakeup`). In copy mode the kernel copies, and nobody sends but [`Port::flush`]: no system call, no packet.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use libc::{xdp_desc, xdp_mmap_offsets, xdp_ring_offset};
use memmap2::{MmapOptions, MmapRaw};

use super::frame::CHUNK;
use super::ring::{Completion, Fill, Rx, Tx};
use super::sockopt::{option, set_option};
use super::{Burst, FrameMemory, Losses, MIN_FRAME, Pool, Port, partial};

/// Descriptors the kernel sends per call in copy mode (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KERNEL_BATCH: u32 = 32;

/// Send calls per flush in copy mode. Eight send four bursts; if more than that is queued the device is the brake, and
/// the rest may wait for the next turn.
const MAX_KICKS: u32 = 8;

/// How long a bind insists when its queue is busy: 2 s in all. A queue whose socket was closed, by us or by the process we
/// replace, is released in the background, after its driver has restarted it.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How long a NIC gets to let go of the frames of closed zero-copy sockets, which the kernel does not report. Drivers restart a queue within
/// tens of milliseconds.
const RELEASE_WAIT: Duration = Duration::from_millis(500);

/// A socket to be opened: one queue of one interface, for one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The interface's name, for messages.
    pub interface: String,
    /// The interface's index.
    pub index: u32,
    /// The queue, from 0.
    pub queue: u32,
    /// The worker that will own the port: an index into the pools.
    pub worker: usize,
}

/// How the XDP program that feeds the sockets is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// In the driver. Zero-copy is possible.
    Native,
    /// In the kernel's generic path, behind the allocation of an skb. Always copies.
    Generic,
}

/// How frames get from the NIC into the frame memory, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The NIC writes them there itself.
    ZeroCopy,
    /// The driver runs the XDP program, the kernel copies.
    NativeCopy,
    /// The kernel makes an skb, runs the XDP program, copies.
    GenericCopy,
}

/// What all sockets of one [`AfXdp::open`] have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How the program runs on the interfaces.
    pub attach: Attach,
    /// Slots of a receive ring, a power of two. It must hold what arrives during the longest turn of the worker.
    pub rx_slots: u32,
    /// Slots of a transmit ring, a power of two.
    pub tx_slots: u32,
    /// Finish partial checksums of received frames: for veth and virtio_net, where local senders leave
    /// them. Costs a look at each TCP and UDP header.
    pub partial_checksums: bool,
}

/// A socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no AF_XDP for us.
    #[error("no AF_XDP socket: {source}; {}", socket_cure(.source))]
    Socket {
        /// What the kernel said.
        source: io::Error,
    },
    /// The frame memory could not be registered.
    #[error("cannot register {mebibytes} MiB of frame memory as UMEM: {source}; {}", memory_cure(.source))]
    Umem {
        /// Size of the memory.
        mebibytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// A ring could not be made or mapped.
    #[error("cannot make the rings of {interface} queue {queue}: {source}; {}", memory_cure(.source))]
    Rings {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A ring size is not a power of two.
    #[error("{slots} ring slots: AF_XDP wants a power of two from 64 to 32768")]
    RingSize {
        /// The size that was asked for.
        slots: u32,
    },
    /// The worker has no pool, or not enough free frames in it.
    #[error(
        "{interface} queue {queue}: worker {worker} has too few frames; give each worker at least {needed} for every \
         queue it owns"
    )]
    Frames {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The worker.
        worker: usize,
        /// What [`Options::frames_per_queue`] says.
        needed: u32,
    },
    /// The socket could not be bound to its queue.
    #[error("cannot bind to {interface} queue {queue} ({mode}): {source}; {}", bind_cure(.source))]
    Bind {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The mode that was tried last.
        mode: Mode,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One AF_XDP socket with its four rings.
pub struct AfXdp {
    fd: OwnedFd,
    memory: Arc<FrameMemory>,
    fill: Fill,
    completion: Completion,
    rx: Rx,
    tx: Tx,
    /// Frames given to the kernel for receiving and not yet received.
    lent: u32,
    /// Frames given to the kernel for sending and not yet completed.
    in_flight: u32,
    mode: Mode,
    partial_checksums: bool,
    /// Frames too short to be sent.
    short: u64,
    /// Descriptors from the kernel that lie in no chunk.
    invalid: u64,
    /// The last answer of XDP_STATISTICS, for when the kernel gives none.
    losses: Cell<Losses>,
}

impl Options {
    /// Frames that one queue may have in its rings at once. A worker's pool needs that many for each of its queues, and
    /// some bursts on top.
    pub fn frames_per_queue(&self) -> u32 {
        self.fill_slots() + self.rx_slots + self.tx_slots
    }

    /// A zero-copy driver moves a NIC ring's worth of frames out of the fill ring at once; twice the receive ring leaves
    /// as many waiting.
    fn fill_slots(&self) -> u32 {
        self.rx_slots * 2
    }
}

impl Default for Options {
    /// Native; whole checksums; 1024 slots each way, a millisecond at a million frames a second: longer than a turn
    /// takes, and short enough that a queue does not become a delay.
    fn default() -> Self {
        Self { attach: Attach::Native, rx_slots: 1024, tx_slots: 1024, partial_checksums: false }
    }
}

impl AfXdp {
    /// Opens a socket for each of `queues`, in that order, and fills their fill rings from the workers' pools.
    ///
    /// Zero-copy is tried first where the program runs natively. The kernel grants one mode per UMEM, so one
    /// interface that cannot do it means copy mode for all. The pools must share one memory.
    ///
    /// # Errors
    /// [`Error`] names the queue and the likely cure. All sockets opened by the call are closed again, their
    /// frames back in their pools.
    pub fn open(pools: &mut [Pool], queues: &[Queue], options: &Options) -> Result<Vec<Self>, Error> {
        for slots in [options.rx_slots, options.tx_slots] {
            if !slots.is_power_of_two() || !(64..=32_768).contains(&slots) {
                return Err(Error::RingSize { slots });
            }
        }
        let modes: &[Mode] = match options.attach {
            Attach::Native => &[Mode::ZeroCopy, Mode::NativeCopy],
            Attach::Generic => &[Mode::GenericCopy],
        };
        let mut result = Ok(Vec::new());
        for mode in modes {
            result = open_all(pools, queues, options, *mode);
            match &result {
                // Drivers that cannot say so variously: EOPNOTSUPP, EINVAL, ENOTSUPP. A busy queue is busy in any mode.
                Err(Error::Bind { source, .. }) if source.raw_os_error() != Some(libc::EBUSY) => {}
                _ => break,
            }
        }
        result
    }

    /// How frames get into memory.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the NIC reads and writes the frames itself.
    pub fn zero_copy(&self) -> bool {
        self.mode == Mode::ZeroCopy
    }

    /// Gives the kernel as many empty frames as it has returned to us full.
    fn refill(&mut self, pool: &mut Pool) {
        let missing = self.fill.size() - self.lent;
        if missing != 0 {
            // An empty pool is no reason to stop: frames come home with the completions.
            let frames = std::iter::from_fn(|| pool.take()).map(|frame| frame.lend().0);
            self.lent += self.fill.produce(missing, frames);
        }
        if self.fill.needs_wakeup() && self.lent != 0 {
            self.wake_rx();
        }
    }

    /// Gives frames that have been sent back to their pools.
    fn reap(&mut self, pool: &mut Pool) {
        if self.in_flight == 0 {
            return;
        }
        let (memory, invalid) = (&self.memory, &mut self.invalid);
        let done = self.completion.consume(u32::MAX, |offset| match memory.reclaim(offset, 0) {
            Some(frame) => pool.give(frame),
            None => *invalid += 1,
        });
        self.in_flight = self.in_flight.saturating_sub(done);
    }

    /// Tells the kernel to send. Bounded by construction: each call in copy mode must have made progress to be followed by
    /// another.
    fn kick(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        if self.zero_copy() {
            // Also when all descriptors are taken: some drivers reap completions only when woken.
            if self.tx.needs_wakeup() {
                self.wake_tx();
            }
            return;
        }
        let mut unsent = self.tx.unsent();
        for _ in 0..MAX_KICKS.min(unsent.div_ceil(KERNEL_BATCH)) {
            self.wake_tx();
            let left = self.tx.unsent();
            if left == 0 || left == unsent {
                break;
            }
            unsent = left;
        }
    }

    /// Errors need no answer here: EAGAIN, EBUSY and ENOBUFS mean "later", and there is a next flush; while the link is down
    /// (ENETDOWN) the ring fills, and [`Port::transmit`] refuses.
    fn wake_tx(&self) {
        // SAFETY: no buffer, no address; the descriptor is open as long as `self`.
        unsafe {
            libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0);
        }
    }

    fn wake_rx(&self) {
        // SAFETY: a buffer of length 0 is not written to, no address is asked for; the descriptor is open as long as `self`.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
        }
    }
}

impl Port for AfXdp {
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let (memory, invalid) = (&self.memory, &mut self.invalid);
        let partial_checksums = self.partial_checksums;
        let taken = self.rx.consume(burst.remaining_capacity() as u32, |descriptor| {
            let Some(mut frame) = memory.reclaim(descriptor.addr, descriptor.len) else {
                *invalid += 1;
                return;
            };
            if partial_checksums {
                partial::finish_if_partial(memory.data(&mut frame));
            }
            burst.push(frame);
        });
        self.lent = self.lent.saturating_sub(taken);
        self.refill(pool);
    }

    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let want = burst.len() as u32;
        let mut room = self.tx.room(want);
        if room < want {
            // The ring is full because the kernel has not been told or has not got round to it; telling it is all we can do.
            self.kick();
            self.reap(pool);
            room = self.tx.room(want);
        }
        let short = &mut self.short;
        let descriptors = burst.drain(..room as usize).filter_map(|frame| {
            if frame.len() < MIN_FRAME {
                // The kernel would count the descriptor as invalid and never give the chunk back.
                *short += 1;
                pool.give(frame);
                return None;
            }
            let (addr, len) = frame.lend();
            Some(xdp_desc { addr, len, options: 0 })
        });
        self.in_flight += self.tx.produce(room, descriptors);
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.kick();
        self.reap(pool);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    /// A system call per call: for the reader of statistics, not for the packet path.
    ///
    /// The kernel's `rx_dropped` counts frames it had no empty buffer for, which `rx_fill_ring_empty_descs` counts as well, and frames longer
    /// than a chunk. With zero-copy the latter is an upper bound: a driver that finds the ring empty asks again.
    fn losses(&self) -> Losses {
        if let Ok(statistics) = option::<libc::xdp_statistics>(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS)
        {
            let no_buffer = statistics.rx_fill_ring_empty_descs;
            self.losses.set(Losses {
                rx_overrun: statistics.rx_ring_full + no_buffer,
                rx_oversized: statistics.rx_dropped.saturating_sub(no_buffer),
                tx_refused: statistics.tx_invalid_descs,
            });
        }
        let mut losses = self.losses.get();
        losses.rx_overrun += self.invalid;
        losses.tx_refused += self.short;
        losses
    }
}

impl AsFd for AfXdp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZeroCopy => "native, zero-copy",
            Self::NativeCopy => "native, copy",
            Self::GenericCopy => "generic, copy",
        })
    }
}

/// Opens all sockets in one mode, or none.
fn open_all(
    pools: &mut [Pool],
    queues: &[Queue],
    options: &Options,
    mode: Mode,
) -> Result<Vec<AfXdp>, Error> {
    let mut opened: Vec<(AfXdp, Vec<u64>)> = Vec::with_capacity(queues.len());
    for queue in queues {
        let first = opened.first().map(|(port, _)| port.fd.as_fd());
        match open_one(pools, queue, options, mode, first) {
            Ok(port) => opened.push(port),
            Err(error) => {
                let (ports, lent): (Vec<AfXdp>, Vec<Vec<u64>>) = opened.into_iter().unzip();
                drop(ports);
                if mode == Mode::ZeroCopy {
                    std::thread::sleep(RELEASE_WAIT);
                }
                for (lent, queue) in lent.into_iter().zip(queues) {
                    take_back(&mut pools[queue.worker], lent);
                }
                return Err(error);
            }
        }
    }
    Ok(opened.into_iter().map(|(port, _)| port).collect())
}

/// Opens one socket: UMEM, rings, a full fill ring, and only then the bind, because some drivers (ice, i40e) take their first frames
/// while they are bound and leak what they do not find. Also returns the offsets of the frames it lent.
fn open_one(
    pools: &mut [Pool],
    queue: &Queue,
    options: &Options,
    mode: Mode,
    first: Option<BorrowedFd<'_>>,
) -> Result<(AfXdp, Vec<u64>), Error> {
    let too_few = || Error::Frames {
        interface: queue.interface.clone(),
        queue: queue.queue,
        worker: queue.worker,
        needed: options.frames_per_queue(),
    };
    let pool = pools.get_mut(queue.worker).ok_or_else(too_few)?;
    let memory = Arc::clone(pool.memory());

    let fd = socket()?;
    if first.is_none() {
        register(&fd, &memory)?;
    }
    let rings = |source| Error::Rings { interface: queue.interface.clone(), queue: queue.queue, source };
    let (fill, completion, rx, tx) = map_rings(&fd, options).map_err(rings)?;
    let mut port = AfXdp {
        fd,
        memory,
        fill,
        completion,
        rx,
        tx,
        lent: 0,
        in_flight: 0,
        mode,
        partial_checksums: options.partial_checksums,
        short: 0,
        invalid: 0,
        losses: Cell::default(),
    };

    let mut lent = Vec::with_capacity(port.fill.size() as usize);
    lent.extend(
        std::iter::from_fn(|| pool.take()).map(|frame| frame.lend().0).take(port.fill.size() as usize),
    );
    port.lent = port.fill.produce(lent.len() as u32, lent.iter().copied());
    let bound =
        if port.lent < port.fill.size() { Err(too_few()) } else { bind(&port.fd, queue, mode, first) };
    match bound {
        Ok(()) => Ok((port, lent)),
        Err(error) => {
            drop(port);
            take_back(pool, lent);
            Err(error)
        }
    }
}

/// Makes tokens again of frames that were lent to a socket that is closed now.
///
/// No frame is being received into them: the program does not know the sockets of a call to `open` that fails, and the
/// NIC of a zero-copy socket was given [`RELEASE_WAIT`] to let go.
fn take_back(pool: &mut Pool, offsets: Vec<u64>) {
    for offset in offsets {
        if let Some(frame) = pool.memory().reclaim(offset, 0) {
            pool.give(frame);
        }
    }
}

fn socket() -> Result<OwnedFd, Error> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, kind, 0) };
    if fd < 0 {
        return Err(Error::Socket { source: io::Error::last_os_error() });
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register(fd: &OwnedFd, memory: &FrameMemory) -> Result<(), Error> {
    let umem = libc::xdp_umem_reg {
        addr: memory.as_ptr() as u64,
        len: memory.size() as u64,
        chunk_size: CHUNK as u32,
        // On top of the kernel's own 256 bytes, which are our headroom.
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)
        .map_err(|source| Error::Umem { mebibytes: memory.size() >> 20, source })
}

fn map_rings(fd: &OwnedFd, options: &Options) -> io::Result<(Fill, Completion, Rx, Tx)> {
    let (fill, rx, tx) = (options.fill_slots(), options.rx_slots, options.tx_slots);
    let size = |name, slots: u32| set_option(fd, libc::SOL_XDP, name, &slots);
    size(libc::XDP_UMEM_FILL_RING, fill)?;
    // Every frame being sent ends up here; the kernel stops sending while there is no room.
    size(libc::XDP_UMEM_COMPLETION_RING, tx)?;
    size(libc::XDP_RX_RING, rx)?;
    size(libc::XDP_TX_RING, tx)?;

    let offsets: xdp_mmap_offsets = option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
    let map =
        |page_offset: u64, parts: &xdp_ring_offset, slots: u32, slot_bytes: usize| -> io::Result<MmapRaw> {
            let bytes = parts.desc as usize + slots as usize * slot_bytes;
            MmapOptions::new().offset(page_offset).len(bytes).populate().map_raw(fd.as_raw_fd())
        };
    let (word, descriptor) = (size_of::<u64>(), size_of::<xdp_desc>());
    Ok((
        Fill::new(map(libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, fill, word)?, &offsets.fr, fill),
        Completion::new(map(libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, tx, word)?, &offsets.cr, tx),
        Rx::new(map(libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, rx, descriptor)?, &offsets.rx, rx),
        Tx::new(map(libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, tx, descriptor)?, &offsets.tx, tx),
    ))
}

fn bind(fd: &OwnedFd, queue: &Queue, mode: Mode, first: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let copying = if mode == Mode::ZeroCopy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        // A socket that shares a UMEM inherits the mode of the first; naming it again is EINVAL.
        sxdp_flags: if first.is_some() { libc::XDP_SHARED_UMEM } else { copying | libc::XDP_USE_NEED_WAKEUP },
        sxdp_ifindex: queue.index,
        sxdp_queue_id: queue.queue,
        sxdp_shared_umem_fd: first.map_or(0, |first| first.as_raw_fd() as u32),
    };
    let mut tries = 0;
    loop {
        // SAFETY: the address is a whole sockaddr_xdp and its size is given; the kernel only reads it.
        let result = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_xdp>() as u32)
        };
        if result == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        tries += 1;
        if source.raw_os_error() != Some(libc::EBUSY) || tries == BUSY_TRIES {
            return Err(Error::Bind { interface: queue.interface.clone(), queue: queue.queue, mode, source });
        }
        std::thread::sleep(BUSY_PAUSE);
    }
}

fn socket_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_RAW is needed",
        Some(libc::EAFNOSUPPORT) => "the kernel was built without CONFIG_XDP_SOCKETS: use the packet port",
        _ => "see socket(2)",
    }
}

fn memory_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOBUFS) => {
            "it may not lock that much memory: raise LimitMEMLOCK, or give it CAP_IPC_LOCK"
        }
        Some(libc::ENOMEM) => "the machine is short of memory: use fewer frames or smaller rings",
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_RAW and CAP_IPC_LOCK are needed",
        _ => "Linux 5.11 or newer is needed",
    }
}

fn bind_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another AF_XDP socket has this queue: end the program it belongs to",
        Some(libc::EINVAL) => "the interface has no such queue: see its channel count (ethtool -l)",
        Some(libc::ENODEV) => "the interface is gone",
        Some(libc::ENETDOWN) => "the interface is down: set it up first",
        Some(libc::EOPNOTSUPP) => "the driver cannot do this mode: use generic mode or the packet port",
        Some(libc::ENOBUFS | libc::ENOMEM) => "the machine is short of memory: use smaller rings",
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_RAW and CAP_NET_ADMIN are needed",
        _ => "the kernel log may say more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::af_packet::{self, AfPacket};
    use crate::port::testnet::{self, End, Net, Redirect};

    fn small(attach: Attach) -> Options {
        Options { attach, rx_slots: 64, tx_slots: 64, partial_checksums: false }
    }

    fn queue(end: End, queue: u32, worker: usize) -> Queue {
        Queue { interface: end.name.to_owned(), index: end.index, queue, worker }
    }

    fn packet(end: End) -> AfPacket {
        AfPacket::open(end.name, end.index, &af_packet::Options::default()).unwrap()
    }

    fn open(pool: &mut Pool, queues: &[Queue], options: &Options) -> Result<Vec<AfXdp>, Error> {
        AfXdp::open(std::slice::from_mut(pool), queues, options)
    }

    fn numbered(from: End, to: End, count: u16) -> Vec<Vec<u8>> {
        (0..count)
            .map(|n| {
                Net::frame(from, to, &[&n.to_be_bytes()[..], &[0x33; 60], &vec![7; n as usize]].concat())
            })
            .collect()
    }

    #[test]
    fn what_is_transmitted_arrives_and_the_frames_come_back() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let mut a = open(&mut pool, &[queue(net.a, 0, 0)], &small(Attach::Native)).unwrap().pop().unwrap();
        assert_eq!(a.mode(), Mode::NativeCopy, "veth has no zero-copy");
        let (_, mut other) = testnet::pool(512);
        let mut b = packet(net.b);
        // More than the ring holds, again and again.
        for _ in 0..3 {
            let frames = numbered(net.a, net.b, 300);
            testnet::send(&mut a, &mut pool, &frames);
            assert_eq!(testnet::receive(&mut b, &mut other, 300), frames);
        }
        let home = testnet::within_a_second(|| {
            a.flush(&mut pool);
            (pool.available() == 1024 - 128).then_some(())
        });
        assert!(home.is_some(), "{} free, {} in flight", pool.available(), a.in_flight);
        assert_eq!(a.losses(), Losses::default());
    }

    fn received_frames_are_whole(attach: Attach) {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, attach == Attach::Generic, 1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let mut b = open(&mut pool, &[queue(net.b, 0, 0)], &small(attach)).unwrap().pop().unwrap();
        program.insert(0, b.as_fd());
        let (_, mut other) = testnet::pool(512);
        let mut a = packet(net.a);
        // The ring wraps, and the fill ring is refilled.
        for _ in 0..20 {
            let frames = numbered(net.a, net.b, 60);
            testnet::send(&mut a, &mut other, &frames);
            assert_eq!(testnet::receive(&mut b, &mut pool, 60), frames);
        }
        assert_eq!(pool.available(), 1024 - 128, "the fill ring is full again");
        assert_eq!(b.losses(), Losses::default());
    }

    #[test]
    fn received_frames_are_whole_behind_a_native_program() {
        received_frames_are_whole(Attach::Native);
    }

    #[test]
    fn received_frames_are_whole_behind_a_generic_program() {
        received_frames_are_whole(Attach::Generic);
    }

    #[test]
    fn a_frame_received_on_one_socket_leaves_uncopied_on_another() {
        let Some(net) = Net::with_veth(2) else { return };
        let Some(program) = Redirect::attach(net.b, false, 2) else { return };
        // Two workers with a socket on each of two queues, one UMEM.
        let (memory, mut pools) = FrameMemory::with_pools(2, 512).unwrap();
        let queues = [queue(net.b, 0, 0), queue(net.b, 1, 1)];
        let mut ports = AfXdp::open(&mut pools, &queues, &small(Attach::Native)).unwrap();
        let (mut second, mut first) = (ports.pop().unwrap(), ports.pop().unwrap());
        program.insert(0, first.as_fd());
        program.insert(1, second.as_fd());
        let (mut pool_2, mut pool_1) = (pools.pop().unwrap(), pools.pop().unwrap());

        let (_, mut other) = testnet::pool(512);
        let mut a = packet(net.a);
        let frames = numbered(net.a, net.b, 40);
        testnet::send(&mut a, &mut other, &frames);

        // Whichever queue the frames came in by, they leave by the other one, their addresses exchanged.
        let turned: Vec<_> = frames.iter().map(|f| [&f[6..12], &f[..6], &f[12..]].concat()).collect();
        let mut burst = Burst::new();
        let mut seen = Vec::new();
        testnet::within_a_second(|| {
            first.receive(&mut pool_1, &mut burst);
            burst.iter_mut().for_each(|frame| swap_addresses(memory.data(frame)));
            second.transmit(&mut pool_2, &mut burst);
            second.receive(&mut pool_2, &mut burst);
            burst.iter_mut().for_each(|frame| swap_addresses(memory.data(frame)));
            first.transmit(&mut pool_1, &mut burst);
            first.flush(&mut pool_1);
            second.flush(&mut pool_2);
            seen.extend(testnet::receive(&mut a, &mut other, 0));
            (seen.len() == frames.len()).then_some(())
        });
        seen.sort();
        let mut expected = turned;
        expected.sort();
        assert_eq!(seen, expected);

        // And each frame comes home to the pool it started in: all but what the fill rings hold.
        let home = testnet::within_a_second(|| {
            for (port, pool) in [(&mut first, &mut pool_1), (&mut second, &mut pool_2)] {
                port.receive(pool, &mut burst);
                port.flush(pool);
            }
            let mut free = Vec::new();
            free.extend(std::iter::from_fn(|| pool_1.take()));
            let one = free.len();
            free.extend(std::iter::from_fn(|| pool_2.take()));
            let two = free.len() - one;
            free.into_iter().for_each(|frame| pool_1.give(frame));
            (one == 512 - 128 && two == 512 - 128).then_some(())
        });
        assert!(home.is_some());
    }

    fn swap_addresses(frame: &mut [u8]) {
        let (to, from) = frame[..12].split_at_mut(6);
        to.swap_with_slice(from);
    }

    #[test]
    fn a_partial_checksum_is_finished_when_asked_for() {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, false, 1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let options = Options { partial_checksums: true, ..small(Attach::Native) };
        let mut b = open(&mut pool, &[queue(net.b, 0, 0)], &options).unwrap().pop().unwrap();
        program.insert(0, b.as_fd());
        let (partial, whole) = Net::partial_datagram(net.a, net.b, b"an odd number of bytes!");
        testnet::send_partial(net.a, &partial, 34, 6);
        assert_eq!(testnet::receive(&mut b, &mut pool, 1), [whole]);
    }

    #[test]
    fn an_empty_pool_starves_the_queue_and_a_refill_revives_it() {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, false, 1) else { return };
        let (_, mut pool) = testnet::pool(160);
        let mut b = open(&mut pool, &[queue(net.b, 0, 0)], &small(Attach::Native)).unwrap().pop().unwrap();
        program.insert(0, b.as_fd());
        let mut held: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let (_, mut other) = testnet::pool(512);
        let mut a = packet(net.a);
        // The director holds on to all it gets until the kernel has no frame left.
        let mut burst = Burst::new();
        for frame in numbered(net.a, net.b, 200) {
            testnet::send(&mut a, &mut other, &[frame]);
            b.receive(&mut pool, &mut burst);
            held.extend(burst.drain(..));
        }
        testnet::within_a_second(|| {
            b.receive(&mut pool, &mut burst);
            held.extend(burst.drain(..));
            (held.len() == 160).then_some(())
        });
        assert_eq!((held.len(), b.lent), (160, 0));
        assert_eq!(b.losses(), Losses { rx_overrun: 200 - 128, ..Losses::default() });
        held.into_iter().for_each(|frame| pool.give(frame));
        b.receive(&mut pool, &mut burst);
        assert_eq!(b.lent, 128);
        let frames = numbered(net.a, net.b, 10);
        testnet::send(&mut a, &mut other, &frames);
        assert_eq!(testnet::receive(&mut b, &mut pool, 10), frames);
    }

    #[test]
    fn a_worker_that_does_not_read_loses_frames_by_name() {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, true, 1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let mut b = open(&mut pool, &[queue(net.b, 0, 0)], &small(Attach::Generic)).unwrap().pop().unwrap();
        program.insert(0, b.as_fd());
        let (_, mut other) = testnet::pool(512);
        testnet::send(&mut packet(net.a), &mut other, &numbered(net.a, net.b, 100));
        let lost = testnet::within_a_second(|| (b.losses().rx_overrun == 36).then_some(()));
        assert!(lost.is_some(), "{:?}", b.losses());
        assert_eq!(testnet::receive(&mut b, &mut pool, 64).len(), 64);
    }

    #[test]
    fn while_the_link_is_down_transmit_refuses_and_nothing_hangs() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let mut a = open(&mut pool, &[queue(net.a, 0, 0)], &small(Attach::Native)).unwrap().pop().unwrap();
        testnet::set_up(net.a.name, false);
        let mut burst = Burst::new();
        for _ in 0..3 {
            while let Some(mut frame) = (!burst.is_full()).then(|| pool.take()).flatten() {
                frame.set_data(256, 60);
                burst.push(frame);
            }
            a.transmit(&mut pool, &mut burst);
            a.flush(&mut pool);
        }
        assert_eq!(burst.len(), 64, "the ring took 64 and has no room for more");
    }

    #[test]
    fn a_short_frame_is_refused_and_not_leaked() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let mut a = open(&mut pool, &[queue(net.a, 0, 0)], &small(Attach::Native)).unwrap().pop().unwrap();
        testnet::send(&mut a, &mut pool, &[vec![1; 13]]);
        assert_eq!(a.losses(), Losses { tx_refused: 1, ..Losses::default() });
        assert_eq!(pool.available(), 1024 - 128);
    }

    #[test]
    fn failing_to_open_says_why_and_gives_all_frames_back() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let options = small(Attach::Native);
        // The first queue can be had, the second does not exist.
        let error = open(&mut pool, &[queue(net.a, 0, 0), queue(net.a, 1, 0)], &options).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("veth-a queue 1") && text.contains("no such queue"), "{text}");
        assert_eq!(pool.available(), 1024);

        let error = open(&mut pool, &[queue(net.a, 0, 1)], &options).err().unwrap();
        assert!(matches!(error, Error::Frames { worker: 1, needed: 256, .. }), "{error}");
        let (_, mut few) = testnet::pool(100);
        let error = open(&mut few, &[queue(net.a, 0, 0)], &options).err().unwrap();
        assert!(error.to_string().contains("at least 256"), "{error}");
        assert_eq!(few.available(), 100);

        let error = open(&mut pool, &[queue(net.a, 0, 0)], &Options { rx_slots: 100, ..options });
        assert!(matches!(error, Err(Error::RingSize { slots: 100 })));

        let _holder = open(&mut pool, &[queue(net.a, 0, 0)], &options).unwrap();
        let (_, mut another) = testnet::pool(1024);
        let error = open(&mut another, &[queue(net.a, 0, 0)], &options).err().unwrap();
        assert!(error.to_string().contains("another AF_XDP socket"), "{error}");
        assert_eq!(another.available(), 1024);
    }
}

//! Opening AF_XDP sockets: the UMEM, the rings, the bind, and what to tell when one of them fails.
//!
//! All sockets are opened in one call, before the workers start, because they depend on each other: the first
//! registers the frame memory, every other one is bound as sharing it, and the kernel then gives it the mode of the
//! first. So one interface without zero-copy means copy mode for all, and the call starts again from the beginning.
//!
//! A call that fails leaves nothing behind: its sockets are closed and their frames are in their pools.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use libc::{xdp_desc, xdp_mmap_offsets, xdp_ring_offset};
use memmap2::{MmapOptions, MmapRaw};

use super::{AfXdp, KERNEL_BATCH, MAX_KICKS, Mode};
use crate::port::frame::CHUNK;
use crate::port::ring::{Completion, Fill, Rx, Tx};
use crate::port::sockopt::{enlarge_send_buffer, option, set_option};
use crate::port::{FrameMemory, Layout, Pool};

/// How long a bind insists when its queue is busy: 2 s in all. A queue whose socket was closed, by us or by the
/// process we replace, is released in the background, after its driver has restarted it.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How long a NIC gets to let go of the frames of closed zero-copy sockets, which the kernel does not report.
/// Drivers restart a queue within tens of milliseconds.
const RELEASE_WAIT: Duration = Duration::from_millis(500);

/// Frames that a call sends at most in copy mode, where the kernel lets that be chosen: all that a flush sends.
const SENT_AT_ONCE: u32 = MAX_KICKS * KERNEL_BATCH;

/// Of Linux 6.17, and not yet in `libc`.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;

/// Microseconds a system call looks for frames at most while there are none. We ask again in the next turn.
const POLL_TIME: i32 = 1;

/// Frames received in one such call: a burst.
const POLL_BUDGET: i32 = super::super::BURST as i32;

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
    /// Receive on the caller's core when it asks, not in interrupts (`SO_PREFER_BUSY_POLL`). Interrupts stay away only if the interface's
    /// `napi_defer_hard_irqs` and `gro_flush_timeout` are set.
    pub busy_poll: bool,
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

impl Options {
    /// Frames that the kernel may have of one queue at once: lent for receiving, received frames included, and being
    /// sent. A worker's pool needs that many for each of its queues, and some bursts on top.
    pub fn frames_per_queue(&self) -> u32 {
        self.fill_slots() + self.tx_slots
    }

    /// A zero-copy driver moves a NIC ring's worth of frames out of the fill ring at once; twice the receive ring
    /// leaves as many waiting.
    fn fill_slots(&self) -> u32 {
        self.rx_slots * 2
    }
}

impl Default for Options {
    /// Native; whole checksums; 1024 slots each way, a millisecond at a million frames a second: longer than a turn
    /// takes, and short enough that a queue does not become a delay.
    fn default() -> Self {
        Self {
            attach: Attach::Native,
            rx_slots: 1024,
            tx_slots: 1024,
            partial_checksums: false,
            busy_poll: false,
        }
    }
}

impl AfXdp {
    /// Opens a socket for each of `queues`, in that order, and fills their fill rings from the workers' pools.
    ///
    /// Zero-copy is tried first where the program runs natively. The kernel grants one mode per UMEM, so one
    /// interface that cannot do it means copy mode for all.
    ///
    /// # Errors
    /// [`Error`] names the queue and the likely cure. All sockets opened by the call are closed again, their
    /// frames back in their pools.
    ///
    /// # Panics
    /// When the pools are not all of one memory, or do not hold all of its frames.
    pub fn open(pools: &mut [Pool], queues: &[Queue], options: &Options) -> Result<Vec<Self>, Error> {
        // The kernel knows frames by their offsets only: one of another memory would be one of ours to it.
        let one = pools.windows(2).all(|pair| Arc::ptr_eq(pair[0].memory(), pair[1].memory()));
        assert!(one, "pools of different memories");
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
            FrameMemory::lay_out(pools, mode.layout());
            result = open_all(pools, queues, options, *mode);
            match &result {
                // Drivers that cannot say so variously: EOPNOTSUPP, EINVAL, ENOTSUPP. A busy queue is busy in any
                // mode.
                Err(Error::Bind { source, .. }) if source.raw_os_error() != Some(libc::EBUSY) => {}
                _ => break,
            }
        }
        result
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
                let bound = !ports.is_empty();
                drop(ports);
                if mode == Mode::ZeroCopy && bound {
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

/// Opens one socket: UMEM, rings, a full fill ring, and only then the bind, because some drivers (ice, i40e) take
/// their first frames while they are bound and leak what they do not find. Also returns the offsets of the frames
/// it lent.
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
    // Where it copies the kernel makes a buffer of each frame. Without more room they wait longer, no more.
    let _ = enlarge_send_buffer(&fd);
    // Where the kernel does not know this, more calls do the same.
    let _ = set_option(&fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &options.tx_slots.min(SENT_AT_ONCE));
    let busy_poll = options.busy_poll && prefer_busy_poll(&fd).is_ok();
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
        busy_poll,
        idle: 0,
        left: None,
        short: 0,
        invalid: 0,
        losses: Cell::default(),
    };

    let mut lent = Vec::with_capacity(port.fill.size() as usize);
    let frames = std::iter::from_fn(|| pool.take()).map(|frame| port.memory.lend_whole(frame));
    lent.extend(frames.take(port.fill.size() as usize));
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
/// No frame is being received into them: the program does not know the sockets of a call to `open` that fails, and
/// the NIC of a zero-copy socket was given [`RELEASE_WAIT`] to let go.
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

/// Lets this socket's system calls do the receiving work of its queue: for at most [`POLL_TIME`], and [`POLL_BUDGET`] frames at once.
fn prefer_busy_poll(fd: &OwnedFd) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &1i32)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &POLL_TIME)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &POLL_BUDGET)
}

fn register(fd: &OwnedFd, memory: &FrameMemory) -> Result<(), Error> {
    let umem = libc::xdp_umem_reg {
        addr: memory.as_ptr() as u64,
        len: memory.size() as u64,
        chunk_size: CHUNK as u32,
        // On top of the kernel's own 256 bytes, which are our headroom.
        headroom: 0,
        flags: if memory.layout() == Layout::Staggered { libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG } else { 0 },
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

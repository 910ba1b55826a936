//! AF_XDP ports: frames straight from and to the NIC's queues.
//!
//! An XDP program redirects frames to a socket, one per interface and queue, whose rings ([`ring`](super::ring))
//! are shared with the kernel. All sockets share one UMEM, the frame memory: a frame received on one leaves on any
//! other by its descriptor, uncopied. Each (interface, queue) has a fill and a completion ring of its own.
//!
//! ```text
//!   Pool ─ lend ─▶ Fill ─▶ kernel ─▶ Rx ─ reclaim ─▶ Burst          `lent` ≤ the fill ring's slots
//!   Burst ─ lend ─▶ Tx ─▶ kernel ─▶ Completion ─ reclaim ─▶ Pool    `in_flight`
//! ```
//!
//! A frame's token exists exactly while the kernel does not have the frame. Those in the kernel when a port
//! is dropped are not used again; ports live as long as the process.
//!
//! In zero-copy mode the NIC writes to and reads from the frames itself, and its driver is woken when it has asked
//! for that (`need_wakeup`). In copy mode the kernel copies, and nobody sends but [`Port::flush`]: no system call,
//! no packet.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::xdp_desc;

use super::ring::{Completion, Fill, Rx, Tx};
use super::sockopt::option;
use super::{BURST, Burst, FrameMemory, Layout, Losses, MIN_FRAME, Pool, Port, partial};
use crate::conn::memory::prefetch;

mod open;

pub use open::{Attach, Error, Options, Queue};

/// Descriptors the kernel sends per call in copy mode if it was not asked for more (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KERNEL_BATCH: u32 = 32;

/// Send calls per flush in copy mode. Eight send four bursts; if more than that is queued the device is the brake,
/// and the rest may wait for the next turn.
const MAX_KICKS: u32 = 8;

/// Turns of which a queue without frames is busily polled in one: with direct routing and tunnels there is one beside each queue that has
/// some, and it would cost them a system call a turn.
const IDLE_TURNS: u32 = 8;

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

/// One AF_XDP socket with its four rings.
#[repr(align(128))]
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
    /// Whether our system calls do the queue's receiving work.
    busy_poll: bool,
    /// Turns in a row without a frame.
    idle: u32,
    /// The first descriptor that the last busy poll left unsent.
    left: Option<u32>,
    /// Frames too short to be sent.
    short: u64,
    /// Descriptors from the kernel that lie in no chunk.
    invalid: u64,
    /// The last answer of XDP_STATISTICS, for when the kernel gives none.
    losses: Cell<Losses>,
}

impl AfXdp {
    /// How frames get into memory.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the NIC reads and writes the frames itself.
    pub fn zero_copy(&self) -> bool {
        self.mode == Mode::ZeroCopy
    }

    /// Offsets are all that the kernel knows of a frame, so a frame of another memory must never get here: it would
    /// come back as the token of a frame that somebody has already. One comparison per burst.
    fn check(&self, pool: &Pool) {
        assert!(Arc::ptr_eq(&self.memory, pool.memory()), "a pool of another memory than the socket's");
    }

    /// Gives the kernel as many empty frames as it has returned to us full.
    fn refill(&mut self, pool: &mut Pool) {
        let missing = self.fill.size() - self.lent;
        if missing != 0 {
            // An empty pool is no reason to stop: frames come home with the completions.
            let frames = std::iter::from_fn(|| pool.take()).map(|frame| self.memory.lend_whole(frame));
            self.lent += self.fill.produce(missing, frames);
        }
        if self.fill.needs_wakeup() && self.lent != 0 {
            self.wake_rx();
        }
    }

    /// Asks for the headers of the frames that the next turn begins with, as far as they wait already: another core has written them as a rule, and they come while the
    /// kernel sends.
    fn prefetch_next(&self) {
        let memory = self.memory.as_ptr();
        self.rx
            .peek(BURST as u32, |descriptor| prefetch(memory.wrapping_add(offset(descriptor.addr) as usize)));
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

    /// Tells the kernel to send. Bounded by construction: each call in copy mode must have made progress to be
    /// followed by another.
    fn kick(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        if self.zero_copy() {
            // Also when all descriptors are taken: some drivers reap completions only when woken.
            if self.tx.needs_wakeup() {
                self.wake_tx();
                if self.busy_poll {
                    self.wake_unpolled();
                }
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

    /// Errors need no answer here: EAGAIN, EBUSY and ENOBUFS mean "later", and there is a next flush; while the
    /// link is down (ENETDOWN) the ring fills, and [`Port::transmit`] refuses.
    fn wake_tx(&self) {
        // SAFETY: no buffer, no address; the descriptor is open as long as `self`.
        unsafe {
            libc::sendto(self.fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0);
        }
    }

    /// Wakes a driver whose sending the busy poll just made has not polled.
    ///
    /// `sendto` on a socket that prefers busy polling polls the queue's receiving NAPI and leaves the driver asleep (`xsk_no_wakeup` in
    /// net/xdp/xsk.c). Most drivers send in the same NAPI. Those that send in another one, such as igb with few queues,
    /// are still woken by `poll`; two calls that leave the same descriptor first tell them.
    fn wake_unpolled(&mut self) {
        let left = self.tx.first_unsent();
        if left.is_some() && left == self.left {
            let mut socket = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one descriptor, open as long as `self`; with a timeout of 0 nothing waits. Its answer tells nothing new.
            unsafe { libc::poll(&raw mut socket, 1, 0) };
        }
        self.left = left;
    }

    fn wake_rx(&self) {
        // SAFETY: a buffer of length 0 is not written to, no address is asked for; the descriptor is open as long
        // as `self`.
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

/// Where a received frame begins. In memory that is not cut up at multiples of a chunk's size the kernel says where its chunk begins, and above
/// that how far in it lies; elsewhere there is nothing above.
fn offset(addr: u64) -> u64 {
    (addr & libc::XSK_UNALIGNED_BUF_ADDR_MASK) + (addr >> libc::XSK_UNALIGNED_BUF_OFFSET_SHIFT)
}

impl Port for AfXdp {
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst) {
        self.check(pool);
        let (memory, invalid, is_partial) = (&self.memory, &mut self.invalid, self.partial_checksums);
        let before = burst.len();
        let taken = self.rx.consume(burst.remaining_capacity() as u32, |descriptor| {
            match memory.reclaim(offset(descriptor.addr), descriptor.len) {
                Some(mut frame) => {
                    // The kernel has just written it, on another core as a rule.
                    if is_partial {
                        prefetch(memory.data(&mut frame).as_ptr());
                    }
                    burst.push(frame);
                }
                None => *invalid += 1,
            }
        });
        self.lent = self.lent.saturating_sub(taken);
        self.refill(pool);
        if is_partial {
            burst[before..].iter_mut().for_each(|frame| partial::finish_if_partial(self.memory.data(frame)));
        }
        if taken > 0 {
            self.idle = 0;
        } else if self.busy_poll {
            if self.idle.is_multiple_of(IDLE_TURNS) {
                self.wake_rx();
            }
            self.idle = self.idle.wrapping_add(1);
        }
    }

    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst) {
        self.check(pool);
        let want = burst.len() as u32;
        let mut room = self.tx.room(want);
        if room < want {
            // The ring is full because the kernel has not been told or has not got round to it; telling it is all
            // we can do.
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
            let (addr, len) = self.memory.lend(frame);
            Some(xdp_desc { addr, len, options: 0 })
        });
        self.in_flight += self.tx.produce(room, descriptors);
    }

    fn flush(&mut self, pool: &mut Pool) -> bool {
        self.check(pool);
        self.prefetch_next();
        self.kick();
        self.reap(pool);
        self.in_flight > 0 && self.tx.unsent() > 0
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    /// A system call per call: for the reader of statistics, not for the packet path.
    ///
    /// The kernel's `rx_dropped` counts frames it had no empty buffer for, which `rx_fill_ring_empty_descs` counts
    /// as well, and frames longer than a chunk. With zero-copy the latter is an upper bound: a driver that finds
    /// the ring empty asks again.
    fn losses(&self) -> Losses {
        if let Ok(statistics) = option::<libc::xdp_statistics>(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS)
        {
            let no_buffer = statistics.rx_fill_ring_empty_descs;
            self.losses.set(Losses {
                rx_overrun: statistics.rx_ring_full,
                rx_no_buffer: no_buffer,
                rx_oversized: statistics.rx_dropped.saturating_sub(no_buffer),
                tx_refused: statistics.tx_invalid_descs,
            });
        }
        let mut losses = self.losses.get();
        // A sound kernel never gives such; where it does, the chunk is lost, too.
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

impl Mode {
    /// How it wants the frames. The kernel's copying takes them anywhere; not every zero-copy driver does, and some are slower for it (mlx5
    /// describes each frame by more to its NIC), or need pages that lie together.
    fn layout(self) -> Layout {
        match self {
            Self::ZeroCopy => Layout::Dense,
            Self::NativeCopy | Self::GenericCopy => Layout::Staggered,
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::af_packet::{self, AfPacket};
    use crate::port::testnet::{self, End, Net, Redirect};
    use crate::service::WorkerId;

    fn small(attach: Attach) -> Options {
        Options { attach, rx_slots: 64, tx_slots: 64, partial_checksums: false, busy_poll: false }
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

    /// Opens one socket. `None`, with a message, when this process may not lock the memory for it.
    fn one(pool: &mut Pool, queue: Queue, options: &Options) -> Option<AfXdp> {
        match open(pool, &[queue], options) {
            Err(error @ Error::Umem { .. }) => {
                println!("skip: {error}");
                None
            }
            ports => ports.unwrap().pop(),
        }
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
        let Some(mut a) = one(&mut pool, queue(net.a, 0, 0), &small(Attach::Native)) else { return };
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
        let Some(mut b) = one(&mut pool, queue(net.b, 0, 0), &small(attach)) else { return };
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
            pool_1.lend(WorkerId(1), burst.len());
            pool_2.borrow(WorkerId(0), burst.len());
            second.transmit(&mut pool_2, &mut burst);
            second.receive(&mut pool_2, &mut burst);
            burst.iter_mut().for_each(|frame| swap_addresses(memory.data(frame)));
            pool_2.lend(WorkerId(0), burst.len());
            pool_1.borrow(WorkerId(1), burst.len());
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

        // And no pool keeps more than an eighth of the other's: all but what the fill rings hold is there.
        let settled = testnet::within_a_second(|| {
            for (port, pool) in [(&mut first, &mut pool_1), (&mut second, &mut pool_2)] {
                port.receive(pool, &mut burst);
                port.flush(pool);
                pool.settle();
            }
            pool_1.collect();
            pool_2.collect();
            let free = [pool_1.available(), pool_2.available()];
            let is_fair = free.iter().all(|free| free.abs_diff(512 - 128) <= 512 / 8);
            (is_fair && free.iter().sum::<usize>() == 2 * (512 - 128)).then_some(())
        });
        assert!(settled.is_some(), "{} and {}", pool_1.available(), pool_2.available());
    }

    #[test]
    fn two_interfaces_share_the_memory() {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, false, 1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let queues = [queue(net.a, 0, 0), queue(net.b, 0, 0)];
        let mut ports = open(&mut pool, &queues, &small(Attach::Native)).unwrap();
        let (mut b, mut a) = (ports.pop().unwrap(), ports.pop().unwrap());
        program.insert(0, b.as_fd());
        let frames = numbered(net.a, net.b, 50);
        testnet::send(&mut a, &mut pool, &frames);
        assert_eq!(testnet::receive(&mut b, &mut pool, 50), frames);
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
        let Some(mut b) = one(&mut pool, queue(net.b, 0, 0), &options) else { return };
        program.insert(0, b.as_fd());
        let (partial, whole) = Net::partial_datagram(net.a, net.b, b"an odd number of bytes!");
        testnet::send_partial(net.a, &partial, 34, 6, false);
        assert_eq!(testnet::receive(&mut b, &mut pool, 1), [whole]);
    }

    #[test]
    fn an_empty_pool_starves_the_queue_and_a_refill_revives_it() {
        let Some(net) = Net::with_veth(1) else { return };
        let Some(program) = Redirect::attach(net.b, false, 1) else { return };
        let (_, mut pool) = testnet::pool(160);
        let Some(mut b) = one(&mut pool, queue(net.b, 0, 0), &small(Attach::Native)) else { return };
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
        assert_eq!(b.losses(), Losses { rx_no_buffer: 200 - 128, ..Losses::default() });
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
        let Some(mut b) = one(&mut pool, queue(net.b, 0, 0), &small(Attach::Generic)) else { return };
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
        let Some(mut a) = one(&mut pool, queue(net.a, 0, 0), &small(Attach::Native)) else { return };
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
        let mut b = packet(net.b);
        let (_, mut other) = testnet::pool(512);
        testnet::set_up(net.a.name, true);
        let sent = testnet::within_a_second(|| {
            a.transmit(&mut pool, &mut burst);
            a.flush(&mut pool);
            testnet::receive(&mut b, &mut other, 0);
            (burst.is_empty() && a.in_flight == 0).then_some(())
        });
        assert!(sent.is_some(), "the ring goes on when the link is back");
    }

    #[test]
    fn a_full_ring_is_sent_without_waiting_for_the_flush() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let Some(mut a) = one(&mut pool, queue(net.a, 0, 0), &small(Attach::Native)) else { return };
        let bytes = Net::frame(net.a, net.b, &[0; 60]);
        let mut burst = Burst::new();
        for _ in 0..5 {
            while let Some(mut frame) = (!burst.is_full()).then(|| pool.take()).flatten() {
                frame.set_data(256, bytes.len());
                pool.memory().data(&mut frame).copy_from_slice(&bytes);
                burst.push(frame);
            }
            a.transmit(&mut pool, &mut burst);
            assert!(burst.is_empty(), "each burst is as long as the ring");
        }
    }

    #[test]
    fn a_pool_of_another_memory_is_refused() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let Some(mut a) = one(&mut pool, queue(net.a, 0, 0), &small(Attach::Native)) else { return };
        let (_, mut another) = testnet::pool(1);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| a.flush(&mut another)));
        assert!(result.is_err());
    }

    #[test]
    fn a_short_frame_is_refused_and_not_leaked() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let Some(mut a) = one(&mut pool, queue(net.a, 0, 0), &small(Attach::Native)) else { return };
        testnet::send(&mut a, &mut pool, &[vec![1; 13]]);
        assert_eq!(a.losses(), Losses { tx_refused: 1, ..Losses::default() });
        assert_eq!(pool.available(), 1024 - 128);
    }

    #[test]
    fn failing_to_open_says_why_and_gives_all_frames_back() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(1024);
        let options = small(Attach::Native);
        // A socket that is closed again leaves its queue busy for a while, which is waited for.
        let Some(_) = one(&mut testnet::pool(256).1, queue(net.a, 0, 0), &options) else { return };
        // The first queue can be had, the second does not exist.
        let error = open(&mut pool, &[queue(net.a, 0, 0), queue(net.a, 1, 0)], &options).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("veth-a queue 1") && text.contains("no such queue"), "{text}");
        assert_eq!(pool.available(), 1024);

        let error = open(&mut pool, &[queue(net.a, 0, 1)], &options).err().unwrap();
        assert!(matches!(error, Error::Frames { worker: 1, needed: 192, .. }), "{error}");
        let (_, mut few) = testnet::pool(100);
        let error = open(&mut few, &[queue(net.a, 0, 0)], &options).err().unwrap();
        assert!(error.to_string().contains("at least 192"), "{error}");
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

//! NIC queues behind one small trait of bursts.
//!
//! Every backend delivers frames in the same kind of memory ([`frame::FrameMemory`]): AF_XDP receives straight into
//! it (it is the UMEM of all sockets), AF_PACKET copies between it and the kernel's rings, `memory` is a
//! pair of queues for tests and benches, `tap` is the machine's own kernel. So a frame can leave by any port, or go to another worker, by its descriptor
//! alone, and no other room knows where it came from.
//!
//! A port belongs to one worker and is never shared. `unsafe` is allowed in this room because its
//! memory is shared with the kernel.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;

pub mod af_packet;
pub mod af_xdp;
pub mod ethtool;
pub mod frame;
mod ifreq;
pub mod memory;
mod partial;
mod ring;
mod sockopt;
pub mod tap;
#[cfg(test)]
mod testnet;
mod tpacket;

pub use frame::{Frame, FrameMemory, Layout, Pool};

/// Frames handled together. 64 is what one NAPI poll delivers at most, so more would find nothing; with fewer, a turn's
/// fixed cost (ring indices, wake-ups, the clock) shows; with more, the first frame waits for the last.
pub const BURST: usize = 64;

/// The shortest frame a port sends, in bytes: an Ethernet header. The kernel refuses less. Devices pad to 60.
const MIN_FRAME: usize = 14;

/// Up to [`BURST`] frames on their way in or out.
pub type Burst = ArrayVec<Frame, BURST>;

/// One queue of one interface, owned by one worker.
///
/// A worker may have several of an interface. Which interface a port is of, its owner is told beside it
/// ([`PortId`](crate::service::PortId), the same in every worker).
pub trait Port: Send {
    /// Appends received frames to `burst` until it is full or the queue is empty, and lends the kernel as many empty frames
    /// from `pool` as it has room for. Never blocks.
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst);

    /// Enqueues frames for sending, in order, removing them from `burst`. What the queue has no room for stays in
    /// `burst`, for the caller to count and give back.
    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst);

    /// Tells the kernel to send what was enqueued, where it must be told, and gives frames that have been sent back to
    /// `pool`. Called once a turn, also when nothing was enqueued: sending may have stalled. Says whether any has, and something is left to be sent.
    fn flush(&mut self, pool: &mut Pool) -> bool;

    /// What to poll for input while idle; `None` for a port without a descriptor.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Frames lost on this port, by cause, since it was opened.
    fn losses(&self) -> Losses;
}

/// Frames a port lost before the director saw them, or after it let them go. All counts are totals since the port was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The kernel had a frame but no room in the receive ring: the worker was too slow.
    pub rx_overrun: u64,
    /// The kernel had a frame but no empty buffer for it: the fill ring was empty, because the worker was too slow or short of frames.
    pub rx_no_buffer: u64,
    /// A received frame was longer than one chunk of frame memory (GRO, jumbo frames).
    pub rx_oversized: u64,
    /// The port refused a frame that was to be sent (too short or too long), or the kernel did (AF_XDP: an invalid descriptor; AF_PACKET: the device
    /// took others but not this one, or nothing for some time).
    pub tx_refused: u64,
}

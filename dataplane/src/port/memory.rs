//! A port without a NIC, for tests and benches.
//!
//! Two rings of frames join a [`MemoryPort`], which a worker drives like any other port, to a [`Wire`], on which
//! the test puts frames and finds those that were sent. Both ends may be on one thread or on two. Nothing is
//! allocated per frame, so an allocation counted in a bench is the director's.
//!
//! ```text
//!   Wire::inject ─▶ ring ─▶ MemoryPort::receive     Wire::take ◀─ ring ◀─ MemoryPort::transmit
//! ```
//!
//! Each method of the wire borrows the pool to use. On one thread that may be the worker's own; a wire on a thread
//! of its own has the pool of a worker of its own, and frames find home as they do between workers.

use std::os::fd::BorrowedFd;

use super::frame::{HEADROOM, MAX_FRAME};
use super::{Burst, Frame, Losses, Pool, Port};
use crate::worker::ring::{self, Receiver, Sender};

/// The worker's end.
pub struct MemoryPort {
    incoming: Receiver,
    outgoing: Sender,
}

/// The test's end.
pub struct Wire {
    incoming: Sender,
    outgoing: Receiver,
}

/// A port and its wire, which hold `capacity` frames in each direction (rounded up to a power of two).
pub fn link(capacity: usize) -> (MemoryPort, Wire) {
    let (wire_sender, port_receiver) = ring::channel(capacity);
    let (port_sender, wire_receiver) = ring::channel(capacity);
    (
        MemoryPort { incoming: port_receiver, outgoing: port_sender },
        Wire { incoming: wire_sender, outgoing: wire_receiver },
    )
}

impl Wire {
    /// Puts a frame with these bytes on the wire. False when the wire is full or the pool empty.
    ///
    /// # Panics
    /// When there are more than [`MAX_FRAME`] bytes.
    pub fn inject(&mut self, pool: &mut Pool, bytes: &[u8]) -> bool {
        assert!(bytes.len() <= MAX_FRAME, "{} bytes do not fit a frame", bytes.len());
        let Some(mut frame) = pool.take() else { return false };
        frame.set_data(HEADROOM, bytes.len());
        pool.memory().data(&mut frame).copy_from_slice(bytes);
        self.send(frame).map_err(|frame| pool.give(frame)).is_ok()
    }

    /// Shows the next transmitted frame to `look` and gives it back to the pool. `None` when there is none.
    pub fn take<R>(&mut self, pool: &mut Pool, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let mut frame = self.receive()?;
        let seen = look(pool.memory().data(&mut frame));
        pool.give(frame);
        Some(seen)
    }

    /// Puts a frame on the wire without copying.
    ///
    /// # Errors
    /// Gives the frame back when the wire is full.
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        self.incoming.send(frame, 0)?;
        self.incoming.publish();
        Ok(())
    }

    /// The next transmitted frame itself.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut next = None;
        self.outgoing.receive(1, |frame, _| next = Some(frame));
        next
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, _: &mut Pool, burst: &mut Burst) {
        self.incoming.receive(burst.remaining_capacity(), |frame, _| burst.push(frame));
    }

    fn transmit(&mut self, _: &mut Pool, burst: &mut Burst) {
        // Turned round, the next frame to go is the last, and taking it moves no other.
        burst.reverse();
        while let Some(frame) = burst.pop() {
            if let Err(frame) = self.outgoing.send(frame, 0) {
                burst.push(frame);
                break;
            }
        }
        burst.reverse();
        self.outgoing.publish();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::FrameMemory;

    #[test]
    fn frames_cross_in_order_and_a_full_wire_leaves_the_rest_in_the_burst() {
        let (_, mut pools) = FrameMemory::with_pools(1, 16).unwrap();
        let pool = &mut pools[0];
        let (mut port, mut wire) = link(4);
        for n in 0..4u8 {
            assert!(wire.inject(pool, &[n; 60]));
        }
        assert!(!wire.inject(pool, &[9; 60]), "the wire is full");
        assert_eq!(pool.available(), 12);

        let mut burst = Burst::new();
        port.receive(pool, &mut burst);
        assert_eq!(burst.len(), 4);
        burst.extend((0..2).map_while(|_| pool.take()));
        port.transmit(pool, &mut burst);
        assert_eq!(burst.len(), 2, "four went, two had no room");
        burst.drain(..).for_each(|frame| pool.give(frame));

        for n in 0..4u8 {
            assert_eq!(wire.take(pool, |bytes| bytes == [n; 60]), Some(true));
        }
        assert_eq!(wire.take(pool, |_| ()), None);
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn a_wire_on_another_thread_has_its_own_pool() {
        const FRAMES: u32 = 5_000;
        let (_, mut pools) = FrameMemory::with_pools(2, 192).unwrap();
        let (mut wires_pool, mut pool) = (pools.pop().unwrap(), pools.pop().unwrap());
        let (mut port, mut wire) = link(64);
        let test_side = std::thread::spawn(move || {
            let (mut sent, mut seen) = (0, 0);
            while seen < FRAMES {
                while sent < FRAMES && wire.inject(&mut wires_pool, &sent.to_be_bytes()) {
                    sent += 1;
                }
                while wire.take(&mut wires_pool, |bytes| assert_eq!(bytes, seen.to_be_bytes())).is_some() {
                    seen += 1;
                }
                std::thread::yield_now();
            }
        });
        // The worker copies every frame into one of its own, so that frames of both pools are on the way.
        let mut moved = 0;
        let (mut burst, mut out) = (Burst::new(), Burst::new());
        while moved < FRAMES {
            port.receive(&mut pool, &mut burst);
            for mut frame in burst.drain(..) {
                let mut copy = pool.take().expect("64 frames on the wire and 64 in a burst at most");
                copy.set_data(HEADROOM, frame.len());
                let memory = pool.memory().clone();
                memory.data(&mut copy).copy_from_slice(memory.data(&mut frame));
                pool.give(frame);
                out.push(copy);
            }
            while !out.is_empty() {
                let before = out.len();
                port.transmit(&mut pool, &mut out);
                moved += (before - out.len()) as u32;
                std::thread::yield_now();
            }
        }
        test_side.join().unwrap();
    }
}

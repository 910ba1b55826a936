//! A bounded ring of frames from one worker to one other.
//!
//! A frame's token fits in a word, so the slots are plain atomics and the ring needs no unsafe code. Each side keeps a private
//! copy of the other's index and looks at the shared one only when it runs out: a send or a receive costs one
//! release store, and a cache line moves between the cores once a batch rather than once a frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use crate::port::Frame;

struct Shared {
    /// The memory of the frames in the ring, set with the first one; 0 before.
    memory: AtomicU32,
    slots: Box<[AtomicU64]>,
    /// Frames ever received; written by the receiver.
    head: CachePadded<AtomicUsize>,
    /// Frames ever sent; written by the sender.
    tail: CachePadded<AtomicUsize>,
}

/// The sending end.
pub struct Sender {
    shared: Arc<Shared>,
    memory: u32,
    tail: usize,
    known_head: usize,
}

/// The receiving end.
pub struct Receiver {
    shared: Arc<Shared>,
    head: usize,
    known_tail: usize,
}

/// A ring for at least `capacity` frames (rounded up to a power of two).
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let slots = (0..capacity.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
    let memory = AtomicU32::new(0);
    let shared =
        Arc::new(Shared { memory, slots, head: CachePadded::default(), tail: CachePadded::default() });
    (
        Sender { shared: Arc::clone(&shared), memory: 0, tail: 0, known_head: 0 },
        Receiver { shared, head: 0, known_tail: 0 },
    )
}

impl Sender {
    /// Sends a frame.
    ///
    /// # Errors
    /// Gives the frame back when the ring is full.
    ///
    /// # Panics
    /// When the frame is of another memory than the first one sent.
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        let slots = &self.shared.slots;
        if self.tail.wrapping_sub(self.known_head) == slots.len() {
            // Acquire: the receiver has read the slots it gives up.
            self.known_head = self.shared.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.known_head) == slots.len() {
                return Err(frame);
            }
        }
        let (memory, word) = frame.into_word();
        if self.memory != memory {
            assert!(self.memory == 0, "frames of two memories in one ring");
            self.memory = memory;
            // Relaxed: published with the index, below.
            self.shared.memory.store(memory, Ordering::Relaxed);
        }
        slots[self.tail & (slots.len() - 1)].store(word, Ordering::Relaxed);
        self.tail = self.tail.wrapping_add(1);
        // Release: the slot, and the frame's bytes, are written before the receiver can see the index.
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

impl Receiver {
    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.head == self.shared.tail.load(Ordering::Acquire)
    }

    /// The next frame, if there is one.
    pub fn receive(&mut self) -> Option<Frame> {
        if self.head == self.known_tail {
            // Acquire: pairs with the release in `send`.
            self.known_tail = self.shared.tail.load(Ordering::Acquire);
            if self.head == self.known_tail {
                return None;
            }
        }
        let slots = &self.shared.slots;
        let word = slots[self.head & (slots.len() - 1)].load(Ordering::Relaxed);
        self.head = self.head.wrapping_add(1);
        // Release: the slot was read before the sender may fill it again.
        self.shared.head.store(self.head, Ordering::Release);
        Some(Frame::from_word(self.shared.memory.load(Ordering::Relaxed), word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::FrameMemory;

    #[test]
    fn frames_arrive_in_order_across_threads_and_a_full_ring_refuses() {
        let (memory, mut pools) = FrameMemory::with_pools(1, 64).unwrap();
        let mut pool = pools.pop().unwrap();
        let (mut tx, mut rx) = channel(8);
        let (mut back_tx, mut back_rx) = channel(64);
        let reader_memory = Arc::clone(&memory);
        let reader = std::thread::spawn(move || {
            for expected in 0..10_000u32 {
                let mut frame = loop {
                    if let Some(frame) = rx.receive() {
                        break frame;
                    }
                    std::thread::yield_now();
                };
                assert_eq!(reader_memory.data(&mut frame), expected.to_be_bytes());
                assert!(back_tx.send(frame).is_ok());
            }
        });
        for n in 0..10_000u32 {
            let mut frame = loop {
                if let Some(frame) = back_rx.receive().or_else(|| pool.take()) {
                    break frame;
                }
                std::thread::yield_now();
            };
            frame.set_data(300, 4);
            memory.data(&mut frame).copy_from_slice(&n.to_be_bytes());
            let mut refused = tx.send(frame);
            while let Err(frame) = refused {
                std::thread::yield_now();
                refused = tx.send(frame);
            }
        }
        reader.join().unwrap();
    }
}

//! A bounded ring of frames from one worker to one other.
//!
//! A frame's token fits in a word, and so does the note that may go with it, so the slots are plain atomics and the ring needs no unsafe code. Each side keeps a private
//! copy of the other's index and looks at the shared one only when it runs out, and each shows its own once a batch: a cache line moves between the cores
//! once a batch rather than once a frame. What is private is aligned to two lines, as processors fetch them in pairs: all workers' ends are made by one
//! thread, side by side, and an end is written each turn.

use std::iter::once;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;

use crate::conn::memory::prefetch;
use crate::port::{BURST, Frame};

/// A frame and the note that goes with it.
#[derive(Default)]
struct Slot {
    frame: AtomicU64,
    note: AtomicU64,
}

/// Slots in a cache line.
const SLOTS: usize = 64 / size_of::<Slot>();

struct Shared {
    /// The memory of the frames in the ring, set with the first one; 0 before.
    memory: AtomicU32,
    slots: Box<[Slot]>,
    /// Frames ever received; written by the receiver.
    head: CachePadded<AtomicUsize>,
    /// Frames ever sent; written by the sender.
    tail: CachePadded<AtomicUsize>,
}

/// The sending end.
#[repr(align(128))]
pub struct Sender {
    shared: Arc<Shared>,
    memory: u32,
    /// Not in their slots yet: written together, their lines come from the other core at once and not one after the other.
    pending: ArrayVec<(u64, u64), BURST>,
    /// Those pending included.
    tail: usize,
    /// As far as the receiver can see.
    published: usize,
    known_head: usize,
}

/// The receiving end.
#[repr(align(128))]
pub struct Receiver {
    shared: Arc<Shared>,
    head: usize,
    known_tail: usize,
    /// Frames received since the last [`prefetch`](Self::prefetch).
    recent: usize,
}

/// A ring for at least `capacity` frames (rounded up to a power of two).
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let slots = (0..capacity.next_power_of_two()).map(|_| Slot::default()).collect();
    let memory = AtomicU32::new(0);
    let shared =
        Arc::new(Shared { memory, slots, head: CachePadded::default(), tail: CachePadded::default() });
    (
        Sender {
            shared: Arc::clone(&shared),
            memory: 0,
            pending: ArrayVec::new(),
            tail: 0,
            published: 0,
            known_head: 0,
        },
        Receiver { shared, head: 0, known_tail: 0, recent: 0 },
    )
}

impl Sender {
    /// Sends a frame with a note, which come when they are [published](Self::publish).
    ///
    /// # Errors
    /// Gives the frame back when the ring is full.
    ///
    /// # Panics
    /// When the frame is of another memory than the first one sent.
    pub fn send(&mut self, frame: Frame, note: u64) -> Result<(), Frame> {
        let mut back = None;
        self.send_all(once((frame, note)), |refused| back = Some(refused));
        back.map_or(Ok(()), Err)
    }

    /// The same with several frames, of which those that find the ring full are `refused`. Says how many there were.
    #[inline(always)]
    pub fn send_all(
        &mut self,
        frames: impl Iterator<Item = (Frame, u64)>,
        mut refused: impl FnMut(Frame),
    ) -> usize {
        let room = self.room();
        let (mut sent, mut count) = (0, 0);
        for (frame, note) in frames {
            count += 1;
            if sent == room {
                refused(frame);
                continue;
            }
            let (memory, word) = frame.into_word();
            if self.memory != memory {
                self.learn(memory);
            }
            if let Err(full) = self.pending.try_push((word, note)) {
                self.settle(self.tail.wrapping_add(sent));
                self.pending.push(full.element());
            }
            sent += 1;
        }
        self.tail = self.tail.wrapping_add(sent);
        count
    }

    /// Slots that are free, at least. That it knows of fewer than a burst's is no reason to say so.
    #[inline(always)]
    fn room(&mut self) -> usize {
        if self.tail.wrapping_sub(self.known_head) + BURST > self.shared.slots.len() {
            // Acquire: the receiver has read the slots it gives up.
            self.known_head = self.shared.head.load(Ordering::Acquire);
        }
        self.shared.slots.len() - self.tail.wrapping_sub(self.known_head)
    }

    /// Notes the memory of the first frame.
    #[cold]
    fn learn(&mut self, memory: u32) {
        assert!(self.memory == 0, "frames of two memories in one ring");
        self.memory = memory;
        // Relaxed: published with the index, in `publish`.
        self.shared.memory.store(memory, Ordering::Relaxed);
    }

    /// Puts what is pending into its slots, the last ones before `tail`.
    #[inline(never)]
    fn settle(&mut self, tail: usize) {
        let slots = &self.shared.slots[..];
        let first = tail.wrapping_sub(self.pending.len()) & (slots.len() - 1);
        let (to_end, from_begin) = self.pending.split_at(self.pending.len().min(slots.len() - first));
        for (slots, pending) in [(&slots[first..], to_end), (slots, from_begin)] {
            for (slot, (word, note)) in slots.iter().zip(pending) {
                slot.frame.store(*word, Ordering::Relaxed);
                slot.note.store(*note, Ordering::Relaxed);
            }
        }
        self.pending.clear();
    }

    /// Lets the receiver see what was sent. Says how many frames that were.
    pub fn publish(&mut self) -> usize {
        let news = self.tail.wrapping_sub(self.published);
        if news > 0 {
            self.settle(self.tail);
            self.published = self.tail;
            // Release: the slots, and the frames' bytes, are written before the receiver can see the index.
            self.shared.tail.store(self.tail, Ordering::Release);
        }
        news
    }
}

impl Receiver {
    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.head == self.shared.tail.load(Ordering::Acquire)
    }

    /// Starts fetching what the sender has most likely written by now, if it goes on as it did: its index, and as many slots as frames
    /// came since the last time, up to a burst's. To be called once a turn, while there is something else to do.
    pub fn prefetch(&mut self) {
        let expected = std::mem::take(&mut self.recent).min(BURST);
        if expected == 0 {
            return;
        }
        prefetch(&*self.shared.tail);
        let slots = &self.shared.slots;
        for n in (0..expected).step_by(SLOTS) {
            prefetch(&slots[self.head.wrapping_add(n) & (slots.len() - 1)]);
        }
    }

    /// Gives the next frames to `each` with their notes, `most` of them if there are so many.
    pub fn receive(&mut self, most: usize, mut each: impl FnMut(Frame, u64)) {
        if self.known_tail.wrapping_sub(self.head) < most {
            // Acquire: pairs with the release in `publish`.
            self.known_tail = self.shared.tail.load(Ordering::Acquire);
        }
        let count = self.known_tail.wrapping_sub(self.head).min(most);
        if count == 0 {
            return;
        }
        let (slots, memory) = (&self.shared.slots, self.shared.memory.load(Ordering::Relaxed));
        let first = self.head;
        self.head = first.wrapping_add(count);
        self.recent += count;
        for n in 0..count {
            let Slot { frame, note } = &slots[first.wrapping_add(n) & (slots.len() - 1)];
            each(Frame::from_word(memory, frame.load(Ordering::Relaxed)), note.load(Ordering::Relaxed));
        }
        // Release: the slots were read before the sender may fill them again.
        self.shared.head.store(self.head, Ordering::Release);
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
            let mut expected = 0u32;
            while expected < 10_000 {
                rx.receive(5, |mut frame, note| {
                    assert_eq!(note, u64::from(expected));
                    assert_eq!(reader_memory.data(&mut frame), expected.to_be_bytes());
                    expected += 1;
                    assert!(back_tx.send(frame, 0).is_ok());
                });
                if back_tx.publish() == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut free = std::iter::from_fn(|| pool.take()).collect::<Vec<_>>();
        for n in 0..10_000u32 {
            let mut frame = loop {
                back_rx.receive(64, |frame, _| free.push(frame));
                if let Some(frame) = free.pop() {
                    break frame;
                }
                tx.publish();
                std::thread::yield_now();
            };
            frame.set_data(300, 4);
            memory.data(&mut frame).copy_from_slice(&n.to_be_bytes());
            let mut refused = tx.send(frame, n.into());
            while let Err(frame) = refused {
                tx.publish();
                std::thread::yield_now();
                refused = tx.send(frame, n.into());
            }
        }
        tx.publish();
        reader.join().unwrap();
    }

    #[test]
    fn what_is_not_published_is_not_there() {
        let (_, mut pools) = FrameMemory::with_pools(1, 4).unwrap();
        let (mut tx, mut rx) = channel(8);
        assert_eq!(tx.publish(), 0);
        tx.send(pools[0].take().unwrap(), 0).unwrap();
        assert!(rx.is_empty());
        rx.receive(8, |_, _| unreachable!("it is not published"));
        assert_eq!(tx.publish(), 1);
        assert!(!rx.is_empty());
        let mut count = 0;
        rx.receive(8, |_, _| count += 1);
        assert_eq!(count, 1);
    }
}

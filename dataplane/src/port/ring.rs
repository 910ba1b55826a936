//! The four rings of an AF_XDP socket.
//!
//! Each ring is an array of slots and two counters in memory shared with the kernel. One side produces, the other
//! consumes; a counter only ever grows, wrapping at 2³², and is written by one side alone:
//!
//! ```text
//!              we produce            we consume
//!   receiving  Fill ─▶ kernel        kernel ─▶ Rx
//!   sending    Tx   ─▶ kernel        kernel ─▶ Completion
//!
//!   slots  │ . │ c │ d │ e │ . │     consumer = 1, producer = 4: three filled
//!                └consumer   └producer
//! ```
//!
//! All arithmetic is in [`Ring`]; the four types around it only leave out what their role does not do. A burst
//! costs one acquire load of the other side's counter, and not even that while the private copy of it suffices, and
//! one release store of ours.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{xdp_desc, xdp_ring_offset};
use memmap2::MmapRaw;

/// Empty frames on their way to the kernel: offsets into the frame memory.
pub(super) struct Fill(Ring<u64>);

/// Frames the kernel has sent: the offsets as they were given to [`Tx`].
pub(super) struct Completion(Ring<u64>);

/// Frames the kernel has received.
pub(super) struct Rx(Ring<xdp_desc>);

/// Frames for the kernel to send.
pub(super) struct Tx(Ring<xdp_desc>);

impl Fill {
    pub fn new(map: MmapRaw, offsets: &xdp_ring_offset, size: u32) -> Self {
        Self(Ring::new(map, offsets, size))
    }

    /// Produces up to `most` offsets, as many as there is room for and `offsets` yields; says how many.
    pub fn produce(&mut self, most: u32, offsets: impl Iterator<Item = u64>) -> u32 {
        self.0.produce(most, offsets)
    }

    /// Slots in the ring.
    pub fn size(&self) -> u32 {
        self.0.size()
    }

    /// Whether the driver has stopped looking at the ring until it is woken.
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

impl Completion {
    pub fn new(map: MmapRaw, offsets: &xdp_ring_offset, size: u32) -> Self {
        Self(Ring::new(map, offsets, size))
    }

    /// Hands up to `most` offsets to `each`; says how many.
    pub fn consume(&mut self, most: u32, each: impl FnMut(u64)) -> u32 {
        self.0.consume(most, each)
    }
}

impl Rx {
    pub fn new(map: MmapRaw, offsets: &xdp_ring_offset, size: u32) -> Self {
        Self(Ring::new(map, offsets, size))
    }

    /// Hands up to `most` descriptors to `each`; says how many.
    pub fn consume(&mut self, most: u32, each: impl FnMut(xdp_desc)) -> u32 {
        self.0.consume(most, each)
    }

    /// Shows up to `most` descriptors to `each` that are known to be there.
    pub fn peek(&self, most: u32, each: impl FnMut(xdp_desc)) {
        self.0.peek(most, each);
    }
}

impl Tx {
    pub fn new(map: MmapRaw, offsets: &xdp_ring_offset, size: u32) -> Self {
        Self(Ring::new(map, offsets, size))
    }

    /// How many of `want` slots are free.
    pub fn room(&mut self, want: u32) -> u32 {
        self.0.room(want)
    }

    /// Produces up to `most` descriptors, as many as there is room for and `descriptors` yields; says how many.
    pub fn produce(&mut self, most: u32, descriptors: impl Iterator<Item = xdp_desc>) -> u32 {
        self.0.produce(most, descriptors)
    }

    /// Descriptors the kernel has not yet taken.
    pub fn unsent(&mut self) -> u32 {
        self.0.unconsumed()
    }

    /// The counter of the first descriptor the kernel has not yet taken, if there is one.
    pub fn first_unsent(&mut self) -> Option<u32> {
        (self.0.unconsumed() != 0).then_some(self.0.consumer)
    }

    /// Whether the kernel sends only when it is told to.
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

/// A ring, seen from the side that we are on. `room` and `produce` are for the rings we produce into, `consume` for
/// the others; the types above see to it that no ring is used both ways.
struct Ring<T> {
    map: MmapRaw,
    /// Byte offsets of the counters, the flags and the slots in `map`. Offsets rather than pointers: the ring stays
    /// `Send` without a promise of ours.
    producer_at: usize,
    consumer_at: usize,
    flags_at: usize,
    slots_at: usize,
    /// Slots - 1. Every ring has its own: fill and receive rings differ in size.
    mask: u32,
    /// Our copies of the counters. Our own is always up to date, the other may lag behind the truth, never run ahead.
    producer: u32,
    consumer: u32,
    slots: PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    /// A view of the ring in `map`, whose parts the kernel says are at `offsets`.
    ///
    /// # Panics
    /// When the parts do not lie inside the mapping, or `size` is not a power of two: then the caller mapped
    /// something else.
    fn new(map: MmapRaw, offsets: &xdp_ring_offset, size: u32) -> Self {
        assert!(size.is_power_of_two(), "a ring of {size} slots");
        let part = |offset: u64, bytes: usize, align: usize| {
            let at = offset as usize;
            assert!(at.is_multiple_of(align), "a part of a ring at {at}");
            assert!(at + bytes <= map.len(), "a part of a ring outside its {} bytes", map.len());
            at
        };
        let word = |offset| part(offset, size_of::<u32>(), align_of::<u32>());
        let (producer_at, consumer_at, flags_at) =
            (word(offsets.producer), word(offsets.consumer), word(offsets.flags));
        let slots_at = part(offsets.desc, size as usize * size_of::<T>(), align_of::<T>());
        let mut ring = Self {
            producer_at,
            consumer_at,
            flags_at,
            slots_at,
            mask: size - 1,
            producer: 0,
            consumer: 0,
            slots: PhantomData,
            map,
        };
        ring.producer = ring.word(producer_at).load(Ordering::Acquire);
        ring.consumer = ring.word(consumer_at).load(Ordering::Acquire);
        debug_assert!(ring.filled() <= size);
        ring
    }

    /// How many of `want` slots can be produced now.
    fn room(&mut self, want: u32) -> u32 {
        let mut room = self.size() - self.filled();
        if room < want {
            // Acquire: the kernel has read the slots it gives up before we write to them.
            self.consumer = self.word(self.consumer_at).load(Ordering::Acquire);
            room = self.size() - self.filled();
        }
        room.min(want)
    }

    /// Writes up to `most` slots and publishes them with one store.
    fn produce(&mut self, most: u32, items: impl Iterator<Item = T>) -> u32 {
        let room = self.room(most);
        let mut written = 0;
        for item in items.take(room as usize) {
            let slot = self.slot(self.producer.wrapping_add(written));
            // SAFETY: `slot` is inside the mapping and aligned for T. It lies in the free part of the ring (written <
            // room), which the kernel does not read before the store below.
            unsafe { slot.write(item) };
            written += 1;
        }
        if written != 0 {
            self.producer = self.producer.wrapping_add(written);
            // Release: the slots are written before the kernel can see the counter.
            self.word(self.producer_at).store(self.producer, Ordering::Release);
        }
        debug_assert!(self.filled() <= self.size());
        written
    }

    /// Reads up to `most` slots and gives them up with one store.
    fn consume(&mut self, most: u32, mut each: impl FnMut(T)) -> u32 {
        let mut ready = self.filled();
        if ready < most {
            // Acquire: pairs with the kernel's release, so that the slots are read as it wrote them.
            self.producer = self.word(self.producer_at).load(Ordering::Acquire);
            ready = self.filled();
        }
        let taken = ready.min(most);
        for n in 0..taken {
            let slot = self.slot(self.consumer.wrapping_add(n));
            // SAFETY: `slot` is inside the mapping and aligned for T, which is plain integers. It lies in the
            // filled part of the ring, which the kernel does not write to before the store below.
            each(unsafe { slot.read() });
        }
        if taken != 0 {
            self.consumer = self.consumer.wrapping_add(taken);
            // Release: the slots are read before the kernel may write to them again.
            self.word(self.consumer_at).store(self.consumer, Ordering::Release);
        }
        taken
    }

    /// Reads up to `most` slots that are known to be filled, and leaves them there.
    fn peek(&self, most: u32, mut each: impl FnMut(T)) {
        for n in 0..self.filled().min(most) {
            let slot = self.slot(self.consumer.wrapping_add(n));
            // SAFETY: as in `consume`.
            each(unsafe { slot.read() });
        }
    }

    /// Slots produced by us that the kernel has not consumed.
    fn unconsumed(&mut self) -> u32 {
        // Acquire for the same reason as in `room`, which goes on with this value.
        self.consumer = self.word(self.consumer_at).load(Ordering::Acquire);
        self.filled()
    }

    fn needs_wakeup(&self) -> bool {
        self.word(self.flags_at).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn size(&self) -> u32 {
        self.mask + 1
    }

    /// Filled slots, as far as we know. The kernel never moves its counter past ours; if it did, the bound
    /// keeps our arithmetic inside the ring.
    fn filled(&self) -> u32 {
        let filled = self.producer.wrapping_sub(self.consumer);
        debug_assert!(filled <= self.size(), "{filled} of {} slots filled", self.size());
        filled.min(self.size())
    }

    fn slot(&self, index: u32) -> *mut T {
        let offset = self.slots_at + (index & self.mask) as usize * size_of::<T>();
        // SAFETY: index & mask < size, and `new` checked that all `size` slots lie inside the mapping.
        unsafe { self.map.as_mut_ptr().add(offset).cast() }
    }

    /// One of the counters or the flags.
    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: `at` is one of the three offsets that `new` checked to be aligned and inside the mapping, which
        // lives as long as `self`. Both sides access these words atomically only.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use memmap2::MmapOptions;
    use proptest::prelude::*;

    use super::*;

    const OFFSETS: xdp_ring_offset = xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

    /// The kernel's side of a ring in plain memory, written independently of [`Ring`]: no cached counters, one slot
    /// at a time.
    struct Kernel<T> {
        base: *mut u8,
        size: u32,
        slots: PhantomData<T>,
    }

    impl<T: Copy> Kernel<T> {
        fn counter(&self, at: u64) -> &AtomicU32 {
            // SAFETY: the words lie inside the mapping made by `fresh`, which the ring under test keeps alive.
            unsafe { AtomicU32::from_ptr(self.base.add(at as usize).cast()) }
        }

        fn slot(&self, counter: u32) -> *mut T {
            // SAFETY: the index is smaller than the number of slots, all of which lie inside the mapping.
            unsafe { self.base.add(OFFSETS.desc as usize).cast::<T>().add((counter % self.size) as usize) }
        }

        fn produce(&self, item: T) -> bool {
            let producer = self.counter(OFFSETS.producer);
            let at = producer.load(Ordering::Relaxed);
            if at.wrapping_sub(self.counter(OFFSETS.consumer).load(Ordering::Acquire)) == self.size {
                return false;
            }
            // SAFETY: see `slot`; the ring under test runs on this thread.
            unsafe { self.slot(at).write(item) };
            producer.store(at.wrapping_add(1), Ordering::Release);
            true
        }

        fn consume(&self) -> Option<T> {
            let consumer = self.counter(OFFSETS.consumer);
            let at = consumer.load(Ordering::Relaxed);
            if at == self.counter(OFFSETS.producer).load(Ordering::Acquire) {
                return None;
            }
            // SAFETY: see `slot`; the slot was written before the counter.
            let item = unsafe { self.slot(at).read() };
            consumer.store(at.wrapping_add(1), Ordering::Release);
            Some(item)
        }
    }

    /// An empty ring of `size` slots whose counters stand at `start`, and its kernel.
    fn fresh<T: Copy>(size: u32, start: u32) -> (MmapRaw, Kernel<T>) {
        let bytes = OFFSETS.desc as usize + size as usize * size_of::<T>();
        let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon().unwrap());
        let kernel = Kernel { base: map.as_mut_ptr(), size, slots: PhantomData };
        kernel.counter(OFFSETS.producer).store(start, Ordering::Relaxed);
        kernel.counter(OFFSETS.consumer).store(start, Ordering::Relaxed);
        (map, kernel)
    }

    #[derive(Clone, Debug)]
    enum Op {
        /// We want to move this many.
        Ours(u32),
        /// The kernel wants to move this many.
        Kernels(u32),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![(0..20u32).prop_map(Op::Ours), (0..20u32).prop_map(Op::Kernels)];
        proptest::collection::vec(op, 0..200)
    }

    /// Counters anywhere, often just before they wrap.
    fn start() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), (u32::MAX - 40)..=u32::MAX]
    }

    proptest! {
        #[test]
        fn what_we_produce_the_kernel_consumes_in_order(log in 0..6u32, start in start(), ops in ops()) {
            let size = 1 << log;
            let (map, kernel) = fresh::<xdp_desc>(size, start);
            let mut ring = Tx::new(map, &OFFSETS, size);
            let mut model = VecDeque::new();
            let mut next = 0u64;
            for op in ops {
                match op {
                    Op::Ours(n) => {
                        let expected = n.min(size - model.len() as u32);
                        prop_assert_eq!(ring.room(n), expected);
                        let from = next;
                        let items = (from..).map(|addr| xdp_desc { addr, len: addr as u32, options: 0 });
                        prop_assert_eq!(ring.produce(n, items), expected);
                        next += expected as u64;
                        model.extend(from..next);
                    }
                    Op::Kernels(n) => {
                        for _ in 0..n {
                            prop_assert_eq!(kernel.consume().map(|d| d.addr), model.pop_front());
                        }
                    }
                }
                prop_assert_eq!(ring.unsent(), model.len() as u32);
                let first = model.front().map(|sent| start.wrapping_add(*sent as u32));
                prop_assert_eq!(ring.first_unsent(), first);
            }
        }

        #[test]
        fn a_short_supply_fills_only_what_it_has(size in 0..6u32, supply in 0..40u64, want in 0..40u32) {
            let size = 1 << size;
            let (map, kernel) = fresh::<u64>(size, u32::MAX - 3);
            let mut ring = Fill::new(map, &OFFSETS, size);
            let mut source = 0..supply;
            let made = ring.produce(want, source.by_ref());
            prop_assert_eq!(made, want.min(size).min(supply as u32));
            prop_assert_eq!(source.start, made as u64, "nothing is taken from the supply and then lost");
            prop_assert_eq!(std::iter::from_fn(|| kernel.consume()).count(), made as usize);
        }

        #[test]
        fn what_the_kernel_produces_we_consume_in_order(log in 0..6u32, start in start(), ops in ops()) {
            let size = 1 << log;
            let (map, kernel) = fresh::<xdp_desc>(size, start);
            let mut ring = Rx::new(map, &OFFSETS, size);
            let mut model = VecDeque::new();
            let mut next = 0u64;
            for op in ops {
                match op {
                    Op::Ours(n) => {
                        let (mut shown, mut seen) = (Vec::new(), Vec::new());
                        ring.peek(n, |desc| shown.push(desc.addr));
                        let taken = ring.consume(n, |desc| seen.push(desc.addr));
                        prop_assert!(seen.starts_with(&shown), "{shown:?} is not the beginning of {seen:?}");
                        prop_assert_eq!(taken, n.min(model.len() as u32));
                        let expected: Vec<u64> = model.drain(..taken as usize).collect();
                        prop_assert_eq!(seen, expected);
                    }
                    Op::Kernels(n) => {
                        for _ in 0..n {
                            let made = kernel.produce(xdp_desc { addr: next, len: 0, options: 0 });
                            prop_assert_eq!(made, model.len() < size as usize);
                            if made {
                                model.push_back(next);
                                next += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn completions_come_out_and_the_wakeup_flag_is_seen() {
        let (map, kernel) = fresh::<u64>(4, 7);
        let mut ring = Completion::new(map, &OFFSETS, 4);
        assert!(kernel.produce(2048) && kernel.produce(4096));
        let mut seen = Vec::new();
        assert_eq!(ring.consume(u32::MAX, |offset| seen.push(offset)), 2);
        assert_eq!(seen, [2048, 4096]);

        let (map, kernel) = fresh::<u64>(4, 7);
        let ring = Fill::new(map, &OFFSETS, 4);
        assert!(!ring.needs_wakeup());
        kernel.counter(OFFSETS.flags).store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(ring.needs_wakeup());
        assert_eq!(ring.size(), 4);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_ring_larger_than_its_mapping_is_refused() {
        let (map, _) = fresh::<u64>(4, 0);
        Fill::new(map, &OFFSETS, 8192);
    }
}

//! Frame memory, and the tokens that stand for frames in it.
//!
//! One anonymous mapping (huge pages where there are any) is cut into chunks of [`CHUNK`] bytes. Each chunk is represented by exactly one
//! [`Frame`], created when the memory is mapped and neither copied nor dropped afterwards: whoever holds the token owns the
//! bytes. A port that lends a frame to the kernel turns it into an offset ([`FrameMemory::lend`]) and makes it a token again when the
//! kernel gives the offset back ([`FrameMemory::reclaim`]).
//!
//! ```text
//!   chunk n:  | headroom ........ | data: start .. start + len | ............ |
//!             0                 start                                       CHUNK
//! ```
//!
//! Chunks lie a cache line further apart than they are long ([`Layout`]): with 2,048 bytes between them the headers of all frames fell on two of the
//! first cache's 64 sets, which is sixteen lines for a burst of 64 frames.
//!
//! Each worker has a [`Pool`] of free frames. Frames are like coins: a worker that was handed one by another keeps it, and uses it again while it is in
//! its cache; only how many went each way is counted. Who has got many more than it gave gives some back through a ring, so that no pool runs dry because
//! traffic flows one way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::conn::memory::{Backing, advise};
pub use crate::packet::CHUNK;
use crate::packet::{Extent, Packet};
use crate::service::{PortId, WorkerId};
use crate::worker::ring::{self, Receiver, Sender};

/// Free bytes before a received frame, so that a tunnel's outer headers can be put in front of it. AF_XDP puts 256 bytes of its own
/// there already, and copy mode begins after them.
pub const HEADROOM: usize = 256;

/// The longest frame that one chunk can hold.
pub const MAX_FRAME: usize = CHUNK - HEADROOM;

/// From one chunk to the next where they are staggered: an odd number of cache lines, so that the same place of many of them is spread over all sets.
const STAGGERED: usize = CHUNK + 64;

/// Of a free frame.
const EMPTY: Extent = Extent::new(HEADROOM, 0, PortId(0));

/// Tells memories apart. A process makes one, its tests some thousands.
static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// The mapping that all frames of all workers live in.
pub struct FrameMemory {
    id: u32,
    map: MmapRaw,
    frames: u32,
    /// Bytes from one chunk to the next.
    stride: AtomicUsize,
    backing: Backing,
}

/// How the chunks lie in the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Side by side, none across two pages.
    Dense,
    /// Some bytes apart.
    Staggered,
}

/// The right to one chunk of frame memory, and where its data lies in it.
///
/// Not `Clone`: two tokens for one chunk would be two mutable views of the same bytes. It knows its memory, for in another one its chunk may
/// have a token already.
// In this order its beginning is most of a word for a ring, as it lies.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    chunk: u32,
    /// Its port is meaningless while it is free.
    extent: Extent,
    memory: u32,
}

/// A worker's free frames.
pub struct Pool {
    memory: Arc<FrameMemory>,
    free: Vec<Frame>,
    /// What there is with each worker; nothing ever with itself.
    accounts: Vec<Account>,
    /// Frames that each other worker is left with at most.
    slack: i64,
}

/// What a worker has to do with another one.
struct Account {
    /// Frames that came from there, less those that went there.
    owed: i64,
    /// By which frames are given back.
    giving: Sender,
    /// By which the other gives back.
    taking: Receiver,
}

impl FrameMemory {
    /// Maps memory for `workers` × `per_worker` frames, staggered, and makes a pool for each worker.
    ///
    /// Huge pages are used when the machine has enough reserved; otherwise those that the kernel finds by itself, and normal ones, populated at once
    /// so that no page fault happens on the packet path.
    ///
    /// # Errors
    /// When the kernel refuses the mapping (`ENOMEM`).
    pub fn with_pools(workers: u32, per_worker: u32) -> std::io::Result<(Arc<Self>, Vec<Pool>)> {
        let frames = workers.checked_mul(per_worker).filter(|n| *n < 1 << 24).ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "more than 16 million frames asked for")
        })?;
        let bytes = frames as usize * STAGGERED;
        let huge = MmapOptions::new().len(bytes).huge(Some(21)).populate().map_anon();
        let (map, backing) = match huge {
            Ok(map) => (MmapRaw::from(map), Backing::Reserved),
            Err(_) => {
                let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon()?);
                let backing = advise(&map);
                // Before Linux 5.14 the kernel says EINVAL; what is not populated here is when it is first used.
                let _ = map.advise(Advice::PopulateWrite);
                (map, backing)
            }
        };
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let memory = Arc::new(Self { id, map, frames, stride: AtomicUsize::new(STAGGERED), backing });

        let mut giving: Vec<Vec<Sender>> = (0..workers).map(|_| Vec::new()).collect();
        let mut taking: Vec<Vec<Receiver>> = (0..workers).map(|_| Vec::new()).collect();
        for (from, giving) in giving.iter_mut().enumerate() {
            for (to, taking) in taking.iter_mut().enumerate() {
                // With itself nobody has anything to do, but so the numbers are those of the workers.
                let (sender, receiver) = ring::channel(if from == to { 1 } else { per_worker as usize });
                giving.push(sender);
                taking.push(receiver);
            }
        }
        // All others together are left with an eighth of a worker's frames at most.
        let slack = i64::from(per_worker / 8 / workers.saturating_sub(1).max(1));
        let pools = giving.into_iter().zip(taking).zip(0..).map(|((giving, taking), worker)| {
            // Room for all that there are: what others have given must not be in need of memory.
            let mut free = Vec::with_capacity(frames as usize);
            let chunks = worker * per_worker..(worker + 1) * per_worker;
            free.extend(chunks.map(|chunk| Frame { memory: id, chunk, extent: EMPTY }));
            let accounts = giving.into_iter().zip(taking);
            let accounts = accounts.map(|(giving, taking)| Account { owed: 0, giving, taking }).collect();
            Pool { memory: Arc::clone(&memory), free, accounts, slack }
        });
        Ok((Arc::clone(&memory), pools.collect()))
    }

    /// Lays the chunks out anew.
    ///
    /// # Panics
    /// When `pools` do not hold all frames of their memory.
    pub fn lay_out(pools: &mut [Pool], layout: Layout) {
        let Some(memory) = pools.first().map(|pool| Arc::clone(&pool.memory)) else { return };
        let home = pools.iter().filter(|pool| Arc::ptr_eq(&pool.memory, &memory)).map(Pool::available);
        assert!(home.sum::<usize>() == memory.frames as usize, "a frame is in use");
        // Nobody has a token whose chunk it would move, as long as the pools are borrowed, and who takes one afterwards has them from here.
        memory.stride.store(layout.stride(), Ordering::Relaxed);
    }

    /// How the chunks lie.
    pub fn layout(&self) -> Layout {
        if self.stride() == CHUNK { Layout::Dense } else { Layout::Staggered }
    }

    #[inline]
    fn stride(&self) -> usize {
        self.stride.load(Ordering::Relaxed)
    }

    /// The first byte of the mapping, for registering it with the kernel.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Bytes from there to the end of the last chunk.
    pub fn size(&self) -> usize {
        self.frames as usize * self.stride()
    }

    /// What kind of pages the mapping has.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The whole chunk of a frame. The frame's data is `chunk[frame.start()..][..frame.len()]`.
    pub fn chunk<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8; CHUNK] {
        self.packet(frame).chunk
    }

    /// A frame as the director sees it.
    #[inline]
    pub fn packet<'a>(&'a self, frame: &'a mut Frame) -> Packet<'a> {
        assert!(frame.memory == self.id, "a frame of another memory");
        debug_assert!(frame.chunk < self.frames, "a token that this memory did not make");
        let offset = frame.chunk as usize * self.stride();
        // SAFETY: the frame is one of this memory's (checked above), so its chunk lies inside the mapping, which was made for the longest stride and
        // lives as long as `self`; the stride changes only while all tokens are in borrowed pools (`lay_out`), so no two tokens' chunks overlap.
        // Tokens are unique (created once per chunk, not Clone, and made again of what one was turned into, once: `reclaim`, `from_word`) and
        // `frame` is borrowed mutably for as long as the packet lives, so no other reference to these bytes exists. While the kernel may write to
        // them the token does not exist (`lend`).
        #[allow(unsafe_code)]
        let chunk = unsafe { &mut *self.map.as_mut_ptr().add(offset).cast::<[u8; CHUNK]>() };
        Packet::new(chunk, &mut frame.extent)
    }

    /// The data of a frame.
    pub fn data<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let (start, len) = (frame.start(), frame.len());
        &mut self.chunk(frame)[start..start + len]
    }

    /// Makes a token of an offset that the kernel gave back: data of `len` bytes at `offset`. `None` when that does not lie
    /// inside one chunk, which a sound kernel never says.
    ///
    /// Callers must pass each lent frame's offset once: this is the other half of [`lend`](Self::lend) and [`lend_whole`](Self::lend_whole).
    pub(super) fn reclaim(&self, offset: u64, len: u32) -> Option<Frame> {
        // Divided by what the compiler knows.
        let (chunk, start) = match self.layout() {
            Layout::Dense => (offset / CHUNK as u64, offset % CHUNK as u64),
            Layout::Staggered => (offset / STAGGERED as u64, offset % STAGGERED as u64),
        };
        let chunk = u32::try_from(chunk).ok().filter(|c| *c < self.frames)?;
        let (start, len) = (start as usize, len as usize);
        let is_inside = start.checked_add(len).is_some_and(|end| end <= CHUNK);
        is_inside.then(|| Frame { memory: self.id, chunk, extent: Extent::new(start, len, PortId(0)) })
    }

    /// Gives a frame up to the kernel: the offset of its data, and its length.
    pub(super) fn lend(&self, frame: Frame) -> (u64, u32) {
        let (start, len) = (frame.start() as u64, frame.len() as u32);
        (self.lend_whole(frame) + start, len)
    }

    /// Gives an empty frame up to the kernel: the offset of its chunk.
    pub(super) fn lend_whole(&self, frame: Frame) -> u64 {
        debug_assert!(frame.memory == self.id, "a frame of another memory");
        u64::from(frame.chunk) * self.stride() as u64
    }
}

impl Layout {
    fn stride(self) -> usize {
        match self {
            Self::Dense => CHUNK,
            Self::Staggered => STAGGERED,
        }
    }
}

impl Frame {
    /// Where the data begins in the chunk.
    pub fn start(&self) -> usize {
        self.extent.start()
    }

    /// Bytes of data.
    #[allow(clippy::len_without_is_empty, reason = "an empty frame is a free frame; nobody asks")]
    pub fn len(&self) -> usize {
        self.extent.len()
    }

    /// Notes the interface that it came in by.
    #[inline]
    pub fn came_by(&mut self, port: PortId) {
        self.extent.port = port;
    }

    /// Says where the data now lies in the chunk.
    ///
    /// # Panics
    /// When it would not lie inside the chunk.
    pub fn set_data(&mut self, start: usize, len: usize) {
        self.extent = Extent::new(start, len, self.extent.port);
    }

    /// The token as a word, for a ring between workers, and the memory it is of.
    #[inline]
    pub(crate) fn into_word(self) -> (u32, u64) {
        // A chunk's number has 24 bits.
        let chunk = u64::from(self.extent.port.0) << 24 | u64::from(self.chunk);
        (self.memory, chunk | (self.start() as u64) << 32 | (self.len() as u64) << 48)
    }

    /// The token again. Callers must pass each pair of [`into_word`](Self::into_word) once, and no other: [`FrameMemory::chunk`] relies on that.
    #[inline]
    pub(crate) fn from_word(memory: u32, word: u64) -> Self {
        let port = PortId((word >> 24) as u8);
        let extent = Extent::from_parts((word >> 32) as u16, (word >> 48) as u16, port);
        Self { memory, chunk: word as u32 & 0xff_ffff, extent }
    }
}

impl Pool {
    /// The memory the frames are in.
    pub fn memory(&self) -> &Arc<FrameMemory> {
        &self.memory
    }

    /// A free frame with its data empty at [`HEADROOM`], or `None` when all are in use.
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.collect();
        }
        self.free.pop()
    }

    /// Takes a frame back, whosever it was.
    pub fn give(&mut self, mut frame: Frame) {
        frame.extent = EMPTY;
        self.free.push(frame);
    }

    /// Notes that frames were handed to a worker, in use.
    pub fn lend(&mut self, worker: WorkerId, frames: usize) {
        self.accounts[usize::from(worker.0)].owed -= frames as i64;
    }

    /// Notes that frames came from a worker, in use.
    pub fn borrow(&mut self, worker: WorkerId, frames: usize) {
        self.accounts[usize::from(worker.0)].owed += frames as i64;
    }

    /// Free frames at hand, those on their way back not counted.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Gives back what other workers are owed too much. To be called after each turn.
    pub fn settle(&mut self) {
        for account in &mut self.accounts {
            while account.owed > self.slack
                && let Some(frame) = self.free.pop()
            {
                // A full ring: it is tried again.
                if let Err(frame) = account.giving.send(frame, 0) {
                    self.free.push(frame);
                    break;
                }
                account.owed -= 1;
            }
            account.giving.publish();
        }
    }

    /// Fetches what other workers have given back. Early is better: what was used last is in the cache still.
    pub fn collect(&mut self) {
        for account in &mut self.accounts {
            let before = self.free.len();
            account.taking.receive(usize::MAX, |frame, _| self.free.push(frame));
            account.owed += (self.free.len() - before) as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_way_through_a_word() {
        let frame = || Frame { memory: 9, chunk: 0xabcdef, extent: Extent::new(500, 1514, PortId(7)) };
        let (memory, word) = frame().into_word();
        assert_eq!(Frame::from_word(memory, word), frame());
    }

    #[test]
    #[should_panic(expected = "another memory")]
    fn a_frame_of_another_memory_is_refused() {
        let (_, mut pools) = FrameMemory::with_pools(1, 4).unwrap();
        let (other, _) = FrameMemory::with_pools(1, 4).unwrap();
        let mut frame = pools[0].take().unwrap();
        other.chunk(&mut frame);
    }

    #[test]
    fn a_lent_frame_comes_back_with_its_data() {
        let (memory, mut pools) = FrameMemory::with_pools(1, 4).unwrap();
        for (layout, size) in [(Layout::Dense, 4 * 2048), (Layout::Staggered, 4 * 2112)] {
            FrameMemory::lay_out(&mut pools, layout);
            assert_eq!((memory.layout(), memory.size()), (layout, size));
            // The last chunk, and all of it.
            let mut frame = pools[0].take().unwrap();
            frame.set_data(0, CHUNK);
            memory.data(&mut frame).fill(0);
            frame.set_data(300, 60);
            memory.data(&mut frame).fill(0x5a);
            let (offset, len) = memory.lend(frame);
            let mut back = memory.reclaim(offset, len).unwrap();
            assert_eq!((back.start(), back.len()), (300, 60));
            assert!(memory.data(&mut back).iter().all(|b| *b == 0x5a));
            assert_eq!(memory.lend_whole(back), offset - 300);
            assert!(memory.reclaim(size as u64, 0).is_none());
            assert!(memory.reclaim(2000, 100).is_none(), "crosses into the next chunk");
            let whole = memory.reclaim(offset - 300, 0).unwrap();
            pools[0].give(whole);
        }
    }

    #[test]
    #[should_panic(expected = "a frame is in use")]
    fn no_chunk_moves_while_somebody_has_it() {
        let (_, mut pools) = FrameMemory::with_pools(1, 4).unwrap();
        let _frame = pools[0].take();
        FrameMemory::lay_out(&mut pools, Layout::Dense);
    }

    #[test]
    fn who_got_many_more_frames_than_it_gave_gives_some_back() {
        let (_, mut pools) = FrameMemory::with_pools(2, 32).unwrap();
        let (mut second, mut first) = (pools.pop().unwrap(), pools.pop().unwrap());
        let hand = |first: &mut Pool, second: &mut Pool, ids: [WorkerId; 2], frames: usize| {
            for _ in 0..frames {
                second.give(first.take().unwrap());
            }
            first.lend(ids[1], frames);
            second.borrow(ids[0], frames);
            first.settle();
            second.settle();
            first.collect();
            second.collect();
        };
        let [there, back] = [[WorkerId(0), WorkerId(1)], [WorkerId(1), WorkerId(0)]];
        // An eighth stays. What came from there pays for what goes there.
        hand(&mut first, &mut second, there, 20);
        assert_eq!((first.available(), second.available()), (28, 36));
        hand(&mut second, &mut first, back, 7);
        assert_eq!((first.available(), second.available()), (35, 29));
        hand(&mut second, &mut first, back, 29);
        assert_eq!((first.available(), second.available()), (36, 28));
        for _ in 0..100 {
            hand(&mut first, &mut second, there, 9);
            hand(&mut second, &mut first, back, 9);
        }
        assert_eq!(first.available() + second.available(), 64);
    }
}

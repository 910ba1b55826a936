//! The hash index of the connection table: from a packet's tuple to a connection and a direction.
//!
//! ```text
//!   bucket = one cache line:  | 10 tags | 10 places | overflow |
//! ```
//!
//! An entry is a tag, 16 bits of the hash, and a place: 31 bits of slot, one bit of direction. The tags lie together, so that all are compared at once. A lookup reads one
//! cache line and, if a tag fits, the connection's own; one in 6,554 reads another connection's line for nothing, at most, which costs less than
//! the memory of longer tags: with more entries in a line, fewer go elsewhere and fewer pages are read. When a bucket is full its entries go to the
//! next one, and every bucket passed over counts them, so a lookup stops at the first bucket that
//! was never passed over, and a removal leaves no tombstone. At the design load, two thirds, one entry in forty stands in another bucket than its own, one bucket in six is
//! full, and a chain of 16 full ones does not happen: the hash is keyed, so nobody can bring it about.
//!
//! The index does not know the keys: callers compare the connection they are led to, because they are about to read it anyway.

use zerocopy::FromZeros;

use super::memory::{Mapped, Pages, equal, first_equal};

/// Entries in a bucket: as many as a line of 64 bytes takes beside the overflow count.
const ENTRIES: usize = 10;

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; ENTRIES],
    /// 0 is free: slots begin at 1.
    places: [u32; ENTRIES],
    /// Entries that belong here or before, but are stored further on.
    overflow: u32,
}

impl Bucket {
    fn put(&mut self, n: usize, tag: u16, place: u32) {
        (self.tags[n], self.places[n]) = (tag, place);
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the real server.
    Request,
    /// From the real server to the client.
    Reply,
}

/// A place in the index where a connection may be found.
pub type Candidate = (u32, Direction);

/// A [`Candidate`] in a word, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed(u32);

impl From<Candidate> for Packed {
    #[inline]
    fn from((slot, direction): Candidate) -> Self {
        Self(pack(slot, direction))
    }
}

impl Packed {
    /// None.
    pub const NONE: Self = Self(0);

    /// As a word; 0 for none.
    #[inline]
    pub fn into_word(self) -> u32 {
        self.0
    }

    /// From the [word](Self::into_word).
    #[inline]
    pub fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// What it is.
    #[inline]
    pub fn candidate(self) -> Option<Candidate> {
        unpack(self.0)
    }

    /// Its slot; 0 of none.
    #[inline]
    pub fn slot(self) -> usize {
        (self.0 >> 1) as usize
    }
}

/// The index. Holds no more entries than it was made for.
pub struct Index {
    buckets: Mapped<Bucket>,
    mask: usize,
}

impl Index {
    /// An index for up to `entries` entries at a load of at most two thirds.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(entries: usize) -> std::io::Result<Self> {
        let buckets = (entries * 3 / 2).div_ceil(ENTRIES).next_power_of_two();
        Ok(Self { buckets: Mapped::zeroed(buckets)?, mask: buckets - 1 })
    }

    /// Its memory.
    pub fn pages(&self) -> Pages {
        self.buckets.pages()
    }

    /// Starts fetching the line that a lookup of `hash` will read first.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.buckets.prefetch(hash as usize & self.mask);
    }

    /// The same for one of [many](super::memory::prefetch_many).
    #[inline]
    pub fn prefetch_many(&self, hash: u64) {
        self.buckets.prefetch_many(hash as usize & self.mask);
    }

    /// The first place whose tag fits.
    #[inline]
    pub fn first(&self, hash: u64) -> Packed {
        let bucket = &self.buckets[hash as usize & self.mask];
        match bucket.places.get(first_equal(&bucket.tags, tag(hash))) {
            Some(place) if unpack(*place).is_some() => Packed(*place),
            None if bucket.overflow == 0 => Packed(0),
            _ => self.find(hash, |_| true).map_or(Packed(0), Packed::from),
        }
    }

    /// The place whose tag fits and that `is_it` accepts.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(Candidate) -> bool) -> Option<Candidate> {
        let mut probe = 0;
        loop {
            let bucket = &self.buckets[(hash as usize).wrapping_add(probe) & self.mask];
            // Free entries may be among them.
            let mut fitting = equal(&bucket.tags, tag(hash));
            while fitting != 0 {
                let place = bucket.places.get(fitting.trailing_zeros() as usize);
                if let Some(candidate) = place.and_then(|place| unpack(*place))
                    && is_it(candidate)
                {
                    return Some(candidate);
                }
                fitting &= fitting - 1;
            }
            if bucket.overflow == 0 || probe == self.mask {
                return None;
            }
            probe += 1;
        }
    }

    /// Adds an entry. The caller has made sure that there are not more than the index was made for. Of several for the same key one is found, until it is removed.
    pub fn insert(&mut self, hash: u64, slot: u32, direction: Direction) {
        for probe in 0..=self.mask {
            let at = (hash as usize).wrapping_add(probe) & self.mask;
            let bucket = &mut self.buckets[at];
            if let Some(free) = bucket.places.iter().position(|place| *place == 0) {
                bucket.put(free, tag(hash), pack(slot, direction));
                for passed in 0..probe {
                    self.buckets[(hash as usize).wrapping_add(passed) & self.mask].overflow += 1;
                }
                return;
            }
        }
        debug_assert!(false, "more entries than there is room for");
    }

    /// Removes an entry that was inserted with the same arguments.
    pub fn remove(&mut self, hash: u64, slot: u32, direction: Direction) {
        let wanted = pack(slot, direction);
        for probe in 0..=self.mask {
            let at = (hash as usize).wrapping_add(probe) & self.mask;
            let bucket = &mut self.buckets[at];
            if let Some(n) = bucket.places.iter().position(|place| *place == wanted) {
                bucket.put(n, 0, 0);
                for passed in 0..probe {
                    self.buckets[(hash as usize).wrapping_add(passed) & self.mask].overflow -= 1;
                }
                return;
            }
        }
        debug_assert!(false, "removing an entry that is not there");
    }
}

#[inline]
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16
}

fn pack(slot: u32, direction: Direction) -> u32 {
    debug_assert!((1..1 << 31).contains(&slot));
    slot << 1 | u32::from(direction == Direction::Reply)
}

#[inline]
fn unpack(place: u32) -> Option<Candidate> {
    let direction = if place & 1 == 0 { Direction::Request } else { Direction::Reply };
    (place >> 1 != 0).then_some((place >> 1, direction))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few home buckets and few tags, so that overflow and tag collisions are the rule.
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec((any::<bool>(), 0u64..4, 0u64..3, 1u32..30), 1..400)) {
            let mut index = Index::with_capacity(40).unwrap();
            // A slot has one tuple, and so one hash, at a time.
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (insert, home, tag, slot) in ops {
                let hash = tag << 48 | home;
                if insert && !model.contains_key(&slot) {
                    index.insert(hash, slot, Direction::Reply);
                    model.insert(slot, hash);
                } else if !insert && let Some(hash) = model.remove(&slot) {
                    index.remove(hash, slot, Direction::Reply);
                }
                for home in 0..4 { for tag in 0..3 { for slot in 1..30 {
                    let hash = tag << 48 | home;
                    let is_there = model.get(&slot) == Some(&hash);
                    // As the table does, compare the whole key and not the tag alone.
                    let found = index.find(hash, |c| c == (slot, Direction::Reply) && is_there).is_some();
                    prop_assert_eq!(found, is_there);
                }}}
            }
            for (slot, hash) in &model {
                index.remove(*hash, *slot, Direction::Reply);
            }
            prop_assert!(index.buckets.iter().all(|b| b.overflow == 0 && b.places == [0; ENTRIES] && b.tags == [0; ENTRIES]));
        }
    }
}

//! Which worker owns a connection, for the workers that do not.
//!
//! A connection belongs to the worker that its first packet came to. Its other packets may come to another one: a NAT
//! reply has other addresses and hashes elsewhere, and on interfaces without receive hashing so may requests. A worker that
//! does not find a packet's connection at home asks here and hands the frame to the owner.
//!
//! The directory is one table for all workers, of words that are written when a connection begins and ends and only read in
//! between: on the established path nobody writes a line that another core reads. A word is 56 bits of the tuple's hash and the
//! owner; a bucket is a cache line of eight, and an entry stands in one of two buckets, so there is no chain to follow and no
//! tombstone to leave. Two tuples with the same 56 bits are one in 2⁵⁶ / (connections): the second one's frames would go to a worker that
//! does not know them and treats them as new ones of its own, which is what would have happened here.
//!
//! With one worker there is no directory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{Mapped, prefetch};
use super::supply::Supply;
use crate::service::WorkerId;

const ENTRIES: usize = 8;

#[derive(zerocopy::FromZeros)]
#[repr(C, align(64))]
struct Bucket([AtomicU64; ENTRIES]);

/// The directory.
pub struct Directory {
    buckets: Mapped<Bucket>,
    mask: usize,
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// The tuple is the announcer's.
    Ours,
    /// Another worker was quicker; nothing has changed.
    Theirs(WorkerId),
    /// No room. The connection works, but only with packets that come to its own worker.
    Full,
}

impl Directory {
    /// A directory for up to `tuples` tuples: two for a NAT connection, one for others.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn with_capacity(tuples: usize) -> std::io::Result<Self> {
        // With every table full it is half full. Then some 3 tuples in 10,000 find neither of their buckets with room, as the first is taken while it has any.
        let buckets = (tuples * 2).div_ceil(ENTRIES).next_power_of_two();
        Ok(Self { buckets: Mapped::zeroed(buckets)?, mask: buckets - 1 })
    }

    /// Its memory, which is read all over, for the one who brings it.
    pub fn supply(&self) -> Supply {
        Supply::whole(self.buckets.pages())
    }

    /// Starts fetching the line where a tuple most likely stands.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[hash as usize & self.mask]);
    }

    /// The worker that a tuple's connection belongs to. `hash` is the same in all workers.
    pub fn owner(&self, hash: u64) -> Option<WorkerId> {
        self.words(hash).find_map(|word| {
            // Acquire is not needed: the word is all the information there is.
            let word = word.load(Ordering::Relaxed);
            is(word, hash).then(|| owner_of(word))
        })
    }

    /// Says that a tuple's connection belongs to `worker`.
    ///
    /// Two workers may do so at once for the same tuple. Each writes its word and then looks for the other's; the one whose word stands
    /// first keeps it. Both must see the same order of the two writes, hence the sequential consistency.
    pub fn announce(&self, hash: u64, worker: WorkerId) -> Announced {
        let new = tag(hash) | (u64::from(worker.0) + 1);
        if let Some(owner) = self.owner(hash) {
            return if owner == worker { Announced::Ours } else { Announced::Theirs(owner) };
        }
        let written = self.words(hash).position(|word| {
            word.load(Ordering::Relaxed) == 0
                && word.compare_exchange(0, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        });
        let Some(written) = written else { return Announced::Full };
        let earlier = self.words(hash).take(written).find_map(|word| {
            let word = word.load(Ordering::SeqCst);
            is(word, hash).then(|| owner_of(word))
        });
        match earlier.filter(|owner| *owner != worker) {
            Some(owner) => {
                self.withdraw(hash, worker);
                Announced::Theirs(owner)
            }
            None => Announced::Ours,
        }
    }

    /// Announces a tuple that nobody has, `worker` neither. Says whether that has come about.
    pub fn announce_new(&self, hash: u64, worker: WorkerId) -> bool {
        // What is not there is not there for `worker` in a moment either: only it could announce it as its own.
        self.owner(hash).is_none() && self.announce(hash, worker) == Announced::Ours
    }

    /// Says that a tuple is `worker`'s from now on, whoever's it was. For what is short-lived and never contended.
    pub fn claim(&self, hash: u64, worker: WorkerId) -> Announced {
        let new = tag(hash) | (u64::from(worker.0) + 1);
        for word in self.words(hash) {
            let old = word.load(Ordering::Relaxed);
            if is(old, hash) && word.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return Announced::Ours;
            }
        }
        self.announce(hash, worker)
    }

    /// Takes a tuple's announcement back, if it is `worker`'s.
    pub fn withdraw(&self, hash: u64, worker: WorkerId) {
        let ours = tag(hash) | (u64::from(worker.0) + 1);
        for word in self.words(hash) {
            if word.load(Ordering::Relaxed) == ours
                && word.compare_exchange(ours, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
    }

    /// The places where a tuple may stand.
    fn words(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let first = hash as usize & self.mask;
        let second = (hash >> 29) as usize & self.mask;
        self.buckets[first].0.iter().chain(&self.buckets[second].0)
    }
}

fn tag(hash: u64) -> u64 {
    // The low bits choose the bucket; they are in the tag too, because the second bucket is chosen by others.
    hash << 8
}

fn is(word: u64, hash: u64) -> bool {
    word & 0xff != 0 && word & !0xff == tag(hash)
}

fn owner_of(word: u64) -> WorkerId {
    WorkerId((word & 0xff) as u8 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_found_until_it_is_withdrawn() {
        let directory = Directory::with_capacity(100).unwrap();
        let hash = 0x1234_5678_9abc_def0;
        assert_eq!(directory.owner(hash), None);
        assert!(directory.announce_new(hash, WorkerId(1)));
        assert!((0..2).all(|worker| !directory.announce_new(hash, WorkerId(worker))));
        assert_eq!(directory.announce(hash, WorkerId(0)), Announced::Theirs(WorkerId(1)));
        assert_eq!(directory.announce(hash, WorkerId(1)), Announced::Ours);
        directory.withdraw(hash, WorkerId(0));
        assert_eq!(directory.owner(hash), Some(WorkerId(1)), "only the owner withdraws");
        assert_eq!(directory.claim(hash, WorkerId(0)), Announced::Ours);
        assert_eq!(directory.owner(hash), Some(WorkerId(0)));
        directory.withdraw(hash, WorkerId(0));
        assert_eq!(directory.owner(hash), None);
    }

    #[test]
    fn a_full_bucket_refuses_and_two_workers_agree() {
        let directory = Directory::with_capacity(4).unwrap();
        // One bucket only: both choices are the same eight words.
        for n in 0..8 {
            assert_eq!(directory.announce(n << 40, WorkerId(0)), Announced::Ours);
        }
        assert_eq!(directory.announce(9 << 40, WorkerId(0)), Announced::Full);

        let directory = Directory::with_capacity(4096).unwrap();
        let owners = |worker| {
            let directory = &directory;
            move || -> Vec<WorkerId> {
                (0..2000u64)
                    .map(|n| match directory.announce(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), worker) {
                        Announced::Ours => worker,
                        Announced::Theirs(other) => other,
                        Announced::Full => unreachable!("half empty"),
                    })
                    .collect()
            }
        };
        std::thread::scope(|scope| {
            let a = scope.spawn(owners(WorkerId(0)));
            let b = scope.spawn(owners(WorkerId(1)));
            assert_eq!(a.join().unwrap(), b.join().unwrap());
        });
    }
}

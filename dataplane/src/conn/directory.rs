//! Which worker owns a connection, for the workers that do not.
//!
//! A connection belongs to the worker that its first packet came to. Its other packets may come to another one: a NAT
//! reply has other addresses and hashes elsewhere, and on interfaces without receive hashing so may requests. A worker that
//! does not find a packet's connection at home asks here and hands the frame to the owner.
//!
//! The directory is one table for all workers, of words that are written when a connection begins and ends and only read in
//! between: on the established path nobody writes a line that another core reads. A word is 55 bits of the tuple's hash, the
//! owner, and whether that is settled. Beside it stands where in its table the owner has the connection, so that it need not look for it, too; what stands there may be out
//! of date, and the owner compares. A bucket is a cache line of five, and an entry stands in one of two buckets, so there is no chain to follow and no
//! tombstone to leave; the first one counts those that stand in their second, so that nearly always one line says that there is none. Two tuples with the same 55 bits are one in 2⁵⁵ / (connections): the second one's frames would go to a worker that
//! does not know them and treats them as new ones of its own, which is what would have happened here.
//!
//! With one worker there is no directory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::index::Packed;
use super::memory::Mapped;
use super::supply::Supply;
use crate::service::WorkerId;

const ENTRIES: usize = 5;

/// Entries that a tuple's first bucket takes before the second one is looked at. As full as it gets, one tuple in ten stands in its second bucket, where a look for it costs
/// another line; if the emptier one were always taken, it would be one in three.
const PLENTY: usize = 3;

/// How often a worker bids for a tuple before it does without an announcement. A bid fails when a rival's strikes it out or prevails; another one is needed only if
/// that rival's has been withdrawn as well.
const BIDS: usize = 4;

/// The bit of a word that is a bid still. Who looks for the owner takes it for settled: nearly always it is about to be.
const BID: u64 = 1 << 8;

/// Instead of a candidate: there are several, or were.
const SEVERAL: u32 = 1;

#[derive(zerocopy::FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    words: [AtomicU64; ENTRIES],
    /// Where the owners have their connections, as far as that was said.
    candidates: [AtomicU32; ENTRIES],
    /// How many words stand in another bucket whose first one this is, at least: counted before they are written and until they are gone.
    beyond: AtomicU32,
}

/// An entry's word and candidate.
type Entry<'a> = (&'a AtomicU64, &'a AtomicU32);

impl Bucket {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.words.iter().zip(&self.candidates)
    }

    /// Writes a bid to a free place, if there is one.
    fn write(&self, bid: u64) -> Option<&AtomicU64> {
        let mut entries = self.entries();
        let is_taken = |place: &AtomicU64| place.load(Ordering::Relaxed) == 0 && exchange(place, 0, bid);
        let (place, candidate) = entries.find(|(place, _)| is_taken(place))?;
        // It is of what stood here before.
        candidate.store(0, Ordering::Relaxed);
        Some(place)
    }

    /// Words in it.
    fn taken(&self) -> usize {
        self.words.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }

    #[inline(always)]
    fn find(&self, hash: u64) -> Option<(WorkerId, Packed)> {
        self.entries().find_map(|(word, candidate)| {
            // Acquire is not needed: a candidate of another time does no harm.
            let owner = owner_of(word.load(Ordering::Relaxed), hash)?;
            Some((owner, Packed::from_word(candidate.load(Ordering::Relaxed))))
        })
    }
}

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
        // With every table full, two entries in five are taken: so full, a tuple practically always finds room.
        let buckets = tuples.div_ceil(2).next_power_of_two();
        Ok(Self { buckets: Mapped::zeroed(buckets)?, mask: buckets - 1 })
    }

    /// Its memory, which is read all over, for the one who brings it.
    pub fn supply(&self) -> Supply {
        Supply::whole(self.buckets.pages())
    }

    /// Starts fetching the line where a tuple most likely stands.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.buckets.prefetch_many(hash as usize & self.mask);
    }

    /// The worker that a tuple's connection belongs to. `hash` is the same in all workers.
    #[inline]
    pub fn owner(&self, hash: u64) -> Option<WorkerId> {
        self.find(hash).map(|(owner, _)| owner)
    }

    /// The same, and where that worker most likely has it.
    #[inline(always)]
    pub fn find(&self, hash: u64) -> Option<(WorkerId, Packed)> {
        let first = &self.buckets[hash as usize & self.mask];
        first.find(hash).or_else(|| self.find_beyond(first, hash))
    }

    #[inline(never)]
    fn find_beyond(&self, first: &Bucket, hash: u64) -> Option<(WorkerId, Packed)> {
        let [_, second] = self.buckets(hash);
        (first.beyond.load(Ordering::Relaxed) != 0).then(|| second.find(hash))?
    }

    /// Says that a tuple's connection belongs to `worker`.
    ///
    /// Two workers may do so at once for the same tuple, in different places. Each writes a bid, then looks at all places for the other's: it gives way to a settled
    /// word and to a bid that stands before its own, and strikes out one that stands behind. Only a bid that nobody has struck out is settled. Of two
    /// bids the later written one sees the other or what it became, so never are both settled; the writes and the looks must have one order for all, hence
    /// the sequential consistency.
    pub fn announce(&self, hash: u64, worker: WorkerId) -> Announced {
        let (new, bid) = (word(hash, worker), word(hash, worker) | BID);
        for _ in 0..BIDS {
            if let Some(owner) = self.owner(hash) {
                return if owner == worker { Announced::Ours } else { Announced::Theirs(owner) };
            }
            let Some(place) = self.write(hash, bid) else { return Announced::Full };
            if self.prevails(hash, worker, place) && exchange(place, bid, new) {
                return Announced::Ours;
            }
            // Where a rival struck it out, it is gone already.
            self.clear(hash, place, bid);
        }
        Announced::Full
    }

    /// Writes a bid to a free place, if there is one.
    fn write(&self, hash: u64, bid: u64) -> Option<&AtomicU64> {
        let [first, second] = self.buckets(hash);
        let in_first = first.taken();
        let is_second_better = in_first >= PLENTY && second.taken() < in_first;
        let order = if is_second_better { [second, first] } else { [first, second] };
        order.into_iter().find_map(|bucket| self.write_in(bucket, hash, bid))
    }

    fn write_in<'a>(&self, bucket: &'a Bucket, hash: u64, bid: u64) -> Option<&'a AtomicU64> {
        let [first, _] = self.buckets(hash);
        if std::ptr::eq(bucket, first) {
            return bucket.write(bid);
        }
        first.beyond.fetch_add(1, Ordering::SeqCst);
        bucket.write(bid).or_else(|| {
            first.beyond.fetch_sub(1, Ordering::SeqCst);
            None
        })
    }

    /// Takes a word from a place of a tuple's, if it still stands there.
    fn clear(&self, hash: u64, place: &AtomicU64, word: u64) -> bool {
        let [first, _] = self.buckets(hash);
        let is_cleared = exchange(place, word, 0);
        if is_cleared && !first.words.as_ptr_range().contains(&std::ptr::from_ref(place)) {
            first.beyond.fetch_sub(1, Ordering::SeqCst);
        }
        is_cleared
    }

    /// Whether no other worker's word stands against the bid at `place`, or no longer.
    fn prevails(&self, hash: u64, worker: WorkerId, place: &AtomicU64) -> bool {
        self.words(hash).all(|other| {
            let word = other.load(Ordering::SeqCst);
            let is_rival = owner_of(word, hash).is_some_and(|owner| owner != worker);
            // The two buckets may be one: places are told apart by where they are, not by their order in `words`.
            !is_rival
                || word & BID != 0
                    && std::ptr::from_ref(place) < std::ptr::from_ref(other)
                    && self.clear(hash, other, word)
        })
    }

    /// Announces a tuple that nobody has, `worker` neither. Says whether that has come about.
    pub fn announce_new(&self, hash: u64, worker: WorkerId) -> bool {
        // What is not there is not there for `worker` in a moment either: only it could announce it as its own.
        self.owner(hash).is_none() && self.announce(hash, worker) == Announced::Ours
    }

    /// Says that a tuple is `worker`'s from now on, whoever's it was. For what is short-lived and never contended.
    pub fn claim(&self, hash: u64, worker: WorkerId) -> Announced {
        let new = word(hash, worker);
        for word in self.words(hash) {
            let old = word.load(Ordering::Relaxed);
            if owner_of(old, hash).is_some() && exchange(word, old, new) {
                return Announced::Ours;
            }
        }
        self.announce(hash, worker)
    }

    /// Says where a worker has the connection of a tuple that it has announced. Of a tuple of several connections nothing is said: which one's it is, the table
    /// knows.
    pub fn note(&self, hash: u64, worker: WorkerId, candidate: Packed) {
        let ours = word(hash, worker);
        let mut entries = self.entries(hash);
        if let Some((_, noted)) = entries.find(|(word, _)| word.load(Ordering::Relaxed) == ours) {
            let is_first = noted.load(Ordering::Relaxed) == 0;
            noted.store(if is_first { candidate.into_word() } else { SEVERAL }, Ordering::Relaxed);
        }
    }

    /// Takes a tuple's announcement back, if it is `worker`'s.
    pub fn withdraw(&self, hash: u64, worker: WorkerId) {
        let ours = word(hash, worker);
        for word in self.words(hash) {
            if word.load(Ordering::Relaxed) == ours && self.clear(hash, word, ours) {
                return;
            }
        }
    }

    /// The entries that a tuple may be in.
    ///
    /// Who has written a bid and looks here after that sees every bid written before: one in the second bucket was counted before it was written.
    fn entries(&self, hash: u64) -> impl Iterator<Item = Entry<'_>> {
        let [first, second] = self.buckets(hash);
        let beyond = (first.beyond.load(Ordering::SeqCst) != 0).then_some(second);
        first.entries().chain(beyond.into_iter().flat_map(Bucket::entries))
    }

    fn words(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        self.entries(hash).map(|(word, _)| word)
    }

    fn buckets(&self, hash: u64) -> [&Bucket; 2] {
        [hash, hash >> 29].map(|at| &self.buckets[at as usize & self.mask])
    }
}

/// Writes `new` where `old` stands, if it still does.
fn exchange(place: &AtomicU64, old: u64, new: u64) -> bool {
    place.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

fn word(hash: u64, worker: WorkerId) -> u64 {
    tag(hash) | (u64::from(worker.0) + 1)
}

fn tag(hash: u64) -> u64 {
    // The low bits choose the bucket; they are in the tag too, because the second bucket is chosen by others.
    hash << 9
}

/// Whose word it is, if it is one for this tuple.
fn owner_of(word: u64, hash: u64) -> Option<WorkerId> {
    // A word for another tuple differs in higher bits, too; an empty one is of nobody.
    let owner = (word & !BID ^ tag(hash)).wrapping_sub(1);
    (owner < 0xff).then_some(WorkerId(owner as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Direction;

    const RIVALRIES: u64 = 20_000;

    /// Numbers as hashes (the finish of SplitMix64).
    fn scattered(n: u64) -> u64 {
        let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

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
    fn where_a_connection_is_can_be_said_by_its_owner_and_only_once() {
        let directory = Directory::with_capacity(100).unwrap();
        let (hash, nowhere) = (0x1234_5678_9abc_def0, None);
        let candidate = || directory.find(hash).map(|(_, candidate)| candidate.candidate());
        assert_eq!(candidate(), None);
        directory.announce(hash, WorkerId(1));
        assert_eq!(candidate(), Some(nowhere));
        directory.note(hash, WorkerId(0), (9, Direction::Request).into());
        assert_eq!(candidate(), Some(nowhere), "it is another's");
        directory.note(hash, WorkerId(1), (7, Direction::Reply).into());
        assert_eq!(candidate(), Some(Some((7, Direction::Reply))));
        directory.note(hash, WorkerId(1), (8, Direction::Reply).into());
        assert_eq!(candidate(), Some(nowhere), "which of the two, nobody but the owner knows");
        directory.note(hash, WorkerId(1), (8, Direction::Reply).into());
        assert_eq!(candidate(), Some(nowhere));
        directory.withdraw(hash, WorkerId(1));
        directory.announce(hash, WorkerId(0));
        directory.note(hash, WorkerId(0), (1, Direction::Request).into());
        assert_eq!(candidate(), Some(Some((1, Direction::Request))), "of those before nothing is left");
    }

    #[test]
    fn a_full_bucket_refuses_and_two_workers_agree() {
        let directory = Directory::with_capacity(4).unwrap();
        // Two buckets; what differs in its highest bits only has the first one for both choices.
        for n in 0..ENTRIES as u64 {
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

    #[test]
    fn what_it_was_made_for_finds_room() {
        let tuples = 1u64 << 20;
        let directory = Directory::with_capacity(tuples as usize).unwrap();
        assert_eq!(directory.buckets.len() as u64, tuples / 2);
        let hashes = || (1..=tuples).map(scattered);
        let refused = hashes().filter(|hash| directory.announce(*hash, WorkerId(0)) != Announced::Ours);
        assert_eq!(refused.count(), 0);
        let (mut in_first, mut found) = (0, 0);
        for hash in hashes() {
            let [first, _] = directory.buckets(hash);
            in_first += u64::from(
                first.words.iter().any(|word| owner_of(word.load(Ordering::Relaxed), hash).is_some()),
            );
            found += u64::from(directory.owner(hash) == Some(WorkerId(0)));
        }
        assert_eq!(found, tuples);
        assert!(in_first > tuples * 9 / 10, "{in_first} of {tuples} stand where they are looked for first");
    }

    #[test]
    fn of_two_bids_one_is_settled_in_whatever_order_they_are_written_and_looked_at() {
        let hash = 77;
        // What the two do, step by step: the bits of `order` say whose turn is next.
        for order in (0u32..1 << 6).filter(|order| order.count_ones() == 3) {
            for freed_before in 0..6 {
                let directory = Directory::with_capacity(4).unwrap();
                directory.announce(78, WorkerId(2));
                let bids = [0, 1].map(|n| word(hash, WorkerId(n)) | BID);
                let (mut done, mut places, mut prevails) = ([0; 2], [None; 2], [false; 2]);
                let mut settled = vec![];
                for step in 0..6 {
                    if step == freed_before {
                        directory.withdraw(78, WorkerId(2));
                    }
                    let n = (order >> step & 1) as usize;
                    match done[n] {
                        0 => places[n] = directory.write(hash, bids[n]),
                        1 => prevails[n] = directory.prevails(hash, WorkerId(n as u8), places[n].unwrap()),
                        _ if prevails[n] && exchange(places[n].unwrap(), bids[n], bids[n] & !BID) => {
                            settled.push(n);
                        }
                        _ => {
                            directory.clear(hash, places[n].unwrap(), bids[n]);
                        }
                    }
                    done[n] += 1;
                }
                assert_eq!(settled.len(), 1, "order {order:06b}, a place freed before step {freed_before}");
                assert_eq!(directory.owner(hash), Some(WorkerId(settled[0] as u8)));
                directory.withdraw(hash, WorkerId(settled[0] as u8));
                assert_eq!(directory.owner(hash), None, "the other's bid is gone");
            }
        }
    }

    #[test]
    fn two_bids_written_at_once_are_never_both_settled() {
        let directory = Directory::with_capacity(4).unwrap();
        let arrived = AtomicU64::new(0);
        let meet = || {
            let all = (arrived.fetch_add(1, Ordering::SeqCst) | 1) + 1;
            for turn in 1u64.. {
                if arrived.load(Ordering::SeqCst) >= all {
                    break;
                }
                // Both are to leave in the same instant, but may have one core only.
                if turn % 4096 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        let rival = |worker: u8| {
            let (directory, meet) = (&directory, &meet);
            move || -> Vec<bool> {
                let settle = |n: u64| {
                    let hash = scattered(n);
                    let new = word(hash, WorkerId(worker));
                    // Who stands in the second bucket changes, and which one comes before the other.
                    let bucket = directory.buckets(hash)[(n + u64::from(worker)) as usize % 2];
                    meet();
                    let place = directory.write_in(bucket, hash, new | BID).unwrap();
                    let is_settled =
                        directory.prevails(hash, WorkerId(worker), place) && exchange(place, new | BID, new);
                    meet();
                    let _is_gone =
                        directory.clear(hash, place, new) || directory.clear(hash, place, new | BID);
                    is_settled
                };
                (0..RIVALRIES).map(settle).collect()
            }
        };
        let (a, b) = std::thread::scope(|scope| {
            let (a, b) = (scope.spawn(rival(0)), scope.spawn(rival(1)));
            (a.join().unwrap(), b.join().unwrap())
        });
        let both = a.iter().zip(&b).filter(|settled| *settled == (&true, &true)).count();
        let neither = a.iter().zip(&b).filter(|settled| *settled == (&false, &false)).count();
        assert_eq!((both, neither), (0, 0));
        assert!(directory.buckets.iter().all(|bucket| bucket.beyond.load(Ordering::SeqCst) == 0));
    }
}

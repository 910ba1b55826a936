//! What became of the first fragment of a datagram, for the others: they have no ports to find a connection by.
//!
//! A datagram's fragments share addresses, protocol and an id. When the first one is forwarded its flow is remembered under these, and the later ones
//! go the same way, each as it comes: nothing is put together. Which were sent is remembered too, so that none overlaps another ([`parts`](super::parts)).
//! The table is small, fixed and forgetful: a datagram's fragments follow each other within milliseconds, and an entry that is
//! displaced costs one datagram.
//!
//! A datagram that is whole is forgotten at once, as by the kernel: what has its id after that is of another one, whose sender has come round.

use super::parts::{Kind, Parts};
use super::{ConnId, Direction};
use crate::packet::parse::Fragment;
use crate::packet::{Address, Meta, Tuple};
use crate::service::{Tick, WorkerId};
use crate::stats::Reason;

/// Milliseconds an entry counts: the kernel's own patience (`net.ipv4.ipfrag_time`, RFC 8200 §4.5 has 60 s). Longer, and an id may
/// come round again.
pub const PATIENCE: u32 = 30_000;

/// Entries: 8192 datagrams under way at once. Whole ones are gone within milliseconds; of those that stay incomplete some 270 a second fit before one
/// displaces another that may still be needed.
const SETS: usize = 2048;
const WAYS: usize = 4;

/// Where the first fragment of a datagram went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<A> {
    /// Out, by a flow, as on the wire; and the connection it was of, if it was of one. Another datagram's may have taken that one's place meanwhile, where each is scheduled by itself.
    Out(Tuple<A>, Option<(ConnId, Direction)>),
    /// To another worker. Who has handed the first one over need not wait until that says so, and the parts stay in order.
    To(WorkerId),
}

#[derive(Clone, Copy)]
struct Entry<A> {
    /// Addresses, protocol and id, as a tuple whose ports are the id.
    key: Tuple<A>,
    way: Way<A>,
    /// Which of its fragments were sent.
    parts: Parts,
    since: Tick,
    used: bool,
}

impl<A: Copy + Eq> Entry<A> {
    fn counts(&self, now: Tick) -> bool {
        self.used && now.since(self.since) < PATIENCE
    }
}

/// The table.
pub struct Fragments<A> {
    sets: Box<[[Entry<A>; WAYS]]>,
}

impl<A: Address> Default for Fragments<A> {
    fn default() -> Self {
        let none = Entry {
            key: Tuple::default(),
            way: Way::Out(Tuple::default(), None),
            parts: Parts::default(),
            since: Tick(0),
            used: false,
        };
        Self { sets: vec![[none; WAYS]; SETS].into() }
    }
}

impl<A: Address> Fragments<A> {
    /// The key of a fragment's datagram, for the methods below and the directory of owners. It is no flow's tuple, and no
    /// [template](super::template)'s: of TCP, UDP, SCTP and their complements none is another with this bit changed.
    pub fn key(meta: &Meta<A>, part: &Fragment) -> Tuple<A> {
        Tuple {
            source: meta.tuple.source,
            destination: meta.tuple.destination,
            source_port: (part.id >> 16) as u16,
            destination_port: part.id as u16,
            protocol: meta.tuple.protocol ^ 0x40,
        }
    }

    /// The way of a fragment's datagram, if the first one has been seen. `None` for one that begins a datagram.
    ///
    /// # Errors
    /// Says why the fragment must not be sent.
    pub fn way(
        &mut self,
        key: &Tuple<A>,
        hash: u64,
        part: &Fragment,
        now: Tick,
    ) -> Result<Option<Way<A>>, Reason> {
        let Some(entry) = self.find(key, hash, now) else { return Ok(None) };
        match entry.parts.kind(part) {
            Kind::New => Ok(Some(entry.way)),
            Kind::Duplicate => Err(Reason::FragmentDuplicate),
            Kind::Scattered => Err(Reason::FragmentScattered),
            Kind::Overlap => {
                entry.parts.refuse();
                Err(Reason::FragmentOverlap)
            }
        }
    }

    /// Remembers where a datagram goes, whose first fragment was sent. Gives the key that was displaced, if one was, also one whose time is over: it is announced still.
    pub fn remember(
        &mut self,
        key: Tuple<A>,
        hash: u64,
        way: Way<A>,
        first: &Fragment,
        now: Tick,
    ) -> Option<Tuple<A>> {
        let set = &mut self.sets[hash as usize % SETS];
        let own = set.iter().position(|e| e.used && e.key == key);
        let free = || set.iter().position(|e| !e.counts(now));
        let oldest =
            || set.iter().enumerate().max_by_key(|(_, e)| now.since(e.since)).map_or(0, |(at, _)| at);
        let at = own.or_else(free).unwrap_or_else(oldest);
        let mut parts = Parts::default();
        parts.add(first);
        let old = std::mem::replace(&mut set[at], Entry { key, way, parts, since: now, used: true });
        (old.used && old.key != key).then_some(old.key)
    }

    /// Notes that a later fragment was sent. Says whether its datagram is whole now, and over.
    pub fn sent(&mut self, key: &Tuple<A>, hash: u64, part: &Fragment, now: Tick) -> bool {
        let Some(entry) = self.find(key, hash, now) else { return false };
        entry.parts.add(part);
        entry.used = !entry.parts.is_whole();
        !entry.used
    }

    fn find(&mut self, key: &Tuple<A>, hash: u64, now: Tick) -> Option<&mut Entry<A>> {
        let set = &mut self.sets[hash as usize % SETS];
        set.iter_mut().find(|e| e.key == *key && e.counts(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::V4;

    const HASH: u64 = 7;

    fn key(id: u16) -> Tuple<V4> {
        Tuple { source: V4(1), destination: V4(2), source_port: 0, destination_port: id, protocol: 17 ^ 0x40 }
    }

    fn by(port: u16) -> Way<V4> {
        let flow = Tuple {
            source: V4(1),
            destination: V4(2),
            source_port: port,
            destination_port: 53,
            protocol: 17,
        };
        Way::Out(flow, None)
    }

    fn part(offset: u16, more: bool) -> Fragment {
        Fragment { id: 1, offset, length: 80, more }
    }

    #[test]
    fn an_id_that_comes_round_begins_another_datagram() {
        let mut fragments = Fragments::default();
        let (first, last, now) = (part(0, true), part(10, false), Tick(u32::MAX - 500));
        for port in [1000, 2000] {
            assert_eq!(fragments.way(&key(1), HASH, &first, now), Ok(None));
            assert_eq!(fragments.remember(key(1), HASH, by(port), &first, now), None);
            assert_eq!(fragments.way(&key(1), HASH, &first, now), Err(Reason::FragmentDuplicate));
            assert_eq!(fragments.way(&key(1), HASH, &last, now), Ok(Some(by(port))));
            assert!(fragments.sent(&key(1), HASH, &last, now));
            let ahead = fragments.way(&key(1), HASH, &last, now);
            assert_eq!(ahead, Ok(None), "of another one, whose first is still to come");
        }
    }

    #[test]
    fn an_overlap_ends_a_datagram_until_it_is_forgotten() {
        let mut fragments = Fragments::default();
        let (first, overlap, last, now) = (part(0, true), part(9, true), part(10, false), Tick(0));
        fragments.remember(key(1), HASH, by(1000), &first, now);
        for part in [overlap, last, first] {
            let late = now.plus(PATIENCE - 1);
            assert_eq!(fragments.way(&key(1), HASH, &part, late), Err(Reason::FragmentOverlap));
        }
        assert_eq!(fragments.way(&key(1), HASH, &first, now.plus(PATIENCE)), Ok(None));
    }

    #[test]
    fn a_full_set_displaces_the_oldest_unless_one_is_over() {
        let mut fragments = Fragments::default();
        for id in 0..WAYS as u16 {
            assert_eq!(fragments.remember(key(id), HASH, by(id), &part(0, true), Tick(id.into())), None);
        }
        let now = Tick(100);
        assert_eq!(fragments.remember(key(8), HASH, by(8), &part(0, true), now), Some(key(0)));
        assert!(fragments.sent(&key(2), HASH, &part(10, false), now));
        assert_eq!(fragments.remember(key(9), HASH, by(9), &part(0, true), now), None, "where one was whole");
        assert_eq!(fragments.way(&key(1), HASH, &part(10, true), now), Ok(Some(by(1))));
        assert_eq!(fragments.way(&key(8), HASH, &part(10, true), now), Ok(Some(by(8))));
    }
}

//! What is done about a burst's packets before their turn comes, so that what they need lies in the cache by then.
//!
//! ```text
//!   all: parse, hash, ask for the index lines ─▶ all: ask for the entries ─▶ each: decide
//! ```
//!
//! A line from memory takes as long as some ten packets take to be decided about. So those of all packets are under way at once, and while they come others
//! are asked for; with ten million connections most are on pages that the processor has to look up as well. First all are fetched into the second cache, because the first can wait for some
//! twenty only; then each into the first, some packets before it is read, because behind a kernel that copies frames a core forgets most that it was asked for into the second.

use std::cell::Cell;

use arrayvec::ArrayVec;

use super::family::Family;
use crate::conn::directory::Directory;
use crate::conn::index::Packed;
use crate::conn::memory::{SOON, prefetch};
use crate::conn::table::Likely;
use crate::packet::parse::NotOurs;
use crate::packet::plain::{HeaderV4, HeaderV6};
use crate::packet::{Meta, Packet, Parsed, Plain, V4, V6, parse};
use crate::port::BURST;

/// What a worker knows of a frame that it hands over, if that is a plain IPv4 packet: where its owner has the connection, as the directory says, or else the
/// hash of its tuple. So the owner need neither read nor hash it again, nor look for it, which is most of what was done twice.
///
/// A hash is of all workers alike. Where the connection is may be out of date, or no place at all: the owner compares, and looks for it if it must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known(u64);

impl Known {
    /// What is known of a packet whose owner has its connection at a candidate.
    #[inline]
    pub fn of(glance: &Glance, candidate: Packed) -> Self {
        match (glance.kind, candidate.candidate()) {
            // One hash in 2³² looks like a candidate, and is a wrong one then.
            (Kind::PlainV4, None) => Self(glance.hash),
            (Kind::PlainV4, Some(_)) => Self(candidate.into_word().into()),
            _ => Self::default(),
        }
    }

    /// The candidate, if it is one.
    #[inline]
    fn candidate(self) -> Option<Packed> {
        u32::try_from(self.0).ok().map(Packed::from_word)
    }

    /// As a word; 0 for nothing.
    #[inline]
    pub fn into_word(self) -> u64 {
        self.0
    }

    /// From the [word](Self::into_word).
    #[inline]
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// How many packets before its own, or behind it, a line is asked for that would be forgotten with those of a whole burst: fewer than a core waits for.
pub const AHEAD: usize = 12;

/// What is known of a packet of a burst before anything is decided.
#[derive(Clone, Copy)]
pub struct Glance {
    /// The hash of its tuple, except of [`Kind::FoundV4`].
    pub hash: u64,
    /// Where that most likely leads to.
    pub likely: Likely,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain one of IPv4 that changes no connection's state.
    PlainV4,
    /// The same, whose connection another worker has found. It was not hashed here.
    FoundV4,
    /// A plain one of IPv6.
    PlainV6,
    /// Another one of IPv4, and its place among those.
    V4(u8),
    /// Another one of IPv6.
    V6(u8),
    /// None for the director.
    NotOurs(NotOurs),
}

/// A director's families.
type Families<'a> = (&'a Family<V4>, &'a Family<V6>);

/// The packets of a burst that were looked at.
pub struct Seen {
    /// Each, and once their entries are asked for, as many of none as there must be to look [soon](SOON) ahead from the last one.
    pub glances: ArrayVec<Glance, { BURST + SOON }>,
    others: Others,
    /// The hash of plain packet n of IPv4 stands at n + [`AHEAD`]. So a window that begins at n has first the hash of the packet that many before, whose line is
    /// asked for again now. What bursts before have left is asked for in vain, no more.
    hashes: [u64; AHEAD + BURST],
    /// Whether the index must be asked about any.
    has_hashes: bool,
}

/// What is known of packets that are not plain, or change a state.
#[derive(Default)]
struct Others {
    /// Those of [`Kind::V4`].
    v4: ArrayVec<Meta<V4>, BURST>,
    /// Those of [`Kind::V6`].
    v6: ArrayVec<Meta<V6>, BURST>,
}

impl Others {
    fn keep_v4(&mut self, meta: Meta<V4>) -> Kind {
        self.v4.push(meta);
        Kind::V4(self.v4.len() as u8 - 1)
    }

    fn keep_v6(&mut self, meta: Meta<V6>) -> Kind {
        self.v6.push(meta);
        Kind::V6(self.v6.len() as u8 - 1)
    }
}

impl Glance {
    const NONE: Self = Self { hash: 0, likely: Likely::NONE, kind: Kind::NotOurs(NotOurs::Pass) };

    fn hashed(kind: Kind, hash: u64) -> Self {
        Self { hash, likely: Likely::NONE, kind }
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            glances: ArrayVec::new(),
            others: Others::default(),
            hashes: [0; AHEAD + BURST],
            has_hashes: false,
        }
    }
}

impl Seen {
    /// Forgets a burst.
    pub fn clear(&mut self) {
        self.glances.clear();
        self.others.v4.clear();
        self.others.v6.clear();
        self.has_hashes = false;
    }

    /// One of [`Kind::V4`].
    pub fn meta_v4(&self, place: u8) -> Meta<V4> {
        self.others.v4[usize::from(place)]
    }

    /// One of [`Kind::V6`].
    pub fn meta_v6(&self, place: u8) -> Meta<V6> {
        self.others.v6[usize::from(place)]
    }

    /// Looks at a burst's packets and asks for the index lines of all. Of each something may be `known`, if it was handed over.
    #[inline]
    pub fn look(&mut self, families: Families, packets: &mut [Packet], known: &[Known]) {
        if !known.is_empty() {
            return self.recall(families, packets, known);
        }
        self.has_hashes = true;
        let conns = &families.0.conns;
        loop {
            let at = self.glances.len();
            let hashes = Cell::from_mut(&mut self.hashes[..]).as_slice_of_cells();
            let rest = packets[at..].iter().zip(hashes[at..].array_windows::<{ AHEAD + 1 }>());
            self.glances.extend(rest.map_while(|(packet, [before, .., hash])| {
                let plain = Plain::<HeaderV4>::midstream(packet)?;
                hash.set(conns.ask_for_many(plain.words()));
                // Of a packet before, which was not so long ago that its line would be forgotten again.
                conns.prefetch_index(before.get());
                Some(Glance::hashed(Kind::PlainV4, hash.get()))
            }));
            match packets.get_mut(self.glances.len()) {
                Some(other) => self.look_closely(families, other),
                None => break,
            }
        }
        let last = AHEAD.max(packets.len())..AHEAD + packets.len();
        self.hashes[last].iter().for_each(|hash| conns.prefetch_index(*hash));
    }

    /// Looks at packets of which another worker may know something.
    #[inline(never)]
    fn recall(&mut self, families: Families, packets: &mut [Packet], known: &[Known]) {
        debug_assert_eq!(packets.len(), known.len());
        packets.iter().take(AHEAD).for_each(|packet| prefetch(packet.first_line()));
        for (n, known) in known.iter().enumerate() {
            let Some(candidate) = known.candidate() else {
                self.has_hashes = true;
                families.0.conns.prefetch_index(known.0);
                self.glances.push(Glance::hashed(Kind::PlainV4, known.0));
                continue;
            };
            match families.0.conns.prefetch_candidate(candidate) {
                Some(likely) => self.glances.push(Glance { hash: 0, likely, kind: Kind::FoundV4 }),
                None => {
                    packets.get(n + AHEAD).into_iter().for_each(|packet| prefetch(packet.first_line()));
                    self.has_hashes = true;
                    self.look_closely(families, &mut packets[n]);
                }
            }
        }
    }

    /// Looks at a packet of which nothing is known.
    // A call of its own: together with the plain ones', the compiler would keep more at hand than there are registers.
    #[inline(never)]
    fn look_closely(&mut self, (v4, v6): Families, packet: &mut Packet) {
        let (kind, hash) = if let Some(plain) = Plain::<HeaderV4>::of(packet) {
            let is_midstream = plain.is_midstream();
            let kind = if is_midstream { Kind::PlainV4 } else { self.others.keep_v4(plain.meta()) };
            (kind, v4.conns.ask(plain.words()))
        } else if let Some(plain) = Plain::<HeaderV6>::midstream(packet) {
            (Kind::PlainV6, v6.conns.ask(plain.words()))
        } else {
            match parse(packet.data()) {
                Ok(Parsed::V4(meta)) => (self.others.keep_v4(meta), v4.conns.ask(meta.tuple.words())),
                Ok(Parsed::V6(meta)) => (self.others.keep_v6(meta), v6.conns.ask(meta.tuple.words())),
                Err(why) => (Kind::NotOurs(why), 0),
            }
        };
        self.glances.push(Glance::hashed(kind, hash));
    }

    /// Asks for the entries of the packets, whose index lines have come by now, and for the first of them once more.
    #[inline(never)]
    pub fn fetch(&mut self, (v4, v6): Families, owners: Option<&Directory>) {
        let asked = if self.has_hashes { &mut self.glances[..] } else { &mut [] };
        for glance in asked {
            glance.likely = match glance.kind {
                Kind::PlainV4 | Kind::V4(_) => v4.fetch(glance.hash, owners),
                Kind::PlainV6 | Kind::V6(_) => v6.fetch(glance.hash, owners),
                Kind::FoundV4 | Kind::NotOurs(_) => continue,
            }
        }
        // Those before which there are not so many packets.
        for first in self.glances.iter().take(SOON) {
            match first.kind {
                Kind::PlainV4 | Kind::FoundV4 | Kind::V4(_) => v4.conns.prefetch_near(&first.likely),
                Kind::PlainV6 | Kind::V6(_) => v6.conns.prefetch_near(&first.likely),
                Kind::NotOurs(_) => {}
            }
        }
        self.glances.extend([Glance::NONE; SOON]);
    }
}

//! What is done about a burst's packets before their turn comes, so that what they need lies in the cache by then.
//!
//! ```text
//!   group n + 2: parse, hash, ask for the index lines   group n + 1: ask for the entries   group n: decide
//! ```
//!
//! A line from memory takes as long as two or three packets take to be decided about, so each is asked for well ahead, and while it comes others
//! are decided about. The lines of a group are asked for in one breath, because a processor looks up several pages at once only if their addresses are near each other
//! in the program: with ten million connections, most lines are on a page that it has to look up.

use arrayvec::ArrayVec;

use super::Director;
use crate::conn::table::Likely;
use crate::packet::parse::NotOurs;
use crate::packet::plain::{HeaderV4, HeaderV6};
use crate::packet::{Meta, Packet, Parsed, Plain, V4, V6, parse};
use crate::port::BURST;

/// Packets that are asked for together. Their index lines and the entries of the group before are under way at once, which are sixteen lines;
/// a core can wait for some twenty, and stalls at one more.
pub const GROUP: usize = 8;

/// What is known of a packet of a burst before anything is decided.
pub struct Glance {
    /// The hash of its tuple.
    pub hash: u64,
    /// Where that most likely leads to.
    pub likely: Likely,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plain one of IPv4.
    PlainV4,
    /// A plain one of IPv6.
    PlainV6,
    /// Another one of IPv4, and its place among those.
    V4(u8),
    /// Another one of IPv6.
    V6(u8),
    /// None for the director.
    NotOurs(NotOurs),
}

/// The packets of a burst that were looked at.
#[derive(Default)]
pub struct Seen {
    /// Each.
    pub glances: ArrayVec<Glance, BURST>,
    /// Those of IPv4 that are not plain.
    pub v4: ArrayVec<Meta<V4>, BURST>,
    /// Those of IPv6 that are not.
    pub v6: ArrayVec<Meta<V6>, BURST>,
    /// Those whose entries were asked for.
    fetched: usize,
}

impl Seen {
    /// Looks at the burst's packets up to `end`, and asks for their index lines.
    #[inline]
    pub fn look(&mut self, director: &Director, packets: &mut [Packet], end: usize) {
        let first = self.glances.len();
        let end = end.min(packets.len()).min(BURST);
        let Some(group) = packets.get_mut(first..end) else { return };
        for packet in group {
            let (kind, hash) = match Plain::<HeaderV4>::of(packet) {
                Some(plain) => (Kind::PlainV4, director.v4.conns.hash(&plain.tuple())),
                None => self.look_closely(director, packet),
            };
            self.glances.push(Glance { hash, likely: Likely::default(), kind });
        }
        for glance in &self.glances[first..] {
            match glance.kind {
                Kind::PlainV4 | Kind::V4(_) => director.v4.conns.prefetch_index(glance.hash),
                Kind::PlainV6 | Kind::V6(_) => director.v6.conns.prefetch_index(glance.hash),
                Kind::NotOurs(_) => {}
            }
        }
    }

    // A call of its own: together with the plain ones', the compiler would keep more at hand than there are registers.
    #[inline(never)]
    fn look_closely(&mut self, director: &Director, packet: &mut Packet) -> (Kind, u64) {
        if let Some(plain) = Plain::<HeaderV6>::of(packet) {
            return (Kind::PlainV6, director.v6.conns.hash(&plain.tuple()));
        }
        match parse(packet.data()) {
            Ok(Parsed::V4(meta)) => {
                self.v4.push(meta);
                (Kind::V4(self.v4.len() as u8 - 1), director.v4.conns.hash(&meta.tuple))
            }
            Ok(Parsed::V6(meta)) => {
                self.v6.push(meta);
                (Kind::V6(self.v6.len() as u8 - 1), director.v6.conns.hash(&meta.tuple))
            }
            Err(why) => (Kind::NotOurs(why), 0),
        }
    }

    /// Asks for the entries of the packets up to `end`, whose index lines have come by now.
    #[inline]
    pub fn fetch(&mut self, director: &Director, end: usize) {
        let owners = director.shared.owners();
        let end = end.min(self.glances.len());
        for glance in &mut self.glances[self.fetched.min(end)..end] {
            glance.likely = match glance.kind {
                Kind::PlainV4 | Kind::V4(_) => director.v4.fetch(glance.hash, owners),
                Kind::PlainV6 | Kind::V6(_) => director.v6.fetch(glance.hash, owners),
                Kind::NotOurs(_) => continue,
            }
        }
        self.fetched = end;
    }
}

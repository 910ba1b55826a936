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
use super::family::Looked;
use crate::packet::parse::{NotOurs, plain};
use crate::packet::{Meta, Packet, Parsed, V4, V6, parse};
use crate::port::BURST;

/// Packets that are asked for together. Their index lines and the entries of the group before are under way at once, which are sixteen lines;
/// a core can wait for some twenty, and stalls at one more.
pub const GROUP: usize = 8;

/// Which family a packet is of, and its place among those of its family.
#[derive(Clone, Copy)]
pub enum Kind {
    /// IPv4.
    V4(u8),
    /// IPv6.
    V6(u8),
}

/// The packets of a burst that were looked at.
#[derive(Default)]
pub struct Seen {
    /// What each is.
    pub kinds: ArrayVec<Result<Kind, NotOurs>, BURST>,
    /// Those of IPv4.
    pub v4: ArrayVec<Looked<V4>, BURST>,
    /// Those of IPv6.
    pub v6: ArrayVec<Looked<V6>, BURST>,
    /// Of each family, those whose index lines were asked for before the last look, and have come by now.
    ready: [usize; 2],
    /// Of each family, those whose entries were asked for.
    fetched: [usize; 2],
}

impl Seen {
    /// Looks at the burst's packets up to `end`, and asks for their index lines.
    #[inline]
    pub fn look(&mut self, director: &Director, packets: &mut [Packet], end: usize) {
        let (v4, v6) = (self.v4.len(), self.v6.len());
        self.ready = [v4, v6];
        let end = end.min(packets.len()).min(BURST);
        let Some(group) = packets.get_mut(self.kinds.len()..end) else { return };
        for packet in group {
            let kind = match plain(packet.data()) {
                Some(meta) => Ok(self.v4(director, meta)),
                None => self.look_closely(director, packet),
            };
            self.kinds.push(kind);
        }
        self.v4[v4..].iter().for_each(|looked| director.v4.aim(looked));
        self.v6[v6..].iter().for_each(|looked| director.v6.aim(looked));
    }

    #[inline]
    fn v4(&mut self, director: &Director, meta: Meta<V4>) -> Kind {
        self.v4.push(director.v4.look(meta));
        Kind::V4(self.v4.len() as u8 - 1)
    }

    // A call of its own: together with the plain ones', the compiler would keep more at hand than there are registers.
    #[inline(never)]
    fn look_closely(&mut self, director: &Director, packet: &mut Packet) -> Result<Kind, NotOurs> {
        Ok(match parse(packet.data())? {
            Parsed::V4(meta) => self.v4(director, meta),
            Parsed::V6(meta) => {
                self.v6.push(director.v6.look(meta));
                Kind::V6(self.v6.len() as u8 - 1)
            }
        })
    }

    /// Asks for the entries of the packets that were looked at before the last look.
    #[inline]
    pub fn fetch(&mut self, director: &Director) {
        let owners = director.shared.owners();
        let [v4, v6] = self.fetched;
        self.v4[v4..self.ready[0]].iter_mut().for_each(|looked| director.v4.fetch(looked, owners));
        self.v6[v6..self.ready[1]].iter_mut().for_each(|looked| director.v6.fetch(looked, owners));
        self.fetched = self.ready;
    }
}

//! Expiry: a coarse wheel of connections, in slots of a quarter of a second.
//!
//! A packet only writes its connection's `last_seen`; it never moves a timer. A connection sits in the slot of the moment at which it
//! would expire if nothing more came. When the wheel reaches the slot, the connection either has expired or is put where
//! it would expire now. So a packet costs one store, and a connection costs one visit per timeout of its life.
//!
//! The lists run through the connections themselves ([`Links`]): nothing is allocated.

use zerocopy::FromZeros;

use crate::service::Tick;

/// Slots: 1024 s of them. The longest default timeout, 900 s, fits without a needless visit; a persistence template of a day is
/// visited every 17 minutes.
const SLOTS: usize = 4096;

/// Milliseconds in a slot. A connection is visited at most two slots after its time; the kernel lets one outlive its timeout by up to
/// an eighth, which is longer from 4 s on. Finer slots would cost a longer walk after a pause.
const SLOT: u32 = 250;

/// No neighbour. Slot numbers are stored plus one, so that zeroed memory is a valid, unlinked entry.
const END: u32 = 0;

/// With this bit the neighbour before is a head: that of a slot, or of the list of those that are due.
const HEAD: u32 = 1 << 31;

/// The number of the head of those that are due, behind the slots'.
const DUE: usize = SLOTS;

/// A connection's place in the wheel. One that has no neighbour before it is not in the wheel.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
pub struct Links {
    next: u32,
    prev: u32,
}

/// Access to the links of the slab's entries.
pub trait Linked {
    /// The links of an entry.
    fn links(&mut self, slot: u32) -> &mut Links;
}

/// The wheel.
pub struct Wheel {
    /// Of each slot, and of the one under work, whose entries are due.
    heads: Box<[u32; SLOTS + 1]>,
    /// Everything before this moment has been visited.
    reached: Tick,
    /// Slots visited so far; the wheel's hand.
    hand: u32,
}

impl Wheel {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Tick) -> Self {
        Self { heads: Box::new([END; SLOTS + 1]), reached: now, hand: 0 }
    }

    /// Puts an entry where it will be visited when `at` has passed, or at the horizon if that is nearer.
    pub fn insert(&mut self, entries: &mut impl Linked, slot: u32, at: Tick) {
        let ahead = at.since(self.reached) / SLOT + 1;
        let place = self.head(ahead.clamp(1, SLOTS as u32 - 1));
        let next = self.heads[place];
        *entries.links(slot) = Links { next, prev: HEAD | place as u32 };
        if next != END {
            entries.links(next - 1).prev = slot + 1;
        }
        self.heads[place] = slot + 1;
    }

    /// Takes an entry out, if it is in.
    pub fn remove(&mut self, entries: &mut impl Linked, slot: u32) {
        let Links { next, prev } = std::mem::take(entries.links(slot));
        if prev == END {
            return;
        }
        if next != END {
            entries.links(next - 1).prev = prev;
        }
        match prev & HEAD {
            0 => entries.links(prev - 1).next = next,
            _ => self.heads[(prev & !HEAD) as usize] = next,
        }
    }

    /// The next entry to visit, taken out of the wheel: its moment, as it was inserted, has passed. `None` when there
    /// is none by `now`.
    pub fn next_due(&mut self, entries: &mut impl Linked, now: Tick) -> Option<u32> {
        while self.heads[DUE] == END {
            if now.since(self.reached) < SLOT || now.is_before(self.reached) {
                return None;
            }
            let place = self.head(0);
            self.heads[DUE] = std::mem::replace(&mut self.heads[place], END);
            if let Some(first) = self.heads[DUE].checked_sub(1) {
                entries.links(first).prev = HEAD | DUE as u32;
            }
            self.reached = self.reached.plus(SLOT);
            self.hand = self.hand.wrapping_add(1);
        }
        let slot = self.heads[DUE] - 1;
        self.remove(entries, slot);
        Some(slot)
    }

    /// The entry that [`next_due`](Self::next_due) gives next, if it is of the same slot.
    pub fn then_due(&self) -> Option<u32> {
        self.heads[DUE].checked_sub(1)
    }

    fn head(&self, ahead: u32) -> usize {
        self.hand.wrapping_add(ahead) as usize % SLOTS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    struct Entries(Vec<Links>);

    impl Linked for Entries {
        fn links(&mut self, slot: u32) -> &mut Links {
            &mut self.0[slot as usize]
        }
    }

    proptest! {
        /// Every entry is visited once, not before its moment unless the horizon is nearer, and at most two slots late.
        #[test]
        fn visits_come_in_time(ops in prop::collection::vec((0u32..40, 0u32..2_000_000, 0u32..5_000), 1..200)) {
            let mut entries = Entries(vec![Links::default(); 40]);
            let mut now = Tick(u32::MAX - 1_000_000);
            let mut wheel = Wheel::new(now);
            let mut model: BTreeMap<u32, (Tick, Tick)> = BTreeMap::new();
            for (slot, ahead, step) in ops {
                if model.remove(&slot).is_some() {
                    wheel.remove(&mut entries, slot);
                } else {
                    let at = now.plus(ahead);
                    wheel.insert(&mut entries, slot, at);
                    model.insert(slot, (at, now));
                }
                now = now.plus(step);
                while let Some(due) = wheel.next_due(&mut entries, now) {
                    let (at, inserted) = model.remove(&due).expect("only what is in the wheel is visited");
                    let horizon = now.since(inserted) >= (SLOTS as u32 - 3) * SLOT;
                    prop_assert!(!now.is_before(at) || horizon);
                }
                for (at, _) in model.values() {
                    prop_assert!(now.is_before(at.plus(2 * SLOT)));
                }
            }
        }
    }
}

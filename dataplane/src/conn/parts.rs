//! Which parts of a datagram have been sent on, so that nothing is sent over them.
//!
//! Parts that overlap show one thing to who looks at the first and another to who puts all together, so such a datagram is given up (RFC 5722; Linux
//! treats IPv4 alike). A part that lies within what was sent is a duplicate, and dropped alone: the same rules as the kernel's
//! (`inet_frag_queue_insert`), which finds out by putting datagrams together. Here only runs are kept: parts that touch are one
//! run, so a datagram whose parts come in order has one at any time, however long it is.

use crate::packet::parse::Fragment;

/// Runs of a datagram at most. With 24, a datagram of 64 KiB in parts of a 1500-byte link, of which there are 46, may come in any order
/// at all: that many parts have 23 runs at most. Of one in smaller parts and no order, some parts are dropped.
const MOST: usize = 24;

/// A run, in units of 8 bytes: that is what parts begin at, so two parts overlap in units if they do in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    begin: u16,
    end: u16,
}

/// The parts of one datagram.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// In order; they neither touch nor overlap.
    runs: [Run; MOST],
    count: u8,
    /// Where the datagram ends, once its last part has been sent.
    end: Option<u16>,
    /// Whether it was given up.
    refused: bool,
}

/// What a part is to those that were sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has nothing in common with them.
    New,
    /// It lies within them.
    Duplicate,
    /// It overlaps with them, or contradicts what they say about the datagram's end; or another one did before.
    Overlap,
    /// It is new, but leaves more gaps than can be kept in mind.
    Scattered,
}

impl Parts {
    /// What a part is.
    pub fn kind(&self, part: &Fragment) -> Kind {
        let new = run(part);
        if self.refused {
            return Kind::Overlap;
        }
        let runs = self.runs();
        let at = runs.partition_point(|run| run.end <= new.begin);
        match runs.get(at) {
            Some(run) if run.begin <= new.begin && new.end <= run.end => return Kind::Duplicate,
            Some(run) if run.begin < new.end => return Kind::Overlap,
            _ => {}
        }
        let contradicts = match self.end {
            Some(end) => new.end > end || !part.more,
            // A last part before another one's end.
            None => !part.more && at < runs.len(),
        };
        let touches =
            runs.get(at).is_some_and(|run| run.begin == new.end) || at > 0 && runs[at - 1].end == new.begin;
        match (contradicts, touches || runs.len() < MOST) {
            (true, _) => Kind::Overlap,
            (false, true) => Kind::New,
            (false, false) => Kind::Scattered,
        }
    }

    /// Notes that a new part was sent.
    pub fn add(&mut self, part: &Fragment) {
        let new = run(part);
        if !part.more {
            self.end = Some(new.end);
        }
        let count = usize::from(self.count);
        let at = self.runs().partition_point(|run| run.end < new.begin);
        // Up to two runs touch it: the one that ends and the one that begins where it does.
        let touching = self.runs[at..count].iter().take_while(|run| run.begin <= new.end).count();
        if touching == 0 {
            if count == MOST {
                return;
            }
            self.runs.copy_within(at..count, at + 1);
            self.runs[at] = new;
            self.count += 1;
        } else {
            let last = self.runs[at + touching - 1];
            let begin = self.runs[at].begin.min(new.begin);
            self.runs[at] = Run { begin, end: last.end.max(new.end) };
            self.runs.copy_within(at + touching..count, at + 1);
            self.count -= (touching - 1) as u8;
        }
    }

    /// Gives the datagram up: no part of it is new any more.
    pub fn refuse(&mut self) {
        self.refused = true;
    }

    /// Whether all parts were sent.
    pub fn is_whole(&self) -> bool {
        matches!((self.runs(), self.end), ([Run { begin: 0, end }], Some(last)) if *end == last)
    }

    fn runs(&self) -> &[Run] {
        &self.runs[..usize::from(self.count)]
    }
}

fn run(part: &Fragment) -> Run {
    Run { begin: part.offset, end: part.offset + part.length.div_ceil(8) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(begin: u16, end: u16, more: bool) -> Fragment {
        Fragment { id: 1, offset: begin, length: (end - begin) * 8, more }
    }

    /// Sends the parts that are new; says what each was.
    fn send(parts: &mut Parts, list: &[Fragment]) -> Vec<Kind> {
        let one = |part: &Fragment| {
            let kind = parts.kind(part);
            match kind {
                Kind::New => parts.add(part),
                Kind::Overlap => parts.refuse(),
                Kind::Duplicate | Kind::Scattered => {}
            }
            kind
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn what_linux_does_with_the_same_parts() {
        use Kind::{Duplicate, New, Overlap};
        let whole = |list: &[(u16, u16, bool)], expected: &[Kind]| {
            let mut parts = Parts::default();
            let list: Vec<_> = list.iter().map(|(begin, end, more)| part(*begin, *end, *more)).collect();
            assert_eq!(send(&mut parts, &list), expected);
            parts.is_whole()
        };
        assert!(whole(&[(0, 50, true), (50, 101, false)], &[New, New]));
        assert!(whole(&[(0, 50, true), (0, 50, true), (50, 101, false)], &[New, Duplicate, New]));
        assert!(whole(
            &[(0, 50, true), (50, 75, true), (51, 52, true), (75, 101, false)],
            &[New, New, Duplicate, New]
        ));
        assert!(!whole(
            &[(0, 50, true), (49, 75, true), (50, 75, true), (75, 101, false)],
            &[New, Overlap, Overlap, Overlap]
        ));
        assert!(whole(
            &[(0, 25, true), (25, 50, true), (50, 75, true), (12, 38, true), (75, 101, false)],
            &[New, New, New, Duplicate, New]
        ));
        assert!(!whole(&[(0, 50, true), (75, 101, false), (50, 87, false)], &[New, New, Overlap]));
        assert!(!whole(&[(0, 50, true), (75, 101, true), (50, 60, false)], &[New, New, Overlap]));
        assert!(!whole(&[(0, 50, true), (60, 75, false), (80, 90, true)], &[New, New, Overlap]));
        assert!(!whole(&[(0, 50, true), (60, 75, false), (50, 55, false)], &[New, New, Overlap]));
    }

    #[test]
    fn a_last_part_need_not_fill_its_unit() {
        let mut parts = Parts::default();
        parts.add(&part(0, 50, true));
        parts.add(&Fragment { id: 1, offset: 50, length: 3, more: false });
        assert!(parts.is_whole());
    }

    #[test]
    fn as_many_gaps_as_there_are_runs_are_kept_and_then_none() {
        let mut parts = Parts::default();
        for n in 0..MOST as u16 {
            assert_eq!(send(&mut parts, &[part(2 * n, 2 * n + 1, true)]), [Kind::New]);
        }
        let next = 2 * MOST as u16;
        assert_eq!(parts.kind(&part(next, next + 1, true)), Kind::Scattered);
        assert_eq!(send(&mut parts, &[part(1, 2, true)]), [Kind::New], "what closes a gap is welcome");
        assert_eq!(send(&mut parts, &[part(next, next + 1, true)]), [Kind::New]);
    }

    /// Cuts a datagram of up to 64 KiB into parts.
    fn partitions(most: usize) -> impl Strategy<Value = Vec<Fragment>> {
        prop::collection::btree_set(1u16..8191, 1..most).prop_map(|cuts| {
            let mut cuts: Vec<u16> = cuts.into_iter().collect();
            cuts.insert(0, 0);
            let last = cuts.len() - 2;
            cuts.windows(2).enumerate().map(|(n, cut)| part(cut[0], cut[1], n != last)).collect()
        })
    }

    proptest! {
        #[test]
        fn any_parts_in_any_order_are_new_once(parts in partitions(47), keys in prop::collection::vec(any::<u32>(), 47)) {
            let mut order: Vec<(u32, Fragment)> = keys.into_iter().zip(parts).collect();
            order.sort_by_key(|(key, _)| *key);
            let order: Vec<Fragment> = order.into_iter().map(|(_, part)| part).collect();
            let mut sent = Parts::default();
            for (n, part) in order.iter().enumerate() {
                prop_assert!(!sent.is_whole());
                prop_assert_eq!(send(&mut sent, &[*part]), [Kind::New]);
                for before in &order[..=n] {
                    prop_assert_eq!(sent.kind(before), Kind::Duplicate);
                }
            }
            prop_assert!(sent.is_whole());
        }

        /// Against one bit a unit.
        #[test]
        fn nothing_is_sent_over_anything(list in prop::collection::vec((0u16..200, 1u16..60, any::<bool>()), 1..60)) {
            let mut parts = Parts::default();
            let mut units = [false; 300];
            for (begin, length, more) in list {
                let part = part(begin, begin + length, more || begin < 100);
                let range = usize::from(begin)..usize::from(begin + length);
                let taken = units[range.clone()].iter().filter(|taken| **taken).count();
                match send(&mut parts, &[part])[0] {
                    Kind::New => {
                        prop_assert_eq!(taken, 0);
                        units[range].fill(true);
                    }
                    Kind::Duplicate => prop_assert_eq!(taken, range.len()),
                    Kind::Scattered => prop_assert_eq!(taken, 0),
                    // A part that contradicts the end overlaps with nothing; the next test knows those.
                    Kind::Overlap => break,
                }
                let edges = units.windows(2).filter(|two| two[0] != two[1]).count() + usize::from(units[0]);
                prop_assert_eq!(usize::from(parts.count), edges / 2);
            }
        }

        #[test]
        fn a_part_that_overlaps_ends_the_datagram(
            parts in partitions(40), at: prop::sample::Index, begin in 0u16..8190, length in 1u16..8190,
        ) {
            let intruder = part(begin, (begin + length).min(8191), true);
            let at = at.index(parts.len() + 1);
            let (before, after) = parts.split_at(at);
            let mut sent = Parts::default();
            prop_assert!(send(&mut sent, before).iter().all(|kind| *kind == Kind::New));
            let in_order = before.last().map_or(0, |last| last.offset + last.length / 8);
            let (kind, rest) = (send(&mut sent, &[intruder])[0], send(&mut sent, after));
            let total = parts.last().map_or(0, |last| last.offset + last.length / 8);
            match kind {
                Kind::Duplicate => prop_assert!(intruder.offset + intruder.length / 8 <= in_order),
                Kind::Overlap => {
                    prop_assert!(begin < in_order || before.len() == parts.len());
                    prop_assert!(rest.iter().all(|kind| *kind == Kind::Overlap));
                }
                Kind::New => {
                    prop_assert!(begin >= in_order);
                    // What it covers cannot be sent any more, unless it is exactly some of the parts.
                    let covers = |part: &Fragment| {
                        part.offset < begin + intruder.length / 8 && begin < part.offset + part.length / 8
                    };
                    let both = after.iter().zip(&rest).any(|(part, kind)| covers(part) && *kind == Kind::New);
                    prop_assert!(!both);
                    prop_assert!(begin + intruder.length / 8 > total || rest.iter().any(|kind| *kind != Kind::New));
                }
                Kind::Scattered => prop_assert!(false, "there are few runs"),
            }
        }
    }
}

//! An answer in a TCP stream that the director has replaced by a longer or shorter one, and what that does to both ends' numbers.
//!
//! ```text
//!   server's numbers     … ──────┤ at ··· old ··· ├────────── …
//!   client's numbers     … ──────┤ ··· new text ··· ├──────── …
//!                     + before                       + after
//! ```
//!
//! Whatever segments the stream is sent in, and sent again in, each byte behind the answer has one place in the client's stream, and the client gets the new text
//! where it has the answer: the last byte of the old one brings all of the rest of the new one. So neither end is ever told that the other has what it has not.
//! (The kernel's `nf_nat_seqadj` keeps two offsets as well, but sends an answer that is repeated as the server has it.)

use super::{ip, sequence};
use crate::packet::checksum::{Change, pseudo_header};
use crate::packet::ftp::Place;
use crate::packet::protocol::TCP;
use crate::packet::{Address, Meta, Packet, put16};

/// A replaced answer.
#[derive(Clone, Copy, Debug)]
pub struct Correction {
    /// The number of its first byte, as the server counts.
    at: u32,
    /// Bytes of it that are replaced; one at least.
    old: u32,
    /// What replaces them; one byte at least.
    text: Place,
    /// What the client's numbers are more by, up to here.
    before: u32,
}

impl Correction {
    /// Replaces `old` bytes from number `at` on. `before` is what earlier corrections add to numbers.
    pub fn new(at: u32, old: usize, text: Place, before: u32) -> Self {
        Self { at, old: old as u32, text, before }
    }

    /// The number of the first byte replaced, as the server counts.
    pub fn at(&self) -> u32 {
        self.at
    }

    /// What the client's numbers are more by, behind it.
    pub fn after(&self) -> u32 {
        self.before.wrapping_add(self.length()).wrapping_sub(self.old)
    }

    /// A number of the server's stream, as the client counts.
    pub fn to_client(&self, number: u32) -> u32 {
        match self.into(number) {
            past if past < 0 => number.wrapping_add(self.before),
            past if past < self.old as i32 => self.begins().wrapping_add(self.reaches(past as u32)),
            _ => number.wrapping_add(self.after()),
        }
    }

    /// A number of the server's stream, as the server counts, from what the client says.
    pub fn to_server(&self, number: u32) -> u32 {
        match number.wrapping_sub(self.begins()) as i32 {
            past if past < 0 => number.wrapping_sub(self.before),
            past if past < self.length() as i32 => self.at.wrapping_add((past as u32).min(self.old - 1)),
            _ => number.wrapping_sub(self.after()),
        }
    }

    /// Whether the client has all of it that acknowledges this.
    pub fn is_settled_by(&self, acknowledged: u32) -> bool {
        acknowledged.wrapping_sub(self.begins().wrapping_add(self.length())) as i32 >= 0
    }

    /// Bytes that a segment of the server's, `length` bytes from `number` on, becomes longer by; less than 0 if it becomes shorter.
    pub fn growth(&self, number: u32, length: usize) -> i32 {
        self.overlap(number, length).map_or(0, |part| part.text.len() as i32 - (part.to - part.from) as i32)
    }

    /// Whether a segment has any of it.
    pub fn concerns(&self, number: u32, length: usize) -> bool {
        self.overlap(number, length).is_some()
    }

    fn begins(&self) -> u32 {
        self.at.wrapping_add(self.before)
    }

    fn length(&self) -> u32 {
        self.text.len() as u32
    }

    /// How far a number is behind its first byte.
    fn into(&self, number: u32) -> i32 {
        number.wrapping_sub(self.at) as i32
    }

    /// Bytes of the new text that so many bytes of the old one bring, the last one apart.
    fn reaches(&self, past: u32) -> u32 {
        past.min(self.length() - 1)
    }

    /// What of a segment's data is replaced, and by what.
    fn overlap(&self, number: u32, length: usize) -> Option<Part<'_>> {
        let (begin, old) = (self.into(number), self.old as i32);
        let end = begin.checked_add(length as i32)?;
        if length == 0 || begin >= old || end <= 0 {
            return None;
        }
        let first = self.reaches(begin.max(0) as u32) as usize;
        let last = if end >= old { self.text.len() } else { self.reaches(end as u32) as usize };
        Some(Part {
            from: (-begin).max(0) as usize,
            to: (old - begin).min(length as i32) as usize,
            text: &self.text.as_bytes()[first..last],
        })
    }
}

/// Bytes of a segment's data, and what replaces them.
struct Part<'a> {
    from: usize,
    to: usize,
    text: &'a [u8],
}

/// Makes a segment of the server's one of the client's stream. `false` when its frame has no room; nothing has changed then. The segment's checksum must be right
/// if the correction [concerns](Correction::concerns) it.
pub fn rewrite<A: Address>(packet: &mut Packet, meta: &mut Meta<A>, correction: &Correction) -> bool {
    let number = sequence::number(packet, meta);
    let (header, length) = sequence::lengths(packet, meta);
    let moved = correction.to_client(number).wrapping_sub(number);
    if let Some(part) = correction.overlap(number, length)
        && !replace(packet, meta, header, &part)
    {
        return false;
    }
    sequence::advance(packet, meta, moved);
    true
}

/// Puts other bytes into a segment behind its header. `false` when there is no room.
fn replace<A: Address>(packet: &mut Packet, meta: &mut Meta<A>, header: usize, part: &Part) -> bool {
    let data = packet.start() + usize::from(meta.transport) + header;
    let (from, to, end) = (data + part.from, data + part.to, packet.start() + usize::from(meta.end));
    let new_end = end - (to - from) + part.text.len();
    if new_end > packet.chunk.len() {
        return false;
    }
    packet.chunk.copy_within(to..end, from + part.text.len());
    packet.chunk[from..from + part.text.len()].copy_from_slice(part.text);
    let by = (new_end as u16).wrapping_sub(end as u16);
    meta.end = meta.end.wrapping_add(by);
    // What Ethernet padded the frame with is gone.
    packet.set_len(usize::from(meta.end));

    let (source, destination) = (meta.tuple.source, meta.tuple.destination);
    let (ip, segment) = ip(packet, meta).split_at_mut(usize::from(meta.transport - meta.network));
    A::lengthen(ip, by, Change::default());
    put16(segment, 16, 0);
    let checksum = pseudo_header(source, destination, TCP, segment.len() as u16).bytes(segment).field();
    put16(segment, 16, checksum);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn correction() -> impl Strategy<Value = Correction> {
        (any::<u32>(), 1usize..40, "[a-z]{1,23}", any::<u32>())
            .prop_map(|(at, old, text, before)| Correction::new(at, old, Place::from(&text).unwrap(), before))
    }

    proptest! {
        /// What the client acknowledges is never more than the server has sent, and never less than the client has when it has all of a segment.
        #[test]
        fn numbers_go_there_and_back(correction in correction(), past in -100i32..100) {
            let number = correction.at.wrapping_add(past as u32);
            let shown = correction.to_client(number);
            let back = correction.to_server(shown).wrapping_sub(number) as i32;
            prop_assert!(back <= 0, "{} bytes too many", back);
            let is_inside = (0..correction.old as i32).contains(&past);
            prop_assert!(is_inside || back == 0);
            // Whatever is sent again from there on, the client has the place before it.
            prop_assert_eq!(correction.to_client(correction.to_server(shown)), shown);
        }

        /// A client may take a part of a segment only. Whatever it acknowledges, the server does not take for more than that, and what it then sends begins no later.
        #[test]
        fn a_part_of_the_new_text_is_not_all_of_the_old(correction in correction(), taken in 0u32..40) {
            let taken = taken.min(correction.length() - 1);
            let shown = correction.begins().wrapping_add(taken);
            let number = correction.to_server(shown);
            prop_assert!(number.wrapping_sub(correction.at) < correction.old);
            prop_assert!(correction.to_client(number).wrapping_sub(correction.begins()) <= taken);
        }

        /// Segments that overlap in any way put the same stream together.
        #[test]
        fn any_segments_make_the_same_stream(
            correction in correction(),
            lead in 0usize..30,
            tail in 0usize..30,
            cuts in prop::collection::vec((0usize..100, 1usize..100), 0..30),
        ) {
            let old = correction.old as usize;
            let sent: Vec<u8> = (0..(lead + old + tail) as u8).map(|n| 0x80 + n % 0x80).collect();
            let first = correction.at.wrapping_sub(lead as u32);
            let wanted = [&sent[..lead], correction.text.as_bytes(), &sent[lead + old..]].concat();
            let shown = correction.to_client(first);
            let mut heard = vec![None; wanted.len()];
            // All of it once, in the end.
            for (from, length) in cuts.into_iter().chain([(0, sent.len())]) {
                let from = from.min(sent.len());
                let to = (from + length).min(sent.len());
                let number = first.wrapping_add(from as u32);
                let mut data = sent[from..to].to_vec();
                let growth = correction.growth(number, data.len());
                if let Some(part) = correction.overlap(number, to - from) {
                    data.splice(part.from..part.to, part.text.iter().copied());
                }
                prop_assert_eq!(data.len() as i32, (to - from) as i32 + growth);
                let at = correction.to_client(number).wrapping_sub(shown) as usize;
                prop_assert_eq!(
                    correction.to_client(number.wrapping_add((to - from) as u32)).wrapping_sub(shown) as usize,
                    at + data.len()
                );
                for (place, byte) in heard[at..].iter_mut().zip(data) {
                    prop_assert!(place.is_none_or(|known| known == byte));
                    *place = Some(byte);
                }
            }
            prop_assert_eq!(heard.into_iter().collect::<Option<Vec<u8>>>(), Some(wanted));
        }
    }
}

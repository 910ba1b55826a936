//! VLAN tags (IEEE 802.1Q): four bytes each, between a frame's addresses and its ethertype.

use super::be16;
use super::parse::ETHERNET;

/// At most this many: 802.1Q inside 802.1ad (QinQ). More is nobody's frame.
pub const MOST: usize = 2;

/// The ethertype of a tag, and that of an outer one (802.1ad).
pub const VLAN: u16 = 0x8100;
/// See [`VLAN`].
pub const QINQ: u16 = 0x88a8;

/// Bytes of a tag: its ethertype, then priority (4 bits) and VLAN (12 bits).
const TAG: usize = 4;

/// The bits that tell the VLAN.
const ID: u16 = 0x0fff;

/// A frame's tags, as they stand in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tags {
    bytes: [u8; MOST * TAG],
    len: u8,
}

impl Tags {
    /// These tags and one more inside them; `None` when there is no room for it.
    #[must_use]
    pub fn and(mut self, ethertype: u16, id: u16) -> Option<Self> {
        let at = self.len();
        let place = self.bytes.get_mut(at..at + TAG)?;
        place[..2].copy_from_slice(&ethertype.to_be_bytes());
        place[2..].copy_from_slice(&(id & ID).to_be_bytes());
        self.len += TAG as u8;
        Some(self)
    }

    /// Those of a frame.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let mut tags = Self::default();
        for _ in 0..MOST {
            let at = tags.len();
            match frame.get(ETHERNET - 2 + at..ETHERNET - 2 + at + TAG) {
                Some(tag) if matches!(be16(tag, 0), VLAN | QINQ) => {
                    tags.bytes[at..at + TAG].copy_from_slice(tag);
                    tags.len += TAG as u8;
                }
                _ => break,
            }
        }
        tags
    }

    /// Whether the innermost of them are these.
    #[must_use]
    pub fn end_with(&self, inner: &Self) -> bool {
        self.bytes().ends_with(inner.bytes())
    }

    /// As they stand in the frame.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// How many bytes they are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_built_as_they_are_read() {
        let one = Tags::default().and(VLAN, 100).unwrap();
        assert_eq!(one.bytes(), [0x81, 0, 0, 100]);
        let two = Tags::default().and(QINQ, 100).unwrap().and(VLAN, 7).unwrap();
        assert_eq!(two.bytes(), [0x88, 0xa8, 0, 100, 0x81, 0, 0, 7]);
        assert_eq!(two.and(VLAN, 8), None);

        for tags in [Tags::default(), one, two] {
            let frame = [&[2; 12], tags.bytes(), &[8, 0, 0x45]].concat();
            assert_eq!(Tags::of(&frame), tags);
            for short in 0..frame.len() {
                assert!(Tags::of(&frame[..short]).len() <= tags.len());
            }
        }
        let three = [&[2; 12], two.bytes(), one.bytes(), &[8, 0]].concat();
        assert_eq!(Tags::of(&three), two);
    }

    #[test]
    fn the_inner_tags_are_the_end() {
        let two = Tags::default().and(QINQ, 100).unwrap().and(VLAN, 7).unwrap();
        let inner = Tags::default().and(VLAN, 7).unwrap();
        assert!(two.end_with(&two) && two.end_with(&inner) && two.end_with(&Tags::default()));
        assert!(!inner.end_with(&two) && !two.end_with(&Tags::default().and(VLAN, 100).unwrap()));
    }
}

//! The calls that templates of a SIP service are about: their Call-IDs, for who lists them and to tell two apart that look alike.

use arrayvec::ArrayVec;

use crate::packet::sip;

/// Calls that are remembered at once. The memory is set aside at the start and used as they come.
const MOST: usize = 1 << 14;

/// A Call-ID.
pub type CallId = ArrayVec<u8, { sip::LONGEST }>;

/// The calls, each at a place of its own.
pub struct Calls {
    ids: Vec<CallId>,
    free: Vec<u16>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { ids: Vec::with_capacity(MOST), free: Vec::with_capacity(MOST) }
    }
}

impl Calls {
    /// Remembers a call; gives its place. `None` when there is no room, or the id is too long.
    pub fn add(&mut self, id: &[u8]) -> Option<u16> {
        let id = CallId::try_from(id).ok()?;
        if let Some(place) = self.free.pop() {
            self.ids[usize::from(place)] = id;
            return Some(place);
        }
        if self.ids.len() == MOST {
            return None;
        }
        self.ids.push(id);
        Some((self.ids.len() - 1) as u16)
    }

    /// The call at a place.
    pub fn at(&self, place: u16) -> &[u8] {
        self.ids.get(usize::from(place)).map_or(&[], |id| id)
    }

    /// Forgets the call at a place.
    pub fn remove(&mut self, place: u16) {
        self.free.push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_no_more_than_there_are() {
        let mut calls = Calls::default();
        let before = (calls.ids.capacity(), calls.free.capacity());
        let places: Vec<u16> = (0..MOST).map(|n| calls.add(n.to_string().as_bytes()).unwrap()).collect();
        assert_eq!(calls.add(b"one more"), None);
        assert_eq!(calls.at(places[77]), b"77");
        places.iter().for_each(|place| calls.remove(*place));
        assert!((0..MOST).all(|_| calls.add(b"again").is_some()));
        assert_eq!(calls.add(&[b'x'; sip::LONGEST + 1]), None);
        assert_eq!((calls.ids.capacity(), calls.free.capacity()), before);
    }
}

//! Whose turn it is, for schedulers that go on behind the real server that they chose last.

use std::sync::Arc;

use crate::service::{Dest, DestId};

/// The real server that was chosen last, if the turn is not at the head of the list.
///
/// Which one it is, is what counts. Where it stood is where it stands as long as the list is not edited, so that nobody looks for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    last: Option<(DestId, usize)>,
}

impl Turn {
    /// The turn of the one behind this one, or of the head of the list.
    pub fn behind(id: Option<DestId>) -> Self {
        Self { last: id.map(|id| (id, 0)) }
    }

    /// The real server that was chosen last.
    pub fn last(self) -> Option<DestId> {
        self.last.map(|(id, _)| id)
    }

    /// Where in the list the next one stands; its length, if there is none behind the last one.
    #[inline]
    pub fn next(self, dests: &[Arc<Dest>]) -> usize {
        let Some((id, at)) = self.last else { return 0 };
        match dests.get(at) {
            Some(dest) if dest.id == id => at + 1,
            _ => dests.iter().position(|dest| dest.id == id).map_or(0, |at| at + 1),
        }
    }

    /// Takes a turn: the one at this place is chosen.
    #[inline]
    pub fn take(&mut self, dests: &[Arc<Dest>], at: usize) {
        self.last = dests.get(at).map(|dest| (dest.id, at));
    }
}

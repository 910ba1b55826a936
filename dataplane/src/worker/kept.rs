//! Later fragments that came before their first, and answers of FTP servers whose port is not steered to the director yet.
//!
//! They are tried again every millisecond: a fragment's first may arrive here or at another worker, who then says in the directory that the
//! datagram is its own. Nobody has to be told.

use arrayvec::ArrayVec;

use crate::port::Frame;
use crate::service::Tick;

/// Frames kept at once: one datagram of 64 KiB is 45 of them. Reordering puts few ahead of their first, another worker's delay those of some datagrams; more than
/// this is a flood, and is dropped under a counter.
const MOST: usize = 256;

/// Milliseconds a fragment is kept. Reordering on the way is a matter of milliseconds; the kernel keeps all parts for 30 s because it waits for
/// the last one, not for the first.
const PATIENCE: u32 = 1_000;

/// Milliseconds between two tries.
pub const PAUSE: u32 = 1;

/// The queue.
#[derive(Default)]
pub struct Kept {
    entries: ArrayVec<(Frame, Tick), MOST>,
    tried: Tick,
}

impl Kept {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keeps a fragment that came at `since`.
    ///
    /// # Errors
    /// Gives it back when too many are kept already.
    pub fn push(&mut self, frame: Frame, since: Tick) -> Result<(), Frame> {
        self.entries.try_push((frame, since)).map_err(|e| e.element().0)
    }

    /// All that are kept, if it is time to try them again, with the moments they came at.
    pub fn due(&mut self, now: Tick) -> ArrayVec<(Frame, Tick), MOST> {
        if self.entries.is_empty() || now.since(self.tried) < PAUSE {
            return ArrayVec::new();
        }
        self.tried = now;
        std::mem::take(&mut self.entries)
    }

    /// Whether a fragment that came at `since` has been kept long enough.
    pub fn is_overdue(since: Tick, now: Tick) -> bool {
        now.since(since) >= PATIENCE
    }
}

//! Packets that wait until the kernel has found out a neighbour's Ethernet address.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::port::Frame;
use crate::service::{LinkId, Tick};

/// Packets that may wait at once. They are the first packets of connections to one or two new neighbours; the kernel's own queue
/// (`unres_qlen_bytes`) holds about as many. More are dropped under a counter.
const MOST: usize = 64;

/// Milliseconds that a packet waits: the kernel gives a neighbour up after three tries, a second apart.
const PATIENCE: u32 = 3_000;

/// Milliseconds after which a neighbour is asked for again.
const ASK_AGAIN: u32 = 1_000;

struct Entry {
    frame: Frame,
    link: LinkId,
    neighbour: IpAddr,
    since: Tick,
}

/// The queue.
#[derive(Default)]
pub struct Waiting {
    entries: ArrayVec<Entry, MOST>,
    asked: Option<(LinkId, IpAddr, Tick)>,
}

impl Waiting {
    /// Whether a neighbour should be asked for: no packet waits for it yet, or none has for a while.
    pub fn is_new(&mut self, link: LinkId, neighbour: IpAddr, now: Tick) -> bool {
        let waits = self.entries.iter().any(|e| (e.link, e.neighbour) == (link, neighbour));
        let recent = matches!(self.asked, Some((l, n, at)) if (l, n) == (link, neighbour) && now.since(at) < ASK_AGAIN);
        if waits && recent {
            return false;
        }
        self.asked = Some((link, neighbour, now));
        true
    }

    /// Lets a packet wait.
    ///
    /// # Errors
    /// Gives it back when too many wait already.
    pub fn push(&mut self, frame: Frame, link: LinkId, neighbour: IpAddr, since: Tick) -> Result<(), Frame> {
        self.entries.try_push(Entry { frame, link, neighbour, since }).map_err(|e| e.element().frame)
    }

    /// All packets that wait, with the moments since when.
    pub fn take(&mut self) -> impl Iterator<Item = (Frame, Tick)> + use<> {
        std::mem::take(&mut self.entries).into_iter().map(|e| (e.frame, e.since))
    }

    /// One packet that has waited too long.
    pub fn overdue(&mut self, now: Tick) -> Option<Frame> {
        // They stand in the order of arrival, but for those that were tried again.
        let at = self.entries.iter().position(|e| now.since(e.since) >= PATIENCE)?;
        Some(self.entries.remove(at).frame)
    }
}

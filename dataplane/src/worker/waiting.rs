//! Packets that wait until the kernel has found out a neighbour's Ethernet address.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::port::Frame;
use crate::service::{LinkId, Tick};

/// Neighbours that packets may wait for at once: a rack that goes dark. Those of further ones are dropped under a counter.
const MOST: usize = 32;

/// Packets that may wait for one neighbour, so that one that never answers takes no other's room. The kernel's own queue (`unres_qlen_bytes`)
/// holds some hundred. More are dropped under a counter.
const EACH: usize = 32;

/// Milliseconds that a packet waits. The kernel gives a neighbour up after three tries, a second apart; the packet is looked at again then, and its sender told.
const PATIENCE: u32 = 4_000;

/// Milliseconds after which a neighbour is asked for again.
const ASK_AGAIN: u32 = 1_000;

/// A neighbour that is asked for, and what waits for it.
struct Neighbour {
    link: LinkId,
    address: IpAddr,
    asked: Tick,
    /// With the moments since when, the earliest first but for those that were tried again.
    packets: ArrayVec<(Frame, Tick), EACH>,
}

/// The queues.
#[derive(Default)]
pub struct Waiting {
    neighbours: ArrayVec<Neighbour, MOST>,
}

/// What is to be done for a packet that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The neighbour should be asked for.
    Now,
    /// It was, not long ago.
    NotYet,
}

impl Waiting {
    /// Lets a packet wait that came at `since`.
    ///
    /// # Errors
    /// Gives it back when too many wait already.
    pub fn push(
        &mut self,
        frame: Frame,
        (link, address): (LinkId, IpAddr),
        since: Tick,
        now: Tick,
    ) -> Result<Ask, Frame> {
        let known = self.neighbours.iter_mut().find(|n| (n.link, n.address) == (link, address));
        let Some(neighbour) = known else {
            let mut packets = ArrayVec::new();
            packets.push((frame, since));
            let added = self.neighbours.try_push(Neighbour { link, address, asked: now, packets });
            return match added {
                Ok(()) => Ok(Ask::Now),
                Err(full) => Err(full.element().packets.remove(0).0),
            };
        };
        neighbour.packets.try_push((frame, since)).map_err(|full| full.element().0)?;
        if now.since(neighbour.asked) < ASK_AGAIN {
            return Ok(Ask::NotYet);
        }
        neighbour.asked = now;
        Ok(Ask::Now)
    }

    /// Takes the packets that wait for the `n`th neighbour, with the moments since when, to be tried again; `None` behind the last one.
    pub fn take(&mut self, n: usize) -> Option<ArrayVec<(Frame, Tick), EACH>> {
        self.neighbours.get_mut(n).map(|neighbour| std::mem::take(&mut neighbour.packets))
    }

    /// Forgets neighbours that nothing waits for any more.
    pub fn tidy(&mut self) {
        self.neighbours.retain(|neighbour| !neighbour.packets.is_empty());
    }

    /// One packet that has waited too long.
    pub fn overdue(&mut self, now: Tick) -> Option<Frame> {
        let is_overdue = |(_, since): &(Frame, Tick)| now.since(*since) >= PATIENCE;
        let (packets, at) = self.neighbours.iter_mut().find_map(|neighbour| {
            let at = neighbour.packets.iter().position(is_overdue)?;
            Some((&mut neighbour.packets, at))
        })?;
        let (frame, _) = packets.remove(at);
        self.tidy();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::{FrameMemory, Pool};
    use crate::service::PortId;

    fn pool() -> Pool {
        FrameMemory::with_pools(1, 2048).unwrap().1.remove(0)
    }

    fn neighbour(n: u8) -> (LinkId, IpAddr) {
        (PortId(0).into(), IpAddr::from([10, 1, 0, n]))
    }

    #[test]
    fn each_neighbour_is_asked_for_once_a_second() {
        let (mut pool, mut waiting) = (pool(), Waiting::default());
        let mut ask = |n, at| waiting.push(pool.take().unwrap(), neighbour(n), Tick(at), Tick(at)).unwrap();
        for at in [0, 10, 990] {
            let expected = if at == 0 { Ask::Now } else { Ask::NotYet };
            assert_eq!([1, 2, 1, 2].map(|n| ask(n, at)), [expected, expected, Ask::NotYet, Ask::NotYet]);
        }
        assert_eq!([1, 2, 1, 2].map(|n| ask(n, 1000)), [Ask::Now, Ask::Now, Ask::NotYet, Ask::NotYet]);
    }

    #[test]
    fn one_that_never_answers_takes_no_others_room() {
        let (mut pool, mut waiting) = (pool(), Waiting::default());
        let mut waits = |n| {
            waiting.push(pool.take().unwrap(), neighbour(n), Tick(0), Tick(0)).map_err(|frame| frame.len())
        };
        for _ in 0..EACH {
            assert!(waits(1).is_ok());
        }
        assert_eq!(waits(1), Err(0));
        for n in 2..=MOST as u8 {
            assert_eq!(waits(n), Ok(Ask::Now));
        }
        assert_eq!(waits(MOST as u8 + 1), Err(0));
    }

    #[test]
    fn what_is_tried_again_asks_for_nothing_and_waits_no_longer() {
        let (mut pool, mut waiting) = (pool(), Waiting::default());
        for at in [0, 500] {
            waiting.push(pool.take().unwrap(), neighbour(1), Tick(at), Tick(at)).unwrap();
        }
        let now = Tick(900);
        for (frame, since) in waiting.take(0).unwrap() {
            assert_eq!(waiting.push(frame, neighbour(1), since, now), Ok(Ask::NotYet));
        }
        waiting.tidy();
        assert!(waiting.take(1).is_none());
        assert!(waiting.overdue(Tick(PATIENCE - 1)).is_none());
        assert!(waiting.overdue(Tick(PATIENCE)).is_some());
        assert!(waiting.overdue(Tick(PATIENCE)).is_none());
        assert!(waiting.overdue(Tick(PATIENCE + 500)).is_some());
        assert!(waiting.take(0).is_none(), "nobody is waited for any more");
    }
}

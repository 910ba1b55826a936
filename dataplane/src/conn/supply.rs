//! Memory for connections, brought before they come.
//!
//! When a page is touched for the first time the kernel must find and clear it. Of a huge one that takes 0.1 ms, and up to 20 where a virtual machine's
//! host must find it too, and no worker may stand still for that long. So somebody else brings the pages: those of an index, which is
//! read all over, before the first connection; those of the entries, which fill up in order, some way ahead of the connections.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use super::memory::{Backing, Pages};

/// A table tells how far it has filled up each time this many more places are used.
pub const STEP: u32 = 1 << 16;

/// Places that are brought ahead: at five million new connections a second, as many as a core makes, they last for 26 ms.
pub const AHEAD: u32 = 2 * STEP;

/// How far a table has filled up.
#[derive(Default)]
pub struct Demand {
    places: AtomicU32,
    supplier: OnceLock<Thread>,
}

impl Demand {
    /// Says how many places are used.
    #[inline]
    pub fn tell(&self, places: u32) {
        if places.is_multiple_of(STEP) {
            self.places.store(places, Ordering::Relaxed);
            if let Some(supplier) = self.supplier.get() {
                supplier.unpark();
            }
        }
    }
}

/// The pages of one table.
pub struct Supply {
    /// Those that are read all over.
    whole: Pages,
    /// Those that fill up in order, with the bytes of a place.
    in_order: Vec<(Pages, usize)>,
    demand: Arc<Demand>,
    /// Places brought so far; `None` before the first time.
    brought: Option<u32>,
}

impl Supply {
    /// The supply of what is read all over.
    pub fn whole(pages: Pages) -> Self {
        Self { whole: pages, in_order: Vec::new(), demand: Arc::default(), brought: None }
    }

    /// The same with what fills up in order, a number of bytes a place, as far as `demand` will tell.
    pub fn and_in_order<const N: usize>(self, in_order: [(Pages, usize); N], demand: &Arc<Demand>) -> Self {
        Self { in_order: in_order.into(), demand: Arc::clone(demand), ..self }
    }

    /// Brings what is needed now: everything that is read all over, and as many places as are used and [`AHEAD`] more.
    ///
    /// # Errors
    /// When the kernel cannot; the table works, and waits for its pages.
    pub fn bring(&mut self) -> std::io::Result<()> {
        let to = self.demand.places.load(Ordering::Relaxed).saturating_add(AHEAD);
        // Before anything can fail: what the kernel cannot do is not asked for again.
        let from = match self.brought.replace(to) {
            Some(from) => from,
            None => {
                self.whole.bring(0..usize::MAX)?;
                0
            }
        };
        for (pages, size) in &self.in_order {
            pages.bring(from as usize * size..to as usize * size)?;
        }
        Ok(())
    }

    /// What kind of pages all of them are, and how many bytes.
    pub fn backings(&self) -> impl Iterator<Item = (Backing, usize)> {
        let in_order = self.in_order.iter().map(|(pages, _)| pages.backing());
        in_order.chain([self.whole.backing()])
    }

    /// Whether it has been brought anything.
    pub fn has_begun(&self) -> bool {
        self.brought.is_some()
    }

    /// Whom to wake when there is demand.
    pub fn wake(&self, supplier: Thread) {
        // Only the first one counts: a table has one supplier.
        let _ = self.demand.supplier.set(supplier);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{UsageWho, getrusage};

    use crate::conn::table::Secret;
    use crate::conn::{Conn, Table};
    use crate::packet::V6;
    use crate::service::{Forwarding, Tick};

    use super::*;

    /// Pages that this thread has touched first.
    fn faults() -> i64 {
        getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults()
    }

    /// Fills a table and empties it. Says how many pages that touched first.
    fn fill_and_empty(count: u32) -> i64 {
        let mut table = Table::with_capacity(count as usize, Secret::new([1, 2, 3]), Tick(0)).unwrap();
        let mut supply = table.supply();
        assert!(!supply.has_begun());
        supply.bring().expect("this needs Linux 5.14");
        let mut touched = 0;
        for n in 0..count {
            let conn = Conn {
                client: V6(n.into()),
                protocol: 6,
                forwarding: Forwarding::Masq,
                timeout: 1000,
                ..Conn::default()
            };
            let before = faults();
            table.insert(conn).unwrap();
            touched += faults() - before;
            if n % STEP == STEP - 1 {
                supply.bring().unwrap();
            }
        }
        let before = faults();
        while table.expire(Tick(2000), &mut 128, |_| {}).is_some() {}
        assert!(table.is_empty());
        touched + faults() - before
    }

    #[test]
    fn connections_touch_no_page_first() {
        // The first time the program's own pages come.
        fill_and_empty(100);
        assert_eq!(fill_and_empty(3 * STEP), 0);
    }
}

//! How a connection ends: in its time, before it, or with its real server; and the books that are done then.

use std::sync::Arc;

use super::Shared;
use super::beyond::Near;
use super::family::Family;
use crate::conn::{Conn, ConnId, Marks};
use crate::service::{DestId, Forwarding, Tick};
use crate::stats::{Event, sub};

/// A walk over the table in search of connections whose real servers were removed.
#[derive(Clone, Copy, Default)]
pub(super) struct Sweep {
    /// Where it goes on.
    place: u32,
    /// Whether it has found one.
    has_ended_any: bool,
}

impl<A: Near> Family<A> {
    /// Ends connections whose time is over, then those that are being swept away.
    pub fn expire(&mut self, shared: &mut Shared, now: Tick, budget: &mut usize) {
        while let Some(entry) = self.conns.expire(now, budget, |hash| shared.prefetch_owner(hash)) {
            self.expired(shared, &entry, now);
        }
        if self.swept.is_none() {
            return;
        }
        let snapshot = Arc::clone(&shared.snapshot);
        let services = &snapshot.services;
        while let Some(sweep) = self.swept.filter(|_| *budget > 0) {
            let is_orphan = |entry: &Conn<A>| {
                !services.has_dest(entry.dest) && entry.has_server() && entry.controls() == 0
            };
            let (orphan, next) = self.conns.search(sweep.place, budget, is_orphan);
            let has_ended_any = sweep.has_ended_any || orphan.is_some();
            self.swept = match next {
                Some(place) => Some(Sweep { place, has_ended_any }),
                // Those that controlled others go after them.
                None => has_ended_any.then(Sweep::default),
            };
            if let Some(id) = orphan {
                let entry = self.conns.remove(id);
                self.expired(shared, &entry, now);
            }
        }
    }

    /// Has the connections of removed real servers ended, little by little (`ip_vs_expire_nodest_conn_flush`).
    pub fn sweep(&mut self) {
        self.swept = Some(Sweep::default());
    }

    /// Ends a connection before its time.
    pub(super) fn cut(&mut self, shared: &mut Shared, id: ConnId, now: Tick) {
        let old = self.conns.remove(id);
        self.end(shared, &old, now);
    }

    /// Does the books for an entry whose time was over.
    pub(super) fn expired(&mut self, shared: &mut Shared, entry: &Conn<A>, now: Tick) {
        self.end(shared, entry, now);
        if !entry.is_template() {
            shared.mine().count(Event::Expired, 1);
        }
    }

    /// Does the books for an entry that is no longer in the table.
    fn end(&mut self, shared: &mut Shared, conn: &Conn<A>, now: Tick) {
        if conn.is_template() {
            return self.forget_template(shared, conn);
        }
        self.detach(shared, conn, now);
        Self::discount(shared, conn);
    }

    /// Gives back what a connection had that is no longer in the table, except its place among its real server's.
    pub(super) fn detach(&mut self, shared: &mut Shared, conn: &Conn<A>, now: Tick) {
        if shared.directory.is_some() {
            shared.tell();
            self.withdraw(shared, conn);
        }
        if conn.forwarding == Forwarding::FullNat {
            Self::release_full_nat(shared, conn, now);
        }
        if conn.marks.has(Marks::FTP_ANY) {
            self.end_of_ftp(shared, conn);
        }
    }

    /// Its real server has one connection less.
    pub(super) fn discount(shared: &Shared, conn: &Conn<A>) {
        let counters = shared.mine().dest(conn.dest);
        sub(if conn.marks.has(Marks::ACTIVE) { &counters.active } else { &counters.inactive }, 1);
        Self::release(shared, conn.dest);
    }

    /// Takes a connection's tuples out of the directory of owners.
    fn withdraw(&self, shared: &Shared, conn: &Conn<A>) {
        if !conn.marks.has(Marks::RETIRED) {
            shared.withdraw(self.conns.hash(&conn.request()));
        }
        if let Some(reply) = conn.announced_reply() {
            let hash = self.conns.hash(&reply);
            // The client's connection by another virtual address may be on the same real server and port.
            if self.conns.find(&reply, hash).is_none() {
                shared.withdraw(hash);
            }
        }
    }

    /// Lets a real server that has fallen below its lower threshold take connections again.
    fn release(shared: &Shared, id: DestId) {
        if !shared.counters.is_overloaded(id) {
            return;
        }
        let Some(dest) = shared.snapshot.services.dest(id) else { return };
        let load = shared.counters.load(id);
        if dest.is_relieved(load.active + load.inactive) {
            shared.counters.set_overloaded(id, false);
        }
    }
}

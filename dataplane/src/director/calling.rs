//! Calls that a real server begins: the first message of one leaves with the virtual address and port, and what follows of it comes to the same real server
//! (`ip_vs_new_conn_out`). For NAT, and services that go by SIP calls.

use std::sync::Arc;

use super::beyond::Near;
use super::family::Family;
use super::persistence::obeyed;
use super::{Shared, Verdict};
use crate::conn::{ConnId, Direction};
use crate::packet::{Meta, Packet, Tuple};
use crate::service::{Tick, WorkerId};

impl<A: Near> Family<A> {
    /// What becomes of a packet that is of no connection, and that a real server begins a call with; `None` if it does not. It has been found fit to be routed.
    pub(super) fn call_out(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        now: Tick,
    ) -> Option<Verdict> {
        let snapshot = Arc::clone(&shared.snapshot);
        let (service, dest) = snapshot.services.caller(&meta.tuple)?;
        let answer = Tuple {
            source: meta.tuple.destination,
            destination: A::of(service.address)?,
            source_port: meta.tuple.destination_port,
            destination_port: service.port,
            protocol: meta.tuple.protocol,
        };
        let answered = Meta { tuple: answer, ..*meta };
        let mut key = self.key(service, packet, &answered).ok()??;
        if let Some(keeper) = shared.keeper_elsewhere(key.hash) {
            return Some(Verdict::hand_off(keeper));
        }
        self.make_room(shared, now);
        let call = key.call(packet);
        let known = match self.template(shared, &mut key, call, now) {
            Ok(known) => known,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        // Also a call that had another real server is this one's from now on.
        let is_same = |id: &ConnId| {
            let of = self.conns.conn(*id).dest;
            of == dest.id && obeyed(&snapshot, of).is_some()
        };
        let template = match known.filter(is_same) {
            Some(template) => Ok(template),
            None => {
                known.into_iter().for_each(|old| self.conns.retire(old));
                self.remember(shared, &key, call, dest, now)
            }
        };
        let begun = template.and_then(|template| {
            let hash = self.conns.hash(&answer);
            let older = self.find(shared, &answer, hash, now);
            let id = self.begin(shared, &answered, hash, (service, dest), now)?;
            self.made(template, id, now);
            // The client answers to the last who called, whoever that was before.
            if let Some((older, Direction::Request)) = older {
                self.conns.displace(older);
            }
            shared.claim(hash);
            Ok(id)
        });
        let id = match begun {
            Ok(id) => id,
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        let verdict = self.reply(shared, packet, meta, id, now);
        if service.is_for_one(&answer) {
            self.forget_packet(shared, meta, &verdict, id, now);
        }
        Some(verdict)
    }

    /// The worker whose real server has called the client of a connection since, if that is not this one: the client answers there. The connection is found by its replies
    /// only from now on.
    #[inline]
    pub(super) fn called_elsewhere(&mut self, shared: &Shared, hash: u64, id: ConnId) -> Option<WorkerId> {
        if !self.may_be_called_elsewhere(shared, id) {
            return None;
        }
        let owner = shared.owner_elsewhere(hash)?;
        self.conns.displace(id);
        Some(owner)
    }

    /// Whether a connection is of a call's, and there are other workers: nothing tells this one when one of those takes such a connection's place, so each packet of its client's is to
    /// be asked about.
    #[inline]
    pub(super) fn may_be_called_elsewhere(&self, shared: &Shared, id: ConnId) -> bool {
        let template = self.conns.controller(id).filter(|_| shared.directory.is_some());
        template.is_some_and(|template| self.call(self.conns.conn(template)).is_some())
    }
}

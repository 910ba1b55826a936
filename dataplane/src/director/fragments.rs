//! Parts of datagrams: the later ones go the way of the first, and none goes over another.

use super::ahead::Glance;
use super::beyond::{self, Near};
use super::family::Family;
use super::{Shared, Verdict};
use crate::conn::Direction;
use crate::conn::fragments::{Fragments, Way};
use crate::packet::parse::Fragment;
use crate::packet::{Meta, Packet};
use crate::service::Tick;
use crate::stats::Reason;

impl<A: Near> Family<A> {
    /// The part of a datagram that has the transport header. Its way is remembered for the others.
    pub(super) fn first_fragment(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        (meta, glance, part): (&Meta<A>, &Glance, &Fragment),
        now: Tick,
    ) -> Verdict {
        let key = Fragments::key(meta, part);
        let datagram = self.conns.hash(&key);
        if let Err(reason) = self.fragments.way(&key, datagram, part, now) {
            return Verdict::Drop(reason);
        }
        let verdict = self.packet(far, shared, packet, meta, glance, now);
        let way = match verdict {
            Verdict::Forward(_) => {
                shared.claim(datagram);
                Way::Out(meta.tuple, self.conns.find(&meta.tuple, glance.hash))
            }
            Verdict::HandOff(owner, _) => {
                // One that has had this id before may have been this worker's.
                shared.withdraw(datagram);
                Way::To(owner)
            }
            _ => return verdict,
        };
        if let Some(displaced) = self.fragments.remember(key, datagram, way, part, now) {
            shared.withdraw(self.conns.hash(&displaced));
        }
        verdict
    }

    /// A part of a datagram that has no transport header: it goes the way its first part went.
    pub(super) fn later_fragment(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        part: &Fragment,
        now: Tick,
    ) -> Verdict {
        let key = Fragments::key(meta, part);
        let datagram = self.conns.hash(&key);
        let (flow, place) = match self.fragments.way(&key, datagram, part, now) {
            Ok(Some(Way::Out(flow, place))) => (flow, place),
            // What was handed over is not handed on: two who each take the other for the owner would go on for ever.
            Ok(Some(Way::To(owner))) if !shared.handed => {
                self.fragments.sent(&key, datagram, part, now);
                return Verdict::hand_off(owner);
            }
            Ok(_) => {
                if let Some(owner) = shared.owner_elsewhere(datagram) {
                    return Verdict::hand_off(owner);
                }
                let tuple = &meta.tuple;
                let services = &shared.snapshot.services;
                let may_be_ours =
                    services.may_concern(tuple.source, tuple.destination, tuple.protocol, packet.port());
                return if may_be_ours { Verdict::Keep } else { Verdict::Pass };
            }
            Err(reason) => return Verdict::Drop(reason),
        };
        let hash = self.conns.hash(&flow);
        let is_there = |(id, direction): &_| self.conns.is_at(*id, *direction, &flow);
        let found = place.filter(is_there).or_else(|| self.conns.find(&flow, hash));
        let verdict = match found.and_then(|found| self.if_alive(shared, found, now)) {
            Some((id, Direction::Request)) => self.request(shared, packet, meta, hash, id, now),
            Some((id, Direction::Reply)) => self.reply(shared, packet, meta, id, now),
            None => match beyond::find(shared, &flow, hash) {
                Some(id) => self.reply_across(far, shared, packet, meta, id, now),
                // Of what a real server sends by itself the first part was routed.
                None if shared.snapshot.services.may_be_from_server(flow.source, flow.protocol) => {
                    self.stray(shared, packet, meta, &flow, now)
                }
                None => Verdict::Drop(Reason::FragmentTimeout),
            },
        };
        if let Verdict::Forward(_) = verdict
            && self.fragments.sent(&key, datagram, part, now)
        {
            shared.withdraw(datagram);
        }
        verdict
    }
}

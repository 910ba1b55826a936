//! Persistence: a client's new connections go where its first one went (`ip_vs_sched_persist`).
//!
//! What remembers the real server is a [`template`]. With several workers each template has one worker that it belongs to,
//! named by its hash: new connections that it makes are handed there and stay there, so that all connections of a client meet the same template
//! wherever they come in, and nobody waits for anybody.

use std::ops::Range;

use super::Shared;
use super::beyond::Near;
use super::family::Family;
use crate::conn::{Conn, ConnId, State, template};
use crate::packet::{Meta, Packet, Tuple, sip};
use crate::service::{Dest, DestId, Persistence, Protocol, Service, Snapshot, Tick, WorkerId};
use crate::stats::{Reason, add, sub};

impl Shared {
    /// The worker that a template belongs to, if that is not this one.
    pub(super) fn keeper_elsewhere(&self, hash: u64) -> Option<WorkerId> {
        let workers = self.counters.workers() as u64;
        // The directory's places are told by the lower bits.
        let keeper = WorkerId(((hash >> 32) % workers) as u8);
        (keeper != self.worker).then_some(keeper)
    }
}

/// The real server for a new connection, and the template that it is to be controlled by, if the service has templates.
pub(super) type Chosen<'a> = (&'a Dest, Option<ConnId>);

/// What a packet's template is found by.
pub(super) struct Key<A> {
    tuple: Tuple<A>,
    /// Its hash, which also names the worker that the template belongs to.
    pub hash: u64,
    persistence: Persistence,
    /// Where the packet has its Call-ID, if that counts.
    call: Option<Range<usize>>,
}

impl<A> Key<A> {
    /// The packet's Call-ID, if that counts.
    pub fn call<'a>(&self, packet: &'a mut Packet) -> Option<&'a [u8]> {
        self.call.clone().map(|call| &packet.data()[call])
    }
}

/// Templates of one client whose calls look alike, at most: in the place of the client's port they have so many numbers that follow each other.
const ALIKE: u16 = 4;

impl<A: Near> Family<A> {
    /// The key of the template for a packet, where the service has templates.
    pub(super) fn key(
        &self,
        service: &Service,
        packet: &mut Packet,
        meta: &Meta<A>,
    ) -> Result<Option<Key<A>>, Reason> {
        let Some(persistence) = service.persistence else { return Ok(None) };
        let mut tuple = template::key(service, &persistence, &meta.tuple);
        let call = persistence.by_call.then(|| call(packet, meta).ok_or(Reason::NoCall)).transpose()?;
        if let Some(call) = call.clone() {
            // Which calls look alike nobody can choose.
            let look = self.conns.hash_bytes(&packet.data()[call]) as u16;
            tuple.source_port = look / ALIKE * ALIKE;
        }
        Ok(Some(Key { tuple, hash: self.conns.hash(&tuple), persistence, call }))
    }

    /// Who serves a new connection. `None` when there is nobody.
    pub(super) fn choose<'a>(
        &mut self,
        shared: &mut Shared,
        (snapshot, service): (&'a Snapshot, &'a Service),
        (packet, tuple): (&mut Packet, &Tuple<A>),
        key: Option<Key<A>>,
        now: Tick,
    ) -> Result<Option<Chosen<'a>>, Reason> {
        let Some(mut key) = key else {
            return Ok(self.schedule(shared, service, tuple, now).map(|dest| (dest, None)));
        };
        let call = key.call(packet);
        if let Some(id) = self.template(shared, &mut key, call, now)? {
            match obeyed(snapshot, self.conns.conn(id).dest) {
                Some(dest) => return Ok(Some((dest, Some(id)))),
                // It makes no more connections.
                None => self.conns.retire(id),
            }
        }
        let Some(dest) = self.schedule(shared, service, tuple, now) else { return Ok(None) };
        let template = self.remember(shared, &key, call, dest, now)?;
        Ok(Some((dest, Some(template))))
    }

    fn schedule<'a>(
        &self,
        shared: &mut Shared,
        service: &'a Service,
        packet: &Tuple<A>,
        now: Tick,
    ) -> Option<&'a Dest> {
        let client = (packet.source.into(), packet.source_port);
        let destination = (packet.destination.into(), packet.destination_port);
        let rest = (&shared.snapshot.sysctls, &*shared.counters);
        shared.schedulers.choose(service, client, destination, now, rest).map(|dest| &**dest)
    }

    /// The template of a key. Where there is none the key is one that is free.
    pub(super) fn template(
        &mut self,
        shared: &mut Shared,
        key: &mut Key<A>,
        call: Option<&[u8]>,
        now: Tick,
    ) -> Result<Option<ConnId>, Reason> {
        let mut free = None;
        for _ in 0..if call.is_some() { ALIKE } else { 1 } {
            let hash = self.conns.hash(&key.tuple);
            match self.find(shared, &key.tuple, hash, now) {
                Some((id, _)) if self.call(self.conns.conn(id)) == call => return Ok(Some(id)),
                Some(_) => {}
                // Another call may have been here, and this one's be behind it.
                None => free = free.or(Some(key.tuple.source_port)),
            }
            key.tuple.source_port = key.tuple.source_port.wrapping_add(1);
        }
        key.tuple.source_port = free.ok_or(Reason::TableFull)?;
        Ok(None)
    }

    /// The Call-ID of a template's call.
    pub(super) fn call(&self, entry: &Conn<A>) -> Option<&[u8]> {
        let place = template::call(entry).filter(|_| entry.is_template())?;
        Some(self.calls.at(place))
    }

    /// Remembers the real server that was chosen for a key.
    pub(super) fn remember(
        &mut self,
        shared: &Shared,
        key: &Key<A>,
        call: Option<&[u8]>,
        dest: &Dest,
        now: Tick,
    ) -> Result<ConnId, Reason> {
        let mut template = template::new(&key.tuple, &key.persistence, dest, now);
        let place = call.map(|id| self.calls.add(id).ok_or(Reason::TableFull)).transpose()?;
        if let Some(place) = place {
            template::set_call(&mut template, place);
        }
        let Ok(id) = self.conns.insert(template) else {
            place.into_iter().for_each(|place| self.calls.remove(place));
            return Err(Reason::TableFull);
        };
        add(&shared.mine().dest(dest.id).templates, 1);
        Ok(id)
    }

    /// A template has made a connection, and lives on from now.
    pub(super) fn made(&mut self, template: ConnId, id: ConnId, now: Tick) {
        self.conns.control(template, id);
        self.conns.conn_mut(template).last_seen = now;
    }

    /// A connection has been established: what made it has proved its worth (`ip_vs_control_assure_ct`).
    pub(super) fn assure(&mut self, id: ConnId) {
        if let Some(template) = self.conns.controller(id) {
            self.conns.conn_mut(template).state = State::Assured;
        }
    }

    /// Does the books for a template that is no longer in the table.
    pub(super) fn forget_template(&mut self, shared: &Shared, template: &Conn<A>) {
        sub(&shared.mine().dest(template.dest).templates, 1);
        if let Some(place) = template::call(template) {
            self.calls.remove(place);
        }
    }
}

/// The real server of a template, which is obeyed also when it has weight 0 or is overloaded. `None` if it is gone, or to be left alone.
pub(super) fn obeyed(snapshot: &Snapshot, dest: DestId) -> Option<&Dest> {
    let dest = snapshot.services.dest(dest)?;
    (dest.weight != 0 || snapshot.sysctls.expire_quiescent_template == 0).then_some(dest)
}

/// Where a UDP packet has its Call-ID.
fn call<A>(packet: &mut Packet, meta: &Meta<A>) -> Option<Range<usize>> {
    const UDP_HEADER: usize = 8;
    let message = usize::from(meta.transport) + UDP_HEADER..usize::from(meta.end);
    let text = packet.data().get(message.clone()).filter(|_| meta.tuple.protocol == Protocol::Udp as u8)?;
    let id = sip::call_id(text)?;
    Some(message.start + id.start..message.start + id.end)
}

//! Persistence: a client's new connections go where its first one went (`ip_vs_sched_persist`).
//!
//! What remembers the real server is a [template](crate::conn::template). With several workers each template has one worker that it belongs to,
//! named by its hash: new connections that it makes are handed there and stay there, so that all connections of a client meet the same template
//! wherever they come in, and nobody waits for anybody.

use std::sync::Arc;

use super::Shared;
use super::beyond::Near;
use super::family::Family;
use crate::conn::{Conn, ConnId, Direction, State, template};
use crate::packet::Tuple;
use crate::service::{Dest, Persistence, Service, Tick, WorkerId};
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
pub(super) type Chosen = (Arc<Dest>, Option<ConnId>);

/// What a packet's template is found by.
pub(super) struct Key<A> {
    tuple: Tuple<A>,
    /// Its hash, which also names the worker that the template belongs to.
    pub hash: u64,
    persistence: Persistence,
}

impl<A: Near> Family<A> {
    /// The key of the template for a packet, where the service has templates.
    pub(super) fn key(&self, service: &Service, packet: &Tuple<A>) -> Option<Key<A>> {
        let persistence = service.persistence?;
        let tuple = template::key(service, &persistence, packet);
        Some(Key { tuple, hash: self.conns.hash(&tuple), persistence })
    }

    /// Who serves a new connection. `None` when there is nobody.
    pub(super) fn choose(
        &mut self,
        shared: &mut Shared,
        service: &Arc<Service>,
        packet: &Tuple<A>,
        key: Option<&Key<A>>,
        now: Tick,
    ) -> Result<Option<Chosen>, Reason> {
        if let Some((dest, template)) = key.and_then(|key| self.template(shared, key, now)) {
            return Ok(Some((dest, Some(template))));
        }
        let client = (packet.source.into(), packet.source_port);
        let destination = (packet.destination.into(), packet.destination_port);
        let chosen = shared.schedulers.choose(service, client, destination, now, &shared.counters);
        let Some(dest) = chosen else { return Ok(None) };
        let template = key.map(|key| self.remember(shared, key, &dest, now)).transpose()?;
        Ok(Some((dest, template)))
    }

    /// The template of a key and its real server, which is obeyed also when it has weight 0 or is overloaded. One whose real server is
    /// gone makes no more connections.
    fn template(&mut self, shared: &mut Shared, key: &Key<A>, now: Tick) -> Option<(Arc<Dest>, ConnId)> {
        let (id, Direction::Request) = self.find(shared, &key.tuple, key.hash, now)? else { return None };
        let snapshot = &shared.snapshot;
        let is_obeyed =
            |dest: &&Arc<Dest>| dest.weight != 0 || snapshot.sysctls.expire_quiescent_template == 0;
        let dest = snapshot.services.dest(self.conns.conn(id).dest).filter(is_obeyed);
        if dest.is_none() {
            self.conns.retire(id);
        }
        dest.map(|dest| (Arc::clone(dest), id))
    }

    /// Remembers the real server that was chosen for a key.
    fn remember(&mut self, shared: &Shared, key: &Key<A>, dest: &Dest, now: Tick) -> Result<ConnId, Reason> {
        let template = template::new(&key.tuple, &key.persistence, dest, now);
        let id = self.conns.insert(template).map_err(|_| Reason::TableFull)?;
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
    pub(super) fn forget_template(shared: &Shared, template: &Conn<A>) {
        sub(&shared.mine().dest(template.dest).templates, 1);
    }
}

//! How a connection begins: the first packet of one is admitted, and bound to a real server.

use std::sync::Arc;

use super::answers::is_refused_to_server;
use super::beyond::Near;
use super::family::Family;
use super::{Shared, Verdict, admission};
use crate::conn::{Conn, ConnId, Detail, Marks};
use crate::forward::icmp::Problem;
use crate::packet::{Meta, Packet};
use crate::service::{Dest, DestId, FTP, FTP_DATA, Forwarding, Protocol, Service, Tick};
use crate::stats::{Event, Reason, add, sub};

const TCP: u8 = Protocol::Tcp as u8;
const UDP: u8 = Protocol::Udp as u8;

/// Milliseconds a connection lives before its first packet has been tracked (`ip_vs_conn_new`).
const EMBRYO: u32 = 3_000;

impl<A: Near> Family<A> {
    /// A packet of no known connection: the first of a new one, or a stray.
    pub(super) fn admit(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        now: Tick,
    ) -> Verdict {
        let tuple = &meta.tuple;
        let services = Arc::clone(&shared.snapshot);
        let speaks_ftp = services.services.speaks_ftp();
        if speaks_ftp && let Some(verdict) = self.expected(shared, packet, meta, hash, now) {
            return verdict;
        }
        let Some(service) = services.services.find_for(tuple, packet.port) else {
            if speaks_ftp && let Some(verdict) = self.stray_of_ftp(shared, packet, meta) {
                return verdict;
            }
            return self.stray(shared, packet, meta, tuple, now);
        };
        if is_refused_to_server(&services, meta) {
            return self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now);
        }
        if tuple.source_port == FTP_DATA {
            // Real servers' own connections are there already, and no others are scheduled (`ip_vs_schedule`).
            return self.turn_away(shared, packet, meta, now);
        }
        if !admission::may_begin(meta, &services.sysctls) {
            return self.reset(shared, packet, meta);
        }
        let key = match self.key(service, packet, meta) {
            Ok(key) => key,
            Err(reason) => return Verdict::Drop(reason),
        };
        if let Some(keeper) = key.as_ref().and_then(|key| shared.keeper_elsewhere(key.hash)) {
            return Verdict::HandOff(keeper);
        }
        if shared.defence.refuses() {
            return Verdict::Drop(Reason::LoadShed);
        }
        self.make_room(shared, now);
        if let Some(owner) = shared.announce(hash) {
            return Verdict::HandOff(owner);
        }
        let (dest, template) = match self.choose(shared, service, (packet, tuple), key, now) {
            Ok(Some(chosen)) => chosen,
            Ok(None) => {
                shared.withdraw(hash);
                shared.mine().count(Event::NoServer, 1);
                return self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now);
            }
            Err(reason) => {
                shared.withdraw(hash);
                return Verdict::Drop(reason);
            }
        };
        match self.begin(shared, meta, (service, &dest), now) {
            Ok(id) => {
                if let Some(template) = template {
                    self.made(template, id, now);
                }
                let verdict = self.deliver(shared, packet, meta, hash, id, now);
                if service.one_packet && tuple.protocol == UDP {
                    self.forget_packet(shared, meta, &verdict, id, now);
                }
                verdict
            }
            Err(reason) => {
                shared.withdraw(hash);
                match reason {
                    // Silence would cost the client seconds.
                    Reason::NoLocalPort => {
                        shared.mine().drop(reason);
                        match tuple.protocol {
                            TCP => self.reset(shared, packet, meta),
                            _ => self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now),
                        }
                    }
                    reason => Verdict::Drop(reason),
                }
            }
        }
    }

    /// Creates the connection of a packet to a real server.
    pub(super) fn begin(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        (service, dest): (&Service, &Dest),
        now: Tick,
    ) -> Result<ConnId, Reason> {
        // Control refuses real servers of another family for these methods.
        // A tunnel may lead to the other family.
        let server = A::of(dest.address).unwrap_or_default();
        let tuple = &meta.tuple;
        let mut marks = Marks::default();
        marks.set(Marks::NO_OUTPUT, !dest.forwarding.translates_replies());
        let is_ftp =
            dest.forwarding == Forwarding::Masq && tuple.protocol == TCP && tuple.destination_port == FTP;
        marks.set(Marks::FTP, is_ftp);
        let mut conn = Conn {
            client: tuple.source,
            virtual_address: tuple.destination,
            server,
            client_port: tuple.source_port,
            virtual_port: tuple.destination_port,
            // To another port than the service's goes FTP's data: real servers have the same.
            server_port: match dest.port {
                port if port != 0 && (tuple.destination_port == service.port || service.mark.is_some()) => {
                    port
                }
                _ => tuple.destination_port,
            },
            protocol: tuple.protocol,
            forwarding: dest.forwarding,
            detail: if is_ftp { Detail::default() } else { dest.tunnel.into() },
            marks,
            dest: dest.id,
            last_seen: now,
            timeout: EMBRYO,
            ..Conn::default()
        };
        if dest.forwarding == Forwarding::FullNat {
            Self::prepare_full_nat(shared, &mut conn, dest, now)?;
        }
        let Ok(id) = self.conns.insert(conn) else {
            if dest.forwarding == Forwarding::FullNat {
                Self::release_full_nat(shared, &conn, now);
            }
            return Err(Reason::TableFull);
        };
        if let Some(reply) = conn.reply() {
            // Whoever else claims the reply's tuple has the same real server and port: the kernel, too, finds the first one.
            let hash = self.conns.hash(&reply);
            shared.announce(hash);
        }
        if conn.marks.has(Marks::ACROSS) {
            Self::join_across(shared, &conn, id);
        }
        add(&shared.mine().dest(dest.id).conns, 1);
        self.bind(shared, dest.id);
        Ok(id)
    }

    /// Does the books for a connection that has come into the table.
    pub(super) fn bind(&self, shared: &Shared, id: DestId) {
        add(&shared.mine().dest(id).inactive, 1);
        shared.mine().count(Event::Created, 1);
        let most = shared.snapshot.services.dest(id).map_or(0, |dest| dest.upper_threshold);
        if most != 0 {
            let load = shared.counters.load(id);
            if load.active + load.inactive >= u64::from(most) {
                shared.counters.set_overloaded(id, true);
            }
        }
    }

    /// Ends the connection of a packet that is scheduled by itself. One that is in parts is remembered until they are there; one that waits for a neighbour will be scheduled
    /// anew.
    fn forget_packet(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        verdict: &Verdict,
        id: ConnId,
        now: Tick,
    ) {
        if let Verdict::Wait(..) = verdict {
            sub(&shared.mine().dest(self.conns.conn(id).dest).conns, 1);
        }
        match meta.fragment {
            Some(_) => {
                let conn = self.conns.conn_mut(id);
                (conn.last_seen, conn.timeout) = (now, EMBRYO);
                self.conns.hasten(id);
            }
            None => {
                // Nobody waits for more of it.
                self.conns.conn_mut(id).timeout = 0;
                self.cut(shared, id, now);
            }
        }
    }
}

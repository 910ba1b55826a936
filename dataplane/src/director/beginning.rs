//! How a connection begins: the first packet of one is admitted, and bound to a real server.

use std::net::IpAddr;
use std::sync::Arc;

use super::answers::is_refused_to_server;
use super::beyond::Near;
use super::family::Family;
use super::owners::Notice;
use super::{Shared, Verdict, admission};
use crate::conn::{Conn, ConnId, Detail, Direction, Marks, State};
use crate::forward::icmp::Problem;
use crate::packet::protocol::{TCP, UDP};
use crate::packet::{Address, Meta, Packet, Tuple, V4};
use crate::profile::Stage;
use crate::service::{Dest, DestId, FTP, FTP_DATA, Forwarding, Service, Snapshot, Tick};
use crate::stats::{Event, Reason, add, sub};

/// Milliseconds a connection lives before its first packet has been tracked (`ip_vs_conn_new`).
const EMBRYO: u32 = 3_000;

/// Why a packet of a service has not begun a connection.
pub(super) enum Unscheduled {
    /// Nobody takes it.
    NoServer,
    /// What becomes of it instead.
    Verdict(Verdict),
}

impl From<Verdict> for Unscheduled {
    fn from(verdict: Verdict) -> Self {
        Unscheduled::Verdict(verdict)
    }
}

impl From<Reason> for Unscheduled {
    fn from(reason: Reason) -> Self {
        Unscheduled::Verdict(Verdict::Drop(reason))
    }
}

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
        let Some(service) = services.services.find_for(tuple, packet.port()) else {
            if speaks_ftp && let Some(verdict) = self.stray_of_ftp(shared, packet, meta) {
                return verdict;
            }
            return self.stray(shared, packet, meta, tuple, now);
        };
        if admission::is_impossible(tuple.source, &services.network, packet.port()) {
            return Verdict::Drop(Reason::ImpossibleSource);
        }
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
        shared.watch.lap(Stage::Decide);
        let scheduled = self.schedule_new(shared, packet, meta, hash, (&services, service), now);
        shared.watch.lap(Stage::Begin);
        let id = match scheduled {
            Ok(id) => id,
            Err(Unscheduled::NoServer) if is_bypassed(&services, service, tuple) => {
                match self.bypass(shared, tuple, hash, now) {
                    Ok(id) => id,
                    Err(verdict) => return verdict,
                }
            }
            Err(Unscheduled::NoServer) => {
                shared.mine().count(Event::NoServer, 1);
                return self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now);
            }
            // Silence would cost the client seconds.
            Err(Unscheduled::Verdict(Verdict::Drop(Reason::NoLocalPort))) => {
                shared.mine().drop(Reason::NoLocalPort);
                return match tuple.protocol {
                    TCP => self.reset(shared, packet, meta),
                    _ => self.refuse(shared, packet, meta, Problem::PortUnreachable, None, now),
                };
            }
            Err(Unscheduled::Verdict(verdict)) => return verdict,
        };
        let verdict = self.deliver(shared, packet, meta, hash, id, now);
        if service.is_for_one(tuple) {
            self.forget_packet(shared, meta, &verdict, id, now);
        }
        verdict
    }

    /// Creates the connection of a service's packet, to the real server that is chosen for it.
    pub(super) fn schedule_new(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        (snapshot, service): (&Snapshot, &Service),
        now: Tick,
    ) -> Result<ConnId, Unscheduled> {
        let key = self.key(service, packet, meta)?;
        if let Some(keeper) = key.as_ref().and_then(|key| shared.keeper_elsewhere(key.hash)) {
            // There is no connection of it here. If this worker said that there is, the keeper would send the packet back, and so on.
            shared.withdraw(hash);
            return Err(Verdict::hand_off(keeper).into());
        }
        if shared.defence.refuses() {
            return Err(Reason::LoadShed.into());
        }
        self.make_room(shared, now);
        if let Some(owner) = shared.announce(hash) {
            return Err(Verdict::hand_off(owner).into());
        }
        let begun = match self.choose(shared, (snapshot, service), (packet, &meta.tuple), key, now) {
            Ok(Some((dest, template))) => {
                let begun = self.begin(shared, meta, hash, (service, dest), now);
                begun.inspect(|id| template.into_iter().for_each(|template| self.made(template, *id, now)))
            }
            Ok(None) => {
                shared.withdraw(hash);
                return Err(Unscheduled::NoServer);
            }
            Err(reason) => Err(reason),
        };
        begun.map_err(|reason| {
            shared.withdraw(hash);
            reason.into()
        })
    }

    /// Creates a connection that goes past all real servers.
    fn bypass(
        &mut self,
        shared: &mut Shared,
        tuple: &Tuple<A>,
        hash: u64,
        now: Tick,
    ) -> Result<ConnId, Verdict> {
        if let Some(owner) = shared.announce(hash) {
            return Err(Verdict::hand_off(owner));
        }
        let conn = Conn {
            client: tuple.source,
            virtual_address: tuple.destination,
            client_port: tuple.source_port,
            virtual_port: tuple.destination_port,
            protocol: tuple.protocol,
            forwarding: Forwarding::Bypass,
            state: first_state(tuple.protocol),
            dest: DestId::NOBODY,
            last_seen: now,
            timeout: EMBRYO,
            ..Conn::default()
        };
        let id = self.conns.insert_hashed(conn, hash).map_err(|_| {
            shared.withdraw(hash);
            Verdict::Drop(Reason::TableFull)
        })?;
        self.bind(shared, DestId::NOBODY);
        Ok(id)
    }

    /// Creates the connection of a packet to a real server.
    pub(super) fn begin(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        hash: u64,
        (service, dest): (&Service, &Dest),
        now: Tick,
    ) -> Result<ConnId, Reason> {
        // Control refuses real servers of another family for these methods.
        // A tunnel may lead to the other family.
        let server = A::of(dest.address).unwrap_or_default();
        let tuple = &meta.tuple;
        // What goes to the machine itself as it is, is translated to where it went: its replies come back the same way as those of others there.
        let stays = !dest.forwarding.translates_replies() && shared.snapshot.network.is_at_home(dest.address);
        let (forwarding, server) = match stays {
            true => (Forwarding::Masq, tuple.destination),
            false => (dest.forwarding, server),
        };
        let mut marks = Marks::default();
        marks.set(Marks::NO_OUTPUT, !forwarding.translates_replies());
        let is_ftp =
            dest.forwarding == Forwarding::Masq && tuple.protocol == TCP && tuple.destination_port == FTP;
        marks.set(Marks::FTP, is_ftp);
        let mut conn = Conn {
            client: tuple.source,
            virtual_address: tuple.destination,
            server,
            client_port: tuple.source_port,
            virtual_port: tuple.destination_port,
            server_port: match dest.port {
                _ if stays => tuple.destination_port,
                port if port != 0 && is_for_its_port(service, tuple.destination_port) => port,
                _ => tuple.destination_port,
            },
            protocol: tuple.protocol,
            forwarding,
            marks,
            dest: dest.id,
            state: first_state(tuple.protocol),
            last_seen: now,
            timeout: EMBRYO,
            ..Conn::default()
        };
        if dest.forwarding == Forwarding::FullNat {
            Self::prepare_full_nat(shared, &mut conn, dest, now)?;
        }
        conn.detail = match conn.forwarding.translates_replies() {
            true if conn.marks.has(Marks::FTP.and(Marks::TELLS)) => Detail::default(),
            true => conn.translation().into(),
            false => dest.tunnel.into(),
        };
        let Ok(id) = self.conns.insert_hashed(conn, hash) else {
            if dest.forwarding == Forwarding::FullNat {
                Self::release_full_nat(shared, &conn, now);
            }
            return Err(Reason::TableFull);
        };
        self.announce_begun(shared, &conn, (id, hash));
        if conn.marks.has(Marks::ACROSS) {
            Self::join_across(shared, &conn, id);
        }
        add(&shared.mine().dest(dest.id).conns, 1);
        self.bind(shared, dest.id);
        Ok(id)
    }

    /// Tells the other workers of a connection's replies, and where it is: not where an IPv6 one is, as that does not go along with what they hand over, nor a tunnel's, whose
    /// packets need their hash anyway.
    fn announce_begun(&self, shared: &mut Shared, conn: &Conn<A>, (id, request): (ConnId, u64)) {
        if shared.directory.is_none() {
            return;
        }
        let is_of_use = A::ETHERTYPE == V4::ETHERTYPE && conn.forwarding != Forwarding::Tunnel;
        let candidate = |direction| is_of_use.then(|| (id.number(), direction).into());
        candidate(Direction::Request).into_iter().for_each(|candidate| shared.note(request, candidate));
        if let Some(reply) = conn.reply() {
            // FullNAT's was announced with its port.
            let is_known = conn.announced_reply().is_none();
            shared.tell_soon(Notice {
                hash: self.conns.hash(&reply),
                is_known,
                candidate: candidate(Direction::Reply),
            });
        }
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
    pub(super) fn forget_packet(
        &mut self,
        shared: &mut Shared,
        meta: &Meta<A>,
        verdict: &Verdict,
        id: ConnId,
        now: Tick,
    ) {
        let conn = self.conns.conn(id);
        if matches!(verdict, Verdict::Wait(..)) && conn.has_server() {
            sub(&shared.mine().dest(conn.dest).conns, 1);
        }
        match meta.fragment {
            Some(_) => {
                // The state that no other connection of UDP's is in.
                let conn = self.conns.conn_mut(id);
                (conn.state, conn.last_seen, conn.timeout) = (State::None, now, EMBRYO);
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

/// The state of a connection before its first packet has been tracked. UDP's have one only.
fn first_state(protocol: u8) -> State {
    if protocol == UDP { State::Udp } else { State::None }
}

/// Whether a connection to this port goes to the port that a real server was added with. FTP's data goes to the same port as at the virtual address, and so does all of a persistent mark
/// (`ip_vs_sched_persist`).
fn is_for_its_port(service: &Service, port: u16) -> bool {
    match service.mark {
        Some(_) => service.persistence.is_none(),
        None => port == service.port,
    }
}

/// Whether a packet that no real server takes goes to where it is addressed (`ip_vs_leave`). It is made for caches that a mark's service leads everybody's requests
/// to: without one the servers themselves are still there. Only where there is a way out.
fn is_bypassed<A: Address>(snapshot: &Snapshot, service: &Service, tuple: &Tuple<A>) -> bool {
    let Snapshot { sysctls, network, .. } = snapshot;
    let destination: IpAddr = tuple.destination.into();
    let has_way = || network.route(destination).is_some_and(|route| route.link.is_some());
    let is_elsewhere = || !destination.is_multicast() && !network.is_local(destination) && has_way();
    sysctls.cache_bypass != 0 && service.mark.is_some() && is_elsewhere()
}

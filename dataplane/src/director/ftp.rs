//! FTP through NAT (`ip_vs_ftp`): what is said on a control connection is read, and the data connections it speaks of are made room for.
//!
//! ```text
//!   passive   client: PASV        server: 227 (its own address, port)    the client reads the virtual address there
//!             client:any ──▶ VIP:port ──▶ server:port                    expected, steered here before the answer is sent on
//!   active    client: PORT (address, port)
//!             client:port ◀── VIP:20 ◀── server:20                       expected; both ports are always steered here
//! ```
//!
//! A control connection about which something must be remembered has a [`Talk`], a data connection knows the talk it came of. As long as there are data
//! connections the control connection does not end: its time begins again, a minute each time (`n_control` of the kernel).
//!
//! Where an answer gets another length the stream is counted otherwise behind it: see [`Correction`]. A server's next answer of that kind waits until
//! the client has acknowledged the one before, so that one correction at a time is enough. Others pay for one test of a mark, and nothing
//! here is put in line with what they go through.

use std::net::IpAddr;

use super::beyond::Near;
use super::family::Family;
use super::{Shared, Verdict};
use crate::conn::{Conn, ConnId, Direction, Marks, State};
use crate::forward::correction::{self, Correction};
use crate::forward::icmp::Problem;
use crate::forward::sequence::{self, acknowledge, acknowledged};
use crate::forward::{self, reset};
use crate::packet::ftp::{self, Command, Listening, Mode};
use crate::packet::parse::tcp_flags;
use crate::packet::protocol::TCP;
use crate::packet::{Address, Meta, Packet, Tuple};
use crate::service::{FTP, FTP_DATA, Forwarding, Hop, Protocol, Tick};
use crate::stats::{Event, Reason};
use crate::steer::Target;

/// Talks that a worker may have in each family. A command that would begin one more is dropped; the client says it again.
const MOST: usize = 1 << 14;

/// The talks of a family, by the numbers that connections have of them.
pub struct Talks {
    talks: Vec<Talk>,
    free: Vec<u32>,
}

/// What is remembered of a control connection.
#[derive(Clone, Copy, Default)]
struct Talk {
    /// What the client has asked and the server has not answered.
    asked: Option<Mode>,
    /// The last answer that was replaced.
    correction: Option<Correction>,
    /// Whether the client has all of that.
    is_settled: bool,
    /// Behind the last number sent to the client, once there is a correction.
    sent: u32,
    /// Data connections that came of it.
    children: u32,
    /// The control connection, until it is gone.
    control: Option<ConnId>,
}

impl Default for Talks {
    fn default() -> Self {
        Self { talks: Vec::with_capacity(MOST), free: Vec::with_capacity(MOST) }
    }
}

impl Talks {
    fn begin(&mut self, control: ConnId) -> Option<u32> {
        let talk = Talk { control: Some(control), ..Talk::default() };
        if let Some(number) = self.free.pop() {
            self.talks[number as usize] = talk;
            return Some(number);
        }
        (self.talks.len() < MOST).then(|| {
            self.talks.push(talk);
            self.talks.len() as u32 - 1
        })
    }

    fn get(&mut self, number: u32) -> Option<&mut Talk> {
        self.talks.get_mut(number as usize)
    }

    /// Forgets a talk that nobody needs any more.
    fn forget(&mut self, number: u32) {
        let is_over = |talk: &Talk| talk.control.is_none() && talk.children == 0;
        if self.talks.get(number as usize).is_some_and(is_over) {
            self.free.push(number);
        }
    }
}

impl<A: Near> Family<A> {
    /// Reads what a client says on a control connection, and counts what it acknowledges as the server does. Gives what becomes of the packet if it does not go on.
    #[cold]
    #[inline(never)]
    pub(super) fn hear_client(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        now: Tick,
    ) -> Option<Verdict> {
        if meta.is_later_fragment() || meta.flags & tcp_flags::SYN != 0 {
            return None;
        }
        let control = *self.conns.conn(id);
        let command = match meta.fragment {
            None if control.state == State::Established => ftp::command(text(packet, meta)),
            _ => None,
        };
        if let Some(command) = command {
            if !reset::is_sound(packet, meta) {
                return Some(Verdict::Drop(Reason::BadChecksum));
            }
            // The kernel drops it as well when it has no memory. The client says it again.
            if let Err(reason) = self.obey(shared, id, command, now) {
                return Some(Verdict::Drop(reason));
            }
        }
        let talk = self.conns.conn(id).detail.talk().and_then(|number| self.talks.get(number))?;
        let correction = talk.correction.filter(|_| meta.flags & tcp_flags::ACK != 0)?;
        let number = acknowledged(packet, meta);
        if number.wrapping_sub(talk.sent) as i32 > 0 {
            return Some(Verdict::Drop(Reason::FtpUnsent));
        }
        talk.is_settled |= correction.is_settled_by(number);
        acknowledge(packet, meta, correction.to_server(number), |edge| correction.to_server(edge));
        None
    }

    /// Does what a command needs.
    fn obey(
        &mut self,
        shared: &mut Shared,
        id: ConnId,
        command: Command<A>,
        now: Tick,
    ) -> Result<(), Reason> {
        let control = self.conns.conn_mut(id);
        let number = match control.detail.talk() {
            Some(number) => number,
            None => {
                let number = self.talks.begin(id).ok_or(Reason::TableFull)?;
                control.detail.set_talk(number);
                number
            }
        };
        let asked = match command {
            Command::Listen(mode) => Some(mode),
            Command::Connect(client, client_port) => {
                let control = *control;
                let data = Conn {
                    client,
                    client_port,
                    virtual_port: FTP_DATA,
                    server_port: control.server_port.wrapping_sub(1),
                    ..expected(&control)
                };
                self.expect(shared, data, now)?;
                None
            }
        };
        if let Some(talk) = self.talks.get(number) {
            talk.asked = asked;
        }
        Ok(())
    }

    /// Reads what a server says on a control connection and makes it what the client may read. Gives what the packet is by then, or what becomes of it if it does not go on.
    #[cold]
    #[inline(never)]
    pub(super) fn hear_server(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        hop: &Hop,
        now: Tick,
    ) -> Result<Meta<A>, Verdict> {
        let mut meta = *meta;
        let Some(number) = self.conns.conn(id).detail.talk() else { return Ok(meta) };
        if meta.is_later_fragment() {
            return Ok(meta);
        }
        if meta.flags & tcp_flags::SYN != 0 {
            // The server has begun anew, and so do the numbers.
            if let Some(talk) = self.talks.get(number) {
                (talk.asked, talk.correction) = (None, None);
            }
            return Ok(meta);
        }
        let (first, (_, length)) = (sequence::number(packet, &meta), sequence::lengths(packet, &meta));
        let asked = self.talks.get(number).and_then(|talk| talk.asked).filter(|_| meta.fragment.is_none());
        if let Some(asked) = asked
            && let Some(answer) = ftp::listening(asked, text(packet, &meta))
        {
            if !reset::is_sound(packet, &meta) {
                return Err(Verdict::Drop(Reason::BadChecksum));
            }
            let at = first.wrapping_add(answer.at.start as u32);
            self.answered(shared, packet, &meta, id, (asked, &answer), at, now)?;
        }
        let Some(talk) = self.talks.get(number) else { return Ok(meta) };
        let Some(correction) = talk.correction else { return Ok(meta) };
        if correction.concerns(first, length) {
            if meta.fragment.is_some() {
                return Err(Verdict::Drop(Reason::FtpAnswer));
            }
            if !reset::is_sound(packet, &meta) {
                return Err(Verdict::Drop(Reason::BadChecksum));
            }
            let growth = correction.growth(first, length).max(0) as u16;
            if meta.length() + growth > hop.mtu && forward::forbids_fragments(packet, &meta) {
                let problem = Problem::TooBig(hop.mtu.saturating_sub(growth));
                return Err(self.refuse_as_router(shared, packet, &meta, problem, now));
            }
        }
        if !correction::rewrite(packet, &mut meta, &correction) {
            return Err(Verdict::Drop(Reason::FtpAnswer));
        }
        let is_last = meta.flags & tcp_flags::FIN != 0;
        let end = correction.to_client(first.wrapping_add(length as u32)).wrapping_add(is_last.into());
        if end.wrapping_sub(talk.sent) as i32 > 0 {
            talk.sent = end;
        }
        Ok(meta)
    }

    /// Makes room for the connection that an answer speaks of, and notes how the answer is to be replaced.
    #[allow(clippy::too_many_arguments, reason = "one call, and each says something else")]
    fn answered(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        id: ConnId,
        (asked, answer): (Mode, &Listening<A>),
        at: u32,
        now: Tick,
    ) -> Result<(), Verdict> {
        let control = *self.conns.conn(id);
        let Some(talk) = control.detail.talk().and_then(|number| self.talks.get(number)) else {
            return Ok(());
        };
        // It would take the control connection's own place.
        if answer.port == control.virtual_port {
            talk.asked = None;
            return Ok(());
        }
        // From now on, also while the answer waits: what the server says next may not wait.
        let place = ftp::place(asked, control.virtual_address, answer.port);
        let is_known = talk.correction.is_some_and(|correction| correction.at() == at);
        if !is_known && text(packet, meta)[answer.at.clone()] != *place.as_bytes() {
            if talk.correction.is_some() && !talk.is_settled {
                return Err(Verdict::Drop(Reason::FtpAnswer));
            }
            let before = talk.correction.map_or(0, |correction| correction.after());
            let correction = Correction::new(at, answer.at.len(), place, before);
            if talk.correction.is_none() {
                talk.sent = correction.to_client(at);
            }
            (talk.correction, talk.is_settled) = (Some(correction), false);
        }
        // A server that knows its virtual address may name it, and one that listens everywhere may say so.
        let names_none = |address: &A| *address == control.virtual_address || *address == A::default();
        let server = answer.address.filter(|address| !names_none(address)).unwrap_or(control.server);
        let mut data =
            Conn { server, virtual_port: answer.port, server_port: answer.port, ..expected(&control) };
        data.marks.set(Marks::NO_CLIENT_PORT, true);
        data.marks.set(Marks::STEERED, true);
        self.expect(shared, data, now).map_err(Verdict::Drop)?;
        if !targets(&data).into_iter().all(|target| shared.openings.is_open(target)) {
            return Err(Verdict::Hold);
        }
        if let Some(talk) = control.detail.talk().and_then(|number| self.talks.get(number)) {
            talk.asked = None;
        }
        Ok(())
    }

    /// Puts a data connection into the table before its first packet comes; one that is expected already listens again.
    fn expect(&mut self, shared: &mut Shared, mut data: Conn<A>, now: Tick) -> Result<(), Reason> {
        (data.last_seen, data.timeout) = (now, shared.snapshot.timeouts.of(State::Listen));
        let request = data.request();
        let hash = self.conns.hash(&request);
        if let Some((id, Direction::Request)) = self.find(shared, &request, hash, now) {
            let old = self.conns.conn(id);
            if old.marks.has(Marks::DATA)
                && (old.beyond(), old.detail, old.dest) == (data.beyond(), data.detail, data.dest)
            {
                self.conns.conn_mut(id).last_seen = now;
                self.enter(shared, id, State::Listen);
                return Ok(());
            }
            // Another control connection's, or another server's: the client does not expect that any more.
            self.cut(shared, id, now);
        }
        if data.marks.has(Marks::STEERED) {
            let [first, second] = targets(&data);
            shared.openings.enter(first).map_err(|_| Reason::TableFull)?;
            if shared.openings.enter(second).is_err() {
                shared.openings.leave(first);
                return Err(Reason::TableFull);
            }
        }
        if self.conns.insert_hashed(data, hash).is_err() {
            self.close(shared, &data);
            return Err(Reason::TableFull);
        }
        self.announce(shared, &data, hash);
        if data.marks.has(Marks::STEERED) {
            for place in places(&data) {
                let hash = self.conns.hash(&place);
                shared.announce(hash);
            }
        }
        if let Some(talk) = data.detail.talk().and_then(|number| self.talks.get(number)) {
            talk.children += 1;
            if let Some(control) = talk.control {
                self.conns.conn_mut(control).marks.set(Marks::PARENT, true);
            }
        }
        self.bind(shared, data.dest);
        shared.mine().count(Event::FtpExpected, 1);
        Ok(())
    }

    /// A packet of no connection may be the first of one that is expected: the client has chosen a port. Only where there is FTP.
    #[cold]
    #[inline(never)]
    pub(super) fn expected(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        hash: u64,
        now: Tick,
    ) -> Option<Verdict> {
        if meta.tuple.protocol != TCP {
            return None;
        }
        let from_any = Tuple { source_port: 0, ..meta.tuple };
        let expected = self.conns.hash(&from_any);
        let found = self.find(shared, &from_any, expected, now);
        let is_meant = |(id, direction): &(ConnId, Direction)| {
            *direction == Direction::Request && self.conns.conn(*id).marks.has(Marks::NO_CLIENT_PORT)
        };
        let Some((id, _)) = found.filter(is_meant) else {
            return shared.owner_elsewhere(expected).map(Verdict::hand_off);
        };
        let mut data = self.conns.remove(id);
        shared.withdraw(expected);
        if let Some(reply) = data.reply() {
            let hash = self.conns.hash(&reply);
            shared.withdraw(hash);
        }
        data.client_port = meta.tuple.source_port;
        data.marks.set(Marks::NO_CLIENT_PORT, false);
        // It has its old place at least.
        let Ok(id) = self.conns.insert_hashed(data, hash) else {
            return Some(Verdict::Drop(Reason::TableFull));
        };
        self.announce(shared, &data, hash);
        Some(self.request(shared, packet, meta, hash, id, now))
    }

    /// A packet of no connection and to no service, at a place that is steered here for FTP's sake: the virtual data port is closed for it, as the machine's own stack would have
    /// said. What comes from a data port of a real server is for the worker to route that knows of it.
    #[cold]
    #[inline(never)]
    pub(super) fn stray_of_ftp(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
    ) -> Option<Verdict> {
        let tuple = &meta.tuple;
        if tuple.protocol != TCP {
            return None;
        }
        let is_data_port =
            tuple.destination_port == FTP_DATA && shared.snapshot.services.speaks_ftp_at(tuple.destination);
        let (address, port) = (tuple.destination.into(), tuple.destination_port);
        if is_data_port || shared.openings.has(Target::Service { protocol: Protocol::Tcp, address, port }) {
            return Some(self.reset(shared, packet, meta));
        }
        let owner = ends(tuple).into_iter().find_map(|place| shared.owner_elsewhere(self.conns.hash(&place)));
        owner.map(Verdict::hand_off)
    }

    /// Does the books for a control or data connection that is no longer in the table.
    #[cold]
    #[inline(never)]
    pub(super) fn end_of_ftp(&mut self, shared: &mut Shared, conn: &Conn<A>) {
        self.close(shared, conn);
        let Some(number) = conn.detail.talk() else { return };
        let Some(talk) = self.talks.get(number) else { return };
        if conn.marks.has(Marks::FTP) {
            talk.control = None;
        } else {
            talk.children = talk.children.saturating_sub(1);
            if let Some(control) = talk.control.filter(|_| talk.children == 0) {
                self.conns.conn_mut(control).marks.set(Marks::PARENT, false);
            }
        }
        self.talks.forget(number);
    }

    /// Lets go of the frames that are steered for a connection.
    fn close(&self, shared: &mut Shared, conn: &Conn<A>) {
        if !conn.marks.has(Marks::STEERED) {
            return;
        }
        for (target, place) in targets(conn).into_iter().zip(places(conn)) {
            if shared.openings.leave(target) {
                shared.withdraw(self.conns.hash(&place));
            }
        }
    }

    /// Says to all workers whose a connection is.
    fn announce(&self, shared: &Shared, conn: &Conn<A>, request: u64) {
        shared.announce(request);
        if let Some(reply) = conn.reply() {
            shared.announce(self.conns.hash(&reply));
        }
    }
}

/// What data connections of a control connection have of it.
fn expected<A: Address>(control: &Conn<A>) -> Conn<A> {
    let mut marks = Marks::default();
    marks.set(Marks::DATA, true);
    Conn {
        client: control.client,
        virtual_address: control.virtual_address,
        server: control.server,
        protocol: TCP,
        state: State::Listen,
        forwarding: Forwarding::Masq,
        marks,
        detail: control.detail,
        dest: control.dest,
        ..Conn::default()
    }
}

/// The frames that a data connection in passive mode needs: the client's, and the real server's.
fn targets<A: Address>(data: &Conn<A>) -> [Target; 2] {
    let protocol = Protocol::Tcp;
    let (service, server): (IpAddr, IpAddr) = (data.virtual_address.into(), data.server.into());
    [
        Target::Service { protocol, address: service, port: data.virtual_port },
        Target::RealServer { protocol, address: server, port: data.server_port },
    ]
}

/// The same as tuples with one end, by which workers tell each other.
fn places<A: Address>(data: &Conn<A>) -> [Tuple<A>; 2] {
    let [service, _] = ends(&data.request());
    let [_, server] = ends(&data.beyond());
    [service, server]
}

/// The destination and the source of a tuple alone.
fn ends<A: Address>(tuple: &Tuple<A>) -> [Tuple<A>; 2] {
    let nobody = A::default();
    [
        Tuple { source: nobody, source_port: 0, ..*tuple },
        Tuple { destination: nobody, destination_port: 0, ..*tuple },
    ]
}

/// A segment's data.
fn text<'a, A>(packet: &'a mut Packet, meta: &Meta<A>) -> &'a [u8] {
    let (header, _) = sequence::lengths(packet, meta);
    &packet.data()[usize::from(meta.transport) + header..usize::from(meta.end)]
}

// What a client says to one service must not be read as said to another.
const _: () = assert!(FTP_DATA + 1 == FTP);

//! ICMP errors about what the director sent into tunnels: they come to the director itself, and concern a client.
//!
//! Whose they are is decided by the inner packet: it must be a request of a connection that is tunnelled in just this way to just that real server. So an
//! error about a tunnel of the machine's own is left alone, and nobody can forge one who does not know a live connection.

use super::beyond::Near;
use super::family::Family;
use super::hops::Toward;
use super::{Director, Shared, Verdict};
use crate::conn::Direction;
use crate::forward::icmp::{self, Problem};
use crate::forward::undelivered::{self, Fate, Undelivered};
use crate::forward::{address, forbids_fragments, tunnel};
use crate::packet::parse::ETHERNET;
use crate::packet::{Address, Meta, Packet};
use crate::service::{Forwarding, Tick};
use crate::stats::{Event, Reason};

impl Director {
    /// What becomes of a packet if it is an error about the director's own tunnel; `None` for all others.
    #[inline]
    pub(super) fn undelivered<O: Address>(
        &mut self,
        packet: &mut Packet,
        meta: &Meta<O>,
        now: Tick,
    ) -> Option<Verdict> {
        if meta.tuple.protocol != O::ICMP || meta.fragment.is_some() {
            return None;
        }
        let error = undelivered::read(packet, meta)?;
        let network = &self.shared.snapshot.network;
        if !network.is_local(meta.tuple.destination) || !network.is_local(error.unwrapped.ends.source) {
            return None;
        }
        let shared = &mut self.shared;
        if error.unwrapped.is_v4 {
            self.v4.undelivered(shared, packet, meta, &error, now)
        } else {
            self.v6.undelivered(shared, packet, meta, &error, now)
        }
    }
}

impl<A: Near> Family<A> {
    /// Tells the client whose packet it was, and notes what the path carries.
    fn undelivered<O: Address>(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        outer: &Meta<O>,
        error: &Undelivered,
        now: Tick,
    ) -> Option<Verdict> {
        let inner: Meta<A> = error.inner(packet, outer)?;
        let hash = self.conns.hash(&inner.tuple);
        let Some((id, Direction::Request)) = self.find(shared, &inner.tuple, hash, now) else {
            return shared.owner_elsewhere(hash).map(Verdict::hand_off);
        };
        let conn = *self.conns.conn(id);
        let server = error.unwrapped.ends.destination;
        let dest = shared.snapshot.services.dest(conn.dest).filter(|dest| dest.address == server)?;
        let tunnel = conn.detail.tunnel();
        if conn.forwarding != Forwarding::Tunnel || error.unwrapped.wrapping != (tunnel.kind, tunnel.port) {
            return None;
        }
        let overhead = tunnel::overhead(tunnel, &dest.address);
        if !icmp::is_sound(packet, outer) {
            return Some(Verdict::Drop(Reason::BadChecksum));
        }

        let problem = match error.fate {
            Fate::TooBig(mtu) => {
                // An error about a path that is wider than the link to it says nothing.
                let link = self.hop(shared, id, Toward::Server).map_or(u16::MAX, |hop| hop.mtu);
                let before = shared.paths.mtu(&server, now).min(link);
                let path = shared.paths.learn(server, mtu, now).min(link);
                if path < before {
                    shared.mine().count(Event::PathNarrowed, 1);
                }
                let room = tunnel::room::<A>(path, overhead);
                forbids_fragments(packet, &inner).then_some(Problem::TooBig(room))
            }
            Fate::Other(kind, code) => undelivered::problem::<O, A>(kind, code),
        };
        let Some(problem) = problem else { return Some(Verdict::Drop(Reason::AbsorbedIcmp)) };

        let hop = match self.hop(shared, id, Toward::Client) {
            Ok(hop) => hop,
            Err(why) => return Some(why.into()),
        };
        if problem.is_limited() && !shared.limiter.allows(inner.tuple.source.into(), now) {
            return Some(Verdict::Drop(Reason::RateLimited));
        }
        // As when the director itself refuses a packet: from the virtual address.
        icmp::answer(packet, &inner, problem, inner.tuple.destination);
        let counters = shared.mine().dest(conn.dest);
        counters.count_out((packet.len() - ETHERNET) as u64);
        address(packet, &hop);
        Some(Verdict::Reply(hop.port))
    }
}

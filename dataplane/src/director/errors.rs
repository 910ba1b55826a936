//! ICMP errors about connections, on their way through the director.

use std::sync::Arc;

use super::beginning::Unscheduled;
use super::beyond::{self, Near};
use super::family::Family;
use super::hops::Toward;
use super::sending::mtu;
use super::{Shared, Verdict};
use crate::conn::{ConnId, Direction, Marks};
use crate::forward::icmp::{Message, Quote};
use crate::forward::{self, dr, icmp};
use crate::packet::{Meta, Packet};
use crate::service::{FTP_DATA, Forwarding, Service, Snapshot, Tick};
use crate::stats::Reason;

impl<A: Near> Family<A> {
    /// An ICMP packet: perhaps an error about a connection.
    pub(super) fn icmp(
        &mut self,
        far: &mut Family<A::Other>,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        now: Tick,
    ) -> Verdict {
        let quote = match icmp::read(packet, meta) {
            Message::Other | Message::Unusable => return Verdict::Pass,
            Message::Error(quote) => quote,
        };
        // The quoted packet went the other way: turned round it is one of its receiver's own.
        let tuple = quote.tuple;
        let turned = tuple.turned();
        let hash = self.conns.hash(&turned);
        let Some((id, direction)) = self.find(shared, &turned, hash, now) else {
            if let Some(id) = beyond::find(shared, &turned, hash) {
                return self.error_across(far, shared, packet, meta, &quote, id);
            }
            if let Some(owner) = shared.owner_elsewhere(hash) {
                return Verdict::hand_off(owner);
            }
            let snapshot = Arc::clone(&shared.snapshot);
            let Some(service) = snapshot.services.find_for(&turned, packet.port()) else {
                return self.stray(shared, packet, meta, &turned, now);
            };
            if snapshot.sysctls.schedule_icmp == 0 {
                return Verdict::Drop(Reason::StrayIcmp);
            }
            // As of the connection's own packets there is none yet.
            let asks = Meta { tuple: turned, ..*meta };
            return match self.schedule_by_error(shared, packet, &asks, hash, (&snapshot, service), now) {
                Ok(id) => {
                    let found = (id, Direction::Request);
                    let verdict = self.error(shared, packet, meta, &quote, (found, hash), now);
                    if service.is_for_one(&turned) {
                        self.forget_packet(shared, meta, &verdict, id, now);
                    }
                    verdict
                }
                Err(verdict) => verdict,
            };
        };
        self.error(shared, packet, meta, &quote, ((id, direction), hash), now)
    }

    /// Begins the connection that an error is about (`schedule_icmp`).
    fn schedule_by_error(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        asks: &Meta<A>,
        hash: u64,
        (snapshot, service): (&Snapshot, &Service),
        now: Tick,
    ) -> Result<ConnId, Verdict> {
        if asks.tuple.source_port == FTP_DATA {
            return Err(Verdict::Drop(Reason::StrayIcmp));
        }
        // An error has no call.
        if service.persistence.is_some_and(|persistence| persistence.by_call) {
            return Err(Verdict::Drop(Reason::NoCall));
        }
        self.schedule_new(shared, packet, asks, hash, (snapshot, service), now).map_err(|why| match why {
            Unscheduled::NoServer => Verdict::Drop(Reason::StrayIcmp),
            Unscheduled::Verdict(verdict) => verdict,
        })
    }

    /// An error about a known connection, on its way to the end that `direction` leads to.
    fn error(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        quote: &Quote<A>,
        ((id, direction), hash): ((ConnId, Direction), u64),
        now: Tick,
    ) -> Verdict {
        if self.conns.conn(id).forwarding == Forwarding::Tunnel {
            self.wrap_as_now(shared, id);
        }
        let conn = *self.conns.conn(id);
        let toward = Toward::of(direction);
        let is_gone = conn.has_server() && !shared.snapshot.services.has_dest(conn.dest);
        if direction == Direction::Request && is_gone {
            return Verdict::Drop(Reason::NoDest);
        }
        if conn.forwarding.translates_replies() && !icmp::is_sound(packet, meta) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        let hop = match self.hop(shared, id, toward) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        let counters = shared.mine().dest(conn.dest);
        let length = u64::from(meta.length());
        if direction == Direction::Request {
            counters.count_in(length);
        }
        let is_home = shared.snapshot.network.is_home(hop.link);
        if !forward::may_go_on(packet, meta, is_home) {
            // Nobody answers an error with an error.
            return Verdict::Drop(Reason::StrayIcmp);
        }
        forward::spare(packet, meta, is_home);
        let mtu = match direction {
            Direction::Request => mtu(shared, &conn, &hop, now),
            Direction::Reply => hop.mtu,
        };
        if forward::is_too_big(packet, meta, mtu) {
            // As above: its sender cannot be told.
            return Verdict::Drop(Reason::TooBig);
        }
        if conn.marks.has(Marks::ACROSS) {
            return Self::error_to_server_across(shared, packet, meta, quote, &conn, &hop);
        }
        let is_full = conn.forwarding == Forwarding::FullNat;
        let new = match direction {
            Direction::Request => match conn.forwarding {
                Forwarding::Route | Forwarding::Bypass => {
                    dr::request(packet, meta, &hop);
                    return self.send(shared, packet, &hop);
                }
                Forwarding::Tunnel => {
                    let way = (conn.dest, conn.detail.tunnel(), hash);
                    return self.tunnel(shared, packet, meta, way, &hop, now);
                }
                Forwarding::Masq | Forwarding::FullNat => icmp::Translated {
                    source: if is_full { conn.local } else { meta.tuple.source },
                    destination: conn.server,
                    quoted: conn.beyond(),
                },
            },
            Direction::Reply => {
                counters.count_out(length);
                if is_full {
                    Self::take_back_quoted(packet, quote, meta.end, &conn);
                }
                icmp::Translated {
                    source: conn.virtual_address,
                    destination: if is_full { conn.client } else { meta.tuple.destination },
                    quoted: conn.request(),
                }
            }
        };
        icmp::translate(packet, meta, quote, &new, &hop);
        self.send(shared, packet, &hop)
    }
}

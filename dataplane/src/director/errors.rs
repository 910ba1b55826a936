//! ICMP errors about connections, on their way through the director.

use super::beyond::{self, Near};
use super::family::Family;
use super::hops::Toward;
use super::sending::mtu;
use super::{Shared, Verdict};
use crate::conn::{Direction, Marks};
use crate::forward::icmp::Message;
use crate::forward::{self, dr, icmp};
use crate::packet::{Meta, Packet};
use crate::service::{Forwarding, Tick};
use crate::stats::{Reason, add};

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
                return Verdict::HandOff(owner);
            }
            let services = &shared.snapshot.services;
            if services.find_for(&turned, packet.port).is_some() {
                return Verdict::Drop(Reason::StrayIcmp);
            }
            return self.stray(shared, packet, meta, &turned, now);
        };
        let conn = *self.conns.conn(id);
        let toward = match direction {
            Direction::Request => Toward::Server,
            Direction::Reply => Toward::Client,
        };
        if direction == Direction::Request && !shared.snapshot.services.has_dest(conn.dest) {
            return Verdict::Drop(Reason::NoDest);
        }
        if conn.forwarding.translates_replies() && !icmp::is_sound(packet, meta) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        if forward::hops_left(packet, meta) <= 1 {
            // Nobody answers an error with an error.
            return Verdict::Drop(Reason::StrayIcmp);
        }
        let hop = match self.hop(shared, id, toward) {
            Ok(hop) => hop,
            Err(why) => return why.into(),
        };
        let mtu = match direction {
            Direction::Request => mtu(shared, &conn, &hop, now),
            Direction::Reply => hop.mtu,
        };
        if forward::is_too_big(packet, meta, mtu) {
            // As above: its sender cannot be told.
            return Verdict::Drop(Reason::TooBig);
        }
        let counters = shared.mine().dest(conn.dest);
        let length = u64::from(meta.length());
        if conn.marks.has(Marks::ACROSS) {
            add(&counters.in_packets, 1);
            add(&counters.in_bytes, length);
            return Self::error_to_server_across(shared, packet, meta, &quote, &conn, &hop);
        }
        let is_full = conn.forwarding == Forwarding::FullNat;
        let new = match direction {
            Direction::Request => {
                add(&counters.in_packets, 1);
                add(&counters.in_bytes, length);
                match conn.forwarding {
                    Forwarding::Route => {
                        dr::request(packet, meta, &hop);
                        return self.send(shared, packet, &hop);
                    }
                    Forwarding::Tunnel => {
                        return self.tunnel(shared, packet, meta, (&conn, hash), &hop, now);
                    }
                    Forwarding::Masq | Forwarding::FullNat => icmp::Translated {
                        source: if is_full { conn.local } else { meta.tuple.source },
                        destination: conn.server,
                        quoted: conn.beyond(),
                    },
                }
            }
            Direction::Reply => {
                add(&counters.out_packets, 1);
                add(&counters.out_bytes, length);
                if is_full {
                    Self::take_back_quoted(packet, &quote, meta.end, &conn);
                }
                icmp::Translated {
                    source: conn.virtual_address,
                    destination: if is_full { conn.client } else { meta.tuple.destination },
                    quoted: conn.request(),
                }
            }
        };
        icmp::translate(packet, meta, &quote, &new, &hop);
        self.send(shared, packet, &hop)
    }
}

//! The short way: a plain packet of a connection that goes on as it did.
//!
//! Nearly all packets are such, and nothing about them is news: no state changes, no timeout, no next hop. What [the long way](super::family) asks of a packet one
//! after the other is asked of these at once, before anything is changed; one of which anything is otherwise goes the long way, from its beginning. So this file
//! decides nothing that is not decided there, and may leave out any packet. Tests and fuzz targets have a second director that only
//! knows the long way, and hold both to the same bytes, verdicts, connections and counters.

use arrayvec::ArrayVec;

use super::ahead::{Glance, HEADERS, Kind};
use super::beyond::Near;
use super::family::Family;
use super::hops::Toward;
use super::sending::{Ids, way_inside};
use super::{Shared, Verdict};
use crate::conn::memory::SOON;
use crate::conn::{Conn, Direction, Marks, State};
use crate::forward::{self, tunnel};
use crate::packet::parse::ETHERNET;
use crate::packet::{Packet, Plain};
use crate::port::BURST;
use crate::service::{Forwarding, Hop, PortId, Snapshot, Tick};
use crate::stats::Event;

/// Connections whose packets need to be looked at more closely. What is retired is not looked for, but another worker may have found it before.
const DEMANDING: Marks =
    Marks::TELLS.and(Marks::ACROSS).and(Marks::TEMPLATE).and(Marks::FTP).and(Marks::RETIRED);

impl<A: Near> Family<A> {
    /// Decides about the packets that go the short way, up to the first of another kind or that does not.
    // Not inlined: alone, it has registers enough.
    #[inline(never)]
    pub(super) fn go_on(
        &mut self,
        shared: &Shared,
        packets: &mut [Packet],
        glances: &[Glance],
        is_plain: impl Fn(Kind) -> bool,
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        let (mut forwarded, mut handed_off) = (0, 0);
        let (mut packets, handed) = (packets, shared.handed);
        for (n, glance) in glances.iter().enumerate() {
            let Some((packet, later)) = packets.split_first_mut() else { break };
            if handed {
                later.get(HEADERS - 1).into_iter().for_each(Packet::prefetch);
            }
            if let Some(soon) = glances.get(n + SOON) {
                self.conns.prefetch_near(&soon.likely);
            }
            packets = later;
            if !is_plain(glance.kind) {
                break;
            } else if let Some(port) = self.goes_on(shared, packet, glance, now) {
                verdicts.push(Verdict::Forward(port));
                forwarded += 1;
            } else if self.hands_off(shared, glance, verdicts) {
                handed_off += 1;
            } else {
                break;
            }
        }
        shared.mine().count(Event::Forwarded, forwarded);
        shared.mine().count(Event::HandedOff, handed_off);
    }

    /// Hands a packet over, if it is certain that its connection is another worker's.
    // Not inlined: packets of this worker's own would pay for it.
    #[inline(never)]
    fn hands_off(&self, shared: &Shared, glance: &Glance, verdicts: &mut ArrayVec<Verdict, BURST>) -> bool {
        let is_none_here = self.conns.has_none(&glance.likely) && A::twins(&shared.beyond).is_empty();
        let verdict = if is_none_here { shared.elsewhere(glance) } else { None };
        verdicts.extend(verdict);
        verdict.is_some()
    }

    /// Sends a packet on; gives the port. `None` if it does not go the short way; nothing has changed then.
    #[inline(always)]
    fn goes_on(
        &mut self,
        shared: &Shared,
        packet: &mut Packet,
        glance: &Glance,
        now: Tick,
    ) -> Option<PortId> {
        let Snapshot { services, network, timeouts, .. } = &*shared.snapshot;
        let (id, direction) = glance.likely.candidate()?;
        let arrival = packet.port;
        let plain = Plain::<A::Header>::again(packet)?;
        let conn = self.conns.conn_mut(id);
        let steady = if plain.is_udp() { State::Udp } else { State::Established };
        let is_as_it_was =
            conn.state == steady && conn.timeout == timeouts.of(steady) && conn.remaining(now) > 0;
        if !is_as_it_was || conn.marks.has(DEMANDING) || plain.hops_left() <= 1 {
            return None;
        }
        let hop = self.hops.known(&conn.hops, Toward::of(direction))?;
        let (length, counters) = (plain.length(), shared.mine().dest(conn.dest));
        if length > hop.mtu {
            return None;
        }
        match direction {
            Direction::Request => {
                let is_usual = services.has_dest(conn.dest) && !network.is_home(hop.link);
                if !is_usual || plain.tuple() != conn.request() {
                    return None;
                }
                match conn.forwarding {
                    // A tunnel's outer headers are made of the hash.
                    Forwarding::Tunnel if glance.kind != Kind::FoundV4 => {
                        Self::wrap(&mut self.ids, shared, packet, conn, (glance.hash, now), hop)?;
                    }
                    _ if to_server(plain, conn, hop) => frame(packet, length, hop),
                    _ => return None,
                }
                conn.count_packet();
                counters.count_in(length.into());
            }
            Direction::Reply => {
                // The first answer to a datagram shows a template that its real server serves.
                let is_news = conn.marks.has(Marks::CONTROLLED) && plain.is_udp();
                let is_usual = !is_news && !network.is_home(arrival);
                if !is_usual || plain.tuple() != conn.beyond() || !to_client(plain, conn, hop) {
                    return None;
                }
                frame(packet, length, hop);
                counters.count_out(length.into());
            }
        }
        conn.last_seen = now;
        Some(hop.port)
    }

    /// Puts a client's packet into a tunnel, if it can leave that way in one piece.
    #[inline(never)]
    fn wrap(
        ids: &mut Ids,
        shared: &Shared,
        packet: &mut Packet,
        conn: &Conn<A>,
        (hash, now): (u64, Tick),
        hop: &Hop,
    ) -> Option<()> {
        let kind = conn.detail.tunnel();
        let (way, mtu) = way_inside(shared, conn.dest, hop, now).ok()?;
        tunnel::plain_request::<A::Header>(packet, kind, way, hop, mtu, (hash, || ids.next()))
    }
}

/// Rewrites a client's packet for its hop, if it is of one of the usual kinds.
#[inline(always)]
fn to_server<A: Near>(plain: &mut Plain<A::Header>, conn: &Conn<A>, hop: &Hop) -> bool {
    match conn.forwarding {
        Forwarding::Route => plain.age(),
        Forwarding::Masq if plain.has_checksum() => {
            plain.translate(None, Some((conn.server, conn.server_port)))
        }
        Forwarding::FullNat if plain.has_checksum() => {
            plain.translate(Some((conn.local, conn.local_port)), Some((conn.server, conn.server_port)));
        }
        _ => return false,
    }
    plain.macs = hop.macs;
    true
}

/// Rewrites a real server's packet for its hop, if it is of one of the usual kinds.
#[inline(always)]
fn to_client<A: Near>(plain: &mut Plain<A::Header>, conn: &Conn<A>, hop: &Hop) -> bool {
    let service = (conn.virtual_address, conn.virtual_port);
    match conn.forwarding {
        Forwarding::Masq if plain.has_checksum() => plain.translate(Some(service), None),
        Forwarding::FullNat if plain.has_checksum() => {
            plain.translate(Some(service), Some((conn.client, conn.client_port)));
        }
        _ => return false,
    }
    plain.macs = hop.macs;
    true
}

/// Drops Ethernet padding, and puts the hop's VLAN tags on.
#[inline(always)]
fn frame(packet: &mut Packet, length: u16, hop: &Hop) {
    packet.len = ETHERNET + usize::from(length);
    if !hop.tags.is_empty() {
        forward::address(packet, hop);
    }
}

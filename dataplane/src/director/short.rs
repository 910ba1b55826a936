//! The short way: a plain packet of a connection that goes on as it did.
//!
//! Nearly all packets are such, and nothing about them is news: no state changes, no timeout, no next hop. What [the long way](super::family) asks of a connection one
//! after the other is known of one that is [steady](crate::conn::hops), and what it asks of a packet is asked here before anything is changed; one of which anything is otherwise goes the long way, from its beginning. So this file
//! decides nothing that is not decided there, and may leave out any packet. Tests and fuzz targets have a second director that only
//! knows the long way, and hold both to the same bytes, verdicts, connections and counters.

use arrayvec::ArrayVec;

use super::ahead::{AHEAD, Glance, Kind};
use super::beyond::Near;
use super::family::Family;
use super::hops::Toward;
use super::sending::{Ids, way_inside};
use super::{Shared, Verdict};
use crate::conn::memory::{SOON, prefetch};
use crate::conn::{Conn, ConnId, Direction, Marks, State};
use crate::forward;
use crate::forward::tunnel::{self, Ends, Way};
use crate::packet::parse::ETHERNET;
use crate::packet::{Packet, Plain, V4, V6};
use crate::port::BURST;
use crate::service::{Forwarding, Hop, PortId, Snapshot, Tick, Tunnel};
use crate::stats::Event;

/// Connections that are never steady. What is retired is not in the index any more, but another worker's note may still lead to it. Where FTP's would have what
/// changes checksums they have their talk.
const DEMANDING: Marks =
    Marks::TELLS.and(Marks::ACROSS).and(Marks::TEMPLATE).and(Marks::FTP_ANY).and(Marks::RETIRED);

impl<A: Near> Family<A> {
    /// Decides about the packets that go the short way, up to the first of another kind or that does not.
    // Not inlined: alone, it has registers enough.
    #[inline(never)]
    pub(super) fn go_on(
        &mut self,
        shared: &Shared,
        (packets, glances, lines): (&mut [Packet], &[Glance], &[*const u8]),
        is_plain: impl Fn(Kind) -> bool,
        now: Tick,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) {
        let before = verdicts.len();
        let (mut n, mut handed_off) = (0, 0);
        loop {
            let mut lines = lines.get(n + AHEAD..).unwrap_or_default().iter();
            let rest = packets[n..].iter_mut().zip(&glances[n..]).zip(&glances[n + SOON..]);
            verdicts.extend(rest.map_while(|((packet, glance), soon)| {
                if !is_plain(glance.kind) {
                    return None;
                }
                lines.next().copied().into_iter().for_each(prefetch);
                self.conns.prefetch_near(&soon.likely);
                self.goes_on(shared, packet, glance, now).map(Verdict::Forward)
            }));
            n = verdicts.len() - before;
            if n == packets.len() {
                break;
            }
            let away = self.hand_over(shared, &glances[n..], &is_plain, verdicts);
            if away == 0 {
                break;
            }
            n += away;
            handed_off += away;
        }
        shared.mine().count(Event::Forwarded, (verdicts.len() - before - handed_off) as u64);
        shared.mine().count(Event::HandedOff, handed_off as u64);
    }

    /// Hands packets over, up to the first of which it is not certain that its connection is another worker's. Says how many.
    // Not inlined: packets of this worker's own would pay for it.
    #[inline(never)]
    fn hand_over(
        &self,
        shared: &Shared,
        glances: &[Glance],
        is_plain: impl Fn(Kind) -> bool,
        verdicts: &mut ArrayVec<Verdict, BURST>,
    ) -> usize {
        let before = verdicts.len();
        if A::twins(&shared.beyond).is_empty() {
            verdicts.extend(glances.iter().map_while(|glance| {
                let is_none_here = is_plain(glance.kind) && self.conns.has_none(&glance.likely);
                if is_none_here { shared.elsewhere(glance) } else { None }
            }));
        }
        verdicts.len() - before
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
        let (id, direction) = glance.likely.candidate()?;
        let arrival = packet.port();
        let plain = Plain::<A::Header>::again(packet)?;
        let conn = self.conns.conn_as_is(id);
        if conn.remaining(now) == 0 || plain.hops_left() <= 1 {
            return None;
        }
        let hop = match direction {
            Direction::Request => {
                if !plain.tuple().is(&conn.request()) {
                    return None;
                }
                let hop = self.hops.of_steady(&conn.hops, Toward::Server)?;
                debug_assert!(is_steady(conn, &shared.snapshot));
                let length = plain.length();
                if length > hop.plain_mtu {
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
                shared.mine().dest(conn.dest).count_in(length.into());
                hop
            }
            Direction::Reply => {
                // The first answer to a datagram shows a template that its real server serves.
                let is_news = conn.marks.has(Marks::CONTROLLED) && plain.is_udp();
                if is_news || !plain.tuple().is(&conn.beyond()) || shared.snapshot.network.is_home(arrival) {
                    return None;
                }
                let hop = self.hops.of_steady(&conn.hops, Toward::Client)?;
                debug_assert!(is_steady(conn, &shared.snapshot));
                let length = plain.length();
                if length > hop.plain_mtu || !to_client(plain, conn, hop) {
                    return None;
                }
                frame(packet, length, hop);
                shared.mine().dest(conn.dest).count_out(length.into());
                hop
            }
        };
        conn.last_seen = now;
        Some(hop.port)
    }

    /// Lets the packets of a connection go the short way, if nothing about it is news to them.
    #[inline(never)]
    pub(super) fn ease(&mut self, shared: &Shared, id: ConnId) {
        let is_steady =
            is_steady(self.conns.conn(id), &shared.snapshot) && !self.may_be_called_elsewhere(shared, id);
        self.conns.set_steady(id, is_steady);
    }

    /// Puts a client's packet into a tunnel, if it can leave that way in one piece.
    #[inline(always)]
    fn wrap(
        ids: &mut Ids,
        shared: &Shared,
        packet: &mut Packet,
        conn: &Conn<A>,
        (hash, now): (u64, Tick),
        hop: &Hop,
    ) -> Option<()> {
        let names = (hash, || ids.next_short());
        let bare = Tunnel::default();
        match Ends::between(A::own(hop), conn.server) {
            // Most tunnels are this. Said so, the compiler knows where everything stands.
            Some(ends) if conn.detail == bare.into() && !shared.paths.is_any_known() => {
                tunnel::plain_request::<A::Header, A>(packet, bare, ends, hop, hop.mtu, names)
            }
            _ => Self::wrap_otherwise(shared, packet, conn, now, hop, names),
        }
    }

    /// The same in a tunnel of any kind, to a real server of any family.
    // Not inlined: the usual way has the registers to itself.
    #[inline(never)]
    fn wrap_otherwise(
        shared: &Shared,
        packet: &mut Packet,
        conn: &Conn<A>,
        now: Tick,
        hop: &Hop,
        names: (u64, impl FnOnce() -> u16),
    ) -> Option<()> {
        let tunnel = conn.detail.tunnel();
        let (way, mtu) = way_inside(shared, conn.dest, hop, now).ok()?;
        match way {
            Way::V4(ends) => tunnel::plain_request::<A::Header, V4>(packet, tunnel, ends, hop, mtu, names),
            Way::V6(ends) => tunnel::plain_request::<A::Header, V6>(packet, tunnel, ends, hop, mtu, names),
        }
    }
}

/// Whether packets that are midstream change nothing about a connection. Who changes what is asked here takes the steadiness of one connection (`Table::conn_mut`), or of all
/// (`HopCache::doubt`).
fn is_steady<A>(conn: &Conn<A>, Snapshot { services, timeouts, .. }: &Snapshot) -> bool {
    matches!(conn.state, State::Udp | State::Established)
        && conn.timeout == timeouts.of(conn.state)
        && !conn.marks.has(DEMANDING)
        && services.has_dest(conn.dest)
}

/// Rewrites a client's packet for its hop, if it is of one of the usual kinds.
#[inline(always)]
fn to_server<A: Near>(plain: &mut Plain<A::Header>, conn: &Conn<A>, hop: &Hop) -> bool {
    let server = (conn.server, conn.server_port);
    let is_done = match conn.forwarding {
        Forwarding::Route => {
            plain.age();
            true
        }
        Forwarding::Masq => plain.translate(None, Some(server), conn.detail.translation()),
        Forwarding::FullNat => {
            let local = (conn.local, conn.local_port);
            plain.translate(Some(local), Some(server), conn.detail.translation())
        }
        _ => false,
    };
    if is_done {
        plain.macs = hop.macs;
    }
    is_done
}

/// Rewrites a real server's packet for its hop, if it is of one of the usual kinds.
#[inline(always)]
fn to_client<A: Near>(plain: &mut Plain<A::Header>, conn: &Conn<A>, hop: &Hop) -> bool {
    let (service, by) = ((conn.virtual_address, conn.virtual_port), conn.detail.translation().reversed());
    let is_done = match conn.forwarding {
        Forwarding::Masq => plain.translate(Some(service), None, by),
        Forwarding::FullNat => plain.translate(Some(service), Some((conn.client, conn.client_port)), by),
        _ => false,
    };
    if is_done {
        plain.macs = hop.macs;
    }
    is_done
}

/// Drops Ethernet padding, and puts the hop's VLAN tags on.
#[inline(always)]
fn frame(packet: &mut Packet, length: u16, hop: &Hop) {
    packet.set_len(ETHERNET + usize::from(length));
    if !hop.tags.is_empty() {
        forward::address(packet, hop);
    }
}

//! The last steps of a packet to a real server: what its way takes, and the pieces it goes in.

use super::beyond::Near;
use super::family::Family;
use super::{Shared, Verdict};
use crate::conn::{Conn, Marks};
use crate::forward::cut::Cut;
use crate::forward::{across, mss, tunnel};
use crate::packet::parse::{ETHERNET, tcp_flags};
use crate::packet::protocol::TCP;
use crate::packet::{Meta, Packet};
use crate::service::{DestId, Forwarding, Hop, Tick, Tunnel};
use crate::stats::{Event, Reason};

/// Ids for packets that may be cut up, one after the other. They begin anywhere, each worker's elsewhere, so that pieces of two workers' packets to one real server are
/// hardly taken for one packet's, and nobody can guess them (RFC 7739).
pub(super) struct Ids(u32);

impl Ids {
    /// Those from some random number on.
    pub fn begin_at(random: u64) -> Self {
        Self(random as u32)
    }

    /// The next one, for IPv6.
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }

    /// The next one, for IPv4.
    pub fn next_short(&mut self) -> u16 {
        self.next() as u16
    }
}

impl<A: Near> Family<A> {
    /// Holds a SYN to the segments that its service allows.
    #[inline]
    pub(super) fn limit_segments(shared: &Shared, packet: &mut Packet, meta: &Meta<A>, dest: DestId) {
        if meta.tuple.protocol == TCP && meta.flags & tcp_flags::SYN != 0 {
            Self::limit_segment(shared, packet, meta, dest);
        }
    }

    #[inline(never)]
    fn limit_segment(shared: &Shared, packet: &mut Packet, meta: &Meta<A>, dest: DestId) {
        if let Some(most) = shared.snapshot.services.dest(dest).and_then(|dest| dest.mss) {
            mss::clamp(packet, meta, most);
        }
    }

    /// Sends a finished packet by a hop, in pieces if it is too long for it.
    #[inline(always)]
    pub(super) fn send(&mut self, shared: &mut Shared, packet: &mut Packet, hop: &Hop) -> Verdict {
        let network = ETHERNET + hop.tags.len();
        match packet.len() <= network + usize::from(hop.mtu) {
            true => Verdict::Forward(hop.port),
            false => self.send_in_pieces(shared, packet, network, hop),
        }
    }

    #[cold]
    fn send_in_pieces(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        network: usize,
        hop: &Hop,
    ) -> Verdict {
        match Cut::of(packet.data(), network, hop.mtu, self.ids.next()) {
            Some(cut) if cut.pieces() <= shared.outbox.room() => {
                for piece in 0..cut.pieces() - 1 {
                    if let Some(out) = shared.outbox.add(hop.port, cut.length(piece)) {
                        cut.write(packet.data(), piece, out);
                    }
                }
                cut.keep_last(packet);
                shared.mine().count(Event::CutUp, 1);
                Verdict::Forward(hop.port)
            }
            _ => Verdict::Drop(Reason::TooBig),
        }
    }

    /// Wraps a packet and sends it to the real server, in pieces that the path is known to carry.
    pub(super) fn tunnel(
        &mut self,
        shared: &mut Shared,
        packet: &mut Packet,
        meta: &Meta<A>,
        (dest, tunnel, hash): (DestId, Tunnel, u64),
        hop: &Hop,
        now: Tick,
    ) -> Verdict {
        let (way, mtu) = match way_inside(shared, dest, hop, now) {
            Ok(found) => found,
            Err(reason) => return Verdict::Drop(reason),
        };
        let id = self.ids.next_short();
        tunnel::request(packet, meta, tunnel, way, hop, (hash, id));
        self.send(shared, packet, &Hop { mtu, ..*hop })
    }
}

/// The way of a tunnel to a real server, and the bytes of the tunnel's own packets that the path carries as far as is known.
#[inline]
pub(super) fn way_inside(
    shared: &Shared,
    dest: DestId,
    hop: &Hop,
    now: Tick,
) -> Result<(tunnel::Way, u16), Reason> {
    let address = shared.snapshot.services.dest(dest).ok_or(Reason::NoDest)?.address;
    let mtu = hop.mtu.min(shared.paths.mtu(&address, now));
    Ok((tunnel::Way::by(hop, address).ok_or(Reason::NoRoute)?, mtu))
}

/// Bytes of IP that fit on the way of a connection's requests, a tunnel's own headers taken off.
#[inline]
pub(super) fn mtu<A: Near>(shared: &Shared, conn: &Conn<A>, hop: &Hop, now: Tick) -> u16 {
    match conn.forwarding {
        Forwarding::Tunnel => mtu_inside(shared, conn, hop, now),
        _ if conn.marks.has(Marks::ACROSS) => across::fits::<A>(hop.mtu),
        _ => hop.mtu,
    }
}

fn mtu_inside<A: Near>(shared: &Shared, conn: &Conn<A>, hop: &Hop, now: Tick) -> u16 {
    let Some(dest) = shared.snapshot.services.dest(conn.dest) else { return hop.mtu };
    let overhead = tunnel::overhead(conn.detail.tunnel(), &dest.address);
    let path = shared.paths.mtu(&dest.address, now);
    hop.mtu.saturating_sub(overhead).min(tunnel::room::<A>(path, overhead))
}

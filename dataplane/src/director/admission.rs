//! Which packets begin connections, and when one takes the place of another.

use crate::conn::{Conn, Marks, State};
use crate::packet::parse::{chunks, tcp_flags};
use crate::packet::protocol::{SCTP, TCP, UDP};
use crate::packet::{Address, Meta, V4};
use crate::service::{Network, PortId, Snapshot, Sysctls};

/// The bit of `conn_reuse_mode` for connections whose replies are not seen.
const REUSE_HALF_CLOSED: i32 = 2;

/// Whether a packet asks for a new connection, also where there is one (`is_new_conn`).
#[inline]
fn asks_for_new<A>(meta: &Meta<A>) -> bool {
    match meta.tuple.protocol {
        TCP => meta.flags & tcp_flags::SYN != 0,
        SCTP => meta.flags == chunks::INIT,
        _ => false,
    }
}

/// Whether a packet ends a connection on the spot, so that it neither begins one nor is answered.
#[inline]
pub fn is_abrupt<A>(meta: &Meta<A>) -> bool {
    match meta.tuple.protocol {
        TCP => meta.flags & tcp_flags::RST != 0,
        SCTP => meta.flags == chunks::ABORT,
        _ => false,
    }
}

/// Whether a packet of no connection may begin one (`tcp_conn_schedule`, `sctp_conn_schedule`).
#[inline]
pub fn may_begin<A>(meta: &Meta<A>, sysctls: &Sysctls) -> bool {
    let is_sloppy = match meta.tuple.protocol {
        TCP => sysctls.sloppy_tcp != 0,
        SCTP => sysctls.sloppy_sctp != 0,
        _ => return true,
    };
    !is_abrupt(meta) && (is_sloppy || asks_for_new(meta))
}

/// Whether nobody can have sent from this address what came in by a port. A router drops it before IPVS sees it (`ip_route_input_slow`, `ipv6_rcv`), and whoever answers it answers nobody.
// Inlined, it makes a call of what takes more instructions as one.
#[inline(never)]
pub fn is_impossible<A: Address>(source: A, network: &Network, port: PortId) -> bool {
    // Of IPv6 the kernel does not mind its own.
    let is_own = || A::ETHERTYPE == V4::ETHERTYPE && network.is_local(source) && !network.is_home(port);
    source.is_no_source() || is_own()
}

/// Whether a connection is only there for the later parts of a datagram that was scheduled by itself.
#[inline]
pub fn is_for_parts<A>(conn: &Conn<A>) -> bool {
    conn.protocol == UDP && conn.state == State::None
}

/// Whether a packet of a connection begins a new one in its place, perhaps on another real server (`ip_vs_in_hook`,
/// `is_new_conn_expected`).
#[inline]
pub fn replaces<A: Address>(meta: &Meta<A>, conn: &Conn<A>, snapshot: &Snapshot) -> bool {
    // What a control connection of FTP speaks of is on its real server and no other.
    if !asks_for_new(meta) || conn.marks.has(Marks::DATA) {
        return false;
    }
    let Snapshot { sysctls, services, .. } = snapshot;
    let mode = sysctls.conn_reuse_mode;
    let is_over = conn.state.is_over()
        || mode & REUSE_HALF_CLOSED != 0 && conn.state == State::FinWait && conn.marks.has(Marks::NO_OUTPUT);
    // One that a template made stays on the real server that the template leads to.
    let gives_way = mode != 0 && is_over && !conn.marks.has(Marks::CONTROLLED);
    let is_quiesced = || services.dest(conn.dest).is_some_and(|dest| dest.weight == 0);
    gives_way || sysctls.expire_nodest_conn != 0 && is_quiesced()
}

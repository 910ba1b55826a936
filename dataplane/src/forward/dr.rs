//! Direct routing: the packet goes to the real server as it came, in a frame addressed to the real server.
//!
//! The real server has the virtual address itself and answers the client directly.

use super::route;
use crate::packet::{Address, Meta, Packet};
use crate::service::Hop;

/// Sends a request to the real server. Since Linux 4.x the time to live is decremented in this mode too.
#[inline(always)]
pub fn request<A: Address>(packet: &mut Packet, meta: &Meta<A>, hop: &Hop) {
    route(packet, meta, hop);
}

//! ICMP errors about packets that the director itself put into a tunnel, from the real server or a router on the way.
//!
//! ```text
//!   | IP, to the director | ICMP | outer IP | GUE · GRE · nothing | inner packet, perhaps cut short |
//! ```
//!
//! Their sender is not the client, and the client has sent no such packet: what it must be told is told anew, about the inner packet
//! (RFC 2003 §5, RFC 2473 §8; `ip_vs_in_icmp`). IPVS does so for IPv4 in IPv4 only and leaves the others without path MTU
//! discovery; here all pairs of families are alike.

use super::icmp::{self, Problem};
use super::tunnel::{self, Unwrapped};
use crate::packet::{Address, Meta, Packet, V4, be16, be32};

/// Such an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// How and between whom the packet was wrapped.
    pub unwrapped: Unwrapped,
    /// What became of it.
    pub fate: Fate,
    /// Offset of the inner packet in the frame.
    inner: u16,
}

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The packet is longer than this, which is what the path carries.
    TooBig(u32),
    /// Anything else, by type and code.
    Other(u8, u8),
}

/// Reads an ICMP packet; `None` if it does not quote a packet that is wrapped as the director wraps them.
pub fn read<O: Address>(packet: &mut Packet, meta: &Meta<O>) -> Option<Undelivered> {
    let transport = usize::from(meta.transport);
    let message = &packet.data()[transport..usize::from(meta.end)];
    if !icmp::is_error::<O>(message) {
        return None;
    }
    let unwrapped = tunnel::unwrap::<O>(&message[icmp::HEADER..])?;
    let fate = match (is_v4::<O>(), message[0], message[1]) {
        (true, 3, 4) => Fate::TooBig(be16(message, 6).into()),
        (false, 2, _) => Fate::TooBig(be32(message, 4)),
        (_, kind, code) => Fate::Other(kind, code),
    };
    Some(Undelivered { unwrapped, fate, inner: (transport + icmp::HEADER + unwrapped.inner) as u16 })
}

impl Undelivered {
    /// The inner packet as far as it was quoted, like one that came in by itself, so that [`icmp::answer`] can answer it. `None` if its ports
    /// were not.
    pub fn inner<O: Address, A: Address>(&self, packet: &mut Packet, outer: &Meta<O>) -> Option<Meta<A>> {
        let quote = &packet.data()[usize::from(self.inner)..usize::from(outer.end)];
        let (tuple, header) = icmp::quoted::<A>(quote)?;
        // What follows the packet may be padding, or something else that a router has to say (RFC 4884).
        let length =
            if is_v4::<A>() { usize::from(be16(quote, 2)) } else { A::HEADER + usize::from(be16(quote, 4)) };
        let end = usize::from(self.inner) + quote.len().min(length.max(header + 8));
        let transport = self.inner + header as u16;
        Some(Meta { tuple, network: self.inner, transport, end: end as u16, flags: 0, fragment: None })
    }
}

/// What the inner packet's sender is told when the outer one met this. Between the same families that is what the director was told, as by
/// IPVS. What has no meaning to the sender makes the real server unreachable, or nothing at all if it is only a wish.
pub fn problem<O: Address, A: Address>(kind: u8, code: u8) -> Option<Problem> {
    const V4_SOURCE_QUENCH: u8 = 4;
    const V6_UNREACHABLE: u8 = 1;
    const V6_TIME_EXCEEDED: u8 = 3;
    match (is_v4::<O>(), is_v4::<A>()) {
        (true, true) => Some(Problem::Reported(kind, code)),
        (true, false) if kind == V4_SOURCE_QUENCH => None,
        (false, false) if matches!(kind, V6_UNREACHABLE | V6_TIME_EXCEEDED) => {
            Some(Problem::Reported(kind, code))
        }
        _ => Some(Problem::HostUnreachable),
    }
}

fn is_v4<A: Address>() -> bool {
    A::ETHERTYPE == V4::ETHERTYPE
}

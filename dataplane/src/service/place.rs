//! An address with a port of a protocol, as a key.

use std::net::IpAddr;

/// An address with a port of a protocol, in words: hashing three takes few instructions, hashing an enum of bytes many.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place(u64, u64, u64);

impl Place {
    /// The place of a port.
    #[inline]
    pub fn new(address: IpAddr, port: u16, protocol: u8) -> Self {
        let (bits, family) = match address {
            IpAddr::V4(address) => (address.to_bits().into(), 4),
            IpAddr::V6(address) => (address.to_bits(), 6),
        };
        let rest = u64::from(port) << 16 | u64::from(protocol) << 8 | family;
        Self((bits >> 64) as u64, bits as u64, rest)
    }
}

//! Numbers of the protocols above IP that the director knows (IANA).

/// Errors and questions of IPv4.
pub const ICMP: u8 = 1;
/// RFC 9293.
pub const TCP: u8 = 6;
/// RFC 768.
pub const UDP: u8 = 17;
/// Errors and questions of IPv6.
pub const ICMPV6: u8 = 58;
/// RFC 9260.
pub const SCTP: u8 = 132;

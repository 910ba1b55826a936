//! The smallest frames there are, with right checksums in their IP headers.

use std::net::Ipv4Addr;

use shunt_dataplane::packet::checksum::Sum;
use shunt_dataplane::packet::{put16, put32};
use shunt_dataplane::port::frame::HEADROOM;

/// Bytes of a frame as small as Ethernet has them; with the check sequence, which no ring shows, they are 64.
pub const FRAME: usize = 60;

/// An address and a port.
pub type End = (Ipv4Addr, u16);

/// A UDP datagram of 18 bytes of data.
pub fn datagram(from: End, to: End) -> [u8; FRAME] {
    let mut frame = packet(17, 46, from, to);
    put16(&mut frame, 38, 26);
    // Any checksum will do: it is adjusted, never verified.
    put16(&mut frame, 40, 0x1234);
    frame
}

/// Where a [`numbered`] datagram has its client's number, and eight bytes drawn at random for that client. Both on the frame's first line, which is read anyway.
pub const NUMBER: usize = 44;
/// See [`NUMBER`].
pub const DRAWN: usize = 48;
const _: () = assert!(HEADROOM.is_multiple_of(64) && DRAWN + 8 <= FRAME);

/// The datagram of the client with a number, who has it and a draw in the data: a program without a table of connections goes by these.
pub fn numbered(n: u32, from: End, to: End) -> [u8; FRAME] {
    let mut frame = datagram(from, to);
    put32(&mut frame, NUMBER, n);
    frame[DRAWN..DRAWN + 8].copy_from_slice(&drawn(n).to_ne_bytes());
    frame
}

/// A number that looks drawn at random from all of 64 bits, the same for a client each time (splitmix64).
fn drawn(n: u32) -> u64 {
    let mixed = (u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// A TCP segment without data, padded.
pub fn segment(from: End, to: End, flags: u8) -> [u8; FRAME] {
    let mut frame = packet(6, 40, from, to);
    put32(&mut frame, 38, 1);
    (frame[46], frame[47]) = (0x50, flags);
    put16(&mut frame, 48, 0x2000);
    put16(&mut frame, 50, 0x1234);
    frame
}

fn packet(protocol: u8, length: u16, from: End, to: End) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    put16(&mut frame, 16, length);
    frame[20..24].copy_from_slice(&[0x40, 0, 64, protocol]);
    frame[26..30].copy_from_slice(&from.0.octets());
    frame[30..34].copy_from_slice(&to.0.octets());
    let sum = Sum::default().bytes(&frame[14..34]).field();
    put16(&mut frame, 24, sum);
    put16(&mut frame, 34, from.1);
    put16(&mut frame, 36, to.1);
    frame
}

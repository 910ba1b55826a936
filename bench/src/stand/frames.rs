//! The smallest frames there are, with right checksums in their IP headers.

use std::net::Ipv4Addr;

use shunt_dataplane::packet::checksum::Sum;
use shunt_dataplane::packet::{put16, put32};

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

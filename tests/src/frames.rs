//! Frames for tests: built from scratch, and read back by nothing of the data plane's own.

use std::net::{IpAddr, Ipv4Addr};

/// The Ethernet address of the director towards the clients, on the golden bench.
pub const C0: [u8; 6] = [0x02, 0x1b, 0, 0, 0, 0xc0];
/// The Ethernet address of the director towards the real servers, on the golden bench.
pub const S0: [u8; 6] = [0x02, 0x1b, 0, 0, 0, 0x50];

/// The client 10.0.h.l is 02:c0:00:00:hh:ll.
pub fn client_mac(address: Ipv4Addr) -> [u8; 6] {
    let [.., h, l] = address.octets();
    [0x02, 0xc0, 0, 0, h, l]
}

/// The real server 10.1.0.n is 02:50:00:00:00:nn.
pub fn server_mac(address: Ipv4Addr) -> [u8; 6] {
    [0x02, 0x50, 0, 0, 0, address.octets()[3]]
}

/// The Ethernet header, but for its type, of a frame from a host of the bench.
pub fn ethernet(from: IpAddr) -> Vec<u8> {
    let (own, peer) = match from {
        IpAddr::V4(address) => match address.octets() {
            [10, 1, 0, n] => (S0, [2, 0x50, 0, 0, 0, n]),
            [.., h, l] => (C0, [2, 0xc0, 0, 0, h, l]),
        },
        IpAddr::V6(address) => match address.segments() {
            [_, _, 0xb, .., n] => (S0, [2, 0x56, 0, 0, 0, n as u8]),
            [.., n] => (C0, [2, 0xc6, 0, 0, 0, n as u8]),
        },
    };
    [own, peer].concat()
}

/// TCP flags by their letters: `S`, `A`, `F`, `R`, `P`, `U`.
pub fn flags(letters: &str) -> u8 {
    letters.chars().fold(0, |flags, letter| {
        flags
            | match letter {
                'F' => 0x01,
                'S' => 0x02,
                'R' => 0x04,
                'P' => 0x08,
                'A' => 0x10,
                'U' => 0x20,
                other => panic!("{other} is no TCP flag"),
            }
    })
}

/// A TCP segment without data.
pub fn tcp(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&from.1.to_be_bytes());
    segment[2..4].copy_from_slice(&to.1.to_be_bytes());
    segment[4..8].copy_from_slice(&1000u32.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&8192u16.to_be_bytes());
    frame(macs, from.0, to.0, 6, segment, 16)
}

/// A UDP datagram of five bytes.
pub fn udp(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut datagram = [from.1.to_be_bytes(), to.1.to_be_bytes(), 13u16.to_be_bytes(), [0, 0]].concat();
    datagram.extend(b"hello");
    frame(macs, from.0, to.0, 17, datagram, 6)
}

/// An SCTP packet of these chunks, each a type and its value.
pub fn sctp(
    macs: ([u8; 6], [u8; 6]),
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    chunks: &[(u8, &[u8])],
) -> Vec<u8> {
    let mut packet = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &7u32.to_be_bytes(), &[0; 4]].concat();
    for (kind, value) in chunks {
        packet.extend([*kind, 0]);
        packet.extend((4 + value.len() as u16).to_be_bytes());
        packet.extend(*value);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    let crc = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&crc);
    ip_frame(macs, from.0, to.0, 132, &packet)
}

/// CRC32c, bit by bit (RFC 9260 appendix A).
pub fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82f6_3b78 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// A frame around a transport header and its data, whose checksum field at `checksum_at` is filled in. `macs` are source and
/// destination.
pub fn frame(
    macs: ([u8; 6], [u8; 6]),
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    mut payload: Vec<u8>,
    checksum_at: usize,
) -> Vec<u8> {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend([0, protocol]);
    pseudo.extend((payload.len() as u16).to_be_bytes());
    pseudo.extend(&payload);
    payload[checksum_at..checksum_at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    ip_frame(macs, from, to, protocol, &payload)
}

/// A frame around what follows the IP header.
fn ip_frame(macs: ([u8; 6], [u8; 6]), from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    ip.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let (source, destination) = macs;
    [&destination[..], &source, &[0x08, 0x00], &ip, payload].concat()
}

/// The Internet checksum, the long way.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for (at, byte) in bytes.iter().enumerate() {
        sum += u64::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Reads the hex of the golden files: bytes, and `{xx*n}` for n times the byte xx.
pub fn from_hex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(run) = rest.strip_prefix('{') {
            let (run, after) = run.split_once('}').expect("a run is closed");
            let (byte, count) = run.split_once('*').expect("a run is byte*count");
            let byte = u8::from_str_radix(byte, 16).expect("hex");
            bytes.extend(std::iter::repeat_n(byte, count.parse().expect("a count")));
            rest = after;
        } else {
            let (byte, after) = rest.split_at(2);
            bytes.push(u8::from_str_radix(byte, 16).expect("hex"));
            rest = after;
        }
    }
    bytes
}

/// Hex to compare and to print.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

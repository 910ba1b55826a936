//! How a NIC with several queues chooses one for a frame, and with it the worker: receive side scaling, the Toeplitz hash.
//!
//! A 32-bit window slides over the NIC's key, a bit for each bit of the frame's addresses and ports; where that bit is 1 the window is
//! added (without carry) to the hash. The hash's low bits are a place in the indirection table, which holds the queue. (Microsoft's RSS
//! specification, "RSS Hashing Functions".)
//!
//! Adding without carry is what makes the hash useful beyond the NIC: the hash of a frame is that of its frame with port 0, plus what the
//! port alone adds. So ports can be sorted once by what they add, and chosen for a queue without trying.

use std::net::IpAddr;

use super::{Local, Protocol, WorkerId};

/// The key and the indirection table of NICs that hash addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    key: Vec<u8>,
    /// The workers of the queues; a power of two of them.
    table: Vec<WorkerId>,
    /// Whether UDP's ports are hashed as well as TCP's.
    with_udp: bool,
}

/// All local ports, sorted by what they add to the place that a reply's hash leads to. To sort them takes some tens of milliseconds: control does it, once for all
/// workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted {
    spread: Spread,
    /// For IPv4 and IPv6: the ports, and where those that add 0, 1, 2 … begin among them, and where the last end.
    families: [(Vec<u16>, Vec<u16>); 2],
}

/// What a frame is hashed by: the ends as they stand in it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Source address and port.
    pub source: (IpAddr, u16),
    /// Destination address and port; of the source's family.
    pub destination: (IpAddr, u16),
}

/// Bytes of key that the longest input needs: IPv6 addresses, two ports, and a window.
const KEY: usize = 36 + 4;

impl Spread {
    /// Of a key and a table. `None` when they are too short, or of an odd size, or lead to one worker alone.
    pub fn new(key: Vec<u8>, table: Vec<WorkerId>, with_udp: bool) -> Option<Self> {
        let is_spread = table.iter().any(|worker| *worker != table[0]);
        (key.len() >= KEY && table.len().is_power_of_two() && is_spread).then_some(Self {
            key,
            table,
            with_udp,
        })
    }

    /// The worker that a frame comes to.
    pub fn worker(&self, ends: &Ends) -> WorkerId {
        self.worker_at(self.place(ends))
    }

    /// Whether frames of this IP protocol are hashed by their ports.
    pub fn hashes_ports_of(&self, protocol: u8) -> bool {
        protocol == Protocol::Tcp as u8 || (self.with_udp && protocol == Protocol::Udp as u8)
    }

    /// Places in the table.
    pub fn places(&self) -> usize {
        self.table.len()
    }

    /// The place in the table that a frame's hash leads to.
    pub fn place(&self, ends: &Ends) -> usize {
        let mut input = [0; 36];
        let addresses = match (ends.source.0, ends.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                input[..4].copy_from_slice(&source.octets());
                input[4..8].copy_from_slice(&destination.octets());
                8
            }
            (source, destination) => {
                for (at, address) in [(0, source), (16, destination)] {
                    let address = match address {
                        IpAddr::V4(address) => address.to_ipv6_mapped(),
                        IpAddr::V6(address) => address,
                    };
                    input[at..at + 16].copy_from_slice(&address.octets());
                }
                32
            }
        };
        input[addresses..addresses + 2].copy_from_slice(&ends.source.1.to_be_bytes());
        input[addresses + 2..addresses + 4].copy_from_slice(&ends.destination.1.to_be_bytes());
        hash(&self.key, &input[..addresses + 4]) as usize & (self.table.len() - 1)
    }

    /// The worker at a place of the table.
    pub fn worker_at(&self, place: usize) -> WorkerId {
        self.table[place]
    }

    /// What a destination port adds to the place of a frame of IPv4, or IPv6, by exclusive or.
    pub fn of_port(&self, is_ipv4: bool, port: u16) -> usize {
        let mut input = [0; 36];
        let end = if is_ipv4 { 12 } else { 36 };
        input[end - 2..end].copy_from_slice(&port.to_be_bytes());
        hash(&self.key, &input[..end]) as usize & (self.table.len() - 1)
    }
}

impl Sorted {
    /// Sorts all ports.
    pub fn new(spread: Spread) -> Self {
        let families = [true, false].map(|is_ipv4| {
            let mut ports: Vec<(usize, u16)> =
                (Local::FIRST_PORT..=u16::MAX).map(|port| (spread.of_port(is_ipv4, port), port)).collect();
            ports.sort_unstable();
            let begin = |value| ports.partition_point(|(adds, _)| *adds < value) as u16;
            let starts = (0..=spread.places()).map(begin).collect();
            (ports.iter().map(|(_, port)| *port).collect(), starts)
        });
        Self { spread, families }
    }

    /// What they are sorted by.
    pub fn spread(&self) -> &Spread {
        &self.spread
    }

    /// The ports for local addresses of IPv4, or IPv6, and where those that add 0, 1, 2 … begin among them, and where the last end.
    pub fn ports(&self, is_ipv4: bool) -> (&[u16], &[u16]) {
        let (ports, starts) = &self.families[usize::from(!is_ipv4)];
        (ports, starts)
    }
}

/// The Toeplitz hash. The key is longer than the input by the four bytes of the window.
pub fn hash(key: &[u8], input: &[u8]) -> u32 {
    assert!(key.len() >= input.len() + 4, "a key of {} bytes for {}", key.len(), input.len());
    let mut window = u64::from(u32::from_be_bytes([key[0], key[1], key[2], key[3]]));
    let mut hash = 0;
    for (byte, next) in input.iter().zip(&key[4..]) {
        // The window and the eight bits it is about to slide over.
        window = (window << 8) | u64::from(*next);
        for bit in 0..8 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= (window >> (8 - bit)) as u32;
            }
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the specification's examples.
    const PUBLISHED: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    /// "Verifying the RSS Hash Calculation": destination, source, the hash with ports, the hash of addresses alone.
    const IPV4: [(&str, &str, u32, u32); 5] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x51cc_c178, 0x323e_8fc2),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xc626_b0ea, 0xd718_262a),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0x5c2b_394a, 0xd2d0_a5de),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0xafc7_327f, 0x8298_9176),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x10e8_28a2, 0x5d18_09c5),
    ];

    const IPV6: [(&str, &str, u32, u32); 3] = [
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x4020_7d3d, 0x2cc1_8cd5),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0xdde5_1bbf, 0x0f0c_461c),
        (
            "[fe80::200:f8ff:fe21:67cf]:38024",
            "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251",
            0x02d1_feef,
            0x4b61_e985,
        ),
    ];

    fn ends(destination: &str, source: &str) -> Ends {
        let [source, destination] = [source, destination].map(|text| {
            let end: std::net::SocketAddr = text.parse().unwrap();
            (end.ip(), end.port())
        });
        Ends { source, destination }
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(address) => address.octets().into(),
        }
    }

    #[test]
    fn the_published_examples_come_out() {
        for (destination, source, with_ports, addresses_alone) in IPV4.into_iter().chain(IPV6) {
            let ends = ends(destination, source);
            let addresses = [octets(ends.source.0), octets(ends.destination.0)].concat();
            let ports = [ends.source.1.to_be_bytes(), ends.destination.1.to_be_bytes()].concat();
            assert_eq!(hash(&PUBLISHED, &addresses), addresses_alone, "{source} to {destination}");
            assert_eq!(
                hash(&PUBLISHED, &[addresses, ports].concat()),
                with_ports,
                "{source} to {destination}"
            );
        }
    }

    #[test]
    fn the_worker_is_where_the_table_says() {
        let spread =
            Spread::new(PUBLISHED.into(), (0..128).map(|n| WorkerId(n % 4)).collect(), true).unwrap();
        for (destination, source, with_ports, _) in IPV4.into_iter().chain(IPV6) {
            assert_eq!(spread.worker(&ends(destination, source)), WorkerId((with_ports % 4) as u8));
        }
    }

    #[test]
    fn a_port_adds_the_same_to_every_frame() {
        let spread =
            Spread::new(PUBLISHED.into(), (0..128).map(|n| WorkerId(n % 2)).collect(), true).unwrap();
        for (destination, source, ..) in IPV4.into_iter().chain(IPV6) {
            let given = ends(destination, source);
            let (address, port) = given.destination;
            let without = Ends { destination: (address, 0), ..given };
            assert_eq!(
                spread.place(&given),
                spread.place(&without) ^ spread.of_port(address.is_ipv4(), port)
            );
        }
    }

    #[test]
    fn one_worker_is_no_spread() {
        assert_eq!(Spread::new(PUBLISHED.into(), vec![WorkerId(3); 128], true), None);
        assert_eq!(Spread::new(PUBLISHED.into(), [0, 1, 0].map(WorkerId).into(), true), None);
        assert_eq!(Spread::new(vec![1; 16], [0, 1].map(WorkerId).into(), true), None);
    }
}

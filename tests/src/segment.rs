//! A TCP segment of either family as a test writes it, and reads it back from a frame; and the two hosts it goes between, a client and a real
//! server behind FullNAT on the [`bench`](crate::bench).
//!
//! What is read must sum up right over the whole packet, or the test ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bench::{Bench, CLIENTS, LOCALS6, SERVERS, VIP, VIP6};
use crate::frames::{ethernet, flags};
use crate::layers::Layers;
use crate::ops::LOCALS;

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Sequence number.
    pub number: u32,
    /// Acknowledgement number, whatever its flags say.
    pub acknowledges: u32,
    /// Flags, as they stand in the header.
    pub flags: u8,
    /// What stands between the header's fixed part and the data: a multiple of four bytes.
    pub options: Vec<u8>,
    /// The data.
    pub data: Vec<u8>,
}

impl Segment {
    /// The same with these options.
    pub fn options(self, options: &[u8]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// The same with this data.
    pub fn data(self, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..self }
    }

    /// The frame, from the host that `from` is on the bench to the director.
    pub fn frame(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        assert!(header <= 60 && header.is_multiple_of(4), "no TCP header is so long");
        let mut segment = [self.from.port(), self.to.port()].map(u16::to_be_bytes).concat();
        segment.extend([self.number, self.acknowledges].map(u32::to_be_bytes).concat());
        segment.extend([(header as u8) << 2, self.flags, 0x20, 0, 0, 0, 0, 0]);
        segment.extend(&self.options);
        segment.extend(&self.data);

        let mut frame = ethernet(self.from.ip());
        let length = segment.len() as u16;
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([8, 0, 0x45, 0]);
                frame.extend((20 + length).to_be_bytes());
                frame.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([6, 64]);
                frame.extend([from.octets(), to.octets()].concat());
            }
            _ => panic!("{} and {} do not speak to each other", self.from, self.to),
        }
        frame.extend(segment);
        Layers::of(&frame).mend(&mut frame);
        frame
    }

    /// Reads a frame.
    ///
    /// # Panics
    /// When it is no TCP segment, or a checksum is wrong.
    pub fn read(frame: &[u8]) -> Self {
        let layers = Layers::of(frame);
        assert!(layers.header_is_right(frame), "the IP header's checksum");
        assert_eq!(layers.residue(frame), 0, "the TCP checksum");
        Self::read_broken(frame)
    }

    /// Reads a frame that may be anything; `None` when it is no whole TCP segment.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let is_segment =
            |layers: &Layers| layers.protocol == 6 && layers.fragment.is_none() && layers.end == frame.len();
        Layers::read(frame).filter(is_segment).map(|_| Self::read_broken(frame))
    }

    /// Reads a frame whose TCP checksum may be wrong.
    ///
    /// # Panics
    /// When it is no TCP segment.
    pub fn read_broken(frame: &[u8]) -> Self {
        let layers = Layers::of(frame);
        assert_eq!((layers.protocol, layers.end), (6, frame.len()), "TCP, without padding");
        let segment = &frame[layers.transport..];
        let long = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four"));
        let header = usize::from(segment[12] >> 4) * 4;
        Self {
            from: layers.source(frame).into(),
            to: layers.destination(frame).into(),
            number: long(4),
            acknowledges: long(8),
            flags: segment[13],
            options: segment[20..header].to_vec(),
            data: segment[header..].to_vec(),
        }
    }
}

/// A client, and a real server that FullNAT leads it to.
pub struct Pair {
    /// The director between them.
    pub bench: Bench,
    /// The client's end.
    pub client: SocketAddr,
    /// The virtual service.
    pub service: SocketAddr,
    /// The real server's end.
    pub server: SocketAddr,
    /// The director's own end towards the real server, once a segment has left from it.
    pub local: Option<SocketAddr>,
}

impl Pair {
    /// Both of one family. `options` are the service's.
    pub fn new(is_v4: bool, options: &str) -> Self {
        Self::between(Bench::default(), is_v4, is_v4, options)
    }

    /// A client and a real server, of IPv4 or not, on this bench.
    pub fn between(bench: Bench, client_is_v4: bool, server_is_v4: bool, options: &str) -> Self {
        let end = |is_v4, v4: [u8; 4], net, host, port| {
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host);
            SocketAddr::new(if is_v4 { Ipv4Addr::from(v4).into() } else { v6.into() }, port)
        };
        let mut pair = Self {
            bench,
            client: end(client_is_v4, [10, 0, 0, 2], 0xa, 2, 1000),
            service: SocketAddr::new(if client_is_v4 { VIP.into() } else { VIP6.into() }, 80),
            server: end(server_is_v4, [10, 1, 0, 11], 0xb, 0xb, 8080),
            local: None,
        };
        let (service, server) = (pair.service, pair.server);
        let local = if server_is_v4 { IpAddr::from(LOCALS[0]) } else { LOCALS6[0].into() };
        pair.ipvsadm(&format!("-A -t {service} -s rr {options}"));
        pair.ipvsadm(&format!("-a -t {service} -r {server} --fullnat"));
        pair.ipvsadm(&format!("-P -t {service} -z {local}"));
        pair
    }

    /// The handshake as far as the server's answer: the client's data begins at 101, the server's at 5001.
    pub fn shake_hands(mut self) -> Self {
        let syn = self.request("S", 100, 0);
        self.to_server(&syn);
        let answer = self.reply("SA", 5000, 101);
        self.to_client(&answer);
        self
    }

    /// Runs ipvsadm, which must succeed.
    pub fn ipvsadm(&mut self, line: &str) -> String {
        let (code, said, error) = self.bench.ipvsadm(line);
        assert_eq!((code, error.as_str()), (0, ""), "{line}");
        said
    }

    /// A segment of the client's, as it sends it: flags by their letters, sequence and acknowledgement number.
    pub fn request(&self, letters: &str, number: u32, acknowledges: u32) -> Segment {
        let (from, to, flags) = (self.client, self.service, flags(letters));
        Segment { from, to, number, acknowledges, flags, options: Vec::new(), data: Vec::new() }
    }

    /// A segment of the real server's, as it sends it.
    ///
    /// # Panics
    /// When nothing has reached the server yet.
    pub fn reply(&self, letters: &str, number: u32, acknowledges: u32) -> Segment {
        let to = self.local.expect("the server knows whom it answers");
        Segment { from: self.server, to, ..self.request(letters, number, acknowledges) }
    }

    /// What reaches the server of a segment of the client's.
    ///
    /// # Panics
    /// When something does not go from the director's end to the server.
    pub fn to_server(&mut self, segment: &Segment) -> Vec<Segment> {
        let sent = self.bench.frame(CLIENTS, &segment.frame()).sent;
        let segments = sent.iter().map(|(port, frame)| {
            let arrived = Segment::read(frame);
            let local = *self.local.get_or_insert(arrived.from);
            assert_eq!((*port, arrived.from, arrived.to), (SERVERS, local, self.server));
            arrived
        });
        segments.collect()
    }

    /// What reaches the client of a segment of the server's.
    ///
    /// # Panics
    /// When something does not go from the service to the client.
    pub fn to_client(&mut self, segment: &Segment) -> Vec<Segment> {
        let sent = self.bench.frame(SERVERS, &segment.frame()).sent;
        let segments = sent.iter().map(|(port, frame)| {
            let arrived = Segment::read(frame);
            assert_eq!((*port, arrived.from, arrived.to), (CLIENTS, self.service, self.client));
            arrived
        });
        segments.collect()
    }
}

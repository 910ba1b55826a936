//! Frames of both families through a director with services of every mode, and what must hold of all that leaves.
//!
//! [`harness`](crate::harness) has a model of some modes and knows each byte of what they send; here there are all modes and both families, and less is known: what leaves is a whole
//! packet that fits its link, its checksums are right if they came so, what is in a tunnel is what came, and a reply reaches the client as from the service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::tags::{QINQ, Tags, VLAN};
use shunt_dataplane::service::PortId;

use crate::bench::{Bench, CLIENTS, LOCALS6, Outcome, SERVERS, VIP, VIP6};
use crate::frames::{C0, S0, checksum, ethernet};
use crate::layers::{End, Layers};
use crate::ops::{Cursor, LOCALS, SCTP, TCP, UDP};

/// The modes: a service's options, its real server's, and whether that is of the other family.
pub const MODES: &[(&str, &str, bool)] = &[
    ("", "-m", false),
    ("", "-g", false),
    ("--mss 1200", "-i", false),
    ("", "-i", true),
    ("", "-i --tun-type gue --tun-port 6080 --tun-csum", false),
    ("", "-i --tun-type gue --tun-port 6080", true),
    ("", "-i --tun-type gre --tun-csum", false),
    ("", "-i --tun-type gre", true),
    ("", "--fullnat", false),
    ("--proxy-protocol v1", "--fullnat", false),
    ("", "--fullnat", true),
    ("--proxy-protocol v2 --mss 1000", "--fullnat", true),
];

/// The port of the first mode's service; the others' follow.
const FIRST_PORT: u16 = 80;

const GUE_PORT: u16 = 6080;

/// Ops of one run.
const MOST_OPS: usize = 200;

const ICMP: u8 = 1;
const IPIP: u8 = 4;
const IP6IP: u8 = 41;
const GRE: u8 = 47;
const FRAGMENT: u8 = 44;
const ICMP6: u8 = 58;

/// A service: one of [`MODES`], the protocol, the family of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which mode.
    pub mode: usize,
    /// IP protocol number.
    pub protocol: u8,
    /// The family of its address.
    pub is_v4: bool,
}

/// A flow whose requests went to a real server.
#[derive(Clone, Debug)]
struct Flow {
    service: Service,
    client: End,
    /// What reached the server last.
    request: Vec<u8>,
    /// What reached the client last.
    reply: Option<Vec<u8>>,
}

/// What a packet looks like beyond its ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// TCP flags, or the type of SCTP's one chunk.
    pub flags: u8,
    /// Bytes of data, times eight.
    pub length: u8,
    /// Time to live.
    pub ttl: u8,
    /// Bits 0 and 1: 2 is a datagram's first part, 3 its second. Bit 2: don't fragment. Bit 3: UDP has no checksum. Bit 4: Ethernet padding.
    pub quirks: u8,
}

/// The director, and what was seen so far.
pub struct Modes {
    bench: Bench,
    mtu: [u16; 2],
    services: Vec<Service>,
    flows: Vec<Flow>,
    last: (PortId, Vec<u8>),
}

impl Modes {
    /// A director without services, behind VLANs or not.
    pub fn new(is_tagged: bool) -> Self {
        let on = |tags: Tags, ethertype, id| tags.and(ethertype, id).expect("there is room");
        let one = on(Tags::default(), VLAN, 100);
        let two = on(on(Tags::default(), QINQ, 200), VLAN, 7);
        let bench = Bench::default();
        let bench = if is_tagged { bench.with_tags([one, two]) } else { bench };
        Self { bench, mtu: [1500; 2], services: Vec::new(), flows: Vec::new(), last: (CLIENTS, Vec::new()) }
    }

    /// Does what the bytes say.
    pub fn run(bytes: &[u8]) {
        let mut cursor = Cursor(bytes);
        let first = cursor.byte();
        let mut modes = Self::new(first & 1 != 0);
        for _ in 0..MOST_OPS {
            if cursor.is_empty() {
                break;
            }
            modes.step(&mut cursor);
        }
        if first & 2 != 0 {
            modes.end();
        }
    }

    fn step(&mut self, cursor: &mut Cursor) {
        let kind = cursor.byte();
        match kind & 7 {
            0..=2 => {
                let service = Service {
                    mode: usize::from(cursor.byte()) % MODES.len(),
                    protocol: [TCP, UDP, TCP, SCTP][usize::from(kind >> 4 & 3)],
                    is_v4: kind & 8 == 0,
                };
                let client = cursor.byte();
                self.request(service, client, Shape::read(cursor));
            }
            3 => {
                let flow = cursor.byte().into();
                self.reply(flow, Shape::read(cursor));
            }
            4 => {
                let flow = cursor.byte().into();
                let message = [cursor.byte() % 13, cursor.byte() % 8];
                let rest = u16::from(cursor.byte()) << 3;
                self.error(flow, kind & 8 != 0, message, rest, usize::from(cursor.byte()) * 4);
            }
            5 => {
                let (port, mut bytes) = self.last.clone();
                for _ in 0..=kind >> 6 {
                    let (at, value) = (usize::from(cursor.byte()), cursor.byte());
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                if kind & 8 != 0 {
                    bytes.truncate(bytes.len().saturating_sub(cursor.byte().into()).max(14));
                }
                if let Some(layers) = Layers::read(&bytes).filter(|_| kind & 16 != 0) {
                    layers.mend(&mut bytes);
                }
                if bytes.len() >= 14 {
                    self.through(port, &bytes);
                }
            }
            6 => {
                let length = usize::from(cursor.byte()) << 3;
                let mut frame = if kind & 8 == 0 { [S0, C0].concat() } else { [C0, S0].concat() };
                frame.extend(cursor.bytes(length));
                if frame.len() >= 14 {
                    self.through(if kind & 8 == 0 { SERVERS } else { CLIENTS }, &frame);
                }
            }
            _ => self.turn_of_events(kind >> 3, cursor.byte()),
        }
    }

    /// What no frame brings about: time, MTUs, timeouts, edits, by the lower bits of `kind`.
    pub fn turn_of_events(&mut self, kind: u8, value: u8) {
        let moment = Duration::from_millis(100 * u64::from(value));
        match kind & 7 {
            0 | 2 => self.bench.wait(moment),
            // A worker that has much to do comes to what is over only later.
            4 => self.bench.pass(moment * 100),
            1 | 3 => {
                let side = usize::from(kind >> 1 & 1);
                self.mtu[side] = 1280 + u16::from(value);
                self.bench.set_mtu(PortId(side as u8), self.mtu[side]);
            }
            5 => {
                let value = u32::from(value);
                let line = format!("--set {} {} {}", 60 + value, 1 + value / 2, 10 + value / 4);
                assert_eq!(self.bench.ipvsadm(&line).0, 0, "{line}");
            }
            _ => {
                let at = usize::from(value).checked_rem(self.services.len());
                let Some(service) = at.and_then(|at| self.services.get(at).copied()) else { return };
                let [_, with_server] = service.lines();
                // Away, or back again; what was away is told by the second one's failing.
                let away = with_server.replacen("-a", "-d", 1);
                let words: Vec<_> = away.split(' ').take(5).collect();
                if self.bench.ipvsadm(&words.join(" ")).0 != 0 {
                    assert_eq!(self.bench.ipvsadm(&with_server).0, 0, "{with_server}");
                }
            }
        }
    }

    /// A client sends to a service, which is there from then on.
    pub fn request(&mut self, service: Service, client: u8, shape: Shape) -> Verdict {
        self.add(service);
        let client = (host(service.is_v4, 0xa, 2 + client % 4), 1000 + u16::from(client / 4));
        let frame = packet(client, service.end(), service.protocol, shape);
        let outcome = self.through(CLIENTS, &frame);
        if let (Verdict::Forward(SERVERS), Some((_, sent))) = (outcome.verdict, outcome.sent.last()) {
            let flow = self.flows.iter_mut().find(|flow| flow.service == service && flow.client == client);
            match flow {
                Some(flow) => flow.request.clone_from(sent),
                None => self.flows.push(Flow { service, client, request: sent.clone(), reply: None }),
            }
        }
        outcome.verdict
    }

    /// The real server of a flow answers. `None` where it does so past the director.
    pub fn reply(&mut self, flow: usize, shape: Shape) -> Option<Verdict> {
        let at = flow.checked_rem(self.flows.len())?;
        let flow = self.flows[at].clone();
        let arrived = Layers::of(&flow.request);
        if !flow.service.translates() || arrived.fragment.is_some_and(|(_, offset, _)| offset > 0) {
            return None;
        }
        let (server, to) = (arrived.destination(&flow.request), arrived.source(&flow.request));
        let outcome = self.through(SERVERS, &packet(server, to, flow.service.protocol, shape));
        // A second part goes where the first one of its number did, which may have been another flow's.
        let is_first = shape.quirks & 3 != 3;
        if let (true, Verdict::Forward(CLIENTS), [(_, sent)]) = (is_first, outcome.verdict, &outcome.sent[..])
        {
            let leaves = Layers::of(sent);
            let named = (leaves.source(sent), leaves.destination(sent));
            let has_ports = leaves.has_ports();
            let without_port = |end: End| if has_ports { end } else { (end.0, 0) };
            let as_from_service = (without_port(flow.service.end()), without_port(flow.client));
            // Without a connection a router is all that the director is.
            let routed = (without_port(server), without_port(to));
            assert!(named == as_from_service || named == routed, "{flow:?}: the client sees {named:?}");
            self.flows[at].reply = Some(sent.clone());
        }
        Some(outcome.verdict)
    }

    /// An error about what a flow's server was sent last, from a router on its side; or about what its client was.
    fn error(&mut self, flow: usize, about_reply: bool, message: [u8; 2], rest: u16, left: usize) {
        let Some(at) = flow.checked_rem(self.flows.len()) else { return };
        let flow = &self.flows[at];
        let (about, net, side) = match (&flow.reply, about_reply) {
            (Some(reply), true) => (reply, 0xa, CLIENTS),
            _ => (&flow.request, 0xb, SERVERS),
        };
        let quoted = Layers::of(about);
        let to = quoted.source(about);
        let left = left.max(8).min(about.len() - 14);
        let [r0, r1] = rest.to_be_bytes();
        let error = [&[message[0], message[1], 0, 0, 0, 0, r0, r1], &about[14..14 + left]].concat();
        let from = (host(to.0.is_ipv4(), net, 12), 0);
        let protocol = if to.0.is_ipv4() { ICMP } else { ICMP6 };
        let mut frame = around(from, (to.0, 0), protocol, &error, Shape { ttl: 64, ..Shape::default() });
        Layers::of(&frame).mend(&mut frame);
        self.through(side, &frame);
    }

    /// All connections end, and nothing is left of them.
    pub fn end(&mut self) {
        self.bench.wait(Duration::from_secs(1000));
        assert_eq!(self.bench.connections(), []);
        let (code, listed, _) = self.bench.ipvsadm("-G -n");
        assert_eq!(code, 0);
        // Local addresses are indented, and their last column says how many ports are taken.
        for line in listed.lines().filter(|line| line.starts_with(' ')) {
            assert_eq!(line.split_whitespace().last(), Some("0"), "{line}");
        }
    }

    fn add(&mut self, service: Service) {
        if self.services.contains(&service) {
            return;
        }
        self.services.push(service);
        let mut lines = service.lines().to_vec();
        if let Some(line) = service.local_line() {
            lines.push(line);
        }
        for line in lines {
            let (code, _, error) = self.bench.ipvsadm(&line);
            assert_eq!(code, 0, "{line}: {error}");
        }
    }

    /// A frame comes, and what leaves is looked at.
    fn through(&mut self, port: PortId, bytes: &[u8]) -> Outcome {
        self.last = (port, bytes.to_vec());
        let outcome = self.bench.frame(port, bytes);
        let came_right = is_right(bytes);
        for (port, frame) in &outcome.sent {
            let mtu = usize::from(self.mtu[usize::from(port.0)]);
            assert!(frame.len() - 14 <= mtu, "{} bytes on a link of {mtu}", frame.len() - 14);
            let layers = Layers::of(frame);
            assert_eq!(layers.end, frame.len(), "padding");
            assert!(layers.header_is_right(frame), "the IP header's checksum");
            if let Some(inner) =
                unwrapped(&layers, frame).filter(|_| outcome.verdict == Verdict::Forward(SERVERS))
            {
                let (before, after) = (Layers::of(bytes), Layers::of(&inner));
                assert!(after.header_is_right(&inner), "the inner IP header's checksum");
                assert_eq!(after.source(&inner), before.source(bytes));
                assert_eq!(after.destination(&inner), before.destination(bytes));
                assert_eq!(after.end - after.network, before.end - before.network);
                assert!(is_right(&inner) != Some(false) || came_right == Some(false), "the inner checksum");
            } else {
                let is_own = matches!(outcome.verdict, Verdict::Reply(_));
                let may_be_wrong = came_right == Some(false) && !is_own;
                assert!(is_right(frame) != Some(false) || may_be_wrong, "a checksum, of {layers:?}");
            }
        }
        outcome
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

impl Service {
    /// Whether replies come back through the director.
    pub fn translates(&self) -> bool {
        matches!(MODES[self.mode].1, "-m" | "--fullnat")
    }

    /// The lines of ipvsadm that add it and its real server.
    fn lines(&self) -> [String; 2] {
        let (settings, forwarding, _) = MODES[self.mode];
        let (service, port) = (self.name(), self.end().1);
        let server = bracketed(host(self.server_is_v4(), 0xb, 11));
        let server_port = if self.translates() { port + 8000 } else { port };
        [
            format!("-A {service} -s rr {settings}"),
            format!("-a {service} -r {server}:{server_port} {forwarding}"),
        ]
    }

    /// The line that gives it a local address, if it needs one.
    fn local_line(&self) -> Option<String> {
        let local = if self.server_is_v4() { IpAddr::from(LOCALS[0]) } else { LOCALS6[0].into() };
        (MODES[self.mode].1 == "--fullnat").then(|| format!("-P {} -z {local}", self.name()))
    }

    fn server_is_v4(&self) -> bool {
        self.is_v4 != MODES[self.mode].2
    }

    fn name(&self) -> String {
        let option = match self.protocol {
            TCP => "-t",
            UDP => "-u",
            _ => "--sctp-service",
        };
        let (address, port) = self.end();
        format!("{option} {}:{port}", bracketed(address))
    }

    fn end(&self) -> End {
        (if self.is_v4 { VIP.into() } else { VIP6.into() }, FIRST_PORT + self.mode as u16)
    }
}

impl Shape {
    fn read(cursor: &mut Cursor) -> Self {
        let [flags, length, quirks] = [cursor.byte(), cursor.byte(), cursor.byte()];
        // One in sixteen dies young.
        let ttl = if quirks >> 4 == 15 { 1 } else { 64 };
        Self { flags, length, ttl, quirks }
    }
}

/// Whether a frame's transport checksum is right; `None` where there is none that could be.
fn is_right(frame: &[u8]) -> Option<bool> {
    let layers = Layers::read(frame)?;
    if layers.fragment.is_some() || layers.has_none(frame) {
        return None;
    }
    matches!(layers.protocol, TCP | UDP | SCTP | ICMP | ICMP6).then(|| layers.residue(frame) == 0)
}

/// The packet inside a whole tunnel packet, in a frame.
fn unwrapped(layers: &Layers, frame: &[u8]) -> Option<Vec<u8>> {
    let between = &frame[layers.transport..layers.end];
    let skip = match layers.protocol {
        _ if layers.fragment.is_some() => return None,
        IPIP | IP6IP => 0,
        UDP if between[2..4] == GUE_PORT.to_be_bytes() => {
            assert!(layers.has_none(frame) || layers.residue(frame) == 0, "the outer UDP checksum");
            12
        }
        GRE if between[0] & 0x80 != 0 => {
            assert_eq!(checksum(between), 0, "GRE's checksum");
            8
        }
        GRE => 4,
        _ => return None,
    };
    Some([&[0; 14][..], &between[skip..]].concat())
}

/// A host of the clients' net, 0xa, or the servers', 0xb.
pub fn host(is_v4: bool, net: u16, host: u8) -> IpAddr {
    match is_v4 {
        true => Ipv4Addr::new(10, (net - 0xa) as u8, 0, host).into(),
        false => Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host.into()).into(),
    }
}

/// The frame of a UDP datagram.
pub fn datagram(from: End, to: End) -> Vec<u8> {
    packet(from, to, UDP, Shape { ttl: 64, ..Shape::default() })
}

/// The frame of one of a UDP datagram's two parts.
pub fn part(from: End, to: End, is_second: bool) -> Vec<u8> {
    packet(from, to, UDP, Shape { length: 20, ttl: 64, quirks: 2 | u8::from(is_second), ..Shape::default() })
}

/// The frame of a packet with a transport header and data.
fn packet(from: End, to: End, protocol: u8, shape: Shape) -> Vec<u8> {
    let data = vec![0x5a; usize::from(shape.length % 184) * 8];
    let ports = [from.1, to.1].map(u16::to_be_bytes).concat();
    let segment = match protocol {
        TCP => {
            [&ports[..], &[0, 0, 4, 0, 0, 0, 4, 0, 0x50, shape.flags, 0x20, 0, 0, 0, 0, 0], &data].concat()
        }
        UDP => [&ports[..], &(8 + data.len() as u16).to_be_bytes(), &[0, 0], &data].concat(),
        _ => {
            let length = (4 + data.len() as u16).to_be_bytes();
            [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 0, shape.flags % 16, 0], &length, &data].concat()
        }
    };
    let mut whole = around(from, to, protocol, &segment, Shape { quirks: shape.quirks & !3, ..shape });
    let layers = Layers::of(&whole);
    layers.mend(&mut whole);
    if protocol == UDP && shape.quirks & 8 != 0 && layers.source(&whole).0.is_ipv4() {
        whole[layers.transport + 6..layers.transport + 8].fill(0);
    }
    let segment = whole[layers.transport..layers.end].to_vec();
    let mut frame = around(from, to, protocol, &segment, shape);
    if shape.quirks & 16 != 0 {
        frame.extend([0xad; 6]);
    }
    frame
}

/// A frame around a transport header and its data, or the part of them that the shape says.
fn around(from: End, to: End, protocol: u8, segment: &[u8], shape: Shape) -> Vec<u8> {
    let mut frame = ethernet(from.0);
    // The first part has the headers and a little more.
    let cut = segment.len().min(48) / 8 * 8;
    let (part, offset, more) = match shape.quirks & 3 {
        2 => (&segment[..cut], 0, true),
        3 => (&segment[cut..], cut as u16, false),
        _ => (segment, 0, false),
    };
    match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + part.len() as u16).to_be_bytes();
            let (whole, more) = (u16::from(shape.quirks & 4 != 0) << 14, u16::from(more) << 13);
            let flags = (whole | more | (offset / 8)).to_be_bytes();
            frame.extend([
                8, 0, 0x45, 0, length[0], length[1], 0x12, 0x34, flags[0], flags[1], shape.ttl, protocol, 0,
                0,
            ]);
            frame.extend([from.octets(), to.octets()].concat());
            frame.extend(part);
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let is_part = shape.quirks & 2 != 0;
            let length = (part.len() as u16 + if is_part { 8 } else { 0 }).to_be_bytes();
            let next = if is_part { FRAGMENT } else { protocol };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], next, shape.ttl]);
            frame.extend([from.octets(), to.octets()].concat());
            if is_part {
                let place = (offset | u16::from(more)).to_be_bytes();
                frame.extend([protocol, 0, place[0], place[1], 0, 0, 0x12, 0x34]);
            }
            frame.extend(part);
        }
        ends => panic!("{ends:?} are of two families"),
    }
    frame
}

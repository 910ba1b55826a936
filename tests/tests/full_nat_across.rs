//! FullNAT between the families, against frames that are built from scratch: what RFC 7915 says must come out, whole checksums included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shunt_dataplane::director::Verdict;
use shunt_dataplane::packet::protocol::{TCP, UDP};
use shunt_dataplane::service::PortId;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, Outcome, SERVERS};
use shunt_tests::frames::{C0, S0, checksum};

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const VIP6: IpAddr = v6(0xf, 1);
const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const CLIENT6: IpAddr = v6(0xa, 2);
const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 11));
const SERVER6: IpAddr = v6(0xb, 0xb);
const LOCAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 200));
const LOCAL6: IpAddr = v6(0xb, 200);

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
}

/// One way round: a client's family and a server's.
#[derive(Clone, Copy)]
struct Way {
    client: IpAddr,
    vip: IpAddr,
    server: IpAddr,
    local: IpAddr,
}

const WAYS: [Way; 2] = [
    Way { client: CLIENT6, vip: VIP6, server: SERVER4, local: LOCAL4 },
    Way { client: CLIENT4, vip: VIP4, server: SERVER6, local: LOCAL6 },
];

/// What a packet says besides its ends and its data.
#[derive(Clone, Copy)]
struct Shape {
    ttl: u8,
    tos: u8,
    /// May be cut up, in IPv4.
    may_be_cut: bool,
    /// Offset in units of eight bytes, whether more follow, id.
    part: Option<(u16, bool, u32)>,
}

const PLAIN: Shape = Shape { ttl: 64, tos: 0x28, may_be_cut: false, part: None };

fn aged(shape: Shape) -> Shape {
    Shape { ttl: shape.ttl - 1, ..shape }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet around a payload.
fn packet(shape: Shape, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip;
    if from.is_ipv4() {
        let (id, flags) = match shape.part {
            Some((offset, more, id)) => (id as u16, offset | u16::from(more) << 13),
            None => (0, if shape.may_be_cut { 0 } else { 0x4000 }),
        };
        ip = vec![0x45, shape.tos];
        ip.extend((20 + payload.len() as u16).to_be_bytes());
        ip.extend([id.to_be_bytes(), flags.to_be_bytes()].concat());
        ip.extend([shape.ttl, protocol, 0, 0]);
        ip.extend([octets(from), octets(to)].concat());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let extension = if shape.part.is_some() { 8 } else { 0 };
        ip = (6 << 28 | u32::from(shape.tos) << 20).to_be_bytes().to_vec();
        ip.extend((extension + payload.len() as u16).to_be_bytes());
        ip.extend([if shape.part.is_some() { 44 } else { protocol }, shape.ttl]);
        ip.extend([octets(from), octets(to)].concat());
        if let Some((offset, more, id)) = shape.part {
            ip.extend([protocol, 0]);
            ip.extend((offset << 3 | u16::from(more)).to_be_bytes());
            ip.extend(id.to_be_bytes());
        }
    }
    ip.extend(payload);
    ip
}

/// The Ethernet addresses, destination first, of a frame that leaves towards an address, or comes from it.
fn macs(address: IpAddr, leaves: bool) -> Vec<u8> {
    let (own, peer) = match address {
        IpAddr::V4(a) => match a.octets() {
            [10, 1, 0, n] => (S0, [2, 0x50, 0, 0, 0, n]),
            [.., h, l] => (C0, [2, 0xc0, 0, 0, h, l]),
        },
        IpAddr::V6(a) if a.segments()[2] == 0xb => (S0, [2, 0x56, 0, 0, 0, a.octets()[15]]),
        IpAddr::V6(a) => (C0, [2, 0xc6, 0, 0, 0, a.octets()[15]]),
    };
    if leaves { [peer, own].concat() } else { [own, peer].concat() }
}

fn frame(mut macs: Vec<u8>, ip: &[u8]) -> Vec<u8> {
    macs.extend(if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    macs.extend(ip);
    macs
}

/// A transport header and its data, its checksum computed over all of it. `at` is where that stands.
fn summed(from: IpAddr, to: IpAddr, protocol: u8, at: usize, mut segment: Vec<u8>) -> Vec<u8> {
    segment[at..at + 2].fill(0);
    let mut all = if protocol == 1 { Vec::new() } else { [octets(from), octets(to)].concat() };
    if protocol != 1 {
        all.extend((segment.len() as u32).to_be_bytes());
        all.extend([0, 0, 0, protocol]);
    }
    all.extend(&segment);
    let sum = checksum(&all);
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8, numbers: (u32, u32), data: &[u8]) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([numbers.0.to_be_bytes(), numbers.1.to_be_bytes()].concat());
    segment.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    segment.extend(data);
    summed(from.0, to.0, TCP, 16, segment)
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let length = (8 + data.len() as u16).to_be_bytes();
    let mut datagram = [from.1.to_be_bytes(), to.1.to_be_bytes(), length, [0, 0]].concat();
    datagram.extend(data);
    summed(from.0, to.0, UDP, 6, datagram)
}

fn bench(way: Way, options: &str) -> Bench {
    let mut bench = Bench::default();
    let bracketed = |a: IpAddr| if a.is_ipv4() { a.to_string() } else { format!("[{a}]") };
    let (vip, server) = (bracketed(way.vip), bracketed(way.server));
    for line in [
        format!("-A -t {vip}:80 -s rr {options}"),
        format!("-a -t {vip}:80 -r {server}:8080 --fullnat"),
        format!("-P -t {vip}:80 -z {}", way.local),
        format!("-A -u {vip}:53 -s rr"),
        format!("-a -u {vip}:53 -r {server}:5353 --fullnat"),
        format!("-P -u {vip}:53 -z {}", way.local),
    ] {
        let (code, _, error) = bench.ipvsadm(&line);
        assert_eq!((code, error.as_str()), (0, ""), "{line}");
    }
    bench
}

fn sent(outcome: &Outcome) -> (PortId, &[u8]) {
    match &outcome.sent[..] {
        [(port, bytes)] => (*port, bytes),
        other => panic!("{:?}: {} frames", outcome.verdict, other.len()),
    }
}

/// Where a frame's transport header begins.
fn transport(frame: &[u8]) -> usize {
    14 + if frame[14] >> 4 == 4 {
        20
    } else if frame[20] == 44 {
        48
    } else {
        40
    }
}

fn source_port(frame: &[u8]) -> u16 {
    let at = transport(frame);
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// A frame without the id of a packet that the director made.
fn without_id(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[14] >> 4 == 4 && bytes[20] & 0x40 == 0 {
        bytes[18..20].fill(0);
        bytes[24..26].fill(0);
    }
    bytes
}

#[test]
fn tcp_there_and_back() {
    for way in WAYS {
        let mut bench = bench(way, "--toa disable");
        let (client, vip) = ((way.client, 1000), (way.vip, 80));
        let data = b"what is between must arrive as it was".as_slice();
        let mut local = None;
        for (flags, numbers, data) in
            [(0x02, (7, 0), &b""[..]), (0x10, (8, 101), b""), (0x18, (8, 101), data)]
        {
            let segment = tcp(client, vip, flags, numbers, data);
            let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, TCP, &segment));
            let outcome = bench.frame(CLIENTS, &input);
            let (port, bytes) = sent(&outcome);
            let from = (way.local, *local.get_or_insert_with(|| source_port(bytes)));
            let to = (way.server, 8080);
            // What is short may be cut up in IPv4, as it was never forbidden (RFC 7915 §5.1).
            let shape = Shape { may_be_cut: way.server.is_ipv4(), ..aged(PLAIN) };
            let expected = packet(shape, from.0, to.0, TCP, &tcp(from, to, flags, numbers, data));
            let expected = frame(macs(way.server, true), &expected);
            assert_eq!((port, without_id(bytes)), (SERVERS, without_id(&expected)));
        }
        let from = (way.local, local.unwrap());
        assert!(from.1 >= 1024);
        for (flags, numbers, data) in
            [(0x12, (100, 8), &b""[..]), (0x18, (101, 45), data), (0x11, (138, 45), b"")]
        {
            let segment = tcp((way.server, 8080), from, flags, numbers, data);
            let input = frame(macs(way.server, false), &packet(PLAIN, way.server, way.local, TCP, &segment));
            let outcome = bench.frame(SERVERS, &input);
            let (port, bytes) = sent(&outcome);
            let shape = Shape { may_be_cut: way.client.is_ipv4(), ..aged(PLAIN) };
            let expected = packet(shape, way.vip, way.client, TCP, &tcp(vip, client, flags, numbers, data));
            assert_eq!(
                (port, without_id(bytes)),
                (CLIENTS, without_id(&frame(macs(way.client, true), &expected)))
            );
        }
        let [(_, _, state, ..)] = &bench.connections()[..] else { panic!("one connection") };
        assert_eq!(state, "FIN_WAIT");
        let (_, listing, _) = bench.ipvsadm("-Ln --stats");
        assert!(listing.contains(" 1        3        3"), "{listing}");
    }
}

#[test]
fn a_connection_ends_with_its_twin_and_gives_its_port_back() {
    for way in WAYS {
        let mut bench = bench(way, "--toa disable");
        let query = udp((way.client, 1000), (way.vip, 53), b"who");
        let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, UDP, &query));
        let outcome = bench.frame(CLIENTS, &input);
        let port = source_port(sent(&outcome).1);
        let bracket = |a: IpAddr| if a.is_ipv4() { a.to_string() } else { format!("[{a}]") };
        let line = format!("-Gn -u {}:53", bracket(way.vip));
        let conns = |bench: &mut Bench| {
            bench.ipvsadm(&line).1.lines().last().unwrap().split_whitespace().last().unwrap().to_owned()
        };
        assert_eq!(conns(&mut bench), "1");
        bench.wait(std::time::Duration::from_secs(301));
        assert_eq!((bench.connections().len(), conns(&mut bench).as_str()), (0, "0"));
        // Its answer comes too late, and is refused as by the machine's own stack.
        let answer = udp((way.server, 5353), (way.local, port), b"me");
        let late = frame(macs(way.server, false), &packet(PLAIN, way.server, way.local, UDP, &answer));
        assert_eq!(bench.frame(SERVERS, &late).verdict, Verdict::Reply(SERVERS));
    }
}

#[test]
fn datagrams_without_a_checksum_get_one_and_their_fragments_are_dropped() {
    let way = WAYS[1];
    let mut bench = bench(way, "");
    let mut query = udp((way.client, 1000), (way.vip, 53), b"who");
    query[6..8].fill(0);
    let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, UDP, &query));
    let outcome = bench.frame(CLIENTS, &input);
    let (_, bytes) = sent(&outcome);
    let from = (way.local, source_port(bytes));
    let expected = packet(aged(PLAIN), way.local, way.server, UDP, &udp(from, (way.server, 5353), b"who"));
    assert_eq!(bytes, frame(macs(way.server, true), &expected));

    let part = Shape { part: Some((0, true, 9)), ..PLAIN };
    let input = frame(macs(way.client, false), &packet(part, way.client, way.vip, UDP, &query));
    assert_eq!(bench.frame(CLIENTS, &input).verdict, Verdict::Drop(Reason::Untranslatable));
}

#[test]
fn fragments_stay_fragments() {
    for way in WAYS {
        let mut bench = bench(way, "");
        let data: Vec<u8> = (0..1600u32).map(|n| n as u8).collect();
        let (client, vip) = ((way.client, 1000), (way.vip, 53));
        let whole = udp(client, vip, &data);
        let cut = 800;
        let mut from = None;
        for (offset, bytes) in [(0, &whole[..cut]), (cut, &whole[cut..])] {
            let shape = Shape { part: Some(((offset / 8) as u16, offset == 0, 0x1234)), ..PLAIN };
            let input = frame(macs(way.client, false), &packet(shape, way.client, way.vip, UDP, bytes));
            let outcome = bench.frame(CLIENTS, &input);
            let (port, bytes) = sent(&outcome);
            let from = *from.get_or_insert_with(|| (way.local, source_port(bytes)));
            let expected = udp(from, (way.server, 5353), &data);
            let expected = if offset == 0 { &expected[..cut] } else { &expected[cut..] };
            let expected = packet(aged(shape), way.local, way.server, UDP, expected);
            assert_eq!((port, bytes), (SERVERS, &frame(macs(way.server, true), &expected)[..]));
        }
        // And the answer.
        let whole = udp((way.server, 5353), from.unwrap(), &data);
        for (offset, bytes) in [(0, &whole[..cut]), (cut, &whole[cut..])] {
            let shape = Shape { part: Some(((offset / 8) as u16, offset == 0, 0x77)), ..PLAIN };
            let input = frame(macs(way.server, false), &packet(shape, way.server, way.local, UDP, bytes));
            let outcome = bench.frame(SERVERS, &input);
            let expected = udp(vip, client, &data);
            let expected = if offset == 0 { &expected[..cut] } else { &expected[cut..] };
            let expected = packet(aged(shape), way.vip, way.client, UDP, expected);
            assert_eq!(sent(&outcome), (CLIENTS, &frame(macs(way.client, true), &expected)[..]));
        }
    }
}

#[test]
fn what_may_be_cut_up_fits_every_ipv6_link() {
    let way = WAYS[1];
    let mut bench = bench(way, "");
    let data = vec![5; 1400];
    let shape = Shape { may_be_cut: true, ..PLAIN };
    let query = udp((way.client, 1000), (way.vip, 53), &data);
    let input = frame(macs(way.client, false), &packet(shape, way.client, way.vip, UDP, &query));
    let outcome = bench.frame(CLIENTS, &input);
    let from = (way.local, source_port(&outcome.sent[0].1));
    let whole = udp(from, (way.server, 5353), &data);
    let mut together = Vec::new();
    for (port, bytes) in &outcome.sent {
        assert_eq!((*port, bytes[20]), (SERVERS, 44));
        assert!(bytes.len() <= 14 + 1280);
        assert_eq!(usize::from(u16::from_be_bytes([bytes[56], bytes[57]]) & !7), together.len());
        together.extend(&bytes[62..]);
    }
    assert_eq!((outcome.sent.len(), together), (2, whole));
}

#[test]
fn what_is_too_long_is_said_in_the_clients_own_terms() {
    for (way, mtu) in WAYS.into_iter().zip([1400 + 20, 1400 - 20]) {
        let mut bench = bench(way, "--toa disable");
        bench.set_mtu(SERVERS, 1400);
        let syn = tcp((way.client, 1000), (way.vip, 80), 2, (0, 0), b"");
        bench.frame(CLIENTS, &frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, TCP, &syn)));
        for (length, fits) in [(mtu, true), (mtu + 1, false)] {
            let header = if way.client.is_ipv4() { 40 } else { 60 };
            let segment = tcp((way.client, 1000), (way.vip, 80), 0x10, (1, 1), &vec![1; length - header]);
            let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, TCP, &segment));
            let outcome = bench.frame(CLIENTS, &input);
            let (port, bytes) = sent(&outcome);
            if fits {
                assert_eq!((port, bytes.len()), (SERVERS, 14 + 1400));
                continue;
            }
            assert_eq!(port, CLIENTS);
            let message = &bytes[transport(bytes)..];
            let told = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
            let kind = if way.client.is_ipv4() { [3, 4] } else { [2, 0] };
            assert_eq!((&message[..2], told as usize), (&kind[..], mtu));
        }
    }
}

/// An ICMP error around a quote.
fn icmp(from: IpAddr, to: IpAddr, kind: [u8; 2], rest: u32, quote: &[u8]) -> Vec<u8> {
    let message = [&kind[..], &[0, 0], &rest.to_be_bytes(), quote].concat();
    summed(from, to, if from.is_ipv4() { 1 } else { 58 }, 2, message)
}

#[test]
fn errors_are_translated_both_ways() {
    for way in WAYS {
        let mut bench = bench(way, "");
        let (client, vip) = ((way.client, 1000), (way.vip, 53));
        let query = udp(client, vip, b"who is it");
        let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, UDP, &query));
        let outcome = bench.frame(CLIENTS, &input);
        let from = (way.local, source_port(sent(&outcome).1));
        let server = (way.server, 5353);
        let number = |address: IpAddr| if address.is_ipv4() { 1 } else { 58 };

        // From the server, about the request: [its family's type, code, word], and the same for the client.
        let v4 = [([3, 3], 0), ([3, 1], 0), ([11, 0], 0), ([3, 4], 1300)];
        let v6 = [([1, 4], 0), ([1, 0], 0), ([3, 0], 0), ([2, 0], 1320)];
        let pairs = if way.server.is_ipv4() { v4.into_iter().zip(v6) } else { v6.into_iter().zip(v4) };
        for ((kind, rest), (theirs, told)) in pairs {
            let seen = Shape { ttl: 61, may_be_cut: false, ..PLAIN };
            let quote = packet(seen, way.local, way.server, UDP, &udp(from, server, b"who is it"));
            let message = icmp(way.server, way.local, kind, rest, &quote);
            let input = frame(
                macs(way.server, false),
                &packet(PLAIN, way.server, way.local, number(way.server), &message),
            );
            let outcome = bench.frame(SERVERS, &input);
            let quote = packet(seen, way.client, way.vip, UDP, &query);
            let message = icmp(way.vip, way.client, theirs, told, &quote);
            let shape = Shape { may_be_cut: way.client.is_ipv4(), ..aged(PLAIN) };
            let expected = packet(shape, way.vip, way.client, number(way.client), &message);
            let (port, bytes) = sent(&outcome);
            assert_eq!(
                (port, without_id(bytes)),
                (CLIENTS, without_id(&frame(macs(way.client, true), &expected))),
                "{kind:?}"
            );
        }

        // From the client, about the reply.
        let answer = udp(vip, client, b"it is me");
        let seen = Shape { ttl: 61, ..PLAIN };
        let quote = packet(seen, way.vip, way.client, UDP, &answer);
        let (kind, theirs) = if way.client.is_ipv4() { ([3, 3], [1, 4]) } else { ([1, 4], [3, 3]) };
        let message = icmp(way.client, way.vip, kind, 0, &quote);
        let input =
            frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, number(way.client), &message));
        let outcome = bench.frame(CLIENTS, &input);
        let quote = packet(seen, way.server, way.local, UDP, &udp(server, from, b"it is me"));
        let message = icmp(way.local, way.server, theirs, 0, &quote);
        let shape = Shape { may_be_cut: way.server.is_ipv4(), ..aged(PLAIN) };
        let expected = packet(shape, way.local, way.server, number(way.server), &message);
        let (port, bytes) = sent(&outcome);
        assert_eq!(
            (port, without_id(bytes)),
            (SERVERS, without_id(&frame(macs(way.server, true), &expected)))
        );
    }
}

#[test]
fn a_server_of_the_other_family_is_told_of_the_client_in_the_clients_own() {
    for way in WAYS {
        let mut bench = bench(way, "--proxy-protocol v1");
        let (client, vip) = ((way.client, 1000), (way.vip, 80));
        for (flags, numbers) in [(2, (7, 0)), (0x10, (8, 101))] {
            let segment = tcp(client, vip, flags, numbers, b"");
            let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, TCP, &segment));
            let outcome = bench.frame(CLIENTS, &input);
            let bytes = sent(&outcome).1.to_vec();
            let from = (way.local, source_port(&bytes));
            if flags == 2 {
                let answer = tcp((way.server, 8080), from, 0x12, (100, 8), b"");
                let answer =
                    frame(macs(way.server, false), &packet(PLAIN, way.server, way.local, TCP, &answer));
                sent(&bench.frame(SERVERS, &answer));
            } else {
                let family = if way.client.is_ipv4() { 4 } else { 6 };
                let line = format!("PROXY TCP{family} {} {} 1000 80\r\n", way.client, way.vip);
                let expected = tcp(from, (way.server, 8080), 0x18, numbers, line.as_bytes());
                assert_eq!(bytes[transport(&bytes)..], expected);
            }
        }
        // The data that comes before the server has acknowledged that: the header again, and the data behind it.
        let segment = tcp(client, vip, 0x18, (8, 101), b"GET");
        let input = frame(macs(way.client, false), &packet(PLAIN, way.client, way.vip, TCP, &segment));
        let outcome = bench.frame(CLIENTS, &input);
        let [(_, first), (_, second)] = &outcome.sent[..] else { panic!("{:?}", outcome.verdict) };
        let from = (way.local, source_port(second));
        let header = first[transport(first) + 20..].to_vec();
        assert!(header.starts_with(b"PROXY ") && header.ends_with(b"\r\n"));
        let expected = tcp(from, (way.server, 8080), 0x18, (8, 101), &header);
        assert_eq!(first[transport(first)..], expected);
        let expected = tcp(from, (way.server, 8080), 0x18, (8 + header.len() as u32, 101), b"GET");
        assert_eq!(second[transport(second)..], expected);
    }
}

//! Datagrams in parts that are scheduled by themselves, that a real server sends by itself, or that are too long on the way: as asked of Linux 6.1.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::WorkerId;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP, VIP6};
use shunt_tests::frames::{C0, S0, checksum, client_mac, frame, server_mac};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

fn bench(lines: &[&str]) -> Bench {
    let mut bench = Bench::default();
    for line in lines {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    bench
}

/// A datagram of 108 bytes.
fn datagram(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut datagram = [from.1, to.1, 108, 0].map(u16::to_be_bytes).concat();
    datagram.extend([7; 100]);
    frame(macs, from.0, to.0, 17, datagram, 6)
}

/// A datagram in two parts.
fn cut(whole: &[u8]) -> [Vec<u8>; 2] {
    const FIRST: usize = 56;
    let (headers, data) = whole.split_at(34);
    [0..FIRST, FIRST..data.len()].map(|bytes| {
        let mut headers = headers.to_vec();
        let ip = &mut headers[14..];
        let more = if bytes.end < data.len() { 0x2000 } else { 0 };
        ip[2..4].copy_from_slice(&(20 + bytes.len() as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&((bytes.start / 8) as u16 | more).to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&headers, &data[bytes]].concat()
    })
}

#[test]
fn datagrams_are_scheduled_one_by_one_after_one_in_parts() {
    let mut bench = bench(&[
        "-A -u 10.9.0.1:53 -s rr --ops",
        "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -g",
        "-a -u 10.9.0.1:53 -r 10.1.0.12:53 -g",
    ]);
    let whole = datagram((client_mac(CLIENT), C0), (CLIENT, 5000), (VIP, 53));
    let mut server_of = |frame: &[u8]| bench.frame(CLIENTS, frame).only().1[5];
    let mut last = server_of(&whole);
    for turn in 0..8 {
        let servers: Vec<u8> = match turn % 3 {
            0 => cut(&whole).map(|part| server_of(&part)).into(),
            _ => vec![server_of(&whole)],
        };
        assert!(servers.iter().all(|server| *server == 23 - last), "{servers:?} after {last}");
        last = servers[0];
    }
    // Whatever comes between its parts.
    let [first, later] = cut(&whole);
    let both = server_of(&first);
    assert_eq!((server_of(&whole), server_of(&whole)), (23 - both, both));
    assert_eq!(server_of(&later), both);
    bench.wait(Duration::from_secs(10));
    assert!(bench.connections().is_empty());
    assert!(bench.loads().iter().all(|(_, _, active, inactive)| active + inactive == 0));
}

/// The id of a part's datagram.
fn with_id(mut part: Vec<u8>, id: u16) -> Vec<u8> {
    part[18..20].copy_from_slice(&id.to_be_bytes());
    part[24..26].fill(0);
    let sum = checksum(&part[14..34]);
    part[24..26].copy_from_slice(&sum.to_be_bytes());
    part
}

#[test]
fn parts_of_two_datagrams_of_one_client_s_port_each_go_where_their_first_went() {
    let mut bench = bench(&[
        "-A -u 10.9.0.1:53 -s rr --ops",
        "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -g",
        "-a -u 10.9.0.1:53 -r 10.1.0.12:53 -g",
    ]);
    let parts = cut(&datagram((client_mac(CLIENT), C0), (CLIENT, 5000), (VIP, 53)));
    let mut server_of = |part: usize, id| bench.frame(CLIENTS, &with_id(parts[part].clone(), id)).only().1[5];
    let [first, second] = [1, 2].map(|id| server_of(0, id));
    assert_ne!(first, second);
    assert_eq!([1, 2].map(|id| server_of(1, id)), [first, second]);
}

/// Whoever hands the first part of a datagram over hands over the others at once, behind it: the owner may not have said yet that it is its own.
#[test]
fn parts_follow_the_first_to_another_worker_in_order() {
    let handed = (2..30).filter(|n| {
        let mut bench = Bench::of_worker(0, 2);
        assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:53 -s rr -p 100").0, 0);
        assert_eq!(bench.ipvsadm("-a -u 10.9.0.1:53 -r 10.1.0.11:53 -g").0, 0);
        let client = Ipv4Addr::new(10, 0, 0, *n);
        let parts = cut(&datagram((client_mac(client), C0), (client, 5000), (VIP, 53)));
        let [first, later] = parts.map(|part| bench.frame(CLIENTS, &part).verdict);
        // A client's template may be this worker's, too.
        let is_handed = matches!(first, Verdict::HandOff(WorkerId(1), _));
        assert_eq!(matches!(later, Verdict::HandOff(WorkerId(1), _)), is_handed, "{first:?}, then {later:?}");
        is_handed
    });
    assert!((1..28).contains(&handed.count()));
}

/// An answer does not make a connection of what is only there for parts.
#[test]
fn datagrams_are_scheduled_one_by_one_after_an_answered_one_in_parts() {
    let mut bench = bench(&[
        "-A -u 10.9.0.1:53 -s rr --ops",
        "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -m",
        "-a -u 10.9.0.1:53 -r 10.1.0.12:53 -m",
    ]);
    let whole = datagram((client_mac(CLIENT), C0), (CLIENT, 5000), (VIP, 53));
    let [first, later] = cut(&whole);
    let last = bench.frame(CLIENTS, &first).only().1[5];
    assert_eq!(bench.frame(CLIENTS, &later).only().1[5], last);
    let server = Ipv4Addr::new(10, 1, 0, last);
    let answer = datagram((server_mac(server), S0), (server, 53), (CLIENT, 5000));
    let [first, later] = cut(&answer);
    for frame in [&answer, &first, &later] {
        bench.wait(Duration::from_millis(900));
        assert_eq!(bench.frame(SERVERS, frame).only().1[26..30], VIP.octets());
    }
    for turn in 0..4 {
        let server = if turn % 2 == 0 { 23 - last } else { last };
        assert_eq!(bench.frame(CLIENTS, &whole).only().1[5], server);
    }
    // Its time is that of the last part.
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.connections(), []);
}

/// What the NAT real server of a service sends to the client by itself, from a port.
fn own(service: &str, server: &str, port: u16) -> (Bench, [Vec<u8>; 2]) {
    let bench = bench(&[&format!("-A {service} -s rr"), &format!("-a {service} -r {server} -m")]);
    (bench, cut(&datagram((server_mac(SERVER), S0), (SERVER, port), (CLIENT, 5000))))
}

#[test]
fn what_a_real_server_sends_by_itself_goes_on_in_parts_too() {
    for (service, server, port) in [
        ("-u 10.9.0.1:53", "10.1.0.11:53", 53),
        ("-u 10.9.0.1:53", "10.1.0.11:53", 40_000),
        ("-f 1", "10.1.0.11:0", 40_000),
    ] {
        let (mut bench, parts) = own(service, server, port);
        for part in &parts {
            let (by, sent) = bench.frame(SERVERS, part).only();
            assert_eq!((by, &sent[26..]), (CLIENTS, &part[26..]), "{service}: as it was, but for its age");
        }
    }
}

/// A later part with a virtual address as its source is nobody's whom the director routes for.
#[test]
fn later_parts_from_a_virtual_address_are_not_routed() {
    let mut bench = bench(&["-A -u 10.9.0.1:53 -s rr", "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -g"]);
    for part in cut(&datagram((server_mac(SERVER), S0), (VIP, 53), (CLIENT, 5000))) {
        let outcome = bench.frame(SERVERS, &part);
        assert!(outcome.sent.is_empty(), "{outcome:?}");
    }
}

/// Of the IPv6 packet with this payload.
fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, 64][..], &from.octets(), &to.octets(), payload].concat()
}

/// A payload whose checksum, at an offset, is right.
fn summed(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, at: usize, mut payload: Vec<u8>) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, protocol], &payload].concat();
    payload[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    payload
}

/// A real server cuts its answers to its own MTU; a router on the way says that the first part is too long still.
#[test]
fn a_real_server_hears_that_its_parts_are_too_long() {
    let [client, router, server]: [Ipv6Addr; 3] =
        ["2001:db8:a::2", "2001:db8:a::9", "2001:db8:b::b"].map(|address| address.parse().unwrap());
    let mut bench =
        bench(&["-A -u [2001:db8:f::1]:53 -s rr", "-a -u [2001:db8:f::1]:53 -r [2001:db8:b::b]:5353 -m"]);
    let ethernet = [&C0[..], &[2, 0xc6, 0, 0, 0, 2], &[0x86, 0xdd]].concat();
    let datagram = |from, to, ports: [u16; 2], data: &[u8]| {
        let length = 8 + data.len() as u16;
        let datagram = [[ports[0], ports[1], length, 0].map(u16::to_be_bytes).as_flattened(), data].concat();
        summed(from, to, 17, 6, datagram)
    };
    let request = ipv6(client, VIP6, 17, &datagram(client, VIP6, [5000, 53], b"hello"));
    bench.frame(CLIENTS, &[&ethernet[..], &request].concat()).only();

    let answer = datagram(VIP6, client, [53, 5000], &[7; 1300]);
    let fragment = [17, 0, 0, 1, 0, 0, 0, 7];
    let options = [44, 0, 1, 4, 0, 0, 0, 0];
    let part = [&fragment[..], &answer].concat();
    for (next, behind) in [(17, answer), (44, part.clone()), (60, [&options[..], &part].concat())] {
        let quote = ipv6(VIP6, client, next, &behind);
        let header = 40 + behind.len() - 1308;
        let message = [&[2, 0, 0, 0][..], &1290u32.to_be_bytes(), &quote[..1200]].concat();
        let error = ipv6(router, VIP6, 58, &summed(router, VIP6, 58, 2, message));
        let (by, sent) = bench.frame(CLIENTS, &[&ethernet[..], &error].concat()).only();
        assert_eq!((by, &sent[38..54]), (SERVERS, &server.octets()[..]));
        let quoted = &sent[14 + 40 + 8..];
        assert_eq!((&quoted[8..24], &quoted[40..header]), (&server.octets()[..], &quote[40..header]));
        assert_eq!(quoted[header..header + 2], 5353_u16.to_be_bytes());
    }
    // Of a later part nothing tells whose it is.
    let later = [&[17, 0, 0x05, 0x09, 0, 0, 0, 7][..], &[7; 600]].concat();
    let message = [&[2, 0, 0, 0][..], &1290u32.to_be_bytes(), &ipv6(VIP6, client, 44, &later)].concat();
    let error = ipv6(router, VIP6, 58, &summed(router, VIP6, 58, 2, message));
    assert_eq!(bench.frame(CLIENTS, &[&ethernet[..], &error].concat()).verdict, Verdict::Pass);
}

/// RFC 1122 3.2.2 has no ICMP error about a later part of an IPv4 datagram; RFC 4443 has.
#[test]
fn only_over_ipv6_is_anybody_told_what_became_of_a_later_part() {
    let mut bench = bench(&[
        "-A -u 10.9.0.1:53 -s rr",
        "-a -u 10.9.0.1:53 -r 10.1.0.11:53 -m",
        "-A -u [2001:db8:f::1]:53 -s rr",
        "-a -u [2001:db8:f::1]:53 -r [2001:db8:b::b]:53 -m",
    ]);
    let [mut first, mut later] = cut(&datagram((client_mac(CLIENT), C0), (CLIENT, 5000), (VIP, 53)));
    bench.frame(CLIENTS, &first).only();
    for part in [&mut first, &mut later] {
        // Another datagram's first, of which nothing was sent on; and a time to live that ends here.
        part[22] = 1;
        part[24..26].fill(0);
        let sum = checksum(&part[14..34]);
        part[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    assert_eq!(bench.frame(CLIENTS, &later).verdict, Verdict::Drop(Reason::FragmentUnanswered));
    first[18..20].copy_from_slice(&[9, 9]);
    first[24..26].fill(0);
    let sum = checksum(&first[14..34]);
    first[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(bench.frame(CLIENTS, &first).verdict, Verdict::Reply(CLIENTS));

    let client: Ipv6Addr = "2001:db8:a::2".parse().unwrap();
    let ethernet = [&C0[..], &[2, 0xc6, 0, 0, 0, 2], &[0x86, 0xdd]].concat();
    let datagram = summed(client, VIP6, 17, 6, [&[0x13, 0x88, 0, 53, 0, 24, 0, 0][..], &[7; 16]].concat());
    let [first, mut later] = [(1, &datagram[..16]), (16, &datagram[16..])].map(|(place, part)| {
        let payload = [&[17, 0, 0, place, 0, 0, 0, 7], part].concat();
        [&ethernet[..], &ipv6(client, VIP6, 44, &payload)].concat()
    });
    bench.frame(CLIENTS, &first).only();
    later[21] = 1;
    assert_eq!(bench.frame(CLIENTS, &later).verdict, Verdict::Reply(CLIENTS));
}

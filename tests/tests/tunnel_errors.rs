//! Errors about the director's own tunnel packets, for every tunnel through either family. What IPVS does for IPv4 in IPv4 stands in
//! `golden/tunnel-errors.json`; here is that the others do the same in their own terms, and what no recording shows: several workers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::WorkerId;
use shunt_dataplane::stats::{Event, Reason};
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, checksum, client_mac, server_mac};
use shunt_tests::rig::Rig;

const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// How to wrap, and the bytes between the IP headers.
const KINDS: [(&str, usize); 5] = [
    ("", 0),
    ("--tun-type gue --tun-port 6080 --tun-nocsum", 12),
    ("--tun-type gue --tun-port 6080 --tun-csum", 12),
    ("--tun-type gre --tun-nocsum", 4),
    ("--tun-type gre --tun-csum", 8),
];

fn client(is_v4: bool) -> IpAddr {
    if is_v4 { [10, 0, 0, 2].into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 2).into() }
}

fn vip(is_v4: bool) -> IpAddr {
    if is_v4 { VIP.into() } else { VIP6.into() }
}

fn server(is_v4: bool) -> IpAddr {
    if is_v4 { [10, 1, 0, 11].into() } else { Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 11).into() }
}

fn header(is_v4: bool) -> usize {
    if is_v4 { 20 } else { 40 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet; IPv4 ones must not be cut up unless `df` is false.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, df: bool, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (octets(from), octets(to));
    let length = payload.len() as u16;
    if from.len() == 16 {
        let [high, low] = length.to_be_bytes();
        return [&[0x60, 0, 0, 0, high, low, protocol, 64][..], &from, &to, payload].concat();
    }
    let [high, low] = (length + 20).to_be_bytes();
    let fixed = [0x45, 0, high, low, 0, 9, if df { 0x40 } else { 0 }, 0, 64, protocol, 0, 0];
    let mut packet = [&fixed[..], &from, &to].concat();
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A segment of the client's that is `length` bytes of IP.
fn segment(from: IpAddr, flags: u8, length: usize, df: bool) -> Vec<u8> {
    let is_v4 = from.is_ipv4();
    let mut tcp = [&[0x03, 0xe8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 8, 0, 0, 0, 0, 0][..]].concat();
    tcp.resize(length - header(is_v4), b'x');
    ip(from, vip(is_v4), 6, df, &tcp)
}

fn frame(macs: ([u8; 6], [u8; 6]), packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&macs.1[..], &macs.0, &ethertype, packet].concat()
}

fn from_client(packet: &[u8]) -> Vec<u8> {
    frame((client_mac(Ipv4Addr::new(10, 0, 0, 2)), C0), packet)
}

/// An error about the packet, from a router on the servers' side to the packet's source.
fn error(about: &[u8], kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let is_v4 = about[0] >> 4 == 4;
    let quote = &about[..about.len().min(if is_v4 { 548 } else { 1232 })];
    let mut message = [&[kind, code, 0, 0][..], &rest.to_be_bytes(), quote].concat();
    let (router, to) = match is_v4 {
        true => (IpAddr::from([10, 1, 0, 12]), IpAddr::from([10, 1, 0, 1])),
        false => {
            let at = |host| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, host));
            (at(12), at(1))
        }
    };
    let sum = icmp_sum(router, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = ip(router, to, if is_v4 { 1 } else { 58 }, true, &message);
    frame((server_mac(Ipv4Addr::new(10, 1, 0, 12)), S0), &packet)
}

/// The checksum of an ICMP message whose field is zero, and zero for one whose field is right.
fn icmp_sum(from: IpAddr, to: IpAddr, message: &[u8]) -> u16 {
    if from.is_ipv4() {
        return checksum(message);
    }
    let length = (message.len() as u32).to_be_bytes();
    checksum(&[&octets(from)[..], &octets(to), &length, &[0, 0, 0, 58], message].concat())
}

/// What an answer to the client says, held against the packet that it is about.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    kind: u8,
    code: u8,
    rest: u32,
}

fn told(sent: &[u8], about: &[u8]) -> Told {
    let is_v4 = about[0] >> 4 == 4;
    let (packet, header) = (&sent[14..], header(is_v4));
    let (at, length) = if is_v4 { (12, 4) } else { (8, 16) };
    assert_eq!(packet[0] >> 4, about[0] >> 4, "the client's own family");
    assert_eq!(packet[at..at + length], octets(vip(is_v4)), "from the virtual address");
    assert_eq!(packet[at + length..at + 2 * length], about[at..at + length], "to the client");
    let message = &packet[header..];
    let (from, to) = (vip(is_v4), client(is_v4));
    assert_eq!(icmp_sum(from, to, message), 0, "a right checksum");
    let quote = &message[8..];
    assert!(quote.len() >= header + 8 && quote.len() <= about.len());
    // The quoted header is one hop older.
    assert_eq!(quote[header..], about[header..quote.len()], "the client's packet");
    assert_eq!(quote[at..header], about[at..header], "the client's addresses");
    Told { kind: message[0], code: message[1], rest: u32::from_be_bytes(message[4..8].try_into().unwrap()) }
}

/// A bench with one service, and a connection to it that has sent a long segment.
struct Tunnelled {
    bench: Bench,
    is_v4: bool,
    overhead: usize,
    /// The connection's first packet, and the outer packet it became.
    syn: (Vec<u8>, Vec<u8>),
    long: (Vec<u8>, Vec<u8>),
}

impl Tunnelled {
    fn new(is_v4: bool, outer_is_v4: bool, (options, wrapping): (&str, usize)) -> Self {
        let mut bench = Bench::default();
        let bracket = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let (service, real) = (bracket(vip(is_v4)), bracket(server(outer_is_v4)));
        for line in
            [format!("-A -t {service}:80 -s rr"), format!("-a -t {service}:80 -r {real}:80 -i {options}")]
        {
            assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
        }
        let mut send = |flags, length| {
            let packet = segment(client(is_v4), flags, length, true);
            let outcome = bench.frame(CLIENTS, &from_client(&packet));
            assert_eq!(outcome.verdict, Verdict::Forward(SERVERS), "{options} {is_v4} {outer_is_v4}");
            (packet, outcome.only().1[14..].to_vec())
        };
        let syn = send(SYN, header(is_v4) + 20);
        let overhead = header(outer_is_v4) + wrapping;
        let long = send(ACK, 1500 - overhead);
        assert_eq!((syn.1.len(), long.1.len()), (syn.0.len() + overhead, 1500));
        Self { bench, is_v4, overhead, syn, long }
    }

    fn all(mut each: impl FnMut(Self, bool)) {
        for kind in KINDS {
            for (is_v4, outer_is_v4) in [(true, true), (true, false), (false, true), (false, false)] {
                each(Self::new(is_v4, outer_is_v4, kind), outer_is_v4);
            }
        }
    }

    /// What the client is told when it sends so many bytes; `None` if they go into the tunnel.
    fn send(&mut self, length: usize) -> Option<Told> {
        let packet = segment(client(self.is_v4), ACK, length, true);
        let outcome = self.bench.frame(CLIENTS, &from_client(&packet));
        match outcome.verdict {
            Verdict::Forward(SERVERS) => None,
            Verdict::Reply(CLIENTS) => Some(told(&outcome.only().1, &packet)),
            other => panic!("{other:?}"),
        }
    }

    /// What the client is told when this comes back about the long segment.
    fn error(&mut self, kind: u8, code: u8, rest: u32) -> Result<Told, Verdict> {
        let outcome = self.bench.frame(SERVERS, &error(&self.long.1, kind, code, rest));
        match outcome.verdict {
            Verdict::Reply(CLIENTS) => Ok(told(&outcome.only().1, &self.long.0)),
            other => Err(other),
        }
    }

    fn too_big(&mut self, mtu: u32) -> Result<Told, Verdict> {
        let (kind, code) = if self.long.1[0] >> 4 == 4 { (3, 4) } else { (2, 0) };
        self.error(kind, code, mtu)
    }

    /// What the client should be told of a path's MTU.
    fn fits(&self, room: usize) -> Told {
        let (kind, code) = if self.is_v4 { (3, 4) } else { (2, 0) };
        Told { kind, code, rest: room as u32 }
    }
}

#[test]
fn the_client_learns_the_path_mtu_of_every_tunnel() {
    Tunnelled::all(|mut tunnel, outer_is_v4| {
        for (mtu, path) in [(1400, 1400), (1450, 1400), (1399, 1399), (9000, 1399)] {
            let room = path - tunnel.overhead;
            assert_eq!(tunnel.too_big(mtu), Ok(tunnel.fits(room)));
            assert_eq!(tunnel.send(room), None);
            assert_eq!(tunnel.send(room + 1), Some(tunnel.fits(room)));
        }
        // Less than a path must carry: nobody is told of less, and what is that short goes out.
        let least = match (tunnel.is_v4, outer_is_v4) {
            (true, true) => 552 - tunnel.overhead,
            (true, false) => 1280 - tunnel.overhead,
            (false, _) => 1280,
        };
        assert_eq!(tunnel.too_big(0), Ok(tunnel.fits(least)));
        assert_eq!(tunnel.send(least), None);
        assert_eq!(tunnel.send(least + 1), Some(tunnel.fits(least)));
        tunnel.bench.wait(Duration::from_secs(602));
        assert_eq!(tunnel.send(1500 - tunnel.overhead), None, "after ten minutes it is tried again");
    });
}

#[test]
fn the_client_learns_of_other_errors_in_its_own_terms() {
    Tunnelled::all(|mut tunnel, outer_is_v4| {
        let told = |kind, code| Ok(Told { kind, code, rest: 0 });
        let nothing = Err(Verdict::Drop(Reason::AbsorbedIcmp));
        let table = match (outer_is_v4, tunnel.is_v4) {
            (true, true) => vec![((3, 13), told(3, 13)), ((11, 0), told(11, 0)), ((4, 0), told(4, 0))],
            (true, false) => vec![((3, 13), told(1, 3)), ((11, 0), told(1, 3)), ((4, 0), nothing)],
            (false, true) => vec![((1, 4), told(3, 1)), ((3, 0), told(3, 1)), ((4, 1), told(3, 1))],
            (false, false) => vec![((1, 4), told(1, 4)), ((3, 0), told(3, 0)), ((4, 1), told(1, 3))],
        };
        for ((kind, code), expected) in table {
            assert_eq!(tunnel.error(kind, code, 0), expected, "{kind}/{code}, {outer_is_v4}");
        }
        // Informational messages and redirects are the kernel's.
        let (kind, code) = if outer_is_v4 { (5, 1) } else { (137, 0) };
        assert_eq!(tunnel.error(kind, code, 0), Err(Verdict::Pass));
    });
}

#[test]
fn an_error_that_is_not_about_a_live_connection_is_passed() {
    Tunnelled::all(|mut tunnel, outer_is_v4| {
        let (kind, code) = if outer_is_v4 { (3, 1) } else { (1, 3) };
        let outer = tunnel.syn.1.clone();
        let mut verdict = |about: &[u8]| tunnel.bench.frame(SERVERS, &error(about, kind, code, 0)).verdict;
        assert_eq!(verdict(&outer), Verdict::Reply(CLIENTS));
        // Each byte that says whose it is: addresses and protocol of the outer packet, how it is wrapped, addresses and ports of the inner one.
        let (addresses, protocol) = if outer_is_v4 { (12..20, 9) } else { (8..40, 6) };
        let between: &[usize] = match tunnel.overhead - header(outer_is_v4) {
            12 => &[2, 3, 8, 9, 10, 11],
            4 | 8 => &[0, 1, 2, 3],
            _ => &[],
        };
        let between = between.iter().map(|at| header(outer_is_v4) + at);
        let inner = tunnel.overhead + if tunnel.is_v4 { 12 } else { 8 };
        let ports = tunnel.overhead + header(tunnel.is_v4) + 4;
        for at in addresses.chain([protocol]).chain(between).chain(inner..ports) {
            let mut changed = outer.clone();
            changed[at] ^= 0x40;
            assert_eq!(verdict(&changed), Verdict::Pass, "byte {at} of {outer:02x?}");
        }
        for length in 1..tunnel.overhead + header(tunnel.is_v4) + 8 {
            assert_eq!(verdict(&outer[..length]), Verdict::Pass, "{length} bytes quoted");
        }
    });
}

#[test]
fn answers_are_limited_but_for_path_mtu_discovery() {
    let mut tunnel = Tunnelled::new(true, true, KINDS[0]);
    let answered = (0..9).filter(|_| tunnel.error(3, 1, 0).is_ok()).count();
    assert_eq!(answered, 6);
    assert_eq!(tunnel.error(3, 1, 0), Err(Verdict::Drop(Reason::RateLimited)));
    assert!((0..9).all(|_| tunnel.too_big(1400).is_ok()));
}

#[test]
fn what_may_be_cut_up_is_cut_to_fit_the_path() {
    for outer_is_v4 in [true, false] {
        let mut tunnel = Tunnelled::new(true, outer_is_v4, KINDS[1]);
        let packet = segment(client(true), ACK, 1420, false);
        let outer = tunnel.bench.frame(CLIENTS, &from_client(&packet)).only().1[14..].to_vec();
        assert_eq!(outer.len(), 1420 + tunnel.overhead);
        // A router that could not cut it up says how long it may be; that is noted, and the client need not know.
        let (kind, code) = if outer_is_v4 { (3, 4) } else { (2, 0) };
        let outcome = tunnel.bench.frame(SERVERS, &error(&outer, kind, code, 1300));
        assert_eq!(outcome.verdict, Verdict::Drop(Reason::AbsorbedIcmp));
        let outcome = tunnel.bench.frame(CLIENTS, &from_client(&packet));
        let lengths: Vec<usize> = outcome.sent.iter().map(|(_, frame)| frame.len() - 14).collect();
        let most = if outer_is_v4 { 20 + 1280 } else { 48 + 1248 };
        let headers = if outer_is_v4 { 20 } else { 48 };
        let rest = outer.len() - header(outer_is_v4) - (most - headers);
        assert_eq!((outcome.verdict, lengths), (Verdict::Forward(SERVERS), vec![most, headers + rest]));
        // What may not be cut up is refused.
        let room = 1300 - tunnel.overhead;
        assert_eq!(tunnel.send(room + 1), Some(tunnel.fits(room)));
    }
}

#[test]
fn a_wrong_checksum_changes_nothing() {
    Tunnelled::all(|mut tunnel, outer_is_v4| {
        let (kind, code) = if outer_is_v4 { (3, 4) } else { (2, 0) };
        let mut frame = error(&tunnel.long.1, kind, code, 1400);
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(tunnel.bench.frame(SERVERS, &frame).verdict, Verdict::Drop(Reason::BadChecksum));
        assert_eq!(tunnel.send(1500 - tunnel.overhead), None);
    });
}

proptest! {
    /// Whatever is quoted, and whatever becomes of the frame on its way: if the client is told, it is in a sound message about its own flow.
    #[test]
    fn a_damaged_quote_is_told_soundly_or_not_at_all(
        is_v4: bool, outer_is_v4: bool, kind in 0..KINDS.len(), (code, mtu) in (0u8..6, 0u32..2000), left in 1usize..200,
        quoted in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        framed in prop::collection::vec((12usize..120, any::<u8>()), 0..2),
    ) {
        let mut tunnel = Tunnelled::new(is_v4, outer_is_v4, KINDS[kind]);
        let change = |bytes: &mut [u8], changes: &[(usize, u8)]| {
            changes.iter().for_each(|(at, value)| if let Some(byte) = bytes.get_mut(*at) { *byte = *value });
        };
        let mut about = tunnel.long.1[..left].to_vec();
        change(&mut about[1..], &quoted);
        let mut frame = error(&about, if outer_is_v4 { 3 } else { 1 + code % 4 }, code, mtu);
        change(&mut frame, &framed);
        let outcome = tunnel.bench.frame(SERVERS, &frame);
        for (port, sent) in outcome.sent {
            prop_assert_eq!((outcome.verdict, port), (Verdict::Reply(CLIENTS), CLIENTS));
            let message = &sent[14 + header(is_v4)..];
            prop_assert_eq!(icmp_sum(vip(is_v4), client(is_v4), message), 0);
            let flow = if is_v4 { 12..24 } else { 8..44 };
            prop_assert_eq!(&message[8..][flow.clone()], &tunnel.long.0[flow]);
        }
    }
}

/// An error comes to one worker, the connection is another's, and a third's must obey as well.
#[test]
fn all_workers_obey_what_one_was_told() {
    let mut rig = Rig::new(3);
    rig.ipvsadm("-A -t 10.9.0.1:80 -s rr");
    rig.ipvsadm("-a -t 10.9.0.1:80 -r 10.1.0.11:80 -i");
    let neighbour = |host| IpAddr::from([10, 0, 0, host]);
    let send = |rig: &mut Rig, worker, host, flags, length| {
        rig.deliver(worker, CLIENTS, &from_client(&segment(neighbour(host), flags, length, true)))
    };
    for (worker, host) in [(0, 2), (2, 3), (0, 50)] {
        assert_eq!(send(&mut rig, worker, host, SYN, 40).verdict, Verdict::Forward(SERVERS));
    }
    let sent = send(&mut rig, 0, 2, ACK, 1480);
    assert_eq!(sent.verdict, Verdict::Forward(SERVERS));

    let told_one = rig.deliver(1, SERVERS, &error(&sent.bytes[14..], 3, 4, 1400));
    assert_eq!((told_one.worker, told_one.verdict), (WorkerId(0), Verdict::Reply(CLIENTS)));
    assert_eq!(rig.counters.worker(WorkerId(0)).event(Event::PathNarrowed), 1);
    let refused = send(&mut rig, 2, 3, ACK, 1381);
    assert_eq!((refused.worker, refused.verdict), (WorkerId(2), Verdict::Reply(CLIENTS)));
    assert_eq!(refused.bytes[40..42], 1380_u16.to_be_bytes());
    assert_eq!(send(&mut rig, 1, 3, ACK, 1380).verdict, Verdict::Forward(SERVERS));

    // A client whose Ethernet address is not known is asked for first.
    let sent = send(&mut rig, 0, 50, ACK, 1380);
    let waits = rig.deliver(1, SERVERS, &error(&sent.bytes[14..], 3, 4, 1300));
    assert_eq!(waits.verdict, Verdict::Wait(CLIENTS.into(), neighbour(50)));
}

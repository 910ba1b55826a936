//! FTP through NAT beyond what the kernel was asked (`golden/packets-ftp.json`): answers that are repeated, where the kernel gives up; several workers; what is steered, and
//! for how long.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::service::{PortId, Protocol, WorkerId};
use shunt_dataplane::stats::{Event, Reason};
use shunt_dataplane::steer::Target;
use shunt_tests::bench::{Bench, CLIENTS, HOME, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, checksum, client_mac, flags, frame, server_mac};
use shunt_tests::rig::Rig;

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 1000);
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 0, 11), 21);
/// Its text is longer than the server's.
const LONG: Ipv4Addr = Ipv4Addr::new(110, 109, 100, 101);
const ANSWER: &str = "227 Entering Passive Mode (10,1,0,11,200,10).\r\n";
/// The port that it names.
const NAMED: u16 = 51210;
/// Numbers of the first bytes of both ends. The server's pass the end of all numbers soon.
const FIRST: (u32, u32) = (1001, 0xffff_ff80);

type End = (Ipv4Addr, u16);

/// A segment as one end sends it.
#[derive(Clone)]
struct Segment<'a> {
    from: End,
    to: End,
    letters: &'a str,
    number: u32,
    acknowledged: u32,
    options: Vec<u8>,
    data: Vec<u8>,
}

impl Segment<'_> {
    fn frame(&self) -> Vec<u8> {
        let mut segment = [self.from.1.to_be_bytes(), self.to.1.to_be_bytes()].concat();
        segment.extend(self.number.to_be_bytes());
        segment.extend(self.acknowledged.to_be_bytes());
        segment.extend([(5 + self.options.len() as u8 / 4) << 4, flags(self.letters), 32, 0, 0, 0, 0, 0]);
        segment.extend(&self.options);
        segment.extend(&self.data);
        let is_servers = self.from.0.octets()[..2] == [10, 1];
        let macs = if is_servers { (server_mac(self.from.0), S0) } else { (client_mac(self.from.0), C0) };
        frame(macs, self.from.0, self.to.0, 6, segment, 16)
    }
}

/// What a segment that leaves says: its ends, numbers, SACK edges and data. Its checksums must be right.
#[derive(Debug, PartialEq)]
struct Seen {
    from: End,
    to: End,
    number: u32,
    acknowledged: u32,
    edges: Vec<u32>,
    data: Vec<u8>,
}

fn see(sent: &[u8]) -> Seen {
    let end = 14 + usize::from(u16::from_be_bytes([sent[16], sent[17]]));
    assert_eq!(end, sent.len());
    assert_eq!(checksum(&sent[14..34]), 0);
    let pseudo = [&sent[26..34], &[0, 6], &((end - 34) as u16).to_be_bytes(), &sent[34..]].concat();
    assert_eq!(checksum(&pseudo), 0);
    let word = |at: usize| u32::from_be_bytes(sent[at..at + 4].try_into().unwrap());
    let half = |at: usize| u16::from_be_bytes([sent[at], sent[at + 1]]);
    let data = 34 + usize::from(sent[46] >> 4) * 4;
    Seen {
        from: (word(26).into(), half(34)),
        to: (word(30).into(), half(36)),
        number: word(38),
        acknowledged: word(42),
        // The tests write nothing but two times no operation and SACK.
        edges: (58..data).step_by(4).map(word).collect(),
        data: sent[data..].to_vec(),
    }
}

/// A control connection: the bench, and where both ends are.
struct Dialogue {
    bench: Bench,
    vip: Ipv4Addr,
    /// The number of what the client says next.
    client: u32,
}

impl Dialogue {
    fn new(vip: Ipv4Addr) -> Self {
        let mut bench = Bench::default();
        for line in [format!("-A -t {vip}:21 -s rr"), format!("-a -t {vip}:21 -r {}:21 -m", SERVER.0)] {
            assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
        }
        let mut dialogue = Self { bench, vip, client: FIRST.0 };
        let (client, server) = (FIRST.0.wrapping_sub(1), FIRST.1.wrapping_sub(1));
        let syn = Segment { letters: "S", number: client, ..dialogue.of_client(0, "") };
        let answer = Segment { letters: "SA", ..dialogue.of_server(server, "") };
        dialogue.heard(CLIENTS, &syn);
        dialogue.heard(SERVERS, &answer);
        dialogue.heard(CLIENTS, &dialogue.of_client(FIRST.1, ""));
        dialogue
    }

    fn of_client(&self, acknowledged: u32, text: &str) -> Segment<'static> {
        Segment {
            from: CLIENT,
            to: (self.vip, 21),
            letters: "PA",
            number: self.client,
            acknowledged,
            options: Vec::new(),
            data: text.into(),
        }
    }

    fn of_server(&self, number: u32, text: &str) -> Segment<'static> {
        Segment {
            from: SERVER,
            to: CLIENT,
            letters: "PA",
            number,
            acknowledged: self.client,
            options: Vec::new(),
            data: text.into(),
        }
    }

    /// The client says something.
    fn say(&mut self, acknowledged: u32, text: &str) -> Seen {
        let seen = self.heard(CLIENTS, &self.of_client(acknowledged, text));
        self.client = self.client.wrapping_add(text.len() as u32);
        seen
    }

    fn answer(&mut self, number: u32, text: &str) -> Seen {
        self.heard(SERVERS, &self.of_server(number, text))
    }

    fn heard(&mut self, side: PortId, segment: &Segment) -> Seen {
        see(&self.bench.frame(side, &segment.frame()).only().1)
    }

    fn verdict(&mut self, side: PortId, segment: &Segment) -> Verdict {
        self.bench.frame(side, &segment.frame()).verdict
    }
}

fn rewritten(text: &str, vip: Ipv4Addr) -> String {
    text.replace("10,1,0,11", &vip.to_string().replace('.', ","))
}

#[test]
fn an_answer_that_is_repeated_is_rewritten_again_in_any_segments() {
    for vip in [VIP, LONG] {
        let mut dialogue = Dialogue::new(vip);
        let wanted = rewritten(ANSWER, vip);
        dialogue.say(FIRST.1, "PASV\r\n");
        for _ in 0..2 {
            let seen = dialogue.answer(FIRST.1, ANSWER);
            assert_eq!((seen.number, seen.data), (FIRST.1, wanted.clone().into_bytes()));
        }
        let more = format!("{ANSWER}150 x\r\n");
        assert_eq!(dialogue.answer(FIRST.1, &more).data, rewritten(&more, vip).into_bytes());
        // In two parts, cut in the middle of what is replaced.
        let cut = ANSWER.find("1,0,11").unwrap();
        let first = dialogue.answer(FIRST.1, &ANSWER[..cut]);
        let second = dialogue.answer(FIRST.1.wrapping_add(cut as u32), &ANSWER[cut..]);
        assert_eq!(second.number, first.number.wrapping_add(first.data.len() as u32));
        assert_eq!([first.data, second.data].concat(), wanted.into_bytes());
        // The client has asked again as well, because it had not heard that it was heard.
        dialogue.client -= 6;
        dialogue.say(FIRST.1, "PASV\r\n");
        assert_eq!(dialogue.answer(FIRST.1, ANSWER).data, rewritten(ANSWER, vip).into_bytes());
    }
}

#[test]
fn numbers_begin_anew_when_the_server_does_and_not_before() {
    let mut dialogue = Dialogue::new(LONG);
    dialogue.say(FIRST.1, "PASV\r\n");
    let answer = dialogue.answer(FIRST.1, ANSWER);
    let end = answer.number.wrapping_add(answer.data.len() as u32);
    let next = FIRST.1.wrapping_add(ANSWER.len() as u32);
    // A SYN that nobody believes: a late copy, or a stranger's.
    let syn = Segment { letters: "S", number: 77, ..dialogue.of_client(0, "") };
    dialogue.heard(CLIENTS, &syn);
    assert_eq!(dialogue.answer(next, "150 x\r\n").number, end);
    assert_eq!(dialogue.say(end, "").acknowledged, next);
    let answer = Segment { letters: "SA", ..dialogue.of_server(5000, "") };
    dialogue.heard(SERVERS, &answer);
    assert_eq!(dialogue.answer(5001, "220 x\r\n").number, 5001);
}

#[test]
fn an_answer_waits_until_the_one_before_is_acknowledged() {
    let mut dialogue = Dialogue::new(LONG);
    dialogue.say(FIRST.1, "PASV\r\n");
    let first = dialogue.answer(FIRST.1, ANSWER);
    dialogue.say(FIRST.1, "PASV\r\n");
    let next = FIRST.1.wrapping_add(ANSWER.len() as u32);
    let second = dialogue.of_server(next, ANSWER);
    assert_eq!(dialogue.verdict(SERVERS, &second), Verdict::Drop(Reason::FtpAnswer));
    let end = first.number.wrapping_add(first.data.len() as u32);
    assert_eq!(dialogue.say(end, "").acknowledged, next);
    let seen = dialogue.heard(SERVERS, &second);
    assert_eq!((seen.number, seen.data), (end, rewritten(ANSWER, LONG).into_bytes()));
}

#[test]
fn a_server_is_told_of_a_narrower_path_if_its_answer_would_not_fit() {
    let mut dialogue = Dialogue::new(LONG);
    dialogue.say(FIRST.1, "PASV\r\n");
    let text = ANSWER.to_owned() + &"y".repeat(1460 - ANSWER.len());
    let outcome = dialogue.bench.frame(SERVERS, &dialogue.of_server(FIRST.1, &text).frame());
    assert_eq!(outcome.verdict, Verdict::Reply(SERVERS));
    let (_, told) = outcome.only();
    // Fragmentation needed, 1494 bytes: the answer becomes six bytes longer.
    assert_eq!((told[34], told[35], &told[40..42]), (3, 4, &1494u16.to_be_bytes()[..]));
    let text = &text[..1454];
    assert_eq!(dialogue.answer(FIRST.1, text).data, rewritten(text, LONG).into_bytes());
}

#[test]
fn a_server_that_names_its_virtual_address_or_none_means_itself() {
    for named in ["10,9,0,1", "0,0,0,0"] {
        let mut dialogue = Dialogue::new(VIP);
        dialogue.say(FIRST.1, "PASV\r\n");
        let text = ANSWER.replace("10,1,0,11", named);
        assert_eq!(dialogue.answer(FIRST.1, &text).data, rewritten(ANSWER, VIP).into_bytes());
        let listed = dialogue.bench.connections();
        let data = listed.iter().find(|conn| conn.2 == "LISTEN").expect("a data connection");
        assert_eq!((data.3.as_str(), data.5.as_str()), ("10.0.0.2:0", "10.1.0.11:51210"));
    }
}

#[test]
fn the_ports_of_data_are_steered_for_as_long_as_connections_need_them() {
    let target =
        |address: Ipv4Addr| Target::Service { protocol: Protocol::Tcp, address: address.into(), port: NAMED };
    let server = Target::RealServer { protocol: Protocol::Tcp, address: SERVER.0.into(), port: NAMED };
    let mut dialogue = Dialogue::new(VIP);
    assert!(dialogue.bench.steered.is_empty());
    dialogue.say(FIRST.1, "PASV\r\n");
    let first = dialogue.answer(FIRST.1, ANSWER);
    assert_eq!(dialogue.bench.steered, [target(VIP), server].into());
    // The client comes, and asks for more; the server happens to listen at the same port again.
    let data =
        Segment { from: (CLIENT.0, 1001), to: (VIP, NAMED), letters: "S", ..dialogue.of_client(0, "") };
    assert_eq!(dialogue.heard(CLIENTS, &data).to, (SERVER.0, NAMED));
    let end = first.number.wrapping_add(first.data.len() as u32);
    dialogue.say(end, "PASV\r\n");
    dialogue.answer(FIRST.1.wrapping_add(ANSWER.len() as u32), ANSWER);
    assert_eq!(dialogue.bench.steered, [target(VIP), server].into());
    // SYN_RECV lasts a minute, LISTEN two.
    dialogue.bench.wait(Duration::from_secs(70));
    assert_eq!(dialogue.bench.steered, [target(VIP), server].into());
    dialogue.bench.wait(Duration::from_secs(60));
    assert!(dialogue.bench.steered.is_empty());
    // The control connection ends in its own time; nothing is left of the talk.
    dialogue.bench.wait(Duration::from_secs(900));
    assert!(dialogue.bench.connections().is_empty());
}

#[test]
fn every_worker_finds_the_data_connection_and_what_else_comes_from_its_port() {
    let mut rig = Rig::new(2);
    rig.ipvsadm(&format!("-A -t {VIP}:21 -s rr"));
    rig.ipvsadm(&format!("-a -t {VIP}:21 -r {}:21 -m", SERVER.0));
    let segment = |from, to, letters, number, text: &str| Segment {
        from,
        to,
        letters,
        number,
        acknowledged: 0,
        options: Vec::new(),
        data: text.into(),
    };
    let mut forwarded = |worker, side, segment: Segment| {
        let delivery = rig.deliver(worker, side, &segment.frame());
        assert!(matches!(delivery.verdict, Verdict::Forward(_)), "{:?}", delivery.verdict);
        assert_eq!(delivery.worker, WorkerId(0));
        see(&delivery.bytes)
    };
    forwarded(0, CLIENTS, segment(CLIENT, (VIP, 21), "S", 1000, ""));
    forwarded(1, SERVERS, segment(SERVER, CLIENT, "SA", 9000, ""));
    forwarded(1, CLIENTS, segment(CLIENT, (VIP, 21), "A", 1001, ""));
    forwarded(1, CLIENTS, segment(CLIENT, (VIP, 21), "PA", 1001, "PASV\r\n"));
    assert_eq!(
        forwarded(1, SERVERS, segment(SERVER, CLIENT, "PA", 9001, ANSWER)).data.len(),
        ANSWER.len() - 1
    );
    let (client, server) = ((CLIENT.0, 1001), (SERVER.0, NAMED));
    assert_eq!(forwarded(1, CLIENTS, segment(client, (VIP, NAMED), "S", 1, "")).to, server);
    assert_eq!(forwarded(1, SERVERS, segment(server, client, "SA", 1, "")).from, (VIP, NAMED));
    // Its own traffic from the port that is steered here is routed.
    let other = (Ipv4Addr::new(10, 0, 0, 3), 443);
    assert_eq!(forwarded(1, SERVERS, segment(server, other, "S", 1, "")).from, server);

    forwarded(0, CLIENTS, segment(CLIENT, (VIP, 21), "PA", 1007, "PORT 10,0,0,2,7,208\r\n"));
    let (client, server) = ((CLIENT.0, 2000), (SERVER.0, 20));
    assert_eq!(forwarded(1, SERVERS, segment(server, client, "S", 1, "")).from, (VIP, 20));
    assert_eq!(forwarded(1, CLIENTS, segment(client, (VIP, 20), "SA", 1, "")).to, server);

    // A stranger at the virtual port is told that it is closed, whomever he comes to.
    for worker in 0..2 {
        let stranger = segment(other, (VIP, NAMED), "S", 1, "");
        assert_eq!(rig.deliver(worker, CLIENTS, &stranger.frame()).verdict, Verdict::Reply(CLIENTS));
    }
    let expected = (0..2).map(|n| rig.counters.worker(WorkerId(n)).event(Event::FtpExpected)).sum::<u64>();
    assert_eq!(expected, 2);
    rig.wait(Duration::from_secs(1100));
    assert_eq!(rig.connections().count(), 0);
    for tuple in
        [(CLIENT.0, 0, VIP, NAMED), (SERVER.0, NAMED, CLIENT.0, 1001), (SERVER.0, 20, CLIENT.0, 2000)]
    {
        let (source, source_port, destination, destination_port) = tuple;
        let (source, destination) = (source.into(), destination.into());
        let tuple = shunt_dataplane::packet::Tuple {
            source,
            destination,
            source_port,
            destination_port,
            protocol: 6,
        };
        assert_eq!(rig.owner(&tuple), None, "left in the directory: {tuple:?}");
    }
}

/// The bench looks that what must wait is as it came, also where a server on the director itself has said it.
#[test]
fn an_answer_of_a_local_server_does_not_age_however_long_it_waits() {
    let mut bench = Bench::default();
    let server = (Ipv4Addr::new(10, 1, 0, 1), 21);
    for line in [format!("-A -t {VIP}:21 -s rr"), format!("-a -t {VIP}:21 -r {}:21 -m", server.0)] {
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    let answer = ANSWER.replace("10,1,0,11", "10,1,0,1");
    let mut leaves = |side, letters, number, acknowledged, text: &str| {
        let (from, to) = if side == HOME { (server, CLIENT) } else { (CLIENT, (VIP, 21)) };
        let segment =
            Segment { from, to, letters, number, acknowledged, options: Vec::new(), data: text.into() };
        let sent = bench.frame(side, &segment.frame()).only().1;
        (sent[22], see(&sent).data)
    };
    leaves(CLIENTS, "S", 1000, 0, "");
    leaves(HOME, "SA", 9000, 1001, "");
    leaves(CLIENTS, "PA", 1001, 9001, "PASV\r\n");
    let heard = leaves(HOME, "PA", 9001, 1007, &answer);
    assert_eq!(heard, (64, rewritten(ANSWER, VIP).into_bytes()));
}

/// As long as there are control connections of it, whatever the rules have become.
#[test]
fn data_is_expected_when_nobody_is_reached_by_nat_any_more() {
    for edit in ["-e -t 10.9.0.1:21 -r 10.1.0.11:21 -g", "-e -t 10.9.0.1:21 -r 10.1.0.11:21 -i"] {
        let mut rig = Rig::new(2);
        rig.ipvsadm(&format!("-A -t {VIP}:21 -s rr"));
        rig.ipvsadm(&format!("-a -t {VIP}:21 -r {}:21 -m", SERVER.0));
        let forwarded = |rig: &mut Rig, worker, side, from, to, letters, number, text: &str| {
            let data = text.into();
            let segment = Segment { from, to, letters, number, acknowledged: 0, options: Vec::new(), data };
            let delivery = rig.deliver(worker, side, &segment.frame());
            assert!(matches!(delivery.verdict, Verdict::Forward(_)), "{edit}: {:?}", delivery.verdict);
            see(&delivery.bytes)
        };
        forwarded(&mut rig, 0, CLIENTS, CLIENT, (VIP, 21), "S", 1000, "");
        forwarded(&mut rig, 0, SERVERS, SERVER, CLIENT, "SA", 9000, "");
        forwarded(&mut rig, 0, CLIENTS, CLIENT, (VIP, 21), "PA", 1001, "PASV\r\n");
        rig.ipvsadm(edit);
        forwarded(&mut rig, 0, SERVERS, SERVER, CLIENT, "PA", 9001, ANSWER);
        let data = forwarded(&mut rig, 1, CLIENTS, (CLIENT.0, 1001), (VIP, NAMED), "S", 1, "");
        assert_eq!(data.to, (SERVER.0, NAMED), "{edit}");
    }
}

/// What happens next in a dialogue.
#[derive(Clone, Debug)]
enum Happening {
    /// The client asks and the server answers, its address with so many leading zeros. The answer may be lost on either side of the director.
    Passive { zeros: bool, port: u16, lost_before: bool, lost_behind: bool },
    /// The server says something else.
    Word { length: usize, lost: bool },
    /// The server repeats a part of what is not acknowledged.
    Again { from: usize, length: usize, lost: bool },
    /// The client acknowledges what it has; that may be lost.
    Acknowledge { lost: bool },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (any::<bool>(), 1u16.., any::<bool>(), any::<bool>())
            .prop_map(|(zeros, port, lost_before, lost_behind)| Happening::Passive { zeros, port, lost_before, lost_behind }),
        2 => (1usize..40, any::<bool>()).prop_map(|(length, lost)| Happening::Word { length, lost }),
        4 => (0usize..80, 1usize..80, any::<bool>()).prop_map(|(from, length, lost)| Happening::Again { from, length, lost }),
        3 => any::<bool>().prop_map(|lost| Happening::Acknowledge { lost }),
    ]
}

/// Both ends of a stream, as each sees it.
struct Stream {
    dialogue: Dialogue,
    /// What the server has said, and how much of it the client has acknowledged.
    said: Vec<u8>,
    acknowledged: usize,
    /// Up to where the director has seen it.
    seen: usize,
    /// What the client has of what it should have.
    wanted: Vec<u8>,
    has: Vec<bool>,
}

impl Stream {
    /// Bytes that the client has without a gap.
    fn whole(&self) -> usize {
        self.has.iter().position(|has| !has).unwrap_or(self.has.len())
    }

    /// The server sends a part of what it has said.
    fn send(&mut self, from: usize, to: usize, lost: bool) {
        let text = String::from_utf8(self.said[from..to].to_vec()).unwrap();
        let seen = self.dialogue.answer(FIRST.1.wrapping_add(from as u32), &text);
        self.seen = self.seen.max(to);
        if lost {
            return;
        }
        let at = seen.number.wrapping_sub(FIRST.1) as usize;
        assert_eq!(seen.data, self.wanted[at..at + seen.data.len()], "from {from} to {to} of {text:?}");
        self.has[at..at + seen.data.len()].fill(true);
    }

    /// The client says something, and with it what it has.
    fn say(&mut self, text: &str, lost: bool) {
        let whole = self.whole();
        let edges: Vec<usize> = (whole + 1..=self.has.len())
            .filter(|at| {
                (*at == self.has.len()) | !self.has[(*at).min(self.has.len() - 1)] && self.has[at - 1]
            })
            .collect();
        let number = |at: usize| FIRST.1.wrapping_add(at as u32);
        let mut segment = self.dialogue.of_client(number(whole), text);
        if let Some(end) = edges.last().filter(|end| self.has[**end - 1]) {
            let begin = (0..*end).rev().find(|at| !self.has[*at]).map_or(0, |at| at + 1);
            segment.options =
                [&[1, 1, 5, 10][..], &number(begin).to_be_bytes(), &number(*end).to_be_bytes()].concat();
        }
        let seen = self.dialogue.heard(CLIENTS, &segment);
        self.dialogue.client = self.dialogue.client.wrapping_add(text.len() as u32);
        let of_server = |number: u32| number.wrapping_sub(FIRST.1) as usize;
        let acknowledged = of_server(seen.acknowledged);
        assert!(acknowledged <= self.seen, "{acknowledged} of {}", self.seen);
        assert_eq!(acknowledged == self.said.len(), whole == self.wanted.len());
        for edge in &seen.edges {
            assert!((acknowledged..=self.seen).contains(&of_server(*edge)), "{seen:?}");
        }
        if !lost {
            self.acknowledged = self.acknowledged.max(acknowledged);
        }
    }

    fn add(&mut self, said: &str, wanted: &str) {
        self.said.extend(said.bytes());
        self.wanted.extend(wanted.bytes());
        self.has.resize(self.wanted.len(), false);
    }

    /// Whatever is missing is repeated until the client has all, and says so.
    fn finish(&mut self) {
        let (from, to) = (self.acknowledged, self.said.len());
        if from < to {
            self.send(from, to, false);
        }
        self.say("", false);
        assert_eq!((self.whole(), self.acknowledged), (self.wanted.len(), self.said.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is lost, repeated and cut: the client gets the stream with every answer rewritten, and the server never hears of what it has not sent or the client has not got.
    #[test]
    fn both_ends_agree_about_the_stream(is_long: bool, happenings in prop::collection::vec(happening(), 1..40)) {
        let vip = if is_long { LONG } else { VIP };
        let dialogue = Dialogue::new(vip);
        let mut stream = Stream { dialogue, said: vec![], acknowledged: 0, seen: 0, wanted: vec![], has: vec![] };
        for happening in happenings {
            match happening {
                Happening::Passive { zeros, port, lost_before, lost_behind } => {
                    // In a dialogue the client has heard what was said before it asks again.
                    stream.finish();
                    stream.say("PASV\r\n", false);
                    let [high, low] = port.to_be_bytes();
                    if port == 21 {
                        continue;
                    }
                    let server = if zeros { "010,001,000,011" } else { "10,1,0,11" };
                    let begin = stream.said.len();
                    let said = format!("227 Entering ({server},{high},{low}).\r\n");
                    stream.add(&said, &rewritten(&said.replace(server, "10,1,0,11"), vip));
                    if !lost_before {
                        stream.send(begin, stream.said.len(), lost_behind);
                    }
                }
                Happening::Word { length, lost } => {
                    let text = format!("150 {}\r\n", "x".repeat(length));
                    // What the director has not seen of an answer comes first.
                    let begin = stream.seen;
                    stream.add(&text, &text);
                    stream.send(begin, stream.said.len(), lost);
                }
                Happening::Again { from, length, lost } => {
                    let from = stream.acknowledged + from;
                    let to = (from + length).min(stream.seen);
                    if from < to {
                        stream.send(from, to, lost);
                    }
                }
                Happening::Acknowledge { lost } => stream.say("", lost),
            }
        }
        stream.finish();
    }

    /// Whatever is said on a control connection, in whatever segments: what leaves sums up, and in the end nothing is left.
    #[test]
    fn nothing_that_is_said_breaks_anything(
        is_long: bool,
        said in prop::collection::vec(
            (
                any::<bool>(),
                prop::sample::select(vec!["PA", "PA", "PA", "A", "FA", "R", "SA", "S", "P"]),
                (-60i32..60, -60i32..60),
                prop::collection::vec(any::<u8>(), 0..10),
                prop::collection::vec(piece(), 0..6),
            ),
            1..40,
        ),
    ) {
        let mut dialogue = Dialogue::new(if is_long { LONG } else { VIP });
        let mut server = FIRST.1;
        for (is_servers, letters, (number, acknowledged), options, pieces) in said {
            let text = pieces.concat();
            let mut segment = match is_servers {
                true => dialogue.of_server(server, &text),
                false => dialogue.of_client(server, &text),
            };
            segment.letters = letters;
            // Mostly in order.
            if (number ^ acknowledged) & 3 == 0 {
                segment.number = segment.number.wrapping_add(number as u32);
                segment.acknowledged = segment.acknowledged.wrapping_add(acknowledged as u32);
            }
            segment.options = options;
            segment.options.resize(segment.options.len().next_multiple_of(4), 0);
            if is_servers {
                server = server.wrapping_add(text.len() as u32);
            } else {
                dialogue.client = dialogue.client.wrapping_add(text.len() as u32);
            }
            let side = if is_servers { SERVERS } else { CLIENTS };
            for (_, sent) in dialogue.bench.frame(side, &segment.frame()).sent {
                see(&sent);
            }
        }
        dialogue.bench.wait(Duration::from_secs(2000));
        prop_assert!(dialogue.bench.connections().is_empty());
        prop_assert!(dialogue.bench.steered.is_empty());
        prop_assert!(dialogue.bench.loads().iter().all(|(_, _, active, inactive)| active + inactive == 0));
    }
}

/// What FTP is said with.
fn piece() -> impl Strategy<Value = String> {
    let words = vec![
        "PASV\r\n",
        "EPSV\r\n",
        "PORT 10,0,0,2,7,208\r\n",
        "EPRT |1|10.0.0.3|2000|\r\n",
        "227 (10,1,0,11,200,10)\r\n",
        "229 x (|||51210|)\r\n",
        "227 x (010,001,000,011,0,21).\r\n",
        "227 (10,1,0,12,200,11",
        ")",
        "\r\n",
        "150 x\r\n",
        "PORT ",
        "227 ",
        "10,1,0,",
    ];
    prop_oneof![prop::sample::select(words).prop_map(str::to_owned), "[ -~]{0,20}"]
}

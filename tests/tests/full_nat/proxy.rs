//! The PROXY protocol: a header before the client's data, and the numbers of everything behind it.

use std::net::SocketAddr;

use shunt_tests::bench::{Bench, CLIENTS, SERVERS};
use shunt_tests::layers::Layers;
use shunt_tests::segment::{Pair, Segment};

/// Where the client's data begins.
const FIRST: u32 = 101;

/// Every kind: the option, and whether clients and servers are of IPv4.
const KINDS: [(&str, bool, bool); 8] = [
    ("v1", true, true),
    ("v1", false, false),
    ("v1", true, false),
    ("v1", false, true),
    ("v2", true, true),
    ("v2", false, false),
    ("v2", true, false),
    ("v2", false, true),
];

/// A pair after the server's answer to the SYN, with the header that the server must get and its length.
fn each(test: impl Fn(Pair, Vec<u8>, u32)) {
    for (version, client_is_v4, server_is_v4) in KINDS {
        let pair = Pair::between(
            Bench::default(),
            client_is_v4,
            server_is_v4,
            &format!("--proxy-protocol {version}"),
        );
        let header = header(version, client_is_v4);
        let length = header.len() as u32;
        test(pair.shake_hands(), header, length);
    }
}

/// The header for the bench's client, after HAProxy's proxy-protocol.txt.
fn header(version: &str, is_v4: bool) -> Vec<u8> {
    match (version, is_v4) {
        ("v1", true) => b"PROXY TCP4 10.0.0.2 10.9.0.1 1000 80\r\n".to_vec(),
        ("v1", false) => b"PROXY TCP6 2001:db8:a::2 2001:db8:f::1 1000 80\r\n".to_vec(),
        _ => {
            let signature = [13, 10, 13, 10, 0, 13, 10, 0x51, 0x55, 0x49, 0x54, 10];
            let net = |net, host| [0x20, 1, 0xd, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
            let (kind, length, ends) = match is_v4 {
                true => (0x11, 12, vec![10, 0, 0, 2, 10, 9, 0, 1]),
                false => (0x21, 36, [net(0xa, 2), net(0xf, 1)].concat()),
            };
            [&signature[..], &[0x21, kind, 0, length], &ends, &[3, 232, 0, 80]].concat()
        }
    }
}

/// Number, acknowledgement and data of what arrives.
fn essence(segments: &[Segment]) -> Vec<(u32, u32, &[u8])> {
    segments.iter().map(|s| (s.number, s.acknowledges, &s.data[..])).collect()
}

/// The server acknowledges the header, and everything up to `number` as it counts.
fn acknowledge(pair: &mut Pair, number: u32) -> u32 {
    let ack = pair.reply("A", 5001, number);
    pair.to_client(&ack)[0].acknowledges
}

#[test]
fn it_goes_with_what_completes_the_handshake() {
    each(|mut pair, header, length| {
        let ack = pair.request("A", FIRST, 5001).options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        let arrived = pair.to_server(&ack);
        assert_eq!(essence(&arrived), [(FIRST, 5001, &header[..])]);
        assert_eq!((arrived[0].flags, &arrived[0].options), (0x18, &ack.options));
        assert_eq!(acknowledge(&mut pair, FIRST + length), FIRST);

        // From then on the numbers differ, both ways.
        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        assert_eq!(essence(&pair.to_server(&data)), [(FIRST + length, 5001, &b"GET"[..])]);
        assert_eq!(acknowledge(&mut pair, FIRST + length + 3), FIRST + 3);
        let data = pair.request("PA", FIRST + 3, 5001).data(b" /");
        assert_eq!(essence(&pair.to_server(&data)), [(FIRST + length + 3, 5001, &b" /"[..])]);
        let fin = pair.request("FA", FIRST + 5, 5001);
        assert_eq!(essence(&pair.to_server(&fin)), [(FIRST + length + 5, 5001, &b""[..])]);
    });
}

#[test]
fn data_that_comes_before_it_is_acknowledged_has_it_in_front_again() {
    each(|mut pair, header, length| {
        let ack = pair.request("A", FIRST, 5001);
        pair.to_server(&ack);
        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        let both = [(FIRST, 5001, &header[..]), (FIRST + length, 5001, &b"GET"[..])];
        // As often as the client repeats its data, for either of both may have been lost.
        assert_eq!(essence(&pair.to_server(&data)), both);
        assert_eq!(essence(&pair.to_server(&data)), both);
        // In the middle of the header is where the client's data begins.
        assert_eq!(acknowledge(&mut pair, FIRST + 5), FIRST);
        assert_eq!(essence(&pair.to_server(&data)), both);
        assert_eq!(acknowledge(&mut pair, FIRST + length), FIRST);
        assert_eq!(essence(&pair.to_server(&data)), both[1..]);
    });
}

/// The acknowledgement that would have carried it is lost.
#[test]
fn data_that_completes_the_handshake_has_it_in_front() {
    each(|mut pair, header, length| {
        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        let arrived = pair.to_server(&data);
        assert_eq!(essence(&arrived), [(FIRST, 5001, &header[..]), (FIRST + length, 5001, &b"GET"[..])]);
        assert_eq!((arrived[0].flags, arrived[1].flags), (0x18, 0x18));
    });
}

#[test]
fn later_data_that_overtakes_the_first_is_numbered_behind_it() {
    each(|mut pair, header, length| {
        let second = pair.request("PA", FIRST + 3, 5001).data(b" /");
        assert_eq!(essence(&pair.to_server(&second)), [(FIRST + 3 + length, 5001, &b" /"[..])]);
        // The server says that it waits for the first byte, and has those: RFC 2018.
        let (from, to) = (FIRST + length + 3, FIRST + length + 5);
        let sack = [&[1, 1, 5, 10][..], &from.to_be_bytes(), &to.to_be_bytes()].concat();
        let ack = pair.reply("A", 5001, FIRST).options(&sack);
        let heard = &pair.to_client(&ack)[0];
        let sack = [&[1, 1, 5, 10][..], &(FIRST + 3).to_be_bytes(), &(FIRST + 5).to_be_bytes()].concat();
        assert_eq!((heard.acknowledges, &heard.options), (FIRST, &sack));

        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        assert_eq!(
            essence(&pair.to_server(&data)),
            [(FIRST, 5001, &header[..]), (FIRST + length, 5001, &b"GET"[..])]
        );
        assert_eq!(acknowledge(&mut pair, FIRST + length + 5), FIRST + 5);
    });
}

#[test]
fn a_server_that_speaks_first_has_it_too() {
    each(|mut pair, header, length| {
        let ack = pair.request("A", FIRST, 5001);
        pair.to_server(&ack);
        // Its greeting, sent before it has seen the header, and once more: its own numbers stay.
        for _ in 0..2 {
            let greeting = pair.reply("PA", 5001, FIRST).data(b"220 hello\r\n");
            assert_eq!(essence(&pair.to_client(&greeting)), [(5001, FIRST, &b"220 hello\r\n"[..])]);
        }
        // The header was lost: the client's acknowledgement of the greeting has it again.
        let ack = pair.request("A", FIRST, 5012);
        assert_eq!(essence(&pair.to_server(&ack)), [(FIRST, 5012, &header[..])]);
        let rest = pair.reply("PA", 5012, FIRST + length).data(b"ready\r\n");
        assert_eq!(essence(&pair.to_client(&rest)), [(5012, FIRST, &b"ready\r\n"[..])]);
        let ack = pair.request("A", FIRST, 5019);
        assert_eq!(essence(&pair.to_server(&ack)), [(FIRST + length, 5019, &b""[..])]);
    });
}

#[test]
fn data_in_a_syn_waits_for_the_header() {
    for (version, client_is_v4, server_is_v4) in KINDS {
        let options = format!("--proxy-protocol {version}");
        let mut pair = Pair::between(Bench::default(), client_is_v4, server_is_v4, &options);
        let cookie = [34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1];
        for data in [&b"GET"[..], b"even"] {
            let syn = pair.request("S", 100, 0).options(&cookie).data(data);
            let arrived = pair.to_server(&syn);
            assert_eq!(essence(&arrived), [(100, 0, &b""[..])]);
            assert_eq!(arrived[0].options, cookie);
        }
        let answer = pair.reply("SA", 5000, FIRST);
        pair.to_client(&answer);
        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        assert_eq!(pair.to_server(&data).len(), 2);
    }
}

#[test]
fn an_end_without_data_is_told_of_as_well() {
    each(|mut pair, header, length| {
        for flags in ["FA", "RA"] {
            let end = pair.request(flags, FIRST, 5001);
            let arrived = pair.to_server(&end);
            assert_eq!(
                essence(&arrived),
                [(FIRST, 5001, &header[..]), (FIRST + length, 5001, &b""[..])],
                "{flags}"
            );
            assert_eq!((arrived[0].flags, arrived[1].flags), (0x18, end.flags));
        }
    });
}

/// A host that knows nothing of a connection answers with the number it was sent (RFC 9293 §3.10.7.1).
#[test]
fn a_reset_in_answer_has_the_number_that_the_server_expects() {
    each(|mut pair, _, length| {
        let reset = pair.request("R", FIRST, 0);
        assert_eq!(essence(&pair.to_server(&reset)), [(FIRST, 0, &b""[..])]);
        acknowledge(&mut pair, FIRST + length);
        assert_eq!(essence(&pair.to_server(&reset)), [(FIRST + length, 0, &b""[..])]);
    });
}

#[test]
fn what_is_acknowledged_selectively_is_counted_back_at_even_and_odd_places() {
    each(|mut pair, _, length| {
        acknowledge(&mut pair, FIRST + length);
        for before in [&[1, 1][..], &[1], &[], &[3, 3, 7], &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8]] {
            // Block edges round the end of the numbers, too.
            let edges = [500u32, 600, u32::MAX - 2, 7];
            let sack = |by: u32| {
                let blocks: Vec<u8> =
                    edges.iter().flat_map(|edge| edge.wrapping_sub(by).to_be_bytes()).collect();
                let mut options = [before, &[5, 18], &blocks].concat();
                options.resize(options.len().next_multiple_of(4), 0);
                options
            };
            let ack = pair.reply("A", 5001, 400 + length).options(&sack(0));
            let heard = &pair.to_client(&ack)[0];
            assert_eq!((heard.acknowledges, &heard.options), (400, &sack(length)), "{before:?}");
        }
    });
}

#[test]
fn options_that_contradict_themselves_stay_as_they_are() {
    let mut pair = Pair::new(true, "--proxy-protocol v1").shake_hands();
    acknowledge(&mut pair, FIRST + header("v1", true).len() as u32);
    for options in [
        &[5, 10, 0, 0][..],
        &[5, 1, 0, 0],
        &[5, 0, 0, 0],
        &[1, 1, 1, 5],
        &[0, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2, 0],
        &[5, 5, 1, 2, 3, 0, 0, 0],
        &[7, 60, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2],
    ] {
        let ack = pair.reply("A", 5001, 400).options(options);
        assert_eq!(pair.to_client(&ack)[0].options, options);
    }
}

/// Nobody who only guesses a client's address and port can put its connection out of step.
#[test]
fn a_syn_amid_a_connection_moves_no_number() {
    each(|mut pair, _, length| {
        acknowledge(&mut pair, FIRST + length);
        for number in [90_000, 0x9000_0000] {
            let syn = pair.request("S", number, 0);
            assert_eq!(essence(&pair.to_server(&syn)), [(number, 0, &b""[..])]);
            // The challenge of RFC 5961.
            assert_eq!(acknowledge(&mut pair, FIRST + length), FIRST);
        }
        let data = pair.request("PA", FIRST, 5001).data(b"GET");
        assert_eq!(essence(&pair.to_server(&data)), [(FIRST + length, 5001, &b"GET"[..])]);
        // A client whose own SYN it was answers the challenge like this.
        let reset = pair.request("R", FIRST, 0);
        assert_eq!(essence(&pair.to_server(&reset)), [(FIRST + length, 0, &b""[..])]);
    });
}

/// A server that wants no new connection yet says so with the number of the SYN (RFC 9293 3.10.7.1), which no header came before.
#[test]
fn a_refusal_of_a_new_connection_has_the_clients_number() {
    for number in [0, 900_000, 0x9000_0000] {
        each(|mut pair, _, length| {
            acknowledge(&mut pair, FIRST + length);
            let fin = pair.request("FA", FIRST, 5001);
            pair.to_server(&fin);
            let syn = pair.request("S", number, 0);
            assert_eq!(essence(&pair.to_server(&syn)), [(number, 0, &b""[..])]);
            let refusal = pair.reply("RA", 0, number + 1);
            assert_eq!(essence(&pair.to_client(&refusal)), [(0, number + 1, &b""[..])]);
        });
    }
}

/// With `sloppy_tcp`, after a restart of the director for one.
#[test]
fn a_connection_that_was_under_way_before_keeps_its_numbers() {
    for (version, client_is_v4, server_is_v4) in KINDS {
        let options = format!("--proxy-protocol {version}");
        let mut pair = Pair::between(Bench::default(), client_is_v4, server_is_v4, &options);
        pair.bench.sysctl("sloppy_tcp", 1).expect("a setting");
        for number in [0, 7, 0x9000_0000] {
            let data = pair.request("PA", number, 8).data(b"data");
            assert_eq!(essence(&pair.to_server(&data)), [(number, 8, &b"data"[..])]);
            let ack = pair.reply("A", 8, number + 4);
            assert_eq!(essence(&pair.to_client(&ack)), [(8, number + 4, &b""[..])]);
        }
    }
}

/// An ICMP error of the server's side that says a packet is too long, around the packet's first bytes.
fn too_long(server: SocketAddr, local: SocketAddr, sent: &[u8], quoted: usize) -> Vec<u8> {
    let layers = Layers::of(sent);
    let quote = &sent[layers.network..layers.transport + quoted];
    let frame = Segment {
        from: server,
        to: local,
        number: 0,
        acknowledges: 0,
        flags: 0,
        options: Vec::new(),
        data: Vec::new(),
    };
    let frame = frame.frame();
    let mut error = frame[..Layers::of(&frame).transport].to_vec();
    let (kind, protocol_at) = if server.is_ipv4() { ([3, 4], 23) } else { ([2, 0], 20) };
    error[protocol_at] = if server.is_ipv4() { 1 } else { 58 };
    error.extend([&kind[..], &[0, 0], &1300u32.to_be_bytes(), quote].concat());
    let length = (error.len() - if server.is_ipv4() { 14 } else { 54 }) as u16;
    let length_at = if server.is_ipv4() { 16 } else { 18 };
    error[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    Layers::of(&error).mend(&mut error);
    error
}

/// A host believes an error only if it quotes a number that it has sent and that was not acknowledged.
#[test]
fn an_error_quotes_the_client_its_own_numbers() {
    each(|mut pair, _, length| {
        for is_acknowledged in [false, true] {
            if is_acknowledged {
                acknowledge(&mut pair, FIRST + length);
            }
            for (number, data) in [(FIRST, 1000), (FIRST + 9, 1000), (FIRST, 0)] {
                let segment = pair.request("PA", number, 5001).data(&vec![1; data]);
                let sent = pair.bench.frame(CLIENTS, &segment.frame()).sent;
                let local = pair.local.expect("a segment has left");
                for ((_, sent), quoted) in sent.iter().flat_map(|sent| [(sent, 8), (sent, 20)]) {
                    let error = too_long(pair.server, local, sent, quoted);
                    let outcome = pair.bench.frame(SERVERS, &error).sent;
                    let [(CLIENTS, frame)] = &outcome[..] else { panic!("the error was not passed on") };
                    let layers = Layers::of(frame);
                    assert!(layers.header_is_right(frame) && layers.residue(frame) == 0);
                    let inner = layers.quoted(frame).expect("a quote with ports");
                    let ends = (inner.source(frame), inner.destination(frame));
                    let client = (pair.client.ip(), pair.client.port());
                    assert_eq!(ends, (client, (pair.service.ip(), pair.service.port())));
                    let at = inner.transport + 4;
                    assert_eq!(frame[at..at + 4], number.to_be_bytes(), "{number} {data} {is_acknowledged}");
                }
            }
        }
    });
}

/// A client over IPv4 that lets its packets be cut up, and a server over IPv6, to which they are cut.
#[test]
fn it_goes_whole_before_data_that_is_cut_up() {
    let mut pair = Pair::between(Bench::default(), true, false, "--proxy-protocol v2").shake_hands();
    let data = vec![5; 1400];
    let mut frame = pair.request("PA", FIRST, 5001).data(&data).frame();
    frame[20] &= !0x40;
    Layers::of(&frame).mend(&mut frame);
    let sent = pair.bench.frame(CLIENTS, &frame).sent;
    let (first, pieces) = sent.split_first().expect("something is sent");
    assert_eq!(Segment::read(&first.1).data, header("v2", true));
    let whole = shunt_tests::layers::together(pieces.iter().map(|(_, frame)| frame.clone()).collect());
    let at = whole.len() - data.len();
    assert_eq!((pieces.len(), &whole[at..]), (2, &data[..]));
    let shifted = FIRST + header("v2", true).len() as u32;
    assert_eq!(whole[at - 16..at - 12], shifted.to_be_bytes());
    assert!(pair.bench.frame(CLIENTS, &frame).sent.len() == 3);
}

//! TOA: the client's address as a TCP option of the first segments.

use shunt_tests::bench::{Bench, SERVERS};
use shunt_tests::segment::Pair;

/// The option that tells of the bench's client, as the module on the servers reads it: kind, length, port, address.
fn option(is_v4: bool) -> Vec<u8> {
    let address: &[u8] =
        if is_v4 { &[10, 0, 0, 2] } else { &[0x20, 1, 0xd, 0xb8, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2] };
    [&[254, 4 + address.len() as u8, 3, 232], address].concat()
}

/// Timestamps, as every Linux host has them in every segment.
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

#[test]
fn the_first_segments_have_it_before_their_own_options() {
    for is_v4 in [true, false] {
        let mut pair = Pair::new(is_v4, "").shake_hands();
        let told = [option(is_v4), TIMESTAMPS.to_vec()].concat();
        let ack = pair.request("A", 101, 5001).options(&TIMESTAMPS);
        let data = pair.request("PA", 101, 5001).options(&TIMESTAMPS).data(b"GET");
        // What completes the handshake, the first data, and that once more.
        for segment in [&ack, &data, &data] {
            let arrived = pair.to_server(segment);
            assert_eq!(arrived.len(), 1);
            let expected = segment.clone().options(&told);
            let from = arrived[0].from;
            assert_eq!(arrived[0], shunt_tests::segment::Segment { from, to: pair.server, ..expected });
        }
        for (flags, number) in [("PA", 104), ("A", 104), ("FA", 101), ("RA", 101)] {
            let segment = pair.request(flags, number, 5001).options(&TIMESTAMPS);
            assert_eq!(pair.to_server(&segment)[0].options, TIMESTAMPS, "{flags} {number}");
        }
    }
}

#[test]
fn where_it_does_not_fit_the_segment_goes_as_it_is() {
    for is_v4 in [true, false] {
        let length = option(is_v4).len();
        // 60 bytes are the longest header: 40 of options.
        for (own, fits) in [(40 - length, true), (44 - length, false), (40, false)] {
            let mut pair = Pair::new(is_v4, "").shake_hands();
            let segment = pair.request("A", 101, 5001).options(&vec![1; own]);
            let more = if fits { length } else { 0 };
            assert_eq!(pair.to_server(&segment)[0].options.len(), own + more, "{own} bytes of options");
        }
        // And what the link takes.
        let headers = if is_v4 { 40 } else { 60 };
        for (data, fits) in [(1500 - headers - length, true), (1500 - headers - length + 1, false)] {
            let mut pair = Pair::new(is_v4, "").shake_hands();
            let segment = pair.request("A", 101, 5001).data(&vec![7; data]);
            let arrived = &pair.to_server(&segment)[0];
            assert_eq!((arrived.options.is_empty(), &arrived.data), (!fits, &segment.data), "{data} bytes");
        }
    }
}

#[test]
fn a_packet_that_grows_on_its_way_to_the_other_family_has_the_less_room() {
    let length = option(true).len();
    for (data, fits) in [(1500 - 60 - length, true), (1500 - 60 - length + 1, false), (1500 - 60, false)] {
        let mut pair = Pair::between(Bench::default(), true, false, "").shake_hands();
        let segment = pair.request("A", 101, 5001).data(&vec![7; data]);
        let arrived = &pair.to_server(&segment);
        assert_eq!(arrived.len(), 1, "{data} bytes");
        assert_eq!((arrived[0].options.is_empty(), &arrived[0].data), (!fits, &segment.data));
    }
}

#[test]
fn full_segments_leave_room_for_it() {
    let announced = |options: &[u8]| u16::from_be_bytes([options[2], options[3]]);
    for is_v4 in [true, false] {
        let length = option(is_v4).len() as u16;
        for (options, to_server, to_client) in [
            ("", 1460, 1460 - length),
            ("--mss 1400", 1400, 1400 - length),
            ("--toa disable", 1460, 1460),
            ("--proxy-protocol v2", 1460, 1460),
        ] {
            let mut pair = Pair::new(is_v4, options);
            let syn = pair.request("S", 100, 0).options(&[2, 4, 5, 180]);
            assert_eq!(announced(&pair.to_server(&syn)[0].options), to_server, "{options}");
            let answer = pair.reply("SA", 5000, 101).options(&[2, 4, 5, 180]);
            assert_eq!(announced(&pair.to_client(&answer)[0].options), to_client, "{options}");
        }
        // Then a full segment is told of, and still fits the link.
        let mut pair = Pair::new(is_v4, "").shake_hands();
        let headers = if is_v4 { 40 } else { 60 };
        let full = pair.request("PA", 101, 5001).data(&vec![1; usize::from(1500 - headers - length)]);
        let sent = pair.bench.frame(shunt_tests::bench::CLIENTS, &full.frame()).sent;
        assert_eq!((sent.len(), sent[0].0, sent[0].1.len()), (1, SERVERS, 14 + 1500));
    }
}

/// Nobody who only guesses a client's address and port can move where its data is thought to begin.
#[test]
fn a_syn_amid_a_connection_moves_nothing() {
    let mut pair = Pair::new(true, "").shake_hands();
    let syn = pair.request("S", 90_000, 0);
    pair.to_server(&syn);
    let forged = pair.request("PA", 90_001, 5001).data(b"x");
    assert!(pair.to_server(&forged)[0].options.is_empty());
    let first = pair.request("PA", 101, 5001).data(b"GET");
    assert_eq!(pair.to_server(&first)[0].options, option(true));
}

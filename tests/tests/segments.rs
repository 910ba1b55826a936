//! A service's limit on segments (`--mss`), from the command line to the option in the frame.

use std::net::Ipv4Addr;

use shunt_dataplane::service::PortId;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, checksum, client_mac, flags, frame, server_mac};

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 1000);
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 0, 11), 80);
const SERVICE: (Ipv4Addr, u16) = (VIP, 80);

/// A segment whose one option says 1460 bytes.
fn segment(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), letters: &str) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend([0, 0, 3, 232, 0, 0, 0, 0, 6 << 4, flags(letters), 32, 0, 0, 0, 0, 0, 2, 4, 5, 180]);
    frame(macs, from.0, to.0, 6, segment, 16)
}

fn request(letters: &str) -> Vec<u8> {
    segment((client_mac(CLIENT.0), C0), CLIENT, SERVICE, letters)
}

/// What the frame that leaves says of segments. Its checksum must be right.
fn said(bench: &mut Bench, port: PortId, bytes: &[u8]) -> u16 {
    let (_, sent) = bench.frame(port, bytes).sent.pop().expect("it is sent on");
    let mut summed = sent[26..34].to_vec();
    summed.extend([0, 6, 0, (sent.len() - 34) as u8]);
    summed.extend(&sent[34..]);
    assert_eq!(checksum(&summed), 0);
    u16::from_be_bytes([sent[56], sent[57]])
}

fn bench(how: &str, mss: &str) -> Bench {
    let mut bench = Bench::default();
    for line in [&format!("-A -t {VIP}:80 -s rr {mss}"), &format!("-a -t {VIP}:80 -r {} {how}", SERVER.0)] {
        assert_eq!(bench.ipvsadm(line), (0, String::new(), String::new()), "{line}");
    }
    bench
}

#[test]
fn a_syn_and_its_answer_are_held_to_the_limit_and_nothing_else_is() {
    let reply = |letters| segment((server_mac(SERVER.0), S0), SERVER, CLIENT, letters);
    let mut nat = bench("-m", "--mss 1400");
    assert_eq!(said(&mut nat, CLIENTS, &request("S")), 1400);
    assert_eq!(said(&mut nat, SERVERS, &reply("SA")), 1400);
    // In other segments these bytes would mean nothing.
    assert_eq!(said(&mut nat, CLIENTS, &request("A")), 1460);
    assert_eq!(said(&mut nat, SERVERS, &reply("A")), 1460);

    assert_eq!(said(&mut bench("-g", "--mss 1400"), CLIENTS, &request("S")), 1400);
    assert_eq!(said(&mut bench("-m", "--mss 9000"), CLIENTS, &request("S")), 1460);
    assert_eq!(said(&mut bench("-m", ""), CLIENTS, &request("S")), 1460);
}

#[test]
fn an_edit_is_in_force_at_once_also_for_connections_that_are_there() {
    let mut nat = bench("-m", "");
    assert_eq!(said(&mut nat, CLIENTS, &request("S")), 1460);
    assert_eq!(nat.ipvsadm(&format!("-E -t {VIP}:80 -s rr --mss 1300")).0, 0);
    // The client did not hear an answer.
    assert_eq!(said(&mut nat, CLIENTS, &request("S")), 1300);
}

//! What holds for every frame, every edit and every order of events.

use std::net::Ipv4Addr;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{CLIENTS, SERVERS};
use shunt_tests::frames::{S0, server_mac};
use shunt_tests::harness::{Edit, Op, Play, Shape, client};
use shunt_tests::rig::Rig;

const TCP: u8 = 6;
const SYN: u8 = 0x02;

/// A service by its protocol, forwarding and port mapping, with servers 11, 12 and 13.
fn service(rig: &mut Rig, udp: bool, mode: usize, scheduler: &str) -> (u8, u16) {
    let letter = if udp { "-u" } else { "-t" };
    rig.ipvsadm(&format!("-A {letter} 10.9.0.1:80 -s {scheduler}"));
    let (port, method) = [(80, "-m"), (8080, "-m"), (80, "-g")][mode];
    for server in 11..=13 {
        rig.ipvsadm(&format!("-a {letter} 10.9.0.1:80 -r 10.1.0.{server}:{port} {method}"));
    }
    (if udp { 17 } else { TCP }, port)
}

/// What a real server sends that is no reply is routed, but not onto a link that is too narrow for it.
#[test]
fn a_routed_packet_and_an_icmp_error_are_held_to_the_mtu() {
    let mut rig = Rig::new(1);
    service(&mut rig, false, 0, "rr");
    rig.set_mtu(CLIENTS, 576);
    let (from, to) = ((Ipv4Addr::new(10, 1, 0, 11), 80), client(9));
    let long = Shape { length: 100, ..Shape::default() };
    let stray = |quirks| Shape { quirks, ..long }.frame((server_mac(from.0), S0), from, to, TCP);
    let told = rig.deliver(0, SERVERS, &stray(4));
    assert_eq!(told.verdict, Verdict::Reply(SERVERS));
    assert_eq!(told.bytes[34..36], [3, 4], "fragmentation needed");
    assert_eq!(rig.deliver(0, SERVERS, &stray(0)).verdict, Verdict::Drop(Reason::TooBig));

    let mut play = Play::new(1);
    play.step(&Op::Request { worker: 0, client: 0, service: 0, shape: Shape::flags(SYN) });
    play.rig.set_mtu(SERVERS, 68);
    let error = Op::Error { worker: 0, conn: 0, about_reply: true, kind: 3, quoted: 36 };
    let error = play.step(&error).expect("it was delivered");
    assert_eq!(error.verdict, Verdict::Drop(Reason::TooBig));
}

/// One client socket that talks to two virtual addresses of one real server has two connections with one reply tuple.
/// The end of one must not hide the other from the other workers.
#[test]
fn a_reply_tuple_that_two_connections_share_is_found_until_the_last_one_ends() {
    let mut play = Play::new(2);
    let datagram = |service| Op::Request { worker: 0, client: 0, service, shape: Shape::default() };
    for service in [3, 7] {
        play.edit(Edit::DeleteServer { service, server: 1 });
        play.step(&datagram(service));
    }
    play.step(&Op::Wait(2900));
    play.step(&datagram(7));
    play.step(&Op::Wait(1000));
    assert_eq!(play.rig.connections().count(), 1, "the first one has expired");
    let reply = Op::Reply { worker: 1, conn: 0, shape: Shape::default() };
    let reply = play.step(&reply).expect("it was delivered");
    assert_eq!(reply.verdict, Verdict::Forward(CLIENTS));
    play.end();
}

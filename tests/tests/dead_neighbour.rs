//! A real server whose neighbour does not answer: its clients are told what a real kernel (6.1) told them when it had waited in vain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, VIP, VIP6};
use shunt_tests::frames::{C0, checksum, client_mac, ethernet, flags, tcp};

/// The director's own address on the clients' side.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

const fn v6(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host)
}

/// A SYN over IPv6.
fn syn6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut segment =
        [&1000u16.to_be_bytes()[..], &80u16.to_be_bytes(), &[0; 8], &[5 << 4, 2, 32, 0], &[0; 4]].concat();
    let ends = [from.octets(), to.octets()].concat();
    let sum = checksum(&[&ends[..], &[0, 0, 0, 20, 0, 0, 0, 6], &segment].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let header = [0x60, 0, 0, 0, 0, 20, 6, 64];
    [&ethernet(from.into())[..], &[0x86, 0xdd], &header, &ends, &segment].concat()
}

/// A director with a service with one real server, by this forwarding method, whose neighbour is lost.
fn bench(service: &str, server: IpAddr, forwarding: &str) -> Bench {
    let mut bench = Bench::default();
    let end = if server.is_ipv4() { format!("{server}:80") } else { format!("[{server}]:80") };
    for line in [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {end} {forwarding}")] {
        assert_eq!(bench.ipvsadm(&line).0, 0, "{line}");
    }
    bench.lose_neighbour(server);
    bench
}

#[test]
fn a_client_is_told_that_its_real_server_is_out_of_reach() {
    let client = Ipv4Addr::new(10, 0, 0, 2);
    for (forwarding, from) in [("-m", VIP), ("-g", OWN), ("-i", VIP)] {
        let mut bench = bench("10.9.0.1:80", [10, 1, 0, 77].into(), forwarding);
        let syn = tcp((client_mac(client), C0), (client, 1000), (VIP, 80), flags("S"));
        let outcome = bench.frame(CLIENTS, &syn);
        assert_eq!(outcome.verdict, Verdict::Reply(CLIENTS), "{forwarding}");
        let error = outcome.only().1;
        assert_eq!(error[..12], [client_mac(client), C0].concat(), "{forwarding}");
        assert_eq!(
            (&error[26..30], &error[30..34]),
            (&from.octets()[..], &client.octets()[..]),
            "{forwarding}"
        );
        // ICMP host unreachable, and the SYN as it was but for a hop.
        assert_eq!((error[22], error[23], error[34], error[35]), (64, 1, 3, 1), "{forwarding}");
        assert_eq!((error[42 + 8], &error[42 + 12..42 + 28]), (63, &syn[26..42]), "{forwarding}");
        assert_eq!(bench.counter("drop.no_neighbour"), 1);
        assert_eq!(bench.counter("frames.replied"), 1);
    }
}

#[test]
fn and_so_is_one_of_ipv6_but_through_a_tunnel() {
    let client = v6(0xa, 2);
    for (forwarding, is_told) in [("-m", true), ("-g", true), ("-i", false)] {
        let mut bench = bench(&format!("[{VIP6}]:80"), v6(0xb, 0x77).into(), forwarding);
        let mac = [2, 0xc6, 0, 0, 0, 2];
        let syn = syn6(client, VIP6);
        let outcome = bench.frame(CLIENTS, &syn);
        assert_eq!(bench.counter("drop.no_neighbour"), 1);
        if !is_told {
            assert_eq!(outcome.verdict, Verdict::Drop(Reason::NoNeighbour), "{forwarding}");
            continue;
        }
        assert_eq!(outcome.verdict, Verdict::Reply(CLIENTS), "{forwarding}");
        let error = outcome.only().1;
        assert_eq!(error[..12], [mac, C0].concat(), "{forwarding}");
        assert_eq!(error[22..54], [VIP6.octets(), client.octets()].concat(), "{forwarding}");
        // ICMPv6 address unreachable.
        assert_eq!((error[20], error[21], error[54], error[55]), (58, 64, 1, 3), "{forwarding}");
        assert_eq!((error[62 + 7], &error[62 + 8..62 + 44]), (63, &syn[22..58]), "{forwarding}");
    }
}

#[test]
fn one_who_has_no_hop_left_is_told_that_first() {
    let client = Ipv4Addr::new(10, 0, 0, 2);
    let mut bench = bench("10.9.0.1:80", [10, 1, 0, 77].into(), "-m");
    let mut syn = tcp((client_mac(client), C0), (client, 1000), (VIP, 80), flags("S"));
    // 64 becomes 1, and the header's checksum what it is then.
    syn[22] = 1;
    let sum = u16::from_be_bytes([syn[24], syn[25]]);
    let sum = u32::from(sum) + (63 << 8);
    syn[24..26].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
    let error = bench.frame(CLIENTS, &syn).only().1;
    assert_eq!((error[34], error[35]), (11, 0));
    assert_eq!(bench.counter("drop.no_neighbour"), 0);
}

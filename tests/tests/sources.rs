//! Addresses that nobody can have sent from: what a router drops before IPVS sees it. As asked of Linux 6.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP, VIP6};
use shunt_tests::frames::{C0, client_mac, ethernet, udp};

/// What becomes of a datagram from this address to a service that has a real server or none.
fn verdict(source: IpAddr, has_server: bool) -> Verdict {
    let mut bench = Bench::default();
    let (service, server) = match source {
        IpAddr::V4(_) => ("-u 10.9.0.1:53", "10.1.0.11:53"),
        IpAddr::V6(_) => ("-u [2001:db8:f::1]:53", "[2001:db8:b::11]:53"),
    };
    assert_eq!(bench.ipvsadm(&format!("-A {service} -s rr")).0, 0);
    if has_server {
        assert_eq!(bench.ipvsadm(&format!("-a {service} -r {server} -m")).0, 0);
    }
    let frame = match source {
        IpAddr::V4(v4) => udp((client_mac(Ipv4Addr::new(10, 0, 0, 2)), C0), (v4, 53), (VIP, 53)),
        IpAddr::V6(v6) => {
            let mut frame = ethernet("2001:db8:a::2".parse().unwrap());
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
            frame.extend(v6.octets().into_iter().chain(VIP6.octets()));
            frame.extend([0, 53, 0, 53, 0, 8, 1, 1]);
            frame
        }
    };
    bench.frame(CLIENTS, &frame).verdict
}

#[test]
fn what_nobody_can_have_sent_is_neither_served_nor_answered() {
    for source in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "10.9.0.1", "::1", "ff02::1"] {
        for has_server in [true, false] {
            let verdict = verdict(source.parse().unwrap(), has_server);
            assert_eq!(verdict, Verdict::Drop(Reason::ImpossibleSource), "{source}");
        }
    }
}

#[test]
fn what_is_only_odd_is_served() {
    for source in ["240.0.0.1", "10.0.0.2", "2001:db8:a::2"] {
        assert_eq!(verdict(source.parse().unwrap(), true), Verdict::Forward(SERVERS), "{source}");
    }
    // The kernel takes this one, too.
    assert_eq!(verdict(Ipv6Addr::UNSPECIFIED.into(), true), Verdict::Forward(SERVERS));
}

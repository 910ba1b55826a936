//! More connections than room for them, and the settings that make room early.

use std::net::Ipv4Addr;
use std::time::Duration;

use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, S0, client_mac, flags, server_mac, tcp, udp};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 11);

fn bench(options: &str) -> Bench {
    let mut bench = Bench::default();
    for line in [&format!("-A -t 10.9.0.1:80 -s rr {options}"), "-a -t 10.9.0.1:80 -r 10.1.0.11:80 -m"] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    bench
}

fn client(n: usize) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(10, 0, 0, 2 + (n % 64) as u8), 1000 + (n / 64) as u16)
}

fn from_client(bench: &mut Bench, n: usize, letters: &str) -> Verdict {
    let from = client(n);
    bench.frame(CLIENTS, &tcp((client_mac(from.0), C0), from, (VIP, 80), flags(letters))).verdict
}

fn established(bench: &mut Bench, n: usize) {
    let forward = Verdict::Forward(SERVERS);
    assert_eq!(from_client(bench, n, "S"), forward);
    bench.frame(SERVERS, &tcp((server_mac(SERVER), S0), (SERVER, 80), client(n), flags("SA")));
    assert_eq!(from_client(bench, n, "A"), forward);
}

fn count(bench: &Bench, state: &str) -> usize {
    bench.connections().iter().filter(|c| c.2 == state).count()
}

#[test]
fn who_has_not_finished_the_handshake_gives_way_to_who_comes() {
    for options in ["", "-p 100"] {
        let mut bench = bench(options);
        (0..100).for_each(|n| established(&mut bench, n));
        // More than fit; each finds room.
        for n in 100..10_000 {
            assert_eq!(from_client(&mut bench, n, "S"), Verdict::Forward(SERVERS));
        }
        assert_eq!(count(&bench, "ESTABLISHED"), 100);
        established(&mut bench, 10_000);
        bench.wait(Duration::from_secs(2000));
        assert_eq!(bench.connections(), []);
        assert_eq!(bench.loads(), [(SERVER, 1, 0, 0)]);
    }
}

#[test]
fn who_is_established_stays_and_new_ones_are_refused() {
    let mut bench = bench("");
    let room = (0..).take_while(|n| {
        from_client(&mut bench, *n, "S") == Verdict::Forward(SERVERS) && {
            from_client(&mut bench, *n, "A");
            count(&bench, "ESTABLISHED") == n + 1
        }
    });
    let room = room.count();
    assert_eq!(count(&bench, "ESTABLISHED"), room);
    assert_eq!(from_client(&mut bench, room + 1, "S"), Verdict::Drop(Reason::TableFull));
    assert_eq!(count(&bench, "ESTABLISHED"), room);
    // Those that are over give way.
    (0..room).step_by(2).for_each(|n| {
        from_client(&mut bench, n, "R");
    });
    assert_eq!(from_client(&mut bench, room + 1, "S"), Verdict::Forward(SERVERS));
}

#[test]
fn one_new_connection_in_so_many_is_refused() {
    let mut bench = bench("");
    established(&mut bench, 1000);
    bench.sysctl("am_droprate", 5).unwrap();
    bench.sysctl("drop_packet", 3).unwrap();
    let refused = (0..100).filter(|n| from_client(&mut bench, *n, "S") == Verdict::Drop(Reason::LoadShed));
    assert_eq!(refused.count(), 20);
    // Packets of connections that are there are not looked at.
    assert!((0..100).all(|_| from_client(&mut bench, 1000, "A") == Verdict::Forward(SERVERS)));
    // There is room: nothing to shed for.
    bench.sysctl("drop_packet", 1).unwrap();
    assert!((2000..2100).all(|n| from_client(&mut bench, n, "S") == Verdict::Forward(SERVERS)));
}

#[test]
fn entries_that_look_unused_are_dropped_when_that_is_asked_for() {
    let mut bench = bench("");
    (0..10).for_each(|n| established(&mut bench, n));
    (100..400).for_each(|n| {
        from_client(&mut bench, n, "S");
    });
    bench.wait(Duration::from_secs(40));
    assert_eq!(count(&bench, "SYN_RECV"), 300);
    (400..700).for_each(|n| {
        from_client(&mut bench, n, "S");
    });
    // Who has been silent for a minute may go too.
    (0..10).for_each(|n| {
        from_client(&mut bench, n, "A");
    });
    bench.sysctl("drop_entry", 3).unwrap();
    // All places are gone through in 32 seconds, long before a minute is over.
    bench.wait(Duration::from_secs(34));
    assert_eq!(count(&bench, "SYN_RECV"), 0);
    assert_eq!(count(&bench, "ESTABLISHED"), 10);
}

/// A one-packet service's have no connection at any time.
#[test]
fn templates_that_are_in_use_are_not_dropped() {
    let mut bench = Bench::default();
    bench.sysctl("drop_entry", 3).unwrap();
    assert_eq!(bench.ipvsadm("-A -u 10.9.0.1:53 -s rr -p 2000 -o").0, 0);
    for n in [11, 12, 13] {
        assert_eq!(bench.ipvsadm(&format!("-a -u 10.9.0.1:53 -r 10.1.0.{n}:53 -g")).0, 0);
    }
    let ask = |bench: &mut Bench, n| {
        let client = Ipv4Addr::new(10, 0, 0, n);
        bench.frame(CLIENTS, &udp((client_mac(client), C0), (client, 1053), (VIP, 53))).only().1[5]
    };
    // No multiple of the servers: who is scheduled anew comes to another one.
    let servers = |bench: &mut Bench| [2, 3, 4, 5, 6, 7, 8].map(|n| ask(bench, n));
    let first = servers(&mut bench);
    for _ in 0..10 {
        bench.wait(Duration::from_secs(20));
        assert_eq!(servers(&mut bench), first);
    }
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.connections(), []);
}

/// What a persistent service remembers of those whom nobody has answered keeps nobody out.
#[test]
fn templates_of_clients_that_were_never_answered_give_way() {
    let mut bench = bench("-p 3600");
    let client = |n: u32| Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 2]) + n);
    let syn = |bench: &mut Bench, n| {
        let client = client(n);
        bench.frame(CLIENTS, &tcp((client_mac(client), C0), (client, 1000), (VIP, 80), flags("S"))).verdict
    };
    for n in 0..4500 {
        assert_eq!(syn(&mut bench, n), Verdict::Forward(SERVERS), "{n}");
        if n % 300 == 299 {
            bench.wait(Duration::from_secs(20));
        }
    }
    // Who was answered is remembered through another flood.
    let old = client(5000);
    assert_eq!(syn(&mut bench, 5000), Verdict::Forward(SERVERS));
    bench.frame(SERVERS, &tcp((server_mac(SERVER), S0), (SERVER, 80), (old, 1000), flags("SA")));
    bench.frame(CLIENTS, &tcp((client_mac(old), C0), (old, 1000), (VIP, 80), flags("A")));
    bench.frame(CLIENTS, &tcp((client_mac(old), C0), (old, 1000), (VIP, 80), flags("R")));
    for n in 0..4500 {
        assert_eq!(syn(&mut bench, n), Verdict::Forward(SERVERS), "{n}");
    }
    let listed = bench.connections();
    let template = listed.iter().find(|c| c.3 == format!("{old}:0")).expect("it is remembered");
    assert_eq!(template.2, "ASSURED");
}

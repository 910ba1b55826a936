//! `shunt drain` on the bench: connections end in their own time, and the server goes after the last.

use std::net::Ipv4Addr;
use std::time::Duration;

use shunt::drain::{Options, Outcome, drain};
use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{Bench, CLIENTS, SERVERS, VIP};
use shunt_tests::frames::{C0, client_mac, flags, tcp};

fn bench() -> Bench {
    let mut bench = Bench::default();
    for line in [
        "-A -t 10.9.0.1:80 -s rr",
        "-a -t 10.9.0.1:80 -r 10.1.0.11:80 -g -w 3 -x 50",
        "-a -t 10.9.0.1:80 -r 10.1.0.12:80 -g",
    ] {
        assert_eq!(bench.ipvsadm(line).0, 0, "{line}");
    }
    bench
}

fn send(bench: &mut Bench, port: u16, letters: &str) -> u8 {
    let client = Ipv4Addr::new(10, 0, 0, 2);
    let outcome =
        bench.frame(CLIENTS, &tcp((client_mac(client), C0), (client, port), (VIP, 80), flags(letters)));
    assert_eq!(outcome.verdict, Verdict::Forward(SERVERS));
    outcome.only().1[5]
}

fn options(server: &str, deadline: Option<u64>) -> Options {
    Options {
        service: "10.9.0.1:80".to_owned(),
        server: server.to_owned(),
        deadline: deadline.map(Duration::from_secs),
    }
}

#[test]
fn connections_end_by_themselves_and_new_ones_go_elsewhere() {
    let mut bench = bench();
    let on_it: Vec<u16> = (1000..1010)
        .filter(|port| {
            let server = send(&mut bench, *port, "S");
            send(&mut bench, *port, "A");
            server == 11
        })
        .collect();
    assert_eq!(on_it.len(), 5);
    let (mut said, mut seconds) = (Vec::new(), 0);
    let outcome = drain(&mut bench, &options("10.1.0.11", None), &mut said, &mut |bench, time| {
        seconds += time.as_secs();
        bench.wait(time);
        assert_eq!(send(bench, 2000 + seconds as u16, "S"), 12);
        if seconds == 20 {
            on_it.iter().for_each(|port| assert_eq!(send(bench, *port, "FA"), 11));
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Drained);
    // FIN_WAIT lasts two minutes.
    assert!((135..150).contains(&seconds), "{seconds}");
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("10.1.0.11:80: 5 active and 0 inactive connections\n"), "{said}");
    assert!(
        said.contains("0 active and 5 inactive") && said.ends_with("0 active and 0 inactive connections\n"),
        "{said}"
    );
    assert!(!bench.ipvsadm("-L -n").1.contains("10.1.0.11:80"));
}

#[test]
fn at_the_deadline_it_goes_with_what_is_left() {
    let mut bench = bench();
    for port in 1000..1004 {
        send(&mut bench, port, "S");
        send(&mut bench, port, "A");
    }
    let mut said = Vec::new();
    let outcome =
        drain(&mut bench, &options("10.1.0.12:80", Some(90)), &mut said, &mut |bench, time| bench.wait(time));
    assert_eq!(outcome.unwrap(), Outcome::Overdue(2));
    assert_eq!(
        String::from_utf8(said).unwrap(),
        "10.1.0.12:80: 2 active and 0 inactive connections, 1m 30s left\n"
    );
}

#[test]
fn what_is_not_there_is_said_and_nothing_changes() {
    let mut bench = bench();
    let before = bench.ipvsadm("-S -n").1;
    let mut tried = |service: &str, server: &str| {
        let options = Options { service: service.to_owned(), ..options(server, None) };
        let error = drain(&mut bench, &options, &mut Vec::new(), &mut |_, _| panic!("waits")).unwrap_err();
        format!("{error:#}")
    };
    assert!(tried("10.9.0.1:81", "10.1.0.11").contains("there is no service 10.9.0.1:81"));
    assert!(tried("udp:10.9.0.1:80", "10.1.0.11").contains("there is no service udp:10.9.0.1:80"));
    assert!(tried("web", "10.1.0.11").contains("a service is ADDRESS:PORT"));
    assert!(tried("10.9.0.1:80", "10.1.0.13").contains("has no real server 10.1.0.13:80"));
    assert!(tried("10.9.0.1:80", "rs1").contains("a real server is ADDRESS:PORT"));
    assert!(tried("fwm:web", "10.1.0.11").contains("web is no firewall mark; a service is"));
    for said in [tried("web", "rs1"), tried("10.9.0.1:80", "10.1.0.11:http"), tried("fwm:web", "rs1")] {
        assert!(!said.contains("invalid"), "{said}");
    }
    assert!(tried("2001:db8::1:80", "rs1").ends_with("in numbers, such as 192.0.2.1:80 or [2001:db8::1]:80"));
    assert_eq!(bench.ipvsadm("-S -n").1, before);
    // Somebody changes his mind.
    send(&mut bench, 1000, "S");
    send(&mut bench, 1001, "S");
    let outcome = drain(&mut bench, &options("10.1.0.11", None), &mut Vec::new(), &mut |bench, _| {
        bench.ipvsadm("-e -t 10.9.0.1:80 -r 10.1.0.11:80 -g -w 2");
    });
    assert!(outcome.unwrap_err().to_string().contains("weight 2 again"));
}

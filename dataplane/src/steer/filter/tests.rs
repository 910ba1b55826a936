//! The table in real network namespaces: what it drops, who sees it, and that it goes with its owner.

use std::collections::HashSet;
use std::env;
use std::io::ErrorKind::{ConnectionRefused, TimedOut};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::service::{Pattern, Protocol};
use crate::steer::fixtures::{self, Case, markings, targets};
use crate::steer::netlink::{Attributes, Messages};
use crate::steer::testbed::{self, Namespace, Router};

/// Set in the user namespace, so that the test that makes one does not make another.
const WITHIN: &str = "SHUNT_STEER_TEST_WITHIN";

/// The names of all tables that are in the namespace of the calling thread.
fn tables() -> Vec<String> {
    let mut names = dump(libc::NFT_MSG_GETTABLE, |_| ());
    names.sort();
    names
}

/// The number of elements of a set.
fn size(table: &str, set: &str) -> usize {
    // The kernel makes a large set's hash table larger or smaller afterwards, and a listing that this overtakes has elements twice, or not at
    // all: one that finds the same as the one before was not overtaken.
    let mut before = elements(table, set);
    loop {
        let now = elements(table, set);
        if now == before {
            return now.len();
        }
        before = now;
    }
}

fn elements(table: &str, set: &str) -> HashSet<Vec<u8>> {
    // The first attribute of an answer is the table's name, the third the list: one answer for each part of it.
    let request = |a: &mut Attributes<'_>| {
        a.string(1, table);
        a.string(2, set);
    };
    let mut elements = HashSet::new();
    for_each_answer(libc::NFT_MSG_GETSETELEM, request, |attributes| {
        let list = parse(attributes).into_iter().find(|(kind, _)| *kind == 3);
        let found = list.into_iter().flat_map(|(_, list)| parse(list));
        elements.extend(found.map(|(_, element)| element.to_vec()));
    });
    elements
}

/// The first attribute of every answer, a string.
fn dump(kind: i32, request: impl FnOnce(&mut Attributes<'_>)) -> Vec<String> {
    let mut names = Vec::new();
    for_each_answer(kind, request, |attributes| {
        let name = parse(attributes).into_iter().find(|(kind, _)| *kind == 1).expect("it has a name");
        names.push(String::from_utf8_lossy(name.1).trim_end_matches('\0').to_owned());
    });
    names
}

fn for_each_answer(kind: i32, request: impl FnOnce(&mut Attributes<'_>), mut each: impl FnMut(&[u8])) {
    let socket = Socket::open().expect("who made a namespace may ask netfilter");
    socket.send(&Batch::question(kind, request)).expect("the kernel takes it");
    let mut buffer = vec![0; 32 << 10];
    while let Some(length) = socket.receive(&mut buffer).expect("the kernel answers") {
        for answer in Messages(&buffer[..length]) {
            match i32::from(answer.kind) {
                libc::NLMSG_DONE => return,
                libc::NLMSG_ERROR => panic!("errno {:?}", answer.error()),
                _ => each(&answer.payload[4..]), // after the netfilter header
            }
        }
    }
}

/// Attributes, by their type.
fn parse(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut attributes = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        attributes.push((kind, &bytes[4..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

fn loopback() -> Vec<Interface> {
    vec![Interface { name: "lo".into(), index: 1, mac: [0; 6] }]
}

#[test]
fn a_router_gets_what_the_filter_leaves() {
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        assert_eq!(router.forwarded(), testbed::routed(), "the router works");
        let mut filter = Filter::install(&router.interfaces()).expect("it is our namespace");
        assert_eq!(router.forwarded(), testbed::routed(), "an empty table drops nothing");
        assert_eq!(router.connect(80), [ConnectionRefused; 2]);

        for target in targets() {
            filter.take(target).expect("it is our table");
        }
        filter.set_local_addresses(&fixtures::ours()).expect("it is our table");
        filter.set_marked(&markings()).expect("it is our table");
        assert_eq!(router.forwarded(), testbed::left_by(Case::is_filtered));
        filter.set_marked(&[]).expect("it is our table");
        let is_left = |case: &Case| case.is_filtered() && !case.name.contains("marked");
        assert_eq!(router.forwarded(), testbed::left_by(is_left));
        assert_eq!(router.connect(80), [TimedOut; 2], "nobody answers");
        assert_eq!(router.connect(81), [ConnectionRefused; 2]);

        for target in targets() {
            filter.release(target).expect("it is our table");
        }
        assert_eq!(router.forwarded(), testbed::routed(), "released targets pass again");
        assert_eq!(router.connect(80), [ConnectionRefused; 2]);
    });
}

#[test]
fn marked_frames_are_told_apart_by_interface() {
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        let mut filter = Filter::install(&router.interfaces()).expect("it is our namespace");
        let of = |port| -> Vec<Marked> {
            let rule = |m: Marked| Marked { pattern: Pattern { port: Some(port), ..m.pattern }, ..m };
            markings().into_iter().map(rule).collect()
        };
        let is_marked = |case: &Case| case.is_filtered() && case.name.contains("marked");
        let (wan, lan) = (PortId(0), PortId(1));
        filter.set_marked(&of(wan)).expect("it is our table");
        assert_eq!(router.forwarded(), testbed::routed(), "they came in by the other");
        filter.set_marked(&of(lan)).expect("it is our table");
        assert_eq!(router.forwarded(), testbed::left_by(is_marked));

        // As if lan were a VLAN on wan.
        let interfaces = router.interfaces();
        filter.set_marked(&of(wan)).expect("it is our table");
        filter.set_vlans(&[(wan, interfaces[1].index)]).expect("it is our table");
        assert_eq!(router.forwarded(), testbed::left_by(is_marked));
    });
}

/// Errors about tunnels are sent to the machine, so a router says nothing about them; its kernel counts what it hears.
#[test]
fn the_kernel_hears_no_error_about_the_directors_tunnels() {
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        let mut filter = Filter::install(&router.interfaces()).expect("it is our namespace");
        filter.set_local_addresses(&fixtures::ours()).expect("it is our table");
        let is_to_us = |case: &Case| case.name.contains("tunnel: ") && !case.routed;
        let rows: Vec<Case> = fixtures::cases().into_iter().filter(is_to_us).collect();
        assert!(rows.len() > 20);
        let all: Vec<&str> = rows.iter().map(|case| case.name).collect();
        assert_eq!(router.heard(&rows), all, "nothing is taken yet");
        for target in targets() {
            filter.take(target).expect("it is our table");
        }
        let left: Vec<&str> = rows.iter().filter(|case| !case.taken).map(|case| case.name).collect();
        assert_eq!(router.heard(&rows), left);
        for target in targets() {
            filter.release(target).expect("it is our table");
        }
        assert_eq!(router.heard(&rows), all, "released targets pass again");
    });
}

#[test]
fn a_router_gets_what_other_interfaces_receive() {
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        let [wan, _] = &router.interfaces()[..] else { panic!("there are two") };
        let mut filter = Filter::install(std::slice::from_ref(wan)).expect("it is our namespace");
        for target in targets() {
            filter.take(target).expect("it is our table");
        }
        assert_eq!(router.forwarded(), testbed::routed(), "they came in by the other");
        assert_eq!(router.connect(80), [TimedOut; 2]);
    });
}

#[test]
fn what_a_real_server_sends_to_the_machine_itself_arrives() {
    let Some(router) = Router::new() else { return };
    for address in fixtures::real_servers() {
        let real_server = std::net::SocketAddr::new(address, 8080);
        let target = Target::RealServer { protocol: Protocol::Tcp, address, port: 8080 };
        let _listener = router.lan.run(|| std::net::TcpListener::bind(real_server)).expect("free");
        router.director.run(|| {
            let check = |milliseconds| {
                let patience = Duration::from_millis(milliseconds);
                std::net::TcpStream::connect_timeout(&real_server, patience).map(drop)
            };
            let mut filter = Filter::install(&router.interfaces()).expect("it is our namespace");
            filter.take(target).expect("it is our table");
            check(300).expect_err("the machine has not said that this address is its own");
            filter.set_local_addresses(&fixtures::ours()).expect("it is our table");
            check(5000).expect("a health check is the machine's own");
        });
    }
}

#[test]
fn sets_hold_what_is_taken_and_nothing_else() {
    const EMPTY: [usize; 21] = [1, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let mut filter = Filter::install(&loopback()).expect("it is our namespace");
        let table = filter.table().to_owned();
        let sizes = || SETS.map(|(name, _)| size(&table, name));
        assert_eq!(sizes(), EMPTY);
        for target in targets() {
            filter.take(target).expect("it is our table");
            filter.take(target).expect("taking again changes nothing");
        }
        // tcp VIP, udp VIP, sctp VIP, tcp of a held VIP | tcp of every port | their places; real servers alike; tunnels, those of gue.
        assert_eq!(sizes(), [1, 3, 3, 0, 4, 1, 5, 2, 1, 3, 3, 2, 0, 4, 1, 5, 2, 1, 3, 3, 2]);
        let second =
            fixtures::held().map(|address| Target::Service { protocol: Protocol::Tcp, address, port: 443 });
        filter.take(second[0]).expect("it is our table");
        assert_eq!(
            sizes(),
            [1, 3, 3, 0, 5, 1, 5, 2, 1, 3, 3, 2, 0, 4, 1, 5, 2, 1, 3, 3, 2],
            "one more at the same place"
        );
        filter.take(second[1]).expect("it is our table");
        assert_eq!(
            sizes(),
            [1, 3, 3, 0, 5, 1, 5, 2, 1, 3, 3, 2, 0, 5, 1, 5, 2, 1, 3, 3, 2],
            "one more at the same place"
        );

        // More than fits one request, then fewer.
        let v4 = (0..5000).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | n)));
        let v6 = (0..5000).map(|n| IpAddr::from(Ipv6Addr::from_bits(0xfd << 120 | n)));
        let many: Vec<IpAddr> = v4.chain(v6).collect();
        let local = || [IPV4.local, IPV6.local].map(|set| size(&table, set));
        filter.set_local_addresses(&many).expect("it is our table");
        assert_eq!(local(), [5000, 5000]);
        filter.set_local_addresses(&many[4990..5001]).expect("it is our table");
        assert_eq!(local(), [10, 1]);
        filter.set_local_addresses(&[]).expect("it is our table");

        let interfaces = || size(&table, INTERFACES);
        for (vlans, count) in [(&[7, 8, 9][..], 4), (&[9, 10], 3), (&[9, 10], 3), (&[], 1)] {
            let vlans: Vec<_> = vlans.iter().map(|vlan| (PortId(0), *vlan)).collect();
            filter.set_vlans(&vlans).expect("it is our table");
            assert_eq!(interfaces(), count, "{vlans:?}");
        }

        for target in targets().into_iter().chain(second) {
            filter.release(target).expect("it is our table");
            filter.release(target).expect("releasing again changes nothing");
        }
        assert_eq!(sizes(), EMPTY);
    });
}

#[test]
fn a_refused_change_names_its_request_and_changes_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let mut filter = Filter::install(&loopback()).expect("it is our namespace");
        let mut batch = Batch::new();
        filter.table.add(&mut batch, IPV4.local, &[vec![10, 0, 0, 1]]);
        filter.table.remove(&mut batch, IPV4.local, &[vec![10, 0, 0, 2]]);
        let error = filter.socket.commit(batch).expect_err("it was never there").to_string();
        assert!(error.starts_with("removing from an nftables set: No such file"), "{error}");
        assert_eq!(size(filter.table(), IPV4.local), 0);
    });
}

#[test]
fn the_table_is_there_while_its_owner_is() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let filter = Filter::install(&loopback()).expect("it is our namespace");
        let other = Filter::install(&loopback()).expect("there may be several");
        let mut names = [filter.table().to_owned(), other.table().to_owned()];
        names.sort();
        assert_eq!(tables(), names);
        drop(filter);
        assert_eq!(tables(), [other.table()]);
        drop(other);
        assert!(tables().is_empty());
    });
}

#[test]
fn a_killed_process_leaves_no_table() {
    if testbed::is_child() {
        let filter = Filter::install(&loopback()).expect("it is our namespace");
        testbed::wait_to_be_killed(filter.table());
    }
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let child = testbed::Child::of("steer::filter::tests::a_killed_process_leaves_no_table");
        assert_eq!(tables(), [child.said()]);
        child.kill();
        assert!(tables().is_empty());
    });
}

/// Root in a user namespace owns its network namespaces, and that is all the filter needs.
#[test]
fn all_this_works_in_a_user_namespace() {
    if env::var_os(WITHIN).is_some() {
        return;
    }
    let rerun = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(env::current_exe().expect("we run"))
        .arg("steer::filter::tests")
        .env(WITHIN, "a user namespace")
        .output();
    let output = match rerun {
        Ok(output) => output,
        Err(error) => return eprintln!("skip: unshare: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if said.is_empty() {
        return eprintln!("skip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    assert!(output.status.success(), "{said}");
}

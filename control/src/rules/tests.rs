use super::*;
use crate::api::{ClientAddress, Family, Forwarding, Persistence, Protocol, Tunnel, TunnelChecksum};
use crate::marks::{Ports, Prefix};
use nix::libc::{EEXIST, EINVAL, ENOENT, EOPNOTSUPP, ERANGE, ESRCH};

fn vip(address: &str, port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: address.parse().expect("a test's address"), port }
}

fn service(key: ServiceKey) -> ServiceConfig {
    ServiceConfig::new(key, "rr")
}

fn server(address: &str) -> ServerConfig {
    ServerConfig {
        key: ServerKey { address: address.parse().expect("a test's address"), port: 80 },
        forwarding: Forwarding::Masq,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
    }
}

fn everything() -> Rules {
    Rules::new(Capabilities::everything())
}

fn errno(result: Result<Change, Refusal>) -> i32 {
    result.expect_err("a refusal").errno
}

#[test]
fn a_change_names_what_changed() {
    let mut rules = everything();
    let key = vip("10.9.0.1", 80);
    let rs = server("10.1.0.11");
    assert_eq!(rules.apply(&Request::AddService(service(key))), Ok(Change::ServiceAdded(key)));
    assert_eq!(rules.apply(&Request::AddServer(key, rs)), Ok(Change::ServerAdded(key, rs.key)));
    assert_eq!(rules.apply(&Request::EditServer(key, rs)), Ok(Change::ServerEdited(key, rs.key)));
    assert_eq!(rules.apply(&Request::EditService(service(key))), Ok(Change::ServiceEdited(key)));
    let local = "10.1.0.100".parse().expect("a test's address");
    assert_eq!(rules.apply(&Request::AddLocal(key, local)), Ok(Change::LocalAdded(key, local)));
    assert_eq!(rules.service(&key).expect("added above").locals, [local]);
    assert_eq!(rules.apply(&Request::DeleteLocal(key, local)), Ok(Change::LocalRemoved(key, local)));
    assert_eq!(rules.apply(&Request::Zero(None)), Ok(Change::Zeroed(None)));
    assert_eq!(rules.apply(&Request::Services(None)), Ok(Change::Nothing));
    assert_eq!(rules.apply(&Request::DeleteServer(key, rs.key)), Ok(Change::ServerRemoved(key, rs)));
    let removed = Service { config: service(key), servers: vec![], edits: 3, locals: vec![] };
    assert_eq!(rules.clone().apply(&Request::Flush), Ok(Change::Flushed(vec![removed.clone()])));
    assert_eq!(rules.apply(&Request::DeleteService(key)), Ok(Change::ServiceRemoved(removed)));
    assert_eq!(rules.services().count(), 0);
}

#[test]
fn the_newest_server_stands_first() {
    let mut rules = everything();
    let key = vip("10.9.0.1", 80);
    rules.apply(&Request::AddService(service(key))).expect("a new service");
    for n in 1..=3 {
        rules.apply(&Request::AddServer(key, server(&format!("10.1.0.{n}")))).expect("a new server");
    }
    rules.apply(&Request::EditServer(key, server("10.1.0.1"))).expect("an edit in place");
    let order: Vec<_> =
        rules.service(&key).expect("added above").servers.iter().map(|s| s.key.address.to_string()).collect();
    assert_eq!(order, ["10.1.0.3", "10.1.0.2", "10.1.0.1"]);
}

#[test]
fn refusals_have_the_kernels_errno() {
    let mut rules = everything();
    let (v4, v6) = (vip("10.9.0.1", 80), vip("2001:db8::1", 80));
    let nowhere = vip("10.9.0.2", 80);
    rules.apply(&Request::AddService(service(v4))).expect("a new service");
    rules.apply(&Request::AddService(service(v6))).expect("a new service");
    rules.apply(&Request::AddServer(v4, server("10.1.0.11"))).expect("a new server");
    let local = |text: &str| text.parse().expect("a test's address");
    rules.apply(&Request::AddLocal(v4, local("10.1.0.100"))).expect("a new local address");

    let named = |scheduler: &str| ServiceConfig { scheduler: scheduler.into(), ..service(v4) };
    let engine = ServiceConfig { engine: Some("nosuch".into()), ..service(v4) };
    let prefix =
        ServiceConfig { persistent: Some(Persistence { timeout: 1, prefix: 0, mask: 0 }), ..service(v6) };
    let gue0 = Forwarding::Tunnel(Tunnel::Gue { port: 0, checksum: TunnelChecksum::None });
    let thresholds = ServerConfig { lower_threshold: 5, upper_threshold: 4, ..server("10.1.0.12") };
    let cases = [
        (EEXIST, Request::AddService(named("nosuch"))),
        (ENOENT, Request::EditService(named("nosuch"))),
        (ENOENT, Request::EditService(engine)),
        (EINVAL, Request::EditService(prefix)),
        (ESRCH, Request::EditService(service(nowhere))),
        (ESRCH, Request::DeleteService(nowhere)),
        (ESRCH, Request::Zero(Some(nowhere))),
        (ESRCH, Request::Services(Some(nowhere))),
        (ESRCH, Request::AddServer(nowhere, server("10.1.0.11"))),
        (EEXIST, Request::AddServer(v4, server("10.1.0.11"))),
        (ENOENT, Request::EditServer(v4, server("10.1.0.12"))),
        (ENOENT, Request::DeleteServer(v4, server("10.1.0.12").key)),
        (ERANGE, Request::AddServer(v4, thresholds)),
        (ERANGE, Request::AddServer(v4, ServerConfig { weight: u32::MAX, ..server("10.1.0.12") })),
        (EINVAL, Request::AddServer(v4, ServerConfig { forwarding: gue0, ..server("10.1.0.12") })),
        (EINVAL, Request::AddServer(v4, server("2001:db8::2"))),
        (EINVAL, Request::AddServer(v6, server("10.1.0.11"))),
        (EINVAL, Request::AddServer(v4, server("224.0.0.1"))),
        (EINVAL, Request::AddServer(v4, server("0.0.0.0"))),
        (EINVAL, Request::AddServer(v4, server("255.255.255.255"))),
        (EINVAL, Request::AddServer(v6, server("fe80::1"))),
        (EINVAL, Request::AddServer(v6, server("ff02::1"))),
        (EINVAL, Request::EditService(ServiceConfig { mss: Some(87), ..service(v4) })),
        (ESRCH, Request::AddLocal(nowhere, local("10.1.0.100"))),
        (EEXIST, Request::AddLocal(v4, local("10.1.0.100"))),
        (ENOENT, Request::DeleteLocal(v4, local("10.1.0.101"))),
        (EINVAL, Request::AddLocal(v4, local("0.0.0.0"))),
        (EINVAL, Request::AddLocal(v4, local("127.0.0.1"))),
        (EINVAL, Request::AddLocal(v6, local("::1"))),
        (EINVAL, Request::AddLocal(v6, local("ff02::1"))),
        (ESRCH, Request::Locals(Some(nowhere))),
        (EINVAL, Request::SetTimeouts(Timeouts { tcp: u32::MAX, tcp_fin: 0, udp: 0 })),
    ];
    let before: Vec<_> = rules.services().cloned().collect();
    for (expected, request) in cases {
        assert_eq!(errno(rules.apply(&request)), expected, "{request:?}");
        assert!(rules.services().eq(before.iter()), "{request:?} changed something");
    }
}

#[test]
fn what_the_director_cannot_do_is_refused_with_a_sentence() {
    let little = Capabilities {
        schedulers: &["rr"],
        engines: &[],
        ipv6: false,
        tunnel: false,
        persistence: false,
        one_packet: false,
        marks: false,
        sctp: false,
        thresholds: false,
        fullnat: false,
        fullnat_across: false,
    };
    let mut rules = Rules::new(little);
    let key = vip("10.9.0.1", 80);
    rules.apply(&Request::AddService(service(key))).expect("a plain service");

    let mark = ServiceKey::Mark { mark: 1, family: Family::Ipv4 };
    let sctp = ServiceKey::Address { protocol: Protocol::Sctp, address: [10, 9, 0, 1].into(), port: 80 };
    let persistent = Some(Persistence { timeout: 60, prefix: 32, mask: u32::MAX });
    let other = vip("10.9.0.2", 80);
    let cases = [
        ("IPv6 services are not supported yet", Request::AddService(service(vip("2001:db8::1", 80)))),
        ("Firewall-mark services are not supported yet", Request::AddService(service(mark))),
        ("SCTP services are not supported yet", Request::AddService(service(sctp))),
        (
            "Persistent services are not supported yet",
            Request::AddService(ServiceConfig { persistent, ..service(other) }),
        ),
        (
            "One-packet scheduling is not supported yet",
            Request::AddService(ServiceConfig { one_packet: true, ..service(other) }),
        ),
        (
            "Tunneling is not supported yet",
            Request::AddServer(
                key,
                ServerConfig { forwarding: Forwarding::Tunnel(Tunnel::Ipip), ..server("10.1.0.11") },
            ),
        ),
        (
            "FullNAT is not supported yet",
            Request::AddServer(key, ServerConfig { forwarding: Forwarding::FullNat, ..server("10.1.0.11") }),
        ),
        ("FullNAT is not supported yet", Request::AddLocal(key, [10, 1, 0, 100].into())),
        (
            "Other ways than TOA to tell FullNAT servers of clients are not supported yet",
            Request::EditService(ServiceConfig { client_address: ClientAddress::ProxyV1, ..service(key) }),
        ),
        (
            "Connection thresholds are not supported yet",
            Request::AddServer(key, ServerConfig { upper_threshold: 5, ..server("10.1.0.11") }),
        ),
    ];
    for (why, request) in cases {
        assert_eq!(rules.apply(&request), Err(Refusal { errno: EOPNOTSUPP, why: why.into() }));
    }
    let wlc = ServiceConfig { scheduler: "wlc".into(), ..service(other) };
    assert_eq!(errno(rules.apply(&Request::AddService(wlc))), ENOENT);
}

#[test]
fn fullnat_crosses_families_where_the_director_can() {
    let key = vip("10.9.0.1", 80);
    let far = ServerConfig { forwarding: Forwarding::FullNat, ..server("2001:db8::11") };
    let local = "2001:db8::100".parse().expect("a test's address");
    let requests =
        [Request::AddService(service(key)), Request::AddServer(key, far), Request::AddLocal(key, local)];
    let mut can = everything();
    for request in &requests {
        can.apply(request).expect("nothing is wrong with it");
    }
    let mut cannot = Rules::new(Capabilities { fullnat_across: false, ..Capabilities::everything() });
    cannot.apply(&requests[0]).expect("a plain service");
    for request in &requests[1..] {
        let why = "FullNAT to servers of the other address family is not supported yet".into();
        assert_eq!(cannot.apply(request), Err(Refusal { errno: EOPNOTSUPP, why }));
    }
}

/// However a service would come to have both, nothing changes.
#[test]
fn one_packet_scheduling_and_fullnat_exclude_each_other() {
    let why = "One-packet scheduling keeps no connection by which a FullNAT server's answer would find its client: a service has one or the other";
    let key = ServiceKey::Address { protocol: Protocol::Udp, address: [10, 9, 0, 1].into(), port: 53 };
    let [plain, ops] = [false, true].map(|one_packet| ServiceConfig { one_packet, ..service(key) });
    let [nat, full] = [Forwarding::Masq, Forwarding::FullNat]
        .map(|forwarding| ServerConfig { forwarding, ..server("10.1.0.11") });
    for (before, refused) in [
        (vec![Request::AddService(ops.clone())], Request::AddServer(key, full)),
        (
            vec![Request::AddService(ops.clone()), Request::AddServer(key, nat)],
            Request::EditServer(key, full),
        ),
        (vec![Request::AddService(plain), Request::AddServer(key, full)], Request::EditService(ops)),
    ] {
        let mut rules = everything();
        before.iter().for_each(|request| drop(rules.apply(request).expect("nothing is wrong with it")));
        let were: Vec<_> = rules.services().cloned().collect();
        assert_eq!(rules.apply(&refused), Err(Refusal { errno: EOPNOTSUPP, why: why.into() }));
        assert!(rules.services().eq(were.iter()), "{refused:?} changed something");
    }
    let file = "-A -u 10.9.0.1:53 -s rr -o\n-a -u 10.9.0.1:53 -r 10.1.0.11:53 --fullnat\n";
    let error = Rules::restore(Capabilities::everything(), file).expect_err("the second line");
    assert_eq!(error.line, 2);
    assert!(error.why.ends_with(why), "{error}");
}

#[test]
fn a_zero_timeout_keeps_the_old_one() {
    let mut rules = everything();
    let asked = Timeouts { tcp: 100, tcp_fin: 0, udp: 0 };
    let now = Timeouts { tcp: 100, tcp_fin: 120, udp: 300 };
    assert_eq!(rules.apply(&Request::SetTimeouts(asked)), Ok(Change::Timeouts(now)));
    assert_eq!(rules.timeouts(), now);
}

#[test]
fn a_file_of_rules_is_taken_whole_or_not_at_all() {
    let good = "# web\n-A -t 10.9.0.1:80 -s rr\n\n  # one\nipvsadm -a -t 10.9.0.1:80 -r 10.1.0.11:8080 -m\n";
    let rules = Rules::restore(Capabilities::everything(), good).expect("good rules");
    assert_eq!(rules.services().map(|s| s.servers.len()).collect::<Vec<_>>(), [1]);
    let marked =
        "mark add --destination 10.10.0.0/16 --mark 1\nmark add --destination ::/0 --ports 80-90 --mark 2\n";
    let rules = Rules::restore(Capabilities::everything(), marked).expect("good rules");
    assert_eq!(rules.marks().iter().map(|rule| format!("{rule}\n")).collect::<String>(), marked);

    let cases = [
        ("-A -t 10.9.0.1:80\nnonsense\n", 2, "`nonsense' is no rule"),
        ("-A -t 10.9.0.1:80\n\n-L -n\n", 3, "`-L -n' is no rule"),
        ("mark list\n", 1, "`mark list' is no rule"),
        (
            "mark add --destination 10.0.0.1 --mark one\n",
            1,
            "invalid value 'one' for '--mark <N>': a number of 32 bits is expected; masks are not supported",
        ),
        (
            "mark add --destination 10.0.0.1 --source ::/0 --mark 1\n",
            1,
            "`mark add --destination 10.0.0.1 --source ::/0 --mark 1' is refused: Source and destination of a packet are of one \
             address family",
        ),
        ("-A -t 10.9.0.1:80 -s\n", 1, "-s: missing argument"),
        ("-A -t 10.9.0.1:80 -w 1\n", 1, "Illegal 'weight' option with the 'add-service' command"),
        (
            "-a -t 10.9.0.1:80 -r 10.1.0.1 -m\n",
            1,
            "`-a -t 10.9.0.1:80 -r 10.1.0.1 -m' is refused: There is no such service",
        ),
    ];
    for (text, line, why) in cases {
        let error = Rules::restore(Capabilities::everything(), text).expect_err("bad rules");
        assert_eq!((error.line, error.why.as_str()), (line, why));
        assert!(error.to_string().contains("; expected a "), "{error}");
    }
}

#[test]
fn rules_for_marks_keep_their_order_and_are_refused_in_the_kernels_manner() {
    let mut rules = everything();
    let mark = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        MarkRule::of(&words).expect("a rule")
    };
    let first = mark("mark add --destination 10.10.0.0/16 --mark 1");
    let second = mark("mark add --destination 10.10.0.0/16 --interface eth7 --mark 1");
    for rule in [&first, &second] {
        assert_eq!(rules.apply(&Request::AddMark(rule.clone())), Ok(Change::Marks));
    }
    assert_eq!(errno(rules.apply(&Request::AddMark(first.clone()))), EEXIST);
    assert_eq!(rules.apply(&Request::Flush), Ok(Change::Flushed(vec![])));
    assert_eq!(rules.marks(), [first.clone(), second]);
    let refused = rules.check_interfaces(&["eth0".to_owned()]).expect_err("it is none of these");
    assert_eq!(refused.errno, nix::libc::ENODEV);
    assert_eq!(rules.apply(&Request::DeleteMark(first.clone())), Ok(Change::Marks));
    assert_eq!(errno(rules.apply(&Request::DeleteMark(first.clone()))), ENOENT);

    // What no command line would send.
    let ports = Some(Ports { first: 9, last: 8 });
    let destination = Prefix { length: 33, ..first.destination };
    let interface = Some("a name of sixteen".to_owned());
    for wrong in [
        MarkRule { ports, ..first.clone() },
        MarkRule { destination, ..first.clone() },
        MarkRule { source: Some(destination), ..first.clone() },
        MarkRule { interface, ..first.clone() },
    ] {
        assert_eq!(errno(rules.apply(&Request::AddMark(wrong))), EINVAL);
    }
    let unable = Capabilities { marks: false, ..Capabilities::everything() };
    assert_eq!(errno(Rules::new(unable).apply(&Request::AddMark(first.clone()))), EOPNOTSUPP);
    let most = shunt_dataplane::service::MAX_MARKINGS as u32 - 1;
    for mark in 100..100 + most {
        assert_eq!(rules.apply(&Request::AddMark(MarkRule { mark, ..first.clone() })), Ok(Change::Marks));
    }
    assert_eq!(errno(rules.apply(&Request::AddMark(first))), nix::libc::ENOSPC);
}

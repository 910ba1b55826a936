//! The very program, run by the kernel: on the rows of the [fixtures], on every frame cut off at every length, and on
//! every frame with every byte changed, against a model that is obviously right.

use std::io::ErrorKind::{ConnectionRefused, TimedOut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Strategy, any};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::service::{EVERY_PORT, Pattern, Prefix};
use crate::steer::bpf::tests::allowed;
use crate::steer::fixtures::{self, OUR_MAC, cases, indifferent, markings, targets};
use crate::steer::testbed::{self, Namespace, Router};

/// `XDP_REDIRECT`, returned by the test's variant of the program as a plain code: a redirect into a map without sockets
/// comes out as `XDP_PASS`, which would make both answers the same.
const TAKEN: i32 = 4;

fn interface() -> Interface {
    Interface { name: "none".into(), index: 1, mac: OUR_MAC }
}

/// The maps with the fixtures' targets, and the program with the test's way out.
fn prepared() -> (Xdp, Program) {
    let mut xdp = Xdp::load(&[interface()]).expect("BPF is allowed");
    for target in targets() {
        xdp.take(target).expect("there is room");
    }
    xdp.set_local_addresses(&fixtures::ours()).expect("there is room");
    let code = program::assemble(OUR_MAC, xdp.entries.as_fd(), &markings(), Taken::Code(TAKEN));
    let program = Program::load(&code).expect("the verifier accepts it");
    (xdp, program)
}

fn is_taken(program: &Program, frame: &[u8]) -> bool {
    match program.run(frame, 1).expect("the frame is long enough").verdict as i32 {
        TAKEN => true,
        program::PASS => false,
        other => panic!("the program returned {other}"),
    }
}

#[test]
fn the_program_takes_what_the_table_says() {
    if !allowed() {
        return;
    }
    let (_xdp, program) = prepared();
    let wrong: Vec<&str> = cases()
        .iter()
        .filter(|case| is_taken(&program, &case.frame) != case.taken)
        .map(|case| case.name)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_frame_cut_off_anywhere_is_handled_as_its_remaining_bytes_say() {
    if !allowed() {
        return;
    }
    let (_xdp, program) = prepared();
    for case in cases() {
        for length in 14..case.frame.len() {
            let frame = &case.frame[..length];
            assert_eq!(is_taken(&program, frame), model(frame), "{} at {length}", case.name);
        }
    }
}

#[test]
fn a_frame_changed_anywhere_is_handled_as_the_model_says() {
    if !allowed() {
        return;
    }
    let (_xdp, program) = prepared();
    for case in cases() {
        for at in 0..case.frame.len() {
            for change in [0x01, 0x04, 0x10, 0x40, 0xff] {
                let mut frame = case.frame.clone();
                frame[at] ^= change;
                let expected = model(&frame);
                assert_eq!(is_taken(&program, &frame), expected, "{} at {at}: {change}", case.name);
            }
        }
    }
}

#[test]
fn chains_of_extension_headers_are_walked_as_the_model_says() {
    if !allowed() {
        return;
    }
    let (_xdp, program) = prepared();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(4000) });
    let answers = std::cell::Cell::new([0, 0]);
    let result = runner.run(&fixtures::chains(), |frame| {
        let expected = model(&frame);
        let [passed, taken] = answers.get();
        answers.set(if expected { [passed, taken + 1] } else { [passed + 1, taken] });
        proptest::prop_assert_eq!(is_taken(&program, &frame), expected);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(answers.get().iter().all(|&n| n > 400), "both come up often: {answers:?}");
}

#[test]
fn released_targets_pass_again_and_others_stay() {
    if !allowed() {
        return;
    }
    let (mut xdp, program) = prepared();
    for target in targets() {
        xdp.take(target).expect("taking again changes nothing");
    }
    let [first, others @ ..] = &targets()[..] else { panic!("there are targets") };
    let syn = &cases()[0];
    assert!(is_taken(&program, &syn.frame));
    xdp.release(*first).expect("it is there");
    xdp.release(*first).expect("releasing again changes nothing");
    assert!(!is_taken(&program, &syn.frame), "{}", syn.name);

    let open = cases().into_iter().find(|case| case.name == "TCP to every port");
    let open = open.expect("the row is there");
    assert!(is_taken(&program, &open.frame));
    for target in others {
        xdp.release(*target).expect("it is there");
    }
    for case in cases() {
        let is_marked = case.taken && case.name.contains("marked");
        assert_eq!(is_taken(&program, &case.frame), is_marked, "{}", case.name);
    }
}

/// Programs of two interfaces, whose frames go to this socket.
fn on_two_interfaces(socket: BorrowedFd<'_>) -> Xdp {
    let mut xdp = Xdp::load(&[interface(), interface()]).expect("BPF is allowed");
    for port in 0..2 {
        xdp.register(PortId(port), 0, socket).expect("it is an AF_XDP socket");
    }
    xdp
}

#[test]
fn marked_frames_are_told_apart_by_interface_and_rules_are_replaced() {
    if !allowed() {
        return;
    }
    let Some(socket) = testbed::xdp_socket() else { return };
    let mut xdp = on_two_interfaces(socket.as_fd());
    let frame = cases().into_iter().find(|case| case.name == "marked: from a network").expect("a row").frame;
    let verdicts = |xdp: &Xdp| {
        let run = |number: usize| xdp.interfaces[number].program.run(&frame, 1).expect("long enough").verdict;
        [run(0) as i32, run(1) as i32]
    };
    let of = |port| -> Vec<Marked> {
        let rule = |m: Marked| Marked { pattern: Pattern { port, ..m.pattern }, ..m };
        markings().into_iter().map(rule).collect()
    };
    assert_eq!(verdicts(&xdp), [program::PASS; 2]);
    for (port, expected) in [
        (Some(PortId(1)), [program::PASS, TAKEN]),
        (Some(PortId(0)), [TAKEN, program::PASS]),
        (None, [TAKEN; 2]),
        (None, [TAKEN; 2]),
    ] {
        xdp.set_marked(&of(port)).expect("the verifier accepts it");
        assert_eq!(verdicts(&xdp), expected);
    }
    xdp.set_marked(&[]).expect("the verifier accepts it");
    assert_eq!(verdicts(&xdp), [program::PASS; 2]);
}

#[test]
fn a_program_takes_frames_to_the_address_that_its_interface_has_now() {
    const NEW: [u8; 6] = [0x02, 0, 0, 0, 0x77, 0x01];
    if !allowed() {
        return;
    }
    let Some(socket) = testbed::xdp_socket() else { return };
    let mut xdp = on_two_interfaces(socket.as_fd());
    let marked = cases().into_iter().find(|case| case.name == "marked: from a network").expect("a row").frame;
    xdp.set_marked(&markings()).expect("the verifier accepts it");
    let verdicts = |xdp: &Xdp, mac: [u8; 6]| {
        let frame = [&mac, &marked[6..]].concat();
        let run = |number: usize| xdp.interfaces[number].program.run(&frame, 1).expect("long enough").verdict;
        [run(0) as i32, run(1) as i32]
    };
    assert_eq!(verdicts(&xdp, OUR_MAC), [TAKEN; 2]);
    assert_eq!(verdicts(&xdp, NEW), [program::PASS; 2]);
    for (macs, old, new) in [
        ([OUR_MAC, NEW], [TAKEN, program::PASS], [program::PASS, TAKEN]),
        ([NEW, NEW], [program::PASS; 2], [TAKEN; 2]),
        // Both are gone, and nothing is known of them.
        ([GONE; 2], [program::PASS; 2], [TAKEN; 2]),
    ] {
        xdp.set_macs(&macs).expect("the verifier accepts it");
        assert_eq!((verdicts(&xdp, OUR_MAC), verdicts(&xdp, NEW)), (old, new), "{macs:02x?}");
    }
    // Rules that come later keep the addresses.
    xdp.set_marked(&[]).expect("the verifier accepts it");
    assert_eq!(verdicts(&xdp, NEW), [program::PASS; 2]);
    xdp.set_marked(&markings()).expect("the verifier accepts it");
    assert_eq!((verdicts(&xdp, OUR_MAC), verdicts(&xdp, NEW)), ([program::PASS; 2], [TAKEN; 2]));
}

/// As many as there can be, all worth as many instructions as a rule can have.
#[test]
fn the_verifier_is_done_with_all_rules_soon_and_so_is_the_program() {
    if !allowed() {
        return;
    }
    let (xdp, _) = prepared();
    for (address, name, limit) in [
        ("192.0.2.0", "TCP to another address", 2_500),
        ("2001:db8:2::", "IPv6: TCP to another address", 5_000),
    ] {
        let address: IpAddr = address.parse().expect("an address");
        let every_address = Prefix::new(address, if address.is_ipv4() { 32 } else { 128 }).expect("a prefix");
        let rule = |n: u16| Marked {
            pattern: Pattern {
                port: None,
                source: every_address,
                destination: every_address,
                protocol: Some(Protocol::ALL[usize::from(n) % 3]),
                ports: 100 + n..=30_000 + n,
            },
            is_taken: n.is_multiple_of(2),
        };
        let rules: Vec<Marked> = (0..crate::service::MAX_MARKINGS as u16).map(rule).collect();
        let code = program::assemble(OUR_MAC, xdp.entries.as_fd(), &rules, Taken::Code(TAKEN));
        let start = Instant::now();
        let program = Program::load(&code).expect("the verifier accepts it");
        let elapsed = start.elapsed();
        let case = cases().into_iter().find(|case| case.name == name).expect("the row is there");
        let answer = program.run(&case.frame, 100_000).expect("the frame is long enough");
        eprintln!("{} instructions, loaded in {elapsed:?}; {name}: {} ns", code.len(), answer.nanoseconds);
        assert!(code.len() < limit, "{} instructions", code.len());
    }
}

/// Any rules, on the rows of whole packets, with any port.
#[test]
fn any_rules_are_instructions_that_say_the_same() {
    if !allowed() {
        return;
    }
    let xdp = Xdp::load(&[interface()]).expect("BPF is allowed");
    let rows: Vec<Vec<u8>> =
        cases().into_iter().filter_map(|case| ends(&case.frame).map(|_| case.frame)).collect();
    assert!(rows.len() > 40);
    let row = || (select(rows.clone()), 0u16..8);
    let rule = (
        select(rows.clone()),
        0u8..4,
        0u8..4,
        option::of(select(Protocol::ALL.to_vec())),
        0u16..8,
        0u16..8,
        any::<bool>(),
    );
    let rule = rule.prop_map(|(like, near, far, protocol, one, other, is_taken)| {
        let (_, source, destination, _) = ends(&like).expect("it is a whole packet");
        // From none of the address's bits to all.
        let prefix = |address: IpAddr, thirds: u8| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            Prefix::new(address, (u16::from(thirds) * bits / 3) as u8).expect("it has so many bits")
        };
        let ports = if one == other { EVERY_PORT } else { one.min(other)..=one.max(other) };
        let pattern = Pattern {
            port: None,
            source: prefix(source, far),
            destination: prefix(destination, near),
            protocol,
            ports,
        };
        Marked { pattern, is_taken }
    });
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(200) });
    let result = runner.run(&(vec(rule, 0..12), vec(row(), 40)), |(rules, packets)| {
        let code = program::assemble(OUR_MAC, xdp.entries.as_fd(), &rules, Taken::Code(TAKEN));
        let program = Program::load(&code).expect("the verifier accepts it");
        for (mut frame, port) in packets {
            let at = if frame[12] == 0x08 { 36 } else { 56 };
            frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
            let (protocol, source, destination, port) = ends(&frame).expect("it is a whole packet");
            let first = rules.iter().find(|Marked { pattern, .. }| {
                pattern.source.contains(source)
                    && pattern.destination.contains(destination)
                    && pattern.protocol.is_none_or(|p| p as u8 == protocol)
                    && pattern.ports.contains(&port)
            });
            proptest::prop_assert_eq!(is_taken(&program, &frame), first.is_some_and(|rule| rule.is_taken));
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Protocol, source, destination and its port, of a whole packet without tags, options and extension headers to our MAC.
fn ends(frame: &[u8]) -> Option<(u8, IpAddr, IpAddr, u16)> {
    let v4 = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).ok().map(IpAddr::from);
    let v6 = |at: usize| <[u8; 16]>::try_from(&frame[at..at + 16]).ok().map(IpAddr::from);
    let (protocol, source, destination, ports) = match frame.get(12..15)? {
        [0x08, 0, 0x45] if frame.len() > 40 && half(frame, 20)? & 0x3fff == 0 => {
            (frame[23], v4(26)?, v4(30)?, 34)
        }
        [0x86, 0xdd, 0x60] if frame.len() > 60 => (frame[20], v6(22)?, v6(38)?, 54),
        _ => return None,
    };
    let is_ours = frame[..6] == OUR_MAC && [6, 17, 132].contains(&protocol);
    is_ours.then_some((protocol, source, destination, half(frame, ports + 2)?))
}

#[test]
fn a_rule_about_everything_is_the_last() {
    if !allowed() {
        return;
    }
    let (xdp, _) = prepared();
    let all = |address: IpAddr, is_taken| Marked {
        pattern: Pattern {
            port: None,
            source: Prefix::all(address),
            destination: Prefix::all(address),
            protocol: None,
            ports: EVERY_PORT,
        },
        is_taken,
    };
    let v4: IpAddr = [0; 4].into();
    for v6 in [None, Some(IpAddr::from([0; 16]))] {
        let rules: Vec<Marked> = [all(v4, true), all(v4, false)]
            .into_iter()
            .chain(v6.into_iter().flat_map(|v6| [all(v6, true), all(v6, true)]))
            .collect();
        let code = program::assemble(OUR_MAC, xdp.entries.as_fd(), &rules, Taken::Code(TAKEN));
        let program = Program::load(&code).expect("the verifier accepts it");
        assert!(is_taken(&program, &indifferent()));
        let other = cases().into_iter().find(|case| case.name == "IPv6: TCP to another address");
        assert_eq!(is_taken(&program, &other.expect("a row").frame), v6.is_some());
    }
}

#[test]
fn local_addresses_are_replaced_as_a_whole() {
    if !allowed() {
        return;
    }
    let frame = |name| cases().into_iter().find(|case| case.name == name).expect("the row is there").frame;
    for (to_us, to_client, client) in [
        ("reply to us", "reply to a client", "198.51.100.7"),
        ("IPv6: reply to us", "IPv6: reply to a client", "2001:db8:100::7"),
    ] {
        let (mut xdp, program) = prepared();
        assert!(!is_taken(&program, &frame(to_us)));
        xdp.set_local_addresses(&[client.parse().expect("an address")]).expect("room");
        assert!(is_taken(&program, &frame(to_us)));
        assert!(!is_taken(&program, &frame(to_client)));
        xdp.set_local_addresses(&fixtures::ours()).expect("room");
        assert!(!is_taken(&program, &frame(to_us)));
    }
}

#[test]
fn a_taken_frame_goes_to_the_socket_of_its_queue_or_to_the_kernel() {
    if !allowed() {
        return;
    }
    let (mut xdp, _) = prepared();
    let syn = &cases()[0].frame;
    let verdict = |xdp: &Xdp, frame: &[u8]| {
        xdp.interfaces[0].program.run(frame, 1).expect("the frame is long enough").verdict as i32
    };
    assert_eq!(verdict(&xdp, syn), program::PASS, "no socket yet");
    let Some(socket) = testbed::xdp_socket() else { return };
    xdp.register(PortId(0), 0, socket.as_fd()).expect("it is an AF_XDP socket");
    assert_eq!(verdict(&xdp, syn), TAKEN);
    assert_eq!(verdict(&xdp, &indifferent()), program::PASS);

    // The kernel forgets a closed socket; a child process that another test is just starting may delay that.
    drop(socket);
    let start = Instant::now();
    while verdict(&xdp, syn) != program::PASS {
        assert!(start.elapsed().as_secs() < 5, "the kernel forgets the closed socket");
    }
}

#[test]
fn wrong_registrations_are_refused_in_words() {
    if !allowed() {
        return;
    }
    let (mut xdp, _) = prepared();
    let file = std::fs::File::open("/dev/null").expect("every Linux has it");
    let error = xdp.register(PortId(0), 0, file.as_fd()).expect_err("it is no socket");
    assert!(error.to_string().contains("queue 0 of none"), "{error}");
    let error = xdp.register(PortId(0), QUEUES, file.as_fd()).expect_err("there is no such place");
    assert!(error.to_string().contains("ethtool -L"), "{error}");
    let error = xdp.register(PortId(1), 0, file.as_fd()).expect_err("there is no such port");
    assert!(error.to_string().contains("port 1"), "{error}");
}

#[test]
fn a_full_map_is_an_error_with_its_limit_and_leaves_nothing_behind() {
    if !allowed() {
        return;
    }
    let (mut xdp, program) = prepared();
    let too_many: Vec<IpAddr> =
        (0..=ENTRIES).map(|n| std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
    match xdp.set_local_addresses(&too_many) {
        Err(Error::Full { limit, .. }) => assert_eq!(limit, ENTRIES),
        other => panic!("{other:?}"),
    }
    let wrong = cases().into_iter().find(|case| is_taken(&program, &case.frame) != case.taken);
    assert!(wrong.is_none(), "the previous addresses stay");

    // Two entries for each target at an address of its own, one for the next.
    let mut taken = 0;
    let service = |n: u32| Target::Service {
        protocol: Protocol::Udp,
        address: std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
        port: 9,
    };
    while xdp.take(service(taken)).is_ok() {
        taken += 1;
    }
    assert!(taken < ENTRIES / 2);
    xdp.release(service(0)).expect("it is there");
    xdp.take(service(taken)).expect("the refused target has left its room");
}

#[test]
fn what_it_costs() {
    if !allowed() {
        return;
    }
    let (xdp, program) = prepared();
    let taken = Taken::Redirect(xdp.interfaces[0].sockets.as_fd());
    let code = program::assemble(OUR_MAC, xdp.entries.as_fd(), &[], taken);
    let load = |_| {
        let start = Instant::now();
        Program::load(&code).expect("the verifier accepts it");
        start.elapsed()
    };
    let elapsed = (0..5).map(load).min().expect("there are five");
    eprintln!("{} instructions, loaded in {elapsed:?}", code.len());
    assert!(
        elapsed.as_millis() < 50,
        "the verifier takes {elapsed:?}: it sees too many ways through the program"
    );
    for name in [
        "TCP to a service",
        "TCP to every port",
        "reply to a client",
        "TCP to another address",
        "ARP",
        "IPv6: TCP to a service",
        "IPv6: TCP to every port",
        "IPv6: reply to a client",
        "IPv6: TCP to another address",
        "IPv6: hop-by-hop options",
        "IPv6: eight extension headers",
        "IPv6: echo request",
    ] {
        let case = cases().into_iter().find(|case| case.name == name).expect("the row is there");
        let answer = program.run(&case.frame, 100_000).expect("the frame is long enough");
        eprintln!("{name}: {} ns", answer.nanoseconds);
    }
    // The verifier's own limit was 4096 once; a program that grows beyond this wants another way to be written. Each of
    // the eight rounds over extension headers has 31 instructions.
    assert!(code.len() < 550, "{} instructions", code.len());
}

/// Runs the fixtures, and a client, against a real router, its programs attached in `mode`. An AF_XDP socket that is
/// not bound stands for the director: the kernel redirects to it, and the frame ends there.
fn on_a_router(mode: Mode) {
    if !allowed() {
        return;
    }
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        let mut xdp = Xdp::load(&router.interfaces()).expect("BPF is allowed");
        xdp.attach(Preference::Only(mode)).expect("veth knows both modes");
        assert_eq!([xdp.mode(PortId(0)), xdp.mode(PortId(1))], [Some(mode); 2]);
        for target in targets() {
            xdp.take(target).expect("there is room");
        }
        xdp.set_local_addresses(&fixtures::ours()).expect("there is room");
        xdp.set_marked(&markings()).expect("the kernel replaces programs at work");
        assert_eq!(router.forwarded(), testbed::routed(), "without sockets the kernel gets all");
        assert_eq!(router.connect(80), [ConnectionRefused; 2]);

        let sockets: Vec<OwnedFd> = (0..2).filter_map(|_| testbed::xdp_socket()).collect();
        for (port, socket) in sockets.iter().enumerate() {
            xdp.register(PortId(port as u8), 0, socket.as_fd()).expect("it is an AF_XDP socket");
        }
        assert_eq!(router.forwarded(), testbed::left_by(|case| case.taken));
        xdp.set_marked(&[]).expect("the kernel replaces programs at work");
        let is_left = |case: &fixtures::Case| case.taken && !case.name.contains("marked");
        assert_eq!(router.forwarded(), testbed::left_by(is_left));
        assert_eq!(router.connect(80), [TimedOut; 2], "nobody answers");
        assert_eq!(router.connect(81), [ConnectionRefused; 2]);

        drop(xdp);
        assert_eq!(router.forwarded(), testbed::routed(), "nothing stays behind");
        assert_eq!(router.connect(80), [ConnectionRefused; 2]);
    });
}

#[test]
fn a_router_gets_what_generic_xdp_leaves() {
    on_a_router(Mode::Generic);
}

#[test]
fn a_router_gets_what_native_xdp_leaves() {
    on_a_router(Mode::Native);
}

#[test]
fn an_interface_with_another_program_is_occupied() {
    if !allowed() {
        return;
    }
    let Some(router) = Router::new() else { return };
    router.director.run(|| {
        let load = || Xdp::load(&router.interfaces()).expect("BPF is allowed");
        let mut first = load();
        first.attach(Preference::Fastest).expect("the interfaces are free");
        first.attach(Preference::Fastest).expect("attaching again changes nothing");
        assert_eq!(first.mode(PortId(0)), Some(Mode::Native));

        let mut second = load();
        for preference in [Preference::Fastest, Preference::Only(Mode::Generic)] {
            match second.attach(preference) {
                Err(Error::Occupied { interface }) => assert_eq!(interface, "wan"),
                other => panic!("{other:?}"),
            }
        }
        drop(first);
        second.attach(Preference::Only(Mode::Generic)).expect("the interfaces are free again");
    });
}

#[test]
fn an_interface_without_native_xdp_gets_the_generic_one() {
    if !allowed() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let loopback = Interface { name: "lo".into(), index: 1, mac: [0; 6] };
        let mut xdp = Xdp::load(&[loopback]).expect("BPF is allowed");
        let error = xdp.attach(Preference::Only(Mode::Native)).expect_err("it has none");
        assert!(error.to_string().contains("has no native XDP"), "{error}");
        assert_eq!(xdp.mode(PortId(0)), None);
        xdp.attach(Preference::Fastest).expect("every interface has the generic mode");
        assert_eq!(xdp.mode(PortId(0)), Some(Mode::Generic));
        assert_eq!(xdp.refusal(PortId(0)).map(Error::to_string), Some(error.to_string()));
    });
}

#[test]
fn why_native_xdp_was_refused_is_remembered() {
    if !allowed() {
        return;
    }
    let Some(router) = Router::new() else { return };
    if !router.lan.run(|| testbed::ip("link set side mtu 9000")) {
        return;
    }
    router.director.run(|| {
        let mut xdp = Xdp::load(&router.interfaces()).expect("BPF is allowed");
        xdp.attach(Preference::Fastest).expect("the interfaces are free");
        let why = |port| xdp.refusal(PortId(port)).map(Error::to_string);
        assert_eq!((xdp.mode(PortId(0)), why(0)), (Some(Mode::Native), None));
        assert_eq!(xdp.mode(PortId(1)), Some(Mode::Generic));
        assert!(why(1).is_some_and(|why| why.contains("lan (native)") && why.contains("veth's peer")));
    });
}

#[test]
fn a_killed_process_leaves_no_program() {
    let loopback = Interface { name: "lo".into(), index: 1, mac: [0; 6] };
    if testbed::is_child() {
        let mut xdp = Xdp::load(&[loopback]).expect("BPF is allowed");
        xdp.attach(Preference::Fastest).expect("the interface is free");
        testbed::wait_to_be_killed("attached");
    }
    if !allowed() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    namespace.run(|| {
        let mut xdp = Xdp::load(&[loopback]).expect("BPF is allowed");
        let child = testbed::Child::of("steer::xdp::tests::a_killed_process_leaves_no_program");
        assert!(matches!(xdp.attach(Preference::Fastest), Err(Error::Occupied { .. })));
        child.kill();
        xdp.attach(Preference::Fastest).expect("the interface is free again");
    });
}

/// What the program should do, said once more in the plainest way.
fn model(frame: &[u8]) -> bool {
    decide(frame).unwrap_or(false)
}

fn decide(frame: &[u8]) -> Option<bool> {
    let mut ether_type = half(frame, 12)?;
    let mut packet = frame.get(14..)?;
    for _ in 0..2 {
        if ether_type == 0x8100 || ether_type == 0x88a8 {
            ether_type = half(packet, 2)?;
            packet = &packet[4..];
        }
    }
    match ether_type {
        _ if frame[..6] != OUR_MAC => None,
        0x0800 => decide_v4(packet),
        0x86dd => decide_v6(packet),
        _ => None,
    }
}

fn decide_v4(ip: &[u8]) -> Option<bool> {
    let address = |bytes: &[u8], at: usize| {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    // The bytes after an IPv4 header.
    let inside = |ip: &[u8]| -> Option<Vec<u8>> {
        let first = *ip.first()?;
        let length = usize::from(first & 15) * 4;
        if first >> 4 != 4 || length < 20 || ip.len() < 20 {
            return None;
        }
        Some(ip.get(length..)?.to_vec())
    };

    let first = *ip.first()?;
    if first >> 4 != 4 || first & 15 < 5 || ip.len() < 20 {
        return None;
    }
    let (source, destination) = (address(ip, 12)?, address(ip, 16)?);
    if half(ip, 6)? & 0x1fff != 0 {
        return Some(belongs(ip[9], destination, (destination, None), (source, None)));
    }
    let payload = inside(ip)?;
    if ip[9] != 1 {
        let near = (destination, Some(half(&payload, 2)?));
        let port = Some(half(&payload, 0)?).filter(|_| ip[6] & 0x20 == 0);
        return Some(belongs(ip[9], destination, near, (source, port)));
    }
    let about = payload.get(8..)?;
    let ports = inside(about)?;
    if ![3, 4, 11].contains(&payload[0]) || half(about, 6)? & 0x1fff != 0 {
        return None;
    }
    let near = (address(about, 12)?, Some(half(&ports, 0)?));
    let far = (address(about, 16)?, Some(half(&ports, 2)?));
    Some(is_tunnels(about[9], destination, far) || belongs(about[9], destination, near, far))
}

fn decide_v6(ip: &[u8]) -> Option<bool> {
    // Next header, source, destination and the rest of what is an IPv6 packet.
    let open = |ip: &[u8]| -> Option<(u8, IpAddr, IpAddr, Vec<u8>)> {
        let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).ok().map(IpAddr::from);
        if ip.len() < 40 || ip[0] >> 4 != 6 {
            return None;
        }
        Some((ip[6], address(8)?, address(24)?, ip[40..].to_vec()))
    };
    let (mut kind, source, destination, mut payload) = open(ip)?;
    let mut is_part = false;
    for _ in 0..8 {
        if ![0, 43, 44, 51, 60].contains(&kind) {
            break;
        }
        if kind == 44 && half(&payload, 2)? >> 3 != 0 && payload.len() >= 8 {
            return Some(belongs(payload[0], destination, (destination, None), (source, None)));
        }
        is_part |= kind == 44 && half(&payload, 2)? & 1 != 0;
        let length = match kind {
            44 => 8,
            51 => (usize::from(*payload.get(1)?) + 2) * 4,
            _ => (usize::from(*payload.get(1)?) + 1) * 8,
        };
        kind = payload[0];
        payload = payload.get(length..)?.to_vec();
    }
    if kind != 58 {
        let near = (destination, Some(half(&payload, 2)?));
        let port = Some(half(&payload, 0)?).filter(|_| !is_part);
        return Some(belongs(kind, destination, near, (source, port)));
    }
    let (mut kind, about_source, about_destination, mut ports) = open(payload.get(8..)?)?;
    if kind == 44 {
        if half(&ports, 2)? >> 3 != 0 {
            return None;
        }
        (kind, ports) = (ports[0], ports.get(8..)?.to_vec());
    }
    let near = (about_source, Some(half(&ports, 0)?));
    let far = (about_destination, Some(half(&ports, 2)?));
    let is_ours = is_tunnels(kind, destination, far) || belongs(kind, destination, near, far);
    Some(payload[0] < 128 && is_ours)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Whether a packet to `destination` has a service on its near side, or a real server on its far side and the world as
/// its destination. Where there is no port, any will do.
fn belongs(
    protocol: u8,
    destination: IpAddr,
    near: (IpAddr, Option<u16>),
    far: (IpAddr, Option<u16>),
) -> bool {
    let fits = |target: &Target, at: (IpAddr, Option<u16>)| {
        let place = Place::of(*target);
        let fits_port = |port| target.port() == 0 || target.port() == port;
        place.protocol == protocol && place.address == at.0 && at.1.is_none_or(fits_port)
    };
    targets().iter().any(|target| match target {
        Target::Service { .. } => fits(target, near),
        Target::RealServer { .. } => fits(target, far) && !fixtures::ours().contains(&destination),
        Target::Tunnel { .. } => false,
    }) || is_marked(protocol, near, far)
}

/// Whether the first rule that surely applies to a packet to `near` marks it for a service, or one before that might.
fn is_marked(protocol: u8, near: (IpAddr, Option<u16>), far: (IpAddr, Option<u16>)) -> bool {
    for Marked { pattern, is_taken } in markings() {
        let is_about = [6, 17, 132].contains(&protocol)
            && pattern.protocol.is_none_or(|p| p as u8 == protocol)
            && pattern.destination.contains(near.0)
            && pattern.source.contains(far.0);
        match near.1 {
            Some(port) if is_about && pattern.ports.contains(&port) => return is_taken,
            None if is_about && is_taken => return true,
            None if is_about && pattern.ports == (0..=u16::MAX) => return false,
            _ => {}
        }
    }
    false
}

/// Whether an error to `destination` is about a tunnel of the machine's to `far`.
fn is_tunnels(protocol: u8, destination: IpAddr, far: (IpAddr, Option<u16>)) -> bool {
    let is_far = |target: &Target| {
        let Target::Tunnel { protocol: p, address, port } = *target else { return false };
        p == protocol && address == far.0 && (p != 17 || Some(port) == far.1)
    };
    fixtures::ours().contains(&destination) && targets().iter().any(is_far)
}

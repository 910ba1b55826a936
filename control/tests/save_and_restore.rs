//! What `-S` writes, `-R` reads: any rules that can be made, saved, restored into empty tables and saved again, give
//! the same text, however often. So do the rules that mark packets, in a file with them.
//!
//! Two things that the original saves and cannot read back are left out (`save.rs` says why they stay): marks above
//! 2³¹, and flag 3 alone on `sh` and `mh`.

use proptest::prelude::*;
use shunt::{api::Request, daemon, ipvsadm, marks::MarkRule, rules::Rules};

/// Nothing, for a director that can do what the daemon can.
fn empty() -> Rules {
    Rules::new(daemon::capabilities())
}

/// Runs one command line on the rules.
fn tool(rules: &mut Rules, line: &str, stdin: &str) -> (String, String, i32) {
    called("ipvsadm", rules, line, stdin)
}

fn called(program: &str, rules: &mut Rules, line: &str, stdin: &str) -> (String, String, i32) {
    let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit = ipvsadm::main(program, &words, rules, &mut stdin.as_bytes(), &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).expect("the tool prints text");
    (text(stdout), text(stderr), exit)
}

/// A service. Few addresses and ports, so that edits meet what is there; some far apart, where sorting is odd.
fn service() -> impl Strategy<Value = String> {
    let address = prop::sample::select(vec![
        "10.9.0.1",
        "1.0.0.0",
        "200.0.0.0",
        "100.0.0.1",
        "[2001:db8::1]",
        "[fe80::1]",
        "[::2]",
    ]);
    let protocol = prop::sample::select(vec!["-t", "-u", "--sctp-service"]);
    let mark = prop::sample::select(vec![1_u32, 256, 257, 0x7fff_ffff]);
    prop_oneof![
        3 => (protocol, address, prop::sample::select(vec![0, 80, 443, 65535]))
            .prop_map(|(protocol, address, port)| format!("{protocol} {address}:{port}")),
        1 => (mark, any::<bool>()).prop_map(|(mark, v6)| format!("-f {mark}{}", if v6 { " -6" } else { "" })),
    ]
}

fn settings() -> impl Strategy<Value = String> {
    let scheduler = prop_oneof![
        Just(String::new()),
        prop::sample::select(daemon::capabilities().schedulers)
            .prop_filter("these have other flags", |s| !["sh", "mh"].contains(s))
            .prop_flat_map(|s| flags(s, &["flag-1", "flag-2", "flag-3"])),
        Just("sh").prop_flat_map(|s| flags(s, &["sh-fallback", "sh-port", "flag-1"])),
        Just("mh").prop_flat_map(|s| flags(s, &["mh-fallback", "flag-2", "flag-1,flag-3"])),
    ];
    let persistent = prop::option::of((
        prop::option::of(1..=2_678_400_u32),
        prop::sample::select(vec![
            "",
            " -M 255.255.255.0",
            " -M 0.0.0.0",
            " -M 255.0.255.0",
            " -M 64",
            " -M 128",
        ]),
    ));
    let told = prop::sample::select(vec![
        "",
        " --toa enable",
        " --toa disable",
        " --proxy-protocol v1",
        " --toa disable --proxy-protocol v2",
        " --mss 88",
        " --proxy-protocol disable --mss 1400",
    ]);
    (scheduler, persistent, any::<(bool, bool)>(), told).prop_map(
        |(scheduler, persistent, (sip, ops), told)| {
            let mut text = scheduler;
            if let Some((timeout, mask)) = persistent {
                text += &timeout.map_or(" -p".into(), |t| format!(" -p {t}"));
                text += mask;
            }
            text + if sip { " --pe sip" } else { "" } + if ops { " -o" } else { "" } + told
        },
    )
}

fn flags(scheduler: &'static str, names: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::subsequence(names, 0..=names.len()).prop_map(move |set| match set[..] {
        [] => format!(" -s {scheduler}"),
        _ => format!(" -s {scheduler} -b {}", set.join(",")),
    })
}

fn server() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "10.1.0.1",
        "10.1.0.2:0",
        "10.1.0.2:8080",
        "200.1.0.1:80",
        "[2001:db8:b::1]:80",
        "[fec0::1]:1",
        "2001:db8::7",
    ])
    .prop_map(str::to_string)
}

fn reach() -> impl Strategy<Value = String> {
    let method = prop::sample::select(vec![
        "",
        "-g",
        "-m",
        "--fullnat",
        "-i",
        "-i --tun-type ipip",
        "-i --tun-type gre",
        "-i --tun-type gre --tun-nocsum",
        "-i --tun-type gre --tun-csum",
        "-i --tun-type gue --tun-port 6080",
        "-i --tun-type gue --tun-port 65535 --tun-nocsum",
        "-i --tun-type gue --tun-port 1 --tun-csum",
        "-i --tun-type gue --tun-port 1 --tun-remcsum",
    ]);
    let limits = prop::sample::select(vec!["", "", " -x 10 -y 5", " -x 2147483647", " -y 5"]);
    (method, prop::option::of(0..=i32::MAX), limits).prop_map(|(method, weight, limits)| {
        let weight = weight.map_or(String::new(), |w| format!(" -w {w}"));
        format!("{method}{weight}{limits}")
    })
}

fn local() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["10.1.0.100", "10.1.0.101", "0xa010066", "2001:db8:b::100", "127.0.0.1", "::"])
}

fn edit() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (service(), settings()).prop_map(|(service, settings)| format!("-A {service}{settings}")),
        2 => (service(), settings()).prop_map(|(service, settings)| format!("-E {service}{settings}")),
        1 => service().prop_map(|service| format!("-D {service}")),
        8 => (service(), server(), reach()).prop_map(|(s, r, how)| format!("-a {s} -r {r} {how}")),
        2 => (service(), server(), reach()).prop_map(|(s, r, how)| format!("-e {s} -r {r} {how}")),
        1 => (service(), server()).prop_map(|(s, r)| format!("-d {s} -r {r}")),
        4 => (service(), local()).prop_map(|(s, l)| format!("-P {s} -z {l}")),
        1 => (service(), local()).prop_map(|(s, l)| format!("-Q {s} -z {l} -F eth0")),
    ]
}

/// A rule that marks packets, as it is typed.
fn mark() -> impl Strategy<Value = String> {
    let destination = prop::sample::select(vec!["10.10.3.4/16", "10.9.0.1", "0.0.0.0/0", "2001:db8::/32"]);
    let source = prop::sample::select(vec!["", " --source 192.0.2.1", " --source 2001:db8::1/64"]);
    let protocol = prop::sample::select(vec!["", " --protocol tcp", " --protocol udp", " --protocol sctp"]);
    let ports = prop::sample::select(vec!["", " --ports 80", " --ports 80-80", " --ports 0-65535"]);
    let interface = prop::sample::select(vec!["", " --interface eth0"]);
    let mark = prop::sample::select(vec!["0", "1", "0x10", "4294967295"]);
    (destination, source, protocol, ports, interface, mark)
        .prop_map(|(d, s, p, ports, i, m)| format!("mark add --destination {d}{s}{p}{ports}{i} --mark {m}"))
}

/// What can be seen of rules, but for what `-S` does not save: thresholds, and in which order things came.
fn seen(rules: &mut Rules) -> [String; 4] {
    ["-Sn", "-Ln", "-Ln --tun-info --show-fullnat", "-Gn"].map(|line| tool(rules, line, "").0)
}

/// The rules that mark packets, as `shunt mark list` prints them.
fn listed_marks(rules: &Rules) -> String {
    rules.marks().iter().map(|rule| format!("{rule}\n")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn what_is_saved_is_restored(edits in prop::collection::vec(edit(), 0..60)) {
        let mut rules = empty();
        for line in &edits {
            tool(&mut rules, line, "");
        }
        let (saved, _, exit) = tool(&mut rules, "-Sn", "");
        prop_assert_eq!(exit, 0);

        let mut restored = empty();
        let nothing_said = (String::new(), String::new(), 0);
        prop_assert_eq!(&tool(&mut restored, "-R", &saved), &nothing_said);
        prop_assert_eq!(seen(&mut restored), seen(&mut rules));

        // Once more: what is there already is refused, and nothing else happens.
        let (said, refused, _) = tool(&mut restored, "-R", &saved);
        prop_assert_eq!(said, "");
        prop_assert!(refused.lines().all(|line| line.ends_with(" already exists")), "{}", refused);
        prop_assert_eq!(refused.lines().count(), saved.lines().count());
        prop_assert_eq!(seen(&mut restored), seen(&mut rules));

        // The script begins with empty tables.
        prop_assert_eq!(&called("ipvsadm-restore", &mut restored, "", &saved), &nothing_said);
        prop_assert_eq!(seen(&mut restored), seen(&mut rules));
    }

    #[test]
    fn a_file_of_rules_begins_as_it_was_saved(
        edits in prop::collection::vec(edit(), 0..60),
        marks in prop::collection::vec(mark(), 0..10),
    ) {
        let mut rules = empty();
        for line in &edits {
            tool(&mut rules, line, "");
        }
        for line in &marks {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let rule = MarkRule::of(&words).map_err(TestCaseError::fail)?;
            // Families that differ and rules that are there are refused.
            let _ = rules.apply(&Request::AddMark(rule));
        }

        let file = format!("# Rules\n{}{}", listed_marks(&rules), tool(&mut rules, "-Sn", "").0);
        let mut restored = Rules::restore(daemon::capabilities(), &file)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(listed_marks(&restored), listed_marks(&rules));
        prop_assert_eq!(seen(&mut restored), seen(&mut rules));
    }
}

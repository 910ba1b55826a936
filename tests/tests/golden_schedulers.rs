//! Which real server each packet goes to, step by step, against what a real kernel IPVS answered (`golden/sched.json`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use shunt_tests::bench::Bench;
use shunt_tests::choices::{Case, is_for_later, loads, name, play, send};

#[test]
fn every_packet_goes_where_ipvs_sent_it() {
    let files = [
        include_str!("../golden/sched.json"),
        include_str!("../golden/sched-random.json"),
        include_str!("../golden/sched-persistent.json"),
    ];
    let cases = files.map(|file| serde_json::from_str::<Vec<Case>>(file).expect("golden file"));
    let cases = cases.concat();
    let (mut played, mut later) = (0, BTreeMap::<String, usize>::new());
    let mut wrong = Vec::new();
    for case in &cases {
        if !shunt_dataplane::sched::NAMES.contains(&case.scheduler.as_str()) {
            *later.entry(case.scheduler.clone()).or_default() += 1;
            continue;
        }
        let mut bench = Bench::default();
        if is_for_later(&mut bench, case) {
            *later.entry(format!("{} {}", case.scheduler, case.scenario)).or_default() += 1;
            continue;
        }
        played += 1;
        // It draws random numbers, and not the kernel's: what it may do is checked, not what it does.
        let is_random = case.scheduler == "twos";
        let mut flows = Flows::new();
        for (n, step) in case.steps.iter().enumerate() {
            let played =
                if is_random { play_legal(&mut bench, &mut flows, step) } else { play(&mut bench, step) };
            if let Err(answer) = played {
                wrong.push(format!("{} {}: step {n}: {step}: {answer}", case.scheduler, case.scenario));
                break;
            }
        }
        let loads = loads(&bench);
        let is_legal = loads.iter().all(|(server, (_, a, i))| a + i <= upper_threshold(case, server));
        let is_right = if is_random { is_legal } else { loads == case.end || case.end.is_empty() };
        if !is_right {
            wrong.push(format!(
                "{} {}: at the end {loads:?}, not {:?}",
                case.scheduler, case.scenario, case.end
            ));
        }
    }
    println!("{played} cases played; for later: {later:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(played >= 334, "only {played} cases were played");
}

/// Asked of Linux 6.1 beyond the golden file: thresholds that are edited while there are connections.
#[test]
fn edited_thresholds_hold_at_once() {
    /// How the server is added, the connections it gets, and where a new one goes after each edit.
    type Edits = (&'static str, usize, &'static [(&'static str, &'static str)]);
    let cases: &[Edits] = &[
        (
            "",
            6,
            &[
                ("-x 4", "client"),
                ("-x 6", "client"),
                ("-x 7", "client"),
                ("-x 8", "client"),
                ("-x 9", "rs1"),
            ],
        ),
        ("-x 8", 8, &[("-x 9", "client"), ("-x 10", "client")]),
        (
            "-x 8",
            8,
            &[
                ("-x 8 -w 2", "client"),
                ("-x 8 -y 8", "client"),
                ("-x 9 -y 8", "client"),
                ("-x 20 -y 2", "client"),
                ("-x 0", "rs1"),
            ],
        ),
        ("-x 12", 6, &[("-x 7", "rs1"), ("-x 6", "client"), ("-x 7 -y 7", "client"), ("-x 8 -y 8", "rs1")]),
    ];
    for (first, connections, edits) in cases {
        let mut bench = Bench::default();
        let mut port = 1000;
        let mut syn = |bench: &mut Bench, to: &str| {
            port += 1;
            play(bench, &format!("syn 10.0.0.2 {port} 10.9.0.1 80 = {to}")).unwrap_or_else(|e| panic!("{e}"));
        };
        bench.ipvsadm("-A -t 10.9.0.1:80 -s rr");
        bench.ipvsadm(&format!("-a -t 10.9.0.1:80 -r 10.1.0.11:80 -g {first}"));
        (0..*connections).for_each(|_| syn(&mut bench, "rs1"));
        for (edit, to) in *edits {
            bench.ipvsadm(&format!("-e -t 10.9.0.1:80 -r 10.1.0.11:80 -g {edit}"));
            syn(&mut bench, to);
        }
    }
}

/// Where each flow, by the first words of its steps, last went.
type Flows = BTreeMap<String, String>;

/// Plays a step of a scheduler that draws lots. The answer must be of the same kind as the kernel's, a live flow's server its
/// own, and another's one that may have it.
fn play_legal(bench: &mut Bench, flows: &mut Flows, step: &str) -> Result<(), String> {
    let words: Vec<&str> = step.split_whitespace().collect();
    if matches!(words[0], "cmd" | "wait") {
        return play(bench, step);
    }
    let expected = words[6];
    let (before, client) = (loads(bench), format!("{}:{}", words[1], words[2]));
    let is_live = bench.connections().iter().any(|(_, _, _, c, ..)| *c == client);
    let (went, verdict) = send(bench, &words);
    let is_legal = match flows.get(&client).filter(|_| is_live) {
        Some(server) => went == *server,
        None if expected.starts_with("rs") => before.get(&went).is_some_and(|(weight, ..)| *weight > 0),
        None => went == expected,
    };
    flows.insert(client, went.clone());
    if is_legal { Ok(()) } else { Err(format!("went to {went} ({verdict:?}) of {before:?}")) }
}

/// The most connections a server may have by the case's setup.
fn upper_threshold(case: &Case, server: &str) -> u32 {
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let value = |line: &[String], option: &str| {
        line.iter().position(|word| word == option).map(|at| line[at + 1].clone())
    };
    let is_its = |line: &Vec<String>| {
        let address = value(line, "-r").and_then(|at| at.split(':').next()?.parse::<Ipv4Addr>().ok());
        address.is_some_and(|address| name(address.octets()[3]) == server)
    };
    let line = case.setup.iter().map(words).find(is_its);
    line.and_then(|line| value(&line, "-x")?.parse().ok()).unwrap_or(u32::MAX)
}

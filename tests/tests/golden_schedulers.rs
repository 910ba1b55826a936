//! Which real server each packet goes to, step by step, against what a real kernel IPVS answered (`golden/sched.json`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use shunt_dataplane::director::Verdict;
use shunt_tests::bench::{Bench, CLIENTS};
use shunt_tests::frames::{C0, client_mac, tcp, udp};

#[derive(Deserialize)]
struct Case {
    scheduler: String,
    scenario: String,
    setup: Vec<String>,
    sysctl: Vec<(String, u32)>,
    steps: Vec<String>,
    end: BTreeMap<String, (u32, u32, u32)>,
}

/// Cases about what comes later: its setup is refused, or it turns a knob that is not there yet.
fn is_for_later(bench: &mut Bench, case: &Case) -> bool {
    // conn_reuse_mode 1 is the default.
    let knobs = case.sysctl.iter().any(|(name, value)| (name.as_str(), *value) != ("conn_reuse_mode", 1));
    knobs || case.setup.iter().any(|line| bench.ipvsadm(line).2.contains("not supported yet"))
}

#[test]
fn every_packet_goes_where_ipvs_sent_it() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/sched.json")).expect("golden file");
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
        for (n, step) in case.steps.iter().enumerate() {
            if let Err(answer) = play(&mut bench, step) {
                wrong.push(format!("{} {}: step {n}: {step}: {answer}", case.scheduler, case.scenario));
                break;
            }
        }
        let loads: BTreeMap<String, (u32, u32, u32)> = bench
            .loads()
            .into_iter()
            .map(|(server, w, a, i)| (name(server.octets()[3]), (w, a, i)))
            .collect();
        if loads != case.end {
            wrong.push(format!(
                "{} {}: at the end {loads:?}, not {:?}",
                case.scheduler, case.scenario, case.end
            ));
        }
    }
    println!("{played} cases played; for later: {later:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(played >= 30, "only {played} cases were played");
}

fn play(bench: &mut Bench, step: &str) -> Result<(), String> {
    let words: Vec<&str> = step.split_whitespace().collect();
    match words[0] {
        "wait" => {
            bench.wait(Duration::from_secs_f64(words[1].parse().expect("seconds")));
            Ok(())
        }
        "cmd" => {
            let (line, code) = step["cmd ".len()..].rsplit_once(" = ").expect("an exit code");
            let (answer, _, error) = bench.ipvsadm(line);
            let expected: i32 = code.parse().expect("an exit code");
            if answer == expected { Ok(()) } else { Err(format!("exit code {answer}: {error}")) }
        }
        kind => {
            let address = |n: usize| words[n].parse::<Ipv4Addr>().expect("an address");
            let port = |n: usize| words[n].parse::<u16>().expect("a port");
            let (from, to) = ((address(1), port(2)), (address(3), port(4)));
            let macs = (client_mac(from.0), C0);
            let frame = match kind {
                "udp" => udp(macs, from, to),
                "syn" => tcp(macs, from, to, 0x02),
                "ack" => tcp(macs, from, to, 0x10),
                "rst" => tcp(macs, from, to, 0x04),
                "fin" => tcp(macs, from, to, 0x11),
                other => panic!("unknown step {other}"),
            };
            let outcome = bench.frame(CLIENTS, &frame);
            let went = match (outcome.verdict, &outcome.sent) {
                (Verdict::Reply(_), _) => "client".to_owned(),
                (Verdict::Forward(_), Some((_, frame))) => name(frame[5]),
                _ => "drop".to_owned(),
            };
            if went == words[6] { Ok(()) } else { Err(format!("went to {went} ({:?})", outcome.verdict)) }
        }
    }
}

/// rsN is 10.1.0.(10+N).
fn name(last_byte: u8) -> String {
    format!("rs{}", last_byte.wrapping_sub(10))
}

//! Which real server each packet goes to, step by step, in the words of `golden/sched.json` and of the recorder (`oracle/choices.py`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use shunt_dataplane::director::Verdict;
use shunt_dataplane::stats::Reason;

use crate::bench::{Bench, CLIENTS};
use crate::frames::{C0, client_mac, tcp, udp};

/// A case.
#[derive(Clone, Deserialize)]
pub struct Case {
    /// The scheduler's name.
    pub scheduler: String,
    /// What it is about.
    pub scenario: String,
    /// Lines of ipvsadm.
    pub setup: Vec<String>,
    /// Settings.
    pub sysctl: Vec<(String, u32)>,
    /// Packets and where they went, commands and their exit codes, waits.
    pub steps: Vec<String>,
    /// Weight, active and inactive connections of each server at the end; empty where nobody noted it.
    pub end: BTreeMap<String, (u32, u32, u32)>,
}

/// Cases about what comes later: its setup is refused, or it turns a knob that is not there yet.
pub fn is_for_later(bench: &mut Bench, case: &Case) -> bool {
    case.sysctl.iter().any(|(name, value)| bench.sysctl(name, *value).is_err())
        || case.setup.iter().any(|line| bench.ipvsadm(line).2.contains("not supported yet"))
}

/// Plays a whole case, with time that passes at `pace` of what it says.
///
/// # Errors
/// Names the first step that goes otherwise.
pub fn replay(case: &Case, pace: f64) -> Result<(), String> {
    let mut bench = Bench::default();
    if is_for_later(&mut bench, case) {
        return Err("its setup is refused".to_owned());
    }
    for (n, step) in case.steps.iter().enumerate() {
        let slower = step.strip_prefix("wait ").map(|seconds| {
            let seconds: f64 = seconds.parse().expect("seconds");
            format!("wait {}", seconds * pace)
        });
        play(&mut bench, slower.as_ref().unwrap_or(step))
            .map_err(|why| format!("step {n}: {step}: {why}"))?;
    }
    Ok(())
}

/// Plays a step.
///
/// # Errors
/// Says what the director did instead.
pub fn play(bench: &mut Bench, step: &str) -> Result<(), String> {
    let words: Vec<&str> = step.split_whitespace().collect();
    match words[0] {
        "wait" => {
            bench.wait(Duration::from_secs_f64(words[1].parse().expect("seconds")));
            Ok(())
        }
        "cmd" => {
            let (line, code) = step["cmd ".len()..].rsplit_once(" = ").expect("an exit code");
            let (answer, _, error) = bench.ipvsadm(line);
            // The kernel ends what a removed server leaves behind a jiffy later, and a director's worker in its next turns.
            bench.wait(Duration::from_millis(4));
            let expected: i32 = code.parse().expect("an exit code");
            if answer == expected { Ok(()) } else { Err(format!("exit code {answer}: {error}")) }
        }
        _ => {
            let (went, verdict) = send(bench, &words);
            if went == words[6] { Ok(()) } else { Err(format!("went to {went} ({verdict:?})")) }
        }
    }
}

/// Sends the packet of a step. Gives where it went, in the words of the file.
///
/// # Panics
/// When it is no such step.
pub fn send(bench: &mut Bench, words: &[&str]) -> (String, Verdict) {
    let address = |n: usize| words[n].parse::<Ipv4Addr>().expect("an address");
    let port = |n: usize| words[n].parse::<u16>().expect("a port");
    let (from, to) = ((address(1), port(2)), (address(3), port(4)));
    let macs = (client_mac(from.0), C0);
    let frame = match words[0] {
        "udp" => udp(macs, from, to),
        "syn" => tcp(macs, from, to, 0x02),
        "ack" => tcp(macs, from, to, 0x10),
        "rst" => tcp(macs, from, to, 0x04),
        "fin" => tcp(macs, from, to, 0x11),
        other => panic!("unknown step {other}"),
    };
    let outcome = bench.frame(CLIENTS, &frame);
    let went = match (outcome.verdict, outcome.sent.last()) {
        // The recorder's bench had no limit on ICMP.
        (Verdict::Reply(_) | Verdict::Drop(Reason::RateLimited), _) => "client".to_owned(),
        (Verdict::Forward(_), Some((_, frame))) => name(frame[5]),
        _ => "drop".to_owned(),
    };
    (went, outcome.verdict)
}

/// Weight, active and inactive connections of each server.
pub fn loads(bench: &Bench) -> BTreeMap<String, (u32, u32, u32)> {
    let loads = bench.loads().into_iter();
    loads
        .map(|(server, weight, active, inactive)| (name(server.octets()[3]), (weight, active, inactive)))
        .collect()
}

/// rsN is 10.1.0.(10+N).
pub fn name(last_byte: u8) -> String {
    format!("rs{}", last_byte.wrapping_sub(10))
}

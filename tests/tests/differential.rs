//! Random rules and packets, asked of a real kernel IPVS now, and of the director: the same answers.
//!
//! It runs where `IPVS_ORACLE` names a folder with that kernel in a guest: its `run.sh` boots it and runs a script in it, its `cases/lab.py` is the bench. Elsewhere it says so.
//! `IPVS_SEED` and `IPVS_CASES` choose what is asked; by default the clock, and as much as takes a minute.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use shunt_tests::choices::{Case, replay};

/// The kernel's timers are late, by as much as an eighth of their time, and an entry is there until its timer has run. So the director may do what it does when
/// time passes a little more slowly.
const PACES: [f64; 6] = [1.0, 0.99, 0.98, 0.96, 0.93, 0.9];

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

#[test]
fn random_choices_are_the_kernels() {
    let Some(oracle) = env::var_os("IPVS_ORACLE").map(PathBuf::from) else {
        println!("skip: IPVS_ORACLE names no kernel to ask");
        return;
    };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    let (seed, count) = (number("IPVS_SEED").unwrap_or(clock), number("IPVS_CASES").unwrap_or(20));
    println!("IPVS_SEED={seed} IPVS_CASES={count}");

    let here = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("differential-{seed}"));
    fs::create_dir_all(&here).expect("a folder of the target's");
    fs::copy(oracle.join("cases/lab.py"), here.join("lab.py")).expect("the oracle's bench");
    let script = here.join("choices.py");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/oracle/choices.py"), &script).expect("the recorder");
    fs::write(here.join("plan"), format!("{seed} {count}")).expect("the plan");
    let limit = (60 + 15 * count).to_string();
    let asked = Command::new(oracle.join("run.sh"))
        .current_dir(&oracle)
        .args(["--warp", "--timeout", &limit])
        .arg(&script)
        .output()
        .expect("the oracle runs");
    let told = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "the oracle failed: {}\n{told}", asked.status);
    let cases: Vec<Case> = serde_json::from_slice(&asked.stdout).expect("the recorder's answer");
    assert_eq!(cases.len() as u64, count);

    let mut wrong = Vec::new();
    for case in &cases {
        // What was wrong at the right pace is what is told.
        let tried: Vec<_> = PACES.iter().map(|pace| replay(case, *pace)).collect();
        if tried.iter().all(Result::is_err) {
            let why = tried[0].as_ref().err();
            wrong.push(format!(
                "{} {}: {:?}\n  setup {:?} {:?}",
                case.scheduler, case.scenario, why, case.setup, case.sysctl
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    fs::remove_dir_all(&here).expect("what was made can be removed");
}

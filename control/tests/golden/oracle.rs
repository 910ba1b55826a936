//! Random command lines, asked of a real ipvsadm on a real IPVS now.
//!
//! It can be asked where `IPVS_ORACLE` names a folder with that kernel in a guest: its `run.sh` boots it and runs a script in it, its `cases/lab.py` is the bench.
//! `IPVS_SEED` and `IPVS_LINES` choose what is asked; by default the clock, and a thousand lines, which take some minutes. `IPVS_RECORD` names a file
//! that keeps the answers; those in it are not asked for again.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// A transcript of random command lines; none where there is nobody to ask.
pub fn transcript() -> Option<String> {
    let record = env::var_os("IPVS_RECORD");
    if let Some(told) = record.as_ref().and_then(|file| fs::read_to_string(file).ok()) {
        return Some(told);
    }
    let oracle = env::var_os("IPVS_ORACLE").map(PathBuf::from)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    let (seed, lines) = (number("IPVS_SEED").unwrap_or(clock), number("IPVS_LINES").unwrap_or(1000));
    println!("IPVS_SEED={seed} IPVS_LINES={lines}");

    let here = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("commands-{seed}"));
    let ours = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests"));
    fs::create_dir_all(&here).expect("a folder of the target's");
    fs::copy(oracle.join("cases/lab.py"), here.join("lab.py")).expect("the oracle's bench");
    for file in ["oracle/commands.py", "golden/names/hosts", "golden/names/services"] {
        let file = ours.join(file);
        fs::copy(&file, here.join(file.file_name().expect("a file has a name")))
            .expect("a file of the recorder");
    }
    fs::write(here.join("plan"), format!("{seed} {lines}")).expect("the plan");
    let asked = Command::new(oracle.join("run.sh"))
        .current_dir(&oracle)
        .args(["--warp", "--timeout", &(60 + lines).to_string()])
        .arg(here.join("commands.py"))
        .output()
        .expect("the oracle runs");
    let complaint = String::from_utf8_lossy(&asked.stderr);
    assert!(asked.status.success(), "the oracle failed: {}\n{complaint}", asked.status);
    fs::remove_dir_all(&here).expect("what was made can be removed");

    let told = String::from_utf8(asked.stdout).expect("the tool prints text");
    if let Some(file) = record {
        fs::write(file, &told).expect("the answers can be kept");
    }
    Some(told)
}

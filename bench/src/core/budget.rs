//! Instructions a packet, counted by valgrind's callgrind, held against a recorded budget: they repeat where times do not.
//!
//! The lab runs itself under callgrind with two numbers of bursts; what the second has more, divided by its packets more, is a packet's.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shunt_dataplane::port::BURST;

use crate::interrupt;
use crate::stand::{CLIENTS, MODES, Stand};

/// Instructions of a request, from bytes to verdict, of a release build for x86-64: what was counted when they were last looked at. The compiler's version moves
/// them a little.
const BUDGET: [(&str, u64); 4] = [("nat", 291), ("dr", 268), ("tun", 355), ("fullnat", 294)];

/// Hundredths more than its budget that a packet may take.
const SLACK: u64 = 3;

/// Connections whose packets are counted.
const CONNECTIONS: u32 = 1000;

/// Bursts of the shorter run and of the longer one.
const BURSTS: [usize; 2] = [64, 1088];

/// The hidden part of the lab that is run under callgrind: bursts through a director of a mode.
///
/// # Errors
/// When the words are not a mode and a number.
pub fn run(words: &[String]) -> Result<()> {
    let [mode, bursts] = words else { bail!("a mode and a number of bursts are wanted") };
    let (_, forwarding) = MODES.iter().find(|(name, _)| name == mode).context("no such mode")?;
    let bursts: usize = bursts.parse().context("the number of bursts")?;
    let mut stand = Stand::new(*forwarding, CONNECTIONS)?;
    let bytes: [_; BURST] = std::array::from_fn(|n| stand.request(n as u32));
    for turn in 0..bursts {
        stand.burst(CLIENTS, turn, &bytes);
    }
    Ok(())
}

/// Counts, prints, and says whether all modes keep to their budgets.
///
/// # Errors
/// When valgrind cannot be run, or the user interrupts.
pub fn check() -> Result<bool> {
    let mut is_kept = true;
    for (mode, budget) in BUDGET {
        let [short, long] = [instructions(mode, BURSTS[0])?, instructions(mode, BURSTS[1])?];
        let packets = ((BURSTS[1] - BURSTS[0]) * BURST) as u64;
        let each = (long - short) / packets;
        let keeps = each * 100 <= budget * (100 + SLACK);
        is_kept &= keeps;
        let verdict = if keeps { "" } else { ": more than its budget" };
        println!("{mode}: {each} instructions a packet, of {budget}{verdict}");
    }
    Ok(is_kept)
}

/// Instructions of a run. Those that copy its frames into place are among them, some twenty a packet.
fn instructions(mode: &str, bursts: usize) -> Result<u64> {
    let mut valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().context("finding this program")?)
        .args(["burst", mode, &bursts.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running valgrind; is it installed?")?;
    // What it says in a whole run is far less than a pipe holds.
    while valgrind.try_wait().context("waiting for valgrind")?.is_none() {
        if let Err(interrupted) = interrupt::sleep(Duration::from_millis(20)) {
            // Fails only for a child that has just ended.
            let _ = valgrind.kill();
            let _ = valgrind.wait();
            return Err(interrupted);
        }
    }
    let output = valgrind.wait_with_output().context("waiting for valgrind")?;
    // What ended it may have been the same signal.
    interrupt::check()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind: {}: {}", output.status, said.trim());
    }
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.with_context(|| format!("no count in what valgrind says: {}", said.trim()))
}

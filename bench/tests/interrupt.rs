//! A request to end, alone in its process: who sleeps or fills a table hears of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shunt_bench::interrupt;
use shunt_bench::stand::Stand;
use shunt_dataplane::service::Forwarding;

/// Far longer than it may take, and far shorter than what is slept.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_request_to_end_wakes_a_sleeper_and_stops_what_is_begun_after_it() -> Result<()> {
    interrupt::listen()?;
    interrupt::sleep(Duration::from_millis(1))?;
    let begun = Instant::now();
    kill(Pid::this(), Signal::SIGTERM)?;
    ensure!(interrupt::sleep(10 * PATIENCE).is_err(), "it slept on");
    ensure!(begun.elapsed() < PATIENCE, "it heard late");
    ensure!(interrupt::requested() == Some(Signal::SIGTERM as i32));
    ensure!(Stand::new(Forwarding::Masq, 1000).is_err(), "it was filled all the same");
    Ok(())
}

//! SIGINT and SIGTERM, seen from everywhere.
//!
//! Signals belong to the process, so the flag does too. Whoever loops asks [`requested`] at least every 100
//! ms and returns; guards on the way up then stop what was started, the same way as after success. A second
//! signal does not wait: the process ends at once and the kernel does the same work.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// The longest that a sleeper does not look.
const STEP: Duration = Duration::from_millis(50);

/// The first signal that came, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Starts listening, on a thread of its own. Handlers are used, not a blocked mask: children would inherit
/// the mask.
pub fn listen() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a tokio runtime")?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let wait = async move {
        loop {
            let number = tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
                _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
            };
            if SIGNAL.swap(number, Ordering::Relaxed) != 0 {
                std::process::exit(128 + number);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(wait))
        .context("starting a thread")?;
    Ok(())
}

/// Whether a signal asked this process to end, and which.
pub fn requested() -> Option<i32> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => None,
        number => Some(number),
    }
}

/// Turns a request to end into an error, for use with `?`.
pub fn check() -> Result<()> {
    match requested() {
        Some(number) => bail!("interrupted by signal {number}"),
        None => Ok(()),
    }
}

/// Sleeps as a thread does, unless it is asked to end meanwhile or was before.
///
/// # Errors
/// That of [`check`], at once.
pub fn sleep(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(STEP));
    }
}

//! The signals that end the director.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Bit of SIGHUP in a mask of signals.
const SIGHUP: u64 = 1;

/// Waits for one of them.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
    /// A terminal that is closed ends the director cleanly, too, unless it was begun so as not to mind (nohup).
    hangup: Option<Signal>,
}

impl Stop {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel refuses a signal's handler.
    pub fn listen() -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if ignores_hangups(&status) { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Returns when the director is told to end. Cancel safe.
    pub async fn told(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether a process of this `/proc/PID/status` ignores SIGHUP.
fn ignores_hangups(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & SIGHUP != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_obeyed() {
        assert!(ignores_hangups("SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangups("SigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangups(""));
    }
}

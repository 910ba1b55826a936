//! What a result depends on and its reader cannot see: kernel, processor, memory.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// The machine a lab run was made on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release, such as `6.12.9`.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Memory in mebibytes.
    pub memory_mib: u64,
    /// The hardware's name for itself: `x86_64`, `aarch64`.
    pub architecture: &'static str,
    /// Whether the lab ran as `root`, as root of a `user namespace`, or with `none`, which is enough for `core`.
    pub privilege: &'static str,
}

impl Machine {
    /// Looks around. What cannot be found out is called unknown, or 0: no reason to refuse a measurement.
    pub fn describe(privilege: &'static str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        // "model name" is x86's; others call it Processor or do not name it.
        let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let cpu = ["model name", "Processor", "cpu model"]
            .into_iter()
            .find_map(|key| field(&processors, key))
            .unwrap_or("unknown");
        let memory_kib = field(&memory, "MemTotal")
            .and_then(|value| value.split(' ').next())
            .and_then(|number| number.parse::<u64>().ok())
            .unwrap_or(0);
        Self {
            kernel: if kernel.is_empty() { "unknown".to_owned() } else { kernel },
            cpu: cpu.to_owned(),
            cores: cores().map_or(0, |cores| cores.len()),
            memory_mib: memory_kib / 1024,
            architecture: std::env::consts::ARCH,
            privilege,
        }
    }
}

/// Bytes of memory that this process has in use.
pub fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let kib = field(&status, "VmRSS").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS in /proc/self/status")? * 1024)
}

/// Keeps this thread on a core.
pub fn pin(core: usize) {
    // A core that cannot be had leaves the thread to the scheduler, which costs accuracy alone.
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// Has `job` done side by side by those who each have a core, until it is told to stop when `meanwhile` is over. Gives what it came to.
///
/// # Panics
/// When the job does.
pub fn side_by_side<P: Send, T: Send>(
    who: impl IntoIterator<Item = (usize, P)>,
    job: impl Fn(P, &AtomicBool) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> Vec<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |(core, part): (usize, P)| {
            let (job, stop) = (&job, &stop);
            scope.spawn(move || {
                pin(core);
                job(part, stop)
            })
        };
        let threads: Vec<_> = who.into_iter().map(start).collect();
        meanwhile();
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("the job panicked")).collect()
    })
}

/// The processors this process may use, by their numbers, which in a container rarely are 0 to n.
pub fn cores() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for the processors to use")?;
    Ok((0..CpuSet::count()).filter(|&core| allowed.is_set(core) == Ok(true)).collect())
}

/// The value of the first line that reads `key : value`.
fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 1\nmodel name\t: Some CPU: fast\nMemTotal:  1024 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("1024 kB"));
        assert_eq!(field(text, "name"), None);
    }
}

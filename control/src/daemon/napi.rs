//! With `--busy-poll`, receiving is left to the workers: what an interface must be told for that.
//!
//! A socket that prefers busy polling keeps its queue's interrupts away only if the kernel may put them off: `napi_defer_hard_irqs` says how many times in a row that find nothing,
//! `gro_flush_timeout` for how many nanoseconds each, after which the kernel looks by itself, so that nothing is stuck when nobody polls (Documentation/networking/napi.rst). Both are the
//! interface's, in /sys, and 0 by default. Those that are 0 are set, and put back when [`Napi`] is dropped. Others are an operator's choice.
//!
//! The trap: /sys shows the network namespace that it was mounted in, which need not be this process's, and there may be an interface of the same name there. So nothing is written before
//! index and Ethernet address are found to be the right ones.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, ensure};
use shunt_dataplane::service::Interface;

use crate::cli::in_one_line;

/// Times that interrupts are put off, and nanoseconds each: what the change to Linux that brought `SO_PREFER_BUSY_POLL` has for an example (7fd3253a7de6). A worker looks again within some microseconds; a queue that nobody polls any more
/// is looked after twice, and then interrupts as ever.
const SETTINGS: [(&str, &str); 2] = [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

/// Settings of interfaces for as long as it lives.
#[derive(Default)]
pub struct Napi {
    root: PathBuf,
    set: Vec<Set>,
}

/// A setting that was 0.
struct Set {
    interface: Interface,
    name: &'static str,
    value: &'static str,
}

impl Napi {
    /// Leaves receiving on these interfaces to those who poll. Says what to do about those where it cannot.
    pub fn leave_to_pollers(root: &Path, interfaces: &[Interface]) -> (Self, Vec<String>) {
        let mut napi = Self { root: root.to_owned(), set: Vec::new() };
        let mut complaints = Vec::new();
        for interface in interfaces {
            if let Err(error) = napi.leave(interface) {
                let name = &interface.name;
                complaints.push(format!(
                    "--busy-poll: {name} is still interrupted for every burst ({}); echo 2 > /sys/class/net/{name}/napi_defer_hard_irqs and \
                     echo 200000 > /sys/class/net/{name}/gro_flush_timeout leave receiving to the workers",
                    in_one_line(&error)
                ));
            }
        }
        let mut told: Vec<&str> = napi.set.iter().map(|set| set.interface.name.as_str()).collect();
        told.dedup();
        if !told.is_empty() {
            tracing::info!(
                "--busy-poll: receiving on {} is left to the workers (napi_defer_hard_irqs, gro_flush_timeout) until the director ends",
                told.join(", ")
            );
        }
        (napi, complaints)
    }

    fn leave(&mut self, interface: &Interface) -> anyhow::Result<()> {
        let directory = directory(&self.root, interface)?;
        for (name, value) in SETTINGS {
            let file = directory.join(name);
            let found = read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if found == "0" {
                write(&file, value).with_context(|| format!("cannot write to {}", file.display()))?;
                self.set.push(Set { interface: interface.clone(), name, value });
            }
        }
        Ok(())
    }
}

impl Drop for Napi {
    fn drop(&mut self) {
        for Set { interface, name, value } in &self.set {
            // One that is gone has taken its settings along.
            let Ok(directory) = directory(&self.root, interface) else { continue };
            let file = directory.join(name);
            // What somebody has chosen meanwhile stays.
            if read(&file).is_ok_and(|found| found == *value)
                && let Err(error) = write(&file, "0")
            {
                tracing::warn!("{} stays {value}: {error}", file.display());
            }
        }
    }
}

/// Where an interface's settings are.
fn directory(root: &Path, interface: &Interface) -> anyhow::Result<PathBuf> {
    let directory = root.join("sys/class/net").join(&interface.name);
    let is = |name: &str, value: String| read(&directory.join(name)).is_ok_and(|found| found == value);
    let mac = interface.mac.map(|byte| format!("{byte:02x}")).join(":");
    ensure!(
        is("ifindex", interface.index.to_string()) && is("address", mac),
        "/sys does not show it; is it mounted in another network namespace?"
    );
    Ok(directory)
}

fn read(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

/// Never makes a file.
fn write(file: &Path, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).truncate(true).open(file)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /sys with eth0, and what these settings of it are.
    fn sys(defer: &str, timeout: &str) -> (tempfile::TempDir, Interface) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("sys/class/net/eth0");
        fs::create_dir_all(&directory).unwrap();
        let files = [("ifindex", "7"), ("address", "02:00:00:00:00:0a")];
        for (name, value) in
            files.into_iter().chain([SETTINGS[0].0, SETTINGS[1].0].into_iter().zip([defer, timeout]))
        {
            fs::write(directory.join(name), format!("{value}\n")).unwrap();
        }
        let (name, mac) = ("eth0".to_owned(), [2, 0, 0, 0, 0, 10]);
        (root, Interface { name, index: 7, mac, mtu: 1500, addresses: [None; 2] })
    }

    fn settings(root: &tempfile::TempDir) -> [String; 2] {
        SETTINGS.map(|(name, _)| read(&root.path().join("sys/class/net/eth0").join(name)).unwrap())
    }

    #[test]
    fn what_was_zero_is_set_and_put_back() {
        for (found, during) in [
            (["0", "0"], ["2", "200000"]),
            (["0", "50000"], ["2", "50000"]),
            (["100", "0"], ["100", "200000"]),
            (["1", "1"], ["1", "1"]),
        ] {
            let (root, eth0) = sys(found[0], found[1]);
            let (napi, complaints) = Napi::leave_to_pollers(root.path(), &[eth0]);
            assert_eq!((settings(&root), complaints.len()), (during.map(str::to_owned), 0));
            drop(napi);
            assert_eq!(settings(&root), found.map(str::to_owned));
        }
    }

    #[test]
    fn what_an_operator_has_chosen_meanwhile_stays() {
        let (root, eth0) = sys("0", "0");
        let (napi, _) = Napi::leave_to_pollers(root.path(), &[eth0]);
        fs::write(root.path().join("sys/class/net/eth0/gro_flush_timeout"), "1000\n").unwrap();
        drop(napi);
        assert_eq!(settings(&root), ["0", "1000"]);
    }

    #[test]
    fn another_interface_of_the_same_name_is_not_touched() {
        let (root, eth0) = sys("0", "0");
        for other in
            [Interface { index: 8, ..eth0.clone() }, Interface { mac: [2, 0, 0, 0, 0, 11], ..eth0.clone() }]
        {
            let (_napi, complaints) = Napi::leave_to_pollers(root.path(), &[other]);
            assert_eq!(settings(&root), ["0", "0"]);
            assert!(
                complaints.len() == 1 && complaints[0].contains("another network namespace"),
                "{complaints:?}"
            );
        }
        // It takes the name while the director runs.
        let (napi, _) = Napi::leave_to_pollers(root.path(), &[eth0]);
        fs::write(root.path().join("sys/class/net/eth0/ifindex"), "9\n").unwrap();
        drop(napi);
        assert_eq!(settings(&root), ["2", "200000"]);
    }

    #[test]
    fn what_cannot_be_set_is_said_with_what_to_do() {
        let (root, eth0) = sys("0", "0");
        fs::remove_file(root.path().join("sys/class/net/eth0/gro_flush_timeout")).unwrap();
        let (napi, complaints) = Napi::leave_to_pollers(root.path(), &[eth0]);
        assert!(
            complaints.len() == 1
                && complaints[0].contains("echo 200000 > /sys/class/net/eth0/gro_flush_timeout")
        );
        drop(napi);
        assert_eq!(read(&root.path().join("sys/class/net/eth0/napi_defer_hard_irqs")).unwrap(), "0");
    }
}

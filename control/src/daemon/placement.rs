//! Where workers run, and where their NICs' work is done: NUMA nodes, interrupts, settings; and what of it costs speed, in plain words.
//!
//! All of it is read from /sys and /proc. What a machine does not say (virtual interfaces have neither node nor interrupts) is no reason to warn.

use std::fs;
use std::path::{Path, PathBuf};

use crate::api::Pages;

/// Bytes of the huge pages that can be reserved for memory of any size.
const HUGE_PAGE: u64 = 2 << 20;

/// Mappings of a worker's, each of which may leave a part of its last page unused.
const MAPPINGS: u64 = 16;

/// The machine, as its files tell of it.
pub struct Machine {
    root: PathBuf,
}

/// How the director is set up, for [`Machine::complaints`].
#[derive(Clone, Copy, Debug)]
pub struct Setup<'s> {
    /// Each interface, with the way it is driven.
    pub ways: &'s [(String, String)],
    /// The workers' cores.
    pub cores: &'s [usize],
    /// Whether workers do the receiving work themselves.
    pub busy_poll: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Self { root: "/".into() }
    }

    /// Cores in the order of their worth for these interfaces, the best last: those on their NUMA nodes behind the others.
    pub fn by_nearness(&self, cores: &[usize], interfaces: &[String]) -> Vec<usize> {
        let nodes: Vec<_> = interfaces.iter().filter_map(|name| self.node_of(name)).collect();
        let mut cores = cores.to_vec();
        cores.sort_by_key(|core| self.node_of_core(*core).is_some_and(|node| nodes.contains(&node)));
        cores
    }

    /// Whether an interface is a device's: not a veth, a bridge, a bond and the like.
    pub fn is_hardware(&self, interface: &str) -> bool {
        self.file(&format!("sys/class/net/{interface}/device")).exists()
    }

    /// What switches off that a bridge's frames pass netfilter at its ports, a command for each setting that is on.
    pub fn bridge_filters(&self, bridge: &str) -> Vec<String> {
        let of_table = |table| {
            let [all, one] = [
                format!("proc/sys/net/bridge/bridge-nf-call-{table}"),
                format!("sys/class/net/{bridge}/bridge/nf_call_{table}"),
            ];
            [
                (all, format!("sysctl -w net.bridge.bridge-nf-call-{table}=0")),
                (one, format!("ip link set {bridge} type bridge nf_call_{table} 0")),
            ]
        };
        let is_on = |file: &str| self.read(file).is_some_and(|setting| setting != "0");
        let settings = ["iptables", "ip6tables"].into_iter().flat_map(of_table);
        settings.filter(|(file, _)| is_on(file)).map(|(_, cure)| cure).collect()
    }

    /// Whether the kernel gives transparent huge pages to who asks for them.
    pub fn has_transparent_pages(&self) -> bool {
        // A process may be forbidden to have them, too.
        let status = self.read("proc/self/status").unwrap_or_default();
        self.transparent_pages_are_off() == Some(false)
            && !status.lines().any(|line| line.split_whitespace().eq(["THP_enabled:", "0"]))
    }

    /// Whether nobody gets them; nothing where the kernel has none.
    fn transparent_pages_are_off(&self) -> Option<bool> {
        // The setting in force is in brackets.
        Some(self.read("sys/kernel/mm/transparent_hugepage/enabled")?.contains("[never]"))
    }

    /// What to do about ordinary pages, if there are any where huge ones could be.
    pub fn complaint_of_pages(&self, frames: Pages, tables: &[Pages]) -> Option<String> {
        let all: Vec<Pages> = tables.iter().copied().chain([frames]).collect();
        if all.iter().all(|pages| pages.ordinary == 0) {
            return None;
        }
        let bytes: u64 = all.iter().map(Pages::bytes).sum();
        let switch = match self.transparent_pages_are_off() {
            Some(true) => "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or ",
            _ => "",
        };
        Some(format!(
            "frames and tables are in ordinary pages: with many connections a packet waits for the page tables, too. \
             {switch}sysctl -w vm.nr_hugepages={}, then start again",
            bytes.div_ceil(HUGE_PAGE) + all.len() as u64 * MAPPINGS
        ))
    }

    /// What costs speed, a sentence each.
    pub fn complaints(&self, setup: &Setup<'_>) -> Vec<String> {
        let mut said = Vec::new();
        for (name, way) in setup.ways {
            let is_hardware = self.is_hardware(name);
            // That an interface has no native XDP was said when it was refused.
            let is_generic = way.contains("generic");
            if way.contains("copy") && !way.contains("zero-copy") && !is_generic && is_hardware {
                said.push(format!(
                    "{name}: the kernel copies every frame, because the driver of this or another of the director's interfaces has \
                     no zero-copy for AF_XDP"
                ));
            }
            self.complain_of_nodes(name, setup.cores, &mut said);
            if way.starts_with("af-xdp") {
                self.complain_of_interrupts(name, setup, &mut said);
            }
        }
        said
    }

    fn complain_of_nodes(&self, name: &str, cores: &[usize], said: &mut Vec<String>) {
        let Some(node) = self.node_of(name) else { return };
        let is_far = |core: &&usize| self.node_of_core(**core).is_some_and(|other| other != node);
        let far: Vec<String> = cores.iter().filter(is_far).map(usize::to_string).collect();
        if !far.is_empty() {
            said.push(format!(
                "{name} is on NUMA node {node}, but the worker(s) on core(s) {} are not: every frame crosses between nodes; choose \
                 cores of that node with --cores (lscpu shows them)",
                far.join(",")
            ));
        }
    }

    fn complain_of_interrupts(&self, name: &str, setup: &Setup<'_>, said: &mut Vec<String>) {
        // Then there are none, or `napi` says why.
        if setup.busy_poll {
            return;
        }
        let found = self.interrupts_of(name);
        let shared = found.iter().filter(|(_, core)| setup.cores.contains(core));
        let listed: Vec<String> = shared.map(|(number, core)| format!("{number} on core {core}")).collect();
        if !listed.is_empty() {
            said.push(format!(
                "{name}: interrupts are served where workers run ({}): they take turns; move them to other cores of the same NUMA node \
                 (/proc/irq/NUMBER/smp_affinity_list), or use --busy-poll",
                listed.join(", ")
            ));
        }
    }

    /// The NUMA node of an interface; none for virtual ones, and where there is only one.
    fn node_of(&self, interface: &str) -> Option<u32> {
        // -1 says that it does not matter.
        self.read(&format!("sys/class/net/{interface}/device/numa_node"))?.parse().ok()
    }

    fn node_of_core(&self, core: usize) -> Option<u32> {
        let entries = fs::read_dir(self.file(&format!("sys/devices/system/cpu/cpu{core}"))).ok()?;
        entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
    }

    /// The interrupts of an interface, each with the core that serves it, where it is one.
    fn interrupts_of(&self, interface: &str) -> Vec<(u32, usize)> {
        let directory = self.file(&format!("sys/class/net/{interface}/device/msi_irqs"));
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<(u32, usize)> = entries
            .filter_map(|entry| {
                let number: u32 = entry.file_name().to_str()?.parse().ok()?;
                let core = self.read(&format!("proc/irq/{number}/effective_affinity_list"))?.parse().ok()?;
                Some((number, core))
            })
            .collect();
        found.sort_unstable();
        found
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.file(path)).ok().map(|text| text.trim().to_owned())
    }

    fn file(&self, path: &str) -> PathBuf {
        Path::new(&self.root).join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two cores; eth0 on the second, with an interrupt on core 3; v0 is virtual.
    fn machine() -> (tempfile::TempDir, Machine) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for core in 0..4 {
            fs::create_dir_all(root.join(format!("sys/devices/system/cpu/cpu{core}/node{}", core / 2)))
                .unwrap();
        }
        for (path, text) in [
            ("sys/class/net/eth0/device/numa_node", "1\n"),
            ("sys/class/net/eth0/device/msi_irqs/41", ""),
            ("sys/class/net/v0/ifindex", "2\n"),
            ("proc/irq/41/effective_affinity_list", "3\n"),
        ] {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let root = root.to_owned();
        (directory, Machine { root })
    }

    fn complaints(way: &str, cores: &[usize], busy_poll: bool) -> Vec<String> {
        let (_directory, machine) = machine();
        let ways = [("eth0".to_owned(), way.to_owned())];
        machine.complaints(&Setup { ways: &ways, cores, busy_poll })
    }

    #[test]
    fn the_cores_of_the_nics_node_come_last() {
        let (_directory, machine) = machine();
        assert_eq!(machine.by_nearness(&[3, 2, 1, 0], &["eth0".to_owned()]), [1, 0, 3, 2]);
        assert_eq!(machine.by_nearness(&[0, 1, 2, 3], &["v0".to_owned()]), [0, 1, 2, 3]);
    }

    #[test]
    fn a_virtual_interface_is_no_hardware() {
        let (_directory, machine) = machine();
        assert!(machine.is_hardware("eth0") && !machine.is_hardware("v0"));
    }

    #[test]
    fn a_bridges_frames_pass_netfilter_where_either_setting_says_so() {
        let (directory, machine) = machine();
        assert!(machine.bridge_filters("br0").is_empty(), "there is no br_netfilter");
        for (path, text) in [
            ("proc/sys/net/bridge/bridge-nf-call-iptables", "0\n"),
            ("proc/sys/net/bridge/bridge-nf-call-ip6tables", "1\n"),
            ("sys/class/net/br0/bridge/nf_call_iptables", "1\n"),
            ("sys/class/net/br0/bridge/nf_call_ip6tables", "0\n"),
        ] {
            let file = directory.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let one = "ip link set br0 type bridge nf_call_iptables 0";
        assert_eq!(machine.bridge_filters("br0"), [one, "sysctl -w net.bridge.bridge-nf-call-ip6tables=0"]);
    }

    #[test]
    fn ordinary_pages_are_told_of_with_what_to_do() {
        let (directory, machine) = machine();
        let setting = |text: &str| {
            let file = directory.path().join("sys/kernel/mm/transparent_hugepage/enabled");
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let [huge, small] = [(4 << 20, 0), (0, 4 << 20)].map(|(transparent, ordinary)| Pages {
            reserved: 0,
            transparent,
            ordinary,
        });
        assert!(!machine.has_transparent_pages());
        let told = machine.complaint_of_pages(small, &[small]).unwrap();
        assert!(told.contains(". sysctl -w vm.nr_hugepages=36,"), "{told}");
        setting("always madvise [never]");
        assert!(!machine.has_transparent_pages());
        let told = machine.complaint_of_pages(small, &[huge]).unwrap();
        assert!(told.contains("echo madvise > "), "{told}");
        setting("always [madvise] never");
        assert!(machine.has_transparent_pages());
        assert_eq!(machine.complaint_of_pages(huge, &[huge]), None);
        fs::create_dir_all(directory.path().join("proc/self")).unwrap();
        fs::write(directory.path().join("proc/self/status"), "Name:\tshunt\nTHP_enabled:\t0\n").unwrap();
        assert!(!machine.has_transparent_pages());
        let told = machine.complaint_of_pages(small, &[small]).unwrap();
        assert!(!told.contains("echo"), "{told}");
    }

    #[test]
    fn a_good_place_is_no_reason_to_complain() {
        assert!(complaints("af-xdp (native, zero-copy)", &[2], false).is_empty());
        assert!(complaints("af-packet", &[3], false).is_empty());
        assert!(complaints("af-xdp (native, zero-copy)", &[3], true).is_empty());
    }

    #[test]
    fn what_costs_speed_is_said_with_what_to_do() {
        for (way, cores, told) in [
            ("af-xdp (native, copy)", 2, "copies every frame"),
            ("af-xdp (native, zero-copy)", 0, "NUMA node 1, but the worker(s) on core(s) 0"),
            ("af-xdp (native, zero-copy)", 3, "(41 on core 3)"),
        ] {
            let said = complaints(way, &[cores], false);
            assert!(said.len() == 1 && said[0].contains(told), "{way}, core {cores}: {said:?}");
        }
    }
}

//! Opening the queues: AF_XDP where it works, AF_PACKET where it does not, and in plain words which and why.
//!
//! A worker gets one or more queues of every interface. With AF_XDP a queue has one owner, so there must be at least as many queues as
//! workers; queues beyond that are dealt out in turn, or their frames would stay with the kernel. With AF_PACKET the kernel
//! deals the frames out to any number of workers.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, bail};
use shunt_dataplane::port::af_xdp::{AfXdp, Attach, Queue};
use shunt_dataplane::port::ethtool::{Ethtool, Offload};
use shunt_dataplane::port::{FrameMemory, Pool, Port, af_packet, af_xdp};
use shunt_dataplane::service::{Interface, PortId};
use shunt_dataplane::steer::{self, Filter, Joined, Mode, Preference, Steering, Xdp};
use shunt_dataplane::worker::MAX_PORTS;

use super::placement::Machine;
use super::queues::{self, Dealing, Queues};
use crate::cli::in_one_line;

/// Frames of a worker beyond those that its queues can hold: bursts under way, packets that wait, frames handed to another
/// worker (at most 4096 each way).
const FRAMES_UNDER_WAY: u32 = 8192;

/// Slots of an AF_XDP ring for receiving: 4096 frames are 2.7 ms of 1.5 Mpps, about what may come in a burst or while a core is somebody else's. More would let frames grow
/// old; under steady overload it makes no difference that could be measured.
const RX_SLOTS: u32 = 4096;

/// Slots of one for sending. It is emptied every turn; its length makes no difference that could be measured.
const TX_SLOTS: u32 = 2048;

/// Drivers that hand over frames of local senders with the checksum still to be finished.
const LEAVES_CHECKSUMS: &[&str] = &["veth", "virtio_net", "tun"];

/// Which ring to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// AF_XDP if it works on every interface, else AF_PACKET.
    #[default]
    Auto,
    /// AF_XDP, or fail.
    AfXdp,
    /// AF_PACKET, or fail.
    AfPacket,
}

/// Open queues.
pub struct Backend {
    /// By worker.
    pub ports: Vec<Vec<(PortId, Box<dyn Port>)>>,
    /// By worker.
    pub pools: Vec<Pool>,
    /// What keeps the kernel's hands off the director's frames.
    pub steering: Box<dyn Steering>,
    /// Each interface, with the way it is driven.
    pub ways: Vec<(String, String)>,
    /// The NICs' own queues, where workers have those.
    pub queues: Option<Queues>,
}

/// Queues that frames of an interface may come in by.
pub fn queues(interface: &str) -> u32 {
    queues::count(interface).unwrap_or(1)
}

/// Opens the queues of `interfaces` for `workers` workers.
///
/// # Errors
/// Says which interface refused and why; nothing is left behind.
pub fn open(
    choice: Choice,
    interfaces: &[Interface],
    workers: usize,
    busy_poll: bool,
) -> anyhow::Result<Backend> {
    let backend = match choice {
        Choice::AfXdp => open_xdp(interfaces, workers, busy_poll)?,
        Choice::AfPacket => open_packet(interfaces, workers, busy_poll)?,
        Choice::Auto => match open_xdp(interfaces, workers, busy_poll) {
            Ok(backend) => {
                tracing::info!("AF_XDP works on every interface and is the fastest way: it is used");
                backend
            }
            // Somebody else's program gets the frames first, whichever way we take: that is for the operator to settle.
            Err(why) if why.chain().any(is_occupied) => return Err(why),
            Err(why) => {
                let why = in_one_line(&why);
                tracing::warn!("AF_XDP does not work here, AF_PACKET is used: {why}");
                open_packet(interfaces, workers, busy_poll).context("AF_PACKET does not work either")?
            }
        },
    };
    Ok(backend)
}

fn is_occupied(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(steer::Error::Occupied { .. }))
}

fn open_xdp(interfaces: &[Interface], workers: usize, busy_poll: bool) -> anyhow::Result<Backend> {
    let mut xdp = Xdp::load(&steered(interfaces))?;
    xdp.attach(Preference::Fastest)?;
    let native = (0..interfaces.len()).all(|n| xdp.mode(PortId(n as u8)) == Some(Mode::Native));

    let mut wanted = Vec::new();
    for interface in interfaces {
        let queues = queues(&interface.name);
        if (queues as usize) < workers {
            bail!(
                "{name} has {queues} receive queue(s), {workers} workers need as many each; use --cores with {queues} core(s), or \
                 give it more queues (ethtool -L {name} combined {workers}; on veth rx {workers} tx {workers})",
                name = interface.name,
            );
        }
        wanted.extend((0..queues).map(|queue| Queue {
            interface: interface.name.clone(),
            index: interface.index,
            queue,
            worker: queue as usize % workers,
        }));
    }
    let most = (0..workers).map(|w| wanted.iter().filter(|q| q.worker == w).count()).max().unwrap_or(0);
    if most > MAX_PORTS {
        bail!(
            "a worker would have {most} queues, {MAX_PORTS} are possible; use more --cores or fewer queues (ethtool -L)"
        );
    }

    let options = af_xdp::Options {
        attach: if native { Attach::Native } else { Attach::Generic },
        rx_slots: RX_SLOTS,
        tx_slots: TX_SLOTS,
        // In generic mode frames have been the kernel's, and may be a local sender's.
        partial_checksums: !native || interfaces.iter().any(|interface| leaves_checksums(&interface.name)),
        busy_poll,
    };
    let per_worker = options.frames_per_queue() * most as u32 + FRAMES_UNDER_WAY;
    let mut pools = frames(workers, per_worker)?;
    let sockets = AfXdp::open(&mut pools, &wanted, &options)?;

    for (interface, n) in interfaces.iter().zip(0..) {
        if let Some(why) = xdp.refusal(PortId(n)) {
            tracing::warn!(
                "{}: the kernel makes a socket buffer of every frame before the director gets it, which is several times as slow as native XDP, \
                 but that was refused: {why}",
                interface.name
            );
        }
        warn(&interface.name, xdp.mode(PortId(n)) == Some(Mode::Native));
    }
    if !native && interfaces.iter().any(|interface| !Machine::here().is_hardware(&interface.name)) {
        warn_of_joined(&"generic XDP does not tell them from others");
    }
    let ways = interfaces
        .iter()
        .enumerate()
        .map(|(n, interface)| {
            let attached = xdp.mode(PortId(n as u8)).map_or_else(String::new, |mode| mode.to_string());
            let copies = if sockets.iter().all(AfXdp::zero_copy) { "zero-copy" } else { "copy" };
            (interface.name.clone(), format!("af-xdp ({attached}, {copies})"))
        })
        .collect();
    let mut ports: Vec<Vec<(PortId, Box<dyn Port>)>> = (0..workers).map(|_| Vec::new()).collect();
    for (queue, socket) in wanted.iter().zip(sockets) {
        let port = PortId(interfaces.iter().position(|i| i.index == queue.index).unwrap_or(0) as u8);
        xdp.register(port, queue.queue, socket.as_fd())?;
        ports[queue.worker].push((port, Box::new(socket)));
    }
    let opened = interfaces.iter().map(|interface| {
        let its = wanted.iter().filter(|queue| queue.index == interface.index);
        (interface.name.clone(), its.count() as u32)
    });
    let queues = Some(Queues::new(opened, workers, Dealing::of));
    Ok(Backend { ports, pools, steering: Box::new(xdp), ways, queues })
}

fn open_packet(interfaces: &[Interface], workers: usize, busy_poll: bool) -> anyhow::Result<Backend> {
    for interface in interfaces {
        refuse_filtered_bridge(&interface.name)?;
    }
    let filter = Filter::install(&steered(interfaces))?;
    let joined = Joined::load();
    let pools = frames(workers, FRAMES_UNDER_WAY)?;
    let mut ports: Vec<Vec<(PortId, Box<dyn Port>)>> = (0..workers).map(|_| Vec::new()).collect();
    for (n, interface) in interfaces.iter().enumerate() {
        let fanout = if workers > 1 { Some(random::<2>().map(u16::from_ne_bytes)?) } else { None };
        let options = af_packet::Options { fanout, ..af_packet::Options::default() };
        for ports in &mut ports {
            let port = af_packet::AfPacket::open(&interface.name, interface.index, &options)?;
            if let Ok(joined) = &joined {
                joined.cut_short(port.as_fd())?;
            }
            ports.push((PortId(n as u8), Box::new(port)));
        }
    }
    if busy_poll {
        tracing::info!(
            "--busy-poll: workers never sleep, but with AF_PACKET the interrupts' work stays theirs"
        );
    }
    interfaces.iter().for_each(|interface| warn(&interface.name, false));
    if let Err(why) = joined {
        warn_of_joined(&why);
    }
    let ways = interfaces.iter().map(|interface| (interface.name.clone(), "af-packet".to_owned())).collect();
    // The kernel's own hash deals out here.
    Ok(Backend { ports, pools, steering: Box::new(filter), ways, queues: None })
}

fn frames(workers: usize, per_worker: u32) -> anyhow::Result<Vec<Pool>> {
    let (memory, pools) = FrameMemory::with_pools(workers as u32, per_worker)
        .with_context(|| format!("cannot map memory for {workers} x {per_worker} frames"))?;
    tracing::debug!(mebibytes = memory.size() >> 20, backing = ?memory.backing(), "frame memory");
    Ok(pools)
}

fn steered(interfaces: &[Interface]) -> Vec<steer::Interface> {
    interfaces.iter().map(|i| steer::Interface { name: i.name.clone(), index: i.index, mac: i.mac }).collect()
}

/// Says in plain words what about an interface loses frames.
fn warn(name: &str, is_native: bool) {
    let Ok(ethtool) = Ethtool::open(name) else { return };
    for (offload, switch) in [(Offload::Gro, "gro"), (Offload::Lro, "lro")] {
        // Natively, the XDP program has the packets before the kernel joins them.
        let joins = offload == Offload::Lro || !is_native;
        if joins && ethtool.offload(offload).unwrap_or(false) {
            tracing::warn!(
                "{name} joins received packets ({switch}); joined ones are too long for the director and will be dropped \
                 (counter port.rx_oversized). Switch it off: ethtool -K {name} {switch} off"
            );
        }
    }
}

/// A bridge's frames get to AF_PACKET as the bridge's, and with br_netfilter the director's filter has dropped them before, at the port they came in by.
fn refuse_filtered_bridge(name: &str) -> anyhow::Result<()> {
    let is_bridge = Ethtool::open(name).and_then(|e| e.driver()).is_ok_and(|driver| driver == "bridge");
    let cures = if is_bridge { Machine::here().bridge_filters(name) } else { Vec::new() };
    if !cures.is_empty() {
        bail!(
            "{name} is a bridge, and its frames pass netfilter (br_netfilter) before AF_PACKET gets them, so none of the director's would \
             arrive; use --backend af-xdp, or switch that off: {}",
            cures.join("; ")
        );
    }
    Ok(())
}

/// Says what becomes of datagrams that a local sender hands over as one where nothing tells of it.
fn warn_of_joined(why: &dyn std::fmt::Display) {
    tracing::warn!(
        "several UDP datagrams that a sender on this host hands over as one (UDP_SEGMENT, as QUIC does) are taken for one if they are short, \
         and dropped if not: {why}. Switch that off at the senders: ethtool -K eth0 tx-udp-segmentation off"
    );
}

/// Whether frames of local senders may come in by an interface with the checksum still to be finished: what is no hardware hands them over as
/// they are. The driver is asked as well, for /sys may be of another network namespace.
fn leaves_checksums(interface: &str) -> bool {
    let driver = Ethtool::open(interface).and_then(|e| e.driver());
    !Machine::here().is_hardware(interface)
        || driver.is_ok_and(|driver| LEAVES_CHECKSUMS.contains(&driver.as_str()))
}

/// Bytes nobody can guess.
///
/// # Errors
/// When the kernel's source of them cannot be read.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    let source = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    source.context("cannot read random numbers from /dev/urandom")?;
    Ok(bytes)
}

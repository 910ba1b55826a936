//! AF_PACKET ports: frames through the kernel's packet socket, for NICs and kernels without AF_XDP.
//!
//! A port is a socket for receiving and one for sending: one is to describe what it sends to the kernel, and a socket that does is told of what it
//! receives in the same words (`PACKET_VNET_HDR`). A packet that these cannot tell of, such as several UDP datagrams in one on older kernels, would
//! leave its slot taken for ever, and nothing would be received any more.
//!
//! Their rings ([`tpacket`](super::tpacket)) are the kernel's memory, so each frame is copied once on its
//! way in and once on its way out. The receiving socket gets a *copy* of every frame: the kernel handles the original as
//! well, unless a filter ([`steer`](crate::steer)) keeps it from that.
//!
//! What the kernel did to a frame before we see it is undone here, so that the director gets what was on the wire:
//! the VLAN tag it took out is put back, and a checksum left for hardware to finish is finished
//! ([`partial`](super::partial)).
//!
//! Several workers on one interface join a fanout group, in which the kernel gives each frame to one socket, chosen
//! by the hash of its flow. Without one each socket gets every frame.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::tpacket2_hdr;
use memmap2::{MmapOptions, MmapRaw};

use super::frame::{HEADROOM, MAX_FRAME};
use super::sockopt::{enlarge_send_buffer, option, set_option};
use super::tpacket::{BLOCK, Held, MAX_SEND, Rx, SLOT, Slot, Tx};
use super::{BURST, Burst, Frame, FrameMemory, Losses, MIN_FRAME, Pool, Port, ifreq, partial};
use crate::packet::Tags;

const _: () = assert!(MAX_FRAME <= MAX_SEND, "every frame fits a slot");

/// Slots looked at per call of `receive`. Frames that are not ours (broadcasts, a promiscuous interface) do not fill
/// the burst, and a flood of them must not keep the worker from its other ports.
const MAX_LOOK: usize = 4 * BURST;

/// Refused frames taken out of the transmit ring per flush: each costs moving up what waits behind it. More are
/// left to the next turns, and a ring full of them refuses new ones.
const MAX_REFUSED: usize = 8;

/// How long a frame that the device does not take is offered again. A queue that is full has room for one more long before.
const PATIENCE: Duration = Duration::from_millis(50);

/// Frames given up one after the other, none of which had been the one that held up the others: then it is perhaps the device that takes
/// nothing, and the next are offered again for as long.
const MAX_GIVEN_UP: usize = BURST;

/// Bytes of an 802.1Q tag, and where it goes: behind the two addresses.
const TAG: usize = 4;
const TAG_AT: usize = 12;

/// The tag's ethertype when the kernel does not name it.
const TPID_8021Q: u16 = 0x8100;

/// The protocol of a socket that receives nothing.
const NOTHING: u16 = 0;

/// How the sockets are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Slots of the receive ring, a multiple of 32.
    pub rx_slots: u32,
    /// Slots of the transmit ring, a multiple of 32.
    pub tx_slots: u32,
    /// The fanout group of the interface's workers, unless there is only one worker. Random, and different for each
    /// interface: groups are shared by all programs in the network namespace.
    pub fanout: Option<u16>,
}

/// A port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} for {interface}: {source}; {}", cure(.source))]
pub struct Error {
    /// The interface.
    pub interface: String,
    /// What was being done.
    pub step: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// Two AF_PACKET sockets with a ring each.
#[repr(align(128))]
pub struct AfPacket {
    receiver: OwnedFd,
    rx: Rx,
    sender: OwnedFd,
    tx: Tx,
    /// Whether frames may be waiting in the transmit ring.
    unsent: bool,
    stall: Option<Stall>,
    /// Frames of this length or longer are given up at once when the device does not take them, as one of this length held up the others.
    doubtful: Cell<usize>,
    oversized: u64,
    refused: u64,
    name: ifreq::Name,
    /// The longest packet that the interface sends.
    mtu: Cell<usize>,
    /// Drops the kernel has reported so far; reading them sets the kernel's own count to zero.
    overrun: Cell<u64>,
}

/// The device takes nothing.
#[derive(Clone, Copy)]
struct Stall {
    /// The slot that the kernel stays at.
    slot: usize,
    since: Instant,
    /// Frames taken out of it.
    given_up: usize,
}

impl Default for Options {
    /// 2048 slots each way, 8 MiB in all: copying takes longer than taking descriptors, so the rings are deeper than
    /// those of AF_XDP.
    fn default() -> Self {
        Self { rx_slots: 2048, tx_slots: 2048, fanout: None }
    }
}

impl AfPacket {
    /// Opens the sockets for all frames of an interface, given by name (for messages) and index.
    ///
    /// # Errors
    /// [`Error`] names the interface, the step and the likely cure.
    pub fn open(interface: &str, index: u32, options: &Options) -> Result<Self, Error> {
        let failed = |step| move |source| Error { interface: interface.to_owned(), step, source };

        let receiver = socket().map_err(failed("open a packet socket"))?;
        // Our own frames, and those of the machine itself, are not to be received.
        set_option(&receiver, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)
            .map_err(failed("ignore outgoing frames"))?;
        let rx = map(&receiver, libc::PACKET_RX_RING, options.rx_slots).map_err(failed("make the ring"))?;

        let sender = socket().map_err(failed("open a packet socket"))?;
        // Frames to be sent begin with how much of them the kernel is to copy.
        set_option(&sender, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)
            .map_err(failed("describe frames to be sent"))?;
        // Straight to the driver: the ring is queue enough, and the discipline's lock is not taken for each frame.
        set_option(&sender, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1)
            .map_err(failed("bypass the queueing discipline"))?;
        enlarge_send_buffer(&sender).map_err(failed("enlarge the send buffer"))?;
        let tx = map(&sender, libc::PACKET_TX_RING, options.tx_slots).map_err(failed("make the ring"))?;

        bind(&sender, index, NOTHING).map_err(failed("bind a packet socket"))?;
        bind(&receiver, index, libc::ETH_P_ALL as u16).map_err(failed("bind a packet socket"))?;
        let name = ifreq::name(interface);
        let mtu = Cell::new(ifreq::mtu(&sender, &name).map_err(failed("ask for the MTU"))?);
        let mut port = Self {
            receiver,
            rx: Rx::new(rx),
            sender,
            tx: Tx::new(tx),
            unsent: false,
            stall: None,
            doubtful: Cell::new(usize::MAX),
            oversized: 0,
            refused: 0,
            name,
            mtu,
            overrun: Cell::new(0),
        };
        if let Some(group) = options.fanout {
            join(&port.receiver, group).map_err(failed("join the fanout group"))?;
            // Until now we got every frame; those are other workers' as well.
            while port.rx.received().is_some() {
                port.rx.release();
            }
        }
        Ok(port)
    }

    /// Has the kernel send all that was enqueued, or take it for sending. After an error some still waits.
    fn send(&self) -> io::Result<()> {
        // SAFETY: no buffer, no address; the descriptor is open as long as `self`.
        let sent = unsafe {
            libc::sendto(
                self.sender.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether a frame that could not be sent is to be taken out, as it will never be.
    ///
    /// The kernel says ENOBUFS both where the device's queue is full or its link down, and where the device has dropped the frame, a veth for
    /// instance what is longer than its peer's MTU. It offers that one again all the same, and nothing behind it leaves.
    fn is_hopeless(&mut self, held: Held, error: &io::Error) -> bool {
        if held.is_refused || error.raw_os_error() != Some(libc::ENOBUFS) {
            return held.is_refused;
        }
        let now = Instant::now();
        let anew = Stall { slot: held.slot, since: now, given_up: 0 };
        // In another slot than before: the device has taken some.
        let mut stall = self.stall.filter(|stall| stall.slot == held.slot).unwrap_or(anew);
        let is_over = now - stall.since >= PATIENCE;
        // Without a carrier nothing can leave, and all wait for it: to take them out one by one would cost others more than they are worth.
        if stall.given_up == MAX_GIVEN_UP || is_over && stall.given_up == 0 && !self.has_carrier() {
            self.doubtful.set(usize::MAX);
            stall = anew;
        }
        let is_hopeless = held.len >= self.doubtful.get() || now - stall.since >= PATIENCE;
        if is_hopeless {
            self.doubtful.set(self.doubtful.get().min(held.len));
            stall.given_up += 1;
        }
        self.stall = Some(stall);
        is_hopeless
    }

    /// Whether frames can leave. If that cannot be asked, they can.
    fn has_carrier(&self) -> bool {
        ifreq::flags(&self.sender, &self.name).map_or(true, |flags| flags & libc::IFF_RUNNING != 0)
    }
}

impl Port for AfPacket {
    fn receive(&mut self, pool: &mut Pool, burst: &mut Burst) {
        for _ in 0..MAX_LOOK {
            if burst.is_full() {
                break;
            }
            let Some(slot) = self.rx.received() else { break };
            if slot.packet_type() == libc::PACKET_HOST {
                // Without a frame to copy it to, what was received stays where it is, and the kernel counts what it
                // drops.
                let Some(mut frame) = pool.take() else { break };
                if copy_out(&slot, pool.memory(), &mut frame) {
                    burst.push(frame);
                } else {
                    self.oversized += 1;
                    pool.give(frame);
                }
            }
            self.rx.release();
        }
    }

    fn transmit(&mut self, pool: &mut Pool, burst: &mut Burst) {
        let mut done = 0;
        for frame in burst.iter_mut() {
            let bytes = pool.memory().data(frame);
            // The kernel does not look at the length of a frame that it has been told of.
            let longest = (self.mtu.get() + MIN_FRAME + Tags::of(bytes).len()).min(MAX_SEND);
            if bytes.len() < MIN_FRAME || bytes.len() > longest {
                self.refused += 1;
            } else if self.tx.enqueue(bytes) {
                self.unsent = true;
            } else {
                break;
            }
            done += 1;
        }
        for frame in burst.drain(..done) {
            pool.give(frame);
        }
    }

    fn flush(&mut self, _: &mut Pool) -> bool {
        if !self.unsent {
            return false;
        }
        // One call, and one more for each frame that will never be sent. If the device is busy or down, the rest is for a later turn.
        for _ in 0..=MAX_REFUSED {
            let Err(error) = self.send() else {
                // Short of memory, the kernel leaves some behind and does not say so.
                self.unsent = self.tx.has_unsent();
                self.stall = None;
                break;
            };
            match self.tx.held() {
                Some(held) if self.is_hopeless(held, &error) => {
                    self.tx.take_out(held);
                    self.refused += 1;
                }
                _ => break,
            }
        }
        self.unsent
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.receiver.as_fd())
    }

    /// A system call per call: for the reader of statistics, not for the packet path.
    fn losses(&self) -> Losses {
        if let Ok(statistics) =
            option::<libc::tpacket_stats>(&self.receiver, libc::SOL_PACKET, libc::PACKET_STATISTICS)
        {
            self.overrun.set(self.overrun.get() + statistics.tp_drops as u64);
        }
        if let Ok(mtu) = ifreq::mtu(&self.sender, &self.name) {
            self.mtu.set(mtu);
        }
        // Its peer may have another MTU by now.
        self.doubtful.set(usize::MAX);
        // A link that goes down leaves an error on the socket, and poll(2) would return at once until somebody
        // takes it.
        let _ = option::<i32>(&self.receiver, libc::SOL_SOCKET, libc::SO_ERROR);
        Losses {
            rx_overrun: self.overrun.get(),
            rx_no_buffer: 0, // its ring is its buffers
            rx_oversized: self.oversized,
            tx_refused: self.refused,
        }
    }
}

impl AsFd for AfPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// Copies a received frame as it was on the wire. False when it is longer than a chunk, or was when it arrived.
fn copy_out(slot: &Slot<'_>, memory: &FrameMemory, frame: &mut Frame) -> bool {
    let header = slot.header();
    let (at, len) = (header.tp_mac as usize, header.tp_snaplen as usize);
    let tag = tag(&header);
    let tag_len = if tag.is_some() { TAG } else { 0 };
    if header.tp_len != header.tp_snaplen || len + tag_len > MAX_FRAME || len < MIN_FRAME {
        return false;
    }
    frame.set_data(HEADROOM, len + tag_len);
    let bytes = memory.data(frame);
    let whole = match tag {
        None => slot.read(at, bytes),
        Some(tag) => {
            let (front, back) = bytes.split_at_mut(TAG_AT + TAG);
            front[TAG_AT..].copy_from_slice(&tag);
            slot.read(at, &mut front[..TAG_AT]) && slot.read(at + TAG_AT, back)
        }
    };
    if header.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0 {
        partial::finish(bytes);
    }
    whole
}

/// The VLAN tag that the kernel took out of a frame.
fn tag(header: &tpacket2_hdr) -> Option<[u8; TAG]> {
    if header.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let named = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let [a, b] = if named { header.tp_vlan_tpid } else { TPID_8021Q }.to_be_bytes();
    let [c, d] = header.tp_vlan_tci.to_be_bytes();
    Some([a, b, c, d])
}

fn socket() -> io::Result<OwnedFd> {
    // Nothing is received before the bind, when all is set up.
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NOTHING.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a socket's ring and maps it.
fn map(fd: &OwnedFd, ring: i32, slots: u32) -> io::Result<MmapRaw> {
    if slots == 0 {
        // To the kernel that means to take the ring away.
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    set_option(fd, libc::SOL_PACKET, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as i32))?;
    let len = slots as usize * SLOT;
    let request = libc::tpacket_req {
        tp_block_size: BLOCK as u32,
        tp_block_nr: (len / BLOCK) as u32,
        tp_frame_size: SLOT as u32,
        tp_frame_nr: slots,
    };
    set_option(fd, libc::SOL_PACKET, ring, &request)?;
    MmapOptions::new().len(len).populate().map_raw(fd.as_raw_fd())
}

/// Binds a socket to an interface, to send by it and to receive frames of this protocol.
fn bind(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a whole sockaddr_ll and its size is given; the kernel only reads it.
    let result = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Joins a fanout group by hash. The group has its own hook, which must be told anew to ignore outgoing frames.
fn join(fd: &OwnedFd, group: u16) -> io::Result<()> {
    let kind = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(kind << 16 | group as u32))
}

fn cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_RAW is needed",
        Some(libc::ENOMEM | libc::ENOBUFS) => "the machine is short of memory: use smaller rings",
        Some(libc::ENODEV | libc::ENXIO) => "the interface is gone",
        Some(libc::EINVAL) => {
            "if the interface is down, it must be set up first, as Linux before 6.13 lets several workers join on no other; \
             ring slots must be a multiple of 32, and a fanout group must be of one interface"
        }
        Some(libc::EALREADY | libc::ENOSPC) => "another program uses the same fanout group",
        Some(libc::EAFNOSUPPORT) => "the kernel was built without CONFIG_PACKET",
        _ => "see packet(7)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::testnet::{self, Net};
    use crate::steer::Joined;

    fn small() -> Options {
        Options { rx_slots: 256, tx_slots: 256, fanout: None }
    }

    fn numbered(net: &Net, count: u16) -> Vec<Vec<u8>> {
        (0..count)
            .map(|n| {
                Net::frame(net.a, net.b, &[&n.to_be_bytes()[..], &[0x33; 60], &vec![7; n as usize]].concat())
            })
            .collect()
    }

    #[test]
    fn frames_cross_a_veth_pair_unchanged_and_in_order() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        // More than the rings hold, so that they wrap.
        for _ in 0..3 {
            let frames = numbered(&net, 200);
            testnet::send(&mut a, &mut pool, &frames);
            assert_eq!(testnet::receive(&mut b, &mut pool, 200), frames);
        }
        assert_eq!(pool.available(), 512);
        assert_eq!((a.losses(), b.losses()), (Losses::default(), Losses::default()));
        assert!(testnet::receive(&mut a, &mut pool, 0).is_empty(), "our own frames are not received");
    }

    #[test]
    fn frames_to_others_and_to_all_are_not_ours() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        let ours = numbered(&net, 1);
        let mut stranger = ours[0].clone();
        stranger[5] ^= 0x40;
        let mut broadcast = ours[0].clone();
        broadcast[..6].fill(0xff);
        testnet::send(&mut a, &mut pool, &[stranger, broadcast, ours[0].clone()]);
        assert_eq!(testnet::receive(&mut b, &mut pool, 1), ours);
    }

    #[test]
    fn a_vlan_tag_is_put_back() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        let tagged = |tpid: [u8; 2], tci: [u8; 2]| {
            let plain = Net::frame(net.a, net.b, &[0x55; 80]);
            [&plain[..12], &tpid, &tci, &plain[12..]].concat()
        };
        let frames = vec![tagged([0x81, 0x00], [0xa0, 0x2a]), tagged([0x88, 0xa8], [0x00, 0x07])];
        testnet::send(&mut a, &mut pool, &frames);
        assert_eq!(testnet::receive(&mut b, &mut pool, 2), frames);
    }

    #[test]
    fn tags_leave_a_packet_its_mtu() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        let plain = Net::frame(net.a, net.b, &[0x55; 1500]);
        let (outer, inner) = ([0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]);
        let tags: [&[u8]; 4] = [&[], &inner, &outer, &[outer, inner].concat()];
        let frames = tags.map(|tags| [&plain[..12], tags, &plain[12..]].concat());
        testnet::send(&mut a, &mut pool, &frames);
        // A veth itself takes one tag more than a packet.
        assert_eq!(testnet::receive(&mut b, &mut pool, 3), frames[..3]);
        assert_eq!(a.losses().tx_refused, 0);
        let long: Vec<_> = frames.iter().map(|frame| [&frame[..], &[0]].concat()).collect();
        testnet::send(&mut a, &mut pool, &long);
        assert_eq!(a.losses().tx_refused, 4);
    }

    #[test]
    fn a_partial_checksum_is_finished() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        let (partial, whole) = Net::partial_datagram(net.a, net.b, b"an odd number of bytes!");
        testnet::send_partial(net.a, &partial, 34, 6, false);
        assert_eq!(testnet::receive(&mut b, &mut pool, 1), [whole]);
    }

    #[test]
    fn packets_of_any_kind_hold_up_nothing() {
        let Some(_net) = Net::with_veth(1) else { return };
        let Some((tap, end)) = testnet::Tap::new() else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut port = AfPacket::open(end.name, end.index, &small()).unwrap();
        for kind in [testnet::UFO, testnet::UDP_L4] {
            let (one, whole) = Net::partial_datagram(end, end, &[7; 100]);
            tap.put(kind, 1000, &Net::partial_datagram(end, end, &[7; 3000]).0).expect("the device takes it");
            tap.put(0, 0, &one).expect("the device takes it");
            assert_eq!(testnet::receive(&mut port, &mut pool, 1), [whole]);
        }
        assert_eq!(port.losses(), Losses { rx_oversized: 2, ..Losses::default() });
    }

    #[test]
    fn joined_datagrams_are_counted_and_other_packets_pass() {
        let Some(_net) = Net::with_veth(1) else { return };
        let Some((tap, end)) = testnet::Tap::new() else { return };
        let joined = match Joined::load() {
            Ok(joined) => joined,
            Err(error) => return println!("skip: {error}"),
        };
        let (_, mut pool) = testnet::pool(512);
        let mut port = AfPacket::open(end.name, end.index, &small()).unwrap();
        joined.cut_short(port.as_fd()).unwrap();
        let (datagram, whole) = Net::partial_datagram(end, end, &[7; 1000]);
        tap.put(testnet::UDP_L4, 500, &datagram).expect("the device takes it");
        tap.put(0, 0, &datagram).expect("the device takes it");
        // A segment as long as two: what would be the UDP checksum is its number.
        let mut segment = datagram.clone();
        segment[23] = libc::IPPROTO_TCP as u8;
        segment[46] = 5 << 4;
        tap.put(testnet::TCP_V4, 500, &segment).expect("the device takes it");
        let got = testnet::receive(&mut port, &mut pool, 2);
        assert_eq!(got.len(), 2);
        assert!(got[0] == whole, "a datagram alone");
        assert_eq!((got[1].len(), got[1][23]), (segment.len(), segment[23]), "a segment for two");
        assert_eq!(port.losses(), Losses { rx_oversized: 1, ..Losses::default() });
    }

    #[test]
    fn a_full_receive_ring_and_an_empty_pool_are_counted_not_fatal() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &Options { rx_slots: 32, ..small() }).unwrap();
        testnet::send(&mut a, &mut pool, &numbered(&net, 100));
        let (_, mut empty) = testnet::pool(1);
        let only = empty.take().unwrap();
        assert!(testnet::receive(&mut b, &mut empty, 1).is_empty());
        empty.give(only);
        let got = testnet::receive(&mut b, &mut empty, 100).len() as u64;
        // Twice: reading the kernel's count clears it.
        for _ in 0..2 {
            assert_eq!(b.losses().rx_overrun + got, 100);
        }
    }

    #[test]
    fn a_frame_longer_than_the_device_takes_is_counted_and_holds_up_nothing() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        let mut frames = numbered(&net, 6);
        for long in [1, 2, 5] {
            frames[long] = Net::frame(net.a, net.b, &[1; 1600]);
        }
        frames.push(vec![0; 5]);
        testnet::send(&mut a, &mut pool, &frames);
        let expected: Vec<_> = [0, 3, 4].map(|n| frames[n].clone()).into();
        assert_eq!(testnet::receive(&mut b, &mut pool, 3), expected);
        assert_eq!(a.losses().tx_refused, 4);
        testnet::send(&mut a, &mut pool, &expected);
        assert_eq!(testnet::receive(&mut b, &mut pool, 3), expected, "the ring goes on");
    }

    #[test]
    fn a_frame_that_the_device_drops_is_counted_and_holds_up_nothing_for_long() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        testnet::set_mtu(net.b.name, 1280);
        let long = Net::frame(net.a, net.b, &[0x55; 1400]);
        let frames = numbered(&net, 50);
        // By the second round it is known what is too long; what lies before must not be taken for it.
        for (round, before) in [(1, 1), (2, 20)] {
            testnet::send(&mut a, &mut pool, &vec![long.clone(); before]);
            testnet::send(&mut a, &mut pool, &frames[..25]);
            testnet::send(&mut a, &mut pool, std::slice::from_ref(&long));
            testnet::send(&mut a, &mut pool, &frames[25..]);
            let mut got = Vec::new();
            testnet::within_a_second(|| {
                let waits = a.flush(&mut pool);
                got.extend(testnet::receive(&mut b, &mut pool, 0));
                (!waits && got.len() >= frames.len()).then_some(())
            });
            assert!(got == frames, "round {round}: {} frames arrived", got.len());
        }
        assert_eq!(a.losses().tx_refused, 2 + 21);
        assert_eq!(a.stall.map(|stall| stall.slot), None);

        // Their being too long is no property of theirs.
        testnet::set_mtu(net.b.name, 1500);
        testnet::send(&mut a, &mut pool, std::slice::from_ref(&long));
        assert_eq!(testnet::receive(&mut b, &mut pool, 1), [long]);
        assert_eq!(pool.available(), 512);
    }

    #[test]
    fn a_fanout_group_gets_each_frame_once() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let group = Options { fanout: Some(0x5117), ..small() };
        let mut first = AfPacket::open(net.b.name, net.b.index, &group).unwrap();
        let mut second = AfPacket::open(net.b.name, net.b.index, &group).unwrap();
        let mut frames: Vec<_> =
            (0..100u8).map(|n| Net::partial_datagram(net.a, net.b, &[n; 30]).1).collect();
        for (n, frame) in frames.iter_mut().enumerate() {
            // Another source port, another flow.
            frame[35] = n as u8;
        }
        testnet::send(&mut a, &mut pool, &frames);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        testnet::within_a_second(|| {
            one.extend(testnet::receive(&mut first, &mut pool, 0));
            two.extend(testnet::receive(&mut second, &mut pool, 0));
            (one.len() + two.len() >= 100).then_some(())
        });
        assert!(!one.is_empty() && !two.is_empty(), "{} and {}", one.len(), two.len());
        let mut all = [one, two].concat();
        all.sort();
        frames.sort();
        assert_eq!(all, frames);

        // What the machine itself sends does not even reach the rings.
        let reached = || {
            [&first, &second].map(|port| {
                let count =
                    option::<libc::tpacket_stats>(&port.receiver, libc::SOL_PACKET, libc::PACKET_STATISTICS);
                count.unwrap().tp_packets
            })
        };
        assert_eq!(reached().iter().sum::<u32>(), 100);
        testnet::within_a_second(|| {
            testnet::send_partial(net.b, &Net::partial_datagram(net.b, net.a, b"out").0, 34, 6, true);
            testnet::receive(&mut a, &mut pool, 0).pop()
        })
        .expect("it is sent");
        assert_eq!(reached(), [0, 0]);
    }

    #[test]
    fn a_link_that_was_down_works_again() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        testnet::set_up(net.b.name, false);
        let mut poll = libc::pollfd { fd: b.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, readable and writable.
        let mut ready = || unsafe { libc::poll(&raw mut poll, 1, 0) };
        assert_eq!(ready(), 1, "the error is there");
        b.losses();
        assert_eq!(ready(), 0, "and is taken");
        testnet::set_up(net.b.name, true);
        let frames = numbered(&net, 50);
        testnet::within_a_second(|| {
            testnet::send(&mut a, &mut pool, &frames);
            (testnet::receive(&mut b, &mut pool, 0) == frames).then_some(())
        })
        .expect("frames cross again");
    }

    #[test]
    fn frames_wait_for_a_link_that_has_no_carrier() {
        let Some(net) = Net::with_veth(1) else { return };
        let (_, mut pool) = testnet::pool(512);
        let mut a = AfPacket::open(net.a.name, net.a.index, &small()).unwrap();
        let mut b = AfPacket::open(net.b.name, net.b.index, &small()).unwrap();
        testnet::set_up(net.b.name, false);
        let frames = numbered(&net, 20);
        testnet::send(&mut a, &mut pool, &frames);
        let since = Instant::now();
        while since.elapsed() < 3 * PATIENCE {
            assert!(a.flush(&mut pool), "nobody takes them");
        }
        testnet::set_up(net.b.name, true);
        let mut got = Vec::new();
        testnet::within_a_second(|| {
            let waits = a.flush(&mut pool);
            got.extend(testnet::receive(&mut b, &mut pool, 0));
            (!waits && got.len() >= frames.len()).then_some(())
        });
        assert_eq!((got, a.losses().tx_refused), (frames, 0));
    }

    #[test]
    fn an_interface_that_is_gone_is_named() {
        let Some(_net) = Net::with_veth(1) else { return };
        let error = AfPacket::open("gone0", 9999, &small()).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("gone0") && text.contains("is gone"), "{text}");
        let error = AfPacket::open("veth-a", 1, &Options { rx_slots: 0, ..small() }).err().unwrap();
        assert!(error.to_string().contains("multiple of 32"), "{error}");
        // Kernels before 6.13 say no more to a fanout group on an interface that is down.
        assert!(error.to_string().contains("must be set up first"), "{error}");
    }
}

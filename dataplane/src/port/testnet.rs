//! A network of two interfaces for tests of the kernel's ports.
//!
//! Each test moves its own thread into a new network namespace and lays a veth pair in it; both vanish with the
//! thread. Nothing outside is touched. Without the permission to do so a test says "skip" and passes.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::{Burst, FrameMemory, Pool, Port, ifreq};

/// One end of the pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub name: &'static str,
    pub index: u32,
    pub mac: [u8; 6],
}

/// A veth pair in a namespace of its own: what goes out at one end comes in at the other.
pub(super) struct Net {
    pub a: End,
    pub b: End,
}

impl Net {
    /// A pair with `queues` queues at each end, both ends up. `None` when that is not permitted here.
    pub fn with_veth(queues: u32) -> Option<Self> {
        // SAFETY: no pointers are passed; only this thread changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("skip: no network namespace: {}", io::Error::last_os_error());
            return None;
        }
        // Without IPv6 the kernel sends nothing by itself. A kernel that has none to disable is fine.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let (mac_a, mac_b) = ([0x02, 0, 0, 0, 0, 0x0a], [0x02, 0, 0, 0, 0, 0x0b]);
        if let Err(error) = new_veth("veth-a", mac_a, "veth-b", mac_b, queues) {
            println!("skip: no veth pair: {error}");
            return None;
        }
        let end = |name, mac| End { name, index: index(name), mac };
        let net = Self { a: end("veth-a", mac_a), b: end("veth-b", mac_b) };
        set_up(net.a.name, true);
        set_up(net.b.name, true);
        Some(net)
    }

    /// A frame of an unassigned ethertype from one end to the other.
    pub fn frame(from: End, to: End, payload: &[u8]) -> Vec<u8> {
        [&to.mac[..], &from.mac, &[0x88, 0xb5], payload].concat()
    }

    /// A UDP packet from `from` to `to` whose checksum field holds only the pseudo header's sum, and the same packet
    /// as it should arrive.
    pub fn partial_datagram(from: End, to: End, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let udp_len = 8 + payload.len() as u16;
        let mut frame = [&to.mac[..], &from.mac, &[0x08, 0x00]].concat();
        frame.extend([0x45, 0]);
        frame.extend((20 + udp_len).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let header = ones(&frame[14..34]);
        frame[24..26].copy_from_slice(&(!header).to_be_bytes());
        frame.extend([0x10, 0, 0x20, 0]);
        frame.extend(udp_len.to_be_bytes());
        let pseudo = [&frame[26..34], &[0, 17], &udp_len.to_be_bytes()[..]].concat();
        frame.extend(ones(&pseudo).to_be_bytes());
        frame.extend(payload);
        let mut whole = frame.clone();
        let sum = !ones(&frame[34..]);
        whole[40..42].copy_from_slice(&sum.to_be_bytes());
        (frame, whole)
    }
}

/// What a frame of several in one is (`VIRTIO_NET_HDR_GSO_*`): a TCP segment, a datagram that is to be cut into fragments, several datagrams.
pub(super) const TCP_V4: u8 = 1;
pub(super) const UFO: u8 = 3;
pub(super) const UDP_L4: u8 = 5;

/// A device whose frames come from this process, with what a local sender left undone.
pub(super) struct Tap(std::fs::File);

impl Tap {
    /// One that is up, in the namespace of the calling thread. `None`, with a message, when that is not permitted here.
    pub fn new() -> Option<(Self, End)> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let (name, mac) = ("tap-c", [0x02, 0, 0, 0, 0, 0x0c]);
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let Ok(file) = file else {
            println!("skip: no TAP device: {}", file.unwrap_err());
            return None;
        };
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: flags };
        // SAFETY: TUNSETIFF reads the name and the flags of an ifreq, and writes its name.
        unsafe { ifreq::ask(&file, &ifreq::name(name), libc::TUNSETIFF, flags) }.expect("a device");
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        // SAFETY: SIOCSIFHWADDR reads an ifreq with an address.
        unsafe {
            configure(name, libc::SIOCSIFHWADDR, libc::__c_anonymous_ifr_ifru { ifru_hwaddr: address })
        };
        set_up(name, true);
        Some((Self(file), End { name, index: index(name), mac }))
    }

    /// Has the device receive a UDP or TCP packet over IPv4 whose checksum is partial, or several in one: of this kind, with so many bytes
    /// in each.
    pub fn put(&self, kind: u8, each: u16, frame: &[u8]) -> io::Result<()> {
        const NEEDS_CSUM: u8 = 1;
        const TCP: u8 = 6;
        // Offsets of the checksum, and the lengths of the headers.
        let (field, headers): (u16, u16) = if frame[23] == TCP { (16, 54) } else { (6, 42) };
        let numbers = [headers, each, 34, field].map(u16::to_ne_bytes).concat();
        io::Write::write_all(&mut &self.0, &[&[NEEDS_CSUM, kind], &numbers[..], frame].concat())
    }
}

/// Memory and one pool of `frames`.
pub(super) fn pool(frames: u32) -> (Arc<FrameMemory>, Pool) {
    let (memory, mut pools) = FrameMemory::with_pools(1, frames).unwrap();
    (memory, pools.pop().unwrap())
}

/// Sends these bytes by a port, in bursts.
pub(super) fn send(port: &mut dyn Port, pool: &mut Pool, frames: &[Vec<u8>]) {
    let memory = Arc::clone(pool.memory());
    for chunk in frames.chunks(super::BURST) {
        let mut burst = Burst::new();
        for bytes in chunk {
            let mut frame = pool.take().expect("the test's pool is large enough");
            frame.set_data(super::frame::HEADROOM, bytes.len());
            memory.data(&mut frame).copy_from_slice(bytes);
            burst.push(frame);
        }
        within_a_second(|| {
            port.transmit(pool, &mut burst);
            port.flush(pool);
            burst.is_empty().then_some(())
        })
        .expect("the port takes all frames in time");
    }
}

/// Receives until `count` frames are there, or a second has passed.
pub(super) fn receive(port: &mut dyn Port, pool: &mut Pool, count: usize) -> Vec<Vec<u8>> {
    let memory = Arc::clone(pool.memory());
    let mut seen = Vec::new();
    let mut burst = Burst::new();
    within_a_second(|| {
        port.receive(pool, &mut burst);
        for mut frame in burst.drain(..) {
            seen.push(memory.data(&mut frame).to_vec());
            pool.give(frame);
        }
        (seen.len() >= count).then_some(())
    });
    seen
}

/// Calls `step` until it has an answer, for a second at most.
pub(super) fn within_a_second<R>(mut step: impl FnMut() -> Option<R>) -> Option<R> {
    for _ in 0..1000 {
        if let Some(answer) = step() {
            return Some(answer);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    None
}

/// Sends a frame as a local program with checksum offload does: the kernel is told that the sum from `start` on is
/// missing, to be put at `start + offset`.
///
/// With `queued` it goes the way of the machine's own frames, through the queueing discipline. That drops frames
/// for some milliseconds after a link came up, until the kernel has noticed the carrier in the background.
pub(super) fn send_partial(from: End, frame: &[u8], start: u16, offset: u16, queued: bool) {
    /// `struct virtio_net_hdr`.
    const HEADER: usize = 10;
    const NEEDS_CSUM: u8 = 1;
    let fd = new_socket(libc::AF_PACKET, libc::SOCK_RAW);
    super::sockopt::set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32).unwrap();
    super::sockopt::set_option(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &(!queued as i32)).unwrap();
    let mut message = vec![0; HEADER];
    message[0] = NEEDS_CSUM;
    message[6..8].copy_from_slice(&start.to_ne_bytes());
    message[8..10].copy_from_slice(&offset.to_ne_bytes());
    message.extend(frame);
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0x0800u16.to_be(),
        sll_ifindex: from.index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: message and address are readable for the lengths given.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(sent, message.len() as isize, "{}", io::Error::last_os_error());
}

/// The one's complement sum of RFC 1071, written the slow way.
fn ones(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + carry as u16
    })
}

fn index(name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{}", io::Error::last_os_error());
    index
}

/// Sets an interface up or down.
pub(super) fn set_up(name: &str, up: bool) {
    let flags = if up { libc::IFF_UP as i16 } else { 0 };
    // SAFETY: SIOCSIFFLAGS reads an ifreq with flags.
    unsafe { configure(name, libc::SIOCSIFFLAGS, libc::__c_anonymous_ifr_ifru { ifru_flags: flags }) };
}

/// Sets the longest packet that an interface takes, in bytes.
pub(super) fn set_mtu(name: &str, mtu: i32) {
    // SAFETY: SIOCSIFMTU reads an ifreq with an MTU.
    unsafe { configure(name, libc::SIOCSIFMTU, libc::__c_anonymous_ifr_ifru { ifru_mtu: mtu }) };
}

/// Sets something of an interface.
///
/// # Safety
/// The request must be one that reads an ifreq with this member.
unsafe fn configure(name: &str, what: libc::c_ulong, value: libc::__c_anonymous_ifr_ifru) {
    let fd = new_socket(libc::AF_INET, libc::SOCK_DGRAM);
    // SAFETY: the caller's promise.
    unsafe { ifreq::ask(&fd, &ifreq::name(name), what, value) }.expect("it can be set");
}

fn new_socket(family: i32, kind: i32) -> OwnedFd {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just returned this descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Asks rtnetlink for a pair.
fn new_veth(a: &str, mac_a: [u8; 6], b: &str, mac_b: [u8; 6], queues: u32) -> io::Result<()> {
    const VETH_INFO_PEER: u16 = 1;
    let end = |name: &str, mac: [u8; 6]| {
        [
            // struct ifinfomsg, all defaults.
            vec![0; 16],
            attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat()),
            attribute(libc::IFLA_ADDRESS, &mac),
            attribute(libc::IFLA_NUM_TX_QUEUES, &queues.to_ne_bytes()),
            attribute(libc::IFLA_NUM_RX_QUEUES, &queues.to_ne_bytes()),
        ]
        .concat()
    };
    let peer = attribute(VETH_INFO_PEER, &end(b, mac_b));
    let kind = attribute(libc::IFLA_INFO_KIND, b"veth");
    let info = [kind, attribute(libc::IFLA_INFO_DATA, &peer)].concat();
    let body = [end(a, mac_a), attribute(libc::IFLA_LINKINFO, &info)].concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);

    let fd = new_socket(libc::AF_NETLINK, libc::SOCK_RAW);
    let mut answer = [0u8; 4096];
    // SAFETY: both buffers are valid for the lengths given.
    let got = unsafe {
        libc::send(fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0);
        libc::recv(fd.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    assert!(got >= 20, "an nlmsgerr with its header");
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// A netlink attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An XDP program that sends every frame of an interface to the socket of its queue, attached as long as the value
/// lives. Only for tests of the sockets: the product's program is in `steer`.
pub(super) struct Redirect {
    map: OwnedFd,
    /// The attachment lasts as long as this descriptor.
    _link: OwnedFd,
}

impl Redirect {
    /// `None`, with a message, when this process may not load programs.
    pub fn attach(to: End, generic: bool, queues: u32) -> Option<Self> {
        /// `bpf_attr` is 144 bytes by now; what a command does not use must be zero.
        type Attr = [u64; 18];
        const MAP_CREATE: i64 = 0;
        const PROG_LOAD: i64 = 5;
        const LINK_CREATE: i64 = 28;
        const XSKMAP: u64 = 17;
        const PROG_TYPE_XDP: u64 = 6;
        const ATTACH_XDP: u64 = 37;
        const FLAGS_SKB: u64 = 1 << 1;
        const FLAGS_DRV: u64 = 1 << 2;
        let pair = |low: u64, high: u64| low | high << 32;

        // Map type and key size; value size and entries.
        let mut attr: Attr = [0; 18];
        attr[0] = pair(XSKMAP, 4);
        attr[1] = pair(4, queues as u64);
        let map = match bpf(MAP_CREATE, &attr) {
            Ok(fd) => fd,
            Err(error) => {
                println!("skip: no BPF map: {error}");
                return None;
            }
        };
        let map_fd = map.as_raw_fd() as u64;
        let program: [u64; 6] = [
            0x0000_0000_0010_1261,      // r2 = *(u32 *)(r1 + 16): the queue
            map_fd << 32 | 0x0000_1118, // r1 = map
            0,                          // (its second half)
            0x0000_0002_0000_03b7,      // r3 = XDP_PASS, for a queue without a socket
            0x0000_0033_0000_0085,      // call bpf_redirect_map
            0x0000_0000_0000_0095,      // exit
        ];
        let license = c"Dual MIT/GPL";
        attr = [0; 18];
        attr[0] = pair(PROG_TYPE_XDP, program.len() as u64);
        attr[1] = program.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        let program = bpf(PROG_LOAD, &attr).expect("the verifier takes five instructions");
        attr = [0; 18];
        attr[0] = pair(program.as_raw_fd() as u64, to.index as u64);
        attr[1] = pair(ATTACH_XDP, if generic { FLAGS_SKB } else { FLAGS_DRV });
        let link = bpf(LINK_CREATE, &attr).expect("veth takes a program");
        Some(Self { _link: link, map })
    }

    /// Gives the frames of a queue to a socket.
    pub fn insert(&self, queue: u32, socket: BorrowedFd<'_>) {
        const MAP_UPDATE_ELEM: i64 = 2;
        let value = socket.as_raw_fd() as u32;
        let mut attr = [0; 18];
        attr[0] = self.map.as_raw_fd() as u64;
        attr[1] = (&raw const queue) as u64;
        attr[2] = (&raw const value) as u64;
        // SAFETY: as in `bpf`; key and value live until the call returns.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, attr.as_ptr(), size_of_val(&attr)) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// A bpf(2) command that returns a descriptor.
fn bpf(command: i64, attr: &[u64; 18]) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is readable for its size, and what it points to lives in the caller.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
